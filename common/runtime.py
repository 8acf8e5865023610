"""Seed, device and precision of a run, and its memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError


def seed_everything(seed: int) -> None:
    """Seed what draws weights; samples and augmentation have generators of their own."""
    torch.manual_seed(seed)
    random.seed(seed)
    # the global generator: a user's build_model may draw from it
    np.random.seed(seed % 2**32)  # noqa: NPY002


def seed_process(seed: int, number: int, iteration: int) -> None:
    """Seed one of several processes from an iteration on, the main one (number 0) as any.

    Each has random numbers of its own, such as those of dropout.
    """
    if number:
        seed = int(np.random.SeedSequence([seed, number, iteration]).generate_state(1)[0])
    seed_everything(seed)


def random_state() -> dict[str, Any]:
    """The states of all global generators, of torch, CUDA, NumPy and Python, to be saved.

    Tensors, numbers and texts alone, which torch.load reads without running code.
    """
    of_numpy: Any = np.random.get_state()  # noqa: NPY002
    name, words, *position = of_numpy
    return {
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
        "numpy_rng": (name, words.tolist(), *position),
        "python_rng": random.getstate(),
    }


def restore_random_state(saved: Mapping[str, Any]) -> None:
    """Set the global generators to what `random_state` gave, or to as much as there is of it."""
    torch.set_rng_state(saved["rng"])
    on_cuda = saved.get("cuda_rng") or []
    # a run may go on with fewer GPUs
    for number, state in enumerate(on_cuda[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, number)
    if "numpy_rng" in saved:  # earlier versions saved those of torch alone
        np.random.set_state(saved["numpy_rng"])  # noqa: NPY002
        random.setstate(saved["python_rng"])


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA, MPS or the CPU, the first that there is.

    Sets what makes that device fast, for the whole process. Raises UserError if it is not there.
    """
    if name == "auto":
        name = _first_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    # AssertionError: a torch that is built without CUDA
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device = '{name}' cannot be used here ({reason}); set device = 'auto'"
        ) from error
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # patches have one shape
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _first_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones.

    glibc gives large blocks back at once and faults them in again at the next step; half of a step
    on a CPU can go into that, see bench/train.py. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    # numbers of malloc.h; the largest that mallopt takes for each
    m_mmap_threshold = -3
    m_trim_threshold = -1
    mallopt(m_mmap_threshold, 2**30)
    mallopt(m_trim_threshold, 2**31 - 1)


@dataclass(frozen=True)
class Precision:
    """Number type of the forward pass on a device."""

    name: str
    device: str

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context for the forward pass."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device, dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaler; it does nothing unless the precision is fp16."""
        return torch.amp.GradScaler(self.device, enabled=self.name == "fp16")


def pick_precision(name: str, device: torch.device) -> Precision:
    """The precision of a name on a device.

    Raises UserError for fp16 on a CPU, where torch has no loss scaling.
    """
    if name == "fp16" and device.type == "cpu":
        raise UserError(
            "precision = 'fp16' is for CUDA; on the CPU set precision = 'bf16' or 'fp32'"
        )
    if name == "auto":
        name = _best_precision(device)
    return Precision(name, device.type)


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        # an emulated bf16 is slower than fp16
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _computes_bf16() else "fp32"


ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that keep oneDNN, which computes convolutions, from instructions that the CPU has."""

WITH_BF16 = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")
"""One of these is in the name of each limit that leaves instructions for bf16."""


def _computes_bf16() -> bool:
    """Whether bf16 is computed by instructions of this CPU; emulated it is many times slower."""
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    # not ATEN_CPU_CAPABILITY: held to AVX2 by it, bf16 is as many times faster as without
    limits = [os.environ[name].upper() for name in ISA_LIMITS if os.environ.get(name)]
    return all(any(word in limit for word in WITH_BF16) for limit in limits)


def peak_memory_gb(device: torch.device) -> float:
    """Most memory in use so far, GB: of the device if it is CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, kB on Linux
    return peak * unit / 1e9


def free_memory_gb(device: torch.device) -> float:
    """Memory that is free, GB; 8 where the system does not say.

    Of the device if it is CUDA, else of the machine, or what a container or batch job leaves of it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    try:
        fields = _fields(Path("/proc/meminfo"))
        free = int(fields["MemAvailable:"]) * 1024 / 1e9
        return min(free, control_group_gb())
    except (OSError, KeyError):
        return 8.0


def control_group_gb(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float:
    """Memory, GB, that the control groups of this process leave to it; infinite without a limit.

    Linux' version 2 alone. Files that were read and can be forgotten do not count as used.
    """
    if not own.is_file():
        return math.inf
    left = math.inf
    for line in own.read_text().splitlines():
        if not line.startswith("0::"):  # a hierarchy of version 1
            continue
        name = Path(line.removeprefix("0::").strip("/"))
        # a limit of any group above holds too
        for depth in range(len(name.parts) + 1):
            folder = root.joinpath(*name.parts[:depth])
            left = min(left, _left_in(folder))
    return left


def _left_in(folder: Path) -> float:
    """Memory, GB, that one control group leaves to the processes in it."""
    limit_file = folder / "memory.max"
    if not limit_file.is_file():
        return math.inf
    limit = limit_file.read_text().strip()
    if limit == "max":
        return math.inf
    used = int((folder / "memory.current").read_text())
    forgettable = int(_fields(folder / "memory.stat")["inactive_file"])
    return (int(limit) - used + forgettable) / 1e9


def _fields(path: Path) -> dict[str, str]:
    """First and second word of each line of a file of the kernel."""
    fields = {}
    for line in path.read_text().splitlines():
        name, value, *_ = line.split()
        fields[name] = value
    return fields


def warnings_about(device: torch.device) -> list[str]:
    """What is known to be wrong with this installation for 3-D convolutions, a sentence each."""
    if device.type == "cuda" and torch.__version__.startswith("2.9.0"):
        return [
            "torch 2.9.0 runs half-precision 3-D convolutions without cuDNN, many times slower; "
            "install 2.10"
        ]
    return []
