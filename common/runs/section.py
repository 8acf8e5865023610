"""The part of the page of `report` that is about one experiment."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
"""Largest width of a picture in pixels; wider ones are scaled down."""

FIGURES = 6
"""Most pictures of the last validation that are shown of an experiment."""

EVENTS_GB = 1.0
"""Size of the event files of a run above which they are not read for pictures."""

INK = "#123457"
"""Placeholder in curves for the colour of the page's text."""

MARK = "*"
"""Mark of scores that look better than they are."""


@dataclass(frozen=True)
class Bar:
    """The figures of one class of a run."""

    name: str
    validation: float | None
    score: float | None
    interval: Interval | None
    left_out: int
    """Number of crops where the metric left the class out; its score is marked then."""


@dataclass(frozen=True)
class Bars:
    """The classes of a run: metric at the best epoch, and score of `evaluate`."""

    metric: str
    file: str
    """File of the scores; "" without one."""
    note: str
    classes: list[Bar]
    has_scores: bool
    has_intervals: bool


@dataclass(frozen=True)
class ShownPicture:
    """A picture as a data URI, or why it cannot be shown."""

    caption: str
    source: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Pictures:
    """The pictures of one run."""

    shown: list[ShownPicture]
    figures: int
    """Number of shown pictures that are of the last validation."""
    available: int
    """Number of pictures that the last validation drew."""


@dataclass(frozen=True)
class ShownSettings:
    """The settings of one run, each as (name, value, default)."""

    changed: list[tuple[str, str, str]]
    others: list[tuple[str, str, str]]
    """Settings at their defaults, and names and paths."""


@dataclass(frozen=True)
class Section:
    """The section of one experiment."""

    anchor: str
    label: str
    lead: str
    runs: int
    svg: Markup
    """Curves of the best runs; empty where nothing is logged."""
    bars: Bars | None
    pictures: Pictures | None
    """None if the page has pictures of enough other experiments."""
    settings: ShownSettings | None
    """None if not known."""
    provenance: list[tuple[str, str]]


def section_of(group: Sequence[Reading], anchor: str, is_pictured: bool) -> Section:
    """Make the section of one experiment, whose runs are ranked."""
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
    """Return curves of the best runs as SVG, in the colour of the text; empty without any."""
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
    """Return metric of the validation and challenge's score of each class; None without any."""
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
    """Return the metric to show of classes: best_metric, if it has a value for each class."""
    return reading.best_metric if reading.best_metric in METRICS else "dice"


def _pictures(reading: Reading) -> Pictures:
    """Return the picture of `evaluate --write-readme`, and pictures of the last validation."""
    shown = []
    path = reading.run.experiment / readme.PICTURE
    try:
        if path.is_file():
            shown.append(_picture(readme.PICTURE, path.read_bytes()))
    except OSError as error:
        shown.append(ShownPicture(readme.PICTURE, problem=f"cannot be read ({error.strerror})"))
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
    """Return the tags of FIGURES pictures, spread over the classes from the best to the worst.

    Whole organelles come before their parts, mito before mito_mem; tags without a known class last.

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
    """Return at most so many items, evenly spread, the first and the last included."""
    if len(items) <= most:
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _class_of(tag: str) -> str:
    return tag.rsplit("/", 1)[-1]


def last_images(run: Run) -> dict[str, tuple[int, bytes]]:
    """Return step and content of the last image of each tag in a run's events.

    It returns {} for a run whose events are larger than EVENTS_GB.
    """
    if run.size > EVENTS_GB * 1e9:
        return {}
    images = {}
    for event in read_files(run.events):
        for value in event.summary.value:
            if value.HasField("image"):
                images[value.tag] = (event.step, value.image.encoded_image_string)
    return dict(sorted(images.items()))


def _picture(caption: str, content: bytes) -> ShownPicture:
    """Return a picture as JPEG, not wider than PICTURE_WIDTH."""
    try:
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except OSError as error:
        return ShownPicture(caption, problem=str(error))
    if image.width > PICTURE_WIDTH:
        height = round(image.height * PICTURE_WIDTH / image.width)
        image = image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
    return ShownPicture(caption, source, image.width, image.height)


def _settings(reading: Reading) -> ShownSettings | None:
    """Return the settings that differ from their defaults, and the others."""
    if not reading.record.settings:
        return None
    usual = TrainConfig.recorded_defaults()
    settings = ShownSettings([], [])
    for name, value in reading.record.settings.items():
        is_changed = name not in PLACES and value != usual.get(name)
        rows = settings.changed if is_changed else settings.others
        rows.append((name, value, usual.get(name, "")))
    return settings


def _provenance(reading: Reading) -> list[tuple[str, str]]:
    """Return (name, value) of the checkpoint, versions, times, and origin of scores."""
    sessions = reading.record.sessions
    known: dict[str, Any] = {
        "checkpoint": _checkpoint(reading),
        "epoch of the best": reading.best_epoch,
        "logs": _in_experiment(reading, reading.run.folder),
        **reading.record.provenance,
        "began": sessions[0].began if sessions else None,
        "ended": sessions[-1].ended if sessions else None,
        "sessions": len(sessions) or None,
        **{file: _origin_of_scores(scores) for file, scores in reading.scores.items()},
    }
    return [(name, str(value)) for name, value in known.items() if value is not None]


def _checkpoint(reading: Reading) -> str:
    folder = reading.folder("model_save_path")
    try:
        for name in ("best.pt", "latest.pt"):
            path = folder / name
            if path.is_file():
                return f"{_in_experiment(reading, path)}, {talk.size(path.stat().st_size)}"
    except OSError as error:
        return f"{_in_experiment(reading, folder)} cannot be read ({error.strerror})"
    return "none found"


def _in_experiment(reading: Reading, path: Path) -> Path:
    """Return a path relative to the experiment's folder, if it is in it."""
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
    """Return a sentence about classes that the metric left out; "" without any."""
    listed = in_crops(scores, "left_out")
    if not listed:
        return ""
    return (
        f"The metric left out {talk.some(listed)}, for too many predicted objects: these are not "
        "in the score, and a class left out of every crop counts 1.0."
    )


def overall_scores(scores: Scores) -> list[tuple[str, float]]:
    """Return (name, value) of the known scores over classes; the most important one is first."""
    known = []
    for key in OVERALL:
        value = scores.overall(key)
        if value is not None:
            known.append((key, value))
    return known
