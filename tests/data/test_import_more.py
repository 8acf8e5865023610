"""A second import into a dataset that is there: further crops, further classes, contradictions."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tifffile
import zarr

from common.data.crops import parts
from common.data.own import importing
from common.data.own.crops import divide, read_crops, single_planes
from common.data.own.standing import IMPORTED
from common.data.splits.catalogue import scan
from common.data.splits.split import Row
from common.data.volumes import layout, results
from common.data.volumes.box import slices
from common.data.volumes.level import Grid
from common.data.volumes.ngff import open_levels, start_multiscale
from common.errors import UserError
from tests.data.own_import import import_data
from tests.volumes import voxels_of

SHAPE = (24, 60, 96)
RAW = np.random.default_rng(1).integers(1, 255, SHAPE, np.uint8)
MITO = (np.indices(SHAPE).sum(0) % 10 < 5).astype(np.uint8)


@pytest.fixture
def add(tmp_path):
    """Imports classes of files into one dataset; returns {crop/class: voxels}."""
    for name, volume in (("raw", RAW), ("mito", MITO), ("er", 1 - MITO), ("wrong", RAW)):
        tifffile.imwrite(tmp_path / f"{name}.tif", volume, compression="zlib")

    def call(*boxes, raw="raw.tif", labels=("mito",), **more):
        of_class = {name.removesuffix("2"): str(tmp_path / f"{name}.tif") for name in labels}
        settings = {"labels": of_class, "crops": boxes, "voxel_size": (8.0, 8.0, 8.0), **more}
        data = tmp_path / "data"
        store = import_data(str(tmp_path / raw), "cell", data=data, **settings, say=said.append)
        importing.say_next("cell", store, data, say=said.append)
        return there()

    def there():
        folder = tmp_path / "data" / layout.store("cell") / layout.LABELS
        levels = {
            f"{group.parent.name}/{group.name}": open_levels(group)[0]
            for group in sorted(folder.glob("*/*"))
        }
        return {name: level.read((0, 0, 0), level.shape) for name, level in levels.items()}

    said: list[str] = []
    call.said = said
    call.there = there
    return call


def test_a_further_box_becomes_a_further_crop(add):
    add(":,:,:40")
    there = add(":,:,50:")
    np.testing.assert_array_equal(there["crop1/mito"], MITO[..., :40])
    np.testing.assert_array_equal(there["crop2/mito"], MITO[..., 50:])
    assert len(there) == 2
    assert "cell: 2 crops" in add.said


def test_a_further_class_goes_to_the_crops_of_its_boxes(add, tmp_path):
    boxes = (":,:,:40", ":,:,50:")
    add(*boxes)
    there = add(*reversed(boxes), labels=("er",))
    np.testing.assert_array_equal(there["crop1/er"], 1 - MITO[..., :40])
    np.testing.assert_array_equal(there["crop2/er"], 1 - MITO[..., 50:])
    assert {info.name: set(info.classes) for info in scan(tmp_path / "data")[0]} == {
        "crop1": {"mito", "er"},
        "crop2": {"mito", "er"},
    }
    assert any("--classes er,mito" in line for line in add.said)


def test_the_raw_may_be_that_of_the_dataset(add):
    add(":,:,:40")
    there = add(":,:,50:", raw=f"data/{layout.raw('cell')}")
    np.testing.assert_array_equal(there["crop2/mito"], MITO[..., 50:])


def test_the_same_boxes_again_change_nothing(add):
    boxes = (":,:,:40", ":,:,50:")
    add(*boxes)
    add.said.clear()
    add(*reversed(boxes))
    assert sum(line.endswith("there already") for line in add.said) == 3
    assert len(add.there()) == 2


def test_a_box_over_one_of_the_same_class_is_refused_or_replaces_it(add):
    add()
    with pytest.raises(UserError, match=r"mito at nm z.*crop1/mito, which is there already, has"):
        add(":,:,:40")
    there = add(":,:,:40", ":,:,60:", overwrite=True)
    np.testing.assert_array_equal(there["crop1/mito"], MITO[..., :40])
    np.testing.assert_array_equal(there["crop2/mito"], MITO[..., 60:])
    assert len(there) == 2
    assert list(add(overwrite=True)) == ["crop1/mito"]


def test_other_labels_on_the_voxels_of_a_class_are_refused(add, tmp_path):
    add()
    tifffile.imwrite(tmp_path / "mito2.tif", 1 - MITO)
    with pytest.raises(UserError, match=r"crop1/mito: there already, written from .*mito.tif"):
        add(labels=("mito2",))
    there = add(labels=("mito2",), overwrite=True)
    np.testing.assert_array_equal(there["crop1/mito"], 1 - MITO)


def test_labels_that_were_edited_since_are_refused_or_replace_those_of_before(add, tmp_path):
    add()
    tifffile.imwrite(tmp_path / "mito.tif", 1 - MITO, compression="zlib")
    with pytest.raises(UserError, match=r"crop1/mito: there already, .* before that was edited"):
        add()
    there = add(overwrite=True)
    np.testing.assert_array_equal(there["crop1/mito"], 1 - MITO)


def test_a_raw_whose_file_was_written_anew_stays_which_is_said(add, tmp_path, capsys):
    add()
    tifffile.imwrite(tmp_path / "raw.tif", RAW)
    there = add(labels=("er",))
    np.testing.assert_array_equal(there["crop1/er"], 1 - MITO)
    assert "raw.tif was written anew since; if that is other raw" in capsys.readouterr().err


def test_another_raw_is_refused_before_anything_is_written(add, tmp_path):
    add(":,:,:40")
    tifffile.imwrite(tmp_path / "raw2.tif", RAW)
    with pytest.raises(UserError, match=r"fibsem-uint8: there already, written from .*raw.tif"):
        add(":,:,50:", raw="raw2.tif")
    assert list(add.there()) == ["crop1/mito"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_labels_that_turn_out_wrong_leave_a_dataset_as_it_was(add, tmp_path, overwrite):
    before = add()
    (tmp_path / "wrong.tif").rename(tmp_path / "mito2.tif" if overwrite else tmp_path / "er.tif")
    with pytest.raises(UserError, match="this looks like raw"):
        add(labels=("mito2" if overwrite else "er",), overwrite=overwrite)
    after = add.there()
    assert list(after) == list(before) == ["crop1/mito"]
    np.testing.assert_array_equal(after["crop1/mito"], MITO)
    store = tmp_path / "data" / layout.store("cell")
    assert not [path.name for path in store.iterdir() if path.name.startswith(".")]


def test_links_are_added_to_as_copies_are(add):
    add(":,:,:40", link=True)
    there = add(":,:,50:", link=True)
    there = add(":,:,:40", labels=("er",), link=True)
    assert list(there) == ["crop1/er", "crop1/mito", "crop2/mito"]


def test_linked_labels_are_added_to_a_raw_that_was_copied(add, tmp_path):
    add(":,:,:40")
    add(":,:,50:", link=True)
    store = tmp_path / "data" / layout.store("cell")
    assert (store / layout.RAW / "s0").is_dir()
    assert (store / layout.LABELS / "crop2/mito/link.json").is_file()


def test_a_linked_class_is_among_the_volumes_of_its_crop(add, tmp_path):
    """It was left out of tables and exports of the folder, without a word."""
    add()
    add(labels=("er",), link=True)
    crop = tmp_path / "data" / layout.store("cell") / layout.LABELS / "crop1"
    er, mito = results.find(str(crop))
    assert (er.name, er.sort, mito.name, mito.sort) == ("er", "mask", "mito", "mask")
    np.testing.assert_array_equal(er.finest.read((0, 0, 0), SHAPE), 1 - MITO)


def test_a_class_on_part_of_a_crop_is_said_and_not_cut_apart(add, tmp_path, capsys):
    add()
    add(":,:,:40", labels=("er",))
    assert "crop2 has voxels of crop1, where mito is annotated" in capsys.readouterr().err
    division = divide(read_crops(tmp_path / "data", ["cell"]), (8, 8, 8))
    assert [usage for usage, _ in division.sides] == ["train", "train"]
    assert "shares voxels with cell/crop2 and trains" in division.why


def test_labels_in_single_planes_are_told_from_those_of_a_whole_crop(add, tmp_path):
    """Every fifth section was annotated: a 0 between them does not say that nothing is there."""
    sparse = np.zeros_like(MITO)
    sparse[2::5] = MITO[2::5]
    tifffile.imwrite(tmp_path / "er.tif", sparse)
    for labels in ("er", "mito"):
        add(labels=(labels,))
    (of_some,) = read_crops(tmp_path / "data", ["cell"], ["er"])
    sentence = single_planes(of_some)
    assert "single planes along z (2, 7, 12, 17, 22), and between them all is 0" in sentence
    assert "--crop 2:3,:,: --crop 7:8,:,: and so on" in sentence
    (of_both,) = read_crops(tmp_path / "data", ["cell"])
    assert single_planes(of_both) == ""


def test_a_cut_stays_when_a_class_is_added(add, tmp_path):
    """The network that is validated on a part has not seen it, whatever was imported since."""
    add()
    root = tmp_path / "data"
    before = divide(read_crops(root, ["cell"]), (8, 8, 8)).sides
    one_end = np.zeros(SHAPE, np.uint8)
    one_end[:, 50:] = 1  # by which another axis would be cut
    tifffile.imwrite(tmp_path / "er.tif", one_end)
    add(labels=("er",))
    after = divide(read_crops(root, ["cell"]), (8, 8, 8)).sides
    places = [
        [(usage, info.translation, info.shape) for usage, info in sides]
        for sides in (before, after)
    ]
    assert places[0] == places[1]
    assert after[0][1].classes == {"mito", "er"}


def test_the_parts_of_a_crop_follow_labels_that_are_replaced(add, tmp_path):
    """An experiment names the parts: it would go on training on the labels of before."""
    add()
    root = tmp_path / "data"
    before = divide(read_crops(root, ["cell"]), (8, 8, 8)).sides
    old = add.there()
    tifffile.imwrite(tmp_path / "mito.tif", 1 - MITO)
    new = add(overwrite=True)
    assert set(new) == set(old) == {"crop1/mito", "crop1-train/mito", "crop1-validate/mito"}
    for name, values in new.items():
        np.testing.assert_array_equal(values, 1 - old[name])
    assert divide(read_crops(root, ["cell"]), (8, 8, 8)).sides == before


def test_labels_that_are_edited_in_place_are_told_from_those_of_the_parts(add, tmp_path, capsys):
    """An editor writes chunks of the whole crop; a network trains on its parts."""
    add()
    root = tmp_path / "data"
    divide(read_crops(root, ["cell"]), (8, 8, 8))
    labels = root / layout.store("cell") / layout.LABELS
    row = Row("train", root, labels / "crop1-train", ("mito",))
    parts.note_outdated([row])
    assert "copies of labels" not in capsys.readouterr().err
    zarr.open_array(str(labels / "crop1/mito/s0"), mode="r+")[...] = 1 - MITO
    parts.note_outdated([row])
    assert "cell/crop1-train/mito: copies of labels that were edited" in capsys.readouterr().err
    before = add.there()["crop1-train/mito"]
    np.testing.assert_array_equal(add()["crop1-train/mito"], 1 - before)
    parts.note_outdated([row])
    assert "copies of labels" not in capsys.readouterr().err


@pytest.mark.parametrize(("box", "is_told"), [(":,:,:40", True), ("1:24,:,:", False)])
def test_parts_that_a_replaced_crop_no_longer_has_are_told(add, tmp_path, capsys, box, is_told):
    """An experiment would go on learning from the labels of before; others are written anew."""
    add("0:23,:,:")
    root = tmp_path / "data"
    divide(read_crops(root, ["cell"]), (8, 8, 8))
    add(box, overwrite=True)
    labels = root / layout.store("cell") / layout.LABELS
    row = Row("train", root, labels / "crop1-train", ("mito",))
    parts.note_outdated([row])
    told = "crop1-train/mito: parts of crops that other labels, of another place, have replaced"
    assert (told in capsys.readouterr().err) == is_told
    part = open_levels(labels / "crop1-train/mito")[0]
    if not is_told:
        whole = MITO[1:24]
        first, stop = parts.box_of(labels / "crop1-train/mito")
        kept = whole[slices(first, stop)]
        np.testing.assert_array_equal(part.read((0, 0, 0), part.shape), kept)


def test_what_another_import_wrote_meanwhile_is_not_written_over(add, monkeypatch):
    real = importing.alone

    @contextlib.contextmanager
    def after_another(*words, **more):
        monkeypatch.setattr(importing, "alone", real)
        add(":,:,:40")
        with real(*words, **more):
            yield

    monkeypatch.setattr(importing, "alone", after_another)
    there = add(":,:,50:")
    np.testing.assert_array_equal(there["crop1/mito"], MITO[..., :40])
    np.testing.assert_array_equal(there["crop2/mito"], MITO[..., 50:])


def test_a_class_in_one_place_trains(add, tmp_path):
    """One that would only validate is never learnt."""
    seldom = np.zeros(SHAPE, np.uint8)
    seldom[-2:, -4:, -4:] = 1
    tifffile.imwrite(tmp_path / "er.tif", seldom)
    add(labels=("mito", "er"))
    sides = divide(read_crops(tmp_path / "data", ["cell"]), (8, 8, 8)).sides
    assert er_of(tmp_path, sides) == {"train": True, "validate": False}


def test_a_class_in_one_of_several_crops_trains(add, tmp_path):
    for first in (4, 84):  # in the first crop and in the last
        seldom = np.zeros(SHAPE, np.uint8)
        seldom[:, :4, first : first + 4] = 1
        tifffile.imwrite(tmp_path / "er.tif", seldom)
        add(labels=("mito", "er"), blocks="4", overwrite=True)
        sides = divide(read_crops(tmp_path / "data", ["cell"]), (8, 8, 8)).sides
        assert len(sides) == 4
        assert er_of(tmp_path, sides) == {"train": True, "validate": False}


def er_of(root, sides) -> dict[str, bool]:
    """Whether er occurs on each side."""
    found = {"train": False, "validate": False}
    for usage, info in sides:
        labels = voxels_of(root / "data" / layout.labels("cell", info.name) / "er")
        found[usage] |= bool(labels.any())
    return found


def test_a_crop_that_an_import_left_half_written_is_written_again(add, tmp_path):
    """Labels were written in their place once."""
    crop = tmp_path / "data" / layout.labels("cell", "crop1") / "mito"
    about = {IMPORTED: {"from": "another"}}
    start_multiscale(
        crop, Grid(np.zeros(3), np.ones(3), (4, 4, 4)), "u1", (4, 4, 4), attributes=about
    )
    np.testing.assert_array_equal(add()["crop1/mito"], MITO)
