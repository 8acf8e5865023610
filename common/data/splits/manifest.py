"""Read the challenge's manifest of test crops: the volumes of a submission, and their grids.

One row for each (crop, class), with a header:

    crop_name,dataset,class_label,voxel_size,translation,shape
    557,jrc_ctl-id8-1,mito,[1.74;2.0;2.0],[23837.0;7599.0;35999.0],[600;600;600]

`translation` is the centre of the first voxel, not its corner: the organisers copy it from the NGFF
metadata of the label arrays, and the numbers agree. In jrc_mus-nacc-1, crop 982 has voxels of 16 nm
and begins at 6 nm, over voxels of 4 nm at 0, 4, 8 and 12; crop 561 has voxels of 2 nm and begins at
199 nm, the lower half of the one at 200. As corners they would lie askew to the raw. (The toolbox's
predict takes it for the corner of a box, half a voxel off.)
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np

from common import files
from common.data.volumes import layout
from common.data.volumes.box import around
from common.data.volumes.level import Grid
from common.errors import FileError, UserError, refuse
from common.talk import Say

URL = (
    "https://raw.githubusercontent.com/janelia-cellmap/cellmap-segmentation-challenge/"
    "refs/heads/main/src/cellmap_segmentation_challenge/utils/test_crop_manifest.csv"
)
"""413 rows, 16 crops.

The environment variable CSC_TEST_CROP_MANIFEST_URL replaces it, as in the public toolbox.
"""

COLUMNS = ("crop_name", "dataset", "class_label", "voxel_size", "translation", "shape")
TIMEOUT_S = 60

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Entry:
    """One row of the manifest: a volume of a submission."""

    crop: str
    """Name of its folder, such as 'crop557'."""
    dataset: str
    name: str
    """The class."""
    voxel_size: tuple[float, float, float]
    """nm, z, y, x."""
    translation: tuple[float, float, float]
    """Position of the centre of the first voxel in nm, z, y, x."""
    shape: tuple[int, int, int]

    @property
    def path(self) -> str:
        """Path of its array in a submission, such as 'crop557/mito'."""
        return f"{self.crop}/{self.name}"

    def grid(self) -> Grid:
        """Return where its voxels are."""
        return Grid(np.array(self.translation), np.array(self.voxel_size), self.shape)


def read(path: str | Path) -> list[Entry]:
    """Return the rows of a manifest, in the order of the file; crop 557 may be written crop557.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: with everything that is wrong, one line each.
    """
    path = Path(path)
    if not files.is_file(path):
        raise FileNotFoundError(
            f"{path}: no such manifest; write the path of a test_crop_manifest.csv"
        )
    return parse(path.read_bytes(), str(path))


def by_crop(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Return the entries by (dataset, crop), in their order."""
    crops: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        crops.setdefault((entry.dataset, entry.crop), []).append(entry)
    return crops


def box_around(entries: Sequence[Entry]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper corner (nm) of the box around all of these volumes.

    The classes of a test crop have different voxel sizes, so that their boxes differ a little.
    """
    return around([entry.grid().box() for entry in entries])


def fetch(cache: str | Path, url: str = URL, say: Say = print) -> Path:
    """Return the manifest's file in `cache`/manifests, downloaded if it is not there.

    Its SHA-256 stands beside it. A manifest from another address is another file.

    Raises:
        UserError: for an address that is not http, https or file, and for a file that is not the
            one that was downloaded.
        FileError: if there is none and it cannot be downloaded.
    """
    url = os.environ.get("CSC_TEST_CROP_MANIFEST_URL") or url
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise UserError(
            f"{url}: not an address with http, https or file; write one, or give --manifest FILE"
        )
    address = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path(cache) / "manifests" / f"test_crops_{address}.csv"
    record = path.with_name(path.name + ".sha256")
    if path.is_file() and record.is_file():
        if files.sha256_of_file(path) != record.read_text().split(" ")[0]:
            raise UserError(
                f"{path}: not what {record.name} says was downloaded; "
                "delete both to download it again"
            )
        return path
    content = _download(url)
    digest = hashlib.sha256(content).hexdigest()
    # first, so that a manifest is never without it
    files.write_text(record, f"{digest}  {path.name}\n")
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)
    say(f"{path}: the manifest of test crops, downloaded from {url}, SHA-256 {digest}")
    return path


def _download(url: str) -> bytes:
    """Return what `url` sends, if it is a manifest. Raises FileError."""
    # said here, because cellmap-models turns verification off for the whole process
    verified = ssl.create_default_context()
    try:
        with urlopen(url, timeout=TIMEOUT_S, context=verified) as response:
            content = response.read()
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise _not_fetched(url, error) from error
    try:
        parse(content, "it")
    except UserError as error:
        raise _not_fetched(url, error) from error
    return content


def _not_fetched(url: str, error: Exception) -> FileError:
    reason = str(error).split("\n")[0] or type(error).__name__
    return FileError(
        f"{url}: cannot fetch the manifest of test crops ({reason}); give --manifest FILE, or the "
        "file:// address of a copy in CSC_TEST_CROP_MANIFEST_URL"
    )


def parse(content: bytes, source: str) -> list[Entry]:
    """Return the rows of a table. Raises UserError with everything that is wrong, one line each."""
    first, *lines = content.decode("utf-8-sig", errors="replace").split("\n")
    header = [name.strip() for name in first.split(",")]
    if sorted(header) != sorted(COLUMNS):
        raise UserError(
            f"{source}: line 1: columns '{first.strip()[:100]}'; write {','.join(COLUMNS)}"
        )
    entries: dict[str, Entry] = {}
    problems = []
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        try:
            entry = _entry(header, line)
        except UserError as error:
            problems += [f"line {number}: {problem}" for problem in error.args]
            continue
        if entry.path in entries:
            problems.append(
                f"line {number}: {entry.path} stands there already; "
                "write one row for each crop and class"
            )
        entries.setdefault(entry.path, entry)
    if not problems and not entries:
        problems.append("no crops in it; write one row for each crop and class")
    refuse(problems, source)
    return list(entries.values())


def _entry(header: Sequence[str], line: str) -> Entry:
    """Return one row. Raises UserError with one argument for each problem."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(header):
        raise UserError(
            f"{len(fields)} columns; write {len(header)}, "
            "the numbers of a list separated by semicolons"
        )
    row = dict(zip(header, fields, strict=True))
    # names become folders: nothing that climbs out of the submission
    problems = [
        f"{column} '{row[column]}'; write the name of a folder"
        for column in ("crop_name", "dataset", "class_label")
        if not re.fullmatch(r"\w[\w.-]*", row[column])
    ]
    entry = Entry(
        crop=layout.crop_name(row["crop_name"]),
        dataset=row["dataset"],
        name=row["class_label"],
        voxel_size=_three(row, "voxel_size", float, problems),
        translation=_three(row, "translation", float, problems),
        shape=_three(row, "shape", int, problems),
    )
    if problems:
        raise UserError(*problems)
    return entry


def _three(
    row: dict[str, str], column: str, kind: Callable[[str], N], problems: list[str]
) -> tuple[N, N, N]:
    """Return the numbers of '[z;y;x]'; if it holds none, zeros and one more problem."""
    lowest = -np.inf if column == "translation" else 0
    text = row[column].removeprefix("[").removesuffix("]")
    try:
        z, y, x = map(kind, text.split(";"))
    except ValueError:
        valid = False
    else:
        valid = all(lowest < number < np.inf for number in (z, y, x))  # so that NaN is refused too
    if valid:
        return z, y, x
    above = "" if column == "translation" else " above zero"
    example = "[600;600;600]" if column == "shape" else "[4.0;4.0;4.0]"
    problems.append(f"{column} '{row[column]}'; write three numbers{above} as {example}")
    return kind("0"), kind("0"), kind("0")
