"""Training on a simulated challenge: 289 crops of 48 classes, made in a minute on little disk.

`python bench/scale.py training` calls it. Names, classes and sizes of the crops are those of a
table such as the challenge's list of training crops (crop, dataset, voxel_size, translation, shape,
classes); without one, 289 crops of 22 datasets are drawn. All have 8 nm voxels here, and edges
shorter by a factor. Chunks of raw are one chunk of noise under many names, and the classes of a
crop are links to few volumes of slabs, so that every file is opened and read as in the real ones,
and little is stored.

Printed are seconds until the first batch, without decoded crops and with them, batches a second,
and memory of the process and of its workers (their own pages, and their share of common ones).
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.loader import peak_memory_gb
from bench.side_by_side import in_own_process
from common.classes import TESTED
from common.data.splits import split
from common.data.volumes import layout, ngff
from common.data.volumes.ngff import Grid

VOXEL = 8.0
"""nm of all volumes."""

CHUNK = 64
"""Edge of the chunks of raw, in voxels."""

MARGIN = 40
"""Voxels of raw around a crop: a patch's context."""

SHORTEST = 48
"""Voxels that an edge has at least: with the margins, a patch of unet8."""

LONGEST = 128
"""Voxels that an edge of a crop has at most: crops of 32 nm would be most of the data."""

PATTERNS = 4
"""Volumes of slabs that the classes of a crop are links to."""


@dataclass(frozen=True)
class Crop:
    """A crop of the table."""

    name: str
    dataset: str
    shape: tuple[int, ...]
    """Voxels of VOXEL nm."""
    classes: tuple[str, ...]


def crops_of(table: Path, shrink: float) -> list[Crop]:
    """Return the crops of a table, edges divided by `shrink`, of SHORTEST to LONGEST voxels."""
    with table.open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    crops = []
    for row in rows:
        edges = zip(row["shape"].split(";"), row["voxel_size"].split(";"), strict=True)
        voxels = np.array([int(n) * float(nm) for n, nm in edges]) / VOXEL / shrink
        shape = tuple(np.clip(voxels, SHORTEST, LONGEST).astype(int).tolist())
        names = TESTED if row["classes"] == "all" else row["classes"].split()
        classes = tuple(name for name in names if name in TESTED)
        crops.append(Crop(f"crop{row['crop']}", row["dataset"], shape, classes))
    return [crop for crop in crops if crop.classes]


def drawn_crops(shrink: float) -> list[Crop]:
    """289 crops of 22 datasets, of edges as the challenge's have them."""
    random = np.random.default_rng(0)
    crops = []
    for number in range(289):
        edges = np.clip(random.choice([100, 200, 400], 3) / shrink, SHORTEST, LONGEST).astype(int)
        crops.append(Crop(f"crop{number}", f"data{number % 22}", tuple(edges.tolist()), TESTED))
    return crops


def write(folder: Path, crops: Sequence[Crop]) -> Path:
    """Write the data of the crops, one in eight for validation; return the datasplit."""
    lines = []
    by_dataset = itertools.groupby(
        sorted(crops, key=lambda crop: crop.dataset), lambda c: c.dataset
    )
    for dataset, its_crops in by_dataset:
        # one after the other along z, apart by the margin
        corner = np.full(3, MARGIN)
        placed = []
        for crop in its_crops:
            placed.append((crop, corner.copy()))
            corner[0] += crop.shape[0] + MARGIN
        store = folder / layout.store(dataset)
        largest = np.max([crop.shape for crop, _ in placed], axis=0)
        shape = np.array([corner[0], *(largest[1:] + 2 * MARGIN)])
        write_raw(store / layout.RAW, shape)
        for crop, first in placed:
            write_labels(store / layout.LABELS / crop.name, crop, first * VOXEL)
            usage = "validate" if len(lines) % 8 == 7 else "train"
            lines.append(split.row_text(usage, dataset, crop.name, crop.classes))
    path = folder / "datasplit.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_raw(path: Path, shape: np.ndarray) -> None:
    """Write a volume in which each chunk is the same noise."""
    grid = Grid(np.zeros(3), np.full(3, VOXEL), tuple(shape.tolist()))
    array = ngff.start_multiscale(path, grid, np.uint8, (CHUNK,) * 3)
    noise = np.random.default_rng(0).integers(1, 256, (CHUNK,) * 3, np.uint8)
    array[:CHUNK, :CHUNK, :CHUNK] = noise[tuple(slice(n) for n in array.shape)]
    first = path / "s0" / "0" / "0" / "0"
    for number in np.ndindex(*array.cdata_shape):
        name = path.joinpath("s0", *map(str, number))
        name.parent.mkdir(parents=True, exist_ok=True)
        if name != first:
            os.link(first, name)
    ngff.finish_multiscale(path, grid, (), ngff.block_mean)


def write_labels(path: Path, crop: Crop, corner: np.ndarray) -> None:
    """Write the classes of a crop as links to a few volumes, each positive in its own slab."""
    grid = Grid(corner, np.full(3, VOXEL), crop.shape)
    thickness = crop.shape[0] // PATTERNS
    for number in range(PATTERNS):
        volume = np.zeros(crop.shape, np.uint8)
        volume[number * thickness : (number + 1) * thickness] = 1
        array = ngff.start_multiscale(path / f".slab{number}", grid, np.uint8, (CHUNK,) * 3)
        array[...] = volume
        ngff.finish_multiscale(path / f".slab{number}", grid, (), ngff.pick)
    for place, name in enumerate(crop.classes):
        (path / name).symlink_to(f".slab{place % PATTERNS}")


def measure(folder: Path, workers: int, seconds: float) -> dict[str, float]:
    """Return seconds of the parts of the start-up, samples a second, and memory in GB."""
    import torch

    from common.config.load import load_config
    from common.data.samples import loaders
    from common.data.samples.batches import training_batches
    from common.files import REPOSITORY

    others = children()
    begun = time.perf_counter()
    config = load_config(
        REPOSITORY / "unet8_all",
        [f"datasplit_path={folder / 'datasplit.csv'}"],
        folder,
        cache_path=str(folder / "cache"),
        num_workers=workers,
        device="cpu",
    )
    data = loaders.open_data(config)
    opened = time.perf_counter()
    batches = training_batches(config, data, torch.device("cpu"))
    stream = batches.between(0, 10**9)
    next(stream)
    first = time.perf_counter()
    number = rate_of(stream, seconds)
    return {
        "opening": opened - begun,
        "first batch": first - opened,
        "samples/s": number * config.batch_size,
        "main": peak_memory_gb(),
        "workers": sum(own_memory_gb(child) for child in children() - others),
        "decoded": sum(crop.bytes for crop in data.train) / 1e9,
    }


def rate_of(batches: Iterator, seconds: float) -> float:
    """Return batches a second."""
    begun = time.perf_counter()
    number = 0
    while time.perf_counter() - begun < seconds:
        next(batches)
        number += 1
    return number / (time.perf_counter() - begun)


def children() -> set[int]:
    """Return the numbers of the processes that this one has started."""
    words = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in words}


def own_memory_gb(pid: int) -> float:
    """Return the memory of a process with its share of common pages; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e6


def in_process(folder: Path, workers: int, seconds: float) -> dict[str, float]:
    """`measure` in a process of its own."""
    return in_own_process(__file__, folder, workers, seconds)


def table(crops: Sequence[Crop], workers: int, seconds: float) -> str:
    """Return a line for the first start, which decodes, and a line for the next."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        begun = time.perf_counter()
        write(folder, crops)
        written = time.perf_counter() - begun
        rows = {}
        for start in ("decoding", "again"):
            rows[start] = in_process(folder, workers, seconds)
    labels = sum(len(crop.classes) for crop in crops)
    datasets = len({crop.dataset for crop in crops})
    names = list(rows["again"])
    about = f"{len(crops)} crops, {labels} label volumes, {datasets} datasets"
    lines = [
        f"{about}, written in {written:.0f} s",
        f"{'start':<10}" + "".join(f"{name:>13}" for name in names),
    ]
    for start, figures in rows.items():
        lines.append(f"{start:<10}" + "".join(f"{figures[name]:>13.2f}" for name in names))
    return "\n".join(lines)


if __name__ == "__main__":
    of_folder, of_workers, of_seconds = sys.argv[1:]
    print(json.dumps(measure(Path(of_folder), int(of_workers), float(of_seconds))))
