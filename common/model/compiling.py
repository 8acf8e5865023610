"""The forward pass of training by torch.compile, or without it where that does not work."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from common.model.forward import ForwardPass

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
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [raw.device] if raw.device.type == "cuda" else []
    try:
        # the code is made at the first call, that of the gradient at the latest in its first use
        with torch.random.fork_rng(devices):
            compiled = torch.compile(model, backend=BACKEND, dynamic=False)
            assert isinstance(compiled, nn.Module)
            attempt = replace(forward, learning=compiled)
            _pass(attempt, model, raw)
    except Exception as error:
        # no compiler, a network that torch cannot trace, or a mistake in it: the last shows as
        # itself in the pass without compiling, which comes next
        return forward, (
            f"compile: the network cannot be compiled ({_reason(error)}), and is trained without; "
            "set compile = False to leave this out"
        )
    finally:
        model.zero_grad(set_to_none=True)
        _put_back(model, buffers)
    return attempt, ""


def _pass(forward: ForwardPass, model: nn.Module, raw: torch.Tensor) -> None:
    outputs = forward.outputs(model, raw)
    losses = [output.float().mean() for output in outputs]
    torch.stack(losses).sum().backward()


@torch.no_grad()
def _put_back(model: nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _reason(error: Exception) -> str:
    """What went wrong, in a line; torch wraps what its compiler raised."""
    cause = getattr(error, "inner_exception", error)
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
