"""Write a model card of a network from its run and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.config.settings import TrainConfig
from common.data.samples.sampling import Patch
from common.data.splits import split
from common.data.volumes.records import at_epoch
from common.errors import UserError
from common.infer.networks.network import Network
from common.score import result
from common.score.readme import markdown_scores, markdown_table
from common.talk import count, nm, some, voxels
from common.train.recording.record import RunRecord, read_record

LICENCE = "CC-BY-4.0"
"""Licence of the challenge's data, and the default for a network trained on them."""


@dataclass(frozen=True)
class Citation:
    """A work that users of a network are asked to cite."""

    text: str
    doi: str = ""


CITED = (
    Citation(
        "Heinrich et al. 2021, Whole-cell organelle segmentation in volume electron microscopy, "
        "Nature",
        "10.1038/s41586-021-03977-3",
    ),
)
"""The challenge's data; the same works as in CITATION.cff."""


@dataclass(frozen=True)
class Said:
    """What only the author of a network can say of it."""

    name: str = ""
    description: str = ""
    authors: tuple[str, ...] = ()
    licence: str = LICENCE
    """Identifier of SPDX."""
    cite: tuple[Citation, ...] = ()
    """Further works, before CITED."""


@dataclass(frozen=True)
class Card(Said):
    """The model card of a package: what its author said, made whole."""

    text: str = ""
    """Markdown, with a heading for each subject."""
    facts: dict[str, str] = field(default_factory=dict)
    """For programs: the run, its checkpoint, its commit."""


def card_of(network: Network, said: Said) -> Card:
    """Make the card of a network that was trained here. network: a single one, no ensemble."""
    config = network.config
    classes = some(config.classes, 6)
    scale = nm(config.input_array_info["scale"])
    name = said.name or f"{config.model_name}: organelles at {scale} nm"
    description = said.description or (
        f"Segments {classes} in volume electron microscopy at {scale} nm; trained as "
        f"{config.model_name}/{config.run}."
    )
    cite = (*said.cite, *CITED)
    sections = [
        [f"# {name}", "", description],
        _input_section(network),
        _output_section(network),
        _data_section(config),
        _training_section(network, read_record(config.path("logs_save_path"))),
        _score_section(network),
        _limits_section(config),
        ["## Licence", "", said.licence],
        ["## Cite", "", *[_cite_line(work) for work in cite]],
    ]
    text = "\n\n".join("\n".join(section) for section in sections)
    return Card(
        name=name,
        description=description,
        authors=said.authors,
        licence=said.licence,
        cite=cite,
        text=f"{text}\n",
        facts=_facts(network),
    )


def _facts(network: Network) -> dict[str, str]:
    record = network.record
    facts = {
        "experiment": record.experiment,
        "model_name": record.model_name,
        "run_name": record.run_name,
        "checkpoint_sha256": record.sha256,
        "epoch": record.epoch,
        "metric": record.metric,
        "commit": (record.environment or {}).get("commit"),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


NORMALISED = {
    "range": "{low:g} becomes 0 and {high:g} becomes 1; nothing else",
    "percentile": (
        "the percentiles 0.5 and 99.5 of the whole volume become 0 and 1, beyond is clipped"
    ),
    "zscore": (
        "clipped to the percentiles 0.5 and 99.5 of the whole volume, then its mean becomes 0 and "
        "its deviation 1"
    ),
    "values": "as it is stored",
}
"""Descriptions of the values of raw_normalization."""


def black_white(config: TrainConfig) -> tuple[float, float]:
    """Return the stored values that become 0 and 1: raw_range, or 0 and 255 without it."""
    low, high = config.raw_range or (0.0, 255.0)
    return float(low), float(high)


def _input_section(network: Network) -> list[str]:
    config = network.config
    taken = Patch(**config.input_array_info)
    low, high = black_white(config)
    normalised = NORMALISED[config.raw_normalization].format(low=low, high=high)
    return [
        "## Raw",
        "",
        f"* voxels of {nm(taken.scale)} nm (z, y, x); other voxel sizes are to be resampled first",
        f"* patches of {voxels(taken.shape)} voxels{_growth(network)}",
        f"* one channel, black {low:g} and white {high:g}",
        f"* normalisation: {normalised}",
        *_averaged(config),
    ]


def _averaged(config: TrainConfig) -> list[str]:
    number = config.raw_sections
    return [f"* each section averaged with {number} before and after it first"] if number else []


def _growth(network: Network) -> str:
    steps = [step for step, _ in network.window.steps]
    if not any(steps):
        return ", of this size alone"
    return f", or larger by multiples of {' x '.join(map(str, steps))}"


def _output_section(network: Network) -> list[str]:
    config = network.config
    given = Patch(**config.target_array_info)
    rows = [[str(number), name] for number, name in enumerate(config.classes)]
    return [
        "## Classes",
        "",
        f"Logits of {voxels(given.shape)} voxels of {nm(given.scale)} nm around the same centre; a "
        "sigmoid makes a probability of each class by itself, and classes may overlap.",
        "",
        *markdown_table(["channel", "class"], rows),
    ]


def _data_section(config: TrainConfig) -> list[str]:
    lines = ["## Training data", ""]
    try:
        rows = split.read_datasplit(config.path("datasplit_path"), config.path("data_path"))
    except (UserError, FileNotFoundError):
        return [*lines, "Not on record: the datasplit of the run is not there any more."]
    for usage, verb in (("train", "trained on"), ("validate", "chosen by")):
        crops = [row for row in rows if row.usage == usage]
        datasets = Counter(row.key[0] for row in crops)
        texts = [f"{name} ({number})" for name, number in datasets.items()]
        lines.append(f"* {verb} {count(len(crops), 'crop')}: {some(texts, 40)}")
    annotated = split.annotating(rows, "train")
    table = [[name, str(annotated[name])] for name in config.classes]
    lines += ["", *markdown_table(["class", "training crops that annotate it"], table)]
    if config.use_mutual_exclusion:
        lines += ["", "Where a class is not annotated, classes that exclude it count as negative."]
    return lines


def _training_section(network: Network, run: RunRecord | None) -> list[str]:
    record = network.record
    checkpoint = at_epoch(record.epoch, record.metric) if record.epoch else "weights alone"
    lines = [
        "## Training",
        "",
        f"* run {record.model_name}/{record.run_name}, checkpoint of {checkpoint}, SHA-256 "
        f"`{record.sha256}`",
    ]
    if run is None:
        return lines
    for name in ("iterations_per_epoch", "batch_size", "optimizer", "learning_rate", "criterion"):
        value = run.settings.get(name)
        if value not in (None, "None"):
            lines.append(f"* {name}: {value}")
    versions = run.provenance
    lines.append(f"* commit {versions.get('commit', 'not on record')}")
    lines.append(f"* torch {versions.get('torch', 'not on record')}")
    return lines


def _score_section(network: Network) -> list[str]:
    lines = ["## Validation", ""]
    path = network.config.path("results_path") / "scores.json"
    if not path.is_file():
        return [*lines, "Not scored; `evaluate` scores the crops that validate."]
    scores = result.read(path)
    made_by = (scores.provenance and scores.provenance.checkpoints) or ()
    if network.record.sha256 not in [checkpoint.sha256 for checkpoint in made_by]:
        lines += ["Scores of another checkpoint of this run:", ""]
    return lines + markdown_scores(scores)


def _limits_section(config: TrainConfig) -> list[str]:
    return [
        "## Limits",
        "",
        f"* Trained on raw of {nm(config.input_array_info['scale'])} nm: at other voxel sizes, or "
        "with other contrast or fixation, it is untested.",
        "* The epoch was chosen on the crops that validate, so that scores there are "
        "a little high.",
        "* A class that is not in the table above is not told apart from the background.",
    ]


def _cite_line(work: Citation) -> str:
    return f"* {work.text}" + (f", doi:{work.doi}" if work.doi else "")


def citations(texts: Sequence[str]) -> tuple[Citation, ...]:
    """Parse works as they are typed: "TEXT", or "TEXT doi:10.1038/..."."""
    works = []
    for text in texts:
        words, _, doi = text.partition("doi:")
        works.append(Citation(words.strip(" ,;") or doi.strip(), doi.strip()))
    return tuple(works)
