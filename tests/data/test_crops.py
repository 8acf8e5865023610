"""Crops decoded and cached: what is known of each voxel, where raw and labels lie."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import wait_until

from common.data.crops import cache
from common.data.crops import opened as crops
from common.data.crops.cache import CHECKSUMS, CropCache, label_stamp
from common.data.crops.opened import Crop, open_crops
from common.data.crops.palette import UNKNOWN, Rules
from common.data.crops.plan import CropRequest, Decoding
from common.data.splits.split import Row
from common.data.volumes import metadata
from common.data.volumes.ngff import Grid, slices, write_multiscale
from common.errors import UserError
from tests.data import foreign_writers
from tests.volumes import changing

RANDOM = np.random.default_rng(0)
RAW = RANDOM.integers(1, 256, (20, 20, 20), np.uint8)


def write_crop(
    root: Path,
    raw: np.ndarray,
    labels: dict[str, np.ndarray],
    raw_scale: Sequence[float] = (8, 8, 8),
    label_scale: Sequence[float] = (8, 8, 8),
    raw_translation: Sequence[float] = (0, 0, 0),
    label_translation: Sequence[float] = (0, 0, 0),
    annotated: Sequence[str] = (),
    levels: int = 1,
    usage: str = "train",
) -> Row:
    """A raw volume and a crop of it in the challenge's layout.

    All its classes are annotated unless some are named."""
    store = root / "data.zarr" / "recon-1"
    write_multiscale(
        store / "em" / "fibsem-uint8", raw, raw_scale, raw_translation, levels=levels, chunk=8
    )
    crop = store / "labels" / "groundtruth" / "crop1"
    for name, volume in labels.items():
        write_multiscale(crop / name, volume, label_scale, label_translation, chunk=8)
    return Row(usage, store / "em" / "fibsem-uint8", crop, tuple(annotated or labels))


def request(
    classes: Sequence[str] = ("mito",),
    scale: Sequence[float] = (8, 8, 8),
    margin: float = 0,
    **settings,
) -> CropRequest:
    """Raw and labels at one voxel size, with patches of one voxel, unless said otherwise."""
    values = {
        "classes": tuple(classes),
        "input_scale": scale,
        "target_scale": scale,
        "patch_nm": np.array(scale, float),
        "margins_nm": dict.fromkeys(("train", "validate"), np.full(3, float(margin))),
    }
    return CropRequest(**values | settings)


def cache_in(root: Path, gigabytes: float = 1) -> CropCache:
    return CropCache(root / "cache" / "crops", gigabytes)


def open_crop(row: Row, *wanted, cache_gb: float = 1, **settings) -> Crop:
    """One crop, decoded into a cache beside its data; the arguments of `request`."""
    cache = cache_in(row.raw.parents[3], cache_gb)
    return open_crops([row], request(*wanted, **settings), cache)[0]


def volumes(crop: Crop) -> np.ndarray:
    """(classes, z, y, x) the labels of a crop: 1, 0 or -1 = unknown."""
    return np.moveaxis(crop.palette[crop.labels()], -1, 0)


def raw_within(crop: Crop, lower: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """The decoded raw from the voxel whose centre is at `lower` (nm)."""
    offset = (np.array(lower) - crop.raw_grid.origin) / crop.raw_grid.scale
    start = np.rint(offset).astype(int)
    assert (start >= 0).all()
    return np.array(crop.raw()[slices(start, start + shape)])


def blocks(
    *where: tuple[int, int, int], shape: tuple[int, int, int] = (8, 8, 8), ids: int = 1
) -> np.ndarray:
    """A volume of zeros with `ids` at some voxels."""
    volume = np.zeros(shape, np.uint8)
    for at in where:
        volume[at] = ids
    return volume


def test_labels_come_back_as_they_were_written(tmp_path):
    mito, er = RANDOM.random((2, 8, 9, 10)) < 0.3
    crop = open_crop(write_crop(tmp_path, RAW, {"mito": mito, "er": er & ~mito}), ("er", "mito"))
    np.testing.assert_array_equal(volumes(crop), [er & ~mito, mito])


def test_instance_ids_become_positive(tmp_path):
    ids = RANDOM.choice(np.array([0, 1, 7, 256, 70_000], np.uint32), (8, 8, 8))
    crop = open_crop(write_crop(tmp_path, RAW, {"mito": ids}))
    np.testing.assert_array_equal(volumes(crop)[0], ids > 0)


def test_a_class_that_the_split_does_not_name_is_unknown_though_its_folder_exists(tmp_path):
    labels = {"mito": blocks((1, 1, 1)), "nuc": blocks((2, 2, 2))}
    row = write_crop(tmp_path, RAW, labels, annotated=["mito"])
    found = volumes(open_crop(row, ("mito", "nuc"), rules=Rules(False, False)))
    assert (found[1] == -1).all()


def test_a_class_that_is_not_annotated_is_negative_where_an_excluding_one_is_positive(tmp_path):
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))})
    found = volumes(open_crop(row, ("mito", "nuc")))
    np.testing.assert_array_equal(found[1], np.where(blocks((1, 1, 1)), 0, -1))


def test_annotated_classes_that_are_not_learnt_inform_those_that_are(tmp_path):
    row = write_crop(tmp_path, RAW, {"mito_mem": blocks((1, 1, 1)), "nuc": blocks((2, 2, 2))})
    found = volumes(open_crop(row, ("mito",)))[0]
    assert found[1, 1, 1] == 1 and found[2, 2, 2] == 0 and found[3, 3, 3] == -1


def test_annotated_labels_are_used_as_they_are_and_contradictions_counted(tmp_path):
    mito = blocks((1, 1, 1), (1, 1, 2), (5, 5, 5))
    nuc = blocks((1, 1, 1), (1, 1, 2), (6, 6, 6))
    crop = open_crop(write_crop(tmp_path, RAW, {"mito": mito, "nuc": nuc}), ("mito", "nuc", "er"))
    np.testing.assert_array_equal(volumes(crop)[:2], [mito, nuc])
    assert volumes(crop)[2, 1, 1, 1] == -1
    assert crop.contradictions == 2


def test_the_palette_has_a_row_for_each_combination_and_one_for_unknown(tmp_path):
    labels = {"mito": blocks((1, 1, 1), (2, 2, 2)), "ld": blocks((3, 3, 3))}
    crop = open_crop(write_crop(tmp_path, RAW, labels), ("mito", "ld"))
    assert sorted(map(tuple, crop.palette.tolist())) == [(-1, -1), (0, 0), (0, 1), (1, 0)]
    assert crop.palette[0].tolist() == [-1, -1]
    assert (crop.labels() > 0).all()


def test_counts_are_those_of_the_labels(tmp_path):
    mito = RANDOM.random((70, 5, 6)) < 0.2
    crop = open_crop(write_crop(tmp_path, RAW.repeat(4, 0), {"mito": mito}))
    expected = np.bincount(crop.labels().ravel(), minlength=len(crop.palette))
    np.testing.assert_array_equal(crop.counts, expected)


def test_examples_are_voxels_of_their_row_from_the_whole_crop(tmp_path):
    shape = (140, 5, 6)
    labels = {"mito": RANDOM.random(shape) < 0.2, "ld": blocks((0, 3, 3), shape=shape)}
    crop = open_crop(write_crop(tmp_path, RAW.repeat(8, 0), labels), ("mito", "ld"))
    for row in np.flatnonzero(crop.counts):
        assert (crop.labels()[tuple(crop.examples[row].T)] == row).all()
    depths = crop.examples[crop.counts.argmax()][:, 0]  # uniform over 140 slices in three slabs
    assert abs(depths.mean() - 69.5) < 4 * np.sqrt(140**2 / 12 / len(depths))


def test_labels_of_more_than_255_combinations_are_kept(tmp_path):
    code = np.arange(1000).reshape(10, 10, 10)
    names = ["ecs", "pm", "cyto", "nuc", "mito", "ld", "er", "mt", "ves", "endo"]
    labels = {name: code >> bit & 1 for bit, name in enumerate(names)}
    crop = open_crop(write_crop(tmp_path, RAW, labels), names)
    np.testing.assert_array_equal(volumes(crop), list(labels.values()))


# What is not known within an annotated class


def with_unknown_255(row: Row, name: str) -> None:
    """Let the metadata of a class say that 255 is unknown, as the challenge's do."""
    annotation = {"annotation_type": {"encoding": {"absent": 0, "unknown": 255}}}
    path = row.crop / name / "s0" / ".zattrs"
    path.write_text(json.dumps({"cellmap": {"annotation": annotation}}))


def test_what_the_metadata_call_unknown_is_not_learnt(tmp_path):
    """In labels, counts and examples; another class is known in the same voxels."""
    er = blocks((1, 1, 1))
    er[4:] = 255
    mito = blocks((2, 2, 2), (5, 5, 5))
    row = write_crop(tmp_path, RAW, {"er": er, "mito": mito})
    with_unknown_255(row, "er")
    crop = open_crop(row, ("er", "mito"), rules=Rules(False, False))
    np.testing.assert_array_equal(volumes(crop), [np.where(er == 255, -1, er.astype(int)), mito])
    positive = crop.palette[:, 0] == 1
    assert crop.counts[positive].sum() == 1
    assert (crop.examples[positive & (crop.counts > 0)] == 1).all()
    assert crop.remarks == (("er", "255 (by its metadata) was taken for unknown"),)


def test_unknown_voxels_follow_from_other_classes_as_those_of_unannotated_ones_do(tmp_path):
    nuc = np.full((8, 8, 8), 255, np.uint8)
    row = write_crop(tmp_path, RAW, {"nuc": nuc, "mito": blocks((1, 1, 1))})
    with_unknown_255(row, "nuc")
    found = volumes(open_crop(row, ("nuc", "mito")))[0]
    np.testing.assert_array_equal(found, np.where(blocks((1, 1, 1)), 0, -1))


def test_a_coarse_voxel_is_unknown_where_its_unknown_voxels_decide(tmp_path):
    """Blocks of 2^3 along x, of which more than half must be positive."""
    fine = np.zeros((2, 2, 10), np.uint8)
    for block, (positive, unknown) in enumerate([(5, 3), (4, 1), (2, 2), (0, 5), (0, 4)]):
        values = [1] * positive + [255] * unknown + [0] * (8 - positive - unknown)
        fine[:, :, 2 * block : 2 * block + 2] = np.reshape(values, (2, 2, 2))
    row = write_crop(tmp_path, RAW, {"er": fine}, label_scale=(4, 4, 4))
    with_unknown_255(row, "er")
    assert volumes(open_crop(row, ("er",)))[0].tolist() == [[[1, -1, 0, -1, 0]]]


def test_negative_labels_and_nan_are_unknown(tmp_path):
    er = blocks((1, 1, 1)).astype(np.float32)
    er[5] = np.nan
    mito = blocks((1, 1, 1)).astype(np.int16)
    mito[6] = -1
    row = write_crop(tmp_path, RAW, {"er": er, "mito": mito})
    found = volumes(open_crop(row, ("er", "mito"), rules=Rules(use_mutual_exclusion=False)))
    assert (found[0, 5] == -1).all() and (found[1, 6] == -1).all()
    assert (found == -1).sum() == 128 and (found == 1).sum() == 2


# Labels finer than the training grid


def test_finer_labels_are_reduced_by_majority(tmp_path):
    """Four blocks of 2^3 along x, with 3, 4, 5 and 8 positive voxels: more than half is 5."""
    fine = np.zeros((2, 2, 8), np.uint8)
    for block, n in enumerate((3, 4, 5, 8)):
        fine[:, :, 2 * block : 2 * block + 2] = (np.arange(8) < n).reshape(2, 2, 2)
    crop = open_crop(write_crop(tmp_path, RAW, {"mito": fine}, label_scale=(4, 4, 4)))
    assert volumes(crop)[0].tolist() == [[[0, 0, 1, 1]]]


@pytest.mark.parametrize("corner", [True, False])
def test_majority_is_not_striding(tmp_path, corner):
    """The first fine voxel is the odd one out: striding takes it, majority does not."""
    fine = np.full((2, 2, 2), not corner, np.uint8)
    fine[0, 0, 0] = corner
    crop = open_crop(write_crop(tmp_path, RAW, {"mito": fine}, label_scale=(4, 4, 4)))
    assert volumes(crop)[0].tolist() == [[[int(not corner)]]]


def test_anisotropic_labels_are_reduced_by_a_factor_for_each_axis(tmp_path):
    """2.62 x 2 x 2 nm to 8 nm: blocks of 3 x 4 x 4 voxels, that is 7.86 x 8 x 8 nm."""
    fine = RANDOM.random((7, 9, 8)) < 0.5
    place = {"label_scale": (2.62, 2, 2), "label_translation": (26.2, 40, 42)}
    crop = open_crop(write_crop(tmp_path, RAW, {"mito": fine}, **place))
    expected = fine[:6, :8].reshape(2, 3, 2, 4, 2, 4).sum((1, 3, 5)) > 24
    np.testing.assert_array_equal(volumes(crop)[0], expected)
    np.testing.assert_allclose(crop.label_grid.scale, (7.86, 8, 8))
    np.testing.assert_allclose(crop.label_grid.origin, (26.2 + 2.62, 43, 45))
    np.testing.assert_allclose(crop.label_grid.box()[0], (26.2 - 1.31, 39, 41))


def test_a_majority_of_very_many_voxels_does_not_overflow(tmp_path):
    """128 nm from 2 nm: 262,144 voxels become one."""
    fine = np.ones((64, 64, 128), np.uint8)
    fine[:, :, 95:] = 0
    row = write_crop(
        tmp_path, np.ones((4, 4, 4), np.uint8), {"mito": fine}, (128, 128, 128), (2, 2, 2)
    )
    assert volumes(open_crop(row, scale=(128, 128, 128)))[0].tolist() == [[[1, 0]]]


def test_labels_coarser_than_the_training_grid_stay_as_they_are(tmp_path):
    coarse = blocks((1, 1, 1), shape=(4, 4, 4))
    crop = open_crop(write_crop(tmp_path, RAW, {"mito": coarse}, label_scale=(16, 16, 16)))
    np.testing.assert_array_equal(volumes(crop)[0], coarse)
    np.testing.assert_allclose(crop.label_grid.scale, (16, 16, 16))


def test_a_reduction_over_several_slabs_equals_one_of_the_whole(tmp_path):
    fine = RANDOM.random((200, 4, 4)) < 0.5
    row = write_crop(tmp_path, RAW.repeat(4, 0), {"mito": fine}, label_scale=(3, 4, 4))
    crop = open_crop(row, scale=(9, 8, 8))
    positive = fine[:198].reshape(66, 3, 2, 2, 2, 2).sum((1, 3, 5))
    np.testing.assert_array_equal(volumes(crop)[0], positive > 6)


def test_classes_on_another_grid_are_refused(tmp_path):
    row = write_crop(tmp_path, RAW, {"mito": blocks(), "nuc": blocks()})
    write_multiscale(row.crop / "nuc", blocks(), (8, 8, 8), (8, 0, 0))
    with pytest.raises(ValueError, match=r"crop1/nuc: .* 'mito'"):
        open_crop(row, ("mito", "nuc"))


# Raw


def test_raw_is_copied_around_the_labels(tmp_path):
    row = write_crop(
        tmp_path, RAW, {"mito": blocks(shape=(4, 5, 6))}, label_translation=(64, 56, 48)
    )
    crop = open_crop(row, margin=16)
    np.testing.assert_array_equal(raw_within(crop, (48, 40, 32), (8, 9, 10)), RAW[6:14, 5:14, 4:14])
    assert (np.array(crop.raw_grid.shape) <= np.array((8, 9, 10)) + 4).all()


def test_raw_and_labels_may_have_other_resolutions_and_offsets(tmp_path):
    labels = blocks((2, 2, 2), shape=(6, 6, 6))
    row = write_crop(
        tmp_path, RAW, {"mito": labels}, (8, 4, 4), (4, 4, 4), (100, 200, 300), (126, 214, 318)
    )
    crop = open_crop(row, scale=(8, 4, 4))
    np.testing.assert_allclose(
        crop.label_grid.origin, (128, 214, 318)
    )  # two slices of 4 nm became one
    np.testing.assert_array_equal(raw_within(crop, (124, 212, 316), (3, 6, 6)), RAW[3:6, 3:9, 4:10])


def test_raw_is_read_at_the_level_of_the_patch(tmp_path):
    row = write_crop(
        tmp_path,
        RAW,
        {"mito": blocks(shape=(2, 2, 2))},
        label_scale=(16, 16, 16),
        label_translation=(36, 36, 36),
        levels=2,
    )
    crop = open_crop(row, scale=(16, 16, 16))
    means = np.rint(RAW.reshape(10, 2, 10, 2, 10, 2).mean((1, 3, 5)))
    np.testing.assert_array_equal(raw_within(crop, (36, 36, 36), (2, 2, 2)), means[2:4, 2:4, 2:4])
    assert np.allclose((crop.raw_grid.origin - 4) / 16, np.rint((crop.raw_grid.origin - 4) / 16))


def test_raw_without_a_coarse_level_is_averaged(tmp_path):
    row = write_crop(
        tmp_path,
        RAW,
        {"mito": blocks(shape=(2, 2, 2))},
        label_scale=(16, 16, 8),
        label_translation=(36, 36, 32),
    )
    crop = open_crop(row, scale=(16, 16, 8))
    means = np.rint(RAW.reshape(10, 2, 10, 2, 20).mean((1, 3)))
    np.testing.assert_array_equal(raw_within(crop, (36, 36, 32), (2, 2, 2)), means[2:4, 2:4, 4:6])


def test_raw_is_mirrored_beyond_its_volume(tmp_path):
    row = write_crop(tmp_path, RAW, {"mito": blocks(shape=(20, 20, 20))})
    crop = open_crop(row, margin=32)
    np.testing.assert_array_equal(
        raw_within(crop, (-32, -32, -32), (28, 28, 28)), np.pad(RAW, 4, mode="reflect")
    )


def test_raw_thinner_than_its_margin_is_mirrored_again_and_again(tmp_path):
    row = write_crop(tmp_path, RAW[:3], {"mito": blocks(shape=(3, 8, 8))})
    crop = open_crop(row, margin=64)
    expected = np.pad(RAW[:3], ((8, 8), (8, 0), (0, 0)), mode="reflect")[:, :16, :8]
    np.testing.assert_array_equal(raw_within(crop, (-64, -64, 0), (19, 16, 8)), expected)


@pytest.mark.parametrize("finer", [1, 2])
@pytest.mark.parametrize("with_ids", [(), ("mito",)])
def test_labels_that_reach_beyond_the_raw_are_left_out_there(tmp_path, with_ids, finer):
    """There raw is mirrored, and labels are not; a voxel more is taken for rounding."""
    labels = RANDOM.integers(0, 4, (8, 8, 8)).astype(np.uint8)
    fine = labels.repeat(finer, 0).repeat(finer, 1).repeat(finer, 2)
    shift = (8 / finer - 8) / 2
    row = write_crop(
        tmp_path,
        RAW,
        {"mito": fine, "er": fine > 2},
        label_scale=(8 / finer,) * 3,
        label_translation=(-32 + shift, 120 + shift, 8 + shift),
    )
    crop = open_crop(row, ("mito", "er"), with_ids=with_ids)
    inside = labels[3:, :6]
    np.testing.assert_array_equal(volumes(crop), [inside > 0, inside > 2])
    np.testing.assert_allclose(crop.label_grid.origin, (-8, 120, 8))
    np.testing.assert_array_equal(raw_within(crop, (0, 120, 8), (4, 5, 8)), RAW[:4, 15:, 1:9])
    assert crop.counts.sum() == inside.size
    if with_ids:
        assert ((crop.ids("mito") > 1) == (inside > 0)).all()


def test_raw_of_uint16_lies_in_0_to_1(tmp_path):
    raw = RANDOM.integers(1, 65536, RAW.shape, np.uint16)
    crop = open_crop(write_crop(tmp_path, raw, {"mito": blocks()}))
    np.testing.assert_allclose(
        raw_within(crop, (0, 0, 0), (8, 8, 8)), raw[:8, :8, :8] / 65535, rtol=1e-6
    )


def test_raw_range_becomes_0_to_1_and_the_rest_is_cut_off(tmp_path):
    raw = RANDOM.normal(0, 500, RAW.shape).astype(np.float32)
    raw[0, 0, 0] = np.nan
    crop = open_crop(write_crop(tmp_path, raw, {"mito": blocks()}), raw_range=(-400, 600))
    expected = np.clip((np.nan_to_num(raw, nan=-400) + 400) / 1000, 0, 1)
    np.testing.assert_allclose(
        raw_within(crop, (0, 0, 0), (8, 8, 8)), expected[:8, :8, :8], atol=1e-6
    )


def test_raw_of_a_type_without_range_asks_for_one(tmp_path):
    row = write_crop(tmp_path, RAW.astype(np.float32), {"mito": blocks()})
    with pytest.raises(ValueError, match=r"float32.*raw_range"):
        open_crop(row)


def test_black_raw_is_refused(tmp_path):
    """Elsewhere the volume is not black: the chunks of this crop were not fetched."""
    raw = np.zeros((40, 40, 40), np.uint8)
    raw[32:] = 100
    with pytest.raises(ValueError, match="0 everywhere around data/crop1"):
        open_crop(write_crop(tmp_path, raw, {"mito": blocks()}), margin=32)


def test_raw_smaller_than_the_patch_is_refused(tmp_path):
    row = write_crop(tmp_path, RAW, {"mito": blocks()})
    with pytest.raises(ValueError, match=r"160 nm .* 200 nm"):
        open_crop(row, patch_nm=np.full(3, 200.0))


def test_labels_beside_the_raw_are_refused(tmp_path):
    row = write_crop(tmp_path, RAW, {"mito": blocks()}, label_translation=(0, 0, 400))
    with pytest.raises(ValueError, match="do not overlap"):
        open_crop(row)


@pytest.mark.parametrize("part", ["raw", "labels"])
def test_a_broken_chunk_is_named(tmp_path, part):
    row = write_crop(tmp_path, RAW, {"mito": RANDOM.integers(0, 2, (8, 8, 8), np.uint8)})
    array = (row.raw if part == "raw" else row.crop / "mito") / "s0"
    (array / "0" / "0" / "0").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=f"{array}: .* cannot be decoded"):
        open_crop(row)


def test_all_problems_of_all_crops_come_in_one_message(tmp_path):
    far = write_crop(tmp_path / "a", RAW, {"mito": blocks()}, label_translation=(0, 0, 400))
    bare = write_crop(tmp_path / "b", RAW, {"mito": blocks()})
    (bare.crop / "mito" / ".zattrs").unlink()
    with pytest.raises(ValueError) as error:
        open_crops([far, bare], request(), cache_in(tmp_path))
    assert "do not overlap" in str(error.value) and "no 'multiscales'" in str(error.value)


def test_raw_of_several_number_types_is_decoded_to_one(tmp_path):
    wide = RAW.astype(np.uint16) * 257  # 65535 = 255 * 257
    pair = [
        write_crop(tmp_path / "a", RAW, {"mito": blocks()}),
        write_crop(tmp_path / "b", wide, {"mito": blocks()}),
    ]
    a, b = open_crops(pair, request(), cache_in(tmp_path))
    assert a.raw().dtype == b.raw().dtype == np.float32
    np.testing.assert_allclose(a.raw(), b.raw(), rtol=1e-6)
    np.testing.assert_allclose(
        raw_within(a, (0, 0, 0), (8, 8, 8)), RAW[:8, :8, :8] / 255, rtol=1e-6
    )


# The cache


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the crops that were decoded, in order."""
    names = []
    decode = crops.decode

    def decode_and_note(job: Decoding, cache: CropCache) -> None:
        names.append(str(job.row.crop))
        decode(job, cache)

    monkeypatch.setattr(crops, "decode", decode_and_note)
    return names


def test_a_crop_is_decoded_once(tmp_path, decoded):
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))})
    first = open_crop(row)
    second = open_crop(row)
    assert len(decoded) == 1
    np.testing.assert_array_equal(volumes(first), volumes(second))


def test_switches_of_the_inference_need_no_decoding(tmp_path, decoded):
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))})
    with_both = open_crop(row, ("mito", "nuc"))
    without = open_crop(row, ("mito", "nuc"), rules=Rules(infer_groups=False))
    assert len(decoded) == 1
    assert (volumes(with_both)[1] == volumes(without)[1]).all()


@pytest.mark.parametrize("change", ["rewritten", "one chunk", "one chunk removed"])
def test_changed_labels_are_decoded_anew(tmp_path, decoded, change):
    labels = blocks((1, 1, 1), (12, 1, 1), shape=(16, 16, 16))
    row = write_crop(tmp_path, RAW, {"mito": labels})
    open_crop(row)
    if change == "rewritten":
        labels[2, 2, 2] = 1
        write_multiscale(row.crop / "mito", labels, (8, 8, 8), chunk=8)
    elif change == "one chunk":
        labels[3, 3, 3] = 1
        zarr.open_array(str(row.crop / "mito" / "s0"), mode="r+")[3, 3, 3] = 1
    else:
        labels[12, 1, 1] = 0
        (row.crop / "mito" / "s0" / "1" / "0" / "0").unlink()
    np.testing.assert_array_equal(volumes(open_crop(row))[0], labels)
    assert len(decoded) == 2


def test_an_edit_of_a_class_whose_finest_level_has_another_name_is_noticed(tmp_path, decoded):
    labels = blocks((1, 1, 1), (12, 1, 1), shape=(16, 16, 16))
    row = write_crop(tmp_path, RAW, {"mito": labels, "er": labels * 0})
    er = row.crop / "er"
    (er / "s0").rename(er / "s1")
    coarse = zarr.open_array(str(er / "s0"), mode="w", shape=(8, 8, 8), dtype="u1")
    assert not coarse[...].any()
    with changing(er) as attributes:
        datasets = attributes["multiscales"][0]["datasets"]
        fine = json.dumps(datasets[0]).replace('"s0"', '"s1"')
        datasets[0]["coordinateTransformations"] = [
            {"type": "scale", "scale": [16, 16, 16]},
            {"type": "translation", "translation": [4, 4, 4]},
        ]
        datasets.append(json.loads(fine))
    assert not volumes(open_crop(row, ("mito", "er")))[1].any()
    zarr.open_array(str(er / "s1"), mode="r+")[8:] = 1
    assert (volumes(open_crop(row, ("mito", "er")))[1] == 1).sum() == 8 * 16 * 16
    assert len(decoded) == 2


def test_what_classes_of_a_crop_say_alike_of_their_levels_is_read_once(tmp_path, monkeypatch):
    """Of 48 classes it took most of the time in which a crop is known to be in the cache."""
    labels = {name: blocks((1, 1, 1)) for name in ("mito", "er", "nuc", "golgi")}
    row = write_crop(tmp_path, RAW, labels)
    asked = []
    image_of = metadata.image_of

    def image_of_and_note(path: Path, attributes: dict) -> metadata.ImageMetadata:
        asked.append(path.name)
        return image_of(path, attributes)

    monkeypatch.setattr(metadata, "image_of", image_of_and_note)
    assert len({label_stamp(row.crop / name) for name in labels}) == len(labels)
    assert len(asked) <= 1


def test_other_metadata_of_a_group_of_zarr_v3_are_decoded_anew(tmp_path, decoded):
    """What a value means stands beside the levels, and not in the array."""
    tensorstore = pytest.importorskip("tensorstore")
    labels = blocks((1, 1, 1), (12, 1, 1), shape=(16, 16, 16))
    row = write_crop(tmp_path, RAW, {"mito": labels})
    group = row.crop / "mito"
    image = json.loads((group / ".zattrs").read_text())["multiscales"]
    shutil.rmtree(group)
    store = {"driver": "file", "path": str(group / "s0")}
    about = {"shape": labels.shape, "data_type": str(labels.dtype)}
    array = tensorstore.open({"driver": "zarr3", "kvstore": store, "metadata": about}, create=True)
    array.result()[...] = labels

    def describe(**attributes) -> None:
        content = {"ome": {"version": "0.5", "multiscales": image}, **attributes}
        written = {"zarr_format": 3, "node_type": "group", "attributes": content}
        (group / "zarr.json").write_text(json.dumps(written))

    describe()
    assert (volumes(open_crop(row))[0] == labels).all()
    kind = {"type": "semantic_segmentation", "encoding": {"absent": 1, "unknown": 0}}
    describe(cellmap={"annotation": {"annotation_type": kind}})
    assert (volumes(open_crop(row))[0] == np.where(labels == 1, 0, UNKNOWN)).all()
    assert len(decoded) == 2


@pytest.mark.parametrize("part", ["labels", "raw"])
@pytest.mark.parametrize("how", ["in place", "copied over with its time"])
def test_a_chunk_with_other_bytes_of_the_same_size_is_decoded_anew(tmp_path, decoded, part, how):
    """Uncompressed chunks keep their size; the folders of a chunk do not change at all."""
    labels = blocks((1, 1, 1))
    row = write_crop(tmp_path, RAW, {"mito": labels})
    level = row.crop / "mito" / "s0" if part == "labels" else row.raw / "s0"
    old = zarr.open_array(str(level), mode="r")[...]
    zarr.save_array(str(level), old, chunks=(8, 8, 8), compressor=None, dimension_separator="/")
    open_crop(row)
    chunk = level / "0" / "0" / "0"
    before = chunk.stat()
    content = np.fromfile(chunk, np.uint8)
    content[:] = 1
    if how == "in place":
        with chunk.open("r+b") as file:
            file.write(content.tobytes())
    else:
        other = tmp_path / "other"
        other.write_bytes(content.tobytes())
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        shutil.copy2(other, chunk)
    crop = open_crop(row)
    assert len(decoded) == 2
    found = volumes(crop)[0] if part == "labels" else raw_within(crop, (0, 0, 0), (8, 8, 8))
    assert (found == 1).all()


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
def test_a_chunk_of_raw_of_any_name_is_decoded_anew(tmp_path, decoded, axes, separator):
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))})
    more = (1,) * (len(axes) - 3)
    zarr.save_array(
        str(row.raw / "s0"),
        RAW.reshape(more + RAW.shape),
        chunks=(*more, 8, 8, 8),
        compressor=None,
        dimension_separator=separator,
    )
    with changing(row.raw) as attributes:
        image = attributes["multiscales"][0]
        image["axes"] = [{"name": axis} for axis in axes[: len(more)]] + image["axes"]
        for transform in image["datasets"][0]["coordinateTransformations"]:
            transform[transform["type"]] = [1.0] * len(more) + transform[transform["type"]]
    open_crop(row)
    open_crop(row)
    assert len(decoded) == 1
    chunk = row.raw / "s0" / separator.join(["0"] * len(axes))
    with chunk.open("r+b") as file:
        file.write(np.full(512, 7, np.uint8).tobytes())
    assert (raw_within(open_crop(row), (0, 0, 0), (8, 8, 8)) == 7).all()
    assert len(decoded) == 2


def test_a_chunk_of_labels_that_was_lost_is_not_taken_for_background(tmp_path):
    labels = blocks((1, 1, 1), (12, 1, 1), shape=(16, 16, 16))
    row = write_crop(tmp_path, RAW, {"mito": labels})
    attributes = row.crop / "mito" / "s0" / ".zattrs"
    counts = {"cellmap": {"annotation": {"complement_counts": {"absent": 16**3 - 2}}}}
    attributes.write_text(json.dumps(counts))
    assert open_crop(row).remarks == ()
    (row.crop / "mito" / "s0" / "1" / "0" / "0").unlink()
    with pytest.raises(UserError, match="mito/s0: 7 of 8 chunks are not there"):
        open_crop(row)


def test_chunks_of_raw_that_are_missing_under_the_labels_are_counted(tmp_path):
    """Those around the labels are not: EM may end there, and black chunks need not be stored."""
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))}, label_translation=(32, 0, 0))
    (row.raw / "s0" / "2" / "0" / "0").unlink()
    assert open_crop(row, margin=64).missing_raw == (0, 2)
    (row.raw / "s0" / "1" / "0" / "0").unlink()
    assert open_crop(row, margin=64).missing_raw == (1, 2)


def test_chunks_of_raw_in_n5_that_are_missing_under_the_labels_are_counted(tmp_path):
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))}, label_translation=(32, 0, 0))
    raw = tmp_path / foreign_writers.n5_cellmap(tmp_path, np.ones((20, 20, 20), np.uint8))
    in_n5 = replace(row, raw=Path(f"{raw}#voxel_size=8"))
    for missing in (0, 1):
        (crop,) = open_crops([in_n5], request(), cache_in(tmp_path))
        assert crop.missing_raw == (missing, 2)
        (raw / "s0" / "0" / "0" / "1").unlink(missing_ok=True)


def test_what_did_not_change_is_not_decoded_anew(tmp_path, decoded):
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))})
    for _ in range(2):
        open_crop(row)
    assert len(decoded) == 1


def test_an_interrupt_gives_up_what_has_begun_and_begins_nothing_more(tmp_path, monkeypatch):
    """Held in the first block of the first crops, while others wait for a thread."""
    rows = []
    for number in range(20):
        rows.append(write_crop(tmp_path / str(number), RAW, {"mito": blocks((1, 1, 1))}))
    begun = []
    interrupted = threading.Event()

    def held(job: Decoding, folder: Path) -> None:
        begun.append(job)
        assert interrupted.wait(600) and job.given_up.wait(600)
        job.check_wanted()

    def interrupt(*_: object) -> None:
        if begun:
            interrupted.set()
            raise KeyboardInterrupt

    class Bar:
        def __init__(self, total: int, what: str, unit: str):
            self.is_decoding = what.startswith("decoding")

        def __enter__(self) -> Bar:
            wait_until(lambda: begun or not self.is_decoding)
            interrupt()
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self) -> None:
            pass

    monkeypatch.setattr("common.data.crops.decode._decode_raw", held)
    monkeypatch.setattr(crops, "progress", Bar)
    with pytest.raises(KeyboardInterrupt):
        open_crops(rows, request(), cache_in(tmp_path))
    assert 1 <= len(begun) <= 8
    assert not list((tmp_path / "cache" / "crops").iterdir())


def test_raw_fetched_later_is_decoded_anew(tmp_path, decoded):
    row = write_crop(tmp_path, RAW, {"mito": blocks()})
    chunk = row.raw / "s0" / "0" / "0" / "1"
    content = chunk.read_bytes()
    chunk.unlink()
    assert (raw_within(open_crop(row, margin=32), (0, 0, 64), (8, 8, 3)) == 0).all()
    chunk.write_bytes(content)
    np.testing.assert_array_equal(
        raw_within(open_crop(row, margin=32), (0, 0, 64), (8, 8, 3)), RAW[:8, :8, 8:11]
    )
    assert len(decoded) == 2


def test_a_cache_too_small_for_the_crops_stops_with_a_sentence(tmp_path):
    row = write_crop(tmp_path, RAW, {"mito": blocks()})
    with pytest.raises(ValueError, match=r"need \d+ kB and cache_gb is 1e-07") as refused:
        open_crop(row, cache_gb=1e-7)
    advised = re.search("set cache_gb = (.*) or more", str(refused.value))
    assert advised
    assert open_crop(row, cache_gb=float(advised[1])).folder.is_dir()


def on_disk(cache: Path) -> int:
    return sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())


def test_the_least_recently_used_crop_is_removed(tmp_path, decoded):
    rows = [write_crop(tmp_path / name, RAW, {"mito": blocks()}) for name in "abc"]
    cache = tmp_path / "cache"

    def use(row: Row, cache_gb: float) -> Crop:
        return open_crops([row], request(), cache_in(tmp_path, cache_gb))[0]

    for age, row in ((300, rows[0]), (100, rows[1])):
        folder = use(row, 1).folder
        os.utime(folder, (1e9 - age, 1e9 - age))
    size = on_disk(cache)
    use(rows[0], 1)  # decoded first, used last
    use(rows[2], cache_gb=1.05e-9 * size)  # room for two
    assert on_disk(cache) <= 1.05 * size
    decoded.clear()
    use(rows[0], 1)
    assert decoded == []
    use(rows[1], 1)
    assert decoded == [str(rows[1].crop)]


@pytest.mark.parametrize("name", ["raw.npy", "labels.npy", "palette.npz", CHECKSUMS])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_decoded_crop_that_was_damaged_is_named_and_decoded_again(
    tmp_path, decoded, capsys, name, damage
):
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))})
    whole = open_crop(row)
    path = whole.folder / name
    content = path.read_bytes()
    raw, labels = whole.raw().copy(), whole.labels().copy()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        last = bytes([content[-1] ^ 1])
        path.write_bytes(content[:-1] + last)
    again = open_crop(row)
    # those of earlier versions have no checksums
    is_noticed = (name, damage) != (CHECKSUMS, "gone")
    assert len(decoded) == 1 + is_noticed
    assert (f"{whole.folder}: {name} " in capsys.readouterr().err) is is_noticed
    np.testing.assert_array_equal(again.raw(), raw)
    np.testing.assert_array_equal(again.labels(), labels)
    assert [path.name for path in whole.folder.parent.iterdir()] == [whole.folder.name]


def test_the_files_of_a_crop_are_read_once_to_be_checked(tmp_path, monkeypatch):
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))})
    read = []
    crc_of = cache._crc_of
    open_crop(row)
    monkeypatch.setattr(cache, "_crc_of", lambda file: read.append(file.name) or crc_of(file))
    for _ in range(2):
        open_crop(row)
    assert sorted(Path(path).name for path in read) == ["labels.npy", "palette.npz", "raw.npy"]


def test_crops_opened_before_for_the_same_run_are_not_removed(tmp_path):
    """Training crops are opened first, validation crops second; both are needed until the end."""
    train, validation = (write_crop(tmp_path / name, RAW, {"mito": blocks()}) for name in "ab")
    (first,) = open_crops([train], request(), cache_in(tmp_path))
    small = cache_in(tmp_path, 1.5e-9 * first.bytes)
    with pytest.raises(ValueError, match="set cache_gb = "):
        open_crops([validation], request(), small, beside=[first])
    assert first.folder.is_dir()
    just_enough = cache_in(tmp_path, 2.01e-9 * first.bytes)  # without the palettes
    open_crops([validation], request(), just_enough, beside=[first])
    assert first.folder.is_dir()


HOLD = """
import sys
import time
from pathlib import Path

from common.data.crops.cache import CropCache

folder, key = sys.argv[1:]
CropCache(Path(folder), 1).hold({key})
Path(folder).with_name("held").touch()
time.sleep(600)
"""


def test_crops_that_another_process_uses_are_not_removed_until_it_is_gone(tmp_path, forked, capsys):
    rows = [write_crop(tmp_path / name, RAW, {"mito": blocks()}) for name in "abc"]
    (first,) = open_crops(rows[:1], request(), cache_in(tmp_path))
    small = cache_in(tmp_path, 1.1e-9 * first.bytes)
    other = forked(first.folder.parent, first.folder.name, program=HOLD)
    wait_until(first.folder.parent.with_name("held").exists, other)
    (second,) = open_crops(rows[1:2], request(), small)
    assert first.folder.is_dir()
    assert "more than cache_gb = " in capsys.readouterr().err
    other.send_signal(signal.SIGKILL)
    other.ended()
    open_crops(rows[2:], request(), small)
    assert not first.folder.is_dir()
    assert not second.folder.is_dir()  # which this process alone used
    marks = first.folder.parent.with_name(".crops-in-use")
    assert len(list(marks.glob("*.keys"))) == 1


def test_remains_of_a_killed_decoding_are_removed(tmp_path):
    row = write_crop(tmp_path, RAW, {"mito": blocks()})
    remains = tmp_path / "cache" / "crops" / ".killed"
    remains.mkdir(parents=True)
    os.utime(remains, (1e9, 1e9))
    open_crop(row)
    assert not remains.exists()


DECODE = """
import sys
import time
from pathlib import Path

from common.data.crops.opened import open_crops
from common.data.splits.split import Row
from common.errors import UserError
from tests.data.test_crops import cache_in, request

root = Path(sys.argv[1])
store = root / "data.zarr" / "recon-1"
labels = store / "labels" / "groundtruth" / "crop1"
row = Row("train", store / "em" / "fibsem-uint8", labels, ("mito",))
print("ready", flush=True)
while not (root / "go").exists():
    time.sleep(0.001)
crop = open_crops([row], request(), cache_in(root))[0]
print(int(crop.raw().sum()), int(crop.palette[crop.labels()].sum()))
"""


def test_processes_that_decode_the_same_crop_at_once_do_no_harm(tmp_path, forked):
    labels = RANDOM.integers(0, 2, (20, 20, 20), np.uint8)
    write_crop(tmp_path, RAW, {"mito": labels})
    running = [forked(tmp_path, program=DECODE) for _ in range(3)]
    for process in running:
        wait_until(lambda process=process: process.out.read_text() == "ready\n", process)
    (tmp_path / "go").touch()
    ended = [process.ended() for process in running]
    assert [code for code, _, _ in ended] == [0, 0, 0]
    answers = {out for _, out, _ in ended}
    assert len(answers) == 1 and int(answers.pop().split()[2]) == labels.sum()
    assert len(list((tmp_path / "cache" / "crops").iterdir())) == 1


def test_losing_the_race_to_decode_a_crop_takes_the_winners(tmp_path, monkeypatch):
    """The other process is done between our look at the cache and our rename."""
    row = write_crop(tmp_path, RAW, {"mito": blocks((1, 1, 1))})
    rename = Path.rename

    def late(source, destination):
        if destination.parent.name == "crops":
            shutil.copytree(source, destination)
        return rename(source, destination)

    monkeypatch.setattr(Path, "rename", late)
    np.testing.assert_array_equal(volumes(open_crop(row))[0], blocks((1, 1, 1)))
    assert len(list((tmp_path / "cache" / "crops").iterdir())) == 1


def test_a_decoding_that_fails_leaves_nothing_behind(tmp_path):
    row = write_crop(tmp_path, np.zeros_like(RAW), {"mito": blocks()})
    with pytest.raises(ValueError, match="0 everywhere"):
        open_crop(row)
    assert list((tmp_path / "cache" / "crops").iterdir()) == []


def test_a_full_disk_is_said_in_a_sentence(tmp_path, monkeypatch):
    row = write_crop(tmp_path, RAW, {"mito": blocks()})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crops.np, "save", full)
    with pytest.raises(OSError, match=r"No space left on device.*cache_path"):
        open_crop(row)


def test_an_open_crop_holds_no_volume_in_memory(tmp_path):
    raw = RANDOM.integers(1, 256, (64, 64, 64), np.uint8)
    labels = RANDOM.integers(0, 2, (64, 64, 64), np.uint8)
    crop = open_crop(write_crop(tmp_path, raw, {"mito": labels}))
    assert isinstance(crop.raw(), np.memmap) and isinstance(crop.labels(), np.memmap)
    held = sum(value.nbytes for value in vars(crop).values() if isinstance(value, np.ndarray))
    assert held < 10_000 < crop.raw().nbytes


def test_the_box_of_a_grid_covers_its_outermost_voxels():
    lower, upper = Grid(np.array([10.0, 0, 0]), np.array([4.0, 2, 1]), (3, 2, 1)).box()
    assert lower.tolist() == [8, -1, -0.5] and upper.tolist() == [20, 3, 0.5]


def test_counter_classes_are_read_where_a_learnt_class_is_unknown_in_part(tmp_path):
    mito = blocks((0, 0, 0))
    mito[4:] = 255
    er = blocks((5, 0, 0), (6, 0, 0))
    row = write_crop(tmp_path, RAW, {"mito": mito, "er": er})
    encoding = {"absent": 0, "present": 1, "unknown": 255}
    about = {"type": "semantic_segmentation", "encoding": encoding}
    group = zarr.open_group(str(row.crop / "mito"), mode="r+")
    group.attrs["cellmap"] = {"annotation": {"annotation_type": about}}
    expected = np.where(mito == 255, -1, mito.astype(np.int8))
    np.testing.assert_array_equal(volumes(open_crop(row)), [expected])
    expected[er == 1] = 0
    np.testing.assert_array_equal(volumes(open_crop(row, counter_classes=("er",))), [expected])


def test_labels_of_networks_are_told_from_the_annotation_and_what_follows_from_it(tmp_path):
    mito = blocks((0, 0, 0), (1, 0, 0))
    er = blocks((2, 0, 0))
    row = write_crop(tmp_path, RAW, {"mito": mito, "er": er})
    group = zarr.open_group(str(row.crop / "mito"), mode="r+")
    of_networks = np.zeros(mito.shape, np.uint8)
    of_networks[1] = 1
    group.create_dataset("pseudo", data=of_networks, chunks=(8, 8, 8), dimension_separator="/")
    crop = open_crop(row, ("mito", "er", "nuc"))
    np.testing.assert_array_equal(volumes(crop)[:2], [mito, er])
    assert crop.pseudo is not None
    is_pseudo = np.moveaxis(crop.pseudo[crop.labels()], -1, 0)
    np.testing.assert_array_equal(is_pseudo[0], of_networks)
    assert not is_pseudo[1].any()
    # no nucleus where a network sees mito; where the annotation says so it is no network's word
    expected = np.zeros(mito.shape, bool)
    expected[1, 0, 0] = True
    np.testing.assert_array_equal(is_pseudo[2], expected)
    assert volumes(crop)[2][0, 0, 0] == 0
