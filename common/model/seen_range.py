"""Which range of raw a network was trained on, by what its first batch normalisation remembers.

Weights alone do not say whether raw was given in [0, 1] or as it is stored, 0 to 255, and a network
with batch normalisation that gets the other one predicts nothing of use.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.config.settings import TrainConfig
from common.model.forward import in_float32
from common.model.passing import in_mode
from common.model.shapes import Shape

# the sample here and real EM differ by up to 3 in what comes out of a first convolution, [0, 1] and
# z-scores by 4 to 10, [0, 1] and 0 to 255 by 255
FAR_OFF = 25.0
"""Ratio of deviations from which the ranges are taken to differ."""


class _Reached(Exception):
    """The forward pass has come to its first batch normalisation."""


def notice(config: TrainConfig, model: nn.Module) -> str:
    """Return a sentence about weights that were trained on raw of another range, or "".

    model: of the experiment, with these weights; it is left as it is.
    """
    if config.raw_normalization not in ("range", "values"):
        return ""
    white = config.raw_range[1] if config.raw_range else 255
    as_stored = config.raw_normalization == "values"
    given = white if as_stored else 1
    sample = given * _sample(config.input_array_info["shape"])
    if config.input_channels:
        beside = torch.zeros(1, config.in_channels - 1, *sample.shape[2:])
        sample = torch.cat([sample, beside], dim=1)
    seen = ratio(model, sample, config.channels_last)
    if seen is None or 1 / FAR_OFF < seen < FAR_OFF:
        return ""
    text = (
        f"its first batch normalisation has seen {seen:.3g} times what raw of 0 to {given:g} makes"
    )
    if (seen < 1) != as_stored:
        return text  # the other range would be further off
    other = 1 if as_stored else white
    return (
        f"{text}: it was probably trained on raw of 0 to {other:g}; set raw_normalization = "
        f"'{'range' if as_stored else 'values'}'"
    )


def ratio(model: nn.Module, raw: torch.Tensor, channels_last: bool) -> float | None:
    """Return how many times larger what a network has seen is than what raw makes of it.

    By the deviation of what comes to its first batch normalisation, the median over channels. None
    without one, or if it keeps no statistics.

    raw: (B, 1, z, y, x).
    """
    found: list[float] = []

    def compare(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if layer.running_var is not None:
            axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
            given = inputs[0].float().var(axes).clamp_min(1e-12)
            found.append(float((layer.running_var / given).median().sqrt()))
        raise _Reached

    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return None
    hooks = [layer.register_forward_pre_hook(compare) for layer in layers]
    device = next(model.parameters()).device
    forward = in_float32(channels_last, device.type)
    try:
        with in_mode(model, training=False), torch.inference_mode(), contextlib.suppress(_Reached):
            forward.outputs(model, raw.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _sample(shape: Shape) -> torch.Tensor:
    """Raw (1, 1, z, y, x) in [0, 1]: noise on a ramp along each axis."""
    generator = torch.Generator().manual_seed(0)
    raw = 0.3 * torch.rand(1, 1, *shape, generator=generator)
    for axis in (2, 3, 4):
        ramp = torch.linspace(0, 0.2, raw.shape[axis])
        raw += ramp.view(-1, *[1] * (4 - axis))
    return raw
