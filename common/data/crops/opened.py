"""Open the crops of a run for sampling; those that are not in the cache are decoded first.

A crop is decoded once (`common.data.crops.plan`, `common.data.crops.decode`), kept in the cache on
disk, and opened as memory maps by all processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from common.data.crops import pseudo
from common.data.crops.cache import CropCache
from common.data.crops.decode import decode
from common.data.crops.ids import ids_file
from common.data.crops.palette import UNKNOWN, contradicts
from common.data.crops.plan import ChannelBlock, CropRequest, Decoding, plan_decoding
from common.data.splits.split import Row
from common.data.volumes.box import Corners
from common.data.volumes.level import Grid, MissingChunks
from common.errors import FileError, UserError
from common.provenance import usable_cores
from common.talk import progress, size

RAW_ROWS = 4
"""Rows along z, and along y, by which the raw of a crop is known. All of it would be read for
minutes at the start of a run."""

ALL_THERE = MissingChunks(0, 0)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class CropChannel:
    """A further input channel of a decoded crop."""

    file: Path
    """Its voxels, in the cache."""
    grid: Grid
    """Where they are."""
    value_range: tuple[float, ...]
    """Values of uint8 voxels that are 0 and 1."""
    about: dict[str, Any]
    """Which volume it is of, see `ChannelVolume.record`."""

    def voxels(self) -> np.ndarray:
        """Return them, memory-mapped: (z, y, x) uint8, or float32 in [0, 1]."""
        return _memory_map(str(self.file))


@dataclass(frozen=True)
class Crop:
    """A decoded crop.

    Row 0 of the palette is unknown for every class. It stands for every voxel outside of the label
    volume.
    """

    name: str
    """Dataset and crop, such as 'jrc_hela-2/crop28'."""
    folder: Path
    """Folder of raw.npy and labels.npy in the cache."""
    raw_grid: Grid
    """Where the voxels of `raw()` are."""
    label_grid: Grid
    """Where the voxels of `labels()` are."""
    palette: np.ndarray
    """(rows, classes) int8: 1 positive, 0 negative, -1 unknown; inferred labels included."""
    counts: np.ndarray
    """(rows,) int64: number of voxels of each palette row."""
    examples: np.ndarray
    """(rows, EXAMPLES, 3) int32: indices z, y, x of label voxels of each row, drawn at random with
    replacement; zeros for a row without voxels."""
    contradictions: int
    """Number of voxels whose labels contradict the class table."""
    remarks: tuple[tuple[str, str], ...] = ()
    """(class, sentence) for each kind of label value that was taken for something unusual."""
    missing_raw: MissingChunks = ALL_THERE
    """Chunks of raw where its labels are, and how many of them are not there."""
    pseudo: np.ndarray | None = None
    """(rows, classes) bool: labels of networks, and what follows from them; None where none is."""
    with_ids: tuple[str, ...] = ()
    """Classes of which `ids()` has the objects."""
    like_masks: tuple[str, ...] = ()
    """Classes of `with_ids` whose only id is 1."""
    channels: tuple[CropChannel, ...] = ()
    """What the network gets beside raw, in the order of its channels."""

    def raw(self) -> np.ndarray:
        """Return the raw, memory-mapped: (z, y, x) uint8, or float32 in [0, 1]."""
        return _memory_map(str(self.folder / "raw.npy"))

    def labels(self) -> np.ndarray:
        """Return the palette row of each voxel, memory-mapped: (z, y, x) uint8 or uint16."""
        return _memory_map(str(self.folder / "labels.npy"))

    def ids(self, name: str) -> np.ndarray:
        """Return the objects of a class, memory-mapped: (z, y, x) uint8, uint16 or uint32.

        0 is unknown, as beyond the crop, 1 background, and objects are numbered from 2.
        """
        return _memory_map(str(self.folder / ids_file(name)))

    @property
    def labels_key(self) -> str:
        """What tells its labels from others: how many voxels have which combination of them."""
        digest = hashlib.sha256()
        counted = zip(self.palette, self.counts.tolist(), strict=True)
        for labels, voxels in sorted((row.tobytes(), count) for row, count in counted if count):
            digest.update(labels + str(voxels).encode())
        return digest.hexdigest()[:24]

    @property
    def raw_key(self) -> str:
        """What tells its raw, and what is beside it, from other raw: a few rows of each.

        Where its labels are: around them there may be more or less of it, as far as the samples of
        a run turn.
        """
        digest = hashlib.sha256()
        box = self.label_grid.box()
        for row in _rows_in(self.raw(), self.raw_grid, box):
            digest.update(row.tobytes())
        for channel in self.channels:
            for row in _rows_in(channel.voxels(), channel.grid, box):
                digest.update(row.tobytes())
        return digest.hexdigest()[:24]

    @property
    def bytes(self) -> int:
        """Size of raw, labels, ids and further channels in bytes."""
        of_ids = sum(self.ids(name).nbytes for name in self.with_ids)
        of_channels = sum(channel.voxels().nbytes for channel in self.channels)
        return self.raw().nbytes + self.labels().nbytes + of_ids + of_channels


@functools.lru_cache(maxsize=512)  # bounds the files that a process holds open
def _memory_map(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _rows_in(voxels: np.ndarray, grid: Grid, box: Corners) -> Iterator[np.ndarray]:
    """Iterate over RAW_ROWS x RAW_ROWS rows along x of what a volume has in a box."""
    first, last = grid.voxels_in(box)
    parts = (np.arange(RAW_ROWS) + 0.5) / RAW_ROWS
    layers = np.outer(parts, last - first).astype(int) + first
    for z, y in itertools.product(layers[:, 0], layers[:, 1]):
        yield voxels[z, y, first[2] : last[2]]


# Opening crops


def open_crops(
    rows: Sequence[Row], request: CropRequest, cache: CropCache, *, beside: Sequence[Crop] = ()
) -> list[Crop]:
    """Open the crops of these rows; those that are not in the cache, whole, are decoded first.

    Only palettes, counts and examples are held in memory; volumes are memory-mapped.

    Args:
        rows: crops of one usage. They share batches, so the raw of all of them is float32 if that
            of any is not uint8.
        request: what the run needs of them.
        cache: where decoded crops are kept.
        beside: other crops of the same run, opened earlier, which are not removed from the cache.

    Raises:
        UserError: with the problems of all crops in one message, or if the crops are larger than
            the cache.
        FileError: if the cache cannot be written.
    """
    jobs = _for_each(rows, lambda row: plan_decoding(row, request), "opening crops")
    jobs = _with_one_number_type(jobs)
    _check_they_fit(jobs, cache, beside)
    in_use = {job.key for job in jobs} | {crop.folder.name for crop in beside}
    cache.hold(in_use)
    # read from end to end: 1 to 2 s of a core for each GB, once in a process
    if any(_for_each(jobs, lambda job: cache.drop_damaged(job.key), "checking decoded crops")):
        _memory_map.cache_clear()
    missing = [job for job in jobs if not cache.holds(job.key)]
    cache.make_room(sum(job.bytes for job in missing), in_use)
    given_up = threading.Event()
    missing = [replace(job, given_up=given_up) for job in missing]
    _for_each(missing, lambda job: decode(job, cache), "decoding crops", given_up)
    return [_load(job, request, cache) for job in jobs]


def bytes_to_decode(rows: Sequence[Row], request: CropRequest, cache: CropCache) -> int:
    """Return how many bytes `open_crops` would write into the cache. Raises as that does."""
    jobs = _for_each(rows, lambda row: plan_decoding(row, request), "opening crops")
    missing = [job for job in _with_one_number_type(jobs) if not cache.holds(job.key)]
    return sum(job.bytes for job in missing)


def _for_each(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    what: str,
    given_up: threading.Event | None = None,
) -> list[Result]:
    """Return work(item) for all items, run on several threads with a progress bar `what`.

    UserErrors and FileNotFoundErrors are collected and raised as one UserError, which lists the
    first ten; a FileError is raised at once. After that, or Ctrl-C, what has not begun does not
    begin, and `given_up` tells what has begun to end.
    """
    results = []
    problems = []
    with _threads(given_up or threading.Event()) as pool:
        futures = [pool.submit(work, item) for item in items]
        with progress(len(items), what, unit="crop") as bar:
            for future in futures:
                try:
                    results.append(future.result())
                except FileError:
                    raise  # a full disk is one problem, not one of every crop
                except (UserError, FileNotFoundError) as error:
                    problems.append(str(error))
                bar.update()
    if problems:
        lines = list(dict.fromkeys(problems[:10]))
        if len(problems) > 10:
            lines.append(f"... and {len(problems) - 10} more crops")
        raise UserError("\n".join(lines))
    return results


@contextlib.contextmanager
def _threads(given_up: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Threads that are done when the block ends; where an error ends it, as soon as they can be."""
    pool = ThreadPoolExecutor(min(8, usable_cores()))
    try:
        yield pool
    except BaseException:
        given_up.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _check_they_fit(jobs: Sequence[Decoding], cache: CropCache, beside: Sequence[Crop]) -> None:
    """Raise UserError if the decoded crops of a run are larger than the cache."""
    needed = sum(job.bytes for job in jobs) + sum(crop.bytes for crop in beside)
    if needed / 1e9 > cache.gigabytes:
        # palettes take some more
        raise UserError(
            f"the decoded crops need {size(needed)} and cache_gb is {cache.gigabytes:g}; set "
            f"cache_gb = {_rounded_up(1.01e-9 * needed):g} or more, take fewer crops, or rotate "
            "less (raw is kept as far around a crop as a rotated patch reaches)"
        )


def _rounded_up(value: float) -> float:
    """Return a number of two digits that is no smaller than one above 0."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / step) * step


def _with_one_number_type(jobs: list[Decoding]) -> list[Decoding]:
    """Return the jobs, all with float32 raw if any is not uint8: a batch has one number type."""
    if all(job.raw.dtype == np.uint8 for job in jobs):
        return jobs
    as_float = []
    for job in jobs:
        raw = replace(job.raw, dtype=np.dtype(np.float32))
        as_float.append(replace(job, raw=raw, key=job.key + "f"))
    return as_float


# Loading what was decoded


def _load(job: Decoding, request: CropRequest, cache: CropCache) -> Crop:
    """Open a decoded crop, and infer labels from its annotation for the classes of this run."""
    folder = cache.path(job.key)
    os.utime(folder)  # used now: `make_room` removes the least recently used
    with np.load(folder / "palette.npz") as file:
        annotated = file["palette"]
        counts = file["counts"]
        examples = file["examples"]
        remarks = tuple((str(name), str(text)) for name, text in file["remarks"])
        # only looked for with ids: crops that were decoded before there were any have no such list
        like_masks = tuple(file["like_masks"].tolist()) if job.with_ids else ()
    inferred = _infer(annotated, job.names, request)
    return Crop(
        name=job.row.name,
        folder=folder,
        raw_grid=job.raw_grid,
        label_grid=job.label_grid,
        palette=inferred.palette,
        counts=counts,
        examples=examples,
        contradictions=int(counts[inferred.contradicts].sum()),
        remarks=remarks,
        missing_raw=job.missing_raw,
        pseudo=inferred.pseudo,
        with_ids=job.with_ids,
        like_masks=like_masks,
        channels=tuple(_channel_of(block, folder) for block in job.channels),
    )


def _channel_of(block: ChannelBlock, folder: Path) -> CropChannel:
    """Return a decoded channel of a crop."""
    volume = block.volume
    return CropChannel(
        folder / block.file, block.grid, volume.raw.value_range, about=volume.record()
    )


class _Inferred(NamedTuple):
    """What the rows of a decoded palette say of the classes of a run."""

    palette: np.ndarray
    """As of `Crop`."""
    contradicts: np.ndarray
    """(rows,) bool: whether its labels contradict the class table."""
    pseudo: np.ndarray | None
    """As of `Crop`."""


def _infer(annotated: np.ndarray, names: Sequence[str], request: CropRequest) -> _Inferred:
    """Infer the labels of the classes of a run from the palette of a decoded crop.

    Annotated classes that are not learnt take part in the reasoning, and are dropped after it.

    Args:
        annotated: (rows, classes) int8, as `decode.encode_known` makes it.
        names: the class of each column.
        request: what the run needs.
    """
    all_names = [*names, *(name for name in request.classes if name not in names)]
    learnt = [all_names.index(name) for name in request.classes]
    palette = np.full((len(annotated), len(all_names)), UNKNOWN, np.int8)
    palette[:, : len(names)] = annotated
    by_networks = palette >= pseudo.IN_PALETTE
    palette[by_networks] -= pseudo.IN_PALETTE
    rules = request.rules
    known = rules.complete(palette, all_names)
    of_networks = None
    if by_networks.any():
        by_people = np.where(by_networks, UNKNOWN, palette).astype(np.int8)
        without_networks = rules.complete(by_people, all_names)
        of_networks = ((known != UNKNOWN) & (without_networks == UNKNOWN))[:, learnt]
    return _Inferred(
        palette=known[:, learnt],
        contradicts=contradicts(palette, all_names, rules.declared),
        pseudo=of_networks,
    )
