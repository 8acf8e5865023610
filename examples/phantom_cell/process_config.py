"""From logits to masks: a voxel is of a class where its probability is above one half."""

from .data import classes, input_array_info


def process_func(logits):
    """(B, 1, z, y, x) float logits of one class to 0 and 1 of the same shape."""
    return (logits > 0) * 1
