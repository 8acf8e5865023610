"""Input and output of a contestant of `bench/quality.py`, and the clock of its training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.settings import TrainConfig


@dataclass(frozen=True)
class Case:
    """One contestant with one seed."""

    contestant: str
    dataset: str
    data: str
    """The data root."""
    seed: int
    minutes: tuple[float, ...]
    """Minutes of training after which it is scored."""
    device: str
    precision: str
    workers: int
    """Processes that read patches for our trainer."""
    scratch: str
    """Folder of whatever is written."""
    quick: bool = False

    @property
    def marks(self) -> list[float]:
        """Seconds of training after which it is scored."""
        return [60 * minutes for minutes in sorted(self.minutes)]

    @property
    def folder(self) -> Path:
        """Folder for the files of this case."""
        return Path(self.scratch) / f"{self.contestant}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that all contestants share."""
        return settings_of_run(
            self.folder,
            data_path=self.data,
            cache_path=str(Path(self.scratch) / "cache"),
            random_seed=self.seed,
            device=self.device,
            precision=self.precision,
            num_workers=self.workers,
        )


@dataclass(frozen=True)
class Snapshot:
    """A contestant at a mark of the clock."""

    config: TrainConfig
    """Settings to predict with its network."""
    weights: str
    """Weights of its network: "latest", or a file."""
    seconds: float
    """Seconds of training so far."""
    steps: int
    voxels: int
    """Number of target voxels seen so far, with repetitions."""


class Clock:
    """Seconds of training; it stands still while anything else is done."""

    def __init__(self) -> None:
        self.mark = 0.0
        """Seconds of training at which it is due."""
        self._before = 0.0
        self._begun: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self._begun is None else time.perf_counter() - self._begun
        return self._before + running

    def start(self, mark: float) -> None:
        """Let it run until `mark`."""
        self.mark = mark
        self._begun = time.perf_counter()

    def pause(self) -> None:
        self._before = self.seconds
        self._begun = None

    def due(self) -> bool:
        """Return whether the mark is reached; the clock stands still then."""
        if self.seconds < self.mark:
            return False
        self.pause()
        return True


def settings_of_run(folder: Path, **settings: Any) -> dict[str, Any]:
    """Return settings of a run that puts all files into `folder`, and draws no pictures."""
    places = ("model_save", "logs_save", "predictions", "processed", "results")
    # of its own for each name: the run whose steps are timed has another
    paths = {f"{place}_path": str(folder / "{run_name}" / place) for place in places}
    return paths | {"figure_samples": 0, **settings}
