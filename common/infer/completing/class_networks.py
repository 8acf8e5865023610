"""The networks of single classes that complete labels: where they are, and which may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.splits.split import Row
from common.errors import UserError, refuse
from common.files import sha256_of_file
from common.infer.networks.training_crops import trained_on
from common.infer.networks.which_file import checkpoint_path
from common.talk import command_line, nm, note, some
from common.train.several import each_class


@dataclass(frozen=True)
class ClassNetwork:
    """The network of one class."""

    name: str
    """Of the class."""
    config: TrainConfig
    """Settings that it was trained with."""
    checkpoint: Path
    sha256: str
    """Of the checkpoint."""


def find(
    classes: Sequence[str],
    config_path: str | Path,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
) -> list[ClassNetwork]:
    """Return the networks of these classes that `train --each-class` trained in an experiment.

    Raise UserError with all that are missing.

    Args:
        classes: names.
        config_path: the experiment.
        overrides: "name=value" for its settings.
        data: data root.
    """
    networks = []
    missing = []
    for name, config in each_class.members(config_path, classes, overrides, data).items():
        try:
            path = checkpoint_path(config, "")
        except FileNotFoundError:
            missing.append(name)
        else:
            networks.append(ClassNetwork(name, config, path, sha256_of_file(path)))
    learnt = load_config(config_path, overrides, data).classes
    strange = [name for name in missing if name not in learnt]
    if strange:
        raise UserError(
            f"{config_path}: {some(strange)} is not among its classes, so that it has no network; "
            "add it there and train it, or leave it out of the joint network's classes"
        )
    if missing:
        train = command_line("train", config_path, each_class=True, set=list(overrides), data=data)
        raise UserError(
            f"{config_path}: no network of {some(missing)}; train one for each class:\n  {train}"
        )
    return networks


def note_other_voxels(networks: Sequence[ClassNetwork], config: TrainConfig) -> None:
    """Note which networks predict on coarser voxels than the joint network learns on.

    config: of the joint network.
    """
    size = config.target_array_info["scale"]
    coarser = {}
    for network in networks:
        own = network.config.target_array_info["scale"]
        if any(a > 1.001 * b for a, b in zip(own, size, strict=True)):
            coarser[network.name] = own
    if coarser:
        own = next(iter(coarser.values()))
        note(
            f"networks of {some([*coarser])} predict on voxels of {nm(own)} nm, and the joint "
            f"network learns on {nm(size)} nm: the labels that they add are that coarse"
        )


def refuse_judges(networks: Sequence[ClassNetwork], rows: Sequence[Row]) -> None:
    """Raise UserError where a network was trained on a crop that validates or is held out.

    Through it the joint network would learn from what it is judged by.
    """
    judging = {row.name: row.usage for row in rows if row.usage != "train"}
    problems = []
    for network in networks:
        crops = trained_on(network.config, network.checkpoint)
        if crops is None:
            problems.append(
                f"{network.checkpoint}: nothing tells on which crops it was trained, since its "
                "datasplit is another now; train it again"
            )
            continue
        seen = sorted(crops & set(judging))
        if seen:
            problems.append(
                f"{network.checkpoint}: the network of {network.name} was trained on {some(seen)}, "
                f"a row that is there to {judging[seen[0]]}; train it on training rows alone"
            )
    refuse(problems)
