"""Which files make an experiment's network, and whether they still say the same."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config.settings import TrainConfig
from common.talk import note_once

NETWORK_CODE = "network_code"
"""Name of the hash in a checkpoint."""

SETTINGS = frozenset(field.name for field in dataclasses.fields(TrainConfig))


def network_code(config: TrainConfig) -> str:
    """Return a hash of the code in the experiment's folder that makes its network.

    Comments, layout, docstrings and settings do not count: settings are on record by themselves.
    "" where `build_model` is no function of that folder. A process sees the files as they were at
    the first call for a configuration, since what it loaded runs on.
    """
    function = config.build_model
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isfunction(function):
        return ""
    return _code_of(function, config.folder.resolve())


def note_other_code(path: Path, saved: Mapping[str, Any], config: TrainConfig) -> None:
    """Note where the code of a network is not that which a checkpoint was trained with.

    saved: what the checkpoint at `path` holds. One from before code was recorded says nothing.
    """
    before = saved.get(NETWORK_CODE, "")
    now = network_code(config)
    if before and now and before != now:
        note_once(
            f"{path}: the code in {config.folder} that makes the network was edited since; the "
            "weights fit, but if it computes otherwise now, they are not those of this network: "
            "put the code back, or train again"
        )


@functools.lru_cache(maxsize=16)
def _code_of(build_model: Callable, folder: Path) -> str:
    file = Path(inspect.getsourcefile(build_model) or "").resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        return ""
    return functions_code(file, folder)


def functions_code(file: Path, folder: Path) -> str:
    """Return a hash of what a file does, and those that it imports of a folder.

    As of `network_code`, of the files as they are now.
    """
    file = file.resolve()
    # sorted, since the names of files do not count
    contents = sorted(_what_it_does(path) for path in _files_of(file, folder.resolve()))
    return hashlib.sha256("\n\n".join(contents).encode()).hexdigest()


def _files_of(file: Path, folder: Path) -> set[Path]:
    """A file and all that it imports of its folder, and these in turn."""
    files: set[Path] = set()
    new = {file}
    while new:
        files |= new
        imported: set[Path] = set()
        for path in new:
            imported.update(imported_files(path, [folder]))
        new = {path for path in imported if path.is_relative_to(folder)} - files
    return files


def _what_it_does(path: Path) -> str:
    """The code of a file without comments, docstrings and settings."""
    tree = ast.parse(path.read_bytes())
    tree.body = [node for node in tree.body if not _is_setting(node)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # a docstring, or any other text that stands by itself
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_setting(node: ast.stmt) -> bool:
    targets: Sequence[ast.expr] = ()
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return bool(names) and len(names) == len(targets) and SETTINGS.issuperset(names)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


# What a file imports


def imported_files(path: Path, roots: Sequence[Path]) -> Iterator[Path]:
    """The files beside a file, or under one of the roots, that it imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        for module in _imported_modules(path, node, roots):
            file = module.with_suffix(".py")
            if file.is_file():
                yield file.resolve()


def _imported_modules(path: Path, node: ast.AST, further: Sequence[Path]) -> list[Path]:
    """Where the modules would be that an import names, without `.py`; [] for another node."""
    # a bare name may be that of a file beside it
    roots = [path.parent, *further]
    modules = []
    if isinstance(node, ast.Import):
        for root in roots:
            modules += [root.joinpath(*alias.name.split(".")) for alias in node.names]
        return modules
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        roots = [path.parents[node.level - 1]]
    parts = node.module.split(".") if node.module else []
    for root in roots:
        base = root.joinpath(*parts)
        # a name that is imported from a package may be a module of it
        modules += [base, *(base / alias.name for alias in node.names)]
    return modules
