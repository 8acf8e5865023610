"""A package of bioimage.io as a network that predicts.

Its description says what goes in and what comes out. Packages of ours say it in our own settings,
too, and are run exactly as the network that they were written from. Of others what their weights
need before and after is applied to each window, and their own example has to come out.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from common import runtime
from common.config import load
from common.config.check import check_settings
from common.config.overrides import apply_overrides, taken_apart
from common.config.settings import TrainConfig
from common.data.splits.split import USAGES
from common.data.volumes.metadata import NM_PER_UNIT
from common.errors import UserError, in_a_line
from common.files import sha256_of_file
from common.infer.networks.network import Network, network_of, record_of
from common.infer.networks.packaged import network_in
from common.model import exported
from common.model.forward import ForwardPass
from common.talk import note

OURS = "cellmap_baselines"
"""Entry of a package's config that has our settings."""


RECORDED = (
    "precision",
    "channels_last",
    "compile",
    "model_kwargs",
    "derived",
    "softmax",
    "input_channels",
)
"""Settings of a network that a recording of it does not ask for."""


def is_package(path: str | Path) -> bool:
    """Return whether a path is that of a package, or of the description in one."""
    path = Path(path)
    return path.suffix == ".zip" or path.name in ("rdf.yaml", "bioimageio.yaml")


@dataclass(frozen=True)
class Package:
    """What a package says of its network."""

    path: Path
    description: Any
    """A model of bioimageio.spec, format 0.5."""
    settings: dict[str, Any]
    """classes, input_array_info, target_array_info, raw_range, raw_normalization."""
    is_ours: bool
    """Whether `export` of this program wrote it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What a package of ours says of its run."""


def read(path: Path) -> Package:
    """Read a package. Raise FileNotFoundError, or UserError for what cannot be run here."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such package; write --model FILE.zip")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: Path, _: int) -> Package:
    """Read a package once, though settings and network are asked for one after the other.

    The second argument is the time of its last change, with which it is read anew.
    """
    if importlib.util.find_spec("bioimageio") is None:
        raise UserError(
            f"{path}: a package of bioimage.io is read by bioimageio.spec; pip install "
            "'csc-baselines[bioimage]'"
        )
    from bioimageio.spec import InvalidDescr, load_description
    from bioimageio.spec.model import v0_5

    with exported.quiet():
        try:
            # the bytes of a zip, since the library would keep the file open
            is_zip = path.suffix == ".zip"
            source: Any = zipfile.ZipFile(io.BytesIO(path.read_bytes())) if is_zip else path
            description: Any = load_description(source)
        except Exception as error:  # no zip, no description: types of several libraries
            reason = in_a_line(error)
            raise UserError(f"{path}: no package of bioimage.io ({reason})") from error
    if isinstance(description, InvalidDescr) or not isinstance(description, v0_5.ModelDescr):
        raise UserError(
            f"{path}: a {description.type} of format {description.format_version} that is not "
            "valid here; `bioimageio validate-format FILE` says why"
        )
    ours = dict(description.config.model_dump()).get(OURS)
    if isinstance(ours, Mapping):
        return Package(path, description, _own_settings(ours), is_ours=True, facts=dict(ours))
    return Package(path, description, _settings_of(path, description), is_ours=False)


def _own_settings(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return `Package.settings` of a package of ours. ours: its entry OURS."""
    settings: dict[str, Any] = {"classes": tuple(ours["classes"])}
    for name in ("input_array_info", "target_array_info"):
        array = ours[name]
        shape = tuple(int(size) for size in array["shape"])
        settings[name] = {"shape": shape, "scale": tuple(array["scale"])}
    settings["raw_range"] = tuple(ours["raw_range"])
    settings["raw_normalization"] = ours["raw_normalization"]
    settings["raw_sections"] = int(ours.get("raw_sections", 0))
    return settings


# Packages of others


def _settings_of(path: Path, description: Any) -> dict[str, Any]:
    """Return `Package.settings` of a package of others. Raise UserError for what has no setting."""
    if len(description.inputs) != 1 or len(description.outputs) != 1:
        raise UserError(f"{path}: several inputs or outputs; one of each can be run here")
    (raw,) = description.inputs
    (output,) = description.outputs
    channels = _channels(raw)
    if len(channels) > 1:
        raise UserError(f"{path}: takes {len(channels)} channels; raw has one here")
    names = _channels(output) or ["foreground"]
    if len(set(names)) < len(names):
        names = [f"{name}{number}" for number, name in enumerate(names)]
    return {
        "classes": tuple(names),
        "input_array_info": _array(raw, raw),
        "target_array_info": _array(output, raw),
        # as it is stored: what a package does to it comes after
        "raw_normalization": "values",
    }


def _axes(tensor: Any, kind: str) -> list[Any]:
    """Return the axes of an input or output that are of a kind, such as "space"."""
    return [axis for axis in tensor.axes if axis.type == kind]


def _channels(tensor: Any) -> list[str]:
    """Return the names of the channels; [] without a channel axis."""
    axes = _axes(tensor, "channel")
    return [str(name) for name in axes[0].channel_names] if axes else []


def _array(tensor: Any, raw: Any) -> dict[str, Any]:
    """Return shape and voxel size along z, y, x; an axis that the tensor lacks has one voxel.

    raw: the input, to whose sizes those of the output may refer.
    """
    shape = {"z": 1, "y": 1, "x": 1}
    scale = {"z": 1.0, "y": 1.0, "x": 1.0}
    inputs = {str(axis.id): axis for axis in _axes(raw, "space")}
    for axis in _axes(tensor, "space"):
        name = str(axis.id)
        shape[name] = _size(axis, inputs)
        # of ours and of those without a voxel size
        unit = str(axis.unit) if axis.unit else "nanometer"
        if unit not in NM_PER_UNIT:
            raise UserError(f"a package whose voxels are in {unit}; write nanometer into it")
        scale[name] = float(axis.scale) * NM_PER_UNIT[unit]
    if "z" not in {str(axis.id) for axis in _axes(tensor, "space")}:
        scale["z"] = scale["y"]
    return {"shape": tuple(shape.values()), "scale": tuple(scale.values())}


def _size(axis: Any, inputs: Mapping[str, Any]) -> int:
    """Return the voxels along an axis: where any number goes, the fewest from 96 on.

    inputs: axes of the input by name.
    """
    size = axis.size
    if isinstance(size, int):
        return size
    if hasattr(size, "step"):
        return int(size.min) + int(size.step) * max(0, -(-(96 - int(size.min)) // int(size.step)))
    input_axis = inputs[str(size.axis_id)]
    return round(_size(input_axis, inputs) * float(input_axis.scale) / float(axis.scale)) + int(
        size.offset
    )


# As an experiment


def settings_of(
    path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None
) -> TrainConfig:
    """Return the checked settings of an experiment, or of a package as one.

    Raise as `common.config.load.load_config` or `load_config`.
    """
    read_settings = load_config if is_package(path) else load.load_config
    return read_settings(path, overrides, data)


def path_of(config: TrainConfig) -> Path | None:
    """Return the package that settings are of; None where they are of an experiment."""
    return config.build_model.path if isinstance(config.build_model, Weights) else None


def refuse_no_boxes(config: TrainConfig, crops: str, volume: str | Path) -> None:
    """Raise UserError where a package is to predict crops that only a datasplit names."""
    if path_of(config) and not volume and crops in (*USAGES, "*"):
        raise UserError(
            f"{config.build_model}: of what? write --volume PATH, or --crops DATASET/CROP with "
            "--data FOLDER"
        )


def load_config(
    path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None
) -> TrainConfig:
    """Return the settings of an experiment that has a package's network.

    Its folder is that of the package's name. Raise as `read`, and UserError for wrong overrides,
    and where neither they nor the package say how large voxels are.

    Args:
        path: of the package.
        overrides: "name=value".
        data: data root.
    """
    path = Path(path).absolute()
    package = read(path)
    values: dict[str, Any] = dict(package.settings)
    values["extra_classes"] = values["classes"]
    values["build_model"] = Weights(path)
    values["datasplit_path"] = ""
    values["data_path"] = str(load.data_root(data))
    folder = path.parent if path.suffix != ".zip" else path.with_suffix("")
    values["base_experiment_path"] = str(folder)
    values["model_name"] = folder.name
    from_environment, problems = load.environment()
    if "cache_path" in from_environment:
        values["cache_path"] = from_environment["cache_path"]
    problems += apply_overrides(values, overrides)
    problems += _problems_of_recording(overrides)
    sized = any(text.startswith("input_array_info") for text in overrides)
    axes = _axes(package.description.inputs[0], "space")
    has_voxel_size = package.is_ours or all(axis.unit is not None for axis in axes)
    if not has_voxel_size and not sized:
        raise UserError(
            f"{path}: does not say how large its voxels are; write --set "
            "input_array_info.scale=8,8,8 --set target_array_info.scale=8,8,8 (nm, z, y, x)"
        )
    config = check_settings(str(path), values, problems, TrainConfig)
    if package.is_ours:
        _refuse_other_input(package, config)
    return config


def _problems_of_recording(overrides: Sequence[str]) -> list[str]:
    """Return a sentence for each override of what a package was recorded with."""
    names = dict.fromkeys(taken_apart(text).name for text in overrides)
    return [
        f"--set {name}: a package computes as it was recorded; leave it out"
        for name in names
        if name in RECORDED
    ]


def _refuse_other_input(package: Package, config: TrainConfig) -> None:
    """Raise UserError where overrides say otherwise what goes in than the training did."""
    changed = []
    for name, said in package.settings.items():
        # windows may have other shapes
        is_array = name in ("input_array_info", "target_array_info")
        trained = said["scale"] if is_array else said
        given = getattr(config, name)["scale"] if is_array else getattr(config, name)
        if given != trained:
            changed.append(f"{name} was {trained} and is {given}")
    if changed:
        raise UserError(
            f"{package.path}: trained with other settings ({'; '.join(changed)}); leave them out"
        )


class Weights:
    """The setting `build_model` of a package."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, classes: tuple[str, ...]) -> nn.Module:
        """Return the network, in eval mode, on the CPU; its classes are those of the package."""
        package = read(self.path)
        return network_in(package.path, package.description, package.is_ours)

    def __repr__(self) -> str:
        """Return the name of the package."""
        return f"package {self.path.name}"


def load_network(config: TrainConfig, path: Path) -> Network:
    """Return the network of a package, ready to predict.

    config: as of `load_config`; of an experiment of the same classes the device is taken.
    """
    package = read(path)
    if tuple(package.settings["classes"]) != tuple(config.channels):
        raise UserError(
            f"{path}: has the classes {', '.join(package.settings['classes'])}, and "
            f"{config.folder} has {', '.join(config.channels)}"
        )
    # those of an experiment, or of another package, say what its own network takes
    if path_of(config) != path:
        config = replace(config, **package.settings)
    epoch = package.facts.get("epoch")
    device = runtime.pick_device(config.device)
    # number types and layouts are part of a recording
    forward = ForwardPass(runtime.pick_precision("fp32", device), channels_last=False)
    record = replace(
        record_of(config, path, forward.precision.name),
        sha256=sha256_of_file(path),
        epoch=int(epoch) if epoch else None,
        metric=package.facts.get("metric", "a package"),
    )
    before = {str(entry.id) for entry in package.description.inputs[0].preprocessing}
    if not package.is_ours and before & {"zero_mean_unit_variance", "scale_range"}:
        note(f"{path}: normalises by mean or percentiles, here of each window")
    model = network_in(path, package.description, package.is_ours).to(device)
    network = network_of(config, model, forward, record=record, scalings={})
    # exported for one, or with a mean over all that it gets
    return replace(network, window=replace(network.window, alone=True))
