"""Predictions to masks and objects.

A voxel is of a class where its probability is above the threshold of the class.
"""

import math

from common.infer.instances import remove_small, watershed

from .data import classes


def process_func(logits):
    """Give 1 where the class is and 0 elsewhere, in the shape of the logits.

    logits: (B, 1, z, y, x) float of one class, 0 at the threshold of the class.
    """
    return (logits > 0) * 1


def instance_func(mask, probability, name):
    """Give the ids of the cells.

    Cells touch everywhere in neuropil: pieces that hang together by a neck narrower than half
    their width are split.
    """
    speck = 100 * math.prod(mask.voxel_size)
    return remove_small(watershed(remove_small(mask, speck), neck=0.5), speck)
