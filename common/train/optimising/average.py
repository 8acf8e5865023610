"""The moving average of a network's weights over the steps of a run.

It is what validates, chooses best.pt and predicts; the weights that are trained go on by
themselves. Source: Polyak and Juditsky 1992; the exponential form as in Tarvainen and Valpola 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from common.config.settings import TrainConfig
from common.errors import UserError, type_and_reason

PREFIX = "module."
"""What AveragedModel puts before the name of each tensor of the network."""


def new_average(config: TrainConfig, model: nn.Module) -> AveragedModel | None:
    """Return an average that begins with the weights of `model`; None with ema_decay = 0.

    Running statistics of batch normalisation are averaged like weights; whole numbers, such as the
    count of batches, are taken over. Raises UserError for a network that cannot be copied.
    """
    if not config.ema_decay:
        return None

    def follow(averages: Any, weights: Any, _: Tensor | int) -> None:
        # the counter itself lies on the CPU: reading the argument would wait for the device
        decay = decay_after(int(average.n_averaged), config.ema_decay)
        move_towards(averages, weights, 1 - decay)

    try:
        average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    except Exception as error:  # each part of a network says in its own way that it has no copy
        raise UserError(
            f"{config.folder}: ema_decay = {config.ema_decay} needs a copy of the network, which "
            f"cannot be made ({type_and_reason(error)}); set ema_decay = 0, or take out "
            "what cannot be copied (of weight_norm torch.nn.utils.parametrizations has another)"
        ) from error
    average.module.eval()
    return average


def decay_after(steps: int, decay: float) -> float:
    """Return the factor on an average of the weights of `steps` steps.

    It is smaller in the first steps, so that an average over a short run leaves the initial weights
    behind. Source: tf.train.ExponentialMovingAverage, num_updates.
    """
    return min(decay, (1 + steps) / (10 + steps))


@torch.no_grad()
def move_towards(averages: list[Tensor], weights: list[Tensor], fraction: float) -> None:
    """Move averages, in place, by a fraction of the way to the weights; whole numbers all of it.

    All tensors of a call have the same type.
    """
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, weights, fraction)
    else:
        torch._foreach_copy_(averages, weights)


def begin_again(average: AveragedModel | None, model: nn.Module) -> None:
    """Make an average, if there is one, begin with the weights that a model has now."""
    if average is not None:
        average.module.load_state_dict(model.state_dict())
        average.n_averaged.zero_()


def averaged_weights(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the average in the content of a checkpoint, by the names of the network's tensors.

    None if the run kept none.
    """
    if not saved.get("ema"):
        return None
    tensors = saved["ema"].items()
    return {name.removeprefix(PREFIX): x for name, x in tensors if name.startswith(PREFIX)}
