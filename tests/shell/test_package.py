"""The package as pip knows it: what it asks for, and that it works where it is installed."""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from conftest import DEADLINE
from packaging.requirements import Requirement

from common.files import REPOSITORY
from common.shell import package
from tests.shell import containers

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PACKAGES = ("common", "cellmap_segmentation_challenge")


def name_of(text: str) -> str:
    return Requirement(text).name.lower().replace("_", "-")


@functools.cache
def imported(folder: str) -> set[str]:
    """The packages that files import, the functions' own imports included."""
    names = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


def test_what_the_engine_imports_is_asked_for():
    asked = {name_of(text) for text in PROJECT["dependencies"]}
    for texts in PROJECT["optional-dependencies"].values():
        asked |= {name_of(text) for text in texts}
    exceptions = {"packaging"}  # doctor does without where it is not there
    distributions = metadata.packages_distributions()
    for module in imported("common") - exceptions:
        names = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
        assert names & asked or f"{module}-skinny" in asked, module


def test_benchmarks_reference_is_no_need_of_the_engine():
    assert "cellmap_data" not in imported("common")
    assert "cellmap-data" not in {name_of(text) for text in PROJECT["dependencies"]}


def test_a_checkout_asks_for_what_its_pyproject_says():
    requirements = list(package.requirements())
    for_training = [asked.text for asked in requirements if asked.for_training]
    assert for_training == PROJECT["dependencies"]
    assert "pytest>=8" in {asked.text for asked in requirements if not asked.for_training}


def test_an_installed_package_asks_for_what_its_metadata_says(monkeypatch, tmp_path):
    monkeypatch.setattr(package, "REPOSITORY", tmp_path)
    monkeypatch.setattr(package.metadata, "version", lambda _: "7.8")
    texts = ["torch>=2.10", "optuna; extra == 'search'", 'pytest>=8; extra == "dev"']
    monkeypatch.setattr(package.metadata, "requires", lambda _: texts)
    assert package.version() == "7.8"
    assert list(package.requirements()) == [package.Requirement("torch>=2.10", for_training=True)]


def test_another_project_in_the_working_folder_is_not_taken_for_ours(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "1"\n')
    monkeypatch.setattr(package, "REPOSITORY", tmp_path)
    monkeypatch.setattr(package.metadata, "version", lambda _: "7.8")
    assert package.version() == "7.8"


# Installed


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder that pip installed this package into, by the steps of the Dockerfile.

    Without its requirements, and without a network.
    """
    pytest.importorskip("setuptools", minversion="77")
    context = tmp_path_factory.mktemp("context")
    for source in containers.copied_by_docker():
        path = REPOSITORY / source
        (shutil.copytree if path.is_dir() else shutil.copy)(path, context / source)
    target = tmp_path_factory.mktemp("site")
    offline = {"NO_DEPS": "1", "NO_INDEX": "1", "TARGET": str(target), "QUIET": "1"}
    # pip reads the negated option so
    offline |= {"NO_BUILD_ISOLATION": "0", "DISABLE_PIP_VERSION_CHECK": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", containers.installed_by_docker()],
        cwd=context,
        env={**os.environ, "PATH": path, **{f"PIP_{name}": v for name, v in offline.items()}},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def csc(site, tmp_path):
    """Runs the installed command in an unrelated folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, site / "bin" / "csc", *map(str, words)],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )

    return call


def test_every_file_of_the_engine_is_installed(site):
    """Tables and templates, too."""
    listed = ["git", "ls-files", *PACKAGES]
    done = subprocess.run(
        listed, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    assert not [name for name in done.stdout.splitlines() if not (site / name).is_file()]


def test_a_wheel_holds_the_packages_and_the_command_and_nothing_else(site):
    """Experiments stay folders of the checkout."""
    folders = {path.name for path in site.iterdir() if path.is_dir()} - {"bin"}
    version = PROJECT["version"]
    assert folders == {*PACKAGES, f"{package.NAME.replace('-', '_')}-{version}.dist-info"}
    [entry_points] = site.glob("*.dist-info/entry_points.txt")
    assert "csc = cellmap_segmentation_challenge.__main__:csc" in entry_points.read_text()


def test_the_installed_command_takes_the_public_defaults(csc, experiment):
    tiny = experiment()
    done = csc("predict", tiny.folder, "--data", tiny.data, "--manifest", "nowhere.csv")
    assert done.returncode == 2
    assert "predict without --crops takes test, as in the public toolbox" in done.stderr
    assert "nowhere.csv: no such manifest" in done.stderr


def test_public_names_are_imported_from_the_installed_package(site, tmp_path):
    program = """
from cellmap_segmentation_challenge import SEARCH_PATH, match_crop_space
from cellmap_segmentation_challenge.models import UNet_3D
from cellmap_segmentation_challenge.utils import fetch_manifest, get_dataloader
print(len(fetch_manifest()), SEARCH_PATH)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    root = tmp_path / "data"
    assert done.stdout == f"289 {root}/{{dataset}}/{{dataset}}.zarr/recon-1/{{name}}\n"


def test_the_installed_command_trains_with_data_and_cache_of_the_working_folder(
    csc, experiment, monkeypatch
):
    monkeypatch.delenv("CELLMAP_CACHE")
    tiny = experiment(epochs=1)
    (tiny.folder.parent / "elsewhere" / "data").symlink_to(tiny.data)
    done = csc("train", tiny.folder)
    assert done.returncode == 0, done.stderr
    assert (tiny.folder / "checkpoints/tiny_experiment/seed42/best.pt").is_file()
    assert list((tiny.folder.parent / "elsewhere" / "cache").rglob("raw.npy"))


def test_the_installed_command_copies_an_experiment_of_the_working_folder(csc, experiment):
    tiny = experiment()
    elsewhere = tiny.folder.parent / "elsewhere"
    shutil.copytree(tiny.folder, elsewhere / "unet")
    done = csc("new", "mine", "--from", "unet")
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "mine/train_config.py").is_file()
    assert done.stdout.endswith("train mine --check\n")


def test_the_installed_command_looks_at_its_own_requirements(csc, experiment):
    tiny = experiment()
    done = csc("doctor", tiny.folder, "--data", tiny.data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch" in done.stdout and "for tests only" not in done.stdout


def test_the_installed_command_says_that_the_demo_needs_the_repository(csc):
    done = csc("demo")
    assert done.returncode == 2
    assert done.stderr.startswith("error: demo: ") and done.stderr.count("\n") == 1


def test_the_installed_command_knows_its_version_and_its_table_of_crops(csc):
    assert csc("--version").stdout == f"{package.NAME} {PROJECT['version']}\n"
    done = csc("make-datasplit", "split.csv", "--manifest", "challenge", "--scale", "128")
    assert done.returncode == 0, done.stderr
