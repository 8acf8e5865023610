"""The organelles and compartments of the phantom, at 8 nm.

The network takes multiples of 8 voxels on an axis.
"""

classes = [
    "ecs",
    "pm",
    "cyto",
    "mito",
    "mito_mem",
    "er",
    "nuc",
    "ne",
    "hchrom",
    "golgi",
    "ves",
    "endo",
    "lyso",
    "ld",
    "perox",
    "mt",
    "cell",
]
input_array_info = {"shape": (32, 32, 32), "scale": (8, 8, 8)}
target_array_info = {"shape": (32, 32, 32), "scale": (8, 8, 8)}
