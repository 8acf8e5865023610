"""The public toolbox of the same name beside ours: a made-up one with the real one's shape."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import DEADLINE

from common.files import REPOSITORY

TOOLBOX = {
    "__init__.py": """
        from .config import ONLY_THERE, RAW_NAME
        from .models import UNet_2D


        def __getattr__(name):
            if name == "align_space":
                from .utils.helpers import align_space

                return align_space
            raise AttributeError(name)
        """,
    "config.py": "ONLY_THERE = 1; RAW_NAME = 'em/fibsem-uint8'",
    # the names of its utils are more than ours, and their submodules are called as ours
    "utils/__init__.py": """
        from .classes import get_tested_classes
        from .helpers import get_fig_dict, pad_to
        from .security import load_safe_config, scan_script
        """,
    "utils/classes.py": """
        COLOUR = "red"


        def get_tested_classes():
            return ["of the toolbox"]
        """,
    "utils/helpers.py": """
        from ..config import RAW_NAME


        def pad_to(n):
            return n, RAW_NAME


        def align_space():
            return "aligned"


        def get_fig_dict():
            return "of the toolbox"
        """,
    "utils/security.py": """
        def scan_script(path):
            return True, []


        def load_safe_config(path):
            raise AssertionError("the toolbox's")
        """,
    "models/__init__.py": """
        from .. import config
        from ..utils import get_tested_classes, pad_to
        from .unet import UNet_2D

        SEEN = get_tested_classes(), pad_to(2), config.RAW_NAME
        """,
    "models/unet.py": """
        import cellmap_segmentation_challenge.utils.helpers as helpers


        class UNet_2D:
            padding = staticmethod(helpers.pad_to)

            def later(self):
                from ..utils import pad_to  # as in a function that is called long after

                return pad_to is helpers.pad_to
        """,
    "train.py": """
        def train(path):
            raise AssertionError("the toolbox's")
        """,
    "view.py": "import neuroglancer_that_is_not_there",
}


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder with the toolbox in it, as a site-packages."""
    for name, text in TOOLBOX.items():
        path = tmp_path / "site" / "cellmap_segmentation_challenge" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path / "site"


@pytest.fixture
def python(site, tmp_path):
    """Runs a program with ours first on the path and the toolbox behind; gives what it prints."""

    def call(program: str, behind: Path | None = site, code: int = 0) -> str:
        folders = [str(REPOSITORY)] + ([str(behind)] if behind else [])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr.splitlines()[-1]

    return call


def test_a_submodule_of_the_toolbox_sees_the_toolboxs_names(python):
    program = """
        import cellmap_segmentation_challenge.models
        print(cellmap_segmentation_challenge.models.SEEN)
        """
    assert python(program) == ("(['of the toolbox'], (2, 'em/fibsem-uint8'), 'em/fibsem-uint8')\n")


def test_ours_win_and_what_we_lack_is_the_toolboxs(python):
    program = """
        import cellmap_segmentation_challenge.models
        from cellmap_segmentation_challenge import ONLY_THERE, align_space, train
        from cellmap_segmentation_challenge.utils import get_tested_classes, load_safe_config
        from cellmap_segmentation_challenge.utils import get_fig_dict, pad_to
        from cellmap_segmentation_challenge.utils.classes import COLOUR, get_class_relations
        from cellmap_segmentation_challenge.utils.security import scan_script
        print(train.__module__, len(get_tested_classes()), load_safe_config.__module__)
        print(ONLY_THERE, align_space(), pad_to(1)[0], COLOUR, scan_script(""))
        print(get_fig_dict())
        """
    assert python(program) == (
        "common.train.run 48 cellmap_segmentation_challenge.utils.security\n"
        "1 aligned 1 red (True, [])\n"
        "of the toolbox\n"
    )


def test_each_module_of_the_toolbox_runs_once(python):
    program = """
        import pickle
        import sys
        import cellmap_segmentation_challenge.models.unet as unet
        from cellmap_segmentation_challenge import UNet_2D
        from cellmap_segmentation_challenge.models import UNet_2D as again
        from cellmap_segmentation_challenge.utils.helpers import pad_to
        print(unet.UNet_2D is UNet_2D is again, UNet_2D.padding is pad_to, UNet_2D().later())
        pickled = pickle.dumps(UNet_2D)
        print(sum(name.endswith("models.unet") for name in sys.modules))
        print(pickle.loads(pickled) is UNet_2D)
        """
    assert python(program) == "True True True\n2\nTrue\n"


def test_what_was_pickled_is_read_in_another_process(python, tmp_path):
    path = tmp_path / "pickle"
    program = """
        import pathlib, pickle
        from cellmap_segmentation_challenge.models import UNet_2D
        pathlib.Path({path!r}).write_bytes(pickle.dumps(UNet_2D()))
        """
    python(program.format(path=str(path)))
    program = """
        import pathlib, pickle
        print(type(pickle.loads(pathlib.Path({path!r}).read_bytes())).__name__)
        """
    assert python(program.format(path=str(path))) == "UNet_2D\n"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("import cellmap_segmentation_challenge.view", "'neuroglancer_that_is_not_there'"),
        ("import cellmap_segmentation_challenge.nothing", "'cellmap_segmentation_challenge.noth"),
        ("import cellmap_segmentation_challenge.visualize", "from cellmap_segmentation_challenge "),
        ("from cellmap_segmentation_challenge import nothing", "cannot import name 'nothing'"),
        ("from cellmap_segmentation_challenge.utils import nothing", "import name 'nothing'"),
        ("import cellmap_segmentation_challenge.train", "from cellmap_segmentation_challenge imp"),
    ],
)
def test_what_cannot_be_imported_says_why(python, statement, reason):
    assert reason in python(statement, code=1)


def test_a_broken_toolbox_is_told_where_it_is_asked_for_and_only_there(python, site):
    (site / "cellmap_segmentation_challenge/config.py").write_text("import missing_package")
    program = "from cellmap_segmentation_challenge.utils import get_tested_classes"
    assert python(program) == ""
    said = python("from cellmap_segmentation_challenge.utils import pad_to", code=1)
    assert said.startswith("ImportError: ")
    assert str(site) in said and "'missing_package'" in said


def test_networks_are_the_toolboxs_where_it_has_them(python):
    program = """
        from cellmap_segmentation_challenge.models import ResNet, UNet_2D, load_latest
        from cellmap_segmentation_challenge.models import unet
        print(UNet_2D is unet.UNet_2D, ResNet.__module__, load_latest.__module__)
        """
    assert python(program) == (
        "True cellmap_segmentation_challenge.models.resnet "
        "cellmap_segmentation_challenge.models.model_load\n"
    )


@pytest.mark.parametrize("line", ["import missing_package", "raise OSError('no network')"])
def test_networks_are_ours_where_the_toolbox_cannot_be_imported(python, site, line):
    """The real one imports packages that are not always there, and downloads at import."""
    (site / "cellmap_segmentation_challenge/models/unet.py").write_text(line)
    program = """
        import contextlib, io
        with contextlib.redirect_stderr(io.StringIO()) as said:
            from cellmap_segmentation_challenge.models import UNet_2D
        print(UNet_2D.__module__)
        print("ours is taken for UNet_2D" in " ".join(said.getvalue().split()))
        """
    assert python(program) == "cellmap_segmentation_challenge.models.unet_model_2D\nTrue\n"


def test_an_installed_toolbox_is_found_behind_ours(python, site):
    """As pip leaves it: a folder of its own name beside the record of its installation."""
    info = site / "cellmap_segmentation_challenge-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: cellmap-segmentation-challenge\nVersion: 0.0.1\n"
    )
    program = """
        import importlib.metadata
        import cellmap_segmentation_challenge
        import cellmap_segmentation_challenge.models
        from cellmap_segmentation_challenge.models import SEEN, UNet_2D
        print(importlib.metadata.version("cellmap-segmentation-challenge"), SEEN[1][0])
        print(cellmap_segmentation_challenge.__file__, UNet_2D().later())
        """
    ours = REPOSITORY / "cellmap_segmentation_challenge/__init__.py"
    assert python(program) == f"0.0.1 2\n{ours} True\n"


def test_importing_models_takes_no_torch(python):
    program = """
        import sys
        import cellmap_segmentation_challenge.models
        print("torch" in sys.modules, "monai" in sys.modules)
        """
    assert python(program, behind=None) == "False False\n"


def test_without_a_toolbox_there_are_only_ours(python):
    said = python("import cellmap_segmentation_challenge.view", behind=None, code=1)
    assert said.endswith("No module named 'cellmap_segmentation_challenge.view'")
    program = """
        import cellmap_segmentation_challenge as ours
        print(hasattr(ours, "REPO_ROOT"), hasattr(ours, "ONLY_THERE"), hasattr(ours, "_private"))
        """
    assert python(program, behind=None) == "True False False\n"


def test_an_editable_installation_of_the_toolbox_is_found(python, site):
    program = f"""
        import importlib.util, sys

        class Editable:
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                if name == "cellmap_segmentation_challenge":
                    return importlib.util.spec_from_file_location(
                        name, {str(site / "cellmap_segmentation_challenge/__init__.py")!r})

        sys.meta_path.append(Editable)
        from cellmap_segmentation_challenge.models import SEEN
        print(SEEN[0])
        """
    assert python(program, behind=None) == "['of the toolbox']\n"
