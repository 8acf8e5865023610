"""The layers that a network's outputs come from, and where they begin."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from common.errors import UserError
from common.model.activation import WITHOUT_EFFECT
from common.model.shapes import OnMeta, Outputs, meta_patches

LAYERS = ("ConvolutionBackward0", "AddmmBackward0")
"""Autograd's names of convolutions and linear layers."""

THROUGH = (
    *WITHOUT_EFFECT,
    "AddBackward0",
    "UpsampleNearest2DBackward0",
    "UpsampleNearest3DBackward0",
    "UpsampleBilinear2DBackward0",
    "UpsampleTrilinear3DBackward0",
)
"""Operations after a layer that leave what is the same everywhere as it is, or add it up."""


def output_layers(
    model: nn.Module, outputs: Outputs, shape: Sequence[int], in_channels: int = 1
) -> list[set[str]]:
    """For each output of a network the names of the parameters of the layers that it is a sum of.

    Read from the graph of the gradient; nothing is computed: the network runs on the meta device.
    An empty set for an output that comes from something else than convolutions; [] for a network
    that cannot be run there.

    shape: of raw, (z, y, x) voxels.
    """
    on_meta = OnMeta(model)
    names = {id(tensor): name for name, tensor in on_meta.empty.items()}
    try:
        given = outputs(on_meta, meta_patches(shape, in_channels))
    except Exception:  # a network that needs values raises whatever it likes
        return []
    return [_parameters(output.grad_fn, names) for output in given]


def _parameters(last: Any, names: dict[int, str]) -> set[str]:
    """The parameters of the layers that an operation's result comes from; none if of another."""
    found: set[str] = set()
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node is None:  # a constant, which a layer's result is added to
            continue
        before = [each for each, _ in node.next_functions]
        if node.name() in LAYERS:
            variables = [getattr(each, "variable", None) for each in before]
            found |= {names[id(tensor)] for tensor in variables if id(tensor) in names}
        elif node.name() in THROUGH:
            waiting += before
        else:
            return set()
    return found


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
    layers = _layers_of_channels(model, len(logits), ends)
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
    every = _layers_of_channels(model, len(logits), ends)
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


def _layers_of_channels(
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
