"""The sentence about a patch that a network does not take, since it halves voxels."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import UserError


def refuse_other_multiples(network: str, shape: Sequence[int], step: int | Sequence[int]) -> None:
    """Raise UserError unless the voxels of a shape (z, y, x) are multiples of `step`.

    Args:
        network: what the sentence calls it, such as "the 3-D U-Net".
        shape: voxels of raw.
        step: one number or z, y, x.
    """
    steps = tuple(step) if isinstance(step, Sequence) else (step,) * len(shape)
    for size, multiple in zip(shape, steps, strict=True):
        if size % multiple or not size:
            below = max(size // multiple, 1) * multiple
            raise UserError(
                f"input shape {tuple(shape)}: {network} takes multiples of {step} voxels, not "
                f"{size} on an axis; write {below} or {below + multiple}"
            )
