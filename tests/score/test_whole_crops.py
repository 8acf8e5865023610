"""The challenge's score of whole crops in training is that of predict, process and evaluate."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.infer.predict import predict
from common.infer.process import process
from common.model.forward import ForwardPass
from common.runtime import Precision
from common.score import challenge, whole_crops
from common.score.evaluate import evaluate
from common.score.whole_crops import Counted, of_run
from common.train.recording.record import best_epoch, read_history

SCORED = {"validation_score_every": 1, "best_metric": "challenge", "init_output_to_prior": False}

PROCESS = {
    "process_config.py": """
        from common.infer.instances import watershed

        from .data import classes

        thresholds = {"mito": 0.4, "er": 0.01}

        def instance_func(mask, probability, name):
            return watershed(mask, probability, min_distance_nm=16)


        def process_func(logits):
            return (logits > 0) * 1
        """
}


def never() -> bool:
    return False


def test_the_score_is_what_the_commands_give(experiment):
    tiny = experiment(files=PROCESS, iterations_per_epoch=40, learning_rate=2e-2, **SCORED)
    result = tiny.train(score=of_run)
    predict(tiny.folder, data=tiny.data)
    process(tiny.folder, data=tiny.data)
    scores = evaluate(tiny.folder, data=tiny.data, say=lambda _: None)
    row = (
        read_history(result.logs)
        .set_index("epoch")
        .loc[torch.load(result.checkpoint, weights_only=True)["epoch"]]
    )
    assert row["validation/challenge"] == pytest.approx(scores.overall_score)
    assert 0 < scores.overall_score < 1
    for name in ("mito", "er", "nuc"):
        assert row[f"challenge/{name}"] == pytest.approx(scores.classes[name].figures.score)
    assert not (result.logs / whole_crops.FOLDER).exists()


def test_the_score_decides_in_the_epochs_that_have_one(experiment, capfd):
    text = (
        "from torch.optim.lr_scheduler import ReduceLROnPlateau as scheduler\n"
        "scheduler_kwargs = {'patience': 1}\n"
    )
    settings = {**SCORED, "validation_score_every": 2, "learning_rate": 1e-12, "epochs": 7}
    tiny = experiment(text=text, early_stopping_patience=3, weight_decay=0.0, **settings)
    result = tiny.train(score=of_run)
    history = read_history(result.logs)
    scored = history["validation/challenge"].notna()
    assert history["epoch"][scored].tolist() == [2, 4, 6]
    # epochs without a score are not waited for: 4 and 6 are no better than 2, and no others count
    assert result.epochs == 7
    assert history["lr"].nunique() == 1
    assert best_epoch(history, "challenge") == 2
    assert torch.load(result.checkpoint, weights_only=True)["epoch"] == 2
    assert "decide nothing" not in capfd.readouterr().err


def test_a_continued_run_and_another_number_of_workers_have_the_same_scores(experiment):
    tiny = experiment(**SCORED)
    whole = tiny.train(epochs=4, run_name="whole", score=of_run)
    tiny.train(epochs=2, run_name="parts", score=of_run)
    parts = tiny.train(epochs=4, run_name="parts", num_workers=1, score=of_run)
    columns = ["validation/challenge", "challenge/mito", "validation/loss"]
    first = read_history(whole.logs)[columns]
    np.testing.assert_array_equal(first, read_history(parts.logs)[columns])
    assert whole.best_metric == parts.best_metric
    # nor does scoring change what is learnt
    plain = tiny.train(epochs=4, run_name="plain", validation_score_every=0, best_metric="dice")
    assert read_history(plain.logs)["validation/loss"].tolist() == first["validation/loss"].tolist()


def test_a_report_is_given_scored_epochs_alone(experiment):
    told = []
    tiny = experiment(epochs=3, **{**SCORED, "validation_score_every": 2})
    tiny.train(score=of_run, report=lambda epoch, value: told.append((epoch, value)))
    assert [epoch for epoch, _ in told] == [2] and math.isfinite(told[0][1])


def test_an_interruption_while_scoring_leaves_no_score_and_no_folder(experiment):
    tiny = experiment(**SCORED)
    config = tiny.config()
    score = of_run(config)
    assert score is not None
    model = config.build_model(config.classes)
    forward = ForwardPass(Precision("fp32", "cpu"), config.channels_last)
    assert score({}, model.eval(), forward, lambda: True) is None
    assert not (config.path("logs_save_path") / whole_crops.FOLDER).exists()


def test_what_cannot_be_scored_is_told_before_training(experiment):
    tiny = experiment(validation_score_every=1)
    with pytest.raises(UserError, match=r"validation_score_every = 1, and this call has nothing"):
        tiny.train()
    (tiny.folder / "process_config.py").write_text(
        "classes = ('ves',)\n\n\ndef process_func(logits):\n    return logits > 0\n"
    )
    with pytest.raises(UserError, match="none of its classes is annotated in a crop that valid"):
        tiny.train(score=of_run)
    (tiny.folder / "process_config.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"process_config\.py"):
        tiny.train(score=of_run)


def test_voxels_that_process_config_does_not_take_are_told_before_training(experiment):
    tiny = experiment(validation_score_every=1)
    (tiny.folder / "process_config.py").write_text(
        "classes = ('mito',)\ninput_array_info = {'shape': 8, 'scale': 16}\n\n\n"
        "def process_func(logits):\n    return logits > 0\n"
    )
    with pytest.raises(UserError, match="says 16 nm, and the network gives 8 nm"):
        tiny.train(score=of_run)


def test_learnt_classes_that_are_not_scored_are_named(experiment, capsys):
    tiny = experiment(validation_score_every=1)
    text = "classes = ('mito', 'er')\n\n\ndef process_func(logits):\n    return logits > 0\n"
    (tiny.folder / "process_config.py").write_text(text)
    assert of_run(tiny.config()).crops[0][1] == ("mito", "er")
    told = "process_config.py: nuc is not among its classes, and left out of the scores"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"best_metric": "challenge"}, "validation_score_every = 0, which never scores"),
        (
            {"best_metric": "challenge", "validation_score_every": 3},
            "validation_score_every = 3 is more than epochs",
        ),
        ({"validation_score_every": -1}, "validation_score_every"),
    ],
)
def test_settings_that_do_not_fit_are_refused(experiment, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        experiment(**settings).config()


def test_without_validation_nothing_is_scored(experiment):
    tiny = experiment(validation_score_every=1)
    text = (tiny.folder / "datasplit.csv").read_text()
    tiny.write(
        "datasplit.csv",
        "".join(f"{line}\n" for line in text.splitlines() if "validate" not in line),
    )
    result = tiny.train(score=of_run)
    assert "validation/challenge" not in read_history(result.logs)


def test_a_class_that_is_nowhere_is_left_out_and_too_many_objects_are_missing():
    """By the organisers' number both would score 1."""
    found = challenge.Counts(tp=6, fp=2, fn=2)
    empty = challenge.Counts()
    score = whole_crops.combined(
        ("mito", "er", "nuc"), [Counted("er", True, found), Counted("nuc", False, empty)]
    )
    assert score.overall == pytest.approx(0.6)
    np.testing.assert_allclose(score.per_class, [np.nan, 0.6, np.nan])
    nothing = whole_crops.combined(("mito",), [])
    assert math.isnan(nothing.overall)


def test_blocks_hold_no_more_than_a_training_batch(experiment):
    tiny = experiment(batch_size=8)
    config = tiny.config()
    block = whole_crops.block_of(config)
    taken = np.array(config.input_array_info["shape"])
    context = taken - config.target_array_info["shape"]
    assert block > config.target_array_info["shape"][0]
    assert np.prod(block + context) <= 1.05 * 8 * np.prod(taken)


def test_the_command_line_scores(experiment, run):
    tiny = experiment(epochs=1, **SCORED)
    code, _, err = run("train", tiny.folder, "--data", tiny.data)
    assert code == 0 and "challenge 0." in err
    record = json.loads(next(tiny.folder.rglob("run.json")).read_text())
    assert record["result"]["best_metric"] == "challenge"
