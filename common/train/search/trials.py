"""Search for good settings: train runs with settings that Optuna draws from a declared space.

`search_space.py` beside train_config.py says what to try for which setting:

    from common.train.search import choice, integers, log_uniform, uniform

    learning_rate = log_uniform(1e-5, 1e-2)
    batch_size = choice(1, 2, 4)
    model_kwargs = {"channels": integers(8, 32)}    # model_kwargs.channels; other entries stay

Each trial is an ordinary run, and is continued where an interrupted search left it. All are
measured by best_metric on the same validation blocks. One is pruned (ended early) if its best value
so far is worse than the median of the other trials at that epoch. The trials of one or of several
processes share a study, an SQLite file beside the runs.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.config.as_text import from_text
from common.config.groups import BUDGET, MAY_CHANGE
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.splits import split
from common.errors import FileError, UserError
from common.files import alone, write_text
from common.stopping import Stopped
from common.talk import command_line, count, note, say, some
from common.train.recording.record import RECORD
from common.train.recording.tracking import MLflow, open_parent
from common.train.run import Result, train
from common.train.search.space import (
    Choice,
    Range,
    Space,
    batch_limit,
    check_space,
    read_space,
    written,
)
from common.train.setup import Score

OFF = ("validation_time_limit=0", "training_time_limit=0")
"""Settings of every trial: time limits would make its result depend on the speed of the machine."""

DATABASE_TIMEOUT_S = 120
"""Seconds that a process waits for others that write to the study; network disks can be slow."""

Study = Any
"""An optuna.Study; not a type here, since the package is optional."""

Trial = Any
"""An optuna.Trial, or an optuna.trial.FrozenTrial that was read back."""


def search(
    config_path: str | Path,
    trials: int = 20,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    *,
    prune_after: int = 4,
    prune_epochs: int = 1,
    score: Score | None = None,
) -> Path | None:
    """Run trials until the study has `trials` of them, and write the settings of the best one.

    Args:
        config_path: folder of an experiment or its train_config.py, with search_space.py beside it.
        trials: number of trials, including those of earlier calls and of other processes.
        overrides: settings of all trials as "name=value".
        data: the data root.
        prune_after: number of trials that must finish before any is pruned.
        prune_epochs: number of first epochs in which a trial is not pruned.
        score: as of `common.train.run.train`.

    Returns the file with the best settings; None if interrupted, or if no trial finished. Raises
    Stopped if stopped by a signal other than Ctrl-C, or by a time limit.
    """
    space = read_space(config_path)
    base = load_config(config_path, [*overrides, *OFF], data)
    check_space(space, base, config_path, overrides=overrides, data=data)
    folder = base.path("logs_save_path").parent
    with _study_lock(folder):
        study = open_study(folder, base, space, _pruner(prune_after, prune_epochs))
        parent = _mlflow_parent(study, base)
    _say_what_is_off(load_config(config_path, overrides, data))
    queue = _Queue(study, folder, space, seed=base.random_seed, trials=trials)
    run = functools.partial(train, config_path, data=data, score=score)
    if not _run_all(queue, run, base, overrides=overrides, parent=parent):
        return None
    best = write_best(study, folder, config_path, overrides=overrides, data=data)
    _finish(parent, {base.best_metric: study.best_value} if best else {}, best)
    return best


def _pruner(prune_after: int, prune_epochs: int) -> Any:
    """Return what ends trials early, see `search`."""
    # Optuna counts steps from 0, and epochs count from 1
    return _optuna().pruners.MedianPruner(
        n_startup_trials=prune_after, n_warmup_steps=prune_epochs + 1
    )


def _run_all(
    queue: _Queue,
    train_with: Callable[..., Result],
    base: TrainConfig,
    *,
    overrides: Sequence[str],
    parent: MLflow | None,
) -> bool:
    """Run trials until there are enough; return False if one was interrupted by Ctrl-C."""
    while True:
        with queue.next_trial() as trial:
            if trial is None:
                return True
            drawn = _drawn(trial)
            say(f"{trial.user_attrs['run']}: {', '.join(drawn)}")
            settings = [*overrides, *drawn, *_own_settings(base, trial, parent)]
            run = functools.partial(train_with, overrides=settings)
            if not _run(queue.study, trial, run):
                return False


def open_storage(path: Path) -> Any:
    """Return optuna's storage in a database, whose connections are closed after each use."""
    from sqlalchemy.pool import NullPool

    engine = {"poolclass": NullPool, "connect_args": {"timeout": DATABASE_TIMEOUT_S}}
    return _optuna().storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=engine)


def open_study(folder: Path, base: TrainConfig, space: Space, pruner: Any) -> Study:
    """Create or open the study in folder/search.db.

    Raises UserError if it was begun with another space or other settings, if it is damaged, and if
    it is gone while runs of its trials stand.
    """
    optuna = _optuna()
    path = folder / "search.db"
    _refuse_damaged(path)
    study = optuna.create_study(
        storage=open_storage(path),
        study_name="search",
        direction="minimize" if base.best_metric == "loss" else "maximize",
        load_if_exists=True,
        pruner=pruner,
    )
    now = _identity(base, space)
    before = study.user_attrs.get("settings")
    if before is None:
        _refuse_lost(path)
        study.set_user_attr("settings", now)
        return study
    changed = []
    for name in {**before, **now}:
        old = before.get(name)
        new = now.get(name)
        if old != new:
            changed.append(f"{name} was {old} and is {new}")
    if changed:
        raise UserError(
            f"{path}: this search was begun otherwise ({'; '.join(changed)}), and its trials "
            "cannot be compared. Set it back, or set another model_name"
        )
    return study


def _refuse_damaged(path: Path) -> None:
    """Raise UserError if a study is there and cannot be read."""
    if not path.is_file():
        return
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=DATABASE_TIMEOUT_S)) as database:
            problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except (sqlite3.Error, TypeError) as error:
        problem = str(error)
    if problem != "ok":
        raise UserError(
            f"{path}: the study cannot be read ({problem}); put a copy of it back, or begin "
            "another search with --set model_name=NAME"
        )


def _refuse_lost(path: Path) -> None:
    """Raise UserError if the runs of a study stand whose file is gone, or empty."""
    runs = sorted(file.parent.name for file in path.parent.glob(f"trial-*/{RECORD}"))
    if runs:
        raise UserError(
            f"{path}: gone or empty, and {some(runs)} of its trials stand, which a search that "
            "begins anew would go on with; put a copy of it back, or begin another search with "
            "--set model_name=NAME"
        )


def _identity(base: TrainConfig, space: Space) -> dict[str, str]:
    """Return as text what must be the same in all trials of a study."""
    identity = {}
    for name, value in base.record().items():
        if name not in MAY_CHANGE or name in BUDGET:
            identity[name] = value
    rows = split.read_datasplit(base.path("datasplit_path"), base.path("data_path"))
    identity["split"] = split.split_hash(rows)
    for name, tried in space.items():
        identity[f"space {name}"] = repr(tried)
    return identity


@dataclass(frozen=True)
class _Queue:
    """Hands out trials to this process, each of which no other process runs.

    The process that runs a trial holds its lock, which the operating system releases if the process
    dies. Such an abandoned trial becomes a new trial with the same settings and the same run, which
    continues from its checkpoint.
    """

    study: Study
    folder: Path
    """Folder of the study and the locks."""
    space: Space
    seed: int
    trials: int
    """Number of trials that the study should have."""

    @contextmanager
    def next_trial(self) -> Iterator[Trial | None]:
        """Context manager: yield a locked trial; None if the study has enough trials."""
        with ExitStack() as lock:
            with _study_lock(self.folder):
                trial = self._claim(lock)
            yield trial

    def _claim(self, lock: ExitStack) -> Trial | None:
        """Return an abandoned trial or a new one, locked by `lock`; None if there are enough."""
        every = self.study.get_trials(deepcopy=False)
        abandoned = self._take_abandoned(every, lock)
        if not abandoned and _count_begun(every) >= self.trials:
            return None
        trial = self._ask(len(every))
        if abandoned:
            for epoch, metric in abandoned.intermediate_values.items():
                trial.report(metric, epoch)
        if "run" not in trial.user_attrs:
            runs = {trial.user_attrs.get("run", trial.number) for trial in every}
            name = f"trial-{len(runs) + 1:04d}"
            trial.set_user_attr("run", name)
            _take(self.folder, name, lock)
        return trial

    def _take_abandoned(self, every: Sequence[Trial], lock: ExitStack) -> Trial | None:
        """Return a trial whose process has died; its settings are enqueued in the study again."""
        states = _optuna().trial.TrialState
        for trial in every:
            if trial.state != states.RUNNING:
                continue
            if _take(self.folder, trial.user_attrs.get("run", "unnamed"), lock):
                attributes = {**trial.user_attrs, "continues": trial.number}
                self.study.enqueue_trial(trial.params, user_attrs=attributes)
                self.study.tell(trial.number, state=states.FAIL)
                return trial
        return None

    def _ask(self, number: int) -> Trial:
        """Return a new trial with enqueued settings if there are any, otherwise with drawn ones."""
        optuna = _optuna()
        # the number of trials in the seed: a search that is gone on with draws nothing twice
        self.study.sampler = optuna.samplers.TPESampler(seed=(self.seed + number) % 2**32)
        return self.study.ask({name: distribution(tried) for name, tried in self.space.items()})


def _count_begun(every: Sequence[Trial]) -> int:
    """Count the trials of a study; a trial and the one that continues it count once."""
    continued = {trial.user_attrs.get("continues") for trial in every}
    return sum(trial.number not in continued for trial in every)


def _run(study: Study, trial: Trial, run: Callable[..., Result]) -> bool:
    """Run a trial and tell the study its result; return False if it was interrupted by Ctrl-C.

    Raises Stopped if it was by another signal or a time limit. `run` is `train` with all arguments
    but `report`.
    """
    states = _optuna().trial.TrialState
    pruned = False

    def report(epoch: int, metric: float) -> bool:
        nonlocal pruned
        if math.isfinite(metric):
            trial.report(metric, epoch)
        pruned = pruned or trial.should_prune()
        return pruned

    try:
        result = run(report=report)
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        # settings can be bad: that is what a search finds out
        say(f"{trial.user_attrs['run']}: failed; {error}")
        study.tell(trial, state=states.FAIL)
        return True
    if result.requeue:
        raise Stopped
    if not result.finished:
        return False
    if result.scores and not math.isfinite(result.scores.loss):
        # its steps were skipped, too few of them in a row to end it
        say(f"{trial.user_attrs['run']}: failed; its validation loss is {result.scores.loss}")
        study.tell(trial, state=states.FAIL)
    elif pruned:
        study.tell(trial, state=states.PRUNED)
    elif math.isfinite(result.best_metric):
        study.tell(trial, result.best_metric)
    else:
        say(f"{trial.user_attrs['run']}: no validation gave a value; it is compared with no other")
        study.tell(trial, state=states.FAIL)
    return True


def write_best(
    study: Study,
    folder: Path,
    config_path: str | Path,
    *,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
) -> Path | None:
    """Write the settings of the best trial for `train --overrides`, and say how to train with them.

    overrides, data: as the search was given them. None if no trial came to its end.
    """
    states = _optuna().trial.TrialState
    ends = [trial.state for trial in study.get_trials(deepcopy=False)]
    completed = ends.count(states.COMPLETE)
    if not completed:
        say("no trial came to its end")
        return None
    best = study.best_trial
    path = folder / "best_settings.txt"
    lines = _drawn(best)
    metric = from_text(study.user_attrs["settings"]["best_metric"])
    summary = (
        f"{best.user_attrs['run']}: {metric} {best.value:.4f}, best of "
        f"{count(completed, 'trial')} that came to the end, {ends.count(states.PRUNED)} ended early"
    )
    write_text(path, "\n".join([f"# {summary}", *lines]) + "\n")
    # a run of its own: that of the experiment, or of an earlier best, was begun with other settings
    settings = [*overrides, f"run_name=best-{best.user_attrs['run']}"]
    command = command_line("train", config_path, overrides=path, set=settings, data=data)
    say(f"{summary}; {', '.join(lines)}\nnext: {command}")
    return path


def distribution(tried: Range | Choice) -> Any:
    """Return the Optuna distribution of a range or choice."""
    distributions = _optuna().distributions
    if isinstance(tried, Choice):
        # as texts: Optuna's file takes no tuples
        return distributions.CategoricalDistribution([written(value) for value in tried.ends])
    if isinstance(tried.low, int):
        return distributions.IntDistribution(tried.low, tried.high)
    return distributions.FloatDistribution(tried.low, tried.high, log=tried.log)


def _drawn(trial: Trial) -> list[str]:
    """Return the settings drawn for a trial, as --set takes them."""
    return [f"{name}={written(value)}" for name, value in trial.params.items()]


def _own_settings(base: TrainConfig, trial: Trial, parent: MLflow | None) -> list[str]:
    """Return the other settings of a trial, as --set takes them."""
    batch_size = int(trial.params.get("batch_size", base.batch_size))
    settings = [
        *OFF,
        f"run_name={trial.user_attrs['run']}",
        f"validation_batch_limit={batch_limit(base, batch_size)}",
    ]
    if base.load_model in ("best", "scratch"):
        # a trial goes on where it stopped; "scratch" would refuse to, "best" would go back
        settings.append("load_model=latest")
    if parent:
        settings.append(f"mlflow_parent={parent.run_id}")
    return settings


def _mlflow_parent(study: Study, base: TrainConfig) -> MLflow | None:
    """Open the MLflow run that the trials are nested in; None without MLflow."""
    parent = open_parent(base, "search", study.user_attrs.get("mlflow_run", ""))
    if parent:
        study.set_user_attr("mlflow_run", parent.run_id)
    return parent


def _finish(parent: MLflow | None, metrics: dict[str, float], best: Path | None) -> None:
    """Close the MLflow run that the trials are nested in, if there is one."""
    if parent:
        parent.finish("FINISHED", {}, metrics, [best] if best else [])


def _say_what_is_off(given: TrainConfig) -> None:
    for name in ("validation_time_limit", "training_time_limit"):
        if getattr(given, name):
            note(
                f"{name} is off in a search, where every trial gets the same epochs and is "
                "measured on the same blocks"
            )


def _study_lock(folder: Path) -> Any:
    """Lock the study, so that two processes do not take the same trial."""
    return alone(folder / ".search.lock", wait=True)


def _take(folder: Path, run: str, lock: ExitStack) -> bool:
    """Add the lock of a trial's run to `lock`; return False if another process holds it."""
    try:
        lock.enter_context(alone(folder / f".{run}.lock"))
    except FileError:
        raise
    except UserError:
        return False
    return True


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "search needs the package optuna, which is not installed; pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
