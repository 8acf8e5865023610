"""Decode a crop into the cache: its raw, a palette image of its labels, and its palette.

`Decoding` says what is read and written; `common.data.crops` plans it, and opens what was decoded.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data import ngff, pseudo
from common.data.annotation import LabelReader
from common.data.crop_cache import CropCache
from common.data.ids import IdWriter, reduced
from common.data.level import Grid, Level, MissingChunks
from common.data.palette import UNKNOWN, encode
from common.data.raw import Raw, mirror
from common.data.split import Row
from common.errors import UserError
from common.talk import nm

EXAMPLES = 128
"""Voxel positions kept for each palette row: a rare class can be sampled without a search."""

BLOCK = 128
"""Edge, in label voxels, of the blocks in which labels are decoded.

A multiple of the usual chunk sizes, so that no chunk is read twice, and small enough for the masks
of 48 classes to fit into memory.
"""

SLAB = 64
"""Slices of raw that are copied at a time; this bounds the memory."""


class GivenUp(Exception):
    """Ends a thread whose result nobody waits for."""


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
        """Raise GivenUp if nobody waits for the result any more; asked before each long step."""
        if self.given_up.is_set():
            raise GivenUp

    @property
    def bytes(self) -> int:
        """Bytes that will be written, if labels take one byte per voxel, and ids one per class."""
        raw = int(np.prod(self.raw_grid.shape)) * self.raw.dtype.itemsize
        return raw + int(np.prod(self.label_grid.shape)) * (1 + len(self.with_ids))


def reduced_grid(label: Level, factor: np.ndarray) -> Grid:
    """Return the grid of labels reduced by `factor`; an incomplete last voxel is left out."""
    origin = label.translation + (factor - 1) / 2 * label.scale
    shape = tuple((label.shape // factor).tolist())
    return Grid(origin, label.scale * factor, shape)


def decode(job: Decoding, cache: CropCache) -> None:
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
    shape = np.array(job.label_grid.shape)
    edge = np.maximum(1, BLOCK // job.label_factor)
    for number in np.ndindex(*(-(-shape // edge))):
        start = number * edge
        yield start, np.minimum(start + edge, shape)


def _matching_level(job: Decoding, name: str) -> Level:
    """Return the finest level of a class.

    Raises UserError if its grid differs from that of the crop's first annotated class.
    """
    level = ngff.open_levels(job.row.class_volume(name))[0]
    grid = reduced_grid(level, job.label_factor)
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


def _place(position: np.ndarray) -> str:
    """Return a position as text: z, y, x."""
    return ", ".join(f"{value:g}" for value in position)
