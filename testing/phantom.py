"""A phantom cell: nested organelles that obey the class table, imaged like FIB-SEM.

Made for tests, examples and benchmarks that need dense ground truth of all tested classes within seconds and offline.
Sizes are those of a small mammalian cell, in nm. Each voxel holds exactly one atom of the class table; organelles are
painted into free cytosol one after another and keep `GAP_NM` from each other, so they never overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zarr
from scipy import ndimage

from common.classes import ATOM_IDS, INSTANCES, TESTED, atoms_of, unknown_names
from common.data import layout, split
from common.data.ngff import write_multiscale
from common.errors import UserError

SHAPE = (160, 224, 224)
"""Default size of a phantom in voxels."""

GAP_NM = 24.0
"""Cytosol that is left between two organelles, and between an organelle and the plasma membrane."""

NEIGHBOURS = ndimage.generate_binary_structure(3, 2)
"""A membrane is what lies within one step of these 18 neighbours: 1 to 1.4 voxels thick, and closed for 6-adjacency."""

BUBBLES: dict[str, tuple[float, float, float, float]] = {
    "endo": (75.0, 115.0, 0.10, 1.8),
    "lyso": (80.0, 120.0, 0.06, 1.8),
    "ld": (65.0, 120.0, 0.00, 1.6),
    "perox": (60.0, 85.0, 0.03, 2.0),
    "ves": (29.0, 44.0, 0.00, 18.0),
}
"""Round organelles: smallest and largest radius (nm), unevenness (parts of the radius), number per cubic micrometre."""

STAIN: dict[str, tuple[float, float, float]] = {
    "ecs": (206, 2, 3),
    "pm": (36, 4, 3),
    "cyto": (152, 9, 5),
    "mito_mem": (68, 4, 3),
    "mito_lum": (122, 5, 4),
    "mito_ribo": (74, 4, 2),
    "golgi_mem": (54, 4, 3),
    "golgi_lum": (172, 4, 3),
    "ves_mem": (50, 4, 3),
    "ves_lum": (168, 5, 4),
    "endo_mem": (72, 4, 3),
    "endo_lum": (188, 6, 10),
    "lyso_mem": (58, 4, 3),
    "lyso_lum": (82, 12, 26),
    "ld_mem": (84, 3, 2),
    "ld_lum": (98, 1, 1),
    "perox_mem": (58, 4, 3),
    "perox_lum": (124, 10, 4),
    "er_mem": (56, 5, 4),
    "er_lum": (180, 4, 3),
    "eres_mem": (44, 5, 3),
    "eres_lum": (160, 4, 3),
    "ne_mem": (50, 4, 3),
    "ne_lum": (182, 4, 3),
    "np_out": (88, 6, 4),
    "np_in": (128, 6, 4),
    "hchrom": (96, 9, 7),
    "echrom": (136, 9, 5),
    "nucpl": (166, 8, 4),
    "nucleo": (84, 14, 8),
    "mt_out": (54, 4, 2),
    "mt_in": (196, 3, 2),
}
"""Grey value of each atom, and the standard deviations of its fine (1 voxel) and coarse (5 voxels) texture."""

PARTIAL_SETS: tuple[tuple[str, ...], ...] = (
    ("mito_mem", "mito_lum", "mito_ribo", "er_mem", "er_lum"),
    ("mito", "nuc"),
    ("pm", "ecs", "cyto"),
)
"""What partly annotated crops annotate by default: sets as they occur among the crops of the challenge."""

Box = tuple[slice, slice, slice]


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


def make_phantom(shape: Sequence[int] = SHAPE, voxel_size: float = 8.0, seed: int = 0) -> Phantom:
    """A phantom of `shape` voxels; the same arguments give the same arrays.

    Raises ValueError if the volume has no room for two organelles of each kind (well over one cubic micrometre is
    needed), or if microtubules could not be hollow at this voxel size.
    """
    if not 0 < voxel_size <= 10:
        raise UserError(
            f"voxel_size {voxel_size} nm; microtubules are 25 nm wide, so write 10 or less"
        )
    canvas = _Canvas(np.random.default_rng(seed), tuple(int(n) for n in shape), 1 / voxel_size)
    border = _paint_cells(canvas)
    nucleus = _paint_nucleus(canvas, border)
    _paint_golgi(canvas)
    _paint_mitochondria(canvas)
    for name in ("lyso", "endo", "ld", "perox"):
        _paint_bubbles(canvas, name)
    _paint_microtubules(canvas)
    _paint_er(canvas, nucleus)
    _paint_exit_sites(canvas)
    _paint_bubbles(canvas, "ves")
    return Phantom(_image(canvas), canvas.atoms, canvas.instances, float(voxel_size))


def class_volume(phantom: Phantom, name: str) -> np.ndarray:
    """(z, y, x) ground truth of a class of the table: ids for INSTANCES (smallest unsigned type), else uint8 0 or 1."""
    if problems := unknown_names([name]):
        raise UserError(problems[0])
    if name in phantom.instances:
        ids = phantom.instances[name]
        return ids.astype(np.min_scalar_type(ids.max()))
    table = np.zeros(256, np.uint8)
    table[[ATOM_IDS[atom] for atom in atoms_of(name)]] = 1
    return table[phantom.atoms]


def write_phantom(
    root: str | Path,
    seed: int = 0,
    shape: Sequence[int] = SHAPE,
    voxel_size: float = 8.0,
    train_crops: int = 6,
    validate_crops: int = 2,
    crop_size: int = 64,
    annotated: Callable[[int], Sequence[str]] | None = None,
    label_voxel_size: float | None = None,
) -> Path:
    """Write image, crops and datasplit of a phantom as the challenge lays them out; gives the path of the datasplit.

    Crops 1 to `train_crops` are for training, the next `validate_crops` for validation, each `crop_size` voxels a side.
    Where they lie depends on the phantom and these numbers only. `annotated` gives the classes that crop number n has;
    by default all tested classes, but one of PARTIAL_SETS in the later half of the training crops. `label_voxel_size`
    (nm) is that of the image by default, or a whole fraction of it. An older phantom at `root` is replaced.

    Raises ValueError for classes that cannot be annotated and for crops that do not fit.
    """
    repeat = _whole_ratio(voxel_size, label_voxel_size or voxel_size)
    choose = annotated or (lambda number: _default_classes(number, train_crops))
    classes = [list(choose(number)) for number in range(1, train_crops + validate_crops + 1)]
    problems = unknown_names(dict.fromkeys(name for names in classes for name in names))
    problems += [
        f"crop {number} annotates no class"
        for number, names in enumerate(classes, start=1)
        if not names
    ]
    if problems:
        raise UserError("annotated: " + "; ".join(problems))
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
        _write_labels(folder / "phantom.zarr" / crop, phantom, start, crop_size, names, repeat)
        usage = "train" if number <= train_crops else "validate"
        rows.append(split.row_text(usage, "phantom", f"crop{number}", names))
    path = folder / "datasplit.csv"
    path.write_text("".join(f"{row}\n" for row in rows), newline="\n")
    return path


def _whole_ratio(voxel_size: float, label_voxel_size: float) -> int:
    """How many label voxels fit along one voxel; ValueError unless that is a whole number, 1 or more."""
    ratio = voxel_size / label_voxel_size
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6:
        raise UserError(
            f"label_voxel_size {label_voxel_size} nm; write a whole fraction of the image's {voxel_size}"
        )
    return round(ratio)


def _default_classes(number: int, train_crops: int) -> Sequence[str]:
    """All tested classes, or one of PARTIAL_SETS in the later half of the training crops."""
    partial = number - (train_crops + 1) // 2 - 1
    return (
        PARTIAL_SETS[partial % len(PARTIAL_SETS)]
        if partial >= 0 and number <= train_crops
        else TESTED
    )


def _write_labels(
    path: Path, phantom: Phantom, start: np.ndarray, size: int, names: Sequence[str], repeat: int
) -> None:
    """Write the classes of one crop, each voxel of the phantom as `repeat` voxels along each axis."""
    box = tuple(slice(int(a), int(a) + size) for a in start)
    fine = phantom.voxel_size / repeat
    translation = start * phantom.voxel_size - (phantom.voxel_size - fine) / 2
    cut = Phantom(
        phantom.raw[box],
        phantom.atoms[box],
        {k: v[box] for k, v in phantom.instances.items()},
        phantom.voxel_size,
    )
    for name in names:
        volume = class_volume(cut, name).repeat(repeat, 0).repeat(repeat, 1).repeat(repeat, 2)
        kind = (
            {"type": "instance_segmentation", "encoding": {"absent": 0}}
            if name in INSTANCES
            else {"type": "semantic_segmentation", "encoding": {"absent": 0, "present": 1}}
        )
        annotation = {"class_name": name, "annotation_type": kind}
        write_multiscale(
            path / name,
            volume,
            [fine] * 3,
            translation,
            attributes={"cellmap": {"annotation": annotation}},
        )


def _place_crops(atoms: np.ndarray, size: int, train: int, validate: int) -> np.ndarray:
    """(crops, 3) start voxels of crops that do not overlap, training crops first.

    Training and validation crops are placed in turn, each where its side gains most of what it has least of: at free
    places, or, where these run out, on the tiles of a regular grid. Raises ValueError if the tiles are too few.
    """
    sides = [
        side
        for _, side in sorted(
            [(rank, 0) for rank in range(train)] + [(rank, 1) for rank in range(validate)]
        )
    ]
    for step in (8, size):
        starts = _greedy_places(*_atom_counts(atoms, size, step), size, sides)
        if starts is not None:
            return starts[np.argsort(sides, kind="stable")]
    raise UserError(
        f"shape {atoms.shape}: no room for {train + validate} crops of {size} voxels; ask for fewer"
    )


def _greedy_places(
    starts: np.ndarray, counts: np.ndarray, size: int, sides: Sequence[int]
) -> np.ndarray | None:
    """For each turn (of side 0 or 1) one of `starts` (n, 3), no two overlapping, or None if they run out.

    counts: (n, atoms) voxels. A turn takes what adds most to the logarithms of the voxels that its side has of each
    atom, so that atoms it has not seen come first.
    """
    free, seen, chosen = np.ones(len(starts), bool), np.zeros((2, counts.shape[1])), []
    for side in sides:
        if not free.any():
            return None
        best = int(np.where(free, np.log1p(seen[side] + counts).sum(1), -1).argmax())
        seen[side] += counts[best]
        chosen.append(starts[best])
        free &= (np.abs(starts - starts[best]) >= size).any(1)
    return np.array(chosen).reshape(-1, 3)


def _atom_counts(atoms: np.ndarray, size: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts (n, 3) of all cubes of `size` voxels, `step` apart, and their voxels (n, atoms) of each tested atom."""
    starts = np.stack(
        np.meshgrid(*(np.arange(0, n - size + 1, step) for n in atoms.shape), indexing="ij"), -1
    )
    tables = []
    for name in sorted(set(TESTED) & set(ATOM_IDS)):
        sums = np.pad((atoms == ATOM_IDS[name]).astype(np.int32), ((1, 0),) * 3)
        for axis in range(3):
            np.cumsum(sums, axis, out=sums)
            lower = np.arange(0, atoms.shape[axis] - size + 1, step)
            sums = sums.take(lower + size, axis) - sums.take(lower, axis)
        tables.append(sums.ravel())
    return starts.reshape(-1, 3), np.stack(tables, 1)


# Painting


@dataclass
class _Canvas:
    """What is painted so far, and where there is room for more."""

    rng: np.random.Generator
    shape: tuple[int, int, int]
    nm: float
    """Voxels per nm: `40 * canvas.nm` is 40 nm in voxels."""
    atoms: np.ndarray = field(init=False)
    room: np.ndarray = field(init=False)
    """bool, cytosol that no organelle has taken."""
    instances: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.atoms = np.full(self.shape, ATOM_IDS["ecs"], np.uint8)
        self.room = np.zeros(self.shape, bool)
        self.instances = {name: np.zeros(self.shape, np.uint16) for name in INSTANCES}

    @property
    def membrane(self) -> int:
        """Steps of `_grow` that make a membrane 8 nm thick."""
        return max(1, round(8 * self.nm))

    def count(self, per_cubic_micrometre: float) -> int:
        """How many objects of a kind this volume gets: at least three."""
        return max(3, round(per_cubic_micrometre * np.prod(np.array(self.shape) / self.nm / 1000)))

    def paint(self, box: Box, **masks: np.ndarray) -> None:
        """Paint atoms (name=mask of the box), later ones over earlier ones, and take the room."""
        for atom, mask in masks.items():
            self.atoms[box][mask] = ATOM_IDS[atom]
            self.room[box][mask] = False

    def number(self, name: str, box: Box, mask: np.ndarray) -> None:
        """Give the voxels of `mask` the next free id of the class."""
        ids = self.instances[name]
        ids[box][mask] = ids.max() + 1

    def spots(self, reach: float, tries: int = 2000) -> Iterator[tuple[Box, list[np.ndarray]]]:
        """Random free places: the box within `reach` voxels of a centre, and z, y, x offsets from it, in voxels."""
        for centre in self.rng.uniform(0, self.shape, (tries, 3)):
            if self.room[tuple(centre.astype(int))]:
                yield _around(centre, reach, self.shape)

    def fits(self, box: Box, distance: np.ndarray) -> bool:
        """Whether an object, given by its signed distance in voxels, keeps its gap to all others."""
        return bool(self.room[box][distance < GAP_NM * self.nm].all())

    def require(self, name: str, placed: int) -> None:
        """Raises ValueError unless at least two objects of the kind were placed."""
        if placed < 2:
            raise UserError(
                f"shape {self.shape}: room for only {placed} objects of '{name}'; use a larger shape"
            )


def _paint_cells(canvas: _Canvas) -> np.ndarray:
    """A large cell and part of a second one, both cut by the volume's border; the rest stays extracellular space.

    Returns the first cell's (z, y, x) border field: roughly the distance in voxels, negative inside.
    """
    size, nm = np.array(canvas.shape), canvas.nm
    wobble = _noise(canvas.rng, canvas.shape, 360 * nm) * 36 * nm
    first = (
        _ellipsoid(_offsets(size * (0.50, 0.46, 0.44), canvas.shape), size * (0.95, 0.70, 0.54))
        + wobble
    )
    second = (
        _ellipsoid(_offsets(size * (0.55, 1.02, 1.04), canvas.shape), size * (0.80, 0.42, 0.36))
        + wobble
    )
    second = np.maximum(second, 72 * nm - first)
    everywhere = (slice(None),) * 3
    for cell in (first < 0, second < 0):
        inside = cell & ~_grow(~cell, canvas.membrane)
        canvas.paint(everywhere, pm=cell, cyto=inside)
        canvas.number("cell", everywhere, cell)
        canvas.room |= inside
    return first


def _paint_nucleus(canvas: _Canvas, border: np.ndarray) -> np.ndarray:
    """A nucleus: envelope, pores, chromatin, nucleolus. Returns the (z, y, x) distance to it, roughly, in voxels."""
    rng, nm, size = canvas.rng, canvas.nm, np.array(canvas.shape)
    centre = size * (0.45, 0.55, 0.30) + rng.uniform(-24, 24, 3) * nm
    surface = _ellipsoid(_offsets(centre, canvas.shape), size * (0.36, 0.33, 0.29))
    surface = np.maximum(surface + _noise(rng, canvas.shape, 240 * nm) * 20 * nm, border + 150 * nm)
    box = ndimage.find_objects((surface < 2).astype(np.uint8))[0]
    nucleus = surface[box] < 0
    depth = ndimage.distance_transform_edt(nucleus).astype(np.float32)
    envelope = nucleus & (depth <= 52 * nm)
    lumen = envelope & (depth > 12 * nm) & (depth <= 40 * nm)
    canvas.number("nuc", box, nucleus)
    canvas.paint(
        box, ne_mem=envelope, ne_lum=lumen, **_chromatin(canvas, nucleus & ~envelope, depth)
    )
    _paint_pores(canvas, box, surface[box], envelope, depth)
    return surface


def _chromatin(canvas: _Canvas, inside: np.ndarray, depth: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of what fills a nucleus; heterochromatin lines the envelope and forms clumps."""
    rng, nm = canvas.rng, canvas.nm
    coarse, fine = _noise(rng, inside.shape, 110 * nm), _noise(rng, inside.shape, 64 * nm)
    hetero = coarse + 0.4 * fine + 2.2 * np.exp(-depth / (70 * nm)) > 1.5
    deep = np.argwhere(depth > 0.7 * depth.max())
    radius = 0.28 * depth.max()
    nucleolus = (
        _ellipsoid(_offsets(rng.choice(deep), inside.shape), (radius, 1.2 * radius, radius))
        + 4 * fine
        < 0
    )
    return {
        "nucpl": inside,
        "echrom": inside & (0.8 * fine - 0.6 * coarse > 0.1),
        "hchrom": inside & hetero,
        "nucleo": inside & nucleolus,
    }


def _paint_pores(
    canvas: _Canvas, box: Box, surface: np.ndarray, envelope: np.ndarray, depth: np.ndarray
) -> None:
    """Pierce the envelope: a ring around a channel, along the surface normal; below it the chromatin is open."""
    nm, middle = canvas.nm, depth[envelope].max() / 2
    candidates = canvas.rng.permutation(np.argwhere(envelope & (np.abs(depth - middle) < 0.6)))[
        :3000
    ]
    normals = np.stack([ndimage.sobel(surface, axis)[tuple(candidates.T)] for axis in range(3)], 1)
    pores: list[np.ndarray] = []
    for point, normal in zip(
        candidates, normals / np.linalg.norm(normals, axis=1, keepdims=True), strict=True
    ):
        if any(np.linalg.norm(point - other) < 190 * nm for other in pores):
            continue
        pores.append(point)
        local, offsets = _around(point, 110 * nm, surface.shape)
        along = sum(n * o for n, o in zip(normal, offsets, strict=True))
        radius = np.sqrt(np.maximum(sum(o**2 for o in offsets) - along**2, 0))
        wall = envelope[local] & (np.abs(along) < 60 * nm)
        ring, core = wall & (radius < 46 * nm), wall & (radius < 20 * nm)
        place = _nested(box, local)
        chromatin = np.isin(canvas.atoms[place], [ATOM_IDS["hchrom"], ATOM_IDS["echrom"]])
        open_chromatin = chromatin & (np.hypot(0.8 * along, radius) < 78 * nm)
        canvas.paint(place, nucpl=open_chromatin, np_out=ring, np_in=core)
        canvas.number("np", place, ring)
    canvas.require("np", len(pores))


def _paint_golgi(canvas: _Canvas) -> None:
    """Stacks of bowl-shaped cisternae with swollen rims and a few holes."""
    rng, nm, placed = canvas.rng, canvas.nm, 0
    pitch, wanted = 60 * nm, canvas.count(0.6)
    for box, offsets in canvas.spots(270 * nm):
        axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        u, v, w = (sum(a * o for a, o in zip(axis, offsets, strict=True)) for axis in axes)
        radius, layers = rng.uniform(150, 200) * nm, rng.integers(4, 6)
        rho = np.hypot(u, v)
        height = w - rho**2 / (5 * radius) + (layers - 1) / 2 * pitch
        slab = np.abs(height - (layers - 1) / 2 * pitch) - layers / 2 * pitch
        if not canvas.fits(box, np.maximum(rho - radius - 40 * nm, slab)):
            continue
        layer = np.clip(np.rint(height / pitch), 0, layers - 1)
        rim = (
            rho
            - radius
            + 16 * nm * (np.clip(_noise(rng, rho.shape, 80 * nm), -1, 1) + np.sin(2.1 * layer))
        )
        half = (9 + 6 * np.clip(1 + rim / (40 * nm), 0, 1)) * nm
        lumen = (
            (np.abs(height - layer * pitch) < half)
            & (rim < 0)
            & (_noise(rng, rho.shape, 64 * nm) < 1.7)
        )
        canvas.paint(box, golgi_mem=_grow(lumen, canvas.membrane), golgi_lum=lumen)
        placed += 1
        if placed == wanted:
            break
    canvas.require("golgi", placed)


def _paint_mitochondria(canvas: _Canvas) -> None:
    """Curved capsules with a double membrane, cristae from alternating sides, and ribosomes in the matrix."""
    rng, nm, placed = canvas.rng, canvas.nm, 0
    for _ in range(canvas.count(4.0)):
        radius = rng.uniform(88, 135) * nm
        path = _longest_free_path(canvas, radius + 1.6 * GAP_NM * nm)
        if path is None:
            continue
        box, offsets = _around(
            path.mean(0), np.abs(path - path.mean(0)).max(0) + radius + 56 * nm, canvas.shape
        )
        centred = path - path.mean(0)
        square = np.full(np.broadcast_shapes(*(o.shape for o in offsets)), np.inf, np.float32)
        for point in centred:
            np.minimum(
                square, sum((o - p) ** 2 for o, p in zip(offsets, point, strict=True)), out=square
            )
        distance = np.sqrt(square) - radius + _noise(rng, square.shape, 160 * nm) * 8 * nm
        if canvas.fits(box, distance):
            _paint_mitochondrion(
                canvas, box, offsets, distance < 0, centred[-1] - centred[0], radius
            )
            placed += 1
    canvas.require("mito", placed)


def _paint_mitochondrion(
    canvas: _Canvas,
    box: Box,
    offsets: list[np.ndarray],
    body: np.ndarray,
    direction: np.ndarray,
    radius: float,
) -> None:
    """Fill `body` (of the box); cristae stand across `direction`."""
    rng, nm = canvas.rng, canvas.nm
    axis = direction / np.linalg.norm(direction)
    side = np.cross(axis, rng.standard_normal(3))
    side /= np.linalg.norm(side)
    along = (
        sum(a * o for a, o in zip(axis, offsets, strict=True))
        + _noise(rng, body.shape, 120 * nm) * 14 * nm
    )
    across = sum(s * o for s, o in zip(side, offsets, strict=True))
    period = rng.uniform(72, 96) * nm
    sheet = np.rint(along / period)
    rooted = across * (1 - 2 * (sheet % 2)) > rng.uniform(-0.7, -0.2) * radius
    matrix = (
        body
        & ~_grow(~body, 2 * canvas.membrane)
        & ~((np.abs(along - sheet * period) < 9 * nm) & rooted)
    )
    seeds = matrix & ~_grow(~matrix) & (rng.random(body.shape, np.float32) < 0.01)
    ribosomes = ndimage.binary_dilation(seeds)
    canvas.number("mito", box, body)
    canvas.paint(box, mito_mem=body, mito_lum=matrix, mito_ribo=ribosomes & matrix)


def _longest_free_path(canvas: _Canvas, clearance: float) -> np.ndarray | None:
    """(points, 3) voxels: of many random arcs the longest that stays `clearance` voxels inside the room, or None."""
    rng, nm, coarse = canvas.rng, canvas.nm, 4
    room = ndimage.distance_transform_edt(canvas.room[::coarse, ::coarse, ::coarse]) * coarse
    starts = np.argwhere(room >= clearance)
    if not len(starts):
        return None
    best = None
    for start in rng.choice(starts, 300) * coarse:
        length, direction, bend = (
            rng.uniform(160, 900) * nm,
            rng.standard_normal(3),
            rng.standard_normal(3),
        )
        t = np.linspace(0, 1, max(2, int(length / (24 * nm))))[:, None]
        path = start + length * (t * direction / np.linalg.norm(direction) + 0.25 * t**2 * bend)
        inside = ((path >= 0) & (path < canvas.shape)).all(1)
        if not inside.all() or (best is not None and len(path) <= len(best)):
            continue
        if (room[tuple((path // coarse).astype(int).T)] >= clearance).all():
            best = path
    return best


def _paint_bubbles(canvas: _Canvas, name: str) -> None:
    """Round organelles of one kind (BUBBLES): a membrane around a lumen."""
    rng, nm, placed = canvas.rng, canvas.nm, 0
    smallest, largest, unevenness, density = BUBBLES[name]
    wanted = canvas.count(density)
    radius = rng.uniform(smallest, largest) * nm
    for box, offsets in canvas.spots(1.3 * (largest + GAP_NM) * nm, 20000):
        distance = _ellipsoid(offsets, radius * rng.uniform(1 - unevenness, 1 + unevenness, 3))
        distance += unevenness * radius * np.clip(_noise(rng, distance.shape, radius), -1.5, 1.5)
        if not canvas.fits(box, distance):
            continue
        body = distance < 0
        canvas.number(name, box, body)
        canvas.paint(
            box, **{f"{name}_mem": body, f"{name}_lum": body & ~_grow(~body, canvas.membrane)}
        )
        placed += 1
        if placed == wanted:
            break
        radius = rng.uniform(smallest, largest) * nm
    canvas.require(name, placed)


def _paint_microtubules(canvas: _Canvas) -> None:
    """Nearly straight hollow tubes, most of them along one direction."""
    rng, nm, placed = canvas.rng, canvas.nm, 0
    blocked = _grow(~canvas.room, round(12 * nm + 0.75 * GAP_NM * nm))
    main = rng.standard_normal(3)
    wanted = canvas.count(7.0)
    for start in rng.uniform(0, canvas.shape, (4000, 3)):
        direction = main + 0.5 * rng.standard_normal(3)
        t = np.arange(-900, 900, 4)[:, None] * nm
        path = (
            start
            + t * direction / np.linalg.norm(direction)
            + (t**2) / (6000 * nm) * rng.standard_normal(3)
        )
        line = np.rint(_free_run(path, blocked)).astype(int)
        if len(line) * 4 < 360:
            continue
        core, wall = (
            _stamp(line, max(0.5, 5 * nm), canvas.shape),
            _stamp(line, max(1.5, 12 * nm), canvas.shape),
        )
        canvas.atoms[wall] = ATOM_IDS["mt_out"]
        canvas.atoms[core] = ATOM_IDS["mt_in"]
        canvas.room[wall] = False
        blocked[_stamp(line, 56 * nm, canvas.shape)] = True
        placed += 1
        canvas.instances["mt"][wall] = placed
        if placed == wanted:
            break
    canvas.require("mt", placed)


def _free_run(path: np.ndarray, blocked: np.ndarray) -> np.ndarray:
    """The part of `path` (points, 3) around its middle that is inside the volume and not blocked."""
    inside = ((path >= 0) & (path <= np.array(blocked.shape) - 1)).all(1)
    free = inside.copy()
    free[inside] = ~blocked[tuple(np.rint(path[inside]).astype(int).T)]
    stops = np.flatnonzero(~free)
    middle = len(path) // 2
    before, after = stops[stops <= middle], stops[stops >= middle]
    return path[(before[-1] + 1 if len(before) else 0) : (after[0] if len(after) else len(path))]


def _paint_er(canvas: _Canvas, nucleus: np.ndarray) -> None:
    """Sheets around the nucleus and tubules farther out: where one, or two, smooth noises are near zero."""
    rng, nm = canvas.rng, canvas.nm
    one, two = (_level_distance(_noise(rng, canvas.shape, 130 * nm)) for _ in range(2))
    region = nucleus + _noise(rng, canvas.shape, 200 * nm) * 90 * nm
    sheets = (one < 13 * nm) & (region < 200 * nm)
    tubules = (np.hypot(one, two) < 22 * nm) & (region < 700 * nm)
    lumen = (sheets | tubules) & ~_grow(~canvas.room, round(GAP_NM * nm) + canvas.membrane)
    pieces, _ = ndimage.label(lumen)
    small = np.bincount(pieces.ravel()) < 4e5 * nm**3
    lumen &= ~small[pieces]
    canvas.paint((slice(None),) * 3, er_mem=_grow(lumen, canvas.membrane), er_lum=lumen)


def _paint_exit_sites(canvas: _Canvas) -> None:
    """Patches of ER that bud: the ER near a point of its surface, and small bulbs grown there."""
    rng, nm, placed = canvas.rng, canvas.nm, 0
    er = [ATOM_IDS["er_mem"], ATOM_IDS["er_lum"]]
    wanted = canvas.count(3.5)
    points = rng.permutation(
        np.argwhere(canvas.atoms == ATOM_IDS["er_mem"])[:: max(1, round(4 * nm))]
    )
    for point in points[:2000]:
        box, offsets = _around(point, 130 * nm, canvas.shape)
        atoms = canvas.atoms[box]
        allowed = canvas.room[box] | np.isin(atoms, er)
        bulbs = np.zeros(allowed.shape, bool)
        for _ in range(12):
            shift = np.clip(rng.standard_normal(3), -3, 3) * 26 * nm
            bulb = (
                sum((o - s) ** 2 for o, s in zip(offsets, shift, strict=True))
                < (rng.uniform(14, 20) * nm) ** 2
            )
            if allowed[_grow(bulb, canvas.membrane + 2)].all():
                bulbs |= bulb
        near = sum(o**2 for o in offsets) < (44 * nm) ** 2
        old = atoms == ATOM_IDS["er_lum"]
        lumen = bulbs | (old & near)
        membrane = (_grow(lumen, canvas.membrane) | (near & (atoms == ATOM_IDS["er_mem"]))) & ~old
        if (bulbs & canvas.room[box]).sum() < 40 * (8 * nm) ** 3:
            continue
        canvas.paint(box, eres_mem=membrane, eres_lum=lumen)
        placed += 1
        if placed == wanted:
            break
    canvas.require("eres", placed)


# Geometry


def _noise(rng: np.random.Generator, shape: Sequence[int], spacing: float) -> np.ndarray:
    """Smooth (z, y, x) float32 noise of unit variance: cubic B-splines, `spacing` voxels apart, of random heights."""
    values = rng.standard_normal([int(n / spacing) + 4 for n in shape], dtype=np.float32)
    for axis, n in enumerate(shape):
        away = np.abs(np.arange(n)[:, None] / spacing + 1 - np.arange(values.shape[axis]))
        weights = np.where(
            away < 1, 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None) ** 3 / 6
        )
        weights /= np.sqrt((weights**2).sum(1, keepdims=True))
        values = np.moveaxis(np.tensordot(weights.astype(np.float32), values, (1, axis)), 0, axis)
    return np.ascontiguousarray(values)


def _grow(mask: np.ndarray, steps: int = 1) -> np.ndarray:
    """The mask and all within `steps` steps of NEIGHBOURS; what lies outside the array counts as not in the mask."""
    return ndimage.binary_dilation(mask, NEIGHBOURS, steps)


def _offsets(
    centre: Sequence[float], shape: Sequence[int], start: Sequence[int] = (0, 0, 0)
) -> list[np.ndarray]:
    """Broadcastable z, y, x float32 offsets (voxels) from `centre` of a box of `shape` that begins at `start`."""
    axes = [
        np.arange(a, a + n, dtype=np.float32) - np.float32(c)
        for a, n, c in zip(start, shape, centre, strict=True)
    ]
    return list(np.ix_(*axes))


def _around(
    centre: Sequence[float], reach: float | np.ndarray, shape: Sequence[int]
) -> tuple[Box, list[np.ndarray]]:
    """The box within `reach` voxels of `centre`, cut by the volume, and its offsets from the centre."""
    low = np.maximum(np.floor(np.array(centre) - reach), 0).astype(int)
    high = np.minimum(np.ceil(np.array(centre) + reach) + 1, shape).astype(int)
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)), _offsets(
        centre, high - low, low
    )


def _nested(outer: Box, inner: Box) -> Box:
    """`inner`, a box within `outer`, in the coordinates of the volume."""
    return tuple(
        slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True)
    )


def _ellipsoid(offsets: Sequence[np.ndarray], radii: Sequence[float]) -> np.ndarray:
    """Roughly the signed distance (voxels) to an ellipsoid about the origin, negative inside."""
    scaled = sum((o / np.float32(r)) ** 2 for o, r in zip(offsets, radii, strict=True))
    return (np.sqrt(scaled) - 1) * np.float32(min(radii))


def _level_distance(values: np.ndarray) -> np.ndarray:
    """Distance (voxels) to the zero level of a smooth field, to first order."""
    square = sum(np.gradient(values, axis=axis) ** 2 for axis in range(3))
    return np.abs(values) / np.sqrt(square + 1e-6)


def _stamp(
    points: np.ndarray, radius: float, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of all voxels of the volume within `radius` of one of `points` ((n, 3) int)."""
    reach = range(-int(radius), int(radius) + 1)
    ball = np.array(
        [
            (z, y, x)
            for z in reach
            for y in reach
            for x in reach
            if z * z + y * y + x * x <= radius**2
        ]
    )
    voxels = (points[:, None] + ball).reshape(-1, 3)
    return tuple(voxels[((voxels >= 0) & (voxels < shape)).all(1)].T)


# Imaging


def _image(canvas: _Canvas) -> np.ndarray:
    """uint8 image: stain, texture, ribosomes, uneven objects; then blur, illumination, shot noise and streaks."""
    rng, shape = canvas.rng, canvas.shape
    table = np.zeros((3, 256), np.float32)
    for atom, values in STAIN.items():
        table[:, ATOM_IDS[atom]] = values
    fine = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.8)
    grey = table[0][canvas.atoms]
    grey += table[1][canvas.atoms] * fine / fine.std()
    grey += table[2][canvas.atoms] * _noise(rng, shape, 5)
    grey -= 60 * _ribosomes(canvas)
    for name, spread in {
        "mito": 7,
        "lyso": 12,
        "endo": 12,
        "ld": 10,
        "perox": 8,
        "ves": 10,
    }.items():
        shades = rng.normal(0, spread, canvas.instances[name].max() + 1).astype(np.float32)
        shades[0] = 0
        grey += shades[canvas.instances[name]]
    grey = ndimage.gaussian_filter(grey, 0.7)
    grey += 5 * _noise(rng, shape, 90)
    grey += (
        5.5 * np.sqrt(np.clip(grey, 0, None) / 128) * rng.standard_normal(shape, dtype=np.float32)
    )
    grey += rng.normal(0, 1.2, (shape[0], 1, 1)).astype(np.float32)
    grey += ndimage.gaussian_filter1d(
        rng.normal(0, 1.6, (shape[0], 1, shape[2])), 1, axis=2
    ).astype(np.float32)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _ribosomes(canvas: _Canvas) -> np.ndarray:
    """bool: dots in the cytosol, crowded along the ER; part of `cyto`, as in the challenge."""
    atoms = canvas.atoms
    near_er = _grow(atoms == ATOM_IDS["er_mem"], 2)
    chance = np.where(near_er, np.float32(0.06), np.float32(0.012))
    seeds = (canvas.rng.random(atoms.shape, np.float32) < chance) & (atoms == ATOM_IDS["cyto"])
    return ndimage.binary_dilation(seeds) & (atoms == ATOM_IDS["cyto"])
