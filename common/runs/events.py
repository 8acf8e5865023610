"""Read TensorBoard's event files; the scalars of a run that was resumed become one curve."""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util.tensor_util import make_ndarray

from common.errors import left_out
from common.runs.find import Run, say_once

CHECKED = 65_536
"""Size of an event, in bytes, above which its checksum is not checked.

TensorBoard's checksum is written in Python and takes 0.15 s a MB: minutes for a log full of images,
which are PNG files and carry checksums of their own.
"""

HEAD = 12
"""Bytes of a record before its data: the length and its checksum."""

FOOT = 4
"""Bytes of a record after its data: their checksum."""

NEVER = np.iinfo(np.int64).max
"""A step that no value is logged at."""


class BrokenEvents(ValueError):
    """An event file that cannot be read to its end; the text says why."""


# Scalars


def scalars(run: Run) -> pd.DataFrame:
    """Read all scalars of a run: tag, step, wall_time (s) and value, in the order of logging.

    Superseded values are left out, so that the steps of a tag increase. A tag in a subfolder, which
    TensorBoard shows as a run of its own, begins with the subfolder's name. Damage is named on
    standard error, and the file is read up to it.
    """
    logs = []
    for folder, files in events_by_folder(run).items():
        log = _scalars_of(files)
        if folder != run.folder:
            log["tag"] = f"{folder.relative_to(run.folder).as_posix()}/" + log["tag"]
        logs.append(log)
    return pd.concat(logs, ignore_index=True) if logs else _scalars_of([])


def events_by_folder(run: Run) -> dict[Path, list[Path]]:
    """Return the event files of a run by folder: TensorBoard shows each folder as a run."""
    folders = defaultdict(list)
    for file in run.events:
        folders[file.parent].append(file)
    return folders


def _scalars_of(files: Iterable[Path]) -> pd.DataFrame:
    """Return the scalars in the event files of one folder."""
    tags: list[str] = []
    steps = array("q")
    wall_times = array("d")
    values = array("d")
    plugins: dict[str, str] = {}
    restarts = []
    for event in read_files(files):
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            restarts.append((len(tags), event.step))
        for value in event.summary.value:
            # writers describe a tag with its first value alone
            if value.HasField("metadata"):
                plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
            number = scalar(value, plugins.get(value.tag, ""))
            if number is None:
                continue
            tags.append(sys.intern(value.tag))  # one string for a million values
            steps.append(event.step)
            wall_times.append(event.wall_time)
            values.append(number)
    log = pd.DataFrame(
        {
            "tag": pd.Series(tags, dtype="str"),
            "step": np.array(steps),
            "wall_time": np.array(wall_times),
            "value": np.array(values),
        }
    )
    return log[log["step"] < _superseding_steps(log, restarts)]


def _superseding_steps(log: pd.DataFrame, restarts: Sequence[tuple[int, int]]) -> pd.Series:
    """Return for each scalar the step from which on later scalars supersede it.

    A later value of a tag supersedes those at its step and beyond, as in TensorBoard's data server:
    so a run that was resumed, in whatever file, is one curve. A restart (purge_step of a
    SummaryWriter) supersedes values of all tags.

    Args:
        log: scalars in the order in which they were logged.
        restarts: number of scalars before each restart, and the step that it begins at.
    """
    backwards = log.iloc[::-1]
    lowest = backwards.groupby("tag")["step"].cummin()
    lowest_later = lowest.groupby(backwards["tag"]).shift(fill_value=NEVER)
    bounds = lowest_later.sort_index().to_numpy(copy=True)
    for count, step in restarts:
        bounds[:count] = np.minimum(bounds[:count], step)
    return pd.Series(bounds, log.index)


def scalar(value: Summary.Value, plugin: str) -> float | None:
    """Return the number that a value logs; None if it is no scalar.

    torch writes a `simple_value`, TensorFlow a tensor for the plugin "scalars".
    """
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return value.simple_value
    if kind == "tensor" and plugin == "scalars":
        return float(make_ndarray(value.tensor).item())
    return None


# Files


def read_files(files: Iterable[Path]) -> Iterator[Event]:
    """Yield the events of several files in the order of their time, each file up to any damage.

    Damage, and a file that may not be read, are named on standard error.
    """
    for file in in_order(files):
        try:
            yield from read_events(file)
        except BrokenEvents as damage:
            say_once(str(damage))
        except OSError as error:
            say_once(left_out(file, error))


def in_order(files: Iterable[Path]) -> list[Path]:
    """Sort event files by the time of their first event; their names have whole seconds only."""
    return sorted(files, key=lambda file: (_first_time(file), file))


def _first_time(file: Path) -> float:
    """Return the wall time of the first event; infinity if none can be read."""
    try:
        first = next(read_events(file), None)
    except (BrokenEvents, OSError):
        return math.inf
    return math.inf if first is None else first.wall_time


def read_events(file: Path) -> Iterator[Event]:
    """Yield the events of one file as far as it is written.

    TensorBoard's RawEventFileLoader takes 13 us for an event of 50 bytes, this 8 (6 of them in
    TensorBoard's checksum); and it says nothing about a file that ends within an event.

    Raises:
        BrokenEvents: where the file ends within an event, a checksum is wrong, or a record is no
            event.
    """
    with file.open("rb") as opened:
        for begin, data in _records(opened, file):
            try:
                event = Event.FromString(data)
            except DecodeError as error:
                raise BrokenEvents(
                    f"{file}: holds no event at byte {begin} ({error}); read up to there"
                ) from error
            yield event


def _records(opened: BinaryIO, file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the byte at which each record begins, and its data.

    Format: TensorFlow's TFRecord, which is the length of the data (uint64), the masked CRC-32C of
    the length, the data, the masked CRC-32C of the data.
    """
    begin = 0
    cut_off = (
        "{file}: ends within an event, which begins at byte {begin} "
        "(cut off, or being written); read up to there"
    )
    damaged = "{file}: damaged at byte {begin}; read up to there"
    while True:
        head = opened.read(HEAD)
        if not head:
            return
        if len(head) < HEAD:
            raise BrokenEvents(cut_off.format(file=file, begin=begin))
        length = _length(head)
        if length is None:
            raise BrokenEvents(damaged.format(file=file, begin=begin))
        data = opened.read(length)
        foot = opened.read(FOOT)
        if len(foot) < FOOT:
            raise BrokenEvents(cut_off.format(file=file, begin=begin))
        if length <= CHECKED and foot != _checksum(data):
            raise BrokenEvents(damaged.format(file=file, begin=begin))
        yield begin, data
        begin += HEAD + length + FOOT


@lru_cache(10_000)  # few lengths occur, and TensorBoard's checksum is slow
def _length(head: bytes) -> int | None:
    """Return how many bytes of data the head of a record announces; None if it is damaged."""
    if head[8:] != _checksum(head[:8]):
        return None
    return struct.unpack("<Q", head[:8])[0]


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
