"""The public toolbox's functions: the result that each is documented to have, on small input."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import zarr
from conftest import CLASSES, DEADLINE

import cellmap_segmentation_challenge as package
from cellmap_segmentation_challenge import _names, config, utils
from cellmap_segmentation_challenge._names import Lacking, Ours
from cellmap_segmentation_challenge.utils import (
    CropRow,
    TestCropRow,
    analyze_script,
    combine_scores,
    download_file,
    extract_from_template,
    fetch_data,
    fetch_manifest,
    fetch_test_crop_manifest,
    format_coordinates,
    format_string,
    get_class_relations,
    get_data_from_batch,
    get_dataset_counts,
    get_dataset_name,
    get_formatted_fields,
    get_git_hash,
    get_raw_path,
    get_singleton_dim,
    get_test_crop_labels,
    get_test_crops,
    load_safe_config,
    make_datasplit_csv,
    match_crop_space,
    package_submission,
    save_numpy_class_arrays_to_zarr,
    save_numpy_class_labels_to_zarr,
    score_instance,
    score_semantic,
    score_submission,
    squeeze_singleton_dim,
    structure_model_output,
    unsqueeze_singleton_dim,
    zip_submission,
)
from common.data.samples.loaders import open_data
from common.data.splits.split import read_datasplit
from common.data.volumes.ngff import write_multiscale
from common.errors import FileError, UserError
from common.files import REPOSITORY

# The table


NAMES = [(module, name) for module, names in _names.MODULES.items() for name in names]
FROM_THE_NETWORK = ("TEST_CROPS", "TEST_CROPS_DICT")


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{m[31:]} {n}" for m, n in NAMES])
def test_a_name_of_the_table_is_there_or_says_what_to_write(module, name):
    entry = _names.MODULES[module][name]
    if isinstance(entry, Lacking):
        with pytest.raises(ImportError, match=f"has no {name}; instead: "):
            getattr(import_module(module), name)
    elif name not in FROM_THE_NETWORK:
        value = getattr(import_module(module), name)
        assert not isinstance(value, ModuleType)
        again = getattr(import_module(entry.module), name)
        assert value is again or (isinstance(value, str | dict | Path) and value == again)


def test_what_stands_instead_exists():
    for entry in [*_names.PACKAGE.values(), *_names.UTILS.values()]:
        if not isinstance(entry, Lacking):
            continue
        address = entry.instead.partition("`")[2].partition("`")[0]
        if address.startswith("common."):
            module, _, name = address.rpartition(".")
            parent = import_module(module)
            assert hasattr(parent, name) or import_module(address)
        word = entry.instead.partition(" ")[0].strip(",")
        if "_" in word and not address:
            assert isinstance(_names.UTILS[word], Ours)


def test_every_name_of_a_module_is_in_the_table():
    for module in {e.module for e in _names.UTILS.values() if isinstance(e, Ours)}:
        if not module.startswith(f"{_names.HERE}.utils"):
            continue
        found = import_module(module)
        for name, value in vars(found).items():
            if inspect.isfunction(value) and value.__module__ == module and name[0] != "_":
                assert name in _names.UTILS, (module, name)


def test_the_package_lists_its_names():
    assert {"train", "RAW_NAME", "match_crop_space"} <= set(dir(package))
    assert {"score_instance", "TEST_CROPS"} <= set(dir(utils))
    assert "save_result_figs" not in dir(utils)


def test_what_another_module_of_a_function_has_is_pointed_to():
    with pytest.raises(ModuleNotFoundError, match=r"import evaluate, and .*challenge\.utils"):
        import_module("cellmap_segmentation_challenge.evaluate")


# Paths


def test_the_constants_are_the_challenges_layout():
    assert config.RAW_NAME == config.S3_RAW_NAME == "em/fibsem-uint8"
    assert config.CROP_NAME == "labels/groundtruth/{crop}/{label}"
    assert config.S3_SEARCH_PATH == "{dataset}/{dataset}.zarr/recon-1/{name}"
    assert f"{config.BASE_DATA_PATH}/{config.S3_SEARCH_PATH}" == config.SEARCH_PATH
    assert config.PREDICTIONS_PATH.endswith("/predictions/{dataset}.zarr/{crop}")
    assert config.PROCESSED_PATH.endswith("/processed/{dataset}.zarr/{crop}")
    assert Path(config.SUBMISSION_PATH).name == "submission.zarr"
    assert Path(config.TRUTH_PATH).name == "ground_truth.zarr"
    assert config.REPO_ROOT == REPOSITORY
    assert set(config.VIS_SEARCH_PATHS) == {"gt", "predictions", "processed"}
    assert len(config.INSTANCE_CLASSES) == 12
    assert config.GT_S3_BUCKET == config.RAW_S3_BUCKET == "janelia-cosem-datasets"


def test_a_data_root_that_is_moved_moves_the_paths(tmp_path, monkeypatch):
    before = config.SEARCH_PATH
    monkeypatch.setenv("CELLMAP_DATA", str(tmp_path))
    assert config.SEARCH_PATH == f"{tmp_path}/{config.S3_SEARCH_PATH}" != before
    assert f"{tmp_path}/ground_truth.zarr" == package.TRUTH_PATH
    assert config.VIS_SEARCH_PATHS["gt"].startswith(f"{tmp_path}/{{dataset}}/")


def test_the_data_root_of_the_environment_is_that_of_the_paths(tmp_path):
    program = "from cellmap_segmentation_challenge import TRUTH_PATH; print(TRUTH_PATH)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={"CELLMAP_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    assert done.stdout.strip() == f"{tmp_path}/ground_truth.zarr"


# Templates


def test_format_string_fills_what_is_given_and_leaves_the_rest():
    template = "{model_name}_{epoch}.pth"
    assert format_string(template, {"epoch": 3, "other": 1}) == "{model_name}_3.pth"
    assert format_string("no field", {"epoch": 3}) == "no field"


def test_extract_from_template_is_its_inverse():
    found = extract_from_template("runs/{name}/{name}_{epoch}.pth", "runs/u_net/u_net_12.pth")
    assert found == {"name": "u_net", "epoch": "12"}
    for text in ("runs/a/b_12.pth", "else"):
        with pytest.raises(ValueError, match="does not match"):
            extract_from_template("runs/{name}/{name}_{epoch}.pth", text)


def test_format_coordinates_writes_a_list_of_a_manifest():
    assert format_coordinates([1, 2.5, 3]) == "[1;2.5;3]"
    assert format_coordinates([]) == "[]"


def test_get_formatted_fields_reads_a_path_by_its_template():
    path = "/d/jrc_x/jrc_x.zarr/recon-1/labels/groundtruth/crop7/mito"
    template = "/d/{dataset}/{dataset}.zarr/recon-1/labels/groundtruth/{crop}/{label}"
    found = get_formatted_fields(path, template, ["{dataset}", "{crop}", "{label}"])
    assert found == {"dataset": "jrc_x", "crop": "crop7", "label": "mito"}


def test_get_dataset_name_is_that_in_the_path():
    path = "/d/jrc_x/jrc_x.zarr/recon-1/em/fibsem-uint8"
    assert get_dataset_name(path, "/d/{dataset}/{dataset}.zarr/recon-1/{name}") == "jrc_x"
    with pytest.raises(ValueError, match="no dataset"):
        get_dataset_name(path, "/d/other/{name}")


def test_get_raw_path_is_beside_the_labels():
    crop = "/d/jrc_x/jrc_x.zarr/recon-1/labels/groundtruth/crop7"
    raw = "/d/jrc_x/jrc_x.zarr/recon-1/em/fibsem-uint8"
    assert get_raw_path(crop) == get_raw_path(f"{crop}/mito", label="mito") == raw


def test_get_git_hash_is_the_commit():
    words = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert get_git_hash() == (done.stdout.strip() or "none")


def test_download_file_writes_what_the_address_sends(tmp_path):
    (tmp_path / "there").write_text("content")
    download_file((tmp_path / "there").as_uri(), tmp_path / "here")
    assert (tmp_path / "here").read_text() == "content"
    with pytest.raises(OSError, match="cannot be downloaded"):
        download_file((tmp_path / "nowhere").as_uri(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


# Arrays


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 64, 64), None), ((1, 64, 64), 0), ((4, 1, 64), 1), ((4, 1, 1), 1)]
)
def test_get_singleton_dim_is_the_first_axis_of_length_1(shape, axis):
    assert get_singleton_dim(shape) == axis


def test_an_axis_is_taken_out_and_put_back_in_tensors_and_dicts():
    tensor = torch.rand(2, 1, 8, 4)
    assert squeeze_singleton_dim(tensor, 1).shape == (2, 8, 4)
    assert torch.equal(unsqueeze_singleton_dim(squeeze_singleton_dim(tensor, 1), 1), tensor)
    both = squeeze_singleton_dim({"a": tensor, "b": tensor[..., :2]}, 1)
    assert {name: tuple(t.shape) for name, t in both.items()} == {"a": (2, 8, 4), "b": (2, 8, 2)}
    assert unsqueeze_singleton_dim(both, 1)["b"].shape == (2, 1, 8, 2)


def test_get_data_from_batch_gives_a_tensor_or_a_dict():
    batch = {"input": torch.zeros(2, 1), "other": torch.ones(2, 3)}
    assert torch.equal(get_data_from_batch(batch, ["other"], "cpu"), batch["other"])
    assert set(get_data_from_batch(batch, ["input", "other"], "cpu")) == {"input", "other"}


def test_structure_model_output_names_arrays_and_classes():
    tensor = torch.arange(6.0).reshape(1, 6, 1, 1).expand(2, 6, 4, 4)
    assert torch.equal(structure_model_output(tensor, list("abcdef"))["output"], tensor)
    by_class = structure_model_output(tensor, list("abc"), num_channels_per_class=2)["output"]
    assert torch.equal(by_class["b"], tensor[:, 2:4])
    of_arrays = structure_model_output({"8nm": tensor}, list("abc"), num_channels_per_class=2)
    assert torch.equal(of_arrays["8nm"]["c"], tensor[:, 4:])
    named = {"a": tensor, "b": tensor}
    assert structure_model_output(named, list("ab"))["output"]["a"] is tensor
    with pytest.raises(ValueError, match="does not match expected 10"):
        structure_model_output(tensor, list("abcde"), num_channels_per_class=2)


# Configurations


def test_analyze_script_names_imports_and_calls(tmp_path):
    (tmp_path / "a.py").write_text("import os\nfrom sys import path\neval('1')\nx.exec()\n")
    is_safe, issues = analyze_script(tmp_path / "a.py")
    assert not is_safe
    assert sorted(issues) == [
        "Disallowed function call detected: eval",
        "Disallowed function call detected: exec",
        "Disallowed import detected: os",
        "Disallowed import detected: sys",
    ]
    (tmp_path / "b.py").write_text("import math\nx = math.sqrt(2)\n")
    assert analyze_script(str(tmp_path / "b.py")) == (True, [])


def test_serialize_keeps_numbers_and_texts(tmp_path):
    text = "import math\nepochs = 3\nname = 'u'\nclasses = ['er']\nf = lambda: 1\n"
    (tmp_path / "a.py").write_text(text)
    values = load_safe_config(tmp_path / "a.py").serialize()
    assert values == {"epochs": 3, "name": "u", "classes": "['er']"}


# Classes


TABLE = 'name,id,ids\necs,1,"1"\nmito_mem,3,"3"\nmito,50,"3,4,5"\nnuc,37,"20,21"\n'


@pytest.mark.parametrize("order", ["table first", "classes first", "named"])
def test_class_relations_of_a_table_in_either_order(tmp_path, order):
    path = tmp_path / "classes.csv"
    path.write_text(TABLE)
    names = ["mito", "mito_mem", "nuc"]
    if order == "named":
        relations = get_class_relations(csv=path, named_classes=names)
    else:
        arguments = (str(path), names) if order == "table first" else (names, str(path))
        relations = get_class_relations(*arguments)
    assert relations == {"mito": {"nuc"}, "mito_mem": {"nuc"}, "nuc": {"mito", "mito_mem"}}


def test_class_relations_of_a_table_alone_are_those_of_all_its_classes(tmp_path):
    (tmp_path / "classes.csv").write_text(TABLE)
    assert set(get_class_relations(tmp_path / "classes.csv")) == {"ecs", "mito_mem", "mito", "nuc"}
    with pytest.raises(UserError, match="no line for er"):
        get_class_relations(["er"], tmp_path / "classes.csv")
    with pytest.raises(FileNotFoundError, match="no such table"):
        get_class_relations(tmp_path / "nowhere.csv", ["er"])


# Crops


@pytest.fixture
def manifest(tmp_path, monkeypatch) -> Path:
    """A table of test crops, in the place of the one that is downloaded."""
    path = tmp_path / "test_crop_manifest.csv"
    path.write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "557,jrc_x,mito,[8.0;8.0;8.0],[4.0;0.0;8.0],[20;20;20]\n"
        "557,jrc_x,er,[4.0;4.0;4.0],[2.0;2.0;2.0],[40;40;30]\n"
        "558,jrc_y,mito,[2.0;2.0;2.0],[0.0;0.0;0.0],[10;10;10]\n"
    )
    monkeypatch.setenv("CSC_TEST_CROP_MANIFEST_URL", path.as_uri())
    monkeypatch.setenv("CELLMAP_CACHE", str(tmp_path / "cache"))
    return path


MITO = TestCropRow(557, "jrc_x", "mito", (8.0, 8.0, 8.0), (4.0, 0.0, 8.0), (20, 20, 20))


def test_a_row_of_test_crops_is_read_from_a_line(manifest):
    assert TestCropRow.from_csv_row(manifest.read_text().splitlines()[1]) == MITO


def test_the_test_crops_are_the_rows_of_the_table(manifest):
    assert utils.TEST_CROPS[0] == fetch_test_crop_manifest()[0] == MITO
    assert len(utils.TEST_CROPS) == 3
    assert utils.TEST_CROPS_DICT[557, "mito"] == MITO
    assert get_test_crop_labels(557) == ["mito", "er"]
    assert get_test_crop_labels(1) == []


def test_get_test_crops_has_a_row_for_each_crop_with_the_box_around_its_classes(manifest):
    first, second = get_test_crops()
    assert first.gt_source == TestCropRow(
        557, "jrc_x", "test", (4.0, 4.0, 4.0), (2.0, 0.0, 2.0), (40, 40, 30)
    )
    assert first.em_url.endswith("janelia-cosem-datasets/jrc_x/jrc_x.zarr/recon-1/em/fibsem-uint8")
    assert (second.id, second.alignment) == (558, "recon-1")


def test_the_manifest_of_training_crops_needs_no_network(tmp_path):
    rows = fetch_manifest()
    assert len(rows) == 289
    crop = next(row for row in rows if row.id == 28)
    assert crop.gt_source == (
        f"s3://janelia-cosem-datasets/{crop.dataset}/{crop.dataset}.zarr/recon-1/labels/"
        "groundtruth/crop28"
    )
    path = tmp_path / "manifest.csv"
    path.write_text(
        "crop_number,collection,alignment,crop_url,em_url\n7,jrc_x,recon-1,s3://a,s3://b\n"
    )
    assert fetch_manifest(path.as_uri()) == (CropRow(7, "jrc_x", "recon-1", "s3://a", "s3://b"),)
    with pytest.raises(FileError, match="nowhere"):
        fetch_manifest((tmp_path / "nowhere.csv").as_uri())


def test_fetch_data_has_the_public_arguments(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        "common.data.download.fetch.fetch", lambda crops, **how: calls.append((crops, how))
    )
    fetch_data("111,112", 64, "here", "overwrite", True, 256, 8)
    crops, how = calls[0]
    assert (crops, how["padding_voxels"], how["data"]) == ("111,112", 64, "here")
    assert (how["verify"], how["all_resolutions"], how["workers"]) == (True, True, 8)
    assert "batch_size has no effect" in capsys.readouterr().err
    fetch_data()
    assert calls[1][0] == "*"
    for wrong in ({"use_zip": True}, {"access_mode": "x"}):
        with pytest.raises(UserError, match="fetch_data"):
            fetch_data(**wrong)


# Splits


def test_make_datasplit_csv_takes_the_public_layout(data_root, tmp_path):
    search_path = f"{data_root}/{{dataset}}/{{dataset}}.zarr/recon-1/{{name}}"
    found = make_datasplit_csv(
        ["mito", "er"],
        search_path=search_path,
        raw_name=config.RAW_NAME,
        crop_name=config.CROP_NAME,
        csv_path=tmp_path / "datasplit.csv",
        validation_prob=0,
    )
    folder = f"{data_root}/tiny/tiny.zarr/recon-1/labels/groundtruth"
    assert found[f"{folder}/crop1"] == ["mito", "er"] and found[f"{folder}/crop2"] == ["mito"]
    assert (tmp_path / "datasplit.csv").read_text().count("train") == 3


def test_crops_of_one_specimen_are_split_by_crop_and_it_is_said(data_root, tmp_path, capsys):
    path = tmp_path / "datasplit.csv"
    make_datasplit_csv(["mito", "er"], data_root=data_root, csv_path=path, validation_prob=0.3)
    rows = read_datasplit(path, data_root)
    assert sorted(row.usage for row in rows) == ["train", "train", "validate"]
    assert "all 3 crops that fit are of one specimen" in capsys.readouterr().err
    with pytest.raises(UserError, match="are of one specimen"):
        make_datasplit_csv(["mito"], data_root=data_root, csv_path=tmp_path / "x", by="specimen")


@pytest.mark.parametrize(
    "given",
    [
        {"search_path": "/d/{dataset}.zarr/{name}"},
        {"raw_name": "em/other"},
        {"crop_name": "labels/{crop}/{label}"},
        {"search_path": "/d/{dataset}/{dataset}.zarr/recon-1/{name}", "data_root": "/e"},
    ],
)
def test_another_layout_is_refused_with_what_to_write(given, tmp_path):
    with pytest.raises(UserError, match=r"datasplit\.csv|one of them"):
        make_datasplit_csv(csv_path=tmp_path / "x.csv", **given)


def test_get_dataset_counts_are_by_dataset_and_class(data_root):
    search_path = f"{data_root}/{{dataset}}/{{dataset}}.zarr/recon-1/{{name}}"
    counts = get_dataset_counts(["mito", "er", "ecs"], search_path)
    assert counts == {"tiny": {"mito": 3, "er": 2}}


# Commands


def test_a_command_of_the_cli_module_takes_the_public_arguments(data_root, tmp_path, capsys):
    from cellmap_segmentation_challenge.cli import get_dataset_counts_cli, make_datasplit_csv_cli

    search_path = f"{data_root}/{{dataset}}/{{dataset}}.zarr/recon-1/{{name}}"
    get_dataset_counts_cli.callback(classes="mito,er", search_path=search_path)
    assert "mito" in capsys.readouterr().out
    path = tmp_path / "own.csv"
    make_datasplit_csv_cli.callback(
        classes="mito", scale="8", search_path=search_path, csv_path=path, validate_ratio=0.0
    )
    assert path.read_text().count('"train"') == 3


def test_the_group_of_the_cli_module_has_every_command_of_the_table():
    from click.testing import CliRunner

    from cellmap_segmentation_challenge import cli

    for name in _names.ours(_names.CLI["run"].module):
        command = getattr(cli, name)
        assert command is cli.run or command.name in cli.run.commands
    # by click it is the command itself, with its own options
    done = CliRunner().invoke(cli.predict_cli, ["--help"])
    assert "--checkpoint" in done.output


def test_predict_takes_the_public_arguments_in_their_order(experiment, tmp_path):
    tiny = experiment(epochs=1)
    tiny.train()
    out = tmp_path / "out/{dataset}.zarr/{crop}"
    search_path = f"{tiny.data}/{{dataset}}/{{dataset}}.zarr/recon-1/{{name}}"
    folders = package.predict(
        tiny.folder / "train_config.py",
        "crop3",
        out,
        True,
        False,
        search_path,
        "em/fibsem-uint8",
        "labels/groundtruth/{crop}/{label}",
        content="logits",
        dtype="float32",
    )
    assert folders == [tmp_path / "out/tiny.zarr/crop3"]
    masks = package.process(tiny.folder, "crop3", out, tmp_path / "masks", data=tiny.data)
    assert masks == [tmp_path / "masks/tiny.zarr/crop3"]
    with pytest.raises(UserError, match=r"datasplit\.csv"):
        package.predict(tiny.folder, raw_name="em/other")


# Loaders


LOADER = {"num_workers": 0, "device": "cpu"}
INFO = {"shape": (16, 16, 16), "scale": (8, 8, 8)}


def batch_of(tiny, **given):
    train, _ = utils.get_dataloader(
        tiny.folder / "datasplit.csv", CLASSES, 2, INFO, data_path=tiny.data, **(LOADER | given)
    )
    return next(iter(train))


def test_none_is_as_if_it_were_left_out(experiment):
    tiny = experiment()
    unset = {"spatial_transforms": None, "target_value_transforms": None, "weighted_sampler": None}
    first, second = batch_of(tiny), batch_of(tiny, **unset)
    assert torch.equal(first["input"], second["input"])


def test_a_loader_knows_the_weights_of_its_classes(experiment):
    tiny = experiment()
    train, validation = utils.get_dataloader(
        tiny.folder / "datasplit.csv", CLASSES, 2, INFO, data_path=tiny.data, **LOADER
    )
    data = open_data(tiny.config())
    expected = data.background / data.foreground
    assert list(train.dataset.class_weights) == list(CLASSES)
    assert list(validation.dataset.class_weights.values()) == pytest.approx(expected.tolist())
    first = next(iter(train.loader))
    train.refresh()
    assert not torch.equal(first["input"], next(iter(train.loader))["input"])


def test_options_of_a_torch_loader_are_taken_or_noted(experiment, capsys):
    tiny = experiment()
    plain = batch_of(tiny)
    capsys.readouterr()
    other = batch_of(tiny, pin_memory=True, prefetch_factor=2)
    assert "pin_memory, prefetch_factor the loader here sets by itself" in capsys.readouterr().err
    assert torch.equal(plain["input"], other["input"])


def test_raw_transforms_are_taken_as_settings(experiment, capsys):
    class RandomContrast(torch.nn.Module):
        contrast_range = (0.5, 1.5)

    tiny = experiment()
    changed = batch_of(tiny, train_raw_value_transforms=[RandomContrast()])
    settings = {"contrast_range": (0.5, 1.5), "intensity_probability": 1.0}
    assert torch.equal(changed["input"], batch_of(tiny, **settings)["input"])
    assert "contrast_range = (0.5, 1.5)" in capsys.readouterr().err


def test_a_config_gives_the_parameters(experiment, tmp_path):
    tiny = experiment()
    (tmp_path / "shared.py").write_text(
        f"datasplit_path = {str(tiny.folder / 'datasplit.csv')!r}\nclasses = {CLASSES!r}\n"
        f"train_micro_batch_size_per_gpu = 2\ninput_array_info = {INFO!r}\n"
        f"learning_rate = 1\nkwargs = {{'num_workers': 0}}\ndevice = 'cpu'\n"
    )
    shared = load_safe_config(tmp_path / "shared.py")
    for train, _ in (
        utils.get_dataloader(shared, data_path=tiny.data),
        utils.get_dataloader(config=shared, data_path=tiny.data),
    ):
        assert torch.equal(next(iter(train))["input"], batch_of(tiny)["input"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"random_validation": True}, "random_validation"),
        ({"val_raw_value_transforms": torch.nn.Dropout()}, "val_raw_value_transforms: .*Dropout"),
        ({"target_value_transforms": torch.nn.Dropout()}, "target_value_transforms: .*Dropout"),
    ],
)
def test_what_a_loader_cannot_do_is_refused(experiment, given, reason):
    with pytest.raises(UserError, match=reason):
        batch_of(experiment(), **given)


# Scores


def cubes() -> np.ndarray:
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[2:8, 2:8, 2:8] = 1
    truth[12:18, 12:18, 12:18] = 2
    return truth


def shifted(extra: bool = False) -> np.ndarray:
    prediction = np.zeros((20, 20, 20), np.uint8)
    prediction[3:9, 2:8, 2:8] = 1
    if extra:
        prediction[18:20, 0:2, 0:2] = 2
    return prediction


@pytest.mark.parametrize(
    ("prediction", "counts", "total", "number"),
    [
        (shifted(), (1, 0, 1), 1.9384423824, 2),
        (shifted(extra=True), (1, 1, 1), 2.8826131211, 3),
        (np.zeros((20, 20, 20), np.uint8), (0, 0, 2), 1.8883414773, 2),
    ],
    ids=["one found", "and one too many", "nothing found"],
)
def test_score_instance_gives_what_the_toolbox_gives(prediction, counts, total, number):
    """Recorded values of the public toolbox of 2026-06-30."""
    score = score_instance(prediction, cubes(), (8, 8, 8))
    assert (score["tp"], score["fp"], score["fn"]) == counts
    assert score["hausdorff_norm_sum"] == pytest.approx(total, abs=1e-6)
    assert (score["n_hausdorff"], score["status"]) == (number, "scored")
    with pytest.raises(UserError, match="leave them out"):
        score_instance(prediction, cubes(), (8, 8, 8), 100.0)


def test_score_semantic_counts_voxels_prediction_first():
    truth, prediction = np.zeros((2, 4, 4, 4), np.uint8)
    truth[0] = 1
    prediction[0, 0] = 1
    prediction[1] = 1
    assert score_semantic(prediction, truth) == {"tp": 4, "fp": 16, "fn": 12, "status": "scored"}


def test_combine_scores_gives_what_the_toolbox_gives():
    """A recorded value of the public toolbox of 2026-06-30."""
    mito = {"tp": 1, "fp": 0, "fn": 1, "hausdorff_norm_sum": 1.5, "n_hausdorff": 2}
    more = {"tp": 3, "fp": 1, "fn": 0, "hausdorff_norm_sum": 2.0, "n_hausdorff": 4}
    er = {"tp": 10, "fp": 5, "fn": 5}
    combined = combine_scores({"crop1": {"mito": mito, "er": er}, "crop2": {"mito": more}})
    assert combined["label_scores"]["mito"]["f1"] == pytest.approx(0.8)
    assert combined["label_scores"]["mito"]["combined_score"] == pytest.approx(0.68313, abs=1e-5)
    assert combined["label_scores"]["er"]["iou"] == 0.5
    assert combined["overall_score"] == pytest.approx(0.584436, abs=1e-6)


# Submissions


ATTRS = {"voxel_size": (8, 8, 8), "translation": np.zeros(3), "shape": (20, 20, 20)}


def test_score_submission_scores_a_zip(tmp_path):
    store = tmp_path / "mine.zarr"
    arrays = [shifted(), (shifted() > 0).astype(np.uint8)]
    save_numpy_class_arrays_to_zarr(store, "crop1", ["mito", "er"], arrays, attrs=ATTRS)
    truth = tmp_path / "truth.zarr"
    truths = [cubes(), (cubes() > 0).astype(np.uint8), cubes()]
    save_numpy_class_arrays_to_zarr(truth, "crop1", ["mito", "er", "nuc"], truths, attrs=ATTRS)
    packed = zip_submission(store)
    assert packed == tmp_path / "mine.zip"
    result = score_submission(packed, tmp_path / "result.json", truth)
    mito = {k: v for k, v in result["crop1"]["mito"].items() if k != "is_missing"}
    assert mito == score_instance(arrays[0], truths[0], (8, 8, 8))
    assert result["crop1"]["nuc"]["is_missing"] and not result["crop1"]["er"]["is_missing"]
    assert (result["total_evals"], result["label_scores"]["er"]["tp"]) == (3, 180)
    written = json.loads((tmp_path / "result.json").read_text())
    assert result["overall_score"] == written["overall_score"]
    by_objects = score_submission(store, truth_path=truth, instance_classes=["er"])
    assert by_objects["crop1"]["er"]["n_hausdorff"] == 1  # one id, though it lies in two places


def test_arrays_are_written_class_by_class(tmp_path):
    store = tmp_path / "mine.zarr"
    save_numpy_class_arrays_to_zarr(store, "crop1", ["er"], [cubes()], attrs=ATTRS)
    save_numpy_class_arrays_to_zarr(store, "crop1", ["nuc"], [cubes()])
    group = zarr.open_group(str(store), mode="r")["crop1"]
    assert set(group) == {"er", "nuc"}
    assert group["er"].attrs["translation"] == [0, 0, 0]
    assert np.array_equal(group["er"][:], cubes())
    with pytest.raises(UserError, match="there already"):
        save_numpy_class_arrays_to_zarr(store, "crop1", ["er"], [cubes()])
    save_numpy_class_arrays_to_zarr(store, "crop1", ["er"], [cubes()], mode="overwrite")
    assert set(zarr.open_group(str(store), mode="r")["crop1"]) == {"er"}
    for wrong in ({"mode": "replace"}, {"labels": []}):
        with pytest.raises(UserError):
            save_numpy_class_arrays_to_zarr(
                store, "crop2", ["er"], **({"labels": [cubes()]} | wrong)
            )


def test_one_array_of_labels_becomes_a_mask_a_class(tmp_path):
    save_numpy_class_labels_to_zarr(tmp_path / "mine.zarr", "crop1", ["er", "nuc"], cubes())
    group = zarr.open_group(str(tmp_path / "mine.zarr"), mode="r")["crop1"]
    assert np.array_equal(group["er"][:], cubes() == 1)
    assert np.array_equal(group["nuc"][:], cubes() == 2)


def test_what_is_not_there_cannot_be_zipped(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such submission"):
        zip_submission(tmp_path / "nowhere.zarr")


def test_match_crop_space_halves_a_volume(tmp_path):
    """Ids stay ids, a mask is where more than half of a voxel is filled."""
    ids = cubes() * 100
    write_multiscale(tmp_path / "v.zarr" / "mito", ids, (8, 8, 8))
    half = match_crop_space(
        tmp_path / "v.zarr/mito", "mito", (16, 16, 16), (10, 10, 10), (4.0, 4.0, 4.0)
    )
    assert half.shape == (10, 10, 10) and set(np.unique(half)) == {0, 100, 200}
    assert np.array_equal(half, ids[::2, ::2, ::2])
    mask = match_crop_space(
        str(tmp_path / "v.zarr/mito"), "er", (16, 16, 16), (10, 10, 10), (4.0, 4.0, 4.0)
    )
    assert np.array_equal(mask, ids[::2, ::2, ::2] > 0)


def test_match_crop_space_moves_an_array_to_its_place(tmp_path):
    attrs = ATTRS | {"translation": (16, 0, 0)}
    save_numpy_class_arrays_to_zarr(tmp_path / "v.zarr", "crop1", ["mito"], [cubes()], attrs=attrs)
    moved = match_crop_space(
        tmp_path / "v.zarr/crop1/mito", "mito", (8, 8, 8), (20, 20, 20), (0, 0, 0)
    )
    assert np.array_equal(moved[2:], cubes()[:-2]) and not moved[:2].any()


def test_package_submission_packs_what_is_there(tmp_path, manifest, capsys):
    folder = tmp_path / "processed/jrc_y.zarr/crop558/mito"
    volume = np.ones((10, 10, 10), np.uint16) * 300
    write_multiscale(folder, volume, (2, 2, 2))
    template = tmp_path / "processed/{dataset}.zarr/{crop}"
    packed = package_submission(template, tmp_path / "mine.zarr", max_workers=3)
    assert packed == tmp_path / "mine.zip"
    with zarr.ZipStore(str(packed), mode="r") as store:
        assert (zarr.open_group(store, mode="r")["crop558/mito"][:] == 300).all()
    assert "max_workers has no effect" in capsys.readouterr().err
    with pytest.raises(UserError, match="exists already"):
        package_submission(template, tmp_path / "mine.zarr")
