"""Figures of a validation: raw, target and prediction of a few blocks for each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.show import figures


@dataclass(frozen=True)
class _Panel:
    """A picture of one block, and why it was chosen."""

    positive: int
    """Voxels of the class in the block."""
    block: int
    image: np.ndarray


class Panels:
    """Pictures of a few blocks for each class.

    Those that an earlier validation showed, so that one sees them change; the first time those with
    most of the class.
    """

    def __init__(
        self, classes: tuple[str, ...], shown: dict[str, list[int]], samples: int, ratio: np.ndarray
    ):
        """Keep up to `samples` blocks of each class.

        Args:
            classes: names, in the order of the channels.
            shown: for each class its blocks; empty the first time.
            samples: blocks for each class; 0 keeps none.
            ratio: (3,) size of a target voxel in raw voxels.
        """
        self.classes = classes
        self.shown = shown
        self.samples = samples
        self.ratio = ratio
        self.kept: dict[str, list[_Panel]] = {name: [] for name in classes}

    def take(
        self, raw: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, first_block: int
    ) -> None:
        """Keep the slices of a batch that are to be shown.

        Args:
            raw: (B, 1, z, y, x).
            labels: dense, (B, classes, z, y, x).
            logits: of their shape.
            first_block: number of the batch's first block.
        """
        if not self.samples:
            return
        positive = (labels == 1).sum((3, 4)).cpu().numpy()  # (B, classes, z)
        for sample, channel in np.ndindex(positive.shape[:2]):
            block = first_block + sample
            per_slice = positive[sample, channel]
            if self._is_wanted(self.classes[channel], block, int(per_slice.sum())):
                image = self._slice(
                    raw[sample, 0],
                    labels[sample, channel],
                    logits[sample, channel],
                    int(per_slice.argmax()),
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
        """Add a panel; the one with the fewest voxels of the class gives way."""
        panels = sorted([*self.kept[name], panel], key=lambda panel: (-panel.positive, panel.block))
        self.kept[name] = panels[: self.samples]

    def _slice(
        self, raw: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, z: int
    ) -> np.ndarray:
        """One slice of the labels beside the raw at the same place and the probability."""
        # both patches have the same centre, and their voxels may differ in size
        raw_z = int((z + 0.5 - len(labels) / 2) * self.ratio[0] + len(raw) / 2)
        return figures.panel(
            raw[raw_z].cpu().numpy(),
            labels[z].cpu().numpy(),
            logits[z].float().sigmoid().cpu().numpy(),
            voxel_ratio=self.ratio[1:].tolist(),
        )

    def blocks(self) -> dict[str, list[int]]:
        """For each class the blocks that are shown."""
        if self.shown:
            return self.shown
        return {
            name: [panel.block for panel in panels] for name, panels in self.kept.items() if panels
        }

    def images(self) -> dict[str, np.ndarray]:
        """For each class its panels above each other, RGB."""
        images = {}
        for name, panels in self.kept.items():
            if panels:
                images[name] = figures.above([panel.image for panel in panels])
        return images
