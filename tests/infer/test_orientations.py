"""The mean over mirrored and transposed copies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from common.infer.predicting.orientations import oriented
from tests.infer.test_blocks import Valid


def test_eight_orientations_are_the_mean_over_mirrorings():
    model = Valid()
    raw = torch.rand(1, 1, 20, 24, 28)
    with torch.inference_mode():
        found = oriented(model, 8)(raw).numpy()
        by_hand = []
        for axes in ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)):
            mirrored = torch.from_numpy(np.flip(raw.numpy(), axes).copy())
            by_hand.append(np.flip(model(mirrored).numpy(), axes))
    np.testing.assert_allclose(found, np.mean(by_hand, axis=0), atol=1e-6)
    assert np.abs(found - model(raw).detach().numpy()).max() > 1e-3


def test_sixteen_orientations_add_those_with_y_and_x_exchanged():
    model = Valid()
    raw = torch.rand(1, 1, 20, 24, 28)
    with torch.inference_mode():
        eight = oriented(model, 8)
        exchanged = eight(raw.transpose(3, 4).contiguous()).transpose(3, 4)
        np.testing.assert_allclose(
            oriented(model, 16)(raw), (eight(raw) + exchanged) / 2, atol=1e-6
        )


def test_sixteen_orientations_do_not_care_how_y_and_x_are_exchanged_or_mirrored():
    model = oriented(Valid(), 16)
    raw = torch.rand(1, 1, 20, 24, 24)
    with torch.inference_mode():
        np.testing.assert_allclose(model(raw.flip(3)).flip(3), model(raw), atol=1e-5)
        np.testing.assert_allclose(
            model(raw.transpose(3, 4)).transpose(3, 4), model(raw), atol=1e-5
        )


def test_one_orientation_is_the_network_itself():
    model = Valid()
    assert oriented(model, 1) is model


# Affinities

OFFSETS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 0, 0), (0, -2, 0), (0, 0, 4), (1, 2, 0), (-1, 2, 0)]
NUMBERS = dict(enumerate(OFFSETS, 1))
"""Channel 0 is a class."""
SHAPE = (7, 9, 8)


def pairs_within(offset):
    """All voxels of a window whose pair at an offset lies in it, and these pairs."""
    for here in np.ndindex(SHAPE):
        there = tuple(np.add(here, offset).tolist())
        if min(there) >= 0 and (np.array(there) < SHAPE).all():
            yield here, there


def same_in_raw(raw: torch.Tensor) -> torch.Tensor:
    """What a network without a mistake gives of raw that holds ids; 77 where it cannot know."""
    ids = raw[0, 0].numpy()
    logits = np.full((1, 1 + len(OFFSETS), *ids.shape), 77, np.float32)
    logits[0, 0] = ids
    for channel, offset in NUMBERS.items():
        low = np.maximum(0, np.negative(offset))
        high = np.minimum(ids.shape, np.subtract(ids.shape, offset))
        here = tuple(map(slice, low, high))
        there = tuple(map(slice, low + offset, high + offset))
        logits[0, channel][here] = np.where(ids[here] == ids[there], 4, -4)
    return torch.from_numpy(logits)


@pytest.mark.parametrize("number", [8, 16])
def test_affinities_without_a_mistake_stay_in_any_orientation(number):
    ids = np.random.default_rng(0).integers(0, 3, (1, 1, *SHAPE)).astype(np.float32)
    raw = torch.from_numpy(ids)
    found = oriented(same_in_raw, number, [NUMBERS])(raw).numpy()
    wanted = same_in_raw(raw).numpy()
    np.testing.assert_array_equal(found[0, 0], wanted[0, 0])
    for channel, offset in NUMBERS.items():
        for here, _ in pairs_within(offset):
            assert found[0, channel][here] == wanted[0, channel][here]


def test_an_affinity_is_the_mean_of_what_the_copies_say_of_its_pair():
    """A loop over the voxels of each copy, each with its pair in raw."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 1 + len(OFFSETS), 3, padding=1)
    raw = torch.rand(1, 1, *SHAPE)
    said = {}
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    with torch.inference_mode():
        found = oriented(network, 8, [NUMBERS])(raw)[0].numpy()
        for axes in itertools.chain.from_iterable(
            itertools.combinations((1, 2, 3), n) for n in range(4)
        ):
            copy = np.flip(raw[0].numpy(), axes).copy()
            logits = network(torch.from_numpy(copy)[None])[0].numpy()
            voxels = np.flip(place, axes)
            signs = [-1 if axis in axes else 1 for axis in (1, 2, 3)]
            for channel, offset in NUMBERS.items():
                for at in np.ndindex(SHAPE):
                    here = voxels[:, *at]
                    pair = frozenset([tuple(here), tuple(here + np.multiply(signs, offset))])
                    said.setdefault(pair, []).append(logits[channel][at])
    for channel, offset in NUMBERS.items():
        for here, there in pairs_within(offset):
            assert found[channel][here] == pytest.approx(
                np.mean(said[frozenset([here, there])]), abs=1e-5
            )


def test_declarations_with_equal_offsets_are_not_mixed():
    def two(raw: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(raw), torch.ones_like(raw)], dim=1)

    found = oriented(two, 8, [{0: (0, 0, 2)}, {1: (0, 0, 2)}])(torch.rand(1, 1, *SHAPE))
    assert (found[0, 0] == 0).all() and (found[0, 1] == 1).all()
