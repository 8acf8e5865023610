"""Workers that are jobs of a batch system, by dask-jobqueue: what each gets, and those that end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import FileError, UserError
from common.files import REPOSITORY
from common.infer.machines.engine import Engine
from common.talk import count, say

LISTS = frozenset(
    ["job_extra_directives", "job_script_prologue", "job_directives_skip", "worker_extra_args"]
)
"""Options of dask-jobqueue that are lists of texts."""

# torch alone takes more
LEAST_MEMORY = 10**8
"""Memory of a job below which a number without a unit is taken for no number of bytes."""

# what forgets a job needs 15 s for it, and what hands one in some
REPLACE_S = 60
"""Seconds between two times that jobs are handed in for those that ended."""


@contextlib.contextmanager
def of_jobs(engine: Engine, logs: Path) -> Iterator[Any]:
    """Yield a scheduler in this process whose workers are jobs of a batch system.

    logs: folder that the jobs write what they print to, unless the options name another.
    """
    with _job_cluster(engine, logs) as cluster:
        jobs = max(engine.workers, 1)
        cluster.scale(jobs=jobs)
        say(f"{count(jobs, 'job')} handed to {engine.cluster}; blocks begin with the first of them")
        yield cluster


class Jobs:
    """The jobs of a batch system that work for a scheduler of dask-jobqueue.

    dask-jobqueue forgets a job whose worker is gone, as at the end of its walltime, and hands in
    another where it is told the number of jobs once more.
    """

    def __init__(self, cluster: Any, engine: Engine):
        self.cluster = cluster
        self.system = engine.cluster
        self.replaced_at = -math.inf
        """Value of time.monotonic() when jobs were replaced last."""
        self.seen: set[Any] = set()
        """Names of jobs that were handed in and not replaced; those that ended among them."""
        self.has_finished_blocks = True
        """Whether any block was finished since jobs were replaced."""

    def replace_ended(self) -> None:
        """Hand in a job for each that has ended, at most every REPLACE_S.

        Raise FileError where all have ended and, since jobs were replaced last, none has finished
        a block.
        """
        handed_in = set(self.cluster.workers)
        self.seen |= handed_in
        ended = self.seen - handed_in
        now = time.monotonic()
        if not ended or now - self.replaced_at < REPLACE_S:
            return
        wanted = len(self.cluster.worker_spec)
        if self.has_finished_blocks:
            say(f"{count(len(ended), 'job')} of {self.system} ended; as many are handed in")
            self.cluster.scale(jobs=wanted)
            self.seen -= ended
            self.replaced_at = now
            self.has_finished_blocks = False
        elif len(ended) == wanted:
            folder = self.cluster._job_kwargs.get("log_directory")
            raise FileError(
                f"the jobs of {self.system} ended, and those in their place ended before they had "
                f"finished a block; see what they printed, in {folder}, and give them more memory "
                "or a longer walltime in --cluster-options"
            )


def job_script(engine: Engine) -> str:
    """Return what is handed to the batch system for each job."""
    engine.check()
    with _job_cluster(engine) as cluster:
        return cluster.job_script()


def _job_cluster(engine: Engine, logs: Path | None = None) -> Any:
    """Return dask-jobqueue's cluster of a batch system. Raise UserError for wrong options.

    logs: folder for what jobs print, which is made, unless the options name another.
    """
    try:
        from dask_jobqueue import LSFCluster, SLURMCluster
    except ImportError as error:
        raise UserError(
            f"--cluster needs dask-jobqueue ({error}); pip install dask-jobqueue"
        ) from error
    from distributed import Security

    kinds = {"lsf": LSFCluster, "slurm": SLURMCluster}
    options = _job_options(engine, logs)
    # by dask-jobqueue's advice for TLS: files that the jobs can read
    options.setdefault("protocol", "tls://")
    options.setdefault("security", Security.temporary())
    try:
        return kinds[engine.cluster](**options)
    except (TypeError, ValueError, OSError) as error:
        reason = str(error).split(". Very likely")[0].splitlines()[0]
        raise UserError(
            f"{engine.cluster_options}: dask-jobqueue does not take it ({reason}); see "
            "https://jobqueue.dask.org for its options"
        ) from error


def _job_options(engine: Engine, logs: Path | None) -> dict[str, Any]:
    """Return the options of a batch system, and ours where they say nothing. Raise UserError."""
    options = {"processes": 1, **_read_options(engine)}
    lacking = [name for name in ("cores", "memory") if name not in options]
    if lacking:
        raise UserError(
            f"{engine.cluster_options or '--cluster-options FILE'}: no {' and no '.join(lacking)}; "
            "write what a job gets, such as {cores: 8, memory: 60GB, walltime: '04:00'}, and what "
            "else dask-jobqueue takes (queue, account, job_extra_directives ...)"
        )
    # workers import this repository, wherever the batch system starts them
    prologue = [f"cd {REPOSITORY}", f"export PYTHONPATH={REPOSITORY}:$PYTHONPATH"]
    options["job_script_prologue"] = prologue + list(options.get("job_script_prologue", []))
    # on a disk that jobs see, and for this user alone: credentials lie there
    folder = Path.home() / ".cache" / "cellmap-workers"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    options.setdefault("shared_temp_directory", str(folder))
    if logs is not None:
        # or each job leaves a file in the folder that the command was typed in
        options.setdefault("log_directory", str(logs))
    if engine.cluster == "lsf":
        options.setdefault("use_stdin", True)
    return options


def _read_options(engine: Engine) -> dict[str, Any]:
    """Return the content of the file of options; {} without a file.

    Raise UserError for another kind of content.
    """
    if not engine.cluster_options:
        return {}
    import yaml

    path = Path(engine.cluster_options)
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: neither YAML nor JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: no mapping; write lines such as cores: 8")
    if "walltime" in content:
        # as it is written: YAML takes 12:00:00 for the number 43200, and SLURM that for minutes
        content["walltime"] = yaml.load(text, yaml.BaseLoader)["walltime"]
    for name in LISTS & content.keys():
        # of a text each letter would be a line
        if isinstance(content[name], str):
            content[name] = [content[name]]
    _refuse_bytes(path, content.get("memory"))
    return content


def _refuse_bytes(path: Path, memory: Any) -> None:
    """Raise UserError for a memory without its unit, which dask-jobqueue takes for bytes."""
    if str(memory).strip().isdecimal() and int(memory) < LEAST_MEMORY:
        raise UserError(f"{path}: memory: {memory} is so many bytes; write {memory}GB")
