"""What a network takes, gives and needs, found without computing."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

WORKSPACE = 2.5
"""Memory of a forward pass over that of the activations it holds at its peak; 2.5 for unet8 in fp32 on a CPU, 1.3 in bf16."""


ShapeOf = Callable[[tuple[int, ...]], tuple[int, ...] | None]
"""Output shape (z, y, x) of a network for an input shape; None where the network refuses it."""


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
        self.empty = {
            name: torch.empty_like(tensor, device="meta", requires_grad=False)
            for name, tensor in named
        }

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(self.model, self.empty, (raw,))


class _Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, in `peak` the most at any time."""

    def __init__(self):
        super().__init__()
        self.alive: set[int] = set()
        self.bytes = self.peak = 0

    def __torch_dispatch__(
        self, function: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        given = function(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, tuple | list) else (given,):
            if (
                isinstance(tensor, torch.Tensor)
                and id(storage := tensor.untyped_storage()) not in self.alive
            ):
                self._count(id(storage), storage.nbytes())
                weakref.finalize(storage, self._count, id(storage), -storage.nbytes())
        return given

    def _count(self, storage: int, size: int) -> None:
        self.alive ^= {storage}
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
