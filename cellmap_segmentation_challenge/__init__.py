"""The command line, and the public names that scripts of this field import. The engine is in `common/`.

Names are imported when they are used: `import cellmap_segmentation_challenge` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import Any

SOURCES = {
    "train": "common.train.run",
    "predict": "common.infer.predict",
    "process": "common.infer.process",
    "evaluate": "common.score.evaluate",
}
"""Where each name is."""

__all__ = ["evaluate", "predict", "process", "train"]

__path__ = extend_path(
    __path__, __name__
)  # other submodules of an installed public toolbox stay importable


def __getattr__(name: str) -> Any:
    if name in SOURCES:
        return getattr(import_module(SOURCES[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
