"""Paths and names that the public toolbox has as constants.

Templates are for `str.format`, with {dataset}, {crop}, {label}, and {name} of a volume in a store.
Paths below the data root are computed when they are used: --data of a command moves it.
"""

from __future__ import annotations

from typing import Any

from cellmap_segmentation_challenge._public import names_of
from common.config.load import data_root
from common.data.volumes import layout
from common.files import REPOSITORY

_of_the_toolbox = names_of(__name__, {})

REPO_ROOT = REPOSITORY

CROP_NAME = layout.labels("{dataset}", "{crop}").split(layout.RECONSTRUCTION)[1] + "/{label}"
RAW_NAME = layout.RAW.removeprefix(layout.RECONSTRUCTION)
S3_CROP_NAME = CROP_NAME
S3_RAW_NAME = RAW_NAME

S3_SEARCH_PATH = f"{layout.store('{dataset}')}/{layout.RECONSTRUCTION}{{name}}"
GT_S3_BUCKET = "janelia-cosem-datasets"
RAW_S3_BUCKET = GT_S3_BUCKET

UNDER_DATA = {
    "SEARCH_PATH": S3_SEARCH_PATH,
    "PREDICTIONS_PATH": "predictions/{dataset}.zarr/{crop}",
    "PROCESSED_PATH": "processed/{dataset}.zarr/{crop}",
    "SUBMISSION_PATH": "submission.zarr",
    "TRUTH_PATH": "ground_truth.zarr",
}
"""Constants below the data root, which `__getattr__` returns."""

VISIBLE = {
    "gt": f"{layout.labels('{dataset}', '{crop}')}/{{label}}",
    "predictions": f"{UNDER_DATA['PREDICTIONS_PATH']}/{{label}}",
    "processed": f"{UNDER_DATA['PROCESSED_PATH']}/{{label}}",
}
"""VIS_SEARCH_PATHS, below the data root."""

# the toolbox's, with two that are not scored; ours are common.classes.INSTANCES
INSTANCE_CLASSES = [
    "nuc",
    "vim",
    "ves",
    "endo",
    "lyso",
    "ld",
    "perox",
    "mito",
    "np",
    "mt",
    "cell",
    "instance",
]


def under_data(name: str) -> str:
    """Return one of UNDER_DATA below the present data root."""
    return str(data_root() / UNDER_DATA[name])


def __getattr__(name: str) -> Any:
    if name == "BASE_DATA_PATH":
        return data_root()
    if name in UNDER_DATA:
        return under_data(name)
    if name == "VIS_SEARCH_PATHS":
        return {kind: str(data_root() / below) for kind, below in VISIBLE.items()}
    return _of_the_toolbox(name)
