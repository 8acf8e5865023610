"""What the network sees and what it is asked for.

Raw of 56^3 voxels, and the inner 16^3 voxels as target, at 128 nm.

The network takes 44, 48, 52, ... voxels (44 + 4k) on an axis, and gives 40 less.
"""

from common.classes import TESTED

classes = TESTED
input_array_info = {"shape": (56, 56, 56), "scale": (128, 128, 128)}
target_array_info = {"shape": (16, 16, 16), "scale": (128, 128, 128)}
