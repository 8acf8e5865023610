"""Scores of processed crops and of submissions: perfect ones, ones drawn by hand, brute force, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import zarr
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information

from common.data import ngff
from common.data.manifest import Entry
from common.infer import process
from common.score import challenge, evaluate, packing, result, tables, workers
from common.score.judge import Evaluation, Truth, compare
from common.score.quality import ObjectCounts, VoxelCounts
from common.score.summary import summary
from tests.infer.test_process import ABOVE, configured, run, tuned, write_prediction

PERFECT = {
    "score": 1,
    "dice": 1,
    "iou": 1,
    "precision": 1,
    "recall": 1,
    "f1": 1,
    "hausdorff": 1,
    "pq": 1,
    "voi_split": 0,
    "voi_merge": 0,
    "rand_error": 0,
    "fp": 0,
    "fn": 0,
}


@pytest.fixture
def tiny(experiment):
    made = experiment()
    configured(made, ABOVE)
    return made


def scored(tiny, crops="validate", **settings) -> dict:
    """The content of the file."""
    say = settings.pop("say", lambda line: None)
    scores = evaluate.evaluate(tiny.folder, crops, data=tiny.data, say=say, **settings)
    return scores.as_json()


def write_truth(tiny, name, values, crop="crop3", voxel=8) -> None:
    """Voxels of `voxel` nm from the corner of the crop on."""
    corner = ngff.open_levels(tiny.crop(crop) / "mito")[0].box()[0]
    ngff.write_multiscale(
        tiny.crop(crop) / name, np.asarray(values), (voxel,) * 3, corner + voxel / 2
    )


def truth(tiny, name, crop="crop3") -> np.ndarray:
    return ngff.open_levels(tiny.crop(crop) / name)[0].array[...]


def write_processed(tiny, name, values, crop="crop3", voxel=8) -> Path:
    """A volume of another program than process."""
    path = tiny.config().path("processed_path") / "tiny.zarr" / crop / name
    corner = ngff.open_levels(tiny.crop(crop) / "mito")[0].box()[0]
    ngff.write_multiscale(path, np.asarray(values), (voxel,) * 3, corner + voxel / 2)
    return path


def cubes() -> np.ndarray:
    """Four objects: two apart, two that touch over a face."""
    ids = np.zeros((24, 24, 24), np.uint16)
    for number, (z, y, x) in enumerate([(2, 2, 2), (2, 2, 8), (14, 3, 3), (14, 14, 14)], 300):
        ids[z : z + 6, y : y + 6, x : x + 6] = number
    return ids


def fine(volume: np.ndarray, times: int = 2) -> np.ndarray:
    return np.kron(volume, np.ones((times,) * 3, volume.dtype))


# Perfect


@pytest.mark.parametrize("times", [1, 2, 4])
def test_objects_of_whole_voxels_that_are_all_right_have_perfect_figures(tiny, times):
    """The annotation at 8, 4 and 2 nm, what was found at 8 nm."""
    write_truth(tiny, "mito", fine(cubes(), times), voxel=8 / times)
    write_processed(tiny, "mito", cubes())
    found = scored(tiny, classes=("mito",))["classes"]["mito"]
    assert {name: found[name] for name in PERFECT} == pytest.approx(PERFECT)
    assert found["tp"] == 4


@pytest.mark.parametrize("times", [1, 2, 4])
def test_layers_of_whole_voxels_that_are_all_right_have_perfect_figures(tiny, times):
    er = truth(tiny, "nuc") * 0 + (np.arange(24) % 6 < 3).astype(np.uint8)
    write_truth(tiny, "er", fine(er, times), voxel=8 / times)
    write_processed(tiny, "er", er)
    found = scored(tiny, classes=("er",))["classes"]["er"]
    assert {
        name: found[name] for name in ("score", "dice", "iou", "precision", "recall")
    } == dict.fromkeys(("score", "dice", "iou", "precision", "recall"), 1)


def test_a_mask_loses_the_corners_of_its_boxes_on_finer_voxels(tiny):
    """Linear interpolation puts (3/4)^3 < 1/2 at the finer voxel in a corner: 8 voxels of a box."""
    er = (cubes() == 303).astype(np.uint8)
    write_truth(tiny, "er", fine(er), voxel=4)
    write_processed(tiny, "er", er)
    result = scored(tiny, classes=("er",))
    assert result["crops"]["tiny/crop3"]["er"]["voxels"] == {"tp": 12**3 - 8, "fp": 0, "fn": 8}


@pytest.mark.parametrize("coarse", [16, 24])
def test_what_was_found_on_finer_voxels_is_compared_on_those_of_the_annotation(tiny, coarse):
    times = coarse // 8
    er = (np.random.default_rng(0).random((24 // times,) * 3) < 0.4).astype(np.uint8)
    write_truth(tiny, "er", er, voxel=coarse)
    write_processed(tiny, "er", fine(er, times))
    assert scored(tiny, classes=("er",))["classes"]["er"]["iou"] == 1


def test_the_whole_chain_scores_what_the_network_predicts(experiment):
    """Train, predict, process and evaluate, against the figures made of the prediction by hand."""
    from common.infer.predict import predict

    tiny = experiment(epochs=1)
    tiny.train()
    (folder,) = predict(tiny.folder, data=tiny.data)
    process.process(tiny.folder, data=tiny.data)
    result = scored(tiny)
    for name in ("er", "nuc"):
        found, wanted = ngff.open_levels(folder / name)[0].array[...] > 127, truth(tiny, name) > 0
        both = np.count_nonzero(found & wanted)
        assert result["crops"]["tiny/crop3"][name]["voxels"] == {
            "tp": both,
            "fp": found.sum() - both,
            "fn": wanted.sum() - both,
        }
    made = result["provenance"]["checkpoints"]
    assert len(made) == 1 and made[0]["epoch"] == 1 and len(made[0]["sha256"]) == 64


# Drawn


def test_a_box_moved_by_a_voxel(tiny):
    er = np.zeros((24, 24, 24), np.uint8)
    er[4:8, 4:8, 4:8] = 1
    write_truth(tiny, "er", er)
    write_processed(tiny, "er", np.roll(er, 1, 0))
    found = scored(tiny, classes=("er",))["classes"]["er"]
    assert {
        name: found[name] for name in ("score", "iou", "dice", "precision", "recall")
    } == pytest.approx(
        {"score": 48 / 80, "iou": 48 / 80, "dice": 0.75, "precision": 0.75, "recall": 0.75}
    )
    assert (found["tp"], found["fp"], found["fn"]) == (48, 16, 16)


def test_one_of_two_objects_found_one_moved_and_one_too_many(tiny):
    wanted, found = np.zeros((2, 24, 24, 24), np.uint8)
    wanted[2:8, 2:8, 2:8], wanted[14:20, 2:8, 2:8] = 1, 2
    found[3:9, 2:8, 2:8], found[2:4, 20:22, 20:22] = 5, 6
    write_truth(tiny, "mito", wanted)
    write_processed(tiny, "mito", found)
    one = scored(tiny, classes=("mito",))["classes"]["mito"]
    iou = 5 / 7
    assert (one["tp"], one["fp"], one["fn"], one["f1"]) == (1, 1, 1, 0.5)
    assert one["pq"] == pytest.approx(iou / 2)
    assert one["dice"] == pytest.approx(2 * 180 / (2 * 180 + 44 + 252))
    split, merge = variation_of_information(wanted, found, ignore_labels=(0,))
    assert (one["voi_split"], one["voi_merge"]) == pytest.approx((split, merge))
    assert one["rand_error"] == pytest.approx(adapted_rand_error(wanted, found)[0])
    # matched at a voxel's distance; two without a match at half the crop's side, 96 nm
    near, far = (1.01 ** -(nm / np.sqrt(3 * 64)) for nm in (8, 96))
    assert one["hausdorff"] == pytest.approx((near + 2 * far) / 3)
    assert one["score"] == pytest.approx(np.sqrt(0.5 * (near + 2 * far) / 3))


def test_counts_are_pooled_over_crops_before_they_are_divided(tiny):
    for crop, (tp, fn) in {"crop1": (8, 0), "crop3": (1, 7)}.items():
        er = np.zeros((24, 24, 24), np.uint8)
        er[0, 0, :8] = 1
        write_truth(tiny, "er", er, crop=crop)
        er[0, 0, tp : tp + fn] = 0
        write_processed(tiny, "er", er, crop=crop)
    result = scored(tiny, "crop1,crop3", classes=("er",))
    assert result["classes"]["er"]["iou"] == 9 / 16
    assert [result["crops"][f"tiny/{crop}"]["er"]["iou"] for crop in ("crop1", "crop3")] == [
        1,
        1 / 8,
    ]


def test_a_crop_without_an_object_says_nothing_of_partitions(tiny):
    """But what is found there counts in the score."""
    found = np.where(cubes() == 302, 0, cubes())
    for crop, wanted in (("crop1", cubes() * 0), ("crop3", cubes())):
        write_truth(tiny, "mito", wanted, crop=crop)
        write_processed(tiny, "mito", found, crop=crop)
    result = scored(tiny, "crop1,crop3", classes=("mito",))
    pooled, alone = result["classes"]["mito"], result["crops"]["tiny/crop3"]["mito"]
    assert result["crops"]["tiny/crop1"]["mito"]["voi_split"] is None
    for name in ("voi_split", "voi_merge", "rand_error"):
        assert pooled[name] == alone[name] is not None
    assert (pooled["tp"], pooled["fp"], pooled["fn"], alone["fp"]) == (3, 3, 1, 0)


def test_ids_do_not_blur_or_wrap(tiny):
    """600 objects at 16 nm, found at 8 nm with ids beyond 255 in a float volume."""
    rng = np.random.default_rng(0)
    ids = np.zeros((12, 12, 12), np.uint16)
    ids[::2, ::2, ::2] = rng.permutation(np.arange(500, 500 + 216)).reshape(6, 6, 6)
    write_truth(tiny, "mito", ids, voxel=16)
    write_processed(tiny, "mito", fine(ids).astype(np.float32))
    found = scored(tiny, classes=("mito",))["classes"]["mito"]
    assert (found["tp"], found["fp"], found["fn"], found["pq"]) == (216, 0, 0, 1)


# Nothing there


def test_where_there_is_nothing_to_find_and_nothing_is_found(tiny):
    for name in ("mito", "er"):
        write_truth(tiny, name, np.zeros((24, 24, 24), np.uint8))
        write_processed(tiny, name, np.zeros((24, 24, 24), np.uint8))
    result = scored(tiny, classes=("mito", "er"))
    assert (
        result["overall_score"],
        result["classes"]["mito"]["score"],
        result["classes"]["er"]["score"],
    ) == (1, 1, 1)
    for name in (
        "dice",
        "iou",
        "precision",
        "recall",
        "pq",
        "voi_split",
        "voi_merge",
        "rand_error",
    ):
        assert result["classes"]["mito"][name] is None
    assert result["classes"]["er"]["dice"] is None


def test_where_nothing_is_found(tiny):
    write_truth(tiny, "mito", cubes())
    for name in ("mito", "er"):
        write_processed(tiny, name, np.zeros((24, 24, 24), np.uint8))
    result = scored(tiny, classes=("mito", "er"))
    mito, er = (result["classes"][name] for name in ("mito", "er"))
    assert (mito["score"], mito["pq"], mito["dice"], mito["fn"]) == (0, 0, 0, 4)
    assert (er["score"], er["precision"], er["recall"]) == (0, 0, 0)
    assert mito["rand_error"] == pytest.approx(
        adapted_rand_error(cubes(), np.zeros_like(cubes()))[0]
    )


@pytest.mark.parametrize(
    ("name", "absent"), [("mito", "overall_semantic_score"), ("er", "overall_instance_score")]
)
def test_a_mean_over_no_class_is_null(tiny, name, absent):
    write_processed(tiny, name, truth(tiny, name))
    said = []
    result = scored(tiny, classes=(name,), say=said.append)
    path = tiny.config().path("results_path") / evaluate.result_name("validate", (name,))
    written = json.loads(path.read_text())
    assert result["overall_score"] is written["overall_score"] is written[absent] is None
    assert "none of this kind" in said[0] and "it needs classes of both kinds" in said[0]


def test_a_crop_with_more_objects_than_the_metric_takes_is_told(tiny):
    specks = np.zeros((24, 24, 24), np.uint8)
    specks[::3, ::3, ::3] = 1
    write_processed(tiny, "mito", specks)
    said = []
    result = scored(tiny, classes=("mito",), say=said.append)
    assert result["crops"]["tiny/crop3"]["mito"]["status"] == challenge.SKIPPED
    assert (result["classes"]["mito"]["left_out"], result["classes"]["mito"]["score"]) == (1, 1.0)
    assert "Left out by the metric" in said[0] and "mito in 1 of 1 crops" in " ".join(
        said[0].split()
    )


def test_classes_that_no_crop_annotates_are_told(tiny):
    write_processed(tiny, "mito", truth(tiny, "mito", "crop2"), crop="crop2")
    said = []
    result = scored(tiny, "crop2", say=said.append)
    assert list(result["classes"]) == ["mito"] and result["not_annotated"] == ["er", "nuc"]
    assert "Not annotated in these crops: er, nuc." in said[0]


# Many crops


def random_evaluations(rng, crops=6) -> list[Evaluation]:
    found = []
    for crop in range(crops):
        for name in ("mito", "nuc", "er", "pm"):
            if rng.random() < 0.3:
                continue
            tp, fp, fn = rng.integers(0, 9, 3).tolist()
            voxels = VoxelCounts(tp, fp, fn)
            if name in ("er", "pm"):
                found.append(Evaluation(f"crop{crop}", name, challenge.Counts(tp, fp, fn), voxels))
                continue
            number = tp + fp + fn
            counts = challenge.InstanceCounts(
                tp,
                fp,
                fn,
                hausdorff_norm_sum=float(rng.uniform(0, number)),
                n_hausdorff=number,
            )
            objects = ObjectCounts(tp, fp, fn, 0.7 * tp)
            found.append(
                Evaluation(
                    f"crop{crop}", name, counts, voxels, objects, voi=(0.1, 0.2), rand_error=0.3
                )
            )
    return found


def test_one_crop_has_no_interval(tiny):
    write_processed(tiny, "er", truth(tiny, "er"))
    result = scored(tiny, classes=("er",))
    assert (
        result["interval_95"]["overall_semantic_score"] is None
        and result["classes"]["er"]["interval_95"] is None
    )


def test_overall_scores_are_those_of_the_challenge():
    found = random_evaluations(np.random.default_rng(4))
    scores = summary(found)
    official = challenge.combine((one.name, one.counts) for one in found)
    for key in result.OVERALL:
        assert scores.overall(key) == getattr(official, key)
    assert challenge.VERSION in scores.metric


def test_the_figures_of_classes_can_be_made_again_from_what_is_written_of_crops():
    scores = summary(random_evaluations(np.random.default_rng(2)))
    written = result.from_json(json.loads(json.dumps(scores.as_json())))
    again = []
    for crop, classes in written.crops.items():
        for name, one in classes.items():
            figures = one.figures
            is_instance = one.kind == "instance"
            again.append(
                Evaluation(
                    crop,
                    name,
                    one.counts,
                    one.voxels,
                    one.objects,
                    voi=(figures.voi_split, figures.voi_merge) if is_instance else None,
                    rand_error=figures.rand_error,
                )
            )
    assert summary(again).classes == scores.classes


@pytest.mark.slow
def test_several_processes_give_the_same(tiny):
    for crop in ("crop1", "crop3"):
        for name in ("mito", "er"):
            write_processed(tiny, name, np.roll(truth(tiny, name, crop), 1, 0), crop=crop)
    alone, together = (
        scored(tiny, "crop1,crop3", classes=("mito", "er"), workers=workers) for workers in (1, 2)
    )
    for scores in (alone, together):
        del scores["provenance"]
    assert alone == together


def test_jobs_of_a_submission_can_be_done_by_another_process(tmp_path, monkeypatch):
    zip_path, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    seen = []

    def parallel(function, items, workers):
        seen.append((workers, pickle.loads(pickle.dumps((function, items)))))
        return [pickle.loads(pickle.dumps(function(item))) for item in items]

    monkeypatch.setattr(evaluate, "parallel", parallel)
    evaluate.evaluate_submission(
        zip_path, store, result_path=tmp_path / "result.json", workers=3, say=lambda line: None
    )
    ((processes, (_, (job,))),) = seen
    assert (processes, job.crop) == (3, "crop1")


def test_a_process_that_is_killed_is_a_sentence(tiny, monkeypatch):
    for name in ("mito", "er"):
        write_processed(tiny, name, truth(tiny, name))

    class Killed:
        def __init__(self, *_, **__):
            raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Killed)
    with pytest.raises(
        OSError,
        match="one of 2 processes was killed, most likely for want of memory; write fewer --workers",
    ):
        scored(tiny, classes=("mito", "er"), workers=2)


# What is written


def test_the_result_is_on_record(tiny):
    tuned(tiny, er=0.35)
    write_prediction(
        tiny,
        "er",
        truth(tiny, "er") * np.uint8(255),
        sha256="c" * 64,
        epoch=7,
        metric="iou 0.5",
        checkpoint="best.pt",
    )
    run(tiny, classes=("er",))
    result = scored(tiny, classes=("er",), overrides=("batch_size=3",))
    written = json.loads(
        (tiny.config().path("results_path") / evaluate.result_name("validate", ("er",))).read_text()
    )
    assert written == json.loads(json.dumps(result, default=float))
    about = written["provenance"]
    assert about["checkpoints"] == [
        {
            "checkpoint": "best.pt",
            "sha256": "c" * 64,
            "epoch": 7,
            "metric": "iou 0.5",
            "content": "probability",
            "dtype": None,
            "orientations": None,
        }
    ]
    assert (about["thresholds"], about["run_name"], len(about["date"])) == (
        {"er": 0.35},
        "seed42",
        25,
    )
    assert written["asked"] == {
        "crops": "validate",
        "classes": ["er"],
        "overrides": ["batch_size=3"],
    }
    one = written["crops"]["tiny/crop3"]["er"]
    assert (one["voxel_size"], one["shape"], one["resampled"], one["status"]) == (
        [8, 8, 8],
        [24, 24, 24],
        False,
        "scored",
    )


def test_sets_of_crops_and_classes_have_files_of_their_own(tiny):
    asked = [
        ("validate", ()),
        ("train", ()),
        ("*", ()),
        ("crop1,crop3", ()),
        ("tiny/crop1", ()),
        ("tiny-crop1", ()),
        ("validate", ("er",)),
        ("crop?", ()),
        ("crop-", ()),
        ("x" * 300, ()),
        ("x" * 301, ()),
    ]
    names = [evaluate.result_name(*one) for one in asked]
    assert names[:4] == [
        "scores.json",
        "scores_train.json",
        "scores_all.json",
        "scores_crop1,crop3.json",
    ]
    assert (
        len(set(names)) == len(asked)
        and max(map(len, names)) < 110
        and not any("/" in name for name in names)
    )
    for crops in ("validate", "crop1"):
        write_processed(
            tiny, "er", truth(tiny, "er"), crop="crop3" if crops == "validate" else crops
        )
        scored(tiny, crops, classes=("er",))
    assert len(list(tiny.config().path("results_path").iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_a_sentence(tiny):
    write_processed(tiny, "er", truth(tiny, "er"))
    (tiny.folder / "results").write_text("a file")
    with pytest.raises(
        OSError,
        match=r"scores_validate_er.json: could not be written",
    ):
        scored(tiny, classes=("er",))


def test_classes_outside_the_table_that_become_objects_are_scored_by_objects(experiment):
    tiny = experiment(classes=("mito", "er", "synapse"), extra_classes=("synapse",))
    tiny.write(
        "datasplit.csv", (tiny.folder / "datasplit.csv").read_text().replace("nuc", "synapse")
    )
    write_truth(tiny, "synapse", cubes())
    write_processed(tiny, "synapse", cubes())
    configured(tiny, ABOVE + 'extra_classes = ["synapse"]')
    assert scored(tiny, classes=("synapse",))["classes"]["synapse"]["kind"] == "semantic"
    configured(tiny, ABOVE + 'extra_classes = ["synapse"]\ninstance_classes = ["mito", "synapse"]')
    found = scored(tiny, classes=("synapse",))["classes"]["synapse"]
    assert (found["kind"], found["tp"], found["pq"]) == ("instance", 4, 1)


# What is refused


def test_everything_that_is_missing_or_too_small_is_said_at_once(tiny):
    short = write_processed(tiny, "er", truth(tiny, "er")[:, :, :12])
    half = write_processed(tiny, "nuc", truth(tiny, "nuc"))
    (half / ".zattrs").write_text(json.dumps({ngff.UNFINISHED: True}))
    with pytest.raises(ValueError) as error:
        scored(tiny)
    missing, small, unfinished = str(error.value).split("\n")
    assert missing.endswith("crop3/mito: no processed volume; run predict, then process")
    assert small.startswith(f"{short}: covers z, y, x") and small.endswith(
        "of tiny/crop3; predict and process the whole crop"
    )
    assert unfinished.startswith(f"{half}: half-written; run the command that writes it again")
    assert not (tiny.folder / "results").exists()


STALE = {
    "process_config.py": (
        lambda tiny: configured(tiny, ABOVE + "batch_size = 1"),
        "made with another threshold or process_config.py",
    ),
    "threshold": (
        lambda tiny: tuned(tiny, er=0.6),
        "made with another threshold or process_config.py",
    ),
    "prediction": (
        lambda tiny: write_prediction(tiny, "er", truth(tiny, "er") * 255, key="b"),
        "made of another prediction than there is now",
    ),
}


@pytest.mark.parametrize("what", STALE)
def test_what_process_would_make_anew_is_not_scored(tiny, what):
    write_prediction(tiny, "er", truth(tiny, "er") * 255)
    run(tiny, classes=("er",))
    assert scored(tiny, classes=("er",))["classes"]["er"]["score"] == 1
    change, words = STALE[what]
    change(tiny)
    with pytest.raises(ValueError, match=f"crop3/er: {words}.*; run process again"):
        scored(tiny, classes=("er",))
    run(tiny, classes=("er",))
    assert scored(tiny, classes=("er",))["classes"]["er"]["score"] == 1


def test_a_prediction_that_is_being_made_anew_is_not_scored(tiny):
    path = write_prediction(tiny, "er", truth(tiny, "er") * 255)
    run(tiny, classes=("er",))
    attributes = process.attributes(path)
    (path / ".zattrs").write_text(
        json.dumps({"prediction": attributes["prediction"], ngff.UNFINISHED: True})
    )
    with pytest.raises(ValueError, match="predictions.*er: half-written"):
        scored(tiny, classes=("er",))


def test_predictions_that_were_deleted_are_not_needed(tiny):
    path = write_prediction(tiny, "er", truth(tiny, "er") * 255)
    run(tiny, classes=("er",))
    shutil.rmtree(path)
    assert scored(tiny, classes=("er",))["classes"]["er"]["score"] == 1


def test_an_annotation_that_was_made_anew_is_read_anew(tiny):
    write_processed(tiny, "er", truth(tiny, "er"))
    write_truth(tiny, "er", 1 - truth(tiny, "er"))
    assert scored(tiny, classes=("er",))["classes"]["er"]["score"] == 0


def test_negative_ids_are_refused(tiny):
    write_processed(tiny, "mito", -cubes().astype(np.int32))
    with pytest.raises(ValueError, match="prediction has the id -303; object ids must be positive"):
        scored(tiny, classes=("mito",))


def test_test_crops_are_not_scored(tiny, tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n3,tiny,er,[8;8;8],[16;240;240],[24;24;24]\n"
    )
    with pytest.raises(
        ValueError,
        match="--crops test: no annotated crop has one of these classes; test crops are scored by the organisers",
    ):
        scored(tiny, "test", manifest_path=str(path))


def test_a_class_that_is_not_there_is_refused(tiny):
    with pytest.raises(ValueError, match="process_config.py: no class mitoo in its classes"):
        scored(tiny, classes=("mitoo",))


# Submissions


def submitted(tmp_path, truths: dict, given: dict, voxel=8, **attributes) -> tuple[Path, Path]:
    """A zip of {crop}/{class} and a store of truths, both with their attributes; `attributes` go over those of the zip."""
    for store, volumes, over in (
        (tmp_path / "truth.zarr", truths, {}),
        (tmp_path / "given.zarr", given, attributes),
    ):
        group = zarr.open_group(str(store), mode="w")
        for name, volume in volumes.items():
            array = group.create_dataset(
                name, data=np.asarray(volume), chunks=(16,) * 3, dimension_separator="/"
            )
            if not name.endswith("_mask"):
                array.attrs.update(
                    {"voxel_size": [voxel] * 3, "translation": [4.0, 40.0, 400.0], **over}
                )
    path = tmp_path / "given.zip"
    with ZipFile(path, "w") as file:
        for found in sorted((tmp_path / "given.zarr").rglob("*")):
            file.write(found, found.relative_to(tmp_path / "given.zarr"))
    return path, tmp_path / "truth.zarr"


def judged(tmp_path, zip_path, store, say=lambda line: None) -> dict:
    scores = evaluate.evaluate_submission(
        zip_path, store, result_path=tmp_path / "result.json", say=say
    )
    return scores.as_json()


def test_a_submission_that_is_the_truth_has_perfect_figures(tmp_path):
    volumes = {
        "crop1/mito": cubes(),
        "crop1/er": (cubes() > 0).astype(np.uint8),
        "crop22/mito": cubes()[::-1],
    }
    result = judged(tmp_path, *submitted(tmp_path, volumes, volumes))
    assert {name: result["classes"]["mito"][name] for name in PERFECT} == pytest.approx(PERFECT)
    assert result["overall_score"] == 1 and result["num_evals_done"] == result["total_evals"] == 3
    assert json.loads((tmp_path / "result.json").read_text())["overall_score"] == 1


def test_what_pack_makes_is_scored(tmp_path):
    ngff.write_multiscale(tmp_path / "mito", cubes(), (8, 8, 8), (4, 40, 400))
    zip_path = packing.pack(
        [Entry("crop1", "tiny", "mito", (8.0,) * 3, (4.0, 40.0, 400.0), (24, 24, 24))],
        lambda entry: tmp_path / "mito",
        tmp_path / "s.zip",
        lambda line: None,
    )
    _, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    assert judged(tmp_path, zip_path, store)["classes"]["mito"]["score"] == 1


def test_what_the_submission_lacks_is_missing_as_the_challenge_has_it(tmp_path):
    truths = {
        "crop1/mito": cubes(),
        "crop1/er": (cubes() > 0).astype(np.uint8),
        "crop1/nuc": cubes(),
    }
    said = []
    result = judged(tmp_path, *submitted(tmp_path, truths, {"crop1/nuc": cubes()}), say=said.append)
    assert (result["total_evals"], result["num_evals_done"]) == (3, 1)
    mito, er = (result["crops"]["crop1"][name] for name in ("mito", "er"))
    assert mito["status"] == er["status"] == "missing"
    assert (mito["fn"], mito["hausdorff"], mito["pq"]) == (4, 0, 0)
    assert er["counts"]["fn"] == 24**3 and er["voxels"] == {"tp": 0, "fp": 0, "fn": 4 * 6**3}
    assert "Missing in the submission: er in 1 of 1 crops, mito in 1 of 1 crops." in " ".join(
        said[0].split()
    )


def test_voxels_outside_of_the_mask_do_not_count(tmp_path):
    inside = np.zeros((24, 24, 24), np.uint8)
    inside[:12] = 1
    er, wrong = (cubes() > 0).astype(np.uint8), (cubes() > 0).astype(np.uint8)
    wrong[12:] = 1
    result = judged(
        tmp_path,
        *submitted(tmp_path, {"crop1/er": er, "crop1/er_mask": inside}, {"crop1/er": wrong}),
    )
    assert result["classes"]["er"]["score"] == 1 and list(result["classes"]) == ["er"]


def test_other_voxels_than_those_of_the_truth_are_resampled_and_told(tmp_path):
    zip_path, store = submitted(
        tmp_path,
        {"crop1/mito": fine(cubes())},
        {"crop1/mito": cubes()},
        4,
        voxel_size=[8] * 3,
        translation=[6.0, 42.0, 402.0],
    )
    said = []
    assert judged(tmp_path, zip_path, store, said.append)["classes"]["mito"]["score"] == 1
    assert (
        "note: 1 of 1 have voxels of another size than the truth and were resampled, crop1/mito for one"
        in said
    )


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (
            {"voxel_size": [4, 4, 4]},
            "covers z, y, x .* nm of .* of the truth; pack the crop with its own voxel_size",
        ),
        ({"translation": [400, 40, 400]}, "covers z, y, x"),
        ({"voxel_size": [8, 8]}, r"no place in space \(voxel_size \[8, 8\]"),
        ({"voxel_size": [8, 8, 0]}, r"no place in space \(voxel_size \[8, 8, 0\]"),
        ({"voxel_size": [8, 8, -8]}, "no place in space"),
        ({"voxel_size": "8 nm"}, "no place in space"),
        ({"translation": None}, "no place in space"),
        ({"translation": [0, 0, float("inf")]}, "no place in space"),
    ],
)
def test_a_wrong_place_is_refused(tmp_path, attributes, words):
    with pytest.raises(ValueError, match=f"given.zip/crop1/mito: {words}"):
        judged(
            tmp_path,
            *submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()}, **attributes),
        )


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (-cubes().astype(np.int32), "the id -303; object ids must be positive"),
        (
            np.full((24, 24, 24), 2.0**25, np.float32),
            "id 33554432 in float32, which skips numbers beyond",
        ),
        (np.full((24, 24, 24), 0.4), "0.4 is no id of an object"),
        (cubes()[None], "not an array of three axes"),
    ],
)
def test_ids_that_are_none_are_refused(tmp_path, volume, words):
    with pytest.raises(ValueError, match=f"given.zip/crop1/mito: .*{words}"):
        judged(tmp_path, *submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": volume}))


def test_a_group_in_place_of_an_array_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="given.zip/crop1/mito: not an array of three axes; write crop1/mito as one",
    ):
        judged(tmp_path, *submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito/s0": cubes()}))


def test_a_zip_that_was_cut_short_is_refused(tmp_path):
    zip_path, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    zip_path.write_bytes(zip_path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="given.zip: not a whole zip"):
        judged(tmp_path, zip_path, store)


def test_a_zip_that_points_outside_of_itself_is_refused(tmp_path):
    zip_path, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    with ZipFile(zip_path, "a") as file:
        file.writestr("../crop1/mito/.zarray", "{}")
    with pytest.raises(ValueError, match="points outside of the zip"):
        judged(tmp_path, zip_path, store)


def test_a_damaged_chunk_is_refused(tmp_path):
    zip_path, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    with ZipFile(zip_path) as file:
        info = next(info for info in file.infolist() if info.filename == "crop1/mito/0/0/0")
    content = bytearray(zip_path.read_bytes())
    at = info.header_offset + 30 + len(info.filename)
    content[at + info.file_size // 2] ^= 0xFF
    zip_path.write_bytes(content)
    with pytest.raises(ValueError, match="given.*crop1/mito.*(damaged|decoded)"):
        judged(tmp_path, zip_path, store)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("x")])
def test_truths_that_are_not_there_are_refused(tmp_path, make):
    zip_path, _ = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    make(tmp_path / "other.zarr")
    with pytest.raises(
        FileNotFoundError, match="other.zarr: no such store of truths; write the folder that holds"
    ):
        judged(tmp_path, zip_path, tmp_path / "other.zarr")


def test_truths_without_crops_are_refused(tmp_path):
    zip_path, _ = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder: not a zarr v2 group"):
        judged(tmp_path, zip_path, tmp_path / "folder")
    zarr.open_group(str(tmp_path / "empty.zarr"), mode="w")
    with pytest.raises(ValueError, match="empty.zarr: no arrays {crop}/{class} in it"):
        judged(tmp_path, zip_path, tmp_path / "empty.zarr")


def test_a_submission_that_is_not_there_is_refused(tmp_path):
    _, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    with pytest.raises(FileNotFoundError, match="nothing.zip: no such submission"):
        judged(tmp_path, tmp_path / "nothing.zip", store)


# One comparison


def test_ids_in_wide_integers_score_as_in_narrow_ones():
    rng = np.random.default_rng(0)
    wanted = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(20, 20, 20)), 1.5) > 0.1)[
        0
    ].astype(np.uint8)
    found = np.roll(wanted, 1, 2)
    place = ngff.Level(Path("mito"), wanted, np.full(3, 8.0), np.zeros(3))
    truth_of_mito = Truth("crop", "mito", place, is_instance=True)
    narrow = compare(truth_of_mito, wanted, found)
    wide = compare(truth_of_mito, wanted.astype(np.uint64) << 40, found.astype(np.int64))
    assert narrow == wide and narrow.counts.tp > 0


def test_the_terminal_shows_the_table_of_the_result(tiny):
    write_processed(tiny, "er", truth(tiny, "er"))
    said = []
    scores = evaluate.evaluate(tiny.folder, classes=("er",), data=tiny.data, say=said.append)
    assert said[0] == tables.terminal(scores) and said[1].endswith("scores_validate_er.json")
