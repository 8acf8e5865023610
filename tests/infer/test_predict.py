"""Predicting boxes: what validation gives, going on wherever it ended, sentences when it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from conftest import CLASSES, CROPS, Experiment, started, write_data
from scipy.special import expit

from common import runtime, stopping
from common.data.crops import normalize
from common.data.crops.normalize import Scaling
from common.data.samples import batches, loaders
from common.data.splits import regions
from common.data.volumes import ngff
from common.data.volumes.ngff import PARTIAL, ChunkedArray, open_levels, write_multiscale
from common.errors import FileError, UserError
from common.infer import predict
from common.infer.journal import Journal
from common.infer.predict import Output
from common.infer.predicting import blocks as blocks_module
from common.infer.predicting import disk_space, raw_blocks, sizes, work
from common.infer.predicting.orientations import oriented
from common.infer.predicting.output import check_output
from common.infer.predicting.writer import ClassVolume
from common.model.forward import ForwardPass
from common.shell import cli
from common.stopping import never
from common.train.checkpointing import checkpoint
from common.train.optimising import optim
from common.train.state import State
from tests.volumes import changing, move, values, voxels_of

LOGITS = {"content": "logits", "dtype": "float32"}


def save_weights(
    tiny: Experiment, seed: int = 0, epoch: int = 3, which: str = "best", **settings
) -> Path:
    """A checkpoint of random weights, as the trainer writes it."""
    config = tiny.config(**settings)
    torch.manual_seed(seed)
    model = config.build_model(config.classes, **config.model_kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    optimizer = optim.build_optimizer(model, 1e-4, 0.0, None)
    state = State(
        model,
        optimizer,
        None,
        runtime.Precision("fp32", "cpu").scaler(),
        epoch=epoch,
        best=0.5,
        best_epoch=epoch,
    )
    checkpoint.save_state(config, state, "no split", which)
    return config.path("model_save_path") / f"{which}.pt"


@pytest.fixture
def tiny(experiment) -> Experiment:
    """An experiment with a checkpoint of random weights."""
    made = experiment()
    save_weights(made)
    return made


def run(tiny: Experiment, crops: str = "validate", **settings) -> Path:
    """The folder of the one box that was predicted."""
    (folder,) = predict.predict(tiny.folder, crops, data=tiny.data, **settings)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Everything under a folder, without the time it was made at."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name == ".zattrs" and b"made" in content:
            attributes = json.loads(content)
            attributes["prediction"].pop("made")
            content = json.dumps(attributes).encode()
        found[str(path.relative_to(folder))] = content
    return found


def validation_logits(tiny: Experiment, **settings) -> np.ndarray:
    """(classes, z, y, x) logits of the one validation crop, from the trainer's batches."""
    config = tiny.config(**settings)
    data = loaders.open_data(config)
    model = config.build_model(config.classes, **config.model_kwargs)
    path = config.path("model_save_path") / "best.pt"
    checkpoint.load_weights(model, checkpoint.load(path, config.classes), path)
    forward = ForwardPass(runtime.Precision("fp32", "cpu"), config.channels_last)
    grid = data.validation[0].label_grid
    shape = np.array(config.target_array_info["shape"])
    whole = np.full((len(config.classes), *grid.shape), np.nan, np.float32)
    samples = iter(data.blocks)
    for batch in batches.validation_batches(config, data, torch.device("cpu")).between(
        0, len(data.blocks)
    ):
        with torch.inference_mode():
            logits = forward(model.eval(), batch.raw).numpy()
        for part in logits:
            sample = next(samples)
            start = np.floor(
                (sample.centre - grid.origin) / grid.scale - (shape - 1) / 2 + 0.5 + 1e-6
            ).astype(int)  # as labels are taken
            first = np.maximum(start, 0)
            last = np.minimum(start + shape, grid.shape)
            inside = tuple(map(slice, first, last))
            whole[(slice(None), *inside)] = part[
                (slice(None), *map(slice, first - start, last - start))
            ]
    assert np.isfinite(whole).all()
    return whole


# The same as validation


POOLED = """
    import torch
    from torch import nn
    from torch.nn import functional


    class Net(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.first = nn.Conv3d(1, 4, 3)
            self.low = nn.Conv3d(4, 4, 3)
            self.last = nn.Conv3d(8, classes, 3)

        def forward(self, raw):
            fine = self.first(raw).relu()
            low = self.low(functional.max_pool3d(fine, 2))
            coarse = functional.interpolate(low, scale_factor=2)
            return self.last(torch.cat([coarse, fine[:, :, 2:-2, 2:-2, 2:-2]], 1))


    def build_model(classes):
        return Net(len(classes))
    """
EVEN_KERNEL = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, len(classes), 4))
    """
SLICES = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, len(classes), 3))
    """
COARSER = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, len(classes), 2, stride=2))
    """


def arrays(shape, target, scale=(8, 8, 8), target_scale=None) -> dict:
    shape, target = ((n,) * 3 if isinstance(n, int) else n for n in (shape, target))
    return {
        "input_array_info": {"shape": shape, "scale": scale},
        "target_array_info": {"shape": target, "scale": target_scale or scale},
    }


@pytest.mark.parametrize("block", [7, 0])
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (None, {}),
        (POOLED, arrays(20, 12)),
        (EVEN_KERNEL, arrays(17, 12)),
        (SLICES, arrays((1, 20, 20), (1, 16, 16))),
        (SLICES, arrays((20, 20, 1), (16, 16, 1))),
        (COARSER, arrays(18, 8, target_scale=(16, 16, 16))),
        (None, arrays(12, 8, (16, 16, 16))),
        (None, {"raw_range": (60, 180)}),
        (None, {"raw_normalization": "percentile"}),
        (None, {"raw_normalization": "values"}),
        (None, {"raw_normalization": "values", "raw_range": (60, 180)}),
        (None, {"raw_normalization": "zscore", "raw_range": (60, 180)}),
    ],
    ids=[
        "valid",
        "pooled",
        "odd context",
        "slices",
        "slices across",
        "coarser target",
        "averaged raw",
        "raw range",
        "percentile",
        "values",
        "values of a range",
        "zscore",
    ],
)
def test_a_validation_crop_gets_the_logits_that_validation_gives_it(
    experiment, model, settings, block
):
    """Raw is on the same voxels, and normalised in the same way."""
    tiny = experiment(files={"model.py": model} if model else None, **settings)
    save_weights(tiny)
    expected = validation_logits(tiny)
    found = values(run(tiny, **LOGITS, block=block))
    assert found.shape == expected.shape and expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("nm", "moved"), [(3, 0), (4, 0), (5, 1)])
def test_a_crop_between_voxels_of_the_raw_gets_the_logits_of_voxels_that_are_there(
    experiment, nm, moved
):
    """Predicted voxels lie on those of the raw, and where they are is written down."""
    tiny = experiment()
    save_weights(tiny)
    for group in tiny.crop("crop3").iterdir():
        move(group, nm)
    expected = validation_logits(tiny)
    folder = run(tiny, **LOGITS)
    np.testing.assert_allclose(
        open_levels(folder / "mito")[0].translation, np.multiply(CROPS["crop3"][1], 8)
    )
    n = 24
    np.testing.assert_allclose(
        values(folder)[(slice(None), *[slice(moved, moved + n)] * 3)], expected, atol=1e-5
    )


def test_float_raw_is_seen_as_in_training(experiment):
    tiny = experiment(raw_range=(-1.0, 3.0))
    volume = voxels_of(tiny.raw).astype(np.float32) / 50 - 1.5
    write_multiscale(tiny.raw, volume, (8, 8, 8))
    save_weights(tiny)
    np.testing.assert_allclose(values(run(tiny, **LOGITS)), validation_logits(tiny), atol=1e-5)


def test_wide_integer_raw_is_seen_as_in_training(experiment):
    tiny = experiment()
    write_multiscale(tiny.raw, voxels_of(tiny.raw).astype(np.uint16) * 200, (8, 8, 8))
    save_weights(tiny)
    np.testing.assert_allclose(values(run(tiny, **LOGITS)), validation_logits(tiny), atol=1e-5)


WINDOW = """
    import torch
    from torch import nn


    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, raw):
            return raw[:, :, 2:-2, 2:-2, 2:-2].expand(-1, 3, -1, -1, -1) + self.weight


    def build_model(classes):
        return Window()
    """
"""A network that shows what it is given."""


@pytest.mark.parametrize("sections", [0, 2])
@pytest.mark.parametrize("mode", ["range", "percentile", "zscore", "values"])
def test_a_network_is_given_the_same_numbers_as_in_training(experiment, mode, sections):
    """To the last bit."""
    tiny = experiment(files={"model.py": WINDOW}, raw_normalization=mode, raw_sections=sections)
    save_weights(tiny)
    folder = run(tiny, **LOGITS)
    found = values(folder)
    np.testing.assert_array_equal(found, validation_logits(tiny))
    assert (found.min() < 0) == (mode == "zscore")
    assert (found.max() > 100) == (mode == "values")
    about = zarr.open_group(str(folder / "er"), mode="r").attrs["prediction"]
    assert about.get("raw_sections", 0) == sections


def test_a_volume_of_the_training_is_normalised_as_it_was_there(experiment, monkeypatch, tmp_path):
    tiny = experiment(raw_normalization="zscore")
    saved = torch.load(tiny.train().checkpoint, weights_only=True)["raw_scalings"]
    (scaling,) = saved.values()
    changed = Scaling(0.0, 0.5, 0.1, 0.3, (56, 56, 56))
    monkeypatch.setattr(normalize, "_measured", lambda *_: changed)
    group = zarr.open_group(str(run(tiny) / "er"), mode="r")
    assert group.attrs["prediction"]["raw_scaling"] == scaling
    # one that training did not know is measured
    own = tmp_path / "own.zarr"
    shutil.copytree(tiny.raw, own)
    group = zarr.open_group(str(run(tiny, volume=own) / "er"), mode="r")
    assert group.attrs["prediction"]["raw_scaling"] == changed.record()


def test_a_volume_that_is_normalised_otherwise_now_is_not_taken_for_the_same(
    experiment, monkeypatch, tmp_path
):
    tiny = experiment(raw_normalization="percentile")
    save_weights(tiny)
    folder = run(tiny)
    made = zarr.open_group(str(folder / "er"), mode="r").attrs["prediction"]["made"]
    run(tiny)
    assert zarr.open_group(str(folder / "er"), mode="r").attrs["prediction"]["made"] == made
    changed = Scaling(0.0, 0.5, 0.0, 1.0, (56, 56, 56))
    monkeypatch.setattr(normalize, "_measured", lambda *_: changed)
    with pytest.raises(
        UserError, match=r"made otherwise \(raw_scaling was .*'high': 0.74.* and is .*'high': 0.5,"
    ):
        run(tiny)


def test_what_was_trained_is_what_predicts(experiment):
    tiny = experiment()
    best = tiny.train().checkpoint
    folder = run(tiny, **LOGITS)
    np.testing.assert_allclose(values(folder), validation_logits(tiny), atol=1e-5)
    assert zarr.open_group(str(folder / "er"), mode="r").attrs["prediction"]["checkpoint"] == str(
        best
    )


# What is written


def test_the_output_is_a_multiscale_image_on_the_crop(tiny):
    level = open_levels(run(tiny) / "mito")[0]
    np.testing.assert_allclose(level.scale, (8, 8, 8))
    np.testing.assert_allclose(level.translation, np.multiply(CROPS["crop3"][1], 8))
    assert level.array.shape == (24, 24, 24) and level.array.dtype == np.uint8


def test_uint8_are_the_probabilities_in_255ths(tiny):
    """Which is the default."""
    logits = values(run(tiny, **LOGITS))
    np.testing.assert_array_equal(values(run(tiny, overwrite=True)), np.rint(255 * expit(logits)))
    np.testing.assert_allclose(
        values(run(tiny, dtype="float32", overwrite=True)), expit(logits), atol=1e-6
    )
    np.testing.assert_allclose(
        values(run(tiny, content="logits", dtype="float16", overwrite=True)), logits, rtol=1e-3
    )


def test_a_large_volume_has_coarser_levels(tiny, tmp_path):
    volume = np.random.default_rng(0).integers(1, 256, (70, 90, 131), np.uint8)
    write_multiscale(tmp_path / "own.zarr", volume, (8, 8, 8))
    folder = run(tiny, volume=tmp_path / "own.zarr", block=40, classes=("mito",))
    finest, half, quarter = open_levels(folder / "mito")
    found = finest.read((0, 0, 0), finest.shape)
    assert found.shape == volume.shape
    for level in (half, quarter):
        found = ngff.block_mean(found, (2, 2, 2))
        np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), found)
    np.testing.assert_allclose(quarter.box()[0], finest.box()[0])


def test_chunks_are_compressed_and_whole_in_a_block(tiny, tmp_path):
    """And on the scale that is asked for."""
    write_multiscale(tmp_path / "own.zarr", np.full((60, 60, 60), 77, np.uint8), (8, 8, 8))
    folder = run(tiny, volume=tmp_path / "own.zarr", block=32)
    assert open_levels(folder / "er")[0].array.chunks == (30, 30, 30)
    chunks = [
        len(content)
        for name, content in files(folder / "er").items()
        if name.startswith("s0/") and "." not in name
    ]
    assert len(chunks) == 8 and sum(chunks) < 60**3 / 20
    coarse = open_levels(
        run(tiny, volume=tmp_path / "own.zarr", scale=(32, 32, 32), overwrite=True) / "er"
    )[0]
    assert coarse.array.shape == (15, 15, 15)
    np.testing.assert_allclose(coarse.box()[0], -4)


def test_the_checkpoint_and_the_settings_are_named_in_the_output(tiny):
    path = tiny.config().path("model_save_path") / "best.pt"
    found = zarr.open_group(str(run(tiny) / "nuc"), mode="r").attrs.asdict()
    about = found["prediction"]
    assert (
        found["class"] == "nuc"
        and about["checkpoint"] == str(path)
        and about["epoch"] == 3
        and about["metric"] == "dice 0.5000 at epoch 3"
    )
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (about["content"], about["dtype"], about["orientations"], about["precision"]) == (
        "probability",
        "uint8",
        1,
        "fp32",
    )
    assert about["raw"] == str(tiny.raw / "s0") and torch.__version__.startswith(about["torch"])


def test_some_of_the_classes(tiny):
    every = values(run(tiny))
    shutil.rmtree(tiny.config().path("predictions_path"))
    folder = run(tiny, classes=("nuc", "er"))
    assert {path.name for path in folder.iterdir()} == {".zgroup", "er", "nuc"}
    np.testing.assert_array_equal(values(folder, ("nuc", "er")), every[[2, 1]])


def test_classes_added_later_stand_beside_the_first(tiny):
    every = files(run(tiny))
    shutil.rmtree(tiny.config().path("predictions_path"))
    run(tiny, classes=("er",))
    assert files(run(tiny)) == every


def test_several_crops_each_in_its_folder(tiny):
    folders = predict.predict(tiny.folder, "*", data=tiny.data)
    root = tiny.config().path("predictions_path")
    assert folders == [root / "tiny.zarr" / name for name in CROPS]
    assert all(open_levels(folder / name) for folder in folders for name in CLASSES)


def test_a_volume_with_levels_in_micrometres_far_from_the_origin(tiny, tmp_path):
    """The same raw, twice as fine and with a coarser level, in other units, elsewhere."""
    coarse = voxels_of(tiny.raw)
    path = tmp_path / "own.zarr" / "raw"
    write_multiscale(
        path,
        coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2),
        (0.004, 0.004, 0.004),
        (100 - 0.002, 50 - 0.002, -0.002),
        levels=2,
    )
    with changing(path) as attributes:
        for axis in attributes["multiscales"][0]["axes"]:
            axis["unit"] = "micrometer"
    z, y, x = np.multiply(CROPS["crop3"][1], 8) - 4
    roi = f"{100000 + z}:{100000 + z + 192},{50000 + y}:{50000 + y + 192},{x}:{x + 192}"
    folder = run(tiny, volume=path, roi=roi)
    assert folder.parent.name == "own.zarr"
    np.testing.assert_allclose(open_levels(folder / "er")[0].box()[0], [100000 + z, 50000 + y, x])
    np.testing.assert_array_equal(values(folder), values(run(tiny)))


def test_a_test_crop_gets_the_classes_that_are_scored_there(tiny, tmp_path, capfd):
    row = "{},tiny,{},[8.0;8.0;8.0],[80.0;80.0;80.0],[9;9;9]\n"
    text = (
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        + row.format(7, "er")
        + row.format(7, "golgi_lum")
        + row.format(8, "golgi_lum")
    )
    (tmp_path / "test.csv").write_text(text)
    folder = run(tiny, "test", manifest_path=tmp_path / "test.csv")
    assert {path.name for path in folder.iterdir()} == {".zgroup", "er"}
    assert (
        "note: tiny/crop8 is left out, none of mito, er, nuc is scored there"
        in capfd.readouterr().err
    )
    with pytest.raises(UserError, match="none of mito is scored"):
        run(tiny, "test", manifest_path=tmp_path / "test.csv", classes=("mito",))


ROW = "{},tiny,{},[{};{};{}],[80.0;80.0;80.0],[6;6;6]\n"
HEADER = "crop_name,dataset,class_label,voxel_size,translation,shape\n"


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ({"er": (16, 16, 16)}, (16, 16, 16)),
        ({"er": (4, 4, 4)}, (8, 8, 8)),
        ({"er": (8, 8, 8)}, (8, 8, 8)),
        ({"er": (32, 4, 16)}, (32, 8, 16)),
        ({"er": (16, 16, 16), "mito": (32, 32, 32)}, (16, 16, 16)),
        # of which the network knows nothing
        ({"er": (16, 16, 16), "golgi_lum": (8, 8, 8)}, (16, 16, 16)),
    ],
)
def test_a_test_crop_is_stored_no_finer_than_it_is_scored(tiny, tmp_path, asked, stored):
    rows = [ROW.format(7, name, *scale) for name, scale in asked.items()]
    (tmp_path / "test.csv").write_text(HEADER + "".join(rows))
    # whichever classes are asked for, so that others can stand beside them later
    folder = run(tiny, "test", manifest_path=tmp_path / "test.csv", classes=("er",))
    level = open_levels(folder / "er")[0]
    np.testing.assert_allclose(level.scale, stored)
    assert run(tiny, "test", manifest_path=tmp_path / "test.csv") == folder


def test_a_test_crop_is_stored_at_the_scale_that_is_asked_for(tiny, tmp_path):
    (tmp_path / "test.csv").write_text(HEADER + ROW.format(7, "er", 16, 16, 16))
    folder = run(tiny, "test", manifest_path=tmp_path / "test.csv", scale=(8, 8, 8))
    np.testing.assert_allclose(open_levels(folder / "er")[0].scale, 8)


def test_coarse_voxels_of_a_test_crop_are_the_means_of_the_networks(tiny, tmp_path):
    (tmp_path / "test.csv").write_text(HEADER + ROW.format(7, "er", 16, 16, 16))
    coarse = run(tiny, "test", manifest_path=tmp_path / "test.csv", **LOGITS)
    level = open_levels(coarse / "er")[0]
    found = values(coarse, ["er"])
    fine = run(
        tiny,
        "test",
        manifest_path=tmp_path / "test.csv",
        scale=(8, 8, 8),
        overwrite=True,
        **LOGITS,
    )
    np.testing.assert_allclose(level.box()[0], open_levels(fine / "er")[0].box()[0])
    expected = ngff.block_mean(values(fine, ["er"]), (1, 2, 2, 2))
    shape = np.minimum(found.shape, expected.shape)
    inside = tuple(slice(1, n - 1) for n in shape[1:])
    np.testing.assert_allclose(found[0][inside], expected[0][inside], atol=1e-4)


def test_the_size_of_all_boxes_is_said_first(tiny, capfd):
    run_all = partial(predict.predict, tiny.folder, "*", data=tiny.data)
    run_all()
    said = capfd.readouterr().err
    values_in_all = 3 * len(CROPS) * 24**3
    total = f"{len(CROPS)} boxes: {values_in_all / 1e3:.0f} k voxels x classes, at most "
    assert total in said and said.index(total) < said.index("block of")
    assert "GB free in" in said
    run_all()
    assert "voxels x classes" not in capfd.readouterr().err  # nothing is left


@pytest.mark.parametrize(("free", "words"), [(4000, "not even a tenth"), (5000, ""), (1e6, "")])
def test_what_cannot_fit_on_the_disk_is_refused_before_anything_is_written(
    tiny, monkeypatch, capfd, free, words
):
    """Three classes of 24^3 voxels."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    root = tiny.config().path("predictions_path")
    if not words:
        run(tiny)
        noted = "enough only if predictions compress well" in capfd.readouterr().err
        assert noted == (free < 3 * 24**3)
        return
    with pytest.raises(FileError, match=words) as failure:
        run(tiny)
    assert str(root) in str(failure.value) and "--scale" in str(failure.value)
    assert not root.exists()


def test_what_is_there_already_needs_no_room(tiny, monkeypatch):
    run(tiny)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    run(tiny)


def test_bytes_are_those_of_all_levels(tiny, tmp_path):
    write_multiscale(tmp_path / "own.zarr", np.full((90, 70, 131), 77, np.uint8), (8, 8, 8))
    folder = run(tiny, volume=tmp_path / "own.zarr", classes=("er",), dtype="float16")
    levels = open_levels(folder / "er")
    assert disk_space.bytes_of(levels[0].grid, "float16") == sum(
        level.array.nbytes for level in levels
    )


@pytest.mark.parametrize(
    ("end", "noted"),
    [
        (".sigmoid()", True),
        (".softmax(1)", True),
        (".clamp(0, 1)", True),
        (".relu()", True),
        (".clamp(-20, 20)", False),
        ("", False),
        (" * 0", False),
    ],
)
def test_a_network_that_ends_in_a_sigmoid_is_noted(experiment, capfd, end, noted):
    tiny = experiment()
    tiny.write(
        "model.py",
        f"""
    from torch import nn
    class Net(nn.Conv3d):
        def forward(self, raw):
            return super().forward(raw){end}
    def build_model(classes): return Net(1, len(classes), 5)
    """,
    )
    save_weights(tiny)
    predict.predict(tiny.folder, "train", data=tiny.data)  # of several crops it is said once
    said = capfd.readouterr().err
    assert said.count("the network ends in") == noted


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_network_that_gives_nan_is_refused(tiny, dtype):
    path = tiny.config().path("model_save_path") / "best.pt"
    saved = torch.load(path, weights_only=True)
    for tensor in saved["model"].values():
        tensor[...] = np.nan
    torch.save(saved, path)
    with pytest.raises(UserError, match=r"best.pt: the network gives NaN, in fp32; .*checkpoint"):
        run(tiny, dtype=dtype)


def test_orientations_are_averaged(tiny):
    config = tiny.config()
    one = values(run(tiny, **LOGITS))
    eight = values(run(tiny, **LOGITS, orientations=8, overwrite=True))
    network = predict.load_network(config)
    (region,) = regions.choose(config)
    plan = sizes.make_plan(network, config, region, Output(orientations=8))
    [raw] = raw_blocks.read_for_passes([plan], 0)
    forward = oriented(network.forward, 8)
    expected = blocks_module.compute_block(plan, raw, forward, network.device)
    np.testing.assert_allclose(eight, expected, atol=1e-5)
    assert np.abs(eight - one).max() > 0.01


def test_raw_that_is_black_is_noted(tiny, capfd):
    zarr.open(str(tiny.raw / "s0"), mode="r+")[:] = 0
    run(tiny)
    assert "note: the raw of tiny/crop3 is 0 throughout in 1 of 1 blocks" in capfd.readouterr().err


# The checkpoint


def test_the_best_checkpoint_is_taken_or_the_one_that_is_named(experiment, tmp_path):
    tiny = experiment()
    other = shutil.copy(save_weights(tiny, 5), tmp_path / "other.pt")
    paths = {
        which: save_weights(tiny, seed, which=which)
        for seed, which in enumerate(("latest", "best"))
    }

    def taken(**settings) -> str:
        return zarr.open_group(str(run(tiny, overwrite=True, **settings) / "er"), mode="r").attrs[
            "prediction"
        ]["checkpoint"]

    assert taken() == str(paths["best"]) == taken(weights="best")
    assert taken(weights="latest") == str(paths["latest"]) and taken(weights=other) == str(other)
    paths["best"].unlink()
    assert taken() == str(paths["latest"])


def test_the_checkpoint_is_found_from_any_folder(tiny, tmp_path, monkeypatch):
    """The run's folder does not depend on where the command is given."""
    expected = values(run(tiny))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.rmtree(tiny.config().path("predictions_path"))
    np.testing.assert_array_equal(values(run(tiny)), expected)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_weights_are_those_of_the_file_every_one(tiny, monkeypatch):
    """Nothing is predicted by a network that the checkpoint did not fill."""
    path = tiny.config().path("model_save_path") / "best.pt"
    saved = torch.load(path, weights_only=True)
    del saved["model"]["4.bias"]
    torch.save(saved, path)
    with pytest.raises(UserError, match=f"{path}: .*4.bias"):
        run(tiny)
    assert not tiny.config().path("predictions_path").exists()


# Going on


class Stop:
    """True from the n-th question on."""

    def __init__(self, n: int):
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def region_of(tiny: Experiment, **settings) -> tuple:
    config = tiny.config()
    call = predict.PredictCall(predict.load_network(config), config, Output(**settings))
    return call, regions.choose(config)[0], CLASSES


def predict_tiny(tiny: Experiment, stopped=never, **settings) -> Path:
    """Predict the validation crop, or go on with it, until `stopped()`."""
    call, region, names = region_of(tiny, **settings)
    return predict.predict_region(replace(call, stopped=stopped), region, names)


def test_an_interrupted_prediction_goes_on_to_the_same_bytes(tiny, tmp_path):
    """Stopped at random blocks, in the middle of a line, of a chunk, and while it is finished.

    Some classes are further than others.
    """
    write_multiscale(
        tmp_path / "own.zarr",
        np.random.default_rng(0).integers(0, 256, (70, 45, 30), np.uint8),
        (8, 8, 8),
    )
    call, _, names = region_of(tiny, block=20)
    region = regions.of_volume(tmp_path / "own.zarr")
    folder = predict.predict_region(call, region, names)
    whole = files(folder)
    assert "er/s1/0/0/0" in whole
    for seed in range(4):
        shutil.rmtree(folder)
        choose = random.Random(seed)
        for _ in range(6):
            with pytest.raises(KeyboardInterrupt):
                stopped = Stop(choose.randrange(5))
                predict.predict_region(replace(call, stopped=stopped), region, names)
            for name in names:
                lines = (folder / name / ".blocks").read_bytes()
                with pytest.raises(UserError, match="half-written"):
                    open_levels(folder / name)
                if choose.random() < 0.5:
                    (folder / name / ".blocks").write_bytes(
                        lines[: choose.randrange(len(lines) + 1)]
                    )
            (folder / "er/s0/1").mkdir(exist_ok=True)
            for end in PARTIAL:
                (folder / f"er/s0/1/0.cut{end}").write_bytes(b"half a chunk")
        predict.predict_region(call, region, names)
        assert files(folder) == whole


def test_what_is_written_is_not_computed_again(tiny, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        predict_tiny(tiny, block=8, stopped=Stop(10))
    computed = []
    original = work.compute_blocks

    def counted(plan, numbers, *others, **options):
        computed.extend(numbers)
        return original(plan, numbers, *others, **options)

    monkeypatch.setattr(work, "compute_blocks", counted)
    predict_tiny(tiny, block=8)
    assert computed == list(range(11, 27))


def test_an_interruption_while_finishing_is_gone_on_with(tiny, monkeypatch):
    whole = files(run(tiny, block=8))
    folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt):
        predict_tiny(tiny, block=8, stopped=Stop(27 + 1))
    finished = [
        name
        for name in CLASSES
        if "multiscales" in json.loads((folder / name / ".zattrs").read_text())
    ]
    assert len(finished) == 1
    run(tiny, block=8)
    assert files(folder) == whole


def test_ctrl_c_ends_after_a_block_with_a_sentence(tiny, monkeypatch, capfd):
    original = ForwardPass.__call__
    calls = []

    def interrupting(self, model, raw):
        calls.append(1)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, model, raw)

    network = predict.load_network(tiny.config())
    calls.clear()
    monkeypatch.setattr(ForwardPass, "__call__", interrupting)
    monkeypatch.setattr(predict, "load_network", lambda *_: network)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, block=8)
    folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    assert f"interrupted; the same command goes on with {folder}" in capfd.readouterr().err
    assert len(calls) == 10
    assert sorted(Journal(folder / "er").read()) == list(range(10))
    assert not (folder / ".lock").exists()


def test_a_block_that_takes_too_long_is_given_up(tiny, monkeypatch):
    whole = files(run(tiny, block=8))
    folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    shutil.rmtree(folder)
    original = ForwardPass.__call__
    calls = []

    def held(self, model, raw):
        calls.append(1)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)
        return original(self, model, raw)

    network = predict.load_network(tiny.config())
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(ForwardPass, "__call__", held)
        patch.setattr(predict, "load_network", lambda *_: network)
        patch.setattr(predict, "PATIENCE_S", 0.1)
        patch.setattr(stopping, "TWICE_S", 0.0)
        with pytest.raises(stopping.Stopped):
            run(tiny, block=8)
    assert sorted(Journal(folder / "er").read()) == list(range(9))
    run(tiny, block=8)
    assert files(folder) == whole


def test_levels_are_not_waited_for_when_a_call_is_to_end(tiny, monkeypatch):
    seen = []

    def held(self, stopped):
        until = time.monotonic() + 60
        while not stopped() and time.monotonic() < until:
            time.sleep(0.01)
        seen.append(stopped())

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassVolume, "finish", held)
    monkeypatch.setattr(work, "_begin_writing", lambda *_: [])
    monkeypatch.setattr(work, "_when_written", lambda block, _: (block.number, False))
    monkeypatch.setattr(work, "_wait", interrupted)
    monkeypatch.setattr(Journal, "look", lambda _: set(range(27)))
    with pytest.raises(KeyboardInterrupt):
        predict_tiny(tiny, block=8)
    assert seen == [True] * 3


def test_a_prediction_begun_with_more_memory_is_gone_on_with(tiny, monkeypatch):
    """The size of blocks, and of chunks, is that of the beginning."""
    call, region, names = region_of(tiny)
    monkeypatch.setitem(sizes.LARGEST_BLOCK, "cpu", 8)
    with pytest.raises(KeyboardInterrupt):
        predict.predict_region(replace(call, stopped=Stop(5)), region, names)
    monkeypatch.setitem(sizes.LARGEST_BLOCK, "cpu", 16)
    folder = predict.predict_region(call, region, names)
    assert open_levels(folder / "er")[0].array.chunks == (8, 8, 8)


def test_another_block_size_begins_anew(tiny):
    expected = files(run(tiny, block=12))
    folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt):
        predict_tiny(tiny, block=8, stopped=Stop(5))
    assert files(run(tiny, block=12)) == expected


def test_a_finished_prediction_is_left_alone(tiny, capfd):
    folder = run(tiny)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert run(tiny) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert f"tiny/crop3: already there, in {folder}" in capfd.readouterr().err


def test_another_codec_holds_the_same_and_what_was_begun_keeps_its_own(tiny):
    lz4 = ("predictions_codec=lz4",)
    before = values(run(tiny))
    folder = run(tiny, overrides=lz4)
    codecs = {zarr.open_array(str(path.parent)).compressor.cname for path in written_arrays(folder)}
    # it is whole: nothing is written again for the sake of its bytes
    assert codecs == {"zstd"}
    shutil.rmtree(folder)
    config = replace(tiny.config(), predictions_codec="lz4")
    begun = predict.PredictCall(
        predict.load_network(config), config, Output(block=16), stopped=Stop(3)
    )
    with pytest.raises(KeyboardInterrupt):
        predict.predict_region(begun, regions.choose(config)[0], CLASSES)
    run(tiny, block=16)
    levels = [zarr.open_array(str(path.parent)) for path in written_arrays(folder)]
    assert {level.compressor.cname for level in levels} == {"lz4"}
    assert (values(folder) == before).all()


def written_arrays(folder: Path) -> list[Path]:
    """Metadata of all levels of all classes."""
    return sorted(folder.glob("*/*/.zarray"))


def test_a_finished_prediction_that_lost_a_chunk_is_predicted_again(tiny):
    folder = run(tiny)
    expected = values(folder)
    open_levels(folder / "mito")[0].chunk_file((0, 0, 0)).unlink()
    assert (values(folder) != expected).any()
    np.testing.assert_array_equal(values(run(tiny)), expected)


def test_raw_that_is_other_by_now_is_refused_until_all_is_overwritten(tiny):
    """Of which chunks were missing, for one."""
    raw = tiny.store / "recon-1/em/fibsem-uint8/s0"
    chunks = [path for path in raw.rglob("*") if path.is_file() and not path.name.startswith(".")]
    contents = {path: path.read_bytes() for path in chunks}
    expected = values(run(tiny))
    for path in chunks:
        path.unlink()
    other = values(run(tiny, overwrite=True))
    assert (other != expected).any()
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"the voxels of .*fibsem-uint8/s0 are others now: replaced"
    ):
        run(tiny)
    np.testing.assert_array_equal(values(run(tiny, overwrite=True)), expected)


def test_overwrite_leaves_the_classes_that_are_not_asked_for(tiny):
    folder = run(tiny)
    before = files(folder / "er"), (folder / "er/.zattrs").stat().st_mtime_ns
    run(tiny, classes=("mito",), overwrite=True)
    assert (files(folder / "er"), (folder / "er/.zattrs").stat().st_mtime_ns) == before


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_prediction_of_other_weights_or_settings_is_replaced_only_when_asked(tiny, unfinished):
    if unfinished:
        with pytest.raises(KeyboardInterrupt):
            predict_tiny(tiny, block=8, stopped=Stop(5))
        folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    else:
        folder = run(tiny, block=8)
    before = files(folder)
    with pytest.raises(
        UserError,
        match=rf"{folder}/mito: .*best.pt .*dtype was uint8 and is float32.*--overwrite",
    ):
        run(tiny, dtype="float32", block=8)
    save_weights(tiny, seed=7)
    with pytest.raises(UserError, match=r"sha256 was \w{64} and is \w{64}"):
        run(tiny, block=8)
    assert files(folder) == before
    replaced = values(run(tiny, block=8, overwrite=True))
    shutil.rmtree(folder)
    np.testing.assert_array_equal(values(run(tiny, block=8)), replaced)


def test_what_predict_did_not_write_is_never_replaced(tiny):
    folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    write_multiscale(folder / "er", np.ones((4, 4, 4), np.uint8), (8, 8, 8))
    before = files(folder)
    with pytest.raises(
        UserError,
        match=f"{folder}/er: not written by predict",
    ):
        run(tiny, overwrite=True)
    assert files(folder) == before


HOLD = """
import sys
from fasteners import InterProcessLock
lock = InterProcessLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def test_two_processes_do_not_predict_into_one_folder(tiny):
    folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(command, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(
            UserError,
            match=f"{folder}: another process",
        ):
            run(tiny)
        assert [path.name for path in folder.iterdir()] == [".lock"]
        other.kill()
    run(tiny)
    assert not (folder / ".lock").exists()


# Memory


def test_blocks_are_smaller_where_memory_is(tiny, tmp_path, monkeypatch):
    write_multiscale(tmp_path / "own.zarr", np.ones((200, 200, 200), np.uint8), (8, 8, 8))
    config = tiny.config()
    region = regions.of_volume(tmp_path / "own.zarr")
    network = predict.load_network(config)
    blocks = []
    needed = []
    for gb in (100.0, 0.2, 0.05, 1e-6):
        monkeypatch.setattr(runtime, "free_memory_gb", lambda _, gb=gb: gb)
        plan = sizes.make_plan(network, config, region, Output())
        blocks.append(plan.block_shape[0])
        needed.append(sizes.gigabytes(network, region, plan, 3) / gb)
    assert (
        blocks[0] == 100
        and blocks == sorted(blocks, reverse=True)
        and len(set(blocks)) > 2
        and blocks[-1] >= 20
    )
    assert max(needed[:3]) <= sizes.MEMORY_FRACTION


def test_too_little_memory_on_the_device_is_told_with_a_smaller_block(tiny, monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(work, "compute_blocks", fails)
    with pytest.raises(UserError, match=r"cpu: .*--block 64"):
        run(tiny)


def test_memory_is_what_a_control_group_leaves(tmp_path):
    own = tmp_path / "cgroup"
    folder = tmp_path / "fs" / "batch" / "job"
    own.write_text("4:memory:/old\n0::/batch/job\n")
    folder.mkdir(parents=True)
    for group, limit, used, forgotten in (
        (folder, "max", 0, 0),
        (folder.parent, 10 * 10**9, 7 * 10**9, 10**9),
        (tmp_path / "fs", 20 * 10**9, 0, 0),
    ):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {forgotten}\n")
    assert runtime.control_group_gb(tmp_path / "fs", own) == 4
    own.write_text("0::/\n")
    assert runtime.control_group_gb(tmp_path / "fs", own) == 20
    assert runtime.control_group_gb(tmp_path / "nothing", own) == np.inf
    assert 0 < runtime.free_memory_gb(torch.device("cpu")) < 1e5


# What a user can do wrong


@pytest.fixture
def fails(monkeypatch, capfd):
    """Runs predict from the command line, which must end with exit code 2; gives the sentence.

    Nothing may be written, unless `wrote`.
    """

    def run(tiny: Experiment, *words: str, wrote: bool = False) -> str:
        monkeypatch.setattr(
            sys, "argv", ["csc", "predict", str(tiny.folder), "--data", str(tiny.data), *words]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr().err
        assert ended.value.code == 2 and "Traceback" not in said, said
        _, found, sentence = said.partition("error: ")
        assert found and (wrote or not (tiny.folder / "predictions").exists())
        return sentence.strip()

    return run


def test_no_checkpoint(experiment, fails):
    tiny = experiment()
    folder = tiny.config().path("model_save_path")
    assert fails(tiny).startswith(f"{folder}: no best checkpoint; train first")
    assert fails(tiny, "--checkpoint", "latest").startswith(
        f"{folder}: no latest checkpoint; train first"
    )
    said = fails(tiny, "--checkpoint", "nowhere.pt")
    assert said.startswith(f"{tiny.folder}/nowhere.pt: no such checkpoint")


def test_a_file_that_is_no_checkpoint(tiny, fails):
    path = tiny.folder / "model.py"
    assert fails(tiny, "--checkpoint", str(path)).startswith(
        f"{path}: not a readable checkpoint of this trainer"
    )


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 7},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
    ],
)
def test_weights_of_another_trainer_are_taken(tiny, wrapped, capfd):
    """The file is good: it only does not say what it was trained with."""
    expected = values(run(tiny))
    best = tiny.config().path("model_save_path") / "best.pt"
    path = tiny.folder / "weights.pt"
    torch.save(wrapped(torch.load(best, weights_only=True)["model"]), path)
    folder = run(tiny, weights=str(path), overwrite=True)
    np.testing.assert_array_equal(values(folder), expected)
    said = capfd.readouterr().err
    assert f"note: {path}: weights without settings; that they were trained for mito, er" in said
    assert f"{path}: weights alone; on cpu" in said
    about = zarr.open_group(str(folder / "er"), mode="r").attrs["prediction"]
    assert about["checkpoint"] == str(path) and "epoch" not in about


def test_classes_that_changed_places_make_another_prediction_of_weights_alone(tiny):
    """Nothing in such a file tells the order: what is there was stored by the one before."""
    best = tiny.config().path("model_save_path") / "best.pt"
    path = tiny.folder / "weights.pt"
    torch.save(torch.load(best, weights_only=True)["model"], path)
    before = values(run(tiny, weights=str(path)))
    assert values(run(tiny, weights=str(path))) is not None
    text = (tiny.folder / "data.py").read_text()
    swapped = text.replace("('mito', 'er', 'nuc')", "('er', 'mito', 'nuc')")
    (tiny.folder / "data.py").write_text(swapped)
    with pytest.raises(UserError, match=r"classes was \('mito', 'er', 'nuc'\) and is \('er', "):
        run(tiny, weights=str(path))
    after = values(run(tiny, weights=str(path), overwrite=True))
    np.testing.assert_array_equal(after, before[[1, 0, 2]])


def test_weights_of_another_network_are_refused_with_the_first_difference(tiny, fails):
    best = tiny.config().path("model_save_path") / "best.pt"
    weights = torch.load(best, weights_only=True)["model"]
    first = next(iter(weights))
    weights[first] = weights[first][:1]
    path = tiny.folder / "weights.pt"
    torch.save(weights, path)
    said = fails(tiny, "--checkpoint", str(path))
    assert said.startswith(f"{path}: its weights are of another network (1 of")
    assert f"1 of another shape: {first} (" in said and "remove" not in said


def test_a_checkpoint_of_other_classes(tiny, fails):
    tiny.write(
        "data.py",
        (tiny.folder / "data.py")
        .read_text()
        .replace("('mito', 'er', 'nuc')", "('mito', 'nuc', 'er')"),
    )
    said = fails(tiny)
    assert (
        "trained for 3 classes and this run has 3: channel 1 is 'er' there and 'nuc' here" in said
        and "\n" not in said
    )


def test_a_checkpoint_of_another_run_is_said(tiny, capsys):
    run(tiny)
    assert "written by another run" not in capsys.readouterr().err
    of_run = tiny.config().path("model_save_path")
    shutil.copytree(of_run, of_run.with_name("another"))
    run(tiny, overrides=["run_name=another"])
    told = "was written by another run, tiny_experiment/seed42, whose weights predict under the"
    assert told in capsys.readouterr().err
    run(tiny, overrides=["run_name=seed42"])
    assert "written by another run" not in capsys.readouterr().err


def test_a_run_of_the_name_that_the_folder_had_is_told(tiny, capsys):
    renamed = Experiment(tiny.folder.rename(tiny.folder.with_name("renamed")), tiny.data)
    with pytest.raises(FileNotFoundError, match="--set model_name=tiny_experiment, which has this"):
        run(renamed)
    run(renamed, overrides=["model_name=tiny_experiment"])
    renamed.train(epochs=1, iterations_per_epoch=1)
    told = "checkpoints of tiny_experiment/seed42 are there; if the folder was renamed, set"
    assert told in capsys.readouterr().err


def test_the_weights_of_another_network(tiny, fails):
    tiny.write(
        "model.py",
        "from torch import nn\ndef build_model(classes): return nn.Conv3d(1, len(classes), 5)",
    )
    said = fails(tiny)
    assert "best.pt: its weights are of another network (" in said and "\n" not in said


def test_scales_that_changed_since_training(tiny, fails):
    said = fails(
        tiny,
        "--set",
        "input_array_info.scale=(16, 16, 16)",
        "--set",
        "target_array_info.scale=(16, 16, 16)",
    )
    assert "best.pt: trained with other settings (input_array_info was" in said and said.endswith(
        "); set them back"
    )


def test_a_range_of_raw_that_changed_since_training(tiny, fails):
    """What was normalised otherwise in training is not predicted."""
    assert "raw_range was () and is (0, 100)); set them back" in fails(
        tiny, "--set", "raw_range=(0, 100)"
    )


def test_a_normalisation_that_changed_since_training(tiny, fails):
    assert "raw_normalization was 'range' and is 'zscore'); set them back" in fails(
        tiny, "--set", "raw_normalization=zscore"
    )


def test_crops_and_volumes_that_are_not_there(tiny, fails, tmp_path):
    assert "no crop 'crop77'; there are 3: crop1, crop2, crop3" in fails(tiny, "--crops", "77")
    assert fails(tiny, "--volume", str(tmp_path / "x.zarr")).startswith(
        f"{tmp_path}/x.zarr: nothing is there"
    )
    box = f"no box within {tiny.raw}, which is -4:444,-4:444,-4:444 nm"
    assert (
        fails(tiny, "--volume", str(tiny.raw), "--roi", "500:600,:,:")
        == f"--roi 500:600,:,:: {box}"
    )
    assert fails(tiny, "--volume", str(tiny.raw), "--roi", "60:60,:,:") == f"--roi 60:60,:,:: {box}"


def test_raw_that_is_missing_is_told_before_anything_is_predicted(tiny, fails):
    write_data(tiny.data, CROPS, "other")
    split = (tiny.folder / "datasplit.csv").read_text()
    (tiny.folder / "datasplit.csv").write_text(split + split.replace("tiny", "other"))
    raw = tiny.data / "other/other.zarr/recon-1/em/fibsem-uint8"
    shutil.rmtree(raw)
    assert fails(tiny, "--crops", "*") == f"{raw}: nothing is there; write the path of a volume"


def test_a_crop_outside_of_its_raw(tiny, fails):
    write_multiscale(tiny.raw, np.ones((9, 9, 9), np.uint8), (8, 8, 8), (5000, 0, 0))
    said = fails(tiny)
    assert said.startswith(f"tiny/crop3: 12:204,236:428,236:428 nm, outside of its raw {tiny.raw}")


def test_a_class_that_the_network_has_not(tiny, fails):
    assert fails(tiny, "--classes", "er,golgi_lum").endswith(
        "the network has no class golgi_lum; it has mito, er, nuc"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--logits",), "logits do not fit into uint8; write --dtype float16 or float32"),
        (("--scale", "8,8"), "--scale 8,8; write one "),
        (("--classes", ","), "--classes ',': no name in it; write some, or leave it out"),
        (("--scale", "inf"), "--scale inf; write one "),
        (("--block", "-3"), "block -3; write a number of voxels, such as 128"),
        (("--scale", "1e9"), "scale 1e+09: the network gives 8 nm; write sizes up to 64 times "),
        (("--scale", "8", "8", "0.1"), "scale 8 x 8 x 0.1: the network gives 8 nm; write "),
    ],
)
def test_options_that_do_not_fit(tiny, fails, words, sentence):
    assert fails(tiny, *words).startswith(sentence)


def test_a_block_that_no_memory_holds(tiny, fails, monkeypatch):
    monkeypatch.setattr(sizes, "gigabytes", lambda *_: 1e6)
    said = fails(tiny, "--block", "1000")
    assert said.startswith(
        "--block 1000: a block of 24 x 24 x 24 voxels takes about 1e+06 GB, and cpu"
    )


@pytest.mark.parametrize(
    "scale", [16, np.float64(16), [16, 16, 16], np.array([16, 16, 16]), (16.0, 16.0, 16.0)]
)
def test_a_scale_of_a_script_is_three_numbers_however_it_is_listed(tiny, scale):
    assert check_output(Output(scale=scale), tiny.config()).scale == (16, 16, 16)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"scale": "16"}, "scale .*; write three voxel sizes"),
        ({"scale": 0}, "scale .*; write three voxel sizes"),
        ({"margin": "100"}, "margin 100; write a length in nm"),
        ({"margin": None}, "margin None; write a length in nm"),
        ({"block": 64.5}, "block 64.5; write a number of voxels"),
        ({"orientations": "8"}, "'8' orientations; write 1, 8"),
    ],
)
def test_what_a_script_gives_wrongly_is_told_as_on_the_command_line(tiny, given, told):
    with pytest.raises(UserError, match=told):
        check_output(Output(**given), tiny.config())


def test_everything_wrong_with_the_output_is_told_at_once(tiny):
    with pytest.raises(UserError) as error:
        run(tiny, content="odds", dtype="int4", orientations=3, scale=(8.0,))
    assert str(error.value).split("\n") == [
        "content 'odds'; write probability or logits",
        "dtype 'int4'; write uint8, float16 or float32",
        "3 orientations; write 1, 8 (mirrored) or 16 (with y and x exchanged)",
        "scale (8.0,); write three voxel sizes in nm, z, y, x",
    ]


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 0.0])
def test_a_voxel_size_that_is_none_is_refused(tiny, size):
    with pytest.raises(UserError, match="write three voxel sizes in nm"):
        run(tiny, scale=(size, 8.0, 8.0))


def test_sixteen_orientations_of_a_network_that_is_not_the_same_in_y_and_x(experiment, fails):
    tiny = experiment(**arrays((20, 20, 20), (16, 16, 16), (8, 8, 4)))
    save_weights(tiny)
    assert "16 orientations exchange y and x, whose voxel sizes differ here; write 8" in fails(
        tiny, "--orientations", "16"
    )
    oblong = """
        from torch import nn


        class Net(nn.Conv3d):
            def forward(self, raw):
                assert raw.shape[4] % 4 == 0
                return super().forward(raw)


        def build_model(classes):
            return Net(1, len(classes), 3)
        """
    other = experiment("oblong", files={"model.py": oblong}, **arrays((10, 11, 12), (8, 9, 10)))
    save_weights(other)
    assert "the network does not take" in fails(other, "--orientations", "16")


def test_a_damaged_chunk(tiny, fails):
    (tiny.raw / "s0/0/0/0").write_bytes(b"damaged")
    said = fails(tiny, wrote=True)
    assert (
        said.startswith(f"{tiny.raw}/s0: a chunk in voxels")
        and said.endswith("copy this array again")
        and "\n" not in said
    )
    # a little of the raw is read before anything is begun
    assert not (tiny.config().path("predictions_path") / "tiny.zarr/crop3/er").exists()


@pytest.mark.parametrize(
    "of, function, before",
    # by which zarr puts metadata in their place; what writes chunks
    [(os, "replace", 2), (ChunkedArray, "put", 40)],
)
def test_a_full_disk_is_told_and_the_same_command_goes_on(
    tiny, fails, monkeypatch, of, function, before
):
    expected = files(run(tiny, block=8))
    folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    shutil.rmtree(tiny.config().path("predictions_path"))
    original = getattr(of, function)
    calls = []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > before:
            raise OSError(28, "No space left on device")
        original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(of, function, full)
        said = fails(tiny, "--block", "8", wrote=True)
    assert said.startswith(f"{folder}: could not be written (No space left on device)")
    assert files(run(tiny, block=8)) == expected


def test_a_folder_that_cannot_be_made(tiny, fails):
    (tiny.folder / "predictions").write_text("a file")
    said = fails(tiny, wrote=True)
    assert "tiny.zarr/" in said and f"({tiny.folder}/predictions is no folder)" in said
