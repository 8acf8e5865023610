"""The file datasplit.csv: read, refused with a sentence, compared with what is on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from crops_at_hand import labelled_store

from common.data.splits import make_split
from common.data.splits import split as split_module
from common.data.volumes import layout
from common.errors import UserError


def written(tmp_path, *lines):
    path = tmp_path / "datasplit.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def row(usage="train", name="crop1", classes="[mito,er]"):
    return f'"{usage}","d/d.zarr","{layout.RAW}","d/d.zarr","{layout.LABELS}/{name}/{classes}"'


def problems(tmp_path, *lines):
    with pytest.raises(UserError) as caught:
        split_module.read_datasplit(written(tmp_path, *lines), "data")
    return str(caught.value).splitlines()


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
        ("val", "validate"),
        ("Train", "train"),
        ("VALIDATE", "validate"),
        ("Test", "test"),
    ],
)
def test_usage_is_known_by_its_beginning(tmp_path, word, usage):
    path = written(tmp_path, row(word), row("train", "crop2"))
    rows = split_module.read_datasplit(path, "data", with_test=True)
    assert rows[0].usage == usage


def test_test_crops_are_no_part_of_a_run_unless_they_are_asked_for(tmp_path):
    without = split_module.read_datasplit(written(tmp_path, row(), row("val", "crop2")), "data")
    path = written(tmp_path, row(), row("test", "crop9"), row("val", "crop2"))
    assert split_module.read_datasplit(path, "data") == without
    with_test = split_module.read_datasplit(path, "data", with_test=True)
    assert [each.usage for each in with_test] == ["train", "test", "validate"]
    (problem,) = problems(tmp_path, row(), row("test"))
    assert "line 2: d/crop1 (test) already stands in line 1 (train)" in problem


@pytest.mark.parametrize("word", ["vaildate", "trian", "tset", "usage"])
def test_an_unknown_usage_does_not_validate_silently(tmp_path, word):
    (problem,) = problems(tmp_path, row(), row(word, "crop2"))
    assert problem.endswith(
        f"datasplit.csv: line 2: usage '{word}'; write 'train', 'validate' or 'test'"
    )


@pytest.mark.parametrize(
    "line, said",
    [
        ('"train","d.zarr"', "2 columns"),
        ("train,d.zarr,em,d.zarr,gt/crop1,[mito,er]", "6 columns"),
        ("train,d.zarr/em,d.zarr/gt/crop1/[mito,er", "label path 'd.zarr/gt/crop1/[mito,er'"),
        ('"train","d.zarr","em","d.zarr"', "label path 'em'"),
        (
            '"train","d.zarr","em","d.zarr","gt/crop1/[mito',
            "not a row of CSV (unexpected end of data)",
        ),
        (row(classes="[mito,er"), "label path"),
        (row(classes="mito,er]"), "label path"),
        (row(classes="[mito]/s0"), "label path"),
        (row(classes="[]"), "classes ''"),
        (row(classes="[mito,,er]"), "classes 'mito,,er'"),
        (row(classes="[mito,er,mito]"), "class 'mito' stands 2 times"),
        ('"train","","em","d.zarr","gt/crop1/[mito]"', "a column is empty"),
    ],
)
def test_a_malformed_row_is_named_with_its_line(tmp_path, line, said):
    (problem,) = problems(tmp_path, "# first", row(name="crop7"), line)
    assert "datasplit.csv: line 3: " + said in problem
    assert "; write" in problem


def test_a_crop_stands_on_one_side(tmp_path):
    (problem,) = problems(tmp_path, row("train"), row("validate", "x/../crop1"))
    assert "line 2: d/crop1 (validate) already stands in line 1 (train)" in problem


def test_rows_of_one_crop_are_put_together(tmp_path):
    lines = [row(classes="mito"), row(name="crop2"), row(name="x/../crop1", classes="[er,mito]")]
    first, second = split_module.read_datasplit(written(tmp_path, *lines), "data")
    assert (first.crop.name, first.annotated, first.line) == ("crop1", ("mito", "er"), 1)
    assert (second.crop.name, second.line) == ("crop2", 2)


def test_rows_of_one_crop_say_one_grid(tmp_path):
    fine = row(classes="[mito]#voxel_size=8")
    same = row(classes="[er]#voxel_size=8")
    (read,) = split_module.read_datasplit(written(tmp_path, fine, same), "data")
    assert read.class_volume("er").name == "er#voxel_size=8"
    (problem,) = problems(tmp_path, fine, row(classes="[er]#voxel_size=16"))
    assert "line 2: d/crop1 has '#voxel_size=16' behind its classes, and '#voxel_size=8'" in problem


def test_different_crops_of_one_name_are_noted(tmp_path, capsys):
    lines = [row(), row(name="crop2"), row().replace("d/d.zarr", "e/d.zarr")]
    rows = split_module.read_datasplit(written(tmp_path, *lines), "data")
    assert [one.name for one in rows] == ["d/crop1", "d/crop2", "d/crop1"]
    (said,) = capsys.readouterr().err.splitlines()
    assert "lines 1, 3 are different crops of one name, d/crop1" in said


def test_labels_with_the_raw_of_another_dataset_are_noted(tmp_path, capsys):
    """A row that was copied and changed in part; filtered raw in a store of its own is not said."""
    elsewhere = row(name="crop5").replace('"d/d.zarr"', '"e/e.zarr"', 1)
    filtered = row(name="crop6").replace('"d/d.zarr"', '"d/filtered.zarr"', 1)
    lines = [row(), row().replace("d/d.zarr", "e/e.zarr"), elsewhere, filtered]
    split_module.read_datasplit(written(tmp_path, *lines), "data")
    (said,) = capsys.readouterr().err.splitlines()
    assert "line 3: labels of d/crop5 with the raw of e, which has crops of its own" in said


def test_a_crop_has_one_raw(tmp_path):
    (problem,) = problems(tmp_path, row(), row().replace("fibsem-uint8", "fibsem-uint16"))
    assert "line 2: d/crop1 (train) already stands in line 1 (train)" in problem


LABELS = f"d/d.zarr/{layout.LABELS}/crop1"


@pytest.mark.parametrize(
    "line",
    [
        f"train,d/d.zarr,{layout.RAW},d/d.zarr,{layout.LABELS}/crop1/[mito,er]",
        f"train,d/d.zarr/{layout.RAW},{LABELS}/[mito,er]",
        f'"train", "d/d.zarr/{layout.RAW}", "{LABELS}/[mito, er]"',
        f" train , d/d.zarr/{layout.RAW} ,{LABELS}/[mito, er] ",
        row().replace("/", "\\"),
        row().replace(",", " , ", 2) + " \t",
    ],
)
def test_a_row_of_the_toolbox_and_of_hands_is_the_row(tmp_path, line):
    (expected,) = split_module.read_datasplit(written(tmp_path, row()), "data")
    (one,) = split_module.read_datasplit(written(tmp_path, line), "data")
    assert one == expected


def test_a_path_from_the_users_folder_is_that(tmp_path, monkeypatch):
    """No shell has replaced ~ in a file."""
    monkeypatch.setenv("HOME", "/home/me")
    for line in (row().replace("d/d.zarr", "~/d/d.zarr"), f"train,~/raw.tif,~/{LABELS}/[mito]"):
        (one,) = split_module.read_datasplit(written(tmp_path, line), "data")
        assert one.raw.is_relative_to("/home/me")
        assert str(one.crop) == f"/home/me/{LABELS}"


@pytest.mark.parametrize(
    "header", ["usage,raw,raw_path,gt,gt_path", '"split","raw store","raw","labels"', "type, x, y"]
)
def test_a_line_of_column_names_is_skipped(tmp_path, header):
    (one,) = split_module.read_datasplit(written(tmp_path, "# by hand", header, row()), "data")
    assert (one.line, one.annotated) == (3, ("mito", "er"))


@pytest.mark.parametrize("place", ["beside", "here"])
def test_relative_paths_start_where_the_stores_are(tmp_path, monkeypatch, capsys, place):
    labelled_store(tmp_path / "beside", classes=("mito", "er"))
    (tmp_path / "split").mkdir()
    monkeypatch.chdir(tmp_path / ("beside" if place == "here" else "split"))
    folder = tmp_path / ("beside" if place == "beside" else "split")
    path = written(folder, row())
    (one,) = split_module.read_datasplit(path, tmp_path / "data")
    assert one.data_root == tmp_path / "beside"
    split_module.check_files([one])
    assert f"start from {tmp_path}/beside" in capsys.readouterr().err
    # the data root comes first
    labelled_store(tmp_path / "data", classes=("mito", "er"))
    (one,) = split_module.read_datasplit(path, tmp_path / "data")
    assert one.data_root == tmp_path / "data"


def test_a_crop_number_is_not_the_beginning_of_another(tmp_path):
    path = written(tmp_path, row(name="crop1"), row(name="crop10"))
    assert len(split_module.read_datasplit(path, "data")) == 2


@pytest.mark.parametrize("lines, count", [(["# nothing"], 0), ([row("validate")], 1)])
def test_a_split_without_training_rows_is_refused(tmp_path, lines, count):
    (problem,) = problems(tmp_path, *lines)
    assert f"{count} rows, none to train on" in problem


def test_everything_wrong_is_in_one_message(tmp_path):
    lines = [
        row("vla", classes="[a"),
        row(),
        "train",
        row("validate"),
        row(name="crop2", classes="[]"),
    ]
    found = problems(tmp_path, *lines)
    assert [text.split("line ")[1].split(":")[0] for text in found] == ["1", "1", "3", "5", "4"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such data split"):
        split_module.read_datasplit(tmp_path / "nowhere.csv", "data")


@pytest.mark.parametrize("classes", ["../[mito]", "[..]", "[.,mito]", "[mito/../../x]"])
def test_names_that_climb_out_of_a_crop_are_refused(tmp_path, classes):
    (line,) = problems(tmp_path, row(classes=classes))
    assert "ends in no folder of a crop" in line or "write names of folders" in line


@pytest.mark.parametrize("store", ["az://bucket/d.zarr", "ftp://host/d.zarr"])
def test_an_address_is_not_taken_for_a_store(tmp_path, store):
    (line,) = problems(tmp_path, f'"train","{store}","em","d.zarr","labels/crop1/[mito]"')
    assert f"line 1: column '{store}' is an address of a kind that is not read; write" in line


# Files and hash


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
        f"{path}: line 2: no er in {store / layout.LABELS}/crop1",
        f"{path}: line 3: no crop folder {store / layout.LABELS}/crop2",
        f"{path}: line 4: no zarr store {tmp_path}/data/e/e.zarr",
    ]
    assert lines[3].startswith(f"{path}: 3 missing in all; correct these lines, or take them out")
    with pytest.raises(FileNotFoundError, match="2 missing in all; name the folder that holds"):
        split_module.check_files(split_module.read_datasplit(path, tmp_path / "other"))


def test_of_absolute_paths_that_are_gone_another_data_root_is_not_the_advice(tmp_path):
    gone = tmp_path / "gone"
    rows = (line.replace('"d/', f'"{gone}/d/') for line in (row(), row("validate", "crop2")))
    path = written(tmp_path, *rows)
    with pytest.raises(FileNotFoundError) as caught:
        split_module.check_files(split_module.read_datasplit(path, tmp_path / "data"))
    first, advice = str(caught.value).splitlines()
    assert first == f"{path}: lines 1, 2: no zarr store {gone}/d/d.zarr"
    assert advice.startswith(f"{path}: 1 missing in all; they are absolute, so that --data does")


def test_what_is_missing_is_told_with_what_lies_there_in_nearly_its_name(tmp_path):
    data = tmp_path / "data"
    labels = labelled_store(data, classes=("mito", "er")) / layout.LABELS
    path = written(tmp_path, row(classes="[mitoo]"), row("validate").replace("d/d", "D/D"))
    with pytest.raises(FileNotFoundError) as caught:
        split_module.check_files(split_module.read_datasplit(path, data))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith(
        f"no class folder {labels}/crop1/mitoo; did you mean mito, which is there?"
    )
    assert lines[1].endswith(
        f"no zarr store {data}/D/D.zarr; did you mean {data}/d, in these letters?"
    )


def test_a_class_of_the_table_that_is_not_there_is_no_misspelt_one(tmp_path):
    labelled_store(tmp_path / "data", classes=("mito",))
    path = written(tmp_path, row(classes="[mito_mem]"))
    with pytest.raises(FileNotFoundError, match=r"no mito_mem in \S*crop1\n"):
        split_module.check_files(split_module.read_datasplit(path, tmp_path / "data"))


def test_a_store_that_many_rows_name_is_said_to_be_missing_once(tmp_path):
    path = written(tmp_path, *(row(name=f"crop{n}") for n in range(9)))
    with pytest.raises(FileNotFoundError) as caught:
        split_module.check_files(split_module.read_datasplit(path, tmp_path / "data"))
    first, advice = str(caught.value).splitlines()
    store = tmp_path / "data/d/d.zarr"
    assert first == f"{path}: lines 1, 2, 3, 4, 5 and 4 more: no zarr store {store}"
    assert "1 missing in all" in advice and "fetch-data" not in advice


def test_missing_crops_of_the_challenge_come_with_the_command_that_fetches_them(tmp_path):
    line = split_module.row_text("train", "jrc_cos7-1a", "crop234", ["ecs"])
    path = written(tmp_path, line)
    rows = split_module.read_datasplit(path, tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="fetch them with fetch-data, or name the folder"):
        split_module.check_files(rows)
    (tmp_path / "train_config.py").touch()
    command = f"fetch-data --data {tmp_path}/data --for {tmp_path}"
    with pytest.raises(FileNotFoundError, match=f"cellmap_segmentation_challenge {command}\n"):
        split_module.check_files(rows)


@pytest.mark.parametrize("given", ["data/d", "data/d/d.zarr", "."])
def test_a_data_root_that_is_off_by_a_folder_is_told_the_right_one(tmp_path, given):
    labelled_store(tmp_path / "data", classes=("mito", "er"))
    rows = split_module.read_datasplit(written(tmp_path, row()), tmp_path / given)
    with pytest.raises(FileNotFoundError, match=f"write --data {tmp_path}/data$"):
        split_module.check_files(rows)


def test_a_problem_of_all_rows_is_not_said_for_each(tmp_path):
    rows = [row(name=f"crop{n}", classes="[mito,,er]") for n in range(12)]
    with pytest.raises(UserError) as caught:
        split_module.read_datasplit(written(tmp_path, *rows), tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and lines[-1].endswith("problems more of this kind")


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
    assert "13 missing in all" in str(caught.value)


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


# The public toolbox


def sides_of(path: Path) -> dict[str, list[str]]:
    """The crops of a datasplit as the real cellmap-data reads them, those with a label volume."""
    cellmap_data = pytest.importorskip("cellmap_data")
    info = {"raw": {"shape": (8, 8, 8), "scale": (8, 8, 8)}}
    splitted = cellmap_data.CellMapDataSplit(
        input_arrays=info,
        target_arrays={"labels": info["raw"]},
        classes=["mito", "er"],
        csv_path=str(path),
        pad=True,
    )
    sides = {}
    datasets_of = {
        "train": splitted.train_datasets,
        "validate": splitted.validation_datasets,
    }
    for usage, datasets in datasets_of.items():
        sides[usage] = []
        for dataset in datasets:
            batch = dataset[len(dataset) // 2]
            assert batch["raw"].isfinite().all() and batch["labels"].isfinite().any()
            sides[usage].append(dataset.target_path.split("/")[-2])
    return sides


def test_cellmap_data_reads_what_make_datasplit_writes(tmp_path, data_root, monkeypatch):
    path = tmp_path / "datasplit.csv"
    choice = {"classes": ("mito", "er"), "scale": 8.0, "validation_fraction": 0.34, "by": "crop"}
    make_split.make(path, data_root=data_root, absolute=True, **choice)
    monkeypatch.chdir(tmp_path)
    absolute = sides_of(path)
    assert sorted(len(names) for names in absolute.values()) == [1, 2]
    # relative ones are those of the working folder there
    make_split.make(path, data_root=data_root, overwrite=True, **choice)
    monkeypatch.chdir(data_root)
    assert sides_of(path) == absolute
    ours = split_module.read_datasplit(path, data_root)
    for usage, names in absolute.items():
        assert {row.crop.name for row in ours if row.usage == usage} == set(names)
