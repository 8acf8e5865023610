"""Jobs of benchmarks in processes of their own."""

from __future__ import annotations

import pytest

from bench import side_by_side
from bench.side_by_side import Job

SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.side_by_side import child
from common.errors import UserError

def events_of(task):
    print("chatter of a library")
    yield {"cores": os.environ["BENCH_CORES"], "threads": os.environ["OMP_NUM_THREADS"],
           "isa": os.environ.get("ATEN_CPU_CAPABILITY", "")}
    if task["fails"]:
        raise UserError("what is wrong; what to write")
    yield {"done": task["number"]}

child(sys.argv[2], events_of)
"""


def test_a_job_that_fails_says_why_and_the_others_are_done(tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "job.py").write_text(SCRIPT)
    monkeypatch.setattr(side_by_side, "REPOSITORY", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(side_by_side.Path(side_by_side.__file__).parents[1]))
    jobs = [
        Job(f"job{number}", "bench/job.py", {"number": number, "fails": number == 0})
        for number in range(2)
    ]
    core = side_by_side.cores_of_this_machine()[0]
    said = []
    failed, done = side_by_side.run_all(
        jobs, [(core,)], isa="avx2", logs=tmp_path, tell=lambda *event: said.append(event)
    )
    first = {"cores": str(core), "threads": "1", "isa": "avx2"}
    assert done.events == [first, {"done": 1}]
    assert failed.events == [first]
    assert failed.problem == "what is wrong; what to write"
    assert ("job1", {"done": 1}) in said


def test_cores_are_shared_without_overlap(monkeypatch):
    monkeypatch.setattr(side_by_side, "cores_of_this_machine", lambda: tuple(range(8)))
    assert side_by_side.share_cores(0, cores_of_job=1) == [(core,) for core in range(8)]
    assert side_by_side.share_cores(2) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert side_by_side.share_cores(3, cores_of_job=1) == [(0,), (1,), (2,)]
    assert len(side_by_side.share_cores(99)) == 8


def test_what_a_process_prints_last_is_taken_and_its_failure_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "print('noise')\n"
        "print(json.dumps([sys.argv[1:], os.environ['OMP_NUM_THREADS']]))\n"
        "if 'bad' in sys.argv:\n"
        "    raise SystemExit('what is wrong')\n"
    )
    done = side_by_side.in_own_process(str(script), 1, "a", OMP_NUM_THREADS="1")
    assert done == [["1", "a"], "1"]
    with pytest.raises(SystemExit, match="what is wrong"):
        side_by_side.in_own_process(str(script), "bad", OMP_NUM_THREADS="1")
