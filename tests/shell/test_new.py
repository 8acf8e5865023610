"""A new experiment from another one."""

from __future__ import annotations

import pytest

from common.config.load import load_config
from common.files import REPOSITORY
from common.shell.new import new, next_command, renamed, without_results

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
    copy = new(tmp_path / "copy", tiny.folder)
    assert {path.name for path in copy.iterdir()} == {*FILES, "notes.txt"}
    assert (copy / "model.py").read_text() == (tiny.folder / "model.py").read_text()
    assert (tiny.folder / "logs").is_dir()


def test_a_copy_trains_under_its_own_name(experiment, tmp_path):
    from common.train.run import train

    tiny = experiment()
    result = train(new(tmp_path / "copy", tiny.folder), data=tiny.data)
    assert result.finished
    assert result.checkpoint == tmp_path / "copy/checkpoints/copy/seed42/best.pt"


def test_the_readme_names_the_copy_and_not_the_scores_of_its_source(experiment, tmp_path):
    tiny = experiment()
    (tiny.folder / "README.md").write_text(README.format(folder=tiny.folder))
    text = (new(tmp_path / "copy", tiny.folder) / "README.md").read_text()
    wanted = f"""# copy

A copy of tiny_experiment.

A network; {tmp_path}/copy trains in a second. my_tiny_experiment is another.

```
python -m cellmap_segmentation_challenge train {tmp_path}/copy/train_config.py
cp -r {tmp_path}/copy other && python -m cellmap_segmentation_challenge train other
```

## Results

None yet.

## License

Free.
"""
    assert text == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# phantom_cell", "# mine"),
        ("python -m x train examples/phantom_cell --check", "python -m x train deep/mine --check"),
        ("train examples/phantom_cell/train_config.py", "train deep/mine/train_config.py"),
        (
            "examples/phantom_cells, my_phantom_cell, phantom_cell-2",
            "examples/phantom_cells, my_phantom_cell, phantom_cell-2",
        ),
        ("a path b/phantom_cell of another", "a path b/phantom_cell of another"),
    ],
)
def test_names_and_paths_are_told_apart(text, wanted):
    assert renamed(text, REPOSITORY / "examples/phantom_cell", REPOSITORY / "deep/mine") == wanted


def test_a_split_says_the_command_that_makes_it_in_its_new_place(tmp_path):
    copy = new(tmp_path / "copy", "unet8_all")
    line, _, rows = (REPOSITORY / "unet8_all/datasplit.csv").read_text().partition("\n")
    line_of_copy, _, rows_of_copy = (copy / "datasplit.csv").read_text().partition("\n")
    assert line_of_copy == line.replace("unet8_all", str(copy))
    assert rows_of_copy == rows
    assert load_config(copy).model_name == "copy"


def test_sections_without_results_stay(tmp_path):
    assert without_results("# a\n\ntext\n\n## Split\n\n5\n") == "# a\n\ntext\n\n## Split\n\n5\n"


def test_a_relative_name_is_a_folder_here_and_the_next_command_names_it(
    experiment, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    copy = new("copy", experiment().folder.name)
    assert copy == tmp_path / "copy" and next_command(copy).endswith(f"train {copy} --check")
    assert next_command(REPOSITORY / "mine").endswith("train mine --check")


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
        ("my net", "tiny_experiment", ValueError, "'my net' is no name"),
        ("copy", "unet9_all", FileNotFoundError, "copy one of .*unet8_all"),
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
