"""Job scripts: what the batch systems are told, and what a script does, with stand-ins for them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import DEADLINE, started, wait_until

from common.errors import FileError, UserError
from common.shell import jobs
from common.shell.cli import cli
from common.shell.jobs import Job, Resources

FULL = {
    "walltime": 12 * 3600.0,
    "gpus": 2,
    "cores": 16,
    "memory": "60GB",
    "queue": "gpu",
    "account": "lab",
    "setup": ("export NAME='a b'",),
    "directives": ("--constraint=a100",),
}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes an executable of a shell text that is found before others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def job(tmp_path):
    return Job("unet8_all.seed1", ("train", "unet8_all", "--set", "a=b c"), tmp_path / "u.log")


def directives(text: str) -> list[str]:
    """Of a script, without their mark."""
    lines = [line for line in text.splitlines() if line.startswith(("#SBATCH ", "#BSUB "))]
    return [line.partition(" ")[2] for line in lines]


def hand_in(*words: str) -> list[str]:
    """The scripts that `submit ... --dry-run` prints."""
    done = CliRunner().invoke(cli, ["submit", *words, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.split("#!/usr/bin/env bash\n")[1:]


# What they are told


def test_slurm_is_told_what_a_job_gets_and_to_requeue_it(job, tmp_path):
    told = directives(jobs.script(job, Resources("slurm", **FULL)))
    assert sorted(told) == sorted(
        [
            "-J unet8_all.seed1",
            "-p gpu",
            "-A lab",
            "--cpus-per-task=16",
            "--mem=56G",  # of 1024**3 bytes, rounded up
            "-t 12:00:00",
            f"--output={tmp_path}/u.%j.log",
            "--open-mode=append",
            "--requeue",
            "--nodes=1",
            "--ntasks-per-node=1",
            "--gres=gpu:2",
            "--signal=USR1@300",
            "--constraint=a100",
        ]
    )


def test_lsf_is_told_what_a_job_gets_and_to_requeue_it(job, tmp_path):
    told = directives(jobs.script(job, Resources("lsf", **FULL)))
    memory = [line for line in told if line.startswith("-M ")]
    assert len(memory) == 1
    assert sorted(set(told) - set(memory)) == sorted(
        [
            "-J unet8_all.seed1",
            "-q gpu",
            '-P "lab"',
            "-n 16",
            '-R "span[hosts=1]"',
            "-W 12:00",
            f"-o {tmp_path}/u.%J.log",
            '-Q "75"',
            "-r",
            '-gpu "num=2"',
            "-wa USR1",
            "-wt 5",
            "--constraint=a100",
        ]
    )


@pytest.mark.parametrize("cluster", ["slurm", "lsf"])
def test_what_is_not_asked_for_is_left_to_the_queue(cluster, job):
    told = " ".join(directives(jobs.script(job, Resources(cluster, gpus=0))))
    for option in ("--mem", "-M", "-t ", "-W", "-wt", "--signal", "gpu", "-p ", "-q", "-A", "-P"):
        assert option not in told


def test_two_nodes_of_lsf_have_their_cores_on_each(job):
    told = directives(jobs.script(job, Resources("lsf", nodes=2, gpus=4, cores=8)))
    assert "-n 16" in told and '-R "span[ptile=8]"' in told and '-R "span[hosts=1]"' not in told


@pytest.mark.parametrize("cluster", ["slurm", "lsf"])
@pytest.mark.parametrize("nodes", [1, 3])
def test_bash_reads_every_script(cluster, nodes, job):
    text = jobs.script(job, Resources(cluster, **FULL, nodes=nodes))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=DEADLINE)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"walltime": 60.0}, "--walltime 60s; write 10m or more"),
        ({"memory": "much"}, "--memory much; write it with its unit"),
        ({"nodes": 2, "gpus": 1}, "--nodes 2 with --gpus 1"),
        ({"setup": ("a\nb",)}, "more than a line"),
    ],
)
def test_wrong_resources_are_a_sentence(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        Resources("slurm", **wrong).check()


# What a script does


def run_script(text: str, **environment: str) -> int:
    return subprocess.run(
        ["bash"], input=text, text=True, env=os.environ | environment, check=False, timeout=DEADLINE
    ).returncode


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [
        (75, "RUNNING", True),
        (75, "COMPLETING", False),
        (0, "RUNNING", False),
        (2, "RUNNING", False),
    ],
)
def test_a_job_of_slurm_requeues_itself_where_its_command_is_not_finished(
    code, state, requeued, job, programs, monkeypatch, tmp_path
):
    """Not where somebody cancelled it, and not where there is something to mend."""
    python = programs("our_python", f'echo "$@" > {tmp_path}/typed\nexit {code}')
    monkeypatch.setattr(jobs.sys, "executable", str(python))
    programs("srun", 'while [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"')
    programs("squeue", f"echo {state}")
    programs("scontrol", f'echo "$@" > {tmp_path}/requeued')
    text = jobs.script(job, Resources("slurm"))
    assert run_script(text, SLURM_JOB_ID="12") == code
    assert (tmp_path / "typed").read_text().split(maxsplit=2)[2] == "train unet8_all --set a=b c\n"
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 12\n"


def test_a_script_that_is_told_to_stop_waits_for_its_command(job, programs, monkeypatch, tmp_path):
    """LSF sends the signal to all processes of a job."""
    saved = f'trap "exit 75" USR1; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done'
    python = programs("our_python", saved)
    monkeypatch.setattr(jobs.sys, "executable", str(python))
    path = tmp_path / "script"
    path.write_text(jobs.script(job, Resources("lsf")))
    pid = tmp_path / "pid"
    with started(["bash", path]) as process:
        wait_until(lambda: process.poll() is not None or (pid.exists() and pid.read_text().strip()))
        process.send_signal(signal.SIGUSR1)
        os.kill(int(pid.read_text()), signal.SIGUSR1)
        assert process.wait(DEADLINE) == 75


def test_nodes_of_lsf_meet_at_the_first(job, programs, monkeypatch, tmp_path):
    python = programs("our_python", 'echo "here $PET_NNODES $PET_RDZV_ENDPOINT"; exit 75')
    monkeypatch.setattr(jobs.sys, "executable", str(python))
    programs("blaunch", f'echo "$1 $PET_RDZV_ENDPOINT" >> {tmp_path}/started')
    hosts = tmp_path / "hosts"
    hosts.write_text("node1\nnode1\nnode2\nnode2\nnode3\n")
    text = jobs.script(job, Resources("lsf", nodes=3, gpus=2))
    environment = {"LSB_DJOB_HOSTFILE": str(hosts), "LSB_JOBID": "20007"}
    assert run_script(text, **environment) == 75
    started = sorted((tmp_path / "started").read_text().splitlines())
    assert started == ["node2 node1:20007", "node3 node1:20007"]


# Handing in


@pytest.mark.parametrize(("cluster", "program"), [("slurm", "sbatch"), ("lsf", "bsub")])
def test_the_batch_system_gets_each_script(cluster, program, job, programs, tmp_path):
    programs(program, f'cat > {tmp_path}/got; echo "Submitted job 7"')
    said: list[str] = []
    resources = Resources(cluster, **FULL)
    jobs.submit([job], resources, say=said.append)
    assert (tmp_path / "got").read_text() == jobs.script(job, resources)
    assert said == [f"unet8_all.seed1: Submitted job 7; its output goes to {tmp_path}/u.*.log"]


def test_a_batch_system_that_refuses_is_quoted(job, programs):
    programs("sbatch", 'echo "invalid partition" >&2; exit 1')
    with pytest.raises(FileError, match=r"unet8_all\.seed1.*invalid partition"):
        jobs.submit([job], Resources("slurm"), say=print)


def test_without_a_batch_system_a_sentence_names_dry_run(job, monkeypatch):
    monkeypatch.setattr(jobs.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"sbatch: no such command here.*--dry-run"):
        jobs.submit([job], Resources("slurm"), say=print)


# The command line


def test_a_configuration_is_trained_a_job_for_each_seed():
    scripts = hand_in("unet8_all", "--cluster", "lsf", "--seeds", "0-2", "--set", "epochs=3")
    assert len(scripts) == 3
    for seed, text in enumerate(scripts):
        assert f"train unet8_all --set epochs=3 --set random_seed={seed}\n" in text
    names = {directives(text)[0] for text in scripts}
    assert len(names) == 3


def test_the_command_saves_before_the_walltime_is_over():
    """12 h less the notice of five minutes, less the minute that --time-limit is exact to."""
    [text] = hand_in("unet8_all", "--cluster", "slurm", "--walltime", "12h")
    assert "train unet8_all --time-limit 42840s\n" in text
    [text] = hand_in("unet8_all", "--cluster", "slurm", "--walltime", "12h", "--time-limit", "1h")
    assert "train unet8_all --time-limit 1h\n" in text


@pytest.mark.parametrize("cluster", ["slurm", "lsf"])
def test_several_gpus_of_a_node_train_one_run(cluster):
    [text] = hand_in("unet8_all", "--cluster", cluster, "--gpus", "4", "--nodes", "2")
    assert "train unet8_all --gpus all" in text and "PET_NNODES=2" in text
    [text] = hand_in("unet8_all", "--cluster", cluster)
    assert "--gpus" not in text and "PET_" not in text


def test_any_command_can_be_handed_in():
    [text] = hand_in("--cluster", "lsf", "predict", "unet8_all", "--crops", "test")
    assert "cellmap_segmentation_challenge predict unet8_all --crops test\n" in text
    [text] = hand_in("--cluster", "lsf", "--walltime", "2h", "evaluate", "unet8_all")
    assert "cellmap_segmentation_challenge evaluate unet8_all --time-limit " in text
    [text] = hand_in("--cluster", "lsf", "--walltime", "2h", "visualize", "unet8_all")
    assert "cellmap_segmentation_challenge visualize unet8_all\n" in text


def test_the_log_lies_beside_the_runs_of_the_experiment():
    [text] = hand_in("unet8_all", "--cluster", "lsf")
    [log] = [line for line in directives(text) if line.startswith("-o ")]
    assert "/unet8_all/logs/jobs/unet8_all." in log and log.endswith(".%J.log")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["unet8_all", "--memry", "60GB"], "No such option"),
        (["nosuch"], "nosuch: no such configuration"),
        (["unet8_all", "--set", "epoch=3"], "unknown setting 'epoch'"),
        (["predict", "unet8_all", "--seeds", "1-3"], "predict has none"),
        (["submit", "unet8_all"], "submit submit"),
        (["unet8_all", "--seeds", "1-3", "--set", "run_name=a"], "write {random_seed} in it"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_before_it_is_handed_in(words, sentence):
    done = CliRunner().invoke(cli, ["submit", "--cluster", "slurm", *words])
    assert done.exit_code == 2
    assert sentence in done.output
