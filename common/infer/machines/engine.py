"""Where blocks are computed, as the command line says it."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import refuse

MOST_PROCESSES = 1024
"""Worker processes of one machine at most."""

MOST_JOBS = 100_000
"""Jobs of a batch system at most."""


@dataclass(frozen=True)
class Engine:
    """Where blocks are computed: in this process unless something is given."""

    workers: int = 0
    """Processes on this machine, or jobs of `cluster`."""
    scheduler: str = ""
    """Address of a scheduler that runs, or the file that it wrote."""
    cluster: str = ""
    """Batch system that workers are jobs of: "lsf" or "slurm"."""
    cluster_options: str = ""
    """YAML or JSON file with what dask-jobqueue takes."""
    dry_run: bool = False
    """Print the job script of `cluster`, and do nothing."""

    @property
    def is_used(self) -> bool:
        """Whether blocks are computed by workers."""
        return bool(self.workers or self.scheduler or self.cluster)

    def sharers(self, device: str) -> int:
        """Return how many workers share this machine's memory, or that of a GPU.

        Of a scheduler that runs, and of jobs, it is not known: 1.

        device: kind of device, "cuda" or another.
        """
        if not self.workers or self.cluster:
            return 1
        if device != "cuda":
            return self.workers
        import torch

        return -(-self.workers // max(1, torch.cuda.device_count()))

    def check(self) -> None:
        """Raise UserError with everything that is wrong."""
        problems = []
        if self.workers < 0:
            problems.append(f"--workers {self.workers}; write a number of processes from 1 on")
        most = MOST_JOBS if self.cluster else MOST_PROCESSES
        if self.workers > most:
            what = "jobs" if self.cluster else "processes of this machine"
            problems.append(f"--workers {self.workers}; write up to {most} {what}")
        if self.scheduler and (self.cluster or self.workers):
            problems.append("--scheduler has workers of its own; leave --workers and --cluster out")
        if self.cluster not in ("", "lsf", "slurm"):
            problems.append(f"--cluster {self.cluster}; write lsf or slurm")
        if self.cluster_options and not self.cluster:
            problems.append("--cluster-options is of --cluster; write --cluster lsf or slurm too")
        if self.dry_run and not self.cluster:
            problems.append("--dry-run prints a job script; write --cluster lsf or slurm too")
        refuse(problems)


IN_THIS_PROCESS = Engine()
