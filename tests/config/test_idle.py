"""Settings without anything to do in a run are told."""

from __future__ import annotations

import dataclasses

import pytest

from common.config.idle import idle_settings
from common.config.settings import TrainConfig

PLAIN = TrainConfig(lambda classes: None, ("mito",), {}, {}, epochs=10)


@pytest.mark.parametrize(
    ("beside", "name", "value"),
    [
        ({}, "early_stopping_patience", 10),
        ({}, "preview_every", 11),
        ({}, "validation_score_every", 11),
        ({"weight_loss": False}, "pos_weight_cap", 50.0),
        ({"weighted_sampler": False}, "positive_centre_fraction", 0.8),
        ({}, "intensity_probability", 0.9),
        ({"num_workers": 0}, "worker_time_limit", 5.0),
        ({}, "mlflow_uri", "http://host:5000"),
        ({"trackers": (print,)}, "mlflow_uri", "http://host:5000"),
        ({"trackers": ("tensorboard", print)}, "mlflow_parent", "1234"),
    ],
)
def test_a_setting_without_effect_is_told_and_one_with_effect_is_not(beside, name, value):
    (sentence,) = idle_settings(dataclasses.replace(PLAIN, **beside, **{name: value}))
    assert sentence.startswith(f"{name} = {value!r} ")
    active = {
        "early_stopping_patience": 9,
        "preview_every": 10,
        "validation_score_every": 10,
    }
    helped = {
        "intensity_probability": {"noise_std": 0.1},
        "mlflow_uri": {"trackers": ("mlflow", print)},
        "mlflow_parent": {"trackers": ("tensorboard", "mlflow")},
    }
    used = {**helped.get(name, {}), name: active.get(name, value)}
    assert idle_settings(dataclasses.replace(PLAIN, **used)) == []


@pytest.mark.parametrize(("patience", "told"), [(2, 1), (1, 0)])
def test_of_epochs_that_are_scored_alone_as_many_are_waited_for(patience, told):
    every_fifth = {"validation_score_every": 5, "best_metric": "challenge"}
    config = dataclasses.replace(PLAIN, early_stopping_patience=patience, **every_fifth)
    assert len(idle_settings(config)) == told


@pytest.mark.parametrize(("fraction", "told"), [(1.0, 1), (0.9, 0)])
def test_counter_examples_that_no_patch_is_placed_in_are_told(fraction, told):
    config = dataclasses.replace(PLAIN, counter_classes=("er",), positive_centre_fraction=fraction)
    sentences = idle_settings(config)
    assert len(sentences) == told
    assert all(sentence.startswith("counter_classes: ") for sentence in sentences)


@pytest.mark.parametrize(
    ("path", "told"),
    [("out/{run_name}", 1), ("/scratch/logs/{run_name}", 0), ("tensorboard/{model_name}", 0)],
)
def test_runs_that_unite_does_not_find_by_itself_are_told(path, told):
    sentences = idle_settings(dataclasses.replace(PLAIN, logs_save_path=path))
    assert len(sentences) == told
    assert all("unite and report find runs in folders called logs or" in text for text in sentences)


def test_defaults_are_not_told_whatever_stands_beside_them():
    config = dataclasses.replace(
        PLAIN, weight_loss=False, weighted_sampler=False, num_workers=0, trackers=()
    )
    assert idle_settings(config) == []
