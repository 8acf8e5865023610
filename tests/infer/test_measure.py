"""What objects measure, against loops over all voxels and boxes whose faces are counted by hand."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from common.data.volumes.box import block_of_chunks
from common.data.volumes.ngff import open_levels, start_multiscale, write_multiscale
from common.data.volumes.sources.excerpt import INSTANCE_TYPE
from common.errors import FileError, UserError
from common.infer.machines.crew import Failure
from common.infer.objects import block_measures
from common.infer.objects import measure as module
from common.infer.objects.block_measures import MeasuredClass, RowSums
from common.infer.objects.measure import measure
from common.infer.summarize import Wanted, summarize
from common.show import figures
from common.show.projection import projection

SCALE = np.array([8.0, 6.0, 4.0])
PLACE = np.array([80.0, 60.0, 44.0])
FACES = (24.0, 32.0, 48.0)
"""nm^2 of a face across z, y, x."""


def kind(name: str) -> dict:
    return {"cellmap": {"annotation": {"annotation_type": {"type": name}}}}


def labels(path, name, volume, chunk=8) -> MeasuredClass:
    about = kind(INSTANCE_TYPE)
    write_multiscale(path / name, volume, SCALE, PLACE, chunk=chunk, attributes=about)
    return MeasuredClass(name, open_levels(path / name)[0], is_mask=False, touches=True)


def blobs(seed: int, shape=(11, 13, 17)) -> np.ndarray:
    """Ids of random pieces, some of which touch."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    ids, _ = ndimage.label(noise > 0.02)
    return (ids * 1000 + (np.indices(shape)[2] // 6) * (ids > 0)).astype(np.uint32)


def in_loops(one: np.ndarray, other: np.ndarray, same: bool) -> dict:
    """Area of each pair of objects, face by face."""
    areas: dict = {}
    for axis, area in enumerate(FACES):
        for p in np.ndindex(*one.shape):
            q = tuple(n + (side == axis) for side, n in enumerate(p))
            if q[axis] == one.shape[axis]:
                continue
            for here, there in ((p, q), (q, p)):
                i, j = int(one[here]), int(other[there])
                ends = one[there] != i and other[here] != j
                if not i or not j or not ends or (same and i > j):
                    continue
                areas[i, j] = areas.get((i, j), 0) + area
    return areas


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)


class Backwards:
    """A crew that does the last block first, of what is sent to it."""

    def run(self, task, numbers, *, done, **_):
        task = pickle.loads(pickle.dumps(task))
        for number in reversed(numbers):
            for came in task([number]):
                done(*pickle.loads(pickle.dumps(came)))
        return []


def test_workers_measure_what_one_process_does(tmp_path, small_blocks):
    classes = [labels(tmp_path, name, blobs(seed)) for seed, name in enumerate(("mito", "er"))]
    classes = [replace(one, volume=str(tmp_path / one.name)) for one in classes]
    told = []
    alone = measure(classes, lambda _: None)
    shared = measure(classes, told.append, Backwards())
    assert sum(told) == 2 * 11 * 13 * 17
    assert (alone.voxels, alone.known) == (shared.voxels, shared.known)
    pd.testing.assert_frame_equal(alone.objects, shared.objects, check_exact=True)
    pd.testing.assert_frame_equal(alone.contacts, shared.contacts, check_exact=True)


def test_a_block_that_workers_fail_at_is_one_sentence(tmp_path):
    class Failing:
        def run(self, *_, **__):
            return [Failure(0, "mito: a chunk cannot be decoded", "node7, process 3")]

    one = replace(labels(tmp_path, "mito", blobs(1)), volume="mito")
    with pytest.raises(FileError, match=r"mito: a chunk cannot be decoded \(on node7, process 3"):
        measure([one], lambda _: None, Failing())


def test_objects_are_those_of_scipy(tmp_path, small_blocks):
    ids = blobs(1)
    table = measure([labels(tmp_path, "mito", ids)], lambda _: None).objects.set_index("id")
    numbers = [number for number in np.unique(ids).tolist() if number]
    assert sorted(table.index) == numbers
    for number, where in zip(
        numbers, ndimage.find_objects(np.searchsorted(numbers, ids) + (ids > 0)), strict=True
    ):
        row = table.loc[number]
        mask = ids == number
        assert row["voxels"] == mask.sum()
        np.testing.assert_allclose(row["nm3"], mask.sum() * 192)
        centre = PLACE + np.array(ndimage.center_of_mass(mask)) * SCALE
        np.testing.assert_allclose(row[[f"centre_{axis}_nm" for axis in "zyx"]].tolist(), centre)
        lower = PLACE + ([along.start - 0.5 for along in where]) * SCALE
        upper = PLACE + ([along.stop - 0.5 for along in where]) * SCALE
        np.testing.assert_allclose(row[[f"lower_{axis}_nm" for axis in "zyx"]].tolist(), lower)
        np.testing.assert_allclose(row[[f"upper_{axis}_nm" for axis in "zyx"]].tolist(), upper)
        ends = sum(np.diff(mask, axis=axis).sum() * area for axis, area in enumerate(FACES))
        np.testing.assert_allclose(row["surface_nm2"], ends)
        at_border = any(a.start == 0 or a.stop == n for a, n in zip(where, ids.shape, strict=True))
        assert row["at_border"] == at_border


def test_contacts_are_those_of_a_loop_over_faces(tmp_path, small_blocks):
    one = blobs(1)
    other = blobs(2)
    classes = [labels(tmp_path, "mito", one), labels(tmp_path, "er", other)]
    table = measure(classes, lambda _: None).contacts
    pairs = {"mito": (one, one), "er": (other, other)}
    for name, (first, second) in pairs.items():
        within = table[(table["class"] == name) & (table["other_class"] == name)]
        found = dict(
            zip(zip(within["id"], within["other_id"], strict=True), within["area_nm2"], strict=True)
        )
        assert found == in_loops(first, second, same=True)
        assert found
    across = table[(table["class"] == "mito") & (table["other_class"] == "er")]
    found = {(row["id"], row["other_id"]): row["area_nm2"] for _, row in across.iterrows()}
    expected = in_loops(one, other, same=False)
    assert {pair: area for pair, area in found.items() if area} == expected
    shared = {(row["id"], row["other_id"]): row["shared_voxels"] for _, row in across.iterrows()}
    for pair, voxels in shared.items():
        assert voxels == ((one == pair[0]) & (other == pair[1])).sum()
    assert len(across) + len(table[table["class"] == table["other_class"]]) == len(table)


def test_sums_of_rows_are_what_pandas_adds_up_at_once(monkeypatch):
    monkeypatch.setattr(block_measures, "MOST_ROWS", 7)
    rows = pd.DataFrame(
        {"id": np.arange(60) % 11, "voxels": np.arange(60), "first": -np.arange(60)}
    )
    sums = RowSums(["id"], {"voxels": "sum", "first": "min"})
    for start in range(0, 60, 5):
        sums.add(rows[start : start + 5])
    expected = rows.groupby("id").agg({"voxels": "sum", "first": "min"}).reset_index()
    pd.testing.assert_frame_equal(sums.table(), expected)


def touching_boxes(folder) -> None:
    """Two mitochondria of 10^3 and 10 x 10 x 5 voxels side by side, a sheet of er under them."""
    mito = np.zeros((40, 30, 50), np.uint16)
    mito[10:20, 10:20, 10:20] = 7
    mito[10:20, 10:20, 20:25] = 300
    er = np.zeros((40, 30, 50), np.uint8)
    er[20:22, :, :] = 1
    er[38:, :, :] = 255
    box = folder / "cell.zarr/whole"
    unknown = {"type": "semantic_segmentation", "encoding": {"absent": 0, "unknown": 255}}
    write_multiscale(box / "mito", mito, SCALE, PLACE, attributes=kind(INSTANCE_TYPE))
    about = {"cellmap": {"annotation": {"annotation_type": unknown}}}
    write_multiscale(box / "er", er, SCALE, PLACE, attributes=about)


def test_the_command_writes_tables_and_pictures(tmp_path, run):
    touching_boxes(tmp_path / "in")
    words = ("summarize", tmp_path / "in", tmp_path / "out", "--contacts", "mito,er")
    code, out, err = run(*words)
    assert code == 0, err
    assert "cell/whole mito: 2.88e+05 nm^3, 2.5 %, 2 objects" in out
    classes = pd.read_csv(tmp_path / "out/classes.csv").set_index("class")
    assert classes.loc["mito", "objects"] == 2
    assert classes.loc["mito", "largest_nm3"] == 192_000
    assert classes.loc["er", "known_voxels"] == 38 * 30 * 50
    np.testing.assert_allclose(classes.loc["er", "percent"], 100 * 2 / 38)
    objects = pd.read_csv(tmp_path / "out/objects.csv")
    assert objects[["volume", "class", "id"]].to_numpy().tolist() == [
        ["cell/whole", "mito", 7],
        ["cell/whole", "mito", 300],
    ]
    assert objects["surface_nm2"].tolist() == [20_800, 15_200]
    contacts = pd.read_csv(tmp_path / "out/contacts.csv")
    found = contacts[["class", "id", "other_class", "other_id", "area_nm2"]].to_numpy().tolist()
    assert found == [
        ["er", 1, "mito", 7, 2400],
        ["er", 1, "mito", 300, 1200],
        ["mito", 7, "mito", 300, 4800],
    ]
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == ["cell_whole_er_max_z.png", "cell_whole_mito_max_z.png"]
    summarize(
        str(tmp_path / "in/cell.zarr/whole"), tmp_path / "box", Wanted(contacts=["mito", "er"])
    )
    assert pd.read_csv(tmp_path / "box/contacts.csv")["volume"].tolist() == ["whole"] * 3
    code, _, err = run(*words)
    assert (code, "there already; write another folder, or --overwrite" in err) == (2, True)


def test_a_projection_shows_what_is_met_first_and_how_much_there_is(tmp_path):
    volume = np.zeros((30, 200, 300), np.uint8)
    volume[10:20, 50:150, 50:100] = 3
    volume[5:6, 100:150, 50:100] = 4
    level = labels(tmp_path, "mito", volume, chunk=64).level
    three, four = figures.colours_of_objects([3, 4], figures.class_colours(["mito"])[0])
    # 200 rows of 6 nm are as high as 300 columns of 4 nm wide, below the line of text
    picture = projection([level], "mito", is_mask=False)[-300:]
    assert picture.shape == (300, 320, 3)
    left = (320 - 300) // 2
    assert picture[112, left + 75].tolist() == three.tolist()
    assert picture[187, left + 75].tolist() == four.tolist()
    assert picture[30, left + 75].tolist() == [0, 0, 0]
    lengths = projection([level], "mito", is_mask=False, kind="sum")[-300:, left + 75, 0]
    assert lengths[[30, 112, 187]].tolist() == [0, 40 + 215 * 10 // 11, 255]
    along_x = projection([level], "mito", is_mask=True, axis=2)
    # 30 layers of 8 nm, enlarged from 40 to 200 x 6 / 6 pixels
    # 30 layers of 8 nm are 40 rows of 6 nm
    assert along_x[-40:][[5, 20], 100 + (along_x.shape[1] - 200) // 2].tolist() == [
        [0, 0, 0],
        figures.class_colours(["mito"])[0].tolist(),
    ]


@pytest.mark.parametrize(
    ("chunks", "block"),
    [
        ((64, 64, 64), [128] * 3),
        ((1, 9000, 200), [128, 256, 200]),
        ((512, 96, 130), [256, 96, 130]),
    ],
)
def test_blocks_are_whole_chunks_unless_these_are_planes(chunks, block):
    assert block_of_chunks(chunks, 128) == block


def test_labels_that_lost_a_chunk_are_not_measured(tmp_path, capsys):
    volume = np.zeros((16, 16, 16), np.uint8)
    volume[2:14, 2:14, 2:14] = 5
    for more in (0, 8):
        counted = 16**3 - 12**3 + more
        about = kind(INSTANCE_TYPE)
        about["cellmap"]["annotation"]["complement_counts"] = {"absent": counted}
        write_multiscale(tmp_path / "mito", volume, SCALE, chunk=8, attributes=about)
        summarize(str(tmp_path / "mito"), tmp_path / f"out{counted}")
        said = " ".join(capsys.readouterr().err.split())
        assert ("they were edited, or are not whole" in said) == bool(more)
    (tmp_path / "mito/s0/1/1/1").unlink()
    with pytest.raises(
        UserError, match="1 of 8 chunks are not there, and what they held is missed"
    ):
        summarize(str(tmp_path / "mito"), tmp_path / "out")


def test_bad_input_is_one_sentence(tmp_path, run):
    write_multiscale(tmp_path / "raw/er", np.zeros((8, 8, 8), np.uint8), SCALE)
    touching_boxes(tmp_path / "in")
    with pytest.raises(UserError, match="no masks or objects; run process, or import-data where"):
        summarize(str(tmp_path / "raw"), tmp_path / "out")
    with pytest.raises(UserError, match="--contacts nuc: not there; write some of er, mito"):
        summarize(str(tmp_path / "in"), tmp_path / "out", Wanted(contacts=["nuc"]))
    grid = open_levels(tmp_path / "in/cell.zarr/whole/er")[0].grid
    start_multiscale(tmp_path / "in/cell.zarr/whole/begun", grid, np.uint8, (8, 8, 8))
    with pytest.raises(UserError, match="begun: half-written"):
        summarize(str(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
