"""The moving average of the weights: as by hand, resumed, and what validates and predicts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.infer.networks.from_checkpoint import load_checkpoint
from common.train.checkpointing import checkpoint
from common.train.optimising import average
from common.train.setup import prepare
from common.train.validation import validate

WITH_NORM = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(
            nn.Conv3d(1, 8, 3),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.Conv3d(8, 8, 3),
            nn.ReLU(),
            nn.Conv3d(8, len(classes), 1),
        )
    """


ADAM = """
    from torch.optim import AdamW as optimizer
    """
"""Its first steps are as long as all others; RAdam's are hardly any."""


def latest(result) -> dict:
    return torch.load(result.checkpoint.with_name("latest.pt"), weights_only=True)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))


def test_the_average_is_that_of_a_loop_by_hand():
    model = network()
    ema = average.new_average(SimpleNamespace(ema_decay=0.5, folder="x"), model)
    # 2 / 11, 3 / 12, ..., and never above the setting
    decays = [None, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]
    expected: dict[str, torch.Tensor] = {}
    for decay in decays:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(2, 1, 3, 3, 3))  # moves the running mean and variance
        ema.update_parameters(model)
        for name, tensor in model.state_dict().items():
            now = tensor.double()
            if decay is None:
                expected[name] = now
            else:
                expected[name] = decay * expected[name] + (1 - decay) * now
    found = average.averaged_weights({"ema": ema.state_dict()})
    counter = "1.num_batches_tracked"
    assert found.pop(counter) == model.state_dict()[counter] == len(decays)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_average_of_a_long_run_has_the_decay_of_the_setting():
    assert average.decay_after(1_000_000, 0.999) == 0.999
    assert average.decay_after(90, 0.999) == 0.91


def test_it_leaves_the_trained_weights_as_they_are(experiment):
    tiny = experiment(files={"model.py": WITH_NORM})
    without = latest(tiny.train(run_name="without"))
    averaged = latest(tiny.train(run_name="with", ema_decay=0.9))
    assert without["ema"] is None
    assert same(without["model"], averaged["model"])
    assert not same(averaged["model"], average.averaged_weights(averaged))


def test_the_average_validates_is_the_best_and_predicts(experiment):
    tiny = experiment(files={"model.py": WITH_NORM}, text=ADAM)
    result = tiny.train(ema_decay=0.9, epochs=1)
    config = tiny.config(ema_decay=0.9)
    saved = checkpoint.load(result.checkpoint, config.classes)
    network = load_checkpoint(config, result.checkpoint, saved).forward.args[0]
    assert same(network.state_dict(), average.averaged_weights(saved))
    # validated once more, with the weights as they predict and as they are trained
    losses = []
    for trained in (False, True):
        setup, state = prepare(tiny.config())
        checkpoint.load_weights(state.model, saved, result.checkpoint, trained=trained)
        losses.append(validate(state, setup.method, setup.validation, lambda: False).loss)
    assert losses[0] == pytest.approx(result.scores.loss, rel=1e-6)
    assert abs(losses[1] - losses[0]) > 1e-4


def test_a_run_with_an_average_equals_its_parts_bit_for_bit(experiment):
    tiny = experiment(files={"model.py": WITH_NORM}, ema_decay=0.9)
    whole = tiny.train(epochs=4, run_name="whole")
    tiny.train(epochs=2, run_name="parts")
    parts = tiny.train(epochs=4, run_name="parts")
    assert same(latest(whole)["model"], latest(parts)["model"])
    assert same(latest(whole)["ema"], latest(parts)["ema"])
    assert whole.scores.loss == parts.scores.loss


def test_a_run_may_begin_and_end_to_average(experiment, capsys):
    tiny = experiment()
    tiny.train()
    begun = latest(tiny.train(epochs=3, ema_decay=0.9))
    assert "the weights are averaged from here on" in capsys.readouterr().err
    assert begun["ema"]["n_averaged"] == 3  # the steps of one epoch
    assert latest(tiny.train(epochs=4))["ema"] is None
    assert "the weights are no longer averaged" in capsys.readouterr().err


def test_a_checkpoint_from_before_there_were_averages_goes_on(experiment):
    tiny = experiment()
    path = tiny.train().checkpoint.with_name("latest.pt")
    saved = torch.load(path, weights_only=True)
    del saved["ema"], saved["settings"]["ema_decay"]
    torch.save(saved, path)
    assert tiny.train(epochs=3).epochs == 3
    load_checkpoint(tiny.config(), path, saved)


def test_a_run_that_starts_from_a_checkpoint_takes_its_average(experiment):
    tiny = experiment(text=ADAM)
    first = tiny.train(ema_decay=0.9)
    started = tiny.train(
        run_name="other",
        load_model=str(first.checkpoint),
        learning_rate=1e-9,
        weight_decay=0.0,
        ema_decay=0.9,
        epochs=1,
    )
    best = torch.load(first.checkpoint, weights_only=True)
    averaged = average.averaged_weights(best)
    for found in (latest(started)["model"], average.averaged_weights(latest(started))):
        for name, tensor in averaged.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    assert not torch.allclose(averaged["0.weight"], best["model"]["0.weight"], atol=1e-5)


class Computed(nn.Module):
    """Has a weight that is computed from another, as the old weight_norm leaves it."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.ones(2))
        self.weight = self.own * 2


def test_a_network_that_cannot_be_copied_is_told():
    config = SimpleNamespace(ema_decay=0.9, folder="experiment")
    with pytest.raises(UserError, match=r"^experiment: ema_decay = 0.9 needs a copy.*= 0, or"):
        average.new_average(config, Computed())
