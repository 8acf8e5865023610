"""What instance_func is given beside its class: other predicted channels, and tuned options."""

from __future__ import annotations

import inspect
import json
from functools import partial

import numpy as np
import pytest

from common.config.instance_options import defaults
from common.data.volumes import records
from common.errors import UserError
from common.files import REPOSITORY
from common.infer import instances
from common.infer.processing.recipe import THRESHOLDS, load_recipe, read_recipe
from tests.infer.test_process import ABOVE, RUN, configured, processed, run, write_prediction

DIVIDED = (
    ABOVE
    + """
from common.infer.instances import remove_small, watershed_of_boundary
def instance_func(mask, probability, name, channels, *, smallest=0.0):
    return remove_small(watershed_of_boundary(mask, channels["mito_edge"]), smallest)
"""
)
SHAPE = (24, 24, 24)


def predict(tiny, **of_edge) -> None:
    """All is mito, and two boundaries leave two slabs of 12 and one of 12 layers."""
    write_prediction(tiny, "mito", np.full(SHAPE, 200, np.uint8), sha256="c" * 64)
    edge = np.zeros(SHAPE, np.uint8)
    edge[7] = edge[16] = 255
    write_prediction(tiny, "mito_edge", edge, **({"sha256": "c" * 64} | of_edge))


def test_channels_divide_objects_in_process(experiment):
    tiny = experiment()
    configured(tiny, DIVIDED)
    predict(tiny)
    run(tiny, classes=("mito",))
    ids = processed(tiny, "mito")[...]
    assert ids[[0, 10, 20], 12, 12].tolist() == [1, 2, 3] and ids.max() == 3


def test_a_channel_that_is_predicted_anew_makes_the_class_again(experiment):
    """As predict --overwrite --classes affinities leaves it, beside a class that stays."""
    tiny = experiment()
    configured(tiny, DIVIDED)
    predict(tiny, made="2026-01-01T00:00:00+00:00")
    run(tiny, classes=("mito",))
    write_prediction(
        tiny,
        "mito_edge",
        np.zeros(SHAPE, np.uint8),
        sha256="c" * 64,
        made="2026-01-02T00:00:00+00:00",
    )
    run(tiny, classes=("mito",))
    assert processed(tiny, "mito")[...].max() == 1


def test_a_channel_that_is_not_predicted_is_named_with_those_that_are(experiment):
    tiny = experiment()
    configured(tiny, DIVIDED.replace("mito_edge", "mito_edges"))
    predict(tiny)
    with pytest.raises(UserError, match=r"no channel 'mito_edges' in .*mito, mito_edge"):
        run(tiny, classes=("mito",))


def test_channels_of_another_checkpoint_or_of_other_voxels_are_refused(experiment):
    tiny = experiment()
    configured(tiny, DIVIDED)
    predict(tiny, sha256="d" * 64)
    with pytest.raises(UserError, match="mito_edge: predicted by another checkpoint"):
        run(tiny, classes=("mito",))
    predict(tiny, scale=(4, 8, 8))
    with pytest.raises(UserError, match="mito_edge: of other voxels"):
        run(tiny, classes=("mito",))


def write_options(tiny, **options) -> None:
    entry = {"threshold": 0.5, "checkpoint": "c" * 64, "options": options}
    (tiny.folder / THRESHOLDS).write_text(json.dumps({RUN: {"mito": entry}}))


def test_tuned_options_take_effect_and_are_on_record(experiment):
    tiny = experiment()
    configured(tiny, DIVIDED)
    predict(tiny)
    write_options(tiny, smallest=24 * 24 * 9 * 8.0**3)
    (folder,) = run(tiny, classes=("mito",))
    assert processed(tiny, "mito")[...].max() < 3
    stored = records.read_processed(folder / "mito")
    assert stored.options == {"smallest": 24 * 24 * 9 * 8.0**3}
    write_options(tiny, smallest=0.0)
    run(tiny, classes=("mito",))
    assert processed(tiny, "mito")[...].max() == 3


def test_a_tuned_option_that_instance_func_lost_is_refused(experiment):
    tiny = experiment()
    configured(tiny, DIVIDED)
    write_options(tiny, neck=0.3)
    with pytest.raises(UserError, match="mito has the option neck, which instance_func"):
        load_recipe(tiny.config())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instance_options = {'neck': [1]}", "without instance_func"),
        (DIVIDED + "instance_options = {'neck': [1]}", r"\['neck'\]: no argument .*: smallest"),
        (DIVIDED + "instance_options = {'smallest': 5}", "list of the values to try"),
        (DIVIDED + "instance_options = {'smallest': [math]}", "write finite numbers, words"),
        (DIVIDED + "instance_options = {'smallest': [1.0, math.inf]}", "write finite numbers"),
    ],
)
def test_options_that_cannot_be_tried_stop_the_run(experiment, text, words):
    tiny = experiment()
    configured(tiny, text if "process_func" in text else ABOVE + text)
    with pytest.raises(UserError, match=words):
        run(tiny)


def test_process_config_may_import_what_is_declared(experiment):
    tiny = experiment()
    tiny.write(
        "data.py",
        (tiny.folder / "data.py").read_text()
        + "\nfrom common.config.derived import affinities\n"
        + "derived = {'mito_affinity': affinities('mito', offsets=[(8, 0, 0)])}\n",
    )
    configured(tiny, "from .data import derived\n" + ABOVE)
    assert read_recipe(tiny.folder).settings.derived["mito_affinity"].offsets == ((8, 0, 0),)


def test_options_are_what_comes_after_mask_probability_and_name():
    def plain(mask, probability=None, name="", neck=0.5, *, channels=None, smallest=9):
        pass

    assert defaults(plain) == {"neck": 0.5, "smallest": 9}
    assert defaults(partial(plain, neck=0.7)) == {"neck": 0.7, "smallest": 9}
    assert defaults(lambda *given, neck=0.5: given) == {"neck": 0.5}

    def by_place(mask, probability, name, neck=0.5, /, smallest=9):
        pass

    assert defaults(by_place) == {"smallest": 9}


TUNED = (
    "connected_components",
    "fill_holes",
    "mutex_watershed",
    "remove_small",
    "watershed",
    "watershed_of_boundary",
    "watershed_of_distance",
)


@pytest.mark.parametrize("name", TUNED)
def test_every_option_of_a_function_of_objects_is_in_the_documents(name):
    page = (REPOSITORY / "docs" / "howto" / "objects.md").read_text()
    [line] = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    for argument in inspect.signature(getattr(instances, name)).parameters.values():
        if argument.default not in (inspect.Parameter.empty, None):  # None: a volume
            text = f"{argument.default}".removesuffix(".0")
            assert f"`{argument.name}={text}`" in line
