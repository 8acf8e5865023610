"""How large a window of a network is, how it grows, and whether windows agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.data.samples.sampling import Patch
from common.data.volumes.ngff import slices
from common.model.shapes import ShapeOf

# five poolings by 2; COSEM's network, which pools by 3 and by 2, grows by 18
LARGEST_STEP = 32
"""Voxels up to which growing is tried; a network that needs more counts as one of a fixed size."""

PIXELS = 2**18
"""Of slices that a 2-D network computes at a time, 16 of 128 x 128: one alone leaves a GPU idle."""

WHOLE = 1e-6
"""Of a voxel: what rounding of nm leaves of a whole number."""

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
    """For each axis by how many voxels input and output can grow; (0, 0) where they cannot."""
    agree: bool = True
    """Whether overlapping windows give the same values where they overlap."""
    overlap: float = 0.5  # nnU-Net's
    """Of neighbouring windows that do not agree, as part of a window."""
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
        """Slices of a 2-D network that are computed at a time; 1 of other networks."""
        if self.flat is None or self.input.scale[self.flat] != self.output.scale[self.flat]:
            return 1
        return max(1, PIXELS // math.prod(self.input.shape))

    def of_slices(self, count: int) -> Window:
        """The window of so many slices of a 2-D network, side by side."""
        if self.flat is None or count == 1:
            return self
        taken = _grown(self.input.shape, self.flat, count - 1)
        given = _grown(self.output.shape, self.flat, count - 1)
        return replace(
            self, input=replace(self.input, shape=taken), output=replace(self.output, shape=given)
        )

    def holding(self, needed: Sequence[int] | np.ndarray) -> Window:
        """This window, grown to at least `needed` output voxels along the axes that can grow."""
        n_in = self.input.shape
        n_out = self.output.shape
        for axis, (step_in, step_out) in enumerate(self.steps):
            if step_out == 0:
                continue
            times = max(0, math.ceil((needed[axis] - n_out[axis]) / step_out))
            n_in = _grown(n_in, axis, times * step_in)
            n_out = _grown(n_out, axis, times * step_out)
        taken = replace(self.input, shape=n_in)
        given = replace(self.output, shape=n_out)
        return replace(self, input=taken, output=given)


def find_window(shape_of: ShapeOf, input: Patch, output: Patch) -> Window:
    """The window of a network and its steps, found by asking for the shapes that it gives."""
    steps = tuple(_steps_along(axis, shape_of, input, output) for axis in range(3))
    return Window(input, output, steps)


def _steps_along(axis: int, shape_of: ShapeOf, input: Patch, output: Patch) -> tuple[int, int]:
    """The least voxels by which input and output grow along an axis; (0, 0) if they do not."""
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
        given = shape_of(_grown(input.shape, axis, 2 * step_in))
        if given == _grown(output.shape, axis, 2 * step_out):
            return step_in, step_out
    return 0, 0


def _grown(shape: tuple[int, int, int], axis: int, voxels: int) -> tuple[int, int, int]:
    """A shape that is larger along one axis."""
    z, y, x = (n + voxels * (i == axis) for i, n in enumerate(shape))
    return z, y, x


def with_agreement(
    window: Window, forward: Forward, device: torch.device, in_channels: int = 1
) -> Window:
    """The window with `agree` as measured.

    Two windows on noise, half a window apart, are compared where they overlap. A network of a fixed
    size cannot be asked so; it agrees if it gives less than it takes.
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
    """(1, *shape) noise that grows brighter along each axis. shape: channels, z, y, x.

    Of noise that is the same everywhere two windows have nearly one mean, and normalisation over a
    window would not show.
    """
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.rand(1, *shape, device=device, generator=generator)
    for axis in (2, 3, 4):
        ramp = torch.linspace(0.2, 1, noise.shape[axis], device=device)
        noise *= ramp.view(-1, *[1] * (4 - axis))
    return noise


def _is_close(shared: torch.Tensor, again: torch.Tensor) -> bool:
    """Whether logits (classes, z, y, x) of the same voxels are equal but for rounding.

    Compared with how much they vary about their means: an output layer begins with weights near 0
    on large biases, where padding changes the logits by little of their size.
    """
    spread = (shared - shared.mean((1, 2, 3), keepdim=True)).abs().max()
    rounding = 1e-3 * spread + 1e-6 * shared.abs().max()
    return bool((shared - again).abs().max() <= rounding)


def _least_whole_multiple(ratio: float) -> int:
    """The least number whose multiple of `ratio` is whole; 1 if none up to LARGEST_STEP is."""
    for number in range(1, LARGEST_STEP + 1):
        if abs(number * ratio - round(number * ratio)) < WHOLE:
            return number
    return 1
