"""What a user can do wrong: a sentence that says what to write, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from conftest import datasplit_text

from common.data.ngff import write_multiscale
from common.files import REPOSITORY
from common.shell import cli


@pytest.fixture
def fails(monkeypatch, capfd, tmp_path):
    """Trains an experiment from the command line, which must fail as it should; gives the sentence (or `lines`)."""

    def run(tiny, *overrides: str, lines: int = 1) -> str:
        words = [
            "train",
            str(tiny.folder),
            "--data",
            str(tiny.data),
            *(f"--set={text}" for text in overrides),
        ]
        monkeypatch.setattr(sys, "argv", ["csc", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr().err
        assert ended.value.code == 2, said
        return checked(said, tiny, tmp_path, lines)

    return run


def checked(said: str, tiny, tmp_path: Path, lines: int = 1) -> str:
    """The sentence that standard error ends with; looks that nothing half-written is left."""
    assert "Traceback" not in said
    _, found, sentence = said.partition("error: ")
    assert found and sentence.count("\n") == lines, said
    left = [
        *tiny.folder.rglob(".*"),
        *tiny.folder.rglob("*.tmp"),
        *(tmp_path / "cache").rglob(".*"),
    ]
    assert not left
    for crop in (tmp_path / "cache" / "crops").glob("*"):
        assert {path.name for path in crop.iterdir()} == {"raw.npy", "labels.npy", "palette.npz"}
    return sentence.strip()


# The configuration


def test_a_path_without_a_configuration(experiment, fails):
    tiny = experiment()
    (tiny.folder / "train_config.py").unlink()
    path = tiny.folder / "train_config.py"
    assert (
        fails(tiny)
        == f"{path}: no such configuration; write the path of an experiment's train_config.py"
    )


def test_an_unknown_setting(experiment, fails):
    tiny = experiment(learning_rte=1e-3)
    said = fails(tiny)
    assert (
        said
        == f"{tiny.folder}/train_config.py: unknown setting 'learning_rte'; did you mean 'learning_rate'?"
    )


def test_an_unknown_setting_on_the_command_line(experiment, fails):
    said = fails(experiment(), "epoch=3")
    assert said.endswith("--set epoch=3: unknown setting 'epoch'; did you mean 'epochs'?")


def test_a_wrong_type(experiment, fails):
    assert fails(experiment(batch_size="four")).endswith(
        "batch_size = 'four'; write a whole number"
    )


def test_an_unknown_class(experiment, fails):
    said = fails(experiment(classes=("mito", "err")))
    assert said.endswith("train_config.py: unknown class 'err'; did you mean 'er'?")


def test_nested_classes(experiment, fails):
    said = fails(experiment(classes=(("mito", "er"), ("nuc",))))
    assert said.endswith("classes = (('mito', 'er'), ('nuc',)); write a flat list of names")


def test_a_configuration_that_does_not_run(experiment, fails):
    tiny = experiment(text="from .nowhere import classes")
    assert re.search(
        r"train_config.py: line \d+ of train_config.py: ModuleNotFoundError: No module named",
        fails(tiny),
    )


def test_a_data_root_that_is_not_there(experiment, fails):
    tiny = experiment()
    shutil.rmtree(tiny.data)
    assert fails(tiny).endswith(
        f"the data root {tiny.data} is no folder; write the one that holds the datasets"
    )


def test_a_device_that_is_not_there(experiment, fails):
    said = fails(experiment(), "device=hal9000")
    assert said.startswith("device = 'hal9000' cannot be used here (") and said.endswith(
        "set device = 'auto'"
    )


# The model


def test_a_model_whose_output_is_of_another_shape(experiment, fails):
    said = fails(experiment(), "target_array_info.shape=(12, 12, 12)")
    assert said.endswith(
        "and the settings ask for (3, 12, 12, 12); write target_array_info['shape'] = (16, 16, 16)"
    )


def test_a_model_with_another_number_of_channels(experiment, fails):
    model = "from torch import nn\ndef build_model(classes): return nn.Conv3d(1, 5, 5)"
    said = fails(experiment(files={"model.py": model}))
    assert "the model gives (5, 16, 16, 16) for raw (20, 20, 20)" in said
    assert said.endswith("write a model with 3 output channels")


def test_an_input_too_small_for_the_model(experiment, fails):
    said = fails(experiment(), "input_array_info.shape=(3, 3, 3)")
    assert "the model does not take raw of (3, 3, 3) voxels" in said and said.endswith(
        "change input_array_info"
    )


def test_a_model_that_does_not_take_its_arguments(experiment, fails):
    said = fails(experiment(model_kwargs={"depth": 3}))
    assert "build_model = model.build_model: got an unexpected keyword argument 'depth'; " in said


# The datasplit


def test_a_missing_datasplit(experiment, fails):
    tiny = experiment()
    (tiny.folder / "datasplit.csv").unlink()
    assert (
        fails(tiny)
        == f"{tiny.folder}/datasplit.csv: no such data split; write it with make-datasplit"
    )


def test_a_missing_zarr(experiment, fails):
    tiny = experiment()
    tiny.write(
        "datasplit.csv", datasplit_text({"crop1": ("train", (), ("mito",))}, dataset="other")
    )
    said = fails(tiny, lines=2)
    assert said.startswith(
        f"{tiny.folder}/datasplit.csv: line 1: no zarr store {tiny.data}/other/other.zarr\n"
    )
    assert said.endswith(
        "1 missing in all; fetch them, or point --data at the folder that holds the datasets"
    )


def test_a_missing_class_folder(experiment, fails):
    tiny = experiment()
    shutil.rmtree(tiny.crop("crop3") / "er")
    said = fails(tiny, lines=2)
    assert said.startswith(
        f"{tiny.folder}/datasplit.csv: line 3: no class folder {tiny.crop('crop3')}/er\n"
    )


def test_no_training_crop_with_any_of_the_classes(experiment, fails):
    said = fails(experiment(classes=("golgi",)))
    assert said.endswith(
        "datasplit.csv: no training crop annotates any of golgi; change classes or the split"
    )


def test_no_positive_voxel_of_any_class(experiment, fails):
    tiny = experiment()
    for group in tiny.store.glob("recon-1/labels/groundtruth/*/*/s0"):
        zarr.open(str(group), mode="r+")[:] = 0
    said = fails(tiny)
    assert said.endswith(
        "no training crop has a positive voxel of mito, er, nuc; add crops that do"
    )


# The images


def change_metadata(group: Path, change) -> None:
    """Let change(the one dataset of a multiscale group) edit its entry in .zattrs."""
    attributes = json.loads((group / ".zattrs").read_text())
    change(attributes["multiscales"][0]["datasets"][0])
    (group / ".zattrs").write_text(json.dumps(attributes))


def test_a_label_without_scale(experiment, fails):
    tiny = experiment()
    change_metadata(tiny.crop() / "er", lambda level: level["coordinateTransformations"].pop(0))
    said = fails(tiny)
    assert (
        said
        == f"{tiny.crop()}/er: level 's0' has no scale; write its voxel size in nm into .zattrs"
    )


def test_a_label_without_metadata(experiment, fails):
    tiny = experiment()
    (tiny.crop() / "mito" / ".zattrs").unlink()
    said = fails(tiny)
    assert said.startswith(
        f"{tiny.crop()}/mito: no 'multiscales' in .zattrs; write OME-NGFF 0.4 metadata"
    )


def test_labels_that_do_not_overlap_the_raw(experiment, fails):
    tiny = experiment()

    def far(level):
        level["coordinateTransformations"][1]["translation"] = [9000, 0, 0]

    for name in ("mito", "er", "nuc"):
        change_metadata(tiny.crop() / name, far)
    said = fails(tiny)
    assert said.startswith(
        f"{tiny.crop()}: its labels (8996;-4;-4 to 9188;188;188 nm) and the raw {tiny.raw}"
    )
    assert said.endswith("do not overlap; check translation and scale in their .zattrs")


def test_a_patch_larger_than_the_raw(experiment, fails):
    said = fails(
        experiment(), "input_array_info.shape=(60, 60, 60)", "target_array_info.shape=(56, 56, 56)"
    )
    assert "448;448;448 nm of raw, smaller than the input patch of 480;480;480 nm; " in said
    assert said.endswith("use a smaller input shape, or remove the crop from the datasplit")


def garbage(chunk: Path) -> None:
    chunk.write_bytes(b"not a chunk at all" * 9)


def half(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])


def empty(chunk: Path) -> None:
    chunk.write_bytes(b"")


@pytest.mark.parametrize("damage", [garbage, half, empty])
@pytest.mark.parametrize("image", ["raw", "label"])
def test_a_damaged_chunk(experiment, fails, image, damage):
    tiny = experiment()
    array = (tiny.raw if image == "raw" else tiny.crop("crop2") / "mito") / "s0"
    damage(array / "0/0/0")
    said = fails(tiny, lines=2 if image == "raw" else 1).splitlines()[
        0
    ]  # both training crops read the chunk of raw
    assert re.fullmatch(
        rf"{array}: a chunk in voxels .* cannot be decoded \(.*\); copy this array again", said
    )


def test_a_missing_array(experiment, fails):
    tiny = experiment()
    shutil.rmtree(tiny.raw / "s0")
    assert fails(tiny) == f"{tiny.raw}/s0: array named in .zattrs is missing; copy it again"


def test_classes_of_a_crop_on_different_grids(experiment, fails):
    tiny = experiment()
    write_multiscale(tiny.crop() / "er", np.ones((20, 24, 24), np.uint8), (8, 8, 8), (16, 16, 16))
    said = fails(tiny)
    assert said.startswith(f"{tiny.crop()}/er: shape [20, 24, 24], ")
    assert said.endswith("are not those of 'mito'; the classes of a crop share one grid")


def test_raw_that_is_black(experiment, fails):
    tiny = experiment()
    zarr.open(str(tiny.raw / "s0"), mode="r+")[:] = 0
    said = fails(tiny, lines=2)  # one for each training crop
    assert f"{tiny.raw}/s0: 0 everywhere around tiny/crop1; fetch its EM chunks" in said


def test_raw_of_numbers_without_a_range(experiment, fails):
    tiny = experiment()
    write_multiscale(tiny.raw, np.ones((56, 56, 56), np.float32), (8, 8, 8))
    said = fails(tiny)
    assert said.endswith(
        "raw of type float32 has no natural range; set raw_range = (value of black, value of white)"
    )


def test_raw_without_a_finite_voxel(experiment, fails):
    tiny = experiment(raw_range=(0, 1))
    write_multiscale(tiny.raw, np.full((56, 56, 56), np.nan, np.float32), (8, 8, 8))
    assert "s0: 0 everywhere around tiny/crop1; fetch its EM chunks" in fails(tiny, lines=2)


# The run


def test_a_loss_that_is_not_finite(experiment, fails):
    tiny = experiment(learning_rate=1e30)
    said = fails(tiny)
    assert re.match(
        r"iteration \d: loss (nan|inf), gradient norm \S+, on tiny/crop\d \(sample \d+\), ", said
    )
    assert said.endswith(
        "the step was not taken. Lower learning_rate, set max_grad_norm, or look at these crops"
    )


def test_a_checkpoint_of_another_class_list(experiment, fails):
    tiny = experiment()
    tiny.train()
    tiny.write(
        "data.py", (tiny.folder / "data.py").read_text().replace("'er', 'nuc'", "'nuc', 'er'")
    )
    said = fails(tiny)
    assert (
        "latest.pt: trained for 3 classes and this run has 3: channel 1 is 'er' there and 'nuc' here; "
        in said
    )
    assert said.endswith("use the same classes in the same order, or set another run_name")


def test_a_damaged_checkpoint(experiment, fails):
    tiny = experiment()
    half(tiny.train().checkpoint.with_name("latest.pt"))
    said = fails(tiny, "epochs=3")
    assert re.search(
        r"latest.pt: not a readable checkpoint of this trainer \(.+\); remove it to start from",
        said,
    )


def test_settings_that_a_run_was_not_started_with(experiment, fails):
    tiny = experiment()
    tiny.train()
    said = fails(tiny, "learning_rate=0.5")
    assert (
        "latest.pt: this run was started with other settings (learning_rate was 0.01 and is 0.5). "
        in said
    )


def test_weights_that_are_not_there(experiment, fails):
    tiny = experiment()
    said = fails(tiny, "load_model=nowhere.pt")
    assert (
        said
        == f"{tiny.folder}/nowhere.pt: no such checkpoint; set load_model = 'latest' or the path of one"
    )


def test_a_disk_that_is_full_when_a_checkpoint_is_saved(experiment, fails, monkeypatch):
    def save(state, file):
        file.write(b"the first part")
        raise OSError(28, "No space left on device")

    tiny = experiment()
    monkeypatch.setattr(torch, "save", save)
    said = fails(tiny)
    assert (
        "latest.pt: could not be written (OSError: [Errno 28] No space left on device); nothing was kept. "
        in said
    )
    assert said.endswith("Free space and run the same command again")


def test_a_disk_that_is_full_when_crops_are_decoded(experiment, fails, monkeypatch, tmp_path):
    def reserve(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    said = fails(experiment())
    crops = tmp_path / "cache" / "crops"
    assert said.startswith(
        f"{crops}: decoded crops could not be written (No space left on device); free space"
    )
    assert not list(crops.iterdir())


# As users see it


def command(tiny, **how) -> subprocess.CompletedProcess:
    words = [
        sys.executable,
        "-m",
        "cellmap_segmentation_challenge",
        "train",
        tiny.folder,
        "--data",
        tiny.data,
    ]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False, **how)


def test_the_command_says_one_sentence_and_nothing_else(experiment):
    tiny = experiment()
    (tiny.folder / "datasplit.csv").unlink()
    done = command(tiny)
    said = f"error: {tiny.folder}/datasplit.csv: no such data split; write it with make-datasplit\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before_it(experiment, tmp_path):
    tiny = experiment(figure_samples=0)
    before = tiny.train(epochs=1).checkpoint.with_name("latest.pt")
    content = before.read_bytes()
    size = len(content) // 2
    done = command(tiny, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert done.returncode == 2, done.stderr
    said = checked(done.stderr, tiny, tmp_path)
    assert re.search(
        r"latest.pt: could not be written \(.*File too large.*\); the one before it stands\. Free",
        said,
    )
    assert before.read_bytes() == content
