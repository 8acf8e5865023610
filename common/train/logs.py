"""What a run says on the terminal and logs: before its first epoch, after each, at its end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from common.config.settings import TrainConfig
from common.talk import duration, progress, say, this_command
from common.train.checkpoint import best_of
from common.train.record import Recorder, RunRecord
from common.train.steps import Scores, State, TrainedEpoch
from common.train.tracking import Tracker, open_sinks

IN_HPARAMS = (
    "learning_rate",
    "batch_size",
    "weight_decay",
    "use_mutual_exclusion",
    "random_seed",
)
"""Settings that TensorBoard's HPARAMS page compares runs by."""


@dataclass(frozen=True)
class Logs:
    """Where the numbers of a run go."""

    tracker: Tracker
    """Scalars and figures: the sinks that `trackers` names, and history.csv."""
    recorder: Recorder
    """run.json."""


@contextmanager
def open_logs(config: TrainConfig, state: State, about: dict[str, str]) -> Iterator[Logs]:
    """The logs of a run, closed when the block ends; as failed if an error ends it.

    about: versions, commit, device, precision and the hash of the split.
    """
    folder = config.path("logs_save_path")
    folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord(
        experiment=config.folder.name,
        model_name=config.model_name,
        run_name=config.run,
        settings=config.record(),
        provenance=about,
    )
    recorder = Recorder(folder, state.iteration, record)
    sinks = open_sinks(config, state.iteration, recorder)
    logs = Logs(Tracker(folder, state.iteration, sinks), recorder)
    try:
        yield logs
    except BaseException:
        logs.tracker.finish({}, {}, status="FAILED")
        raise
    finally:
        recorder.end(state.iteration)


def epoch_progress(config: TrainConfig, state: State, last_iteration: int) -> tqdm:
    """Progress bar of an epoch, which may have been begun by an earlier call."""
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
    scores: Scores | None,
    learning_rate: float,
) -> None:
    """Log an epoch that was finished: scalars, figures and a row of history.csv.

    Args:
        config: names the classes.
        state: whose epoch and iteration count it already.
        tracker: where it goes.
        trained: what its training came to.
        scores: what its validation found.
        learning_rate: that it was trained with.
    """
    row: dict[str, float] = {"epoch": state.epoch, "iteration": state.iteration}
    row["lr"] = learning_rate
    for name, value in asdict(trained).items():
        row[f"train/{name}"] = value
    if scores:
        row |= _log_validation(config, state, tracker, scores)
    tracker.scalars({"lr": learning_rate}, state.iteration)
    tracker.history(row)


def _log_validation(
    config: TrainConfig, state: State, tracker: Tracker, scores: Scores
) -> dict[str, float]:
    """Log what a validation found; returns it as columns of history.csv."""
    means = {name: scores.mean(name) for name in scores.per_class}
    per_class = {}
    for name, values in scores.per_class.items():
        for class_name, value in zip(config.classes, values, strict=True):
            per_class[f"{name}/{class_name}"] = value
    tracker.scalars({"loss/validation": scores.loss}, state.iteration)
    tracker.scalars({f"mean/{name}": mean for name, mean in means.items()}, state.iteration)
    tracker.scalars(per_class, state.iteration)
    for name, image in scores.images.items():
        tracker.image(f"raw, target, prediction/{name}", image, state.iteration)
    columns = {"validation/loss": scores.loss}
    for name, mean in means.items():
        columns[f"validation/{name}"] = mean
    return columns | per_class


def say_epoch(
    config: TrainConfig,
    state: State,
    trained: TrainedEpoch,
    *,
    scores: Scores | None,
    is_best: bool,
    seconds_left: float,
) -> None:
    """One line about an epoch that was finished.

    Args:
        config: says which metric decides.
        state: whose epoch counts it already.
        trained: what its training came to.
        scores: what its validation found.
        is_best: whether it is the best epoch so far.
        seconds_left: that the run will take.
    """
    parts = [f"epoch {state.epoch}/{config.epochs}: loss {trained.loss:.4f}"]
    if scores:
        best = " (best)" if is_best else ""
        parts.append(f"validation loss {scores.loss:.4f}")
        parts.append(f"{config.best_metric} {scores.mean(config.best_metric):.3f}{best}")
    parts.append(f"{trained.samples_per_s:.1f} samples/s")
    parts.append(f"data wait {trained.data_wait:.0%}")
    parts.append(f"{duration(seconds_left)} left")
    say(", ".join(parts))


def hparams(config: TrainConfig) -> dict[str, Any]:
    """The settings that runs are compared by."""
    return {name: getattr(config, name) for name in IN_HPARAMS}


def close_interrupted(config: TrainConfig, state: State, tracker: Tracker, command: str) -> None:
    """Close the trackers of a run that was interrupted, and say how to go on.

    command: what to type, unless the command line is known.
    """
    tracker.finish(hparams(config), {}, status="KILLED")
    latest = config.path("model_save_path") / "latest.pt"
    say(
        f"interrupted; saved after iteration {state.iteration} in {latest}. "
        f"Go on with the same command:\n  {this_command(command)}"
    )


def close_finished(
    config: TrainConfig, state: State, tracker: Tracker, *, scores: Scores | None, reason: str
) -> None:
    """Log final metrics and files, and say where the best checkpoint is and how good.

    Args:
        config: says which metric decides.
        state: of the run.
        tracker: is closed.
        scores: of the last validation.
        reason: why the run ended early, or "".
    """
    checkpoint = best_of(config)
    final = {config.best_metric: state.best}
    if scores:
        final["loss"] = scores.loss
    files = [*sorted(config.folder.glob("*.py")), config.path("datasplit_path"), checkpoint]
    tracker.finish(hparams(config), final, files)
    ended = f" ({reason})" if reason else ""
    best = ""
    if math.isfinite(state.best):
        best = f"best {config.best_metric} {state.best:.3f} at epoch {state.best_epoch}: "
    say(f"done after epoch {state.epoch}{ended}; {best}{checkpoint}")
