"""A network that was trained by the public recipe, a plain loop, goes on here by its weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, CROPS, world
from torch import nn
from torch.nn import functional

from cellmap_segmentation_challenge import models
from cellmap_segmentation_challenge.models import _unet
from common.data.volumes import layout
from tests.volumes import values, voxels_of

N = 16
"""Pixels along an edge of a patch."""

INFO = {"shape": (1, N, N), "scale": (8, 8, 8)}

MODEL = """
    from cellmap_segmentation_challenge.models import UNet_2D


    def build_model(classes):
        return UNet_2D(1, len(classes))
    """

PUBLIC = f"""
from cellmap_segmentation_challenge.models import UNet_2D

learning_rate = 0.0001
batch_size = 2
input_array_info = {INFO}
target_array_info = {INFO}
epochs = 1
iterations_per_epoch = 2
random_seed = 42
classes = {list(CLASSES)}
model_name = "2d_unet"
model_to_load = "2d_unet"
model = UNet_2D(1, len(classes))
load_model = "latest"
logs_save_path = "tensorboard/{{model_name}}"
model_save_path = "checkpoints/{{model_name}}_{{epoch}}.pth"
datasplit_path = "datasplit.csv"
raw_normalization = "values"
device = "cpu"
precision = "fp32"

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)
"""


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """A U-Net of few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_unet, "WIDTHS", (4, 8, 16, 32, 64))
        yield


def raw_of(store: Path) -> torch.Tensor:
    """(z, y, x) as it is stored, 0 to 255, in float32: what the toolbox gives its networks."""
    return torch.from_numpy(voxels_of(store)).float()


def trained(raw: torch.Tensor, seed: int, steps: int) -> nn.Module:
    """The public recipe: RAdam and binary cross-entropy over random slices across z."""
    torch.manual_seed(seed)
    model = models.UNet_2D(1, len(CLASSES))
    optimizer = torch.optim.RAdam(model.parameters(), lr=0.03)
    criterion = nn.BCEWithLogitsLoss()
    labels = world()
    target = torch.stack([torch.from_numpy(labels[name]).float() for name in CLASSES])
    for _ in range(steps):
        places = torch.randint(0, 56 - N, (8, 3)).tolist()
        slices = [raw[z, y : y + N, x : x + N] for z, y, x in places]
        truth = [target[:, z, y : y + N, x : x + N] for z, y, x in places]
        loss = criterion(model(torch.stack(slices)[:, None]), torch.stack(truth))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def own_logits(model: nn.Module, raw: torch.Tensor) -> np.ndarray:
    """(classes, 24, 24, 24) of the validation crop by the network's own forward.

    Of windows half a window apart the mean, weighted by a Gaussian of an eighth of a window.
    """
    distance = (torch.arange(N) - (N - 1) / 2) / (N / 8)
    along = torch.exp(-0.5 * distance**2)
    weight = torch.outer(along, along).clamp_min(1e-3)
    z, y, x = CROPS["crop3"][1]
    # counted from the volume's corner, those that reach into the crop
    starts = {corner: range((corner - N) // 8 * 8 + 8, corner + 24, 8) for corner in (y, x)}
    # beyond the volume raw is mirrored
    slices = functional.pad(raw[None], (8, 8, 8, 8), mode="reflect")[0][z : z + 24]
    total = torch.zeros(len(CLASSES), *slices.shape)
    weights = torch.zeros(slices.shape[1:])
    for row, column in itertools.product(starts[y], starts[x]):
        rows = slice(row + 8, row + 8 + N)
        columns = slice(column + 8, column + 8 + N)
        logits = model(slices[:, None, rows, columns]).movedim(0, 1)
        total[:, :, rows, columns] += logits * weight
        weights[rows, columns] += weight
    return (total / weights)[:, :, y + 8 : y + 32, x + 8 : x + 32].numpy()


@pytest.fixture(scope="module")
def networks(narrow, tiny_store) -> list[nn.Module]:
    """Two of the public recipe, the second one trained for longer."""
    raw = raw_of(tiny_store / layout.store("tiny") / layout.RAW)
    return [trained(raw, seed=1, steps=5), trained(raw, seed=2, steps=60)]


@pytest.fixture
def moved(experiment, networks):
    """An experiment with the toolbox's network, and two trained ones as the toolbox saves them."""
    tiny = experiment(
        files={"model.py": MODEL},
        input_array_info=INFO,
        target_array_info=INFO,
        raw_normalization="values",
    )
    (tiny.folder / "checkpoints").mkdir()
    for epoch, network in enumerate(networks, 1):
        torch.save(network.state_dict(), tiny.folder / f"checkpoints/2d_unet_{epoch}.pth")
    return tiny, networks


def test_it_predicts_by_its_own_forward_and_scores(moved, run, experiment):
    tiny, networks = moved
    weights = tiny.folder / "checkpoints/2d_unet_2.pth"
    common = ("--data", tiny.data)
    options = ("--checkpoint", weights, "--logits", "--dtype", "float32")
    code, out, said = run("predict", tiny.folder, *common, *options)
    assert code == 0, said
    assert "on raw of 8 nm as it is stored, 0 to 255, is taken from the experiment" in (
        " ".join(said.split())
    )
    expected = own_logits(networks[1], raw_of(tiny.raw))
    np.testing.assert_allclose(values(Path(out.strip())), expected, atol=1e-3)
    assert run("process", tiny.folder, *common)[0] == 0
    code, out, said = run("evaluate", tiny.folder, *common)
    assert code == 0, said
    scores = json.loads(Path(out.split()[-1]).read_text())["classes"]
    inside = tuple(slice(start, start + 24) for start in CROPS["crop3"][1])
    for logits, name in zip(expected, CLASSES, strict=True):
        is_class = world()[name][inside]
        both = 2 * np.sum((logits > 0) & is_class)
        dice = both / (np.sum(logits > 0) + np.sum(is_class))
        assert scores[name]["dice"] == pytest.approx(dice, abs=1e-3)
    assert scores["nuc"]["dice"] > 0.7


def test_an_ensemble_of_them_is_the_mean_probability(moved, run):
    tiny, networks = moved
    words = []
    for epoch in (1, 2):
        words += ["--checkpoint", tiny.folder / f"checkpoints/2d_unet_{epoch}.pth"]
    code, out, said = run("predict", tiny.folder, "--data", tiny.data, *words, "--dtype", "float32")
    assert code == 0, said
    raw = raw_of(tiny.raw)
    each = [1 / (1 + np.exp(-own_logits(network, raw))) for network in networks]
    np.testing.assert_allclose(values(Path(out.strip())), np.mean(each, 0), atol=1e-4)


def test_training_begins_with_it(moved, capsys):
    tiny, networks = moved
    settings = {"epochs": 1, "iterations_per_epoch": 1, "learning_rate": 1e-30}
    result = tiny.train(load_model="checkpoints/2d_unet_2.pth", weight_decay=0.0, **settings)
    started = torch.load(result.checkpoint, weights_only=True)["model"]
    wanted = dict(networks[1].named_parameters())
    assert all(torch.equal(started[name], tensor) for name, tensor in wanted.items())


def test_the_wrong_range_is_told(moved, run):
    tiny, _ = moved
    words = ("--checkpoint", "checkpoints/2d_unet_2.pth", "--set", "raw_normalization=range")
    code, _, said = run("predict", tiny.folder, "--data", tiny.data, *words)
    assert code == 0
    assert "it was probably trained on raw of 0 to 255; set raw_normalization = 'values'" in (
        " ".join(said.split())
    )


def test_a_public_file_predicts_with_the_weights_beside_it(moved, run):
    """`csc predict train_2D.py` takes the last epoch, and slices across all axes."""
    tiny, networks = moved
    (tiny.folder / "train_2D.py").write_text(PUBLIC)
    options = ("--logits", "--dtype", "float32", "--planes", "auto")
    code, out, said = run("predict", tiny.folder / "train_2D.py", "--data", tiny.data, *options)
    assert code == 0, said
    said = " ".join(said.split())
    assert "the weights that load_model names are taken" in said and "2d_unet_2.pth" in said
    assert "in planes across z, y and x" in said
    found = values(Path(out.strip()))
    raw = raw_of(tiny.raw)
    across_z = own_logits(networks[1], raw)
    assert found.shape == across_z.shape and np.abs(found - across_z).max() > 0.1
    options = (*options[:3], "--planes", "own", "--overwrite")
    _, out, _ = run("predict", tiny.folder / "train_2D.py", "--data", tiny.data, *options)
    np.testing.assert_allclose(values(Path(out.strip())), across_z, atol=1e-3)
