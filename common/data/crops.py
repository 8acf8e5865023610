"""One crop ready for sampling: raw block, palette index volume, palette; decoded once, kept on disk, shared by all processes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.data import ngff
from common.data import palette as annotation
from common.data.ngff import Grid
from common.data.raw import Raw, mirror, open_raw, reduction
from common.data.split import Row
from common.errors import FileError, UserError

EXAMPLES = 128
"""Voxel positions remembered for each palette row: where to find a rare class without searching."""

BLOCK = 128
"""Edge in label voxels of the blocks that are decoded at a time, a multiple of the usual chunks; bounds the memory."""

EXTRA_VOXELS = (1, 2)
"""Whole voxels of raw kept beyond the margin, below and above: centres move by up to half a voxel
onto the raw's grid, and interpolation reads the next voxel."""

MARGIN_SLACK = 1 + max(EXTRA_VOXELS)
"""Voxels beyond a margin in nm that decoding can read: EXTRA_VOXELS, and rounding outwards."""

FORMAT = 2
"""Raised when decoded crops are written differently, so that old ones are not read."""


@dataclass(frozen=True)
class Crop:
    """A decoded crop. Index 0 of the label volume, and every voxel outside of it, is the palette row "nothing is known"."""

    name: str
    folder: Path
    raw_grid: Grid
    label_grid: Grid
    palette: np.ndarray
    """(rows, classes) int8, 1 / 0 / -1 = unknown."""
    counts: np.ndarray
    """(rows,) int64, voxels of each row."""
    examples: np.ndarray
    """(rows, EXAMPLES, 3) int32, label voxels of each row, drawn at random."""
    contradictions: int
    """Voxels whose annotated classes cannot all hold."""

    def raw(self) -> np.ndarray:
        """Memory-mapped (z, y, x) uint8, or float32 in [0, 1]."""
        return _open(str(self.folder / "raw.npy"))

    def labels(self) -> np.ndarray:
        """Memory-mapped (z, y, x) uint8 or uint16 palette rows."""
        return _open(str(self.folder / "labels.npy"))


def open_crops(
    rows: Sequence[Row],
    classes: Sequence[str],
    input_scale: Sequence[float],
    target_scale: Sequence[float],
    margin_nm: np.ndarray,
    patch_nm: np.ndarray,
    cache: Path,
    cache_gb: float,
    raw_range: Sequence[float] = (),
    use_mutual_exclusion: bool = True,
    infer_groups: bool = True,
    beside: Sequence[Crop] = (),
) -> list[Crop]:
    """Every crop of a split, decoded now or earlier. margin_nm: (3,) how far around the labels raw is kept;
    patch_nm: (3,) extent of the raw patch, which must fit into the raw; beside: crops of the same run that stay cached.

    Raises ValueError with all the problems of all the crops in one message. Nothing stays in memory but palettes.
    """
    reasons = use_mutual_exclusion or infer_groups
    plans = _collect(
        rows,
        lambda row: _plan(
            row, classes, input_scale, target_scale, margin_nm, patch_nm, raw_range, reasons
        ),
    )
    if any(plan.raw.dtype != np.uint8 for plan in plans):  # patches of a batch have one number type
        plans = [
            replace(plan, raw=replace(plan.raw, dtype=np.dtype(np.float32)), key=plan.key + "f")
            for plan in plans
        ]
    other = sum(crop.raw().nbytes + crop.labels().nbytes for crop in beside)
    needed = (sum(plan.bytes for plan in plans) + other) / 1e9
    if needed > cache_gb:
        raise UserError(
            f"the decoded crops need {needed:.1f} GB and cache_gb is {cache_gb:g}; raise cache_gb, take fewer crops, or rotate less "
            "(raw is kept as far around a crop as a rotated patch reaches)"
        )
    cache = cache / "crops"
    cache.mkdir(parents=True, exist_ok=True)
    missing = [plan for plan in plans if not (cache / plan.key).is_dir()]
    keep = {plan.key for plan in plans} | {crop.folder.name for crop in beside}
    _make_room(cache, cache_gb * 1e9 - sum(plan.bytes for plan in missing), keep)
    _collect(missing, lambda plan: _decode(plan, cache), "decoding crops")
    return [_load(plan, cache, classes, use_mutual_exclusion, infer_groups) for plan in plans]


@dataclass(frozen=True)
class _Plan:
    """What decoding one crop will read and write."""

    row: Row
    names: tuple[str, ...]
    """Annotated classes that are read."""
    raw: Raw
    raw_start: np.ndarray
    """First voxel of the block on the grid of `raw`; may lie outside of the volume."""
    raw_grid: Grid
    label_factor: np.ndarray
    label_grid: Grid
    key: str

    @property
    def bytes(self) -> int:
        return int(np.prod(self.raw_grid.shape)) * self.raw.dtype.itemsize + int(
            np.prod(self.label_grid.shape)
        )


def _plan(
    row: Row,
    classes: Sequence[str],
    input_scale: Sequence[float],
    target_scale: Sequence[float],
    margin_nm: np.ndarray,
    patch_nm: np.ndarray,
    raw_range: Sequence[float],
    reasons: bool,
) -> _Plan:
    every_class = set(classes) <= set(row.annotated)
    names = tuple(n for n in row.annotated if n in classes or (reasons and not every_class))
    raw = open_raw(row.raw, input_scale, raw_range)
    label = ngff.open_levels(row.crop / row.annotated[0])[0]
    lower, upper = label.box()
    raw_lower, raw_upper = raw.level.box()
    if (lower >= raw_upper).any() or (upper <= raw_lower).any():
        raise UserError(
            f"{row.crop}: its labels ({_nm(lower)} to {_nm(upper)} nm) and the raw {row.raw} ({_nm(raw_lower)} to {_nm(raw_upper)} nm) "
            "do not overlap; check translation and scale in their .zattrs"
        )
    if (raw_upper - raw_lower < 0.98 * patch_nm).any():
        raise UserError(
            f"{row.raw}: {_nm(raw_upper - raw_lower)} nm of raw, smaller than the input patch of {_nm(patch_nm)} nm; "
            "use a smaller input shape, or remove the crop from the datasplit"
        )
    scale, origin = raw.grid.scale, raw.grid.origin
    start, stop = raw_voxels(lower - margin_nm, upper + margin_nm, raw.grid)
    raw_grid = Grid(origin + start * scale, scale, tuple(int(n) for n in stop - start))
    label_factor = reduction(target_scale, label.scale, label.shape)
    label_grid = Grid(
        label.translation + (label_factor - 1) / 2 * label.scale,
        label.scale * label_factor,
        tuple(int(n) for n in label.shape // label_factor),
    )
    identity = [
        FORMAT,
        str(row.raw),
        str(row.crop),
        names,
        raw.level.path.name,
        raw.factor.tolist(),
        start.tolist(),
        raw_grid.shape,
        label_factor.tolist(),
        raw.raw_range,
        _raw_stamp(raw.level, start * raw.factor, stop * raw.factor),
        *(_label_stamp(row.crop / name, label.path.name) for name in names),
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    return _Plan(row, names, raw, start, raw_grid, label_factor, label_grid, key)


def raw_voxels(lower: np.ndarray, upper: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """First voxel of `grid` that is kept for a box (nm), and the one after the last; both (3,) int.

    They may lie outside of the volume, where raw is mirrored.
    """
    below, above = EXTRA_VOXELS
    start = np.floor((lower - grid.origin) / grid.scale).astype(int) - below
    stop = np.ceil((upper - grid.origin) / grid.scale).astype(int) + above
    return start, stop


def _decode(plan: _Plan, cache: Path) -> None:
    """Write raw.npy, labels.npy and palette.npz of a crop into the cache, whole or not at all."""
    folder = Path(tempfile.mkdtemp(prefix=".", dir=cache))
    try:
        _decode_raw(plan, folder)
        _decode_labels(plan, folder)
        if not (cache / plan.key).exists():
            os.rename(folder, cache / plan.key)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:
            raise  # of the data
        if not (cache / plan.key).is_dir():  # another process may have been first
            raise FileError(
                f"{cache}: decoded crops could not be written ({error.strerror or error}); free space or move cache_path"
            ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _decode_raw(plan: _Plan, folder: Path) -> None:
    """Copy the raw block, averaged down to the training grid; outside of the volume it is mirrored, not black."""
    raw, shape = plan.raw, np.array(plan.raw_grid.shape)
    first, last = (
        np.clip(corner, 0, raw.grid.shape) for corner in (plan.raw_start, plan.raw_start + shape)
    )
    inside = _new_volume(folder / "inside.npy", plan.raw.dtype, last - first)
    brightest = 0.0
    for z in range(0, inside.shape[0], 64):
        slab = raw.read(first + [z, 0, 0], np.array([min(first[0] + z + 64, last[0]), *last[1:]]))
        brightest = max(brightest, float(slab.max()))
        inside[z : z + 64] = slab
    if brightest == 0:
        raise UserError(
            f"{raw.level.path}: 0 everywhere around {plan.row.name}; fetch its EM chunks, or remove the crop from the datasplit"
        )
    inside.flush()
    if (first == plan.raw_start).all() and (last == plan.raw_start + shape).all():
        os.rename(folder / "inside.npy", folder / "raw.npy")
        return
    before, after = first - plan.raw_start, plan.raw_start + shape - last
    mirrored = [
        mirror(np.arange(-a, n + b), n) for n, a, b in zip(inside.shape, before, after, strict=True)
    ]
    raw = _new_volume(folder / "raw.npy", plan.raw.dtype, plan.raw_grid.shape)
    for z in range(0, raw.shape[0], 64):
        raw[z : z + 64] = inside[np.ix_(mirrored[0][z : z + 64], *mirrored[1:])]
    raw.flush()
    (folder / "inside.npy").unlink()


def _new_volume(path: Path, dtype: np.dtype, shape: Sequence[int]) -> np.memmap:
    """A memory map with its space on disk taken: without that, writing to it on a full disk kills the process."""
    volume = np.lib.format.open_memmap(
        path, mode="w+", dtype=dtype, shape=tuple(int(n) for n in shape)
    )
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return volume


def _decode_labels(plan: _Plan, folder: Path) -> None:
    """Make the palette image of a crop, block by block: ids become positive, finer labels are reduced by majority.

    A reduced voxel is positive where more than half of its voxels are, as in the challenge's own resampling.
    """
    levels = [_matching_level(plan, name) for name in plan.names]
    rows: dict[bytes, int] = {}
    pieces: list[
        tuple[int, int, np.ndarray]
    ] = []  # row, voxels in this block, some of their positions
    factor, shape = plan.label_factor, np.array(plan.label_grid.shape)
    edge = np.maximum(1, BLOCK // factor)
    index = np.zeros(shape, np.uint16)
    for corner in np.ndindex(*(-(-shape // edge))):
        start = corner * edge
        stop = np.minimum(start + edge, shape)
        volumes = [
            _majority(level.read(start * factor, stop * factor) != 0, factor) for level in levels
        ]
        block, combinations = annotation.encode(volumes)
        number = np.array(
            [rows.setdefault(combination.tobytes(), len(rows) + 1) for combination in combinations]
        )
        if len(rows) >= 2**16:
            raise UserError(
                f"{plan.row.crop}: more than {2**16 - 1} label combinations; its class volumes do not look like labels"
            )
        index[tuple(map(slice, start, stop))] = number[block]
        pieces += [
            (number[row], n, at + start) for row, n, at in _examples(block, len(combinations))
        ]
    np.save(folder / "labels.npy", index.astype(np.uint8) if len(rows) < 256 else index)
    combinations = np.frombuffer(b"".join(rows), bool).reshape(len(rows), len(plan.names))
    palette = np.concatenate(
        [np.full((1, len(plan.names)), annotation.UNKNOWN, np.int8), combinations.astype(np.int8)]
    )
    counts, examples = _merge(pieces, len(palette))
    np.savez(folder / "palette.npz", palette=palette, counts=counts, examples=examples)


def _matching_level(plan: _Plan, name: str) -> ngff.Level:
    """The finest level of a class, on the same voxels as the crop's first class. ValueError if it is not."""
    level, first = ngff.open_levels(plan.row.crop / name)[0], plan.row.annotated[0]
    origin = level.translation + (plan.label_factor - 1) / 2 * level.scale
    same_place = np.allclose(
        origin, plan.label_grid.origin, atol=0.05 * float(plan.label_grid.scale.min())
    )
    if not (
        same_place
        and (level.shape // plan.label_factor == plan.label_grid.shape).all()
        and np.allclose(level.scale * plan.label_factor, plan.label_grid.scale, rtol=1e-3)
    ):
        raise UserError(
            f"{plan.row.crop / name}: shape {level.shape.tolist()}, voxel size {_nm(level.scale)} nm and translation {_nm(level.translation)} nm "
            f"are not those of '{first}'; the classes of a crop share one grid"
        )
    return level


def _majority(volume: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Bool volume reduced by blocks of `factors`: True where more than half of a block is."""
    if (factors == 1).all():
        return volume
    if not volume.any():
        return np.zeros(np.array(volume.shape) // factors, bool)
    count = volume.astype(np.uint32)
    for axis, factor in enumerate(factors):
        n = count.shape[axis] // factor * factor
        count = sum(count[(slice(None),) * axis + (slice(k, n, factor),)] for k in range(factor))
    return count * 2 > factors.prod()


def _examples(index: np.ndarray, rows: int) -> list[tuple[int, int, np.ndarray]]:
    """For each row (row, voxels, (n, 3) positions of up to EXAMPLES of them), chosen by a generator with a fixed seed."""
    random = np.random.default_rng(0)
    order = np.argsort(index.ravel().astype(np.uint16), kind="stable")
    ends = np.cumsum(np.bincount(index.ravel(), minlength=rows))
    found = []
    for row, (start, end) in enumerate(zip(np.concatenate([[0], ends]), ends, strict=False)):
        chosen = (
            order[random.integers(start, end, EXAMPLES)]
            if end - start > EXAMPLES
            else order[start:end]
        )
        found.append(
            (row, int(end - start), np.stack(np.unravel_index(chosen, index.shape), axis=1))
        )
    return found


def _merge(pieces: list[tuple[int, int, np.ndarray]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (rows,) and EXAMPLES positions a row, each slab represented by its share of the row's voxels."""
    random = np.random.default_rng(0)
    counts, examples = np.zeros(rows, np.int64), np.zeros((rows, EXAMPLES, 3), np.int32)
    of_row: dict[int, list[tuple[int, np.ndarray]]] = {}
    for row, n, positions in pieces:
        of_row.setdefault(int(row), []).append((n, positions))
    for row, parts in of_row.items():
        sizes = np.array([n for n, _ in parts])
        counts[row] = sizes.sum()
        part = random.choice(len(parts), EXAMPLES, p=sizes / sizes.sum())
        examples[row] = [parts[p][1][random.integers(len(parts[p][1]))] for p in part]
    return counts, examples


def _load(
    plan: _Plan, cache: Path, classes: Sequence[str], use_mutual_exclusion: bool, infer_groups: bool
) -> Crop:
    """A decoded crop, with what its annotation implies for the classes of this run."""
    folder = cache / plan.key
    os.utime(folder)
    with np.load(folder / "palette.npz") as file:
        found, counts, examples = file["palette"], file["counts"], file["examples"]
    names = [*plan.names, *(c for c in classes if c not in plan.names)]
    palette = np.full((len(found), len(names)), annotation.UNKNOWN, np.int8)
    palette[:, : len(plan.names)] = found
    contradictions = int(counts[annotation.contradicts(palette, names)].sum())
    palette = annotation.complete(palette, names, use_mutual_exclusion, infer_groups)
    palette = palette[:, [names.index(c) for c in classes]]
    return Crop(
        plan.row.name,
        folder,
        plan.raw_grid,
        plan.label_grid,
        palette,
        counts,
        examples,
        contradictions,
    )


def _make_room(cache: Path, budget: float, keep: set[str]) -> None:
    """Remove the least recently used decoded crops until the others fit into `budget` bytes; those in `keep` stay.

    Also removes what a killed process left half decoded more than a day ago.
    """
    found, total = [], 0
    for folder in cache.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may be making room too
            used, size = (
                folder.stat().st_mtime,
                sum(file.stat().st_size for file in folder.iterdir()),
            )
            if not folder.name.startswith("."):
                total += size
                found.append((used, folder, size))
            elif time.time() - used > 86400:
                shutil.rmtree(folder, ignore_errors=True)
    for _, folder, size in sorted(found):
        if total > budget and folder.name not in keep:
            total -= size
            shutil.rmtree(folder, ignore_errors=True)


def _collect(items: Sequence, work, say: str | None = None) -> list:
    """work(item) for all items on several threads; all that goes wrong is raised as one ValueError."""
    if not items:
        return []
    results, problems = [], []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(work, item) for item in items]
        for future in tqdm(
            futures, say, unit="crop", disable=say is None or len(items) < 2 or None, leave=False
        ):
            try:
                results.append(future.result())
            except FileError:
                raise
            except (ValueError, FileNotFoundError) as error:
                problems.append(str(error))
    if problems:
        more = f"\n... and {len(problems) - 10} more crops" if len(problems) > 10 else ""
        raise UserError("\n".join(dict.fromkeys(problems[:10])) + more)
    return results


@functools.lru_cache(maxsize=512)
def _open(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _raw_stamp(level: ngff.Level, start: np.ndarray, stop: np.ndarray) -> list[int]:
    """When the metadata of a level and the folders of its chunks in voxels start..stop were last written."""
    first, last = (
        np.maximum(start, 0) // level.array.chunks,
        -(-np.minimum(stop, level.shape) // level.array.chunks),
    )
    chunks = [
        level.path / str(z) / str(y)
        for z in range(first[0], last[0])
        for y in range(first[1], last[1])
    ]
    return _stamp([level.path.parent / ".zattrs", level.path / ".zarray", level.path, *chunks])


def _label_stamp(group: Path, level: str) -> list[int]:
    """When the metadata of a class and all folders of its chunks were last written."""
    planes = _folders(group / level)  # chunks are s0/z/y/x or s0/z.y.x
    rows = [row for plane in planes for row in _folders(plane)]
    return _stamp([group / ".zattrs", group / level / ".zarray", group / level, *planes, *rows])


def _folders(path: Path | str) -> list[str]:
    return (
        sorted(entry.path for entry in os.scandir(path) if entry.is_dir())
        if os.path.isdir(path)
        else []
    )


def _stamp(paths: Sequence[Path | str]) -> list[int]:
    """When files and folders were last written: changed data are decoded anew. Replacing a chunk changes its folder."""
    return [os.stat(path).st_mtime_ns for path in paths if os.path.exists(path)]


def _nm(values: np.ndarray) -> str:
    return ";".join(f"{value:g}" for value in values)
