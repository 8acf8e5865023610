"""Submissions: packed and read back, every bad input refused, and nothing half-written left."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pytest
import zarr

from common.data.splits.manifest import Entry
from common.data.volumes.ngff import write_multiscale
from common.errors import UserError
from common.score import packing, submission
from common.score.packing import pack
from common.score.submission import check, opened
from tests.volumes import changing

SHAPE = (10, 12, 14)
MITO = Entry(
    "crop1", "cell", "mito", (8.0, 8.0, 8.0), (100.0, 200.0, 300.0), SHAPE
)  # scored as instances
ECS = Entry("crop1", "cell", "ecs", (8.0, 8.0, 8.0), (100.0, 200.0, 300.0), SHAPE)
NUC = Entry("crop22", "tissue", "nuc", (16.0, 16.0, 16.0), (104.0, 204.0, 304.0), (5, 6, 7))
ENTRIES = [MITO, ECS, NUC]

IDS = np.zeros(SHAPE, np.uint8)
IDS[1:4, 1:5, 1:5], IDS[4:8, 6:11, 6:11] = 3, 9
MASK = np.indices(SHAPE).sum(0) % 3 > 0
BLOCKS = np.random.default_rng(0).integers(0, 5, NUC.shape).repeat(2, 0).repeat(2, 1).repeat(2, 2)


@pytest.fixture
def source_of(tmp_path: Path) -> Callable[[Entry], Path]:
    """Processed volumes of all entries, at 8 nm."""

    def path(entry: Entry) -> Path:
        return tmp_path / f"processed/{entry.dataset}.zarr/{entry.path}"

    for entry, volume in (
        (MITO, IDS),
        (ECS, MASK.astype(np.float32)),
        (NUC, BLOCKS.astype(np.float32)),
    ):
        write_multiscale(path(entry), volume, (8, 8, 8), (100, 200, 300), chunk=8)
    return path


@pytest.fixture
def packed(tmp_path, source_of) -> Path:
    return pack(ENTRIES, source_of, tmp_path / "submission.zip", lambda text: None)


def test_volumes_between_the_voxels_of_the_manifest_are_told(tmp_path, source_of):
    said: list[str] = []
    pack(ENTRIES, source_of, tmp_path / "submission.zip", said.append)
    assert not [line for line in said if line.startswith("note")]
    write_multiscale(source_of(MITO), IDS, (8, 8, 8), (100, 204, 300), chunk=8)
    pack([MITO], source_of, tmp_path / "submission.zip", said.append)
    (note,) = [line for line in said if line.startswith("note")]
    assert "1 of 1 lie beside the voxels of the manifest" in note


def silent(text: str) -> None:
    pass


def unzipped(packed: Path, folder: Path) -> Path:
    with ZipFile(packed) as file:
        file.extractall(folder)
    return folder


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with ZipFile(path, "w", ZIP_DEFLATED) as file:
        for inside in sorted(folder.rglob("*")):
            file.write(inside, prefix + inside.relative_to(folder).as_posix())
    return path


def everything_in(path: Path) -> dict[str, np.ndarray]:
    with opened(path) as group:
        return {entry.path: group[entry.path][:] for entry in ENTRIES}


# packing


def test_what_predict_wrote_is_not_packed_for_a_mask(tmp_path, source_of):
    # of probabilities in 255ths each one above 0 would be the class
    for path in source_of(ECS), source_of(MITO):
        attributes = {"prediction": {"content": "probability", "dtype": "uint8", "key": "a"}}
        write_multiscale(path, IDS, (8, 8, 8), (100, 200, 300), chunk=8, attributes=attributes)
    with pytest.raises(UserError, match="crop1/ecs: written by predict, and no mask or ids yet"):
        pack(ENTRIES, source_of, tmp_path / "submission.zip", silent)


def test_probabilities_in_whole_numbers_are_no_mask_whoever_wrote_them(tmp_path, source_of):
    """Of what another program wrote in 255ths each voxel above 0 would be the class."""
    z, y, x = np.indices(SHAPE)
    soft = (255 / (1 + np.exp(z - 5 + (y - x) / 3))).astype(np.uint8)
    write_multiscale(source_of(ECS), soft, (8, 8, 8), (100, 200, 300), chunk=8)
    said = r"crop1/ecs.*: values that differ from voxel to voxel.*; write 0 and 1"
    with pytest.raises(UserError, match=said):
        pack(ENTRIES, source_of, tmp_path / "submission.zip", silent)
    group = zarr.open_group(str(tmp_path / "own.zarr"), mode="w")
    packing._write(group, ECS, soft)
    (problem,) = check(tmp_path / "own.zarr", [ECS])
    assert re.search(said, problem)


def test_a_semantic_class_may_have_ids_of_objects(tmp_path, source_of):
    cells = np.arange(27).reshape(3, 3, 3).repeat(4, 0).repeat(4, 1).repeat(5, 2)[:10, :12, :14] + 1
    write_multiscale(source_of(ECS), cells, (8, 8, 8), (100, 200, 300), chunk=8)
    packed = pack([ECS], source_of, tmp_path / "submission.zip", silent)
    assert check(packed, [ECS]) == []


@pytest.mark.parametrize("enclosed", [False, True])
def test_two_folders_of_one_crop_are_refused(tmp_path, packed, enclosed):
    store = unzipped(packed, tmp_path / ("outer/mine.zarr" if enclosed else "mine"))
    place = store.parent if enclosed else store
    shutil.copytree(store / "crop1", place / ("crop1" if enclosed else "1"))
    told = "crop1 beside mine.zarr" if enclosed else "crop1"
    with pytest.raises(UserError, match=told), opened(place):
        pass


def test_what_is_packed_is_read_back(packed):
    found = everything_in(packed)
    np.testing.assert_array_equal(found["crop1/mito"], IDS)
    np.testing.assert_array_equal(found["crop1/ecs"], MASK)
    np.testing.assert_array_equal(found["crop22/nuc"], BLOCKS[::2, ::2, ::2])
    assert {volume.dtype for volume in found.values()} == {np.dtype(np.uint8)}
    assert check(packed, ENTRIES) == []


def test_the_zip_holds_zarr_v2_at_its_root_as_the_organisers_unpack_it(packed, tmp_path):
    folder = unzipped(packed, tmp_path / "unzipped")
    assert sorted(path.name for path in folder.iterdir()) == [".zgroup", "crop1", "crop22"]
    group = zarr.open_group(str(folder), mode="r")
    np.testing.assert_array_equal(group["crop1/mito"][:], IDS)
    assert dict(group["crop22/nuc"].attrs) == {
        "voxel_size": [16.0, 16.0, 16.0],
        "translation": [104.0, 204.0, 304.0],
        "shape": [5, 6, 7],
    }


@pytest.mark.parametrize(
    ("largest", "dtype"), [(255, np.uint8), (512, np.uint16), (70_000, np.uint32)]
)
def test_no_id_is_lost_or_wrapped(source_of, tmp_path, largest, dtype):
    """As uint8, 512 objects are 255."""
    volume = np.zeros(SHAPE, np.int64)
    volume.flat[:600] = np.arange(largest - 599, largest + 1).clip(0)
    write_multiscale(source_of(MITO), volume, (8, 8, 8), (100, 200, 300))
    path = pack([MITO], source_of, tmp_path / "submission.zip", silent)
    with opened(path) as group:
        np.testing.assert_array_equal(group["crop1/mito"][:], volume)
        assert group["crop1/mito"].dtype == dtype


def test_a_volume_of_many_chunks_most_of_them_empty_is_packed(source_of, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 4)
    found = everything_in(pack(ENTRIES, source_of, tmp_path / "submission.zip", silent))
    np.testing.assert_array_equal(found["crop1/mito"], IDS)


def test_probabilities_at_their_own_resolution_are_thresholded(source_of, tmp_path):
    """0.9 in float32 is 1, not 0."""
    write_multiscale(source_of(ECS), np.full(SHAPE, 0.9, np.float32), (8, 8, 8), (100, 200, 300))
    with opened(pack([ECS], source_of, tmp_path / "submission.zip", silent)) as group:
        assert (group["crop1/ecs"][:] == 1).all()


def test_what_is_packed_is_said(source_of, tmp_path):
    said = []
    pack(ENTRIES, source_of, tmp_path / "submission.zip", said.append)
    assert said[0] == "crop1/mito: 10 x 12 x 14 uint8" and said[-1].endswith(
        "submission.zip: 3 volumes, 3 kB"
    )


def test_a_volume_of_nothing_is_said(source_of, tmp_path):
    said = []
    write_multiscale(source_of(ECS), np.zeros(SHAPE, np.uint8), (8, 8, 8), (100, 200, 300))
    pack(ENTRIES, source_of, tmp_path / "submission.zip", said.append)
    assert said[1] == "crop1/ecs: 10 x 12 x 14 uint8, 0 everywhere"


def test_a_newer_zip_replaces_the_older(packed, source_of):
    """Nothing of the older one is read again."""
    assert (everything_in(packed)["crop1/mito"] == 3).any()
    write_multiscale(source_of(MITO), np.where(IDS == 3, 4, IDS), (8, 8, 8), (100, 200, 300))
    pack(ENTRIES, source_of, packed, silent)
    assert not (everything_in(packed)["crop1/mito"] == 3).any()


def test_all_that_is_wrong_with_the_volumes_comes_in_one_message(source_of, tmp_path):
    shutil.rmtree(source_of(MITO))
    (source_of(ECS) / ".zattrs").unlink()
    write_multiscale(source_of(NUC), BLOCKS[:8], (8, 8, 8), (100, 200, 300))
    with pytest.raises(ValueError) as error:
        pack(ENTRIES, source_of, tmp_path / "out/submission.zip", silent)
    missing, half_written, short = str(error.value).split("\n")
    assert f"crop1/mito: {source_of(MITO)}: no such volume; run predict and process" in missing
    assert (
        f"crop1/ecs: {source_of(ECS)}: no 'multiscales'" in half_written
        and "run process again" in half_written
    )
    assert (
        "crop22/nuc" in short
        and "covers z, y, x 96 to 160, 196 to 292, 296 to 408 nm of z, y, x 96 to 176" in short
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entry", "volume", "words"),
    [
        (MITO, IDS - 1.0, "crop1/mito: .*-1 is no id of an object"),
        (MITO, IDS.astype(np.int16) - 1, "crop1/mito: .*id -1; write ids above zero"),
        (ECS, IDS * 1.0, "crop1/ecs: .*values from 0 to 9"),
    ],
)
def test_values_that_are_neither_ids_nor_a_mask_leave_no_zip(
    source_of, tmp_path, entry, volume, words
):
    write_multiscale(source_of(entry), volume, (8, 8, 8), (100, 200, 300))
    with pytest.raises(ValueError, match=words):
        pack(ENTRIES, source_of, tmp_path / "out/submission.zip", silent)
    assert not list((tmp_path / "out").iterdir())


def test_a_volume_that_cannot_be_decoded_leaves_the_older_zip(packed, source_of):
    before = packed.read_bytes()
    for entry in (MITO, NUC):
        chunk = source_of(entry) / "s0/0/0/0"
        chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(ValueError) as error:
        pack(ENTRIES, source_of, packed, silent)
    assert "crop1/mito" in str(error.value) and "crop22/nuc" in str(error.value)
    assert packed.read_bytes() == before and not list(packed.parent.glob(".*"))


def test_a_submission_that_its_own_check_refuses_is_not_finished(source_of, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "on_grid", lambda entry, level: np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="crop1/ecs: shape"):
        pack([ECS], source_of, tmp_path / "out/submission.zip", silent)
    assert not list((tmp_path / "out").iterdir())


# checking


@pytest.mark.parametrize("form", [str, Path])
def test_missing_and_surplus_volumes_are_listed(packed, tmp_path, form):
    other = Entry(
        "crop1",
        "cell",
        "er",
        *(getattr(MITO, name) for name in ("voxel_size", "translation", "shape")),
    )
    problems = check(form(packed), [MITO, other])
    assert problems == [
        f"{packed}: crop1/ecs: not in the manifest; take it out",
        f"{packed}: crop1/er: missing; process this crop and class, and pack again",
        f"{packed}: crop22/nuc: not in the manifest; take it out",
    ]


@pytest.mark.parametrize(
    ("moved", "meant"), [("crop1/mitoo", "crop1/mito"), ("crop_22/nuc", "crop22/nuc")]
)
def test_a_volume_of_a_misspelt_name_is_told_with_the_one_that_is_missing(
    packed, tmp_path, moved, meant
):
    folder = unzipped(packed, tmp_path / "submission.zarr")
    (folder / moved).parent.mkdir(exist_ok=True)
    (folder / meant).rename(folder / moved)
    problems = check(folder, ENTRIES)
    hint = f"did you mean {meant}, which is missing?"
    assert f"{folder}: {moved}: not in the manifest; {hint}" in problems


def test_a_multiscale_group_in_the_place_of_an_array_is_told(packed, tmp_path):
    folder = unzipped(packed, tmp_path / "submission.zarr")
    (folder / "crop1/mito").rename(folder / "s0")
    (folder / "crop1/mito").mkdir()
    (folder / "s0").rename(folder / "crop1/mito/s0")
    (folder / "crop1/mito/.zgroup").write_text('{"zarr_format": 2}')
    (problem,) = check(folder, ENTRIES)
    assert problem == (
        f"{folder}: crop1/mito: a group, and the organisers read an array; write its finest level "
        "there"
    )


def test_an_array_beside_the_crops_is_told(packed, tmp_path):
    folder = unzipped(packed, tmp_path / "submission.zarr")
    shutil.copytree(folder / "crop1/mito", folder / "mito")
    assert check(folder, ENTRIES) == [f"{folder}: mito: not in the manifest; take it out"]


def test_an_array_of_zarr_v3_is_told(packed, tmp_path):
    folder = unzipped(packed, tmp_path / "submission.zarr")
    shutil.rmtree(folder / "crop1/mito")
    (folder / "crop1/mito").mkdir()
    (folder / "crop1/mito/zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')
    told = f"{folder}: crop1/mito: of zarr v3, and the organisers read v2; pack it again"
    assert check(folder, ENTRIES) == [told]


def test_classes_that_several_networks_predicted_are_said(source_of, tmp_path):
    other = Entry("crop2", *list(vars(ECS).values())[1:])
    write_multiscale(source_of(other), MASK.astype(np.uint8), (8, 8, 8), (100, 200, 300))
    for entry, sha256 in ((ECS, "a"), (other, "b"), (NUC, "c")):
        about = {"threshold": 0.5, "process_config": "", "instances": False}
        about["prediction"] = {"key": "k", "sha256": sha256}
        with changing(source_of(entry)) as attributes:
            attributes["processed"] = about
    said: list[str] = []
    pack([ECS, other, NUC], source_of, tmp_path / "s.zip", said.append)
    assert said[0].startswith("note: ecs: not all crops were predicted by the same checkpoint")


def rewrite(folder: Path, name: str, edit: Callable[[dict], None]) -> None:
    """Change the JSON of a file of the array crop1/mito."""
    path = folder / "crop1/mito" / name
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        (".zarray", lambda array: array.update(dtype="<f4"), "float32; write unsigned integers"),
        (".zarray", lambda array: array.update(dtype="|b1"), "bool; write unsigned integers"),
        (
            ".zarray",
            lambda array: array.update(shape=[10, 12, 15]),
            "shape (10, 12, 15); write (10, 12, 14)",
        ),
        (".zarray", lambda array: array.pop("chunks"), "metadata cannot be read"),
        (
            ".zattrs",
            lambda attributes: attributes.update(voxel_size=[8, 8, 4]),
            "voxel_size [8, 8, 4]; write [8.0, 8.0, 8.0]",
        ),
        (
            ".zattrs",
            lambda attributes: attributes.update(translation=[96, 200, 300]),
            "translation [96, 200, 300]; write [100.0",
        ),
        (
            ".zattrs",
            lambda attributes: attributes.update(translation="100"),
            "translation 100; write",
        ),
        (
            ".zattrs",
            lambda attributes: attributes.pop("voxel_size"),
            "voxel_size None; write [8.0, 8.0, 8.0]",
        ),
    ],
)
def test_an_array_unlike_its_entry_is_named(packed, tmp_path, name, edit, words):
    folder = unzipped(packed, tmp_path / "submission.zarr")
    rewrite(folder, name, edit)
    (problem,) = check(folder, ENTRIES)
    assert problem.startswith(f"{folder}: crop1/mito: ") and words in problem
    assert len(check(zipped(folder, tmp_path / "again.zip"), ENTRIES)) == 1


@pytest.mark.parametrize("name", [".zgroup", "crop1/.zgroup", "crop1/mito/.zattrs"])
def test_metadata_cut_short_are_a_problem(packed, tmp_path, name):
    folder = unzipped(packed, tmp_path / "submission.zarr")
    (folder / name).write_text('{"zarr_f')
    (problem,) = check(folder, ENTRIES)
    assert str(folder) in problem


def test_a_missing_submission_is_named(tmp_path):
    for read in (lambda path: check(path, ENTRIES), everything_in):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.zip: no such submission"):
            read(tmp_path / "nowhere.zip")


# damaged and dangerous zips


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_zip_cut_short_is_refused(packed, kept):
    content = packed.read_bytes()
    packed.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    (problem,) = check(packed, ENTRIES)
    assert problem.startswith(f"{packed}: not a whole zip") or "is damaged" in problem
    with pytest.raises(ValueError, match="not a whole zip"):
        everything_in(packed)


def test_a_changed_byte_is_found_by_the_checksum(packed):
    content = bytearray(packed.read_bytes())
    with ZipFile(packed) as file:
        info = file.getinfo("crop1/mito/0/0/0")
    content[info.header_offset + 30 + len(info.filename) + info.file_size // 2] ^= 1
    packed.write_bytes(content)
    assert check(packed, ENTRIES) == [
        f"{packed}: 'crop1/mito/0/0/0' is damaged; copy or pack the zip again"
    ]
    with pytest.raises(ValueError, match=f"{packed}: 'crop1/mito/0/0/0' is damaged"):
        everything_in(packed)


@pytest.mark.parametrize(
    "name",
    ["/etc/evil", "../evil", "crop1/../../evil", "C:/evil", "c:evil", "..\\evil", "crop1\\mito"],
)
def test_paths_that_lead_out_of_a_zip_are_refused(packed, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    with ZipFile(packed, "a") as file:
        file.writestr(name, "evil")
    (problem,) = check(packed, ENTRIES)
    assert f"'{name}' points outside of the zip" in problem
    with pytest.raises(ValueError, match="points outside of the zip"):
        everything_in(packed)
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "evil").exists() and not Path("/etc/evil").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(packed, kind):
    info = ZipInfo("crop1/mito/9")
    info.external_attr = (kind | 0o777) << 16
    with ZipFile(packed, "a") as file:
        file.writestr(info, "/etc/passwd")
    assert "'crop1/mito/9' is a link or a device" in check(packed, ENTRIES)[0]


def test_a_bomb_is_refused_before_it_is_read(packed):
    with ZipFile(packed, "a", ZIP_DEFLATED, compresslevel=9) as file:
        file.writestr("crop1/mito/9", bytes(20 * 2**20))
    (problem,) = check(packed, ENTRIES)
    assert "at most 50,000,000,000 and 500 times the size" in problem


def test_more_than_the_organisers_unpack_is_refused(packed, monkeypatch):
    monkeypatch.setattr(submission, "MAX_BYTES", 1000)
    assert "unpack to" in check(packed, ENTRIES)[0]


def test_metadata_of_a_megabyte_are_refused(packed):
    with ZipFile(packed, "a") as file:
        file.writestr("crop1/.zattrs", b" " * (2**20 + 1))
    assert "'crop1/.zattrs' has 1,048,577 bytes" in check(packed, ENTRIES)[0]


def test_unusual_compression_is_refused(packed):
    with ZipFile(packed, "a", ZIP_BZIP2) as file:
        file.writestr("crop1/mito/9", b"0")
    assert "packed in an unusual way" in check(packed, ENTRIES)[0]


# other forms of a submission


def test_a_zip_in_an_enclosing_zarr_folder_is_read(packed, tmp_path):
    folder = unzipped(packed, tmp_path / "unzipped")
    (tmp_path / "__MACOSX").mkdir()
    nested = zipped(folder, tmp_path / "nested.zip", "my.zarr/")
    with ZipFile(nested, "a") as file:
        file.writestr("__MACOSX/._crop1", "finder")
    assert check(nested, ENTRIES) == []
    np.testing.assert_array_equal(everything_in(nested)["crop1/mito"], IDS)


@pytest.mark.parametrize("as_zip", [False, True])
def test_crops_without_their_prefix_are_read(packed, tmp_path, as_zip):
    path = unzipped(packed, tmp_path / "unzipped")
    (path / "crop1").rename(path / "1")
    (path / "crop22").rename(path / "22")
    path = zipped(path, tmp_path / "numbers.zip") if as_zip else path
    assert check(path, ENTRIES) == []
    np.testing.assert_array_equal(everything_in(path)["crop22/nuc"], BLOCKS[::2, ::2, ::2])


@pytest.mark.parametrize("as_zip", [False, True])
def test_missing_zgroups_are_implied(packed, tmp_path, as_zip):
    path = unzipped(packed, tmp_path / "unzipped")
    for name in (".zgroup", "crop1/.zgroup", "crop22/.zgroup"):
        (path / name).unlink()
    path = zipped(path, tmp_path / "bare.zip") if as_zip else path
    assert check(path, ENTRIES) == []


def test_a_folder_that_holds_a_zarr_folder_is_read(packed, tmp_path):
    unzipped(packed, tmp_path / "mine/submission.zarr")
    assert check(tmp_path / "mine", ENTRIES) == []


def test_a_folder_that_holds_one_zip_is_that_zip(packed, tmp_path):
    """An unpacked copy of an older one beside it is not read (trap 31)."""
    (tmp_path / "mine").mkdir()
    unzipped(packed, tmp_path / "mine/submission.zarr")
    rewrite(tmp_path / "mine/submission.zarr", ".zarray", lambda array: array.update(dtype="<f4"))
    shutil.copy(packed, tmp_path / "mine")
    assert check(tmp_path / "mine", ENTRIES) == []


def test_of_two_zips_one_must_be_named(packed, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("a.zip", "b.zip"):
        shutil.copy(packed, tmp_path / "mine" / name)
    assert check(tmp_path / "mine", ENTRIES) == [
        f"{tmp_path / 'mine'}: 2 zips in it; name the one that is meant"
    ]


def test_a_folder_without_crops_is_no_submission(tmp_path):
    (tmp_path / "mine/deeper/crop1").mkdir(parents=True)
    assert (
        "no crops in it; the folders crop557 and so on must lie at its root"
        in check(tmp_path / "mine", ENTRIES)[0]
    )


@pytest.mark.parametrize("as_zip", [False, True])
def test_an_opened_submission_cannot_be_changed(packed, tmp_path, as_zip):
    path = packed if as_zip else unzipped(packed, tmp_path / "unzipped")
    with opened(path) as group, pytest.raises(zarr.errors.ReadOnlyError):
        group["crop1/mito"][:] = 0
    with opened(path) as group, pytest.raises(zarr.errors.ReadOnlyError):
        group.store["crop1/.zgroup"] = b""


def test_the_keys_of_an_opened_submission_are_those_of_the_plain_one(packed, tmp_path):
    folder = unzipped(packed, tmp_path / "unzipped")
    (folder / "crop1").rename(folder / "1")
    nested = zipped(folder, tmp_path / "nested.zip", "my.zarr/")
    with opened(nested) as group, ZipFile(packed) as plain:
        assert sorted(
            key for key in group.store if not key.endswith("/") and group.store[key]
        ) == sorted(plain.namelist())
        assert len(group.store) >= len(plain.namelist())


def test_an_error_of_the_reader_passes_through(packed):
    with pytest.raises(ZeroDivisionError), opened(packed):
        raise ZeroDivisionError


# what an array says of itself


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunks": [100_000] * 3}, "GB, which no memory takes"),
        ({"shape": [100_000] * 3}, "1,000,000,000,000,000 bytes; at most 50,000,000,000"),
        ({"filters": [{"id": "pickle"}]}, "codec 'pickle' is not decoded"),
        ({"compressor": {"id": "pickle"}}, "codec 'pickle' is not decoded"),
        ({"compressor": {"id": "mine"}}, "codec 'mine' is not decoded"),
        ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "holds objects of Python"),
    ],
)
def test_an_array_that_would_run_code_or_fill_the_memory_is_not_opened(
    packed, tmp_path, changes, words
):
    folder = unzipped(packed, tmp_path / "submission.zarr")
    rewrite(folder, ".zarray", lambda array: array.update(changes))
    for path in (folder, zipped(folder, tmp_path / "again.zip")):
        (problem,) = check(path, ENTRIES)
        assert problem.startswith(f"{path}: crop1/mito: ") and words in problem


@pytest.mark.parametrize("name", ["crop1/mito/0/0/0", "1/mito/0/0/0", "1/.zgroup"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(packed, name):
    with ZipFile(packed, "a") as file:
        file.writestr(name, b"another")
    (problem,) = check(packed, ENTRIES)
    assert "is in it 2 times; zip the zarr folder again" in problem
    with pytest.raises(ValueError, match="is in it 2 times"):
        everything_in(packed)


@pytest.mark.parametrize("name", ["crop1//mito/0/0/0", "./crop1/mito/0/0/0", "crop1/./9"])
def test_another_spelling_of_a_path_is_refused(packed, name):
    with ZipFile(packed, "a") as file:
        file.writestr(name, b"another")
    assert "is no path of zarr" in check(packed, ENTRIES)[0]
