"""The image of a phantom cell, as FIB-SEM would give it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from common.classes import ATOM_IDS
from testing.anatomy import Canvas
from testing.fields import grow, noise

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
"""Grey value of each atom; standard deviations of its fine (1 voxel) and coarse (5) texture."""

UNEVENNESS = {"mito": 7, "lyso": 12, "endo": 12, "ld": 10, "perox": 8, "ves": 10}
"""Standard deviation of the shade from object to object of a class."""


def image(canvas: Canvas) -> np.ndarray:
    """Return the uint8 image: stain and texture, then noise of a microscope."""
    grey = _stained(canvas)
    grey = ndimage.gaussian_filter(grey, 0.7)
    rng = canvas.rng
    depth, _, width = canvas.shape
    grey += 5 * noise(rng, canvas.shape, 90)  # illumination
    shot_noise = 5.5 * np.sqrt(np.clip(grey, 0, None) / 128)
    grey += shot_noise * rng.standard_normal(canvas.shape, dtype=np.float32)
    # slices differ in brightness, and milling leaves streaks along y
    grey += rng.normal(0, 1.2, (depth, 1, 1)).astype(np.float32)
    streaks = rng.normal(0, 1.6, (depth, 1, width))
    grey += ndimage.gaussian_filter1d(streaks, 1, axis=2).astype(np.float32)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _stained(canvas: Canvas) -> np.ndarray:
    """Return float32 grey values: stain, texture, ribosomes, objects of different shades."""
    rng = canvas.rng
    table = np.zeros((3, 256), np.float32)
    for atom, values in STAIN.items():
        table[:, ATOM_IDS[atom]] = values
    fine = ndimage.gaussian_filter(rng.standard_normal(canvas.shape, dtype=np.float32), 0.8)
    grey = table[0][canvas.atoms]
    grey += table[1][canvas.atoms] * fine / fine.std()
    grey += table[2][canvas.atoms] * noise(rng, canvas.shape, 5)
    grey -= 60 * _ribosomes(canvas)
    for name, spread in UNEVENNESS.items():
        ids = canvas.instances[name]
        shades = rng.normal(0, spread, ids.max() + 1).astype(np.float32)
        shades[0] = 0
        grey += shades[ids]
    return grey


def _ribosomes(canvas: Canvas) -> np.ndarray:
    """Return a bool mask of dots in the cytosol, crowded along the ER; they are part of `cyto`."""
    cytosol = canvas.atoms == ATOM_IDS["cyto"]
    near_er = grow(canvas.atoms == ATOM_IDS["er_mem"], 2)
    chance = np.where(near_er, np.float32(0.06), np.float32(0.012))
    seeds = (canvas.rng.random(canvas.shape, np.float32) < chance) & cytosol
    return ndimage.binary_dilation(seeds) & cytosol
