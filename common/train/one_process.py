"""A run is trained by one process at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from common.config.settings import TrainConfig
from common.files import alone
from common.train import ranks

LOCK = ".lock"
"""In the folder of the run's checkpoints."""


@contextmanager
def held(config: TrainConfig) -> Iterator[None]:
    """Keep other processes from training the run, before anything of it is read or written.

    Those that torchrun started are one: the main one of them holds it. Raises Busy, a UserError,
    where another process trains it.
    """
    folder = config.path("model_save_path")
    otherwise = (
        f"{folder}: {{holder}} trains run '{config.run}' of {config.folder.name} now; wait for it "
        "or end it, or train another run with --set run_name=NAME"
    )
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with contextlib.ExitStack() as stack:
            with ranks.main_first():
                if ranks.is_main():
                    stack.enter_context(alone(folder / LOCK, otherwise=otherwise))
            yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()  # where nothing was saved
