"""A trained network, ready to predict: the weights of a checkpoint, and the window that fits."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import runtime
from common.config.code import note_other_code
from common.config.heads import exclusive_channels
from common.config.input_channels import values_of
from common.config.settings import TrainConfig
from common.data.crops import normalize
from common.data.crops.input_channels import ChannelVolume, open_channels
from common.data.crops.normalize import Scaling, Scalings
from common.data.samples.sampling import Patch
from common.data.splits.regions import Region
from common.data.volumes.raw import Raw
from common.data.volumes.records import PredictionRecord
from common.errors import UserError
from common.files import REPOSITORY, sha256_of_file
from common.infer.networks.window import Forward, Window, find_window, with_agreement
from common.model import activation, build, published, seen_range
from common.model.forward import ForwardPass, is_2d
from common.model.shapes import Shapes
from common.provenance import provenance
from common.talk import nm, note, note_once, some
from common.train.checkpointing import checkpoint, weights_file

# a network gives something for any raw; only its training says what it must be given
LIKE_IN_TRAINING = (
    "raw_range",
    "raw_normalization",
    "raw_sections",
    "model_kwargs",
    "derived",
    "softmax",
)
"""Settings that must be what they were in training, beside the scales of the arrays."""

ARRAYS = ("input_array_info", "target_array_info")

ASSUMED = (
    "classes",
    "derived",
    "softmax",
    "model_kwargs",
    "raw_normalization",
    "raw_sections",
)
"""Settings that weights without settings have from the experiment, beside those that a prediction
has on record anyway."""


@dataclass(frozen=True)
class Network:
    """A trained network, ready to predict."""

    forward: Forward
    window: Window
    model: nn.Module
    """In eval mode, on its device."""
    forward_pass: ForwardPass
    """What `forward` takes it through."""
    shapes: Shapes
    device: torch.device
    record: PredictionRecord
    """What a prediction will say of it: the checkpoint, its precision, the versions."""
    config: TrainConfig
    """Settings of its experiment."""
    raw_scalings: Scalings = field(default_factory=dict)
    """How the volumes were normalised that it was trained on, by their names."""
    networks_of_channels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """For each further input channel, SHA-256 of what predicted it for training, where known."""
    trained_on: frozenset[str] | None = None
    """Crops, dataset/crop, that it was trained on; None where nothing tells."""
    members: tuple[Network, ...] = ()
    """The networks of an ensemble, for which this one stands."""
    planes: tuple[Network, ...] = ()
    """The network over the planes across z, y and x, for whose mean this one stands."""

    @property
    def each(self) -> tuple[Network, ...]:
        """The networks whose mean is predicted: itself, unless it stands for several."""
        return self.members or (self,)

    @property
    def flat(self) -> int | None:
        """The axis across which a 2-D network takes slices; None of other networks."""
        return self.forward_pass.flat

    @property
    def passes(self) -> tuple[tuple[Network, ...], ...]:
        """For each network of `each` those whose mean logits it gives: itself, or its planes."""
        return tuple(network.planes or (network,) for network in self.each)

    @property
    def every_pass(self) -> list[Network]:
        """Those of `passes`, one after the other."""
        return list(itertools.chain.from_iterable(self.passes))

    def raw_of(self, region: Region) -> Raw:
        """The raw of a box as this network gets it."""
        return normalize.open_for(self.config, region.raw, self.window.input.scale)

    def channels_of(self, region: Region) -> tuple[ChannelVolume, ...]:
        """What this network gets beside the raw of a box."""
        box = (region.dataset, region.name)
        volumes = open_channels(self.config, box, self.window.input.scale)
        for volume in volumes:
            known = self.networks_of_channels.get(volume.name, frozenset())
            if known and volume.record().get("network") not in known:
                note_once(
                    f"{volume.raw.level.group}: channel '{volume.name}' is by another network than "
                    "in training; what was learnt of its values may not hold"
                )
        return tuple(volumes)

    def scaling_of(self, region: Region, raw: Raw) -> Scaling | None:
        """How the raw of a box is normalised: as in training, for a volume that it knew."""
        return normalize.of_volume(self.config, region.raw, raw, self.raw_scalings)


def load_checkpoint(config: TrainConfig, path: Path, saved: Any, sha256: str = "") -> Network:
    """The network of an experiment with the weights of a checkpoint, every one.

    saved: the content of the file, as `weights_file.read` gives it. sha256: of the file when it was
    read; of the file as it is now unless given. Raises UserError where the network, or what it must
    be given, is not that of the checkpoint.
    """
    is_whole = checkpoint.is_whole(saved)
    if is_whole:
        checkpoint.refuse_other_classes(path, saved, config.channels)
        _refuse_other_input(path, saved["settings"], config)
        note_other_code(path, saved, config)
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


def _note_assumed(config: TrainConfig, model: nn.Module, path: Path) -> None:
    """Say what weights of another trainer are taken to be."""
    note(
        f"{path}: weights without settings; that they were trained for {some(config.channels)}, in "
        f"this order, on raw of {nm(config.input_array_info['scale'])} nm {_given(config)}, is "
        "taken from the experiment"
    )
    unlike = seen_range.notice(config, model)
    if unlike:
        note(f"{path}: {unlike}")


def _assumed(config: TrainConfig) -> dict[str, str]:
    """What an experiment says of weights without settings."""
    recorded = config.record()
    assumed = {name: recorded[name] for name in ASSUMED}
    return assumed | {"input_scale": str(list(config.input_array_info["scale"]))}


def _networks_of_channels(saved: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """As of a Network, of what a checkpoint holds."""
    networks = {}
    for name, crops in saved.get("input_channels", {}).items():
        hashes = [about.get("network") for about in crops.values()]
        networks[name] = frozenset(digest for digest in hashes if digest)
    return networks


def network_of(
    config: TrainConfig,
    model: nn.Module,
    forward: ForwardPass,
    *,
    record: PredictionRecord,
    scalings: Scalings,
) -> Network:
    """A network that predicts with a model, which is in eval mode and on its device.

    Args:
        config: settings of the experiment.
        model: of the experiment.
        forward: how raw goes through it.
        record: what a prediction will say of it.
        scalings: how the raw of each volume was normalised in training.
    """
    taken = Patch(**config.input_array_info)
    given = Patch(**config.target_array_info)
    if is_2d(model) and 1 in taken.shape:
        forward = replace(forward, flat=taken.shape.index(1))
    unusual = activation.notice(model, forward.outputs, taken.shape, config.in_channels)
    if unusual:
        note(f"{config.folder}: {unusual}")
    window, shapes = over(model, forward, taken, given, in_channels=config.in_channels)
    return Network(
        partial(forward, model),
        window,
        model,
        forward,
        shapes=shapes,
        device=next(model.parameters()).device,
        record=record,
        raw_scalings=scalings,
        config=config,
    )


def over(
    model: nn.Module, forward: ForwardPass, taken: Patch, given: Patch, *, in_channels: int = 1
) -> tuple[Window, Shapes]:
    """The window of a model in eval mode, and its shapes.

    Args:
        model: on its device.
        forward: how raw goes through it.
        taken: the raw patch.
        given: what comes out for it.
        in_channels: raw, and what is beside it.
    """
    device = next(model.parameters()).device
    # float32: whether windows agree is told from differences of 1e-3, the grain of half precision
    exact = replace(forward, precision=runtime.pick_precision("fp32", device))
    shapes = Shapes(model, exact, in_channels=in_channels)
    window = replace(find_window(shapes, taken, given), flat=forward.flat)
    with torch.inference_mode():
        return with_agreement(window, partial(exact, model), device, in_channels), shapes


def as_trained(
    config: TrainConfig, recorded: Mapping[str, str], names: Sequence[str]
) -> TrainConfig:
    """Settings with the values that a checkpoint has on record for some of them.

    Those that are no literals, such as functions, stay; so do those that are not on record.
    """
    before = TrainConfig.recorded_defaults() | dict(recorded)
    values = {}
    for name in names:
        try:
            values[name] = ast.literal_eval(before[name])
        except (ValueError, SyntaxError, KeyError):
            continue
    return replace(config, **values)


def checkpoint_path(config: TrainConfig, weights: str) -> Path:
    """The checkpoint that `weights` names: "best", "latest" or a path.

    "" is the best, or the latest where none was validated, or the weights that the run is to begin
    with where it has not. A path is relative to the working folder
    or, where it is not there, to the experiment's.
    """
    if weights in ("", "best", "latest"):
        return _checkpoint_of_run(config, weights)
    path = Path(weights).expanduser()
    if not path.is_absolute() and not path.is_file():
        path = config.folder / path
    path = path.absolute()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; write --checkpoint best, latest or the path of one"
        )
    return path


def _checkpoint_of_run(config: TrainConfig, which: str) -> Path:
    folder = config.path("model_save_path")
    path = checkpoint.find(folder, which or "best")
    if path is None and not which:
        path = checkpoint.find(folder, "latest") or _given_weights(config)
    if path is None:
        raise FileNotFoundError(
            f"{folder}: no {which or 'best'} checkpoint; train first, write the run's name "
            "(--set run_name=...), or --checkpoint FILE"
        )
    return path


def _given_weights(config: TrainConfig) -> Path | None:
    """The file that load_model names, where it is there; it stands for a run that has not begun."""
    path = config.folder / Path(config.load_model).expanduser()
    if config.load_model in ("latest", "best", "scratch") or not path.is_file():
        return None
    note(
        f"{config.path('model_save_path')}: no checkpoint of this run; the weights that load_model "
        f"names are taken, {path}"
    )
    return path


def _refuse_other_input(path: Path, trained: dict[str, str], config: TrainConfig) -> None:
    """What the network was trained on is what it must be given. Raises UserError."""
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
        if ast.literal_eval(trained[name])["scale"] != getattr(config, name)["scale"]:
            changed.append(name)
    if changed:
        texts = [f"{name} was {trained[name]} and is {now[name]}" for name in changed]
        raise UserError(f"{path}: trained with other settings ({'; '.join(texts)}); set them back")


def _channels(recorded: str) -> list[tuple[str, tuple[float, ...]]]:
    """What of input channels must be as in training; where they lie and end may differ."""
    return [(channel.name, channel.range) for channel in values_of(recorded)]


def _given(config: TrainConfig) -> str:
    """How raw is given to the network, as in a sentence."""
    if config.raw_normalization in normalize.MEASURED:
        return f"with raw_normalization = '{config.raw_normalization}'"
    low, high = config.raw_range or (0, 255)
    if config.raw_normalization == "values":
        return f"as it is stored, {low:g} to {high:g}"
    return f"in [0, 1], of {low:g} to {high:g}" if config.raw_range else "in [0, 1]"


def _metric(config: TrainConfig, saved: Mapping[str, Any]) -> str:
    """The best value of a run, in words."""
    if not math.isfinite(saved["best"]):
        return "not validated"
    return f"{config.best_metric} {saved['best']:.4f} at epoch {saved['best_epoch']}"


def record_of(config: TrainConfig, path: Path, precision: str) -> PredictionRecord:
    """What a prediction will say of the weights in a file, whatever they were trained for."""
    return PredictionRecord(
        experiment=config.folder.name,
        model_name=config.model_name,
        run_name=config.path("model_save_path").name,
        checkpoint=str(path),
        metric="not validated",
        precision=precision,
        environment=provenance(REPOSITORY),
    )
