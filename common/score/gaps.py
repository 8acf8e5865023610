"""Volumes of the manifest that a submission lacks, and what the score counts for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.data.splits.manifest import Entry
from common.talk import aligned

NOT_PROCESSED = "not processed"
UNREADABLE = "half-written or unreadable"
STALE = "would be made otherwise now"
TOO_SMALL = "does not cover the crop"
MISSING = "missing"

LISTED = 8
"""Most volumes that are told in a sentence each; more are told as a table."""


@dataclass(frozen=True)
class Gap:
    """A volume that cannot be packed, or that a submission lacks."""

    entry: Entry
    reason: str
    """A few words: one of the constants of this module."""
    sentence: str
    """The path of the volume, what is wrong, and what to do."""


def sentences(gaps: Sequence[Gap], entries: Sequence[Entry]) -> list[str]:
    """Return a sentence for each gap; for more than LISTED a table, and a sentence a reason."""
    if len(gaps) <= LISTED:
        return [f"{gap.entry.path}: {gap.sentence}" for gap in gaps]
    lines = [f"{len(gaps)} of {len(entries)} volumes:", *table(gaps, entries)]
    examples = {gap.reason: gap for gap in reversed(gaps)}
    for reason, gap in examples.items():
        lines.append(f"{reason}, for one {gap.entry.path}: {gap.sentence}")
    return lines


def table(gaps: Sequence[Gap], entries: Sequence[Entry]) -> list[str]:
    """Return the lines of a table: a head, then the classes of each crop and reason."""
    classes: dict[tuple[str, str], list[str]] = {}
    for gap in gaps:
        classes.setdefault((gap.entry.crop, gap.reason), []).append(gap.entry.name)
    rows = [("crop", "volumes", "why", "classes")]
    for (crop, reason), names in classes.items():
        of_crop = sum(entry.crop == crop for entry in entries)
        listed = "all" if len(names) == of_crop else ", ".join(sorted(names))
        rows.append((crop, f"{len(names)} of {of_crop}", reason, listed))
    return [f"  {line}" for line in aligned(rows)]


def consequences(gaps: Sequence[Gap], entries: Sequence[Entry]) -> list[str]:
    """Return sentences about what the challenge's score counts for volumes not submitted."""
    lacking = {gap.entry for gap in gaps}
    submitted = {entry.name for entry in entries if entry not in lacking}
    absent = sorted({entry.name for entry in lacking} - submitted)
    texts = [
        "the score counts each of them as missing: of an instance class all objects of the crop "
        "are missed, at distance term 0; of a semantic class every voxel of the crop is missed, "
        "background too"
    ]
    if absent:
        texts.append(f"in no crop, so with class score 0: {', '.join(absent)}")
    return texts
