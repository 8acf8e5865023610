"""The clocks around a prediction."""

from __future__ import annotations

from bench.spent import STAGES, clocks


def test_every_stage_is_a_function_that_the_engine_still_has():
    before = [getattr(stage.owner, stage.function) for stage in STAGES]
    with clocks("cpu"):
        during = [getattr(stage.owner, stage.function) for stage in STAGES]
    assert all(clocked is not function for clocked, function in zip(during, before, strict=True))
    assert [getattr(stage.owner, stage.function) for stage in STAGES] == before
