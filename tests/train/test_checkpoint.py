"""Checkpoints: whole or none, damaged ones named, weights put into models they fit."""

from __future__ import annotations

import os

import pytest
import torch
import zarr
from torch import nn

from common.errors import FileError, UserError
from common.infer.networks.which_file import checkpoint_path
from common.train.checkpointing import checkpoint

CLASSES = ("mito", "er", "nuc")


def state(value: float = 1.0, classes=CLASSES) -> dict:
    weights = {"weight": torch.full((1000,), value)}
    return {"model": weights, "classes": list(classes), "epoch": 3, "settings": {}}


def test_what_was_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "run" / "latest.pt", state(0.5))
    found = checkpoint.load(tmp_path / "run" / "latest.pt", CLASSES)
    assert torch.equal(found["model"]["weight"], torch.full((1000,), 0.5))
    assert (found["classes"], found["epoch"]) == (list(CLASSES), 3)


def test_saving_leaves_one_file(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path / "latest.pt", state(value))
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]
    assert checkpoint.load(tmp_path / "latest.pt", CLASSES)["model"]["weight"][0] == 2


def half_then(error):
    """A torch.save that writes the first bytes of something and then fails."""

    def save(state, file):
        file.write(b"PK half of a checkpoint")
        file.flush()
        raise error

    return save


FAILURES = [
    OSError(28, "No space left on device"),
    RuntimeError("file write failed"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_write_that_fails_midway_leaves_the_file_before_it_and_no_other(
    tmp_path, monkeypatch, error
):
    checkpoint.save(tmp_path / "latest.pt", state())
    before = (tmp_path / "latest.pt").read_bytes()
    monkeypatch.setattr(torch, "save", half_then(error))
    with pytest.raises((OSError, KeyboardInterrupt)):
        checkpoint.save(tmp_path / "latest.pt", state(2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]
    assert (tmp_path / "latest.pt").read_bytes() == before


def test_a_disk_that_is_full_when_the_file_is_flushed_is_told(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    checkpoint.save(tmp_path / "latest.pt", state())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"No space left.*the one before it stands"):
        checkpoint.save(tmp_path / "latest.pt", state(2.0))
    assert checkpoint.load(tmp_path / "latest.pt", CLASSES)["model"]["weight"][0] == 1


def test_the_first_file_that_finds_no_room_says_that_nothing_was_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", half_then(OSError(28, "No space left on device")))
    sentence = rf"^{tmp_path}/latest.pt: .*nothing was kept.*free space.*the same command"
    with pytest.raises(FileError, match=sentence):
        checkpoint.save(tmp_path / "latest.pt", state())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=rf"^{tmp_path}/file/latest.pt: could not be written"):
        checkpoint.save(tmp_path / "file" / "latest.pt", state())


def test_who_reads_while_it_is_written_sees_the_file_before_it(tmp_path):
    path = tmp_path / "latest.pt"
    checkpoint.save(path, state(1.0))
    before = path.read_bytes()
    with path.open("rb") as reader:
        begin = reader.read(100)
        checkpoint.save(path, state(2.0))
        assert begin + reader.read() == before != path.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "other"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "latest.pt"
    checkpoint.save(path, state())
    content = path.read_bytes()
    if damage == "other":
        torch.save([1, 2, 3], path)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes(255 - byte for byte in content[middle:])
        path.write_bytes(
            {"cut": content[:middle], "flipped": flipped, "empty": b"", "text": b"hello\n"}[damage]
        )
    sentence = "not a readable checkpoint of this trainer: damaged, cut off.*copy it again"
    if damage == "other":
        sentence = "holds no whole state of a run"
    with pytest.raises(UserError, match=rf"^{path}: {sentence}") as raised:
        checkpoint.load(path, CLASSES)
    assert "remove" not in str(raised.value)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").mkdir, ())

    torch.save({**state(), "harm": Harmful()}, tmp_path / "latest.pt")
    with pytest.raises(ValueError, match="could run code"):
        checkpoint.load(tmp_path / "latest.pt", CLASSES)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        (("mito", "nuc", "er"), "has 3: channel 1 is 'er' there and 'nuc' here"),
        (("mito", "er"), "has 2: channel 2 is 'nuc' there and 'none' here"),
        (("mito", "er", "nuc", "ld"), "has 4: channel 3 is 'none' there and 'ld' here"),
    ],
)
def test_a_checkpoint_of_other_classes_is_refused_with_the_difference(
    tmp_path, classes, difference
):
    checkpoint.save(tmp_path / "latest.pt", state())
    with pytest.raises(UserError, match=f"{difference}; use the same classes"):
        checkpoint.load(tmp_path / "latest.pt", classes)


@pytest.mark.parametrize(
    ("settings", "otherwise"),
    [
        ({"epochs": 9}, "set another run_name"),
        ({"run_name": "b", "epochs": 1}, "leave load_model out"),
    ],
)
def test_what_to_do_about_other_classes_fits_what_was_asked(experiment, settings, otherwise):
    """Another name of the run helps one that goes on, and none that begins with a file."""
    tiny = experiment(epochs=1, iterations_per_epoch=1)
    tiny.train()
    latest = tiny.config().path("model_save_path") / "latest.pt"
    with pytest.raises(UserError, match=f"in the same order, or {otherwise}$"):
        tiny.train(classes=("mito", "er"), load_model=str(latest), **settings)


def test_the_home_folder_may_be_written_in_short(experiment, monkeypatch):
    tiny = experiment(epochs=1, iterations_per_epoch=1)
    tiny.train()
    monkeypatch.setenv("HOME", str(tiny.folder.parent))
    short = f"~/{tiny.folder.name}/checkpoints/tiny_experiment/seed42/latest.pt"
    assert checkpoint_path(tiny.config(), short).is_file()
    assert tiny.train(load_model=short, run_name="b").finished


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.pt: no such checkpoint"):
        checkpoint.load(tmp_path / "nowhere.pt", CLASSES)


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert checkpoint.find(tmp_path / "nowhere", "latest") is None


def test_best_and_latest_are_found_apart(tmp_path):
    checkpoint.save(tmp_path / "latest.pt", state())
    assert checkpoint.find(tmp_path, "latest") == tmp_path / "latest.pt"
    assert checkpoint.find(tmp_path, "best") is None


def test_the_rest_of_an_interrupted_write_is_not_found(tmp_path):
    (tmp_path / ".latest.pt.4711").touch()
    assert checkpoint.find(tmp_path, "latest") is None


def test_weights_are_put_into_a_model(tmp_path):
    one, two = nn.Conv3d(1, 2, 3), nn.Conv3d(1, 2, 3)
    checkpoint.load_weights(two, {"model": one.state_dict()}, tmp_path)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


OTHERS = [
    nn.Conv3d(1, 2, 1),
    nn.Sequential(nn.Conv3d(1, 2, 3)),
    nn.Conv3d(1, 2, 3, bias=False),
    nn.Conv3d(1, 3, 3),
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_weights_of_another_network_are_refused(tmp_path, other):
    model = nn.Conv3d(1, 2, 3)
    with pytest.raises(UserError, match=r"best.pt: .*another network"):
        checkpoint.load_weights(model, {"model": other.state_dict()}, tmp_path / "best.pt")


def test_a_run_that_was_begun_in_another_order_of_blocks_goes_on_with_a_note(experiment, capsys):
    tiny = experiment(epochs=1)
    tiny.train()
    path = tiny.config().path("model_save_path") / "latest.pt"
    saved = torch.load(path, weights_only=True)
    assert saved["shown"]
    del saved["block_order"]
    torch.save(saved, path)
    capsys.readouterr()
    assert tiny.train(epochs=2).epochs == 2
    assert "the order of validation blocks depended on random_seed" in capsys.readouterr().err
    tiny.train(epochs=3)
    assert "order of validation blocks" not in capsys.readouterr().err


def test_a_run_that_goes_on_with_other_libraries_says_so(experiment, capsys):
    tiny = experiment(epochs=1, iterations_per_epoch=1)
    tiny.train()
    path = tiny.config().path("model_save_path") / "latest.pt"
    saved = torch.load(path, weights_only=True)
    saved["provenance"]["zarr"] = "2.1"
    torch.save(saved, path)
    capsys.readouterr()
    tiny.train(epochs=2)
    assert (
        f"latest.pt: was written with zarr 2.1, now {zarr.__version__};" in capsys.readouterr().err
    )
    tiny.train(epochs=3)
    assert "was written with" not in capsys.readouterr().err


def test_labels_that_were_edited_since_the_last_call_are_said_once(experiment, capsys):
    tiny = experiment(epochs=1, iterations_per_epoch=1)
    tiny.train()
    capsys.readouterr()
    zarr.open_array(str(tiny.crop("crop2") / "mito" / "s0"), mode="r+")[0] = 1
    tiny.train(epochs=2)
    said = capsys.readouterr().err
    assert "latest.pt: the labels of tiny/crop2 are others since it was written" in said
    raw = next(tiny.data.rglob("em/**/s0/.zarray")).parent
    array = zarr.open_array(str(raw), mode="r+")
    array[...] = 255 - array[...]
    tiny.train(epochs=3)
    said = capsys.readouterr().err
    assert "latest.pt: the voxels of raw or input channels of tiny/crop1" in said
    assert "labels of" not in said
    tiny.train(epochs=4)
    assert "are others since" not in capsys.readouterr().err
