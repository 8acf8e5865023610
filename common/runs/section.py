"""All that the page of `report` shows of one experiment."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from common import talk
from common.config.groups import PLACES
from common.config.settings import TrainConfig
from common.runs.curves import CURVES, curves, render
from common.runs.events import read_files
from common.runs.find import Run
from common.runs.history import METRICS
from common.runs.reading import Reading
from common.runs.sides import as_sides
from common.score import readme
from common.score.interval import Interval
from common.score.result import OVERALL, Scores
from common.score.tables import in_crops

PICTURE_WIDTH = 1200
"""Pixels that a wider picture is scaled down to."""

FIGURES = 6
"""Pictures of the last validation that are shown of an experiment."""

EVENTS_GB = 1.0
"""Event files larger than this together are not read for pictures."""

INK = "#123457"
"""Stands in curves for the colour of the page's text."""

MARK = "*"
"""Stands at scores that look better than they are."""


@dataclass(frozen=True)
class Bar:
    """A class of one run."""

    name: str
    validation: float | None
    score: float | None
    interval: Interval | None
    left_out: int
    """Crops that the metric left it out of; such a score is marked."""


@dataclass(frozen=True)
class Bars:
    """The classes of one run, at its best epoch and as `evaluate` scored them."""

    metric: str
    file: str
    """Of the scores; "" where there are none."""
    note: str
    classes: list[Bar]
    has_scores: bool
    has_intervals: bool


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, or why it cannot be shown."""

    caption: str
    source: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Pictures:
    """The pictures of one run."""

    shown: list[Picture]
    figures: int
    """How many of them are of the last validation."""
    available: int
    """How many the last validation drew."""


@dataclass(frozen=True)
class Settings:
    """The settings of one run: (name, value, default)."""

    changed: list[tuple[str, str, str]]
    others: list[tuple[str, str, str]]
    """At their defaults, or names and paths."""


@dataclass(frozen=True)
class Section:
    """All about one experiment."""

    anchor: str
    label: str
    lead: str
    runs: int
    svg: Markup
    """Curves of the best runs; empty where nothing is logged."""
    bars: Bars | None
    pictures: Pictures | None
    """None where the page has pictures enough."""
    settings: Settings | None
    """None where they are not known."""
    provenance: list[tuple[str, str]]


def section_of(group: Sequence[Reading], anchor: str, is_pictured: bool) -> Section:
    """All about one experiment, whose best run comes first."""
    best = group[0]
    return Section(
        anchor=anchor,
        label=best.name.split("/")[0],
        lead=_lead(group),
        runs=len(group),
        svg=_curves(group),
        bars=_bars(best),
        pictures=_pictures(best) if is_pictured else None,
        settings=_settings(best),
        provenance=_provenance(best),
    )


def _lead(group: Sequence[Reading]) -> str:
    best = group[0]
    lead = f"Best of {len(group)} runs: {best.name}" if len(group) > 1 else best.name
    if best.best_value is not None:
        lead += f", {best.best_metric} {best.best_value:.4f} at epoch {best.best_epoch}"
    left_out = left_out_of(next(iter(best.scores.values()))) if best.scores else ""
    return f"{lead}. {left_out}" if left_out else lead


def _curves(group: Sequence[Reading]) -> Markup:
    """SVG of the best runs, in the colour of the page's text; empty where nothing is logged."""
    drawn = [reading for reading in group if len(reading.history)][:CURVES]
    if not drawn:
        return Markup("")
    figure = curves(as_sides(drawn), group[0].best_metric, INK)
    svg = render(figure, "svg").decode()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # all figures have the same ids, which may stand once in a page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # as wide as the page instead of its own size in points
    head = r'<svg \1 role="img" aria-label="curves">'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', head, svg, count=1)
    # matplotlib escapes the names in it
    return Markup(svg)


def _bars(reading: Reading) -> Bars | None:
    """The metric of the validation and the challenge's score of each class; None without any."""
    metric = _shown_metric(reading)
    validation = reading.per_class(metric)
    file, scores = next(iter(reading.scores.items()), ("", None))
    scored = scores.classes if scores else {}
    bars = []
    for name in dict.fromkeys([*validation, *scored]):
        in_file = scored.get(name)
        bar = Bar(
            name=name,
            validation=validation.get(name),
            score=in_file.figures.score if in_file else None,
            interval=in_file.interval_95 if in_file else None,
            left_out=in_file.left_out if in_file else 0,
        )
        bars.append(bar)
    if not bars:
        return None
    overall = overall_scores(scores) if scores else []
    values = [f"{key.replace('_', ' ')} {value:.4f}" for key, value in overall]
    notes = [f"{scores.metric}: {', '.join(values)}."] if scores and values else []
    if scores and left_out_of(scores):
        notes.append(f"{MARK} {left_out_of(scores)}")
    return Bars(
        metric=metric,
        file=file,
        note=" ".join(notes),
        classes=bars,
        has_scores=bool(scored),
        has_intervals=any(bar.interval for bar in bars),
    )


def _shown_metric(reading: Reading) -> str:
    """The metric that classes are shown by: the best_metric, if it is one of each class."""
    return reading.best_metric if reading.best_metric in METRICS else "dice"


def _pictures(reading: Reading) -> Pictures:
    """The picture that `evaluate --write-readme` made, and those of the last validation."""
    shown = []
    path = reading.run.experiment / readme.PICTURE
    if path.is_file():
        shown.append(_picture(readme.PICTURE, path.read_bytes()))
    images = last_images(reading.run)
    metric = _shown_metric(reading)
    values = reading.per_class(metric)
    tags = chosen_tags(list(images), values)
    for tag in tags:
        step, content = images[tag]
        value = values.get(_class_of(tag))
        about = "" if value is None else f", {metric} {value:.3f} at the best epoch"
        shown.append(_picture(f"{tag}, iteration {step}{about}", content))
    return Pictures(shown, figures=len(tags), available=len(images))


def chosen_tags(tags: Sequence[str], values: Mapping[str, float]) -> list[str]:
    """The FIGURES pictures that say most: of classes that occur, from the best to the worst.

    Whole organelles before their parts, as mito before mito_mem. Tags of no known class come last.

    Args:
        tags: of pictures, whose last part is a class.
        values: a metric of the classes that the validation holds.
    """
    names = {_class_of(tag) for tag in tags}

    def rank(tag: str) -> tuple[bool, bool]:
        name = _class_of(tag)
        whole = name.split("_")[0]
        return name not in values, whole != name and whole in names

    ranks: dict[tuple[bool, bool], list[str]] = {}
    for tag in tags:
        ranks.setdefault(rank(tag), []).append(tag)
    chosen: list[str] = []
    for _, equals in sorted(ranks.items()):
        best_first = sorted(equals, key=lambda tag: -values.get(_class_of(tag), 0.0))
        chosen += _spread(best_first, FIGURES - len(chosen))
    return chosen


def _spread(items: Sequence[str], most: int) -> list[str]:
    """At most so many of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _class_of(tag: str) -> str:
    return tag.rsplit("/", 1)[-1]


def last_images(run: Run) -> dict[str, tuple[int, bytes]]:
    """By tag, the step and the file of the last image in a run's events.

    Nothing of a run whose events are larger than EVENTS_GB.
    """
    if run.size > EVENTS_GB * 1e9:
        return {}
    images = {}
    for event in read_files(run.events):
        for value in event.summary.value:
            if value.HasField("image"):
                images[value.tag] = (event.step, value.image.encoded_image_string)
    return dict(sorted(images.items()))


def _picture(caption: str, content: bytes) -> Picture:
    """A picture as JPEG, not wider than PICTURE_WIDTH."""
    try:
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except OSError as error:
        return Picture(caption, problem=str(error))
    if image.width > PICTURE_WIDTH:
        height = round(image.height * PICTURE_WIDTH / image.width)
        image = image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
    return Picture(caption, source, image.width, image.height)


def _settings(reading: Reading) -> Settings | None:
    """The settings that differ from their defaults, and the others."""
    if not reading.settings:
        return None
    usual = defaults()
    settings = Settings([], [])
    for name, value in reading.settings.items():
        is_changed = name not in PLACES and value != usual.get(name)
        rows = settings.changed if is_changed else settings.others
        rows.append((name, value, usual.get(name, "")))
    return settings


def defaults() -> dict[str, str]:
    """Each setting's default as runs record it; "" for those that have none."""
    required = []
    for field in fields(TrainConfig):
        if field.default is MISSING and field.default_factory is MISSING:
            required.append(field.name)
    nothing: dict[str, Any] = dict.fromkeys(required)
    return TrainConfig(**nothing).record() | dict.fromkeys(required, "")


def _provenance(reading: Reading) -> list[tuple[str, str]]:
    """What the best checkpoint is, and what made it."""
    sessions = reading.record.sessions
    known: dict[str, Any] = {
        "checkpoint": _checkpoint(reading),
        "epoch of the best": reading.best_epoch,
        "logs": _in_experiment(reading, reading.run.folder),
        **reading.provenance,
        "began": sessions[0].began if sessions else None,
        "ended": sessions[-1].ended if sessions else None,
        "sessions": len(sessions) or None,
        **{file: _origin_of_scores(scores) for file, scores in reading.scores.items()},
    }
    return [(name, str(value)) for name, value in known.items() if value is not None]


def _checkpoint(reading: Reading) -> str:
    folder = reading.folder("model_save_path")
    for name in ("best.pt", "latest.pt"):
        path = folder / name
        if path.is_file():
            return f"{_in_experiment(reading, path)}, {talk.size(path.stat().st_size)}"
    return "none found"


def _in_experiment(reading: Reading, path: Path) -> Path:
    """`path` as seen from the experiment's folder, if it is in it."""
    experiment = reading.run.experiment
    return path.relative_to(experiment) if path.is_relative_to(experiment) else path


def _origin_of_scores(scores: Scores) -> str:
    provenance = scores.provenance
    if provenance is None:
        return ""
    ensembles = []
    for checkpoint in provenance.checkpoints or ():
        if checkpoint.networks:
            ensembles.append(checkpoint.metric or "")
    known = {
        "date": provenance.date,
        "predicted by": "; ".join(ensembles),
        "commit": provenance.versions.get("commit"),
        "thresholds": provenance.thresholds,
    }
    return ", ".join(f"{name} {value}" for name, value in known.items() if value)


def left_out_of(scores: Scores) -> str:
    """What the metric left out, as a sentence; "" where it left out nothing."""
    listed = in_crops(scores, "left_out")
    if not listed:
        return ""
    return (
        f"The metric left out {talk.some(listed)}, for too many predicted objects: these are not "
        "in the score, and a class left out of every crop counts 1.0."
    )


def overall_scores(scores: Scores) -> list[tuple[str, float]]:
    """The scores over classes that are known, by name; the one that counts first."""
    known = []
    for key in OVERALL:
        value = scores.overall(key)
        if value is not None:
            known.append((key, value))
    return known
