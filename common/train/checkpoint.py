"""The whole training state, written atomically, found again, verified."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import torch

from common.errors import FileError, UserError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write by temporary file and rename: `path` holds the old state or the new one, never a part.

    Raises OSError with one sentence if the disk is full; the old file then stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch's zip writer turns a full disk into a RuntimeError
        kept = "the one before it stands" if path.exists() else "nothing was kept"
        raise FileError(
            f"{path}: could not be written ({_reason(error)}); {kept}. Free space and run the same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is no longer there, or there was no place for it
            temporary.unlink()


def load(path: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    """Read a state onto the CPU. ValueError if the file is damaged, or of a model for another class list."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; set load_model = 'latest' or the path of one"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = tuple(state["classes"])
    except Exception as error:  # torch raises a different type for each kind of damage
        raise UserError(
            f"{path}: not a readable checkpoint of this trainer ({_reason(error)}); remove it to start from another"
        ) from error
    if found != classes:
        raise UserError(
            f"{path}: trained for {len(found)} classes and this run has {len(classes)}: {_difference(found, classes)}; "
            "use the same classes in the same order, or set another run_name"
        )
    return state


def find(folder: Path, which: str) -> Path | None:
    """`latest.pt` or `best.pt` of a run if it is there. Of an interrupted write nothing is left to be found."""
    path = folder / f"{which}.pt"
    return path if path.is_file() else None


def load_weights(model: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put the weights of a state into the model, every one. ValueError if names or shapes differ."""
    try:
        model.load_state_dict(state["model"], strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: its weights are of another network ({reason}); use that network, or set another run_name"
        ) from None


def _reason(error: Exception) -> str:
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return ": ".join(filter(None, (type(cause).__name__, " ".join(str(cause).split())[:200])))


def _difference(found: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """The first channel in which two class lists differ."""
    pairs = itertools.zip_longest(found, wanted, fillvalue="none")
    channel, there, here = next((i, a, b) for i, (a, b) in enumerate(pairs) if a != b)
    return f"channel {channel} is '{there}' there and '{here}' here"
