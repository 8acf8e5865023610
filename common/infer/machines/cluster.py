"""The workers of a call, by Dask: who starts them, and who joins.

What workers do is in `common.infer.machines.crew`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from common.errors import FileError, UserError
from common.infer.machines.batch_system import Jobs, of_jobs
from common.infer.machines.crew import Crew
from common.infer.machines.engine import Engine
from common.infer.machines.local_workers import PATIENCE_S, local_cluster
from common.infer.machines.meeting import MeetingPlace
from common.stopping import ShouldStop, never

DASK = {
    # how often a block may fail is counted in Crew
    "distributed.scheduler.allowed-failures": 0,
    # what a network takes is not known to Dask, which would pause or end workers at a guess
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}
"""Settings of Dask."""


@contextlib.contextmanager
def opened(
    engine: Engine, root: Path, call: str, stopped: ShouldStop = never
) -> Iterator[Crew | None]:
    """Yield the workers of a call; None where it works in this process.

    Where another process is on the same call, this one's workers work for that one until it is done
    or dead; only then is the block entered. Raise UserError; KeyboardInterrupt when stopped
    meanwhile.

    Args:
        engine: where blocks are computed.
        root: folder of all of the call's output.
        call: hash of what the call does, the same for the same command.
        stopped: asked whether to end.
    """
    engine.check()
    if not engine.is_used:
        yield None
        return
    _need_dask()
    import dask

    with dask.config.set(DASK), _quiet():
        if engine.scheduler:
            with _crew_of(engine.scheduler) as crew:
                yield crew
            return
        place = MeetingPlace(root, call)
        local = not engine.cluster
        workers = local_cluster(engine.workers) if local else of_jobs(engine, root / "logs")
        with place.held(engine, stopped), workers as cluster, _crew(cluster) as crew:
            place.write(cluster.scheduler_address, cluster.security)
            if not local:
                crew.jobs = Jobs(cluster, engine)
            yield crew


def _need_dask() -> None:
    """Raise UserError without Dask."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"workers need dask.distributed, which is not installed ({error}); pip install "
            '"dask[distributed]" dask-jobqueue, or leave --workers, --scheduler and --cluster out'
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back Dask's own lines: what becomes of workers is said by Crew."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"distributed|tornado|dask")
        try:
            yield
        finally:
            logger.setLevel(before)


@contextlib.contextmanager
def _crew(address: Any, name: str = "", **options: Any) -> Iterator[Crew]:
    """Connect to a scheduler, and yield its workers. Raise FileError where none answers.

    Args:
        address: as distributed.Client takes it.
        name: of the scheduler as the user wrote it, where that is not the address.
        options: of distributed.Client.
    """
    from distributed import Client

    try:
        client = Client(address, timeout=PATIENCE_S, set_as_default=False, **options)
    except (OSError, TimeoutError, ValueError) as error:
        raise FileError(
            f"--scheduler {name or address}: no Dask scheduler answers there ({error}); start one "
            "with `dask scheduler --scheduler-file FILE`, and write its address or FILE"
        ) from error
    with client:
        yield Crew(client)


def _crew_of(scheduler: str) -> AbstractContextManager[Crew]:
    """Connect to a scheduler that runs already. scheduler: its address, or the file that it wrote.

    Raise FileNotFoundError, UserError or FileError.
    """
    if "://" in scheduler:
        return _crew(scheduler)
    if not Path(scheduler).is_file():
        raise FileNotFoundError(
            f"--scheduler {scheduler}: no such file; write the file that `dask scheduler "
            "--scheduler-file` made, or an address such as tcp://host:8786"
        )
    try:
        address = json.loads(Path(scheduler).read_text())["address"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no file of a Dask scheduler; write the one that `dask "
            "scheduler --scheduler-file` made, or an address such as tcp://host:8786"
        ) from error
    name = f"{scheduler} ({address})"
    return _crew(None, name, scheduler_file=scheduler)
