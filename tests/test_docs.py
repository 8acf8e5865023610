"""The README and the pages of docs/ are true: they build, and what they name is there."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import tifffile
from conftest import DEADLINE

from cellmap_segmentation_challenge import _names
from common.config.load import PACKAGE, load_config
from common.config.settings import ProcessConfig, TrainConfig, describe
from common.files import REPOSITORY
from common.model import cosem, unet
from common.shell import public
from common.shell.cli import cli, main
from common.train import losses
from tests import documents

README = REPOSITORY / "README.md"
TEXTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "*_all/README.md", "examples/**/README.md")
    for path in REPOSITORY.glob(pattern)
)
LARGEST_README = 8000
"""Bytes; the rest is in docs/."""


def names(texts: list[Path]) -> list[str]:
    return [str(path.relative_to(REPOSITORY)) for path in texts]


def test_the_readme_is_short():
    assert len(README.read_bytes()) < LARGEST_README


@pytest.mark.parametrize("path", TEXTS, ids=names(TEXTS))
def test_files_and_pictures_that_a_text_links_to_are_there(path):
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text()):
        made_when_built = path.name == "index.md" and target == "scores.png"
        file = path.parent / target if target else path
        assert made_when_built or file.exists(), target
        if heading and file.suffix == ".md":
            assert heading in documents.headings(file.read_text()), (target, heading)


PAGES = [path for path in TEXTS if path.name != "CHANGELOG.md"]
"""What is true today; a changelog is of its days."""


WALKED = """
```
for step in train predict; do csc $step my_unet --set "run_name=a b"; done   # in turn
server1$ SEED=7 python -m cellmap_segmentation_challenge process my_unet \\
    --workers 4 && ls
rm file.tif
```
```python
csc evaluate my_unet
```
"""


def test_commands_are_found_as_a_shell_reads_them_and_none_is_run(tmp_path):
    file = tmp_path / "file.tif"
    file.touch()
    steps = [[step, "my_unet", "--set", "run_name=a b"] for step in ("train", "predict")]
    process = ["process", "my_unet", "--workers", "4"]
    assert documents.commands(WALKED, tmp_path) == [*steps, process]
    assert file.exists()


@pytest.mark.parametrize("words", ["train my_unet --lr 3", "tune", "predict a --workers two"])
def test_a_command_that_would_be_refused_is_noticed(words):
    with pytest.raises(click.UsageError):
        read(words.split())


def read(words: list[str]) -> click.Context:
    """A command read as if it were typed. Raises click's error, or ours, for a wrong one."""
    name, *given = words
    context = cli.commands[name].make_context(name, given)
    if name != "submit":
        return context
    handed_in = list(context.params["words"])
    return read(handed_in if handed_in[0] in cli.commands else ["train", *handed_in])


def experiment_of(words: list[str]) -> Path:
    """The experiment that a command names; for one that a reader is to make, unet8_all."""
    named = [REPOSITORY / word for word in words if not word.startswith("/")]
    there = [folder for folder in named if (folder / "train_config.py").is_file()]
    return there[0] if there else REPOSITORY / "unet8_all"


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_commands_that_a_page_tells_to_type_are_taken(path, tmp_path):
    for words in documents.commands(path.read_text(), tmp_path):
        given = read(words).params.get("overrides")
        if given:
            load_config(experiment_of(words), given)


NO_SETTINGS = {"name", "takes_unknown", "volume", "model"}
"""A placeholder, an attribute of a loss, a variable, a name of the public toolbox."""

OF_OTHERS = {"--signals-to-handle", "--scheduler-file", "--constraint", "--bind", "--dry-run"}
"""Of torchrun, dask, batch systems, apptainer and pip."""


def options_of(command: click.Command) -> set[str]:
    return {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_options_that_a_page_names_exist(path):
    bench = "".join(file.read_text() for file in (REPOSITORY / "bench").glob("*.py"))
    others = OF_OTHERS | set(re.findall(r"--[a-z-]+", bench))
    ours = set().union(*map(options_of, cli.commands.values()))
    for span in documents.spans(path.read_text()):
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", span))
        command = documents.command_of(span)
        alone = command in cli.commands and command != "submit"  # which has another one within
        known = options_of(cli.commands[command]) if alone else ours | others
        assert flags <= known, span


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_settings_that_a_page_gives_exist(path):
    known = {name for table in (TrainConfig, ProcessConfig) for name, _, _ in describe(table)}
    for span in documents.spans(path.read_text()):
        given = re.findall(r"^(\w+) = |--set (\w+)[.\w]*=", span)
        assert {in_file or on_line for in_file, on_line in given} <= known | NO_SETTINGS, span
    for block in documents.blocks(path.read_text(), "python"):
        assert documents.assigned(block) <= known | NO_SETTINGS, block


def test_classes_of_ones_own_that_a_page_declares_are_taken(tmp_path):
    page = (REPOSITORY / "docs/howto/classes.md").read_text()
    shown = "\n".join(documents.blocks(page, "python"))
    info = '{"shape": (44, 44, 44), "scale": (8, 8, 8)}'
    file = tmp_path / "train_config.py"
    file.write_text(
        "from common.model.unet import build_unet\n"
        "def build_model(classes): return build_unet(classes, (8, 8, 8))\n"
        f"input_array_info = target_array_info = {info}\n{shown}"
    )
    assert load_config(file).class_relations.keys() == {"my_granule", "mito"}


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_names_of_ours_that_a_page_imports_are_there(path):
    for block in documents.blocks(path.read_text(), "python"):
        for module, name in documents.imports(block, "common", PACKAGE, "testing"):
            assert hasattr(importlib.import_module(module), name), (module, name)


@pytest.mark.parametrize("path", TEXTS, ids=names(TEXTS))
def test_commands_that_a_text_names_exist(path):
    text = path.read_text()
    for command in re.findall(r"(?:python -m cellmap_segmentation_challenge|csc) ([a-z-]+)", text):
        assert command in cli.commands, command
    for script in re.findall(r"python ((?:bench/)?\w+\.py)", text):
        assert (REPOSITORY / script).is_file(), script
    for target in re.findall(r"make ([a-z]+) ", text):
        made = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert target in made or path.name != "README.md", target


def test_addresses_that_a_text_names_exist():
    for path in TEXTS:
        for address in re.findall(r"\bcommon(?:\.[a-z_][a-z_0-9]*)+", path.read_text()):
            file = REPOSITORY / (address.replace(".", "/") + ".py")
            parent = file.parent.with_suffix(".py")  # a name within a module
            package = file.parent / "__init__.py"  # a name that a folder gives on
            given_on = package.is_file() and file.stem in package.read_text()
            is_module = file.is_file() or file.with_suffix("").is_dir()
            assert is_module or parent.is_file() or given_on, (path, address)


def test_functions_that_the_walks_through_the_design_name_are_there():
    rooms = "|".join(path.name for path in (REPOSITORY / "common").iterdir() if path.is_dir())
    text = (REPOSITORY / "docs" / "design.md").read_text()
    named = set(re.findall(rf"`((?:{rooms})(?:\.\w+)+)", text))
    assert len(named) > 50
    for address in named:
        assert pkgutil.resolve_name(f"common.{address}"), address


def test_the_short_list_of_what_experiments_import_is_true_and_names_all_losses():
    text = (REPOSITORY / "docs/reference/api/index.md").read_text()
    listed = dict(re.findall(r"^\| `([\w.]+)` \| (`.*`)", text, re.MULTILINE))
    named = {module: re.findall(r"`(\w+)`", names) for module, names in listed.items()}
    for module, names in named.items():
        assert all(pkgutil.resolve_name(f"{module}:{name}") for name in names)
    assert sorted(named["common.train.losses"]) == sorted(losses.__all__)


def test_an_experiment_says_which_sizes_its_network_takes():
    rules = {
        "setup_04_all": cosem,
        "unet8_all": unet,
        "unet32_all": unet,
        "unet128_all": unet,
    }
    for folder, network in rules.items():
        rule = f"{network.SMALLEST_INPUT} + {network.INPUT_STEP}k"
        text = (REPOSITORY / folder / "data.py").read_text()
        assert f"({rule}) on an axis, and gives {network.LOST_VOXELS} less" in text, folder
        assert rule in (REPOSITORY / folder / "README.md").read_text(), folder


RESENC = (
    "resenc8_all",
    "examples/phantom_cell",
    "examples/flyem_medulla",
    "examples/drosophila_vnc",
    "examples/organelles_single",
    "examples/organelles_joint",
)


@pytest.mark.parametrize("folder", RESENC)
def test_an_experiment_says_of_what_number_its_patch_is_a_multiple(folder):
    config = load_config(REPOSITORY / folder)
    step = config.build_model(config.classes).plan.step
    text = " ".join((REPOSITORY / folder / "data.py").read_text().split())
    for multiple in set(step) - {1}:
        assert re.search(rf"multiples of [^.]*\b{multiple}\b", text), (multiple, text)


def test_every_room_is_explained():
    text = (REPOSITORY / "docs" / "design.md").read_text()
    for path in (REPOSITORY / "common").iterdir():
        name = f"{path.name}/" if path.is_dir() else path.name
        assert path.name.startswith("__") or f"`{name}`" in text, path


@pytest.mark.parametrize("room", ["config", "model", "train"])
def test_the_map_of_a_room_names_each_of_its_modules_once(room):
    folder = REPOSITORY / "common" / room
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    places = [path for path in folder.iterdir() if not path.name.startswith("__")]
    assert sorted(re.findall(r"`(\w+)`", text)) == sorted(path.stem for path in places)


def test_the_tree_is_that_of_the_disk():
    block = re.search(r"```\n(.*?)```", (REPOSITORY / "docs" / "design.md").read_text(), re.DOTALL)
    named = set()
    for line in block[1].splitlines():
        named |= {name.strip("/") for name in re.split(r"\s{2,}", line)[0].split()}
    listed = subprocess.run(
        ["git", "ls-files"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    folders = {line.split("/")[0] for line in listed.stdout.splitlines() if "/" in line}
    assert {name for name in folders if not name.startswith(".")} <= named
    for name in named:
        assert (REPOSITORY / name).exists(), name


def test_the_tables_of_public_names_and_options_are_whole():
    pytest.importorskip("mkdocs")
    sys.path.insert(0, str(REPOSITORY / "docs"))
    try:
        import hooks
    finally:
        sys.path.pop(0)
    page = hooks.on_page_markdown((REPOSITORY / "docs/reference/toolbox.md").read_text())
    assert "<!--" not in page
    for names in _names.MODULES.values():
        for name in names:
            assert f"| `{name}` |" in page, name
    for command, flags, _ in public.rows():
        assert f"| `{command}` | {flags} |" in page, flags
    assert "| `predict` | `--crops` | `test` | `validate` |" in page
    assert {line.count("|") for line in page.splitlines() if line.startswith("|")} == {4, 5}


WALK = REPOSITORY / "docs/howto/toolbox.md"


CROPS = "train_crops=2, validate_crops=1, crop_size=40, annotated=lambda _: ('mito', 'er', 'nuc')"
SHORTER = {
    "write_phantom('data')": f"write_phantom('data', 2, (112, 152, 152), {CROPS})",
    "iterations_per_epoch = 20": "iterations_per_epoch = 2",
}


def type_here(words: list[str], monkeypatch) -> None:
    """Do what a line of a shell does, in this process, which has imported torch."""
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
    elif words[0] == "mkdir":
        Path(words[1]).mkdir()
    else:
        assert words[0] == "csc"
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main(public_defaults=True)
        assert ended.value.code in (None, 0), words


def test_the_walk_from_the_toolbox_runs(tmp_path, monkeypatch):
    """Word for word, in this process; only the phantom is smaller and the training shorter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELLMAP_DATA", str(tmp_path / "data"))
    text = WALK.read_text()
    for words, fewer in SHORTER.items():
        assert words in text
        text = text.replace(words, fewer)
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    files = iter(re.findall(r"`(mine/\w+\.py)`:", text))
    for kind, block in blocks:
        if kind == "python":
            (tmp_path / next(files)).write_text(block)
            continue
        for line in block.strip().split("\n"):
            type_here(shlex.split(line), monkeypatch)
    assert list((tmp_path / "mine/results").rglob("scores.json"))
    assert list((tmp_path / "mine/pictures").glob("*.png"))


OWN_DATA = REPOSITORY / "docs/own_data.md"
SHORT = "--set epochs=1 --set iterations_per_epoch=2 --set batch_size=2"


def test_the_walk_from_two_files_to_a_picture_runs_word_for_word(tmp_path, monkeypatch, run):
    """In this process, which has imported torch; only the training is shorter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELLMAP_DATA", str(tmp_path / "data"))
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", OWN_DATA.read_text(), re.DOTALL):
        if kind == "python":
            exec(compile(text, OWN_DATA.name, "exec"), {})
            continue
        for line in text.strip().replace("train my_cells", f"train my_cells {SHORT}").split("\n"):
            code, _, error = run(*shlex.split(line)[3:])
            assert code == 0, (line, error)
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.stat().st_size > 10_000
    written = [tifffile.imread(path) for path in (tmp_path / "results").rglob("*.tif")]
    assert [volume.shape for volume in written] == [tifffile.imread("raw.tif").shape]
    assert list((tmp_path / "my_cells/results").rglob("scores.json"))


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--quiet", "--strict"]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "reference" / "settings" / "index.html").read_text()
    for table in (TrainConfig, ProcessConfig):
        for name, _, _ in describe(table):
            assert f"<code>{name}</code>" in settings, name
    commands = (tmp_path / "reference" / "commands" / "index.html").read_text()
    for name in cli.commands:
        assert f"csc {name}" in commands, name
    assert "Sentinel" not in commands  # how click marks an option without a default
