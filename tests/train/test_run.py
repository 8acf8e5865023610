"""Whole runs on the tiny experiment."""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.config.overrides import read_overrides
from common.data.crops import normalize
from common.data.crops.normalize import Scaling
from common.data.samples import workers
from common.data.samples.workers import WorkerLost
from common.data.volumes.ngff import write_multiscale
from common.errors import UserError
from common.files import REPOSITORY
from common.train import check as check_module
from common.train import run as run_module
from common.train import steps
from common.train.setup import prepare
from common.train.skipped import Numbers
from common.train.state import StepResult
from tests.data.every_kind import EVERY_KIND


def weights(result) -> dict[str, torch.Tensor]:
    return torch.load(result.checkpoint.parent / "latest.pt", weights_only=True)["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def history(tiny, run: str = "seed42") -> list[dict[str, str]]:
    path = tiny.folder / f"logs/tiny_experiment/{run}/history.csv"
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_learns_the_tiny_cell(experiment):
    tiny = experiment(epochs=10, iterations_per_epoch=60, learning_rate=2e-2, weight_loss=False)
    result = tiny.train()
    losses = [float(row["validation/loss"]) for row in history(tiny)]
    assert losses[-1] < 0.5 * losses[0]
    assert result.best_metric > 0.6
    assert result.checkpoint.name == "best.pt"


def test_five_epochs_equal_three_and_two_more_bit_for_bit(experiment):
    text = """
        import torch

        scheduler = torch.optim.lr_scheduler.StepLR
        scheduler_kwargs = {"step_size": 2}
        """
    tiny = experiment(text=text, noise_std=0.05)
    whole = tiny.train(epochs=5, run_name="whole")
    tiny.train(epochs=3, run_name="parts")
    parts = tiny.train(epochs=5, run_name="parts")
    assert same(weights(whole), weights(parts))
    columns = [
        name
        for name in history(tiny, "whole")[0]
        if "samples_per_s" not in name and "data_wait" not in name
    ]
    for a, b in zip(history(tiny, "whole"), history(tiny, "parts"), strict=True):
        assert [a[c] for c in columns] == [b[c] for c in columns]


@pytest.mark.parametrize("mode", ["percentile", "zscore", "values"])
def test_a_normalised_run_is_continued_bit_for_bit_and_by_any_number_of_workers(experiment, mode):
    tiny = experiment(raw_normalization=mode, noise_std=0.05, gamma_range=(0.8, 1.2))
    whole = tiny.train(epochs=3, run_name="whole")
    tiny.train(epochs=1, run_name="parts")
    shutil.rmtree(tiny.config().path("cache_path") / "raw_scalings", ignore_errors=True)
    parts = tiny.train(epochs=3, run_name="parts", num_workers=2)
    assert same(weights(whole), weights(parts))
    plain = tiny.train(epochs=3, run_name="plain", raw_normalization="range")
    assert not same(weights(whole), weights(plain))


def test_a_run_with_every_augmentation_is_continued_bit_for_bit(experiment):
    """Also with other workers; with other augmentations it is not continued."""
    tiny = experiment(augmentations=EVERY_KIND, raw_normalization="zscore", noise_std=0.05)
    whole = tiny.train(epochs=3, run_name="whole")
    tiny.train(epochs=1, run_name="parts")
    parts = tiny.train(epochs=3, run_name="parts", num_workers=2)
    assert same(weights(whole), weights(parts))
    plain = tiny.train(epochs=3, run_name="plain", augmentations={})
    assert not same(weights(whole), weights(plain))
    with pytest.raises(UserError, match="augmentations was"):
        tiny.train(epochs=4, run_name="parts", augmentations={})


def test_a_continued_run_keeps_the_scaling_of_its_beginning(experiment, monkeypatch):
    """Whatever was downloaded of a volume since."""
    tiny = experiment(raw_normalization="zscore")
    first = tiny.train(epochs=1)
    saved = torch.load(first.checkpoint, weights_only=True)["raw_scalings"]
    (name,) = saved
    measured = Scaling(0.0, 0.5, 0.1, 0.3, (56, 56, 56))
    monkeypatch.setattr(normalize, "_measured", lambda *_: measured)
    latest = tiny.train(epochs=2).checkpoint.parent / "latest.pt"
    assert torch.load(latest, weights_only=True)["raw_scalings"] == saved
    setup, _ = prepare(tiny.config())
    assert setup.data.scalings == {name: Scaling.of(saved[name])}
    new, _ = prepare(tiny.config(run_name="new"))
    assert new.data.scalings == {name: measured}
    provenance = json.loads((first.logs / "run.json").read_text())["provenance"]
    assert provenance[f"raw {name}"] == str(Scaling.of(saved[name]))


def test_another_normalisation_is_another_run(experiment):
    tiny = experiment()
    tiny.train(epochs=1)
    with pytest.raises(ValueError, match="raw_normalization was 'range' and is 'zscore'"):
        tiny.train(epochs=2, raw_normalization="zscore")


def test_own_augmentation_gets_0_to_1_with_any_normalisation(experiment):
    text = """
        from pathlib import Path


        def augment(raw, generator):
            with Path(__file__).with_name("given.txt").open("a") as file:
                print(float(raw.min()), float(raw.max()), file=file)
            return raw
        """
    tiny = experiment(text=text, raw_normalization="zscore", iterations_per_epoch=5, batch_size=1)
    tiny.train(epochs=1)
    given = np.loadtxt(tiny.folder / "given.txt")
    assert len(given) >= 5
    assert (given >= 0).all() and (given <= 1).all()
    assert (given[:, 1] - given[:, 0] > 0.8).all()


def test_epochs_are_a_total_and_a_finished_run_stays_as_it_is(experiment):
    tiny = experiment()
    first = weights(tiny.train())
    result = tiny.train()
    assert result.epochs == 2 and same(first, weights(result)) and len(history(tiny)) == 2


def test_iterations_per_epoch_are_optimizer_steps(experiment):
    tiny = experiment(batch_size=3, iterations_per_epoch=4, gradient_accumulation_steps=2)
    state = torch.load(tiny.train().checkpoint.parent / "latest.pt", weights_only=True)
    assert state["iteration"] == 2 * 4
    assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {8}


def test_equal_seeds_repeat_a_run_and_another_seed_changes_it(experiment, monkeypatch):
    tiny = experiment()
    first = weights(tiny.train(run_name="a"))
    assert same(first, weights(tiny.train(run_name="b")))
    monkeypatch.setenv("SEED", "7")
    assert not same(first, weights(tiny.train(run_name="c")))


def test_the_number_of_workers_does_not_change_the_run(experiment):
    tiny = experiment()
    assert same(weights(tiny.train(run_name="a")), weights(tiny.train(run_name="b", num_workers=2)))


def test_the_best_checkpoint_is_the_epoch_with_the_best_metric(experiment):
    tiny = experiment(epochs=5, best_metric="loss", learning_rate=0.05)
    result = tiny.train()
    losses = [float(row["validation/loss"]) for row in history(tiny)]
    best = torch.load(result.checkpoint, weights_only=True)
    assert best["epoch"] == 1 + losses.index(min(losses))
    assert result.best_metric == pytest.approx(min(losses))


def test_best_and_given_checkpoints_are_loaded_when_asked_for(experiment):
    tiny = experiment(epochs=3)
    done = tiny.train()
    given = torch.load(done.checkpoint, weights_only=True)["model"]
    started = tiny.train(
        run_name="other",
        load_model=str(done.checkpoint),
        learning_rate=1e-9,
        weight_decay=0.0,
        epochs=1,
    )
    moved = weights(started)
    assert all(torch.allclose(given[name], moved[name], atol=1e-6) for name in given)
    assert started.epochs == 1


def test_given_weights_that_a_run_did_not_begin_with_are_said_to_have_no_effect(experiment, capsys):
    tiny = experiment(epochs=1)
    given = str(tiny.train(run_name="given").checkpoint)
    capsys.readouterr()
    tiny.train(run_name="begun", load_model=given)
    tiny.train(run_name="begun", load_model=given, epochs=2)
    assert "no effect" not in capsys.readouterr().err
    tiny.train(run_name="given", load_model="nowhere.pt", epochs=2)
    told = "latest.pt: the run goes on, and load_model = 'nowhere.pt' has no effect"
    assert told in capsys.readouterr().err


def test_given_weights_that_learnt_from_another_input_are_told(experiment, capsys):
    from common.train.checkpointing.resume import _note_other_input

    tiny = experiment()
    saved = {"settings": tiny.config().record()}
    _note_other_input(Path("best.pt"), saved, tiny.config())
    assert capsys.readouterr().err == ""
    scales = [f"{name}_array_info.scale=(16, 16, 16)" for name in ("input", "target")]
    _note_other_input(Path("best.pt"), saved, tiny.config(*scales, raw_normalization="zscore"))
    assert capsys.readouterr().err == (
        "note: best.pt: its weights were trained with raw_normalization 'range', here 'zscore'; "
        "raw of 8 nm, here 16 nm\n"
    )


def test_scratch_does_not_write_over_a_run(experiment):
    tiny = experiment()
    before = weights(tiny.train())
    with pytest.raises(ValueError, match="run_name"):
        tiny.train(load_model="scratch")
    assert same(before, weights(tiny.train()))


def test_a_run_from_before_a_setting_existed_goes_on(experiment):
    tiny = experiment()
    path = tiny.train().checkpoint.parent / "latest.pt"
    saved = torch.load(path, weights_only=True)
    del saved["settings"]["augment"]
    torch.save(saved, path)
    assert tiny.train(epochs=3).epochs == 3


OWN = """
import torch


def augment(raw, generator):
    return raw + 0.1 * torch.randn(raw.shape, generator=generator, device=raw.device)
"""


def test_own_augmentation_changes_what_is_learnt_and_a_run_with_it_can_be_repeated(experiment):
    tiny = experiment(text=OWN)
    first = weights(tiny.train(run_name="first"))
    assert same(first, weights(tiny.train(run_name="again", num_workers=2)))
    assert not same(first, weights(tiny.train(run_name="plain", augment=None)))


def test_own_augmentation_that_gives_another_shape_is_refused_before_data_are_decoded(experiment):
    tiny = experiment(text="def augment(raw, generator):\n    return raw[0]")
    with pytest.raises(UserError, match=r"augment: gave \(20, 20, 20\)"):
        tiny.train()
    assert not tiny.config().path("cache_path").exists()


def test_sampling_weights_change_what_is_learnt_and_equal_ones_do_not(experiment):
    tiny = experiment()
    plain = weights(tiny.train(run_name="plain"))
    equal = tiny.train(run_name="equal", class_sampling_weights={"mito": 1.0})
    assert same(plain, weights(equal))
    other = tiny.train(run_name="other", class_sampling_weights={"mito": 5.0, "nuc": 0.0})
    assert not same(plain, weights(other))


def test_a_continued_run_refuses_settings_that_change_what_is_learnt(experiment):
    tiny = experiment()
    tiny.train()
    with pytest.raises(ValueError, match=r"learning_rate was 0.01 and is 0.5"):
        tiny.train(learning_rate=0.5)


def test_other_settings_are_refused_before_anything_is_built(experiment, monkeypatch):
    tiny = experiment()
    tiny.train()
    monkeypatch.setattr(run_module, "prepare", None)
    text = "from common.train.losses import bce_dice as criterion"
    tiny.add(text)
    with pytest.raises(UserError, match=r"criterion was None and is losses\.bce_dice"):
        tiny.train()


def test_early_stopping_ends_after_epochs_without_a_better_metric(experiment):
    tiny = experiment(epochs=9, learning_rate=1e-12, weight_decay=0.0, early_stopping_patience=2)
    assert tiny.train().epochs == 3


def test_a_time_limit_ends_with_the_epoch_and_the_next_call_goes_on(experiment):
    tiny = experiment(epochs=4)
    assert tiny.train(training_time_limit=1e-6).epochs == 1
    assert tiny.train().epochs == 4


def test_without_validation_crops_the_latest_checkpoint_is_the_result(experiment):
    tiny = experiment()
    lines = (tiny.folder / "datasplit.csv").read_text().splitlines(keepends=True)
    tiny.write("datasplit.csv", "".join(line for line in lines if "validate" not in line))
    assert tiny.train().checkpoint.name == "latest.pt"


def test_a_copied_folder_trains_its_own_model(experiment):
    tiny = experiment()
    model = (
        (tiny.folder / "model.py")
        .read_text()
        .replace("nn.Conv3d(1, 8, 3)", "nn.Conv3d(1, 8, 3, bias=False)")
    )
    other = experiment("copied", files={"model.py": model})
    assert "0.bias" in weights(tiny.train()) and "0.bias" not in weights(other.train())


def test_true_negatives_reach_the_loss(experiment):
    """crop2 annotates mito alone: er and nuc are known where mito is, if the setting says so."""
    from common.data.samples import loaders

    tiny = experiment(infer_groups=False)
    rows = {
        masked: loaders.open_data(tiny.config(use_mutual_exclusion=masked)).train[1].palette
        for masked in (True, False)
    }
    assert rows[True].tolist() == [[-1, -1, -1], [0, -1, -1], [1, 0, 0]]
    assert rows[False].tolist() == [[-1, -1, -1], [0, -1, -1], [1, -1, -1]]


def test_the_mean_over_the_classes_that_occur_is_in_tensorboard(experiment):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny = experiment()
    tiny.train()
    log = EventAccumulator(str(tiny.folder / "logs/tiny_experiment/seed42"))
    log.Reload()
    tags = log.Tags()
    wanted = {
        "loss/train",
        "loss/validation",
        "lr",
        "grad_norm",
        "throughput/samples_per_s",
        "throughput/data_wait",
        "mean/dice",
        "dice/mito",
        "iou/er",
        "recall/nuc",
    }
    assert wanted <= set(tags["scalars"])
    assert {"raw, target, prediction/mito", "whole crop/tiny crop3"} <= set(tags["images"])
    texts = {tag.split("/")[0] for tag in tags["tensors"]}
    assert texts == {"settings", "provenance", "raw, target, prediction"}
    assert [event.step for event in log.Scalars("loss/validation")] == [3, 6]


def test_a_2d_network_trains_on_patches_one_voxel_thick(experiment):
    data = """
        classes = ("mito", "er", "nuc")
        input_array_info = {"shape": (1, 20, 20), "scale": (8, 8, 8)}
        target_array_info = {"shape": (1, 16, 16), "scale": (8, 8, 8)}
        """
    model = """
        from torch import nn


        def build_model(classes):
            return nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Conv2d(8, len(classes), 1))
        """
    transforms = {
        "mirror": {"axes": {"x": 0.5}},
        "transpose": {"axes": ["x", "y"]},
        "rotate": {"axes": {"z": [-180, 180]}},
    }
    tiny = experiment(files={"data.py": data, "model.py": model}, spatial_transforms=transforms)
    assert tiny.train().best_metric > 0


def test_check_reports_and_keeps_nothing(experiment):
    from common.train.check import check

    tiny = experiment()
    report = check(tiny.folder, data=tiny.data)
    assert (
        "(2, 1, 20, 20, 20)" in report and "(2, 3, 16, 16, 16)" in report and "parameters" in report
    )
    assert not (tiny.folder / "logs").exists() and not (tiny.folder / "checkpoints").exists()


@pytest.fixture
def one_crop(tmp_path) -> Path:
    """A data root with a crop that annotates two classes, and raw that holds a patch of 68^3."""
    random = np.random.default_rng(0)
    store = tmp_path / "data/set/set.zarr"
    raw = random.integers(1, 255, (80, 80, 80), np.uint8)
    write_multiscale(store / "recon-1/em/raw", raw, (8, 8, 8))
    for name in ("mito", "nuc"):
        mask = random.integers(0, 2, (28, 28, 28), np.uint8)
        group = store / f"recon-1/labels/groundtruth/crop1/{name}"
        write_multiscale(group, mask, (8, 8, 8), (208, 208, 208))
    crop = "recon-1/labels/groundtruth/crop1/[mito,nuc]"
    row = ["train", "set/set.zarr", "recon-1/em/raw", "set/set.zarr", crop]
    text = ",".join(f'"{cell}"' for cell in row)
    (tmp_path / "data/datasplit.csv").write_text(f"{text}\n")
    return tmp_path / "data"


def test_the_original_recipe_of_a_baseline_takes_a_step(one_crop, monkeypatch):
    monkeypatch.setattr(check_module, "TIMED_STEPS", 1)
    folder = REPOSITORY / "unet8_all"
    overrides = [
        *read_overrides(folder / "original.txt"),
        f"datasplit_path={one_crop}/datasplit.csv",
        "batch_size=1",
        "num_workers=0",
        "device=cpu",
    ]
    said = check_module.check(folder, overrides, one_crop)
    assert "(1, 1, 68, 68, 68) at 8 nm" in said
    assert "(1, 48, 28, 28, 28) at 8 nm" in said


def test_check_foretells_what_a_run_writes(experiment):
    from common.train.check import check

    tiny = experiment(epochs=4, iterations_per_epoch=20, figure_samples=2)
    (line,) = [
        line
        for line in check(tiny.folder, data=tiny.data).splitlines()
        if line.startswith("writes")
    ]
    checkpoints, logs = (float(word) * 1e3 for word in re.findall(r"([\d.]+) kB", line))
    tiny.train()
    written = {
        kind: sum(f.stat().st_size for f in (tiny.folder / kind).rglob("*") if f.is_file())
        for kind in ("checkpoints", "logs")
    }
    assert (
        checkpoints <= written["checkpoints"] <= checkpoints + 90_000
    )  # settings, random states and the file's own structure, three times
    assert logs == pytest.approx(written["logs"], rel=0.25)


class Clock:
    """Stands in for time: moves only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_a_timed_step_leaves_out_warming_up_and_what_was_read_ahead(experiment, monkeypatch):
    """The first steps take 0.2 s, later ones 0.02 s; a batch 0.05 s after those read ahead."""
    from common.train import check

    clock = Clock()
    steps_taken = []
    read = []

    def step(*_):
        steps_taken.append(1)
        clock.now += 0.2 if len(steps_taken) <= 2 else 0.02
        return StepResult(Numbers(0.5, 1.0))

    def between(start, stop):
        for k in range(start, stop, 2):
            read.append(k)
            clock.now += 0.0 if len(read) <= 4 else 0.05
            yield None

    setup, state = prepare(experiment(num_workers=1, gradient_accumulation_steps=1).config())
    setup = dataclasses.replace(setup, training=SimpleNamespace(between=between))
    monkeypatch.setattr(check.steps, "step", step)
    monkeypatch.setattr(check, "time", clock)
    timed = check.time_steps(setup, state)
    assert timed.waited == pytest.approx(0.05)
    assert timed.seconds == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("batch_limit", "time_limit", "wanted"), [(0, 0.0, 0.8), (2, 0.0, 0.2), (0, 0.5, 0.5)]
)
def test_the_time_of_a_validation_is_foretold_from_a_part_of_it(
    experiment, monkeypatch, batch_limit, time_limit, wanted
):
    """Eight blocks in batches of one, 0.1 s each, of which the check has time for four."""
    from common.train import check

    clock = Clock()

    def validate(state, *_):
        state.validation_batches = min(4, batch_limit or 4)
        clock.now += 0.1 * state.validation_batches
        return "scores"

    config = experiment(
        batch_size=1, validation_batch_limit=batch_limit, validation_time_limit=time_limit
    ).config()
    setup, state = prepare(config)
    assert len(setup.data.blocks) == 8
    monkeypatch.setattr(check.validation, "validate", validate)
    monkeypatch.setattr(check, "time", clock)
    timed = check.time_validation(setup, state)
    assert timed.seconds == pytest.approx(wanted)
    assert timed.scores == "scores"


def test_a_check_measures_a_validation_without_the_score_of_whole_crops(experiment):
    """It would be taken for a part of the blocks, and multiplied by their number."""
    from common.train import check

    def score(*_):
        raise AssertionError("scored")

    setup, state = prepare(experiment(batch_size=1).config())
    config = dataclasses.replace(setup.config, validation_score_every=1)
    validation = dataclasses.replace(setup.validation, config=config, score=score)
    setup = dataclasses.replace(setup, config=config, validation=validation)
    timed = check.time_validation(setup, state)
    assert timed.scores.whole is None


# what a run came to: run.json


def record(tiny, run: str = "seed42") -> dict:
    return json.loads((tiny.folder / f"logs/tiny_experiment/{run}/run.json").read_text())


def test_a_run_says_what_it_is_and_what_it_came_to(experiment):
    tiny = experiment(epochs=3)
    result = tiny.train()
    found, rows = record(tiny), history(tiny)
    assert (found["experiment"], found["model_name"], found["run_name"]) == (
        "tiny_experiment",
        "tiny_experiment",
        "seed42",
    )
    assert found["settings"] == tiny.config().record()
    assert (
        found["provenance"]["device"] == "cpu"
        and found["provenance"]["torch"] == torch.__version__.split("+")[0]
    )
    assert {"commit", "python", "precision", "split_hash"} <= set(found["provenance"])
    best = max(rows, key=lambda row: float(row["validation/dice"]))
    blocks = found["result"].pop("validation_blocks")
    assert re.fullmatch(r"(\d+) of \1 blocks, [0-9a-f]{24}", blocks)
    assert {name: value for name, value in found["result"].items() if name != "hours"} == {
        "epoch": 3,
        "iteration": 9,
        "best_metric": "dice",
        "best": result.best_metric,
        "best_epoch": int(best["epoch"]),
        "finished": True,
        "samples_per_s": float(rows[-1]["train/samples_per_s"]),
    }
    (session,) = found["sessions"]
    assert session["first_iteration"] == 0 and session["last_iteration"] == 9
    assert datetime.fromisoformat(session["began"]) <= datetime.fromisoformat(session["ended"])
    assert (result.run, result.logs) == ("seed42", tiny.folder / "logs/tiny_experiment/seed42")


def test_which_blocks_a_limited_validation_looked_at_is_on_record(experiment):
    tiny = experiment(epochs=1, validation_batch_limit=1, batch_size=1)
    tiny.train()
    tiny.train(run_name="all", validation_batch_limit=0)
    limited = record(tiny)["result"]["validation_blocks"]
    every = record(tiny, "all")["result"]["validation_blocks"]
    assert limited.startswith("1 of ")
    assert limited.split(", ")[1] != every.split(", ")[1]


def test_sessions_and_hours_of_a_continued_run_add_up(experiment):
    tiny = experiment(epochs=4)
    tiny.train(training_time_limit=1e-6)
    first = record(tiny)
    tiny.train()
    second = record(tiny)
    assert [(s["first_iteration"], s["last_iteration"]) for s in second["sessions"]] == [
        (0, 3),
        (3, 12),
    ]
    assert not first["result"]["finished"] and second["result"]["finished"]
    assert second["result"]["hours"] > first["result"]["hours"] > 0


def test_a_run_that_fails_closes_its_session_and_keeps_its_result(experiment):
    tiny = experiment(epochs=1)
    tiny.train()
    with pytest.raises(FloatingPointError):
        tiny.train(run_name="broken", learning_rate=1e30, weight_decay=0.9, epochs=5)
    found = record(tiny, "broken")
    assert found["sessions"][0]["ended"] and found["result"].get("finished") in (None, False)


def test_without_validation_the_best_is_null(experiment):
    tiny = experiment(epochs=1)
    lines = (tiny.folder / "datasplit.csv").read_text().splitlines(keepends=True)
    tiny.write("datasplit.csv", "".join(line for line in lines if "validate" not in line))
    tiny.train()
    assert record(tiny)["result"]["best"] is None and record(tiny)["result"]["finished"]


def test_a_report_is_given_each_validation_and_may_end_the_run(experiment):
    tiny = experiment(epochs=5)
    told = []

    def report(epoch, metric):
        told.append((epoch, metric))
        return epoch == 2

    result = tiny.train(report=report)
    assert result.epochs == 2 and result.finished
    assert told == [(int(row["epoch"]), float(row["validation/dice"])) for row in history(tiny)]
    assert not record(tiny)["result"]["finished"]
    assert tiny.train().epochs == 5


INTERRUPTED_IN_STEP_7 = """
    import os

    from common.train.losses import weighted_bce


    def criterion(logits, target, pos_weight):
        if os.environ.get("IN_STEP") == "7":
            os.kill(os.getpid(), int(os.environ["INTERRUPT_WITH"]))
        return weighted_bce(logits, target, pos_weight)
    """
"""A loss that interrupts its own process, in the middle of a step."""

COUNTS_STEPS = """
import itertools
import os

from cellmap_segmentation_challenge.__main__ import main
from common.train import steps

numbers = itertools.count(1)
take_step = steps.step

def step(*arguments, **options):
    os.environ["IN_STEP"] = str(next(numbers))
    return take_step(*arguments, **options)

steps.step = step
main()
"""
"""The command line; says in which step it is. Calls of a loss do not: it is tried before."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_run_saves_says_how_to_go_on_and_equals_an_uninterrupted_one(
    experiment, forked, number
):
    tiny = experiment(epochs=1, iterations_per_epoch=20, text=INTERRUPTED_IN_STEP_7)
    words = ["train", tiny.folder, "--data", tiny.data, "--set", "run_name=cut"]
    environment = {"INTERRUPT_WITH": str(int(number)), "SEED": "42"}
    code, _, said = forked(*words, program=COUNTS_STEPS, environment=environment).ended()
    assert code == (130 if number == signal.SIGINT else 75), said
    assert "Go on with the same command" in said
    assert said.endswith(" --set run_name=cut --set random_seed=42\n")
    assert str(tiny.folder) in said
    cut = torch.load(tiny.folder / "checkpoints/tiny_experiment/cut/latest.pt", weights_only=True)
    assert cut["iteration"] == 7
    assert same(weights(tiny.train(run_name="cut")), weights(tiny.train(run_name="whole")))


def test_a_run_whose_split_is_in_another_file_now_goes_on_with_that_file(experiment):
    """As those of the baselines that were begun with what is datasplit_partial.csv now."""
    tiny = experiment()
    tiny.train(epochs=1, run_name="moved")
    whole = tiny.train(epochs=2, run_name="whole")
    text = (tiny.folder / "datasplit.csv").read_text()
    tiny.write("datasplit_partial.csv", text)
    lines = [line for line in text.splitlines() if "crop2" not in line]
    assert len(lines) == len(text.splitlines()) - 1
    tiny.write("datasplit.csv", "\n".join(lines) + "\n")
    sentence = "crops of the datasplit are others, .* --set datasplit_path=datasplit_partial.csv"
    with pytest.raises(UserError, match=sentence):
        tiny.train(epochs=2, run_name="moved")
    moved = tiny.train("datasplit_path=datasplit_partial.csv", epochs=2, run_name="moved")
    assert same(weights(moved), weights(whole))


def test_training_writes_nothing_into_the_data(experiment):
    tiny = experiment()
    before = {path: path.stat().st_mtime_ns for path in tiny.data.rglob("*")}
    tiny.train()
    assert before == {path: path.stat().st_mtime_ns for path in tiny.data.rglob("*")}


def test_the_default_optimizer_decays_its_weights(experiment):
    state = torch.load(experiment().train().checkpoint, weights_only=True)
    assert [group["weight_decay"] > 0 for group in state["optimizer"]["param_groups"]] == [
        True,
        False,
    ]
    assert all(group["decoupled_weight_decay"] for group in state["optimizer"]["param_groups"])


@pytest.fixture
def worker_is_killed(monkeypatch):
    """In the second step that is taken from here on."""
    take_step = steps.step
    taken = []

    def step(*arguments, **options):
        taken.append(1)
        if len(taken) == 2:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
        return take_step(*arguments, **options)

    monkeypatch.setattr(workers, "POLL_S", 0.2)
    return lambda: monkeypatch.setattr(steps, "step", step)


def test_a_run_whose_worker_is_killed_goes_on_as_if_it_was_not(
    experiment, worker_is_killed, capsys
):
    tiny = experiment(num_workers=1, epochs=2)
    expected = weights(tiny.train(run_name="undisturbed"))
    worker_is_killed()
    result = tiny.train(run_name="disturbed")
    assert result.finished
    assert same(expected, weights(result))
    assert "worker 1 of 1 that read samples ended (SIGKILL)" in capsys.readouterr().err


def test_a_run_whose_workers_are_killed_in_vain_is_saved_and_goes_on_as_if_they_were_not(
    experiment, worker_is_killed, monkeypatch
):
    tiny = experiment(num_workers=1, epochs=2)
    expected = weights(tiny.train(run_name="undisturbed"))
    worker_is_killed()
    monkeypatch.setattr(workers, "RESTARTS", 0)
    with pytest.raises(
        WorkerLost, match=r"that read samples ended.* Saved after iteration \d+ in .*latest.pt"
    ):
        tiny.train(run_name="disturbed")
    assert same(expected, weights(tiny.train(run_name="disturbed")))
