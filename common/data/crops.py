"""Crops ready for sampling: a block of raw, a palette image of the labels, and its palette.

Decoded once, kept on disk, shared by all processes. In this order: what a run asks for, what
decoding one crop will read and write, decoding raw, decoding labels, loading what was decoded.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from common.data import ngff
from common.data.crop_cache import CropCache, label_stamp, raw_stamp
from common.data.ngff import Grid, Level
from common.data.palette import UNKNOWN, complete, contradicts, encode
from common.data.raw import Raw, mirror, open_raw, reduction
from common.data.split import Row
from common.errors import FileError, UserError
from common.files import key_of
from common.talk import nm, progress

EXAMPLES = 128
"""Voxel positions kept for each palette row: a rare class is found without searching for it."""

BLOCK = 128
"""Edge (label voxels) of the blocks that are decoded at a time: a multiple of the usual chunks, so
that none is read twice, and small enough for 48 classes of a block to stay in memory."""

SLAB = 64
"""Slices of raw that are copied at a time; bounds the memory."""

EXTRA_VOXELS = (1, 2)
"""Whole voxels of raw kept beyond the margin, below and above: centres move by up to half a voxel
onto the raw's grid, and interpolation reads the next voxel."""

FORMAT = 2
"""Raised when decoded crops are written differently, so that old ones are not read."""

Item = TypeVar("Item")
Result = TypeVar("Result")


# What a run asks for


@dataclass(frozen=True)
class CropRequest:
    """What a run wants of its crops."""

    classes: tuple[str, ...]
    input_scale: Sequence[float]
    """Voxel size (nm) of the raw patch: raw is kept at the level nearest to it."""
    target_scale: Sequence[float]
    """Voxel size (nm) of the target patch: finer labels are reduced towards it."""
    patch_nm: np.ndarray
    """(3,) extent of the raw patch; a raw volume smaller than that is refused."""
    margins_nm: Mapping[str, np.ndarray]
    """For each usage of a crop how far around its labels raw is kept, see `sampling.margins_nm`."""
    raw_range: tuple[float, ...] = ()
    """Raw values that become 0 and 1; the range of the integer type if empty."""
    use_mutual_exclusion: bool = True
    infer_groups: bool = True


@dataclass(frozen=True)
class Crop:
    """A decoded crop.

    Index 0 of the label volume, and every voxel outside of it, is the row "nothing is known".
    """

    name: str
    folder: Path
    raw_grid: Grid
    label_grid: Grid
    palette: np.ndarray
    """(rows, classes) int8, 1 / 0 / -1 = unknown."""
    counts: np.ndarray
    """(rows,) int64, voxels of each row."""
    examples: np.ndarray
    """(rows, EXAMPLES, 3) int32, label voxels of each row, drawn at random."""
    contradictions: int
    """Voxels whose annotated classes cannot all hold."""

    def raw(self) -> np.ndarray:
        """Memory-mapped (z, y, x) uint8, or float32 in [0, 1]."""
        return _memory_map(str(self.folder / "raw.npy"))

    def labels(self) -> np.ndarray:
        """Memory-mapped (z, y, x) uint8 or uint16 palette rows."""
        return _memory_map(str(self.folder / "labels.npy"))

    @property
    def bytes(self) -> int:
        """Size of its two volumes."""
        return self.raw().nbytes + self.labels().nbytes


@functools.lru_cache(maxsize=512)  # bounds the files that a process holds open
def _memory_map(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def open_crops(
    rows: Sequence[Row], request: CropRequest, cache: CropCache, *, beside: Sequence[Crop] = ()
) -> list[Crop]:
    """Every crop of a split, decoded now or earlier; nothing stays in memory but palettes.

    Args:
        rows: crops of one usage; their patches stand in one batch and get one number type.
        request: what is wanted of them.
        cache: where they are or will be.
        beside: crops of the same run that were opened before and stay in the cache.

    Raises:
        UserError: with all that is wrong with any crop, or if they are larger than the cache.
        FileError: if the cache cannot be written.
    """
    jobs = _for_each(rows, lambda row: _plan_decoding(row, request), "opening crops")
    jobs = _with_one_number_type(jobs)
    _check_they_fit(jobs, cache, beside)
    missing = [job for job in jobs if not cache.holds(job.key)]
    in_use = {job.key for job in jobs} | {crop.folder.name for crop in beside}
    cache.make_room(sum(job.bytes for job in missing), in_use)
    _for_each(missing, lambda job: _decode(job, cache), "decoding crops")
    return [_load(job, request, cache) for job in jobs]


def _for_each(items: Sequence[Item], work: Callable[[Item], Result], what: str) -> list[Result]:
    """work(item) for all items on several threads, with a progress bar named `what`.

    Raises UserError with what is wrong with any of the first ten; FileError at once.
    """
    results = []
    problems = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
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
    """Annotated classes that are read."""
    raw: Raw
    raw_start: np.ndarray
    """First voxel of the block on the grid of `raw`; may lie outside of the volume."""
    raw_grid: Grid
    label_factor: np.ndarray
    """(3,) label voxels that become one."""
    label_grid: Grid
    key: str
    """Name in the cache, made of all that the result depends on."""

    @property
    def bytes(self) -> int:
        """Size of what will be written."""
        raw = int(np.prod(self.raw_grid.shape)) * self.raw.dtype.itemsize
        return raw + int(np.prod(self.label_grid.shape))


def _plan_decoding(row: Row, request: CropRequest) -> Decoding:
    names = _classes_to_read(row, request)
    raw = open_raw(row.raw, request.input_scale, request.raw_range)
    label = ngff.open_levels(row.crop / row.annotated[0])[0]
    _check_overlap(row, raw, label)
    _check_size(row, raw, request.patch_nm)

    lower, upper = label.box()
    margin = request.margins_nm[row.usage]
    start, stop = raw_voxels(lower - margin, upper + margin, raw.grid)
    raw_shape = tuple((stop - start).tolist())
    raw_grid = Grid(raw.grid.origin + start * raw.grid.scale, raw.grid.scale, raw_shape)
    factor = reduction(request.target_scale, label.scale, label.shape)
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
        raw_stamp(raw.level, start * raw.factor, stop * raw.factor),
    ]
    for name in names:
        identity.append(label_stamp(row.crop / name, label.path.name))
    return Decoding(
        row=row,
        names=names,
        raw=raw,
        raw_start=start,
        raw_grid=raw_grid,
        label_factor=factor,
        label_grid=_reduced_grid(label, factor),
        key=key_of(identity),
    )


def _classes_to_read(row: Row, request: CropRequest) -> tuple[str, ...]:
    """The annotated classes that the run learns; all, where something follows from the others."""
    reasons = request.use_mutual_exclusion or request.infer_groups
    if reasons and not set(request.classes) <= set(row.annotated):
        return row.annotated
    return tuple(name for name in row.annotated if name in request.classes)


def _check_overlap(row: Row, raw: Raw, label: Level) -> None:
    lower, upper = label.box()
    raw_lower, raw_upper = raw.level.box()
    if (lower >= raw_upper).any() or (upper <= raw_lower).any():
        raise UserError(
            f"{row.crop}: its labels (from {_place(lower)} to {_place(upper)} nm) and the raw "
            f"{row.raw} (from {_place(raw_lower)} to {_place(raw_upper)} nm) do not overlap; "
            "check translation and scale in their .zattrs"
        )


def _check_size(row: Row, raw: Raw, patch_nm: np.ndarray) -> None:
    lower, upper = raw.level.box()
    extent = upper - lower
    # a patch may be 2 % larger: mirroring fills that in
    if (extent < 0.98 * patch_nm).any():
        raise UserError(
            f"{row.raw}: {nm(extent)} nm of raw, smaller than the input patch of "
            f"{nm(patch_nm)} nm; use a smaller input shape, or remove the crop from the datasplit"
        )


def raw_voxels(lower: np.ndarray, upper: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """First voxel of `grid` that is kept for a box (nm), and the one after the last; both (3,) int.

    They may lie outside of the volume, where raw is mirrored.
    """
    below, above = EXTRA_VOXELS
    start = np.floor((lower - grid.origin) / grid.scale).astype(int) - below
    stop = np.ceil((upper - grid.origin) / grid.scale).astype(int) + above
    return start, stop


def _reduced_grid(label: Level, factor: np.ndarray) -> Grid:
    """Where label voxels are once `factor` became one; an incomplete last one is left out."""
    origin = label.translation + (factor - 1) / 2 * label.scale
    shape = tuple((label.shape // factor).tolist())
    return Grid(origin, label.scale * factor, shape)


def _with_one_number_type(jobs: list[Decoding]) -> list[Decoding]:
    """All raw as float32 if any of it is not uint8: the patches of a batch have one type."""
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
    """Copy the raw block, averaged down to the training grid; outside of the volume it is mirrored.

    Mirrored and not black: zeros would be an edge that no cell has.
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
    """Voxels first..last of the volume as a new file. Raises UserError if all of them are 0."""
    block = _new_volume(path, job.raw.dtype, last - first)
    brightest = 0.0
    for z in range(0, len(block), SLAB):
        start = np.array([first[0] + z, first[1], first[2]])
        stop = np.array([min(start[0] + SLAB, last[0]), last[1], last[2]])
        slab = job.raw.read(start, stop)
        brightest = max(brightest, float(slab.max()))
        block[z : z + SLAB] = slab
    if brightest == 0:
        # a chunk that is not there reads as 0; real EM is never 0 all around a crop
        raise UserError(
            f"{job.raw.level.path}: 0 everywhere around {job.row.name}; "
            "fetch its EM chunks, or remove the crop from the datasplit"
        )
    block.flush()
    return block


def _new_volume(path: Path, dtype: np.dtype, shape: Sequence[int] | np.ndarray) -> np.memmap:
    """A memory map whose space on disk is taken."""
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
    """(n, 3), up to EXAMPLES of them, in voxels of the crop."""


def _decode_labels(job: Decoding, folder: Path) -> None:
    """Make the palette image of a crop, block by block: ids become positive."""
    levels = [_matching_level(job, name) for name in job.names]
    index = np.zeros(job.label_grid.shape, np.uint16)
    row_of: dict[bytes, int] = {}  # for each combination of labels its palette row
    parts: list[RowPart] = []
    for start, stop in _blocks(job):
        masks = [_read_mask(level, start, stop, job.label_factor) for level in levels]
        block, combinations = encode(masks)
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

    palette = np.full((len(row_of) + 1, len(job.names)), UNKNOWN, np.int8)
    for combination, row in row_of.items():
        palette[row] = np.frombuffer(combination, bool)
    counts, examples = _merge(parts, len(palette))
    np.save(folder / "labels.npy", index.astype(np.uint8) if len(palette) <= 256 else index)
    np.savez(folder / "palette.npz", palette=palette, counts=counts, examples=examples)


def _blocks(job: Decoding) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """First and last voxel of the blocks that cover the reduced labels."""
    shape = np.array(job.label_grid.shape)
    edge = np.maximum(1, BLOCK // job.label_factor)
    for number in np.ndindex(*(-(-shape // edge))):
        start = number * edge
        yield start, np.minimum(start + edge, shape)


def _matching_level(job: Decoding, name: str) -> Level:
    """The finest level of a class. Raises UserError if it is not on the voxels of the first."""
    level = ngff.open_levels(job.row.crop / name)[0]
    grid = _reduced_grid(level, job.label_factor)
    tolerance = 0.05 * float(job.label_grid.scale.min())
    fits = (
        np.allclose(grid.origin, job.label_grid.origin, atol=tolerance)
        and grid.shape == job.label_grid.shape
        and np.allclose(grid.scale, job.label_grid.scale, rtol=1e-3)
    )
    if not fits:
        raise UserError(
            f"{job.row.crop / name}: shape {level.shape.tolist()}, voxel size {nm(level.scale)} nm "
            f"and translation {_place(level.translation)} nm are not those of "
            f"'{job.row.annotated[0]}'; the classes of a crop share one grid"
        )
    return level


def _read_mask(level: Level, start: np.ndarray, stop: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Bool (z, y, x), where a class is: reduced voxels start..stop."""
    return _majority(level.read(start * factor, stop * factor) != 0, factor)


def _majority(mask: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """A bool volume reduced by blocks of `factor`: True where more than half of a block is.

    As in the challenge's own resampling.
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
    """The voxels of each row of a block, positions relative to it; the choice has a fixed seed."""
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
    """Counts (rows,) and positions (rows, EXAMPLES, 3): a block gives its share of each row."""
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
    """A decoded crop, with what its annotation implies for the classes of this run."""
    folder = cache.path(job.key)
    os.utime(folder)  # used now: `make_room` removes the least recently used
    with np.load(folder / "palette.npz") as file:
        annotated = file["palette"]
        counts = file["counts"]
        examples = file["examples"]

    # annotated classes that are not learnt take part in the reasoning, and are dropped after it
    names = [*job.names, *(name for name in request.classes if name not in job.names)]
    palette = np.full((len(annotated), len(names)), UNKNOWN, np.int8)
    palette[:, : len(job.names)] = annotated
    contradictions = int(counts[contradicts(palette, names)].sum())
    palette = complete(palette, names, request.use_mutual_exclusion, request.infer_groups)
    return Crop(
        name=job.row.name,
        folder=folder,
        raw_grid=job.raw_grid,
        label_grid=job.label_grid,
        palette=palette[:, [names.index(name) for name in request.classes]],
        counts=counts,
        examples=examples,
        contradictions=contradictions,
    )


def _place(position: np.ndarray) -> str:
    """A position along z, y, x."""
    return ", ".join(f"{value:g}" for value in position)
