"""A comparison as text: a verdict in one line, and tables for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from common.runs.comparison import Comparison, Lead
from common.runs.measure import SCORE
from common.score.interval import Interval
from common.score.tables import WIDTH
from common.talk import aligned, count

COLUMNS = 5
"""Most sides in the tables of settings and classes: more do not fit in a terminal."""

ROWS = 40
"""Most sides in the list of all."""

VALUE_WIDTH = 18
"""Most letters of a setting in the table."""

CHANCE = "no difference that could be told from chance"


# The verdict


def verdict(comparison: Comparison) -> str:
    """Return a line: which is better, by how much, how sure that is, and in what they differ."""
    line = _who_leads(comparison)
    if any(len(standing.runs) == 1 for standing in comparison.standings):
        line += "; what another seed would change is not in it"
    if comparison.settings:
        line += f"; they differ in {_listed(list(comparison.settings), 8)}"
    else:
        line += "; their settings are equal or not known"
    best = comparison.standings[0]
    if best.left_out:
        line += (
            f"; the metric left out {best.left_out} of {best.name}'s classes in crops, for too "
            "many objects"
        )
    if comparison.warnings:
        number = len(comparison.warnings)
        line += f"; mind the {count(number, 'warning') if number > 1 else 'warning'}"
    return line


def _who_leads(comparison: Comparison) -> str:
    leads = comparison.leads
    basis = _listed(list(dict.fromkeys(lead.basis for lead in leads)), 2)
    metric = comparison.metric
    best = comparison.standings[0]
    if len(leads) == 1:
        ahead = f"{_by(leads[0], comparison, '95 % ')}, {basis}"
        if leads[0].is_sure:
            return f"{best.name} is better than {ahead}"
        return f"{CHANCE}: {best.name} is ahead of {ahead}"
    level = f"95 % for all {len(leads)} comparisons together"
    value = f"{best.value:.3f} {metric}"
    sure = [lead for lead in leads if lead.is_sure]
    if not sure:
        return f"{CHANCE}: {best.name} is ahead with {value} ({level}, {basis})"
    better_than = _listed([_by(lead, comparison) for lead in sure])
    line = f"{best.name} is best with {value}, better than {better_than}"
    unsure = [lead.other for lead in leads if not lead.is_sure]
    if unsure:
        line += f"; no difference from {_listed(unsure)} that could be told from chance"
    return f"{line} ({level}, {basis})"


def _by(lead: Lead, comparison: Comparison, level: str = "") -> str:
    """Return the name of the other side, how far it is behind, and the interval of that."""
    interval = "no interval: too few to judge by"
    if lead.interval:
        interval = f"{level}{lead.interval[0]:.3f} to {lead.interval[1]:.3f}"
    counted = f"{lead.better_in} of {len(comparison.classes)} classes"
    return f"{lead.other} by {lead.difference:.3f} {comparison.metric} ({interval}, {counted})"


def _listed(items: Sequence[str], most: int = 4) -> str:
    """Return 'a, b and c'; beyond the first `most` items only how many there are."""
    shown = list(items[:most])
    if len(items) > most:
        shown.append(f"{len(items) - most} more")
    if len(shown) < 2:
        return "".join(shown)
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


# The tables


def terminal(comparison: Comparison) -> str:
    """Return sides, settings in which they differ, classes, warnings and verdict as text."""
    parts = [_standings(comparison)]
    if comparison.settings or comparison.provenance:
        parts.append(_differences(comparison))
    parts.append(_classes(comparison))
    if comparison.warnings:
        wrapper = textwrap.TextWrapper(WIDTH, subsequent_indent="  ", break_long_words=False)
        parts.append("\n".join(wrapper.fill(f"warning: {text}") for text in comparison.warnings))
    return "\n\n".join([*parts, verdict(comparison)])


def _standings(comparison: Comparison) -> str:
    """Return a line for each side: its value, and how far it is behind the best."""
    is_spread = any(standing.spread is not None for standing in comparison.standings)
    rows = [["", "run", comparison.metric, "+- seeds", "epoch", "behind", "95 %"]]
    leads = [None, *comparison.leads]
    pairs = zip(comparison.standings, leads, strict=True)
    for number, (standing, lead) in enumerate(pairs, 1):
        epochs = dict.fromkeys(str(epoch) for epoch in standing.best_epoch)
        rows.append(
            [
                str(number),
                standing.name,
                _figure(standing.value),
                _figure(standing.spread),
                ", ".join(epochs),
                _figure(lead.difference) if lead else "",
                _between(lead.interval) if lead else "",
            ]
        )
    # without seeds the column is empty
    if not is_spread:
        for row in rows:
            del row[3]
    text = "\n".join(aligned(rows[: 1 + ROWS], left=2))
    if len(comparison.standings) > ROWS:
        text += f"\n{len(comparison.standings) - ROWS} runs behind these are not listed"
    return text


def _differences(comparison: Comparison) -> str:
    """Return a table of the settings and versions in which the first COLUMNS sides differ."""
    rows = [["", *_numbers(comparison)]]
    for name, values in (comparison.settings | comparison.provenance).items():
        rows.append([name, *(cut(value, VALUE_WIDTH) for value in values[:COLUMNS])])
    return "\n".join(["differ in", *aligned(rows, left=1)])


def _classes(comparison: Comparison) -> str:
    """Return a table of the values of each class on the first COLUMNS sides."""
    source = "at the best epoch" if comparison.of_validation else comparison.source
    over = "score" if comparison.metric == SCORE else "mean"
    title = f"{comparison.metric} of each class, {source}"
    title += f"; above is the {over} over these {len(comparison.classes)}"
    if len(comparison.standings) > COLUMNS:
        title += f"; the best {COLUMNS} runs"
    rows = [["class", *_numbers(comparison), "1 - 2", "95 %"]]
    for name, figures in comparison.classes.items():
        values = [_figure(value) for value in figures.values[:COLUMNS]]
        rows.append([name, *values, _figure(figures.difference), _between(figures.interval)])
    return "\n".join([f"{title}; intervals for one class alone", *aligned(rows, left=1)])


def _numbers(comparison: Comparison) -> list[str]:
    """Return the numbers of the first COLUMNS sides, as heads of columns."""
    return [str(number) for number, _ in enumerate(comparison.standings[:COLUMNS], 1)]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _between(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def cut(text: str, length: int) -> str:
    """Return a text, cut to a length with … at its end if it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"
