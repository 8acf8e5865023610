"""Splits, and paths in the challenge's layout, by the functions of the public toolbox."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cellmap_segmentation_challenge._public import names_of
from cellmap_segmentation_challenge.config import CROP_NAME, RAW_NAME, under_data
from common.classes import TESTED
from common.data.splits import catalogue, make_split
from common.data.splits.choose_sides import FORCED, SplitRules
from common.data.volumes import layout
from common.errors import UserError

__getattr__ = names_of(__name__, {})

Scale = make_split.Scale


# the public toolbox's arguments, in its order
def make_datasplit_csv(  # noqa: PLR0913, PLR0917
    classes: Sequence[str] = TESTED,
    scale: Scale = None,
    force_all_classes: bool | str = False,
    validation_prob: float = 0.1,
    datasets: Sequence[str] = ("*",),
    crops: Sequence[str] = ("*",),
    search_path: str | None = None,
    raw_name: str = RAW_NAME,
    crop_name: str = CROP_NAME,
    csv_path: str | os.PathLike[str] = "datasplit.csv",
    dry_run: bool = False,
    *,
    data_root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    by: str = "",
    overwrite: bool = False,
) -> dict[str, list[str]]:
    """Split the crops under a data root; return {crop folder: classes} of the crops used.

    The layout is the challenge's, and paths are written relative to the data root.

    Args:
        classes: names of classes; crops without any of them are left out.
        scale: nm; crops with coarser labels are left out. All crops are taken unless given.
        force_all_classes: True takes only crops that annotate all of `classes`, 'train' or
            'validate' only on that side. Others are left out there; the toolbox moves them to the
            other side.
        validation_prob: part of the crops that validates.
        datasets: names or patterns.
        crops: names or patterns.
        search_path: ROOT/{dataset}/{dataset}.zarr/recon-1/{name}: the data root ROOT.
        raw_name: that of the layout.
        crop_name: that of the layout.
        csv_path: the file to write.
        dry_run: write nothing.
        data_root: instead of search_path; CELLMAP_DATA, or data/, unless one of them is given.
        seed: of the draws.
        by: what stays on one side: specimen, dataset or crop. Unless given it is specimen, or crop
            if all crops are of one specimen.
        overwrite: replace an existing file.

    Raises:
        UserError: for another layout, and as the command make-datasplit.
    """
    _refuse_other_names(raw_name, crop_name)
    if search_path and data_root:
        raise UserError(
            f"both search_path '{search_path}' and data_root '{data_root}'; write one of them"
        )
    forced = "all" if force_all_classes is True else force_all_classes or ""
    if forced not in FORCED:
        raise UserError(
            f"{csv_path}: force_all_classes '{force_all_classes}'; "
            "write True, False, 'train' or 'validate'"
        )
    rules = SplitRules(
        classes=classes,
        scale=make_split.three(scale),
        validation_fraction=validation_prob,
        seed=seed,
        by=by or "specimen",
        force_classes=forced,
    )
    root = layout.root_of_template(search_path or under_data("SEARCH_PATH"))
    return make_split.split_data_root(
        Path(data_root or root),
        rules,
        csv_path=None if dry_run else Path(csv_path),
        datasets=datasets,
        crops=crops,
        overwrite=overwrite,
        specimens_if_several=not by,
    )


def get_dataset_counts(
    classes: Sequence[str] = TESTED,
    search_path: str | None = None,
    raw_name: str = RAW_NAME,
    crop_name: str = CROP_NAME,
) -> dict[str, dict[str, int]]:
    """Return for each dataset the number of crops that annotate each class, zeros left out.

    For the arguments see `make_datasplit_csv`.
    """
    _refuse_other_names(raw_name, crop_name)
    crops, _ = catalogue.scan(layout.root_of_template(search_path or under_data("SEARCH_PATH")))
    by_dataset = {}
    for dataset, of_class in catalogue.counts(crops, classes).items():
        present = {name: number for name, number in of_class.items() if number}
        if present:
            by_dataset[dataset] = present
    return by_dataset


def get_dataset_name(
    raw_path: str, search_path: str | None = None, raw_name: str = RAW_NAME
) -> str:
    """Return the dataset in the path of a raw volume, by the place of {dataset} in the template.

    Raises ValueError if the template has none.
    """
    template = search_path or under_data("SEARCH_PATH")
    fields = get_formatted_fields(raw_path, template.replace("{name}", raw_name), ["{dataset}"])
    if not fields.get("dataset"):
        raise UserError(f"'{raw_path}': no dataset by the template '{template}'")
    return fields["dataset"]


def get_formatted_fields(path: str, base_path: str, fields: Sequence[str]) -> dict[str, str]:
    """Return what a path has in place of each field of a template, folder by folder.

    fields: with their braces, such as "{dataset}"; the first place of each counts.
    """
    values: dict[str, str] = {}
    for folder, template in zip(str(path).split("/"), str(base_path).split("/"), strict=False):
        for field in fields:
            name = field.strip("{}")
            before, is_there, after = template.partition(field)
            if is_there and name not in values:
                values[name] = folder.removeprefix(before).removesuffix(after)
    return values


def get_raw_path(crop_path: str, raw_name: str = RAW_NAME, label: str = "") -> str:
    """Return the path of the raw of a crop, given its folder or that of one of its classes."""
    folder = Path(crop_path)
    if label and folder.name == label:
        folder = folder.parent
    depth = len(Path(layout.LABELS.removeprefix(layout.RECONSTRUCTION)).parts)
    return (folder.parents[depth] / raw_name).as_posix()


def _refuse_other_names(raw_name: str, crop_name: str) -> None:
    """Raise UserError for names that are not those of the challenge's layout."""
    for name, given, expected in (
        ("raw_name", raw_name, RAW_NAME),
        ("crop_name", crop_name, CROP_NAME),
    ):
        if given.strip("/") != expected:
            raise UserError(
                f"{name} '{given}': the challenge's layout has {expected}; data that lie otherwise "
                "are named in datasplit.csv, which holds the path of each raw and crop"
            )
