"""One training run, from top to bottom.

`train` reads the settings, `prepare` (`common.train.setup`) builds everything from them,
`run_epochs` is the training loop. One step and one validation are in `common.train.steps`; whether
an epoch is better than those before is decided in `common.train.judging`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import runtime, stopping, talk
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import loaders, sampling
from common.data.batches import Batch
from common.data.workers import WorkerLost
from common.errors import FileError, NotFinite
from common.files import REPOSITORY
from common.provenance import provenance
from common.talk import command_line, note, say, some
from common.train import (
    checkpoint,
    heads,
    logs,
    one_process,
    ranks,
    schedule,
    skipped,
    steps,
    together,
)
from common.train.judging import count_epoch, out_of_patience
from common.train.logs import Logs
from common.train.setup import Score, Setup, prepare
from common.train.steps import CHALLENGE, Scores, State, StepResult, Stop, TrainedEpoch, Validation
from common.train.tracking import Tracker


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
    scores: Scores | None
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
    setup, state = prepare(config, score)
    setup = dataclasses.replace(setup, replay=command.replace(" train ", " replay ", 1))
    with ranks.main_first():  # it mends what it finds broken
        origin = checkpoint.resume(config, state, setup.crops.split_hash)
    together.refuse_other_weights(state.model, state.iteration)
    checkpoint.note_little_room(config, state)
    about = provenance(REPOSITORY) | setup.about()
    with logs.open_logs(config, state, about) as run_logs, stopping.interruptible() as own_stop:
        stopped = ranks.agreed(own_stop)
        announce(setup, state, run_logs, about=about, origin=origin)
        scores, ended = run_epochs(setup, state, run_logs, stopped=stopped, report=report)
        if ended == INTERRUPTED:
            logs.close_interrupted(config, state, run_logs.tracker, command)
        else:
            logs.close_finished(config, state, run_logs.tracker, reason=ended)
    result = result_of(config, state, scores, ended)
    return dataclasses.replace(result, requeue=not result.finished and not stopped.by_user)


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
    crops = setup.crops
    parameters = sum(p.numel() for p in state.model.parameters())
    many = f", {ranks.size()} processes" if ranks.size() > 1 else ""
    say(
        f"{config.model_name}/{config.run}: {parameters:,} parameters on {about['device']} in "
        f"{about['precision']}{many}; {origin}"
    )
    say(
        f"{talk.count(len(crops.train), 'training crop')}, "
        f"{talk.count(len(crops.validation), 'validation crop')} in "
        f"{talk.count(len(crops.blocks), 'block')}, "
        f"{talk.count(len(config.classes), 'class', 'classes')}{beside(config)}"
    )
    for notice in notices(setup, state):
        note(notice)
    run_logs.tracker.text("settings", config.record(), state.iteration)
    run_logs.tracker.text("provenance", about, state.iteration)


def beside(config: TrainConfig) -> str:
    """Return what is learnt beside the classes, as the end of a sentence."""
    derived = config.channels[len(config.classes) :]
    return f", {talk.count(len(derived), 'derived channel')}" if derived else ""


def notices(setup: Setup, state: State) -> list[str]:
    """Return what the user should know before training, as sentences."""
    return [
        *setup.config.translated,
        *runtime.warnings_about(setup.device),
        *loaders.notices(setup.crops, setup.config.classes, setup.config.counter_classes),
        *heads.notices(setup.method.criterion, setup.config),
        *setup.unusual,
        *schedule.notices(setup.config, state.scheduler, validated=bool(setup.crops.validation)),
    ]


INTERRUPTED = "interrupted"


def run_epochs(
    setup: Setup, state: State, run_logs: Logs, *, stopped: Stop, report: Report | None
) -> tuple[Scores | None, str]:
    """Train, validate and save until the last epoch, or until something ends the run early.

    Args:
        setup: what the run was built from.
        state: state of the run, updated in place.
        run_logs: gets its scalars, figures and results.
        stopped: returns True once the user interrupts the run; the state is then saved in the
            middle of the epoch.
        report: called after each validation; may end the run.

    Returns:
        The last validation of this call, and why the run ended; "" after the last epoch.
    """
    config = setup.config
    batches = setup.training_from(state.iteration)
    pace = Pace(first_epoch=state.epoch, begun=time.perf_counter())
    scores = None
    ended = ""
    while not ended and state.epoch < config.epochs and not out_of_patience(config, state):
        epoch = None
        with saved_if_files_fail(setup, state, stopped):
            epoch = run_epoch(setup, state, batches, tracker=run_logs.tracker, stopped=stopped)
        if epoch is None or stopped():
            setup.save(state)
            ended = INTERRUPTED
            break
        trained, scores = epoch
        finish_epoch(setup, state, run_logs, trained=trained, scores=scores, pace=pace)
        ended = ranks.of_main(ends_early(config, state, scores, pace=pace, report=report))
    run_logs.recorder.result(**result_so_far(setup, state))
    if not ended and state.epoch < config.epochs:
        ended = f"no better {judged_by(setup)} for {config.early_stopping_patience} epochs"
    return scores, ended


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


@contextmanager
def saved_if_files_fail(setup: Setup, state: State, stopped: Stop) -> Iterator[None]:
    """Save the state, which is whole between two steps, before a FileError goes on.

    It is of workers that are lost, or of logs that find no room. Where the run is being stopped
    nothing is raised for workers: schedulers send signals to them, too.
    """
    try:
        yield
    except FileError as error:
        # lost workers are told by all processes, see ranks.raised_by_all; logs are one process's,
        # and what is saved is of all
        if ranks.size() > 1 and not isinstance(error, WorkerLost):
            raise
        if isinstance(error, WorkerLost) and stopped():
            return
        latest = setup.config.path("model_save_path") / "latest.pt"
        try:
            setup.save(state)
        except FileError:
            raise error from None  # of the same disk
        raise type(error)(
            f"{error}. Saved after iteration {state.iteration} in {latest}; "
            "the same command goes on from there"
        ) from error


def run_epoch(
    setup: Setup, state: State, batches: Iterator[Batch], *, tracker: Tracker, stopped: Stop
) -> tuple[TrainedEpoch, Scores | None]:
    """Train for the rest of the current epoch, save, then validate.

    The validation is None if the run has none, or if stopped() returned True.
    """
    config = setup.config
    last_iteration = (state.epoch + 1) * config.iterations_per_epoch
    save = partial(setup.save, state)
    save_if_due = checkpoint.regularly(config.checkpoint_minutes, save)

    def after_step(group: list[Batch], result: StepResult) -> None:
        if result.is_skipped:
            keep_skipped(setup, state, group, result)
        save_if_due()

    with logs.epoch_progress(config, state, last_iteration) as bar:
        trained = steps.train_epoch(
            state,
            setup.method,
            batches,
            last_iteration,
            log=tracker.scalars,
            stop=stopped,
            bar=bar,
            after_step=after_step,
        )
    if stopped():
        return trained, None
    save()  # the steps of the epoch are kept, whatever becomes of its validation and its logs
    if setup.validation is None:
        return trained, None
    return trained, validate(setup, state, setup.validation, stopped)


def keep_skipped(setup: Setup, state: State, group: list[Batch], result: StepResult) -> None:
    """Write down a step that was skipped, and say so once in an epoch.

    Raises NotFinite, with the state saved, where there were too many in a row.
    """
    config = setup.config
    folder = config.path("logs_save_path")
    step = skipped.described(state.iteration, group, result.numbers)
    if ranks.is_main():
        skipped.add(folder, config.random_seed, step)
    if state.skipped_in_epoch == 1:
        note(
            f"iteration {step.iteration}: {step.problem}, on "
            f"{some(skipped.crops_of(step))}; the step is skipped. To look at it:\n  {setup.replay}"
        )
    # an epoch without any step is none, however few steps it has
    if state.skipped_in_a_row < min(config.skipped_steps_limit, config.iterations_per_epoch):
        return
    in_a_row = talk.count(state.skipped_in_a_row, "step")
    state.skipped_in_a_row = 0  # whoever mends the data goes on
    setup.save(state)
    latest = config.path("model_save_path") / "latest.pt"
    raise NotFinite(
        f"iteration {step.iteration}: {step.problem}, on {some(skipped.crops_of(step))}; "
        f"{in_a_row} in a row not finite, and skipped. {latest} has the weights from before them. "
        f"Where it begins, in which samples and which layer, says\n  {setup.replay}\n"
        f"{what_to_change(setup)}"
    )


def what_to_change(setup: Setup) -> str:
    """Return what keeps numbers finite where it is not the data, as a sentence."""
    half = ""
    if setup.method.forward.precision.name == "fp16":
        half = ", precision = 'bf16' or 'fp32' (numbers above 65504 overflow in fp16)"
    return (
        "If it is the data, mend them and go on with the same command; else start another run_name "
        f"with a lower learning_rate, or a max_grad_norm{half}"
    )


def validate(setup: Setup, state: State, validation: Validation, stopped: Stop) -> Scores | None:
    """Validate the current epoch; None if stopped() returned True.

    A validation that does not come to its end leaves the random numbers as they were: the call that
    goes on begins it again.
    """
    before = runtime.random_state()
    scores = None
    try:
        scores = steps.validate(state, setup.method, validation, stopped)
    finally:
        if scores is None:
            runtime.restore_random_state(before)
    return scores


def finish_epoch(
    setup: Setup,
    state: State,
    run_logs: Logs,
    *,
    trained: TrainedEpoch,
    scores: Scores | None,
    pace: Pace,
) -> None:
    """Count an epoch that was trained and validated, then log, print and save it.

    Args:
        setup: what the run was built from.
        state: state of the run, updated in place.
        run_logs: gets its scalars, figures and results.
        trained: results of the training of this epoch.
        scores: results of its validation.
        pace: estimates how long the remaining epochs will take.
    """
    config = setup.config
    is_best = count_epoch(config, state, trained, scores)
    # in this order a call that ends between any two goes on exactly: latest.pt is of before the
    # validation until everything about the epoch is written, and what is written twice is equal
    if is_best:
        setup.save(state, "best")
    logs.log_epoch(
        config, state, run_logs.tracker, trained, scores=scores, learning_rate=state.learning_rate
    )
    seconds_left = pace.seconds_left(state.epoch, config.epochs)
    logs.say_epoch(
        config, state, trained, scores=scores, is_best=is_best, seconds_left=seconds_left
    )
    setup.save(state)
    run_logs.recorder.result(**result_so_far(setup, state), samples_per_s=trained.samples_per_s)


def ends_early(
    config: TrainConfig, state: State, scores: Scores | None, *, pace: Pace, report: Report | None
) -> str:
    """Return why the run ends after this epoch though more are left; "" if it goes on."""
    ended = ""
    is_done = state.epoch >= config.epochs or out_of_patience(config, state)
    if not is_done and config.training_time_limit and pace.seconds() > config.training_time_limit:
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
        "finished": state.epoch >= config.epochs or out_of_patience(config, state),
        "validation_blocks": validation_blocks(setup, state),
    }


def validation_blocks(setup: Setup, state: State) -> str | None:
    """Return how many blocks are validated, and their key; None before the first validation."""
    if setup.validation is None or not state.validation_batches:
        return None
    crops = setup.crops
    count = steps.blocks_looked_at(state, setup.validation)
    looked_at = crops.blocks[:count]
    key = sampling.key_of_blocks(crops.validation, looked_at, crops.sampler.target)
    return f"{count} of {len(crops.blocks)} blocks, {key}"


def judged_by(setup: Setup) -> str:
    """Return in words what says whether an epoch is better."""
    if setup.crops.validation:
        return setup.config.best_metric
    return "training loss"


def result_of(config: TrainConfig, state: State, scores: Scores | None, ended: str) -> Result:
    """Return the result of `train`; `ended` says why the run ended, see `run_epochs`."""
    return Result(
        epochs=state.epoch,
        finished=ended != INTERRUPTED,
        run=config.run,
        logs=config.path("logs_save_path"),
        best_metric=state.best,
        checkpoint=checkpoint.best_of(config),
        scores=scores,
    )
