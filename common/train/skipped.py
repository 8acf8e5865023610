"""Steps that are skipped because their numbers are bad: which ones, and of what samples they are.

skipped.json in the log folder of a run has the samples; `common.train.replay` computes them again.
No other module reads or writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from common import typed
from common.data.samples.batches import Batch
from common.errors import UserError, in_a_line
from common.files import write_json
from common.talk import note
from common.train.processes import ranks

SKIPPED = "skipped.json"

STATISTICS = ("running_mean", "running_var")
"""Buffers of torch's normalisation layers."""

MOST = 200
"""Steps that the file holds, the last ones of a run: a batch of 16 samples takes 6 kB."""


@dataclass(frozen=True)
class Numbers:
    """What says whether a step is to be taken: of the whole step, of all batches and processes."""

    loss: float
    """Mean over the known (voxel, class) pairs."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    statistics: float = 0.0
    """The largest running mean or variance after the forward passes."""

    def __str__(self) -> str:
        text = f"loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}"
        if math.isfinite(self.statistics):
            return text
        return f"{text}, running statistics {self.statistics}"


def is_bad(numbers: Numbers, scaler: torch.amp.GradScaler) -> bool:
    """Return whether a step is to be skipped: a number is NaN or infinite.

    A gradient that overflows in fp16 is not bad: the scaler leaves that step out and multiplies the
    loss by half as much from then on, as it does in the first steps of every run. Where it has come
    below 1, the gradient overflows by itself.
    """
    if not math.isfinite(numbers.loss) or not math.isfinite(numbers.statistics):
        return True
    if math.isfinite(numbers.grad_norm):
        return False
    return not scaler.is_enabled() or scaler.get_scale() < 1


def largest_statistic(model: nn.Module) -> torch.Tensor:
    """Return the largest running mean or variance of a network, a scalar; NaN if one is.

    Where a voxel is huge, batch normalisation divides by infinity: loss and gradient are finite,
    and the running variance, with which is validated, stays infinite for good.
    """
    buffers = [b for name, b in model.named_buffers() if name.rpartition(".")[2] in STATISTICS]
    return nn.utils.get_total_norm(buffers, norm_type=math.inf)


def keep_scale(scaler: torch.amp.GradScaler) -> None:
    """End a step of the scaler, as its update does, and leave its factor as it is."""
    if scaler.is_enabled():
        scaler.update(scaler.get_scale())


@dataclass(frozen=True)
class SkippedSample:
    """One training sample of a step that was skipped."""

    number: int
    """k: with the seed and the settings, it says everything else."""
    crop: str
    """dataset/crop."""
    centre_nm: list[float]
    """z, y, x."""
    orientation: list[list[float]]
    """(3, 3), from offsets in the patch to offsets in the world."""


@dataclass(frozen=True)
class SkippedStep:
    """A step that was skipped."""

    iteration: int
    """Counted from 1."""
    problem: str
    """Loss and gradient norm, which JSON cannot write as numbers."""
    samples: list[SkippedSample]


@dataclass(frozen=True)
class SkippedSteps:
    """The content of skipped.json."""

    random_seed: int = 0
    steps: list[SkippedStep] = field(default_factory=list)


def described(iteration: int, group: Sequence[Batch], numbers: Numbers) -> SkippedStep:
    """Return what is to be known of a step that was skipped, of all processes."""
    of_batches = [_samples_of(batch) for batch in group]
    samples: list[SkippedSample] = []
    for parts in zip(*ranks.gathered(of_batches), strict=True):
        for part in parts:
            samples += part
    return SkippedStep(iteration, str(numbers), samples)


def _samples_of(batch: Batch) -> list[SkippedSample]:
    samples = []
    for sample, crop in zip(batch.samples, batch.crops, strict=True):
        samples.append(
            SkippedSample(
                number=sample.k,
                crop=crop,
                centre_nm=[float(position) for position in sample.centre],
                orientation=sample.orientation.tolist(),
            )
        )
    return samples


def add(folder: Path, random_seed: int, step: SkippedStep) -> None:
    """Add a step to skipped.json.

    Those of this iteration and later are removed: a run that was killed comes to them again. Raises
    FileError if the file cannot be written.
    """
    before = []
    if (folder / SKIPPED).is_file():
        try:
            before = read(folder / SKIPPED).steps
        except UserError as error:
            note(str(error))  # no reason to end a run
    before = [old for old in before if old.iteration < step.iteration]
    content = SkippedSteps(random_seed, [*before, step][-MOST:])
    write_json(folder / SKIPPED, asdict(content))


def read(path: Path) -> SkippedSteps:
    """Read a skipped.json. Raises FileNotFoundError, and UserError if it is damaged."""
    try:
        content = json.loads(path.read_text(), parse_constant=typed.no_constant)
        steps = typed.build(SkippedSteps, content)
        typed.check(steps)
        return steps
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, OSError, RecursionError) as error:
        reason = in_a_line(error)
        raise UserError(
            f"{path}: cannot be read ({reason}); put a copy of it back; training writes it anew at "
            "the next step that it skips"
        ) from error
