"""Each command ends with the one to type next."""

from __future__ import annotations

import shlex

import pytest
from conftest import VOXEL_SIZE

from common.shell import next_step, public
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
    (["predict", "mine", "--volume", "a.tif", "--voxel-size", "4.1234567"], "process",
     "process mine --volume a.tif --voxel-size 4.1234567"),
    (["train", "mine", "--time-limit", "11h"], "predict", "predict mine --time-limit 39600s"),
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


@pytest.mark.parametrize(("words", "then", "line"), DONE)
def test_the_next_command_is_one_that_is_taken(words, then, line):
    with cli.make_context("csc", [*shlex.split(line)]) as context:
        name, *rest = shlex.split(line)
        cli.commands[name].make_context(name, rest, parent=context)


@pytest.mark.parametrize(
    ("words", "then", "line"),
    [
        (["mine", "--volume", "a.tif"], "process", "process mine --volume a.tif"),
        (["mine", "--volume", "a.tif"], "visualize", "visualize mine --volume a.tif"),
        (["mine"], "process", "process mine"),
        (["mine"], "visualize", "visualize mine --crops test"),
    ],
)
def test_public_defaults_are_repeated_where_the_next_command_has_others(capsys, words, then, line):
    predict = cli.commands["predict"]
    with (
        cli.make_context("csc", ["predict", *words], default_map=public.DEFAULTS) as context,
        predict.make_context("predict", words, parent=context),
    ):
        next_step.say_next(then)
    assert capsys.readouterr().err.endswith(f"cellmap_segmentation_challenge {line}\n")


def test_settings_of_a_file_of_overrides_go_on_before_those_of_the_command_line(capsys, tmp_path):
    file = tmp_path / "best_settings.txt"
    file.write_text("epochs=3\nmodel_kwargs.width=4\n")
    words = ["mine", "--overrides", str(file), "--set", "run_name=a"]
    with (
        cli.make_context("csc", ["train", *words]) as context,
        cli.commands["train"].make_context("train", words, parent=context),
    ):
        next_step.say_next("predict")
    line = "predict mine --set model_kwargs.width=4 --set run_name=a\n"
    assert capsys.readouterr().err.endswith(line)


SEEDED = [
    (["train", "mine"], "predict", "predict mine --set random_seed=7"),
    (["predict", "mine", "--set", "run_name=a"], "process",
     "process mine --set run_name=a --set random_seed=7"),
    (["train", "mine", "--set", "random-seed=5"], "predict", "predict mine --set random-seed=5"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "then", "line"), SEEDED)
def test_the_next_command_has_the_seed_that_was_there_for_one_command(
    capsys, monkeypatch, words, then, line
):
    monkeypatch.setenv("SEED", "7")
    with (
        cli.make_context("csc", words) as context,
        cli.commands[words[0]].make_context(words[0], words[1:], parent=context),
    ):
        next_step.say_next(then)
    assert capsys.readouterr().err.endswith(f" {line}\n")


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


def test_networks_of_single_classes_complete_each_others_labels_next(experiment, run):
    tiny = experiment(epochs=1, iterations_per_epoch=1)
    words = ("train", tiny.folder, "--data", tiny.data, "--each-class", "--set", "epochs=1")
    code, _, error = run(*words)
    assert code == 0, error
    line = f"joint init {tiny.folder} --data {tiny.data}"
    assert error.endswith(f"next: python -m cellmap_segmentation_challenge {line}\n")
    assert run(*shlex.split(line))[0] == 0


def test_predictions_of_what_does_not_say_how_to_process_are_looked_at_next(experiment, run):
    tiny = experiment(epochs=1, iterations_per_epoch=1)
    tiny.train()
    (tiny.folder / "process_config.py").unlink()
    code, _, error = run("predict", tiny.folder, "--data", tiny.data)
    assert code == 0, error
    note, following = error.splitlines()[-2:]
    assert note.endswith("process_config.py is not there; write it, and process makes masks and "
                         "objects by it")  # fmt: skip
    line = f"visualize {tiny.folder} --data {tiny.data} --png pictures"
    assert following == f"next: python -m cellmap_segmentation_challenge {line}"


PUBLIC = """
import torch
import cellmap_segmentation_challenge

classes = ["mito", "er", "nuc"]
model_name = "flat"
model = torch.nn.Conv3d(1, 3, 3, padding=1)
input_array_info = {"shape": (16, 16, 16), "scale": (8, 8, 8)}
epochs = iterations_per_epoch = batch_size = 1
spatial_transforms = {}
device = "cpu"
datasplit_path = "datasplit.csv"
"""


def test_a_public_configuration_is_processed_next_by_the_file_beside_it(experiment, run):
    tiny = experiment()
    (tiny.folder / "process_config.py").unlink()
    file = tiny.folder / "train_2D.py"
    file.write_text(PUBLIC)
    options = ("--data", tiny.data)
    assert run("train", file, *options)[0] == 0
    code, _, error = run("predict", file, *options)
    assert code == 0, error
    note, following = error.splitlines()[-2:]
    assert "process_2D.py is not there; write it" in note
    assert following.endswith(f"visualize {file} --data {tiny.data} --png pictures")
    tiny.write("process_2D.py", """
        from cellmap_segmentation_challenge.utils import load_safe_config

        config = load_safe_config(__file__.replace("process", "train"))
        classes = config.classes
        input_array_info = config.input_array_info


        def process_func(x):
            return x > 0.5
        """)  # fmt: skip
    code, _, error = run("predict", file, *options)
    assert code == 0 and error.endswith(f"next: {PROGRAM} process {file} --data {tiny.data}\n")
    code, _, error = run("process", file, *options)
    assert code == 0 and error.endswith(f"next: {PROGRAM} evaluate {file} --data {tiny.data}\n")


PROGRAM = "python -m cellmap_segmentation_challenge"


@pytest.mark.parametrize(("classes", "more"), [(["er"], ""), (["er", "lyso"], " --partial")])
def test_test_crops_are_packed_next_in_part_where_some_are_not_there(
    experiment, run, tmp_path, classes, more
):
    tiny = experiment(epochs=1, iterations_per_epoch=1)
    tiny.train()
    table = tmp_path / "test.csv"
    size, corner, shape = (
        ";".join(map(str, values)) for values in (VOXEL_SIZE, (16,) * 3, (24,) * 3)
    )
    rows = [f"9,tiny,{name},{size},{corner},{shape}" for name in classes]
    table.write_text(
        "\n".join(["crop_name,dataset,class_label,voxel_size,translation,shape", *rows])
    )
    words = (tiny.folder, "--data", tiny.data, "--crops", "crop9", "--manifest", table)
    assert run("predict", *words)[0] == 0
    code, _, error = run("process", *words)
    assert code == 0, error
    line = f"pack-results {tiny.folder} --manifest {table}{more}"
    assert error.endswith(f"next: {PROGRAM} {line}\n")


def test_a_run_ends_with_the_command_that_follows(experiment, run):
    tiny = experiment(epochs=1)
    code, _, error = run("train", tiny.folder, "--data", tiny.data)
    assert code == 0
    assert error.endswith(f"predict {tiny.folder} --data {tiny.data}\n")
