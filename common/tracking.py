"""Scalars, figures and text of one run to TensorBoard, and a history.csv beside it.

Other sinks stand behind the same four calls: scalars, image, text, finish.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """One run's log. A run that starts or continues at `iteration` replaces what was logged after it."""

    def __init__(self, folder: Path, iteration: int = 0):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(folder), purge_step=iteration + 1 if iteration else 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers under their tags; NaN (a class that does not occur) is left out."""
        for tag, value in values.items():
            if np.isfinite(value):
                self.writer.add_scalar(tag, value, step)
        self.writer.flush()  # what led to a crash is then on disk

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Log an RGB image (y, x, 3) uint8."""
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def text(self, tag: str, values: Mapping[str, str], step: int = 0) -> None:
        """Log names and values as a table."""
        lines = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in values.items()]
        self.writer.add_text(tag, "\n".join(["| name | value |", "|---|---|", *lines]), step)

    def finish(self, settings: Mapping[str, str | float | bool], metrics: Mapping[str, float]) -> None:
        """Log settings and final metrics for TensorBoard's HPARAMS page, as a run of its own, and close."""
        finite = {f"final/{name}": value for name, value in metrics.items() if np.isfinite(value)}
        if finite:
            self.writer.add_hparams(dict(settings), finite, run_name="hparams")
        self.writer.close()

    def history(self, row: Mapping[str, float]) -> None:
        """Add a row, whose first column is the epoch; rows of this or a later epoch are replaced."""
        path, rows = self.folder / "history.csv", []
        if path.is_file():
            with open(path, newline="") as file:
                rows = [old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]]
        columns = list(dict.fromkeys([*row, *(name for old in rows for name in old)]))
        temporary = path.with_name(f".history.{os.getpid()}")
        try:
            with open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows([*rows, row])
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
