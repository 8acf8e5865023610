"""Predictions to masks and objects.

A voxel is of a class where its probability is above the threshold of the class.
"""

import math

from common.infer.instances import (
    mutex_watershed,
    remove_small,
    watershed,
    watershed_of_affinities,
    watershed_of_boundary,
)

from .data import classes, derived


def process_func(logits):
    """Give 1 where the class is and 0 elsewhere, in the shape of the logits.

    logits: (B, 1, z, y, x) float of one class, 0 at the threshold of the class.
    """
    return (logits > 0) * 1


instance_options = {
    "threshold": [0.3, 0.4, 0.5, 0.6, 0.65, 0.68, 0.7, 0.72, 0.75, 0.8],
    "far": [0.5, 2.0, 4.0],
    "neck": [0.5, 0.6, 0.8, 0.9, 1.0],
    "small": [0.0, 1e6, 1.5e6],
    "smallest": [1e5, 4e5, 6e5, 1e6],
}
"""What tune tries for the arguments of instance_func, one after the other."""


def instance_func(  # noqa: PLR0913, PLR0917
    mask,
    probability,
    name,
    channels,
    by="both",
    threshold=0.68,
    far=1.0,
    neck=0.8,
    small=2e6,
    smallest=2e5,
):
    """Give the ids of the cells.

    Args:
        mask: of the cells.
        probability: of the cells.
        name: of the class.
        channels: all that is predicted.
        by: "both", or for comparison "affinities", "boundary" or "mask".
        threshold: affinity from which on two are one; boundary, or what both say against one
            cell, from which on two are two.
        far: weight of pairs that are 50 nm apart beside neighbours.
        neck: a contact is one from this part of the width on, by all but affinities.
        small: nm^3 below which a part that is left over joins a neighbour, by "both".
        smallest: nm^3.
    """
    mask = remove_small(mask, 100 * math.prod(mask.voxel_size))
    if by == "affinities":
        ids = mutex_watershed(
            mask,
            channels,
            "cell_affinity",
            derived["cell_affinity"].offsets,
            threshold=threshold,
            weights=(1, 1, 1, far, far, far),
        )
    elif by == "both":
        # those of neighbours say what the boundary says
        ids = watershed_of_affinities(
            mask,
            channels["cell_boundary"],
            channels,
            "cell_affinity",
            derived["cell_affinity"].offsets,
            threshold=threshold,
            neck=neck,
            weights=(0, 0, 0, far, far, far),
            small_nm3=small,
        )
    elif by == "boundary":
        ids = watershed_of_boundary(mask, channels["cell_boundary"], threshold, neck)
    else:
        ids = watershed(mask, neck=neck)
    return remove_small(ids, smallest)
