"""Read and check search_space.py, which says what a search tries for each setting."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.groups import BUDGET, MAY_CHANGE, OBJECTIVE, OF_THE_LOSS
from common.config.load import load_config
from common.config.module import load_module
from common.config.overrides import taken_apart
from common.config.settings import TrainConfig
from common.data.samples.rows import that_count
from common.data.splits import split
from common.errors import UserError
from common.train.processes.one_process import refuse_shared_folders

FILE = "search_space.py"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole numbers if both are ints."""

    low: float
    high: float
    log: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that are checked before a search: if both are valid, so are all in between."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    ends: tuple[Any, ...]
    """The values, all of which are checked before a search."""


Space = Mapping[str, Range | Choice]
"""What to try for each setting, by name; "name.key" is an entry of a dict."""


def uniform(low: float, high: float) -> Range:
    """Draw numbers from low to high, uniformly."""
    return _range(float(low), float(high), log=False)


def log_uniform(low: float, high: float) -> Range:
    """Draw numbers from low to high, both above 0, uniformly on a logarithmic scale."""
    return _range(float(low), float(high), log=True)


def integers(low: int, high: int) -> Range:
    """Draw whole numbers from low to high, both included."""
    if not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f"integers({low}, {high}); write two whole numbers")
    return _range(low, high, log=False)


def choice(*values: Any) -> Choice:
    """Draw one of these values: numbers, texts, True, False, None, or tuples of them."""
    what = "write two or more numbers, texts or tuples of them"
    for value in values:
        if not _is_literal(value):
            raise UserError(f"choice: {value!r} cannot be written as text; {what}")
    if len(values) < 2:
        raise UserError(f"choice: {len(values)} values; {what}")
    return Choice(values)


def read_space(config_path: str | Path) -> dict[str, Range | Choice]:
    """Return what to try for each setting, from search_space.py beside a configuration.

    Raises FileNotFoundError if there is no such file, UserError if it has no range or choice.
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
    """Raise UserError if trials would not be comparable, or could not be configured.

    Args:
        space: what to try, see `read_space`; every end of every range is tried.
        base: the settings of the experiment without the search.
        config_path: path of the configuration.
        overrides: settings as "name=value", the same for all trials.
        data: the data root.
    """
    path = base.folder / FILE
    given = {taken_apart(override).path for override in overrides}
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
    trials = [dataclasses.replace(base, run_name=name) for name in ("a", "b")]
    refuse_shared_folders(path, trials, "trials")
    _refuse_no_validation(base)


def batch_limit(base: TrainConfig, batch_size: int) -> int:
    """Return the validation_batch_limit with which a trial validates the blocks of `base`.

    `batch_size` is that of the trial. Raises UserError if no whole number of batches does.
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
    """Return a value as --set takes it. Optuna stores choices as such text already."""
    return value if isinstance(value, str) else repr(value)


def _refuse_setting(path: Path, name: str, best_metric: str) -> None:
    """Raise UserError for a setting that must be the same in all trials."""
    setting = name.partition(".")[0]
    moved = "take it out, and set it in train_config.py"
    measures = setting in OBJECTIVE or (best_metric == "loss" and setting in OF_THE_LOSS)
    if measures:
        raise UserError(f"{path}: {setting} is part of what trials are measured with; {moved}")
    if setting in MAY_CHANGE | BUDGET:
        raise UserError(f"{path}: {setting} is the same for all trials; {moved}")


def _refuse_no_validation(base: TrainConfig) -> None:
    """Raise UserError if the datasplit has no validation crop for the classes."""
    path = base.path("datasplit_path")
    rows = that_count(split.read_datasplit(path, base.path("data_path")), base)
    if any(row.usage == "validate" for row in rows):
        return
    raise UserError(f"{path}: no validation crop to measure trials on; add rows 'validate'")


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Range | Choice]]:
    """Iterate over the ranges and choices in nested dicts, by dotted name."""
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
    """Return whether a value survives being written as text, as by --set and Optuna."""
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        return False
