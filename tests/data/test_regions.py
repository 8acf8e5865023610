"""Which boxes a command works on: crops of split, data root or manifest, or any volume."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, CROPS, write_data

from common.data.splits import manifest, regions
from common.data.splits.regions import Region, find, of_volume
from common.data.volumes.ngff import write_multiscale
from common.errors import UserError

TESTS = """crop_name,dataset,class_label,voxel_size,translation,shape
7,tiny,mito,[8.0;8.0;8.0],[16.0;24.0;32.0],[10;10;10]
7,tiny,nuc,[32.0;32.0;32.0],[12.0;36.0;44.0],[3;3;2]
8,tiny,er,[8.0;8.0;8.0],[0.0;0.0;0.0],[4;4;4]
"""


@pytest.fixture
def entries(tmp_path) -> list[manifest.Entry]:
    (tmp_path / "test_crops.csv").write_text(TESTS)
    return manifest.read(tmp_path / "test_crops.csv")


def names(found: list[Region]) -> list[str]:
    return [str(region) for region in found]


@pytest.mark.parametrize(
    ("crops", "expected"),
    [
        ("validate", ["tiny/crop3"]),
        ("train", ["tiny/crop1", "tiny/crop2"]),
        ("*", ["tiny/crop1", "tiny/crop2", "tiny/crop3"]),
        ("2", ["tiny/crop2"]),
        ("crop3, 1", ["tiny/crop3", "tiny/crop1"]),
        ("tiny/crop?", ["tiny/crop1", "tiny/crop2", "tiny/crop3"]),
        ("validate,train,crop3,", ["tiny/crop3", "tiny/crop1", "tiny/crop2"]),
        ("t*/1", ["tiny/crop1"]),
        ("test", ["tiny/crop7", "tiny/crop8"]),
        ("8,validate", ["tiny/crop8", "tiny/crop3"]),
    ],
)
def test_crops_are_found_by_usage_number_name_and_pattern_each_once(
    experiment, entries, crops, expected
):
    assert names(find(experiment().config(), crops, entries)) == expected


def test_a_test_crop_of_the_split_is_asked_for_by_its_side_or_name_only(experiment, capsys):
    tiny = experiment()
    split = tiny.folder / "datasplit.csv"
    split.write_text(split.read_text().replace('"validate"', '"test"'))
    config = tiny.config()
    assert names(find(config, "held-out")) == ["tiny/crop3"]
    assert names(find(config, "crop3")) == ["tiny/crop3"]
    for pattern in ("*", "tiny/*", "crop?"):
        assert names(find(config, pattern)) == ["tiny/crop1", "tiny/crop2"]
    for nothing in ("crop3*", "validate"):
        with pytest.raises(UserError, match=f"no crop for --crops {re.escape(nothing)}"):
            find(config, nothing)
    for word in ("held-out", "1,3"):
        with pytest.raises(UserError, match=r"tiny/crop3 is held out for test"):
            regions.choose(config, word, with_test=False)


def test_a_test_crop_on_the_voxels_of_another_is_noted(experiment, capsys):
    tiny = experiment()
    shutil.copytree(tiny.crop("crop1"), tiny.crop("crop9"))
    split = tiny.folder / "datasplit.csv"
    line = next(line for line in split.read_text().splitlines() if "crop1/" in line)
    held_out = line.replace('"train"', '"test"').replace("crop1/", "crop9/")
    split.write_text(f"{split.read_text()}\n{held_out}\n")
    assert names(find(tiny.config(), "held-out")) == ["tiny/crop9"]
    said = capsys.readouterr().err
    assert "test crops overlap others, which the network may know: tiny/crop9 and crop1" in said


def test_the_test_crops_of_split_and_challenge_are_told_apart(experiment, entries, capsys):
    tiny = experiment()
    split = tiny.folder / "datasplit.csv"
    split.write_text(split.read_text().replace('"validate"', '"test"'))
    assert names(find(tiny.config(), "test", entries)) == ["tiny/crop7", "tiny/crop8"]
    assert "--crops held-out" in capsys.readouterr().err


def test_a_crop_is_the_box_of_its_labels_with_its_raw_truth_and_classes(experiment):
    tiny = experiment()
    (crop,) = find(tiny.config(), "crop2")
    np.testing.assert_allclose(crop.lower, np.multiply(CROPS["crop2"][1], 8) - 4)
    np.testing.assert_allclose(crop.upper, np.multiply(CROPS["crop2"][1], 8) - 4 + 24 * 8)
    assert (crop.raw, crop.truth, crop.classes) == (tiny.raw, tiny.crop("crop2"), ("mito",))


def test_a_crop_on_disk_that_is_in_no_split(experiment):
    tiny = experiment()
    write_data(tiny.data, {**CROPS, "crop9": ("", (5, 6, 7), CLASSES)})
    (crop,) = find(tiny.config(), "9")
    np.testing.assert_allclose(crop.lower, np.multiply((5, 6, 7), 8) - 4)
    assert (crop.raw, crop.truth, crop.classes) == (
        tiny.raw,
        tiny.crop("crop9"),
        tuple(sorted(CLASSES)),
    )


def test_a_test_crop_is_the_box_around_all_of_its_classes(experiment, entries):
    """mito: 12..92, 20..100, 28..108; nuc: -4..92, 20..116, 28..92 nm."""
    tiny = experiment()
    crop = find(tiny.config(), "test", entries)[0]
    np.testing.assert_allclose((crop.lower, crop.upper), [(-4, 20, 28), (92, 116, 108)])
    assert (crop.raw, crop.truth, crop.classes) == (tiny.raw, None, ("mito", "nuc"))


def test_crops_that_are_nowhere_are_named_with_those_that_are_there(experiment):
    with pytest.raises(UserError, match="no crop 'crop77'; there are 3: crop1, crop2, crop3"):
        find(experiment().config(), "validate,77")


def test_a_data_root_that_is_off_by_a_folder_is_told_the_right_one(experiment):
    tiny = experiment()
    config = replace(tiny.config(), data_path=str(tiny.data / "tiny"))
    for crops in ("validate", "crop1", "*"):
        with pytest.raises(FileNotFoundError, match=f"write --data {tiny.data}$"):
            find(config, crops)


def test_a_split_without_the_asked_for_usage(experiment):
    tiny = experiment()
    split = tiny.folder / "datasplit.csv"
    split.write_text("\n".join(line for line in split.read_text().splitlines() if "train" in line))
    with pytest.raises(UserError, match="no crop for --crops validate"):
        find(tiny.config())


def test_two_crops_of_one_name_are_refused(experiment, tmp_path):
    tiny = experiment()
    other = tmp_path / "elsewhere" / tiny.store.name
    shutil.copytree(tiny.store, other)
    text = tiny.config().path("datasplit_path").read_text()
    (row,) = [line for line in text.splitlines() if "crop3" in line]
    twice = row.replace(f"{tiny.store.relative_to(tiny.data)}", str(other))
    (tiny.folder / "datasplit.csv").write_text(f"{text}{twice}\n")
    for word in ("validate", "crop3"):
        with pytest.raises(UserError, match=r"two crops are called tiny/crop3, .* one would take"):
            find(tiny.config(), word)
    assert names(find(tiny.config(), "train")) == ["tiny/crop1", "tiny/crop2"]


def test_test_crops_need_a_manifest(experiment):
    with pytest.raises(UserError, match="no manifest of test crops"):
        find(experiment().config(), "test")


def test_the_manifest_is_read_where_it_is_given_and_fetched_where_it_is_needed(
    experiment, entries, tmp_path, monkeypatch
):
    config, file = experiment().config(), tmp_path / "test_crops.csv"
    assert names(regions.choose(config, "test", manifest_path=str(file))) == [
        "tiny/crop7",
        "tiny/crop8",
    ]
    monkeypatch.setenv("CSC_TEST_CROP_MANIFEST_URL", file.as_uri())
    said: list[str] = []
    assert names(regions.choose(config, "validate, test", say=said.append)) == [
        "tiny/crop3",
        "tiny/crop7",
        "tiny/crop8",
    ]
    assert len(said) == 1 and "downloaded" in said[0]
    monkeypatch.setenv("CSC_TEST_CROP_MANIFEST_URL", "file:///nowhere")
    assert names(regions.choose(config, "validate")) == ["tiny/crop3"]


# Volumes of one's own


@pytest.fixture
def volume(tmp_path) -> Path:
    """-4..76, 96..196 and 10^7 .. 10^7 + 40 nm."""
    path = tmp_path / "own.zarr" / "em" / "raw"
    write_multiscale(path, np.zeros((10, 25, 10), np.uint8), (8, 4, 4), (0, 98, 1e7 + 2), levels=2)
    return path


def test_a_whole_volume(volume):
    found = of_volume(volume)
    np.testing.assert_allclose((found.lower, found.upper), [(-4, 96, 1e7), (76, 196, 1e7 + 40)])
    assert (str(found), found.raw, found.truth, found.classes) == ("own/whole", volume, None, ())
    assert found.folder(Path("predictions")) == Path("predictions/own.zarr/whole")


@pytest.mark.parametrize(
    ("roi", "lower", "upper"),
    [
        ("1:41,101:111,10000000:10000021", (1, 101, 1e7), (41, 111, 1e7 + 21)),
        (":,:,:", (-4, 96, 1e7), (76, 196, 1e7 + 40)),
        (" 9 : 17 , : 120, 10000004.5: ", (9, 96, 1e7 + 4.5), (17, 120, 1e7 + 40)),
        ("-100:1,0:1000000000,:", (-4, 96, 1e7), (1, 196, 1e7 + 40)),
    ],
)
def test_a_box_of_a_volume_in_nm_within_the_volume(volume, roi, lower, upper):
    found = of_volume(volume, roi)
    np.testing.assert_allclose((found.lower, found.upper), (lower, upper))


@pytest.mark.parametrize(
    ("roi", "lower", "upper"),
    [
        ("0:40,:,:", -4, 36),
        ("-4:36,:,:", -4, 36),
        ("0:80,:,:", -4, 76),
        ("8.001:24,:,:", 4.001, 20),
        ("-4:0,:,:", -4, 0),
    ],
)
def test_bounds_on_centres_of_voxels_take_the_first_and_leave_the_last_out(
    volume, roi, lower, upper, capsys
):
    found = of_volume(volume, roi)
    np.testing.assert_allclose((found.lower[0], found.upper[0]), (lower, upper))
    assert "cut" not in capsys.readouterr().err


def test_a_volume_is_shown_without_dots(volume, monkeypatch):
    folder = volume.parents[1] / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert of_volume("../em/raw").raw == volume


def test_a_box_that_reaches_beyond_the_volume_is_cut_and_that_is_said(volume, capsys):
    of_volume(volume, "-4.5:76.5,:,:")
    assert "note" not in capsys.readouterr().err
    of_volume(volume, "-4:100,:,:")
    told = "--roi -4:100,:,:: reaches beyond"
    assert told in capsys.readouterr().err


def test_a_box_of_few_voxels_is_said_to_be_in_nm(volume, capsys):
    of_volume(volume, "0:8,:,:")
    assert capsys.readouterr().err == ""
    of_volume(volume, "0:8,100:110,10000000:10000008")
    assert "10000008: a box of 1 x " in capsys.readouterr().err


def test_boxes_that_differ_have_folders_that_differ(volume):
    boxes = [
        of_volume(volume, f":,:,{10**7 + a}:{10**7 + b}")
        for a, b in ((0, 8), (0, 9), (1, 9), (0.5, 9))
    ]
    assert len({box.name for box in boxes}) == 4
    assert boxes[0].name == "roi_-4-76_96-196_10000000-10000008"


@pytest.mark.parametrize(
    "roi", ["0:40", "0-40,0-40,0-40", "a:b,:,:", "0:40,100:110,:,:", "0:40 100:110 0:20"]
)
def test_text_that_is_no_box(volume, roi):
    with pytest.raises(UserError, match=f"--roi {roi}; write z0:z1"):
        of_volume(volume, roi)


@pytest.mark.parametrize("roi", ["76:100,:,:", ":-4,:,:", "20:20,:,:", "30:20,:,:", ":,:,0:100"])
def test_a_box_that_is_empty_or_outside(volume, roi):
    with pytest.raises(
        UserError,
        match=f"--roi {roi}: no box within {volume}, which is -4:76,96:196,10000000:10000040 nm",
    ):
        of_volume(volume, roi)


def test_a_box_of_no_volume(experiment):
    with pytest.raises(UserError, match="--roi 0:8,0:8,0:8: a box of what"):
        regions.choose(experiment().config(), roi="0:8,0:8,0:8")


def test_a_volume_needs_no_data_split(experiment, volume):
    tiny = experiment()
    (tiny.folder / "datasplit.csv").unlink()
    assert names(regions.choose(tiny.config(), volume=volume, roi="0:8,:,:")) == [
        "own/roi_0-8_96-196_10000000-10000040"
    ]


def test_a_path_without_a_volume(volume):
    with pytest.raises(FileNotFoundError, match="nowhere: nothing is there"):
        of_volume(volume / "nowhere")
    with pytest.raises(UserError, match="s0: an array; write the group"):
        of_volume(volume / "s0")
