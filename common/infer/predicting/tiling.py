"""Logits of a block, put together from the windows of a network.

A network without padding gives the same voxels in a block as in the whole volume, provided that
windows start at whole steps of its pooling; one window then covers a block. Where windows do not
agree on the voxels that they share (padding, normalisation over the window), each voxel is the mean
over overlapping windows, weighted by a Gaussian about their centres as in nnU-Net (Isensee et al.
2021). All windows stand on one lattice over the volume, wherever a box of it begins: blocks meet
without seams, and a box has the values that the whole volume has there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from common.data.crops import normalize
from common.data.samples import augment
from common.data.volumes.box import slices
from common.data.volumes.level import Grid
from common.infer.networks.window import Forward, Window
from common.infer.predicting.plan import BlockPlan
from common.infer.predicting.raw_blocks import RawBlock

# one window alone leaves a GPU idle. On other devices one window goes at a time, and what it gives
# depends on no other
TOGETHER = {"cuda": 2**21}
"""Voxels of windows that go through a network at a time, by kind of device: 8 of 64^3."""

Placed = tuple[Window, tuple[int, ...]]
"""A window, and the first voxel that it gives, in voxels of the network."""


def network_logits(plan: BlockPlan, raw: RawBlock, forward: Forward) -> torch.Tensor:
    """Return logits (classes, z, y, x) of the network's voxels that a block is made of.

    They begin at the first voxel of `plan.network_box`, and may end behind its last one.
    """
    placed = list(_windows(plan, raw.number))
    if plan.window.agree and len(placed) == 1:
        return _logits_of_windows(plan, raw, placed, forward)[0]
    return _mean_of_windows(plan, raw, placed, forward)


def windows_at_once(window: Window, device: torch.device) -> int:
    """Return how many windows go through the network together, where a block has so many.

    It is one for a 2-D network, whose window has several slices already.
    """
    if window.alone or window.flat is not None:
        return 1
    return max(1, TOGETHER.get(device.type, 0) // math.prod(window.input.shape))


def _windows(plan: BlockPlan, number: int) -> Iterator[Placed]:
    """Yield the windows of a block; for a 2-D network several slices at a time."""
    starts = plan.window_starts(number)
    window = plan.window
    if window.flat is None or window.at_once == 1:
        for corner in itertools.product(*starts):
            yield window, corner
        return
    across = starts[window.flat]
    for first in across[:: window.at_once]:
        several = window.of_slices(min(window.at_once, across.stop - first))
        starts[window.flat] = range(first, first + 1)
        for corner in itertools.product(*starts):
            yield several, corner


def _logits_of_windows(
    plan: BlockPlan, raw: RawBlock, placed: Sequence[Placed], forward: Forward
) -> torch.Tensor:
    """Return logits (windows, classes, z, y, x) of windows of one shape."""
    window, _ = placed[0]
    plan = replace(plan, window=window)
    corners = [corner for _, corner in placed]
    shape = window.input.shape
    affines = [_affine(plan, corner, plan.raw.grid, raw.start) for corner in corners]
    values = [raw.values] * len(placed)
    patches = augment.raw_patches(values, affines, shape, plan.raw.raw_range)
    patches = normalize.to_unit_range(patches, plan.scaling)
    patches = normalize.standardize(patches, plan.scaling)
    channels = []
    for channel in raw.channels:
        volume = channel.volume.raw
        affines = [_affine(plan, corner, volume.grid, channel.start) for corner in corners]
        values = [channel.values] * len(placed)
        channels.append(augment.raw_patches(values, affines, shape, volume.value_range))
    if channels:
        patches = torch.cat([patches, *channels], dim=1)
    return forward(patches)


def _affine(plan: BlockPlan, corner: tuple[int, ...], grid: Grid, start: np.ndarray) -> np.ndarray:
    """Return the (3, 4) affine from voxels of a window's input to those that were read of a grid.

    Args:
        plan: of the block.
        corner: first voxel that the window gives, in voxels of the network.
        grid: of raw or of a channel.
        start: (3,) first voxel of the grid that was read.
    """
    first, _ = plan.raw_ends(np.array(corner), grid)
    linear = np.diag(np.array(plan.window.input.scale) / grid.scale)
    return np.concatenate([linear, (first - start)[:, None]], axis=1)


def _mean_of_windows(
    plan: BlockPlan, raw: RawBlock, placed: Sequence[Placed], forward: Forward
) -> torch.Tensor:
    """Return logits (classes, z, y, x), the weighted mean over the windows that reach a block."""
    first, last = plan.network_box(raw.number)
    shape = last - first
    device = raw.values.device
    window_weight = _window_weight(plan.window, device)
    weights = torch.zeros(*shape.tolist(), device=device)
    total: torch.Tensor | None = None
    at_once = windows_at_once(plan.window, device)
    for (window, corner), window_logits in _each_window(
        plan, raw, placed, forward, at_once=at_once
    ):
        size = np.array(window.output.shape)
        weight = window_weight.expand(*window.output.shape)
        start = np.array(corner) - first
        # where the window and the block overlap, in voxels of each; windows may stick out
        inside = slices(np.maximum(start, 0), np.minimum(start + size, shape))
        overlap = slices(np.maximum(-start, 0), np.minimum(size, shape - start))
        logits = window_logits[:, *overlap] * weight[overlap]
        # only now is it known how many classes there are
        if total is None:
            total = logits.new_zeros(len(logits), *shape.tolist())
        total[:, *inside] += logits
        weights[inside] += weight[overlap]
    assert total is not None
    return total.div_(weights)


def _each_window(
    plan: BlockPlan,
    raw: RawBlock,
    placed: Sequence[Placed],
    forward: Forward,
    *,
    at_once: int,
) -> Iterator[tuple[Placed, torch.Tensor]]:
    """Yield each window with its logits (classes, z, y, x), `at_once` windows a forward pass."""
    for first in range(0, len(placed), at_once):
        together = placed[first : first + at_once]
        yield from zip(together, _logits_of_windows(plan, raw, together, forward), strict=True)


def _window_weight(window: Window, device: torch.device) -> torch.Tensor:
    """Return the (z, y, x) weight of each voxel of a window; 1 throughout where windows agree."""
    if window.agree:
        return torch.ones(window.output.shape, device=device)
    return _gaussian(window.output.shape, device)


def _gaussian(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return a (z, y, x) Gaussian of an eighth of the window's size, nnU-Net's, at least 1e-3.

    It is nowhere 0: a voxel at the volume's corner may be in the corner of a single window.
    """
    axes = []
    for n in shape:
        distance = (torch.arange(n, device=device) - (n - 1) / 2) / (n / 8)
        axes.append(torch.exp(-0.5 * distance**2))
    z, y, x = axes
    return (z[:, None, None] * y[:, None] * x).clamp_(min=1e-3)
