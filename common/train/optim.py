"""Optimiser, scheduler, weights of positive voxels, and the initial bias of the output layer."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from common.config.given import GivenOptimizer
from common.errors import UserError


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
    made: Any = scheduler
    given: dict[str, Any] = {}
    if isinstance(scheduler, functools.partial):
        made = scheduler.func
        given = scheduler.keywords
    if inspect.isclass(made) and issubclass(made, ReduceLROnPlateau) and "mode" not in given:
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


def positive_weights(foreground: np.ndarray, background: np.ndarray, cap: float) -> np.ndarray:
    """Return (classes,) float32 weights of positive voxels: background / foreground, at most `cap`.

    The arguments are voxel counts (classes,). The weight is 1 for a class that is nowhere positive
    or nowhere negative. The public toolbox has no cap; there, a class with one positive voxel gets
    a weight of up to 1e8.
    """
    weights = np.minimum(background / np.maximum(foreground, 1), cap)
    is_seen = (foreground > 0) & (background > 0)
    return np.where(is_seen, weights, 1.0).astype(np.float32)


def prior_logits(foreground: np.ndarray, background: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (classes,) float32: the constant logits with the least weighted cross-entropy.

    This is log(weight * foreground / background), from voxel counts and weights of positive voxels,
    (classes,) each. Counts below 1 are taken as 1.
    """
    odds = weights * np.maximum(foreground, 1) / np.maximum(background, 1)
    return np.log(odds).astype(np.float32)


@torch.no_grad()
def start_output_at(
    model: nn.Module,
    logits: np.ndarray,
    outputs: Sequence[Collection[str]] | None = None,
    *,
    factor: float = 0.01,
    ends: Sequence[Collection[str]] = (),
) -> None:
    """Initialise a network so that each of its outputs predicts about `logits` everywhere.

    The logits become the bias of the last convolution with one channel per class, and its weights
    are multiplied by `factor`. Source: Lin et al. 2017, focal loss, section 4.1. Raises
    UserError if there is no such layer with a bias.

    Args:
        model: the network, changed in place.
        logits: (classes,).
        outputs: for each output, the finest first, the names of the parameters that it depends on.
            Without it, there is one output that depends on all of them.
        factor: on the weights of these layers.
        ends: for each output the parameters of the layers that it is a sum of. Without it layers
            of 1x1x1 count, since others are as likely to be inner ones.
    """
    layers = _output_layers(model, len(logits), ends)
    biases = {f"{n}.bias".lstrip("."): m.bias for n, m in layers.items() if m.bias is not None}
    finest, *coarser = _biases_of_outputs(biases, outputs or [set(biases)])
    if not finest:
        raise UserError(
            f"init_output_to_prior: no trainable convolution with {len(logits)} channels and a "
            "bias ends the model; set init_output_to_prior = False"
        )
    for layer in layers.values():
        layer.weight.mul_(factor)
    for bias in biases.values():
        bias.zero_()
    for names in (finest, *coarser):
        if names:
            # a residual block adds up two such layers: the last one carries the logits
            bias = biases[names[-1]]
            bias.copy_(torch.from_numpy(logits).to(bias))


def _biases_of_outputs(
    biases: Collection[str], outputs: Sequence[Collection[str]]
) -> list[list[str]]:
    """Return the names of the biases that are each output's to set, the finest first.

    What a coarser output shares with the finest is the finest's.
    """
    finest, *coarser = outputs
    own = [[name for name in biases if name in finest]]
    for names in coarser:
        own.append([name for name in biases if name in names and name not in finest])
    return own


@torch.no_grad()
def calibrate_output(
    model: nn.Module,
    logits: np.ndarray,
    outputs: Sequence[Collection[str]],
    *,
    measure: Callable[[], list[torch.Tensor]],
    rms: float,
    ends: Sequence[Collection[str]] = (),
) -> None:
    """Scale what the weights of the output layers add to `logits` to a root mean square of `rms`.

    For each class by itself; the bias then makes up for the mean of it. The mean counts in the root
    mean square: without normalisation it is far larger than the deviation from it, and a step that
    changes all features alike moves it. After Mishkin and Matas 2016, all you need is a good init.

    Args:
        model: after `start_output_at` with factor 1, changed in place.
        logits: (classes,), the bias.
        outputs: as of start_output_at.
        measure: gives the logits of each output for a batch, as the model is now.
        rms: to reach.
        ends: as of start_output_at.
    """
    bias = torch.from_numpy(logits).view(1, -1, 1, 1, 1)
    every = _output_layers(model, len(logits), ends)
    of_outputs = _layers_of_outputs(every, outputs)
    for layers, given in zip(of_outputs, measure(), strict=True):
        added = given.float() - bias.to(given.device)
        size = added.square().mean((0, 2, 3, 4)).sqrt().clamp(min=1e-6)
        for layer in layers:
            layer.weight.mul_((rms / size).view(-1, *[1] * (layer.weight.ndim - 1)))
    for layers, given in zip(of_outputs, measure(), strict=True):
        mean = (given.float() - bias.to(given.device)).mean((0, 2, 3, 4))
        with_bias = [layer.bias for layer in layers if layer.bias is not None]
        if with_bias:
            with_bias[-1].sub_(mean)


def _layers_of_outputs(
    layers: dict[str, Any], outputs: Sequence[Collection[str]]
) -> list[list[Any]]:
    """Return the layers that each output alone ends in, but for those of outputs before it."""
    seen: set[str] = set()
    of_outputs = []
    for names in outputs:
        new = set(names) - seen
        of_outputs.append([m for n, m in layers.items() if f"{n}.weight".lstrip(".") in new])
        seen |= new
    return of_outputs


def _output_layers(
    model: nn.Module, classes: int, ends: Sequence[Collection[str]]
) -> dict[str, Any]:
    """The trainable layers by name that give one channel per class: those of `ends`, or 1x1x1."""
    named = set().union(*ends)
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if not _has_channels(module, classes):
            continue
        is_end = f"{name}.weight".lstrip(".") in named if named else _is_pointwise(module)
        if is_end:
            layers[name] = module
    return layers


def _has_channels(module: nn.Module, classes: int) -> bool:
    """Whether a layer is trainable and gives one channel per class."""
    if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        return False
    # weights of a transposed convolution have the channels of its input first
    is_turned = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return len(module.weight) == classes and module.weight.requires_grad and not is_turned


def _is_pointwise(module: nn.Module) -> bool:
    """Whether a convolution, or a linear layer, looks at one voxel alone."""
    kernel = getattr(module, "kernel_size", ())
    return max(kernel, default=1) == 1
