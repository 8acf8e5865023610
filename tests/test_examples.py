"""The examples that the phantom trains: what they build, and what their losses are given."""

from __future__ import annotations

import pytest
import torch

from common.config.load import load_config
from common.data.samples.targets import dense
from common.files import REPOSITORY
from common.train.losses import heads

KWARGS = {"axons_vgg16": {"model_kwargs": {"weights": "random"}}}
CHANNELS = {
    "nf1_boundary": ("mito", "inner", "boundary", "background"),
    "axons_unet3d": ("mito", "background", "border"),
    "axons_vgg16": ("mito", "background", "border"),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_the_network_gives_the_channels_on_the_target_and_the_loss_takes_them(name):
    config = load_config(REPOSITORY / "examples" / name, **KWARGS.get(name, {}))
    assert config.channels == CHANNELS[name]
    torch.manual_seed(0)
    model = config.build_model(config.channels, **config.model_kwargs)
    logits = model(torch.rand(2, 1, *config.input_array_info["shape"]))
    assert logits.shape == (2, len(config.channels), *config.target_array_info["shape"])
    # the first channel is true everywhere
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    loss = heads.build(config, torch.device("cpu"))
    value = loss(logits, dense(labels), None)
    value.backward()
    assert value.isfinite() and value > 0
    assert model.get_parameter(last_weight(model)).grad.abs().sum() > 0


def last_weight(model: torch.nn.Module) -> str:
    return [name for name, _ in model.named_parameters() if name.endswith("weight")][-1]
