"""What Python runs without a word in a configuration, and what gives no setting all the same."""

from __future__ import annotations

import ast
import difflib
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.config.other_names import OTHER_NAMES

LIKE = 0.7
"""Likeness from which on the name of a function that nothing uses is one of a setting, misspelt."""

TYPES = (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp)
"""How types are written; a value that stands in their place is written otherwise."""

MEANT_BY = {"augmentation": "augment"}
"""Settings by names of functions that stand for another one where the value is no function."""


def lost_settings(path: Path, given: Mapping[str, Any], table: type) -> list[str]:
    """Return what a configuration seems to set and does not, a sentence each.

    path: the file. given: the names that it has after it was run. table: of its settings.
    """
    tree = ast.parse(path.read_bytes())
    hints = typing.get_type_hints(table)
    functions = [name for name, hint in hints.items() if _is_function(hint)]
    absent = [name for name in functions if name not in given]
    return [
        *_types_alone(tree, hints.keys() - given.keys()),
        *_comparisons(tree, hints),
        *_only_as_a_program(tree, hints),
        *_unused_functions(tree, hints, absent),
    ]


def _is_function(hint: Any) -> bool:
    return "Callable" in str(hint) and "tuple" not in str(hint)


def _types_alone(tree: ast.Module, absent: Collection[str]) -> Iterator[str]:
    """Lines such as `learning_rate: 1e-3`, which give a name a type and no value."""
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or node.value is not None:
            continue
        name = ast.unparse(node.target)
        if name in absent:
            written = ast.unparse(node.annotation)
            value = "VALUE" if isinstance(node.annotation, TYPES) else written
            yield (
                f"line {node.lineno}: `{name}: {written}` gives {name} a type and no value; write "
                f"{name} = {value}"
            )


def _comparisons(tree: ast.Module, names: Collection[str]) -> Iterator[str]:
    """Lines such as `precision == "fp32"`, which compare and set nothing."""
    for node in tree.body:
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Compare):
            continue
        name = ast.unparse(node.value.left)
        if name in names and isinstance(node.value.ops[0], ast.Eq):
            text = ast.unparse(node)
            meant = text.replace("==", "=", 1)
            yield f"line {node.lineno}: `{text}` compares and sets nothing; write {meant}"


def _only_as_a_program(tree: ast.Module, names: Collection[str]) -> Iterator[str]:
    """Settings under `if __name__ == "__main__":`, which is not run where they are read."""
    for block in tree.body:
        if not isinstance(block, ast.If) or "__name__" not in ast.unparse(block.test):
            continue
        used = _used(block)
        for node in block.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            for name in map(ast.unparse, targets):
                # a variable of a program may have any name
                if name in names and name not in used:
                    yield (
                        f"line {node.lineno}: {name} under `if {ast.unparse(block.test)}` has no "
                        "effect, as the file is read and not run as a program; write it above"
                    )


def _unused_functions(
    tree: ast.Module, names: Collection[str], absent: Collection[str]
) -> Iterator[str]:
    """Functions that nothing in the file uses, named nearly like a setting that is not given."""
    used = _used(tree)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name in {*used, *names}:
            continue
        meant = _meant(node.name, absent)
        if meant and not node.name.startswith("_"):
            yield (
                f"line {node.lineno}: nothing uses the function '{node.name}'; did you mean "
                f"'{meant}'? If not, begin its name with _"
            )


def _meant(name: str, absent: Collection[str]) -> str:
    """The setting among `absent` that the name of a function stands for, "" if it is none."""
    elsewhere = MEANT_BY.get(name, OTHER_NAMES.get(name, ""))
    if elsewhere in absent:
        return elsewhere
    return next(iter(difflib.get_close_matches(name, absent, 1, LIKE)), "")


def _used(tree: ast.AST) -> set[str]:
    """The names whose values are asked for."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
    return names
