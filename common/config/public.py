"""A configuration of the public toolbox, as settings of ours; what was taken how is said.

A file that imports `cellmap_segmentation_challenge` and gives no build_model is one of these. Names
that are settings here, too, are taken as they are, with a sentence of DIFFERS where they mean
something else there; RULES translates the others, and ANSWERS says what becomes of what has no
counterpart. What the toolbox takes for a name that is left out stands in DEFAULTS. Any other name
is a helper of the file, and is left alone.

Source: the public toolbox of June 2026 and configurations written for it.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
import itertools
import os
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import runtime
from common.classes import ATOM_IDS, GROUP_IDS
from common.config.given import GivenModel, GivenOptimizer, GivenScheduler
from common.config.module import load_module
from common.config.settings import OTHER_NAMES, as_text, describe
from common.config.value_transforms import (
    GivenTransforms,
    InputTransforms,
    Normalize,
    names_of,
    others_of_labels,
    read_raw,
)
from common.errors import UserError
from common.talk import some

SEED = 42
"""The toolbox's seed; `getattr(os.environ, "SEED", 42)`, as its files have it, is always that."""

ONE_SLICE = {"shape": (1, 128, 128), "scale": (8, 8, 8)}

DEFAULTS: dict[str, Any] = {
    "classes": ["nuc", "er"],
    "model_name": "2d_unet",
    "input_array_info": ONE_SLICE,
    "use_mutual_exclusion": False,
    "spatial_transforms": {
        "mirror": {"axes": {"x": 0.5, "y": 0.5}},
        "transpose": {"axes": ["x", "y"]},
        "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180]}},
    },
}
"""What the toolbox takes for a name that a file leaves out, where that is not our default."""

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


@dataclass
class Draft:
    """A configuration while it is translated."""

    path: Path
    given: dict[str, Any]
    """The names of the file that may be settings of the toolbox."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of ours."""
    notes: list[str] = field(default_factory=list)
    """What was taken how, a sentence for each name."""
    problems: list[str] = field(default_factory=list)
    """What cannot be taken at all."""

    def note(self, name: str, sentence: str) -> None:
        """Say what became of a name of the file."""
        self.notes.append(f"{name}: {sentence}")


# Running the file


def run(path: Path, seed: int | None = None) -> dict[str, Any]:
    """Run a file with its random numbers seeded; its names that are no modules and tools.

    The weights of its network are drawn while it runs, so that they follow random_seed here. Where
    that is another one than expected the file runs once more. The global generators are left as
    they were.

    seed: goes before the file's own.
    """
    before = runtime.random_state()
    try:
        names = _run_seeded(path, SEED if seed is None else seed)
        own = names.get("random_seed", SEED)
        if seed is None and isinstance(own, int) and 0 <= own < 2**32 and own != SEED:
            names = _run_seeded(path, own)
    finally:
        runtime.restore_random_state(before)
    return names


def _run_seeded(path: Path, seed: int) -> dict[str, Any]:
    runtime.seed_everything(seed)
    with _old_names_of_cellmap_data():
        module = load_module(path)
    return {name: value for name, value in vars(module).items() if not _is_tool(name, value)}


def _is_tool(name: str, value: Any) -> bool:
    """Whether a name cannot be meant as a setting: what was imported, and what begins with _."""
    if name.startswith("_") or name in ("annotations", "config_path"):
        return True
    if isinstance(value, types.ModuleType | types.SimpleNamespace):
        return True
    return getattr(value, "__name__", None) == name


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


def translate(path: Path, names: Mapping[str, Any]) -> Translation:
    """Translate the names of a public training configuration.

    path: of the file, absolute. Problems are what cannot be taken, a sentence each.
    """
    draft = Draft(path, dict(names))
    ours = {row.name for row in describe()}
    for name, value in draft.given.items():
        if name in ours and name not in RULES and name not in ANSWERS:
            _take(draft, name, value)
    unset = [name for name, value in draft.given.items() if value is None and name in ours]
    if unset:
        draft.notes.append(f"None, which is as if they were left out: {some(unset)}")
    for name, rule in RULES.items():
        if name in draft.given:
            rule(draft, draft.given[name])
    for name, sentence in ANSWERS.items():
        if name in draft.given:
            draft.note(name, sentence)
    if "model" not in draft.given:
        draft.problems.append("'model' is missing; write model = ..., a torch.nn.Module")
    _fill_in(draft)
    _say_what_is_left_alone(draft, ours)
    draft.notes.append(GENERAL)
    return Translation(draft.settings, tuple(draft.notes), draft.problems)


def _take(draft: Draft, name: str, value: Any) -> None:
    """Take a setting of both as it is; None, which the toolbox has for no limit, as left out."""
    if value is None:
        return
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


# Rules: one for each name that has a counterpart and is not it


def _model(draft: Draft, model: Any) -> None:
    if isinstance(model, nn.DataParallel):
        draft.note("model", "DataParallel is taken off: a run takes one device")
        model = model.module
    original = getattr(model, "_orig_mod", None)
    if isinstance(original, nn.Module):
        draft.note("model", "torch.compile is taken off: compile = True compiles it for training")
        draft.settings.setdefault("compile", True)
        model = original
    if not isinstance(model, nn.Module):
        kind = "a class" if isinstance(model, type) else f"a {type(model).__name__}"
        draft.problems.append(f"model is {kind}; write an instance of torch.nn.Module")
        return
    draft.given["model"] = model
    draft.settings["build_model"] = GivenModel(model)
    draft.note(
        "model",
        "an instance; its weights were drawn while the file was read, with random_seed (or SEED) "
        "seeded before, so that equal seeds give equal weights; in the toolbox they are drawn "
        "before it seeds, and differ in every run",
    )


def _optimizer(draft: Draft, optimizer: Any) -> None:
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        draft.settings["optimizer"] = optimizer
        return
    model = draft.given.get("model")
    if not isinstance(model, nn.Module):
        return
    try:
        given = GivenOptimizer(optimizer, model)
    except UserError as error:
        draft.problems.append(str(error))
        return
    draft.settings["optimizer"] = given
    written = draft.given.get("learning_rate")
    draft.settings["learning_rate"] = given.learning_rate
    draft.settings["weight_decay"] = given.weight_decay
    sentence = f"an instance; built again over the network that trains: {given.in_words()}"
    if written not in (None, given.learning_rate):
        sentence += f"; learning_rate = {written} has no effect, as in the toolbox"
    draft.note("optimizer", sentence)


def _scheduler(draft: Draft, scheduler: Any) -> None:
    if scheduler is None:
        return
    if isinstance(scheduler, type) or not hasattr(scheduler, "optimizer"):
        draft.settings["scheduler"] = scheduler
        draft.note("scheduler", "stepped once an epoch, as in the toolbox (scheduler_step)")
        return
    if not isinstance(draft.given.get("optimizer"), torch.optim.Optimizer):
        _optimizer(draft, scheduler.optimizer)
    elif draft.given["optimizer"] is not scheduler.optimizer:
        draft.problems.append(
            "scheduler is over another optimiser than optimizer; build it over that one"
        )
        return
    draft.settings["scheduler"] = GivenScheduler(scheduler)
    draft.note("scheduler", "an instance; copied onto the optimiser of the run, one step an epoch")


def _scheduler_kwargs(draft: Draft, keywords: Any) -> None:
    scheduler = draft.given.get("scheduler")
    if not keywords:
        return
    if scheduler is None or not isinstance(scheduler, type | functools.partial):
        draft.note("scheduler_kwargs", "no effect without a scheduler that is a class")
        return
    draft.settings["scheduler_kwargs"] = keywords


def _criterion(draft: Draft, criterion: Any) -> None:
    keywords = dict(draft.given.get("criterion_kwargs") or {})
    keywords.pop("reduction", None)  # the toolbox sets it, and so does the mean over known voxels
    weighs = draft.given.get("weight_loss", True)
    if weighs and "pos_weight" in keywords:
        draft.note(
            "criterion_kwargs",
            "pos_weight is that of weight_loss, as in the toolbox; weight_loss = False takes yours",
        )
        del keywords["pos_weight"]
    if criterion in (None, nn.BCEWithLogitsLoss) and not keywords:
        draft.note("criterion", "weighted_bce, which is BCEWithLogitsLoss over known voxels")
        return
    criterion = criterion or nn.BCEWithLogitsLoss
    if not keywords:
        draft.settings["criterion"] = criterion
    elif inspect.isclass(criterion):
        draft.settings["criterion"] = functools.partial(criterion, **keywords)
    else:
        draft.problems.append(
            f"criterion_kwargs = {as_text(keywords)} with a criterion that is no class; write the "
            "class, or leave criterion_kwargs out"
        )
        return
    draft.note("criterion", "applied where voxels are annotated, see common.train.criterion")


def _criterion_kwargs(draft: Draft, keywords: Any) -> None:
    if keywords and "criterion" not in draft.given:
        _criterion(draft, None)


def _array_info(name: str) -> Callable[[Draft, Any], None]:
    """The rule of one array info: the toolbox may give its array a name."""

    def rule(draft: Draft, info: Any) -> None:
        if info is None:
            return
        if isinstance(info, dict) and info and all(isinstance(v, dict) for v in info.values()):
            distinct = {as_text(value) for value in info.values()}
            if len(distinct) == 1:
                draft.note(name, f"the array {some([*map(str, info)])} has no name here")
                info = next(iter(info.values()))
        draft.settings[name] = info

    return rule


def _classes(draft: Draft, classes: Any) -> None:
    draft.settings["classes"] = classes
    if not isinstance(classes, list | tuple) or "extra_classes" in draft.given:
        return
    own = [name for name in classes if name not in ATOM_IDS and name not in GROUP_IDS]
    if own:
        draft.settings["extra_classes"] = tuple(own)
        draft.note("classes", f"outside the challenge's table, nothing is inferred: {some(own)}")


def _model_save_path(draft: Draft, template: Any) -> None:
    text = os.fspath(template) if isinstance(template, os.PathLike) else template
    if not isinstance(text, str):
        draft.settings["model_save_path"] = template
        return
    folder = text
    for ending in (".pth", ".pt"):
        folder = folder.removesuffix(ending)
    for field_ in ("_{epoch}", "-{epoch}", ".{epoch}", "/{epoch}", "{epoch}"):
        folder = folder.replace(field_, "")
    draft.settings["model_save_path"] = _with_run(folder)
    if folder == text:
        return
    draft.note(
        "model_save_path",
        f"{_with_run(folder)} holds latest.pt and best.pt, the whole state of a run, instead of "
        "a file of weights for each epoch",
    )


def _logs_save_path(draft: Draft, template: Any) -> None:
    text = os.fspath(template) if isinstance(template, os.PathLike) else template
    draft.settings["logs_save_path"] = _with_run(text) if isinstance(text, str) else text


def _with_run(folder: str) -> str:
    """A folder of the toolbox, which knows no runs of one model, with a place for each run."""
    if "{run_name}" in folder:
        return folder
    return f"{folder.rstrip('/')}/{{run_name}}"


def _load_model(draft: Draft, which: Any) -> None:
    if which not in ("latest", "best"):
        is_file = isinstance(which, str | os.PathLike) and (draft.path.parent / which).is_file()
        if is_file or which == "scratch":
            draft.settings["load_model"] = os.fspath(which)
            return
        draft.note("load_model", f"{which!r}: a run that was begun is continued from its latest")
        which = "latest"
    draft.settings["load_model"] = which


def _model_to_load(draft: Draft, name: Any) -> None:
    """Weights of another model begin a new run; the toolbox's own files do so, too."""
    own = draft.given.get("model_name", DEFAULTS["model_name"])
    template = draft.given.get("model_save_path", "checkpoints/{model_name}_{epoch}.pth")
    if not isinstance(name, str) or not isinstance(template, str | os.PathLike):
        return
    found = _saved_there(draft.path.parent, os.fspath(template), name)
    if found:
        draft.settings["load_model"] = str(found)
        draft.note("model_to_load", f"a new run begins with {found}, of the last epoch there is")
    elif name != own:
        wanted = os.fspath(template).replace("{model_name}", name)
        draft.settings["load_model"] = wanted
        draft.note("model_to_load", f"no file like {wanted} is there, and training will ask for it")


def _saved_there(folder: Path, template: str, name: str) -> Path | None:
    """The weights of the last epoch that the toolbox has saved under a template, if there are."""
    if "{epoch}" not in template:
        return None
    filled = template.replace("{model_name}", name)
    before, _, after = filled.partition("{epoch}")
    found = []
    base = folder / before
    for path in base.parent.glob(f"{_literal(base.name)}*{_literal(after)}"):
        number = path.name.removeprefix(base.name).removesuffix(after)
        if number.isdigit() and path.is_file():
            found.append((int(number), path))
    return max(found)[1] if found else None


def _literal(text: str) -> str:
    """A text as a pattern of glob that matches itself alone."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in text)


def _data_base_path(draft: Draft, folder: Any) -> None:
    if not isinstance(folder, str | os.PathLike) or "://" in str(folder):
        draft.problems.append(f"data_base_path = {folder!r}; write the folder of the datasets")
        return
    if "data_path" not in draft.given:
        draft.settings["data_path"] = str((draft.path.parent / folder).absolute())
        draft.note("data_base_path", "the data root; --data and CELLMAP_DATA go before it")


def _of_the_split(draft: Draft, _: Any) -> None:
    """What only says how a datasplit is written: the command that writes it so."""
    names = [name for name in SPLIT_OPTIONS if name in draft.given]
    if draft.notes and any(note.startswith(", ".join(names)) for note in draft.notes):
        return
    options = " ".join(part for part in map(functools.partial(_option, draft), names) if part)
    draft.note(
        ", ".join(names),
        "used where a datasplit is written, which is a command here: make-datasplit --scale ... "
        f"{options}".rstrip(),
    )


SPLIT_OPTIONS = ("force_all_classes", "filter_by_scale", "validation_prob", "use_s3")


def _option(draft: Draft, name: str) -> str:
    """The option of make-datasplit that a name of SPLIT_OPTIONS is; "" where it asks nothing."""
    value = draft.given[name]
    if name == "force_all_classes" and value:
        return f"--force-classes {FORCED.get(value, value)}"
    if name == "validation_prob":
        return f"--validation-fraction {value}"
    return ""


FORCED = {True: "all", "validation": "validate"}
"""force_all_classes as make-datasplit has it; "validation", in use, is ignored by the toolbox."""


def _dataloader_kwargs(draft: Draft, keywords: Any) -> None:
    keywords = dict(keywords or {})
    workers = keywords.pop("num_workers", None)
    if workers is not None and "num_workers" not in draft.given:
        draft.settings["num_workers"] = workers
    if keywords:
        draft.note(
            "dataloader_kwargs",
            f"num_workers is taken; {some(sorted(keywords))} the loader here sets by itself",
        )


def _device(draft: Draft, device: Any) -> None:
    if device is not None:
        draft.settings["device"] = str(device)


def _smoothing_window(draft: Draft, window: Any) -> None:
    if not isinstance(window, int) or window <= 1:
        return
    # a running mean with this weight looks as far back as the window
    draft.settings["metric_smoothing"] = (window - 1) / (window + 1)
    draft.note(
        "smoothing_window",
        f"metric_smoothing = {draft.settings['metric_smoothing']:.3g}, a running mean that looks "
        "as far back",
    )


def _use_mixed_precision(draft: Draft, on: Any) -> None:
    draft.settings.setdefault("precision", "auto" if on else "fp32")
    draft.note("use_mixed_precision", f"precision = '{draft.settings['precision']}'")


def _raw_transforms(draft: Draft, _: Any) -> None:
    """Both lists of raw transforms at once: what is in both is a change of the network's input."""
    if any(note.startswith("raw transforms") for note in draft.notes):
        return
    train = read_raw(_first(draft, "train_raw_value_transforms", "train_raw_transforms"))
    names = ("val_raw_value_transforms", "val_raw_transforms", "value_transforms")
    validation = read_raw(_first(draft, *names))
    for name, value in itertools.chain(train.settings.items(), validation.settings.items()):
        if name == "raw_range" or value == train.settings.get(name):
            draft.settings.setdefault(name, value)
    of_validation = names_of(validation.others)
    both = [t for t in train.others if names_of([t])[1:-1] in of_validation]
    alone = [t for t in train.others if t not in both]
    sentences = []
    if train.done:
        sentences.append(f"{some(_once(train.done))} have nothing to do: raw is in [0, 1] here")
    if train.settings:
        taken = [f"{name} = {as_text(value)}" for name, value in train.settings.items()]
        sentences.append(f"taken as {', '.join(taken)}, over the whole patch, gamma first")
    if alone:
        draft.settings["augment"] = GivenTransforms(alone)
        sentences.append(
            f"{names_of(alone)} applied as given, patch by patch in the training process: seeded "
            "for each sample, slower than settings"
        )
    if (both or validation.others) and "build_model" in draft.settings:
        hook = InputTransforms(both, validation.others)
        draft.settings["build_model"].input_transforms = hook
        sentences.append(
            f"{names_of(validation.others)} applied as given to the input of the network, in "
            "validation and prediction too"
        )
    draft.note("raw transforms", "; ".join(sentences) or "none that changes raw")


def _first(draft: Draft, *names: str) -> Any:
    """The value of the first of these names that the file gives; None without one."""
    return next((draft.given[name] for name in names if draft.given.get(name) is not None), None)


def _once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _target_transforms(draft: Draft, transforms: Any) -> None:
    others = others_of_labels(transforms)
    if not others:
        draft.note("target_value_transforms", "labels are 0, 1 or unknown here without them")
        return
    draft.problems.append(
        f"target_value_transforms: {names_of(others)} cannot be applied, since labels are kept as "
        "0, 1 or unknown; apply it to the target in a criterion of your own, "
        "criterion(logits, target)"
    )


RULES: dict[str, Callable[[Draft, Any], None]] = {
    # in this order: an optimiser is over the model, a scheduler over the optimiser
    "model": _model,
    "optimizer": _optimizer,
    "scheduler": _scheduler,
    "scheduler_kwargs": _scheduler_kwargs,
    "criterion": _criterion,
    "criterion_kwargs": _criterion_kwargs,
    "classes": _classes,
    "input_array_info": _array_info("input_array_info"),
    "target_array_info": _array_info("target_array_info"),
    "model_save_path": _model_save_path,
    "logs_save_path": _logs_save_path,
    "load_model": _load_model,
    "model_to_load": _model_to_load,
    "data_base_path": _data_base_path,
    "force_all_classes": _of_the_split,
    "filter_by_scale": _of_the_split,
    "validation_prob": _of_the_split,
    "use_s3": _of_the_split,
    "dataloader_kwargs": _dataloader_kwargs,
    "device": _device,
    "smoothing_window": _smoothing_window,
    "use_mixed_precision": _use_mixed_precision,
    "train_raw_value_transforms": _raw_transforms,
    "train_raw_transforms": _raw_transforms,
    "val_raw_value_transforms": _raw_transforms,
    "val_raw_transforms": _raw_transforms,
    "value_transforms": _raw_transforms,
    "target_value_transforms": _target_transforms,
}
"""What becomes of a name of the toolbox that is no setting here, or another one."""
