"""The user's functions in process_config.py: called, and what they give looked at."""

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
    """What process_func makes of the logits (B, 1, z, y, x) of a class, as bool.

    Raises UserError for what is no mask of that shape; an error of the user's code comes through.
    """
    shape = tuple(logits.shape)
    given = _call(recipe, "process_func", logits)
    what = f"{recipe.path}: process_func gives '{name}'"
    values = _as_array(given, what)
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
    """What instance_func makes of a mask, with the options of the class: ids, or a mask.

    Raises UserError for what is no volume of ids of that shape; an error of the user's code comes
    through.
    """
    keywords = dict(recipe.options.get(name, {}))
    function = recipe.settings.instance_func
    if function is not None and takes_channels(function):
        keywords[CHANNELS] = channels
    given = _call(recipe, "instance_func", mask, probability, name, **keywords)
    what = f"{recipe.path}: instance_func gives"
    if not isinstance(given, Volume) or given.shape != mask.shape or given.dtype.kind not in "uib":
        raise UserError(
            f"{what} {_kind(given)} for '{name}'; give a volume of ids of shape {mask.shape}, by "
            "the functions of common.infer.instances or as dataclasses.replace(mask, array=ids)"
        )
    if given.dtype.kind == "i":
        lowest = instances.smallest(given)
        if lowest < 0:
            raise UserError(
                f"{what} the id {lowest} for '{name}'; give ids from 1, and 0 where there is no "
                "object"
            )
    return given


def _call(recipe: Recipe, name: str, *arguments: Any, **keywords: Any) -> Any:
    """What a function of process_config.py gives.

    What the engine's own functions refuse in it gets the file's name.
    """
    try:
        return getattr(recipe.settings, name)(*arguments, **keywords)
    except FileError:
        raise  # of the disk, which the function can do nothing about
    except UserError as error:
        raise UserError(f"{recipe.path}: {name}: {error}") from error


def _as_array(given: Any, what: str) -> np.ndarray:
    """An array or tensor of numbers, on the host. Raises UserError for anything else."""
    wanted = "give one array or tensor of the shape of the logits"
    if isinstance(given, torch.Tensor) and given.device.type != "meta":
        # NumPy has no bfloat16
        numbers = given.float() if given.is_floating_point() else given
        given = numbers.to_dense().numpy(force=True)
    if not isinstance(given, np.ndarray):
        raise UserError(f"{what} {_kind(given)}; {wanted}")
    if given.dtype.kind not in "biuf":
        raise UserError(f"{what} an array of {given.dtype}; {wanted}, of 0 and 1")
    return given


def _kind(given: Any) -> str:
    """What was given, in words."""
    if given is None:
        return "nothing (None: is a return missing?)"
    name = type(given).__name__
    if not hasattr(given, "shape") or not hasattr(given, "dtype"):
        return f"a {name}"
    return f"a {name} of {given.dtype} of shape {tuple(given.shape)}"
