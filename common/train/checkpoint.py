"""Save the whole training state of a run, and continue from it.

A checkpoint is a file of torch.save with the state dicts of model, average of its weights, loss,
optimiser, scheduler and scaler, the random states, the numbers of `State`, and the classes,
settings and provenance of the run.

latest.pt is the newest one, latest.1.pt the one before it, and so on; best.pt that of the best
epoch.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common import runtime
from common.config.settings import MAY_CHANGE, OF_THE_FUTURE, TrainConfig
from common.data.normalize import Scaling, Scalings
from common.data.sampling import BLOCK_ORDER
from common.errors import NotFinite, UserError
from common.files import REPOSITORY, free_bytes, not_written, replacing, sweep
from common.model import seen_range
from common.provenance import provenance
from common.talk import note, size, some
from common.train import average, optim, ranks, schedule, weights_file
from common.train.record import HISTORY, RECORD
from common.train.steps import State

SAVED_NUMBERS = (
    "epoch",
    "iteration",
    "skipped",
    "skipped_in_epoch",
    "skipped_in_a_row",
    "best",
    "best_epoch",
    "judged",
    "best_loss",
    "waited",
    "validation_batches",
    "shown",
    "epoch_loss",
    "recent_losses",
    "learning_rate",
    "grad_norm",
    "epoch_counts",
    "smoothed",
    "validation_loss",
    "raw_scalings",
)
"""Fields of State that are saved as they are; the others are saved as state dicts."""


OF_OTHERS = "random_states_of_others"
"""The random states of the processes beside the main one, in their order."""


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


def save_state(config: TrainConfig, state: State, split_hash: str, which: str) -> None:
    """Write the whole state as latest.pt or best.pt of the run; of several processes the main one.

    `which` is "latest" or "best". Raises FileError if the file cannot be written, and NotFinite if
    the weights are not finite: the file before it is better.
    """
    path = config.path("model_save_path") / f"{which}.pt"
    if not are_finite(state.model):
        kept = "the one before it stands" if path.exists() else "there was none before it"
        raise NotFinite(
            f"{path}: not written, since after iteration {state.iteration} the weights are not "
            f"finite; {kept}. "
            "Start another run_name with a lower learning_rate, or a max_grad_norm"
        )
    # random numbers are all that processes differ in
    _, *of_others = ranks.gathered(runtime.random_state())
    if not ranks.is_main():
        return
    content = {
        "model": state.model.state_dict(),
        "ema": state.ema.state_dict() if state.ema else None,
        "criterion": state.criterion.state_dict() if state.criterion is not None else None,
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict() if state.scheduler else None,
        "scaler": state.scaler.state_dict(),
        "classes": list(config.channels),
        "settings": config.record(),
        "provenance": provenance(REPOSITORY),
        "split_hash": split_hash,
        "block_order": BLOCK_ORDER,
    } | runtime.random_state()
    for name in SAVED_NUMBERS:
        content[name] = getattr(state, name)
    if of_others:
        content[OF_OTHERS] = of_others
    number = config.checkpoints_kept if which == "latest" else 1
    save(path, content, number)


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


def raw_scalings(config: TrainConfig) -> Scalings:
    """Return how the run that load_model continues normalised its raw; {} if it is to begin."""
    if config.raw_normalization == "range":
        return {}
    own = _own(config)
    if not own:
        return {}
    found: list[Scalings] = []

    def take(path: Path, saved: dict[str, Any]) -> None:
        with _restoring(path, "raw_scalings"):
            found.append(scalings_in(saved))

    # the same in all checkpoints of a run: what else is in this one is read by resume
    _newest_good(own, config, take, weights_file.read_without_tensors)
    return found[0]


def scalings_in(saved: dict[str, Any]) -> Scalings:
    """Return how raw was normalised, by the names of volumes, from what a checkpoint holds."""
    # a run from before there was raw_normalization has none
    stored = saved.get("raw_scalings", {})
    return {name: Scaling.of(scaling) for name, scaling in stored.items()}


def resume(config: TrainConfig, state: State, split_hash: str) -> str:
    """Load the checkpoint that load_model asks for; return a sentence that says what was loaded.

    A checkpoint of the run itself takes precedence over a given file: the same command first starts
    a run from given weights, and later continues it. From a given file only the weights are taken,
    and `state` stays at epoch 0. Raises FileNotFoundError or UserError, the latter also if the run
    was begun with other settings than those of MAY_CHANGE.
    """
    choice = config.load_model
    folder = config.path("model_save_path")
    sweep(folder, ("latest.pt", "best.pt"))
    sweep(config.path("logs_save_path"), (RECORD, HISTORY))
    own = _own(config)
    if own and choice == "scratch":
        raise UserError(
            f"{own[0]}: this run exists and load_model = 'scratch' would write over it; "
            "set another run_name"
        )
    if own:
        return _go_on(own, config, state, split_hash)
    if choice != "scratch":
        _refuse_lost_checkpoints(config)
    if choice in ("latest", "best", "scratch"):
        return "starting with new weights"
    given = config.folder / choice  # which is `choice` itself if that is absolute
    saved = weights_file.read(given)
    if is_whole(saved):
        refuse_other_classes(given, saved, config.channels)
        load_weights(state.model, saved, given)
        average.begin_again(state.ema, state.model)
        return f"starting at epoch 0 with the weights of {given} (epoch {saved['epoch']})"
    weights_file.load_weights(state.model, saved, given)
    unlike = seen_range.notice(config, state.model)
    if unlike:
        note(f"{given}: {unlike}")
    average.begin_again(state.ema, state.model)
    return (
        f"starting at epoch 0 with the weights of {given}; nothing else was taken from it, and it "
        f"does not say of which classes its channels are: here they are {some(config.channels)}"
    )


def _go_on(own: list[Path], config: TrainConfig, state: State, split_hash: str) -> str:
    """Load the newest readable checkpoint of a run; return a sentence about it."""
    changes = ""
    as_new = _as_new(state)

    def restore(path: Path, saved: dict[str, Any]) -> None:
        nonlocal changes
        as_new()  # one before it may have been restored in part
        _refuse_other_settings(path, saved, config, split_hash)
        load_weights(state.model, saved, path, trained=True)
        _restore_criterion(state, saved, path)
        changes = _restore(config, state, saved, path)
        _note_other_order(path, state, saved)

    path, unreadable = _newest_good(own, config, restore, weights_file.read)
    for problem in unreadable:
        note(problem)
    if unreadable:
        note(f"the run goes on with the newest checkpoint that can be read, {path}")
        _take_place_of_latest(path)
    origin = f"continuing {path} after epoch {state.epoch}, iteration {state.iteration}"
    return f"{origin}; {changes}" if changes else origin


def _as_new(state: State) -> Callable[[], None]:
    """Return what puts optimiser and scheduler back to what they are now, at the first step."""
    optimizer = copy.deepcopy(state.optimizer.state_dict())
    scheduler = copy.deepcopy(state.scheduler.state_dict()) if state.scheduler else {}

    def restore() -> None:
        state.optimizer.load_state_dict(optimizer)
        if state.scheduler:
            state.scheduler.load_state_dict(scheduler)

    return restore


def _take_place_of_latest(good: Path) -> None:
    """Copy a checkpoint to latest.pt; the unreadable file there gets another name.

    Otherwise it would be kept as the one before the next, in the place of a good one.
    """
    latest = good.with_name("latest.pt")
    with replacing(latest, durable=True) as temporary:
        shutil.copyfile(good, temporary)
        if latest.is_file():
            latest.replace(latest.with_name("latest.pt.unreadable"))


def _own(config: TrainConfig) -> list[Path]:
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


def _refuse_lost_checkpoints(config: TrainConfig) -> None:
    """Raise UserError if a run that begins would write over the logs of a run of its name."""
    history = config.path("logs_save_path") / HISTORY
    if history.is_file():
        raise UserError(
            f"{history}: a run of this name was trained, and {config.path('model_save_path')} has "
            "no checkpoint of it; put its latest.pt back, or set another run_name, or write over "
            "its logs with load_model = 'scratch'"
        )


def _from_best(best: Path) -> str:
    """Return how a run whose latest.pt is lost can go on."""
    return (
        "Go on after the epoch of best.pt with load_model = 'best' (later epochs are trained "
        f"again), or leave all files as they are and set another run_name with load_model = "
        f"'{best}'"
    )


class _Damaged(UserError):
    """A checkpoint that can be read, a part of which is not what its name says."""


def _newest_good(
    own: list[Path],
    config: TrainConfig,
    use: Callable[[Path, dict[str, Any]], None],
    read: Callable[[Path], Any],
) -> tuple[Path, list[str]]:
    """Use the first checkpoint that can be used.

    Args:
        own: the checkpoints of a run, the newest first.
        config: settings of the run.
        use: `use(path, content)` restores what is wanted.
        read: returns the content of a file.

    Returns:
        Its path, and what is wrong with those before it.

    Raises:
        UserError: if none can be used, or if it is of other classes or settings.
    """
    unreadable = []
    for path in own:
        try:
            saved = read(path)
            wrong = _wrong_parts(saved)
            if wrong:
                raise _Damaged(f"{path}: holds no whole state of a run ({some(wrong)})")
            refuse_other_classes(path, saved, config.channels)
            use(path, saved)
        except weights_file.Unreadable as error:
            unreadable.append(error.problem)
        except _Damaged as error:
            unreadable.append(str(error))
        else:
            return path, unreadable
    raise UserError(f"{'; '.join(unreadable)}. {_instead_of(own[0])}")


def _wrong_parts(saved: Any) -> list[str]:
    """Return what is missing in a whole state of a run, or is of another type."""
    if not isinstance(saved, dict):
        return [f"but a {type(saved).__name__}"]
    kinds = dict(PARTS)
    for part in dataclasses.fields(State):
        # numbers came to be one after the other: what an earlier version did not save is optional
        if part.name in SAVED_NUMBERS and part.name in saved:
            default = part.default_factory() if callable(part.default_factory) else part.default
            kinds[part.name] = (int, float) if isinstance(default, float) else type(default)
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


def _instead_of(own: Path) -> str:
    """Return how to go on where no checkpoint of a run can be read."""
    if own.name == "best.pt" and find(own.parent, "latest"):
        return "latest.pt stands: go on with load_model = 'latest'"
    return (
        "The run has no other checkpoint: put a copy of this file back, or leave all files as they "
        "are and set another run_name, with load_model = a file whose weights can be read"
    )


def is_whole(saved: Any) -> bool:
    """Return whether what a file holds is a whole state of a run of this trainer."""
    wanted = ("model", "classes", "epoch", "settings")
    return isinstance(saved, dict) and all(name in saved for name in wanted)


@contextmanager
def _restoring(path: Path, part: str) -> Iterator[None]:
    """Raise _Damaged where a part of a checkpoint is not what its name says."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch raises a different type for each kind of wrong content
        reason = " ".join(str(error).split())[:200]
        raise _Damaged(
            f"{path}: its {part} cannot be restored ({type(error).__name__}: {reason})"
        ) from error


def _restore(config: TrainConfig, state: State, saved: dict[str, Any], path: Path) -> str:
    """Restore everything of a saved state except the weights of the model.

    Returns what is to be another one from now on, learning rate or average, as a sentence, or "".
    """
    before = TrainConfig.recorded_defaults() | saved["settings"]
    with _restoring(path, "raw_scalings"):
        scalings_in(saved)
    with _restoring(path, "optimizer or scheduler"):
        changes = schedule.go_on(
            config, before, saved, optimizer=state.optimizer, scheduler=state.scheduler
        )
        optim.refuse_other_shapes(state.optimizer)
    with _restoring(path, "ema"):
        changes = "; ".join(part for part in (changes, _restore_average(state, saved)) if part)
    if saved["scaler"]:  # empty unless that run was in fp16
        with _restoring(path, "scaler"):
            state.scaler.load_state_dict(saved["scaler"])
    # earlier versions counted from the best epoch, which was 0 without one
    state.waited = saved["epoch"] - saved["best_epoch"] if saved["best_epoch"] else 0
    for name in SAVED_NUMBERS:
        setattr(state, name, saved.get(name, getattr(state, name)))
    if state.iteration:
        # an epoch that only lacks its validation: its steps were those of earlier calls
        optim.count_as_stepped(state.optimizer)
    with _restoring(path, "random state"):
        _restore_random_state(config, state, saved)
    return changes


def _restore_random_state(config: TrainConfig, state: State, saved: dict[str, Any]) -> None:
    """Restore the random state of this process; one that was not there before begins anew."""
    states = [saved, *saved.get(OF_OTHERS, [])]
    if ranks.rank() < len(states):
        runtime.restore_random_state(states[ranks.rank()])
    else:
        runtime.seed_process(config.random_seed, ranks.rank(), state.iteration)


def _restore_criterion(state: State, saved: dict[str, Any], path: Path) -> None:
    """Restore what a loss has counted. Raises UserError if it counts something else by now."""
    before = saved.get("criterion")
    if state.criterion is None or before is None:
        return
    difference = weights_file.difference(before, state.criterion)
    if difference:
        raise UserError(
            f"{path}: its criterion kept something else ({difference}); "
            "set the code of the loss back, or set another run_name"
        )
    with _restoring(path, "criterion"):
        state.criterion.load_state_dict(before)


def _restore_average(state: State, saved: dict[str, Any]) -> str:
    """Restore the average of the weights; return what is new about it, or ""."""
    before = saved.get("ema")
    if state.ema is None:
        return "the weights are no longer averaged" if before else ""
    if before:
        state.ema.load_state_dict(before)
        return ""
    average.begin_again(state.ema, state.model)
    return "the weights are averaged from here on"


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
        if name not in MAY_CHANGE | OF_THE_FUTURE and before.get(name) != value:
            changed.append(f"{name} was {before.get(name)} and is {value}")
    if saved["split_hash"] != split_hash:
        changed.append(f"the crops of the datasplit are others{_other_splits(config)}")
    if changed:
        raise UserError(
            f"{path}: this run was started with other settings ({'; '.join(changed)}). "
            "Set them back, or set another run_name "
            "(with load_model = this file to start from its weights)"
        )


def _other_splits(config: TrainConfig) -> str:
    """The other datasplits of an experiment, as what to try; empty without any.

    The baselines' first split is datasplit_partial.csv today: runs begun with it go on with it.
    """
    given = config.path("datasplit_path")
    names = sorted(path.name for path in config.folder.glob("datasplit*.csv") if path != given)
    if not names:
        return ""
    return f", perhaps those of {some(names)}: try --set datasplit_path={names[0]}"


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


def refuse_other_classes(path: Path, saved: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Raise UserError unless a checkpoint is of a network for these classes."""
    saved_classes = tuple(saved["classes"])
    if saved_classes != classes:
        raise UserError(
            f"{path}: trained for {len(saved_classes)} classes and this run has {len(classes)}: "
            f"{_difference(saved_classes, classes)}; "
            "use the same classes in the same order, or set another run_name"
        )


def find(folder: Path, which: str) -> Path | None:
    """Return the path of {which}.pt in `folder`, or of the one before it; None without either."""
    path = folder / f"{which}.pt"
    if path.is_file():
        return path
    return next(iter(earlier(path)), None)


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
