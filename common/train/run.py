"""One training run, from top to bottom.

    train         reads the settings, joins the other processes, and holds the run
    train_held    builds everything (`setup.prepare`), goes on from a checkpoint
                  (`resume.resume`), and opens the logs
    run_epochs    the training loop: the steps of an epoch (`steps.train_epoch`), then a
                  validation (`validation.validate`)
    finish_epoch  judges an epoch (`judging.count_epoch`), logs it and saves the state

`setup.Setup` holds what does not change during a run, `state.State` what does and is saved. What is
done where files fail or steps have to be skipped is in `mishaps`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import stopping
from common.config.load import load_config
from common.config.settings import CHALLENGE, TrainConfig
from common.data.samples.batches import Batch
from common.data.samples.validation_blocks import key_of_blocks
from common.files import REPOSITORY
from common.provenance import provenance
from common.stopping import ShouldStop
from common.talk import command_line
from common.train import progress, steps, validation
from common.train.checkpointing import checkpoint, resume
from common.train.judging import count_epoch, is_finished
from common.train.mishaps import keep_skipped, saved_if_files_fail
from common.train.processes import one_process, ranks, together
from common.train.progress import Logs
from common.train.recording.tracking import Tracker
from common.train.setup import Score, Setup, prepare
from common.train.state import State, StepResult
from common.train.steps import TrainedEpoch
from common.train.validation import ValidationScores


@dataclass(frozen=True)
class Result:
    """The result of a call of `train`."""

    epochs: int
    """Number of finished epochs, those of earlier calls included."""
    finished: bool
    """False if the call was interrupted by Ctrl-C, another signal or a time limit."""
    run: str
    """Name of the run."""
    logs: Path
    """Folder of the TensorBoard events, history.csv and run.json."""
    best_metric: float
    """Value of the setting best_metric at the best epoch; NaN without validation."""
    checkpoint: Path
    """best.pt, or latest.pt if there is no best.pt."""
    scores: ValidationScores | None
    """The last validation of this call; None without one."""
    requeue: bool = False
    """Whether it was interrupted, and not by Ctrl-C: the same command is to be started again."""


Report = Callable[[int, float], bool]
"""`report(epoch, value)` is called after each validation with the value of best_metric.

The run ends if it returns True.
"""


def train(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    report: Report | None = None,
    *,
    score: Score | None = None,
    **settings: Any,
) -> Result:
    """Train the experiment of a configuration file, or continue its run where it stopped.

    Args:
        config_path: folder of an experiment, or its train_config.py.
        overrides: settings as "name=value", which take precedence over the file.
        data: the data root; takes precedence over the setting data_path.
        report: called after each validation; may end the run.
        score: what scores whole crops for validation_score_every.
        settings: settings as keyword arguments, which take precedence over the file.

    Returns:
        What the run has reached, see `Result`.

    Raises:
        UserError: for whatever the user can fix: settings, data, a model or loss that does not fit,
            a loss that is not finite, a full disk; Busy if another process trains the run.
        FileNotFoundError: if a file is missing.
    """
    given = [*overrides, *(f"{name}={value}" for name, value in settings.items())]
    command = command_line("train", config_path, set=given, data=data)
    with stopping.at_once(), ranks.joined():
        config = load_config(config_path, overrides, data, **settings)
        with one_process.held(config):
            return train_held(config, command, score=score, report=report)


def train_held(
    config: TrainConfig, command: str, *, score: Score | None, report: Report | None
) -> Result:
    """Train a run that this process holds; see `train`. `command` continues it."""
    resume.refuse_other_settings(config)  # before minutes go into decoding crops
    setup, state = prepare(config, score)
    setup = dataclasses.replace(setup, replay=command.replace(" train ", " replay ", 1))
    with ranks.main_first():  # it mends what it finds broken
        origin = resume.resume(config, state, setup.data.split_hash)
    together.refuse_other_weights(state.model, state.iteration)
    checkpoint.note_little_room(config, state)
    about = provenance(REPOSITORY) | setup.about()
    with progress.open_logs(config, state, about) as run_logs, stopping.interruptible() as own_stop:
        stopped = ranks.agreed(own_stop)
        progress.announce(setup, state, run_logs, about=about, origin=origin)
        scores, ended = run_epochs(setup, state, run_logs, stopped=stopped, report=report)
        if ended == INTERRUPTED:
            progress.close_interrupted(config, state, run_logs.tracker, command)
        else:
            progress.close_finished(config, state, run_logs.tracker, reason=ended)
    is_interrupted = ended == INTERRUPTED
    return Result(
        epochs=state.epoch,
        finished=not is_interrupted,
        run=config.run,
        logs=config.path("logs_save_path"),
        best_metric=state.best,
        checkpoint=checkpoint.best_of(config),
        scores=scores,
        requeue=is_interrupted and not stopped.by_user,
    )


INTERRUPTED = "interrupted"


def run_epochs(
    setup: Setup, state: State, run_logs: Logs, *, stopped: ShouldStop, report: Report | None
) -> tuple[ValidationScores | None, str]:
    """Train, validate and save until the last epoch, or until something ends the run early.

    Args:
        setup: what the run was built from.
        state: state of the run, updated in place.
        run_logs: gets its scalars, figures and results.
        stopped: returns True once the run is interrupted, which is then saved within an epoch.
        report: called after each validation; may end the run.

    Returns the last validation of this call, and why the run ended; "" after the last epoch.
    """
    config = setup.config
    batches = setup.training_from(state.iteration)
    pace = Pace(first_epoch=state.epoch, begun=time.perf_counter())
    scores = None
    ended = ""
    while not ended and not is_finished(config, state):
        with saved_if_files_fail(setup, state, stopped):
            trained = train_to_end_of_epoch(
                setup, state, batches, tracker=run_logs.tracker, stopped=stopped
            )
            if not stopped():
                # the steps of the epoch are kept, whatever becomes of its validation and its logs
                setup.save(state)
                validated = validation.validate(state, setup.method, setup.validation, stopped)
        if stopped():
            setup.save(state)
            ended = INTERRUPTED
            break
        scores = validated
        finish_epoch(setup, state, run_logs, trained=trained, scores=scores, pace=pace)
        ended = ranks.of_main(ends_early(config, state, scores, pace=pace, report=report))
    run_logs.recorder.result(**result_so_far(setup, state))
    if not ended and state.epoch < config.epochs:
        judged_by = config.best_metric if setup.data.validation else "training loss"
        ended = f"no better {judged_by} for {config.early_stopping_patience} epochs"
    return scores, ended


def train_to_end_of_epoch(
    setup: Setup, state: State, batches: Iterator[Batch], *, tracker: Tracker, stopped: ShouldStop
) -> TrainedEpoch:
    """Take the steps that are left of the current epoch, and save every checkpoint_minutes."""
    config = setup.config
    last_iteration = (state.epoch + 1) * config.iterations_per_epoch
    save_if_due = checkpoint.regularly(config.checkpoint_minutes, partial(setup.save, state))

    def after_step(group: list[Batch], result: StepResult) -> None:
        if result.is_skipped:
            keep_skipped(setup, state, group, result)
        save_if_due()

    with progress.epoch_progress(config, state, last_iteration) as bar:
        return steps.train_epoch(
            state,
            setup.method,
            batches,
            last_iteration,
            log=tracker.scalars,
            stop=stopped,
            bar=bar,
            after_step=after_step,
        )


def finish_epoch(
    setup: Setup,
    state: State,
    run_logs: Logs,
    *,
    trained: TrainedEpoch,
    scores: ValidationScores | None,
    pace: Pace,
) -> None:
    """Count an epoch that was trained and validated, then log, print and save it.

    Args:
        setup: what the run was built from.
        state: state of the run, updated in place.
        run_logs: gets its scalars, figures and results.
        trained: what came of its steps.
        scores: of its validation; None without one.
        pace: estimates how long the remaining epochs will take.
    """
    config = setup.config
    is_best = count_epoch(config, state, trained, scores)
    # in this order a call that ends between any two goes on exactly: latest.pt is of before the
    # validation until everything about the epoch is written, and what is written twice is equal
    if is_best:
        setup.save(state, "best")
    progress.log_epoch(config, state, run_logs.tracker, trained, scores=scores)
    seconds_left = pace.seconds_left(state.epoch, config.epochs)
    progress.say_epoch(
        config, state, trained, scores=scores, is_best=is_best, seconds_left=seconds_left
    )
    ranks.wait_for_all()  # what the main one logs and draws may take long on a slow disk
    setup.save(state)
    run_logs.recorder.result(**result_so_far(setup, state), samples_per_s=trained.samples_per_s)


def ends_early(
    config: TrainConfig,
    state: State,
    scores: ValidationScores | None,
    *,
    pace: Pace,
    report: Report | None,
) -> str:
    """Return why the run ends after this epoch though more are left; "" if it goes on."""
    ended = ""
    limit = config.training_time_limit
    if limit and pace.seconds() > limit and not is_finished(config, state):
        ended = "training_time_limit"
    is_measured = scores and (config.best_metric != CHALLENGE or scores.whole)
    if report and scores and is_measured and report(state.epoch, scores.mean(config.best_metric)):
        ended = "pruned"
    return ended


def result_so_far(setup: Setup, state: State) -> dict[str, Any]:
    """Return the fields of RunResult that are known during training."""
    config = setup.config
    return {
        "epoch": state.epoch,
        "iteration": state.iteration,
        "best_metric": config.best_metric,
        "best": state.best,
        "best_epoch": state.best_epoch,
        "finished": is_finished(config, state),
        "validation_blocks": validation_blocks(setup, state),
    }


def validation_blocks(setup: Setup, state: State) -> str | None:
    """Return how many blocks are validated, and their key; None before the first validation."""
    if setup.validation is None or not state.validation_batches:
        return None
    data = setup.data
    count = validation.blocks_looked_at(state, setup.validation)
    looked_at = data.blocks[:count]
    key = key_of_blocks(data.validation, looked_at, data.sampler.target)
    return f"{count} of {len(data.blocks)} blocks, {key}"


@dataclass(frozen=True)
class Pace:
    """Measures how long this call has been training."""

    first_epoch: int
    """Number of epochs that earlier calls finished."""
    begun: float
    """Value of time.perf_counter() when this call began to train."""

    def seconds(self) -> float:
        """Return the seconds since this call began to train."""
        return time.perf_counter() - self.begun

    def seconds_left(self, epoch: int, epochs: int) -> float:
        """Return the expected seconds until the last of `epochs`, at the pace of this call."""
        return self.seconds() / (epoch - self.first_epoch) * (epochs - epoch)
