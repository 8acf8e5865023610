"""One training run, from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common import runtime
from common.config.load import load_config
from common.config.settings import MAY_CHANGE, TrainConfig
from common.data import augment, loaders
from common.data.loaders import Data, training_batches, validation_batches
from common.errors import UserError
from common.files import REPOSITORY
from common.model.build import build_model
from common.model.forward import ForwardPass
from common.provenance import provenance
from common.runtime import interruptible
from common.talk import command_line, say, this_command
from common.train import checkpoint, losses, optim, steps
from common.train.record import Recorder, RunRecord, is_better
from common.train.steps import Method, Scores, State
from common.train.tracking import Tracker, open_sinks


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    epochs: int
    """Epochs done."""
    finished: bool
    """False if it was interrupted."""
    run: str
    """Name of the run."""
    logs: Path
    """Folder of its events, history.csv and run.json."""
    best_metric: float
    """Of best_checkpoint; NaN without validation."""
    checkpoint: Path
    """The best checkpoint, or the latest where there is no best."""
    scores: Scores | None
    """The last validation of this call."""


Report = Callable[[int, float], bool]
"""Called after each validation with the epoch and its best_metric; the run ends there if it gives True."""


def train(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    report: Report | None = None,
    **settings: Any,
) -> Result:
    """Train the experiment of a configuration file, or go on where its run stopped.

    overrides: "name=value" strings; settings: the same as Python values. The arguments of `common.config.load.load_config`.
    Raises FileNotFoundError, ValueError, OSError or FloatingPointError, each with a sentence for the user.
    """
    config = load_config(config_path, overrides, data, **settings)
    device, crops, state, method = prepare(config)
    origin = resume(config, state, crops.split_hash)
    about = {
        **provenance(REPOSITORY),
        "device": str(device),
        "precision": method.forward.precision.name,
        "split_hash": crops.split_hash,
    }
    tracker, record = open_logs(config, state, about)
    try:
        announce(config, state, crops, tracker, about, origin)
        with interruptible() as stopped:
            scores, ended = run(
                config, state, method, crops, tracker, record, device, stopped, report
            )
    except BaseException:
        tracker.finish({}, {}, status="FAILED")
        record.end(state.iteration)
        raise
    record.end(state.iteration)
    return conclude(config, state, tracker, scores, ended, config_path)


def prepare(config: TrainConfig) -> tuple[torch.device, Data, State, Method]:
    """Device, crops, and a run at its first step. Seeds before weights are drawn; the model is checked before data are decoded."""
    device = runtime.pick_device(config.device)
    precision = runtime.pick_precision(config.precision, device)
    if config.augment:
        augment.check_own(config.augment, config.input_array_info["shape"], device)
    runtime.seed_everything(config.random_seed)
    model = build_model(config, device)
    crops = loaders.open_data(config)
    return device, crops, *begin(config, model, crops, device, precision)


def begin(
    config: TrainConfig,
    model: nn.Module,
    crops: Data,
    device: torch.device,
    precision: runtime.Precision,
) -> tuple[State, Method]:
    """A run at its first step."""
    ones = np.ones(len(config.classes), np.float32)
    weights = (
        optim.positive_weights(crops.foreground, crops.background, config.pos_weight_cap)
        if config.weight_loss
        else ones
    )
    if config.init_output_to_prior:
        optim.start_output_at(
            model, optim.prior_logits(crops.foreground, crops.background, weights)
        )
    optimizer = optim.build_optimizer(
        model, config.learning_rate, config.weight_decay, config.optimizer
    )
    scheduler = optim.build_scheduler(
        optimizer, config.scheduler, config.scheduler_kwargs, config.best_metric != "loss"
    )
    pos_weight = torch.from_numpy(weights).to(device) if config.weight_loss else None
    method = Method(
        config.criterion or losses.weighted_bce,
        pos_weight,
        ForwardPass(precision, config.channels_last),
        config.max_grad_norm,
    )
    return State(model, optimizer, scheduler, precision.scaler()), method


def resume(config: TrainConfig, state: State, split_hash: str) -> str:
    """Load what load_model asks for into the state; a sentence that says what was loaded."""
    folder, choice = config.path("model_save_path"), config.load_model
    own = checkpoint.find(folder, "best" if choice == "best" else "latest")
    if choice == "scratch" and own:
        raise UserError(
            f"{own}: this run exists and load_model = 'scratch' would write over it; set another run_name, or remove it"
        )
    if own:
        saved = checkpoint.load(own, config.classes)
        _refuse_other_settings(own, saved, config, split_hash)
        checkpoint.load_weights(state.model, saved, own)
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
        return f"continuing {own} after epoch {state.epoch}, iteration {state.iteration}"
    if choice in ("latest", "best", "scratch"):
        return "starting with new weights"
    given = Path(choice) if Path(choice).is_absolute() else config.folder / choice
    saved = checkpoint.load(given, config.classes)
    checkpoint.load_weights(state.model, saved, given)
    return f"starting at epoch 0 with the weights of {given} (epoch {saved['epoch']})"


SAVED_NUMBERS = (
    "epoch",
    "iteration",
    "best",
    "best_epoch",
    "validation_batches",
    "shown",
    "epoch_loss",
)


def save(config: TrainConfig, state: State, split_hash: str, which: str) -> None:
    """Write the whole state as latest.pt or best.pt."""
    whole = {
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
        **{name: getattr(state, name) for name in SAVED_NUMBERS},
    }
    checkpoint.save(config.path("model_save_path") / f"{which}.pt", whole)


def open_logs(config: TrainConfig, state: State, about: dict[str, str]) -> tuple[Tracker, Recorder]:
    """Where the run's numbers go: the sinks that `trackers` names, and run.json."""
    folder = config.path("logs_save_path")
    folder.mkdir(parents=True, exist_ok=True)
    about_run = RunRecord(
        experiment=config.folder.name,
        model_name=config.model_name,
        run_name=config.run,
        settings=config.record(),
        provenance=about,
    )
    record = Recorder(folder, state.iteration, about_run)
    sinks = open_sinks(config, state.iteration, record)
    return Tracker(folder, state.iteration, sinks), record


def run(
    config: TrainConfig,
    state: State,
    method: Method,
    crops: Data,
    tracker: Tracker,
    record: Recorder,
    device: torch.device,
    stopped: Callable[[], bool],
    report: Report | None,
) -> tuple[Scores | None, str]:
    """Epochs until the last one, an interruption, a report that ends it, or no improvement for too long.

    Saves after each, and when interrupted. Returns the last validation and why the run ended, "" if it came to its end.
    """
    per_iteration = config.batch_size * config.gradient_accumulation_steps
    last = config.epochs * config.iterations_per_epoch
    batches = training_batches(config, crops, device).between(
        state.iteration * per_iteration, last * per_iteration
    )
    fixed = validation_batches(config, crops, device)
    scores, ended, begun, first = None, "", time.perf_counter(), state.epoch
    while not ended and state.epoch < config.epochs and not _out_of_patience(config, state):
        end = (state.epoch + 1) * config.iterations_per_epoch
        with epoch_progress(config, state, end) as bar:
            trained = steps.train_epoch(
                state,
                method,
                batches,
                end,
                config.gradient_accumulation_steps,
                tracker.scalars,
                stopped,
                bar,
            )
        if not stopped() and fixed:
            scores = steps.validate(
                state,
                method,
                fixed,
                config.classes,
                config.validation_time_limit,
                config.validation_batch_limit,
                config.figure_samples,
                stopped,
            )
        if stopped():
            ended = INTERRUPTED
            break
        better = finish_epoch(
            config, state, trained, scores, tracker, time.perf_counter() - begun, first
        )
        save(config, state, crops.split_hash, "latest")
        if better:
            save(config, state, crops.split_hash, "best")
        record.result(**_result(config, state), samples_per_s=trained["samples_per_s"])
        if config.training_time_limit and time.perf_counter() - begun > config.training_time_limit:
            ended = "training_time_limit"
        if report and scores and report(state.epoch, scores.mean(config.best_metric)):
            ended = "pruned"
    if ended == INTERRUPTED:
        save(config, state, crops.split_hash, "latest")
    record.result(**_result(config, state))
    return scores, ended


INTERRUPTED = "interrupted"


def finish_epoch(
    config: TrainConfig,
    state: State,
    trained: dict[str, float],
    scores: Scores | None,
    tracker: Tracker,
    seconds: float,
    first: int,
) -> bool:
    """Count the epoch, move the scheduler, log and say what it gave; True if it is the best so far."""
    state.epoch += 1
    state.epoch_loss = [0.0, 0.0]
    metric = scores.mean(config.best_metric) if scores else math.nan
    better = is_better(metric, state.best, config.best_metric)
    if better:
        state.best, state.best_epoch = metric, state.epoch
    rate = state.optimizer.param_groups[0]["lr"]
    if isinstance(state.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        state.scheduler.step(metric if scores else trained["loss"])
    elif state.scheduler:
        state.scheduler.step()
    log_epoch(config, state, trained, scores, rate, tracker)
    left = seconds / (state.epoch - first) * (config.epochs - state.epoch)
    validation = (
        f"validation loss {scores.loss:.4f}, {config.best_metric} {metric:.3f}{' (best)' if better else ''}, "
        if scores
        else ""
    )
    say(
        f"epoch {state.epoch}/{config.epochs}: loss {trained['loss']:.4f}, {validation}{trained['samples_per_s']:.1f} samples/s, "
        f"data wait {trained['data_wait']:.0%}, {_duration(left)} left"
    )
    return better


def log_epoch(
    config: TrainConfig,
    state: State,
    trained: dict[str, float],
    scores: Scores | None,
    rate: float,
    tracker: Tracker,
) -> None:
    """Scalars, figures and a row of history.csv for the epoch that was finished at learning rate `rate`."""
    row = {
        "epoch": state.epoch,
        "iteration": state.iteration,
        "lr": rate,
        **{f"train/{name}": value for name, value in trained.items()},
    }
    if scores:
        row["validation/loss"] = scores.loss
        row |= {f"validation/{name}": scores.mean(name) for name in scores.per_class}
        row |= {
            f"{name}/{c}": v
            for name, values in scores.per_class.items()
            for c, v in zip(config.classes, values, strict=True)
        }
        tracker.scalars({"loss/validation": scores.loss}, state.iteration)
        tracker.scalars(
            {f"mean/{name}": scores.mean(name) for name in scores.per_class}, state.iteration
        )
        tracker.scalars(
            {tag: v for tag, v in row.items() if tag.split("/")[0] in scores.per_class},
            state.iteration,
        )
        for name, image in scores.images.items():
            tracker.image(f"raw, target, prediction/{name}", image, state.iteration)
    tracker.scalars({"lr": rate}, state.iteration)
    tracker.history(row)


def announce(
    config: TrainConfig,
    state: State,
    crops: Data,
    tracker: Tracker,
    about: dict[str, str],
    origin: str,
) -> None:
    """Say and log what is about to run."""
    parameters = sum(p.numel() for p in state.model.parameters())
    say(
        f"{config.model_name}/{config.run}: {parameters:,} parameters on {about['device']} in {about['precision']}; {origin}"
    )
    say(
        f"{len(crops.train)} training crops, {len(crops.validation)} validation crops in {len(crops.blocks)} blocks, {len(config.classes)} classes"
    )
    for notice in (
        *runtime.warnings_about(torch.device(about["device"])),
        *loaders.notices(crops, config.classes),
    ):
        say(f"note: {notice}")
    tracker.text("settings", config.record(), state.iteration)
    tracker.text("provenance", about, state.iteration)


def conclude(
    config: TrainConfig,
    state: State,
    tracker: Tracker,
    scores: Scores | None,
    ended: str,
    config_path: str | Path,
) -> Result:
    """Say where the best checkpoint is and how good, or how to go on."""
    folder, interrupted = config.path("model_save_path"), ended == INTERRUPTED
    best = checkpoint.find(folder, "best") or folder / "latest.pt"
    settings = {
        name: getattr(config, name)
        for name in (
            "learning_rate",
            "batch_size",
            "weight_decay",
            "use_mutual_exclusion",
            "random_seed",
        )
    }
    final = {config.best_metric: state.best} | ({"loss": scores.loss} if scores else {})
    if interrupted:
        tracker.finish(settings, {}, status="KILLED")
        say(
            f"interrupted; saved after iteration {state.iteration} in {folder / 'latest.pt'}. Go on with the same command:\n  {this_command(command_line('train', config_path))}"
        )
    else:
        files = [*sorted(config.folder.glob("*.py")), config.path("datasplit_path"), best]
        tracker.finish(settings, final, files)
        if not ended and state.epoch < config.epochs:
            ended = f"no better {config.best_metric} for {config.early_stopping_patience} epochs"
        reason = f" ({ended})" if ended else ""
        score = (
            f"best {config.best_metric} {state.best:.3f} at epoch {state.best_epoch}: "
            if math.isfinite(state.best)
            else ""
        )
        say(f"done after epoch {state.epoch}{reason}; {score}{best}")
    return Result(
        state.epoch,
        not interrupted,
        config.run,
        config.path("logs_save_path"),
        state.best,
        best,
        scores,
    )


def epoch_progress(config: TrainConfig, state: State, end: int) -> tqdm:
    """Progress bar of an epoch; none where output is not a terminal, which gets a line an epoch."""
    done = config.iterations_per_epoch - (end - state.iteration)
    return tqdm(
        total=config.iterations_per_epoch,
        initial=done,
        desc=f"epoch {state.epoch + 1}/{config.epochs}",
        leave=False,
        disable=None,
    )


def _refuse_other_settings(path: Path, saved: dict, config: TrainConfig, split_hash: str) -> None:
    """A continued run is the same run: settings that change what is learnt cannot change under way."""
    # a setting that did not exist yet was what its default is
    old = TrainConfig.recorded_defaults() | saved["settings"]
    new = config.record()
    changed = [
        f"{name} was {old.get(name)} and is {new[name]}"
        for name in new
        if name not in MAY_CHANGE and old.get(name) != new[name]
    ]
    if saved["split_hash"] != split_hash:
        changed.append("the crops of the datasplit are others")
    if changed:
        raise UserError(
            f"{path}: this run was started with other settings ({'; '.join(changed)}). Set them back, or set another run_name "
            "(with load_model = this file to start from its weights)"
        )


def _result(config: TrainConfig, state: State) -> dict[str, Any]:
    """The entries of a run's result, as they stand."""
    return {
        "epoch": state.epoch,
        "iteration": state.iteration,
        "best_metric": config.best_metric,
        "best": state.best,
        "best_epoch": state.best_epoch,
        "finished": state.epoch >= config.epochs or _out_of_patience(config, state),
    }


def _out_of_patience(config: TrainConfig, state: State) -> bool:
    return (
        bool(config.early_stopping_patience)
        and state.epoch - state.best_epoch >= config.early_stopping_patience
    )


def _duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.0f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )
