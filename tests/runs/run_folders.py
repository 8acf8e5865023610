"""Runs on disk for tests: a history whose second epoch is the best, a record, scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from common.score.result import Scores

CLASSES = ("mito", "er", "nuc")

SETTINGS = {
    "learning_rate": "0.001",
    "weight_decay": "0.01",
    "classes": str(CLASSES),
    "epochs": "3",
    "random_seed": "42",
    "best_metric": "'dice'",
    "target_array_info": "{'shape': (16, 16, 16), 'scale': (8, 8, 8)}",
    "batch_size": "8",
    "validation_batch_limit": "0",
    "validation_time_limit": "0.0",
    "run_name": "'x'",
}


def forbid(monkeypatch, folder: Path) -> None:
    """Have nobody read what is in a folder; permissions do not keep root from it."""

    def guarded(read):
        def method(self, *arguments, **options):
            if self.is_relative_to(folder):
                raise PermissionError(13, "Permission denied", str(self))
            return read(self, *arguments, **options)

        return method

    for name in ("iterdir", "is_file", "exists", "open", "read_text", "read_bytes"):
        monkeypatch.setattr(Path, name, guarded(getattr(Path, name)))


def make_run(
    root: Path,
    name: str,
    best: dict[str, float],
    settings: dict[str, str] | None = None,
    *,
    epochs: int = 3,
    split: str = "abc",
    finished: bool = True,
    scores: Scores | None = None,
    record: bool = True,
) -> Path:
    """A run folder whose second epoch has these values of dice; the others are half as good."""
    experiment, model, run = name.split("/")
    folder = root / experiment / "logs" / model / run
    folder.mkdir(parents=True)
    rows = [_epoch(number, best) for number in range(1, epochs + 1)]
    lines = [",".join(rows[0])]
    lines += [",".join(repr(float(value)) for value in row.values()) for row in rows]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    if record:
        content = {
            "settings": {**SETTINGS, **(settings or {})},
            "provenance": {"commit": "c" * 40, "split_hash": split},
            "sessions": [{"began": "2026-11-20T10:00:00+00:00", "first_iteration": 0}],
            "result": {
                "epoch": epochs,
                "best_metric": "dice",
                "best_epoch": 2,
                "finished": finished,
                "hours": 1.5,
                "samples_per_s": 7.0,
            },
        }
        (folder / "run.json").write_text(json.dumps(content))
    if scores:
        results = root / experiment / "results" / model / run
        results.mkdir(parents=True)
        (results / "scores.json").write_text(json.dumps(scores.as_json()))
    return folder


def _epoch(number: int, best: dict[str, float]) -> dict[str, float]:
    """A row of history.csv."""
    share = 1.0 if number == 2 else 0.5
    row = {
        "epoch": number,
        "iteration": number * 100,
        "train/loss": 1 / number,
        "validation/loss": 2 / number,
    }
    if best:
        row["validation/dice"] = share * np.nanmean(list(best.values()))
    for name, value in best.items():
        row[f"dice/{name}"] = share * value
    return row
