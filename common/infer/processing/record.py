"""What a processed class says of how it was made, and whether it would be made so now."""

from __future__ import annotations

from pathlib import Path

from common.data.volumes import ngff, records
from common.data.volumes.level import Level
from common.data.volumes.records import PredictionRecord, ProcessedRecord
from common.errors import UserError
from common.files import REPOSITORY
from common.infer import ledger
from common.infer.made_by import engine_hash
from common.infer.processing.prediction import open_prediction
from common.infer.processing.recipe import Recipe
from common.provenance import provenance
from common.talk import note_once


def describe(recipe: Recipe, name: str, prediction: PredictionRecord) -> ProcessedRecord:
    """Return the record of a class that is processed now, with its key."""
    record = ProcessedRecord(
        threshold=recipe.threshold(name),
        process_config=recipe.code,
        instances=recipe.makes_objects(name),
        options=recipe.options.get(name),
        prediction=prediction,
        engine=engine_hash(),
        commit=provenance(REPOSITORY)["commit"],
    )
    return record.with_key(name)


def check_processed(
    recipe: Recipe, name: str, processed: Path, predicted: Path
) -> tuple[Level, ProcessedRecord | None]:
    """Return a processed class, and its record; None if another program wrote it.

    Raise FileNotFoundError without one, UserError if it is half-written, or not what `process`
    would make now.

    Args:
        recipe: of now.
        name: of the class.
        processed: multiscale group of the class.
        predicted: multiscale group of its prediction, which may have been removed.
    """
    if not (processed / ".zattrs").is_file():
        raise FileNotFoundError(f"{processed}: no processed volume; run predict, then process")
    records.refuse_unreadable(processed, "process")
    level = ngff.open_levels(processed)[0]  # which refuses a half-written one
    stored = records.read_processed(processed)
    if stored is None:
        records.refuse_predicted(processed)
        return level, None
    records.refuse_lost_chunks(processed, "process")
    wanted = describe(recipe, name, stored.prediction)
    prediction = open_prediction(predicted).record if predicted.is_dir() else None
    ledger.refuse_stale(processed, stored, wanted, prediction, predictions=predicted.parent)
    return level, stored


def refuse_foreign(group: Path) -> None:
    """Raise UserError for what process did not write, whatever overwrite says.

    It may be a prediction, where both have one folder, or a user's own work.
    """
    if records.is_damaged(group) or records.read_processed(group) is not None:
        return
    if group.is_dir() and not ngff.holds_nothing(group):
        raise UserError(
            f"{group}: not written by process; set another processed_path, or remove it"
        )


def note_other_engine(group: Path, wanted: ProcessedRecord) -> None:
    """Note that a class which stays was made by another version of this program, if it was."""
    stored = records.read_processed(group)
    if stored is None or stored.engine is None or stored.engine == wanted.engine:
        return
    was = str(stored.commit)[:12]
    now = str(wanted.commit)[:12]
    commits = f"commit {was}, now {now}"
    if was == now:
        commits = f"commit {now} with other changes, or other libraries"
    # without the name of the box, so that it is said once for all
    note_once(
        f"volumes that were made by another version of this program ({commits}) stay as they are; "
        "write --overwrite to make them by this one"
    )
