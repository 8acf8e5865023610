"""How large a window of a network is, how it grows, and whether windows agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.data.sampling import Patch
from common.model.shapes import ShapeOf

LARGEST_STEP = 32
"""Voxels by which sizes that a network takes may differ; above it the network counts as one of a fixed size."""


OVERLAP = 0.5
"""Of neighbouring windows that do not agree where they overlap; nnU-Net's."""


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
        return replace(
            self,
            input=Patch(tuple(n_in), self.input.scale),
            output=Patch(tuple(n_out), self.output.scale),
        )


def probe(shape_of: ShapeOf, input: Patch, output: Patch) -> Window:
    """The window of a network, and the steps by which it can grow, found by asking for the shapes that it gives."""
    steps = []
    for axis in range(3):
        found = (0, 0)
        for step in range(1, LARGEST_STEP + 1) if input.shape[axis] > 1 else ():
            out = step * input.scale[axis] / output.scale[axis]
            if abs(out - round(out)) > 1e-6:
                continue
            if all(
                shape_of(_grown(input.shape, axis, n * step))
                == _grown(output.shape, axis, n * round(out))
                for n in (1, 2)
            ):
                found = (step, round(out))
                break
        steps.append(found)
    return Window(input, output, tuple(steps))


def judged(window: Window, forward: Forward, device: torch.device) -> Window:
    """The window, with `agree` as measured: two windows on noise are compared where they overlap, half a window apart.

    The noise grows brighter along each axis, so that normalisation over a window shows. A network of a fixed size
    agrees if it gives less than it takes.
    """
    if not any(step_out for _, step_out in window.steps):
        return replace(
            window, agree=bool((window.output.extent < window.input.extent - 1e-6).any())
        )
    step_in, step_out = np.array(window.steps).T
    used = window.holding(step_out + 1)
    n_in, n_out = np.array(used.input.shape), np.array(used.output.shape)
    times = np.maximum(n_out // 2 // np.maximum(step_out, 1), 1)
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.rand(1, 1, *(n_in + times * step_in).tolist(), device=device, generator=generator)
    for axis in (2, 3, 4):
        noise *= torch.linspace(0.2, 1, noise.shape[axis], device=device).view(
            -1, *[1] * (4 - axis)
        )
    first = forward(noise[(..., *map(slice, n_in.tolist()))]).float()[0]
    second = forward(
        noise[(..., *map(slice, (times * step_in).tolist(), noise.shape[2:]))]
    ).float()[0]
    shared = first[(..., *map(slice, (times * step_out).tolist(), n_out.tolist()))]
    again = second[(..., *map(slice, (n_out - times * step_out).tolist()))]
    spread = (shared - shared.mean((1, 2, 3), keepdim=True)).abs().max()
    return replace(
        window,
        agree=bool((shared - again).abs().max() <= 1e-3 * spread + 1e-6 * shared.abs().max()),
    )


def _whole(ratio: float) -> int:
    """The least number whose multiple of `ratio` is whole; 1 if none up to LARGEST_STEP is."""
    return next(
        (n for n in range(1, LARGEST_STEP + 1) if abs(n * ratio - round(n * ratio)) < 1e-6), 1
    )


def _grown(shape: Sequence[int], axis: int, by: int) -> tuple[int, ...]:
    return tuple(n + by * (i == axis) for i, n in enumerate(shape))
