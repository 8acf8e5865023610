"""The COSEM pretrained networks: where their weights are, and how to take their backbone.

Architecture and addresses are cellmap-models'; its own loader is not used. That one turns TLS verification off for the
whole process, keeps truncated downloads, writes into site-packages, overwrites `sys.modules["model"]` and runs a 216^3
forward pass in its constructor. The published files could not be fetched where this was written: files of the same
format are what the tests load.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from urllib.request import urlopen

import torch
from fasteners import InterProcessLock
from torch import nn
from tqdm import tqdm

from common.errors import FileError, UserError
from common.files import REPOSITORY
from common.model.unet import shrunk_shape

KNOWN_SHA256: dict[str, str] = {}
"""Checkpoint name to the SHA-256 of its file. COSEM publishes none: enter the one that a first download prints."""

SMALLEST_INPUT = (
    198  # cellmap-models says 216, but the network takes 198 (all sizes from 100 to 238 tried)
)
INPUT_STEP = 18
LOST_VOXELS = 186  # 180 in the backbone, 6 in the head
TIMEOUT_S = 60


def weights_path(name: str = "setup04/1820500", urls: Mapping[str, str] | None = None) -> Path:
    """The file of a checkpoint in the cache folder, downloaded if missing; a .json beside it records size and SHA-256.

    The folder is the environment variable CELLMAP_CACHE, or cache/ in the repository. urls: checkpoint name to address,
    as cellmap-models has them by default. A file that was put there by hand is recorded too, if it loads. Of several
    processes one downloads and the others wait. Raises FileNotFoundError if the file can neither be found nor
    downloaded, ValueError for an unknown name or a file that is not this checkpoint.
    """
    urls = import_module("cellmap_models.pytorch.cosem").models_dict if urls is None else urls
    if name not in urls:
        raise UserError(
            f"weights '{name}': no COSEM checkpoint has this name; write one of {', '.join(urls)}"
        )
    path = _cache_folder() / "cosem" / f"{name}.pth"
    if not _is_recorded(path):
        with _locked(path):
            if not _is_recorded(path):  # by the process that held the lock until now
                record = (
                    _examine(name, path) if path.is_file() else _download(name, urls[name], path)
                )
                _write_record(path, record)
    return path


def load_backbone(name: str = "setup04/1820500", pretrained: bool = True) -> nn.Module:
    """The U-Net of a COSEM network without its upsampling and head: (B, 1, z, y, x) to (B, 72, z - 180, ...).

    Voxels of input and output have the same size, 8 nm for setup04. On the CPU, in eval mode. With pretrained=False the
    weights are torch's default initialisation, drawn from its generator, on its default device: the caller says so
    aloud. Raises what `weights_path` raises.
    """
    if pretrained:
        return _read_backbone(name, weights_path(name))
    return _new_backbone(name).eval()


def build_finetune(
    classes: Sequence[str], backbone: nn.Module, freeze_backbone: bool = True
) -> FineTuned:
    """`backbone` with a new head of three 3x3x3 convolutions and one output channel for each of `classes`."""
    width = backbone.out_channels
    convolutions = [layer for _ in range(3) for layer in (nn.Conv3d(width, width, 3), nn.ReLU())]
    return FineTuned(
        backbone, nn.Sequential(*convolutions, nn.Conv3d(width, len(classes), 1)), freeze_backbone
    )


class FineTuned(nn.Module):
    """A pretrained backbone under a new head: (B, 1, z, y, x) to logits (B, classes, z - 186, y - 186, x - 186).

    A frozen backbone stays in eval mode, gets no gradient and keeps no activations. Sizes: see `cosem_output_shape`.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, freeze_backbone: bool):
        super().__init__()
        self.backbone = backbone.requires_grad_(not freeze_backbone)
        self.head = head
        self.freeze_backbone = freeze_backbone
        self.train()

    def train(self, mode: bool = True) -> FineTuned:
        super().train(mode)
        self.backbone.train(mode and not self.freeze_backbone)
        return self

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Raises ValueError where `cosem_output_shape` does."""
        cosem_output_shape(raw.shape[2:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            features = self.backbone(raw)
        return self.head(features)


def cosem_output_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Voxels that come out of `FineTuned` on each axis: n - 186 for n = 198, 216, 234, ...; 93 are lost on each side.

    Raises ValueError naming the nearest sizes that can be used.
    """
    return shrunk_shape("COSEM's U-Net", input_shape, SMALLEST_INPUT, INPUT_STEP, LOST_VOXELS)


def _cache_folder() -> Path:
    return Path(os.environ.get("CELLMAP_CACHE") or REPOSITORY / "cache").expanduser()


def _is_recorded(path: Path) -> bool:
    """Whether the file is there with its record. Raises ValueError if it is not the file that was recorded."""
    record_path = _record_path(path)
    if not (path.is_file() and record_path.is_file()):
        return False
    recorded, found = json.loads(record_path.read_text())["bytes"], path.stat().st_size
    if found != recorded:
        raise UserError(
            f"{path}: has {found:,} bytes, but {record_path.name} says {recorded:,}; delete both to download it again"
        )
    return True


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write_record(path: Path, record: dict) -> None:
    record_path = _record_path(path)
    part = record_path.with_name(record_path.name + ".part")
    part.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(part, record_path)
    print(f"{path}: {record['bytes']:,} bytes, SHA-256 {record['sha256']}", file=sys.stderr)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of one cached file between processes. Raises FileNotFoundError if the cache cannot be written."""
    lock = InterProcessLock(path.with_name(path.name + ".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise FileNotFoundError(
            f"{path.parent}: cannot be written ({error.strerror}); set CELLMAP_CACHE to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _examine(name: str, path: Path) -> dict:
    """The record of a file that somebody put into the cache. Raises ValueError if it is not this checkpoint."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = {"source": "put here by hand", "bytes": path.stat().st_size, "sha256": digest}
    _check(name, path, record)
    return record


def _download(name: str, url: str, path: Path) -> dict:
    """Fetch a checkpoint and put it at `path` when it is whole and loads; gives its record."""
    part = path.with_name(path.name + ".part")
    try:
        record = _fetch(url, part)
        _check(name, part, record)
        os.replace(part, path)
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"{path}: missing, and could not be downloaded ({error}); fetch {url} elsewhere and save it as this file"
        ) from error
    except ValueError as error:
        reason = str(error).removeprefix(f"{part}: ").partition("; ")[0]
        raise UserError(
            f"{url}: sent something else ({reason}); fetch it elsewhere and save it as {path}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return record


def _fetch(url: str, part: Path) -> dict:
    """Copy what `url` sends into `part`. Raises OSError if it is less than announced."""
    digest = hashlib.sha256()
    verified = (
        ssl.create_default_context()
    )  # urlopen's own is not, once cellmap-models has downloaded something
    with urlopen(url, timeout=TIMEOUT_S, context=verified) as response, part.open("wb") as file:
        announced = response.headers.get("Content-Length")
        total = None if announced is None else int(announced)
        with tqdm(total=total, unit="B", unit_scale=True, desc=f"Downloading {url}") as progress:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                digest.update(chunk)
                progress.update(len(chunk))
    if total not in (None, progress.n):
        raise FileError(f"the transfer ended after {progress.n:,} of {total:,} bytes")
    return {"source": url, "bytes": progress.n, "sha256": digest.hexdigest()}


def _check(name: str, path: Path, record: dict) -> None:
    """Raise ValueError unless the file has the known SHA-256, if there is one, and holds the network's tensors."""
    known = KNOWN_SHA256.get(name)
    if known not in (None, record["sha256"]):
        raise UserError(
            f"{path}: SHA-256 is {record['sha256']}, not the known {known}; delete it and fetch it again"
        )
    _read_backbone(name, path)


def _new_backbone(name: str) -> nn.Module:
    """The backbone of a COSEM network with new weights, without its heavy constructor."""
    cosem = "cellmap_models.pytorch.cosem"
    architecture = import_module(f"{cosem}.load_model")
    settings = import_module(f"{cosem}.{name.split('/', maxsplit=1)[0].replace('.', '_')}.model")
    return architecture.CNNectomeUNetModule(**architecture.get_param_dict(settings))


def _read_backbone(name: str, path: Path) -> nn.Module:
    """The backbone with the weights in `path`. Raises ValueError if its tensors are not the network's."""
    with torch.device("meta"):
        backbone = _new_backbone(name)
    tensors = _backbone_tensors(path)
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wanted = {key: tuple(tensor.shape) for key, tensor in backbone.state_dict().items()}
    wrong = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} tensors do not fit {name}, '{wrong[0]}' for one has shape {found.get(wrong[0])} "
            f"instead of {wanted.get(wrong[0])}; put the file of this checkpoint here"
        )
    backbone.load_state_dict(tensors, assign=True)
    return backbone.eval()


def _backbone_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The backbone's tensors (float32) in a checkpoint, which is `{"model": tensors of the whole network, ...}`."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything from EOFError to IndexError
        raise UserError(
            f"{path}: not a PyTorch file of plain tensors ({type(error).__name__}); delete it and fetch it again"
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
    """Tensors under cellmap-models' names; the original training wrote `architecture.unet.*`, and copies as `chain.*`.

    Raises ValueError if a copy differs. The renaming is that of cellmap_models.pytorch.cosem.load_model.
    """
    final = {}
    for key, tensor in tensors.items():
        if "chain" not in key:
            final[key.replace("architecture.", "").replace("unet.", "backbone.")] = tensor
            continue
        original = key.replace("chain.0", "architecture").replace("chain.1", "prediction_head")
        if original == key or original not in tensors or not torch.equal(tensor, tensors[original]):
            raise UserError(
                f"{path}: '{key}' is not the copy of another tensor in it; put a COSEM checkpoint here"
            )
    return final
