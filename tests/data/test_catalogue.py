"""Which crops there are: in the table, on disk, by name."""

from __future__ import annotations

import numpy as np
import pytest
from crops_at_hand import crop, labelled_store

from common.classes import TESTED
from common.data.splits import catalogue
from common.data.volumes import layout
from common.errors import UserError
from common.files import REPOSITORY
from tests.volumes import changing

FACTS = REPOSITORY.parent / "shared" / "facts" / "train_crops.csv"


# Where the crops come from


def test_the_table_holds_the_289_training_crops():
    crops = catalogue.read_crop_table()
    assert len({(c.dataset, c.name) for c in crops}) == len(crops) == 289
    assert len({c.dataset for c in crops}) == 22
    assert sum(c.classes >= set(TESTED) for c in crops) == 224
    assert set().union(*(c.classes for c in crops)) == set(TESTED)


def test_every_translation_lies_on_the_lattice_of_its_labels():
    """Offsets are multiples of an eighth of a voxel; a lost decimal point would not be."""
    for each in catalogue.read_crop_table():
        steps = np.array(each.translation) / each.voxel_size * 16
        assert np.abs(steps - steps.round()).max() < 0.01, each


@pytest.mark.skipif(not FACTS.exists(), reason="the facts are not beside this checkout")
def test_the_table_agrees_with_the_facts():
    """The facts lost '.0' inside of numbers in five translations: 23107.09 became 231079."""

    def rows(path):
        return [line for line in path.read_text().splitlines() if not line.startswith("#")]

    ours, facts = rows(catalogue.CHALLENGE), rows(FACTS)
    assert [line.replace(".0", "") for line in ours] == facts
    assert sum(a != b for a, b in zip(ours, facts, strict=True)) == 5


def test_everything_wrong_in_a_manifest_is_in_one_message(tmp_path):
    path = tmp_path / "table.csv"
    good = "1,d,4;4;4,0;0;0,9;9;9,mito er"
    bad = ["2,d,4;4,0;0;0,9;9;9,mito", "3,d", "4,d,4;4;4,0;0;0,9;0;9,x"]
    path.write_text("\n".join(["crop,dataset", good, *bad, good]))
    with pytest.raises(ValueError) as caught:
        catalogue.read_crop_table(path)
    said = str(caught.value).splitlines()
    assert [text.split(":")[1].split(";")[0].strip() for text in said[:4]] == [
        "line 1",
        "line 3",
        "line 4",
        "line 5",
    ]
    assert "d/crop1 stands there more than once" in said[4]


@pytest.mark.parametrize("start", ["../x,jrc_x", "1,../jrc_x", "1,a/b", ".x,jrc_x"])
def test_a_name_in_a_table_of_crops_is_a_folders(tmp_path, start):
    path = tmp_path / "crops.csv"
    header = "crop,dataset,voxel_size,translation,shape,classes"
    path.write_text(f"{header}\n{start},4;4;4,0;0;0,400;400;400,mito er\n")
    with pytest.raises(UserError, match=r"line 2: .*; write e\.g\. 28,jrc_x"):
        catalogue.read_crop_table(path)


def test_a_data_root_without_crops_says_where_they_are(tmp_path):
    labelled_store(tmp_path / "data", classes=("mito",))
    for inside in ("d", "d/d.zarr", "d/d.zarr/recon-1", ".."):
        root = (tmp_path / "data" / inside).resolve()
        with pytest.raises(FileNotFoundError, match=f"no annotated crop in it; .*{tmp_path}/data$"):
            catalogue.scan(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds DATASET/DATASET\.zarr/.*, or fill it with"):
        catalogue.scan(tmp_path / "empty")


def test_a_scan_reads_the_geometry_and_the_classes_in_natural_order(tmp_path):
    labelled_store(
        tmp_path,
        name="crop10",
        classes=("er", "mito"),
        voxel_size=(4, 2, 2),
        start=(12, 20, 30),
        shape=6,
    )
    labelled_store(tmp_path, name="crop2", classes=("nuc", "all"))
    labelled_store(tmp_path, dataset="c", name="x1", classes=("mito",))
    crops, skipped = catalogue.scan(tmp_path)
    assert [(c.dataset, c.name) for c in crops] == [("c", "x1"), ("d", "crop2"), ("d", "crop10")]
    assert crops[2] == catalogue.CropInfo(
        "d", "crop10", (4, 2, 2), (12, 20, 30), (6, 6, 6), frozenset({"er", "mito"})
    )
    assert crops[1].classes == {"nuc"}
    assert skipped == []


def test_a_scan_takes_the_coarsest_class_as_the_resolution_of_a_crop(tmp_path):
    labelled_store(tmp_path, classes=("er",), voxel_size=(8, 8, 8), start=(4, 4, 4), shape=3)
    labelled_store(tmp_path, classes=("mito",), voxel_size=(4, 4, 4), shape=6)
    ((one,), _) = catalogue.scan(tmp_path)
    assert (one.voxel_size, one.translation, one.shape) == ((8, 8, 8), (4, 4, 4), (3, 3, 3))


def test_a_scan_reads_a_scale_that_is_not_listed_first(tmp_path):
    """The toolbox raises KeyError here."""
    store = labelled_store(tmp_path, voxel_size=(16, 4, 4))
    with changing(store / layout.LABELS / "crop1" / "mito") as attributes:
        attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"].reverse()
    ((one,), skipped) = catalogue.scan(tmp_path)
    assert (one.voxel_size, skipped) == ((16, 4, 4), [])


def test_a_scan_says_what_it_skips(tmp_path):
    store = labelled_store(tmp_path, classes=("mito", "er"))
    (store / layout.LABELS / "crop1" / "er" / ".zattrs").unlink()
    (store / layout.LABELS / "crop1" / "notes").mkdir()
    other = labelled_store(tmp_path, dataset="e")
    (other / layout.RAW).rename(other / "moved")
    ((one,), skipped) = catalogue.scan(tmp_path)
    assert (one.dataset, one.classes) == ("d", {"mito"})
    assert [text.split("crop1")[1].split(":")[0] for text in skipped] == ["/er", "/notes", ""]
    assert "no raw group recon-1/em/fibsem-uint8" in skipped[2]


def test_a_missing_data_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such data root"):
        catalogue.scan(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "patterns, chosen",
    [
        (["x1"], ["x1"]),
        (["x*"], ["x1", "x10"]),
        (["1"], ["crop1"]),
        (["crop1?"], ["crop10"]),
        (["*"], 4),
    ],
)
def test_a_name_takes_that_crop_alone_and_a_glob_takes_all_it_matches(patterns, chosen):
    crops = {("d", name): name for name in ("x1", "x10", "crop1", "crop10")}
    found = list(catalogue.select(crops, ["d"], patterns, "table").values())
    assert found == chosen or len(found) == chosen


def test_patterns_that_match_nothing_are_named_together():
    with pytest.raises(ValueError) as caught:
        catalogue.select({("d", "crop1"): 1, ("e", "crop2"): 2}, ["d", "f*"], ["3"], "table")
    assert str(caught.value).splitlines() == [
        "table: no dataset 'f*'; there are 2: d, e",
        "table: no crop 'crop3'; there are 2: crop1, crop2",
    ]
    with pytest.raises(ValueError, match="no crop crop2 in d"):
        catalogue.select({("d", "crop1"): 1, ("e", "crop2"): 2}, ["d"], ["2"], "table")


# What fits and what moves together


@pytest.mark.parametrize(
    "voxel_size, shape, scale, min_extent, expected",
    [
        ((8, 8, 8), (28, 28, 28), (8, 8, 8), 28, True),
        ((8, 8, 8), (27, 28, 28), (8, 8, 8), 28, False),
        ((8.05, 8, 8), (28, 28, 28), (8, 8, 8), 28, True),
        ((8, 8, 8.1), (28, 28, 28), (8, 8, 8), 28, False),
        ((2, 2, 2), (400, 400, 400), (32, 32, 32), 25, True),
        ((2, 2, 2), (400, 400, 400), (32, 32, 32), 25.1, False),
        ((50, 4.6, 4.6), (20, 60, 60), (50, 4.6, 4.6), 20, True),
        ((50, 4.6, 4.6), (20, 60, 60), (8, 8, 8), 1, False),
        ((64, 64, 64), (1, 1, 1), None, 99, True),
    ],
)
def test_a_crop_fits_if_it_is_fine_and_large_enough_on_every_axis(
    voxel_size, shape, scale, min_extent, expected
):
    assert (
        catalogue.fits(crop("d", voxel_size=voxel_size, shape=shape), scale, min_extent) is expected
    )


def test_cells_of_one_sample_are_one_specimen_and_of_one_kind():
    names = [
        "jrc_cos7-1a",
        "jrc_cos7-1b",
        "jrc_hela-2",
        "jrc_hela-3",
        "jrc_ut21-1413-003",
        "flyem_medulla",
    ]
    assert [crop(n).specimen for n in names] == ["jrc_cos7-1", "jrc_cos7-1", *names[2:]]
    assert [crop(n).kind for n in names] == ["jrc_cos7"] * 2 + ["jrc_hela"] * 2 + [
        "jrc_ut21",
        "flyem_medulla",
    ]


def test_voxels_extend_half_a_voxel_around_their_centres():
    coarse = crop("d", "a", shape=(1, 1, 1), voxel_size=(64.0, 64.0, 64.0))
    assert coarse.overlaps(
        crop("d", "b", start=(-30, 0, 0), shape=(1, 1, 1), voxel_size=(2.0, 2.0, 2.0))
    )
    assert not coarse.overlaps(
        crop("d", "b", start=(-34, 0, 0), shape=(1, 1, 1), voxel_size=(2.0, 2.0, 2.0))
    )
