"""One HTML page about the runs of one experiment or of all.

It opens from a laptop, without a server: a table of all runs that can be sorted, and for each
experiment curves, bars of each class, pictures, settings and provenance. Curves are inline SVG, and
pictures are data URIs, so nothing is loaded from anywhere. What the page looks like is in
report.html.j2, which escapes all that comes from files.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from common import talk
from common.config.settings import TrainConfig
from common.errors import UserError
from common.files import REPOSITORY, write_text
from common.runs.choose import choose
from common.runs.curves import CURVES, curves, render
from common.runs.events import read_files
from common.runs.find import Run, find
from common.runs.reading import METRICS, Reading, read
from common.runs.sides import PLACES, as_sides, differing_settings
from common.score.interval import Interval
from common.score.result import OVERALL, Scores

TEMPLATE = "report.html.j2"

PICTURE_WIDTH = 1200
"""Pixels that a wider picture is scaled down to."""

FIGURES = 6
"""Pictures of the last validation that are shown of an experiment."""

PICTURED = 20
"""Experiments that pictures are shown of."""

EVENTS_GB = 1.0
"""Event files larger than this together are not read for pictures."""

CELL = 300
"""Letters of a cell of a table; all of them are shown where the pointer rests."""

INK = "#123457"
"""Stands in curves for the colour of the page's text."""

SCORES_PICTURE = "scores.png"
"""In the folder of an experiment: written by `evaluate --write-readme`."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content-Security-Policy: whatever a shown file may hold, the browser asks nobody for anything."""


@dataclass(frozen=True)
class Row:
    """A run in the table of all runs."""

    name: str
    anchor: str
    """Of its experiment's section."""
    metric: str
    best: float | None
    best_epoch: int | None
    epochs: str
    """How many were trained."""
    planned: str
    """How many the settings say; "" where they are not known."""
    finished: str
    hours: float | None
    samples_per_s: float | None
    score: float | None
    began: str
    commit: str
    differs: str
    """Settings that differ from those of the experiment's other runs."""


@dataclass(frozen=True)
class Bar:
    """A class of one run."""

    name: str
    validation: float | None
    score: float | None
    interval: Interval | None


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


def report(
    experiments: Sequence[str] = (),
    *,
    root: str | Path = REPOSITORY,
    output: str | Path = "report.html",
    say: Callable[[str], None] = print,
) -> Path:
    """Write the page and return its path.

    Args:
        experiments: names, globs or folders as in `common.runs.choose`; all of `root` unless given.
        root: where the experiments are.
        output: the file of the page.
        say: takes a line to print.

    Raises:
        UserError: there is no such run, or a file of a run is broken.
        FileNotFoundError: no such root.
    """
    if not experiments and not find(root):
        raise UserError(
            f"{Path(root).resolve()}: no runs in it; "
            "train an experiment first, or write --root of one that has runs"
        )
    readings = [read(run) for run in choose(experiments or ("*",), root)]
    groups: dict[Path, list[Reading]] = {}
    for reading in readings:
        groups.setdefault(reading.run.experiment, []).append(reading)
    page = _page([ranked(group) for group in groups.values()])
    write_text(output, page)
    runs = _counted(len(readings), "run")
    from_experiments = _counted(len(groups), "experiment")
    say(f"{output}: {runs} of {from_experiments}, {talk.size(len(page.encode()))}")
    return Path(output)


def _page(groups: Sequence[Sequence[Reading]]) -> str:
    """The page; the runs of each experiment are ranked."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = []
    sections = []
    for number, group in enumerate(groups):
        anchor = f"e{number}"
        rows += _rows(group, anchor)
        sections.append(_section(group, anchor, is_pictured=number < PICTURED))
    labels = [section.label for section in sections]
    which = ", ".join(labels) if len(labels) < 4 else f"{len(labels)} experiments"
    return environment.get_template(TEMPLATE).render(
        title=f"Runs of {which}",
        policy=POLICY,
        runs=_counted(len(rows), "run"),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        rows=rows,
        sections=sections,
        cell=CELL,
        most_curves=CURVES,
        most_pictured=PICTURED,
    )


def ranked(readings: Iterable[Reading]) -> list[Reading]:
    """The best run first; runs without validation last.

    Those of the best_metric that most runs have come before the others.
    """
    readings = list(readings)
    metrics = Counter(reading.best_metric for reading in readings if reading.best is not None)
    usual = metrics.most_common(1)[0][0] if metrics else ""

    def key(reading: Reading) -> tuple[bool, bool, str, float]:
        value = reading.best_value
        badness = 0.0
        if value is not None:
            badness = value if reading.best_metric == "loss" else -value
        metric = reading.best_metric
        return value is None, bool(usual) and metric != usual, metric, badness

    return sorted(readings, key=key)


# The table of all runs


def _rows(group: Sequence[Reading], anchor: str) -> list[Row]:
    """The runs of one experiment."""
    differing = differing_settings(as_sides(group))
    rows = []
    for number, reading in enumerate(group):
        values = {name: values[number] for name, values in differing.items()}
        differs = ", ".join(f"{name} {value}" for name, value in values.items() if value)
        rows.append(_row(reading, anchor, differs))
    return rows


def _row(reading: Reading, anchor: str, differs: str) -> Row:
    scores = next(iter(reading.scores.values()), None)
    return Row(
        name=reading.name,
        anchor=anchor,
        metric=reading.best_metric,
        best=_finite(reading.best_value),
        best_epoch=reading.best_epoch,
        epochs=f"{reading.last('epoch') or 0:g}",
        planned=reading.settings.get("epochs", ""),
        finished=_finished(reading.result.finished),
        hours=_finite(reading.result.hours),
        samples_per_s=_finite(reading.last("train/samples_per_s")),
        score=_overall_scores(scores)[0][1] if scores and _overall_scores(scores) else None,
        began=_began(reading),
        commit=_commit(reading),
        differs=differs,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _finished(finished: bool | None) -> str:
    if finished is None:
        return "unknown"
    return "yes" if finished else "no"


def _overall_scores(scores: Scores) -> list[tuple[str, float]]:
    """The scores over classes that are known, by name; the one that counts first."""
    known = []
    for key in OVERALL:
        value = scores.overall(key)
        if value is not None:
            known.append((key, value))
    return known


def _began(reading: Reading) -> str:
    """When the run began; where that is not on record, when it was last written."""
    sessions = reading.record.sessions
    if sessions and sessions[0].began:
        return sessions[0].began
    return datetime.fromtimestamp(reading.run.written, UTC).isoformat()


def _commit(reading: Reading) -> str:
    """The commit, with a + where changes were not committed."""
    commit = reading.provenance.get("commit", "")[:10]
    changed = reading.provenance.get("uncommitted_changes") == "True"
    return f"{commit}+" if changed else commit


# One experiment


def _section(group: Sequence[Reading], anchor: str, is_pictured: bool) -> Section:
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
    if best.best_value is None:
        return lead
    return f"{lead}, {best.best_metric} {best.best_value:.4f} at epoch {best.best_epoch}"


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
    metric = reading.best_metric if reading.best_metric in METRICS else "dice"
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
        )
        bars.append(bar)
    if not bars:
        return None
    overall = _overall_scores(scores) if scores else []
    values = [f"{key.replace('_', ' ')} {value:.4f}" for key, value in overall]
    return Bars(
        metric=metric,
        file=file,
        note=f"{scores.metric}: {', '.join(values)}." if scores and values else "",
        classes=bars,
        has_scores=bool(scored),
        has_intervals=any(bar.interval for bar in bars),
    )


def _pictures(reading: Reading) -> Pictures:
    """The picture that `evaluate --write-readme` made, and those of the last validation."""
    shown = []
    path = reading.run.experiment / SCORES_PICTURE
    if path.is_file():
        shown.append(_picture(SCORES_PICTURE, path.read_bytes()))
    images = last_images(reading.run)
    figures = list(images.items())[:FIGURES]
    for tag, (step, content) in figures:
        shown.append(_picture(f"{tag}, iteration {step}", content))
    return Pictures(shown, figures=len(figures), available=len(images))


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
    known = {
        "date": provenance.date,
        "commit": provenance.versions.get("commit"),
        "thresholds": provenance.thresholds,
    }
    return ", ".join(f"{name} {value}" for name, value in known.items() if value)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
