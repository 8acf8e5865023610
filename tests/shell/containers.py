"""The Dockerfile and the recipe of Apptainer, taken apart."""

from __future__ import annotations

import re

from common.files import REPOSITORY

DOCKERFILE = REPOSITORY / "Dockerfile"
APPTAINER = REPOSITORY / "apptainer.def"


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: name and the rest of the line."""
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    parted = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in parted]


def copied_by_docker() -> list[str]:
    """The files and folders of the checkout that are copied."""
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY"]
    return [source for sources in copied for source in sources]


def installed_by_docker() -> str:
    """The command that installs the package."""
    [command] = [rest for name, rest in instructions() if name == "RUN"]
    return command


def sections() -> dict[str, list[str]]:
    """The lines of each section of the recipe, without comments; "" is its header."""
    lines: dict[str, list[str]] = {"": []}
    section = ""
    for line in APPTAINER.read_text().splitlines():
        if match := re.fullmatch(r"%(\w+)", line):
            section = match[1]
            lines[section] = []
        elif line.strip() and not line.startswith("#"):
            lines[section].append(line.strip())
    return lines
