"""Optimiser and scheduler: how they are built and stepped."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from common.config.given import GivenOptimizer


def build_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, optimizer: Callable | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser over the trainable parameters, by default RAdam.

    Weight decay is decoupled; it applies to weights, not to biases and other parameters with one
    axis. The original baselines asked RAdam for decoupled decay and left its factor at 0; here it
    is the setting weight_decay. `optimizer` is called with the two parameter groups, `lr` and
    `weight_decay`. One that a configuration made as an instance has groups of its own.
    """
    if isinstance(optimizer, GivenOptimizer):
        return optimizer.over(model, lr=learning_rate, weight_decay=weight_decay)
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim <= 1]
    groups = []
    if weights:
        groups.append({"params": weights, "weight_decay": weight_decay})
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    if optimizer is not None:
        return optimizer(groups, lr=learning_rate, weight_decay=weight_decay)
    return torch.optim.RAdam(
        groups, lr=learning_rate, weight_decay=weight_decay, decoupled_weight_decay=True
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    scheduler: Callable | None,
    kwargs: dict[str, Any],
    higher_is_better: bool,
) -> LRScheduler | None:
    """Return scheduler(optimizer, **kwargs); None without one.

    ReduceLROnPlateau gets the mode "max" or "min" of what it will be stepped with, unless a mode is
    given.
    """
    if scheduler is None:
        return None
    kind: Any = scheduler
    given: dict[str, Any] = {}
    if isinstance(scheduler, functools.partial):
        kind = scheduler.func
        given = scheduler.keywords
    is_plateau = inspect.isclass(kind) and issubclass(kind, ReduceLROnPlateau)
    if is_plateau and "mode" not in given:
        kwargs = {"mode": "max" if higher_is_better else "min", **kwargs}
    return scheduler(optimizer, **kwargs)


def step_scheduler(scheduler: LRScheduler | None, metric: float) -> None:
    """Step the scheduler, after an epoch or an iteration; ReduceLROnPlateau gets `metric`.

    It is not stepped without one (NaN): to it that would be an epoch without an improvement.
    """
    if scheduler is None:
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        if math.isfinite(metric):
            scheduler.step(metric)
    else:
        scheduler.step()


def count_as_stepped(optimizer: torch.optim.Optimizer) -> None:
    """Let a scheduler be stepped though the optimiser was not, in this call or in this step.

    torch would warn that they are called in the wrong order.
    """
    optimizer._opt_called = True  # type: ignore[attr-defined]


def refuse_other_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if what an optimiser of torch keeps of its parameters cannot be of them.

    Its load_state_dict takes anything, and the next step fails, or does not.
    """
    kept = [(parameter, optimizer.state[parameter]) for parameter in optimizer.state]
    names = {frozenset(values) for _, values in kept}
    if len(names) > 1:
        raise ValueError("the same is not kept of all parameters")
    for parameter, values in kept:
        for name, value in values.items():
            # averages of the gradient and of its square, of any optimiser that calls them so
            is_average = name in ("exp_avg", "exp_avg_sq", "momentum_buffer")
            if is_average and value is not None and value.shape != parameter.shape:
                shapes = f"{tuple(value.shape)} for {tuple(parameter.shape)}"
                raise ValueError(f"{name} has the shape {shapes}")


@contextmanager
def at_fraction(optimizer: torch.optim.Optimizer, fraction: float) -> Iterator[None]:
    """Context manager: lower all learning rates to a fraction of what the scheduler says."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * fraction
    yield
    # schedulers compute a rate from the one before it
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def warmed_up(iteration: int, warmup_iterations: int) -> float:
    """Return the fraction of the learning rate in the step after `iteration`.

    It rises in a line to 1 in the last step of the warm-up. Source: Goyal et al. 2017, section 2.2,
    gradual warm-up.
    """
    return min(1.0, (iteration + 1) / max(warmup_iterations, 1))
