"""Targets made of ids, against a loop over pairs of voxels, SciPy, and drawn cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from common.config.derived import (
    Derived,
    affinities,
    background,
    border,
    boundary,
    distance,
    inner,
)
from common.data.samples.derive import IdPatch, derive, margin_of

VOXEL = (10.0, 4.0, 4.0)


def patch_of(ids: np.ndarray, channel: Derived, voxel: tuple = VOXEL) -> IdPatch:
    """An id patch whose margin is unknown, as beyond a crop."""
    margin = margin_of([channel], voxel)
    padded = np.pad(ids, [(m, m) for m in margin], constant_values=-1)
    return IdPatch(torch.from_numpy(padded.astype(np.int32)), margin, voxel)


def made(ids: np.ndarray, channel: Derived, voxel: tuple = VOXEL) -> np.ndarray:
    return derive(channel, patch_of(ids, channel, voxel)).numpy()


def blobs(shape: tuple, unknown: float) -> np.ndarray:
    """Objects that touch, background between some, and unknown voxels."""
    random = np.random.default_rng(0)
    seeds = random.random((int(np.prod(shape)) // 150, 3)) * shape
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    distances = np.linalg.norm(grid[..., None, :] - seeds, axis=-1)
    ids = distances.argmin(-1) + 1
    ids[distances.min(-1) > 3.4] = 0
    ids[random.random(shape) < unknown] = -1
    return ids


def looped(patch: IdPatch, channel: Derived) -> np.ndarray:
    """The same by a loop over pairs of voxels, as it is defined."""
    whole = patch.ids.numpy()
    places = np.stack(np.meshgrid(*map(np.arange, whole.shape), indexing="ij"), -1) * VOXEL
    core = patch.core.numpy()
    result = np.full(core.shape, np.nan)
    for index in np.ndindex(*core.shape):
        own = core[index]
        if own == -1:
            continue
        here = (np.array(index) + patch.margin) * VOXEL
        far = np.linalg.norm(places - here, axis=-1) - 1e-3
        result[index] = truth(channel, own, whole, far)
    return result


def truth(channel: Derived, own: int, ids: np.ndarray, far: np.ndarray) -> float:
    """The truth of a known voxel, from the labels of all and their distances from it."""
    kind = type(channel).__name__
    is_other = (ids != own) & (ids != -1)
    to_other = far[is_other].min(initial=math.inf)
    to_unknown = far[ids == -1].min(initial=math.inf)
    if kind == "Background":
        return float(own == 0)
    if kind == "Boundary":
        reach = channel.inside if own else channel.outside
        return ternary(to_other <= reach, to_unknown <= reach)
    if kind == "Inner":
        return (
            0.0
            if own == 0
            else 1 - ternary(*(d <= channel.from_edge for d in (to_other, to_unknown)))
        )
    if kind == "Distance":
        if to_unknown < min(to_other, channel.clip) - 2e-3:
            return math.nan
        return min(to_other + 1e-3, channel.clip) / channel.clip * (1 if own else -1)
    objects = [far[ids == label].min() for label in np.unique(ids[ids > 0])]
    first, second = sorted([max(0, d) for d in objects] + [math.inf, math.inf])[:2]
    return ternary(
        first + second <= channel.gap, to_unknown + min(first, to_unknown) <= channel.gap
    )


def ternary(is_true: bool, may_be: bool) -> float:
    if is_true:
        return 1.0
    return math.nan if may_be else 0.0


CHANNELS = [
    background("cell"),
    boundary("cell", inside=9, outside=13),
    boundary("cell", inside=10, outside=0),
    boundary("cell", inside=0, outside=8),
    inner("cell", from_edge=10),
    border("cell", gap=16),
    distance("cell", clip=14),
]


@pytest.mark.parametrize("channel", CHANNELS, ids=str)
@pytest.mark.parametrize("unknown", [0.0, 0.01])
def test_a_target_is_what_a_loop_over_voxels_gives(channel, unknown):
    margin = margin_of([channel], VOXEL)
    shape = np.array((4, 7, 8)) + 2 * np.array(margin)
    ids = blobs(tuple(shape), unknown)
    ids[..., : margin[2] + 1] = -1  # the edge of a crop
    patch = IdPatch(torch.from_numpy(ids.astype(np.int32)), margin, VOXEL)
    ours = derive(channel, patch).numpy()
    assert ours.shape == (1, 4, 7, 8)
    np.testing.assert_allclose(ours[0], looped(patch, channel), rtol=1e-5)
    assert len(np.unique(ours[~np.isnan(ours)])) > 1


def test_affinities_are_what_a_loop_over_pairs_gives():
    offsets = [(10, 0, 0), (0, -4, 0), (0, 8, -12)]
    ids = blobs((5, 8, 9), 0.05)
    ours = made(ids, affinities("cell", offsets=offsets))
    expected = np.full((3, *ids.shape), np.nan)
    for number, index in itertools.product(range(3), np.ndindex(*ids.shape)):
        other = np.array(index) + np.divide(offsets[number], VOXEL).astype(int)
        is_inside = (other >= 0).all() and (other < ids.shape).all()
        pair = [ids[index], ids[tuple(other)] if is_inside else -1]
        if 0 in pair:
            expected[number][index] = 0
        elif -1 not in pair:
            expected[number][index] = pair[0] == pair[1]
    np.testing.assert_array_equal(ours, expected)


def test_a_drawn_case():
    # two objects that touch, background, and a voxel that nobody annotated
    ids = np.array([[[1, 1, 1, 2, 2, 2, 0, 0, 0, -1]]])
    voxel = (8.0, 8.0, 8.0)
    nan = np.nan
    unknown = patch_of(ids, boundary("cell", inside=8, outside=8), voxel).ids
    known = unknown.clone()
    # nothing is unknown above and below the row, which goes on as it is
    known[:] = known[1:2, 1:2]
    patch = IdPatch(known, (1, 1, 1), voxel)
    near = derive(boundary("cell", inside=8, outside=8), patch)[0, 0, 0]
    np.testing.assert_array_equal(near, [nan, 0, 1, 1, 0, 1, 1, 0, nan, nan])
    core = derive(inner("cell", from_edge=8), patch)[0, 0, 0]
    np.testing.assert_array_equal(core, [nan, 1, 0, 0, 1, 0, 0, 0, 0, nan])
    between = derive(border("cell", gap=8), patch)[0, 0, 0]
    np.testing.assert_array_equal(between, [nan, 0, 1, 1, 0, 0, 0, 0, 0, nan])
    pairs = derive(affinities("cell", offsets=[(0, 0, 8)]), patch)[0, 0, 0]
    np.testing.assert_array_equal(pairs, [1, 1, 0, 1, 1, 0, 0, 0, 0, nan])


def test_distances_are_those_of_scipy():
    random = np.random.default_rng(1)
    mask = ndimage.gaussian_filter(random.random((14, 20, 20)), 2) > 0.5
    channel = distance("cell", clip=16)
    margin = margin_of([channel], VOXEL)
    patch = IdPatch(torch.from_numpy(mask.astype(np.int32)), margin, VOXEL)
    inside = ndimage.distance_transform_edt(mask, VOXEL)
    outside = ndimage.distance_transform_edt(~mask, VOXEL)
    core = tuple(slice(m, -m) for m in margin)
    expected = (inside - outside)[core].clip(-16, 16)
    assert len(np.unique(expected)) > 4
    np.testing.assert_allclose(derive(channel, patch)[0].numpy() * 16, expected, rtol=1e-5)


def test_turning_by_90_degrees_commutes_with_making_affinities():
    ids = blobs((6, 9, 9), 0.05)
    cube = (4.0, 4.0, 4.0)
    offsets = [(4, 0, 0), (0, 4, 0), (0, 0, 8), (4, -8, 4)]
    turned_offsets = [(z, -x, y) for z, y, x in offsets]
    turned = np.rot90(ids, axes=(1, 2)).copy()
    # np.rot90 takes an offset (y, x) to (-x, y)
    after = made(turned, affinities("cell", offsets=turned_offsets), cube)
    before = made(ids, affinities("cell", offsets=offsets), cube)
    np.testing.assert_array_equal(after, np.rot90(before, axes=(2, 3)))


@pytest.mark.parametrize("channel", CHANNELS, ids=str)
def test_turning_and_mirroring_commute_with_making_targets(channel):
    """Voxels turn with what they hold: 10 x 4 x 6 nm become 4 x 6 x 10."""
    ids = blobs((5, 8, 9), 0.03)
    voxel = (10.0, 4.0, 6.0)
    before = made(ids, channel, voxel)[0]
    turned = ids.transpose(1, 2, 0)[::-1, :, ::-1].copy()
    after = made(turned, channel, (4.0, 6.0, 10.0))[0]
    expected = before.transpose(1, 2, 0)[::-1, :, ::-1]
    np.testing.assert_allclose(after, expected, rtol=1e-6)


def test_an_offset_larger_than_an_object_never_pairs_it():
    # an object of two voxels, one that the edge of the crop cuts off, and unknown beyond it
    ids = np.array([[[1, 1, 0, 2, 2]]])
    nan = np.nan
    pairs = made(ids, affinities("cell", offsets=[(0, 0, 8), (0, 0, 12), (0, 0, -20)]))[:, 0, 0]
    np.testing.assert_array_equal(pairs[0], [0, 0, 0, nan, nan])
    np.testing.assert_array_equal(pairs[1], [0, 0, 0, nan, nan])
    np.testing.assert_array_equal(pairs[2], [nan, nan, 0, nan, nan])


def test_what_lies_in_the_margin_decides_about_the_target():
    channel = boundary("cell", inside=8, outside=8)
    whole = blobs((9, 14, 14), 0.0)
    margin = margin_of([channel], VOXEL)
    inside = tuple(slice(m, n - m) for m, n in zip(margin, whole.shape, strict=True))
    patch = IdPatch(torch.from_numpy(whole.astype(np.int32)), margin, VOXEL)
    ours = derive(channel, patch)[0].numpy()
    assert not np.isnan(ours).any()
    np.testing.assert_array_equal(ours, made(whole, channel)[0][inside])
