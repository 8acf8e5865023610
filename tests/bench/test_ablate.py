"""bench/ablate.py: the same run with each of some changes, whatever becomes of one of them."""

from __future__ import annotations

import json

import pytest

from bench import ablate
from bench.side_by_side import Outcome


def in_this_process(jobs, slots, *, isa, logs, tell):
    outcomes = []
    for job in jobs:
        try:
            outcomes.append(Outcome(job, list(ablate.measured(job.task))))
        except Exception as error:
            outcomes.append(Outcome(job, [], str(error)))
    return outcomes


def test_each_variant_is_trained_as_long_and_a_failure_is_told_in_its_row(
    experiment, tmp_path, monkeypatch, capsys
):
    tiny = experiment()
    monkeypatch.setattr(ablate.side_by_side, "run_all", in_this_process)
    several = "batch_size=1; learning_rate=0.002"
    ablate.main(
        [
            *(str(tiny.folder), "--data", str(tiny.data), "--steps", "8"),
            *("--set-each", several, "learning_rte=1", "optimizer=@torch.optim.AdamW"),
            *("--json", str(tmp_path / "ablate.json")),
        ]
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| variant | mito IoU | er IoU | nuc IoU | mean IoU |")
    as_it_is, changed, failed, other = [row.split(" | ") for row in rows[2:]]
    assert as_it_is[0] == "| as it is"
    assert changed[0] == f"| `{several}`"
    assert [row[-2] for row in (as_it_is, changed, other)] == ["8", "8", "8"]
    assert "learning_rte" in failed[0]
    assert "did you mean 'learning_rate'" in failed[0]
    runs = json.loads((tmp_path / "ablate.json").read_text())["runs"]
    voxels = [run["events"][0]["voxels"] for run in runs if not run["problem"]]
    assert voxels == [8 * 2 * 16**3, 8 * 16**3, 8 * 2 * 16**3]
    assert runs[0]["events"][0]["iou"] != runs[3]["events"][0]["iou"]


def test_python_objects_are_named_by_where_they_are():
    import torch

    overrides = ["epochs=3", "optimizer=@torch.optim.SGD", "model_kwargs.depth=2"]
    texts, objects = ablate.with_objects(overrides)
    assert texts == ["epochs=3", "model_kwargs.depth=2"]
    assert objects == {"optimizer": torch.optim.SGD}
    with pytest.raises(Exception, match=r"criterion=@common.train.losses.no_such_loss: .*write"):
        ablate.with_objects(["criterion=@common.train.losses.no_such_loss"])


def test_it_ends_with_1_where_nothing_could_be_trained(experiment, monkeypatch):
    tiny = experiment()
    monkeypatch.setattr(ablate.side_by_side, "run_all", in_this_process)
    with pytest.raises(SystemExit, match="1"):
        ablate.main([str(tiny.folder), "--data", str(tiny.data), "--set", "no_such=1"])
