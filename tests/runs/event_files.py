"""Event files for tests, written by TensorBoard's own writer."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def value(tag: str, number: float, step: int, wall_time: float = 0.0) -> Event:
    """A scalar as torch logs it."""
    logged = Summary.Value(tag=tag, simple_value=number)
    return Event(wall_time=wall_time or float(step), step=step, summary=Summary(value=[logged]))


def start(step: int, wall_time: float = 0.0) -> Event:
    """What a SummaryWriter with purge_step says first."""
    return Event(wall_time=wall_time, step=step, session_log=SessionLog(status=SessionLog.START))


def version(wall_time: float) -> Event:
    """What every writer says first."""
    return Event(wall_time=wall_time, file_version="brain.Event:2")


def records(events: Iterable[Event]) -> bytes:
    """Events as they stand in a file."""
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in events:
        writer.write(event.SerializeToString())
    return content.getvalue()


def write(folder: Path, events: Iterable[Event], number: int = 0) -> Path:
    """Write an event file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.17000000{number:02}.host.1.0"
    path.write_bytes(records(events))
    return path


def append(path: Path, events: Iterable[Event]) -> None:
    """Add events to a file."""
    with path.open("ab") as file:
        file.write(records(events))
