"""The setting `augmentations`: its forms, and a sentence for each other."""

from __future__ import annotations

import dataclasses

import pytest

from bench.show_augmentations import SHAPE, STRONG
from common.config.augmentations import (
    KINDS,
    Augmentations,
    Elastic,
    augmentation_problems,
    read_augmentations,
)
from common.config.load import load_config
from common.config.other_names import unknown_setting
from common.config.settings import TrainConfig, describe
from common.errors import UserError

INPUT = {"shape": (20, 20, 20), "scale": (8.0, 8.0, 8.0)}
EVERY_KIND = {
    "scale": {"probability": 1, "factor": (0.5, 2)},
    "elastic": {"probability": 0.5, "amplitude_nm": (0, 40, 40), "spacing_nm": 200},
    "section_shift": {"probability": 0.5, "max_nm": 40},
    "section_slip": {"probability": 0.5, "max_nm": 40},
    "missing_sections": {"probability": 0.5, "number": (1, 2), "fill": "mean"},
    "section_contrast": {"probability": 0.5},
    "low_resolution": {"probability": 0.5, "voxel_nm": (16, 32), "axes": "one"},
    "blur": {"probability": 0.5, "sigma_nm": 8},
    "sharpen": {"probability": 0.5, "sigma_nm": [4, 8]},
    "gradient": {"probability": 0.5},
    "cutout": {"probability": 0.5, "edge_nm": (40, 80), "number": 2},
}


def test_every_kind_is_read_with_its_defaults():
    assert set(EVERY_KIND) == set(KINDS)
    assert augmentation_problems(EVERY_KIND, INPUT) == []
    kinds = read_augmentations(EVERY_KIND)
    assert kinds.elastic == Elastic(0.5, (0, 40, 40), (200, 200, 200))
    assert kinds.blur.sigma_nm == (8, 8) and kinds.sharpen.amount == (0.5, 1.5)
    assert kinds.cutout.number == (2, 2) and kinds.missing_sections.fill == "mean"
    assert kinds.scale.probability == 1.0 and kinds.scale.isotropic


def test_the_picture_shows_every_kind():
    assert set(STRONG) == set(KINDS)
    info = {"shape": SHAPE, "scale": (10.0, 10.0, 10.0)}
    assert augmentation_problems(STRONG, info) == []


def test_none_is_on_by_default_and_one_of_probability_0_is_off():
    assert read_augmentations({}) == Augmentations()
    assert read_augmentations({"blur": {"probability": 0, "sigma_nm": 8}}) == Augmentations()
    assert TrainConfig.recorded_defaults()["augmentations"] == "{}"


def test_every_value_of_every_kind_has_a_sentence():
    for kind in KINDS.values():
        rows = describe(kind)
        assert [row.name for row in rows] == [field.name for field in dataclasses.fields(kind)]
        assert all(row.meaning.endswith(".") for row in rows) and kind.__doc__


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"elastc": {}}, "augmentations: 'elastc' is none; did you mean 'elastic'?"),
        ({"qwqw": {}}, "augmentations: 'qwqw' is none; there are scale, elastic"),
        ({"blur": 0.5}, "augmentations['blur'] = 0.5; write a dict of probability, sigma_nm"),
        ({"blur": {"probability": 0.5}}, "augmentations['blur']: 'sigma_nm' is missing"),
        (
            {"blur": {"probability": 1, "sigma_nm": 8, "sigma": 3}},
            "'sigma' is none of probability, sigma_nm",
        ),
        ({"gradient": {"probability": 1.5}}, "['probability'] = 1.5; write a number between 0"),
        ({"gradient": {"probability": True}}, "['probability'] = True; write a number"),
        ({"blur": {"probability": 1, "sigma_nm": (8, 4)}}, "['sigma_nm'] = (8, 4); write a number"),
        ({"blur": {"probability": 1, "sigma_nm": 0}}, "['sigma_nm'] = 0; write a number above 0"),
        ({"blur": {"probability": 1, "sigma_nm": float("nan")}}, "['sigma_nm'] = nan"),
        ({"cutout": {"probability": 1, "edge_nm": 8, "number": 1.5}}, "['number'] = 1.5"),
        ({"missing_sections": {"probability": 1, "fill": "grey"}}, "one of 'black', 'mean'"),
        (
            {"low_resolution": {"probability": 1, "voxel_nm": 16, "axes": "z"}},
            "one of 'all', 'one'",
        ),
        ({"scale": {"probability": 1, "isotropic": 3}}, "['isotropic'] = 3; write True or False"),
        (
            {"elastic": {"probability": 1, "amplitude_nm": (4, 4), "spacing_nm": 99}},
            "['amplitude_nm'] = (4, 4); write a number of nm above 0, or three",
        ),
        (
            {"elastic": {"probability": 1, "amplitude_nm": 81, "spacing_nm": (900, 200, 900)}},
            "['amplitude_nm'] = 81 folds tissue between control points 200 nm apart; write at most "
            "80",
        ),
        ({"section_shift": {"probability": 1, "max_nm": 7}}, "less than a voxel of 8 nm"),
        (
            {"section_slip": {"probability": 1, "max_nm": 161}},
            "['max_nm'] = 161, and input_array_info covers 160 nm; write less",
        ),
        (
            {"blur": {"probability": 1, "sigma_nm": (8, 1e9)}},
            "['sigma_nm'] = 1e+09, and input_array_info covers 160 nm; write less",
        ),
        (
            {"elastic": {"probability": 1, "amplitude_nm": 0.001, "spacing_nm": 0.01}},
            "['spacing_nm'] = 0.01 is less than a voxel of 8 nm; write more",
        ),
        ({"scale": {"probability": 1, "factor": (1e-6, 1)}}, "write a number from 0.1 to 10, or"),
        (
            {"cutout": {"probability": 1, "edge_nm": 8, "number": 10**9}},
            "['number'] = 1000000000; write a whole number from 1 to 100",
        ),
        (
            {"low_resolution": {"probability": 1, "voxel_nm": 8}},
            "['voxel_nm'] = 8 at most, and the input's voxels have 8 nm",
        ),
        (
            {"missing_sections": {"probability": 1, "number": (1, 19)}},
            "needs an input of 21 z planes or more, and input_array_info has 20",
        ),
    ],
)
def test_a_value_that_cannot_take_effect_is_told_in_one_sentence(setting, sentence):
    (problem,) = augmentation_problems(setting, INPUT)
    assert sentence in problem and problem.startswith("augmentations")


def test_sections_need_sections_around_them():
    flat = {"shape": (1, 64, 64), "scale": (8.0, 8.0, 8.0)}
    problems = augmentation_problems(EVERY_KIND, flat)
    needed = [problem.split("'")[1] for problem in problems]
    assert needed == ["section_shift", "section_slip", "missing_sections"]


def test_a_wrong_input_shape_hides_no_other_problem():
    assert augmentation_problems(EVERY_KIND, {}) == []


def test_what_is_wrong_with_augmentations_is_told_with_all_else(tmp_path):
    path = tmp_path / "train_config.py"
    info = "{'shape': (20, 20, 20), 'scale': (8, 8, 8)}"
    path.write_text(
        "def build_model(classes): ...\nclasses = ['mito']\nbatch_size = 0\n"
        f"input_array_info = target_array_info = {info}\n"
        "augmentations = {'blur': {'probability': 2, 'sigma_nm': 8}, 'blurr': {}}\n"
    )
    with pytest.raises(UserError) as error:
        load_config(path, ["augmentations.blur.sigma_nm=-1"])
    told = [line.partition(": ")[2] for line in str(error.value).splitlines()]
    assert [line.partition(";")[0] for line in told] == [
        "batch_size = 0",
        "augmentations['blur']['probability'] = 2",
        "augmentations['blur']['sigma_nm'] = -1",
        "augmentations: 'blurr' is none",
    ]
    hint = unknown_setting("augmentation", TrainConfig.__dataclass_fields__)
    assert hint.endswith("did you mean 'augmentations'?")
