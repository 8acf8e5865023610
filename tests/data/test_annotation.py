"""What values of labels mean: unknown where their metadata say so, below 0, or NaN."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from common.data.volumes.annotation import encoding_of, summed_up
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.ngff import Level, open_levels, write_multiscale
from common.errors import UserError
from common.score import challenge

SEMANTIC = "semantic_segmentation"
INSTANCE = "instance_segmentation"


def describe(folder: Path, kind: str | None, encoding: object, **more: object) -> None:
    """Write annotation metadata beside what a .zattrs of a group or array says."""
    path = folder / ".zattrs"
    attributes = json.loads(path.read_text()) if path.is_file() else {}
    annotation_type = {"encoding": encoding} | ({"type": kind} if kind else {})
    attributes["cellmap"] = {"annotation": {"annotation_type": annotation_type, **more}}
    path.write_text(json.dumps(attributes))


def label(root: Path, values: object, dtype: str = "uint8", name: str = "er") -> Level:
    """A label volume of one row of voxels."""
    volume = np.array(values, dtype).reshape(1, 1, -1)
    write_multiscale(root / name, volume, (8, 8, 8))
    return open_levels(root / name)[0]


def read(level: Level, name: str = "er") -> tuple[list[int], list[str]]:
    """1, 0 or -1 of each voxel, and the remarks."""
    reader = LabelReader(level, name)
    positive, unknown = reader.read((0, 0, 0), level.shape)
    labels = positive.astype(int)
    if unknown is not None:
        labels[unknown] = -1
    return labels.ravel().tolist(), reader.remarks()


CHALLENGE = {"absent": 0, "unknown": 255}


@pytest.mark.parametrize("where", ["group", "array"])
@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int64", "float32"])
def test_255_is_unknown_where_the_metadata_say_so(tmp_path, where, dtype):
    level = label(tmp_path, [0, 1, 255, 1], dtype)
    describe(level.path.parent if where == "group" else level.path, SEMANTIC, CHALLENGE)
    labels, remarks = read(open_levels(tmp_path / "er")[0])
    assert labels == [0, 1, -1, 1]
    assert remarks == ["255 (by its metadata) was taken for unknown"]


def test_metadata_of_the_array_go_before_those_of_its_group(tmp_path):
    level = label(tmp_path, [0, 1, 254, 255])
    describe(level.path.parent, SEMANTIC, {"absent": 0, "unknown": 254})
    describe(level.path, SEMANTIC, {"absent": 0, "present": 254, "unknown": 255})
    assert read(open_levels(tmp_path / "er")[0])[0] == [0, 1, 1, -1]


@pytest.mark.parametrize(
    "values, encoding, expected",
    [
        ([0, 1, 2], {"unknown": 0, "absent": 1, "present": 2}, [-1, 0, 1]),
        ([0, 1], {"absent": 1, "present": 0}, [1, 0]),
        ([0, 1, 2], {"absent": 1, "present": 2}, [-1, 0, 1]),
        ([0, 1, 3], {"absent": 0, "present": 1, "unknown": 3}, [0, 1, -1]),
    ],
)
def test_every_encoding_is_read_as_it_says(tmp_path, values, encoding, expected):
    level = label(tmp_path, values)
    describe(level.path, SEMANTIC, encoding)
    assert read(open_levels(tmp_path / "er")[0])[0] == expected


def test_names_of_metadata_that_nothing_reads_are_said(tmp_path):
    level = label(tmp_path, [0, 1, 2])
    describe(level.path, SEMANTIC, {"absent": 0, "unkown": 2, "maybe": 3}, complement_count={})
    labels, remarks = read(open_levels(tmp_path / "er")[0])
    assert labels == [0, 1, 1]
    assert remarks[:3] == [
        "nothing reads 'complement_count' in annotation of its metadata; did you mean "
        "'complement_counts'?",
        "nothing reads 'unkown' in encoding of its metadata; did you mean 'unknown'?",
        "nothing reads 'maybe' in encoding of its metadata; there are absent, present, unknown",
    ]


def test_a_type_of_annotation_that_is_none_is_said(tmp_path):
    level = label(tmp_path, [0, 1, 3], name="mito")
    describe(level.path, "instances", {"absent": 0})
    _, remarks = read(open_levels(tmp_path / "mito")[0], "mito")
    assert remarks == [
        "its metadata call it 'instances', which is no type, and it was taken for a mask; write "
        "semantic_segmentation or instance_segmentation"
    ]


@pytest.mark.parametrize("dtype", ["int8", ">i2", "float64"])
def test_negative_numbers_are_unknown(tmp_path, dtype):
    labels, remarks = read(label(tmp_path, [0, -1, 3, -7], dtype))
    assert labels == [0, -1, 1, -1]
    assert remarks == ["what is below 0 was taken for unknown"]


def test_nan_is_unknown(tmp_path):
    labels, remarks = read(label(tmp_path, [0, np.nan, 1], "float32"))
    assert labels == [0, -1, 1]
    assert remarks == ["NaN was taken for unknown"]


@pytest.mark.parametrize(
    "counts, is_id", [({"absent": 1}, True), ({"absent": 1, "unknown": 2}, False)]
)
def test_in_a_volume_of_ids_255_is_unknown_unless_the_counts_say_that_none_is(
    tmp_path, counts, is_id
):
    level = label(tmp_path, [0, 254, 255, 256], "uint16", "mito")
    describe(level.path, INSTANCE, CHALLENGE, complement_counts=counts)
    labels, remarks = read(open_levels(tmp_path / "mito")[0], "mito")
    assert labels == [0, 1, 1 if is_id else -1, 1]
    assert ("id of an object" in remarks[0]) == is_id


def test_ids_without_a_word_of_unknown_are_ids(tmp_path):
    level = label(tmp_path, [0, 1, 254, 255], name="mito")
    assert read(level, "mito") == ([0, 1, 1, 1], [])
    level = label(tmp_path, [0, 1, 255], name="mito")
    describe(level.path, INSTANCE, {"absent": 0})
    assert read(open_levels(tmp_path / "mito")[0], "mito") == ([0, 1, 1], [])


@pytest.mark.parametrize(
    "values, dtype",
    [
        *(([0, 1, 255], "uint8"), ([0, 1, 65535], "uint16"), ([1, 255], "int32")),
        *(([0, 1, 255], "f4"), ([0, 1, np.nan, 255], "f4")),
    ],
)
@pytest.mark.parametrize("name", ["er", "mito"])
def test_255_beside_0_and_1_in_a_mask_is_positive_with_a_remark(tmp_path, values, dtype, name):
    labels, remarks = read(label(tmp_path, values, dtype, name), name)
    assert labels == [-1 if np.isnan(value) else int(value > 0) for value in values]
    assert f"{values[-1]} stands beside 0 and 1" in remarks[-1]


def test_2_beside_0_and_1_is_told_where_no_objects_are_numbered(tmp_path):
    labels, remarks = read(label(tmp_path, [0, 1, 2, 1]))
    assert labels == [0, 1, 1, 1]
    assert remarks[0].startswith("2 stands beside 0 and 1, and was taken for positive")
    assert read(label(tmp_path, [0, 1, 2, 3]))[1] == []
    assert read(label(tmp_path, [0, 1, 2, 1], name="mito"), "mito")[1] == []


@pytest.mark.parametrize("value", [0.5, 1.25])
def test_fractions_are_no_labels(tmp_path, value):
    """A probability, or a mask that was resampled: above 0 would be too much of it."""
    level = label(tmp_path, [0, 1, np.nan, -0.5, value], "float32")
    reader = LabelReader(level, "er")
    said = f"er/s0: labels of float32 with the value {value} for class er; write labels as whole"
    for ask in (reader.read, reader.read_ids):
        with pytest.raises(UserError, match=said):
            ask((0, 0, 0), level.shape)
    with pytest.raises(UserError, match=said):
        reader.on(level.grid)
    with pytest.raises(UserError, match=said):
        reader.meaning(level.read((0, 0, 0), level.shape))
    assert read(label(tmp_path, [0, 1, np.nan, -0.5, 3], "float32"))[0] == [0, 1, -1, -1, 1]


@pytest.mark.parametrize("values", [[0, 1], [0, 255], [0, 1, 2, 255], [0, 7], [0, 0]])
def test_an_ordinary_mask_has_no_remark(tmp_path, values):
    assert read(label(tmp_path, values)) == ([int(value > 0) for value in values], [])


def test_a_mask_with_soft_edges_is_remarked_and_ids_of_a_byte_are_none(tmp_path):
    soft = [0, 0, *range(20, 250, 20), *([255] * 30)]
    labels, (remark,) = read(label(tmp_path, soft))
    assert labels == [int(value > 0) for value in soft]
    assert "0 and 255 with others between them" in remark
    assert read(label(tmp_path, range(256), name="mito"), "mito")[1] == []


def test_a_255_that_the_metadata_call_present_is_no_surprise(tmp_path):
    level = label(tmp_path, [0, 255, 255])
    describe(level.path, SEMANTIC, {"absent": 0, "present": 255})
    assert read(open_levels(tmp_path / "er")[0]) == ([0, 1, 1], [])


@pytest.mark.parametrize("values", [[0, 1, 2], [2, 0, 255], [0, 1, 7, 255]])
def test_a_value_that_the_metadata_of_a_mask_do_not_name_is_positive_with_a_remark(
    tmp_path, values
):
    level = label(tmp_path, values)
    describe(level.path, SEMANTIC, CHALLENGE | {"present": 1})
    labels, remarks = read(open_levels(tmp_path / "er")[0])
    assert labels == [-1 if value == 255 else int(value > 0) for value in values]
    unnamed = next(value for value in values if value not in (0, 1, 255))
    assert f"{unnamed} is none of [0, 1, 255], which its metadata name, and" in remarks[-1]
    describe(level.path, SEMANTIC, CHALLENGE)
    assert "is none of" not in str(read(open_levels(tmp_path / "er")[0]))


@pytest.mark.parametrize("wrong", ["255", [255], True, 2.5])
def test_an_encoding_that_is_no_number_is_refused(tmp_path, wrong):
    level = label(tmp_path, [0, 1])
    describe(level.path, SEMANTIC, {"absent": 0, "unknown": wrong})
    with pytest.raises(UserError, match=r"er/s0: encoding of 'unknown' .* write a whole number"):
        encoding_of(open_levels(tmp_path / "er")[0], "er")


@pytest.mark.parametrize("nothing", [None, [], "semantic", 3])
def test_metadata_of_another_shape_say_nothing(tmp_path, nothing):
    level = label(tmp_path, [0, 1])
    (level.path / ".zattrs").write_text(json.dumps({"cellmap": {"annotation": nothing}}))
    assert read(open_levels(tmp_path / "er")[0]) == ([0, 1], [])


def test_ids_are_whole_numbers_with_0_where_nothing_is_known(tmp_path):
    ids, known = LabelReader(label(tmp_path, [0, np.nan, 300, -2], "float32"), "mito").ids()
    assert ids.ravel().tolist() == [0, 0, 300, 0] and ids.dtype.kind == "u"
    assert known.ravel().tolist() == [True, False, True, False]


def test_the_largest_ids_of_64_bits_are_objects(tmp_path):
    values = [0, 7, 2**63 - 1, 2**63, 2**63 + 5, 2**64 - 1]
    level = label(tmp_path, values, "uint64", "mito")
    ids, known = LabelReader(level, "mito").ids()
    assert ids.ravel().tolist() == values and known is None
    drawn = LabelReader(level, "mito").on(level.grid)
    assert (drawn > 0).ravel().tolist() == [value > 0 for value in values]
    # counted as they are: a truth and its own copy
    assert challenge.instance(ids, ids, (8, 8, 8)).tp == len(values) - 1


@pytest.mark.parametrize("dtype", ["uint32", ">u8"])
def test_the_largest_number_of_a_wide_type_beside_ids_is_remarked(tmp_path, dtype):
    """Programs write it where there is no object: all between the objects would be one."""
    largest = int(np.iinfo(dtype).max)
    level = label(tmp_path, [0, 7, 8, largest], dtype)
    labels, (remark,) = read(level)
    assert (
        labels == [0, 1, 1, 1] and f"{largest}, the largest number of {level.array.dtype}" in remark
    )
    describe(level.group, INSTANCE, {"absent": 0, "unknown": largest})
    labels, (remark,) = read(open_levels(level.group)[0])
    assert labels == [0, 1, 1, -1] and "was taken for unknown" in remark
    describe(level.group, INSTANCE, {"absent": largest})
    assert read(open_levels(level.group)[0])[0] == [-1, 1, 1, 0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_largest_number_of_a_narrow_type_far_beyond_all_ids_is_remarked(tmp_path, dtype):
    """255 is often unknown beside ids, too; after 254 it is an id, and beside 0 alone a mask."""
    largest = int(np.iinfo(dtype).max)
    remarks = {}
    for other in (8, largest - 1, 0):
        level = label(tmp_path / str(other), [0, 5 * (other > 5), other, largest], dtype, "mito")
        describe(level.group, INSTANCE, {"absent": 0})
        remarks[other] = read(open_levels(level.group)[0], "mito")[1]
    assert f"{largest}, the largest number of {dtype}, was taken for" in remarks[8][0]
    assert f"import with --unknown {largest}" in remarks[8][0]
    assert remarks[largest - 1] == remarks[0] == []


def test_one_line_tells_of_all_crops():
    lines = summed_up([("mito", "x"), ("er", "x"), ("mito", "x"), ("er", "y")])
    assert lines == ["labels of er, mito: x", "labels of er: y"]


# Chunks that were lost


def chunked(root: Path, volume: np.ndarray, name: str = "er", *, store_empty: bool) -> Level:
    """A label volume in chunks of 4 voxels along each axis."""
    write_multiscale(root / name, volume, (8, 8, 8), chunk=4)
    if store_empty:
        array = zarr.open_array(str(root / name / "s0"), mode="r+", write_empty_chunks=True)
        array[...] = volume
    return open_levels(root / name)[0]


def corners() -> np.ndarray:
    """Something in two of eight chunks: 30 voxels."""
    volume = np.zeros((8, 8, 8), np.uint8)
    volume[0:3, 0:3, 0:3] = 1
    volume[5:8, 7, 7] = 1
    return volume


def read_whole(root: Path, how: str, name: str = "er") -> list[str]:
    """The remarks after a whole volume was read, as training or as evaluation reads it."""
    reader = LabelReader(open_levels(root / name)[0], name)
    if how == "training":
        for z in (0, 4):
            reader.read((z, 0, 0), (z + 4, 8, 8))
        reader.check_whole()
    else:
        reader.ids()
    return reader.remarks()


HOW = pytest.mark.parametrize("how", ["training", "evaluation"])
COUNTS = pytest.mark.parametrize("attribute", ["complement_counts", "class_counts"])


def count(level: Level, attribute: str, positive: int = 30) -> None:
    if attribute == "complement_counts":
        describe(level.path, SEMANTIC, CHALLENGE, complement_counts={"absent": 512 - positive})
    else:
        (level.path / ".zattrs").write_text(json.dumps({"class_counts": {"er": positive}}))


@HOW
@COUNTS
def test_a_lost_chunk_of_labels_is_not_background_where_the_metadata_count(
    tmp_path, how, attribute
):
    level = chunked(tmp_path, corners(), store_empty=False)
    count(level, attribute)
    assert read_whole(tmp_path, how) == []
    level.chunk_file((1, 1, 1)).unlink()
    with pytest.raises(UserError) as error:
        read_whole(tmp_path, how)
    assert f"{level.path}: 7 of 8 chunks are not there" in str(error.value)
    assert f"485 voxels are absent, and 482 by {attribute}" in str(error.value)


@HOW
def test_counts_in_the_metadata_of_the_group_are_compared_too(tmp_path, how):
    level = chunked(tmp_path, corners(), "mito", store_empty=True)
    describe(level.path.parent, INSTANCE, {"absent": 0}, complement_counts={"absent": 482})
    level.chunk_file((0, 0, 0)).unlink()
    with pytest.raises(UserError, match="1 of 8 chunks are not there"):
        read_whole(tmp_path, how, "mito")


@HOW
@COUNTS
@pytest.mark.parametrize("positive", [29, 31])
def test_labels_edited_since_they_were_counted_are_a_remark(tmp_path, how, attribute, positive):
    level = chunked(tmp_path, corners(), store_empty=True)
    count(level, attribute, positive)
    (remark,) = read_whole(tmp_path, how)
    assert f"482 voxels are absent, and {512 - positive} by {attribute}" in remark


@HOW
def test_counts_of_another_grid_say_nothing(tmp_path, how):
    level = chunked(tmp_path, corners(), store_empty=False)
    describe(level.path, SEMANTIC, CHALLENGE, complement_counts={"absent": 500, "unknown": 13})
    assert read_whole(tmp_path, how) == []


@HOW
def test_a_chunk_that_is_not_there_beside_stored_empty_ones_is_a_remark(tmp_path, how):
    level = chunked(tmp_path, corners(), store_empty=True)
    assert read_whole(tmp_path, how) == []
    level.chunk_file((1, 1, 1)).unlink()
    (remark,) = read_whole(tmp_path, how)
    assert "1 of 8 chunks are not there" in remark


@HOW
def test_a_writer_may_leave_out_empty_chunks(tmp_path, how):
    chunked(tmp_path, corners(), store_empty=False)
    chunked(tmp_path, np.zeros((8, 8, 8), np.uint8), "nuc", store_empty=False)
    assert read_whole(tmp_path, how) == []
    assert read_whole(tmp_path, how, "nuc") == []


def test_of_many_remarks_the_first_are_said():
    remarks = [("er", f"remark {number}") for number in range(15)]
    lines = summed_up(remarks)
    assert lines[0] == "labels of er: remark 0"
    assert lines[12:] == ["... and 3 more remarks about labels"]
