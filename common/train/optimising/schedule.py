"""The learning rate over the steps of a run: tried before training, and changed under way.

A scheduler has a step for each epoch or, with scheduler_step = "iteration", for each iteration.

Schedulers are built and stepped in `common.train.optimising.optim`.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from common.config.as_text import as_text
from common.config.groups import OF_THE_SCHEDULE
from common.config.horizon import Length
from common.config.module import own_frames
from common.config.settings import TrainConfig
from common.errors import UserError
from common.talk import some
from common.train.optimising.optim import build_optimizer, build_scheduler, step_scheduler

MOST_TRIED = 20_000
"""Steps up to which a schedule is tried: about a second."""

OF_PLATEAU = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
"""What ReduceLROnPlateau has seen so far; the rest of its state are its settings."""


def try_out(config: TrainConfig, model: nn.Module) -> list[str]:
    """Run optimiser and scheduler through the whole run; return sentences about what is unusual.

    They get other parameters than those of the model, in as many groups.

    Raises UserError if they cannot be built, are something else, or raise in some step. An error
    in the experiment's own code is passed on unchanged.
    """
    optimizer = first_optimizer(config, _Like(model))
    unusual = _unheeded(config, optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    scheduler = first_scheduler(config, optimizer, validated=True)
    # after the scheduler, which counts its steps
    with _refusals(config, "optimizer", "give one whose step() needs no arguments"):
        optimizer.step()
    unusual += _endless_warm_up(config)
    if scheduler is None or isinstance(scheduler, ReduceLROnPlateau):
        return unusual
    rates = []
    for step in range(min(_length(config).steps, MOST_TRIED)):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        with _refusals(config, "scheduler", _advice(config, step + 1)):
            step_scheduler(scheduler, 0.0)
    _refuse_no_rates(config, rates)
    return [*unusual, *_at_zero(config, rates), *_other_length(config, scheduler)]


def _length(config: TrainConfig) -> Length:
    """Return how long the run is."""
    return Length(config.epochs, config.iterations_per_epoch, config.scheduler_step)


class _Like(nn.Module):
    """A module with a small parameter in the place of each of a model's, with its name and axes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.small = {}
        for name, parameter in model.named_parameters():
            values = torch.zeros([1] * parameter.ndim)
            self.small[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Under the names of the model, which hold dots."""
        yield from self.small.items()


def first_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of a new run; raises UserError if what is set does not give one."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"{config.folder}: build_model gives a network without a trainable parameter; "
            "leave requires_grad on where it is to learn"
        )
    with _refusals(config, "optimizer", "write optimizer(parameters, lr=, weight_decay=)"):
        optimizer = build_optimizer(
            model, config.learning_rate, config.weight_decay, config.optimizer
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"{config.folder}: optimizer = {as_text(config.optimizer)} gives {_kind(optimizer)}; "
            "return a torch.optim.Optimizer over the parameters that it is given"
        )
    of_network = {id(parameter) for parameter in model.parameters()}
    steered = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(parameter) in of_network for parameter in steered):
        raise UserError(
            f"{config.folder}: optimizer = {as_text(config.optimizer)} changes no parameter of the "
            "network; return one over the parameters that it is given"
        )
    return optimizer


def first_scheduler(
    config: TrainConfig, optimizer: torch.optim.Optimizer, *, validated: bool
) -> LRScheduler | None:
    """Return the scheduler of a new run; raises UserError if what is set does not give one."""
    advice = "write what scheduler(optimizer, **scheduler_kwargs) takes"
    with _refusals(config, "scheduler", advice):
        scheduler = build_scheduler(
            optimizer,
            config.scheduler,
            config.scheduler_kwargs,
            higher_is_better=_higher_is_better(config, validated),
        )
    methods = ("step", "state_dict", "load_state_dict")
    if isinstance(scheduler, ReduceLROnPlateau) and config.scheduler_step == "iteration":
        raise UserError(
            f"{config.folder}: scheduler_step = 'iteration' with ReduceLROnPlateau, which goes by "
            "the results of an epoch; set scheduler_step = 'epoch', or another scheduler"
        )
    if config.scheduler is None or isinstance(scheduler, LRScheduler):
        return scheduler
    if isinstance(scheduler, type) or not all(hasattr(scheduler, name) for name in methods):
        raise UserError(
            f"{config.folder}: scheduler = {as_text(config.scheduler)} gives {_kind(scheduler)}; "
            "return a scheduler of torch.optim.lr_scheduler, or one with step(), state_dict() "
            "and load_state_dict()"
        )
    return scheduler


def _higher_is_better(config: TrainConfig, validated: bool) -> bool:
    """Whether what steers a scheduler is better the higher; the training loss without a crop."""
    return validated and config.best_metric != "loss"


def refuse_other_mode(config: TrainConfig, scheduler: LRScheduler | None, validated: bool) -> None:
    """Raise UserError if a ReduceLROnPlateau takes a better value for a worse one."""
    if not isinstance(scheduler, ReduceLROnPlateau):
        return
    higher_is_better = _higher_is_better(config, validated)
    wanted = "max" if higher_is_better else "min"
    if scheduler.mode == wanted:
        return
    given = f"best_metric = '{config.best_metric}'" if validated else "the training loss"
    why = "" if validated else " (no crop validates)"
    better = "higher" if higher_is_better else "lower"
    raise UserError(
        f"{config.folder}: scheduler has mode = '{scheduler.mode}' and is given {given}{why}, "
        f"which is better the {better} it is; write mode = '{wanted}', or leave it out"
    )


def notices(config: TrainConfig, scheduler: LRScheduler | None, validated: bool) -> list[str]:
    """Return what decides about learning rate and end where no crop validates, as sentences."""
    if validated:
        return []
    deciding = []
    if isinstance(scheduler, ReduceLROnPlateau):
        deciding.append("ReduceLROnPlateau")
    if config.early_stopping_patience:
        deciding.append("early stopping")
    if not deciding:
        return []
    verb = "goes" if len(deciding) == 1 else "go"
    return [
        f"{' and '.join(deciding)} {verb} by the training loss, the lower the better: "
        "no crop validates"
    ]


def go_on(
    config: TrainConfig,
    before: dict[str, str],
    saved: dict[str, Any],
    *,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
) -> str:
    """Restore optimiser and scheduler of a saved state; return what changes from now on, or "".

    If epochs or a setting OF_THE_SCHEDULE changed, the rates are from now on those that the new
    schedule would have reached by itself. ReduceLROnPlateau keeps the rate and what it has seen.

    Args:
        config: settings of this call.
        before: settings that the state was saved with, as text.
        saved: content of the checkpoint.
        optimizer: a new one, restored in place.
        scheduler: a new one of it, restored in place; None without one.
    """
    now = config.record()
    changed = [name for name in OF_THE_SCHEDULE if before.get(name) != now[name]]
    follows = changed or before.get("epochs") != now["epochs"]
    if isinstance(scheduler, ReduceLROnPlateau):
        optimizer.load_state_dict(saved["optimizer"])
        seen = saved["scheduler"] or {}
        if changed:
            seen = {name: seen[name] for name in OF_PLATEAU if name in seen}
        scheduler.load_state_dict(scheduler.state_dict() | seen)
    elif follows:
        _step_to(scheduler, saved[config.scheduler_step])
        _restore_all_but_rates(optimizer, saved["optimizer"])
    else:
        optimizer.load_state_dict(saved["optimizer"])
        if scheduler:
            scheduler.load_state_dict(saved["scheduler"])
    return _what_changes(config, before, saved, changed=changed, optimizer=optimizer)


def _step_to(scheduler: LRScheduler | None, steps: int) -> None:
    """Take a new scheduler to where it is after so many steps."""
    with warnings.catch_warnings():
        # torch warns of schedulers that are stepped before their optimiser
        warnings.simplefilter("ignore")
        for _ in range(steps):
            step_scheduler(scheduler, math.nan)


def _restore_all_but_rates(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore what an optimiser keeps of its parameters; its options stay those of now."""
    options = [_options(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)


def _what_changes(
    config: TrainConfig,
    before: dict[str, str],
    saved: dict[str, Any],
    *,
    changed: Sequence[str],
    optimizer: torch.optim.Optimizer,
) -> str:
    """Return a sentence about another schedule than that of the saved state, or ""."""
    was = float(saved["optimizer"]["param_groups"][0]["lr"])
    rate = float(optimizer.param_groups[0]["lr"])
    if not changed and was == rate:
        return ""
    now = config.record()
    parts = [f"{name} was {before.get(name)} and is {now[name]}" for name in changed]
    if not changed:
        parts.append(f"epochs was {before.get('epochs')} and is {now['epochs']}")
    rates = f"epoch {saved['epoch'] + 1} begins at learning rate {rate:.3g}"
    if config.scheduler_step == "iteration":
        rates = f"iteration {saved['iteration'] + 1} has learning rate {rate:.3g}"
    if was != rate:
        rates += f" instead of {was:.3g}"
    return f"{'; '.join(parts)}: {rates}"


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter group without its parameters."""
    return {name: value for name, value in group.items() if name != "params"}


@contextmanager
def _refusals(config: TrainConfig, setting: str, advice: str) -> Iterator[None]:
    """Turn an error of a library about what a setting gives it into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        value = getattr(config, setting)
        # a bug of the experiment's own code, or of ours, keeps its traceback
        if value is None or own_frames(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{config.folder}: {setting} = {as_text(value)}: {type(error).__name__}: {reason}; "
            f"{advice}"
        ) from error


def _advice(config: TrainConfig, step: int) -> str:
    unit = config.scheduler_step
    if step == 1:
        return (
            f"it fails in its first {unit}; write other scheduler_kwargs (lengths count {unit}s, "
            "1 or more)"
        )
    return (
        f"this ends {unit} {step} of {_length(config).steps}: it is stepped once an {unit}, so "
        f"write a length in {unit}s, or leave its length out"
    )


OF_SETTINGS = {"lr": "learning_rate", "weight_decay": "weight_decay"}
"""Keywords that an optimiser is called with, and the settings that they are."""


def _unheeded(config: TrainConfig, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return a sentence for each rate or decay that is written and not trained with."""
    keywords: dict[str, Any] = {}
    if isinstance(config.optimizer, functools.partial):
        keywords = config.optimizer.keywords
    sentences = []
    for keyword, name in OF_SETTINGS.items():
        value = getattr(config, name)
        if keywords.get(keyword, value) != value:
            sentences.append(
                f"{keyword} = {keywords[keyword]} of the functools.partial in optimizer has no "
                f"effect: it is called with the setting {name} = {value}"
            )
    # an optimiser of one's own need not have a rate
    rates = {float(group["lr"]) for group in optimizer.param_groups if group.get("lr") is not None}
    # a rate may be a tensor of float32
    heeded = [math.isclose(rate, config.learning_rate, rel_tol=1e-6) for rate in rates]
    if rates and not any(heeded):
        sentences.append(
            f"learning_rate = {config.learning_rate} has no effect: optimizer trains at "
            f"{', '.join(f'{rate:g}' for rate in sorted(rates))}"
        )
    return sentences


def _endless_warm_up(config: TrainConfig) -> list[str]:
    """Return a sentence about a warm-up that no step of the run comes after, if it is one."""
    iterations = _length(config).iterations
    if config.warmup_iterations < iterations:
        return []
    return [
        f"the run has {iterations} iterations, all of them in its warm-up (warmup_iterations = "
        f"{config.warmup_iterations})"
    ]


def _refuse_no_rates(config: TrainConfig, rates: Sequence[float]) -> None:
    for step, rate in enumerate(rates, 1):
        if not (math.isfinite(rate) and rate >= 0):
            raise UserError(
                f"{config.folder}: scheduler = {as_text(config.scheduler)} gives the learning rate "
                f"{rate} in {config.scheduler_step} {step}; write scheduler_kwargs that keep it at "
                "0 or above"
            )


def _at_zero(config: TrainConfig, rates: Sequence[float]) -> list[str]:
    """Return a sentence about the steps in which nothing is learnt, if there are any."""
    spans = []
    numbered = enumerate(rates, 1)
    for is_zero, group in itertools.groupby(numbered, key=lambda pair: pair[1] == 0):
        steps = [step for step, _ in group]
        if is_zero:
            span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
            spans.append(span)
    if not spans:
        return []
    return [
        "the scheduler's learning rate is 0, and nothing is learnt, in "
        f"{config.scheduler_step} {some(spans)}"
    ]


def _other_length(config: TrainConfig, scheduler: LRScheduler) -> list[str]:
    """Return a sentence about a schedule that is not as long as the run, if it should be."""
    steps = _length(config).steps
    unit = config.scheduler_step
    for name in ("T_max", "total_steps", "total_iters"):
        length = getattr(scheduler, name, None)
        if not isinstance(length, int) or length == steps:
            continue
        # a warm-up is shorter than its run
        if name == "total_iters" and length < steps:
            continue
        return [
            f"the schedule is {length} {unit}s long ({name}) and the run {steps}: it is "
            f"stepped once an {unit}; leave {name} out for one as long as the run"
        ]
    return []


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}, which was not called"
    return f"a {type(value).__name__}"
