"""One class in one crop: the dtype of ids does not count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from common.data.own.standing import IMPORTED
from common.data.volumes import ngff
from common.score import publish
from common.score.judge import Truth, annotated, compare, judge


def test_ids_in_wide_integers_score_as_in_narrow_ones():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(20, 20, 20)), 1.5)
    objects, _ = ndimage.label(smooth > 0.1)
    wanted = objects.astype(np.uint8)
    found = np.roll(wanted, 1, 2)
    place = ngff.Level(Path("mito"), wanted, np.full(3, 8.0), np.zeros(3))
    truth_of_mito = Truth("crop", "mito", place, is_instance=True)
    narrow = compare(truth_of_mito, wanted, found)
    assert narrow.counts.tp > 0
    for kind in ("uint64", "int64", ">u2", ">i4"):
        assert compare(truth_of_mito, wanted.astype(kind), found.astype(kind)) == narrow


@pytest.mark.parametrize("kind", ["bool", ">u2", "<f4"])
@pytest.mark.parametrize("is_instance", [True, False])
def test_a_truth_of_any_kind_is_judged(tmp_path, kind, is_instance):
    """A mask of one object, as bool, in the other byte order and as floats."""
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[3:8, 3:8, 3:8] = 1
    for name, volume in (("wanted", mask.astype(kind)), ("found", mask)):
        ngff.write_multiscale(tmp_path / name, volume, (8, 8, 8))
    wanted, found = (ngff.open_levels(tmp_path / name)[0] for name in ("wanted", "found"))
    counts = judge(Truth("crop", "mito", wanted, is_instance), found).counts
    assert (counts.tp, counts.fp, counts.fn) == ((1 if is_instance else 125), 0, 0)


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("is_instance", [True, False])
def test_unknown_voxels_of_the_truth_count_on_neither_side(tmp_path, kind, is_instance):
    """255 by the metadata, negative numbers and NaN: half of what was found lies there."""
    unknown = {"uint8": 255, "int16": -1, "float32": np.nan}[kind]
    truth = np.zeros((12, 12, 12), kind)
    truth[2:6, 2:6, 2:6] = 1
    truth[6:] = unknown
    found = np.zeros((12, 12, 12), np.uint8)
    found[2:6, 2:6, 2:6] = 1
    found[7:11, 2:6, 2:6] = 2
    for name, volume in (("wanted", truth), ("found", found)):
        ngff.write_multiscale(tmp_path / name, volume, (8, 8, 8))
    encoding = {"annotation_type": {"encoding": {"absent": 0, "unknown": 255}}}
    attributes = tmp_path / "wanted" / "s0" / ".zattrs"
    attributes.write_text(json.dumps({"cellmap": {"annotation": encoding}}))
    wanted, level = (ngff.open_levels(tmp_path / name)[0] for name in ("wanted", "found"))
    evaluation = judge(Truth("crop", "mito", wanted, is_instance), level)
    counts = evaluation.counts
    assert (counts.tp, counts.fp, counts.fn) == ((1 if is_instance else 64), 0, 0)
    assert tuple(evaluation.voxels) == (64, 0, 0)
    assert "taken for unknown" in evaluation.remarks[0]


@pytest.mark.parametrize("imported", [True, False])
def test_an_imported_mask_of_a_class_of_objects_is_taken_for_its_pieces(tmp_path, imported):
    """The challenge's own labels stay one object, which is said unless they are said to be ids."""
    mask = np.zeros((8, 8, 24), np.uint8)
    mask[2:6, 2:6, 2:6] = 1
    mask[2:6, 2:6, 12:20] = 1
    attributes = {"cellmap": {"annotation": {"annotation_type": {"type": "semantic_segmentation"}}}}
    if imported:
        attributes[IMPORTED] = {"from": "mito.tif"}
    ngff.write_multiscale(tmp_path / "crop1/mito", mask, (8, 8, 8), attributes=attributes)
    ids = mask.astype(np.uint16)
    ids[..., 12:] *= 2
    ngff.write_multiscale(tmp_path / "found", ids, (8, 8, 8))
    truth = Truth("crop1", "mito", ngff.open_levels(tmp_path / "crop1/mito")[0], is_instance=True)
    evaluation = judge(truth, ngff.open_levels(tmp_path / "found")[0])
    assert evaluation.objects[:3] == ((2, 0, 0) if imported else (1, 1, 0))
    told = "a mask, whose 2 pieces" if imported else "1 is the only id, so that its 2 pieces"
    assert evaluation.remarks[0].startswith(told)
    about = attributes["cellmap"]["annotation"]["annotation_type"]
    about["type"] = "instance_segmentation"
    ngff.write_multiscale(tmp_path / "crop1/mito", mask, (8, 8, 8), attributes=attributes)
    assert annotated(ngff.open_levels(tmp_path / "crop1/mito")[0], "mito", True)[2] == ()


def test_probabilities_in_whole_numbers_are_scored_as_they_are_which_is_said(tmp_path, capsys):
    soft = (255 / (1 + np.exp(np.indices((16, 16, 16)).sum(0) / 4 - 5))).astype(np.uint8)
    for name, volume in (("wanted", (soft > 127).astype(np.uint8)), ("found", soft)):
        ngff.write_multiscale(tmp_path / name, volume, (8, 8, 8))
    wanted, found = (ngff.open_levels(tmp_path / name)[0] for name in ("wanted", "found"))
    evaluation = judge(Truth("crop1", "er", wanted, is_instance=False), found)
    assert evaluation.counts.fp == np.count_nonzero((soft > 0) & (soft <= 127))
    publish.note_values([evaluation])
    assert "crop1/er: values that differ from voxel to voxel" in capsys.readouterr().err
