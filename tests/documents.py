"""What the pages tell a reader to type: commands, options, and Python."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

PROGRAMS = ("cellmap_segmentation_challenge", "csc", "csc-baselines", "csc-baselines.sif")
"""What stands before the name of a command of ours: a module, a script, a container."""

LOADERS = ("python", "csc", "torchrun", "srun", "bsub", "docker", "apptainer")

RECORDER = "\n".join(
    [
        "exec 2>/dev/null",
        "PATH=",  # nothing else is found, so that nothing is run
        *(f"{name}() {{ printf '%s\\t' {name} \"$@\"; echo; }}" for name in LOADERS),
        "",
    ]
)
"""Shell that prints what would be run, a line each, words ended by tabs."""


def blocks(text: str, *kinds: str) -> list[str]:
    """The blocks of code of a page that are of these kinds; "" is a block without one."""
    return [block for kind, block in FENCE.findall(text) if kind in kinds]


def commands(text: str, folder: Path) -> list[list[str]]:
    """The commands of ours in the blocks of a page, as a shell gives them: name, then arguments.

    folder: an empty one, in which the shell stands that reads them.
    """
    shell = [
        re.sub(r"^\w+\$ ", "", block, flags=re.MULTILINE) for block in blocks(text, "", "bash")
    ]
    printed = subprocess.run(
        ["bash", "-c", RECORDER + "\n".join(f"( eval {shlex.quote(block)} )" for block in shell)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line.split("\t")[:-1] for line in printed.stdout.splitlines()]
    return [words for line in lines for words in ours(line)]


def ours(line: list[str]) -> Iterator[list[str]]:
    """What a line gives to our program, if it does."""
    places = [number for number, word in enumerate(line) if word in PROGRAMS]
    if places and len(line) > places[0] + 1:
        yield line[places[0] + 1 :]


def spans(text: str) -> list[str]:
    """The code within the sentences and tables of a page."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def command_of(span: str) -> str:
    """The first word of what a span tells our program; of another one, its first word."""
    words = span.split()
    return next(ours(words), words)[0] if words else ""


def headings(text: str) -> set[str]:
    """The headings of a page as links name them, by the rule of MkDocs and GitHub."""
    lines = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", line).strip().lower() for line in lines]
    return {re.sub(r"\s", "-", line) for line in plain}


def imports(block: str, *packages: str) -> Iterator[tuple[str, str]]:
    """Module and name of what a block of Python imports from these packages."""
    for node in ast.walk(ast.parse(block)):
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if module.partition(".")[0] in packages:
            yield from ((module, alias.name) for alias in node.names)


def assigned(block: str) -> set[str]:
    """Names that a block gives a value at its top level and does not use itself: settings."""
    tree = ast.parse(block)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _is_read(node)}
    targets = [node.targets for node in tree.body if isinstance(node, ast.Assign)]
    given = {name.id for group in targets for name in group if isinstance(name, ast.Name)}
    return given - used


def _is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)
