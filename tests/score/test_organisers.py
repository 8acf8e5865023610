"""The score is the organisers' number: 36 pairs of volumes that their code scored."""

from __future__ import annotations

import importlib.util
import json
import zlib

import numpy as np
import pytest

from common.files import REPOSITORY
from common.score import challenge

SHARED = REPOSITORY.parent / "shared"
RECORDED = SHARED / "facts" / "organisers_scores.json"
MAKER = SHARED / "tools" / "score_cases.py"

pytestmark = pytest.mark.skipif(
    not (RECORDED.is_file() and MAKER.is_file()), reason=f"no recorded scores in {SHARED}"
)


def checksums(*volumes: np.ndarray) -> list[int]:
    """Of the volumes as uint32, in which they were recorded."""
    return [zlib.crc32(volume.astype(np.uint32).tobytes()) for volume in volumes]


def test_all_recorded_pairs_score_as_the_organisers_code_scored_them():
    spec = importlib.util.spec_from_file_location("score_cases", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    recorded = json.loads(RECORDED.read_text())
    for name, kind, truth, prediction, voxel_size, mask in maker.cases(range(100, 120)):
        wanted = recorded.pop(name)
        assert checksums(truth, prediction) == wanted["crc32"], f"{name}: other volumes"
        if kind == "semantic":
            found = challenge.semantic(truth, prediction, mask)
        else:
            found = challenge.instance(truth, prediction, voxel_size, mask)
            total = wanted["hausdorff_norm_sum"]
            assert found.hausdorff_norm_sum == pytest.approx(total, abs=1e-9), name
            assert found.n_hausdorff == wanted["n_hausdorff"], name
        counts = (found.tp, found.fp, found.fn, found.status)
        assert counts == tuple(wanted[key] for key in ("tp", "fp", "fn", "status")), name
    assert not recorded
