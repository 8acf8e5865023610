"""Suggest a patch shape, a batch size and a number of workers for an experiment on this machine.

As in nnU-Net (Isensee et al., Nature Methods 2021), the patch is chosen first, then the batch size.
Where a network loses voxels at the border, the patch is as large as crops and memory allow; else
it is the experiment's own, since many small patches teach more than few large ones. No setting is
changed: a suggestion is a value, the current value, and a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import runtime, talk
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.summary import fingerprint as data_fingerprint
from common.data.summary.fingerprint import Facts
from common.data.summary.measured import MeasuredCrop, measure_crops, short_nm
from common.files import refuse_no_folder, write_json
from common.model.build import new_model
from common.model.forward import in_float32
from common.model.shapes import Shape, Shapes, grown
from common.provenance import usable_cores
from common.talk import Say

MEMORY_FRACTION = 0.8
"""Fraction of the free memory that a run may use."""

LEAST_BATCH = 2
"""Least batch size that must fit into memory; a larger patch at batch size 1 learns worse."""

LARGEST_BATCH = {"cuda": 32, "mps": 8, "cpu": LEAST_BATCH}
"""Largest suggested batch size by device; beyond it a step only takes longer."""

MOST_WORKERS = 8

FULL_CROPS = 25
"""Percentile of the crop sizes up to which a target patch may be: three of four crops fill it."""


@dataclass(frozen=True)
class Suggestion:
    """A suggested value of a setting, its current value, and the reason."""

    setting: str
    value: Any
    now: Any
    why: str


@dataclass(frozen=True)
class Fingerprint:
    """A description of the data of an experiment, and suggestions for this machine."""

    facts: Facts
    suggestions: list[Suggestion]

    def as_json(self) -> dict[str, Any]:
        """Return facts and suggestions as plain numbers and texts."""
        suggestions = [asdict(suggestion) for suggestion in self.suggestions]
        return {**self.facts.as_json(), "suggestions": suggestions}

    def report(self) -> list[str]:
        """Return lines for the user."""
        lines = [*data_fingerprint.report(self.facts), ""]
        lines.append("suggested for this machine; nothing is changed")
        for suggestion in self.suggestions:
            value = _text(suggestion.value)
            now = _text(suggestion.now)
            lines.append(f"- {suggestion.setting} = {value} (now {now}): {suggestion.why}")
        return lines


@dataclass(frozen=True)
class Machine:
    """The device and memory that a run may use."""

    device: torch.device
    half: bool
    """Whether activations are of a 16-bit type."""
    memory: float
    """Bytes of memory on the device."""


def fingerprint(
    config_path: str | Path,
    *,
    data: str | Path | None = None,
    overrides: Sequence[str] = (),
    json_path: str | Path = "",
    say: Say = print,
) -> Fingerprint:
    """Describe the crops of an experiment as training would read them, and print a report.

    Crops that are not in the cache are decoded into it. Crops that cannot be read are listed among
    the findings.

    Args:
        config_path: an experiment's folder or its train_config.py.
        data: the data root.
        overrides: "name=value" strings.
        json_path: a file for the same as JSON, if given.
        say: takes each line of the report.

    Raises:
        FileNotFoundError: without configuration, datasplit, or the folder of json_path.
        UserError: for what is wrong in them, and if no crop can be read.
    """
    config = load_config(config_path, overrides, data)
    if json_path:
        refuse_no_folder(json_path)
    crops, unreadable = measure_crops(config)
    facts = data_fingerprint.describe(config, crops, unreadable)
    result = Fingerprint(facts, suggest(config, crops, facts))
    for line in result.report():
        say(line)
    if json_path:
        write_json(json_path, result.as_json())
    return result


def suggest(config: TrainConfig, crops: Sequence[MeasuredCrop], facts: Facts) -> list[Suggestion]:
    """Suggest patch, batch size and workers for a run.

    If the network cannot be tried, that is added to the findings of `facts`, and no patch is
    suggested.
    """
    machine = _this_machine(config)
    suggestions = []
    network = _try_network(config, machine, facts)
    if network:
        train = [crop for crop in crops if crop.row.usage == "train"] or list(crops)
        shape, output = suggest_patch(config, train, network, machine.memory)
        suggestions += _patch_suggestions(config, train, facts, (shape, output))
        suggestions.append(_batch_suggestion(config, network, shape, machine))
    suggestions.append(_workers_suggestion(config, crops, machine.device))
    return suggestions


def _this_machine(config: TrainConfig) -> Machine:
    device = runtime.pick_device(config.device)
    half = runtime.pick_precision(config.precision, device).name != "fp32"
    memory = MEMORY_FRACTION * runtime.free_memory_gb(device) * 1e9
    return Machine(device, half, memory)


def _try_network(config: TrainConfig, machine: Machine, facts: Facts) -> Shapes | None:
    """Return the shapes of the experiment's network; None, and a finding, if it does not run."""
    try:
        model = new_model(config).to("meta")
        network = Shapes(model, in_float32(), machine.half, in_channels=config.in_channels)
        network.output(config.input_array_info["shape"])
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        # a user's function and torch: whatever they raise, the other facts are still worth saying
        reason = str(error).splitlines()[0]
        facts.findings.append(
            f"no patch suggested: the network cannot be tried ({reason}); "
            "mend build_model, or what it needs"
        )
        return None
    return network


def suggest_patch(
    config: TrainConfig, train: Sequence[MeasuredCrop], network: Shapes, memory: float
) -> tuple[Shape, Shape]:
    """Return the largest input shape whose target three of four crops can fill, and the target.

    LEAST_BATCH patches fit into `memory` bytes. The shape is reached from that of the experiment in
    steps that the network takes. It is the experiment's own if the network takes no other, or if
    the network is padded and its own shape fits.
    """
    start = tuple(config.input_array_info["shape"])
    scale = np.array(config.input_array_info["scale"])
    target_scale = np.array(config.target_array_info["scale"])
    extent = _usual_extent(train)
    raw_extent = np.min([crop.raw_extent for crop in train], axis=0)

    def fits(shape: Shape) -> bool:
        output = np.array(network.output(shape))
        wide = np.array(shape) > 1
        in_crops = (output * target_scale <= extent)[wide].all()
        in_raw = (shape * scale <= raw_extent)[wide].all()
        return bool(in_crops and in_raw and network.training_bytes(shape, LEAST_BATCH) <= memory)

    if not fits(start):
        best = _shrink(start, network, fits)
    elif _is_padded(start, network.output(start)):
        best = start
    else:
        best = _grow(start, network, fits)
    return best, network.output(best)


def _is_padded(shape: Shape, output: Shape) -> bool:
    """Whether a network gives as many voxels as it takes.

    A larger patch then saves no border. In as many steps 8 patches of 32^3 gave an IoU of 0.56
    where 2 of 64^3, with twice the voxels, gave 0.52: docs/explanation/recipe.md.
    """
    return tuple(output) == tuple(shape)


def _grow(start: Shape, network: Shapes, fits: Callable[[Shape], bool]) -> Shape:
    """Return the largest shape that is reached in the network's steps and fits."""
    step = network.step(start)
    best = start
    while step:
        larger = grown(best, step)
        if not network.takes(larger) or not fits(larger):
            break
        best = larger
    return best


def _shrink(start: Shape, network: Shapes, fits: Callable[[Shape], bool]) -> Shape:
    """Return the largest smaller shape that the network takes and that fits; else `start`."""
    smallest_axis = min((size for size in start if size > 1), default=1)
    for step in range(1, smallest_axis - 1):
        smaller = grown(start, -step)
        if network.takes(smaller) and fits(smaller):
            return smaller
    return start


def _usual_extent(train: Sequence[MeasuredCrop]) -> np.ndarray:
    """Return (3,) nm that three of four crops have along each axis."""
    return np.percentile([crop.label_extent for crop in train], FULL_CROPS, axis=0)


def _patch_suggestions(
    config: TrainConfig,
    train: Sequence[MeasuredCrop],
    facts: Facts,
    shapes: tuple[Shape, Shape],
) -> list[Suggestion]:
    """Suggest the shapes of raw and target. shapes: (raw, target) in voxels."""
    raw = config.input_array_info
    target = config.target_array_info
    shape, output = shapes
    learnt = float(np.prod(output) / np.prod(shape))
    learnt_now = float(np.prod(target["shape"]) / np.prod(raw["shape"]))
    covered = short_nm(np.multiply(output, target["scale"]))
    why = (
        f"three of four training crops have {short_nm(_usual_extent(train))} nm or more, and the "
        f"target covers {covered} nm; {learnt:.0%} as many voxels are learnt from as are read, "
        f"{learnt_now:.0%} now"
    )
    if _is_padded(shape, output):
        why += "; a larger patch would save no border, and many small ones teach more"
    fractions = {}
    for name, sides in facts.classes.items():
        fraction = sides["train"].fraction
        if fraction:
            fractions[name] = fraction
    if fractions:
        rarest = min(fractions, key=lambda name: fractions[name])
        voxels = fractions[rarest] * np.prod(output)
        why += f"; the rarest class, {rarest}, has {voxels:.0f} voxels in the average target"
    given = "what the network gives for that input"
    return [
        Suggestion("input_array_info.shape", list(shape), list(raw["shape"]), why),
        Suggestion("target_array_info.shape", list(output), list(target["shape"]), given),
    ]


def _batch_suggestion(
    config: TrainConfig, network: Shapes, shape: Shape, machine: Machine
) -> Suggestion:
    """Suggest the largest power of two that fits into memory and is worth its time."""
    kind = machine.device.type
    most = LARGEST_BATCH.get(kind, 8)
    size = 1
    while 2 * size <= most and network.training_bytes(shape, 2 * size) <= machine.memory:
        size *= 2
    of_experiment = config.batch_size
    is_kept = tuple(config.input_array_info["shape"]) == tuple(shape)
    if is_kept and network.training_bytes(shape, of_experiment) <= machine.memory:
        size = max(size, of_experiment)
    need = network.training_bytes(shape, size)
    why = (
        f"a step with it takes about {talk.size(need)} of the {machine.memory / 1e9:.1f} GB "
        f"that a run may take on {kind} now"
    )
    if need > machine.memory:
        why += "; it does not fit, use a smaller patch"
    elif size >= most and kind == "cpu":
        why += "; more would take a CPU in proportion longer, and a single patch learns worse"
    elif size >= most:
        why += "; more would make a step longer, not better"
    else:
        why += f"; {2 * size} take {talk.size(network.training_bytes(shape, 2 * size))}"
    return Suggestion("batch_size", size, config.batch_size, why)


def _workers_suggestion(
    config: TrainConfig, crops: Sequence[MeasuredCrop], device: torch.device
) -> Suggestion:
    cores = usable_cores()
    why = f"{cores} cores, one for the training process"
    if device.type == "cuda":
        number = min(MOST_WORKERS, max(1, cores - 1))
    else:
        # convolutions take every core there is: a second worker would take from them
        number = int(cores > 1)
        why += ", which uses the others too"
    size = sum(crop.crop.raw().nbytes + crop.crop.labels().nbytes for crop in crops) / 1e9
    free = runtime.free_memory_gb(torch.device("cpu"))
    if size < MEMORY_FRACTION * free:
        kept = "stay in memory"
    else:
        kept = "are read from disk again and again, take a fast one"
    why += f"; the decoded crops ({talk.size(1e9 * size)}, {free:.1f} GB of memory are free) {kept}"
    return Suggestion("num_workers", number, config.num_workers, why)


def _text(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else str(value)
