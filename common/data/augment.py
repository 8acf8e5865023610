"""Orient and resample a batch of blocks on its device, and change their intensities.

An affine (3, 4) float64 takes an output voxel (i, j, k) to fractional voxel coordinates in its block, z, y, x. Raw and
labels of a sample get affines made from one orientation in nm, so that they cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


def resample_linear(
    blocks: Sequence[torch.Tensor],
    affines: Sequence[np.ndarray],
    shape: Sequence[int],
    scale: float = 1.0,
) -> torch.Tensor:
    """Trilinear: a block (z, y, x) uint8 or float and an affine for each sample; gives (B, *shape) float32 times `scale`.

    Voxel values are copied without interpolation where an affine is a signed permutation onto voxel centres.
    """
    patches = torch.empty((len(blocks), *shape), device=blocks[0].device)
    for patch, block, affine in zip(patches, blocks, affines, strict=True):
        steps = _axis_steps(affine)
        if steps is not None and _on_voxels(steps):
            patch.copy_(_pick(block, steps, shape))
        else:
            patch.copy_(_sample(block, affine, shape, mode="bilinear", padding_mode="border"))
    return patches.mul_(scale)


def raw_patches(
    blocks: Sequence[torch.Tensor],
    affines: Sequence[np.ndarray],
    shape: Sequence[int],
    raw_range: Sequence[float] = (),
) -> torch.Tensor:
    """Raw as a network takes it: (B, 1, *shape) float32 in [0, 1]; `raw_range` of uint8 blocks becomes 0 and 1, floats are in [0, 1]."""
    low, high = (raw_range or (0.0, 255.0)) if blocks[0].dtype == torch.uint8 else (0.0, 1.0)
    patches = resample_linear(blocks, affines, shape, 1 / (high - low))[:, None]
    if blocks[0].dtype == torch.uint8 and (low, high) != (0, 255):
        patches.sub_(low / (high - low)).clamp_(0, 1)
    return patches


def resample_nearest(
    blocks: Sequence[torch.Tensor], affines: Sequence[np.ndarray], shape: Sequence[int]
) -> torch.Tensor:
    """Nearest neighbour of integer blocks (z, y, x), one a sample; outside of a block is 0. Gives (B, *shape) int32."""
    rows = torch.empty((len(blocks), *shape), dtype=torch.int32, device=blocks[0].device)
    for row, block, affine in zip(rows, blocks, affines, strict=True):
        steps = _axis_steps(affine)
        if steps is not None and _inside(steps, shape, block.shape):
            row.copy_(_pick(block, steps, shape))
        else:
            row.copy_(_sample(block, affine, shape, mode="nearest", padding_mode="zeros"))
    return rows


def change_intensity(
    raw: torch.Tensor,
    gamma: Sequence[float],
    contrast: Sequence[float],
    noise_std: Sequence[float],
    seeds: Sequence[int],
) -> torch.Tensor:
    """Per sample, raw ** gamma, then contrast about the mean, then noise, then back into [0, 1].

    raw: (B, 1, z, y, x) in [0, 1]; gamma, contrast, noise_std: one a sample, where 1, 1 and 0 change nothing; seeds: of the
    noise, one a sample, so that a sample does not depend on its batch. Works in place and returns raw.
    """
    for sample, g, c, std, seed in zip(raw, gamma, contrast, noise_std, seeds, strict=True):
        if g != 1:
            sample.pow_(g)
        if c != 1:
            mean = sample.mean()
            sample.sub_(mean).mul_(c).add_(mean)
        if std > 0:
            generator = torch.Generator(raw.device).manual_seed(int(seed))
            sample.add_(
                torch.randn(sample.shape, generator=generator, device=raw.device), alpha=std
            )
        if c != 1 or std > 0:
            sample.clamp_(0, 1)
    return raw


Steps = list[tuple[int, float, float]]
"""For each output axis the block axis that it runs along, where it begins, and how far each voxel goes."""


def _axis_steps(affine: np.ndarray) -> Steps | None:
    """The steps of an affine whose output axes run along block axes; None for a rotation."""
    linear = np.abs(affine[:, :3])
    along = linear.argmax(0).tolist()
    if (
        linear.sum() - sum(linear[row, axis] for axis, row in enumerate(along)) > 1e-9
        or len(set(along)) < 3
    ):
        return None
    return [
        (row, float(affine[row, 3]), float(affine[row, axis])) for axis, row in enumerate(along)
    ]


def _on_voxels(steps: Steps) -> bool:
    """Whether every output voxel is a block voxel."""
    return all(
        abs(abs(step) - 1) < 1e-6 and abs(start - round(start)) < 1e-3 for _, start, step in steps
    )


def _nearest(place: float) -> int:
    return math.floor(place + 0.5 + 1e-6)  # halves go up, whatever the rounding error


def _inside(steps: Steps, shape: Sequence[int], block: Sequence[int]) -> bool:
    ends = [
        (axis, _nearest(start), _nearest(start + step * (n - 1)))
        for (axis, start, step), n in zip(steps, shape, strict=True)
    ]
    return all(
        min(first, last) >= 0 and max(first, last) < block[axis] for axis, first, last in ends
    )


def _pick(block: torch.Tensor, steps: Steps, shape: Sequence[int]) -> torch.Tensor:
    """Nearest voxels along the axes: a slice where voxels are consecutive, then a transpose; a view if nothing is mirrored."""
    for (axis, start, step), n in zip(steps, shape, strict=True):
        if abs(step - 1) < 1e-6:
            block = block.narrow(axis, _nearest(start), n)
        elif abs(step + 1) < 1e-6:
            block = block.narrow(axis, _nearest(start) - n + 1, n).flip(axis)
        else:
            index = torch.tensor(
                [_nearest(start + step * i) for i in range(n)], device=block.device
            )
            block = block.index_select(axis, index)
    return block.permute([axis for axis, _, _ in steps])


def _sample(
    block: torch.Tensor, affine: np.ndarray, shape: Sequence[int], **how: str
) -> torch.Tensor:
    """grid_sample of one block (z, y, x), in float32; on a CPU in parts of z, since threads share a batch and not a volume.

    The grid, x, y, z in [-1, 1] from the first to the last voxel centre, is a sum of three broadcast terms: on a CPU several
    times faster than the matrix product of affine_grid.
    """
    size = np.maximum(np.array(block.shape) - 1, 1)
    scaled = affine * (2 / size)[:, None]
    scaled[:, 3] -= 1
    columns = torch.from_numpy(np.ascontiguousarray(scaled[::-1].T)).to(block.device, torch.float32)
    z, y, x = (
        torch.arange(n, device=block.device)[:, None] * column
        for n, column in zip(shape, columns, strict=False)
    )
    grid = (z + columns[3])[:, None, None] + (y[:, None] + x)
    parts = math.gcd(shape[0], torch.get_num_threads()) if block.device.type == "cpu" else 1
    values = block.float().expand(parts, 1, *block.shape)
    return F.grid_sample(
        values, grid.view(parts, -1, *shape[1:], 3), align_corners=True, **how
    ).view(*shape)
