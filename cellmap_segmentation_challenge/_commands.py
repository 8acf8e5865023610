"""`predict` and `process` with the public toolbox's arguments beside those of the engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.arguments import overrides_of
from common.infer import predict as predicting
from common.infer import process as processing
from common.shell import public

FilePath = str | os.PathLike[str]


# the public toolbox's arguments, in its order
def predict(  # noqa: PLR0917
    config_path: FilePath,
    crops: str | Sequence[str] = "validate",
    output_path: FilePath | None = None,
    do_orthoplanes: bool | None = None,
    overwrite: bool = False,
    search_path: str | None = None,
    raw_name: str | None = None,
    crop_name: str | None = None,
    **settings: Any,
) -> list[Path]:
    """Predict crops, or a volume, with a checkpoint of an experiment's run; return their folders.

    Raises as `common.infer.predict.predict` does.

    Args:
        config_path: a training configuration, or the folder that holds train_config.py.
        crops: validate, train, test, * or names separated by commas.
        output_path: a folder, or FOLDER/{dataset}.zarr/{crop}; the experiment's unless given.
        do_orthoplanes: whether a 2-D network predicts the mean over slices across z, y and x; it
            predicts the planes of its training unless given.
        overwrite: replace what is there.
        search_path: ROOT/{dataset}/{dataset}.zarr/recon-1/{name}: the data root ROOT.
        raw_name: that of the challenge's layout.
        crop_name: that of the challenge's layout.
        settings: further arguments of `common.infer.predict.predict`, and settings by their names.
    """
    given = {
        "output_path": output_path,
        "search_path": search_path,
        "raw_name": raw_name,
        "crop_name": crop_name,
    }
    if do_orthoplanes is not None:
        settings["planes"] = "auto" if do_orthoplanes else "own"
    taken = _in_our_words("predict", given, settings)
    return predicting.predict(Path(config_path), crops, overwrite=overwrite, **taken)


# the public toolbox's arguments, in its order
def process(  # noqa: PLR0917
    config_path: FilePath,
    crops: str | Sequence[str] = "validate",
    input_path: FilePath | None = None,
    output_path: FilePath | None = None,
    overwrite: bool = False,
    device: str | None = None,
    max_workers: int | None = None,
    **settings: Any,
) -> list[Path]:
    """Turn predictions of crops, or of a volume, into masks and objects; return their folders.

    Raises as `common.infer.process.process` does.

    Args:
        config_path: a process or training configuration, or the folder that holds them.
        crops: validate, train, test, * or names separated by commas.
        input_path: folder of the predictions, or FOLDER/{dataset}.zarr/{crop}; the experiment's
            unless given.
        output_path: folder of what is written, or FOLDER/{dataset}.zarr/{crop}; likewise.
        overwrite: replace what is there.
        device: without effect.
        max_workers: without effect.
        settings: further arguments of `common.infer.process.process`, and settings by their names.
    """
    given = {
        "input_path": input_path,
        "output_path": output_path,
        "device": device,
        "max_workers": max_workers,
    }
    taken = _in_our_words("process", given, settings)
    return processing.process(Path(config_path), crops, overwrite=overwrite, **taken)


def _in_our_words(command: str, given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of the engine, with those that public arguments stand for added."""
    taken = {**settings, "overrides": overrides_of(settings.get("overrides", ()))}
    for name, value in given.items():
        if value is not None:
            public.merge(taken, public.take(command, name, str(value)))
    return taken
