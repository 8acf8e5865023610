"""A trained network, ready to predict: a model on its device, and the window that fits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from common import runtime
from common.config.settings import TrainConfig
from common.data.crops import normalize
from common.data.crops.input_channels import ChannelVolume, open_channels
from common.data.crops.normalize import Scaling, Scalings
from common.data.samples.sampling import Patch
from common.data.splits.regions import Region
from common.data.volumes.raw import Raw
from common.data.volumes.records import PredictionRecord
from common.files import REPOSITORY
from common.infer.networks.window import Forward, Window, find_window, with_agreement
from common.model import activation
from common.model.forward import ForwardPass, is_2d
from common.model.shapes import Shapes
from common.provenance import provenance
from common.talk import note, note_once


@dataclass(frozen=True)
class Network:
    """A trained network, ready to predict."""

    forward: Forward
    """The forward pass of `model`, of one window or several."""
    window: Window
    model: nn.Module
    """In eval mode, on its device."""
    forward_pass: ForwardPass
    """How raw goes through `model`."""
    shapes: Shapes
    """What it gives, and takes of memory, for an input of a shape."""
    device: torch.device
    record: PredictionRecord
    """What a prediction says of the network: the checkpoint, its precision, the versions."""
    config: TrainConfig
    """Settings of the network's experiment."""
    raw_scalings: Scalings = field(default_factory=dict)
    """How the volumes that it was trained on were normalised, by their names."""
    networks_of_channels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """For each input channel beside raw, SHA-256 of what predicted it for training, if known."""
    trained_on: frozenset[str] | None = None
    """Crops, dataset/crop, that it was trained on; None where that is unknown."""
    members: tuple[Network, ...] = ()
    """The networks of an ensemble, for which this one stands."""
    planes: tuple[Network, ...] = ()
    """The network over the planes across z, y and x, whose mean this one stands for."""

    @property
    def members_or_self(self) -> tuple[Network, ...]:
        """The networks whose mean is predicted: itself, unless it stands for several."""
        return self.members or (self,)

    @property
    def flat(self) -> int | None:
        """The axis across which a 2-D network takes slices; None for other networks."""
        return self.forward_pass.flat

    @property
    def passes(self) -> tuple[tuple[Network, ...], ...]:
        """For each of `members_or_self` those whose mean logits it gives: itself, or its planes."""
        return tuple(network.planes or (network,) for network in self.members_or_self)

    @property
    def every_pass(self) -> list[Network]:
        """The networks of `passes`, one after the other."""
        return list(itertools.chain.from_iterable(self.passes))

    def raw_of(self, region: Region) -> Raw:
        """Return the raw of a box as this network gets it."""
        return normalize.open_for(self.config, region.raw, self.window.input.scale)

    def channels_of(self, region: Region) -> tuple[ChannelVolume, ...]:
        """Return the network's inputs beside the raw of a box.

        Note one that another network predicted than in training.
        """
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
        """Return how the raw of a box is normalised: as in training, if its volume was there."""
        return normalize.of_volume(self.config, region.raw, raw, self.raw_scalings)


def network_of(
    config: TrainConfig,
    model: nn.Module,
    forward: ForwardPass,
    *,
    record: PredictionRecord,
    scalings: Scalings,
) -> Network:
    """Return a network that predicts with a model, which is in eval mode and on its device.

    Args:
        config: settings of the experiment.
        model: of the experiment.
        forward: how raw goes through it.
        record: what a prediction will say of the network.
        scalings: how the raw of each volume was normalised in training.
    """
    input_patch = Patch(**config.input_array_info)
    output_patch = Patch(**config.target_array_info)
    if is_2d(model) and 1 in input_patch.shape:
        forward = replace(forward, flat=input_patch.shape.index(1))
    unusual = activation.notice(model, forward.outputs, input_patch.shape, config.in_channels)
    if unusual:
        note(f"{config.folder}: {unusual}")
    window, shapes = over(model, forward, input_patch, output_patch, in_channels=config.in_channels)
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
    model: nn.Module,
    forward: ForwardPass,
    input_patch: Patch,
    output_patch: Patch,
    *,
    in_channels: int = 1,
) -> tuple[Window, Shapes]:
    """Return the window of a model in eval mode, and its shapes.

    Args:
        model: on its device.
        forward: how raw goes through it.
        input_patch: of raw.
        output_patch: that comes out for it.
        in_channels: raw, and the inputs beside it.
    """
    device = next(model.parameters()).device
    # float32: whether windows agree is told from differences of 1e-3, the grain of half precision
    exact = replace(forward, precision=runtime.pick_precision("fp32", device))
    shapes = Shapes(model, exact, in_channels=in_channels)
    window = replace(find_window(shapes, input_patch, output_patch), flat=forward.flat)
    with torch.inference_mode():
        return with_agreement(window, partial(exact, model), device, in_channels), shapes


def record_of(config: TrainConfig, path: Path, precision: str) -> PredictionRecord:
    """Return what a prediction will say of the weights in a file, however they were trained."""
    return PredictionRecord(
        experiment=config.folder.name,
        model_name=config.model_name,
        run_name=config.path("model_save_path").name,
        checkpoint=str(path),
        metric="not validated",
        precision=precision,
        environment=provenance(REPOSITORY),
    )
