"""One HTML page about the runs of one experiment or of all: it holds everything that it shows, and opens from a laptop.

A table of all runs that can be sorted; for each experiment curves, bars of each class, pictures, settings and provenance. Nothing is
loaded from anywhere: curves are inline SVG, pictures data URIs, and the page forbids the browser to ask for more.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from common.config.settings import TrainConfig
from common.errors import UserError
from common.files import REPOSITORY
from common.runs import compare, events, find
from common.runs.compare import CURVES, METRICS, Reading

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

STYLE = """
:root { color-scheme: light dark; --line: #8886; --bar: #4c8dd6; --second: #e0913a; --soft: #8882; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1250px; padding: 1rem; }
h2 { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1rem; }
.wide { overflow-x: auto; }
.wide > svg { height: auto; min-width: 680px; width: 100%; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
tbody tr:nth-child(even) { background: var(--soft); }
th button { all: unset; cursor: pointer; font-weight: 600; white-space: nowrap; }
th button:focus-visible { outline: 2px solid var(--bar); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.sortable td:not(.text) { white-space: nowrap; }
td.text { overflow-wrap: anywhere; min-width: 15rem; max-width: 32rem; }
td.bar { min-width: 11rem; }
.bar i { background: var(--bar); display: inline-block; height: .75em; margin-left: .5rem; width: calc(7rem * var(--share)); }
.bar.second i { background: var(--second); }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; max-width: 100%; }
img { height: auto; image-rendering: auto; max-width: 100%; }
figcaption, .note { color: color-mix(in srgb, currentColor 70%, transparent); font-size: 13px; }
""".strip()

SORT = """
for (const table of document.querySelectorAll("table.sortable"))
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("th");
    if (!head) return;
    const down = head.getAttribute("aria-sort") === "ascending", column = head.cellIndex;
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
      : (isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b) * (down ? -1 : 1);
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b))));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  });
""".strip()

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content-Security-Policy: whatever a file that is shown may hold, the browser asks nobody for anything."""


def report(
    experiments: Sequence[str] = (),
    *,
    root: str | Path = REPOSITORY,
    output: str | Path = "report.html",
    say: Callable[[str], None] = print,
) -> Path:
    """Write the page; gives its path. experiments: names, globs or folders as in `common.runs.compare.choose`; all of `root` unless given.

    Raises ValueError or FileNotFoundError where there is no run, or a file of a run is broken.
    """
    if not experiments and not find.find(root):
        raise UserError(
            f"{Path(root).resolve()}: no runs in it; train an experiment first, or write --root of one that has runs"
        )
    readings = [compare.read(run) for run in compare.choose(experiments or ("*",), root)]
    groups: dict[Path, list[Reading]] = {}
    for one in readings:
        groups.setdefault(one.run.experiment, []).append(one)
    groups = {folder: ranked(members) for folder, members in groups.items()}
    title = "Runs of " + (
        ", ".join(_label(members) for members in groups.values())
        if len(groups) < 4
        else f"{len(groups)} experiments"
    )
    sections = [
        section(f"e{number}", members, number < PICTURED)
        for number, members in enumerate(groups.values())
    ]
    page = "\n".join(
        [
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{STYLE}\n</style></head><body>',
            f"<h1>{escape(title)}</h1>",
            f"<p>{_counted(len(readings), 'run')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. A click on a column sorts by it.</p>",
            overview(groups),
            *sections,
            f"<script>\n{SORT}\n</script></body></html>\n",
        ]
    )
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    say(
        f"{path}: {_counted(len(readings), 'run')} of {_counted(len(groups), 'experiment')}, {len(page.encode()) / 1e6:.1f} MB"
    )
    return path


def ranked(readings: Iterable[Reading]) -> list[Reading]:
    """The best first: those by the best_metric that most have, then the others, then those without validation."""
    readings = list(readings)
    usual = Counter(one.best_metric for one in readings if one.best is not None).most_common(1)
    sign = {"loss": 1}

    def key(one: Reading) -> tuple:
        value = best_value(one)
        return (
            value is None,
            bool(usual) and one.best_metric != usual[0][0],
            one.best_metric,
            (value or 0) * sign.get(one.best_metric, -1),
        )

    return sorted(readings, key=key)


def best_value(one: Reading) -> float | None:
    """The best_metric at the best epoch; None without validation."""
    return None if one.best is None else float(one.best[f"validation/{one.best_metric}"])


def overview(groups: dict[Path, list[Reading]]) -> str:
    """The table of all runs; its names lead to the experiment."""
    heads = (
        "run",
        "metric",
        "best",
        "at epoch",
        "epochs",
        "finished",
        "hours",
        "samples/s",
        "score",
        "date",
        "commit",
        "settings that differ",
    )
    rows = []
    for number, members in enumerate(groups.values()):
        differing = compare.differing(compare.as_sides(members))
        for at, one in enumerate(members):
            differs = ", ".join(
                f"{name} {values[at]}" for name, values in differing.items() if values[at]
            )
            rows.append(_cells_of(one, f"e{number}", differs))
    return _table(heads, rows, "sortable")


def _cells_of(one: Reading, anchor: str, differs: str) -> list[str]:
    result, sessions = one.result, one.record.get("sessions") or [{}]
    epochs, planned = f"{_last(one, 'epoch') or 0:g}", one.settings.get("epochs")
    commit = str(one.provenance.get("commit") or "")[:10] + (
        "+" if one.provenance.get("uncommitted_changes") == "True" else ""
    )
    began = (
        str(sessions[0].get("began") or "")
        or datetime.fromtimestamp(one.run.written, UTC).isoformat()
    )
    finished = {True: "yes", False: "no"}.get(result.get("finished"), "unknown")  # type: ignore[arg-type]
    scores = next(iter(_scores(one).values()), {})
    return [
        f'<td data-value="{escape(one.name)}"><a href="#{anchor}">{escape(one.name)}</a></td>',
        f"<td>{escape(one.best_metric)}</td>",
        _number(best_value(one), 4),
        _number(one.best_epoch, 0),
        f'<td class="number" data-value="{epochs}">{epochs}{escape(f" of {planned}") if planned else ""}</td>',
        f"<td>{finished}</td>",
        _number(result.get("hours"), 2),
        _number(_last(one, "train/samples_per_s"), 1),
        _number(
            next((scores[key] for key in compare.OVERALL if scores.get(key) is not None), None), 4
        ),
        f'<td data-value="{escape(began)}">{escape(began[:10])}</td>',
        f"<td>{escape(commit)}</td>",
        _text(differs),
    ]


def section(anchor: str, members: Sequence[Reading], pictured: bool) -> str:
    """All about one experiment, whose best run comes first."""
    best = members[0]
    value = best_value(best)
    lead = f"Best of {len(members)} runs: {best.name}" if len(members) > 1 else best.name
    if value is not None:
        lead += f", {best.best_metric} {value:.4f} at epoch {best.best_epoch}"
    parts = [
        f'<section id="{anchor}"><h2>{escape(_label(members))}</h2>\n<p>{escape(lead)}</p>',
        curves(members),
        bars(best),
    ]
    if pictured:
        parts.append(pictures(best))
    else:
        parts.append(f'<p class="note">Pictures are shown of the first {PICTURED} experiments.</p>')
    return "\n".join([*filter(None, parts), settings(best), provenance(best), "</section>"])


def curves(members: Sequence[Reading]) -> str:
    """SVG of the best CURVES runs, in the colour of the page's text."""
    drawn = [one for one in members if len(one.history)][:CURVES]
    if not drawn:
        return '<p class="note">Nothing is logged yet.</p>'
    svg = compare.render(
        compare.curves(compare.as_sides(drawn), members[0].best_metric, INK), "svg"
    ).decode()
    svg = re.sub(
        r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :].replace(INK, "currentColor")
    )  # ids that each picture has
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        r'<svg \1 role="img" aria-label="curves">',
        svg,
        count=1,
    )
    note = (
        f'<p class="note">The best {CURVES} of {len(members)} runs.</p>'
        if len(members) > CURVES
        else ""
    )
    return f'<h3>Curves</h3>\n{note}<div class="wide">{svg}</div>'


def bars(one: Reading) -> str:
    """A line a class: the metric of the validation, and the challenge's score where the run is scored."""
    metric = one.best_metric if one.best_metric in METRICS else "dice"
    validation, (file, scores) = one.per_class(metric), next(iter(_scores(one).items()), ("", {}))
    scored = scores.get("classes") or {}
    classes = list(dict.fromkeys([*validation, *scored]))
    if not classes:
        return ""
    intervals = any(found.get("interval_95") for found in scored.values())
    heads = [
        "class",
        f"{metric} at the best epoch",
        *[f"score in {file}"] * bool(scored),
        *["95 % interval"] * intervals,
    ]
    rows = []
    for name in classes:
        found = scored.get(name) or {}
        cells = [_bar(found.get("score"), "second")] * bool(scored) + [
            _interval(found.get("interval_95"))
        ] * intervals
        rows.append([f"<td>{escape(name)}</td>", _bar(validation.get(name)), *cells])
    overall = ", ".join(
        f"{key.replace('_', ' ')} {scores[key]:.4f}"
        for key in compare.OVERALL
        if scores.get(key) is not None
    )
    said = (
        f'<p class="note">{escape(str(scores.get("metric", "")))}: {escape(overall)}.</p>'
        if overall
        else ""
    )
    return f"<h3>Classes</h3>\n{said}{_table(heads, rows, 'sortable')}"


def pictures(one: Reading) -> str:
    """The picture that `evaluate --write-readme` made, and those of the last validation, scaled down."""
    found = []
    path = one.run.experiment / SCORES_PICTURE
    if path.is_file():
        found.append((SCORES_PICTURE, path.read_bytes()))
    figures = last_images(one.run)
    shown = list(figures.items())[:FIGURES]
    found += [(f"{tag}, iteration {step}", data) for tag, (step, data) in shown]
    drawn = [_figure(caption, data) for caption, data in found]
    note = f'<p class="note">{len(shown)} of the {len(figures)} pictures of the last validation; TensorBoard has all.</p>'
    note *= len(figures) > FIGURES
    return f"<h3>Samples</h3>\n{note}{''.join(drawn)}" if drawn else ""


def last_images(run: find.Run) -> dict[str, tuple[int, bytes]]:
    """By tag, the step and the file of the last image in a run's events; nothing of a run whose events are too large."""
    found: dict[str, tuple[int, bytes]] = {}
    for file in events.in_order(run.events) if run.size <= EVENTS_GB * 1e9 else ():
        try:
            for _, event in events.read_events(file):
                values = [value for value in event.summary.value if value.HasField("image")]
                found |= {
                    value.tag: (event.step, value.image.encoded_image_string) for value in values
                }
        except events.Damaged as damage:
            find.say(str(damage))
    return dict(sorted(found.items()))


def settings(one: Reading) -> str:
    """The settings that differ from their defaults; the others, and those that say where things are, behind a click."""
    if not one.settings:
        return '<p class="note">The settings of this run are not known.</p>'
    usual = defaults()
    rows = [
        [f"<td>{escape(name)}</td>", _text(str(value)), _text(usual.get(name, ""))]
        for name, value in one.settings.items()
    ]
    changed = [
        one.settings[name] != usual.get(name) and name not in compare.NAMES for name in one.settings
    ]
    first = _table(
        ("setting", "value", "default"),
        [row for row, is_changed in zip(rows, changed, strict=True) if is_changed],
    )
    others = _table(
        ("setting", "value"),
        [row[:2] for row, is_changed in zip(rows, changed, strict=True) if not is_changed],
    )
    summary = f"<summary>{len(rows) - sum(changed)} settings at their defaults, or names and paths</summary>"
    return f"<h3>Settings</h3>\n{first}\n<details>{summary}{others}</details>"


def defaults() -> dict[str, str]:
    """Each setting's default as runs record it; of those that have none an empty one."""
    required = [
        f.name for f in fields(TrainConfig) if f.default is MISSING and f.default_factory is MISSING
    ]
    return TrainConfig(**dict.fromkeys(required)).record() | dict.fromkeys(required, "")  # type: ignore[arg-type]


def provenance(one: Reading) -> str:
    """What the best checkpoint is, and what made it."""
    checkpoints = one.run.experiment / "checkpoints" / one.run.folder.relative_to(one.run.logs)
    path = next(
        (path for path in (checkpoints / "best.pt", checkpoints / "latest.pt") if path.is_file()),
        None,
    )
    sessions = one.record.get("sessions") or []
    known: dict[str, Any] = {
        "checkpoint": f"{path.relative_to(one.run.experiment)}, {path.stat().st_size / 1e6:.1f} MB"
        if path
        else "none found",
        "epoch of the best": one.best_epoch,
        "logs": one.run.folder.relative_to(one.run.experiment),
        **one.provenance,
        "began": sessions[0].get("began") if sessions else None,
        "ended": sessions[-1].get("ended") if sessions else None,
        "sessions": len(sessions) or None,
    }
    for file, scores in _scores(one).items():
        made = scores.get("provenance") or {}
        known[file] = ", ".join(
            f"{key} {made[key]}" for key in ("date", "commit", "thresholds") if made.get(key)
        )
    rows = [
        [f"<td>{escape(str(name))}</td>", _text(str(value))]
        for name, value in known.items()
        if value is not None
    ]
    return "<h3>Provenance</h3>\n" + _table(("", ""), rows)


def _scores(one: Reading) -> dict[str, dict[str, Any]]:
    """The files of `evaluate` by name, that of the validation crops first."""
    return dict(sorted(one.scores.items(), key=lambda item: (item[0] != "scores.json", item[0])))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _label(members: Sequence[Reading]) -> str:
    return members[0].name.split("/")[0]


def _last(one: Reading, column: str) -> float | None:
    """The last known value of a column of the history."""
    values = one.history[column].dropna() if column in one.history else []
    return values.iloc[-1] if len(values) else None


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Rows are cells of HTML."""
    cells = "".join(
        f"<th><button>{escape(head)}</button></th>" if kind else f"<th>{escape(head)}</th>"
        for head in heads
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _number(value: float | None, digits: int) -> str:
    """A cell that sorts by its value; empty where it is not known."""
    if value is None or not math.isfinite(value):
        return '<td class="number" data-value=""></td>'
    return f'<td class="number" data-value="{float(value)}">{value:.{digits}f}</td>'


def _bar(value: float | None, kind: str = "") -> str:
    if value is None:
        return '<td class="bar" data-value=""></td>'
    return f'<td class="bar {kind}" data-value="{value}">{value:.3f}<i style="--share: {min(max(value, 0), 1):.3f}"></i></td>'


def _interval(interval: Sequence[float] | None) -> str:
    return (
        f'<td data-value="{interval[0]}">{interval[0]:.3f} to {interval[1]:.3f}</td>'
        if interval
        else '<td data-value=""></td>'
    )


def _text(text: str) -> str:
    short = text if len(text) <= CELL else text[: CELL - 1] + "…"
    title = f' title="{escape(text)}"' if short != text else ""
    return f'<td class="text"{title}>{escape(short)}</td>'


def _figure(caption: str, data: bytes) -> str:
    """A picture as a data URI, not wider than PICTURE_WIDTH; a line of text where it cannot be read."""
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        return f'<p class="note">{escape(caption)}: cannot be read ({escape(str(error))})</p>'
    if image.width > PICTURE_WIDTH:
        image = image.resize(
            (PICTURE_WIDTH, round(image.height * PICTURE_WIDTH / image.width)),
            Image.Resampling.LANCZOS,
        )
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
    picture = f'<img src="{source}" width="{image.width}" height="{image.height}" alt="{escape(caption)}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
