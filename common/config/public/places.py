"""Where a public configuration keeps runs, and which data and weights it asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from common.config.public.draft import CHECKPOINTS, MODEL_NAME, Draft


def model_save_path(draft: Draft, template: Any) -> None:
    """The folder of a run instead of a file for each epoch."""
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


def logs_save_path(draft: Draft, template: Any) -> None:
    """The folder of a run."""
    text = os.fspath(template) if isinstance(template, os.PathLike) else template
    draft.settings["logs_save_path"] = _with_run(text) if isinstance(text, str) else text


def _with_run(folder: str) -> str:
    """A folder of the toolbox, which knows no runs of one model, with a place for each run."""
    if "{run_name}" in folder:
        return folder
    # without a folder it is the file's own, and not that of all files
    return os.path.join(folder.rstrip("/"), "{run_name}")  # noqa: PTH118


def load_model(draft: Draft, which: Any) -> None:
    """The latest or best checkpoint, or a file of weights."""
    if which not in ("latest", "best"):
        is_file = isinstance(which, str | os.PathLike) and (draft.path.parent / which).is_file()
        if is_file or which == "scratch":
            draft.settings["load_model"] = os.fspath(which)
            return
        draft.note("load_model", f"{which!r}: a run that was begun is continued from its latest")
        which = "latest"
    draft.settings["load_model"] = which


def model_to_load(draft: Draft, name: Any) -> None:
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


def data_base_path(draft: Draft, folder: Any) -> None:
    """The data root, from the file's folder."""
    if not isinstance(folder, str | os.PathLike) or "://" in str(folder):
        draft.problems.append(f"data_base_path = {folder!r}; write the folder of the datasets")
        return
    if "data_path" not in draft.given:
        draft.settings["data_path"] = str((draft.path.parent / folder).absolute())
        draft.note("data_base_path", "the data root; --data and CELLMAP_DATA go before it")


def force_all_classes(draft: Draft, forced: Any) -> None:
    """Which sides of a datasplit take only crops that annotate all classes."""
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


def filter_by_scale(draft: Draft, scale: Any) -> None:
    """True is the voxel size of the raw patch, a number one for all axes."""
    draft.note("filter_by_scale", OF_THE_SPLIT)
    info = draft.settings.get("input_array_info")
    if scale is True:
        scale = info.get("scale") if isinstance(info, dict) else None
    if isinstance(scale, bool) or scale is None:
        return
    sizes = scale if isinstance(scale, list | tuple) else [scale] * 3
    draft.split["scale"] = tuple(sizes)


def validation_prob(draft: Draft, fraction: Any) -> None:
    """The part of the crops that validates."""
    if fraction is not None:
        draft.split["validation_fraction"] = fraction
    draft.note("validation_prob", OF_THE_SPLIT)


def use_s3(draft: Draft, on: Any) -> None:
    """Where crops come from; the datasplit says it."""
    if on:
        draft.note(
            "use_s3",
            "crops are taken where the datasplit says; fetch-data brings those of the challenge to "
            "the data root",
        )
