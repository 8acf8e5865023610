"""Give access to the public toolbox of the same name, if it is installed beside this package.

Only one package of a name can be imported: this one, if it comes first on the path. The toolbox is
then imported as `cellmap_segmentation_challenge._toolbox`; its modules see each other and its own
names, never ours. What we lack is found in it under the common name:

    import cellmap_segmentation_challenge.evaluation       the toolbox's module, if it has one
    from cellmap_segmentation_challenge.utils import X    ours if we have X, else the toolbox's
    from cellmap_segmentation_challenge.models import X   the toolbox's, ours if it has not got it

Each module of the toolbox runs once: under both names it is the same object.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cellmap_segmentation_challenge._names import Lacking, Ours

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # without these bases, whose module takes longer to import than all else here
    Loader = MetaPathFinder = object

PACKAGE = "cellmap_segmentation_challenge"
TOOLBOX = f"{PACKAGE}._toolbox"
HERE = Path(__file__).resolve().parent

FUNCTIONS = frozenset(["train", "predict", "process", "evaluate", "visualize"])
"""Functions of the package; in the toolbox modules are called so."""


def names_of(
    module: str, names: Mapping[str, Ours | Lacking], theirs_first: Collection[str] = ()
) -> Callable[[str], Any]:
    """Make a `__getattr__` for one of our modules: our names, then the toolbox's.

    Modules are imported when a name is used. For a name that we know and neither has, it raises
    ImportError with what to write instead.

    Args:
        module: name of the module.
        names: the table of its names, see `_names`.
        theirs_first: names that are taken from the toolbox if it can be imported.
    """

    def get(name: str) -> Any:
        if name in theirs_first:
            theirs = _of_toolbox(module, name)
            if theirs is not None:
                return theirs
        entry = names.get(name)
        if isinstance(entry, Ours):
            return getattr(import_module(entry.module), name)
        # tools ask modules for names such as __wrapped__; our submodules come before the toolbox
        if not name.startswith("_") and not _is_ours(f"{module}.{name}"):
            counterpart = _toolbox_module(module)
            if counterpart and hasattr(counterpart, name):
                return getattr(counterpart, name)
        if isinstance(entry, Lacking):
            raise ImportError(f"{module} has no {name}; instead: {entry.instead}", name=module)
        raise AttributeError(f"module '{module}' has no attribute '{name}'")

    return get


def install() -> None:
    """Let `import` find the toolbox's modules under the common name."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        # first: the next finder would run a module below one of the toolbox's a second time
        sys.meta_path.insert(0, Finder())


class Finder(MetaPathFinder):
    """Finds modules of the toolbox that we do not have."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of the toolbox; None for other packages, and for ours."""
        if fullname == TOOLBOX:
            return _toolbox_spec()
        if not fullname.startswith(f"{PACKAGE}.") or fullname.startswith(f"{TOOLBOX}."):
            return None
        below = fullname.removeprefix(f"{PACKAGE}.")
        if below in FUNCTIONS:
            # as an attribute of the package, the toolbox's module would take the function's place
            raise ModuleNotFoundError(
                f"{fullname} is a function here; write from {PACKAGE} import {below}, and import "
                f"what else you need of that module from {PACKAGE}.utils",
                name=fullname,
            )
        if _is_ours(fullname) or not _toolbox_spec():
            return None
        counterpart = importlib.util.find_spec(f"{TOOLBOX}.{below}")
        if counterpart is None:
            return None
        is_package = counterpart.submodule_search_locations is not None
        return ModuleSpec(fullname, Alias(counterpart.name), is_package=is_package)


class Alias(Loader):
    """Loads a module of the toolbox under a second name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module itself."""
        module = import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Put back what the import system wrote over: relative imports go by it."""
        module.__spec__ = self.spec


def _is_ours(name: str) -> bool:
    """Whether a module below our package is one of this folder's files."""
    parts = name.split(".")[1:]
    path = HERE.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _of_toolbox(module: str, name: str) -> Any:
    """Return an attribute of the toolbox's module; None without it, or if it cannot be imported."""
    try:
        return getattr(_toolbox_module(module), name, None)
    except Exception as error:  # it downloads at import, and imports what is not always there
        from common.talk import note_once

        note_once(f"{error}; ours is taken for {name}")
        return None


def _toolbox_module(module: str) -> ModuleType | None:
    """Return the toolbox's module for one of ours; None without a toolbox or such a module."""
    spec = _toolbox_spec()
    if spec is None:
        return None
    name = TOOLBOX + module.removeprefix(PACKAGE)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        reason: ImportError = error
    except ImportError as error:
        reason = error
    raise ImportError(
        f"{module} has not got it, and the toolbox in {spec.origin} cannot be imported ({reason})"
    ) from reason


def _toolbox_spec() -> ModuleSpec | None:
    """Return the spec of the toolbox under its second name; None without a toolbox."""
    for spec in _specs():
        # another checkout of this repository is no toolbox
        if spec.origin and not (Path(spec.origin).resolve().parent / Path(__file__).name).is_file():
            return importlib.util.spec_from_file_location(
                TOOLBOX, spec.origin, submodule_search_locations=[str(Path(spec.origin).parent)]
            )
    return None


def _specs() -> Iterator[ModuleSpec]:
    """Yield the spec of every package of the common name."""
    for folder in sys.path:
        spec = PathFinder.find_spec(PACKAGE, [folder])
        if spec:
            yield spec
    # an editable installation is found by a finder of its own
    for finder in sys.meta_path:
        if finder is PathFinder or isinstance(finder, Finder):
            continue
        spec = finder.find_spec(PACKAGE, None)
        if spec:
            yield spec
