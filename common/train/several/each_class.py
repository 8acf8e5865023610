"""Train one network for each class of an experiment, the others being its counter-examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from common.config.groups import OF_SEVERAL
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.errors import UserError
from common.talk import aligned, count, note, say, short_path, some
from common.train.processes.one_process import refuse_shared_folders
from common.train.recording.record import RunRecord, read_record
from common.train.recording.tracking import MLflow, open_parent
from common.train.run import Result, train
from common.train.setup import Score


def train_each_class(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    *,
    score: Score | None = None,
) -> list[Result]:
    """Train a run for each class, or continue it, and print how good each is.

    Stops after a run that is interrupted, and returns the results up to that one.
    """
    config = load_config(config_path, overrides, data)
    of_class = members(config_path, config.classes, overrides, data)
    refuse_shared_folders(config_path, list(of_class.values()), "classes")
    parent = _mlflow_parent(config, of_class[config.classes[0]])
    if left_out := of_several(config):
        note(f"{some(left_out)}: of several channels, and not of the network of one class")
    results: list[Result] = []
    for number, name in enumerate(config.classes, 1):
        say(f"class {number} of {len(config.classes)}: {name}")
        own = [*overrides, *settings_of(config, name)]
        if parent:
            own.append(f"mlflow_parent={parent.run_id}")
        results.append(train(config_path, own, data, score=score))
        if not results[-1].finished:
            return results
    say(table(config, results))
    if parent:
        pairs = zip(config.classes, results, strict=True)
        metrics = {f"{config.best_metric}/{name}": result.best_metric for name, result in pairs}
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        parent.finish("FINISHED", {}, finite, [])
    return results


def _mlflow_parent(config: TrainConfig, first: TrainConfig) -> MLflow | None:
    """Open the MLflow run that those of all classes are nested in; None without MLflow.

    first: settings of the first class, whose record has its id once it was begun.
    """
    before = read_record(first.path("logs_save_path")) or RunRecord()
    known = before.settings.get("mlflow_parent", "").strip("'")
    return open_parent(config, f"{config.run} each class", known)


def settings_of(config: TrainConfig, name: str) -> list[str]:
    """The settings in which the run of a class differs, as "name=value"."""
    others = [other for other in config.classes if other != name]
    # those of the experiment, which none of the networks learns, stay
    counter = dict.fromkeys([*others, *config.counter_classes])
    return [
        f"classes={name}",
        f"counter_classes={','.join(counter)}",
        f"run_name={config.run_name}-{name}",
        *(f"{setting}={OF_SEVERAL[setting]}" for setting in of_several(config)),
    ]


def of_several(config: TrainConfig) -> list[str]:
    """The settings of several channels that are there; the network of one class lacks those."""
    return [setting for setting in OF_SEVERAL if getattr(config, setting)]


def members(
    config_path: str | Path,
    names: Sequence[str],
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
) -> dict[str, TrainConfig]:
    """The settings of the run that `train_each_class` trains for each of these classes.

    Raises UserError where no class is taken for a counter-example of another.
    """
    config = load_config(config_path, overrides, data)
    if not config.use_mutual_exclusion:
        raise UserError(
            f"{short_path(config.folder)}: --each-class with use_mutual_exclusion = False, which "
            "takes no class for a counter-example of another; leave one of them out"
        )
    of_class = {}
    for name in names:
        own = [*overrides, *settings_of(config, name)]
        of_class[name] = load_config(config_path, own, data)
    return of_class


def table(config: TrainConfig, results: Sequence[Result]) -> str:
    """A line for each class with the best value of best_metric."""
    head = f"{count(len(results), 'network')}, each at its best epoch: {config.best_metric}"
    pairs = zip(config.classes, results, strict=True)
    rows = [[name, f"{result.best_metric:.3f}"] for name, result in pairs]
    return "\n".join([head, *aligned(rows)])
