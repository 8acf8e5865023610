"""The COSEM pretrained networks: where their weights are, and how to take their backbone.

Architecture and addresses are cellmap-models'; its own loader is not used. That one turns TLS
verification off for the whole process, keeps truncated downloads, writes into site-packages,
overwrites `sys.modules["model"]` and runs a 216^3 forward pass in its constructor. The published
files could not be fetched where this was written; the tests load files of the same format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

import torch
from torch import nn

from common.errors import UserError
from common.files import cache_folder
from common.model import published
from common.model.sizes import shrunk_shape

# cellmap-models says 216, but the network takes 198: every size from 100 to 238 was tried
SMALLEST_INPUT = 198
INPUT_STEP = 18
LOST_VOXELS = 186  # 180 in the backbone, 6 in the head


def weights_path(name: str = "setup04/1820500", urls: Mapping[str, str] | None = None) -> Path:
    """The file of a checkpoint in the cache folder, downloaded if missing.

    A .json beside it records size and SHA-256. A file that was put there by hand is recorded too,
    if it loads. Of several processes one downloads and the others wait. The folder is
    `common.files.cache_folder()`: the setting cache_path while a configuration builds its model.

    Args:
        name: setup and iteration.
        urls: checkpoint name to address, as cellmap-models has them by default.

    Raises:
        FileError: if the file can neither be found nor downloaded.
        UserError: for an unknown name, or a file that is not this checkpoint.
    """
    if urls is None:
        urls = import_module("cellmap_models.pytorch.cosem").models_dict
    if name not in urls:
        raise UserError(
            f"weights '{name}': no COSEM checkpoint has this name; write one of {', '.join(urls)}"
        )
    path = cache_folder() / "cosem" / f"{name}.pth"

    def check(file: Path, _: str) -> None:
        _read_backbone(name, file)

    return published.cached(path, urls[name], check=check)


def load_backbone(name: str = "setup04/1820500", pretrained: bool = True) -> nn.Module:
    """The U-Net of a COSEM network without its upsampling and head, on the CPU, in eval mode.

    (B, 1, z, y, x) to (B, 72, z - 180, y - 180, x - 180); voxels of input and output have the same
    size, 8 nm for setup04. Raises what `weights_path` raises. Where `published.are_wanted` says no,
    weights are not read.

    Args:
        name: setup and iteration.
        pretrained: False takes torch's default initialisation, drawn from its generator, on its
            default device; the caller should say so.
    """
    if pretrained and published.are_wanted():
        return _read_backbone(name, weights_path(name))
    return _new_backbone(name).eval()


def build_finetune(
    classes: Sequence[str], backbone: nn.Module, freeze_backbone: bool = True
) -> FineTuned:
    """`backbone` with a new head: three 3x3x3 convolutions, one output channel for each class."""
    width = cast(int, backbone.out_channels)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Conv3d(width, width, 3), nn.ReLU()]
    layers.append(nn.Conv3d(width, len(classes), 1))
    return FineTuned(backbone, nn.Sequential(*layers), freeze_backbone)


class FineTuned(nn.Module):
    """A pretrained backbone under a new head.

    (B, 1, z, y, x) to logits (B, classes, z - 186, y - 186, x - 186), for the sizes of
    `cosem_output_shape`. A frozen backbone stays in eval mode, gets no gradient and keeps no
    activations.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, freeze_backbone: bool):
        super().__init__()
        self.backbone = backbone.requires_grad_(not freeze_backbone)
        self.head = head
        self.freeze_backbone = freeze_backbone
        self.train()

    def train(self, mode: bool = True) -> FineTuned:
        """As of any module, but a frozen backbone stays in eval mode."""
        super().train(mode)
        self.backbone.train(mode and not self.freeze_backbone)
        return self

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Logits of raw; raises UserError where `cosem_output_shape` does."""
        cosem_output_shape(raw.shape[2:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            features = self.backbone(raw)
        return self.head(features)


def cosem_output_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Voxels that come out of `FineTuned` on each axis: n - 186 for n = 198, 216, 234, ...

    Half of the lost ones are on each side. Raises UserError naming the nearest sizes to use.
    """
    return shrunk_shape(
        "COSEM's U-Net",
        input_shape,
        smallest=SMALLEST_INPUT,
        step=INPUT_STEP,
        lost=LOST_VOXELS,
    )


def _new_backbone(name: str) -> nn.Module:
    """The backbone of a COSEM network with new weights, without its heavy constructor."""
    cosem = "cellmap_models.pytorch.cosem"
    setup = name.partition("/")[0].replace(".", "_")
    architecture = import_module(f"{cosem}.load_model")
    settings = import_module(f"{cosem}.{setup}.model")
    return architecture.CNNectomeUNetModule(**architecture.get_param_dict(settings))


def _read_backbone(name: str, path: Path) -> nn.Module:
    """The backbone with the weights in `path`. UserError if its tensors are not the network's."""
    with torch.device("meta"):
        backbone = _new_backbone(name)
    tensors = _backbone_tensors(path)
    stored = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wanted = {key: tuple(tensor.shape) for key, tensor in backbone.state_dict().items()}
    keys = sorted(stored.keys() | wanted.keys())
    wrong = [key for key in keys if stored.get(key) != wanted.get(key)]
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} tensors do not fit {name}, '{wrong[0]}' for one has shape "
            f"{stored.get(wrong[0])} instead of {wanted.get(wrong[0])}; "
            "put the file of this checkpoint here"
        )
    backbone.load_state_dict(tensors, assign=True)
    return backbone.eval()


def _backbone_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The backbone's tensors (float32) in a checkpoint.

    A checkpoint is `{"model": tensors of the whole network, ...}`.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything from EOFError to IndexError
        raise UserError(
            f"{path}: not a PyTorch file of plain tensors ({type(error).__name__}); "
            "delete it and fetch it again"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise UserError(f"{path}: no 'model' in it; put a COSEM checkpoint here")
    tensors = _final_names(path, checkpoint["model"])
    stray = [key for key in tensors if not key.startswith(("backbone.", "prediction_head."))]
    if stray:
        raise UserError(
            f"{path}: '{stray[0]}' is no part of a COSEM network; put a COSEM checkpoint here"
        )
    prefix = "backbone.0."
    return {
        key.removeprefix(prefix): tensor.float()
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def _final_names(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under cellmap-models' names. UserError if a copy differs from its original.

    The original training wrote `architecture.unet.*`, and copies of all as `chain.*`. The renaming
    is that of cellmap_models.pytorch.cosem.load_model.
    """
    final = {}
    for key, tensor in tensors.items():
        if "chain" not in key:
            final[key.replace("architecture.", "").replace("unet.", "backbone.")] = tensor
            continue
        original = key.replace("chain.0", "architecture").replace("chain.1", "prediction_head")
        if original == key or original not in tensors or not torch.equal(tensor, tensors[original]):
            raise UserError(
                f"{path}: '{key}' is not the copy of another tensor in it; "
                "put a COSEM checkpoint here"
            )
    return final
