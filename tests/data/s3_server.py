"""A local server with the answers of an S3 bucket, and the faults that a test asks for."""

from __future__ import annotations

import functools
import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from conftest import DEADLINE, wait_until

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Handler(BaseHTTPRequestHandler):
    """Answers one request: an object, or a listing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        server = self.server
        address = urlsplit(self.path)
        query = {
            name: values[0]
            for name, values in parse_qs(address.query, keep_blank_values=True).items()
        }
        key = unquote(address.path).lstrip("/")
        listing = "list-type" in query
        fault = server.note(f"?{query['prefix']}" if listing else key)
        server.gate.acquire()
        if listing:
            content = server.listing(query)
        elif server.has(key):
            content = (server.root / key).read_bytes()
        else:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if isinstance(fault, int):
            return self.answer(fault, b"<Error/>")
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and server.ranges and not listing:
            return self.part(content, *wanted.groups(), cut=fault == "drop", etag=server.etag(key))
        if fault == "hang":
            server.wait_until_asked_again(key)
        elif fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        elif fault == "short":
            content = content[: len(content) // 2]
        etag = "" if listing else server.etag(key)
        return self.answer(200, content, cut=fault == "drop", etag=etag)

    def part(self, content: bytes, first: str, last: str, **more) -> None:
        """Answer a request for some bytes, as HTTP has it: the last ones where `first` is empty."""
        size = len(content)
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            return self.answer(416, b"")
        span = f"bytes {start}-{stop - 1}/{size}"
        return self.answer(206, content[start:stop], span=span, **more)

    def answer(
        self, status: int, content: bytes, cut: bool = False, etag: str = "", span: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{etag}"')
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def log_message(self, *arguments):
        pass


class Gate:
    """Open, or a number of requests that may still pass."""

    def __init__(self):
        self.passing: int | None = None
        self.changed = threading.Condition()

    def acquire(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.passing is None or self.passing > 0)
            if self.passing is not None:
                self.passing -= 1

    def let(self, passing: int | None) -> None:
        """So many more; None opens it."""
        with self.changed:
            self.passing = None if passing is None else (self.passing or 0) + passing
            self.changed.notify_all()


class Server(ThreadingHTTPServer):
    """A folder as a bucket.

    `asked` is every key and ?prefix it was asked for; `faults` what goes wrong with a key, one a
    request: an answer such as 503, or "hang", "corrupt", "short", "drop".
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.faults: dict[str, list] = {}
        self.gate = Gate()
        self.page = 7
        """Keys in a page of a listing."""
        self.pieces = False
        """Whether objects were uploaded in pieces, so that their ETag is no MD5."""
        self.ranges = True
        """Whether it sends parts of objects."""
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []

    def note(self, key: str) -> object:
        """Remember that a key was asked for; the fault of this request, if any."""
        with self.lock:
            self.asked.append(key)
            faults = self.faults.get(key)
            return faults.pop(0) if faults else None

    def wait_until_asked_again(self, key: str) -> None:
        wait_until(lambda: self.asked.count(key) >= 2)

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """Close the connections that a client keeps open, each of which has a thread."""
        for connection in self.connections:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    def wait_until_idle(self) -> None:
        """Until every connection is closed."""
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:
                thread.join(20)

    def has(self, key: str) -> bool:
        return (self.root / key).is_file()

    def etag(self, key: str) -> str:
        """The MD5, or what S3 gives for an object that was uploaded in pieces."""
        md5 = md5_of(self.root / key)
        return f"{md5[::-1]}-2" if self.pieces else md5

    def listing(self, query: dict[str, str]) -> bytes:
        prefix = query["prefix"]
        keys = []
        folders = {}
        for path in keys_of(self.root):
            if not path.startswith(prefix):
                continue
            first, slash, _ = path.removeprefix(prefix).partition("/")
            if query.get("delimiter") and slash:
                folders[f"{prefix}{first}/"] = None
            else:
                keys.append(path)
        start = int(query.get("continuation-token", 0))
        stop = start + self.page
        items = [self.contents(key) for key in keys[start:stop]]
        items += [f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in folders]
        if stop < len(keys):
            items.append(f"<NextContinuationToken>{stop}</NextContinuationToken>")
        truncated = str(stop < len(keys)).lower()
        return (
            f'<?xml version="1.0"?><ListBucketResult xmlns="{NAMESPACE}">'
            f"<IsTruncated>{truncated}</IsTruncated>{''.join(items)}</ListBucketResult>"
        ).encode()

    def contents(self, key: str) -> str:
        size = (self.root / key).stat().st_size
        return (
            f"<Contents><Key>{key}</Key><ETag>&quot;{self.etag(key)}&quot;</ETag>"
            f"<Size>{size}</Size></Contents>"
        )

    def objects(self) -> list[str]:
        """The keys that were asked for, listings not counted."""
        return [key for key in self.asked if not key.startswith("?")]

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A server that runs for the length of the block."""
    with Server(root) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.gate.let(None)
            server.shutdown()
            thread.join(DEADLINE)
            server.hang_up()


@functools.cache
def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@functools.cache
def keys_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
