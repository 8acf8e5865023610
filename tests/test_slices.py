"""A 2-D network from its training to its score, by the commands."""

from __future__ import annotations

import json

import pytest
import torch

from common.data.samples import loaders
from common.score.whole_crops import of_run
from common.train.recording.record import read_history

MONAI = """
    from monai.networks.nets import BasicUNet


    def build_model(classes):
        return BasicUNet(2, 1, len(classes), features=(4, 4, 4, 8, 8, 4))
    """
PLAIN = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, len(classes), 1)
        )
    """
PUBLIC_TRANSFORMS = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5}},
    "transpose": {"axes": ["x", "y"]},
    "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180]}},
}
"""Those that the public toolbox takes for slices, which here cut oblique ones."""


@pytest.fixture
def slices(experiment):
    """An experiment with patches of one voxel along an axis."""

    def make(model: str, shape: tuple[int, ...], **settings):
        info = {"shape": shape, "scale": (8, 8, 8)}
        return experiment(
            files={"model.py": model}, input_array_info=info, target_array_info=info, **settings
        )

    return make


@pytest.mark.filterwarnings("ignore:Call to deprecated")
def test_a_network_of_monai_goes_from_training_to_a_score(slices, run):
    tiny = slices(
        MONAI,
        (1, 32, 32),
        spatial_transforms=PUBLIC_TRANSFORMS,
        epochs=1,
        iterations_per_epoch=2,
    )
    data = ("--data", tiny.data)
    for words in (["train"], ["predict", "--planes", "all"]):
        code, _, said = run(words[0], tiny.folder, *data, *words[1:])
        assert code == 0, said
    assert "in planes across z, y and x" in " ".join(said.split())
    assert run("process", tiny.folder, *data)[0] == 0
    code, _, said = run("evaluate", tiny.folder, *data)
    assert code == 0, said
    (scores,) = tiny.folder.glob("results/**/scores.json")
    assert set(json.loads(scores.read_text())["classes"]) == {"mito", "er", "nuc"}


@pytest.mark.parametrize("shape", [(1, 20, 20), (20, 1, 20), (20, 20, 1)])
def test_a_run_on_slices_is_continued_exactly_and_scores_whole_crops(slices, shape):
    everywhere = {
        "mirror": {"axes": {"z": 0.5, "y": 0.5, "x": 0.5}},
        "transpose": {"axes": ["z", "y", "x"]},
    }
    tiny = slices(
        PLAIN, shape, spatial_transforms=everywhere, validation_score_every=2, noise_std=0.05
    )
    whole = tiny.train(epochs=2, run_name="whole", score=of_run)
    tiny.train(epochs=1, run_name="parts", score=of_run)
    parts = tiny.train(epochs=2, run_name="parts", num_workers=2, score=of_run)
    states = []
    for result in (whole, parts):
        assert read_history(result.logs)["validation/challenge"].notna().any()
        saved = torch.load(result.checkpoint.parent / "latest.pt", weights_only=True)
        states.append(saved["model"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_slices_of_a_cubic_volume_are_the_same_across_each_axis(slices):
    """Transposed patches across z are those that a network across another axis gets."""
    tiny = slices(PLAIN, (1, 20, 20), spatial_transforms={"transpose": {"axes": ["z", "y", "x"]}})
    config = tiny.config()
    data = loaders.open_data(config)
    flat = set()
    for number in range(20):
        orientation = data.sampler.draw(number).orientation
        flat.add(int(abs(orientation[:, 0]).argmax()))
    assert flat == {0, 1, 2}
