"""What a run or a result says of what made it."""

from __future__ import annotations

import subprocess

import torch

from common.files import REPOSITORY
from common.provenance import provenance, uncommitted


def test_versions_and_commit_are_named(tmp_path):
    record = provenance(REPOSITORY)
    assert record["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    assert record["commit"] == "none" or len(record["commit"]) == 40
    assert provenance(tmp_path)["commit"] == "none"


def test_uncommitted_changes_are_a_patch_that_git_applies(tmp_path):
    def git(folder, *words):
        done = subprocess.run(
            ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout

    changed = tmp_path / "changed"
    changed.mkdir()
    git(changed, "init", "-q")
    (changed / "a.py").write_text("first = 1\n")
    git(changed, "add", "a.py")
    git(changed, "commit", "-qm", "one")
    assert uncommitted(changed) == b""
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(changed), str(other))
    (changed / "a.py").write_text("first = 2 \n\n")
    (changed / "new.py").write_text("second = 'é'\n")
    (changed / "large.npy").write_bytes(b"data")
    patch = tmp_path / "uncommitted.patch"
    patch.write_bytes(uncommitted(changed))
    git(other, "apply", str(patch))
    assert (other / "a.py").read_text() == "first = 2 \n\n"
    assert (other / "new.py").read_text() == "second = 'é'\n"
    assert not (other / "large.npy").exists()
    assert uncommitted(tmp_path / "nothing") == b""
