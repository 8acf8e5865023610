"""What a user can do wrong: each ends with one sentence that says what to write, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import datasplit_text

from common import cli
from common.config import REPOSITORY
from common.ngff import write_multiscale


@pytest.fixture
def fails(monkeypatch, capfd, tmp_path):
    """Trains an experiment from the command line, which must fail as it should; gives the sentence."""

    def run(tiny, *overrides: str) -> str:
        words = ["train", str(tiny.folder), "--data", str(tiny.data), *(f"--set={text}" for text in overrides)]
        monkeypatch.setattr(sys, "argv", ["csc", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr().err
        assert ended.value.code == 2, said
        return checked(said, tiny, tmp_path)

    return run


def checked(said: str, tiny, tmp_path: Path) -> str:
    """The one sentence that standard error ends with; looks that nothing half-written is left."""
    assert "Traceback" not in said
    before, found, sentence = said.partition("error: ")
    assert found and sentence.count("\n") == 1, said
    left = [*tiny.folder.rglob(".*"), *tiny.folder.rglob("*.tmp"), *(tmp_path / "cache").rglob(".*")]
    assert not left
    for crop in (tmp_path / "cache" / "crops").glob("*"):
        assert {path.name for path in crop.iterdir()} == {"raw.npy", "labels.npy", "palette.npz"}
    return sentence.strip()


def logs_of(tiny) -> list[Path]:
    return [*tiny.folder.glob("logs"), *tiny.folder.glob("checkpoints")]


# The configuration


def test_a_path_without_a_configuration(experiment, fails):
    tiny = experiment()
    (tiny.folder / "train_config.py").unlink()
    said = fails(tiny)
    assert said == f"{tiny.folder}/train_config.py: no such configuration; write the path of an experiment's train_config.py"


def test_an_unknown_setting(experiment, fails):
    tiny = experiment(learning_rte=1e-3)
    said = fails(tiny)
    assert said == f"{tiny.folder}/train_config.py: unknown setting 'learning_rte'; did you mean 'learning_rate'?"


def test_an_unknown_setting_on_the_command_line(experiment, fails):
    said = fails(experiment(), "epoch=3")
    assert said.endswith("--set epoch=3: unknown setting 'epoch'; did you mean 'epochs'?")


def test_a_wrong_type(experiment, fails):
    assert fails(experiment(batch_size="four")).endswith("batch_size = 'four'; write a whole number")


def test_an_unknown_class(experiment, fails):
    said = fails(experiment(classes=("mito", "err")))
    assert said.endswith("train_config.py: unknown class 'err'; did you mean 'er'?")


def test_nested_classes(experiment, fails):
    said = fails(experiment(classes=(("mito", "er"), ("nuc",))))
    assert said.endswith("classes = (('mito', 'er'), ('nuc',)); write a flat list of names")


def test_a_configuration_that_does_not_run(experiment, fails):
    tiny = experiment(text="from .nowhere import classes")
    assert re.search(r"train_config.py: line \d+ of train_config.py: ModuleNotFoundError: No module named", fails(tiny))


def test_a_data_root_that_is_not_there(experiment, fails):
    tiny = experiment()
    shutil.rmtree(tiny.data)
    assert fails(tiny).endswith(f"the data root {tiny.data} is no folder; write the one that holds the datasets")


def test_a_device_that_is_not_there(experiment, fails):
    said = fails(experiment(), "device=hal9000")
    assert said.startswith("device = 'hal9000' cannot be used here (") and said.endswith("set device = 'auto'")


# The model


def test_a_model_whose_output_is_of_another_shape(experiment, fails):
    said = fails(experiment(), "target_array_info.shape=(12, 12, 12)")
    assert said.endswith("and the settings ask for (3, 12, 12, 12); write target_array_info['shape'] = (16, 16, 16)")


def test_a_model_with_another_number_of_channels(experiment, fails):
    model = "from torch import nn\ndef build_model(classes): return nn.Conv3d(1, 5, 5)"
    said = fails(experiment(files={"model.py": model}))
    assert "the model gives (5, 16, 16, 16) for raw (20, 20, 20)" in said
    assert said.endswith("write a model with 3 output channels")


def test_an_input_too_small_for_the_model(experiment, fails):
    said = fails(experiment(), "input_array_info.shape=(3, 3, 3)")
    assert "the model does not take raw of (3, 3, 3) voxels" in said and said.endswith("change input_array_info")


def test_a_model_that_does_not_take_its_arguments(experiment, fails):
    said = fails(experiment(model_kwargs={"depth": 3}))
    assert "build_model = model.build_model: got an unexpected keyword argument 'depth'; " in said


# The datasplit


def test_a_missing_datasplit(experiment, fails):
    tiny = experiment()
    (tiny.folder / "datasplit.csv").unlink()
    assert fails(tiny) == f"{tiny.folder}/datasplit.csv: no such data split; write it with make-datasplit"


def test_a_missing_zarr(experiment, fails):
    tiny = experiment()
    tiny.write("datasplit.csv", datasplit_text({"crop1": ("train", (), ("mito",))}, dataset="other"))
    said = fails_at_once(fails, tiny)
    assert said.startswith(f"{tiny.folder}/datasplit.csv: line 1: no zarr store {tiny.data}/other/other.zarr")


def fails_at_once(fails, tiny) -> str:
    """Of a message that lists what is missing and then says what to do: put in one line."""
    with pytest.MonkeyPatch.context() as patch:
        from common import datasplit

        check = datasplit.check_files

        def joined(rows):
            try:
                check(rows)
            except FileNotFoundError as error:
                raise FileNotFoundError(str(error).replace("\n", " / ")) from None

        patch.setattr(datasplit, "check_files", joined)
        return fails(tiny)
