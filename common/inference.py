"""A network over a volume, one block at a time: how large a window is, how much raw it needs, how windows are put together.

A block of the output is computed from the raw around it alone, so blocks can be made in any order, by any number of
calls, and be written once. A network without padding gives the same voxels in a block as in the whole volume, provided that
windows start at whole steps of its pooling. Where windows do not agree on the voxels that they share (padding, normalisation
over the window), each voxel is the mean over overlapping windows, weighted by a Gaussian about their centres as in nnU-Net
(Isensee et al. 2021); the windows stand on one lattice over the volume, so that blocks meet without seams.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common import augment, regrid, sampling
from common.ngff import Grid
from common.raw import Raw
from common.sampling import Patch

LARGEST_STEP = 32
"""Voxels by which sizes that a network takes may differ; above it the network counts as one of a fixed size."""

OVERLAP = 0.5
"""Of neighbouring windows that do not agree where they overlap; nnU-Net's."""

CHUNK = 128
"""Edge in voxels that chunks of the written arrays have at most, unless a single window gives more."""

WORKSPACE = 2.5
"""Memory of a forward pass over that of the activations it holds at its peak; 2.5 for unet8 in fp32 on a CPU, 1.3 in bf16."""

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

    @property
    def unit(self) -> np.ndarray:
        """(3,) output voxels that windows may be apart: whole steps of the network, and whole input voxels."""
        ratio = np.divide(self.output.scale, self.input.scale)
        return np.array([step or _whole(r) for (_, step), r in zip(self.steps, ratio, strict=True)])

    @property
    def stride(self) -> np.ndarray:
        """(3,) output voxels from one window to the next: side by side if they agree, else overlapping."""
        size = np.array(self.output.shape)
        wanted = size if self.agree else size * (1 - OVERLAP)
        return np.minimum(np.maximum((wanted / self.unit).astype(int), 1) * self.unit, size)

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
            if abs(out - round(out)) > 1e-6:
                continue
            if all(shape_of(_grown(input.shape, axis, n * step)) == _grown(output.shape, axis, n * round(out)) for n in (1, 2)):
                found = (step, round(out))
                break
        steps.append(found)
    return Window(input, output, tuple(steps))


class Shapes:
    """Shapes and memory of a network, found without computing: on torch's meta device."""

    def __init__(self, model: nn.Module, logits: Callable[[nn.Module, torch.Tensor], torch.Tensor]):
        self.model, self.logits = _OnMeta(model), logits

    @torch.inference_mode()
    def __call__(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Output shape (z, y, x), None where the network refuses the input or cannot be run on the meta device."""
        try:
            given = self.logits(self.model, torch.empty(1, 1, *shape, device="meta"))
        except Exception:  # a network says in its own way that it does not take a size
            return None
        return tuple(given.shape[2:])

    def gigabytes(self, shape: tuple[int, ...]) -> float:
        """Roughly what a forward pass in float32 holds at its peak; 0 if it cannot be run on the meta device."""
        with _Held() as held:
            self(shape)
        return WORKSPACE * held.peak / 1e9


class _OnMeta(nn.Module):
    """A network run with tensors of its shapes that hold nothing."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        named = itertools.chain(model.named_parameters(), model.named_buffers())
        self.empty = {name: torch.empty_like(tensor, device="meta", requires_grad=False) for name, tensor in named}

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(self.model, self.empty, (raw,))


class _Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, in `peak` the most at any time."""

    def __init__(self):
        super().__init__()
        self.alive: set[int] = set()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None) -> object:
        given = function(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, tuple | list) else (given,):
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in self.alive:
                self._count(id(storage), storage.nbytes())
                weakref.finalize(storage, self._count, id(storage), -storage.nbytes())
        return given

    def _count(self, storage: int, size: int) -> None:
        self.alive ^= {storage}
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def judged(window: Window, forward: Forward, device: torch.device) -> Window:
    """The window, with `agree` as measured: two windows on noise are compared where they overlap, half a window apart.

    The noise grows brighter along each axis, so that normalisation over a window shows. A network of a fixed size
    agrees if it gives less than it takes.
    """
    if not any(step_out for _, step_out in window.steps):
        return replace(window, agree=bool((window.output.extent < window.input.extent - 1e-6).any()))
    step_in, step_out = np.array(window.steps).T
    used = window.holding(step_out + 1)
    n_in, n_out = np.array(used.input.shape), np.array(used.output.shape)
    times = np.maximum(n_out // 2 // np.maximum(step_out, 1), 1)
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.rand(1, 1, *(n_in + times * step_in).tolist(), device=device, generator=generator)
    for axis in (2, 3, 4):
        noise *= torch.linspace(0.2, 1, noise.shape[axis], device=device).view(-1, *[1] * (4 - axis))
    first = forward(noise[(..., *map(slice, n_in.tolist()))]).float()[0]
    second = forward(noise[(..., *map(slice, (times * step_in).tolist(), noise.shape[2:]))]).float()[0]
    shared = first[(..., *map(slice, (times * step_out).tolist(), n_out.tolist()))]
    again = second[(..., *map(slice, (n_out - times * step_out).tolist()))]
    spread = (shared - shared.mean((1, 2, 3), keepdim=True)).abs().max()
    return replace(window, agree=bool((shared - again).abs().max() <= 1e-3 * spread + 1e-6 * shared.abs().max()))


@dataclass(frozen=True)
class Plan:
    """Which voxels are computed, in which blocks, with which window."""

    raw: Raw
    window: Window
    grid: Grid
    """What is written. The network's own voxels begin at its lower corner too."""
    block: tuple[int, ...]
    """Written voxels that are computed at a time, whole chunks."""
    chunks: tuple[int, ...]
    largest: int
    """Edge in voxels that blocks have at most, or nearly so: plans for the same box with the same number are the same."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(math.ceil(n / b) for n, b in zip(self.grid.shape, self.block, strict=True))

    @property
    def resampled(self) -> bool:
        return not np.allclose(self.grid.scale, self.window.output.scale, rtol=1e-6)

    def place(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 written voxel of a block."""
        start = np.array(np.unravel_index(number, self.blocks)) * self.block
        return start, np.minimum(start + self.block, self.grid.shape)

    def needs(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 of the network's voxels that a block is made of; the first one is on a whole unit of the window."""
        start, stop = self.place(number)
        if self.resampled:  # linear interpolation takes the next voxel too
            ratio = self.grid.scale / self.window.output.scale
            start, stop = np.floor(start * ratio - 1 + 1e-6).astype(int), np.ceil(stop * ratio + 1 - 1e-6).astype(int)
        return start // self.window.unit * self.window.unit, stop

    def windows(self, number: int) -> list[range]:
        """Along each axis, where the windows of a block start, in voxels of the network."""
        size, stride = np.array(self.window.output.shape), self.window.stride
        first, last = self.needs(number)
        if not self.window.agree:  # of the lattice over the volume, all that reach into the block
            first = ((first - size) // stride + 1) * stride
        return [range(*along) for along in zip(first.tolist(), last.tolist(), stride.tolist(), strict=True)]

    def raw_place(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last input voxel of the window that starts at a voxel of the network, in voxels of the raw, fractional.

        Where both have one size, they are whole voxels of the raw, chosen as in training.
        """
        taken, given = self.window.input, self.window.output
        corner = self.grid.box()[0]
        base = sampling.on_voxels(corner + given.extent / 2, np.eye(3), taken, self.raw.grid)
        centre = base + start * given.scale
        half = (np.array(taken.shape) - 1) / 2 * taken.scale
        return tuple((centre + side * half - self.raw.grid.origin) / self.raw.grid.scale for side in (-1, 1))  # type: ignore[return-value]


def plan(
    raw: Raw, window: Window, lower: np.ndarray, upper: np.ndarray, scale: Sequence[float] | None = None, largest: int = 128
) -> Plan:
    """Cover the box lower..upper (nm) by voxels of `scale` (nm; the network's unless given), in blocks of about `largest` voxels.

    Where the raw has the network's voxel size, the voxels are moved down by less than one, onto those of the raw.
    """
    scale = np.array(scale or window.output.scale, float)
    corner = _on_raw(lower, raw.grid, window.input)
    shape = np.maximum(1, np.ceil((upper - corner) / scale - 1e-6)).astype(int)
    grid = Grid(corner + scale / 2, scale, tuple(shape.tolist()))
    ratio, grows = scale / window.output.scale, np.array([step > 0 for _, step in window.steps])
    same = np.allclose(ratio, 1, rtol=1e-6)
    unit = (np.where(grows, window.unit, window.stride) if window.agree else window.stride) if same else np.ones(3, int)
    limit = largest / np.maximum(ratio, 1)
    block, chunks = zip(*map(_block, shape.tolist(), limit.astype(int).tolist(), unit.tolist()), strict=True)
    if window.agree:
        needed = np.array(block) if same else np.ceil(np.array(block) * ratio).astype(int) + 3 + window.unit
        window = window.holding(-(-needed // window.unit) * window.unit)
    return Plan(raw, window, grid, block, chunks, largest)


def _block(n: int, largest: int, unit: int) -> tuple[int, int]:
    """Voxels along an axis of n that blocks and chunks have: blocks of about one size, of whole chunks of whole units."""
    if n > min(largest, CHUNK):
        unit = math.lcm(unit, 2)  # two voxels become one of the next coarser level, chunk by chunk
    largest = max(largest // unit, 1) * unit
    size = math.ceil(n / math.ceil(n / largest))
    chunks = math.ceil(size / CHUNK)
    chunk = math.ceil(size / chunks / unit) * unit
    return chunks * chunk, chunk


def _on_raw(lower: np.ndarray, grid: Grid, taken: Patch) -> np.ndarray:
    """The corner moved down by less than a voxel onto a corner of a raw voxel, along axes where the network's voxels are as large."""
    first = (lower - grid.box()[0]) / grid.scale
    return lower - np.where(np.isclose(taken.scale, grid.scale, rtol=1e-6), (first - np.floor(first + 1e-3)) * grid.scale, 0)


@torch.inference_mode()
def run(
    plan: Plan, numbers: Sequence[int], forward: Forward, finish: Callable[[torch.Tensor], torch.Tensor], device: torch.device, ahead: int = 2
) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
    """For each block of `numbers`, in order, its values (classes, z, y, x) and whether its raw is 0 throughout.

    The raw of the next blocks is read meanwhile. forward: raw (1, 1, z, y, x) in [0, 1] to logits; finish: logits (classes, z, y, x)
    to what is stored, on the device.
    """
    on_cuda = device.type == "cuda"
    with ThreadPoolExecutor(ahead) as readers:
        left = iter(numbers)
        waiting = deque((number, readers.submit(_read, plan, number, on_cuda)) for number in itertools.islice(left, ahead))
        computed: deque = deque()
        while waiting:
            number, reading = waiting.popleft()
            raw, start = reading.result()
            if (following := next(left, None)) is not None:
                waiting.append((following, readers.submit(_read, plan, following, on_cuda)))
            logits = _logits(plan, number, raw.to(device, non_blocking=True), start, forward)
            computed.append((number, _fetched(finish(_on_grid(plan, number, logits))), not raw.any()))
            if len(computed) > on_cuda:  # a CUDA device copies a block while it computes the next one
                number, fetch, empty = computed.popleft()
                yield number, fetch(), empty
        yield from ((number, fetch(), empty) for number, fetch, empty in computed)


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
    """What is stored of logits (classes, z, y, x): logits, or probabilities, which as uint8 are rounded to 255ths.

    Layer by layer of z: all classes of a voxel lie side by side, as channels_last networks give them, and stay in a CPU's cache.
    There a thread takes a layer; torch's own threads would wait for each other after every step, and writers be in their way.
    """
    stored = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    on_cpu = logits.device.type == "cpu"
    layers = max(1, (2**20 if on_cpu else 2**27) // logits[:, :1].numel())

    @torch.inference_mode()
    def fill(taken: torch.Tensor, given: torch.Tensor) -> None:
        values = given.to(torch.float32, copy=True)
        if content == "probability":
            values.sigmoid_()
        taken.copy_(values.mul_(255).round_().to(dtype) if dtype == torch.uint8 else values)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list((pool.map if on_cpu else map)(fill, stored.split(layers, 1), logits.split(layers, 1)))
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


def _read(plan: Plan, number: int, pinned: bool) -> tuple[torch.Tensor, np.ndarray]:
    """The raw that a block needs, on voxels of the raw's grid, and the first of them."""
    windows = plan.windows(number)
    low = plan.raw_place(np.array([starts[0] for starts in windows]))[0]
    high = plan.raw_place(np.array([starts[-1] for starts in windows]))[1]
    start, stop = np.floor(low - 0.01).astype(int), np.ceil(high + 0.01).astype(int) + 1
    raw = torch.from_numpy(np.ascontiguousarray(plan.raw.read_mirrored(start, stop)))
    return raw.pin_memory() if pinned else raw, start


def _fetched(values: torch.Tensor) -> Callable[[], np.ndarray]:
    """Gives the values on the host; a CUDA device begins to copy them now, beside what it computes next."""
    if values.device.type != "cuda":
        return values.cpu().numpy
    beside = torch.cuda.Stream(values.device)
    beside.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(beside):
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        done = beside.record_event()
    values.record_stream(beside)
    return lambda: done.synchronize() or host.numpy()


def _logits(plan: Plan, number: int, raw: torch.Tensor, raw_start: np.ndarray, forward: Forward) -> torch.Tensor:
    """Logits (classes, z, y, x) of the network's voxels from the first that a block needs on: of one window, or the mean over several."""
    window, (first, last) = plan.window, plan.needs(number)
    linear = np.diag(np.array(window.input.scale) / plan.raw.grid.scale)

    def through(corner: tuple[int, ...]) -> torch.Tensor:
        place = plan.raw_place(np.array(corner))[0] - raw_start
        affine = np.concatenate([linear, place[:, None]], axis=1)
        return forward(augment.raw_patches([raw], [affine], window.input.shape, plan.raw.raw_range))[0]

    corners = list(itertools.product(*plan.windows(number)))
    if window.agree and len(corners) == 1:
        return through(corners[0])
    size, shape = np.array(window.output.shape), last - first
    weight = (torch.ones(window.output.shape) if window.agree else _gaussian(window.output.shape)).to(raw.device)
    total, weights = None, torch.zeros(*shape.tolist(), device=raw.device)
    for corner in corners:
        start = np.array(corner) - first
        inside, part = _slices(np.maximum(start, 0), np.minimum(start + size, shape)), _slices(np.maximum(-start, 0), np.minimum(size, shape - start))
        logits = through(corner)[(..., *part)] * weight[part]
        total = logits.new_zeros(len(logits), *shape.tolist()) if total is None else total
        total[(..., *inside)] += logits
        weights[inside] += weight[part]
    return total.div_(weights)  # type: ignore[union-attr]


def _gaussian(shape: Sequence[int]) -> torch.Tensor:
    """Weights (z, y, x) of the voxels of a window: a Gaussian of an eighth of its size, at least 1e-3 at the corners."""
    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in shape]
    return (axes[0][:, None, None] * axes[1][:, None] * axes[2]).clamp_(min=1e-3)


def _on_grid(plan: Plan, number: int, logits: torch.Tensor) -> torch.Tensor:
    """Logits of a block on the voxels that are written: cut out, or resampled."""
    start, stop = plan.place(number)
    first = plan.needs(number)[0]
    if not plan.resampled:
        return logits[(..., *_slices(start - first, stop - first))]
    given, corner = np.array(plan.window.output.scale), plan.grid.box()[0]
    values = logits.float()
    for axis in range(3):
        matrix = regrid.axis_weights(
            plan.grid.origin[axis] + start[axis] * plan.grid.scale[axis], plan.grid.scale[axis], int(stop[axis] - start[axis]),
            corner[axis] + (first[axis] + 0.5) * given[axis], given[axis], values.shape[axis + 1], repeat_edge=True,
        )  # fmt: skip
        weights = torch.from_numpy(matrix).to(values.device)
        values = torch.tensordot(values, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
    return values


def _whole(ratio: float) -> int:
    """The least number whose multiple of `ratio` is whole; 1 if none up to LARGEST_STEP is."""
    return next((n for n in range(1, LARGEST_STEP + 1) if abs(n * ratio - round(n * ratio)) < 1e-6), 1)


def _grown(shape: Sequence[int], axis: int, by: int) -> tuple[int, ...]:
    return tuple(n + by * (i == axis) for i, n in enumerate(shape))


def _slices(first: np.ndarray, last: np.ndarray) -> tuple[slice, ...]:
    return tuple(map(slice, first.tolist(), last.tolist()))
