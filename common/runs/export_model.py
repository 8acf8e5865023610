"""The command export-model: write a trained network as a file for other programs.

load the network -> record it -> compare the file with the network -> for a package: an example of
real raw, a model card
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.samples.sampling import Patch
from common.data.splits import regions
from common.errors import UserError
from common.files import refuse_no_folder
from common.infer.networks.ensemble import load_network
from common.infer.networks.network import Network
from common.model import exported
from common.runs import bioimage
from common.runs.bioimage import Example, PackageSizes
from common.runs.model_card import LICENCE, Said, black_white, card_of
from common.talk import note, say, size, some, voxels

PACKAGE = "bioimage"

ENDINGS = {PACKAGE: ".zip"} | {name: form.ending for name, form in exported.FORMS.items()}
"""Forms of an exported network, with the ending of the file's name."""


def export_model(
    config_path: str | Path,
    to: str = PACKAGE,
    *,
    weights: str = "",
    output: str | Path = "",
    said: Said | None = None,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    onnx: bool = False,
) -> Path:
    """Write the network of an experiment's run as a file for other programs; return its path.

    Args:
        config_path: folder of an experiment, or its train_config.py.
        to: one of ENDINGS.
        weights: "best", "latest" or a checkpoint file; the best unless given.
        output: the file; in the experiment's results_path unless given.
        said: what only its author can say of it, for a package.
        overrides: "name=value" for settings.
        data: data root, from which a package takes its example.
        onnx: whether a package has the network as ONNX as well.

    Raises FileNotFoundError; UserError if a Python package is missing, or no such form can be.
    """
    _refuse_before_recording(to)
    config = replace(load_config(config_path, overrides, data), device="cpu", precision="fp32")
    path = _output_path(config, to, output)
    if to == PACKAGE:
        _refuse_other_input(config, path)
    network = load_network(config, weights)
    own = exported.FirstOutput(network.model, network.forward_pass).eval()
    if to == PACKAGE:
        _write_package(network, own, path, said=said or Said(), onnx=onnx)
    else:
        patch = torch.rand(1, config.in_channels, *network.window.input.shape)
        raw = _as_taken(network, patch)
        exported.write(own, raw, path, to)
    say(f"{path}: {size(path.stat().st_size)}, gives what the network gives")
    return path


def _refuse_before_recording(to: str) -> None:
    """Raise UserError for an unknown form, and for one whose Python package is missing."""
    if to not in ENDINGS:
        raise UserError(f"--to {to}; write {', '.join(ENDINGS)}")
    if to == PACKAGE:
        bioimage.refuse_missing()


def _refuse_other_input(config: TrainConfig, path: Path) -> None:
    """Raise UserError for a network that takes more than raw, which a package cannot express."""
    if config.input_channels:
        raise UserError(
            f"{path}: a package is of networks of raw alone, and this one takes "
            f"{some(list(config.input_channels))} beside it; take --to torchscript or --to onnx, "
            "whose input has raw and these as channels"
        )


def _output_path(config: TrainConfig, to: str, output: str | Path) -> Path:
    if not output:
        return config.path("results_path") / f"{config.model_name}{ENDINGS[to]}"
    path = Path(output).absolute()
    if path.suffix != ENDINGS[to]:
        raise UserError(f"{path}: a file of {to} ends in {ENDINGS[to]}; write it so")
    refuse_no_folder(path)
    return path


def _as_taken(network: Network, raw: torch.Tensor) -> torch.Tensor:
    """Return raw (1, 1, z, y, x) as the network takes it: for 2-D without the axis of size 1."""
    return raw if network.flat is None else raw.squeeze(2 + network.flat)


def _write_package(
    network: Network, own: exported.FirstOutput, path: Path, *, said: Said, onnx: bool
) -> None:
    if network.config.channels != network.config.classes:
        raise UserError(
            f"{path}: a package is of classes, and this network gives "
            f"{some(network.config.channels)}; take --to torchscript"
        )
    card = card_of(network, said)
    if said.licence == LICENCE:
        note(f"{path}: its licence is {LICENCE}, as the challenge's data have it; --license NAME")
    if not card.authors:
        raise UserError(f"{path}: who made it? write --author NAME, once for each")
    stored = example_raw(network)
    raw = torch.from_numpy(bioimage.normalised(stored, network.config))
    with tempfile.TemporaryDirectory() as folder:
        files = {"torchscript": Path(folder) / "weights.pt"}
        recorded = exported.write(own, raw, files["torchscript"], "torchscript")
        if onnx:
            files["onnx"] = Path(folder) / "weights.onnx"
            exported.write(own, raw, files["onnx"], "onnx")
        with torch.no_grad():
            probability = torch.sigmoid(own(raw)).numpy()
        bioimage.write(
            path,
            card,
            network.config,
            weights=files,
            example=Example(stored, probability),
            sizes=_sizes(network, own, recorded, fixed=onnx),
        )


def _sizes(
    network: Network, own: exported.FirstOutput, recorded: exported.Program, *, fixed: bool
) -> PackageSizes:
    """Return the sizes that the file takes: also larger patches, if its logits are right for them.

    fixed: whether another form in the package takes one size only.
    """
    window = network.window
    steps = tuple(step for step, _ in window.steps)
    sizes = PackageSizes(window.input, window.output, (0, 0, 0), network.flat)
    if fixed or not any(steps):
        return sizes
    larger = np.add(window.input.shape, steps)
    raw = _as_taken(network, torch.rand(1, 1, *larger.tolist()))
    if exported.takes(own, recorded, raw):
        return replace(sizes, steps=steps)
    note(
        f"the recording takes {voxels(window.input.shape)} voxels alone: the network computes with "
        "sizes, which become fixed; programs tile with patches of this size"
    )
    return sizes


def example_raw(network: Network) -> np.ndarray:
    """Return a patch of raw as it is stored, (1, 1, ...), from the first crop that validates.

    Without such a crop it is noise.
    """
    config = network.config
    patch = _patch_of_crop(network)
    if patch is None:
        note(f"{config.folder}: no crop that validates is there; the package's example is noise")
        patch = np.random.default_rng(0).random(network.window.input.shape, np.float32)
    if patch.dtype != np.uint8:
        low, high = black_white(config)
        patch = low + patch * (high - low)
    dtype = np.float32 if config.raw_range else np.uint8
    stored = np.rint(patch).astype(dtype) if dtype == np.uint8 else patch.astype(dtype)
    return _as_taken(network, torch.from_numpy(stored[None, None])).numpy()


def _patch_of_crop(network: Network) -> np.ndarray | None:
    """Return the raw in the middle of the first crop that validates; None without one."""
    taken: Patch = network.window.input
    try:
        region = regions.find(network.config, "validate")[0]
        raw = network.raw_of(region)
    except (UserError, FileNotFoundError):
        return None
    if raw.dtype != np.uint8 and not network.config.raw_range:
        _, white = raw.value_range
        note(
            f"{raw.level.path}: {raw.level.array.dtype}, and the package is of raw of 8 bits: in "
            f"other programs bring 0 to {white:g} to 0 to 255 before"
        )
    middle = ((region.lower + region.upper) / 2 - raw.grid.origin) / raw.grid.scale
    start = np.rint(middle).astype(int) - np.array(taken.shape) // 2
    return raw.read_mirrored(start, start + taken.shape)
