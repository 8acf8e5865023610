"""NIfTI and NRRD in detail: what their headers say is used, said, or refused in one sentence."""

from __future__ import annotations

import nibabel
import nrrd
import numpy as np
import pytest

from common.data.volumes.ngff import open_levels
from common.data.volumes.sources import place, rows
from common.errors import UserError
from tests.data import foreign_writers as writers
from tests.data.foreign_writers import VOLUME


def nifti(path, way, *, unit="mm", dtype=np.uint8, slope=None, intercept=None):
    image = nibabel.Nifti1Image(VOLUME.T.astype(dtype), way)
    image.header.set_xyzt_units(unit)
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(path)
    return path


def test_millimetres_that_no_em_has_are_said_and_not_used(tmp_path, capsys):
    path = nifti(tmp_path / "a.nii", np.diag([4, 6, 8, 1]))
    with pytest.raises(UserError, match="nothing in it says how large a voxel is"):
        open_levels(path)
    assert "says voxels of 8e+06 x 6e+06 x 4e+06 nm, which no EM" in capsys.readouterr().err
    (level,) = open_levels(f"{path}#voxel_size=8,6,4")
    np.testing.assert_allclose(level.scale, (8, 6, 4))


def test_a_place_in_units_that_are_not_used_stays_the_same_voxel(tmp_path):
    way = np.diag([4.0, 6, 8, 1])
    way[:3, 3] = (40, 600, 800)
    (level,) = open_levels(f"{nifti(tmp_path / 'a.nii', way)}#voxel_size=8,6,4")
    np.testing.assert_allclose(level.translation, (800, 600, 40))


def test_the_place_of_turned_axes_is_along_them(tmp_path):
    way = np.eye(4)
    way[:2, :2] = 0.008 * np.array([[0.8, -0.6], [0.6, 0.8]])
    way[2, 2] = 0.008
    way[:3, 3] = 5
    (level,) = open_levels(nifti(tmp_path / "a.nii", way, unit="micron"))
    np.testing.assert_allclose(level.scale, 8, rtol=1e-5)
    # x' = 0.8 x + 0.6 y, y' = 0.8 y - 0.6 x of (5, 5, 5) um
    np.testing.assert_allclose(level.translation, (5000, 1000, 7000), rtol=1e-5)


def test_values_of_nifti_are_scaled_as_its_header_says(tmp_path):
    path = nifti(tmp_path / "a.nii", np.eye(4), dtype=np.int16, slope=0.5, intercept=-7)
    (level,) = open_levels(f"{path}#voxel_size=8")
    expected = np.asarray(nibabel.load(path).dataobj).T
    values = level.read((2, 3, 4), (9, 12, 29))
    assert values.dtype == level.array.dtype == np.float32
    np.testing.assert_allclose(values, expected[2:9, 3:12, 4:29])


def test_a_packed_file_is_unpacked_once_in_pieces(tmp_path, monkeypatch):
    pieces = []

    def unpack(content, plain=rows.OPEN["gzip"]):
        stream = plain(content)
        read = stream.read
        stream.read = lambda size: pieces.append(read(size)) or pieces[-1]
        return stream

    path = tmp_path / writers.nrrd(tmp_path, VOLUME)
    monkeypatch.setitem(rows.OPEN, "gzip", unpack)
    monkeypatch.setattr(rows, "PIECE", 1000)
    (level,) = open_levels(path)
    assert pieces == []  # for its header alone
    for z in range(3):
        np.testing.assert_array_equal(level.read((z, 0, 0), (z + 1, 20, 30))[0], VOLUME[z])
    assert max(map(len, pieces)) == 1000
    assert sum(map(len, pieces)) == VOLUME.nbytes


def test_types_and_byte_orders_of_nrrd_are_read(tmp_path):
    for dtype in ("int8", "uint16", "int32", "float32", ">u2", ">f8"):
        volume = VOLUME.astype(dtype)
        header = {"spacings": [4, 6, 8], "encoding": "bzip2", "endian": "little"}
        if dtype.startswith(">"):
            header["endian"] = "big"
        nrrd.write(str(tmp_path / "a.nrrd"), volume.T, header)
        (level,) = open_levels(tmp_path / "a.nrrd")
        np.testing.assert_array_equal(level.read((1, 2, 3), (5, 6, 7)), volume[1:5, 2:6, 3:7])


def test_a_spacing_without_a_unit_is_said_to_be_nm(tmp_path, capsys):
    nrrd.write(str(tmp_path / "a.nrrd"), VOLUME.T, {"spacings": [4, 6, 8]})
    np.testing.assert_allclose(open_levels(tmp_path / "a.nrrd")[0].scale, (8, 6, 4))
    assert "a.nrrd: no unit, so lengths are taken as nm" in capsys.readouterr().err


HEADERS = {
    "type: uint8\ndimension: 3\nencoding: raw": "no 'sizes' in it",
    "type: uint16\nsizes: 2 2 2\nencoding: raw": "no 'endian' in its header",
    "type: block\nsizes: 2 2 2\nencoding: raw": "voxels of type block",
    "type: uint8\nsizes: 2 2 2\nencoding: ascii": "encoding ascii; write it with encoding raw",
    "type: uint8\nsizes: 2 2 2\nencoding: raw\nbyte skip: 5": "bytes before its voxels; write",
    "type: uint8\nsizes: 2 2 2\nencoding: raw\ndata file: LIST": "voxels in several files",
    "type: uint8\nsizes: two\nencoding: raw": "cannot be read as an NRRD file",
    "type: uint8\nsizes: 2 2 2 2\nencoding: raw": "4 axes, of shape",
    "type: uint8\nsizes: 2 2 2\nencoding: raw\nspacings: 1 1 2\nunits: nm nm um": "one unit f",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_of_nrrd_that_says_too_little_or_too_much_is_one_sentence(tmp_path, header):
    path = tmp_path / "a.nrrd"
    path.write_bytes(f"NRRD0005\n{header}\n\n".encode() + bytes(16))
    with pytest.raises(UserError, match=f"a.nrrd: .*{HEADERS[header]}") as error:
        open_levels(path)
    assert "\n" not in str(error.value)


def test_half_of_a_nifti_pair_is_one_sentence(tmp_path):
    path = nifti(tmp_path / "a.nii", np.eye(4))
    content = bytearray(path.read_bytes())
    content[344:348] = b"ni1\0"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.nii: .*a header without voxels; write one file"):
        open_levels(path)


def test_the_name_of_a_packed_volume_has_no_ending():
    names = [place.store_name(f"data/{name}") for name in ("cell.nii.gz", "cell.nrrd", "a.b.tif")]
    assert names == ["cell", "cell", "a.b"]
