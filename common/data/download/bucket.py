"""List and download the objects of a public S3 bucket over HTTPS, with verification.

What there is, with sizes and checksums, comes from S3's listings (ListObjectsV2), which are kept in
a journal: a listing that was asked for once is not asked for again. An object is verified by its
size and its ETag, which is the MD5 of an object that was uploaded in one piece (S3's rule for all
but KMS-encrypted objects, which cannot be public), or else by decoding it.

urllib3, and no library for object stores: obstore (0.12) lists whole folders only, so that neither
the metadata of a group nor a row of chunks with dots in their names could be asked for; s3fs brings
botocore and aiohttp (40 MB). Either would replace about 90 lines, from `_pages` to `_connections`,
and leave the journal, the verification, and asking again for what is flawed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import random
import re
import ssl
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import numcodecs
import urllib3

from common import files, talk
from common.data.volumes import zarray
from common.errors import FileError, UserError

URL = "https://janelia-cosem-datasets.s3.amazonaws.com"
"""The public bucket.

Any S3-compatible address will do that lists without a signature, such as http://host:9000/bucket.
"""

TRIES = 6
"""Number of times that a request is made before giving up."""

BACKOFF_S = 0.5
"""Seconds to wait before the second try of a request; the wait doubles with each try."""

TIMEOUT_S = 30.0

T = TypeVar("T")
R = TypeVar("R")


class RemoteFile(NamedTuple):
    """One object of the bucket, by its place under the data root."""

    path: str
    size: int
    etag: str

    @property
    def is_metadata(self) -> bool:
        """Whether it is a .zgroup, .zattrs or .zarray."""
        return self.path.rpartition("/")[2].startswith(".z")


class Bucket:
    """What a bucket holds, and the content of its objects.

    Paths are those under the data root; `renamed` says which folders have another name in the
    bucket, `brought` what `bring` fetched.
    """

    def __init__(
        self,
        url: str,
        journal: Path,
        workers: int,
        *,
        read_only: bool = False,
        verify: bool = False,
    ):
        """Open a bucket.

        Args:
            url: its address.
            journal: file with the listings of earlier runs.
            workers: requests at a time.
            read_only: leave the journal as it is.
            verify: trust nothing that was remembered or is there already.
        """
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError(
                f"{url}: not the address of a bucket; write one with http or https, such as {URL}"
            )
        self.url = url.rstrip("/")
        self.workers = workers
        self.read_only = read_only
        self.verify = verify
        self.renamed: dict[str, str] = {}
        self.brought: set[str] = set()
        self._journal = _Journal(journal, self.url, read_only=read_only, anew=verify)
        self._stopped = threading.Event()
        self._connections = _connections(self.url, workers)

    def __enter__(self) -> Bucket:
        return self

    def __exit__(self, *_: object) -> None:
        self._connections.clear()
        self._journal.close()

    def find(self, prefix: str) -> list[RemoteFile]:
        """Return every object whose path begins with `prefix`; it is asked for once."""
        key = self._key(prefix)
        listed = self._journal.get(key)
        if listed is None:
            listed = self._list(key)
            self._journal.add(key, listed)
        return [RemoteFile(prefix + name, size, etag) for name, size, etag in listed]

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders in the folder `prefix`; not remembered."""
        names = []
        for page in self._pages(self._key(prefix), delimiter="/"):
            for item in page.iterfind("{*}CommonPrefixes"):
                folder = item.findtext("{*}Prefix", "").rstrip("/")
                names.append(folder.rpartition("/")[2])
        return names

    def get(self, file: RemoteFile, root: Path) -> bytes:
        """Return the content of an object; `root` has the metadata of its array.

        Raises:
            FileError: if the server does not send what was listed.
        """
        address = f"/{quote(self._key(file.path))}"
        return self._read(address, lambda content: flaw(content, file, root))

    def bring(self, file: RemoteFile, root: Path) -> None:
        """Fetch an object to its place, if it is not there."""
        if not is_there(root, file, self.verify):
            write(root / file.path, self.get(file, root))
            self.brought.add(file.path)

    def for_each(
        self, work: Callable[[T], R], items: Iterable[T], done: Callable[[R], None]
    ) -> None:
        """Call done(work(item)) for all items: `work` on several threads, `done` on this one.

        The first error, also of `done`, or Ctrl-C ends it: what is under way is finished, nothing
        else is begun.
        """
        left = iter(items)
        waiting: set[Future[R]] = set()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while True:
                    # enough that no thread waits, few enough that an error ends it soon
                    for item in itertools.islice(left, 4 * self.workers - len(waiting)):
                        waiting.add(pool.submit(work, item))
                    if not waiting:
                        return
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done(future.result())
            except BaseException:
                self._stopped.set()  # no further tries
                for future in waiting:
                    future.cancel()
                raise

    def map(self, work: Callable[[T], R], items: Collection[T], what: str) -> dict[T, R]:
        """Return {item: work(item)} in the order of the items, with a progress bar named `what`."""
        results: dict[T, R] = {}

        def numbered(item: T) -> tuple[T, R]:
            return item, work(item)

        def done(result: tuple[T, R]) -> None:
            results[result[0]] = result[1]
            bar.update()

        with talk.progress(len(items), what) as bar:
            self.for_each(numbered, items, done)
        return {item: results[item] for item in items}

    def _key(self, path: str) -> str:
        """Return the path in the bucket."""
        for ours, theirs in tuple(self.renamed.items()):
            if path.startswith(f"{ours}/"):
                return theirs + path[len(ours) :]
        return path

    def _list(self, prefix: str) -> list[list]:
        """Return [name behind the prefix, size, ETag] of every object that begins with `prefix`."""
        listed = []
        for page in self._pages(prefix):
            for item in page.iterfind("{*}Contents"):
                name = item.findtext("{*}Key", "")
                # markers of folders, and names that would be written outside of the data root
                if name.endswith("/") or ".." in name.split("/"):
                    continue
                size = int(item.findtext("{*}Size", ""))
                etag = item.findtext("{*}ETag", "").strip('"')
                listed.append([name.removeprefix(prefix), size, etag])
        return listed

    def _pages(self, prefix: str, **query: str) -> Iterator[ET.Element]:
        """Iterate over the pages of a listing. Source: Amazon S3 API reference, ListObjectsV2."""
        query = {"list-type": "2", "prefix": prefix, **query}
        while True:
            page = ET.fromstring(self._read(f"/?{urlencode(query)}", _flaw_of_listing))
            yield page
            if page.findtext("{*}IsTruncated") != "true":
                return
            query["continuation-token"] = page.findtext("{*}NextContinuationToken", "")

    def _read(self, address: str, flaw_of: Callable[[bytes], str]) -> bytes:
        """Return what the server sends.

        It is asked again while it does not answer, is overloaded or sends something flawed.
        `flaw_of` returns what is wrong with a content, or "".
        """
        problem = ""
        tries = 0
        while tries < TRIES:
            # uneven, so that the threads do not all ask at once
            pause_s = BACKOFF_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
            if tries and self._stopped.wait(pause_s):
                break
            tries += 1
            content, problem = self._ask(address)
            problem = problem or flaw_of(content)
            if not problem:
                return content
        raise FileError(
            f"{self.url}{address}: {problem}, {tries} times; "
            "run the same command again later, it goes on where it stopped"
        )

    def _ask(self, address: str) -> tuple[bytes, str]:
        """Return the content of an answer, or the trouble if it may pass; else raise FileError."""
        try:
            response = self._connections.request("GET", self.url + address, decode_content=False)
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            return b"", f"cannot be reached or breaks off ({reason})"
        status = response.status
        if status == 200:
            return response.data, ""
        if status == 429 or status >= 500:
            return b"", f"is overloaded or out of order (answer {status})"
        meaning = {
            403: "it is not public, or a proxy is in the way",
            404: "there is no such thing, or no longer",
        }.get(status, "check the address")
        raise FileError(f"{self.url}{address}: refused (answer {status}): {meaning}")


def _connections(url: str, count: int) -> urllib3.PoolManager:
    """Return connections that stay open, through the proxy that the environment names."""
    address = urlsplit(url)
    # our own tries, which see flawed contents too
    redirects_only = urllib3.Retry(
        connect=0, read=0, status=0, other=0, redirect=3, respect_retry_after_header=False
    )
    # said here, because cellmap-models turns verification off for the whole process
    verified = ssl.create_default_context() if address.scheme == "https" else None
    options: dict[str, Any] = {
        "maxsize": count,
        "timeout": urllib3.Timeout(TIMEOUT_S),
        "ssl_context": verified,
        "retries": redirects_only,
    }
    proxy = getproxies().get(address.scheme)
    if proxy and not proxy_bypass(address.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def _flaw_of_listing(content: bytes) -> str:
    with contextlib.suppress(ET.ParseError):
        if ET.fromstring(content).tag.endswith("ListBucketResult"):
            return ""
    # such as the page of a network that wants one to log in
    return "sends no listing of a bucket"


class _Journal:
    """Listings by their prefix, kept in a file with a record [url, prefix, listing] a line."""

    def __init__(self, path: Path, url: str, *, read_only: bool, anew: bool):
        self._url = url
        self._listings = {} if anew else _remembered(path, url)
        self._writing = threading.Lock()
        self._file = None if read_only else path.open("wb" if anew else "ab")

    def get(self, prefix: str) -> list[list] | None:
        """Return the listing of a prefix, None if it was never asked for."""
        return self._listings.get(prefix)

    def add(self, prefix: str, listing: list[list]) -> None:
        """Remember a listing."""
        self._listings[prefix] = listing
        if self._file is None:
            return
        record = json.dumps([self._url, prefix, listing], separators=(",", ":"))
        with self._writing:
            # between line ends, so that a record cut short by a crash takes no other with it
            self._file.write(f"\n{record}\n".encode())
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _remembered(journal: Path, url: str) -> dict[str, list[list]]:
    """Return the listings of one bucket in a journal."""
    listings: dict[str, list[list]] = {}
    if not journal.is_file():
        return listings
    with journal.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):  # empty, or cut short
                record_url, prefix, listing = json.loads(line)
                if record_url == url:
                    listings[prefix] = listing
    return listings


# files and what is in them


def flaw(content: bytes, file: RemoteFile, root: Path) -> str:
    """Return what is wrong with the content of an object, or nothing.

    Without an MD5 in its ETag a chunk is decoded; `root` has the metadata of its array.
    """
    if len(content) != file.size:
        return f"sends {len(content):,} bytes of {file.size:,}"
    # an object that was uploaded in pieces has an ETag with a dash
    if re.fullmatch(r"[0-9a-f]{32}", file.etag):
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return "" if md5 == file.etag else "sends something with another MD5"
    if file.is_metadata or _decodes(content, _compressor((root / file.path).parent)):
        return ""
    return "sends a chunk that cannot be decoded"


def is_there(root: Path, file: RemoteFile, verify: bool = False) -> bool:
    """Return whether a file has its size and, if it is metadata or to be verified, its content."""
    path = root / file.path
    try:
        if path.stat().st_size != file.size:
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    # files are written whole or not at all, so the size of a chunk tells; but metadata with other
    # chunks or another dtype often take as many letters
    if not verify and not file.is_metadata:
        return True
    return not flaw(path.read_bytes(), file, root)


def write(path: Path, content: bytes) -> None:
    """Write the whole file or none. Raises FileError."""
    with files.replacing(path, sole_writer=True) as temporary:
        temporary.write_bytes(content)


@functools.lru_cache(maxsize=4096)
def _compressor(folder: Path) -> dict | None:
    """Return the compressor of the chunks in a folder of an array; None without, or if unknown."""
    # chunks 1/2/3 lie two folders below .zarray, chunks 1.2.3 beside it
    for parent in (folder, *folder.parents[:2]):
        metadata = parent / ".zarray"
        if metadata.is_file():
            return json.loads(metadata.read_text())["compressor"]
    return None


def _decodes(content: bytes, compressor: dict | None) -> bool:
    # what `zarray` does not know is not tried: a file could bring code; who reads it is told
    if compressor is None or compressor["id"] not in zarray.COMPRESSORS:
        return True
    # numcodecs hands a short chunk to Blosc, which reads on beyond its end
    if compressor["id"] == "blosc" and zarray.blosc_lengths(content[:16]).packed != len(content):
        return False
    try:
        numcodecs.get_codec(compressor).decode(content)
    except Exception:  # every codec has errors of its own
        return False
    return True
