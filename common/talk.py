"""How we speak: lines beside a progress bar, numbers in words, the command to type next."""

from __future__ import annotations

import difflib
import shlex
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

PROGRAM = ("python", "-m", "cellmap_segmentation_challenge")
"""What every command line begins with."""

SCRIPT = "csc"
"""The same as an installed script, see pyproject.toml."""

Say = Callable[[str], None]
"""Takes a line, or several, for the user: `print`, `click.echo` or `say`."""


_noted: set[str] = set()
"""What `note_once` said."""

_is_silent = False
"""Whether this process says nothing, since another speaks for it, too."""

_lock = threading.Lock()  # crops are opened in threads


def be_silent(silent: bool) -> None:
    """Say nothing from now on and show no progress, or speak again."""
    global _is_silent  # noqa: PLW0603
    _is_silent = silent


def say(text: str) -> None:
    """A line on standard error, beside a progress bar if there is one."""
    if not _is_silent:
        tqdm.write(text, file=sys.stderr)


def note(text: str) -> None:
    """A line about something that is unusual and may be meant."""
    say(f"note: {text}")


def note_once(text: str) -> None:
    """The same as `note`, once a process for each text: many crops may have one reason."""
    with _lock:
        if text in _noted:
            return
        _noted.add(text)
    note(text)


def progress(
    total: int | None, what: str = "", unit: str = "it", done: int = 0, **options: Any
) -> tqdm:
    """A progress bar that goes away when it is full; none where output is not a terminal.

    Args:
        total: how many units there are, if that is known.
        what: stands before the bar.
        unit: of the numbers.
        done: how many units were done before, by an earlier call.
        options: further ones of tqdm.
    """
    return tqdm(
        total=total,
        desc=what or None,
        unit=unit,
        initial=done,
        leave=False,
        disable=_is_silent or None,
        **options,
    )


def command_line(command: str, *words: str | Path, **options: Any) -> str:
    """A command of ours as it is typed, quoted for a shell.

    An option that is None or False is left out, True is written without a value, a list once an
    item; `_` in its name becomes `-`:

        command_line("train", "unet8_all", set=["epochs=3"], check=True)
        -> python -m cellmap_segmentation_challenge train unet8_all --set epochs=3 --check
    """
    line = [*PROGRAM, command, *map(str, words)]
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            line.append(option)
            continue
        values = value if isinstance(value, list | tuple) else [value]
        for item in values:
            if item is not None and item is not False:
                line += [option, str(item)]
    return shlex.join(line)


def program() -> str:
    """What the user typed to start this process: the script's name, or `python -m ...`."""
    if _started_as() == SCRIPT:
        return SCRIPT
    return shlex.join(PROGRAM)


def this_command(otherwise: str) -> str:
    """The command line that started this process; `otherwise` where that was no command of ours."""
    if _started_as() not in ("__main__.py", SCRIPT):
        return otherwise
    return f"{program()} {shlex.join(sys.argv[1:])}"


def _started_as() -> str:
    return Path(sys.argv[0]).name.removesuffix(".exe")


def count(number: int, noun: str, plural: str = "") -> str:
    """'1 crop', '2 crops', '2 classes'; plural: unless it is the noun and an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def some(names: Sequence[str], most: int = 8) -> str:
    """Names separated by commas, and how many there are beyond the first `most`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(name: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """The one of some names that is most like this one; "" where none is like it.

    likeness: of which it must be at least, as of difflib: 0 to 1.
    """
    return next(iter(difflib.get_close_matches(name, list(names), 1, likeness)), "")


def misspelt(given: Iterable[str], read: Collection[str]) -> dict[str, str]:
    """Names that nothing reads, each with the name that is read, is not given and is like it.

    Names that are like none are others' own, and left out.
    """
    given = list(given)
    absent = [name for name in read if name not in given]
    found = {}
    for name in given:
        near = "" if name in read else nearest(name, absent, 0.75)
        if near:
            found[name] = near
    return found


def short_path(path: Path) -> str:
    """An absolute path, relative to the working folder if it is inside."""
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def nm(sizes: Iterable[float]) -> str:
    """Lengths along z, y, x: '8' where they are equal, else '5.24 x 4 x 4'; without the unit."""
    texts = [f"{size:.4g}" for size in sizes]
    return texts[0] if len(set(texts)) == 1 else " x ".join(texts)


def lengths(sizes: Iterable[float]) -> str:
    """Lengths along z, y, x as an option takes them: '8' where they are equal, else '40,4,4'."""
    texts = [f"{size:g}" for size in sizes]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)


def voxels(shape: Sequence[int]) -> str:
    """A shape along z, y, x: '64 x 64 x 64'."""
    return " x ".join(str(int(n)) for n in shape)


def duration(seconds: float) -> str:
    """'42 s', '3 min', '2.5 h', '3 days'."""
    if seconds > 172_800:
        return f"{seconds / 86_400:.0f} days"
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds > 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes as '1.2 GB', '3.4 MB' or '12 kB', in powers of 1000."""
    if count > 1e9:
        return f"{count / 1e9:.1f} GB"
    if count > 1e6:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.0f} kB"


def aligned(rows: Sequence[Sequence[str]], left: int | None = None) -> list[str]:
    """Lines with the columns of a table, the first `left` of them to the left; all by default."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if left is not None:
            pairs = zip(row[left:], widths[left:], strict=True)
            padded[left:] = [cell.rjust(width) for cell, width in pairs]
        lines.append("  ".join(padded).rstrip())
    return lines
