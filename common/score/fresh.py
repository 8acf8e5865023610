"""Check before packing that test crops are processed as `process` would process them now."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from common.config.settings import TrainConfig
from common.data.splits.manifest import Entry
from common.data.volumes import records
from common.data.volumes.records import PredictionRecord
from common.infer.processing.recipe import Recipe, load_recipe
from common.infer.processing.record import check_processed
from common.score.publish import note_networks


@dataclass
class Fresh:
    """Checks the processed test crops of an experiment, and collects how they were predicted."""

    config: TrainConfig
    predictions: list[tuple[str, str, PredictionRecord]] = field(default_factory=list)
    """(crop, class, record of the prediction) of each volume that was checked."""

    @cached_property
    def recipe(self) -> Recipe:
        """The experiment's process_config.py; read when the first volume of ours is checked."""
        return load_recipe(self.config)

    def path_of(self, entry: Entry, setting: str = "processed_path") -> Path:
        """Return the multiscale group of an entry in the folder that a setting names."""
        return self.config.path(setting) / f"{entry.dataset}.zarr" / entry.path

    def refuse(self, entry: Entry) -> None:
        """Raise UserError for a volume that `process` would make otherwise now.

        Volumes that another program wrote have no record and pass.
        """
        processed = self.path_of(entry)
        if records.read_processed(processed) is None:
            return
        predicted = self.path_of(entry, "predictions_path")
        _, record = check_processed(self.recipe, entry.name, processed, predicted)
        assert record is not None
        self.predictions.append((entry.crop, entry.name, record.prediction))

    def note(self) -> None:
        """Note classes of which not all crops were predicted by the same checkpoint."""
        note_networks(self.predictions)
