"""Labels that lie mirrored or turned in their raw are told by its voxels."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from common.data.volumes import layout
from common.data.volumes.ngff import open_levels
from tests.data.own_import import import_data

SHAPE = (24, 90, 90)
SMOOTH = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 4)
MITO = (0.5 * SMOOTH.std() < SMOOTH).astype(np.uint8)
RAW = (120 + 30 * MITO + np.random.default_rng(1).normal(0, 40, SHAPE)).clip(0, 255)

WAYS = {
    "": lambda volume: volume,
    "mirrored along y": lambda volume: volume[:, ::-1],
    "mirrored along z, x": lambda volume: volume[::-1, :, ::-1],
    "with y and x exchanged": lambda volume: volume.swapaxes(1, 2),
}


def note_of(folder, capsys, labels, raw=RAW, **more) -> str:
    """What is said of labels at their import."""
    tifffile.imwrite(folder / "raw.tif", raw.astype(np.uint8))
    tifffile.imwrite(folder / "mito.tif", labels, compression="zlib")
    of_class = {"mito": str(folder / f"mito.tif{more.pop('options', '')}")}
    settings = {"labels": of_class, "voxel_size": (8.0, 8.0, 8.0), "data": folder / "data", **more}
    import_data(str(folder / "raw.tif"), "cell", say=lambda line: None, **settings)
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("way", WAYS)
def test_labels_that_fit_the_raw_better_otherwise_are_noted_and_kept(tmp_path, capsys, way):
    labels = WAYS[way](MITO)
    said = note_of(tmp_path, capsys, labels)
    told = f"mito.tif: these labels fit the raw far better {way};" if way else ""
    assert told in said and ("fit the raw" in said) == bool(way)
    store = tmp_path / "data" / layout.store("cell")
    level = open_levels(store / layout.LABELS / "crop1/mito")[0]
    np.testing.assert_array_equal(level.read((0, 0, 0), SHAPE), labels)


def test_labels_of_a_part_of_the_raw_are_compared_with_that_part(tmp_path, capsys):
    part = np.ascontiguousarray(MITO[4:20, 10:80, 20:80])
    options = "#translation=32,80,160"
    assert "fit the raw" not in note_of(tmp_path, capsys, part, options=options)
    said = note_of(tmp_path, capsys, part[:, ::-1], options=options, overwrite=True)
    assert "fit the raw far better mirrored along y;" in said


def test_labels_that_explain_nothing_of_the_raw_say_nothing(tmp_path, capsys):
    assert "fit the raw" not in note_of(tmp_path, capsys, MITO, 255 - 255 * np.ones(SHAPE) / 2)
    noise = np.random.default_rng(2).normal(120, 40, SHAPE).clip(0, 255)
    assert "fit the raw" not in note_of(tmp_path, capsys, MITO, noise, overwrite=True)


def test_unknown_voxels_are_left_out(tmp_path, capsys):
    labels = MITO.copy()
    labels[:, 45:] = 255
    said = note_of(tmp_path, capsys, labels[:, ::-1], options="#unknown=255")
    assert "fit the raw far better mirrored along y" in said
