"""Read parts of one large file on a server: TIFF, HDF5, MRC, NIfTI or NRRD, which is not copied.

By HTTP, which buckets speak too; without signing in.
"""

from __future__ import annotations

import io
import os
import re
from typing import Any, BinaryIO, cast

import urllib3

from common.data.volumes.sources.remote import TRIES, Address
from common.errors import FileError

PIECE = 2**20
"""Bytes that are asked for at once, at least."""

TIMEOUT_S = 30.0

PAUSE_S = 0.2
"""Before the second try of a request; the pause doubles with each."""


def opened(address: Address) -> BinaryIO:
    """Return a file to read and seek in. Raises FileNotFoundError without one, FileError."""
    return cast(BinaryIO, io.BufferedReader(_Remote(address), PIECE))


def url_of(address: Address) -> str:
    """Return the address as web servers have it."""
    scheme, host, *parts = address.parts
    key = "/".join(parts)
    if scheme.startswith("http"):
        return str(address)
    if scheme.startswith("gs"):
        return f"https://storage.googleapis.com/{host}/{key}"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        return f"{endpoint.rstrip('/')}/{host}/{key}"
    return f"https://{host}.s3.amazonaws.com/{key}"


class _Remote(io.RawIOBase):
    """A file on a server."""

    def __init__(self, address: Address):
        self.address = address
        retry = urllib3.Retry(
            TRIES,
            backoff_factor=PAUSE_S,
            status_forcelist=(429, 500, 502, 503, 504),
            raise_on_status=False,
        )
        self._server = urllib3.PoolManager(retries=retry, timeout=TIMEOUT_S)
        self._position = 0
        answer = self._ask(0, 1)
        length = re.fullmatch(r"bytes .*/(\d+)", answer.headers.get("Content-Range", ""))
        if answer.status != 206 or length is None:
            raise FileError(
                f"{address}: the server sends whole files only, no parts of them; copy the file"
            )
        self.size = int(length[1])

    def _ask(self, start: int, stop: int) -> Any:
        """Return the answer to a request for some bytes, read to its end."""
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        try:
            answer = self._server.request("GET", url_of(self.address), headers=headers)
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise FileError(f"{self.address}: cannot be reached ({reason})") from error
        if answer.status in (403, 404):
            raise FileNotFoundError(f"{self.address}: there is no such file, or it is not public")
        if answer.status >= 400:
            raise FileError(f"{self.address}: refused (answer {answer.status}); try again later")
        return answer

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return where it reads."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes."""
        stop = min(self._position + len(buffer), self.size)
        if stop <= self._position:
            return 0
        content = self._ask(self._position, stop).data
        if len(content) != stop - self._position:
            raise FileError(f"{self.address}: breaks off; try again later")
        buffer[: len(content)] = content
        self._position = stop
        return len(content)
