"""A new experiment from another one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common.config.load import load_config
from common.errors import Busy, UserError
from common.files import REPOSITORY
from common.shell.new import new, next_command, without_results
from common.shell.rename import (
    EXPERIMENT_OPTIONS,
    FLAGS,
    TAKE_ONE,
    TAKE_SEVERAL,
    Renaming,
)
from tests.test_files import holding

README = """# tiny_experiment

A network; {folder} trains in a second. my_tiny_experiment is another.

```
python -m cellmap_segmentation_challenge train {folder}/train_config.py
cp -r {folder} other && python -m cellmap_segmentation_challenge train other
```

## Results

Dice 0.97.

### By class

mito 0.98

## Scores

<!-- scores: written by `evaluate --write-readme` -->
| mito | 0.5 |
<!-- end of scores -->

## People

Designed by: somebody.

## License

Free.
"""


FILES = {
    "__init__.py",
    "data.py",
    "model.py",
    "train_config.py",
    "process_config.py",
    "datasplit.csv",
    "README.md",
}
"""Of every experiment."""

LEFT_BY_RUNS = (
    "predictions/x/y.txt",
    "processed/a",
    "results/r.json",
    "joint/joint.json",
    "tensorboards/x/y",
    "mlruns/0/meta.yaml",
    "guesses/g",
    "thresholds.json",
    "scores.png",
    "__pycache__/m.pyc",
    ".hidden",
)


def test_a_copy_has_the_files_and_nothing_that_runs_left(experiment, tmp_path):
    tiny = experiment(predictions_path="guesses/{run_name}")
    tiny.train()
    for name in LEFT_BY_RUNS:
        path = tiny.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    tiny.write("notes.txt", "kept")
    copy = new(tmp_path / "twin", tiny.folder)
    assert {path.name for path in copy.iterdir()} == {*FILES, "notes.txt"}
    assert (copy / "model.py").read_text() == (tiny.folder / "model.py").read_text()
    assert (tiny.folder / "logs").is_dir()


def test_a_split_that_runs_made_is_not_copied_and_is_said(experiment, tmp_path, capsys):
    tiny = experiment(datasplit_path="joint/datasplit.csv")
    (tiny.folder / "joint").mkdir()
    (tiny.folder / "datasplit.csv").rename(tiny.folder / "joint/datasplit.csv")
    copy = new(tmp_path / "twin", tiny.folder)
    assert not (copy / "joint").exists()
    assert capsys.readouterr().err == (
        "note: joint/datasplit.csv was made by runs of tiny_experiment and is not in the copy; "
        f"make one for it, or write another datasplit_path into {copy}/train_config.py\n"
    )


def test_what_a_killed_call_left_is_no_part_of_the_next_copy(experiment, tmp_path):
    left = tmp_path / ".twin.partial" / "part"
    left.mkdir(parents=True)
    (left / "half.py").touch(0o444)
    for folder in (left, left.parent):
        folder.chmod(0o555)
    copy = new(tmp_path / "twin", experiment().folder)
    assert not (copy / "part").exists() and not left.parent.exists()


def test_a_name_that_another_process_makes_is_left_to_it(experiment, tmp_path):
    half = tmp_path / ".twin.partial" / "half.py"
    half.parent.mkdir()
    half.touch()
    source = experiment().folder
    with (
        holding(tmp_path / ".twin.lock") as other,
        pytest.raises(Busy, match=rf"twin: process {other.pid} on \S+ makes it; write another"),
    ):
        new(tmp_path / "twin", source)
    assert half.exists()


def test_what_stands_in_the_place_of_an_unfinished_copy_is_named(experiment, tmp_path):
    left = tmp_path / ".twin.partial"
    left.touch()
    with pytest.raises(UserError, match=rf"{left}: left by .* cannot be removed; remove it$"):
        new(tmp_path / "twin", experiment().folder)
    assert left.is_file()


def test_a_copy_of_what_only_others_may_write_to_can_be_written_to(experiment, tmp_path):
    tiny = experiment()
    (tiny.folder / "part").mkdir()
    (tiny.folder / "part" / "run.sh").touch(0o555)
    for path in (tiny.folder / "part", tiny.folder / "model.py", tiny.folder):
        path.chmod(0o555)
    copy = new(tmp_path / "twin", tiny.folder)
    for path in (copy, copy / "part", copy / "model.py"):
        assert path.stat().st_mode & 0o200
    assert (copy / "part" / "run.sh").stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("data/predictions", "data/predictions/x.zarr/a"),
        ("data/of_{run_name}/{model_name}", "data/of_other/x/x.zarr/a"),
        ("./data/../data/[1]/{run_name}", "data/[1]/other/x.zarr/a"),
    ],
)
def test_what_lies_beside_a_folder_of_runs_is_copied(experiment, tmp_path, path, written):
    tiny = experiment(predictions_path=path)
    for name in (written, "data/points.csv", "data/1/kept.csv"):
        (tiny.folder / name).parent.mkdir(parents=True, exist_ok=True)
        tiny.write(name, "1")
    copy = new(tmp_path / "twin", tiny.folder)
    copied = {file.name for file in (copy / "data").rglob("*")}
    assert copied == {"points.csv", "1", "kept.csv"}


def test_folders_that_held_runs_alone_are_not_copied_empty(experiment, tmp_path):
    tiny = experiment(logs_save_path="runs/{run_name}/logs", results_path="runs/{run_name}/scores")
    tiny.train(epochs=1)
    assert (tiny.folder / "runs/seed42/logs").is_dir()
    assert not (new(tmp_path / "twin", tiny.folder) / "runs").exists()


def test_a_copy_trains_under_its_own_name(experiment, tmp_path):
    from common.train.run import train

    tiny = experiment()
    result = train(new(tmp_path / "twin", tiny.folder), data=tiny.data)
    assert result.finished
    assert result.checkpoint == tmp_path / "twin/checkpoints/twin/seed42/best.pt"


def test_the_readme_names_the_copy_and_not_the_scores_of_its_source(experiment, tmp_path):
    tiny = experiment()
    (tiny.folder / "README.md").write_text(README.format(folder=tiny.folder))
    text = (new(tmp_path / "twin", tiny.folder) / "README.md").read_text()
    wanted = """# twin

A copy of tiny_experiment.

A network; twin trains in a second. my_tiny_experiment is another.

```
python -m cellmap_segmentation_challenge train twin/train_config.py
cp -r twin other && python -m cellmap_segmentation_challenge train other
```

## Results

None yet.

## People

None yet.

## License

Free.
"""
    assert text == wanted


PROGRAM = "python -m cellmap_segmentation_challenge"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# phantom_cell", "# mine"),
        ("# phantom_cell, small", "# mine, small"),
        ("# phantom_cell data", "# phantom_cell data"),
        ("python -m x train examples/phantom_cell --check", "python -m x train deep/mine --check"),
        ("train examples/phantom_cell/train_config.py", "train deep/mine/train_config.py"),
        ("see phantom_cell/README.md.", "see deep/mine/README.md."),
        ("see ./phantom_cell/logs", "see deep/mine/logs"),
        (
            "examples/phantom_cells, my_phantom_cell, phantom_cell-2, phantom_cell.zarr",
            "examples/phantom_cells, my_phantom_cell, phantom_cell-2, phantom_cell.zarr",
        ),
        ("a path b/phantom_cell of another", "a path b/phantom_cell of another"),
        ("it needs phantom_cell/phantom_cell.zarr", "it needs phantom_cell/phantom_cell.zarr"),
        ("the phantom_cell of the demo", "the phantom_cell of the demo"),
        (
            f"`{PROGRAM} train phantom_cell` of phantom_cell",
            f"`{PROGRAM} train deep/mine` of phantom_cell",
        ),
        (f"{PROGRAM} train \\\n  phantom_cell", f"{PROGRAM} train \\\n  deep/mine"),
        (f"{PROGRAM} train --check phantom_cell", f"{PROGRAM} train --check deep/mine"),
        (f"{PROGRAM} needs phantom_cell", f"{PROGRAM} needs phantom_cell"),
        (
            f"{PROGRAM} train phantom_cell trains a phantom_cell; of phantom_cell",
            f"{PROGRAM} train deep/mine trains a phantom_cell; of phantom_cell",
        ),
        (f"{PROGRAM} export out phantom_cell", f"{PROGRAM} export out phantom_cell"),
        (f"{PROGRAM} $step phantom_cell", f"{PROGRAM} $step deep/mine"),
        (
            f"{PROGRAM} process --scale 8 8 8 phantom_cell",
            f"{PROGRAM} process --scale 8 8 8 deep/mine",
        ),
        (f"{PROGRAM} compare other phantom_cell", f"{PROGRAM} compare other deep/mine"),
        (
            f"{PROGRAM} compare other phantom_cell: is the phantom_cell better?",
            f"{PROGRAM} compare other deep/mine: is the phantom_cell better?",
        ),
        ("csc joint init a --members phantom_cell", "csc joint init a --members deep/mine"),
        ("csc joint init phantom_cell phantom_cell", "csc joint init deep/mine phantom_cell"),
        ("csc submit --cluster lsf phantom_cell", "csc submit --cluster lsf deep/mine"),
        ("csc submit tune phantom_cell", "csc submit tune deep/mine"),
        ("csc train x && csc tune phantom_cell", "csc train x && csc tune deep/mine"),
        ("# csc train phantom_cell", "# csc train deep/mine"),
        (
            f"{PROGRAM} predict phantom_cell --data phantom_cell --crops phantom_cell/crop1,x",
            f"{PROGRAM} predict deep/mine --data phantom_cell --crops phantom_cell/crop1,x",
        ),
        ("cp -r phantom_cell other  # phantom_cell", "cp -r deep/mine other  # phantom_cell"),
        ("csc fetch-data --for phantom_cell", "csc fetch-data --for deep/mine"),
        ("the csc of phantom_cell", "the csc of phantom_cell"),
    ],
)
def test_names_and_paths_are_told_apart(text, wanted):
    renaming = Renaming(REPOSITORY / "examples/phantom_cell", REPOSITORY / "deep/mine")
    assert renaming.of_text(text, has_title=True) == wanted


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a", "csc evaluate a crop, then another", "csc evaluate a crop, then another"),
        ("a", "csc evaluate a", "csc evaluate twin"),
        ("a", "`csc evaluate a` crop by crop", "`csc evaluate twin` crop by crop"),
        ("mito", "csc predict mito and er.", "csc predict mito and er."),
        ("mito", "csc predict mito --crops 28", "csc predict twin --crops 28"),
        ("mito", "csc replay mito skipped.json", "csc replay twin skipped.json"),
        ("mito", "csc train mito && csc predict mito", "csc train twin && csc predict twin"),
        ("tiny", "csc train tiny and look", "csc train twin and look"),
    ],
)
def test_a_word_of_a_sentence_is_no_experiment(tmp_path, name, text, wanted):
    assert Renaming(tmp_path / name, tmp_path / "twin").of_text(text) == wanted


def test_a_copy_of_a_copy_outside_of_the_repository_names_no_place_of_the_machine(tmp_path):
    source = tmp_path / "first"
    renaming = Renaming(source, tmp_path / "deep/second")
    assert renaming.of_text(f"csc train {source}") == "csc train second"
    assert renaming.of_text(f"see {source}/logs") == "see second/logs"


@pytest.mark.parametrize(
    ("heading", "wanted"),
    [
        ("# mito", "# twin"),
        ("# mito: a U-Net", "# twin: a U-Net"),
        ("# mito, er and nuc", "# mito, er and nuc"),
    ],
)
def test_a_heading_that_lists_classes_is_not_the_name(tmp_path, heading, wanted):
    renaming = Renaming(tmp_path / "mito", tmp_path / "twin")
    assert renaming.of_file(".md", heading) == wanted


def test_the_flags_are_those_of_the_commands():
    from common.shell.cli import cli

    flags = set()
    for name in (*TAKE_ONE, *TAKE_SEVERAL, "joint", "submit"):
        for option in cli.commands[name].params:
            if getattr(option, "is_flag", False):
                flags |= set(option.opts)
    assert flags == FLAGS


def test_what_takes_an_experiment_is_so_in_the_command_line():
    from common.shell.cli import cli

    first = {}
    for name, command in cli.commands.items():
        places = [param for param in command.params if param.param_type_name == "argument"]
        if places:
            first[name] = places[0].name
    named = {name for name in first if first[name] in ("config_path", "experiment")}
    assert named == TAKE_ONE
    assert {name for name in first if first[name] in ("names", "experiments")} == TAKE_SEVERAL
    options = set()
    for command in cli.commands.values():
        for param in command.params:
            is_one = param.name in ("for_experiment", "members", "source")
            options |= set(param.opts) if is_one and param.param_type_name == "option" else set()
    assert options == EXPERIMENT_OPTIONS


@pytest.mark.parametrize(
    "name", ["tiny", "mito", "import", "crop1", "classes", "train", "model", "er"]
)
def test_a_name_of_the_data_or_of_the_code_stays(experiment, tmp_path, name):
    from common.train.run import train

    tiny = experiment(name)
    rows = (tiny.folder / "datasplit.csv").read_text()
    command = f"# {PROGRAM} make-datasplit {tiny.folder}/datasplit.csv --datasets {name}"
    told = f"# 2 crops of {name}, 1 of others"
    split = f"{command}\n{told}\n{rows}"
    # as another system writes it
    (tiny.folder / "datasplit.csv").write_bytes(split.replace("\n", "\r\n").encode())
    tiny.add(f"_text = lambda: 0  # {name}\n_{name} = '{name}/train_config.py'")
    tiny.write("notes.csv", f"{name},{name}/train_config.py\n# {PROGRAM} train {name}\n")
    tiny.write("latin.md", "")
    (tiny.folder / "latin.md").write_bytes(b"caf\xe9 " + name.encode())
    copy = new(tmp_path / "twin", tiny.folder)
    kept = (copy / "datasplit.csv").read_bytes().decode()
    line = command.replace(f"{tiny.folder}/", "twin/")
    assert kept == split.replace(command, line).replace("\n", "\r\n")
    for path in tiny.folder.iterdir():
        if path.suffix in (".py", ".md") or path.name == "notes.csv":
            assert (copy / path.name).read_bytes() == path.read_bytes(), path
    assert train(copy, data=tiny.data).finished


def test_comments_and_docstrings_of_a_program_name_the_copy_and_its_code_does_not_change(tmp_path):
    text = f'''"""A network.

{PROGRAM} train old --data old
"""

load_model = "old/train_config.py"  # see old/train_config.py


def old(old="old"):
    """As in old/train_config.py."""
    return old  # {PROGRAM} train old
'''
    source = tmp_path / "old"
    source.mkdir()
    (source / "train_config.py").touch()
    copy = tmp_path / "new one"
    new_text = Renaming(source, copy).of_file(".py", text)
    wanted = (
        text.replace("train old ", "train 'new one' ")
        .replace("# see old/", "# see new one/")
        .replace("As in old/", "As in new one/")
        .replace("train old\n", "train 'new one'\n")
    )
    assert new_text == wanted


@pytest.mark.parametrize("name", ["flyem_medulla", "drosophila_vnc", "phantom_cell"])
def test_the_dataset_of_an_example_keeps_its_name(tmp_path, name):
    source = REPOSITORY / "examples" / name
    copy = new(tmp_path / "my_fly", source)
    assert (copy / "datasplit.csv").read_bytes() == (source / "datasplit.csv").read_bytes()
    text = (copy / "README.md").read_text()
    assert text.startswith("# my_fly\n") and "train my_fly" in text
    assert text.count(f"{name}/{name}.zarr") == (source / "README.md").read_text().count(
        f"{name}/{name}.zarr"
    )


def test_folders_of_a_package_in_an_experiment_are_copied_whatever_they_are_called(
    experiment, tmp_path
):
    tiny = experiment()
    (tiny.folder / "parts/results").mkdir(parents=True)
    tiny.write("parts/results/table.py", "x = 1")
    assert (new(tmp_path / "twin", tiny.folder) / "parts/results/table.py").is_file()


def test_a_split_says_the_command_that_makes_it_in_its_new_place(tmp_path):
    copy = new(tmp_path / "twin", "unet8_all")
    line, _, rows = (REPOSITORY / "unet8_all/datasplit.csv").read_text().partition("\n")
    line_of_copy, _, rows_of_copy = (copy / "datasplit.csv").read_text().partition("\n")
    assert line_of_copy == line.replace("unet8_all", "twin")
    assert rows_of_copy == rows
    assert load_config(copy).model_name == "twin"


def test_sections_without_results_stay(tmp_path):
    assert without_results("# a\n\ntext\n\n## Split\n\n5\n") == "# a\n\ntext\n\n## Split\n\n5\n"


def test_a_relative_name_is_a_folder_here_and_the_next_command_names_it(
    experiment, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    copy = new("twin", experiment().folder.name)
    assert copy == tmp_path / "twin" and next_command(copy).endswith("train twin --check")
    assert next_command(REPOSITORY / "mine").endswith(f"train {REPOSITORY / 'mine'} --check")


@pytest.mark.parametrize(
    ("name", "source", "error", "sentence"),
    [
        (
            "tiny_experiment",
            "tiny_experiment",
            FileExistsError,
            "is there already; write another name",
        ),
        ("tiny_experiment/inner", "tiny_experiment", ValueError, "which is copied"),
        (
            "tiny_experiment/data.py/deep/inner",
            "tiny_experiment",
            ValueError,
            r"data\.py/deep/inner: \S+/data\.py is a file, in which no folder lies; write another",
        ),
        ("my net", "tiny_experiment", ValueError, "'my net' is no name"),
        (
            "zarr",
            "tiny_experiment",
            ValueError,
            "hide the Python package 'zarr' .* such as my_zarr",
        ),
        ("copy", "tiny_experiment", ValueError, "hide the Python package 'copy'"),
        ("common", "tiny_experiment", ValueError, "hide the Python package 'common'"),
        ("twin", "unet9_all", FileNotFoundError, "copy one of .*unet8_all"),
    ],
)
def test_what_cannot_be_copied_is_said_and_leaves_nothing(
    experiment, tmp_path, monkeypatch, name, source, error, sentence
):
    experiment()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=sentence):
        new(name, source)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_experiment_that_python_takes_for_a_package_is_to_be_renamed(tmp_path):
    (tmp_path / "json").mkdir()
    for name in ("__init__.py", "train_config.py"):
        (tmp_path / "json" / name).touch()
    done = subprocess.run(
        [sys.executable, "-m", "cellmap_segmentation_challenge", "train", "json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    [said] = done.stderr.splitlines()
    assert said.startswith(f"error: {tmp_path}: the experiment 'json' has the name of a Python")
    assert "rename it: mv json my_json" in said
