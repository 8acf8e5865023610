"""Submissions: written from arrays, or packed from processed volumes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import zarr

from cellmap_segmentation_challenge._public import names_of
from cellmap_segmentation_challenge.config import under_data
from common.data.splits import manifest
from common.errors import UserError
from common.files import cache_folder, replacing
from common.score import packing
from common.talk import note, say

__getattr__ = names_of(__name__, {})

CHUNK = 64
"""Edge of a chunk in voxels."""


# the public toolbox's arguments, in its order
def save_numpy_class_arrays_to_zarr(  # noqa: PLR0917
    save_path: str | os.PathLike[str],
    test_volume_name: str,
    label_names: Sequence[str],
    labels: Sequence[np.ndarray],
    mode: str = "append",
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write one array for each class into {save_path}/{test_volume_name}/{class}.

    A submission needs voxel_size and translation (nm) among `attrs`. Raises UserError.

    Args:
        save_path: a .zarr folder.
        test_volume_name: the crop, such as crop557.
        label_names: the classes.
        labels: for each (z, y, x), 0 and 1 or ids.
        mode: "append" to the crop, or "overwrite" it.
        attrs: attributes of each array.
    """
    if mode not in ("append", "overwrite"):
        raise UserError(f"mode '{mode}'; write append or overwrite")
    if len(label_names) != len(labels):
        raise UserError(f"{len(labels)} arrays for {len(label_names)} classes; give one for each")
    root = zarr.open_group(str(save_path), mode="a")
    if mode == "overwrite":
        group = root.create_group(test_volume_name, overwrite=True)
    else:
        group = root.require_group(test_volume_name)
    for name, volume in zip(label_names, labels, strict=True):
        if name in group:
            raise UserError(
                f"{save_path}/{test_volume_name}/{name}: is there already; write "
                'mode="overwrite" to write the crop anew'
            )
        array = group.create_dataset(name, data=volume, chunks=CHUNK)
        array.attrs.update({key: _plain(value) for key, value in (attrs or {}).items()})


# the public toolbox's arguments, in its order
def save_numpy_class_labels_to_zarr(  # noqa: PLR0917
    save_path: str | os.PathLike[str],
    test_volume_name: str,
    label_names: Sequence[str],
    labels: np.ndarray,
    overwrite: bool = False,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write one array (z, y, x) of class numbers as an array for each class.

    It holds k + 1 where label_names[k] is, and 0 elsewhere. See `save_numpy_class_arrays_to_zarr`.
    """
    masks = [labels == number for number in range(1, len(label_names) + 1)]
    save_numpy_class_arrays_to_zarr(
        save_path,
        test_volume_name,
        label_names,
        masks,
        mode="overwrite" if overwrite else "append",
        attrs=attrs,
    )


def zip_submission(zarr_path: str | os.PathLike[str] | None = None) -> Path:
    """Zip the content of a .zarr folder beside it; return the zip. Raises FileNotFoundError."""
    folder = Path(zarr_path or under_data("SUBMISSION_PATH"))
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such submission; write the path of a .zarr folder")
    output = folder.with_suffix(".zip")
    with replacing(output) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(folder).as_posix())
    return output


def package_submission(
    input_search_path: str | os.PathLike[str] | None = None,
    output_path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    max_workers: int | None = None,
) -> Path:
    """Pack the processed test crops that exist into a zip; return the zip.

    Args:
        input_search_path: template of their folders, with {dataset} and {crop};
            PROCESSED_PATH unless given.
        output_path: the zip, or the .zarr that it is called after; SUBMISSION_PATH unless given.
        overwrite: replace an older zip.
        max_workers: without effect: volumes are packed one after the other.

    Raises:
        UserError: for an older zip, and if nothing can be packed.
    """
    if max_workers is not None:
        note("package_submission: max_workers has no effect; volumes are packed in their order")
    output = Path(output_path or under_data("SUBMISSION_PATH")).with_suffix(".zip")
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists already; write overwrite=True to replace it")
    template = str(input_search_path or under_data("PROCESSED_PATH"))

    def source(entry: manifest.Entry) -> Path:
        folder = template.replace("{dataset}", entry.dataset).replace("{crop}", entry.crop)
        return Path(folder) / entry.name

    entries = manifest.read(manifest.fetch(cache_folder(), say=say))
    return packing.pack(entries, source, output, say, partial=True)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    return np.asarray(value).tolist() if isinstance(value, np.ndarray | np.generic) else value
