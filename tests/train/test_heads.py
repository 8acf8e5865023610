"""Losses of several heads, against torch; and where they have no gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.config.derived import affinities, background, border, boundary, distance
from common.config.heads import heads_of
from common.data.samples.batches import Batch
from common.data.samples.loaders import open_data
from common.data.samples.targets import (
    MixedTarget,
    PaletteTarget,
    binary,
    exclusive_labels,
    of_channels,
    of_sample,
)
from common.errors import UserError
from common.model.forward import ForwardPass
from common.runtime import Precision
from common.train.losses import categorical_cross_entropy, dice_loss, priors, weighted_bce
from common.train.losses.criterion import resampled
from common.train.losses.heads import build
from common.train.state import Method, State
from common.train.steps import step

CPU = torch.device("cpu")
FP32 = Precision("fp32", "cpu")
SHAPE = (4, 5, 6)

CHANNELS = {
    "near": boundary("mito", inside=8, outside=8),
    "pairs": affinities("mito", offsets=[(8, 0, 0), (0, 8, 0)]),
    "far": distance("mito", clip=24),
}


@pytest.fixture
def config(experiment):
    """Settings of a run with three classes and four derived channels."""

    tiny = experiment()

    def make(derived=CHANNELS, **settings):
        return tiny.config(derived=derived, **settings)

    return make


def mixed(derived: int = 4, exclusive: tuple = ()) -> MixedTarget:
    """Random labels of three classes and some derived channels, the last one a distance."""
    random = torch.Generator().manual_seed(0)
    palette = torch.tensor([[-1, -1, -1], [1, 0, 0], [0, 1, -1], [0, 0, 1]], dtype=torch.int8)
    rows = torch.randint(4, (2, *SHAPE), generator=random, dtype=torch.int32)
    labels = torch.randint(2, (2, derived, *SHAPE), generator=random).float()
    labels[:, -1] = torch.rand(2, *SHAPE, generator=random) * 2 - 1
    labels[torch.rand(labels.shape, generator=random) < 0.3] = torch.nan
    return MixedTarget(PaletteTarget(rows, palette), labels, exclusive)


def logits_for(channels: int = 7) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, *SHAPE, generator=random).requires_grad_()


def test_the_loss_is_the_sum_of_those_of_the_heads(config):
    settings = config(loss_weights={"pairs": 2.0, "far": 0.5})
    target = mixed()
    logits = logits_for()
    weight = torch.linspace(1, 2, 7)
    loss = build(settings, CPU)(logits, target, weight)
    labels = target.dense()
    assert [head.name for head in heads_of(settings)] == ["classes", "pairs", "far"]

    def bce(channels: list[int]) -> torch.Tensor:
        own = labels[:, channels]
        mask = ~own.isnan()
        each = F.binary_cross_entropy_with_logits(
            logits[:, channels],
            own.nan_to_num(),
            pos_weight=weight[channels].view(-1, 1, 1, 1),
            reduction="none",
        )
        return each[mask].mean()

    values = logits[:, 6].sigmoid() * 2 - 1
    mask = ~labels[:, 6].isnan()
    far = F.smooth_l1_loss(values[mask], labels[:, 6][mask], beta=0.1)
    torch.testing.assert_close(loss, bce([0, 1, 2, 3]) + 2 * bce([4, 5]) + 0.5 * far)


def test_two_accumulated_batches_equal_one_in_each_head(config):
    """Of the second sample little is known of what is derived, and of what excludes each other."""
    derived = {"pairs": CHANNELS["pairs"], "far": CHANNELS["far"], "rest": background("mito")}
    settings = config(derived, softmax=["rest", "mito"], loss_weights={"pairs": 2.0})
    assert [head.name for head in heads_of(settings)] == ["classes", "softmax", "pairs", "far"]
    target = mixed(exclusive=(6, 0))
    target.derived[:, 3] = (target.derived[:, 3] > 0).float()
    target.derived[1, :, 1:] = torch.nan
    raw = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
    whole = [Batch(raw, target, ["a", "b"])]
    parts = [Batch(raw[i : i + 1], of_sample(target, i), [name]) for i, name in enumerate("ab")]
    ends = []
    for group in (whole, parts):
        torch.manual_seed(0)
        model = torch.nn.Conv3d(1, 7, 1)
        state = State(model, torch.optim.SGD(model.parameters(), 0.1), None, FP32.scaler())
        method = Method(build(settings, CPU), torch.ones(7), ForwardPass(FP32, False), 0.0)
        result = step(state, method, group)
        ends.append([torch.tensor(result.numbers.loss), *model.state_dict().values()])
    torch.testing.assert_close(ends[0], ends[1])


def test_unknown_pairs_get_no_gradient(config):
    target = mixed()
    logits = logits_for()
    build(config(), CPU)(logits, target, None).backward()
    is_unknown = target.dense().isnan()
    assert (logits.grad[is_unknown] == 0).all()
    assert (logits.grad[~is_unknown] != 0).all()


def test_a_batch_of_which_nothing_is_known_has_loss_0(config):
    target = mixed()
    target.derived[:] = torch.nan
    target.classes.rows[:] = 0
    logits = logits_for()
    loss = build(config(), CPU)(logits, target, torch.ones(7))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_the_softmax_is_trained_where_it_is_known_which_channel_is_true(config):
    derived = {"rest": background("mito"), "between": border("mito", gap=24)}
    settings = config(derived, softmax=["rest", "mito", "between"])
    target = mixed(2, exclusive=(3, 0, 4))
    target.derived[:] = (target.derived > 0).float().where(~target.derived.isnan(), torch.nan)
    logits = logits_for(5)
    build(settings, CPU)(logits, target, None).backward()
    alone = torch.stack([target._alone(number, 3) for number in (3, 0, 4)], 1)
    # the last one that is true counts, unless one after it is unknown
    truth = torch.full(alone[:, 0].shape, -1)
    for number in range(3):
        truth[alone[:, number] == 1] = number
        truth[alone[:, number].isnan()] = -1
    chosen = logits[:, [3, 0, 4]]
    expected = F.cross_entropy(chosen, truth, ignore_index=-1)
    torch.testing.assert_close(
        categorical_cross_entropy(chosen, of_channels(target, (3, 0, 4))), expected
    )
    grad = logits.grad[:, [3, 0, 4]]
    assert (grad.movedim(1, -1)[truth == -1] == 0).all()
    assert (grad.movedim(1, -1)[truth >= 0] != 0).all()
    torch_own = settings.__class__(**vars(settings) | {"criteria": {"softmax": F.cross_entropy}})
    again = build(torch_own, CPU)(logits, target, None) - build(settings, CPU)(logits, target, None)
    assert abs(again.item()) < 1e-6


def test_exclusive_labels_have_one_positive_at_most():
    nan = torch.nan
    before = [[1, 0, 1], [1, 1, 0], [0, 1, nan], [1, nan, 1], [nan, 0, 0], [0, 0, 0]]
    after = [[0, 0, 1], [0, 1, 0], [0, nan, nan], [0, 0, 1], [nan, 0, 0], [0, 0, 0]]
    ours = exclusive_labels(torch.tensor(before))
    torch.testing.assert_close(ours, torch.tensor(after).float(), equal_nan=True)
    as_int = torch.tensor(before).nan_to_num(-1).to(torch.int8)
    expected = torch.tensor(after).nan_to_num(-1).to(torch.int8)
    torch.testing.assert_close(exclusive_labels(as_int), expected)


def test_the_sigmoid_of_what_is_shown_is_the_softmax():
    forward = ForwardPass(Precision("fp32", "cpu"), channels_last=False, exclusive=(3, 0, 4))
    logits = logits_for(5).detach() * 4
    shown = forward.shown(logits)
    expected = logits[:, [3, 0, 4]].softmax(1)
    torch.testing.assert_close(shown[:, [3, 0, 4]].sigmoid(), expected)
    assert torch.equal(shown[:, [1, 2]], logits[:, [1, 2]])


def test_a_head_may_have_any_loss(config):
    settings = config(criteria={"pairs": dice_loss, "far": torch.nn.MSELoss()})
    target = mixed()
    logits = logits_for()
    labels = target.dense()
    mask = ~labels[:, 6].isnan()
    far = F.mse_loss((logits[:, 6].sigmoid() * 2 - 1)[mask], labels[:, 6][mask])
    pairs = dice_loss(logits[:, 4:6], labels[:, 4:6])
    rest = weighted_bce(logits[:, :4], labels[:, :4])
    ours = build(settings, CPU)(logits, target, None)
    torch.testing.assert_close(ours, far + pairs + rest)


def test_a_loss_that_does_not_fit_is_told(config):
    with pytest.raises(UserError, match=r"criteria\['far'\]: cannot be called"):
        build(config(criteria={"far": lambda values: values.sum()}), CPU)
    with pytest.raises(UserError, match=r"criteria\['far'\] gives a tensor of shape"):
        build(config(criteria={"far": lambda values, target: values.sum((3, 4))}), CPU)


class Counting(torch.nn.Module):
    """A loss that counts its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, logits, target):
        self.calls += 1
        return F.binary_cross_entropy_with_logits(logits, target)


def test_what_a_loss_of_a_head_counts_is_part_of_the_state(config):
    loss = build(config(criteria={"pairs": Counting()}), CPU)
    loss(logits_for(), mixed(), None)
    state = loss.state_dict()
    assert len(state) == 1 and all(int(value) > 0 for value in state.values())


def test_coarser_outputs_have_the_nearest_labels():
    target = mixed()
    coarse = resampled(target, (2, 5, 3))
    expected = target.dense()[:, :, 1::2, :, 1::2]
    torch.testing.assert_close(coarse.dense(), expected, equal_nan=True)


def test_a_distance_counts_as_inside_or_outside():
    labels = binary(torch.tensor([[-0.5, 0.2, torch.nan, 1.0]]))
    assert labels.tolist() == [[0, 1, -1, 1]]


def test_a_run_begins_at_the_frequencies_of_all_channels(config):
    derived = CHANNELS | {"rest": background("mito")}
    settings = config(derived, softmax=["rest", "mito"])
    counts = priors.Frequencies(
        np.array([20.0, 10, 40, 5, 30, 8, 30, 60]), np.array([80.0, 90, 60, 95, 70, 2, 70, 40])
    )
    loss = build(settings, CPU)
    weights = counts.weights(settings, loss)
    np.testing.assert_allclose(weights, [4, 9, 1.5, 10, 70 / 30, 0.25, 1, 40 / 60], rtol=1e-6)
    prior = torch.from_numpy(counts.prior(settings, weights))
    share = torch.tensor([20 * 4.0, 60 * 40 / 60])
    torch.testing.assert_close(prior[[0, 7]].softmax(0), share / share.sum())
    # a distance begins at its mean, and the weighted sigmoid of a channel at its frequency
    assert prior[6].sigmoid() == pytest.approx(0.3)
    assert (prior[3] - np.log(10)).sigmoid() == pytest.approx(5 / 100)


def test_voxels_of_no_exclusive_class_are_told(experiment):
    tiny = experiment(softmax=["mito", "nuc"], classes=("mito", "nuc"))
    settings = tiny.config()
    found = priors.measure(settings, open_data(settings), CPU)
    [sentence] = found.notices(settings)
    assert "none of mito, nuc is true in" in sentence and "add a background(...)" in sentence
    derived = {"rest": background("mito")}
    all_of_them = tiny.config(derived=derived, softmax=["rest", "mito"])
    assert priors.measure(all_of_them, open_data(all_of_them), CPU).notices(all_of_them) == []
