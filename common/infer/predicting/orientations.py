"""The mean of what a network gives of mirrored and transposed copies of raw.

Affinities turn with the copy. One of a mirrored copy is about a pair that the first copy sees from
its other voxel: it is moved there by its offset. Near the border of a window, where that voxel lies
beyond it, fewer copies say something of a pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from common.config.derived import Affinities
from common.config.settings import TrainConfig
from common.data.volumes.box import slices
from common.errors import UserError
from common.infer.networks.network import Network
from common.infer.networks.window import Forward

Offset = tuple[int, int, int]
"""From a voxel to the other one of a pair, in voxels, z, y, x."""

OffsetOfChannel = dict[int, Offset]
"""The offset of each channel of one declaration of affinities, by the channel's number."""


@dataclass(frozen=True)
class Orientation:
    """A copy of raw: with y and x exchanged or not, then mirrored along some axes."""

    exchange: bool
    """Whether y and x change places."""
    mirrored: tuple[bool, ...]
    """Whether the copy is mirrored along z, y, x."""

    @property
    def axes(self) -> list[int]:
        """The axes of (B, C, z, y, x) that are mirrored."""
        return list(itertools.compress((2, 3, 4), self.mirrored))

    def of(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the copy of raw (B, C, z, y, x)."""
        turned = raw.transpose(3, 4) if self.exchange else raw
        return turned.flip(self.axes).contiguous()

    def back(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits of the copy, (B, C, z, y, x), on the voxels of raw."""
        logits = logits.flip(self.axes)
        return logits.transpose(3, 4) if self.exchange else logits

    def offset_back(self, offset: Offset) -> Offset:
        """Return what an offset in the copy is in raw."""
        signs = [-1 if is_mirrored else 1 for is_mirrored in self.mirrored]
        z, y, x = (sign * n for sign, n in zip(signs, offset, strict=True))
        return (z, x, y) if self.exchange else (z, y, x)


def orientations(number: int) -> Iterator[Orientation]:
    """Yield 1, 8 or 16 orientations.

    1 is raw itself, 8 are all mirrorings, 16 the same again with y and x exchanged.
    """
    exchanges = (False, True) if number == 16 else (False,)
    mirrorings = itertools.product((False, True), repeat=3)
    for exchange, mirrored in itertools.product(exchanges, mirrorings):
        yield Orientation(exchange, mirrored)
        if number == 1:
            return


def affinities_of(config: TrainConfig) -> list[OffsetOfChannel]:
    """Return the channels of each declaration of affinities, with their offsets."""
    declarations = []
    for name, declared in config.derived.items():
        if isinstance(declared, Affinities):
            numbers = map(config.channels.index, declared.names(name))
            voxels = declared.voxels(config.target_array_info["scale"])
            declarations.append(dict(zip(numbers, voxels, strict=True)))
    return declarations


def check_windows(network: Network) -> None:
    """Raise UserError where what copies say of a pair depends on where windows begin."""
    overlap = not network.window.agree and network.flat is None
    if affinities_of(network.config) and not overlap:
        raise UserError(
            "affinities of a mirrored copy lie their offset away, and windows of this network, "
            "which do not overlap, lack them at their edges; leave --orientations out"
        )


def oriented_network(network: Network, number: int) -> Forward:
    """Return the mean of a trained network's logits over 1, 8 or 16 orientations, as a function."""
    return oriented(network.forward, number, affinities_of(network.config))


def oriented(forward: Forward, number: int, affinities: Sequence[OffsetOfChannel] = ()) -> Forward:
    """Return a function that gives the mean of logits over 1, 8 or 16 orientations.

    affinities: among the channels of the logits.
    """
    if number == 1:
        return forward
    function = partial(_mean_over_pairs, affinities) if affinities else _mean
    return partial(function, forward, list(orientations(number)))


def _mean(forward: Forward, copies: Sequence[Orientation], raw: torch.Tensor) -> torch.Tensor:
    """Return the mean logits (B, C, z, y, x) of some copies of raw, on the voxels of raw."""
    total: torch.Tensor | None = None
    for orientation in copies:
        logits = orientation.back(forward(orientation.of(raw)).float())
        total = logits if total is None else total.add_(logits)
    assert total is not None
    return total / len(copies)


def _mean_over_pairs(
    affinities: Sequence[OffsetOfChannel],
    forward: Forward,
    copies: Sequence[Orientation],
    raw: torch.Tensor,
) -> torch.Tensor:
    """Return the mean logits as `_mean` does; of affinities over the copies that have the pair."""
    total: torch.Tensor | None = None
    said: torch.Tensor | None = None
    for orientation in copies:
        logits = orientation.back(forward(orientation.of(raw)).float())
        moved, says = _moved(logits, orientation, affinities)
        total = moved if total is None else total.add_(moved)
        said = says if said is None else said.add_(says)
    assert total is not None and said is not None
    return total / said


def _moved(
    logits: torch.Tensor, orientation: Orientation, affinities: Sequence[OffsetOfChannel]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits with affinities moved to where raw has their pairs, and where there are some.

    The second is (C, z, y, x) float32, 1 or 0. Pairs at an offset that is not declared are dropped.
    """
    moved = logits.clone()
    says = torch.ones(logits.shape[1:], device=logits.device)
    for offset_of_channel in affinities:
        channel_of_offset = {offset: channel for channel, offset in offset_of_channel.items()}
        numbers = list(offset_of_channel)
        moved[:, numbers] = 0
        says[numbers] = 0
        for source, offset in offset_of_channel.items():
            in_raw = orientation.offset_back(offset)
            backwards = tuple(-n for n in in_raw)
            if in_raw in channel_of_offset:
                target, step = channel_of_offset[in_raw], (0, 0, 0)
            elif backwards in channel_of_offset:
                target, step = channel_of_offset[backwards], backwards
            else:
                continue
            here, there = _ends_of_pairs(logits.shape[2:], step)
            moved[:, target, *here] = logits[:, source, *there]
            says[target, *here] = 1
    return moved, says


def _ends_of_pairs(shape: Sequence[int], step: Sequence[int]) -> tuple[tuple, tuple]:
    """Return the boxes of both ends of all pairs a step apart that lie in a window."""
    low = np.maximum(0, np.negative(step))
    high = np.maximum(np.minimum(shape, np.subtract(shape, step)), low)
    return slices(low, high), slices(low + step, high + step)
