"""What of a network must be as it was in training."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from torch import nn

from common.config.as_text import as_text
from common.config.given import GivenModel
from common.config.value_transforms import InputTransforms
from common.errors import UserError
from common.infer.networks.from_checkpoint import _refuse_other_input


def build(classes, slope=0.0): ...


def other_name(classes, slope=0.0): ...


def given(activation: nn.Module, scale: float = 1.0) -> GivenModel:
    model = GivenModel(nn.Sequential(nn.Conv3d(1, 3, 5), activation))
    transform = nn.Hardtanh(0.0, scale)
    model.input_transforms = InputTransforms([transform], [transform])
    return model


@pytest.mark.parametrize(
    ("trained", "now", "is_same"),
    [
        (build, other_name, True),
        (functools.partial(build, slope=0.1), functools.partial(build, slope=0.1), True),
        # weights fit whatever the slope
        (functools.partial(build, slope=0.1), functools.partial(build, slope=0.2), False),
        (build, functools.partial(build, slope=0.2), False),
        (given(nn.ReLU()), given(nn.ReLU()), True),
        (given(nn.ReLU()), given(nn.ReLU(), scale=2.0), False),
        (given(nn.ReLU()), given(nn.Tanh()), False),
    ],
)
def test_a_network_that_is_given_other_arguments_or_input_is_refused(
    experiment, trained, now, is_same
):
    tiny = experiment()
    recorded = tiny.config(build_model=trained).record()
    config = tiny.config(build_model=now)
    if is_same:
        _refuse_other_input(Path("best.pt"), recorded, config)
        return
    with pytest.raises(UserError, match=r"best.pt: trained with other settings \(build_model was"):
        _refuse_other_input(Path("best.pt"), recorded, config)


def test_a_record_without_build_model_says_nothing(experiment):
    config = experiment().config()
    recorded = config.record()
    del recorded["build_model"]
    _refuse_other_input(Path("best.pt"), recorded, config)
    assert as_text(config.build_model) == "model.build_model"
