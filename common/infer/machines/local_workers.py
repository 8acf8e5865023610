"""Worker processes of this machine, by Dask: for a scheduler of this process, or another one's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from common.errors import FileError
from common.provenance import usable_cores
from common.talk import count, note

# a node that reads weights from a slow disk, or a scheduler that starts on a busy one
PATIENCE_S = 120
"""Seconds that a worker waits for its scheduler, and a second caller for the first one's."""


ANSWER_S = 10
"""Seconds that a scheduler has to answer at one of its addresses."""


@contextlib.contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """Have a scheduler in this process and workers on this machine, which others may join.

    Yield Dask's cluster. Raises FileError if the workers do not start.
    """
    from distributed import Nanny, Scheduler, Security, SpecCluster
    from distributed.utils import get_ip

    # on a cluster that is shared, an open port would let anyone run code as this user
    security = Security.temporary()
    host = get_ip()
    # on all networks: which one another machine sees is not known here, see `addresses`
    scheduler = {"port": 0, "protocol": "tls://", "security": security}
    with tempfile.TemporaryDirectory(prefix="workers-") as scratch:
        specs = {}
        for number, options in enumerate(_worker_options(workers, scratch)):
            options |= {"host": host, "security": security}
            specs[number] = {"cls": Nanny, "options": options}
        try:
            cluster = SpecCluster(
                workers=specs,
                scheduler={"cls": Scheduler, "options": scheduler | {"dashboard": False}},
                security=security,
                silence_logs=logging.CRITICAL,
            )
        # what Dask has for a worker that does not come up, by where it is then
        except (AssertionError, RuntimeError, TimeoutError) as error:
            raise FileError(
                f"the {count(workers, 'worker')} did not start within {PATIENCE_S} s: is the "
                "machine very busy, or Python on a slow disk? Run the same again, with fewer "
                'workers or none. In a script, call below `if __name__ == "__main__":`'
            ) from error
        with cluster:
            yield cluster


def addresses(address: str) -> list[str]:
    """Return the addresses of a scheduler of this machine, likeliest to be reached first.

    address: what Dask takes for it. On a node without a way to the internet that is what /etc/hosts
        calls the machine, as often as not 127.0.1.1.
    """
    import psutil  # type: ignore[import-untyped]  # of the extra cluster

    protocol, _, host_and_port = address.partition("://")
    host, _, port = host_and_port.rpartition(":")
    is_up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    hosts = [host]
    for name, of_interface in psutil.net_if_addrs().items():
        hosts += [a.address for a in of_interface if name in is_up and a.family == socket.AF_INET]
    # each once; of the others a joining process on this machine alone has use
    hosts.sort(key=lambda host: host.startswith("127."))
    return [f"{protocol}://{host}:{port}" for host in dict.fromkeys(hosts)]


def reachable(addresses: Sequence[str]) -> str:
    """Return the first address of a scheduler that answers; "" where none does."""
    for address in addresses:
        host, _, port = address.partition("://")[2].rpartition(":")
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
            return address
    return ""


def _worker_options(workers: int, scratch: str | None = None) -> list[dict[str, Any]]:
    """Return the options of Dask's Nanny for each worker: its GPU, and its CPU cores, among them.

    scratch: folder of their files; the system's temporary one unless given.
    """
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


async def work_for(
    address: str, credentials: dict[str, str], workers: int, ended: threading.Event
) -> None:
    """Have processes of this machine work for a scheduler, until it is gone or `ended` is set.

    Args:
        address: of the scheduler.
        credentials: parts of its `distributed.Security`.
        workers: number of processes.
        ended: asks them to end.
    """
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
    """Wait until all workers were started and have ended."""
    await asyncio.gather(*nannies)
    await asyncio.gather(*(nanny.finished() for nanny in nannies))
