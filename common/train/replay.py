"""The command `replay`: compute the samples of skipped steps again, and see where it begins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common import runtime
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.samples import targets
from common.data.samples.batches import Batch
from common.errors import UserError
from common.model.forward import ForwardPass
from common.model.passing import in_training_mode
from common.show import figures
from common.talk import Say, count, note, some
from common.train import skipped
from common.train.checkpointing import checkpoint
from common.train.checkpointing.resume import changed_settings
from common.train.recording import panels
from common.train.setup import Setup, prepare
from common.train.skipped import SkippedStep
from common.train.state import State

MOST = 4
"""Steps that are replayed unless one is chosen: those of a row are often alike."""

QUICK: dict[str, Any] = {"num_workers": 0, "validation_score_every": 0, "compile": False}
"""Settings without what takes long to begin, and a few samples do not need."""


def replay(
    config_path: str | Path,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    *,
    iteration: int = 0,
    weights: str | Path | None = None,
    png: str | Path | None = None,
    say: Say = print,
) -> None:
    """Say, for the steps in a skipped.json, what each sample holds and where numbers become bad.

    Args:
        config_path: folder of an experiment, or its train_config.py.
        file: the skipped.json; that of the run unless given.
        overrides: settings as "name=value".
        data: the data root.
        iteration: the step to replay; 0 for the last ones.
        weights: a checkpoint; the latest one of the run unless given.
        png: file of a picture of the samples.
        say: gets the report.

    Raises:
        FileNotFoundError: if the file is missing, as after a run that skipped nothing.
        UserError: if the samples of these settings are others than those in the file.
    """
    config = load_config(config_path, overrides, data)
    path = Path(file) if file else config.path("logs_save_path") / skipped.SKIPPED
    steps = _chosen(path, iteration, config.random_seed)
    setup, state = prepare(dataclasses.replace(config, **QUICK))
    say(_load(setup, state, weights, asked=config))
    pictures = []
    for step in steps:
        say(f"\niteration {step.iteration}: {step.problem} then")
        for batch in _batches(setup, step, path):
            pictures.append(_tell(setup, state.model, batch, say=say))
    if png:
        figures.write_png(Path(png), figures.above(pictures))
        say(f"\n{png}: raw, target and prediction of each sample, the class with most voxels")


def _tell(setup: Setup, model: nn.Module, batch: Batch, *, say: Say) -> np.ndarray:
    """Say what the samples of a batch hold, and where it becomes bad; return its picture."""
    seen = look_at(setup.method.forward, setup, model, batch)
    say(_table(setup, batch, seen))
    for line in _conclusions(setup, model, batch, seen):
        say(line)
    return _picture(setup, batch, seen)


def _chosen(path: Path, iteration: int, random_seed: int) -> list[SkippedStep]:
    """Return the steps of a file to replay. Raises FileNotFoundError if there is none."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; it is written by a run that skips a step, with --set run_name= "
            "that of another run"
        )
    content = skipped.read(path)
    if content.random_seed != random_seed:
        raise UserError(
            f"{path}: of a run with random_seed = {content.random_seed}, and here it is "
            f"{random_seed}; give --set random_seed={content.random_seed}"
        )
    if not iteration:
        return content.steps[-MOST:]
    steps = [step for step in content.steps if step.iteration == iteration]
    if not steps:
        there = [str(step.iteration) for step in content.steps]
        raise UserError(f"--iteration {iteration}: {path} has {some(there)}; write one of them")
    return steps


def _load(setup: Setup, state: State, weights: str | Path | None, *, asked: TrainConfig) -> str:
    """Load the weights to replay with; return a sentence about them.

    asked: the settings without QUICK. Those that are others than in training are noted.
    """
    config = setup.config
    if weights and not Path(weights).is_file():
        raise FileNotFoundError(
            f"{weights}: no such file; write --checkpoint FILE, or leave it out"
        )
    path = Path(weights) if weights else checkpoint.find(config.path("model_save_path"), "latest")
    if path is None:
        return "with new weights: the run has no checkpoint"
    saved = checkpoint.load(path, config.channels)
    checkpoint.load_weights(state.model, saved, path, trained=True)
    changed = changed_settings(saved, asked)
    if changed:
        note(
            f"{path}: trained with other settings ({'; '.join(changed)}); what is replayed here is "
            "by those of now"
        )
    return f"with the weights of {path}, after iteration {saved.get('iteration', 'unknown')}"


def _batches(setup: Setup, step: SkippedStep, path: Path) -> Iterator[Batch]:
    """Draw the samples of a step again, in batches. Raises UserError if they are others by now."""
    size = setup.config.batch_size
    for first in range(0, len(step.samples), size):
        part = step.samples[first : first + size]
        pieces = [setup.training.blocks[sample.number] for sample in part]
        batch = setup.training.on_device(pieces)
        for was, crop, sample in zip(part, batch.crops, batch.samples, strict=True):
            if crop != was.crop or not np.allclose(sample.centre, was.centre_nm):
                raise UserError(
                    f"{path}: sample {was.number} was in {was.crop} at {was.centre_nm} nm, and is "
                    f"in {crop} at {sample.centre.tolist()} nm with the settings and crops of now; "
                    "set back what changed (settings of sampling, datasplit), then replay"
                )
        yield batch


@dataclass(frozen=True)
class BatchPass:
    """What came of one batch."""

    logits: torch.Tensor
    """(B, classes, z, y, x), of the finest output."""
    not_finite: list[list[str]]
    """For each sample: the classes with a logit that is not finite, of any output."""
    losses: list[float]
    """Of each sample by itself, in the batch's pass."""
    layer: str
    """The first layer whose output is not finite; "" if all are."""
    parameters: list[str]
    """Those with a gradient that is not finite."""
    statistics: list[str]
    """Running means and variances that are not finite."""

    @property
    def is_finite(self) -> bool:
        """Whether a step on this batch could be taken."""
        losses_are = all(math.isfinite(loss) for loss in self.losses)
        return losses_are and not self.parameters and not self.statistics


def look_at(forward: ForwardPass, setup: Setup, model: nn.Module, batch: Batch) -> BatchPass:
    """Take one batch through the network in training mode, forwards and backwards.

    The network is left as it was.
    """
    loss_of = setup.method.loss
    with in_training_mode(model):
        with _first_not_finite(model) as layers:
            outputs = forward.outputs(model, batch.raw)
        loss_of(outputs, batch.target).backward()
        losses = []
        not_finite = []
        for i in range(len(batch.raw)):
            own = [output[i : i + 1].detach().requires_grad_() for output in outputs]
            losses.append(loss_of(own, targets.of_sample(batch.target, i)).item())
            not_finite.append(_classes_not_finite(own, setup.config.channels))
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return BatchPass(
            logits=forward.shown(outputs[0].detach()),
            not_finite=not_finite,
            losses=losses,
            layer=next(iter(layers), ""),
            parameters=_names_of_bad(gradients),
            statistics=_names_of_bad(dict(model.named_buffers())),
        )


def _names_of_bad(tensors: Mapping[str, torch.Tensor | None]) -> list[str]:
    """Return the names of tensors that are not finite."""
    bad = []
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            bad.append(name)
    return bad


def _classes_not_finite(outputs: Sequence[torch.Tensor], classes: Sequence[str]) -> list[str]:
    bad = [~output.isfinite().all(dim=4).all(3).all(2)[0] for output in outputs]
    of_any = torch.stack(bad).any(0).tolist()
    return [name for name, is_bad in zip(classes, of_any, strict=True) if is_bad]


@contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Give a list that gets the layers whose output is not finite, in the order of their calls."""
    layers: list[str] = []
    handles = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, _: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and not output.isfinite().all():
                layers.append(f"{name} ({type(module).__name__})")

        return look

    for name, module in model.named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def _table(setup: Setup, batch: Batch, seen: BatchPass) -> str:
    """Return a line for each sample."""
    labels = targets.binary(batch.target)
    names = batch.where
    width = max(map(len, names))
    lines = []
    for i, (name, sample) in enumerate(zip(names, batch.samples, strict=True)):
        centre = " ".join(f"{position:.0f}" for position in sample.centre)
        positive = int((labels[i] == 1).sum())
        known = int(targets.known(labels[i]).sum())
        line = (
            f"  {name:<{width}}  centre {centre} nm, raw {_range(batch.raw[i, :1])}, "
            f"{positive:,} positive and {known:,} known labels, loss {seen.losses[i]:.4g}"
        )
        if seen.not_finite[i]:
            line += f"; not finite: {some(seen.not_finite[i])}"
        lines.append(line)
    return "\n".join(lines)


def _range(raw: torch.Tensor) -> str:
    """'0.02 to 0.98' of raw, and how many of its voxels are not finite."""
    finite = raw[raw.isfinite()]
    lost = raw.numel() - finite.numel()
    text = f"{finite.min():.3g} to {finite.max():.3g}" if finite.numel() else "nowhere finite"
    return f"{text} ({count(lost, 'voxel')} not finite)" if lost else text


def _conclusions(setup: Setup, model: nn.Module, batch: Batch, seen: BatchPass) -> list[str]:
    """Return sentences about where a batch becomes bad."""
    precision = setup.method.forward.precision
    if seen.is_finite:
        return [f"  finite in {precision.name} with these weights, forwards and backwards"]
    lines = []
    if not batch.raw.isfinite().all():
        lines.append("  the raw is not finite: look at the data, or at the setting augment")
    elif seen.layer:
        lines.append(f"  the first layer whose output is not finite: {seen.layer}")
    elif seen.statistics:
        lines.append(f"  the first running statistic that is not finite: {seen.statistics[0]}")
    else:
        lines.append("  all layers give finite numbers: it begins in the loss or its gradient")
    if seen.parameters:
        lines.append(
            f"  the gradient is not finite in {len(seen.parameters)} of "
            f"{count(len(list(model.parameters())), 'parameter')}: {some(seen.parameters, 3)}"
        )
    if precision.name != "fp32":
        exact = runtime.Precision("fp32", precision.device)
        forward = dataclasses.replace(setup.method.forward, precision=exact)
        again = look_at(forward, setup, model, batch)
        lines.append("  finite in fp32" if again.is_finite else "  not finite in fp32 either")
    return lines


def _picture(setup: Setup, batch: Batch, seen: BatchPass) -> np.ndarray:
    """Return a row for each sample: raw, target and prediction, (y, x, 3) uint8."""
    blocks = setup.training.blocks
    ratio = np.divide(blocks.target.scale, blocks.input.scale)
    labels = targets.binary(batch.target)
    raw = batch.raw_in_unit_range().nan_to_num(0, 1, 0).clamp(0, 1)
    rows = []
    for i in range(len(batch.raw)):
        positive = (labels[i] == 1).sum((2, 3))  # (classes, z)
        channel, z = divmod(int(positive.argmax()), positive.shape[1])
        logits = seen.logits[i, channel].nan_to_num(0)
        rows.append(panels.section(raw[i, 0], labels[i, channel], logits, z=z, ratio=ratio))
    return figures.above(rows)
