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

PARTS = 4
"""Of a block for each thread that looks 255ths up, so that all end at about one time."""

LookUp = Callable[[torch.Tensor, torch.Tensor], bool]
"""Writes into its first argument the 255ths of the logits that are its second; says whether one of
them is NaN."""


@dataclass(frozen=True)
class Encoded:
    """What is stored of logits."""

    values: torch.Tensor
    """(classes, z, y, x)."""
    has_nan: bool | torch.Tensor
    """Whether one of the logits is NaN, as of `has_nan`."""


def encode(logits: torch.Tensor, content: str, dtype: torch.dtype) -> Encoded:
    """What is stored of logits (classes, z, y, x): logits, or probabilities; in uint8 in 255ths."""
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
    """Whether one of the logits is NaN.

    Of a CUDA device a bool tensor on the host, right as soon as the device has come so far: asking
    for it at once would leave the device without work until the answer is there.
    """
    if logits.device.type == "cuda":
        answer = torch.empty((), dtype=torch.bool, pin_memory=True)
        # the largest value is NaN if one of them is
        return answer.copy_(logits.amax().isnan(), non_blocking=True)
    # a sum is NaN if one of them is, and takes a tenth of the time of looking for it
    return bool(logits.sum(dtype=torch.float32).isnan() and logits.isnan().any())


def _in_threads(function: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """A function of each part. Torch's own threads would wait for each other after every step."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(function, parts))


def _look_up(logits: torch.Tensor, content: str, dtype: torch.dtype) -> LookUp | None:
    """How 255ths of logits on a CPU are looked up; None for what is computed."""
    if logits.device.type != "cpu" or content != "probability" or dtype != torch.uint8:
        return None
    if logits.dtype in INFINITY:
        return partial(_by_bits, _table_of(logits.dtype))
    if logits.dtype == torch.float32:
        return partial(_by_ends, *_thresholds())
    return None


def _by_bits(table: np.ndarray, stored: torch.Tensor, logits: torch.Tensor) -> bool:
    bits = logits.view(torch.int16).numpy().view(np.uint16)
    largest = loops().by_bits(bits, table, stored.numpy())
    return bool(largest > INFINITY[logits.dtype])


def _by_ends(
    ends: np.ndarray, below: np.ndarray, stored: torch.Tensor, logits: torch.Tensor
) -> bool:
    return bool(loops().by_ends(logits.numpy(), ends, below, stored.numpy()))


@torch.inference_mode()
def _compute(content: str, stored: torch.Tensor, logits: torch.Tensor) -> None:
    # in float32: bfloat16 has 8 bits, too few for 255ths; a copy, since the caller keeps its logits
    values = logits.to(torch.float32, copy=True)
    if content == "probability":
        values.sigmoid_()
    if stored.dtype == torch.uint8:
        values.mul_(255).round_()
    stored.copy_(values)


@cache
def _table_of(dtype: torch.dtype) -> np.ndarray:
    """(65536,) the 255ths of every number of 16 bits, by its bits."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    table = torch.empty(2**16, dtype=torch.uint8)
    _compute("probability", table, bits.view(dtype))
    return table.numpy()


@cache
def _thresholds() -> tuple[np.ndarray, np.ndarray]:
    """Where in float32 the 255ths begin, and in which bins, as `loops.by_ends` takes them.

    (256,) the least logit of 1, of 2, ... of 255, and infinity; (bins + 1,) the number of them in
    the bins before. Found with torch's own sigmoid, whose last bit is another on other processors.
    """
    bins = loops()
    logits = _least_logits(bins.LIMIT)
    where = ((logits[:-1] + bins.LIMIT) * bins.PER_UNIT).astype(np.uint32)
    assert (np.diff(where) > 0).all(), "two 255ths begin in one bin"
    below = np.searchsorted(where, np.arange(bins.BINS + 1)).astype(np.uint8)
    return logits, below


def _least_logits(limit: float) -> np.ndarray:
    """(256,) float32, the least logits whose 255ths are 1, 2, ...; infinity where there is none.

    limit: what all others are below.
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
    """`common.infer.predicting.loops`, which takes a third of a second to import."""
    try:
        from common.infer.predicting import loops as found
    except ImportError as error:
        raise UserError(
            f"numba, which encodes predictions on a CPU, cannot be imported ({error}); "
            "pip install numba, or predict on a GPU"
        ) from error
    return found


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
