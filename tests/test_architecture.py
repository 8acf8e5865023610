"""The house: which module may import which."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEADLINE

from common.files import REPOSITORY

ORDER = ("ground", "config", "data", "show", "model", "train", "infer", "score", "runs", "shell")
"""A room imports only from itself and from rooms that stand before it."""

DATA_ORDER = ("volumes", "splits", "crops", "samples", "summary", "download", "own")
"""The same of the folders in data/."""

TRAIN_ORDER = (
    "processes",
    "losses",
    "optimising",
    "recording",
    "metrics",
    "skipped",
    "state",
    "checkpointing",
    "validation",
    "steps",
    "setup",
    "judging",
    "mishaps",
    "progress",
    "run",
    "check",
    "replay",
    "several",
    "search",
)
"""The same of the folders and modules in train/."""

INFER_ORDER = (
    "made_by",
    "journal",
    "ledger",
    "machines",
    "networks",
    "predicting",
    "objects",
    "instances",
    "processing",
    "predict",
    "process",
    "completing",
    "summarize",
)
"""The same of the folders and modules in infer/."""

GROUND = {
    "classes",
    "compiled",
    "errors",
    "files",
    "provenance",
    "runtime",
    "stopping",
    "talk",
    "typed",
}
"""Modules of common/ itself, which every room may use."""

COMMON = REPOSITORY / "common"
MODULES = sorted(path for path in COMMON.rglob("*.py") if path.name != "__init__.py")


def room_of(path: Path) -> str:
    """The folder of common/ that a module is in."""
    return path.relative_to(COMMON).parts[0] if path.parent != COMMON else "ground"


def imported(path: Path) -> set[str]:
    """Dotted names of the modules of common/ that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("common.")}


def room_of_import(name: str) -> str:
    """The room that a dotted name of common/ is in."""
    first = name.split(".")[1]
    return first if first in ORDER else "ground"


def test_the_ground_floor_is_small():
    assert {path.stem for path in MODULES if room_of(path) == "ground"} == GROUND


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{room_of(path)}.{path.stem}")
def test_a_module_imports_only_from_rooms_before_its_own(path):
    allowed = ORDER[: ORDER.index(room_of(path)) + 1]
    assert not {name for name in imported(path) if room_of_import(name) not in allowed}


def outside(room: str, allowed: tuple[str, ...]) -> set[str]:
    """What the last of some places in a room imports of the room but from these."""
    place = COMMON / room / allowed[-1]
    found = set()
    for path in [place.with_suffix(".py"), *place.rglob("*.py")]:
        names = imported(path) if path.is_file() else set()
        within = {name for name in names if name.startswith(f"common.{room}.")}
        found |= {name for name in within if name.split(".")[2] not in allowed}
    return found


@pytest.mark.parametrize("place", DATA_ORDER)
def test_a_folder_of_data_imports_only_from_those_before_it(place):
    assert not outside("data", DATA_ORDER[: DATA_ORDER.index(place) + 1])


@pytest.mark.parametrize("place", TRAIN_ORDER)
def test_a_place_in_train_imports_only_from_those_before_it(place):
    assert not outside("train", TRAIN_ORDER[: TRAIN_ORDER.index(place) + 1])


@pytest.mark.parametrize("place", INFER_ORDER)
def test_a_place_in_infer_imports_only_from_those_before_it(place):
    assert not outside("infer", INFER_ORDER[: INFER_ORDER.index(place) + 1])


@pytest.mark.parametrize(("room", "order"), [("train", TRAIN_ORDER), ("infer", INFER_ORDER)])
def test_the_order_in_a_room_names_all_that_is_in_it(room, order):
    there = {path.stem for path in (COMMON / room).iterdir() if not path.stem.startswith("__")}
    assert there == set(order)


def test_no_two_modules_import_each_other():
    """Nor in a longer circle: each module can be read, and imported, before the next."""
    stems = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in MODULES}
    needs = {}
    for name, path in stems.items():
        found = {part if part in stems else part.rpartition(".")[0] for part in imported(path)}
        needs[name] = (found & set(stems)) - {name}
    graphlib.TopologicalSorter(needs).prepare()


def experiments() -> list[Path]:
    return sorted(
        path.parent for path in REPOSITORY.glob("**/train_config.py") if ".venv" not in path.parts
    )


def test_common_imports_no_experiment():
    names = {folder.name for folder in experiments()} | {"examples"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            roots = (
                [a.name.split(".")[0] for a in node.names] if isinstance(node, ast.Import) else []
            )
            roots += [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) else []
            assert not names & set(roots), path


@pytest.mark.parametrize("folder", experiments(), ids=lambda folder: folder.name)
def test_an_experiment_imports_itself_common_and_packages_only(folder):
    others = {other.name for other in experiments()} | {"examples"}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1 and (
                    node.level == 1 or (node.module or "").split(".")[0] not in others
                )


def test_a_clone_has_the_folders_of_runs_and_ignores_what_runs_write():
    listed = subprocess.run(
        ["git", "ls-files"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    names = set(listed.stdout.splitlines())
    assert "__init__.py" in names
    for folder in experiments():
        if folder.name.endswith("_all") or folder.parent.name == "examples":
            where = folder.relative_to(REPOSITORY).as_posix()
            for kind in ("logs", "checkpoints"):
                assert {name for name in names if name.startswith(f"{where}/{kind}/")} == {
                    f"{where}/{kind}/.gitkeep"
                }
                ignored = subprocess.run(
                    ["git", "check-ignore", "--quiet", f"{where}/{kind}/model/seed42/x"],
                    cwd=REPOSITORY,
                    check=False,
                    timeout=DEADLINE,
                )
                assert ignored.returncode == 0


def test_the_folder_above_the_repository_is_not_searched_for_modules():
    assert str(REPOSITORY.parent) not in sys.path


def test_the_unets_differ_in_voxel_size_patch_and_batch_alone():
    def text(voxel_size: int, name: str) -> str:
        content = (REPOSITORY / f"unet{voxel_size}_all" / name).read_text()
        content = re.sub(r'"shape": \((\d+), \1, \1\)|\d+\^3|batch_size = \d+', "", content)
        return (
            content.replace(f"unet{voxel_size}_all", "")
            .replace(f"at {voxel_size} nm", "")
            .replace(f"({voxel_size}, {voxel_size}, {voxel_size})", "")
        )

    for name in ("model.py", "data.py", "train_config.py", "process_config.py"):
        assert text(8, name) == text(32, name) == text(128, name)
