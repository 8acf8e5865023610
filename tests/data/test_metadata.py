"""Metadata of images as all kinds of programs write them: read, or refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from common.data.volumes import ngff, placement
from common.data.volumes.ngff import open_levels, write_multiscale
from common.errors import UserError
from tests.volumes import voxels_of

VOLUME = np.random.default_rng(0).integers(1, 256, (4, 5, 6), np.uint8)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A group with one level of 8 nm, chunks of 3 voxels."""
    write_multiscale(tmp_path / "image", VOLUME, (8, 8, 8), (100, 200, 300), chunk=3)
    return tmp_path / "image"


def attributes(image: Path) -> dict:
    return json.loads((image / ".zattrs").read_text())


def write(image: Path, content) -> None:
    (image / ".zattrs").write_text(json.dumps(content))


def change(image: Path, edit) -> None:
    """Rewrite the metadata: `edit` changes the first multiscale in place."""
    content = attributes(image)
    edit(content["multiscales"][0])
    write(image, content)


def set_scale(image: Path, scale, axes=None) -> None:
    """A level with this scale and no translation."""
    transforms = [{"type": "scale", "scale": scale}]
    dataset = {"path": "s0", "coordinateTransformations": transforms}
    multiscale = {"version": "0.4", "datasets": [dataset]}
    if axes is not None:
        multiscale["axes"] = axes
    write(image, {"multiscales": [multiscale]})


def refused(image: Path) -> str:
    with pytest.raises(UserError) as error:
        open_levels(image)
    text = str(error.value)
    assert str(image) in text and "\n" not in text
    return text


# Units


NO_UNIT = [{"name": name, "type": "space"} for name in "zyx"]


@pytest.mark.parametrize("axes", [None, ["z", "y", "x"], NO_UNIT])
def test_lengths_without_a_unit_are_nm_and_that_is_said_once(image, axes, capsys):
    set_scale(image, [1, 1, 1], axes)
    for _ in range(2):
        np.testing.assert_allclose(open_levels(image)[0].scale, 1)
    said = capsys.readouterr().err
    assert said.count("without a unit, so a voxel is taken as 1 nm; write") == 1
    assert said.startswith(f"note: {image}")


@pytest.mark.parametrize("scale", [[0.008, 0.008, 0.008], [0.05, 0.004, 0.004], [20_000, 8, 8]])
def test_lengths_without_a_unit_that_are_no_em_in_nm_are_refused(image, scale):
    set_scale(image, scale, NO_UNIT)
    assert 'write "unit": "nanometer", or what it is' in refused(image)


@pytest.mark.parametrize(
    ("unit", "voxel", "nm"),
    [("micrometer", 0.008, 8), ("µm", 0.008, 8), ("nm", 8, 8), ("angstrom", 1.3, 0.13)],
)
def test_a_unit_that_stands_there_is_believed_without_a_word(image, unit, voxel, nm, capsys):
    set_scale(image, [voxel] * 3, [{**axis, "unit": unit} for axis in NO_UNIT])
    np.testing.assert_allclose(open_levels(image)[0].scale, nm)
    assert capsys.readouterr().err == ""


def test_a_unit_of_one_axis_beside_axes_without_is_refused(image):
    set_scale(image, [8, 8, 8], [*NO_UNIT[:2], {**NO_UNIT[2], "unit": "micrometer"}])
    assert "an axis without a unit beside one in micrometer" in refused(image)


def test_a_coarse_level_of_a_fine_image_without_unit_is_no_reason_to_refuse(image):
    set_scale(image, [8, 8, 8], NO_UNIT)
    coarse = {"type": "scale", "scale": [16_384] * 3}
    level = {"path": "s0", "coordinateTransformations": [coarse]}
    change(image, lambda m: m["datasets"].append(level))
    assert len(open_levels(image)) == 2


# Places of levels


def levels_of(image: Path, *transforms: list[dict], **more) -> list[ngff.Level]:
    """Levels that read one array, with these transformations."""
    datasets = [{"path": "s0", "coordinateTransformations": each} for each in transforms]
    axes = [{**axis, "unit": "nanometer"} for axis in NO_UNIT]
    write(image, {"multiscales": [{"axes": axes, "datasets": datasets} | more]})
    return open_levels(image)


def at(size: float, place: float | None = None) -> list[dict]:
    scale: dict = {"type": "scale", "scale": [size] * 3}
    if place is None:
        return [scale]
    return [scale, {"type": "translation", "translation": [place] * 3}]


def test_levels_of_which_none_says_its_place_cover_one_box(image):
    """As ome-zarr-py wrote them; where one says its place those of the others are to the letter."""
    levels = levels_of(image, at(8), at(16), at(32))
    np.testing.assert_allclose([level.box()[0] for level in levels], -4)
    assert not any(level.has_translation for level in levels)
    levels = levels_of(image, at(8, 100), at(16))
    np.testing.assert_allclose([level.translation for level in levels], [[100] * 3, [0] * 3])


def test_a_level_that_begins_beside_the_finest_by_its_translation_is_noted(image, capsys):
    write_multiscale(image, VOLUME, (8, 8, 8), (100, 100, 100), levels=2)
    placement.check_pyramid(*open_levels(image))
    assert capsys.readouterr().err == ""
    change(image, lambda m: m["datasets"][1].update(coordinateTransformations=at(16, 100)))
    placement.check_pyramid(*open_levels(image))
    said = capsys.readouterr().err
    assert "s1: begins 4 nm beside the finest level" in said and "is 104, 104, 104:" in said


def test_levels_of_version_0_6_lie_in_the_system_that_they_name(image):
    axes = [{**axis, "unit": "micrometer"} for axis in NO_UNIT]
    systems = [{"name": "atlas", "axes": []}, {"name": "intrinsic", "axes": axes}]
    sequence = {"type": "sequence", "output": {"name": "intrinsic"}}
    beyond = {**at(7)[0], "input": "intrinsic", "output": "atlas"}
    (level,) = levels_of(
        image,
        [{**sequence, "transformations": at(0.008, 0.1)}],
        axes=None,
        coordinateSystems=systems,
        coordinateTransformations=[beyond],
    )
    np.testing.assert_allclose((level.scale, level.translation), [[8] * 3, [100] * 3])
    systems[1]["axes"] = axes[::-1]
    change(image, lambda m: m.update(coordinateSystems=systems))
    assert "they must be z, y, x" in refused(image)


# Shapes of metadata


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.pop("datasets"), "'datasets' in .zattrs is missing or null"),
        (lambda m: m.update(datasets=None), "'datasets' in .zattrs is missing or null"),
        (lambda m: m.update(datasets=[]), "'datasets' in .zattrs is an empty list"),
        (lambda m: m.update(datasets=m["datasets"][0]), "'datasets' in .zattrs is an object"),
        (lambda m: m.update(datasets=["s0"]), "a level 's0' in .zattrs"),
        (lambda m: m["datasets"][0].update(path=0), "whose 'path' is the name of an array"),
        (lambda m: m["datasets"][0].pop("path"), "whose 'path' is the name of an array"),
        (lambda m: m["datasets"][0].update(path="../image/s0"), "no array in this group"),
        (lambda m: m["datasets"][0].update(path="/s0"), "no array in this group"),
        (lambda m: m["datasets"][0].update(path=""), "no array in this group"),
        (lambda m: m.update(axes="zyx"), "axes are a text"),
        (lambda m: m.update(axes={"z": 1}), "axes are an object"),
        (lambda m: m.update(axes=[]), "they must be z, y, x"),
        (lambda m: m.update(axes=["x", "y", "z"]), "they must be z, y, x"),
        (lambda m: m.update(axes=["z", "y", "x", "x"]), "they must be z, y, x"),
        (lambda m: m.update(axes=[1, 2, 3]), "an axis 1; write its name"),
        (lambda m: m["axes"][0].update(name=None), "write its name"),
        (lambda m: m["axes"][0].update(unit=3), "unit 3; use one of nanometer"),
        (lambda m: m["axes"][0].update(unit=["nm"]), "use one of nanometer"),
        (lambda m: m.update(coordinateTransformations={"type": "scale"}), "are an object"),
        (lambda m: m.update(coordinateTransformations=[None]), "write a list of objects"),
        (lambda m: m.update(coordinateTransformations=[{"type": []}]), "transformation []"),
        (lambda m: m.update(coordinateTransformations=[{"type": "scale"}]), "scale None; three"),
    ],
)
def test_metadata_of_another_shape_are_a_sentence(image, edit, words):
    change(image, edit)
    assert words in refused(image)


@pytest.mark.parametrize(
    "scale",
    [
        *(None, 8, "8", [8, 8], ["8", "8", "8"], [8, None, 8], [8, True, 8], [8, -8, 8], {"z": 8}),
        *([[8]], [float("nan"), 8, 8], [float("inf"), 8, 8], [10**400, 8, 8], [1e-290, 8, 8]),
        [1e200, 8, 8],
    ],
)
def test_what_is_no_voxel_size_is_a_sentence(image, scale):
    set_scale(image, scale, [{**axis, "unit": "nanometer"} for axis in NO_UNIT])
    refused(image)


def test_a_translation_beyond_the_world_is_refused(image):
    transforms = [{"type": "translation", "translation": [1e200, 0, 0]}]
    change(image, lambda m: m.update(coordinateTransformations=transforms))
    assert "a translation of [1e+200" in refused(image)


@pytest.mark.parametrize("content", [[], None, 3, "multiscales", {"multiscales": {}}])
def test_attributes_of_another_shape_are_a_sentence(image, content):
    write(image, content)
    refused(image)


@pytest.mark.parametrize("text", ["", "{", '{"multiscales": [{]}', "[" * 100_000, "\xff"])
@pytest.mark.parametrize("name", [".zattrs", ".zgroup", "s0/.zarray"])
def test_a_file_that_is_no_json_is_named(image, name, text):
    (image / name).write_text(text, encoding="latin-1")
    assert str((image / name).parent) in refused(image)


def test_names_of_arrays_may_be_written_with_a_dot(image):
    change(image, lambda m: m["datasets"][0].update(path="./s0/"))
    assert open_levels(image)[0].path == image / "s0"


def test_whether_the_place_is_known_is_told(image):
    assert open_levels(image)[0].has_translation
    set_scale(image, [8, 8, 8], ["z", "y", "x"])
    assert not open_levels(image)[0].has_translation


def test_of_several_images_in_a_group_the_first_is_read_and_that_is_said(image, capsys):
    content = attributes(image)
    content["multiscales"].append({"name": "thumbnail"})
    write(image, content)
    assert (voxels_of(image) == VOLUME).all()
    assert "2 images in one group, the first one is read" in capsys.readouterr().err


# What a group is that is no image


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"omero": {"channels": []}}, "only 'omero'"),
        ({"bioformats2raw.layout": 3}, "bioformats2raw store"),
        ({"plate": {}}, "a plate or well"),
        ({"ome": {"version": "0.5", "multiscales": []}}, "OME-NGFF 0.5"),
        ({}, "no 'multiscales'"),
    ],
)
def test_a_group_that_is_no_image_is_named(image, content, words):
    write(image, content)
    assert words in refused(image)


def test_the_root_of_a_store_names_the_images_in_it(image, tmp_path):
    store = tmp_path / "bio.zarr"
    zarr.open_group(str(store), mode="w").attrs["bioformats2raw.layout"] = 3
    image.rename(store / "0")
    assert f"write the path of an image in it, such as {store / '0'}" in refused(store)


# Axes of length 1


def with_more_axes(image: Path, names: str, shape: tuple[int, ...], **options) -> None:
    """The same image with more axes, of which `shape` is given."""
    data = VOLUME.reshape(shape)
    chunks = tuple(1 if name not in "zyx" else 3 for name in names)
    group = zarr.open_group(str(image), mode="r+")
    options = {"chunks": chunks, "overwrite": True, **options}
    group.create_dataset("s0", data=data, **options)
    axes = []
    for name in names:
        axes.append({"name": name, "type": "space", "unit": "nanometer"})
        if name not in "zyx":
            axes[-1] = {"name": name, "type": {"t": "time", "c": "channel"}.get(name, "other")}
    change(image, lambda m: m.update(axes=axes))

    def stretch(multiscale: dict) -> None:
        for transform in multiscale["datasets"][0]["coordinateTransformations"]:
            numbers = dict(zip("zyx", transform[transform["type"]], strict=True))
            transform[transform["type"]] = [numbers.get(name, 1) for name in names]

    change(image, stretch)


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("names", "shape"),
    [("czyx", (1, 4, 5, 6)), ("tczyx", (1, 1, 4, 5, 6)), ("zyxc", (4, 5, 6, 1))],
)
def test_axes_of_length_1_are_left_away(image, names, shape, order, separator):
    with_more_axes(image, names, shape, order=order, dimension_separator=separator)
    (level,) = open_levels(image)
    np.testing.assert_array_equal(voxels_of(image), VOLUME)
    np.testing.assert_array_equal(level.read((1, 2, 3), (4, 4, 6)), VOLUME[1:4, 2:4, 3:6])
    np.testing.assert_allclose(level.scale, 8)
    np.testing.assert_allclose(level.translation, (100, 200, 300))
    assert level.chunk_file((1, 1, 1)).is_file()


def test_a_chunk_cut_short_is_named_there_too(image):
    with_more_axes(image, "tczyx", (1, 1, 4, 5, 6), dimension_separator="/")
    file = image / "s0/0/0/1/1/1"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="s0: a chunk in voxels"):
        voxels_of(image)


def test_several_channels_are_refused(image):
    with_more_axes(image, "czyx", (2, 2, 5, 6))
    assert "2 values along axis 'c'" in refused(image)


def test_an_axis_of_space_that_is_not_z_y_or_x_is_refused(image):
    with_more_axes(image, "czyx", (1, 4, 5, 6))
    change(image, lambda m: m["axes"][0].update(type="space"))
    assert "they must be z, y, x" in refused(image)


# Arrays


def change_array(image: Path, **changes) -> None:
    file = image / "s0" / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": None},
        {"shape": [4, 5]},
        {"shape": ["4", "5", "6"]},
        {"shape": [4, 5, -6]},
        {"shape": [0, 5, 6]},
        {"shape": [4.0, 5, 6]},
        {"shape": [2**40] * 3},
        {"chunks": [3, 3]},
        {"chunks": [3, 3, 0]},
        {"chunks": True},
        {"chunks": [100_000] * 3},
        {"dtype": None},
        {"dtype": "<c8"},
        {"dtype": "|S4"},
        {"dtype": "<M8[ns]"},
        {"dtype": "mito"},
        {"dtype": 3},
        {"fill_value": "mito"},
        {"fill_value": [1]},
        {"fill_value": -1},
        {"order": "Z"},
        {"dimension_separator": "-"},
        {"zarr_format": 3},
        {"zarr_format": None},
        {"filters": 3},
        {"compressor": {"id": "zlib", "speed": 3}},
    ],
)
def test_an_array_that_is_none_is_a_sentence(image, changes):
    change_array(image, **changes)
    with pytest.raises(UserError) as error:
        voxels_of(image)
    assert str(image / "s0") in str(error.value)


@pytest.mark.parametrize("separator", [".", "/"])
def test_chunks_that_are_named_otherwise_than_the_array_says_are_not_zeros(image, separator):
    zarr.open_group(str(image), mode="r+").create_dataset(
        "s0", data=VOLUME, chunks=(3, 3, 3), dimension_separator=separator, overwrite=True
    )
    assert (voxels_of(image) == VOLUME).all()
    change_array(image, dimension_separator="." if separator == "/" else "/")
    with pytest.raises(
        UserError, match=f"s0: chunks such as [0-9.]+, .*; write '{separator}' there"
    ):
        open_levels(image)


def test_a_chunk_that_is_missing_is_0_where_the_array_does_not_say(image):
    """zarr gives whatever is in memory."""
    change_array(image, fill_value=None)
    open_levels(image)[0].chunk_file((0, 0, 0)).unlink()
    expected = VOLUME.copy()
    expected[:3, :3, :3] = 0
    for _ in range(3):
        np.testing.assert_array_equal(voxels_of(image), expected)


def test_a_chunk_that_is_missing_is_what_the_array_says(image):
    change_array(image, fill_value=7)
    open_levels(image)[0].chunk_file((0, 0, 0)).unlink()
    assert (voxels_of(image)[:3, :3, :3] == 7).all()


def test_a_blosc_chunk_of_another_size_is_refused_before_it_is_decoded(image):
    file = open_levels(image)[0].chunk_file((0, 0, 0))
    content = bytearray(file.read_bytes())
    content[4:8] = (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"s0: a chunk in voxels .* unpacks to 2147483647 bytes"):
        voxels_of(image)


def test_what_is_larger_than_memory_is_a_sentence(image, monkeypatch):
    level = open_levels(image)[0]

    def too_much(*_):
        raise MemoryError("Unable to allocate 9 EiB")

    monkeypatch.setattr(zarr.Array, "__getitem__", too_much)
    with pytest.raises(UserError, match=r"s0: voxels .* do not fit into memory"):
        level.read((0, 0, 0), (1, 1, 1))


def test_what_is_written_is_opened_by_zarr_itself(image):
    """Only what needs it goes by our own store."""
    assert isinstance(open_levels(image)[0].array.store, ngff.zarr.storage.DirectoryStore)
