"""Write whole validation crops, section by section, as pictures and TIFF stacks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from common.data.crops.palette import in_uint8
from common.errors import UserError
from common.files import replacing
from common.show import figures
from common.train.recording.whole_slice import WholeSlice

FOLDER = "previews"
"""In the folder of the logs; in it one of the epoch."""

IN_TRACKERS = 6
"""Sections of a crop that trackers get, one above the other: they keep what they get."""

Stack = Sequence[WholeSlice]
"""Sections of one crop, the first one first."""


def write(folder: Path, epoch: int, stacks: Sequence[Stack], tiff: bool) -> dict[str, np.ndarray]:
    """Write the stacks of an epoch into the folder of the logs, in place of those before.

    Returns, for the trackers, a picture of some sections of each crop by its title. Raises
    FileError if a file cannot be written.
    """
    of_epoch = folder / FOLDER / f"epoch{epoch:04d}"
    shown = {}
    for stack in stacks:
        of_crop = of_epoch / stack[0].title.replace(" ", "_")
        of_crop.mkdir(parents=True, exist_ok=True)
        step = max(1, len(stack) // IN_TRACKERS)
        some: list[np.ndarray] = []
        for number, section in enumerate(stack):
            image = section.image()
            figures.write_png(of_crop / f"z{section.depth:04d}.png", image)
            # from the middle of the first part on: the first section of a crop shows little
            if number % step == step // 2 and len(some) < IN_TRACKERS:
                some.append(image)
        shown[stack[0].title] = figures.above(some, 4, figures.PAPER)
        if tiff:
            _write_tiff(of_crop, stack)
    for other in (folder / FOLDER).iterdir():
        if other != of_epoch and other.name.startswith("epoch"):
            shutil.rmtree(other, ignore_errors=True)
    return shown


def _write_tiff(folder: Path, stack: Stack) -> None:
    """Raw, and probability and truth of each class, (z, y, x) uint8; 255 is unknown in the truth.

    Raw and probabilities are in 255ths.
    """
    raw = np.stack([section.raw for section in stack])
    _save(folder / "raw.tif", _in_255ths(raw), stack)
    for channel, name in enumerate(stack[0].classes):
        probability = np.stack([section.probability[channel] for section in stack])
        _save(folder / f"{name}.tif", _in_255ths(probability), stack)
        truth = np.stack([section.truth[channel] for section in stack])
        _save(folder / f"{name}_truth.tif", in_uint8(truth), stack)


def _in_255ths(values: np.ndarray) -> np.ndarray:
    return np.rint(values.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def _save(path: Path, volume: np.ndarray, stack: Stack) -> None:
    """Write a TIFF with the size of its voxels, as ImageJ reads it."""
    z, y, x = stack[0].scale.tolist()
    if len(stack) > 1:
        z *= stack[1].depth - stack[0].depth
    with replacing(path) as temporary:
        import_tifffile().imwrite(
            temporary,
            volume,
            imagej=True,
            resolution=(1 / x, 1 / y),
            metadata={"axes": "ZYX", "spacing": z, "unit": "nm"},
        )


def import_tifffile() -> ModuleType:
    """Return the package that writes TIFF; raises UserError where it is not installed."""
    try:
        import tifffile
    except ImportError:
        raise UserError(
            "preview_tiff needs the package tifffile, which is not installed; pip install "
            "tifffile, or leave it out"
        ) from None
    return tifffile
