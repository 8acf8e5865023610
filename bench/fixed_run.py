"""Hashes of a fixed-seed training, a prediction, its objects and their scores.

    python bench/fixed_run.py [--steps 50] [--output FOLDER]

Run it before and after a change that should change nothing: on one machine every line is the
same, to the last bit. One thread and float32, since sums of other lengths round otherwise. The
phantom cell is trained on with a validation after every step, which takes two to three minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cellmap_segmentation_challenge import evaluate, predict, process, train
from testing.phantom import write_phantom

EXPERIMENT = Path(__file__).resolve().parents[1] / "examples" / "phantom_cell"
NOT_COMPARED = ("provenance", "asked", "checksum")
"""Parts of scores.json that depend on commits, dates and folders."""


def main() -> None:
    """Train, predict, process, evaluate, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, help="kept, where it is given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        output = options.output or Path(scratch)
        if options.output:
            shutil.rmtree(output, ignore_errors=True)
        write_phantom(output / "data")
        run(output, overrides(output, options.steps))


def overrides(output: Path, steps: int) -> list[str]:
    """The settings of the run, as `--set` takes them."""
    lines = [
        f"data_path={output / 'data'}",
        f"cache_path={output / 'cache'}",
        f"epochs={steps}",
        f"scheduler_kwargs.T_max={steps}",
        "iterations_per_epoch=1",
        "validation_batch_limit=1",
        "figure_samples=0",
        "num_workers=0",
        "precision=fp32",
        "device=cpu",
    ]
    for kind in ("model_save", "logs_save", "predictions", "processed", "results"):
        lines.append(f"{kind}_path={output / kind}/{{model_name}}/{{run_name}}")
    return lines


def run(output: Path, settings: list[str]) -> None:
    """Print a line for each step of the way."""
    result = train(EXPERIMENT, settings)
    losses = pd.read_csv(result.logs / "history.csv")["train/loss"].to_numpy()
    print(f"losses       {digest([losses])}, the last {float(losses[-1])!r}")

    saved = torch.load(result.checkpoint.with_name("latest.pt"), weights_only=True)
    print(f"weights      {digest(tensor.numpy() for tensor in saved['model'].values())}")

    [predicted, *_] = predict(EXPERIMENT, overrides=settings)
    print(f"predictions  {digest(volumes(predicted.parent))}")

    [processed, *_] = process(EXPERIMENT, overrides=settings)
    print(f"processed    {digest(volumes(processed.parent))}")

    evaluate(EXPERIMENT, overrides=settings)
    [path] = output.glob("results/*/*/scores.json")
    scores = json.loads(path.read_text())
    compared = {name: value for name, value in scores.items() if name not in NOT_COMPARED}
    text = json.dumps(compared, sort_keys=True)
    print(f"scores       {hashlib.sha256(text.encode()).hexdigest()[:16]}")
    print(f"overall      {scores['overall_score']!r}")


def volumes(store: Path) -> Iterable[np.ndarray]:
    """Every level of every class of every crop in a store, in the order of their names."""
    for path in sorted(store.glob("*/*/s*")):
        yield zarr.open_array(str(path), mode="r")[...]


def digest(arrays: Iterable[np.ndarray]) -> str:
    """The beginning of the SHA-256 of arrays, their types included."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


if __name__ == "__main__":
    main()
