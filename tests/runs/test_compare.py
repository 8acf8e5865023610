"""Comparing runs: against SciPy, brute force and tables that can be worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import forbid, make_run
from scipy import stats
from torch.utils.tensorboard import SummaryWriter

from common.errors import UserError
from common.runs.choose import choose
from common.runs.compare import compare
from common.runs.comparison import Comparison
from common.runs.measure import paired, welch
from common.runs.reading import read
from common.runs.sides import as_sides, short_names
from common.runs.words import verdict
from common.score import challenge
from common.score.judge import Evaluation
from common.score.quality import ObjectCounts, VoxelCounts
from common.score.result import from_json, write
from common.score.summary import summary


def evaluations(quality: float, crops: int = 8) -> list[Evaluation]:
    """A semantic and an instance class in some crops.

    How difficult a crop is does not depend on the quality.
    """
    rng = np.random.default_rng(0)
    found = []
    for number in range(crops):
        crop = f"d/crop{number}"
        size = int(rng.integers(100, 5000))
        ease = rng.uniform(0.7, 1)
        objects = int(rng.integers(3, 40))
        found.append(semantic(crop, size, int(size * quality * ease)))
        found.append(instance(crop, objects, round(objects * quality * ease)))
    return found


def semantic(crop: str, size: int, tp: int) -> Evaluation:
    counts = challenge.Counts(tp, size - tp, size // 2)
    return Evaluation(crop, "er", counts, VoxelCounts(tp, 1, 1))


def instance(crop: str, objects: int, tp: int) -> Evaluation:
    counts = challenge.InstanceCounts(
        tp,
        objects - tp,
        objects // 3,
        hausdorff_norm_sum=0.9 * tp,
        n_hausdorff=objects,
    )
    return Evaluation(
        crop,
        "mito",
        counts,
        VoxelCounts(1, 1, 1),
        ObjectCounts(tp, 1, 1, 0.5),
        voi=(0.1, 0.1),
        rand_error=0.1,
    )


def silent(text: str) -> None:
    """Nothing."""


def run_compare(root: Path, *names: str, **options) -> Comparison:
    return compare(names or ("*",), root=root, say=silent, **options)


# Intervals


def test_welch_is_scipys():
    first = np.array([0.7, 0.72, 0.69])
    second = np.array([0.6, 0.66])
    wanted = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    assert welch(first, second, 0.9) == pytest.approx(tuple(wanted))


def test_seeds_that_all_came_to_the_same_are_no_measure_of_chance():
    assert welch(np.array([0.5, 0.5]), np.array([0.4, 0.4]), 0.9) is None
    low, high = welch(np.array([0.5, 0.5 + 1e-12]), np.array([0.4, 0.4]), 0.9)
    assert low == pytest.approx(0.1) == high


@pytest.mark.parametrize("units", [2, 5, 40])
def test_an_interval_over_classes_is_that_of_the_paired_t_test(units):
    first, second = np.random.default_rng(units).normal(0.3, 1, (2, units))
    wanted = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert paired(first - second, 0.95) == pytest.approx(tuple(wanted))
    assert paired(first[:1], 0.95) is None


# What is compared


def test_the_best_epoch_counts_and_the_differences_are_those_of_its_classes(tmp_path):
    make_run(tmp_path, "a/a/one", {"mito": 0.5, "er": 0.6, "nuc": 0.4})
    make_run(tmp_path, "b/b/two", {"mito": 0.6, "er": 0.8, "nuc": 0.3}, {"learning_rate": "0.01"})
    found = run_compare(tmp_path)
    assert [side.name for side in found.standings] == ["b/b/two", "a/a/one"]
    assert [side.value for side in found.standings] == pytest.approx([17 / 30, 0.5])
    assert found.standings[0].best_epoch == [2]
    differences = {name: figures.difference for name, figures in found.classes.items()}
    assert differences == pytest.approx({"mito": 0.1, "er": 0.2, "nuc": -0.1})
    (lead,) = found.leads
    assert lead.difference == pytest.approx(1 / 15)
    assert (lead.better_in, lead.basis) == (2, "paired t over 3 classes")
    wanted = stats.ttest_rel([0.6, 0.8, 0.3], [0.5, 0.6, 0.4]).confidence_interval()
    assert lead.interval == pytest.approx(tuple(wanted))
    assert found.settings == {"learning_rate": ["0.01", "0.001"]}
    assert found.warnings == []
    assert "told from chance: b/b/two is ahead of a/a/one by 0.067 dice (95 %" in verdict(found)


def test_a_difference_in_all_of_many_classes_is_more_than_chance(tmp_path):
    rng = np.random.default_rng(1)
    names = [f"c{number}" for number in range(12)]
    base = rng.uniform(0.3, 0.8, 12)
    better = base + rng.uniform(0.01, 0.05, 12)
    settings = {"weight_decay": "0.1", "random_seed": "7"}
    make_run(tmp_path, "a/a/one", dict(zip(names, base, strict=True)))
    make_run(tmp_path, "a/a/two", dict(zip(names, better, strict=True)), settings)
    line = verdict(run_compare(tmp_path))
    assert line.startswith("two is better than one by 0.0")
    assert "12 of 12 classes" in line
    assert "what another seed would change is not in it" in line
    assert line.endswith("they differ in weight_decay and random_seed")


def overall(found: Sequence[Evaluation], crops: np.ndarray) -> float:
    """The challenge's score of crops, some of them several times."""
    counts = []
    for number, one in itertools.product(crops, found):
        if one.crop == f"d/crop{number}":
            counts.append((one.name, one.counts))
    return challenge.combine(counts).overall_score


def test_the_score_is_that_of_evaluate_and_its_spread_that_of_drawing_crops(tmp_path):
    one = evaluations(0.6)
    two = evaluations(0.7)
    make_run(tmp_path, "a/a/one", {"mito": 0.5, "er": 0.5}, scores=summary(one))
    make_run(tmp_path, "a/a/two", {"mito": 0.5, "er": 0.5}, scores=summary(two))
    found = run_compare(tmp_path)
    assert (found.metric, found.source) == ("score", "scores.json")
    for number, wanted in enumerate((summary(two), summary(one))):
        assert found.standings[number].value == pytest.approx(wanted.overall_score)
        for name, figures in found.classes.items():
            assert figures.values[number] == pytest.approx(wanted.classes[name].figures.score)

    draws = []
    for crops in np.random.default_rng(5).integers(8, size=(400, 8)):
        draws.append(overall(two, crops) - overall(one, crops))
    (lead,) = found.leads
    low, high = lead.interval
    reach = stats.t.ppf(0.975, 7) * np.std(draws) * math.sqrt(8 / 7)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.15)
    assert (high + low) / 2 == pytest.approx(lead.difference)
    assert lead.basis == "paired bootstrap over 8 crops"
    assert found.classes["er"].interval
    assert "is better than one by" in verdict(found)


def test_only_what_all_runs_are_scored_on_is_compared_and_that_is_said(tmp_path):
    eight = evaluations(0.6, crops=8)
    make_run(tmp_path, "a/a/one", {"er": 0.5}, scores=summary(eight))
    make_run(tmp_path, "a/a/two", {"er": 0.5}, scores=summary(evaluations(0.7, crops=5)))
    found = run_compare(tmp_path)
    assert found.standings[1].value == pytest.approx(summary(eight[:10]).overall_score)
    assert any("not scored on all the same crops" in text for text in found.warnings)


def left_out_everywhere(crops: int = 8) -> list[Evaluation]:
    """A prediction of noise: the semantic class is bad, the instance class never counted."""
    skipped = challenge.InstanceCounts(status=challenge.SKIPPED)
    found = []
    for evaluation in evaluations(0.1, crops):
        counts = skipped if evaluation.is_instance else evaluation.counts
        found.append(replace(evaluation, counts=counts))
    return found


def test_what_the_metric_leaves_out_of_one_run_is_compared_for_none_and_named(tmp_path):
    noise = summary(left_out_everywhere())
    assert noise.classes["mito"].figures.score == 1  # as the challenge counts it
    make_run(tmp_path, "a/a/noise", {"er": 0.5}, scores=noise)
    make_run(tmp_path, "a/a/good", {"er": 0.5}, scores=summary(evaluations(0.6)))
    found = run_compare(tmp_path)
    assert [standing.name for standing in found.standings] == ["good", "noise"]
    assert [standing.left_out for standing in found.standings] == [0, 8]
    assert list(found.classes) == ["er"]
    said = "a/a/noise predicts too many objects of mito in 8 of 8 crops: the metric leaves them out"
    assert any(text.startswith(said) for text in found.warnings), found.warnings


def test_of_equal_runs_that_leads_of_which_nothing_is_left_out(tmp_path):
    good = evaluations(0.6)
    noise = [n if n.is_instance else g for n, g in zip(left_out_everywhere(), good, strict=True)]
    make_run(tmp_path, "a/a/a_noise", {"er": 0.5}, scores=summary(noise))
    make_run(tmp_path, "a/a/good", {"er": 0.5}, scores=summary(good))
    # by the score, and by a metric of the validation as `report` ranks
    for metric in ("", "dice"):
        found = run_compare(tmp_path, metric=metric)
        assert [standing.name for standing in found.standings] == ["good", "a_noise"]


def test_a_leader_of_which_something_is_left_out_is_named_in_the_verdict(tmp_path):
    best = evaluations(0.9)
    noise = [n if n.is_instance else b for n, b in zip(left_out_everywhere(), best, strict=True)]
    make_run(tmp_path, "a/a/noise", {"er": 0.5}, scores=summary(noise))
    make_run(tmp_path, "a/a/good", {"er": 0.5}, scores=summary(evaluations(0.6)))
    found = run_compare(tmp_path)
    assert found.standings[0].name == "noise"
    assert "; the metric left out 8 of noise's classes in crops, for too many" in verdict(found)


def test_a_run_of_which_nothing_is_counted_has_no_score_to_compare(tmp_path):
    noise = [one for one in left_out_everywhere() if one.is_instance]
    make_run(tmp_path, "a/a/noise", {"er": 0.5}, scores=summary(noise))
    make_run(tmp_path, "a/a/good", {"er": 0.6}, scores=summary(evaluations(0.6)))
    with pytest.raises(UserError, match="of a/a/noise the metric left out every class"):
        run_compare(tmp_path, metric="score")
    found = run_compare(tmp_path)
    assert found.metric == "dice"
    assert found.standings[0].name == "good"


def test_scores_by_other_definitions_are_named(tmp_path):
    older = replace(summary(evaluations(0.6)), metric="CellMap Segmentation Challenge, 1999-01")
    make_run(tmp_path, "a/a/one", {"er": 0.5}, scores=older)
    make_run(tmp_path, "a/a/two", {"er": 0.5}, scores=summary(evaluations(0.7)))
    assert any("other definitions" in text for text in run_compare(tmp_path).warnings)


def test_over_which_classes_a_mean_is_taken_is_said(tmp_path):
    make_run(tmp_path, "x/m/one", {"mito": 0.9, "er": 0.8, "nuc": 0.2})
    make_run(tmp_path, "x/m/two", {"mito": 0.5, "er": 0.5, "nuc": math.nan})
    lines: list[str] = []
    found = compare(["x"], root=tmp_path, say=lines.append)
    assert found.standings[0].value == pytest.approx(0.85)
    (said,) = found.warnings
    assert "the mean over the 2 classes that all runs have it of (mito, er)" in said
    assert said.endswith("not in it: nuc of x/m/one")
    assert "above is the mean over these 2" in lines[0]


def test_without_scores_for_all_the_validation_is_compared_and_the_reason_said(tmp_path):
    scores = summary(evaluations(0.6))
    make_run(tmp_path, "a/a/one", {"er": 0.5, "mito": 0.4}, scores=scores)
    make_run(tmp_path, "a/a/two", {"er": 0.4, "mito": 0.3})
    found = run_compare(tmp_path)
    assert found.metric == "dice"
    assert any("a/a/two is not scored" in text for text in found.warnings)
    with pytest.raises(UserError, match="a/a/two is not scored"):
        run_compare(tmp_path, metric="score")


def test_a_run_scored_at_another_epoch_than_its_best_is_named(tmp_path):
    scores = summary(evaluations(0.6)).as_json()
    scores["provenance"] = {"checkpoints": [{"epoch": 1}]}
    for name in ("one", "two"):
        make_run(tmp_path, f"x/m/{name}", {"er": 0.5}, scores=from_json(scores))
    (first, second) = run_compare(tmp_path).warnings
    assert "x/m/one was scored at epoch 1 and is best at 2" in first
    assert "x/m/two was scored at epoch 1" in second


def test_seeds_of_one_model_are_one_side_with_mean_and_spread(tmp_path):
    a = [0.60, 0.64, 0.62]
    b = [0.70, 0.71, 0.75]
    for model, rate, values in (("a", "0.1", a), ("b", "0.2", b)):
        for seed, value in enumerate(values):
            settings = {"learning_rate": rate, "random_seed": str(seed)}
            classes = {"mito": value - 0.1, "er": value + 0.1}
            make_run(tmp_path, f"x/{model}/seed{seed}", classes, settings)
    found = run_compare(tmp_path, group_seeds=True)
    assert [side.name for side in found.standings] == ["b/seed*", "a/seed*"]
    assert [side.value for side in found.standings] == pytest.approx([np.mean(b), np.mean(a)])
    spreads = [np.std(b, ddof=1), np.std(a, ddof=1)]
    assert [side.spread for side in found.standings] == pytest.approx(spreads)
    wanted = tuple(stats.ttest_ind(b, a, equal_var=False).confidence_interval())
    assert found.leads[0].interval == pytest.approx(wanted)
    assert found.classes["mito"].interval == pytest.approx(wanted)
    assert found.settings == {"learning_rate": ["0.2", "0.1"]}
    assert "Welch's t over 3 and 3 seeds" in verdict(found)
    assert "another seed" not in verdict(found)


def test_runs_with_other_settings_are_not_seeds_of_one_model(tmp_path):
    for number, rate in enumerate(("0.1", "0.1", "0.2")):
        settings = {"learning_rate": rate, "random_seed": str(number)}
        make_run(tmp_path, f"x/m/run{number}", {"mito": 0.5, "er": 0.5}, settings)
    readings = [read(run) for run in choose(["*"], tmp_path)]
    sides = as_sides(readings, group_seeds=True)
    assert [len(side.members) for side in sides] == [2, 1]


def test_the_more_runs_the_wider_the_intervals(tmp_path):
    for number in range(4):
        classes = {"mito": 0.8 - number / 10, "er": 0.8 - number / 7, "nuc": 0.7 - number / 9}
        make_run(tmp_path, f"x/m/run{number}", classes)
    two = run_compare(tmp_path, "x/m/run0", "x/m/run1")
    four = run_compare(tmp_path)
    widths = [np.ptp(found.leads[0].interval) for found in (two, four)]
    wanted = stats.t.ppf(1 - 0.025 / 3, 2) / stats.t.ppf(0.975, 2)
    assert widths[1] / widths[0] == pytest.approx(wanted)
    assert "for all 3 comparisons together" in verdict(four)


def test_a_comparison_is_the_same_when_it_is_made_again(tmp_path):
    for number in range(2):
        scores = summary(evaluations(0.5 + number / 10))
        make_run(tmp_path, f"x/m/run{number}", {"mito": 0.5, "er": 0.2 * number}, scores=scores)
    assert run_compare(tmp_path) == run_compare(tmp_path)


def test_names_lose_the_folders_that_all_share():
    assert short_names(["a/m/s1", "a/m/s2"]) == ["s1", "s2"]
    assert short_names(["a/m/s", "a/n/s"]) == ["m/s", "n/s"]
    assert short_names(["ab/m/s", "a/m/s"]) == ["ab/m/s", "a/m/s"]
    assert short_names(["a/m/s"]) == ["a/m/s"]
    assert short_names(["a/m/s*", "a/m/s*"]) == ["s* (1)", "s* (2)"]


# What may not be compared


@pytest.mark.parametrize(
    ("settings", "others", "said"),
    [
        ({}, {"split": "def"}, "other datasplits"),
        ({"classes": "('mito', 'er')"}, {}, "other classes: compared over the 2"),
        (
            {"target_array_info": "{'shape': (16, 16, 16), 'scale': (16, 16, 16)}"},
            {},
            "other target voxel sizes (8 nm, 16 nm)",
        ),
        ({"validation_batch_limit": "5"}, {}, "differ in validation_batch_limit"),
        ({"target_array_info": "{'shape': (8, 8, 8), 'scale': (8, 8, 8)}"}, {}, "in target_array"),
        ({"use_mutual_exclusion": "False"}, {}, "differ in use_mutual_exclusion"),
        ({"validation_time_limit": "60.0"}, {}, "depended on its machine"),
        ({}, {"finished": False}, "x/m/two is not finished (epoch 3 of 3)"),
    ],
)
def test_what_makes_runs_incomparable_is_said(tmp_path, settings, others, said):
    exclusive = {"use_mutual_exclusion": "True"}
    classes = {"mito": 0.5, "er": 0.5}
    if "classes" not in settings:
        classes["nuc"] = 0.5
    make_run(tmp_path, "x/m/one", {"mito": 0.9, "er": 0.8, "nuc": 0.7}, exclusive)
    make_run(tmp_path, "x/m/two", classes, {**exclusive, **settings}, **others)
    found = run_compare(tmp_path)
    assert any(said in text for text in found.warnings), found.warnings
    words = {1: "mind the warning", 2: "mind the 2 warnings"}
    assert verdict(found).endswith(f"; {words[len(found.warnings)]}")


def test_the_batch_size_matters_only_where_batches_are_counted(tmp_path):
    counted = {"validation_batch_limit": "5"}
    make_run(tmp_path, "x/m/one", {"mito": 0.9, "er": 0.8})
    make_run(tmp_path, "x/m/two", {"mito": 0.5, "er": 0.5}, {"batch_size": "4"})
    assert not run_compare(tmp_path).warnings
    make_run(tmp_path, "y/m/one", {"mito": 0.9, "er": 0.8}, counted)
    make_run(tmp_path, "y/m/two", {"mito": 0.5, "er": 0.5}, {"batch_size": "4", **counted})
    assert "differ in batch_size" in run_compare(tmp_path, "y").warnings[0]


def set_blocks(root: Path, name: str, blocks: str) -> None:
    """Put on record which blocks a run validated on."""
    experiment, model, run = name.split("/")
    path = root / experiment / "logs" / model / run / "run.json"
    content = json.loads(path.read_text())
    content["result"]["validation_blocks"] = blocks
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("limit", ["validation_batch_limit", "validation_time_limit"])
def test_seeds_that_may_have_validated_on_other_blocks_are_named(tmp_path, limit):
    for seed in "123":
        settings = {"random_seed": seed, limit: "5"}
        make_run(tmp_path, f"x/m/seed{seed}", {"mito": 0.9, "er": 0.8}, settings)
        make_run(tmp_path, f"x/n/seed{seed}", {"mito": 0.5, "er": 0.5}, settings)
    found = run_compare(tmp_path, group_seeds=True)
    assert any(
        "may have validated on other blocks: they differ in random_seed" in text
        for text in found.warnings
    )


def test_runs_that_say_that_they_validated_on_the_same_blocks_are_believed(tmp_path):
    for name, seed in (("one", "1"), ("two", "2")):
        settings = {"random_seed": seed, "validation_time_limit": "60.0", "batch_size": seed}
        make_run(tmp_path, f"x/m/{name}", {"mito": 0.9, "er": 0.8}, settings)
        set_blocks(tmp_path, f"x/m/{name}", "8 of 96 blocks, abc")
    assert not run_compare(tmp_path).warnings
    set_blocks(tmp_path, "x/m/two", "6 of 96 blocks, def")
    (said,) = run_compare(tmp_path).warnings
    assert "on other blocks (x/m/one 8 of 96 blocks, x/m/two 6 of 96 blocks)" in said


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["x/m/one"], {}, "only x/m/one of these runs can be compared; give two or more"),
        (["x/m/one", "x/m/blind"], {}, "only x/m/one .*: x/m/blind has no validation"),
        (["x/m/blind"], {}, "none of these runs can be compared"),
        (["x/m/one", "x/m/two"], {"metric": "dise"}, "metric 'dise'"),
        (["x/m/one", "x/m/two"], {"metric": "score"}, "none of these runs is scored"),
        (["x/m/one", "x/m/two"], {"metric": "iou"}, "no class has a validation iou"),
        (["x/m/one", "x/m/two"], {"group_seeds": True}, "seeds of one model"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path, names, options, said):
    make_run(tmp_path, "x/m/one", {"mito": 0.5}, {"random_seed": "1"})
    make_run(tmp_path, "x/m/two", {"mito": 0.6}, {"random_seed": "2"})
    make_run(tmp_path, "x/m/blind", {})
    with pytest.raises(UserError, match=said):
        run_compare(tmp_path, *names, **options)


def test_a_run_without_validation_is_left_out_and_named(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path, f"x/m/{name}", {"mito": 0.5, "er": 0.5})
    make_run(tmp_path, "x/m/blind", {})
    assert run_compare(tmp_path).warnings == ["x/m/blind has no validation and is left out"]


def test_a_run_that_may_not_be_read_is_left_out_and_named(tmp_path, monkeypatch, capsys):
    for name in ("one", "two", "locked"):
        make_run(tmp_path, f"x/m/{name}", {"mito": 0.5, "er": 0.5})
    path = tmp_path / "x/logs/m/locked/run.json"
    forbid(monkeypatch, path)
    standings = run_compare(tmp_path).standings
    assert sorted(standing.name for standing in standings) == ["one", "two"]
    sentence = f"x/m/locked is left out: {path}: cannot be read (Permission denied); mend that\n"
    assert capsys.readouterr().err == sentence


def test_a_run_of_another_trainer_is_read_from_its_events(tmp_path):
    make_run(tmp_path, "x/m/ours", {"mito": 0.5, "er": 0.6})
    writer = SummaryWriter(str(tmp_path / "y/logs/m/theirs"))
    for step, dice in ((10, 0.2), (20, 0.8), (30, 0.3)):
        writer.add_scalar("mean/dice", dice, step)
        writer.add_scalar("dice/mito", dice, step)
    writer.close()
    found = run_compare(tmp_path)
    assert found.standings[0].name == "y/m/theirs"
    assert list(found.classes) == ["mito"]
    assert found.classes["mito"].values == pytest.approx([0.8, 0.5])


def test_runs_that_were_trained_are_compared_by_what_training_said(experiment, tmp_path):
    tiny = experiment(epochs=2)
    slow = tiny.train(run_name="slow", learning_rate=1e-4)
    fast = tiny.train(run_name="fast", learning_rate=0.03)
    found = run_compare(tmp_path, "tiny_experiment")
    values = {side.name: side.value for side in found.standings}
    assert values == pytest.approx({"slow": slow.best_metric, "fast": fast.best_metric})
    assert list(found.settings) == ["learning_rate"]
    assert found.warnings == []


def test_a_run_with_a_results_path_of_its_own_is_compared_by_its_score(experiment, tmp_path):
    tiny = experiment(results_path=str(tmp_path / "scratch/{run_name}"), epochs=1)
    for name, quality in (("one", 0.6), ("two", 0.7)):
        tiny.train(run_name=name)
        write(summary(evaluations(quality)), tmp_path / f"scratch/{name}/scores.json")
    found = run_compare(tmp_path, "tiny_experiment")
    assert (found.metric, found.source) == ("score", "scores.json")
    wanted = summary(evaluations(0.7)).overall_score
    assert found.standings[0].value == pytest.approx(wanted)


def test_a_run_that_is_being_written_can_be_compared(tmp_path):
    make_run(tmp_path, "x/m/one", {"mito": 0.5, "er": 0.4})
    make_run(tmp_path, "x/m/two", {"mito": 0.6, "er": 0.4}, record=False)
    assert run_compare(tmp_path).standings[0].name == "two"


# What is said


def test_all_that_was_found_is_said(tmp_path):
    said = []
    for number, name in enumerate(("one", "two")):
        classes = {"mito": 0.5 + number / 10, "er": 0.5}
        settings = {"learning_rate": str(number)}
        make_run(tmp_path, f"x/m/{name}", classes, settings, split=str(number))
    found = compare(["*"], root=tmp_path, png=tmp_path / "new/curves.png", say=said.append)
    text = "\n".join(said)
    rows = [line.split() for line in text.splitlines()]
    assert verdict(found) in text
    assert found.warnings
    for warning in found.warnings:
        assert f"warning: {warning[:60]}" in text
    assert ["1", "two", "0.5500", "2"] in rows
    assert ["mito", "0.6000", "0.5000", "0.1000", "-"] in rows
    assert ["learning_rate", "1", "0"] in rows
    assert text.endswith("curves.png")
    with Image.open(tmp_path / "new/curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.size[0] > 1000
