"""Whole validation crops as pictures and TIFF stacks: every voxel at its place."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import CLASSES

from common.data.volumes.ngff import open_levels
from common.errors import UserError
from common.infer.predict import predict
from common.train.recording import whole_slice
from common.train.setup import prepare


def test_every_section_is_written_with_raw_truth_and_prediction(experiment):
    tifffile = pytest.importorskip("tifffile")
    settings = {"preview_every": 2, "preview_tiff": True, "init_output_to_prior": False}
    tiny = experiment(epochs=3, iterations_per_epoch=1, **settings)
    tiny.train(epochs=2)
    (of_epoch,) = (tiny.folder / "logs/tiny_experiment/seed42/previews").iterdir()
    assert of_epoch.name == "epoch0002"
    crop = of_epoch / "tiny_crop3"
    pictures = sorted(path.name for path in crop.glob("*.png"))
    assert pictures == [f"z{z:04d}.png" for z in range(24)]
    label = open_levels(tiny.crop("crop3") / "mito")[0]
    level = open_levels(tiny.raw)[0]
    start = np.rint((label.translation - level.translation) / 8).astype(int)
    raw = level.read(start, start + 24)
    np.testing.assert_array_equal(tifffile.imread(crop / "raw.tif"), raw)
    (predicted,) = predict(tiny.folder, data=tiny.data, weights="latest")
    for name in CLASSES:
        truth = open_levels(tiny.crop("crop3") / name)[0].read((0, 0, 0), (24, 24, 24))
        np.testing.assert_array_equal(tifffile.imread(crop / f"{name}_truth.tif"), truth)
        whole = open_levels(predicted / name)[0].read((0, 0, 0), (24, 24, 24)).astype(int)
        assert np.abs(tifffile.imread(crop / f"{name}.tif") - whole).max() <= 1
    with tifffile.TiffFile(crop / "raw.tif") as file:
        assert file.imagej_metadata["spacing"] == 8
    # an epoch without a preview leaves the last one
    tiny.train(epochs=3)
    assert [path.name for path in of_epoch.parent.iterdir()] == ["epoch0002"]


def test_sections_are_left_out_where_all_would_take_too_much_memory(experiment, monkeypatch):
    setup, _ = prepare(experiment().config())
    blocks = setup.validation.batches.blocks
    (every,) = whole_slice.stacks_of(blocks, 3, CLASSES)
    assert [section.depth for section in every] == list(range(24))
    size = 24**3 * (8 + 3 * len(CLASSES))
    monkeypatch.setattr(whole_slice, "STACK_BYTES", size / 2.5)
    (some,) = whole_slice.stacks_of(blocks, 1, CLASSES)
    assert [section.depth for section in some] == list(range(0, 24, 3))


def test_tiff_that_cannot_be_written_is_said_before_training(experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match="preview_tiff needs the package tifffile"):
        experiment(preview_every=1, preview_tiff=True).train()
