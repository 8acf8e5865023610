"""Volumes of other programs: the same voxels, at the same place."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import h5py
import mrcfile
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from common.data.crops.cache import raw_stamp, stamp_of_labels
from common.data.volumes.ngff import Level, open_levels, write_multiscale
from common.data.volumes.placement import check_crop, check_directions
from common.data.volumes.sources import place
from common.data.volumes.sources.image import by_attributes
from common.errors import UserError
from tests.data import foreign_writers as writers
from tests.data.foreign_writers import MEASURED, PLACE, PLACED, UNMEASURED, VOLUME, VOXEL

BOXES = [((0, 0, 0), writers.SHAPE), ((3, 5, 7), (9, 13, 23)), ((11, 19, 29), writers.SHAPE)]


@pytest.mark.parametrize("writer", MEASURED, ids=writers.by_name)
def test_a_volume_of_another_program_is_read(tmp_path, writer):
    levels = open_levels(tmp_path / writer(tmp_path, VOLUME))
    finest = levels[0]
    for start, stop in BOXES:
        expected = VOLUME[tuple(map(slice, start, stop))]
        np.testing.assert_array_equal(finest.read(start, stop), expected)
    np.testing.assert_allclose(finest.scale, VOXEL, rtol=1e-6)
    place = PLACE if writer in PLACED else (0, 0, 0)
    np.testing.assert_allclose(finest.translation, place, atol=1e-3)
    for coarse in levels[1:]:
        np.testing.assert_array_equal(coarse.read((0, 0, 0), coarse.shape), writers.half(VOLUME))
        np.testing.assert_allclose(coarse.scale, np.multiply(VOXEL, 2), rtol=1e-6)
        np.testing.assert_allclose(
            coarse.translation, np.add(place, np.divide(VOXEL, 2)), atol=1e-3
        )


@pytest.mark.parametrize("writer", UNMEASURED, ids=writers.by_name)
def test_a_voxel_size_that_nobody_says_is_asked_for(tmp_path, writer):
    path = tmp_path / writer(tmp_path, VOLUME)
    with pytest.raises(
        UserError, match=f"{path.name}: nothing in it says how large .*#voxel_size=8"
    ):
        open_levels(path)
    (level,) = open_levels(f"{path}#voxel_size=8,6,4&translation=1,2,3")
    np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), VOLUME)
    np.testing.assert_allclose(level.scale, VOXEL)
    np.testing.assert_allclose(level.translation, (1, 2, 3))
    assert level.has_translation


# Where an array is by its attributes

WHERE = Path("a.h5")


@pytest.mark.parametrize("name", ["resolution", "voxel_size"])
def test_an_offset_is_the_corner_of_the_first_voxel_and_0_where_there_is_none(name):
    """Of funlib.persistence, and of CREMI, which leaves out an offset of 0."""
    coarse = by_attributes(WHERE, {name: [16, 16, 16], "offset": [0, 8, -16]})
    assert (coarse.scale, coarse.translation) == ([16, 16, 16], [8, 16, -8])
    fine = by_attributes(WHERE, {name: np.array([8.0, 8, 8])})
    assert fine.translation is None
    np.testing.assert_array_equal(fine.place, (4, 4, 4))
    # ilastik says no place, and counts voxels from their centres
    np.testing.assert_array_equal(
        by_attributes(WHERE, {"element_size_um": [0.008] * 3}).place, (0, 0, 0)
    )


def test_a_translation_is_the_centre_and_our_own_files_of_before_had_it_as_offset():
    packed = {"voxel_size": [8, 8, 8], "translation": [4, 8, 12]}
    assert by_attributes(WHERE, packed).translation == [4, 8, 12]
    assert by_attributes(WHERE, packed | {"offset": [0, 0, 0]}).translation == [4, 8, 12]
    before = {"resolution": [8, 8, 8], "offset": [4, 8, 12], "exported": "{}"}
    assert by_attributes(WHERE, before).translation == [4, 8, 12]


def test_an_offset_of_n5_is_a_corner_unless_paintera_wrote_it(tmp_path):
    path = tmp_path / writers.n5_of_a_viewer(tmp_path, VOLUME)
    file = path / "attributes.json"
    about = json.loads(file.read_text())
    for more, first in (({}, (404.0, 203.0, 102.0)), ({"painteraData": {}}, (400, 200, 100))):
        file.write_text(json.dumps(about | {"offset": [100, 200, 400]} | more))
        fine, coarse = open_levels(path)
        np.testing.assert_allclose(fine.translation, first)
        np.testing.assert_allclose(coarse.box()[0], fine.box()[0])


@pytest.mark.parametrize(
    "more",
    [
        {"resolution": [0.004, 0.006, 0.008], "units": ["um"] * 3, "offset": [0.1, 0.2, 0.4]},
        {"resolution": [4, 6, 80], "units": ["nm", "nm", "angstrom"], "offset": [100, 200, 4000]},
        {
            "pixelResolution": {"dimensions": [0.004, 0.006, 0.008], "unit": "um"},
            "offset": [0.1, 0.2, 0.4],
        },
    ],
)
def test_offset_and_resolution_of_n5_are_in_one_unit(tmp_path, more, capsys):
    """units beside resolution are those of Neuroglancer and funlib."""
    path = tmp_path / writers.plain_n5(tmp_path, VOLUME)
    writers.attributes(path / "attributes.json", **more)
    (level,) = open_levels(path)
    np.testing.assert_allclose(level.scale, VOXEL)
    np.testing.assert_allclose(level.translation, (404, 203, 102))
    assert capsys.readouterr().err == ""


def test_lengths_of_n5_without_a_unit_that_no_em_has_are_asked_for(tmp_path, capsys):
    """0.008 is um; a coarse level of that is not 0.5 nm."""
    path = tmp_path / writers.n5_of_own_sizes(tmp_path, VOLUME)
    for number, factor in enumerate((1, 100)):
        size = np.multiply([0.004, 0.006, 0.008], factor).tolist()
        writers.attributes(path / f"s{number}/attributes.json", pixelResolution=size)
    with pytest.raises(UserError, match=r"own.n5/em/raw: nothing in it says how large a voxel is"):
        open_levels(path)
    assert "s0: says voxels of 0.008 x 0.006 x 0.004 nm, which no EM has" in capsys.readouterr().err


def test_dimensions_of_n5_with_other_names_are_not_taken_for_x_y_z(tmp_path):
    path = tmp_path / writers.plain_n5(tmp_path, VOLUME)
    for names in (["z", "y", "x"], ["x", "y", "c"], ["x", "y", "t", "z"]):
        writers.attributes(path / "attributes.json", axes=names)
        with pytest.raises(UserError, match=f"axes {', '.join(names)} by its attribute 'axes'"):
            open_levels(f"{path}#voxel_size=8")
    writers.attributes(path / "attributes.json", axes=["x", "y", "z"])
    assert len(open_levels(f"{path}#voxel_size=8")) == 1
    # a transform has names of its own
    cosem = tmp_path / writers.n5_cosem(tmp_path, VOLUME)
    writers.attributes(cosem / "attributes.json", axes=["z", "y", "x"])
    np.testing.assert_allclose(open_levels(cosem)[0].scale, VOXEL)


# What cannot be read


@pytest.mark.parametrize(
    "writer",
    [
        *(writers.hdf5, writers.mrc, writers.tiff_imagej, writers.tiff_ome, writers.tiff_pages),
        *(writers.nifti, writers.nifti2, writers.nrrd),
    ],
    ids=writers.by_name,
)
@pytest.mark.parametrize("kept", [0, 10, 1500, -100])
def test_a_file_that_is_cut_off_is_one_sentence(tmp_path, writer, kept):
    if kept == -100 and writer in (writers.tiff_ome, writers.tiff_imagej):
        return  # what they write last is no voxels
    name = writer(tmp_path, VOLUME)
    file = tmp_path / name.partition(":")[0]
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"{file.name}.*(copy it again|write or copy)") as error:
        level = open_levels(f"{tmp_path / name}#voxel_size=8")[0]
        level.read((0, 0, 0), level.shape)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "writer",
    [
        *(writers.n5_cellmap, writers.precomputed, writers.precomputed_sharded, writers.zarr2),
        *(writers.zarr3, writers.plain_zarr2, writers.tiff_slices, writers.png_slices),
    ],
    ids=writers.by_name,
)
def test_a_chunk_that_is_cut_off_is_one_sentence(tmp_path, writer):
    path = tmp_path / writer(tmp_path, VOLUME)
    is_metadata = {"attributes.json", "info", "zarr.json", ".zarray", ".zattrs", ".zgroup"}
    for file in path.rglob("*"):
        if file.is_file() and file.name not in is_metadata:
            file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(UserError, match=f"{path.name}.*copy") as error:
        level = open_levels(f"{path}#voxel_size=8")[0]
        level.read((0, 0, 0), level.shape)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".tif", ".mrc", ".h5", ".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize(
    "writer", [writers.tiff_ome, writers.mrc, writers.hdf5_of_ilastik], ids=writers.by_name
)
def test_a_wrong_ending_is_one_sentence(tmp_path, writer, ending):
    written = tmp_path / writer(tmp_path, VOLUME)
    if written.name.endswith(ending):
        return
    file = written.rename(tmp_path / f"other{ending}")
    with pytest.raises(UserError, match=f"other{ending}: cannot be read as an? .* file"):
        open_levels(file)


ODD = {
    "complex": (VOLUME.astype(np.complex64), "voxels of type complex64; write whole numbers"),
    "4-D": (np.zeros((2, 3, 4, 5), np.uint8), "(4 axes|2 channels)"),
    "empty": (np.zeros((0, 4, 5), np.uint8), r"shape \[0, 4, 5\], no voxel at all"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_volume_in_an_hdf5_file_is_one_sentence(tmp_path, what):
    volume, words = ODD[what]
    name = writers.plain_hdf5(tmp_path, volume)
    with pytest.raises(UserError, match=words):
        open_levels(f"{tmp_path / name}:/data#voxel_size=8")


@pytest.mark.parametrize(
    ("writer", "what"),
    [
        (writers.plain_zarr2, "complex"),
        (writers.plain_zarr2, "4-D"),
        (writers.plain_zarr3, "complex"),
        (writers.plain_zarr3, "4-D"),
        (writers.mrc, "complex"),
    ],
)
def test_what_is_no_volume_elsewhere_is_one_sentence(tmp_path, writer, what):
    path = tmp_path / writer(tmp_path, ODD[what][0])
    with pytest.raises(UserError, match=r"complex|c8|4 axes"):
        open_levels(f"{path}#voxel_size=8")


def test_colours_and_channels_of_a_tiff_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((5, 20, 30, 3), np.uint8), photometric="rgb")
    with pytest.raises(UserError, match=r"rgb.tif: 3 samples a pixel \(colours\)"):
        open_levels(tmp_path / "rgb.tif")
    volume = np.zeros((5, 2, 20, 30), np.uint16)
    tifffile.imwrite(tmp_path / "two.tif", volume, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(UserError, match=r"two.tif: 2 channels, .* as a file of its own"):
        open_levels(tmp_path / "two.tif")


@pytest.mark.parametrize("axes", ["XYZ", "ZXY", "YXZ"])
def test_pages_of_a_tiff_that_are_no_y_and_x_are_refused(tmp_path, axes):
    """Of a cube nothing but the names tells it."""
    tifffile.imwrite(tmp_path / "turned.tif", VOLUME[:12, :12, :12], metadata={"axes": axes})
    with pytest.raises(UserError, match=rf"turned.tif: axes {axes} by its metadata, .* z, y, x"):
        open_levels(tmp_path / "turned.tif")


@pytest.mark.parametrize("odd", [{"data": VOLUME[5].astype("u2")}, {"predictor": True}])
def test_a_page_of_a_tiff_that_is_stored_otherwise_than_the_first_is_refused(tmp_path, odd):
    """It was decoded as the first one is: noise, or the half of it."""
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as file:
        for number, page in enumerate(VOLUME):
            more = odd if number == 5 else {}
            file.write(**{"data": page, "compression": "lzw", "metadata": None} | more)
    (level,) = open_levels(f"{tmp_path / 'mixed.tif'}#voxel_size=8")
    np.testing.assert_array_equal(level.read((0, 0, 0), (5, 20, 30)), VOLUME[:5])
    with pytest.raises(UserError, match=r"mixed.tif: page 6 has another type, shape or"):
        level.read((0, 0, 0), level.shape)


def test_a_file_with_several_volumes_names_them(tmp_path):
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file["a"] = VOLUME
        file["b/c"] = VOLUME
    with pytest.raises(UserError, match=r"many.h5: 2 volumes, a, b/c; write which, as in"):
        open_levels(tmp_path / "many.h5")
    with pytest.raises(UserError, match=r"many.h5: no array 'd'; write one of a, b/c"):
        open_levels(tmp_path / "many.h5:/d")
    assert len(open_levels(f"{tmp_path / 'many.h5'}/b/c#voxel_size=8")) == 1


def test_slices_of_different_size_are_named(tmp_path):
    folder = tmp_path / writers.png_slices(tmp_path, VOLUME)
    Image.fromarray(VOLUME[0, :5]).save(folder / "s003.png")
    (level,) = open_levels(f"{folder}#voxel_size=8")
    with pytest.raises(UserError, match=r"s003.png: \[5, 30\] pixels .*\[20, 30\] .* in s000.png"):
        level.read((0, 0, 0), level.shape)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("#voxelsize=8", "'voxelsize=8' behind #; write voxel_size=8 or"),
        ("#voxel_size=8,8", "voxel_size '8,8'; write one or three lengths"),
        ("#voxel_size=-8", "voxel_size '-8'; write one or three lengths"),
        ("#translation=8", "translation '8'; write three lengths"),
        ("#voxel_size=8&voxel_size=8", "each once"),
    ],
)
def test_what_is_said_behind_a_name_is_checked(tmp_path, options, words):
    path = tmp_path / writers.plain_n5(tmp_path, VOLUME)
    with pytest.raises(UserError, match=re.escape(words)):
        open_levels(f"{path}{options}")


# Details of single formats


@pytest.mark.parametrize(
    "dtype", ["int16", "uint16", "uint32", "float32", "float64", "bool", ">u2", ">f4"]
)
def test_every_type_of_number_is_read(tmp_path, dtype):
    volume = (VOLUME.astype(np.float64) - 3).astype(dtype) if dtype != "bool" else VOLUME > 100
    for writer in (writers.plain_zarr2, writers.plain_hdf5, writers.tiff_pages):
        path = tmp_path / writer(tmp_path, volume)
        (level,) = open_levels(f"{path}#voxel_size=8")
        np.testing.assert_array_equal(level.read((1, 2, 3), (5, 6, 7)), volume[1:5, 2:6, 3:7])


@pytest.mark.parametrize("mode", ["int8", "int16", "uint16", "float32", "float16"])
def test_mrc_files_of_any_type_byte_order_and_axis_order_are_read(tmp_path, mode):
    volume = (VOLUME.astype(np.int16) // 2).astype(mode)
    writers.mrc(tmp_path, volume)
    (level,) = open_levels(tmp_path / "cell.mrc")
    np.testing.assert_array_equal(level.read((1, 2, 3), (5, 6, 7)), volume[1:5, 2:6, 3:7])
    with mrcfile.open(tmp_path / "cell.mrc", "r+") as file:
        # columns along z, rows along y, sections along x
        file.header.mapc, file.header.mapr, file.header.maps = 3, 2, 1
    (level,) = open_levels(tmp_path / "cell.mrc")
    turned = volume.transpose(2, 1, 0)
    np.testing.assert_array_equal(level.read((1, 2, 3), (5, 6, 7)), turned[1:5, 2:6, 3:7])


def test_bytes_of_imod_are_unsigned_unless_it_says_otherwise(tmp_path):
    writers.mrc(tmp_path, VOLUME.view(np.int8))
    file = tmp_path / "cell.mrc"
    content = bytearray(file.read_bytes())
    content[152:160] = np.array([1146047817, 0], "<i4").tobytes()
    file.write_bytes(content)
    (level,) = open_levels(file)
    np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), VOLUME)


def test_bytes_of_a_header_that_says_more_than_127_are_unsigned(tmp_path):
    writers.mrc(tmp_path, VOLUME.view(np.int8))
    with mrcfile.open(tmp_path / "cell.mrc", "r+") as file:
        file.header.dmin, file.header.dmax = 0, 255
    (level,) = open_levels(tmp_path / "cell.mrc")
    np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), VOLUME)


@pytest.mark.parametrize(
    "attributes",
    [
        {"axistags": '{"axes": [{"key": "x"}, {"key": "y"}, {"key": "z"}]}'},
        {"axis_names": ["X", "Y", "Z"]},
        {"_ARRAY_DIMENSIONS": ["c", "y", "x"]},
        {"DIMENSION_LABELS": ["x", "y", "z"]},
    ],
)
def test_an_array_whose_axes_have_other_names_is_not_taken_for_z_y_x(tmp_path, attributes):
    path = tmp_path / writers.plain_zarr2(tmp_path, VOLUME)
    writers.attributes(path / ".zattrs", **attributes)
    with h5py.File(tmp_path / "axes.h5", "w") as file:
        file["raw"] = VOLUME
        file["raw"].attrs.update(attributes)
    said = rf"axes ., ., . by its attribute '{next(iter(attributes))}'"
    for written in (path, tmp_path / "axes.h5"):
        with pytest.raises(UserError, match=said):
            open_levels(f"{written}#voxel_size=8")
    for order in (["z", "y", "x"], ["dim_0", "dim_1", "dim_2"]):
        writers.attributes(path / ".zattrs", **dict.fromkeys(attributes, order))
        assert len(open_levels(f"{path}#voxel_size=8")) == 1


def test_a_virtual_array_without_one_of_its_files_is_not_taken_for_zeros(tmp_path):
    whole = h5py.VirtualLayout(writers.SHAPE, np.uint8)
    middle = writers.SHAPE[0] // 2
    for name, part in (("top.h5", slice(0, middle)), ("low.h5", slice(middle, None))):
        with h5py.File(tmp_path / name, "w") as file:
            file["raw"] = VOLUME[part]
        whole[part] = h5py.VirtualSource(name, "raw", VOLUME[part].shape)
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file.create_virtual_dataset("raw", whole, fillvalue=0)
    (level,) = open_levels(f"{tmp_path / 'whole.h5'}#voxel_size=8")
    np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), VOLUME)
    names = {file.name for file in level.files((0, 0, 0), level.shape)}
    assert names == {"whole.h5", "top.h5", "low.h5"}  # by whose times it is known to be edited
    (tmp_path / "low.h5").unlink()
    with pytest.raises(UserError, match=r"whole.h5:/raw: a virtual array, whose part low.h5 is"):
        open_levels(f"{tmp_path / 'whole.h5'}#voxel_size=8")


def test_sections_behind_those_of_the_header_are_noted(tmp_path, capsys):
    """Of a header that was written before the last sections were."""
    path = tmp_path / writers.mrc(tmp_path, VOLUME)
    with path.open("ab") as file:
        file.write(VOLUME.tobytes())
    assert open_levels(path)[0].grid.shape == VOLUME.shape
    assert f"for the {len(VOLUME)} sections of its header; what is behind" in " ".join(
        capsys.readouterr().err.split()
    )


def test_an_array_of_imaris_ends_where_its_image_does(tmp_path):
    with h5py.File(tmp_path / "cell.ims", "w") as file:
        channel = file.create_group("DataSet/Channel 0")
        channel["Data"] = np.pad(VOLUME, ((0, 4), (0, 12), (0, 2)))
        for axis, size in zip("ZYX", writers.SHAPE, strict=True):
            channel.attrs[f"ImageSize{axis}"] = np.array(list(str(size)), "S1")
    (level,) = open_levels(f"{tmp_path}/cell.ims:/DataSet/Channel 0/Data#voxel_size=8")
    np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), VOLUME)


def test_scales_of_precomputed_may_be_listed_in_any_order(tmp_path):
    path = tmp_path / writers.precomputed(tmp_path, VOLUME)
    places = [level.translation for level in open_levels(path)]
    about = json.loads((path / "info").read_text())
    writers.attributes(path / "info", scales=about["scales"][::-1])
    np.testing.assert_array_equal([level.translation for level in open_levels(path)], places)


def test_chunks_of_precomputed_in_packed_files_are_not_taken_for_zeros(tmp_path):
    path = tmp_path / writers.precomputed(tmp_path, VOLUME)
    chunk = next(file for folder in path.iterdir() if folder.is_dir() for file in folder.iterdir())
    chunk.rename(f"{chunk}.gz")
    with pytest.raises(UserError, match=rf"packed files such as {chunk.name}.gz, as CloudVolume"):
        open_levels(path)


def test_lengths_are_in_the_units_that_stand_beside_them(tmp_path):
    path = tmp_path / writers.plain_zarr2(tmp_path, VOLUME)
    about = {"voxel_size": [80, 60, 40], "offset": [800, 0, 0], "units": ["angstrom"] * 3}
    writers.attributes(path / ".zattrs", **about)
    (level,) = open_levels(path)
    np.testing.assert_allclose((level.scale, level.translation), [(8, 6, 4), (84, 3, 2)])


@pytest.mark.parametrize("unit", ["um", "micrometer", b"nm"])
def test_one_unit_beside_a_resolution_is_that_of_all_axes(unit):
    factor = 1 if unit == b"nm" else 1000
    said = by_attributes(WHERE, {"resolution": [4, 8, 16], "offset": [0, 8, 16], "unit": unit})
    assert said.scale == [4 * factor, 8 * factor, 16 * factor]
    assert said.translation == [2 * factor, 12 * factor, 24 * factor]


def test_a_micrometre_along_each_axis_is_no_voxel_size_that_anybody_measured():
    assert by_attributes(WHERE, {"element_size_um": [1.0, 1.0, 1.0]}).scale is None
    assert by_attributes(WHERE, {"element_size_um": [1.0, 0.5, 0.5]}).scale == [1000, 500, 500]


def test_names_of_dimensions_that_contradict_the_axes_of_an_image_are_refused(tmp_path):
    """Both are in OME-NGFF 0.5, which wants them alike."""
    path = tmp_path / writers.zarr3(tmp_path, VOLUME)
    writers.attributes(path / "0/zarr.json", dimension_names=["c", "z", "y", "x"])
    assert len(open_levels(path)) == 2
    writers.attributes(path / "0/zarr.json", dimension_names=["c", "x", "y", "z"])
    with pytest.raises(UserError, match="raw/0: axes c, x, y, z by its dimension_names, and c, z"):
        open_levels(path)


def test_a_series_of_slices_that_lacks_one_or_has_one_too_many_is_noted(tmp_path, capsys):
    folder = tmp_path / "slices"
    folder.mkdir()
    for number in (1, 2, 4, 9, 10, 11):
        Image.fromarray(VOLUME[number]).save(folder / f"img_{number}.png")
    (level,) = open_levels(f"{folder}#voxel_size=8")
    np.testing.assert_array_equal(level.read((3, 0, 0), (5, 20, 30)), VOLUME[9:11])
    said = capsys.readouterr().err
    assert "rise by 1, and not from img_2.png to img_4.png, img_4.png to img_9.png;" in said


@pytest.mark.parametrize(("size", "is_said"), [("4,4,40", True), ("40,4,4", False), ("8", False)])
def test_voxels_that_are_longest_along_x_are_noted(tmp_path, capsys, size, is_said):
    """As a user of Fiji would list them; whether in the name of the volume or in its metadata."""
    tifffile.imwrite(tmp_path / "raw.tif", VOLUME)
    (level,) = open_levels(f"{tmp_path}/raw.tif#voxel_size={size}")
    write_multiscale(tmp_path / "zarr", VOLUME, level.scale)
    open_levels(tmp_path / "zarr")
    said = " ".join(capsys.readouterr().err.split())
    sentence = "voxels of 4 x 4 x 40 nm, longest along x; sizes are written z, y, x"
    assert said.count(sentence) == 2 * is_said
    assert ("they are 40 x 4 x 4" in said) == is_said


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("0.008", "voxels of 0.008 nm, which no EM has; sizes are in nm"),
        ("1000,4,4", "voxels of 1000 x 4 x 4 nm, 250 times as long as wide;"),
        ("70,2,2", ""),
    ],
)
def test_a_voxel_size_that_cannot_be_meant_is_noted_whoever_says_it(tmp_path, capsys, size, said):
    """Micrometres for nm, and the depth of 1 um that Fiji gives where nobody did."""
    tifffile.imwrite(tmp_path / "raw.tif", VOLUME)
    open_levels(f"{tmp_path}/raw.tif#voxel_size={size}")
    text = " ".join(capsys.readouterr().err.split())
    assert said in text and bool(text) == bool(said)


def test_voxel_sizes_of_nifti_that_contradict_each_other_are_asked_for(tmp_path, capsys):
    path = tmp_path / "cell.nii"
    image = nibabel.Nifti1Image(VOLUME.T, np.diag([0.004, 0.006, 0.008, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, path)
    (level,) = open_levels(path)
    assert level.scale.tolist() == list(VOXEL)
    content = bytearray(path.read_bytes())
    content[80:92] = np.array([0.002, 0.002, 0.002], "<f4").tobytes()  # pixdim[1:4]
    path.write_bytes(content)
    with pytest.raises(UserError, match="nothing in it says how large a voxel is"):
        open_levels(path)
    said = " ".join(capsys.readouterr().err.split())
    assert "voxels of 0.002 by its pixdim and of 0.008,0.006,0.004 by its sform" in said
    (level,) = open_levels(f"{path}#voxel_size=8,6,4")
    assert level.scale.tolist() == list(VOXEL)


@pytest.mark.parametrize("moved", [0.0, 0.04])
def test_a_qform_that_contradicts_the_sform_is_noted(tmp_path, capsys, moved):
    place = np.diag([0.004, 0.006, 0.008, 1])
    place[:3, 3] = 0.04, 0.6, 0.8
    image = nibabel.Nifti1Image(VOLUME.T, place)
    image.header.set_xyzt_units("micron")
    image.set_sform(place, 1)
    place[0, 3] += moved
    image.set_qform(place, 1)
    nibabel.save(image, tmp_path / "cell.nii")
    (level,) = open_levels(tmp_path / "cell.nii")
    np.testing.assert_allclose(level.translation, PLACE, rtol=1e-6)
    said = " ".join(capsys.readouterr().err.split())
    assert ("its qform puts it at another place" in said) == bool(moved)


def test_voxels_beside_their_header_are_known_to_be_edited(tmp_path):
    """A cached crop of them, or an import, would stay what it was."""
    path = tmp_path / writers.nrrd_detached(tmp_path, VOLUME)
    (level,) = open_levels(path)
    stamps = [stamp_of_labels(path), raw_stamp(level, np.zeros(3, int), level.shape)]
    data = next(file for file in tmp_path.iterdir() if file != path)
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    (level,) = open_levels(path)
    assert level.read((0, 0, 0), (1, 1, 1)) == VOLUME[0, 0, 0] ^ 1
    edited = [stamp_of_labels(path), raw_stamp(level, np.zeros(3, int), level.shape)]
    assert stamps[0] != edited[0] and stamps[1] != edited[1]


def test_axes_of_imagej_may_have_units_of_their_own(tmp_path):
    units = {"unit": "um", "yunit": "um", "zunit": "nm"}
    tifffile.imwrite(
        tmp_path / "cell.tif",
        VOLUME,
        imagej=True,
        resolution=(250, 1000 / 6),
        metadata={"spacing": 8.0, "axes": "ZYX", **units},
    )
    (level,) = open_levels(tmp_path / "cell.tif")
    np.testing.assert_allclose(level.scale, VOXEL, rtol=1e-6)


def test_slices_of_which_each_number_is_ten_further_are_noted(tmp_path, capsys):
    folder = tmp_path / "slices"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(VOLUME[number]).save(folder / f"img_{number}0.png")
    (level,) = open_levels(f"{folder}#voxel_size=8")
    np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), VOLUME[:3])
    said = " ".join(capsys.readouterr().err.split())
    assert "the numbers of the slices rise by 10, and they are taken for neighbours" in said


def test_pixels_that_are_shown_otherwise_than_stored_are_noted(tmp_path, capsys):
    tifffile.imwrite(tmp_path / "white.tif", VOLUME, photometric="miniswhite")
    colours = np.random.default_rng(0).integers(0, 2**16, (3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "colours.tif", VOLUME, photometric="palette", colormap=colours)
    for name, said in (("white", "0 is white in it"), ("colours", "a palette of colours")):
        (level,) = open_levels(f"{tmp_path / name}.tif#voxel_size=8")
        np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), VOLUME)
        assert f"{name}.tif: values are taken as they are stored: {said}" in " ".join(
            capsys.readouterr().err.replace("it has ", "").split()
        )


@pytest.mark.parametrize("is_grey", [True, False])
def test_pictures_with_a_palette_of_greys_are_grey(tmp_path, capsys, is_grey):
    folder = tmp_path / "slices"
    folder.mkdir()
    order = np.random.default_rng(0).permutation(256).astype(np.uint8)
    colours = np.stack([order, order, order if is_grey else order[::-1]], 1)
    for number in range(2):
        picture = Image.fromarray(VOLUME[number], "L").convert("P")
        picture.putdata(VOLUME[number].ravel().tolist())
        picture.putpalette(colours.ravel().tolist())
        picture.save(folder / f"{number}.png")
    (level,) = open_levels(f"{folder}#voxel_size=8")
    expected = order[VOLUME[:2]] if is_grey else VOLUME[:2]
    np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), expected)
    assert ("with a palette of colours" in capsys.readouterr().err) != is_grey


WAYS = np.array([(0, 0, VOXEL[0]), (VOXEL[2], 0, 0), (0, -VOXEL[1], 0)])
"""Of the axes z, x, y of a file, in x, y, z of the world."""


def turned_nifti(path: Path, stored: np.ndarray, ways: np.ndarray, origin: np.ndarray) -> Level:
    """A file in um whose axes point these ways, nm."""
    import nibabel

    way = np.eye(4)
    way[:3, :3] = ways.T / 1000
    way[:3, 3] = origin / 1000
    image = nibabel.Nifti1Image(stored, way, dtype=stored.dtype)
    image.header.set_xyzt_units("micron")
    image.to_filename(path)
    return open_levels(path)[0]


def turned_nrrd(path: Path, stored: np.ndarray, ways: np.ndarray, origin: np.ndarray) -> Level:
    """The same in nm, in the world of ITK."""
    import nrrd

    to_lps = (-1, -1, 1)
    header = {
        "space": "left-posterior-superior",
        "space directions": ways * to_lps,
        "space origin": origin * to_lps,
        "space units": ["nm"] * 3,
    }
    nrrd.write(str(path), stored, header)
    return open_levels(path)[0]


TURNED = [(turned_nifti, "cell.nii"), (turned_nrrd, "cell.nrrd")]


@pytest.mark.parametrize(("write", "name"), TURNED)
def test_axes_that_are_stored_in_another_order_are_those_of_the_world(tmp_path, write, name):
    stored = np.ascontiguousarray(VOLUME.transpose(0, 2, 1))
    level = write(tmp_path / name, stored, WAYS, np.array([PLACE[2], -PLACE[1], PLACE[0]]))
    for start, stop in BOXES:
        expected = VOLUME[tuple(map(slice, start, stop))]
        np.testing.assert_array_equal(level.read(start, stop), expected)
    np.testing.assert_allclose(level.scale, VOXEL, rtol=1e-6)
    np.testing.assert_allclose(level.translation, PLACE, atol=1e-3)


@pytest.mark.parametrize(("write", "name"), TURNED)
def test_a_box_of_a_volume_that_is_turned_lies_where_it_was_cut(tmp_path, write, name):
    turn = np.array([(0.8, 0.6, 0), (-0.6, 0.8, 0), (0, 0, 1)])
    ways = np.diag(VOXEL[::-1]) @ turn
    origin = np.array([100.0, 200, 300])
    raw = write(tmp_path / f"raw_{name}", VOLUME.T, ways, origin)
    part = write(tmp_path / name, VOLUME[3:, 5:, 7:].T, ways, origin + np.array([7, 5, 3]) @ ways)
    between = (part.translation - raw.translation) / raw.scale
    np.testing.assert_allclose(between, [3, 5, 7], atol=1e-3)
    check_directions(part, raw)


@pytest.mark.parametrize(("write", "name"), TURNED)
def test_labels_whose_axes_point_other_ways_than_those_of_raw_are_refused(tmp_path, write, name):
    """Both lie around 0, so that their boxes are the same."""
    origin = -np.multiply(VOLUME.T.shape, VOXEL[::-1]) / 2
    raw = write(tmp_path / f"raw_{name}", VOLUME.T, np.diag(VOXEL[::-1]), origin)
    back = np.array([-1, 1, 1])
    label = write(tmp_path / name, VOLUME.T, np.diag(VOXEL[::-1] * back), origin * back)
    np.testing.assert_allclose(label.translation, raw.translation, atol=1e-3)
    with pytest.raises(UserError, match=rf"{name}: its axes z, y, x point along 1 0 0; .* 0 0 -1"):
        check_crop(tmp_path, label, raw, raw.scale)
    (placed,) = open_levels(f"{tmp_path / name}#translation=0,0,0")
    check_directions(placed, raw)


def test_resolution_tags_alone_are_no_voxel_size(tmp_path):
    tifffile.imwrite(tmp_path / "dpi.tif", VOLUME, resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(UserError, match=r"nothing in it says how large a voxel is"):
        open_levels(tmp_path / "dpi.tif")


def test_a_voxel_size_that_no_em_has_is_said_and_not_used(tmp_path, capsys):
    path = tmp_path / writers.mrc(tmp_path, VOLUME)
    with mrcfile.open(path, "r+") as file:
        file.voxel_size = 1.0  # what IMOD writes where nobody says more
    with pytest.raises(UserError, match=r"nothing in it says how large a voxel is"):
        open_levels(path)
    assert "says voxels of 0.1 nm, which no EM has" in capsys.readouterr().err


def test_another_voxel_size_than_the_metadata_say_is_said(tmp_path, capsys):
    path = tmp_path / writers.n5_cellmap(tmp_path, VOLUME)
    levels = open_levels(f"{path}#voxel_size=16,12,8")
    np.testing.assert_allclose(levels[0].scale, (16, 12, 8))
    np.testing.assert_allclose(levels[1].scale, (32, 24, 16))
    np.testing.assert_allclose(levels[1].translation, (8, 6, 4))
    assert "voxels of 16 x 12 x 8 nm, as you say, and 8 x 6 x 4 nm" in capsys.readouterr().err


def test_a_missing_unit_is_said(tmp_path, capsys):
    path = tmp_path / writers.plain_n5(tmp_path, VOLUME)
    writers.attributes(path / "attributes.json", resolution=[4, 6, 8])
    np.testing.assert_allclose(open_levels(path)[0].scale, (8, 6, 4))
    assert "plain.n5: no unit, so lengths are taken as nm" in capsys.readouterr().err


def test_a_library_that_is_missing_is_named_with_its_pip_line(tmp_path, monkeypatch):
    path = tmp_path / writers.tiff_ome(tmp_path, VOLUME)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"TIFF files need tifffile, .* pip install tifff"):
        open_levels(path)


def test_a_class_in_two_files_is_refused_with_both_names(tmp_path):
    for name in ("mito.tif", "er.h5", "mito.h5", "mito.txt", "mito.tif.bak"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"class 'mito' is there as mito.h5 and as mito.tif; leave"):
        place.class_volume(tmp_path, "mito")
    assert place.class_volume(tmp_path, "er", "#voxel_size=8").name == "er.h5#voxel_size=8"
    (tmp_path / "mito").mkdir()
    assert place.class_volume(tmp_path, "mito").name == "mito"


@pytest.mark.parametrize("address", ["az://bucket/a.zarr", "ftp://host/a.zarr"])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(UserError, match=f"{address}: an address of a kind that is not read"):
        open_levels(address)


def test_links_of_viewers_and_files_are_taken(tmp_path):
    assert place.path_of("precomputed://gs://bucket/a") == place.path_of("gs://bucket/a")
    assert place.path_of(f"file://{tmp_path}/a.zarr") == tmp_path / "a.zarr"


def test_an_address_joins_prints_and_is_sent_to_processes_as_one():
    address = place.path_of("s3://bucket/cell.zarr") / "em"
    assert str(address) == f"{address}" == "s3://bucket/cell.zarr/em"
    assert str(address.parent.parent) == "s3://bucket"
    assert pickle.loads(pickle.dumps(address)) == address
    assert place.store_name(address) == "cell"
    assert place.path_of("https://host/a", Path("/data")).absolute() == place.path_of(
        "https://host/a"
    )
