"""What becomes of each name of the public toolbox that is no setting here, or another one.

A rule writes settings into a `Draft` and says in a note what it took how; RULES has one for each
name.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.classes import ATOM_IDS, GROUP_IDS, unknown_names
from common.config.given import GivenModel, GivenOptimizer, GivenScheduler
from common.config.settings import as_text
from common.config.value_transforms import (
    GivenTransforms,
    InputTransforms,
    Reading,
    TransformedTargets,
    names_of,
    others_of_labels,
    read_raw,
)
from common.errors import UserError
from common.talk import some

MODEL_NAME = "2d_unet"
"""The toolbox's default."""

CHECKPOINTS = "checkpoints/{model_name}_{epoch}.pth"
"""The toolbox's default of model_save_path."""


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
    split: dict[str, Any] = field(default_factory=dict)
    """How a datasplit is written where there is none."""

    def note(self, name: str, sentence: str) -> None:
        """Say what became of a name of the file."""
        self.notes.append(f"{name}: {sentence}")


# Rules: one for each name that has a counterpart and is not it


def _model(draft: Draft, model: Any) -> None:
    if isinstance(model, nn.DataParallel):
        draft.note(
            "model", "DataParallel is taken off: several GPUs are asked for by train --gpus all"
        )
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
        told = [sentence for sentence in unknown_names(own) if "did you mean" in sentence]
        told = told or [f"nothing is inferred about {some(own)}"]
        draft.note("classes", f"outside the challenge's table; {'; '.join(told)}")


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
    own = draft.given.get("model_name", MODEL_NAME)
    template = draft.given.get("model_save_path", CHECKPOINTS)
    if not isinstance(name, str) or not isinstance(template, str | os.PathLike):
        return
    found = _saved_there(draft.path.parent, os.fspath(template), name)
    if found:
        draft.settings["load_model"] = str(found)
        draft.note(
            "model_to_load",
            f"a new run begins with {found}, of the last epoch there is; if cellmap-data of 2026 "
            "fed it, it has seen raw of 0 to 255, which is raw_normalization = 'values' here",
        )
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


def _force_all_classes(draft: Draft, forced: Any) -> None:
    wanted = FORCED.get(forced) if isinstance(forced, bool | str) else None
    if wanted is None:
        draft.problems.append(
            f"force_all_classes = {forced!r}; write True, False, 'train' or 'validate'"
        )
        return
    draft.split["force_classes"] = wanted
    sentence = OF_THE_SPLIT
    if wanted in ("train", "validate"):
        sentence += "; a crop without all classes is then left out, and not put on the other side"
    draft.note("force_all_classes", sentence)


FORCED: dict[bool | str, str] = {
    True: "all",
    False: "",
    "train": "train",
    "validate": "validate",
    "validation": "validate",
}
"""force_all_classes as make-datasplit has it; "validation", in use, is ignored by the toolbox."""

OF_THE_SPLIT = "used where the datasplit is not there yet and is written, as in the toolbox"


def _filter_by_scale(draft: Draft, scale: Any) -> None:
    """True is the voxel size of the raw patch, a number one for all axes."""
    draft.note("filter_by_scale", OF_THE_SPLIT)
    info = draft.settings.get("input_array_info")
    if scale is True:
        scale = info.get("scale") if isinstance(info, dict) else None
    if isinstance(scale, bool) or scale is None:
        return
    sizes = scale if isinstance(scale, list | tuple) else [scale] * 3
    draft.split["scale"] = tuple(sizes)


def _validation_prob(draft: Draft, fraction: Any) -> None:
    if fraction is not None:
        draft.split["validation_fraction"] = fraction
    draft.note("validation_prob", OF_THE_SPLIT)


def _use_s3(draft: Draft, on: Any) -> None:
    if on:
        draft.note(
            "use_s3",
            "crops are taken where the datasplit says; fetch-data brings those of the challenge to "
            "the data root",
        )


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
    of_validation = [names_of([transform]) for transform in validation.others]
    both = [t for t in train.others if names_of([t]) in of_validation]
    sentences = [
        *_done_and_taken(draft, train, validation),
        *_applied_in_training(draft, [t for t in train.others if t not in both]),
        *_applied_to_input(draft, both, validation.others),
    ]
    draft.note("raw transforms", "; ".join(sentences) or "none that changes raw")


def _done_and_taken(draft: Draft, train: Reading, validation: Reading) -> list[str]:
    """Take the settings that transforms are, and say so, and which have nothing left to do."""
    sentences = []
    if train.done:
        done = some([*dict.fromkeys(train.done)])
        sentences.append(f"{done} have nothing to do: raw is in [0, 1] here")
    settings = dict(train.settings)
    if "raw_range" in validation.settings:
        settings.setdefault("raw_range", validation.settings["raw_range"])
    for name, value in settings.items():
        draft.settings.setdefault(name, value)
    if settings:
        taken = ", ".join(f"{name} = {as_text(value)}" for name, value in settings.items())
        sentences.append(f"taken as {taken}, over the whole patch, gamma first")
    return sentences


def _applied_in_training(draft: Draft, transforms: Sequence[Any]) -> list[str]:
    if not transforms:
        return []
    draft.settings["augment"] = GivenTransforms(transforms)
    return [
        f"{names_of(transforms)} applied as given, patch by patch in the training process: seeded "
        "for each sample, slower than settings"
    ]


def _applied_to_input(draft: Draft, train: Sequence[Any], validation: Sequence[Any]) -> list[str]:
    if not validation or "build_model" not in draft.settings:
        return []
    draft.settings["build_model"].input_transforms = InputTransforms(train, validation)
    return [
        f"{names_of(validation)} applied as given to the input of the network, in validation and "
        "prediction too"
    ]


def _first(draft: Draft, *names: str) -> Any:
    """The value of the first of these names that the file gives; None without one."""
    return next((draft.given[name] for name in names if draft.given.get(name) is not None), None)


def _target_transforms(draft: Draft, transforms: Any) -> None:
    others = others_of_labels(transforms)
    if not others:
        draft.note("target_value_transforms", "labels are 0, 1 or unknown here without them")
        return
    loss = draft.settings.get("criterion", nn.BCEWithLogitsLoss)
    classes = draft.settings.get("classes", ())
    draft.settings["criterion"] = TransformedTargets(loss, transforms, classes)
    draft.note(
        "target_value_transforms",
        f"{names_of(others)} applied as given, to the target of each class of each patch before "
        "the loss, which then takes no weights of weight_loss; validation counts voxels of the "
        "labels as they are",
    )


def _random_seed(draft: Draft, seed: Any) -> None:
    if seed is None:
        return
    # os.environ.get gives text
    is_text = isinstance(seed, str) and seed.isdecimal()
    draft.settings["random_seed"] = int(seed) if is_text else seed
    draft.note(
        "random_seed",
        "SEED of the environment goes before it, and getattr(os.environ, 'SEED', 42) gives it "
        "here; in the toolbox that is always 42",
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
    "force_all_classes": _force_all_classes,
    "filter_by_scale": _filter_by_scale,
    "validation_prob": _validation_prob,
    "use_s3": _use_s3,
    "dataloader_kwargs": _dataloader_kwargs,
    "random_seed": _random_seed,
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
