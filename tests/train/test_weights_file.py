"""Weights of other trainers, damaged files, and what stands when a run's own file is lost."""

from __future__ import annotations

import argparse
import copy
import os
import pathlib
import shutil
import struct
import sys
import warnings
import zipfile
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common.errors import UserError
from common.train.checkpointing import checkpoint, weights_file


def network(channels: int = 8) -> nn.Sequential:
    """The one of the tiny experiment."""
    return nn.Sequential(
        nn.Conv3d(1, channels, 3),
        nn.ReLU(),
        nn.Conv3d(channels, channels, 3),
        nn.ReLU(),
        nn.Conv3d(channels, 3, 1),
    )


def prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


FORMS = {
    "bare": lambda tensors: tensors,
    "model": lambda tensors: {"model": tensors},
    "model_state_dict": lambda tensors: {"epoch": 3, "model_state_dict": tensors},
    "state_dict": lambda tensors: {"state_dict": tensors, "optimizer": {"step": 1}},
    "DataParallel": lambda tensors: prefixed("module.", tensors),
    "both": lambda tensors: {"state_dict": prefixed("module._orig_mod.", tensors)},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_another_trainer_start_a_run(experiment, capsys, form):
    tensors = network().state_dict()
    tiny = experiment(epochs=1, iterations_per_epoch=1, learning_rate=1e-30, weight_decay=0.0)
    torch.save(FORMS[form](tensors), tiny.folder / "theirs.pth")
    result = tiny.train(load_model="theirs.pth")
    started = torch.load(result.checkpoint, weights_only=True)["model"]
    assert all(torch.equal(started[name], tensors[name]) for name in tensors)
    said = " ".join(capsys.readouterr().err.split())
    assert "nothing else was taken from it" in said and "mito, er, nuc" in said


def test_a_file_that_is_here_and_not_in_the_experiment_is_told_by_its_whole_path(
    experiment, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "theirs.pth"
    torch.save(network(4).state_dict(), here)
    sentence = rf"starts from the experiment; set load_model={here}$"
    with pytest.raises(FileNotFoundError, match=sentence):
        experiment().train(load_model="theirs.pth")


def test_weights_of_another_network_are_told_by_their_first_tensor(experiment):
    tiny = experiment()
    path = tiny.folder / "theirs.pth"
    torch.save(network(6).state_dict(), path)
    sentence = (
        rf"^{path}: .*5 of 6 tensors differ; 5 of another shape: 0.weight \(6, 1, 3, 3, 3\) there"
    )
    with pytest.raises(UserError, match=sentence) as raised:
        tiny.train(load_model="theirs.pth")
    assert "remove" not in str(raised.value)
    assert not tiny.config().path("model_save_path").exists()


def test_missing_and_surplus_tensors_are_named():
    model = network()
    tensors = dict(model.state_dict())
    del tensors["4.bias"]
    tensors |= {f"extra.{number}": torch.zeros(1) for number in range(5)}
    with pytest.raises(UserError) as raised:
        weights_file.load_weights(model, tensors, Path("theirs.pth"))
    assert str(raised.value) == (
        "theirs.pth: its weights are of another network (6 of 11 tensors differ; 1 missing there: "
        "4.bias; 5 unknown here: extra.0, extra.1, extra.2 and 2 more); use that network, or "
        "another file"
    )


def test_weights_for_other_classes_are_told_by_their_channels():
    tensors = dict(network().state_dict())
    tensors |= {"4.weight": torch.zeros(14, 8, 1, 1, 1), "4.bias": torch.zeros(14)}
    with pytest.raises(UserError, match=r"it gives 14 channels and this network 3: write the cla"):
        weights_file.load_weights(network(), tensors, Path("theirs.pth"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (torch.Tensor.to_sparse, "sparse"),
        (lambda tensor: tensor.to(torch.int8), "torch.int8"),
        (lambda tensor: tensor.to(torch.complex64), "torch.complex64"),
    ],
)
def test_weights_that_a_network_would_not_hold_are_refused(change, told):
    tensors = dict(network().state_dict())
    tensors["0.bias"] = change(tensors["0.bias"])
    with pytest.raises(UserError, match=rf"0\.bias \(8, '{told}'\) there and \(8,\) here"):
        weights_file.load_weights(network(), tensors, Path("theirs.pth"))


WITHOUT_WEIGHTS = {
    "list": ([1, 2, 3], " but a list"),
    "empty": ({}, " and nothing else"),
    "number": ({"model": 3}, " but model"),
    "other": ({"epoch": 3, "loss": 1.0}, " but epoch, loss"),
    "tensor": (torch.zeros(3), " but a Tensor"),
    "two": ({"a": {"x": torch.zeros(1)}, "b": {"x": torch.zeros(1)}}, " but a, b"),
}


@pytest.mark.parametrize("content", WITHOUT_WEIGHTS)
def test_a_file_without_weights_is_told(experiment, content):
    tiny = experiment()
    held, sentence = WITHOUT_WEIGHTS[content]
    torch.save(held, tiny.folder / "theirs.pth")
    with pytest.raises(UserError, match=rf"theirs.pth: holds no weights{sentence}; give a state_"):
        tiny.train(load_model="theirs.pth")


def test_a_state_of_another_trainer_that_names_its_classes_is_no_whole_one_of_ours():
    tensors = network().state_dict()
    assert not checkpoint.is_whole({"model": tensors, "classes": ["mito"], "epoch": 3})


def loaded(path) -> dict:
    """The weights of a file, in a network of the tiny experiment."""
    model = network()
    weights_file.load_weights(model, weights_file.read(path), path)
    return model.state_dict()


def scripted(model: nn.Module, path, how: str) -> None:
    """A TorchScript archive of a network; torch is about to give it up, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "traced":
            torch.jit.trace(model, torch.zeros(1, 1, 8, 8, 8)).save(path)
        else:
            torch.jit.script(model).save(path)


def stepped(model: nn.Module) -> dict:
    """An optimiser and its scheduler as objects, after a step, and a deque."""
    optimizer = torch.optim.Adam(copy.deepcopy(model).parameters())
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return {"optimizer": optimizer, "scheduler": scheduler, "recent": deque([1.0])}


WRITTEN = {
    "Lightning": lambda model: {"state_dict": prefixed("net.", model.state_dict())},
    "objects": lambda model: {
        "state_dict": model.state_dict(),
        "hyper_parameters": argparse.Namespace(lr=1),
        "best": np.float64(0.5),
        "history": np.zeros(3),
        "where": pathlib.PurePosixPath("here"),
    },
    "optimiser": lambda model: {"model": model.state_dict(), "optimizer": stepped(model)},
    "a name of its own": lambda model: {"unet3d": model.state_dict(), "optimizer": {"step": 1}},
    "network": lambda model: model,
    "network in a dictionary": lambda model: {"model": model, "epoch": 3},
    "DataParallel": nn.DataParallel,
    "average": lambda model: AveragedModel(model).state_dict(),
    "compiled": lambda model: torch.compile(model).state_dict(),
    "compiled inside": lambda model: {
        name.replace("0.", "0._orig_mod."): tensor for name, tensor in model.state_dict().items()
    },
}


@pytest.mark.parametrize("how", [*WRITTEN, "scripted", "traced"])
def test_weights_are_found_however_they_were_saved(tmp_path, how):
    model = network()
    path = tmp_path / "theirs.pt"
    if how in WRITTEN:
        torch.save(WRITTEN[how](model), path)
    else:
        scripted(model, path, how)
    assert_equal(loaded(path), model.state_dict())


def assert_equal(tensors: dict, others: dict) -> None:
    assert list(tensors) == list(others)
    assert all(torch.equal(tensors[name], others[name]) for name in others)


def test_safetensors_are_read_and_a_damaged_file_is_named(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    network = nn.Conv3d(1, 2, 1)
    safetensors.save_file(network.state_dict(), path)
    other = nn.Conv3d(1, 2, 1)
    weights_file.load_weights(other, weights_file.read(path), path)
    assert torch.equal(other.weight, network.weight)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"weights\.safetensors: .* no file of safetensors"):
        weights_file.read(path)


def test_safetensors_without_their_package_are_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="pip install safetensors"):
        weights_file.read(path)


def test_weights_go_into_a_wrapped_network():
    model = nn.DataParallel(network())
    tensors = network().state_dict()
    weights_file.load_weights(model, dict(tensors), Path("theirs.pth"))
    assert_equal(model.module.state_dict(), tensors)


def test_weights_go_into_a_network_that_another_module_holds():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

    model = Holder()
    tensors = network().state_dict()
    weights_file.load_weights(model, dict(tensors), Path("theirs.pth"))
    assert_equal(model.net.state_dict(), tensors)


def test_a_network_whose_own_names_begin_like_a_wrapper_is_loaded():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Conv3d(1, 1, 1)
            self.weight = nn.Parameter(torch.zeros(2))

    tensors = {name: torch.full_like(value, 3) for name, value in Own().state_dict().items()}
    model = Own()
    weights_file.load_weights(model, dict(tensors), Path("theirs.pth"))
    assert_equal(model.state_dict(), tensors)


class RunsCode:
    """What a file can name: a function, called with whatever it likes."""

    def __init__(self, function, argument):
        self.function = function
        self.argument = argument

    def __reduce__(self):
        return self.function, (self.argument,)


@pytest.mark.parametrize("function", [eval, os.system])
def test_no_code_of_a_file_is_run(tmp_path, function):
    done = tmp_path / "done"
    argument = f"open({str(done)!r}, 'w')" if function is eval else f"touch {done}"
    path = tmp_path / "theirs.pt"
    torch.save({"state_dict": network().state_dict(), "more": RunsCode(function, argument)}, path)
    try:
        loaded(path)
    except UserError as error:
        assert "reading them could run code; if you trust it" in str(error)
    assert not done.exists()


def folder_of(tiny):
    return tiny.config().path("model_save_path")


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_damaged_latest_is_named_and_the_one_before_it_is_gone_on_with(experiment, capsys):
    tiny = experiment(checkpoints_kept=3)
    tiny.train(epochs=3, run_name="undisturbed")
    tiny.train()
    folder = folder_of(tiny)
    cut(folder / "latest.pt")
    damaged = (folder / "latest.pt").read_bytes()
    tiny.train(epochs=3)
    said = capsys.readouterr().err
    assert "latest.pt: not a readable checkpoint of this trainer: damaged, cut off" in said
    assert f"goes on with the newest checkpoint that can be read, {folder}/latest.1.pt" in said
    assert "copy it again" not in said
    one, other = (
        torch.load(place / "latest.pt", weights_only=True)["model"]
        for place in (folder, tiny.config(run_name="undisturbed").path("model_save_path"))
    )
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert (folder / "latest.pt.unreadable").read_bytes() == damaged
    kept = ["latest.pt", "latest.1.pt", "latest.2.pt"]
    assert sorted(path.name for path in folder.glob("latest*.pt")) == sorted(kept)
    for name in kept:
        weights_file.read(folder / name)


def test_where_all_latest_are_damaged_the_best_is_gone_on_with(experiment, capsys):
    from common.train.recording.record import read_history

    tiny = experiment(epochs=2, best_metric="loss", iterations_per_epoch=10)
    first = tiny.train()
    before = read_history(first.logs)
    for path in folder_of(tiny).glob("latest*.pt"):
        cut(path)
    done = tiny.train(epochs=4)
    assert "the newest checkpoint that can be read" in capsys.readouterr().err
    after = read_history(done.logs)
    assert after["epoch"].tolist() == [1, 2, 3, 4]
    assert after["train/loss"][:2].tolist() == before["train/loss"].tolist()


def test_where_all_are_damaged_no_file_is_advised_and_none_is_written(experiment):
    tiny = experiment()
    tiny.train()
    for path in folder_of(tiny).glob("*.pt"):
        cut(path)
    before = {path: path.read_bytes() for path in folder_of(tiny).iterdir()}
    with pytest.raises(UserError, match=r"The run has no other checkpoint.*run_name") as raised:
        tiny.train(epochs=4)
    assert "remove" not in str(raised.value)
    assert before == {path: path.read_bytes() for path in folder_of(tiny).iterdir()}


def test_a_run_whose_checkpoints_are_lost_does_not_begin_anew_over_its_logs(experiment):
    tiny = experiment()
    history = tiny.train().logs / "history.csv"
    shutil.rmtree(folder_of(tiny))
    before = history.read_bytes()
    with pytest.raises(
        UserError, match=r"history.csv: a run of this name .*load_model = 'scratch'"
    ):
        tiny.train()
    assert history.read_bytes() == before
    assert tiny.train(epochs=1, load_model="scratch").epochs == 1


def small_checkpoint(path) -> list[tuple[int, int]]:
    """Write one; returns where the content of its parts begins and ends."""
    torch.save({"model": {"weight": torch.arange(500.0)}, "epoch": 3}, path)
    spans = []
    with zipfile.ZipFile(path) as parts:
        for part in parts.infolist():
            head = path.read_bytes()[part.header_offset :][:30]
            lengths = struct.unpack("<HH", head[26:30])
            begin = part.header_offset + 30 + sum(lengths)
            spans.append((begin, begin + part.file_size))
    return spans


def test_any_flipped_bit_of_the_content_is_noticed(tmp_path):
    path = tmp_path / "latest.pt"
    random = np.random.default_rng(0)
    for begin, end in small_checkpoint(path):
        whole = path.read_bytes()
        for place in random.integers(begin, end, 10):
            changed = bytearray(whole)
            changed[place] ^= 1 << random.integers(8)
            path.write_bytes(changed)
            with pytest.raises(UserError, match="damaged, cut off"):
                weights_file.read(path)
        path.write_bytes(whole)
    assert weights_file.read(path)["epoch"] == 3


def test_a_bit_flipped_anywhere_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "latest.pt"
    small_checkpoint(path)
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    noticed = 0
    for place in random.integers(len(whole), size=100):
        changed = bytearray(whole)
        changed[place] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        try:
            read = weights_file.read(path)
        except UserError:
            noticed += 1
            continue
        assert read["epoch"] == 3 and torch.equal(read["model"]["weight"], torch.arange(500.0))
    assert noticed > 30


def test_a_file_cut_off_anywhere_is_noticed(tmp_path):
    path = tmp_path / "latest.pt"
    small_checkpoint(path)
    whole = path.read_bytes()
    for length in np.random.default_rng(2).integers(len(whole), size=10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged, cut off"):
            weights_file.read(path)


WRONG = {
    "optimizer": (None, "'optimizer' is missing"),
    "rng": (None, "'rng' is missing"),
    "settings": (None, "'settings' is missing"),
    "epoch": ("three", "'epoch' is of type str"),
    "epoch_loss": (3.0, "'epoch_loss' is of type float"),
    "scaler": ([1], "'scaler' is of type list"),
    "model": (torch.zeros(3), "'model' is of type Tensor"),
    "python_rng": ((3, 4), "its random state cannot be restored"),
    "optimizer of another network": ({"state": {}, "param_groups": []}, "its optimizer or sched"),
}


@pytest.mark.parametrize("part", WRONG)
def test_wrong_content_is_one_sentence(experiment, part):
    tiny = experiment(epochs=1, checkpoints_kept=1)
    tiny.train()
    (folder_of(tiny) / "best.pt").unlink()
    path = folder_of(tiny) / "latest.pt"
    saved = torch.load(path, weights_only=True)
    value, sentence = WRONG[part]
    name = part.partition(" ")[0]
    saved[name] = value
    if value is None:
        del saved[name]
    torch.save(saved, path)
    with pytest.raises(UserError, match=rf"latest.pt: .*{sentence}.*run_name") as raised:
        tiny.train(epochs=2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("part", ["optimizer", "shapes", "rng", "raw_scalings"])
def test_a_latest_with_a_part_that_cannot_be_restored_is_fallen_back_from(experiment, capsys, part):
    """The file is whole, its checksums are right, and the run ends as one that was not damaged."""
    tiny = experiment(
        text="import torch\nscheduler = torch.optim.lr_scheduler.StepLR\n"
        'scheduler_kwargs = {"step_size": 1}',
        iterations_per_epoch=2,
        raw_normalization="percentile",
    )
    tiny.train(epochs=3, run_name="undisturbed")
    tiny.train()
    folder = folder_of(tiny)
    saved = torch.load(folder / "latest.pt", weights_only=True)
    first = next(iter(saved["optimizer"]["state"].values()))
    damage = {
        "optimizer": lambda: saved["optimizer"].pop("param_groups"),
        "shapes": lambda: first.update(exp_avg=torch.zeros(3)),
        "rng": lambda: saved.update(rng=torch.zeros(3)),
        "raw_scalings": lambda: saved["raw_scalings"].update(tiny=3),
    }
    damage[part]()
    torch.save(saved, folder / "latest.pt")
    tiny.train(epochs=3)
    said = capsys.readouterr().err
    name = {"shapes": "optimizer", "rng": "random state"}
    assert f"latest.pt: its {name.get(part, part)}" in said
    assert "cannot be restored" in said
    assert f"goes on with the newest checkpoint that can be read, {folder}/latest.1.pt" in said
    one, other = (
        torch.load(place / "latest.pt", weights_only=True)
        for place in (folder, tiny.config(run_name="undisturbed").path("model_save_path"))
    )
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in other["model"])
    assert one["epoch"] == 3


def test_a_normalised_run_reads_its_checkpoint_once(experiment, monkeypatch):
    tiny = experiment(raw_normalization="percentile", epochs=1)
    tiny.train()
    whole = []
    read = weights_file.read
    monkeypatch.setattr(weights_file, "read", lambda path: whole.append(path) or read(path))
    tiny.train(epochs=2)
    assert [path.name for path in whole] == ["latest.pt"]


def test_a_damaged_best_is_named_with_the_latest(experiment):
    tiny = experiment()
    tiny.train()
    cut(folder_of(tiny) / "best.pt")
    with pytest.raises(UserError, match=r"latest.pt stands: go on with load_model = 'latest'"):
        tiny.train(epochs=4, load_model="best")


@pytest.mark.parametrize("load_model", ["latest", "theirs.pth"])
def test_a_run_whose_latest_is_gone_does_not_begin_anew_over_its_best(experiment, load_model):
    tiny = experiment()
    best = tiny.train().checkpoint
    torch.save(network().state_dict(), tiny.folder / "theirs.pth")
    before = best.read_bytes()
    for path in folder_of(tiny).glob("latest*.pt"):
        path.unlink()
    with pytest.raises(UserError, match=r"latest.pt is gone and best.pt stands"):
        tiny.train(epochs=4, load_model=load_model)
    assert best.read_bytes() == before
    assert tiny.train(epochs=4, load_model="best").epochs == 4


def test_going_on_from_the_best_before_there_is_one_goes_on_from_the_latest(experiment):
    tiny = experiment()
    tiny.train()
    (folder_of(tiny) / "best.pt").unlink()
    tiny.train(epochs=3, load_model="best")
    saved = torch.load(folder_of(tiny) / "latest.pt", weights_only=True)
    assert saved["epoch"] == 3


def test_weights_in_place_of_a_state_are_not_gone_on_with(experiment):
    tiny = experiment()
    folder_of(tiny).mkdir(parents=True)
    torch.save(network().state_dict(), folder_of(tiny) / "latest.pt")
    with pytest.raises(
        UserError, match=r"latest.pt: holds no whole state.*'model' is missing.*run_name"
    ):
        tiny.train()
