"""The picture of a whole validation crop shows what is there, at its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CLASSES
from scipy.special import expit

from common.data.volumes.ngff import open_levels
from common.infer.predict import predict
from common.show import figures
from common.train.recording import whole_slice
from common.train.setup import prepare
from common.train.validation import validate


def whole_of(tiny, monkeypatch, **settings):
    """The slice of the one crop that validates, by the latest checkpoint of a run."""
    settings |= {"init_output_to_prior": False, "iterations_per_epoch": 20, "epochs": 1}
    result = tiny.train(**settings)
    setup, state = prepare(tiny.config(**settings))
    assert setup.validation is not None
    saved = torch.load(result.checkpoint, weights_only=True)
    state.model.load_state_dict(saved["model"])
    made = []
    original = whole_slice.slices_of

    def kept(*arguments):
        made.extend(original(*arguments))
        return made

    monkeypatch.setattr(whole_slice, "slices_of", kept)
    scores = validate(state, setup.method, setup.validation, lambda: False)
    (whole,) = made
    return whole, scores


@pytest.mark.parametrize("target", [16, 7])
def test_a_slice_holds_raw_truth_and_prediction_of_the_crop(experiment, monkeypatch, target):
    """Blocks of 16 and of 7 voxels over a crop of 24: some stick out, none fits."""
    tiny = experiment(
        input_array_info={"shape": (target + 4,) * 3, "scale": (8, 8, 8)},
        target_array_info={"shape": (target,) * 3, "scale": (8, 8, 8)},
    )
    whole, scores = whole_of(tiny, monkeypatch)
    assert whole.seen.all() and whole.depth == 12
    crop = tiny.crop("crop3")
    truth = []
    for name in CLASSES:
        level = open_levels(crop / name)[0]
        truth.append(level.read((12, 0, 0), (13, 24, 24))[0])
    np.testing.assert_array_equal(whole.truth, np.stack(truth))
    raw = open_levels(tiny.raw)[0]
    first = np.rint((level.translation - raw.translation) / 8).astype(int)
    start = np.add(first, (12, 0, 0))
    expected = raw.read(start, np.add(start, (1, 24, 24)))[0] / 255
    np.testing.assert_allclose(whole.raw, expected, atol=1e-6)
    (folder,) = predict(tiny.folder, data=tiny.data, content="logits", dtype="float32")
    for channel, name in enumerate(CLASSES):
        logits = open_levels(folder / name)[0].read((12, 0, 0), (13, 24, 24))[0]
        np.testing.assert_allclose(whole.probability[channel], expit(logits), atol=1e-3)
    assert list(scores.slices) == ["tiny crop3"] and scores.slices["tiny crop3"].dtype == np.uint8


def test_what_no_block_has_shown_is_told_from_what_is_there(experiment, monkeypatch):
    tiny = experiment(validation_batch_limit=1, batch_size=1)
    whole, scores = whole_of(tiny, monkeypatch)
    assert 0 < whole.seen.mean() < 1 or not whole.seen.any()
    image = scores.slices[whole.title]
    assert (image == figures.GAP_RGB).all(-1).mean() > 0.2


def test_large_slices_are_made_smaller_and_small_ones_larger(experiment, monkeypatch):
    tiny = experiment()
    whole, _ = whole_of(tiny, monkeypatch)
    wide = whole.image().shape[1]
    assert wide >= 3 * 24 * 10
    monkeypatch.setattr(whole_slice, "LARGEST", 8)
    monkeypatch.setattr(whole_slice, "ENLARGED", 8)
    assert whole.image().shape[1] == 3 * 8 + 2 * 6


def test_no_crop_is_shown_if_none_is_asked_for(experiment):
    tiny = experiment(figure_crops=0)
    setup, state = prepare(tiny.config())
    scores = validate(state, setup.method, setup.validation, lambda: False)
    assert scores.images and not scores.slices


def test_a_continued_run_may_show_other_crops(experiment):
    tiny = experiment(epochs=1)
    tiny.train()
    assert tiny.train(epochs=2, figure_crops=3).epochs == 2
