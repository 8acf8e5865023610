"""Volumes of one's own as a dataset: the same voxels at the same place, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from common.data import import_volumes, layout, ngff
from common.data.annotation import INSTANCE_TYPE, LabelReader, encoding_of
from common.data.import_volumes import import_data
from common.data.level import Level
from common.data.ngff import open_levels
from common.errors import UserError
from tests.data import foreign_writers as writers

SHAPE = (70, 90, 150)
RAW = np.random.default_rng(1).integers(1, 255, SHAPE, np.uint8)
MITO = (np.indices(SHAPE).sum(0) % 40 < 20).astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    """raw.tif, mito.tif and er.tif, without a voxel size."""
    for name, volume in (("raw", RAW), ("mito", MITO), ("er", 1 - MITO)):
        tifffile.imwrite(tmp_path / f"{name}.tif", volume, compression="zlib")
    return tmp_path


def imported(files, **more):
    labels = {"mito": str(files / "mito.tif"), "er": str(files / "er.tif")}
    settings = {"labels": labels, "voxel_size": (8.0, 8.0, 8.0), "data": files / "data", **more}
    return import_data(str(files / "raw.tif"), "cell", **settings, say=lambda _: None)


def voxels(group) -> np.ndarray:
    level = open_levels(group)[0]
    return level.read((0, 0, 0), level.shape)


def test_raw_and_labels_are_written_in_the_layout(files):
    store = imported(files)
    assert store == files / "data" / layout.store("cell")
    np.testing.assert_array_equal(voxels(store / layout.RAW), RAW)
    np.testing.assert_array_equal(voxels(store / layout.LABELS / "crop1/mito"), MITO)
    finest, half, *_ = open_levels(store / layout.RAW)
    np.testing.assert_allclose(finest.scale, 8)
    np.testing.assert_array_equal(half.read((0, 0, 0), half.shape), ngff.block_mean(RAW, (2, 2, 2)))


def test_boxes_of_the_labels_become_crops_where_they_were(files):
    store = imported(files, crops=["0:30,:,:", "40:70,10:60,20:100"])
    level = open_levels(store / layout.LABELS / "crop2/er")[0]
    np.testing.assert_array_equal(voxels(level.group), 1 - MITO[40:70, 10:60, 20:100])
    np.testing.assert_allclose(level.translation, np.multiply((40, 10, 20), 8))
    assert {path.name for path in (store / layout.LABELS).iterdir()} == {"crop1", "crop2"}


def test_the_command_leads_to_a_data_split(files, run):
    data = files / "data"
    labels = f"mito={files / 'mito.tif'},er={files / 'er.tif'}#translation=0,0,0"
    words = ("--dataset", "cell", "--voxel-size", 8, "--labels", labels, "--data", data)
    boxes = ("--crop", "0:30,:,:", "--crop", "40:70,:,:")
    code, text, error = run("import-data", files / "raw.tif", *words, *boxes)
    assert code == 0, error
    assert "cell: 2 crops; list them with" in text
    split = files / "datasplit.csv"
    code, _, error = run(
        "make-datasplit",
        split,
        "--data",
        data,
        "--classes",
        "mito,er",
        "--scale",
        8,
        "--by",
        "crop",
    )
    assert code == 0, error
    assert split.read_text().count("cell.zarr") == 4


def test_an_import_that_was_cut_off_goes_on(files, monkeypatch):
    monkeypatch.setattr(import_volumes, "CHUNK", 40)
    plain = Level.read
    reads = []

    def cut_off(level, start, stop):
        reads.append(start)
        if len(reads) == 9:
            raise KeyboardInterrupt
        return plain(level, start, stop)

    monkeypatch.setattr(Level, "read", cut_off)
    with pytest.raises(KeyboardInterrupt):
        imported(files, labels={})
    with pytest.raises(UserError, match="half-written"):
        open_levels(files / "data" / layout.raw("cell"))
    reads.clear()
    reads.extend([None] * 9)  # past the one that is cut off
    store = imported(files, labels={})
    assert len(reads) - 9 == 2 * 3 * 4 - 8
    monkeypatch.setattr(Level, "read", plain)
    np.testing.assert_array_equal(voxels(store / layout.RAW), RAW)


def test_what_is_there_is_left_alone_and_what_is_another_s_refused(files):
    store = imported(files)
    before = (store / layout.RAW / "s0/.zarray").stat().st_mtime_ns
    imported(files)
    assert (store / layout.RAW / "s0/.zarray").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"fibsem-uint8: there already, written from .*raw.tif"):
        imported(files, voxel_size=(4.0, 4.0, 4.0))
    imported(files, voxel_size=(4.0, 4.0, 4.0), overwrite=True)
    np.testing.assert_allclose(open_levels(store / layout.RAW)[0].scale, 4)


def test_ids_of_objects_are_said_to_be(files):
    ids = np.arange(RAW.size, dtype=np.uint32).reshape(SHAPE) // 100
    tifffile.imwrite(files / "mito.tif", ids)
    labels = {"mito": str(files / "mito.tif")}
    with pytest.raises(
        UserError, match=r"more than 1000 different values for class mito, .*--inst"
    ):
        imported(files, labels=labels)
    store = imported(files, labels=labels, instances=["mito"])
    level = open_levels(store / layout.LABELS / "crop1/mito")[0]
    np.testing.assert_array_equal(voxels(level.group), ids)
    assert encoding_of(level, "mito").is_instance
    assert INSTANCE_TYPE in (level.group / ".zattrs").read_text()


def test_classes_are_cut_out_of_a_volume_of_several(files):
    several = np.random.default_rng(2).integers(0, 4, SHAPE, np.uint8)
    several[:5] = 9
    tifffile.imwrite(files / "all.tif", several)
    labels = {
        "mito": f"{files}/all.tif#value=1",
        "er": f"{files}/all.tif#value=3&translation=0,0,0",
    }
    store = imported(files, labels=labels, unknown=9)
    for name, value in (("mito", 1), ("er", 3)):
        level = open_levels(store / layout.LABELS / "crop1" / name)[0]
        positive, unknown = LabelReader(level, name).read((0, 0, 0), SHAPE)
        np.testing.assert_array_equal(positive, several == value)
        np.testing.assert_array_equal(unknown, several == 9)


def test_another_code_of_unknown_is_kept_with_the_labels(files):
    mito = MITO.copy()
    mito[:, :10] = 7
    tifffile.imwrite(files / "mito.tif", mito)
    store = imported(files, labels={"mito": f"{files}/mito.tif"}, unknown=7)
    level = open_levels(store / layout.LABELS / "crop1/mito")[0]
    positive, unknown = LabelReader(level, "mito").read((0, 0, 0), SHAPE)
    np.testing.assert_array_equal(positive, mito == 1)
    np.testing.assert_array_equal(unknown, mito == 7)


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (
            MITO[:50],
            r"mito.tif: has 50 x 90 x 150 voxels .* write where .*mito.tif#translation=0,0,0",
        ),
        (
            MITO.astype(np.float32),
            "mito.tif: float32 for class mito; write labels as whole numbers",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_anything_is_written(files, volume, words):
    tifffile.imwrite(files / "mito.tif", volume)
    with pytest.raises(UserError, match=words):
        imported(files)
    assert not (files / "data").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"crops": ["0:10"]}, "--crop 0:10: no box within 70 x 90 x 150 voxels"),
        ({"crops": ["80:90,:,:"]}, "no box within"),
        ({"instances": ["nuc"]}, "--instances nuc: no such class in --labels"),
        ({"voxel_size": None}, "nothing in it says how large a voxel is"),
    ],
)
def test_options_are_checked(files, more, words):
    with pytest.raises(UserError, match=words):
        imported(files, **more)


def test_a_volume_of_another_program_is_imported_where_it_is(tmp_path):
    name = writers.n5_cosem(tmp_path, writers.VOLUME)
    store = import_data(str(tmp_path / name), "cell", data=tmp_path / "data", say=lambda _: None)
    level = open_levels(store / layout.RAW)[0]
    np.testing.assert_array_equal(voxels(level.group), writers.VOLUME)
    np.testing.assert_allclose(level.translation, writers.PLACE)
    np.testing.assert_allclose(level.scale, writers.VOXEL)
