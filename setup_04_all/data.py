"""What the network sees and what it is asked for.

Raw of 216^3 voxels, and the inner 30^3 voxels as target, at 8 nm.

The network takes 198, 216, 234, ... voxels (198 + 18k) on an axis, and gives 186 less.
"""

from common.classes import TESTED

classes = TESTED
input_array_info = {"shape": (216, 216, 216), "scale": (8, 8, 8)}
target_array_info = {"shape": (30, 30, 30), "scale": (8, 8, 8)}
