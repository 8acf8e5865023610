"""What the network sees and what it is asked for: 68^3 voxels of raw, the inner 28^3 voxels as target, at 32 nm."""

from common.classes import TESTED

classes = TESTED
input_array_info = {"shape": (68, 68, 68), "scale": (32, 32, 32)}
target_array_info = {"shape": (28, 28, 28), "scale": (32, 32, 32)}
