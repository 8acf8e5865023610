"""Pictures of slices: classes and objects in colour, legend, scale bar, panels side by side, as RGB images and picture files."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

UNKNOWN_RGB = np.array([70, 90, 140], np.uint8)
"""Blue, so that what is not known is told from what is negative (black)."""

PAPER, INK, GREY = (255, 255, 255), (20, 20, 20), 128

COLOURS: dict[str, tuple[int, int, int]] = {
    "cell": (58, 62, 74),
    "ecs": (22, 78, 84),
    "cyto": (96, 100, 116),
    "nuc": (52, 74, 150),
    "pm": (238, 236, 224),
    "mito": (236, 72, 168),
    "er": (245, 158, 50),
    "eres": (196, 108, 34),
    "ne": (126, 222, 62),
    "np": (255, 246, 150),
    "golgi": (46, 178, 240),
    "ves": (250, 220, 50),
    "endo": (178, 96, 246),
    "lyso": (38, 206, 140),
    "ld": (238, 74, 52),
    "perox": (110, 118, 255),
    "mt": (186, 250, 110),
    "ribo": (176, 80, 74),
    "vim": (205, 170, 125),
    "hchrom": (150, 52, 128),
    "echrom": (98, 128, 205),
    "chrom": (118, 86, 186),
    "nucpl": (74, 104, 172),
    "nucleo": (40, 44, 110),
    "chloroplast": (60, 150, 60),
    "vacuole": (140, 190, 215),
    "isg": (225, 130, 130),
    "cent": (0, 235, 215),
}
"""Dim for what fills a cell, vivid for what lies in it. Parts (mito_mem) are shades of the whole."""

SHADES = {"mem": 0.62, "mem_all": 0.78, "out": 0.62, "lum": 1.4, "in": 1.4, "ribo": 0.4}
"""Darker below 1; above 1 nearer to white."""


def panel(
    raw: np.ndarray,
    target: np.ndarray,
    probability: np.ndarray,
    voxel_ratio: Sequence[float] = (1.0, 1.0),
    scale: int = 3,
) -> np.ndarray:
    """One row raw | target | prediction, each an (y, x) slice: raw and probability in [0, 1], target 1 / 0 / -1 = unknown.

    Returns (height, width, 3) uint8. The part of raw that the target covers is framed; voxel_ratio: target voxels in raw
    voxels along y and x. Pixels are repeated `scale` times.
    """
    framed = grey(raw)
    h, w = (round(n * ratio) for n, ratio in zip(target.shape, voxel_ratio, strict=True))
    top, left = (raw.shape[0] - h) // 2, (raw.shape[1] - w) // 2
    if top > 0 and left > 0:
        framed[top : top + h, [left, left + w - 1]] = framed[
            [top, top + h - 1], left : left + w
        ] = (255, 200, 0)
    images = [framed, colour_target(target), grey(probability)]
    return beside([image.repeat(scale, 0).repeat(scale, 1) for image in images])


def grey(values: np.ndarray) -> np.ndarray:
    """(y, x) in [0, 1] to RGB."""
    return np.repeat((values * 255).astype(np.uint8)[..., None], 3, axis=2)


def colour_target(target: np.ndarray) -> np.ndarray:
    """(y, x) of 1 / 0 / -1 to RGB: white, black, blue."""
    image = grey(target == 1)
    image[target < 0] = UNKNOWN_RGB
    return image


def class_colours(classes: Sequence[str]) -> np.ndarray:
    """(classes, 3) uint8: the colour of a class is the same in all pictures; one outside the challenge's table has one by its name."""
    return np.array([_colour(name) for name in classes], np.uint8).reshape(-1, 3)


def object_colours(ids: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(y, x, 3) uint8, a colour for each object: of all hues where the class is dim, else near that of the class."""
    numbers, where = np.unique(ids, return_inverse=True)
    hue, saturation, value = colorsys.rgb_to_hsv(*np.array(colour) / 255)
    found = []
    for number in numbers.tolist():
        turn, shade = (
            number * 0.618034 % 1,
            number * 0.754878 % 1,
        )  # steps after which neighbours in number are far apart
        near = hue + (turn - 0.5) / 5, saturation, value * (1 - 0.4 * shade)
        found.append(
            colorsys.hsv_to_rgb(turn, 0.65, 0.5 + 0.2 * shade)
            if value < 0.4
            else colorsys.hsv_to_rgb(near[0] % 1, *near[1:])
        )
    return (np.array(found) * 255).astype(np.uint8)[where.reshape(ids.shape)]


def largest_first(masks: Sequence[np.ndarray]) -> list[int]:
    """The order to paint masks in, so that what is small is seen on what it lies in."""
    return np.argsort([-np.count_nonzero(mask) for mask in masks], kind="stable").tolist()


def classes_in_colour(
    shares: np.ndarray, order: Sequence[int], colours: Sequence[np.ndarray]
) -> np.ndarray:
    """Paint (classes, y, x), bool or an opacity in [0, 1], over each other on black, in this order.

    colours: for each class (3,) or (y, x, 3). Returns RGB.
    """
    image = np.zeros((*shares.shape[1:], 3), np.float32)
    for channel in order:
        image += shares[channel].astype(np.float32)[..., None] * (colours[channel] - image)
    return np.rint(image).astype(np.uint8)


def beside(images: Sequence[np.ndarray], gap: int = 6, background: int = GREY) -> np.ndarray:
    """RGB images next to each other, each in the middle of the height."""
    height = max(image.shape[0] for image in images)
    canvas = np.full(
        (height, sum(image.shape[1] + gap for image in images) - gap, 3), background, np.uint8
    )
    left = 0
    for image in images:
        top = (height - image.shape[0]) // 2
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + gap
    return canvas


def above(images: Sequence[np.ndarray], gap: int = 6, background: int = GREY) -> np.ndarray:
    """RGB images one below the other."""
    return beside([image.transpose(1, 0, 2) for image in images], gap, background).transpose(
        1, 0, 2
    )


def text_line(texts: Sequence[str], width: int, size: int = 15) -> np.ndarray:
    """One line of text in as many equal columns as there are texts; a text too long for its column is cut."""
    image = Image.new("RGB", (width, size + 9), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for number, text in enumerate(texts):
        column = width // len(texts)
        while text and font.getlength(text) > column - 8:
            text = text.rstrip("…")[:-1] + "…" if len(text) > 1 else ""
        draw.text((number * width // len(texts) + 2, 2), text, INK, font)
    return np.asarray(image)


def legend(names: Sequence[str], colours: np.ndarray, width: int, size: int = 14) -> np.ndarray:
    """Each name on its colour, in lines of `width` pixels."""
    font, gap, height = ImageFont.load_default(size), 4, size + 8
    places, left, top = [], 0, 0
    for name in names:
        length = int(font.getlength(name)) + 12
        if left and left + length > width:
            left, top = 0, top + height + gap
        places.append((left, top, left + length, top + height))
        left += length + gap
    image = Image.new("RGB", (width, top + height + gap if places else 1), PAPER)
    draw = ImageDraw.Draw(image)
    for name, colour, place in zip(names, colours.tolist(), places, strict=True):
        draw.rectangle(place, tuple(colour))
        dark = np.dot(colour, (0.299, 0.587, 0.114)) < 128  # luma of ITU-R BT.601
        draw.text((place[0] + 6, place[1] + 2), name, PAPER if dark else INK, font)
    return np.asarray(image)


def scale_bar(image: np.ndarray, nm_per_pixel: float, size: int = 14) -> np.ndarray:
    """The image with a bar of a round length, about a quarter of its width, in the lower left corner."""
    wanted = image.shape[1] * nm_per_pixel / 4
    unit = 10.0 ** np.floor(np.log10(wanted))
    length = max(step for step in (unit, 2 * unit, 5 * unit) if step <= wanted)
    text = f"{length / 1000:g} um" if length >= 1000 else f"{length:g} nm"
    picture = Image.fromarray(image)
    draw, bottom, pixels = ImageDraw.Draw(picture), image.shape[0] - 8, round(length / nm_per_pixel)
    draw.rectangle((8, bottom - 4, 8 + pixels - 1, bottom - 1), PAPER, INK if pixels > 2 else None)
    draw.text(
        (8, bottom - 8 - size),
        text,
        PAPER,
        ImageFont.load_default(size),
        stroke_width=2,
        stroke_fill=INK,
    )
    return np.asarray(picture)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an RGB image (y, x, 3) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _colour(name: str) -> np.ndarray:
    """(3,) float: of the class, or a shade of that of its whole (mito of mito_mem), or one by its name."""
    if name in COLOURS:
        return np.array(COLOURS[name], float)
    whole, _, part = name.partition("_")
    base = (
        np.array(COLOURS[whole], float)
        if whole in COLOURS
        else _hue(zlib.crc32(whole.encode()) / 2**32)
    )
    shade = SHADES.get(part, 1.0)
    return base * shade if shade <= 1 else base + (255 - base) * (shade - 1)


def _hue(turn: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(turn % 1, 0.75, 0.95)) * 255
