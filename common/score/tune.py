"""The threshold of each class that scores best on annotated crops, from top to bottom.

48 classes in 41 crops annotated on 400^3 voxels take about three hours, by the number of processes,
see `common.score.trials`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.splits import regions
from common.data.volumes import ngff, regrid
from common.errors import UserError, collect
from common.files import write_json
from common.infer.objects.volume import EVERYWHERE
from common.infer.processing.prediction import Prediction, open_prediction
from common.infer.processing.recipe import (
    THRESHOLDS,
    Recipe,
    functions_of,
    read_recipe,
    read_thresholds,
    run_of,
)
from common.provenance import now
from common.score import summary, versions
from common.score.judge import FULL, Evaluation, beside, beside_text
from common.score.publish import note_networks
from common.score.trials import COARSE, DEFAULT, Trial, Tried, look, try_all
from common.score.versions import CSC, Version
from common.score.workers import Workers, parallel
from common.talk import some


@dataclass(frozen=True)
class Tuned:
    """What was found for one class."""

    name: str
    threshold: float
    score: float
    """The challenge's score of the class at that threshold, over all crops; `before` at DEFAULT."""
    before: float
    crops: tuple[str, ...] = ()
    """That the threshold was chosen on."""
    by_others: float | None = None
    """The score where each crop has the threshold that others choose, see `Tried.by_others`."""
    found: float = 0.0
    """Part of the voxels of its crops that is positive at the threshold."""
    annotated: float = 0.0
    """Part of them that is annotated as positive."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of instance_func that score better than its defaults."""


def tune(  # noqa: PLR0913  the options of the command
    config_path: str | Path,
    crops: str = "validate",
    *,
    classes: Sequence[str] = (),
    folds: int = 0,
    metric_version: str = CSC.name,
    workers: Workers = 1,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Tuned]:
    """Choose the threshold, and options, of each class. Raises FileNotFoundError or UserError.

    Args:
        config_path: folder of an experiment, or its train_config.py.
        crops: annotated and predicted ones, see `common.data.splits.regions.find`.
        classes: some of process_config.py's; all unless given.
        folds: of a cross-validation over crops, whose score is told too; 0 for none.
        metric_version: of the challenge's score, see `common.score.versions`.
        workers: processes or a crew, each process with the memory that `evaluate` takes.
        overrides: settings as NAME=VALUE.
        data: root of the data.
        say: takes what is to be told.
    """
    version = versions.find(metric_version)
    config = load_config(config_path, overrides, data)
    recipe = read_recipe(config.path("process_config_path"), classes)
    path = config.folder / THRESHOLDS
    _check_thresholds(recipe, path)
    trials = _trials(config, recipe, _boxes(config, crops, folds, say), version)
    checkpoints = _checkpoints(trials, say)
    found = search(trials, workers, folds, options=recipe.settings.instance_options)
    _check_found(found, recipe, crops)
    about = {"crops": crops, "metric": version.name, "functions": functions_of(recipe)}
    add(path, run_of(config), _records(found, about, checkpoints))
    lines = table(found) + _remarks(path, recipe, found) + _everywhere(found)
    _say_each(lines + _at_edges(found, trials, workers), say)
    return found


def _boxes(
    config: TrainConfig, crops: str, folds: int, say: Callable[[str], None]
) -> list[regions.Region]:
    boxes = regions.choose(config, crops, with_test=False, say=say)
    _check_folds(folds, boxes)
    return boxes


def add(path: Path, run: str, records: Mapping[str, Any]) -> None:
    """Put entries of some classes of a run into thresholds.json; those of all others stay."""
    # read now: while this call searched, another one may have added its classes
    runs = read_thresholds(path)
    runs.setdefault(run, {}).update(records)
    write_json(path, runs)


def search(
    trials: Sequence[Trial],
    workers: Workers = 1,
    folds: int = 0,
    *,
    options: Mapping[str, Sequence[Any]] | None = None,
) -> list[Tuned]:
    """The best threshold of each class with a positive voxel, see `_thresholds`.

    Each candidate is processed and scored as `process` and `evaluate` do it, by the challenge's
    score of the class pooled over the crops. A class without a positive voxel is left out.

    options: values to try for arguments of instance_func. Each is chosen alone, in their order, at
        the best threshold and the values chosen before; then the threshold is looked for again.
    """
    tried = _thresholds(trials, workers)
    before = {name: of_class.score(DEFAULT) for name, of_class in tried.items()}
    chosen = _options(trials, tried, options or {}, workers)
    at_same = []
    for trial in _with_options(trials, chosen):
        at_same.append(replace(trial, thresholds=tuple(tried[trial.name].counts)))
    # the best threshold may be another with them; the one from before is among these
    tried |= try_all(at_same, workers)
    found = []
    for name, of_class in tried.items():
        threshold = of_class.best()
        tuned = Tuned(
            name=name,
            threshold=threshold,
            score=of_class.score(threshold),
            before=before[name],
            crops=tuple(of_class.crops),
            by_others=of_class.by_others(folds),
            found=of_class.found[threshold] / of_class.voxels,
            annotated=of_class.annotated / of_class.voxels,
            options=chosen.get(name, {}),
        )
        found.append(tuned)
    return found


def _thresholds(trials: Sequence[Trial], workers: Workers) -> dict[str, Tried]:
    """What came of each class with a positive voxel, in two rounds, see COARSE."""
    # two rounds of 13 candidates in all: each costs a run of process and evaluate over all crops
    tried = try_all(trials, workers)
    finer = []
    for trial in trials:
        if trial.name in tried:
            thresholds = _beside(tried[trial.name].best())
            finer.append(replace(trial, thresholds=thresholds))
    for name, more in try_all(finer, workers).items():
        tried[name].counts |= more.counts
        tried[name].found |= more.found
    return tried


Options = dict[str, dict[str, Any]]
"""Arguments of instance_func by class."""


def _options(
    trials: Sequence[Trial],
    tried: Mapping[str, Tried],
    options: Mapping[str, Sequence[Any]],
    workers: Workers,
) -> Options:
    """By class, the values that score better than the defaults, at the best threshold."""
    best = {name: of_class.score(of_class.best()) for name, of_class in tried.items()}
    at_best = []
    for trial in trials:
        if trial.name in tried and trial.makes_objects:
            at_best.append(replace(trial, thresholds=(tried[trial.name].best(),)))
    chosen: Options = {}
    for option, values in options.items():
        better: Options = {}
        for value in values:
            candidate = _candidate(at_best, chosen, option, value)
            for name, of_class in try_all(_with_options(at_best, candidate), workers).items():
                score = of_class.score(of_class.best())
                if score > best[name]:
                    best[name] = score
                    better[name] = candidate[name]
        chosen |= better
    return chosen


def _candidate(trials: Sequence[Trial], chosen: Options, option: str, value: Any) -> Options:
    """By class, its options with another value of one of them; classes that have it are left out.

    They were scored with it already: their default, or the value that was chosen before.
    """
    candidate = {}
    for trial in trials:
        before = trial.options | chosen.get(trial.name, {})
        if (trial.defaults | before).get(option) != value:
            candidate[trial.name] = before | {option: value}
    return candidate


def _with_options(trials: Sequence[Trial], options: Options) -> list[Trial]:
    """The trials of classes that have some, with them."""
    with_options = []
    for trial in trials:
        if trial.name in options:
            with_options.append(replace(trial, options=options[trial.name]))
    return with_options


def _say_each(lines: Sequence[str], say: Callable[[str], None]) -> None:
    for line in lines:
        say(line)


def table(found: Sequence[Tuned]) -> list[str]:
    """Lines for the terminal."""
    width = max(len(one.name) for one in found) + 2
    is_validated = any(one.by_others is not None for one in found)
    head = f"{'class':<{width}}{'threshold':>10}{'score':>9}{'at 0.5':>9}"
    lines = [f"{head}{'by others':>11}" if is_validated else head]
    for one in found:
        line = f"{one.name:<{width}}{one.threshold:>10.4g}{one.score:>9.3f}{one.before:>9.3f}"
        if is_validated:
            line += f"{'-':>11}" if one.by_others is None else f"{one.by_others:>11.3f}"
        lines.append(line)
    return lines


def _check_thresholds(recipe: Recipe, path: Path) -> None:
    """Raises UserError where what is found would not count, or could not be added to the file."""
    read_thresholds(path)
    own = [name for name in recipe.classes if name in recipe.thresholds]
    if own:
        raise UserError(
            f"{recipe.path}: thresholds are set there for {some(own)}, and go before those that "
            "tune writes; remove them, or tune --classes others"
        )


def _check_folds(folds: int, boxes: Sequence[regions.Region]) -> None:
    """Raises UserError for more folds than crops."""
    number = sum(box.truth is not None for box in boxes)
    if folds <= number:
        return
    if number < 2:
        raise UserError(
            f"--folds {folds}: thresholds are chosen on one crop, which no other one can judge; "
            "leave --folds out, or name more crops"
        )
    raise UserError(
        f"--folds {folds}: there are {number} crops; write {number}, which leaves each of them out "
        "once, or fewer"
    )


def _check_found(found: Sequence[Tuned], recipe: Recipe, crops: str) -> None:
    if not found:
        names = some(recipe.classes, 10)
        raise UserError(f"--crops {crops}: none of these crops has a positive voxel of {names}")


def _remarks(path: Path, recipe: Recipe, found: Sequence[Tuned]) -> list[str]:
    """What was left out, and what the file is."""
    texts = []
    for one in found:
        if one.options:
            values = ", ".join(f"{option} = {value}" for option, value in one.options.items())
            texts.append(f"{one.name}: {values}, for instance_func; better than its defaults")
    tuned = {one.name for one in found}
    left = [name for name in recipe.classes if name not in tuned]
    if left:
        names = ", ".join(left)
        texts.append(f"not annotated or without a positive voxel there, left at 0.5: {names}")
    texts.append(
        f"{path}: read by process. "
        "The crops that thresholds are chosen on score better with them than new ones will"
    )
    if any(one.by_others is not None for one in found):
        texts.append(
            "by others: the score where each crop has the threshold that other crops choose, which "
            "is nearer to what new crops will have; '-' where there is one crop alone"
        )
    return texts


def _everywhere(found: Sequence[Tuned]) -> list[str]:
    """A note of the classes that their thresholds make positive nearly everywhere, or nowhere."""
    full = [one for one in found if one.found >= EVERYWHERE and one.annotated < FULL]
    empty = [one for one in found if not one.found]
    notes = []
    for classes, where in ((full, "in nearly all voxels"), (empty, "in no voxel")):
        if classes:
            each = [f"{one.name} ({one.threshold:g}; {one.annotated:.1%})" for one in classes]
            notes.append(
                f"note: positive {where} of these crops at the best threshold (it, and what is "
                f"annotated): {', '.join(each)}. No threshold tells these from the rest: train "
                "longer before they are used"
            )
    return notes


def _at_edges(found: Sequence[Tuned], trials: Sequence[Trial], workers: Workers) -> list[str]:
    """A note with figures for each class whose threshold lies at the edge of what is tried.

    The score alone can be best where a picture is all foreground or nothing.
    """
    at_edge = {one.name: one for one in found if not COARSE[0] < one.threshold < COARSE[-1]}
    again = []
    for trial in trials:
        if trial.name in at_edge:
            one = at_edge[trial.name]
            thresholds = (one.threshold, DEFAULT)
            again.append(replace(trial, thresholds=thresholds, options=one.options))
    looks = parallel(look, again, workers)
    notes = []
    for name, one in at_edge.items():
        of_class = [look for trial, look in zip(again, looks, strict=True) if trial.name == name]
        chosen, default = (_figures(evaluations) for evaluations in zip(*of_class, strict=True))
        notes.append(
            f"note: {name}: its threshold of {one.threshold:g} lies at the edge of what is tried "
            f"({_beside(COARSE[0])[0]:g} to {_beside(COARSE[-1])[1]:g}). There it has {chosen}; "
            f"at {DEFAULT:g} {default}. Look at its pictures (visualize) before it is used; a "
            "threshold of your own goes into process_config.py, into thresholds"
        )
    return notes


def _figures(evaluations: Sequence[Evaluation]) -> str:
    """'score 0.745, Dice 0.400, PQ 0.000'; PQ of an instance class alone."""
    figures = summary.figures(evaluations)
    texts = {"score": figures.score, "Dice": figures.dice}
    if evaluations[0].is_instance:
        texts["PQ"] = figures.pq
    named = [f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in texts.items()]
    return ", ".join(named)


def _trials(
    config: TrainConfig, recipe: Recipe, boxes: Sequence[regions.Region], version: Version
) -> list[Trial]:
    """Class by class, the crops that annotate it, at the coarse thresholds."""
    trials = []
    for name in recipe.classes:
        for box in boxes:
            if box.truth and name in box.classes:
                trial = Trial(
                    config_path=recipe.path,
                    code=recipe.code,
                    name=name,
                    predicted=box.folder(config.path("predictions_path")) / name,
                    truth=box.truth_of(name),
                    thresholds=COARSE,
                    crop=str(box),
                    version=version,
                )
                trials.append(trial)
    return trials


def _checkpoints(trials: Sequence[Trial], say: Callable[[str], None]) -> dict[str, str]:
    """SHA-256 of the checkpoint that predicted each class; "" where the prediction does not say.

    Notes predictions that lie beside the voxels of the annotation, and as `note_networks`.
    """
    checkpoints = {}
    offsets = {}
    made = []
    # all predictions are looked at before the first is processed
    predictions = collect(_check, trials)
    for trial, prediction in zip(trials, predictions, strict=True):
        checkpoints[trial.name] = prediction.record.sha256 or ""
        made.append((trial.crop, trial.name, prediction.record))
        truth = ngff.open_levels(trial.truth)[0]
        offsets[f"{trial.crop}/{trial.name}"] = beside(prediction.level, truth.grid)
    text = beside_text(offsets, len(trials), "the annotation")
    if text:
        say(f"note: {text}")
    note_networks(made)
    return checkpoints


def _check(trial: Trial) -> Prediction:
    """Raises FileNotFoundError or UserError where there is no whole prediction of the crop."""
    prediction = open_prediction(trial.predicted)
    truth = ngff.open_levels(trial.truth)[0]
    if not regrid.covers(prediction.level, truth.grid):
        short = regrid.shortfall(prediction.level, truth.grid)
        raise UserError(
            f"{trial.predicted}: {short} of the annotation; run predict with --overwrite"
        )
    return prediction


def _records(
    found: Sequence[Tuned], about: Mapping[str, str], checkpoints: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The entries of thresholds.json, by class. about: what they have in common."""
    # the checkpoint, because a threshold is for the network it was tuned with: process notes others
    date = now()
    records: dict[str, dict[str, Any]] = {}
    for one in found:
        records[one.name] = {
            "threshold": one.threshold,
            "score": one.score,
            "score_by_others": one.by_others,
            **about,
            # by name: what is asked for, such as 'validate', may be others one day
            "chosen_on": list(one.crops),
            "checkpoint": checkpoints[one.name],
            "date": date,
        }
        if one.options:
            records[one.name]["options"] = one.options
    return records


def _beside(threshold: float) -> tuple[float, ...]:
    """The middles between a coarse threshold and its neighbours; 0 and 1 are the outermost."""
    tried = (0.0, *COARSE, 1.0)
    place = tried.index(threshold)
    neighbours = (tried[place - 1], tried[place + 1])
    return tuple(round((threshold + neighbour) / 2, 4) for neighbour in neighbours)
