"""A run is trained by one process at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from common.config.settings import TrainConfig
from common.errors import UserError
from common.files import alone

LOCK = ".lock"
"""In the folder of the run's checkpoints."""


@contextmanager
def held(config: TrainConfig) -> Iterator[None]:
    """Keep other processes from training the run, before anything of it is read or written.

    Raises Busy, a UserError, where another process trains it, and UserError under torchrun with
    several processes.
    """
    _refuse_several(int(os.environ.get("WORLD_SIZE") or 1))
    folder = config.path("model_save_path")
    otherwise = (
        f"{folder}: {{holder}} trains run '{config.run}' of {config.folder.name} now; wait for it "
        "or end it, or train another run with --set run_name=NAME"
    )
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with alone(folder / LOCK, otherwise=otherwise):
            yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()  # where nothing was saved


def _refuse_several(processes: int) -> None:
    if processes > 1:
        raise UserError(
            f"torchrun started {processes} processes (WORLD_SIZE), and a run is trained by one; "
            "start it without torchrun, and other runs beside it with --set run_name=NAME"
        )
