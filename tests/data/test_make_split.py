"""The command make-datasplit, the files it writes, and what it says."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest
from crops_at_hand import crop, labelled_store

from cellmap_segmentation_challenge.utils import make_datasplit_csv
from common.classes import TESTED
from common.data.splits import balanced, catalogue, make_split
from common.data.splits.choose_sides import SplitRules, choose_sides
from common.data.splits.split import USAGES, check_files, read_datasplit
from common.data.volumes import layout
from common.errors import UserError
from common.files import REPOSITORY

EXPERIMENTS = {
    "setup_04_all": (8, 28),
    "unet8_all": (8, 28),
    "unet32_all": (32, 20),
    "unet128_all": (128, 9),
    "resenc8_all": (8, 28),
}
"""The voxel size (nm) and the smallest extent (voxels) that each split is made with."""

SPLITS = {"datasplit.csv": "all", "datasplit_partial.csv": ""}
"""The splits of each, and whose crops must annotate every class."""


USERS_DRAWS = balanced.DRAWS


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """A tenth of the work, where it does not matter which of many splits is the best."""
    monkeypatch.setattr(balanced, "DRAWS", balanced.DRAWS_AT_ONCE)


def sides_of(path):
    return {row.name: row.usage for row in read_datasplit(path, "data")}


# Rows


def test_lines_name_the_annotated_classes_that_are_asked_for_in_class_order():
    crops = [crop("a-1", "crop5", "nuc er mito"), crop("b-1", "crop6", "mito er")]
    classes = ["mito", "er"]
    sides = choose_sides(crops, SplitRules(classes=classes, validation_fraction=0))
    lines = make_split.rows(sides, classes)
    raw = "recon-1/em/fibsem-uint8"
    labels = "recon-1/labels/groundtruth"
    assert lines == [
        f'"train","a-1/a-1.zarr","{raw}","a-1/a-1.zarr","{labels}/crop5/[mito,er]"',
        f'"train","b-1/b-1.zarr","{raw}","b-1/b-1.zarr","{labels}/crop6/[mito,er]"',
    ]


def test_a_class_that_validation_crops_alone_annotate_is_told():
    sides = [("train", crop("a-1", classes="mito")), ("validate", crop("b-1", "crop7", "mito er"))]
    [said] = make_split.never_learnt(sides, ["mito", "er", "nuc"])
    assert said.startswith("never learnt, since only validation crops annotate it: er (b-1/crop7);")


def test_auto_splits_one_specimen_by_crop_and_several_by_specimen(tmp_path, capsys):
    for number in range(4):
        labelled_store(tmp_path, "one-1", f"crop{number}", start=(100 * number, 0, 0))
    path = tmp_path / "d.csv"
    make_split.make(path, data_root=tmp_path, by="auto", classes=["mito"])
    assert set(sides_of(path).values()) == {"train", "validate"}
    assert "all 4 crops that fit are of one specimen" in capsys.readouterr().err
    assert "--by crop" in path.read_text()
    labelled_store(tmp_path, "two-1")
    make_split.make(path, data_root=tmp_path, by="auto", classes=["mito"], overwrite=True)
    assert "--by specimen" in path.read_text()
    # of what is left without the test crops
    split = {"by": "auto", "classes": ["mito"], "overwrite": True}
    make_split.make(path, data_root=tmp_path, test=["two-1"], **split)
    assert "--by crop" in path.read_text()


# Folds, forced classes, leaks


def test_folds_are_files_of_their_own_and_one_table(tmp_path):
    path = tmp_path / "x" / "datasplit.csv"
    path.parent.mkdir()
    report = make_split.make(path, scale=32, classes=["mito", "perox"], folds=3).splitlines()
    files = [path.with_name(f"datasplit_fold{k}.csv") for k in range(3)]
    assert sorted(path.parent.iterdir()) == files
    first = files[0].read_text().splitlines()[0]
    assert first == files[2].read_text().splitlines()[0]
    assert first.endswith(
        "make-datasplit x/datasplit.csv --manifest challenge --classes mito,perox --scale 32 "
        "--seed 0 --by specimen --min-extent 1 --folds 3"
    )
    cells = ["perox"]
    for file in files:
        annotating = [row.usage for row in read_datasplit(file, "data") if "perox" in row.annotated]
        cells.append("/".join(str(annotating.count(usage)) for usage in USAGES))
    assert cells in [line.split() for line in report]
    with pytest.raises(UserError, match=r"datasplit_fold0\.csv: exists already"):
        make_split.make(path, scale=32, folds=3)


def test_crops_that_are_left_out_are_named(tmp_path):
    report = make_split.make(tmp_path / "split.csv", scale=8, classes=["perox"])
    (line,) = [line for line in report.splitlines() if "left out" in line]
    assert "crops left out, too coarse, too small or without these classes: jrc_" in line


def test_folds_of_an_earlier_call_with_more_of_them_are_told(tmp_path):
    path = tmp_path / "split.csv"
    make_split.make(path, scale=32, classes=["mito", "perox"], folds=3)
    report = make_split.make(
        path, scale=32, classes=["mito", "perox"], folds=2, overwrite=True
    ).splitlines()
    left = tmp_path / "split_fold2.csv"
    assert report[-1] == f"WARNING: {left}: is of another split, and none of these folds"


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
        "--by crop --min-extent 1 --method hash --hold-out jrc_hela-3,jrc_ut21-1413-003 "
        "--force-classes validate"
    )
    rows = read_datasplit(tmp_path / "a.csv", "data")
    assert {len(r.annotated) for r in rows if r.usage == "validate"} == {48}
    assert min(len(r.annotated) for r in rows if r.usage == "train") < 48


def test_test_crops_are_written_counted_and_told_where_they_share_a_specimen(tmp_path):
    path = tmp_path / "d.csv"
    table = make_split.make(path, scale=8, by="dataset", classes=["mito"], test=["jrc_cos7-1a"])
    rows = read_datasplit(path, "data", with_test=True)
    tests = [row for row in rows if row.usage == "test"]
    assert tests and {row.key[0] for row in tests} == {"jrc_cos7-1a"}
    assert path.read_text().splitlines()[0].endswith("--test jrc_cos7-1a")
    assert f"{len(tests)} test crops of jrc_cos7-1" in path.read_text().splitlines()[1]
    assert ["class", "train", "validate", "test"] in [line.split() for line in table.splitlines()]
    assert "test crops are of specimens that train or validate too: jrc_cos7-1;" in table


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
    rows = read_datasplit(tmp_path / "d.csv", "data")
    for usage, forced in zip(USAGES, complete, strict=True):
        counts = [len(row.annotated) for row in rows if row.usage == usage]
        assert (min(counts) == 48) == forced


@pytest.mark.parametrize(
    "choice, said",
    [
        ({"method": "random"}, "method 'random'; write 'balanced'"),
        ({"force_classes": "validation"}, "force-classes 'validation'; write 'all'"),
        ({"folds": 1}, "folds 1; write 2 or more"),
        ({"folds": 10**9}, "folds 1000000000; write 2 or more, up to 1000"),
        ({"folds": 3, "hold_out": ["jrc_hela-2"]}, "hold-out jrc_hela-2 with 3 folds"),
        ({"folds": 3, "validation_fraction": 0.3}, "validation fraction 0.3 with 3 folds"),
    ],
)
def test_choices_that_do_not_go_together_are_named(tmp_path, choice, said):
    with pytest.raises(UserError, match=said):
        make_split.make(tmp_path / "d.csv", scale=8, **choice)


def test_leaks_are_specimens_and_volumes_of_both_sides():
    """Along x in units of 8 nm: a 0-10 and b 5-15 overlap, c 20-30 does not.

    s-1a and s-1b are one specimen.
    """
    a = crop("s-1a", "a")
    b = crop("s-1a", "b", start=(0, 0, 40))
    c = crop("s-1a", "c", start=(0, 0, 160))
    other = crop("s-1b", "d")
    assert make_split.leaks([("train", a), ("validate", crop("t-1"))]) == []
    (shared,) = make_split.leaks([("train", a), ("validate", other), ("validate", crop("t-1"))])
    assert shared.startswith("1 specimen trains and validates")
    assert ": s-1; make-datasplit --group-by specimen" in shared
    _, overlap = make_split.leaks([("train", b), ("train", c), ("validate", a)])
    assert overlap.startswith("1 validation crop overlaps a training crop: s-1a/a and b;")
    (alone,) = make_split.leaks([("train", c), ("validate", a), ("validate", b)])
    assert alone.endswith("than new specimens will: s-1"), "there is no other one to keep apart"


def test_the_report_warns_of_leaks(tmp_path):
    assert "WARNING" not in make_split.make(tmp_path / "d.csv", scale=8)
    report = make_split.make(tmp_path / "e.csv", scale=8, by="crop")
    (warning,) = [line for line in report.splitlines() if line.startswith("WARNING")]
    assert "specimens train and validate" in warning


# Writing


def test_a_split_read_back_is_the_split_that_was_chosen(tmp_path):
    crops = catalogue.read_crop_table()
    chosen = choose_sides(crops, SplitRules(scale=(128, 128, 128)))
    make_split.write_datasplit(tmp_path / "datasplit.csv", make_split.rows(chosen, TESTED))
    rows = read_datasplit(tmp_path / "datasplit.csv", "data")
    assert [(r.usage, r.name, set(r.annotated)) for r in rows] == [
        (usage, f"{c.dataset}/{c.name}", c.classes) for usage, c in chosen
    ]


def test_a_second_split_replaces_the_first_only_when_asked_to(tmp_path):
    path = tmp_path / "datasplit.csv"
    make_split.write_datasplit(path, ["one"])
    with pytest.raises(UserError, match=r"datasplit\.csv: .* --overwrite"):
        make_split.write_datasplit(path, ["two"])
    assert path.read_bytes() == b"one\n"
    make_split.write_datasplit(path, ["two"], overwrite=True)
    assert path.read_bytes() == b"two\n"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "datasplit.csv"
    make_split.write_datasplit(path, ["one"])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        make_split.write_datasplit(path, ["two"], overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["datasplit.csv"]
    assert path.read_bytes() == b"one\n"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"datasplit\.csv: its folder"):
        make_split.write_datasplit(tmp_path / "nowhere" / "datasplit.csv", ["one"])


# The command


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize(("name", "force_classes"), SPLITS.items())
def test_the_committed_split_is_what_the_command_makes_byte_for_byte(
    tmp_path, monkeypatch, experiment, name, force_classes
):
    monkeypatch.setattr(balanced, "DRAWS", USERS_DRAWS)
    scale, min_extent = EXPERIMENTS[experiment]
    path = tmp_path / experiment / name
    path.parent.mkdir()
    make_split.make(path, scale=scale, min_extent=min_extent, force_classes=force_classes)
    committed = (REPOSITORY / experiment / name).read_bytes()
    assert committed == path.read_bytes()
    forced = f" --force-classes {force_classes}" if force_classes else ""
    assert committed.decode().splitlines()[0] == (
        "# python -m cellmap_segmentation_challenge make-datasplit "
        f"{experiment}/{name} --manifest challenge --classes tested --scale {scale} "
        f"--validation-fraction 0.17 --seed 0 --by specimen --min-extent {min_extent}{forced}"
    )


@pytest.mark.parametrize(
    ("experiment", "train", "validate", "more"),
    [
        ("setup_04_all", 186, 38, 21),
        ("unet8_all", 186, 38, 21),
        ("unet32_all", 170, 36, 63),
        ("unet128_all", 69, 19, 49),
        ("resenc8_all", 186, 38, 21),
    ],
)
def test_a_baseline_trains_on_crops_that_annotate_every_class(experiment, train, validate, more):
    """The wider split holds the same crops on the same sides, and those that annotate a part."""
    rows = read_datasplit(REPOSITORY / experiment / "datasplit.csv", "data")
    assert all(set(row.annotated) == set(TESTED) for row in rows)
    assert Counter(row.usage for row in rows) == {"train": train, "validate": validate}
    wide = sides_of(REPOSITORY / experiment / "datasplit_partial.csv")
    assert wide.items() >= {row.name: row.usage for row in rows}.items()
    assert len(wide) - len(rows) == more
    readme = (REPOSITORY / experiment / "README.md").read_text()
    assert (
        f"{train} crops train, {validate} validate ({validate / len(rows):.1%}".replace("%", " %")
        in readme
    )
    assert f"with {more} crops more" in readme
    assert f"train {experiment} --set datasplit_path=datasplit_partial.csv" in readme


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("name", SPLITS)
def test_every_tested_class_stands_on_both_sides_of_a_committed_split(experiment, name):
    rows = read_datasplit(REPOSITORY / experiment / name, "data")
    for usage in USAGES:
        annotated = [row.annotated for row in rows if row.usage == usage]
        counts = Counter(name for names in annotated for name in names)
        assert min(counts[name] for name in TESTED) >= 19, counts


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("name", SPLITS)
def test_a_committed_split_validates_on_about_a_sixth_of_the_crops(experiment, name):
    sides = sides_of(REPOSITORY / experiment / name)
    validate = [path.split("/")[0] for path, usage in sides.items() if usage == "validate"]
    assert 0.15 < len(validate) / len(sides) < 0.22
    kinds = len({crop(dataset).kind for dataset in validate})
    # at 128 nm few of the crops that annotate all classes are large enough
    assert kinds >= (2 if (experiment, name) == ("unet128_all", "datasplit.csv") else 4)


def test_no_specimen_stands_on_both_sides_within_or_across_the_experiments():
    usages = {}
    for experiment in EXPERIMENTS:
        for file in SPLITS:
            for name, usage in sides_of(REPOSITORY / experiment / file).items():
                usages.setdefault(crop(name.split("/")[0]).specimen, set()).add(usage)
    assert len(usages) == 21
    assert all(len(found) == 1 for found in usages.values())


def test_crops_too_coarse_or_too_small_are_not_in_the_fine_split():
    names = set(sides_of(REPOSITORY / "unet8_all" / "datasplit_partial.csv"))
    coarse = set(sides_of(REPOSITORY / "unet32_all" / "datasplit_partial.csv"))
    assert "jrc_mus-kidney/crop221" not in names
    assert "jrc_mus-kidney/crop129" in names
    assert "jrc_mus-kidney/crop221" in coarse
    assert "jrc_hela-2/crop9" in names
    assert "jrc_hela-2/crop9" not in coarse


def test_one_number_is_the_scale_of_every_axis(tmp_path):
    for name, scale in (("a", 32), ("b", (32, 32.0, 32))):
        (tmp_path / name).mkdir()
        make_split.make(tmp_path / name / "d.csv", scale=scale)
    first, second = ((tmp_path / name / "d.csv").read_text() for name in "ab")
    assert first.replace("a/d.csv", "b/d.csv") == second


def test_without_a_scale_crops_of_every_resolution_are_taken(tmp_path):
    make_split.make(tmp_path / "d.csv")
    assert len(sides_of(tmp_path / "d.csv")) == 289
    assert " --scale any " in (tmp_path / "d.csv").read_text()


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
        "# python -m cellmap_segmentation_challenge make-datasplit "
        "mine/datasplit.csv --manifest challenge --classes mito,er --scale 8,4,4 "
        "--validation-fraction 0.17 --seed 3 --by crop --min-extent 1 "
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
    rows = read_datasplit(tmp_path / "d.csv", tmp_path / "data")
    check_files(rows)
    assert {r.name: r.annotated for r in rows} == {
        "a-1/x1": ("mito", "er"),
        "b-1/x10": ("mito",),
        "c-1/x2": ("er",),
    }
    assert "--data DATA" in (tmp_path / "d.csv").read_text().splitlines()[0]
    assert any(line.startswith(f"{broken}: ") for line in report.splitlines())
    assert "annotated in no train crop: pm" in report
    with pytest.raises(UserError, match="no crop 'x'; there are 4: x1, x2, x3, x10"):
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
        f"{tmp_path}/d.csv: 5 training crops, 1 validation crop (16.7%) of s-"
    )
    assert [line.split() for line in report[1:]] == [
        ["class", "train", "validate"],
        ["mito", "5", "1"],
        ["er", "4", "1"],
        ["nuc", "1", "0"],
        ["annotated", "in", "no", "validate", "crop:", "nuc"],
    ]


def test_wrong_choices_are_named_together(tmp_path):
    with pytest.raises(UserError) as caught:
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
    assert said == ["scale 8", "validation fraction 1", "seed -1", "min-extent -1", "by 'cell'"]
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
    with pytest.raises(UserError, match=said):
        make_split.make(tmp_path / "d.csv", scale=8, **choice)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such manifest"):
        make_split.make(tmp_path / "d.csv", scale=8, manifest=tmp_path / "nowhere.csv")


# The toolbox's function


@pytest.fixture
def data(tmp_path):
    """Six specimens of one crop; the even ones annotate mito and er, the odd ones mito alone."""
    for n in range(6):
        classes = ("mito",) if n % 2 else ("mito", "er")
        labelled_store(tmp_path / "data", f"s-{n}", "crop1", classes)
    return tmp_path / "data"


def complete_rows(rows):
    return {side: {len(r.annotated) == 2 for r in rows if r.usage == side} for side in USAGES}


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
    make_datasplit_csv(["mito", "er"], 8, force, 0.2, csv_path=path, data_root=data)
    rows = read_datasplit(path, data)
    assert (len(rows), complete_rows(rows)) == (count, complete)


def test_an_incomplete_crop_validates_where_only_training_is_forced(tmp_path, data):
    make_datasplit_csv(["mito", "er"], 8, "train", 0.6, csv_path=tmp_path / "d.csv", data_root=data)
    assert complete_rows(read_datasplit(tmp_path / "d.csv", data)) == {
        "train": {True},
        "validate": {True, False},
    }


def test_an_unknown_way_to_force_classes_is_an_error(tmp_path, data):
    """In the toolbox 'validation' does nothing, silently."""
    with pytest.raises(UserError, match="force_all_classes 'validation'"):
        make_datasplit_csv(["mito"], 8, "validation", csv_path=tmp_path / "d.csv", data_root=data)


def test_no_complete_crop_is_an_error_where_completeness_is_forced(tmp_path, data):
    with pytest.raises(UserError, match="no crop of 6 annotates all of mito, nuc"):
        make_datasplit_csv(["mito", "nuc"], 8, True, csv_path=tmp_path / "d.csv", data_root=data)


def test_a_dry_run_gives_the_crops_and_writes_nothing(tmp_path, data):
    path = tmp_path / "d.csv"
    found = make_datasplit_csv(
        ["er", "mito"], 8, csv_path=path, dry_run=True, data_root=data, crops=["crop1"]
    )
    assert found[f"{data}/s-0/s-0.zarr/recon-1/labels/groundtruth/crop1"] == ["er", "mito"]
    assert (len(found), path.exists()) == (6, False)


def test_an_existing_file_is_refused_before_the_data_are_looked_at(tmp_path, data):
    path = tmp_path / "datasplit.csv"
    path.write_text("# by hand")
    for function in (make_split.make, make_datasplit_csv):
        with pytest.raises(UserError, match=r"datasplit\.csv: exists already"):
            function(csv_path=path, scale=8, data_root=tmp_path / "nowhere")
    found = make_datasplit_csv(["mito"], 8, csv_path=path, data_root=data, dry_run=True)
    assert len(found) == 6
    make_datasplit_csv(["mito"], 8, csv_path=path, data_root=data, overwrite=True)
    assert len(read_datasplit(path, data)) == 6


def test_labels_coarser_than_the_scale_are_left_out_and_none_takes_all(data):
    labelled_store(data, "t-1", "crop1", ("mito",), voxel_size=(16, 16, 16))
    fine = make_datasplit_csv(["mito"], (8, 8, 8), data_root=data, dry_run=True)
    every = make_datasplit_csv(["mito"], data_root=data, dry_run=True)
    assert (len(fine), len(every)) == (6, 7)


def test_a_broken_crop_is_warned_of(data):
    (data / "s-3" / "s-3.zarr" / layout.LABELS / "crop1" / "mito" / ".zattrs").unlink()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = make_datasplit_csv(["mito"], 8, data_root=data, dry_run=True)
    assert len(found) == 5
    assert "s-3.zarr" in str(said[0].message)
