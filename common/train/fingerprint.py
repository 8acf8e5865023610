"""What the data of an experiment hold, what stands out in them, and which patch, batch and workers would suit this machine.

Class counts come from the palettes of the decoded crops, so that only raw is read here, and sparsely: of each crop at most
1000 cells of 4^3 voxels, spread evenly over the annotated block. A cell whose voxels all have one value was not imaged: EM
has noise. What is far from the others is told by the modified z-score, 0.6745 |x - median| / MAD above 3.5 (Iglewicz and
Hoaglin, How to detect and handle outliers, 1993).

The suggestions follow the order of nnU-Net (Isensee et al., Nature Methods 2021): the patch first, as large as crops and
memory allow, then the batch. Nothing is changed: each suggestion is a value, the value now set, and its reason.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import runtime
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import catalogue, crops, make_split, ngff, sampling, split
from common.data.crops import Crop
from common.data.palette import UNKNOWN
from common.data.sampling import Patch
from common.data.split import Row
from common.errors import UserError
from common.model.build import new_model
from common.model.forward import ForwardPass
from common.model.shapes import Shapes, grown

CELL, CELLS = 4, 10
"""Edge of a cell in voxels, and the cells that are read along each axis of a crop."""

FAR = 3.5
"""Modified z-score above which a value is called far from the others."""

FEWEST = 5
"""Values below which nothing is called far from the others."""

EMPTY = 0.01
"""Fraction of constant cells above which a crop counts as empty in parts."""

MEMORY_FRACTION = 0.8
"""Part of the free memory that a run may take."""

LARGEST_BATCH = {"cuda": 32, "mps": 8, "cpu": 4}
"""By device: beyond it a step takes longer and memory is no longer what limits."""


@dataclass(frozen=True)
class _Opened:
    """One crop of the split, decoded, and what was measured in it."""

    row: Row
    crop: Crop
    values: np.ndarray
    """Sampled raw, in [0, 1]."""
    constant: float
    """Fraction of the cells whose voxels are all equal; `black` of those that are all 0."""
    black: float
    raw_scale: np.ndarray
    """(3,) nm, of the finest level; raw_extent likewise, of the whole volume."""
    raw_extent: np.ndarray
    label_scale: np.ndarray
    """(3,) nm, as annotated."""

    @property
    def dataset(self) -> str:
        return self.row.name.split("/")[0]


def fingerprint(
    config_path: str | Path,
    *,
    data: str | Path | None = None,
    overrides: Sequence[str] = (),
    json_path: str | Path = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Describe the crops of an experiment's datasplit, as it would read them; says a report and writes it as JSON if asked.

    Decodes crops that are not decoded yet, into the cache that training uses. Those that cannot be read are findings. Gives
    'crops', 'classes', 'resolutions', 'intensities' (in [0, 1]), 'findings' and 'suggestions', all made of plain numbers
    and text. Raises FileNotFoundError or ValueError; the latter too if no crop can be read.
    """
    config = load_config(config_path, overrides, data)
    if json_path and not Path(json_path).absolute().parent.is_dir():
        raise FileNotFoundError(f"{json_path}: its folder does not exist; create it first")
    opened, broken = _open(config)
    facts: dict[str, Any] = {
        "experiment": config.model_name,
        "crops": {usage: sum(one.row.usage == usage for one in opened) for usage in split.USAGES},
        "classes": _classes(config, opened),
        "resolutions": _resolutions(opened),
        "intensities": _intensities(opened),
    }
    seen = [
        *_empty(config, opened, facts),
        *_coarse(config, opened),
        *_outliers(config, opened, facts),
    ]
    facts["findings"] = [*broken, *seen, *_leaks(opened)]
    facts["suggestions"] = _suggestions(config, opened, facts)
    for line in _report(facts):
        say(line)
    if json_path:
        Path(json_path).write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _open(config: TrainConfig) -> tuple[list[_Opened], list[str]]:
    """The crops that annotate a class of this run, with the raw around them that training keeps, and what cannot be read."""
    path, root = config.path("datasplit_path"), config.path("data_path")
    rows = [
        row for row in split.read_datasplit(path, root) if set(row.annotated) & set(config.classes)
    ]
    if not rows:
        raise UserError(
            f"{path}: no crop annotates any of {', '.join(config.classes)}; change classes or the split"
        )
    raw, target = Patch(**config.input_array_info), Patch(**config.target_array_info)
    margins = sampling.margins_nm(raw, target, config.spatial_transforms)
    opened: list[_Opened] = []
    broken: list[str] = []

    def decode(some: Sequence[Row]) -> list[Crop]:
        split.check_files(some)
        return crops.open_crops(
            some,
            config.classes,
            raw.scale,
            target.scale,
            margins[some[0].usage],
            raw.extent,
            config.path("cache_path"),
            config.cache_gb,
            config.raw_range,
            config.use_mutual_exclusion,
            config.infer_groups,
            [one.crop for one in opened],
        )

    for usage in split.USAGES:
        side = [row for row in rows if row.usage == usage]
        try:
            opened += [
                _measure(row, crop)
                for row, crop in zip(side, decode(side) if side else [], strict=True)
            ]
        except (
            ValueError,
            FileNotFoundError,
        ):  # one by one, to tell those that can be read from those that cannot
            for row in side:
                try:
                    opened.append(_measure(row, decode([row])[0]))
                except (ValueError, FileNotFoundError) as error:
                    broken.append(str(error).splitlines()[0])
    if not opened:
        raise UserError(
            "\n".join(
                [
                    *broken[:10],
                    f"{path}: none of its {len(rows)} crops can be read; mend them, or name other crops",
                ]
            )
        )
    return opened, broken


def _measure(row: Row, crop: Crop) -> _Opened:
    first, last = (
        (corner - crop.raw_grid.box()[0]) / crop.raw_grid.scale for corner in crop.label_grid.box()
    )
    shape = np.array(crop.raw_grid.shape)
    first = np.clip(np.round(first).astype(int), 0, shape - 1)
    last = np.clip(np.round(last).astype(int), first + 1, shape)
    found = cells(crop.raw()[tuple(map(slice, first, last))])
    found = found.astype(np.float32) / (255 if found.dtype == np.uint8 else 1)
    raw = ngff.open_levels(row.raw)[0]
    return _Opened(
        row,
        crop,
        found.ravel(),
        float((np.ptp(found, axis=1) == 0).mean()),
        float((found.max(1) == 0).mean()),
        raw.scale,
        raw.scale * raw.shape,
        ngff.open_levels(row.crop / row.annotated[0])[0].scale,
    )


def cells(volume: np.ndarray) -> np.ndarray:
    """(cells, voxels of a cell): up to CELLS cells of CELL voxels along each axis of a (z, y, x) volume, evenly spread."""
    edge = np.minimum(CELL, volume.shape)
    corners = [
        np.unique(np.linspace(0, n - e, CELLS).astype(int) // e) * e
        for n, e in zip(volume.shape, edge, strict=True)
    ]
    index = [
        (corner[:, None] + np.arange(e)).ravel() for corner, e in zip(corners, edge, strict=True)
    ]
    blocks = volume[np.ix_(*index)].reshape(
        [n for corner, e in zip(corners, edge, strict=True) for n in (len(corner), e)]
    )
    return blocks.transpose(0, 2, 4, 1, 3, 5).reshape(-1, edge.prod())


def _classes(config: TrainConfig, opened: Sequence[_Opened]) -> dict[str, dict]:
    """For each class and side: crops that annotate it, crops with a voxel of it, known and positive volume, their ratio."""
    found: dict[str, dict] = {name: {} for name in config.classes}
    for usage in split.USAGES:
        side = [one for one in opened if one.row.usage == usage]
        positive, known = (
            sum((of(one.crop) for one in side), np.zeros(len(config.classes)))
            for of in (_positive, _known)
        )
        for n, name in enumerate(config.classes):
            found[name][usage] = {
                "annotated": sum(name in one.row.annotated for one in side),
                "present": sum(bool(_positive(one.crop)[n] > 0) for one in side),
                "known_um3": round(float(known[n]), 6),
                "positive_um3": round(float(positive[n]), 6),
                "fraction": float(positive[n] / known[n]) if known[n] else None,
            }
    return found


def _positive(crop: Crop) -> np.ndarray:
    """(classes,) cubic micrometres of the crop that are positive."""
    return crop.counts @ (crop.palette == 1) * float(crop.label_grid.scale.prod()) / 1e9


def _known(crop: Crop) -> np.ndarray:
    """(classes,) cubic micrometres of the crop that are positive or negative."""
    return crop.counts @ (crop.palette != UNKNOWN) * float(crop.label_grid.scale.prod()) / 1e9


def _resolutions(opened: Sequence[_Opened]) -> dict[str, dict[str, int]]:
    """Crops by voxel size (nm): of the finest raw, of the labels, and of the raw as this run reads it."""
    sizes = {
        "raw": [one.raw_scale for one in opened],
        "labels": [one.label_scale for one in opened],
        "raw as read": [one.crop.raw_grid.scale for one in opened],
    }
    return {
        what: dict(Counter(_by(scale) for scale in scales).most_common())
        for what, scales in sizes.items()
    }


def _intensities(opened: Sequence[_Opened]) -> dict[str, dict]:
    """Of each dataset's annotated blocks, every crop with as many voxels: mean, std and percentiles of raw in [0, 1]."""
    found = {}
    for dataset in sorted({one.dataset for one in opened}):
        values = np.concatenate([one.values for one in opened if one.dataset == dataset])
        levels = dict(
            zip(
                ("p1", "p25", "p50", "p75", "p99"),
                np.percentile(values, (1, 25, 50, 75, 99)),
                strict=True,
            )
        )
        numbers = {
            "mean": values.mean(dtype=np.float64),
            "std": values.std(dtype=np.float64),
            **levels,
        }
        found[dataset] = {
            "crops": sum(one.dataset == dataset for one in opened),
            **{name: round(float(number), 4) for name, number in numbers.items()},
        }
    return found


def _empty(config: TrainConfig, opened: Sequence[_Opened], facts: dict[str, Any]) -> list[str]:
    """Crops that are black or constant in parts, crops without a voxel of any class, classes without a voxel on a side."""
    found = [
        f"{one.row.name}: {one.constant:.0%} of its annotated block is constant, {one.black:.0%} is 0; fetch its EM chunks, or "
        "remove the crop from the datasplit"
        for one in opened
        if one.constant > EMPTY
    ]
    found += [
        f"{one.row.name}: no voxel of any class that it annotates ({', '.join(_annotated(config, one)[:5])}); is it meant as empty?"
        for one in opened
        if not _positive(one.crop)[
            [config.classes.index(name) for name in _annotated(config, one)]
        ].any()
    ]
    for usage in split.USAGES:
        for what, count in (
            ("annotated in no", "annotated"),
            ("annotated, but without a voxel in any", "present"),
        ):
            names = [
                name
                for name, sides in facts["classes"].items()
                if not sides[usage][count] and (count == "annotated" or sides[usage]["annotated"])
            ]
            if names and facts["crops"][usage]:
                found.append(f"{what} {usage} crop: {', '.join(names)}")
    return found


def _annotated(config: TrainConfig, one: _Opened) -> list[str]:
    return [name for name in config.classes if name in one.row.annotated]


def _coarse(config: TrainConfig, opened: Sequence[_Opened]) -> list[str]:
    """Crops whose finest raw is much coarser than what the network is given."""
    scale = config.input_array_info["scale"]
    names = [one.row.name for one in opened if (one.raw_scale > 1.5 * np.array(scale)).any()]
    return (
        [
            f"{len(names)} crops have no raw near {_by(scale)} nm and are interpolated: {_some(names)}"
        ]
        if names
        else []
    )


def _outliers(config: TrainConfig, opened: Sequence[_Opened], facts: dict[str, Any]) -> list[str]:
    """Datasets whose brightness or contrast, and crops whose fraction of a class, is far from that of the others."""
    found = []
    datasets = facts["intensities"]
    for what in ("mean", "std"):
        values = np.array([numbers[what] for numbers in datasets.values()])
        for dataset, value, score in zip(datasets, values, far(values, 0.01), strict=True):
            if score > FAR:
                found.append(
                    f"{dataset}: the {what} of its raw is {value:.2f}, of the median dataset {np.median(values):.2f} "
                    f"({score:.1f} times the usual distance); look at it, or set raw_range and gamma_range"
                )
    for n, name in enumerate(config.classes):
        present = [
            one for one in opened if name in one.row.annotated and _positive(one.crop)[n] > 0
        ]
        fractions = np.array([_positive(one.crop)[n] / _known(one.crop)[n] for one in present])
        for one, fraction, score in zip(
            present, fractions, far(np.log10(fractions), 0.1), strict=True
        ):
            if score > FAR:
                found.append(
                    f"{one.row.name}: {_percent(fraction)} of it is {name}, of the median crop that has it "
                    f"{_percent(float(np.median(fractions)))}; see that the label is right"
                )
    return found


def far(values: np.ndarray, least: float) -> np.ndarray:
    """(n,) modified z-scores of (n,) values, taking `least` for a smaller median deviation; all 0 for fewer than FEWEST values."""
    if len(values) < FEWEST:
        return np.zeros(len(values))
    distance = np.abs(values - np.median(values))
    return 0.6745 * distance / max(float(np.median(distance)), least)


def _leaks(opened: Sequence[_Opened]) -> list[str]:
    sides = []
    for one in opened:
        grid, (dataset, name) = one.crop.label_grid, one.row.name.split("/")
        geometry = tuple(grid.scale.tolist()), tuple(grid.origin.tolist()), grid.shape
        sides.append(
            (
                one.row.usage,
                catalogue.CropInfo(dataset, name, *geometry, frozenset(one.row.annotated)),
            )
        )
    return make_split.leaks(sides)


@dataclass(frozen=True)
class Suggestion:
    """A value for a setting, and why."""

    setting: str
    value: Any
    now: Any
    why: str


def _suggestions(
    config: TrainConfig, opened: Sequence[_Opened], facts: dict[str, Any]
) -> list[dict]:
    device = runtime.pick_device(config.device)
    half = runtime.pick_precision(config.precision, device).name != "fp32"
    memory = MEMORY_FRACTION * runtime.free_memory_gb(device) * 1e9
    found = []
    try:
        model = new_model(config).to("meta")
        exact = ForwardPass(runtime.Precision("fp32", "cpu"), channels_last=False)
        probe = Shapes(model, exact, half)
        probe.output(config.input_array_info["shape"])
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        facts["findings"].append(
            f"no patch suggested: the network cannot be tried ({reason}); mend build_model, or what it needs"
        )
    else:
        train = [one for one in opened if one.row.usage == "train"] or opened
        shape, output = suggest_patch(config, train, probe, memory)
        found += _patch_suggestions(config, train, shape, output, facts)
        found.append(_batch_suggestion(config, probe, shape, memory, device))
    found.append(_workers_suggestion(config, opened, device))
    return [asdict(one) for one in found]


def suggest_patch(
    config: TrainConfig, train: Sequence[_Opened], probe: Shapes, memory: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and target shape: the largest of which two fit into `memory` bytes and whose target three of four crops can fill.

    Reached from the input shape of the experiment in steps that the network takes; that one if it takes no other.
    """
    start = tuple(config.input_array_info["shape"])
    scale, target_scale = (
        np.array(info["scale"]) for info in (config.input_array_info, config.target_array_info)
    )
    extent, room = _usual_extent(train), np.min([one.raw_extent for one in train], axis=0)

    def fits(shape: tuple[int, ...]) -> bool:
        sizes = np.array(probe.output(shape))
        wide = np.array(shape) > 1
        return bool(
            (sizes * target_scale <= extent)[wide].all()
            and (shape * scale <= room)[wide].all()
            and probe.training_bytes(shape, 2) <= memory
        )

    best, step = start, probe.step(start)
    if fits(start):
        while step and probe.takes(grown(best, step)) and fits(grown(best, step)):
            best = grown(best, step)
    else:
        smaller = [
            grown(start, -n) for n in range(1, max(start)) if min(s - n for s in start if s > 1) > 1
        ]
        best = next((shape for shape in smaller if probe.takes(shape) and fits(shape)), start)
    return best, probe.output(best)


def _usual_extent(train: Sequence[_Opened]) -> np.ndarray:
    """(3,) nm that three of four crops have along each axis."""
    return np.percentile(
        [one.crop.label_grid.scale * one.crop.label_grid.shape for one in train], 25, axis=0
    )


def _patch_suggestions(
    config: TrainConfig,
    train: Sequence[_Opened],
    shape: tuple[int, ...],
    output: tuple[int, ...],
    facts: dict[str, Any],
) -> list[Suggestion]:
    raw, target = config.input_array_info, config.target_array_info
    fractions = {
        name: sides["train"]["fraction"]
        for name, sides in facts["classes"].items()
        if sides["train"]["fraction"]
    }
    learnt, now = (
        float(np.prod(o) / np.prod(i))
        for o, i in ((output, shape), (target["shape"], raw["shape"]))
    )
    why = (
        f"three of four training crops have {_by(_usual_extent(train))} nm or more, and the target covers "
        f"{_by(np.multiply(output, target['scale']))} nm; {learnt:.0%} as many voxels are learnt from as are read, {now:.0%} now"
    )
    if fractions:
        name = min(fractions, key=fractions.get)
        why += f"; the rarest class, {name}, has {fractions[name] * np.prod(output):.0f} voxels in the average target"
    return [
        Suggestion("input_array_info.shape", list(shape), list(raw["shape"]), why),
        Suggestion(
            "target_array_info.shape",
            list(output),
            list(target["shape"]),
            "what the network gives for that input",
        ),
    ]


def _batch_suggestion(
    config: TrainConfig, probe: Shapes, shape: tuple[int, ...], memory: float, device: torch.device
) -> Suggestion:
    most = LARGEST_BATCH.get(device.type, 8)
    size = max(
        [
            2**k
            for k in range(most.bit_length())
            if 2**k <= most and probe.training_bytes(shape, 2**k) <= memory
        ],
        default=1,
    )
    need = probe.training_bytes(shape, size)
    why = f"a step with it takes about {need / 1e9:.1f} GB of the {memory / 1e9:.1f} GB that a run may take on {device.type} now"
    if need > memory:
        why += "; it does not fit, use a smaller patch"
    elif size == most:
        why += (
            "; more would make a step longer, not better"
            if device.type != "cpu"
            else "; a CPU is limited by its speed, not by memory"
        )
    return Suggestion("batch_size", size, config.batch_size, why)


def _workers_suggestion(
    config: TrainConfig, opened: Sequence[_Opened], device: torch.device
) -> Suggestion:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    number = min(8, max(1, cores - 1)) if device.type == "cuda" else int(cores > 1)
    size = sum(one.crop.raw().nbytes + one.crop.labels().nbytes for one in opened) / 1e9
    free = runtime.free_memory_gb(torch.device("cpu"))
    kept = (
        "stay in memory"
        if size < MEMORY_FRACTION * free
        else "are read from disk again and again, take a fast one"
    )
    why = f"{cores} cores, one for the training process{'' if device.type == 'cuda' else ', which uses the others too'}"
    why += f"; the decoded crops ({size:.2f} GB, {free:.1f} GB of memory are free) {kept}"
    return Suggestion("num_workers", number, config.num_workers, why)


def _report(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"{facts['experiment']}: {facts['crops']['train']} training crops, {facts['crops']['validate']} validation crops"
    ]
    lines += ["", f"{'':16}{'training crops':^32}{'validation crops':^32}".rstrip()]
    lines += [f"{'class':16}" + f"{'annotated':>10}{'present':>9}{'of known':>10}   " * 2]
    for name, sides in facts["classes"].items():
        row = [
            f"{s['annotated']:>10}{s['present']:>9}{_percent(s['fraction']):>10}   "
            for s in sides.values()
        ]
        lines.append(f"{name:16}{''.join(row)}".rstrip())
    lines += ["", "voxel sizes (nm; crops)"]
    for what, sizes in facts["resolutions"].items():
        lines.append(f"{what:16}" + ", ".join(f"{size}: {count}" for size, count in sizes.items()))
    names = ("mean", "std", "p1", "p25", "p50", "p75", "p99")
    lines += ["", f"{'raw, 0 to 1':24}{'crops':>6}" + "".join(f"{name:>8}" for name in names)]
    for dataset, numbers in facts["intensities"].items():
        lines.append(
            f"{dataset:24}{numbers['crops']:>6}"
            + "".join(f"{numbers[name]:8.3f}" for name in names)
        )
    lines += [
        "",
        *([f"- {finding}" for finding in facts["findings"]] or ["nothing stands out"]),
        "",
    ]
    lines.append("suggested for this machine; nothing is changed")
    for one in facts["suggestions"]:
        lines.append(
            f"- {one['setting']} = {_text(one['value'])} (now {_text(one['now'])}): {one['why']}"
        )
    return lines


def _text(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else str(value)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.3%}" if fraction < 0.1 else f"{fraction:.1%}"


def _by(sizes: Sequence[float]) -> str:
    """'8' for equal numbers, otherwise '5.24x4x4'."""
    texts = [f"{size:.4g}" for size in sizes]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
