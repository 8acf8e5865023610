"""Weights in a file of torch, of this trainer or of another one."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from common.errors import UserError

KEYS = ("model", "model_state_dict", "state_dict")
"""Under which of these trainers keep the weights in a dictionary of other things."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the name of each tensor."""


class Unreadable(UserError):
    """A file that holds no tensors for us; `problem` says why, without what to do."""

    def __init__(self, path: Path, problem: str, advice: str):
        super().__init__(f"{path}: {problem}; {advice}")
        self.problem = f"{path}: {problem}"


def read(path: Path) -> Any:
    """Return what a file of torch.save holds, its tensors on the CPU, without running its code.

    Raises FileNotFoundError if there is none, Unreadable if it cannot be read or is not what was
    written.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; set load_model = 'latest' or the path of one"
        )
    try:
        with path.open("rb") as file:
            _refuse_changed(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        problem, advice = _unreadable(path, error)
        raise Unreadable(path, problem, advice) from error


def _refuse_changed(file: BinaryIO) -> None:
    """Raise BadZipFile unless the parts of a file of torch.save have the checksums in it.

    torch writes a CRC-32 of each tensor and of their names and numbers, and reads without looking
    at them: of 22 flipped bits 21 became weights, one of 1e37.
    """
    if not zipfile.is_zipfile(file):
        return  # of torch 1.5 and before, without checksums, or damaged, which torch tells
    changed = zipfile.ZipFile(file).testzip()
    if changed:
        raise zipfile.BadZipFile(f"the checksum of its part {changed} is wrong")


def _unreadable(path: Path, error: Exception) -> tuple[str, str]:
    """Return what is wrong with a file that torch does not read, and what to do."""
    if path.suffix == ".safetensors":
        return (
            "safetensors are not read",
            "save them with torch.save(safetensors.torch.load_file(...))",
        )
    is_torch_file = not isinstance(error, EOFError) and path.read_bytes()[:2] in (
        b"PK",
        b"\x80\x02",
    )
    if isinstance(error, pickle.UnpicklingError) and is_torch_file:
        return (
            "not a readable checkpoint of this trainer: it holds other objects than "
            "tensors, numbers and text, and reading them could run code",
            "if you trust it, save its weights alone: "
            "torch.save(torch.load(path, weights_only=False)['state_dict'], 'weights.pt')",
        )
    reason = " ".join(str(error).split()).partition(". ")[0][:200]
    return (
        f"not a readable checkpoint of this trainer: damaged, cut off or no file of torch.save "
        f"({path.stat().st_size:,} bytes; {type(error).__name__}: {reason})",
        "copy it again where it is from",
    )


def load_weights(model: nn.Module, content: Any, path: Path) -> None:
    """Load the weights that a file of another trainer holds into a model.

    Raises UserError, which names `path`, if it holds none, or names or shapes differ.
    """
    tensors = weights_in(content)
    if tensors is None:
        raise UserError(
            f"{path}: holds no weights; give a state_dict of the network, by itself or as one of "
            f"{', '.join(KEYS)}"
        )
    wrong = difference(tensors, model)
    if wrong:
        raise UserError(
            f"{path}: its weights are of another network ({wrong}); "
            "use that network, or another file"
        )
    model.load_state_dict(tensors, strict=True)


def weights_in(content: Any) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a state_dict, without prefixes of wrappers; None if there is none."""
    if not isinstance(content, Mapping):
        return None
    for key in KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = dict(content)
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        return None
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def difference(tensors: Mapping[str, Any], model: nn.Module) -> str:
    """Return in which tensor weights first differ from those of a model, and in how many; or ""."""
    stored = {name: _shape(tensor) for name, tensor in tensors.items()}
    wanted = {name: _shape(tensor) for name, tensor in model.state_dict().items()}
    names = [*wanted, *(name for name in stored if name not in wanted)]
    wrong = [name for name in names if stored.get(name) != wanted.get(name)]
    if not wrong:
        return ""
    first = wrong[0]
    there = stored.get(first, "not there")
    here = wanted.get(first, "not here")
    return f"{len(wrong)} of {len(names)} tensors differ, first '{first}': {there} and {here} here"


def _shape(tensor: Any) -> Any:
    return tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
