"""A public configuration while it is translated: what it gives, what became of it, what is said."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL_NAME = "2d_unet"
"""The toolbox's default."""

CHECKPOINTS = "checkpoints/{model_name}_{epoch}.pth"
"""The toolbox's default of model_save_path."""


@dataclass
class Draft:
    """A configuration while it is translated."""

    path: Path
    given: dict[str, Any]
    """The names of the file that may be settings of the toolbox."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of ours."""
    notes: list[str] = field(default_factory=list)
    """What was taken how, a sentence for each name."""
    problems: list[str] = field(default_factory=list)
    """What cannot be taken at all."""
    split: dict[str, Any] = field(default_factory=dict)
    """How a datasplit is written where there is none."""

    def note(self, name: str, sentence: str) -> None:
        """Say what became of a name of the file."""
        self.notes.append(f"{name}: {sentence}")
