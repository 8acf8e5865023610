"""Open the crops of a run for sampling; those that are not in the cache are decoded first.

A crop is decoded once (`common.data.crops.decode`), kept in the cache on disk, and opened as memory
maps by all processes. The module has four parts: what a run asks for and gets, opening all of its
crops, planning the decoding of one, and loading what was decoded.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from common.config.input_channels import InputChannel
from common.data.crops import pseudo
from common.data.crops.cache import CropCache, label_stamp, raw_stamp, stamp_of_labels
from common.data.crops.decode import ChannelBlock, Decoding, decode
from common.data.crops.ids import ids_file
from common.data.crops.input_channels import open_channel
from common.data.crops.palette import UNKNOWN, Rules, contradicts
from common.data.splits.split import Row
from common.data.volumes import ngff
from common.data.volumes.annotation import INSTANCE_TYPE, encoding_of
from common.data.volumes.box import Box, Corners
from common.data.volumes.level import Grid, Level, MissingChunks
from common.data.volumes.placement import check_crop, check_detail, slack_nm
from common.data.volumes.raw import Raw, averaged_grid, open_raw, reduction
from common.errors import FileError, UserError
from common.files import key_of
from common.provenance import usable_cores
from common.talk import nm, progress

EXTRA_VOXELS = (1, 2)
"""Whole voxels of raw kept beyond the margin, below and above.

The centre of a patch moves by up to half a voxel onto the grid of the raw, and interpolation reads
the next voxel.
"""

FORMAT = 4
"""Version of the decoded files. It is part of the key of a crop: a new version decodes anew."""

RAW_ROWS = 4
"""Rows along z, and along y, by which the raw of a crop is known. All of it would be read for
minutes at the start of a run."""

ALL_THERE = MissingChunks(0, 0)

Item = TypeVar("Item")
Result = TypeVar("Result")


# What a run asks for and gets


@dataclass(frozen=True)
class CropRequest:
    """What a run needs of its crops."""

    classes: tuple[str, ...]
    input_scale: Sequence[float]
    """Voxel size (nm) of the raw patch: raw is read from the level nearest to it."""
    target_scale: Sequence[float]
    """Voxel size (nm) of the target patch: finer labels are reduced towards it."""
    patch_nm: np.ndarray
    """(3,) size of the raw patch in nm; a smaller raw volume is refused."""
    margins_nm: Mapping[str, np.ndarray]
    """How far around its labels the raw of a crop is kept, (3,) nm by usage ("train", "validate"),
    see `sampling.margins_nm`."""
    raw_range: tuple[float, ...] = ()
    """Raw values that become 0 and 1; the range of the unsigned integer type if empty."""
    raw_sections: int = 0
    """Sections on each side with which every section of raw is averaged."""
    raw_is_stretched: bool = False
    """Whether `raw_normalization` measures the contrast of each volume."""
    rules: Rules = field(default_factory=Rules)
    """What labels imply for the classes that a crop does not annotate."""
    with_ids: tuple[str, ...] = ()
    """Classes whose objects are to be told apart."""
    counter_classes: tuple[str, ...] = ()
    input_channels: tuple[InputChannel, ...] = ()
    """Volumes that the network gets beside raw."""
    folder: Path = Path()
    """The experiment's, from which their relative paths start."""


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
    first, last = (np.rint(grid.in_voxels(corner)).astype(int) for corner in box)
    first = np.clip(first, 0, np.array(voxels.shape) - 1)
    last = np.clip(last, first + 1, voxels.shape)
    parts = (np.arange(RAW_ROWS) + 0.5) / RAW_ROWS
    layers = np.outer(parts, last - first).astype(int) + first
    for z, y in itertools.product(layers[:, 0], layers[:, 1]):
        yield voxels[z, y, first[2] : last[2]]


# Opening crops


def open_crops(
    rows: Sequence[Row], request: CropRequest, cache: CropCache, *, beside: Sequence[Crop] = ()
) -> list[Crop]:
    """Open the crops of these rows; those that are not in the cache are decoded first.

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
    jobs = _for_each(rows, lambda row: _plan_decoding(row, request), "opening crops")
    jobs = _with_one_number_type(jobs)
    _check_they_fit(jobs, cache, beside)
    missing = [job for job in jobs if not cache.holds(job.key)]
    in_use = {job.key for job in jobs} | {crop.folder.name for crop in beside}
    cache.make_room(sum(job.bytes for job in missing), in_use)
    given_up = threading.Event()
    missing = [replace(job, given_up=given_up) for job in missing]
    _for_each(missing, lambda job: decode(job, cache), "decoding crops", given_up)
    return [_load(job, request, cache) for job in jobs]


def bytes_to_decode(rows: Sequence[Row], request: CropRequest, cache: CropCache) -> int:
    """Return how many bytes `open_crops` would write into the cache. Raises as that does."""
    jobs = _for_each(rows, lambda row: _plan_decoding(row, request), "opening crops")
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
        raise UserError(
            f"the decoded crops need {needed / 1e9:.1f} GB and cache_gb is {cache.gigabytes:g}; "
            "raise cache_gb, take fewer crops, or rotate less "
            "(raw is kept as far around a crop as a rotated patch reaches)"
        )


# What decoding one crop will read and write


def _plan_decoding(row: Row, request: CropRequest) -> Decoding:
    """Plan what is read of a crop. Raises UserError or FileNotFoundError where it does not fit."""
    raw = open_raw(
        row.raw,
        request.input_scale,
        request.raw_range,
        request.raw_sections,
        is_stretched=request.raw_is_stretched,
    )
    label = ngff.open_levels(row.class_volume(row.annotated[0]))[0]
    check_crop(row.crop, label, raw.level, raw.finest_nm)
    check_detail(label, request.target_scale, "the target patch")
    _check_size(row, raw, request.patch_nm)

    names = _classes_to_read(row, request)
    with_ids = told_apart(row, [name for name in request.with_ids if name in names])
    factor = reduction(request.target_scale, label.scale, label.shape)
    whole = averaged_grid(label, factor)
    kept = _within_raw(whole, label, raw.level)
    lower, upper = label.box() if kept.shape == whole.shape else kept.box()
    margin = request.margins_nm[row.usage]
    kept_raw = raw_voxels(lower - margin, upper + margin, raw.grid)
    job = Decoding(
        row=row,
        names=names,
        raw=raw,
        raw_start=kept_raw.start,
        raw_grid=raw.grid.part(kept_raw),
        label_factor=factor,
        label_whole=whole,
        label_grid=kept,
        # around it EM may end, and be stored without chunks
        missing_raw=raw.level.missing_in(lower, upper),
        with_ids=with_ids,
        channels=_plan_channels(row, request, raw, (lower, upper)),
        key="",
    )
    return replace(job, key=_key_of(job))


def _within_raw(whole: Grid, label: Level, raw: Level) -> Grid:
    """Return the grid of the labels that lie in the raw.

    Those beyond have nothing to be learnt from: there raw is mirrored, and labels are not.

    whole: of all labels, reduced. label: as they are annotated.
    """
    raw_lower, raw_upper = raw.box()
    slack = slack_nm(label, raw)
    shape = np.array(whole.shape)
    first = np.ceil(whole.in_voxels(raw_lower - slack) - 1e-6).astype(int)
    last = np.floor(whole.in_voxels(raw_upper + slack) + 1e-6).astype(int)
    first = np.clip(first, 0, shape - 1)
    last = np.clip(last, first + 1, shape)
    return whole.part(Box(first, last))


def _key_of(job: Decoding) -> str:
    """Return the key of what will be decoded."""
    raw = job.raw
    start = job.raw_start
    stop = start + job.raw_grid.shape
    along_z = np.array([raw.sections, 0, 0])
    identity = [
        FORMAT,
        str(job.row.raw),
        str(job.row.crop),
        job.names,
        raw.level.path.name,
        raw.factor.tolist(),
        start.tolist(),
        job.raw_grid.shape,
        job.label_factor.tolist(),
        raw.raw_range,
        raw_stamp(raw.level, (start - along_z) * raw.factor, (stop + along_z) * raw.factor),
    ]
    # crops that were decoded without either are found as before
    if raw.sections:
        identity.append(["sections", raw.sections])
    if job.label_grid.shape != job.label_whole.shape:
        identity.append(["within raw", job.label_start.tolist(), job.label_grid.shape])
    for name in job.names:
        volume = job.row.class_volume(name)
        identity.append(stamp_of_labels(volume))
        if (volume / pseudo.ARRAY).is_dir():
            identity.append(label_stamp(volume, pseudo.ARRAY))
    if job.with_ids:
        identity.append(["ids", *job.with_ids])
    identity += [block.identity for block in job.channels]
    return key_of(identity)


def _plan_channels(
    row: Row, request: CropRequest, raw: Raw, box: Corners
) -> tuple[ChannelBlock, ...]:
    """Return the blocks of the further input channels that are kept. box: of the crop's labels."""
    lower, upper = box
    margin = request.margins_nm[row.usage]
    around = lower - margin, upper + margin
    # of all usages, so that it is predicted again once
    most = max(float(of_usage.max()) for of_usage in request.margins_nm.values())
    blocks = []
    for channel in request.input_channels:
        volume = open_channel(channel, request.folder, row.key, request.input_scale)
        volume.check_covers(around, raw.grid, where=f"crop {row.name}", margin=most)
        kept = raw_voxels(*around, volume.raw.grid)
        blocks.append(ChannelBlock(volume, kept.start, volume.raw.grid.part(kept)))
    return tuple(blocks)


def told_apart(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes among `names` whose volumes in a crop tell objects apart.

    A class that only networks labelled in the crop is left out. Raises UserError for a class that
    people annotated as a mask.
    """
    numbered = []
    for name in names:
        level = ngff.open_levels(row.class_volume(name))[0]
        if not encoding_of(level, name).is_said_to_be_mask:
            numbered.append(name)
        elif pseudo.of_networks(level) is None:
            raise UserError(
                f"{level.group}: class '{name}' is a mask by its annotation_type, without ids that "
                "tell objects apart, which derived channels are made of; leave them out, or number "
                f'its objects and write annotation_type.type = "{INSTANCE_TYPE}" into its .zattrs'
            )
    return tuple(numbered)


def _classes_to_read(row: Row, request: CropRequest) -> tuple[str, ...]:
    """Return the classes to read: those that the run learns, or all if any must be inferred."""
    infers = request.rules.use_mutual_exclusion or request.rules.infer_groups
    if infers and not set(request.classes) <= set(row.annotated):
        return row.annotated
    # those of the others that the learnt ones are told apart from where they are unknown
    wanted = {*request.classes, *request.counter_classes}
    return tuple(name for name in row.annotated if name in wanted)


def is_smaller(raw_extent: np.ndarray, patch_nm: np.ndarray) -> bool:
    """Return whether raw is too small for a patch; both (3,) nm."""
    # a patch may be 2 % larger: mirroring fills that in
    return bool((raw_extent < 0.98 * patch_nm).any())


def _check_size(row: Row, raw: Raw, patch_nm: np.ndarray) -> None:
    """Raise UserError if raw is smaller than the input patch, (3,) nm."""
    lower, upper = raw.level.box()
    extent = upper - lower
    if is_smaller(extent, patch_nm):
        raise UserError(
            f"{row.raw}: {nm(extent)} nm of raw, smaller than the input patch of "
            f"{nm(patch_nm)} nm; use a smaller input shape (the command fingerprint suggests one), "
            "or remove the crop from the datasplit"
        )


def raw_voxels(lower: np.ndarray, upper: np.ndarray, grid: Grid) -> Box:
    """Return the voxels of `grid` that are kept for a box (nm).

    They may lie outside of the volume, where raw is mirrored.
    """
    below, above = EXTRA_VOXELS
    start = np.floor((lower - grid.origin) / grid.scale).astype(int) - below
    stop = np.ceil((upper - grid.origin) / grid.scale).astype(int) + above
    return Box(start, stop)


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
