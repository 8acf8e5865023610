"""Which blocks of a class are on disk, in a file beside it while it is written.

A number is added when its block is written, so that a call that ends anywhere can be gone on with.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

# one flipped bit makes no digit of the letter between number and checksum: a line of earlier
# versions, which is a number alone, does not come of one that rots
_LINE = re.compile(rb"(\d+)(?:c([0-9a-f]{8}))?")


class Journal:
    """The numbers of the blocks that are on disk, a line each with its checksum, in a file."""

    def __init__(self, group: Path):
        """group: folder of a class, or of a stage of one."""
        self.path = group / ".blocks"

    def exists(self) -> bool:
        """Return whether the class was begun and is not finished."""
        return self.path.is_file()

    def begin(self) -> None:
        """Make an empty journal."""
        self.path.touch()

    def read(self) -> set[int]:
        """Return the numbers in it, and remove a last line that was cut off: the next goes there.

        Blocks that a damaged journal no longer names are computed again.
        """
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        return self.look()

    def look(self) -> set[int]:
        """Return the numbers in it, without a write: another process may be adding some."""
        content = self.path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].split(b"\n")
        return {number for number in map(_number_of, lines) if number is not None}

    def add(self, number: int) -> None:
        """Note a block as written; threads may do so at the same time, each writes a whole line."""
        with self.path.open("ab", buffering=0) as file:
            file.write(_line_of(number))

    def remove(self) -> None:
        """Remove it, when all blocks are written."""
        self.path.unlink()


def _line_of(number: int) -> bytes:
    """Return the line of a block: its number, and by what a damaged one is known."""
    digits = b"%d" % number
    return b"%sc%08x\n" % (digits, zlib.crc32(digits))


def _number_of(line: bytes) -> int | None:
    """Return the number in a line; None where it is damaged."""
    parts = _LINE.fullmatch(line)
    if parts is None:
        return None
    digits, checksum = parts.groups()
    if checksum is not None and int(checksum, 16) != zlib.crc32(digits):
        return None
    return int(digits)
