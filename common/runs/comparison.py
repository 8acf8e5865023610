"""What a comparison of runs comes to."""

from __future__ import annotations

from dataclasses import dataclass

from common.score.interval import Interval


@dataclass(frozen=True)
class Standing:
    """One side of a comparison."""

    name: str
    runs: list[str]
    """Names of its runs, several for the seeds of one model; the lists below are in their order."""
    folders: list[str]
    value: float
    """Of the metric; mean over the seeds."""
    spread: float | None
    """Standard deviation over the seeds; None for one."""
    best_epoch: list[int | None]
    epoch: list[int | None]
    finished: list[bool | None]
    left_out: int = 0
    """Classes in crops that the metric left out of the scores, for too many predicted objects."""


@dataclass(frozen=True)
class ClassFigures:
    """One class on all sides."""

    values: list[float | None]
    """Of each side; None where none is known."""
    difference: float | None
    """Of the first two sides."""
    interval: Interval | None
    """Of that difference, for this class alone; None where there is too little to judge by."""


@dataclass(frozen=True)
class Lead:
    """How far the best side is ahead of another one."""

    best: str
    other: str
    difference: float
    interval: Interval | None
    """None where there is too little to judge by."""
    basis: str
    """What the interval is judged over, in words."""
    better_in: int
    """In how many classes the best side is better."""

    @property
    def is_sure(self) -> bool:
        """Whether the difference is more than chance."""
        # sides are sorted by value, so that only the lower end can reach 0
        return self.interval is not None and self.interval[0] > 0


@dataclass(frozen=True)
class Comparison:
    """Which of several runs is better, by how much, and in what they differ."""

    metric: str
    source: str
    """Where it stands: history.csv, or the name of a file of `evaluate`."""
    of_validation: bool
    standings: list[Standing]
    """The best first; all lists of sides are in this order."""
    leads: list[Lead]
    """Of the best over each other one, at a level that holds for all of them together."""
    classes: dict[str, ClassFigures]
    settings: dict[str, list[str]]
    """Those in which the sides differ, with the value of each side."""
    provenance: dict[str, list[str]]
    warnings: list[str]
    """Why the figures may not be compared."""
