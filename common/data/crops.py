"""Decode crops for sampling: a block of raw, a palette image of the labels, and its palette.

A crop is decoded once, kept in the cache on disk, and opened as memory maps by all processes. The
module has five parts: what a run asks for, what decoding a crop will read and write, decoding raw,
decoding labels, and loading a decoded crop.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from common.classes import Declared
from common.data import ngff, pseudo
from common.data.annotation import INSTANCE_TYPE, LabelReader, encoding_of
from common.data.box import boxes
from common.data.crop_cache import CropCache, label_stamp, raw_stamp
from common.data.ids import IdWriter, ids_file, reduced
from common.data.level import Grid, Level, MissingChunks
from common.data.palette import UNKNOWN, contradicts, encode
from common.data.placement import check_crop, check_detail
from common.data.raw import Raw, mirror, open_raw, reduction
from common.data.sources.excerpt import is_link
from common.data.sources.place import is_address
from common.data.split import Row
from common.errors import FileError, UserError
from common.files import key_of
from common.talk import nm, progress

EXAMPLES = 128
"""Voxel positions kept for each palette row: a rare class can be sampled without a search."""

BLOCK = 128
"""Edge, in label voxels, of the blocks in which labels are decoded.

A multiple of the usual chunk sizes, so that no chunk is read twice, and small enough for the masks
of 48 classes to fit into memory.
"""

SLAB = 64
"""Slices of raw that are copied at a time; this bounds the memory."""

EXTRA_VOXELS = (1, 2)
"""Whole voxels of raw kept beyond the margin, below and above.

The centre of a patch moves by up to half a voxel onto the grid of the raw, and interpolation reads
the next voxel.
"""

FORMAT = 4
"""Version of the decoded files. It is part of the key of a crop: a new version decodes anew."""

ALL_THERE = MissingChunks(0, 0)

Item = TypeVar("Item")
Result = TypeVar("Result")


# What a run asks for


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
    use_mutual_exclusion: bool = True
    infer_groups: bool = True
    with_ids: tuple[str, ...] = ()
    """Classes whose objects are to be told apart."""
    exclusive_classes: tuple[str, ...] = ()
    counter_classes: tuple[str, ...] = ()
    class_relations: Declared = field(default_factory=dict)
    """What is said of classes outside the table, see `common.classes.relate`."""

    @property
    def rules(self) -> pseudo.Rules:
        """What labels imply for others."""
        return pseudo.Rules(
            self.use_mutual_exclusion,
            self.infer_groups,
            self.exclusive_classes,
            self.class_relations,
        )


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
    """Those of them whose only id is 1."""

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
    def bytes(self) -> int:
        """Size of raw, labels and ids in bytes."""
        of_ids = sum(self.ids(name).nbytes for name in self.with_ids)
        return self.raw().nbytes + self.labels().nbytes + of_ids


@functools.lru_cache(maxsize=512)  # bounds the files that a process holds open
def _memory_map(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


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
    _for_each(missing, lambda job: _decode(job, cache), "decoding crops", given_up)
    return [_load(job, request, cache) for job in jobs]


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
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield pool
    except BaseException:
        given_up.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


class _GivenUp(Exception):
    """Ends a thread whose result nobody waits for."""


def _check_they_fit(jobs: Sequence[Decoding], cache: CropCache, beside: Sequence[Crop]) -> None:
    needed = sum(job.bytes for job in jobs) + sum(crop.bytes for crop in beside)
    if needed / 1e9 > cache.gigabytes:
        raise UserError(
            f"the decoded crops need {needed / 1e9:.1f} GB and cache_gb is {cache.gigabytes:g}; "
            "raise cache_gb, take fewer crops, or rotate less "
            "(raw is kept as far around a crop as a rotated patch reaches)"
        )


# What decoding one crop will read and write


@dataclass(frozen=True)
class Decoding:
    """What decoding one crop will read and write."""

    row: Row
    names: tuple[str, ...]
    """Annotated classes whose labels are read."""
    raw: Raw
    raw_start: np.ndarray
    """(3,) first voxel of the block in the voxels of `raw`; may lie outside of the volume."""
    raw_grid: Grid
    """The raw to be written."""
    label_factor: np.ndarray
    """(3,) number of annotated voxels along each axis that are reduced to one."""
    label_grid: Grid
    """The labels to be written."""
    missing_raw: MissingChunks
    """Chunks of raw where the labels are, and how many of them are not there."""
    with_ids: tuple[str, ...]
    """Those of `names` whose objects are told apart."""
    key: str
    """Folder name in the cache: a hash of everything that the result depends on."""
    given_up: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when nobody waits for the result any more."""

    def check_wanted(self) -> None:
        """Raise _GivenUp if nobody waits for the result any more; asked before each long step."""
        if self.given_up.is_set():
            raise _GivenUp

    @property
    def bytes(self) -> int:
        """Bytes that will be written, if labels take one byte per voxel, and ids one per class."""
        raw = int(np.prod(self.raw_grid.shape)) * self.raw.dtype.itemsize
        return raw + int(np.prod(self.label_grid.shape)) * (1 + len(self.with_ids))


def _plan_decoding(row: Row, request: CropRequest) -> Decoding:
    names = _classes_to_read(row, request)
    raw = open_raw(row.raw, request.input_scale, request.raw_range, request.raw_sections)
    label = ngff.open_levels(row.class_volume(row.annotated[0]))[0]
    check_crop(row.crop, label, raw.level, raw.finest_nm)
    check_detail(label, request.target_scale, "the target patch")
    _check_size(row, raw, request.patch_nm)

    lower, upper = label.box()
    margin = request.margins_nm[row.usage]
    start, stop = raw_voxels(lower - margin, upper + margin, raw.grid)
    raw_shape = tuple((stop - start).tolist())
    raw_grid = Grid(raw.grid.origin + start * raw.grid.scale, raw.grid.scale, raw_shape)
    factor = reduction(request.target_scale, label.scale, label.shape)
    along_z = np.array([raw.sections, 0, 0])
    identity = [
        FORMAT,
        str(row.raw),
        str(row.crop),
        names,
        raw.level.path.name,
        raw.factor.tolist(),
        start.tolist(),
        raw_grid.shape,
        factor.tolist(),
        raw.raw_range,
        raw_stamp(raw.level, (start - along_z) * raw.factor, (stop + along_z) * raw.factor),
    ]
    if raw.sections:  # crops that were decoded without are found as before
        identity.append(["sections", raw.sections])
    for name in names:
        volume = row.class_volume(name)
        identity.append(stamp_of_labels(volume, label))
        if (volume / pseudo.ARRAY).is_dir():
            identity.append(label_stamp(volume, pseudo.ARRAY))
    with_ids = tuple(name for name in request.with_ids if name in names)
    if with_ids:
        _refuse_masks(row, with_ids)
        identity.append(["ids", *with_ids])
    return Decoding(
        row=row,
        names=names,
        raw=raw,
        raw_start=start,
        raw_grid=raw_grid,
        label_factor=factor,
        label_grid=_reduced_grid(label, factor),
        missing_raw=_missing_raw(raw.level, lower, upper),
        with_ids=with_ids,
        key=key_of(identity),
    )


def _refuse_masks(row: Row, names: Sequence[str]) -> None:
    """Raise UserError for classes whose metadata say that they have no ids."""
    for name in names:
        level = ngff.open_levels(row.class_volume(name))[0]
        if encoding_of(level, name).is_said_to_be_mask:
            raise UserError(
                f"{level.group}: class '{name}' is a mask by its annotation_type, without ids that "
                "tell objects apart, which derived channels are made of; leave them out, or number "
                f'its objects and write annotation_type.type = "{INSTANCE_TYPE}" into its .zattrs'
            )


def stamp_of_labels(volume: Path, first: Level) -> str:
    """What changes with a class volume; of one on a server its metadata, which are asked for."""
    if is_address(volume):
        return str(ngff.open_levels(volume)[0].stamp)
    if is_link(volume):
        linked = ngff.open_levels(volume)[0]
        return raw_stamp(linked, np.zeros(3, int), linked.shape)
    return label_stamp(volume, first.path.name)


def _missing_raw(level: Level, lower: np.ndarray, upper: np.ndarray) -> MissingChunks:
    """Missing chunks of raw in a box (nm). Around it EM may end, and be stored without chunks."""
    start = np.rint((lower - level.translation) / level.scale + 0.5).astype(int)
    stop = np.rint((upper - level.translation) / level.scale + 0.5).astype(int)
    return level.missing_chunks(np.maximum(start, 0), np.minimum(stop, level.shape))


def _classes_to_read(row: Row, request: CropRequest) -> tuple[str, ...]:
    """Return the classes to read: those that the run learns, or all if any must be inferred."""
    reasons = request.use_mutual_exclusion or request.infer_groups
    if reasons and not set(request.classes) <= set(row.annotated):
        return row.annotated
    # those of the others that the learnt ones are told apart from where they are unknown
    wanted = {*request.classes, *request.counter_classes}
    return tuple(name for name in row.annotated if name in wanted)


def is_smaller(raw_extent: np.ndarray, patch_nm: np.ndarray) -> bool:
    """Whether raw is too small for a patch; both (3,) nm."""
    # a patch may be 2 % larger: mirroring fills that in
    return bool((raw_extent < 0.98 * patch_nm).any())


def _check_size(row: Row, raw: Raw, patch_nm: np.ndarray) -> None:
    lower, upper = raw.level.box()
    extent = upper - lower
    if is_smaller(extent, patch_nm):
        raise UserError(
            f"{row.raw}: {nm(extent)} nm of raw, smaller than the input patch of "
            f"{nm(patch_nm)} nm; use a smaller input shape (the command fingerprint suggests one), "
            "or remove the crop from the datasplit"
        )


def raw_voxels(lower: np.ndarray, upper: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the first voxel of `grid` kept for a box (nm), and the last + 1; both (3,) int.

    They may lie outside of the volume, where raw is mirrored.
    """
    below, above = EXTRA_VOXELS
    start = np.floor((lower - grid.origin) / grid.scale).astype(int) - below
    stop = np.ceil((upper - grid.origin) / grid.scale).astype(int) + above
    return start, stop


def _reduced_grid(label: Level, factor: np.ndarray) -> Grid:
    """Return the grid of labels reduced by `factor`; an incomplete last voxel is left out."""
    origin = label.translation + (factor - 1) / 2 * label.scale
    shape = tuple((label.shape // factor).tolist())
    return Grid(origin, label.scale * factor, shape)


def _with_one_number_type(jobs: list[Decoding]) -> list[Decoding]:
    """Return the jobs, all with float32 raw if any is not uint8: a batch has one number type."""
    if all(job.raw.dtype == np.uint8 for job in jobs):
        return jobs
    as_float = []
    for job in jobs:
        raw = replace(job.raw, dtype=np.dtype(np.float32))
        as_float.append(replace(job, raw=raw, key=job.key + "f"))
    return as_float


def _decode(job: Decoding, cache: CropCache) -> None:
    """Write raw.npy, labels.npy and palette.npz of a crop into the cache, whole or not at all."""
    with cache.writing(job.key) as folder:
        _decode_raw(job, folder)
        _decode_labels(job, folder)


# Decoding raw


def _decode_raw(job: Decoding, folder: Path) -> None:
    """Write the raw block, averaged down to the training grid and mirrored outside of the volume.

    Zeros outside of the volume would look like an edge, which no cell has.
    """
    start = job.raw_start
    stop = start + job.raw_grid.shape
    first = np.clip(start, 0, job.raw.grid.shape)
    last = np.clip(stop, 0, job.raw.grid.shape)
    if (first == start).all() and (last == stop).all():
        _copy_raw(job, first, last, folder / "raw.npy")
        return
    inside = _copy_raw(job, first, last, folder / "inside.npy")
    axes = []
    for axis, n in enumerate(inside.shape):
        voxels = np.arange(start[axis] - first[axis], stop[axis] - first[axis])
        axes.append(mirror(voxels, n))
    block = _new_volume(folder / "raw.npy", job.raw.dtype, job.raw_grid.shape)
    for z in range(0, len(block), SLAB):
        block[z : z + SLAB] = inside[np.ix_(axes[0][z : z + SLAB], axes[1], axes[2])]
    block.flush()
    (folder / "inside.npy").unlink()


def _copy_raw(job: Decoding, first: np.ndarray, last: np.ndarray, path: Path) -> np.memmap:
    """Copy voxels first..last-1 of the volume to a new file. Raises UserError if all are black."""
    block = _new_volume(path, job.raw.dtype, last - first)
    darkest = np.inf
    brightest = -np.inf
    for z in range(0, len(block), SLAB):
        start = np.array([first[0] + z, first[1], first[2]])
        stop = np.array([min(start[0] + SLAB, last[0]), last[1], last[2]])
        job.check_wanted()
        slab = job.raw.read(start, stop)
        darkest = min(darkest, float(slab.min()))
        brightest = max(brightest, float(slab.max()))
        block[z : z + SLAB] = slab
    job.raw.check_values(darkest, brightest, f"around {job.row.name}")
    block.flush()
    return block


def _new_volume(path: Path, dtype: np.dtype, shape: Sequence[int] | np.ndarray) -> np.memmap:
    """Return a new writable memory map whose space on disk is already allocated."""
    size = tuple(int(n) for n in shape)
    volume = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=size)
    if hasattr(os, "posix_fallocate"):
        # otherwise writing to the map on a full disk ends the process by a signal, without a word
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return volume


# Decoding labels


class RowPart(NamedTuple):
    """The voxels of one palette row in one block."""

    row: int
    voxels: int
    positions: np.ndarray
    """(n, 3) with n <= EXAMPLES: indices z, y, x of some of these voxels."""


def _decode_labels(job: Decoding, folder: Path) -> None:
    """Write the palette image of a crop, block by block.

    Any label is positive that is neither absent nor unknown, see `common.data.annotation`.
    """
    readers = [LabelReader(_matching_level(job, name), name) for name in job.names]
    writers = {name: IdWriter(job.label_grid.shape, name) for name in job.with_ids}
    index = np.zeros(job.label_grid.shape, np.uint16)
    row_of: dict[bytes, int] = {}  # for each combination of labels its palette row
    parts: list[RowPart] = []
    for start, stop in _blocks(job):
        labels = []
        for reader in readers:
            job.check_wanted()
            writer = writers.get(reader.name)
            labels.append(_read_labels(reader, start, stop, job.label_factor, writer=writer))
        block, combinations = encode_known(labels)
        for combination in combinations:
            row_of.setdefault(combination.tobytes(), len(row_of) + 1)  # 0 is "nothing is known"
        if len(row_of) >= 2**16:
            raise UserError(
                f"{job.row.crop}: more than {2**16 - 1} label combinations; "
                "its class volumes do not look like labels"
            )
        palette_rows = np.array([row_of[combination.tobytes()] for combination in combinations])
        index[ngff.slices(start, stop)] = palette_rows[block]
        for part in _examples(block, len(combinations)):
            row = int(palette_rows[part.row])
            parts.append(RowPart(row, part.voxels, part.positions + start))

    for reader in readers:
        reader.check_whole()
    for writer in writers.values():
        writer.finish(folder, job.row.name)
    palette = np.full((len(row_of) + 1, len(job.names)), UNKNOWN, np.int8)
    for combination, row in row_of.items():
        palette[row] = np.frombuffer(combination, np.int8)
    counts, examples = _merge(parts, len(palette))
    np.save(folder / "labels.npy", index.astype(np.uint8) if len(palette) <= 256 else index)
    np.savez(
        folder / "palette.npz",
        palette=palette,
        counts=counts,
        examples=examples,
        remarks=_remarks(readers),
        like_masks=np.array([name for name in writers if writers[name].is_like_mask], str),
    )


def _remarks(readers: Sequence[LabelReader]) -> np.ndarray:
    """(n, 2) text: class and sentence."""
    remarks = []
    for reader in readers:
        remarks += [(reader.name, remark) for remark in reader.remarks()]
    return np.array(remarks, str).reshape(-1, 2)


def _blocks(job: Decoding) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over the blocks that cover the reduced labels: first voxel, and last + 1."""
    edge = np.maximum(1, BLOCK // job.label_factor)
    return boxes(job.label_grid.shape, edge)


def _matching_level(job: Decoding, name: str) -> Level:
    """Return the finest level of a class.

    Raises UserError if its grid differs from that of the crop's first annotated class.
    """
    level = ngff.open_levels(job.row.class_volume(name))[0]
    grid = _reduced_grid(level, job.label_factor)
    tolerance = 0.05 * float(job.label_grid.scale.min())
    fits = (
        np.allclose(grid.origin, job.label_grid.origin, atol=tolerance)
        and grid.shape == job.label_grid.shape
        and np.allclose(grid.scale, job.label_grid.scale, rtol=1e-3)
    )
    if not fits:
        raise UserError(
            f"{level.group}: shape {level.shape.tolist()}, voxel size {nm(level.scale)} nm "
            f"and translation {_place(level.translation)} nm are not those of "
            f"'{job.row.annotated[0]}'; the classes of a crop share one grid"
        )
    return level


class Labels(NamedTuple):
    """What is known of a class in a block, bool (z, y, x) each."""

    positive: np.ndarray
    unknown: np.ndarray | None = None
    """None: nowhere."""
    pseudo: np.ndarray | None = None
    """Where the label is a network's; None: nowhere."""


def _read_labels(
    reader: LabelReader,
    start: np.ndarray,
    stop: np.ndarray,
    factor: np.ndarray,
    *,
    writer: IdWriter | None = None,
) -> Labels:
    """Reduced voxels start..stop of a class, whose objects `writer` gets.

    A reduced voxel is unknown where its unknown voxels decide which side has the majority.
    """
    first = start * factor
    last = stop * factor
    if writer is None:
        positive, unknown = reader.read(first, last)
    else:
        ids, positive, unknown = reader.read_ids(first, last)
    labels = _reduced_labels(reader, first, (positive, unknown), factor)
    if writer is not None:
        # networks that complete an annotation number no objects
        not_numbered = [part for part in labels[1:] if part is not None]
        nowhere = np.zeros(labels.positive.shape, bool)
        without = functools.reduce(np.logical_or, not_numbered, nowhere)
        writer.write(start, reduced(ids, positive, factor), labels.positive & ~without, without)
    return labels


def _reduced_labels(
    reader: LabelReader,
    first: np.ndarray,
    values: tuple[np.ndarray, np.ndarray | None],
    factor: np.ndarray,
) -> Labels:
    """The labels of a class from voxel `first` on, reduced. values: as of `LabelReader.read`."""
    positive, unknown = values
    last = first + positive.shape
    certain = _majority(positive, factor)
    of_networks = pseudo.of_networks(reader.level)
    by_networks = None
    if of_networks is not None:
        by_networks = _majority(of_networks[ngff.slices(first, last)] > 0, factor)
    if unknown is None:
        return Labels(certain, None, by_networks)
    possible = _majority(positive | unknown, factor)
    return Labels(certain, possible & ~certain, by_networks)


def encode_known(labels: Sequence[Labels]) -> tuple[np.ndarray, np.ndarray]:
    """Palette image of several classes: indices, and combinations (rows, classes) int8.

    To the label of a network `pseudo.IN_PALETTE` is added.
    """
    # the classes that are not known everywhere, and those that networks know in part
    in_part = [number for number, of_class in enumerate(labels) if of_class.unknown is not None]
    by_networks = [number for number, of_class in enumerate(labels) if of_class.pseudo is not None]
    masks = [of_class.positive for of_class in labels]
    masks += [labels[number].unknown for number in in_part]  # type: ignore[misc]
    masks += [labels[number].pseudo for number in by_networks]  # type: ignore[misc]
    index, bits = encode(masks)
    first = len(labels) + len(in_part)
    combinations = bits[:, : len(labels)].astype(np.int8)
    combinations[:, by_networks] += pseudo.IN_PALETTE * bits[:, first:].astype(np.int8)
    of_those = combinations[:, in_part]
    combinations[:, in_part] = np.where(bits[:, len(labels) : first], UNKNOWN, of_those)
    return index, combinations


def _majority(mask: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Reduce a bool volume by blocks of `factor` voxels: True where more than half of a block is.

    The challenge's own resampling uses the same rule.
    """
    if (factor == 1).all():
        return mask
    if not mask.any():  # most classes are absent from most blocks
        return np.zeros(np.array(mask.shape) // factor, bool)
    count = mask
    for axis, step in enumerate(factor.tolist()):
        count = ngff.sum_along(count, axis, step, np.uint32)
    return count * 2 > factor.prod()


def _examples(index: np.ndarray, rows: int) -> Iterator[RowPart]:
    """Count the voxels of each row in a block, and choose some positions with a fixed seed.

    Positions are relative to the block.
    """
    random = np.random.default_rng(0)
    by_row = np.argsort(index.ravel().astype(np.uint16), kind="stable")
    counts = np.bincount(index.ravel(), minlength=rows)
    end = 0
    for row, count in enumerate(counts.tolist()):
        start = end
        end = start + count
        if count > EXAMPLES:
            chosen = by_row[random.integers(start, end, EXAMPLES)]
        else:
            chosen = by_row[start:end]
        yield RowPart(row, count, np.stack(np.unravel_index(chosen, index.shape), axis=1))


def _merge(parts: Sequence[RowPart], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge the parts of all blocks into counts (rows,) and positions (rows, EXAMPLES, 3).

    A block contributes positions in proportion to its voxels of the row.
    """
    random = np.random.default_rng(0)
    counts = np.zeros(rows, np.int64)
    examples = np.zeros((rows, EXAMPLES, 3), np.int32)
    parts_of: dict[int, list[RowPart]] = {}
    for part in parts:
        parts_of.setdefault(part.row, []).append(part)
    for row, blocks in parts_of.items():
        sizes = np.array([part.voxels for part in blocks])
        counts[row] = sizes.sum()
        chosen = random.choice(len(blocks), EXAMPLES, p=sizes / sizes.sum())
        for i, block in enumerate(chosen):
            positions = blocks[block].positions
            examples[row, i] = positions[random.integers(len(positions))]
    return counts, examples


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

    # annotated classes that are not learnt take part in the reasoning, and are dropped after it
    names = [*job.names, *(name for name in request.classes if name not in job.names)]
    palette = np.full((len(annotated), len(names)), UNKNOWN, np.int8)
    palette[:, : len(job.names)] = annotated
    by_networks = palette >= pseudo.IN_PALETTE
    palette[by_networks] -= pseudo.IN_PALETTE
    rules = request.rules
    contradictions = int(counts[contradicts(palette, names, rules.declared)].sum())
    known = rules.complete(palette, names)
    learnt = [names.index(name) for name in request.classes]
    of_networks = None
    if by_networks.any():
        without = rules.complete(np.where(by_networks, UNKNOWN, palette).astype(np.int8), names)
        of_networks = ((known != UNKNOWN) & (without == UNKNOWN))[:, learnt]
    return Crop(
        name=job.row.name,
        folder=folder,
        raw_grid=job.raw_grid,
        label_grid=job.label_grid,
        palette=known[:, learnt],
        counts=counts,
        examples=examples,
        contradictions=contradictions,
        remarks=remarks,
        missing_raw=job.missing_raw,
        pseudo=of_networks,
        with_ids=job.with_ids,
        like_masks=like_masks,
    )


def _place(position: np.ndarray) -> str:
    """Return a position as text: z, y, x."""
    return ", ".join(f"{value:g}" for value in position)
