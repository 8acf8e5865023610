"""RAdam with decoupled weight decay, schedulers, and how often positive voxels count."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from common.errors import UserError


def build_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, optimizer: Callable | None = None
) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters; biases and other vectors are not decayed.

    The original baselines asked RAdam for decoupled decay and left the decay itself at 0; here it is a setting above 0.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optimizer is not None:
        return optimizer(groups, lr=learning_rate, weight_decay=weight_decay)
    return torch.optim.RAdam(
        groups, lr=learning_rate, weight_decay=weight_decay, decoupled_weight_decay=True
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    scheduler: Callable | None,
    kwargs: dict,
    higher_is_better: bool,
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The scheduler, stepped after each epoch; ReduceLROnPlateau is told which way is better unless the settings say it."""
    if scheduler is None:
        return None
    if scheduler is torch.optim.lr_scheduler.ReduceLROnPlateau:
        kwargs = {"mode": "max" if higher_is_better else "min", **kwargs}
    return scheduler(optimizer, **kwargs)


def positive_weights(foreground: np.ndarray, background: np.ndarray, cap: float) -> np.ndarray:
    """(classes,) float32 background / foreground, at most `cap`; 1 for a class without any positive voxel.

    The public toolbox has no cap, and a class with one positive voxel gets a weight of up to 1e8 there.
    """
    weights = np.minimum(background / np.maximum(foreground, 1), cap)
    return np.where((foreground > 0) & (background > 0), weights, 1.0).astype(np.float32)


def prior_logits(foreground: np.ndarray, background: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(classes,) float32 logits of the constant prediction with the least weighted cross-entropy on these voxel counts.

    That is log(weight * foreground / background). A class never seen positive is given one positive voxel.
    """
    return np.log(weights * np.maximum(foreground, 1) / np.maximum(background, 1)).astype(
        np.float32
    )


@torch.no_grad()
def start_output_at(model: nn.Module, logits: np.ndarray) -> None:
    """Make the first prediction `logits` everywhere: bias of the last convolution with one channel a class, weights x 0.01.

    Source of the recipe: Lin et al. 2017, focal loss, section 4.1. Raises ValueError if no such layer with a bias is found.
    """
    outputs = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        and module.weight.shape[0] == len(logits)
        and module.weight.requires_grad
        and max(module.weight.shape[2:], default=1) == 1
    ]
    biased = [module for module in outputs if module.bias is not None]
    if not biased:
        raise UserError(
            f"init_output_to_prior: no trainable 1x1x1 convolution with {len(logits)} channels and a bias ends the model; "
            "set init_output_to_prior = False"
        )
    for module in outputs:
        module.weight.mul_(0.01)
    biased[-1].bias.copy_(torch.from_numpy(logits).to(biased[-1].bias))
    for module in biased[:-1]:
        module.bias.zero_()
