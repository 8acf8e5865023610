"""The README is true: its tree, its settings table, its commands. `make readme` (this file as a program) writes the table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from common.config.settings import ProcessConfig, TrainConfig, describe

README = REPOSITORY / "README.md"
BEGIN, END = "<!-- settings: made by `make readme` -->\n", "<!-- end of settings -->"


def settings_table() -> str:
    text = ""
    for file, table in (("train_config.py", TrainConfig), ("process_config.py", ProcessConfig)):
        rows = [
            f"| `{name}` | `{default}` | {meaning.strip()} |"
            for name, default, meaning in describe(table)
        ]
        text += (
            "\n".join(
                [
                    f"| {file} | default | meaning |",
                    "|---|---|---|",
                    *(row.replace("||", "") for row in rows),
                ]
            )
            + "\n\n"
        )
    return text


def test_the_settings_table_is_that_of_the_code():
    text = README.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == settings_table()


def test_the_tree_is_that_of_the_disk():
    block = re.search(r"## The house\n.*?```\n(.*?)```", README.read_text(), re.DOTALL)
    named = [
        name
        for line in block[1].splitlines()
        if not line.startswith(" ")
        for name in re.split(r"\s{2,}", line)[0].split()
    ]
    assert len(named) > 8
    for name in named:
        assert (REPOSITORY / name).exists(), name
    shown = {name.rstrip("/").split("/")[0] for name in named}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert {line.split("/")[0] for line in tracked.stdout.splitlines()} <= shown


def test_every_room_of_common_is_explained():
    text = README.read_text()
    for path in (REPOSITORY / "common").iterdir():
        name = f"{path.name}/" if path.is_dir() else path.name
        assert path.name.startswith("__") or f"`{name}`" in text, path


def test_files_and_pictures_that_it_names_are_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (REPOSITORY / target).exists(), target


def test_commands_that_it_names_exist():
    from common.shell.cli import cli

    text = "".join(path.read_text() for path in [README, *REPOSITORY.glob("docs/*.md")])
    for command in re.findall(r"python -m cellmap_segmentation_challenge ([a-z-]+)", text):
        assert command in cli.commands, command
    for script in re.findall(r"python ((?:bench/)?\w+\.py)", text):
        assert (REPOSITORY / script).is_file(), script


if __name__ == "__main__":
    text = README.read_text()
    README.write_text(
        text[: text.index(BEGIN) + len(BEGIN)] + settings_table() + text[text.index(END) :]
    )
