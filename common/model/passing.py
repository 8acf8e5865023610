"""Take a network through a pass that leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Context manager: the network is in training mode, or in eval mode; the modes come back."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def in_training_mode(model: nn.Module) -> Iterator[None]:
    """Context manager: the network is in training mode; modes, buffers and gradients come back.

    The network itself, since not every one can be copied: one that holds a lock or an open file
    cannot, nor can one with torch.nn.utils.weight_norm.
    """
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = []
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not is_lazy(buffer):
                buffers.append((module, name, buffer, buffer.detach().clone()))
    for parameter in gradients:
        parameter.grad = None
    try:
        with in_mode(model, training=True):
            yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                module._buffers[name] = buffer.copy_(values)
