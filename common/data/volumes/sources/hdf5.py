"""Read HDF5 files: file.h5:/group/array, or file.h5 where one volume is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes.level import Attributes, Voxels
from common.data.volumes.sources import files
from common.data.volumes.sources.image import Image, check, single_by_attributes
from common.data.volumes.sources.place import Place, in_hdf5, path_of
from common.errors import UserError
from common.talk import some


def open_file(place: Place) -> Image:
    """Open an array of a file."""
    h5py = files.library("h5py", "HDF5 files")
    split_path = in_hdf5(place.path)
    assert split_path is not None
    path, name = split_path
    if not place.is_remote and not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        # by its own means from this disk
        file = h5py.File(files.opened(path) if place.is_remote else path, "r")
    except (OSError, ValueError, RuntimeError) as error:
        raise files.broken(path, "an HDF5 file", error) from error
    name = name or _only_volume(h5py, path, file)
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(
            f"{path}: no array '{name}'; write one of {_listed(h5py, file)} behind it, as in "
            f"{path.name}:/volume"
        )
    shown = path_of(f"{path}:/{name}")
    parts = _parts(path, shown, dataset)
    array = Dataset(shown, path, dataset)
    array.beside = parts
    return single_by_attributes(shown, array, array.attrs)


def _parts(path: Path, shown: Path, dataset: Any) -> list[Path]:
    """Return the other files that hold voxels of a virtual array; without those that are counted.

    Raises UserError for one that is missing: HDF5 gives 0 there. Source:
    https://support.hdfgroup.org/documentation/hdf5/latest/_v_d_s.html.
    """
    parts: dict[Path, None] = {}
    for part in dataset.virtual_sources() if dataset.is_virtual else ():
        name = part.file_name
        # % stands for a number; HDF5 looks beside the file, too, and for the bare name there
        if name == "." or "%" in name:
            continue
        places = (Path(name), path.parent / name, path.parent / Path(name).name)
        present = [place for place in places if place.is_file()]
        if not present:
            raise UserError(
                f"{shown}: a virtual array, whose part {name} is not there; copy that file beside "
                f"{path.name}, too"
            )
        parts[present[0]] = None
    return list(parts)


def _only_volume(h5py: Any, path: Path, file: Any) -> str:
    names = _volumes(h5py, file)
    if not names:
        others = [f"{name} has {axes} axes" for name, axes in _arrays(h5py, file).items()]
        raise UserError(
            f"{path}: no volume of three axes, z, y, x ({some(others, 5) or 'no array at all'}); "
            "write each channel and time as an array of its own"
        )
    if len(names) > 1:
        raise UserError(
            f"{path}: {len(names)} volumes, {some(names, 5)}; write which, as in "
            f"{path.name}:/{names[0]}"
        )
    return names[0]


def _volumes(h5py: Any, file: Any) -> list[str]:
    """Return the arrays of three axes in a file."""
    return [name for name, axes in _arrays(h5py, file).items() if axes == 3]


def _arrays(h5py: Any, file: Any) -> dict[str, int]:
    """Return the number of axes of all arrays in a file."""
    names: dict[str, int] = {}

    def note(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            names[name] = len(node.shape or ())

    file.visititems(note)
    return names


def _listed(h5py: Any, file: Any) -> str:
    return some(_volumes(h5py, file), 5) or "its arrays, of which none has three axes,"


class Dataset(Voxels):
    """An array of an HDF5 file."""

    def __init__(self, path: Path, file: Path, dataset: Any):
        check(path, dataset.shape or (), dataset.dtype)
        self.path = file
        self.dtype = dataset.dtype
        self.shape = _size(dataset)
        self.chunks = tuple(dataset.chunks or self.shape)
        self.in_rows = dataset.chunks is None
        self.attrs = Attributes(_plain(dataset.attrs))
        self._dataset = dataset

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return voxels of a box."""
        return np.asarray(self._dataset[index])


def _size(dataset: Any) -> tuple[int, ...]:
    """Return the voxels along z, y, x.

    Imaris fills arrays up to whole chunks, and says their size in attributes beside them. Source:
    https://github.com/CBI-PITT/imaris_ims_file_reader, which goes by these attributes.
    """
    said = [dataset.parent.attrs.get(f"ImageSize{axis}") for axis in "ZYX"]
    if not all(isinstance(text, np.ndarray) and text.dtype.kind == "S" for text in said):
        return tuple(dataset.shape)
    sizes = [b"".join(text.tolist()) for text in said]
    if not all(size.isdigit() for size in sizes):
        return tuple(dataset.shape)
    return tuple(min(pair) for pair in zip(dataset.shape, map(int, sizes), strict=True))


def _plain(attributes: Any) -> dict[str, Any]:
    """Return attributes as JSON would have them."""
    plain = {}
    for name in attributes:
        try:
            value = attributes[name]
        except (OSError, TypeError):  # of a type that h5py cannot read, which is none of ours
            continue
        plain[name] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return plain
