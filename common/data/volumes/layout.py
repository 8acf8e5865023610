"""Paths in the challenge's layout of a data root, which is also that of the public bucket.

    {dataset}/{dataset}.zarr/recon-1/em/fibsem-uint8                        raw
    {dataset}/{dataset}.zarr/recon-1/labels/groundtruth/{crop}/{class}      labels

Each of these paths is a multiscale OME-NGFF group. Paths are relative to the data root, with "/" on
every system, as in a datasplit.csv and in the bucket.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError

RECONSTRUCTION = "recon-1/"
"""What every path in a store begins with."""

RAW = f"{RECONSTRUCTION}em/fibsem-uint8"
"""Path of the raw in a store."""

LABELS = f"{RECONSTRUCTION}labels/groundtruth"
"""Path of the folder of crops in a store."""


def store(dataset: str) -> str:
    """Return the path of a dataset's zarr store."""
    return f"{dataset}/{dataset}.zarr"


def raw(dataset: str) -> str:
    """Return the path of a dataset's raw."""
    return f"{store(dataset)}/{RAW}"


def labels(dataset: str, crop: str) -> str:
    """Return the path of a crop, the folder of its classes."""
    return f"{store(dataset)}/{LABELS}/{crop}"


def root_of_template(template: str) -> Path:
    """Return the data root of the public toolbox's ROOT/{dataset}/{dataset}.zarr/recon-1/{name}.

    Raises UserError for a template of another layout.
    """
    below = store("{dataset}") + f"/{RECONSTRUCTION}{{name}}"
    root = template.removesuffix(below)
    if root == template or "{" in root:
        raise UserError(
            f"search path '{template}': the data lie at ROOT/{below} here; write that, or name the "
            "path of each raw and crop in datasplit.csv"
        )
    return Path(root or ".")


def crop_name(name: str) -> str:
    """Return the folder name of a crop: '28', as in the challenge's tables, becomes 'crop28'."""
    return f"crop{name}" if name.isdecimal() else name


def crop_folders(data_root: Path) -> dict[tuple[str, str], Path]:
    """Return the folder of every crop on disk, by (dataset, crop name)."""
    folders = {}
    for folder in data_root.glob(f"*/*.zarr/{LABELS}/*"):
        dataset = folder.relative_to(data_root).parts[0]
        in_its_store = folder.is_relative_to(data_root / store(dataset))
        if in_its_store and folder.is_dir() and not folder.name.startswith("."):
            folders[dataset, folder.name] = folder
    return folders


def data_root_near(folder: Path) -> Path | None:
    """Return a data root above or below a folder that is none; None where there is no crop either.

    Looked for where somebody is off by a level: in a dataset, in a store, or one folder above.
    """
    stores = [place for place in (folder, *folder.parents) if place.suffix == ".zarr"]
    candidates = [store.parent.parent for store in stores]
    if folder.is_dir():
        candidates += [store.parent.parent for store in folder.glob("*.zarr")]
        candidates += sorted(place for place in folder.iterdir() if place.is_dir())
    for candidate in candidates:
        if candidate != folder and crop_folders(candidate):
            return candidate
    return None


def store_of(path: Path) -> Path | None:
    """Return the innermost zarr store that contains `path` or is `path`; None if there is none."""
    for folder in (path, *path.parents):
        if folder.suffix == ".zarr":
            return folder
    return None
