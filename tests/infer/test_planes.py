"""2-D networks over the planes across all three axes: by hand, and beside those of one axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from conftest import CROPS, Experiment
from torch.nn import functional

from common import runtime
from common.data.volumes.ngff import open_levels
from common.errors import UserError
from common.infer import predict
from common.infer.networks import ensemble, planes, window
from common.infer.predicting import by_workers
from common.train.checkpointing import checkpoint
from common.train.optimising import optim
from common.train.state import State
from tests.volumes import values

LOGITS = {"content": "logits", "dtype": "float32"}
SLICES = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, len(classes), 3))
    """
PADDED = SLICES.replace(", 3)", ", 3, padding=1)")
POINTWISE = """
    from torch import nn


    def build_model(classes):
        return nn.Conv2d(1, len(classes), 1)
    """


def patch(shape, margin: int = 0, scale=(8, 8, 8)) -> dict:
    """Settings of a patch that loses a margin on each side within its plane."""
    given = [n - 2 * margin if n > 1 else 1 for n in shape]
    return {
        "input_array_info": {"shape": tuple(shape), "scale": scale},
        "target_array_info": {"shape": tuple(given), "scale": scale},
    }


def save_weights(tiny: Experiment, seed: int = 0, name: str = "best") -> Path:
    config = tiny.config()
    torch.manual_seed(seed)
    model = config.build_model(config.classes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = State(
        model,
        optim.build_optimizer(model, 1e-4, 0.0, None),
        None,
        runtime.Precision("fp32", "cpu").scaler(),
        epoch=3,
        best=0.5,
        best_epoch=3,
    )
    checkpoint.save_state(config, state, "no split", name)
    return config.path("model_save_path") / f"{name}.pt"


def predicted(tiny: Experiment, **settings) -> np.ndarray:
    """(classes, z, y, x) of the validation crop."""
    (folder,) = predict.predict(tiny.folder, data=tiny.data, overwrite=True, **settings)
    return values(folder)


def raw_around(tiny: Experiment, margin: int) -> torch.Tensor:
    """(1, 1, z, y, x) raw in [0, 1] of the validation crop and around it."""
    level = open_levels(tiny.raw)[0]
    start = np.array(CROPS["crop3"][1])
    block = level.read(start - margin, start + 24 + margin)
    return torch.from_numpy(block)[None, None].float() / 255


def across(axis: int, raw: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Logits of SLICES over slices across an axis, as 3-D convolutions one voxel thick."""
    first, _, last = model
    within = [slice(None)] * 2 + [slice(None)] * 3
    within[2 + axis] = slice(2, -2)
    hidden = functional.conv3d(
        raw[tuple(within)], first.weight.unsqueeze(2 + axis), first.bias
    ).relu()
    return functional.conv3d(hidden, last.weight.unsqueeze(2 + axis), last.bias)[0]


@pytest.mark.parametrize("pixels", [window.PIXELS, 20 * 20 * 5])
@pytest.mark.parametrize("shape", [(1, 20, 20), (20, 1, 20), (20, 20, 1)])
def test_the_logits_of_three_planes_are_averaged(experiment, monkeypatch, shape, pixels):
    monkeypatch.setattr(window, "PIXELS", pixels)
    tiny = experiment(files={"model.py": SLICES}, **patch(shape, 2))
    save_weights(tiny)
    model = ensemble.load_network(tiny.config()).model
    raw = raw_around(tiny, 2)
    with torch.no_grad():
        logits = [across(axis, raw, model).numpy() for axis in range(3)]
    own = shape.index(1)
    np.testing.assert_allclose(predicted(tiny, **LOGITS), logits[own], atol=1e-5)
    np.testing.assert_allclose(
        predicted(tiny, **LOGITS, planes="all"), np.mean(logits, axis=0), atol=1e-5
    )


@pytest.mark.parametrize("orientations", [1, 8])
def test_planes_of_a_network_that_pads_are_those_of_networks_across_each_axis(
    experiment, orientations
):
    """Overlapping windows; the patch is not square."""
    each = []
    for axis in range(3):
        shape = [16, 12]
        shape.insert(axis, 1)
        tiny = experiment(f"across_{axis}", files={"model.py": PADDED}, **patch(shape))
        save_weights(tiny)
        each.append(predicted(tiny, **LOGITS, orientations=orientations))
    found = predicted(tiny, **LOGITS, orientations=orientations, planes="all")
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)
    assert np.abs(found - each[2]).max() > 0.01


def test_planes_are_not_exchanged_with_others(experiment):
    """A network that takes any size would be given lines of voxels for planes."""
    tiny = experiment(files={"model.py": PADDED}, **patch((1, 16, 16)))
    save_weights(tiny)
    predicted(tiny, **LOGITS, orientations=16)
    with pytest.raises(UserError, match="planes across y would be others then; write 8"):
        predicted(tiny, **LOGITS, orientations=16, planes="all")


def test_an_ensemble_is_the_mean_probability_of_networks_over_all_planes(experiment):
    tiny = experiment(files={"model.py": SLICES}, **patch((1, 20, 20), 2))
    paths = [save_weights(tiny, seed, f"seed{seed}") for seed in (1, 2)]
    each = [predicted(tiny, **LOGITS, planes="all", weights=str(path)) for path in paths]
    settings = {"content": "probability", "dtype": "float32", "planes": "all"}
    found = predicted(tiny, **settings, weights=[str(path) for path in paths])
    np.testing.assert_allclose(found, np.mean(1 / (1 + np.exp(np.negative(each))), 0), atol=1e-5)


def test_planes_are_on_record_and_make_another_prediction(experiment, capsys):
    tiny = experiment(files={"model.py": SLICES}, **patch((1, 20, 20), 2))
    save_weights(tiny)
    (folder,) = predict.predict(tiny.folder, data=tiny.data, planes="auto")
    about = zarr.open_group(str(folder / "er"), mode="r").attrs["prediction"]
    assert about["planes"] == 3
    assert "best.pt: epoch 3, dice 0.5000 at epoch 3; on cpu; in planes across z, y and x" in (
        capsys.readouterr().err
    )
    predict.predict(tiny.folder, data=tiny.data, planes="all")
    assert "already there" in capsys.readouterr().err
    with pytest.raises(UserError, match="planes"):
        predict.predict(tiny.folder, data=tiny.data)


def test_a_3d_network_has_no_planes(experiment):
    tiny = experiment()
    save_weights(tiny)
    with pytest.raises(UserError, match=r"--planes all is for networks whose convolutions are all"):
        predict.predict(tiny.folder, data=tiny.data, planes="all")
    (folder,) = predict.predict(tiny.folder, data=tiny.data, planes="auto")
    assert "planes" not in zarr.open_group(str(folder / "er"), mode="r").attrs["prediction"]
    with pytest.raises(UserError, match=r"planes 'some'; write own, all, auto"):
        predict.predict(tiny.folder, data=tiny.data, planes="some")


def test_within_other_planes_voxels_are_those_of_the_training(experiment):
    tiny = experiment(files={"model.py": POINTWISE}, **patch((1, 20, 12), scale=(30, 8, 8)))
    save_weights(tiny)
    network = ensemble.load_network(tiny.config())
    found = [planes.across(network, axis)[0] for axis in range(3)]
    assert [(each.shape, each.scale) for each in found] == [
        ((1, 20, 12), (30, 8, 8)),
        ((20, 1, 12), (8, 8, 8)),
        ((20, 12, 1), (8, 8, 8)),
    ]


def test_planes_of_other_voxels_meet_in_those_of_the_target(experiment, capsys):
    """A network that looks at one voxel gives the mean of two raw voxels in each of the planes."""
    tiny = experiment(files={"model.py": POINTWISE}, **patch((1, 20, 20), scale=(16, 8, 8)))
    save_weights(tiny)
    own = predicted(tiny, **LOGITS)
    assert own.shape == (3, 12, 24, 24)
    np.testing.assert_allclose(predicted(tiny, **LOGITS, planes="all"), own, atol=1e-3)
    # what is left is rounding: raw of 16 nm is stored in 255ths, and not when it is interpolated
    assert own.std() > 0.02
    said = " ".join(capsys.readouterr().err.split())
    assert "its own, 8 nm: raw is interpolated to them, and their logits to 16 x 8 x 8 nm" in said


def test_workers_predict_the_planes_of_their_caller(experiment):
    tiny = experiment(files={"model.py": SLICES}, **patch((1, 20, 20), 2))
    save_weights(tiny)
    config = tiny.config()
    network = ensemble.load_network(config)
    assert by_workers.source_of(network, config, ()).planes == "own"
    network = planes.with_planes(network, "all")
    source = by_workers.source_of(network, config, ())
    assert source.planes == "auto" and len(source.weights) == 1
    again, _ = by_workers._network_of(source)
    assert [each.window for each in again.planes] == [each.window for each in network.planes]
    assert [each.flat for each in again.planes] == [0, 1, 2]
