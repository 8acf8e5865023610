"""Worker processes, on this machine or many, by Dask: who starts them, and who joins.

The first caller of a command has a scheduler, and its lock says so; its address lies beside the
output, encrypted connections included. The same command on another machine finds both, and its
workers become the first one's until that is done or dead. What workers do is in
`common.infer.machines.crew`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from common.errors import Busy, FileError, UserError
from common.files import alone, is_held, write_json
from common.infer.machines.batch_system import Jobs, of_jobs
from common.infer.machines.crew import Crew, never
from common.infer.machines.engine import Engine
from common.provenance import usable_cores
from common.talk import count, note, say

SECURITY = (
    "tls_ca_file",
    *("tls_client_cert", "tls_client_key"),
    *("tls_scheduler_cert", "tls_scheduler_key"),
    *("tls_worker_cert", "tls_worker_key"),
)
"""Parts of Dask's temporary credentials."""

# a node that reads weights from a slow disk, or a scheduler that starts on a busy one
PATIENCE_S = 120
"""Seconds that a worker waits for its scheduler, and a second caller for the first one's."""

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
    engine: Engine, root: Path, call: str, stopped: Callable[[], bool] = never
) -> Iterator[Crew | None]:
    """The workers of a call; None where it works in this process.

    Where another process is on the same call, this one's workers are that one's, until it is done
    or dead; then the block is entered. Raises UserError; KeyboardInterrupt when stopped meanwhile.

    root: folder that all of the call's output is in. call: hash of what the call does; the same for
    the same command. stopped: asked whether to end.
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
        place = _Place(root, call)
        workers = of_jobs(engine, root / "logs") if engine.cluster else _local(engine.workers)
        with place.held(engine, stopped), workers as cluster, _crew(cluster) as crew:
            place.write(cluster.scheduler_address, cluster.security)
            if engine.cluster:
                crew.jobs = Jobs(cluster, engine)
            yield crew


def _need_dask() -> None:
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"workers need dask.distributed, which is not installed ({error}); pip install "
            '"dask[distributed]" dask-jobqueue, or leave --workers, --scheduler and --cluster out'
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Dask's own lines: a worker that comes back, or goes, is told by Crew."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"distributed|tornado|dask")
        try:
            yield
        finally:
            logger.setLevel(before)


class _Place:
    """Where the scheduler of a call is found by others."""

    def __init__(self, root: Path, call: str):
        self.file = root / f".scheduler-{call[:12]}.json"
        self.lock = self.file.with_suffix(".lock")

    @contextlib.contextmanager
    def held(self, engine: Engine, stopped: Callable[[], bool]) -> Iterator[None]:
        """Be the one that works on the call; its helper as long as another one is."""
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    otherwise = "{holder} has a scheduler for this very command"
                    stack.enter_context(alone(self.lock, otherwise=otherwise))
                except Busy as holder:
                    self._help(engine, str(holder), stopped)
                    continue
                self.file.unlink(missing_ok=True)  # of one that was killed
                try:
                    yield
                finally:
                    self.file.unlink(missing_ok=True)
                return

    def _help(self, engine: Engine, holder: str, stopped: Callable[[], bool]) -> None:
        """Work for the scheduler that holds the call, until that ends."""
        if engine.cluster:
            raise Busy(
                f"{holder} ({self.lock}); write --workers N in place of --cluster, and N processes "
                "of this machine join it"
            )
        content = self._read(stopped)
        if content is None:
            return
        say(f"{holder}; {count(engine.workers, 'worker')} of this machine join it")
        ended = threading.Event()
        working = _work_for(content["address"], content["security"], engine.workers, ended)
        work = threading.Thread(target=asyncio.run, args=[working], daemon=True)
        work.start()
        try:
            # the lock of one that was killed is free at once; Dask tries for half a minute to
            # reach its scheduler
            while work.is_alive() and is_held(self.lock) and not stopped():
                work.join(0.2)
        finally:
            ended.set()
            work.join()
        if stopped():
            raise KeyboardInterrupt

    def _read(self, stopped: Callable[[], bool]) -> dict[str, Any] | None:
        """What the holder wrote; None when it has let go of the lock meanwhile."""
        for _ in range(PATIENCE_S * 5):
            with contextlib.suppress(OSError, ValueError):
                return json.loads(self.file.read_text())
            with contextlib.suppress(Busy), alone(self.lock):
                return None
            if stopped():
                raise KeyboardInterrupt
            time.sleep(0.2)
        raise Busy(f"{self.lock}: held by a process that has no scheduler; run it again later")

    def write(self, address: str, security: Any) -> None:
        """Let others join. Whoever can read the file can run code as this user: nobody else."""
        parts = {name: getattr(security, name) for name in SECURITY}
        before = os.umask(0o077)
        try:
            content = {"address": address, "pid": os.getpid(), "host": socket.gethostname()}
            write_json(self.file, content | {"security": parts})
        finally:
            os.umask(before)


async def _work_for(
    address: str, credentials: dict[str, str], workers: int, ended: threading.Event
) -> None:
    """Have worker processes of this machine for a scheduler, until it is gone or `ended` is set."""
    from distributed import Nanny, Security

    security = Security(require_encryption=True, **credentials)
    nannies = []
    for options in _worker_options(workers):
        nannies.append(Nanny(address, security=security, **options))
    working = asyncio.ensure_future(_worked(nannies))
    while not working.done() and not ended.is_set():
        await asyncio.wait([working], timeout=0.2)
    working.cancel()
    # the scheduler may go while they start, for which Dask has a RuntimeError
    with contextlib.suppress(asyncio.CancelledError, OSError, RuntimeError):
        await working
    closing = (nanny.close(timeout=5) for nanny in nannies)
    await asyncio.gather(*closing, return_exceptions=True)


async def _worked(nannies: list[Any]) -> None:
    """Return when all workers were started and have ended."""
    await asyncio.gather(*nannies)
    await asyncio.gather(*(nanny.finished() for nanny in nannies))


@contextlib.contextmanager
def _crew(address: Any, name: str = "", **options: Any) -> Iterator[Crew]:
    """The workers of a scheduler. name: as the user wrote it, where that is not the address."""
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
    """The workers of a scheduler that runs already."""
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


@contextlib.contextmanager
def _local(workers: int) -> Iterator[Any]:
    """A scheduler in this process and workers on this machine, which others may join."""
    from distributed import Nanny, Scheduler, Security, SpecCluster
    from distributed.utils import get_ip

    # on a cluster that is shared, an open port would let anyone run code as this user
    security = Security.temporary()
    host = get_ip()
    scheduler = {"host": host, "port": 0, "protocol": "tls://", "security": security}
    with tempfile.TemporaryDirectory(prefix="workers-") as scratch:
        specs = {}
        for number, options in enumerate(_worker_options(workers, scratch)):
            options |= {"host": host, "security": security}
            specs[number] = {"cls": Nanny, "options": options}
        with SpecCluster(
            workers=specs,
            scheduler={"cls": Scheduler, "options": scheduler | {"dashboard": False}},
            security=security,
            silence_logs=logging.CRITICAL,
        ) as cluster:
            yield cluster


def _worker_options(workers: int, scratch: str | None = None) -> list[dict[str, Any]]:
    """What each worker process of this machine is started with: its GPU, and its CPU cores."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        devices = [str(number) for number in range(torch.cuda.device_count())]
    else:
        devices = [name for name in visible.split(",") if name.strip()]
    if devices and workers > len(devices):
        note(f"{count(workers, 'worker')} share {count(len(devices), 'GPU')}")
    threads = max(1, usable_cores() // workers)
    options = []
    for number in range(workers):
        env: dict[str, Any] = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if devices:
            env["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        options.append(
            {
                "nthreads": 1,
                "memory_limit": 0,
                "env": env,
                "death_timeout": PATIENCE_S,
                "local_directory": scratch or tempfile.gettempdir(),
                "dashboard": False,
                "silence_logs": logging.CRITICAL,
            }
        )
    return options
