"""The forward pass of training by torch.compile, or without it where that does not work."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from common.model.forward import ForwardPass
from common.model.passing import in_training_mode

BACKEND = "inductor"
"""Torch's own, which writes C++ on a CPU and Triton on a GPU."""


def try_compiling(
    forward: ForwardPass, model: nn.Module, raw: torch.Tensor
) -> tuple[ForwardPass, str]:
    """Return a forward pass that learns with the network compiled, and "".

    Where that fails, the forward pass as it was, and a sentence that says why. The network keeps
    its names, weights and running statistics: the compiled one shares them.

    Args:
        forward: how raw goes through the network.
        model: the network in training mode, on its device.
        raw: (B, 1, z, y, x) of the shape of a training batch; another one would be compiled again.
    """
    devices = [raw.device] if raw.device.type == "cuda" else []
    try:
        # the code is made at the first call, that of the gradient at the latest in its first use
        with torch.random.fork_rng(devices), in_training_mode(model):
            compiled = torch.compile(model, backend=BACKEND, dynamic=False)
            assert isinstance(compiled, nn.Module)
            attempt = replace(forward, learning=compiled)
            means = [output.float().mean() for output in attempt.outputs(model, raw)]
            torch.stack(means).sum().backward()
    except Exception as error:
        # no compiler, a network that torch cannot trace, or a mistake in it: the last shows as
        # itself in the pass without compiling, which comes next
        return forward, (
            f"compile: the network cannot be compiled ({_reason(error)}), and is trained without; "
            "set compile = False to leave this out"
        )
    return attempt, ""


def _reason(error: Exception) -> str:
    """What went wrong, in a line; torch wraps what its compiler raised."""
    cause = getattr(error, "inner_exception", error)
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
