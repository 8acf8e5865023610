"""A search for good settings: ordinary runs with settings drawn by Optuna from the space that an experiment declares.

`search_space.py` beside train_config.py gives names of settings what to try for them:

    from common.train.search import choice, integers, log_uniform, uniform

    learning_rate = log_uniform(1e-5, 1e-2)
    batch_size = choice(1, 2, 4)
    model_kwargs = {"channels": integers(8, 32)}      # model_kwargs.channels; the other entries stay

Trials, whether they are run by one process or by several at a time, share a study in an SQLite file beside the runs.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fasteners
import torch

from common.config.load import load_config
from common.config.module import load_module
from common.config.settings import MAY_CHANGE, TrainConfig
from common.data import split
from common.errors import UserError
from common.talk import say
from common.train.run import train
from common.train.tracking import MLflow, open_mlflow

OBJECTIVE = frozenset(
    [
        "best_metric",
        "validation_time_limit",
        "validation_batch_limit",
        "datasplit_path",
        "data_path",
        "classes",
        "extra_classes",
        "input_array_info",
        "target_array_info",
        "random_seed",
        "use_mutual_exclusion",
        "infer_groups",
    ]
)
"""Settings that decide what a trial is measured with: blocks of validation, what is known in them, and the measure."""

BUDGET = frozenset(
    ["epochs", "iterations_per_epoch", "early_stopping_patience", "training_time_limit"]
)
"""Settings of how long a trial may take, which is the same for all."""

OF_THE_LOSS = frozenset(["criterion", "weight_loss", "pos_weight_cap"])
"""Settings that change the validation's loss, and are part of the measure where that is best_metric."""

OFF = ("validation_time_limit=0", "training_time_limit=0")
"""In a trial: they would make its result depend on how fast it was."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    ends: tuple[Any, ...]


def uniform(low: float, high: float) -> Range:
    """Numbers from low to high, all alike."""
    return _range(float(low), float(high), False)


def log_uniform(low: float, high: float) -> Range:
    """Numbers above 0 from low to high, as many between 1 and 10 as between 10 and 100."""
    return _range(float(low), float(high), True)


def integers(low: int, high: int) -> Range:
    """Whole numbers from low to high."""
    if not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f"integers({low}, {high}); write two whole numbers")
    return _range(low, high, False)


def choice(*values: Any) -> Choice:
    """One of these numbers, texts, True, False, None, or tuples of them."""
    unwritten = [value for value in values if not _is_literal(value)]
    if unwritten or len(values) < 2:
        what = (
            f"{unwritten[0]!r} cannot be written as text" if unwritten else f"{len(values)} values"
        )
        raise UserError(f"choice: {what}; write two or more numbers, texts or tuples of them")
    return Choice(values)


def search(
    config_path: str | Path,
    trials: int = 20,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    prune_after: int = 4,
    prune_epochs: int = 1,
) -> Path | None:
    """Run trials until the study has `trials` of them, and write the best settings; gives that file, None if interrupted or none.

    What an interrupted search left half done is gone on with. A trial is ended early when its best so far is below the median of
    the other trials at that epoch, but not before `prune_after` trials ended nor in its first `prune_epochs` epochs. The
    objective is the run's best_metric, on the same blocks in all trials.
    """
    optuna = _optuna()
    space, base = read_space(config_path), load_config(config_path, [*overrides, *OFF], data)
    check_space(space, config_path, base, overrides, data)
    folder = base.path("logs_save_path").parent
    folder.mkdir(parents=True, exist_ok=True)
    # Optuna counts steps from 0, and epochs count from 1
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=prune_after, n_warmup_steps=prune_epochs + 1
    )
    with _lock(folder / ".search.lock"):
        study = open_study(folder, base, space, pruner)
        parent = _mlflow_parent(study, base)
    given = load_config(config_path, overrides, data)
    for name in ("validation_time_limit", "training_time_limit"):
        if getattr(given, name):
            say(
                f"note: {name} is off in a search, where every trial gets the same epochs and is measured on the same blocks"
            )
    while True:
        with _next_trial(study, folder, space, base.random_seed, trials) as trial:
            if trial is None:
                break
            chosen = [f"{name}={_written(value)}" for name, value in trial.params.items()]
            say(f"{trial.user_attrs['run']}: {', '.join(chosen)}")
            own = [
                *OFF,
                f"run_name={trial.user_attrs['run']}",
                f"validation_batch_limit={_batch_limit(base, chosen)}",
            ]
            own += ["load_model=latest"] if base.load_model in ("best", "scratch") else []
            own += [f"mlflow_parent={parent.run_id}"] if parent else []
            if not _run(
                study,
                trial,
                functools.partial(train, config_path, [*overrides, *chosen, *own], data),
            ):
                return None
    best = write_best(study, folder, config_path)
    if parent:
        parent.finish(
            "FINISHED",
            {},
            {base.best_metric: study.best_value} if best else {},
            [best] if best else [],
        )
    return best


def read_space(config_path: str | Path) -> dict[str, Range | Choice]:
    """What to try for each setting, "name" or "name.key", from search_space.py beside a configuration."""
    path = Path(config_path)
    path = (path if path.is_dir() else path.parent) / "search_space.py"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; write one with lines such as learning_rate = log_uniform(1e-5, 1e-2)"
        )
    space = dict(
        _flat(
            {
                name: value
                for name, value in vars(load_module(path)).items()
                if isinstance(value, Range | Choice | dict) and name[0] != "_"
            }
        )
    )
    if not space:
        raise UserError(
            f"{path}: nothing to search for; write lines such as learning_rate = log_uniform(1e-5, 1e-2)"
        )
    return space


def check_space(
    space: dict[str, Range | Choice],
    config_path: str | Path,
    base: TrainConfig,
    overrides: Sequence[str],
    data: str | Path | None,
) -> None:
    """ValueError if a trial could be measured otherwise than another, or could not be configured; every end of every range is tried."""
    path = base.folder / "search_space.py"
    for name, tried in space.items():
        setting = name.split(".")[0]
        if setting in OBJECTIVE or (base.best_metric == "loss" and setting in OF_THE_LOSS):
            raise UserError(
                f"{path}: {setting} is part of what trials are measured with; take it out, and set it in train_config.py"
            )
        if setting in MAY_CHANGE | BUDGET:
            raise UserError(
                f"{path}: {setting} is the same for all trials; take it out, and set it in train_config.py"
            )
        if any(
            override.partition("=")[0].strip().replace("-", "_") == name for override in overrides
        ):
            raise UserError(
                f"{path}: {name} is searched for, and is given by --set too; take one of them away"
            )
        for value in tried.ends:
            try:
                config = load_config(config_path, [*overrides, f"{name}={_written(value)}"], data)
            except ValueError as error:
                raise UserError(f"{path}: {name} = {_written(value)} cannot be: {error}") from error
            _batch_limit(base, [f"batch_size={config.batch_size}"])
    if base.validation_batch_limit and isinstance(space.get("batch_size"), Range):
        raise UserError(
            f"{path}: batch_size with validation_batch_limit would change the validated blocks; write batch_size = choice(...)"
        )
    if (
        len(
            {
                dataclasses.replace(base, run_name=name).path(place)
                for name in "ab"
                for place in ("logs_save_path", "model_save_path")
            }
        )
        < 4
    ):
        raise UserError(
            f"{path}: logs_save_path and model_save_path are the same for all runs; write {{run_name}} in them"
        )
    rows = split.read_datasplit(base.path("datasplit_path"), base.path("data_path"))
    if not any(row.usage == "validate" and set(row.annotated) & set(base.classes) for row in rows):
        raise UserError(
            f"{base.path('datasplit_path')}: no validation crop to measure trials on; add rows 'validate'"
        )


def open_study(
    folder: Path, base: TrainConfig, space: dict[str, Range | Choice], pruner: Any
) -> Any:
    """The study in folder/search.db, new or gone on with. ValueError if it was begun with another space or other settings."""
    optuna = _optuna()
    direction = "minimize" if base.best_metric == "loss" else "maximize"
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder / 'search.db'}", engine_kwargs={"connect_args": {"timeout": 120}}
    )
    study = optuna.create_study(
        storage=storage,
        study_name="search",
        direction=direction,
        load_if_exists=True,
        pruner=pruner,
    )
    rows = split.read_datasplit(base.path("datasplit_path"), base.path("data_path"))
    now = {
        name: value
        for name, value in base.record().items()
        if name not in MAY_CHANGE or name in BUDGET
    }
    now |= {
        "split": split.split_hash(rows),
        **{f"space {name}": repr(tried) for name, tried in space.items()},
    }
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", now)
    elif changed := [
        f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]:
        raise UserError(
            f"{folder / 'search.db'}: this search was begun otherwise ({'; '.join(changed)}), and its trials cannot be compared. "
            "Set it back, or set another model_name"
        )
    return study


@contextmanager
def _next_trial(
    study: Any, folder: Path, space: dict[str, Range | Choice], seed: int, trials: int
) -> Iterator[Any]:
    """A trial of this process alone: one that no process runs any more, else a new one, None if there are enough.

    A trial's process holds its lock, and the system takes it away from a process that dies. What such a one left becomes a new
    trial of the study with the same settings and the same run, so that it goes on from its checkpoint.
    """
    optuna = _optuna()
    states, trial, lock, reported = optuna.trial.TrialState, None, None, {}
    with _lock(folder / ".search.lock"):
        every = study.get_trials(deepcopy=False)
        for old in every:
            if old.state == states.RUNNING and (
                lock := _take(folder, old.user_attrs.get("run", "unnamed"))
            ):
                study.enqueue_trial(
                    old.params, user_attrs={**old.user_attrs, "continues": old.number}
                )
                study.tell(old.number, state=states.FAIL)
                reported = old.intermediate_values
                break
        continued = {old.user_attrs["continues"] for old in every if "continues" in old.user_attrs}
        if lock or sum(old.number not in continued for old in every) < trials:
            # the number of trials in the seed: a search that is gone on with draws nothing twice
            study.sampler = optuna.samplers.TPESampler(seed=(seed + len(every)) % 2**32)
            trial = study.ask({name: _distribution(tried) for name, tried in space.items()})
            for epoch, metric in reported.items():
                trial.report(metric, epoch)
            if "run" not in trial.user_attrs:
                trial.set_user_attr(
                    "run",
                    f"trial-{len({old.user_attrs.get('run', old.number) for old in every}) + 1:04d}",
                )
                lock = _take(folder, trial.user_attrs["run"])
    try:
        yield trial
    finally:
        if lock:
            lock.release()


def _run(study: Any, trial: Any, run: Callable) -> bool:
    """Run a trial and tell the study what it came to; False if it was interrupted, and is to be gone on with."""
    states, pruned = _optuna().trial.TrialState, []

    def report(epoch: int, metric: float) -> bool:
        if math.isfinite(metric):
            trial.report(metric, epoch)
        if trial.should_prune():
            pruned.append(epoch)
        return bool(pruned)

    try:
        result = run(report=report)
    except (
        FloatingPointError,
        torch.OutOfMemoryError,
    ) as error:  # settings can be bad: that is what a search finds out
        say(f"{trial.user_attrs['run']}: failed; {error}")
        study.tell(trial, state=states.FAIL)
        return True
    if not result.finished:
        return False
    if pruned:
        study.tell(trial, state=states.PRUNED)
    elif math.isfinite(result.best_metric):
        study.tell(trial, result.best_metric)
    else:
        study.tell(trial, state=states.FAIL)
    return True


def write_best(study: Any, folder: Path, config_path: str | Path) -> Path | None:
    """Write the settings of the best trial for `train --overrides`, and say them; None if no trial came to its end."""
    states = _optuna().trial.TrialState
    every = study.get_trials(deepcopy=False)
    done = [trial for trial in every if trial.state == states.COMPLETE]
    if not done:
        say("no trial came to its end")
        return None
    best, path = study.best_trial, folder / "best_settings.txt"
    lines = [f"{name}={_written(value)}" for name, value in best.params.items()]
    counts = f"{len(done)} trials to their end, {sum(trial.state == states.PRUNED for trial in every)} ended early"
    head = f"# {best.user_attrs['run']}: {ast.literal_eval(study.user_attrs['settings']['best_metric'])} {best.value:.4f}, best of {counts}"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("\n".join([head, *lines]) + "\n")
    temporary.replace(path)
    say(
        f"{head[2:]}; {', '.join(lines)}\n  python -m cellmap_segmentation_challenge train {config_path} --overrides {path}"
    )
    return path


def _mlflow_parent(study: Any, base: TrainConfig) -> MLflow | None:
    """The MLflow run that the trials are nested in, None without MLflow."""
    if "mlflow" not in base.trackers:
        return None
    sink = open_mlflow(base, "search", run_id=study.user_attrs.get("mlflow_run", ""))
    study.set_user_attr("mlflow_run", sink.run_id)
    return sink


def _batch_limit(base: TrainConfig, chosen: Sequence[str]) -> int:
    """validation_batch_limit that gives a trial the blocks of the base settings, whatever its batch_size."""
    size = next(
        (int(text.partition("=")[2]) for text in chosen if text.startswith("batch_size=")),
        base.batch_size,
    )
    blocks = base.validation_batch_limit * base.batch_size
    if blocks % size:
        raise UserError(
            f"{base.folder / 'search_space.py'}: batch_size = {size} would be measured on other blocks, as validation_batch_limit x batch_size = "
            f"{blocks} is no multiple of it; choose divisors of {blocks}"
        )
    return blocks // size


def _distribution(tried: Range | Choice) -> Any:
    distributions = _optuna().distributions
    if isinstance(tried, Choice):
        return distributions.CategoricalDistribution([_written(value) for value in tried.ends])
    kind = (
        distributions.IntDistribution
        if isinstance(tried.low, int)
        else distributions.FloatDistribution
    )
    return kind(tried.low, tried.high, log=tried.log)


def _written(value: Any) -> str:
    """A value as --set takes it. Optuna keeps choices as this text already."""
    return value if isinstance(value, str) else repr(value)


def _flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Range | Choice]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, Range | Choice):
            yield f"{before}{name}", value


def _range(low: float, high: float, log: bool) -> Range:
    if not low < high or (log and low <= 0) or not math.isfinite(high - low):
        raise UserError(
            f"a range from {low} to {high}; write the lower end first{', above 0' if log else ''}"
        )
    return Range(low, high, log)


def _is_literal(value: Any) -> bool:
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with fasteners.InterProcessLock(path):
        yield


def _take(folder: Path, run: str) -> Any:
    """The lock of a trial's run, or None if a process has it."""
    lock = fasteners.InterProcessLock(folder / f".{run}.lock")
    if lock.acquire(blocking=False):
        return lock
    lock.lockfile.close()  # fasteners leaves it open
    return None


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "search needs the package optuna, which is not installed; pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
