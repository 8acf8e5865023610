"""One crop becomes a part that trains and a part that validates."""

from __future__ import annotations

import numpy as np
import pytest

from common.data.own.cut import GAP, LEAST_VALIDATED, choose_cut, cut_crop
from common.data.own.facts import look
from common.data.splits.catalogue import is_part, scan
from common.data.volumes import layout
from common.data.volumes.annotation import encoding_of
from common.data.volumes.ngff import open_levels, write_multiscale

UNKNOWN = {
    "cellmap": {
        "annotation": {
            "annotation_type": {
                "type": "semantic_segmentation",
                "encoding": {"absent": 0, "unknown": 9},
            },
            "complement_counts": {"absent": 5},
        }
    }
}


@pytest.fixture
def crop(tmp_path):
    """Writes classes of a crop; gives its folder and the facts of each."""

    def make(volumes: dict[str, np.ndarray], attributes=None, scales=None):
        folder = tmp_path / "crop1"
        labels = []
        for name, volume in volumes.items():
            scale = (scales or {}).get(name, (8, 8, 8))
            write_multiscale(folder / name, volume, scale, (100, 0, 0), attributes=attributes)
            labels.append(look(open_levels(folder / name)[0], name))
        return folder, labels

    return make


def voxels(group):
    level = open_levels(group)[0]
    return level.read((0, 0, 0), level.shape), level.translation


def test_the_parts_are_the_voxels_of_their_place(crop):
    mito = np.random.default_rng(0).integers(0, 2, (20, 30, 100), np.uint8)
    folder, labels = crop({"mito": mito})
    cut = choose_cut(labels)
    assert cut is not None and (cut.axis, cut.gap) == (2, 10)
    folders = cut_crop(folder, cut, labels)
    for usage, part in folders.items():
        start, stop = cut.box(usage, np.array(mito.shape))
        values, translation = voxels(part / "mito")
        np.testing.assert_array_equal(values, mito[:, :, start[2] : stop[2]])
        np.testing.assert_allclose(translation, (100, 0, 8 * start[2]))
        assert is_part(part)
    assert not is_part(folder)
    assert {part.name for part in folders.values()} == {"crop1-train", "crop1-validate"}


def test_crops_are_listed_without_their_parts_unless_these_are_named(tmp_path):
    store = tmp_path / layout.store("cell")
    mito = np.random.default_rng(0).integers(0, 2, (20, 30, 100), np.uint8)
    write_multiscale(store / layout.RAW, mito, (8, 8, 8))
    folder = store / layout.LABELS / "crop1"
    write_multiscale(folder / "mito", mito, (8, 8, 8))
    labels = [look(open_levels(folder / "mito")[0], "mito")]
    cut = choose_cut(labels)
    assert cut is not None
    cut_crop(folder, cut, labels)
    assert [crop.name for crop in scan(tmp_path)[0]] == ["crop1"]
    assert [crop.name for crop in scan(tmp_path, crops=["crop1-*", "crop1-train"])[0]] == [
        "crop1-train"
    ]


def test_a_gap_of_half_a_patch_lies_between_the_parts(crop):
    mito = np.ones((20, 400, 20), np.uint8)
    _, labels = crop({"mito": mito})
    cut = choose_cut(labels)
    assert (cut.axis, cut.gap) == (1, GAP)
    assert str(cut) == "80 of 400 planes along y validate, 16 are left out"


def test_both_parts_have_every_class_where_that_can_be(crop):
    """er is at one end of x alone, so that the cut goes across another axis."""
    er = np.zeros((60, 60, 100), np.uint8)
    er[:, :, :20] = 1
    mito = np.zeros_like(er)
    mito[:, ::2] = 1
    _, labels = crop({"mito": mito, "er": er})
    assert choose_cut(labels).axis in (0, 1)


def test_the_end_is_taken_that_is_most_like_the_rest(crop):
    mito = np.zeros((20, 20, 100), np.uint8)
    mito[:, ::4] = 1
    mito[:, :, 80:] = 1
    _, labels = crop({"mito": mito})
    assert choose_cut(labels).validate == slice(0, 20)


@pytest.mark.parametrize("planes", [47, 48, 60])
def test_a_small_crop_is_not_cut(crop, planes):
    _, labels = crop({"mito": np.ones((10, 10, planes), np.uint8)})
    cut = choose_cut(labels)
    assert (cut is None) == (planes < 48)
    if cut:
        assert cut.validate.stop - cut.validate.start == LEAST_VALIDATED


def test_classes_of_other_voxels_are_cut_at_the_same_place(crop):
    fine = np.ones((20, 20, 200), np.uint8)
    _, labels = crop({"mito": fine, "er": fine[::2, ::2, ::2]}, scales={"mito": (4, 4, 4)})
    cut = choose_cut(labels)
    coarse_start, coarse_stop = cut.box("train", np.array((10, 10, 100)))
    fine_start, fine_stop = cut.box("train", np.array(fine.shape))
    assert (2 * coarse_start[2], 2 * coarse_stop[2]) == (fine_start[2], fine_stop[2])


def test_what_means_unknown_is_kept_and_counts_of_the_whole_are_not(crop):
    mito = np.ones((10, 10, 60), np.uint8)
    mito[0] = 9
    folder, labels = crop({"mito": mito}, UNKNOWN)
    part = cut_crop(folder, choose_cut(labels), labels)["train"]
    encoding = encoding_of(open_levels(part / "mito")[0], "mito")
    assert (encoding.unknown, encoding.is_instance, encoding.counted) == (9, False, None)


def test_parts_that_are_there_are_left_alone_until_the_labels_change(crop):
    mito = np.ones((10, 10, 60), np.uint8)
    folder, labels = crop({"mito": mito})
    array = folder.parent / "crop1-train/mito/s0/.zarray"
    cut_crop(folder, choose_cut(labels), labels)
    before = array.stat().st_mtime_ns
    cut_crop(folder, choose_cut(labels), labels)
    assert array.stat().st_mtime_ns == before
    folder, labels = crop({"mito": 2 * mito})
    part = cut_crop(folder, choose_cut(labels), labels)["train"]
    assert voxels(part / "mito")[0].max() == 2
