"""Metadata and chunks of submissions changed in every way: a sentence each, and no trace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from common.data.splits.manifest import Entry
from common.errors import UserError
from common.score import evaluate, submission

ENTRY = Entry("crop1", "cell", "mito", (8.0,) * 3, (4.0,) * 3, (12, 12, 12))

VALUES = (
    *(None, 0, -1, 1.5, "x", "", [], {}, [1], [1, 2, 3, 4], [0, 0, 0], [-1, 2, 3], True),
    *("<f4", "|b1", "|S3", "<M8[ns]", "|V4", ">u2", 10**400, [10**20] * 3, [10**400] * 3),
    *("NaN", [None] * 3, ["a"] * 3, {"id": "blosc"}, {"id": "blosc", "cname": "x"}),
    *({"id": "delta"}, [{"id": "delta"}], {"id": "zlib", "level": "x"}, [["a", "<u1"]], "F"),
    *([{"id": "shuffle", "elementsize": 0}], [{"id": "packbits"}], [{"id": "base64"}]),
)
ARRAY_KEYS = ("shape", "chunks", "dtype", "compressor", "fill_value", "order", "filters")
TEXTS = ("", "[]", "null", "5", '"x"', "{}", "\xff", '{"zarr_format": 3}', "[" * 5000)


def write(path: Path) -> Path:
    group = zarr.open_group(str(path), mode="w")
    volume = np.zeros(ENTRY.shape, np.uint8)
    volume[2:5, 2:5, 2:5] = 1
    array = group.create_dataset(
        "crop1/mito", data=volume, chunks=(8, 8, 8), dimension_separator="/"
    )
    place = {"voxel_size": ENTRY.voxel_size, "translation": ENTRY.translation}
    array.attrs.update(place, shape=ENTRY.shape)
    return path


@pytest.fixture
def changed(tmp_path):
    """A function: a submission of which one file has another text."""
    whole = write(tmp_path / "whole.zarr")
    write(tmp_path / "truth.zarr")

    def make(name: str, text: str) -> Path:
        path = tmp_path / "changed.zarr"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        (path / name).write_text(text)
        return path

    return make


def passes_or_says_why(path: Path) -> None:
    for problem in submission.check(path, [ENTRY]):
        assert problem.startswith(str(path)), problem
    for sides in ((path, path.parent / "truth.zarr"), (path.parent / "whole.zarr", path)):
        try:
            evaluate.evaluate_submission(
                *sides, result_path=path.parent / "result.json", say=lambda text: None
            )
        except (UserError, FileNotFoundError) as error:
            assert ".zarr" in str(error)


@pytest.mark.parametrize("key", [*ARRAY_KEYS, "zarr_format", "dimension_separator"])
@pytest.mark.filterwarnings("ignore")
def test_any_value_in_zarray_is_read_or_refused_in_a_sentence(changed, key):
    name = "crop1/mito/.zarray"
    for value in VALUES:
        path = changed(name, "{}")
        content = json.loads((path.parent / "whole.zarr" / name).read_text())
        passes_or_says_why(changed(name, json.dumps({**content, key: value})))


@pytest.mark.parametrize("key", ["voxel_size", "translation"])
def test_any_value_in_zattrs_is_read_or_refused_in_a_sentence(changed, key):
    name = "crop1/mito/.zattrs"
    for value in VALUES:
        place = {"voxel_size": [8, 8, 8], "translation": [4, 4, 4], key: value}
        passes_or_says_why(changed(name, json.dumps(place)))


@pytest.mark.parametrize(
    "name", [".zgroup", "crop1/.zgroup", "crop1/mito/.zarray", "crop1/mito/.zattrs"]
)
def test_any_text_for_metadata_is_read_or_refused_in_a_sentence(changed, name):
    for text in TEXTS:
        passes_or_says_why(changed(name, text))


def test_a_chunk_with_any_byte_changed_or_cut_is_decoded_or_refused(tmp_path):
    path = write(tmp_path / "changed.zarr")
    write(tmp_path / "whole.zarr")
    write(tmp_path / "truth.zarr")
    chunk = path / "crop1/mito/0/0/0"
    content = chunk.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= int(random.integers(1, 256))
        chunk.write_bytes(damaged[: random.integers(len(content) + 1)])
        passes_or_says_why(path)


def test_a_blosc_chunk_that_is_cut_short_is_refused_before_it_is_decoded(tmp_path):
    path = write(tmp_path / "short.zarr")
    truth = write(tmp_path / "truth.zarr")
    chunk = path / "crop1/mito/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"mito: cannot be decoded \(.*0/0/0 has \d+ of \d+ bytes"):
        evaluate.evaluate_submission(path, truth, result_path=tmp_path / "r.json")


def test_a_missing_chunk_without_a_fill_value_is_not_made_up(tmp_path):
    path = write(tmp_path / "holes.zarr")
    truth = write(tmp_path / "truth.zarr")
    file = path / "crop1/mito/.zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fill_value": None}))
    scores = evaluate.evaluate_submission(
        path, truth, result_path=tmp_path / "r.json", say=lambda text: None
    )
    assert scores.classes["mito"].figures.score == 1
    (path / "crop1/mito/1/1/1").unlink()
    with pytest.raises(UserError, match="has 7 of 8 chunks and no fill value"):
        evaluate.evaluate_submission(path, truth, result_path=tmp_path / "r.json")
