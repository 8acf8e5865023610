"""Seconds and memory of the challenge's instance score and of the figures beside it.

    python bench/evaluate.py [--quick]

Truth is smooth noise above a threshold; the prediction is the same noise with other, finer noise
added before the threshold, so that objects change their outline, vanish, split and merge. Each case
runs in a process of its own that reads the two volumes (uint32) from disk; memory is the most that
it held, volumes included. At this threshold noise nearly percolates, so that the largest volume has
an object that spans it. What is printed of the public toolbox was measured with its main branch of
2026-06-30 on other volumes of these sizes, 200^3 with 281 and 400^3 with 1808 truth objects; it is
not run here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.loader import peak_memory_gb
from bench.side_by_side import in_own_process

CASES = [(100, 4.0), (200, 8.0), (200, 4.0), (200, 2.0), (300, 4.0), (400, 4.0)]
"""Side and standard deviation of the smoothing, in voxels: size and so number of the objects."""

QUICK = 200
"""Largest side with --quick."""

TOOLBOX = {(200, 4.0): "72 s, 7.6 GB", (400, 4.0): "not done in 550 s"}

VOXEL_SIZE = (8.0, 8.0, 8.0)


def write_volumes(folder: Path, side: int, smoothing: float) -> None:
    """Write truth.npy and prediction.npy: uint32 ids of the components of thresholded noise."""
    import cc3d
    from scipy import ndimage

    rng = np.random.default_rng(0)

    def noise(sigma: float) -> np.ndarray:
        field = ndimage.gaussian_filter(rng.standard_normal((side,) * 3, dtype=np.float32), sigma)
        return field / field.std()

    truth = noise(smoothing)
    prediction = truth + 0.25 * noise(smoothing / 2)
    for name, field in {"truth": truth, "prediction": prediction}.items():
        objects = cc3d.connected_components(field > 1.0, out_dtype=np.uint32)
        np.save(folder / f"{name}.npy", objects)


def measure(folder: Path) -> dict[str, float]:
    """Return objects of both volumes, seconds of score and other figures, and memory (GB)."""
    from common.score import challenge, quality

    truth = np.load(folder / "truth.npy")
    prediction = np.load(folder / "prediction.npy")
    start = time.perf_counter()
    counts = challenge.instance(truth, prediction, VOXEL_SIZE)
    scored = time.perf_counter()
    table = challenge.contingency(truth, prediction)
    quality.panoptic([quality.count_objects(table)])
    quality.variation_of_information(table)
    quality.rand_error(table)
    return {
        "truth": counts.tp + counts.fn,
        "prediction": counts.tp + counts.fp,
        "matched": counts.tp,
        "score": scored - start,
        "quality": time.perf_counter() - scored,
        "memory": peak_memory_gb(),
    }


def main() -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"only up to {QUICK}^3")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    columns = ("truth", "prediction", "matched", "score s", "quality s", "GB")
    heads = "".join(f"{column:>12}" for column in columns)
    print(f"{'volume':<10}{'Mvoxels':>8}{heads}   public toolbox")
    for side, smoothing in CASES:
        if options.quick and side > QUICK:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            write_volumes(Path(scratch), side, smoothing)
            measured = in_own_process(__file__, "--measure", scratch, OMP_NUM_THREADS="1")
        objects = [f"{measured[name]:>12}" for name in ("truth", "prediction", "matched")]
        costs = [f"{measured[name]:>12.2f}" for name in ("score", "quality", "memory")]
        volume = f"{f'{side}^3':<10}{side**3 / 1e6:>8.0f}"
        toolbox = TOOLBOX.get((side, smoothing), "")
        print(f"{volume}{''.join(objects)}{''.join(costs)}   {toolbox}", flush=True)


if __name__ == "__main__":
    main()
