"""Volumes for other programs: the same voxels at the same place, as those programs read them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import mrcfile
import nibabel
import nrrd
import numpy as np
import pytest
import tensorstore
import tifffile
import zarr

from common.data import export_volumes as module
from common.data.export_volumes import export
from common.data.volumes import ngff
from common.data.volumes.level import Level
from common.data.volumes.ngff import open_levels, write_multiscale
from common.data.volumes.sources.excerpt import INSTANCE_TYPE
from common.data.volumes.writers import hdf5, levels, mrc, ngff05, outgoing, tiff
from common.errors import FileError, UserError
from tests.full_disk import small_disk

SHAPE = (70, 45, 150)
SCALE = (8.0, 6.0, 4.0)
"""nm, z, y, x: all different, so that a mistaken axis is seen."""
PLACE = (80.0, 66.0, 44.0)
"""Of the first voxel: an odd number of voxels along y and x."""

RAW = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)
IDS = (np.indices(SHAPE).sum(0) // 30 * (np.indices(SHAPE)[2] > 40)).astype(np.uint16)

ENDINGS = (".tif", ".h5", ".mrc", ".nii.gz", ".nii", ".nrrd", ".precomputed", ".zarr")


def kind(name: str) -> dict:
    return {"cellmap": {"annotation": {"annotation_type": {"type": name}}}}


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A folder as process has it: cell.zarr/whole/raw, mito (objects), er (a mask)."""
    root = tmp_path_factory.mktemp("results")
    box = root / "cell.zarr/whole"
    write_multiscale(box / "raw", RAW, SCALE, PLACE, levels=2)
    write_multiscale(box / "mito", IDS, SCALE, PLACE, attributes=kind(INSTANCE_TYPE))
    mask = (IDS > 3).astype(np.uint8)
    write_multiscale(box / "er", mask, SCALE, PLACE, attributes=kind("semantic_segmentation"))
    return root


@pytest.fixture
def box(results) -> Path:
    return results / "cell.zarr/whole"


def whole(level: Level) -> np.ndarray:
    return level.read((0, 0, 0), level.shape)


@pytest.mark.parametrize("name", ["raw", "mito", "er"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_again(box, tmp_path, ending, name):
    said: list[str] = []
    [path] = export(str(box / name), tmp_path / f"out{ending}", say=said.append)
    [level, *_] = open_levels(path)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
    expected = whole(open_levels(box / name)[0])
    np.testing.assert_array_equal(whole(level), expected)
    np.testing.assert_allclose(level.scale, SCALE, rtol=1e-6)
    if ending in (".tif", ".mrc"):
        assert "out" + ending + "#translation=80,66,44" in said[0]
    else:
        np.testing.assert_allclose(level.translation, PLACE)


def test_imagej_reads_a_stack_with_its_voxel_size(box, tmp_path):
    [path] = export(str(box / "mito"), tmp_path / "mito.tif", say=silent)
    with tifffile.TiffFile(path) as file:
        assert file.is_imagej
        np.testing.assert_array_equal(file.asarray(), IDS)
        about = file.imagej_metadata
        assert (about["spacing"], about["unit"]) == (8, "nm")
        assert file.pages[0].tags["XResolution"].value == (1, 4)
        assert file.pages[0].tags["YResolution"].value == (1, 6)
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
        assert json.loads(about["Info"])["translation_nm"] == list(PLACE)


def test_what_imagej_cannot_hold_is_ome_and_large_files_have_long_addresses(
    box, tmp_path, monkeypatch
):
    monkeypatch.setattr(tiff, "LARGEST_CLASSIC", 1000)
    [path] = export(str(box / "raw"), tmp_path / "raw.tif", say=silent)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert file.is_bigtiff
        np.testing.assert_array_equal(file.asarray(), RAW)
        assert 'PhysicalSizeZ="8.0" PhysicalSizeZUnit="nm"' in file.ome_metadata
    np.testing.assert_allclose(open_levels(path)[0].scale, SCALE)


def test_h5py_and_mrcfile_read_voxels_and_size(box, tmp_path):
    export(str(box / "mito"), f"{tmp_path}/mito.h5:/labels/mito", say=silent)
    with h5py.File(tmp_path / "mito.h5") as file:
        array = file["labels/mito"]
        np.testing.assert_array_equal(array[...], IDS)
        np.testing.assert_allclose(array.attrs["resolution"], SCALE)
        np.testing.assert_allclose(array.attrs["offset"], np.subtract(PLACE, np.divide(SCALE, 2)))
        np.testing.assert_allclose(array.attrs["element_size_um"], np.divide(SCALE, 1000))
    [path] = export(str(box / "raw"), tmp_path / "raw.mrc", say=silent)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as file:
        np.testing.assert_array_equal(file.data, RAW)
        np.testing.assert_allclose(file.voxel_size.tolist(), np.multiply(SCALE[::-1], 10))
        np.testing.assert_allclose(file.header.origin.tolist(), np.multiply(PLACE[::-1], 10))


def test_nibabel_and_pynrrd_read_voxels_size_and_place(box, tmp_path):
    export(str(box / "mito"), tmp_path / "mito.nii.gz", say=silent)
    image = nibabel.load(tmp_path / "mito.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), IDS.T)
    assert (image.get_data_dtype(), image.header.get_xyzt_units()[0]) == ("uint16", "micron")
    # um, x, y, z
    expected = np.diag([*np.divide(SCALE[::-1], 1000), 1])
    expected[:3, 3] = np.divide(PLACE[::-1], 1000)
    for affine in (image.affine, image.get_qform()):
        np.testing.assert_allclose(affine, expected, rtol=1e-6, atol=1e-9)
    export(str(box / "mito"), tmp_path / "mito.nrrd", say=silent)
    values, header = nrrd.read(str(tmp_path / "mito.nrrd"))
    np.testing.assert_array_equal(values, IDS.T)
    np.testing.assert_array_equal(header["space directions"], np.diag(SCALE[::-1]))
    np.testing.assert_array_equal(header["space origin"], PLACE[::-1])
    assert header["space units"] == ["nm", "nm", "nm"]


def test_an_axis_that_version_1_of_nifti_does_not_count(tmp_path):
    write_multiscale(tmp_path / "long.zarr", np.ones((1, 2, 40_000), np.uint8), SCALE)
    [path] = export(str(tmp_path / "long.zarr"), tmp_path / "long.nii.gz", say=silent)
    assert nibabel.load(path).header.sizeof_hdr == 540
    assert whole(open_levels(path)[0]).sum() == 80_000


def test_tensorstore_reads_every_level_of_a_precomputed_volume_in_its_place(box, tmp_path):
    """Voxel i of a coarser level lies over voxels 2i and 2i + 1, whatever the first one is."""
    [path] = export(str(box / "mito"), tmp_path / "mito.precomputed", say=silent)
    info = json.loads((path / "info").read_text())
    assert (info["type"], info["data_type"]) == ("segmentation", "uint32")
    store = {"driver": "file", "path": str(path)}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": store}
    fine = tensorstore.open(spec | {"scale_index": 0}).result()
    half = tensorstore.open(spec | {"scale_index": 1}).result()
    assert fine.domain.origin == (11, 11, 10, 0)
    np.testing.assert_array_equal(fine[..., 0].read().result().T, IDS)
    # along x alone: voxels are longer along y and z
    assert [unit.multiplier for unit in half.schema.dimension_units[:3]] == [8, 6, 8]
    for x in (12, 13, 81, 159):
        of_fine = fine[x // 2 * 2 : x // 2 * 2 + 1, :, :, 0].read().result()
        of_half = half[x // 2 : x // 2 + 1, :, :, 0].read().result()
        np.testing.assert_array_equal(of_half, of_fine)
    # of two voxels the first lies outside
    np.testing.assert_array_equal(
        half[5, :, :, 0].read().result(), fine[11, :, :, 0].read().result()
    )


def test_a_volume_between_voxels_is_said_to_be_moved(tmp_path, capsys):
    write_multiscale(tmp_path / "raw.zarr", RAW[:8, :8, :8], (8, 8, 8), (4, 0, 10))
    export(str(tmp_path / "raw.zarr"), tmp_path / "raw.precomputed", say=silent)
    assert "written -4, 0, -2 nm from its place" in capsys.readouterr().err


def test_ngff_is_in_shards_and_says_what_labels_are(box, tmp_path):
    [path] = export(str(box / "er"), tmp_path / "er.zarr", say=silent)
    ome = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["version"] == "0.5"
    assert ome["image-label"]["properties"] == [{"label-value": 1, "class": "er"}]
    array = json.loads((path / "s0/zarr.json").read_text())
    assert array["codecs"][0]["name"] == "sharding_indexed"
    fine, half, *_ = open_levels(path)
    np.testing.assert_array_equal(whole(half), ngff.pick(whole(fine), (1, 1, 2)))
    np.testing.assert_allclose(half.translation, (80, 66, 46))


def test_images_are_averaged_and_labels_are_not(box, tmp_path):
    [path] = export(str(box / "raw"), tmp_path / "raw.zarr", say=silent)
    assert "image-label" not in (path / "zarr.json").read_text()
    _, half, *_ = open_levels(path)
    np.testing.assert_array_equal(whole(half), ngff.block_mean(RAW, (1, 1, 2)))


def test_a_box_and_a_coarser_level(box, tmp_path):
    [path] = export(str(box / "raw"), tmp_path / "part.h5", roi="100:300,:,60:100", say=silent)
    [level] = open_levels(path)
    np.testing.assert_array_equal(whole(level), RAW[3:28, :, 4:14])
    np.testing.assert_allclose(level.translation, (104, 66, 60))
    half = open_levels(box / "raw")[1]
    [path] = export(str(box / "raw"), tmp_path / "half.h5", scale=(16, 12, 8), say=silent)
    np.testing.assert_array_equal(whole(open_levels(path)[0]), whole(half))
    np.testing.assert_allclose(open_levels(path)[0].translation, half.translation)
    with pytest.raises(UserError, match="no level of 5 nm; write --scale 8 x 6 x 4, 16 x 12 x 8"):
        export(str(box / "raw"), tmp_path / "x.h5", scale=(5, 5, 5), say=silent)


def test_the_command_writes_all_classes_of_a_folder_and_leaves_them_alone_then(
    results, tmp_path, run
):
    words = ("export", results, tmp_path / "out", "--format", "tiff", "--classes", "mito,er")
    code, out, _ = run(*words)
    assert code == 0
    assert len(out.splitlines()) == 2
    files = sorted((tmp_path / "out").rglob("*.*"))
    assert [file.name for file in files] == ["er.tif", "mito.tif"]
    assert files[0].parent == tmp_path / "out/cell/whole"
    before = [file.stat().st_mtime_ns for file in files]
    code, out, _ = run(*words)
    assert (code, out.count("there already")) == (0, 2)
    assert [file.stat().st_mtime_ns for file in files] == before
    box = results / "cell.zarr/whole"
    [path] = export(str(box), tmp_path / "one", format="mrc", classes=["er"], say=silent)
    assert path == tmp_path / "one/er.mrc"


@pytest.mark.parametrize("ending", ENDINGS)
def test_something_else_is_not_replaced_unless_asked(box, tmp_path, ending):
    out = tmp_path / f"out{ending}"
    export(str(box / "er"), out, say=silent)
    with pytest.raises(UserError, match=r"there already, and not what this .* --overwrite"):
        export(str(box / "mito"), out, say=silent)
    export(str(box / "mito"), out, overwrite=True, say=silent)
    np.testing.assert_array_equal(whole(open_levels(out)[0]), IDS)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_labels_that_were_edited_since_are_not_taken_for_those_that_were_written(tmp_path):
    """Proofreading writes chunks, and neither metadata nor the folder of the volume."""
    cells, out = tmp_path / "cells", tmp_path / "cells.tif"
    write_multiscale(cells, IDS, SCALE, PLACE, attributes=kind(INSTANCE_TYPE))
    export(str(cells), out, say=silent)
    edited = zarr.open_array(str(cells / "s0"), mode="r+")
    edited[:8] = 999
    with pytest.raises(UserError, match="there already, and not what this command writes"):
        export(str(cells), out, say=silent)
    export(str(cells), out, overwrite=True, say=silent)
    assert (tifffile.imread(out)[:8] == 999).all()


class Broken(Exception):
    """Stands for the end of the process."""


def counting(monkeypatch, most: int) -> list:
    """Let Level.read raise after so many boxes; a list of those that were read."""
    read = Level.read
    boxes: list = []

    def counted(self, start, stop):
        if len(boxes) == most:
            raise Broken
        boxes.append(tuple(start))
        return read(self, start, stop)

    monkeypatch.setattr(Level, "read", counted)
    return boxes


@pytest.mark.parametrize("ending", [".precomputed", ".zarr"])
def test_a_folder_that_was_begun_is_gone_on_with(box, tmp_path, monkeypatch, ending):
    monkeypatch.setattr("common.data.volumes.writers.precomputed.CHUNK", 40)
    monkeypatch.setattr("common.data.volumes.writers.ngff05.CHUNK", 20)
    monkeypatch.setattr("common.data.volumes.writers.ngff05.SHARD", 40)
    out = tmp_path / f"out{ending}"
    with monkeypatch.context() as patch:
        counting(patch, 9)
        with pytest.raises(Broken):
            export(str(box / "raw"), out, say=silent)
    assert not out.exists()
    boxes = counting(monkeypatch, 99)
    export(str(box / "raw"), out, say=silent)
    # 2 x 2 x 4 blocks, of which the last that was read may not have been on disk
    assert 16 - 9 <= len(boxes) <= 16 - 9 + 2
    monkeypatch.undo()
    np.testing.assert_array_equal(whole(open_levels(out)[0]), RAW)


def test_a_shard_is_whole_or_not_there_where_its_export_is_interrupted():
    """One that had lost some inner chunks was taken for whole when the export went on."""
    chunk_grid = {"name": "regular", "configuration": {"chunk_shape": [64] * 3}}
    about = {"shape": [64, 64, 128], "data_type": "uint8", "chunk_grid": chunk_grid}
    about["codecs"] = [ngff05._sharding([8] * 3)]

    def read(start, stop):
        if start[2]:
            raise Broken  # while the first shard is on its way
        return np.ones(stop - start, np.uint8)

    left = []
    for _ in range(6):
        array = levels.create({"driver": "zarr3", "kvstore": "memory://", "metadata": about})
        extent = levels.Extent(np.zeros(3, int), np.array([64, 64, 128]), np.array(SCALE))
        stored = levels.Stored(extent, array, (64, 64, 64), lambda start, stop: Path("none"))
        with pytest.raises(Broken):
            stored.fill(read, lambda voxels: None)
        left.append(array)
    assert {int(array[..., :64].read().result().sum()) for array in left} <= {0, 64**3}


@pytest.mark.parametrize("ending", [".tif", ".h5", ".mrc", ".nii", ".nrrd"])
def test_a_file_that_was_begun_leaves_nothing(box, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(hdf5, "BLOCK", 64)
    monkeypatch.setattr(mrc, "BLOCK", 64)
    counting(monkeypatch, 1)
    with pytest.raises(Broken):
        export(str(box / "raw"), tmp_path / f"out{ending}", say=silent)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_is_a_sentence_and_the_same_command_ends_it(tmp_path, ending):
    noise = np.random.default_rng(2).integers(0, 256, (80, 128, 128), np.uint8)
    write_multiscale(tmp_path / "raw.zarr", noise, SCALE)
    with small_disk(tmp_path / "small", 16) as disk:
        disk.leave(500)
        out = disk.folder / f"out{ending}"
        with pytest.raises(FileError, match=r"(No space left on device|free, and an MRC).*"):
            export(str(tmp_path / "raw.zarr"), out, say=silent)
        assert not out.exists()
        disk.free()
        export(str(tmp_path / "raw.zarr"), out, say=silent)
        np.testing.assert_array_equal(whole(open_levels(out)[0]), noise)


def test_slabs_are_as_thin_as_memory_asks(box, tmp_path, monkeypatch):
    monkeypatch.setattr(outgoing, "SLAB_BYTES", 5 * RAW[0].nbytes)
    read = Level.read
    depths = []

    def noted(self, start, stop):
        depths.append(stop[0] - start[0])
        return read(self, start, stop)

    monkeypatch.setattr(Level, "read", noted)
    export(str(box / "raw"), tmp_path / "raw.tif", say=silent)
    assert max(depths) == 5


@pytest.mark.parametrize(
    ("largest", "dtype"), [(127, "int8"), (128, "int16"), (65535, "uint16"), (65536, "float32")]
)
def test_mrc_takes_the_smallest_type_that_holds_ids(tmp_path, largest, dtype):
    ids = np.zeros((4, 4, 4), np.uint32)
    ids[1, 2, 3] = largest
    write_multiscale(tmp_path / "ids.zarr", ids, SCALE)
    [path] = export(str(tmp_path / "ids.zarr"), tmp_path / "ids.mrc", say=silent)
    with mrcfile.open(path) as file:
        assert file.data.dtype == dtype
        assert file.data.max() == largest


@pytest.mark.parametrize(
    ("name", "out", "options", "sentence"),
    [
        ("", "out", {"format": "tiff", "classes": ["nuc"]}, "no class nuc; write some of er, mito"),
        ("", "out", {}, "which format.* --format tiff|hdf5"),
        ("", "out", {"format": "gif"}, "--format gif; write one of tiff, hdf5"),
        ("", "out.tif", {}, "one file for several volumes; write the name of a folder"),
        ("raw", "out", {"format": "tiff"}, "write a name that ends in .tif"),
        ("raw", "o.precomputed", {"values": "objects", "roi": "9:8,:,:"}, "no box within"),
        ("raw", "out", {"format": "ply"}, "an image, and ply holds surfaces of masks"),
        ("mito", "out.tif", {"with_meshes": True}, "for --format precomputed"),
        ("none", "out.tif", {}, "nothing is there"),
    ],
)
def test_bad_input_is_one_sentence(box, tmp_path, name, out, options, sentence):
    with pytest.raises((UserError, FileNotFoundError), match=sentence):
        export(str(box / name), tmp_path / out, **options, say=silent)
    assert not list(tmp_path.iterdir())


def test_ids_that_no_type_holds_and_unfinished_volumes_are_refused(tmp_path):
    ids = np.full((4, 4, 4), 2**33, np.uint64)
    write_multiscale(tmp_path / "in/ids", ids, SCALE)
    with pytest.raises(UserError, match="values from 0 to 8589934592, and tiff holds uint8"):
        export(str(tmp_path / "in/ids"), tmp_path / "ids.tif", say=silent)
    grid = open_levels(tmp_path / "in/ids")[0].grid
    ngff.start_multiscale(tmp_path / "in/begun", grid, np.uint8, (4, 4, 4))
    with pytest.raises(UserError, match="begun: half-written"):
        export(str(tmp_path / "in"), tmp_path / "out", format="tiff", say=silent)


def test_a_chunk_that_cannot_be_written_is_said(tmp_path):
    array = levels.create(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(tmp_path / "a")},
            "metadata": {"shape": [4, 4, 4], "data_type": "uint8"},
        }
    )
    (tmp_path / "a/c").write_text("in the way")
    extent = levels.Extent(np.zeros(3, int), np.full(3, 4), np.ones(3))
    stored = levels.Stored(extent, array, (4, 4, 4), lambda *_: tmp_path / "none")
    with pytest.raises(FileError, match=r"a chunk could not be written .* goes on"):
        stored.fill(lambda start, stop: np.ones(stop - start, np.uint8), silent)


def test_every_format_is_an_option(run):
    _, out, _ = run("export", "--help")
    assert "|".join(module.FORMATS) in "".join(out.split())
