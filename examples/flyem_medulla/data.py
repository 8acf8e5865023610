"""Plasma membrane and cell of the fly's optic medulla, at 10 nm.

The network takes multiples of 8 voxels on an axis.
"""

classes = ["pm", "cell"]
input_array_info = {"shape": (32, 32, 32), "scale": (10, 10, 10)}
target_array_info = {"shape": (32, 32, 32), "scale": (10, 10, 10)}
