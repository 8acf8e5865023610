"""What this machine has for training, what is missing, and the command that mends it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from common.config import load
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.files import REPOSITORY

GOOD, NOTE, WRONG = "ok", "note", "WRONG"
OPTIONAL = {
    "optuna": "search",
    "mlflow": "trackers = 'mlflow'",
    "neuroglancer": "visualize in a browser",
}
"""Packages that are not required, and what they are for."""
NO_DISK_GB, LITTLE_DISK_GB, LITTLE_SHARED_GB = 1.0, 20.0, 0.5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str
    """GOOD, NOTE (worth knowing) or WRONG (stops training)."""
    text: str
    mend: str = ""


def doctor(config_path: str | Path | None = None, data: str | Path | None = None) -> list[Finding]:
    """Look at everything that training needs; with an experiment also at what that one asks for. Writes nothing.

    data: the data root, as `--data`. Raises nothing about what it finds: that is in the findings.
    """
    findings = [python(), *packages()]
    config, wrong = None, None
    if config_path:
        try:
            config = load_config(config_path, (), data)
        except (ValueError, OSError) as error:
            wrong = Finding("settings", WRONG, " | ".join(str(error).splitlines()))
    findings += [
        *([wrong] if wrong else []),
        *devices(config),
        *machine(config),
        *disks(config, data),
        *data_found(config, data),
    ]
    return findings


def report(findings: list[Finding]) -> str:
    """A line a finding, what mends it below it, and a sentence that sums up."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<6}{finding.what:<{width}}  {finding.text}")
        if finding.mend:
            lines.append(f"{'':<{width + 8}}-> {finding.mend}")
    wrong = [finding.what for finding in findings if finding.state == WRONG]
    return "\n".join(
        [
            *lines,
            f"training stops at: {', '.join(wrong)}" if wrong else "nothing here stops training",
        ]
    )


def is_well(findings: list[Finding]) -> bool:
    """Whether nothing stops training."""
    return all(finding.state != WRONG for finding in findings)


def python() -> Finding:
    """The interpreter."""
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < (3, 11):
        return Finding(
            "python", WRONG, f"{text}; 3.11 or newer is needed", "make PYTHON=python3.12 test"
        )
    return Finding("python", GOOD, text)


def requirements() -> Iterator[tuple[str, bool]]:
    """The packages of pyproject.toml with the versions asked for, and whether training needs them."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    yield from ((text, True) for text in project["dependencies"])
    for text in project["optional-dependencies"]["dev"]:
        if not text.startswith(f"{project['name']}["):
            yield text, False


def packages() -> Iterator[Finding]:
    """Those of pyproject.toml in the versions that it asks for; those of `dev` only for tests."""
    mend = f"{sys.executable} -m pip install -r {REPOSITORY / 'requirements.txt'}"
    try:
        from packaging.requirements import Requirement
    except ImportError:  # it comes with scikit-image
        yield Finding("packages", WRONG, "not installed", mend)
        return
    wrong, found = [], []
    for text, needed in requirements():
        wanted = Requirement(text)
        there = version(wanted.name)
        if there and wanted.specifier.contains(there, prereleases=True):
            found.append(f"{wanted.name} {there}")
        else:
            state = f"{there} is installed" if there else "it is not installed"
            wrong.append((needed, f"{wanted} is asked for, and {state}"))
    yield Finding("packages", GOOD, ", ".join(found))
    for needed, text in wrong:
        state, why = (WRONG, "") if needed else (NOTE, " (for tests only)")
        yield Finding("packages", state, text + why, mend)
    if missing := [
        f"{name} for {use}"
        for name, use in OPTIONAL.items()
        if not (version(name) or version(f"{name}-skinny"))
    ]:
        yield Finding(
            "optional",
            NOTE,
            f"not installed: {', '.join(missing)}",
            "pip install the ones you want",
        )


def version(package: str) -> str:
    """Of an installed package; "" if it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def devices(config: TrainConfig | None) -> Iterator[Finding]:
    """What trains: a step of a 3-D convolution is taken on it, in the precision that a run would take."""
    try:
        import torch

        from common import runtime
    except ImportError as error:
        yield Finding(
            "torch",
            WRONG,
            f"cannot be imported ({error})",
            f"{sys.executable} -m pip install torch",
        )
        return
    driver = nvidia("driver_version,name,memory.total")
    yield Finding(
        "driver", GOOD if driver else NOTE, driver or "no NVIDIA driver answers (nvidia-smi)"
    )
    if driver and not torch.cuda.is_available():
        built = (
            f"is built for CUDA {torch.version.cuda}, which this driver does not run"
            if torch.version.cuda
            else "is built without CUDA"
        )
        text = f"torch {torch.__version__} {built}: it trains on the CPU"
        yield Finding(
            "torch",
            NOTE,
            text,
            "install the build for your driver: https://pytorch.org/get-started/locally",
        )
    try:
        device = runtime.pick_device(config.device if config else "auto")
        precision = runtime.pick_precision(config.precision if config else "auto", device)
        convolve(device, precision)
    except (ValueError, RuntimeError) as error:
        yield Finding("device", WRONG, str(error).splitlines()[0])
        return
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        where = (
            f"{about.name}, {about.total_memory / 1e9:.0f} GB, {runtime.free_memory_gb(device):.0f} GB of it free, compute "
            f"{about.major}.{about.minor}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    else:
        where = f"{torch.get_num_threads()} threads; a real network takes days without a GPU"
    yield Finding(
        "device",
        GOOD if device.type != "cpu" else NOTE,
        f"{device} in {precision.name}: {where}; a 3-D convolution runs",
    )
    for warning in runtime.warnings_about(device):
        yield Finding("torch", NOTE, warning, f"{sys.executable} -m pip install -U 'torch>=2.10'")


def convolve(device: Any, precision: Any) -> None:
    """Forward and backward through a 3-D convolution; RuntimeError where this torch and device cannot."""
    import torch

    weight = torch.zeros(4, 1, 3, 3, 3, device=device, requires_grad=True)
    with precision.autocast():
        torch.nn.functional.conv3d(
            torch.ones(1, 1, 8, 8, 8, device=device), weight
        ).sum().backward()
    float(weight.grad.sum())  # type: ignore[union-attr]


def nvidia(fields: str) -> str:
    """What nvidia-smi says, a line a device; "" without it."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""


def machine(config: TrainConfig | None) -> Iterator[Finding]:
    """Cores, and the shared memory that workers hand their patches over in."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    workers = config.num_workers if config else TrainConfig.num_workers
    mend = f"--set num_workers={max(cores - 1, 0)}" if workers > cores else ""
    yield Finding("cores", NOTE if mend else GOOD, f"{cores}; num_workers = {workers}", mend)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 1e9
        little = free < LITTLE_SHARED_GB and workers
        yield Finding(
            "shared memory",
            WRONG if little else GOOD,
            f"{free:.2f} GB free in {shared}{', too little for workers' if little else ''}",
            "--set num_workers=0, or in a container --shm-size=8g (docker run)" if little else "",
        )


def disks(config: TrainConfig | None, data: str | Path | None) -> Iterator[Finding]:
    """Room, and leave to write, where runs and decoded crops are kept."""
    cache = (
        config.path("cache_path")
        if config
        else Path(load.environment()[0].get("cache_path", REPOSITORY / "cache"))
    )
    places = {"cache": cache, "runs": config.path("model_save_path") if config else REPOSITORY}
    for what, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free / 1e9
        text = f"{free:.0f} GB free at {place}"
        mend = (
            "CELLMAP_CACHE=FOLDER on a larger disk"
            if what == "cache"
            else "--set model_save_path=FOLDER/{model_name}/{run_name} on another disk"
        )
        if not os.access(there, os.W_OK):
            yield Finding(what, WRONG, f"{there} cannot be written to", mend)
        elif free < LITTLE_DISK_GB:
            yield Finding(
                what,
                NOTE if free > NO_DISK_GB else WRONG,
                f"{text}, which is little",
                f"free space, or {mend}",
            )
        elif what == "cache" and config and free < config.cache_gb:
            yield Finding(
                what,
                NOTE,
                f"{text}, and cache_gb lets it grow to {config.cache_gb:g}",
                f"--set cache_gb={int(free * 0.8)}",
            )
        else:
            yield Finding(what, GOOD, text)


def data_found(config: TrainConfig | None, data: str | Path | None) -> Iterator[Finding]:
    """Datasets and crops under the data root; with an experiment, whether all that its datasplit names is there."""
    root = config.path("data_path") if config else load.data_root(data)
    mend = "python -m cellmap_segmentation_challenge fetch-data fills it; or name the folder that holds the data: --data FOLDER or CELLMAP_DATA=FOLDER"
    if not root.is_dir():
        yield Finding("data", WRONG, f"the data root {root} is no folder", mend)
        return
    raws = sorted(root.glob("*/*.zarr/recon-*/em/*"))
    crops = sorted(root.glob("*/*.zarr/recon-*/labels/groundtruth/crop*"))
    datasets = {path.relative_to(root).parts[0] for path in crops}
    bare = datasets - {path.relative_to(root).parts[0] for path in raws}
    text = f"{len(crops)} annotated crops of {len(datasets)} datasets in {root}"
    yield Finding("data", GOOD if crops else WRONG, text, "" if crops else mend)
    if bare:
        yield Finding("data", WRONG, f"no raw (recon-1/em) for {', '.join(sorted(bare))}", mend)
    if not config:
        return
    from common.data import split

    path = config.path("datasplit_path")
    try:
        rows = split.read_datasplit(path, root)
        split.check_files(rows)
    except (ValueError, OSError) as error:
        lines = str(error).splitlines()
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        mend = f"fetch what is missing, or write a split of what is there: make-datasplit {path} --overwrite --scale NM"
        yield Finding("datasplit", WRONG, " | ".join(lines[:3]) + more, mend)
        return
    yield Finding("datasplit", GOOD, f"{len(rows)} crops of {path}, all there")
