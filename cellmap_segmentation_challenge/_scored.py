"""Train as the command line does: whole crops can be scored in the middle of a run.

The engine's `train` may not import the rooms that predict and score; it is given the function here.
"""

from __future__ import annotations

import functools
from typing import Any

from common.score.whole_crops import of_run
from common.train import run


@functools.wraps(run.train)
def train(*arguments: Any, **settings: Any) -> run.Result:
    """Train an experiment, or continue its run; see `common.train.run.train`."""
    settings.setdefault("score", of_run)
    return run.train(*arguments, **settings)
