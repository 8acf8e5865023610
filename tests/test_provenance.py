"""What a run or a result says of what made it."""

from __future__ import annotations

import torch

from common.files import REPOSITORY
from common.provenance import provenance


def test_versions_and_commit_are_named(tmp_path):
    record = provenance(REPOSITORY)
    assert record["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    assert record["commit"] == "none" or len(record["commit"]) == 40
    assert provenance(tmp_path)["commit"] == "none"
