"""bench/quality.py: what it trains is what train trains, and its tables say what was measured."""

from __future__ import annotations

import json

import pytest
import torch

from bench import case, contestants, peers, quality
from bench.case import Case, Clock
from bench.drawn import write_tissue
from bench.side_by_side import Job, Outcome
from bench.whole_crop import predict_crops, thresholded
from common.config.load import load_config
from common.data.samples import loaders
from common.data.volumes import ngff
from common.files import REPOSITORY

SCHEDULE = """
    from torch.optim.lr_scheduler import CosineAnnealingLR as scheduler
    """


class ClockOfSteps(Clock):
    """Strikes when it was asked three times, which is after two steps where no epoch ends."""

    def start(self, mark):
        super().start(mark)
        self.asked = 0

    def due(self):
        self.asked += 1
        return self.asked > 2


def test_training_in_segments_is_the_training_of_train(experiment, monkeypatch):
    """Six steps, looked at in between: the same weights as those of an undisturbed run."""
    tiny = experiment(text=SCHEDULE)
    undisturbed = tiny.train(run_name="undisturbed")
    wanted = torch.load(undisturbed.checkpoint.with_name("latest.pt"))["model"]
    monkeypatch.setattr(contestants, "Clock", ClockOfSteps)
    config = tiny.config(run_name="segments")
    snapshots = list(contestants.train_until(config, [1.0, 2.0, 3.0, 4.0, 5.0]))
    assert [snapshot.steps for snapshot in snapshots] == [2, 3, 3, 5, 6]
    assert snapshots[-1].voxels == 6 * 2 * 16**3
    path = config.path("model_save_path") / "latest.pt"
    for name, tensor in torch.load(path)["model"].items():
        assert torch.equal(tensor, wanted[name]), name


def test_the_clock_stands_still_between_marks(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(case.time, "perf_counter", lambda: now[0])
    clock = Clock()
    clock.start(10)
    now[0] = 4.0
    assert not clock.due()
    clock.pause()
    now[0] = 100.0
    assert clock.seconds == 4
    clock.start(10)
    now[0] = 106.0
    assert clock.due()
    now[0] = 200.0
    assert clock.seconds == 10


def test_a_schedule_ends_with_the_time_and_keeps_its_epochs(experiment):
    config = experiment().config(epochs=12)
    assert contestants.as_long_as(config, 240) == {"epochs": 12, "iterations_per_epoch": 20}
    assert contestants.as_long_as(config, 5) == {"epochs": 5, "iterations_per_epoch": 1}
    assert contestants.as_long_as(config, 0) == {"epochs": 1, "iterations_per_epoch": 1}


def test_the_iou_of_the_whole_crop_is_that_of_the_thresholded_map(experiment):
    """Against a count of what predict wrote, with NumPy."""
    tiny = experiment()
    result = tiny.train()
    config = tiny.config()
    predicted = predict_crops(config, str(result.checkpoint))
    found = predicted.iou()
    [crop] = predicted.crops
    for name in config.classes:
        stored = ngff.open_levels(crop.folder(config.path("predictions_path")) / name)[0]
        truth = ngff.open_levels(crop.truth / name)[0].array[...] > 0
        mask = stored.array[...] > 127.5
        expected = (mask & truth).sum() / (mask | truth).sum()
        assert found[name] == pytest.approx(expected), name
    objects = predicted.objects(thresholded(config))
    assert set(objects) == {"mito", "nuc"}
    assert 0 <= objects["mito"]["score"] <= 1


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    return write_tissue(tmp_path_factory.mktemp("tissue"))


def case_of(tissue, tmp_path, contestant="monai") -> Case:
    return Case(
        contestant=contestant,
        dataset="flyem_medulla",
        data=str(tissue),
        seed=42,
        minutes=(0.001,),
        device="cpu",
        precision="fp32",
        workers=0,
        scratch=str(tmp_path),
        quick=True,
    )


def test_patches_of_peers_have_raw_and_labels_of_the_same_place(tissue, tmp_path):
    """Membranes are drawn dark, and two voxels wide."""
    case = case_of(tissue, tmp_path)
    config = peers.config_of_peer(case, peers.build_basic_unet)
    crops = loaders.open_data(config).train
    raw, target = next(peers.patches(config, crops, case, positive_fraction=0.5))
    assert raw.shape == (2, 1, 32, 32, 32)
    assert target.shape == (2, 2, 32, 32, 32)
    is_pm = target[:, :1] == 1
    assert raw[is_pm].mean() < 0.45
    assert raw[~is_pm].mean() > 0.58
    shifted = is_pm.roll(4, dims=2)
    assert raw[is_pm].mean() < raw[shifted].mean() - 0.1


def test_the_committed_recipe_stays_what_it_was():
    """The examples may change; what they are compared with may not."""
    flyem = load_config(REPOSITORY / "bench" / "recipes" / "flyem_medulla.py").record()
    vnc = load_config(REPOSITORY / "bench" / "recipes" / "drosophila_vnc.py").record()
    for config in (flyem, vnc):
        assert config["init_output_to_prior"] == "True"
        assert config["learning_rate"] == "0.002"
        assert config["batch_size"] == "1"
        assert config["scheduler"] == "lr_scheduler.CosineAnnealingLR"
        assert config["criterion"] == "losses.bce_dice"
    assert flyem["input_array_info"] == "{'shape': (92, 92, 92), 'scale': (10.0, 10.0, 10.0)}"
    assert vnc["input_array_info"] == "{'shape': (68, 92, 92), 'scale': (12.5, 9.2, 9.2)}"


def test_a_loss_at_several_scales_is_the_mean_of_them_weighted_by_half():
    from common.train.losses import bce_dice

    random = torch.Generator().manual_seed(0)
    target = (torch.rand(1, 2, 8, 8, 8, generator=random) > 0.5).float()
    outputs = [torch.randn(1, 2, n, n, n, generator=random) for n in (8, 4, 2)]
    halved = torch.nn.functional.interpolate(target, (4, 4, 4))
    expected = (2 * bce_dice(outputs[0], target) + bce_dice(outputs[1], halved)) / 3
    assert peers.deeply_supervised(outputs, target) == pytest.approx(float(expected))


def outcome(contestant: str, seed: int, pm: float, problem: str = "") -> Outcome:
    seconds = 90.0 if contestant == "monai" else 121.0
    mark = {"minutes": 2.0, "seconds": seconds, "steps": 40, "voxels": 4_000_000, "iou": {"pm": pm}}
    figures = {"score": 0.5, "pq": None, "voi_split": 1.0, "voi_merge": pm}
    objects = {"connected components": {"cell": figures}}
    job = Job(
        f"{contestant}/seed{seed}", "bench/quality.py", {"contestant": contestant, "seed": seed}
    )
    return Outcome(job, [mark, {"objects": objects}], problem)


def test_tables_and_files_have_mean_and_range_and_what_failed(tmp_path, capsys):
    outcomes = [
        outcome("new", 42, 0.4),
        outcome("new", 43, 0.5),
        outcome("monai", 42, 0.3),
        outcome("nnunet", 42, 0.3, problem="no package"),
    ]
    files = ["--json", str(tmp_path / "q.json"), "--plot", str(tmp_path / "q.png")]
    options = quality.parse(["--data", "x", "--minutes", "2", "--seeds", "42", "43", *files])
    quality.report(options, outcomes)
    said = capsys.readouterr().out.splitlines()
    assert "| new | pm | 0.45 (0.40-0.50) | 40 | 4.0 million |" in said
    assert "| monai | pm | 0.30 | 40 | 4.0 million |" in said
    assert "| new | cell | connected components | 0.50 | - | 1.00 | 0.45 (0.40-0.50) |" in said
    assert "nnunet/seed42 failed: no package" in said
    early = "monai/seed42: trained for 1.5 of 2 min; its steps were timed as slower before"
    assert [line for line in said if "trained for" in line] == [early]
    written = json.loads((tmp_path / "q.json").read_text())
    assert [seed["seed"] for seed in written["contestants"]["new"]] == [42, 43]
    assert (tmp_path / "q.png").stat().st_size > 10_000


def test_an_experiment_that_scores_whole_crops_is_trained_too(experiment):
    """Its validation is no training: it is left out, whatever it is by."""
    scored = {"validation_score_every": 1, "best_metric": "challenge"}
    config = experiment(**scored).config()
    [snapshot] = contestants.train_until(config, [float("inf")])
    assert snapshot.steps == 6
    assert not (config.path("model_save_path") / "best.pt").exists()


@pytest.mark.slow
def test_the_command_trains_and_scores(tmp_path):
    pytest.importorskip("monai")
    asked = ["--quick", "--contestants", "monai", "--minutes", "0.01"]
    quality.main([*asked, "--json", str(tmp_path / "q.json")])
    [seed] = json.loads((tmp_path / "q.json").read_text())["contestants"]["monai"]
    [mark] = seed["marks"]
    assert mark["steps"] > 0
    assert set(mark["iou"]) == {"pm", "cell"}
    assert set(seed["objects"]) == {"connected components", "process_config.py"}
