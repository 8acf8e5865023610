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
from common.data.samples.rows import that_count
from common.data.splits import split
from common.data.splits.regions import Region
from common.data.volumes.records import PredictionRecord
from common.errors import FileError, UserError
from common.files import sha256_of_file
from common.infer.networks import package
from common.infer.networks.network import (
    ARRAYS,
    LIKE_IN_TRAINING,
    Network,
    as_trained,
    checkpoint_path,
    load_checkpoint,
)
from common.infer.networks.window import SAME_SCALE
from common.talk import nm, note, some
from common.train.checkpointing import checkpoint, weights_file

OF_RUN = (
    "model_name",
    "run_name",
    "random_seed",
    "model_save_path",
    "datasplit_path",
    "counter_classes",
)
"""Settings that say which run a checkpoint is of, and by which crops it was trained."""

ORIGIN = ("experiment", "model_name", "run_name", "checkpoint", "sha256", "epoch", "metric")
"""What a prediction has on record of each network that made it."""


def load_network(config: TrainConfig, weights: str | Sequence[str] = "") -> Network:
    """The network of a checkpoint, or one that stands for those of several.

    A checkpoint that lies in the folder of another experiment is of the network of that one, with
    the settings that it has on record; so is each of several checkpoints of this one. A file that
    lies in no experiment is taken to be of this one. A package has its own settings.

    weights: see `checkpoint_path`; of a package its own. Raises FileNotFoundError or UserError; no
        network ever has other weights than those of its file.
    """
    names = list(weights) if isinstance(weights, list | tuple) else [weights]
    own = package.path_of(config) or ""
    paths = [checkpoint_path(config, str(name or own)) for name in names or [own]]
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
    if package.is_package(path):
        return package.load_network(config, path)
    saved, digest = _read(path)
    folder = experiment_of(path) or config.folder
    is_other = folder.resolve() != config.folder.resolve()
    own = config
    if is_other:
        of_folder = load_config(folder)
        own = replace(
            of_folder,
            device=config.device,
            precision=config.precision,
            # by it a checkpoint knows the volumes that it was trained on
            data_path=str(config.path("data_path")),
        )
    recorded = saved["settings"] if checkpoint.is_whole(saved) else {}
    # weights alone have nothing on record, and the defaults are not what they were trained with
    if recorded and (is_other or not is_alone):
        own = as_trained(own, recorded, (*ARRAYS, *LIKE_IN_TRAINING, *OF_RUN))
    _refuse_other_classes(config, own, path)
    network = load_checkpoint(own, path, saved, digest)
    of_run = as_trained(own, recorded, OF_RUN)
    crops = _trained_on(of_run, config.path("data_path"), saved) if recorded else None
    return replace(network, trained_on=crops)


ATTEMPTS = 3
"""To read a checkpoint that is not replaced meanwhile."""


def _read(path: Path) -> tuple[Any, str]:
    """What a checkpoint holds, and its SHA-256.

    A run that trains meanwhile replaces it: the weights of one with the hash of the next would be
    taken for those of the next ever after. Raises FileError where that happens each time.
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
    """What tells a file from one that replaces it; None where there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def experiment_of(path: Path) -> Path | None:
    """The folder of the experiment that a file lies in, None where it lies in none."""
    for folder in path.parents:
        if (folder / "train_config.py").is_file():
            return folder
    return None


def _refuse_other_classes(config: TrainConfig, own: TrainConfig, path: Path) -> None:
    """Raises UserError where the experiment of a checkpoint has other channels than this one."""
    if own.channels != config.channels:
        raise UserError(
            f"{path}: its experiment {own.folder} has the classes {', '.join(own.channels)}, and "
            f"{config.folder} has {', '.join(config.channels)}; name checkpoints of networks with "
            "the same classes in the same order"
        )
    # by their names alone 40 nm of one network would be averaged with 80 nm of another
    if own.derived != config.derived:
        raise UserError(
            f"{path}: its channels were derived as {dict(own.derived)}, and {config.folder} has "
            f"{dict(config.derived)}; name checkpoints of networks with the same channels"
        )


def _refuse_twice(networks: Sequence[Network]) -> None:
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
    """Raises UserError unless all networks take and give voxels of one size."""
    for network in networks:
        for name in ARRAYS:
            given = getattr(network.config, name)["scale"]
            wanted = getattr(config, name)["scale"]
            if not np.allclose(given, wanted, rtol=SAME_SCALE):
                raise UserError(
                    f"{network.record.checkpoint}: its {name} has voxels of {nm(given)} nm, and "
                    f"that of {config.folder} of {nm(wanted)} nm; the mean is over networks of one "
                    "voxel size: predict with the others"
                )


def _record_of_all(config: TrainConfig, networks: Sequence[Network]) -> PredictionRecord:
    """What a prediction will say of the mean of several networks."""
    records = [network.record for network in networks]
    runs = [f"{record.model_name}/{record.run_name} {record.at}" for record in records]
    # the range too: a bare state_dict does not have it on record
    determining: list[Any] = []
    members = []
    for network in networks:
        members.append({name: getattr(network.record, name) for name in ORIGIN})
        own: list[Any] = [network.record.sha256, list(network.config.raw_range)]
        if network.record.assumed is not None:
            own.append(network.record.assumed)
        determining.append(own)
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


def trained_on(config: TrainConfig, path: Path) -> frozenset[str] | None:
    """The crops, dataset/crop, that a checkpoint of an experiment was trained on.

    None where nothing tells.
    """
    saved = weights_file.read_without_tensors(path)
    if not checkpoint.is_whole(saved):
        return None
    of_run = as_trained(config, saved["settings"], OF_RUN)
    return _trained_on(of_run, config.path("data_path"), saved)


def _trained_on(config: TrainConfig, data_root: Path, saved: Any) -> frozenset[str] | None:
    """The crops, dataset/crop, that a checkpoint was trained on; None where nothing tells.

    config: settings of its run.
    """
    try:
        rows = split.read_datasplit(config.path("datasplit_path"), data_root)
    except (UserError, FileNotFoundError):
        return None
    # the file may have been written anew since
    rows = that_count(rows, config, lambda: saved["split_hash"])
    if split.split_hash(rows) != saved["split_hash"]:
        return None
    return frozenset(row.name for row in rows if row.usage == "train")


def note_training_crops(network: Network, regions: Sequence[Region]) -> None:
    """Say which of the boxes are crops that a network was trained on: scores there are too good."""
    annotated = [str(region) for region in regions if region.truth is not None]
    for each in network.each:
        path = each.record.checkpoint
        if each.trained_on is None:
            if annotated and network.members:
                note(
                    f"{path}: its datasplit is not there any more as it was, so nothing tells "
                    "whether it was trained on crops that are predicted here"
                )
            continue
        shared = [name for name in annotated if name in each.trained_on]
        if shared:
            note(f"{path} was trained on {some(shared)}: a score there says nothing of other data")
