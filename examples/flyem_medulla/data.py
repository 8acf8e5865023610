"""Plasma membrane and cell of the fly's optic medulla, at 10 nm.

The network takes 44, 48, 52, ... voxels (44 + 4k) on an axis, and gives 40 less.
"""

classes = ["pm", "cell"]
input_array_info = {"shape": (92, 92, 92), "scale": (10, 10, 10)}
target_array_info = {"shape": (52, 52, 52), "scale": (10, 10, 10)}
