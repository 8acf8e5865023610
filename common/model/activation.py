"""Whether a network gives logits, or what an activation makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.model.passing import in_mode
from common.model.shapes import OnMeta, Outputs, Shape, meta_patches

CLAMP = "clamp to 0 and above"

ACTIVATIONS = {
    "SigmoidBackward0": "a sigmoid",
    "HardsigmoidBackward0": "a hard sigmoid",
    "LogSigmoidBackward0": "a log-sigmoid",
    "SoftmaxBackward0": "a softmax",
    "LogSoftmaxBackward0": "a log-softmax",
    "ReluBackward0": "a ReLU",
    "TanhBackward0": "a tanh",
    CLAMP: "a clamp to 0 and above",
}
"""Autograd's names of operations that leave no logits, as in a sentence."""

WITHOUT_EFFECT = (
    "ToCopyBackward0",
    "CloneBackward0",
    "ViewBackward0",
    "ReshapeAliasBackward0",
    "UnsafeViewBackward0",
    "SqueezeBackward1",
    "UnsqueezeBackward0",
    "SliceBackward0",
    "PermuteBackward0",
    "AliasBackward0",
)
"""Operations that move values and do not change them."""


def notice(model: nn.Module, outputs: Outputs, shape: Shape, in_channels: int = 1) -> str:
    """Return a sentence about a network that ends in an activation; "" if none is found.

    In eval mode, too: many networks give logits to the loss alone. Nothing is computed: the
    network runs on the meta device, and its last operation is read from the graph of the gradient.

    Args:
        model: the network, left as it is.
        outputs: as of a ForwardPass.
        shape: of raw, (z, y, x) voxels.
        in_channels: that the network takes.
    """
    raw = meta_patches(shape, in_channels, requires_grad=True)
    with in_mode(model, training=True):
        while_training = _activation(model, outputs, raw)
    with in_mode(model, training=False):
        otherwise = _activation(model, outputs, raw)
    found = while_training or otherwise
    if not found:
        return ""
    when = "" if while_training else " in eval mode"
    return (
        f"the network ends in {found}{when}, and its outputs are taken for logits: the loss, "
        "validation and predictions apply a sigmoid to them and take values above 0 for positive; "
        "leave the activation out"
    )


def _activation(model: nn.Module, outputs: Outputs, raw: torch.Tensor) -> str:
    """Return the activation that the first output ends in, or ""."""
    try:
        with torch.enable_grad():
            logits = outputs(OnMeta(model), raw)[0]
    except Exception:  # a network that needs values raises whatever it likes
        return ""
    return ACTIVATIONS.get(_last_operation(logits), "")


def _last_operation(tensor: torch.Tensor) -> str:
    """Return autograd's name of the operation that gave the values of a tensor; "" if none."""
    node: Any = tensor.grad_fn
    while node is not None and node.name() in WITHOUT_EFFECT:
        node = node.next_functions[0][0]
    if node is None:
        return ""
    if node.name() == "ClampBackward1" and node._saved_min is not None and node._saved_min >= 0:
        return CLAMP
    return node.name()
