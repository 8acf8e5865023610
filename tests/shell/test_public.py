"""The public toolbox's command lines: what each of them calls here, or what it says to type."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import zarr

import common.data.download.fetch
import common.data.splits.make_split
import common.infer.predict
import common.infer.process
import common.score.batch
import common.score.evaluate
import common.score.packing
import common.show.visualize
import common.train.run
from cellmap_segmentation_challenge import __main__ as program
from common.classes import INSTANCES
from common.errors import UserError
from common.score.batch import Submission, commands, read
from common.shell import public
from common.shell.cli import cli
from common.shell.commands import predict as predict_commands
from common.stopping import SIGNALS

ENGINE = {
    "train": common.train.run,
    "predict": common.infer.predict,
    "process": common.infer.process,
    "fetch": common.data.download.fetch,
    "make": common.data.splits.make_split,
    "evaluate_submission": common.score.evaluate,
    "pack": common.score.packing,
    "visualize": common.show.visualize,
    "evaluate_all": common.score.batch,
}
"""The function of each command, and its module."""


@pytest.fixture
def csc(monkeypatch, capsys):
    """Runs a line as the installed command; gives (exit code, standard output, standard error)."""

    def call(line: str) -> tuple[int, str, str]:
        words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            program.csc()
        return ended.value.code, *capsys.readouterr()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield call
    for number, handler in before.items():  # a program that ends ignores them
        signal.signal(number, handler)


@pytest.fixture
def calls(monkeypatch):
    """What the engine is called with: (function, arguments, keywords)."""
    seen = []

    def stand_in(name):
        def called(*arguments, **keywords):
            seen.append((name, arguments, keywords))
            return [] if name != "make" else ""

        return called

    for name, module in ENGINE.items():
        if name != "train":  # whose result is looked at
            monkeypatch.setattr(module, name, stand_in(name))
    # they look at the experiment and at what was written
    for name in ("say_after_predictions", "say_after_processing"):
        monkeypatch.setattr(predict_commands, name, lambda *_: None)
    return seen


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with the files that the lines name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.csv").write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "557,jrc_x,mito,[8;8;8],[0;0;0],[4;4;4]\n"
    )
    url = (tmp_path / "manifest.csv").as_uri()
    monkeypatch.setenv("CSC_TEST_CROP_MANIFEST_URL", url)
    monkeypatch.setenv("CELLMAP_DATA", str(tmp_path / "data"))
    (tmp_path / "data/ground_truth.zarr").mkdir(parents=True)
    (tmp_path / "d/ground_truth.zarr").mkdir(parents=True)
    (tmp_path / "data/submission.zip").touch()
    (tmp_path / "my").mkdir()
    for name in ("my.py", "my/train_config.py"):
        (tmp_path / name).touch()
    (tmp_path / "table.csv").write_text("data_path,evaluation_id\nmine.zip,7\n")
    return tmp_path


P = "{dataset}.zarr/{crop}"
TAKEN = [
    # line, function, some of its arguments by name; those by position are 0, 1
    ("csc predict my.py", "predict", {0: "my.py", "crops": "test"}),
    ("csc predict my.py -c test", "predict", {"crops": "test"}),
    ("csc predict my.py -c '*' -O", "predict", {"crops": "*", "overwrite": True}),
    ("csc predict my.py --crops 111,112", "predict", {"crops": "111,112"}),
    (f"csc predict my.py -o out/{P}", "predict", {"overrides": ("predictions_path={here}/out",)}),
    (
        "csc predict my.py --output-path out",
        "predict",
        {"overrides": ("predictions_path={here}/out",)},
    ),
    ("csc predict my.py", "predict", {"planes": "auto"}),
    ("csc predict my.py -so", "predict", {"crops": "test", "planes": "own"}),
    (
        "csc predict my.py -s /d/{dataset}/{dataset}.zarr/recon-1/{name} -r em/fibsem-uint8 "
        "-n labels/groundtruth/{crop}/{label}",
        "predict",
        {"data": Path("/d")},
    ),
    ("csc process my.py", "process", {0: "my.py", "crops": "test"}),
    ("csc process my.py -c 111 -O", "process", {"crops": "111", "overwrite": True}),
    (
        f"csc process my.py -i in/{P} -o out/{P}",
        "process",
        {"overrides": ("predictions_path={here}/in", "processed_path={here}/out")},
    ),
    ("csc process my.py -d cpu -w 4", "process", {"crops": "test"}),
    ("csc pack-results", "pack", {2: "submission.zip"}),
    (f"csc pack-results -i in/{P} -o mine.zarr -O -w 8", "pack", {2: "mine.zip"}),
    ("csc pack-results --input_search_path in --output_path mine.zip", "pack", {2: "mine.zip"}),
    (
        "csc evaluate",
        "evaluate_submission",
        {
            0: Path("{here}/data/submission.zip"),
            1: Path("{here}/data/ground_truth.zarr"),
            "instance_classes": INSTANCES,
        },
    ),
    (
        "csc evaluate -s mine.zip -r mine.json",
        "evaluate_submission",
        {0: "mine.zip", "result_path": "mine.json"},
    ),
    (
        "csc evaluate --submission_path mine.zip --truth_path t.zarr --result_file x.json",
        "evaluate_submission",
        {0: "mine.zip", 1: "t.zarr", "result_path": "x.json"},
    ),
    (
        "csc evaluate --data d -s mine.zip",
        "evaluate_submission",
        {1: Path("{here}/d/ground_truth.zarr")},
    ),
    ("csc evaluate -ic nuc,mito", "evaluate_submission", {"instance_classes": ("nuc", "mito")}),
    ("csc visualize", "visualize", {0: None, "crops": "*"}),
    (
        "csc visualize -d jrc_x -c 111 -C nuc -k gt",
        "visualize",
        {"crops": "jrc_x/111", "classes": ("nuc",), "kinds": ("raw", "truth")},
    ),
    ("csc visualize my -c 111 -k gt", "visualize", {"crops": "111", "kinds": ("raw", "truth")}),
    (
        "csc visualize my -d jrc_x -C nuc,er -k predictions,processed",
        "visualize",
        {"crops": "jrc_x/*", "classes": ("nuc", "er"), "kinds": ("predictions", "processed")},
    ),
    ("csc fetch-data", "fetch", {0: "*"}),
    ("csc fetch-data -c all -d here", "fetch", {0: "*", "data": "here"}),
    ("csc fetch-data -c test -p 64", "fetch", {0: "test", "padding_voxels": 64}),
    (
        "csc fetch-data -c 111,112 -m append -b 256 -w 32",
        "fetch",
        {0: "111,112", "workers": 32, "verify": False},
    ),
    ("csc fetch-data -m overwrite --num-workers 4", "fetch", {"verify": True, "workers": 4}),
    ("csc fetch-data -all-res --raw-padding 128", "fetch", {"all_resolutions": True}),
    (
        "csc make-datasplit",
        "make",
        {0: "datasplit.csv", "classes": ("nuc", "er"), "scale": None},
    ),
    (
        "csc make-datasplit -c nuc,mito -s 8 -vr 0.2 -cp mine.csv",
        "make",
        {
            0: "mine.csv",
            "classes": ("nuc", "mito"),
            "scale": (8.0, 8.0, 8.0),
            "validation_fraction": 0.2,
        },
    ),
    ("csc make-datasplit -s 6.0 4 8", "make", {0: "datasplit.csv", "scale": (6, 4, 8)}),
    ("csc make-datasplit -s 8 -vr 0.2", "make", {"scale": (8, 8, 8), "by": "auto"}),
    ("csc make-datasplit -s 8,8,8 -fa", "make", {"force_classes": "all"}),
    ("csc make-datasplit -s 8 -ft", "make", {"force_classes": "train"}),
    ("csc make-datasplit -s 8 -fv", "make", {"force_classes": "validate"}),
    (
        "csc make-datasplit -s 8 -ds jrc_x,jrc_y -cr 111,112",
        "make",
        {"datasets": ("jrc_x", "jrc_y"), "crops": ("111", "112")},
    ),
    (
        "csc make-datasplit -sp /d/{dataset}/{dataset}.zarr/recon-1/{name} -rn em/fibsem-uint8 "
        "-cn labels/groundtruth/{crop}/{label}",
        "make",
        {"data_root": Path("/d")},
    ),
    ("csc batch-eval -c table.csv -n 4", "evaluate_all", {0: "table.csv", "workers": 4}),
]


@pytest.mark.parametrize(("line", "function", "expected"), TAKEN, ids=[row[0] for row in TAKEN])
def test_a_public_command_line_does_what_it_says(csc, calls, here, line, function, expected):
    code, _, said = csc(line)
    assert code == 0, said
    [(name, arguments, keywords)] = calls
    assert name == function
    given = dict(enumerate(arguments)) | keywords
    for key, value in expected.items():
        assert given[key] == in_folder(here, value), key


def in_folder(here: Path, value):
    """A value of the table, with the working folder in the place of {here}."""
    if isinstance(value, tuple):
        return tuple(in_folder(here, part) for part in value)
    if isinstance(value, Path):
        return Path(str(value).format(here=here))
    return value.replace("{here}", str(here)) if isinstance(value, str) else value


REFUSED = [
    ("csc visualize -c test", "of which experiment?"),
    ("csc visualize --set epochs=3", "for an experiment"),
    ("csc visualize my -d jrc_x -c test", "names of crops"),
    ("csc visualize my -k submission", "raw, truth, predictions, processed"),
    ("csc fetch-data --zip", "leave --zip out"),
    ("csc fetch-data -m replace", "append or overwrite"),
    ("csc fetch-data -p 4 --padding 8", "one of them"),
    ("csc make-datasplit -fa -ft", "--force-all-classes and --force-all-classes-train; write one"),
    ("csc make-datasplit a.csv -cp b.csv", "CSV_PATH and --csv-path; write one"),
    ("csc predict x --data d -s /d/{dataset}/{dataset}.zarr/recon-1/{name}", "write one of them"),
    ("csc make-datasplit -s3", "--manifest challenge"),
    ("csc make-datasplit -sp /d/{dataset}.zarr/{name}", "datasplit.csv"),
    ("csc predict my.py -r em/other", "datasplit.csv"),
    ("csc predict my.py -n labels/{crop}/{label}", "datasplit.csv"),
    ("csc predict my.py -o out/{crop}", "write FOLDER"),
    ("csc speedtest", "fetch-data --dry-run"),
    ("csc batch-eval -c nowhere.csv", "nowhere.csv: no such table"),
    ("csc pack-results my -i in", "one of them"),
]


@pytest.mark.parametrize(("line", "advice"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_cannot_be_said_here_is_answered_with_what_to_type(csc, here, line, advice):
    code, _, said = csc(line)
    assert code == 2 and advice in said.splitlines()[-1], said
    assert said.splitlines()[-1].startswith("error: ")


def test_train_has_no_options_there(csc, experiment):
    tiny = experiment(epochs=1)
    code, _, said = csc(f"csc train {tiny.folder}/train_config.py")
    assert code == 2 and "data" in said  # of the data root, which is not named
    code, _, said = csc(f"csc train {tiny.folder}/train_config.py --data {tiny.data}")
    assert code == 0, said


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("csc predict my.py", "--crops takes test, as in the public toolbox; write --crops valid"),
        ("csc visualize my", "--crops takes *,"),
        ("csc make-datasplit -s 8", "--classes takes nuc,er,"),
        ("csc fetch-data -b 3", "--batch-size has no effect"),
        ("csc process my.py -w 3", "start the command several times"),
    ],
)
def test_a_note_says_what_is_otherwise(csc, calls, here, line, says):
    _, _, said = csc(line)
    assert sum(says in text for text in said.splitlines()) == 1, said


@pytest.mark.parametrize(
    "line",
    [
        "csc predict my.py -c test",
        "csc predict my.py -c validate",
        "csc predict my.py --volume a.tif",
    ],
)
def test_what_is_written_needs_no_note(csc, calls, here, line):
    assert csc(line)[:2] == (0, "")


def test_the_module_keeps_our_own_defaults(run, calls, here):
    assert run("predict", "my.py")[:2] == (0, "")
    assert calls[0][2]["crops"] == "validate" and calls[0][2]["planes"] == "own"


@pytest.mark.parametrize("name", ["-o", "-i", "-so"])
def test_help_lists_the_public_options_and_the_public_default(csc, name):
    _, text, _ = csc("csc process --help" if name == "-i" else "csc predict --help")
    assert f"{name}, --" in text.partition("Options of the public toolbox:")[2]
    assert "[default: test]" in " ".join(text.split())


def test_every_public_option_is_of_a_command_and_has_no_rival():
    for name, options in public.OPTIONS.items():
        command = cli.commands[name]
        flags = [flag for param in command.params for flag in param.opts]
        assert len(flags) == len(set(flags)), name
        for option in options:
            assert set(option.flags.split()) <= set(flags), (name, option.flags)
    for name, defaults in public.DEFAULTS.items():
        assert set(defaults) <= {param.name for param in cli.commands[name].params}


def test_what_is_translated_reaches_a_parameter(here):
    """A name that no command takes would be an error of its own, far from here."""
    values = {"-m": "append", "-cp": "x", "-k": "gt", "-r": "em/fibsem-uint8"}
    for name, options in public.OPTIONS.items():
        parameters = {param.name for param in cli.commands[name].params}
        for option in options:
            if not isinstance(option, public.Other):
                continue
            try:
                taken = option.take(values.get(option.flags.split()[0], f"/d/{P}"))
            except UserError:
                continue
            assert set(taken) <= parameters, (name, option.flags)


# get-counts


def test_counts_are_those_of_the_crops_on_disk(csc, data_root):
    code, text, _ = csc(f"csc get-counts -c mito,er --data {data_root}")
    rows = [line.split() for line in text.splitlines()]
    assert code == 0
    assert rows == [["class", "tiny", "all"], ["mito", "3", "3"], ["er", "2", "2"]]


def test_counts_of_a_class_that_nothing_knows_are_refused(csc, data_root):
    code, _, said = csc(f"csc get-counts -c mitto --data {data_root}")
    assert code == 2 and "'mitto'" in said and "'mito'" in said


# batch-eval


def test_without_a_truth_the_message_is_of_the_command(csc, here):
    (here / "data/ground_truth.zarr").rmdir()
    code, _, said = csc("csc batch-eval -c table.csv")
    assert code == 2 and said.startswith("error: batch-eval: write --truth ZARR (left out, it")


def truth_and_submissions(folder: Path) -> None:
    """A truth, and two submissions: the truth itself, and nothing."""
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[2:6, 2:6, 2:6] = 1
    for name, volume in (("truth", truth), ("good", truth), ("empty", truth * 0)):
        group = zarr.open_group(str(folder / f"{name}.zarr"), mode="w")
        array = group.create_dataset("crop1/er", data=volume, chunks=(8, 8, 8))
        array.attrs.update(voxel_size=[8, 8, 8], translation=[0, 0, 0], shape=[8, 8, 8])


def test_each_submission_of_a_table_has_its_result(csc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth_and_submissions(tmp_path)
    (tmp_path / "table.csv").write_text("evaluation_id,data_path\n1,good.zarr\n2,empty.zarr\n")
    code, _, said = csc("csc batch-eval -c table.csv --truth truth.zarr")
    assert code == 0, said
    assert '"iou": 1.0' in (tmp_path / "eval_1.results").read_text()
    assert '"iou": 0.0' in (tmp_path / "eval_2.results").read_text()


def test_one_that_fails_does_not_stop_the_others(csc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth_and_submissions(tmp_path)
    (tmp_path / "table.csv").write_text("evaluation_id,data_path\n1,gone.zip\n2,good.zarr\n")
    code, _, said = csc("csc batch-eval -c table.csv --truth truth.zarr")
    assert code == 2 and "gone.zip" in said
    assert (tmp_path / "eval_2.results").is_file()


def test_for_a_cluster_the_commands_are_written(here):
    [line] = commands("table.csv", "t.zarr", 4)
    words = shlex.split(line)
    assert words[:3] == ["bsub", "-n", "4"]
    inner = shlex.split(words[3])
    assert inner[3:] == [
        *("evaluate", "--submission", "mine.zip", "--truth", "t.zarr"),
        *("--result", "eval_7.results", "--workers", "4"),
    ]


def test_a_table_names_a_file_a_submission(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("data_path,evaluation_id\na.zip,1\n")
    assert read(path) == [Submission(Path("a.zip"), "1")]
    for text, reason in (
        ("path,id\na,1\n", "no column data_path, evaluation_id"),
        ("data_path,evaluation_id\n", "no rows"),
        ("data_path,evaluation_id\na,../1\n", "evaluation_id '../1'"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=reason):
            read(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("csc evaluate -s mine.zip --classes mito", "--classes: for an experiment; leave it out"),
        ("csc evaluate --write-readme", "--write-readme: for an experiment"),
        ("csc evaluate -s mine.zip --crops 28 --set a=1", "--crops, --set: for an experiment"),
        ("csc evaluate my.py -r x.json", "--result: for a submission"),
    ],
)
def test_options_of_the_other_kind_of_evaluation_are_refused(csc, here, line, words):
    code, _, said = csc(line)
    assert code == 2 and said.startswith(f"error: {words}")


def test_classes_that_are_scored_by_objects_can_be_chosen(csc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth_and_submissions(tmp_path)
    assert csc("csc evaluate -s good.zarr -t truth.zarr -ic er")[0] == 0
    assert '"kind": "instance"' in (tmp_path / "result.json").read_text()


def test_click_keeps_what_public_options_stand_on():
    """Long names behind one dash, and names that are added to an option after it is made."""
    option = click.Option(["--classes"])
    option.opts.append("-cn")
    command = click.Command("x", params=[option], callback=click.echo)
    context = command.make_context("x", ["-cn", "er"])
    assert context.params == {"classes": "er"}
