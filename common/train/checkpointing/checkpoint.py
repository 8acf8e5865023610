"""Save the whole training state of a run, and continue from it.

A checkpoint is a file of torch.save with the state dicts of model, average of its weights, loss,
optimiser, scheduler and scaler, the random states, the numbers of `State`, and the classes,
settings and provenance of the run.

latest.pt is the newest one, latest.1.pt the one before it, and so on; best.pt that of the best
epoch.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from common import runtime
from common.config.code import NETWORK_CODE, network_code
from common.config.settings import TrainConfig
from common.data.crops.normalize import Scaling, Scalings
from common.data.samples.validation_blocks import BLOCK_ORDER
from common.errors import NotFinite, UserError
from common.files import REPOSITORY, free_bytes, not_written, replacing
from common.provenance import provenance
from common.talk import note, size
from common.train.checkpointing import weights_file
from common.train.optimising import average
from common.train.processes import one_process, ranks
from common.train.state import State

SAVED_APART = ("model", "optimizer", "scheduler", "scaler", "labels", "raws", "criterion", "ema")
"""Fields of State that are saved as state dicts, or under their names, one by one."""

SAVED_NUMBERS = tuple(
    part.name for part in fields(State) if part.name not in (*SAVED_APART, "passed_over")
)
"""Fields of State that are saved as they are: all others but `passed_over`, of one call."""

OF_OTHERS = "random_states_of_others"
"""The random states of the processes beside the main one, in their order."""


def save_state(config: TrainConfig, state: State, split_hash: str, which: str) -> None:
    """Write the whole state as latest.pt or best.pt of the run; of several processes the main one.

    `which` is "latest" or "best". Raises FileError if the file cannot be written, NotFinite if the
    weights are not finite: the file before it is better; and UserError if another process has taken
    the run.
    """
    path = path_of(config, which)
    if not are_finite(state.model):
        kept = "the one before it stands" if path.exists() else "there was none before it"
        raise NotFinite(
            f"{path}: not written, since after iteration {state.iteration} the weights are not "
            f"finite; {kept}. "
            "Start another run_name with a lower learning_rate, or a max_grad_norm"
        )
    # random numbers are all that processes differ in
    _, *of_others = ranks.gathered(runtime.random_state())
    with ranks.main_first():  # the others wait for it, however slow its disk is
        if ranks.is_main():
            one_process.refuse_taken(config)
            content = _content(config, state, split_hash)
            if of_others:
                content[OF_OTHERS] = of_others
            number = config.checkpoints_kept if which == "latest" else 1
            save(path, content, number)


def _content(config: TrainConfig, state: State, split_hash: str) -> dict[str, Any]:
    """Return what a checkpoint holds of one process."""
    content = {
        "model": state.model.state_dict(),
        "ema": state.ema.state_dict() if state.ema else None,
        "criterion": state.criterion.state_dict() if state.criterion is not None else None,
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict() if state.scheduler else None,
        "scaler": state.scaler.state_dict(),
        "classes": list(config.channels),
        "settings": config.record(),
        NETWORK_CODE: network_code(config),
        "provenance": provenance(REPOSITORY),
        "split_hash": split_hash,
        "block_order": BLOCK_ORDER,
        "labels": state.labels,
        "raws": state.raws,
    } | runtime.random_state()
    for name in SAVED_NUMBERS:
        content[name] = getattr(state, name)
    return content


def path_of(config: TrainConfig, which: str = "latest") -> Path:
    """Return where latest.pt or best.pt of a run is, or will be."""
    return config.path("model_save_path") / f"{which}.pt"


def bytes_of_run(config: TrainConfig, state: State) -> int:
    """Return the size of all checkpoints of a run: best.pt, latest.pt and those before it."""
    parts: list[Any] = [state.model.state_dict(), state.optimizer.state_dict()]
    if state.ema is not None:
        parts.append(state.ema.state_dict())
    # optimisers make their averages, two as a rule, at the first step
    averages = 0 if state.optimizer.state else 2 * _bytes(list(state.model.parameters()))
    return (1 + config.checkpoints_kept) * (_bytes(parts) + averages)


def _bytes(value: Any) -> int:
    """Return the size in bytes of all tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes(item) for item in value.values())
    if isinstance(value, list):
        return sum(_bytes(item) for item in value)
    return 0


def note_little_room(config: TrainConfig, state: State) -> None:
    """Say if the disk has no room for the checkpoints of a run that is about to begin."""
    folder = config.path("model_save_path")
    whole = bytes_of_run(config, state)
    one = whole / (1 + config.checkpoints_kept)
    there = sum(path.stat().st_size for path in folder.glob("*.pt"))
    needed = max(whole - there, 0) + one  # the one that is being written stands beside the others
    free = free_bytes(folder)
    if needed > free:
        note(
            f"{folder}: {size(free)} free, and the checkpoints need {size(needed)}; free space, or "
            "set checkpoints_kept = 1 or model_save_path to a folder of a larger disk"
        )


def are_finite(model: torch.nn.Module) -> bool:
    """Return whether all parameters of a network are finite; its buffers may be anything."""
    flags = [parameter.detach().isfinite().all() for parameter in model.parameters()]
    return bool(torch.stack(flags).all()) if flags else True


def regularly(minutes: float, save_now: Callable[[], None]) -> Callable[[], None]:
    """Return what, called after each step, calls `save_now` every so many minutes; 0 is never."""
    last = time.monotonic()

    def save_if_due() -> None:
        nonlocal last
        if minutes and ranks.any_rank(time.monotonic() - last >= 60 * minutes):
            save_now()
            last = time.monotonic()

    return save_if_due


def scalings_in(saved: dict[str, Any]) -> Scalings:
    """Return how raw was normalised, by the names of volumes, from what a checkpoint holds."""
    # a run from before there was raw_normalization has none
    stored = saved.get("raw_scalings", {})
    return {name: Scaling.of(scaling) for name, scaling in stored.items()}


def is_whole(saved: Any) -> bool:
    """Return whether what a file holds is a whole state of a run of this trainer."""
    wanted = ("model", "classes", "epoch", "settings")
    return isinstance(saved, dict) and all(name in saved for name in wanted)


def save(path: Path, content: dict[str, Any], kept: int = 1) -> None:
    """Write a checkpoint atomically: `path` holds the old or the new one, never a part of it.

    The old one becomes the first of those that are kept before it, see `earlier`. Raises FileError
    if the file cannot be written, for example on a full disk; the old file is then unchanged.

    kept: number of checkpoints that are kept in all.
    """
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:
                # torch's zip writer turns a full disk into a RuntimeError
                cause = error.__context__
                reason = cause if isinstance(cause, OSError) else error
                raise not_written(path, reason) from error
            file.flush()
            os.fsync(file.fileno())
            written = file.tell()
        # only now that the new one is on the disk. A kill before it has its name leaves the old one
        # as the newest of the earlier ones, which `find` takes for it
        _number(path, kept)
    free = free_bytes(path.parent)
    if free < written:
        note(
            f"{path.parent}: {size(free)} free, and the next checkpoint needs {size(written)} "
            "before the oldest goes; free space, or training ends there"
        )


def _number(path: Path, kept: int) -> None:
    """Give the checkpoint at `path` the number 1, the one before it 2, and so on."""
    for number in range(kept - 1, 0, -1):
        newer = _numbered(path, number - 1)
        if newer.is_file():
            newer.replace(_numbered(path, number))
    for old in earlier(path):
        if int(old.stem.rpartition(".")[2]) >= kept:
            old.unlink()


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path


def earlier(path: Path) -> list[Path]:
    """Return the checkpoints that are kept from before that at `path`, the newest first.

    Of latest.pt these are latest.1.pt, latest.2.pt and so on.
    """
    by_number = {}
    for other in path.parent.glob(f"{path.stem}.*{path.suffix}"):
        number = other.stem.rpartition(".")[2]
        if number.isdecimal():
            by_number[int(number)] = other
    return [by_number[number] for number in sorted(by_number)]


def load(path: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    """Load a checkpoint with its tensors on the CPU, without running code from the file.

    Raises FileNotFoundError if there is none, UserError if it is damaged, is no whole state of a
    run, or was trained for another list of classes.
    """
    saved = weights_file.read(path)
    if not is_whole(saved):
        raise UserError(
            f"{path}: holds no whole state of a run of this trainer, but perhaps weights; start a "
            "run from them with load_model = this file, and use the checkpoint that it writes"
        )
    refuse_other_classes(path, saved, classes)
    return saved


def refuse_other_classes(
    path: Path,
    saved: dict[str, Any],
    classes: tuple[str, ...],
    otherwise: str = "name another checkpoint",
) -> None:
    """Raise UserError unless a checkpoint is of a network for these classes.

    otherwise: what to do where the classes are meant as they are.
    """
    saved_classes = tuple(saved["classes"])
    if saved_classes != classes:
        raise UserError(
            f"{path}: trained for {len(saved_classes)} classes and this run has {len(classes)}: "
            f"{_difference(saved_classes, classes)}; "
            f"use the same classes in the same order, or {otherwise}"
        )


def find(folder: Path, which: str) -> Path | None:
    """Return the path of {which}.pt in `folder`, or of the one before it; None without either."""
    path = folder / f"{which}.pt"
    if path.is_file():
        return path
    return next(iter(earlier(path)), None)


def of_other_models(config: TrainConfig) -> list[str]:
    """Return the other names of models under which a run of this name has checkpoints.

    Such is the name that the experiment's folder had before it was renamed.
    """
    template = config.model_save_path
    if "{model_name}" not in template:
        return []
    before, _, behind = template.partition("{model_name}")
    fields = {"model_name": "*", "random_seed": config.random_seed, "run_name": config.run}
    root = (config.folder / Path(before).expanduser()).resolve()
    names = []
    for folder in sorted(root.glob(f"*{behind.format(**fields)}")):
        name = folder.relative_to(root).parts[0]
        if name != config.model_name and (find(folder, "latest") or find(folder, "best")):
            names.append(name)
    return names


def best_of(config: TrainConfig) -> Path:
    """Return the path of best.pt of a run; that of latest.pt if there is no best.pt."""
    folder = config.path("model_save_path")
    return find(folder, "best") or find(folder, "latest") or folder / "latest.pt"


def load_weights(
    model: torch.nn.Module, saved: dict[str, Any], path: Path, *, trained: bool = False
) -> None:
    """Load the weights of a checkpoint into the model: those that predict.

    They are the average of the weights, where the run kept one. Raises UserError, which names
    `path`, unless all names and shapes of parameters agree.

    Args:
        model: gets the weights.
        saved: content of the checkpoint.
        path: of the checkpoint.
        trained: load the weights with which training goes on instead.
    """
    tensors = saved["model"]
    averaged = average.averaged_weights(saved)
    if averaged and not trained:
        tensors = averaged
    difference = weights_file.difference(tensors, model)
    if difference:
        raise UserError(
            f"{path}: its weights are of another network ({difference}); "
            "use that network, or set another run_name"
        )
    model.load_state_dict(tensors, strict=True)


def _difference(saved: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Return a sentence about the first channel in which two lists of classes differ."""
    pairs = itertools.zip_longest(saved, wanted, fillvalue="none")
    for channel, (before, now) in enumerate(pairs):
        if before != now:
            return f"channel {channel} is '{before}' there and '{now}' here"
    raise AssertionError("the lists are equal")
