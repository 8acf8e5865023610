"""Write the new name of a copied experiment into its texts, and keep names of data.

A folder is often named after its dataset, a class or a word of Python. So the name is replaced only
where it must be the experiment: as the title of a README, in a path to one of the experiment's
files, and where a command takes an experiment. Of a Python file only comments and docstrings are
text, of a CSV file only the comment lines at its top.
"""

from __future__ import annotations

import io
import re
import shlex
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import classes
from common.files import from_repository
from common.typed import is_number

TEXTS = frozenset([".md", ".txt", ".rst", ".sh"])
"""Suffixes of files that are text from top to bottom."""

RENAMED = TEXTS | {".py", ".csv"}
"""Suffixes of files that can name their experiment."""

ARTICLES = frozenset(["a", "an", "the", "all", "any", "each", "every", "one", "this", "that"])
"""Words before a noun, as in `csc evaluate a crop`; an experiment may be called so, too."""

OF_RUNS = frozenset(
    [
        "logs",
        "checkpoints",
        "predictions",
        "processed",
        "results",
        "joint",
        "tensorboards",
        "mlruns",
        "thresholds.json",
        "scores.png",
        "__pycache__",
    ]
)
"""Names that commands write into an experiment's folder: what its runs are, made and scored.

The labels in joint/ are completed by its networks, and its datasplit names them by their place.
"""

FLAGS = frozenset(
    [
        "--check",
        "--dry-run",
        "--each-class",
        "--group-seeds",
        "--link",
        "--logits",
        "--onnx",
        "--overwrite",
        "--partial",
        "--selective",
        "--skip-orthoplanes",
        "--traceback",
        "--write-readme",
        "-O",
        "-so",
    ]
)
"""Options without a value of the commands that take an experiment."""

TAKE_ONE = frozenset(
    [
        "demo",
        "doctor",
        "evaluate",
        "export-model",
        "fingerprint",
        "pack-results",
        "predict",
        "process",
        "replay",
        "search",
        "train",
        "tune",
        "visualize",
    ]
)
"""Commands whose first word is an experiment."""

TAKE_SEVERAL = frozenset(["compare", "report"])
"""Commands of whose words each can be an experiment."""

EXPERIMENT_OPTIONS = frozenset(["--for", "--from", "--members"])
"""Options whose value is an experiment."""

_PROGRAM = r"(?:-m cellmap_segmentation_challenge|\bcp -r|(?:^\s*|[`$&;|#] ?)csc)\s"
# up to the end of the line, a comment or the end of `code`; a backslash goes on in the next line
_COMMAND = re.compile(rf"(?m){_PROGRAM}(?:\\\r?\n|[^`#\n])*")
_PROGRAMS = re.compile(rf"(?m){_PROGRAM}")

# neither in the middle of a longer name nor of another path
_BEFORE = r"(?<![\w./-])(?:\./)?"
_REST = r"(?P<rest>(?:/[\w*{}-]+(?:\.[\w*{}-]+)*)*/?)"
_AFTER = r"(?![\w-]|\.\w)"
_NEXT_WORD = re.compile(r"[ \t]+[A-Za-z]+(?=[\s,:;?!)]|\.?$|\.\s)", re.MULTILINE)


@dataclass(frozen=True)
class Renaming:
    """The folder of an experiment and that of its copy, absolute."""

    source: Path
    target: Path

    def of_file(self, suffix: str, text: str) -> str:
        """Return the content of a file, whose suffix is in RENAMED, with the new name."""
        if suffix == ".py":
            return self._of_python(text)
        if suffix == ".csv":
            return self._of_table(text)
        return self.of_text(text, has_title=suffix == ".md")

    def of_text(self, text: str, has_title: bool = False) -> str:
        """Return a text with the new name. has_title: the first line can be the old name."""
        if has_title:
            text = self._of_title(text)
        commands = [match.span() for match in _COMMAND.finditer(text)]
        spellings = {str(self.source), from_repository(self.source), self.source.name}
        longest_first = sorted(spellings, key=len, reverse=True)
        alternatives = "|".join(re.escape(spelling) for spelling in longest_first)

        def replacement(match: re.Match[str]) -> str:
            command = _command_before(text, match.start(), commands)
            if not self._is_own(match["path"], match["rest"], command):
                return match[0]
            if _is_noun(match[0]) and _NEXT_WORD.match(text, match.end()):
                return match[0]  # in a sentence: evaluate a crop, predict mito and er
            new = from_repository(self.target)
            # in quotes already where the word does not begin with the path
            if command is not None and command[-1:].isspace():
                new = shlex.quote(new)
            return new + match["rest"]

        return re.sub(rf"{_BEFORE}(?P<path>{alternatives}){_REST}{_AFTER}", replacement, text)

    def _is_own(self, path: str, rest: str, command: str | None) -> bool:
        """Whether a path is the experiment's.

        rest: what follows the path. command: the command line before it; None outside of commands.
        """
        first = rest.strip("/").partition("/")[0]
        if first:
            is_file = first in OF_RUNS or (self.source / first).exists()
            return is_file or "/" in path
        return "/" in path or (command is not None and _takes_experiment(command, path))

    def _of_title(self, text: str) -> str:
        # "# mito, er and nuc" of an experiment mito lists classes
        ends = ":(–—" if classes.atoms_of(self.source.name) else ":,(–—"
        heading = rf"\A(\s*# `?){re.escape(self.source.name)}(?=`?\s*(?:[{ends}]|$))"
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


def _is_noun(name: str) -> bool:
    """Whether a name without a path is a class of the challenge, or stands before one in a text."""
    return name in ARTICLES or classes.atoms_of(name) is not None


def _command_before(text: str, position: int, commands: list[tuple[int, int]]) -> str | None:
    """Return the command line before a position in it; None outside of commands."""
    for begin, end in commands:
        if begin <= position < end:
            return text[begin:position]
    return None


def _takes_experiment(command: str, word: str) -> bool:
    """Whether the word that follows in a command line is an experiment.

    A sentence can go on behind a command, with words of the data.
    """
    if not command[-1:].isspace() and command[-1:] not in ("'", '"'):
        return False  # in the middle of a word, as in a list of datasets
    *_, program = _PROGRAMS.finditer(command)
    words = command[program.end() :].rstrip("'\"").replace("\\\n", " ").split()
    if program[0].startswith("cp"):
        return not words
    last = words[-1].replace("_", "-") if words else ""
    if last.startswith("-") and last not in FLAGS:
        return last in EXPERIMENT_OPTIONS
    return _is_place(_without_options(words), word)


def _is_place(before: Sequence[str], word: str) -> bool:
    """Whether an experiment can follow these words of a command, options left out."""
    match before:
        case ["joint", "init"]:
            return True
        case ["submit"]:
            return word not in TAKE_ONE
        case [verb] | ["submit", verb]:
            # as in: for step in train predict; do csc $step my_net; done
            return verb in TAKE_ONE | TAKE_SEVERAL or verb.startswith("$")
        case [verb, *named]:
            # again: in a sentence that goes on behind the command
            return verb in TAKE_SEVERAL and word not in [name.rstrip(",.:;?") for name in named]
    return False  # the first word is what to do: an experiment can be called train


def _without_options(words: Iterable[str]) -> list[str]:
    """Return the words of a command without options and their values, as of --scale 8 8 8."""
    kept = []
    is_value = False
    for word in words:
        if word.startswith("-"):
            is_value = "=" not in word and word.replace("_", "-") not in FLAGS
            continue
        if not is_value and not is_number(word):
            kept.append(word)
        is_value = False
    return kept


def _texts_of_python(text: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the comments of a program, and its docstrings: strings that are statements."""
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
