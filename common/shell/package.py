"""Version and requirements of this package."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from common.files import REPOSITORY

NAME = "csc-baselines"
"""Name of the distribution for pip."""

MODULE = "cellmap_segmentation_challenge"
"""Name of the package for `python -m`."""


@dataclass(frozen=True)
class Requirement:
    """A required package."""

    text: str
    """As pip takes it: zarr>=2.18,<3."""
    for_training: bool
    """False for what only tests and benchmarks need."""


def version() -> str:
    """Return the version of this package; in a checkout, that of pyproject.toml."""
    project = _project()
    return project["version"] if project else metadata.version(NAME)


def requirements() -> Iterator[Requirement]:
    """Yield what training requires, and in a checkout also what its tests require.

    pyproject.toml of a checkout goes before the installed metadata, which is as old as the last
    `pip install`.
    """
    project = _project()
    if project:
        for text in project["dependencies"]:
            yield Requirement(text, for_training=True)
        for text in project["optional-dependencies"]["dev"]:
            if not text.startswith(f"{NAME}["):
                yield Requirement(text, for_training=False)
        return
    for text in metadata.requires(NAME) or []:
        if "extra ==" not in text:
            yield Requirement(text, for_training=True)


def installed(package: str) -> str:
    """Return the version of a package; "" if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def misfit(asked: Requirement, version: Callable[[str], str] = installed) -> str | None:
    """Return why a requirement is not met, "" if it is; None if this system does not have it.

    version: gives the version of an installed package. Raises ImportError without `packaging`.
    """
    from packaging.requirements import Requirement as Parsed

    wanted = Parsed(asked.text)
    if wanted.marker and not wanted.marker.evaluate():  # for another system or Python
        return None
    found = version(wanted.name)
    if found and wanted.specifier.contains(found, prereleases=True):
        return ""
    state = f"{found} is installed" if found else "it is not installed"
    return f"{wanted} is asked for, and {state}"


def unmet() -> list[str]:
    """Return a sentence for each package that training requires in another version, or at all."""
    sentences = []
    for asked in requirements():
        problem = misfit(asked) if asked.for_training else ""
        if problem:
            sentences.append(problem)
    return sentences


def _project() -> dict[str, Any]:
    """Return the table [project] of this checkout; {} if the package is installed."""
    file = REPOSITORY / "pyproject.toml"
    if not file.is_file():
        return {}
    project = tomllib.loads(file.read_text()).get("project", {})
    # an installed package in a user's own project: REPOSITORY is the working folder then
    return project if project.get("name") == NAME else {}
