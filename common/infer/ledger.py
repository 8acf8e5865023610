"""Whether what is on disk is what would be made, and which of its blocks are there.

A volume with the key that is wanted is left as it is or gone on with; one with another key is not
the same (see common.data.volumes.records). While a class is predicted, a journal beside it names
the blocks that are on disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.volumes.records import (
    DETERMINING,
    DETERMINING_IF_KNOWN,
    PredictionRecord,
    ProcessedRecord,
    is_damaged,
    is_finished,
    lost_chunks,
    read_prediction,
    read_processed,
)
from common.errors import UserError
from common.provenance import PACKAGES
from common.talk import note, some


@dataclass(frozen=True)
class Unfinished:
    """What is left to predict of a box."""

    classes: list[str]
    largest_block: int | None
    """Edge of blocks that one of them was begun with, None if none was."""


def unfinished(
    folder: Path, classes: Sequence[str], wanted: PredictionRecord, overwrite: bool
) -> Unfinished:
    """The classes under `folder` that are not there as `wanted`, and whole.

    With `overwrite` those that are whole too: what they were made of may have changed in ways that
    no record tells, as where one chunk of raw was missing. What was begun alike is gone on with.
    Raises UserError where something stands in the place of one that may not be replaced.
    """
    left = []
    largest_block = None
    for name in classes:
        stored = _replaceable(folder / name, wanted, overwrite)
        begun = stored is not None and stored.is_like(wanted)
        whole = begun and is_finished(folder / name) and not lost_chunks(folder / name)
        if whole and not overwrite:
            continue
        left.append(name)
        if stored and begun and not whole and largest_block is None:
            largest_block = stored.largest_block
            _note_other_program(folder / name, stored, wanted)
    return Unfinished(left, largest_block)


def _replaceable(group: Path, wanted: PredictionRecord, overwrite: bool) -> PredictionRecord | None:
    """The prediction at `group`, None where nothing is. UserError if it may not be replaced."""
    if is_damaged(group):
        if not overwrite and not _is_of_predict(group):
            raise UserError(
                f"{group}: its .zattrs cannot be read, and nothing says that predict wrote it; "
                "write --overwrite to predict it again, or remove it"
            )
        note(f"{group}: its .zattrs cannot be read; predicted again")
        return None
    stored = read_prediction(group)
    if stored is None:
        # never removed, whatever overwrite says: it may be a user's own work
        if group.is_dir() and any(path.name != ".zgroup" for path in group.iterdir()):
            raise UserError(
                f"{group}: not written by predict; set another predictions_path, or remove it"
            )
        return None
    if not stored.is_like(wanted) and not overwrite:
        origin = "a checkpoint that its record does not name"
        if stored.checkpoint:
            origin = f"{stored.checkpoint} ({stored.at})"
        raise UserError(
            f"{group}: holds the prediction of {origin}, made otherwise "
            f"({differences(stored, wanted)}); write --overwrite, or set another predictions_path"
        )
    return stored


def _note_other_program(group: Path, stored: PredictionRecord, wanted: PredictionRecord) -> None:
    """Say where a prediction is gone on with by another version than it was begun with."""
    changed = []
    for name in ("commit", *PACKAGES):
        was = stored.environment.get(name)
        now = wanted.environment.get(name)
        if was and now and was != now:
            changed.append(f"{name} {was[:12]}, now {now[:12]}")
    if changed:
        note(
            f"{group}: was begun with {'; '.join(changed)}; the blocks that are there stay: remove "
            f"{group.parent} first, if all are to be of one version"
        )


def _is_of_predict(group: Path) -> bool:
    """Whether a class with a damaged .zattrs is of predict, or without voxels to lose."""
    if Journal(group).exists() or not (group / "s0").exists():
        return True
    return b'"prediction"' in (group / ".zattrs").read_bytes()


def differences(stored: PredictionRecord, wanted: PredictionRecord) -> str:
    """In what two predictions differ, in words."""
    texts = []
    for name in (*DETERMINING, *DETERMINING_IF_KNOWN):
        was = getattr(stored, name)
        now = getattr(wanted, name)
        if was == now or (name == "assumed" and was is None):
            continue
        if name == "assumed" and now:
            for setting, value in now.items():
                if was.get(setting) != value:
                    texts.append(f"{setting} was {str(was.get(setting))[:80]} and is {value[:80]}")
        else:
            texts.append(f"{name} was {str(was)[:80]} and is {str(now)[:80]}")
    if stored.has_other_raw(wanted):
        beside = f" or of {some(list(wanted.input_channels))}" if wanted.input_channels else ""
        texts.append(
            f"the voxels of {wanted.raw}{beside} are others now: replaced, or fetched since"
        )
    return "; ".join(texts)


def is_processed(group: Path, wanted: ProcessedRecord, predictions: Path) -> bool:
    """Whether a processed class is there as `wanted`, and whole. One that is damaged is noted.

    predictions: folder of those of its box.
    """
    if is_damaged(group):
        note(f"{group}: its .zattrs cannot be read; processed again")
        return False
    stored = read_processed(group)
    if stored is None or _staleness(stored, wanted, wanted.prediction, predictions):
        return False
    return is_finished(group) and not lost_chunks(group)


def _changed_channels(stored: ProcessedRecord, predictions: Path) -> list[str]:
    """The other channels that a processed class was made of and that were predicted anew since.

    One that is not there any more is none: predictions are large, and may be removed.

    predictions: folder of those of its box.
    """
    changed = []
    for name, was in (stored.channels or {}).items():
        now = read_prediction(predictions / name)
        if now is not None and was != state_of(now):
            changed.append(name)
    return changed


def state_of(prediction: PredictionRecord) -> dict[str, Any]:
    """What tells a prediction from others, and from a later one by `--overwrite`."""
    return {"key": prediction.key, "made": prediction.made}


def refuse_stale(
    group: Path,
    stored: ProcessedRecord,
    wanted: ProcessedRecord,
    prediction: PredictionRecord | None,
    *,
    predictions: Path,
) -> None:
    """Raises UserError for a processed class that would now be made otherwise.

    Args:
        group: where it is.
        stored: what it says.
        wanted: what it would say now, made of the same prediction.
        prediction: the one that is there now. None where there is none: predictions are large, and
            may be removed when they are processed.
        predictions: folder of those of its box.
    """
    reason = _staleness(stored, wanted, prediction, predictions)
    if reason:
        raise UserError(f"{group}: {reason}; run process again")


def _staleness(
    stored: ProcessedRecord,
    wanted: ProcessedRecord,
    prediction: PredictionRecord | None,
    predictions: Path,
) -> str:
    """Why a processed class would now be made otherwise; "" if it would not. See `refuse_stale`."""
    if stored.key != wanted.key:
        return "made with another threshold or process_config.py than there is now"
    if prediction is not None and not prediction.is_same(stored.prediction):
        return "made of another prediction than there is now"
    changed = _changed_channels(stored, predictions)
    return f"made of other predictions of {some(changed)} than there are now" if changed else ""


class Journal:
    """Numbers of the blocks of a class that are on disk, a line each, in a file beside it.

    A number is added when its block is written, so that a call that ends anywhere can be gone on
    with.
    """

    def __init__(self, group: Path):
        self.path = group / ".blocks"

    def exists(self) -> bool:
        """Whether the class was begun and is not finished."""
        return self.path.is_file()

    def begin(self) -> None:
        """An empty journal."""
        self.path.touch()

    def read(self) -> set[int]:
        """The numbers in it. A line that was cut off is taken away: the next goes behind it.

        Of a damaged one, the blocks that it no longer names are computed again.
        """
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        return self.look()

    def look(self) -> set[int]:
        """The numbers in it, by a process that must not write: another one may be adding."""
        content = self.path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].split()
        return {int(line) for line in lines if line.isdigit()}

    def add(self, number: int) -> None:
        """Note a block as written. Several threads may, each writes one line at once."""
        with self.path.open("ab", buffering=0) as file:
            file.write(b"%d\n" % number)

    def remove(self) -> None:
        """When all blocks are written."""
        self.path.unlink()
