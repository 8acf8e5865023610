"""One forward pass: number type, memory layout, 2-D networks, networks with several outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.runtime import Precision


@dataclass(frozen=True)
class ForwardPass:
    """How raw goes through a network; the same in training, validation and prediction."""

    precision: Precision
    channels_last: bool
    learning: nn.Module | None = None
    """What learns goes through this instead of the network, whose weights it shares: the network by
    torch.compile, or as several processes train it. Validation and prediction do not: their patches
    and their mode would be compiled anew."""
    flat: int | None = None
    """Axis (0 is z) across which a 2-D network takes slices, of which there may be any number; the
    axis of size 1 unless given."""
    sections: int = 0
    """Axis across which a network of sections gets them; what it takes for z. Others have 0."""
    exclusive: tuple[int, ...] = ()
    """Numbers of the channels that have a softmax."""

    def __call__(self, model: nn.Module, raw: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, z, y, x) of raw (B, 1, z, y, x): the first output of the network.

        Their sigmoids are the probabilities, those of a softmax too.
        """
        return self.shown(self.outputs(model, raw)[0])

    def shown(self, logits: torch.Tensor) -> torch.Tensor:
        """Return an output of the network as logits of which the sigmoid is the probability.

        The logit of an exclusive channel is its own less that of all others together: so what
        follows, thresholds and means over windows and networks, need not know of a softmax.
        """
        if not self.exclusive:
            return logits
        of_softmax = logits[:, list(self.exclusive)].float()
        result = logits.clone()
        for number, channel in enumerate(self.exclusive):
            others = [other for other in range(len(self.exclusive)) if other != number]
            against = of_softmax[:, others].logsumexp(1)
            result[:, channel] = (of_softmax[:, number] - against).to(result.dtype)
        return result

    def outputs(self, model: nn.Module, raw: torch.Tensor) -> list[torch.Tensor]:
        """All outputs of the network, (B, classes, z, y, x) each, the finest first.

        Most networks have one; those with deep supervision give a list, tuple or dict. A 2-D
        network gets and gives patches without their axis of size 1.
        """
        network: Callable[[torch.Tensor], Any] = model
        if self.learning is not None and torch.is_grad_enabled():
            network = self.learning
        if self.sections:
            raw = raw.movedim(2 + self.sections, 2)
        flat = self._slices_across(model, raw)
        slices = 1 if flat is None else raw.shape[flat]
        if flat is not None:
            raw = _as_slices(raw, flat)
        if self.channels_last:
            raw = raw.contiguous(memory_format=_channels_last(raw.ndim))
        with self.precision.autocast():
            outputs = as_list(network(raw))
        if flat is not None:
            outputs = [_as_volume(output, flat, slices) for output in outputs]
        if self.sections:
            outputs = [output.movedim(2, 2 + self.sections) for output in outputs]
        return outputs

    def _slices_across(self, model: nn.Module, raw: torch.Tensor) -> int | None:
        """The axis of raw (B, 1, z, y, x) across which slices are taken; None for a 3-D network."""
        if not is_2d(model):
            return None
        return _flat_axis(raw) if self.flat is None else self.flat + 2


def in_float32(channels_last: bool = False, device: str = "cpu") -> ForwardPass:
    """A forward pass without rounding to a shorter number type."""
    return ForwardPass(Precision("fp32", device), channels_last)


def _as_slices(raw: torch.Tensor, axis: int) -> torch.Tensor:
    """(B, 1, z, y, x) as (B x slices, 1, ...) across an axis."""
    if raw.shape[axis] == 1:
        return raw.squeeze(axis)
    return raw.movedim(axis, 1).flatten(0, 1)


def _as_volume(output: torch.Tensor, axis: int, slices: int) -> torch.Tensor:
    """(B x slices, classes, ...) as (B, classes, z, y, x)."""
    if slices == 1:
        return output.unsqueeze(axis)
    return output.unflatten(0, (-1, slices)).movedim(1, axis)


def is_2d(model: nn.Module) -> bool:
    """Whether the network's convolutions are all two-dimensional."""
    modules = list(model.modules())
    has_2d = any(isinstance(module, nn.Conv2d) for module in modules)
    return has_2d and not any(isinstance(module, nn.Conv3d) for module in modules)


def keep_channels_last(model: nn.Module) -> nn.Module:
    """The model with its weights stored as channels last: same result, faster convolutions."""
    return model.to(memory_format=_channels_last(4 if is_2d(model) else 5))


def as_list(given: object) -> list[torch.Tensor]:
    """What a network gave, as a list of tensors. Raises UserError for what is no logits."""
    if isinstance(given, torch.Tensor) and not given.is_complex():
        return [given]
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list | tuple) and given:
        outputs = list(given)
        if all(isinstance(output, torch.Tensor) for output in outputs):
            return outputs
    raise UserError(
        f"the model's forward gives {_kind(given)}; "
        "return logits, or a list, tuple or dict of them with the finest first"
    )


def _kind(given: object) -> str:
    is_complex = isinstance(given, torch.Tensor) and given.is_complex()
    return "complex numbers" if is_complex else f"a {type(given).__name__}"


def _channels_last(axes: int) -> torch.memory_format:
    return torch.channels_last if axes == 4 else torch.channels_last_3d


def _flat_axis(raw: torch.Tensor) -> int | None:
    """The first spatial axis of size 1, if there is one."""
    for axis in (2, 3, 4):
        if raw.shape[axis] == 1:
            return axis
    return None
