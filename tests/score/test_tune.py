"""The chosen thresholds: by cases drawn by hand, and by what process and evaluate make of them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import DEADLINE
from scipy import ndimage

from common.data.own.standing import IMPORTED
from common.data.volumes import ngff
from common.errors import FileError, UserError
from common.files import REPOSITORY
from common.infer.processing.recipe import THRESHOLDS, read_recipe, read_thresholds
from common.score import best_thresholds, challenge, evaluate, trials, tune
from tests.infer.test_process import ABOVE, RUN, configured, processed, run, write_prediction
from tests.volumes import begin_anew, move


@pytest.fixture
def tiny(experiment):
    """mito becomes objects by their connected components; er and nuc are masks."""
    made = experiment()
    configured(made, ABOVE)
    return made


def choose(tiny, **settings) -> dict[str, tune.Tuned]:
    return {
        one.name: one
        for one in tune.tune(
            tiny.folder, data=tiny.data, say=settings.pop("say", lambda line: None), **settings
        )
    }


def truth(tiny, name, crop="crop3") -> np.ndarray:
    return ngff.open_levels(tiny.crop(crop) / name)[0].array[...] > 0


def write_truth(tiny, name, values, crop="crop3") -> None:
    level = ngff.open_levels(tiny.crop(crop) / name)[0]
    ngff.write_multiscale(
        tiny.crop(crop) / name, np.asarray(values).astype(np.uint8), level.scale, level.translation
    )


def predict_all(tiny, names=("mito", "er"), crops=("crop1", "crop3"), seed=0) -> None:
    rng = np.random.default_rng(seed)
    for name in names:
        power = rng.choice([0.4, 2.5])
        for crop in crops:
            smooth = ndimage.gaussian_filter(
                truth(tiny, name, crop).astype(float), 1.2
            ) + rng.normal(0, 0.05, (24, 24, 24))
            write_prediction(
                tiny, name, np.rint(255 * smooth.clip(0, 1) ** power).astype(np.uint8), crop=crop
            )


def scores_at(tiny, thresholds: dict[str, float], crops="crop1,crop3") -> dict[str, float]:
    """By the commands themselves, with the thresholds in process_config.py."""
    configured(tiny, ABOVE + f"thresholds = {thresholds}")
    names = tuple(thresholds)
    run(tiny, crops=crops, classes=names)
    result = evaluate.evaluate(
        tiny.folder, crops, classes=names, data=tiny.data, say=lambda line: None
    )
    configured(tiny, ABOVE)
    return {name: one.figures.score for name, one in result.classes.items()}


def test_the_threshold_lies_between_what_is_right_and_what_is_wrong(tiny):
    """er has 0.9, wrong voxels 0.7: all thresholds from 0.7 on are right, 0.7 is nearest to 0.5."""
    er = truth(tiny, "er")
    wrong = np.zeros_like(er)
    wrong[:, :, 10:20] = True
    write_prediction(tiny, "er", np.select([er, wrong], [0.9, 0.7]).astype(np.float32))
    found = choose(tiny, classes=("er",))["er"]
    assert (found.threshold, found.score) == (0.7, 1.0)
    assert found.before == pytest.approx(er.sum() / (er | wrong).sum())


@pytest.mark.parametrize(
    ("right", "wrong", "wanted"),
    [
        ((0.38, 0.38), (0.33, 0.33), 0.35),
        ((0.06, 0.03), (0.02, 0.02), 0.025),
        ((0.98, 0.98), (0.96, 0.93), 0.975),
    ],
)
def test_it_is_looked_for_in_finer_steps_near_the_best(tiny, right, wrong, wanted):
    """None of the coarse candidates parts right from wrong.

    Halves of either have probabilities that make the nearest candidate the best of them.
    """
    er = truth(tiny, "er")
    half = np.arange(24)[:, None, None] < 12
    elsewhere = np.roll(er, 9, 2)
    places = [er & half, er, elsewhere & half, elsewhere]
    write_prediction(tiny, "er", np.select(places, [*right, *wrong]).astype(np.float32))
    found = choose(tiny, classes=("er",))["er"]
    assert (found.threshold, found.score) == (wanted, 1.0)


@pytest.mark.parametrize("seed", range(2))
def test_the_score_is_what_evaluate_gives_after_process(tiny, seed):
    predict_all(tiny, seed=seed)
    found = choose(tiny, crops="crop1,crop3", classes=("mito", "er"))
    run(tiny, crops="crop1,crop3", classes=("mito", "er"))
    result = evaluate.evaluate(
        tiny.folder, "crop1,crop3", classes=("mito", "er"), data=tiny.data, say=lambda line: None
    )
    for name, one in found.items():
        assert 0 < one.score < 1
        assert result.classes[name].figures.score == one.score
        assert result.provenance.thresholds[name] == one.threshold
    assert scores_at(tiny, dict.fromkeys(found, 0.5)) == {
        name: one.before for name, one in found.items()
    }


def test_no_candidate_scores_better(tiny):
    predict_all(tiny)
    found = choose(tiny, crops="crop1,crop3", classes=("mito", "er"))
    for threshold in trials.COARSE[1::3]:
        scores = scores_at(tiny, {"mito": threshold, "er": threshold})
        assert all(scores[name] <= one.score for name, one in found.items())
    assert all(one.before < one.score for one in found.values())


def test_what_is_found_where_the_class_is_not_counts(tiny):
    """er at 0.6 in both crops; crop1 has none. By crop3 alone 0.5 would do."""
    er = truth(tiny, "er")
    write_truth(tiny, "er", np.zeros((24, 24, 24)), crop="crop1")
    write_prediction(tiny, "er", np.where(er, 0.9, 0).astype(np.float32))
    write_prediction(tiny, "er", np.where(er, 0.6, 0).astype(np.float32), crop="crop1")
    assert choose(tiny, classes=("er",))["er"].threshold == 0.5
    found = choose(tiny, classes=("er",), crops="crop1,crop3")["er"]
    assert (found.threshold, found.score, found.before) == (0.6, 1.0, 0.5)


def test_a_crop_that_the_metric_leaves_out_counts_as_missed(tiny):
    """One object, found in two pieces; below 0.3 there are 216 specks, which would score 1."""
    mito, p = np.zeros((24, 24, 24), bool), np.zeros((24, 24, 24), np.float32)
    p[::4, ::4, ::4] = 0.3
    mito[9:15, 9:12, 9:12] = True
    write_truth(tiny, "mito", mito)
    p[mito] = 0.8
    p[12] = 0
    write_prediction(tiny, "mito", p)
    assert scores_at(tiny, {"mito": 0.25}, "crop3")["mito"] == 1.0
    found = choose(tiny, classes=("mito",))["mito"]
    assert (found.threshold, found.score < 1) == (0.5, True)


def test_a_class_without_a_positive_voxel_keeps_its_half(tiny):
    predict_all(tiny, crops=("crop3",))
    write_prediction(tiny, "nuc", np.full((24, 24, 24), 200, np.uint8))
    write_truth(tiny, "nuc", np.zeros((24, 24, 24)))
    said = []
    assert set(choose(tiny, say=said.append)) == {"mito", "er"}
    assert "not annotated or without a positive voxel there, left at 0.5: nuc" in said
    assert set(json.loads((tiny.folder / THRESHOLDS).read_text())[RUN]) == {"mito", "er"}


def test_where_no_class_is_positive_nothing_is_tuned(tiny):
    write_prediction(tiny, "nuc", np.full((24, 24, 24), 200, np.uint8))
    write_truth(tiny, "nuc", np.zeros((24, 24, 24)))
    with pytest.raises(UserError, match="positive voxel of nuc"):
        choose(tiny, classes=("nuc",))
    assert not (tiny.folder / THRESHOLDS).exists()


OPTIONS = (
    ABOVE
    + """
from common.infer.instances import connected_components, remove_small
def instance_func(mask, probability, name, *, smallest=0.0, connectivity=26):
    return remove_small(connected_components(mask, connectivity), smallest)
instance_options = {"connectivity": [6, 26], "smallest": [0.0, 512.0 * 2, 512.0 * 200]}
"""
)


def test_options_of_instance_func_are_chosen_by_the_score_and_process_takes_them(tiny):
    """Specks of a voxel go and objects of 8 voxels stay; two that share a corner are one."""
    configured(tiny, OPTIONS)
    annotated = np.zeros((24, 24, 24), np.uint8)
    annotated[2:4, 2:4, 2:4] = 1
    annotated[4:6, 4:6, 4:6] = 1
    annotated[12:14, 12:14, 12:14] = 2
    write_truth(tiny, "mito", annotated)
    predicted = annotated > 0
    predicted[8::6, 8::6, 20::2] = True
    write_prediction(tiny, "mito", np.where(predicted, 200, 0).astype(np.uint8), sha256="c" * 64)
    said = []
    found = choose(tiny, classes=("mito",), say=said.append)["mito"]
    assert found.options == {"smallest": 1024.0} and found.score == 1
    assert found.before < 1
    assert any("mito: smallest = 1024.0" in line for line in said)
    run(tiny, classes=("mito",))
    assert processed(tiny, "mito")[...].max() == 2


def test_options_that_do_no_better_than_the_defaults_are_left(tiny):
    configured(tiny, OPTIONS)
    annotated = np.zeros((24, 24, 24), np.uint8)
    annotated[2:9, 2:9, 2:9] = 1
    write_truth(tiny, "mito", annotated)
    write_prediction(tiny, "mito", annotated * np.uint8(200))
    assert not choose(tiny, classes=("mito",))["mito"].options
    assert "options" not in read_thresholds(tiny.folder / THRESHOLDS)[RUN]["mito"]


def test_an_option_that_a_class_has_already_is_not_tried_again(tiny, monkeypatch):
    """Each costs a run of process and evaluate over all crops."""
    configured(tiny, OPTIONS)
    annotated = np.zeros((24, 24, 24), np.uint8)
    annotated[2:9, 2:9, 2:9] = 1
    write_truth(tiny, "mito", annotated)
    write_prediction(tiny, "mito", annotated * np.uint8(200))
    tried = []
    original = best_thresholds.try_all

    def recorded(trials, workers=1):
        tried.extend(trial.options for trial in trials)
        return original(trials, workers)

    monkeypatch.setattr(best_thresholds, "try_all", recorded)
    choose(tiny, classes=("mito",))
    with_options = [options for options in tried if options]
    assert with_options == [{"connectivity": 6}, {"smallest": 1024.0}, {"smallest": 102400.0}]


def test_classes_that_another_call_added_meanwhile_stay(tiny, monkeypatch):
    predict_all(tiny)
    original = tune.search

    def beside_another(*arguments, **keywords):
        found = original(*arguments, **keywords)
        with monkeypatch.context() as patch:
            patch.setattr(tune, "search", original)
            choose(tiny, classes=("er",))
        return found

    monkeypatch.setattr(tune, "search", beside_another)
    choose(tiny, classes=("mito",))
    assert set(read_thresholds(tiny.folder / THRESHOLDS)[RUN]) == {"mito", "er"}


def test_process_reads_what_was_found(tiny):
    values = np.broadcast_to(np.linspace(0, 255, 24).astype(np.uint8), (24, 24, 24))
    write_prediction(tiny, "er", values, sha256="c" * 64)
    write_truth(tiny, "er", values > 204)
    assert choose(tiny, classes=("er",))["er"].threshold == 0.8
    run(tiny, classes=("er",))
    np.testing.assert_array_equal(processed(tiny, "er")[...], values > 204)
    assert json.loads((tiny.folder / THRESHOLDS).read_text())[RUN]["er"]["checkpoint"] == "c" * 64


def test_thresholds_of_other_functions_are_noted(tiny, capfd):
    predict_all(tiny, names=("mito",))
    choose(tiny, crops="crop1,crop3", classes=("mito",))
    capfd.readouterr()
    configured(tiny, "# the same, said otherwise\n" + ABOVE)
    run(tiny, crops="crop3", classes=("mito",))
    assert "other functions" not in capfd.readouterr().err
    configured(tiny, ABOVE + "def instance_func(mask, probability, name):\n    return mask\n")
    run(tiny, crops="crop3", classes=("mito",))
    said = capfd.readouterr().err
    assert "note: the thresholds of mito were tuned with other functions of" in said


def test_thresholds_of_other_classes_and_runs_stay(tiny):
    before = {
        RUN: {"er": {"threshold": 0.35, "checkpoint": ""}},
        "tiny_experiment/seed7": {"mito": {"threshold": 0.8, "checkpoint": ""}},
    }
    (tiny.folder / THRESHOLDS).write_text(json.dumps(before))
    predict_all(tiny, ("mito",), ("crop3",))
    choose(tiny, classes=("mito",))
    after = read_thresholds(tiny.folder / THRESHOLDS)
    assert after["tiny_experiment/seed7"] == before["tiny_experiment/seed7"]
    assert after[RUN]["er"] == before[RUN]["er"] and "mito" in after[RUN]


def test_two_calls_that_end_at_once_lose_no_class(tmp_path, monkeypatch):
    """The second one waits: what it reads is not yet written over by the first."""
    path = tmp_path / THRESHOLDS
    is_held = []

    def read(path):
        words = "import sys; from common.files import is_held; print(is_held(sys.argv[1]))"
        lock = path.with_name(".thresholds.json.lock")
        asked = subprocess.run(
            [sys.executable, "-c", words, lock],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        is_held.append(asked.stdout.strip())
        return read_thresholds(path) if path.exists() else {}

    monkeypatch.setattr(tune, "read_thresholds", read)
    tune.add(path, RUN, {"mito": {"threshold": 0.4, "checkpoint": ""}})
    assert is_held == ["True"]
    assert [file.name for file in tmp_path.iterdir()] == [THRESHOLDS]


def test_the_table_has_a_line_for_each_class(tiny):
    said, _ = [], predict_all(tiny, crops=("crop3",))
    found = choose(tiny, classes=("mito", "er"), say=said.append)
    assert said[0].split() == ["class", "threshold", "score", "at", "0.5"]
    for line, one in zip(said[1:], found.values(), strict=False):
        assert line.split() == [
            one.name,
            f"{one.threshold:.4g}",
            f"{one.score:.3f}",
            f"{one.before:.3f}",
        ]


def test_a_trial_has_the_counts_of_evaluate_where_a_mask_was_imported_for_objects(tiny):
    """It had one object of all pieces, and chose thresholds that hang them together."""
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[2:8, 2:8, 2:8] = 1
    mask[2:8, 2:8, 12:20] = 1
    level = ngff.open_levels(tiny.crop("crop3") / "mito")[0]
    about = {"annotation": {"annotation_type": {"type": "semantic_segmentation"}}}
    attributes = {"cellmap": about, IMPORTED: {"from": "mito.tif"}}
    ngff.write_multiscale(
        tiny.crop("crop3") / "mito", mask, level.scale, level.translation, attributes=attributes
    )
    write_prediction(tiny, "mito", mask * np.uint8(200))
    trial = trials.Trial(
        tiny.folder / "process_config.py",
        read_recipe(tiny.folder).code,
        "mito",
        tiny.config().path("predictions_path") / "tiny.zarr/crop3/mito",
        tiny.crop("crop3") / "mito",
        (0.5,),
    )
    (counts,) = trials.run_trial(trial).counts
    (evaluation,) = trials.look(trial)
    assert counts == evaluation.counts and (counts.tp, counts.fp, counts.fn) == (2, 0, 0)


def test_a_trial_can_be_done_by_another_process(tiny):
    predict_all(tiny, crops=("crop3",))
    recipe, path = (
        read_recipe(tiny.folder),
        tiny.config().path("predictions_path") / "tiny.zarr/crop3",
    )
    for name in ("mito", "er"):
        trial = trials.Trial(
            tiny.folder, recipe.code, name, path / name, tiny.crop("crop3") / name, (0.3, 0.5)
        )
        function, sent = pickle.loads(pickle.dumps((trials.run_trial, trial)))
        assert pickle.loads(pickle.dumps(function(sent))) == trials.run_trial(trial)


def test_an_edited_process_config_is_run_again(tiny):
    predict_all(tiny, crops=("crop3",))
    before = choose(tiny, classes=("er",))["er"]
    configured(tiny, "def process_func(logits):\n    return logits < 0")
    assert choose(tiny, classes=("er",))["er"].score != before.score


# What a threshold is worth


def test_a_threshold_at_the_edge_is_told_with_its_figures(tiny):
    """One object, nowhere likelier than 0.03, and as likely in a plane: all thresholds are bad."""
    mito = np.zeros((24, 24, 24), bool)
    mito[4:10, 4:10, 4:10] = True
    plane = np.zeros_like(mito)
    plane[:, :, 4:8] = True
    write_truth(tiny, "mito", mito)
    write_prediction(tiny, "mito", np.where(mito | plane, 0.06, 0).astype(np.float32))
    er = truth(tiny, "er")
    write_prediction(tiny, "er", np.where(er, 0.9, 0.1).astype(np.float32))
    said = []
    found = choose(tiny, classes=("mito", "er"), say=said.append)
    (note,) = [line for line in said if line.startswith("note")]
    one = found["mito"]
    dice = 2 * 216 / (216 + (mito | plane).sum())
    assert one.threshold == 0.05 and found["er"].threshold == 0.5
    assert note.startswith(
        "note: mito: its threshold of 0.05 lies at the edge of what is tried (0.025 to 0.975). "
        f"There it has score {one.score:.3f}, Dice {dice:.3f}, PQ 0.000; at 0.5 score "
        f"{one.before:.3f}, Dice 0.000, PQ 0.000."
    )
    assert "thresholds" in note and "visualize" in note


def test_a_class_that_its_threshold_makes_positive_everywhere_is_told(tiny):
    """A network that was hardly trained says 0.3 everywhere: its best is a full picture."""
    er = truth(tiny, "er")
    write_prediction(tiny, "er", np.full(er.shape, 0.3, np.float32))
    write_prediction(tiny, "nuc", np.where(truth(tiny, "nuc"), 0.9, 0.1).astype(np.float32))
    said = []
    found = choose(tiny, classes=("er", "nuc"), say=said.append)
    assert found["er"].threshold < 0.3 and found["er"].found == 1
    (note,) = [line for line in said if line.startswith("note")]
    of_er = f"er ({found['er'].threshold:g}; {er.mean():.1%})"
    assert note.startswith("note: positive in nearly all voxels") and of_er in note


def test_classes_that_no_threshold_finds_are_told_in_one_note(tiny):
    for name in ("er", "nuc"):
        write_prediction(tiny, name, np.zeros((24, 24, 24), np.float32))
    said = []
    choose(tiny, classes=("er", "nuc"), say=said.append)
    (note,) = [line for line in said if line.startswith("note: positive in no voxel")]
    assert "er (0.5; " in note and "nuc (0.5; " in note


def test_a_prediction_half_a_voxel_beside_the_annotation_is_told(tiny):
    er = truth(tiny, "er")
    path = write_prediction(tiny, "er", np.where(er, 0.9, 0.1).astype(np.float32))
    said = []
    choose(tiny, classes=("er",), say=said.append)
    assert not [line for line in said if line.startswith("note")]
    move(path, (0, 3, 0))
    choose(tiny, classes=("er",), say=said.append)
    (note,) = [line for line in said if line.startswith("note")]
    assert "1 of 1 lie beside the voxels of the annotation" in note
    assert "tiny/crop3/er by 0, 3, 0 nm" in note


def test_crops_that_trained_and_several_checkpoints_are_told(tiny, capfd):
    shape = (24, 24, 24)
    for name, crop, sha256, trained_on in (
        ("mito", "crop1", "a", True),
        ("mito", "crop3", "b", False),
        ("er", "crop3", "b", None),
    ):
        values = np.where(truth(tiny, name, crop), 200, 50).astype(np.uint8)
        assert values.shape == shape
        write_prediction(tiny, name, values, crop=crop, sha256=sha256, trained_on=trained_on)
    choose(tiny, crops="crop1,crop3", classes=("mito",))
    learnt = "note: tiny/crop1: predicted by a network that was trained on it; scores there"
    several = "note: mito: not all crops were predicted by the same checkpoint"
    said = capfd.readouterr().err
    assert learnt in said and several in said
    run(tiny, crops="crop1,crop3", classes=("mito",))
    run(tiny, crops="crop3", classes=("er",))
    capfd.readouterr()
    quiet = {"data": tiny.data, "say": lambda line: None}
    evaluate.evaluate(tiny.folder, "crop1,crop3", classes=("mito",), **quiet)
    said = capfd.readouterr().err
    assert learnt in said and several in said
    evaluate.evaluate(tiny.folder, "crop3", classes=("mito", "er"), **quiet)
    said = capfd.readouterr().err
    assert "trained on" not in said and "not all crops" not in said


def test_thresholds_know_the_crops_and_the_version_they_were_chosen_by(tiny):
    predict_all(tiny)
    choose(tiny, crops="crop1,crop3", classes=("er",), metric_version="definition-2026-06")
    entry = json.loads((tiny.folder / THRESHOLDS).read_text())[RUN]["er"]
    assert entry["chosen_on"] == ["tiny/crop1", "tiny/crop3"]
    assert (entry["metric"], entry["crops"]) == ("definition-2026-06", "crop1,crop3")


def tried(*scores_of_crops: dict[float, float]) -> trials.Tried:
    """IoU of each crop, of 100 voxels, by threshold; 0 at the others."""
    result = trials.Tried([f"crop{number}" for number in range(len(scores_of_crops))])
    for threshold in trials.COARSE:
        ious = [scores.get(threshold, 0) for scores in scores_of_crops]
        tps = [round(100 * iou) for iou in ious]
        result.counts[threshold] = [challenge.Counts(tp, 0, 100 - tp) for tp in tps]
    return result


def test_cross_validation_scores_each_crop_at_the_threshold_of_the_others():
    """Crop 0 is best at 0.3, the others at 0.7; left out, crop 0 is scored at 0.7."""
    of_class = tried({0.3: 0.9, 0.7: 0.2}, {0.3: 0.1, 0.7: 0.8}, {0.3: 0.4, 0.7: 0.6})
    assert of_class.best() == 0.7 and of_class.score(0.7) == pytest.approx(1.6 / 3)
    # crop 1 by 0 and 2: 0.3 has 1.3, 0.7 has 0.8; crop 2 by 0 and 1: 1.0 either way, 0.3 is first
    by_others = of_class.by_others(3)
    choice = of_class.best(trials.COARSE, [0, 1])
    assert by_others == pytest.approx((0.2 + 0.1 + {0.3: 0.4, 0.7: 0.6}[choice]) / 3)
    assert of_class.by_others(99) == by_others < of_class.score(0.7)
    # two folds: crops 0 and 2 by crop 1, and crop 1 by them
    assert of_class.by_others(2) == pytest.approx((0.2 + 0.6 + 0.1) / 3)


def test_cross_validation_needs_two_crops():
    assert tried({0.3: 0.9}).by_others(2) is None
    assert tried({0.3: 0.9}, {0.3: 0.9}).by_others(0) is None


def test_the_score_by_other_crops_stands_beside_the_ordinary_one(tiny):
    predict_all(tiny)
    said = []
    found = choose(tiny, crops="crop1,crop3", classes=("mito", "er"), folds=2, say=said.append)
    assert said[0].split() == ["class", "threshold", "score", "at", "0.5", "by", "others"]
    for line, one in zip(said[1:], found.values(), strict=False):
        assert line.split()[-1] == f"{one.by_others:.3f}" and one.by_others <= one.score
    assert any(line.startswith("by others: the score where each crop") for line in said)
    entry = json.loads((tiny.folder / THRESHOLDS).read_text())[RUN]["er"]
    assert entry["score_by_others"] == found["er"].by_others


@pytest.mark.parametrize("folds", [1, -1, "2"])
def test_folds_that_judge_by_no_other_crop_are_refused(tiny, folds):
    with pytest.raises(UserError, match=f"--folds {folds}; write 2 or more, or leave it out"):
        choose(tiny, crops="crop1,crop3", folds=folds)


@pytest.mark.parametrize(
    ("crops", "sentence"),
    [
        ("crop1,crop3", "--folds 3: there are 2 crops; write 2, which"),
        ("crop3", "--folds 3: thresholds are chosen on one crop, .* leave --folds out"),
    ],
)
def test_more_folds_than_crops_are_refused(tiny, crops, sentence):
    with pytest.raises(UserError, match=sentence):
        choose(tiny, crops=crops, folds=3)


def test_evaluate_says_that_thresholds_were_chosen_on_what_it_scores(tiny):
    predict_all(tiny)
    choose(tiny, crops="crop3", classes=("er",))
    run(tiny, crops="crop1,crop3", classes=("mito", "er"))

    def told(crops, classes):
        said = []
        scores = evaluate.evaluate(
            tiny.folder, crops, classes=classes, data=tiny.data, say=said.append
        )
        return scores.provenance.tuned_on, " ".join(said[0].split())

    tuned_on, text = told("crop1,crop3", ("mito", "er"))
    assert tuned_on == {"er": ["tiny/crop3"]}
    assert "The thresholds of er were chosen on crops that are scored here (tiny/crop3)" in text
    assert "thresholds of all classes were chosen on" in told("crop3", ("er",))[1]
    tuned_on, text = told("crop1", ("er",))
    assert not tuned_on and "were chosen on" not in text
    evaluate.evaluate(
        tiny.folder,
        "crop3",
        classes=("er",),
        write_readme=True,
        data=tiny.data,
        say=lambda line: None,
    )
    readme = (tiny.folder / "README.md").read_text()
    assert "The thresholds of all classes were chosen on crops that are scored here" in readme


def test_a_file_that_does_not_name_its_crops_is_known_by_what_was_asked(tiny):
    predict_all(tiny)
    choose(tiny, crops="crop3", classes=("er",))
    path = tiny.folder / THRESHOLDS
    runs = json.loads(path.read_text())
    del runs[RUN]["er"]["chosen_on"]
    path.write_text(json.dumps(runs))
    run(tiny, crops="crop3", classes=("er",))
    scores = evaluate.evaluate(
        tiny.folder, "crop3", classes=("er",), data=tiny.data, say=lambda line: None
    )
    assert scores.provenance.tuned_on == {"er": ["tiny/crop3"]}


# What is refused


def test_all_that_is_wrong_with_predictions_is_said_at_once(tiny):
    write_prediction(tiny, "er", np.zeros((24, 24, 20), np.uint8))
    path = write_prediction(tiny, "nuc", np.zeros((24, 24, 24), np.uint8))
    begin_anew(path)
    with pytest.raises(ValueError) as error:
        choose(tiny)
    missing, short, unfinished = str(error.value).split("\n")
    assert missing.endswith("crop3/mito: no prediction; run predict first")
    assert "crop3/er: covers" in short and short.endswith(
        "of the annotation; run predict with --overwrite"
    )
    assert "crop3/nuc: half-written" in unfinished


def test_classes_that_the_network_of_a_run_never_gives_are_not_to_be_predicted(tiny):
    predict_all(tiny, names=("mito",), crops=("crop3",))
    with pytest.raises(UserError, match=r"this run has no class er, nuc.*write --classes mito$"):
        choose(tiny, overrides=["classes=mito"])


def test_thresholds_in_process_config_are_in_the_way(tiny):
    configured(tiny, ABOVE + 'thresholds = {"er": 0.3}')
    with pytest.raises(UserError, match=r"process_config\.py: thresholds are set there"):
        choose(tiny)


def test_damaged_thresholds_are_said_before_the_work(tiny):
    (tiny.folder / THRESHOLDS).write_text("{")
    with pytest.raises(ValueError, match=r"thresholds\.json: not the thresholds"):
        choose(tiny)  # without predictions


def test_a_folder_in_the_place_of_thresholds_is_said_before_the_work(tiny):
    (tiny.folder / THRESHOLDS).mkdir()
    with pytest.raises(UserError, match=r"thresholds\.json: a folder, where a file is meant"):
        choose(tiny)


def test_thresholds_that_cannot_be_written_are_said_before_the_work(tiny, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(FileError, match=r"thresholds\.json: could not be written \(Permission"):
        choose(tiny)  # without predictions


def test_thresholds_that_find_no_room_on_the_disk_are_shown(tiny, monkeypatch):
    def full(path, content):
        raise FileError(f"{path}: could not be written (No space left on device)")

    predict_all(tiny, names=("er",), crops=("crop3",))
    monkeypatch.setattr(tune, "write_json", full)
    said: list[str] = []
    with pytest.raises(FileError, match="No space left"):
        choose(tiny, classes=("er",), say=said.append)
    assert said[0].startswith("class") and said[1].startswith("er")


def test_a_class_that_is_not_there_is_refused(tiny):
    with pytest.raises(ValueError, match="no class mitoo"):
        choose(tiny, classes=("mitoo",))


def test_no_threshold_is_chosen_on_a_test_crop(tiny):
    split = tiny.folder / "datasplit.csv"
    split.write_text(split.read_text().replace('"validate"', '"test"'))
    with pytest.raises(UserError, match="tiny/crop3 is held out for test"):
        choose(tiny, crops="crop1,crop3")
    assert not (tiny.folder / THRESHOLDS).exists()
