"""Check what training needs on this machine, and name the command that mends what is missing."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.classes import TESTED
from common.config import load
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.volumes import layout
from common.errors import UserError
from common.files import REPOSITORY, cache_folder
from common.provenance import usable_cores
from common.shell import package
from common.talk import command_line, count, some

if TYPE_CHECKING:
    from common.data.splits.split import Row

GOOD = "ok"
NOTE = "note"
WRONG = "WRONG"

OPTIONAL = {
    "optuna": "search",
    "mwatershed": "mutex_watershed in process_config.py",
    "mlflow": "trackers = 'mlflow'",
    "neuroglancer": "visualize in a browser",
}
"""Packages that are not required, and what they are for."""

ASKING = 16
"""Volumes that are opened at a time."""

NO_DISK_GB = 1.0
LITTLE_DISK_GB = 20.0
# a docker container has 0.06 GB unless told otherwise, which a few batches in flight fill
LITTLE_SHARED_GB = 0.5


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    """Name of what was checked."""
    state: str
    """GOOD, NOTE (worth knowing) or WRONG (stops training)."""
    text: str
    mend: str = ""


def doctor(config_path: str | Path | None = None, data: str | Path | None = None) -> list[Finding]:
    """Check everything that training needs; with an experiment also what that asks for.

    Nothing is written, and problems are findings, not errors.

    config_path: folder of an experiment, or its train_config.py. data: the data root.
    """
    findings = [python(), *packages()]
    config = None
    if config_path:
        try:
            config = load_config(config_path, (), data)
        except (UserError, FileNotFoundError) as error:
            # a finding like others: the machine is looked at all the same
            findings.append(Finding("settings", WRONG, " | ".join(str(error).splitlines())))
        else:
            findings += processing(config)
            findings += trackers(config)
    findings += devices(config)
    findings += machine(config)
    crops = opened(config) if config else Opened()
    findings += disks(config, crops.gb_to_decode)
    findings += data_found(config, data, crops.problem)
    return findings


def report(findings: list[Finding]) -> str:
    """Return a line for each finding, what mends it below it, and a sentence that sums up."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<6}{finding.what:<{width}}  {finding.text}")
        if finding.mend:
            lines.append(f"{'':<{width + 8}}-> {finding.mend}")
    wrong = [finding.what for finding in findings if finding.state == WRONG]
    if wrong:
        lines.append(f"training stops at: {', '.join(wrong)}")
    else:
        lines.append("nothing here stops training")
    return "\n".join(lines)


def is_well(findings: list[Finding]) -> bool:
    """Whether nothing stops training."""
    return all(finding.state != WRONG for finding in findings)


def processing(config: TrainConfig) -> Iterator[Finding]:
    """Check what is read after training, so that it is not found out then."""
    try:
        load.load_process_config(config.path("process_config_path"))
    except (UserError, FileNotFoundError) as error:
        text = f"process will stop: {_in_a_line(str(error).splitlines())}"
        yield Finding("process", NOTE, text)


def trackers(config: TrainConfig) -> Iterator[Finding]:
    """Check that what a run logs to is installed."""
    from common.train.recording import tracking

    try:
        tracking.refuse_missing(config)
    except UserError as error:
        yield Finding("trackers", WRONG, str(error))


def python() -> Finding:
    """Name the interpreter."""
    return Finding("python", GOOD, f"{platform.python_version()} at {sys.executable}")


def packages() -> Iterator[Finding]:
    """Check required and optional packages, in the versions that are required."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # it comes with scikit-image
        yield Finding("packages", WRONG, "not installed", _install(package.NAME))
        return
    fitting = []
    missing = []
    for asked in package.requirements():
        text = package.misfit(asked, version)
        if text == "":
            name = Requirement(asked.text).name
            fitting.append(f"{name} {version(name)}")
        elif text and asked.for_training:
            missing.append(Finding("packages", WRONG, text, _install(asked.text)))
        elif text:
            text += " (for tests only)"
            missing.append(Finding("packages", NOTE, text, _install(asked.text)))
    yield Finding("packages", GOOD, ", ".join(fitting))
    yield from missing
    yield from _optional_packages()


def _optional_packages() -> Iterator[Finding]:
    missing = []
    for name, use in OPTIONAL.items():
        if not version(name) and not version(f"{name}-skinny"):  # MLflow without its server
            missing.append(f"{name} for {use}")
    if missing:
        text = f"not installed: {', '.join(missing)}"
        yield Finding("optional", NOTE, text, "pip install the ones you want")


def _install(wanted: str) -> str:
    """Return the command that installs a requirement; in a checkout all of them."""
    listed = REPOSITORY / "requirements.txt"
    words = ["-r", str(listed)] if listed.is_file() else [wanted]
    return shlex.join([sys.executable, "-m", "pip", "install", *words])


def version(name: str) -> str:
    """Return the version of a package; "" if it is not installed."""
    return package.installed(name)


def devices(config: TrainConfig | None) -> Iterator[Finding]:
    """Check the device: a 3-D convolution is tried, in the precision that a run would take."""
    try:
        import torch

        from common import runtime
    except ImportError as error:
        yield Finding("torch", WRONG, f"cannot be imported ({error})", _install("torch"))
        return
    driver = nvidia()
    state = GOOD if driver else NOTE
    yield Finding("driver", state, driver or "no NVIDIA driver answers (nvidia-smi)")
    if driver and not torch.cuda.is_available():
        yield _torch_without_cuda()
    try:
        device = runtime.pick_device(config.device if config else "auto")
        precision = runtime.pick_precision(config.precision if config else "auto", device)
        convolve(device, precision)
    except (UserError, RuntimeError) as error:
        yield Finding("device", WRONG, str(error).splitlines()[0])
        return
    yield Finding(
        "device",
        NOTE if device.type == "cpu" else GOOD,
        f"{device} in {precision.name}: {_about_device(device)}; a 3-D convolution runs",
    )
    for warning in runtime.warnings_about(device):
        yield Finding("torch", NOTE, warning, _install("torch>=2.10"))


def _torch_without_cuda() -> Finding:
    import torch

    built = "is built without CUDA"
    if torch.version.cuda:
        built = f"is built for CUDA {torch.version.cuda}, which this driver does not run"
    return Finding(
        "torch",
        NOTE,
        f"torch {torch.__version__} {built}: it trains on the CPU",
        "install the build for your driver: https://pytorch.org/get-started/locally",
    )


def _about_device(device: Any) -> str:
    import torch

    from common import runtime

    if device.type != "cuda":
        threads = count(torch.get_num_threads(), "thread")
        return f"{threads}; a real network takes days without a GPU"
    card = torch.cuda.get_device_properties(device)
    parts = [
        card.name,
        f"{card.total_memory / 1e9:.0f} GB",
        f"{runtime.free_memory_gb(device):.0f} GB of it free",
        f"compute {card.major}.{card.minor}",
        f"CUDA {torch.version.cuda}",
        f"cuDNN {torch.backends.cudnn.version()}",
    ]
    return ", ".join(parts)


def convolve(device: Any, precision: Any) -> None:
    """Go forward and backward through a 3-D convolution. Raises RuntimeError if torch cannot."""
    import torch

    weight = torch.zeros(4, 1, 3, 3, 3, device=device, requires_grad=True)
    raw = torch.ones(1, 1, 8, 8, 8, device=device)
    with precision.autocast():
        output = torch.nn.functional.conv3d(raw, weight)
    output.sum().backward()
    assert weight.grad is not None
    float(weight.grad.sum())  # waits for the device: its errors come late


def nvidia() -> str:
    """Return driver, card and memory of each GPU as nvidia-smi prints them; "" without it."""
    fields = "driver_version,name,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode != 0:
        return ""
    return "; ".join(done.stdout.strip().splitlines())


def machine(config: TrainConfig | None) -> Iterator[Finding]:
    """Check cores, and the shared memory through which workers hand over patches."""
    workers = config.num_workers if config else TrainConfig.num_workers
    cores = usable_cores()
    if workers > cores:
        mend = f"--set num_workers={max(cores - 1, 0)}"
        yield Finding("cores", NOTE, f"{cores}; num_workers = {workers}", mend)
    else:
        yield Finding("cores", GOOD, f"{cores}; num_workers = {workers}")
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return
    free = shutil.disk_usage(shared).free / 1e9
    text = f"{free:.2f} GB free in {shared}"
    if workers and free < LITTLE_SHARED_GB:
        mend = "--set num_workers=0, or in a container --shm-size=8g (docker run)"
        yield Finding("shared memory", WRONG, f"{text}, too little for workers", mend)
    else:
        yield Finding("shared memory", GOOD, text)


def disks(config: TrainConfig | None, gb_to_decode: float = 0.0) -> Iterator[Finding]:
    """Check free space, and permission to write, where runs and decoded crops are kept."""
    cache = config.path("cache_path") if config else cache_folder()
    runs = config.path("model_save_path") if config else REPOSITORY
    yield _disk("cache", cache, "CELLMAP_CACHE=FOLDER on a larger disk", gb_to_decode)
    yield _disk(
        "runs", runs, "--set model_save_path=FOLDER/{model_name}/{run_name} on another disk"
    )


def _disk(name: str, place: Path, mend: str, needed_gb: float = 0.0) -> Finding:
    """Check a place that may not exist yet. needed_gb: GB that will be written there."""
    folder = _existing(place)
    if not os.access(folder, os.W_OK):
        return Finding(name, WRONG, f"{folder} cannot be written to", mend)
    free = _free_gb(place)
    text = f"{free:.0f} GB free at {place}"
    if free < needed_gb:
        text += f", and the crops of the datasplit take {needed_gb:.1f} GB more when decoded"
        return Finding(name, WRONG, text, f"free space, or {mend}")
    if free < LITTLE_DISK_GB:
        state = NOTE if free > NO_DISK_GB else WRONG
        return Finding(name, state, f"{text}, which is little", f"free space, or {mend}")
    return Finding(name, GOOD, text)


def _existing(place: Path) -> Path:
    """Return a folder, or the nearest folder above it that exists."""
    while not place.is_dir():
        place = place.parent
    return place


def _free_gb(place: Path) -> float:
    """Return the free space (GB) of the disk of a folder that may not exist yet."""
    return shutil.disk_usage(_existing(place)).free / 1e9


class Opened(NamedTuple):
    """What comes of opening the crops of a run as training does."""

    gb_to_decode: float = 0.0
    """GB that they will add to the cache."""
    problem: str = ""
    """Why training could not take them, a line each; "" if it can."""


def opened(config: TrainConfig) -> Opened:
    """Open the crops of a run and decode none; without torch, whose absence is a finding, none."""
    try:
        from common.data.crops.opened import bytes_to_decode
        from common.data.samples import loaders, rows
        from common.data.splits import split

        listed = split.read_datasplit(config.path("datasplit_path"), config.path("data_path"))
        of_run = rows.that_count(listed, config)
        request = loaders.crop_request(config)
        return Opened(bytes_to_decode(of_run, request, loaders.crop_cache(config)) / 1e9)
    except ImportError:
        return Opened()
    except (UserError, OSError) as error:
        return Opened(problem=str(error))


def data_found(
    config: TrainConfig | None, data: str | Path | None, problem: str = ""
) -> Iterator[Finding]:
    """Check the data root, and that it holds all that the datasplit names, and can be read.

    problem: of the crops, see `Opened`; it is told where nothing of this explains it.
    """
    try:
        yield from _look_at_data(config, data, problem)
    except OSError as error:
        if error.filename is None:
            raise
        yield Finding("data", WRONG, _of_system(error), "see that you may read it")
    except ImportError as error:
        # the package is a finding by itself
        yield Finding("data", NOTE, f"not looked at: {error}")


def _of_system(error: OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror})"


def _look_at_data(
    config: TrainConfig | None, data: str | Path | None, problem: str
) -> Iterator[Finding]:
    root = config.path("data_path") if config else load.data_root(data)
    mend = (
        f"{command_line('fetch-data')} fills it; or name the folder that holds the data: "
        "--data FOLDER or CELLMAP_DATA=FOLDER"
    )
    if not root.is_dir():
        yield Finding("data", WRONG, f"the data root {root} is no folder", mend)
        return
    crops = layout.crop_folders(root)
    near = None if crops else layout.data_root_near(root)
    if near:
        mend = f"the crops are in {near}: {shlex.join(['--data', str(near)])}"
    from common.data.splits.catalogue import is_part  # which takes zarr

    datasets = {dataset for dataset, _ in crops}
    without_raw = []
    for dataset in sorted(datasets):
        folder = (root / layout.raw(dataset)).parent  # a datasplit may name another raw in it
        if not any(folder.glob("*")):
            without_raw.append(dataset)
    whole = [folder for folder in crops.values() if not is_part(folder)]
    text = f"{count(len(whole), 'annotated crop')} of {count(len(datasets), 'dataset')} in {root}"
    if crops:
        yield Finding("data", GOOD, text)
    else:
        yield Finding("data", WRONG, text, mend)
    if without_raw:
        yield Finding("data", WRONG, f"no raw (recon-1/em) for {some(without_raw)}", mend)
    if config:
        yield from _datasplit(config, root, problem)


def _datasplit(config: TrainConfig, root: Path, problem: str) -> Iterator[Finding]:
    """Check that the crops of a datasplit are there and suit, and that classes are annotated."""
    from common.data.splits import split

    path = config.path("datasplit_path")
    with_test: list[Row] = []
    try:
        with_test = split.read_datasplit(path, root, with_test=True)
        missing = list(split.missing_files(with_test))
    except (UserError, FileNotFoundError) as error:
        missing = str(error).splitlines()
    if missing:
        named = f"of what {path} names is not there: " if with_test else ""
        yield Finding("datasplit", WRONG, named + _in_a_line(missing), _other_split(config, root))
        return
    unreadable = _unreadable(with_test, config)
    if unreadable:
        volumes = count(len(unreadable), "volume")
        text = f"{volumes} of {path} cannot be read: {' | '.join(unreadable[:3])}"
        mend = "mend or fetch them again, or leave their crops out of the datasplit"
        yield Finding("datasplit", WRONG, text, mend)
        return
    rows = [row for row in with_test if row.usage != split.TEST]
    held_out = len(with_test) - len(rows)
    also = f", and {count(held_out, 'test crop')}" if held_out else ""
    yield Finding("datasplit", GOOD, f"{count(len(rows), 'crop')} of {path}{also}, all there")
    if problem:
        yield Finding("crops", WRONG, _in_a_line(problem.splitlines()))
    yield from _annotated(rows, config)
    from common.data.crops import normalize  # needs torch, whose absence is a finding

    if config.raw_normalization in normalize.MEASURED:
        yield _normalization(config, len({row.raw for row in rows}))


def _other_split(config: TrainConfig, root: Path) -> str:
    """Return what mends a datasplit that names what is not there."""
    near = layout.data_root_near(root) if root.is_dir() else None
    if near and not layout.crop_folders(root):
        return f"name the data root: {shlex.join(['--data', str(near)])}"
    remake = command_line(
        "make-datasplit",
        config.path("datasplit_path"),
        data=root,
        classes="tested" if config.classes == TESTED else ",".join(config.classes),
        scale=",".join(f"{size:g}" for size in config.target_array_info["scale"]),
        overwrite=True,
    )
    return f"fetch what is missing, or write a split of what is there: {remake}"


def _in_a_line(problems: Sequence[str]) -> str:
    """Return the first of some problems, and how many more there are."""
    more = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
    return " | ".join([*problems[:3], *more])


def _annotated(rows: Sequence[Row], config: TrainConfig) -> Iterator[Finding]:
    """Check that the classes of an experiment are annotated, and tell those that it leaves out."""
    from common.data.splits import split

    annotated = split.annotating(rows, "train")
    missing = [name for name in config.classes if name not in annotated]
    if missing:
        text = f"annotated in no training crop: {some(missing)}"
        mend = "leave them out of classes, or add crops that annotate them"
        yield Finding("classes", NOTE if len(missing) < len(config.classes) else WRONG, text, mend)
    for sentence in split.not_listed(rows, config.classes):
        yield Finding("classes", NOTE, sentence)


def _unreadable(rows: Sequence[Row], config: TrainConfig) -> list[str]:
    """Return a sentence for each volume of which not even the first voxel can be read.

    Of labels those that the experiment learns are looked at.
    """
    wanted = {*config.channels, *config.classes, *config.counter_classes}
    volumes: dict[Path, None] = {}
    for row in rows:
        volumes[row.raw] = None
        for name in row.annotated:
            if name in wanted:
                volumes[row.class_volume(name)] = None
    # a network disk answers one question after the other
    with ThreadPoolExecutor(ASKING) as threads:
        return [text for text in threads.map(_why_unreadable, volumes) if text]


def _why_unreadable(volume: Path) -> str:
    """Return why a volume cannot be read, in a line that names it; "" if it can."""
    from common.data.volumes import ngff

    try:
        for level in ngff.open_levels(volume):
            level.read((0, 0, 0), (1, 1, 1))
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            return _of_system(error)
        return str(error).partition("\n")[0]
    return ""


def _normalization(config: TrainConfig, volumes: int) -> Finding:
    """Tell how raw will be normalised, and which command shows the result."""
    text = (
        f"raw_normalization = '{config.raw_normalization}': measured once in each of "
        f"{count(volumes, 'volume')}, when training or fingerprint first reads them"
    )
    seen = command_line("fingerprint", config.folder, data=config.path("data_path"))
    return Finding("raw", GOOD, f"{text}; what it comes to: {seen}")
