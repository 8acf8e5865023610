"""Orient and resample a batch of blocks on its device, and change their intensities.

An affine (3, 4) per sample takes an output voxel (i, j, k) to fractional voxel coordinates in its block, z, y, x. Raw and
labels of a sample get affines made from one orientation in nm, so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def resample_linear(blocks: torch.Tensor, affines: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Trilinear: blocks (B, z, y, x) uint8 or float, affines (B, 3, 4) float64 on the CPU; gives (B, *shape) float32.

    Voxel values are copied without interpolation where an affine is a signed permutation onto voxel centres.
    """
    axes = [_axis_indices(affine, shape, whole=True) for affine in affines]
    if all(axis is not None for axis in axes):
        return torch.stack([_pick(block, a) for block, a in zip(blocks, axes, strict=True)]).float()
    grid = _grid(affines, blocks.shape[1:], shape, blocks.device)
    return F.grid_sample(blocks[:, None].float(), grid, padding_mode="border", align_corners=True)[:, 0]


def resample_nearest(blocks: torch.Tensor, affines: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Nearest neighbour of integer blocks (B, z, y, x); outside a block is 0. Gives (B, *shape) int32."""
    axes = [_axis_indices(affine, shape, whole=False) for affine in affines]
    if all(axis is not None and _inside(axis, blocks.shape[1:]) for axis in axes):
        return torch.stack([_pick(block, a) for block, a in zip(blocks, axes, strict=True)]).int()
    grid = _grid(affines, blocks.shape[1:], shape, blocks.device)
    return F.grid_sample(blocks[:, None].float(), grid, mode="nearest", align_corners=True)[:, 0].int()


def change_intensity(
    raw: torch.Tensor, gamma: torch.Tensor, contrast: torch.Tensor, noise_std: torch.Tensor, seeds: Sequence[int]
) -> torch.Tensor:
    """Per sample, raw ** gamma, then contrast about the mean, then noise, then back into [0, 1].

    raw: (B, 1, z, y, x) in [0, 1]; gamma, contrast, noise_std: (B,) on the CPU, where 1, 1 and 0 change nothing; seeds: of
    the noise, one a sample, so that a sample does not depend on its batch. Works in place and returns raw.
    """
    for sample, g, c, std, seed in zip(raw, gamma.tolist(), contrast.tolist(), noise_std.tolist(), seeds, strict=True):
        if g != 1:
            sample.pow_(g)
        if c != 1:
            mean = sample.mean()
            sample.sub_(mean).mul_(c).add_(mean)
        if std > 0:
            generator = torch.Generator(raw.device).manual_seed(int(seed))
            sample.add_(torch.randn(sample.shape, generator=generator, device=raw.device), alpha=std)
        if c != 1 or std > 0:
            sample.clamp_(0, 1)
    return raw


def _grid(affines: torch.Tensor, block: Sequence[int], shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """The sampling grid (B, *shape, 3) of grid_sample, which wants x, y, z in [-1, 1] from first to last voxel centre.

    Sums of three broadcast terms: several times faster on a CPU than the matrix product in affine_grid.
    """
    size = torch.tensor([max(n - 1, 1) for n in block], dtype=torch.float64)
    scaled = affines * (2 / size)[None, :, None]
    scaled[:, :, 3] -= 1
    scaled = scaled.flip(1).to(device, torch.float32)
    z, y, x = (torch.arange(n, device=device, dtype=torch.float32) for n in shape)
    plane = scaled[:, None, None, :, 1] * y[None, :, None, None] + scaled[:, None, None, :, 2] * x[None, None, :, None]
    depth = scaled[:, None, :, 0] * z[None, :, None] + scaled[:, None, :, 3]
    return depth[:, :, None, None, :] + plane[:, None]


def _axis_indices(affine: torch.Tensor, shape: Sequence[int], whole: bool) -> tuple[list[int], list[torch.Tensor]] | None:
    """If every output axis runs along one block axis: which one, and the nearest block index of each output voxel.

    None for a rotation, and with `whole` also where output voxels lie between voxel centres.
    """
    linear = affine[:, :3]
    used = linear.abs() > 1e-9
    if not (bool((used.sum(0) == 1).all()) and bool((used.sum(1) == 1).all())):
        return None
    along = used.T.int().argmax(1).tolist()  # along[output axis] = block axis
    indices = []
    for axis, n in enumerate(shape):
        place = linear[along[axis], axis] * torch.arange(n, dtype=torch.float64) + affine[along[axis], 3]
        nearest = torch.floor(place + 0.5)
        if whole and bool(((place - nearest).abs() > 1e-3).any()):
            return None
        indices.append(nearest.long())
    return along, indices


def _inside(axes: tuple[list[int], list[torch.Tensor]], block: Sequence[int]) -> bool:
    return all(int(i.min()) >= 0 and int(i.max()) < block[axis] for axis, i in zip(*axes, strict=True))


def _pick(block: torch.Tensor, axes: tuple[list[int], list[torch.Tensor]]) -> torch.Tensor:
    """Output of an axis-aligned affine: a strided slice per axis where the indices are consecutive, then a transpose."""
    along, indices = axes
    for axis, index in zip(along, indices, strict=True):
        first, last = int(index[0]), int(index[-1])
        if last - first == len(index) - 1:
            block = block.narrow(axis, first, len(index))
        elif first - last == len(index) - 1:
            block = block.narrow(axis, last, len(index)).flip(axis)
        else:
            block = block.index_select(axis, index.to(block.device))
    return block.permute(along)
