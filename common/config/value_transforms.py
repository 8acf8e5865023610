"""Value transforms of cellmap-data and torchvision, as settings where they are some.

The others are applied as they are. Raw is in [0, 1] here before any of them, and labels are 0, 1 or
unknown: what only brings them there is done already. In the public toolbox raw keeps its 0 to 255
under ToDtype(float, scale=True) since it is a float then, and RandomContrast and RandomGamma clip
it to 1.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.config.as_text import as_text
from common.errors import UserError

DONE_ALREADY = ("ToDtype", "ConvertImageDtype", "ToImage", "NaNtoNum", "Identity")
"""Transforms that leave raw as it is here: float32 in [0, 1], without NaN."""

OF_LABELS = ("ToDtype", "Binarize", "Identity")
"""Transforms that leave labels as they are here: 1, 0 or unknown."""

INTENSITY = {
    "RandomGamma": ("gamma_range", "gamma_range"),
    "RandomContrast": ("contrast_range", "contrast_range"),
    "GaussianNoise": ("std", "noise_std"),
}
"""Transforms of cellmap-data: their attribute, and the setting that it is here."""

Transform = Any
"""Takes a patch (z, y, x) and gives it back: a module, a transform of torchvision, a function."""


class Normalize(nn.Module):
    """(x + shift) * scale: the transform of this name that cellmap-data had until 2025."""

    def __init__(self, shift: float = 0, scale: float = 1 / 255):
        super().__init__()
        self.shift = shift
        self.scale = scale

    def forward(self, raw: Tensor) -> Tensor:
        """Raw of 0 to 255 in [0, 1], with the defaults."""
        return (raw.float() + self.shift) * self.scale


@dataclass
class RawTransforms:
    """What a list of raw transforms is here."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The settings that it gives."""
    done: list[str] = field(default_factory=list)
    """Names of those with nothing left to do."""
    others: list[Transform] = field(default_factory=list)
    """Those that no setting stands for."""


def read_raw(transforms: Any) -> RawTransforms:
    """Read the raw transforms of a configuration: one, a list of them, or nested ones."""
    reading = RawTransforms()
    probabilities: list[float] = []
    for transform, probability in _flat(transforms):
        name = type(transform).__name__
        if name in INTENSITY and _is_plain(transform) and _fits(probability, probabilities):
            attribute, setting = INTENSITY[name]
            value = getattr(transform, attribute)
            reading.settings[setting] = tuple(value) if attribute != "std" else float(value)
            probabilities.append(probability)
        elif name == "Normalize" and hasattr(transform, "shift"):
            low = -float(transform.shift)
            high = low + 1 / float(transform.scale)
            reading.done.append(name)
            if abs(low) > 1e-6 or abs(high - 255) > 1e-3:
                reading.settings["raw_range"] = (low, high)
        elif name in DONE_ALREADY and probability == 1:
            reading.done.append(name)
        else:
            reading.others.append(
                transform if probability == 1 else Sometimes(transform, probability)
            )
    if probabilities:
        reading.settings["intensity_probability"] = probabilities[0]
    return reading


def others_of_labels(transforms: Any) -> list[Transform]:
    """The target transforms that do more than to bring labels to 0 and 1.

    transforms: one, a list of them, or a dict by class.
    """
    parts = list(transforms.values()) if isinstance(transforms, dict) else [transforms]
    found = []
    for part in parts:
        for transform, _ in _flat(part):
            if type(transform).__name__ not in OF_LABELS:
                found.append(transform)
    return found


def _fits(probability: float, before: Sequence[float]) -> bool:
    """Whether a change of intensity has the probability of those before: there is one for all."""
    return not before or before[0] == probability


def _is_plain(transform: Any) -> bool:
    """Whether it is not noise with a mean, which shifts raw, too."""
    return not getattr(transform, "mean", 0)


def _flat(transforms: Any, probability: float = 1.0) -> Iterator[tuple[Transform, float]]:
    """Each transform with its probability, those within others taken out."""
    if transforms is None:
        return
    if isinstance(transforms, list | tuple | nn.Sequential | nn.ModuleList):
        for part in transforms:
            yield from _flat(part, probability)
        return
    name = type(transforms).__name__
    if name == "Compose":
        yield from _flat(list(transforms.transforms), probability)
    elif name == "RandomApply" and len(transforms.transforms) == 1:
        yield from _flat(transforms.transforms[0], probability * float(transforms.p))
    else:
        yield transforms, probability


class Sometimes:
    """A transform that is applied with a probability, as in a RandomApply."""

    def __init__(self, transform: Transform, probability: float):
        self.transform = transform
        self.probability = probability

    def __call__(self, patch: Tensor) -> Tensor:
        """The patch, changed or not."""
        return self.transform(patch) if torch.rand(1) < self.probability else patch


class GivenTransforms:
    """`augment` of transforms as they are: on the training device, one patch after the other.

    What they draw from the global generators of torch, NumPy and Python follows the seed of the
    sample, so that a run is the same for any number of workers, and after a stop.
    """

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = tuple(transforms)

    def __call__(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """Raw (1, z, y, x) in [0, 1], each transform applied to (z, y, x)."""
        seed = torch.randint(2**32, (1,), generator=generator, device=generator.device)
        with _seeded(int(seed), raw.device):
            changed = _applied(self.transforms, raw[0])
        if changed.numel() != raw.numel():
            raise UserError(
                f"{self}: gives {tuple(changed.shape)} for a patch {tuple(raw.shape[1:])}; leave "
                "out what changes its shape"
            )
        return changed.reshape(raw.shape).float()

    def __repr__(self) -> str:
        """Their names and numbers."""
        return names_of(self.transforms)


class InputTransforms:
    """A hook of a network: transforms that its input goes through first, wherever it is used.

    In training those of training, else those of validation, which prediction needs as well.
    """

    def __init__(self, train: Sequence[Transform], validation: Sequence[Transform]):
        self.train = tuple(train)
        self.validation = tuple(validation)

    def __call__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Raw (B, 1, ...) of a forward pass, each patch (...) by itself."""
        transforms = self.train if model.training else self.validation
        raw, *others = inputs
        patches = [_applied(transforms, patch[0]).reshape(patch.shape) for patch in raw]
        return torch.stack(patches).to(raw.dtype), *others

    def put_on(self, model: nn.Module) -> nn.Module:
        """The network with this hook."""
        model.register_forward_pre_hook(copy.deepcopy(self))
        return model

    def __repr__(self) -> str:
        """Names and numbers of both."""
        return f"train {names_of(self.train)}, validation {names_of(self.validation)}"


class TransformedTargets:
    """`criterion` over targets that transforms have changed, as they are."""

    takes_unknown = True
    """The trainer gives it NaN for unknown voxels."""

    def __init__(self, loss: Any, transforms: Any, classes: Sequence[str]):
        """Take a class of torch's losses, or a functools.partial of one, or a function.

        transforms: of all classes, or a dict by class. classes: in the order of the channels.
        """
        self.loss = loss
        self.transforms = transforms
        self.classes = tuple(classes)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over known voxels; both (B, classes, z, y, x)."""
        changed = torch.stack([self._of_patch(patch) for patch in target])
        known = ~changed.isnan()
        is_class = isinstance(self.loss, type | functools.partial)
        loss = self.loss(reduction="none") if is_class else self.loss
        losses = loss(logits, changed.nan_to_num(0))
        if losses.shape != logits.shape:
            return losses.mean()
        return torch.where(known, losses, 0).sum() / known.sum().clamp(min=1)

    def _of_patch(self, patch: Tensor) -> Tensor:
        channels = []
        for name, labels in zip(self.classes, patch, strict=True):
            transforms = self.transforms
            if isinstance(transforms, dict):
                transforms = transforms.get(name, [])
            parts = [transform for transform, _ in _flat(transforms)]
            channels.append(_applied(parts, labels).float())
        return torch.stack(channels)

    def __repr__(self) -> str:
        """Its loss and the transforms."""
        parts = self.transforms
        listed = list(parts.items()) if isinstance(parts, dict) else [("all", parts)]
        texts = []
        for name, part in listed:
            transforms = [transform for transform, _ in _flat(part)]
            texts.append(f"{name}: {names_of(transforms)}")
        return f"{as_text(self.loss)} of targets through {'; '.join(texts)}"


def names_of(transforms: Sequence[Any]) -> str:
    """Transforms with their numbers, in one line and without addresses."""
    return f"[{', '.join(_text(transform) for transform in transforms)}]"


def _text(transform: Any) -> str:
    if isinstance(transform, Sometimes):
        return f"{_text(transform.transform)} with probability {transform.probability:g}"
    if not isinstance(transform, nn.Module):
        return as_text(transform)
    numbers = []
    for name, value in vars(transform).items():
        is_private = name.startswith("_") or name == "training"
        if not is_private and isinstance(value, bool | int | float | str | list | tuple):
            numbers.append(f"{name}={as_text(value)}")
    return f"{type(transform).__name__}({', '.join(numbers)})"


def _applied(transforms: Sequence[Transform], patch: Tensor) -> Tensor:
    for transform in transforms:
        patch = transform(patch)
    return patch


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context manager: the global generators begin at `seed`, and are afterwards as before."""
    of_python = random.getstate()
    of_numpy = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
