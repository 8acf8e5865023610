"""Find out what a path holds that is no volume that can be read, for the error about it."""

from __future__ import annotations

from pathlib import Path

from common.data.volumes.sources.remote import Address
from common.errors import UserError

MARKERS = (".zgroup", ".zarray", "zarr.json", "attributes.json", "info")
"""Files that a folder of a volume has, by its kind."""

READ = (
    "OME-NGFF (zarr), N5, precomputed, TIFF, HDF5, MRC, NIfTI, NRRD and folders of slices are read"
)

FORMATS = {
    (".hdr", ".img"): "half of a volume in two files",
    (".mha", ".mhd"): "a MetaImage file",
    (".npy", ".npz"): "a NumPy file",
    (".zip",): "a zip file",
    (".zarr", ".n5"): "a file where a folder belongs",
    (".czi", ".lif", ".nd2", ".dm3", ".dm4", ".ser"): "a microscope's own file",
    (".png", ".jpg", ".jpeg"): "a picture",
}
"""Kinds of files by the end of their names."""

MOST_IMAGES = 3
"""Most images that a message lists if a folder is not an image but contains some."""


def refusal(path: Path) -> Exception:
    """Return the error for a path that no kind of volume is at: FileNotFoundError or UserError."""
    if isinstance(path, Address):
        return FileNotFoundError(
            f"{path}: no volume there, or not a public one: none of {', '.join(MARKERS)} is in it; "
            "check the address, which ends in the folder of the image"
        )
    if path.is_file():
        name = path.name.lower()
        kinds = [kind for endings, kind in FORMATS.items() if name.endswith(endings)]
        return UserError(f"{path}: {[*kinds, 'a file'][0]}; {READ}: convert it first")
    if not path.is_dir():
        return FileNotFoundError(f"{path}: nothing is there; write the path of a volume")
    below = images_below(path)
    where = f"write the path of an image in it, such as {below[0]}" if below else READ
    return UserError(f"{path}: no volume (it has no {', '.join(MARKERS[:2])} or the like); {where}")


def images_below(folder: Path) -> list[Path]:
    """Return the first few groups with multiscale metadata that are one or two folders below."""
    images = []
    for file in sorted([*folder.glob("*/.zattrs"), *folder.glob("*/*/.zattrs")]):
        try:
            is_image = b'"multiscales"' in file.read_bytes()
        except OSError:
            is_image = False
        if is_image:
            images.append(file.parent)
        if len(images) == MOST_IMAGES:
            break
    return images
