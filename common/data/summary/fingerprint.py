"""Describe the data of an experiment: what its crops hold, and what is unusual in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.config.settings import TrainConfig
from common.data.crops import normalize
from common.data.crops.normalize import Scaling
from common.data.splits import split
from common.data.summary import measured
from common.data.summary.findings import percent, stand_out
from common.data.summary.measured import PERCENTILES, ClassFacts, Intensities, MeasuredCrop
from common.errors import UserError
from common.talk import count


@dataclass
class Facts:
    """What the data of an experiment hold; its fields, in their order, are those of the JSON."""

    experiment: str
    crops: dict[str, int]
    """By usage, "train" or "validate"."""
    classes: dict[str, dict[str, ClassFacts]]
    """By class, then by usage."""
    resolutions: dict[str, dict[str, int]]
    """Crops by voxel size (nm): of the finest raw, of the labels, and of the raw as it is read."""
    intensities: dict[str, Intensities]
    """By dataset."""
    scalings: dict[str, dict[str, Any]]
    """How training normalises each raw volume; {} with raw_normalization = "range"."""
    findings: list[str]
    """Sentences about what stands out."""

    def as_json(self) -> dict[str, Any]:
        """Return the facts in plain numbers and texts."""
        return asdict(self)


def describe(
    config: TrainConfig, crops: Sequence[MeasuredCrop], unreadable: Sequence[str] = ()
) -> Facts:
    """Return facts and findings about measured crops, and about those that could not be read."""
    by_usage: dict[str, list[MeasuredCrop]] = {usage: [] for usage in split.USAGES}
    for crop in crops:
        by_usage[crop.row.usage].append(crop)
    facts = Facts(
        experiment=config.model_name,
        crops={usage: len(side) for usage, side in by_usage.items()},
        classes=measured.class_facts(config.classes, by_usage),
        resolutions=measured.resolutions(crops),
        intensities=measured.intensities(crops),
        scalings={},
        findings=list(unreadable),
    )
    _add_scalings(facts, config, crops)
    facts.findings += stand_out(config, crops, facts.classes, facts.intensities)
    return facts


def _add_scalings(facts: Facts, config: TrainConfig, crops: Sequence[MeasuredCrop]) -> None:
    """Add how raw is normalised, or as a finding why it cannot be."""
    volumes = [crop.row.raw for crop in crops]
    try:
        scalings = normalize.of_volumes(config, volumes, {})
    except UserError as error:
        facts.findings.append(str(error))
        return
    facts.scalings = {name: scaling.record() for name, scaling in scalings.items()}


def report(facts: Facts) -> list[str]:
    """Return lines of a report: crops, classes, voxel sizes, intensities and findings."""
    train = facts.crops["train"]
    validate = facts.crops["validate"]
    lines = [
        f"{facts.experiment}: {count(train, 'training crop')}, "
        f"{count(validate, 'validation crop')}",
        "",
        f"{'':16}{'training crops':^32}{'validation crops':^32}".rstrip(),
        f"{'class':16}" + f"{'annotated':>10}{'present':>9}{'of known':>10}   " * 2,
    ]
    for name, sides in facts.classes.items():
        cells = ""
        for side in sides.values():
            cells += f"{side.annotated:>10}{side.present:>9}{percent(side.fraction):>10}   "
        lines.append(f"{name:16}{cells}".rstrip())
    lines += ["", "voxel sizes (nm; crops)"]
    for what, sizes in facts.resolutions.items():
        counts = [f"{size}: {count}" for size, count in sizes.items()]
        lines.append(f"{what:16}{', '.join(counts)}")
    names = ("mean", "std", *(f"p{percentile}" for percentile in PERCENTILES))
    lines += ["", f"{'raw, 0 to 1':24}{'crops':>6}" + "".join(f"{name:>8}" for name in names)]
    for dataset, numbers in facts.intensities.items():
        values = [f"{getattr(numbers, name):8.3f}" for name in names]
        lines.append(f"{dataset:24}{numbers.crops:>6}{''.join(values)}")
    lines += [f"{name}: {Scaling.of(scaling)}" for name, scaling in facts.scalings.items()]
    lines.append("")
    lines += [f"- {finding}" for finding in facts.findings] or ["nothing stands out"]
    return lines
