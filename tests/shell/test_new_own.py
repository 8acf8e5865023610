"""An experiment for somebody's own data."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr

from common.config.load import load_config, load_process_config
from common.data.own.crops import Division, OwnCrop, _sides_where_classes_occur
from common.data.samples import batches, loaders
from common.data.splits import make_split
from common.data.splits.choose_sides import SplitRules
from common.data.splits.split import read_datasplit
from common.data.summary import fingerprint
from common.data.volumes import layout
from common.data.volumes.ngff import write_multiscale
from common.data.volumes.sources.excerpt import INSTANCE_TYPE
from common.model.build import new_model
from common.shell import own_plan
from common.shell.new_own import _findings, new_own
from tests.data.crops_at_hand import crop
from tests.volumes import voxels_of

CUBE = (8.0, 8.0, 8.0)


def annotated(kind: str) -> dict:
    return {"cellmap": {"annotation": {"annotation_type": {"type": kind}}}}


def write_cell(
    root, *, shape=(40, 64, 64), scale=CUBE, dtype=np.uint8, names=("mito",), dataset="cell",
    crops=((0, 1),), ids=False,
):  # fmt: skip
    """A dataset of stripes; crops: parts of z that are annotated. Gives its store."""
    store = root / layout.store(dataset)
    stripes = np.indices(shape)[2] % 16 < 8
    noise = np.random.default_rng(0).normal(0, 0.1, shape)
    raw = (0.3 + 0.4 * stripes + noise).clip(0.01, 1)
    top = 255 if np.dtype(dtype) == np.uint8 else 4000
    raw = (raw * top).astype(dtype)
    write_multiscale(store / layout.RAW, raw, scale)
    values = (np.indices(shape)[2] // 16 + 1) * stripes if ids else stripes
    kind = INSTANCE_TYPE if ids else "semantic_segmentation"
    for number, (first, last) in enumerate(crops, 1):
        start, stop = (round(part * shape[0]) for part in (first, last))
        for name in names:
            write_multiscale(
                store / layout.LABELS / f"crop{number}" / name,
                values[start:stop].astype(np.uint16),
                scale,
                (start * scale[0], 0, 0),
                attributes=annotated(kind),
            )
    return store


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Writes a cell and an experiment for it; gives its configuration and what was said."""

    def make(**settings):
        options = {}
        for name in ("classes", "voxel_size", "device"):
            if name in settings:
                options[name] = settings.pop(name)
        write_cell(tmp_path / "data", **settings)
        lines = []
        folder = new_own(
            tmp_path / "mine", ["cell"], data=tmp_path / "data", say=lines.append, **options
        )
        return load_config(folder), "\n".join(lines)

    return make


def batches_of(config):
    data = loaders.open_data(config)
    return batches.training_batches(config, data, torch.device("cpu"))


@pytest.mark.parametrize(
    ("settings", "patch", "batch"),
    [
        ({}, (32, 32, 32), 8),
        ({"shape": (20, 96, 96), "scale": (50.0, 4.6, 4.6)}, (4, 64, 64), 16),
        ({"shape": (40, 64, 64), "scale": (16.0, 8.0, 8.0)}, (16, 32, 32), 16),
        ({"shape": (20, 24, 24)}, (16, 16, 16), 32),
        ({"shape": (10, 12, 20)}, (8, 8, 16), 32),
        ({"shape": (40, 64, 64), "crops": ((0.5, 0.525),)}, (1, 64, 64), 32),
    ],
)  # fmt: skip
def test_patch_and_outputs_are_those_of_the_recipe(made, settings, patch, batch):
    config, _ = made(**settings, device="cpu")
    assert tuple(config.input_array_info["shape"]) == patch
    assert config.batch_size == batch
    model = new_model(config).train()
    outputs = model(torch.zeros(2, 1, *patch))
    # with one halving there is no coarser output to learn from
    is_several = isinstance(outputs, list)
    assert is_several == (len(model.plan.pools) > 1)
    finest = outputs[0] if is_several else outputs
    assert finest.shape == (2, 1, *patch)
    exchanged = config.spatial_transforms["transpose"]["axes"]
    sizes = {patch["zyx".index(axis)] for axis in exchanged}
    assert len(exchanged) > 1 and len(sizes) == 1


def test_ids_make_objects_which_are_split_where_they_touch(made):
    config, said = made(names=("nuc", "my_granule"), ids=True)
    settings = load_process_config(config.folder / "process_config.py")
    assert settings.instance_classes == ("nuc", "my_granule")
    assert config.extra_classes == ("my_granule",) == settings.extra_classes
    assert "- nuc: 50.00% of the voxels, objects: one for a piece, of 409 voxels or more" in said


def test_masks_of_classes_that_are_counted_make_objects_too(made):
    config, said = made(names=("mito", "er"))
    settings = load_process_config(config.folder / "process_config.py")
    assert settings.instance_classes == ("mito",)
    assert "- er: 50.00% of the voxels, a mask" in said


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_raw_of_any_number_type_fills_the_range_of_the_network(made, dtype):
    config, _ = made(dtype=dtype)
    batch = next(batches_of(config).between(0, 1))
    assert len(config.raw_range) == 2
    assert batch.raw.min() < 0.05 and batch.raw.max() > 0.95


@pytest.mark.parametrize("fill", [-3e38, 1e12])
def test_raw_keeps_its_contrast_beside_what_fills_up_the_volume(tmp_path, capsys, fill):
    """Of a range of 10^12 float32 has one number for all of raw."""
    store = write_cell(tmp_path / "data", dtype=np.float32, crops=((0.2, 1),))
    raw = zarr.open_group(str(store / layout.RAW))["s0"]
    raw[:4] = fill
    folder = new_own(tmp_path / "mine", ["cell"], data=tmp_path / "data", say=lambda line: None)
    config = load_config(folder)
    assert -5000 < config.raw_range[0] < 0 < 4000 < config.raw_range[1] < 9000
    batch = next(batches_of(config).between(0, 1))
    assert batch.raw.min() < 0.05 and batch.raw.max() > 0.95 and len(batch.raw.unique()) > 1000
    assert "what is beyond becomes black or white" in " ".join(capsys.readouterr().err.split())


def test_the_range_of_unsigned_raw_begins_at_no_number_below_0(made, capsys):
    config, _ = made(dtype=np.uint16)
    assert config.raw_range[0] == 0
    assert "raw_range" not in capsys.readouterr().err


def test_four_crops_are_not_cut(made):
    quarters = ((0, 0.2), (0.25, 0.45), (0.5, 0.7), (0.75, 0.95))
    config, said = made(crops=quarters, shape=(160, 40, 64))
    rows = read_datasplit(config.path("datasplit_path"), config.path("data_path"))
    assert [row.usage for row in rows] == ["train"] * 3 + ["validate"]
    assert "validates; the others train" in said
    assert {path.name for path in rows[0].crop.parent.iterdir()} == {
        f"crop{n}" for n in range(1, 5)
    }


def test_a_second_experiment_takes_the_same_parts(made, tmp_path):
    config, _ = made()
    parts = sorted(path.name for path in (tmp_path / "data").rglob("groundtruth/*"))
    other = new_own(tmp_path / "other", ["cell"], data=tmp_path / "data", say=lambda _: None)
    assert (other / "datasplit.csv").read_text() == config.path("datasplit_path").read_text()
    assert sorted(path.name for path in (tmp_path / "data").rglob("groundtruth/*")) == parts


def test_a_tiny_crop_trains_without_validation(made):
    config, said = made(shape=(24, 24, 24))
    assert "too small to be cut and trains; nothing validates" in said
    assert ",".join(config.path("datasplit_path").read_text().split('"')).count("validate") == 1


def test_thick_classes_are_learnt_at_larger_voxels(made, monkeypatch):
    monkeypatch.setattr(own_plan, "THICK", 4)
    monkeypatch.setattr(own_plan, "LEAST_BOX", 16)
    config, said = made()
    assert config.input_array_info["scale"] == (16, 16, 16)
    assert "learnt at 16 nm" in said


def test_what_is_asked_for_is_taken(made):
    config, said = made(names=("mito", "er"), classes=["er"], voxel_size=(16.0,) * 3, device="cuda")
    assert config.classes == ("er",)
    assert config.input_array_info["scale"] == (16, 16, 16)
    assert "for a GPU" in said and config.model_kwargs["width"] == 16


def test_labels_in_a_corner_of_a_large_file_are_told_with_the_box_to_import(made, tmp_path, capsys):
    store = write_cell(tmp_path / "data", dataset="corner")
    values = np.zeros((40, 64, 64), np.uint8)
    values[3:20, 10:30, 5:40:3] = 1
    write_multiscale(store / layout.LABELS / "crop1/mito", values, CUBE)
    new_own(tmp_path / "corner", ["corner"], data=tmp_path / "data", say=lambda _: None)
    assert "again with --crop 3:20,10:30,5:39 --overwrite" in capsys.readouterr().err


def test_volumes_of_opposite_contrast_are_learnt_by_inverted_patches(made, tmp_path):
    data = tmp_path / "data"
    other = write_cell(data, dataset="other")
    write_multiscale(other / layout.RAW, 255 - voxels_of(other / layout.RAW), CUBE)
    config, said = made()
    assert config.augment is None and "inverted" not in said
    lines = []
    folder = new_own(tmp_path / "both", ["cell", "other"], data=data, say=lines.append)
    assert "- mito: dark in one volume and bright in another" in "\n".join(lines)
    augment = load_config(folder).augment
    raw = torch.rand(1, 4, 4, 4)
    generator = torch.Generator().manual_seed(0)
    drawn = [augment(raw, generator) for _ in range(20)]
    inverted = sum(torch.equal(patch, 1 - raw) for patch in drawn)
    assert 4 < inverted < 16
    assert inverted + sum(torch.equal(patch, raw) for patch in drawn) == 20


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ((), "write --own DATASET for your own data, or --from EXPERIMENT"),
        (("--own", "cell", "--from", "unet8_all"), "write --own DATASET"),
        (("--from", "unet8_all", "--classes", "er"), "--classes: is for --own"),
        (("--own", "nothing"), "no dataset 'nothing'; there are 1: cell"),
        (("--own", "raw.tif"), "import the file first, and name the dataset:\n  "),
        (("--own", "cell", "--classes", "er,mitoo"), "--classes er,mitoo: not annotated in cell"),
        (("--own", "bare"), "bare has no labels in it; import the files:\n  "),
        (("--own", "empty"), "nothing is labelled in 1 crop (mito)"),
        (("--own", "black"), "0 everywhere"),
    ],
)
def test_what_cannot_be_done_is_told_and_leaves_nothing(tmp_path, run, words, answer):
    data = tmp_path / "data"
    name = words[1] if words and words[1] in ("empty", "black", "bare") else "cell"
    store = write_cell(data, dataset=name)
    nothing = np.zeros((40, 64, 64), np.uint8)
    if name == "bare":
        shutil.rmtree(store / layout.LABELS)
    if name == "empty":
        write_multiscale(store / layout.LABELS / "crop1/mito", nothing, CUBE)
    if name == "black":
        write_multiscale(store / layout.RAW, nothing, CUBE)
    if "--own" in words:
        words = (*words, "--data", data)
    code, _, error = run("new", tmp_path / "mine", *words)
    assert code == 2
    assert answer in error
    assert not list(tmp_path.glob("*mine*"))


def test_a_crop_without_a_class_goes_with_those_that_it_overlaps():
    found = []
    for number in range(6):
        labels = (SimpleNamespace(name="mito", positives=9),)
        start = 800 * number
        found.append(OwnCrop(crop("d", f"crop{number}", start=(start, 0, 0)), Path(), labels))
        empty = (SimpleNamespace(name="mito", positives=0),)
        info = crop("d", f"crop{number}9", start=(start + 40, 0, 0))
        found.append(OwnCrop(info, Path(), empty))
    sides = _sides_where_classes_occur(found, SplitRules(("mito",), (8, 8, 8), by="crop"))
    assert len(sides) == 12
    assert {usage for usage, _ in sides} == {"train", "validate"}
    assert make_split.leaks(sides) == make_split.shared_specimens(sides)


def test_overlaps_are_told_and_the_only_specimen_is_not(monkeypatch, experiment):
    one, other = crop("cell"), crop("cell", "crop2")
    sides = [("train", one), ("validate", other)]
    monkeypatch.setattr("common.shell.new_own.measure_crops", lambda _: ([], []))
    facts = SimpleNamespace(findings=make_split.leaks(sides))
    monkeypatch.setattr(fingerprint, "describe", lambda *_: facts)
    tiny = experiment()
    [said] = _findings(tiny.folder, tiny.data, Division(sides, "why"))
    assert "1 validation crop overlaps a training crop" in said
    second = [*sides, ("train", crop("cell-2")), ("validate", crop("cell-2"))]
    facts.findings = make_split.leaks(second)
    assert len(_findings(tiny.folder, tiny.data, Division(second, "why"))) == 2
