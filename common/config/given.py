"""Networks, optimisers and schedulers that a file has made, as functions that make them anew.

A run builds them itself, after seeding and over the network that trains. What was made while a
file was read is a pattern for that: a network is copied, an optimiser is built with the same groups
over the parameters of the same names, a scheduler is copied onto that optimiser.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from common.config.value_transforms import InputTransforms
from common.errors import UserError, type_and_reason


class GivenModel:
    """`build_model` of a network that there is already: gives copies of it, weights included."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.input_transforms: InputTransforms | None = None
        """What its input goes through first."""

    def __call__(self, classes: tuple[str, ...]) -> nn.Module:
        """A copy; it has its own channels, whatever the classes."""
        try:
            model = copy.deepcopy(self.model)
        except Exception as error:  # each part of a network says it in its own way
            raise UserError(
                f"model: an instance is copied, and {type(self.model).__name__} cannot be "
                f"({type_and_reason(error)}); take out what it cannot copy, such as "
                "torch.nn.utils.weight_norm (parametrizations.weight_norm can be copied)"
            ) from error
        return self.input_transforms.put_on(model) if self.input_transforms else model

    def __repr__(self) -> str:
        """Its class, size and a hash of its layers: another network has another text."""
        parameters = sum(p.numel() for p in self.model.parameters() if not is_lazy(p))
        text = f"{type(self.model).__name__}({parameters:,} parameters, {self.layers()})"
        return f"{text} after {self.input_transforms}" if self.input_transforms else text

    def layers(self) -> str:
        """A hash of the names and classes of its layers, and of the shapes of their weights."""
        parts = [f"{name} {type(layer).__name__}" for name, layer in self.model.named_modules()]
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            shape = "lazy" if is_lazy(tensor) else tuple(getattr(tensor, "shape", ()))
            parts.append(f"{name} {shape}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


class GivenOptimizer:
    """`optimizer` of one that there is already: the same over another copy of its network."""

    def __init__(self, optimizer: Optimizer, model: nn.Module):
        """Take class, groups and options of an optimiser over parameters of `model`.

        Raises UserError if it has parameters that are not of the model.
        """
        self.kind = type(optimizer)
        accepted = inspect.signature(self.kind).parameters
        self.keywords = {
            name: value for name, value in optimizer.defaults.items() if name in accepted
        }
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.groups: list[dict[str, Any]] = []
        self.names: list[list[str]] = []
        for group in optimizer.param_groups:
            strangers = [p for p in group["params"] if id(p) not in names]
            if strangers:
                raise UserError(
                    f"optimizer: {len(strangers)} of its parameters are not those of model; build "
                    "it over model.parameters()"
                )
            self.names.append([names[id(parameter)] for parameter in group["params"]])
            self.groups.append(_options(group))
        self.learning_rate = float(self.groups[0]["lr"])
        self.weight_decay = float(self.groups[0].get("weight_decay", 0.0))

    def __call__(self, parameters: Any, *, lr: float, weight_decay: float) -> Optimizer:
        """The same kind over any parameters, in one way for all of them."""
        keywords = self.keywords | {"lr": lr}
        if "weight_decay" in keywords:
            keywords["weight_decay"] = weight_decay
        return self.kind(parameters, **keywords)

    def over(self, model: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
        """The same over a copy of its network.

        lr, weight_decay: the settings. Where they are other than the file's, the rates of all
        groups change by that factor, and the decay of those that had the file's.
        """
        parameters = dict(model.named_parameters())
        groups = []
        for names, options in zip(self.names, self.groups, strict=True):
            group = dict(options)
            if lr != self.learning_rate:
                group["lr"] = float(options["lr"]) * lr / self.learning_rate
            if options.get("weight_decay") == self.weight_decay:
                group["weight_decay"] = weight_decay
            groups.append({**group, "params": [parameters[name] for name in names]})
        return self.kind(groups, **self.keywords)

    def in_words(self) -> str:
        """Its class, and the rate and decay of each group."""
        groups = []
        for names, options in zip(self.names, self.groups, strict=True):
            decay = f", weight_decay {options['weight_decay']}" if "weight_decay" in options else ""
            groups.append(f"{len(names)} tensors at lr {options['lr']}{decay}")
        return f"{self.kind.__name__}, {'; '.join(groups)}"

    def __repr__(self) -> str:
        """Its class and what its groups are, without the names of parameters."""
        groups = []
        for names, options in zip(self.names, self.groups, strict=True):
            groups.append(f"{len(names)} tensors: {_plain(options)}")
        return f"{self.kind.__name__}({'; '.join(groups)})"


class GivenScheduler:
    """`scheduler` of one that there is already: a copy of it that steps another optimiser."""

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler

    def __call__(self, optimizer: Optimizer) -> Any:
        """A copy over an optimiser with the groups of its own, as it was before the first step."""
        own = self.scheduler.optimizer.param_groups
        if len(own) != len(optimizer.param_groups):
            raise UserError(
                f"scheduler: an instance over an optimiser of {len(own)} groups of parameters, and "
                f"this one has {len(optimizer.param_groups)}; give the optimiser that it is over"
            )
        for group, pattern in zip(optimizer.param_groups, own, strict=True):
            if float(group["lr"]) != float(_options(pattern)["lr"]):
                raise UserError(
                    "scheduler: an instance keeps the learning rate that it was made with, "
                    f"{float(_options(pattern)['lr']):g}; change it where the file makes the "
                    "optimiser, or give scheduler as a class"
                )
        # torch's schedulers mark the optimiser that they are built over, and warn without it
        LambdaLR(optimizer, lambda _: 1.0)
        for group, pattern in zip(optimizer.param_groups, own, strict=True):
            values = {name: value for name, value in pattern.items() if name != "params"}
            group.update(copy.deepcopy(values))
        # every reference to its optimiser, also those of schedulers in it, becomes one to the new
        return copy.deepcopy(self.scheduler, {id(self.scheduler.optimizer): optimizer})

    def __repr__(self) -> str:
        """Its class and its numbers."""
        return f"{type(self.scheduler).__name__}({_plain(self.scheduler.state_dict())})"


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group was given: a scheduler has changed its rate, and kept the first one."""
    options = {name: value for name, value in group.items() if name != "params"}
    options["lr"] = options.pop("initial_lr", options["lr"])
    return options


def _plain(values: Mapping[str, Any]) -> str:
    """The numbers and texts among values, in the order of their names."""
    parts = []
    for name in sorted(values):
        value = values[name]
        if name.startswith("_") and name not in ("_milestones", "_schedulers"):
            continue
        if isinstance(value, Mapping):
            parts.append(f"{name}=({_plain(value)})")
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            inner = [_plain(v) for v in value if isinstance(v, Mapping)]
            parts.append(f"{name}=[{'; '.join(inner)}]")
        elif isinstance(value, bool | int | float | str | list | tuple):
            parts.append(f"{name}={value}")
    return ", ".join(parts)
