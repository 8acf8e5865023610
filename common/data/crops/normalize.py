"""Bring the raw of volumes that differ in brightness and contrast onto one scale.

With `raw_normalization` other than "range" every raw volume has a `Scaling`. It belongs to the
volume and not to a crop or a patch, so that training and prediction give a network the same numbers
for the same voxel, whatever box is looked at. It is measured in at most 512 tiles of 16^3 voxels
that lie evenly spread over the volume, of the voxel size that the network reads: the order of
magnitude of a volume does not change what is read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from common import typed
from common.config.settings import TrainConfig
from common.data.crops.cache import raw_stamp
from common.data.volumes.box import Box, cells
from common.data.volumes.level import Level, chunk_ranges
from common.data.volumes.raw import Raw, open_raw
from common.data.volumes.sources.place import bare
from common.errors import UserError
from common.files import key_of, write_json
from common.talk import progress

MEASURED = ("percentile", "zscore")
"""Values of raw_normalization for which volumes are measured."""

PERCENTILES = (0.5, 99.5)
"""Percentiles that become 0 and 1."""
# those that nnU-Net clips CT at (Isensee et al. 2021)

TILE = 16
"""Edge in voxels of what is read at a place."""
# usual chunks are multiples of it, so that a tile is in one of them

ALONG = 8
"""Most tiles along each axis."""

FEWEST = 64
"""Tiles on disk below which a volume is searched for others.

Of a volume that is not downloaded whole, an even lattice may meet nothing.
"""

CELL = 4
"""Edge in voxels of the cells of which the constant ones are left out."""

READERS = 4
"""Tiles that are read at a time."""

FORMAT = 1
"""Version of the measurement. It is part of the key in the cache."""


@dataclass(frozen=True)
class Scaling:
    """How the raw of one volume becomes input of the network.

    First `low` becomes 0 and `high` becomes 1, and what lies beyond is clipped. That is the scale
    on which intensities are augmented. Then `mean` is subtracted, and the rest divided by
    `deviation`.
    """

    low: float
    """In parts of the range of raw: 0 is its black, 1 its white, see the setting raw_range."""
    high: float
    mean: float = 0.0
    """Between `low` as 0 and `high` as 1."""
    deviation: float = 1.0
    shape: tuple[int, ...] = ()
    """Voxels of the volume, z, y, x, at the voxel size in which it was measured."""

    def record(self) -> dict[str, Any]:
        """Return the scaling as JSON and checkpoints hold it."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Scaling:
        """Return the scaling that `record` stored. Raises TypeError if it is damaged."""
        scaling = cls(**{**stored, "shape": tuple(stored["shape"])})
        typed.check(scaling)
        return scaling

    def __str__(self) -> str:
        text = f"{self.low:.3f} to {self.high:.3f} become 0 to 1"
        if self.deviation == 1:
            return text
        return f"{text}, less {self.mean:.3f}, divided by {self.deviation:.3f}"


Scalings = dict[str, Scaling]
"""Scalings by the name of the volume, see `name_of`."""


def name_of(raw: Path, config: TrainConfig) -> str:
    """Return the name of a raw volume: its path in the data root, or else its absolute path.

    So that a checkpoint knows the volume on another machine.
    """
    volume = bare(raw).resolve()
    with contextlib.suppress(ValueError):
        return volume.relative_to(config.path("data_path")).as_posix()
    return volume.as_posix()


def of_volumes(
    config: TrainConfig, volumes: Sequence[Path], known: Mapping[str, Scaling]
) -> Scalings:
    """Return the scaling of each of these raw volumes, by name; {} with "range".

    Args:
        config: settings of the experiment.
        volumes: multiscale groups; each is measured once.
        known: scalings on record, which stay in force, whatever was downloaded since.

    Raises:
        FileNotFoundError: as `common.data.volumes.raw.open_raw`.
        UserError: as `common.data.volumes.raw.open_raw`, and for a volume without contrast.
    """
    if config.raw_normalization == "range":
        return {}
    scalings: Scalings = {}
    distinct = list(dict.fromkeys(volumes))
    with progress(len(distinct), "looking at raw", unit="volume") as bar:
        for volume in distinct:
            raw = open_for(config, volume, config.input_array_info["scale"])
            scaling = of_volume(config, volume, raw, known)
            assert scaling is not None
            scalings[name_of(volume, config)] = scaling
            bar.update()
    return scalings


def open_for(config: TrainConfig, volume: Path, scale: Sequence[float]) -> Raw:
    """Open a raw volume as an experiment reads it. Raises as `common.data.volumes.raw.open_raw`.

    scale: voxel size in nm that is wanted.
    """
    return open_raw(
        volume,
        scale,
        config.raw_range,
        config.raw_sections,
        is_stretched=config.raw_normalization in MEASURED,
    )


def of_volume(
    config: TrainConfig, volume: Path, raw: Raw, known: Mapping[str, Scaling]
) -> Scaling | None:
    """Return the scaling of one raw volume, that on record if it has one; None with "range".

    Args:
        config: settings of the experiment.
        volume: the multiscale group.
        raw: the same, opened.
        known: scalings on record. One of a volume of another shape is of another volume.

    Raises UserError for a volume without contrast.
    """
    if config.raw_normalization == "range":
        return None
    if config.raw_normalization == "values":
        return _as_stored(raw)
    recorded = known.get(name_of(volume, config))
    if recorded is not None and recorded.shape == raw.grid.shape:
        return recorded
    scaling = _measured(raw, config.path("cache_path") / "raw_scalings")
    if config.raw_normalization == "percentile":
        return replace(scaling, mean=0.0, deviation=1.0)
    return scaling


def _as_stored(raw: Raw) -> Scaling:
    """Return the scaling that turns raw in [0, 1] back into the values that are stored."""
    black, white = raw.value_range
    contrast = white - black
    return Scaling(0.0, 1.0, -black / contrast, 1 / contrast, raw.grid.shape)


# Applied, on the device


def to_unit_range(raw: Tensor, scaling: Scaling | None) -> Tensor:
    """Bring patches of a volume from the range of raw to [0, 1] between its percentiles.

    raw: float32 in [0, 1], of any shape; it is changed in place and returned. None leaves it as it
    is.
    """
    if scaling is not None:
        contrast = scaling.high - scaling.low
        raw.sub_(scaling.low).mul_(1 / contrast).clamp_(0, 1)
    return raw


def standardize(raw: Tensor, scaling: Scaling | None) -> Tensor:
    """Bring patches of a volume from [0, 1] to its mean 0 and its deviation 1.

    As `to_unit_range`, which goes before it, with changes of intensity between the two.
    """
    if scaling is not None and _standardizes(scaling):
        raw.sub_(scaling.mean).mul_(1 / scaling.deviation)
    return raw


def in_unit_range(raw: Tensor, scalings: Sequence[Scaling | None]) -> Tensor:
    """Return the input of a network in [0, 1], to be looked at: `standardize` undone.

    raw: (B, 1, z, y, x). scalings: one for each patch.
    """
    if not any(scaling is not None and _standardizes(scaling) for scaling in scalings):
        return raw
    patches = raw.clone()
    for patch, scaling in zip(patches, scalings, strict=True):
        if scaling is not None:
            patch.mul_(scaling.deviation).add_(scaling.mean)
    return patches


def _standardizes(scaling: Scaling) -> bool:
    return (scaling.mean, scaling.deviation) != (0, 1)


# Measured


def _measured(raw: Raw, cache: Path) -> Scaling:
    """Return the scaling of a volume, with mean and deviation, from the cache or measured now."""
    tiles = choose_tiles(raw)
    stamps = [raw_stamp(raw.level, *_on_level(raw, tile)) for tile in tiles]
    identity = [FORMAT, str(raw.level.path), raw.factor.tolist(), raw.raw_range, stamps]
    if raw.sections:
        identity.append(raw.sections)
    file = cache / f"{key_of(identity)}.json"
    # whatever is wrong with a file in the cache, it can be made again
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return Scaling.of(json.loads(file.read_text()))
    scaling = measure(raw, tiles)
    write_json(file, scaling.record())
    return scaling


def measure(raw: Raw, tiles: Sequence[Box]) -> Scaling:
    """Measure percentiles, mean and deviation in the tiles of a volume.

    Cells of CELL^3 voxels that are all equal are left out: EM has noise, so that they are padding,
    chunks that were not downloaded, or saturated.

    Raises:
        UserError: if nothing is left, or all of it is of one value.
    """
    with ThreadPoolExecutor(READERS) as pool:
        blocks = list(pool.map(lambda tile: varying(raw.read(*tile)), tiles))
    values = np.concatenate(blocks) if blocks else np.zeros(0, raw.dtype)
    low = high = 0.0
    if len(values):
        values = _in_range(raw, values)
        low, high = (_rounded(value) for value in np.percentile(values, PERCENTILES))
    if low == high:
        raise UserError(
            f"{raw.level.path}: no contrast in {len(tiles)} places spread over the volume, and "
            "raw_normalization asks for its percentiles; fetch its EM chunks, or set "
            "raw_normalization = 'range'"
        )
    between = np.clip((values - low) / (high - low), 0, 1)
    return Scaling(
        low=low,
        high=high,
        mean=_rounded(between.mean()),
        deviation=_rounded(between.std()),
        shape=raw.grid.shape,
    )


def _in_range(raw: Raw, values: np.ndarray) -> np.ndarray:
    """Return values as `Raw.read` gives them as float64 in [0, 1] of the range of raw."""
    exact = values.astype(np.float64)
    if raw.dtype != np.uint8:
        return exact
    low, high = raw.raw_range or (0.0, 255.0)
    return np.clip((exact - low) / (high - low), 0, 1)


def _rounded(value: float) -> float:
    """Round to seven digits: those beyond differ with the order in which a machine adds."""
    return float(f"{value:.7g}")


def varying(block: np.ndarray) -> np.ndarray:
    """Return the values (n,) of the cells of a block that are not constant."""
    edge = np.minimum(CELL, block.shape)
    counts = block.shape // edge
    whole = block[tuple(map(slice, counts * edge))]
    values = cells(whole, edge)
    return values[np.ptp(values, axis=1) > 0].ravel()


def choose_tiles(raw: Raw) -> list[Box]:
    """Choose where a volume is looked at: at most ALONG tiles on disk along each axis.

    The same for the same chunks on disk. Where the lattice meets too few of them, tiles lie in
    evenly many of those that are there.
    """
    shape = np.array(raw.grid.shape)
    counts = -(-shape // TILE)
    axes = [_spread_evenly(int(n)) for n in counts]
    tiles = [_tile(raw, np.array(index) * TILE) for index in itertools.product(*axes)]
    if not raw.level.has_chunk_files:
        return tiles
    on_disk = [tile for tile in tiles if _is_on_disk(raw, tile)]
    is_whole = all(len(axis) == n for axis, n in zip(axes, counts, strict=True))
    if is_whole or len(on_disk) >= FEWEST:
        return on_disk
    return _tiles_in_chunks(raw)


def _spread_evenly(count: int) -> np.ndarray:
    """Return at most ALONG of the numbers 0 to count - 1, with the first and the last of them."""
    return np.unique(np.linspace(0, count - 1, ALONG).astype(int))


def _tile(raw: Raw, start: np.ndarray) -> Box:
    return Box(start, np.minimum(start + TILE, raw.grid.shape))


def _on_level(raw: Raw, tile: Box) -> Box:
    """Return the tile in voxels of the level that is read, which may be finer."""
    return Box(tile.start * raw.factor, tile.stop * raw.factor)


def _is_on_disk(raw: Raw, tile: Box) -> bool:
    ranges = chunk_ranges(*_on_level(raw, tile), raw.level.array.chunks)
    return any(raw.level.chunk_file(index).is_file() for index in itertools.product(*ranges))


def _tiles_in_chunks(raw: Raw) -> list[Box]:
    """Return a tile at the first voxel of each chunk on disk, or of as many as the lattice has."""
    chunks = np.array(raw.level.array.chunks)
    indices = _chunks_on_disk(raw.level)
    most = min(ALONG**3, len(indices))
    chosen = np.linspace(0, len(indices) - 1, most).astype(int)
    tiles = []
    for number in chosen.tolist():
        start = -(-np.array(indices[number]) * chunks // raw.factor)
        if (start < raw.grid.shape).all():
            tiles.append(_tile(raw, start))
    return tiles


def _chunks_on_disk(level: Level) -> list[tuple[int, ...]]:
    """Return the numbers along z, y, x of the chunks of a level that are there, in order."""
    separator = level.array._dimension_separator
    indices = []
    for file in level.path.rglob("*"):
        numbers = file.relative_to(level.path).as_posix().split(separator)
        if not all(number.isdecimal() for number in numbers) or not file.is_file():
            continue
        kept = [int(number) for axis, number in enumerate(numbers) if axis not in level.dropped]
        indices.append(tuple(kept))
    return sorted(indices)
