"""From predictions to masks and objects: a voxel is of a class where its probability is above the class's threshold."""

import math

from common.infer.instances import remove_small, watershed

from .data import classes


def process_func(logits):
    """(B, 1, z, y, x) float logits of one class, 0 at its threshold, to 0 and 1 of the same shape."""
    return (logits > 0) * 1


def instance_func(mask, probability, name):
    """Cells touch everywhere in neuropil: what hangs together by a neck narrower than half is split."""
    speck = 100 * math.prod(mask.voxel_size)
    return remove_small(watershed(remove_small(mask, speck), neck=0.5), speck)
