"""Configurations of the public toolbox: each shape loads, says what was taken how, trains."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import public_shapes
import pytest
import torch
from conftest import DEADLINE, datasplit_text
from torch import nn

from cellmap_segmentation_challenge.models import _unet, resnet, vitnet
from common.config.given import GivenModel, GivenOptimizer, GivenScheduler
from common.config.load import load_config, load_process_config
from common.config.public import configs
from common.config.settings import TrainConfig
from common.data.samples import loaders
from common.data.samples.batches import training_batches
from common.data.splits import split
from common.errors import UserError
from common.files import REPOSITORY
from common.train import check as check_module
from common.train.check import check
from common.train.optimising.optim import build_optimizer, build_scheduler
from common.train.recording.record import read_history, read_record
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


def test_a_seed_that_the_file_looks_for_is_found(public, monkeypatch):
    text = (
        "import os\nrandom_seed = getattr(os.environ, 'SEED', 42)\nmodel_name = f'm.{random_seed}'"
    )
    path = public(text)
    assert load_config(path).random_seed == 42
    monkeypatch.setenv("SEED", "5")
    config = load_config(path)
    assert (config.random_seed, config.model_name) == (5, "m.5")
    assert load_config(path, ["random_seed=6"]).model_name == "m.6"
    assert not hasattr(os.environ, "SEED")


def test_paths_in_a_file_start_from_its_folder(public, monkeypatch):
    monkeypatch.chdir("/")
    path = public("from pathlib import Path\nepochs = int(Path('epochs.txt').read_text())")
    (path.parent / "epochs.txt").write_text("7")
    assert load_config(path).epochs == 7
    assert Path.cwd() == Path("/")


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


WRITTEN = sorted(path.name for path in SHAPES.glob("train_*.py"))
COUNTED = [f"{name}.py" for name in public_shapes.ROWS]
PROCESSING = sorted(path.name for path in SHAPES.glob("process_*.py"))


@pytest.fixture(scope="module")
def folder_of_shapes(tmp_path_factory, tiny_store) -> Path:
    """All public configurations beside a split of the tiny data; crops are decoded once."""
    root = tmp_path_factory.mktemp("shapes")
    folder = root / "mine"
    shutil.copytree(SHAPES, folder)
    shutil.copytree(tiny_store, root / "data")
    (folder / "datasplit.csv").write_text(datasplit_text())
    for name in public_shapes.ROWS:
        (folder / f"{name}.py").write_text(public_shapes.text_of(name))
    return folder


@pytest.fixture
def shapes(folder_of_shapes, monkeypatch) -> Path:
    """Their folder; networks are as deep as they are, and thinner, and none is downloaded."""
    cosem = pytest.importorskip("cellmap_models.pytorch.cosem")
    backbone = nn.Sequential(nn.Conv3d(1, 5, 31))
    network = SimpleNamespace(backbone=[backbone])
    monkeypatch.setattr(cosem, "load_model", lambda name: network)
    monkeypatch.setattr(_unet, "WIDTHS", (4, 8, 16, 32, 64))
    narrow = functools.partialmethod(resnet.ResNet.__init__, ngf=8)
    monkeypatch.setattr(resnet.ResNet, "__init__", narrow)
    sizes = vitnet.CONFIGS["ViT-V-Net"]
    thin = {
        "conv_first_channel": 16,
        "encoder_channels": (4, 8, 8),
        "decoder_channels": (8, 8, 8, 8, 8),
        "skip_channels": (8, 8, 8, 8, 4),
        "hidden_size": 24,
        "transformer": {**sizes["transformer"], "mlp_dim": 32, "num_layers": 2},
    }
    monkeypatch.setitem(vitnet.CONFIGS, "ViT-V-Net", sizes | thin)
    return folder_of_shapes


def test_names_are_assigned_as_often_as_in_the_public_files():
    found = Counter(name for row in public_shapes.ROWS for name in public_shapes.assigned(row))
    assert len(COUNTED) == 59
    assert {name: found[name] for name in public_shapes.COUNTS} == public_shapes.COUNTS


@pytest.mark.parametrize("name", WRITTEN + COUNTED)
def test_every_shape_passes_the_check(shapes, name, monkeypatch):
    monkeypatch.setattr(check_module, "TIMED_STEPS", 1)
    monkeypatch.setattr(check_module, "VALIDATION_S", 1e-9)
    cache = f"cache_path={shapes.parent / 'cache'}"
    report = check(shapes / name, (*HERE, cache), shapes.parent / "data")
    assert "note        model: an instance" in report
    assert "loss or gradient is not finite" not in report


@pytest.mark.parametrize("name", PROCESSING)
def test_every_other_shape_loads(shapes, name):
    settings = load_process_config(shapes / name)
    training = load_config(shapes / name)
    assert settings.classes == training.classes
    assert settings.input_array_info == training.target_array_info
    logits = torch.tensor([-1.0, 0.0, 2.0])
    assert settings.process_func(logits).tolist() == [0, 0, 1]


# Raw and target transforms


TRANSFORMS = """
import torchvision.transforms.v2 as T
from cellmap_data.transforms.augment import *
from cellmap_data.transforms.augment import Normalize
"""


def with_transforms(train: str, validation: str = "[]", **more: str) -> str:
    lines = [f"train_raw_value_transforms = T.Compose({train})"]
    if validation != "[]":
        lines.append(f"val_raw_value_transforms = T.Compose({validation})")
    return "\n".join([TRANSFORMS, *lines, *(f"{name} = {text}" for name, text in more.items())])


def test_changes_of_intensity_become_settings(public):
    text = with_transforms(
        "[Normalize(), T.RandomApply([RandomGamma((0.9, 1.1))], p=0.3), "
        "T.RandomApply([RandomContrast((0.8, 1.2))], p=0.3), "
        "T.RandomApply([GaussianNoise(std=0.02)], p=0.3), NaNtoNum({'nan': 0})]"
    )
    config = load_config(public(text))
    assert (config.gamma_range, config.contrast_range) == ((0.9, 1.1), (0.8, 1.2))
    assert (config.noise_std, config.intensity_probability) == (0.02, 0.3)
    assert config.augment is None and config.raw_range == ()
    assert "Normalize, NaNtoNum have nothing to do" in notes(config, "raw transforms")


def test_a_normalisation_that_is_not_that_of_8_bits_is_the_raw_range(public):
    config = load_config(public(with_transforms("[Normalize(shift=-50, scale=1 / 100)]")))
    assert config.raw_range == (50, pytest.approx(150))


def test_a_change_of_another_probability_is_applied_as_it_is(public):
    text = with_transforms(
        "[RandomGamma((0.5, 2)), T.RandomApply([GaussianNoise(std=0.1)], p=0.5)]"
    )
    config = load_config(public(text))
    assert config.intensity_probability == 1 and config.noise_std == 0
    raw = torch.full((1, 4, 4, 4), 0.5)
    results = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        first = config.augment(raw.clone(), generator)
        # what others draw in between changes nothing
        torch.rand(3)
        assert torch.equal(first, config.augment(raw.clone(), generator.manual_seed(seed)))
        results.append(bool((first == raw).all()))
    assert 4 < sum(results) < 16
    assert "GaussianNoise(mean=0.0, std=0.1) with probability 0.5" in repr(config.augment)


def test_transforms_as_given_leave_the_global_random_numbers_alone(public):
    config = load_config(public(with_transforms("[T.RandomErasing(p=1)]")))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    config.augment(torch.rand(1, 8, 8, 8, generator=torch.Generator()), torch.Generator())
    assert torch.equal(torch.rand(2), expected)


def test_what_validation_needs_too_goes_before_the_network(public):
    transform = "T.Normalize([0.5], [0.25])"
    text = with_transforms(f"[RandomGamma((1, 1)), {transform}]", f"[{transform}]")
    config = load_config(public(text))
    assert config.augment is None
    model = config.build_model(config.classes)
    raw = torch.rand(2, 1, 20, 20, 20)
    plain = load_config(public()).build_model(config.classes)
    assert list(model.state_dict()) == list(plain.state_dict())
    for mode in (True, False):
        model.train(mode)
        assert torch.equal(model(raw), plain((raw - 0.5) / 0.25))
    assert "Normalize(mean=[0.5], std=[0.25]" in config.record()["build_model"]


def test_what_only_validation_has_is_not_applied_in_training(public):
    text = with_transforms("[RandomGamma((1, 1))]", "[T.Normalize([0.5], [0.25])]")
    config = load_config(public(text))
    model = config.build_model(config.classes)
    plain = load_config(public()).build_model(config.classes)
    raw = torch.rand(1, 1, 20, 20, 20)
    assert torch.equal(model.train()(raw), plain(raw))
    assert torch.equal(model.eval()(raw), plain((raw - 0.5) / 0.25))


def test_transforms_that_only_binarise_labels_are_done_already(public):
    text = with_transforms(
        "[Normalize()]", target_value_transforms="T.Compose([T.ToDtype(torch.float), Binarize()])"
    )
    config = load_config(public(text))
    assert "labels are 0, 1 or unknown" in notes(config, "target_value_transforms")


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_with_transforms_as_given_are_the_same_for_any_number_of_workers(
    public, workers, monkeypatch
):
    monkeypatch.setenv("SEED", "5")
    text = with_transforms("[GaussianBlur(3, 0.5, dim=3), T.RandomErasing(p=0.5)]")
    path = public(text)
    data = path.parents[1] / "data"
    config = load_config(path, (*HERE, f"num_workers={workers}"), data)
    crops = loaders.open_data(config)
    batches = training_batches(config, crops, torch.device("cpu"))
    first = [batch.raw for batch in batches.between(0, 6)]
    again = [batch.raw for batch in batches.between(2, 6)]
    assert all(torch.equal(one, other) for one, other in zip(first[1:], again, strict=True))
    assert len({float(raw.sum()) for raw in first}) == 3


def test_a_transform_that_changes_the_shape_is_refused(public):
    path = public("train_raw_value_transforms = [lambda patch: patch[:3]]")
    with pytest.raises(UserError, match=r"gives \(3, 20, 20\) for a patch \(20, 20, 20\)"):
        check(path, HERE, path.parents[1] / "data")


# Loss and classes


def test_arguments_that_a_loss_does_not_take_are_refused(public):
    text = "criterion = torch.nn.BCEWithLogitsLoss\ncriterion_kwargs = {'nonsense': 3}"
    assert "criterion = loss.BCEWithLogitsLoss(nonsense=3): " in problems(public(text))


def test_a_loss_with_arguments_is_that_loss_over_known_voxels(public):
    text = "criterion = torch.nn.HuberLoss\ncriterion_kwargs = {'delta': 0.3, 'reduction': 'sum'}"
    config = load_config(public(text))
    assert isinstance(config.criterion, functools.partial)
    assert config.criterion.keywords == {"delta": 0.3}
    assert load_config(public("criterion = torch.nn.BCEWithLogitsLoss")).criterion is None


def test_a_class_of_ones_own_is_taken_and_a_likely_slip_told(public):
    config = load_config(public("classes = ['mito', 'mitto', 'zebra_body']"))
    assert config.extra_classes == ("mitto", "zebra_body")
    assert "'mito'" in notes(config, "classes")


# Places


def test_weights_of_the_toolbox_begin_a_run(public):
    path = public("model_name = 'mine'\nmodel_to_load = 'mine'\nload_model = 'latest'")
    folder = path.parent / "checkpoints"
    folder.mkdir()
    model = load_config(path).build_model(("mito", "er", "nuc"))
    for epoch in (2, 10, 9):
        with torch.no_grad():
            model[0].bias.fill_(epoch)
        torch.save(model.state_dict(), folder / f"mine_{epoch}.pth")
    torch.save(model.state_dict(), folder / "mine_long_3.pth")
    config = load_config(path)
    assert config.load_model == str(folder / "mine_10.pth")
    result = train(path, (*HERE, "epochs=1", "learning_rate=1e-9"), path.parents[1] / "data")
    weights = torch.load(result.checkpoint, weights_only=True)["model"]
    assert torch.allclose(weights["0.bias"], torch.tensor(10.0), atol=1e-3)


def test_another_model_to_load_that_is_not_there_stops_training(public):
    path = public("model_name = 'mine'\nmodel_to_load = 'other'")
    with pytest.raises(FileNotFoundError, match="other_"):
        train(path, HERE, path.parents[1] / "data")


def test_runs_of_one_model_have_folders_of_their_own(public):
    text = "logs_save_path = 'tensorboard/{model_name}'\nmodel_name = 'mine'\n"
    path = public(text + "model_save_path = 'checkpoints/{model_name}_{epoch}.pth'")
    config = load_config(path, ["random_seed=3"])
    assert config.path("logs_save_path") == path.parent / "tensorboard/mine/seed3"
    assert config.path("model_save_path") == path.parent / "checkpoints/mine/seed3"


def test_the_data_root_of_the_file_is_that_of_its_folder(public, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    path = public("data_base_path = '../data'")
    assert load_config(path).path("data_path") == tmp_path / "data"
    (tmp_path / "elsewhere").mkdir()
    assert load_config(path, data=tmp_path / "elsewhere").data_path == str(tmp_path / "elsewhere")


# Other names


def test_helper_variables_are_left_alone_and_named(public):
    config = load_config(public("learning_rte = 1\nwarmup_steps = 3\nhelper = [1]"))
    assert config.learning_rate == TrainConfig.learning_rate
    assert notes(config, "no settings") == (
        "no settings, left alone: learning_rte (the setting is 'learning_rate'), warmup_steps "
        "(the setting is 'warmup_iterations'), helper"
    )


def test_a_file_of_ours_is_not_taken_for_a_public_one(public):
    head = "from cellmap_segmentation_challenge.utils import get_tested_classes\n"
    said = problems(public("learning_rte = 1\ndef build_model(classes): ...", head=head))
    assert "unknown setting 'learning_rte'; did you mean 'learning_rate'?" in said


def test_a_helper_that_is_called_build_model_makes_no_file_of_ours(public):
    config = load_config(public("def build_model(): ..."))
    assert isinstance(config.build_model, GivenModel)


def test_numbers_of_numpy_and_a_seed_that_is_text_are_taken(public):
    config = load_config(public("import numpy\nbatch_size = numpy.int64(3)\nrandom_seed = '7'"))
    assert (config.batch_size, config.random_seed) == (3, 7)


def test_a_network_of_lazy_layers_is_taken(public):
    lazy = "model = torch.nn.Sequential(torch.nn.LazyConv3d(8, 5), torch.nn.LazyConv3d(3, 1))"
    path = public(lazy)
    assert "Sequential(0 parameters" in repr(load_config(path).build_model)
    check(path, HERE, path.parents[1] / "data")


def test_what_the_toolbox_takes_for_names_that_are_left_out(public):
    head = "import torch\nimport cellmap_segmentation_challenge\nmodel = torch.nn.Conv2d(1, 2, 1)"
    config = load_config(public(head=head))
    assert config.classes == ("nuc", "er") and config.model_name == "2d_unet"
    assert config.input_array_info == config.target_array_info
    assert config.input_array_info == {"shape": (1, 128, 128), "scale": (8, 8, 8)}
    assert not config.use_mutual_exclusion and config.weight_decay == 0
    assert set(config.spatial_transforms) == {"mirror", "transpose", "rotate"}


def test_a_file_without_a_model_says_so(public):
    head = "import cellmap_segmentation_challenge\nepochs = 3"
    assert "'model' is missing; write model = ..." in problems(public(head=head))
    head = "import torch, cellmap_segmentation_challenge\nmodel = torch.nn.Conv3d"
    assert "model is a class; write an instance" in problems(public(head=head))


def test_options_of_the_command_line_go_before_the_file(public):
    config = load_config(
        public("max_grad_norm = 3\ndevice = None"), ["max_grad_norm=5", "epochs=7"]
    )
    assert (config.max_grad_norm, config.epochs, config.device) == (5, 7, "auto")


# As a program


def test_the_last_lines_of_a_file_train_it(public):
    path = public(
        "device = 'cpu'\nprecision = 'fp32'\ndataloader_kwargs = {'num_workers': 0}\n"
        "data_base_path = '../data'\nfrom shared import epochs\n"
        "if __name__ == '__main__':\n    train(__file__)",
        shared="epochs = 1",
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, path.name],
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    assert "done after epoch 1" in done.stderr
    assert (path.parent / "checkpoints/2d_unet/seed42/best.pt").is_file()


# Datasplit


def test_a_datasplit_that_is_not_there_is_written_as_the_file_says(public, capsys):
    path = public("force_all_classes = False\nfilter_by_scale = True\nvalidation_prob = 0.34")
    (path.parent / "datasplit.csv").unlink()
    config = load_config(path)
    assert config.missing_split == {
        "classes": ("mito", "er", "nuc"),
        "scale": (8, 8, 8),
        "validation_fraction": 0.34,
        "force_classes": "",
        "by": "crop",
        "absolute": True,
    }
    data = path.parents[1] / "data"
    check(path, HERE, data)
    rows = split.read_datasplit(path.parent / "datasplit.csv", data)
    assert sorted(row.usage for row in rows) == ["train", "train", "validate"]
    assert "datasplit.csv: 2 training crops, 1 validation crop" in capsys.readouterr().err


def test_a_file_that_writes_its_datasplit_finds_the_data(public, tmp_path):
    text = "from cellmap_segmentation_challenge.utils import make_datasplit_csv\n"
    text += "make_datasplit_csv(classes=classes, csv_path='own.csv', validation_prob=0)\n"
    path = public(text + "datasplit_path = 'own.csv'")
    load_config(path, data=tmp_path / "data")
    assert len(split.read_datasplit(path.parent / "own.csv", tmp_path / "data")) == 3
    assert "CELLMAP_DATA" not in os.environ


@pytest.mark.parametrize(
    ("written", "taken"), [("True", "all"), ("'validation'", "validate"), ("'train'", "train")]
)
def test_which_crops_are_to_have_all_classes(public, written, taken):
    config = load_config(public(f"force_all_classes = {written}"))
    assert config.missing_split["force_classes"] == taken
    assert "used where the datasplit is not there yet" in notes(config, "force_all_classes")


def test_transforms_of_targets_are_applied_in_the_loss(public):
    text = with_transforms(
        "[Normalize()]",
        target_value_transforms="{'mito': T.Lambda(lambda x: 1 - x), 'er': Binarize()}",
        weight_loss="False",
    )
    path = public(text.replace("T.Compose({'mito'", "({'mito'"))
    config = load_config(path)
    logits = torch.randn(2, 3, 4, 4, 4)
    target = torch.randint(0, 2, logits.shape).float()
    target[0, :, 0] = torch.nan
    expected = target.clone()
    expected[:, 0] = 1 - expected[:, 0]
    known = ~target.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(logits[known], expected[known])
    assert torch.isclose(config.criterion(logits, target), losses)
    check(path, HERE, path.parents[1] / "data")


# Documents


def test_the_page_has_every_name():
    page = (REPOSITORY / "docs/reference/public_configurations.md").read_text()
    names = {*configs.RULES, *configs.ANSWERS, *configs.DIFFERS, *configs.DEFAULTS}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_a_file_without_a_network_is_that_of_its_training(shapes):
    config = load_config(shapes / "predict_3d_unet.py")
    training = load_config(shapes / "train_3d_unet.py")
    assert config.record() == training.record()
    assert config.process_config_path == "process_3d_unet.py"


# What is no network, no names, no dict


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("classes = [['mito'], ['er']]", "classes = [['mito'], ['er']]; write a flat list"),
        ("classes = None", "classes = None; write a flat list"),
        ("classes = 3", "classes = 3; write a flat list"),
        ("classes = (name for name in ['mito'])", "write a flat list of names"),
        (
            "dataloader_kwargs = ['num_workers']",
            "dataloader_kwargs = ['num_workers']; write a dict",
        ),
        ("criterion_kwargs = 'mean'", "criterion_kwargs = 'mean'; write a dict"),
        ("train_raw_value_transforms = 'ToDtype'", "raw transforms: 'ToDtype'; write transforms"),
        ("target_value_transforms = {'mito': 3}", "target_value_transforms: 3; write transforms"),
        (
            "target_value_transforms = {'mitto': abs}",
            "target_value_transforms['mitto']: not one of classes; did you mean 'mito'?",
        ),
        ("train(__file__)", "reads itself: what trains or predicts with it belongs under"),
    ],
)
def test_what_a_name_cannot_be_is_one_sentence(public, text, told):
    found = problems(public(text))
    assert told in found
    assert len(found) < 400


def test_a_torchscript_program_is_refused(public):
    with pytest.warns(FutureWarning):
        found = problems(public("model = torch.jit.script(model)"))
    assert "TorchScript" in found


def test_a_network_that_cannot_be_copied_is_a_sentence(public):
    text = "import warnings\nwarnings.simplefilter('ignore')\ntorch.nn.utils.weight_norm(model[0])"
    config = load_config(public(text))
    with pytest.raises(UserError, match="parametrizations"):
        config.build_model(config.classes)


def test_none_is_no_where_it_is_asked_whether(public):
    config = load_config(public("weighted_sampler = weight_loss = None\nmax_grad_norm = None"))
    assert not config.weighted_sampler and not config.weight_loss
    assert notes(config, "None,") == "None, which is as if they were left out: max_grad_norm"


@pytest.mark.parametrize("text", ["classes = 'mito,er,nuc'", "classes = np.array(classes)"])
def test_classes_in_other_forms_are_those_of_the_datasplit_too(public, text):
    config = load_config(public(f"import numpy as np\n{text}"))
    assert config.classes == config.missing_split["classes"] == ("mito", "er", "nuc")


def test_a_path_without_a_folder_stays_in_that_of_the_file(public):
    path = public("model_save_path = '{epoch}.pth'\nlogs_save_path = ''")
    config = load_config(path)
    for name in ("model_save_path", "logs_save_path"):
        assert config.path(name) == path.parent / "seed42"


def test_networks_may_lie_in_folders_beside_the_file(public, tmp_path):
    texts = {
        "mine/networks/__init__.py": "",
        "mine/networks/unet.py": "from .parts import C\n\ndef unet(n):\n    return C(1, n, 5)",
        "mine/networks/parts.py": "from torch.nn import Conv3d as C",
        "mine/plain/inner/net.py": "from networks.unet import unet",
    }
    path = public("from plain.inner.net import unet\nmodel = unet(3)")
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert "Conv3d" in repr(load_config(path).build_model)
    assert not {"networks", "networks.unet", "plain", "plain.inner"} & set(sys.modules)


def test_transforms_for_raw_of_0_to_255_are_told_of_its_range(public):
    pytest.importorskip("torchvision")
    text = "import torchvision.transforms.v2 as T\ntrain_raw_value_transforms = T.Compose([{}])"
    blurred = load_config(public(text.format("T.GaussianBlur(3)")))
    assert "0 to 255 in the toolbox" in notes(blurred, "raw transforms")
    scaled = text.format("T.ToDtype(torch.float, scale=True), T.GaussianBlur(3)")
    assert "0 to 255" not in notes(load_config(public(scaled)), "raw transforms")
