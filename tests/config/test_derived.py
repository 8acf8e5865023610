"""Declarations of derived channels, and of what their heads are trained by."""

from __future__ import annotations

import dataclasses

import pytest

from common.config.derived import (
    affinities,
    background,
    border,
    boundary,
    channel_classes,
    distance,
    inner,
    with_derived,
)
from common.config.heads import Head, heads_of, main_head, range_nm
from common.errors import UserError

DECLARED = """
    from common.config.derived import affinities, background, border, boundary, distance, inner

    derived = {{{lines}}}
    """


def declared(experiment, *lines: str, **settings):
    tiny = experiment(text=DECLARED.format(lines=", ".join(lines)), **settings)
    return tiny.config()


def test_channels_are_the_classes_and_then_what_is_derived(experiment):
    config = declared(
        experiment,
        "'near': boundary('mito', inside=16, outside=8)",
        "'pairs': affinities('mito', offsets=[(8, 0, 0), (0, 0, -16)])",
        "'far': distance('nuc', clip=40)",
    )
    assert config.classes == ("mito", "er", "nuc")
    assert config.channels == ("mito", "er", "nuc", "near", "pairs_0", "pairs_1", "far")
    made_of = channel_classes(config.classes, config.derived)
    assert made_of["pairs_1"] == "mito" and made_of["far"] == "nuc" and made_of["er"] == "er"
    assert with_derived(["er", "pairs"], config.derived) == ["er", "pairs_0", "pairs_1"]
    assert range_nm(config, "far") == [-40, 40] and range_nm(config, "near") is None
    assert config.derived["pairs"].voxels((8, 8, 8)) == [(1, 0, 0), (0, 0, -2)]
    assert "offsets=((8, 0, 0), (0, 0, -16))" in config.record()["derived"]


def test_heads_are_the_classes_the_exclusive_ones_and_those_with_a_loss_of_their_own(experiment):
    config = declared(
        experiment,
        "'rest': background('mito')",
        "'between': border('mito', gap=24)",
        "'near': boundary('mito', inside=16, outside=8)",
        "'core': inner('mito', from_edge=8)",
        "'far': distance('mito', clip=40)",
        softmax=["rest", "mito", "between"],
        loss_weights={"near": 2, "far": 0.5},
    )
    assert heads_of(config) == (
        Head("classes", (1, 2, 6), "sigmoid"),
        Head("softmax", (3, 0, 4), "softmax"),
        Head("near", (5,), "sigmoid", 2.0),
        Head("far", (7,), "signed", 0.5),
    )


WRONG = {
    "'a': boundary('nuc2', inside=8, outside=8)": "'nuc2', which is not one of classes; add it",
    "'a': boundary('er', inside=8, outside=8)": "class 'er' has no ids that tell objects apart",
    "'a': boundary('mito', inside=5, outside=8)": "inside = 5 nm, less than a voxel of 8 nm",
    "'a': boundary('mito', inside=0, outside=0)": "inside and outside = 0; write a length in nm",
    "'a': inner('mito', from_edge=-8)": "from_edge = -8; write nm, 0 or more",
    "'a': border('mito', gap=float('inf'))": "gap = inf; write nm, 0 or more",
    "'a': distance('mito', clip=800)": "a raw patch is 160 nm: a network cannot tell what it does",
    "'a': affinities('mito', offsets=[(0, 0, 160)])": "is larger than the raw patch, 160 nm",
    "'a': affinities('mito', offsets=[(0, 12, 0)])": "not whole voxels of 8 nm; write (0, 16, 0)",
    "'a': affinities('mito', offsets=[(0, 0, 0)])": "offset (0, 0, 0) leads nowhere",
    "'a': affinities('mito', offsets=[(8, 0)])": "write a list of (z, y, x) in nm",
    "'a': affinities('mito', offsets=[])": "write a list of (z, y, x) in nm",
    "'a': affinities('mito', offsets=8)": "write a list of (z, y, x) in nm",
    "'a': affinities('mito', offsets=[(8, 0, 0), (8, 0, 0)])": "two offsets are the same",
    "'mito': background('mito')": "'mito' is the name of another channel or of a class",
    "'cell': background('mito')": "'cell' is the name of another channel or of a class",
    "'a/b': background('mito')": "names a folder of the prediction; write another",
    "'a': 20": "write boundary('cell', inside=20, outside=20)",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_be_declared_is_told_in_a_sentence(experiment, line):
    with pytest.raises(UserError) as told:
        declared(experiment, line)
    assert WRONG[line] in str(told.value)
    assert "train_config.py: derived['" in str(told.value)


WRONG_TOGETHER = [
    ({"softmax": ["mito", "golgi"]}, "'golgi' is no channel; there are mito, er, nuc, far"),
    ({"softmax": ["mito"]}, "name two channels or more, each once"),
    ({"softmax": ["mito", "er", "mito"]}, "name two channels or more, each once"),
    ({"softmax": ["mito", "far"]}, "'far' is a distance, and no probability"),
    ({"loss_weights": {"golgi": 1}}, "no head is called so; write one of far"),
    ({"loss_weights": {"far": -1}}, "loss_weights['far'] = -1; write a number, 0 or more"),
    ({"loss_weights": {"far": 0, "classes": 0}}, "nothing is left to learn"),
    ({"criteria": {"far": 3}}, "criteria['far'] = 3; write a function or a class"),
    ({"criteria": {"classes": None}}, "write it as criterion"),
]


@pytest.mark.parametrize(("settings", "sentence"), WRONG_TOGETHER)
def test_heads_that_are_none_are_told_in_a_sentence(experiment, settings, sentence):
    with pytest.raises(UserError) as told:
        declared(experiment, "'far': distance('mito', clip=40)", **settings)
    assert sentence in str(told.value)


def test_nested_classes_are_not_exclusive(experiment):
    tiny = experiment(classes=("mito", "mito_mem", "nuc"), softmax=["mito", "mito_mem"])
    with pytest.raises(UserError, match="a voxel may be both 'mito' and 'mito_mem'"):
        tiny.config()


def test_a_criterion_without_channels_is_told(experiment):
    text = "from common.train.losses import focal_loss as criterion"
    tiny = experiment(text=text, classes=("mito", "nuc"), softmax=["mito", "nuc"])
    assert main_head(tiny.config()) == "softmax"
    tiny.add("criteria = {'softmax': criterion}")
    with pytest.raises(UserError, match=r"criterion has no effect.*criteria, for softmax"):
        tiny.config()


def test_declarations_cannot_be_changed():
    channels = [background("a"), border("a", gap=8), inner("a", from_edge=8)]
    channels += [boundary("a", inside=8, outside=8), distance("a", clip=8)]
    channels.append(affinities("a", offsets=[[8, 0, 0]]))
    for channel in channels:
        assert hash(channel) == hash(dataclasses.replace(channel))
