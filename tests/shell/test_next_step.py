"""Each command ends with the one to type next."""

from __future__ import annotations

import pytest

from common.shell import next_step
from common.shell.cli import cli
from common.train.recording.record import read_history

DONE = [
    (["train", "mine"], "predict", "predict mine"),
    (["train", "mine", "--set", "epochs=1", "--data", "my data", "--check"], "predict",
     "predict mine --data 'my data'"),
    (["train", "mine", "--set", "run-name=a", "--set", "epochs=1", "--set", "warmup-iterations=5"],
     "predict", "predict mine --set run-name=a"),
    (["train", "mine", "--set", "crop_sampling_weights.a/*=2", "--set", "model_kwargs.width=8"],
     "predict", "predict mine --set model_kwargs.width=8"),
    (["predict", "mine", "--crops", "28,crop3", "--logits", "--classes", "er,mito"], "process",
     "process mine --crops 28,crop3 --classes er,mito"),
    (["process", "mine", "--volume", "a.tif", "--voxel-size", "8,4,4.6", "-O"], "visualize",
     "visualize mine --volume a.tif --voxel-size 8,4,4.6"),
    (["predict", "mine", "--volume", "a.tif", "--voxel-size", "8"], "process",
     "process mine --volume a.tif --voxel-size 8"),
    (["evaluate", "mine", "--write-readme"], "visualize", "visualize mine"),
    (["process", "mine", "--crops", "test", "--manifest", "m.csv", "--set", "run_name=a"],
     "pack-results", "pack-results mine --manifest m.csv --set run_name=a"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "then", "line"), DONE)
def test_the_next_command_is_of_the_same_experiment_boxes_and_data(capsys, words, then, line):
    with cli.make_context("csc", words, resilient_parsing=False) as context:
        command = cli.commands[words[0]]
        with command.make_context(words[0], words[1:], parent=context):
            next_step.say_next(then)
    said = capsys.readouterr().err
    assert said == f"next: python -m cellmap_segmentation_challenge {line}\n"


def test_the_next_command_may_have_options_of_its_own(capsys):
    evaluate = cli.commands["evaluate"]
    with (
        cli.make_context("csc", ["evaluate", "mine"]) as context,
        evaluate.make_context("evaluate", ["mine"], parent=context),
    ):
        next_step.say_next("visualize", png="pictures")
    assert capsys.readouterr().err.endswith("visualize mine --png pictures\n")


def test_the_run_of_the_best_seed_is_predicted_next(experiment, run):
    tiny = experiment(epochs=1)
    words = ("train", tiny.folder, "--data", tiny.data, "--seeds", "1-3", "--set", "epochs=1")
    code, _, error = run(*words)
    assert code == 0, error
    dice = {}
    for seed in (1, 2, 3):
        history = read_history(tiny.folder / f"logs/tiny_experiment/seed{seed}")
        dice[seed] = history["validation/dice"].item()
    best = max(dice, key=dice.__getitem__)
    line = f"predict {tiny.folder} --set random_seed={best} --data {tiny.data}"
    assert error.endswith(f"next: python -m cellmap_segmentation_challenge {line}\n")


def test_a_run_ends_with_the_command_that_follows(experiment, run):
    tiny = experiment(epochs=1)
    code, _, error = run("train", tiny.folder, "--data", tiny.data)
    assert code == 0
    assert error.endswith(f"predict {tiny.folder} --data {tiny.data}\n")
