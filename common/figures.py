"""What a class looks like: raw, target and prediction side by side, as RGB images and as a picture file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

UNKNOWN_RGB = np.array([70, 90, 140], np.uint8)
"""Blue, so that what is not known is told from what is negative (black)."""


def panel(
    raw: np.ndarray, target: np.ndarray, probability: np.ndarray, voxel_ratio: Sequence[float] = (1.0, 1.0), scale: int = 3
) -> np.ndarray:
    """One row raw | target | prediction, each an (y, x) slice: raw and probability in [0, 1], target 1 / 0 / -1 = unknown.

    Returns (height, width, 3) uint8. The part of raw that the target covers is framed; voxel_ratio: target voxels in raw
    voxels along y and x. Pixels are repeated `scale` times.
    """
    framed = np.repeat((raw * 255).astype(np.uint8)[..., None], 3, axis=2)
    h, w = (round(n * ratio) for n, ratio in zip(target.shape, voxel_ratio, strict=True))
    top, left = (raw.shape[0] - h) // 2, (raw.shape[1] - w) // 2
    if top > 0 and left > 0:
        framed[top : top + h, [left, left + w - 1]] = framed[[top, top + h - 1], left : left + w] = (255, 200, 0)
    images = [framed, colour_target(target), np.repeat((probability * 255).astype(np.uint8)[..., None], 3, axis=2)]
    return beside([image.repeat(scale, 0).repeat(scale, 1) for image in images])


def colour_target(target: np.ndarray) -> np.ndarray:
    """(y, x) of 1 / 0 / -1 to RGB: white, black, blue."""
    image = np.repeat(((target == 1) * 255).astype(np.uint8)[..., None], 3, axis=2)
    image[target < 0] = UNKNOWN_RGB
    return image


def beside(images: Sequence[np.ndarray], gap: int = 6) -> np.ndarray:
    """RGB images next to each other on grey, each in the middle of the height."""
    height = max(image.shape[0] for image in images)
    canvas = np.full((height, sum(image.shape[1] + gap for image in images) - gap, 3), 128, np.uint8)
    left = 0
    for image in images:
        top = (height - image.shape[0]) // 2
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + gap
    return canvas


def above(images: Sequence[np.ndarray], gap: int = 6) -> np.ndarray:
    """RGB images one below the other."""
    return beside([image.transpose(1, 0, 2) for image in images], gap).transpose(1, 0, 2)


def classes_in_colour(volume: np.ndarray, order: Sequence[int], colours: np.ndarray) -> np.ndarray:
    """(classes, y, x) bool to RGB: later channels of `order` are painted over earlier ones; colours: (classes, 3) uint8."""
    image = np.zeros((*volume.shape[1:], 3), np.uint8)
    for channel in order:
        image[volume[channel]] = colours[channel]
    return image


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an RGB image (y, x, 3) uint8."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
