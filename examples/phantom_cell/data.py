"""The organelles and compartments of the phantom, at 8 nm.

The network takes 44, 48, 52, ... voxels (44 + 4k) on an axis, and gives 40 less.
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
input_array_info = {"shape": (92, 92, 92), "scale": (8, 8, 8)}
target_array_info = {"shape": (52, 52, 52), "scale": (8, 8, 8)}
