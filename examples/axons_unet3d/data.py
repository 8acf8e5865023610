"""Mitochondria of the phantom, which stand for axons, and their rims, at 8 nm.

Exactly one of background, axon and border is true of a voxel. The network takes multiples of 8
voxels on an axis.
"""

from common.config.derived import background, boundary

classes = ["mito"]  # for axons of your own: ["axon"], and extra_classes in train_config.py
derived = {
    "background": background("mito"),
    "border": boundary("mito", inside=16, outside=0),
}
softmax = ["background", "mito", "border"]  # of several that are true the last one counts
input_array_info = {"shape": (32, 32, 32), "scale": (8, 8, 8)}
target_array_info = {"shape": (32, 32, 32), "scale": (8, 8, 8)}
