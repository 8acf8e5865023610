"""What the network sees and what it is asked for.

Raw of 252^3 voxels, and the inner 66^3 voxels as target, at 8 nm.

The network takes 198, 216, 234, ... voxels (198 + 18k) on an axis, and gives 186 less.
"""

from common.classes import TESTED

classes = TESTED
input_array_info = {"shape": (252, 252, 252), "scale": (8, 8, 8)}
target_array_info = {"shape": (66, 66, 66), "scale": (8, 8, 8)}
