"""Networks that end in an activation are told from those that give logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common import runtime
from common.model import activation
from common.model.forward import ForwardPass


class Network(nn.Module):
    """A convolution, then `last`; only in eval mode if `in_eval`."""

    def __init__(self, last, in_eval: bool = False):
        super().__init__()
        self.convolution = nn.Conv3d(1, 3, 3)
        self.norm = nn.BatchNorm3d(3)
        self.last = last
        self.in_eval = in_eval

    def forward(self, raw):
        logits = self.norm(self.convolution(raw))
        if self.in_eval and self.training:
            return logits
        return self.last(logits)


def notice(model: nn.Module) -> str:
    forward = ForwardPass(runtime.Precision("fp32", "cpu"), channels_last=True)
    return activation.notice(model, forward.outputs, (8, 8, 8))


@pytest.mark.parametrize(
    ("last", "name"),
    [
        (nn.Sigmoid(), "a sigmoid"),
        (torch.sigmoid, "a sigmoid"),
        (lambda logits: torch.sigmoid(logits)[:, :, 1:-1].double(), "a sigmoid"),
        (lambda logits: [logits.softmax(1), logits], "a softmax"),
        (nn.LogSoftmax(1), "a log-softmax"),
        (nn.functional.logsigmoid, "a log-sigmoid"),
        (nn.ReLU(inplace=True), "a ReLU"),
    ],
)
def test_an_activation_at_the_end_is_named(last, name):
    assert f"ends in {name}, and" in notice(Network(last))


def test_an_activation_in_eval_mode_alone_is_named_and_the_network_stays_as_it_is():
    model = Network(torch.sigmoid, in_eval=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "ends in a sigmoid in eval mode" in notice(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_frozen_weights_hide_no_activation():
    assert "a sigmoid" in notice(Network(torch.sigmoid).requires_grad_(False))


@pytest.mark.parametrize("last", [nn.Identity(), lambda x: x.sigmoid() * 4 - 2, nn.Conv3d(3, 3, 1)])
def test_logits_are_passed_without_a_word(last):
    assert notice(Network(last)) == ""


def test_a_network_that_needs_values_is_passed_over():
    assert notice(Network(lambda logits: logits * float(logits.mean()))) == ""


def test_training_says_it_once_and_goes_on(experiment, capsys):
    model = """
        from torch import nn


        def build_model(classes):
            return nn.Sequential(nn.Conv3d(1, len(classes), 5), nn.Sigmoid())
        """
    tiny = experiment(files={"model.py": model}, init_output_to_prior=False)
    assert tiny.train().epochs == 2
    assert capsys.readouterr().err.count("the network ends in a sigmoid") == 1
