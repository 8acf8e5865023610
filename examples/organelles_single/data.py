"""Organelles and compartments of the phantom that nearly fill it, at 8 nm.

The network takes multiples of 8 voxels on an axis.
"""

classes = ["mito", "er", "nuc", "cyto", "pm", "ecs"]
input_array_info = {"shape": (32, 32, 32), "scale": (8, 8, 8)}
target_array_info = {"shape": (32, 32, 32), "scale": (8, 8, 8)}
