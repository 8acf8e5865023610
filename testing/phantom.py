"""A phantom cell: nested organelles that obey the class table, imaged like FIB-SEM.

Made for tests, examples and benchmarks that need dense ground truth of all tested classes within
seconds and offline. Each voxel holds exactly one atom of the class table. What is painted stands in
`testing.anatomy`, how it is imaged in `testing.imaging`; here are the crops and files of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from common.classes import ATOM_IDS, INSTANCES, TESTED, atoms_of, unknown_names
from common.data.splits import split
from common.data.volumes import layout
from common.data.volumes.ngff import slices, write_multiscale
from common.errors import UserError
from testing.anatomy import paint_cell
from testing.imaging import image

SHAPE = (160, 224, 224)
"""Default size of a phantom in voxels."""

PARTIAL_SETS: tuple[tuple[str, ...], ...] = (
    ("mito_mem", "mito_lum", "mito_ribo", "er_mem", "er_lum"),
    ("mito", "nuc"),
    ("pm", "ecs", "cyto"),
)
"""Classes of partly annotated crops by default: sets as in crops of the challenge."""


@dataclass(frozen=True)
class Phantom:
    """A cell and its image; all volumes are (z, y, x) of one shape."""

    raw: np.ndarray
    """uint8 grey values; membranes are dark."""
    atoms: np.ndarray
    """uint8, one value of ATOM_IDS per voxel."""
    instances: dict[str, np.ndarray]
    """For each class of INSTANCES uint16 ids, 1 to n, 0 = none."""
    voxel_size: float
    """nm, the same along each axis."""

    def cut(self, start: np.ndarray, size: int) -> Phantom:
        """Return the cube of `size` voxels that begins at a voxel."""
        box = slices(start, start + size)
        instances = {name: ids[box] for name, ids in self.instances.items()}
        return Phantom(self.raw[box], self.atoms[box], instances, self.voxel_size)


def make_phantom(shape: Sequence[int] = SHAPE, voxel_size: float = 8.0, seed: int = 0) -> Phantom:
    """Make a phantom of `shape` voxels; the same arguments give the same arrays.

    Raises UserError if the volume has no room for two organelles of each kind (well over one cubic
    micrometre is needed), or if microtubules could not be hollow at this voxel size (nm).
    """
    if not 0 < voxel_size <= 10:
        raise UserError(
            f"voxel_size {voxel_size} nm; microtubules are 25 nm wide, so write 10 or less"
        )
    canvas = paint_cell(np.random.default_rng(seed), shape, voxel_size)
    return Phantom(image(canvas), canvas.atoms, canvas.instances, float(voxel_size))


def class_volume(phantom: Phantom, name: str) -> np.ndarray:
    """Return the (z, y, x) ground truth of a class of the table.

    Ids for INSTANCES, in the smallest unsigned type that holds them; else uint8 0 or 1.
    """
    problems = unknown_names([name])
    if problems:
        raise UserError(problems[0])
    if name in phantom.instances:
        ids = phantom.instances[name]
        return ids.astype(np.min_scalar_type(ids.max()))
    table = np.zeros(256, np.uint8)
    table[[ATOM_IDS[atom] for atom in atoms_of(name) or ()]] = 1
    return table[phantom.atoms]


# Files


def write_phantom(  # noqa: PLR0913  # each has a default, and is given by its name
    root: str | Path,
    seed: int = 0,
    shape: Sequence[int] = SHAPE,
    *,
    voxel_size: float = 8.0,
    train_crops: int = 6,
    validate_crops: int = 4,
    crop_size: int = 64,
    annotated: Callable[[int], Sequence[str]] | None = None,
    label_voxel_size: float | None = None,
) -> Path:
    """Write image, crops and datasplit of a phantom as the challenge lays them out.

    Where crops lie depends on the phantom and these numbers only. An older phantom at `root` is
    replaced.

    Args:
        root: data root.
        seed: of the phantom.
        shape: of the image, voxels.
        voxel_size: of the image, nm.
        train_crops: crops 1 to this one are for training.
        validate_crops: the crops after those are for validation. By default there are four: the
            first two hold 143 voxels of lipid droplets, on which no score can be told.
        crop_size: voxels of the image along each side of a crop.
        annotated: gives the classes that crop number n has; by default all tested classes, but one
            of PARTIAL_SETS in the later half of the training crops.
        label_voxel_size: nm, that of the image by default, or a whole fraction of it.

    Returns:
        The path of the datasplit.

    Raises:
        UserError: for classes that cannot be annotated and for crops that do not fit.
    """
    repeat = _whole_ratio(voxel_size, label_voxel_size or voxel_size)
    choose = annotated or (lambda number: _default_classes(number, train_crops))
    classes = [list(choose(number)) for number in range(1, train_crops + validate_crops + 1)]
    _check_classes(classes)
    phantom = make_phantom(shape, voxel_size, seed)
    starts = _place_crops(phantom.atoms, crop_size, train_crops, validate_crops)
    folder = Path(root) / "phantom"
    store = zarr.open_group(str(folder / "phantom.zarr"), mode="w")
    store.require_group(layout.RAW)
    write_multiscale(folder / "phantom.zarr" / layout.RAW, phantom.raw, [voxel_size] * 3, levels=3)
    rows = []
    for number, (start, names) in enumerate(zip(starts, classes, strict=True), start=1):
        crop = f"{layout.LABELS}/crop{number}"
        store.require_group(crop).attrs["cellmap"] = {"annotation": {"class_names": names}}
        cut = phantom.cut(start, crop_size)
        _write_labels(folder / "phantom.zarr" / crop, cut, start, names=names, repeat=repeat)
        usage = "train" if number <= train_crops else "validate"
        rows.append(split.row_text(usage, "phantom", f"crop{number}", names))
    path = folder / "datasplit.csv"
    path.write_text("".join(f"{row}\n" for row in rows), newline="\n")
    return path


def _check_classes(classes: Sequence[Sequence[str]]) -> None:
    """Raise UserError for names outside the class table, and for crops without any name."""
    named: dict[str, None] = {}
    for names in classes:
        named |= dict.fromkeys(names)
    problems = unknown_names(named)
    for number, names in enumerate(classes, start=1):
        if not names:
            problems.append(f"crop {number} annotates no class")
    if problems:
        raise UserError("annotated: " + "; ".join(problems))


def _whole_ratio(voxel_size: float, label_voxel_size: float) -> int:
    """Return how many label voxels fit along one voxel. Raises UserError for no whole number."""
    ratio = voxel_size / label_voxel_size
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6:
        raise UserError(
            f"label_voxel_size {label_voxel_size} nm; "
            f"write a whole fraction of the image's {voxel_size}"
        )
    return round(ratio)


def _default_classes(number: int, train_crops: int) -> Sequence[str]:
    """Return all tested classes, or one of PARTIAL_SETS for the later half of training crops."""
    partial = number - (train_crops + 1) // 2 - 1
    if partial < 0 or number > train_crops:
        return TESTED
    return PARTIAL_SETS[partial % len(PARTIAL_SETS)]


def _write_labels(
    path: Path, crop: Phantom, start: np.ndarray, *, names: Sequence[str], repeat: int
) -> None:
    """Write the classes of a crop that was cut from voxel `start` on.

    Each voxel of the phantom becomes `repeat` voxels along each axis.
    """
    fine = crop.voxel_size / repeat
    # a translation is that of the first voxel's centre: a finer one lies nearer to the corner
    translation = start * crop.voxel_size - (crop.voxel_size - fine) / 2
    for name in names:
        volume = class_volume(crop, name)
        for axis in range(3):
            volume = volume.repeat(repeat, axis)
        annotation = {"class_name": name, "annotation_type": _annotation_type(name)}
        write_multiscale(
            path / name,
            volume,
            [fine] * 3,
            translation,
            attributes={"cellmap": {"annotation": annotation}},
        )


def _annotation_type(name: str) -> dict:
    """Return the challenge's metadata for the kind of labels of a class."""
    if name in INSTANCES:
        return {"type": "instance_segmentation", "encoding": {"absent": 0}}
    return {"type": "semantic_segmentation", "encoding": {"absent": 0, "present": 1}}


# Where crops lie


def _place_crops(atoms: np.ndarray, size: int, train: int, validate: int) -> np.ndarray:
    """Return (crops, 3) start voxels of crops that do not overlap, training crops first.

    Training (side 0) and validation crops (side 1) are placed in turn, each where its side gains
    most of what it has least of: at free places, or, where these run out, on the tiles of a regular
    grid. Raises UserError if the tiles are too few.
    """
    turns = [(rank, 0) for rank in range(train)] + [(rank, 1) for rank in range(validate)]
    sides = [side for _, side in sorted(turns)]
    for step in (8, size):
        starts, counts = _atom_counts(atoms, size, step)
        chosen = _greedy_places(starts, counts, size, sides)
        if chosen is not None:
            return chosen[np.argsort(sides, kind="stable")]
    raise UserError(
        f"shape {atoms.shape}: no room for {train + validate} crops of {size} voxels; ask for fewer"
    )


def _greedy_places(
    starts: np.ndarray, counts: np.ndarray, size: int, sides: Sequence[int]
) -> np.ndarray | None:
    """Choose one of `starts` (n, 3) for each turn (of side 0 or 1), no two overlapping.

    counts: (n, atoms) voxels. None if places run out.
    """
    free = np.ones(len(starts), bool)
    seen = np.zeros((2, counts.shape[1]))
    chosen = []
    for side in sides:
        if not free.any():
            return None
        # logarithms: atoms that a side has not seen yet come first
        gain = np.log1p(seen[side] + counts).sum(1)
        best = int(np.where(free, gain, -1).argmax())
        seen[side] += counts[best]
        chosen.append(starts[best])
        free &= (np.abs(starts - starts[best]) >= size).any(1)
    return np.array(chosen).reshape(-1, 3)


def _atom_counts(atoms: np.ndarray, size: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return starts (n, 3) of all cubes of `size` voxels, `step` apart, and their contents.

    Contents are (n, atoms): the number of voxels of each tested atom.
    """
    along = [np.arange(0, n - size + 1, step) for n in atoms.shape]
    starts = np.stack(np.meshgrid(*along, indexing="ij"), -1)
    tables = []
    for name in sorted(set(TESTED) & set(ATOM_IDS)):
        sums = np.pad((atoms == ATOM_IDS[name]).astype(np.int32), ((1, 0),) * 3)
        for axis, lower in enumerate(along):  # an integral image, differenced axis by axis
            np.cumsum(sums, axis, out=sums)
            sums = sums.take(lower + size, axis) - sums.take(lower, axis)
        tables.append(sums.ravel())
    return starts.reshape(-1, 3), np.stack(tables, 1)
