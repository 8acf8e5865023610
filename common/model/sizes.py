"""Which voxels and patches a network takes, and the sentences about others."""

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


def three_sizes(voxel_size: float | Sequence[float]) -> tuple[float, float, float]:
    """A voxel size in nm as z, y, x. Raises UserError for what is none."""
    sizes = voxel_size if isinstance(voxel_size, Sequence) else (voxel_size,) * 3
    if len(sizes) != 3 or not all(size > 0 for size in sizes):
        raise UserError(
            f"voxel size {voxel_size}: not a size in nm; write one positive number, or three for "
            "z, y, x"
        )
    z, y, x = (float(size) for size in sizes)
    return z, y, x


def shrunk_shape(
    network: str, input_shape: Sequence[int], *, smallest: int, step: int, lost: int
) -> tuple[int, ...]:
    """`input_shape` less `lost` voxels on each axis.

    Args:
        network: what the error calls it.
        input_shape: voxels along each axis.
        smallest: the smallest size that the network takes.
        step: voxels from one size that it takes to the next.
        lost: voxels that its convolutions take away.

    Raises:
        UserError: for a size that it does not take, with the two nearest ones that it does.
    """
    for size in input_shape:
        rest = (size - smallest) % step
        if size < smallest or rest:
            below = max(smallest, size - rest)
            raise UserError(
                f"input shape {tuple(input_shape)}: {network} does not take {size} voxels on an "
                f"axis, only {smallest} + {step}k ({smallest}, {smallest + step}, "
                f"{smallest + 2 * step}, ...), of which {lost} less come out; "
                f"write {below} or {below + step}"
            )
    return tuple(size - lost for size in input_shape)
