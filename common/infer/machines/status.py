"""How far a box is: written beside its classes while it is worked on, and read by anyone."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import records
from common.data.volumes.level import Grid
from common.errors import UserError, left_out
from common.files import holder_of, write_json
from common.infer.journal import Journal
from common.infer.machines.crew import ATTEMPTS, Failure, Tally
from common.infer.machines.sharing import LOCK
from common.talk import count, duration, say, some

FILE = ".status.json"
"""File in the folder of a box from its first block on, until all of its blocks are done."""

WRITE_EVERY_S = 5.0
"""Seconds between two states on disk."""

SAY_EVERY_S = 60.0
"""Seconds between two lines where no progress bar is shown."""

DEEPEST = 6
"""Folders from an experiment to a class: predictions/{model}/{run}/{dataset}/{box}/{class}."""

MOST_TOLD = 10
"""Blocks that failed which the command line names at most."""


@dataclass
class Progress:
    """Tells how far a box is: a file for `status`, and a line now and then."""

    folder: Path
    """Of the box."""
    doing: str
    """Such as "predicting"."""
    bar: Any = None
    """Progress bar that is shown instead of lines, unless it is disabled."""
    written: float = 0.0
    """Value of time.monotonic() when a state was written last."""
    said: float = field(default_factory=time.monotonic)
    """Value of time.monotonic() when a line was said last."""

    def tell(self, tally: Tally) -> None:
        """Tell how far the box is; may be called many times a second."""
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(tally.done - self.bar.n)
            self.bar.set_postfix_str(count(tally.workers, "worker"), refresh=False)
        if now - self.written >= WRITE_EVERY_S:
            self.written = now
            self.write(tally)
        if (self.bar is None or self.bar.disable) and now - self.said >= SAY_EVERY_S:
            self.said = now
            say(f"{self.folder}: {text(tally)}")

    def write(self, tally: Tally, failures: Sequence[dict[str, Any]] = ()) -> None:
        """Write how far the box is. failures: as of `describe`."""
        content = {"doing": self.doing, "total": tally.total, "done": tally.done}
        content |= {"workers": tally.workers, "blocks_per_s": round(tally.rate, 3)}
        content |= {"failed": list(failures), "seconds_since_1970": round(time.time())}
        write_json(self.folder / FILE, content)

    def close(self, tally: Tally, failures: Sequence[dict[str, Any]] = ()) -> None:
        """Write the last state, or remove the file where all blocks are done.

        failures: as of `describe`.
        """
        if tally.done < tally.total:
            self.write(tally, failures)
        else:
            clear(self.folder)


def clear(folder: Path) -> None:
    """Remove the state of a box that is whole, as a call that was killed leaves it."""
    (folder / FILE).unlink(missing_ok=True)


def text(tally: Tally) -> str:
    """Return a tally in words: '40 of 120 blocks, 3.1 blocks/s, 26 s left, 2 workers'."""
    parts = [f"{tally.done} of {count(tally.total, 'block')}", f"{tally.rate:.3g} blocks/s"]
    if tally.seconds_left is not None:
        parts.append(f"{duration(tally.seconds_left)} left")
    parts.append(count(tally.workers, "worker"))
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    return ", ".join(parts)


def describe(failure: Failure, grid: Grid, start: np.ndarray, stop: np.ndarray) -> dict[str, Any]:
    """Return a block that was given up, with its box in voxels of the output and in nm.

    Args:
        failure: of the block.
        grid: of the output.
        start: (3,) first voxel of the block.
        stop: (3,) last voxel + 1.
    """
    corner = grid.box()[0]
    low = (corner + start * grid.scale).round(3).tolist()
    high = (corner + stop * grid.scale).round(3).tolist()
    return {
        "block": failure.number,
        "voxels": _box(start.tolist(), stop.tolist()),
        "nm": _box(low, high),
        "error": failure.error,
        "where": failure.where,
    }


def _box(low: Sequence[float], high: Sequence[float]) -> str:
    """Return a box as '0:64,0:64,64:128'."""
    return ",".join(f"{a:g}:{b:g}" for a, b in zip(low, high, strict=True))


def sentence(failure: dict[str, Any]) -> str:
    """Return a block that was given up in words. failure: as of `describe`."""
    return (
        f"block {failure['block']}, voxels {failure['voxels']}, {failure['nm']} nm: "
        f"{failure['error']} (on {failure['where']})"
    )


def failed(folder: Path, failures: Sequence[dict[str, Any]], total: int) -> str:
    """Return what is said at the end of a box of which blocks were given up.

    failures: as of `describe`. total: blocks of the box.
    """
    lines = [sentence(failure) for failure in failures[:MOST_TOLD]]
    if len(failures) > MOST_TOLD:
        lines.append(f"... and {len(failures) - MOST_TOLD} more, see {folder / FILE}")
    head = (
        f"{folder}: {count(len(failures), 'block')} of {total} failed, each {ATTEMPTS} times; the "
        "others are done, and the same command tries these again"
    )
    return "\n".join([head, *lines])


def status(out: str | Path) -> list[str]:
    """Return lines about every box under a folder: done, running or interrupted, and failed blocks.

    It writes nothing, and may be called while others write. Raise FileNotFoundError without the
    folder, UserError where it has no class that predict or process wrote.
    """
    root = Path(out)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; write one that predict or process wrote")
    lines = []
    boxes, unreadable = _boxes(root)
    for folder in sorted(boxes):
        try:
            lines += _lines_of_box(folder)
        except OSError as error:
            unreadable.append(left_out(folder, error))
    if not lines and not unreadable:
        raise UserError(f"{root}: nothing here that predict or process wrote")
    return lines + unreadable


def _boxes(root: Path) -> tuple[set[Path], list[str]]:
    """Return the folders of boxes at or under a folder, as far down as an experiment has them.

    And a line for each folder that may not be read.
    """
    boxes = set()
    unreadable = []
    level = [root]
    for _ in range(DEEPEST + 1):
        below: list[Path] = []
        for folder in level:
            try:
                if (folder / LOCK).exists():
                    boxes.add(folder)
                if _record(folder) is not None:
                    boxes.add(folder.parent)
                # whose folders are chunks, millions of them
                elif not (folder / ".zarray").exists():
                    folders = [path for path in folder.iterdir() if path.is_dir()]
                    below += [path for path in folders if not path.name.startswith(".")]
            except OSError as error:
                unreadable.append(left_out(folder, error))
        level = below
    return boxes, unreadable


def _record(group: Path) -> Any:
    """Return the record of a predicted or processed class; None where there is none."""
    with contextlib.suppress(UserError, OSError):
        return records.read_prediction(group) or records.read_processed(group)
    return None


def _lines_of_box(folder: Path) -> list[str]:
    """Return the lines about one box."""
    whole: list[Path] = []
    begun: list[Path] = []
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        if _record(group) is None:
            continue
        (whole if records.is_finished(group) else begun).append(group)
    parts = [f"{count(len(whole), 'class', 'classes')} done"]
    if begun:
        names = some([group.name for group in begun])
        parts.append(f"{count(len(begun), 'class', 'classes')} begun ({names})")
    state = {}
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((folder / FILE).read_text())
    holder = holder_of(folder / LOCK)
    if holder:
        parts.append(f"{holder} is {state.get('doing', 'working')} on it")
    elif begun:
        parts.append("nobody works on it; the same command goes on")
    lines = [f"{folder}: {'; '.join(parts)}"]
    if state:
        lines.append(f"  {_so_far(state, is_running=bool(holder))}")
        lines += [f"  failed: {sentence(failure)}" for failure in state.get("failed", [])]
        return lines
    for group in begun:
        journal = Journal(group)
        if journal.exists():
            lines.append(f"  {group.name}: {count(len(journal.look()), 'block')} on disk")
    return lines


def _so_far(state: dict[str, Any], is_running: bool) -> str:
    """Return in words how far a box is. state: as `Progress` wrote it."""
    tally = Tally(state["total"], state["done"], failed=len(state.get("failed", [])))
    if not is_running:
        failed = f", {tally.failed} failed" if tally.failed else ""
        return f"{tally.done} of {count(tally.total, 'block')}{failed}"
    tally.workers = state["workers"]
    tally.rate = state["blocks_per_s"]
    ago = duration(max(0.0, time.time() - state["seconds_since_1970"]))
    return f"{text(tally)}, {ago} ago"
