"""The house: which module may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from common.config import REPOSITORY

FLOORS = {
    0: "classes ngff augment losses optim runtime tracking checkpoint figures phantom unet cosem instances score quality runs",
    1: "config annotation datasplit raw regrid manifest",
    2: "crops sampling regions submission compare",
    3: "loaders inference fingerprint fetch report",
    4: "steps visualize",
    5: "train predict process tune evaluate readme seeds search new doctor demo",
    6: "cli",
}
BESIDE = {
    ("cosem", "unet"),
    ("demo", "evaluate"),
    ("demo", "predict"),
    ("demo", "process"),
    ("demo", "train"),
    ("evaluate", "process"),
    ("evaluate", "readme"),
    ("phantom", "classes"),
    ("phantom", "ngff"),
    ("predict", "train"),
    ("process", "train"),
    ("sampling", "crops"),
    ("search", "train"),
    ("seeds", "train"),
    ("tune", "evaluate"),
    ("tune", "process"),
}
"""Imports within a floor: (module, imports)."""


def imports_of(path: Path) -> set[str]:
    """Names of modules of common/ that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "common":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("common."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("common.")}
    return found


FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
MODULES = sorted(path for path in (REPOSITORY / "common").glob("*.py") if path.stem != "__init__")


def test_every_module_has_a_floor():
    assert {path.stem for path in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_from_floors_below(path):
    above = {name for name in imports_of(path) if FLOOR_OF[name] >= FLOOR_OF[path.stem] and (path.stem, name) not in BESIDE}
    assert not above


def experiments() -> list[Path]:
    return sorted(path.parent for path in REPOSITORY.glob("**/train_config.py") if ".venv" not in path.parts)


def test_common_imports_no_experiment():
    names = {folder.name for folder in experiments()} | {"examples"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            roots = [a.name.split(".")[0] for a in node.names] if isinstance(node, ast.Import) else []
            roots += [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) else []
            assert not names & set(roots), path


@pytest.mark.parametrize("folder", experiments(), ids=lambda folder: folder.name)
def test_an_experiment_imports_itself_common_and_packages_only(folder):
    others = {other.name for other in experiments()} | {"examples"}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1 and (node.level == 1 or (node.module or "").split(".")[0] not in others)


def test_the_unets_differ_in_their_voxel_size_alone():
    def text(voxel_size: int, name: str) -> str:
        content = (REPOSITORY / f"unet{voxel_size}_all" / name).read_text()
        return content.replace(f"unet{voxel_size}_all", "").replace(f"at {voxel_size} nm", "").replace(f"({voxel_size}, {voxel_size}, {voxel_size})", "")

    for name in ("model.py", "data.py", "train_config.py", "process_config.py"):
        assert text(8, name) == text(32, name) == text(128, name)
