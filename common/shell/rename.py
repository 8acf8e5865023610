"""The texts of a copied experiment: its own paths and title renamed, the data's names kept.

A folder is often named after its dataset, a class or a word of Python. So a name alone says
nothing: it is renamed where it can only be the experiment, which is as the title of a README, in a
path to one of the experiment's files, and where a command takes an experiment. Of a Python file
only comments and docstrings are text, of a CSV file only the comment lines at its top.
"""

from __future__ import annotations

import io
import re
import shlex
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.files import REPOSITORY

TEXTS = frozenset([".md", ".txt", ".rst", ".sh"])
"""Suffixes of files that are text from top to bottom."""

RENAMED = TEXTS | {".py", ".csv"}
"""Suffixes of files that can name their experiment."""

OF_RUNS = frozenset(
    [
        "logs",
        "checkpoints",
        "predictions",
        "processed",
        "results",
        "thresholds.json",
        "scores.png",
        "__pycache__",
    ]
)
"""What training, predict, process, tune and evaluate leave in an experiment's folder."""

FLAGS = frozenset(
    [
        "--absolute",
        "--all-resolutions",
        "--check",
        "--cluster",
        "--dry-run",
        "--each-class",
        "--fetch-all-em-resolutions",
        "--force-all-classes",
        "--force-all-classes-train",
        "--force-all-classes-validate",
        "--group-seeds",
        "--link",
        "--logits",
        "--meshes",
        "--onnx",
        "--overwrite",
        "--partial",
        "--selective",
        "--skip-orthoplanes",
        "--traceback",
        "--use-s3",
        "--verify",
        "--write-readme",
        "--zip",
        "-C",
        "-O",
        "-all-res",
        "-fa",
        "-ft",
        "-fv",
        "-s3",
        "-so",
    ]
)
"""Options of our commands without a value: what follows them can be an experiment."""

_NAME_EXPERIMENTS = frozenset(["--for", "--from", "-r"])
"""Options whose value is an experiment; -r is that of cp."""

# up to the end of the line, a comment or the end of `code`; a backslash goes on in the next line
_COMMAND = re.compile(
    r"(?m)(?:-m cellmap_segmentation_challenge|\bcp -r|(?:^\s*|[`$&;|] ?)csc)\s"
    r"(?:\\\r?\n|[^`#\n])*"
)

# neither in the middle of a longer name nor of another path
_BEFORE = r"(?<![\w./-])(?:\./)?"
_REST = r"(?P<rest>(?:/[\w*{}-]+(?:\.[\w*{}-]+)*)*/?)"
_AFTER = r"(?![\w-]|\.\w)"


@dataclass(frozen=True)
class Renaming:
    """The folder of an experiment and that of its copy, absolute."""

    source: Path
    target: Path

    def of_file(self, suffix: str, text: str) -> str:
        """The content of a file with one of the suffixes in RENAMED, under the new name."""
        if suffix == ".py":
            return self._of_python(text)
        if suffix == ".csv":
            return self._of_table(text)
        return self.of_text(text, has_title=suffix == ".md")

    def of_text(self, text: str, has_title: bool = False) -> str:
        """A text under the new name; has_title: its first line can be the name as a heading."""
        if has_title:
            text = self._of_title(text)
        commands = [match.span() for match in _COMMAND.finditer(text)]
        spellings = sorted({name_of(self.source), self.source.name}, key=len, reverse=True)
        alternatives = "|".join(re.escape(spelling) for spelling in spellings)

        def replacement(match: re.Match[str]) -> str:
            command = _command_before(text, match.start(), commands)
            if not self._is_own(match["path"], match["rest"], command):
                return match[0]
            new = name_of(self.target)
            # in quotes already where the word does not begin with the path
            if command is not None and command[-1:].isspace():
                new = shlex.quote(new)
            return new + match["rest"]

        return re.sub(rf"{_BEFORE}(?P<path>{alternatives}){_REST}{_AFTER}", replacement, text)

    def _is_own(self, path: str, rest: str, command: str | None) -> bool:
        """Whether a path is the experiment's; `command`: that it stands in, up to it."""
        first = rest.strip("/").partition("/")[0]
        if first:
            is_file = first in OF_RUNS or (self.source / first).exists()
            return is_file or "/" in path
        if command is None:
            return "/" in path
        return _takes_experiment(command)

    def _of_title(self, text: str) -> str:
        heading = rf"\A(\s*# `?){re.escape(self.source.name)}(?=`?\s*(?:[:,(–—]|$))"
        return re.sub(heading, lambda match: match[1] + self.target.name, text, flags=re.MULTILINE)

    def _of_table(self, text: str) -> str:
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if not line.startswith("#"):
                break
            # a line without a command tells of the data
            if _COMMAND.search(line):
                lines[number] = self.of_text(line)
        return "\n".join(lines)

    def _of_python(self, text: str) -> str:
        lines = text.split("\n")
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line) + 1)
        parts = []
        end = 0
        for token in _texts_of_python(text):
            begin = starts[token.start[0] - 1] + token.start[1]
            parts += [text[end:begin], self.of_text(token.string)]
            end = begin + len(token.string)
        return "".join(parts) + text[end:]


def name_of(folder: Path) -> str:
    """A folder as a command in the repository names it."""
    if folder.is_relative_to(REPOSITORY):
        return str(folder.relative_to(REPOSITORY))
    return str(folder)


def _command_before(text: str, position: int, commands: list[tuple[int, int]]) -> str | None:
    """The command that a position stands in, up to it; None outside of commands."""
    for begin, end in commands:
        if begin <= position < end:
            return text[begin:position]
    return None


def _takes_experiment(command: str) -> bool:
    """Whether the word that follows in a command line can be an experiment."""
    if not command[-1:].isspace() and command[-1:] not in ("'", '"'):
        return False  # in the middle of a word, as in a list of datasets
    words = command.rstrip("'\"").replace("\\\n", " ").split()
    before = words[-1]
    if before.startswith("-"):
        option = before if before in FLAGS else before.replace("_", "-")
        return option in FLAGS or option in _NAME_EXPERIMENTS
    # the first word is what to do: an experiment can be called train
    return before not in ("cellmap_segmentation_challenge", "csc")


def _texts_of_python(text: str) -> Iterator[tokenize.TokenInfo]:
    """The comments of a program, and the strings that are statements: its docstrings."""
    before = tokenize.NEWLINE
    try:
        for token in tokenize.generate_tokens(io.StringIO(text, newline="\n").readline):
            if token.type == tokenize.COMMENT:
                yield token
                continue
            is_first = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
            if token.type == tokenize.STRING and is_first:
                yield token
            if token.type != tokenize.NL:
                before = token.type
    except (tokenize.TokenError, SyntaxError):
        return  # what does not run is copied as it is
