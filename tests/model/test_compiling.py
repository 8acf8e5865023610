"""The network by torch.compile: what it shares, what it gives, and going on without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.model import compiling
from common.model.compiling import try_compiling
from common.model.forward import ForwardPass
from common.runtime import Precision

FORWARD = ForwardPass(Precision("fp32", "cpu"), channels_last=False)


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Everything but writing code: that takes half a minute."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 1)]
    return nn.Sequential(*layers)


def gradients(model: nn.Module, forward: ForwardPass, raw: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    forward(model, raw).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def test_a_compiled_network_gives_the_same_logits_and_gradients():
    model = network()
    raw = torch.rand(2, 1, 8, 8, 8)
    forward, sentence = try_compiling(FORWARD, model, torch.zeros_like(raw))
    assert not sentence and forward.learning is not None
    torch.testing.assert_close(forward(model, raw), FORWARD(model, raw))
    found = gradients(model, forward, raw)
    torch.testing.assert_close(found, gradients(model, FORWARD, raw))


def test_trying_leaves_weights_names_statistics_gradients_and_random_numbers():
    model = network().append(nn.Dropout(0.5))  # which draws
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    try_compiling(FORWARD, model, torch.zeros(2, 1, 8, 8, 8))
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(drawn, torch.get_rng_state())


def test_only_what_learns_goes_through_the_compiled_network():
    class Marked(nn.Module):
        def forward(self, raw):
            return raw + 1

    forward = ForwardPass(Precision("fp32", "cpu"), channels_last=False, learning=Marked())
    raw = torch.zeros(1, 1, 2, 2, 2)
    assert forward(nn.Identity(), raw).sum() == 8
    with torch.no_grad():
        assert forward(nn.Identity(), raw).sum() == 0


def test_without_a_compiler_the_network_goes_on_as_it_is(monkeypatch):
    def refuse(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiling, "BACKEND", refuse)
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    forward, sentence = try_compiling(FORWARD, model, torch.zeros(2, 1, 8, 8, 8))
    assert forward is FORWARD
    assert "No working C++ compiler found" in sentence and "compile = False" in sentence
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_the_code_that_torch_writes_gives_the_same_gradients(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    model = network()
    raw = torch.rand(2, 1, 8, 8, 8)
    forward, sentence = try_compiling(FORWARD, model, torch.zeros_like(raw))
    assert not sentence
    found = gradients(model, forward, raw)
    torch.testing.assert_close(found, gradients(model, FORWARD, raw), rtol=1e-4, atol=1e-6)


def test_a_run_that_is_compiled_goes_on_as_if_it_had_not_stopped(experiment):
    tiny = experiment(compile=True)

    def weights(result):
        return torch.load(result.checkpoint.parent / "latest.pt", weights_only=True)["model"]

    whole = weights(tiny.train(epochs=3, run_name="whole"))
    tiny.train(epochs=2, run_name="parts")
    parts = weights(tiny.train(epochs=3, run_name="parts"))
    plain = weights(tiny.train(epochs=3, run_name="plain", compile=False))
    assert list(whole) == list(plain)
    for name, value in whole.items():
        assert torch.equal(value, parts[name])
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-4)


def test_a_run_says_that_it_is_not_compiled(experiment, monkeypatch, capsys):
    def refuse(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiling, "BACKEND", refuse)
    experiment(compile=True).train()
    printed = capsys.readouterr()
    assert "the network cannot be compiled" in printed.out + printed.err
