"""Say what a path holds if it is not an OME-NGFF 0.4 group of zarr v2."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.files import refuse_remote
from common.talk import count

NEEDED = "an OME-NGFF 0.4 group of zarr v2 on this disk is needed here"

ZARR_3 = "zarr v3 (it has a zarr.json); write it as zarr v2 with OME-NGFF 0.4 metadata"

FORMATS = {
    (".tif", ".tiff"): "a TIFF file",
    (".h5", ".hdf5", ".hdf", ".ims"): "an HDF5 file",
    (".mrc", ".rec", ".map", ".ali", ".st"): "an MRC file",
    (".nii", ".nii.gz"): "a NIfTI file",
    (".nrrd", ".nhdr"): "an NRRD file",
    (".npy", ".npz"): "a NumPy file",
    (".zip",): "a zip file",
    (".czi", ".lif", ".nd2", ".dm3", ".dm4", ".ser"): "a microscope's own file",
    (".png", ".jpg", ".jpeg"): "a picture",
}
"""Kinds of files by the end of their names."""

MOST_IMAGES = 3
"""Most images that a message lists if a folder is not an image but contains some."""


def refuse(path: Path) -> None:
    """Check that a path is a zarr v2 group.

    Raises:
        FileNotFoundError: if nothing is there.
        UserError: if it is something else; the message says what it is and what is needed.
    """
    refuse_remote(path)
    if path.is_file():
        raise UserError(f"{path}: {_kind_of_file(path)}; {NEEDED}: convert it first")
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such zarr group; a multiscale OME-NGFF group is needed here"
        )
    if not (path / ".zgroup").is_file():
        raise UserError(f"{path}: {_kind_of_folder(path)}")


def images_below(folder: Path) -> list[Path]:
    """The first few groups below a folder that have multiscale metadata, two folders deep."""
    found = []
    for file in sorted([*folder.glob("*/.zattrs"), *folder.glob("*/*/.zattrs")]):
        try:
            is_image = b'"multiscales"' in file.read_bytes()
        except OSError:
            is_image = False
        if is_image:
            found.append(file.parent)
        if len(found) == MOST_IMAGES:
            break
    return found


def _kind_of_file(path: Path) -> str:
    name = path.name.lower()
    for endings, kind in FORMATS.items():
        if name.endswith(endings):
            return kind
    return "a file"


def _array(path: Path) -> str:
    """What to do with an array in the place of a group."""
    if (path.parent / ".zgroup").is_file():
        return f"not a zarr v2 group but an array; write the group that it is in, {path.parent}"
    return (
        "a zarr v2 array, which does not say how large its voxels are; put it into an OME-NGFF 0.4 "
        "group, with the voxel size in nm"
    )


def _kind_of_folder(path: Path) -> str:
    """What a folder without .zgroup is, and what to write instead."""
    if (path / "zarr.json").is_file():
        return ZARR_3
    if (path / ".zarray").is_file():
        return _array(path)
    if (path / "attributes.json").is_file():
        return f"N5 (it has an attributes.json), not a zarr v2 group; {NEEDED}: convert it first"
    if (path / "info").is_file():
        return (
            "precomputed of neuroglancer (it has an info), not a zarr v2 group; "
            f"{NEEDED}: convert it first"
        )
    pictures = [*path.glob("*.tif"), *path.glob("*.tiff"), *path.glob("*.png")]
    if pictures:
        pictured = count(len(pictures), "picture")
        return f"a folder of {pictured}, not a zarr v2 group; {NEEDED}: convert it first"
    below = images_below(path)
    where = f"write the path of an image in it, such as {below[0]}" if below else NEEDED
    return f"not a zarr v2 group (it has no .zgroup); {where}"
