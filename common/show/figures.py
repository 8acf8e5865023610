"""Draw slices as RGB images: classes and objects in colour, legends, scale bars, panels."""

from __future__ import annotations

import colorsys
import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import replacing

UNKNOWN_RGB = np.array([75, 115, 235], np.uint8)
"""Blue, so that what is not known is told from what is negative (black)."""

FRAME_RGB = (255, 200, 0)

PANEL_WORDS = (
    "Left to right: raw, target, prediction. The target is white where the class is, black where "
    "it is not, and blue where nobody knows; the prediction is black at probability 0 and white at "
    "1. The yellow frame is the part of the raw that the target covers."
)
"""Explanation of a `panel`."""

PAPER = (255, 255, 255)
INK = (20, 20, 20)
GAP_RGB = (210, 190, 150)
"""Sand, between pictures: neither a grey, which would be a probability, nor "unknown"."""

LEGEND_GAP = 4
"""Pixels between the names of a legend, and below it."""

Picture = np.ndarray
"""(y, x, 3) uint8, RGB."""

Background = int | tuple[int, int, int]

Place = tuple[int, int, int, int]
"""Rectangle in pixels: left, top, right, bottom."""


def _colour_table(text: str) -> dict[str, tuple[int, ...]]:
    """Parse a text of names and colours, each as name #rrggbb."""
    words = text.split()
    names = words[0::2]
    codes = words[1::2]
    colours = [tuple(bytes.fromhex(code.removeprefix("#"))) for code in codes]
    return dict(zip(names, colours, strict=True))


COLOURS = _colour_table("""
    cell #393c60  ecs #13292f  cyto #715f86  pm #f9f9ec
    nuc #8f2dab  nucpl #668a99  hchrom #882049  echrom #45d095  chrom #a36fb1
    mito #ec48a8  mito_mem #bd0270  mito_lum #d68fb9  mito_ribo #3d0024
    er #f59e32  er_mem #693e09  er_lum #ffd29a  er_mem_all #a68459
    eres #d603f6  eres_mem #6a0779  eres_lum #ee83ff
    ne #25dd00  ne_mem #246f15  ne_lum #8cff74  ne_mem_all #4d963f
    np #f8084a  np_out #67001c  np_in #f9b2c6
    golgi #2eb2f0  golgi_mem #007bb4  golgi_lum #a2cadd
    ves #d2d629  ves_mem #a8ab2f  ves_lum #fcff82
    endo #1f19fc  endo_mem #040091  endo_lum #a19fff
    lyso #28aeab  lyso_mem #116f6d  lyso_lum #66fffb
    ld #ef6300  ld_mem #8f5b36  ld_lum #d5ad90
    perox #8d43ff  perox_mem #5914c4  perox_lum #e6d6ff
    mt #1fb721  mt_out #1b4b1c  mt_in #abdfab
    ribo #b0504a  vim #cdaa7d  nucleo #282c6e  chloroplast #3c963c
    vacuole #8cbed7  isg #e18282  cent #00ebd7
""")
"""Dim for what fills a cell, vivid for what lies in it; parts (mito_mem) are shades of the whole.

Those of the 48 tested classes were moved apart by annealing in the colour space OKLab (Ottosson
2020), classes that share voxels further than others: no two are nearer than 0.09 there.
"""

SHADES = {
    "mem": 0.62, "mem_all": 0.78, "out": 0.62, "lum": 1.4, "in": 1.4, "ribo": 0.4,
    "dapp": 0.8, "sdapp": 0.6, "all": 1.3, "sg": 0.45, "ins": 0.45,
}  # fmt: skip
"""Brightness of a part's colour by that of the whole; above 1 it is nearer to white."""

DIM = 0.4
"""Value (of HSV) below which shades of a colour cannot be told apart."""

LUMA = (0.299, 0.587, 0.114)
"""Brightness that red, green and blue give, of ITU-R BT.601."""


def panel(
    raw: np.ndarray,
    target: np.ndarray,
    probability: np.ndarray,
    voxel_ratio: Sequence[float] = (1.0, 1.0),
    *,
    scale: int = 3,
) -> Picture:
    """Draw a row raw | target | prediction, with a frame around the raw that the target covers.

    Args:
        raw: (y, x) in [0, 1].
        target: (y, x), 1 / 0 / -1 = unknown.
        probability: (y, x) in [0, 1].
        voxel_ratio: voxels of the target in voxels of the raw, along y and x.
        scale: how often a pixel is repeated.
    """
    framed = grey(raw)
    height = round(target.shape[0] * voxel_ratio[0])
    width = round(target.shape[1] * voxel_ratio[1])
    top = (raw.shape[0] - height) // 2
    left = (raw.shape[1] - width) // 2
    # where the target covers all of the raw there is nothing to tell apart
    if top > 0 and left > 0:
        bottom = top + height - 1
        right = left + width - 1
        framed[top : bottom + 1, [left, right]] = FRAME_RGB
        framed[[top, bottom], left : right + 1] = FRAME_RGB
    images = [framed, colour_target(target), grey(probability)]
    return beside([enlarged(image, scale) for image in images])


def grey(values: np.ndarray) -> Picture:
    """Draw (y, x) in [0, 1] in grey; NaN, of a network that has diverged, is black."""
    shades = (np.nan_to_num(values) * 255).astype(np.uint8)
    return np.repeat(shades[..., None], 3, axis=2)


def enlarged(image: Picture, times: int) -> Picture:
    """Repeat the pixels of an image along y and x."""
    return image.repeat(times, 0).repeat(times, 1)


def colour_target(target: np.ndarray) -> Picture:
    """Draw (y, x) of 1 / 0 / -1 in white, black and blue."""
    image = grey(target == 1)
    image[target < 0] = UNKNOWN_RGB
    return image


def class_colours(classes: Sequence[str]) -> np.ndarray:
    """Return (classes, 3) uint8 colours, the same for a class in all pictures.

    The colour of a class outside the challenge's table depends on its name.
    """
    return np.array([_colour(name) for name in classes], np.uint8).reshape(-1, 3)


def object_colours(ids: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return (y, x, 3) uint8: a colour for each object, the same in every slice.

    Colours are near that of the class. If that is dim, they are of all hues, and dull.
    """
    numbers, where = np.unique(ids, return_inverse=True)
    return colours_of_objects(numbers.tolist(), colour)[where.reshape(ids.shape)]


def colours_of_objects(numbers: Sequence[int], colour: np.ndarray) -> np.ndarray:
    """Return (objects, 3) uint8 colours of the objects with these ids, see `object_colours`."""
    of_class = colorsys.rgb_to_hsv(*np.array(colour) / 255)
    colours = [_object_colour(number, of_class) for number in numbers]
    return (np.array(colours).reshape(-1, 3) * 255).astype(np.uint8)


def _object_colour(number: int, of_class: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return RGB in [0, 1] of the object with this id. of_class: hue, saturation and value."""
    # multiples of the golden ratio and of 1 / 1.3247 (the plastic number) modulo 1: neighbours in
    # number are far apart in both
    turn = number * 0.618034 % 1
    shade = number * 0.754878 % 1
    hue, saturation, value = of_class
    if value < DIM:
        # dull: a vivid one would be that of an organelle in it
        return colorsys.hsv_to_rgb(turn, 0.45, 0.42 + 0.12 * shade)
    near = hue + (turn - 0.5) / 10
    return colorsys.hsv_to_rgb(near % 1, saturation, value * (1 - 0.4 * shade))


def largest_first(masks: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """Return the order to paint masks in, the largest first, so that small ones stay visible."""
    sizes = [-np.count_nonzero(mask) for mask in masks]
    return np.argsort(sizes, kind="stable").tolist()


def classes_in_colour(
    shares: np.ndarray, order: Sequence[int], colours: Sequence[np.ndarray] | np.ndarray
) -> Picture:
    """Paint classes over each other on black, in a given order.

    Args:
        shares: (classes, y, x), bool or an opacity in [0, 1].
        order: numbers of the classes, the lowest layer first.
        colours: for each class (3,), or (y, x, 3) if it differs from pixel to pixel.
    """
    _, height, width = shares.shape
    image = np.zeros((height, width, 3), np.float32)
    for channel in order:
        share = shares[channel].astype(np.float32)
        opacity = np.nan_to_num(share)[..., None]
        image += opacity * (colours[channel] - image)
    return np.rint(image).astype(np.uint8)


def beside(images: Sequence[Picture], gap: int = 6, background: Background = GAP_RGB) -> Picture:
    """Put pictures next to each other, each in the middle of the height."""
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] + gap for image in images) - gap
    canvas = np.full((height, width, 3), background, np.uint8)
    left = 0
    for image in images:
        top = (height - image.shape[0]) // 2
        bottom = top + image.shape[0]
        right = left + image.shape[1]
        canvas[top:bottom, left:right] = image
        left = right + gap
    return canvas


def above(images: Sequence[Picture], gap: int = 6, background: Background = GAP_RGB) -> Picture:
    """Put pictures below each other, each in the middle of the width."""
    turned = [image.transpose(1, 0, 2) for image in images]
    return beside(turned, gap, background).transpose(1, 0, 2)


def text_line(texts: Sequence[str], width: int, size: int = 15) -> Picture:
    """Draw one line with a text in each of several equal columns; long texts are cut."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, size + 9), PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size)
    column = width // len(texts)
    for number, text in enumerate(texts):
        left = number * width // len(texts)
        draw.text((left + 2, 2), _cut(text, column - 8, font), INK, font)
    return np.asarray(image)


def _cut(text: str, length: float, font: Any) -> str:
    """Cut a text to a length in pixels, with … in place of its end."""
    while text and font.getlength(text) > length:
        text = text.rstrip("…")[:-1] + "…" if len(text) > 1 else ""
    return text


def legend(
    names: Sequence[str],
    colours: Sequence[np.ndarray] | np.ndarray,
    width: int,
    size: int = 14,
) -> Picture:
    """Draw each name on its colour, in lines of `width` pixels.

    colours: for each name (3,), or (objects, 3) for stripes of several.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    lengths = [int(font.getlength(name)) + 12 for name in names]
    places = _in_lines(lengths, width, height=size + 8)
    bottom = places[-1][3] + LEGEND_GAP if places else 1
    image = Image.new("RGB", (width, bottom), PAPER)
    draw = ImageDraw.Draw(image)
    for name, of_name, place in zip(names, colours, places, strict=True):
        stripes = np.reshape(of_name, (-1, 3))
        _draw_stripes(draw, stripes, place)
        is_dark = np.dot(stripes.mean(0), LUMA) < 128
        text = PAPER if is_dark else INK
        # on stripes no one colour of letters is read everywhere: the other one around them
        draw.text(
            (place[0] + 6, place[1] + 2),
            name,
            text,
            font,
            stroke_width=1 if len(stripes) > 1 else 0,
            stroke_fill=INK if is_dark else PAPER,
        )
    return np.asarray(image)


def _in_lines(lengths: Sequence[int], width: int, height: int) -> list[Place]:
    """Return places of these lengths side by side, in lines that are `width` pixels long."""
    places = []
    left = 0
    top = 0
    for length in lengths:
        if left and left + length > width:
            left = 0
            top += height + LEGEND_GAP
        places.append((left, top, left + length, top + height))
        left += length + LEGEND_GAP
    return places


def _draw_stripes(draw: Any, colours: np.ndarray, place: Place) -> None:
    """Fill a place with upright stripes of colours."""
    left, top, right, bottom = place
    edges = np.linspace(left, right, len(colours) + 1)
    stripes = itertools.pairwise(edges.round().astype(int).tolist())
    for colour, (start, end) in zip(colours.tolist(), stripes, strict=True):
        draw.rectangle((start, top, end, bottom), tuple(colour))


def scale_bar(image: Picture, nm_per_pixel: float) -> Picture:
    """Draw a scale bar into the lower left corner of a picture.

    Its length is the longest of 1, 2, 5, 10, ... nm within a quarter of the width.
    """
    from PIL import Image, ImageDraw, ImageFont

    most = image.shape[1] * nm_per_pixel / 4
    unit = 10.0 ** np.floor(np.log10(most))
    length = max(factor * unit for factor in (1, 2, 5) if factor * unit <= most)
    text = f"{length / 1000:g} um" if length >= 1000 else f"{length:g} nm"
    pixels = round(length / nm_per_pixel)
    bottom = image.shape[0] - 8
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    outline = INK if pixels > 2 else None  # of two pixels an outline would leave no white
    right = 8 + pixels - 1
    draw.rectangle((8, bottom - 4, right, bottom - 1), PAPER, outline)
    font = ImageFont.load_default(14)
    top = bottom - 22
    draw.text((8, top), text, PAPER, font, stroke_width=2, stroke_fill=INK)
    return np.asarray(picture)


def write_png(path: Path, image: Picture) -> None:
    """Write a picture. Raises FileError."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def _colour(name: str) -> np.ndarray:
    """Return (3,) float: the colour of a class; for mito_mem, not in COLOURS, a shade of mito's."""
    if name in COLOURS:
        return np.array(COLOURS[name], float)
    whole, _, part = name.partition("_")
    if whole in COLOURS:
        base = np.array(COLOURS[whole], float)
    else:
        turn = zlib.crc32(whole.encode()) / 2**32
        base = np.array(colorsys.hsv_to_rgb(turn, 0.75, 0.95)) * 255
    shade = SHADES.get(part, 1.0)
    if shade <= 1:
        return base * shade
    return base + (255 - base) * (shade - 1)
