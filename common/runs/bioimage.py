"""Write a network as a package of bioimage.io: weights, model card, an example in and out.

The format is that of bioimageio.spec, model 0.5; https://bioimage.io says which programs read it.
"""

from __future__ import annotations

import importlib.util
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config.settings import TrainConfig
from common.data.crops.normalize import MEASURED, PERCENTILES
from common.data.samples.sampling import Patch
from common.errors import UserError
from common.files import replacing
from common.infer.networks.package import OURS
from common.model import exported
from common.runs.model_card import Card, black_white

EPSILON = 1e-6
"""Number that the format adds to a contrast or deviation before it divides."""

AXES = ("z", "y", "x")


@dataclass(frozen=True)
class Example:
    """An example input of a network, and its output."""

    stored: np.ndarray
    """Raw as it is stored, (1, 1, ...) uint8, or float32 if the experiment has a raw_range."""
    probability: np.ndarray
    """Output after the sigmoid, (1, classes, ...) float32."""


@dataclass(frozen=True)
class PackageSizes:
    """Sizes that the network in the package takes and gives."""

    input: Patch
    output: Patch
    steps: tuple[int, ...]
    """Voxels by which the input can grow along z, y, x; 0 where it cannot."""
    flat: int | None
    """Number of the axis that a 2-D network lacks; None for a 3-D network."""

    @property
    def axes(self) -> list[int]:
        """Return the numbers of the axes that the network has; 0 is z."""
        return [axis for axis in range(3) if axis != self.flat]


def normalised(stored: np.ndarray, config: TrainConfig) -> np.ndarray:
    """Return stored raw after the preprocessing of a package, float32.

    Percentiles, mean and deviation are those of the given array; in training they are those of the
    whole volume.
    """
    raw = stored.astype(np.float32)
    low, high = black_white(config)
    # the engine clips before anything else, see raw_range
    raw = np.clip(raw, low, high)
    if config.raw_normalization == "values":
        return raw
    raw = (raw - low) / (high - low)
    if config.raw_normalization == "range":
        return raw
    dark, bright = np.percentile(raw, PERCENTILES)
    raw = np.clip((raw - dark) / (bright - dark + EPSILON), 0, 1)
    if config.raw_normalization == "percentile":
        return raw.astype(np.float32)
    return ((raw - raw.mean()) / (raw.std() + EPSILON)).astype(np.float32)


def refuse_missing() -> None:
    """Raise UserError if bioimageio.spec is not installed."""
    if importlib.util.find_spec("bioimageio") is None:
        raise UserError(
            "a package of bioimage.io takes bioimageio.spec; pip install "
            "'csc-baselines[bioimage]', or take --to torchscript"
        )


def _format() -> Any:
    """Import the classes of the format; as Any, since fields take more types than are declared."""
    from bioimageio.spec.model import v0_5

    return v0_5


def write(
    path: Path,
    card: Card,
    config: TrainConfig,
    *,
    weights: Mapping[str, Path],
    example: Example,
    sizes: PackageSizes,
) -> None:
    """Write a package, whole or not at all.

    Args:
        path: of the zip.
        card: the model card.
        config: settings of the training.
        weights: file of the network in each form: torchscript, onnx.
        example: example input and output.
        sizes: sizes of input and output.

    Raises UserError for what the format does not take.
    """
    refuse_missing()
    from bioimageio.spec import save_bioimageio_package
    from pydantic import ValidationError

    with tempfile.TemporaryDirectory() as folder, replacing(path) as temporary, exported.quiet():
        try:
            description = _description(Path(folder), card, config, weights, example, sizes)
            save_bioimageio_package(description, output_path=temporary)
        except ValidationError as error:
            raise UserError(f"{path}: not written; {_problems(error)}") from error


def _problems(error: Any) -> str:
    """Return what is wrong with a description, without the library's addresses."""
    texts = []
    for problem in error.errors():
        place = str(problem["loc"][0]) if problem["loc"] else "description"
        value = str(problem["input"])[:60]
        if place == "license":
            return f"--license {value}: no name of SPDX; write one such as CC-BY-4.0 or MIT"
        texts.append(f"{place}: {problem['msg'][:150]} ({value!r})")
    return "; ".join(texts[:4])


def _description(  # noqa: PLR0917  (private, by its one caller)
    folder: Path,
    card: Card,
    config: TrainConfig,
    weights: Mapping[str, Path],
    example: Example,
    sizes: PackageSizes,
) -> Any:
    v0_5 = _format()

    (folder / "README.md").write_text(card.text)
    np.save(folder / "test_input.npy", example.stored)
    np.save(folder / "test_output.npy", example.probability)
    raw = _raw(folder, config, sizes, example.stored.dtype)
    probability = _probability(folder, config, sizes)
    return v0_5.ModelDescr(
        name=_plain_name(card.name),
        description=card.description[:1024],
        authors=[v0_5.Author(name=name) for name in card.authors],
        license=card.licence,
        cite=_cited(card),
        documentation=v0_5.FileDescr(source=folder / "README.md"),
        tags=["electron-microscopy", "segmentation", "organelles", "pytorch", "3d"],
        inputs=[raw],
        outputs=[probability],
        weights=_weights(weights),
        config={OURS: _settings(config, card)},
    )


def _plain_name(name: str) -> str:
    """Return a name as the format takes it: ASCII letters, numbers, spaces and a few signs."""
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    kept = [sign if sign.isalnum() or sign in "_+- ()" else " " for sign in name]
    return " ".join("".join(kept).split())[:128]


def _cited(card: Card) -> list[Any]:
    v0_5 = _format()

    works = []
    for work in card.cite:
        doi = v0_5.Doi(work.doi) if work.doi else None
        url = None if doi else v0_5.HttpUrl("https://cellmapchallenge.janelia.org")
        works.append(v0_5.CiteEntry(text=work.text, doi=doi, url=url))
    return works


def _settings(config: TrainConfig, card: Card) -> dict[str, Any]:
    """Return the settings of input and output, which `predict --model` reads back."""
    info = {}
    for name in ("input_array_info", "target_array_info"):
        array = getattr(config, name)
        shape = [float(voxels) for voxels in array["shape"]]
        info[name] = {"shape": shape, "scale": [float(nm) for nm in array["scale"]]}
    return {
        **info,
        "classes": list(config.classes),
        "raw_range": [float(value) for value in config.raw_range],
        "raw_normalization": config.raw_normalization,
        "raw_sections": config.raw_sections,
        **card.facts,
    }


def _raw(folder: Path, config: TrainConfig, sizes: PackageSizes, dtype: np.dtype) -> Any:
    v0_5 = _format()

    axes: list[Any] = [v0_5.BatchAxis(size=1), _channels(["raw"])]
    for axis in sizes.axes:
        size: Any = sizes.input.shape[axis]
        if sizes.steps[axis]:
            size = v0_5.ParameterizedSize(min=size, step=sizes.steps[axis])
        scale = float(sizes.input.scale[axis])
        axes.append(
            v0_5.SpaceInputAxis(
                id=v0_5.AxisId(AXES[axis]), size=size, scale=scale, unit="nanometer"
            )
        )
    low, high = black_white(config)
    return v0_5.InputTensorDescr(
        id=v0_5.TensorId(exported.INPUT),
        description=f"electron microscopy, black {low:g}, white {high:g}",
        axes=axes,
        data=v0_5.IntervalOrRatioDataDescr(type=dtype.name, range=(low, high)),
        preprocessing=_preprocessing(config),
        test_tensor=v0_5.FileDescr(source=folder / "test_input.npy"),
    )


def _channels(names: Sequence[str]) -> Any:
    v0_5 = _format()

    return v0_5.ChannelAxis(channel_names=[v0_5.Identifier(name) for name in names])


def _preprocessing(config: TrainConfig) -> list[Any]:
    """Return the steps of `normalised`; the format asks for the type, float32, at both ends."""
    v0_5 = _format()

    to_float = v0_5.EnsureDtypeDescr(kwargs=v0_5.EnsureDtypeKwargs(dtype="float32"))
    steps: list[Any] = [to_float]
    low, high = black_white(config)
    if config.raw_range:  # of 8 bits nothing lies beyond
        steps.append(v0_5.ClipDescr(kwargs=v0_5.ClipKwargs(min=low, max=high)))
    if config.raw_normalization != "values":
        gain = 1 / (high - low)
        linear = v0_5.ScaleLinearKwargs(gain=gain, offset=-low * gain)
        steps.append(v0_5.ScaleLinearDescr(kwargs=linear))
    if config.raw_normalization in MEASURED:
        dark, bright = PERCENTILES
        stretched = v0_5.ScaleRangeKwargs(min_percentile=dark, max_percentile=bright, eps=EPSILON)
        steps.append(v0_5.ScaleRangeDescr(kwargs=stretched))
        steps.append(v0_5.ClipDescr(kwargs=v0_5.ClipKwargs(min=0.0, max=1.0)))
    if config.raw_normalization == "zscore":
        variance = v0_5.ZeroMeanUnitVarianceKwargs(eps=EPSILON)
        steps.append(v0_5.ZeroMeanUnitVarianceDescr(kwargs=variance))
    return [*steps, to_float]


def _probability(folder: Path, config: TrainConfig, sizes: PackageSizes) -> Any:
    v0_5 = _format()

    axes: list[Any] = [v0_5.BatchAxis(size=1), _channels([_identifier(n) for n in config.classes])]
    for axis in sizes.axes:
        scale = float(sizes.output.scale[axis])
        axes.append(
            v0_5.SpaceOutputAxis(
                id=v0_5.AxisId(AXES[axis]),
                size=_output_size(sizes, axis),
                scale=scale,
                unit="nanometer",
            )
        )
    return v0_5.OutputTensorDescr(
        id=v0_5.TensorId("probability"),
        description="probability of each class by itself: classes may overlap",
        axes=axes,
        data=v0_5.IntervalOrRatioDataDescr(type="float32", range=(0.0, 1.0)),
        postprocessing=[v0_5.SigmoidDescr()],
        test_tensor=v0_5.FileDescr(source=folder / "test_output.npy"),
    )


def _output_size(sizes: PackageSizes, axis: int) -> Any:
    """Return the output size of an axis: a number, or a fixed difference to the input size."""
    v0_5 = _format()

    given = sizes.output.shape[axis]
    if not sizes.steps[axis]:
        return given
    # the format takes the voxel sizes of both into account
    scaled = sizes.input.shape[axis] * sizes.input.scale[axis] / sizes.output.scale[axis]
    return v0_5.SizeReference(
        tensor_id=v0_5.TensorId(exported.INPUT),
        axis_id=v0_5.AxisId(AXES[axis]),
        offset=given - round(scaled),
    )


def _identifier(name: str) -> str:
    """Return a class as the name of a channel: letters, numbers and _, a letter first."""
    kept = "".join(sign if sign.isalnum() else "_" for sign in name)
    return kept if kept[:1].isalpha() else f"c_{kept}"


def _weights(files: Mapping[str, Path]) -> Any:
    v0_5 = _format()

    version = v0_5.Version(torch.__version__.partition("+")[0])
    entries: dict[str, Any] = {
        "torchscript": v0_5.TorchscriptWeightsDescr(
            source=files["torchscript"], pytorch_version=version
        )
    }
    if "onnx" in files:
        entries["onnx"] = v0_5.OnnxWeightsDescr(
            source=files["onnx"], opset_version=_opset(files["onnx"]), parent="torchscript"
        )
    return v0_5.WeightsDescr(**entries)


def _opset(path: Path) -> int:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return max(entry.version for entry in model.opset_import if not entry.domain)
