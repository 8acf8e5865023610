"""A configuration of the public toolbox, as settings of ours; what was taken how is said.

A file that imports `cellmap_segmentation_challenge` and gives no build_model is one of these. Names
that are settings here, too, are taken as they are, with a sentence of DIFFERS where they mean
something else there; RULES translates the others, and ANSWERS says what becomes of what has no
counterpart. What the toolbox takes for a name that is left out stands in DEFAULTS. Any other name
is a helper of the file, and is left alone.

Source: the public toolbox of June 2026 and configurations written for it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common import runtime
from common.config.as_text import as_text
from common.config.module import is_tool, load_module
from common.config.other_names import OTHER_NAMES
from common.config.public import places, training, transforms, values
from common.config.public.draft import MODEL_NAME, Draft
from common.config.settings import ProcessConfig, describe
from common.config.value_transforms import Normalize, names_of, others_of_labels, read_raw
from common.talk import note_once, some

SEED = 42
"""The toolbox's seed."""

ONE_SLICE = {"shape": (1, 128, 128), "scale": (8, 8, 8)}

DEFAULTS: dict[str, Any] = {
    "classes": ["nuc", "er"],
    "model_name": MODEL_NAME,
    "input_array_info": ONE_SLICE,
    "use_mutual_exclusion": False,
    "spatial_transforms": {
        "mirror": {"axes": {"x": 0.5, "y": 0.5}},
        "transpose": {"axes": ["x", "y"]},
        "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180]}},
    },
}
"""What the toolbox takes for a name that a file leaves out, where that is not our default."""

SPLIT: dict[str, Any] = {
    "validation_fraction": 0.15,
    "force_classes": "validate",
    "by": "crop",
    "absolute": True,
}
"""How the toolbox writes a datasplit: each crop is drawn for itself, complete ones validate."""

LIKE_THERE: dict[str, Any] = {"weight_decay": 0.0, "init_output_to_prior": False}
"""Settings that the toolbox does not have, as it trains: no decay, weights as they are given."""

DIFFERS = {
    "epochs": "the number in all; the toolbox adds so many at every start",
    "iterations_per_epoch": (
        "optimiser steps; the toolbox's class-balanced sampler counts samples, so that an epoch "
        "there has that number divided by batch_size"
    ),
    "weighted_sampler": (
        "as there, every class equally often; here half of the patches are placed on a positive "
        "voxel (positive_centre_fraction), there none is"
    ),
    "weight_loss": "as there, but no weight is above pos_weight_cap (10); there is no cap there",
    "use_mutual_exclusion": (
        "takes effect: an unannotated class is negative where a class that excludes it is "
        "positive; cellmap-data of 2026 ignores it"
    ),
    "validation_time_limit": (
        "all validations look at the same blocks; the toolbox draws others each time"
    ),
    "validation_batch_limit": (
        "all validations look at the same blocks; the toolbox draws others each time"
    ),
    "max_grad_norm": "clipped once a step, not after each of several backward passes",
}
"""What a setting of both means otherwise there."""

RULES: dict[str, Callable[[Draft, Any], None]] = {
    # in this order: an optimiser is over the model, a scheduler over the optimiser
    "model": training.model,
    "optimizer": training.optimizer,
    "scheduler": training.scheduler,
    "scheduler_kwargs": training.scheduler_kwargs,
    "criterion": training.criterion,
    "criterion_kwargs": training.criterion_kwargs,
    "classes": values.classes,
    "input_array_info": values.array_info("input_array_info"),
    "target_array_info": values.array_info("target_array_info"),
    "model_save_path": places.model_save_path,
    "logs_save_path": places.logs_save_path,
    "load_model": places.load_model,
    "model_to_load": places.model_to_load,
    "data_base_path": places.data_base_path,
    "force_all_classes": places.force_all_classes,
    "filter_by_scale": places.filter_by_scale,
    "validation_prob": places.validation_prob,
    "use_s3": places.use_s3,
    "dataloader_kwargs": values.dataloader_kwargs,
    "random_seed": values.random_seed,
    "device": values.device,
    "smoothing_window": values.smoothing_window,
    "use_mixed_precision": values.use_mixed_precision,
    "train_raw_value_transforms": transforms.raw_transforms,
    "train_raw_transforms": transforms.raw_transforms,
    "val_raw_value_transforms": transforms.raw_transforms,
    "val_raw_transforms": transforms.raw_transforms,
    "value_transforms": transforms.raw_transforms,
    "target_value_transforms": transforms.target_transforms,
}
"""What becomes of each name of the toolbox that is no setting here, or another one.

A rule writes settings into a `Draft` and says in a note what it took how.
"""

GENERAL = (
    "the loss is the mean over annotated voxels; the toolbox divides by all voxels, so that its "
    "loss and gradient shrink with the annotated fraction: its losses are lower"
)

ANSWERS = {
    "low_is_best": "best_metric says what is best, and knows whether more of it is better",
    "model_kwargs": "the network is built already, with them",
    "debug_memory": "train --check says how much memory a run takes",
}
"""Public names that no setting takes the place of."""


# Running the file


def run(path: Path, seed: int | None = None, data: str = "") -> dict[str, Any]:
    """Run a file in its folder, with its random numbers seeded; all its names.

    The weights of its network are drawn while it runs, so that they follow random_seed here. Where
    that is another one than expected the file runs once more. The global generators and the working
    folder are left as they were.

    seed: goes before the file's own. data: the data root of make_datasplit_csv, where the file
        calls it, and the like.
    """
    before = runtime.random_state()
    try:
        with _data_root(data), _seed_to_be_found(seed):
            names = _run_seeded(path, SEED if seed is None else seed)
        own = str(names.get("random_seed", SEED))
        if seed is None and own.isdecimal() and own != str(SEED) and int(own) < 2**63:
            with _data_root(data):
                names = _run_seeded(path, int(own))
    finally:
        runtime.restore_random_state(before)
    return names


def _run_seeded(path: Path, seed: int) -> dict[str, Any]:
    runtime.seed_everything(seed)
    # as the toolbox's command does: paths in the file start from there
    with contextlib.chdir(path.parent), _old_names_of_cellmap_data():
        return dict(vars(load_module(path)))


@contextmanager
def _data_root(data: str) -> Iterator[None]:
    """Context manager: the environment names a data root, unless it is empty."""
    before = os.environ.get("CELLMAP_DATA")
    if data:
        os.environ["CELLMAP_DATA"] = data
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("CELLMAP_DATA", None)
        else:
            os.environ["CELLMAP_DATA"] = before


@contextmanager
def _seed_to_be_found(seed: int | None) -> Iterator[None]:
    """Context manager: `getattr(os.environ, "SEED", 42)` gives the seed, as it is meant to.

    What it finds otherwise is 42, always: variables are no attributes.
    """
    if seed is None:
        yield
        return
    os.environ.SEED = seed  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del os.environ.SEED  # type: ignore[attr-defined]


def training_file(path: Path, names: Mapping[str, Any]) -> Path | None:
    """The training configuration that a file without a network reads its settings from, if any.

    The toolbox's process files name it config_path, or are called like it.
    """
    candidates = [names.get("config_path")]
    candidates += [path.with_name(path.name.replace(word, "train")) for word in NOT_TRAINING]
    for candidate in candidates:
        if candidate is None:
            continue
        file = path.parent / candidate
        if file.suffix == ".py" and file.is_file() and file.resolve() != path:
            return file.resolve()
    return None


NOT_TRAINING = ("process", "predict")
"""What stands in the names of the toolbox's other configurations for "train"."""


def beside(path: Path) -> str:
    """The name of the process configuration of a training configuration, there or not.

    It is "" where another one takes its place: process_config.py.
    """
    file = path.with_name(path.name.replace("train", "process"))
    is_replaced = path.with_name("process_config.py").is_file() and not file.is_file()
    return "" if file == path or is_replaced else file.name


def _settings_in(names: Mapping[str, Any]) -> dict[str, Any]:
    """The names that may be meant as settings."""
    return {name: value for name, value in names.items() if not is_tool(name, value)}


@contextmanager
def _old_names_of_cellmap_data() -> Iterator[None]:
    """Context manager: files may import Normalize of cellmap-data, which has it no more."""
    place = "cellmap_data.transforms.augment"
    if importlib.util.find_spec("cellmap_data") is None:
        yield
        return
    module = importlib.import_module(place)
    if hasattr(module, "Normalize"):
        yield
        return
    module.Normalize = Normalize  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del module.Normalize


# Translating it


@dataclass(frozen=True)
class Translation:
    """A public configuration as settings of ours."""

    settings: dict[str, Any]
    notes: tuple[str, ...]
    problems: list[str]
    split: dict[str, Any] = field(default_factory=dict)
    """How a datasplit is written where there is none: arguments of make-datasplit."""


def translate(path: Path, names: Mapping[str, Any]) -> Translation:
    """Translate the names of a public training configuration.

    path: of the file, absolute. Problems are what cannot be taken, a sentence each.
    """
    draft = Draft(path, _settings_in(names))
    _refuse_other_than_dicts(draft)
    ours = {row.name for row in describe()}
    for name, value in draft.given.items():
        if name in ours and name not in RULES and name not in ANSWERS:
            _take(draft, name, value)
    unset = [
        name
        for name, value in draft.given.items()
        if value is None and name in ours - {"load_model", *YES_OR_NO}
    ]
    if unset:
        draft.notes.append(f"None, which is as if they were left out: {some(unset)}")
    for name, rule in RULES.items():
        if name in draft.given:
            rule(draft, draft.given[name])
    for name, sentence in ANSWERS.items():
        if name in draft.given:
            draft.note(name, sentence)
    if "model" not in draft.given:
        draft.problems.append(
            "'model' is missing; write model = ..., a torch.nn.Module, or, in a file for process, "
            "config_path = ..., the training configuration"
        )
    if "process_config_path" not in draft.given and beside(path):
        draft.settings["process_config_path"] = beside(path)
    _fill_in(draft)
    _say_what_is_left_alone(draft, ours)
    draft.notes.append(GENERAL)
    split = SPLIT | draft.split
    return Translation(draft.settings, tuple(draft.notes), draft.problems, split)


KEYWORDS = ("model_kwargs", "criterion_kwargs", "scheduler_kwargs", "dataloader_kwargs")
"""Names that are dicts, and nothing else."""


def _refuse_other_than_dicts(draft: Draft) -> None:
    for name in KEYWORDS:
        given = draft.given.get(name)
        if given is not None and not isinstance(given, Mapping):
            draft.problems.append(f"{name} = {as_text(given)}; write a dict")
            del draft.given[name]


YES_OR_NO = tuple(row.name for row in describe() if row.default in ("True", "False"))


def _take(draft: Draft, name: str, value: Any) -> None:
    """Take a setting of both as it is; None, which the toolbox has for no limit, as left out.

    Where it is asked whether to do something, None is no there.
    """
    if value is None and name in YES_OR_NO:
        value = False
    if value is None:
        return
    if isinstance(value, np.generic):
        value = value.item()
    draft.settings[name] = value
    if name in DIFFERS and value:
        draft.note(name, DIFFERS[name])


def _fill_in(draft: Draft) -> None:
    """Take the toolbox's defaults for what the file leaves out, and train like it."""
    missing = {name: v for name, v in DEFAULTS.items() if name not in draft.given}
    draft.settings |= missing
    if "target_array_info" not in draft.settings:
        missing["target_array_info"] = draft.settings.get("input_array_info")
        draft.settings["target_array_info"] = missing["target_array_info"]
    if missing:
        parts = [f"{name} = {as_text(value)}" for name, value in missing.items()]
        draft.notes.append(f"left out, and so the toolbox's: {'; '.join(parts)}")
    like_there = {n: v for n, v in LIKE_THERE.items() if n not in draft.settings}
    draft.settings |= like_there
    if "best_metric" not in draft.settings:
        draft.settings["best_metric"] = "loss"
        like_there["best_metric"] = "loss"
    parts = [f"{name} = {as_text(value)}" for name, value in like_there.items()]
    if parts:
        draft.notes.append(
            f"set to train as the toolbox does: {', '.join(parts)}; your file may set them, too"
        )


def _say_what_is_left_alone(draft: Draft, ours: set[str]) -> None:
    """One note about names that are no settings, with the one that each may stand for."""
    known = {*ours, *RULES, *ANSWERS}
    left = [name for name in draft.given if name not in known]
    if not left:
        return
    texts = []
    for name in left:
        near = difflib.get_close_matches(name.lower(), known, 1, 0.8)
        meant = OTHER_NAMES.get(name.lower()) or (near[0] if near else "")
        texts.append(f"{name} (the setting is '{meant}')" if meant else name)
    draft.notes.append(f"no settings, left alone: {some(texts, most=20)}")


OF_A_LOADER = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor")
"""Options of torch's DataLoader that scripts give."""

DATA_RULES = (
    "device",
    "dataloader_kwargs",
    "train_raw_value_transforms",
    "val_raw_value_transforms",
    "target_value_transforms",
)
"""Those of RULES that bear on batches."""


def translate_data(given: Mapping[str, Any]) -> Translation:
    """Translate what a script says about batches; names without a rule are taken as they are.

    Transforms of validation alone, which are for a network's input, are among the problems.
    """
    draft = Draft(Path(), dict(given))
    _refuse_other_than_dicts(draft)
    loader = {name: draft.given.pop(name) for name in OF_A_LOADER if name in draft.given}
    if loader:
        draft.given["dataloader_kwargs"] = {
            **loader,
            **(draft.given.get("dataloader_kwargs") or {}),
        }
    for name, value in draft.given.items():
        if name in DATA_RULES:
            RULES[name](draft, value)
        else:
            draft.settings[name] = value
    others = read_raw(draft.given.get("val_raw_value_transforms")).others
    if others:
        draft.problems.append(
            f"val_raw_value_transforms: {names_of(others)} is for the input of a network; apply it "
            "to batch['input'] yourself"
        )
    # what changes a loss has no loss here
    if draft.settings.pop("criterion", None) is not None:
        of_labels = names_of(others_of_labels(draft.given["target_value_transforms"]))
        draft.problems.append(
            f"target_value_transforms: {of_labels} does more than bring labels to 0 and 1; apply "
            "it to batch['output'] yourself"
        )
    return Translation(draft.settings, tuple(draft.notes), draft.problems)


def _note_misspelt(path: Path, names: Mapping[str, Any], known: set[str]) -> None:
    """Note names of a process configuration that stand for settings, and are none."""
    for name in _settings_in(names):
        near = difflib.get_close_matches(name.lower(), known, 1, 0.8)
        if name not in known and near:
            note_once(f"{path.name}: {name} has no effect (the setting is '{near[0]}')")


def translate_process(path: Path, names: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a public process configuration.

    Its device has no effect, since process works on the CPU; its blocks are on the voxels of the
    prediction, which are those of target_array_info. Both are said.
    """
    if names.get("device") not in (None, "cpu"):
        note_once(f"{path.name}: device has no effect: process works on the CPU")
    known = {row.name for row in describe(ProcessConfig)}
    _note_misspelt(path, names, known)
    settings = {}
    for name, value in names.items():
        if name in known and value is not None and not isinstance(value, types.ModuleType):
            settings[name] = value
    target = names.get("target_array_info")
    if target:
        if names.get("input_array_info") not in (None, target):
            note_once(
                f"{path.name}: blocks are those of target_array_info, on which predictions are; "
                "input_array_info has no effect"
            )
        settings["input_array_info"] = target
    info = settings.get("input_array_info")
    if isinstance(info, dict) and len(info) == 1 and isinstance(next(iter(info.values())), dict):
        settings["input_array_info"] = next(iter(info.values()))
    return settings
