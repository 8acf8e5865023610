"""Metrics, against scikit-learn and counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from common.errors import UserError
from common.train import metrics
from common.train.recording.record import read_history
from common.train.setup import prepare
from common.train.validation import ValidationScores

OWN = """
    def specificity(tp, fp, fn, tn):
        return tn / (tn + fp)


    metrics = {"specificity": specificity}
    """


def test_counts_and_metrics_equal_scikit_learns_on_the_known_voxels():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    target = torch.randint(-1, 2, logits.shape, generator=generator, dtype=torch.int8)
    tp, fp, fn, tn = metrics.count(logits, target).numpy()
    found = metrics.metrics(tp, fp, fn)
    for channel in range(3):
        known = target[:, channel] >= 0
        truth = target[:, channel][known].numpy()
        predicted = (logits[:, channel][known] > 0).numpy()
        assert found["dice"][channel] == pytest.approx(reference.f1_score(truth, predicted))
        assert found["iou"][channel] == pytest.approx(reference.jaccard_score(truth, predicted))
        assert found["precision"][channel] == pytest.approx(
            reference.precision_score(truth, predicted)
        )
        assert found["recall"][channel] == pytest.approx(reference.recall_score(truth, predicted))
        counts = [[tn[channel], fp[channel]], [fn[channel], tp[channel]]]
        assert reference.confusion_matrix(truth, predicted).tolist() == counts


def test_a_class_that_does_not_occur_is_left_out_of_the_mean():
    found = metrics.metrics(
        np.array([2.0, 0.0, 0.0]), np.array([0.0, 5.0, 0.0]), np.array([0.0, 0.0, 4.0])
    )
    assert found["dice"][0] == 1 and math.isnan(found["dice"][1]) and found["dice"][2] == 0
    assert found["precision"][2] == 0  # nothing predicted of a class that occurs
    assert ValidationScores(0.5, found, {}).mean("dice") == 0.5


def test_own_metrics_stand_beside_the_built_in_ones():
    counts = np.array([[1.0, 2.0], [3.0, 0.0], [1.0, 0.0], [5.0, 4.0]])
    values = metrics.of_counts(counts, {"specificity": lambda tp, fp, fn, tn: tn / (tn + fp)})
    assert list(values) == ["dice", "iou", "precision", "recall", "specificity"]
    assert values["specificity"].tolist() == [5 / 8, 1.0]
    assert values["dice"].tolist() == [2 / 6, 1.0]


def test_a_class_without_a_known_negative_is_left_out_of_the_mean():
    """Found everywhere it would have 1.0, which says nothing; the other class has 0.5."""
    counts = np.array([[1.0, 9.0], [1.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    values = metrics.of_counts(counts, {})
    assert all(np.isnan(value[1]) for value in values.values())
    assert ValidationScores(0.1, values, {}).mean("iou") == 0.5


def test_nothing_to_divide_by_is_nan_and_no_warning():
    counts = np.zeros((4, 2))
    values = metrics.of_counts(counts, {"share": lambda tp, fp, fn, tn: tp / (tp + tn)})
    assert np.isnan(values["share"]).all()


@pytest.mark.parametrize(
    ("given", "described"),
    [
        (np.float64(3), r"3.0 \(float64\)"),
        (None, r"None \(NoneType\)"),
        (math.nan, r"nan \(float\)"),
        ("high", r"high \(str\)"),
        ([1.0, "b", None], "a list of 3"),
        (np.ones(3) * 1j, r"a ndarray of shape \(3,\)"),
        (torch.ones(2, 3, requires_grad=True), r"a Tensor of shape \(2, 3\)"),
    ],
)
def test_a_metric_that_gives_something_else_is_told(given, described):
    with pytest.raises(
        UserError, match=rf"metrics\['own'\] gives {described} for 3 classes; return"
    ):
        metrics.try_out({"own": lambda *_: given}, 3)


def test_an_own_metric_is_logged_and_decides_the_best_epoch(experiment):
    """Recomputed from the best checkpoint over the known voxels of the validation blocks."""
    tiny = experiment(text=OWN, epochs=3, best_metric="specificity", learning_rate=0.05)
    result = tiny.train()
    history = read_history(result.logs)
    best = torch.load(result.checkpoint, weights_only=True)
    values = history["validation/specificity"]
    assert best["epoch"] == 1 + int(values.argmax())
    assert result.best_metric == best["best"] == values.max()

    setup, state = prepare(tiny.config())
    state.model.load_state_dict(best["model"])
    negative = np.zeros(3)
    true_negative = np.zeros(3)
    with torch.no_grad():
        for batch in setup.validation.batches.between(0, len(setup.data.blocks)):
            is_negative = batch.target.dense() == 0
            is_found = is_negative & (state.model(batch.raw) <= 0)
            negative += is_negative.sum((0, 2, 3, 4)).numpy()
            true_negative += is_found.sum((0, 2, 3, 4)).numpy()
    row = history.iloc[best["epoch"] - 1]
    logged = [row[f"specificity/{name}"] for name in ("mito", "er", "nuc")]
    assert logged == pytest.approx(true_negative / negative)
    assert row["validation/specificity"] == pytest.approx(np.mean(logged))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("metrics = {'dice': lambda tp, fp, fn, tn: tp}", "another name"),
        ("metrics = {'a/b': lambda tp, fp, fn, tn: tp}", "another name"),
        ("metrics = {'two': lambda tp, fp: tp}", r"metric\(tp, fp, fn, tn\)"),
        ("best_metric = 'specificity'", "one of 'dice'"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_with_the_setting(experiment, text, reason):
    with pytest.raises(UserError, match=reason):
        experiment(text=text).config()


def test_a_run_from_before_goes_on_with_a_metric_more(experiment):
    tiny = experiment(epochs=2)
    tiny.train(epochs=1)
    tiny.add(OWN)
    assert tiny.train().epochs == 2
