"""How predictions become masks and objects: process_config.py, tuned thresholds, code hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.classes import INSTANCES
from common.config.code import functions_code, imported_files
from common.config.instance_options import defaults
from common.config.load import load_process_config
from common.config.settings import ProcessConfig, TrainConfig
from common.errors import UserError, refuse
from common.files import is_file, sha256_of_file
from common.infer.made_by import IMPORT_ROOT
from common.talk import misspelt, nearest, note_once, some

DEFAULT = 0.5
"""Threshold of a class that has none."""

THRESHOLDS = "thresholds.json"
"""Beside process_config.py, by tune: {run: {class: {"threshold": 0.35, "checkpoint": SHA-256}}}.

A class whose instance_func has options that were tuned has them too, as "options"; "functions" is a
hash of what process_config.py did.
"""

READ = ("threshold", "checkpoint", "functions", "options", "chosen_on", "crops")
"""What is read of a class there."""


@dataclass(frozen=True)
class Recipe:
    """How a class becomes a mask or objects."""

    path: Path
    """process_config.py."""
    settings: ProcessConfig
    classes: tuple[str, ...]
    """The classes to process."""
    code: str
    """Hash of process_config.py and what it imports."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """By class; others have DEFAULT."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the checkpoint that the threshold of a class was tuned with."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By class, the arguments of instance_func that were tuned."""
    tuned_otherwise: tuple[str, ...] = ()
    """Classes whose threshold was tuned with other functions than there are now."""

    def threshold(self, name: str) -> float:
        """Return the probability above which a voxel is of a class."""
        return self.thresholds.get(name, DEFAULT)

    def makes_objects(self, name: str) -> bool:
        """Return whether the objects of a class are told apart."""
        return name in self.settings.instance_classes

    def is_scored_by_objects(self, name: str) -> bool:
        """Return whether a class is scored by its objects.

        Those of the challenge are as it says; other classes where their objects are told apart.
        """
        if name in INSTANCES:
            return True
        return name in self.settings.extra_classes and self.makes_objects(name)


def read_recipe(path: Path, classes: Sequence[str] = ()) -> Recipe:
    """Read the process_config.py of an experiment, without what was tuned.

    Raise FileNotFoundError, or UserError with all that is wrong.

    Args:
        path: the file, or the folder that has one of that name.
        classes: those to process, all of the file's unless given.
    """
    if path.is_dir() and path.name != "process_config.py":
        path /= "process_config.py"
    settings = load_process_config(path)
    problems = []
    unknown = [name for name in classes if name not in settings.classes]
    if unknown:
        problems.append(
            f"no class {', '.join(unknown)} in its classes; write some of "
            f"{', '.join(settings.classes)}"
        )
    named = {"thresholds": tuple(settings.thresholds)}
    # the default is the challenge's table, of which an experiment need not have all
    if settings.instance_classes != INSTANCES:
        named["instance_classes"] = settings.instance_classes
    for setting, names in named.items():
        unknown = [name for name in names if name not in settings.classes]
        if unknown:
            which = "which is" if len(unknown) == 1 else "which are"
            strange = ", ".join(unknown)
            problems.append(f"{setting} names {strange}, {which} not in classes; add or remove it")
    refuse(problems, path)
    if settings.instance_func and not set(settings.classes) & set(settings.instance_classes):
        note_once(
            f"{path}: instance_func has no effect, as none of classes is among instance_classes"
        )
    return Recipe(
        path,
        settings,
        classes=tuple(classes or settings.classes),
        code=code_hash(path),
        thresholds=settings.thresholds,
    )


def refuse_classes_of_others(config: TrainConfig, asked: Mapping[str, bool]) -> None:
    """Raise UserError for classes without a volume that the network of a run never gives.

    Such are those of a network that `train --each-class` trained: to predict again would not bring
    them.

    asked: by class, whether it has a volume.
    """
    absent = [name for name in asked if not asked[name] and name not in config.channels]
    if absent:
        rest = ",".join(name for name in asked if name not in absent)
        raise UserError(
            f"{config.folder}: the network of this run has no class {some(absent)}, and no volume "
            f"of it is there; write --classes {rest or 'others'}"
        )


def load_recipe(config: TrainConfig, classes: Sequence[str] = ()) -> Recipe:
    """Read the process_config.py of a run, with the thresholds that were tuned for the run.

    A class whose threshold the file sets has nothing that was tuned. Raise FileNotFoundError or
    UserError.

    classes: those to process, all of the file's unless given.
    """
    recipe = read_recipe(config.path("process_config_path"), classes)
    path = config.folder / THRESHOLDS
    runs = read_thresholds(path)
    if not runs:
        return recipe
    run = run_of(config)
    if run not in runs:
        if recipe.thresholds:
            _note_at_default(path, recipe, config, runs)
            return recipe
        raise UserError(
            f"{path}: has thresholds of the run {', '.join(runs)} and none of {run}; run tune for "
            "this run, or remove the file, or set thresholds in process_config.py"
        )
    _note_at_default(path, recipe, config, runs)
    _note_unread(path, recipe, run, runs[run])
    own = recipe.thresholds
    tuned = {name: entry for name, entry in runs[run].items() if name not in own}
    now = functions_of(recipe)
    return replace(
        recipe,
        thresholds={name: entry["threshold"] for name, entry in tuned.items()} | own,
        checkpoints={name: entry["checkpoint"] for name, entry in tuned.items()},
        options=_fitting_options(path, recipe, tuned),
        # a file from before functions were recorded says nothing
        tuned_otherwise=tuple(
            name for name, entry in tuned.items() if entry.get("functions", now) != now
        ),
    )


def _note_at_default(
    path: Path, recipe: Recipe, config: TrainConfig, runs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Note classes of a run that have a tuned threshold for other runs, and none for this one.

    Args:
        path: of the tuned thresholds.
        recipe: of this run.
        config: its settings.
        runs: thresholds by run and class.
    """
    run = run_of(config)
    tuned = set[str]().union(*runs.values())
    own = {*recipe.thresholds, *runs.get(run, ())}
    at_default = []
    for name in recipe.classes:
        # a network of one class, of train --each-class, has no other
        if name in config.channels and name in tuned and name not in own:
            at_default.append(name)
    if at_default:
        others = [name for name in runs if name != run]
        note_once(
            f"{path}: has thresholds of {some(at_default)} for {some(others)} and none for {run}, "
            f"which has {DEFAULT:g} there; run tune for this run"
        )


def _note_unread(
    path: Path, recipe: Recipe, run: str, tuned: Mapping[str, Mapping[str, Any]]
) -> None:
    """Note what a hand wrote into the tuned thresholds, and nothing reads.

    Args:
        path: of the file.
        recipe: of this run.
        run: its name.
        tuned: its entries, by class.
    """
    without = [name for name in recipe.settings.classes if name not in tuned]
    for name, entry in tuned.items():
        if name not in recipe.settings.classes:
            near = nearest(name, without)
            hint = f"did you mean '{near}'?" if near else "add it there, or remove it"
            note_once(
                f"{path}: the threshold of '{name}' for {run} has no effect, since {recipe.path} "
                f"has no such class; {hint}"
            )
        for key, meant in misspelt(entry, READ).items():
            note_once(f"{path}: nothing reads '{key}' of {name}; did you mean '{meant}'?")


def functions_of(recipe: Recipe) -> str:
    """Return a hash of what process_config.py does, see `common.config.code.functions_code`.

    Thresholds have it on record. Unlike `code` it does not change with comments, nor with this
    repository.
    """
    return functions_code(recipe.path, recipe.path.parent)


def _fitting_options(
    path: Path, recipe: Recipe, tuned: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the tuned options by class. Raise UserError for one that instance_func does not have.

    tuned: entries of a run in thresholds.json, by class.
    """
    function = recipe.settings.instance_func
    known = defaults(function) if function else {}
    options = {}
    for name, entry in tuned.items():
        tuned_options = entry.get("options", {})
        unknown = [option for option in tuned_options if option not in known]
        if unknown:
            raise UserError(
                f"{path}: {name} has the option {some(unknown)}, which instance_func of "
                f"{recipe.path} does not have; run tune again"
            )
        if tuned_options:
            options[name] = tuned_options
    return options


def run_of(config: TrainConfig) -> str:
    """Return the name of a run in thresholds.json."""
    return f"{config.model_name}/{config.run}"


def read_thresholds(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what tune found, by run and class; {} without the file.

    Raise UserError for another file.
    """
    if not is_file(path):
        return {}
    try:
        runs = json.loads(path.read_text())
        for tuned in runs.values():
            for entry in tuned.values():
                threshold = entry["threshold"]
                if not (0 < threshold < 1 and isinstance(entry["checkpoint"], str)):
                    raise UserError(
                        f"a threshold of {threshold}, which is no probability between 0 and 1"
                    )
                options = entry.get("options", {})
                if not isinstance(options, dict):
                    raise UserError(f"options of {options}, which are no names with values")
    # whatever shape another file has, it fails in one of these ways
    except (
        *(ValueError, KeyError, TypeError, AttributeError, IndexError),
        *(OSError, RecursionError),
    ) as error:
        raise UserError(
            f"{path}: not the thresholds that tune writes ({error}); remove it, and run tune again"
        ) from error
    return runs


def code_hash(path: Path) -> str:
    """Return a hash of a Python file and all that it imports from its folder and this repository.

    By content alone: a copy of an experiment has the same hash as the original.
    """
    files: set[Path] = set()
    new = {path.resolve()}
    while new:
        files |= new
        imported: set[Path] = set()
        for file in new:
            imported.update(imported_files(file, [IMPORT_ROOT]))
        new = imported - files
    # sorted, since names do not count
    digests = sorted(sha256_of_file(file) for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()
