"""The page as text: what is in it, that it loads nothing, that what comes from files is escaped."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import forbid

from common.errors import UserError
from common.runs import report, section
from common.score import readme
from common.train.recording.tracking import TensorBoard

SETTINGS = {
    "epochs": "4",
    "learning_rate": "0.0001",
    "batch_size": "8",
    "random_seed": "42",
    "run_name": "'seed{random_seed}'",
}


ADDRESSES = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
"""Attributes that make a browser ask for something."""


class Page(HTMLParser):
    """Elements, addresses, and the text of the cells of each table."""

    def __init__(self, text: str):
        super().__init__()
        self.source = text
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.addresses += [value for name, value in attrs if name in ADDRESSES]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.cell:
            self.tables[-1][-1][-1] += data

    def pictures(self) -> list[Image.Image]:
        pictures = []
        for address in self.addresses:
            if address.startswith("data:"):
                kind, data = address.split(",", 1)
                assert kind == "data:image/jpeg;base64"
                pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return pictures

    def column(self, number: int) -> list[str]:
        """Of the table of all runs."""
        return [row[number] for row in self.tables[0][1:]]


COLUMNS = (
    "epoch",
    "iteration",
    "train/loss",
    "train/samples_per_s",
    "validation/loss",
    "validation/dice",
    "dice/mito",
    "dice/er",
)


def make_run(
    root: Path,
    name: str,
    dice: list[float],
    settings: dict | None = None,
    *,
    metric: str = "dice",
    record: bool = True,
    **result,
) -> Path:
    """A run with two classes, er at half the dice of mito."""
    experiment, model, run = name.split("/")
    folder = root / experiment / "logs" / model / run
    folder.mkdir(parents=True)
    rows = [",".join(COLUMNS)]
    for epoch, mito in enumerate(dice, 1):
        values = (epoch, epoch * 50, 1 / epoch, 9.5, 2 / epoch, mito * 0.75, mito, mito / 2)
        rows.append(",".join(map(str, values)))
    (folder / "history.csv").write_text("\n".join(rows) + "\n")
    if not record:
        return folder
    content = {
        "settings": {**SETTINGS, **(settings or {})},
        "provenance": {
            "commit": "0123456789abcdef",
            "uncommitted_changes": "True",
            "torch": "2.15",
        },
        "sessions": [
            {
                "began": "2026-11-20T10:00:00+00:00",
                "ended": "2026-11-20T12:00:00+00:00",
                "first_iteration": 0,
                "last_iteration": 9,
            }
        ],
        "result": {
            "epoch": len(dice),
            "best_metric": metric,
            "finished": True,
            "hours": 1.25,
            **result,
        },
    }
    (folder / "run.json").write_text(json.dumps(content))
    return folder


def write_scores(folder: Path, scores: dict, name: str = "scores.json") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(scores))


def log_images(folder: Path, tag: str, *shades: int) -> None:
    """An image of each shade, at the iterations 100, 200, ..."""
    log = TensorBoard(folder)
    for number, shade in enumerate(shades, 1):
        log.image(tag, np.full((16, 24, 3), shade, np.uint8), 100 * number)
    log.finish("FINISHED", {}, {}, ())


def page(root: Path, *experiments: str) -> Page:
    output = root / "out/report.html"
    report.report(experiments, root=root, output=output, say=lambda text: None)
    return Page(output.read_text())


def test_the_table_has_every_run_with_what_it_came_to(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4, 0.8, 0.6])
    make_run(tmp_path, "a/m/seed2", [0.4, 0.9], {"learning_rate": "0.01"}, finished=False)
    make_run(tmp_path, "b/m/seed1", [0.2], record=False)
    found = page(tmp_path)
    head, *rows = found.tables[0]
    assert head == [
        "run",
        "metric",
        "best",
        "at epoch",
        "epochs",
        "finished",
        "hours",
        "samples/s",
        "score",
        "date",
        "commit",
        "settings that differ",
    ]
    common = ["9.5", "", "2026-11-20", "0123456789+"]
    assert rows[0] == [
        "a/m/seed2",
        "dice",
        "0.6750",
        "2",
        "2 of 4",
        "no",
        "1.25",
        *common,
        "learning_rate 0.01",
    ]
    assert rows[1] == [
        "a/m/seed1",
        "dice",
        "0.6000",
        "2",
        "3 of 4",
        "yes",
        "1.25",
        *common,
        "learning_rate 0.0001",
    ]
    assert rows[2][:6] == ["b/m/seed1", "dice", "0.1500", "1", "1", "unknown"]
    assert found.text.strip().startswith("Runs of a, b")
    assert "3 runs" in found.text


def test_the_page_loads_nothing(tmp_path):
    folder = make_run(tmp_path, "a/m/seed1", [0.4, 0.8])
    log_images(folder, "raw, target, prediction/mito", 0)
    found = page(tmp_path)
    assert found.pictures()
    assert all(address.startswith(("data:image/", "#")) for address in found.addresses)
    without_pictures = re.sub(r"data:image/[^\"]*", "", found.source)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", without_pictures)
    assert not {"link", "iframe", "object", "embed", "base"} & set(found.tags)
    assert section.INK not in found.source
    assert "fill: currentColor" in found.source
    assert ("content", report.POLICY) in found.attributes
    assert "default-src 'none'" in report.POLICY


EVIL = '<img src="http://evil.example/x.png" onerror=alert(1)>'


def test_what_comes_from_files_is_escaped(tmp_path):
    name = 'a<script>/m/"$x^<b>&'
    folder = make_run(tmp_path, name, [0.4, 0.8], {"learning_rate": EVIL, "run_name": f"'{EVIL}'"})
    make_run(tmp_path, "a<script>/m/other", [0.4, 0.8], {"extra<td>": "1"})
    log_images(folder, "<svg onload=alert(1)>", 0)
    results = tmp_path / name.replace("/m/", "/results/m/")
    scores = {
        "metric": EVIL,
        "overall_score": 0.5,
        "classes": {"<p onclick=a>": {"score": 0.5}},
        "provenance": {"date": "<p onclick=b>"},
    }
    write_scores(results, scores)
    write_scores(results, {"overall_score": 0.25}, "<p onclick=c>.json")
    found = page(tmp_path)
    assert found.tags.count("script") == 1
    assert "b" not in found.tags
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert found.tags.count("img") == 1
    assert not any("evil" in address for address in found.addresses)
    assert found.column(0)[0] == name
    assert found.column(8)[0] == "0.5000"
    for text in (EVIL, "<p onclick=a>", "<p onclick=b>", "<p onclick=c>"):
        assert text in found.text


def test_bars_show_each_class_and_its_score(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4, 0.8])
    scores = {
        "metric": "CellMap",
        "overall_score": 0.3456,
        "classes": {
            "mito": {"score": 0.61, "interval_95": [0.5, 0.7]},
            "ld": {"score": 0.2, "interval_95": None},
        },
    }
    write_scores(tmp_path / "a/results/m/seed1", scores)
    found = page(tmp_path)
    assert found.tables[1] == [
        ["class", "dice at the best epoch", "score in scores.json", "95 % interval"],
        ["mito", "0.800", "0.610", "0.500 to 0.700"],
        ["er", "0.400", "", ""],
        ["ld", "", "0.200", ""],
    ]
    assert found.column(8) == ["0.3456"]
    assert "overall score 0.3456" in found.text
    shares = [float(share) for share in re.findall(r"--share: ([\d.]+)", found.source)]
    assert shares == [0.8, 0.61, 0.4, 0.2]


def noise_scores(overall: float) -> dict:
    """Scores of a prediction of which the metric left out mito."""
    return {
        "metric": "CellMap",
        "overall_score": overall,
        "classes": {
            "mito": {"kind": "instance", "score": 1.0, "left_out": 2, "crops": 2},
            "er": {"score": 0.2, "left_out": 0, "crops": 2},
        },
    }


def test_a_score_that_the_metric_left_something_out_of_is_marked_and_sorted_last(tmp_path):
    for name, overall in (("noise", 0.99), ("good", 0.5)):
        make_run(tmp_path, f"a/m/{name}", [0.4])
        scores = noise_scores(overall)
        if name == "good":
            del scores["classes"]["mito"]
        write_scores(tmp_path / f"a/results/m/{name}", scores)
    found = page(tmp_path)
    assert found.column(0) == ["a/m/good", "a/m/noise"]  # of equal dice
    assert found.column(8) == ["0.5000", "0.9900*"]
    assert '<td class="number" data-value="" title="The metric left out mito' in found.source


def test_of_equal_runs_the_one_of_which_less_is_left_out_comes_first(tmp_path):
    for name, left_out in (("a_more", 2), ("less", 1)):
        make_run(tmp_path, f"a/m/{name}", [0.4])
        scores = noise_scores(0.5)
        scores["classes"]["mito"]["left_out"] = left_out
        write_scores(tmp_path / f"a/results/m/{name}", scores)
    assert page(tmp_path).column(0) == ["a/m/less", "a/m/a_more"]


def test_a_score_of_other_crops_is_marked_and_sorted_last(tmp_path):
    scores = {"metric": "CellMap", "overall_score": 0.5, "classes": {}}
    for name, file in (("all", "scores.json"), ("train", "scores_train.json")):
        make_run(tmp_path, f"a/m/{name}", [0.4])
        write_scores(tmp_path / f"a/results/m/{name}", scores, file)
    # a run with both is shown by that which others have
    write_scores(tmp_path / "a/results/m/all", scores | {"overall_score": 0.9}, "scores_28.json")
    found = page(tmp_path)
    assert found.column(8) == ["0.5000", "0.5000*"]
    assert "This score is of scores_train.json, and those of other runs are of" in found.source


def test_a_best_run_that_predicts_too_many_objects_is_not_called_best_without_a_word(tmp_path):
    make_run(tmp_path, "a/m/noise", [0.4])
    write_scores(tmp_path / "a/results/m/noise", noise_scores(0.99))
    found = page(tmp_path)
    assert "The metric left out mito in 2 of 2 crops, for too many" in found.text
    assert [row[0] for row in found.tables[1]] == ["class", "mito *", "er"]


def test_pictures_are_of_classes_that_occur_from_the_best_to_the_worst():
    values = {"nuc": 0.9, "mito": 0.8, "mito_mem": 0.85, "er": 0.5, "ves": 0.1, "pm": 0.0}
    tags = [f"panels/{name}" for name in sorted([*values, "cyto", "actin", "bm", "cent"])]
    chosen = [tag.rsplit("/", 1)[1] for tag in section.chosen_tags(tags, values)]
    assert chosen == ["nuc", "mito", "er", "ves", "pm", "mito_mem"]
    many = {f"class{number}": number / 20 for number in range(21)}
    chosen = section.chosen_tags(list(many), many)
    assert chosen == ["class20", "class16", "class12", "class8", "class4", "class0"]


def test_what_is_to_be_seen_in_the_pictures_is_said(tmp_path):
    folder = make_run(tmp_path, "a/m/seed1", [0.4])
    log_images(folder, "raw, target, prediction/mito", 0)
    assert "blue where nobody knows" in page(tmp_path).text


def test_pictures_are_the_last_of_each_tag_and_are_scaled_down(tmp_path):
    folder = make_run(tmp_path, "a/m/seed1", [0.4, 0.8])
    log_images(folder, "prediction/mito", 0, 255)
    Image.new("RGB", (3000, 600), (255, 0, 0)).save(tmp_path / "a" / readme.PICTURE)
    found = page(tmp_path)
    wide, last = found.pictures()
    assert wide.size == (section.PICTURE_WIDTH, 240)
    assert wide.getpixel((5, 5))[0] > 240
    assert last.size == (24, 16)
    assert np.asarray(last).min() > 250
    assert "prediction/mito, iteration 200" in found.text


def test_a_picture_that_cannot_be_read_is_a_line_of_text(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4])
    (tmp_path / "a" / readme.PICTURE).write_bytes(b"no picture")
    found = page(tmp_path)
    assert "scores.png: cannot be read" in found.text
    assert not found.pictures()


def test_events_that_are_too_large_are_not_read_for_pictures(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "a/m/seed1", [0.4, 0.8])
    log_images(folder, "prediction/mito", 0)
    monkeypatch.setattr(section, "EVENTS_GB", 1e-9)
    assert not page(tmp_path).pictures()


def test_settings_that_differ_from_their_defaults_come_first(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4], {"batch_size": "2"})
    found = page(tmp_path)
    changed, others = found.tables[2:4]
    assert changed == [
        ["setting", "value", "default"],
        ["epochs", "4", "1000"],
        ["batch_size", "2", "8"],
    ]
    assert [row[0] for row in others[1:]] == ["learning_rate", "random_seed", "run_name"]


def test_where_a_run_is_from_is_said(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4, 0.8, 0.2])
    checkpoint = tmp_path / "a/checkpoints/m/seed1/best.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(bytes(1_500_000))
    known = dict(page(tmp_path).tables[-1][1:])
    assert known["checkpoint"] == "checkpoints/m/seed1/best.pt, 1.5 MB"
    assert known["epoch of the best"] == "2"
    assert known["torch"] == "2.15"
    assert known["commit"] == "0123456789abcdef"
    assert known["began"] == "2026-11-20T10:00:00+00:00"


def test_the_best_runs_come_first_and_those_without_validation_last(tmp_path):
    make_run(tmp_path, "a/m/low", [0.2])
    make_run(tmp_path, "a/m/high", [0.7])
    make_run(tmp_path, "a/m/loss", [0.1, 0.1], {"best_metric": "'loss'"}, metric="loss")
    (tmp_path / "a/logs/m/blind").mkdir()
    (tmp_path / "a/logs/m/blind/history.csv").write_text("epoch,iteration,train/loss\n1,10,0.5\n")
    found = page(tmp_path)
    assert found.column(0) == ["a/m/high", "a/m/low", "a/m/loss", "a/m/blind"]
    assert found.column(2) == ["0.5250", "0.1500", "1.0000", ""]


def test_hundreds_of_runs_make_a_page_of_bounded_size(tmp_path):
    for number in range(300):
        name = f"e{number % 3}/m/trial-{number:04}"
        dice = [0.1 + number / 1000] * 20
        make_run(tmp_path, name, dice, {"learning_rate": repr(number / 7)})
    found = page(tmp_path)
    assert len(found.column(0)) == 300
    assert found.text.count(f"The best {report.CURVES} of 100 runs.") == 3
    assert len(found.source) < 2e6
    assert found.tags.count("svg") == 3


def test_one_experiment_can_be_reported_by_name_and_by_folder(tmp_path):
    for name in ("a/m/one", "b/m/two"):
        make_run(tmp_path, name, [0.4])
    for choice in ("b", str(tmp_path / "b"), "b/m/*"):
        assert page(tmp_path, choice).column(0) == ["b/m/two"]
    with pytest.raises(UserError, match="no run 'c'"):
        page(tmp_path, "c")


@pytest.mark.parametrize("locked", ["logs/m/two/run.json", "results/m/two"])
def test_runs_that_may_not_be_read_are_left_out_and_named(tmp_path, monkeypatch, capsys, locked):
    for name in ("a/m/one", "a/m/two"):
        make_run(tmp_path, name, [0.4])
    (tmp_path / "a/results/m/two").mkdir(parents=True)
    forbid(monkeypatch, tmp_path / "a" / locked)
    assert page(tmp_path).column(0) == ["a/m/one"]
    said = capsys.readouterr().err
    assert "a/m/two is left out: " in said and f"{tmp_path}/a/{locked}" in said


def test_a_checkpoint_that_may_not_be_looked_at_is_said_on_the_page(tmp_path, monkeypatch):
    make_run(tmp_path, "a/m/one", [0.4])
    forbid(monkeypatch, tmp_path / "a/checkpoints/m/one")
    assert "checkpoints/m/one cannot be read (Permission denied)" in page(tmp_path).text


def test_a_root_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no runs in it"):
        page(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        page(tmp_path / "nowhere")


def test_a_run_that_has_logged_nothing_yet_is_on_the_page(tmp_path):
    folder = make_run(tmp_path, "a/m/one", [0.4])
    (folder / "history.csv").unlink()
    found = page(tmp_path)
    assert found.tables[0][1][:3] == ["a/m/one", "dice", ""]
    assert "Nothing is logged yet." in found.text


def test_a_trained_run_is_reported_with_its_figures(experiment, tmp_path):
    result = experiment().train()
    found = page(tmp_path)
    assert float(found.column(2)[0]) == pytest.approx(result.best_metric, abs=5e-5)
    assert len(found.pictures()) == 4  # three blocks, and a slice of a whole crop
    assert "svg" in found.tags


def test_a_run_with_folders_of_its_own_is_reported_with_checkpoint_and_scores(experiment, tmp_path):
    tiny = experiment(
        results_path=str(tmp_path / "scratch/{run_name}/results"), model_save_path="weights"
    )
    tiny.train()
    write_scores(tmp_path / "scratch/seed42/results", {"overall_score": 0.25})
    found = page(tmp_path)
    assert found.column(8) == ["0.2500"]
    known = dict(found.tables[-1][1:])
    assert known["checkpoint"].startswith("weights/best.pt, ")
