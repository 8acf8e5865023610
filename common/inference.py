"""A network over a volume, one block at a time: how large a window is, how much raw it needs, how windows are put together.

A block of the output is computed from the raw around it alone, so blocks can be made in any order, by any number of
calls, and be written once. A network without padding gives the same voxels in a block as in the whole volume, provided that
windows start at whole steps of its pooling. Where windows do not agree on the voxels that they share (padding, normalisation
over the window), each voxel is the mean over overlapping windows, weighted by a Gaussian about their centres as in nnU-Net
(Isensee et al. 2021); the windows stand on one lattice over the volume, so that blocks meet without seams.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from common import augment, regrid
from common.ngff import Grid
from common.raw import Raw
from common.sampling import Patch

LARGEST_STEP = 32
"""Voxels by which sizes that a network takes may differ; above it the network counts as one of a fixed size."""

OVERLAP = 0.5
"""Of neighbouring windows that do not agree where they overlap; nnU-Net's."""

ShapeOf = Callable[[tuple[int, ...]], tuple[int, ...] | None]
"""Output shape (z, y, x) of a network for an input shape; None where the network refuses it."""

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Window:
    """Voxels that one forward pass takes and gives, z, y, x. Both have the same centre."""

    input: Patch
    output: Patch
    steps: tuple[tuple[int, int], ...]
    """For each axis by how many voxels input and output can grow; (0, 0) where they cannot."""
    agree: bool = True
    """Whether overlapping windows give the same values where they overlap."""

    def holding(self, needed: Sequence[int]) -> Window:
        """This window, grown to at least `needed` output voxels along the axes that can grow."""
        n_in, n_out = list(self.input.shape), list(self.output.shape)
        for axis, (step_in, step_out) in enumerate(self.steps):
            if step_out:
                grow = max(0, math.ceil((needed[axis] - n_out[axis]) / step_out))
                n_in[axis] += grow * step_in
                n_out[axis] += grow * step_out
        return replace(self, input=Patch(tuple(n_in), self.input.scale), output=Patch(tuple(n_out), self.output.scale))


def probe(shape_of: ShapeOf, input: Patch, output: Patch) -> Window:
    """The window of a network, and the steps by which it can grow, found by asking for the shapes that it gives."""
    steps = []
    for axis in range(3):
        found = (0, 0)
        for step in range(1, LARGEST_STEP + 1) if input.shape[axis] > 1 else ():
            out = step * input.scale[axis] / output.scale[axis]
            if out != round(out):
                continue
            wanted = [_grown(output.shape, axis, times * round(out)) for times in (1, 2)]
            if [shape_of(_grown(input.shape, axis, times * step)) for times in (1, 2)] == wanted:
                found = (step, round(out))
                break
        steps.append(found)
    return Window(input, output, tuple(steps))


class Shapes:
    """Shapes and memory of a network, found without computing: on torch's meta device."""

    def __init__(self, model: nn.Module, logits: Callable[[nn.Module, torch.Tensor], torch.Tensor]):
        tensors = itertools.chain(model.parameters(), model.buffers())
        self.model = copy.deepcopy(model, {id(t): torch.empty_like(t, device="meta", requires_grad=False) for t in tensors})
        self.logits = logits
        self.largest = 0
        for module in self.model.modules():
            if not any(module.children()):
                module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, taken: tuple, given: torch.Tensor) -> None:
        self.largest = max(self.largest, sum(t.numel() for t in (*taken, given) if isinstance(t, torch.Tensor)))

    @torch.inference_mode()
    def __call__(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Output shape (z, y, x), None where the network refuses the input or cannot be run on the meta device."""
        try:
            given = self.logits(self.model, torch.empty(1, 1, *shape, device="meta"))
        except (RuntimeError, ValueError, AssertionError, NotImplementedError):
            return None
        return tuple(given.shape[2:])

    def gigabytes(self, shape: tuple[int, ...]) -> float:
        """Roughly what a forward pass holds at its peak in float32: twice what its largest layer takes and gives."""
        self.largest = 0
        self(shape)
        return 2 * 4 * self.largest / 1e9


def judged(window: Window, forward: Forward, device: torch.device) -> Window:
    """The window, with `agree` as measured: on noise, two windows that are one step apart are compared where they overlap.

    A network of a fixed size agrees if it gives less than it takes.
    """
    shift = window.steps
    if not any(step_out for _, step_out in shift):
        return replace(window, agree=bool((window.output.extent < window.input.extent - 1e-6).any()))
    small = window.holding([step_out + 1 for _, step_out in shift])
    n_in, n_out = small.input.shape, small.output.shape
    noise = torch.rand(1, 1, *(n + a for n, (a, _) in zip(n_in, shift, strict=True)), device=device, generator=torch.Generator(device).manual_seed(0))
    first = forward(noise[(..., *(slice(n) for n in n_in))]).float()[0]
    second = forward(noise[(..., *(slice(a, None) for a, _ in shift))]).float()[0]
    shared = first[(..., *(slice(b, None) for _, b in shift))]
    again = second[(..., *(slice(n - b) for n, (_, b) in zip(n_out, shift, strict=True)))]
    return replace(window, agree=bool((shared - again).abs().max() <= 1e-3 * shared.abs().max() + 1e-6))


@dataclass(frozen=True)
class Plan:
    """Which voxels are computed, in which blocks, with which window."""

    raw: Raw
    window: Window
    corner: np.ndarray
    """(3,) nm, lower corner of the first voxel that is written and of the network's output voxel 0."""
    grid: Grid
    """What is written."""
    block: tuple[int, ...]
    """Written voxels that are computed at a time."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(math.ceil(n / b) for n, b in zip(self.grid.shape, self.block, strict=True))

    @property
    def chunks(self) -> tuple[int, ...]:
        """Of the written arrays: whole chunks are in a block."""
        return tuple(b // math.ceil(b / 128) for b in self.block)

    def place(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 written voxel of a block."""
        start = np.array(np.unravel_index(number, self.blocks)) * self.block
        return start, np.minimum(start + self.block, self.grid.shape)

    def needs(self, number: int) -> np.ndarray:
        """First of the network's output voxels that a block is made of; a whole number of steps."""
        start = self.place(number)[0]
        steps = np.array([max(step_out, 1) for _, step_out in self.window.steps])
        if self.resampled:
            start = np.floor(start * self.grid.scale / self.window.output.scale - 1 + 1e-6).astype(int)
        return start // steps * steps if self.window.agree else start

    @property
    def resampled(self) -> bool:
        return not np.allclose(self.grid.scale, self.window.output.scale, rtol=1e-6)


def plan(
    raw: Raw, window: Window, lower: np.ndarray, upper: np.ndarray, scale: Sequence[float] | None = None, largest: int = 128
) -> Plan:
    """Cover the box lower..upper (nm) by voxels of `scale` (nm; the network's unless given), in blocks of up to `largest` voxels.

    Where the raw has the network's voxel size, the voxels are moved down by less than one, so that raw is not interpolated.
    """
    scale = np.array(scale or window.output.scale, float)
    corner = _on_raw(lower, raw.grid, window)
    shape = np.maximum(1, np.ceil((upper - corner) / scale - 1e-6)).astype(int)
    same = np.allclose(scale, window.output.scale, rtol=1e-6)
    ratio = scale / window.output.scale
    block, needed = [], []
    for axis, (n, (_, step)) in enumerate(zip(shape.tolist(), window.steps, strict=True)):
        around = 0 if same else 2 + max(step, 1)  # interpolation, and starting at a whole step
        if not step and window.agree:  # of fixed size
            size = max(1, math.floor((window.output.shape[axis] - around) / ratio[axis]))
        else:
            limit = max(1, min(largest, math.floor(largest / ratio[axis])))
            size = math.ceil(n / math.ceil(n / limit))
            unit = (step or 1) * (2 if size > 128 else 1) if same else 1
            size = math.ceil(size / unit) * unit
        block.append(size)
        needed.append(math.ceil(size * ratio[axis] - 1e-6) + around)
    sized = window.holding(needed) if window.agree else window
    grid = Grid(corner + scale / 2, scale, tuple(shape.tolist()))
    return Plan(raw, sized, corner, grid, tuple(block))


@torch.inference_mode()
def run(
    plan: Plan, numbers: Sequence[int], forward: Forward, finish: Callable[[torch.Tensor], torch.Tensor], device: torch.device, ahead: int = 2
) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
    """For each block of `numbers`, in order, its values (classes, z, y, x) and whether its raw is 0 throughout.

    The raw of the next blocks is read meanwhile. forward: raw (1, 1, z, y, x) in [0, 1] to logits; finish: logits (classes, z, y, x) to what is stored, on the device.
    """
    with ThreadPoolExecutor(ahead) as readers:
        waiting: deque = deque()
        left = iter(numbers)
        for number in itertools.islice(left, ahead):
            waiting.append((number, readers.submit(_read, plan, number)))
        while waiting:
            number, reading = waiting.popleft()
            block, start = reading.result()
            if (following := next(left, None)) is not None:
                waiting.append((following, readers.submit(_read, plan, following)))
            logits = _logits(plan, block, start, number, forward, device)
            yield number, finish(_on_grid(plan, logits, number)).cpu().numpy(), not block.any()


def oriented(forward: Forward, orientations: int) -> Forward:
    """The mean of a network's logits over 8 mirrorings, or over 16 with y and x exchanged; 1 is the network itself."""
    if orientations == 1:
        return forward

    def mean(raw: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | None = None
        for exchange in (False, True)[: orientations // 8]:
            for mirrored in itertools.product((False, True), repeat=3):
                axes = [axis for axis, m in zip((2, 3, 4), mirrored, strict=True) if m]
                turned = (raw.transpose(3, 4) if exchange else raw).flip(axes)
                logits = forward(turned.contiguous()).float().flip(axes)
                logits = logits.transpose(3, 4) if exchange else logits
                total = logits if total is None else total.add_(logits)
        return total / orientations

    return mean


def encode(logits: torch.Tensor, content: str, dtype: torch.dtype) -> torch.Tensor:
    """What is stored of logits (classes, z, y, x): logits, or probabilities, which as uint8 are rounded to 255ths."""
    stored = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    for channel, values in zip(stored, logits, strict=True):
        values = values.float()
        if content == "probability":
            values = values.sigmoid()
        channel.copy_(values.mul(255).round_() if dtype == torch.uint8 else values)
    return stored


def decode(stored: np.ndarray, content: str) -> np.ndarray:
    """Float32 logits of what `encode` made; those of probabilities 0 and 1 are finite, half a 255th away from them."""
    if content == "logits":
        return stored.astype(np.float32)
    if stored.dtype == np.uint8:
        probability = np.arange(256) / 255
        return np.log(np.clip(probability, 0.5 / 255, None) / np.clip(1 - probability, 0.5 / 255, None)).astype(np.float32)[stored]
    probability = np.clip(stored.astype(np.float32), 1e-7, 1 - 1e-7)
    return np.log(probability / (1 - probability))


def _read(plan: Plan, number: int) -> tuple[torch.Tensor, np.ndarray]:
    """The raw that a block needs, on voxels of the raw's grid, and the first of them."""
    first, last = _windows(plan, number)
    low, high = _raw_place(plan, first)[0], _raw_place(plan, last)[1]
    start, stop = np.floor(low - 0.01).astype(int), np.ceil(high + 0.01).astype(int) + 1
    return torch.from_numpy(np.ascontiguousarray(plan.raw.read_mirrored(start, stop))), start


def _windows(plan: Plan, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the first and the last window of a block start, in output voxels."""
    needs = plan.needs(number)
    if plan.window.agree:
        return needs, needs
    size, stride = np.array(plan.window.output.shape), _stride(plan.window)
    start, stop = plan.place(number)
    end = np.ceil(stop * plan.grid.scale / plan.window.output.scale + (1 if plan.resampled else 0) - 1e-6).astype(int)
    return ((needs - size) // stride + 1) * stride, (end - 1) // stride * stride


def _stride(window: Window) -> np.ndarray:
    steps = np.array([max(step_out, 1) for _, step_out in window.steps])
    return np.maximum(np.floor(np.array(window.output.shape) * (1 - OVERLAP) / steps), 1).astype(int) * steps


def _raw_place(plan: Plan, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last input voxel of the window whose output starts at `start`, in voxels of the raw's grid, fractional."""
    taken, given = plan.window.input, plan.window.output
    centre = plan.corner + (start + np.array(given.shape) / 2) * given.scale
    half = (np.array(taken.shape) - 1) / 2 * taken.scale
    return tuple((centre + side * half - plan.raw.grid.origin) / plan.raw.grid.scale for side in (-1, 1))  # type: ignore[return-value]


def _logits(plan: Plan, block: torch.Tensor, block_start: np.ndarray, number: int, forward: Forward, device: torch.device) -> torch.Tensor:
    """Logits (classes, z, y, x) of the network's voxels that a block needs, from `plan.needs` on."""
    block = block.to(device, non_blocking=True)
    linear = np.diag(np.array(plan.window.input.scale) / plan.raw.grid.scale)

    def window(start: np.ndarray) -> torch.Tensor:
        affine = np.concatenate([linear, (_raw_place(plan, start)[0] - block_start)[:, None]], axis=1)
        return forward(augment.raw_patches([block], [affine], plan.window.input.shape, plan.raw.raw_range))[0]

    first, last = _windows(plan, number)
    if plan.window.agree:
        return window(first)
    size, needs = np.array(plan.window.output.shape), plan.needs(number)
    shape = last + size - needs
    weight = _gaussian(size).to(device)
    total: torch.Tensor | None = None
    weights = torch.zeros(*shape.tolist(), device=device)
    for corner in itertools.product(*(range(a, b + 1, s) for a, b, s in zip(first, last, _stride(plan.window), strict=True))):
        logits = window(np.array(corner)).float()
        if total is None:
            total = torch.zeros(len(logits), *shape.tolist(), device=device)
        start = np.array(corner) - needs
        into = tuple(slice(max(a, 0), a + n) for a, n in zip(start.tolist(), size.tolist(), strict=True))
        part = tuple(slice(max(-a, 0), None) for a in start.tolist())
        total[(..., *into)] += (logits * weight)[(..., *part)]
        weights[into] += weight[part]
    return total / weights


def _gaussian(shape: np.ndarray) -> torch.Tensor:
    """Weights (z, y, x) of the voxels of a window: a Gaussian of an eighth of its size, at least 1e-3 at the corners."""
    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in shape.tolist()]
    return (axes[0][:, None, None] * axes[1][:, None] * axes[2]).clamp_(min=1e-3)


def _on_grid(plan: Plan, logits: torch.Tensor, number: int) -> torch.Tensor:
    """Logits of a block on the voxels that are written: cut out, or resampled."""
    start, stop = plan.place(number)
    needs = plan.needs(number)
    if not plan.resampled:
        return logits[(..., *(slice(a, b) for a, b in zip((start - needs).tolist(), (stop - needs).tolist(), strict=True)))]
    given = np.array(plan.window.output.scale)
    values = logits.float()
    for axis in range(3):
        matrix = regrid.axis_weights(
            plan.grid.origin[axis] + start[axis] * plan.grid.scale[axis], plan.grid.scale[axis], int(stop[axis] - start[axis]),
            plan.corner[axis] + (needs[axis] + 0.5) * given[axis], given[axis], values.shape[axis + 1], repeat_edge=True,
        )  # fmt: skip
        weights = torch.from_numpy(matrix).to(values.device)
        values = torch.tensordot(values, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
    return values


def _on_raw(lower: np.ndarray, grid: Grid, window: Window) -> np.ndarray:
    """The corner moved down by less than a voxel, where that puts input voxels on voxels of the raw."""
    taken, given = window.input, window.output
    first = (lower + given.extent / 2 - (np.array(taken.shape) - 1) / 2 * taken.scale - grid.origin) / grid.scale
    move = (first - np.floor(first + 1e-3)) * grid.scale
    return lower - np.where(np.isclose(taken.scale, grid.scale, rtol=1e-6), move, 0)


def _grown(shape: Sequence[int], axis: int, by: int) -> tuple[int, ...]:
    return tuple(n + by * (i == axis) for i, n in enumerate(shape))
