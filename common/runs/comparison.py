"""The result of a comparison of runs."""

from __future__ import annotations

from dataclasses import dataclass

from common.score.interval import Interval


@dataclass(frozen=True)
class Standing:
    """One side of a comparison."""

    name: str
    runs: list[str]
    """Names of its runs, several for the seeds of one model; the lists below have this order."""
    folders: list[str]
    value: float
    """Value of the metric; the mean over the seeds."""
    spread: float | None
    """Standard deviation over the seeds; None for one."""
    best_epoch: list[int | None]
    epoch: list[int | None]
    finished: list[bool | None]
    left_out: int = 0
    """Number of classes of crops that the score left out, for too many predicted objects."""


@dataclass(frozen=True)
class ClassFigures:
    """One class on all sides."""

    values: list[float | None]
    """Value of each side; None if not known."""
    difference: float | None
    """Difference of the first two sides."""
    interval: Interval | None
    """Interval of that difference, for this class alone; None if there is too little data."""


@dataclass(frozen=True)
class Lead:
    """How far the best side is ahead of another one."""

    best: str
    other: str
    difference: float
    interval: Interval | None
    """Interval of the difference; None if there is too little data."""
    basis: str
    """What the interval is computed over, in words."""
    better_in: int
    """Number of classes in which the best side is better."""

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
    """File that the metric is read from: history.csv, or one of `evaluate`."""
    of_validation: bool
    standings: list[Standing]
    """The best first; all lists of sides are in this order."""
    leads: list[Lead]
    """Lead of the best over each other side, at a level that holds for all of them together."""
    classes: dict[str, ClassFigures]
    settings: dict[str, list[str]]
    """Settings in which the sides differ, with the value of each side; so is the next."""
    provenance: dict[str, list[str]]
    warnings: list[str]
    """Why the figures may not be compared."""
