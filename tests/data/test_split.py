from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from common.classes import TESTED
from common.data import catalogue, layout, make_split
from common.data import split as split_module
from common.data.ngff import write_multiscale

REPOSITORY = Path(__file__).parents[2]
FACTS = REPOSITORY.parent / "shared" / "facts" / "train_crops.csv"
EXPERIMENTS = {
    "setup_04_all": (8, 28),
    "unet8_all": (8, 28),
    "unet32_all": (32, 20),
    "unet128_all": (128, 9),
}
"""The voxel size (nm) and the smallest extent (voxels) that each experiment's split is made with."""


def crop(
    dataset,
    name="crop1",
    classes="mito",
    start=(0, 0, 0),
    shape=(10, 10, 10),
    voxel_size=(8.0, 8.0, 8.0),
):
    return catalogue.CropInfo(
        dataset, name, voxel_size, tuple(map(float, start)), shape, frozenset(classes.split())
    )


def written(tmp_path, *lines):
    path = tmp_path / "datasplit.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def row(usage="train", name="crop1", classes="[mito,er]"):
    return f'"{usage}","d/d.zarr","{layout.RAW}","d/d.zarr","{layout.LABELS}/{name}/{classes}"'


def problems(tmp_path, *lines):
    with pytest.raises(ValueError) as caught:
        split_module.read_datasplit(written(tmp_path, *lines), "data")
    return str(caught.value).splitlines()


def sides_of(path):
    return {r.name: r.usage for r in split_module.read_datasplit(path, "data")}


# Reading


def test_five_columns_are_joined_to_the_data_root(tmp_path):
    (one,) = split_module.read_datasplit(written(tmp_path, row()), "/somewhere")
    assert (one.usage, one.annotated, one.name, one.line) == ("train", ("mito", "er"), "d/crop1", 1)
    assert one.raw == Path("/somewhere/d/d.zarr/recon-1/em/fibsem-uint8")
    assert one.crop == Path("/somewhere/d/d.zarr/recon-1/labels/groundtruth/crop1")


def test_an_absolute_store_is_kept(tmp_path):
    line = '"train","/a/d.zarr","em","/b/d.zarr","labels/crop1/[mito]"'
    (one,) = split_module.read_datasplit(written(tmp_path, line), "/somewhere")
    assert (one.raw, one.crop) == (Path("/a/d.zarr/em"), Path("/b/d.zarr/labels/crop1"))


@pytest.mark.parametrize("fourth", ["", ',"ignored by the toolbox too"'])
def test_three_and_four_columns_are_usage_raw_and_labels(tmp_path, fourth):
    line = f'"train","d/d.zarr/em","d/d.zarr/gt/crop1/[mito,er]"{fourth}'
    (one,) = split_module.read_datasplit(written(tmp_path, line), "data")
    assert (one.raw, one.crop) == (Path("data/d/d.zarr/em"), Path("data/d/d.zarr/gt/crop1"))
    assert one.annotated == ("mito", "er")


def test_a_path_without_brackets_is_one_class(tmp_path):
    (one,) = split_module.read_datasplit(written(tmp_path, row(classes="mito")), "data")
    assert (one.crop.name, one.annotated) == ("crop1", ("mito",))


def test_comments_empty_lines_a_byte_order_mark_and_carriage_returns_are_skipped(tmp_path):
    path = tmp_path / "datasplit.csv"
    path.write_bytes(b"\xef\xbb\xbf# made by hand\r\n\r\n" + row().encode() + b"\r\n  # end\r\n")
    (one,) = split_module.read_datasplit(path, "data")
    assert (one.line, one.annotated) == (3, ("mito", "er"))


@pytest.mark.parametrize(
    "word, usage",
    [
        ("train", "train"),
        ("training", "train"),
        ("validate", "validate"),
        ("validation", "validate"),
    ],
)
def test_usage_is_known_by_its_beginning(tmp_path, word, usage):
    rows = split_module.read_datasplit(written(tmp_path, row(word), row("train", "crop2")), "data")
    assert rows[0].usage == usage


@pytest.mark.parametrize("word", ["val", "Train", "test", "usage"])
def test_an_unknown_usage_does_not_validate_silently(tmp_path, word):
    (problem,) = problems(tmp_path, row(), row(word, "crop2"))
    assert problem.endswith(f"datasplit.csv: line 2: usage '{word}'; write 'train' or 'validate'")


@pytest.mark.parametrize(
    "line, said",
    [
        ('"train","d.zarr"', "2 columns"),
        ("train,d.zarr,em,d.zarr,gt/crop1/[mito,er]", "6 columns"),
        ("train,d.zarr/em,d.zarr/gt/crop1/[mito,er]", "label path 'd.zarr/gt/crop1/[mito'"),
        ('"train","d.zarr","em","d.zarr"', "label path 'em'"),
        (
            '"train","d.zarr","em","d.zarr","gt/crop1/[mito',
            "not a row of CSV (unexpected end of data)",
        ),
        (row(classes="[mito,er"), "label path"),
        (row(classes="mito,er]"), "label path"),
        (row(classes="[mito]/s0"), "label path"),
        (row(classes="[mito, er]"), "classes 'mito, er'"),
        (row(classes="[]"), "classes ''"),
        (row(classes="[mito,,er]"), "classes 'mito,,er'"),
        (row(classes="[mito,er,mito]"), "class 'mito' stands 2 times"),
        (
            '"train", "d.zarr","em","d.zarr","gt/crop1/[mito]"',
            "column ' \"d.zarr\"' is empty or has a space",
        ),
        ('"train","","em","d.zarr","gt/crop1/[mito]"', "column '' is empty or has a space"),
    ],
)
def test_a_malformed_row_is_named_with_its_line(tmp_path, line, said):
    (problem,) = problems(tmp_path, "# first", row(name="crop7"), line)
    assert "datasplit.csv: line 3: " + said in problem
    assert "; write" in problem


@pytest.mark.parametrize("usage", ["train", "validate"])
def test_a_crop_stands_in_one_row_on_one_side(tmp_path, usage):
    (problem,) = problems(tmp_path, row("train"), row(usage, "x/../crop1"))
    assert f"line 2: d/crop1 ({usage}) already stands in line 1 (train)" in problem


def test_a_crop_number_is_not_the_beginning_of_another(tmp_path):
    assert (
        len(
            split_module.read_datasplit(
                written(tmp_path, row(name="crop1"), row(name="crop10")), "data"
            )
        )
        == 2
    )


@pytest.mark.parametrize("lines, count", [(["# nothing"], 0), ([row("validate")], 1)])
def test_a_split_without_training_rows_is_refused(tmp_path, lines, count):
    (problem,) = problems(tmp_path, *lines)
    assert f"{count} rows, none to train on" in problem


def test_everything_wrong_is_in_one_message(tmp_path):
    lines = [
        row("val", classes="[a"),
        row(),
        "train",
        row("validate"),
        row(name="crop2", classes="[]"),
    ]
    found = problems(tmp_path, *lines)
    assert [text.split("line ")[1].split(":")[0] for text in found] == ["1", "1", "3", "5", "4"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="nowhere.csv: no such data split; write it with make-datasplit"
    ):
        split_module.read_datasplit(tmp_path / "nowhere.csv", "data")


# Files and hash


def labelled_store(
    root,
    dataset="d",
    name="crop1",
    classes=("mito",),
    voxel_size=(8, 8, 8),
    start=(0, 0, 0),
    shape=4,
):
    store = root / dataset / f"{dataset}.zarr"
    if not (store / layout.RAW).exists():
        write_multiscale(store / layout.RAW, np.zeros((8, 8, 8), np.uint8), (8, 8, 8))
    for label in classes:
        write_multiscale(
            store / layout.LABELS / name / label,
            np.zeros((shape,) * 3, np.uint8),
            voxel_size,
            start,
        )
    return store


def test_present_files_pass_and_missing_ones_are_named_with_their_line(tmp_path):
    store = labelled_store(tmp_path / "data", classes=("mito",))
    good = written(tmp_path, row(classes="[mito]"))
    split_module.check_files(split_module.read_datasplit(good, tmp_path / "data"))

    path = written(
        tmp_path, "# first", row(), row("validate", "crop2"), row("validate").replace("d/d", "e/e")
    )
    with pytest.raises(FileNotFoundError) as caught:
        split_module.check_files(split_module.read_datasplit(path, tmp_path / "data"))
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        f"{path}: line 2: no class folder {store / layout.LABELS}/crop1/er",
        f"{path}: line 3: no crop folder {store / layout.LABELS}/crop2",
        f"{path}: line 4: no zarr store {tmp_path}/data/e/e.zarr",
    ]
    assert lines[3].startswith(f"{path}: 3 missing in all")


def test_a_missing_raw_group_is_named(tmp_path):
    store = labelled_store(tmp_path, classes=("mito", "er"))
    (store / layout.RAW).rename(store / "moved")
    with pytest.raises(FileNotFoundError, match=f"line 1: no raw group {store / layout.RAW}\n"):
        split_module.check_files(split_module.read_datasplit(written(tmp_path, row()), tmp_path))


def test_of_many_missing_files_ten_are_named_and_all_are_counted(tmp_path):
    rows = split_module.read_datasplit(
        written(tmp_path, *(row(name=f"crop{n}") for n in range(12))), tmp_path
    )
    (tmp_path / "d" / "d.zarr").mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as caught:
        split_module.check_files(rows)
    assert len(str(caught.value).splitlines()) == 11
    assert "24 missing in all" in str(caught.value)


def test_the_hash_follows_the_split_and_not_the_machine(tmp_path):
    def hashed(root, *lines):
        return split_module.split_hash(split_module.read_datasplit(written(tmp_path, *lines), root))

    first = hashed("/here", row(), row("validate", "crop2"))
    assert first == hashed("there/data", "# a comment", row("training"), row("validation", "crop2"))
    changed = [
        hashed("/here", row(), row("train", "crop2")),
        hashed("/here", row(classes="[mito]"), row("validate", "crop2")),
        hashed("/here", row("validate", "crop2"), row()),
        hashed("/here", row(), row("validate", "crop3")),
    ]
    assert len({first, *changed}) == 5


# Where the crops come from


def test_the_table_holds_the_289_training_crops():
    crops = catalogue.read_crop_table()
    assert len({(c.dataset, c.name) for c in crops}) == len(crops) == 289
    assert len({c.dataset for c in crops}) == 22
    assert sum(c.classes >= set(TESTED) for c in crops) == 224
    assert set().union(*(c.classes for c in crops)) == set(TESTED)


def test_every_translation_lies_on_the_lattice_of_its_labels():
    """Offsets in the table are multiples of an eighth of a voxel; a lost decimal point would not be."""
    for each in catalogue.read_crop_table():
        steps = np.array(each.translation) / each.voxel_size * 16
        assert np.abs(steps - steps.round()).max() < 0.01, each


@pytest.mark.skipif(not FACTS.exists(), reason="the facts are not beside this checkout")
def test_the_table_agrees_with_the_facts():
    """The facts lost '.0' inside of numbers in five translations (23107.09 became 231079); ours have it."""

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
    path = store / layout.LABELS / "crop1" / "mito" / ".zattrs"
    attributes = json.loads(path.read_text())
    attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"].reverse()
    path.write_text(json.dumps(attributes))
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


def test_crops_linked_by_overlaps_move_together():
    """Along x, in units of 8 nm: a 0-10, b 8-18, c 16-26 (a and c meet only through b), d 26-36 touches c, e as a but
    above it, f as a but of another dataset, g inside of c with voxels of 2 nm."""
    boxes = [
        crop("d", "a"),
        crop("d", "c", start=(0, 0, 128)),
        crop("d", "b", start=(0, 0, 64)),
        crop("d", "d", start=(0, 0, 208)),
        crop("d", "e", start=(80, 0, 0)),
        crop("other", "f"),
        crop("d", "g", start=(29, 29, 157), shape=(4, 4, 4), voxel_size=(2.0, 2.0, 2.0)),
    ]
    units = make_split.unit_of(boxes, "crop")
    groups = {
        frozenset(b.name for b, u in zip(boxes, units, strict=True) if u == unit)
        for unit in set(units)
    }
    assert groups == {frozenset("abcg"), frozenset("d"), frozenset("e"), frozenset("f")}


def test_voxels_extend_half_a_voxel_around_their_centres():
    coarse = crop("d", "a", shape=(1, 1, 1), voxel_size=(64.0, 64.0, 64.0))
    assert coarse.overlaps(
        crop("d", "b", start=(-30, 0, 0), shape=(1, 1, 1), voxel_size=(2.0, 2.0, 2.0))
    )
    assert not coarse.overlaps(
        crop("d", "b", start=(-34, 0, 0), shape=(1, 1, 1), voxel_size=(2.0, 2.0, 2.0))
    )


# Choosing the sides


def specimens(classes):
    return [crop(f"s-{n}", f"crop{n}", " ".join(names)) for n, names in enumerate(classes)]


def gaps(train, validate, crops):
    """By the definition: classes that do not train, and those of two specimens that do not validate."""
    count = 0
    for name in set().union(*(c.classes for c in crops)):
        owners = [c for c in crops if name in c.classes]
        count += not any(c in owners for c in train)
        count += len(owners) > 1 and not any(c in owners for c in validate)
    return count


@pytest.mark.parametrize("seed", range(6))
def test_no_set_of_specimens_leaves_fewer_gaps(seed):
    rng = np.random.default_rng(seed)
    crops = specimens(
        [[name for name in TESTED[:7] if rng.random() < 0.3] or ["er"] for _ in range(7)]
    )
    chosen = make_split.choose_sides(crops, scale=None, seed=seed)
    train, validate = ([c for usage, c in chosen if usage == side] for side in split_module.USAGES)
    best = min(
        gaps([c for c in crops if c not in some], some, crops)
        for size in range(len(crops))
        for some in itertools.combinations(crops, size)
    )
    assert len(train) + len(validate) == len(crops)
    assert gaps(train, validate, crops) == best


def test_rare_classes_reach_both_sides_among_very_many_crops():
    """24 classes of two crops each, so that no random set covers them all: the mending has to."""
    crops = [
        crop("d", f"crop{n}", f"{TESTED[n % 24]} cell", start=(1000 * n, 0, 0)) for n in range(48)
    ]
    chosen = make_split.choose_sides(crops, scale=None, by="crop")
    for name in TESTED[:24]:
        assert sorted(usage for usage, c in chosen if name in c.classes) == ["train", "validate"]


def test_a_class_of_one_specimen_trains():
    """Though it would be the better sixth: one crop beside five of the other specimen."""
    crops = [crop("large-1", f"crop{n}", "mito") for n in range(5)]
    for classes, expected in (("mito nuc", "train"), ("mito", "validate")):
        chosen = make_split.choose_sides([*crops, crop("small-1", "crop9", classes)], scale=None)
        assert {c.name: usage for usage, c in chosen}["crop9"] == expected


def test_the_rank_is_the_sum_that_the_module_describes():
    crops = [
        crop("a-1", "crop1", "mito er"),
        crop("a-2", "crop2", "mito", voxel_size=(2.0, 2.0, 2.0)),
        crop("b-1", "crop3", "er", shape=(80, 80, 80)),
        crop("c-1", "crop4", "mito er"),
    ]
    groups = [[(0, 1, 2, 3)], [(0, 2, 3), (1,)], [(0, 3), (1,), (2,)], [(0, 1, 3), (0, 2, 3)]]
    sets = np.array(list(itertools.product([False, True], repeat=4)))
    expected = []
    for some in sets:
        chosen = set(np.flatnonzero(some))
        each = [
            sum(abs(len(chosen & set(g)) - 0.3 * len(g)) for g in kind) / sum(map(len, kind))
            for kind in groups
        ]
        kinds = ["aabc"[n] for n in chosen]
        alike = sum((kinds.count(kind) / len(kinds)) ** 2 for kind in set(kinds))
        expected.append(sum(each) + alike)
    kinds = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(
        make_split._rank(sets, make_split._groups(crops), kinds, 0.3), expected, atol=1e-8
    )


def test_the_order_of_the_crops_does_not_matter():
    crops = catalogue.read_crop_table()
    shuffled = [crops[n] for n in np.random.default_rng(0).permutation(len(crops))]
    assert make_split.make_datasplit(shuffled, scale=(8, 8, 8)) == make_split.make_datasplit(
        crops, scale=(8, 8, 8)
    )


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    crops = catalogue.read_crop_table()
    first, again, other = (
        make_split.make_datasplit(crops, scale=(32, 32, 32), seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_the_global_random_state_neither_matters_nor_changes():
    crops = specimens([["mito"]] * 6)
    np.random.seed(1)
    before, first = np.random.get_state()[1].tolist(), make_split.make_datasplit(crops, scale=None)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(2)
    assert make_split.make_datasplit(crops, scale=None) == first


def test_a_fraction_of_zero_trains_on_everything():
    """Unlike in the toolbox, whose first crop is always moved to training and never one to validation."""
    crops = specimens([["mito"]] * 4)
    assert {
        usage for usage, _ in make_split.choose_sides(crops, scale=None, validation_fraction=0)
    } == {"train"}


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_both_sides_have_crops_at_any_other_fraction(fraction):
    crops = specimens([["mito"]] * 4)
    assert {
        usage
        for usage, _ in make_split.choose_sides(crops, scale=None, validation_fraction=fraction)
    } == set(split_module.USAGES)


def test_by_crop_splits_specimens_but_never_overlapping_crops():
    crops = catalogue.read_crop_table()
    usage = {
        (c.dataset, c.name): u
        for u, c in make_split.choose_sides(crops, scale=(8, 8, 8), by="crop")
    }
    used = [c for c in crops if (c.dataset, c.name) in usage]
    pairs = [(a, b) for a, b in itertools.combinations(used, 2) if a.overlaps(b)]
    assert len(pairs) > 20
    assert all(usage[a.dataset, a.name] == usage[b.dataset, b.name] for a, b in pairs)
    hela = {u for (dataset, _), u in usage.items() if dataset == "jrc_hela-2"}
    assert hela == {"train", "validate"}


def test_one_specimen_cannot_be_split_by_specimen():
    crops = [crop("d", f"crop{n}", start=(1000 * n, 0, 0)) for n in range(3)]
    with pytest.raises(
        ValueError, match="all 3 crops that fit are of one specimen; split it by crop"
    ):
        make_split.choose_sides(crops, scale=None)
    assert {usage for usage, _ in make_split.choose_sides(crops, scale=None, by="crop")} == set(
        split_module.USAGES
    )
    with pytest.raises(ValueError, match="one overlapping region"):
        make_split.choose_sides([crop("d", "a"), crop("d", "b")], scale=None, by="crop")


def test_nothing_that_fits_is_an_error():
    with pytest.raises(ValueError, match="no crop of 2 fits .*as fine as 4 nm"):
        make_split.choose_sides(specimens([["mito"], ["er"]]), scale=(4, 4, 4))
    with pytest.raises(ValueError, match="no crop of 0 fits"):
        make_split.choose_sides([], scale=(4, 4, 4))


def test_lines_name_the_annotated_classes_that_are_asked_for_in_class_order():
    crops = [crop("a-1", "crop5", "nuc er mito"), crop("b-1", "crop6", "mito er")]
    lines = make_split.make_datasplit(
        crops, classes=["mito", "er"], scale=None, validation_fraction=0
    )
    labels = "recon-1/labels/groundtruth"
    assert lines == [
        f'"train","a-1/a-1.zarr","recon-1/em/fibsem-uint8","a-1/a-1.zarr","{labels}/crop5/[mito,er]"',
        f'"train","b-1/b-1.zarr","recon-1/em/fibsem-uint8","b-1/b-1.zarr","{labels}/crop6/[mito,er]"',
    ]


# Sides by hash, held out, folds


def sides(crops, **choice):
    return {
        (c.dataset, c.name): usage
        for usage, c in make_split.choose_sides(crops, scale=None, **choice)
    }


def far_away(crops):
    """One more crop in every dataset, beside all others, and one in a dataset of its own."""
    names = {c.dataset for c in crops} | {"aaa-1"}
    return [*crops, *(crop(name, "crop100000", start=(-1e9, 0, 0)) for name in sorted(names))]


@pytest.mark.parametrize("by", make_split.GROUPS)
def test_a_side_by_hash_is_the_hash_of_the_groups_name_and_nothing_else(by):
    crops = catalogue.read_crop_table()
    units = make_split.unit_of(crops, by)
    expected = {}
    for c, unit in zip(crops, units, strict=True):
        linked = sorted(
            (int(o.name[4:]), f"{o.dataset}/{o.name}")
            for o, u in zip(crops, units, strict=True)
            if u == unit
        )
        name = linked[0][1] if by == "crop" else getattr(c, by)
        number = int(hashlib.sha256(f"7/{name}".encode()).hexdigest()[:12], 16) / 16**12
        expected[c.dataset, c.name] = "validate" if number < 0.3 else "train"
    assert sides(crops, by=by, method="hash", seed=7, validation_fraction=0.3) == expected
    assert set(expected.values()) == set(split_module.USAGES)


@pytest.mark.parametrize("by", make_split.GROUPS)
def test_by_hash_a_new_crop_moves_no_old_one_and_a_larger_fraction_only_adds(by):
    crops = catalogue.read_crop_table()
    choice = {"by": by, "method": "hash", "seed": 1}
    before = sides(crops, **choice, validation_fraction=0.2)
    after = sides(far_away(crops), **choice, validation_fraction=0.2)
    assert len(after) == len(before) + 23
    assert before.items() <= after.items()
    fewer = sides(crops[::2], **choice, validation_fraction=0.2) if by != "crop" else before
    assert fewer.items() <= before.items()
    more = sides(crops, **choice, validation_fraction=0.4)
    assert {key for key, usage in before.items() if usage == "validate"} < {
        key for key, usage in more.items() if usage == "validate"
    }


@pytest.mark.parametrize("method", make_split.METHODS)
@pytest.mark.parametrize("by", make_split.GROUPS)
def test_no_group_stands_on_both_sides(by, method):
    crops = catalogue.read_crop_table()
    usage = sides(crops, by=by, method=method, seed=1, validation_fraction=0.3)
    units = make_split.unit_of(crops, by)
    found = {(unit, usage[c.dataset, c.name]) for c, unit in zip(crops, units, strict=True)}
    assert len(found) == len(set(units))
    assert {side for _, side in found} == set(split_module.USAGES)


def test_by_crop_and_hash_about_the_wanted_fraction_validates():
    """Of 1600 separate crops 400 +- 17 (one standard deviation of a binomial) at a quarter."""
    crops = [crop(f"d-{n}", "crop1") for n in range(1600)]
    chosen = list(sides(crops, by="crop", method="hash", validation_fraction=0.25).values())
    assert abs(chosen.count("validate") - 400) < 4 * 17.3


def test_the_resolution_moves_no_crop_of_a_hash_split():
    crops = catalogue.read_crop_table()
    coarse, fine = (
        {
            (c.dataset, c.name): usage
            for usage, c in make_split.choose_sides(crops, scale=(s,) * 3, by="crop", method="hash")
        }
        for s in (128, 4)
    )
    assert len(fine) < len(coarse)
    assert fine.items() <= coarse.items()


def test_only_what_is_named_exactly_is_held_out():
    """x1 does not take x10, nor the dataset s-1 the dataset s-10."""
    names = [
        ("s-1", "x1"),
        ("s-1", "x10"),
        ("s-10", "x10"),
        ("s-10", "x2"),
        ("t-1", "crop3"),
        ("t-1", "crop33"),
    ]
    crops = [crop(d, n, start=(1000 * k, 0, 0)) for k, (d, n) in enumerate(names)]

    def held(*hold_out, by="crop", **choice):
        found = sides(crops, by=by, validation_fraction=0, hold_out=hold_out, **choice)
        return [key for key, usage in found.items() if usage == "validate"]

    assert held("x1") == [("s-1", "x1")]
    assert held("s-1", by="specimen") == [("s-1", "x1"), ("s-1", "x10")]
    assert held("s-10/x10", "3") == [("s-10", "x10"), ("t-1", "crop3")]
    assert held("x10", method="hash") == [("s-1", "x10"), ("s-10", "x10")]
    with pytest.raises(ValueError) as caught:
        held("x", "s-*", "crop")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        f"hold-out '{n}'" for n in ("crop", "s-*", "x")
    ]


@pytest.mark.parametrize("method", make_split.METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_out_validates_beside_what_is_drawn(method, seed):
    crops = catalogue.read_crop_table()
    usage = sides(crops, method=method, seed=seed, hold_out=["jrc_mus-kidney", "jrc_sum159-1"])
    validate = {dataset for (dataset, _), side in usage.items() if side == "validate"}
    assert validate >= {"jrc_mus-kidney", "jrc_sum159-1"}
    if method == "hash":
        free = sides(crops, method=method, seed=seed)
        assert validate == {d for (d, _), s in free.items() if s == "validate"} | {
            "jrc_mus-kidney",
            "jrc_sum159-1",
        }


def test_a_group_is_not_held_out_in_part():
    crops = catalogue.read_crop_table()
    with pytest.raises(
        ValueError,
        match=r"a part of specimen jrc_hela-2 only; name the other \d+ too .*, or group by crop",
    ):
        sides(crops, hold_out=["jrc_hela-2/crop28"])
    with pytest.raises(
        ValueError, match=r"a part of specimen jrc_cos7-1 only.*jrc_cos7-1b/crop235"
    ):
        sides(crops, hold_out=["jrc_cos7-1a"])
    assert (
        sides(crops, by="dataset", hold_out=["jrc_cos7-1a"])["jrc_cos7-1a", "crop234"] == "validate"
    )
    a, b = next((a, b) for a, b in itertools.combinations(crops, 2) if a.overlaps(b))
    with pytest.raises(ValueError, match="a part of the crops that overlap only"):
        sides(crops, by="crop", hold_out=[f"{a.dataset}/{a.name}"])
    assert (
        sides([a, b, crop("d")], by="crop", hold_out=[a.name, b.name])[b.dataset, b.name]
        == "validate"
    )


def test_a_split_without_training_crops_is_refused():
    with pytest.raises(ValueError, match="no crop is left to train on"):
        sides([crop("a-1"), crop("b-1")], hold_out=["a-1", "b-1"], validation_fraction=0)


@pytest.mark.parametrize("method", make_split.METHODS)
@pytest.mark.parametrize("by", make_split.GROUPS)
def test_in_folds_every_group_validates_exactly_once_and_trains_in_all_others(by, method):
    crops = catalogue.read_crop_table()
    units = {
        (c.dataset, c.name): unit
        for c, unit in zip(crops, make_split.unit_of(crops, by), strict=True)
    }
    validated = []
    for split in make_split.choose_folds(crops, 3, scale=None, by=by, method=method, seed=1):
        usage = {(c.dataset, c.name): side for side, c in split}
        assert len(usage) == len(crops)
        here = {units[key] for key, side in usage.items() if side == "validate"}
        assert all((units[key] in here) == (side == "validate") for key, side in usage.items())
        validated += here
    assert sorted(validated) == sorted(set(units.values()))


def test_balanced_folds_are_of_like_size_and_those_by_hash_move_no_old_crop():
    crops = catalogue.read_crop_table()
    for split in make_split.choose_folds(crops, 5, scale=(8, 8, 8), min_extent=28):
        assert 0.15 < sum(usage == "validate" for usage, _ in split) / len(split) < 0.25
    for before, after in zip(
        *(
            make_split.choose_folds(c, 4, scale=None, by="crop", method="hash")
            for c in (crops, far_away(crops))
        ),
        strict=True,
    ):
        assert {(c.dataset, c.name, usage) for usage, c in before} <= {
            (c.dataset, c.name, usage) for usage, c in after
        }


def test_more_folds_than_groups_are_refused():
    crops = [crop(f"s-{n}") for n in range(3)]
    for method in make_split.METHODS:
        with pytest.raises(
            ValueError,
            match=r"fold \d of 4 has no validate crop \(3 groups fit\); write fewer folds",
        ):
            make_split.choose_folds(crops, 4, scale=None, method=method)
    with pytest.raises(ValueError, match="all 3 crops that fit are of one dataset"):
        make_split.choose_folds(
            [crop("s-1", f"crop{n}") for n in range(3)], 2, scale=None, by="dataset"
        )


def test_folds_are_files_of_their_own_and_one_table(tmp_path):
    path = tmp_path / "x" / "datasplit.csv"
    path.parent.mkdir()
    report = make_split.make(path, scale=32, classes=["mito", "perox"], folds=3).splitlines()
    files = [path.with_name(f"datasplit_fold{k}.csv") for k in range(3)]
    assert sorted(path.parent.iterdir()) == files
    first = files[0].read_text().splitlines()[0]
    assert first == files[2].read_text().splitlines()[0]
    assert first.endswith(
        "make-datasplit x/datasplit.csv --manifest challenge --classes mito,perox --scale 32 --seed 0 --by specimen "
        "--min-extent 1 --folds 3"
    )
    rows = [split_module.read_datasplit(file, "data") for file in files]
    counts = [
        [
            sum("perox" in r.annotated for r in split if r.usage == side)
            for side in split_module.USAGES
        ]
        for split in rows
    ]
    assert ["perox", *(f"{train}/{validate}" for train, validate in counts)] in [
        line.split() for line in report
    ]
    with pytest.raises(ValueError, match="datasplit_fold0.csv: exists already"):
        make_split.make(path, scale=32, folds=3)


def test_the_choices_stand_in_the_command_and_two_runs_give_the_same_file(tmp_path):
    choice = {
        "scale": 8,
        "by": "crop",
        "method": "hash",
        "hold_out": ["jrc_hela-3", "jrc_ut21-1413-003"],
        "force_classes": "validate",
        "validation_fraction": 0.3,
    }
    for name in ("a.csv", "b.csv"):
        make_split.make(tmp_path / name, **choice)
    first, second = ((tmp_path / name).read_text() for name in ("a.csv", "b.csv"))
    assert first.splitlines()[1:] == second.splitlines()[1:]
    assert first.splitlines()[0].endswith(
        "--by crop --min-extent 1 --method hash --hold-out jrc_hela-3,jrc_ut21-1413-003 --force-classes validate"
    )
    rows = split_module.read_datasplit(tmp_path / "a.csv", "data")
    assert {len(r.annotated) for r in rows if r.usage == "validate"} == {48}
    assert min(len(r.annotated) for r in rows if r.usage == "train") < 48


@pytest.mark.parametrize(
    "force, complete",
    [
        ("all", (True, True)),
        ("train", (True, False)),
        ("validate", (False, True)),
        ("", (False, False)),
    ],
)
def test_a_forced_side_takes_complete_crops_only(tmp_path, force, complete):
    make_split.make(tmp_path / "d.csv", scale=8, force_classes=force)
    rows = split_module.read_datasplit(tmp_path / "d.csv", "data")
    assert (
        tuple(
            all(len(r.annotated) == 48 for r in rows if r.usage == side)
            for side in split_module.USAGES
        )
        == complete
    )


@pytest.mark.parametrize(
    "choice, said",
    [
        ({"method": "random"}, "method 'random'; write 'balanced' or 'hash'"),
        (
            {"force_classes": "validation"},
            "force-classes 'validation'; write 'all' or 'train' or 'validate'",
        ),
        ({"folds": 1}, "folds 1; write 2 or more"),
        ({"folds": 3, "hold_out": ["jrc_hela-2"]}, "hold-out jrc_hela-2 with 3 folds"),
        ({"folds": 3, "validation_fraction": 0.3}, "validation fraction 0.3 with 3 folds"),
    ],
)
def test_choices_that_do_not_go_together_are_named(tmp_path, choice, said):
    with pytest.raises(ValueError, match=said):
        make_split.make(tmp_path / "d.csv", scale=8, **choice)


def test_leaks_are_specimens_and_volumes_of_both_sides():
    """Along x in units of 8 nm: a 0-10 and b 5-15 overlap, c 20-30 does not; s-1a and s-1b are one specimen."""
    a, b, c = (crop("s-1a", name, start=(0, 0, x)) for name, x in (("a", 0), ("b", 40), ("c", 160)))
    other = crop("s-1b", "d")
    assert make_split.leaks([("train", a), ("validate", crop("t-1"))]) == []
    (shared,) = make_split.leaks([("train", a), ("validate", other), ("validate", crop("t-1"))])
    assert (
        shared.startswith("1 specimens train and validate") and ": s-1; group by specimen" in shared
    )
    found = make_split.leaks([("train", b), ("train", c), ("validate", a)])
    assert (
        found[1] == "1 validation crops overlap a training crop: s-1a/a and b; put both on one side"
    )
    assert len(make_split.leaks([("train", c), ("validate", a), ("validate", b)])) == 1


def test_the_report_warns_of_leaks(tmp_path):
    assert "WARNING" not in make_split.make(tmp_path / "d.csv", scale=8)
    report = make_split.make(tmp_path / "e.csv", scale=8, by="crop")
    (warning,) = [line for line in report.splitlines() if line.startswith("WARNING")]
    assert "specimens train and validate" in warning


# Writing


def test_a_split_read_back_is_the_split_that_was_chosen(tmp_path):
    crops = catalogue.read_crop_table()
    chosen = make_split.choose_sides(crops, scale=(128, 128, 128))
    make_split.write_datasplit(
        tmp_path / "datasplit.csv", make_split.make_datasplit(crops, scale=(128, 128, 128))
    )
    rows = split_module.read_datasplit(tmp_path / "datasplit.csv", "data")
    assert [(r.usage, r.name, set(r.annotated)) for r in rows] == [
        (usage, f"{c.dataset}/{c.name}", c.classes) for usage, c in chosen
    ]


def test_a_second_split_replaces_the_first_only_when_asked_to(tmp_path):
    path = tmp_path / "datasplit.csv"
    make_split.write_datasplit(path, ["one"])
    with pytest.raises(ValueError, match="datasplit.csv: exists already; write --overwrite"):
        make_split.write_datasplit(path, ["two"])
    assert path.read_bytes() == b"one\n"
    make_split.write_datasplit(path, ["two"], overwrite=True)
    assert path.read_bytes() == b"two\n"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "datasplit.csv"
    make_split.write_datasplit(path, ["one"])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make_split.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        make_split.write_datasplit(path, ["two"], overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["datasplit.csv"]
    assert path.read_bytes() == b"one\n"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="datasplit.csv: its folder does not exist"):
        make_split.write_datasplit(tmp_path / "nowhere" / "datasplit.csv", ["one"])


# The command


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_committed_split_is_what_the_command_makes_byte_for_byte(tmp_path, experiment):
    (scale, min_extent), path = EXPERIMENTS[experiment], tmp_path / experiment / "datasplit.csv"
    path.parent.mkdir()
    make_split.make(path, scale=scale, min_extent=min_extent)
    committed = (REPOSITORY / experiment / "datasplit.csv").read_bytes()
    assert committed == path.read_bytes()
    assert committed.decode().splitlines()[0] == (
        f"# python -m cellmap_segmentation_challenge make-datasplit {experiment}/datasplit.csv --manifest challenge "
        f"--classes tested --scale {scale} --validation-fraction 0.17 --seed 0 --by specimen --min-extent {min_extent}"
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_tested_class_stands_on_both_sides_of_a_committed_split(experiment):
    rows = split_module.read_datasplit(REPOSITORY / experiment / "datasplit.csv", "data")
    for side in split_module.USAGES:
        counts = {
            name: sum(name in r.annotated for r in rows if r.usage == side) for name in TESTED
        }
        assert min(counts.values()) >= 19, counts


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_committed_split_validates_on_a_sixth_of_the_crops_of_several_kinds(experiment):
    sides = sides_of(REPOSITORY / experiment / "datasplit.csv")
    validate = [name.split("/")[0] for name, usage in sides.items() if usage == "validate"]
    assert 0.15 < len(validate) / len(sides) < 0.2
    assert len({crop(dataset).kind for dataset in validate}) >= 4


def test_no_specimen_stands_on_both_sides_within_or_across_the_experiments():
    usages = {}
    for experiment in EXPERIMENTS:
        for name, usage in sides_of(REPOSITORY / experiment / "datasplit.csv").items():
            usages.setdefault(crop(name.split("/")[0]).specimen, set()).add(usage)
    assert len(usages) == 21
    assert all(len(found) == 1 for found in usages.values())


def test_crops_too_coarse_or_too_small_are_not_in_the_fine_split():
    names = set(sides_of(REPOSITORY / "unet8_all" / "datasplit.csv"))
    assert "jrc_mus-kidney/crop221" not in names
    assert "jrc_mus-kidney/crop129" in names
    assert "jrc_mus-kidney/crop221" in sides_of(REPOSITORY / "unet32_all" / "datasplit.csv")
    assert "jrc_hela-2/crop9" in names
    assert "jrc_hela-2/crop9" not in sides_of(REPOSITORY / "unet32_all" / "datasplit.csv")


def test_one_number_is_the_scale_of_every_axis(tmp_path):
    for name, scale in (("a", 32), ("b", (32, 32.0, 32))):
        (tmp_path / name).mkdir()
        make_split.make(tmp_path / name / "d.csv", scale=scale)
    first, second = ((tmp_path / name / "d.csv").read_text() for name in "ab")
    assert first.replace("a/d.csv", "b/d.csv") == second


def test_without_a_scale_crops_of_every_resolution_are_taken(tmp_path):
    make_split.make(tmp_path / "d.csv")
    assert len(sides_of(tmp_path / "d.csv")) == 289
    assert "--scale" not in (tmp_path / "d.csv").read_text()


def test_the_command_names_what_was_chosen_and_no_machine(tmp_path):
    path = tmp_path / "mine" / "datasplit.csv"
    path.parent.mkdir()
    choice = {
        "classes": ["mito", "er"],
        "datasets": ["jrc_hela-*"],
        "crops": ["28", "27"],
        "seed": 3,
        "by": "crop",
    }
    make_split.make(path, scale=(8, 4, 4), **choice)
    text = path.read_text()
    assert text.splitlines()[0] == (
        "# python -m cellmap_segmentation_challenge make-datasplit mine/datasplit.csv --manifest challenge "
        "--classes mito,er --scale 8,4,4 --validation-fraction 0.17 --seed 3 --by crop --min-extent 1 "
        "--datasets 'jrc_hela-*' --crops 28,27"
    )
    assert str(tmp_path) not in text
    assert sorted(sides_of(path)) == ["jrc_hela-2/crop28", "jrc_hela-3/crop27"]


def test_a_split_of_data_on_disk(tmp_path):
    for dataset, name, classes in [
        ("a-1", "x1", ("mito", "er")),
        ("b-1", "x10", ("mito",)),
        ("c-1", "x2", ("er",)),
    ]:
        labelled_store(tmp_path / "data", dataset, name, classes)
    broken = labelled_store(tmp_path / "data", "a-1", "x3", ("nuc",)) / layout.LABELS / "x3" / "nuc"
    (broken / ".zattrs").unlink()
    report = make_split.make(
        tmp_path / "d.csv", data_root=tmp_path / "data", scale=8, classes=["mito", "er", "pm"]
    )
    rows = split_module.read_datasplit(tmp_path / "d.csv", tmp_path / "data")
    split_module.check_files(rows)
    assert {r.name: r.annotated for r in rows} == {
        "a-1/x1": ("mito", "er"),
        "b-1/x10": ("mito",),
        "c-1/x2": ("er",),
    }
    assert "--data DATA" in (tmp_path / "d.csv").read_text().splitlines()[0]
    assert any(line.startswith(f"{broken}: ") for line in report.splitlines())
    assert "annotated in no train crop: pm" in report
    with pytest.raises(ValueError, match="no crop 'x'; there are 4: x1, x2, x3, x10"):
        make_split.make(tmp_path / "e.csv", data_root=tmp_path / "data", scale=8, crops=["x"])


def test_the_report_counts_the_crops_of_each_class_and_names_gaps_once(tmp_path):
    table = tmp_path / "table.csv"
    head = "crop,dataset,voxel_size,translation,shape,classes\n"
    rows = [f"{n},s-{n},8;8;8,0;0;0,9;9;9,{'mito er' if n else 'mito nuc'}\n" for n in range(6)]
    table.write_text(head + "".join(rows))
    report = make_split.make(
        tmp_path / "d.csv", manifest=table, scale=8, classes=["mito", "er", "nuc"]
    ).splitlines()
    assert report[0].startswith(
        f"{tmp_path}/d.csv: 5 training crops, 1 validation crops (16.7%) of s-"
    )
    assert [line.split() for line in report[1:]] == [
        ["class", "train", "validate"],
        ["mito", "5", "1"],
        ["er", "4", "1"],
        ["nuc", "1", "0"],
        ["annotated", "in", "no", "validate", "crop:", "nuc"],
    ]


def test_wrong_choices_are_named_together(tmp_path):
    with pytest.raises(ValueError) as caught:
        make_split.make(
            tmp_path / "d.csv",
            scale=(8, 8),
            validation_fraction=1,
            seed=-1,
            by="cell",
            min_extent=-1,
        )
    said = [
        line.split("; write ")[0].removeprefix(f"{tmp_path}/d.csv: ")
        for line in str(caught.value).splitlines()
    ]
    assert said == ["scale 8", "validation fraction 1", "seed -1", "by 'cell'", "min-extent -1"]
    assert not (tmp_path / "d.csv").exists()


@pytest.mark.parametrize(
    "choice, said",
    [
        ({"classes": ["mito", "mitos"]}, "unknown class 'mitos'; did you mean 'mito'"),
        ({"classes": ["er", "mito", "er"]}, "class 'er' is named 2 times"),
        ({"manifest": "challenge", "data_root": "data"}, "both a data root"),
        ({"datasets": ["jrc_hela"]}, "no dataset 'jrc_hela'; there are 22"),
    ],
)
def test_a_wrong_choice_is_named(tmp_path, choice, said):
    with pytest.raises(ValueError, match=said):
        make_split.make(tmp_path / "d.csv", scale=8, **choice)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such manifest"):
        make_split.make(tmp_path / "d.csv", scale=8, manifest=tmp_path / "nowhere.csv")


# The toolbox's function


@pytest.fixture
def data(tmp_path):
    """Six specimens of one crop; the even ones annotate mito and er, the odd ones mito alone."""
    for n in range(6):
        labelled_store(
            tmp_path / "data", f"s-{n}", "crop1", ("mito", "er") if n % 2 == 0 else ("mito",)
        )
    return tmp_path / "data"


def complete_rows(rows):
    return {
        side: {len(r.annotated) == 2 for r in rows if r.usage == side}
        for side in split_module.USAGES
    }


@pytest.mark.parametrize(
    "force, count, complete",
    [
        (False, 6, {"train": {True, False}, "validate": {True}}),
        (True, 3, {"train": {True}, "validate": {True}}),
        ("train", 3, {"train": {True}, "validate": {True}}),
        ("validate", 6, {"train": {True, False}, "validate": {True}}),
    ],
)
def test_incomplete_crops_are_left_out_of_a_forced_side_and_never_moved(
    tmp_path, data, force, count, complete
):
    path = tmp_path / "d.csv"
    make_split.make_datasplit_csv(["mito", "er"], 8, force, 0.2, csv_path=path, data_root=data)
    rows = split_module.read_datasplit(path, data)
    assert (len(rows), complete_rows(rows)) == (count, complete)


def test_an_incomplete_crop_validates_where_only_training_is_forced(tmp_path, data):
    make_split.make_datasplit_csv(
        ["mito", "er"], 8, "train", 0.6, csv_path=tmp_path / "d.csv", data_root=data
    )
    assert complete_rows(split_module.read_datasplit(tmp_path / "d.csv", data)) == {
        "train": {True},
        "validate": {True, False},
    }


def test_an_unknown_way_to_force_classes_is_an_error(tmp_path, data):
    """In the toolbox 'validation' does nothing, silently."""
    with pytest.raises(
        ValueError, match="force_all_classes 'validation'; write True, False, 'train' or 'validate'"
    ):
        make_split.make_datasplit_csv(
            ["mito"], 8, "validation", csv_path=tmp_path / "d.csv", data_root=data
        )


def test_no_complete_crop_is_an_error_where_completeness_is_forced(tmp_path, data):
    with pytest.raises(ValueError, match="no crop of 6 annotates all of mito, nuc"):
        make_split.make_datasplit_csv(
            ["mito", "nuc"], 8, True, csv_path=tmp_path / "d.csv", data_root=data
        )


def test_a_dry_run_gives_the_crops_and_writes_nothing(tmp_path, data):
    path = tmp_path / "d.csv"
    found = make_split.make_datasplit_csv(
        ["er", "mito"], 8, csv_path=path, dry_run=True, data_root=data, crops=["crop1"]
    )
    assert found[f"{data}/s-0/s-0.zarr/recon-1/labels/groundtruth/crop1"] == ["er", "mito"]
    assert (len(found), path.exists()) == (6, False)


def test_an_existing_file_is_refused_before_the_data_are_looked_at(tmp_path, data):
    path = written(tmp_path, row())
    for function in (make_split.make, make_split.make_datasplit_csv):
        with pytest.raises(ValueError, match="datasplit.csv: exists already"):
            function(csv_path=path, scale=8, data_root=tmp_path / "nowhere")
    assert (
        len(make_split.make_datasplit_csv(["mito"], 8, csv_path=path, data_root=data, dry_run=True))
        == 6
    )
    make_split.make_datasplit_csv(["mito"], 8, csv_path=path, data_root=data, overwrite=True)
    assert len(split_module.read_datasplit(path, data)) == 6


def test_labels_coarser_than_the_scale_are_left_out_and_none_takes_all(data):
    labelled_store(data, "t-1", "crop1", ("mito",), voxel_size=(16, 16, 16))
    assert (
        len(make_split.make_datasplit_csv(["mito"], (8, 8, 8), data_root=data, dry_run=True)) == 6
    )
    assert len(make_split.make_datasplit_csv(["mito"], data_root=data, dry_run=True)) == 7


def test_a_broken_crop_is_warned_of(data):
    (data / "s-3" / "s-3.zarr" / layout.LABELS / "crop1" / "mito" / ".zattrs").unlink()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = make_split.make_datasplit_csv(["mito"], 8, data_root=data, dry_run=True)
    assert len(found) == 5
    assert "s-3.zarr" in str(said[0].message)
