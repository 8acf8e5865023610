"""Turn the setting `criterion` into a function that the trainer can call.

Two kinds of loss are accepted:

* A loss with three arguments, `criterion(logits, target, pos_weight)`, such as those of
  `common.train.losses`. It is called as it is, and has to leave out unknown voxels itself.
* A loss with two arguments, `criterion(logits, target)`, such as those of torch and MONAI. It gets
  float32 logits and a dense float32 target of 0 and 1; `OrdinaryLoss` leaves out unknown voxels. If
  the loss can return one value per voxel (reduction="none"), the mean over the known voxels is
  taken, as in the toolbox's CellMapLossWrapper. If it returns a single number, as Dice losses do,
  unknown voxels are passed with target 0 and logit -30: they get no gradient and add nothing to an
  overlap or a sum.

A network with several outputs is trained on all of them, see `over_outputs`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.config.settings import TrainConfig, as_text
from common.data.samples.targets import MixedTarget, PaletteTarget, Target, dense, known
from common.errors import UserError
from common.train import together
from common.train.losses import weighted_bce

Criterion = Callable[[torch.Tensor, Any, torch.Tensor | None], torch.Tensor]
"""`criterion(logits, target, pos_weight)` returns a scalar, see `common.train.losses`."""

SURELY_NEGATIVE = -30.0
"""A logit with probability 1e-13, which is too small to change a sum in float32."""


def build_criterion(config: TrainConfig, device: torch.device) -> Criterion:
    """Return the loss of the setting `criterion`, on `device` and tried out once.

    Without the setting this is weighted_bce. A class, or a functools.partial of one, is
    instantiated; of a module that is made already, a copy is taken. A module is moved to the
    device. Raises UserError for a loss that cannot be copied, or called, see `try_out`.
    """
    if config.criterion is None:
        return weighted_bce
    loss = made(config)
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
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{config.folder}: criterion = {name}(...): an instance is copied, and this one cannot "
            f"be ({type(error).__name__}: {reason}); write the class, criterion = {name}, and its "
            "arguments as criterion_kwargs"
        ) from error


def made(config: TrainConfig) -> Any:
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
            if _raised_in(error, config.folder):
                raise
            reason = str(error).partition("\n")[0]
            whole = as_text(functools.partial(setting, **keywords))
            raise UserError(
                f"{config.folder}: criterion = {whole}: cannot be made "
                f"({type(error).__name__}: {reason}); write what it takes"
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


def module_of(criterion: Criterion) -> nn.Module | None:
    """Return the module that a criterion is, whose state is saved; None of a function."""
    loss = criterion.loss if isinstance(criterion, OrdinaryLoss) else criterion
    return loss if isinstance(loss, nn.Module) else None


def set_mode(criterion: Criterion, training: bool) -> None:
    """Put a criterion that is a module into the mode of training or of validation."""
    parts: list[Any] = [criterion]
    if isinstance(criterion, OrdinaryLoss):
        parts = [criterion.loss, criterion.for_each_voxel]
    for part in parts:
        if isinstance(part, nn.Module):
            part.train(training)


def uses_pos_weight(criterion: Criterion) -> bool:
    """Return whether a criterion uses pos_weight: any but a wrapped loss of two arguments."""
    return not isinstance(criterion, OrdinaryLoss)


def takes_pos_weight(loss: Callable) -> bool:
    """Return whether a loss is to be called with pos_weight as third argument.

    It is if its third positional parameter has no default or is named pos_weight. Functions without
    a Python signature are called with two arguments.
    """
    # of a module the signature of __call__ says nothing
    function = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # functions written in C need not have one
        return False
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(by_position) < 3:
        return False
    third = by_position[2]
    return third.default is third.empty or third.name == "pos_weight"


class OrdinaryLoss:
    """Wraps a loss of (logits, target) so that unknown voxels are left out.

    pos_weight is accepted and ignored.
    """

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        """Wrap a loss that returns a scalar or a tensor of the shape of the logits.

        A loss with a true attribute `takes_unknown` gets the float32 logits and a target that is
        NaN where the label is unknown; its result is returned unchanged.
        """
        self.loss = loss
        self.for_each_voxel = without_reduction(loss)
        self.gives_one_number: bool | None = None
        """Whether the loss returns no value per voxel; None before the first call."""

    @property
    def name(self) -> str:
        """Name of the loss in messages."""
        return _function_name(self.loss)

    def __call__(
        self, logits: torch.Tensor, target: Target, pos_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss over the known voxels of `target`, a float32 scalar."""
        labels = dense(target)
        mask = known(labels)
        logits = logits.float()
        positive = (labels > 0).float()  # unknown ones, -1 or NaN, are not above 0
        if getattr(self.loss, "takes_unknown", False):
            return self.loss(logits, positive.masked_fill(~mask, torch.nan))
        if not self.gives_one_number:
            losses = self.for_each_voxel(logits, positive)
            if getattr(losses, "shape", None) == (len(logits), *logits.shape[2:]):
                # one for all channels of a voxel, such as torch's cross-entropy of a softmax
                return mean_over_known(losses, mask.all(1))
            self.gives_one_number = getattr(losses, "shape", None) != logits.shape
            if not self.gives_one_number:
                return mean_over_known(losses, mask)
        return self.loss(logits.where(mask, SURELY_NEGATIVE), positive)


def mean_over_known(losses: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of `losses` where `mask` is True; 0 if it is True nowhere.

    In a step of several processes it is the mean over all of them: of a loss that has one value for
    all channels of a voxel, the trainer's count of known pairs is not the count of its terms.
    """
    total = together.summed(torch.where(mask, losses, 0).sum())
    return total / together.summed(mask.sum()).clamp(min=1)


def without_reduction(loss: Callable) -> Callable[..., torch.Tensor]:
    """Return the loss with reduction="none" if it has a reduction, otherwise the loss itself."""
    if isinstance(loss, nn.Module):
        if not hasattr(loss, "reduction"):
            return loss
        elementwise = copy.copy(loss)
        elementwise.reduction = "none"  # type: ignore[assignment]  # a text, no submodule
        return elementwise
    try:
        has_reduction = "reduction" in inspect.signature(loss).parameters
    except ValueError:
        return loss
    return functools.partial(loss, reduction="none") if has_reduction else loss


def over_outputs(
    criterion: Criterion,
    outputs: Sequence[torch.Tensor],
    target: Target,
    pos_weight: torch.Tensor | None,
) -> torch.Tensor:
    """Return the weighted mean of the losses of several outputs (deep supervision).

    `outputs` are logits (B, classes, z, y, x), the finest first; the target is on the voxels of the
    finest. The weights are 1, 1/2, 1/4, ..., divided by their sum, as in nnU-Net (Isensee et al.
    2021). A coarser output covers the same volume and is compared with the nearest voxels of the
    target. Raises UserError if the outputs differ in batch size or number of channels.
    """
    loss = torch.zeros((), device=outputs[0].device)
    weights = [0.5**k for k in range(len(outputs))]
    for weight, output in zip(weights, outputs, strict=True):
        if output.shape[:2] != outputs[0].shape[:2]:
            raise UserError(
                f"the model gives outputs of shapes {tuple(outputs[0].shape)} and "
                f"{tuple(output.shape)}; give all of them one channel for each class"
            )
        part = criterion(output, resampled(target, output.shape[2:]), pos_weight)
        loss = loss + part * (weight / sum(weights))
    return loss


def resampled(target: Target, shape: Sequence[int]) -> Target:
    """Return the target on `shape` (z, y, x) voxels over the same volume, by nearest neighbour."""
    if isinstance(target, PaletteTarget):
        return replace(target, rows=_nearest(target.rows, shape))
    if isinstance(target, MixedTarget):
        classes = replace(target.classes, rows=_nearest(target.rows, shape))
        return replace(target, classes=classes, derived=_nearest(target.derived, shape))
    return _nearest(target, shape)


def _nearest(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    for axis, size in zip((-3, -2, -1), shape, strict=True):
        old_size = volume.shape[axis]
        if size != old_size:
            centres = (torch.arange(size, device=volume.device) + 0.5) * (old_size / size)
            volume = volume.index_select(axis, centres.floor().long())
    return volume


def notices(criterion: Criterion, weight_loss: bool) -> list[str]:
    """Return what the user should know about a criterion that has been tried out, as sentences."""
    sentences = []
    module = module_of(criterion)
    if module and any(parameter.requires_grad for parameter in module.parameters()):
        sentences.append(
            f"criterion {_name(criterion)} has parameters, which are not trained: the optimiser "
            "gets those of the network"
        )
    if not isinstance(criterion, OrdinaryLoss):
        return sentences
    if criterion.gives_one_number:
        sentences.append(
            f"criterion {criterion.name} gives one number for a batch: unknown voxels are given to "
            f"it as surely negative (logit {SURELY_NEGATIVE:g}, target 0); they get no gradient, "
            "and where it is a mean over voxels they count in it"
        )
    if weight_loss:
        sentences.append(
            f"criterion {criterion.name} takes no pos_weight: weight_loss has no effect on it"
        )
    return sentences


def try_out(criterion: Criterion, config: TrainConfig, device: torch.device) -> None:
    """Call a criterion on some logits, so that mistakes show before hours of training.

    The target has the shape of the settings, with unknown, negative and positive voxels. Raises
    UserError if a library refuses the call, or if the result is not a finite scalar with a
    gradient. An error raised in the experiment's own code is passed on unchanged.
    """
    if _is_for_probabilities(config.criterion):
        raise UserError(
            f"{config.folder}: criterion = {_name(criterion)}: is for probabilities; {LOGITS}"
        )
    _refuse_weights_along_x(criterion, config)
    trial = Trial(criterion, config, device)
    for logit, where in ((0.0, "of 0"), (-2.0, "below 0")):
        try:
            loss = trial.loss(torch.full_like(trial.labels, logit))
        except Exception as error:
            if _raised_in(error, config.folder):
                raise
            if isinstance(error, UserError):
                raise UserError(f"{config.folder}: criterion = {error}") from error
            raise UserError(_refused(criterion, config, trial, error)) from error
        problem = problem_with(loss)
        if not problem and not loss.isfinite():
            problem = f"gives {loss.item()} for logits {where}: {LOGITS}"
        if problem:
            raise UserError(
                f"{config.folder}: criterion = {_name(criterion)}: {problem}; {CONTRACT}"
            )


def _is_for_probabilities(setting: Any) -> bool:
    """Whether it is torch's loss for probabilities, which ends the process on CUDA for others."""
    made = setting.func if isinstance(setting, functools.partial) else setting
    if made is F.binary_cross_entropy or isinstance(made, nn.BCELoss):
        return True
    return inspect.isclass(made) and issubclass(made, nn.BCELoss)


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
                f"{config.folder}: criterion = {_name(criterion)}: {name} of shape "
                f"{tuple(tensor.shape)} lies along x; for classes write "
                f"{name} = tensor.view(-1, 1, 1, 1)"
            )


def _refused(criterion: Criterion, config: TrainConfig, trial: Trial, error: Exception) -> str:
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
        f"{config.folder}: criterion = {_name(criterion)}: cannot be called with logits and a "
        f"target of shape {tuple(trial.labels.shape)} ({type(error).__name__}: {reason}); {advice}"
    )


class Trial:
    """A batch of one sample to try a criterion on."""

    def __init__(self, criterion: Criterion, config: TrainConfig, device: torch.device):
        """Unknown, negative and positive voxels of all classes, in turn."""
        self.criterion = criterion
        self.shape = config.target_array_info["shape"]
        self.classes = len(config.classes)
        self.pos_weight = torch.ones(self.classes, device=device) if config.weight_loss else None
        palette = torch.tensor([[-1], [0], [1]], dtype=torch.int8, device=device)
        self.palette = palette.repeat(1, self.classes)
        voxels = torch.arange(math.prod(self.shape), dtype=torch.int32, device=device)
        self.rows = (voxels % 3).view(1, *self.shape)
        self.labels = dense(PaletteTarget(self.rows, self.palette)).float()
        """-1 unknown, 0 negative, 1 positive; (1, classes, z, y, x)."""

    def loss(self, logits: torch.Tensor, *, known: bool = True) -> torch.Tensor:
        """The loss of these logits, which get a gradient; known: whether any voxel is."""
        rows = self.rows if known else torch.zeros_like(self.rows)
        target = PaletteTarget(rows, self.palette)
        return self.criterion(logits.requires_grad_(), target, self.pos_weight)

    def settled(self) -> bool:
        """Whether the loss has next to nothing to gain from surer logits that are sure and right.

        That of a loss for probabilities, or for numbers as such, goes on to change.
        """
        right = (self.labels > 0).float() - 0.5
        uncertain, sure, surer = (float(self.loss(right * n).detach()) for n in (0, 16, 32))
        gained = abs(uncertain - sure)
        return abs(surer - sure) <= max(0.1 * gained, 1e-3)

    def is_of_softmax(self) -> bool:
        """Whether a constant added to all channels changes nothing, as in a softmax alone."""
        if self.classes < 2:
            return False
        logits = torch.linspace(-2, 2, self.labels.numel(), device=self.labels.device)
        logits = logits.view_as(self.labels)
        here, there = (float(self.loss(logits + n).detach()) for n in (0, 3))
        return abs(here - there) <= 1e-4 * abs(here) and here != 0

    def fails_without_labels(self) -> bool:
        """Whether loss or gradient are not finite where nothing is known."""
        logits = torch.zeros_like(self.labels)
        loss = self.loss(logits, known=False)
        if problem_with(loss):
            # such as a constant 0 for a batch without labels: training steps over it
            return False
        loss.backward()
        finite = logits.grad is None or bool(logits.grad.isfinite().all())
        return not (bool(loss.isfinite()) and finite)


def unusual(criterion: Criterion, config: TrainConfig, device: torch.device) -> list[str]:
    """What is unusual about a criterion that was tried out, as sentences."""
    trial = Trial(criterion, config, device)
    name = f"{config.folder}: criterion = {_name(criterion)}"
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

CONTRACT = (
    "write criterion(logits, target), which gives one number or one for each voxel, "
    "or criterion(logits, target, pos_weight) as in common.train.losses"
)


def problem_with(loss: Any) -> str:
    """Return what is wrong with the type of a criterion's result; "" if nothing is."""
    if not isinstance(loss, torch.Tensor):
        return f"gives a {type(loss).__name__}"
    if loss.ndim:
        return f"gives a tensor of shape {tuple(loss.shape)}"
    if torch.is_grad_enabled() and not loss.requires_grad:
        return "gives a number without a gradient"
    return ""


def _name(criterion: Criterion) -> str:
    if isinstance(criterion, OrdinaryLoss):
        return criterion.name
    return _function_name(criterion)


def _function_name(loss: Callable) -> str:
    if isinstance(loss, functools.partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__)


def _raised_in(error: Exception, folder: Path) -> bool:
    """Return whether the traceback of `error` passes through a file in `folder`."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(folder in Path(frame.filename).parents for frame in frames)
