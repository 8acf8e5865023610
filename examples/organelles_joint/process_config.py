"""Predictions to masks and objects.

A voxel is of a class where its probability is above the threshold of the class.
"""

import math

from common.infer.instances import connected_components, fill_holes, remove_small

from .data import classes


def process_func(logits):
    """Give 1 where the class is and 0 elsewhere, in the shape of the logits.

    logits: (B, 1, z, y, x) float of one class, 0 at the threshold of the class.
    """
    return (logits > 0) * 1


def instance_func(mask, probability, name):
    """Give the ids of the objects of an instance class.

    Objects are connected pieces with their holes filled; specks of under 20 voxels are left out.
    """
    return remove_small(connected_components(fill_holes(mask)), 20 * math.prod(mask.voxel_size))
