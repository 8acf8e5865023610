"""Jobs of a batch system: what they are given, and that they end before the work does."""

from __future__ import annotations

import pytest

from common.errors import FileError, UserError
from common.infer.machines import batch_system
from common.infer.machines.batch_system import REPLACE_S, Jobs
from common.infer.machines.engine import Engine


class HandedIn:
    """Two jobs as dask-jobqueue keeps them: those that end are in `worker_spec` alone."""

    def __init__(self):
        self.worker_spec = dict.fromkeys(["first", "second"])
        self.workers = dict.fromkeys(["first", "second"])
        self._job_kwargs = {"log_directory": "predictions/logs"}

    def scale(self, jobs: int) -> None:
        assert jobs == 2
        self.workers = dict.fromkeys(self.worker_spec)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Seconds that time.monotonic() is at."""
    now = [0.0]
    monkeypatch.setattr(batch_system.time, "monotonic", lambda: now[0])
    return now


def jobs_of(cluster: HandedIn) -> Jobs:
    jobs = Jobs(cluster, Engine(workers=2, cluster="slurm"))
    jobs.replace_ended()
    return jobs


def test_another_job_is_handed_in_for_one_that_ended(clock, capsys):
    cluster = HandedIn()
    jobs = jobs_of(cluster)
    del cluster.workers["first"]
    jobs.replace_ended()
    assert set(cluster.workers) == {"first", "second"}
    assert "1 job of slurm ended; as many are handed in" in capsys.readouterr().err


def test_jobs_that_were_not_handed_in_yet_have_not_ended(clock, capsys):
    cluster = HandedIn()
    cluster.workers = {}
    jobs_of(cluster)
    assert not cluster.workers
    assert not capsys.readouterr().err


def test_jobs_are_replaced_again_once_a_block_was_finished_and_not_before(clock):
    cluster = HandedIn()
    jobs = jobs_of(cluster)
    for has_finished in (True, False):
        jobs.has_finished_blocks = has_finished
        clock[0] += REPLACE_S
        jobs.replace_ended()
        del cluster.workers["first"]
        jobs.replace_ended()
        assert ("first" in cluster.workers) == has_finished


def test_jobs_that_all_end_twice_without_a_block_end_the_command(clock):
    cluster = HandedIn()
    jobs = jobs_of(cluster)
    cluster.workers = {}
    jobs.replace_ended()
    assert cluster.workers
    jobs.replace_ended()
    cluster.workers = {}
    jobs.replace_ended()  # too early to say
    clock[0] += REPLACE_S
    with pytest.raises(FileError, match=r"before they had finished a block.*predictions/logs"):
        jobs.replace_ended()


@pytest.fixture
def of_jobs(tmp_path, monkeypatch):
    """What dask-jobqueue is given for jobs of SLURM with the lines of a file of options."""
    monkeypatch.setenv("HOME", str(tmp_path))  # credentials would lie there

    def options(text: str) -> dict:
        (tmp_path / "job.yaml").write_text("cores: 8\nmemory: 60GB\n" + text)
        taken = {}
        monkeypatch.setattr("dask_jobqueue.SLURMCluster", lambda **given: taken.update(given))
        with pytest.raises((TypeError, AttributeError)):  # no cluster came of it
            batch_system.job_script(
                Engine(cluster="slurm", cluster_options=str(tmp_path / "job.yaml"))
            )
        return taken

    return options


def test_the_options_of_jobs_are_taken_as_they_are_written(of_jobs):
    """YAML takes 12:00:00 for the number 43200, and SLURM that for minutes."""
    text = "walltime: 12:00:00\njob_extra_directives: --constraint=a100\n"
    taken = of_jobs(text + "job_script_prologue: module load cuda\n")
    assert taken["walltime"] == "12:00:00"
    assert taken["job_extra_directives"] == ["--constraint=a100"]
    assert taken["job_script_prologue"][-1] == "module load cuda"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory: 60", "job.yaml: memory: 60 is so many bytes; write 60GB"),
        ("- 8", "job.yaml: neither YAML nor JSON"),
    ],
)
def test_options_of_jobs_that_nobody_means_are_refused(of_jobs, text, words):
    with pytest.raises(UserError, match=words):
        of_jobs(text)
