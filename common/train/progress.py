"""Print and log the progress of a run: when it begins, after each epoch, and at its end."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common import provenance, runtime
from common.config.groups import PLACES
from common.config.settings import CHALLENGE, TrainConfig
from common.data.samples import loaders, rows
from common.errors import FileError
from common.files import REPOSITORY, replacing
from common.talk import count, duration, note, progress, say, this_command
from common.train.checkpointing.checkpoint import best_of, path_of
from common.train.losses import heads
from common.train.optimising import schedule
from common.train.processes import ranks
from common.train.recording import previews, tracking
from common.train.recording.record import Recorder, RunRecord
from common.train.recording.tracking import Tracker, open_sinks
from common.train.setup import Setup
from common.train.state import State
from common.train.steps import TrainedEpoch
from common.train.validation import ValidationScores

MOST_CHANGES = 2**22
"""Bytes of uncommitted changes that are kept with a run."""


@dataclass(frozen=True)
class Logs:
    """The logs of one run."""

    tracker: Tracker
    """Gets scalars and figures, for history.csv and the sinks in the setting `trackers`."""
    recorder: Recorder
    """Keeps run.json up to date."""


@contextmanager
def open_logs(config: TrainConfig, state: State, about: dict[str, str]) -> Iterator[Logs]:
    """Context manager: yield the logs of a run, and close them when the block ends.

    If an exception ends the block, trackers are closed with the status "FAILED". `about` has
    versions, commit, device, precision and the hash of the split.
    """
    record = RunRecord(
        experiment=config.folder.name,
        model_name=config.model_name,
        run_name=config.run,
        settings=config.record(),
        provenance=about,
    )
    with _folder(config) as folder:
        _write_patch(folder)
        recorder = Recorder(folder, state.iteration, record)
        sinks = open_sinks(config, state.iteration, recorder) if ranks.is_main() else []
        logs = Logs(Tracker(folder, state.iteration, sinks), recorder)
        try:
            yield logs
        except BaseException:
            # what has gone wrong is what is told, and not what the same full disk does to the logs
            with suppress(FileError):
                logs.tracker.finish({}, {}, status="FAILED")
            with suppress(FileError):
                recorder.end(state.iteration)
            raise
        recorder.end(state.iteration)


def _write_patch(folder: Path) -> None:
    """Write what differs from the commit that trains beside run.json, or nothing if nothing does.

    With more than MOST_CHANGES a patch is no record that anybody reads: then that is its text.
    """
    path = folder / tracking.PATCH
    path.unlink(missing_ok=True)
    patch = provenance.uncommitted(REPOSITORY)
    if len(patch) > MOST_CHANGES:
        patch = f"# {len(patch):,} bytes of uncommitted changes are not kept; commit\n".encode()
    if patch:
        with replacing(path) as temporary:
            temporary.write_bytes(patch)


@contextmanager
def _folder(config: TrainConfig) -> Iterator[Path]:
    """Yield the folder of the logs: that of the run, and in processes beside the main one none."""
    if not ranks.is_main():
        with tempfile.TemporaryDirectory() as thrown_away:
            yield Path(thrown_away)
        return
    folder = config.path("logs_save_path")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def announce(
    setup: Setup, state: State, run_logs: Logs, *, about: dict[str, str], origin: str
) -> None:
    """Print and log what is about to run.

    Args:
        setup: what the run was built from.
        state: state of the run.
        run_logs: gets settings and provenance.
        about: versions, commit, device, precision and the hash of the split.
        origin: a sentence that says where the weights are from.
    """
    config = setup.config
    data = setup.data
    parameters = sum(p.numel() for p in state.model.parameters())
    many = f", {ranks.size()} processes" if ranks.size() > 1 else ""
    say(
        f"{config.model_name}/{config.run}: {parameters:,} parameters on {about['device']} in "
        f"{about['precision']}{many}; {origin}"
    )
    say(
        f"{count(len(data.train), 'training crop')}, "
        f"{count(len(data.validation), 'validation crop')} in "
        f"{count(len(data.blocks), 'block')}, "
        f"{count(len(config.classes), 'class', 'classes')}{beside(config)}"
    )
    for notice in notices(setup, state):
        note(notice)
    run_logs.tracker.text("settings", config.record(), state.iteration)
    run_logs.tracker.text("provenance", about, state.iteration)


def beside(config: TrainConfig) -> str:
    """Return what is learnt beside the classes, as the end of a sentence."""
    derived = config.channels[len(config.classes) :]
    return f", {count(len(derived), 'derived channel')}" if derived else ""


def notices(setup: Setup, state: State) -> list[str]:
    """Return what the user should know before training, as sentences."""
    return [
        *setup.config.translated,
        *runtime.warnings_about(setup.device),
        *loaders.notices(setup.data, setup.config.classes, setup.config.counter_classes),
        *rows.without_effect(setup.data.rows, setup.config),
        *heads.notices(setup.method.criterion, setup.config),
        *setup.unusual,
        *schedule.notices(setup.config, state.scheduler, validated=bool(setup.data.validation)),
    ]


def epoch_progress(config: TrainConfig, state: State, last_iteration: int) -> tqdm:
    """Return the progress bar of the current epoch, which an earlier call may have begun."""
    left = last_iteration - state.iteration
    return progress(
        config.iterations_per_epoch,
        f"epoch {state.epoch + 1}/{config.epochs}",
        done=config.iterations_per_epoch - left,
    )


def log_epoch(
    config: TrainConfig,
    state: State,
    tracker: Tracker,
    trained: TrainedEpoch,
    *,
    scores: ValidationScores | None,
) -> None:
    """Log a finished epoch: scalars, figures and a row of history.csv.

    Args:
        config: settings of the run.
        state: state of the run, in which the epoch is already counted.
        tracker: gets the scalars, figures and the row.
        trained: results of the training of this epoch.
        scores: results of its validation; None without one.
    """
    row: dict[str, float] = {"epoch": state.epoch, "iteration": state.iteration}
    row["lr"] = state.learning_rate
    for name, value in asdict(trained).items():
        row[f"train/{name}"] = value
    if scores:
        row |= _log_validation(config, state, tracker, scores)
    scalars = {"mean/dice/train": trained.dice, "mean/iou/train": trained.iou}
    if state.skipped:  # a curve only for runs that have something to show
        scalars["skipped"] = trained.skipped
    tracker.scalars({"lr": state.learning_rate} | scalars, state.iteration)
    tracker.history(row)


def _log_validation(
    config: TrainConfig, state: State, tracker: Tracker, scores: ValidationScores
) -> dict[str, float]:
    """Log the results of a validation; return them as columns of history.csv."""
    means = {name: scores.mean(name) for name in scores.per_class}
    if config.metric_smoothing:
        means[f"{config.best_metric}_smoothed"] = scores.judged
    per_class = {}
    for name, values in scores.per_class.items():
        for class_name, value in zip(config.channels, values, strict=True):
            per_class[f"{name}/{class_name}"] = value
    tracker.scalars({"loss/validation": scores.loss}, state.iteration)
    tracker.scalars({f"mean/{name}": mean for name, mean in means.items()}, state.iteration)
    tracker.scalars(per_class, state.iteration)
    for name, image in scores.images.items():
        tracker.image(f"raw, target, prediction/{name}", image, state.iteration)
    for name, image in scores.slices.items():
        tracker.image(f"whole crop/{name}", image, state.iteration)
    if scores.stacks and ranks.is_main():
        folder = config.path("logs_save_path")
        shown = previews.write(folder, state.epoch, scores.stacks, config.preview_tiff)
        for name, image in shown.items():
            # MLflow names its file by the end of the tag, and the one slice has the crop's name
            tracker.image(f"preview/{name}, sections", image, state.iteration)
    columns = {"validation/loss": scores.loss}
    for name, mean in means.items():
        columns[f"validation/{name}"] = mean
    return columns | per_class


def say_epoch(
    config: TrainConfig,
    state: State,
    trained: TrainedEpoch,
    *,
    scores: ValidationScores | None,
    is_best: bool,
    seconds_left: float,
) -> None:
    """Print one line about a finished epoch.

    Args:
        config: settings of the run.
        state: state of the run, in which the epoch is already counted.
        trained: results of the training of this epoch.
        scores: results of its validation; None without one.
        is_best: whether it is the best epoch so far.
        seconds_left: expected seconds until the last epoch is done.
    """
    parts = [f"epoch {state.epoch}/{config.epochs}: loss {trained.loss:.4f}"]
    if scores:
        best = " (best)" if is_best else ""
        parts.append(f"validation loss {scores.loss:.4f}")
        # the challenge's score is there in some epochs only
        if config.best_metric != CHALLENGE or scores.whole:
            parts.append(f"{config.best_metric} {scores.mean(config.best_metric):.3f}{best}")
    if trained.skipped:
        parts.append(f"{count(trained.skipped, 'step')} skipped")
    parts.append(f"{trained.samples_per_s:.1f} samples/s")
    parts.append(f"data wait {trained.data_wait:.0%}")
    parts.append(f"{duration(seconds_left)} left")
    say(", ".join(parts))


def hparams(config: TrainConfig) -> dict[str, Any]:
    """Return all settings but names and paths, as TensorBoard's HPARAMS page takes them.

    Which of them runs differ in is known to who looks at all runs: `common.runs.layout`.
    """
    values: dict[str, Any] = {}
    for name, text in config.record().items():
        if name not in PLACES:
            value = getattr(config, name)
            is_text = isinstance(value, str) and value.isprintable()
            # what is no UTF-8 in a path, no event file takes
            values[name] = value if is_text or isinstance(value, bool | int | float) else text
    return values


def close_interrupted(config: TrainConfig, state: State, tracker: Tracker, command: str) -> None:
    """Close the trackers of an interrupted run, and print how to continue it.

    `command` is printed if the command line that started this process is not known.
    """
    tracker.finish(hparams(config), {}, status="KILLED")
    again = this_command(command)
    says_seed = any(word in again for word in ("random_seed=", "random-seed=", "--seeds"))
    if os.environ.get("SEED") and not says_seed:  # which may be there for this call alone
        again += f" --set random_seed={config.random_seed}"
    typed = f":\n  {again}"
    if ranks.are_joined() and not ranks.are_started_by_us():
        typed = ""  # torchrun's part of it is not known
    say(
        f"interrupted; saved after iteration {state.iteration} in {path_of(config)}. "
        f"Go on with the same command{typed}"
    )


def close_finished(config: TrainConfig, state: State, tracker: Tracker, *, reason: str) -> None:
    """Log the final metrics and files, close the tracker, and print the best checkpoint.

    Args:
        config: settings of the run.
        state: state of the run.
        tracker: gets metrics and files, and is closed.
        reason: why the run ended early; "" if it did not.
    """
    checkpoint = best_of(config)
    final = {config.best_metric: state.best}
    if math.isfinite(state.validation_loss):
        final["loss"] = state.validation_loss
    files = [*sorted(config.folder.glob("*.py")), config.path("datasplit_path"), checkpoint]
    tracker.finish(hparams(config), final, files)
    ended = f" ({reason})" if reason else ""
    best = ""
    if math.isfinite(state.best):
        best = f"best {config.best_metric} {state.best:.3f} at epoch {state.best_epoch}: "
    say(f"done after epoch {state.epoch}{ended}; {best}{checkpoint}")
