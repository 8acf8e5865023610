"""What each command takes, and what it calls."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import DEADLINE, imported_with

from common.files import REPOSITORY
from common.shell import package
from common.shell.cli import cli
from common.shell.group import Command

# they keep the `train` that is there when they are first imported, which is to be none of here
for several in ("each_class", "seeds"):
    importlib.import_module(f"common.train.several.{several}")


@pytest.fixture
def trained(monkeypatch):
    """What common.train.run.train is called with, in place of training."""
    import common.train.run

    calls = []

    def train(*arguments, **_):
        calls.append(arguments)
        return SimpleNamespace(finished=True)

    monkeypatch.setattr(common.train.run, "train", train)
    return calls


# Help


@pytest.mark.parametrize(
    ("script", "imported"),
    [
        ("cellmap_segmentation_challenge/__main__.py", "common.shell.cli"),
        ("unite_tensorboards.py", "common.shell.cli"),
    ],
)
def test_ctrl_c_while_libraries_are_imported_leaves_no_trace(script, imported):
    text = f"""
import runpy, sys

class Interrupted:
    def find_spec(self, name, *_):
        if name == {imported!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
runpy.run_path({script!r}, run_name="__main__")
"""
    words = [sys.executable, "-c", text]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr, done.stdout) == (130, "", "")


def test_the_module_is_the_command_line():
    words = [sys.executable, "-m", "cellmap_segmentation_challenge", "--help"]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: python -m cellmap_segmentation_challenge [OPTIONS]")
    assert "`python -m cellmap_segmentation_challenge COMMAND --help`" in done.stdout


def test_the_overview_lists_every_command_by_task_in_whole_sentences(run):
    code, text, _ = run("--help")
    assert code == 0 and text.startswith("Usage: csc [OPTIONS] COMMAND")
    headings = [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[1:] == [
        "Start",
        "Data",
        "Train",
        "Predict and score",
        "Results",
        "Look and compare",
        "Submit to the challenge",
    ]
    words = text.split()
    for name, command in cli.commands.items():
        assert name in words
        summary = command.summary()
        assert summary.endswith(".") and summary in " ".join(words), name


@pytest.mark.parametrize("name", ["", *cli.commands])
def test_help_fits_80_columns_and_explains_every_option(run, name):
    _, text, _ = run(*name.split(), "--help")
    assert max(len(line) for line in text.splitlines()) <= 80
    for option in cli.commands[name].params if name else cli.params:
        if option.param_type_name == "option":
            assert option.help and option.help.endswith((".", ")")), option.name


def test_an_option_means_the_same_wherever_it_stands():
    """Of those that most commands take; the others say what they are for there."""
    for name in ("overrides", "manifest_path", "root"):
        texts = set()
        for command in cli.commands.values():
            texts |= {o.help for o in command.params if o.name == name and not o.required}
        assert len(texts) == 1, name


def test_the_version_is_that_of_the_package(run):
    assert run("--version") == (0, f"{package.NAME} {package.version()}\n", "")
    assert f'version = "{package.version()}"' in (REPOSITORY / "pyproject.toml").read_text()


def test_every_command_stands_under_a_heading():
    assert all(isinstance(command, Command) for command in cli.commands.values())


def test_help_comes_without_waiting_for_torch():
    assert not {"torch", "zarr"} & imported_with("common.shell.cli")


OF_EXPERIMENTS = (
    *("train", "search", "replay", "predict", "process", "tune", "evaluate", "visualize"),
    *("pack-results", "fingerprint", "export-model", "joint init"),
)
"""Commands that an experiment is named to, without those that look for one as a finding."""


def test_what_is_wrong_with_an_experiments_path_is_told_before_torch_is_imported():
    text = f"""
import sys
sys.modules["torch"] = None  # an import of it raises
from common.shell.cli import main
for words in {OF_EXPERIMENTS!r}:
    for rest in (["nowhere"], ["unet8_all", "--set", "epoch=3"]):
        sys.argv = ["csc", *words.split(), *rest]
        try:
            main()
        except SystemExit as ended:
            assert ended.code == 2
"""
    words = [sys.executable, "-c", text]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stderr
    absent = (
        "error: nowhere: no such configuration; write the path of an experiment's train_config.py"
    )
    unknown = (
        "error: unet8_all/train_config.py: --set epoch=3: unknown setting 'epoch'; did you mean "
        "'epochs'?"
    )
    assert done.stderr.splitlines() == [absent, unknown] * len(OF_EXPERIMENTS)


def test_train_takes_overrides_and_the_data_root(run, trained):
    words = (
        "train",
        "unet8_all/train_config.py",
        "--set",
        "epochs=3",
        "--set=model_name=a_b",
        "--data",
        "somewhere",
    )
    code, said, error = run(*words)
    assert (code, said) == (0, "")
    assert error.startswith("next: ") and error.count("\n") == 1
    assert trained == [("unet8_all/train_config.py", ("epochs=3", "model_name=a_b"), "somewhere")]


def test_train_trains(run, experiment):
    tiny = experiment()
    code, _, said = run(
        "train", tiny.folder / "train_config.py", "--data", tiny.data, "--set", "epochs=1"
    )
    assert code == 0 and "done after epoch 1" in said
    assert (tiny.folder / "checkpoints/tiny_experiment/seed42/best.pt").is_file()


def test_an_interrupted_training_ends_as_a_shell_expects(run, monkeypatch):
    import common.train.run

    monkeypatch.setattr(
        common.train.run, "train", lambda *_, score: SimpleNamespace(finished=False, requeue=False)
    )
    assert run("train", "unet8_all")[0] == 130


def test_check_prints_its_report(run, monkeypatch):
    import common.train.check

    monkeypatch.setattr(
        common.train.check, "check", lambda *arguments, score: f"checked {arguments}"
    )
    following = "next: python -m cellmap_segmentation_challenge train unet8_all\n"
    said = "checked ('unet8_all', (), None)\n"
    assert run("train", "unet8_all", "--check") == (0, said, following)


def test_unite_is_the_script_unite_tensorboards(run, experiment):
    tiny = experiment()
    tiny.train(epochs=1)
    root = tiny.folder.parent
    code, said, _ = run(
        "unite", root, "--no_serve", "--filter", "tiny*", "--export", root / "x.csv"
    )
    assert code == 0 and "tiny_experiment/tiny_experiment/seed42" in said
    assert (root / "tensorboards/tiny_experiment/tiny_experiment/seed42").is_symlink()
    assert (root / "x.csv").is_file()
    code, said, _ = run("unite", "--help")
    assert code == 0 and said.startswith("Usage: csc unite [OPTIONS] [ROOT]...")
    assert "--export-scalars" in said
    code, _, said = run("unite", root, "--no-such-option")
    assert code == 2 and "No such option" in said
    code, _, said = run("unite", root, "--output", root, "--no-serve")
    assert code == 2 and "holds experiments" in said
    for words in (("unite", root, "--traceback"), ("--traceback", "unite", root)):
        code, _, said = run(*words, "--output", root, "--no-serve")
        assert code == 2 and said.startswith("Traceback") and "holds experiments" in said


@pytest.mark.parametrize(
    "words", [("train",), ("train", "x", "--sett", "a=1"), ("trian", "x"), ("train", "x", "y")]
)
def test_a_wrong_command_line_has_exit_code_2(run, trained, words):
    code, _, said = run(*words)
    assert code == 2 and "Error: " in said and not trained


def test_a_misspelt_variable_of_the_environment_is_said(run, monkeypatch):
    monkeypatch.setenv("CELLMAP_DTA", "/data")
    monkeypatch.setenv("CELLMAP_HOME", "of others")
    _, _, said = run("train", "nothing")
    told = "note: nothing reads the variable CELLMAP_DTA of the environment; did you mean"
    assert said.startswith(f"{told} CELLMAP_DATA?")
    assert "CELLMAP_HOME" not in said


def test_a_bug_beside_other_libraries_is_told_with_them(run, experiment, monkeypatch):
    def fail(*_, **__):
        raise AttributeError("module 'zarr' has no attribute 'hierarchy'")

    versions = package.metadata.version
    other = {"zarr": "3.1"}
    monkeypatch.setattr("common.train.run.train", fail)
    monkeypatch.setattr(package.metadata, "version", lambda name: other.get(name) or versions(name))
    code, _, said = run("train", experiment().folder)
    assert code == 1 and said.startswith("Traceback") and "has no attribute 'hierarchy'" in said
    told = "zarr<3,>=2.18 is asked for, and 3.1 is installed, which may be why; install that\n"
    assert said.endswith(told)


# make-datasplit


@pytest.mark.parametrize("command", ["make-datasplit", "make_datasplit"])
@pytest.mark.parametrize("option", ["--min-extent", "--min_extent"])
def test_commands_and_options_are_found_with_both_dashes(run, data_root, tmp_path, command, option):
    words = "--data", data_root, "--scale", 8, "--by", "crop", option, 24
    code, said, _ = run(command, tmp_path / "split.csv", *words)
    assert code == 0 and "training crops" in said


def test_a_split_is_made_of_the_crops_under_the_data_root(run, data_root, tmp_path):
    words = (
        "--classes",
        "mito, er",
        "--data",
        data_root,
        "--scale",
        "8",
        "--by",
        "crop",
        "--validation-fraction",
        0.4,
    )
    assert run("make-datasplit", tmp_path / "split.csv", *words)[0] == 0
    rows = [
        line
        for line in (tmp_path / "split.csv").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert sorted(row.split("/")[-2:] for row in rows) == [
        ["crop1", '[mito,er]"'],
        ["crop2", '[mito]"'],
        ["crop3", '[mito,er]"'],
    ]


def test_the_data_root_of_the_environment_is_scanned(run, data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLMAP_DATA", str(data_root))
    assert run("make-datasplit", tmp_path / "split.csv", "--scale", "8,8,8", "--by", "crop")[0] == 0
    assert "tiny.zarr" in (tmp_path / "split.csv").read_text()


def test_the_public_crops_need_no_data(run, tmp_path):
    code, said, _ = run(
        "make-datasplit", tmp_path / "split.csv", "--manifest", "challenge", "--scale", "128"
    )
    assert code == 0 and "specimen" not in said.splitlines()[-1]
    assert len((tmp_path / "split.csv").read_text().splitlines()) > 100


def test_a_manifest_and_a_data_root_exclude_each_other(run, data_root, tmp_path):
    words = "--manifest", "challenge", "--data", data_root, "--scale", "8"
    code, _, said = run("make-datasplit", tmp_path / "split.csv", *words)
    assert code == 2 and "write one of them" in said


@pytest.mark.parametrize(
    "scale", [["eight"], ["8,8"], ["8,8,0"], [""], ["8", "8"], ["8", "8", "8", "8"], ["1e30"]]
)
def test_a_scale_of_another_form_is_refused(run, tmp_path, scale):
    code, _, said = run("make-datasplit", tmp_path / "split.csv", "--scale", *scale)
    assert (code, said) == (
        2,
        f"error: --scale {','.join(scale)}; write one length in nm or three, z,y,x: 8 or 8,8,8\n",
    )


def test_the_scale_of_a_split_must_be_given(run, tmp_path):
    code, _, said = run("make-datasplit", tmp_path / "split.csv")
    assert code == 2 and "Missing option '--scale'" in said


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("fetch-data -s 6.0 6.0 6.0", {"scale": ((6, 6, 6),)}),
        ("fetch-data --scale 8 --scale 16 8 8 --padding 0 8 8", {"padding_nm": (0, 8, 8)}),
        ("export --scale=8 6 4 a b", {"scale": (8, 6, 4), "source": "a", "out": "b"}),
        ("export --scale [8,6,4] a b", {"scale": (8, 6, 4)}),
        ("export --scale 8,6,4 1 2", {"source": "1", "out": "2"}),
        ("export --voxel-size 8, 6, 4 a b", {"voxel_size": (8, 6, 4)}),
        ("export --roi 0:9 :8 7: a b", {"roi": "0:9,:8,7:", "source": "a"}),
        ("export --roi 0:9,:8,7: a b", {"roi": "0:9,:8,7:"}),
        (
            "import-data a --dataset b --crop 0:1 0:2 0:3 --blocks 1 2 2",
            {"crops": ("0:1,0:2,0:3",)},
        ),
        ("import-data a --dataset b --blocks 1 2 2", {"blocks": "1,2,2"}),
        ("import-data --dataset b --blocks 4 a", {"blocks": "4", "raw": "a"}),
        ("predict --margin 8 a --block 64", {"config_path": "a", "block": 64}),
    ],
)
def test_numbers_along_axes_are_taken_as_they_are_written(typed, taken):
    name, *words = typed.split()
    params = cli.commands[name].make_context(name, words).params
    assert {key: params[key] for key in taken} == taken


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "x", "--workers", 10**6),
        ("train", "x", "--processes", 10**6),
        ("visualize", "x", "--port", 70_000),
        ("search", "x", "--prune-after", -1),
        ("predict", "unet8_all", "--workers", 10**6),
        ("predict", "x", "--time-limit", f"{10**8}d"),
        ("submit", "x", "--cluster", "lsf", "--walltime", f"{10**400}d"),
        ("train", "unet8_all", "--seeds", f"1-{10**30}"),
    ],
)
def test_a_number_that_nobody_means_is_refused(run, trained, words):
    code, _, said = run(*words)
    assert code == 2 and str(words[-1]) in said and not trained


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("train", ""), "CONFIG_PATH"),
        (("fetch-data", "--for", "", "--dry-run"), "--for"),
        (("get-counts", "--data="), "--data"),
        (("compare", "a", ""), "NAMES"),
        (("report", "-o", ""), "--output"),
        (("submit", "--cluster", "lsf", "predict", "x", "--data", ""), "--data"),
        (("make-datasplit", "-cp", "", "--scale", "8"), "-cp"),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set_is_no_value(run, trained, words, name):
    """It would stand for this folder, another data root, or all crops."""
    code, _, said = run(*words)
    assert code == 2 and said.startswith(f"error: {name} '': nothing is in it; write a value")
    assert not trained


@pytest.mark.parametrize(
    ("words", "said_so"),
    [
        (("predict", "x", "--crops", "28", "-c", "31"), "--crops is written 2 times"),
        (("process", "x", "--classes=mito", "--classes=er"), "it once, with commas between"),
        (("train", "x", "--data", "a", "--data", "a"), "--data is written 2 times"),
        (
            ("submit", "--cluster", "lsf", "predict", "x", "--roi", ":,:,:", "--roi", ":,:,9:"),
            "--roi",
        ),
        (
            ("export", "a", "b", "--scale", "8", "6", "4", "--scale", "8"),
            "--scale is written 2 times",
        ),
    ],
)
def test_an_option_of_one_value_that_is_written_twice_is_refused(run, trained, words, said_so):
    code, _, said = run(*words)
    assert code == 2 and "the last alone would count; write it once" in said
    assert said_so in said and not trained


def test_options_that_may_be_repeated_and_flags_are_taken_as_before():
    words = ["x", "--set", "epochs=1", "--set", "epochs=2", "-O", "--overwrite"]
    params = cli.commands["predict"].make_context("predict", words).params
    assert params["overrides"] == ("epochs=1", "epochs=2") and params["overwrite"]


@pytest.mark.parametrize("command", ["predict", "process", "visualize"])
@pytest.mark.parametrize("option", ["--crops", "--manifest"])
def test_crops_beside_a_volume_are_refused(run, command, option):
    """The volume would be taken, and the crops left out unseen."""
    code, _, said = run(command, "unet8_all", "--volume", "a.zarr", option, "28")
    assert (code, said) == (
        2,
        f"error: {option} and --volume: a volume is one box of its own; write one of them\n",
    )


def test_ortho_is_one_orientation_in_the_planes_of_all_axes(run, monkeypatch):
    import common.infer.predict

    asked = []

    def predicted(*_, **options):
        asked.append((options["orientations"], options["planes"]))
        return []

    monkeypatch.setattr(common.infer.predict, "predict", predicted)
    for option in (["--orientations", "ortho"], ["--orientations", "8"]):
        assert run("predict", "unet8_all", *option)[0] == 0
    assert asked == [(1, "all"), (8, "own")]


# demo


def test_the_demo_takes_minutes_and_a_folder(run, monkeypatch):
    import common.shell.demo

    calls = []

    def demo(*arguments):
        calls.append(arguments)
        return "demo.png" if len(calls) < 3 else None

    monkeypatch.setattr(common.shell.demo, "demo", demo)
    assert run("demo", "--minutes", "0.5", "--output", "here")[0] == 0
    assert run("demo")[0] == 0
    assert calls == [("here", 0.5, None, ()), ("demo", 0.0, None, ())]
    assert run("demo")[0] == 130  # interrupted


def test_a_demo_takes_time(run):
    code, _, said = run("demo", "--minutes", "0")
    assert code == 2 and "--minutes" in said


def test_the_environment_of_tests_is_clean():
    assert not {"SEED", "CELLMAP_DATA"} & set(os.environ)
