"""Measure how often the 95 % interval over crops holds the true score, and one of percentiles.

    python -m bench.interval

Data sets of n crops are drawn from a known distribution: a crop's IoU is skewed, Beta(4, 1.3) with
mean 0.75, and crops weigh the same or as log-normal sizes (sigma 0.7) do, pooled as counts are. The
true score is then 0.75. The figures stand in common/score/interval.py.
"""

from __future__ import annotations

import numpy as np

from common.score import interval

DATA_SETS = 4000
CROPS = (3, 5, 10, 40)
SIZE_SIGMAS = (0.0, 0.7)
A = 4
B = 1.3


def coverage(n_crops: int, sigma: float, seed: int = 0) -> tuple[float, float]:
    """Return the fraction of data sets whose interval holds the truth: Student, percentiles."""
    generator = np.random.default_rng(seed)
    times = interval.redraws(n_crops)
    truth = A / (A + B)
    by_student = 0
    by_percentiles = 0
    for _ in range(DATA_SETS):
        iou = generator.beta(A, B, n_crops)
        size = generator.lognormal(0, sigma, n_crops)
        estimate = (iou * size).sum() / size.sum()
        draws = (times @ (iou * size)) / (times @ size)
        low, high = interval.student(estimate, draws, n_crops) or (np.nan, np.nan)
        by_student += low <= truth <= high
        low, high = np.quantile(draws, [0.025, 0.975])
        by_percentiles += low <= truth <= high
    return by_student / DATA_SETS, by_percentiles / DATA_SETS


def main() -> None:
    print(f"{'sigma':>6}{'crops':>7}{'student':>9}{'percentiles':>13}")
    for sigma in SIZE_SIGMAS:
        for n_crops in CROPS:
            student, percentiles = coverage(n_crops, sigma)
            print(f"{sigma:>6}{n_crops:>7}{student:>9.3f}{percentiles:>13.3f}", flush=True)


if __name__ == "__main__":
    main()
