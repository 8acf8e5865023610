"""Measure whether true-negative masking helps where crops annotate half of the classes.

    python bench/true_negatives.py [--seeds 0 1 2] [--iterations 300] [--modes off on]

For each seed the phantom cell, the hidden half and the weights are drawn anew; each mode takes the
same number of steps. "off" uses the annotation as it is, "exclusion" adds true negatives
(`use_mutual_exclusion`), "on" also groups and their parts (`infer_groups`), which is the default.
Validation crops are annotated with all classes. Known is the fraction of (voxel, class) pairs of
the training crops whose label is known.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config.load import load_config
from common.data.samples import loaders
from common.files import REPOSITORY
from common.train import run as run_module
from testing import phantom

EXPERIMENT = REPOSITORY / "examples" / "phantom_cell"

MODES = {"off": (False, False), "exclusion": (True, False), "on": (True, True)}
"""use_mutual_exclusion, infer_groups."""

TRAIN_CROPS = 6
"""Number of training crops of the phantom; those after them validate."""


def run(root: Path, seed: int, mode: str, iterations: int) -> tuple[float, float]:
    """Return the mean Dice on the validation crops, and the known fraction of training labels."""
    use_mutual_exclusion, infer_groups = MODES[mode]
    settings = {
        "data_path": str(root),
        "datasplit_path": str(root / "phantom/datasplit.csv"),
        "cache_path": str(root / "cache"),
        "random_seed": seed,
        "model_save_path": str(root / mode / "checkpoints"),
        "logs_save_path": str(root / mode / "logs"),
        "use_mutual_exclusion": use_mutual_exclusion,
        "infer_groups": infer_groups,
        "epochs": 5,
        "iterations_per_epoch": iterations // 5,
        "figure_samples": 0,
        "scheduler_kwargs": {"T_max": 5},
    }
    dice = run_module.train(EXPERIMENT, **settings).scores.mean("dice")
    return dice, known(EXPERIMENT, settings)


def known(experiment: Path, settings: Mapping[str, Any]) -> float:
    """Return the fraction of (voxel, class) pairs of the training crops whose label is known."""
    crops = loaders.open_data(load_config(experiment, **settings)).train
    voxels = sum(crop.counts.sum() for crop in crops)
    return float(sum((crop.counts @ (crop.palette >= 0)).mean() for crop in crops) / voxels)


def write_half_annotated(root: Path, seed: int, classes: Sequence[str]) -> None:
    """Write a phantom of which training crops annotate a random half of the classes."""
    random = np.random.default_rng(seed)
    half = len(classes) // 2
    # crops are numbered from 1: the first draw is of none, so that figures stay those of before
    chosen = [random.permutation(classes)[:half].tolist() for _ in range(TRAIN_CROPS + 1)]

    def annotated(number: int) -> Sequence[str]:
        return chosen[number] if number <= TRAIN_CROPS else classes

    phantom.write_phantom(root, seed=seed, validate_crops=2, annotated=annotated)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["off", "on"])
    options = parser.parse_args()
    classes = load_config(EXPERIMENT).classes
    heads = [f"{mode + ': Dice':>18}{'known':>7}" for mode in options.modes]
    print(f"{'seed':<6}" + "".join(heads), flush=True)
    table = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            write_half_annotated(root, seed, classes)
            table.append([run(root, seed, mode, options.iterations) for mode in options.modes])
        print(row(str(seed), table[-1]), flush=True)
    print(row("mean", np.array(table).mean(0)))


def row(head: str, results: Sequence[tuple[float, float]] | np.ndarray) -> str:
    """Return a line of the table: Dice and known fraction of each mode."""
    return f"{head:<6}" + "".join(f"{dice:>18.3f}{share:>7.1%}" for dice, share in results)


if __name__ == "__main__":
    main()
