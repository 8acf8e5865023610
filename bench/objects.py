"""Measure how well cells are told apart by the mask, a boundary, affinities, or the last two.

    python bench/objects.py --data FOLDER [--minutes 15] [--steps 2880] [--output objects]
        [--crop crop5] [--seed 43]
    python bench/objects.py --quick

Trains examples/affinities once, predicts the crop that validates, and then for each way tunes,
processes and scores with the commands themselves. Thresholds and options are chosen on the crop
that is scored, alike for all ways; the last row has those of the experiment, untouched. `--crop`
validates on another crop, and the others train. `--quick` takes some minutes, on tissue that is
drawn. With `--output` what was trained stays there, and the same call goes on with it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.files import REPOSITORY
from common.infer import predict, process
from common.infer.processing.recipe import THRESHOLDS
from common.score import evaluate, tune
from common.score.result import Figures
from common.train import run

EXPERIMENT = REPOSITORY / "examples" / "affinities"
CLASS = "cell"
DATASPLIT = "datasplit.csv"

WAYS = {
    "mask": "mask + watershed",
    "boundary": "boundary + watershed",
    "both": "boundary, far affinities",
    "affinities": "affinities + mutex watershed",
}
"""Values of the argument `by` of the experiment's instance_func."""

DEFAULT = 'by="both"'
THRESHOLD_OF_BOTH = "threshold=0.68"
THRESHOLD_OF_OTHERS = "threshold=0.5"
"""Defaults that tuning begins at: means over far pairs are higher than those of faces."""

EPOCHS = 12
QUICK_STEPS = 120


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(options.output or scratch).absolute()
        if options.quick:
            from bench.drawn import write_tissue

            options.data = str(write_tissue(output / "data"))
        print("\n".join(report(options, output)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that holds flyem_medulla/flyem_medulla.zarr")
    parser.add_argument("--minutes", type=float, default=0, help="of training at most")
    parser.add_argument("--steps", type=int, default=1800, help="of training")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--crop", default="", help="that validates; default: as in datasplit.csv")
    parser.add_argument("--output", help="folder for what is trained and written")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps on drawn tissue")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps = QUICK_STEPS
    if not options.data and not options.quick:
        parser.error("--data or --quick")
    return options


def report(options: argparse.Namespace, output: Path) -> list[str]:
    """Train, and return the lines of the table."""
    settings = settings_of(output, options)
    run.train(EXPERIMENT, settings, training_time_limit=60 * options.minutes)
    predict.predict(EXPERIMENT, overrides=settings)
    lines = [f"{'':<34}{'score':>8}{'F1':>8}{'Hausd':>8}{'VOI s':>8}{'VOI m':>8}  tuned"]
    rows = [(about, measured(way, output, settings)) for way, about in WAYS.items()]
    rows.append((f"{WAYS['both']}, untuned", (scored(EXPERIMENT, settings), "")))
    for about, (figures, tuned) in rows:
        values = [figures.score, figures.f1, figures.hausdorff]
        values += [figures.voi_split, figures.voi_merge]
        columns = "".join(f"{value:>8.3f}" for value in values)
        lines.append(f"{about:<34}{columns}  {tuned}")
    return lines


def settings_of(output: Path, options: argparse.Namespace) -> list[str]:
    """Return overrides that put all that a run writes under `output`."""
    of_run = "{model_name}/{run_name}"
    return [
        f"random_seed={options.seed}",
        f"datasplit_path={write_datasplit(output, options.crop)}",
        f"data_path={Path(options.data).absolute()}",
        f"cache_path={output / 'cache'}",
        f"epochs={EPOCHS}",
        f"iterations_per_epoch={max(1, options.steps // EPOCHS)}",
        f"model_save_path={output / 'checkpoints'}/{of_run}",
        f"logs_save_path={output / 'logs'}/{of_run}",
        f"predictions_path={output / 'predictions'}/{of_run}",
        f"processed_path={output / 'processed'}/{of_run}",
        f"results_path={output / 'results'}/{of_run}",
    ]


def write_datasplit(output: Path, crop: str) -> Path:
    """Write the experiment's datasplit with one crop, if named, as the only one that validates."""
    lines = (EXPERIMENT / DATASPLIT).read_text().splitlines()
    if crop:
        rows = [line.partition(",")[2] for line in lines]
        held_out = [f"/{crop}/[" in row for row in rows]
        if not any(held_out):
            raise SystemExit(f"--crop {crop}: not in {EXPERIMENT / DATASPLIT}")
        sides = ["validate" if is_held_out else "train" for is_held_out in held_out]
        lines = [f'"{side}",{row}' for side, row in zip(sides, rows, strict=True)]
    output.mkdir(parents=True, exist_ok=True)
    path = output / DATASPLIT
    path.write_text("\n".join(lines) + "\n")
    return path


def measured(way: str, output: Path, settings: Sequence[str]) -> tuple[Figures, str]:
    """Return the figures of one way, and what was tuned, in a copy of the experiment."""
    folder = output / way / EXPERIMENT.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(EXPERIMENT, folder)
    recipe = folder / "process_config.py"
    text = recipe.read_text()
    assert DEFAULT in text, "the experiment's instance_func has another argument `by`"
    text = text.replace(DEFAULT, f'by="{way}"')
    if way != "both":
        assert THRESHOLD_OF_BOTH in text, "the experiment's instance_func has another threshold"
        text = text.replace(THRESHOLD_OF_BOTH, THRESHOLD_OF_OTHERS)
    recipe.write_text(text)
    (folder / THRESHOLDS).unlink(missing_ok=True)
    (tuned,) = tune.tune(folder, classes=(CLASS,), overrides=settings)
    figures = scored(folder, settings)
    chosen = {"threshold of the mask": tuned.threshold} | tuned.options
    words = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    return figures, words


def scored(folder: Path, settings: Sequence[str]) -> Figures:
    """Return the figures of the predictions, as an experiment's folder makes objects of them."""
    process.process(folder, classes=(CLASS,), overrides=settings)
    return evaluate.evaluate(folder, classes=(CLASS,), overrides=settings).classes[CLASS].figures


if __name__ == "__main__":
    main()
