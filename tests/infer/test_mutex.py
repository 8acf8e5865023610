"""The mutex watershed over blocks, beside mwatershed over the whole volume."""

from __future__ import annotations

import sys

import cc3d
import mwatershed
import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import adapted_rand_error

from common.errors import UserError
from common.infer.instances import mutex_watershed
from common.infer.objects.volume import Volume
from tests.infer.test_flooding import cells
from tests.infer.test_instances import same_partition, volume

OFFSETS = [(8, 0, 0), (0, 8, 0), (0, 0, 8), (32, 0, 0), (0, 32, 0), (0, 0, -32)]
"""nm, of voxels of 8 nm."""


def affinities_of(ids, noise: float = 0.0, offsets=OFFSETS, voxel_size=(8, 8, 8)):
    """Float32 affinities by name; 0 beyond the volume."""
    rng = np.random.default_rng(0)
    channels = {}
    for k, offset in enumerate(offsets):
        step = np.rint(np.array(offset) / voxel_size).astype(int)
        same = (np.roll(ids, -step, (0, 1, 2)) == ids) & (ids > 0)
        inside = np.roll(np.pad(np.ones(ids.shape, bool), 8), -step, (0, 1, 2))[8:-8, 8:-8, 8:-8]
        noisy = same + noise * 3 * ndimage.gaussian_filter(rng.normal(size=ids.shape), 1)
        channels[f"aff_{k}"] = np.where(inside, noisy.clip(0, 1), 0).astype(np.float32)
    return channels


def found(ids, channels, block=None, **settings) -> np.ndarray:
    volumes = {name: volume(array, block) for name, array in channels.items()}
    return mutex_watershed(volume(ids > 0, block), volumes, "aff", OFFSETS, **settings).array


def test_one_block_gives_what_mwatershed_gives():
    ids = cells()
    channels = affinities_of(ids, 0.3)
    said = np.stack([array.astype(np.float64) - 0.5 for array in channels.values()])
    wanted = mwatershed.agglom(said, [[n // 8 for n in offset] for offset in OFFSETS])
    assert same_partition(found(ids, channels), wanted)


@pytest.mark.parametrize("block", [(13, 9, 17), (30, 32, 5)])
def test_cells_come_apart_in_blocks_as_they_were(block):
    ids = cells()
    ids[:, 10:12] = 0
    assert same_partition(found(ids, affinities_of(ids), block), _in_one_piece(ids))


def _in_one_piece(ids: np.ndarray) -> np.ndarray:
    return cc3d.connected_components(ids.astype(np.uint32))


def test_noise_moves_no_object_over_the_faces_of_blocks():
    """Edges may differ where affinities are wrong; what is an object in one piece is one here."""
    ids = cells()
    channels = affinities_of(ids, 0.3)
    whole = found(ids, channels)
    blocks = found(ids, channels, (13, 16, 17))
    assert adapted_rand_error(whole, blocks)[0] < 0.02
    assert adapted_rand_error(ids, blocks)[0] < 0.02


def test_offsets_are_nm_in_thick_sections():
    ids = cells((12, 30, 30), n=5)
    offsets = [(40, 0, 0), (0, 4, 0), (0, 0, 4), (0, 20, 0), (0, 0, -20)]
    channels = affinities_of(ids, 0, offsets, (40, 4, 4))
    block = (5, 13, 30)
    volumes = {name: Volume(array, (40, 4, 4), block) for name, array in channels.items()}
    mask = Volume(ids > 0, (40, 4, 4), block)
    assert same_partition(mutex_watershed(mask, volumes, "aff", offsets).array, ids)


def test_ids_are_divided_each_alone():
    ids = np.zeros((6, 6, 12), np.uint64)
    ids[1:5, 1:5, 1:6] = 2**40
    ids[1:5, 1:5, 6:11] = 7
    sure = {f"aff_{k}": volume(np.ones(ids.shape), (4, 4, 5)) for k in range(6)}
    given = volume(ids, (4, 4, 5))
    assert same_partition(mutex_watershed(given, sure, "aff", OFFSETS).array, ids)


def test_a_voxel_that_no_affinity_is_about_is_an_object():
    mask = np.zeros((5, 5, 5), bool)
    mask[2, 2, 2] = True
    unsure = {f"aff_{k}": volume(np.full(mask.shape, 0.5)) for k in range(6)}
    assert mutex_watershed(volume(mask), unsure, "aff", OFFSETS).array.sum() == 1


def test_offsets_that_reach_beyond_a_thin_volume_say_nothing():
    ids = cells()[10:13]
    channels = affinities_of(ids, 0.3)
    short = [k for k, offset in enumerate(OFFSETS) if abs(offset[0]) < 3 * 8]
    volumes = {f"aff_{new}": volume(channels[f"aff_{k}"]) for new, k in enumerate(short)}
    wanted = mutex_watershed(volume(ids > 0), volumes, "aff", [OFFSETS[k] for k in short])
    assert len(short) == 5
    assert same_partition(found(ids, channels), wanted.array)
    long = {"aff_0": volume(channels["aff_3"])}
    apart = mutex_watershed(volume(ids > 0), long, "aff", [OFFSETS[3]])
    assert same_partition(apart.array, cc3d.connected_components(ids > 0))


@pytest.mark.parametrize("block", [None, (4, 6, 6)])
def test_unknown_affinities_say_nothing(block):
    """What joins and divides is what is known, over the faces of blocks too."""
    mask = np.ones((6, 6, 6), bool)
    down = np.ones(mask.shape, np.float32)
    down[2] = 0
    across = np.ones(mask.shape, np.float32)
    along = np.ones(mask.shape, np.float32)
    for values in (down, across, along):
        values[:, 3, 3] = np.nan
    channels = {f"aff_{k}": volume(v, block) for k, v in enumerate((down, across, along))}
    ids = mutex_watershed(volume(mask, block), channels, "aff", OFFSETS[:3]).array
    assert same_partition(ids, np.where(np.arange(6) < 3, 1, 2)[:, None, None] * mask)


def test_offsets_of_another_training_are_refused():
    class Predicted(np.ndarray):
        offset_nm = None

    ids = cells()
    channels = affinities_of(ids)
    volumes = {}
    for (name, array), offset in zip(channels.items(), OFFSETS, strict=True):
        values = array.view(Predicted)
        values.offset_nm = [float(length) for length in offset]
        volumes[name] = volume(values, None)
    mask = volume(ids > 0, None)
    assert same_partition(mutex_watershed(mask, volumes, "aff", OFFSETS).array, _in_one_piece(ids))
    swapped = [OFFSETS[1], OFFSETS[0], *OFFSETS[2:]]
    with pytest.raises(UserError, match=r"aff_0 was learnt of voxels \(8.0, 0.0, 0.0\) nm apart"):
        mutex_watershed(mask, volumes, "aff", swapped)


def test_an_empty_mask_has_no_objects():
    ids = np.zeros((5, 6, 7), np.uint8)
    assert not found(ids, affinities_of(ids), (3, 3, 3)).any()


def test_weights_say_which_offsets_decide_first():
    """Near pairs say one object throughout, far ones say two."""
    mask = np.ones((4, 4, 16), bool)
    far = np.full(mask.shape, 0.9)
    far[:, :, 4:8] = 0.2
    channels = {"aff_0": volume(np.full(mask.shape, 0.8)), "aff_1": volume(far)}
    offsets = [(0, 0, 8), (0, 0, 32)]
    near_first = mutex_watershed(volume(mask), channels, "aff", offsets, weights=(2, 1)).array
    far_first = mutex_watershed(volume(mask), channels, "aff", offsets, weights=(1, 2)).array
    assert len(np.unique(near_first[0, 0])) == 1
    assert len(np.unique(far_first[0, 0])) > 1


def test_offsets_of_weight_zero_are_left_out():
    ids = cells((26, 27, 28), 6)
    channels = {name: volume(values) for name, values in affinities_of(ids, 0.3).items()}
    mask = volume(ids > 0)
    near = mutex_watershed(mask, channels, "aff", OFFSETS[:3])
    weights = [1.0] * 3 + [0.0] * (len(OFFSETS) - 3)
    found = mutex_watershed(mask, channels, "aff", OFFSETS, weights=weights)
    np.testing.assert_array_equal(found.array[...], near.array[...])


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mwatershed", None)
    ids = cells((6, 6, 6), n=2)
    with pytest.raises(UserError, match=r"pip install mwatershed"):
        found(ids, affinities_of(ids))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"offsets": []}, "offsets is empty"),
        ({"offsets": [(8, 0, 0), (0, 5, 0)]}, r"offset \(0, 5, 0\) nm is .* voxels"),
        ({"offsets": [(8, 0, 0), (0, 0, 0)]}, "whole multiples of the voxel size"),
        ({"threshold": 1.0}, "threshold 1.0"),
        ({"weights": (1,)}, "write 2 numbers above 0"),
        ({"weights": (0, 0)}, "write 2 numbers above 0"),
        ({"weights": (1, -1)}, "write 2 numbers above 0"),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(settings, words):
    mask = volume(np.ones((4, 4, 4), bool))
    channels = {f"aff_{k}": volume(np.ones((4, 4, 4))) for k in range(2)}
    arguments = {"offsets": [(8, 0, 0), (0, 8, 0)]} | settings
    with pytest.raises(UserError, match=words):
        mutex_watershed(mask, channels, "aff", **arguments)
