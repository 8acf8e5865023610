"""How predictions are stored, and read back as logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch

from common.errors import UserError

# 2**20 float32 are 4 MB
LAYER_VOXELS = {"cpu": 2**20}
"""Voxels encoded at a time, by kind of device: as many as a CPU's cache holds; 2**27 on others."""

INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}
"""The bits of infinity."""

# a few, so that all threads end at about one time
PARTS = 4
"""Parts of a block for each thread that looks 255ths up."""

LookUp = Callable[[torch.Tensor, torch.Tensor], bool]
"""Fills its first argument with the 255ths of the second, logits; returns whether any is NaN."""


@dataclass(frozen=True)
class Encoded:
    """What is stored of logits."""

    values: torch.Tensor
    """(classes, z, y, x)."""
    has_nan: bool | torch.Tensor
    """Whether any of the logits is NaN, see `has_nan`."""


def encode(logits: torch.Tensor, content: str, dtype: torch.dtype) -> Encoded:
    """Return what is stored of logits (classes, z, y, x), on their device.

    Args:
        logits: of a block; they stay as they are.
        content: "logits" or "probability".
        dtype: of what is stored; probabilities in uint8 are 255ths.
    """
    stored = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    look_up = _look_up(logits, content, dtype)
    if look_up is not None:
        parts = PARTS * torch.get_num_threads()
        pairs = zip(stored.chunk(parts, 1), logits.chunk(parts, 1), strict=True)
        return Encoded(stored, any(_in_threads(lambda pair: look_up(*pair), list(pairs))))
    voxels = LAYER_VOXELS.get(logits.device.type, 2**27)
    # layers of z: networks in channels_last give all classes of a voxel side by side
    thickness = max(1, voxels // logits[:, :1].numel())
    layers = list(zip(stored.split(thickness, 1), logits.split(thickness, 1), strict=True))
    if logits.device.type == "cpu":
        _in_threads(lambda layer: _compute(content, *layer), layers)
    else:
        for layer in layers:
            _compute(content, *layer)
    return Encoded(stored, has_nan(logits))


def has_nan(logits: torch.Tensor) -> bool | torch.Tensor:
    """Return whether any of the logits is NaN.

    For logits on a CUDA device it is a bool tensor on the host, filled when the device has come so
    far: to wait for it here would leave the device without work.
    """
    if logits.device.type == "cuda":
        answer = torch.empty((), dtype=torch.bool, pin_memory=True)
        # the largest value is NaN if one of them is
        return answer.copy_(logits.amax().isnan(), non_blocking=True)
    # a sum is NaN if one of them is, and takes a tenth of the time of looking for it
    return bool(logits.sum(dtype=torch.float32).isnan() and logits.isnan().any())


def _in_threads(function: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """Return what a function gives for each part, computed in threads.

    Torch's own threads would wait for each other after every step.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(function, parts))


def _look_up(logits: torch.Tensor, content: str, dtype: torch.dtype) -> LookUp | None:
    """Return how 255ths of logits on a CPU are looked up; None for what is computed."""
    if logits.device.type != "cpu" or content != "probability" or dtype != torch.uint8:
        return None
    if logits.dtype in INFINITY:
        return partial(_by_bits, _table_of(logits.dtype))
    if logits.dtype == torch.float32:
        return partial(_by_ends, *_thresholds())
    return None


def _by_bits(table: np.ndarray, stored: torch.Tensor, logits: torch.Tensor) -> bool:
    """Look up logits of 16 bits by their bits; see LookUp. table: (65536,) uint8."""
    bits = logits.view(torch.int16).numpy().view(np.uint16)
    largest = loops().by_bits(bits, table, stored.numpy())
    return bool(largest > INFINITY[logits.dtype])


def _by_ends(
    ends: np.ndarray, below: np.ndarray, stored: torch.Tensor, logits: torch.Tensor
) -> bool:
    """Look up float32 logits by where 255ths begin; see LookUp and `_thresholds`."""
    return bool(loops().by_ends(logits.numpy(), ends, below, stored.numpy()))


@torch.inference_mode()
def _compute(content: str, stored: torch.Tensor, logits: torch.Tensor) -> None:
    """Fill `stored` with what is stored of logits of the same shape, on any device."""
    # in float32: bfloat16 has 8 bits, too few for 255ths; a copy, since the caller keeps its logits
    values = logits.to(torch.float32, copy=True)
    if content == "probability":
        values.sigmoid_()
    if stored.dtype == torch.uint8:
        values.mul_(255).round_()
    stored.copy_(values)


@cache
def _table_of(dtype: torch.dtype) -> np.ndarray:
    """Return (65536,) uint8, the 255ths of every logit of 16 bits, by its bits."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    table = torch.empty(2**16, dtype=torch.uint8)
    _compute("probability", table, bits.view(dtype))
    return table.numpy()


@cache
def _thresholds() -> tuple[np.ndarray, np.ndarray]:
    """Return where the 255ths begin, and how many begin before each bin, for `loops.by_ends`.

    The first array is (256,) float32: the least logit of 1, of 2, ... of 255, and infinity. The
    second is (bins + 1,) uint8. They are found with torch's own sigmoid, whose last bit differs
    between processors.
    """
    bins = loops()
    logits = _least_logits(bins.LIMIT)
    where = ((logits[:-1] + bins.LIMIT) * bins.PER_UNIT).astype(np.uint32)
    assert (np.diff(where) > 0).all(), "two 255ths begin in one bin"
    below = np.searchsorted(where, np.arange(bins.BINS + 1)).astype(np.uint8)
    return logits, below


def _least_logits(limit: float) -> np.ndarray:
    """Return (256,) float32, the least logits whose 255ths are 1, 2, ..., and infinity at the end.

    limit: above all of them but infinity.
    """
    wanted = np.arange(1, 257)
    less = np.full(256, -limit, np.float32)
    enough = np.full(256, limit, np.float32)
    # halved until they are neighbours: 13 units are 2**34 steps of the floats near 2**-7
    for _ in range(40):
        middle = (less + enough) / 2
        reached = torch.empty(256, dtype=torch.uint8)
        _compute("probability", reached, torch.from_numpy(middle))
        is_enough = reached.numpy() >= wanted
        enough = np.where(is_enough, middle, enough)
        less = np.where(is_enough, less, middle)
    # nothing has 256 255ths
    enough[-1] = np.inf
    return enough


def loops() -> ModuleType:
    """Return `common.infer.predicting.loops`, which takes a third of a second to import.

    Raise UserError without numba.
    """
    try:
        from common.infer.predicting import loops as module
    except ImportError as error:
        raise UserError(
            f"numba, which encodes predictions on a CPU, cannot be imported ({error}); "
            "pip install numba, or predict on a GPU"
        ) from error
    return module


def decode(stored: np.ndarray, content: str) -> np.ndarray:
    """Return float32 logits of what `encode` stored.

    Probabilities 0 and 1 have finite logits: in uint8 those of half a 255th away from them.
    """
    if content == "logits":
        return stored.astype(np.float32)
    if stored.dtype == np.uint8:
        return _logits_of_255ths()[stored]
    # 1 - 1e-7 is the second largest float32 below 1; logits are then within -16..16
    probability = np.clip(stored.astype(np.float32), 1e-7, 1 - 1e-7)
    return np.log(probability / (1 - probability))


def _logits_of_255ths() -> np.ndarray:
    """Return (256,) float32, the logit of each number of 255ths."""
    probability = np.arange(256) / 255
    least = 0.5 / 255
    odds = np.clip(probability, least, None) / np.clip(1 - probability, least, None)
    return np.log(odds).astype(np.float32)
