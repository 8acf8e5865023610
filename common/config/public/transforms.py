"""Value transforms of a public configuration: settings, or applied as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from common.config.as_text import as_text
from common.config.public.draft import Draft
from common.config.value_transforms import (
    GivenTransforms,
    InputTransforms,
    RawTransforms,
    TransformedTargets,
    names_of,
    others_of_labels,
    read_raw,
)
from common.talk import nearest, some


def raw_transforms(draft: Draft, _: Any) -> None:
    """Both lists of raw transforms at once: what is in both is a change of the network's input."""
    if any(note.startswith("raw transforms") for note in draft.notes):
        return
    train = read_raw(_first(draft, "train_raw_value_transforms", "train_raw_transforms"))
    names = ("val_raw_value_transforms", "val_raw_transforms", "value_transforms")
    validation = read_raw(_first(draft, *names))
    if _are_refused(draft, "raw transforms", [*train.others, *validation.others]):
        return
    of_validation = [names_of([transform]) for transform in validation.others]
    both = [t for t in train.others if names_of([t]) in of_validation]
    sentences = [
        *_done_and_taken(draft, train, validation),
        *_other_range(train, validation),
        *_applied_in_training(draft, [t for t in train.others if t not in both]),
        *_applied_to_input(draft, both, validation.others),
    ]
    draft.note("raw transforms", "; ".join(sentences) or "none that changes raw")


def _are_refused(draft: Draft, name: str, transforms: Sequence[Any]) -> bool:
    """Whether some of these are no transforms, which is a problem."""
    wrong = [transform for transform in transforms if not callable(transform)]
    if wrong:
        draft.problems.append(
            f"{name}: {as_text(wrong[0])}; write transforms of torchvision or cellmap_data, or "
            "functions of a patch"
        )
    return bool(wrong)


def _done_and_taken(draft: Draft, train: RawTransforms, validation: RawTransforms) -> list[str]:
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


SCALING = ("Normalize", "ToDtype", "ConvertImageDtype")
"""Transforms that are there to bring raw to [0, 1]."""


def _other_range(train: RawTransforms, validation: RawTransforms) -> list[str]:
    """A sentence for transforms that may have been written for raw of 0 to 255."""
    scaled = any(name in SCALING for name in (*train.done, *validation.done))
    if scaled or not (train.others or validation.others):
        return []
    return [
        "nothing among them scales raw, which is 0 to 255 in the toolbox then, and in [0, 1] here: "
        "a transform that divides by 255, or has a mean of such values, is to be left out or "
        "written for [0, 1]"
    ]


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


def _of_no_class(transforms: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """A sentence for each of these names that no class has, and whose transforms do nothing."""
    without = [name for name in classes if name not in transforms]
    problems = []
    for name in transforms:
        if name not in classes:
            near = nearest(str(name), without)
            hint = f"did you mean '{near}'?" if near else "remove it, or add it there"
            problems.append(f"target_value_transforms['{name}']: not one of classes; {hint}")
    return problems


def target_transforms(draft: Draft, transforms: Any) -> None:
    """What is done to labels: nothing, or before the loss."""
    others = others_of_labels(transforms)
    if _are_refused(draft, "target_value_transforms", others):
        return
    if not others:
        draft.note("target_value_transforms", "labels are 0, 1 or unknown here without them")
        return
    loss = draft.settings.get("criterion", nn.BCEWithLogitsLoss)
    classes = draft.settings.get("classes", ())
    if classes and isinstance(transforms, dict):
        draft.problems += _of_no_class(transforms, classes)
    draft.settings["criterion"] = TransformedTargets(loss, transforms, classes)
    draft.note(
        "target_value_transforms",
        f"{names_of(others)} applied as given, to the target of each class of each patch before "
        "the loss, which then takes no weights of weight_loss; validation counts voxels of the "
        "labels as they are",
    )
