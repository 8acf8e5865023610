"""One training run, from top to bottom."""

from __future__ import annotations

import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common import checkpoint, loaders, losses, optim, runtime, steps
from common.config import MAY_CHANGE, REPOSITORY, TrainConfig, load_config
from common.loaders import Batches, Blocks, Data
from common.steps import Method, Scores, State
from common.tracking import Tracker


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    epochs: int
    """Epochs done."""
    finished: bool
    """False if it was interrupted."""
    best_metric: float
    """Of best_checkpoint; NaN without validation."""
    checkpoint: Path
    """The best checkpoint, or the latest where there is no best."""
    scores: Scores | None
    """The last validation of this call."""


def train(config_path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None, **settings: Any) -> Result:
    """Train the experiment of a configuration file, or go on where its run stopped.

    overrides: "name=value" strings; settings: the same as Python values. The arguments of `common.config.load_config`.
    Raises FileNotFoundError, ValueError, OSError or FloatingPointError, each with a sentence for the user.
    """
    config = load_config(config_path, overrides, data, **settings)
    device, crops, state, method = prepare(config)
    origin = resume(config, state, crops.split_hash)
    tracker = Tracker(config.path("logs_save_path"), state.iteration)
    announce(config, state, crops, tracker, device, method.precision, origin)
    with interruptible() as stopped:
        scores = run(config, state, method, crops, tracker, device, stopped)
    return conclude(config, state, tracker, scores, stopped(), config_path)


def check(config_path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None) -> str:
    """Read the configuration, take three steps on real batches, write nothing but decoded crops; a report of what it takes."""
    config = load_config(config_path, overrides, data)
    device, crops, state, method = prepare(config)
    size, accumulation = config.batch_size, config.gradient_accumulation_steps
    batches = training_batches(config, crops, device).between(0, 3 * size * accumulation)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        group = [next(batches) for _ in range(accumulation)]
        waited = time.perf_counter() - start
        loss, norm = steps.step(state, method, group)
        times.append((time.perf_counter() - start, waited))
    seconds, waited = min(times)
    sizes = [(p.numel(), p.requires_grad) for p in state.model.parameters()]
    known = float(np.mean([float(losses.known(losses.dense(batch.target)).float().mean()) for batch in group]))
    hours = seconds * config.iterations_per_epoch * config.epochs / 3600
    return "\n".join(
        [
            f"raw         {tuple(group[0].raw.shape)} at {_nm(config.input_array_info)} nm, {float(group[0].raw.min()):.2f} to {float(group[0].raw.max()):.2f}",
            f"target      {tuple(losses.dense(group[0].target).shape)} at {_nm(config.target_array_info)} nm, {known:.0%} known",
            f"parameters  {sum(n for n, _ in sizes):,}, {sum(n for n, trained in sizes if trained):,} of them trained",
            f"crops       {len(crops.train)} train, {len(crops.validation)} validate in {len(crops.blocks)} blocks",
            f"device      {device}, {method.precision.name}, peak memory {runtime.peak_memory_gb(device):.2f} GB",
            f"iteration   {seconds:.3f} s, {waited:.3f} s of it waiting for data; loss {loss:.4f}, gradient norm {norm:.3g}",
            f"run         {config.epochs} epochs of {config.iterations_per_epoch} iterations take {hours:.1f} h here, validation not counted",
            *(f"note        {notice}" for notice in loaders.notices(crops, config.classes)),
        ]
    )


def prepare(config: TrainConfig) -> tuple[torch.device, Data, State, Method]:
    """Device, crops, and a run at its first step. Seeds before weights are drawn; the model is checked before data are decoded."""
    device = runtime.pick_device(config.device)
    precision = runtime.pick_precision(config.precision, device)
    runtime.seed_everything(config.random_seed)
    model = build_model(config, device)
    crops = loaders.open_data(config)
    return device, crops, *begin(config, model, crops, device, precision)


def build_model(config: TrainConfig, device: torch.device) -> nn.Module:
    """The network on its device, its shapes checked. ValueError with the shape to write if they do not fit the settings."""
    try:
        model = config.build_model(config.classes, **config.model_kwargs).to(device)
    except TypeError as error:
        raise ValueError(f"{config.folder}: build_model(classes, **{config.model_kwargs}) does not work ({error}); change model_kwargs") from error
    if config.channels_last:
        layout = torch.channels_last if steps.is_2d(model) else torch.channels_last_3d
        model = model.to(memory_format=layout)
    raw = torch.zeros(1, 1, *config.input_array_info["shape"], device=device)
    with torch.no_grad():
        method = Method(losses.weighted_bce, None, runtime.Precision("fp32", device.type), config.channels_last, 0.0)
        try:
            shape = tuple(method.logits(model, raw).shape)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{config.folder}: the model does not take raw of {tuple(raw.shape[2:])} voxels ({reason}); change input_array_info"
            ) from error
    wanted = (1, len(config.classes), *config.target_array_info["shape"])
    if shape != wanted:
        hint = f"target_array_info['shape'] = {shape[2:]}" if shape[1] == wanted[1] and len(shape) == 5 else f"a model with {wanted[1]} output channels"
        raise ValueError(
            f"{config.folder}: the model gives {shape[1:]} for raw {tuple(raw.shape[2:])}, and the settings ask for {wanted[1:]}; write {hint}"
        )
    return model


def begin(config: TrainConfig, model: nn.Module, crops: Data, device: torch.device, precision: runtime.Precision) -> tuple[State, Method]:
    """A run at its first step."""
    ones = np.ones(len(config.classes), np.float32)
    weights = optim.positive_weights(crops.foreground, crops.background, config.pos_weight_cap) if config.weight_loss else ones
    if config.init_output_to_prior:
        optim.start_output_at(model, optim.prior_logits(crops.foreground, crops.background, weights))
    optimizer = optim.build_optimizer(model, config.learning_rate, config.weight_decay, config.optimizer)
    scheduler = optim.build_scheduler(optimizer, config.scheduler, config.scheduler_kwargs, config.best_metric != "loss")
    pos_weight = torch.from_numpy(weights).to(device) if config.weight_loss else None
    method = Method(config.criterion or losses.weighted_bce, pos_weight, precision, config.channels_last, config.max_grad_norm)
    return State(model, optimizer, scheduler, precision.scaler()), method


def resume(config: TrainConfig, state: State, split_hash: str) -> str:
    """Load what load_model asks for into the state; a sentence that says what was loaded."""
    folder, choice = config.path("model_save_path"), config.load_model
    own = checkpoint.find(folder, "best" if choice == "best" else "latest")
    if choice == "scratch" and own:
        raise ValueError(f"{own}: this run exists and load_model = 'scratch' would write over it; set another run_name, or remove it")
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


SAVED_NUMBERS = ("epoch", "iteration", "best", "best_epoch", "validation_batches", "shown", "epoch_loss")


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
        "provenance": runtime.provenance(REPOSITORY),
        "split_hash": split_hash,
        **{name: getattr(state, name) for name in SAVED_NUMBERS},
    }
    checkpoint.save(config.path("model_save_path") / f"{which}.pt", whole)


def training_batches(config: TrainConfig, crops: Data, device: torch.device) -> Batches:
    """The stream of training samples; iteration i takes the same ones in every run with these settings and this seed."""
    blocks = Blocks(crops.train, crops.sampler, crops.sampler.input, crops.sampler.target)
    return Batches(blocks, config.batch_size, config.num_workers, device, config.raw_range)


def validation_batches(config: TrainConfig, crops: Data, device: torch.device) -> Batches | None:
    """The fixed validation blocks, or None if no crop validates."""
    if not crops.blocks:
        return None
    blocks = Blocks(crops.validation, crops.blocks, crops.sampler.input, crops.sampler.target)
    return Batches(blocks, config.batch_size, config.num_workers, device, config.raw_range)


def run(
    config: TrainConfig, state: State, method: Method, crops: Data, tracker: Tracker, device: torch.device, stopped: Callable[[], bool]
) -> Scores | None:  # fmt: skip
    """Epochs until the last one, an interruption, or no improvement for too long. Saves after each, and when interrupted."""
    per_iteration = config.batch_size * config.gradient_accumulation_steps
    last = config.epochs * config.iterations_per_epoch
    batches = training_batches(config, crops, device).between(state.iteration * per_iteration, last * per_iteration)
    fixed = validation_batches(config, crops, device)
    scores, begun, first = None, time.perf_counter(), state.epoch
    while state.epoch < config.epochs and not _out_of_patience(config, state):
        end = (state.epoch + 1) * config.iterations_per_epoch
        with progress(config, state, end) as bar:
            trained = steps.train_epoch(
                state, method, batches, end, config.gradient_accumulation_steps, tracker.scalars, stopped, bar
            )  # fmt: skip
        if not stopped() and fixed:
            scores = steps.validate(
                state, method, fixed, config.classes, config.validation_time_limit, config.validation_batch_limit,
                config.figure_samples, stopped,
            )  # fmt: skip
        if stopped():
            break
        better = finish_epoch(config, state, trained, scores, tracker, time.perf_counter() - begun, first)
        save(config, state, crops.split_hash, "latest")
        if better:
            save(config, state, crops.split_hash, "best")
        if config.training_time_limit and time.perf_counter() - begun > config.training_time_limit:
            break
    if stopped():
        save(config, state, crops.split_hash, "latest")
    return scores


def finish_epoch(
    config: TrainConfig, state: State, trained: dict[str, float], scores: Scores | None, tracker: Tracker, seconds: float, first: int
) -> bool:  # fmt: skip
    """Count the epoch, move the scheduler, log and say what it gave; True if it is the best so far."""
    state.epoch += 1
    state.epoch_loss = [0.0, 0.0]
    metric = scores.mean(config.best_metric) if scores else math.nan
    sign = -1 if config.best_metric == "loss" else 1
    better = math.isfinite(metric) and not sign * metric <= sign * state.best
    if better:
        state.best, state.best_epoch = metric, state.epoch
    rate = state.optimizer.param_groups[0]["lr"]
    if isinstance(state.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        state.scheduler.step(metric if scores else trained["loss"])
    elif state.scheduler:
        state.scheduler.step()
    row = {"epoch": state.epoch, "iteration": state.iteration, "lr": rate, **{f"train/{name}": value for name, value in trained.items()}}
    if scores:
        row["validation/loss"] = scores.loss
        row |= {f"validation/{name}": scores.mean(name) for name in scores.per_class}
        row |= {f"{name}/{c}": v for name, values in scores.per_class.items() for c, v in zip(config.classes, values, strict=True)}
        tracker.scalars({"loss/validation": scores.loss}, state.iteration)
        tracker.scalars({f"mean/{name}": scores.mean(name) for name in scores.per_class}, state.iteration)
        tracker.scalars({tag: v for tag, v in row.items() if tag.split("/")[0] in scores.per_class}, state.iteration)
        for name, image in scores.images.items():
            tracker.image(f"raw, target, prediction/{name}", image, state.iteration)
    tracker.scalars({"lr": rate}, state.iteration)
    tracker.history(row)
    left = seconds / (state.epoch - first) * (config.epochs - state.epoch)
    validation = f"validation loss {scores.loss:.4f}, {config.best_metric} {metric:.3f}{' (best)' if better else ''}, " if scores else ""
    say(
        f"epoch {state.epoch}/{config.epochs}: loss {trained['loss']:.4f}, {validation}{trained['samples_per_s']:.1f} samples/s, "
        f"data wait {trained['data_wait']:.0%}, {_duration(left)} left"
    )
    return better


def announce(
    config: TrainConfig, state: State, crops: Data, tracker: Tracker, device: torch.device, precision: runtime.Precision, origin: str
) -> None:  # fmt: skip
    """Say and log what is about to run."""
    parameters = sum(p.numel() for p in state.model.parameters())
    say(f"{config.model_name}/{config.path('logs_save_path').name}: {parameters:,} parameters on {device} in {precision.name}; {origin}")
    say(f"{len(crops.train)} training crops, {len(crops.validation)} validation crops in {len(crops.blocks)} blocks, {len(config.classes)} classes")
    for notice in (*runtime.warnings_about(device), *loaders.notices(crops, config.classes)):
        say(f"note: {notice}")
    about = {**runtime.provenance(REPOSITORY), "split_hash": crops.split_hash, "device": str(device), "precision": precision.name}
    tracker.text("settings", config.record(), state.iteration)
    tracker.text("provenance", about, state.iteration)


def conclude(config: TrainConfig, state: State, tracker: Tracker, scores: Scores | None, interrupted: bool, config_path: str | Path) -> Result:
    """Say where the best checkpoint is and how good, or how to go on."""
    folder = config.path("model_save_path")
    settings = {name: getattr(config, name) for name in ("learning_rate", "batch_size", "weight_decay", "use_mutual_exclusion", "random_seed")}
    final = {config.best_metric: state.best} | ({"loss": scores.loss} if scores else {})
    tracker.finish(settings, {} if interrupted else final)
    best = checkpoint.find(folder, "best") or folder / "latest.pt"
    if interrupted:
        say(f"interrupted; saved after iteration {state.iteration} in {folder / 'latest.pt'}. Go on with the same command:\n  {command(config_path)}")
    elif math.isfinite(state.best):
        patient = not _out_of_patience(config, state)
        ended = f" (no better {config.best_metric} for {config.early_stopping_patience} epochs)" if not patient else ""
        ended = " (training_time_limit)" if patient and state.epoch < config.epochs else ended
        say(f"done after epoch {state.epoch}{ended}; best {config.best_metric} {state.best:.3f} at epoch {state.best_epoch}: {best}")
    else:
        say(f"done after epoch {state.epoch}: {best}")
    return Result(state.epoch, not interrupted, state.best, best, scores)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that is true once Ctrl-C or SIGTERM came; a second Ctrl-C ends at once. Not for threads."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)
        say("\nstopping after this step; once more ends at once")

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody sends it signals
        before = {}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def progress(config: TrainConfig, state: State, end: int) -> tqdm:
    """Progress bar of an epoch; none where output is not a terminal, which gets a line an epoch."""
    done = config.iterations_per_epoch - (end - state.iteration)
    return tqdm(
        total=config.iterations_per_epoch, initial=done, desc=f"epoch {state.epoch + 1}/{config.epochs}", leave=False, disable=None
    )


def command(config_path: str | Path) -> str:
    """The command that this process was started with, or one like it."""
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join(["python", "-m", Path(sys.argv[0]).parent.name, *sys.argv[1:]])
    return f"python -m cellmap_segmentation_challenge train {config_path}"


def say(text: str) -> None:
    """A line on standard error, beside a progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)


def _refuse_other_settings(path: Path, saved: dict, config: TrainConfig, split_hash: str) -> None:
    """A continued run is the same run: settings that change what is learnt cannot change under way."""
    old, new = saved["settings"], config.record()
    changed = [
        f"{name} was {old.get(name)} and is {new[name]}" for name in new if name not in MAY_CHANGE and old.get(name) != new[name]
    ]
    if saved["split_hash"] != split_hash:
        changed.append("the crops of the datasplit are others")
    if changed:
        raise ValueError(
            f"{path}: this run was started with other settings ({'; '.join(changed)}). Set them back, or set another run_name "
            "(with load_model = this file to start from its weights)"
        )


def _out_of_patience(config: TrainConfig, state: State) -> bool:
    return bool(config.early_stopping_patience) and state.epoch - state.best_epoch >= config.early_stopping_patience


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def _nm(info: dict) -> str:
    return " x ".join(f"{s:g}" for s in info["scale"])
