"""Resample blocks to patches on the training device, and change their intensities.

The geometry of a sample is an affine (3, 4) float64 that takes a voxel index of the patch to
fractional voxel indices of the block, both z, y, x, with voxel centres at whole numbers. The
affines of raw and labels are made from the same orientation in nm
(`common.data.samples.sampling.cut`), so that the two stay aligned. What a distorted sample adds to
them is known by `common.data.samples.distort`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.config.as_text import as_text
from common.data.samples.distort import PatchDistortion
from common.errors import UserError

Distortions = Sequence[PatchDistortion | None]
"""Of each sample of a batch; None where the affine is all. An empty sequence: of no sample."""

OwnAugmentation = Callable[[Tensor, torch.Generator], Tensor]
"""The setting `augment`: `augment(raw, generator)` returns a changed patch.

raw is (1, z, y, x) float32 in [0, 1], on the device of the generator.
"""

OWN_STREAM = 0x9E3779B9
"""XORed with the seed of a sample's noise to make the seed of its `augment`.

It has set bits among the low 32, the only ones that torch's CPU generator uses.
"""


# Geometry


def resample_linear(
    blocks: Sequence[Tensor],
    affines: Sequence[np.ndarray],
    shape: Sequence[int],
    scale: float = 1.0,
    *,
    distortions: Distortions = (),
) -> Tensor:
    """Resample one block per sample by trilinear interpolation; return (B, *shape) float32.

    Where an affine maps voxel centres onto voxel centres along whole axes, values are copied
    without interpolation. Beyond the edge of a block its outermost values are repeated.

    Args:
        blocks: B tensors (z, y, x) uint8 or float, of any sizes.
        affines: B affines from patch to block, see the module's text.
        shape: shape of the patches in voxels, z, y, x.
        scale: factor on all values.
        distortions: of the samples.
    """
    patches = torch.empty((len(blocks), *shape), device=blocks[0].device)
    samples = zip(patches, blocks, affines, distortions or [None] * len(blocks), strict=True)
    for patch, block, affine, distortion in samples:
        steps = _axis_steps(affine)
        if distortion is not None:
            places = distortion.positions(affine, shape, block.device)
            patch.copy_(resample_linear_at(block, places))
        elif steps is not None and _on_voxels(steps):
            patch.copy_(_pick(block, steps, shape))
        else:
            _interpolate(block, affine, patch)
    return patches.mul_(scale)


def resample_linear_at(block: Tensor, places: Tensor) -> Tensor:
    """Resample a block (z, y, x) at any places by trilinear interpolation; (z, y, x) float32.

    places: (3, z, y, x) float32, z, y, x of each voxel of the patch, in voxels of the block. Beyond
    the edge of the block its outermost values are repeated.
    """
    if block.device.type == "cpu":
        patch = torch.empty(places.shape[1:])
        _gather().linear_at(_numpy(block.float()), _numpy(places), patch.numpy())
        return patch
    grid = _grid_of_places(block, places)
    return _grid_sample(block, grid, mode="bilinear", padding_mode="border")


def raw_patches(
    blocks: Sequence[Tensor],
    affines: Sequence[np.ndarray],
    shape: Sequence[int],
    raw_range: Sequence[float] = (),
    *,
    distortions: Distortions = (),
) -> Tensor:
    """Resample blocks of raw to network input, (B, 1, *shape) float32 in [0, 1].

    `raw_range` is the pair of values of uint8 blocks that become 0 and 1, (0, 255) if empty; values
    beyond it are clipped. Float blocks are in [0, 1] already.
    """
    if blocks[0].dtype != torch.uint8:
        return resample_linear(blocks, affines, shape, distortions=distortions)[:, None]
    low, high = raw_range or (0.0, 255.0)
    scale = 1 / (high - low)
    patches = resample_linear(blocks, affines, shape, scale, distortions=distortions)[:, None]
    if (low, high) != (0, 255):
        patches.sub_(low / (high - low)).clamp_(0, 1)
    return patches


def resample_nearest(
    blocks: Sequence[Tensor],
    affines: Sequence[np.ndarray],
    shape: Sequence[int],
    distortions: Distortions = (),
) -> Tensor:
    """Resample one integer block (z, y, x) per sample by nearest neighbour; (B, *shape) int32.

    Voxels outside of a block are 0, the palette row of "nothing is known".
    """
    rows = torch.empty((len(blocks), *shape), dtype=torch.int32, device=blocks[0].device)
    samples = zip(rows, blocks, affines, distortions or [None] * len(blocks), strict=True)
    for row, block, affine, distortion in samples:
        steps = _axis_steps(affine)
        if distortion is not None:
            row.copy_(_nearest_at(block, distortion.positions(affine, shape, block.device)))
        elif steps is None:
            _take_nearest(block, affine, row)
        else:
            _pick_inside(block, steps, row)
    return rows


def _nearest_at(block: Tensor, places: Tensor) -> Tensor:
    """Return the voxels nearest to places (3, z, y, x) of a block, as int32; 0 outside of it."""
    # halves go up, whatever the rounding error, as in `AxisStep.voxel`
    voxels = (places + (0.5 + 1e-4)).floor_()
    inside = torch.ones(places.shape[1:], dtype=torch.bool, device=block.device)
    index = torch.zeros(places.shape[1:], dtype=torch.long, device=block.device)
    for along, size in zip(voxels, block.shape, strict=True):
        inside &= (along >= 0) & (along < size)
        index.mul_(size).add_(along.clamp_(0, size - 1).long())
    return block.take(index).to(torch.int32).mul_(inside)


@dataclass(frozen=True)
class AxisStep:
    """How one axis of a patch runs along one axis of its block."""

    axis: int
    """Axis of the block, 0 to 2."""
    start: float
    """Position of the first patch voxel, in block voxels."""
    step: float
    """Block voxels from one patch voxel to the next; negative if mirrored."""

    def voxel(self, i: int) -> int:
        """Return the block voxel nearest to patch voxel i."""
        # halves go up, whatever the rounding error: neighbours then take neighbours
        return math.floor(self.start + self.step * i + 0.5 + 1e-6)

    def inside(self, n: int, size: int) -> range:
        """Return which of n patch voxels have their nearest voxel in a block of `size` voxels."""
        ends = (self.voxel(0), self.voxel(n - 1))
        if min(ends) >= 0 and max(ends) < size:
            return range(n)
        within = [i for i in range(n) if 0 <= self.voxel(i) < size]
        return range(within[0], within[-1] + 1) if within else range(0)

    def since(self, i: int) -> AxisStep:
        """Return the step of a patch that begins at voxel i of this one."""
        return replace(self, start=self.start + self.step * i)


def _axis_steps(affine: np.ndarray) -> list[AxisStep] | None:
    """Return the AxisStep of each patch axis; None for an affine that rotates."""
    linear = np.abs(affine[:, :3])
    axes = linear.argmax(0).tolist()
    largest = [linear[axis, output] for output, axis in enumerate(axes)]
    beside = linear.sum() - sum(largest)
    if beside > 1e-9 or len(set(axes)) < 3:
        return None
    steps = []
    for output, axis in enumerate(axes):
        start = float(affine[axis, 3])
        step = float(affine[axis, output])
        steps.append(AxisStep(axis, start, step))
    return steps


def _on_voxels(steps: Sequence[AxisStep]) -> bool:
    """Return whether every patch voxel coincides with a block voxel."""
    for along in steps:
        is_of_one_voxel = abs(abs(along.step) - 1) < 1e-6
        from_voxel = abs(along.start - round(along.start))
        if not is_of_one_voxel or from_voxel >= 1e-3:
            return False
    return True


def _pick_inside(block: Tensor, steps: Sequence[AxisStep], patch: Tensor) -> None:
    """Fill `patch` (z, y, x) with the nearest voxels of a block along whole axes, 0 outside of it.

    Where a patch reaches beyond its block, too, halves go up: labels that lie half a voxel beside
    raw are shifted, and none of them is taken twice and the next one not at all.
    """
    lengths = zip(steps, patch.shape, strict=True)
    ranges = [along.inside(n, block.shape[along.axis]) for along, n in lengths]
    part = patch[tuple(slice(within.start, within.stop) for within in ranges)]
    if part.numel() < patch.numel():
        patch.zero_()
    if part.numel():
        begun = [along.since(i.start) for along, i in zip(steps, ranges, strict=True)]
        part.copy_(_pick(block, begun, part.shape))


def _pick(block: Tensor, steps: Sequence[AxisStep], shape: Sequence[int]) -> Tensor:
    """Return the nearest voxels of a patch that does not rotate; a view if nothing is mirrored.

    Consecutive voxels are taken as a slice, which is many times faster than gathering them.
    """
    for along, n in zip(steps, shape, strict=True):
        if abs(along.step - 1) < 1e-6:
            block = block.narrow(along.axis, along.voxel(0), n)
        elif abs(along.step + 1) < 1e-6:
            lowest = along.voxel(0) - n + 1
            block = block.narrow(along.axis, lowest, n).flip(along.axis)
        else:
            voxels = [along.voxel(i) for i in range(n)]
            block = block.index_select(along.axis, torch.tensor(voxels, device=block.device))
    return block.permute([along.axis for along in steps])


def _interpolate(block: Tensor, affine: np.ndarray, patch: Tensor) -> None:
    """Fill `patch` (z, y, x) from a block (z, y, x) by trilinear interpolation, in float32."""
    columns = _columns(block, affine)
    if block.device.type == "cpu":
        _gather().linear(_numpy(block.float()), _numpy(columns), patch.numpy())
        return
    grid = _grid(columns, patch.shape)
    patch.copy_(_grid_sample(block, grid, mode="bilinear", padding_mode="border"))


def _take_nearest(block: Tensor, affine: np.ndarray, patch: Tensor) -> None:
    """Fill `patch` (z, y, x) with the nearest voxels of a block (z, y, x), 0 outside of it."""
    columns = _columns(block, affine)
    if block.device.type == "cpu":
        _gather().nearest(_numpy(block), _numpy(columns), patch.numpy())
        return
    grid = _grid(columns, patch.shape)
    patch.copy_(_grid_sample(block, grid, mode="nearest", padding_mode="zeros"))


def _gather() -> ModuleType:
    """Return `common.data.samples.gather`, which takes a third of a second to import."""
    try:
        from common.data.samples import gather
    except ImportError as error:
        raise UserError(
            f"numba, which resamples patches on a CPU, cannot be imported ({error}); "
            "pip install numba, or train on a GPU"
        ) from error
    return gather


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().numpy()


def _per_voxel(block: Tensor) -> list[float]:
    """Return the distance between voxels along z, y, x in the coordinates of `grid_sample`.

    These run from -1 at the first voxel's centre to 1 at the last one's (align_corners).
    """
    return [2 / max(n - 1, 1) for n in block.shape]


def _columns(block: Tensor, affine: np.ndarray) -> Tensor:
    """Return the affine in the coordinates of `grid_sample`, (4, 3) float32 with columns x, y, z.

    Its rows are the steps from patch voxel to patch voxel along z, y and x, and the first voxel.
    """
    normalised = affine * np.array(_per_voxel(block))[:, None]
    normalised[:, 3] -= 1
    columns = torch.from_numpy(np.ascontiguousarray(normalised[::-1].T))
    return columns.to(block.device, torch.float32)


def _grid(columns: Tensor, shape: Sequence[int]) -> Tensor:
    """Return (*shape, 3) float32: the voxels of a patch in the coordinates of `grid_sample`."""
    # a sum of three broadcast terms: cheaper than affine_grid's product
    z = torch.arange(shape[0], device=columns.device)[:, None] * columns[0]
    y = torch.arange(shape[1], device=columns.device)[:, None] * columns[1]
    x = torch.arange(shape[2], device=columns.device)[:, None] * columns[2]
    return (z + columns[3])[:, None, None] + (y[:, None] + x)


def _grid_of_places(block: Tensor, places: Tensor) -> Tensor:
    """Return places (3, z, y, x) in voxels in the coordinates of `grid_sample`, (z, y, x, 3)."""
    per_voxel = torch.tensor(_per_voxel(block), dtype=places.dtype, device=places.device)
    return (places.movedim(0, -1) * per_voxel - 1).flip(-1)


def _grid_sample(block: Tensor, grid: Tensor, *, mode: str, padding_mode: str) -> Tensor:
    """Sample one block (z, y, x) at the places of a grid, in float32."""
    values = F.grid_sample(
        block.float()[None, None],
        grid[None],
        mode=mode,
        padding_mode=padding_mode,
        align_corners=True,
    )
    return values[0, 0]


# Intensity


@dataclass(frozen=True)
class IntensityChange:
    """How the intensities of one sample are changed; the defaults change nothing."""

    gamma: float = 1.0
    """Exponent of raw in [0, 1]."""
    contrast: float = 1.0
    """Factor on the distance of raw from the mean of the patch."""
    noise_std: float = 0.0
    """Standard deviation of Gaussian noise added to raw in [0, 1]."""
    noise_seed: int = 0
    """Seed of all random numbers drawn for the sample on the device, 0 to 2^62 - 1."""


def change_intensity(patch: Tensor, change: IntensityChange) -> Tensor:
    """Apply gamma, contrast and noise to a sample, in this order, and clip to [0, 1].

    `patch` is (1, z, y, x) in [0, 1]; it is changed in place and returned.
    """
    if change.gamma != 1:
        patch.pow_(change.gamma)
    if change.contrast != 1:
        mean = patch.mean()
        patch.sub_(mean).mul_(change.contrast).add_(mean)
    if change.noise_std > 0:
        generator = torch.Generator(patch.device).manual_seed(change.noise_seed)
        noise = torch.randn(patch.shape, generator=generator, device=patch.device)
        patch.add_(noise, alpha=change.noise_std)
    if change.contrast != 1 or change.noise_std > 0:
        patch.clamp_(0, 1)
    return patch


@torch.no_grad()
def apply_own(augment: OwnAugmentation, patch: Tensor, change: IntensityChange) -> Tensor:
    """Apply the user's `augment` to a sample.

    `patch` is (1, z, y, x); it is changed in place and returned. The generator that `augment` gets
    is seeded by the sample alone, so the result is the same for any batch size and any number of
    workers.
    """
    generator = torch.Generator(patch.device).manual_seed(change.noise_seed ^ OWN_STREAM)
    result = augment(patch, generator)
    # copy_ would stretch one number over the patch
    if not isinstance(result, Tensor) or result.shape != patch.shape:
        raise UserError(
            f"the setting augment gave {_flaw(result, patch)} for raw {tuple(patch.shape)}; "
            "return a tensor of the shape that it is given, for every patch"
        )
    return patch.copy_(result)


def check_own(augment: OwnAugmentation, shape: Sequence[int], device: torch.device) -> None:
    """Call the user's `augment` twice on random raw of `shape` voxels, before training begins.

    Raises UserError if it does not return a finite float32 tensor of the shape and on the device of
    its input, or if two calls with the same generator state differ. An error raised in its code is
    passed on unchanged.
    """
    generator = torch.Generator(device).manual_seed(0)
    raw = torch.rand((1, *shape), generator=generator, device=device)
    results = []
    for _ in range(2):
        result = augment(raw.clone(), generator.manual_seed(1))
        problem = _flaw(result, raw)
        if problem:
            raise UserError(
                f"augment = {as_text(augment)}: gave {problem} for raw {tuple(raw.shape)} float32; "
                "return a finite float32 tensor of the shape and on the device that it is given"
            )
        results.append(result.clone())
    # not torch.equal: some CUDA kernels add in any order
    if not torch.allclose(results[0], results[1], atol=1e-4):
        raise UserError(
            f"augment = {as_text(augment)}: gave two results for one patch and one generator, so "
            "that a run could not be repeated; draw its random numbers with generator=generator"
        )


def _flaw(result: object, raw: Tensor) -> str:
    """Return what is wrong with the result of `augment`; "" if nothing is."""
    if not isinstance(result, Tensor):
        return f"{type(result).__name__}, no tensor,"
    if result.shape != raw.shape or result.dtype != torch.float32:
        return f"{tuple(result.shape)} {str(result.dtype).removeprefix('torch.')}"
    if result.device != raw.device:
        return f"a tensor on {result.device}"
    if not result.isfinite().all():
        return "values that are not finite"
    return ""
