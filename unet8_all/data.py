"""What the network sees and what it is asked for.

Raw of 116^3 voxels, and the inner 76^3 voxels as target, at 8 nm.

The network takes 44, 48, 52, ... voxels (44 + 4k) on an axis, and gives 40 less.
"""

from common.classes import TESTED

classes = TESTED
input_array_info = {"shape": (116, 116, 116), "scale": (8, 8, 8)}
target_array_info = {"shape": (76, 76, 76), "scale": (8, 8, 8)}
