"""Checksums of the records of a run, by which one that is no longer as it was written is told.

run.json and history.csv are there to be opened, and stay plain: their checksums are in a file
beside them. Whoever edited one may have meant it, so it is read nevertheless.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from common.files import write_json
from common.talk import note_once

CHECKSUMS = "checksums.json"
"""In the folder of the logs: by the name of a file the CRC-32 that it has, or is about to have."""


def expect(path: Path, new: Path) -> None:
    """Write down the checksum of a file that is about to take the place of `path`.

    Until it does, and if that never happens, the one of the file before it counts, too. Raises
    FileError if it cannot be written.
    """
    sums = _read(path.parent)
    before = [_checksum_of(path)] if path.is_file() else []
    kept = [checksum for checksum in before if checksum in sums.get(path.name, ())]
    write_json(path.with_name(CHECKSUMS), sums | {path.name: [_checksum_of(new), *kept]})


def check(path: Path) -> None:
    """Note a file that is another than was written; nothing is known of those of older versions."""
    for _ in range(3):  # a process that trains may be writing both
        own = _checksum_of(path)
        known = _read(path.parent).get(path.name)
        if known is None or own in known:
            return
    note_once(
        f"{path}: no longer as training wrote it (checksum in {CHECKSUMS}): edited, or damaged on "
        "the disk. It is read as it is; TensorBoard's events beside it have the same figures"
    )


def _checksum_of(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


def _read(folder: Path) -> dict[str, list[int]]:
    """Return the checksums by file; {} without any, or where they are damaged."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(sums, dict):
        return {}
    return {name: known for name, known in sums.items() if isinstance(known, list)}
