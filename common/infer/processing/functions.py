"""The user's functions in process_config.py: called, and what they return checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from common.config.instance_options import CHANNELS, takes_channels
from common.errors import FileError, UserError
from common.infer import instances
from common.infer.instances import Volume
from common.infer.processing.recipe import Recipe


def mask(recipe: Recipe, name: str, logits: torch.Tensor) -> np.ndarray:
    """Return what process_func makes of the logits (B, 1, z, y, x) of a class, as bool.

    Raise UserError for what is no mask of that shape; an error of the user's code comes through.
    """
    shape = tuple(logits.shape)
    result = _call(recipe, "process_func", logits)
    what = f"{recipe.path}: process_func gives '{name}'"
    values = _as_array(result, what)
    if values.shape != shape:
        raise UserError(
            f"{what} the shape {values.shape} for logits of shape {shape}; give the same shape"
        )
    is_class = values.astype(bool)
    if values.dtype != bool and not (values == is_class).all():
        raise UserError(
            f"{what} values like {values[values != is_class][0]}; give 1 where the class is and 0 "
            "elsewhere (objects are numbered over the whole volume, by instance_func)"
        )
    return is_class


def ids(  # noqa: PLR0917
    recipe: Recipe,
    name: str,
    mask: Volume,
    probability: Volume,
    channels: Mapping[str, Volume],
) -> Volume:
    """Return what instance_func makes of a mask, with the options of the class: ids, or a mask.

    Raise UserError for what is no volume of ids of that shape; an error of the user's code comes
    through.

    Args:
        recipe: has instance_func.
        name: of the class.
        mask: of the class.
        probability: of the class.
        channels: of the box by name, for an instance_func that takes them.
    """
    keywords = dict(recipe.options.get(name, {}))
    function = recipe.settings.instance_func
    if function is not None and takes_channels(function):
        keywords[CHANNELS] = channels
    result = _call(recipe, "instance_func", mask, probability, name, **keywords)
    _refuse_no_ids(recipe, name, mask, result)
    return result


def _refuse_no_ids(recipe: Recipe, name: str, mask: Volume, result: Any) -> None:
    """Raise UserError unless a result of instance_func is a volume of ids of the mask's shape."""
    what = f"{recipe.path}: instance_func gives"
    if (
        not isinstance(result, Volume)
        or result.shape != mask.shape
        or result.dtype.kind not in "uib"
    ):
        raise UserError(
            f"{what} {_kind(result)} for '{name}'; give a volume of ids of shape {mask.shape}, by "
            "the functions of common.infer.instances or as dataclasses.replace(mask, array=ids)"
        )
    if result.dtype.kind == "i":
        lowest = instances.smallest(result)
        if lowest < 0:
            raise UserError(
                f"{what} the id {lowest} for '{name}'; give ids from 1, and 0 where there is no "
                "object"
            )


def _call(recipe: Recipe, name: str, *arguments: Any, **keywords: Any) -> Any:
    """Return what a function of process_config.py gives.

    Errors that the engine's functions raise within it get the file's name.
    """
    try:
        return getattr(recipe.settings, name)(*arguments, **keywords)
    except FileError:
        raise  # of the disk, which the function can do nothing about
    except UserError as error:
        raise UserError(f"{recipe.path}: {name}: {error}") from error


def _as_array(result: Any, what: str) -> np.ndarray:
    """Return an array, or a tensor on any device, as an array. Raise UserError for anything else.

    what: begins the message.
    """
    wanted = "give one array or tensor of the shape of the logits"
    if isinstance(result, torch.Tensor) and result.device.type != "meta":
        # NumPy has no bfloat16
        numbers = result.float() if result.is_floating_point() else result
        result = numbers.to_dense().numpy(force=True)
    if not isinstance(result, np.ndarray):
        raise UserError(f"{what} {_kind(result)}; {wanted}")
    if result.dtype.kind not in "biuf":
        raise UserError(f"{what} an array of {result.dtype}; {wanted}, of 0 and 1")
    return result


def _kind(result: Any) -> str:
    """Return in words what kind of thing a function returned."""
    if result is None:
        return "nothing (None: is a return missing?)"
    name = type(result).__name__
    if not hasattr(result, "shape") or not hasattr(result, "dtype"):
        return f"a {name}"
    return f"a {name} of {result.dtype} of shape {tuple(result.shape)}"
