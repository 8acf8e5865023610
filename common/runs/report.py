"""One HTML page about the runs of one experiment or of all.

It opens from a laptop, without a server: a table of all runs that can be sorted, and for each
experiment what is in `common.runs.section`. Curves are inline SVG, and pictures are data URIs, so
nothing is loaded from anywhere. What the page looks like is in report.html.j2, which escapes all
that comes from files.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common import talk
from common.errors import UserError
from common.files import REPOSITORY, write_text
from common.runs.choose import choose
from common.runs.curves import CURVES
from common.runs.find import find
from common.runs.reading import Reading, read_all
from common.runs.section import MARK, left_out_of, overall_scores, section_of
from common.runs.sides import as_sides, differing_settings
from common.show.figures import PANEL_WORDS

TEMPLATE = "report.html.j2"

PICTURED = 20
"""Most experiments with pictures."""

CELL = 300
"""Most letters in a cell of a table; the whole text is shown where the pointer rests."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content-Security-Policy: whatever a shown file may hold, the browser asks nobody for anything."""


@dataclass(frozen=True)
class RunRow:
    """A run in the table of all runs."""

    name: str
    anchor: str
    """Anchor of its experiment's section."""
    metric: str
    best: float | None
    best_epoch: int | None
    epochs: str
    """Number of trained epochs."""
    planned: str
    """Number of epochs in the settings; "" if not known."""
    finished: str
    hours: float | None
    samples_per_s: float | None
    score: float | None
    left_out: str
    """Sentences about a score that leaves something out, or is of other crops; "" for neither."""
    began: str
    commit: str
    differs: str
    """Settings that differ from those of the experiment's other runs."""


def report(
    experiments: Sequence[str] = (),
    *,
    root: str | Path = REPOSITORY,
    output: str | Path = "report.html",
    say: talk.Say = print,
) -> Path:
    """Write the page and return its path.

    Args:
        experiments: names, globs or folders as in `common.runs.choose`; all of `root` unless given.
        root: where the experiments are.
        output: the file of the page.
        say: takes a line to print.

    Raises:
        UserError: for an unknown run, and where none can be read.
        FileNotFoundError: without the root.
    """
    if not experiments and not find(root):
        raise UserError(
            f"{Path(root).resolve()}: no runs in it; "
            "train an experiment first, or write --root of one that has runs"
        )
    readings = read_all(choose(experiments or ("*",), root))
    if not readings:
        raise UserError(f"{Path(root).resolve()}: no run in it can be read; mend that")
    groups: dict[Path, list[Reading]] = {}
    for reading in readings:
        groups.setdefault(reading.run.experiment, []).append(reading)
    page = _page([ranked(group) for group in groups.values()])
    write_text(output, page)
    runs = talk.count(len(readings), "run")
    from_experiments = talk.count(len(groups), "experiment")
    say(f"{output}: {runs} of {from_experiments}, {talk.size(len(page.encode()))}")
    return Path(output)


def _page(groups: Sequence[Sequence[Reading]]) -> str:
    """Return the HTML page. groups: the ranked runs of each experiment."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = []
    sections = []
    usual = usual_scores(itertools.chain.from_iterable(groups))
    for number, group in enumerate(groups):
        anchor = f"e{number}"
        rows += _rows(group, anchor, usual)
        sections.append(section_of(group, anchor, is_pictured=number < PICTURED))
    labels = [section.label for section in sections]
    experiments = ", ".join(labels) if len(labels) < 4 else f"{len(labels)} experiments"
    return environment.get_template(TEMPLATE).render(
        title=f"Runs of {experiments}",
        policy=POLICY,
        runs=talk.count(len(rows), "run"),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        rows=rows,
        sections=sections,
        cell=CELL,
        most_curves=CURVES,
        most_pictured=PICTURED,
        mark=MARK,
        reading_panels=PANEL_WORDS,
    )


def ranked(readings: Iterable[Reading]) -> list[Reading]:
    """Return the runs of an experiment, the best first; runs without validation are last.

    Those of the best_metric that most runs have come before the others. Of equal ones that is first
    of which the challenge's score left out less, see `Reading.left_out`.
    """
    readings = list(readings)
    metrics = Counter(reading.best_metric for reading in readings if reading.best is not None)
    usual = metrics.most_common(1)[0][0] if metrics else ""

    def key(reading: Reading) -> tuple[bool, bool, str, float, int]:
        value = reading.best_value
        badness = 0.0
        if value is not None:
            badness = value if reading.best_metric == "loss" else -value
        metric = reading.best_metric
        is_other_metric = bool(usual) and metric != usual
        return value is None, is_other_metric, metric, badness, reading.left_out

    return sorted(readings, key=key)


# The table of all runs


def usual_scores(readings: Iterable[Reading]) -> str:
    """Return the file of scores that most runs have, scores.json before others; "" without any."""
    files: Counter[str] = Counter()
    for reading in readings:
        files.update(list(reading.scores))
    return max(files, key=lambda file: (file == "scores.json", files[file]), default="")


def _rows(group: Sequence[Reading], anchor: str, usual: str) -> list[RunRow]:
    """Return the rows of one experiment. usual: the file that `usual_scores` returned."""
    differing = differing_settings(as_sides(group))
    rows = []
    for number, reading in enumerate(group):
        values = {name: values[number] for name, values in differing.items()}
        differs = ", ".join(f"{name} {value}" for name, value in values.items() if value)
        rows.append(_row(reading, anchor, differs, usual))
    return rows


def _row(reading: Reading, anchor: str, differs: str, usual: str) -> RunRow:
    file = usual if usual in reading.scores else next(iter(reading.scores), "")
    scores = reading.scores.get(file)
    overall = overall_scores(scores) if scores else []
    doubts = [_of_other_crops(file, usual), left_out_of(scores) if scores else ""]
    return RunRow(
        name=reading.name,
        anchor=anchor,
        metric=reading.best_metric,
        best=_finite(reading.best_value),
        best_epoch=reading.best_epoch,
        epochs=f"{reading.last('epoch') or 0:g}",
        planned=reading.record.settings.get("epochs", ""),
        finished=_finished(reading.record.result.finished),
        hours=_finite(reading.record.result.hours),
        samples_per_s=_finite(reading.last("train/samples_per_s")),
        score=overall[0][1] if overall else None,
        left_out=" ".join(filter(None, doubts)),
        began=_began(reading),
        commit=_commit(reading),
        differs=differs,
    )


def _of_other_crops(file: str, usual: str) -> str:
    """A sentence about scores of another file than most runs have; "" where it is that file."""
    if file in ("", usual):
        return ""
    return f"This score is of {file}, and those of other runs are of {usual}."


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _finished(finished: bool | None) -> str:
    if finished is None:
        return "unknown"
    return "yes" if finished else "no"


def _began(reading: Reading) -> str:
    """Return when the run began; if that is not on record, when it was last written."""
    sessions = reading.record.sessions
    if sessions and sessions[0].began:
        return sessions[0].began
    return datetime.fromtimestamp(reading.run.written, UTC).isoformat()


def _commit(reading: Reading) -> str:
    """Return the commit, with a + if there were uncommitted changes."""
    commit = reading.record.provenance.get("commit", "")[:10]
    changed = reading.record.provenance.get("uncommitted_changes") == "True"
    return f"{commit}+" if changed else commit
