"""Network, optimiser, scheduler and loss of a public configuration, mostly instances."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn

from common.config.as_text import as_text
from common.config.given import GivenModel, GivenOptimizer, GivenScheduler
from common.config.public.draft import Draft
from common.errors import UserError


def model(draft: Draft, model: Any) -> None:
    """Copies of an instance; what wraps it for several GPUs or a compiler is taken off."""
    if isinstance(model, nn.DataParallel):
        draft.note(
            "model", "DataParallel is taken off: several GPUs are asked for by train --gpus all"
        )
        model = model.module
    original = getattr(model, "_orig_mod", None)
    if isinstance(original, nn.Module):
        draft.note("model", "torch.compile is taken off: compile = True compiles it for training")
        draft.settings.setdefault("compile", True)
        model = original
    if isinstance(model, torch.jit.ScriptModule):
        draft.problems.append("model is a TorchScript program; write the network it was made of")
        return
    if not isinstance(model, nn.Module):
        kind = "a class" if isinstance(model, type) else f"a {type(model).__name__}"
        draft.problems.append(f"model is {kind}; write an instance of torch.nn.Module")
        return
    draft.given["model"] = model
    draft.settings["build_model"] = GivenModel(model)
    draft.note(
        "model",
        "an instance; its weights were drawn while the file was read, with random_seed (or SEED) "
        "seeded before, so that equal seeds give equal weights; in the toolbox they are drawn "
        "before it seeds, and differ in every run",
    )


def optimizer(draft: Draft, optimizer: Any) -> None:
    """An instance is built again over the network that trains; a class is taken as it is."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        draft.settings["optimizer"] = optimizer
        return
    model = draft.given.get("model")
    if not isinstance(model, nn.Module):
        return
    try:
        given = GivenOptimizer(optimizer, model)
    except UserError as error:
        draft.problems.append(str(error))
        return
    draft.settings["optimizer"] = given
    written = draft.given.get("learning_rate")
    draft.settings["learning_rate"] = given.learning_rate
    draft.settings["weight_decay"] = given.weight_decay
    sentence = f"an instance; built again over the network that trains: {given.in_words()}"
    if written not in (None, given.learning_rate):
        sentence += f"; learning_rate = {written} has no effect, as in the toolbox"
    draft.note("optimizer", sentence)


def scheduler(draft: Draft, scheduler: Any) -> None:
    """An instance is copied onto the optimiser of the run; a class is taken as it is."""
    if scheduler is None:
        return
    if isinstance(scheduler, type) or not hasattr(scheduler, "optimizer"):
        draft.settings["scheduler"] = scheduler
        draft.note("scheduler", "stepped once an epoch, as in the toolbox (scheduler_step)")
        return
    if not isinstance(draft.given.get("optimizer"), torch.optim.Optimizer):
        optimizer(draft, scheduler.optimizer)
    elif draft.given["optimizer"] is not scheduler.optimizer:
        draft.problems.append(
            "scheduler is over another optimiser than optimizer; build it over that one"
        )
        return
    draft.settings["scheduler"] = GivenScheduler(scheduler)
    draft.note("scheduler", "an instance; copied onto the optimiser of the run, one step an epoch")


def scheduler_kwargs(draft: Draft, keywords: Any) -> None:
    """What a scheduler that is a class is built with."""
    scheduler = draft.given.get("scheduler")
    if not keywords:
        return
    if scheduler is None or not isinstance(scheduler, type | functools.partial):
        draft.note("scheduler_kwargs", "no effect without a scheduler that is a class")
        return
    draft.settings["scheduler_kwargs"] = keywords


def criterion(draft: Draft, criterion: Any) -> None:
    """A loss over known voxels, with the arguments that the file gives it."""
    keywords = dict(draft.given.get("criterion_kwargs") or {})
    keywords.pop("reduction", None)  # the toolbox sets it, and so does the mean over known voxels
    weighs = draft.given.get("weight_loss", True)
    if weighs and "pos_weight" in keywords:
        draft.note(
            "criterion_kwargs",
            "pos_weight is that of weight_loss, as in the toolbox; weight_loss = False takes yours",
        )
        del keywords["pos_weight"]
    if criterion in (None, nn.BCEWithLogitsLoss) and not keywords:
        draft.note("criterion", "weighted_bce, which is BCEWithLogitsLoss over known voxels")
        return
    criterion = criterion or nn.BCEWithLogitsLoss
    if not keywords:
        draft.settings["criterion"] = criterion
    elif inspect.isclass(criterion):
        draft.settings["criterion"] = functools.partial(criterion, **keywords)
    else:
        draft.problems.append(
            f"criterion_kwargs = {as_text(keywords)} with a criterion that is no class; write the "
            "class, or leave criterion_kwargs out"
        )
        return
    draft.note("criterion", "applied where voxels are annotated, see common.train.losses.criterion")


def criterion_kwargs(draft: Draft, keywords: Any) -> None:
    """Arguments of the default loss; those of another one go with it."""
    if keywords and "criterion" not in draft.given:
        criterion(draft, None)
