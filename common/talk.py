"""How a command speaks: lines on standard error, a progress bar, the command to type next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tqdm import tqdm


def say(text: str) -> None:
    """A line on standard error, beside a progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)


def command(config_path: str | Path) -> str:
    """The command that this process was started with, or one like it."""
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join(["python", "-m", Path(sys.argv[0]).parent.name, *sys.argv[1:]])
    return f"python -m cellmap_segmentation_challenge train {config_path}"
