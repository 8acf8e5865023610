"""A new experiment from another one: its files under a new name, without what its runs left behind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from common.config.load import load_config
from common.config.settings import RUN_FOLDERS
from common.errors import UserError
from common.files import REPOSITORY

OF_RUNS = {
    "logs",
    "checkpoints",
    "predictions",
    "processed",
    "results",
    "thresholds.json",
    "scores.png",
    "__pycache__",
}
"""What training, predict, process, tune and evaluate leave in an experiment's folder."""

NO_RESULTS = "None yet.\n"


def new(name: str | Path, source: str | Path) -> Path:
    """Copy an experiment to the folder `name`, its name in texts and commands changed, results taken out; gives the folder.

    source: an experiment's folder, looked for here and in the repository. Raises FileExistsError or FileNotFoundError, or
    ValueError if the copy's configuration cannot be read; then nothing is left of it.
    """
    target, source = Path(name).expanduser().absolute(), _find(source)
    if target.exists():
        raise FileExistsError(f"{target}: is there already; write another name")
    if target.is_relative_to(source):
        raise UserError(f"{target}: lies in {source}, which is copied; write another name")
    if not re.fullmatch(r"\w[\w.-]*", target.name):
        raise UserError(
            f"'{target.name}' is no name for an experiment; write letters, digits, _, - and ."
        )
    left_out = OF_RUNS | _own_run_folders(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copytree(
            source,
            partial,
            ignore=lambda _, names: {n for n in names if n in left_out or n.startswith(".")},
        )
        for path in partial.rglob("*"):
            if path.suffix in (".py", ".md", ".csv") and path.is_file():
                path.write_text(renamed(path.read_text(), source, target))
        readme = partial / "README.md"
        text = readme.read_text() if readme.is_file() else f"# {target.name}\n"
        readme.write_text(without_results(text).replace("\n", f"\n\nA copy of {source.name}.\n", 1))
        load_config(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def next_command(target: Path) -> str:
    """What to type after `new`."""
    return f"python -m cellmap_segmentation_challenge train {said(target)} --check"


def renamed(text: str, source: Path, target: Path) -> str:
    """The text with the folder of `source` replaced where it stands as a path, and its name where it stands alone."""
    text = _replace(text, said(source), said(target)) if said(source) != source.name else text
    text = re.sub(rf"(?<![\w./-]){re.escape(source.name)}(?=/)", lambda _: said(target), text)
    lines = [
        _replace(line, source.name, said(target) if "python -m" in line else target.name)
        for line in text.splitlines(keepends=True)
    ]
    return "".join(lines)


def without_results(text: str) -> str:
    """A README whose sections Results and Scores, down to the next section, say that there are none yet."""
    kept, inside = [], False
    for section in re.split(r"(?m)^(?=##? )", text):
        title = section.partition("\n")[0]
        if not re.match(r"##? (Results|Scores)\b", title):
            kept.append(section)
        elif not inside:
            kept.append(f"{title}\n\n{NO_RESULTS}\n")
            inside = True
    return "".join(kept).rstrip() + "\n"


def said(folder: Path) -> str:
    """A folder as a command in the repository names it."""
    return str(folder.relative_to(REPOSITORY)) if folder.is_relative_to(REPOSITORY) else str(folder)


def _find(source: str | Path) -> Path:
    """The folder of an experiment, absolute. FileNotFoundError with those that there are."""
    for folder in (Path(source).expanduser().absolute(), REPOSITORY / source):
        folder = folder.parent if folder.name == "train_config.py" else folder
        if (folder / "train_config.py").is_file():
            return folder.resolve()
    there = sorted(
        said(path.parent)
        for pattern in ("*", "examples/*")
        for path in REPOSITORY.glob(f"{pattern}/train_config.py")
    )
    raise FileNotFoundError(
        f"{source}: no experiment, as it holds no train_config.py; copy one of {', '.join(there)}"
    )


def _own_run_folders(source: Path) -> set[str]:
    """First folders of the paths that this experiment's runs write to, where it set them to others in its folder."""
    config = load_config(source)
    paths = [config.path(name) for name in RUN_FOLDERS]
    return {
        path.relative_to(source).parts[0]
        for path in paths
        if path.is_relative_to(source) and path != source
    }


def _replace(text: str, old: str, new: str) -> str:
    """Replace a name where it is not part of a longer one."""
    return re.sub(rf"(?<![\w./-]){re.escape(old)}(?![\w-])", lambda _: new, text)
