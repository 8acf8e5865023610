"""Job scripts for LSF and SLURM, in which a command goes on in the next job until it is done.

The lines that ask for queue, account, cores, memory and time are dask-jobqueue's, which knows the
units and spellings of both systems, and the site's queue and account in
~/.config/dask/jobqueue.yaml. submitit knows SLURM alone, and hands in pickled functions where we
have a command. The rest is how our commands end: exit code 75 is "the same command again".
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.load import load_config
from common.config.overrides import with_file
from common.errors import FileError, UserError, refuse
from common.stopping import NOT_FINISHED, RESERVE_S
from common.talk import Say

HAND_IN = {"slurm": "sbatch", "lsf": "bsub"}
"""The command that takes a script on its standard input."""

# as long as a validation with its figures may take
NOTICE_S = 300
"""Seconds before the end of a job at which it is told to stop; at most a tenth of its time."""

LEAST_WALLTIME_S = 600
"""Shortest time of a job: in less, it would mostly start and save."""

# a signal is for the command; the shell waits for it to save, and then looks at its exit code
WAIT_FOR_THE_COMMAND = "trap : HUP USR1 USR2 TERM"

# not after scancel, which asks the command to stop, too
REQUEUE_IN_SLURM = f"""\
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
if [ "$code" -eq {NOT_FINISHED} ] && [ "$state" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi"""


@dataclass(frozen=True)
class Resources:
    """The resources of each job."""

    cluster: str
    """"slurm" or "lsf"."""
    walltime: float = 0.0
    """Seconds; 0 leaves it to the queue."""
    gpus: int = 1
    """Number on each node."""
    cores: int = 8
    """Number on each node."""
    memory: str = ""
    """Size on each node, such as "60GB"; "" leaves it to the queue."""
    nodes: int = 1
    queue: str = ""
    """Queue; in SLURM a partition."""
    account: str = ""
    """Account; in LSF a project."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the command."""
    directives: tuple[str, ...] = ()
    """Further directives, without #SBATCH or #BSUB."""

    def check(self) -> None:
        """Raise UserError with everything that is wrong."""
        problems = []
        if 0 < self.walltime < LEAST_WALLTIME_S:
            problems.append(f"--walltime {self.walltime:.0f}s; write 10m or more")
        if self.memory and not re.fullmatch(r"\d+(\.\d+)? ?([KMGT]i?B?)?", self.memory, re.I):
            problems.append(f"--memory {self.memory}; write it with its unit, such as 60GB")
        if self.nodes > 1 and self.gpus < 2:
            problems.append(
                f"--nodes {self.nodes} with --gpus {self.gpus}; several nodes train one run with "
                "two GPUs or more each: write --gpus 2, or leave --nodes out"
            )
        for line in (*self.setup, *self.directives):
            if "\n" in line:
                problems.append(f"{line!r}: more than a line; write the option once for each")
        refuse(problems)

    @property
    def time_limit(self) -> float:
        """Seconds that the command may take; 0 without a walltime."""
        return self.walltime - self.notice

    @property
    def notice(self) -> float:
        """Seconds before the end of the job at which the command is told to stop."""
        return min(NOTICE_S, self.walltime / 10)


@dataclass(frozen=True)
class Job:
    """A command that is handed in under a name."""

    name: str
    """Letters, digits, `.`, `_` and `-`."""
    words: tuple[str, ...]
    """Words of the command, after the name of the program."""
    log: Path
    """File of its output; the number of the job is put before the ending."""


def job_of(
    command: str, words: Sequence[str], typed: Mapping[str, Any], seed: int | None = None
) -> Job:
    """Make the job of a command. Its log is in the experiment's folder, or the working folder.

    Args:
        command: name of the command.
        words: what follows the name, as it was typed.
        typed: the same words as click parsed them.
        seed: of a training; that of the settings unless given.

    Raises:
        UserError: for wrong settings of the experiment.
    """
    of_seed = () if seed is None else ("--set", f"random_seed={seed}")
    name = command
    folder = Path.cwd()
    if typed.get("config_path"):
        config = load_config(
            typed["config_path"], (*settings_of(typed), *of_seed[1:]), typed.get("data")
        )
        folder = config.folder
        run = config.path("logs_save_path").name
        name = f"{folder.name}.{run}" if command == "train" else f"{command}.{folder.name}.{run}"
    # spaces and the like mean something to batch systems
    name = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)
    log = folder / "logs" / "jobs" / f"{name}.log"
    return Job(name, (command, *words, *of_seed), log)


def settings_of(typed: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the overrides "name=value" of a command, those of a file first."""
    return with_file(typed.get("overrides", ()), typed.get("override_file"))


def script(job: Job, resources: Resources) -> str:
    """Return the text of a job script for bash."""
    command = shlex.join([sys.executable, "-m", "cellmap_segmentation_challenge", *job.words])
    start = _slurm_command if resources.cluster == "slurm" else _lsf_command
    parts = [
        "#!/usr/bin/env bash",
        *_header(job, resources),
        "",
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
        WAIT_FOR_THE_COMMAND,
        *resources.setup,
        *_rendezvous(resources),
        *start(command, resources),
    ]
    if resources.cluster == "slurm":
        parts.append(REQUEUE_IN_SLURM)
    return "\n".join([*parts, 'exit "$code"', ""])


def submit(jobs: Sequence[Job], resources: Resources, *, say: Say) -> None:
    """Hand in a script for each job, and say what the batch system answers.

    Raises UserError if its command is not installed, FileError if it refuses a script.
    """
    program = HAND_IN[resources.cluster]
    if shutil.which(program) is None:
        raise UserError(
            f"{program}: no such command here; submit where {resources.cluster.upper()} is, or "
            "write --dry-run to see the scripts"
        )
    # all of them are written before the first is handed in
    scripts = [script(job, resources) for job in jobs]
    for job, text in zip(jobs, scripts, strict=True):
        # a batch system writes no log into a folder that is not there
        job.log.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([program], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr or done.stdout).strip()
            raise FileError(f"{program} does not take {job.name} ({reason}); see its --dry-run")
        say(f"{job.name}: {done.stdout.strip()}; its output goes to {_numbered(job.log, '*')}")


def _header(job: Job, resources: Resources) -> list[str]:
    """Return the directives of a script."""
    mark = "#SBATCH" if resources.cluster == "slurm" else "#BSUB"
    known = _known_to_dask_jobqueue(job, resources)
    # what we say of it otherwise, or leave to the queue
    ours = {"-o", "-e", "-n"}
    if resources.nodes > 1:
        ours.add("-R")
    if not resources.memory:
        ours |= {"-M", "--mem"}
    if not resources.walltime:
        # dask-jobqueue would take 30 minutes, which suit its workers
        ours |= {"-t", "-W"}
    lines = [line for line in known if _option_of(line) not in ours]
    more = _slurm_options if resources.cluster == "slurm" else _lsf_options
    for option in (*more(job, resources), *resources.directives):
        lines.append(f"{mark} {option}")
    return lines


def _known_to_dask_jobqueue(job: Job, resources: Resources) -> list[str]:
    """Return the directives that dask-jobqueue writes."""
    try:
        from dask_jobqueue.lsf import LSFJob
        from dask_jobqueue.slurm import SLURMJob
    except ImportError as error:
        raise UserError(
            f"submit needs dask-jobqueue ({error}); pip install 'csc-baselines[cluster]'"
        ) from error
    is_slurm = resources.cluster == "slurm"
    kind = SLURMJob if is_slurm else LSFJob
    account = "account" if is_slurm else "project"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job_of_dask = kind(
            name=job.name,
            job_name=job.name,
            cores=resources.cores,
            memory=resources.memory or "1GB",
            processes=1,
            queue=resources.queue or None,
            walltime=_clock(resources) or None,
            **{account: resources.account or None},
        )
    return str(job_of_dask.job_header).splitlines()


def _option_of(directive: str) -> str:
    """Return the option of a directive: "--mem" of "#SBATCH --mem=4G"."""
    _, option, *_ = directive.split()
    return option.partition("=")[0]


def _clock(resources: Resources) -> str:
    """Return the walltime as the system takes it: hours, minutes and, in SLURM, seconds."""
    if not resources.walltime:
        return ""
    minutes = -(-int(resources.walltime) // 60)
    text = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{text}:00" if resources.cluster == "slurm" else text


def _slurm_options(job: Job, resources: Resources) -> list[str]:
    options = [
        f"--output={_numbered(job.log, '%j')}",
        # of all jobs that one run takes
        "--open-mode=append",
        "--requeue",
        f"--nodes={resources.nodes}",
        "--ntasks-per-node=1",
    ]
    if resources.gpus:
        options.append(f"--gres=gpu:{resources.gpus}")
    if resources.walltime:
        options.append(f"--signal=USR1@{resources.notice:.0f}")
    return options


def _lsf_options(job: Job, resources: Resources) -> list[str]:
    options = [
        f"-o {_numbered(job.log, '%J')}",
        f"-n {resources.cores * resources.nodes}",
        # requeued by itself, and where a host dies
        f'-Q "{NOT_FINISHED}"',
        "-r",
    ]
    if resources.nodes > 1:
        options.append(f'-R "span[ptile={resources.cores}]"')
    if resources.gpus:
        options.append(f'-gpu "num={resources.gpus}"')
    if resources.walltime:
        options += ["-wa USR1", f"-wt {max(1, int(resources.notice / 60))}"]
    return options


def _numbered(log: Path, number: str) -> str:
    """Return the path of a log with a placeholder for the number of the job."""
    return str(log.with_name(f"{log.stem}.{number}{log.suffix}"))


def _rendezvous(resources: Resources) -> list[str]:
    """Return lines that tell torchrun where nodes meet: on the first, at a port of the job."""
    if resources.nodes == 1:
        return []
    if resources.cluster == "slurm":
        first = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        number = "SLURM_JOB_ID"
    else:
        first = '$(head -n 1 "$LSB_DJOB_HOSTFILE")'
        number = "LSB_JOBID"
    return [
        f"first={first}",
        f"export PET_NNODES={resources.nodes} PET_RDZV_BACKEND=c10d PET_RDZV_ID=${number}",
        f'export PET_RDZV_ENDPOINT="$first:$((20000 + {number} % 20000))"',
    ]


def _slurm_command(command: str, resources: Resources) -> list[str]:
    # since SLURM 22.05 srun does not take the cores of the job by itself
    return [f"srun --kill-on-bad-exit=1 --cpus-per-task={resources.cores} {command}", "code=$?"]


def _lsf_command(command: str, resources: Resources) -> list[str]:
    if resources.nodes == 1:
        return [command, "code=$?"]
    # the first host is this one: its exit code is the job's
    return [
        'for host in $(sort -u "$LSB_DJOB_HOSTFILE" | grep -vxF "$first"); do',
        f'    blaunch "$host" {command} &',
        "done",
        command,
        "code=$?",
        "wait",
    ]


def commands_time_limit(resources: Resources) -> str:
    """Return the value of the command's `--time-limit`; "" without a walltime."""
    # it keeps a reserve for saving itself, and starting Python is not counted in it
    seconds = resources.time_limit - RESERVE_S
    return f"{seconds:.0f}s" if resources.walltime else ""
