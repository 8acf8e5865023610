"""How predictions are stored, and read back as logits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

# 2**20 float32 are 4 MB
LAYER_VOXELS = {"cpu": 2**20}
"""Voxels encoded at a time, by kind of device: as many as a CPU's cache holds; 2**27 on others."""


def encode(logits: torch.Tensor, content: str, dtype: torch.dtype) -> torch.Tensor:
    """What is stored of logits (classes, z, y, x): logits, or probabilities; in uint8 in 255ths."""
    stored = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    voxels = LAYER_VOXELS.get(logits.device.type, 2**27)
    # layers of z: networks in channels_last give all classes of a voxel side by side
    thickness = max(1, voxels // logits[:, :1].numel())
    pairs = list(zip(stored.split(thickness, 1), logits.split(thickness, 1), strict=True))
    if logits.device.type != "cpu":
        for part, values in pairs:
            _encode_into(part, values, content)
        return stored
    # a thread a layer: torch's own threads would wait for each other after every step, and writers
    # be in their way
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        jobs = [pool.submit(_encode_into, part, values, content) for part, values in pairs]
    for job in jobs:
        job.result()
    return stored


@torch.inference_mode()
def _encode_into(stored: torch.Tensor, logits: torch.Tensor, content: str) -> None:
    # in float32: bfloat16 has 8 bits, too few for 255ths; a copy, since the caller keeps its logits
    values = logits.to(torch.float32, copy=True)
    if content == "probability":
        values.sigmoid_()
    if stored.dtype == torch.uint8:
        values.mul_(255).round_()
    stored.copy_(values)


def decode(stored: np.ndarray, content: str) -> np.ndarray:
    """Float32 logits of what `encode` made.

    Those of probabilities 0 and 1 are finite: half a 255th away from them, in uint8.
    """
    if content == "logits":
        return stored.astype(np.float32)
    if stored.dtype == np.uint8:
        return _logits_of_255ths()[stored]
    # 1 - 1e-7 is the second largest float32 below 1; logits are then within -16..16
    probability = np.clip(stored.astype(np.float32), 1e-7, 1 - 1e-7)
    return np.log(probability / (1 - probability))


def _logits_of_255ths() -> np.ndarray:
    """(256,) float32."""
    probability = np.arange(256) / 255
    least = 0.5 / 255
    odds = np.clip(probability, least, None) / np.clip(1 - probability, least, None)
    return np.log(odds).astype(np.float32)
