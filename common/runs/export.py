"""Write tables of runs and of their scalars as CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from common.errors import UserError
from common.files import replacing
from common.runs import events
from common.runs.find import Run


def check(path: Path) -> None:
    """Raise UserError for a file that cannot be written, before the work."""
    folder = path.absolute().parent
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(
            f"{path}: ends in '{path.suffix}'; write a name that ends in .csv or .parquet"
        )
    if not folder.is_dir():
        raise UserError(
            f"{path}: the folder {folder} does not exist; make it, or write another name"
        )
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401  only whether it is there
        except ImportError as error:
            raise UserError(
                f"{path}: parquet needs pyarrow, which is not installed; "
                "pip install pyarrow, or write a name in .csv"
            ) from error


def write(frames: Iterable[pd.DataFrame], path: Path) -> None:
    """Write frames of the same columns below each other, one in memory at a time.

    The file appears when it is whole. Raises FileError if it cannot be written.
    """
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            _write_parquet(frames, temporary)
        else:
            _write_csv(frames, temporary)


def long_form(runs: Iterable[Run]) -> Iterator[pd.DataFrame]:
    """Yield the scalars of each run as a frame: run, tag, step, wall_time (s), value."""
    kinds = {
        "run": "str",
        "tag": "str",
        "step": "int64",
        "wall_time": "float64",
        "value": "float64",
    }
    # the head of a table without runs
    yield pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
    for run in runs:
        log = events.scalars(run)
        log.insert(0, "run", run.name)
        yield log


def _write_csv(frames: Iterable[pd.DataFrame], path: Path) -> None:
    with path.open("w", newline="") as file:
        for number, frame in enumerate(frames):
            frame.to_csv(file, header=number == 0, index=False, lineterminator="\n")


def _write_parquet(frames: Iterable[pd.DataFrame], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    writer = None
    for frame in frames:
        content = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or parquet.ParquetWriter(path, content.schema)
        writer.write_table(content)
    if writer:
        writer.close()
