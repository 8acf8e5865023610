"""Predictions to masks and objects.

A voxel is of a class where its probability is above the threshold of the class.
"""

import math

from common.infer.instances import remove_small
from common.infer.objects.flooding import watershed_of_boundary

from .data import classes


def process_func(logits):
    """Give 1 where the class is and 0 elsewhere, in the shape of the logits.

    logits: (B, 1, z, y, x) float of one class, 0 at the threshold of the class.
    """
    return (logits > 0) * 1


def instance_func(mask, probability, name, channels):
    """Give the ids of the objects of an instance class, divided along the predicted border.

    At rims it leaves crumbs: pieces of under 200 voxels are left out.

    channels: the predicted volume of each channel by its name.
    """
    ids = watershed_of_boundary(mask, channels["border"])
    return remove_small(ids, 200 * math.prod(mask.voxel_size))
