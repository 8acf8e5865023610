"""What a prediction says of how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common.data.splits.regions import Region
from common.data.volumes.records import PredictionRecord
from common.files import key_of
from common.infer.networks.network import Network
from common.infer.predicting.box_plans import plans_of_passes
from common.infer.predicting.output import Output
from common.infer.predicting.plan import BlockPlan


def describe(network: Network, region: Region, plan: BlockPlan, output: Output) -> PredictionRecord:
    """Return the record of a prediction of a box, with its key.

    It lacks the sample of raw, see `with_raw_sample`.
    """
    plans = plans_of_passes(network, region, plan)
    record = replace(
        network.record,
        content=output.content,
        dtype=output.dtype,
        orientations=output.orientations,
        planes=3 if any(member.planes for member in network.members_or_self) else None,
        raw=str(plan.raw.level.path),
        raw_range=list(plan.raw.raw_range),
        raw_sections=plan.raw.sections or None,
        raw_scaling=_scaling_record(plans),
        input_channels=_channel_record(plans),
        voxel_size=plan.grid.scale.tolist(),
        translation=plan.grid.origin.tolist(),
        shape=list(plan.grid.shape),
    )
    return record.with_key()


def with_raw_sample(record: PredictionRecord, plan: BlockPlan) -> PredictionRecord:
    """Return the record with a hash of a few voxels of raw, and of the network's other inputs.

    By it raw that was replaced since is noticed.
    """
    box = plan.grid.box()
    volumes = [plan.raw, *(channel.raw for channel in plan.channels)]
    samples = [raw.sample_key(*box) for raw in volumes]
    return replace(record, raw_sample=key_of(samples))


def was_trained_on(network: Network, region: Region) -> bool | None:
    """Return whether one of the networks was trained on a box; None where that is unknown."""
    is_unknown = False
    for member in network.members_or_self:
        if member.trained_on is None:
            is_unknown = True
        elif str(region) in member.trained_on:
            return True
    return None if is_unknown else False


def _scaling_record(plans: Sequence[BlockPlan]) -> dict[str, Any] | None:
    """Return how raw is normalised for each pass; None where it is for none."""
    records = [plan.scaling.record() if plan.scaling else None for plan in plans]
    if not any(records):
        return None
    return records[0] if len(records) == 1 else {"members": records}


def _channel_record(plans: Sequence[BlockPlan]) -> dict[str, Any] | None:
    """Return what each pass gets beside raw; None where none gets anything."""
    records = []
    for plan in plans:
        records.append({channel.name: channel.record() for channel in plan.channels})
    if not any(records):
        return None
    return records[0] if len(records) == 1 else {"members": records}
