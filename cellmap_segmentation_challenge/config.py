"""The places and names that the public toolbox has as constants.

Templates are for `str.format`: {dataset}, {crop}, {label}, and {name} of a volume in a store.
"""

from __future__ import annotations

from cellmap_segmentation_challenge._public import names_of
from common.config.load import data_root
from common.data import layout
from common.files import REPOSITORY

__getattr__ = names_of(__name__, {})

REPO_ROOT = REPOSITORY
BASE_DATA_PATH = data_root()

CROP_NAME = layout.labels("{dataset}", "{crop}").split(layout.RECONSTRUCTION)[1] + "/{label}"
RAW_NAME = layout.RAW.removeprefix(layout.RECONSTRUCTION)
S3_CROP_NAME = CROP_NAME
S3_RAW_NAME = RAW_NAME

S3_SEARCH_PATH = f"{layout.store('{dataset}')}/{layout.RECONSTRUCTION}{{name}}"
SEARCH_PATH = str(BASE_DATA_PATH / S3_SEARCH_PATH)
GT_S3_BUCKET = "janelia-cosem-datasets"
RAW_S3_BUCKET = GT_S3_BUCKET

PREDICTIONS_PATH = str(BASE_DATA_PATH / "predictions" / "{dataset}.zarr" / "{crop}")
PROCESSED_PATH = str(BASE_DATA_PATH / "processed" / "{dataset}.zarr" / "{crop}")
SUBMISSION_PATH = str(BASE_DATA_PATH / "submission.zarr")
TRUTH_PATH = str(BASE_DATA_PATH / "ground_truth.zarr")

VIS_SEARCH_PATHS = {
    "gt": SEARCH_PATH.format(dataset="{dataset}", name=CROP_NAME),
    "predictions": f"{PREDICTIONS_PATH}/{{label}}",
    "processed": f"{PROCESSED_PATH}/{{label}}",
}

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
