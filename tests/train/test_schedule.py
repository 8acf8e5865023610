"""The learning rate over the epochs: tried before training, followed by `epochs`, changed later."""

from __future__ import annotations

import csv
import functools
import math
import re

import pytest
import torch

from common.errors import UserError
from common.train.optimising.optim import build_optimizer, build_scheduler, step_scheduler

SCHEDULER = """
    import functools
    import torch
    from torch.optim.lr_scheduler import *

    scheduler = {}
    scheduler_kwargs = {}
    """


def with_scheduler(experiment, scheduler: str, kwargs: str = "{}", **settings):
    return experiment(text=SCHEDULER.format(scheduler, kwargs), **settings)


def rates(tiny, run: str = "seed42") -> list[float]:
    path = tiny.folder / f"logs/tiny_experiment/{run}/history.csv"
    with path.open(newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


def cosine(epoch: int, epochs: int) -> float:
    return 0.01 * (1 + math.cos(math.pi * epoch / epochs)) / 2


def without_validation(tiny):
    lines = (tiny.folder / "datasplit.csv").read_text().splitlines(keepends=True)
    tiny.write("datasplit.csv", "".join(line for line in lines if "validate" not in line))
    return tiny


# ---- what decides


PLATEAUS = ["ReduceLROnPlateau", "functools.partial(ReduceLROnPlateau, factor=0.1)"]


@pytest.mark.parametrize("scheduler", PLATEAUS)
def test_without_validation_the_falling_training_loss_keeps_the_rate(experiment, capsys, scheduler):
    tiny = with_scheduler(
        experiment, scheduler, "{'patience': 0}", epochs=4, iterations_per_epoch=20
    )
    without_validation(tiny).train()
    assert rates(tiny) == [0.01] * 4
    said = capsys.readouterr().err
    assert said.count("ReduceLROnPlateau goes by the training loss, the lower the better") == 1


def test_without_validation_early_stopping_goes_by_the_training_loss(experiment, capsys):
    tiny = without_validation(experiment(iterations_per_epoch=20, early_stopping_patience=1))
    assert tiny.train(epochs=4, run_name="learns").epochs == 4
    still = tiny.train(epochs=9, run_name="still", learning_rate=1e-30, weight_decay=0.0)
    assert still.epochs < 9
    assert "no better training loss for 1 epochs" in capsys.readouterr().err


NEVER_A_NUMBER = """
    import numpy

    metrics = {"odd": lambda tp, fp, fn, tn: numpy.full(3, numpy.nan)}
    best_metric = "odd"
    """


def test_epochs_without_a_metric_change_no_rate_and_stop_nothing(experiment, capsys):
    text = SCHEDULER.format("ReduceLROnPlateau", "{'patience': 0}") + NEVER_A_NUMBER
    tiny = experiment(text=text, epochs=4, early_stopping_patience=1)
    assert tiny.train().epochs == 4
    assert rates(tiny) == [0.01] * 4
    said = capsys.readouterr().err
    assert said.count("epoch 1 has odd nan: it and others like it decide nothing") == 1


SOMETIMES = """
    import numpy

    _calls = []


    def odd(tp, fp, fn, tn):
        _calls.append(1)
        # it is tried once before training
        return numpy.array([[9, 9, 9], [0.1, 0.1, 0.1], [0.9, numpy.nan, 0.9], [0.2, 0.2, 0.2],
                            [0.15, 0.15, 0.15]][len(_calls) - 1])


    metrics = {"odd": odd}
    best_metric = "odd"
    """


def test_a_mean_that_lost_a_class_is_not_the_best(experiment, capsys):
    """0.9 over two classes is no better than 0.2 over three."""
    from common.train.recording.record import best_epoch, read_history

    tiny = experiment(text=SOMETIMES, epochs=4)
    result = tiny.train()
    assert result.best_metric == pytest.approx(0.2)
    assert torch.load(result.checkpoint, weights_only=True)["epoch"] == 3
    assert best_epoch(read_history(result.logs), "odd") == 3
    assert "epoch 2 has no odd of er, as others have" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"scheduler_kwargs": {"mode": "min"}}, "'dice'.*the higher it is; write mode = 'max'"),
        (
            {"scheduler_kwargs": {"mode": "max"}, "best_metric": "loss"},
            "'loss'.*the lower it is; write mode = 'min'",
        ),
    ],
)
def test_a_plateau_that_takes_better_for_worse_is_refused(experiment, settings, wanted):
    tiny = with_scheduler(experiment, "ReduceLROnPlateau")
    with pytest.raises(UserError, match=wanted):
        tiny.train(**settings)


def test_a_plateau_is_not_stepped_without_a_value():
    optimizer = build_optimizer(torch.nn.Linear(2, 2), 0.1, 0.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    scheduler = build_scheduler(optimizer, plateau, {"patience": 0}, higher_is_better=True)
    for value in (0.5, math.nan, math.nan, 0.6):
        step_scheduler(scheduler, value)
    assert optimizer.param_groups[0]["lr"] == 0.1


# ---- how long it lasts


@pytest.mark.parametrize(
    ("scheduler", "kwargs"),
    [
        ("CosineAnnealingLR", "{}"),
        ("CosineAnnealingLR", "{'T_max': 2}"),
        ("functools.partial(CosineAnnealingLR, T_max=epochs)", "{}"),
    ],
)
def test_raised_epochs_make_the_schedule_longer_and_the_run_goes_on_on_it(
    experiment, capsys, scheduler, kwargs
):
    tiny = with_scheduler(experiment, scheduler, kwargs, epochs=2)
    tiny.train()
    assert rates(tiny) == pytest.approx([cosine(0, 2), cosine(1, 2)])
    capsys.readouterr()
    tiny.train("epochs=4")
    wanted = [cosine(0, 2), cosine(1, 2), cosine(2, 4), cosine(3, 4)]
    assert rates(tiny) == pytest.approx(wanted)
    assert "epoch 3 begins at learning rate 0.005 instead of" in capsys.readouterr().err


def test_one_cycle_follows_the_epochs_to_its_end(experiment):
    tiny = with_scheduler(experiment, "OneCycleLR", "{'max_lr': 0.01}", epochs=3)
    tiny.train()
    tiny.train("epochs=5")
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01, momentum=0.9)
    cycle = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=0.01, total_steps=5)
    wanted = []
    for _ in range(5):
        wanted.append(reference.param_groups[0]["lr"])
        reference.step()
        cycle.step()
    assert rates(tiny)[3:] == pytest.approx(wanted[3:])


def test_a_length_that_the_command_line_gives_stays(experiment):
    tiny = with_scheduler(experiment, "CosineAnnealingLR", "{'T_max': epochs}", epochs=2)
    assert tiny.config("epochs=4").scheduler_kwargs == {"T_max": 4}
    assert tiny.config("epochs=4", "scheduler_kwargs.eta_min=0.001").scheduler_kwargs["T_max"] == 4
    own = tiny.config("epochs=4", "scheduler_kwargs.T_max=2")
    assert own.scheduler_kwargs == {"T_max": 2}
    assert tiny.config(epochs=4, scheduler_kwargs={"T_max": 2}).scheduler_kwargs == {"T_max": 2}


@pytest.mark.parametrize(
    ("scheduler", "kwargs", "wanted"),
    [
        ("StepLR", {"step_size": 2}, {"step_size": 2}),
        ("LinearLR", {}, {}),  # a warm-up of 5 epochs
        ("LinearLR", {"total_iters": 3}, {"total_iters": 3}),
        ("PolynomialLR", {}, {"total_iters": 20}),
        ("CosineAnnealingLR", {"T_max": 7}, {"T_max": 7}),
        ("OneCycleLR", {"max_lr": 1.0}, {"max_lr": 1.0, "total_steps": 20}),
        (
            "OneCycleLR",
            {"max_lr": 1.0, "epochs": 5, "steps_per_epoch": 2},
            {"max_lr": 1.0, "epochs": 5, "steps_per_epoch": 2, "total_steps": 20},
        ),
        ("lambda optimizer, max_iters: StepLR(optimizer, max_iters)", {}, {"max_iters": 20}),
    ],
)
def test_only_a_length_that_is_left_out_or_equal_follows(experiment, scheduler, kwargs, wanted):
    tiny = with_scheduler(experiment, scheduler, repr(kwargs), epochs=10)
    assert tiny.config("epochs=20").scheduler_kwargs == wanted


def test_a_scheduler_that_would_raise_in_a_later_epoch_is_told_before_data_are_decoded(experiment):
    tiny = with_scheduler(experiment, "OneCycleLR", "{'max_lr': 1.0, 'total_steps': 3}", epochs=9)
    with pytest.raises(UserError, match=r"scheduler = .*OneCycleLR.*this ends epoch 4 of 9"):
        tiny.train()
    assert not tiny.config().path("cache_path").exists()


def test_an_error_of_the_users_own_scheduler_keeps_its_traceback(experiment):
    text = SCHEDULER.format("LambdaLR", "{'lr_lambda': lambda epoch: 1 / (2 - epoch)}")
    with pytest.raises(ZeroDivisionError):
        experiment(text=text, epochs=4).train()


@pytest.mark.parametrize(
    ("scheduler", "kwargs", "sentence"),
    [
        ("CosineAnnealingLR", "{'T_max': 2}", "rate is 0, and nothing is learnt, in epoch 3"),
        ("CosineAnnealingLR", "{'T_max': 2}", r"is 2 epochs long \(T_max\) and the run 4"),
        ("CosineAnnealingLR", "{'T_max': 4000}", r"is 4000 epochs long \(T_max\) and the run 4"),
        (
            "OneCycleLR",
            "{'max_lr': 0.1, 'epochs': 4, 'steps_per_epoch': 3}",
            r"is 12 epochs long \(total_steps\)",
        ),
        ("PolynomialLR", "{'total_iters': 2}", "nothing is learnt, in epoch 3 to 4"),
        ("LambdaLR", "{'lr_lambda': lambda epoch: -1.0}", "rate -0.01 in epoch 1"),
    ],
)
def test_an_unusual_schedule_is_told(experiment, scheduler, kwargs, sentence):
    from common.model.build import build_model
    from common.train.optimising import schedule

    config = with_scheduler(experiment, scheduler, kwargs, epochs=4).config()
    model = build_model(config, torch.device("cpu"))
    try:
        told = "\n".join(schedule.try_out(config, model))
    except UserError as error:
        told = str(error)
    assert re.search(sentence, told), told


@pytest.mark.parametrize(
    ("scheduler", "kwargs"),
    [
        ("CosineAnnealingLR", "{}"),
        ("OneCycleLR", "{'max_lr': 0.1}"),
        ("LinearLR", "{}"),
        ("StepLR", "{'step_size': 2}"),
        ("CosineAnnealingWarmRestarts", "{'T_0': 2}"),
        ("CyclicLR", "{'base_lr': 0.001, 'max_lr': 0.1}"),
        ("ReduceLROnPlateau", "{}"),
        (
            "lambda optimizer: SequentialLR(optimizer, [LinearLR(optimizer), "
            "CosineAnnealingLR(optimizer, 7)], [2])",
            "{}",
        ),
        ("LambdaLR", "{'lr_lambda': [lambda epoch: 0.9**epoch] * 2}"),
    ],
)
def test_an_ordinary_schedule_is_tried_without_a_word(experiment, scheduler, kwargs):
    from common.model.build import build_model
    from common.train.optimising import schedule

    config = with_scheduler(experiment, scheduler, kwargs, epochs=9).config()
    assert schedule.try_out(config, build_model(config, torch.device("cpu"))) == []


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (functools.partial(torch.optim.AdamW, lr=0.3), "lr = 0.3 of the functools.partial"),
        (
            lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr=0.5),
            "learning_rate = 0.01 has no effect: optimizer trains at 0.5",
        ),
        (functools.partial(torch.optim.AdamW, lr=0.01, betas=(0.8, 0.9)), ""),
    ],
)
def test_a_rate_that_is_written_and_not_trained_with_is_told(experiment, optimizer, told):
    from common.train.optimising import schedule

    config = experiment(learning_rate=0.01).config(optimizer=optimizer)
    sentences = schedule.try_out(config, torch.nn.Conv3d(1, 3, 1))
    assert len(sentences) == bool(told)
    assert told in "".join(sentences)


def test_a_continued_run_may_change_its_scheduler_and_says_what_changes(experiment, capsys):
    tiny = with_scheduler(experiment, "StepLR", "{'step_size': 1}", epochs=2)
    tiny.train()
    capsys.readouterr()
    tiny.train("epochs=4", "scheduler_kwargs.gamma=0.5")
    assert rates(tiny) == pytest.approx([0.01, 0.001, 0.0025, 0.00125])
    said = " ".join(capsys.readouterr().err.split())
    assert "scheduler_kwargs was {'step_size': 1} and is {'step_size': 1, 'gamma': 0.5}" in said
    assert "epoch 3 begins at learning rate 0.0025 instead of 0.0001" in said


def test_a_plateau_with_other_settings_keeps_its_rate_and_what_it_has_seen(experiment):
    kwargs = "{'patience': 0, 'threshold': 9.0, 'threshold_mode': 'abs'}"
    tiny = with_scheduler(experiment, "ReduceLROnPlateau", kwargs, epochs=2)
    tiny.train()
    tiny.train("epochs=4", "scheduler_kwargs.factor=0.5")
    assert rates(tiny) == pytest.approx([0.01, 0.01, 0.001, 0.0005])


# ---- what is no optimiser and no scheduler


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def optimizer(p, lr, weight_decay): pass", "optimizer.*gives a NoneType; return"),
        (
            "import torch\n\ndef optimizer(p, lr, weight_decay):\n"
            "    return torch.optim.SGD([torch.zeros(1)], lr=lr)",
            "optimizer.*changes no parameter of the network; return one over the parameters",
        ),
        (
            "import torch\ndef optimizer(p, lr, weight_decay): return torch.optim.SGD",
            "gives the class SGD, which was not called",
        ),
        (
            "import functools, torch\n"
            "optimizer = functools.partial(torch.optim.SGD, nesterov=True)",
            "optimizer.*ValueError: Nesterov",
        ),
        ("def scheduler(optimizer): pass", "scheduler.*gives a NoneType; return a scheduler"),
        (
            "import torch\ndef scheduler(optimizer): return torch.optim.lr_scheduler.StepLR",
            "gives the class StepLR, which was not called",
        ),
        (
            "import torch\nscheduler = torch.optim.lr_scheduler.CyclicLR\n"
            "scheduler_kwargs = {'base_lr': 1e-3, 'max_lr': 'x'}",
            "scheduler.*Error",
        ),
        (
            "import torch\nscheduler = torch.optim.lr_scheduler.StepLR\n"
            "scheduler_kwargs = {'step_size': 0}",
            "ZeroDivisionError.*; it fails in its first epoch; write other scheduler_kwargs",
        ),
    ],
)
def test_what_is_no_optimizer_or_scheduler_is_told(experiment, text, sentence):
    tiny = experiment()
    tiny.add(text)
    with pytest.raises(UserError, match=sentence):
        tiny.train()
    assert not tiny.config().path("cache_path").exists()


# ---- by iterations


@pytest.mark.parametrize("kwargs", ["{}", "{'T_max': epochs}", "{'T_max': 2 * 3}"])
def test_a_schedule_by_iterations_is_as_long_as_the_run(experiment, kwargs):
    settings = {"epochs": 2, "iterations_per_epoch": 3, "scheduler_step": "iteration"}
    tiny = with_scheduler(experiment, "CosineAnnealingLR", kwargs, **settings)
    assert tiny.config().scheduler_kwargs == {"T_max": 6}
    assert tiny.config("epochs=5").scheduler_kwargs == {"T_max": 15}
    assert tiny.config("iterations_per_epoch=7").scheduler_kwargs == {"T_max": 14}
    assert tiny.config("epochs=5", "scheduler_step=epoch").scheduler_kwargs["T_max"] in (5, 6)
    tiny.train()
    assert rates(tiny) == pytest.approx([cosine(2, 6), cosine(5, 6)])


def test_one_cycle_by_iterations_in_its_own_words_follows(experiment):
    kwargs = "{'max_lr': 1.0, 'epochs': epochs, 'steps_per_epoch': iterations_per_epoch}"
    settings = {"epochs": 2, "iterations_per_epoch": 3, "scheduler_step": "iteration"}
    tiny = with_scheduler(experiment, "OneCycleLR", kwargs, **settings)
    assert tiny.config("epochs=4").scheduler_kwargs["total_steps"] == 12
    tiny.train("epochs=4")


def test_a_warm_up_is_a_line_to_the_rate_of_the_scheduler(experiment):
    settings = {"epochs": 6, "iterations_per_epoch": 1, "warmup_iterations": 4}
    tiny = with_scheduler(experiment, "StepLR", "{'step_size': 3}", **settings)
    tiny.train()
    assert rates(tiny) == pytest.approx([0.0025, 0.005, 0.0075, 0.001, 0.001, 0.001])


def test_a_warm_up_takes_steps_as_long_as_the_rate_says(experiment):
    text = """
        import torch
        from torch.optim import SGD as optimizer
        """
    weights = {}
    for run, settings in {
        "warm": {"warmup_iterations": 10},
        "slow": {"learning_rate": 0.001},
    }.items():
        tiny = experiment(run, text=text, epochs=1, iterations_per_epoch=1)
        result = tiny.train(run_name=run, **settings)
        weights[run] = torch.load(result.checkpoint, weights_only=True)["model"]
    for name, tensor in weights["warm"].items():
        torch.testing.assert_close(tensor, weights["slow"][name], rtol=0, atol=1e-8)


SLOW_START = {"scheduler_step": "iteration", "warmup_iterations": 4, "epochs": 4}


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "PolynomialLR"])
def test_a_run_scheduled_by_iterations_equals_its_parts_bit_for_bit(experiment, scheduler):
    kwargs = "{'max_lr': 0.02}" if scheduler == "OneCycleLR" else "{'power': 0.9}"
    tiny = with_scheduler(experiment, scheduler, kwargs, **SLOW_START)
    saved = {}
    for run, stops in {"whole": [], "parts": [1e-9]}.items():
        for seconds in stops:
            tiny.train(run_name=run, training_time_limit=seconds)
        result = tiny.train(run_name=run)
        path = result.checkpoint.with_name("latest.pt")
        saved[run] = torch.load(path, weights_only=True)
    assert len(rates(tiny, "parts")) == 4
    assert rates(tiny, "parts") == rates(tiny, "whole")
    for name, tensor in saved["whole"]["model"].items():
        assert torch.equal(tensor, saved["parts"]["model"][name])
    assert (
        saved["whole"]["optimizer"]["param_groups"] == saved["parts"]["optimizer"]["param_groups"]
    )


def test_a_continued_run_may_go_over_to_iterations(experiment, capsys):
    tiny = with_scheduler(experiment, "CosineAnnealingLR", epochs=4, iterations_per_epoch=3)
    tiny.train("training_time_limit=1e-9")
    capsys.readouterr()
    tiny.train("scheduler_step=iteration")
    assert rates(tiny) == pytest.approx([0.01, cosine(5, 12), cosine(8, 12), cosine(11, 12)])
    said = " ".join(capsys.readouterr().err.split())
    assert "scheduler_step was 'epoch' and is 'iteration'" in said
    assert "iteration 4 has learning rate" in said


@pytest.mark.parametrize(
    ("scheduler", "settings", "sentence"),
    [
        ("ReduceLROnPlateau", {}, "ReduceLROnPlateau, which goes by the results of an epoch"),
        ("None", {}, "scheduler_step = 'iteration' without a scheduler"),
        (
            "StepLR",
            {"warmup_iterations": -1},
            "warmup_iterations = -1; write a whole number from 0",
        ),
        ("StepLR", {"scheduler_step": "step"}, "write one of 'epoch', 'iteration'"),
    ],
)
def test_a_schedule_by_iterations_that_cannot_be_is_told(experiment, scheduler, settings, sentence):
    kwargs = "{'step_size': 1}" if scheduler == "StepLR" else "{}"
    settings = {"scheduler_step": "iteration", **settings}
    tiny = with_scheduler(experiment, scheduler, kwargs, **settings)
    with pytest.raises(UserError, match=sentence):
        tiny.train()


def test_a_run_that_is_all_warm_up_says_so(experiment, capsys):
    experiment(warmup_iterations=6).train()
    assert "has 6 iterations, all of them in its warm-up" in capsys.readouterr().err
