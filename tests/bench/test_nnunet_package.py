"""bench/nnunet_package.py: what nnU-Net is given; the package itself is not needed here."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import nnunet_package, quality
from bench.contestants import CONTESTANTS
from bench.nnunet_package import Labels, labels_of, one_against_all

CLASSES = ("pm", "mito", "cell")


def crop_of(*rows: tuple[int, ...]) -> SimpleNamespace:
    """A crop whose voxels have these palette rows, and none the row of unknown ones."""
    palette = np.array([(-1, -1, -1), *rows], np.int8)
    return SimpleNamespace(palette=palette, counts=np.array([0, *[5] * len(rows)]))


def test_it_is_listed_and_left_out_in_a_sentence_without_its_package(monkeypatch, capsys):
    assert "nnunetv2" in CONTESTANTS
    assert "nnunetv2" in quality.ABOUT
    installed = importlib.util.find_spec

    def without(name):
        return None if name == "nnunetv2" else installed(name)

    monkeypatch.setattr(quality.importlib.util, "find_spec", without)
    options = quality.parse(["--data", "x", "--contestants", "new", "nnunetv2"])
    assert quality.able(options) == ["new"]
    assert capsys.readouterr().out == (
        "nnunetv2 is left out: nnunetv2 is not installed; pip install -e '.[bench,peers]'\n"
    )


def test_classes_that_exclude_each_other_are_labels_in_their_order():
    labels = labels_of([crop_of((0, 0, 1), (0, 0, 0)), crop_of((1, 0, 0), (0, 1, 0))], CLASSES)
    assert labels.about(CLASSES) == {"labels": {"background": 0, "pm": 1, "mito": 2, "cell": 3}}
    assert labels.channels(CLASSES) == [1, 2, 3]
    assert labels.of_row((0, 0, 0)) == 0


def test_classes_that_overlap_are_regions_of_labels():
    labels = labels_of([crop_of((1, 0, 0), (0, 0, 1), (0, 1, 1))], CLASSES)
    about = labels.about(CLASSES)
    pm, cell, mito_in_cell = (labels.of_row(row) for row in ((1, 0, 0), (0, 0, 1), (0, 1, 1)))
    assert sorted([pm, cell, mito_in_cell]) == [1, 2, 3]
    assert about["labels"] == {
        "background": 0,
        "pm": [pm],
        "mito": [mito_in_cell],
        "cell": [cell, mito_in_cell],
    }
    assert len(about["regions_class_order"]) == 3
    assert labels.channels(CLASSES) is None


def test_unknown_voxels_have_the_highest_label_which_is_ignored():
    labels = labels_of([crop_of((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, -1, 1))], CLASSES)
    assert labels.about(CLASSES)["labels"]["ignore"] == 4
    assert labels.of_row((0, -1, 1)) == labels.of_row((-1, -1, -1)) == 4


def test_softmax_gives_the_probabilities_of_the_logits():
    logits = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    found = one_against_all(logits, [2, 1]).sigmoid()
    assert torch.allclose(found, logits.softmax(dim=1)[:, [2, 1]], atol=1e-6)


def test_crops_are_written_with_raw_as_it_is_stored(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (4, 5, 6), np.uint8)
    rows = random.integers(1, 3, raw.shape, np.uint8)
    crop = SimpleNamespace(
        name="flyem_medulla/crop1",
        palette=np.array([(-1, -1), (0, 1), (1, 0)], np.int8),
        labels=lambda: rows,
        label_grid=SimpleNamespace(scale=np.array([50, 9.2, 9.2])),
    )
    monkeypatch.setattr(nnunet_package.peers, "raw_of", lambda _: raw)
    labels = Labels({(1, 0): 1, (0, 1): 2}, has_unknown=False)
    nnunet_package.write_dataset(tmp_path, [crop], labels, ("pm", "cell"))
    images = tmp_path / "imagesTr"
    assert np.array_equal(tifffile.imread(images / "flyem_medulla_crop1_0000.tif"), raw)
    spacing = json.loads((images / "flyem_medulla_crop1.json").read_text())
    assert spacing == {"spacing": [50.0, 9.2, 9.2]}
    truth = tifffile.imread(tmp_path / "labelsTr" / "flyem_medulla_crop1.tif")
    assert np.array_equal(truth, 3 - rows)
    assert json.loads((tmp_path / "dataset.json").read_text()) == {
        "labels": {"background": 0, "pm": 1, "cell": 2},
        "channel_names": {"0": "EM"},
        "numTraining": 1,
        "file_ending": ".tif",
    }
