"""What this package is and asks for: its version and its requirements."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from common.files import REPOSITORY

NAME = "csc-baselines"
"""Of the distribution, as pip knows it."""

MODULE = "cellmap_segmentation_challenge"
"""What `python -m` is given."""


@dataclass(frozen=True)
class Requirement:
    """A package that is asked for."""

    text: str
    """As pip takes it: zarr>=2.18,<3."""
    for_training: bool
    """False for what only tests and benchmarks need."""


def version() -> str:
    """The version of this package; of a checkout that of its pyproject.toml."""
    project = _project()
    return project["version"] if project else metadata.version(NAME)


def requirements() -> Iterator[Requirement]:
    """What is asked for to train, and in a checkout also what its tests need.

    A checkout is asked before the installed metadata, which is as old as the last `pip install`.
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


def _project() -> dict[str, Any]:
    """The table [project] of the checkout that this package lies in; empty if it is installed."""
    file = REPOSITORY / "pyproject.toml"
    if not file.is_file():
        return {}
    project = tomllib.loads(file.read_text()).get("project", {})
    # an installed package in a user's own project: REPOSITORY is the working folder then
    return project if project.get("name") == NAME else {}
