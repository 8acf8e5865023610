"""One training run, from top to bottom."""

from __future__ import annotations

import math
import shlex
import signal
import sys
import tempfile
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
from common.tracking import MLflow, Record, TensorBoard, Tracker, say


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
    config_path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None, report: Report | None = None, **settings: Any
) -> Result:  # fmt: skip
    """Train the experiment of a configuration file, or go on where its run stopped.

    overrides: "name=value" strings; settings: the same as Python values. The arguments of `common.config.load_config`.
    Raises FileNotFoundError, ValueError, OSError or FloatingPointError, each with a sentence for the user.
    """
    config = load_config(config_path, overrides, data, **settings)
    device, crops, state, method = prepare(config)
    origin = resume(config, state, crops.split_hash)
    about = {**runtime.provenance(REPOSITORY), "device": str(device), "precision": method.precision.name, "split_hash": crops.split_hash}
    tracker, record = open_logs(config, state, about)
    try:
        announce(config, state, crops, tracker, about, origin)
        with interruptible() as stopped:
            scores, ended = run(config, state, method, crops, tracker, record, device, stopped, report)
    except BaseException:
        tracker.finish({}, {}, status="FAILED")
        record.end(state.iteration)
        raise
    record.end(state.iteration)
    return conclude(config, state, tracker, scores, ended, config_path)


def check(config_path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None) -> str:
    """Read the configuration, train and validate for some seconds, write nothing but decoded crops; a report of what the run takes.

    Steps are timed once the queue of the workers is as full as it will be in a long run; validation for up to ten seconds.
    """
    config = load_config(config_path, overrides, data)
    device, crops, state, method = prepare(config)
    group, seconds, waited, loss, norm = time_steps(config, state, method, crops, device)
    validation, scores = time_validation(config, state, method, crops, device)
    once, each = logs_size(config, state, scores)
    saved = _bytes([state.model.state_dict(), state.optimizer.state_dict()])
    hours = config.epochs * (config.iterations_per_epoch * seconds + validation) / 3600
    sizes = [(p.numel(), p.requires_grad) for p in state.model.parameters()]
    known = float(np.mean([float(losses.known(losses.dense(batch.target)).float().mean()) for batch in group]))
    raw = group[0].raw
    return "\n".join(
        [
            f"raw         {tuple(raw.shape)} at {_nm(config.input_array_info)} nm, {float(raw.min()):.2f} to {float(raw.max()):.2f}",
            f"target      {tuple(losses.dense(group[0].target).shape)} at {_nm(config.target_array_info)} nm, {known:.0%} known",
            f"parameters  {sum(n for n, _ in sizes):,}, {sum(n for n, trained in sizes if trained):,} of them trained",
            f"crops       {len(crops.train)} train, {len(crops.validation)} validate in {len(crops.blocks)} blocks",
            f"device      {device}, {method.precision.name}; peak memory {runtime.peak_memory_gb(device):.2f} GB, {runtime.free_memory_gb(device):.1f} GB more are free",
            f"iteration   {seconds:.3f} s, {waited:.3f} s of it waiting for data; loss {loss:.4f}, gradient norm {norm:.3g}",
            f"validation  {_duration(validation)} after each epoch" if scores else "validation  none",
            f"run         {config.epochs} epochs of {config.iterations_per_epoch} iterations take {_duration(hours * 3600)} here",
            f"writes      {_size(2 * saved)} of checkpoints, {_size(once + each * config.epochs)} of logs",
            *(f"note        {notice}" for notice in (*runtime.warnings_about(device), *loaders.notices(crops, config.classes))),
        ]
    )


TIMED_STEPS, TIMED_S, VALIDATION_S = 8, 30.0, 10.0
"""Steps that a check times; seconds after which it begins no more of them; seconds that it validates."""


def time_steps(
    config: TrainConfig, state: State, method: Method, crops: Data, device: torch.device
) -> tuple[list[loaders.Batch], float, float, float, float]:  # fmt: skip
    """The last group of batches; seconds a step, and of it waiting for data; its loss and gradient norm.

    A step's first calls choose convolutions and fill memory pools, and workers have batches ready that were read meanwhile:
    steps are timed after both, their mean is what a long run will see.
    """
    accumulation = config.gradient_accumulation_steps
    warm_up = 2 + math.ceil(2 * config.num_workers / accumulation)  # torch reads two batches ahead for each worker
    batches = training_batches(config, crops, device).between(0, (warm_up + TIMED_STEPS) * config.batch_size * accumulation)
    times: list[tuple[float, float]] = []
    for count in (warm_up, TIMED_STEPS):
        begun, times = time.perf_counter(), []
        while len(times) < count and time.perf_counter() - begun < TIMED_S:
            start = time.perf_counter()
            group = [next(batches) for _ in range(accumulation)]
            waited = time.perf_counter() - start
            loss, norm = steps.step(state, method, group)  # ends with a copy to the CPU: the device has then done its work
            times.append((time.perf_counter() - start, waited))
    seconds, waited = np.mean(times, 0)
    return group, float(seconds), float(waited), loss, norm


def time_validation(config: TrainConfig, state: State, method: Method, crops: Data, device: torch.device) -> tuple[float, Scores | None]:
    """Seconds that a validation takes, from as many of its batches as VALIDATION_S has time for; and what those gave."""
    fixed = validation_batches(config, crops, device)
    if not fixed:
        return 0.0, None
    begun = time.perf_counter()
    limit = min(VALIDATION_S, config.validation_time_limit or VALIDATION_S)
    scores = steps.validate(
        state, method, fixed, config.classes, limit, config.validation_batch_limit, config.figure_samples, lambda: False
    )  # fmt: skip
    seconds, blocks = time.perf_counter() - begun, math.ceil(len(crops.blocks) / config.batch_size)
    whole = seconds / state.validation_batches * min(config.validation_batch_limit or blocks, blocks)
    return min(whole, max(config.validation_time_limit, seconds)) if config.validation_time_limit else whole, scores


def logs_size(config: TrainConfig, state: State, scores: Scores | None) -> tuple[int, int]:
    """Bytes of TensorBoard's events that a run writes once, and for each epoch: found by writing one epoch elsewhere."""
    if "tensorboard" not in config.trackers:
        return 0, 0
    with tempfile.TemporaryDirectory() as folder:
        tracker, sizes = Tracker(Path(folder)), []
        trained = {"loss": 1.0, "grad_norm": 1.0, "samples_per_s": 1.0, "data_wait": 0.0}
        for log in (
            lambda: tracker.text("settings", config.record()),
            lambda: tracker.scalars({f"{name}/train": value for name, value in trained.items()}, 1),
            lambda: log_epoch(config, state, trained, scores, 0.1, tracker),
        ):  # fmt: skip
            log()
            tracker.scalars({"flush": 0.0}, 1)
            sizes.append(sum(path.stat().st_size for path in Path(folder).iterdir()))
        tracker.finish({}, {})
    once, steps_too, all_of_it = sizes
    return once, all_of_it - steps_too + (steps_too - once) * (config.iterations_per_epoch // 20)


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


def open_logs(config: TrainConfig, state: State, about: dict[str, str]) -> tuple[Tracker, Record]:
    """Where the run's numbers go: the sinks that `trackers` names, and run.json."""
    folder = config.path("logs_save_path")
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(
        folder, state.iteration,
        {"experiment": config.folder.name, "model_name": config.model_name, "run_name": config.run, "settings": config.record(), "provenance": about},
    )  # fmt: skip
    sinks: list[TensorBoard | MLflow] = [TensorBoard(folder, state.iteration)] if "tensorboard" in config.trackers else []
    if "mlflow" in config.trackers:
        sinks.append(open_mlflow(config, config.run, record.content.get("mlflow_run", ""), config.mlflow_parent))
        record.content["mlflow_run"] = sinks[-1].run_id  # type: ignore[union-attr]
        record.write()
    return Tracker(folder, state.iteration, sinks), record


def open_mlflow(config: TrainConfig, run_name: str, run_id: str = "", parent: str = "") -> MLflow:
    """A run of this experiment in the store of mlflow_uri."""
    uri = config.mlflow_uri or f"sqlite:///{config.folder / 'logs' / 'mlflow.db'}"
    return MLflow(uri, config.model_name, run_name, run_id, parent)


def run(
    config: TrainConfig, state: State, method: Method, crops: Data, tracker: Tracker, record: Record, device: torch.device,
    stopped: Callable[[], bool], report: Report | None,
) -> tuple[Scores | None, str]:  # fmt: skip
    """Epochs until the last one, an interruption, a report that ends it, or no improvement for too long.

    Saves after each, and when interrupted. Returns the last validation and why the run ended, "" if it came to its end.
    """
    per_iteration = config.batch_size * config.gradient_accumulation_steps
    last = config.epochs * config.iterations_per_epoch
    batches = training_batches(config, crops, device).between(state.iteration * per_iteration, last * per_iteration)
    fixed = validation_batches(config, crops, device)
    scores, ended, begun, first = None, "", time.perf_counter(), state.epoch
    while not ended and state.epoch < config.epochs and not _out_of_patience(config, state):
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
            ended = INTERRUPTED
            break
        better = finish_epoch(config, state, trained, scores, tracker, time.perf_counter() - begun, first)
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
    log_epoch(config, state, trained, scores, rate, tracker)
    left = seconds / (state.epoch - first) * (config.epochs - state.epoch)
    validation = f"validation loss {scores.loss:.4f}, {config.best_metric} {metric:.3f}{' (best)' if better else ''}, " if scores else ""
    say(
        f"epoch {state.epoch}/{config.epochs}: loss {trained['loss']:.4f}, {validation}{trained['samples_per_s']:.1f} samples/s, "
        f"data wait {trained['data_wait']:.0%}, {_duration(left)} left"
    )
    return better


def log_epoch(config: TrainConfig, state: State, trained: dict[str, float], scores: Scores | None, rate: float, tracker: Tracker) -> None:
    """Scalars, figures and a row of history.csv for the epoch that was finished at learning rate `rate`."""
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


def announce(config: TrainConfig, state: State, crops: Data, tracker: Tracker, about: dict[str, str], origin: str) -> None:
    """Say and log what is about to run."""
    parameters = sum(p.numel() for p in state.model.parameters())
    say(f"{config.model_name}/{config.run}: {parameters:,} parameters on {about['device']} in {about['precision']}; {origin}")
    say(f"{len(crops.train)} training crops, {len(crops.validation)} validation crops in {len(crops.blocks)} blocks, {len(config.classes)} classes")
    for notice in (*runtime.warnings_about(torch.device(about["device"])), *loaders.notices(crops, config.classes)):
        say(f"note: {notice}")
    tracker.text("settings", config.record(), state.iteration)
    tracker.text("provenance", about, state.iteration)


def conclude(config: TrainConfig, state: State, tracker: Tracker, scores: Scores | None, ended: str, config_path: str | Path) -> Result:
    """Say where the best checkpoint is and how good, or how to go on."""
    folder, interrupted = config.path("model_save_path"), ended == INTERRUPTED
    best = checkpoint.find(folder, "best") or folder / "latest.pt"
    settings = {name: getattr(config, name) for name in ("learning_rate", "batch_size", "weight_decay", "use_mutual_exclusion", "random_seed")}
    final = {config.best_metric: state.best} | ({"loss": scores.loss} if scores else {})
    if interrupted:
        tracker.finish(settings, {}, status="KILLED")
        say(f"interrupted; saved after iteration {state.iteration} in {folder / 'latest.pt'}. Go on with the same command:\n  {command(config_path)}")
    else:
        files = [*sorted(config.folder.glob("*.py")), config.path("datasplit_path"), best]
        tracker.finish(settings, final, files)
        if not ended and state.epoch < config.epochs:
            ended = f"no better {config.best_metric} for {config.early_stopping_patience} epochs"
        reason = f" ({ended})" if ended else ""
        score = f"best {config.best_metric} {state.best:.3f} at epoch {state.best_epoch}: " if math.isfinite(state.best) else ""
        say(f"done after epoch {state.epoch}{reason}; {score}{best}")
    return Result(state.epoch, not interrupted, config.run, config.path("logs_save_path"), state.best, best, scores)


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


def _result(config: TrainConfig, state: State) -> dict[str, Any]:
    """The entries of a run's result, as they stand."""
    return {
        "epoch": state.epoch, "iteration": state.iteration, "best_metric": config.best_metric, "best": state.best,
        "best_epoch": state.best_epoch, "finished": state.epoch >= config.epochs or _out_of_patience(config, state),
    }  # fmt: skip


def _out_of_patience(config: TrainConfig, state: State) -> bool:
    return bool(config.early_stopping_patience) and state.epoch - state.best_epoch >= config.early_stopping_patience


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def _bytes(value: Any) -> int:
    """Of the tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_bytes, items))


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count > 1e9 else f"{count / 1e6:.1f} MB" if count > 1e6 else f"{count / 1e3:.0f} kB"


def _nm(info: dict) -> str:
    return " x ".join(f"{s:g}" for s in info["scale"])
