"""Small functions of the public toolbox: templates, slices, a network's output by class."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.request import urlopen

from cellmap_segmentation_challenge._public import names_of
from common.errors import FileError, UserError
from common.files import REPOSITORY, replacing
from common.provenance import provenance

if TYPE_CHECKING:
    import torch

    Tensors = TypeVar("Tensors", torch.Tensor, Mapping[str, torch.Tensor])

__getattr__ = names_of(__name__, {})

FIELD = re.compile(r"\{(\w+)\}")
"""A place in a template, such as {epoch}."""

TIMEOUT_S = 60


# templates


def format_string(string: str, format_kwargs: Mapping[str, Any]) -> str:
    """Fill in those fields of a template that are given; the others stay."""

    def filled(match: re.Match[str]) -> str:
        return str(format_kwargs.get(match[1], match[0]))

    return FIELD.sub(filled, string)


def extract_from_template(template: str, string: str) -> dict[str, str]:
    """Return what a text has for each field of a template.

    Raises ValueError if the text is not of that form, or a field has two values.
    """
    pattern = ""
    names: set[str] = set()
    for number, part in enumerate(FIELD.split(template)):
        if number % 2 == 0:
            pattern += re.escape(part)
        elif part in names:
            pattern += f"(?P={part})"
        else:
            names.add(part)
            pattern += f"(?P<{part}>.+?)"
    match = re.fullmatch(pattern, string)
    if match is None:
        raise UserError(f"'{string}' does not match the template '{template}'")
    return match.groupdict()


def format_coordinates(coordinates: Sequence[float]) -> str:
    """Return numbers as the challenge's tables have them: [8;8;8]."""
    return f"[{';'.join(map(str, coordinates))}]"


# arrays


def get_singleton_dim(shape: Sequence[int]) -> int | None:
    """Return the first axis of length 1; None without one."""
    return next((axis for axis, length in enumerate(shape) if length == 1), None)


def squeeze_singleton_dim(data: Tensors, dim: int) -> Tensors:
    """Remove an axis of length 1 from a tensor, or from each tensor of a dict."""
    if isinstance(data, Mapping):
        return {name: tensor.squeeze(dim) for name, tensor in data.items()}
    return data.squeeze(dim)


def unsqueeze_singleton_dim(data: Tensors, dim: int) -> Tensors:
    """Add an axis of length 1 to a tensor, or to each tensor of a dict."""
    if isinstance(data, Mapping):
        return {name: tensor.unsqueeze(dim) for name, tensor in data.items()}
    return data.unsqueeze(dim)


def get_data_from_batch(
    batch: Mapping[str, torch.Tensor], keys: Sequence[str], device: str | torch.device
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return arrays of a batch on a device: for one key the tensor, for several a dict."""
    tensors = {key: batch[key].to(device) for key in keys}
    return tensors[keys[0]] if len(keys) == 1 else tensors


def structure_model_output(
    outputs: torch.Tensor | Mapping[str, torch.Tensor],
    classes: Sequence[str],
    num_channels_per_class: int | None = None,
) -> dict[str, Any]:
    """Return the outputs of a network by array.

    Each is a tensor (B, classes, ...), or, with num_channels_per_class, a dict of the channels of
    each class. Raises UserError if the number of channels does not fit the classes.

    outputs: a tensor, or a dict by class, which becomes the array "output"; or a dict by array.
    """
    if not isinstance(outputs, Mapping):
        return {"output": _by_class(outputs, classes, num_channels_per_class)}
    if set(outputs) == set(classes):
        return {"output": dict(outputs)}
    return {
        name: _by_class(tensor, classes, num_channels_per_class) for name, tensor in outputs.items()
    }


def _by_class(
    tensor: torch.Tensor, classes: Sequence[str], channels: int | None
) -> torch.Tensor | dict[str, torch.Tensor]:
    expected = len(classes) * (channels or 1)
    if tensor.shape[1] != expected:
        raise UserError(
            f"the network gives {tensor.shape[1]} channels, which does not match expected "
            f"{expected}: {channels or 1} for each of {len(classes)} classes"
        )
    if channels is None:
        return tensor
    return dict(zip(classes, tensor.split(channels, dim=1), strict=True))


# files


def download_file(url: str, dest: str | os.PathLike[str]) -> None:
    """Download an address to a file, whole or not at all. Raises FileError."""
    try:
        with (
            urlopen(str(url), timeout=TIMEOUT_S) as response,
            replacing(Path(dest)) as temporary,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(response, file)
    except (OSError, ValueError) as error:
        raise FileError(f"{url}: cannot be downloaded to {dest} ({error})") from error


def get_git_hash() -> str:
    """Return the commit of the repository; 'none' outside of one."""
    return provenance(REPOSITORY)["commit"]
