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

from common.runs import compare, report
from common.train.tracking import TensorBoard

SETTINGS = {
    "epochs": "4",
    "learning_rate": "0.0001",
    "batch_size": "8",
    "random_seed": "42",
    "run_name": "'seed{random_seed}'",
}


class Page(HTMLParser):
    """Elements, addresses, and the text of the cells of each table."""

    def __init__(self, text: str):
        super().__init__()
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
        self.addresses += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        ]
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
        found = []
        for address in self.addresses:
            if address.startswith("data:"):
                kind, data = address.split(",", 1)
                assert kind == "data:image/jpeg;base64"
                found.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return found


def make_run(
    root: Path,
    name: str,
    dice: list[float],
    settings: dict | None = None,
    metric: str = "dice",
    record: bool = True,
    **result,
) -> Path:
    """A run with two classes, er at half the dice of mito."""
    experiment, model, run = name.split("/")
    folder = root / experiment / "logs" / model / run
    folder.mkdir(parents=True)
    rows = [
        "epoch,iteration,train/loss,train/samples_per_s,validation/loss,validation/dice,dice/mito,dice/er"
    ]
    rows += [
        f"{n},{n * 50},{1 / n},9.5,{2 / n},{d * 0.75},{d},{d / 2}" for n, d in enumerate(dice, 1)
    ]
    (folder / "history.csv").write_text("\n".join(rows) + "\n")
    if record:
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


def page(root: Path, *experiments: str) -> tuple[str, Page]:
    path = report.report(
        experiments, root=root, output=root / "out/report.html", say=lambda text: None
    )
    return path.read_text(), Page(path.read_text())


def test_the_table_has_every_run_with_what_it_came_to(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4, 0.8, 0.6])
    make_run(tmp_path, "a/m/seed2", [0.4, 0.9], {"learning_rate": "0.01"}, finished=False)
    make_run(tmp_path, "b/m/seed1", [0.2], record=False)
    _, found = page(tmp_path)
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
    assert found.text.strip().startswith("Runs of a, b") and "3 runs" in found.text


def test_the_page_loads_nothing(tmp_path):
    folder = make_run(tmp_path, "a/m/seed1", [0.4, 0.8])
    log = TensorBoard(folder)
    log.image("raw, target, prediction/mito", np.zeros((20, 30, 3), np.uint8), 100)
    log.finish("FINISHED", {}, {}, ())
    text, found = page(tmp_path)
    assert (
        all(address.startswith(("data:image/", "#")) for address in found.addresses)
        and found.pictures()
    )
    assert not re.search(
        r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"data:image/[^\"]*", "", text)
    )
    assert not {"link", "iframe", "object", "embed", "base"} & set(found.tags)
    assert report.INK not in text and "fill: currentColor" in text
    assert ("content", report.POLICY) in found.attributes and "default-src 'none'" in report.POLICY


def test_what_comes_from_files_is_escaped(tmp_path):
    evil = '<img src="http://evil.example/x.png" onerror=alert(1)>'
    folder = make_run(
        tmp_path,
        'a<script>/m/"$x^<b>&',
        [0.4, 0.8],
        {"learning_rate": evil, "run_name": f"'{evil}'"},
    )
    make_run(tmp_path, "a<script>/m/other", [0.4, 0.8], {"extra<td>": "1"})
    log = TensorBoard(folder)
    log.image("<svg onload=alert(1)>", np.zeros((8, 8, 3), np.uint8), 1)
    log.finish("FINISHED", {}, {}, ())
    results = tmp_path / 'a<script>/results/m/"$x^<b>&'
    results.mkdir(parents=True)
    scores = {
        "metric": evil,
        "overall_score": 0.5,
        "classes": {"<p onclick=a>": {"score": 0.5}},
        "provenance": {"date": "<p onclick=b>"},
    }
    (results / "scores.json").write_text(json.dumps(scores))
    (results / "<p onclick=c>.json").write_text(json.dumps({"overall_score": 0.25}))
    text, found = page(tmp_path)
    assert (
        found.tags.count("script") == 1
        and "b" not in found.tags
        and not any(name.startswith("on") for name, _ in found.attributes)
    )
    assert found.tags.count("img") == 1 and not any(
        "evil" in address for address in found.addresses
    )
    assert (
        found.tables[0][1][0] == 'a<script>/m/"$x^<b>&'
        and found.tables[0][1][8] == "0.5000"
        and evil in found.text
    )
    assert all(f"<p onclick={letter}>" in found.text for letter in "abc")


def test_bars_show_each_class_and_its_score(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4, 0.8])
    (tmp_path / "a/results/m/seed1").mkdir(parents=True)
    scores = {
        "metric": "CellMap",
        "overall_score": 0.3456,
        "classes": {
            "mito": {"score": 0.61, "interval_95": [0.5, 0.7]},
            "ld": {"score": 0.2, "interval_95": None},
        },
    }
    (tmp_path / "a/results/m/seed1/scores.json").write_text(json.dumps(scores))
    text, found = page(tmp_path)
    assert found.tables[1] == [
        ["class", "dice at the best epoch", "score in scores.json", "95 % interval"],
        ["mito", "0.800", "0.610", "0.500 to 0.700"],
        ["er", "0.400", "", ""],
        ["ld", "", "0.200", ""],
    ]
    assert found.tables[0][1][8] == "0.3456" and "overall score 0.3456" in found.text
    assert [float(share) for share in re.findall(r"--share: ([\d.]+)", text)] == [
        0.8,
        0.61,
        0.4,
        0.2,
    ]


def test_pictures_are_the_last_of_each_tag_and_are_scaled_down(tmp_path):
    folder = make_run(tmp_path, "a/m/seed1", [0.4, 0.8])
    log = TensorBoard(folder)
    for step, shade in ((100, 0), (200, 255)):
        log.image("prediction/mito", np.full((16, 24, 3), shade, np.uint8), step)
    log.finish("FINISHED", {}, {}, ())
    Image.new("RGB", (3000, 600), (255, 0, 0)).save(tmp_path / "a" / report.SCORES_PICTURE)
    _, found = page(tmp_path)
    wide, last = found.pictures()
    assert wide.size == (report.PICTURE_WIDTH, 240) and wide.getpixel((5, 5))[0] > 240
    assert last.size == (24, 16) and np.asarray(last).min() > 250
    assert "prediction/mito, iteration 200" in found.text


def test_a_picture_that_cannot_be_read_is_a_line_of_text(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4])
    (tmp_path / "a" / report.SCORES_PICTURE).write_bytes(b"no picture")
    _, found = page(tmp_path)
    assert "scores.png: cannot be read" in found.text and not found.pictures()


def test_events_that_are_too_large_are_not_read_for_pictures(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "a/m/seed1", [0.4, 0.8])
    log = TensorBoard(folder)
    log.image("prediction/mito", np.zeros((16, 24, 3), np.uint8), 1)
    log.finish("FINISHED", {}, {}, ())
    monkeypatch.setattr(report, "EVENTS_GB", 1e-9)
    assert not page(tmp_path)[1].pictures()


def test_settings_that_differ_from_their_defaults_come_first(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4], {"batch_size": "2"})
    _, found = page(tmp_path)
    changed, others = found.tables[2:4]
    assert changed == [
        ["setting", "value", "default"],
        ["epochs", "4", "1000"],
        ["batch_size", "2", "8"],
    ]
    assert [row[0] for row in others[1:]] == ["learning_rate", "random_seed", "run_name"]


def test_defaults_are_those_that_a_run_records(experiment):
    tiny = experiment()
    recorded, usual = tiny.config().record(), report.defaults()
    assert set(recorded) == set(usual)
    assert {name for name in recorded if recorded[name] == usual[name]} >= {
        "weight_decay",
        "scheduler",
        "best_metric",
        "spatial_transforms",
    }
    assert usual["classes"] == "" and usual["learning_rate"] == "0.0001"


def test_where_a_run_is_from_is_said(tmp_path):
    make_run(tmp_path, "a/m/seed1", [0.4, 0.8, 0.2])
    (tmp_path / "a/checkpoints/m/seed1").mkdir(parents=True)
    (tmp_path / "a/checkpoints/m/seed1/best.pt").write_bytes(bytes(1_500_000))
    _, found = page(tmp_path)
    known = dict(found.tables[-1][1:])
    assert (
        known["checkpoint"] == "checkpoints/m/seed1/best.pt, 1.5 MB"
        and known["epoch of the best"] == "2"
    )
    assert (known["torch"], known["commit"], known["began"]) == (
        "2.15",
        "0123456789abcdef",
        "2026-11-20T10:00:00+00:00",
    )


def test_the_best_runs_come_first_and_those_without_validation_last(tmp_path):
    for name, dice, metric in (
        ("low", [0.2], "dice"),
        ("high", [0.7], "dice"),
        ("loss", [0.1, 0.1], "loss"),
    ):
        make_run(tmp_path, f"a/m/{name}", dice, {"best_metric": repr(metric)}, metric)
    (tmp_path / "a/logs/m/blind").mkdir()
    (tmp_path / "a/logs/m/blind/history.csv").write_text("epoch,iteration,train/loss\n1,10,0.5\n")
    _, found = page(tmp_path)
    assert [row[0] for row in found.tables[0][1:]] == [
        f"a/m/{name}" for name in ("high", "low", "loss", "blind")
    ]
    assert [row[2] for row in found.tables[0][1:]] == ["0.5250", "0.1500", "1.0000", ""]


def test_hundreds_of_runs_make_a_page_of_bounded_size(tmp_path):
    for number in range(300):
        make_run(
            tmp_path,
            f"e{number % 3}/m/trial-{number:04}",
            [0.1 + number / 1000] * 20,
            {"learning_rate": repr(number / 7)},
        )
    text, found = page(tmp_path)
    assert (
        len(found.tables[0]) == 301
        and found.text.count(f"The best {compare.CURVES} of 100 runs.") == 3
    )
    assert len(text) < 2e6 and found.tags.count("svg") == 3


def test_one_experiment_can_be_reported_by_name_and_by_folder(tmp_path):
    for name in ("a/m/one", "b/m/two"):
        make_run(tmp_path, name, [0.4])
    for choice in ("b", str(tmp_path / "b"), "b/m/*"):
        assert [row[0] for row in page(tmp_path, choice)[1].tables[0][1:]] == ["b/m/two"]
    with pytest.raises(ValueError, match="no run 'c'"):
        page(tmp_path, "c")


def test_a_root_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no runs in it; train an experiment first"):
        page(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        page(tmp_path / "nowhere")


def test_a_run_that_has_logged_nothing_yet_is_on_the_page(tmp_path):
    folder = make_run(tmp_path, "a/m/one", [0.4])
    (folder / "history.csv").unlink()
    _, found = page(tmp_path)
    assert (
        found.tables[0][1][:3] == ["a/m/one", "dice", ""] and "Nothing is logged yet." in found.text
    )


def test_a_trained_run_is_reported_with_its_figures(experiment, tmp_path):
    result = experiment().train()
    _, found = page(tmp_path)
    assert float(found.tables[0][1][2]) == pytest.approx(result.best_metric, abs=5e-5)
    assert len(found.pictures()) == 3 and "svg" in found.tags
