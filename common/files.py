"""Where the repository is, and files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
