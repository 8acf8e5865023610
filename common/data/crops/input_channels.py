"""Open the volumes of further input channels, and check that they cover what is read of them.

A channel is read like raw, from its own grid: at the same places in nm, averaged towards the voxel
size of the input, and mirrored where raw is. Its values become 0 to 1 by a fixed range: volumes are
not measured, since what a network predicted means the same in all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.config.input_channels import InputChannel, read_channels
from common.config.settings import TrainConfig
from common.data.volumes import ngff, records, results
from common.data.volumes.box import Corners, Vector, slices
from common.data.volumes.level import Grid, Level, box_text
from common.data.volumes.placement import slack_nm
from common.data.volumes.raw import Raw, open_raw
from common.data.volumes.sources import place
from common.errors import UserError
from common.files import is_remote


@dataclass(frozen=True)
class ChannelVolume:
    """The volume of a channel, as it is read for one crop or box."""

    name: str
    raw: Raw
    """Reads its voxels."""
    outside: float | None = None
    """Value, 0 to 1, beyond the volume; None where it must cover what raw covers."""

    def read_around(self, start: Vector, stop: Vector) -> np.ndarray:
        """Return voxels start..stop-1; beyond the volume `outside`, or mirrored as raw is."""
        if self.outside is None:
            return self.raw.read_mirrored(start, stop)
        shape = np.array(self.raw.grid.shape)
        first = np.clip(start, 0, shape)
        last = np.clip(stop, 0, shape)
        block = np.full(np.subtract(stop, start), self.stored_outside, self.raw.dtype)
        if (last > first).all():
            block[slices(first - start, last - start)] = self.raw.read(first, last)
        return block

    @property
    def stored_outside(self) -> float:
        """`outside` as its voxels have it."""
        assert self.outside is not None
        if self.raw.dtype != np.uint8:
            return self.outside
        low, high = self.raw.value_range
        return float(np.clip(round(low + self.outside * (high - low)), 0, 255))

    def check_covers(self, around: Corners, raw: Grid, *, where: str, margin: float) -> None:
        """Raise UserError where the volume ends within what raw covers around a box.

        Args:
            around: the corners of what the network sees of a box and around it.
            raw: where raw is; beyond it both are mirrored.
            where: whose box it is, for the message.
            margin: how far around boxes, at most, it sees, in nm.
        """
        if self.outside is not None:
            return
        grid = self.raw.grid
        raw_lower, raw_upper = raw.box()
        needed = np.maximum(around[0], raw_lower), np.minimum(around[1], raw_upper)
        has_lower, has_upper = grid.box()
        slack = slack_nm(grid, raw)
        if (has_lower <= needed[0] + slack).all() and (has_upper >= needed[1] - slack).all():
            return
        wanted = [f"{low:g} to {high:g}" for low, high in zip(*needed, strict=True)]
        raise UserError(
            f"{self.raw.level.group}: channel '{self.name}' is there at {box_text(grid)} nm, and "
            f"{where} needs {', '.join(wanted)} nm of it, as the network sees the surroundings; "
            f"predict it again with --margin {np.ceil(margin):g} --overwrite, or write 'outside' "
            f"of input_channels['{self.name}'], its value where it ends, such as 0.0"
        )

    def record(self) -> dict[str, Any]:
        """Return what is recorded of the channel as JSON: array, values, and its prediction."""
        about: dict[str, Any] = {
            "array": str(self.raw.level.path),
            "range": list(self.raw.value_range),
        }
        if self.outside is not None:
            about["outside"] = self.outside
        prediction = records.read_prediction(self.raw.level.group)
        if prediction is not None:
            about["prediction"] = prediction.key
            about["network"] = prediction.sha256
        return about


def open_channels(
    config: TrainConfig, box: tuple[str, str], scale: Sequence[float]
) -> list[ChannelVolume]:
    """Open the channels of a crop or box, in the order of input_channels.

    Args:
        config: settings of the experiment.
        box: dataset and crop, or name of the box.
        scale: nm, of the input.

    Raises:
        FileNotFoundError: where one is missing.
        UserError: for one that cannot be read, or has no values from 0 to 1.
    """
    declared = read_channels(config.input_channels)
    return [open_channel(channel, config.folder, box, scale) for channel in declared]


def open_channel(
    channel: InputChannel, folder: Path, box: tuple[str, str], scale: Sequence[float]
) -> ChannelVolume:
    """Open the volume of one channel; as `open_channels`. folder: of the experiment."""
    path = _path_of(channel, folder, box)
    where = f"channel '{channel.name}' of {'/'.join(box)}"
    try:
        return _open(channel, path, scale)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{where} is missing ({error}); predict this box with the network that the channel is "
            f"of, or correct its path in input_channels"
        ) from error


def _open(channel: InputChannel, path: Path, scale: Sequence[float]) -> ChannelVolume:
    level = ngff.open_levels(path)[0]
    records.refuse_lost_chunks(level.group, "predict")
    raw = open_raw(path, scale, channel.range or _usual_range(level, channel.name))
    return ChannelVolume(channel.name, raw, channel.outside)


def _path_of(channel: InputChannel, folder: Path, box: tuple[str, str]) -> Path:
    dataset, crop = box
    text = channel.path.format(dataset=dataset, crop=crop)
    if is_remote(text):
        return place.path_of(text)
    return Path(os.path.normpath(folder / Path(text).expanduser()))


def _usual_range(level: Level, name: str) -> tuple[float, ...]:
    """Return the stored values that become 0 and 1, by what the volume is; () for the type's range.

    Raises UserError where nothing tells them.
    """
    own = f"write 'range' of input_channels['{name}'], the values that become 0 and 1"
    sort = results.sort_of(level, name)
    if sort == "objects":
        raise UserError(
            f"{level.group}: ids of objects, which are no intensities; name a prediction "
            "or a mask, or write range = (0, 1), which makes a mask of them"
        )
    if sort == "mask":
        return (0.0, 1.0)
    prediction = records.read_prediction(level.group)
    if prediction is not None and prediction.content == "logits":
        raise UserError(f"{level.group}: logits; predict probabilities, or {own}")
    kind = level.array.dtype.kind
    if kind == "f":
        return (0.0, 1.0)
    if kind != "u":
        raise UserError(f"{level.group}: of type {level.array.dtype}; {own}")
    return ()
