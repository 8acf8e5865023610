"""What a user can do wrong: a sentence with what to write, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from conftest import COMMAND_LINE, datasplit_text

from common.data.volumes.ngff import write_multiscale
from common.infer.processing.recipe import read_recipe
from common.shell import cli
from tests.volumes import changing


@pytest.fixture
def fails(monkeypatch, capfd, tmp_path):
    """Trains an experiment by the command line, which must fail as it should; gives the lines."""

    def run(tiny, *overrides: str, lines: int = 1) -> str:
        words = ["train", str(tiny.folder), "--data", str(tiny.data)]
        words += [f"--set={text}" for text in overrides]
        monkeypatch.setattr(sys, "argv", ["csc", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr().err
        assert ended.value.code == 2, said
        return checked(said, tiny, tmp_path, lines)

    return run


DECODED = {"raw.npy", "labels.npy", "palette.npz", "checksums.json"}
"""Files of a decoded crop that is whole."""


def checked(said: str, tiny, tmp_path: Path, lines: int = 1) -> str:
    """The sentence that standard error ends with; looks that nothing half-written is left."""
    assert "Traceback" not in said
    _, mark, sentence = said.partition("error: ")
    assert mark and sentence.count("\n") == lines, said
    assert not list(tiny.folder.rglob(".*"))
    assert not list(tiny.folder.rglob("*.tmp"))
    hidden = {path.name for path in (tmp_path / "cache").rglob(".*")}
    assert hidden <= {".crops-in-use"}  # which stays
    for crop in (tmp_path / "cache" / "crops").glob("*"):
        assert {path.name for path in crop.iterdir()} == DECODED
    return sentence.strip()


def has(said: str, *keywords: object) -> bool:
    """Whether a sentence names all of these; shows it where it does not."""
    missing = [str(word) for word in keywords if str(word) not in said]
    assert not missing, f"{missing} not in: {said}"
    return True


# Options that do not go together


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train X --check --seeds 1,2", "--check takes a few steps of one run"),
        ("train X --check --submit 'bsub {command}'", "--check takes a few steps of one run"),
        ("tune X --scheduler tcp://a:1 --workers 2", "--scheduler has workers of its own"),
        ("evaluate X --scheduler tcp://a:1 --workers 2", "--scheduler has workers of its own"),
        ("predict X --orientations ortho --planes own", "--orientations ortho is --planes all"),
        ("export-model X --to onnx --author Ada", "--author with --to onnx"),
        ("export-model X --to torchscript --onnx", "--onnx with --to torchscript"),
        ("fetch-data --for X --table crops.csv", "--for with --table"),
        ("import-data RAW --dataset own --gap 2", "--gap, --unknown and --instances are of labels"),
        ("export RAW raw.tif --classes mito", "a volume, and no folder of classes"),
        ("summarize X out --projection none --axis y", "--axis is of pictures"),
        ("unite X --no-serve --port 7000", "--port with --no-serve"),
        ("visualize X --png out --port 7000", "--port: of the viewer, and --png opens none"),
        ("visualize RAW --link --png out", "--png: --link takes no other option"),
        ("visualize RAW --png out --crops crop3", "--crops: for an experiment"),
        ("visualize --png out --roi 0:8,0:8,0:8", "a box of what? write --volume too"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(experiment, run, monkeypatch, words, said):
    tiny = experiment()
    monkeypatch.chdir(tiny.folder.parent)
    monkeypatch.setenv("CELLMAP_DATA", str(tiny.data))
    before = sorted(tiny.folder.rglob("*"))
    places = {"X": tiny.folder, "RAW": tiny.raw}
    code, _, err = run(*(places.get(word, word) for word in shlex.split(words)))
    assert code == 2
    assert has(err, said)
    assert sorted(tiny.folder.rglob("*")) == before


# The configuration


def test_a_path_without_a_configuration(experiment, fails):
    tiny = experiment()
    path = tiny.folder / "train_config.py"
    path.unlink()
    assert has(fails(tiny), path, "no such configuration")


def test_an_unknown_setting(experiment, fails):
    tiny = experiment(learning_rte=1e-3)
    assert has(fails(tiny), f"{tiny.folder}/train_config.py", "learning_rte", "'learning_rate'?")


def test_an_unknown_setting_on_the_command_line(experiment, fails):
    assert has(fails(experiment(), "epoch=3"), "--set epoch=3", "did you mean 'epochs'?")


def test_a_run_that_would_be_written_outside_of_the_experiment(experiment, fails, tmp_path):
    tiny = experiment()
    before = sorted(tmp_path.rglob("*"))
    assert has(fails(tiny, "run_name=../../../x"), "run_name = '../../../x'; it is a name")
    assert has(fails(tiny, "logs_save_path=../x"), "leads out of the experiment's folder")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_wrong_type(experiment, fails):
    assert has(fails(experiment(batch_size="four")), "batch_size = 'four'", "a whole number")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("num_workers=100000", ["num_workers = 100000; write a whole number from 0 to 1024"]),
        ("batch_size=1000000000", ["batch_size = 1000000000 of patches of", "write a smaller one"]),
        ("input_array_info.shape=(100000,100000,100000)", ["a patch of 100000 x 100000 x 100000"]),
        ("raw_sections=1000000", ["raw_sections = 1000000; write a whole number from 0 to 100"]),
        ("crop_sampling_weights.tiny/*=1e308", ["= 1e+308; write a number above 0, up to 1e+09"]),
        ("ema_decay=1", ["ema_decay = 1", "write 0 or a number below 1"]),
    ],
)
def test_sizes_that_nothing_holds(experiment, fails, override, words):
    assert has(fails(experiment(), override), "train_config.py", *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metrics = {'own': lambda *_: 'high'}", ["metrics['own'] gives high (str)"]),
        ("def augment(raw, generator):\n    return None", ["augment = train_config.augment: gave"]),
        ("crop_sampling_weights = {'no/*': 2.0}", ["crop_sampling_weights['no/*']"]),
    ],
)
def test_what_a_setting_gives_wrongly_is_told_with_the_folder(experiment, fails, text, words):
    tiny = experiment(text=text)
    assert has(fails(tiny), f"error: {tiny.folder}: "[7:], *words)


def test_an_unknown_class(experiment, fails):
    assert has(fails(experiment(classes=("mito", "err"))), "'err'", "did you mean 'er'?")


def test_nested_classes(experiment, fails):
    assert has(fails(experiment(classes=(("mito", "er"), ("nuc",)))), "flat list")


def test_a_configuration_that_does_not_run(experiment, fails):
    tiny = experiment(text="from .nowhere import classes")
    line = len((tiny.folder / "train_config.py").read_text().splitlines())
    assert has(fails(tiny), f"line {line} of train_config.py", "ModuleNotFoundError")


@pytest.mark.parametrize(
    "line",
    [b"# caf\xe9", b"# -*- coding: latin-1 -*-\n_name = 'caf\xe9'", b"\xef\xbb\xbf# BOM"],
)
def test_a_configuration_that_python_runs_is_read_whatever_letters_it_has(experiment, line):
    tiny = experiment()
    for name in ("train_config.py", "process_config.py"):
        path = tiny.folder / name
        path.write_bytes(line + b"\n" + path.read_bytes())
    assert tiny.config().epochs == 2
    assert read_recipe(tiny.folder).classes == ("mito", "er", "nuc")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("exit('no data')", "SystemExit: no data"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
    ],
)
def test_a_configuration_that_ends_the_program(experiment, fails, text, error):
    tiny = experiment(text=text)
    line = len((tiny.folder / "train_config.py").read_text().splitlines())
    assert has(fails(tiny), f"line {line} of train_config.py: {error}")


def test_a_network_that_ends_the_program_is_no_success(experiment, run):
    model = "import sys\n\ndef build_model(classes):\n    sys.exit(0)\n"
    tiny = experiment(files={"model.py": model})
    code, _, said = run("train", tiny.folder, "--data", tiny.data)
    assert code == 1 and 'model.py", line 4' in said and "SystemExit: 0" in said


def test_a_data_root_that_is_not_there(experiment, fails):
    tiny = experiment()
    shutil.rmtree(tiny.data)
    assert has(fails(tiny), tiny.data, "no folder")


def test_a_device_that_is_not_there(experiment, fails):
    assert has(fails(experiment(), "device=hal9000"), "'hal9000'", "device = 'auto'")


# The model


def test_a_model_whose_output_is_of_another_shape(experiment, fails):
    said = fails(experiment(), "target_array_info.shape=(12, 12, 12)")
    assert has(said, "(3, 12, 12, 12)", "write target_array_info['shape'] = (16, 16, 16)")


def test_a_model_with_another_number_of_channels(experiment, fails):
    model = "from torch import nn\ndef build_model(classes): return nn.Conv3d(1, 5, 5)"
    said = fails(experiment(files={"model.py": model}))
    assert has(said, "(5, 16, 16, 16)", "(20, 20, 20)", "3 output channels")


def test_an_input_too_small_for_the_model(experiment, fails):
    said = fails(experiment(), "input_array_info.shape=(3, 3, 3)")
    assert has(said, "(3, 3, 3)", "change input_array_info")


def test_an_input_between_the_sizes_that_a_model_takes(experiment, fails):
    unet = """
        from common.model.unet import build_unet


        def build_model(classes):
            return build_unet(classes, 8)
        """
    tiny = experiment(files={"model.py": unet})
    said = fails(tiny, "input_array_info.shape=(50, 50, 50)")
    assert has(said, "only 44 + 4k (44, 48, 52, ...), of which 40 less come out; write 48 or 52")
    of_torch = """
        from torch import nn


        class Net(nn.Module):
            def __init__(self, classes):
                super().__init__()
                self.layer = nn.Conv3d(1, classes, 3)

            def forward(self, raw):
                return self.layer(raw.view(len(raw), 1, 6, *raw.shape[3:]))


        def build_model(classes):
            return Net(len(classes))
        """
    tiny = experiment("other", files={"model.py": of_torch})
    said = fails(tiny, "input_array_info.shape=(7, 7, 7)")
    assert has(said, "it takes (6, 6, 6) and gives (4, 4, 4)")


def test_a_model_that_does_not_take_its_arguments(experiment, fails):
    said = fails(experiment(model_kwargs={"depth": 3}))
    assert has(said, "model.build_model", "'depth'")


# The datasplit


def test_a_missing_datasplit(experiment, fails):
    tiny = experiment()
    (tiny.folder / "datasplit.csv").unlink()
    assert has(fails(tiny), f"{tiny.folder}/datasplit.csv", "make-datasplit")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("datasplit.csv", ["train", "--check"]),
        ("datasplit.csv", ["make-datasplit", "--scale", "8"]),
        ("datasplit.csv", ["make-datasplit", "--scale", "8", "--overwrite"]),
        ("train_config.py", ["train", "--check"]),
        ("process_config.py", ["process"]),
        ("README.md", ["evaluate", "--write-readme"]),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_named(experiment, run, name, words):
    tiny = experiment()
    path = tiny.folder / name
    path.unlink(missing_ok=True)
    path.mkdir()
    place = path if words[0] == "make-datasplit" else tiny.folder
    code, _, said = run(words[0], place, "--data", tiny.data, *words[1:])
    assert code == 2
    assert has(said, f"error: {path}: a folder, where a file is meant; move it")


def test_a_missing_zarr(experiment, fails):
    tiny = experiment()
    text = datasplit_text({"crop1": ("train", (), ("mito",))}, dataset="other")
    tiny.write("datasplit.csv", text)
    said = fails(tiny, lines=2)
    assert has(said, "datasplit.csv: line 1", f"{tiny.data}/other/other.zarr", "--data")


def test_a_missing_class_folder(experiment, fails):
    tiny = experiment()
    shutil.rmtree(tiny.crop("crop3") / "er")
    said = fails(tiny, lines=2)
    assert has(said, "datasplit.csv: line 3: no er in", tiny.crop("crop3"))


def test_no_training_crop_with_any_of_the_classes(experiment, fails):
    assert has(fails(experiment(classes=("golgi",))), "datasplit.csv", "any of golgi")


def test_no_positive_voxel_of_any_class(experiment, fails):
    tiny = experiment()
    for group in tiny.store.glob("recon-1/labels/groundtruth/*/*/s0"):
        zarr.open(str(group), mode="r+")[:] = 0
    assert has(fails(tiny), "positive voxel", "mito, er, nuc")


# The images


def change_metadata(group: Path, change) -> None:
    """Let change(the one dataset of a multiscale group) edit its entry in .zattrs."""
    with changing(group) as attributes:
        change(attributes["multiscales"][0]["datasets"][0])


def test_a_label_without_scale(experiment, fails):
    tiny = experiment()
    change_metadata(tiny.crop() / "er", lambda level: level["coordinateTransformations"].pop(0))
    assert has(fails(tiny), f"{tiny.crop()}/er", "'s0' has no scale", ".zattrs")


def test_a_label_without_metadata(experiment, fails):
    tiny = experiment()
    (tiny.crop() / "mito" / ".zattrs").unlink()
    assert has(fails(tiny), f"{tiny.crop()}/mito", "OME-NGFF 0.4")


def test_labels_that_do_not_overlap_the_raw(experiment, fails):
    tiny = experiment()

    def far(level):
        level["coordinateTransformations"][1]["translation"] = [9000, 0, 0]

    for name in ("mito", "er", "nuc"):
        change_metadata(tiny.crop() / name, far)
    assert has(fails(tiny), tiny.crop(), tiny.raw, "8996", "9188", "do not overlap")


def test_a_patch_larger_than_the_raw(experiment, fails):
    shapes = ("input_array_info.shape=(60, 60, 60)", "target_array_info.shape=(56, 56, 56)")
    assert has(fails(experiment(), *shapes), "448", "480", "smaller input shape")


def garbage(chunk: Path) -> None:
    chunk.write_bytes(b"not a chunk at all" * 9)


def half(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])


def empty(chunk: Path) -> None:
    chunk.write_bytes(b"")


@pytest.mark.parametrize("damage", [garbage, half, empty])
@pytest.mark.parametrize("image", ["raw", "label"])
def test_a_damaged_chunk(experiment, fails, image, damage):
    tiny = experiment()
    group = tiny.raw if image == "raw" else tiny.crop("crop2") / "mito"
    array = group / "s0"
    damage(array / "0/0/0")
    # both training crops read the chunk of raw
    said = fails(tiny, lines=2 if image == "raw" else 1)
    assert has(said.splitlines()[0], array, "cannot be decoded", "copy this array again")


def test_a_missing_array(experiment, fails):
    tiny = experiment()
    shutil.rmtree(tiny.raw / "s0")
    assert has(fails(tiny), f"{tiny.raw}/s0", "missing", "copy it again")


def test_classes_of_a_crop_on_different_grids(experiment, fails):
    tiny = experiment()
    write_multiscale(tiny.crop() / "er", np.ones((20, 24, 24), np.uint8), (8, 8, 8), (16, 16, 16))
    assert has(fails(tiny), f"{tiny.crop()}/er", "[20, 24, 24]", "'mito'", "share one grid")


def test_raw_that_is_black(experiment, fails):
    tiny = experiment()
    zarr.open(str(tiny.raw / "s0"), mode="r+")[:] = 0
    said = fails(tiny, lines=2)  # one for each training crop
    assert has(said, f"{tiny.raw}/s0", "0 everywhere", "crop1", "EM chunks")


def test_raw_of_numbers_without_a_range(experiment, fails):
    tiny = experiment()
    write_multiscale(tiny.raw, np.ones((56, 56, 56), np.float32), (8, 8, 8))
    assert has(fails(tiny), "float32", "set raw_range")


def test_raw_without_a_finite_voxel(experiment, fails):
    tiny = experiment(raw_range=(0, 1))
    write_multiscale(tiny.raw, np.full((56, 56, 56), np.nan, np.float32), (8, 8, 8))
    assert has(fails(tiny, lines=2), "0 everywhere", "crop1")


# The run


def test_a_loss_that_is_not_finite(experiment, fails):
    said = fails(experiment(learning_rate=1e30), lines=3)
    assert re.match(r"iteration \d: loss (nan|inf), gradient norm \S+, on tiny/crop\d", said)
    assert has(said, "skipped", "replay", "learning_rate", "max_grad_norm")


def test_a_checkpoint_of_another_class_list(experiment, fails):
    tiny = experiment()
    tiny.train()
    swapped = (tiny.folder / "data.py").read_text().replace("'er', 'nuc'", "'nuc', 'er'")
    tiny.write("data.py", swapped)
    assert has(fails(tiny), "latest.pt", "channel 1 is 'er' there and 'nuc' here", "run_name")


def test_a_damaged_checkpoint(experiment, fails):
    tiny = experiment()
    for path in tiny.train().checkpoint.parent.glob("*.pt"):
        half(path)
    said = fails(tiny, "epochs=3")
    assert has(said, "latest.pt", "not a readable checkpoint", "no other checkpoint", "run_name")
    assert "remove" not in said


def test_settings_that_a_run_was_not_started_with(experiment, fails):
    tiny = experiment()
    tiny.train()
    said = fails(tiny, "learning_rate=0.5")
    assert has(said, "latest.pt", "learning_rate was 0.01 and is 0.5")


def test_weights_that_are_not_there(experiment, fails):
    tiny = experiment()
    said = fails(tiny, "load_model=nowhere.pt")
    assert has(said, f"{tiny.folder}/nowhere.pt", "no such checkpoint")


def test_a_disk_that_is_full_when_a_checkpoint_is_saved(experiment, fails, monkeypatch):
    def save(state, file):
        file.write(b"the first part")
        raise OSError(28, "No space left on device")

    tiny = experiment()
    monkeypatch.setattr(torch, "save", save)
    said = fails(tiny)
    assert has(said, "latest.pt", "No space left on device", "nothing was kept", "same command")


def test_a_disk_that_is_full_when_crops_are_decoded(experiment, fails, monkeypatch, tmp_path):
    def reserve(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    crops = tmp_path / "cache" / "crops"
    assert has(fails(experiment()), crops, "No space left on device", "ree space")
    assert not list(crops.iterdir())


# As users see it


def test_the_command_says_one_sentence_and_nothing_else(experiment, forked):
    tiny = experiment()
    (tiny.folder / "datasplit.csv").unlink()
    code, out, said = forked("train", tiny.folder, "--data", tiny.data).ended()
    assert (code, out) == (2, "")
    assert said.count("\n") == 1
    assert has(said, "error: ", f"{tiny.folder}/datasplit.csv", "make-datasplit")


SMALL_FILES = f"""
import resource, sys
from common import provenance
provenance.uncommitted = lambda repository: b""  # a patch that is too large would be the first
most = int(sys.argv.pop())
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
{COMMAND_LINE}
"""


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before_it(experiment, forked, tmp_path):
    tiny = experiment(figure_samples=0)
    before = tiny.train(epochs=1).checkpoint.with_name("latest.pt")
    content = before.read_bytes()
    most = len(content) // 2
    words = ["train", tiny.folder, "--data", tiny.data, most]
    code, _, said = forked(*words, program=SMALL_FILES).ended()
    assert code == 2, said
    said = checked(said, tiny, tmp_path)
    assert has(said, "latest.pt", "File too large", "the one before it stands")
    assert before.read_bytes() == content
