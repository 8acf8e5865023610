"""The network of an experiment, its shapes checked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from common.config.settings import TrainConfig
from common.errors import UserError
from common.files import use_cache
from common.model.forward import ForwardPass, in_float32, is_2d, keep_channels_last
from common.model.shapes import LARGEST_STEP, OnMeta, Shape, Shapes, grown, meta_patches

SPEAKS_OF_SHAPES = re.compile(r"\b(sizes?|shapes?|dimensions?|[345]D|larger|smaller)\b", re.I)
"""How torch's errors about a tensor's shape differ from others of the same type."""

UNEXPECTED = re.compile(r"got an unexpected keyword argument '(?P<name>\w+)'")
"""What Python says where a function does not take a keyword."""

OF_CHANNELS = re.compile(r"\bchannels?\b")
"""What torch's layers say where a tensor has more or fewer than their weights."""

CHANNELS_WANTED = re.compile(r"to have (\d+) channels, but got (\d+) channels")
"""How its convolutions say how many."""


def new_model(config: TrainConfig) -> nn.Module:
    """The network as the user's build_model gives it, with pretrained weights kept in cache_path.

    An error of the user's own code comes through as it is.
    """
    use_cache(config.path("cache_path"))
    model = _called(config)
    if isinstance(model, type):
        raise UserError(
            f"{config.folder}: build_model gives the class {model.__name__} itself; "
            f"call it: return {model.__name__}(...)"
        )
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{config.folder}: build_model gives a {type(model).__name__}; return a torch.nn.Module"
        )
    if _is_lazy(model):
        _give_shapes(config, model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(
                f"{config.folder}: build_model gives {parameter.dtype} weights, '{name}' for one; "
                "return model.float() (the setting precision makes the forward pass faster)"
            )
    return model


def _called(config: TrainConfig) -> object:
    """What build_model gives.

    Raises UserError for a keyword that it hands on to a function which does not take it. One that
    build_model itself does not take is told with the settings.
    """
    keywords = dict(config.model_kwargs)
    if config.input_channels:
        keywords["in_channels"] = config.in_channels
    try:
        return config.build_model(config.channels, **keywords)
    except TypeError as error:
        unexpected = UNEXPECTED.search(str(error))
        if not unexpected or unexpected["name"] not in keywords:
            raise
        name = unexpected["name"]
        where = f"model_kwargs = {config.model_kwargs}"
        if name not in config.model_kwargs:
            where = f"input_channels = {config.input_channels}"
        raise UserError(
            f"{config.folder}: {where}: {error}, which build_model handed on; leave it out, or "
            f"write a model that takes {name}"
        ) from error


def _give_shapes(config: TrainConfig, model: nn.Module) -> None:
    """Run a network of lazy modules once, by which their weights get shapes and values."""
    raw = torch.zeros(1, config.in_channels, *config.input_array_info["shape"])
    forward = in_float32()
    with torch.no_grad(), _in_sentences(config, model, forward):
        forward.outputs(model, raw)
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise UserError(
            f"{config.folder}: the weights '{lazy[0]}' of a lazy module have no shape, as the "
            "network does not use it in training; leave the module out, or give its channels"
        )
    for module in model.modules():
        # of raw that is 0 throughout
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()


def build_model(config: TrainConfig, device: torch.device) -> nn.Module:
    """The network of a configuration on its device.

    Raises UserError with the shape to write if its shapes do not fit the settings.
    """
    model = new_model(config)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(
            f"{config.folder}: build_model gives weights on the device 'meta', which hold nothing; "
            "build them on the CPU"
        )
    model = model.to(device)
    if config.channels_last:
        model = keep_channels_last(model)
    _check_shapes(config, model, device)
    return model


def _check_shapes(config: TrainConfig, model: nn.Module, device: torch.device) -> None:
    """Raise UserError unless the network makes the target patch of the raw patch.

    Further outputs may have fewer voxels.
    """
    raw_shape = tuple(config.input_array_info["shape"])
    given, *further = _output_shapes(config, model, device)
    wanted = (1, len(config.channels), *config.target_array_info["shape"])
    if given != wanted:
        if len(given) == len(wanted) and given[1] == wanted[1]:
            hint = f"target_array_info['shape'] = {given[2:]}"
        else:
            hint = f"a model with {wanted[1]} output channels"
        raise UserError(
            f"{config.folder}: the model gives {given[1:]} for raw {raw_shape}, "
            f"and the settings ask for {wanted[1:]}; write {hint}"
        )
    for number, shape in enumerate(further, 2):
        if len(shape) != len(wanted) or shape[:2] != wanted[:2]:
            raise UserError(
                f"{config.folder}: output {number} of the model has the shape {shape[1:]}, and the "
                f"first {given[1:]}; give all of them {wanted[1]} channels and three axes of "
                "voxels, or return the first alone"
            )


def _output_shapes(config: TrainConfig, model: nn.Module, device: torch.device) -> list[Shape]:
    """Shapes of all outputs for the raw patch of the settings. UserError if it is refused."""
    raw_shape = tuple(config.input_array_info["shape"])
    forward = in_float32(config.channels_last, device.type)
    try:
        with torch.inference_mode():
            # two, since batch normalisation refuses one patch that it has pooled to one voxel
            two = meta_patches(raw_shape, config.in_channels, count=2)
            outputs = forward.outputs(OnMeta(model), two)
    except Exception:  # it refuses this size, or cannot be run without values: a real pass tells
        raw = torch.zeros(1, config.in_channels, *raw_shape, device=device)
        with torch.no_grad(), _in_sentences(config, model, forward):
            outputs = forward.outputs(model, raw)
    return [(1, *output.shape[1:]) for output in outputs]


@contextlib.contextmanager
def _in_sentences(config: TrainConfig, model: nn.Module, forward: ForwardPass) -> Iterator[None]:
    """Raise what a network does not take as UserError, with what it does."""
    raw_shape = tuple(config.input_array_info["shape"])
    try:
        yield
    except UserError as error:
        raise UserError(f"{config.folder}: {error}") from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        # any other error is a bug in the network, and advice about its input would mislead
        is_of_shapes = SPEAKS_OF_SHAPES.search(reason)
        # MONAI and batch normalisation say "input"; NumPy's ValueErrors are of other arrays
        if not is_of_shapes or (isinstance(error, ValueError) and "input" not in reason):
            raise
        if problem := _problem_of_channels(config, reason):
            raise UserError(f"{config.folder}: {problem}") from error
        if CHANNELS_WANTED.search(reason):
            raise  # between two layers of the network
        raise UserError(
            f"{config.folder}: the model does not take raw of {raw_shape} voxels ({reason}); "
            f"{_advice(model, forward, raw_shape, config.in_channels)}"
        ) from error


def _problem_of_channels(config: TrainConfig, reason: str) -> str:
    """What to write for a network that does not take the channels there are; "" for another error.

    reason: what torch says.
    """
    if config.in_channels > 1 and OF_CHANNELS.search(reason):
        return (
            f"the model does not take {config.in_channels} channels, raw and "
            f"{', '.join(config.input_channels)} of input_channels ({reason}); build_model gets "
            "in_channels, for its first layer"
        )
    wanted = CHANNELS_WANTED.search(reason)
    if not wanted or wanted[2] != "1":
        return ""
    return (
        f"the model takes {wanted[1]} channels, and raw is one; build it for one "
        "(in_channels=1, of timm in_chans=1), or let build_model give a network that repeats it "
        f"first: raw.expand(-1, {wanted[1]}, ...)"
    )


def _advice(model: nn.Module, forward: ForwardPass, raw_shape: Shape, in_channels: int) -> str:
    """What to write for a raw shape that a network does not take."""
    flat = min(raw_shape) == 1
    if is_2d(model) and not flat:
        return (
            "its convolutions are all 2-D: write a patch of one voxel along an axis, such as "
            f"input_array_info['shape'] = (1, {raw_shape[1]}, {raw_shape[2]})"
        )
    advice = "change input_array_info"
    if not _is_lazy(model):
        shapes = Shapes(model, forward, in_channels=in_channels)
        advice = _sizes_it_takes(shapes, raw_shape)
    has_3d = any(isinstance(module, nn.Conv3d) for module in model.modules())
    if has_3d and flat and advice == "change input_array_info":
        return "its convolutions are 3-D: write a patch of more voxels along each axis"
    return advice


def _is_lazy(model: nn.Module) -> bool:
    """Whether some weights have no shape until the network runs."""
    return any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))


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
