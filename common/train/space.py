"""What a search tries for which setting: search_space.py of an experiment, read and checked."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.load import load_config
from common.config.module import load_module
from common.config.settings import MAY_CHANGE, TrainConfig
from common.data import split
from common.errors import UserError

FILE = "search_space.py"

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
"""Settings that decide what a trial is measured with: the blocks, their labels, the measure."""

BUDGET = frozenset(
    ["epochs", "iterations_per_epoch", "early_stopping_patience", "training_time_limit"]
)
"""Settings of how long a trial may take, which is the same for all."""

OF_THE_LOSS = frozenset(["criterion", "weight_loss", "pos_weight_cap"])
"""Settings that change the validation's loss: part of the measure where that is best_metric."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole ones if the ends are."""

    low: float
    high: float
    log: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """What is tried before a search: where both ends can be set, so can what lies between."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    ends: tuple[Any, ...]


Space = Mapping[str, Range | Choice]
"""What to try for each setting, by "name" or "name.key"."""


def uniform(low: float, high: float) -> Range:
    """Numbers from low to high, all alike."""
    return _range(float(low), float(high), log=False)


def log_uniform(low: float, high: float) -> Range:
    """Numbers above 0 from low to high, as many between 1 and 10 as between 10 and 100."""
    return _range(float(low), float(high), log=True)


def integers(low: int, high: int) -> Range:
    """Whole numbers from low to high."""
    if not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f"integers({low}, {high}); write two whole numbers")
    return _range(low, high, log=False)


def choice(*values: Any) -> Choice:
    """One of these numbers, texts, True, False, None, or tuples of them."""
    what = "write two or more numbers, texts or tuples of them"
    for value in values:
        if not _is_literal(value):
            raise UserError(f"choice: {value!r} cannot be written as text; {what}")
    if len(values) < 2:
        raise UserError(f"choice: {len(values)} values; {what}")
    return Choice(values)


def read_space(config_path: str | Path) -> dict[str, Range | Choice]:
    """What to try for each setting, from search_space.py beside a configuration.

    Raises FileNotFoundError without that file, UserError if nothing is in it.
    """
    given = Path(config_path)
    folder = given if given.is_dir() else given.parent
    path = folder / FILE
    example = "learning_rate = log_uniform(1e-5, 1e-2)"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; write one with lines such as {example}")
    names = vars(load_module(path))
    public = {name: value for name, value in names.items() if not name.startswith("_")}
    space = dict(_flat(public))
    if not space:
        raise UserError(f"{path}: nothing to search for; write lines such as {example}")
    return space


def check_space(
    space: Space,
    base: TrainConfig,
    config_path: str | Path,
    *,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
) -> None:
    """UserError if a trial could be measured otherwise than another, or could not be configured.

    Args:
        space: as `read_space` returns it; every end of every range in it is tried.
        base: the settings of the experiment without it.
        config_path: where they are from.
        overrides: the "name=value" strings that all trials are given.
        data: the data root.
    """
    path = base.folder / FILE
    given = {_name_of(override) for override in overrides}
    for name, tried in space.items():
        _refuse_setting(path, name, base.best_metric)
        if name in given:
            raise UserError(
                f"{path}: {name} is searched for, and is given by --set too; take one of them away"
            )
        for value in tried.ends:
            setting = f"{name}={written(value)}"
            try:
                config = load_config(config_path, [*overrides, setting], data)
            except UserError as error:
                raise UserError(f"{path}: {name} = {written(value)} cannot be: {error}") from error
            batch_limit(base, config.batch_size)
    if base.validation_batch_limit and isinstance(space.get("batch_size"), Range):
        raise UserError(
            f"{path}: batch_size with validation_batch_limit would change the validated blocks; "
            "write batch_size = choice(...)"
        )
    _refuse_one_run(path, base)
    _refuse_no_validation(base)


def batch_limit(base: TrainConfig, batch_size: int) -> int:
    """validation_batch_limit that gives a trial of this batch size the blocks of the base settings.

    Raises UserError where no whole number of batches does.
    """
    blocks = base.validation_batch_limit * base.batch_size
    if blocks % batch_size:
        raise UserError(
            f"{base.folder / FILE}: batch_size = {batch_size} would be measured on other blocks, "
            f"as validation_batch_limit x batch_size = {blocks} is no multiple of it; "
            f"choose divisors of {blocks}"
        )
    return blocks // batch_size


def written(value: Any) -> str:
    """A value as --set takes it. Optuna keeps choices as this text already."""
    return value if isinstance(value, str) else repr(value)


def _refuse_setting(path: Path, name: str, best_metric: str) -> None:
    """UserError for a setting that must be the same in all trials."""
    setting = name.partition(".")[0]
    moved = "take it out, and set it in train_config.py"
    measures = setting in OBJECTIVE or (best_metric == "loss" and setting in OF_THE_LOSS)
    if measures:
        raise UserError(f"{path}: {setting} is part of what trials are measured with; {moved}")
    if setting in MAY_CHANGE | BUDGET:
        raise UserError(f"{path}: {setting} is the same for all trials; {moved}")


def _refuse_one_run(path: Path, base: TrainConfig) -> None:
    """UserError if two trials would write into one folder."""
    folders = set()
    for name in ("a", "b"):
        trial = dataclasses.replace(base, run_name=name)
        folders.add(trial.path("logs_save_path"))
        folders.add(trial.path("model_save_path"))
    if len(folders) < 4:
        raise UserError(
            f"{path}: logs_save_path and model_save_path are the same for all runs; "
            "write {run_name} in them"
        )


def _refuse_no_validation(base: TrainConfig) -> None:
    """UserError if no crop could measure a trial."""
    path = base.path("datasplit_path")
    for row in split.read_datasplit(path, base.path("data_path")):
        if row.usage == "validate" and set(row.annotated) & set(base.classes):
            return
    raise UserError(f"{path}: no validation crop to measure trials on; add rows 'validate'")


def _name_of(override: str) -> str:
    """The setting of "name=value", spelled as in a configuration."""
    return override.partition("=")[0].strip().replace("-", "_")


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Range | Choice]]:
    """The ranges and choices in nested dicts by their dotted names; everything else is left out."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, Range | Choice):
            yield f"{before}{name}", value


def _range(low: float, high: float, log: bool) -> Range:
    is_range = low < high and math.isfinite(high - low)
    if not is_range or (log and low <= 0):
        above = ", above 0" if log else ""
        raise UserError(f"a range from {low} to {high}; write the lower end first{above}")
    return Range(low, high, log)


def _is_literal(value: Any) -> bool:
    """Whether a value is the same after it was written as text, as --set and Optuna do."""
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        return False
