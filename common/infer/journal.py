"""Which blocks of a class are on disk, in a file beside it while it is written.

A number is added when its block is written, so that a call that ends anywhere can be gone on with.
"""

from __future__ import annotations

import os
from pathlib import Path


class Journal:
    """The numbers of the blocks that are on disk, a line each, in a file."""

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
        lines = content[: content.rfind(b"\n") + 1].split()
        return {int(line) for line in lines if line.isdigit()}

    def add(self, number: int) -> None:
        """Note a block as written; threads may do so at the same time, each writes a whole line."""
        with self.path.open("ab", buffering=0) as file:
            file.write(b"%d\n" % number)

    def remove(self) -> None:
        """Remove it, when all blocks are written."""
        self.path.unlink()
