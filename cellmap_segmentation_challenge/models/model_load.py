"""Find checkpoints by a template with `{epoch}`, and load one into a network.

Unlike the toolbox's functions of these names they go by the epoch in a file's name and not by when
it was touched, count epochs from 1 as training does, and raise for weights that do not fit.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path

import numpy as np
from torch import nn

from cellmap_segmentation_challenge._public import names_of
from common.errors import UserError
from common.talk import note, say
from common.train.checkpointing import weights_file

__getattr__ = names_of(__name__, {})

EPOCH = "{epoch}"

TAG = "validation"
"""Tag of the toolbox's scalar in TensorBoard: the validation loss of an epoch."""


def load_latest(search_path: str | Path, model: nn.Module) -> int | None:
    """Load the weights of the last epoch into a model; return the epoch, None without a file.

    search_path: with `{epoch}`, or a pattern with `*`. Of a pattern the newest file is taken, and
        its epoch is not known: 0. Raises UserError for weights that do not fit.
    """
    path, epoch = _latest(str(search_path))
    if path is None:
        note(f"{search_path}: no such checkpoint, so that the model keeps its weights")
        return None
    _load(path, model)
    return epoch


def load_best_val(
    logs_save_path: str | Path,
    model_save_path: str | Path,
    model: nn.Module,
    low_is_best: bool = True,
    *,
    smoothing_window: int = 1,
) -> int | None:
    """Load the weights of the epoch that validated best; return the epoch, None without a log.

    Args:
        logs_save_path: folder of the TensorBoard logs.
        model_save_path: of checkpoints, with `{epoch}`.
        model: gets the weights.
        low_is_best: whether a lower value is better.
        smoothing_window: epochs over which values are averaged before.

    Raises:
        FileNotFoundError: if there is no checkpoint of that epoch.
        UserError: for weights that do not fit.
    """
    epoch = get_best_val_epoch(logs_save_path, low_is_best, smoothing_window=smoothing_window)
    if epoch is not None:
        _load(Path(str(model_save_path).replace(EPOCH, str(epoch))), model)
    return epoch


def get_latest_checkpoint_epoch(model_save_path: str | Path) -> int | None:
    """Return the last epoch that has a checkpoint; None without any."""
    return _latest(str(model_save_path))[1]


def get_best_val_epoch(
    logs_save_path: str | Path, low_is_best: bool = True, *, smoothing_window: int = 1
) -> int | None:
    """Return the epoch, counted from 1, that validated best; None without a log of it.

    The n-th value of the log is taken for that of epoch n, as the toolbox writes it. See
    `load_best_val`.
    """
    values = _validations(Path(logs_save_path))
    if not values:
        note(f"{logs_save_path}: no scalar '{TAG}', so that no epoch is known as the best")
        return None
    if not 1 <= smoothing_window <= len(values):
        raise UserError(
            f"smoothing_window = {smoothing_window}; write 1 to {len(values)}, the epochs in "
            f"{logs_save_path}"
        )
    # each the mean of the epochs up to it, so that it is about the weights that it loads
    kernel = np.full(smoothing_window, 1 / smoothing_window)
    smoothed = np.convolve(values, kernel, mode="valid")
    best = np.nanargmin(smoothed) if low_is_best else np.nanargmax(smoothed)
    return int(best) + smoothing_window


def newest_wildcard_path(search_path: str | Path) -> str | None:
    """Return the file that a pattern with `*` fits and that was written last; None without any."""
    paths = [Path(name) for name in glob.glob(str(search_path))]  # noqa: PTH207  (absolute, too)
    if not paths:
        return None
    return str(max(paths, key=lambda path: path.stat().st_mtime))


def _latest(template: str) -> tuple[Path | None, int | None]:
    """Return the checkpoint of the last epoch, and the epoch; for a pattern the newest, and 0."""
    if EPOCH not in template:
        newest = newest_wildcard_path(template)
        return (Path(newest), 0) if newest else (None, None)
    before, _, after = template.partition(EPOCH)
    # another run's file, m_x_3.pth beside m_3.pth, has no number in this place
    number = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    paths: dict[int, Path] = {}
    for name in glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"):  # noqa: PTH207
        fits = number.fullmatch(name)
        if fits:
            paths[int(fits[1])] = Path(name)
    if not paths:
        return None, None
    epoch = max(paths)
    return paths[epoch], epoch


def _load(path: Path, model: nn.Module) -> None:
    weights_file.load_weights(model, weights_file.read(path), path)
    say(f"loaded the weights of {path}")


def _validations(logs: Path) -> list[float]:
    """Return the values of the scalar in the order of their steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not logs.is_dir():
        return []
    log = EventAccumulator(str(logs), size_guidance={"scalars": 0})
    log.Reload()
    if TAG not in log.Tags()["scalars"]:
        return []
    return [event.value for event in log.Scalars(TAG)]
