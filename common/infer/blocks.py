"""A network over a volume, one block at a time: how large a window is, how much raw it needs, how windows are put together.

A block of the output is computed from the raw around it alone, so blocks can be made in any order, by any number of
calls, and be written once. A network without padding gives the same voxels in a block as in the whole volume, provided that
windows start at whole steps of its pooling. Where windows do not agree on the voxels that they share (padding, normalisation
over the window), each voxel is the mean over overlapping windows, weighted by a Gaussian about their centres as in nnU-Net
(Isensee et al. 2021); the windows stand on one lattice over the volume, so that blocks meet without seams.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from common.data import augment, regrid
from common.infer.plan import BlockPlan
from common.infer.window import Forward


@torch.inference_mode()
def compute_blocks(
    plan: BlockPlan,
    numbers: Sequence[int],
    forward: Forward,
    finish: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    ahead: int = 2,
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """For each block of `numbers`, in order, its values (classes, z, y, x) and whether its raw is 0 throughout.

    The raw of the next blocks is read meanwhile. forward: raw (1, 1, z, y, x) in [0, 1] to logits; finish: logits (classes, z, y, x)
    to what is stored, on the device.
    """
    on_cuda = device.type == "cuda"
    with ThreadPoolExecutor(ahead) as readers:
        left = iter(numbers)
        waiting = deque(
            (number, readers.submit(_read, plan, number, on_cuda))
            for number in itertools.islice(left, ahead)
        )
        computed: deque = deque()
        while waiting:
            number, reading = waiting.popleft()
            raw, start = reading.result()
            if (following := next(left, None)) is not None:
                waiting.append((following, readers.submit(_read, plan, following, on_cuda)))
            logits = _logits(plan, number, raw.to(device, non_blocking=True), start, forward)
            computed.append(
                (number, _fetched(finish(_on_grid(plan, number, logits))), not raw.any())
            )
            if (
                len(computed) > on_cuda
            ):  # a CUDA device copies a block while it computes the next one
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


def _read(plan: BlockPlan, number: int, pinned: bool) -> tuple[torch.Tensor, np.ndarray]:
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
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(
            values, non_blocking=True
        )
        done = beside.record_event()
    values.record_stream(beside)
    return lambda: done.synchronize() or host.numpy()


def _logits(
    plan: BlockPlan, number: int, raw: torch.Tensor, raw_start: np.ndarray, forward: Forward
) -> torch.Tensor:
    """Logits (classes, z, y, x) of the network's voxels from the first that a block needs on: of one window, or the mean over several."""
    window, (first, last) = plan.window, plan.needs(number)
    linear = np.diag(np.array(window.input.scale) / plan.raw.grid.scale)

    def through(corner: tuple[int, ...]) -> torch.Tensor:
        place = plan.raw_place(np.array(corner))[0] - raw_start
        affine = np.concatenate([linear, place[:, None]], axis=1)
        return forward(
            augment.raw_patches([raw], [affine], window.input.shape, plan.raw.raw_range)
        )[0]

    corners = list(itertools.product(*plan.windows(number)))
    if window.agree and len(corners) == 1:
        return through(corners[0])
    size, shape = np.array(window.output.shape), last - first
    weight = (
        torch.ones(window.output.shape) if window.agree else _gaussian(window.output.shape)
    ).to(raw.device)
    total, weights = None, torch.zeros(*shape.tolist(), device=raw.device)
    for corner in corners:
        start = np.array(corner) - first
        inside, part = (
            _slices(np.maximum(start, 0), np.minimum(start + size, shape)),
            _slices(np.maximum(-start, 0), np.minimum(size, shape - start)),
        )
        logits = through(corner)[(..., *part)] * weight[part]
        total = logits.new_zeros(len(logits), *shape.tolist()) if total is None else total
        total[(..., *inside)] += logits
        weights[inside] += weight[part]
    return total.div_(weights)  # type: ignore[union-attr]


def _gaussian(shape: Sequence[int]) -> torch.Tensor:
    """Weights (z, y, x) of the voxels of a window: a Gaussian of an eighth of its size, at least 1e-3 at the corners."""
    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in shape]
    return (axes[0][:, None, None] * axes[1][:, None] * axes[2]).clamp_(min=1e-3)


def _on_grid(plan: BlockPlan, number: int, logits: torch.Tensor) -> torch.Tensor:
    """Logits of a block on the voxels that are written: cut out, or resampled."""
    start, stop = plan.place(number)
    first = plan.needs(number)[0]
    if not plan.resampled:
        return logits[(..., *_slices(start - first, stop - first))]
    given, corner = np.array(plan.window.output.scale), plan.grid.box()[0]
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
        weights = torch.from_numpy(matrix).to(values.device)
        values = torch.tensordot(values, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
    return values


def _slices(first: np.ndarray, last: np.ndarray) -> tuple[slice, ...]:
    return tuple(map(slice, first.tolist(), last.tolist()))
