"""bench/cuda.py: its whole course, on the CPU and with the smallest sizes."""

from __future__ import annotations

import json
import math

from bench import cuda, spent


def test_an_experiment_is_trained_predicted_and_told_in_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "run_tests", lambda: "pytest -m cuda: 4 skipped")
    monkeypatch.setattr(cuda, "in_process", cuda.measured)
    path = tmp_path / "cuda.json"
    words = "--device cpu --quick --experiments unet128_all --iterations 2 --seconds 0.1 --json"
    cuda.main([*words.split(), str(path)])
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(path.read_text())
    assert lines[0] == found["tests"] == "pytest -m cuda: 4 skipped"
    heads, cells = lines[2].split("|"), lines[4].split("|")
    assert len(heads) == len(cells)
    assert cells[1].strip() == "unet128_all"
    measured = found["experiments"]["unet128_all"]
    assert [len(losses) for losses in measured["loss"].values()] == [2, 2]
    # bf16 keeps 8 bits: the same loss to one part in some hundreds, and not the same number
    fp32, bf16 = (losses[0] for losses in measured["loss"].values())
    assert fp32 != bf16
    assert math.isclose(fp32, bf16, rel_tol=0.01)
    predicted = measured["predict"]
    # a CPU finds NaN in the pass of 255ths
    of_a_gpu = {"upload", "download", "lock memory", "look for NaN"}
    # so small a volume has no coarser levels
    assert {stage.name for stage in spent.STAGES} == {*predicted["spent"], *of_a_gpu, "halve"}
    assert min(predicted["spent"].values()) > 0
    by_caller = [stage.name for stage in spent.STAGES if stage.who == "caller"]
    assert sum(predicted["spent"].get(name, 0) for name in by_caller) < predicted["wall"]
    assert [line for line in lines if line.startswith("device") and "network" in line]
    for what in ("train", "predict"):
        assert 0 < measured[what]["ours"] < math.inf
        assert 0 < measured[what]["bare"] < math.inf
