"""The network of an experiment, its shapes checked."""

from __future__ import annotations

import re

import torch
from torch import nn

from common import runtime
from common.config.settings import TrainConfig
from common.errors import UserError
from common.files import use_cache
from common.model.forward import ForwardPass, keep_channels_last
from common.model.shapes import LARGEST_STEP, Shape, Shapes, grown

SPEAKS_OF_SHAPES = re.compile(r"\b(sizes?|shapes?|dimensions?|[345]D|larger|smaller)\b", re.I)
"""How torch's errors about a tensor's shape differ from others of the same type."""


def new_model(config: TrainConfig) -> nn.Module:
    """The network as the user's build_model gives it, with pretrained weights kept in cache_path.

    An error of the user's own code comes through as it is.
    """
    use_cache(config.path("cache_path"))
    model = config.build_model(config.classes, **config.model_kwargs)
    if isinstance(model, type):
        raise UserError(
            f"{config.folder}: build_model gives the class {model.__name__} itself; "
            f"call it: return {model.__name__}(...)"
        )
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{config.folder}: build_model gives a {type(model).__name__}; return a torch.nn.Module"
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(
                f"{config.folder}: build_model gives {parameter.dtype} weights, '{name}' for one; "
                "return model.float() (the setting precision makes the forward pass faster)"
            )
    return model


def build_model(config: TrainConfig, device: torch.device) -> nn.Module:
    """The network of a configuration on its device.

    Raises UserError with the shape to write if its shapes do not fit the settings.
    """
    model = new_model(config)
    model = model.to(device)
    if config.channels_last:
        model = keep_channels_last(model)
    _check_shapes(config, model, device)
    return model


def _check_shapes(config: TrainConfig, model: nn.Module, device: torch.device) -> None:
    """Raise UserError unless the network makes the target patch of the raw patch."""
    raw_shape = tuple(config.input_array_info["shape"])
    given = _logits_shape(config, model, device)
    wanted = (1, len(config.classes), *config.target_array_info["shape"])
    if given == wanted:
        return
    if len(given) == len(wanted) and given[1] == wanted[1]:
        hint = f"target_array_info['shape'] = {given[2:]}"
    else:
        hint = f"a model with {wanted[1]} output channels"
    raise UserError(
        f"{config.folder}: the model gives {given[1:]} for raw {raw_shape}, "
        f"and the settings ask for {wanted[1:]}; write {hint}"
    )


def _logits_shape(config: TrainConfig, model: nn.Module, device: torch.device) -> Shape:
    """Shape of the logits for the raw patch of the settings. UserError if it is refused."""
    raw_shape = tuple(config.input_array_info["shape"])
    forward = ForwardPass(runtime.Precision("fp32", device.type), config.channels_last)
    try:
        return Shapes(model, forward).logits_shape(raw_shape)
    except Exception:  # it refuses this size, or cannot be run without values: a real pass tells
        raw = torch.zeros(1, 1, *raw_shape, device=device)
    try:
        with torch.no_grad():
            return tuple(forward(model, raw).shape)
    except UserError as error:
        raise UserError(f"{config.folder}: {error}") from error
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        # any other error is a bug in the network, and advice about its input would mislead
        if not SPEAKS_OF_SHAPES.search(reason):
            raise
        raise UserError(
            f"{config.folder}: the model does not take raw of {raw_shape} voxels ({reason}); "
            f"{_sizes_it_takes(Shapes(model, forward), raw_shape)}"
        ) from error


def _sizes_it_takes(shapes: Shapes, raw_shape: Shape) -> str:
    """What to write for a raw shape that a network does not take: the nearest that it does."""
    for step in range(1, LARGEST_STEP + 1):
        for shape in (grown(raw_shape, step), grown(raw_shape, -step)):
            if min(shape) > 0 and shapes.takes(shape):
                return (
                    f"change input_array_info: it takes {shape} and gives {shapes.output(shape)}, "
                    "which is the shape of target_array_info"
                )
    return "change input_array_info"
