"""Settings: read from a file, overridden, checked, and on record."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEADLINE

from common.config import groups, other_names
from common.config import settings as settings_module
from common.config.kinds import fit
from common.config.load import load_config, load_process_config
from common.config.overrides import read_overrides
from common.config.settings import ProcessConfig, TrainConfig, describe
from common.errors import UserError
from common.files import REPOSITORY

FOLDERS = sorted(
    path.parent
    for path in REPOSITORY.glob("**/train_config.py")
    if not {".venv", "demo"} & set(path.parts)
)
"""Every experiment of the repository."""

OR_OWN = " If not, list a class of your own in extra_classes"
INFO = '{"shape": (20, 20, 20), "scale": (8, 8, 8)}'


@pytest.fixture
def file(tmp_path):
    """Writes a train_config.py with these lines after the required settings."""

    def write(text: str = "", required: str | None = None) -> Path:
        path = tmp_path / "mine" / "train_config.py"
        path.parent.mkdir(exist_ok=True)
        needed = f"""
            def build_model(classes): ...
            classes = ["mito", "er"]
            input_array_info = {INFO}
            target_array_info = {INFO}
            """
        path.write_text(
            textwrap.dedent(needed if required is None else required) + textwrap.dedent(text)
        )
        return path

    return write


def problems(path, *overrides, **settings) -> list[str]:
    """What is wrong, a line each, without the name of the file."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides, **settings)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


# Names


def test_a_misspelt_setting_is_refused_with_the_nearest_name(file):
    assert problems(file("learning_rte = 1e-3")) == [
        "unknown setting 'learning_rte'; did you mean 'learning_rate'?"
    ]


def test_the_file_is_named_relative_to_the_working_folder(file, monkeypatch):
    path = file("learning_rte = 1e-3")
    monkeypatch.chdir(path.parents[1])
    with pytest.raises(UserError, match=r"^mine/train_config\.py: "):
        load_config(path)


def test_a_name_that_is_like_no_setting_is_refused_with_a_way_out(file):
    assert problems(file("zebra = 1")) == [
        "unknown setting 'zebra'; remove it, or begin its name with _ if it is not a setting"
    ]


def test_a_setting_of_the_public_toolbox_that_does_not_exist_here_says_what_does(file):
    assert problems(file("dataloader_kwargs = {}\nmodel = None")) == [
        "unknown setting 'dataloader_kwargs'; num_workers is the one that is left of it",
        "unknown setting 'model'; give build_model(classes), which is called after seeding",
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lr", "did you mean 'learning_rate'?"),
        ("LR", "did you mean 'learning_rate'?"),
        ("seed", "did you mean 'random_seed'?"),
        ("amp", "did you mean 'precision'?"),
        ("gpus", "did you mean 'device'?"),
        ("workers", "did you mean 'num_workers'?"),
        ("patience", "did you mean 'early_stopping_patience'?"),
        ("loss", "did you mean 'criterion'?"),
        ("split", "did you mean 'datasplit_path'?"),
        ("momentum", "give it to the optimizer: functools.partial(torch.optim.SGD, momentum=0.9)"),
        ("torch_compile", "did you mean 'compile'?"),
    ],
)
def test_a_name_of_other_programs_is_told_the_setting_or_what_to_do(file, name, hint):
    assert problems(file(), f"{name}=1") == [f"--set {name}=1: unknown setting '{name}'; {hint}"]


def test_names_of_other_programs_are_no_settings_and_what_they_point_to_is():
    settings = {field.name for field in dataclasses.fields(TrainConfig)}
    tables = (other_names.OTHER_NAMES, other_names.NOT_HERE, other_names.TOOLBOX_NAMES)
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names)) and settings.isdisjoint(names)
    assert set(other_names.OTHER_NAMES.values()) <= settings


def test_a_processing_configuration_is_not_told_settings_of_training(file, tmp_path):
    path = tmp_path / "process_config.py"
    path.write_text("def process_func(logits): ...\nclasses = ['mito']\nlr = 1\nbs = 2\n")
    with pytest.raises(UserError) as caught:
        load_process_config(path)
    first, second = str(caught.value).splitlines()
    assert "'lr'; remove it" in first and "did you mean 'batch_size'?" in second


def test_what_a_toolbox_name_points_to_is_a_setting_or_an_option(file):
    known = {row.name for row in settings_module.describe()}
    known |= {"make-datasplit", "functools.partial", "labels", "fetch"}
    for name, hint in other_names.TOOLBOX_NAMES.items():
        assert name not in known, name
        assert any(word in hint for word in known), name


def test_an_upper_case_setting_is_not_taken_for_a_constant(file):
    assert problems(file("BATCH_SIZE = 4")) == [
        "unknown setting 'BATCH_SIZE'; did you mean 'batch_size'?"
    ]


def test_what_a_configuration_works_with_is_no_setting(file):
    text = """
        import math
        from functools import partial
        from common.classes import TESTED
        ROUNDS = 3
        _half = 0.5
        def thrice(n): return 3 * n
        class Thing: ...
        epochs = thrice(ROUNDS)
        """
    assert load_config(file(text)).epochs == 9


def test_annotations_may_be_postponed(file):
    required = (
        "from __future__ import annotations\ndef build_model(classes: X): ...\nclasses = ['er']\n"
    )
    path = file(f"input_array_info = target_array_info = {INFO}", required)
    assert load_config(path).classes == ("er",)


# Everything wrong in one message


def test_everything_that_is_wrong_is_told_at_once(file):
    text = """
        learning_rte = 1
        batch_size = "four"
        gamma_range = (2, 1)
        classes = ["mitto", "er", "er"]
        spatial_transforms = {"rotate": {"axes": {"x": 180}}, "flip": {}}
        run_name = "{sed}"
        scheduler_kwargs = {"gamma": 0.1}
        """
    lines = problems(file(text), "epochs=0", "nonsense")
    beginnings = [
        "--set nonsense",
        "unknown setting 'learning_rte'",
        "batch_size = 'four'",
        "gamma_range",
        "epochs = 0",
        "class 'er' stands 2 times",
        "unknown class 'mitto'; did you mean 'mito'?",
        "spatial_transforms['rotate']",
        "spatial_transforms: 'flip'",
        "run_name = '{sed}'",
        "scheduler_kwargs",
    ]
    assert len(lines) == len(beginnings)
    for beginning in beginnings:
        assert sum(line.startswith(beginning) for line in lines) == 1, beginning


def test_each_missing_setting_is_told_with_its_meaning(file):
    lines = problems(file(required=""))
    needed = ("build_model", "classes", "input_array_info", "target_array_info")
    assert [line.partition(";")[0] for line in lines] == [f"'{n}' is missing" for n in needed]
    assert "order of the output channels" in lines[1]


# Types and checks


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("batch_size = 'four'", "batch_size = 'four'; write a whole number"),
        ("batch_size = 2.5", "batch_size = 2.5; write a whole number"),
        ("batch_size = True", "batch_size = True; write a whole number"),
        ("batch_size = 0", "batch_size = 0; write a whole number from 1 to 1000000000"),
        (
            "gradient_accumulation_steps = 10**9",
            "gradient_accumulation_steps = 1000000000; write a whole number from 1 to 10000",
        ),
        ("epochs = 10**10", "epochs = 10000000000; write a whole number from 1 to 1000000000"),
        (
            "epochs = iterations_per_epoch = 10**9\nbatch_size = 100",
            "epochs = 1000000000, iterations_per_epoch = 1000000000, batch_size = 100: more "
            "samples than can be counted; write fewer",
        ),
        ("figure_crops = 10**6", "figure_crops = 1000000; write a whole number from 0 to 1000"),
        (
            "worker_time_limit = 1e12",
            "worker_time_limit = 1000000000000.0; write a number from 0 to 1e+09",
        ),
        ("noise_std = 12", "noise_std = 12.0; write a number from 0 to 1"),
        ("learning_rate = -1", "learning_rate = -1.0; write a number above 0"),
        ("learning_rate = float('nan')", "learning_rate = nan; write a number above 0"),
        ("learning_rate = float('inf')", "learning_rate = inf; write a number above 0"),
        ("weight_decay = -0.1", "weight_decay = -0.1; write 0 or more"),
        ("noise_std = '0.1'", "noise_std = '0.1'; write a number"),
        (
            "intensity_probability = 1.5",
            "intensity_probability = 1.5; write a number between 0 and 1",
        ),
        ("random_seed = 2**63", f"random_seed = {2**63}; write a whole number from 0 to 2**63 - 1"),
        ("weight_loss = 1", "weight_loss = 1; write True or False"),
        ("model_name = 3", "model_name = 3; write text in quotes"),
        ("model_kwargs = [1]", "model_kwargs = [1]; write a dict"),
        ("build_model = 'unet'", "build_model = 'unet'; write a function or a class"),
        ("precision = 'half'", "precision = 'half'; write one of 'auto', 'bf16', 'fp16', 'fp32'"),
        (
            "best_metric = 'f1'",
            "best_metric = 'f1'; write one of 'dice', 'iou', 'precision', 'recall', 'loss'",
        ),
        (
            "gamma_range = (1.1, 0.9)",
            "gamma_range = (1.1, 0.9); write two numbers (low, high) from 0 to 10, in order",
        ),
        ("raw_range = (255, 0)", "raw_range = (255, 0); write two numbers (low, high), low first"),
        (
            "raw_range = (0, 1, 2)",
            "raw_range = (0, 1, 2); write two numbers (low, high), low first",
        ),
        (
            "raw_range = (-float('inf'), 255)",
            "raw_range = (-inf, 255); write two numbers (low, high), low first",
        ),
        ("raw_range = ('0', '1')", "raw_range = ('0', '1'); write a flat list of numbers"),
        ("classes = [['mito', 'er']]", "classes = [['mito', 'er']]; write a flat list of names"),
        ("classes = {'mito': 1}", "classes = {'mito': 1}; write a flat list of names"),
        ("classes = []", "classes is empty; name at least one class"),
        (
            "exclusive_classes = ['mito', 'mito_mem']",
            "exclusive_classes: 'mito' and 'mito_mem' share voxels by the class table; leave one "
            "of them out",
        ),
        (
            "exclusive_classes = ['mito', 'er']\nuse_mutual_exclusion = False",
            "exclusive_classes = ('mito', 'er') with use_mutual_exclusion = False, which takes no "
            "class for negative where another is; leave one of them out",
        ),
        (
            "preview_every = 5\nfigure_crops = 0",
            "preview_every = 5 with figure_crops = 0, which shows no crop; write figure_crops = 1",
        ),
        (
            "preview_tiff = True",
            "preview_tiff without preview_every; write preview_every = 10",
        ),
        (
            "exclusive_classes = ['er']",
            "exclusive_classes = ('er',); name two or more, each once, or leave it out",
        ),
        (
            "exclusive_classes = ['er', 'er']",
            "exclusive_classes = ('er', 'er'); name two or more, each once, or leave it out",
        ),
        (
            "counter_classes = ['mitto']",
            f"counter_classes: unknown class 'mitto'; did you mean 'mito'?{OR_OWN}",
        ),
        (
            "classes = ['er']\ncounter_classes = ['er', 'mito']",
            "counter_classes: er is learnt; take it out of one",
        ),
        (
            "class_relations = {'zebra': {'excludes': ['mitto']}}",
            "class_relations['zebra']['excludes']: unknown class 'mitto'; did you mean 'mito'?"
            f"{OR_OWN}",
        ),
        (
            "class_relations = {'zebra': {'excludes': ['mito']}}\nuse_mutual_exclusion = False",
            "class_relations: 'excludes' with use_mutual_exclusion = False, which takes no class "
            "for negative where another is; leave one of them out",
        ),
        (
            "class_relations = {'../zebra': {}}",
            "class_relations: '../zebra'; it is a name and no path; write it without / and \\ and "
            "signs that do not print",
        ),
        ("classes = ['er', 'er', 'er']", "class 'er' stands 3 times in classes; write it once"),
        ("classes = ['mitto']", f"unknown class 'mitto'; did you mean 'mito'?{OR_OWN}"),
        ("classes = ['zebra']", "unknown class 'zebra'; list a class of your own in extra_classes"),
        (
            "results_path = '{epoch}'",
            "results_path = '{epoch}'; "
            "in braces write only {model_name}, {random_seed}, {run_name}",
        ),
        (
            "model_save_path = '{run_name!r}'",
            "model_save_path = '{run_name!r}'; "
            "in braces write only {model_name}, {random_seed}, {run_name}",
        ),
        (
            "logs_save_path = 'logs/{run_name}/../../../x'",
            "logs_save_path = 'logs/{run_name}/../../../x'; it leads out of the experiment's "
            "folder; write a folder in it, or an absolute path if another place is meant",
        ),
        ("data_path = 'a\\0b'", "data_path = 'a\\x00b'; write text without a zero byte"),
        (
            "extra_classes = ['../mito']",
            "extra_classes: '../mito'; it is a name and no path; "
            "write it without / and \\ and signs that do not print",
        ),
        ("run_name = 'a{'", "run_name = 'a{'; in braces write only {model_name}, {random_seed}"),
        (
            "scheduler_kwargs = {'step_size': 3}",
            "scheduler_kwargs = {'step_size': 3} without a scheduler; set scheduler too",
        ),
        ("scheduler_kwargs = 7", "scheduler_kwargs = 7; write a dict"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_to_write(file, text, problem):
    assert problems(file(text)) == [problem]


@pytest.mark.parametrize("name", ["scheduler_kwargs", "input_channels"])
@pytest.mark.parametrize("value", [7, np.zeros(2)])
def test_what_is_no_dict_is_refused_by_keyword_too(file, name, value):
    with pytest.raises(UserError, match=rf"{name} = (7|\[?0|array).*; write a dict"):
        load_config(file(), **{name: value})


@pytest.mark.parametrize("setting", ["run_name", "model_name"])
@pytest.mark.parametrize(
    "name", ["../x", "..", ".", ".x", "/tmp/x", "a/b", "a\\b", "a\nb", "-x", " a", "a ", "a" * 201]
)
def test_the_name_of_a_run_or_model_is_no_path(file, setting, name):
    path = file("")
    with pytest.raises(
        UserError, match=rf"{setting} = .*; (it is a name and no path|write a name)"
    ):
        load_config(path, **{setting: name})


@pytest.mark.parametrize(
    "field",
    ["model_name.__class__", "model_name[0]", "model_name!r", "random_seed:>9", "", "0", "epochs"],
)
@pytest.mark.parametrize("setting", ["run_name", "predictions_path"])
def test_braces_hold_the_names_of_settings_alone(file, setting, field):
    path = file("")
    with pytest.raises(UserError, match=r"in braces write only \{model_name}, \{random_seed}"):
        load_config(path, [f"{setting}=a{{{field}}}"])


def test_names_and_folders_that_are_meant_are_taken(file):
    path = file("")
    for name in ("lr=1e-4", "seed 7, wide", "v1.2", "Größe", "{model_name}-{random_seed}", "{{x}}"):
        load_config(path, run_name=name)
    for folder in ("/scratch/{run_name}", "~/runs", "a/../b", "out/{model_name}", "..x"):
        load_config(path, predictions_path=folder, logs_save_path=folder)
    load_config(path, data_path="../data", cache_path="../cache", datasplit_path="../split.csv")
    assert load_config(path, model_name="").model_name == path.parent.name


def test_a_target_that_reaches_beyond_its_input_is_refused(file):
    (problem,) = problems(
        file(
            "input_array_info = {'shape': (20, 20, 20), 'scale': (8, 8, 8)}\n"
            "target_array_info = {'shape': (16, 16, 16), 'scale': (40, 40, 40)}"
        )
    )
    assert "target_array_info covers 640 nm, and input_array_info 160 nm" in problem


@pytest.mark.parametrize("target", ["(16, 16, 16)", "(20, 20, 20)", "(1, 20, 20)"])
def test_a_target_within_its_input_is_taken(file, target):
    path = file(
        "input_array_info = {'shape': (20, 20, 20), 'scale': (5.24, 4, 4)}\n"
        f"target_array_info = {{'shape': {target}, 'scale': (5.2402, 4, 4)}}"
    )
    assert load_config(path).input_array_info["shape"] == (20, 20, 20)


@pytest.mark.parametrize("address", ["s3://bucket/data", "https://host/data"])
def test_a_data_root_is_a_folder_on_this_machine(file, address, monkeypatch):
    with pytest.raises(UserError, match=f"{address}: remote stores are not read; copy it"):
        load_config(file(""), data=address)
    monkeypatch.setenv("CELLMAP_DATA", address)
    with pytest.raises(UserError, match="remote stores are not read"):
        load_config(file(""))


@pytest.mark.parametrize(
    "value",
    [
        "{'shape': (20, 20, 20)}",
        "{'shape': (20, 20, 20), 'scale': (8, 8)}",
        "{'shape': (20, 20, 20.5), 'scale': (8, 8, 8)}",
        "{'shape': (20, 20, 0), 'scale': (8, 8, 8)}",
        "{'shape': (20, 20, 20), 'scale': (8, 8, -8)}",
        "{'shape': (20, 20, 20), 'scale': (8, 8, float('nan'))}",
        "{'shape': (20,), 'scale': (8,)}",
        "{'shape': (20, 20, 20), 'scale': 10**400}",
        "{'shape': (20, 20, 10**400), 'scale': (8, 8, 8)}",
        "{'shape': (20, 20, 20), 'scale': (8, 8, 10**400)}",
        "{'shape': (20, 20, 20), 'scale': (8, 8, 8j)}",
        "{'shape': (True, 20, 20), 'scale': (8, 8, 8)}",
        "{'shape': (20, 20, 20), 'scale': '888'}",
        "{'shape': (20, 20, 20), 'scale': (8, 8, 8), 'name': 'em'}",
    ],
)
def test_an_array_info_of_another_form_is_refused(file, value):
    (problem,) = problems(file(f"input_array_info = {value}"))
    assert problem.endswith('; write {"shape": (z, y, x) in voxels, "scale": (z, y, x) in nm}')


def test_several_input_arrays_are_refused(file):
    (problem,) = problems(file(f"input_array_info = {{'em': {INFO}, 'mask': {INFO}}}"))
    assert "several are not supported" in problem


def test_one_number_is_that_along_every_axis(file):
    text = "input_array_info = target_array_info = {'shape': 64, 'scale': 8}"
    assert load_config(file(text)).input_array_info == {"shape": (64,) * 3, "scale": (8.0,) * 3}
    halo = typing.get_type_hints(ProcessConfig, include_extras=True)["halo"]
    assert fit(halo, 8) == ((8, 8, 8), "")


def test_a_2d_shape_is_one_voxel_thick(file):
    info = "{'shape': (64, 48), 'scale': (8, 4)}"
    config = load_config(file(f"input_array_info = target_array_info = {info}"))
    assert config.input_array_info == {"shape": (1, 64, 48), "scale": (8.0, 8.0, 4.0)}


@pytest.mark.parametrize(
    "value",
    [
        "{'mirror': {'axes': {'x': 1.5}}}",
        "{'mirror': {'axes': ['x']}}",
        "{'mirror': {'axes': {'w': 0.5}}}",
        "{'mirror': {'x': 0.5}}",
        "{'mirror': 0.5}",
        "{'rotate': {'axes': {'x': 180}}}",
        "{'rotate': {'axes': {'x': [180, -180]}}}",
        "{'rotate': {'axes': {'x': [0, float('inf')]}}}",
        "{'rotate': {'axes': {'x': [0, 1000]}}}",
        "{'rotate': {'axes': {'x': [-3.1416, 3.1416]}}}",
        "{'rotate': {'axes': {'x': [0, 1.5708]}}}",
        "{'transpose': {'axes': {'x': 1}}}",
        "{'transpose': {'axes': ['x', 'x']}}",
        "{'transpose': {'axes': [['x', 'y']]}}",
        "{'flip': {'axes': {'x': 0.5}}}",
    ],
)
def test_a_spatial_transform_of_another_form_is_refused(file, value):
    (problem,) = problems(file(f"spatial_transforms = {value}"))
    assert problem.startswith("spatial_transforms")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "def build_model(): ...",
            "build_model = train_config.build_model: too many positional arguments",
        ),
        (
            "model_kwargs = {'depth': 3}",
            "build_model = train_config.build_model: got an unexpected keyword argument",
        ),
        (
            "def optimizer(parameters, lr): ...",
            "optimizer = train_config.optimizer: got an unexpected keyword",
        ),
        (
            "def scheduler(optimizer, gamma): ...",
            "scheduler = train_config.scheduler: missing a required argument",
        ),
        (
            "def criterion(logits): ...",
            "criterion = train_config.criterion: too many positional arguments",
        ),
        (
            "class criterion:\n    def __init__(self, alpha): ...",
            "criterion = train_config.criterion: missing a required argument",
        ),
    ],
)
def test_a_function_that_cannot_take_what_it_will_be_given_is_refused(file, text, problem):
    (sentence,) = problems(file(text))
    assert sentence.startswith(problem)


def test_what_goes_wrong_inside_a_function_is_not_looked_at(file):
    text = """
        class Net:
            def __init__(self, classes, depth):
                raise TypeError("got an unexpected keyword argument 'paddng'")
        build_model = Net
        model_kwargs = {"depth": 3}
        """
    assert load_config(file(text)).model_kwargs == {"depth": 3}


def test_whole_numbers_fit_where_numbers_are_wanted(file):
    assert repr(load_config(file("learning_rate = 1")).learning_rate) == "1.0"


def test_numbers_and_names_of_numpy_are_those_of_python(file):
    text = """
        import numpy as np
        classes = list(np.array(["mito", "er"]))
        epochs = np.int64(7)
        learning_rate = np.float32(0.5)
        channels_last = np.bool_(False)
        raw_range = (np.float64(1), np.int32(2))
        class_sampling_weights = {np.str_("er"): np.float64(2)}
        scheduler = __import__("torch").optim.lr_scheduler.CosineAnnealingLR
        """
    config = load_config(file(text))
    plain = {
        "classes": ("mito", "er"),
        "epochs": 7,
        "learning_rate": 0.5,
        "channels_last": False,
        "raw_range": (1.0, 2),
        "class_sampling_weights": {"er": 2.0},
        # as long as the run
        "scheduler_kwargs": {"T_max": 7},
    }
    record = config.record()
    assert {name: record[name] for name in plain} == {n: repr(v) for n, v in plain.items()}


def test_one_class_needs_no_list(file):
    assert load_config(file("classes = 'mito'")).classes == ("mito",)


def test_a_class_of_ones_own_is_known_once_it_is_listed(file):
    assert load_config(file("classes = ['zebra']\nextra_classes = ['zebra']")).classes == ("zebra",)
    declared = "classes = ['zebra']\nclass_relations = {'zebra': {'excludes': ['mito']}}"
    assert load_config(file(declared)).classes == ("zebra",)


# --set, SEED, CELLMAP_DATA, --data


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("batch_size=3", "batch_size", 3),
        ("learning_rate=1e-5", "learning_rate", 1e-5),
        ("learning-rate=1e-5", "learning_rate", 1e-5),
        ("weight_loss=false", "weight_loss", False),
        ("classes=mito,er", "classes", ("mito", "er")),
        ("classes=['er']", "classes", ("er",)),
        ("raw_range=10,200", "raw_range", (10, 200)),
        ("run_name=7", "run_name", "7"),
        ("run_name=a=b", "run_name", "a=b"),
        (
            "input_array_info.shape=[44,44,44]",
            "input_array_info",
            {"shape": (44, 44, 44), "scale": (8.0, 8.0, 8.0)},
        ),
        (
            "spatial_transforms.rotate.axes.z=[-9, 9]",
            "spatial_transforms",
            {"rotate": {"axes": {"z": [-9, 9]}}},
        ),
    ],
)
def test_set_overrides_a_setting(file, override, name, value):
    assert getattr(load_config(file("batch_size = 2"), [override]), name) == value


def test_set_inside_a_dict_leaves_its_other_keys_and_the_dict_itself_alone(file):
    given = {"a": 1, "b": {"c": 2, "d": 3}}
    path = file("def build_model(classes, a, b): ...")
    config = load_config(path, ["model_kwargs.b.c=9"], model_kwargs=given)
    assert config.model_kwargs == {"a": 1, "b": {"c": 9, "d": 3}}
    assert given == {"a": 1, "b": {"c": 2, "d": 3}}


def test_a_key_is_taken_as_it_is_written(file):
    config = load_config(file(), ["crop-sampling-weights.jrc_hela-2/*=2"])
    assert config.crop_sampling_weights == {"jrc_hela-2/*": 2}


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("batch_size", "--set batch_size: no '='; write --set name=value"),
        (
            "batchsize=3",
            "--set batchsize=3: unknown setting 'batchsize'; did you mean 'batch_size'?",
        ),
        (
            "classes.x=3",
            "--set classes.x=3: classes has no parts with names; write --set classes=value",
        ),
        ("batch_size=many", "batch_size = 'many'; write a whole number"),
        pytest.param(
            f"batch_size={'-' * 4000}1",
            f"batch_size = '{'-' * 199}...; write a whole number",
            id="deeper than Python reads",
        ),
    ],
)
def test_a_wrong_override_is_refused(file, override, problem):
    assert problems(file(), override) == [problem]


def test_seed_of_the_environment_goes_before_the_file(file, monkeypatch):
    monkeypatch.setenv("SEED", "7")
    assert load_config(file("random_seed = 3")).random_seed == 7


def test_a_seed_that_is_no_whole_number_is_refused(file, monkeypatch):
    monkeypatch.setenv("SEED", "seven")
    assert problems(file()) == [
        "SEED is 'seven' in the environment; write a whole number, or unset it"
    ]


def test_an_override_goes_before_the_environment(file, monkeypatch):
    monkeypatch.setenv("SEED", "7")
    assert load_config(file(), ["random_seed=8"]).random_seed == 8
    assert load_config(file(), random_seed=9).random_seed == 9


def test_the_data_root_comes_from_the_file_then_the_environment_then_the_argument(
    file, monkeypatch, tmp_path
):
    for name in ("file", "environment", "argument"):
        (tmp_path / name).mkdir()
    path = file(f"data_path = {str(tmp_path / 'file')!r}")
    assert load_config(path).path("data_path") == tmp_path / "file"
    monkeypatch.setenv("CELLMAP_DATA", str(tmp_path / "environment"))
    assert load_config(path).path("data_path") == tmp_path / "environment"
    assert load_config(path, data=tmp_path / "argument").path("data_path") == tmp_path / "argument"


def test_a_data_root_of_a_script_goes_before_the_environment(file, monkeypatch, tmp_path):
    monkeypatch.setenv("CELLMAP_DATA", str(tmp_path))
    assert load_config(file(), data_path="/elsewhere").data_path == "/elsewhere"


def test_the_data_root_is_relative_to_the_repository_unless_given(file):
    assert load_config(file()).path("data_path") == REPOSITORY / "data"


def test_a_given_data_root_is_relative_to_the_working_folder(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_config(file(), data="mine").path("data_path") == tmp_path / "mine"


def test_a_data_root_that_is_no_folder_is_refused(file, monkeypatch):
    assert problems(file(), data="/nowhere") == [
        "the data root /nowhere is no folder; write the one that holds the datasets"
    ]
    monkeypatch.setenv("CELLMAP_DATA", "/neither")
    assert problems(file())[0].startswith("the data root /neither is no folder")


def test_an_empty_variable_is_as_good_as_none(file, monkeypatch):
    monkeypatch.setenv("CELLMAP_DATA", "")
    monkeypatch.setenv("CELLMAP_CACHE", "")
    config = load_config(file())
    assert config.path("data_path") == REPOSITORY / "data"
    assert config.path("cache_path") == REPOSITORY / "cache"


# Paths


def test_paths_start_from_the_folder_of_the_file(file):
    path = file("random_seed = 5\nrun_name = 'lr{random_seed}'")
    config = load_config(path)
    assert config.path("model_save_path") == path.parent / "checkpoints/mine/lr5"
    assert config.path("datasplit_path") == path.parent / "datasplit.csv"


def test_braces_in_other_paths_are_kept(file):
    config = load_config(file("datasplit_path = 'a{b}.csv'"))
    assert config.path("datasplit_path").name == "a{b}.csv"


def test_a_path_object_is_a_path(file):
    text = "from pathlib import Path\nbase_experiment_path = Path(__file__).parent / 'elsewhere'"
    path = file(text)
    assert load_config(path).folder == path.parent / "elsewhere"


def test_a_folder_stands_for_the_train_config_in_it(file):
    assert load_config(file("epochs = 3").parent).epochs == 3


def test_a_path_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such configuration"):
        load_config(tmp_path / "nowhere")


def test_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "datasplit.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"datasplit\.csv: no such configuration"):
        load_config(tmp_path / "datasplit.csv")


# What ran is on record


def test_settings_are_frozen(file):
    config = load_config(file())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3


def test_the_record_of_an_experiment_is_the_same_wherever_and_whenever_it_is_read(file, tmp_path):
    text = """
        from functools import partial
        class Act: ...
        def loss(logits, target, pos_weight, power): ...
        def build_model(classes, act, made, parts): ...
        criterion = partial(loss, power=2)
        model_kwargs = {"act": Act, "made": Act(), "parts": [loss, (1,)]}
        """
    path = file(text)
    shutil.copytree(path.parent, tmp_path / "copy")
    record = load_config(path).record()
    of_copy = load_config(tmp_path / "copy").record()
    different = {name for name in record if record[name] != of_copy[name]}
    assert different == {"base_experiment_path", "model_name"}
    assert record["criterion"] == "train_config.loss(power=2)"
    assert record["model_kwargs"] == (
        "{'act': train_config.Act, 'made': train_config.Act(), 'parts': [train_config.loss, (1,)]}"
    )


def test_groups_hold_names_of_settings():
    every = {name: names for name, names in vars(groups).items() if name.isupper()}
    assert len(every) > 8
    known = {setting.name for setting in dataclasses.fields(TrainConfig)}
    for group, names in every.items():
        assert known >= set(names), group


@pytest.mark.parametrize("table", [TrainConfig, ProcessConfig])
def test_a_setting_is_read_by_what_it_is_for(table):
    """One that nothing reads outside of config/, where it is checked, would do nothing."""
    modules = (REPOSITORY / "common").rglob("*.py")
    readers = [path for path in modules if "config" not in path.parts or path.stem == "heads"]
    engine = "".join(path.read_text() for path in readers)
    read = set(re.findall(r"\.(\w+)", engine)) | set(re.findall(r'"(\w+)"', engine))
    assert {row.name for row in describe(table)} <= read


def test_commands_after_training_read_no_setting_of_training_alone():
    for room in ("infer", "show", "shell"):
        for path in (REPOSITORY / "common" / room).rglob("*.py"):
            if path.name in ("suggest.py", "doctor.py"):  # what is asked before training
                continue
            read = set(re.findall(r"\bconfig\.(\w+)", path.read_text()))
            assert not read & groups.OF_TRAINING, path


@pytest.mark.parametrize("table", [TrainConfig, ProcessConfig])
def test_every_setting_is_described_by_a_sentence(table):
    rows = settings_module.describe(table)
    names = [f.name for f in dataclasses.fields(table)]
    # a record of how settings came about is none itself
    assert [name for name, _, _ in rows] == [
        name for name in names if name not in ("translated", "missing_split")
    ]
    for name, _, meaning in rows:
        assert meaning.endswith((".", "`")) and " " in meaning and "\n" not in meaning, name


def test_the_described_default_is_the_default():
    defaults = {row.name: row.default for row in settings_module.describe()}
    assert defaults["classes"] == "required"
    assert defaults["cache_gb"] == "100.0"
    assert defaults["model_kwargs"] == "{}"
    assert defaults["optimizer"] == "None"


# Files of one folder


def test_a_copied_experiment_builds_its_own_model(experiment):
    model = "def build_model(classes):\n    return 'of the copy'\n"
    original = experiment().config()
    copy = experiment("copy", files={"model.py": model}).config()
    assert isinstance(original.build_model(("er",)), torch.nn.Module)
    assert copy.build_model(("er",)) == "of the copy"


def test_an_edited_file_is_read_anew(experiment):
    tiny = experiment()
    for number in (3, 4, 5):  # of the same length, and in the same second
        tiny.write(
            "data.py",
            f"classes = ['er']\ninput_array_info = target_array_info = {INFO}\nepochs = {number}\n",
        )
        tiny.write("train_config.py", "from .data import *\nfrom .model import build_model\n")
        assert tiny.config().epochs == number


@pytest.mark.parametrize("line", ["halo = 8", "thresholds = {'er': 0.4}"])
def test_a_setting_of_process_in_data_that_is_not_imported_is_a_sentence(experiment, line):
    tiny = experiment()
    tiny.write("data.py", (tiny.folder / "data.py").read_text() + f"{line}\n")
    name = line.split()[0]
    with pytest.raises(UserError, match=f"data.py has {name}, .* write `from .data import {name}`"):
        load_process_config(tiny.folder)


def test_a_setting_of_both_in_data_may_be_that_of_training_alone(experiment):
    tiny = experiment()
    tiny.write("data.py", (tiny.folder / "data.py").read_text() + "batch_size = 2\n")
    tiny.add("from .data import batch_size\n")
    assert tiny.config().batch_size == 2
    assert load_process_config(tiny.folder).batch_size == 8


@pytest.mark.parametrize("line", ["derived = {}", "weight_loss = False", "softmax = ('er',)"])
def test_a_setting_of_data_that_is_not_imported_is_a_sentence(experiment, line):
    tiny = experiment()
    tiny.write("data.py", (tiny.folder / "data.py").read_text() + f"{line}\n")
    name = line.split()[0]
    with pytest.raises(UserError, match=f"data.py has {name}, .* write `from .data import {name}`"):
        tiny.config()


def test_reading_leaves_nothing_in_the_folder(experiment):
    tiny = experiment()
    before = sorted(tiny.folder.rglob("*"))
    tiny.config()
    assert sorted(tiny.folder.rglob("*")) == before


def test_a_folder_may_have_any_name(experiment):
    assert experiment("2. my-unet é").config().epochs == 2


@pytest.mark.parametrize(
    "path", ["Path(__file__)", "UPath(__file__)", "Path(str(UPath(__file__)))"]
)
def test_settings_may_be_shared_as_in_the_toolbox(file, path):
    text = f"""
        from pathlib import Path
        from upath import UPath
        from cellmap_segmentation_challenge.utils import get_tested_classes, load_safe_config
        config = load_safe_config({path}.parent / "shared.py", force_safe=False)
        classes = get_tested_classes()
        batch_size = config.batch_size
        epochs = config.get("epochs", 12)
        """
    target = file(text)
    (target.parent / "shared.py").write_text("import math\nfrom .deeper import batch_size\n")
    (target.parent / "deeper.py").write_text("batch_size = 3\n")
    config = load_config(target)
    assert (config.batch_size, config.epochs, len(config.classes)) == (3, 12, 48)


def test_one_configuration_may_read_another_beside_it(experiment):
    tiny = experiment(batch_size=5)
    text = """
        from cellmap_segmentation_challenge.utils import load_safe_config

        config_path = __file__.replace("process_config", "train_config")
        config = load_safe_config(config_path)
        batch_size = getattr(config, "batch_size", 8)
        classes = config.classes
        input_array_info = config.input_array_info
        def process_func(x): return x > 0
        """
    tiny.write("process_config.py", text)
    assert load_process_config(tiny.folder).batch_size == 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "epochs = many",
            r"train_config.py: line 6 of train_config.py: NameError: name 'many' is not defined",
        ),
        (
            "epochs = (",
            r"train_config.py: line 6 of train_config.py: SyntaxError: '\(' was never closed",
        ),
        ("from .broken import x", r"line 2 of broken.py: ZeroDivisionError: division by zero"),
        ("from broken import x", r"line 2 of broken.py: ZeroDivisionError: division by zero"),
        (
            "from .nowhere import x",
            r"line 6 of train_config.py: ModuleNotFoundError: No module named 'experiment.*'",
        ),
    ],
)
def test_a_file_that_does_not_run_is_told_with_its_line(file, text, reason):
    path = file(text)
    (path.parent / "broken.py").write_text("\n1 / 0\n")
    with pytest.raises(UserError, match=reason):
        load_config(path)


# process_config.py


def test_a_process_config_is_checked(experiment):
    tiny = experiment()
    text = "from .data import classes, input_array_info\nbatchsize = 3\ndef process_func(): ..."
    tiny.write("process_config.py", text)
    with pytest.raises(UserError) as caught:
        load_process_config(tiny.folder)
    first, second = str(caught.value).splitlines()
    assert first.endswith("unknown setting 'batchsize'; did you mean 'batch_size'?")
    assert "process_config.process_func: too many positional arguments" in second
    assert "`process_func(logits)`" in second


# The experiments of the repository


def test_the_baselines_are_there():
    baselines = {"setup_04_all", "unet8_all", "unet32_all", "unet128_all", "resenc8_all"}
    assert baselines <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
class TestExperiment:
    """Each folder of the repository that holds a train_config.py."""

    def test_its_configuration_is_right(self, folder):
        found = load_config(folder)
        assert found.model_name == folder.name and found.folder == folder

    def test_its_split_lies_beside_it(self, folder):
        assert load_config(folder).path("datasplit_path").is_file()

    def test_its_process_config_fits_its_train_config(self, folder):
        train, process = load_config(folder), load_process_config(folder)
        assert process.classes == train.classes

    @pytest.mark.parametrize("array", [np.array, torch.tensor])
    def test_its_process_func_marks_voxels_above_one_half(self, folder, array):
        logits = array([-2.0, 0.0, 2.0]).reshape(1, 1, 1, 1, 3)
        mask = load_process_config(folder).process_func(logits)
        assert type(mask) is type(logits) and mask.shape == (1, 1, 1, 1, 3)
        assert mask.flatten().tolist() == [0, 0, 1]

    def test_it_is_complete(self, folder):
        needed = {
            "__init__.py",
            "model.py",
            "data.py",
            "train_config.py",
            "process_config.py",
            "README.md",
        }
        assert not needed - {path.name for path in folder.iterdir()}


def test_reading_a_configuration_needs_no_network_and_builds_nothing():
    program = """
        import socket, sys
        def refuse(*_): raise AssertionError("network")
        socket.socket.connect = socket.getaddrinfo = refuse
        from common.config.load import load_config, load_process_config
        for folder in sys.argv[1:]:
            load_config(folder)
            load_process_config(folder)
        heavy = {"leibnetz", "cellmap_models", "cellmap_data", "zarr", "tensorboard"}
        print(heavy & set(sys.modules))
        """
    words = [sys.executable, "-c", textwrap.dedent(program), *map(str, FOLDERS)]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    assert done.stdout == "set()\n"


# What is drawn how often, and a user's own augmentation


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("augment = lambda raw: raw", "too many positional arguments"),
        ("class_sampling_weights = {'nobody': 2}", "['nobody']: not one of classes"),
        ("class_sampling_weights = {'mito': -1}", "['mito'] = -1"),
        ("class_sampling_weights = {'mito': True}", "['mito'] = True"),
        ("crop_sampling_weights = {'a/*': 0}", "['a/*'] = 0"),
        ("crop_sampling_weights = {1: 2.0}", "1 is no pattern; write dataset/crop in quotes"),
        ("class_sampling_weights = {'mito': 2}\nweighted_sampler = False", "draws no classes"),
    ],
)
def test_sampling_weights_and_augment_that_cannot_take_effect_are_refused(file, text, keyword):
    (problem,) = problems(file(text))
    assert keyword in problem and text.split(" =")[0] in problem


def test_settings_that_a_record_does_not_have_are_told_by_their_defaults():
    defaults = TrainConfig.recorded_defaults()
    assert defaults["augment"] == "None" and defaults["class_sampling_weights"] == "{}"
    assert defaults["learning_rate"] == "0.0001"
    assert "build_model" not in defaults


@pytest.mark.parametrize("name", ["setup_04_all", "unet8_all", "unet32_all", "unet128_all"])
def test_the_numbers_of_the_original_baselines_are_one_file_away(name):
    folder = REPOSITORY / name
    chosen = load_config(folder)
    original = load_config(folder, read_overrides(folder / "original.txt"))
    raw, target = (216, 30) if name == "setup_04_all" else (68, 28)
    assert tuple(original.input_array_info["shape"]) == (raw,) * 3
    assert tuple(original.target_array_info["shape"]) == (target,) * 3
    assert (original.batch_size, original.learning_rate) == (4, 1e-6)
    assert (original.weight_decay, original.max_grad_norm) == (0, 100)
    # a run of its own, and in everything else the same
    assert original.path("model_save_path") != chosen.path("model_save_path")
    for same in ("input_array_info", "target_array_info"):
        assert getattr(original, same)["scale"] == getattr(chosen, same)["scale"]
    assert original.classes == chosen.classes
    assert original.spatial_transforms == chosen.spatial_transforms
    assert original.gamma_range == original.contrast_range == chosen.gamma_range == (0.9, 1.1)
