"""A run is trained by one process at a time, and has folders of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common import files
from common.config.settings import TrainConfig
from common.errors import UserError
from common.train.processes import ranks

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
                    stack.enter_context(files.alone(folder / LOCK, otherwise=otherwise))
            yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()  # where nothing was saved


def refuse_taken(config: TrainConfig) -> None:
    """Raise UserError where another process has meanwhile taken the run that this one holds."""
    files.refuse_taken(config.path("model_save_path") / LOCK)


def refuse_shared_folders(path: str | Path, runs: Sequence[TrainConfig], of: str) -> None:
    """Raise UserError if two of several runs would write to the same folder.

    Args:
        path: of their configuration.
        runs: the settings of each.
        of: what there is a run for each of, such as "seeds".
    """
    same_name = len({config.run for config in runs}) < len(runs)
    field = "random_seed" if same_name else "run_name"
    for folder in ("model_save_path", "logs_save_path"):
        if len({config.path(folder) for config in runs}) < len(runs):
            setting = "run_name" if same_name else folder
            raise UserError(
                f"{path}: {setting} = '{getattr(runs[0], setting)}' is the same for all {of}; "
                f"write {{{field}}} in it"
            )
