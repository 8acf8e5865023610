"""The network of an experiment, its shapes checked."""

from __future__ import annotations

import torch
from torch import nn

from common import runtime
from common.config.settings import TrainConfig
from common.errors import UserError
from common.model.forward import ForwardPass, keep_channels_last


def build_model(config: TrainConfig, device: torch.device) -> nn.Module:
    """The network on its device, its shapes checked. ValueError with the shape to write if they do not fit the settings."""
    try:
        model = config.build_model(config.classes, **config.model_kwargs).to(device)
    except TypeError as error:
        raise UserError(
            f"{config.folder}: build_model(classes, **{config.model_kwargs}) does not work ({error}); change model_kwargs"
        ) from error
    if config.channels_last:
        model = keep_channels_last(model)
    raw = torch.zeros(1, 1, *config.input_array_info["shape"], device=device)
    with torch.no_grad():
        forward = ForwardPass(runtime.Precision("fp32", device.type), config.channels_last)
        try:
            shape = tuple(forward(model, raw).shape)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{config.folder}: the model does not take raw of {tuple(raw.shape[2:])} voxels ({reason}); change input_array_info"
            ) from error
    wanted = (1, len(config.classes), *config.target_array_info["shape"])
    if shape != wanted:
        hint = (
            f"target_array_info['shape'] = {shape[2:]}"
            if shape[1] == wanted[1] and len(shape) == 5
            else f"a model with {wanted[1]} output channels"
        )
        raise UserError(
            f"{config.folder}: the model gives {shape[1:]} for raw {tuple(raw.shape[2:])}, and the settings ask for {wanted[1:]}; write {hint}"
        )
    return model
