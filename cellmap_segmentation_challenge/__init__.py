"""The command line, and the names that scripts of this field import; the engine is in `common/`.

Names are imported when they are used: `import cellmap_segmentation_challenge` takes no time.
`_names` lists them, and how they differ from the public toolbox's.
"""

from __future__ import annotations

from cellmap_segmentation_challenge import _names
from cellmap_segmentation_challenge._public import install, names_of

__all__ = ["evaluate", "predict", "process", "train"]  # given by __getattr__

__getattr__ = names_of(__name__, _names.PACKAGE)


def __dir__() -> list[str]:
    return [*globals(), *_names.ours(__name__)]


install()
