"""How the processes of one command find each other: a lock, and an address beside the output.

The first process on a call holds the lock and has a scheduler, whose address lies in a file, with
the credentials of encrypted connections. The same command on another machine finds both, and its
workers become the first one's until that is done or dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import Busy, NotYet
from common.files import alone, is_held, write_json
from common.infer.machines.engine import Engine
from common.infer.machines.local_workers import PATIENCE_S, addresses, reachable, work_for
from common.stopping import ShouldStop
from common.talk import count, say

# one that ends has no scheduler any more while its workers close
CLOSED_WITHIN_S = 60
"""Seconds that a process has a scheduler which answers, or lets go of the call."""

SECURITY = (
    "tls_ca_file",
    *("tls_client_cert", "tls_client_key"),
    *("tls_scheduler_cert", "tls_scheduler_key"),
    *("tls_worker_cert", "tls_worker_key"),
)
"""Parts of Dask's temporary credentials."""


class MeetingPlace:
    """Where the processes of one call find its scheduler."""

    def __init__(self, root: Path, call: str):
        """root: folder of all of the call's output. call: hash of what the call does."""
        self.file = root / f".scheduler-{call[:12]}.json"
        self.lock = self.file.with_suffix(".lock")

    @contextlib.contextmanager
    def held(self, engine: Engine, stopped: ShouldStop) -> Iterator[None]:
        """Hold the call for this process; as long as another one holds it, work for that one."""
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

    def _help(self, engine: Engine, holder: str, stopped: ShouldStop) -> None:
        """Work for the scheduler of the process that holds the call, until that ends."""
        if engine.cluster:
            raise Busy(
                f"{holder} ({self.lock}); write --workers N in place of --cluster, and N processes "
                "of this machine join it"
            )
        found = self._reached(holder, stopped)
        if found is None:
            return
        address, security = found
        say(f"{holder}; {count(engine.workers, 'worker')} of this machine join it")
        ended = threading.Event()
        working = work_for(address, security, engine.workers, ended)
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

    def _reached(self, holder: str, stopped: ShouldStop) -> tuple[str, dict[str, str]] | None:
        """Return address and credentials of the scheduler; None when its process is gone meanwhile.

        Raise NotYet where it cannot be reached.
        """
        until = time.monotonic() + CLOSED_WITHIN_S
        while True:
            content = self._read(stopped)
            if content is None:
                return None
            address = reachable(content["addresses"])
            if address:
                return address, content["security"]
            if time.monotonic() > until:
                raise NotYet(
                    f"{holder} ({self.lock}), which this machine cannot reach at "
                    f"{' or '.join(content['addresses'])}; see that the two have a network in "
                    "common that lets any port through, or leave it to that process. Run the same "
                    "command again when it is done"
                )
            time.sleep(0.2)

    def _read(self, stopped: ShouldStop) -> dict[str, Any] | None:
        """Return what the holder wrote; None when it has let go of the lock meanwhile."""
        for _ in range(PATIENCE_S * 5):
            if not is_held(self.lock):
                return None
            if stopped():
                raise KeyboardInterrupt
            with contextlib.suppress(OSError, ValueError):
                return json.loads(self.file.read_text())
            time.sleep(0.2)
        raise Busy(f"{self.lock}: held by a process that has no scheduler; run it again later")

    def write(self, address: str, security: Any) -> None:
        """Write the address, so that others can join.

        Only this user can read it: whoever can, can run code as this user.
        """
        parts = {name: getattr(security, name) for name in SECURITY}
        before = os.umask(0o077)
        try:
            content = {
                "addresses": addresses(address),
                "pid": os.getpid(),
                "host": socket.gethostname(),
            }
            write_json(self.file, content | {"security": parts})
        finally:
            os.umask(before)
