"""From predictions to masks and objects: a voxel is of a class where its probability is above the class's threshold."""

import math

from common.infer.instances import connected_components, fill_holes, remove_small

from .data import classes


def process_func(logits):
    """(B, 1, z, y, x) float logits of one class, 0 at its threshold, to 0 and 1 of the same shape."""
    return (logits > 0) * 1


def instance_func(mask, probability, name):
    """Volumes of an instance class to ids: its connected pieces without holes, specks of under 20 voxels left out."""
    return remove_small(connected_components(fill_holes(mask)), 20 * math.prod(mask.voxel_size))
