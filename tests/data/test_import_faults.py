"""What is wrong with a volume that is imported, of every kind: one sentence, and no dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.data.volumes import layout
from common.errors import UserError
from tests.data import foreign_writers as writers
from tests.data.own_import import import_data
from tests.volumes import voxels_of

RAW = writers.VOLUME
LABELS = (RAW > 128).astype(np.uint8)

KINDS = {
    "TIFF": writers.tiff_pages,
    "HDF5": writers.plain_hdf5,
    "MRC": writers.mrc,
    "NIfTI": writers.plain_nifti,
    "NRRD": writers.plain_nrrd,
    "slices": writers.tiff_slices,
    "zarr 2": writers.plain_zarr2,
    "zarr 3": writers.plain_zarr3,
    "N5": writers.plain_n5,
    "precomputed": writers.precomputed,
}


def raw_only(root: Path, volume: np.ndarray = RAW) -> str:
    return f"{root / writers.plain_hdf5(root, volume)}#voxel_size=8,6,4"


def cut_off(root: Path, writer) -> None:
    """Every file of a volume without its last bytes."""
    files = [file for file in root.rglob("*") if file.is_file() and file.suffix != ".json"]
    for file in files:
        if file.name not in ("info", ".zarray", ".zattrs", ".zgroup"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_volume_is_one_sentence_and_the_import_goes_on_once_it_is_whole(tmp_path, kind):
    folder = tmp_path / "given"
    folder.mkdir()
    name = KINDS[kind](folder, RAW)
    cut_off(folder, KINDS[kind])
    options = {"voxel_size": writers.VOXEL, "data": tmp_path / "data", "say": lambda _: None}
    with pytest.raises(UserError, match=r"copy") as error:
        import_data(f"{folder / name}", "cell", **options)
    assert "\n" not in str(error.value)
    whole = tmp_path / "whole"
    whole.mkdir()
    KINDS[kind](whole, RAW)
    for path in sorted(whole.rglob("*")):
        if path.is_file():
            (folder / path.relative_to(whole)).write_bytes(path.read_bytes())
    store = import_data(f"{folder / name}", "cell", **options)
    np.testing.assert_array_equal(voxels_of(store / layout.RAW), RAW)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("MRC", "precomputed")])
def test_a_voxel_size_that_nobody_says_is_asked_for(tmp_path, kind):
    path = tmp_path / KINDS[kind](tmp_path, RAW)
    with pytest.raises(UserError, match=r"nothing in it says how large a voxel is; .*--voxel-size"):
        import_data(str(path), "cell", data=tmp_path / "data")
    assert not (tmp_path / "data").exists()


IDS = np.arange(RAW.size, dtype=np.uint16).reshape(RAW.shape) // 3

WRONG = {
    "of another shape": (LABELS[:9], r"has 9 x 20 x 30 voxels .* write where its first voxel lies"),
    "that are raw": (RAW, r"this looks like raw, and not like labels"),
    "that are ids": (IDS, r"more than 1000 different values for class mito, .*--instances mito"),
    "that are no whole numbers": (
        LABELS * np.float32(0.5),
        r"float32 with the value 0.5; write la",
    ),
}

NO_VOLUMES = {
    "of four axes": (np.zeros((2, 6, 4, 5), np.uint8), r"4 axes|2 channels|shape \[6, 4, 5\]"),
    "of complex numbers": (RAW.astype(np.complex64), r"complex|<c8"),
    "without voxels": (np.zeros((0, 4, 5), np.uint8), r"no voxel at all|shape \[0, 4, 5\]; write"),
}

KINDS_OF_LABELS = ("TIFF", "HDF5", "slices", "zarr 2", "zarr 3", "N5")


@pytest.mark.parametrize("kind", KINDS_OF_LABELS)
@pytest.mark.parametrize("what", WRONG)
def test_labels_that_are_none_are_one_sentence(tmp_path, kind, what):
    raw = raw_only(tmp_path)
    folder = tmp_path / "labels"
    folder.mkdir()
    volume, words = WRONG[what]
    labels = f"{folder / KINDS[kind](folder, volume)}"
    with pytest.raises(UserError, match=words) as error:
        import_data(
            raw,
            "cell",
            labels={"mito": labels},
            voxel_size=writers.VOXEL,
            data=tmp_path / "data",
            say=lambda _: None,
        )
    assert "\n" not in str(error.value)
    # labels come first: the raw is not copied for nothing
    assert not (tmp_path / "data" / layout.raw("cell")).exists()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        *(("HDF5", what) for what in NO_VOLUMES),
        *(("zarr 2", what) for what in NO_VOLUMES),
        *(("zarr 3", what) for what in list(NO_VOLUMES)[:2]),
        *(
            ("TIFF", "of complex numbers"),
            ("slices", "of four axes"),
            ("MRC", "of complex numbers"),
            ("NIfTI", "of complex numbers"),
            ("NIfTI", "of four axes"),
            ("NRRD", "of four axes"),
        ),
    ],
)
def test_what_is_no_volume_is_one_sentence(tmp_path, kind, what):
    volume, words = NO_VOLUMES[what]
    path = tmp_path / KINDS[kind](tmp_path, volume)
    with pytest.raises(UserError, match=words) as error:
        import_data(str(path), "cell", voxel_size=(8.0, 8.0, 8.0), data=tmp_path / "data")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()
