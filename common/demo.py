"""The phantom cell, trained end to end: data, training, a table of Dice per class and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from common import checkpoint, figures, loaders, phantom, runtime, steps, train
from common.config import REPOSITORY, TrainConfig, load_config

EXPERIMENT = REPOSITORY / "examples" / "phantom_cell"


def demo(output: str | Path, minutes: float) -> Path | None:
    """Make a phantom under `output`, train the experiment examples/phantom_cell on it, and write a picture; gives its path.

    None if training was interrupted. It ends with the epoch that is under way after `minutes`. Started again, it goes on until its last epoch.
    """
    output = Path(output).absolute()
    data = output / "data"
    if not (data / "phantom" / "datasplit.csv").is_file():
        train.say(f"writing a phantom cell to {data}")
        phantom.write_phantom(data)
    settings = {
        "data_path": str(data), "cache_path": str(output / "cache"),
        "model_save_path": f"{output}/checkpoints/{{model_name}}/{{run_name}}", "training_time_limit": minutes * 60,
        "logs_save_path": f"{output}/logs/{{model_name}}/{{run_name}}",
    }  # fmt: skip
    result = train.train(EXPERIMENT, **settings)
    if not result.finished:
        return None
    config = load_config(EXPERIMENT, **settings)
    counts, picture = show(config, result.checkpoint, output / "demo.png")
    print(table(config.classes, counts))
    print(f"\nraw, target and prediction of both validation crops: {picture}")
    return picture


def table(classes: Sequence[str], counts: np.ndarray) -> str:
    """Dice, IoU, precision and recall of each class that occurs, and their means; counts: (3, classes) tp, fp, fn."""
    scores = steps.metrics(*counts)
    lines = [f"{'class':<12}{'Dice':>7}{'IoU':>7}{'prec.':>7}{'recall':>7}{'voxels':>10}"]
    for channel, name in enumerate(classes):
        if np.isfinite(scores["dice"][channel]):
            values = "".join(f"{scores[metric][channel]:7.3f}" for metric in scores)
            lines.append(f"{name:<12}{values}{int(counts[0, channel] + counts[2, channel]):>10}")
    means = "".join(f"{np.nanmean(values):7.3f}" for values in scores.values())
    return "\n".join([*lines, f"{'mean':<12}{means}"])


def show(config: TrainConfig, weights: Path, path: Path) -> tuple[np.ndarray, Path]:
    """Predict the validation crops whole with a checkpoint and write a picture of their middle slices.

    Returns (3, classes) true positive, false positive and false negative voxels, and the path of the picture.
    """
    device = runtime.pick_device(config.device)
    model = train.build_model(config, device)
    checkpoint.load_weights(model, checkpoint.load(weights, config.classes), weights)
    data = loaders.open_data(config)
    method = steps.Method(None, None, runtime.pick_precision(config.precision, device), config.channels_last, 0.0)
    batches = train.validation_batches(config, data, device)
    counts, rows = np.zeros((3, len(config.classes))), []
    for raw, target, logits in predict_crops(model, method, batches):
        counts += steps.count(torch.from_numpy(logits)[None], torch.from_numpy(target)[None]).numpy()
        rows.append(_row(raw, target, logits, config.classes))
    figures.write_png(path, np.concatenate([_legend(config.classes, rows[0].shape[1]), figures.above(rows)]))
    return counts, path


@torch.no_grad()
def predict_crops(model: torch.nn.Module, method: steps.Method, batches: loaders.Batches) -> list[tuple[np.ndarray, ...]]:
    """For each crop raw (z, y, x) in [0, 1], target and logits (classes, z, y, x) on its label voxels, put together of blocks."""
    model.eval()
    crops, shape = batches.blocks.crops, np.array(batches.blocks.target.shape)
    classes = crops[0].palette.shape[1]
    whole = [
        (np.zeros(c.label_grid.shape, np.float32), np.full((classes, *c.label_grid.shape), -1, np.int8), np.zeros((classes, *c.label_grid.shape), np.float32))
        for c in crops
    ]  # fmt: skip
    samples = iter(batches.blocks.samples)
    for batch in batches.between(0, len(batches.blocks)):
        logits = method.logits(model, batch.raw).float().cpu().numpy()
        inset = [(n - m) // 2 for n, m in zip(batch.raw.shape[2:], shape, strict=True)]
        inner = batch.raw[:, 0][tuple([slice(None), *(slice(i, i + n) for i, n in zip(inset, shape, strict=True))])]
        for parts in zip(inner.cpu().numpy(), batch.target.dense().cpu().numpy(), logits, strict=True):
            sample = next(samples)
            grid = crops[sample.crop].label_grid
            start = np.rint((sample.centre - grid.origin) / grid.scale - (shape - 1) / 2).astype(int)
            first, last = np.maximum(start, 0), np.minimum(start + shape, grid.shape)
            for volume, part in zip(whole[sample.crop], parts, strict=True):
                inside = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
                volume[(..., *inside)] = part[(..., *(slice(a, b) for a, b in zip(first - start, last - start, strict=True)))]
    return whole


def _row(raw: np.ndarray, target: np.ndarray, logits: np.ndarray, classes: Sequence[str], scale: int = 4) -> np.ndarray:
    """Middle slice of a crop: raw, target and prediction in colour."""
    z = raw.shape[0] // 2
    order, colours = _painting_order(classes), _colours(classes)
    grey = np.repeat((raw[z] * 255).astype(np.uint8)[..., None], 3, axis=2)
    images = [grey, *(figures.classes_in_colour(volume[:, z] > 0, order, colours) for volume in (target, logits))]
    return figures.beside([image.repeat(scale, 0).repeat(scale, 1) for image in images])


def _painting_order(classes: Sequence[str]) -> list[int]:
    """Large classes first, so that what lies in them is painted over them."""
    large = ("cell", "ecs", "cyto", "nuc")
    return sorted(range(len(classes)), key=lambda c: large.index(classes[c]) if classes[c] in large else len(large))


def _colours(classes: Sequence[str]) -> np.ndarray:
    """(classes, 3) uint8: dim for the large classes, hues spread over the others."""
    import colorsys

    hues = [colorsys.hsv_to_rgb(i * 0.618 % 1, 0.75, 0.95) for i in range(len(classes))]
    colours = (np.array(hues) * 255).astype(np.uint8)
    for name, grey in {"cell": (40, 40, 40), "cyto": (60, 60, 70), "ecs": (15, 15, 15), "nuc": (60, 80, 130)}.items():
        if name in classes:
            colours[list(classes).index(name)] = grey
    return colours


def _legend(classes: Sequence[str], width: int) -> np.ndarray:
    """Names of the classes on their colours, under the titles of the three columns."""
    column, line = 110, 22
    per_line = max(1, width // column)
    image = Image.new("RGB", (width, line * (1 + -(-len(classes) // per_line)) + 6), "white")
    draw = ImageDraw.Draw(image)
    for i, title in enumerate(("raw", "target", "prediction")):
        draw.text((i * (width + 6) // 3 + 6, 4), title, fill="black", font_size=15)
    for i, (name, colour) in enumerate(zip(classes, _colours(classes), strict=True)):
        x, y = i % per_line * column, line * (1 + i // per_line)
        draw.rectangle((x + 4, y + 4, x + 18, y + 18), fill=tuple(int(c) for c in colour))
        draw.text((x + 24, y + 4), name, fill="black", font_size=13)
    return np.asarray(image)
