"""One training run, from top to bottom.

`train` reads the settings, `prepare` builds everything from them, `run_epochs` is the training
loop. One step and one validation are in `common.train.steps`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common import runtime, stopping, talk
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import augment, loaders, sampling
from common.data.loaders import (
    Batch,
    Batches,
    Data,
    WorkerLost,
    training_batches,
    validation_batches,
)
from common.errors import UserError
from common.files import REPOSITORY
from common.model import activation
from common.model.build import build_model
from common.model.compiling import try_compiling
from common.model.forward import ForwardPass
from common.model.shapes import parameters_of_outputs
from common.provenance import provenance
from common.talk import command_line, note, say, some
from common.train import (
    average,
    checkpoint,
    criterion,
    logs,
    metrics,
    one_process,
    optim,
    schedule,
    steps,
)
from common.train.logs import Logs
from common.train.record import BestSoFar, is_better
from common.train.steps import (
    CHALLENGE,
    Method,
    ScoreCrops,
    Scores,
    State,
    Stop,
    TrainedEpoch,
    Validation,
)
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


Score = Callable[[TrainConfig], ScoreCrops | None]
"""Gives what scores the validation crops of a run: `common.score.whole_crops.of_run`.

It predicts, processes and scores, which the rooms after this one do: it is handed in from above.
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
    config = load_config(config_path, overrides, data, **settings)
    given = [*overrides, *(f"{name}={value}" for name, value in settings.items())]
    command = command_line("train", config_path, set=given, data=data)
    with stopping.at_once(), one_process.held(config):
        return train_held(config, command, score=score, report=report)


def train_held(
    config: TrainConfig, command: str, *, score: Score | None, report: Report | None
) -> Result:
    """Train a run that this process holds; see `train`. `command` continues it."""
    setup, state = prepare(config, score)
    origin = checkpoint.resume(config, state, setup.crops.split_hash)
    about = provenance(REPOSITORY) | setup.about()
    with logs.open_logs(config, state, about) as run_logs, stopping.interruptible() as stopped:
        announce(setup, state, run_logs, about=about, origin=origin)
        scores, ended = run_epochs(setup, state, run_logs, stopped=stopped, report=report)
        if ended == INTERRUPTED:
            logs.close_interrupted(config, state, run_logs.tracker, command)
        else:
            logs.close_finished(config, state, run_logs.tracker, reason=ended)
    result = result_of(config, state, scores, ended)
    return dataclasses.replace(result, requeue=not result.finished and not stopped.by_user)


@dataclass(frozen=True)
class Setup:
    """Everything that does not change during a run."""

    config: TrainConfig
    device: torch.device
    crops: Data
    method: Method
    training: Batches
    validation: Validation | None
    """None if the datasplit has no validation crop."""
    unusual: tuple[str, ...] = ()
    """What is unusual about the settings, as sentences."""

    def about(self) -> dict[str, str]:
        """Return what is recorded about the run in addition to versions and commit."""
        return {
            "device": str(self.device),
            "precision": self.method.forward.precision.name,
            "split_hash": self.crops.split_hash,
        } | self.raw_scalings()

    def raw_scalings(self) -> dict[str, str]:
        """Return how each raw volume is normalised, as text by "raw <its name>"."""
        return {f"raw {name}": str(scaling) for name, scaling in self.crops.scalings.items()}

    def save(self, state: State, name: str = "latest") -> None:
        """Write a checkpoint of the run, "latest" or "best"."""
        checkpoint.save_state(self.config, state, self.crops.split_hash, name)

    def training_from(self, iteration: int) -> Iterator[Batch]:
        """Iterate over the training batches of the run after `iteration`.

        They depend on the settings and the seed only, not on where earlier calls stopped.
        """
        config = self.config
        per_iteration = config.batch_size * config.gradient_accumulation_steps
        last = config.epochs * config.iterations_per_epoch
        return self.training.between(iteration * per_iteration, last * per_iteration)


def prepare(config: TrainConfig, score: Score | None = None) -> tuple[Setup, State]:
    """Build everything that a run needs, and its state before the first step.

    In this order: device, loss, network, crops, initial output, batches, optimiser. Mistakes in the
    user's own functions show before crops are decoded.
    """
    device = runtime.pick_device(config.device)
    precision = runtime.pick_precision(config.precision, device)
    # mistakes in what the user wrote are told before minutes go into decoding crops
    if config.augment:
        augment.check_own(config.augment, config.input_array_info["shape"], device)
    runtime.seed_everything(config.random_seed)  # a loss may draw weights of its own
    loss = criterion.build_criterion(config, device)
    # before the seed: a loss may draw numbers
    unusual = criterion.unusual(loss, config, device) if config.criterion else []
    metrics.try_out(config.metrics, len(config.classes))
    score_crops = prepare_score(config, score)
    runtime.seed_everything(config.random_seed)  # before weights are drawn
    model = build_model(config, device)
    unusual += [*schedule.try_out(config, model), *unusual_outputs(config, model)]
    crops = loaders.open_data(config, checkpoint.raw_scalings(config))
    weights = class_weights(config, crops, loss)
    if config.init_output_to_prior:
        prior = optim.prior_logits(crops.foreground, crops.background, weights)
        start_at_prior(config, model, prior, crops)
    forward, sentences = forward_pass(config, model, precision, device)
    setup = Setup(
        config=config,
        device=device,
        crops=crops,
        method=Method(
            criterion=loss,
            pos_weight=torch.from_numpy(weights).to(device) if config.weight_loss else None,
            forward=forward,
            max_grad_norm=config.max_grad_norm,
            accumulation=config.gradient_accumulation_steps,
            warmup=config.warmup_iterations,
            schedules_iterations=config.scheduler_step == "iteration",
        ),
        training=training_batches(config, crops, device),
        validation=build_validation(config, crops, device, score_crops),
        unusual=(*unusual, *sentences),
    )
    state = first_state(config, model, precision, validated=bool(crops.validation))
    state.raw_scalings = {name: scaling.record() for name, scaling in crops.scalings.items()}
    state.criterion = criterion.module_of(loss)
    return setup, state


def forward_pass(
    config: TrainConfig, model: nn.Module, precision: runtime.Precision, device: torch.device
) -> tuple[ForwardPass, list[str]]:
    """Return how raw goes through the network, and what is to be said about it."""
    plain = ForwardPass(precision, config.channels_last)
    if not config.compile:
        return plain, []
    raw = torch.zeros(config.batch_size, 1, *config.input_array_info["shape"], device=device)
    forward, sentence = try_compiling(plain, model, raw)
    return forward, [sentence] if sentence else []


def unusual_outputs(config: TrainConfig, model: nn.Module) -> list[str]:
    """Return a sentence about a network that gives something else than logits, if it does."""
    exact = ForwardPass(runtime.Precision("fp32", "cpu"), config.channels_last)
    sentence = activation.notice(model, exact.outputs, config.input_array_info["shape"])
    return [sentence] if sentence else []


def class_weights(config: TrainConfig, crops: Data, loss: criterion.Criterion) -> np.ndarray:
    """Return (classes,) float32 weights of positive voxels; 1 if the loss uses no weights."""
    if config.weight_loss and criterion.uses_pos_weight(loss):
        return optim.positive_weights(crops.foreground, crops.background, config.pos_weight_cap)
    return np.ones(len(config.classes), np.float32)


def start_at_prior(config: TrainConfig, model: nn.Module, prior: np.ndarray, crops: Data) -> None:
    """Initialise every output of a network so that its logits begin at `prior`, (classes,)."""
    exact = ForwardPass(runtime.Precision("fp32", "cpu"), config.channels_last)
    outputs = parameters_of_outputs(model, exact.outputs, config.input_array_info["shape"])
    if not config.init_logit_rms:
        optim.start_output_at(model, prior, outputs)
        return
    optim.start_output_at(model, prior, outputs, factor=1.0)
    device = next(model.parameters()).device
    # its samples are the first of training, whoever reads them
    here = dataclasses.replace(config, num_workers=0)
    first = next(training_batches(here, crops, device).between(0, config.batch_size))

    def measure() -> list[torch.Tensor]:
        # a copy in training mode: running statistics and random numbers stay as they are
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return exact.outputs(copy.deepcopy(model).train(), first.raw)

    optim.calibrate_output(model, prior, outputs, measure=measure, rms=config.init_logit_rms)


def first_state(
    config: TrainConfig, model: nn.Module, precision: runtime.Precision, validated: bool
) -> State:
    """Return the state of a new run: the model, a new optimiser and scheduler, iteration 0.

    The average of the weights, if the run keeps one, begins with those of the model.

    validated: whether a crop validates; the training loss steers the scheduler if none does.
    """
    optimizer = schedule.first_optimizer(config, model)
    higher_is_better = validated and config.best_metric != "loss"
    scheduler = schedule.first_scheduler(config, optimizer, higher_is_better=higher_is_better)
    schedule.refuse_other_mode(config, scheduler, validated)
    return State(
        model,
        optimizer,
        scheduler,
        precision.scaler(),
        ema=average.new_average(config, model),
    )


def prepare_score(config: TrainConfig, score: Score | None) -> ScoreCrops | None:
    """Return what scores whole crops; None where they are not to be scored."""
    if not config.validation_score_every:
        return None
    if score is None:
        raise UserError(
            f"{config.folder}: validation_score_every = {config.validation_score_every}, and this "
            "call has nothing to score with; give train(..., score=common.score.whole_crops.of_run)"
        )
    return score(config)


def build_validation(
    config: TrainConfig, crops: Data, device: torch.device, score: ScoreCrops | None = None
) -> Validation | None:
    """Return what every validation runs on; None if the datasplit has no validation crop."""
    batches = validation_batches(config, crops, device)
    if batches is None:
        return None
    return Validation(
        batches=batches,
        classes=config.classes,
        time_limit=config.validation_time_limit,
        batch_limit=config.validation_batch_limit,
        figure_samples=config.figure_samples,
        figure_crops=config.figure_crops,
        metrics=config.metrics,
        score=partial(score, crops.scalings) if score else None,
        score_every=config.validation_score_every,
    )


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
    say(
        f"{config.model_name}/{config.run}: {parameters:,} parameters on {about['device']} in "
        f"{about['precision']}; {origin}"
    )
    say(
        f"{talk.count(len(crops.train), 'training crop')}, "
        f"{talk.count(len(crops.validation), 'validation crop')} in "
        f"{talk.count(len(crops.blocks), 'block')}, "
        f"{talk.count(len(config.classes), 'class', 'classes')}"
    )
    for notice in notices(setup, state):
        note(notice)
    run_logs.tracker.text("settings", config.record(), state.iteration)
    run_logs.tracker.text("provenance", about, state.iteration)


def notices(setup: Setup, state: State) -> list[str]:
    """Return what the user should know before training, as sentences."""
    return [
        *runtime.warnings_about(setup.device),
        *loaders.notices(setup.crops, setup.config.classes),
        *criterion.notices(setup.method.criterion, setup.config.weight_loss),
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
        with saved_if_a_worker_is_lost(setup, state, stopped):
            epoch = run_epoch(setup, state, batches, tracker=run_logs.tracker, stopped=stopped)
        if epoch is None or stopped():
            setup.save(state)
            ended = INTERRUPTED
            break
        trained, scores = epoch
        finish_epoch(setup, state, run_logs, trained=trained, scores=scores, pace=pace)
        ended = ends_early(config, state, scores, pace=pace, report=report)
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
def saved_if_a_worker_is_lost(setup: Setup, state: State, stopped: Stop) -> Iterator[None]:
    """Save the state, which is whole between two steps, before WorkerLost goes on.

    Where the run is being stopped nothing is raised: schedulers send signals to workers, too.
    """
    try:
        yield
    except WorkerLost as error:
        if stopped():
            return
        setup.save(state)
        latest = setup.config.path("model_save_path") / "latest.pt"
        raise WorkerLost(
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
    with logs.epoch_progress(config, state, last_iteration) as bar:
        trained = steps.train_epoch(
            state,
            setup.method,
            batches,
            last_iteration,
            log=tracker.scalars,
            stop=stopped,
            bar=bar,
            after_step=checkpoint.regularly(config.checkpoint_minutes, save),
        )
    if stopped():
        return trained, None
    save()  # the steps of the epoch are kept, whatever becomes of its validation and its logs
    if setup.validation is None:
        return trained, None
    return trained, validate(setup, state, setup.validation, stopped)


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


def count_epoch(
    config: TrainConfig, state: State, trained: TrainedEpoch, scores: Scores | None
) -> bool:
    """Count an epoch, step a scheduler of epochs; return whether the epoch is the best so far."""
    state.epoch += 1
    state.epoch_loss = [0.0, 0.0]
    state.epoch_counts = []
    if scores:
        state.validation_loss = scores.loss
        value, improved = judge_validation(config, state, scores)
    else:
        value = trained.loss
        improved = is_better(value, state.best_loss, "loss")
    if is_better(trained.loss, state.best_loss, "loss"):
        state.best_loss = trained.loss
    if improved:
        state.waited = 0
    elif math.isfinite(value):
        state.waited += 1
    if config.scheduler_step == "epoch":
        optim.step_scheduler(state.scheduler, value)
    return improved and scores is not None


def judge_validation(config: TrainConfig, state: State, scores: Scores) -> tuple[float, bool]:
    """Compare a validation with the best so far, and keep it if it is better.

    Returns its best_metric, smoothed if that is asked for and NaN if there is none that can be
    compared, and whether it is the best.
    """
    if config.best_metric == CHALLENGE and scores.whole is None:
        return math.nan, False  # whole crops are scored in other epochs
    value = scores.mean(config.best_metric)
    classes = scores.channels(config.best_metric)
    best = BestSoFar(state.best, frozenset(state.judged))
    if not best.compares(classes):
        missing = [config.classes[channel] for channel in sorted(best.classes - set(classes))]
        pass_over(state, f"has no {config.best_metric} of {some(missing)}, as others have")
        return math.nan, False
    if not math.isfinite(value):
        pass_over(state, f"has {config.best_metric} {value}")
        return math.nan, False
    # a mean over other classes than before begins anew, as the best does
    is_like_before = frozenset(classes) == best.classes and math.isfinite(state.smoothed)
    weight = config.metric_smoothing if is_like_before else 0.0
    if weight:
        value = weight * state.smoothed + (1 - weight) * value
    state.smoothed = value
    scores.judged = value
    is_best = best.take(value, classes, config.best_metric)
    state.judged = sorted(best.classes)
    if is_best:
        state.best = value
        state.best_epoch = state.epoch
    return value, is_best


def pass_over(state: State, why: str) -> None:
    """Count an epoch that nothing can be decided by, and say so at the first one."""
    state.passed_over += 1
    if state.passed_over == 1:
        note(
            f"epoch {state.epoch} {why}: it and others like it decide nothing, neither what is "
            "best nor the learning rate nor when to stop"
        )


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


def out_of_patience(config: TrainConfig, state: State) -> bool:
    """Return whether early_stopping_patience epochs have passed since the last better one."""
    patience = config.early_stopping_patience
    return patience > 0 and state.waited >= patience


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
