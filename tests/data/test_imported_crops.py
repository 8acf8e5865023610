"""Imported datasets as training sees them: copies and links alike, anew when a file changes."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from common.data.crops.cache import CropCache
from common.data.crops.opened import open_crops
from common.data.crops.palette import Rules
from common.data.crops.plan import CropRequest
from common.data.splits.split import Row
from common.data.volumes import layout
from tests.data.own_import import import_data

SHAPE = (24, 30, 36)
RAW = np.random.default_rng(7).integers(1, 255, SHAPE, np.uint8)
SEVERAL = np.indices(SHAPE).sum(0) // 9 % 4
"""0 is unknown, 1 granule, 2 mito, 3 neither."""

SIZE = (8.0, 8.0, 8.0)


@pytest.fixture
def given(tmp_path):
    tifffile.imwrite(tmp_path / "raw.tif", RAW, compression="zlib")
    tifffile.imwrite(tmp_path / "all.tif", SEVERAL.astype(np.uint8), compression="zlib")
    return tmp_path


def row(given, name: str, annotated=("granule", "mito"), link: bool = False) -> Row:
    """The row of a data split of an imported crop."""
    several = f"{given}/all.tif"
    labels = {
        "granule": f"{several}#value=1&unknown=0",
        "mito": f"{several}#value=2&unknown=0",
    }
    store = import_data(
        f"{given}/raw.tif",
        name,
        labels={key: labels[key] for key in annotated},
        crops=["2:22,:,3:33"],
        voxel_size=SIZE,
        link=link,
        data=given / "data",
        say=lambda _: None,
    )
    return Row("train", store / layout.RAW, store / layout.LABELS / "crop1", tuple(annotated))


def opened(given, of: Row, **settings):
    request = CropRequest(
        classes=("granule", "mito", "er"),
        input_scale=SIZE,
        target_scale=SIZE,
        patch_nm=np.array(SIZE),
        margins_nm={"train": np.full(3, 16.0)},
        **settings,
    )
    (crop,) = open_crops([of], request, CropCache(given / "cache", 1))
    return crop


def truth(crop) -> np.ndarray:
    """(z, y, x, classes) of 1, 0 and -1."""
    return crop.palette[crop.labels()]


def test_a_crop_of_a_link_is_that_of_a_copy(given):
    copy = opened(given, row(given, "copy"))
    link = opened(given, row(given, "link", link=True))
    np.testing.assert_array_equal(truth(copy), truth(link))
    np.testing.assert_array_equal(copy.raw(), link.raw())
    np.testing.assert_allclose(copy.label_grid.origin, link.label_grid.origin)
    values = SEVERAL[2:22, :, 3:33]
    np.testing.assert_array_equal(truth(link)[..., 0] == 1, values == 1)
    np.testing.assert_array_equal(truth(link)[..., 1] == -1, values == 0)


def test_a_linked_file_that_changes_is_decoded_again(given, monkeypatch):
    of = row(given, "link", link=True)
    first = opened(given, of)
    monkeypatch.setattr(
        "common.data.crops.opened.decode", None
    )  # what is in the cache is not decoded
    assert opened(given, of).folder == first.folder
    monkeypatch.undo()
    turned = np.where(SEVERAL == 2, 1, SEVERAL).astype(np.uint8)
    tifffile.imwrite(given / "all.tif", turned, compression="zlib")
    second = opened(given, of)
    assert second.folder != first.folder
    np.testing.assert_array_equal(truth(second)[..., 0] == 1, turned[2:22, :, 3:33] == 1)


def test_true_negatives_of_a_declared_class_reach_the_crop(given):
    of = row(given, "copy", annotated=["granule"])
    relations = {"granule": {"excludes": ["mito", "er"]}}
    plain = truth(opened(given, of))
    declared = truth(opened(given, of, rules=Rules(class_relations=relations)))
    values = SEVERAL[2:22, :, 3:33]
    assert (plain[..., 1:] == -1).all()
    np.testing.assert_array_equal(declared[..., 0], plain[..., 0])
    expected = np.where(values == 1, 0, -1)
    np.testing.assert_array_equal(declared[..., 1], expected)
    np.testing.assert_array_equal(declared[..., 2], expected)
