"""Several networks as one: checkpoints of folds, of seeds, of experiments with the same classes.

What is predicted is the mean of their probabilities, see `common.infer.predicting.blocks`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.volumes.records import PredictionRecord
from common.errors import FileError, UserError
from common.files import sha256_of_file
from common.infer.networks import package
from common.infer.networks.from_checkpoint import (
    ARRAYS,
    LIKE_IN_TRAINING,
    as_trained,
    load_checkpoint,
)
from common.infer.networks.network import Network
from common.infer.networks.training_crops import OF_RUN, crops_of
from common.infer.networks.which_file import checkpoint_path
from common.infer.networks.window import SAME_SCALE
from common.talk import nm
from common.train.checkpointing import checkpoint, weights_file

ORIGIN = ("experiment", "model_name", "run_name", "checkpoint", "sha256", "epoch", "metric")
"""What a prediction has on record of each network of an ensemble."""


def load_network(config: TrainConfig, weights: str | Sequence[str] = "") -> Network:
    """Return the network of a checkpoint, or one that stands for those of several.

    A checkpoint in the folder of another experiment is of that experiment's network, with the
    settings that it has on record; so is each of several checkpoints of this experiment. A file
    that lies in no experiment is taken to be of this one. A package has its own settings. Raise
    FileNotFoundError or UserError; no network ever has other weights than those of its file.

    weights: see `checkpoint_path`; a package has its own unless some are given.
    """
    names = list(weights) if isinstance(weights, list | tuple) else [weights]
    unless_given = package.path_of(config) or ""
    paths = []
    for name in names or [unless_given]:
        paths.append(checkpoint_path(config, str(name or unless_given)))
    networks = [_load(config, path, is_alone=len(paths) == 1) for path in paths]
    if len(networks) == 1:
        return networks[0]
    _refuse_twice(networks)
    _refuse_other_voxels(config, networks)
    # by hash: whatever order they are named in, the sum is the same to the last bit
    networks.sort(key=lambda network: network.record.sha256 or "")
    record = _record_of_all(config, networks)
    return replace(networks[0], record=record, members=tuple(networks))


def _load(config: TrainConfig, path: Path, *, is_alone: bool) -> Network:
    """Return the network of one file. is_alone: whether it is the only one that is loaded."""
    if package.is_package(path):
        return package.load_network(config, path)
    saved, digest = _read(path)
    folder = experiment_of(path) or config.folder
    is_other = folder.resolve() != config.folder.resolve()
    own_config = config
    if is_other:
        folder_config = load_config(folder)
        own_config = replace(
            folder_config,
            device=config.device,
            precision=config.precision,
            # by it a checkpoint knows the volumes that it was trained on
            data_path=str(config.path("data_path")),
        )
    recorded = saved["settings"] if checkpoint.is_whole(saved) else {}
    # weights alone have nothing on record, and the defaults are not what they were trained with
    if recorded and (is_other or not is_alone):
        own_config = as_trained(own_config, recorded, (*ARRAYS, *LIKE_IN_TRAINING, *OF_RUN))
    _refuse_other_classes(config, own_config, path)
    network = load_checkpoint(own_config, path, saved, digest)
    run_config = as_trained(own_config, recorded, OF_RUN)
    crops = crops_of(run_config, config.path("data_path"), saved) if recorded else None
    return replace(network, trained_on=crops)


ATTEMPTS = 3
"""How often a checkpoint is read that is replaced meanwhile."""


def _read(path: Path) -> tuple[Any, str]:
    """Return the content of a checkpoint, and its SHA-256.

    A run that trains meanwhile replaces the file: the weights of one checkpoint with the hash of
    the next would be taken for those of the next ever after. Raise FileError where that happens in
    each attempt.
    """
    for _ in range(ATTEMPTS):
        before = _identity(path)
        saved = weights_file.read(path)
        digest = sha256_of_file(path)
        if _identity(path) == before:
            return saved, digest
    raise FileError(
        f"{path}: was replaced while it was read, {ATTEMPTS} times; copy it, and write "
        "--checkpoint COPY"
    )


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from one that replaces it; None without a file."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def experiment_of(path: Path) -> Path | None:
    """Return the folder of the experiment that a file lies in; None where it lies in none."""
    for folder in path.parents:
        if (folder / "train_config.py").is_file():
            return folder
    return None


def _refuse_other_classes(config: TrainConfig, own_config: TrainConfig, path: Path) -> None:
    """Raise UserError where the experiment of a checkpoint has other channels than this one."""
    if own_config.channels != config.channels:
        raise UserError(
            f"{path}: its experiment {own_config.folder} has the classes "
            f"{', '.join(own_config.channels)}, and {config.folder} has "
            f"{', '.join(config.channels)}; name checkpoints of networks with the same classes in "
            "the same order"
        )
    # by their names alone 40 nm of one network would be averaged with 80 nm of another
    if own_config.derived != config.derived:
        raise UserError(
            f"{path}: its channels were derived as {dict(own_config.derived)}, and "
            f"{config.folder} has {dict(config.derived)}; name checkpoints of networks with the "
            "same channels"
        )


def _refuse_twice(networks: Sequence[Network]) -> None:
    """Raise UserError where two of the networks have the same weights."""
    seen: dict[str, str] = {}
    for network in networks:
        digest = str(network.record.sha256)
        path = str(network.record.checkpoint)
        if digest in seen:
            raise UserError(
                f"{path}: the same weights as {seen[digest]}, which would count twice; name each "
                "checkpoint once"
            )
        seen[digest] = path


def _refuse_other_voxels(config: TrainConfig, networks: Sequence[Network]) -> None:
    """Raise UserError unless all networks take and give voxels of one size."""
    for network in networks:
        for name in ARRAYS:
            scale = getattr(network.config, name)["scale"]
            wanted = getattr(config, name)["scale"]
            if not np.allclose(scale, wanted, rtol=SAME_SCALE):
                raise UserError(
                    f"{network.record.checkpoint}: its {name} has voxels of {nm(scale)} nm, and "
                    f"that of {config.folder} of {nm(wanted)} nm; the mean is over networks of one "
                    "voxel size: predict with the others"
                )


def _record_of_all(config: TrainConfig, networks: Sequence[Network]) -> PredictionRecord:
    """Return what a prediction will say of the mean of several networks."""
    records = [network.record for network in networks]
    runs = [f"{record.model_name}/{record.run_name} {record.at}" for record in records]
    # the range too: a bare state_dict does not have it on record
    determining: list[Any] = []
    members = []
    for network in networks:
        members.append({name: getattr(network.record, name) for name in ORIGIN})
        of_network: list[Any] = [network.record.sha256, list(network.config.raw_range)]
        if network.record.assumed is not None:
            of_network.append(network.record.assumed)
        determining.append(of_network)
    return replace(
        records[0],
        experiment=config.folder.name,
        model_name=config.model_name,
        run_name=config.path("model_save_path").name,
        checkpoint=" + ".join(str(record.checkpoint) for record in records),
        sha256=hashlib.sha256(json.dumps(determining).encode()).hexdigest(),
        assumed=None,
        epoch=None,
        metric=f"mean of {len(records)} networks: {'; '.join(runs)}",
        members=members,
    )
