"""Whether what is on disk is what would be made now.

A volume whose record has the key that is wanted is left as it is or gone on with; one with another
key is another volume (see `common.data.volumes.records`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.volumes.ngff import holds_nothing
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
from common.infer.journal import Journal
from common.provenance import PACKAGES
from common.talk import note, some


@dataclass(frozen=True)
class Unfinished:
    """The classes of a box that are still to be predicted."""

    classes: list[str]
    largest_block: int | None
    """Edge of the blocks that one of the classes was begun with; None if none was begun."""


def unfinished(
    folder: Path, classes: Sequence[str], wanted: PredictionRecord, overwrite: bool
) -> Unfinished:
    """Return the classes of a box that are not on disk, whole and as `wanted`.

    Raise UserError where a class is in the way that may not be replaced.

    Args:
        folder: of the box.
        classes: those that are asked for.
        wanted: what a prediction would say of itself now.
        overwrite: predict whole classes again, too: what they were made of may have changed in ways
            that no record tells, as where one chunk of raw was missing. A class that was begun as
            `wanted` is gone on with.
    """
    unfinished = []
    largest_block = None
    for name in classes:
        stored = _replaceable(folder / name, wanted, overwrite)
        begun = stored is not None and stored.is_like(wanted)
        whole = begun and is_finished(folder / name) and not lost_chunks(folder / name)
        if whole and not overwrite:
            continue
        unfinished.append(name)
        if stored and begun and not whole and largest_block is None:
            largest_block = stored.largest_block
            _note_other_program(folder / name, stored, wanted)
    return Unfinished(unfinished, largest_block)


def _replaceable(group: Path, wanted: PredictionRecord, overwrite: bool) -> PredictionRecord | None:
    """Return the record of a prediction that may be replaced; None where there is nothing.

    Raise UserError where `group` may not be replaced.
    """
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
        if group.is_dir() and not holds_nothing(group):
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
    """Note where a prediction is gone on with by another version than it was begun with."""
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
    """Return whether `predict` wrote a class whose .zattrs is damaged, or it has no voxels."""
    if Journal(group).exists() or not (group / "s0").exists():
        return True
    return b'"prediction"' in (group / ".zattrs").read_bytes()


OF_THE_BOX = ("raw", "raw_sections", "translation", "voxel_size", "shape")
"""Fields of a prediction by which its sample of raw is chosen."""


def differences(stored: PredictionRecord, wanted: PredictionRecord) -> str:
    """Return in words how two predictions differ."""
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
    # samples of two boxes differ anyway
    is_same_box = all(getattr(stored, name) == getattr(wanted, name) for name in OF_THE_BOX)
    if is_same_box and stored.has_other_raw(wanted):
        beside = f" or of {some(list(wanted.input_channels))}" if wanted.input_channels else ""
        texts.append(
            f"the voxels of {wanted.raw}{beside} are others now: replaced, or fetched since"
        )
    return "; ".join(texts)


def is_processed(group: Path, wanted: ProcessedRecord, predictions: Path) -> bool:
    """Return whether a processed class is on disk, whole and as `wanted`. Note a damaged one.

    Args:
        group: where it is.
        wanted: what it would say of itself now.
        predictions: folder of the predictions of its box.
    """
    if is_damaged(group):
        note(f"{group}: its .zattrs cannot be read; processed again")
        return False
    stored = read_processed(group)
    if stored is None or _staleness(stored, wanted, wanted.prediction, predictions):
        return False
    return is_finished(group) and not lost_chunks(group)


def _changed_channels(stored: ProcessedRecord, predictions: Path) -> list[str]:
    """Return the other channels that a processed class was made of and that changed since.

    A channel that was removed does not count: predictions are large, and may be removed.

    predictions: folder of the predictions of its box.
    """
    changed = []
    for name, was in (stored.channels or {}).items():
        now = read_prediction(predictions / name)
        if now is not None and was != state_of(now):
            changed.append(name)
    return changed


def state_of(prediction: PredictionRecord) -> dict[str, Any]:
    """Return what tells a prediction from others, and from a later one by `--overwrite`."""
    return {"key": prediction.key, "made": prediction.made}


def refuse_stale(
    group: Path,
    stored: ProcessedRecord,
    wanted: ProcessedRecord,
    prediction: PredictionRecord | None,
    *,
    predictions: Path,
) -> None:
    """Raise UserError for a processed class that would be made otherwise now.

    Args:
        group: where it is.
        stored: what it says of itself.
        wanted: what it would say now, made of the same prediction.
        prediction: that is on disk now; None where it was removed, as large ones are when they are
            processed.
        predictions: folder of the predictions of its box.
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
    """Return why a processed class would be made otherwise now; "" if it would not.

    The arguments are those of `refuse_stale`.
    """
    if stored.key != wanted.key:
        return "made with another threshold or process_config.py than there is now"
    if prediction is not None and not prediction.is_same(stored.prediction):
        return "made of another prediction than there is now"
    changed = _changed_channels(stored, predictions)
    return f"made of other predictions of {some(changed)} than there are now" if changed else ""
