"""Functions that configurations and scripts of this field import, over `common/`.

They are imported when they are used. Which there are, and how they differ from the public
toolbox's, is in `cellmap_segmentation_challenge._names`.
"""

from __future__ import annotations

from cellmap_segmentation_challenge import _names
from cellmap_segmentation_challenge._public import names_of

__all__ = [  # given by __getattr__
    "CellMapLossWrapper",
    "get_class_relations",
    "get_dataloader",
    "get_tested_classes",
    "load_safe_config",
    "make_datasplit_csv",
]

__getattr__ = names_of(__name__, _names.UTILS)


def __dir__() -> list[str]:
    return [*globals(), *_names.ours(__name__)]
