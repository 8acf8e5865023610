"""Volumes of one's own as a dataset: the same voxels at the same place, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from common.data.own import jobs, writing
from common.data.splits.catalogue import scan
from common.data.volumes import layout, ngff
from common.data.volumes.annotation import encoding_of
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.ngff import open_levels
from common.data.volumes.sources.excerpt import INSTANCE_TYPE
from common.data.volumes.sources.tiff import Pages
from common.errors import UserError
from tests.data import foreign_writers as writers
from tests.data.own_import import import_data
from tests.volumes import voxels_of

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


def test_raw_and_labels_are_written_in_the_layout(files):
    store = imported(files)
    assert store == files / "data" / layout.store("cell")
    np.testing.assert_array_equal(voxels_of(store / layout.RAW), RAW)
    np.testing.assert_array_equal(voxels_of(store / layout.LABELS / "crop1/mito"), MITO)
    finest, half, *_ = open_levels(store / layout.RAW)
    np.testing.assert_allclose(finest.scale, 8)
    np.testing.assert_array_equal(half.read((0, 0, 0), half.shape), ngff.block_mean(RAW, (2, 2, 2)))


def test_boxes_of_the_labels_become_crops_where_they_were(files):
    store = imported(files, crops=["0:30,:,:", "40:70,10:60,20:100"])
    level = open_levels(store / layout.LABELS / "crop2/er")[0]
    np.testing.assert_array_equal(voxels_of(level.group), 1 - MITO[40:70, 10:60, 20:100])
    np.testing.assert_allclose(level.translation, np.multiply((40, 10, 20), 8))
    assert {path.name for path in (store / layout.LABELS).iterdir()} == {"crop1", "crop2"}


def labels_of(store, crop, name):
    """Where a class is, and where that is unknown."""
    level = open_levels(store / layout.LABELS / crop / name)[0]
    return LabelReader(level, name).read((0, 0, 0), level.shape)


def test_blocks_of_the_labels_become_crops_with_gaps_between(files):
    store = imported(files, blocks="3", gap=6)
    for number, start in enumerate((0, 52, 104)):
        level = open_levels(store / layout.LABELS / f"crop{number + 1}" / "mito")[0]
        np.testing.assert_allclose(level.translation, (0, 0, 8 * start))
        np.testing.assert_array_equal(voxels_of(level.group), MITO[..., start : start + 46])


def test_the_command_leads_to_a_data_split(files, run, monkeypatch):
    monkeypatch.chdir(files)
    (files / "my_experiment").mkdir()
    data = files / "data"
    labels = f"mito={files / 'mito.tif'},er={files / 'er.tif'}#translation=0,0,0"
    words = ("--dataset", "cell", "--voxel-size", 8, "--labels", labels, "--data", data)
    code, text, error = run("import-data", files / "raw.tif", *words, "--blocks", 2)
    assert code == 0, error
    assert "next: python -m cellmap_segmentation_challenge new my_experiment2 --own cell" in text
    command = next(line for line in text.splitlines() if " make-datasplit " in line)
    options = command.replace("EXPERIMENT", str(files)).split(" make-datasplit ")[1]
    code, _, error = run("make-datasplit", *options.split())
    assert code == 0, error
    rows = (files / "datasplit.csv").read_text()
    assert rows.count('"train","cell/cell.zarr"') == rows.count('"validate","cell/cell.zarr"') == 1


def test_a_dataset_has_a_picture_with_labels_over_the_raw(files, run):
    tifffile.imwrite(files / "raw.tif", np.full(SHAPE, 90, np.uint8))
    one_side = np.zeros(SHAPE, np.uint8)
    one_side[:, :, 75:] = 1
    tifffile.imwrite(files / "mito.tif", one_side)
    labels = f"mito={files / 'mito.tif'}"
    words = ("--dataset", "cell", "--voxel-size", 8, "--labels", labels, "--data", files / "data")
    code, text, error = run("import-data", files / "raw.tif", *words)
    assert code == 0, error
    assert f"{files / 'data/cell/cell.png'}: a picture of it" in text
    picture = np.asarray(Image.open(files / "data/cell/cell.png")).astype(int)
    panels = picture[:-40]  # without the legend
    left, right = panels[:, :160], panels[:, 160:320]  # of the panel y, x
    is_pink = [np.mean(half[..., 2] > half[..., 1] + 20) for half in (left, right)]
    assert is_pink[0] == 0
    assert is_pink[1] > 0.1


# Links


def test_a_link_is_read_as_the_file_that_it_stands_for(files):
    mito = MITO.copy()
    mito[:, :10] = 7
    tifffile.imwrite(files / "mito.tif", mito)
    more = {"crops": ["5:30,:,10:"], "unknown": 7}
    store = imported(files, link=True, **more)
    assert sorted(path.name for path in (store / layout.RAW).iterdir()) == ["link.json"]
    np.testing.assert_array_equal(voxels_of(store / layout.RAW), RAW)
    copy = imported(files, data=files / "copied", **more)
    for one, other in zip(
        labels_of(store, "crop1", "mito"), labels_of(copy, "crop1", "mito"), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    crops = [open_levels(root / layout.LABELS / "crop1/mito")[0] for root in (store, copy)]
    np.testing.assert_allclose(crops[0].translation, crops[1].translation)
    np.testing.assert_allclose(crops[0].scale, crops[1].scale)
    assert [crop.path for crop in scan(files / "data")[0]] == ["cell/crop1"]


def test_a_link_to_a_volume_of_another_program_keeps_its_levels_and_place(tmp_path):
    path = tmp_path / writers.n5_cosem(tmp_path, writers.VOLUME)
    store = import_data(
        f"{path}#translation=8,16,24", "cell", link=True, data=tmp_path / "data", say=print
    )
    finest, coarse = open_levels(store / layout.RAW)
    np.testing.assert_array_equal(voxels_of(store / layout.RAW), writers.VOLUME)
    np.testing.assert_array_equal(
        coarse.read((0, 0, 0), coarse.shape), writers.half(writers.VOLUME)
    )
    np.testing.assert_allclose(finest.translation, (8, 16, 24))
    np.testing.assert_allclose(finest.scale, writers.VOXEL)


def test_a_link_to_what_is_gone_or_a_damaged_link_is_one_sentence(files):
    store = imported(files, link=True)
    (files / "raw.tif").rename(files / "other.tif")
    with pytest.raises(FileNotFoundError, match=r"fibsem-uint8: a link to what is not there now"):
        open_levels(store / layout.RAW)
    (store / layout.RAW / "link.json").write_text('{"from": 3}')
    with pytest.raises(UserError, match=r"link.json: not what import-data --link writes"):
        open_levels(store / layout.RAW)


def test_a_copy_and_a_link_are_told_apart(files):
    store = imported(files)
    with pytest.raises(UserError, match=r"there already, written from .*raw.tif.* for RAW$"):
        imported(files, labels={}, link=True)
    with pytest.raises(UserError, match=r"there already, written from .*mito.tif"):
        imported(files, link=True)
    imported(files, link=True, overwrite=True)
    assert not (store / layout.RAW / "s0").exists()
    with pytest.raises(UserError, match=r"there already, a link to .*raw.tif"):
        imported(files, labels={})
    imported(files, overwrite=True)
    assert not (store / layout.RAW / "link.json").exists()
    np.testing.assert_array_equal(voxels_of(store / layout.RAW), RAW)


def test_a_dataset_is_not_made_of_itself(files):
    store = imported(files)
    raw = str(store / layout.RAW)
    with pytest.raises(UserError, match=r"lies in .*cell.zarr, which is to be written"):
        import_data(raw, "cell", data=files / "data", overwrite=True, say=print)
    assert open_levels(store / layout.RAW)


@pytest.mark.parametrize(
    ("compression", "cut_at", "left"),
    # bars of chunks, of 2 x 3 x 4; and pages, of which 40 make a layer of chunks
    [(None, 9, 24 - 8), ("zlib", 45, 70 - 40)],
)
def test_an_import_that_was_cut_off_goes_on(files, monkeypatch, compression, cut_at, left):
    monkeypatch.setattr(jobs, "CHUNK", 40)
    monkeypatch.setattr(writing, "BAR_BYTES", 1)
    tifffile.imwrite(files / "raw.tif", RAW, compression=compression)
    plain = Pages.__getitem__
    reads = []

    def cut_off(pages, index):
        reads.append(index)
        if len(reads) == cut_at:
            raise KeyboardInterrupt
        return plain(pages, index)

    monkeypatch.setattr(Pages, "__getitem__", cut_off)
    with pytest.raises(KeyboardInterrupt):
        imported(files, labels={})
    with pytest.raises(UserError, match="half-written"):
        open_levels(files / "data" / layout.raw("cell"))
    store = imported(files, labels={})
    assert len(reads) - cut_at == left
    np.testing.assert_array_equal(voxels_of(store / layout.RAW), RAW)
    hidden = [path.name for path in store.iterdir() if path.name.startswith(".")]
    assert not hidden


def test_what_is_there_is_left_alone_and_what_is_another_s_refused(files):
    store = imported(files)
    before = (store / layout.RAW / "s0/.zarray").stat().st_mtime_ns
    imported(files)
    assert (store / layout.RAW / "s0/.zarray").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"fibsem-uint8: there already, written from .*raw.tif"):
        imported(files, voxel_size=(4.0, 4.0, 4.0))
    imported(files, voxel_size=(4.0, 4.0, 4.0), overwrite=True)
    np.testing.assert_allclose(open_levels(store / layout.RAW)[0].scale, 4)


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("instances", [(), ("mito",)])
def test_whole_numbers_that_are_written_as_floats_are_labels(files, link, instances):
    tifffile.imwrite(files / "mito.tif", 300 * MITO.astype(np.float32))
    store = imported(files, link=link, instances=instances)
    level = open_levels(store / layout.LABELS / "crop1/mito")[0]
    labels = level.read((0, 0, 0), level.shape)
    assert labels.dtype == level.array.dtype == np.uint32
    np.testing.assert_array_equal(labels, 300 * MITO.astype(int))


@pytest.mark.parametrize("value", [np.nan, -1.0, 2.0**40])
def test_floats_that_are_no_labels_are_one_sentence(files, value):
    volume = MITO.astype(np.float64)
    volume[5, 5, 5] = value
    tifffile.imwrite(files / "mito.tif", volume)
    with pytest.raises(UserError, match=re.escape(f"float64 with the value {value:g};")):
        imported(files)


@pytest.mark.parametrize("background", [0, 1])
def test_ids_without_a_background_are_noted(files, capsys, background):
    """Programs that number pieces from 1 on begin with what is around them."""
    tifffile.imwrite(files / "mito.tif", (background + MITO).astype(np.uint8))
    imported(files, instances=("mito",))
    said = "crop1/mito: several ids and no voxel of 0, so that nothing is known to be no mito"
    assert (said in " ".join(capsys.readouterr().err.split())) == bool(background)


def test_ids_that_a_float_cannot_tell_apart_are_refused(files):
    """2^24 + 1 is stored as 2^24 in float32, another object."""
    volume = MITO.astype(np.float32)
    volume[5, 5, 5] = 2**24 + 2
    tifffile.imwrite(files / "mito.tif", volume)
    with pytest.raises(UserError, match="id 16777218 in float32, which skips numbers beyond"):
        imported(files, instances=("mito",))


def test_labels_that_do_not_say_their_voxel_size_have_that_of_a_raw_of_as_many(tmp_path):
    raw = tmp_path / writers.nrrd(tmp_path, writers.VOLUME)
    mask = (writers.VOLUME > 99).astype(np.uint8)
    tifffile.imwrite(tmp_path / "mito.tif", mask)
    labels = {"mito": str(tmp_path / "mito.tif")}
    store = import_data(str(raw), "cell", labels=labels, data=tmp_path / "data", say=print)
    level = open_levels(store / layout.LABELS / "crop1/mito")[0]
    np.testing.assert_allclose(level.scale, writers.VOXEL)
    np.testing.assert_allclose(level.translation, writers.PLACE)
    tifffile.imwrite(tmp_path / "mito.tif", mask[1:])
    with pytest.raises(UserError, match=r"mito.tif: nothing in it says how large a voxel is"):
        import_data(str(raw), "other", labels=labels, data=tmp_path / "data", say=print)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", "35 x 45 x 75 voxels of 16 nm, as long as the raw, and so taken to cover it"),
        ("&translation=0,0,0", r"0.25 of its voxels away from it; .*#translation=4,4,4 covers"),
        ("&translation=4,4,4", ""),
    ],
)
def test_coarser_labels_cover_the_raw_or_it_is_said(files, capsys, place, words):
    tifffile.imwrite(files / "mito.tif", MITO[::2, ::2, ::2])
    labels = {"mito": f"{files / 'mito.tif'}#voxel_size=16{place}"}
    store = imported(files, labels=labels)
    said = capsys.readouterr().err
    assert re.search(words, said) if words else "mito.tif" not in said
    level = open_levels(store / layout.LABELS / "crop1/mito")[0]
    np.testing.assert_allclose(level.translation, 0 if "=0" in place else 4)


def test_a_voxel_size_that_a_file_contradicts_is_said(tmp_path, capsys):
    path = tmp_path / writers.mrc(tmp_path, writers.VOLUME)
    import_data(str(path), "cell", voxel_size=(8, 8, 8), data=tmp_path / "data", say=print)
    said = capsys.readouterr().err
    assert "says voxels of 8 x 6 x 4 nm itself, and --voxel-size is for volumes that say" in said


@pytest.mark.parametrize("name", ["Mito", "mitto"])
def test_a_class_named_almost_as_one_of_the_table_is_said(files, capsys, name):
    imported(files, labels={name: str(files / "mito.tif")})
    assert f"class {name}: one of your own; that of the challenge's table is mito" in (
        capsys.readouterr().err
    )


def test_without_a_class_or_a_table_it_is_said_what_to_write(files, run):
    words = ("--dataset", "cell", "--voxel-size", 8, "--data", files / "data")
    code, _, error = run("import-data", files / "raw.tif", *words, "--labels", files / "mito.tif")
    assert code == 2
    assert f"of which class? write mito={files / 'mito.tif'}, or, for one volume of" in error


def test_zero_may_be_unknown(files):
    """Of sparse labels that name no background only the class is known."""
    store = imported(files, labels={"mito": f"{files}/mito.tif#unknown=0"})
    positive, unknown = labels_of(store, "crop1", "mito")
    np.testing.assert_array_equal(positive, MITO == 1)
    np.testing.assert_array_equal(unknown, MITO == 0)


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
    np.testing.assert_array_equal(voxels_of(level.group), ids)
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


def test_a_table_says_which_values_of_a_volume_are_which_class(files, run, capsys):
    several = np.random.default_rng(2).integers(0, 7, SHAPE, np.uint8)
    tifffile.imwrite(files / "all.tif", several)
    (files / "table.csv").write_text("value,class\n1,mito\n4,mito\n2,er\n0,unknown\n3,background\n")
    words = ("--labels", files / "all.tif", "--values", files / "table.csv", "--voxel-size", 8)
    code, _, error = run(
        "import-data", files / "raw.tif", *words, "--dataset", "cell", "--data", files / "data"
    )
    assert code == 0, error
    assert "all.tif: values 5, 6 are not in --values, and were taken for background" in error
    store = files / "data" / layout.store("cell")
    for name, values in (("mito", [1, 4]), ("er", [2])):
        positive, unknown = labels_of(store, "crop1", name)
        np.testing.assert_array_equal(positive, np.isin(several, values))
        np.testing.assert_array_equal(unknown, several == 0)


def test_chunks_of_imported_labels_that_are_lost_are_noticed(files):
    store = imported(files)
    group = store / layout.LABELS / "crop1/mito"
    (group / "s0/0/0/0").unlink()
    reader = LabelReader(open_levels(group)[0], "mito")
    with pytest.raises(UserError, match=r"1 of 12 chunks are not there, and what they held"):
        reader.ids()


@pytest.mark.parametrize("link", [False, True])
def test_what_the_metadata_of_labels_call_unknown_stays_unknown(files, link):
    labels = np.where(np.arange(SHAPE[0])[:, None, None] < 5, 255, MITO).astype(np.uint8)
    about = {"annotation_type": {"type": "semantic_segmentation", "encoding": {"unknown": 255}}}
    more = {"cellmap": {"annotation": about}}
    ngff.write_multiscale(files / "mito.zarr", labels, (8, 8, 8), attributes=more)
    store = imported(files, labels={"mito": str(files / "mito.zarr")}, link=link)
    level = open_levels(store / layout.LABELS / "crop1/mito")[0]
    ids, known = LabelReader(level, "mito").ids()
    np.testing.assert_array_equal(known, labels != 255)
    np.testing.assert_array_equal(ids, np.where(labels == 1, 1, 0))


@pytest.mark.parametrize("link", [False, True])
def test_lost_chunks_of_labels_do_not_become_background(files, link):
    about = {"complement_counts": {"absent": int((MITO == 0).sum()), "unknown": 0}}
    more = {"cellmap": {"annotation": about}}
    source = files / "crop7/mito"
    ngff.write_multiscale(source, MITO, (8, 8, 8), attributes=more)
    (source / "s0/1/1/1").unlink()
    labels = {"mito": str(source)}
    with pytest.raises(UserError, match="1 of 12 chunks are not there, and what they held is miss"):
        imported(files, labels=labels, link=link)
    assert not (files / "data" / layout.store("cell") / layout.LABELS).exists()
    # a part of it is not counted
    imported(files, labels=labels, link=link, crops=["0:30,:,:"])


def test_labels_whose_metadata_call_another_number_background_are_refused(files):
    about = {"annotation_type": {"encoding": {"absent": 2, "present": 1}}}
    more = {"cellmap": {"annotation": about}}
    ngff.write_multiscale(files / "mito.zarr", 2 - MITO, (8, 8, 8), attributes=more)
    name = str(files / "mito.zarr")
    with pytest.raises(UserError, match=r"say that 2 is background, .*mito=.*mito.zarr#value=1"):
        imported(files, labels={"mito": name})
    store = imported(files, labels={"mito": f"{name}#value=1"})
    np.testing.assert_array_equal(voxels_of(store / layout.LABELS / "crop1/mito"), MITO)


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
            r"mito.tif: has 50 x 90 x 150 voxels .* nm; write where .*mito.tif#translation=0,0,0",
        ),
        (
            MITO[::2, ::2, ::2],
            r"mito.tif: has 35 x 45 x 75 voxels .*if they cover .*mito.tif#voxel_size=16; else "
            r"write where .*mito.tif#translation=0,0,0",
        ),
        (
            MITO.T,
            r"mito.tif: has 150 x 90 x 70 voxels .*; if its axes are stored in the order x, y, z, "
            r"write it again as z, y, x; else write where",
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
        ({"labels": {"mi,to": "mito.tif"}}, "class 'mi,to'; write a name"),
        ({"labels": {}, "blocks": "2"}, "--unknown and --instances are of labels"),
        ({"unknown": 300}, "value 300 for class mito, and it holds uint8, 0 to 255"),
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
    np.testing.assert_array_equal(voxels_of(level.group), writers.VOLUME)
    np.testing.assert_allclose(level.translation, writers.PLACE)
    np.testing.assert_allclose(level.scale, writers.VOXEL)
