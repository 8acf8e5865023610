"""Save the whole training state of a run, and continue from it.

A checkpoint is a file of torch.save with the state dicts of model, optimiser, scheduler and scaler,
the random states, the numbers of `State`, and the classes, settings and provenance of the run.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from common.config.settings import MAY_CHANGE, TrainConfig
from common.data.sampling import BLOCK_ORDER
from common.errors import UserError
from common.files import REPOSITORY, not_written, replacing
from common.provenance import provenance
from common.talk import note
from common.train.steps import State

SAVED_NUMBERS = (
    "epoch",
    "iteration",
    "best",
    "best_epoch",
    "validation_batches",
    "shown",
    "epoch_loss",
)
"""Fields of State that are saved as they are; the others are saved as state dicts."""


def save_state(config: TrainConfig, state: State, split_hash: str, which: str) -> None:
    """Write the whole state as latest.pt or best.pt of the run.

    `which` is "latest" or "best". Raises FileError if the file cannot be written.
    """
    content = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict() if state.scheduler else None,
        "scaler": state.scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
        "classes": list(config.classes),
        "settings": config.record(),
        "provenance": provenance(REPOSITORY),
        "split_hash": split_hash,
        "block_order": BLOCK_ORDER,
    }
    for name in SAVED_NUMBERS:
        content[name] = getattr(state, name)
    save(config.path("model_save_path") / f"{which}.pt", content)


def resume(config: TrainConfig, state: State, split_hash: str) -> str:
    """Load the checkpoint that load_model asks for; return a sentence that says what was loaded.

    A checkpoint of the run itself takes precedence over a given file: the same command first starts
    a run from given weights, and later continues it. From a given file only the weights are taken,
    and `state` stays at epoch 0. Raises FileNotFoundError or UserError, the latter also if the run
    was begun with other settings than those of MAY_CHANGE.
    """
    choice = config.load_model
    own = find(config.path("model_save_path"), "best" if choice == "best" else "latest")
    if own and choice == "scratch":
        raise UserError(
            f"{own}: this run exists and load_model = 'scratch' would write over it; "
            "set another run_name, or remove it"
        )
    if own:
        saved = load(own, config.classes)
        _refuse_other_settings(own, saved, config, split_hash)
        load_weights(state.model, saved, own)
        _restore(state, saved)
        _note_other_order(own, state, saved)
        return f"continuing {own} after epoch {state.epoch}, iteration {state.iteration}"
    if choice in ("latest", "best", "scratch"):
        return "starting with new weights"
    given = config.folder / choice  # which is `choice` itself if that is absolute
    saved = load(given, config.classes)
    load_weights(state.model, saved, given)
    return f"starting at epoch 0 with the weights of {given} (epoch {saved['epoch']})"


def _restore(state: State, saved: dict[str, Any]) -> None:
    """Restore everything of a saved state except the weights of the model."""
    state.optimizer.load_state_dict(saved["optimizer"])
    if state.scheduler:
        state.scheduler.load_state_dict(saved["scheduler"])
    if saved["scaler"]:  # empty unless that run was in fp16
        state.scaler.load_state_dict(saved["scaler"])
    for name in SAVED_NUMBERS:
        setattr(state, name, saved[name])
    torch.set_rng_state(saved["rng"])
    if torch.cuda.is_available() and saved["cuda_rng"] is not None:
        torch.cuda.set_rng_state_all(saved["cuda_rng"])


def _note_other_order(path: Path, state: State, saved: dict[str, Any]) -> None:
    """Forget the numbers of validation blocks that were in another order, and say so."""
    if saved.get("block_order") == BLOCK_ORDER:
        return
    state.shown = {}
    note(
        f"{path}: written when the order of validation blocks depended on random_seed; a limited "
        "validation looks at other blocks from here on, so its metrics before and after differ, "
        "and figures show other blocks"
    )


def _refuse_other_settings(
    path: Path, saved: dict[str, Any], config: TrainConfig, split_hash: str
) -> None:
    """Raise UserError if settings outside MAY_CHANGE, or the datasplit, differ from those saved."""
    # a setting that did not exist yet when the run was begun was what its default is
    before = TrainConfig.recorded_defaults() | saved["settings"]
    changed = []
    for name, value in config.record().items():
        if name not in MAY_CHANGE and before.get(name) != value:
            changed.append(f"{name} was {before.get(name)} and is {value}")
    if saved["split_hash"] != split_hash:
        changed.append("the crops of the datasplit are others")
    if changed:
        raise UserError(
            f"{path}: this run was started with other settings ({'; '.join(changed)}). "
            "Set them back, or set another run_name "
            "(with load_model = this file to start from its weights)"
        )


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically: `path` holds the old or the new one, never a part of it.

    Raises FileError if the file cannot be written, for example on a full disk; the old file is then
    unchanged.
    """
    with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's zip writer turns a full disk into a RuntimeError
            cause = error.__context__
            reason = cause if isinstance(cause, OSError) else error
            raise not_written(path, reason) from error


def load(path: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    """Load a checkpoint with its tensors on the CPU, without running code from the file.

    Raises FileNotFoundError if there is none, UserError if it is damaged or was trained for another
    list of classes.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; set load_model = 'latest' or the path of one"
        )
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved_classes = tuple(saved["classes"])
    except Exception as error:  # torch raises a different type for each kind of damage
        raise UserError(
            f"{path}: not a readable checkpoint of this trainer ({_reason(error)}); "
            "remove it to start from another"
        ) from error
    if saved_classes != classes:
        raise UserError(
            f"{path}: trained for {len(saved_classes)} classes and this run has {len(classes)}: "
            f"{_difference(saved_classes, classes)}; "
            "use the same classes in the same order, or set another run_name"
        )
    return saved


def find(folder: Path, which: str) -> Path | None:
    """Return the path of {which}.pt in `folder`; None if there is no such file."""
    path = folder / f"{which}.pt"
    return path if path.is_file() else None


def best_of(config: TrainConfig) -> Path:
    """Return the path of best.pt of a run; that of latest.pt if there is no best.pt."""
    folder = config.path("model_save_path")
    return find(folder, "best") or folder / "latest.pt"


def load_weights(model: torch.nn.Module, saved: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint into the model.

    Raises UserError, which names `path`, unless all names and shapes of parameters agree.
    """
    try:
        model.load_state_dict(saved["model"], strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: its weights are of another network ({reason}); "
            "use that network, or set another run_name"
        ) from None


def _reason(error: Exception) -> str:
    """Return an error as one line: its type, and the first 200 characters of its text."""
    text = " ".join(str(error).split())[:200]
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def _difference(saved: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Return a sentence about the first channel in which two lists of classes differ."""
    pairs = itertools.zip_longest(saved, wanted, fillvalue="none")
    for channel, (before, now) in enumerate(pairs):
        if before != now:
            return f"channel {channel} is '{before}' there and '{now}' here"
    raise AssertionError("the lists are equal")
