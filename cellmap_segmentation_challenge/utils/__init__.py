"""Functions that configurations and scripts of this field import, over `common/`.

They are imported when they are used.
"""

from __future__ import annotations

from cellmap_segmentation_challenge._public import names_of

SOURCES = {
    "get_tested_classes": "cellmap_segmentation_challenge.utils.classes",
    "get_class_relations": "cellmap_segmentation_challenge.utils.classes",
    "load_safe_config": "cellmap_segmentation_challenge.utils.security",
    "get_dataloader": "cellmap_segmentation_challenge.utils.dataloader",
    "CellMapLossWrapper": "cellmap_segmentation_challenge.utils.loss",
    "make_datasplit_csv": "common.data.make_split",
}
"""Where each name is; the submodules are called as in the public toolbox."""

__all__ = [  # given by __getattr__
    "CellMapLossWrapper",
    "get_class_relations",
    "get_dataloader",
    "get_tested_classes",
    "load_safe_config",
    "make_datasplit_csv",
]

__getattr__ = names_of(__name__, SOURCES)
