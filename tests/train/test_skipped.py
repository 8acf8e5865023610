"""Steps whose numbers are bad: skipped without a trace, counted, replayed, and too many of them."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from common.data.samples.batches import Batch
from common.errors import NotFinite
from common.model.forward import ForwardPass
from common.runtime import Precision
from common.train import skipped, steps
from common.train.checkpointing import checkpoint
from common.train.recording.record import read_history
from common.train.setup import prepare
from common.train.state import Method, State, StepResult
from tests.train.test_continuation import (
    MODEL,
    SCHEDULE,
    assert_equal_ends,
    events_of,
    is_equal,
    state_of,
    stop_when,
)
from tests.train.test_together import in_processes, train_all, words_of

FP32 = Precision("fp32", "cpu")


class MeanSquare(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, logits, target, pos_weight):
        self.calls += 1
        return (logits - target.float()).square().mean()


def root_of_zero(logits, target, pos_weight):
    """0, whose derivative is 0 x infinity."""
    return (logits * 0).abs().sqrt().mean()


def new_state(scaler: torch.amp.GradScaler | None = None) -> State:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Conv3d(2, 2, 1))
    return State(
        model,
        torch.optim.Adam(model.parameters(), 0.1),
        None,
        scaler or FP32.scaler(),
        criterion=MeanSquare(),
        ema=torch.optim.swa_utils.AveragedModel(model, use_buffers=True),
    )


def take(state: State, *batches: Batch, criterion=None) -> StepResult:
    method = Method(
        criterion=criterion or state.criterion,
        pos_weight=None,
        forward=ForwardPass(FP32, channels_last=False),
        max_grad_norm=0.0,
    )
    return steps.step(state, method, list(batches))


def batch_of(seed: int, value: float = 0.5) -> Batch:
    """Two patches with a voxel of this value."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(2, 1, 5, 5, 5, generator=generator)
    raw[0, 0, 2, 2, 2] = value
    target = torch.randint(0, 2, (2, 2, 3, 3, 3), generator=generator, dtype=torch.int8)
    return Batch(raw, target, ["a/crop1", "a/crop2"])


def everything(state: State) -> list[dict]:
    parts = (state.model, state.optimizer, state.criterion, state.ema, state.scaler)
    return copy.deepcopy([part.state_dict() for part in parts])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_bad_batch_of_a_group_leaves_no_trace_of_the_step(value):
    """1e30 makes an infinite running variance alone. A good batch comes before it."""
    state = new_state()
    undisturbed = new_state()
    for every in (state, undisturbed):
        assert not take(every, batch_of(0)).is_skipped
    before = everything(state)
    assert take(state, batch_of(1), batch_of(2, value)).is_skipped
    assert is_equal(everything(state), before)
    assert all(parameter.grad is None for parameter in state.model.parameters())
    for every in (state, undisturbed):
        take(every, batch_of(3))
    assert is_equal(everything(state), everything(undisturbed))


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_bad():
    state = new_state()
    before = everything(state)
    result = take(state, batch_of(0), criterion=root_of_zero)
    assert result.numbers.loss == 0
    assert result.is_skipped
    assert is_equal(everything(state), before)


def test_a_gradient_that_overflows_only_since_it_is_scaled_is_left_to_the_scaler():
    """As in the first steps in fp16, with a factor that float32 does not take either."""
    state = new_state(torch.amp.GradScaler("cpu", init_scale=2.0**127))
    weights = copy.deepcopy(state.model.state_dict())
    result = take(state, batch_of(0))
    assert math.isinf(result.numbers.grad_norm) or math.isnan(result.numbers.grad_norm)
    assert not result.is_skipped
    assert state.scaler.get_scale() == 2.0**126
    assert state.ema.n_averaged == 0
    assert torch.equal(state.model[0].weight, weights["0.weight"])
    for _ in range(30):
        assert not take(state, batch_of(0)).is_skipped
    assert not torch.equal(state.model[0].weight, weights["0.weight"])


def test_a_gradient_that_overflows_by_itself_is_bad_in_fp16_too():
    state = new_state(torch.amp.GradScaler("cpu", init_scale=4.0))
    found = []
    scales = []
    for _ in range(5):
        found.append(take(state, batch_of(0), criterion=root_of_zero).is_skipped)
        scales.append(state.scaler.get_scale())
    assert found == [False, False, False, True, True]
    assert scales == [2.0, 1.0, 0.5, 0.5, 0.5]


def test_bad_data_do_not_change_the_factor_of_the_scaler():
    state = new_state(torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert take(state, batch_of(0, math.nan)).is_skipped
    assert state.scaler.get_scale() == 1024.0


# A run

SOME_ARE_BAD = """
    import torch


    def augment(raw, generator):
        is_tried = generator.initial_seed() == 1  # before training, when nothing may be bad
        if torch.rand(1, generator=generator) < {fraction} and not is_tried:
            raw[0, 3, 4, 5] = float("nan")
        return raw
    """
"""Which samples are bad depends on their numbers alone, as with data that are bad."""


@pytest.fixture
def tiny(experiment, monkeypatch):
    """Two epochs of six steps, of two batches of two samples each."""
    monkeypatch.setattr(steps, "LOG_EVERY", 2)

    def make(fraction: float, **settings):
        given = {"gradient_accumulation_steps": 2, "ema_decay": 0.9, **settings}
        return experiment(
            files={"model.py": MODEL},
            text=SOME_ARE_BAD.format(fraction=fraction) + SCHEDULE.replace("import torch", ""),
            iterations_per_epoch=6,
            **given,
        )

    return make


def skipped_in(tiny, run: str) -> skipped.SkippedSteps:
    return skipped.read(tiny.config(run_name=run).path("logs_save_path") / skipped.SKIPPED)


def test_a_run_with_bad_samples_counts_them_and_goes_on_as_if_it_was_not_stopped(
    tiny, monkeypatch, capsys
):
    made = tiny(0.1)
    made.train(run_name="undisturbed")
    said = capsys.readouterr().err
    folder = made.config(run_name="undisturbed").path("logs_save_path")
    counts = read_history(folder)["train/skipped"].tolist()
    assert sum(counts) == len(skipped_in(made, "undisturbed").steps) == 6
    assert f"{counts[0]} steps skipped" in said
    assert said.count("the step is skipped") == 2  # once in an epoch
    logged = events_of(made, "undisturbed")
    assert logged[logged["tag"] == "skipped"]["value"].tolist() == counts
    assert state_of(made, "undisturbed")["skipped"] == 6

    for last in (2, 5, 9):
        with monkeypatch.context() as patch:
            iterations = []
            count = State.count_step

            def counted(self, result, iterations=iterations, count=count):
                count(self, result)
                iterations.append(self.iteration)

            patch.setattr(State, "count_step", counted)
            stop_when(patch, lambda last=last, iterations=iterations: last in iterations)
            assert not made.train(run_name="stopped", num_workers=1).finished
    assert made.train(run_name="stopped").finished
    assert_equal_ends(made, "stopped")
    assert skipped_in(made, "stopped") == skipped_in(made, "undisturbed")


def test_the_samples_of_a_skipped_step_are_those_of_its_batches(tiny):
    made = tiny(0.1)
    made.train()
    setup, _ = prepare(made.config())
    content = skipped.read(made.config().path("logs_save_path") / skipped.SKIPPED)
    assert content.random_seed == 42
    for step in content.steps:
        first = 4 * (step.iteration - 1)
        assert [sample.number for sample in step.samples] == [*range(first, first + 4)]
        for sample in step.samples:
            drawn = setup.data.sampler.draw(sample.number)
            assert sample.crop == setup.data.train[drawn.crop].name
            assert sample.centre_nm == drawn.centre.tolist()
            assert sample.orientation == drawn.orientation.tolist()


def test_too_many_in_a_row_end_the_run_with_the_weights_from_before_them(tiny, run):
    made = tiny(1.0, skipped_steps_limit=4, ema_decay=0.0)
    code, _, said = run("train", made.folder, "--data", made.data)
    assert code == 2
    assert "iteration 4: loss nan" in said
    assert "4 steps in a row" in said
    assert "replay" in said
    _, state = prepare(made.config())
    saved = state_of(made, "seed42")
    assert saved["iteration"] == 4
    assert is_equal(saved["model"], state.model.state_dict())
    # the same command tries as many again, so that mended data are gone on with
    code, _, said = run("train", made.folder, "--data", made.data)
    assert code == 2
    assert state_of(made, "seed42")["iteration"] == 8
    made.write(
        "train_config.py", (made.folder / "train_config.py").read_text().replace("< 1.0", "< 0.0")
    )
    result = made.train()
    assert result.finished
    assert read_history(result.logs)["train/skipped"].tolist() == [6, 2]


def test_an_epoch_of_bad_steps_alone_ends_the_run_however_short_it_is(tiny):
    with pytest.raises(NotFinite, match="6 steps in a row"):
        tiny(1.0, skipped_steps_limit=100).train()


def test_weights_that_are_not_finite_are_not_written_over_good_ones(tiny):
    made = tiny(0.0, ema_decay=0.0)
    made.add(
        """
        def optimizer(groups, lr, weight_decay):
            made = torch.optim.SGD(groups, lr)
            weight = groups[0]["params"][0]
            made.register_step_post_hook(lambda *_: weight.data.mul_(float("inf")))
            return made
        """
    )
    with pytest.raises(NotFinite, match="weights are not finite"):
        made.train()
    assert checkpoint.find(made.config().path("model_save_path"), "latest") is None


def test_the_file_keeps_the_last_steps_and_forgets_those_that_come_again(tmp_path, monkeypatch):
    monkeypatch.setattr(skipped, "MOST", 3)
    sample = skipped.SkippedSample(1, "a/crop1", [0.0, 0.0, 0.0], [[1.0, 0.0, 0.0]])
    for iteration in (1, 2, 5, 7, 5, 9):
        skipped.add(tmp_path, 1, skipped.SkippedStep(iteration, "loss nan", [sample]))
    kept = skipped.read(tmp_path / skipped.SKIPPED).steps
    assert [step.iteration for step in kept] == [2, 5, 9]


def test_a_damaged_file_is_no_reason_to_end_a_run(tmp_path, capsys):
    (tmp_path / skipped.SKIPPED).write_text('{"random_seed": 1, "steps": [{}]}')
    skipped.add(tmp_path, 1, skipped.SkippedStep(1, "loss nan", []))
    assert "cannot be read" in capsys.readouterr().err
    assert len(skipped.read(tmp_path / skipped.SKIPPED).steps) == 1


# replay


def test_replay_says_which_sample_and_that_it_is_the_raw(tiny, run):
    made = tiny(0.1)
    made.train()
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    step = skipped_in(made, "seed42").steps[-1]
    code, report, said = run("replay", made.folder, "--data", made.data)
    assert code == 0, said
    assert f"iteration {step.iteration}: loss nan" in report
    rows = [line for line in report.splitlines() if "(sample " in line]
    assert len(rows) == 16  # four steps of four samples
    bad = [row for row in rows if "(1 voxel not finite)" in row]
    assert 4 <= len(bad) < 16
    assert all("loss nan; not finite: mito, er, nuc" in row for row in bad)
    assert "the raw is not finite" in report
    assert "after iteration 12" in report
    assert before == {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}


def test_replay_names_the_layer_and_what_float32_gives(tiny, run, tmp_path):
    """A layer whose numbers bf16 rounds to infinity, and float32 does not."""
    made = tiny(0.0, precision="bf16", skipped_steps_limit=1, ema_decay=0.0)
    made.write(
        "model.py",
        """
        import torch
        from torch import nn


        class Large(nn.Module):
            def forward(self, x):
                return x + torch.full((1,), 3.4e38).to(x.dtype) / 3.4e38


        def build_model(classes):
            return nn.Sequential(nn.Conv3d(1, 4, 5), Large(), nn.Conv3d(4, len(classes), 1))
        """,
    )
    code, _, said = run("train", made.folder, "--data", made.data)
    assert code == 2, said
    assert "1 step in a row" in said
    picture = tmp_path / "bad.png"
    words = ("--data", made.data, "--iteration", "1", "--png", picture)
    code, report, said = run("replay", made.folder, *words)
    assert code == 0, said
    assert "first layer whose output is not finite: 1 (Large)" in report
    assert "finite in fp32" in report
    assert "not finite in fp32" not in report
    assert picture.stat().st_size > 100


def test_replay_refuses_what_is_not_what_it_was(tiny, run):
    made = tiny(0.1)
    code, _, said = run("replay", made.folder, "--data", made.data)
    assert code == 2
    assert "skipped.json: no such file" in said
    made.train()
    refusals = {
        ("--iteration", "99"): "write one of them",
        ("--set", "random_seed=7", "--set", "run_name=seed42"): "give --set random_seed=42",
        ("--set", "weighted_sampler=False"): "set back what changed",
        ("--checkpoint", "nowhere.pt"): "nowhere.pt: no such file; write --checkpoint FILE",
    }
    for words, sentence in refusals.items():
        code, _, said = run("replay", made.folder, "--data", made.data, *words)
        assert code == 2, words
        assert sentence in said, words
    _, _, said = run("replay", made.folder, "--data", made.data, "--set", "noise_std=0.1")
    assert "trained with other settings (noise_std was 0.0 and is 0.1); what is replayed" in said
    _, _, said = run("replay", made.folder, "--data", made.data)
    assert "other settings" not in said
    path = made.config().path("logs_save_path") / skipped.SKIPPED
    path.write_text(json.dumps({"random_seed": 42, "steps": [{"iteration": 1}]}))
    code, _, said = run("replay", made.folder, "--data", made.data)
    assert code == 2
    assert "cannot be read" in said


def test_a_dry_run_tells_bad_numbers(tiny, run):
    made = tiny(1.0)
    code, report, _ = run("train", made.folder, "--data", made.data, "--check")
    assert code == 0
    assert "loss or gradient is not finite" in report


def test_fields_of_a_skipped_step_are_what_is_written():
    """Whoever renames one makes old files unreadable."""
    names = [field.name for field in dataclasses.fields(skipped.SkippedStep)]
    assert names == ["iteration", "problem", "samples"]


# Several processes


def test_two_processes_skip_what_one_skips_and_write_the_samples_of_both(tiny, processes):
    made = tiny(0.1, ema_decay=0.0)
    made.train(run_name="one")
    calls = [words_of(made, run_name="two")]
    ended = in_processes(processes, made, 2, train_all, calls)
    assert ended.exit_codes == [0, 0], ended.said
    one, two = (skipped_in(made, run).steps for run in ("one", "two"))
    assert [step.samples for step in two] == [step.samples for step in one]
    assert [step.iteration for step in two] == [step.iteration for step in one]
    counts = [
        read_history(made.config(run_name=run).path("logs_save_path"))["train/skipped"].tolist()
        for run in ("one", "two")
    ]
    assert counts[0] == counts[1]
    saved = state_of(made, "two")["model"]
    assert all(tensor.isfinite().all() for tensor in saved.values())
