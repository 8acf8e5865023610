from __future__ import annotations

import json
import math
import shlex
import statistics
import subprocess
import sys

import pytest
from conftest import DEADLINE

from common.train.recording.record import read_history
from common.train.several import seeds
from common.train.several.seeds import Spread


def approximately(values) -> Spread:
    """Equal to a Spread of these values up to rounding."""
    return Spread(
        pytest.approx(statistics.mean(values)),
        pytest.approx(statistics.stdev(values)),
        len(values),
    )


def test_seeds_run_one_after_the_other_and_their_spread_is_that_of_their_best_epochs(
    experiment, capsys
):
    tiny = experiment(epochs=2, iterations_per_epoch=30, learning_rate=0.05)
    results = seeds.train_seeds(tiny.folder, [1, 2, 3], data=tiny.data)
    assert [result.run for result in results] == ["seed1", "seed2", "seed3"]
    found = seeds.spread([result.logs for result in results])
    best = [result.best_metric for result in results]
    assert len(set(best)) == 3
    assert found["validation/dice"] == approximately(best)
    mito = []
    for result in results:
        history = read_history(result.logs)
        mito.append(history["recall/mito"][history["validation/dice"].idxmax()])
    assert found["recall/mito"] == approximately(mito)
    mean = f"{statistics.mean(best):.3f} +- {statistics.stdev(best):.3f}"
    assert f"mean  {mean}" in capsys.readouterr().err


def write_run(folder, values, validation=None):
    """A run with `dice/mito` and, where given, the mean by which its best epoch is found."""
    folder.mkdir()
    lines = ["epoch,dice/mito,validation/dice"]
    for epoch, value in enumerate(values, 1):
        mean = validation[epoch - 1] if validation else ""
        lines.append(f"{epoch},{value},{mean}")
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    if validation:
        (folder / "run.json").write_text(json.dumps({"result": {"best_metric": "dice"}}))
    return folder


def test_a_class_that_does_not_occur_in_a_run_is_left_out_of_the_mean(tmp_path):
    runs = [
        write_run(tmp_path / "a", [0.2, 0.6, 0.1], validation=[0.3, 0.5, 0.4]),
        write_run(tmp_path / "b", [0.4]),
        write_run(tmp_path / "c", [""]),
    ]
    assert seeds.spread(runs)["dice/mito"] == approximately([0.6, 0.4])


def test_one_run_has_no_spread_and_a_run_without_history_is_left_out(tmp_path):
    found = seeds.spread([write_run(tmp_path / "a", [0.2, 0.6]), tmp_path / "none"])
    assert found["dice/mito"].mean == 0.6
    assert math.isnan(found["dice/mito"].deviation)
    assert seeds.spread([]) == {}
    assert seeds.table({}) == "no validation to compare the seeds by"


def test_the_table_has_means_first_and_a_line_a_class():
    found = {
        "validation/loss": Spread(0.5, 0.1, 2),
        "validation/dice": Spread(0.7, 0.05, 2),
        "dice/er": Spread(0.75, 0.25, 2),
        "dice/mito": Spread(0.65, math.nan, 1),
    }
    assert seeds.table(found).splitlines() == [
        "2 seeds at their best epochs, mean +- standard deviation; validation loss 0.500 +- 0.100",
        "      dice",
        "mean  0.700 +- 0.050",
        "er    0.750 +- 0.250",
        "mito  0.650",
    ]


QUEUE = """
import json
import sys

with open(sys.argv[1], "a") as file:
    file.write(json.dumps(sys.argv[2:]) + "\\n")
"""


def test_a_queue_gets_the_command_as_one_word_that_its_shell_takes_apart_again(
    experiment, tmp_path
):
    tiny = experiment()
    overrides = ["input_array_info.shape=(20, 20, 20)", "model_name=it's"]
    queue = tmp_path / "queue.py"
    queue.write_text(QUEUE)
    template = f"{sys.executable} {queue} {tmp_path / 'calls'} -J 'run {{seed}}' {{command}}"
    seeds.submit(tiny.folder, [4, 5], template, overrides=overrides, data=tiny.data)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[:2] for call in calls] == [["-J", "run 4"], ["-J", "run 5"]]
    # the shell that a queue starts takes the command apart; here it is shown what it would get
    show = "import sys, json; print(json.dumps(sys.argv[1:]))"
    command = calls[0][2].replace("-m cellmap_segmentation_challenge", f"-c {shlex.quote(show)}")
    shown = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    wanted = ["train", str(tiny.folder)]
    for override in (*overrides, "random_seed=4"):
        wanted += ["--set", override]
    assert json.loads(shown.stdout) == [*wanted, "--data", str(tiny.data)]


@pytest.mark.parametrize(
    ("overrides", "template", "error", "sentence"),
    [
        ((), "bsub -n 4", ValueError, "no {command} in it"),
        ((), "no-such-queue {command}", OSError, "no-such-queue .* did not work"),
        ((), "false {command}", OSError, "change --submit"),
        (["run_name=one"], "true {command}", ValueError, "write {random_seed} in it"),
        (["random_seed=3"], "true {command}", ValueError, "write one of them"),
    ],
)
def test_what_cannot_be_submitted_is_said(experiment, overrides, template, error, sentence):
    tiny = experiment()
    with pytest.raises(error, match=sentence):
        seeds.submit(tiny.folder, [1, 2], template, overrides=overrides, data=tiny.data)


@pytest.mark.parametrize(
    ("text", "wanted"), [("1,2,3", [1, 2, 3]), ("7", [7]), ("1-3,9", [1, 2, 3, 9]), ("1 2", [1, 2])]
)
def test_seeds_are_numbers_and_ranges(text, wanted):
    assert seeds.parse_seeds(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "a", "1,1", "1-2,2", "-1", "1-1001", "1-99999999999999999999"]
)
def test_other_seeds_are_refused(text):
    with pytest.raises(ValueError, match="--seeds"):
        seeds.parse_seeds(text)
