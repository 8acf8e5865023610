"""The tables of training and test crops, as rows of the public toolbox.

`__getattr__` returns TEST_CROPS and TEST_CROPS_DICT: the table may have to be downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

import numpy as np

from cellmap_segmentation_challenge._public import names_of
from cellmap_segmentation_challenge.config import GT_S3_BUCKET
from common.data.splits import catalogue, manifest
from common.data.volumes import layout
from common.errors import FileError
from common.files import cache_folder
from common.talk import say

_of_the_toolbox = names_of(__name__, {})

ALIGNMENT = layout.RECONSTRUCTION.strip("/")
TIMEOUT_S = 60


@dataclass
class TestCropRow:
    """A class of a test crop: one volume of a submission."""

    __test__ = False  # pytest takes it for a test by its name

    id: int
    """Number of the crop."""
    dataset: str
    class_label: str
    voxel_size: tuple[float, ...]
    """nm, z, y, x."""
    translation: tuple[float, ...]
    """Position of the centre of the first voxel in nm, z, y, x."""
    shape: tuple[int, ...]

    @classmethod
    def from_csv_row(cls, row: str) -> TestCropRow:
        """Parse a line of test_crop_manifest.csv. Raises UserError."""
        [entry] = manifest.parse(f"{','.join(manifest.COLUMNS)}\n{row}".encode(), "the row")
        return _row(entry)


@dataclass
class CropRow:
    """A crop, and where its labels and its raw are."""

    id: int
    dataset: str
    alignment: str
    gt_source: str | TestCropRow
    """Address of the labels; for a test crop, whose labels are not public, the box around them."""
    em_url: str

    @classmethod
    def from_csv_row(cls, row: str) -> CropRow:
        """Parse a line of manifest.csv: id, dataset, alignment, addresses of labels and raw."""
        number, dataset, alignment, labels, raw = row.strip().split(",")
        return cls(int(number), dataset, alignment, labels, raw)


def fetch_manifest(url: str = "") -> tuple[CropRow, ...]:
    """Return the training crops: the 289 that this package knows, or those of a table.

    url: of a manifest.csv; http, https or file. Raises FileError.
    """
    if not url:
        return tuple(_training_row(crop) for crop in catalogue.read_crop_table())
    try:
        with urlopen(str(url), timeout=TIMEOUT_S) as response:
            lines = response.read().decode().splitlines()
        return tuple(CropRow.from_csv_row(line) for line in lines[1:] if line.strip())
    except (OSError, ValueError) as error:
        raise FileError(f"{url}: not a table of crops that can be read ({error})") from error


def fetch_test_crop_manifest(url: str = manifest.URL) -> tuple[TestCropRow, ...]:
    """Return the rows of the table of test crops, which is downloaded once into the cache.

    CSC_TEST_CROP_MANIFEST_URL goes before `url`. Raises UserError, or FileError if it cannot be
    downloaded.
    """
    entries = manifest.read(manifest.fetch(cache_folder(), str(url), say))
    return tuple(map(_row, entries))


def get_test_crops() -> tuple[CropRow, ...]:
    """Return a row for each test crop, with a box for the volumes of its classes.

    The box has their smallest voxel size, smallest translation and largest shape along each axis.
    """
    of_crop: dict[int, list[TestCropRow]] = {}
    for row in fetch_test_crop_manifest():
        of_crop.setdefault(row.id, []).append(row)
    return tuple(_around(rows) for rows in of_crop.values())


def get_test_crop_labels(crop_id: int) -> list[str]:
    """Return the classes of a test crop in the order of the table; [] for any other crop."""
    return [row.class_label for row in fetch_test_crop_manifest() if row.id == int(crop_id)]


def __getattr__(name: str) -> Any:
    if name == "TEST_CROPS":
        return fetch_test_crop_manifest()
    if name == "TEST_CROPS_DICT":
        return {(row.id, row.class_label): row for row in fetch_test_crop_manifest()}
    return _of_the_toolbox(name)


def _row(entry: manifest.Entry) -> TestCropRow:
    return TestCropRow(
        id=int(entry.crop.removeprefix("crop")),
        dataset=entry.dataset,
        class_label=entry.name,
        voxel_size=entry.voxel_size,
        translation=entry.translation,
        shape=entry.shape,
    )


def _around(rows: list[TestCropRow]) -> CropRow:
    first = rows[0]
    box = TestCropRow(
        id=first.id,
        dataset=first.dataset,
        class_label="test",
        voxel_size=tuple(np.min([row.voxel_size for row in rows], 0).tolist()),
        translation=tuple(np.min([row.translation for row in rows], 0).tolist()),
        shape=tuple(np.max([row.shape for row in rows], 0).tolist()),
    )
    return CropRow(first.id, first.dataset, ALIGNMENT, gt_source=box, em_url=_raw(first.dataset))


def _training_row(crop: catalogue.CropInfo) -> CropRow:
    labels = f"s3://{GT_S3_BUCKET}/{layout.labels(crop.dataset, crop.name)}"
    number = int(crop.name.removeprefix("crop"))
    return CropRow(number, crop.dataset, ALIGNMENT, gt_source=labels, em_url=_raw(crop.dataset))


def _raw(dataset: str) -> str:
    return f"s3://{GT_S3_BUCKET}/{layout.raw(dataset)}"
