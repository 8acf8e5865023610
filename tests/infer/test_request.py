"""Boxes that a call of predict asks for."""

from __future__ import annotations

import numpy as np
import pytest

from common.data.splits.regions import Region
from common.data.volumes.ngff import write_multiscale
from common.infer.predicting import request
from tests.volumes import voxels_of


@pytest.mark.parametrize(("beyond", "is_told"), [(0, False), (8, False), (24, True)])
def test_a_box_that_its_raw_does_not_cover_is_told(experiment, capsys, beyond, is_told):
    tiny = experiment()
    upper = np.array([444.0 + beyond, 444, 444])
    region = Region(
        "tiny", "crop9", tiny.raw, lower=upper - 100, upper=upper, truth=None, classes=()
    )
    request.choose_classes(tiny.config(), [region], ())
    said = capsys.readouterr().err
    assert ("tiny/crop9: reaches up to 24 nm beyond its raw" in said) is is_told


def test_chunks_of_raw_that_are_not_there_in_a_box_are_told(experiment, capsys):
    """Of a block that is black in a part nothing else tells it."""
    tiny = experiment()
    raw = voxels_of(tiny.raw)
    write_multiscale(tiny.raw, raw, (8, 8, 8), chunk=16)
    (tiny.raw / "s0/1/1/1").unlink()
    corner = np.array([124.0, 124, 124])
    for lower, said in (
        (corner, "tiny/crop9: 1 of 8 chunks of raw are not there, and are of one value"),
        (corner + 128, ""),
    ):
        region = Region(
            "tiny", "crop9", tiny.raw, lower=lower, upper=lower + 192, truth=None, classes=()
        )
        request.choose_classes(tiny.config(), [region], ())
        told = " ".join(capsys.readouterr().err.split())
        assert said in told and bool(said) == bool(told)
