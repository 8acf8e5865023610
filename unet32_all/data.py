"""What the network sees and what it is asked for.

Raw of 68^3 voxels, and the inner 28^3 voxels as target, at 32 nm.

The network takes 44, 48, 52, ... voxels (44 + 4k) on an axis, and gives 40 less.
"""

from common.classes import TESTED

classes = TESTED
input_array_info = {"shape": (68, 68, 68), "scale": (32, 32, 32)}
target_array_info = {"shape": (28, 28, 28), "scale": (32, 32, 32)}
