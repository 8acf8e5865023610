"""Configurations of the public toolbox: each shape loads, says what was taken how, trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import datasplit_text
from torch import nn

from cellmap_segmentation_challenge.models import _unet, vitnet
from common.config.given import GivenModel, GivenOptimizer, GivenScheduler
from common.config.load import load_config, load_process_config
from common.config.settings import TrainConfig
from common.errors import UserError
from common.train import check as check_module
from common.train.check import check
from common.train.optim import build_optimizer, build_scheduler
from common.train.record import read_history, read_record
from common.train.run import train

pytest.importorskip("upath")

SHAPES = Path(__file__).parent / "public"
"""Files with the shapes of public configurations: names, imports, options."""

HERE = ("device=cpu", "precision=fp32", "num_workers=0")

HEAD = """
import torch
from cellmap_segmentation_challenge import train
classes = ["mito", "er", "nuc"]
input_array_info = {"shape": (20, 20, 20), "scale": (8, 8, 8)}
target_array_info = {"shape": (16, 16, 16), "scale": (8, 8, 8)}
batch_size = 2
epochs = 2
iterations_per_epoch = 3
model = torch.nn.Sequential(
    torch.nn.Conv3d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 8, 3), torch.nn.ReLU(),
    torch.nn.Conv3d(8, 3, 1),
)
"""
"""A short public configuration that the tiny data can train."""


@pytest.fixture
def public(tmp_path, data_root) -> Callable[..., Path]:
    """Writes a public configuration, HEAD and lines of its own, beside a split of the tiny data."""

    def write(text: str = "", name: str = "train_3D.py", head: str = HEAD, **files: str) -> Path:
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        (folder / "datasplit.csv").write_text(datasplit_text())
        (folder / name).write_text(f"{head}\n{text}\n")
        for stem, content in files.items():
            (folder / f"{stem}.py").write_text(content)
        return folder / name

    return write


def notes(config: TrainConfig, name: str) -> str:
    """The notes about a name, put together."""
    return " | ".join(note for note in config.translated if note.startswith(name))


def problems(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path)
    return str(caught.value)


# Network, optimiser, scheduler


def test_a_model_instance_becomes_build_model_and_gives_copies(public):
    config = load_config(public())
    assert isinstance(config.build_model, GivenModel)
    first, second = (config.build_model(config.classes) for _ in range(2))
    assert first is not second
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other) and one is not other
    assert "drawn while the file was read" in notes(config, "model:")


def weights(path: Path, *overrides: str) -> torch.Tensor:
    config = load_config(path, overrides)
    return next(config.build_model(config.classes).parameters())


def test_equal_seeds_give_equal_weights_and_others_do_not(public, monkeypatch):
    path = public("random_seed = 7")
    torch.manual_seed(100)
    first = weights(path)
    torch.manual_seed(200)
    assert torch.equal(first, weights(path))
    torch.manual_seed(7)
    assert torch.equal(first, nn.Conv3d(1, 8, 3).weight)
    assert not torch.equal(first, weights(path, "random_seed=8"))
    monkeypatch.setenv("SEED", "8")
    assert torch.equal(weights(path), weights(path, "random_seed=8"))


def test_reading_leaves_the_random_numbers_as_they_were(public):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_config(public())
    assert torch.equal(torch.rand(3), expected)


def test_an_optimiser_instance_is_built_over_the_copy_with_its_groups(public):
    text = """
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}],
        lr=0.1, momentum=0.8, weight_decay=0.01,
    )
    """
    config = load_config(public(text.replace("\n    ", "\n")))
    assert isinstance(config.optimizer, GivenOptimizer)
    model = config.build_model(config.classes)
    made = build_optimizer(model, config.learning_rate, config.weight_decay, config.optimizer)
    assert type(made) is torch.optim.SGD
    first, second = made.param_groups
    assert [id(p) for p in first["params"]] == [id(p) for p in model[0].parameters()]
    assert [id(p) for p in second["params"]] == [id(p) for p in model[2].parameters()]
    assert (first["lr"], second["lr"]) == (0.5, 0.1)
    assert first["momentum"] == second["momentum"] == 0.8
    assert first["weight_decay"] == second["weight_decay"] == 0.01


def test_learning_rate_of_the_command_line_scales_the_groups_of_an_instance(public):
    text = "optimizer = torch.optim.Adam([{'params': model[0].parameters(), 'lr': 0.5},"
    path = public(f"{text} {{'params': model[2].parameters()}}], lr=0.1)")
    config = load_config(path, ["learning_rate=1.0", "weight_decay=0.3"])
    model = config.build_model(config.classes)
    made = build_optimizer(model, config.learning_rate, config.weight_decay, config.optimizer)
    assert [group["lr"] for group in made.param_groups] == [1.0, 0.2]
    assert [group["weight_decay"] for group in made.param_groups] == [0.3, 0.3]


def test_an_optimiser_over_other_parameters_is_refused(public):
    text = "optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters())"
    assert "2 of its parameters are not those of model" in problems(public(text))


SCHEDULES = {
    "cosine": "CosineAnnealingLR(optimizer, 9)",
    "lambda": "LambdaLR(optimizer, lambda epoch: 0.9**epoch)",
    "one cycle": "OneCycleLR(optimizer, 0.2, total_steps=20)",
    "warm-up": "SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=3), "
    "CosineAnnealingLR(optimizer, 6)], [3])",
    "chained": "ChainedScheduler([ConstantLR(optimizer), ExponentialLR(optimizer, 0.9)])",
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_scheduler_instance_gives_the_rates_of_its_own(public, kind):
    made_as = f"from torch.optim.lr_scheduler import *\nscheduler = {SCHEDULES[kind]}"
    path = public(f"optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n{made_as}")
    config = load_config(path)
    model = config.build_model(config.classes)
    optimizer = build_optimizer(model, config.learning_rate, config.weight_decay, config.optimizer)
    scheduler = build_scheduler(optimizer, config.scheduler, {}, higher_is_better=False)
    assert isinstance(config.scheduler, GivenScheduler)

    expected = {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), "torch": torch}
    exec(made_as, expected)
    for _ in range(9):
        rates = [one.param_groups[0]["lr"] for one in (optimizer, expected["optimizer"])]
        assert rates[0] == rates[1]
        for one in (optimizer, expected["optimizer"]):
            one.step()
        scheduler.step()
        expected["scheduler"].step()


def test_a_scheduler_instance_is_not_stepped_by_the_trial_of_it(public):
    text = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
    text += "scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)"
    path = public(text)
    result = train(path, HERE, path.parents[1] / "data")
    assert read_history(result.logs)["lr"].tolist() == [0.1, 0.05]


def test_another_learning_rate_than_that_of_a_scheduler_instance_is_refused(public):
    text = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
    text += "scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)"
    path = public(text)
    with pytest.raises(UserError, match=r"keeps the learning rate that it was made with, 0\.1"):
        train(path, (*HERE, "learning_rate=1.0"), path.parents[1] / "data")


def test_a_run_of_instances_that_was_stopped_goes_on_exactly(public):
    text = "optimizer = torch.optim.Adam(model.parameters(), lr=0.01)\n"
    text += "scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)"
    path = public(text)
    data = path.parents[1] / "data"
    whole = train(path, (*HERE, "run_name=whole", "epochs=3"), data)
    train(path, (*HERE, "run_name=parts", "epochs=1"), data)
    parts = train(path, (*HERE, "run_name=parts", "epochs=3"), data)
    states = [
        torch.load(one.checkpoint.with_name("latest.pt"), weights_only=True)
        for one in (whole, parts)
    ]
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name])
    assert (
        read_history(whole.logs)
        .drop(columns=[])
        .filter(like="loss")
        .equals(read_history(parts.logs).filter(like="loss"))
    )


def test_what_was_taken_how_is_on_record(public, capsys):
    path = public("max_grad_norm = None")
    result = train(path, HERE, path.parents[1] / "data")
    record = read_record(result.logs)
    assert record is not None and "max_grad_norm" in record.settings["translated"]
    assert "note: None, which is as if they were left out: max_grad_norm" in capsys.readouterr().err
    report = check(path, HERE, path.parents[1] / "data")
    assert "None, which is as if they were left out: max_grad_norm" in report


# Processing


PROCESS = """
from upath import UPath
from cellmap_segmentation_challenge import process
from cellmap_segmentation_challenge.utils import load_safe_config

config_path = UPath(__file__).parent / "train_3D.py"
config = load_safe_config(config_path)
classes = config.classes
batch_size = 3
input_array_info = config.target_array_info
target_array_info = config.target_array_info
device = "cpu"


def process_func(x):
    return x > 0


if __name__ == "__main__":
    process(__file__)
"""


def test_a_process_file_gives_its_settings(public):
    public()
    path = public(PROCESS, "process_3D.py", head="")
    settings = load_process_config(path)
    assert settings.classes == ("mito", "er", "nuc") and settings.batch_size == 3
    assert settings.input_array_info == {"shape": (16, 16, 16), "scale": (8, 8, 8)}


def test_train_predict_process_and_evaluate_with_public_files(public, run):
    train_file = public("process_helper = 1")
    process_file = public(PROCESS, "process_3D.py", head="")
    data = train_file.parents[1] / "data"
    train(train_file, HERE, data)
    chosen = ("--crops", "validate", "--data", data)
    assert run("predict", train_file, *chosen)[0] == 0
    code, _, err = run("process", process_file, *chosen)
    assert code == 0, err
    masks = (train_file.parent / "processed").rglob("crop3/[a-z]*")
    assert sorted(path.name for path in masks) == ["er", "mito", "nuc"]
    # the training file finds the process file of its name
    assert load_config(train_file).process_config_path == "process_3D.py"
    assert run("evaluate", train_file, *chosen)[0] == 0


# Shapes in use


TRAINING = sorted(path.name for path in SHAPES.glob("train_*.py"))
PROCESSING = sorted(path.name for path in SHAPES.glob("process_*.py"))


@pytest.fixture
def shapes(tmp_path, data_root, monkeypatch) -> Path:
    """The files of SHAPES beside a split of the tiny data; no network is downloaded."""
    cosem = pytest.importorskip("cellmap_models.pytorch.cosem")
    backbone = nn.Sequential(nn.Conv3d(1, 5, 31))
    network = SimpleNamespace(backbone=[backbone])
    monkeypatch.setattr(cosem, "load_model", lambda name: network)
    # as deep as they are, and thinner: seconds on a CPU
    monkeypatch.setattr(_unet, "WIDTHS", (4, 8, 16, 32, 64))
    thin = {"conv_first_channel": 16, "decoder_channels": (8, 8, 8, 8, 8)}
    monkeypatch.setitem(vitnet.CONFIGS, "ViT-V-Net", vitnet.CONFIGS["ViT-V-Net"] | thin)
    folder = tmp_path / "mine"
    shutil.copytree(SHAPES, folder)
    (folder / "datasplit.csv").write_text(datasplit_text())
    return folder


@pytest.mark.parametrize("name", TRAINING)
def test_every_shape_passes_the_check(shapes, name, monkeypatch):
    monkeypatch.setattr(check_module, "TIMED_STEPS", 1)
    monkeypatch.setattr(check_module, "VALIDATION_S", 0.1)
    report = check(shapes / name, HERE, shapes.parent / "data")
    assert "note        model: an instance" in report


@pytest.mark.parametrize("name", PROCESSING)
def test_every_other_shape_loads(shapes, name):
    settings = load_process_config(shapes / name)
    training = load_config(shapes / name)
    assert settings.classes == training.classes
    assert settings.input_array_info == training.target_array_info
    logits = torch.tensor([-1.0, 0.0, 2.0])
    assert settings.process_func(logits).tolist() == [0, 0, 1]
