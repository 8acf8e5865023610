"""A volume that is larger than any memory: imported in the memory of a few chunks.

The files are sparse: they say that they hold so much, and take no room.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from common.data.volumes import layout
from common.data.volumes.ngff import open_levels
from common.files import REPOSITORY

HUGE = (8000, 3500, 3600)
"""100 GB."""

SMALL = (300, 1000, 1000)
"""0.3 GB, more than an import may take."""

MOST = 200e6
"""Bytes beside the program: a bar of 64 MiB, what becomes of it, and what tensorstore keeps."""

IMPORT = """
import json, re, sys
from pathlib import Path

from common.data.own import writing
from tests.data.own_import import import_data

def peak():
    # ru_maxrss would begin with what the process that started this one had
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024

class Enough(Exception):
    pass

def put(array, bar, block, plain=writing.put):
    global left
    left -= 1
    if left < 0:
        raise Enough
    plain(array, bar, block)

folder = sys.argv[1]
left = 10**9
writing.put = put
say = lambda _: None
options = {"voxel_size": (8.0,) * 3, "data": f"{folder}/data", "say": say}
import_data(f"{folder}/warm.tif", "warm", **options)  # libraries, threads
before = peak()
import_data(f"{folder}/small.tif", "small", **options)
whole = peak() - before
left = 20
try:
    import_data(f"{folder}/huge.tif", "huge", **options)
except Enough:
    huge = peak() - before
import_data(f"{folder}/huge.tif", "linked", link=True, **options)
print(json.dumps([whole, huge, peak() - before]))
"""


def sparse(file, shape) -> None:
    """A file of zeros, but for its last plane."""
    volume = tifffile.memmap(file, shape=shape, dtype=np.uint8, bigtiff=True)
    volume[-1, -1, :] = 9
    volume.flush()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is asked for as Linux gives it")
def test_memory_is_bounded_however_large_the_volume_is(tmp_path):
    for name, shape in (("warm", (130, 130, 130)), ("small", SMALL), ("huge", HUGE)):
        sparse(tmp_path / f"{name}.tif", shape)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout.splitlines()[-1])  # whole, begun, linked
    assert max(taken) < MOST, taken
    assert MOST < np.prod(SMALL) < np.prod(HUGE)
    levels = open_levels(tmp_path / "data" / layout.raw("small"))
    assert len(levels) == 5
    assert (levels[0].read((299, 999, 0), SMALL) == 9).all()
    linked = open_levels(tmp_path / "data" / layout.raw("linked"))[0]
    assert linked.grid.shape == HUGE
    assert (linked.read((7999, 3499, 0), HUGE) == 9).all()
