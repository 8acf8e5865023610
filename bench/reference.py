"""The reference for our figures: cellmap-data's loader, and a plain training loop with LeibNetz.

Both run as in the public toolbox. Nothing is tuned in either direction: no workers, full precision,
the libraries' own defaults.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cellmap_data import CellMapDataLoader, CellMapDataSplit
from leibnetz import build_unet
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from common.classes import ATOM_IDS, TESTED, membership
from common.data.volumes import layout
from common.data.volumes.ngff import write_multiscale

CYTO_SHARE = 0.5
"""Share of a crop's voxels that are `cyto`; the other tested atoms share the rest equally."""


def write_crops(
    root: str | Path,
    *,
    crops: int = 2,
    extent: int = 200,
    raw_extent: int = 340,
    voxel_size: float = 8,
    seed: int = 0,
) -> Path:
    """Write synthetic crops in the challenge's layout, all tested classes annotated.

    Args:
        root: data root.
        crops: crops that train; one more validates. Each is in the middle of a raw of its own.
        extent: voxels of a crop along each axis.
        raw_extent: voxels of its raw. The default holds a 132^3 input in any orientation around any
            centre at which a 92^3 target lies within the crop: 200 - 92 + 132 * sqrt(3) = 337.
        voxel_size: nm.
        seed: of the volumes.

    Returns:
        Their datasplit.csv.
    """
    root = Path(root).absolute()  # cellmap-data resolves relative paths from the working directory
    margin = (raw_extent - extent) // 2
    inside = slice(margin, margin + extent)
    rows = []
    for number in range(1, crops + 2):
        rng = np.random.default_rng([seed, number])
        atoms = _random_atoms(raw_extent, rng)
        store = root / layout.store(f"synthetic-{number}")
        raw_path = layout.RAW
        labels_path = f"{layout.LABELS}/crop{number}"
        write_multiscale(store / raw_path, _raw_of(atoms, rng), [voxel_size] * 3)
        for name, of_atom in zip(TESTED, membership(TESTED).astype(np.uint8), strict=True):
            label = of_atom[atoms[inside, inside, inside]]
            write_multiscale(
                store / labels_path / name, label, [voxel_size] * 3, [margin * voxel_size] * 3
            )
        usage = "train" if number <= crops else "validate"
        rows.append([usage, store, layout.RAW, store, f"{labels_path}/[{','.join(TESTED)}]"])
    path = root / "datasplit.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return path


def cellmap_data_loader(
    path: str | Path,
    *,
    classes: Sequence[str],
    input_shape: Sequence[int],
    target_shape: Sequence[int],
    scale: Sequence[float],
    rotate: bool,
    batch_size: int,
    iterations: int,
) -> CellMapDataLoader:
    """cellmap-data's training loader over a datasplit, as the toolbox's `get_dataloader` builds it.

    Gives `iterations` batches: dicts with "input" (B, 1, z, y, x) in [0, 255] and "output"
    (B, classes, z, y, x), float32, NaN = unknown. Mirrors and transposes; `rotate` adds up to 180
    degrees either way about each axis. `scale` is in nm.
    """
    spatial_transforms = {
        "mirror": {"axes": dict.fromkeys("xyz", 0.5)},
        "transpose": {"axes": list("xyz")},
    }
    if rotate:
        spatial_transforms["rotate"] = {"axes": {axis: [-180, 180] for axis in "xyz"}}
    split = CellMapDataSplit(
        input_arrays={"input": {"shape": input_shape, "scale": scale}},
        target_arrays={"output": {"shape": target_shape, "scale": scale}},
        classes=classes,
        pad=True,
        csv_path=str(path),
        spatial_transforms=spatial_transforms,
    )
    dataset = split.train_datasets_combined
    # a crop that fails to open is skipped and a class that is not found is not read: both would
    # flatter this loader
    with Path(path).open(newline="") as file:
        assert len(dataset.datasets) == sum(row[0] == "train" for row in csv.reader(file))
    assert dataset.get_crop_class_matrix().all()
    return CellMapDataLoader(
        dataset,
        classes=classes,
        batch_size=batch_size,
        weighted_sampler=True,
        rng=torch.Generator().manual_seed(0),
        iterations_per_epoch=iterations * batch_size,  # counted in samples there
    )


def plain_training_samples_per_s(
    path: str | Path, *, input_shape: Sequence[int], batch_size: int, seconds: float
) -> float:
    """Samples per second of a plain float32 training loop over `cellmap_data_loader`.

    Timed for `seconds` and until the batch then under way ends, after one batch to warm up. The
    U-Net of the baselines as LeibNetz ships it, 48 classes, 8 nm, rotation on; no precision and no
    memory format set.
    """
    scale = (8, 8, 8)
    loader = cellmap_data_loader(
        path,
        classes=TESTED,
        input_shape=input_shape,
        target_shape=[n - 40 for n in input_shape],
        scale=scale,
        rotate=True,
        batch_size=batch_size,
        iterations=10**6,
    )
    model = build_unet(
        top_resolution=scale,
        base_nc=12,
        nc_increase_factor=3,
        residual=True,
        final_activation="Identity",
        output_nc=len(TESTED),
    )
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-4, decoupled_weight_decay=True)
    batches = iter(loader)
    _train_on(next(batches), model, optimizer)
    samples = 0
    elapsed = 0.0
    start = time.perf_counter()
    while elapsed < seconds:
        _train_on(next(batches), model, optimizer)
        samples += batch_size
        elapsed = time.perf_counter() - start
    return samples / elapsed


def _train_on(
    batch: dict[str, torch.Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> float:
    """One update, as the toolbox does it: a mean over all voxels, unknown ones counting zero."""
    optimizer.zero_grad()
    target = batch["output"]
    loss = binary_cross_entropy_with_logits(
        model(batch["input"]), target.nan_to_num(0), reduction="none"
    )
    loss = (loss * ~target.isnan()).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def _random_atoms(extent: int, rng: np.random.Generator) -> np.ndarray:
    """(extent,) * 3 uint8: each voxel's position in ATOM_IDS, as nested bands of a smooth field.

    Tested atoms only.
    """
    knots = (1, 1, *(2 + extent // 20,) * 3)
    coarse = torch.from_numpy(rng.standard_normal(knots, dtype=np.float32))
    field = interpolate(coarse, size=(extent,) * 3, mode="trilinear")[0, 0].numpy()
    present = [(row, name) for row, name in enumerate(ATOM_IDS) if name in TESTED]
    of_others = (1 - CYTO_SHARE) / (len(present) - 1)
    shares = [CYTO_SHARE if name == "cyto" else of_others for _, name in present]
    bounds = np.quantile(field[::4, ::4, ::4], np.cumsum(shares)[:-1])
    return np.array([row for row, _ in present], np.uint8)[np.digitize(field, bounds)]


def _raw_of(atoms: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 intensities: a grey value for each atom, and noise."""
    grey = rng.uniform(60, 200, len(ATOM_IDS)).astype(np.float32)
    noisy = grey[atoms] + 12 * rng.standard_normal(atoms.shape, dtype=np.float32)
    return noisy.clip(0, 255).astype(np.uint8)
