"""Reads TensorBoard's event files, several of a resumed run as one."""

from __future__ import annotations

import math
import mmap
import struct
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from pathlib import Path

import google_crc32c
import numpy as np
import pandas as pd
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_ndarray

from common.runs.find import Run, say

CHUNK = 100_000
"""Scalars in memory at a time."""


def scalars(run: Run, tags: Sequence[str] = ("*",)) -> Iterator[pd.DataFrame]:
    """The scalars of a run whose tag matches one of the globs, at most CHUNK in a frame: tag, step, wall_time (s), value.

    Superseded steps are left out (see Cuts), so that steps of a tag increase; a tag of a subfolder, which TensorBoard shows as a run
    of its own, begins with its name. Damage is named on standard error, and read up to. Reads every file twice, so that memory is
    bounded; what is written meanwhile is not read. `pd.concat(scalars(run))` has all.
    """
    for folder, files in events_by_folder(run).items():
        prefix = "".join(f"{part}/" for part in folder.relative_to(run.folder).parts)
        wanted = cache(
            lambda tag, prefix=prefix: any(fnmatchcase(prefix + tag, pattern) for pattern in tags)
        )
        found, rows = survey(files, run.renames), []
        for event in surviving(found, run.renames):
            for value in event.summary.value:
                tag = value.tag
                if wanted(tag) and (number := scalar(value, found.metadata.get(tag))) is not None:
                    rows.append((tag, event.step, event.wall_time, number))
            if len(rows) >= CHUNK:
                yield _frame(rows, prefix)
                rows = []
        if rows:
            yield _frame(rows, prefix)


def _frame(rows: list[tuple[str, int, float, float]], prefix: str) -> pd.DataFrame:
    tag, step, wall_time, value = zip(*rows, strict=True)
    names = {name: code for code, name in enumerate(dict.fromkeys(tag))}
    codes = np.fromiter((names[name] for name in tag), np.int32, len(tag))
    tags = pd.Categorical.from_codes(codes, categories=[prefix + name for name in names])
    return pd.DataFrame(
        {
            "tag": tags,
            "step": np.array(step, np.int64),
            "wall_time": np.array(wall_time),
            "value": np.array(value),
        }
    )


def events_by_folder(run: Run) -> dict[Path, list[Path]]:
    """The event files of a run in its own folder, and in each below it: TensorBoard shows the folders as runs."""
    folders = defaultdict(list)
    for file in run.events:
        folders[file.parent].append(file)
    return folders


class Cuts:
    """Which logged values a later one supersedes.

    A value supersedes those of its tag that stand before it at its step or beyond, as in TensorBoard's data server: so a run that
    was resumed, in whatever file, is one curve. A START event (purge_step of a SummaryWriter) supersedes values of all tags.
    Memory is bounded by the number of tags and of restarts.
    """

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.cuts: dict[str | None, deque[tuple[int, int]]] = {}

    def note(self, number: int, tag: str, step: int) -> None:
        """Take a value of event `number` into account; events are numbered as they are read."""
        if step <= self.last.get(tag, step - 1):
            self.cut(number, tag, step)
        self.last[tag] = step

    def cut(self, number: int, tag: str | None, step: int) -> None:
        """Supersede the values of a tag, or of all, before event `number` at `step` or beyond."""
        cuts = self.cuts.setdefault(tag, deque())
        while cuts and cuts[-1][1] >= step:  # it removes nothing that the new cut does not remove
            cuts.pop()
        cuts.append((number, step))

    def survives(self, number: int, tag: str, step: int) -> bool:
        """Whether nothing supersedes this value. To be asked in the order of events, when all have been noted."""
        for key in (tag, None):
            if cuts := self.cuts.get(key):
                while cuts and cuts[0][0] <= number:
                    cuts.popleft()
                if not cuts:
                    del self.cuts[key]
                elif step >= cuts[0][1]:
                    return False
        return True


@dataclass(frozen=True)
class Survey:
    """What has to be known of event files before they can be read as one."""

    ends: dict[Path, int]
    """How many bytes of each file can be read; the files in their order in time."""
    cuts: Cuts
    metadata: dict[str, SummaryMetadata]
    """Of each tag; writers give it with the first value alone, which may be superseded."""


def survey(files: Iterable[Path], renames: Mapping[str, str]) -> Survey:
    """Read the event files of one folder to their end, or up to damage, which is named on standard error."""
    found = Survey({}, Cuts(), {})
    number = 0
    for file in in_order(files):
        found.ends[file] = 0
        try:
            for end, event in read_events(file):
                number += 1
                found.ends[file] = end
                if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                    found.cuts.cut(number, None, event.step)
                for value in event.summary.value:
                    tag = renames.get(value.tag, value.tag)
                    found.cuts.note(number, tag, event.step)
                    if tag not in found.metadata and value.HasField("metadata"):
                        found.metadata[tag] = SummaryMetadata.FromString(
                            value.metadata.SerializeToString()
                        )  # holds no event in memory
        except Damaged as damage:
            say(str(damage))
    return found


def surviving(found: Survey, renames: Mapping[str, str]) -> Iterator[Event]:
    """The events of surveyed files as those of one, without superseded values; tags renamed. Can be had once of a survey."""
    undescribed = dict(found.metadata)
    number = 0
    for file, end in found.ends.items():
        for _, event in read_events(file, 0, end):
            number += 1
            if not event.HasField("summary"):
                yield event
                continue
            rename(event, renames)
            values = event.summary.value
            if found.cuts.cuts:
                superseded = [
                    at
                    for at, value in enumerate(values)
                    if not found.cuts.survives(number, value.tag, event.step)
                ]
                for at in reversed(superseded):
                    del values[at]
            if undescribed:
                for value in values:
                    if value.tag in undescribed:
                        value.metadata.CopyFrom(undescribed.pop(value.tag))
            if values:
                yield event


def rename(event: Event, renames: Mapping[str, str]) -> None:
    """Change the tags of an event in place."""
    if renames:
        for value in event.summary.value:
            value.tag = renames.get(value.tag, value.tag)


def scalar(value: Summary.Value, metadata: SummaryMetadata | None) -> float | None:
    """The number that a value logs, None if it is none: torch's `simple_value`, or a tensor of TensorFlow's scalar plugin."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return value.simple_value
    if kind == "tensor" and metadata and metadata.plugin_data.plugin_name == "scalars":
        return float(make_ndarray(value.tensor).item())
    return None


class Damaged(ValueError):
    """Why an event file cannot be read on."""


class CutOff(Damaged):
    """It ends within an event, as it also may while it is being written."""


def in_order(files: Iterable[Path]) -> list[Path]:
    """Event files by the time of their first event: their names tell it in whole seconds."""
    return sorted(
        files, key=lambda file: (next(_readable(file), Event(wall_time=math.inf)).wall_time, file)
    )


def restarts(file: Path) -> bool:
    """Whether an event file says, before it logs any value, which steps of earlier ones it supersedes."""
    for event in _readable(file):
        if event.HasField("summary"):
            return False
        if event.session_log.status == SessionLog.START:
            return True
    return True


def _readable(file: Path) -> Iterator[Event]:
    """The events up to any damage, which is not named."""
    try:
        for _, event in read_events(file):
            yield event
    except Damaged:
        return


def read_events(file: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Event]]:
    """The events between two bytes of an event file, each with the byte after it; without `stop` all that are there.

    Raises CutOff where the file ends within an event, Damaged where a checksum is wrong. What `stop` limits has been read before,
    and its data are not checked again. TensorBoard's own EventFileLoader takes twenty times as long, for its checksums and
    conversions are in Python. Format: TensorFlow's TFRecord, which is the length, its checksum, the data, their checksum.
    """
    end = start
    with open(file, "rb") as opened:
        opened.seek(start)
        while end != stop and (head := opened.read(12)):
            length = _length(head)
            data = opened.read(max(length, 0) + 4)
            if len(head) < 12 or len(data) < length + 4:
                raise CutOff(
                    f"{file}: ends within an event, which begins at byte {end} (cut off, or being written); read up to there"
                )
            if length < 0 or (
                stop is None and CHECKSUM.unpack_from(data, length)[0] != checksum(data[:length])
            ):
                raise Damaged(f"{file}: damaged at byte {end}; read up to there")
            try:
                event = Event.FromString(data[:length])
            except DecodeError as error:
                raise Damaged(
                    f"{file}: holds no event at byte {end} ({error}); read up to there"
                ) from error
            end += length + 16
            yield end, event


def mentions(file: Path, tags: Iterable[str], searched: int = 0) -> bool:
    """Whether one of `tags` may be logged beyond the first `searched` bytes: looks for its bytes and decodes nothing."""
    if file.stat().st_size <= searched:
        return False
    patterns = [Summary.Value(tag=tag).SerializeToString() for tag in tags]
    with (
        open(file, "rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return any(
            content.find(pattern, max(0, searched - len(pattern))) >= 0 for pattern in patterns
        )


@lru_cache(10_000)
def _length(head: bytes) -> int:
    """Bytes of data that the head of an event announces; -1 if it is damaged, 0 if it is cut off. Few lengths occur: cached."""
    if len(head) < 12:
        return 0
    length, check = struct.unpack("<QI", head)
    return length if check == checksum(head[:8]) else -1


CHECKSUM = struct.Struct("<I")


def frame(event: Event) -> bytes:
    """An event as it stands in an event file."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join(
        [length, struct.pack("<I", checksum(length)), data, struct.pack("<I", checksum(data))]
    )


def checksum(data: bytes) -> int:
    """Masked CRC-32C. Source: TensorFlow's TFRecord."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
