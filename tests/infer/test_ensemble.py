"""The mean of several networks: what it is, what it refuses, what it says of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Experiment
from scipy.special import expit, logit

from common.data.volumes.ngff import open_levels, write_multiscale
from common.data.volumes.raw import Raw
from common.data.volumes.records import read_prediction
from common.errors import UserError
from common.files import sha256_of_file
from common.infer import predict
from common.infer.networks import ensemble
from common.infer.process import process
from common.score.evaluate import evaluate
from common.train.checkpointing import weights_file
from tests.volumes import values

LOGITS = {"content": "logits", "dtype": "float32"}

# pools by two and gives less than it takes
POOLED = """
    import torch
    from torch import nn
    from torch.nn import functional


    class Net(nn.Module):
        def __init__(self, classes, width):
            super().__init__()
            self.first = nn.Conv3d(1, width, 3)
            self.low = nn.Conv3d(width, width, 3)
            self.last = nn.Conv3d(2 * width, classes, 3)

        def forward(self, raw):
            fine = self.first(raw).relu()
            low = self.low(functional.max_pool3d(fine, 2))
            coarse = functional.interpolate(low, scale_factor=2)
            return self.last(torch.cat([coarse, fine[:, :, 2:-2, 2:-2, 2:-2]], 1))


    def build_model(classes, width=4):
        return Net(len(classes), width)
    """
PADDED = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(
            nn.Conv3d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv3d(4, len(classes), 3, padding=1)
        )
    """


def arrays(shape: int, target: int, scale: int = 8) -> dict:
    return {
        "input_array_info": {"shape": (shape,) * 3, "scale": (scale,) * 3},
        "target_array_info": {"shape": (target,) * 3, "scale": (scale,) * 3},
    }


def checkpoint_of(tiny: Experiment, run: str, **settings) -> Path:
    """The best checkpoint of a run, with random weights: networks that differ by much."""
    settings = {"epochs": 1, "iterations_per_epoch": 1, "init_output_to_prior": False, **settings}
    path = tiny.train(run_name=run, **settings).checkpoint
    saved = torch.load(path, weights_only=True)
    torch.manual_seed(len(run))
    for weight in saved["model"].values():
        torch.nn.init.normal_(weight, std=0.3)
    torch.save(saved, path)
    return path


def predicted(tiny: Experiment, *paths: Path, into: str, **output) -> np.ndarray:
    """(classes, z, y, x) of the validation crop, as stored."""
    (folder,) = predict.predict(
        tiny.folder,
        data=tiny.data,
        weights=[str(path) for path in paths],
        overrides=[f"run_name={into}"],
        **output,
    )
    return values(folder)


def mean_logits(*logits: np.ndarray) -> np.ndarray:
    """Of the mean probability, in float64."""
    return logit(np.mean([expit(each.astype(np.float64)) for each in logits], axis=0))


@pytest.fixture
def seeds(experiment) -> tuple[Experiment, Path, Path]:
    """An experiment and the checkpoints of two of its runs."""
    tiny = experiment()
    first = checkpoint_of(tiny, "one")
    return tiny, first, checkpoint_of(tiny, "second")


def test_the_mean_is_of_probabilities(seeds):
    tiny, first, second = seeds
    apart = [predicted(tiny, path, into=path.parent.name, **LOGITS) for path in (first, second)]
    assert np.abs(apart[0] - apart[1]).max() > 0.5
    together = predicted(tiny, first, second, into="logits", **LOGITS)
    np.testing.assert_allclose(together, mean_logits(*apart), atol=1e-4)
    stored = predicted(tiny, first, second, into="probability")
    of_mean = np.mean([expit(each) for each in apart], axis=0) * 255
    assert np.abs(stored - of_mean).max() <= 0.51


def test_logits_of_sure_networks_do_not_saturate(seeds):
    """A mean of float32 probabilities would be 1, whose logit is infinite."""
    tiny, first, second = seeds
    for path in (first, second):
        saved = torch.load(path, weights_only=True)
        bias = list(saved["model"])[-1]
        saved["model"][bias] += 30
        torch.save(saved, path)
    apart = [predicted(tiny, path, into=path.parent.name, **LOGITS) for path in (first, second)]
    together = predicted(tiny, first, second, into="both", **LOGITS)
    # p = 1 - q: of q near 0 the mean is exact in float64
    of_not = np.mean([expit(-each.astype(np.float64)) for each in apart], axis=0)
    assert apart[0].min() > 20
    np.testing.assert_allclose(together, -np.log(of_not), atol=1e-4)


@pytest.mark.parametrize("scale", [(), (12.0, 12.0, 12.0)], ids=["own voxels", "resampled"])
@pytest.mark.parametrize(
    ("model", "settings"),
    [(POOLED, {**arrays(20, 12), "model_kwargs": {"width": 3}}), (PADDED, arrays(12, 12))],
    ids=["pooled", "padded"],
)
def test_a_network_of_another_experiment_predicts_as_it_does_there(
    experiment, model, settings, scale
):
    """Windows of other sizes and units, over the blocks of the first, which are none of theirs."""
    tiny = experiment()
    other = experiment("other", files={"model.py": model})
    own = checkpoint_of(tiny, "own")
    foreign = checkpoint_of(other, "foreign", **settings)
    options = {**LOGITS, "scale": scale, "block": 13}
    alone = predicted(tiny, own, into="alone", **options)
    # its experiment has other settings by now than those on record
    (folder,) = predict.predict(
        other.folder,
        data=other.data,
        overrides=["run_name=foreign", *(f"{key}={value}" for key, value in settings.items())],
        **options,
    )
    there = values(folder)
    together = predicted(tiny, own, foreign, into="together", **options)
    np.testing.assert_allclose(together, mean_logits(alone, there), atol=2e-4)
    # alone it is taken for what it is, too
    np.testing.assert_allclose(predicted(tiny, foreign, into="foreign", **options), there)


def test_raw_is_read_once_for_all(seeds, monkeypatch):
    tiny, first, second = seeds
    boxes = []
    original = Raw.read_mirrored

    def counted(raw, start, stop):
        boxes.append(tuple(start))
        return original(raw, start, stop)

    monkeypatch.setattr(Raw, "read_mirrored", counted)
    predicted(tiny, first, second, into="both", block=12)
    assert len(boxes) == len(set(boxes)) == 8


def test_each_network_gets_raw_in_its_own_range(experiment):
    tiny = experiment()
    wide = open_levels(tiny.raw)[0].read((0, 0, 0), (56, 56, 56)).astype(np.uint16) * 100
    shutil.rmtree(tiny.raw)
    write_multiscale(tiny.raw, wide, (8, 8, 8))
    dark = checkpoint_of(tiny, "dark", raw_range=(0, 40000))
    bright = checkpoint_of(tiny, "bright", raw_range=(5000, 20000))
    apart = []
    for path, of in ((dark, "0, 40000"), (bright, "5000, 20000")):
        (folder,) = predict.predict(
            tiny.folder,
            data=tiny.data,
            overrides=[f"run_name={path.parent.name}", f"raw_range=({of})"],
            **LOGITS,
        )
        apart.append(values(folder))
    together = predicted(tiny, dark, bright, into="both", **LOGITS)
    np.testing.assert_allclose(together, mean_logits(*apart), atol=1e-4)


def test_each_network_gets_raw_normalised_as_in_its_training(experiment):
    tiny = experiment()
    plain = checkpoint_of(tiny, "plain")
    standard = checkpoint_of(tiny, "standard", raw_normalization="zscore")
    apart = []
    for path, mode in ((plain, "range"), (standard, "zscore")):
        (folder,) = predict.predict(
            tiny.folder,
            data=tiny.data,
            overrides=[f"run_name={path.parent.name}", f"raw_normalization={mode}"],
            **LOGITS,
        )
        apart.append(values(folder))
    together = predicted(tiny, plain, standard, into="both", **LOGITS)
    np.testing.assert_allclose(together, mean_logits(*apart), atol=1e-4)
    (group,) = tiny.folder.glob("predictions/*/both/*/crop3/er")
    scalings = read_prediction(group).raw_scaling["members"]
    (saved,) = torch.load(standard, weights_only=True)["raw_scalings"].values()
    assert saved in scalings and None in scalings


def test_a_network_of_another_experiment_knows_the_volumes_of_its_training(experiment):
    tiny = experiment(raw_normalization="percentile")
    other = experiment("other", raw_normalization="percentile")
    path = checkpoint_of(other, "one")
    saved = torch.load(path, weights_only=True)
    (scaling,) = saved["raw_scalings"].values()
    # as of a volume of which less was there in training
    scaling["low"] += 0.2
    torch.save(saved, path)
    np.testing.assert_array_equal(
        predicted(tiny, path, into="here"), predicted(other, path, into="there")
    )
    (group,) = tiny.folder.glob("predictions/*/here/*/crop3/er")
    assert read_prediction(group).raw_scaling == scaling


def test_weights_and_hash_are_of_one_file_where_a_run_replaces_it(tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    newer = tmp_path / "newer.pt"
    torch.save({"weight": torch.zeros(1)}, path)
    torch.save({"weight": torch.ones(1)}, newer)
    original = weights_file.read

    def read_and_replaced(path):
        saved = original(path)
        if newer.exists():
            newer.replace(path)
        return saved

    monkeypatch.setattr(weights_file, "read", read_and_replaced)
    saved, digest = ensemble._read(path)
    assert saved["weight"] == 1 and digest == sha256_of_file(path)


def test_what_is_there_is_known_by_all_its_checkpoints(seeds, capfd):
    tiny, first, second = seeds
    predicted(tiny, first, second, into="both")
    capfd.readouterr()
    predicted(tiny, second, first, into="both")
    assert "already there" in capfd.readouterr().err
    third = checkpoint_of(tiny, "the third")
    with pytest.raises(UserError, match=r"both.*mean of 2 networks.*--overwrite"):
        predicted(tiny, first, third, into="both")
    with pytest.raises(UserError, match="mean of 2 networks"):
        predicted(tiny, first, into="both")


def test_records_and_scores_name_all_networks(seeds):
    tiny, first, second = seeds
    predicted(tiny, first, second, into="both")
    group = tiny.folder / "predictions/tiny_experiment/both/tiny.zarr/crop3/mito"
    record = read_prediction(group)
    assert record is not None and record.members is not None
    assert {member["checkpoint"] for member in record.members} == {str(first), str(second)}
    assert len({member["sha256"] for member in record.members}) == 2
    assert record.run_name == "both" and record.epoch is None
    process(tiny.folder, data=tiny.data, overrides=["run_name=both"])
    evaluate(tiny.folder, data=tiny.data, overrides=["run_name=both"], say=lambda _: None)
    (path,) = tiny.folder.rglob("scores.json")
    (scored,) = json.loads(path.read_text())["provenance"]["checkpoints"]
    assert scored["networks"] == 2
    assert str(first) in scored["checkpoint"] and str(second) in scored["checkpoint"]
    assert "one epoch" in scored["metric"] and "second epoch" in scored["metric"]


def test_prediction_asks_for_no_published_weights(experiment):
    """Those of the checkpoint are all that there are: a node of a cluster may be offline."""
    tiny = experiment()
    path = tiny.train().checkpoint
    model = (tiny.folder / "model.py").read_text()
    asked = "    assert not published.are_wanted()\n    return"
    tiny.write(
        "model.py", "from common.model import published\n" + model.replace("    return", asked)
    )
    assert predicted(tiny, path, into="offline").any()


def test_crops_that_a_network_was_trained_on_are_noted(experiment, capfd):
    tiny = experiment()
    text = (tiny.folder / "datasplit.csv").read_text()
    rows = text.splitlines()
    # a second fold, in which the crop that validates here trains
    swapped = [rows[0].replace("train", "validate"), rows[1], rows[2].replace("validate", "train")]
    (tiny.folder / "fold2.csv").write_text("\n".join(swapped) + "\n")
    first = checkpoint_of(tiny, "fold1")
    second = checkpoint_of(tiny, "fold 2", datasplit_path="fold2.csv")
    capfd.readouterr()
    predicted(tiny, first, second, into="both")
    notes = [line for line in capfd.readouterr().err.splitlines() if "was trained on" in line]
    assert len(notes) == 1
    assert str(second) in notes[0] and "tiny/crop3" in notes[0]
    written = tiny.config("run_name=both").path("predictions_path") / "tiny.zarr/crop3/mito"
    assert read_prediction(written).trained_on is True
    (tiny.folder / "fold2.csv").unlink()
    predicted(tiny, second, first, into="both", overwrite=True)
    assert f"{second}: its datasplit is not there any more" in capfd.readouterr().err


def test_nan_names_the_network_that_gave_it(seeds):
    tiny, first, second = seeds
    saved = torch.load(second, weights_only=True)
    for weight in saved["model"].values():
        weight.fill_(torch.nan)
    torch.save(saved, second)
    with pytest.raises(UserError, match=rf"^{second}: the network gives NaN"):
        predicted(tiny, first, second, into="both")


def test_the_same_weights_twice_are_refused(seeds, tmp_path):
    tiny, first, _ = seeds
    copied = shutil.copy(first, tmp_path / "copy.pt")
    with pytest.raises(UserError, match=r"copy\.pt: the same weights as .*best\.pt"):
        predicted(tiny, first, copied, into="both")


def test_other_voxels_are_refused(seeds, experiment):
    tiny, first, _ = seeds
    coarse = experiment("coarse", **arrays(12, 8, scale=16))
    path = checkpoint_of(coarse, "coarse")
    with pytest.raises(UserError, match=r"voxels of 16 nm, and that of .* of 8 nm"):
        predicted(tiny, first, path, into="both")


def test_other_classes_are_refused(seeds, experiment):
    tiny, first, _ = seeds
    other = experiment("other", classes=("mito", "er"))
    path = checkpoint_of(other, "other")
    with pytest.raises(UserError, match=r"has the classes mito, er, and .*mito, er, nuc"):
        predicted(tiny, first, path, into="both")


def test_the_command_line_takes_several(seeds, run):
    tiny, first, second = seeds
    words = ["predict", tiny.folder, "--data", tiny.data, "--set", "run_name=both"]
    code, out, err = run(*words, "--checkpoint", first, "--checkpoint", second)
    assert code == 0 and "the mean probability of 2 networks" in err
    assert out.strip().endswith("both/tiny.zarr/crop3")
