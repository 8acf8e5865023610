"""A slice through a whole validation crop, put together from the blocks of a validation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from common.data.samples.blocks import Blocks
from common.data.samples.sampling import Sample, Sampler
from common.data.volumes.box import slices
from common.show import figures
from common.train.processes import ranks

LARGEST = 320
"""Pixels along an edge of a slice; more are left out, since a picture is kept of every epoch."""

ENLARGED = 240
"""Pixels up to which the edges of a small slice are enlarged."""

STACK_BYTES = 2**31
"""Memory for the sections of all crops that are previewed."""

SHOWN = 0.5
"""Probability above which a class that is nowhere in the truth is painted."""


class WholeSlice:
    """Raw, truth and prediction of a section of a crop, across z.

    The slice has the voxels of the target patch, from the lower corner of the crop on.
    """

    def __init__(
        self, blocks: Blocks, number: int, classes: Sequence[str], depth: int | None = None
    ):
        """Begin with nothing seen.

        Args:
            blocks: of the validation.
            number: of the crop among theirs.
            classes: names, in the order of the channels.
            depth: number of the section in voxels of the target patch; the middle one unless given.
        """
        crop = blocks.crops[number]
        target = blocks.target
        lower, _ = crop.label_grid.box()
        scale = np.array(target.scale, float)
        shape = shape_of(blocks, number)
        namesakes = [n for n, other in enumerate(blocks.crops) if other.name == crop.name]
        self.name = crop.name
        if len(namesakes) > 1:  # of two stores: each has pictures of its own
            self.name += f" {namesakes.index(number) + 1}"
        self.number = number
        self.classes = classes
        self.patch = np.array(target.shape)
        self.scale = scale
        self.ratio = scale / blocks.input.scale
        self.lower = lower
        self.depth = int(shape[0]) // 2 if depth is None else depth
        plane = shape[1:].tolist()
        self.raw = np.zeros(plane, np.float32)
        self.truth = np.full((len(classes), *plane), -1, np.int8)
        self.probability = np.zeros((len(classes), *plane), np.float16)
        self.block = np.full(plane, -1, np.int32)
        """Number of the block that each pixel is from; -1 before one is."""

    @property
    def title(self) -> str:
        """Name of the picture."""
        return self.name.replace("/", " ")

    @property
    def seen(self) -> np.ndarray:
        """(y, x) bool, where a block was."""
        return self.block >= 0

    def take(
        self,
        block: int,
        sample: Sample,
        *,
        raw: torch.Tensor,
        labels: torch.Tensor,
        logits: torch.Tensor,
    ) -> None:
        """Take what a block has of the slice, if anything.

        Args:
            block: its number, of which the larger one is shown where two overlap.
            sample: where it is.
            raw: (z, y, x) in [0, 1], with the same centre as the others.
            labels: (classes, z, y, x), -1 for unknown.
            logits: (classes, z, y, x).
        """
        if sample.crop != self.number:
            return
        corner = (sample.centre - self.lower) / self.scale - self.patch / 2
        start = np.rint(corner).astype(int)
        z = self.depth - int(start[0])
        if not 0 <= z < self.patch[0]:
            return
        # where block and slice overlap, in pixels of each; blocks may stick out
        first = np.maximum(start[1:], 0)
        last = np.minimum(start[1:] + self.patch[1:], self.raw.shape)
        if (first >= last).any():
            return
        rows, columns = slices(first, last)
        own_rows, own_columns = slices(first - start[1:], last - start[1:])
        self.block[rows, columns] = block
        self.truth[:, rows, columns] = labels[:, z, own_rows, own_columns].cpu().numpy()
        probability = logits[:, z, own_rows, own_columns].float().sigmoid()
        self.probability[:, rows, columns] = probability.cpu().numpy()
        self.raw[rows, columns] = self._raw_under(raw, z)[own_rows, own_columns].cpu().numpy()

    def add(self, other: WholeSlice) -> None:
        """Take the pixels of the same slice that are from later blocks in another one."""
        later = other.block > self.block
        self.block[later] = other.block[later]
        self.raw[later] = other.raw[later]
        self.truth[:, later] = other.truth[:, later]
        self.probability[:, later] = other.probability[:, later]

    def _raw_under(self, raw: torch.Tensor, z: int) -> torch.Tensor:
        """Raw (y, x) under a slice of the target patch, the nearest voxels."""
        # both patches have the same centre, and their voxels may differ in size
        indices = []
        for axis, n in enumerate(raw.shape):
            of_target = torch.arange(int(self.patch[axis]), device=raw.device)
            ratio = float(self.ratio[axis])
            inside = (of_target + 0.5 - float(self.patch[axis]) / 2) * ratio + n / 2
            indices.append(inside.floor().long().clamp(0, n - 1))
        return raw[indices[0][z]][indices[1]][:, indices[2]]

    def image(self) -> np.ndarray:
        """Three panels with a caption and the names of the classes, (height, width, 3) uint8."""
        longest = max(self.raw.shape)
        step = math.ceil(longest / LARGEST)
        truth = self.truth[:, ::step, ::step]
        probability = self.probability[:, ::step, ::step].astype(np.float32)
        is_shown = (truth == 1) | (probability > SHOWN)
        shown = [channel for channel in figures.largest_first(is_shown) if is_shown[channel].any()]
        colours = figures.class_colours(self.classes)
        panels = [
            figures.grey(self.raw[::step, ::step]),
            _painted_truth(truth, shown, colours),
            figures.classes_in_colour(probability, shown, colours),
        ]
        not_seen = ~self.seen[::step, ::step]
        for panel in panels:
            panel[not_seen] = figures.GAP_RGB
        times = max(1, ENLARGED // longest)
        row = figures.beside([figures.enlarged(panel, times) for panel in panels])
        width = row.shape[1]
        words = [f"{self.name}: raw", "target, blue: not known", "prediction, by probability"]
        parts = [figures.text_line(words, width, 12), row]
        if shown:
            names = [self.classes[channel] for channel in shown]
            parts.append(figures.legend(names, colours[shown], width, 12))
        return figures.above(parts, 2, figures.PAPER)


def _painted_truth(truth: np.ndarray, shown: Sequence[int], colours: np.ndarray) -> np.ndarray:
    """The classes in colour, and what is unknown of some and positive of none in blue."""
    positive = truth == 1
    painted = figures.classes_in_colour(positive, shown, colours)
    nothing_known = (truth == -1).any(0) & ~positive.any(0)
    painted[nothing_known] = figures.UNKNOWN_RGB
    return painted


def slices_of(blocks: Blocks, number: int, classes: Sequence[str]) -> list[WholeSlice]:
    """A slice of each of the first validation crops, at most `number` of them."""
    if not number:
        return []
    return [WholeSlice(blocks, crop, classes) for crop in range(len(blocks.crops))[:number]]


def stacks_of(blocks: Blocks, number: int, classes: Sequence[str]) -> list[list[WholeSlice]]:
    """The sections of each of the first validation crops, at most `number` of them.

    All of them, or every second, third and so on where they would take too much memory.
    """
    stacks = []
    for crop in range(len(blocks.crops))[:number]:
        depth, height, width = shape_of(blocks, crop).tolist()
        # raw float32, block int32; truth int8 and probability float16 of each class
        size = depth * height * width * (8 + 3 * len(classes))
        step = math.ceil(size * min(number, len(blocks.crops)) / STACK_BYTES)
        depths = range(0, depth, step)
        stacks.append([WholeSlice(blocks, crop, classes, z) for z in depths])
    return stacks


def shape_of(blocks: Blocks, number: int) -> np.ndarray:
    """(3,) int: the size of a crop in voxels of the target patch, at least one each."""
    lower, upper = blocks.crops[number].label_grid.box()
    return np.maximum(np.rint((upper - lower) / blocks.target.scale).astype(int), 1)


def take(
    wholes: Sequence[WholeSlice],
    blocks: Blocks,
    first: int,
    *,
    raw: torch.Tensor,
    labels: torch.Tensor,
    logits: torch.Tensor,
) -> None:
    """Give the blocks of a batch, from number `first` on, to all slices; see `WholeSlice.take`."""
    if not wholes:
        return
    assert not isinstance(blocks.samples, Sampler), "validation has a list of blocks"
    for number, sample in enumerate(blocks.samples[first : first + len(raw)]):
        of_block = {"raw": raw[number, 0], "labels": labels[number], "logits": logits[number]}
        for whole in wholes:
            whole.take(first + number, sample, **of_block)


def gather(wholes: Sequence[WholeSlice]) -> None:
    """Give the main process, which writes pictures, what the blocks of others have of slices."""
    for whole in wholes:
        for other in ranks.gathered_by_main(whole):
            whole.add(other)
