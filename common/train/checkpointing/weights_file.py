"""Weights in a file of torch, of this trainer or of another one."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from common.errors import UserError
from common.talk import some
from common.train.checkpointing import inert

KEYS = ("model", "model_state_dict", "state_dict", "network_weights", "net", "weights")
"""Under which of these trainers keep the weights in a dictionary of other things."""

WRAPPERS = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into the name of each tensor."""

SAFETENSORS = ".safetensors"
"""Ending of weights without code, as Hugging Face keeps them."""

NAMED = 3
"""Tensors of each kind that are named where weights do not fit."""

COUNTERS = ("n_averaged",)
"""What torch's AveragedModel keeps beside the weights."""


class Unreadable(UserError):
    """A file that holds no tensors for us; `problem` says why, without what to do."""

    def __init__(self, path: Path, problem: str, advice: str):
        super().__init__(f"{path}: {problem}; {advice}")
        self.problem = f"{path}: {problem}"


def read(path: Path) -> Any:
    """Return what a file of torch holds, its tensors on the CPU, without running code of the file.

    Objects other than tensors, numbers and text are `inert.Inert`. Raises FileNotFoundError if
    there is none, Unreadable if it cannot be read or is not what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; set load_model = 'latest' or the path of one"
        )
    try:
        if path.suffix == SAFETENSORS:
            return _of_safetensors(path)
        with path.open("rb") as file:
            _refuse_changed(file)
            return _content(file)
    except Unreadable:
        raise
    except Exception as error:  # torch raises a different type for each kind of damage
        problem, advice = _unreadable(path, error)
        raise Unreadable(path, problem, advice) from error


def _of_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of the package safetensors, by their names."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise Unreadable(
            path,
            "safetensors, which the package of that name reads",
            "pip install safetensors, or save them with "
            "torch.save(safetensors.torch.load_file(...)) where it is",
        ) from error
    return load_file(path)


def _content(file: BinaryIO) -> Any:
    file.seek(0)
    # of torch 1.5 and before there are no zip files, of which alone objects can be left out
    is_zip = zipfile.is_zipfile(file)
    if is_zip and inert.is_torchscript(file):
        return inert.read(file)
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not is_zip:
            raise
        return inert.read(file)


def read_without_tensors(path: Path) -> Any:
    """Return what a file holds, as `read`, but read no tensor from the disk, nor check any."""
    try:
        with zipfile.ZipFile(path) as parts:
            names = [name for name in parts.namelist() if name.endswith("data.pkl")]
            parts.read(names[0])  # verifies its checksum
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # no zip file, or a damaged one
        return read(path)


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
    with path.open("rb") as file:
        begins = file.read(2)
    is_torch_file = not isinstance(error, EOFError) and begins in (b"PK", b"\x80\x02")
    if isinstance(error, pickle.UnpicklingError) and is_torch_file:
        return (
            "holds other objects than tensors, numbers and text, and reading them could run code",
            "if you trust it, save its weights alone where it is from: "
            "torch.save(network.state_dict(), 'weights.pt')",
        )
    reason = " ".join(str(error).split()).partition(". ")[0][:200]
    writer = "safetensors" if path.suffix == SAFETENSORS else "torch.save"
    return (
        f"not a readable checkpoint of this trainer: damaged, cut off or no file of {writer} "
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
            f"{path}: holds no weights{_instead(content)}; give a state_dict of the network, by "
            f"itself or as one of {', '.join(KEYS)}"
        )
    tensors = renamed(tensors, model)
    wrong = difference(tensors, model)
    if wrong:
        raise UserError(
            f"{path}: its weights are of another network ({wrong}); {_advice(tensors, model)}"
        )
    model.load_state_dict(tensors, strict=True)


def weights_in(content: Any) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a state_dict or of a whole network; None if there are none.

    content: of a file; the weights, or a dictionary with the weights as one of KEYS, or as the only
    ones in it.
    """
    tensors = _tensors(content)
    if tensors or not isinstance(content, Mapping):
        return tensors
    for key in KEYS:
        tensors = _tensors(content.get(key))
        if tensors:
            return tensors
    parts = [part for part in map(_tensors, content.values()) if part]
    return parts[0] if len(parts) == 1 else None


def _tensors(part: Any) -> dict[str, torch.Tensor] | None:
    """The tensors by their names, if a part of a file is nothing else."""
    if isinstance(part, inert.Inert):
        return inert.tensors_of(part) or None
    if not isinstance(part, Mapping) or not part:
        return None
    is_tensor = [isinstance(value, torch.Tensor) for value in part.values()]
    return dict(part) if all(is_tensor) else None


def _instead(content: Any) -> str:
    """What a file without weights holds, as text."""
    if not isinstance(content, Mapping):
        return f" but a {type(content).__name__}"
    if not content:
        return " and nothing else"
    return f" but {some([str(key) for key in content])}"


def renamed(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return tensors by the names that a model has for them.

    On either side names may have what wrappers put into them, and all of them a common beginning,
    as where another module holds the network. Tensors whose names stay unknown keep them.
    """
    wanted = {_plain(name): name for name in model.state_dict()}
    kept = [name for name in tensors if name in wanted or name not in COUNTERS]
    plain = {_plain(name): tensors[name] for name in kept}
    if len(plain) < len(kept):  # two names have become one
        return dict(tensors)
    there = _common_beginning(plain, wanted)
    here = "" if there else _common_beginning(wanted, plain)
    found = {}
    for name, tensor in plain.items():
        rest = here + name.removeprefix(there)
        found[wanted.get(rest, rest)] = tensor
    return found


def _plain(name: str) -> str:
    """The name of a tensor without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _common_beginning(names: Collection[str], wanted: Collection[str]) -> str:
    """What stands before a wanted name in all names; "" if nothing does."""
    first = next(iter(wanted), "")
    for name in names:
        beginning = name.removesuffix(first)
        if name.endswith(f".{first}") and all(other.startswith(beginning) for other in names):
            return beginning
    return ""


def difference(tensors: Mapping[str, Any], model: nn.Module) -> str:
    """Return how weights differ from those of a model, by count and by name; or ""."""
    own = model.state_dict()
    wanted = {name: _shape(tensor, tensor) for name, tensor in own.items()}
    stored = {name: _shape(tensor, own.get(name)) for name, tensor in tensors.items()}
    missing = [name for name in wanted if name not in stored]
    surplus = [name for name in stored if name not in wanted]
    other = [name for name in wanted if name in stored and stored[name] != wanted[name]]
    if not (missing or surplus or other):
        return ""
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing there: {some(missing, NAMED)}")
    if surplus:
        parts.append(f"{len(surplus)} unknown here: {some(surplus, NAMED)}")
    if other:
        texts = [f"{name} {stored[name]} there and {wanted[name]} here" for name in other]
        parts.append(f"{len(other)} of another shape: {some(texts, NAMED)}")
    wrong = len(missing) + len(surplus) + len(other)
    total = len(wanted) + len(surplus)
    return f"{wrong} of {total} tensors differ; {'; '.join(parts)}"


def _advice(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> str:
    """What to do about weights that do not fit a model."""
    channels = _other_channels(tensors, model)
    if channels:
        there, here = channels
        return (
            f"it gives {there} channels and this network {here}: write the classes that it was "
            "trained for, in their order"
        )
    return "use that network, or another file"


def _other_channels(
    tensors: Mapping[str, torch.Tensor], model: nn.Module
) -> tuple[int, int] | None:
    """The channels of an output there and here, if weights differ in nothing else."""
    wanted = model.state_dict()
    if tensors.keys() != wanted.keys():
        return None
    counts = set()
    for name, tensor in wanted.items():
        stored = tensors[name]
        if stored.shape == tensor.shape:
            continue
        if stored.shape[1:] != tensor.shape[1:] or not tensor.ndim or not stored.ndim:
            return None
        counts.add((len(stored), len(tensor)))
    return counts.pop() if len(counts) == 1 else None


def _shape(tensor: Any, own: Any) -> Any:
    """The shape of what is stored; and its type, where that of the model would not hold it.

    Such are the whole numbers of a quantised network: as weights they would be taken without a
    word.
    """
    if not isinstance(tensor, torch.Tensor):
        return type(tensor).__name__
    shape = tuple(tensor.shape)
    if tensor.layout != torch.strided:
        return (*shape, "sparse")
    is_weight = isinstance(own, torch.Tensor) and own.is_floating_point()
    return shape if tensor.is_floating_point() or not is_weight else (*shape, str(tensor.dtype))
