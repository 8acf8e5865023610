"""Comparing runs: against SciPy, brute force and tables that can be worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from scipy import stats
from torch.utils.tensorboard import SummaryWriter

from common.runs import compare, find
from common.score import challenge
from common.score.judge import Evaluation
from common.score.quality import ObjectCounts, VoxelCounts
from common.score.summary import summary

CLASSES = ("mito", "er", "nuc")
SETTINGS = {
    "learning_rate": "0.001",
    "weight_decay": "0.01",
    "classes": str(CLASSES),
    "epochs": "3",
    "random_seed": "42",
    "best_metric": "'dice'",
    "target_array_info": "{'shape': (16, 16, 16), 'scale': (8, 8, 8)}",
    "batch_size": "8",
    "validation_batch_limit": "0",
    "validation_time_limit": "0.0",
    "run_name": "'x'",
}


def make_run(
    root: Path,
    name: str,
    best: dict[str, float],
    settings: dict | None = None,
    *,
    metric: str = "dice",
    epochs: int = 3,
    split: str = "abc",
    finished: bool = True,
    scores: dict | None = None,
    record: bool = True,
) -> Path:
    """A run folder whose second epoch is the best and has these values of the metric; the others are half as good."""
    experiment, model, run = name.split("/")
    folder = root / experiment / "logs" / model / run
    folder.mkdir(parents=True)
    rows = []
    for epoch in range(1, epochs + 1):
        share = 1.0 if epoch == 2 else 0.5
        values = {c: v * share for c, v in best.items()}
        mean = {f"validation/{metric}": np.mean(list(values.values()))} if values else {}
        rows.append(
            {
                "epoch": epoch,
                "iteration": epoch * 100,
                "train/loss": 1 / epoch,
                "validation/loss": 2 / epoch,
                **mean,
                **{f"{metric}/{c}": v for c, v in values.items()},
            }
        )
    lines = [",".join(rows[0]), *(",".join(map(repr, map(float, row.values()))) for row in rows)]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    if record:
        content = {
            "settings": {**SETTINGS, **(settings or {})},
            "provenance": {"commit": "c" * 40, "split_hash": split},
            "sessions": [
                {
                    "began": "2026-11-20T10:00:00+00:00",
                    "ended": None,
                    "first_iteration": 0,
                    "last_iteration": None,
                }
            ],
            "result": {
                "epoch": epochs,
                "best_metric": metric,
                "best_epoch": 2,
                "finished": finished,
                "hours": 1.5,
                "samples_per_s": 7.0,
            },
        }
        (folder / "run.json").write_text(json.dumps(content))
    if scores:
        results = root / experiment / "results" / model / run
        results.mkdir(parents=True)
        (results / "scores.json").write_text(json.dumps(scores))
    return folder


def evaluations(quality: float, crops: int = 8, seed: int = 0) -> list[Evaluation]:
    """A semantic and an instance class in some crops; a crop's difficulty is the same whatever the quality."""
    rng, found = np.random.default_rng(seed), []
    for crop in range(crops):
        size, ease = int(rng.integers(100, 5000)), rng.uniform(0.7, 1)
        tp = int(size * quality * ease)
        found.append(
            Evaluation(
                f"d/crop{crop}",
                "er",
                challenge.Counts(tp, size - tp, size // 2),
                VoxelCounts(tp, 1, 1),
            )
        )
        objects = int(rng.integers(3, 40))
        hit = round(objects * quality * ease)
        counts = challenge.InstanceCounts(
            hit, objects - hit, objects // 3, "scored", 0.9 * hit, objects
        )
        found.append(
            Evaluation(
                f"d/crop{crop}",
                "mito",
                counts,
                VoxelCounts(1, 1, 1),
                ObjectCounts(hit, 1, 1, 0.5),
                (0.1, 0.1),
                0.1,
            )
        )
    return found


def silent(text: str) -> None:
    """Nothing."""


def run_compare(root: Path, *names: str, **options) -> dict:
    return compare.compare(names or ("*",), root=root, say=silent, **options)


def read(root: Path, *names: str) -> list[compare.Reading]:
    return [compare.read(run) for run in compare.choose(names or ("*",), root)]


# Intervals


@pytest.mark.parametrize("units", [2, 5, 40])
def test_an_interval_of_a_mean_is_that_of_the_paired_t_test(units):
    values = np.random.default_rng(units).normal(0.3, 1, units)
    found = compare.student(values.mean(), compare.redraws(units) @ values / units, units, 0.95)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx(tuple(wanted), abs=0.06 * (wanted.high - wanted.low))


def test_equal_runs_are_told_apart_in_one_comparison_of_twenty():
    rng, weights, misses = np.random.default_rng(0), compare.redraws(6), 0
    for _ in range(600):
        values = rng.normal(0, 1, 6)
        low, high = compare.student(values.mean(), weights @ values / 6, 6, 0.95)
        misses += not low < 0 < high
    assert 10 < misses < 55  # percentiles of the draws would give about 95


def test_welch_is_scipys():
    first, second = np.array([0.7, 0.72, 0.69]), np.array([0.6, 0.66])
    wanted = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    assert compare.welch(first, second, 0.9) == pytest.approx(tuple(wanted))
    assert all(map(math.isnan, compare.welch(np.array([0.5, 0.5]), np.array([0.4, 0.4]), 0.9)))


# What is compared


def test_the_best_epoch_counts_and_the_differences_are_those_of_its_classes(tmp_path):
    make_run(tmp_path, "a/a/one", {"mito": 0.5, "er": 0.6, "nuc": 0.4})
    make_run(tmp_path, "b/b/two", {"mito": 0.6, "er": 0.8, "nuc": 0.3}, {"learning_rate": "0.01"})
    found = run_compare(tmp_path)
    assert [side["name"] for side in found["runs"]] == ["b/b/two", "a/a/one"]
    assert [side["value"] for side in found["runs"]] == pytest.approx([17 / 30, 0.5])
    assert found["runs"][0]["best_epoch"] == [2]
    assert {name: one["difference"] for name, one in found["classes"].items()} == pytest.approx(
        {"mito": 0.1, "er": 0.2, "nuc": -0.1}
    )
    (difference,) = found["differences"]
    assert difference["difference"] == pytest.approx(1 / 15)
    assert (difference["better_in"], difference["classes"], difference["basis"]) == (
        2,
        3,
        "paired bootstrap over 3 classes",
    )
    wanted = stats.ttest_rel([0.6, 0.8, 0.3], [0.5, 0.6, 0.4]).confidence_interval()
    assert difference["interval"] == pytest.approx(tuple(wanted), abs=0.05)
    assert found["settings"] == {"learning_rate": ["0.01", "0.001"]}
    assert found["warnings"] == []
    assert found["verdict"].startswith(
        "no difference that could be told from chance: b/b/two is ahead of a/a/one by 0.067 dice (95 % "
    )
    json.dumps(found)


def test_a_difference_in_all_of_many_classes_is_more_than_chance(tmp_path):
    names, rng = [f"c{i}" for i in range(12)], np.random.default_rng(1)
    base = rng.uniform(0.3, 0.8, 12)
    make_run(tmp_path, "a/a/one", dict(zip(names, base, strict=True)))
    make_run(
        tmp_path,
        "a/a/two",
        dict(zip(names, base + rng.uniform(0.01, 0.05, 12), strict=True)),
        {"weight_decay": "0.1", "random_seed": "7"},
    )
    found = run_compare(tmp_path)["verdict"]
    assert (
        found.startswith("two is better than one by 0.0")
        and "12 of 12 classes" in found
        and found.endswith("they differ in weight_decay and random_seed")
    )
    assert "what another seed would change is not in it" in found


def test_a_run_whose_best_metric_is_the_loss_is_taken_where_that_is_lowest(tmp_path):
    make_run(
        tmp_path, "a/a/one", {"mito": 0.5, "er": 0.6}, {"best_metric": "'loss'"}, metric="dice"
    )
    folder = tmp_path / "a/logs/a/one"
    content = json.loads((folder / "run.json").read_text())
    content["result"]["best_metric"] = "loss"
    (folder / "run.json").write_text(json.dumps(content))
    (one,) = read(tmp_path)
    assert one.best["epoch"] == 3 and one.per_class("dice") == pytest.approx(
        {"mito": 0.25, "er": 0.3}
    )


def test_the_score_is_that_of_evaluate_and_its_spread_that_of_drawing_crops(tmp_path):
    found = {name: evaluations(quality) for name, quality in (("a/a/one", 0.6), ("a/a/two", 0.7))}
    for name, seen in found.items():
        make_run(tmp_path, name, {"mito": 0.5, "er": 0.5}, scores=summary(seen).as_json())
    result = run_compare(tmp_path)
    assert (result["metric"], result["source"]) == ("score", "scores.json")
    for side in result["runs"]:
        wanted = summary(found[side["runs"][0]])
        assert side["value"] == pytest.approx(wanted.overall_score)
        at = [one["name"] for one in result["runs"]].index(side["name"])
        assert {n: c["values"][at] for n, c in result["classes"].items()} == pytest.approx(
            {n: c.figures.score for n, c in wanted.classes.items()}
        )

    def overall(seen: list, crops: np.ndarray) -> float:
        return challenge.combine(
            (one.name, one.counts) for crop in crops for one in seen if one.crop == f"d/crop{crop}"
        ).overall_score

    rng = np.random.default_rng(5)
    draws = [
        overall(found["a/a/two"], crops) - overall(found["a/a/one"], crops)
        for crops in rng.integers(8, size=(400, 8))
    ]
    low, high = result["differences"][0]["interval"]
    assert (high - low) / 2 == pytest.approx(
        stats.t.ppf(0.975, 7) * np.std(draws) * math.sqrt(8 / 7), rel=0.15
    )
    assert (high + low) / 2 == pytest.approx(result["differences"][0]["difference"])
    assert result["differences"][0]["basis"] == "paired bootstrap over 8 crops"
    assert result["classes"]["er"]["interval"] and "is better than one by" in result["verdict"]


def test_only_what_all_runs_are_scored_on_is_compared_and_that_is_said(tmp_path):
    make_run(tmp_path, "a/a/one", {"er": 0.5}, scores=summary(evaluations(0.6, 8)).as_json())
    make_run(tmp_path, "a/a/two", {"er": 0.5}, scores=summary(evaluations(0.7, 5)).as_json())
    result = run_compare(tmp_path)
    assert result["runs"][1]["value"] == pytest.approx(
        summary(evaluations(0.6, 8)[:10]).overall_score
    )
    assert any("not scored on all the same crops" in text for text in result["warnings"])


def test_without_scores_for_all_the_validation_is_compared_and_the_reason_said(tmp_path):
    make_run(
        tmp_path, "a/a/one", {"er": 0.5, "mito": 0.4}, scores=summary(evaluations(0.6)).as_json()
    )
    make_run(tmp_path, "a/a/two", {"er": 0.4, "mito": 0.3})
    result = run_compare(tmp_path)
    assert result["metric"] == "dice" and any(
        "a/a/two is not scored" in text for text in result["warnings"]
    )
    with pytest.raises(ValueError, match="a/a/two is not scored; evaluate all of them"):
        run_compare(tmp_path, metric="score")


def test_seeds_of_one_model_are_one_side_with_mean_and_spread(tmp_path):
    values = {"a": [0.60, 0.64, 0.62], "b": [0.70, 0.71, 0.75]}
    for model, seeds in values.items():
        for seed, value in enumerate(seeds):
            rate = {"learning_rate": {"a": "0.1", "b": "0.2"}[model], "random_seed": str(seed)}
            make_run(
                tmp_path, f"x/{model}/seed{seed}", {"mito": value - 0.1, "er": value + 0.1}, rate
            )
    result = run_compare(tmp_path, group_seeds=True)
    assert [side["name"] for side in result["runs"]] == ["b/seed*", "a/seed*"]
    assert [side["value"] for side in result["runs"]] == pytest.approx(
        [np.mean(values["b"]), np.mean(values["a"])]
    )
    assert [side["spread"] for side in result["runs"]] == pytest.approx(
        [np.std(values["b"], ddof=1), np.std(values["a"], ddof=1)]
    )
    wanted = stats.ttest_ind(values["b"], values["a"], equal_var=False).confidence_interval()
    assert result["differences"][0]["interval"] == pytest.approx(tuple(wanted))
    assert result["classes"]["mito"]["interval"] == pytest.approx(tuple(wanted))
    assert result["settings"] == {"learning_rate": ["0.2", "0.1"]}
    assert (
        "Welch's t over 3 and 3 seeds" in result["verdict"]
        and "another seed" not in result["verdict"]
    )


def test_runs_with_other_settings_are_not_seeds_of_one_model(tmp_path):
    for number, rate in enumerate(("0.1", "0.1", "0.2")):
        make_run(
            tmp_path,
            f"x/m/run{number}",
            {"mito": 0.5, "er": 0.5},
            {"learning_rate": rate, "random_seed": str(number)},
        )
    assert [len(side.members) for side in compare.as_sides(read(tmp_path), group_seeds=True)] == [
        2,
        1,
    ]


def test_the_more_runs_the_wider_the_intervals(tmp_path):
    for number in range(4):
        make_run(
            tmp_path,
            f"x/m/run{number}",
            {"mito": 0.8 - number / 10, "er": 0.8 - number / 7, "nuc": 0.7 - number / 9},
        )
    two, four = run_compare(tmp_path, "x/m/run0", "x/m/run1"), run_compare(tmp_path)
    width = [np.ptp(one["differences"][0]["interval"]) for one in (two, four)]
    assert width[1] / width[0] == pytest.approx(
        stats.t.ppf(1 - 0.025 / 3, 2) / stats.t.ppf(0.975, 2)
    )
    assert "for all 3 comparisons together" in four["verdict"]


def test_a_comparison_is_the_same_when_it_is_made_again(tmp_path):
    for number in range(2):
        make_run(
            tmp_path,
            f"x/m/run{number}",
            {"mito": 0.5, "er": 0.2 * number},
            scores=summary(evaluations(0.5 + number / 10)).as_json(),
        )
    assert run_compare(tmp_path) == run_compare(tmp_path)


# What may not be compared


@pytest.mark.parametrize(
    ("settings", "others", "said"),
    [
        ({}, {"split": "def"}, "other datasplits"),
        ({"classes": "('mito', 'er')"}, {}, "other classes: compared over the 2"),
        (
            {"target_array_info": "{'shape': (16, 16, 16), 'scale': (16, 16, 16)}"},
            {},
            "other target voxel sizes (8 x 8 x 8 nm, 16 x 16 x 16 nm)",
        ),
        (
            {"validation_batch_limit": "5"},
            {},
            "other blocks, or with other labels known: they differ in validation_batch_limit",
        ),
        ({"use_mutual_exclusion": "False"}, {}, "differ in use_mutual_exclusion"),
        ({"validation_time_limit": "60.0"}, {}, "depended on its machine"),
        ({}, {"finished": False}, "x/m/two is not finished (epoch 3 of 3)"),
    ],
)
def test_what_makes_runs_incomparable_is_said(tmp_path, settings, others, said):
    make_run(
        tmp_path, "x/m/one", {"mito": 0.9, "er": 0.8, "nuc": 0.7}, {"use_mutual_exclusion": "True"}
    )
    make_run(
        tmp_path,
        "x/m/two",
        {"mito": 0.5, "er": 0.5} | ({} if "classes" in settings else {"nuc": 0.5}),
        {"use_mutual_exclusion": "True", **settings},
        **others,
    )
    found = run_compare(tmp_path)
    assert any(said in text for text in found["warnings"]), found["warnings"]
    assert found["verdict"].endswith(f"; mind the {len(found['warnings'])} warnings")


def test_the_batch_size_matters_only_where_batches_are_counted(tmp_path):
    make_run(tmp_path, "x/m/one", {"mito": 0.9, "er": 0.8})
    make_run(tmp_path, "x/m/two", {"mito": 0.5, "er": 0.5}, {"batch_size": "4"})
    assert not run_compare(tmp_path)["warnings"]


# Which runs


def test_runs_are_named_as_in_tensorboard_by_globs_and_by_folders(tmp_path, monkeypatch):
    for name in ("a/m/seed1", "a/m/seed2", "a/n/seed1", "b/m/seed1"):
        make_run(tmp_path / "root", name, {"mito": 0.5})
    make_run(tmp_path / "elsewhere", "c/m/seed1", {"mito": 0.5})
    monkeypatch.chdir(tmp_path)

    def chosen(*names: str) -> list[str]:
        return [run.name for run in compare.choose(names, tmp_path / "root")]

    assert chosen("b/m/seed1", "a/m/seed2") == ["b/m/seed1", "a/m/seed2"]
    assert chosen("*/seed1") == ["a/m/seed1", "a/n/seed1", "b/m/seed1"]
    assert chosen("a", "a/m/seed1") == ["a/m/seed1", "a/m/seed2", "a/n/seed1"]
    assert (
        chosen("a/m")
        == chosen("root/a/logs/m")
        == chosen(str(tmp_path / "root/a/logs/m"))
        == ["a/m/seed1", "a/m/seed2"]
    )
    assert chosen("elsewhere/c/logs/m/seed1", "elsewhere/c") == ["c/m/seed1"]


def test_an_unknown_run_is_refused_with_names_near_it(tmp_path):
    make_run(tmp_path, "unet/unet/seed42", {"mito": 0.5})
    with pytest.raises(
        ValueError, match=r"no run 'unet/unet/seed41' \(near it: unet/unet/seed42\)"
    ):
        compare.choose(["unet/unet/seed41"], tmp_path)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["x/m/one"], {}, "only x/m/one of these runs can be compared; give two or more"),
        (
            ["x/m/one", "x/m/blind"],
            {},
            "only x/m/one of these runs can be compared: x/m/blind has no validation",
        ),
        (["x/m/blind"], {}, "none of these runs can be compared"),
        (["x/m/one", "x/m/two"], {"metric": "dise"}, "metric 'dise'; write one of score, dice"),
        (["x/m/one", "x/m/two"], {"metric": "score"}, "none of these runs is scored"),
        (["x/m/one", "x/m/two"], {"metric": "iou"}, "no class has a validation iou in all of them"),
        (["x/m/one", "x/m/two"], {"group_seeds": True}, "the seeds of one model"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path, names, options, said):
    make_run(tmp_path, "x/m/one", {"mito": 0.5}, {"random_seed": "1"})
    make_run(tmp_path, "x/m/two", {"mito": 0.6}, {"random_seed": "2"})
    make_run(tmp_path, "x/m/blind", {})
    with pytest.raises(ValueError, match=said):
        run_compare(tmp_path, *names, **options)


def test_a_run_without_validation_is_left_out_and_named(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path, f"x/m/{name}", {"mito": 0.5, "er": 0.5})
    make_run(tmp_path, "x/m/blind", {})
    assert run_compare(tmp_path)["warnings"] == ["x/m/blind has no validation and is left out"]


def test_a_run_of_another_trainer_is_read_from_its_events(tmp_path):
    make_run(tmp_path, "x/m/ours", {"mito": 0.5, "er": 0.6})
    writer = SummaryWriter(str(tmp_path / "y/logs/m/theirs"))
    for step, dice in ((10, 0.2), (20, 0.8), (30, 0.3)):
        writer.add_scalar("mean/dice", dice, step)
        writer.add_scalar("dice/mito", dice, step)
    writer.close()
    found = run_compare(tmp_path)
    assert found["runs"][0]["name"] == "y/m/theirs" and list(found["classes"]) == ["mito"]
    assert found["classes"]["mito"]["values"] == pytest.approx([0.8, 0.5])


def test_runs_that_were_trained_are_compared_by_what_training_said(experiment, tmp_path):
    tiny = experiment(epochs=2)
    results = {
        name: tiny.train(run_name=name, learning_rate=rate)
        for name, rate in (("slow", 1e-4), ("fast", 0.03))
    }
    found = run_compare(tmp_path, "tiny_experiment")
    assert {side["name"]: side["value"] for side in found["runs"]} == pytest.approx(
        {name: result.best_metric for name, result in results.items()}
    )
    assert list(found["settings"]) == ["learning_rate"] and found["warnings"] == []


# What is said and drawn


def test_all_that_was_found_is_said(tmp_path):
    said = []
    for number, name in enumerate(("one", "two")):
        make_run(
            tmp_path,
            f"x/m/{name}",
            {"mito": 0.5 + number / 10, "er": 0.5},
            {"learning_rate": str(number)},
            split=str(number),
        )
    result = compare.compare(["*"], root=tmp_path, png=tmp_path / "new/curves.png", say=said.append)
    text = "\n".join(said)
    assert result["verdict"] in text and all(
        f"warning: {warning[:60]}" in text for warning in result["warnings"]
    )
    rows = [line.split() for line in text.splitlines()]
    assert (
        ["1", "two", "0.5500", "2"] in rows
        and ["mito", "0.6000", "0.5000", "0.1000", "-"] in rows
        and ["learning_rate", "1", "0"] in rows
    )
    assert text.endswith("curves.png")
    with Image.open(tmp_path / "new/curves.png") as picture:
        assert picture.format == "PNG" and picture.size[0] > 1000


def test_curves_are_those_of_the_history_in_a_colour_a_side_on_a_log_axis(tmp_path):
    for number in range(3):
        make_run(
            tmp_path,
            f"x/m/run{number}",
            {"mito": 0.5},
            {"random_seed": str(number), "learning_rate": str(number // 2)},
        )
    readings = read(tmp_path)
    sides = compare.as_sides(readings, group_seeds=True)
    figure = compare.curves(sides, "dice")
    assert [panel.get_title() for panel in figure.axes] == [
        "training loss",
        "validation loss",
        "dice",
    ]
    assert [panel.get_yscale() for panel in figure.axes] == ["log", "log", "linear"]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    colours = [to_hex(line.get_color()) for line in lines]
    assert len(lines) == 3 and colours[0] == colours[1] != colours[2]
    np.testing.assert_allclose(lines[0].get_ydata(), readings[0].history["train/loss"])
    np.testing.assert_allclose(lines[0].get_xdata(), [100, 200, 300])
    dots = [line for line in figure.axes[2].lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [200, 200, 200]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1  run*", "2  run2"]


def test_a_long_curve_is_drawn_as_means_and_the_best_runs_alone(tmp_path):
    for number in range(compare.CURVES + 2):
        make_run(tmp_path, f"x/m/_run{number}$^$", {"mito": 0.5}, epochs=1000 if number == 0 else 2)
    sides = compare.as_sides(read(tmp_path))
    figure = compare.curves(sides, "score")
    assert len(figure.legends[0].get_texts()) == compare.CURVES
    (line,) = (line for line in figure.axes[0].lines if len(line.get_xdata()) > 2)
    np.testing.assert_allclose(
        line.get_ydata(), (1 / np.arange(1, 1001)).reshape(compare.POINTS, -1).mean(1)
    )
    assert compare.render(figure, "png").startswith(b"\x89PNG")


def test_a_broken_file_of_scores_is_named(tmp_path):
    make_run(tmp_path, "x/m/one", {"mito": 0.5}, scores={"crops": {}})
    (tmp_path / "x/results/m/one/scores.json").write_text("{")
    with pytest.raises(ValueError, match=r"scores.json: no JSON object .*; evaluate again"):
        run_compare(tmp_path)


def test_a_run_that_is_being_written_can_be_compared(tmp_path):
    make_run(tmp_path, "x/m/one", {"mito": 0.5, "er": 0.4})
    make_run(tmp_path, "x/m/two", {"mito": 0.6, "er": 0.4}, record=False)
    assert find.find(tmp_path)[1].name == "x/m/two"
    assert run_compare(tmp_path)["runs"][0]["name"] == "two"
