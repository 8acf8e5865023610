"""Seed, device and precision of a run."""

from __future__ import annotations

import contextlib
import ctypes
import math
import platform
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from common.talk import say


def seed_everything(seed: int) -> None:
    """Seed what draws weights; samples and augmentation have generators of their own."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA, MPS or the CPU, the first that there is. ValueError if it is not there."""
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device = '{name}' cannot be used here ({reason}); set device = 'auto'"
        ) from None
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # patches have one shape
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let this process reuse the memory of large tensors instead of giving it back and faulting it in again at every step.

    On Linux with glibc; elsewhere nothing happens. Half of a step on a CPU can go into page faults, see bench/train.py.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
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
        return torch.autocast(self.device, torch.bfloat16 if self.name == "bf16" else torch.float16)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaler; it does nothing unless the precision is fp16."""
        return torch.amp.GradScaler(self.device, enabled=self.name == "fp16")


def pick_precision(name: str, device: torch.device) -> Precision:
    """The precision of a name on a device. ValueError for fp16 on a CPU, which has no loss scaling worth having."""
    if name == "fp16" and device.type == "cpu":
        raise UserError(
            "precision = 'fp16' is for CUDA; on the CPU set precision = 'bf16' or 'fp32'"
        )
    if name == "auto":
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            name = (
                "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"
            )
    return Precision(name, device.type)


def peak_memory_gb(device: torch.device) -> float:
    """Most memory in use so far, GB: of the device if it is CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if platform.system() == "Darwin" else 1024)
        / 1e9
    )


def free_memory_gb(device: torch.device) -> float:
    """Memory that is free, GB: of the device if it is CUDA, else of the machine or what a container or batch job leaves of it.

    8 where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return min(int(lines["MemAvailable"].split()[0]) * 1024 / 1e9, control_group_gb())
    except (OSError, KeyError):
        return 8.0


def control_group_gb(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float:
    """Memory, GB, that the control groups of this process (Linux' version 2) leave to it; infinite without a limit.

    Files that were read and can be forgotten do not count as used.
    """
    names = (
        [line[3:].strip("/") for line in own.read_text().splitlines() if line.startswith("0::")]
        if own.is_file()
        else []
    )
    left = math.inf
    for name in names:
        for folder in (root / name, *(root / name).parents[: len(Path(name).parts)]):
            limit = (
                (folder / "memory.max").read_text().strip()
                if (folder / "memory.max").is_file()
                else "max"
            )
            if limit != "max":
                used = dict(
                    line.split() for line in (folder / "memory.stat").read_text().splitlines()
                )
                left = min(
                    left,
                    (
                        int(limit)
                        - int((folder / "memory.current").read_text())
                        + int(used["inactive_file"])
                    )
                    / 1e9,
                )
    return left


def warnings_about(device: torch.device) -> list[str]:
    """What is known to be wrong with this installation for 3-D convolutions, a sentence each."""
    if device.type == "cuda" and torch.__version__.startswith("2.9.0"):
        return [
            "torch 2.9.0 runs half-precision 3-D convolutions without cuDNN, many times slower; install 2.10"
        ]
    return []


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that is true once Ctrl-C or SIGTERM came; a second Ctrl-C ends at once. Not for threads."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)
        say("\nstopping after this step; once more ends at once")

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody sends it signals
        before = {}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
