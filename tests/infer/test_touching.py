"""Functions for objects that touch, on workers: what is sent there, and what is kept on disk."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zarr

from common.data.volumes.ngff import Grid
from common.infer.instances import (
    fill_holes,
    mutex_watershed,
    watershed,
    watershed_of_boundary,
    watershed_of_distance,
)
from common.infer.machines import sharing
from common.infer.objects.volume import Volume
from common.infer.processing.stages import Stages, StagesPlace
from tests.infer.test_flooding import boundary_of, cells
from tests.infer.test_mutex import OFFSETS, affinities_of

BLOCK = (13, 16, 17)


@dataclass
class Here:
    """A crew that does in this process what workers would be sent, each batch pickled."""

    batches: int = 0

    def run(self, task: Any, numbers: Any, *, payload: Any, done: Any, **_: Any) -> list:
        for number in list(numbers):
            self.batches += 1
            sent = pickle.loads(pickle.dumps((task, payload([number]))))
            for finished, result in sent[0](sent[1]):
                done(finished, result)
        return []


def on_disk(folder, array: np.ndarray, stages: Stages) -> Volume:
    stored = zarr.open_array(
        str(folder), mode="w", shape=array.shape, chunks=BLOCK, dtype=array.dtype
    )
    stored[...] = array
    return Volume(stored, (8, 8, 8), BLOCK, stages=stages)


def by_boundary(mask: Volume, channels: dict[str, Volume]) -> Volume:
    return watershed_of_boundary(mask, channels["edge"], depth_nm=40)


def by_distance(mask: Volume, channels: dict[str, Volume]) -> Volume:
    return watershed_of_distance(mask, channels["aff_0"])


def by_affinities(mask: Volume, channels: dict[str, Volume]) -> Volume:
    return mutex_watershed(mask, channels, "aff", OFFSETS)


@pytest.mark.parametrize("function", [by_boundary, by_distance, by_affinities])
def test_workers_give_what_this_process_gives_and_a_second_call_does_nothing(tmp_path, function):
    ids = cells()
    arrays = affinities_of(ids, 0.2) | {"edge": boundary_of(ids, 0.2)}
    given = {name: Volume(array, (8, 8, 8), BLOCK) for name, array in arrays.items()}
    wanted = function(Volume(ids > 0, (8, 8, 8), BLOCK), given).array

    grid = Grid(np.zeros(3), np.full(3, 8.0), ids.shape)
    done = []
    with sharing.sole_worker(tmp_path, "processing"):
        for _ in range(2):
            crew = Here()
            stages = Stages(StagesPlace(tmp_path, "cell", grid, "key"), crew)
            mask = on_disk(tmp_path / "mask", ids > 0, stages)
            channels = {name: on_disk(tmp_path / name, a, stages) for name, a in arrays.items()}
            np.testing.assert_array_equal(function(mask, channels).array[...], wanted)
            done.append(crew.batches)
    assert done[0] > 8 and done[1] == 0


@dataclass
class Weighed(Here):
    """A crew that notes how many bytes the most loaded of its tasks has."""

    most: int = 0

    def run(self, task: Any, numbers: Any, **options: Any) -> list:
        self.most = max(self.most, len(pickle.dumps(task)))
        return super().run(task, numbers, **options)


def test_what_workers_are_sent_does_not_grow_with_the_number_of_objects(tmp_path):
    dots = np.zeros((26, 16, 17), bool)
    dots[::4, ::4, ::4] = True
    most = []
    for name, mask in (("few", np.zeros_like(dots)), ("many", dots)):
        mask[5, 5, 5] = True
        folder = tmp_path / name
        folder.mkdir()
        with sharing.sole_worker(folder, "processing"):
            crew = Weighed()
            place = StagesPlace(
                folder, "cell", Grid(np.zeros(3), np.full(3, 8.0), mask.shape), "key"
            )
            volume = on_disk(folder / "mask", mask, Stages(place, crew))
            watershed(fill_holes(volume))
        most.append(crew.most)
    assert most[1] < most[0] + 100
