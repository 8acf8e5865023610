"""One network for each class, with the other classes as counter-examples."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from common.errors import UserError
from common.infer.networks.ensemble import load_network
from common.train.checkpointing.checkpoint import best_of
from common.train.several import each_class


def test_each_class_has_a_run_of_its_own_and_the_others_are_counter_examples(experiment, run):
    tiny = experiment(epochs=1, iterations_per_epoch=1, run_name="all{random_seed}")
    code, _, said = run("train", tiny.folder, "--each-class", "--data", tiny.data)
    assert code == 0
    assert "3 networks, each at its best epoch: dice" in said
    for name, others in {"mito": ("er", "nuc"), "er": ("mito", "nuc")}.items():
        config = each_class.members(tiny.folder, [name], data=tiny.data)[name]
        assert config.classes == (name,)
        assert config.counter_classes == others
        assert config.run == f"all42-{name}"
        network = load_network(config, str(best_of(config)))
        # crop2 annotates mito alone, and gives counter-examples of er
        assert network.trained_on == {"tiny/crop1", "tiny/crop2"}
    # each goes on, and is done
    code, _, said = run("train", tiny.folder, "--each-class", "--data", tiny.data)
    assert code == 0
    assert "3 networks" in said


def test_classes_that_exclude_none_are_no_counter_examples(experiment):
    tiny = experiment(use_mutual_exclusion=False)
    with pytest.raises(UserError, match="--each-class with use_mutual_exclusion = False"):
        each_class.train_each_class(tiny.folder, data=tiny.data)


def test_what_is_said_of_several_channels_is_left_to_the_network_that_has_them(
    experiment, monkeypatch, capsys
):
    tiny = experiment(
        text="""
        from common.config.derived import boundary

        derived = {"edge": boundary("nuc", inside=16, outside=16)}
        softmax = ("mito", "er")
        class_sampling_weights = {"er": 2.0}
        """
    )
    of_mito = each_class.members(tiny.folder, ["mito"], data=tiny.data)["mito"]
    assert of_mito.channels == ("mito",)
    assert (of_mito.softmax, of_mito.class_sampling_weights) == ((), {})
    assert "class_sampling_weights={}" in each_class.settings_of(tiny.config(), "er")
    monkeypatch.setattr(each_class, "train", lambda *_, **__: SimpleNamespace(finished=False))
    each_class.train_each_class(tiny.folder, data=tiny.data)
    assert "class_sampling_weights, derived, softmax: of several" in capsys.readouterr().err


def test_counter_examples_of_the_experiment_stay_beside_the_other_classes(experiment):
    tiny = experiment(classes=("mito", "er"), counter_classes=("nuc",))
    of_mito = each_class.members(tiny.folder, ["mito"], data=tiny.data)["mito"]
    assert of_mito.counter_classes == ("er", "nuc")


def test_networks_of_all_classes_in_one_folder_are_refused(experiment):
    tiny = experiment(model_save_path="checkpoints/{model_name}")
    with pytest.raises(UserError, match=r"model_save_path = .* write \{run_name\} in it"):
        each_class.train_each_class(tiny.folder, data=tiny.data)


@pytest.mark.parametrize("word", ["--check", "--seeds=1,2"])
def test_options_of_one_network_are_refused_beside_each_class(experiment, run, word):
    code, _, said = run("train", experiment().folder, "--each-class", word)
    assert code == 2
    assert "--each-class trains one network after the other" in said
