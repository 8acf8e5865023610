"""How large a window of a network is, how it grows, and whether windows agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.data.samples.sampling import Patch
from common.data.volumes.box import slices
from common.model.shapes import ShapeOf

# five poolings by 2; COSEM's network, which pools by 3 and by 2, grows by 18
LARGEST_STEP = 32
"""Voxels up to which growing is tried; a network that needs more is taken for one of fixed size."""

# one slice alone leaves a GPU idle
PIXELS = 2**18
"""Pixels of all slices that a 2-D network computes at a time, 16 of 128 x 128."""

WHOLE = 1e-6
"""Fraction of a voxel that rounding of nm may leave of a whole number."""

SAME_SCALE = 1e-6
"""Relative difference up to which two voxel sizes are one."""

Forward = Callable[[torch.Tensor], torch.Tensor]
"""Raw (windows, channels, z, y, x) in [0, 1] to logits (windows, classes, z, y, x)."""


@dataclass(frozen=True)
class Window:
    """Voxels that one forward pass takes and gives, z, y, x. Both have the same centre."""

    input: Patch
    output: Patch
    steps: tuple[tuple[int, int], ...]
    """For each axis the voxels by which input and output can grow; (0, 0) where they cannot."""
    agree: bool = True
    """Whether overlapping windows give the same values where they overlap."""
    overlap: float = 0.5  # nnU-Net's
    """Of neighbouring windows that do not agree, as a fraction of a window."""
    flat: int | None = None
    """Axis across which a 2-D network takes slices; windows have one voxel along it."""
    alone: bool = False
    """Whether the network takes one window at a time, such as one that normalises all it gets."""

    @property
    def unit(self) -> np.ndarray:
        """(3,) output voxels that windows may be apart: whole steps, and whole input voxels."""
        ratios = np.divide(self.output.scale, self.input.scale)
        units = []
        for (_, step_out), ratio in zip(self.steps, ratios, strict=True):
            units.append(step_out or _least_whole_multiple(ratio))
        return np.array(units)

    @property
    def stride(self) -> np.ndarray:
        """(3,) output voxels between windows: side by side if they agree, else overlapping."""
        size = np.array(self.output.shape)
        wanted = size if self.agree else size * (1 - self.overlap)
        units = np.maximum((wanted / self.unit).astype(int), 1)
        return np.minimum(units * self.unit, size)

    @property
    def at_once(self) -> int:
        """Slices of a 2-D network that are computed at a time; 1 for other networks."""
        if self.flat is None or self.input.scale[self.flat] != self.output.scale[self.flat]:
            return 1
        return max(1, PIXELS // math.prod(self.input.shape))

    def of_slices(self, count: int) -> Window:
        """Return the window of `count` slices of a 2-D network, side by side."""
        if self.flat is None or count == 1:
            return self
        input_shape = _grown(self.input.shape, self.flat, count - 1)
        output_shape = _grown(self.output.shape, self.flat, count - 1)
        return self._of_shapes(input_shape, output_shape)

    def holding(self, needed: Sequence[int] | np.ndarray) -> Window:
        """Return the window, grown to at least `needed` output voxels along axes that can grow."""
        n_in = self.input.shape
        n_out = self.output.shape
        for axis, (step_in, step_out) in enumerate(self.steps):
            if step_out == 0:
                continue
            times = max(0, math.ceil((needed[axis] - n_out[axis]) / step_out))
            n_in = _grown(n_in, axis, times * step_in)
            n_out = _grown(n_out, axis, times * step_out)
        return self._of_shapes(n_in, n_out)

    def _of_shapes(
        self, input_shape: tuple[int, int, int], output_shape: tuple[int, int, int]
    ) -> Window:
        """Return the window with other shapes."""
        return replace(
            self,
            input=replace(self.input, shape=input_shape),
            output=replace(self.output, shape=output_shape),
        )


def find_window(shape_of: ShapeOf, input: Patch, output: Patch) -> Window:
    """Return the window of a network; its steps are found by asking for shapes of outputs."""
    steps = tuple(_steps_along(axis, shape_of, input, output) for axis in range(3))
    return Window(input, output, steps)


def _steps_along(axis: int, shape_of: ShapeOf, input: Patch, output: Patch) -> tuple[int, int]:
    """Return the least growth of input and output along an axis in voxels; (0, 0) without any."""
    if input.shape[axis] == 1:
        return 0, 0  # a slice: 2-D networks have no such axis
    for step_in in range(1, LARGEST_STEP + 1):
        exact = step_in * input.scale[axis] / output.scale[axis]
        step_out = round(exact)
        if abs(exact - step_out) > WHOLE:
            continue
        if shape_of(_grown(input.shape, axis, step_in)) != _grown(output.shape, axis, step_out):
            continue
        # two steps too, since one larger size may fit by chance
        twice = shape_of(_grown(input.shape, axis, 2 * step_in))
        if twice == _grown(output.shape, axis, 2 * step_out):
            return step_in, step_out
    return 0, 0


def _grown(shape: tuple[int, int, int], axis: int, voxels: int) -> tuple[int, int, int]:
    """Return a shape that has `voxels` more along an axis."""
    z, y, x = (n + voxels * (i == axis) for i, n in enumerate(shape))
    return z, y, x


def with_agreement(
    window: Window, forward: Forward, device: torch.device, in_channels: int = 1
) -> Window:
    """Return the window with `agree` as measured.

    Two windows on noise, half a window apart, are compared where they overlap. The windows of a
    network of fixed size cannot be compared so; they are taken to agree if it gives less than it
    takes.
    """
    if not any(step_out for _, step_out in window.steps):
        is_smaller = window.output.extent < window.input.extent - WHOLE
        return replace(window, agree=bool(is_smaller.any()))
    step_in, step_out = np.array(window.steps).T
    # more than a step, so that two windows a step apart overlap
    used = window.holding(step_out + 1)
    n_in = np.array(used.input.shape)
    n_out = np.array(used.output.shape)
    times = np.maximum(n_out // 2 // np.maximum(step_out, 1), 1)
    shift_in = times * step_in
    shift_out = times * step_out
    nothing = np.zeros(3, int)
    noise = _noise((in_channels, *(n_in + shift_in).tolist()), device)
    first = forward(noise[:, :, *slices(nothing, n_in)]).float()[0]
    second = forward(noise[:, :, *slices(shift_in, n_in + shift_in)]).float()[0]
    shared = first[:, *slices(shift_out, n_out)]
    again = second[:, *slices(nothing, n_out - shift_out)]
    return replace(window, agree=_is_close(shared, again))


def _noise(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return (1, *shape) noise that grows brighter along each axis. shape: channels, z, y, x.

    In noise that is the same everywhere all windows have nearly one mean, and normalisation over a
    window would not show.
    """
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.rand(1, *shape, device=device, generator=generator)
    for axis in (2, 3, 4):
        ramp = torch.linspace(0.2, 1, noise.shape[axis], device=device)
        noise *= ramp.view(-1, *[1] * (4 - axis))
    return noise


def _is_close(shared: torch.Tensor, again: torch.Tensor) -> bool:
    """Return whether logits (classes, z, y, x) of the same voxels are equal but for rounding.

    Differences are compared with how much logits vary about their means: an output layer begins
    with weights near 0 on large biases, where padding changes logits by little of their size.
    """
    spread = (shared - shared.mean((1, 2, 3), keepdim=True)).abs().max()
    rounding = 1e-3 * spread + 1e-6 * shared.abs().max()
    return bool((shared - again).abs().max() <= rounding)


def _least_whole_multiple(ratio: float) -> int:
    """Return the least number up to LARGEST_STEP whose product with `ratio` is whole; else 1."""
    for number in range(1, LARGEST_STEP + 1):
        if abs(number * ratio - round(number * ratio)) < WHOLE:
            return number
    return 1
