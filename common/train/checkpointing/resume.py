"""How a run goes on: with which of its checkpoints, and what is restored of it.

`resume` puts what a checkpoint holds into a `State` that was built anew. A run that is to begin may
take the weights of another file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import provenance, runtime
from common.config.as_text import from_text
from common.config.code import note_other_code
from common.config.groups import MAY_CHANGE, OF_INPUT, OF_THE_FUTURE
from common.config.input_channels import values_of
from common.config.settings import TrainConfig
from common.data.crops.normalize import Scalings
from common.data.samples.validation_blocks import BLOCK_ORDER
from common.errors import UserError
from common.files import sweep
from common.model import seen_range
from common.talk import nm, note, some
from common.train.checkpointing import weights_file
from common.train.checkpointing.checkpoint import (
    OF_OTHERS,
    SAVED_NUMBERS,
    is_whole,
    load_weights,
    of_other_models,
    refuse_other_classes,
    scalings_in,
)
from common.train.checkpointing.newest import (
    look_into_newest,
    own_checkpoints,
    restoring,
    take_place_of_latest,
    use_newest,
)
from common.train.optimising import average, optim, schedule
from common.train.processes import ranks
from common.train.recording.checksums import CHECKSUMS
from common.train.recording.record import HISTORY, RECORD
from common.train.recording.tracking import PATCH
from common.train.skipped import SKIPPED
from common.train.state import State


def resume(config: TrainConfig, state: State, split_hash: str) -> str:
    """Load the checkpoint that load_model asks for; return a sentence that says what was loaded.

    A checkpoint of the run itself takes precedence over a given file: the same command first starts
    a run from given weights, and later continues it. From a given file only the weights are taken,
    and `state` stays at epoch 0. Raises FileNotFoundError or UserError, the latter also if the run
    was begun with other settings than those of MAY_CHANGE.
    """
    choice = config.load_model
    sweep(config.path("model_save_path"), ("latest.pt", "best.pt"))
    sweep(config.path("logs_save_path"), (RECORD, HISTORY, CHECKSUMS, SKIPPED, PATCH))
    own = own_checkpoints(config)
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
        _note_other_models(config)
        return "starting with new weights"
    # relative to the experiment, unless the path is absolute
    return _begin_with(config.folder / Path(choice).expanduser(), config, state)


def _note_other_models(config: TrainConfig) -> None:
    """Note that a run which begins has checkpoints under the name of another model."""
    others = of_other_models(config)
    if others:
        note(
            f"{config.folder}: begins anew as {config.model_name}/{config.run}, and checkpoints of "
            f"{some([f'{name}/{config.run}' for name in others])} are there; if the folder was "
            f"renamed, set model_name={others[0]} to go on"
        )


def _begin_with(given: Path, config: TrainConfig, state: State) -> str:
    """Take the weights of a file that was given, and nothing else; return a sentence about it."""
    _refuse_missing(given, config)
    saved = weights_file.read(given)
    if is_whole(saved):
        refuse_other_classes(given, saved, config.channels, "leave load_model out")
        load_weights(state.model, saved, given)
        _note_other_input(given, saved, config)
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


def _refuse_missing(given: Path, config: TrainConfig) -> None:
    """FileNotFoundError where a file that is typed from here is looked for in the experiment."""
    here = Path(config.load_model).expanduser().absolute()
    if not given.is_file() and here.is_file():
        raise FileNotFoundError(
            f"{given}: no such checkpoint, as the path in load_model starts from the experiment; "
            f"set load_model={here}"
        )


def _note_other_input(given: Path, saved: dict[str, Any], config: TrainConfig) -> None:
    """Note that a run begins with weights that learnt from another kind of input.

    That may be meant, as in fine-tuning on other voxels, and is learnt anew.
    """
    before = TrainConfig.recorded_defaults() | saved["settings"]
    now = config.record()
    texts = []
    for name in OF_INPUT:
        if before[name] != now[name]:
            texts.append(f"{name} {before[name]}, here {now[name]}")
    with suppress(KeyError, ValueError):  # as of another program
        scale = from_text(before["input_array_info"])["scale"]
        own = config.input_array_info["scale"]
        if tuple(scale) != tuple(own):
            texts.append(f"raw of {nm(scale)} nm, here {nm(own)} nm")
    if texts:
        note(f"{given}: its weights were trained with {'; '.join(texts)}")


def refuse_other_settings(config: TrainConfig) -> None:
    """Raise UserError if the run that would go on was begun with other settings.

    Called before anything is built: `resume` does the same again, with the crops.
    """

    def refuse(path: Path, saved: dict[str, Any]) -> None:
        _refuse_changes(path, changed_settings(saved, config))

    if config.load_model != "scratch":  # which does not go on, and says so
        look_into_newest(config, refuse)


def raw_scalings(config: TrainConfig) -> Scalings:
    """Return how the run that load_model continues normalised its raw; {} if it is to begin."""
    if config.raw_normalization == "range":
        return {}

    def take(path: Path, saved: dict[str, Any]) -> Scalings:
        with restoring(path, "raw_scalings"):
            return scalings_in(saved)

    return look_into_newest(config, take) or {}


def split_hash_of(config: TrainConfig) -> str:
    """Return the hash of the crops that the run was begun with; "" if it is to begin."""
    return look_into_newest(config, lambda _, saved: saved["split_hash"]) or ""


def _refuse_lost_checkpoints(config: TrainConfig) -> None:
    """Raise UserError if a run that begins would write over the logs of a run of its name."""
    history = config.path("logs_save_path") / HISTORY
    if history.is_file():
        raise UserError(
            f"{history}: a run of this name was trained, and {config.path('model_save_path')} has "
            "no checkpoint of it; put its latest.pt back, or set another run_name, or write over "
            "its logs with load_model = 'scratch'"
        )


def _go_on(own: list[Path], config: TrainConfig, state: State, split_hash: str) -> str:
    """Load the newest readable checkpoint of a run; return a sentence about it."""
    as_new = _as_new(state)

    def restore(path: Path, saved: dict[str, Any]) -> str:
        as_new()  # one before it may have been restored in part
        _refuse_other_settings(path, saved, config, split_hash)
        _refuse_other_channels(path, saved, state)
        load_weights(state.model, saved, path, trained=True)
        _restore_criterion(state, saved, path)
        changes = _restore(config, state, saved, path)
        _note_unused_weights(path, saved, config)
        _note_other_order(path, state, saved)
        _note_others(path, saved, "labels", now=state.labels)
        _note_others(path, saved, "raws", now=state.raws)
        note_other_code(path, saved, config)
        _note_other_versions(path, saved)
        return changes

    changes, path, unreadable = use_newest(own, config, restore, weights_file.read)
    for problem in unreadable:
        note(problem)
    if unreadable:
        note(f"the run goes on with the newest checkpoint that can be read, {path}")
        take_place_of_latest(path)
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


def _restore(config: TrainConfig, state: State, saved: dict[str, Any], path: Path) -> str:
    """Restore everything of a saved state except the weights of the model.

    Returns what is to be another one from now on, learning rate or average, as a sentence, or "".
    """
    before = TrainConfig.recorded_defaults() | saved["settings"]
    with restoring(path, "raw_scalings"):
        scalings_in(saved)
    with restoring(path, "optimizer or scheduler"):
        changes = schedule.go_on(
            config, before, saved, optimizer=state.optimizer, scheduler=state.scheduler
        )
        optim.refuse_other_shapes(state.optimizer)
    with restoring(path, "ema"):
        changes = "; ".join(part for part in (changes, _restore_average(state, saved)) if part)
    if saved["scaler"]:  # empty unless that run was in fp16
        with restoring(path, "scaler"):
            state.scaler.load_state_dict(saved["scaler"])
    # earlier versions counted from the best epoch, which was 0 without one
    state.waited = saved["epoch"] - saved["best_epoch"] if saved["best_epoch"] else 0
    for name in SAVED_NUMBERS:
        setattr(state, name, saved.get(name, getattr(state, name)))
    if state.iteration:
        # an epoch that only lacks its validation: its steps were those of earlier calls
        optim.count_as_stepped(state.optimizer)
    with restoring(path, "random state"):
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
    with restoring(path, "criterion"):
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


def _note_unused_weights(path: Path, saved: dict[str, Any], config: TrainConfig) -> None:
    """Note a file in load_model that a run which goes on was not begun with."""
    is_file = config.load_model not in ("latest", "best")
    before = TrainConfig.recorded_defaults() | saved["settings"]
    if is_file and before["load_model"] != config.record()["load_model"]:
        note(
            f"{path}: the run goes on, and load_model = '{config.load_model}' has no effect; set "
            "another run_name to begin with its weights"
        )


def _note_others(path: Path, saved: dict[str, Any], part: str, *, now: dict[str, str]) -> None:
    """Say which crops have other labels, or other raw, than when the checkpoint was written.

    part: "labels" or "raws", of the checkpoint. now: what tells those of each crop from others.
    """
    # a checkpoint from before raw was looked at does not say which it was
    before = saved.get(part) or {}
    with restoring(path, part):
        others = [name for name, key in now.items() if before.get(name, key) != key]
    if others:
        what = "labels" if part == "labels" else "voxels of raw or input channels"
        note(
            f"{path}: the {what} of {some(others)} are others since it was written; it goes on "
            "with those of now, and epochs before and after, of which one is the best, cannot be "
            "compared: another run_name begins anew"
        )


def _note_other_versions(path: Path, saved: dict[str, Any]) -> None:
    """Say which libraries are of another version than when the checkpoint was written."""
    before = saved.get("provenance") or {}
    changed = []
    for name, now in provenance.versions_of(provenance.PACKAGES).items():
        was = before.get(name, now)
        if was != now:
            changed.append(f"{name} {was}, now {now}")
    if changed:
        note(
            f"{path}: was written with {'; '.join(changed)}; it goes on, and what follows need not "
            "be what one version would have given"
        )


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
    changed = changed_settings(saved, config)
    if saved["split_hash"] != split_hash:
        changed.append(f"the crops of the datasplit are others{_other_splits(config)}")
    _refuse_changes(path, changed)


def changed_settings(saved: dict[str, Any], config: TrainConfig) -> list[str]:
    """Return how settings differ that a continued run must not change."""
    # a setting that did not exist yet when the run was begun was what its default is
    before = TrainConfig.recorded_defaults() | saved["settings"]
    changed = []
    for name, value in config.record().items():
        if name in MAY_CHANGE | OF_THE_FUTURE or before.get(name) == value:
            continue
        # what they are of each crop is compared, see _refuse_other_channels
        if name != "input_channels" or values_of(before[name]) != values_of(value):
            changed.append(f"{name} was {before.get(name)} and is {value}")
    return changed


def _refuse_changes(path: Path, changed: Sequence[str]) -> None:
    """Raise UserError if anything differs from what the run was begun with."""
    if changed:
        raise UserError(
            f"{path}: this run was started with other settings ({'; '.join(changed)}). "
            "Set them back, or set another run_name "
            "(with load_model = this file to start from its weights)"
        )


def _refuse_other_channels(path: Path, saved: dict[str, Any], state: State) -> None:
    """Raise UserError if a further input channel was predicted anew since the run was begun."""
    before = saved.get("input_channels", {})
    changed = {}
    with restoring(path, "input_channels"):
        for name, crops in state.input_channels.items():
            was = before.get(name, {})
            others = [crop for crop in crops if crop in was and _by(was[crop]) != _by(crops[crop])]
            if others:
                changed[name] = others
    for name, others in changed.items():
        raise UserError(
            f"{path}: this run was begun with other predictions of channel '{name}' in "
            f"{some(others)}; put those back, or set another run_name (with load_model = this file "
            "to start from its weights)"
        )


def _by(channel: dict[str, Any]) -> Any:
    """By which prediction the volume of a channel was made, wherever it lies."""
    return channel.get("prediction")


def _other_splits(config: TrainConfig) -> str:
    """The other datasplits of an experiment, as what to try; empty without any.

    The baselines' first split is datasplit_partial.csv today: runs begun with it go on with it.
    """
    given = config.path("datasplit_path")
    names = sorted(path.name for path in config.folder.glob("datasplit*.csv") if path != given)
    if not names:
        return ""
    return f", perhaps those of {some(names)}: try --set datasplit_path={names[0]}"
