"""Write the scores of an experiment, with a picture, into its README between two markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.config.settings import TrainConfig
from common.data.splits.regions import Region
from common.data.volumes.records import at_epoch
from common.errors import UserError
from common.files import from_repository, is_file, replacing
from common.score.result import Asked, Checkpoint, Provenance, Scores
from common.score.tables import OVERALL_NAMES, overall, remarks, tables
from common.show import montage
from common.talk import Say, command_line, some

BEGIN = "<!-- scores: written by `evaluate --write-readme` -->"
END = "<!-- end of scores -->"
PICTURE = "scores.png"

PICTURED = 2
"""Most crops in the picture."""

LISTED = 12
"""Most crops that are named; a README with 41 names would say little else."""


def check(config: TrainConfig) -> None:
    """Raise UserError if writing scores into the README would destroy text of it."""
    _around_scores(config.folder / "README.md")


def write_scores(
    config: TrainConfig,
    boxes: Sequence[Region],
    scores: Scores,
    say: Say = print,
) -> Path:
    """Write the scores and a picture of the first crops into the README; return its path.

    What stands between the markers is replaced; a README without markers gets them at its end.
    Raises UserError if only one of them is there.
    """
    path = config.folder / "README.md"
    before, after = _around_scores(path)
    picture = config.folder / PICTURE
    montage.write_crops(picture, config, boxes[:PICTURED], tuple(scores.classes), say=say)
    text = f"{before}{BEGIN}\n{markdown(config, boxes, scores)}\n{END}{after}"
    with replacing(path) as temporary:
        # no newline translation: line ends of the rest stay as they are
        temporary.write_bytes(text.encode())
    return path


def markdown(config: TrainConfig, boxes: Sequence[Region], scores: Scores) -> str:
    """Return the section: what was scored and how, scores over classes, of each class, picture."""
    picture = f"![raw, truth, predictions and processed volumes]({PICTURE})"
    lines = [_lead(config, boxes, scores), "", *markdown_scores(scores), "", picture]
    return "\n".join(lines)


def markdown_scores(scores: Scores) -> list[str]:
    """Return the lines of the tables (over classes, of each kind of class) and the remarks."""
    names = list(OVERALL_NAMES.values())
    lines = markdown_table(names, [[overall(scores, key) for key in OVERALL_NAMES]])
    for table in tables(scores):
        title = table.title[0].upper() + table.title[1:]
        lines += ["", f"{title}.", "", *markdown_table(table.head, table.rows)]
    return [*lines, "", " ".join(remarks(scores))]


def command(config: TrainConfig, asked: Asked) -> str:
    """Return the command for the same result, without overrides that name places."""
    # places differ from machine to machine, and may name who owns it
    kept = [text for text in asked.overrides if "_path" not in text.partition("=")[0]]
    return command_line(
        "evaluate",
        from_repository(config.folder),
        crops=asked.crops,
        classes=",".join(asked.classes) or None,
        set=kept,
        write_readme=True,
    )


def _lead(config: TrainConfig, boxes: Sequence[Region], scores: Scores) -> str:
    """Return a paragraph: command, date, run, checkpoints, commit, crops and thresholds."""
    asked = scores.asked
    about = scores.provenance
    assert asked is not None and about is not None, "scores of a submission have no README"
    versions = about.versions
    changed = " with uncommitted changes" if versions.get("uncommitted_changes") == "True" else ""
    crops = some([str(box) for box in boxes], LISTED)
    return (
        f"`{command(config, asked)}`, {about.date[:10]}, run {about.run_name}, "
        f"{_checkpoints(about.checkpoints or ())}; "
        f"commit {versions['commit'][:10]}{changed}, torch {versions['torch']}. "
        f"Crops: {crops}. Thresholds: {_thresholds(about)}."
    )


def _thresholds(about: Provenance) -> str:
    """Return thresholds in words: by class where they are not 0.5, then the others."""
    known = {name: value for name, value in (about.thresholds or {}).items() if value is not None}
    if not known:
        return "not on record"
    others = {name: value for name, value in known.items() if value != 0.5}
    texts = [f"{name} {value:g}" for name, value in others.items()]
    if len(others) < len(known):
        texts.append("0.5 for the others" if others else "0.5")
    return ", ".join(texts)


def _checkpoints(checkpoints: Sequence[Checkpoint]) -> str:
    texts = []
    for checkpoint in checkpoints:
        if checkpoint.sha256:
            digest = checkpoint.sha256[:12]
            texts.append(f"{at_epoch(checkpoint.epoch, checkpoint.metric)}, SHA-256 {digest}")
    # volumes that another program wrote say nothing
    return f"checkpoint of {'; '.join(texts)}" if texts else "checkpoint not on record"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _around_scores(path: Path) -> tuple[str, str]:
    """Return the text before and after the section of the scores, line ends unchanged.

    Raises UserError for a README that is not UTF-8, or whose markers are not one pair in order.
    """
    if not is_file(path):
        return f"# {path.parent.name}\n\n## Scores\n\n", "\n"
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: no text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    begin = text.find(BEGIN)
    end = text.find(END)
    if begin < 0 and end < 0:
        # at the end: what stands first in a README is the author's choice
        return f"{text.rstrip()}\n\n## Scores\n\n", "\n"
    is_whole = text.count(BEGIN) == text.count(END) == 1 and begin < end
    if not is_whole:
        raise UserError(
            f"{path}: '{BEGIN}' and '{END}' must stand there once, in this order; "
            "put them back, or remove both"
        )
    return text[:begin], text[end + len(END) :]
