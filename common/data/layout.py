"""The challenge's layout of a data root: where raw and labels of a dataset are."""

from __future__ import annotations

RAW = "recon-1/em/fibsem-uint8"


LABELS = "recon-1/labels/groundtruth"
