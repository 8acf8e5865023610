"""A network over a volume, one block at a time.

A block of the output is computed from the raw around it alone, so blocks can be made in any order,
by any number of calls, and be written once: `read_for_each` and `compute_block` know nothing of
who calls them, `conveyor` is one way to, on one device. A network without padding
gives the same voxels in a block as in the whole volume, provided that windows start at whole steps
of its pooling.
Where windows do not agree on the voxels that they share (padding, normalisation over the window),
each voxel is the mean over overlapping windows, weighted by a Gaussian about their centres as in
nnU-Net (Isensee et al. 2021). All windows stand on one lattice over the volume, wherever a box of
it begins: blocks meet without seams, and a box has the values that the whole volume has there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from common.data.crops import normalize
from common.data.crops.input_channels import ChannelVolume
from common.data.samples import augment
from common.data.volumes import regrid
from common.data.volumes.level import Grid
from common.data.volumes.ngff import slices
from common.infer.networks.window import Forward, Window
from common.infer.predicting.plan import BlockPlan

TOGETHER = {"cuda": 2**21}
"""Voxels of windows that go through a network at a time, by kind of device, 8 of 64^3: one alone
leaves a GPU idle. On others one window goes at a time, and what it gives depends on no other."""

Verdict = Callable[[], None]
"""Raises what is wrong with a block; to be called when its values are on the host."""


def fine() -> None:
    """The verdict where nothing can be wrong."""


def unseen(_: torch.Tensor) -> Verdict:
    """What looks at the logits of a network, where nobody does."""
    return fine


@dataclass(frozen=True)
class Member:
    """A network over the blocks of a volume, alone or as one of an ensemble."""

    plan: BlockPlan
    """Those of an ensemble have the same blocks, each in windows of its own."""
    forward: Forward
    """Raw to logits, of one window or several."""
    look: Callable[[torch.Tensor], Verdict] = unseen
    """Called with its logits (classes, z, y, x) of each block, on the device."""
    further: Sequence[tuple[BlockPlan, Forward]] = ()
    """The same network over planes across other axes: the mean of all logits is its own."""

    @property
    def passes(self) -> list[tuple[BlockPlan, Forward]]:
        """All of them, itself first."""
        return [(self.plan, self.forward), *self.further]


@dataclass(frozen=True)
class ChannelValues:
    """What a block needs of a further channel."""

    volume: ChannelVolume
    values: torch.Tensor
    """(z, y, x) uint8, or float32 in [0, 1]."""
    start: np.ndarray
    """(3,) its first voxel, of the channel's grid."""

    def to(self, device: torch.device) -> ChannelValues:
        """The same on a device."""
        return replace(self, values=self.values.to(device, non_blocking=True))


@dataclass(frozen=True)
class RawBlock:
    """The raw that a block needs."""

    number: int
    values: torch.Tensor
    """(z, y, x) uint8, or float32 in [0, 1]."""
    start: np.ndarray
    """(3,) its first voxel, of the raw's grid."""
    channels: tuple[ChannelValues, ...] = ()
    """What the network gets beside it."""
    blank: bool = False
    """Whether it is 0 throughout."""

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that was read."""
        return [self.values, *(channel.values for channel in self.channels)]

    def to(self, device: torch.device) -> RawBlock:
        """The same on a device, for a CUDA device's stream from page-locked memory."""
        channels = tuple(channel.to(device) for channel in self.channels)
        values = self.values.to(device, non_blocking=True)
        return replace(self, values=values, channels=channels)


def read_for_each(plans: Sequence[BlockPlan], number: int, pinned: bool = False) -> list[RawBlock]:
    """The raw of a block for each of several networks; what they all take alike is read once."""
    boxes = [plan.input_box(number, plan.raw.grid) for plan in plans]
    are_alike = all(plan.raw.reads_like(plans[0].raw) for plan in plans)
    if not are_alike or any(plan.channels for plan in plans):
        return [_read(plan, number, box, pinned) for plan, box in zip(plans, boxes, strict=True)]
    start = np.min([first for first, _ in boxes], axis=0)
    stop = np.max([last for _, last in boxes], axis=0)
    return [_read(plans[0], number, (start, stop), pinned)] * len(plans)


def _read(
    plan: BlockPlan, number: int, box: tuple[np.ndarray, np.ndarray], pinned: bool
) -> RawBlock:
    start, stop = box
    raw = _on_host(plan.raw.read_mirrored(start, stop), pinned)
    channels = []
    for volume in plan.channels:
        first, last = plan.input_box(number, volume.raw.grid)
        values = _on_host(volume.read_around(first, last), pinned)
        channels.append(ChannelValues(volume, values, first))
    return RawBlock(number, raw, start, tuple(channels), blank=not raw.any())


def _on_host(block: np.ndarray, pinned: bool) -> torch.Tensor:
    values = torch.from_numpy(np.ascontiguousarray(block))
    return values.pin_memory() if pinned else values


@torch.inference_mode()
def compute_block(
    plan: BlockPlan, raw: RawBlock, forward: Forward, device: torch.device
) -> torch.Tensor:
    """Logits (classes, z, y, x) of a block on the voxels that are written, on the device."""
    logits = _network_logits(plan, raw.to(device), forward)
    if plan.resampled:
        return _resampled(plan, raw.number, logits)
    start, stop = plan.output_box(raw.number)
    first, _ = plan.network_box(raw.number)
    return logits[:, *slices(start - first, stop - first)]


@torch.inference_mode()
def mean_logits(
    members: Sequence[Member], raw: Sequence[RawBlock], device: torch.device
) -> tuple[torch.Tensor, list[Verdict]]:
    """Logits (classes, z, y, x) of the mean probability of all members; of one, its own.

    And what each member's `look` gave.

    Probabilities, as in deep ensembles (Lakshminarayanan et al. 2017) and where nnU-Net joins
    configurations (Isensee et al. 2021): of logits, that member would decide which is surest of
    itself, and networks of different losses differ in that by far. In logarithms, so that the
    logit is exact where the probability rounds to 1; however many members there are, two sums and
    the logits of one are in memory.
    """
    positive: torch.Tensor | None = None
    negative: torch.Tensor | None = None
    verdicts = []
    blocks = iter(raw)
    for member in members:
        own = [next(blocks) for _ in member.passes]
        logits = _mean_over_passes(member, own, device)
        verdicts.append(member.look(logits))
        if len(members) == 1:
            return logits, verdicts
        logits = logits.float()
        is_class = functional.logsigmoid(logits)
        is_not = functional.logsigmoid(-logits)
        positive = is_class if positive is None else torch.logaddexp(positive, is_class)
        negative = is_not if negative is None else torch.logaddexp(negative, is_not)
    assert positive is not None and negative is not None
    return positive - negative, verdicts


def _mean_over_passes(
    member: Member, raw: Sequence[RawBlock], device: torch.device
) -> torch.Tensor:
    """Logits (classes, z, y, x) of a network, the mean over its planes. raw: for each of them."""
    if not member.further:
        return compute_block(member.plan, raw[0], member.forward, device)
    total: torch.Tensor | None = None
    for (plan, forward), block in zip(member.passes, raw, strict=True):
        logits = compute_block(plan, block, forward, device).float()
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(member.passes)


def _network_logits(plan: BlockPlan, raw: RawBlock, forward: Forward) -> torch.Tensor:
    """Logits (classes, z, y, x) of the network's voxels from the first that a block needs on."""
    placed = list(_windows(plan, raw.number))
    if plan.window.agree and len(placed) == 1:
        return _logits_of_windows(plan, raw, placed, forward)[0]
    return _mean_of_windows(plan, raw, placed, forward)


Placed = tuple[Window, tuple[int, ...]]
"""A window, and the first voxel that it gives, in voxels of the network."""


def _windows(plan: BlockPlan, number: int) -> Iterator[Placed]:
    """The windows of a block; slices of a 2-D network several at a time."""
    starts = plan.window_starts(number)
    window = plan.window
    if window.flat is None or window.at_once == 1:
        yield from ((window, corner) for corner in itertools.product(*starts))
        return
    across = starts[window.flat]
    for first in across[:: window.at_once]:
        several = window.of_slices(min(window.at_once, across.stop - first))
        starts[window.flat] = range(first, first + 1)
        for corner in itertools.product(*starts):
            yield several, corner


def windows_at_once(window: Window, device: torch.device) -> int:
    """How many windows go through the network together, where a block has so many.

    Of a 2-D network one, which has several slices already.
    """
    if window.alone or window.flat is not None:
        return 1
    return max(1, TOGETHER.get(device.type, 0) // math.prod(window.input.shape))


def _logits_of_windows(
    plan: BlockPlan, raw: RawBlock, placed: Sequence[Placed], forward: Forward
) -> torch.Tensor:
    """Logits (windows, classes, z, y, x) of windows of one shape."""
    window, _ = placed[0]
    plan = replace(plan, window=window)
    corners = [corner for _, corner in placed]
    shape = window.input.shape
    affines = [_affine(plan, corner, plan.raw.grid, raw.start) for corner in corners]
    scalings = [plan.scaling] * len(placed)
    values = [raw.values] * len(placed)
    patches = augment.raw_patches(values, affines, shape, plan.raw.raw_range)
    patches = normalize.to_unit_range(patches, scalings)
    patches = normalize.standardize(patches, scalings)
    beside = []
    for channel in raw.channels:
        its = channel.volume.raw
        affines = [_affine(plan, corner, its.grid, channel.start) for corner in corners]
        values = [channel.values] * len(placed)
        beside.append(augment.raw_patches(values, affines, shape, its.value_range))
    if beside:
        patches = torch.cat([patches, *beside], dim=1)
    return forward(patches)


def _affine(plan: BlockPlan, corner: tuple[int, ...], grid: Grid, start: np.ndarray) -> np.ndarray:
    """From voxels of a window to those of what was read of a grid, from its voxel `start` on."""
    first, _ = plan.raw_ends(np.array(corner), grid)
    linear = np.diag(np.array(plan.window.input.scale) / grid.scale)
    return np.concatenate([linear, (first - start)[:, None]], axis=1)


def _mean_of_windows(
    plan: BlockPlan, raw: RawBlock, placed: Sequence[Placed], forward: Forward
) -> torch.Tensor:
    """Logits (classes, z, y, x), the weighted mean over the windows that reach into a block."""
    first, last = plan.network_box(raw.number)
    shape = last - first
    of_one = _window_weight(plan.window, raw.values.device)
    weights = torch.zeros(*shape.tolist(), device=raw.values.device)
    total: torch.Tensor | None = None
    at_once = windows_at_once(plan.window, raw.values.device)
    for (window, corner), given in _each_window(plan, raw, placed, forward, at_once=at_once):
        size = np.array(window.output.shape)
        weight = of_one.expand(*window.output.shape)
        start = np.array(corner) - first
        # where the window and the block overlap, in voxels of each; windows may stick out
        inside = slices(np.maximum(start, 0), np.minimum(start + size, shape))
        part = slices(np.maximum(-start, 0), np.minimum(size, shape - start))
        logits = given[:, *part] * weight[part]
        # only now is it known how many classes there are
        if total is None:
            total = logits.new_zeros(len(logits), *shape.tolist())
        total[:, *inside] += logits
        weights[inside] += weight[part]
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
    """Each window with its logits (classes, z, y, x). at_once: windows in a forward pass."""
    for first in range(0, len(placed), at_once):
        together = placed[first : first + at_once]
        yield from zip(together, _logits_of_windows(plan, raw, together, forward), strict=True)


def _window_weight(window: Window, device: torch.device) -> torch.Tensor:
    """(z, y, x) weight of each voxel of a window in the mean; all one where windows agree."""
    if window.agree:
        return torch.ones(window.output.shape, device=device)
    return _gaussian(window.output.shape, device)


def _gaussian(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """(z, y, x) a Gaussian of an eighth of the window's size, nnU-Net's, at least 1e-3.

    Not 0: a voxel at the volume's corner may be in the corner of a single window.
    """
    axes = []
    for n in shape:
        distance = (torch.arange(n, device=device) - (n - 1) / 2) / (n / 8)
        axes.append(torch.exp(-0.5 * distance**2))
    z, y, x = axes
    return (z[:, None, None] * y[:, None] * x).clamp_(min=1e-3)


def _resampled(plan: BlockPlan, number: int, logits: torch.Tensor) -> torch.Tensor:
    """Float32 logits of a block on the voxels that are written, resampled axis by axis."""
    start, stop = plan.output_box(number)
    first, _ = plan.network_box(number)
    given = np.array(plan.window.output.scale)
    corner = plan.grid.box()[0]
    values = logits.float()
    for axis in range(3):
        target = regrid.Axis(
            plan.grid.origin[axis] + start[axis] * plan.grid.scale[axis],
            plan.grid.scale[axis],
            int(stop[axis] - start[axis]),
        )
        source = regrid.Axis(
            corner[axis] + (first[axis] + 0.5) * given[axis],
            given[axis],
            values.shape[axis + 1],
        )
        matrix = regrid.axis_weights(target, source, repeat_edge=True)
        # from page-locked memory a GPU copies without having come to the end of what it computes
        weights = _on_host(matrix, values.is_cuda).to(values.device, non_blocking=True)
        values = torch.tensordot(values, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
    return values
