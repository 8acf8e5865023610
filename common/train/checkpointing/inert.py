"""Files of torch.save that hold objects of other programs, read without running code.

torch reads a file safely if all in it are tensors, numbers and text. A whole network
(`torch.save(model)`), a configuration or a number of NumPy in it is an object of a class, and
making it would run that class's code, or whatever a file names in its place. Here each such class
is replaced by one that does nothing but keep what it is given, so that the tensors can be taken
out.
"""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

TORCHSCRIPT = "constants.pkl"
"""The part that a TorchScript archive has and a file of torch.save has not."""


class Inert:
    """In the place of an object of another program: its attributes, without what it can do."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _AsDict:
    """In the place of a dict of another kind, which torch would not fill."""

    def __new__(cls, *_: Any) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


class _AsList:
    """In the place of a list of another kind."""

    def __new__(cls, *_: Any) -> list:  # type: ignore[misc]
        return []


CONTAINERS = {"collections.defaultdict": _AsDict, "collections.deque": _AsList}
"""What stands in the place of these; an optimiser that was saved as an object holds the first."""


def read(file: BinaryIO) -> Any:
    """Return what a file of torch.save or a TorchScript archive holds, `Inert` for other objects.

    Raises whatever torch raises for a file that it cannot read so.
    """
    if is_torchscript(file):
        file = _without_program(file)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    file.seek(0)
    # a class for each name: torch looks them up by it
    classes: list[tuple[type, str]] = []
    for name in names:
        inert = type(name.rpartition(".")[2], (Inert,), {})
        classes.append((CONTAINERS.get(name, inert), name))
    with torch.serialization.safe_globals(classes):  # type: ignore[arg-type]
        return torch.load(file, map_location="cpu", weights_only=True)


def is_torchscript(file: BinaryIO) -> bool:
    """Return whether a zip file is a TorchScript archive."""
    file.seek(0)
    names = zipfile.ZipFile(file).namelist()
    file.seek(0)
    return any(name.endswith(f"/{TORCHSCRIPT}") for name in names)


def _without_program(file: BinaryIO) -> BinaryIO:
    """Return a TorchScript archive as the file of torch.save that it is but for its program.

    torch.jit.load would compile the program, and is deprecated.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as written:
        for name in archive.namelist():
            part = name.partition("/")[2]
            if part.startswith("data/") or part in ("data.pkl", "version", "byteorder"):
                written.writestr(name, archive.read(name))
    copy.seek(0)
    return copy


def tensors_of(network: Inert) -> dict[str, torch.Tensor]:
    """Return the state_dict of a network that was saved as an object."""
    return dict(_named_tensors(network, ""))


def _named_tensors(network: Inert, before: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in _parts(network):
        if isinstance(value, torch.Tensor):
            yield before + name, value.detach()
        elif isinstance(value, Inert):
            yield from _named_tensors(value, f"{before}{name}.")


def _parts(network: Inert) -> Iterator[tuple[str, Any]]:
    """Yield tensors and parts of a network by their names."""
    attributes = vars(network)
    if "_modules" not in attributes:  # of TorchScript
        yield from attributes.items()
        return
    yield from attributes.get("_parameters", {}).items()
    passing = attributes.get("_non_persistent_buffers_set", ())
    for name, value in attributes.get("_buffers", {}).items():
        if name not in passing:
            yield name, value
    yield from attributes["_modules"].items()
