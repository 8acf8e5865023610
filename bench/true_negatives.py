"""Does true-negative masking help? Half of the classes of each training crop are annotated.

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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config.load import load_config
from common.data.samples import loaders
from common.files import REPOSITORY
from common.train import run as run_module
from testing import phantom

MODES = {"off": (False, False), "exclusion": (True, False), "on": (True, True)}
"""use_mutual_exclusion, infer_groups."""


def run(root: Path, seed: int, mode: str, iterations: int) -> tuple[float, float]:
    """Mean Dice on the validation crops after the last step; known part of the training crops."""
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
    experiment = REPOSITORY / "examples/phantom_cell"
    dice = run_module.train(experiment, **settings).scores.mean("dice")
    crops = loaders.open_data(load_config(experiment, **settings)).train
    voxels = np.array([crop.counts.sum() for crop in crops])
    known = sum((crop.counts @ (crop.palette >= 0)).mean() for crop in crops) / voxels.sum()
    return dice, known


def write_half_annotated(root: Path, seed: int, classes: Sequence[str]) -> None:
    """Write a phantom of which training crops annotate a random half of the classes."""
    random = np.random.default_rng(seed)
    half = len(classes) // 2
    chosen = [[str(name) for name in random.permutation(classes)[:half]] for _ in range(7)]
    phantom.write_phantom(
        root,
        seed=seed,
        validate_crops=2,
        annotated=lambda number: classes if number > 6 else chosen[number],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["off", "on"])
    options = parser.parse_args()
    classes = load_config(REPOSITORY / "examples/phantom_cell").classes
    heads = [f"{mode + ': Dice':>22}{'known':>8}" for mode in options.modes]
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
    """A line of the table: Dice and known fraction of each mode."""
    return f"{head:<6}" + "".join(f"{dice:>22.3f}{known:>8.0%}" for dice, known in results)


if __name__ == "__main__":
    main()
