"""What a script gives is what the command line would have said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.config.arguments import as_typed
from common.errors import UserError


@as_typed("dtype")
def command(config_path, crops="validate", *, classes=(), volume="", overrides=(), **output):
    return {"crops": crops, "classes": classes, "overrides": overrides, **output}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"crops": ["crop1", "crop3"]}, {"crops": "crop1,crop3"}),
        ({"crops": 3}, {"crops": "3"}),
        ({"crops": None}, {"crops": "validate"}),
        ({"classes": "mito, er"}, {"classes": ("mito", "er")}),
        (
            {"predictions_path": Path("a/b"), "raw_range": np.array([0, 255])},
            {"overrides": ("predictions_path=a/b", "raw_range=[0, 255]")},
        ),
        ({"learning_rate": np.float64(0.5)}, {"overrides": ("learning_rate=0.5",)}),
        ({"overrides": "run_name=a"}, {"overrides": ("run_name=a",)}),
        ({"overrides": ["a=1", "b=2"]}, {"overrides": ("a=1", "b=2")}),
        (
            {"overrides": {"run_name": "a", "learning_rate": 0.5}},
            {"overrides": ("run_name=a", "learning_rate=0.5")},
        ),
        (
            {"overrides": ("run_name=a",), "run_name": "b", "dtype": "uint8"},
            {"overrides": ("run_name=a", "run_name=b"), "dtype": "uint8"},
        ),
        ({}, {"crops": "validate", "classes": (), "overrides": ()}),
    ],
)
def test_what_a_script_gives_is_put_into_the_words_of_the_command_line(given, taken):
    result = command("x", **given)
    assert {name: result[name] for name in taken} == taken


def test_crops_may_be_given_by_their_place():
    assert command("x", ["crop1"])["crops"] == "crop1"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"crop": "crop1"}, r"command has no argument 'crop', .*did you mean 'crops'\?"),
        ({"run_nme": "a"}, r"did you mean 'run_name'\?"),
        ({"xyzzy": 1}, r"no setting is called so$"),
    ],
)
def test_a_name_that_is_no_argument_and_no_setting_is_told(given, words):
    with pytest.raises(TypeError, match=words):
        command("x", **given)


def test_what_the_command_line_cannot_say_is_told():
    with pytest.raises(UserError, match=r"criterion = .*; write another kind into train_config.py"):
        command("x", criterion=print)


def test_an_array_is_no_volume():
    with pytest.raises(UserError, match=r"volume: an array; write it to a file"):
        command("x", volume=np.zeros((2, 2, 2)))
