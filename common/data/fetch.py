"""Fetch what is needed of the challenge's public data: chosen crops, classes and resolutions, and the raw around them.

The bucket holds {dataset}/{dataset}.zarr/recon-1/{em/fibsem-uint8, labels/groundtruth/crop{N}/{class}}, zarr v2, and so does the
data root afterwards: the same metadata, and of the chunks those that are needed. An array keeps its whole shape; a chunk that was
not fetched reads as 0, like one that the bucket does not hold.

What there is, with sizes and checksums, comes from S3's listings (ListObjectsV2): one request for a class of a crop, and one for
each row along x of an array's chunks. They are kept in {data}/.fetch/listings.jsonl, so that a run that goes on where another
stopped asks for nothing again, and a chunk that the bucket does not hold is asked for once. A file is written beside its place
and renamed after it was verified: by its size and its ETag, which is the MD5 of an object that was uploaded in one piece (S3's
rule for all but KMS-encrypted objects, which cannot be public), or else by decoding it. So a file that is there with the right
size is whole.

This was written and tested on a machine that cannot reach the bucket, against a local server with its layout and its answers; the
layout is that of the public toolbox and of public code that reads the bucket.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import re
import shlex
import shutil
import ssl
import tempfile
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import numcodecs
import numpy as np
import urllib3
from fasteners import InterProcessLock
from tqdm import tqdm

from common import files as files_module
from common.classes import unknown_names
from common.config import load
from common.data import catalogue, layout, manifest, ngff, sampling, split
from common.errors import FileError, UserError

URL = "https://janelia-cosem-datasets.s3.amazonaws.com"
"""The public bucket. Any S3-compatible address will do that lists without a signature, such as http://host:9000/bucket."""

SCALES = (8.0, 32.0, 128.0)
"""nm, what is fetched if nothing is said: the voxel sizes of the baselines."""
REACH = 59
"""Voxels of raw around a crop if nothing is said: a patch of 68 voxels, as the baselines take, reaches so far when it is rotated."""
SLACK = 3
"""Voxels beyond that: training cuts its block of raw on whole voxels and keeps up to two more."""

TRIES = 6
BACKOFF_S = 0.5
"""Wait before the second try of a request; it doubles from try to try."""
TIMEOUT_S = 30.0
MAX_FAILURES = 10
"""Files that fail before a run stops."""
BLOCK = 4096
"""Bytes: a file on disk takes a multiple of this."""

T, R = TypeVar("T"), TypeVar("R")


@dataclass(frozen=True)
class Report:
    """Files and bytes that a run was about; those of `skipped` were there already, those of `fetched` came now."""

    files: int
    bytes: int
    skipped: int
    skipped_bytes: int
    fetched: int
    fetched_bytes: int


class File(NamedTuple):
    """One object of the bucket, by its place under the data root."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True, eq=False)
class Wanted:
    """One crop, and what of it is to be fetched."""

    dataset: str
    name: str
    usage: str = ""
    """'train' or 'validate' in an experiment's data split, 'test', or nothing."""
    classes: tuple[str, ...] = ()
    """None of a test crop."""
    scales: tuple[tuple[float, ...], ...] = ()
    """nm; for each, the level of the raw that training would pick. Empty: every level of raw and labels."""
    padding_nm: np.ndarray | None = None
    """(3,), raw around the crop; REACH voxels of each scale unless set."""
    box: tuple[np.ndarray, np.ndarray] | None = None
    """Lower and upper corner of a test crop in nm; others lie where their labels do."""

    @property
    def store(self) -> str:
        return f"{self.dataset}/{self.dataset}.zarr"

    @property
    def labels(self) -> str:
        return f"{self.store}/{layout.LABELS}/{self.name}"

    @property
    def raw(self) -> str:
        return f"{self.store}/{layout.RAW}"


def fetch(
    crops: str = "*",
    *,
    classes: Sequence[str] | None = None,
    for_experiment: str | Path = "",
    scale: Sequence[float | Sequence[float]] = (),
    padding_nm: float | Sequence[float] | None = None,
    all_resolutions: bool = False,
    data: str | Path | None = None,
    url: str = URL,
    workers: int = 16,
    dry_run: bool = False,
    verify: bool = False,
    manifest_path: str | Path = "",
    table: str | Path = catalogue.CHALLENGE,
    say: Callable[[str], None] = print,
) -> Report:
    """Copy what is missing from the bucket to the data root. Says sizes first; dry_run says them and writes nothing.

    crops: comma-separated, "*" for all, "test", or names such as 28, crop28, jrc_hela-2/crop28, with * and ?; with an experiment
    also "train" and "validate". for_experiment: its data split says which crops and classes, its settings how far raw reaches and
    at which scale; what is given besides goes before. classes: all that are annotated unless given. scale: voxel sizes in nm, each
    a number or z, y, x. padding_nm: raw around the crops, a number or z, y, x. all_resolutions: every level of raw and labels.
    verify: asks the server anew, and reads what is there, instead of trusting remembered listings and sizes. table, manifest_path:
    where the training and the test crops are listed; the latter is downloaded if it is needed and not given.

    Raises ValueError or FileNotFoundError for what was asked, OSError if the server, the network or the disk does not do; what was
    fetched until then stays, and the same call goes on from there.
    """
    if workers < 1:
        raise UserError(f"workers = {workers}; write a whole number above 0")
    root, wanted = choose(
        crops,
        classes=classes,
        for_experiment=for_experiment,
        scale=scale,
        padding_nm=padding_nm,
        all_resolutions=all_resolutions,
        data=data,
        manifest_path=manifest_path,
        table=table,
        say=say,
    )
    journal = root / ".fetch/listings.jsonl"
    with (
        _workplace(root, dry_run) as place,
        Bucket(url, journal, workers, read_only=dry_run, verify=verify) as bucket,
    ):
        files = plan(bucket, wanted, place)
        looking = tqdm(files, "looking what is there", unit="file", disable=None, leave=False)
        missing = [file for file in looking if not _is_there(root, file, verify)]
        report = _count(
            files, {file.path for file in missing} | (set() if dry_run else bucket.brought)
        )
        _say_sizes(root, wanted, files, report, say)
        if dry_run:
            return replace(report, fetched=0, fetched_bytes=0)
        _check_space(root, missing)
        _download(bucket, missing, root, say)
    say(_next(crops, wanted, for_experiment, data))
    return report


@contextlib.contextmanager
def _workplace(root: Path, dry_run: bool) -> Iterator[Path]:
    """Where metadata are put to be read: the data root, which no other run then writes to, or a folder that is removed again."""
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    (root / ".fetch").mkdir(parents=True, exist_ok=True)
    lock = InterProcessLock(root / ".fetch/lock")
    if not lock.acquire(blocking=False):
        lock.lockfile.close()  # which acquire leaves open
        raise UserError(f"{root}: another fetch-data is writing here; wait for it, or stop it")
    try:
        yield root
    finally:
        lock.release()


# what to fetch


def choose(
    crops: str,
    *,
    classes: Sequence[str] | None,
    for_experiment: str | Path,
    scale: Sequence[float | Sequence[float]],
    padding_nm: float | Sequence[float] | None,
    all_resolutions: bool,
    data: str | Path | None,
    manifest_path: str | Path,
    table: str | Path,
    say: Callable[[str], None],
) -> tuple[Path, list[Wanted]]:
    """The data root and the crops that the arguments of `fetch` name. Raises what `fetch` does."""
    if scale and all_resolutions:
        raise UserError("both scale and all_resolutions; write one of them")
    given: dict = (
        {"scales": tuple(_three("scale", size, 1e-9) for size in scale)}
        if scale or all_resolutions
        else {}
    )
    if padding_nm is not None:
        given["padding_nm"] = np.array(_three("padding", padding_nm, 0))
    if for_experiment:
        root, known, test = _of_experiment(for_experiment, data)
    else:
        root, test = (
            load.data_root(data),
            Wanted("", "", "test", scales=tuple((size,) * 3 for size in SCALES)),
        )
        like = replace(test, usage="", **given)
        known = {
            (crop.dataset, crop.name): _of_table(crop, like)
            for crop in catalogue.read_crop_table(table)
        }
    source = str(for_experiment or Path(table).name)
    chosen = _named(crops, known, lambda: _tests(manifest_path, test, say), source)
    if problems := unknown_names(
        classes or (), {name for one in known.values() for name in one.classes}
    ):
        raise UserError("\n".join(problems))
    return root, _narrowed(
        [replace(one, **given) if one.usage else one for one in chosen], classes, source, say
    )


def _three(what: str, value: float | Sequence[float], low: float) -> tuple[float, ...]:
    numbers = (value,) * 3 if np.ndim(value) == 0 else tuple(value)  # type: ignore[arg-type]
    if len(numbers) != 3 or not all(low <= number < np.inf for number in numbers):
        raise UserError(f"{what} {value}; write nm, one number or three for z, y, x, such as 8")
    return tuple(map(float, numbers))


def _of_experiment(
    path: str | Path, data: str | Path | None
) -> tuple[Path, dict[tuple[str, str], Wanted], Wanted]:
    """Data root, the crops of the data split, each with the raw that its use reaches, and what is wanted of a test crop."""
    given = data or os.environ.get("CELLMAP_DATA")
    elsewhere = (
        {"data_path": str(files_module.REPOSITORY)} if given else {}
    )  # the data root need not be there yet
    settings = load.load_config(path, **elsewhere)
    root = load.data_root(data) if given else settings.path("data_path")
    raw, target = (
        sampling.Patch(**settings.input_array_info),
        sampling.Patch(**settings.target_array_info),
    )
    around = (raw.extent + target.extent) / 2
    reach = {"train": sampling.reach_nm(raw, settings.spatial_transforms), "validate": around}
    found, problems = {}, []
    for row in split.read_datasplit(settings.path("datasplit_path"), root):
        if set(row.annotated) & set(settings.classes):
            one = Wanted(
                *row.name.split("/"), row.usage, row.annotated, (raw.scale,), reach[row.usage]
            )
            found[one.dataset, one.name] = one
            if (row.raw, row.crop) != (root / one.raw, root / one.labels):
                where = f"{row.file}: line {row.line}: {row.name}"
                problems.append(
                    f"{where} is not where the bucket has it; write its paths as make-datasplit does"
                )
    if problems:
        raise UserError("\n".join(problems))
    return root, found, Wanted("", "", "test", (), (raw.scale,), around)


def _of_table(crop: catalogue.CropInfo, like: Wanted) -> Wanted:
    """What is wanted of a crop of the table. Scales finer than its labels are left out; if that is all of them, so is the crop."""
    fits = tuple(scale for scale in like.scales if catalogue.fits(crop, scale, 1))
    nothing = like.scales and not fits
    return replace(
        like,
        dataset=crop.dataset,
        name=crop.name,
        scales=fits,
        classes=() if nothing else tuple(sorted(crop.classes)),
    )


def _tests(
    path: str | Path, like: Wanted, say: Callable[[str], None]
) -> dict[tuple[str, str], Wanted]:
    """The test crops, each the box that holds all of its labels."""
    cache = load.environment()[0].get("cache_path") or files_module.REPOSITORY / "cache"
    boxes: dict[tuple[str, str], list] = {}
    for entry in manifest.read(path or manifest.fetch(cache, say=say)):
        boxes.setdefault((entry.dataset, entry.crop), []).append(entry.grid().box())
    return {
        (dataset, name): replace(
            like,
            dataset=dataset,
            name=name,
            box=(np.min([a for a, _ in box], 0), np.max([b for _, b in box], 0)),
        )
        for (dataset, name), box in boxes.items()
    }


def _named(
    words: str,
    known: Mapping[tuple[str, str], Wanted],
    tests: Callable[[], Mapping[tuple[str, str], Wanted]],
    source: str,
) -> list[Wanted]:
    """The crops that a comma-separated list names, each once. A name that is not known is looked for among the test crops."""
    chosen: dict[tuple[str, str], Wanted] = {}
    problems = []
    for word in filter(None, (word.strip() for word in words.split(","))):
        dataset, _, name = word.rpartition("/")
        of_usage = {key: one for key, one in known.items() if one.usage == word}
        if word == "test" or of_usage:
            chosen |= of_usage or tests()
            continue
        try:
            chosen |= catalogue.select(known, [dataset or "*"], [name], source)
        except ValueError:
            try:
                chosen |= catalogue.select(
                    {**known, **tests()}, [dataset or "*"], [name], f"{source} and test crops"
                )
            except ValueError as error:
                problems.append(str(error))
    if not chosen and not problems:
        problems.append(f"crops '{words}'; write *, test, or names such as 28,jrc_hela-2/crop155")
    if problems:
        raise UserError("\n".join(problems))
    return list(chosen.values())


def _narrowed(
    wanted: Sequence[Wanted], classes: Sequence[str] | None, source: str, say: Callable[[str], None]
) -> list[Wanted]:
    """Those with something to fetch, and these classes of them only. ValueError if a class, or everything, is left out."""
    narrow = [
        replace(
            one, classes=tuple(name for name in one.classes if classes is None or name in classes)
        )
        for one in wanted
    ]
    left = [one for one in narrow if one.classes or one.usage == "test"]
    found = {name for one in left for name in one.classes}
    missing = (
        []
        if all(one.usage == "test" for one in wanted)
        else [name for name in classes or () if name not in found]
    )
    if missing or not left:
        what = (
            f"annotates {', '.join(missing)} at that scale"
            if missing
            else "has labels as fine as that"
        )
        raise UserError(
            f"{source}: none of the {len(wanted)} crops {what}; ask for other crops, classes or a coarser scale"
        )
    if len(left) < len(wanted):
        say(
            f"{len(wanted) - len(left)} of {len(wanted)} crops left out: too coarse, too small or without these classes"
        )
    return left


# which files that is


def plan(bucket: Bucket, wanted: Sequence[Wanted], place: Path) -> list[File]:
    """Every file of these crops, metadata first. Metadata that say where things lie are fetched to `place`, and read there.

    Raises FileNotFoundError for what the bucket does not hold, ValueError for a crop that lies outside of its raw.
    """
    raws = dict.fromkeys(one.raw for one in wanted)
    metadata = bucket.many(
        lambda raw: _raw_metadata(bucket, raw, place), raws, "reading the raw's metadata"
    )
    levels = {raw: ngff.open_levels(place / raw) for raw in raws}
    labels, boxes = _labels(bucket, [one for one in wanted if one.classes], place)
    parents = bucket.many(
        lambda folder: bucket.find(f"{folder}/.z"),
        dict.fromkeys(itertools.chain(*map(_parents, wanted))),
        "",
    )
    needs = [
        (one, level, rows)
        for one in wanted
        for level, rows in _raw_chunks(one, levels[one.raw], one.box or boxes[one.labels], place)
    ]
    needed: dict[str, set[str]] = {}
    for _, _, rows in needs:
        for row, chunks in rows.items():
            needed.setdefault(row, set()).update(chunks)
    listed = bucket.many(
        lambda row: [file for file in bucket.find(row) if file.path in needed[row]],
        needed,
        "listing raw",
    )
    there = {file.path for file in itertools.chain(*listed)}
    if empty := [
        f"{one.name} in {level}"
        for one, level, rows in needs
        if not any(chunks & there for chunks in rows.values())
    ]:
        raise FileNotFoundError(
            f"{bucket.url}: no chunk around {', '.join(empty[:10])}; ask for another scale, or leave the crop out"
        )
    found = {file.path: file for file in itertools.chain(*metadata, *parents, labels, *listed)}
    return sorted(found.values(), key=lambda file: (not _is_metadata(file), file.path))


def _is_metadata(file: File) -> bool:
    return file.path.rpartition("/")[2].startswith(".z")


def _parents(one: Wanted) -> list[str]:
    """The groups above the raw, and above the classes."""
    paths = [
        *PurePosixPath(one.raw).parents,
        *((PurePosixPath(one.labels), *PurePosixPath(one.labels).parents) if one.classes else ()),
    ]
    return [str(path) for path in paths if path.is_relative_to(one.store)]


def _raw_metadata(bucket: Bucket, raw: str, place: Path) -> list[File]:
    """The metadata of an image and of all its levels. The raw is copied to the path that training expects, whatever its name was."""
    files = bucket.find(f"{raw}/.z")
    if not files:
        folder, _, name = raw.rpartition("/")
        others = [other for other in bucket.folders(f"{folder}/") if other.startswith("fibsem")]
        if len(others) != 1:
            instead = f"; there are {', '.join(others)}" if others else ""
            raise FileNotFoundError(
                f"{bucket.url}: no {raw}{instead}; leave its crops out, or write --verify if it is new"
            )
        bucket.renamed[raw] = f"{folder}/{others[0]}"
        files = bucket.find(f"{raw}/.z")
    for file in files:
        bucket.bring(file, place)
    try:
        names = [
            level["path"]
            for level in json.loads((place / raw / ".zattrs").read_text())["multiscales"][0][
                "datasets"
            ]
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{bucket.url}: {raw}/.zattrs is not that of an image ({error!r}); leave its crops out"
        ) from error
    for name in names:
        found = bucket.find(f"{raw}/{name}/.z")
        for file in found:
            bucket.bring(file, place)
        files = [*files, *found]
    return files


def _labels(
    bucket: Bucket, wanted: Sequence[Wanted], place: Path
) -> tuple[list[File], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The files of all classes, of the finest level where scales are asked for, and the box (nm) of each crop.

    The classes of a crop share one grid, so that one of them is opened.
    """
    paths = [f"{one.labels}/{name}" for one in wanted for name in one.classes]
    listed = dict(
        zip(
            paths,
            bucket.many(lambda path: bucket.find(f"{path}/"), paths, "listing labels"),
            strict=True,
        )
    )
    if missing := [path for path, files in listed.items() if not files]:
        more = f" and {len(missing) - 10} more classes" if len(missing) > 10 else ""
        raise FileNotFoundError(
            f"{bucket.url}: no {', '.join(missing[:10])}{more}; name other crops or classes, or write --verify if they are new"
        )

    def finest(one: Wanted) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
        first = f"{one.labels}/{one.classes[0]}"
        for file in filter(_is_metadata, listed[first]):
            bucket.bring(file, place)
        level = ngff.open_levels(place / first)[0]
        return level.path.name, level.box()

    opened = bucket.many(finest, wanted, "reading the labels' metadata")
    files = []
    for one, (level, _) in zip(wanted, opened, strict=True):
        for name in one.classes:
            path = f"{one.labels}/{name}"
            files += [
                file
                for file in listed[path]
                if _is_metadata(file) or not one.scales or file.path.startswith(f"{path}/{level}/")
            ]
    return files, {one.labels: box for one, (_, box) in zip(wanted, opened, strict=True)}


def _raw_chunks(
    one: Wanted, levels: Sequence[ngff.Level], box: tuple[np.ndarray, np.ndarray], place: Path
) -> Iterator[tuple[str, dict[str, set[str]]]]:
    """For each level that is wanted its path, and the paths of the chunks around a crop by the beginning that a row along x shares."""
    lower, upper = box
    outer = levels[0].box()
    if (lower >= outer[1]).any() or (upper <= outer[0]).any():
        raise UserError(
            f"{one.store}: {one.name} lies outside of its raw; check its translation, or leave it out"
        )
    scales = (
        [level.scale for level in levels]
        if not one.scales
        else [np.array(scale) for scale in one.scales]
    )
    for scale in scales:
        level = ngff.pick_level(levels, scale)
        padding = REACH * scale if one.padding_nm is None else one.padding_nm
        margin = padding + SLACK * np.maximum(scale, level.scale)
        corner = level.box()[0]
        start = np.clip(np.floor((lower - margin - corner) / level.scale), 0, level.shape).astype(
            int
        )
        stop = np.clip(np.ceil((upper + margin - corner) / level.scale), 0, level.shape).astype(int)
        z, y, x = (
            range(a // n, -(-b // n))
            for a, b, n in zip(start.tolist(), stop.tolist(), level.array.chunks, strict=True)
        )
        separator = json.loads((level.path / ".zarray").read_text()).get("dimension_separator", ".")
        path = level.path.relative_to(place).as_posix()
        rows = [f"{path}/{i}{separator}{j}{separator}" for i, j in itertools.product(z, y)]
        yield path, {row: {f"{row}{k}" for k in x} for row in rows}


# the bucket


class Bucket:
    """A public bucket over HTTPS: what it holds, remembered in a journal, and the content of its objects, verified.

    Paths are those under the data root; `renamed` says which folders have another name in the bucket, `brought` what `bring`
    fetched. verify: nothing that was remembered or is there is trusted.
    """

    def __init__(
        self, url: str, journal: Path, workers: int, read_only: bool = False, verify: bool = False
    ):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UserError(
                f"{url}: not the address of a bucket; write one with http or https, such as {URL}"
            )
        self.url, self.workers, self.verify = url.rstrip("/"), workers, verify
        self.renamed: dict[str, str] = {}
        self.brought: set[str] = set()
        self._listed = {} if verify else _remembered(journal, self.url)
        self._journal = None if read_only else open(journal, "wb" if verify else "ab")
        self._writing, self._stopped = threading.Lock(), threading.Event()
        self._pool = _pool(self.url, workers)

    def __enter__(self) -> Bucket:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()
        if self._journal:
            self._journal.close()

    def find(self, prefix: str) -> list[File]:
        """Every object whose path begins with `prefix`."""
        key = self._key(prefix)
        if key not in self._listed:
            objects = [item for page in self._pages(key) for item in page.iterfind("{*}Contents")]
            texts = [
                [item.findtext(f"{{*}}{name}", "") for name in ("Key", "Size", "ETag")]
                for item in objects
            ]
            files = [
                text
                for text in texts
                if not text[0].endswith("/") and ".." not in text[0].split("/")
            ]
            self._remember(
                key,
                [
                    [name.removeprefix(key), int(size), etag.strip('"')]
                    for name, size, etag in files
                ],
            )
        return [File(prefix + name, size, etag) for name, size, etag in self._listed[key]]

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders in the folder `prefix`; not remembered."""
        pages = self._pages(self._key(prefix), delimiter="/")
        names = [
            item.findtext("{*}Prefix", "")
            for page in pages
            for item in page.iterfind("{*}CommonPrefixes")
        ]
        return [name.rstrip("/").rpartition("/")[2] for name in names]

    def get(self, file: File, root: Path) -> bytes:
        """The content of an object; `root` has the metadata of its array. Raises OSError if it is not what was listed."""
        return self._read(
            f"/{quote(self._key(file.path))}", lambda content: flaw(content, file, root)
        )

    def bring(self, file: File, root: Path) -> None:
        """Fetch an object to its place, if it is not there."""
        if not _is_there(root, file, self.verify):
            _write(root / file.path, self.get(file, root))
            self.brought.add(file.path)

    def many(
        self,
        work: Callable[[T], R],
        items: Iterable[T],
        what: str,
        each: Callable[[R], None] | None = None,
    ) -> list[R]:
        """work(item) for all items in their order, on several threads; `each` is given results as they come, which are not kept then.

        The first error, also of `each`, or Ctrl-C ends it: what is under way is finished, nothing else is begun.
        """
        items = list(items)
        results: dict[int, R] = {}
        waiting, left = {}, iter(enumerate(items))
        quiet = None if what else True
        with (
            ThreadPoolExecutor(self.workers) as pool,
            tqdm(total=len(items), desc=what, disable=quiet, leave=False) as bar,
        ):
            try:
                while True:
                    for number, item in itertools.islice(left, 4 * self.workers - len(waiting)):
                        waiting[pool.submit(work, item)] = number
                    if not waiting:
                        return [results[number] for number in range(len(results))]
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        number, result = waiting.pop(future), future.result()
                        if each:
                            each(result)
                        else:
                            results[number] = result
                        bar.update()
            except BaseException:
                self._stopped.set()  # no further tries
                for future in waiting:
                    future.cancel()
                raise

    def _key(self, path: str) -> str:
        for here, there in tuple(self.renamed.items()):
            if path.startswith(f"{here}/"):
                return there + path[len(here) :]
        return path

    def _pages(self, prefix: str, **query: str) -> Iterator[ET.Element]:
        """The pages of a listing. Source: Amazon S3 API reference, ListObjectsV2."""
        query = {"list-type": "2", "prefix": prefix, **query}
        while True:
            page = ET.fromstring(self._read(f"/?{urlencode(query)}", _flaw_of_listing))
            yield page
            if page.findtext("{*}IsTruncated") != "true":
                return
            query["continuation-token"] = page.findtext("{*}NextContinuationToken", "")

    def _read(self, address: str, flaw_of: Callable[[bytes], str]) -> bytes:
        """What the server sends, asked again while it does not answer, is overloaded or sends something flawed."""
        for attempt in range(TRIES):
            if attempt and self._stopped.wait(
                BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            ):
                break
            try:
                response = self._pool.request("GET", self.url + address, decode_content=False)
            except urllib3.exceptions.HTTPError as error:
                problem = (
                    f"cannot be reached or breaks off ({getattr(error, 'reason', None) or error})"
                )
                continue
            if response.status == 200:
                problem = flaw_of(response.data)
                if not problem:
                    return response.data
            elif response.status == 429 or response.status >= 500:
                problem = f"is overloaded or out of order (answer {response.status})"
            else:
                meanings = {
                    403: "it is not public, or a proxy is in the way",
                    404: "there is no such thing, or no longer",
                }
                meaning = meanings.get(response.status, "check the address")
                raise FileError(
                    f"{self.url}{address}: refused (answer {response.status}): {meaning}"
                )
        raise FileError(
            f"{self.url}{address}: {problem}, {attempt + 1} times; run the same command again later, it goes on where it stopped"
        )

    def _remember(self, key: str, found: list) -> None:
        """A record stands between line ends, so that one that was cut short by a crash takes no other with it."""
        self._listed[key] = found
        if self._journal:
            with self._writing:
                self._journal.write(
                    f"\n{json.dumps([self.url, key, found], separators=(',', ':'))}\n".encode()
                )
                self._journal.flush()


def _remembered(journal: Path, url: str) -> dict[str, list]:
    found = {}
    if journal.is_file():
        with open(journal, "rb") as lines:
            for line in filter(bytes.strip, lines):
                with contextlib.suppress(ValueError):  # cut short
                    where, key, files = json.loads(line)
                    if where == url:
                        found[key] = files
    return found


def _pool(url: str, connections: int) -> urllib3.PoolManager:
    """Connections that stay open, through the proxy that the environment names."""
    parts = urlsplit(url)
    options: dict = {
        "maxsize": connections,
        "timeout": urllib3.Timeout(TIMEOUT_S),
        "ssl_context": ssl.create_default_context() if parts.scheme == "https" else None,
        "retries": urllib3.Retry(
            connect=0, read=0, status=0, other=0, redirect=3, respect_retry_after_header=False
        ),
    }
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def _flaw_of_listing(content: bytes) -> str:
    with contextlib.suppress(ET.ParseError):
        if ET.fromstring(content).tag.endswith("ListBucketResult"):
            return ""
    return "sends no listing of a bucket"


# files


def flaw(content: bytes, file: File, root: Path) -> str:
    """What is wrong with the content of an object, or nothing. Without an MD5 in its ETag a chunk is decoded."""
    if len(content) != file.size:
        return f"sends {len(content):,} bytes of {file.size:,}"
    if re.fullmatch(r"[0-9a-f]{32}", file.etag):
        return (
            ""
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == file.etag
            else "sends something with another MD5"
        )
    return (
        ""
        if _is_metadata(file) or _decodes(content, _compressor((root / file.path).parent))
        else "sends a chunk that cannot be decoded"
    )


@functools.lru_cache(maxsize=4096)
def _compressor(folder: Path) -> dict | None:
    """How the chunks in a folder of an array are compressed; None: they are not, or it is not known."""
    arrays = [
        parent / ".zarray"
        for parent in (folder, *folder.parents[:2])
        if (parent / ".zarray").is_file()
    ]
    return json.loads(arrays[0].read_text())["compressor"] if arrays else None


def _decodes(content: bytes, compressor: dict | None) -> bool:
    if compressor is None:
        return True
    if compressor["id"] == "blosc" and (
        len(content) < 16 or int.from_bytes(content[12:16], "little") != len(content)
    ):
        return False  # numcodecs would read on beyond its end
    try:
        numcodecs.get_codec(compressor).decode(content)
    except Exception:  # every codec has errors of its own
        return False
    return True


def _is_there(root: Path, file: File, verify: bool = False) -> bool:
    """Whether a file has its size, and, if it is metadata or to be verified, its content."""
    try:
        if os.stat(root / file.path).st_size != file.size:
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    trusted = not verify and not _is_metadata(
        file
    )  # other chunks or another dtype often take as many letters
    return trusted or not flaw((root / file.path).read_bytes(), file, root)


def _write(path: Path, content: bytes) -> None:
    """The whole file or none."""
    part = path.with_name(f".{path.name}.part")  # one run at a time: the next one writes over it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise FileError(
            f"{path}: cannot be written ({error.strerror or error}); free space, and run the same command again"
        ) from error


def _count(files: Sequence[File], new: set[str]) -> Report:
    """`new`: paths that are fetched, or were while planning."""
    sizes = [file.size for file in files]
    fetched = [file.size for file in files if file.path in new]
    return Report(
        len(sizes),
        sum(sizes),
        len(sizes) - len(fetched),
        sum(sizes) - sum(fetched),
        len(fetched),
        sum(fetched),
    )


def _say_sizes(
    root: Path,
    wanted: Sequence[Wanted],
    files: Sequence[File],
    report: Report,
    say: Callable[[str], None],
) -> None:
    def line(what: str, n: int, size: int) -> str:
        return f"  {what:14}{n:>10,} files {tqdm.format_sizeof(size):>8}B"

    raw = [file.size for file in files if f"/{layout.RAW}/" in file.path]
    say(f"{len(wanted)} crops of {len({one.dataset for one in wanted})} datasets")
    say(line("raw", len(raw), sum(raw)))
    say(line("labels", report.files - len(raw), report.bytes - sum(raw)))
    say(line("there already", report.skipped, report.skipped_bytes))
    say(line("to fetch", report.fetched, report.fetched_bytes))
    say(f"  {tqdm.format_sizeof(_free(root))}B free in {root}")


def _free(root: Path) -> int:
    return shutil.disk_usage(
        next(folder for folder in (root, *root.parents) if folder.is_dir())
    ).free


def _check_space(root: Path, missing: Sequence[File]) -> None:
    needed, free = sum(-(-file.size // BLOCK) * BLOCK for file in missing), _free(root)
    if needed > free:
        raise FileError(
            f"{root}: {tqdm.format_sizeof(needed)}B to write and {tqdm.format_sizeof(free)}B free; free space, write --data FOLDER of a "
            "larger disk, or fetch fewer crops or classes"
        )


def _download(
    bucket: Bucket, missing: Sequence[File], root: Path, say: Callable[[str], None]
) -> None:
    """Metadata come first. A file that fails does not stop the others; OSError at the end, or when MAX_FAILURES have."""
    problems: list[str] = []
    done = 0

    def work(file: File) -> tuple[File, str]:
        try:
            content = bucket.get(file, root)
        except OSError as error:
            return file, str(error)
        _write(root / file.path, content)
        return file, ""

    def each(result: tuple[File, str]) -> None:
        nonlocal done
        file, problem = result
        done += not problem
        bar.update(0 if problem else file.size)
        problems.extend(filter(None, [problem]))
        if len(problems) >= MAX_FAILURES:
            raise _failure(problems, len(missing))

    with tqdm(
        total=sum(file.size for file in missing), unit="B", unit_scale=True, disable=None
    ) as bar:
        try:
            for some in (
                filter(_is_metadata, missing),
                itertools.filterfalse(_is_metadata, missing),
            ):
                bucket.many(work, some, "", each)
        except KeyboardInterrupt:
            say(
                f"stopped with {done:,} of {len(missing):,} files; run the same command again, it goes on from there"
            )
            raise
    if problems:
        raise _failure(problems, len(missing))


def _failure(problems: Sequence[str], asked: int) -> OSError:
    return OSError(
        "\n".join(
            [
                *problems,
                f"{len(problems)} of {asked:,} files could not be fetched; what came is kept",
            ]
        )
    )


def _next(
    crops: str, wanted: Sequence[Wanted], for_experiment: str | Path, data: str | Path | None
) -> str:
    """What to run next."""
    where = ["--data", str(data)] if data else []
    if all(one.usage == "test" for one in wanted):
        words = ["predict", str(for_experiment or "EXPERIMENT"), "--crops", crops, *where]
    elif for_experiment:
        words = ["train", str(for_experiment), *where]
    else:
        size = next((f"{one.scales[0][0]:g}" for one in wanted if one.scales), "8")
        words = ["make-datasplit", "datasplit.csv", *where, "--scale", size]
    return "next: python -m cellmap_segmentation_challenge " + shlex.join(words)
