"""Which rows of a datasplit a run is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.settings import TrainConfig
from common.data.samples.rows import of_parts, that_count, without_effect
from common.data.splits.split import Row, split_hash

MITO = ("mito_mem", "mito_lum", "mito_ribo")


PATCH = {"shape": (12, 12, 12), "scale": (8, 8, 8)}


def config(*classes: str, **settings) -> TrainConfig:
    return TrainConfig(
        build_model=lambda classes: None,
        classes=classes,
        input_array_info=PATCH,
        target_array_info=PATCH,
        **settings,
    )


def row(*annotated: str, usage: str = "train", crop: str = "crop1") -> Row:
    return Row(usage, Path("a.zarr/em"), Path("a.zarr", crop), annotated)


@pytest.mark.parametrize(
    ("annotated", "learnt", "trains", "validates"),
    [
        (MITO, "mito", True, True),
        # outside of its membrane nothing says whether there is mitochondrion
        (("mito_mem",), "mito", True, False),
        (("mito",), "mito_mem", False, False),
        (("nuc",), "mito", False, False),
        (("granule_core",), "granule", True, False),
        (("er_mem", "er_lum"), "golgi", False, False),
    ],
)
def test_crops_that_annotate_parts_of_a_class_count(annotated, learnt, trains, validates):
    extra = {"extra_classes": ("granule", "granule_core")}
    relations = {"granule": {"contains": ["granule_core"]}}
    settings = config(learnt, class_relations=relations, **extra)
    assert that_count([row(*annotated)], settings) == [row(*annotated)] * trains
    validating = row(*annotated, usage="validate")
    assert that_count([validating], settings) == [validating] * validates
    alone = config(learnt, class_relations=relations, infer_groups=False, **extra)
    assert that_count([row(*annotated), validating], alone) == [] or learnt in annotated


def test_a_run_from_before_they_counted_goes_on_without_them():
    named = row("mito", crop="crop2")
    rows = [row(*MITO), named]
    asked = []

    def begun_with(rows):
        asked.append(rows)
        return split_hash(rows)

    assert that_count(rows, config("mito"), lambda: begun_with([named])) == [named]
    assert that_count(rows, config("mito"), lambda: begun_with(rows)) == rows
    assert that_count(rows, config("mito")) == rows
    # a checkpoint is only read where it matters
    assert that_count([named], config("mito"), lambda: begun_with([])) == [named]
    assert len(asked) == 2


def test_they_are_said():
    rows = [row(*MITO), row("mito", crop="crop2"), row("mito_mem", usage="validate", crop="crop3")]
    (said,) = of_parts(rows, ("mito",), ())
    assert said.startswith("1 training crop annotates no class that is learnt, and parts of one")
    assert "(mito_mem, mito_lum, mito_ribo), which is positive there: a/crop1; leave" in said
    assert of_parts(rows[1:], ("mito",), ()) == []
    assert of_parts(rows, ("mito",), ("mito_mem",)) == []


def test_classes_of_settings_of_which_no_crop_says_a_thing_are_said():
    settings = config(
        "mito",
        "granule",
        extra_classes=("granule", "granul"),
        class_relations={"granul": {"excludes": ["mito"]}},
        counter_classes=("er", "golgi"),
    )
    said = without_effect([row("mito", "er", "granule"), row("golgi", usage="validate")], settings)
    so = "neither learnt nor annotated in a training crop, and so without effect"
    assert said == [
        f"counter_classes: {so}: golgi; leave it out, or add crops of it",
        f"extra_classes: {so}: granul; did you mean 'granule'?",
        f"class_relations: {so}: granul; did you mean 'granule'?",
    ]
    assert without_effect([row("mito", "er")], config("mito", counter_classes=("er",))) == []


def test_a_class_of_which_parts_are_known_has_an_effect():
    """What excludes it excludes its parts."""
    relations = {"organelle": {"contains": ["mito"], "excludes": ["granule"]}}
    settings = config("mito_mem", "granule", class_relations=relations, extra_classes=("granule",))
    assert without_effect([row("mito_mem", "granule")], settings) == []
    settings = config("mito_mem", "er", exclusive_classes=("mito", "er"))
    assert without_effect([row("mito_mem", "er")], settings) == []
