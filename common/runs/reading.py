"""Read a run from disk: its record, its history, its scores, and where its folders are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from common.config.as_text import from_text
from common.config.settings import RUN_FOLDERS, TrainConfig
from common.errors import UserError
from common.runs import history as history_module
from common.runs.find import Run, say_once
from common.runs.history import METRICS
from common.score import result
from common.score.result import Scores
from common.train.recording.record import RunRecord, best_epoch, best_row


@dataclass(frozen=True)
class Reading:
    """A run with its record, history and scores."""

    run: Run
    record: RunRecord
    history: pd.DataFrame
    """A row an epoch."""
    scores: dict[str, Scores]
    """Files of `evaluate` by name; that of the validation crops is first."""

    @property
    def name(self) -> str:
        """experiment/model/run."""
        return self.run.name

    @property
    def best_metric(self) -> str:
        """The metric that the best epoch is chosen by; "dice" if not known."""
        return self.record.best_metric or "dice"

    @cached_property
    def best(self) -> pd.Series | None:
        """The row of the best epoch, whose weights best.pt has; None without validation."""
        row = best_row(self.history, self.best_metric)
        return None if row is None else self.history.loc[row]

    @property
    def best_value(self) -> float | None:
        """The best_metric at the best epoch; None without validation."""
        return None if self.best is None else float(self.best[f"validation/{self.best_metric}"])

    @property
    def best_epoch(self) -> int | None:
        """None without validation."""
        return best_epoch(self.history, self.best_metric)

    def per_class(self, metric: str) -> dict[str, float]:
        """Return a metric at the best epoch for each class that occurs in the validation."""
        if self.best is None:
            return {}
        known = self.best.dropna()  # NaN: the validation has no voxel of the class
        start = f"{metric}/"
        columns = [column for column in known.index if column.startswith(start)]
        return {column.removeprefix(start): float(known[column]) for column in columns}

    @property
    def left_out(self) -> int:
        """Number of classes of crops that the challenge's score left out, over all files.

        Of equally good runs the one with the smaller number is ranked first.
        """
        return sum(scores.left_out for scores in self.scores.values())

    @property
    def is_validated(self) -> bool:
        """Whether the best epoch has a metric of any class."""
        return any(self.per_class(metric) for metric in METRICS)

    def last(self, column: str) -> float | None:
        """Return the last known value of a column of the history; None without one."""
        if column not in self.history:
            return None
        values = self.history[column].dropna()
        return float(values.iloc[-1]) if len(values) else None

    def folder(self, setting: str) -> Path:
        """Return the folder that one of RUN_FOLDERS, such as results_path, names for this run."""
        return run_folder(self.run, self.record, setting)


def read_all(runs: Iterable[Run]) -> list[Reading]:
    """Read runs. One with a file that is broken, or may not be read, is named and left out."""
    readings = []
    for run in runs:
        try:
            readings.append(read(run))
        except (UserError, OSError) as error:
            say_once(f"{run.name} is left out: {error}")
    return readings


def read(run: Run) -> Reading:
    """Read a run with its history and scores.

    Raises UserError where a file of it is broken, OSError where one may not be read.
    """
    record = history_module.record(run)
    paths = sorted(_files_of_scores(run_folder(run, record, "results_path")), key=_scores_order)
    return Reading(
        run=run,
        record=record,
        history=history_module.history(run),
        scores={path.name: result.read(path) for path in paths},
    )


def _files_of_scores(folder: Path) -> list[Path]:
    """Return the files of scores in a folder. Raises OSError for one that may not be read."""
    try:
        # not glob, to which such a folder is empty
        entries = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in entries if fnmatchcase(path.name, "*.json")]


def _scores_order(path: Path) -> tuple[bool, str]:
    """Sort scores.json, of the validation crops, first."""
    return path.name != "scores.json", path.name


def run_folder(run: Run, record: RunRecord, setting: str) -> Path:
    """Return the folder that a setting of RUN_FOLDERS names for a run, absolute.

    Its settings are believed where they also name the folder that the run was found in, as seen
    from the experiment on record or from the one that it is in now. Otherwise the folder is where
    the defaults put it, beside the logs.
    """
    # a repository may have been moved, an experiment copied with its runs
    homes = [run.experiment]
    recorded = _parsed(record.settings.get("base_experiment_path", "''"))
    if recorded:
        homes.insert(0, Path(recorded))
    for home in homes:
        config = _recorded_config(record, home)
        if config and config.path("logs_save_path") == run.folder.resolve():
            return config.path(setting)
    # of another trainer, or renamed: its settings may by now name the folders of a new run
    below_logs = run.folder.relative_to(run.logs)
    default = getattr(TrainConfig, setting)
    return run.experiment / default.format(model_name=below_logs.parent, run_name=below_logs.name)


def _recorded_config(record: RunRecord, home: Path) -> TrainConfig | None:
    """Return the settings that a run's paths are made of; None if they are not on record."""
    names = ("model_name", "run_name", "random_seed", *RUN_FOLDERS)
    if not set(names) <= set(record.settings):
        return None
    values = {name: _parsed(record.settings[name]) for name in names}
    return TrainConfig(
        build_model=_no_model,
        classes=(),
        input_array_info={},
        target_array_info={},
        base_experiment_path=str(home),
        **values,
    )


def _no_model() -> None:
    """Take the place of build_model, which no path depends on."""


def _parsed(text: str) -> Any:
    """Return a setting from the text that TrainConfig.record made of it."""
    try:
        return from_text(text)
    except ValueError:
        return text
