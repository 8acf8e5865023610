"""Figures of a validation: raw, target and prediction of a few blocks for each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.show import figures
from common.train.processes import ranks


@dataclass(frozen=True)
class _Panel:
    """A figure of one block, and how many voxels of the class the block has."""

    positive: int
    """Positive voxels of the class in the block."""
    block: int
    """Number of the validation block."""
    image: np.ndarray
    """(y, x, 3) uint8."""


class Panels:
    """Figures of a few validation blocks for each class.

    The first validation chooses the blocks with the most voxels of the class. Later ones show the
    same blocks, so that changes can be seen.
    """

    def __init__(
        self, classes: tuple[str, ...], shown: dict[str, list[int]], samples: int, ratio: np.ndarray
    ):
        """Keep up to `samples` blocks for each class.

        Args:
            classes: names, in the order of the channels.
            shown: numbers of the blocks to show, by class; empty to choose them.
            samples: blocks for each class; 0 keeps none.
            ratio: (3,) size of a target voxel in raw voxels, z, y, x.
        """
        self.classes = classes
        self.shown = shown
        self.samples = samples
        self.ratio = ratio
        self.kept: dict[str, list[_Panel]] = {name: [] for name in classes}

    def take(
        self, raw: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, first_block: int
    ) -> None:
        """Take the figures of a batch.

        Args:
            raw: (B, 1, z, y, x) in [0, 1].
            labels: dense labels (B, classes, z, y, x), -1 for unknown.
            logits: (B, classes, z, y, x).
            first_block: number of the first block of the batch.
        """
        if not self.samples:
            return
        positive = (labels == 1).sum((3, 4)).cpu().numpy()  # (B, classes, z)
        for sample, channel in np.ndindex(positive.shape[:2]):
            block = first_block + sample
            per_slice = positive[sample, channel]
            if self._is_wanted(self.classes[channel], block, int(per_slice.sum())):
                image = section(
                    raw[sample, 0],
                    labels[sample, channel],
                    logits[sample, channel],
                    z=int(per_slice.argmax()),
                    ratio=self.ratio,
                )
                panel = _Panel(int(per_slice.sum()), block, image)
                self._keep(self.classes[channel], panel)

    def _is_wanted(self, name: str, block: int, positive: int) -> bool:
        if self.shown:
            return block in self.shown.get(name, ())
        kept = self.kept[name]
        if len(kept) < self.samples:
            return positive > 0
        return positive > kept[-1].positive

    def _keep(self, name: str, panel: _Panel) -> None:
        """Add a panel; if there are too many, drop the one with the fewest voxels of the class."""
        self.kept[name] = _first([*self.kept[name], panel], self.samples)

    def gather(self) -> None:
        """Take what other processes kept of their blocks, too."""
        of_processes = ranks.gathered(self.kept)
        for name in self.classes:
            every: list[_Panel] = []
            for kept in of_processes:
                every += kept[name]
            self.kept[name] = _first(every, self.samples)

    def blocks(self) -> dict[str, list[int]]:
        """Return the numbers of the blocks that are shown, by class."""
        if self.shown:
            return self.shown
        shown = {}
        for name, panels in self.kept.items():
            if panels:
                shown[name] = [panel.block for panel in panels]
        return shown

    def images(self) -> dict[str, np.ndarray]:
        """Return the figures of each class below each other, (y, x, 3) uint8 by class."""
        images = {}
        for name, panels in self.kept.items():
            if panels:
                images[name] = figures.above([panel.image for panel in panels])
        return images


def section(
    raw: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, *, z: int, ratio: np.ndarray
) -> np.ndarray:
    """Return one z slice of raw, labels and probability side by side, (y, x, 3) uint8.

    Args:
        raw: (z, y, x) in [0, 1].
        labels: (z, y, x) of one class, -1 for unknown.
        logits: (z, y, x) of that class.
        z: the slice, in voxels of the target.
        ratio: (3,) size of a target voxel in raw voxels, z, y, x.
    """
    # both patches have the same centre, and their voxels may differ in size
    raw_z = int((z + 0.5 - len(labels) / 2) * ratio[0] + len(raw) / 2)
    return figures.panel(
        raw[raw_z].cpu().numpy(),
        labels[z].cpu().numpy(),
        logits[z].float().sigmoid().cpu().numpy(),
        voxel_ratio=ratio[1:].tolist(),
    )


def _first(panels: list[_Panel], number: int) -> list[_Panel]:
    """Return the panels with the most voxels of their class, of equal ones the first."""
    return sorted(panels, key=lambda panel: (-panel.positive, panel.block))[:number]
