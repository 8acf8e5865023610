"""Objects that touch, told apart: basins as scikit-image has them, joins as drawn and by a loop."""

from __future__ import annotations

import itertools

import cc3d
import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import local_maxima
from skimage.segmentation import watershed as flood

from common.errors import UserError
from common.infer.instances import watershed_of_boundary, watershed_of_distance
from common.infer.objects import graph
from common.infer.objects.basins import MARGIN, find_basins
from common.infer.objects.graph import PARTS, Contacts, Graph
from common.infer.objects.volume import Volume
from tests.infer.test_instances import same_partition, volume


def cells(shape=(30, 32, 34), n=9, seed=0) -> np.ndarray:
    """(z, y, x) ids of cells that fill a volume: the nearest of n points."""
    rng = np.random.default_rng(seed)
    points = rng.random((n, 3)) * shape
    place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return 1 + np.linalg.norm(place[..., None, :] - points, axis=-1).argmin(axis=-1)


def edges(ids: np.ndarray) -> np.ndarray:
    """(z, y, x) bool, where a voxel has another id beside it."""
    return ndimage.maximum_filter(ids, 3) != ndimage.minimum_filter(ids, 3)


def boundary_of(ids: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    """(z, y, x) uint8, a predicted boundary."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(edges(ids).astype(np.float32), 0.7)
    noisy = smooth + noise * ndimage.gaussian_filter(rng.normal(size=ids.shape), 1) * 3
    return np.rint(255 * noisy.clip(0, 1)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_basins_are_those_of_scikit_image_whatever_the_block(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 20, 3).tolist())
    height = ndimage.gaussian_filter(rng.random(shape), 0.8).astype(np.float32)
    mask = rng.random(shape) < 0.9
    # without plateaus, both ways up are the same
    within = np.where(mask, height, -1)
    maxima = cc3d.connected_components(local_maxima(within, connectivity=3) & mask)
    wanted = flood(-within, maxima, connectivity=3, mask=mask)
    block = rng.integers(1, 12, 3).tolist()
    basins, _ = find_basins(volume(height, block), volume(mask, block))
    found = basins.labels.array[...]
    number = np.zeros_like(found)
    number[found > 0] = 1 + basins.basin[np.searchsorted(basins.every, found[found > 0])]
    assert same_partition(number, wanted)
    assert sorted(basins.summits) == pytest.approx(sorted(within[maxima > 0]))


def test_an_ascent_through_many_blocks_comes_to_its_summit():
    height = np.arange(4 * MARGIN, dtype=np.float32)[:, None, None] * np.ones((1, 3, 3), np.float32)
    ids = volume(np.ones(height.shape, bool), (4, 2, 3))
    basins, _ = find_basins(volume(height, (4, 2, 3)), ids)
    assert basins.summits.tolist() == [height.max()]


def random_graph(seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    pairs = [pair for pair in itertools.combinations(range(9), 2) if rng.random() < 0.5]
    a, b = np.array(pairs).T
    faces = rng.integers(1, 5, len(pairs))
    evidence = rng.integers(0, PARTS + 1, len(pairs)) * faces
    return Graph(9, Contacts(a, b, rng.random(len(pairs)), evidence, faces))


@pytest.mark.parametrize("seed", range(5))
def test_average_linkage_is_that_of_a_loop(seed):
    given = random_graph(seed)
    ids = given.contacts
    part = np.arange(9)
    while True:
        means = {}
        for a, b in itertools.combinations(np.unique(part), 2):
            of_pair = np.isin(part[ids.a], (a, b)) & np.isin(part[ids.b], (a, b))
            of_pair &= part[ids.a] != part[ids.b]
            if of_pair.any():
                means[a, b] = ids.evidence[of_pair].sum() / ids.faces[of_pair].sum() / PARTS
        least = min(means, key=means.get, default=None)
        if least is None or means[least] >= 0.5:
            break
        part[part == least[1]] = least[0]
    assert same_partition(graph.over_means(given, 0.5) + 1, part + 1)


def test_contacts_are_counted_once_in_any_blocks():
    """Two halves of 5 x 6 x 7 voxels share 5 x 6 faces, whose evidence is the larger side's."""
    z, y, _ = np.ogrid[:5, :6, :7]
    profile = np.array([1, 0.8, 0.4, 0.1, 0.3, 0.7, 1])
    height = (profile - 0.01 * (abs(z - 2) + abs(y - 3))).astype(np.float32)
    evidence = np.zeros((5, 6, 7), np.float32)
    evidence[:, :, 3] = 0.5
    for block in [(5, 6, 7), (2, 3, 2), (1, 1, 1)]:
        ids = volume(np.ones(height.shape, bool), block)
        basins, found = find_basins(volume(height, block), ids, volume(evidence, block))
        assert len(basins.summits) == 2
        assert found.contacts.faces.tolist() == [30]
        assert found.contacts.mean == pytest.approx([0.5], abs=1e-4)
        assert found.contacts.height == pytest.approx([0.1])


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_cells_come_apart_along_their_boundary_alike_in_any_blocks(noise):
    ids = cells()
    boundary = boundary_of(ids, noise)
    found = []
    for block in [ids.shape, (13, 9, 17)]:
        mask = volume(np.ones(ids.shape, bool), block)
        result = watershed_of_boundary(mask, volume(boundary, block), depth_nm=40)
        found.append(result.array)
    assert np.array_equal(*found)
    inside = ~edges(ids)
    assert same_partition(np.where(inside, found[0], 0), np.where(inside, ids, 0))


@pytest.mark.parametrize("block", [(30, 32, 34), (7, 16, 11)])
def test_cells_come_apart_by_their_distance(block):
    ids = cells()
    distance = ndimage.distance_transform_edt(~edges(ids)).astype(np.float32) * 8
    mask = volume(np.ones(ids.shape, bool), block)
    found = watershed_of_distance(mask, volume(distance.clip(0, 60), block)).array
    inside = ~edges(ids)
    assert same_partition(np.where(inside, found, 0), np.where(inside, ids, 0))


def test_a_hole_in_a_boundary_does_not_join_what_it_divides():
    boundary = np.zeros((20, 20, 30), np.float32)
    boundary[:, :, 14:16] = 0.9
    boundary[9:11, 9:11, 14:16] = 0
    mask = volume(np.ones(boundary.shape, bool))
    assert watershed_of_boundary(mask, volume(boundary)).array.max() == 2
    assert watershed_of_boundary(mask, volume(boundary), threshold=0.95).array.max() == 1
    assert watershed_of_boundary(mask, volume(boundary), neck=0).array.max() == 1


def test_a_mask_beyond_its_distance_is_not_divided_there():
    """Negative distances are outside, where everything is as low as the edge."""
    distance = np.full((12, 12, 30), -40, np.float32)
    distance[2:10, 2:10, 2:10] = 30
    mask = volume(np.ones(distance.shape, bool), (5, 6, 11))
    assert watershed_of_distance(mask, volume(distance, (5, 6, 11))).array.max() == 1
    hollows = np.where(np.arange(30) % 8 < 4, -40, -20).astype(np.float32)
    outside = volume(np.broadcast_to(hollows, (12, 12, 30)).copy())
    assert watershed_of_distance(volume(np.ones((12, 12, 30), bool)), outside).array.max() == 1


def test_an_unknown_boundary_divides():
    boundary = np.zeros((12, 12, 30), np.float32)
    boundary[:, :, 14:16] = np.nan
    for block in [(12, 12, 30), (5, 7, 9)]:
        mask = volume(np.ones(boundary.shape, bool), block)
        assert watershed_of_boundary(mask, volume(boundary, block), depth_nm=40).array.max() == 2


@pytest.mark.parametrize("function", [watershed_of_boundary, watershed_of_distance])
def test_ids_are_divided_each_alone_and_background_stays(function):
    ids = np.zeros((6, 6, 12), np.uint64)
    ids[1:5, 1:5, 1:6] = 2**40
    ids[1:5, 1:5, 6:11] = 7
    flat = volume(np.zeros(ids.shape, np.float32), (4, 4, 5))
    found = function(volume(ids, (4, 4, 5)), flat)
    assert same_partition(found.array, ids)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("function", [watershed_of_boundary, watershed_of_distance])
def test_an_empty_mask_has_no_objects(function):
    empty = volume(np.zeros((5, 6, 7), bool), (3, 3, 3))
    assert not function(empty, volume(np.ones((5, 6, 7), np.float32), (3, 3, 3))).array.any()


@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_without_or_of_nothing_but_boundary_is_one_object(value):
    mask = volume(np.ones((9, 9, 9), bool), (4, 4, 4))
    boundary = volume(np.full((9, 9, 9), value, np.uint8), (4, 4, 4))
    assert watershed_of_boundary(mask, boundary, neck=0.5).array.min() == 1


def test_depths_are_nm_in_thick_sections():
    """A wall between two halves is found, whatever the ratio of the axes."""
    ids = cells((12, 40, 40), n=5)
    boundary = boundary_of(ids, 0)
    for block in [(12, 40, 40), (5, 17, 13)]:
        mask = Volume(np.ones(ids.shape, bool), (40, 4, 4), block)
        found = watershed_of_boundary(mask, Volume(boundary, (40, 4, 4), block), depth_nm=60).array
        inside = ~edges(ids)
        assert same_partition(np.where(inside, found, 0), np.where(inside, ids, 0))


MASK = np.ones((4, 4, 4), bool)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda m, v: watershed_of_boundary(m, volume(np.ones((4, 4, 5)))), "of shape"),
        (lambda m, v: watershed_of_boundary(m, v, threshold=1.0), "between 0 and 1"),
        (lambda m, v: watershed_of_boundary(m, v, neck=1.5), "neck 1.5"),
        (lambda m, v: watershed_of_boundary(m, v, depth_nm=0), "depth_nm 0"),
        (lambda m, v: watershed_of_distance(m, v, neck=-1), "neck -1"),
        (lambda m, v: watershed_of_distance(v, v), "threshold"),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(wrong, words):
    with pytest.raises(UserError, match=words):
        wrong(volume(MASK), volume(np.ones((4, 4, 4), np.float32)))
