"""Runs jobs in processes of their own, each on cores of its own, as many at once as fit.

What is compared at equal wall time must not share a core, and threads that move between cores, or
wait for each other, make a time that nobody can repeat.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent

Cores = tuple[int, ...]
Tell = Callable[[str, dict[str, Any]], None]
"""`tell(name, event)` is called with each event of a job while it runs."""


@dataclass(frozen=True)
class Job:
    """The work of one process: `python SCRIPT --child TASK`, where TASK is JSON."""

    name: str
    script: str
    task: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of a job."""

    job: Job
    events: list[dict[str, Any]]
    """The events that it printed, in order."""
    problem: str = ""
    """Why it failed; "" if it did not."""


def cores_of_this_machine() -> Cores:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def share_cores(at_once: int, cores_of_job: int = 0) -> list[Cores]:
    """Return the cores of each of the jobs that run at once.

    at_once: number of jobs; 0 for as many as there are cores. cores_of_job: 0 divides all cores.
    """
    cores = cores_of_this_machine()
    at_once = min(at_once or len(cores) // max(cores_of_job, 1), len(cores))
    cores_of_job = cores_of_job or len(cores) // at_once
    return [cores[first * cores_of_job : (first + 1) * cores_of_job] for first in range(at_once)]


def run_all(
    jobs: Sequence[Job], slots: Sequence[Cores], *, isa: str, logs: Path, tell: Tell
) -> list[Outcome]:
    """Run every job; one that fails does not end the others.

    Args:
        jobs: begun in this order.
        slots: cores of the jobs that run at once.
        isa: "avx2" for no newer instructions; "" for all of the machine.
        logs: folder for the standard error of the jobs.
        tell: gets the events.
    """
    free: SimpleQueue[Cores] = SimpleQueue()
    for slot in slots:
        free.put(slot)

    def run(job: Job) -> Outcome:
        cores = free.get()
        try:
            return _run(
                job, cores, isa=isa, log=logs / f"{job.name.replace('/', '_')}.log", tell=tell
            )
        finally:
            free.put(cores)

    logs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(slots)) as pool:
        return list(pool.map(run, jobs))


def _run(job: Job, cores: Cores, *, isa: str, log: Path, tell: Tell) -> Outcome:
    command = [sys.executable, str(REPOSITORY / job.script), "--child", json.dumps(job.task)]
    events = []
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(cores, isa),
        )
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                events.append(event)
                tell(job.name, event)
    status = process.returncode
    problem = ""
    if events and "problem" in events[-1]:
        problem = events.pop()["problem"]
    elif status:
        problem = f"ended with status {status}"
    return Outcome(job, events, problem)


def _environment(cores: Cores, isa: str) -> dict[str, str]:
    chosen = {
        "BENCH_CORES": ",".join(map(str, cores)),
        # read when the libraries are loaded
        "OMP_NUM_THREADS": str(len(cores)),
        "MKL_NUM_THREADS": str(len(cores)),
    }
    if isa == "avx2":
        chosen["ATEN_CPU_CAPABILITY"] = "avx2"
        chosen["ONEDNN_MAX_CPU_ISA"] = "AVX2"
        chosen["MKL_ENABLE_INSTRUCTIONS"] = "AVX2"
    return os.environ | chosen


def in_own_process(script: str, *words: object, **environment: str) -> Any:
    """Run a script in a process of its own; return the JSON in its last line.

    If the script fails, its standard error ends this process.
    """
    done = subprocess.run(
        [sys.executable, script, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def child(text: str, events_of: Callable[[dict[str, Any]], Iterator[dict[str, Any]]]) -> None:
    """Do a job in this process: print each of its events as a line of JSON, and why it failed."""
    import torch

    from common.errors import UserError

    cores = {int(core) for core in os.environ["BENCH_CORES"].split(",")}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    torch.set_num_interop_threads(1)
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no event
    problem = ""
    try:
        for event in events_of(json.loads(text)):
            print(json.dumps(event), file=out, flush=True)
    except (UserError, FileNotFoundError, ImportError) as error:
        problem = " ".join(str(error).split())
    except Exception as error:  # said in a sentence here, and in full in the log
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        traceback.print_exc()
    if problem:
        print(json.dumps({"problem": problem}), file=out, flush=True)
        raise SystemExit(1)
