"""Functions that configurations and scripts of this field import, over `common/`; imported when they are used."""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import Any

SOURCES = {
    "get_tested_classes": "cellmap_segmentation_challenge.utils.classes",
    "get_class_relations": "cellmap_segmentation_challenge.utils.classes",
    "load_safe_config": "cellmap_segmentation_challenge.utils.security",
    "get_dataloader": "cellmap_segmentation_challenge.utils.dataloader",
    "CellMapLossWrapper": "cellmap_segmentation_challenge.utils.loss",
    "make_datasplit_csv": "common.data.make_split",
}
"""Where each name is; the submodules are called as in the public toolbox."""

__all__ = sorted(SOURCES)

__path__ = extend_path(__path__, __name__)


def __getattr__(name: str) -> Any:
    if name in SOURCES:
        return getattr(import_module(SOURCES[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
