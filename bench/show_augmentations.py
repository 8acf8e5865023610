"""Draw every kind of augmentation on real EM, one patch of flyem_medulla.

    python bench/show_augmentations.py --data FOLDER [--output docs/howto/augmentations.png]

Each panel is the same patch with one kind on, at the strength of `STRONG`, so that it is seen.
Contours are the borders of the target: kinds that move voxels move them along.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from scipy import ndimage

from common.config.augmentations import read_augmentations
from common.config.load import load_config
from common.data.samples import targets
from common.data.samples.batches import Batches
from common.data.samples.blocks import Blocks
from common.data.samples.loaders import Data, open_data
from common.files import REPOSITORY
from common.show import figures

STRONG: dict[str, dict] = {
    "scale": {"probability": 1, "factor": 1.4},
    "elastic": {"probability": 1, "amplitude_nm": 100, "spacing_nm": 250},
    "section_shift": {"probability": 1, "max_nm": 100},
    "section_slip": {"probability": 1, "max_nm": 100},
    "missing_sections": {"probability": 1, "number": 2},
    "section_contrast": {"probability": 1, "contrast": (0.5, 1.5), "brightness": (0, 0.1)},
    "low_resolution": {"probability": 1, "voxel_nm": 40},
    "blur": {"probability": 1, "sigma_nm": 20},
    "sharpen": {"probability": 1, "sigma_nm": 20, "amount": 1.5},
    "gradient": {"probability": 1, "strength": 0.3},
    "cutout": {"probability": 1, "edge_nm": (150, 300), "number": 3},
}
"""A line of the setting `augmentations` for each kind."""

SHAPE = (96, 96, 96)
COLUMNS = 5
ENLARGED = 2
CONTOUR = (255, 170, 0)


def of_sections(name: str) -> bool:
    """Whether a kind is seen from the side, where sections are lines."""
    return "section" in name


def patch(data: Data, k: int, setting: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return raw (z, y, x) in [0, 1] and target (z, y, x) of 1 / 0 / -1 of sample k."""
    augmentation = replace(data.sampler.augmentation, kinds=read_augmentations(setting))
    sampler = replace(data.sampler, augmentation=augmentation)
    blocks = Blocks(data.train, sampler, sampler.input, sampler.target)
    (batch,) = Batches(blocks, 1, 0, torch.device("cpu")).between(k, k + 1)
    return batch.raw[0, 0].numpy(), targets.dense(batch.target)[0, 0].numpy()


def panel(name: str, raw: np.ndarray, target: np.ndarray, *, from_side: bool) -> np.ndarray:
    """Draw the middle slice of a patch with its name and the contours of the target."""
    middle = raw.shape[1] // 2
    plane = raw[:, middle] if from_side else raw[middle]
    labels = target[:, middle] if from_side else target[middle]
    image = figures.grey(plane)
    inside = labels == 1
    image[inside & ~ndimage.binary_erosion(inside)] = CONTOUR
    image = figures.enlarged(image, ENLARGED)
    head = figures.text_line([name + (" (z, x)" if from_side else "")], image.shape[1])
    return np.pad(np.concatenate([head, image]), ((0, 4), (0, 4), (0, 0)), constant_values=255)


def picture(data: Data, k: int) -> np.ndarray:
    """Draw all kinds in rows, each row set after the plain patch, from above and from the side."""
    panels = []
    plain = patch(data, k, {})
    panels.append(panel("none", *plain, from_side=False))
    for name, values in STRONG.items():
        if not of_sections(name):
            panels.append(panel(name, *patch(data, k, {name: values}), from_side=False))
    panels.append(panel("none", *plain, from_side=True))
    for name, values in STRONG.items():
        if of_sections(name):
            panels.append(panel(name, *patch(data, k, {name: values}), from_side=True))
    panels += [np.full_like(panels[0], 255)] * (-len(panels) % COLUMNS)
    rows = []
    for first in range(0, len(panels), COLUMNS):
        rows.append(np.concatenate(panels[first : first + COLUMNS], axis=1))
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("docs/howto/augmentations.png"))
    parser.add_argument("--sample", type=int, default=55, help="one that shows all kinds well")
    options = parser.parse_args()
    info = {"shape": SHAPE, "scale": (10, 10, 10)}
    config = load_config(
        REPOSITORY / "examples" / "flyem_medulla",
        data=options.data,
        input_array_info=info,
        target_array_info=info,
        augmentations=STRONG,
        spatial_transforms={},
        intensity_probability=0.0,
    )
    image = picture(open_data(config), options.sample)
    figures.write_png(options.output, image)
    print(f"{options.output}: {options.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
