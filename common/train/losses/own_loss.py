"""The loss that an experiment gives: made, tried out before training, and what is to be said."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.config.as_text import as_text
from common.config.module import own_frames
from common.config.settings import TrainConfig
from common.data.samples.targets import PaletteTarget, dense
from common.errors import UserError, type_and_reason
from common.train.losses.criterion import (
    CONTRACT,
    SURELY_NEGATIVE,
    Criterion,
    OrdinaryLoss,
    module_of,
    name_of,
    problem_with,
    takes_pos_weight,
)
from common.train.losses.losses import weighted_bce


def build_criterion(config: TrainConfig, device: torch.device) -> Criterion:
    """Return the loss of the setting `criterion`, on `device` and tried out once.

    Without the setting this is weighted_bce. A class, or a functools.partial of one, is
    instantiated; of a module that is made already, a copy is taken. A module is moved to the
    device. Raises UserError for a loss that cannot be copied, or called, see `try_out`.
    """
    if config.criterion is None:
        return weighted_bce
    loss = make_loss(config)
    if not callable(loss):
        raise UserError(f"criterion = {type(loss).__name__}(): cannot be called; {CONTRACT}")
    if isinstance(loss, nn.Module):
        loss = _own(loss, config).to(device)
    criterion = loss if takes_pos_weight(loss) else OrdinaryLoss(loss)
    with state_kept(criterion):
        try_out(criterion, config, device)
    return criterion


def _own(loss: nn.Module, config: TrainConfig) -> nn.Module:
    """Return a loss that this run alone has: what it counts must not change a recorded setting."""
    try:
        return copy.deepcopy(loss)
    except Exception as error:  # each part of a module says it in its own way
        if loss is not config.criterion:
            return loss  # made of a class for this run; what cannot be copied is in its arguments
        name = type(loss).__name__
        raise UserError(
            f"{config.folder}: criterion = {name}(...): an instance is copied, and this one cannot "
            f"be ({type_and_reason(error)}); write the class, criterion = {name}, and its "
            "arguments as criterion_kwargs"
        ) from error


def make_loss(config: TrainConfig) -> Any:
    """Return the loss of the setting with its keyword arguments; of a class an instance.

    Raises UserError where a library refuses them; what the experiment's own code raises comes
    through.
    """
    setting: Any = config.criterion
    keywords = config.criterion_kwargs
    function = setting.func if isinstance(setting, functools.partial) else setting
    if inspect.isclass(function):
        try:
            return setting(**keywords)
        except UserError as error:
            raise UserError(f"{config.folder}: criterion = {error}") from error
        except (TypeError, ValueError, RuntimeError) as error:
            if own_frames(error):
                raise
            whole = as_text(functools.partial(setting, **keywords))
            raise UserError(
                f"{config.folder}: criterion = {whole}: cannot be made "
                f"({type_and_reason(error)}); write what it takes"
            ) from error
    return functools.partial(setting, **keywords) if keywords else setting


@contextmanager
def state_kept(criterion: Criterion) -> Iterator[None]:
    """Context manager: what a loss counts while it is tried out is forgotten afterwards."""
    module = module_of(criterion)
    before = copy.deepcopy(module.state_dict()) if module else {}
    try:
        yield
    finally:
        if module:
            module.load_state_dict(before)


def notices(criterion: Criterion, weight_loss: bool) -> list[str]:
    """Return what the user should know about a criterion that has been tried out, as sentences."""
    sentences = []
    name = name_of(criterion)
    loss = "criterion" if name == "criterion" else f"criterion {name}"
    module = module_of(criterion)
    if module and any(parameter.requires_grad for parameter in module.parameters()):
        sentences.append(
            f"{loss} has parameters, which are not trained: the optimiser gets those of the network"
        )
    if not isinstance(criterion, OrdinaryLoss):
        return sentences
    if criterion.gives_one_number:
        sentences.append(
            f"{loss} gives one number for a batch: unknown voxels are given to "
            f"it as surely negative (logit {SURELY_NEGATIVE:g}, target 0); they get no gradient, "
            "and where it is a mean over voxels they count in it"
        )
    if weight_loss:
        sentences.append(f"{loss} takes no pos_weight: weight_loss has no effect on it")
    return sentences


def try_out(criterion: Criterion, config: TrainConfig, device: torch.device) -> None:
    """Call a criterion on some logits, so that mistakes show before hours of training.

    The target has the shape of the settings, with unknown, negative and positive voxels. Raises
    UserError if a library refuses the call, if the result is not a finite scalar with a gradient,
    or if it rewards what is wrong. An error raised in the experiment's own code is passed on
    unchanged.
    """
    if _is_for_probabilities(config.criterion):
        raise UserError(f"{_setting(criterion, config)}: is for probabilities; {LOGITS}")
    _refuse_weights_along_x(criterion, config)
    trial = TrialBatch(criterion, config, device)
    for logit, where in ((0.0, "of 0"), (-2.0, "below 0")):
        try:
            loss = trial.loss(torch.full_like(trial.labels, logit), trial.rows)
        except Exception as error:
            if own_frames(error):
                raise
            if isinstance(error, UserError):
                raise UserError(f"{config.folder}: criterion = {error}") from error
            raise UserError(_refused(criterion, config, trial, error)) from error
        problem = problem_with(loss)
        if not problem and not loss.isfinite():
            problem = f"gives {loss.item()} for logits {where}: {LOGITS}"
        if problem:
            raise UserError(f"{_setting(criterion, config)}: {problem}; {CONTRACT}")
    _refuse_rewards(criterion, config, trial)


def _setting(criterion: Criterion, config: TrainConfig) -> str:
    return f"{config.folder}: criterion = {name_of(criterion)}"


def _is_for_probabilities(setting: Any) -> bool:
    """Whether it is torch's loss for probabilities, which ends the process on CUDA for others."""
    loss = setting.func if isinstance(setting, functools.partial) else setting
    if loss is F.binary_cross_entropy or isinstance(loss, nn.BCELoss):
        return True
    return inspect.isclass(loss) and issubclass(loss, nn.BCELoss)


def _refuse_weights_along_x(criterion: Criterion, config: TrainConfig) -> None:
    """Raise UserError for weights of classes that torch would take for weights along x.

    It does so without a word where there are as many classes as voxels along x.
    """
    module = module_of(criterion)
    if not isinstance(module, nn.BCEWithLogitsLoss):
        return
    for name, tensor in module.named_buffers():
        if tensor.ndim == 1 and len(tensor) > 1:
            raise UserError(
                f"{_setting(criterion, config)}: {name} of shape "
                f"{tuple(tensor.shape)} lies along x; for classes write "
                f"{name} = tensor.view(-1, 1, 1, 1)"
            )


def _refuse_rewards(criterion: Criterion, config: TrainConfig, trial: TrialBatch) -> None:
    """Raise UserError for a loss that is lower where logits are wrong than where they are right.

    Such are a Dice that is not taken from 1, and a sign that is turned. They would be trained on
    without a word, away from the labels.
    """
    for size in (1.0, 4.0):
        right = trial.loss_of_right(size, trial.all_known)
        wrong = trial.loss_of_right(-size, trial.all_known)
        # a loss that says nothing of the sign, and NaN, are not told here
        if not right - wrong > 1e-3 * abs(right):
            return
    raise UserError(
        f"{_setting(criterion, config)}: gives {right:.4g} for logits that are right and "
        f"{wrong:.4g} for those that are wrong, and what is lower is learnt; turn its sign, or "
        "take a score from 1, such as 1 - dice"
    )


def _refused(criterion: Criterion, config: TrainConfig, trial: TrialBatch, error: Exception) -> str:
    """What a criterion does not take, and what to write."""
    reason = str(error).partition("\n")[0]
    advice = CONTRACT
    if "same device" in reason:
        advice = (
            "keep its tensors as buffers of a module (register_buffer), which is moved to the "
            "device, or move them to logits.device when it is called"
        )
    elif "device-side assert" in reason or "between 0 and 1" in reason or "[0, 1]" in reason:
        advice = LOGITS
    return (
        f"{_setting(criterion, config)}: cannot be called with logits and a "
        f"target of shape {tuple(trial.labels.shape)} ({type(error).__name__}: {reason}); {advice}"
    )


class TrialBatch:
    """A batch of one sample to try a criterion on."""

    def __init__(self, criterion: Criterion, config: TrainConfig, device: torch.device):
        """Unknown voxels, then those of the classes with an odd number, then those of the others.

        Each class is as often positive as it is negative.
        """
        self.criterion = criterion
        self.shape = config.target_array_info["shape"]
        self.classes = len(config.classes)
        self.pos_weight = torch.ones(self.classes, device=device) if config.weight_loss else None
        is_odd = torch.arange(self.classes, device=device) % 2
        self.palette = torch.stack([-torch.ones_like(is_odd), is_odd, 1 - is_odd]).to(torch.int8)
        voxels = torch.arange(math.prod(self.shape), dtype=torch.int32, device=device)
        self.rows = (voxels % 3).view(1, *self.shape)
        """(1, z, y, x), row 0 of the palette unknown."""
        self.all_known = (1 + voxels % 2).view(1, *self.shape)
        """The same without unknown voxels."""
        self.labels = dense(PaletteTarget(self.rows, self.palette)).float()
        """Of `rows`: -1 unknown, 0 negative, 1 positive; (1, classes, z, y, x)."""

    def loss(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The loss of logits (1, classes, z, y, x), which get a gradient, for rows (1, z, y, x)."""
        target = PaletteTarget(rows, self.palette)
        return self.criterion(logits.requires_grad_(), target, self.pos_weight)

    def loss_of_right(self, size: float, rows: torch.Tensor) -> float:
        """The loss of logits of this size and of the sign that is right; below 0, that is wrong."""
        labels = dense(PaletteTarget(rows, self.palette))
        logits = torch.where(labels > 0, size, -size)
        return float(self.loss(logits, rows).detach())

    def settled(self) -> bool:
        """Whether the loss has next to nothing to gain from surer logits that are sure and right.

        That of a loss for probabilities, or for numbers as such, goes on to change.
        """
        uncertain = self.loss_of_right(0.0, self.rows)
        sure = self.loss_of_right(8.0, self.rows)
        surer = self.loss_of_right(16.0, self.rows)
        gained = abs(uncertain - sure)
        return abs(surer - sure) <= max(0.1 * gained, 1e-3)

    def is_of_softmax(self) -> bool:
        """Whether a constant added to all channels changes nothing, as in a softmax alone."""
        if self.classes < 2:
            return False
        logits = torch.linspace(-2, 2, self.labels.numel(), device=self.labels.device)
        logits = logits.view_as(self.labels)
        before = float(self.loss(logits.clone(), self.rows).detach())
        after = float(self.loss(logits + 3, self.rows).detach())
        return abs(before - after) <= 1e-4 * abs(before) and before != 0

    def fails_without_labels(self) -> bool:
        """Whether loss or gradient are not finite where nothing is known."""
        logits = torch.zeros_like(self.labels)
        loss = self.loss(logits, torch.zeros_like(self.rows))
        if problem_with(loss):
            # such as a constant 0 for a batch without labels: training steps over it
            return False
        loss.backward()
        finite = logits.grad is None or bool(logits.grad.isfinite().all())
        return not (bool(loss.isfinite()) and finite)


def unusual(criterion: Criterion, config: TrainConfig, device: torch.device) -> list[str]:
    """What is unusual about a criterion that was tried out, as sentences."""
    trial = TrialBatch(criterion, config, device)
    name = _setting(criterion, config)
    sentences = []
    try:
        with state_kept(criterion):
            settled = trial.settled()
            fails_without_labels = trial.fails_without_labels()
            is_of_softmax = trial.is_of_softmax()
        if is_of_softmax:
            sentences.append(
                f"{name}: is a softmax over channels, and each is predicted by a sigmoid of "
                "its own; write the channels that exclude each other into softmax = [...]"
            )
        if not settled:
            sentences.append(
                f"{name}: changes on for logits from 8 to 16 that are right, as if they were no "
                f"logits: {LOGITS}"
            )
        if fails_without_labels:
            sentences.append(
                f"{name}: is not finite where nothing of a patch is known, which ends the run; let "
                "it give 0 * logits.sum() there"
            )
    except Exception as error:
        # logits of 0 passed: it is the user's own, and may look at what it is given
        sentences.append(f"{name}: fails for some labels ({type(error).__name__}: {error})")
    return sentences


LOGITS = (
    "a loss gets logits here, from -inf to inf; take the one for logits (BCEWithLogitsLoss for "
    "BCELoss, sigmoid=True with MONAI's), or apply the sigmoid in it"
)
