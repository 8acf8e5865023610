"""A 2-D network over neighbouring sections: by hand, in prediction, and across all axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CROPS
from torch import nn

from common.data.volumes.ngff import open_levels
from common.errors import UserError
from common.infer import predict
from common.infer.networks import ensemble, planes
from common.infer.networks.network import network_of
from common.model.build import build_model
from common.model.forward import ForwardPass
from common.model.sections import Sections
from common.runtime import Precision
from tests.volumes import values

MODEL = """
    from torch import nn

    from common.model.sections import Sections


    def build_model(classes):
        layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, len(classes), 1)]
        return Sections(nn.Sequential(*layers), 3)
    """
PATCH = {
    "input_array_info": {"shape": (3, 16, 12), "scale": (8, 8, 8)},
    "target_array_info": {"shape": (1, 16, 12), "scale": (8, 8, 8)},
}


def test_each_section_gets_its_neighbours_as_channels():
    network = nn.Conv2d(5, 2, 3, padding=1)
    raw = torch.rand(2, 1, 7, 8, 9)
    found = Sections(network, 5)(raw)
    assert found.shape == (2, 2, 3, 8, 9)
    for centre in range(3):
        expected = network(raw[:, 0, centre : centre + 5])
        assert torch.allclose(found[:, :, centre], expected, atol=1e-6)


@pytest.mark.parametrize("sections", [1, 4])
def test_a_number_of_sections_without_a_centre_is_told(sections):
    with pytest.raises(UserError, match=f"sections = {sections}: .* write an odd number from 3"):
        Sections(nn.Conv2d(sections, 1, 1), sections)


@pytest.mark.parametrize(
    ("raw", "target", "sentence"),
    [
        (
            (1, 16, 12),
            (1, 16, 12),
            r"takes 3 sections .* write input_array_info\['shape'\] = \(3, y",
        ),
        ((2, 16, 12), (1, 16, 12), r"input shape \(2, 16, 12\): the network takes 3 sections"),
        ((3, 16, 12), (3, 16, 12), r"write target_array_info\['shape'\] = \(1, 16, 12\)"),
    ],
)
def test_a_patch_of_other_sections_is_told(experiment, raw, target, sentence):
    patch = {
        name: {**PATCH[name], "shape": shape}
        for name, shape in (("input_array_info", raw), ("target_array_info", target))
    }
    tiny = experiment(files={"model.py": MODEL}, **patch)
    with pytest.raises(UserError, match=sentence):
        build_model(tiny.config(), torch.device("cpu"))


def test_it_trains_and_every_section_is_predicted_as_the_centre_of_a_window(experiment):
    valid = MODEL.replace(", padding=1", "")
    patch = PATCH | {"target_array_info": {"shape": (1, 14, 10), "scale": (8, 8, 8)}}
    tiny = experiment(files={"model.py": valid}, epochs=1, **patch)
    tiny.train()
    (folder,) = predict.predict(tiny.folder, data=tiny.data, content="logits", dtype="float32")
    found = values(folder)
    network = ensemble.load_network(tiny.config())
    assert network.window.steps[0] == (1, 1)
    start = np.array(CROPS["crop3"][1])
    block = open_levels(tiny.raw)[0].read(start - 1, start + np.array(found.shape[1:]) + 1)
    with torch.no_grad():
        logits = network.model(torch.from_numpy(block)[None, None].float() / 255)
    np.testing.assert_allclose(found, logits[0].numpy(), atol=1e-5)


def test_across_another_axis_it_is_the_network_on_turned_raw(experiment):
    tiny = experiment(files={"model.py": MODEL}, **PATCH)
    config = tiny.config()
    torch.manual_seed(0)
    model = build_model(config, torch.device("cpu")).eval()
    forward = ForwardPass(Precision("fp32", "cpu"), channels_last=False)
    network = network_of(config, model, forward, record=None, scalings={})
    turned = planes.with_planes(network, "all").planes
    shapes = [(one.window.input.shape, one.window.output.shape) for one in turned]
    assert shapes == [
        ((3, 16, 12), (1, 16, 12)),
        ((16, 3, 12), (16, 1, 12)),
        ((16, 12, 3), (16, 12, 1)),
    ]
    raw = torch.rand(1, 1, 16, 12, 3)
    with torch.no_grad():
        found = turned[2].forward(raw)
        expected = model(raw.permute(0, 1, 4, 2, 3)).permute(0, 1, 3, 4, 2)
    assert torch.allclose(found, expected, atol=1e-6)
    assert planes.with_planes(network, "own") is network
    assert planes.with_planes(network, "auto").planes
