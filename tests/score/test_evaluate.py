"""Scores of processed crops: perfect ones, ones drawn by hand, brute force, and what is refused."""

from __future__ import annotations

import json
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import adapted_rand_error, variation_of_information

from common.data.volumes import ngff
from common.errors import FileError, UserError
from common.infer import process
from common.score import challenge, evaluate, tables, workers
from tests.infer.test_process import ABOVE, configured, run, tuned, write_prediction
from tests.score.volumes import PERFECT, cubes, fine
from tests.volumes import begin_anew, move


@pytest.fixture
def tiny(experiment):
    made = experiment()
    configured(made, ABOVE)
    return made


def scored(tiny, crops="validate", **settings) -> dict:
    """The content of the file."""
    say = settings.pop("say", lambda line: None)
    scores = evaluate.evaluate(tiny.folder, crops, data=tiny.data, say=say, **settings)
    return json.loads(json.dumps(scores.as_json()))


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
    # matched at a voxel's distance; two without a match at half the crop's side, 96 nm; the speck
    # is the first predicted object, and so taken for a part of what was found of truth object 1
    near, far = (1.01 ** -(nm / np.sqrt(3 * 64)) for nm in (8, 96))
    assert one["hausdorff"] == pytest.approx(far)
    assert one["score"] == pytest.approx(np.sqrt(0.5 * far))
    written = scored(tiny, classes=("mito",), metric_version="definition-2026-06")
    one = written["classes"]["mito"]
    assert one["hausdorff"] == pytest.approx((near + 2 * far) / 3)
    assert one["score"] == pytest.approx(np.sqrt(0.5 * (near + 2 * far) / 3))


def test_each_version_of_the_metric_is_stamped_and_has_its_own_file(tiny):
    for name in ("mito", "er", "nuc"):
        write_processed(tiny, name, truth(tiny, name))
    said = []
    usual = scored(tiny, say=said.append)
    assert usual["metric"] == "CellMap Segmentation Challenge, csc-2026-06"
    assert "csc-2026-06: the number that the organisers' code" in " ".join(said[0].split())
    folder = tiny.config().path("results_path")
    written = scored(tiny, metric_version="definition-2026-06")
    assert written["metric"].endswith("definition-2026-06")
    content = json.loads((folder / "scores.json").read_text())
    del content["checksum"]
    assert content == usual
    beside = json.loads((folder / "scores_definition-2026-06.json").read_text())
    assert beside["metric"] == written["metric"]


def test_a_version_that_is_not_known_is_refused(tiny):
    with pytest.raises(UserError, match="'mine'; write one of csc-2026-06, definition-2026-06"):
        scored(tiny, metric_version="mine")


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


def test_a_class_of_which_nothing_is_known_is_not_scored(tiny, capsys):
    unknown = np.full((24, 24, 24), -1, np.int8)
    write_truth(tiny, "er", unknown)
    write_truth(tiny, "mito", cubes())
    for name in ("mito", "er"):
        write_processed(tiny, name, cubes() if name == "mito" else np.zeros((24, 24, 24), np.uint8))
    result = scored(tiny, classes=("mito", "er"))
    assert result["not_annotated"] == ["er"]
    assert list(result["classes"]) == ["mito"]
    assert "unknown throughout: tiny/crop3/er" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing is known of tiny/crop3/er"):
        scored(tiny, classes=("er",))


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


def test_one_crop_has_no_interval(tiny):
    write_processed(tiny, "er", truth(tiny, "er"))
    result = scored(tiny, classes=("er",))
    assert (
        result["interval_95"]["overall_semantic_score"] is None
        and result["classes"]["er"]["interval_95"] is None
    )


@pytest.mark.slow
def test_several_processes_give_the_same(tiny, processes, monkeypatch):
    # which have imported what takes seconds
    monkeypatch.setattr(workers, "get_context", lambda _: processes)
    for crop in ("crop1", "crop3"):
        for name in ("mito", "er"):
            write_processed(tiny, name, np.roll(truth(tiny, name, crop), 1, 0), crop=crop)
    alone, together = (
        scored(tiny, "crop1,crop3", classes=("mito", "er"), workers=workers) for workers in (1, 2)
    )
    for scores in (alone, together):
        del scores["provenance"]
    assert alone == together


def test_a_process_that_is_killed_is_a_sentence(tiny, monkeypatch):
    for name in ("mito", "er"):
        write_processed(tiny, name, truth(tiny, name))

    class Killed:
        def __init__(self, *_, **__):
            raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Killed)
    with pytest.raises(FileError, match="one of 2 processes was killed"):
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
        planes=3,
    )
    run(tiny, classes=("er",))
    result = scored(tiny, classes=("er",), overrides=("batch_size=3",))
    written = json.loads(
        (tiny.config().path("results_path") / evaluate.result_name("validate", ("er",))).read_text()
    )
    del written["checksum"]
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
            "planes": 3,
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


@pytest.mark.parametrize("by", [(4, 0, 0), (0, -2, 4), (1, 1, -1)])
def test_a_volume_beside_the_voxels_of_the_truth_is_resampled_and_told_by_how_much(tiny, by):
    path = write_processed(tiny, "er", truth(tiny, "er"))
    move(path, by)
    said = []
    result = scored(tiny, classes=("er",), say=said.append)
    one = result["crops"]["tiny/crop3"]["er"]
    assert one["resampled"] is True
    # half a voxel is as far from the next voxel on either side
    expected = np.where(np.abs(by) == 4, np.abs(one["offset"]), by)
    assert np.where(np.abs(by) == 4, 4, one["offset"]) == pytest.approx(expected)
    (note,) = [text for text in said if text.startswith("note")]
    assert "1 of 1 lie beside the voxels of the truth" in note
    assert (
        f"tiny/crop3/er by {', '.join(f'{length + 0.0:.4g}' for length in one['offset'])} nm"
        in note
    )


@pytest.mark.parametrize("by", [(0, 0, 0), (0.02, 0, -0.02)])
def test_what_metadata_round_is_no_other_place(tiny, by):
    path = write_processed(tiny, "er", truth(tiny, "er"))
    move(path, by)
    said = []
    result = scored(tiny, classes=("er",), say=said.append)
    one = result["crops"]["tiny/crop3"]["er"]
    assert (one["resampled"], one["offset"], one["score"]) == (False, [0, 0, 0], 1)
    assert not [text for text in said if text.startswith("note")]


def test_a_class_that_is_found_everywhere_and_annotated_in_a_part_is_told(tiny):
    everywhere = np.ones((24, 24, 24), np.uint8)
    write_processed(tiny, "er", everywhere)
    said = []
    scored(tiny, classes=("er",), say=said.append)
    (note,) = [text for text in said if text.startswith("note")]
    assert "found in nearly all voxels, and annotated in a part of them: er (tiny/crop3);" in note
    write_truth(tiny, "er", everywhere)
    said = []
    scored(tiny, classes=("er",), say=said.append)
    assert not [text for text in said if text.startswith("note")]


def test_a_class_that_is_annotated_nowhere_and_has_a_score_is_told(tiny):
    nothing = np.zeros((24, 24, 24), np.uint8)
    write_processed(tiny, "er", nothing)
    write_truth(tiny, "er", nothing)
    said = []
    scored(tiny, classes=("er",), say=said.append)
    (note,) = [text for text in said if text.startswith("note")]
    assert note.startswith("note: no voxel of er is annotated in these crops; the score says only")


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


def test_a_folder_that_cannot_be_written_is_a_sentence_before_the_work(tiny):
    (tiny.folder / "results").write_text("a file")  # and nothing is processed
    with pytest.raises(FileError, match=r"scores_validate_er\.json: could not be written"):
        scored(tiny, classes=("er",))


def test_scores_that_find_no_room_on_the_disk_are_shown(tiny, monkeypatch):
    def full(scores, path):
        raise FileError(f"{path}: could not be written (No space left on device)")

    write_processed(tiny, "er", truth(tiny, "er"))
    monkeypatch.setattr("common.score.result.write", full)
    said: list[str] = []
    with pytest.raises(FileError, match="No space left"):
        evaluate.evaluate(tiny.folder, data=tiny.data, classes=("er",), say=said.append)
    assert "overall score" in "\n".join(said)


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


def test_classes_that_the_network_of_a_run_never_gives_are_not_to_be_predicted(tiny):
    """As where `train --each-class` trained it: to predict again would not bring them."""
    write_processed(tiny, "mito", truth(tiny, "mito"))
    asked = {"overrides": ["classes=mito"]}
    with pytest.raises(UserError, match=r"this run has no class er, nuc.*write --classes mito$"):
        scored(tiny, **asked)
    assert list(scored(tiny, classes=("mito",), **asked)["classes"]) == ["mito"]


LATER = "2026-01-02T00:00:00+00:00"
STALE = {
    "process_config.py": (
        lambda tiny: configured(tiny, ABOVE + "batch_size = 1"),
        "made with another threshold",
    ),
    "threshold": (
        lambda tiny: tuned(tiny, er=0.6),
        "made with another threshold",
    ),
    "prediction": (
        lambda tiny: write_prediction(tiny, "er", truth(tiny, "er") * 255, key="b"),
        "made of another prediction",
    ),
    "prediction that was made again": (
        lambda tiny: write_prediction(tiny, "er", truth(tiny, "er") * 255, made=LATER),
        "made of another prediction",
    ),
}


@pytest.mark.parametrize("what", STALE)
def test_what_process_would_make_anew_is_not_scored(tiny, what):
    made = "2026-01-01T00:00:00+00:00"
    write_prediction(tiny, "er", truth(tiny, "er") * 255, made=made)
    run(tiny, classes=("er",))
    assert scored(tiny, classes=("er",))["classes"]["er"]["score"] == 1
    change, words = STALE[what]
    change(tiny)
    with pytest.raises(ValueError, match=f"crop3/er: {words}"):
        scored(tiny, classes=("er",))
    run(tiny, classes=("er",))
    assert scored(tiny, classes=("er",))["classes"]["er"]["score"] == 1


def test_a_prediction_that_is_being_made_anew_is_not_scored(tiny):
    path = write_prediction(tiny, "er", truth(tiny, "er") * 255)
    run(tiny, classes=("er",))
    begin_anew(path)
    with pytest.raises(ValueError, match=r"predictions.*er: half-written"):
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
    path = write_processed(tiny, "mito", -cubes().astype(np.int32))
    with pytest.raises(UserError, match=f"{path}: prediction has the id -303"):
        scored(tiny, classes=("mito",))


def test_test_crops_are_not_scored(tiny, tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "3,tiny,er,[8;8;8],[16;240;240],[24;24;24]\n"
    )
    with pytest.raises(UserError, match="--crops test: no annotated crop"):
        scored(tiny, "test", manifest_path=str(path))


def test_a_class_that_is_not_there_is_refused(tiny):
    with pytest.raises(ValueError, match="no class mitoo"):
        scored(tiny, classes=("mitoo",))


def test_the_terminal_shows_the_table_of_the_result(tiny):
    write_processed(tiny, "er", truth(tiny, "er"))
    said = []
    scores = evaluate.evaluate(tiny.folder, classes=("er",), data=tiny.data, say=said.append)
    assert said[0] == tables.terminal(scores) and said[1].endswith("scores_validate_er.json")
