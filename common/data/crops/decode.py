"""Decode one crop into the cache: its raw, a palette image of its labels, and its palette.

A `Decoding` says what is read and what is written. Both volumes are decoded in parts, so that the
memory does not grow with the crop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.crops import pseudo
from common.data.crops.cache import CropCache
from common.data.crops.ids import IdWriter, reduced
from common.data.crops.palette import UNKNOWN, encode
from common.data.crops.plan import ChannelBlock, Decoding
from common.data.volumes import ngff
from common.data.volumes.box import boxes, slices
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Level
from common.data.volumes.placement import are_same_voxels, check_directions
from common.data.volumes.raw import averaged_grid
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


def decode(job: Decoding, cache: CropCache) -> None:
    """Write raw.npy, labels.npy and palette.npz of a crop into the cache, whole or not at all."""
    with cache.writing(job.key) as folder:
        _decode_raw(job, folder)
        for block in job.channels:
            _decode_channel(job, block, folder / block.file)
        _decode_labels(job, folder)


# Raw


def _decode_raw(job: Decoding, folder: Path) -> None:
    """Write the raw block, averaged down to the training grid and mirrored outside of the volume.

    Zeros outside of the volume would look like an edge, which no cell has. Raises UserError if all
    of the block is black.
    """
    raw = job.raw
    block = _new_volume(folder / "raw.npy", raw.dtype, job.raw_grid.shape)
    darkest = np.inf
    brightest = -np.inf
    cut_off = 0
    inside_voxels = 0
    for start, stop in boxes(block.shape, (SLAB, *block.shape[1:])):
        job.check_wanted()
        first = job.raw_start + start
        slab = raw.read_mirrored(first, job.raw_start + stop)
        block[slices(start, stop)] = slab
        darkest = min(darkest, float(slab.min()))
        brightest = max(brightest, float(slab.max()))
        # of what is mirrored nothing counts twice
        begin = np.maximum(-first, 0)
        end = np.clip(raw.grid.shape - first, begin, slab.shape)
        inside = slab[slices(begin, end)]
        cut_off += raw.cut_off(inside)
        inside_voxels += inside.size
    where = f"around {job.row.name}"
    raw.check_values(darkest, brightest, where, cut_off=cut_off / inside_voxels)
    block.flush()


def _decode_channel(job: Decoding, block: ChannelBlock, path: Path) -> None:
    """Write the block of a further input channel."""
    voxels = _new_volume(path, block.volume.raw.dtype, block.grid.shape)
    for start, stop in boxes(voxels.shape, (SLAB, *voxels.shape[1:])):
        job.check_wanted()
        around = block.volume.read_around(block.start + start, block.start + stop)
        voxels[slices(start, stop)] = around
    voxels.flush()


def _new_volume(path: Path, dtype: np.dtype, shape: Sequence[int] | np.ndarray) -> np.memmap:
    """Return a new writable memory map whose space on disk is already allocated."""
    size = tuple(int(n) for n in shape)
    volume = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=size)
    if hasattr(os, "posix_fallocate"):
        # otherwise writing to the map on a full disk ends the process by a signal, without a word
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return volume


# Labels: what is read


def _decode_labels(job: Decoding, folder: Path) -> None:
    """Write the palette image of a crop, its palette, and the ids of objects, block by block.

    Any label is positive that is neither absent nor unknown, see
    `common.data.volumes.label_reader`.
    """
    readers = [LabelReader(_matching_level(job, name), name) for name in job.names]
    writers = {name: IdWriter(job.label_grid.shape, name) for name in job.with_ids}
    image = PaletteImage(job.label_grid.shape, job.row.crop)
    edge = np.maximum(1, BLOCK // job.label_factor)
    for start, stop in boxes(job.label_grid.shape, edge):
        labels = []
        for reader in readers:
            job.check_wanted()
            writer = writers.get(reader.name)
            labels.append(_read_labels(job, reader, start, stop, writer=writer))
        image.write(start, *encode_known(labels))

    for reader in readers:
        reader.check_whole()
    for writer in writers.values():
        writer.finish(folder, job.row.name)
    counts, examples = image.counts_and_examples()
    np.save(folder / "labels.npy", image.volume())
    np.savez(
        folder / "palette.npz",
        palette=image.palette(len(job.names)),
        counts=counts,
        examples=examples,
        remarks=_remarks(readers),
        like_masks=np.array([name for name in writers if writers[name].is_like_mask], str),
    )


def _remarks(readers: Sequence[LabelReader]) -> np.ndarray:
    """Return (n, 2) text: class and sentence."""
    remarks = []
    for reader in readers:
        remarks += [(reader.name, remark) for remark in reader.remarks()]
    return np.array(remarks, str).reshape(-1, 2)


def _matching_level(job: Decoding, name: str) -> Level:
    """Return the finest level of a class.

    Raises UserError if its grid differs from that of the crop's first annotated class, or if it
    lies mirrored in the raw.
    """
    level = ngff.open_levels(job.row.class_volume(name))[0]
    if not are_same_voxels(averaged_grid(level, job.label_factor), job.label_whole):
        place = ", ".join(f"{position:g}" for position in level.translation)
        raise UserError(
            f"{level.group}: shape {level.shape.tolist()}, voxel size {nm(level.scale)} nm "
            f"and translation {place} nm are not those of "
            f"'{job.row.annotated[0]}'; the classes of a crop share one grid"
        )
    check_directions(level, job.raw.level)
    return level


class BlockLabels(NamedTuple):
    """What is known of a class in a block, bool (z, y, x) each."""

    positive: np.ndarray
    unknown: np.ndarray | None = None
    """None: nowhere."""
    pseudo: np.ndarray | None = None
    """Where the label is a network's; None: nowhere."""


def _read_labels(
    job: Decoding,
    reader: LabelReader,
    start: np.ndarray,
    stop: np.ndarray,
    *,
    writer: IdWriter | None,
) -> BlockLabels:
    """Return the labels of a class in the reduced voxels start..stop-1; `writer` gets its ids."""
    factor = job.label_factor
    first = (job.label_start + start) * factor
    last = (job.label_start + stop) * factor
    if writer is None:
        return _reduced_labels(reader, first, reader.read(first, last), factor)
    ids, positive, unknown = reader.read_ids(first, last)
    labels = _reduced_labels(reader, first, (positive, unknown), factor)
    objects = reduced(ids, positive, factor)
    not_numbered = np.zeros(labels.positive.shape, bool)
    if labels.unknown is not None:
        not_numbered |= labels.unknown
    if labels.pseudo is not None:
        # networks number no objects, and what follows from other classes says nothing of them
        not_numbered |= labels.pseudo | (objects == pseudo.WITHOUT_ID)
    is_object = labels.positive & ~not_numbered
    writer.write(start, objects, is_object, not_numbered)
    return labels


def _reduced_labels(
    reader: LabelReader,
    first: np.ndarray,
    values: tuple[np.ndarray, np.ndarray | None],
    factor: np.ndarray,
) -> BlockLabels:
    """Reduce the labels of a class by blocks of `factor` voxels.

    A reduced voxel is unknown where its unknown voxels decide which side has the majority.

    Args:
        reader: of the class.
        first: (3,) first annotated voxel of `values`.
        values: what `LabelReader.read` gives, bool (z, y, x): positive, and unknown or None.
        factor: (3,) annotated voxels along each axis that become one.
    """
    positive, unknown = values
    last = first + positive.shape
    certain = _majority(positive, factor)
    of_networks = pseudo.of_networks(reader.level)
    by_networks = None
    if of_networks is not None:
        by_networks = _majority(of_networks[slices(first, last)] > 0, factor)
    if unknown is None:
        return BlockLabels(certain, None, by_networks)
    possible = _majority(positive | unknown, factor)
    return BlockLabels(certain, possible & ~certain, by_networks)


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


# Labels: what is written


def encode_known(labels: Sequence[BlockLabels]) -> tuple[np.ndarray, np.ndarray]:
    """Encode the labels of several classes in a block as a palette image.

    Returns:
        The index volume (z, y, x), and the combinations (rows, classes) int8 that occur: 1, 0 or
        UNKNOWN, plus `pseudo.IN_PALETTE` where the label is a network's.
    """
    positive = [part.positive for part in labels]
    # only of the classes, by their numbers, that have such voxels
    unknown = {k: part.unknown for k, part in enumerate(labels) if part.unknown is not None}
    by_networks = {k: part.pseudo for k, part in enumerate(labels) if part.pseudo is not None}
    index, bits = encode([*positive, *unknown.values(), *by_networks.values()])
    ends = [len(positive), len(positive) + len(unknown)]
    is_positive, is_unknown, is_of_network = np.split(bits, ends, axis=1)
    combinations = is_positive.astype(np.int8)
    combinations[:, list(by_networks)] += pseudo.IN_PALETTE * is_of_network.astype(np.int8)
    known = combinations[:, list(unknown)]
    combinations[:, list(unknown)] = np.where(is_unknown, UNKNOWN, known)
    return index, combinations


class RowPart(NamedTuple):
    """The voxels of one palette row in one block."""

    row: int
    voxels: int
    positions: np.ndarray
    """(n, 3) with n <= EXAMPLES: indices z, y, x of some of these voxels."""


class PaletteImage:
    """The palette image of a crop, and its palette, put together from blocks."""

    def __init__(self, shape: tuple[int, ...], crop: Path):
        self.crop = crop
        self.index = np.zeros(shape, np.uint16)
        self.row_of: dict[bytes, int] = {}
        """For each combination of labels its palette row; 0 is "nothing is known"."""
        self.parts: list[RowPart] = []

    def write(self, start: np.ndarray, block: np.ndarray, combinations: np.ndarray) -> None:
        """Add a block to the image.

        Args:
            start: its first voxel.
            block: (z, y, x), rows of `combinations`.
            combinations: (rows, classes) int8.

        Raises:
            UserError: for more combinations than an index can tell apart.
        """
        rows = []
        for combination in combinations:
            rows.append(self.row_of.setdefault(combination.tobytes(), len(self.row_of) + 1))
        if len(self.row_of) >= 2**16:
            raise UserError(
                f"{self.crop}: more than {2**16 - 1} label combinations; "
                "its class volumes do not look like labels"
            )
        palette_rows = np.array(rows)
        self.index[slices(start, start + block.shape)] = palette_rows[block]
        for part in _examples(block, len(combinations)):
            row = int(palette_rows[part.row])
            self.parts.append(RowPart(row, part.voxels, part.positions + start))

    def volume(self) -> np.ndarray:
        """Return the palette row of each voxel, (z, y, x) uint8 or uint16, whichever will do."""
        return self.index.astype(np.uint8) if len(self.row_of) < 2**8 else self.index

    def palette(self, classes: int) -> np.ndarray:
        """Return the palette, (rows, classes) int8, of which row 0 is unknown for all classes."""
        palette = np.full((len(self.row_of) + 1, classes), UNKNOWN, np.int8)
        for combination, row in self.row_of.items():
            palette[row] = np.frombuffer(combination, np.int8)
        return palette

    def counts_and_examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Count the voxels of each palette row, and draw examples of them.

        A block contributes examples in proportion to its voxels of the row.

        Returns:
            Counts (rows,) int64, and indices z, y, x of voxels (rows, EXAMPLES, 3) int32.
        """
        random = np.random.default_rng(0)
        rows = len(self.row_of) + 1
        counts = np.zeros(rows, np.int64)
        examples = np.zeros((rows, EXAMPLES, 3), np.int32)
        parts_of: dict[int, list[RowPart]] = {}
        for part in self.parts:
            parts_of.setdefault(part.row, []).append(part)
        for row, parts in parts_of.items():
            sizes = np.array([part.voxels for part in parts])
            counts[row] = sizes.sum()
            chosen = random.choice(len(parts), EXAMPLES, p=sizes / sizes.sum())
            for i, number in enumerate(chosen):
                positions = parts[number].positions
                examples[row, i] = positions[random.integers(len(positions))]
        return counts, examples


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
