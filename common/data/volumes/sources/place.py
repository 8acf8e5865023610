"""Read how a user names a volume: a path or an address, and what its file does not say.

    raw.tif#voxel_size=8                                 one number: cubes of 8 nm
    raw.h5:/volumes/raw#voxel_size=40,4,4                nm, z, y, x
    s3://bucket/cell.n5/em#translation=0,800,800         centre of the first voxel, nm

What stands behind # goes before what the file says. Web servers are never sent it.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from common.data.volumes.sources.remote import ADDRESS, Address
from common.errors import UserError
from common.files import is_remote

# as in links of viewers: precomputed://gs://bucket/volume
_OF_VIEWERS = re.compile("^(precomputed|n5|zarr[23]?)://(?=[a-z0-9]+://)|^file://")

OPTIONS = ("voxel_size", "translation")

TIFF = (".tif", ".tiff")
MRC = (".mrc", ".rec", ".map", ".ali", ".st")
HDF5 = (".h5", ".hdf5", ".hdf", ".ims")
NIFTI = (".nii", ".nii.gz")
NRRD = (".nrrd", ".nhdr")
FILES = (*TIFF, *MRC, *HDF5, *NIFTI, *NRRD)
"""Ends of the names of files that hold volumes."""

FOLDERS = (".zarr", ".n5")
"""Of folders that hold volumes."""


@dataclass(frozen=True)
class Place:
    """Where a volume is, and what the user says of it."""

    path: Path
    """A path, or an `Address`, without what stands behind #."""
    voxel_size: tuple[float, ...] = ()
    """nm, z, y, x."""
    translation: tuple[float, ...] = ()
    """Position in nm of the centre of the first voxel of the finest level, z, y, x."""

    @property
    def is_remote(self) -> bool:
        """Whether it is an address."""
        return isinstance(self.path, Address)


def path_of(text: str | PurePath, root: Path | None = None) -> Path:
    """Return the path that a text names, joined to `root`, or the `Address`.

    A leading ~ is the user's folder.

    Raises UserError for an address that is not read.
    """
    if isinstance(text, Address):
        return text
    text = _OF_VIEWERS.sub("", str(text))
    if is_remote(text) and not is_address(text):
        raise UserError(
            f"{text}: an address of a kind that is not read; write one that begins with s3://, "
            "gs://, http:// or https://, or the path of a copy"
        )
    if is_address(text):
        return Address(str(text))
    path = Path(os.path.expanduser(text))  # noqa: PTH111  a folder may be called ~x
    return path if root is None else root / path


def absolute_path(text: str | PurePath) -> Path:
    """Return the absolute path that a text names, without `..`, or the `Address`."""
    path = path_of(text).absolute()
    # zarr would take the folder above a link by its name, not the one above where it leads
    return path.resolve() if ".." in path.parts else path


def is_address(text: str | PurePath) -> bool:
    """Return whether a name of a volume is an address that can be read."""
    return bool(ADDRESS.match(str(text)))


def place_of(text: str | PurePath) -> Place:
    """Parse a user's name of a volume. Raises UserError for wrong options behind #."""
    location, options = split(str(text))
    return Place(path_of(location), **_read_options(str(text), options))


def bare(text: str | PurePath) -> Path:
    """Return the path or address without what stands behind #."""
    return path_of(split(str(text))[0])


def split(text: str) -> tuple[str, str]:
    """Split 'raw.tif#voxel_size=8' into 'raw.tif' and '#voxel_size=8'."""
    # a # may belong to a name, where no = follows it
    match = re.fullmatch(r"(.*?)(#[^#/=]+=[^#/]*)", text, re.DOTALL)
    return (match[1], match[2]) if match else (text, "")


def with_voxel_size(text: str, voxel_size: tuple[float, ...] | None) -> str:
    """Return a name of a volume with the voxel size (nm) that an option gives."""
    if not voxel_size:
        return text
    location, options = split(text)
    if "voxel_size=" in options:
        raise UserError(f"{text}: and --voxel-size too; write the size of its voxels once")
    size = ",".join(f"{length:g}" for length in voxel_size)
    kept = f"&{options[1:]}" if options else ""
    return f"{location}#voxel_size={size}{kept}"


def _read_options(text: str, options: str) -> dict[str, tuple[float, ...]]:
    lengths: dict[str, tuple[float, ...]] = {}
    for option in options[1:].split("&") if options else []:
        name, _, value = option.partition("=")
        if name not in OPTIONS or name in lengths:
            raise UserError(
                f"{text}: '{option}' behind #; write voxel_size=8 or voxel_size=40,4,4 or "
                "translation=0,0,0 (nm, z, y, x), each once, with & between them"
            )
        lengths[name] = _three(text, name, value)
    return lengths


def _three(text: str, name: str, value: str) -> tuple[float, ...]:
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if name == "voxel_size" and len(numbers) == 1:
        numbers *= 3
    above_zero = name != "voxel_size" or all(number > 0 for number in numbers)
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or not above_zero:
        one = "one or " if name == "voxel_size" else ""
        raise UserError(f"{text}: {name} '{value}'; write {one}three lengths in nm, z, y, x")
    return tuple(numbers)


# What is on disk


def in_hdf5(path: Path) -> tuple[Path, str] | None:
    """Split a path such as a.h5:/b or a.h5/b into the HDF5 file and what is behind it; or None."""
    parts = path.parts
    for number, part in enumerate(parts, 1):
        if part.lower().removesuffix(":").endswith(HDF5):
            file = path_of(str(type(path)(*parts[:number])).removesuffix(":"))
            if not file.is_dir():
                return file, "/".join(parts[number:])
    return None


def on_disk(name: Path) -> Path:
    """Return the file or folder, or the address, that a name of a volume begins with."""
    path = bare(name)
    inside = in_hdf5(path)
    return inside[0] if inside else path


def identity(name: Path) -> str:
    """Return an identity of a volume that is equal for all of its names, such as by links."""
    return str(name) if is_address(name) else os.path.realpath(bare(name))


def is_missing(name: Path) -> bool:
    """Return whether a volume is known not to be there; servers are not asked."""
    path = on_disk(name)
    return not isinstance(path, Address) and not path.exists()


def class_volume(crop: Path, name: str, options: str = "") -> Path:
    """Return the volume of a class in a crop: crop1/mito, or a file such as crop1/mito.tif.

    crop: a folder, also one on a server or in an HDF5 file. options: what stands behind # of it.

    Raises UserError where several files are of the class.
    """
    if not crop.is_dir() or (crop / name).exists():
        return crop / f"{name}{options}"
    files = sorted(file.name for file in crop.iterdir() if _is_file_of(file.name, name))
    if len(files) > 1:
        raise UserError(
            f"{crop}: class '{name}' is there as {' and as '.join(files)}; leave one of them there"
        )
    return crop / f"{files[0] if files else name}{options}"


def _is_file_of(file: str, name: str) -> bool:
    """Return whether a file is called as those of a class are: mito.tif."""
    return file.startswith(name) and file.removeprefix(name).lower() in FILES


def store_name(path: Path) -> str:
    """Return the name of the innermost store, file or folder that holds a volume, without ending.

    It is 'cell' for cell.zarr/recon-1/em, cell.h5:/raw and cell.tif.
    """
    path = bare(path)
    for place in (path, *path.parents):
        if place.name.lower().removesuffix(":").endswith((*FOLDERS, *FILES)):
            return _stem(place)
    return path.stem


def is_file_name(name: str) -> bool:
    """Return whether a name ends as those of files that hold volumes."""
    return name.lower().endswith(FILES)


def _stem(path: Path) -> str:
    """Return 'cell' for cell.tif and cell.nii.gz."""
    return Path(path.stem).stem if path.name.lower().endswith(".nii.gz") else path.stem
