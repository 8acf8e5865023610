"""Start torchrun on this machine for a command: options --gpus and --processes."""

from __future__ import annotations

import logging
import os
import signal
import sys

from common.errors import UserError
from common.provenance import usable_cores
from common.shell import package
from common.stopping import INTERRUPTED, NOT_FINISHED, SIGNALS
from common.talk import count
from common.train.processes import ranks

SAVED_WITHIN_S = 300
"""Seconds that processes have to save when they are told to stop; torchrun's default is 30."""


def is_asked(gpus: str | None, processes: int | None) -> bool:
    """Return whether this process is to start others.

    One GPU needs no other process: it is made the only one that this process sees. Raises UserError
    for GPUs that this machine does not have, and for options that exclude each other.
    """
    if not (gpus or processes) or os.environ.get(ranks.STARTED_BY_US):
        return False
    if ranks.are_started():
        raise UserError("torchrun started this process already; leave --gpus and --processes out")
    if gpus and processes:
        raise UserError("--gpus says how many processes there are, too; leave --processes out")
    if not gpus:
        return processes != 1
    chosen = parse_gpus(gpus)
    # the numbers count among those that a scheduler has left
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if visible != [""]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[number] for number in chosen)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, chosen))
    return len(chosen) > 1


def parse_gpus(text: str) -> list[int]:
    """Return numbers of GPUs from "all" or "0,1". Raises UserError for unknown numbers."""
    import torch

    number_of_gpus = torch.cuda.device_count()
    if not number_of_gpus:
        raise UserError(
            f"--gpus {text}: torch finds no CUDA device here; leave it out, or train by several "
            "processes on the CPU with --processes N"
        )
    if text == "all":
        return list(range(number_of_gpus))
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--gpus {text}: write all, or numbers such as 0,1")
    chosen = [int(part) for part in parts]
    missing = [number for number in chosen if number >= number_of_gpus]
    if missing or len(set(chosen)) < len(chosen):
        raise UserError(
            f"--gpus {text}: this machine has {count(number_of_gpus, 'GPU')}, numbered from 0; "
            "write each at most once"
        )
    return chosen


def launch(processes: int | None) -> int:
    """Run the command that was typed in several processes by torchrun; return its exit code.

    torchrun's variables PET_NNODES, PET_RDZV_BACKEND and PET_RDZV_ENDPOINT join the processes of
    several machines. Raises UserError if the system ended a process.

    processes: how many; one for each GPU that `is_asked` left visible unless given.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    number = processes or len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    _prepare_environment(number)
    logging.disable()  # each process says what is wrong by itself
    options = [f"--nproc-per-node={number}"]
    if "PET_NNODES" not in os.environ:
        options.append("--standalone")
    try:
        run.run(run.parse_args([*options, "-m", package.MODULE, *sys.argv[1:]]))
    except SignalException as stopped:
        return INTERRUPTED if stopped.sigval == signal.SIGINT else NOT_FINISHED
    except ChildFailedError as failed:
        exit_codes = [failure.exitcode for failure in failed.failures.values()]
        ended_by_themselves = [code for code in exit_codes if code > 0]
        if ended_by_themselves:
            return ended_by_themselves[0]
        raise UserError(_of_a_signal(-exit_codes[0])) from failed
    return 0


def _prepare_environment(processes: int) -> None:
    """Set environment variables for the processes, unless the user has set them."""
    os.environ[ranks.STARTED_BY_US] = str(processes)
    defaults = {
        # otherwise each takes all cores for itself
        "OMP_NUM_THREADS": max(1, usable_cores() // processes),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": SAVED_WITHIN_S,
        "PET_SIGNALS_TO_HANDLE": ",".join(signal.Signals(n).name for n in SIGNALS),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, str(value))


def _of_a_signal(number: int) -> str:
    name = signal.Signals(number).name
    why = ", most likely for want of memory" if number == getattr(signal, "SIGKILL", 9) else ""
    return (
        f"one of the processes of this run was ended by {name}{why}; the same command goes on from "
        "the last checkpoint"
    )
