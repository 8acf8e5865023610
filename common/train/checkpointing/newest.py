"""Which checkpoint a run goes on with: the newest one that is whole."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.config.settings import TrainConfig
from common.errors import UserError, in_a_line
from common.files import replacing
from common.talk import some
from common.train.checkpointing import weights_file
from common.train.checkpointing.checkpoint import (
    SAVED_NUMBERS,
    earlier,
    find,
    refuse_other_classes,
)
from common.train.state import State

Used = TypeVar("Used")

PARTS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "optimizer": dict,
    "scheduler": (dict, type(None)),
    "scaler": dict,
    "rng": torch.Tensor,
    "classes": list,
    "settings": dict,
    "split_hash": str,
    "epoch": int,
    "iteration": int,
    "best_epoch": int,
}
"""Types of what every whole state holds."""


def own_checkpoints(config: TrainConfig) -> list[Path]:
    """Return the checkpoints with which the run may go on, the newest first; [] if it is to begin.

    load_model = "best" goes on with the latest ones until there is a best. Raises UserError if the
    latest ones are gone and a run that begins anew would write over the best.
    """
    folder = config.path("model_save_path")
    best = find(folder, "best")
    latest = folder / "latest.pt"
    latest_ones = [latest] if latest.is_file() else []
    latest_ones += earlier(latest)
    if best is None:
        return latest_ones
    if config.load_model == "best":
        return [best]
    if not latest_ones and config.load_model != "scratch":
        raise UserError(
            f"{folder}: latest.pt is gone and best.pt stands; a run that begins anew would write "
            f"over it. {_from_best(best)}"
        )
    return [*latest_ones, best]


def _from_best(best: Path) -> str:
    """Return how a run whose latest.pt is lost can go on."""
    return (
        "Go on after the epoch of best.pt with load_model = 'best' (later epochs are trained "
        f"again), or leave all files as they are and set another run_name with load_model = "
        f"'{best}'"
    )


def look_into_newest(
    config: TrainConfig, take: Callable[[Path, dict[str, Any]], Used]
) -> Used | None:
    """Return what is the same in all checkpoints of a run; None if it is to begin.

    What else is in this one is read by resume.
    """
    own = own_checkpoints(config)
    if not own:
        return None
    taken, _, _ = use_newest(own, config, take, weights_file.read_without_tensors)
    return taken


def use_newest(
    own: list[Path],
    config: TrainConfig,
    use: Callable[[Path, dict[str, Any]], Used],
    read: Callable[[Path], Any],
) -> tuple[Used, Path, list[str]]:
    """Use the first checkpoint that can be used.

    Args:
        own: the checkpoints of a run, the newest first.
        config: settings of the run.
        use: `use(path, content)` returns or restores what is wanted.
        read: returns the content of a file.

    Returns:
        What `use` gave, the path, and what is wrong with the checkpoints before it.

    Raises:
        UserError: if none can be used, or if it is of other classes or settings.
    """
    unreadable: list[str] = []
    for path in own:
        try:
            saved = read(path)
            wrong = _wrong_parts(saved)
            if wrong:
                raise _damaged(path, f"holds no whole state of a run ({some(wrong)})")
            refuse_other_classes(path, saved, config.channels, "set another run_name")
            return use(path, saved), path, unreadable
        except weights_file.Unreadable as error:
            unreadable.append(error.problem)
    raise UserError(f"{'; '.join(unreadable)}. {_instead_of(own[0])}")


def _wrong_parts(saved: Any) -> list[str]:
    """Return what is missing in a whole state of a run, or is of another type."""
    if not isinstance(saved, dict):
        return [f"but a {type(saved).__name__}"]
    kinds = dict(PARTS)
    for part in dataclasses.fields(State):
        # numbers came to be one after the other: what an earlier version did not save is optional
        if part.name in SAVED_NUMBERS and part.name in saved:
            kinds[part.name] = _kind_of(part)
    for name in ("ema", "criterion"):
        if name in saved:
            kinds[name] = (dict, type(None))
    wrong = []
    for name, kind in kinds.items():
        if name not in saved:
            wrong.append(f"'{name}' is missing")
        elif not isinstance(saved[name], kind):
            wrong.append(f"'{name}' is of type {type(saved[name]).__name__}")
    return wrong


def _kind_of(part: dataclasses.Field) -> type | tuple[type, ...]:
    """Return the type of a field's default; a number may be saved as a whole one."""
    default = part.default_factory() if callable(part.default_factory) else part.default
    return (int, float) if isinstance(default, float) else type(default)


def _instead_of(own: Path) -> str:
    """Return how to go on where no checkpoint of a run can be read."""
    if own.name == "best.pt" and find(own.parent, "latest"):
        return "latest.pt stands: go on with load_model = 'latest'"
    return (
        "The run has no other checkpoint: put a copy of this file back, or leave all files as they "
        "are and set another run_name, with load_model = a file whose weights can be read"
    )


def _damaged(path: Path, problem: str) -> weights_file.Unreadable:
    """A checkpoint that can be read, a part of which is not what its name says."""
    return weights_file.Unreadable(path, problem, "put a copy of it back")


@contextmanager
def restoring(path: Path, part: str) -> Iterator[None]:
    """Raise Unreadable where a part of a checkpoint is not what its name says."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch raises a different type for each kind of wrong content
        reason = in_a_line(error)
        problem = f"its {part} cannot be restored ({type(error).__name__}: {reason})"
        raise _damaged(path, problem) from error


def take_place_of_latest(good: Path) -> None:
    """Copy a checkpoint to latest.pt; the unreadable file there gets another name.

    Otherwise it would be kept as the one before the next, in the place of a good one.
    """
    latest = good.with_name("latest.pt")
    with replacing(latest, durable=True) as temporary:
        shutil.copyfile(good, temporary)
        if latest.is_file():
            latest.replace(latest.with_name("latest.pt.unreadable"))
