"""Every name that scripts import from the public toolbox: where it is here, and how it differs.

`PACKAGE`, `UTILS`, `MODELS` and `CLI` are the tables. The documents show them, and tests compare
them with the modules. Names are those of the toolbox of 2026-06, and older ones that
configurations still import.
"""

from __future__ import annotations

from typing import NamedTuple

HERE = "cellmap_segmentation_challenge"


class Ours(NamedTuple):
    """A name that we have."""

    module: str
    """Module that has it."""
    differs: str = ""
    """How it differs from the toolbox's; "" if a caller sees no difference."""


class Lacking(NamedTuple):
    """A name that we do not have."""

    instead: str
    """What to write instead."""


_CLI = f"{HERE}.cli"
_CONFIG = f"{HERE}.config"
_MODELS = f"{HERE}.models"
_LOADING = f"{_MODELS}.model_load"
_UTILS = f"{HERE}.utils"
_CLASSES = f"{_UTILS}.classes"
_CROPS = f"{_UTILS}.crops"
_DATALOADER = f"{_UTILS}.dataloader"
_DATASPLIT = f"{_UTILS}.datasplit"
_MATCHED = f"{_UTILS}.matched_crop"
_SCORES = f"{_UTILS}.scores"
_SECURITY = f"{_UTILS}.security"
_SMALL = f"{_UTILS}.utils"
_SUBMISSION = f"{_UTILS}.submission"

_UNDER_DATA = "under CELLMAP_DATA, else data/ of the repository"
_OWN_FOLDER = f"{_UNDER_DATA}; an experiment writes into its own folder unless `--set` says this"

_NETWORK = "its tensors and their names are the toolbox's, whose weights it loads"
_WEIGHTS = "by the epoch in a file's name; weights that do not fit are an error"

MODELS: dict[str, Ours | Lacking] = {
    "UNet_2D": Ours(f"{_MODELS}.unet_model_2D", _NETWORK),
    "UNet_3D": Ours(f"{_MODELS}.unet_model_3D", _NETWORK),
    "ResNet": Ours(f"{_MODELS}.resnet", _NETWORK),
    "ViTVNet": Ours(f"{_MODELS}.vitnet", _NETWORK),
    "SwinTransformer": Ours(f"{_MODELS}.swin", "MONAI's SwinUNETR: other tensors"),
    "load_latest": Ours(_LOADING, _WEIGHTS),
    "load_best_val": Ours(_LOADING, "the best epoch, not the one before it; likewise an error"),
    "get_latest_checkpoint_epoch": Ours(_LOADING),
    "get_best_val_epoch": Ours(_LOADING, "the best epoch, not the one before it"),
    "newest_wildcard_path": Ours(_LOADING),
}
"""The names of `cellmap_segmentation_challenge.models`. Its networks are the toolbox's own where
that is installed, too."""

UTILS: dict[str, Ours | Lacking] = {
    # classes
    "get_tested_classes": Ours(_CLASSES),
    "get_class_relations": Ours(_CLASSES, "takes the classes alone, too; unknown ones are refused"),
    # crops
    "CropRow": Ours(_CROPS, "addresses are strings"),
    "TestCropRow": Ours(_CROPS),
    "TEST_CROPS": Ours(_CROPS, "the table is downloaded when this is used, and kept in the cache"),
    "TEST_CROPS_DICT": Ours(_CROPS, "likewise"),
    "fetch_manifest": Ours(
        _CROPS, "of the training crops; without an address nothing is downloaded"
    ),
    "fetch_test_crop_manifest": Ours(_CROPS, "kept in the cache"),
    "get_test_crops": Ours(_CROPS),
    "get_test_crop_labels": Ours(_CROPS),
    "fetch_data": Ours(
        f"{_UTILS}.download", "goes on where it stopped, and raises if something fails; no zip"
    ),
    # splits
    "make_datasplit_csv": Ours(
        _DATASPLIT,
        "specimens stay together where there are several, drawn by a seed; an existing file needs "
        "overwrite=True; paths start from the data root",
    ),
    "make_s3_datasplit_csv": Lacking(
        "the command `make-datasplit --manifest challenge` splits the public crops without access "
        "to the bucket, and `fetch-data` fetches them"
    ),
    "get_dataset_counts": Ours(_DATASPLIT),
    "get_dataset_name": Ours(_DATASPLIT),
    "get_formatted_fields": Ours(_DATASPLIT),
    "get_raw_path": Ours(_DATASPLIT),
    "get_csv_string": Lacking("`common.data.splits.split.row_text` gives a row of a datasplit"),
    "get_s3_csv_string": Lacking("`common.data.splits.split.row_text` gives a row of a datasplit"),
    # training
    "get_dataloader": Ours(
        _DATALOADER,
        "iterations_per_epoch counts batches; raw is in [0, 1]; true negatives act; validation "
        "takes the same blocks every time",
    ),
    "CellMapLossWrapper": Ours(
        f"{_UTILS}.loss", "the mean over known voxels, there over all; NaN of the network stays NaN"
    ),
    "load_safe_config": Ours(
        _SECURITY, "imports of the file's neighbours work; force_safe=True is refused"
    ),
    "analyze_script": Ours(_SECURITY),
    "Config": Ours(_SECURITY, "without names that begin with _"),
    "get_data_from_batch": Ours(_SMALL),
    "get_singleton_dim": Ours(_SMALL),
    "squeeze_singleton_dim": Ours(_SMALL),
    "unsqueeze_singleton_dim": Ours(_SMALL),
    "structure_model_output": Ours(_SMALL),
    "get_fig_dict": Lacking("pictures of an epoch are in TensorBoard; `visualize` writes others"),
    "save_result_figs": Lacking("the command `visualize --png FOLDER` writes pictures"),
    "get_loss_plot": Lacking("the command `compare --png FILE` draws curves"),
    # paths
    "format_string": Ours(_SMALL),
    "format_coordinates": Ours(_SMALL),
    "extract_from_template": Ours(_SMALL),
    "newest_wildcard_path": MODELS["newest_wildcard_path"],
    "download_file": Ours(_SMALL, "whole or not at all; http, https and file"),
    "get_git_hash": Ours(_SMALL),
    # submissions and scores
    "match_crop_space": Ours(
        _MATCHED,
        "of the finest level: ids by nearest voxel, others by the share of a voxel that they fill; "
        "nothing is blurred or shifted",
    ),
    "MatchedCrop": Lacking("match_crop_space does it in one call"),
    "package_submission": Ours(
        _SUBMISSION, "ids keep their number above 255; the zip alone is written, and checked"
    ),
    "package_crop": Lacking("`common.score.packing.pack` packs any rows of the manifest"),
    "zip_submission": Ours(_SUBMISSION),
    "save_numpy_class_arrays_to_zarr": Ours(_SUBMISSION),
    "save_numpy_class_labels_to_zarr": Ours(_SUBMISSION),
    "score_instance": Ours(_SCORES, "the cap of distances is that of the challenge"),
    "score_semantic": Ours(_SCORES),
    "score_submission": Ours(
        _SCORES, "of all classes that the truth has; the file holds intervals and quality as well"
    ),
    "combine_scores": Ours(_SCORES),
    "score_label": Lacking("score_submission with a truth of one class, or score_instance"),
    "empty_label_score": Lacking("`common.score.challenge.missing`"),
    "match_instances": Lacking("`common.score.challenge.match`"),
    "unzip_file": Lacking("score_submission reads a zip where it is"),
    "construct_truth_dataset": Lacking(
        "save_numpy_class_arrays_to_zarr, with voxel_size and translation as attributes"
    ),
    "construct_test_crop_manifest": Lacking(
        "write the table; `common.data.splits.manifest` has its form"
    ),
    "copy_gt": Lacking("save_numpy_class_arrays_to_zarr"),
    # constants that scripts import from here, too
    "SEARCH_PATH": Ours(_CONFIG, _UNDER_DATA),
    "CROP_NAME": Ours(_CONFIG),
    "RAW_NAME": Ours(_CONFIG),
}
"""The names of `cellmap_segmentation_challenge.utils`."""

PACKAGE: dict[str, Ours | Lacking] = {
    "train": Ours(f"{HERE}._scored", "takes the command's options as well, and gives a result"),
    "predict": Ours(
        f"{HERE}._commands",
        "crops that validate unless told otherwise; every voxel is written; uint8 probabilities "
        'unless `content="logits"`',
    ),
    "process": Ours(
        f"{HERE}._commands",
        "crops that validate unless told otherwise; objects are told apart over the whole volume",
    ),
    "evaluate": Ours("common.score.evaluate", "of an experiment's crops; there it is a module"),
    "visualize": Ours("common.show.visualize", "takes the experiment first, or None"),
    "score_submission": UTILS["score_submission"],
    "match_crop_space": UTILS["match_crop_space"],
    "REPO_ROOT": Ours(_CONFIG, "the working folder where the package is installed"),
    "BASE_DATA_PATH": Ours(_CONFIG, _UNDER_DATA),
    "SEARCH_PATH": Ours(_CONFIG, _UNDER_DATA),
    "CROP_NAME": Ours(_CONFIG),
    "RAW_NAME": Ours(_CONFIG),
    "PREDICTIONS_PATH": Ours(_CONFIG, _OWN_FOLDER),
    "PROCESSED_PATH": Ours(_CONFIG, _OWN_FOLDER),
    "SUBMISSION_PATH": Ours(_CONFIG, _UNDER_DATA),
    "TRUTH_PATH": Ours(_CONFIG, _UNDER_DATA),
    "INSTANCE_CLASSES": Ours(_CONFIG),
    "GT_S3_BUCKET": Ours(_CONFIG),
    "RAW_S3_BUCKET": Ours(_CONFIG),
    "S3_SEARCH_PATH": Ours(_CONFIG),
    "S3_CROP_NAME": Ours(_CONFIG),
    "S3_RAW_NAME": Ours(_CONFIG),
    "VIS_SEARCH_PATHS": Ours(_CONFIG, _OWN_FOLDER),
    # where they were before
    "load_latest": MODELS["load_latest"],
    "load_best_val": MODELS["load_best_val"],
    "get_dataloader": UTILS["get_dataloader"],
    "make_datasplit_csv": UTILS["make_datasplit_csv"],
    "CellMapLossWrapper": UTILS["CellMapLossWrapper"],
    "score_instance": UTILS["score_instance"],
    "score_semantic": UTILS["score_semantic"],
    "save_numpy_class_arrays_to_zarr": UTILS["save_numpy_class_arrays_to_zarr"],
    "save_numpy_class_labels_to_zarr": UTILS["save_numpy_class_labels_to_zarr"],
    "score_label": UTILS["score_label"],
    "score_volume": UTILS["score_label"],
    "threshold_volume": Lacking("process_func of a process_config.py, and the command `process`"),
    "process_volume": Lacking("the command `process`"),
    "rescale_volume": Lacking("match_crop_space"),
    "resize_volume": Lacking("match_crop_space"),
    "predict_ortho_planes": Lacking("`predict` with a network of two dimensions"),
}
"""The names of `cellmap_segmentation_challenge`."""

_COMMAND = "its callback takes the public arguments, and does what `csc` does with them"

CLI: dict[str, Ours | Lacking] = {
    "run": Ours(_CLI, "our group, with the commands that the toolbox has not, too"),
    "train_cli": Ours(_CLI, _COMMAND),
    "predict_cli": Ours(_CLI, _COMMAND),
    "process_cli": Ours(_CLI, _COMMAND),
    "fetch_data_cli": Ours(_CLI, _COMMAND),
    "evaluate_cli": Ours(_CLI, _COMMAND),
    "package_submission_cli": Ours(_CLI, _COMMAND),
    "make_datasplit_csv_cli": Ours(_CLI, _COMMAND),
    "get_dataset_counts_cli": Ours(_CLI, _COMMAND),
    "visualize_cli": Ours(_CLI, _COMMAND),
    "batch_evaluate_cli": Ours(_CLI, _COMMAND),
    "speedtest_cli": Lacking(
        "the command `fetch-data --crops 28` shows how fast data come; it runs no program from "
        "the internet"
    ),
}
"""The names of `cellmap_segmentation_challenge.cli`."""

MODULES = {HERE: PACKAGE, _UTILS: UTILS, _MODELS: MODELS, _CLI: CLI}
"""The tables by module."""


def ours(module: str) -> list[str]:
    """Return the names that a module of ours has."""
    return sorted(name for name, entry in MODULES[module].items() if isinstance(entry, Ours))


def rows(module: str) -> list[tuple[str, str, str]]:
    """Return (name, module, difference or replacement) of each name, for the documents."""
    listed = []
    for name, entry in MODULES[module].items():
        if isinstance(entry, Ours):
            listed.append((f"`{name}`", f"`{entry.module}`", entry.differs))
        else:
            listed.append((f"`{name}`", "", f"instead: {entry.instead}"))
    return listed
