"""What the network sees and what it is asked for.

Raw of 64^3 voxels, and the same 64^3 voxels as target, at 8 nm.

The network is planned from this shape, and takes multiples of 16 on an axis.
"""

from common.classes import TESTED

classes = TESTED
input_array_info = {"shape": (64, 64, 64), "scale": (8, 8, 8)}
target_array_info = {"shape": (64, 64, 64), "scale": (8, 8, 8)}
