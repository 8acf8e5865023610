"""Weights of other trainers, damaged files, and what stands when a run's own file is lost."""

from __future__ import annotations

import argparse

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.train import weights_file


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


def test_weights_of_another_network_are_told_by_their_first_tensor(experiment):
    tiny = experiment()
    path = tiny.folder / "theirs.pth"
    torch.save(network(6).state_dict(), path)
    sentence = rf"^{path}: .*5 of 6 tensors differ, first '0.weight': \(6, 1, 3, 3, 3\) and \(8, "
    with pytest.raises(UserError, match=sentence) as raised:
        tiny.train(load_model="theirs.pth")
    assert "remove" not in str(raised.value)
    assert not tiny.config().path("model_save_path").exists()


@pytest.mark.parametrize("content", [[1, 2, 3], {}, {"model": 3}, {"epoch": 3}, torch.zeros(3)])
def test_a_file_without_weights_is_told(experiment, content):
    tiny = experiment()
    torch.save(content, tiny.folder / "theirs.pth")
    with pytest.raises(UserError, match=r"theirs.pth: holds no weights; give a state_dict"):
        tiny.train(load_model="theirs.pth")


def test_a_file_with_other_objects_is_no_damaged_one(tmp_path):
    path = tmp_path / "theirs.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": argparse.Namespace(lr=1)}, path)
    with pytest.raises(UserError, match=r"holds other objects than tensors.*weights_only=False"):
        weights_file.read(path)


def folder_of(tiny):
    return tiny.config().path("model_save_path")


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_damaged_latest_is_named_with_the_best_and_going_on_from_it_keeps_the_history(experiment):
    from common.train.record import read_history

    tiny = experiment(epochs=2, best_metric="loss", iterations_per_epoch=10)
    first = tiny.train()
    before = read_history(first.logs)
    best = torch.load(first.checkpoint, weights_only=True)["epoch"]
    cut(folder_of(tiny) / "latest.pt")
    with pytest.raises(UserError) as raised:
        tiny.train(epochs=4)
    told = str(raised.value)
    assert "latest.pt: not a readable checkpoint of this trainer: damaged, cut off" in told
    assert "best.pt stands" in told and "load_model = 'best'" in told and "remove" not in told
    done = tiny.train(epochs=4, load_model="best")
    after = read_history(done.logs)
    assert after["epoch"].tolist() == [1, 2, 3, 4]
    assert after["train/loss"][:best].tolist() == before["train/loss"][:best].tolist()


def test_where_both_are_damaged_no_file_is_advised(experiment):
    tiny = experiment()
    tiny.train()
    cut(folder_of(tiny) / "latest.pt")
    cut(folder_of(tiny) / "best.pt")
    with pytest.raises(UserError, match=r"The run has no other checkpoint"):
        tiny.train(epochs=4)


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
    (folder_of(tiny) / "latest.pt").unlink()
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
    with pytest.raises(UserError, match=r"latest.pt: holds no whole state.*move it to another"):
        tiny.train()
