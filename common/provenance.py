"""What ran: versions of packages, the machine and the git commit, beside every result."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "numpy", "zarr", "cellmap-models", "leibnetz")
"""Those whose version can change a result."""


def provenance(repository: Path) -> dict[str, str]:
    """Versions, machine and git commit of what runs: as they were at the first call.

    What a process loaded runs on, whatever is installed or committed beside it later.
    """
    return dict(_at_first(repository))


@functools.cache
def _at_first(repository: Path) -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **versions_of(PACKAGES),
        "machine": platform.processor() or platform.machine(),
        **_commit(repository),
    }


def usable_cores() -> int:
    """Cores that this process may use, which a queue may make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def now() -> str:
    """Date and time of day in UTC, to the second, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def uncommitted(repository: Path) -> bytes:
    """What differs from the commit, as a patch that `git apply` takes; empty where nothing does.

    New files are in it where they are Python: others may be data.
    """
    options = ("--no-color", "--no-ext-diff")
    try:
        changed = _git(repository, "diff", "HEAD", "--stat")
        listed = _git(repository, "ls-files", "--others", "--exclude-standard", "--", "*.py")
    except FileNotFoundError:
        return b""
    parts = [_output(repository, "diff", "HEAD", *options)] if changed else []
    for name in listed.splitlines():
        parts.append(_output(repository, "diff", "--no-index", *options, "--", "/dev/null", name))
    return b"".join(parts)


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of each package."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    # the installed metadata: importing torch for its version would take seconds
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit(repository: Path) -> dict[str, str]:
    """The commit, "none" outside of a repository, and whether files differ from it.

    "no git" where git is not installed.
    """
    try:
        changes = _git(repository, "status", "--porcelain")
        commit = _git(repository, "rev-parse", "HEAD")
    except FileNotFoundError:
        return {"commit": "no git"}
    return {"commit": commit or "none", "uncommitted_changes": str(bool(changes))}


def _output(repository: Path, *words: str) -> bytes:
    """What a git command prints, to the byte; `diff` ends with 1 where files differ."""
    command = ["git", "-C", str(repository), *words]
    return subprocess.run(command, capture_output=True, check=False).stdout


def _git(repository: Path, *words: str) -> str:
    """What a git command prints; empty where it fails."""
    done = subprocess.run(
        ["git", "-C", str(repository), *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
