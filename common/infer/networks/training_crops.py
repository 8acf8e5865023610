"""Which crops a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.settings import TrainConfig
from common.data.samples.rows import that_count
from common.data.splits import split
from common.data.splits.regions import Region
from common.errors import UserError
from common.infer.networks.from_checkpoint import as_trained
from common.infer.networks.network import Network
from common.talk import note, some
from common.train.checkpointing import checkpoint, weights_file

OF_RUN = (
    "model_name",
    "run_name",
    "random_seed",
    "model_save_path",
    "datasplit_path",
    "counter_classes",
)
"""Settings that say which run a checkpoint is of, and by which crops it was trained."""


def trained_on(config: TrainConfig, path: Path) -> frozenset[str] | None:
    """Return the crops, dataset/crop, that a checkpoint of an experiment was trained on.

    It is None where that is unknown.
    """
    saved = weights_file.read_without_tensors(path)
    if not checkpoint.is_whole(saved):
        return None
    run_config = as_trained(config, saved["settings"], OF_RUN)
    return crops_of(run_config, config.path("data_path"), saved)


def crops_of(config: TrainConfig, data_root: Path, saved: Any) -> frozenset[str] | None:
    """Return the crops, dataset/crop, that a checkpoint was trained on; None where unknown.

    Args:
        config: settings of the checkpoint's run.
        data_root: folder of the data.
        saved: content of the checkpoint, a whole one.
    """
    try:
        rows = split.read_datasplit(config.path("datasplit_path"), data_root)
    except (UserError, FileNotFoundError):
        return None
    # the file may have been written anew since
    rows = that_count(rows, config, lambda: saved["split_hash"])
    if split.split_hash(rows) != saved["split_hash"]:
        return None
    return frozenset(row.name for row in rows if row.usage == "train")


def note_training_crops(network: Network, regions: Sequence[Region]) -> None:
    """Note which of the boxes a network was trained on: scores there are too good."""
    annotated = [str(region) for region in regions if region.truth is not None]
    for member in network.members_or_self:
        path = member.record.checkpoint
        if member.trained_on is None:
            if annotated and network.members:
                note(
                    f"{path}: its datasplit is not there any more as it was, so nothing tells "
                    "whether it was trained on crops that are predicted here"
                )
            continue
        shared = [name for name in annotated if name in member.trained_on]
        if shared:
            note(f"{path} was trained on {some(shared)}: a score there says nothing of other data")
