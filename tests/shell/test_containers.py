"""Images and workflows: nothing is built here, and all that they name is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from common.files import REPOSITORY
from tests.shell import containers

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LOCK = REPOSITORY / "requirements.lock"
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
SYSTEMS = {"ubuntu-latest", "macos-latest", "windows-latest"}
NOT_LOCKED = {"peers"}
"""Extras that nothing but a benchmark takes."""


def test_hadolint_finds_nothing_in_the_dockerfile():
    program = Path(sys.executable).with_name("hadolint")
    if not program.is_file():
        pytest.skip("hadolint is not installed")
    command = [program, "--format", "json", containers.DOCKERFILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(done.stdout) == []


def test_the_context_holds_what_is_copied():
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for source in containers.copied_by_docker():
        if source != "./":
            assert (REPOSITORY / source).exists()
            assert f"!{source}" in ignored


def test_both_images_are_made_in_the_same_way():
    recipe = containers.sections()
    assert set(recipe) >= {"", "files", "post", "environment", "runscript", "test"}
    assert recipe[""] == ["Bootstrap: docker", f"From: {dict(containers.instructions())['FROM']}"]
    copied = [line.split() for line in recipe["files"]]
    assert [source for source, _ in copied] == containers.copied_by_docker()
    [place] = {place.rstrip("/") for _, place in copied}
    assert recipe["post"] == [f"cd {place}", containers.installed_by_docker()]
    assert ("WORKDIR", place) in containers.instructions()


def test_both_images_start_the_same_command():
    words = json.loads(dict(containers.instructions())["ENTRYPOINT"])
    recipe = containers.sections()
    assert recipe["runscript"] == [f'exec {" ".join(words)} "$@"']
    assert recipe["test"] == [f"{' '.join(words)} --version"]


def test_images_have_a_python_and_extras_that_the_package_knows():
    image = re.fullmatch(r"python:(3\.\d+)-slim", dict(containers.instructions())["FROM"])
    assert image[1] in SpecifierSet(PROJECT["requires-python"])
    extras = re.search(r"\.\[(.*)\]", containers.installed_by_docker())[1]
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def locked() -> dict[str, list[Requirement]]:
    """The lines of the lock by the name of the package; some have several, for systems."""
    lines: dict[str, list[Requirement]] = {}
    for line in LOCK.read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            lines.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return lines


def test_the_lock_is_of_exact_versions_and_of_no_machine():
    assert "make lock" in LOCK.read_text().splitlines()[1]
    for name, lines in locked().items():
        for requirement in lines:
            assert requirement.url is None
            [version] = requirement.specifier
            assert version.operator == "==", name
        of_linux = name.startswith(("nvidia-", "cuda-")) or name == "triton"
        if of_linux:  # others could not install them
            assert all("linux" in str(line.marker) for line in lines), name


def test_the_lock_answers_what_the_package_asks_for():
    """After a change of pyproject.toml: make lock."""
    lines = locked()
    asked = list(PROJECT["dependencies"])
    for extra, texts in PROJECT["optional-dependencies"].items():
        asked += [] if extra in NOT_LOCKED else texts
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name == PROJECT["name"]:
            continue
        assert name in lines, f"{name}: not in requirements.lock; make lock"
        here = [line for line in lines[name] if _is_for(line)]
        versions = [next(iter(line.specifier)).version for line in here]
        assert versions and all(version in requirement.specifier for version in versions), name


def _is_for(line: Requirement) -> bool:
    return line.marker is None or line.marker.evaluate(default_environment())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_names_only_what_there_is(path):
    """YAML takes the key `on` for True."""
    workflow = yaml.safe_load(path.read_text())
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    [job] = workflow["jobs"].values()
    matrix = job["strategy"]["matrix"]
    systems = [*matrix["os"], *(more["os"] for more in matrix.get("include", []))]
    assert set(systems) == SYSTEMS
    assert job["runs-on"] == "${{ matrix.os }}"
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [f"make {path.stem}"] and path.stem in targets
    for python in [*matrix.get("python", []), *_pythons(matrix, job)]:
        assert python in SpecifierSet(PROJECT["requires-python"])
    for step in job["steps"]:
        assert "run" in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def _pythons(matrix: dict, job: dict) -> list[str]:
    pythons = [more["python"] for more in matrix.get("include", [])]
    for step in job["steps"]:
        version = step.get("with", {}).get("python-version", "")
        pythons += [] if "matrix" in version or not version else [version]
    return pythons


def test_the_makefile_finds_the_programs_of_a_windows_environment():
    done = subprocess.run(
        ["make", "--dry-run", "demo", "OS=Windows_NT", "VENV=nowhere"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "nowhere/Scripts/python -m cellmap_segmentation_challenge demo" in done.stdout
    assert "nowhere/bin" not in done.stdout
