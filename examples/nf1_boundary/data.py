"""Mitochondria of the phantom, their inner part, their boundary, and the background, at 8 nm.

Five sections of raw for one of labels, the centre one; multiples of 16 voxels in the plane.
"""

from common.config.derived import background, boundary, inner

classes = ["mito"]
derived = {
    "inner": inner("mito", from_edge=16),
    "boundary": boundary("mito", inside=16, outside=8),
    "background": background("mito"),
}
input_array_info = {"shape": (5, 64, 64), "scale": (8, 8, 8)}
target_array_info = {"shape": (1, 64, 64), "scale": (8, 8, 8)}
