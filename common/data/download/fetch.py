"""The command fetch-data: download chosen crops, classes and resolutions, and the raw around them.

The bucket has the layout of `common.data.volumes.layout`, zarr v2, and so does the data root
afterwards: the same metadata, and of the chunks those that are needed. An array keeps its whole
shape; a chunk that was not fetched reads as 0, like one that the bucket does not hold.

What there is comes from listings: one request for a class of a crop, and one for each row along x
of an array's chunks. They are kept in {data}/.fetch/listings.jsonl, so that a run that goes on
where another stopped asks for nothing again, and a chunk that the bucket does not hold is asked for
once. A file is verified, written beside its place and renamed, so one that is there with the right
size is whole.

This was written and tested on a machine that cannot reach the bucket, against a local server with
its layout and its answers; the layout is that of the public toolbox and of public code that reads
the bucket.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from common import files as files_module
from common import talk
from common.data.crops.plan import raw_voxels
from common.data.download.bucket import URL, Bucket, RemoteFile, is_there, write
from common.data.download.wanted import Choice, WantedCrop, choose
from common.data.volumes import layout, ngff
from common.data.volumes.box import Corners
from common.data.volumes.level import Level, chunk_ranges
from common.data.volumes.raw import averaged_grid, reduction
from common.errors import FileError, UserError

MAX_FAILURES = 10
"""Number of failed files after which a run stops: the problem is then the network, not a file."""

DISK_BLOCK = 4096
"""Bytes of a block on disk; a file takes a multiple of this."""

JOURNAL = ".fetch/listings.jsonl"
"""File under the data root with what the bucket was said to hold."""


@dataclass(frozen=True)
class FetchReport:
    """Numbers of files and bytes of one call of `fetch`."""

    files: int
    bytes: int
    skipped: int
    """Number of files that were there already."""
    skipped_bytes: int
    fetched: int
    """Number of files that were downloaded."""
    fetched_bytes: int


def fetch(
    crops: str = "*",
    *,
    url: str = URL,
    workers: int = 16,
    dry_run: bool = False,
    verify: bool = False,
    say: talk.Say = print,
    **choice: Any,
) -> FetchReport:
    """Download what is missing from the bucket to the data root, after printing the sizes.

    Files that were complete before an error are kept, and the same call continues from there.

    Args:
        crops: see `common.data.download.wanted.Choice`.
        url: address of the bucket.
        workers: downloads at a time.
        dry_run: say the sizes, write nothing.
        verify: ask the server anew, and read what is there, instead of trusting remembered listings
            and sizes.
        say: takes the lines.
        choice: further fields of `Choice`.

    Raises:
        UserError, FileNotFoundError: for what was asked wrongly.
        FileError: if the server, the network or the disk does not do.
    """
    if workers < 1:
        raise UserError(f"workers = {workers}; write a whole number above 0")
    asked = Choice(crops, **choice)
    root, wanted = choose(asked, say)
    with (
        _workplace(root, dry_run) as place,
        Bucket(url, root / JOURNAL, workers, read_only=dry_run, verify=verify) as bucket,
    ):
        report = _fetch_missing(bucket, wanted, root, place, say=say)
    if not dry_run:
        say(_what_next(asked, wanted))
    return report


def _fetch_missing(
    bucket: Bucket,
    wanted: Sequence[WantedCrop],
    root: Path,
    place: Path,
    *,
    say: talk.Say,
) -> FetchReport:
    """Say how much is wanted and how much of it is missing; fetch that, if `bucket` may write.

    place: see `_workplace`.
    """
    files = plan(bucket, wanted, place)
    missing = []
    with talk.progress(len(files), "looking what is there", unit="file") as bar:
        for file in files:
            if not is_there(root, file, bucket.verify):
                missing.append(file)
            bar.update()
    # metadata that came while planning are there now, but were not before
    came_while_planning = set() if bucket.read_only else bucket.brought
    report = _count(files, {file.path for file in missing} | came_while_planning)
    _say_sizes(root, wanted, files, report=report, say=say)
    if bucket.read_only:
        return replace(report, fetched=0, fetched_bytes=0)
    _check_space(root, missing)
    _download(bucket, missing, root, say)
    return report


@contextlib.contextmanager
def _workplace(root: Path, dry_run: bool) -> Iterator[Path]:
    """Where metadata are put to be read: the data root, or for a dry run a temporary folder.

    No other run writes to the data root meanwhile.
    """
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    busy = f"{root}: another fetch-data is writing here; wait for it, or stop it"
    with files_module.alone(root / ".fetch/lock", otherwise=busy):
        yield root


# which files are needed


def plan(bucket: Bucket, wanted: Sequence[WantedCrop], place: Path) -> list[RemoteFile]:
    """Return every file of these crops, metadata first.

    Metadata that say where things lie are fetched to `place`, and read there.

    Raises:
        FileNotFoundError: for what the bucket does not hold.
        UserError: for a crop that lies outside of its raw.
    """
    raws = dict.fromkeys(crop.raw for crop in wanted)
    metadata = bucket.map(
        lambda raw: _raw_metadata(bucket, raw, place), raws, "reading the raw's metadata"
    )
    levels = {raw: ngff.open_levels(place / raw) for raw in raws}
    labels, boxes = _labels(bucket, [crop for crop in wanted if crop.classes], place)
    folders = dict.fromkeys(itertools.chain.from_iterable(map(_groups_above, wanted)))
    groups = bucket.map(lambda folder: bucket.find(f"{folder}/.z"), folders, "listing groups")
    needs = []
    for crop in wanted:
        box = crop.box or boxes[crop]
        needs += _raw_chunks(crop, levels[crop.raw], box, place)
    chunks = _existing_chunks(bucket, needs)
    files = itertools.chain(*metadata.values(), *groups.values(), labels, chunks)
    by_path = {file.path: file for file in files}
    return sorted(by_path.values(), key=lambda file: (not file.is_metadata, file.path))


def _groups_above(crop: WantedCrop) -> list[str]:
    """Return the folders of the groups above the raw, and above the classes with the crop's own."""
    paths = [*PurePosixPath(crop.raw).parents]
    if crop.classes:
        paths += [PurePosixPath(crop.labels), *PurePosixPath(crop.labels).parents]
    return [str(path) for path in paths if path.is_relative_to(crop.store)]


def _raw_metadata(bucket: Bucket, raw: str, place: Path) -> list[RemoteFile]:
    """Return the metadata of an image and of all its levels, which are brought to `place`."""
    files = bucket.find(f"{raw}/.z")
    if not files:
        bucket.renamed[raw] = _other_raw(bucket, raw)
        files = bucket.find(f"{raw}/.z")
    for file in files:
        bucket.bring(file, place)
    for name in _level_names(bucket, raw, place):
        of_level = bucket.find(f"{raw}/{name}/.z")
        for file in of_level:
            bucket.bring(file, place)
        files = [*files, *of_level]
    return files


def _other_raw(bucket: Bucket, raw: str) -> str:
    """Return the raw of a dataset that has it under another name, such as fibsem-uint16.

    It is copied to the path that training expects.
    """
    folder = raw.rpartition("/")[0]
    others = [name for name in bucket.folders(f"{folder}/") if name.startswith("fibsem")]
    if len(others) == 1:
        return f"{folder}/{others[0]}"
    instead = f"; there are {', '.join(others)}" if others else ""
    raise FileNotFoundError(
        f"{bucket.url}: no {raw}{instead}; leave its crops out, or write --verify if it is new"
    )


def _level_names(bucket: Bucket, raw: str, place: Path) -> list[str]:
    try:
        image = json.loads((place / raw / ".zattrs").read_text())["multiscales"][0]
        return [level["path"] for level in image["datasets"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{bucket.url}: {raw}/.zattrs is not that of an image ({error!r}); leave its crops out"
        ) from error


def _labels(
    bucket: Bucket, crops: Sequence[WantedCrop], place: Path
) -> tuple[list[RemoteFile], dict[WantedCrop, Corners]]:
    """Return the files of all classes, and the box of each crop.

    Of all levels, or where scales are asked for of the finest, from which training reduces labels.
    """
    folders: list[str] = []
    for crop in crops:
        folders += crop.class_folders
    listed = bucket.map(lambda folder: bucket.find(f"{folder}/"), folders, "listing labels")
    missing = [folder for folder in folders if not listed[folder]]
    if missing:
        raise FileNotFoundError(
            f"{bucket.url}: no {talk.some(missing, most=10)}; "
            "name other crops or classes, or write --verify if they are new"
        )

    def finest(crop: WantedCrop) -> Level:
        # the classes of a crop share one grid, so that one of them is opened
        first = crop.class_folders[0]
        for file in listed[first]:
            if file.is_metadata:
                bucket.bring(file, place)
        return ngff.open_levels(place / first)[0]

    opened = bucket.map(finest, crops, "reading the labels' metadata")
    files = []
    for crop, level in opened.items():
        for folder in crop.class_folders:
            for file in listed[folder]:
                in_finest = file.path.startswith(f"{folder}/{level.path.name}/")
                if file.is_metadata or in_finest or not crop.scales:
                    files.append(file)
    return files, {crop: level.box() for crop, level in opened.items()}


@dataclass(frozen=True)
class _RawNeed:
    """The chunks of one level of the raw that one crop needs."""

    crop: WantedCrop
    level: str
    rows: dict[str, set[str]]
    """Paths of the chunks by the beginning that those in a row along x share."""


def _raw_chunks(
    crop: WantedCrop, levels: Sequence[Level], box: Corners, place: Path
) -> list[_RawNeed]:
    """Return the chunks around a crop, for each level that is wanted."""
    lower, upper = box
    raw_lower, raw_upper = levels[0].box()
    if (lower >= raw_upper).any() or (upper <= raw_lower).any():
        raise UserError(
            f"{crop.store}: {crop.name} lies outside of its raw; "
            "check its translation, or leave it out"
        )
    scales = [np.array(scale) for scale in crop.scales] or [level.scale for level in levels]
    needs = []
    for scale in scales:
        level = ngff.pick_level(levels, scale)
        padding = crop.padding_voxels * scale if crop.padding_nm is None else crop.padding_nm
        start, stop = _voxels_kept(level, scale, lower - padding, upper + padding)
        rows: dict[str, set[str]] = {}
        for index in itertools.product(*chunk_ranges(start, stop, level.array.chunks)):
            chunk = level.chunk_file(index).relative_to(place).as_posix()
            row = chunk.removesuffix(str(index[-1]))
            rows.setdefault(row, set()).add(chunk)
        path = level.path.relative_to(place).as_posix()
        needs.append(_RawNeed(crop, path, rows))
    return needs


def _voxels_kept(
    level: Level, scale: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first voxel of a level, and the one after the last, that training keeps of a box.

    Training at `scale` averages the level's voxels first, and keeps whole averaged voxels. lower,
    upper: corners of the box in nm.
    """
    factor = reduction(scale, level.scale, level.shape)
    start, stop = raw_voxels(lower, upper, averaged_grid(level, factor))
    # what is beyond the volume is mirrored, from voxels that are kept anyway
    first = np.clip(start * factor, 0, level.shape)
    last = np.clip(stop * factor, 0, level.shape)
    return first, last


def _existing_chunks(bucket: Bucket, needs: Sequence[_RawNeed]) -> list[RemoteFile]:
    """Return the chunks that are needed and that the bucket holds; it holds none that are all 0."""
    needed: dict[str, set[str]] = {}
    for need in needs:
        for row, chunks in need.rows.items():
            needed.setdefault(row, set()).update(chunks)
    listed = bucket.map(bucket.find, needed, "listing raw")
    existing = []
    for row, row_files in listed.items():
        existing += [file for file in row_files if file.path in needed[row]]
    paths = {file.path for file in existing}
    empty = []
    for need in needs:
        if not any(chunks & paths for chunks in need.rows.values()):
            empty.append(f"{need.crop.name} in {need.level}")
    if empty:
        raise FileNotFoundError(
            f"{bucket.url}: no chunk around {', '.join(empty[:10])}; "
            "ask for another scale, or leave the crop out"
        )
    return existing


# how much that is


def _count(files: Sequence[RemoteFile], new: set[str]) -> FetchReport:
    """Count files and bytes. new: paths that are fetched, or were while planning."""
    fetched = [file.size for file in files if file.path in new]
    skipped = [file.size for file in files if file.path not in new]
    return FetchReport(
        files=len(files),
        bytes=sum(fetched) + sum(skipped),
        skipped=len(skipped),
        skipped_bytes=sum(skipped),
        fetched=len(fetched),
        fetched_bytes=sum(fetched),
    )


def _say_sizes(
    root: Path,
    wanted: Sequence[WantedCrop],
    files: Sequence[RemoteFile],
    *,
    report: FetchReport,
    say: talk.Say,
) -> None:
    def line(what: str, count: int, size: int) -> str:
        return f"  {what:14}{count:>10,} files {talk.size(size):>9}"

    raw = [file.size for file in files if f"/{layout.RAW}/" in file.path]
    raw_bytes = sum(raw)
    datasets = {crop.dataset for crop in wanted}
    say(f"{talk.count(len(wanted), 'crop')} of {talk.count(len(datasets), 'dataset')}")
    say(line("raw", len(raw), raw_bytes))
    say(line("labels", report.files - len(raw), report.bytes - raw_bytes))
    say(line("there already", report.skipped, report.skipped_bytes))
    say(line("to fetch", report.fetched, report.fetched_bytes))
    say(f"  {talk.size(files_module.free_bytes(root))} free in {root}")


def _check_space(root: Path, missing: Sequence[RemoteFile]) -> None:
    needed = sum(-(-file.size // DISK_BLOCK) * DISK_BLOCK for file in missing)
    free = files_module.free_bytes(root)
    if needed > free:
        raise FileError(
            f"{root}: {talk.size(needed)} to write and {talk.size(free)} free; "
            "free space, write --data FOLDER of a larger disk, or fetch fewer crops or classes"
        )


# fetching


def _download(bucket: Bucket, missing: Sequence[RemoteFile], root: Path, say: talk.Say) -> None:
    """Fetch files. Raises FileError at the end, or when MAX_FAILURES have failed."""
    fetched: list[RemoteFile] = []
    problems: list[str] = []

    def bring(file: RemoteFile) -> tuple[RemoteFile, str]:
        try:
            content = bucket.get(file, root)
        except FileError as error:
            return file, str(error)
        write(root / file.path, content)
        return file, ""

    def note(outcome: tuple[RemoteFile, str]) -> None:
        file, problem = outcome
        if problem:
            problems.append(problem)
            _refuse_failures(problems, MAX_FAILURES, len(missing))
        else:
            fetched.append(file)
            bar.update(file.size)

    total = sum(file.size for file in missing)
    with talk.progress(total, unit="B", unit_scale=True) as bar:
        try:
            # metadata first: without an MD5 a chunk is decoded as its .zarray says
            bucket.for_each(bring, [file for file in missing if file.is_metadata], note)
            bucket.for_each(bring, [file for file in missing if not file.is_metadata], note)
        except KeyboardInterrupt:
            say(
                f"stopped with {len(fetched):,} of {len(missing):,} files; "
                "run the same command again, it goes on from there"
            )
            raise
    _refuse_failures(problems, 1, len(missing))


def _refuse_failures(problems: Sequence[str], least: int, asked: int) -> None:
    """Raises FileError where at least so many files failed."""
    if len(problems) >= least:
        summary = f"{len(problems)} of {asked:,} files could not be fetched; what came is kept"
        raise FileError("\n".join([*problems, summary]))


def _what_next(asked: Choice, wanted: Sequence[WantedCrop]) -> str:
    """Return the line that says the next command; of no experiment, what to fill in."""
    data = asked.data or None
    experiment = asked.for_experiment
    if all(crop.usage == "test" for crop in wanted):
        options = {"crops": asked.crops, "manifest": asked.manifest_path or None, "data": data}
        line = talk.command_line("predict", experiment or "EXPERIMENT", **options)
        return f"next: {line}" if experiment else f"with an EXPERIMENT that is trained: {line}"
    if experiment:
        # of a part of its crops or classes it may not train
        is_part = asked.crops != "*" or asked.classes
        line = talk.command_line("doctor" if is_part else "train", experiment, data=data)
        return f"next: {line}"
    sizes = [crop.scales[0][0] for crop in wanted if crop.scales]
    line = talk.command_line(
        "make-datasplit",
        files_module.free_name("datasplit.csv"),
        data=data,
        classes=",".join(asked.classes) if asked.classes else None,
        scale=f"{sizes[0]:g}" if sizes else "8",
    )
    return f"next: {line}"
