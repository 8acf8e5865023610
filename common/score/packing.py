"""Pack processed test crops into the zip that is uploaded to the challenge, see `submission`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Blosc

from common import talk
from common.classes import INSTANCES
from common.data.splits.manifest import Entry
from common.data.volumes import regrid
from common.data.volumes.level import Level
from common.data.volumes.ngff import open_levels
from common.data.volumes.records import (
    is_damaged,
    read_processed,
    refuse_lost_chunks,
    refuse_predicted,
)
from common.errors import UserError, refuse
from common.files import replacing
from common.score import arrays, gaps, submission
from common.score.gaps import Gap
from common.score.judge import beside, beside_text, networks_text

CHUNK = 128
"""Edge of a chunk in voxels."""

Check = Callable[[Entry], None]


def take(_: Entry) -> None:
    """Refuse no volume."""


def pack(
    entries: Sequence[Entry],
    source_of: Callable[[Entry], Path],
    output_zip: str | Path,
    say: talk.Say = print,
    *,
    partial: bool = False,
    check: Check = take,
) -> Path:
    """Bring the volume of each entry onto its grid, write all as one zip and return its path.

    An older zip is replaced when the new one is whole and checked. Ids get the smallest unsigned
    dtype that holds them; the public toolbox writes uint8 and wraps ids beyond 255.

    Args:
        entries: rows of the manifest.
        source_of: returns the multiscale group of an entry. Its finest level is resampled by
            `regrid.ids` for classes that are scored as instances, by `regrid.mask` for others.
        output_zip: where to write.
        say: takes a line for each volume.
        partial: pack the volumes that exist, and list the others.
        check: raises UserError for a volume that is not to be packed.

    Raises:
        UserError: with everything that is wrong; no file is left then.
    """
    output = Path(output_zip)
    # hours of resampling begin when all volumes are known to be there
    levels, lacking = _levels(entries, source_of, check)
    if lacking and not (partial and levels):
        refuse(_refusal(lacking, entries, has_some=bool(levels)), output)
    _say_beside(levels, say)
    if check is take:  # others look at the records, too
        _say_networks(levels, say)
    with replacing(output) as temporary:
        refuse(_write_all(temporary, levels, say), output)
        # read back as the organisers will: what they refuse is better known before the upload
        refuse(submission.check(temporary, list(levels)), output)
    if lacking:
        _say_lacking(lacking, entries, say)
    say(f"{output}: {len(levels)} volumes, {talk.size(output.stat().st_size)}")
    return output


def _levels(
    entries: Sequence[Entry], source_of: Callable[[Entry], Path], check: Check
) -> tuple[dict[Entry, Level], list[Gap]]:
    """Return the level to pack of each entry, and a gap for each entry that cannot be packed."""
    levels = {}
    lacking = []
    for entry in entries:
        level = _level_of(entry, Path(source_of(entry)), check)
        if isinstance(level, Gap):
            lacking.append(level)
        else:
            levels[entry] = level
    return levels, lacking


def _level_of(entry: Entry, path: Path, check: Check) -> Level | Gap:
    """Return the finest level of a processed volume, or why it cannot be packed."""
    absent = _not_processed(path)
    if absent:
        return Gap(entry, gaps.NOT_PROCESSED, absent)
    try:
        levels = open_levels(path)
        refuse_lost_chunks(path, "process")
    except (FileNotFoundError, UserError) as error:
        sentence = f"{error} (if it is half-written, run process again)"
        return Gap(entry, gaps.UNREADABLE, sentence)
    if not levels:
        sentence = f"{path}: no level in its multiscales; run process again"
        return Gap(entry, gaps.UNREADABLE, sentence)
    if not regrid.covers(levels[0], entry.grid()):
        short = regrid.shortfall(levels[0], entry.grid())
        sentence = f"{path}: {short}; run predict and process for the whole crop"
        return Gap(entry, gaps.TOO_SMALL, sentence)
    try:
        check(entry)
    except UserError as error:
        return Gap(entry, gaps.STALE, str(error))
    return levels[0]


def _not_processed(path: Path) -> str:
    """Describe why a path is no processed volume; "" if it may be one."""
    if not path.is_dir():
        return f"{path}: no such volume; run predict and process for it"
    if is_damaged(path):  # which opening it tells
        return ""
    try:
        refuse_predicted(path)
    except UserError as error:
        return str(error)
    return ""


def _refusal(lacking: Sequence[Gap], entries: Sequence[Entry], *, has_some: bool) -> list[str]:
    """Return the lines that say why nothing is packed, and how to pack what exists."""
    lines = gaps.sentences(lacking, entries)
    if len(lacking) > gaps.LISTED:
        # one problem of the zip, which is named once
        lines = ["\n".join(["cannot be packed: " + lines[0], *lines[1:]])]
    if has_some:
        lines[-1] += "\n(to pack what is there, write --partial)"
    return lines


def _say_beside(levels: Mapping[Entry, Level], say: talk.Say) -> None:
    """Say which volumes lie beside the voxels of the manifest."""
    offsets = {entry.path: beside(level, entry.grid()) for entry, level in levels.items()}
    text = beside_text(offsets, len(levels), "the manifest")
    if text:
        say(f"note: {text}")


def _say_networks(levels: Mapping[Entry, Level], say: talk.Say) -> None:
    """Say which classes several networks predicted."""
    predictions = []
    for entry, level in levels.items():
        processed = None
        with suppress(UserError):  # of another program, which calls something of its own so
            processed = read_processed(level.group)
        if processed is not None:
            predictions.append((entry.name, processed.prediction))
    text = networks_text(predictions)
    if text:
        say(f"note: {text}")


def _say_lacking(lacking: Sequence[Gap], entries: Sequence[Entry], say: talk.Say) -> None:
    """Say which volumes are not in the zip, and what the score counts for them."""
    say(f"not in it are {len(lacking)} of {len(entries)} volumes:")
    for line in gaps.table(lacking, entries) + gaps.consequences(lacking, entries):
        say(line)


def _write_all(path: Path, levels: dict[Entry, Level], say: talk.Say) -> list[str]:
    """Write the volumes into a zip; return a sentence for each that could not be read."""
    problems = []
    with zarr.ZipStore(str(path), mode="w") as store:  # not compressed again, the chunks are
        group = zarr.group(store=store)
        for entry, level in levels.items():
            try:
                volume = on_grid(entry, level)
            except (UserError, OSError) as error:
                problems.append(f"{entry.path}: {error}")
                continue
            _write(group, entry, volume)
            empty = "" if volume.any() else ", 0 everywhere"
            say(f"{entry.path}: {talk.voxels(volume.shape)} {volume.dtype}{empty}")
    return problems


def on_grid(entry: Entry, level: Level) -> np.ndarray:
    """Return a volume on the grid of an entry, (z, y, x) unsigned: 0 and 1, or ids.

    Raises UserError for values that are neither ids nor a mask nor probabilities.
    """
    if entry.name not in INSTANCES:
        if arrays.is_soft(arrays.samples_of(level)):
            raise UserError(f"{level.path}: {arrays.SOFT}")
        return regrid.mask(level, entry.grid()).view(np.uint8)
    ids = regrid.ids(level, entry.grid())
    if ids.min() < 0:
        raise UserError(
            f"{level.path}: id {ids.min()}; write ids above zero, and 0 where there is no object"
        )
    # scored from their numbers alone, which any unsigned dtype holds: the smallest packs best
    return ids.astype(np.min_scalar_type(int(ids.max())), copy=False)


def _write(group: zarr.Group, entry: Entry, volume: np.ndarray) -> None:
    array = group.create_dataset(
        entry.path,
        data=volume,
        chunks=tuple(min(CHUNK, length) for length in volume.shape),
        dimension_separator="/",
        compressor=Blosc(cname="zstd", clevel=5, shuffle=Blosc.SHUFFLE),
    )
    array.attrs.update(
        voxel_size=entry.voxel_size, translation=entry.translation, shape=entry.shape
    )
