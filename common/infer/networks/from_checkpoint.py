"""The network of an experiment with the weights of a checkpoint.

A network gives something for any raw; only its training says what it must be given. What a
checkpoint has on record is therefore compared with the settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from common import runtime
from common.config.as_text import from_text
from common.config.code import note_other_code
from common.config.heads import exclusive_channels
from common.config.input_channels import values_of
from common.config.settings import TrainConfig
from common.data.crops import normalize
from common.errors import UserError
from common.files import sha256_of_file
from common.infer.networks.network import Network, network_of, record_of
from common.model import build, published, seen_range
from common.model.forward import ForwardPass
from common.talk import nm, note, some
from common.train.checkpointing import checkpoint, weights_file

LIKE_IN_TRAINING = (
    "raw_range",
    "raw_normalization",
    "raw_sections",
    "model_kwargs",
    "derived",
    "softmax",
)
"""Settings that must be what they were in training."""

OF_A_RUN = ("model_name", "run_name", "random_seed")
"""Settings that make its name."""

ARRAYS = ("input_array_info", "target_array_info")
"""Settings whose scales must be what they were in training."""

ASSUMED = (
    "classes",
    "derived",
    "softmax",
    "model_kwargs",
    "raw_normalization",
    "raw_sections",
)
"""Settings that weights without settings have from the experiment.

A prediction has them on record, beside those that it has on record anyway.
"""


def load_checkpoint(config: TrainConfig, path: Path, saved: Any, sha256: str = "") -> Network:
    """Return the network of an experiment with the weights of a checkpoint, every one of them.

    Raise UserError where the network, or what it must be given, is not that of the checkpoint.

    Args:
        config: settings of the experiment.
        path: of the checkpoint.
        saved: content of the file, as `weights_file.read` gives it.
        sha256: of the file when it was read; of the file as it is now unless given.
    """
    is_whole = checkpoint.is_whole(saved)
    if is_whole:
        checkpoint.refuse_other_classes(path, saved, config.channels)
        _refuse_other_input(path, saved["settings"], config)
        note_other_code(path, saved, config)
        _note_other_run(path, saved["settings"], config)
    device = runtime.pick_device(config.device)
    with published.replaced():  # by the weights that are there already
        model = build.build_model(config, device)
    load_weights = checkpoint.load_weights if is_whole else weights_file.load_weights
    load_weights(model, saved, path)
    if not is_whole:
        _note_assumed(config, model, path)
    forward = ForwardPass(
        runtime.pick_precision(config.precision, device),
        config.channels_last,
        exclusive=exclusive_channels(config),
    )
    record = record_of(config, path, forward.precision.name)
    record = replace(record, sha256=sha256 or sha256_of_file(path))
    if is_whole:
        record = replace(record, epoch=saved["epoch"], metric=_metric(config, saved))
    else:
        record = replace(record, assumed=_assumed(config))
    scalings = checkpoint.scalings_in(saved) if is_whole else {}
    network = network_of(config, model.eval(), forward, record=record, scalings=scalings)
    return replace(network, networks_of_channels=_networks_of_channels(saved) if is_whole else {})


def _note_other_run(path: Path, trained: Mapping[str, str], config: TrainConfig) -> None:
    """Note a checkpoint in the folder of a run that another run wrote: it was copied or renamed.

    trained: the settings that it has on record.
    """
    if path.parent != config.path("model_save_path"):
        return  # it was named
    try:
        model, template, seed = (from_text(trained[name]) for name in OF_A_RUN)
        run = template.format(model_name=model, random_seed=seed)
    except (KeyError, ValueError, AttributeError):  # as of another program
        return
    if (model, run) != (config.model_name, config.run):
        note(
            f"{path}: was written by another run, {model}/{run}, whose weights predict under the "
            f"name {config.model_name}/{config.run}"
        )


def _note_assumed(config: TrainConfig, model: nn.Module, path: Path) -> None:
    """Note what weights of another trainer are taken to be."""
    note(
        f"{path}: weights without settings; that they were trained for {some(config.channels)}, in "
        f"this order, on raw of {nm(config.input_array_info['scale'])} nm {_given(config)}, is "
        "taken from the experiment"
    )
    unlike = seen_range.notice(config, model)
    if unlike:
        note(f"{path}: {unlike}")


def _assumed(config: TrainConfig) -> dict[str, str]:
    """Return what an experiment says of weights without settings."""
    recorded = config.record()
    assumed = {name: recorded[name] for name in ASSUMED}
    return assumed | {"input_scale": str(list(config.input_array_info["scale"]))}


def _networks_of_channels(saved: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Return `Network.networks_of_channels` of what a checkpoint holds."""
    networks = {}
    for name, crops in saved.get("input_channels", {}).items():
        hashes = [about.get("network") for about in crops.values()]
        networks[name] = frozenset(digest for digest in hashes if digest)
    return networks


def as_trained(
    config: TrainConfig, recorded: Mapping[str, str], names: Sequence[str]
) -> TrainConfig:
    """Return the settings with the values that a checkpoint has on record for some of them.

    Values that are no literals, such as functions, stay; so do those that are not on record.

    Args:
        config: the settings.
        recorded: values as text, by setting.
        names: of the settings that are replaced.
    """
    before = TrainConfig.recorded_defaults() | dict(recorded)
    values = {}
    for name in names:
        try:
            values[name] = from_text(before[name])
        except (ValueError, KeyError):
            continue
    return replace(config, **values)


def _refuse_other_input(path: Path, trained: dict[str, str], config: TrainConfig) -> None:
    """Raise UserError where the settings say otherwise what goes in than those of the training.

    A network gives something for any raw: it must be given what it was trained on.

    Args:
        path: of the checkpoint.
        trained: the settings that it has on record.
        config: the settings of now.
    """
    # a setting that did not exist yet was what its default is
    trained = TrainConfig.recorded_defaults() | trained
    now = config.record()
    changed = [name for name in LIKE_IN_TRAINING if trained[name] != now[name]]
    # a record of another program need not have it
    built = trained.setdefault("build_model", now["build_model"])
    # arguments, layers, and transforms of the input, of a functools.partial or of a network that a
    # public configuration made; a function has none, and of its code see note_other_code
    if built.partition("(")[2] != now["build_model"].partition("(")[2]:
        changed.append("build_model")
    if _channels(trained["input_channels"]) != _channels(now["input_channels"]):
        changed.append("input_channels")
    for name in ARRAYS:
        # shapes may differ: windows grow
        if from_text(trained[name])["scale"] != getattr(config, name)["scale"]:
            changed.append(name)
    if changed:
        texts = [f"{name} was {trained[name]} and is {now[name]}" for name in changed]
        raise UserError(f"{path}: trained with other settings ({'; '.join(texts)}); set them back")


def _channels(recorded: str) -> list[tuple[str, tuple[float, ...]]]:
    """Return what of input channels must be as in training; where they lie may differ."""
    return [(channel.name, channel.range) for channel in values_of(recorded)]


def _given(config: TrainConfig) -> str:
    """Return in words how raw is given to the network."""
    if config.raw_normalization in normalize.MEASURED:
        return f"with raw_normalization = '{config.raw_normalization}'"
    low, high = config.raw_range or (0, 255)
    if config.raw_normalization == "values":
        return f"as it is stored, {low:g} to {high:g}"
    return f"in [0, 1], of {low:g} to {high:g}" if config.raw_range else "in [0, 1]"


def _metric(config: TrainConfig, saved: Mapping[str, Any]) -> str:
    """Return the best value of a run, in words."""
    if not math.isfinite(saved["best"]):
        return "not validated"
    return f"{config.best_metric} {saved['best']:.4f} at epoch {saved['best_epoch']}"
