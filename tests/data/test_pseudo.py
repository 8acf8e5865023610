"""Unknown labels that networks fill: drawn cases, a loop over voxels, and how they are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.data.crops.palette import UNKNOWN, Rules
from common.data.crops.pseudo import Filled, fill
from common.data.samples.targets import PaletteTarget, weighed
from common.train.losses import weighted_bce

NAMES = ("mito", "mito_mem", "er", "cell", "own")


def filled(known: dict[str, int], sure: dict[str, float], threshold: float = 0.33) -> Filled:
    """One voxel with known labels, and the probabilities of networks."""
    labels = np.full((len(NAMES), 1, 1, 1), UNKNOWN, np.int8)
    probabilities = np.zeros(labels.shape, np.uint8)
    for number, name in enumerate(NAMES):
        labels[number] = known.get(name, UNKNOWN)
        probabilities[number] = round(255 * sure.get(name, 0))
    return fill(labels, probabilities, NAMES, threshold=threshold, rules=Rules())


def labels_of(result: Filled) -> dict[str, int]:
    """The labels of the voxel that are known."""
    labels = dict(zip(NAMES, result.labels[:, 0, 0, 0].tolist(), strict=True))
    return {name: label for name, label in labels.items() if label != UNKNOWN}


def test_the_surest_network_decides_and_what_it_excludes_is_negative():
    result = filled({}, {"mito": 0.6, "er": 0.7})
    assert labels_of(result) == {"er": 1, "mito": 0, "mito_mem": 0, "cell": 1}
    assert result.source.item() == 1 + NAMES.index("er")
    assert result.confidence.item() == round(255 * 0.7)
    assert result.is_pseudo[:, 0, 0, 0].tolist() == [True, True, True, True, False]


def test_parts_are_decided_after_their_wholes_and_groups_follow():
    assert labels_of(filled({}, {"cell": 0.9, "mito": 0.8, "mito_mem": 0.5, "er": 0.7})) == {
        "cell": 1,
        "mito": 1,
        "mito_mem": 1,
        "er": 0,
    }
    assert labels_of(filled({}, {"mito_mem": 0.5})) == {
        "mito": 1,
        "mito_mem": 1,
        "er": 0,
        "cell": 1,
    }


def test_what_no_network_is_sure_of_stays_unknown():
    assert labels_of(filled({"mito": 0}, {"er": 0.33, "own": 0.2})) == {"mito": 0}
    assert labels_of(filled({"mito": 0}, {"er": 0.34})) == {
        "mito": 0,
        "er": 1,
        "cell": 1,
        "mito_mem": 0,
    }


@pytest.mark.parametrize("seed", range(3))
def test_known_labels_never_change_and_every_voxel_is_as_by_itself(seed):
    random = np.random.default_rng(seed)
    shape = (len(NAMES), 3, 4, 5)
    labels = random.integers(-1, 2, shape).astype(np.int8)
    probabilities = random.integers(0, 256, shape, np.uint8)
    before = labels.copy()
    result = fill(labels, probabilities, NAMES, threshold=0.5, rules=Rules())
    np.testing.assert_array_equal(labels, before)
    known = before != UNKNOWN
    np.testing.assert_array_equal(result.labels[known], before[known])
    np.testing.assert_array_equal(result.is_pseudo, (result.labels != UNKNOWN) & ~known)
    for place in np.ndindex(shape[1:]):
        voxel = (slice(None), *(slice(n, n + 1) for n in place))
        alone = fill(labels[voxel], probabilities[voxel], NAMES, threshold=0.5, rules=Rules())
        np.testing.assert_array_equal(result.labels[voxel], alone.labels)
        assert result.source[place] == alone.source.item()


def test_the_gradient_of_a_weighed_label_is_multiplied_and_the_loss_is_as_it_was():
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 3, (2, 2, 3, 4), generator=random, dtype=torch.int32)
    palette = torch.tensor([[1, 0], [0, -1], [1, 1]], dtype=torch.int8)
    weights = torch.tensor([[1.0, 0.25], [0.0, 1.0], [1.0, 1.0]])
    logits = torch.randn((2, 2, 2, 3, 4), generator=random).requires_grad_()
    plain = PaletteTarget(rows, palette)
    loss = weighted_bce(weighed(logits, plain), plain)
    (gradient,) = torch.autograd.grad(loss, logits)
    target = PaletteTarget(rows, palette, weights)
    weighed_loss = weighted_bce(weighed(logits, target), target)
    (weighed_gradient,) = torch.autograd.grad(weighed_loss, logits)
    assert weighed_loss == loss
    factors = weights[rows.long()].movedim(-1, 1)
    torch.testing.assert_close(weighed_gradient, gradient * factors, rtol=0, atol=0)
    assert weighed(logits.detach(), target).grad_fn is None
