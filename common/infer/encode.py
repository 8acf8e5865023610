"""How predictions are stored, and read back as logits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch


def encode(logits: torch.Tensor, content: str, dtype: torch.dtype) -> torch.Tensor:
    """What is stored of logits (classes, z, y, x): logits, or probabilities, which as uint8 are rounded to 255ths.

    Layer by layer of z: all classes of a voxel lie side by side, as channels_last networks give them, and stay in a CPU's cache.
    There a thread takes a layer; torch's own threads would wait for each other after every step, and writers be in their way.
    """
    stored = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    on_cpu = logits.device.type == "cpu"
    layers = max(1, (2**20 if on_cpu else 2**27) // logits[:, :1].numel())

    @torch.inference_mode()
    def fill(taken: torch.Tensor, given: torch.Tensor) -> None:
        values = given.to(torch.float32, copy=True)
        if content == "probability":
            values.sigmoid_()
        taken.copy_(values.mul_(255).round_().to(dtype) if dtype == torch.uint8 else values)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list((pool.map if on_cpu else map)(fill, stored.split(layers, 1), logits.split(layers, 1)))
    return stored


def decode(stored: np.ndarray, content: str) -> np.ndarray:
    """Float32 logits of what `encode` made; those of probabilities 0 and 1 are finite, half a 255th away from them."""
    if content == "logits":
        return stored.astype(np.float32)
    if stored.dtype == np.uint8:
        probability = np.arange(256) / 255
        return np.log(
            np.clip(probability, 0.5 / 255, None) / np.clip(1 - probability, 0.5 / 255, None)
        ).astype(np.float32)[stored]
    probability = np.clip(stored.astype(np.float32), 1e-7, 1 - 1e-7)
    return np.log(probability / (1 - probability))
