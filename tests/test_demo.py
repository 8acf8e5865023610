"""The demo's parts on the tiny experiment, whose validation crop is 24^3 voxels in blocks of 16^3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from common import demo, loaders, ngff, steps, train


@pytest.fixture
def trained(experiment):
    tiny = experiment()
    return tiny, tiny.train()


def parts(tiny):
    config = tiny.config()
    data, device = loaders.open_data(config), torch.device("cpu")
    torch.manual_seed(0)
    model = train.build_model(config, device)
    return data, model, train.begin(config, model, data, device, train.runtime.pick_precision("fp32", device))[1], train.validation_batches(config, data, device)


def test_a_crop_is_put_together_of_its_blocks(experiment):
    tiny = experiment(init_output_to_prior=False)
    data, model, method, batches = parts(tiny)
    [(raw, target, logits)] = demo.predict_crops(model, method, batches)
    image = ngff.open_levels(tiny.raw)[0].array[:]
    start = (ngff.open_levels(tiny.crop("crop3") / "mito")[0].translation / 8).astype(int)
    inside = tuple(slice(a, a + 24) for a in start)
    np.testing.assert_allclose(raw, image[inside] / 255, atol=1e-6)
    for channel, name in enumerate(("mito", "er", "nuc")):
        np.testing.assert_array_equal(target[channel], ngff.open_levels(tiny.crop("crop3") / name)[0].array[:])
    around = np.pad(image, 8, mode="reflect")[tuple(slice(a + 6, a + 34) for a in start)]  # 2 voxels more on each side
    with torch.no_grad():
        whole = model(torch.from_numpy(around / 255).float()[None, None])[0].numpy()
    np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_the_picture_counts_what_the_validation_counted(trained, tmp_path):
    tiny, result = trained
    counts, picture = demo.show(tiny.config(), result.checkpoint.parent / "latest.pt", tmp_path / "demo.png")
    np.testing.assert_allclose(steps.metrics(*counts)["dice"], result.scores.per_class["dice"], atol=1e-6)
    with Image.open(picture) as image:
        assert min(image.size) > 90


def test_the_table_has_a_line_for_each_class_that_occurs():
    counts = np.array([[8.0, 0.0, 3.0], [2.0, 1.0, 0.0], [2.0, 0.0, 3.0]])
    lines = demo.table(("mito", "er", "nuc"), counts).splitlines()
    assert [line.split()[0] for line in lines] == ["class", "mito", "nuc", "mean"]
    assert lines[1].split()[1:] == ["0.800", "0.667", "0.800", "0.800", "10"]
    assert lines[3].split()[1] == f"{(0.8 + 2 * 3 / (2 * 3 + 3)) / 2:.3f}"
