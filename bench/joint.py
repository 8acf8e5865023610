"""Measure whether networks of single classes help a joint one, if crops annotate half of them.

    python bench/joint.py [--seeds 0 1 2] [--iterations 300] [--width 12] [--classes mito er ...]

The protocol is that of `bench/true_negatives.py`: for each seed the phantom cell, the hidden half
and the weights are drawn anew, and every network takes the same number of steps. "partial" uses the
annotation as it is; "negatives" adds true negatives, groups and their parts, the default; "single"
is one network for each class, with the other classes as counter-examples; "joint" is a network like
"negatives" that is trained on the labels that the single ones completed. Validation crops are
annotated with all classes. Known is the fraction of (voxel, class) pairs of the training crops
whose label is known; changed the number of annotated ones that completing has changed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.true_negatives import known, row, write_half_annotated
from common.config.load import load_config
from common.data.splits.split import read_datasplit
from common.data.volumes import ngff
from common.files import REPOSITORY
from common.infer.completing import joint
from common.train import run as run_module
from common.train.several import each_class

EXPERIMENT = REPOSITORY / "examples" / "organelles_single"

MODES = ("partial", "negatives", "single", "joint")

EPOCHS = 2
"""Validations in a run: one to see that it learns, and the last, which counts."""


@dataclass(frozen=True)
class Case:
    """One seed: its data, and what all of its networks share."""

    root: Path
    seed: int
    options: argparse.Namespace

    def settings(self, run_name: str, **more: Any) -> dict[str, Any]:
        """Return the settings of a run."""
        of_run = "{model_name}/{run_name}"
        places = ("model_save", "logs_save", "predictions")
        paths = {f"{name}_path": str(self.root / name / of_run) for name in places}
        return {
            **paths,
            "run_name": run_name,
            "data_path": str(self.root),
            "datasplit_path": str(self.root / "phantom" / "datasplit.csv"),
            "cache_path": str(self.root / "cache"),
            "random_seed": self.seed,
            "classes": tuple(self.options.classes),
            "model_kwargs": {**load_config(EXPERIMENT).model_kwargs, "width": self.options.width},
            "batch_size": self.options.batch_size,
            "epochs": EPOCHS,
            "iterations_per_epoch": self.options.iterations // EPOCHS,
            "figure_samples": 0,
            "figure_crops": 0,
            **more,
        }

    def overrides(self, run_name: str) -> list[str]:
        """Return the settings of a run as "name=value"."""
        settings = self.settings(run_name)
        settings["classes"] = ",".join(settings["classes"])
        return [f"{name}={value}" for name, value in settings.items()]


def results_of(case: Case) -> dict[str, tuple[float, float]]:
    """Return mean Dice after the last step and known fraction of the training labels by mode."""
    results = {}
    for mode, infers in (("partial", False), ("negatives", True)):
        settings = case.settings(mode, use_mutual_exclusion=infers, infer_groups=infers)
        results[mode] = (dice_of(settings), known(EXPERIMENT, settings))
    singles = each_class.train_each_class(EXPERIMENT, case.overrides("single"))
    dice = [result.scores.mean("dice") for result in singles if result.scores]
    # those that never meet a positive voxel have no value
    results["single"] = (float(np.nanmean(dice)), known(EXPERIMENT, case.settings("negatives")))
    path = joint.init(EXPERIMENT, overrides=[*case.overrides("single"), *joint_folder(case)])
    settings = case.settings("joint", datasplit_path=str(path))
    results["joint"] = (dice_of(settings), known(EXPERIMENT, settings))
    return results


def joint_folder(case: Case) -> list[str]:
    """Return overrides that put completed labels beside the data, not into the experiment."""
    return [f"base_experiment_path={case.root}"]


def dice_of(settings: dict[str, Any]) -> float:
    """Train, and return the mean Dice on the validation crops after the last step."""
    return run_module.train(EXPERIMENT, **settings).scores.mean("dice")


def changed(case: Case) -> int:
    """Return how many annotated labels completing has changed."""
    rows = read_datasplit(case.root / "phantom" / "datasplit.csv", case.root)
    number = 0
    for crop in rows:
        if crop.usage != "train":
            continue
        completed = case.root / "joint" / f"{crop.key[0]}.zarr" / crop.key[1]
        for name in set(crop.annotated) & set(case.options.classes):
            annotated = whole(crop.class_volume(name)) != 0
            number += int(np.count_nonzero(whole(completed / name) != annotated))
    return number


def whole(group: Path) -> np.ndarray:
    level = ngff.open_levels(group)[0]
    return level.read((0, 0, 0), level.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--classes", nargs="+", default=load_config(EXPERIMENT).classes)
    options = parser.parse_args()
    heads = [f"{mode + ': Dice':>18}{'known':>7}" for mode in MODES]
    print(f"{'seed':<6}" + "".join(heads) + f"{'changed':>9}", flush=True)
    table = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            case = Case(Path(scratch), seed, options)
            write_half_annotated(case.root, seed, options.classes)
            results = results_of(case)
            table.append([results[mode] for mode in MODES])
            print(row(str(seed), table[-1]) + f"{changed(case):>9}", flush=True)
    print(row("mean", np.array(table).mean(0)))


if __name__ == "__main__":
    main()
