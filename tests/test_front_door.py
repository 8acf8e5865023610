"""The names that scripts of this field import, over the engine."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import CLASSES, DEADLINE, datasplit_text
from torch import nn

import cellmap_segmentation_challenge as csc
import common.train.run
from cellmap_segmentation_challenge.utils import (
    CellMapLossWrapper,
    get_class_relations,
    get_dataloader,
    get_tested_classes,
    load_safe_config,
)
from common.classes import TESTED
from common.config.derived import distance
from common.data.samples import targets
from common.data.samples.batches import training_batches
from common.data.samples.loaders import open_data
from common.errors import UserError
from common.files import REPOSITORY
from common.train.recording.record import read_history

INPUT, TARGET = ({"shape": (n, n, n), "scale": (8, 8, 8)} for n in (20, 16))


def python(program: str, **how) -> str:
    """What a program prints in a process of its own."""
    words = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, check=True, **how, timeout=DEADLINE
    ).stdout


# Names


def test_train_is_that_of_the_engine_and_scores_whole_crops_like_the_command(experiment, run):
    tiny = experiment(validation_score_every=1, epochs=1)
    assert inspect.signature(csc.train) == inspect.signature(common.train.run.train)
    result = csc.train(tiny.folder, data=tiny.data, run_name="function")
    run("train", tiny.folder, "--data", tiny.data, "--set", "run_name=command")
    names = ("function", "command")
    histories = [read_history(result.logs.parent / name) for name in names]
    first, second = (history["validation/challenge"].tolist() for history in histories)
    assert first == second and 0 <= first[0] <= 1


def test_train_takes_another_score(experiment):
    tiny = experiment(validation_score_every=1)
    with pytest.raises(UserError, match="nothing to score with"):
        csc.train(tiny.folder, data=tiny.data, score=None)


@pytest.mark.parametrize(
    "name, address",
    [
        ("evaluate", "common.score.evaluate"),
        ("visualize", "common.show.visualize"),
    ],
)
def test_the_commands_are_functions_of_the_package(name, address):
    module = importlib.import_module(address)
    assert getattr(csc, name) is getattr(module, name)


def test_a_run_is_predicted_processed_and_scored_by_the_name_it_was_trained_under(experiment):
    tiny = experiment(epochs=1)
    csc.train(tiny.folder, data=tiny.data, run_name="mine")
    of_run = {"crops": ["crop1", "crop3"], "data": tiny.data, "run_name": "mine"}
    folders = csc.predict(tiny.folder, classes="mito,er", **of_run)
    assert [folder.parent.parent.name for folder in folders] == ["mine", "mine"]
    csc.process(tiny.folder, **of_run)
    scores = csc.evaluate(tiny.folder, classes=["mito", "er"], say=lambda line: None, **of_run)
    assert set(scores.classes) == {"mito", "er"}


def test_train_takes_a_path(experiment):
    tiny = experiment()
    assert csc.train(tiny.folder / "train_config.py", data=tiny.data, epochs=1).epochs == 1


@pytest.mark.parametrize("name", ["visualise", "nonsense"])
def test_what_is_not_there_cannot_be_imported(name):
    with pytest.raises(ImportError, match=name):
        exec(f"from cellmap_segmentation_challenge import {name}")
    assert not hasattr(csc, name)


def test_what_utils_does_not_have_cannot_be_imported():
    with pytest.raises(ImportError, match="upload_file"):
        exec("from cellmap_segmentation_challenge.utils import upload_file")


def test_a_submodule_that_is_ours_is_no_name_of_another():
    from cellmap_segmentation_challenge.utils import dataloader

    assert dataloader.get_dataloader is get_dataloader


def test_importing_it_imports_nothing_heavy():
    program = """
        import sys
        import cellmap_segmentation_challenge.utils
        print({"torch", "numpy", "zarr", "click"} & set(sys.modules))
        from cellmap_segmentation_challenge.utils import get_tested_classes, load_safe_config
        print({"torch", "zarr", "click"} & set(sys.modules))
        """
    assert python(program) == "set()\nset()\n"


# Classes, splits, configurations


def test_the_tested_classes_are_48_in_the_order_of_the_challenge():
    assert get_tested_classes() == list(TESTED) and len(TESTED) == 48
    assert (get_tested_classes()[0], get_tested_classes()[-1]) == ("ecs", "ne_mem_all")


def test_changing_the_list_of_tested_classes_changes_no_other():
    get_tested_classes().clear()
    assert len(get_tested_classes()) == 48


def test_class_relations_name_what_excludes_each_class():
    relations = get_class_relations(named_classes=get_tested_classes())
    assert relations["cell"] == {"ecs"}
    assert set(TESTED) - relations["mt"] == {"mt", "cell", "mt_in", "mt_out"}
    assert "er" not in relations["nuc"] and "nuc" not in relations["er"]


def test_class_relations_cover_the_whole_table_unless_classes_are_named():
    assert len(get_class_relations()) == 74
    assert get_class_relations(["ecs", "er"]) == {"ecs": {"er"}, "er": {"ecs"}}


@pytest.mark.parametrize("names", [["ecs", "mitto"], "mitto"])
def test_class_relations_of_an_unknown_class_are_refused(names):
    with pytest.raises(UserError, match=r"'mitto'.*'mito'"):
        get_class_relations(names)


def test_a_configuration_gives_its_names(tmp_path):
    (tmp_path / "shared.py").write_text("_hidden = 1\nclasses = ['er']\nhere = __file__\n")
    config = load_safe_config(tmp_path / "shared.py")
    assert config.classes == ["er"] and config.here == str(tmp_path / "shared.py")
    assert config.get("classes") == ["er"]
    assert config.get("epochs") is None
    assert config.get("epochs", 3) == 3
    assert config.to_dict() == {"classes": ["er"], "here": str(tmp_path / "shared.py")}


def test_a_name_that_a_configuration_lacks_is_an_attribute_error(tmp_path):
    (tmp_path / "shared.py").touch()
    assert getattr(load_safe_config(tmp_path / "shared.py"), "epochs", 3) == 3


def test_a_configuration_cannot_be_forced_to_be_safe(tmp_path):
    (tmp_path / "shared.py").touch()
    with pytest.raises(UserError, match="force_safe"):
        load_safe_config(tmp_path / "shared.py", force_safe=True)


def test_a_configuration_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_safe_config(tmp_path / "nowhere.py")


# Loaders


@pytest.fixture
def loaders(experiment):
    """The loaders over the tiny data, with settings."""

    def make(**settings):
        tiny = experiment()
        settings = {
            "iterations_per_epoch": 3,
            "num_workers": 0,
            "device": "cpu",
            "data_path": tiny.data,
            **settings,
        }
        return get_dataloader(tiny.folder / "datasplit.csv", CLASSES, 2, INPUT, TARGET, **settings)

    return make


def same(one: dict, two: dict) -> bool:
    return all(
        torch.equal(one[name].nan_to_num(9), two[name].nan_to_num(9))
        for name in ("input", "output")
    )


def test_a_batch_is_a_dict_of_input_and_output(loaders):
    for loader in loaders():
        batch = next(iter(loader))
        assert set(batch) == {"input", "output"}
        assert (batch["input"].shape, batch["input"].dtype) == ((2, 1, 20, 20, 20), torch.float32)
        assert (batch["output"].shape, batch["output"].dtype) == ((2, 3, 16, 16, 16), torch.float32)


def test_raw_is_between_0_and_1(loaders):
    raw = torch.cat([batch["input"] for batch in loaders()[0]])
    assert 0 <= raw.min() < 0.3 < raw.max() <= 1


def test_an_unknown_voxel_is_nan_and_others_are_0_or_1(loaders):
    train, _ = loaders(use_mutual_exclusion=False, infer_groups=False)
    labels = torch.cat([batch["output"] for batch in train])
    assert set(labels[~labels.isnan()].tolist()) == {0.0, 1.0}
    only_mito = labels[:, 1].isnan().flatten(1).all(1)  # crop2 annotates mito alone
    assert only_mito.any() and not only_mito.all()
    assert labels[only_mito, 2].isnan().all() and not labels[only_mito, 0].isnan().any()


def test_true_negatives_are_known(loaders):
    train, _ = loaders(infer_groups=False, iterations_per_epoch=10)
    labels = torch.cat([batch["output"] for batch in train])
    partial = labels[labels[:, 1].isnan().flatten(1).any(1)]
    assert torch.equal(partial[:, 1].nan_to_num(9) == 0, partial[:, 0] == 1)


def test_batches_are_those_of_the_trainer(loaders, experiment):
    config = experiment("other", iterations_per_epoch=3).config()
    data = open_data(config)
    expected = list(training_batches(config, data, torch.device("cpu")).between(0, 6))
    for batch, other in zip(loaders()[0], expected, strict=True):
        assert torch.equal(batch["input"], other.raw)
        assert torch.equal(batch["output"].nan_to_num(-1), targets.dense(other.target).float())


SECTIONS = "raw_sections = 1\ncounter_classes = ['nuc']\n"


def test_batches_of_a_configuration_are_those_of_its_training(experiment):
    """With all that changes raw and labels, and not with what it imports."""
    tiny = experiment(text=SECTIONS, classes=("mito", "er"), iterations_per_epoch=3)
    config = tiny.config()
    expected = training_batches(config, open_data(config), torch.device("cpu")).between(0, 6)
    tiny.add("from torch import softmax")
    train, _ = get_dataloader(
        tiny.folder / "datasplit.csv",
        config=load_safe_config(tiny.folder / "train_config.py"),
        data_path=tiny.data,
    )
    for batch, other in zip(train, expected, strict=True):
        assert torch.equal(batch["input"], other.raw)
        assert torch.equal(batch["output"].nan_to_num(-1), targets.dense(other.target).float())


def test_distances_below_zero_are_no_unknown_voxels(loaders):
    train, _ = loaders(derived={"d": distance("nuc", clip=50)})
    labels = torch.cat([batch["output"] for batch in train])[:, 3]
    assert -1 <= labels[~labels.isnan()].min() < 0 < labels[~labels.isnan()].max() <= 1


def test_a_training_loader_goes_on_where_it_stopped(loaders):
    train, _ = loaders()
    first, second = list(train), list(train)
    assert len(train) == len(first) == len(second) == 3
    assert not any(same(one, two) for one in first for two in second)


def test_a_validation_loader_repeats_itself(loaders):
    _, validation = loaders()
    first, second = list(validation), list(validation)
    assert len(validation) == len(first) == 4  # eight blocks of 16^3 cover a crop of 24^3
    assert all(same(one, two) for one, two in zip(first, second, strict=True))


def test_scripts_of_the_toolbox_iterate_over_loader(loaders):
    train, _ = loaders()
    assert len(list(train.loader)) == 3


def test_equal_seeds_give_equal_batches_and_others_do_not(tmp_path, data_root, monkeypatch):
    (tmp_path / "datasplit.csv").write_text(datasplit_text())
    monkeypatch.setenv("CELLMAP_DATA", str(data_root))
    monkeypatch.chdir(tmp_path)

    def first(**settings):
        train, _ = get_dataloader(
            "datasplit.csv", CLASSES, 1, INPUT, TARGET, num_workers=0, device="cpu", **settings
        )
        return next(iter(train))

    assert same(first(random_seed=1), first(random_seed=1))
    assert not same(first(random_seed=1), first(random_seed=2))
    monkeypatch.setenv("SEED", "2")
    assert same(first(), first(random_seed=2))


def test_a_split_without_validation_gives_no_validation_loader(experiment):
    tiny = experiment("other")
    rows = (tiny.folder / "datasplit.csv").read_text().splitlines(keepends=True)
    tiny.write("datasplit.csv", "".join(row for row in rows if row.startswith('"train')))
    _, validation = get_dataloader(
        tiny.folder / "datasplit.csv", CLASSES, 2, INPUT, TARGET, data_path=tiny.data
    )
    assert validation is None


def test_the_target_is_as_large_as_the_input_unless_given(experiment):
    tiny = experiment()
    path = tiny.folder / "datasplit.csv"
    train, _ = get_dataloader(
        path, ["er"], input_array_info=TARGET, data_path=tiny.data, num_workers=0, device="cpu"
    )
    batch = next(iter(train))
    assert batch["input"].shape == batch["output"].shape == (1, 1, 16, 16, 16)


def test_an_unknown_keyword_is_refused(loaders):
    with pytest.raises(UserError, match=r"get_dataloader: .*'weighted_samplr'.*'weighted_sampler'"):
        loaders(weighted_samplr=True)


def test_a_setting_without_effect_on_data_is_refused(loaders):
    with pytest.raises(UserError, match="get_dataloader: learning_rate"):
        loaders(learning_rate=1.0)


def test_settings_of_a_loader_are_checked(loaders):
    with pytest.raises(UserError, match=r"get_dataloader: .*'flip'"):
        loaders(spatial_transforms={"flip": {}})


def test_every_setting_of_a_loader_exists():
    from cellmap_segmentation_challenge.utils.dataloader import DATA_SETTINGS
    from common.config.settings import describe

    assert {name for name, _, _ in describe()} >= DATA_SETTINGS
    assert not DATA_SETTINGS & set(inspect.signature(get_dataloader).parameters)


# The loss


def half_known(shape=(2, 3, 4, 4, 4)):
    """Random logits and a target that is unknown in half of its voxels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, requires_grad=True)
    target = (torch.rand(shape, generator=generator) > 0.5).float()
    target[torch.rand(shape, generator=generator) > 0.5] = torch.nan
    return logits, target


CRITERIA = [
    (nn.BCEWithLogitsLoss, {}),
    (nn.BCEWithLogitsLoss, {"pos_weight": torch.full((3, 1, 1, 1), 5.0)}),
    (nn.MSELoss, {}),
    (nn.L1Loss, {}),
    (nn.HuberLoss, {"delta": 0.3}),
]


@pytest.mark.parametrize(("loss_class", "options"), CRITERIA, ids=str)
def test_the_loss_is_that_of_torch_on_the_known_voxels(loss_class, options):
    logits, target = half_known()
    known = ~target.isnan()
    every = loss_class(**options, reduction="none")(logits, torch.where(known, target, 0))
    loss = CellMapLossWrapper(loss_class, **options)(logits, target)
    torch.testing.assert_close(loss, every[known].mean())


def test_a_half_known_target_weighs_as_much_as_a_known_one():
    target = torch.tensor([[1.0, torch.nan]])
    loss = CellMapLossWrapper(nn.BCEWithLogitsLoss)(torch.zeros(1, 2), target)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())  # the public toolbox gives half of it


def test_unknown_voxels_get_no_gradient():
    logits, target = half_known()
    CellMapLossWrapper(nn.BCEWithLogitsLoss)(logits, target).backward()
    assert torch.equal(logits.grad == 0, target.isnan())


def test_a_target_of_which_nothing_is_known_costs_nothing():
    logits, target = half_known()
    loss = CellMapLossWrapper(nn.BCEWithLogitsLoss)(logits, torch.full_like(target, torch.nan))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_an_output_that_is_nan_at_a_known_voxel_is_not_hidden():
    loss = CellMapLossWrapper(nn.MSELoss)(torch.tensor([torch.nan, 1.0]), torch.tensor([1.0, 1.0]))
    assert loss.isnan()


def test_the_target_is_left_as_it_is():
    logits, target = half_known()
    before = target.clone()
    CellMapLossWrapper(nn.MSELoss)(logits, target)
    torch.testing.assert_close(target, before, equal_nan=True)


@pytest.fixture
def two_arrays():
    """(wrapper, outputs, targets, their mean loss)."""
    output, target = half_known()
    other_output, other_target = half_known((1, 1, 8, 8, 8))
    wrapper = CellMapLossWrapper(nn.MSELoss)
    expected = (wrapper(output, target) + wrapper(other_output, other_target)) / 2
    return wrapper, [output, other_output], [target, other_target], expected


def test_outputs_by_name_go_with_targets_by_name(two_arrays):
    wrapper, (first, second), targets_in_order, expected = two_arrays
    by_name = dict(zip("ab", targets_in_order, strict=True))
    torch.testing.assert_close(wrapper({"b": second, "a": first}, by_name), expected)


@pytest.mark.parametrize("kind", [list, tuple])
def test_outputs_in_order_go_with_targets_by_name(two_arrays, kind):
    wrapper, outputs, targets_in_order, expected = two_arrays
    by_name = dict(zip("ab", targets_in_order, strict=True))
    torch.testing.assert_close(wrapper(kind(outputs), by_name), expected)


def test_outputs_and_targets_in_order_are_averaged(two_arrays):
    wrapper, outputs, targets_in_order, expected = two_arrays
    torch.testing.assert_close(wrapper(outputs, targets_in_order), expected)


def test_outputs_by_name_need_targets_by_name(two_arrays):
    wrapper, (first, second), targets_in_order, _ = two_arrays
    with pytest.raises(UserError, match="by name"):
        wrapper({"b": second, "a": first}, targets_in_order)


def test_as_many_outputs_as_targets_are_needed():
    logits, target = half_known()
    with pytest.raises(UserError, match="1 outputs for 2"):
        CellMapLossWrapper(nn.MSELoss)([logits], {"a": target, "b": target})


def test_a_criterion_without_a_loss_for_each_element_is_refused():
    logits, target = half_known()
    with pytest.raises(UserError, match="CrossEntropyLoss"):
        CellMapLossWrapper(nn.CrossEntropyLoss)(logits, target)


def test_the_wrapped_criterion_can_be_looked_at():
    wrapper = CellMapLossWrapper(nn.HuberLoss, delta=0.3)
    assert isinstance(wrapper.loss_fn, nn.HuberLoss) and wrapper.loss_fn.delta == 0.3
    assert wrapper.kwargs == {"delta": 0.3, "reduction": "none"}
