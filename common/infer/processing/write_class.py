"""One class that is processed, written whole or marked as unfinished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr

from common.data.volumes import ngff, records
from common.data.volumes.records import ProcessedRecord
from common.infer import instances, ledger
from common.infer.processing import one_class
from common.infer.processing.masks import whole_chunks
from common.infer.processing.one_class import Making
from common.infer.processing.prediction import Prediction
from common.infer.processing.stages import Stages
from common.provenance import now


def process_class(making: Making, *, folder: Path, record: ProcessedRecord) -> None:
    """Write the mask or the objects of a class, whole or marked as unfinished.

    A volume too large to be made again in seconds goes on where an earlier call was killed.

    Args:
        making: the class.
        folder: of the box; the class is written into a group of its name in it.
        record: what the class will say of how it was made.
    """
    prediction = making.prediction
    path = folder / making.name
    stages = one_class.stages_of(making, folder, record)
    making = replace(making, scratch=folder, stages=stages)
    dtype: np.dtype | type = np.uint8
    array = None
    if making.recipe.makes_objects(making.name):
        volume = one_class.objects(making)
        states = {name: ledger.state_of(channel) for name, channel in making.read.items()}
        record = replace(record, channels=dict(sorted(states.items())) or None)
        # only now: how many objects there are says how many bytes an id takes
        dtype = instances.smallest_dtype(instances.largest(volume))
    else:
        if stages is None:
            # begun first, so that what is interrupted is not taken for whole
            array = _opened(path, prediction, dtype, record, stages=None)
        volume = one_class.mask(making)
    # in whole chunks: no two workers share one
    volume = replace(volume, block=tuple(whole_chunks(prediction).tolist()))
    if array is None:
        array = _opened(path, prediction, dtype, record, stages=stages)
    instances.copy(volume, array)
    ngff.finish_multiscale(path, prediction.grid, ngff.pyramid(prediction.grid), ngff.pick)
    if stages is not None:
        stages.place.clear()


def _opened(
    path: Path,
    prediction: Prediction,
    dtype: np.dtype | type,
    record: ProcessedRecord,
    *,
    stages: Stages | None,
) -> zarr.Array:
    """Open the array of a class for writing, as an earlier call left it if that came so far.

    Args:
        path: multiscale group of the class.
        prediction: whose grid and chunks the class has.
        dtype: of a mask or of ids.
        record: what the class will say of how it was made.
        stages: of the class, whose next one is the writing; None begins the array anew.
    """
    if stages is not None:
        is_begun = not records.is_damaged(path) and not records.is_finished(path)
        stored = records.read_processed(path) if is_begun else None
        is_same = stored is not None and (
            stored.key == record.key and stored.prediction.is_same(record.prediction)
        )
        if is_same and not stages.begins():
            return zarr.open_array(str(path / "s0"), mode="r+", write_empty_chunks=False)
        stages.drop_next()
    record = replace(record, made=now())
    return ngff.start_multiscale(
        path,
        prediction.grid,
        dtype,
        prediction.chunks,
        attributes=records.group_attributes(path.name, record),
    )
