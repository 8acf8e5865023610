"""Cells told apart by boundary and affinities together: what is counted, and where."""

from __future__ import annotations

from collections.abc import Iterator

import cc3d
import numpy as np
import pytest

from common.errors import UserError
from common.infer.instances import watershed_of_affinities
from common.infer.objects import graph
from common.infer.objects.graph import PARTS, Contacts, Graph
from tests.infer.test_flooding import boundary_of, cells
from tests.infer.test_instances import same_partition, volume
from tests.infer.test_mutex import affinities_of

OFFSETS = [(4 * 8, 0, 0), (0, 4 * 8, 0), (0, 0, -4 * 8)]
NEXT = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def divided(ids, channels, boundary, block=None, **settings) -> np.ndarray:
    """(z, y, x) ids. block: voxels, by default all at once."""
    block = block or ids.shape
    given = {name: volume(values, block) for name, values in channels.items()}
    mask = volume(ids > 0, block)
    edge = volume(boundary, block)
    found = watershed_of_affinities(mask, edge, given, "aff", OFFSETS, **settings)
    return found.array[...]


def pairs_at(labels: np.ndarray, offset) -> Iterator[tuple[tuple, tuple]]:
    """All pairs of voxels at an offset that have two labels."""
    for here in np.ndindex(labels.shape):
        there = tuple(np.add(here, offset).tolist())
        is_inside = min(there) >= 0 and (np.array(there) < labels.shape).all()
        if is_inside and labels[here] != labels[there] and labels[here] and labels[there]:
            yield here, there


def test_faces_and_pairs_at_offsets_are_counted_together():
    """A loop over all of them; a pair weighs half a face here."""
    ids = cells((12, 13, 14), 4)
    ids[5] = 0
    boundary = boundary_of(ids, 0.2)
    channels = affinities_of(ids, 0.2, OFFSETS)
    basins = divided(ids, channels, boundary, threshold=1e-9, neck=1.0)
    edge = boundary / 255
    said = []
    for step in NEXT:
        for here, there in pairs_at(basins, step):
            said += 2 * [(basins[here], basins[there], max(edge[here], edge[there]))]
    for affinity, offset in zip(channels.values(), OFFSETS, strict=True):
        for here, there in pairs_at(basins, np.array(offset) // 8):
            said.append((basins[here], basins[there], 1 - affinity[here]))
    a, b, evidence = map(np.array, zip(*said, strict=True))
    contacts = Contacts.of_faces(a - 1, b - 1, height=np.zeros(len(a)), evidence=evidence)
    n = int(basins.max())
    part = graph.over_means(Graph(n, graph.combined(contacts)), 0.6)
    wanted = np.where(basins > 0, part[basins.astype(int) - 1] + 1, 0)
    found = divided(ids, channels, boundary, threshold=0.6, neck=1.0, weights=(0.5, 0.5, 0.5))
    assert 1 < found.max() < n
    assert same_partition(found, cc3d.connected_components(wanted.astype(np.uint32)))


@pytest.mark.parametrize("block", [(13, 9, 17), (5, 30, 8)])
def test_cells_come_apart_by_both_alike_in_any_blocks(block):
    ids = cells((26, 27, 28), 6)
    boundary = boundary_of(ids, 0.2)
    channels = affinities_of(ids, 0.3, OFFSETS)
    whole = divided(ids, channels, boundary, threshold=0.6)
    assert whole.max() > 1
    np.testing.assert_array_equal(divided(ids, channels, boundary, block, threshold=0.6), whole)


def test_far_affinities_see_past_a_faint_boundary():
    ids = np.ones((12, 12, 24), np.uint8)
    ids[:, :, 12:] = 2
    boundary = boundary_of(ids, 0.0) // 4
    channels = affinities_of(ids, 0.0, OFFSETS)
    alone = {name: np.full_like(values, values.max()) for name, values in channels.items()}
    settings = {"threshold": 0.5, "neck": 1.0}
    assert divided(ids, alone, boundary, **settings).max() == 1
    assert same_partition(divided(ids, channels, boundary, **settings), ids)


def test_affinities_of_weight_zero_are_not_looked_at():
    """They need not even be there: those of the others alone, in their order, give the same."""
    ids = cells((26, 27, 28), 6)
    boundary = boundary_of(ids, 0.2)
    channels = affinities_of(ids, 0.3, OFFSETS)
    edge = volume(boundary)
    given = {name: volume(values) for name, values in channels.items() if name != "aff_0"}
    others = {"far_0": given["aff_1"], "far_1": given["aff_2"]}
    of_others = watershed_of_affinities(
        volume(ids > 0), edge, others, "far", OFFSETS[1:], 0.6, weights=(2, 2)
    )
    found = watershed_of_affinities(
        volume(ids > 0), edge, given, "aff", OFFSETS, 0.6, weights=(0, 2, 2)
    )
    assert found.array[...].max() > 1
    np.testing.assert_array_equal(found.array[...], of_others.array[...])


@pytest.mark.parametrize("block", [None, (5, 7, 6)])
def test_small_parts_join_the_neighbour_that_least_speaks_against(block):
    """A slab of 6 voxels between two of 10 and 14, behind edges of 0.8 and 0.7."""
    ids = np.ones((12, 12, 30), np.uint8)
    ids[:, :, 10:16] = 2
    ids[:, :, 16:] = 3
    edge = np.zeros(ids.shape, np.float32)
    edge[:, :, 9:11] = 0.8
    edge[:, :, 15:17] = 0.7
    channels = affinities_of(ids, 0.0, OFFSETS)
    settings = {"threshold": 0.6, "neck": 1.0, "weights": (0.01, 0.01, 0.01)}
    of_slab = 12 * 12 * 6 * 8**3
    parts = divided(ids, channels, edge, block, **settings)
    spared = divided(ids, channels, edge, block, **settings, small_nm3=of_slab / 2)
    joined = divided(ids, channels, edge, block, **settings, small_nm3=of_slab * 1.5)
    assert same_partition(parts, ids)
    assert same_partition(spared, ids)
    assert same_partition(joined, np.minimum(ids, 2))


def test_a_weight_that_would_count_nothing_is_refused():
    ids = cells((8, 8, 8), 2)
    channels = affinities_of(ids, 0.0, OFFSETS)
    with pytest.raises(UserError, match=r"write numbers of at least 0\.01"):
        divided(ids, channels, boundary_of(ids, 0.0), weights=(1, 1, 0.004))


def test_evidence_is_counted_in_whole_parts():
    contacts = Contacts.of_faces(
        np.array([0]), np.array([1]), height=np.zeros(1), evidence=np.array([0.25])
    )
    assert contacts.times(3).faces.tolist() == [3]
    assert contacts.times(3).mean == pytest.approx([0.25], abs=1 / PARTS)
