"""Two public EM volumes in the challenge's layout, if they lie in ../shared/data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from common.config.settings import TrainConfig
from common.data.samples.batches import Batch, Batches
from common.data.samples.blocks import Blocks
from common.data.samples.loaders import open_data
from common.data.samples.targets import dense
from common.data.splits.split import Row, read_datasplit, row_text
from common.data.volumes.ngff import block_mean, open_levels, slices
from common.files import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data"
DATASETS = {
    "flyem_medulla": (("cell", "pm"), range(1, 7)),
    "drosophila_vnc": (("cyto", "glia_ecs", "mito", "pm", "synapse"), (1, 3, 5)),
}

pytestmark = pytest.mark.skipif(
    not all((DATA / name).is_dir() for name in DATASETS), reason=f"no real data in {DATA}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An experiment folder with a datasplit of each dataset: the last crop validates."""
    root = tmp_path_factory.mktemp("real")
    for name, (classes, numbers) in DATASETS.items():
        lines = []
        for number in numbers:
            usage = "validate" if number == numbers[-1] else "train"
            lines.append(row_text(usage, name, f"crop{number}", classes))
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return root


def config(
    folder: Path, dataset: str, input: tuple, target: tuple, scale: tuple, **settings
) -> TrainConfig:
    classes = (
        ("pm", "cell") if dataset == "flyem_medulla" else ("pm", "mito", "cyto", "synapse", "cell")
    )
    return TrainConfig(
        lambda names: None,
        settings.pop("classes", classes),
        {"shape": input, "scale": scale},
        {"shape": target, "scale": scale},
        base_experiment_path=str(folder),
        data_path=str(DATA),
        datasplit_path=f"{dataset}.csv",
        cache_path=str(folder / "cache"),
        **settings,
    )


def array(row: Row, name: str = "") -> np.ndarray:
    """The finest level of a class of a crop, or of its raw."""
    return zarr.open_array(str((row.crop / name if name else row.raw) / "s0"), mode="r")[:]


def first_batch(settings: TrainConfig, n: int = 4) -> Batch:
    data = open_data(settings)
    blocks = Blocks(data.train, data.sampler, data.sampler.input, data.sampler.target)
    return next(Batches(blocks, n, 0, torch.device("cpu")).between(0, n))


TURNED = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "rotate": {"axes": {"z": [-180, 180]}},
}


def test_labels_of_flyem_are_those_of_its_arrays(folder):
    data = open_data(config(folder, "flyem_medulla", (68, 68, 68), (28, 28, 28), (10, 10, 10)))
    rows = read_datasplit(folder / "flyem_medulla.csv", DATA)
    assert [crop.name for crop in (*data.train, *data.validation)] == [row.name for row in rows]
    for crop, row in zip((*data.train, *data.validation), rows, strict=True):
        labels = crop.palette[crop.labels()]
        for channel, name in enumerate(("pm", "cell")):
            np.testing.assert_array_equal(labels[..., channel], array(row, name) > 0)


def test_raw_of_flyem_surrounds_its_labels(folder):
    data = open_data(config(folder, "flyem_medulla", (68, 68, 68), (28, 28, 28), (10, 10, 10)))
    row = read_datasplit(folder / "flyem_medulla.csv", DATA)[0]
    crop = data.train[0]
    first = np.rint(crop.raw_grid.origin / 10).astype(int)
    mirrored = np.pad(np.arange(250), 200, mode="reflect")
    axes = [
        mirrored[200 + a : 200 + a + n] for a, n in zip(first, crop.raw_grid.shape, strict=True)
    ]
    np.testing.assert_array_equal(crop.raw(), array(row)[np.ix_(*axes)])


def test_labels_of_drosophila_are_those_of_its_arrays_at_native_resolution(folder):
    data = open_data(config(folder, "drosophila_vnc", (1, 68, 68), (1, 28, 28), (50, 4.6, 4.6)))
    for crop, row in zip(
        data.train, read_datasplit(folder / "drosophila_vnc.csv", DATA), strict=False
    ):
        labels = crop.palette[crop.labels()]
        for channel, name in enumerate(("pm", "mito", "cyto", "synapse")):
            np.testing.assert_array_equal(labels[..., channel], array(row, name) > 0)


def test_drosophila_is_reduced_in_plane_by_majority_and_mean(folder):
    data = open_data(config(folder, "drosophila_vnc", (20, 60, 60), (8, 30, 30), (16.67, 9.2, 9.2)))
    crop = data.train[0]
    row = read_datasplit(folder / "drosophila_vnc.csv", DATA)[0]
    fine = array(row, "mito") > 0
    z, y, x = fine.shape
    share = fine[:, : y // 2 * 2, : x // 2 * 2].reshape(z, y // 2, 2, x // 2, 2).mean((2, 4))
    np.testing.assert_array_equal(crop.palette[crop.labels()][..., 1], share > 0.5)
    np.testing.assert_allclose(crop.label_grid.scale, (50, 9.2, 9.2))
    np.testing.assert_allclose(crop.raw_grid.scale, (50, 9.2, 9.2))
    s1 = zarr.open_array(str(row.raw / "s1"), mode="r")[:2]
    np.testing.assert_allclose(block_mean(array(row)[:2], (1, 2, 2)).astype(int), s1, atol=1)


def test_unannotated_cell_follows_from_its_parts(folder):
    """`cell` is positive where `pm`, `mito` or `cyto` is, unknown elsewhere."""
    data = open_data(config(folder, "drosophila_vnc", (1, 68, 68), (1, 28, 28), (50, 4.6, 4.6)))
    labels = data.train[0].palette[data.train[0].labels()]
    inside = (labels[..., :3] == 1).any(axis=-1)
    np.testing.assert_array_equal(labels[..., 4], np.where(inside, 1, -1))


@pytest.mark.parametrize(
    ("dataset", "input", "target", "scale"),
    [
        ("flyem_medulla", (68, 68, 68), (28, 28, 28), (10, 10, 10)),
        ("drosophila_vnc", (20, 60, 60), (8, 30, 30), (16.67, 9.2, 9.2)),
        ("drosophila_vnc", (1, 68, 68), (1, 28, 28), (50, 4.6, 4.6)),
    ],
)
def test_batches_of_real_data_show_every_class(folder, dataset, input, target, scale):
    """Patches are placed on the classes in turn: each is positive in its patch."""
    settings = config(
        folder,
        dataset,
        input,
        target,
        scale,
        positive_centre_fraction=1.0,
        spatial_transforms=TURNED,
    )
    n = len(settings.classes) * 2
    batch = first_batch(settings, n)
    labels = dense(batch.target)
    assert batch.raw.shape == (n, 1, *input) and labels.shape == (n, len(settings.classes), *target)
    assert batch.raw.min() >= 0 and batch.raw.max() <= 1 + 1e-6
    assert (batch.raw.std(dim=(1, 2, 3, 4)) > 0.02).all()
    assert (labels == 1).any(dim=0).flatten(1).any(dim=1).all()


def test_dark_membranes_are_dark_in_the_batch(folder):
    """In turned patches membrane is as dark and cytoplasm as bright as in the arrays."""
    rows = [
        row for row in read_datasplit(folder / "drosophila_vnc.csv", DATA) if row.usage == "train"
    ]
    settings = config(
        folder,
        "drosophila_vnc",
        (1, 128, 128),
        (1, 128, 128),
        (50, 4.6, 4.6),
        spatial_transforms=TURNED,
    )
    batch = first_batch(settings, 16)
    labels = dense(batch.target)
    found = [batch.raw[:, 0][labels[:, channel] == 1].mean().item() for channel in (0, 2)]
    lower, shape = place(rows[0])
    part = array(rows[0])[slices(lower, lower + shape)] / 255
    expected = [part[array(rows[0], name) > 0].mean() for name in ("pm", "cyto")]
    assert expected[0] < expected[1] - 0.1
    np.testing.assert_allclose(found, expected, atol=0.06)


def place(row: Row) -> tuple[np.ndarray, tuple[int, ...]]:
    """First raw voxel and shape of a crop of drosophila_vnc at native resolution."""
    level = open_levels(row.crop / "pm")[0]
    return np.rint(level.translation / (50, 4.6, 4.6)).astype(int), tuple(level.shape)
