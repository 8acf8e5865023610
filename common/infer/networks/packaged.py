"""The network in a package of bioimage.io: its weights, and what is done before and after them."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.errors import UserError
from common.model import exported
from common.talk import note, some

# machines round differently
TOLERANCE = 1e-3
"""Difference up to which a package's own example comes out, as a fraction of its largest value."""

EPSILON = 1e-6
"""Keeps probabilities from 0 and 1, of which there is no logit."""

Step = Callable[[torch.Tensor], torch.Tensor]
"""A function of an array (1, channels, ...) that gives another one."""


class Packaged(nn.Module):
    """A network of a package: takes raw and gives logits, both (B, channels, z, y, x)."""

    def __init__(self, weights: Any, before: Sequence[Step], after: Sequence[Step], axes: str):
        """Put a network together.

        Args:
            weights: raw to outputs, as the package has them.
            before: steps that raw goes through first.
            after: steps that outputs go through.
            axes: of raw in the package, without batch and channel, such as zyx or yx.
        """
        super().__init__()
        self.weights = weights
        self.before = tuple(before)
        self.after = tuple(after)
        self.axes = axes
        # the engine asks a network for its device by its weights
        self.device_of = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Return logits; patches go one after the other, since a package may take one at a time."""
        return torch.cat([self._logits_of_patch(patch) for patch in raw.split(1)])

    def _logits_of_patch(self, raw: torch.Tensor) -> torch.Tensor:
        """Return logits (1, classes, z, y, x) of one patch (1, channels, z, y, x)."""
        flat = [2 + axis for axis, name in enumerate("zyx") if name not in self.axes]
        values = raw.squeeze(flat)
        for step in self.before:
            values = step(values)
        # weights may have been recorded without a gradient, and are not to have one
        with torch.no_grad():
            values = self.weights(values)
        for step in self.after:
            values = step(values)
        for axis in flat:
            values = values.unsqueeze(axis)
        return values


def network_in(path: Path, description: Any, is_ours: bool) -> Packaged:
    """Return the network of a package, in eval mode, on the CPU.

    A package of others has its own example tried. Raise UserError where that comes out otherwise,
    and for what cannot be run here.

    Args:
        path: of the package.
        description: a model of bioimageio.spec, format 0.5.
        is_ours: whether it takes raw as the engine gives it, and gives logits.
    """
    raw = description.inputs[0]
    output = description.outputs[0]
    _refuse_other_order(path, raw, output)
    weights = _weights(path, description.weights)
    names = {str(axis.id) for axis in raw.axes if axis.type == "space"}
    axes = "".join(name for name in "zyx" if name in names)
    if is_ours:
        return Packaged(weights, [], [], axes).eval()
    before = _steps(path, raw.preprocessing)
    after = _steps(path, output.postprocessing)
    _try_example(path, (*before, weights, *after), raw=raw, output=output)
    return Packaged(weights, before, _to_logits(path, after, output), axes).eval()


def _weights(path: Path, weights: Any) -> Any:
    """Return a function of TorchScript weights, else of ONNX. Raise UserError for other weights."""
    torchscript = getattr(weights, "torchscript", None)
    if torchscript is not None:
        return exported.open_torchscript(torchscript.get_reader().read())
    if getattr(weights, "onnx", None) is not None:
        return _onnx(path, weights.onnx)
    kinds = [name for name, entry in weights if entry is not None]
    raise UserError(
        f"{path}: its weights are {some(kinds)}; TorchScript and ONNX can be run here "
        "(bioimageio.core converts others: bioimageio add-weights)"
    )


def _onnx(path: Path, entry: Any) -> Any:
    """Return a function of ONNX weights. Raise UserError without onnxruntime."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            f"{path}: its weights are ONNX; pip install 'csc-baselines[bioimage]', which runs them"
        )
    run = exported.open_onnx(entry.get_reader().read())
    return lambda raw: run(raw.cpu()).to(raw.device)


def _refuse_other_order(path: Path, raw: Any, output: Any) -> None:
    """Raise UserError unless axes are batch, channel, then z, y, x or some of them."""
    for tensor in (raw, output):
        kinds = [axis.type for axis in tensor.axes]
        names = [str(axis.id) for axis in tensor.axes if axis.type == "space"]
        if kinds[:2] != ["batch", "channel"] or names != sorted(names, reverse=True):
            listed = ", ".join(str(axis.id) for axis in tensor.axes)
            raise UserError(f"{path}: axes {listed}; batch, channel, z, y, x can be run here")


# What a package does before and after


STEPS = (
    "ensure_dtype",
    "clip",
    "scale_linear",
    "zero_mean_unit_variance",
    "fixed_zero_mean_unit_variance",
    "scale_range",
    "sigmoid",
    "softmax",
)
"""Steps of the format that can be run here, by id; means and percentiles are of each window."""


def _steps(path: Path, listed: Sequence[Any]) -> list[Step]:
    """Return the steps that a description lists. Raise UserError for one that is not in STEPS."""
    steps: list[Step] = []
    for entry in listed:
        name = str(entry.id)
        if name not in STEPS:
            raise UserError(
                f"{path}: '{name}' in its processing; {', '.join(STEPS)} can be run here"
            )
        steps.append(partial(_step, name, getattr(entry, "kwargs", None)))
    return steps


def _step(  # noqa: PLR0911  # one for each of STEPS
    name: str, options: Any, values: torch.Tensor
) -> torch.Tensor:
    """Return what a step makes of values. options: its arguments in the description."""
    match name:
        case "ensure_dtype":
            return values.to(getattr(torch, options.dtype))
        case "clip":
            return values.clamp(options.min, options.max)
        case "scale_linear":
            gain = torch.as_tensor(options.gain, dtype=torch.float32, device=values.device)
            offset = torch.as_tensor(options.offset, dtype=torch.float32, device=values.device)
            return values * gain + offset
        case "zero_mean_unit_variance":
            return (values - values.mean()) / (values.std(correction=0) + float(options.eps))
        case "fixed_zero_mean_unit_variance":
            return (values - float(options.mean)) / float(options.std)
        case "scale_range":
            percentiles = (options.min_percentile, options.max_percentile)
            low, high = np.percentile(values.cpu().numpy(), percentiles)
            return (values - float(low)) / float(high - low + options.eps)
        case "sigmoid":
            return torch.sigmoid(values)
    return values.softmax(1)


def _to_logits(path: Path, after: Sequence[Step], output: Any) -> list[Step]:
    """Return the steps after the weights, changed so that logits come out.

    The engine makes probabilities of them itself.
    """
    listed = [str(entry.id) for entry in output.postprocessing]
    kept = list(zip(listed, after, strict=True))
    # the last number type does not matter here
    while kept and kept[-1][0] == "ensure_dtype":
        kept.pop()
    if kept and kept[-1][0] == "sigmoid":
        return [step for _, step in kept[:-1]]
    steps = [step for _, step in kept]
    example = _example(output)
    if example.min() >= 0 and example.max() <= 1:
        return [*steps, lambda probability: torch.logit(probability.float(), EPSILON)]
    note(f"{path}: gives values beyond 0 to 1, which are taken for logits")
    return steps


def _example(tensor: Any) -> np.ndarray:
    """Return the example of an input or output that the package has."""
    return np.load(io.BytesIO(tensor.test_tensor.get_reader().read()), allow_pickle=False)


def _try_example(path: Path, steps: Sequence[Step], *, raw: Any, output: Any) -> None:
    """Raise UserError unless a package's own example comes out."""
    values = torch.from_numpy(_example(raw)).float()
    with exported.quiet(), torch.no_grad():
        for step in steps:
            values = step(values)
    expected = torch.from_numpy(_example(output)).float()
    unlike = exported.difference(expected, values)
    if unlike > TOLERANCE:
        raise UserError(
            f"{path}: its own example comes out otherwise here, by {unlike:.2g} of the largest; "
            "`bioimageio test FILE` says whether it does so in its own program"
        )
