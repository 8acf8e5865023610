"""Scores of submissions: perfect ones, what is missing or on other voxels, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import zarr

from common.data.splits.manifest import Entry
from common.data.volumes import ngff
from common.errors import UserError
from common.score import batch, evaluate, packing
from common.score.result import read as read_result
from tests.score.volumes import PERFECT, cubes, fine


def write_store(path: Path, volumes: dict, attributes: dict) -> None:
    """Arrays {crop}/{class} with their attributes; masks have none."""
    group = zarr.open_group(str(path), mode="w")
    for name, volume in volumes.items():
        array = group.create_dataset(
            name, data=np.asarray(volume), chunks=(16,) * 3, dimension_separator="/"
        )
        if not name.endswith("_mask"):
            array.attrs.update(attributes)


def submitted(tmp_path, truths: dict, given: dict, voxel=8, **attributes) -> tuple[Path, Path]:
    """A zip and a store of truths, in one place unless `attributes` move the zip's arrays."""
    place = {"voxel_size": [voxel] * 3, "translation": [4.0, 40.0, 400.0]}
    truth_store = tmp_path / "truth.zarr"
    given_store = tmp_path / "given.zarr"
    write_store(truth_store, truths, place)
    write_store(given_store, given, {**place, **attributes})
    path = tmp_path / "given.zip"
    with ZipFile(path, "w") as file:
        for inside in sorted(given_store.rglob("*")):
            file.write(inside, inside.relative_to(given_store))
    return path, truth_store


def judged(tmp_path, zip_path, store, say=lambda line: None) -> dict:
    scores = evaluate.evaluate_submission(
        zip_path, store, result_path=tmp_path / "result.json", say=say
    )
    return json.loads(json.dumps(scores.as_json()))


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
    # the organisers' code calls missing classes done
    assert (result["total_evals"], result["num_evals_done"]) == (3, 3)
    mito, er = (result["crops"]["crop1"][name] for name in ("mito", "er"))
    assert mito["status"] == er["status"] == "missing"
    assert (mito["fn"], mito["hausdorff"], mito["pq"]) == (4, 0, 0)
    assert er["counts"]["fn"] == 24**3 and er["voxels"] == {"tp": 0, "fp": 0, "fn": 4 * 6**3}
    told = " ".join(said[0].split())
    assert "Missing in the submission: er in 1 of 1 crops, mito in 1 of 1 crops." in told


def damaged(store: Path, how: str) -> None:
    """Make an array that cannot be scored."""
    if how == "no place":
        (store / ".zattrs").unlink()
    elif how == "no ids":
        zarr.save_array(str(store), np.full((24,) * 3, 0.5))
        (store / ".zattrs").write_text(
            json.dumps({"voxel_size": [8] * 3, "translation": [4.0, 40.0, 400.0]})
        )
    elif how == "damaged chunk":
        chunk = store / "0" / "0" / "0"
        chunk.write_bytes(chunk.read_bytes()[:20])
    else:
        (store / ".zarray").write_text("{")


@pytest.mark.parametrize("how", ["no place", "no ids", "damaged chunk", "damaged metadata"])
def test_what_cannot_be_scored_is_missing_and_the_rest_is_scored(tmp_path, how):
    volumes = {"crop1/mito": cubes(), "crop1/nuc": cubes(), "crop2/mito": cubes()}
    _, truth = submitted(tmp_path, volumes, volumes)
    given = tmp_path / "given.zarr"
    for name in ("crop1/mito", "crop2/mito"):
        damaged(given / name, how)
    said = []
    result = judged(tmp_path, given, truth, say=said.append)
    assert result["classes"]["nuc"]["score"] == 1
    assert result["classes"]["mito"]["score"] == 0
    crops = [result["crops"][name]["mito"] for name in ("crop1", "crop2")]
    assert [crop["status"] for crop in crops] == ["missing", "missing"]
    assert all(f"given.zarr/crop{n}/mito" in crops[n - 1]["refused"] for n in (1, 2))
    assert "refused" not in result["crops"]["crop1"]["nuc"]
    stored = read_result(tmp_path / "result.json")
    assert stored.crops["crop1"]["mito"].refused == crops[0]["refused"]
    head, first, second = said[-1].strip().split("\n")
    assert head.startswith("2 of 3 volumes cannot be scored, and count as missing")
    assert "given.zarr/crop1/mito" in first and "given.zarr/crop2/mito" in second


def test_a_wrong_truth_is_no_fault_of_the_submission(tmp_path):
    volumes = {"crop1/mito": cubes(), "crop1/nuc": cubes()}
    path, truth = submitted(tmp_path, volumes, volumes)
    chunk = truth / "crop1/mito/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(UserError, match=r"truth.zarr/crop1/mito: a chunk"):
        judged(tmp_path, path, truth)


def test_a_mask_of_other_voxels_than_its_truth_is_named_with_both_shapes(tmp_path):
    volumes = {"crop1/er": cubes(), "crop1/er_mask": np.ones((24, 24, 12), np.uint8)}
    path, truth = submitted(tmp_path, volumes, {"crop1/er": cubes()})
    words = r"er_mask: shape \(24, 24, 12\), and the truth .*crop1/er, .* has \(24, 24, 24\); write"
    with pytest.raises(UserError, match=words):
        judged(tmp_path, path, truth)
    whole = {"crop1/er": cubes(), "crop1/er_mask": np.ones((24, 24, 24), np.uint8)}
    path, truth = submitted(tmp_path, whole, {"crop1/er": cubes()})
    zarr.open(str(truth), mode="r+")["crop1/er_mask"].attrs["translation"] = [4, 40, 408]
    with pytest.raises(UserError, match=r"er_mask: translation .*408.* has \[4.0, 40.0, 400.0\]"):
        judged(tmp_path, path, truth)


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
    (note,) = [text for text in said if text.startswith("note")]
    assert "1 of 1" in note and "resampled, crop1/mito" in note


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"voxel_size": [8, 8]}, r"no place in space \(voxel_size \[8, 8\]"),
        ({"voxel_size": [8, 8, 0]}, r"no place in space \(voxel_size \[8, 8, 0\]"),
        ({"voxel_size": [8, 8, -8]}, "no place in space"),
        ({"voxel_size": "8 nm"}, "no place in space"),
        ({"translation": None}, "no place in space"),
        ({"translation": [0, 0, float("inf")]}, "no place in space"),
    ],
)
def test_a_wrong_place_is_refused(tmp_path, attributes, words):
    volumes = {"crop1/mito": cubes()}
    zip_path, store = submitted(tmp_path, volumes, volumes, **attributes)
    with pytest.raises(UserError, match=f"given.zip/crop1/mito: {words}"):
        judged(tmp_path, zip_path, store)


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"translation": [4, 40, 400 + 8 * 8]}, 3),  # the first one ends before
        ({"translation": [4004, 40, 400]}, 0),
    ],
)
def test_what_a_submission_does_not_cover_is_background_and_told(tmp_path, attributes, found):
    """One crop that is short does not take the score from the others."""
    truths = {"crop1/mito": cubes(), "crop2/mito": cubes()}
    _, store = submitted(tmp_path, truths, truths)
    given = zarr.open_group(str(tmp_path / "given.zarr"), mode="r+")
    part = given.create_dataset("crop2/mito", data=cubes()[:, :, 8:], overwrite=True)
    part.attrs.update({"voxel_size": [8] * 3, **attributes})
    said = []
    result = judged(tmp_path, tmp_path / "given.zarr", store, said.append)
    whole, short = (result["crops"][crop]["mito"] for crop in ("crop1", "crop2"))
    assert (whole["score"], whole["covered"]) == (1, True)
    assert (short["tp"], short["fn"], short["covered"]) == (found, 4 - found, False)
    (note,) = [text for text in said if text.startswith("note")]
    assert "1 of 2 do not reach over all of the truth: crop2/mito;" in note
    assert "background, as in the challenge" in note


@pytest.mark.parametrize("kind", ["bool", ">u2", "<f4"])
def test_truths_of_any_kind_are_scored(tmp_path, kind):
    objects = (cubes() > 0).astype(kind) if kind == "bool" else cubes().astype(kind)
    truths = {"crop1/mito": objects, "crop1/er": (cubes() > 0).astype(kind), "crop1/nuc": objects}
    given = {"crop1/mito": cubes(), "crop1/er": (cubes() > 0).astype(np.uint8)}
    result = judged(tmp_path, *submitted(tmp_path, truths, given))
    assert result["classes"]["er"]["score"] == 1
    number = 1 if kind == "bool" else 4
    assert (
        result["classes"]["nuc"]["fn"]
        == result["classes"]["mito"]["tp"] + (result["classes"]["mito"]["fn"])
    )
    assert result["classes"]["nuc"]["fn"] == number


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (-cubes().astype(np.int32), "the id -303"),
        (np.full((24, 24, 24), 2.0**25, np.float32), "id 33554432 in float32"),
        (np.full((24, 24, 24), 0.4), "0.4 is no id of an object"),
        (cubes()[None], "not an array of three axes"),
    ],
)
def test_ids_that_are_none_are_refused(tmp_path, volume, words):
    with pytest.raises(UserError, match=f"given.zip/crop1/mito: .*{words}"):
        judged(tmp_path, *submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": volume}))


def test_a_group_in_place_of_an_array_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"given\.zip/crop1/mito: not an array of three axes"):
        judged(tmp_path, *submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito/s0": cubes()}))


def test_a_zip_that_was_cut_short_is_refused(tmp_path):
    zip_path, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    zip_path.write_bytes(zip_path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"given\.zip: not a whole zip"):
        judged(tmp_path, zip_path, store)


def test_a_zip_that_points_outside_of_itself_is_refused(tmp_path):
    zip_path, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    with ZipFile(zip_path, "a") as file:
        file.writestr("../crop1/mito/.zarray", "{}")
    with pytest.raises(UserError, match="points outside of the zip"):
        judged(tmp_path, zip_path, store)


def test_a_damaged_chunk_is_refused(tmp_path):
    zip_path, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    with ZipFile(zip_path) as file:
        info = next(info for info in file.infolist() if info.filename == "crop1/mito/0/0/0")
    content = bytearray(zip_path.read_bytes())
    at = info.header_offset + 30 + len(info.filename)
    content[at + info.file_size // 2] ^= 0xFF
    zip_path.write_bytes(content)
    with pytest.raises(UserError, match=r"given.*crop1/mito.*(damaged|decoded)"):
        judged(tmp_path, zip_path, store)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("x")])
def test_truths_that_are_not_there_are_refused(tmp_path, make):
    zip_path, _ = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    make(tmp_path / "other.zarr")
    with pytest.raises(FileNotFoundError, match=r"other\.zarr: no such store"):
        judged(tmp_path, zip_path, tmp_path / "other.zarr")


def test_truths_without_crops_are_refused(tmp_path):
    zip_path, _ = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: not a zarr v2 group"):
        judged(tmp_path, zip_path, tmp_path / "folder")
    zarr.open_group(str(tmp_path / "empty.zarr"), mode="w")
    with pytest.raises(UserError, match=r"empty\.zarr: no arrays"):
        judged(tmp_path, zip_path, tmp_path / "empty.zarr")


def test_a_submission_that_is_not_there_is_refused(tmp_path):
    _, store = submitted(tmp_path, {"crop1/mito": cubes()}, {"crop1/mito": cubes()})
    with pytest.raises(FileNotFoundError, match=r"nothing\.zip: no such submission"):
        judged(tmp_path, tmp_path / "nothing.zip", store)


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunks": [100_000] * 3}, "no memory takes"),
        ({"shape": [100_000] * 3}, "at most 50,000,000,000"),
        ({"compressor": {"id": "pickle"}}, "codec 'pickle'"),
    ],
)
@pytest.mark.parametrize("side", ["given", "truth"])
def test_what_would_run_code_or_fill_the_memory_is_refused(tmp_path, changes, words, side):
    volumes = {"crop1/mito": cubes()}
    zip_path, store = submitted(tmp_path, volumes, volumes)
    file = tmp_path / f"{side}.zarr/crop1/mito/.zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    given = tmp_path / "given.zarr" if side == "given" else zip_path
    with pytest.raises(UserError, match=rf"{side}.*/crop1/mito: .*{words}"):
        judged(tmp_path, given, store)


def test_two_submissions_of_one_number_are_refused(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("data_path,evaluation_id\na.zip,1\nb.zip,2\nc.zip,1\n")
    with pytest.raises(UserError, match="evaluation_id '1' stands 2 times"):
        batch.read(table)
