"""Whether processed test crops are what `process` would make now, before they are packed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from common.config.settings import TrainConfig
from common.data.splits.manifest import Entry
from common.data.volumes import records
from common.data.volumes.records import PredictionRecord
from common.infer import process
from common.infer.processing.recipe import Recipe, load_recipe
from common.score.publish import note_networks


@dataclass
class Fresh:
    """The processed test crops of an experiment, as far as they were looked at."""

    config: TrainConfig
    predictions: list[tuple[str, str, PredictionRecord]] = field(default_factory=list)
    """Crop, class, and how it was predicted."""

    @cached_property
    def recipe(self) -> Recipe:
        """Its process_config.py, read where a volume says that it was made by one."""
        return load_recipe(self.config)

    def path_of(self, entry: Entry, setting: str = "processed_path") -> Path:
        """Multiscale group of an entry, in a folder of the settings."""
        return self.config.path(setting) / f"{entry.dataset}.zarr" / entry.path

    def refuse(self, entry: Entry) -> None:
        """Raise UserError for a volume that `process` would make otherwise now.

        Of those of other programs nothing is known.
        """
        processed = self.path_of(entry)
        if records.read_processed(processed) is None:
            return
        predicted = self.path_of(entry, "predictions_path")
        record = process.check_processed(self.recipe, entry.name, processed, predicted)
        assert record is not None
        self.predictions.append((entry.crop, entry.name, record.prediction))

    def note(self) -> None:
        """Note classes of which not all crops were predicted by the same checkpoint."""
        note_networks(self.predictions)
