"""Boxes that a call of predict asks for."""

from __future__ import annotations

import numpy as np
import pytest

from common.data.splits.regions import Region
from common.infer.predicting import request


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
