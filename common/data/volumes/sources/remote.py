"""Read files from buckets and web servers, by tensorstore.

Buckets are read without signing in, unless the environment names an account: AWS_PROFILE or
AWS_ACCESS_KEY_ID for s3://, GOOGLE_APPLICATION_CREDENTIALS for gs://. AWS_ENDPOINT_URL names
another server than Amazon's, AWS_REGION its region.

tensorstore asks again, with growing pauses, while a connection breaks off or a server is
overloaded. It has threads of its own, which a forked process would be without: workers of the
loader must not come here, and do not, since they read decoded crops.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import FileError, UserError

SCHEMES = ("s3", "gs", "http", "https")

# one slash where a Path was made of it
ADDRESS = re.compile(f"^({'|'.join(SCHEMES)}):/+([^/].*)", re.DOTALL)

TRIES = 6
"""Number of times that a request is repeated."""

FIRST_PAUSE = "200ms"
LONGEST_PAUSE = "8s"
"""Before a request is repeated; they grow."""

CACHE_BYTES = 2**28
"""Decoded chunks that are kept: blocks of a prediction overlap by their context."""


class Address(type(Path())):  # type: ignore[misc]  # the class of paths on this system
    """A path in a bucket or on a web server, which joins, names and prints as one.

    It is read as a small file is, and what is there is asked of the server. Nothing is written.
    """

    def __str__(self) -> str:
        """With both slashes behind the scheme, of which a path keeps one."""
        return ADDRESS.sub(r"\1://\2", super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> Address:
        """Return the same: an address is."""
        return self

    def resolve(self, strict: bool = False) -> Address:
        """Return the same."""
        return self

    def expanduser(self) -> Address:
        """Return the same."""
        return self

    def is_absolute(self) -> bool:
        """It is."""
        return True

    def read_bytes(self) -> bytes:
        """Return the content, see `read`."""
        return read(self)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there is such a file; folders there are none."""
        return self.is_file()

    def is_file(self) -> bool:
        """Return whether there is such a file."""
        try:
            read(self)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """It is none: servers have files only."""
        return False


@functools.cache
def context() -> Any:
    """Return the context that all stores of this process share: tries, and a cache of chunks."""
    import tensorstore

    retries = {"max_retries": TRIES, "initial_delay": FIRST_PAUSE, "max_delay": LONGEST_PAUSE}
    about = {f"{kind}_request_retries": retries for kind in ("http", "s3", "gcs")}
    about["cache_pool"] = {"total_bytes_limit": CACHE_BYTES}
    return tensorstore.Context(about)


def store(path: Path) -> dict[str, Any]:
    """Return how tensorstore names a file or folder: on this disk, in a bucket, on a server."""
    if not isinstance(path, Address):
        return {"driver": "file", "path": str(path.absolute())}
    scheme, host, *parts = path.parts
    rest = "/".join(parts)
    if scheme.startswith("http"):
        return {"driver": "http", "base_url": f"{scheme}//{host}", "path": f"/{rest}"}
    if scheme.startswith("gs"):
        return {"driver": "gcs", "bucket": host, "path": rest}
    return {"driver": "s3", "bucket": host, "path": rest, **_amazon()}


def _amazon() -> dict[str, Any]:
    """Return the server and the account that the environment names."""
    environment = os.environ
    named = environment.get("AWS_PROFILE") or environment.get("AWS_ACCESS_KEY_ID")
    about: dict[str, Any] = {"aws_credentials": {"type": "default" if named else "anonymous"}}
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if endpoint:
        about["endpoint"] = endpoint
        # a server without regions still wants one
        region = region or "us-east-1"
    if region:
        about["aws_region"] = region
    return about


@functools.cache
def server(root: Address) -> Any:
    """Return the bucket or web server that an address is on."""
    import tensorstore

    try:
        return tensorstore.KvStore.open(store(root), context=context()).result()
    except ValueError as error:
        raise failure(root, error) from error


def read(address: Address) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: if there is none, or none that everybody may read.
        FileError: if the server does not answer.
    """
    (content,) = read_all([address])
    if content is None:
        raise FileNotFoundError(f"{address}: there is no such file")
    return content


def read_all(addresses: Sequence[Path]) -> list[bytes | None]:
    """Return the contents of files on one server, asked for together; None for those not there."""
    waiting = []
    for address in addresses:
        host = server(Address(*address.parts[:2]))
        waiting.append(host.read("/".join(address.parts[2:])))
    contents: list[bytes | None] = []
    for address, future in zip(addresses, waiting, strict=True):
        try:
            answer = future.result()
        except ValueError as error:
            raise failure(address, error) from error
        contents.append(bytes(answer.value) if answer.state == "value" else None)
    return contents


def failure(path: Path, error: Exception) -> UserError | FileNotFoundError:
    """Return the error for what a server, or a file of this disk, did not give."""
    reason = sentence_of(error)
    if "PERMISSION_DENIED" in str(error):
        # also what a bucket answers that may not be listed, where there is no such file
        return FileNotFoundError(f"{path}: there is no such file, or it is not public")
    if isinstance(path, Address):
        return FileError(
            f"{path}: cannot be read ({reason}); check the address, or try again later"
        )
    return UserError(f"{path}: cannot be read ({reason}); copy it again")


def sentence_of(error: Exception) -> str:
    """Return the message of tensorstore without its code word and the specification behind it."""
    text = str(error).partition(" [")[0].partition("\n")[0]
    return re.sub("^[A-Z_]+: ", "", text)
