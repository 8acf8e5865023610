"""The anatomy of the phantom: cells, nucleus and organelles, painted one after another.

Organelles are painted into free cytosol and keep GAP_NM from each other, so they never overlap.
Sizes are those of a small mammalian cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from common.classes import ATOM_IDS, INSTANCES
from common.errors import UserError
from testing.fields import (
    EVERYWHERE,
    Box,
    Offsets,
    along,
    around,
    ellipsoid,
    grow,
    level_distance,
    nested,
    noise,
    offsets_from,
    square_distance,
    stamp,
)

GAP_NM = 24.0
"""Cytosol that is left between two organelles, and between one and the plasma membrane."""

BUBBLES: dict[str, tuple[float, float, float, float]] = {
    "endo": (75.0, 115.0, 0.10, 1.8),
    "lyso": (80.0, 120.0, 0.06, 1.8),
    "ld": (65.0, 120.0, 0.00, 1.6),
    "perox": (60.0, 85.0, 0.03, 2.0),
    "ves": (29.0, 44.0, 0.00, 18.0),
}
"""Round organelles: smallest and largest radius (nm), unevenness (parts of the radius), number per
cubic micrometre."""


@dataclass
class Canvas:
    """The painted cell, and the room that is left in it."""

    rng: np.random.Generator
    shape: tuple[int, ...]
    nm: float
    """Voxels per nm: `40 * canvas.nm` is 40 nm in voxels."""
    atoms: np.ndarray = field(init=False)
    """uint8, one value of ATOM_IDS per voxel."""
    room: np.ndarray = field(init=False)
    """bool, cytosol that no organelle has taken."""
    instances: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.atoms = np.full(self.shape, ATOM_IDS["ecs"], np.uint8)
        self.room = np.zeros(self.shape, bool)
        self.instances = {name: np.zeros(self.shape, np.uint16) for name in INSTANCES}

    @property
    def membrane(self) -> int:
        """Steps of `grow` that make a membrane 8 nm thick."""
        return max(1, round(8 * self.nm))

    def count(self, per_cubic_micrometre: float) -> int:
        """Return the number of objects of a kind for this volume: at least three."""
        micrometres = np.array(self.shape) / self.nm / 1000
        return max(3, round(per_cubic_micrometre * np.prod(micrometres)))

    def paint(self, box: Box, **masks: np.ndarray) -> None:
        """Paint atoms (name=mask of the box), later ones over earlier ones, and take the room."""
        for atom, mask in masks.items():
            self.atoms[box][mask] = ATOM_IDS[atom]
            self.room[box][mask] = False

    def number(self, name: str, box: Box, mask: np.ndarray) -> None:
        """Give the voxels of `mask` the next free id of the class."""
        ids = self.instances[name]
        ids[box][mask] = ids.max() + 1

    def spots(self, reach: float, tries: int = 2000) -> Iterator[tuple[Box, Offsets]]:
        """Yield random free places: the box within `reach` voxels of a centre, and its offsets."""
        for centre in self.rng.uniform(0, self.shape, (tries, 3)):
            if self.room[tuple(centre.astype(int))]:
                yield around(centre, reach, self.shape)

    def fits(self, box: Box, distance: np.ndarray) -> bool:
        """Whether an object, given by its signed distance (voxels), keeps its gap to all others."""
        return bool(self.room[box][distance < GAP_NM * self.nm].all())

    def require(self, name: str, placed: int) -> None:
        """Raise UserError unless at least two objects of the kind were placed."""
        if placed < 2:
            raise UserError(
                f"shape {self.shape}: room for only {placed} objects of '{name}'; "
                "use a larger shape"
            )


def paint_cell(rng: np.random.Generator, shape: Sequence[int], voxel_size: float) -> Canvas:
    """Paint a cell with all organelles. Raises UserError without room for two of each kind."""
    canvas = Canvas(rng, tuple(int(n) for n in shape), 1 / voxel_size)
    border = _paint_cells(canvas)
    nucleus = _paint_nucleus(canvas, border)
    # large and rigid ones first: what comes later has to fit into what is left
    _paint_golgi(canvas)
    _paint_mitochondria(canvas)
    for name in ("lyso", "endo", "ld", "perox"):
        _paint_bubbles(canvas, name)
    _paint_microtubules(canvas)
    _paint_er(canvas, nucleus)
    _paint_exit_sites(canvas)
    _paint_bubbles(canvas, "ves")
    return canvas


# Cells and nucleus


def _paint_cells(canvas: Canvas) -> np.ndarray:
    """A large cell and part of a second one, both cut by the volume's border; the rest is ecs.

    Returns the first cell's (z, y, x) border field: about the distance in voxels, negative inside.
    """
    size = np.array(canvas.shape)
    nm = canvas.nm
    wobble = noise(canvas.rng, canvas.shape, 360 * nm) * 36 * nm
    offsets = offsets_from(size * (0.50, 0.46, 0.44), canvas.shape)
    first = ellipsoid(offsets, size * (0.95, 0.70, 0.54)) + wobble
    offsets = offsets_from(size * (0.55, 1.02, 1.04), canvas.shape)
    second = ellipsoid(offsets, size * (0.80, 0.42, 0.36)) + wobble
    second = np.maximum(second, 72 * nm - first)  # extracellular space between the two
    for cell in (first < 0, second < 0):
        inside = cell & ~grow(~cell, canvas.membrane)
        canvas.paint(EVERYWHERE, pm=cell, cyto=inside)
        canvas.number("cell", EVERYWHERE, cell)
        canvas.room |= inside
    return first


def _paint_nucleus(canvas: Canvas, border: np.ndarray) -> np.ndarray:
    """A nucleus: envelope, pores, chromatin, nucleolus.

    Returns the (z, y, x) distance to it, roughly, in voxels.
    """
    rng = canvas.rng
    nm = canvas.nm
    size = np.array(canvas.shape)
    centre = size * (0.45, 0.55, 0.30) + rng.uniform(-24, 24, 3) * nm
    surface = ellipsoid(offsets_from(centre, canvas.shape), size * (0.36, 0.33, 0.29))
    surface = surface + noise(rng, canvas.shape, 240 * nm) * 20 * nm
    surface = np.maximum(surface, border + 150 * nm)
    box = ndimage.find_objects((surface < 2).astype(np.uint8))[0]
    nucleus = surface[box] < 0
    depth = ndimage.distance_transform_edt(nucleus).astype(np.float32)
    envelope = nucleus & (depth <= 52 * nm)
    lumen = envelope & (depth > 12 * nm) & (depth <= 40 * nm)
    canvas.number("nuc", box, nucleus)
    chromatin = _chromatin(canvas, nucleus & ~envelope, depth)
    canvas.paint(box, ne_mem=envelope, ne_lum=lumen, **chromatin)
    _paint_pores(canvas, box, surface=surface[box], envelope=envelope, depth=depth)
    return surface


def _chromatin(canvas: Canvas, inside: np.ndarray, depth: np.ndarray) -> dict[str, np.ndarray]:
    """Return masks of the content of a nucleus; heterochromatin lines the envelope, in clumps."""
    rng = canvas.rng
    nm = canvas.nm
    coarse = noise(rng, inside.shape, 110 * nm)
    fine = noise(rng, inside.shape, 64 * nm)
    hetero = coarse + 0.4 * fine + 2.2 * np.exp(-depth / (70 * nm)) > 1.5
    deep = np.argwhere(depth > 0.7 * depth.max())
    radius = 0.28 * depth.max()
    offsets = offsets_from(rng.choice(deep), inside.shape)
    nucleolus = ellipsoid(offsets, (radius, 1.2 * radius, radius)) + 4 * fine < 0
    return {
        "nucpl": inside,
        "echrom": inside & (0.8 * fine - 0.6 * coarse > 0.1),
        "hchrom": inside & hetero,
        "nucleo": inside & nucleolus,
    }


def _paint_pores(
    canvas: Canvas, box: Box, *, surface: np.ndarray, envelope: np.ndarray, depth: np.ndarray
) -> None:
    """Pierce the envelope: a ring around a channel along the normal, open chromatin below it."""
    nm = canvas.nm
    middle = depth[envelope].max() / 2
    candidates = np.argwhere(envelope & (np.abs(depth - middle) < 0.6))
    candidates = canvas.rng.permutation(candidates)[:3000]
    slopes = [ndimage.sobel(surface, axis)[tuple(candidates.T)] for axis in range(3)]
    normals = np.stack(slopes, 1)
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    pores: list[np.ndarray] = []
    for point, normal in zip(candidates, normals, strict=True):
        if any(np.linalg.norm(point - other) < 190 * nm for other in pores):
            continue
        pores.append(point)
        local, offsets = around(point, 110 * nm, surface.shape)
        height = along(normal, offsets)
        radius = np.sqrt(np.maximum(square_distance(offsets) - height**2, 0))
        wall = envelope[local] & (np.abs(height) < 60 * nm)
        ring = wall & (radius < 46 * nm)
        channel = wall & (radius < 20 * nm)
        place = nested(box, local)
        chromatin = np.isin(canvas.atoms[place], [ATOM_IDS["hchrom"], ATOM_IDS["echrom"]])
        open_chromatin = chromatin & (np.hypot(0.8 * height, radius) < 78 * nm)
        canvas.paint(place, nucpl=open_chromatin, np_out=ring, np_in=channel)
        canvas.number("np", place, ring)
    canvas.require("np", len(pores))


# Organelles


def _paint_golgi(canvas: Canvas) -> None:
    """Stacks of bowl-shaped cisternae with swollen rims and a few holes."""
    rng = canvas.rng
    nm = canvas.nm
    pitch = 60 * nm
    wanted = canvas.count(0.6)
    placed = 0
    for box, offsets in canvas.spots(270 * nm):
        axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        u, v, w = (along(axis, offsets) for axis in axes)
        radius = rng.uniform(150, 200) * nm
        layers = rng.integers(4, 6)
        rho = np.hypot(u, v)
        height = w - rho**2 / (5 * radius) + (layers - 1) / 2 * pitch
        slab = np.abs(height - (layers - 1) / 2 * pitch) - layers / 2 * pitch
        if not canvas.fits(box, np.maximum(rho - radius - 40 * nm, slab)):
            continue
        layer = np.clip(np.rint(height / pitch), 0, layers - 1)
        ragged = np.clip(noise(rng, rho.shape, 80 * nm), -1, 1) + np.sin(2.1 * layer)
        rim = rho - radius + 16 * nm * ragged
        half = (9 + 6 * np.clip(1 + rim / (40 * nm), 0, 1)) * nm
        holes = noise(rng, rho.shape, 64 * nm) >= 1.7
        lumen = (np.abs(height - layer * pitch) < half) & (rim < 0) & ~holes
        canvas.paint(box, golgi_mem=grow(lumen, canvas.membrane), golgi_lum=lumen)
        placed += 1
        if placed == wanted:
            break
    canvas.require("golgi", placed)


def _paint_mitochondria(canvas: Canvas) -> None:
    """Curved capsules along the longest paths that are free."""
    rng = canvas.rng
    nm = canvas.nm
    placed = 0
    for _ in range(canvas.count(4.0)):
        radius = rng.uniform(88, 135) * nm
        path = _longest_free_path(canvas, radius + 1.6 * GAP_NM * nm)
        if path is None:
            continue
        centre = path.mean(0)
        centred = path - centre
        reach = np.abs(centred).max(0) + radius + 56 * nm
        box, offsets = around(centre, reach, canvas.shape)
        square = np.full(np.broadcast_shapes(*(o.shape for o in offsets)), np.inf, np.float32)
        for point in centred:
            np.minimum(square, square_distance(offsets, point), out=square)
        distance = np.sqrt(square) - radius + noise(rng, square.shape, 160 * nm) * 8 * nm
        if canvas.fits(box, distance):
            direction = centred[-1] - centred[0]
            _paint_mitochondrion(
                canvas, box, offsets, body=distance < 0, direction=direction, radius=radius
            )
            placed += 1
    canvas.require("mito", placed)


def _paint_mitochondrion(
    canvas: Canvas,
    box: Box,
    offsets: Offsets,
    *,
    body: np.ndarray,
    direction: np.ndarray,
    radius: float,
) -> None:
    """Fill `body` (of the box): double membrane, ribosomes, cristae across `direction`.

    Cristae come from alternating sides.
    """
    rng = canvas.rng
    nm = canvas.nm
    axis = direction / np.linalg.norm(direction)
    side = np.cross(axis, rng.standard_normal(3))
    side /= np.linalg.norm(side)
    height = along(axis, offsets) + noise(rng, body.shape, 120 * nm) * 14 * nm
    across = along(side, offsets)
    period = rng.uniform(72, 96) * nm
    sheet = np.rint(height / period)
    rooted = across * (1 - 2 * (sheet % 2)) > rng.uniform(-0.7, -0.2) * radius
    cristae = (np.abs(height - sheet * period) < 9 * nm) & rooted
    matrix = body & ~grow(~body, 2 * canvas.membrane) & ~cristae
    seeds = matrix & ~grow(~matrix) & (rng.random(body.shape, np.float32) < 0.01)
    ribosomes = ndimage.binary_dilation(seeds)
    canvas.number("mito", box, body)
    canvas.paint(box, mito_mem=body, mito_lum=matrix, mito_ribo=ribosomes & matrix)


def _longest_free_path(canvas: Canvas, clearance: float) -> np.ndarray | None:
    """Return the longest of many random arcs that stay `clearance` voxels inside the room.

    (points, 3) voxels; None if no arc does.
    """
    rng = canvas.rng
    nm = canvas.nm
    coarse = 4  # every fourth voxel: distances over the whole volume take most of the time
    room = ndimage.distance_transform_edt(canvas.room[::coarse, ::coarse, ::coarse]) * coarse
    starts = np.argwhere(room >= clearance)
    if not len(starts):
        return None
    best = None
    for start in rng.choice(starts, 300) * coarse:
        length = rng.uniform(160, 900) * nm
        direction = rng.standard_normal(3)
        bend = rng.standard_normal(3)
        t = np.linspace(0, 1, max(2, int(length / (24 * nm))))[:, None]
        path = start + length * (t * direction / np.linalg.norm(direction) + 0.25 * t**2 * bend)
        inside = ((path >= 0) & (path < canvas.shape)).all(1)
        if not inside.all() or (best is not None and len(path) <= len(best)):
            continue
        if (room[tuple((path // coarse).astype(int).T)] >= clearance).all():
            best = path
    return best


def _paint_bubbles(canvas: Canvas, name: str) -> None:
    """Round organelles of one kind (BUBBLES): a membrane around a lumen."""
    rng = canvas.rng
    nm = canvas.nm
    smallest, largest, unevenness, density = BUBBLES[name]
    wanted = canvas.count(density)
    placed = 0
    radius = rng.uniform(smallest, largest) * nm
    for box, offsets in canvas.spots(1.3 * (largest + GAP_NM) * nm, 20000):
        distance = ellipsoid(offsets, radius * rng.uniform(1 - unevenness, 1 + unevenness, 3))
        distance += unevenness * radius * np.clip(noise(rng, distance.shape, radius), -1.5, 1.5)
        if not canvas.fits(box, distance):
            continue
        body = distance < 0
        lumen = body & ~grow(~body, canvas.membrane)
        canvas.number(name, box, body)
        canvas.paint(box, **{f"{name}_mem": body, f"{name}_lum": lumen})
        placed += 1
        if placed == wanted:
            break
        radius = rng.uniform(smallest, largest) * nm
    canvas.require(name, placed)


def _paint_microtubules(canvas: Canvas) -> None:
    """Nearly straight hollow tubes, most of them along one direction."""
    rng = canvas.rng
    nm = canvas.nm
    blocked = grow(~canvas.room, round(12 * nm + 0.75 * GAP_NM * nm))
    main = rng.standard_normal(3)
    wanted = canvas.count(7.0)
    placed = 0
    for start in rng.uniform(0, canvas.shape, (4000, 3)):
        direction = main + 0.5 * rng.standard_normal(3)
        t = np.arange(-900, 900, 4)[:, None] * nm
        straight = start + t * direction / np.linalg.norm(direction)
        path = straight + (t**2) / (6000 * nm) * rng.standard_normal(3)
        line = np.rint(_free_run(path, blocked)).astype(int)
        if len(line) * 4 < 360:  # a point every 4 nm: shorter ones look like dots
            continue
        core = stamp(line, max(0.5, 5 * nm), canvas.shape)
        wall = stamp(line, max(1.5, 12 * nm), canvas.shape)
        canvas.atoms[wall] = ATOM_IDS["mt_out"]
        canvas.atoms[core] = ATOM_IDS["mt_in"]
        canvas.room[wall] = False
        blocked[stamp(line, 56 * nm, canvas.shape)] = True
        placed += 1
        canvas.instances["mt"][wall] = placed
        if placed == wanted:
            break
    canvas.require("mt", placed)


def _free_run(path: np.ndarray, blocked: np.ndarray) -> np.ndarray:
    """Return the part of `path` (points, 3) around its middle that is inside and not blocked."""
    last = np.array(blocked.shape) - 1
    inside = np.array(((path >= 0) & (path <= last)).all(1))
    free = inside.copy()
    free[inside] = ~blocked[tuple(np.rint(path[inside]).astype(int).T)]
    stops = np.flatnonzero(~free)
    middle = len(path) // 2
    before = stops[stops <= middle]
    after = stops[stops >= middle]
    first = before[-1] + 1 if len(before) else 0
    end = after[0] if len(after) else len(path)
    return path[first:end]


def _paint_er(canvas: Canvas, nucleus: np.ndarray) -> None:
    """Sheets around the nucleus and tubules farther out.

    Sheets are where one smooth noise is near zero, tubules where two are.
    """
    rng = canvas.rng
    nm = canvas.nm
    first = level_distance(noise(rng, canvas.shape, 130 * nm))
    second = level_distance(noise(rng, canvas.shape, 130 * nm))
    region = nucleus + noise(rng, canvas.shape, 200 * nm) * 90 * nm
    sheets = (first < 13 * nm) & (region < 200 * nm)
    tubules = (np.hypot(first, second) < 22 * nm) & (region < 700 * nm)
    lumen = (sheets | tubules) & ~grow(~canvas.room, round(GAP_NM * nm) + canvas.membrane)
    pieces, _ = ndimage.label(lumen)
    small = np.bincount(pieces.ravel()) < 4e5 * nm**3
    lumen &= ~small[pieces]
    canvas.paint(EVERYWHERE, er_mem=grow(lumen, canvas.membrane), er_lum=lumen)


def _paint_exit_sites(canvas: Canvas) -> None:
    """Patches of ER that bud: the ER near a point of its surface, and small bulbs grown there."""
    nm = canvas.nm
    wanted = canvas.count(3.5)
    surface = np.argwhere(canvas.atoms == ATOM_IDS["er_mem"])
    points = canvas.rng.permutation(surface[:: max(1, round(4 * nm))])
    placed = 0
    for point in points[:2000]:
        box, offsets = around(point, 130 * nm, canvas.shape)
        bulbs = _bulbs(canvas, box, offsets)
        near = square_distance(offsets) < (44 * nm) ** 2
        membrane_of_er = canvas.atoms[box] == ATOM_IDS["er_mem"]
        lumen_of_er = canvas.atoms[box] == ATOM_IDS["er_lum"]
        lumen = bulbs | (lumen_of_er & near)
        membrane = grow(lumen, canvas.membrane) | (near & membrane_of_er)
        if (bulbs & canvas.room[box]).sum() < 40 * (8 * nm) ** 3:
            continue
        canvas.paint(box, eres_mem=membrane & ~lumen_of_er, eres_lum=lumen)
        placed += 1
        if placed == wanted:
            break
    canvas.require("eres", placed)


def _bulbs(canvas: Canvas, box: Box, offsets: Offsets) -> np.ndarray:
    """Return a bool mask of the box: small balls near its middle with room for a membrane."""
    rng = canvas.rng
    nm = canvas.nm
    of_er = np.isin(canvas.atoms[box], [ATOM_IDS["er_mem"], ATOM_IDS["er_lum"]])
    allowed = canvas.room[box] | of_er
    bulbs = np.zeros(allowed.shape, bool)
    for _ in range(12):
        shift = np.clip(rng.standard_normal(3), -3, 3) * 26 * nm
        bulb = square_distance(offsets, shift) < (rng.uniform(14, 20) * nm) ** 2
        if allowed[grow(bulb, canvas.membrane + 2)].all():
            bulbs |= bulb
    return bulbs
