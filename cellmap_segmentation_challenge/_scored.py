"""Training as the command line trains: with what scores whole crops in the middle of a run.

The engine's `train` is below the rooms that predict and score, and is handed what does; here it is.
"""

from __future__ import annotations

import functools
from typing import Any

from common.score.whole_crops import of_run
from common.train import run


@functools.wraps(run.train)
def train(*arguments: Any, **settings: Any) -> run.Result:
    """Train an experiment, or continue its run; all as of `common.train.run.train`."""
    settings.setdefault("score", of_run)
    return run.train(*arguments, **settings)
