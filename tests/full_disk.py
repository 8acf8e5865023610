"""A small disk of its own, for tests of what happens when it is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import DEADLINE

PAGE = 4096
"""Bytes that a file of a tmpfs grows by."""


class SmallDisk:
    """A disk in memory that is filled up to what is to be left, and freed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.filler = folder / "filler"

    def leave(self, kilobytes: int) -> None:
        """Fill it until so much is left."""
        left = kilobytes * 1024
        with self.filler.open("wb") as file:
            while True:
                status = os.statvfs(self.folder)
                more = status.f_bavail * status.f_frsize - left
                if more <= 0:
                    return
                file.write(bytes(min(more, 2**20)))
                file.flush()

    def free(self) -> None:
        """Free what was filled."""
        self.filler.unlink()


@contextmanager
def small_disk(folder: Path, megabytes: int = 64) -> Iterator[SmallDisk]:
    """Mount a tmpfs on a folder; skips the test where that is not permitted."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True, timeout=DEADLINE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=DEADLINE)
