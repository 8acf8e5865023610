"""Arrays of others are decoded by known codecs alone; nothing that a file brings is run."""

from __future__ import annotations

import base64
import json
import pickle

import numpy as np
import pytest
import zarr
from numcodecs import BZ2, LZ4, LZMA, Blosc, Delta, GZip, Shuffle, Zlib, Zstd

from common.data.download import bucket
from common.data.volumes import ngff, zarray
from common.errors import UserError

RAN: list[str] = []


class Payload:
    """Appends to RAN when it is unpickled."""

    def __reduce__(self):
        return RAN.append, ("payload",)


def write(folder, **changes):
    """An image whose .zarray has these entries instead."""
    ngff.write_multiscale(folder, np.ones((4, 4, 4), np.uint8), (8, 8, 8))
    file = folder / "s0" / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    "compressor",
    [None, Blosc(), BZ2(), GZip(), LZ4(), LZMA(), Zlib(), Zstd()],
    ids=lambda codec: codec.codec_id if codec else "none",
)
@pytest.mark.parametrize("filters", [None, [Delta("u1")], [Shuffle(1)]])
def test_what_programs_of_this_field_write_is_read(tmp_path, compressor, filters):
    ngff.write_multiscale(tmp_path / "image", np.zeros((4, 4, 4), np.uint8), (8, 8, 8))
    array = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    zarr.open_group(str(tmp_path / "image"), mode="r+").create_dataset(
        "s0", data=array, compressor=compressor, filters=filters, overwrite=True
    )
    (level,) = ngff.open_levels(tmp_path / "image")
    assert (level.read((0, 0, 0), (4, 4, 4)) == array).all()


def test_a_pickle_is_not_run_neither_in_a_fill_value_nor_in_a_chunk(tmp_path):
    packed = base64.standard_b64encode(pickle.dumps(Payload())).decode()
    objects = write(tmp_path / "objects", dtype="|O", filters=[{"id": "pickle"}], fill_value=packed)
    with pytest.raises(UserError, match="s0: holds objects of Python; write an array of numbers"):
        ngff.open_levels(objects)
    numbers = write(tmp_path / "numbers", compressor={"id": "pickle", "protocol": 5})
    with pytest.raises(UserError, match=r"s0: codec 'pickle' is not decoded.* one of blosc, bz2"):
        ngff.open_levels(numbers)
    fields = write(tmp_path / "fields", dtype=[["a", "|O"], ["b", "<u2"]])
    with pytest.raises(UserError, match="objects of Python"):
        ngff.open_levels(fields)
    with pytest.raises(UserError, match="objects of Python"):
        ngff.open_levels(write(tmp_path / "short", dtype="u1,O"))
    assert RAN == []


@pytest.mark.parametrize("name", ["json2", "msgpack2", "vlen-utf8", "categorize", "mine"])
def test_a_codec_that_is_not_listed_is_refused_as_filter_and_as_compressor(tmp_path, name):
    for place in (
        {"filters": [{"id": "delta", "dtype": "u1"}, {"id": name}]},
        {"compressor": {"id": name}},
    ):
        with pytest.raises(UserError, match=f"codec '{name}'"):
            ngff.open_levels(write(tmp_path / "image", **place))


def test_packed_twice_is_refused(tmp_path):
    twice = write(tmp_path / "image", filters=[{"id": "zlib"}], compressor={"id": "zstd"})
    with pytest.raises(UserError, match=r"compressed 2 times \(zlib, zstd\); write it with one"):
        ngff.open_levels(twice)


@pytest.mark.parametrize(
    "changes", [{"compressor": "blosc"}, {"compressor": {}}, {"filters": "delta"}, {"filters": [3]}]
)
def test_what_is_no_codec_is_said(tmp_path, changes):
    with pytest.raises(UserError, match=r"s0: .*codec.*write the array again"):
        ngff.open_levels(write(tmp_path / "image", **changes))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_metadata_that_are_none_are_left_to_the_reader(text):
    zarray.check_codecs(text.encode(), "image/s0")


def test_a_chunk_that_was_downloaded_is_tried_by_known_codecs_alone():
    assert bucket._decodes(pickle.dumps(Payload()), {"id": "pickle"})
    assert not bucket._decodes(b"cut", {"id": "zstd"})
    assert RAN == []
