"""Batches: raw and labels from one place, whatever the orientation, batch and workers."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from scipy import ndimage

from common.config.augmentations import read_augmentations
from common.config.settings import TrainConfig
from common.data.crops.cache import CropCache
from common.data.crops.opened import Crop, open_crops
from common.data.crops.palette import Rules
from common.data.crops.plan import CropRequest
from common.data.samples import loaders
from common.data.samples.batches import Batch, Batches, training_batches, validation_batches
from common.data.samples.blocks import Blocks
from common.data.samples.loaders import count_voxels, labels_of, notices, open_data, raws_of
from common.data.samples.sampling import Augmentation, Patch, Sampler, margins_nm, reach_nm
from common.data.samples.targets import dense
from common.data.samples.validation_blocks import validation_samples
from common.data.samples.workers import WorkerLost
from common.data.splits.split import Row
from common.data.volumes import ngff
from common.data.volumes.ngff import write_multiscale
from common.errors import UserError
from tests.data.every_kind import EVERY_KIND

CPU = torch.device("cpu")
MIRROR = {"mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}}}
TRANSPOSE = {"transpose": {"axes": ["z", "y", "x"]}}
IN_PLANE = {"mirror": {"axes": {"x": 0.5, "y": 0.5}}, "transpose": {"axes": ["x", "y"]}}
ROTATE = {"rotate": {"axes": {"x": [-180, 180], "y": [-180, 180], "z": [-180, 180]}}}
ROTATE_IN_PLANE = {"rotate": {"axes": {"z": [-180, 180]}}}
TRANSFORMS = {
    "as it is": {},
    "mirrored along z": {"mirror": {"axes": {"z": 1}}},
    "mirrored": MIRROR,
    "transposed": TRANSPOSE,
    "mirrored and transposed in plane": IN_PLANE,
    "turned about z": ROTATE_IN_PLANE,
    "turned by whole quarters": {"rotate": {"axes": {"z": [90, 90], "x": [-90, -90]}}},
    "turned": ROTATE,
    "everything": MIRROR | TRANSPOSE | ROTATE,
}
EVERYTHING = Augmentation(
    spatial_transforms=MIRROR | TRANSPOSE | ROTATE,
    intensity_probability=0.5,
    gamma_range=(0.8, 1.2),
    contrast_range=(0.8, 1.2),
    noise_std=0.05,
)


# The alignment of raw and labels
#
# Raw volumes are ramps: the value of a voxel is its z, y or x in nm, so that a patch says where its
# voxels are from.
# Labels are half spaces: class "z3" is positive where z is above the third threshold.


@dataclass(frozen=True)
class Geometry:
    """How raw, labels and patches lie to each other; `factor` label voxels become one."""

    raw_scale: tuple
    raw_shape: tuple
    label_scale: tuple
    label_shape: tuple
    label_translation: tuple
    factor: tuple
    input: Patch
    target: Patch


GEOMETRIES = {
    "same grid": Geometry(
        (8, 8, 8),
        (60, 60, 60),
        (8, 8, 8),
        (22, 23, 24),
        (144, 144, 144),
        (1, 1, 1),
        Patch((20, 18, 16), (8, 8, 8)),
        Patch((12, 10, 8), (8, 8, 8)),
    ),
    "labels finer and beside the raw voxels": Geometry(
        (8, 8, 8),
        (60, 60, 60),
        (4, 4, 4),
        (45, 46, 47),
        (147, 145, 142),
        (2, 2, 2),
        Patch((20, 18, 16), (8, 8, 8)),
        Patch((12, 10, 8), (8, 8, 8)),
    ),
    "labels half a voxel beside": Geometry(
        (8, 8, 8),
        (60, 60, 60),
        (8, 8, 8),
        (22, 23, 24),
        (148, 148, 148),
        (1, 1, 1),
        Patch((20, 18, 16), (8, 8, 8)),
        Patch((13, 11, 9), (8, 8, 8)),
    ),
    "sections of 50 nm": Geometry(
        (50, 4.6, 4.6),
        (24, 120, 120),
        (50, 4.6, 4.6),
        (7, 60, 50),
        (410, 125.5, 140.2),
        (1, 1, 1),
        Patch((5, 24, 22), (50, 4.6, 4.6)),
        Patch((3, 14, 16), (50, 4.6, 4.6)),
    ),
    "2.62 x 2 x 2 to 8 nm": Geometry(
        (5.24, 4, 4),
        (80, 104, 104),
        (2.62, 2, 2),
        (61, 83, 80),
        (136.3, 135, 138),
        (3, 4, 4),
        Patch((16, 15, 14), (8, 8, 8)),
        Patch((9, 8, 7), (8, 8, 8)),
    ),
    "target coarser than input": Geometry(
        (8, 8, 8),
        (64, 64, 64),
        (8, 8, 8),
        (27, 25, 26),
        (151, 155, 149),
        (2, 2, 2),
        Patch((18, 20, 22), (8, 8, 8)),
        Patch((5, 6, 7), (16, 16, 16)),
    ),
    "crop smaller than the target": Geometry(
        (8, 8, 8),
        (60, 60, 60),
        (4, 4, 4),
        (9, 8, 31),
        (240, 240, 180),
        (2, 2, 2),
        Patch((18, 18, 18), (8, 8, 8)),
        Patch((14, 14, 14), (8, 8, 8)),
    ),
    "crop in the corner of the raw": Geometry(
        (8, 8, 8),
        (30, 30, 30),
        (8, 8, 8),
        (24, 24, 30),
        (-16, 48, 0),
        (1, 1, 1),
        Patch((16, 16, 16), (8, 8, 8)),
        Patch((10, 10, 10), (8, 8, 8)),
    ),
    "patches of one slice": Geometry(
        (50, 4.6, 4.6),
        (20, 90, 90),
        (50, 4.6, 4.6),
        (7, 40, 36),
        (350, 101, 103),
        (1, 1, 1),
        Patch((1, 24, 26), (50, 4.6, 4.6)),
        Patch((1, 14, 12), (50, 4.6, 4.6)),
    ),
}
THRESHOLDS = 4


def thresholds(geometry: Geometry) -> np.ndarray:
    """(3, THRESHOLDS) nm: faces of label voxels on the training grid, first to last inner one."""
    first = np.array(geometry.label_translation) - np.array(geometry.label_scale) / 2
    count = np.array(geometry.label_shape) // geometry.factor
    faces = np.array([np.linspace(1, n - 1, THRESHOLDS).astype(int) for n in count])
    return first[:, None] + faces * (np.array(geometry.label_scale) * geometry.factor)[:, None]


def ramp(
    shape: Sequence[int], scale: Sequence[float], translation: Sequence[float], axis: int
) -> np.ndarray:
    """The position (nm) of each voxel along an axis."""
    return np.indices(shape, np.float32)[axis] * np.float32(scale[axis]) + np.float32(
        translation[axis]
    )


RANGE = (-500.0, 1500.0)
"""nm that are written as 0 and 1."""


@pytest.fixture(scope="module", params=GEOMETRIES)
def aligned(request, tmp_path_factory) -> tuple[Geometry, dict[str, list[Crop]]]:
    """A geometry and a function that opens its crop three times: with raw that is z, y and x."""
    geometry = GEOMETRIES[request.param]
    root = tmp_path_factory.mktemp("aligned")
    names = []
    for axis, values in enumerate(thresholds(geometry)):
        write_multiscale(
            root / "raw" / "zyx"[axis],
            ramp(geometry.raw_shape, geometry.raw_scale, (0, 0, 0), axis),
            geometry.raw_scale,
        )
        place = ramp(geometry.label_shape, geometry.label_scale, geometry.label_translation, axis)
        for number, threshold in enumerate(values):
            names.append(f"{'zyx'[axis]}{number}")
            write_multiscale(
                root / "crop" / names[-1],
                (place > threshold).astype(np.uint8),
                geometry.label_scale,
                geometry.label_translation,
            )

    def crops(margin: np.ndarray) -> list[Crop]:
        rows = [Row("train", root / "raw" / axis, root / "crop", tuple(names)) for axis in "zyx"]
        request = CropRequest(
            classes=tuple(names),
            input_scale=geometry.input.scale,
            target_scale=geometry.target.scale,
            patch_nm=np.ones(3),
            margins_nm={"train": margin},
            raw_range=RANGE,
            rules=Rules(use_mutual_exclusion=False, infer_groups=False),
        )
        return open_crops(rows, request, CropCache(root / "cache", 1))

    return geometry, crops


def read(blocks: list[Blocks], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, 3, z, y, x) in nm of raw patches' voxels, and the labels (n, classes, z, y, x).

    Of three sets of blocks that differ in nothing but their raw, which is z, y or x.
    """
    raw_of_axis = []
    labels = []
    for part in blocks:
        batches = list(Batches(part, 4, 0, CPU, raw_range=RANGE).between(0, n))
        raw_of_axis.append(torch.cat([batch.raw for batch in batches]))
        labels.append(torch.cat([dense(batch.target) for batch in batches]))
    raw = torch.cat(raw_of_axis, 1)
    assert torch.equal(labels[0], labels[1]) and torch.equal(labels[0], labels[2])
    return (raw.double() * (RANGE[1] - RANGE[0]) + RANGE[0]).numpy(), labels[0].numpy()


def offsets(patch: Patch) -> np.ndarray:
    """(3, voxels) nm from the centre of a patch."""
    middle = (np.array(patch.shape)[:, None] - 1) / 2
    return (np.indices(patch.shape).reshape(3, -1) - middle) * np.array(patch.scale)[:, None]


def folded(positions: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Positions (3, voxels), those outside mirrored at the first and last voxel of the raw."""
    last = (np.array(geometry.raw_shape)[:, None] - 1) * np.array(geometry.raw_scale)[:, None]
    return last - np.abs(last - np.abs(positions))


def check_alignment(
    geometry: Geometry, sample, positions: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Assert that raw is where the sample says, and that labels are those of where raw is.

    Returns the signed errors of label borders (voxels) where a border is less than a voxel away.
    """
    expected = sample.centre[:, None] + sample.orientation @ offsets(geometry.input)
    found = positions.reshape(3, -1)
    assert (
        np.abs(found - folded(expected, geometry)) < 0.01 * np.array(geometry.raw_scale)[:, None]
    ).all()
    inside = (np.abs(folded(expected, geometry) - expected) < 1e-9).all(axis=0)
    assert inside.sum() > 100

    # From here on only what the raw says: an affine through the positions leads to the target
    basis = np.concatenate([offsets(geometry.input), np.ones((1, expected.shape[1]))])
    affine = np.linalg.lstsq(basis[:, inside].T, found[:, inside].T, rcond=None)[0].T
    target = affine[:, :3] @ offsets(geometry.target) + affine[:, 3:]
    scale = np.array(geometry.label_scale) * geometry.factor
    count = np.array(geometry.label_shape) // geometry.factor
    assert (scale <= np.array(geometry.target.scale) + 1e-9).all()
    lower = np.array(geometry.label_translation) - np.array(geometry.label_scale) / 2
    upper = lower + count * scale
    # a voxel beyond the raw, which begins half a voxel before 0, is taken for rounding
    lower = np.maximum(lower, -1.5 * np.array(geometry.raw_scale))
    beyond = np.maximum(lower[:, None] - target, target - upper[:, None]) / scale[:, None]
    labels = labels.reshape(len(labels), -1)
    assert (labels[:, (beyond > 0.01).any(axis=0)] == -1).all()
    known = (beyond < -0.01).all(axis=0)
    assert (labels[:, known] != -1).all()
    errors = []
    for axis, number in itertools.product(range(3), range(THRESHOLDS)):
        distance = (target[axis, known] - thresholds(geometry)[axis, number]) / scale[axis]
        positive = labels[axis * THRESHOLDS + number, known] == 1
        assert positive[distance > 0.501].all() and not positive[distance < -0.501].any()
        near = np.abs(distance) < 1
        errors.append(positive[near] - (distance[near] > 0).astype(float))
    return np.concatenate(errors)


@pytest.mark.parametrize("transforms", TRANSFORMS)
def test_raw_and_labels_are_aligned_to_half_a_voxel_in_every_orientation(aligned, transforms):
    geometry, open_aligned = aligned
    chosen = TRANSFORMS[transforms]
    crops = open_aligned(reach_nm(geometry.input, chosen))
    samplers = [
        Sampler([crop], geometry.input, geometry.target, 7, augmentation=Augmentation(chosen))
        for crop in crops
    ]
    blocks = [
        Blocks([crop], sampler, geometry.input, geometry.target)
        for crop, sampler in zip(crops, samplers, strict=True)
    ]
    positions, labels = read(blocks, 8)
    errors = [
        check_alignment(geometry, samplers[0].draw(k), positions[k], labels[k]) for k in range(8)
    ]
    errors = np.concatenate(errors)
    assert (labels != -1).mean() > 0.05
    assert len(errors) > 200
    if (
        transforms in ("turned", "everything") and len(errors) > 2000
    ):  # borders are where they belong on average
        assert abs(errors.mean() * 2) < 0.1


def test_validation_blocks_are_aligned_to_half_a_voxel(aligned):
    geometry, open_aligned = aligned
    crops = open_aligned((geometry.input.extent + geometry.target.extent) / 2)
    samples = validation_samples(crops[:1], geometry.input, geometry.target)[:12]
    positions, labels = read(
        [Blocks([crop], samples, geometry.input, geometry.target) for crop in crops], len(samples)
    )
    for sample, place, label in zip(samples, positions, labels, strict=True):
        check_alignment(geometry, sample, place, label)


DISTORTIONS = {
    "scaled": {"scale": {"probability": 1, "factor": (0.7, 1.4), "isotropic": False}},
    "elastic": {"elastic": {"probability": 1, "amplitude_nm": 24, "spacing_nm": 60}},
    "shifted": {"section_shift": {"probability": 1, "max_nm": 40}},
}


@pytest.mark.parametrize("kinds", [*DISTORTIONS, "all", "all, turned"])
def test_raw_and_labels_stay_aligned_to_half_a_voxel_when_they_are_distorted(aligned, kinds):
    """Raw patches on the voxels of the target: each says where it is read, its label follows.

    A ramp stays one under interpolation, so that positions are exact, whatever moved them.
    """
    geometry, open_aligned = aligned
    if geometry == GEOMETRIES["crop in the corner of the raw"]:
        pytest.skip("mirrored raw does not say where it is read")
    chosen = {}
    for name, kind in DISTORTIONS.items():
        if name == kinds or kinds.startswith("all"):
            chosen |= kind
    spatial = MIRROR | TRANSPOSE | ROTATE if kinds == "all, turned" else IN_PLANE
    target = geometry.target
    crops = open_aligned(margins_nm(target, target, spatial, chosen)["train"])
    augmentation = Augmentation(spatial, kinds=read_augmentations(chosen))
    blocks = []
    for crop in crops:
        sampler = Sampler([crop], target, target, 7, augmentation=augmentation)
        blocks.append(Blocks([crop], sampler, target, target))
    positions, labels = read(blocks, 6)
    positions = positions.reshape(6, 3, -1)
    labels = labels.reshape(6, len(crops[0].palette[0]), -1)

    lower, upper = crops[0].label_grid.box()
    scale = crops[0].label_grid.scale
    last = (np.array(geometry.raw_shape)[:, None] - 1) * np.array(geometry.raw_scale)[:, None]
    beyond = np.maximum(lower[:, None] - positions, positions - upper[:, None]) / scale[:, None]
    # at the edge of the volume raw is mirrored, and says another place
    clear = ((positions > 1) & (positions < last - 1)).all(axis=1)
    outside = (beyond > 0.02).any(axis=1)
    assert (labels.transpose(0, 2, 1)[clear & outside] == -1).all()
    known = (beyond < -0.02).all(axis=1) & clear
    assert known.mean() > 0.05
    assert (labels.transpose(0, 2, 1)[known] != -1).all()
    borders = 0
    for axis, number in itertools.product(range(3), range(THRESHOLDS)):
        distance = (positions[:, axis] - thresholds(geometry)[axis, number]) / scale[axis]
        positive = labels[:, axis * THRESHOLDS + number] == 1
        assert positive[known & (distance > 0.51)].all()
        assert not positive[known & (distance < -0.51)].any()
        borders += (known & (np.abs(distance) < 1)).sum()
    assert borders > 200


def random_crop(
    tmp_path: Path, raw: np.ndarray, labels: dict[str, np.ndarray], name: str = "a", **settings
) -> Crop:
    """A crop of given volumes: raw at 0 nm, labels from voxel (16, 16, 16) on by default."""
    values = {
        "scale": (8, 8, 8),
        "label_scale": (8, 8, 8),
        "label_translation": (128, 128, 128),
        "margin": 200.0,
    } | settings
    root = tmp_path / f"{name}.zarr"
    write_multiscale(root / "raw", raw, values["scale"])
    for label, volume in labels.items():
        write_multiscale(
            root / "crop1" / label, volume, values["label_scale"], values["label_translation"]
        )
    row = Row("train", root / "raw", root / "crop1", tuple(labels))
    classes = values.get("classes", tuple(labels))
    return open_at_8_nm([row], classes, tmp_path, values["margin"], values["scale"])[0]


def open_at_8_nm(
    rows: Sequence[Row],
    classes: Sequence[str],
    root: Path,
    margin: float = 200.0,
    scale: Sequence[float] = (8, 8, 8),
) -> list[Crop]:
    """Crops decoded into root/cache; any raw is large enough."""
    request = CropRequest(
        classes=tuple(classes),
        input_scale=scale,
        target_scale=scale,
        patch_nm=np.ones(3),
        margins_nm={"train": np.full(3, margin)},
    )
    return open_crops(rows, request, CropCache(root / "cache", 1))


RANDOM = np.random.default_rng(0)
INPUT = Patch((12, 14, 10), (8, 8, 8))
TARGET = Patch((6, 8, 4), (8, 8, 8))


@pytest.fixture(scope="module")
def crop(tmp_path_factory) -> Crop:
    """Random raw and two random classes that exclude each other."""
    raw = RANDOM.integers(1, 256, (50, 50, 50), np.uint8)
    kind = RANDOM.integers(0, 3, (18, 19, 20))
    return random_crop(tmp_path_factory.mktemp("crop"), raw, {"mito": kind == 1, "nuc": kind == 2})


def batches(
    crops: Sequence[Crop], batch_size: int = 4, workers: int = 0, raw_range: tuple = (), **settings
) -> Batches:
    sampler = Sampler(crops, INPUT, TARGET, 3, **settings)
    blocks = Blocks(crops, sampler, INPUT, TARGET)
    return Batches(blocks, batch_size, workers, CPU, raw_range=raw_range)


def joined(found: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    raw = torch.cat([batch.raw for batch in found])
    target = torch.cat([dense(batch.target) for batch in found])
    where = []
    for batch in found:
        where += batch.where
    return raw, target, where


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(joined(a), joined(b), strict=True)
    )


@pytest.mark.parametrize(
    "transforms", [{}, ROTATE, MIRROR | TRANSPOSE, MIRROR | TRANSPOSE | ROTATE]
)
def test_patches_equal_scipy_at_the_places_of_the_sample(crop, transforms):
    sampler = Sampler([crop], INPUT, TARGET, 3, augmentation=Augmentation(transforms))
    raw, target, _ = joined(
        list(Batches(Blocks([crop], sampler, INPUT, TARGET), 4, 0, CPU).between(0, 6))
    )
    for k in range(6):
        sample = sampler.draw(k)
        place = sample.centre[:, None] + sample.orientation @ offsets(INPUT)
        at = (place - crop.raw_grid.origin[:, None]) / crop.raw_grid.scale[:, None]
        expected = ndimage.map_coordinates(crop.raw().astype(float), at, order=1) / 255
        np.testing.assert_allclose(raw[k].flatten(), expected, atol=2e-4)
        place = sample.centre[:, None] + sample.orientation @ offsets(TARGET)
        at = (place - crop.label_grid.origin[:, None]) / crop.label_grid.scale[:, None]
        row = ndimage.map_coordinates(
            crop.labels().astype(float), at, order=0, mode="grid-constant"
        ).astype(int)
        clear = (np.abs(at - np.floor(at) - 0.5) > 1e-3).all(axis=0)
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(target[k].flatten(1)[:, clear], crop.palette[row[clear]].T)


def test_raw_is_never_black_around_a_crop_much_smaller_than_the_patch(tmp_path):
    """A crop of 3 voxels, patches of 40 and 30, raw 200 everywhere: also in turned patches."""
    small = {"mito": np.ones((3, 3, 3), np.uint8)}
    raw = Patch((40, 40, 40), (8, 8, 8))
    target = Patch((30, 30, 30), (8, 8, 8))
    for name, transforms in {"straight": MIRROR, "turned": ROTATE}.items():
        margin = float(reach_nm(raw, transforms).max())
        found = random_crop(
            tmp_path,
            np.full((80, 80, 80), 200, np.uint8),
            small,
            name,
            label_translation=(320, 320, 320),
            margin=margin,
        )
        for fraction in (0.0, 1.0):
            sampler = Sampler(
                [found],
                raw,
                target,
                3,
                positive_centre_fraction=fraction,
                augmentation=Augmentation(transforms),
            )
            for batch in Batches(Blocks([found], sampler, raw, target), 1, 0, CPU).between(0, 12):
                torch.testing.assert_close(batch.raw, torch.full_like(batch.raw, 200 / 255))
                assert (dense(batch.target) == 1).any()


def test_a_sphere_stays_a_sphere_when_axes_of_sections_are_transposed(tmp_path):
    """200 nm across: 4 sections of 50 nm are 40 voxels of 5 nm, whichever axis becomes which."""
    shape = (12, 90, 90)
    scale = (50, 5, 5)
    place = [ramp(shape, scale, (0, 0, 0), axis) for axis in range(3)]
    ball = (place[0] - 275) ** 2 + (place[1] - 222.5) ** 2 + (place[2] - 222.5) ** 2 < 130**2
    patch = Patch((9, 72, 72), (50, 5, 5))
    found = random_crop(
        tmp_path,
        (ball * 200 + 50).astype(np.uint8),
        {"ld": ball},
        scale=scale,
        label_scale=scale,
        label_translation=(0, 0, 0),
        margin=400,
    )
    sampler = Sampler(
        [found], patch, patch, 3, augmentation=Augmentation(TRANSPOSE), positive_centre_fraction=0.0
    )
    centred = [replace(sampler.draw(k), centre=np.array([275.0, 222.5, 222.5])) for k in range(6)]
    assert len({tuple(sample.orientation.argmax(1)) for sample in centred}) > 2
    block = Blocks([found], sampler, patch, patch)
    block.samples = centred
    _, target, _ = joined(list(Batches(block, 6, 0, CPU).between(0, 6)))
    volume = (target == 1).sum((1, 2, 3, 4)) * 50 * 5 * 5
    np.testing.assert_allclose(volume, 4 / 3 * np.pi * 130**3, rtol=0.05)
    for sample in target[:, 0].numpy() == 1:
        extent = [
            np.ptp(np.flatnonzero(sample.any(tuple({0, 1, 2} - {axis})))) * scale[axis]
            for axis in range(3)
        ]
        assert all(abs(length - 260) <= 60 for length in extent)


# Batches


@pytest.mark.parametrize(("workers", "here"), [(0, True), (1, True), (1, False)])
def test_a_disk_that_is_gone_is_said_in_a_sentence(crop, monkeypatch, workers, here):
    """Here and in a worker that lives on, whose traceback torch puts into the message."""
    cut = loaders.sampling.cut

    def gone(*arguments: object) -> object:
        if not here and multiprocessing.parent_process() is None:
            return cut(*arguments)
        raise OSError(5, "Input/output error", "raw.npy")

    monkeypatch.setattr(loaders.sampling, "cut", gone)
    with pytest.raises(WorkerLost) as told:
        list(batches([crop], workers=workers).between(0, 4))
    text = str(told.value)
    assert text.startswith(f"{crop.folder.parent}: decoded crops cannot be read (")
    assert "[Errno 5] Input/output error: 'raw.npy'); see" in text
    assert "Traceback" not in text and "\n" not in text


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_with_and_without_workers(crop, workers):
    alone = list(batches([crop], augmentation=EVERYTHING).between(0, 10))
    assert same(
        alone, list(batches([crop], workers=workers, augmentation=EVERYTHING).between(0, 10))
    )


@pytest.mark.parametrize("transforms", [MIRROR | TRANSPOSE, MIRROR | TRANSPOSE | ROTATE])
def test_halves_of_a_batch_equal_the_batch(crop, transforms):
    settings = replace(EVERYTHING, spatial_transforms=transforms)
    whole = list(batches([crop], 4, augmentation=settings).between(4, 8))
    assert same(whole, list(batches([crop], 2, augmentation=settings).between(4, 8)))
    assert same(whole, list(batches([crop], 1, augmentation=settings).between(4, 8)))


def test_a_run_that_continues_draws_what_it_would_have_drawn(crop):
    whole = list(batches([crop], augmentation=EVERYTHING).between(0, 12))
    again = list(batches([crop], augmentation=EVERYTHING).between(8, 12))
    assert same(whole[2:], again)


ALL_KINDS = replace(EVERYTHING, kinds=read_augmentations(EVERY_KIND))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
def test_with_every_kind_on_batches_depend_on_seed_and_number_alone(crop):
    """Not on workers, batch size or where the run began."""
    whole = list(batches([crop], augmentation=ALL_KINDS).between(0, 12))
    assert same(whole, list(batches([crop], workers=2, augmentation=ALL_KINDS).between(0, 12)))
    assert same(whole, list(batches([crop], 1, augmentation=ALL_KINDS).between(0, 12)))
    assert same(whole[2:], list(batches([crop], augmentation=ALL_KINDS).between(8, 12)))
    raw, target, _ = joined(whole)
    assert raw.min() >= 0 and raw.max() <= 1 and raw.isfinite().all()
    assert set(target.unique().tolist()) == {-1, 0, 1}


def changes(crop: Crop, name: str, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(n,) whether raw, and labels, of a sample are other ones with a kind on."""
    values = EVERY_KIND[name] | {"probability": 1}
    spoilt = replace(EVERYTHING, kinds=read_augmentations({name: values}))
    plain = joined(list(batches([crop], augmentation=EVERYTHING).between(0, n)))
    found = joined(list(batches([crop], augmentation=spoilt).between(0, n)))
    raw = (plain[0] != found[0]).flatten(1).any(1)
    labels = (plain[1] != found[1]).flatten(1).any(1)
    return raw.numpy(), labels.numpy()


@pytest.mark.parametrize("name", EVERY_KIND)
def test_every_kind_changes_raw_and_those_of_geometry_labels(crop, name):
    raw, labels = changes(crop, name)
    assert raw.mean() > 0.7
    moving = name in ("scale", "elastic", "section_shift")
    assert labels.mean() > 0.7 if moving else not labels.any()


def test_sections_are_spoilt_within_the_range_of_raw(crop):
    """Raw of 50 becomes 0, 200 becomes 1; a missing section is 0."""
    kinds = read_augmentations({"missing_sections": {"probability": 1, "number": 2}})
    augmentation = Augmentation(kinds=kinds)
    found = batches([crop], augmentation=augmentation, raw_range=(50, 200)).between(0, 4)
    plain = batches([crop], raw_range=(50, 200)).between(0, 4)
    before, after = joined(list(plain))[0], joined(list(found))[0]
    lost = (after == 0).flatten(3).all(3)[:, 0]
    assert lost.any() and lost.sum(1).max() <= 2
    assert torch.equal(after[:, 0][~lost], before[:, 0][~lost])


def test_the_last_batch_may_be_smaller(crop):
    assert [len(batch.raw) for batch in batches([crop]).between(0, 10)] == [4, 4, 2]


def test_a_batch_has_the_shapes_and_types_that_network_and_loss_take(crop):
    (batch,) = batches([crop]).between(0, 4)
    target = dense(batch.target)
    assert batch.raw.shape == (4, 1, 12, 14, 10) and batch.raw.dtype == torch.float32
    assert target.shape == (4, 2, 6, 8, 4) and target.dtype == torch.int8
    assert set(target.unique().tolist()) <= {-1, 0, 1}


def test_a_batch_says_where_its_patches_are_from(crop):
    (batch,) = batches([crop]).between(20, 22)
    assert batch.where == ["a/crop1 (sample 20)", "a/crop1 (sample 21)"]


@pytest.mark.parametrize("transforms", [MIRROR, ROTATE])
def test_raw_lies_in_0_to_1_and_uses_the_range(tmp_path, transforms):
    raw = np.where(RANDOM.random((50, 50, 50)) < 0.5, 0, 255).astype(np.uint8)
    found = random_crop(tmp_path, raw, {"mito": np.ones((18, 18, 18), np.uint8)})
    patches, _, _ = joined(
        list(batches([found], augmentation=Augmentation(transforms)).between(0, 4))
    )
    assert patches.min() >= 0 and patches.max() <= 1 + 1e-6
    assert patches.std() > 0.1


def test_raw_that_is_white_everywhere_is_1_when_turned(tmp_path):
    found = random_crop(
        tmp_path, np.full((50, 50, 50), 255, np.uint8), {"mito": np.ones((18, 18, 18), np.uint8)}
    )
    patches, _, _ = joined(list(batches([found], augmentation=Augmentation(ROTATE)).between(0, 4)))
    torch.testing.assert_close(patches, torch.ones_like(patches))


def test_a_range_of_raw_values_becomes_0_to_1(crop):
    plain, _, _ = joined(list(batches([crop]).between(0, 4)))
    ranged, _, _ = joined(list(batches([crop], raw_range=(50, 200)).between(0, 4)))
    torch.testing.assert_close(ranged, ((plain * 255 - 50) / 150).clamp(0, 1))


def test_channels_are_the_classes_in_their_order(tmp_path):
    """Raw is bright where `mito` is, dark where `nuc` is, in between elsewhere."""
    kind = np.kron(RANDOM.integers(0, 3, (9, 9, 9)), np.ones((2, 2, 2), int))
    raw = np.full((50, 50, 50), 100, np.uint8)
    raw[16:34, 16:34, 16:34] = np.choose(kind, [100, 200, 20])
    for name, classes in {"a": ("mito", "nuc"), "b": ("nuc", "mito")}.items():
        found = random_crop(
            tmp_path, raw, {"mito": kind == 1, "nuc": kind == 2}, name, classes=classes
        )
        sampler = Sampler([found], TARGET, TARGET, 3)
        patches, target, _ = joined(
            list(Batches(Blocks([found], sampler, TARGET, TARGET), 4, 0, CPU).between(0, 4))
        )
        assert torch.equal(target[:, [classes.index("mito")]] == 1, patches > 0.7)
        assert torch.equal(target[:, [classes.index("nuc")]] == 1, patches < 0.1)


def test_a_class_that_no_crop_annotates_is_unknown_where_nothing_excludes_it(tmp_path):
    mito = RANDOM.random((18, 18, 18)) < 0.5
    raw = np.full((50, 50, 50), 100, np.uint8)
    found = random_crop(tmp_path, raw, {"mito": mito}, classes=("mito", "nuc", "cell"))
    _, target, _ = joined(list(batches([found]).between(0, 4)))
    assert torch.equal(target[:, 1], torch.where(target[:, 0] == 1, 0, -1).to(torch.int8))
    assert torch.equal(target[:, 2], torch.where(target[:, 0] == 1, 1, -1).to(torch.int8))


def test_tables_of_labels_lie_row_by_row_in_memory(crop):
    """Of columns a lookup is slow; pseudo-labels have a table of the same shape."""
    by_columns = np.asfortranarray(crop.palette)
    pseudo = np.zeros(by_columns.shape, bool, order="F")
    chosen = replace(crop, palette=by_columns, pseudo=pseudo)
    blocks = Blocks([chosen], Sampler([chosen], INPUT, TARGET, 3), INPUT, TARGET)
    batches = Batches(blocks, 4, 0, CPU, pseudo_weight=0.5)
    assert batches.palette.is_contiguous() and batches.weights.is_contiguous()
    np.testing.assert_array_equal(batches.palette, crop.palette)


def test_each_patch_is_read_with_the_palette_of_its_crop(tmp_path):
    """Two crops whose rows mean different classes; the second has more than fit into a byte."""
    names = ("mito", "nuc", *(f"mine{i}" for i in range(9)))
    code = RANDOM.integers(0, 2048, (18, 18, 18))
    raw = np.full((50, 50, 50), 100, np.uint8)
    few = random_crop(
        tmp_path, raw, {n: np.full((18, 18, 18), n == "nuc", np.uint8) for n in names}, "few"
    )
    many = random_crop(tmp_path, raw, {n: code >> i & 1 for i, n in enumerate(names)}, "many")
    assert few.labels().dtype == np.uint8 and many.labels().dtype == np.uint16
    sampler = Sampler([few, many], INPUT, TARGET, 3)
    _, target, where = joined(
        list(Batches(Blocks([few, many], sampler, INPUT, TARGET), 4, 0, CPU).between(0, 24))
    )
    assert {name.split("/")[0] for name in where} == {"few", "many"}
    for k, name in enumerate(where):
        if name.startswith("few"):
            assert (
                target[k] == (torch.tensor([n == "nuc" for n in names]))[:, None, None, None]
            ).all()
        else:
            at = np.rint((sampler.draw(k).centre[:, None] + offsets(TARGET) - 128) / 8).astype(int)
            expected = np.array([code[tuple(at)] >> i & 1 for i in range(len(names))])
            np.testing.assert_array_equal(target[k].flatten(1), expected)


def test_raw_of_uint16_stands_beside_raw_of_uint8(tmp_path):
    labels = np.ones((18, 18, 18), np.uint8)
    rows = []
    for name, raw in {
        "a": np.full((50, 50, 50), 51, np.uint8),
        "b": np.full((50, 50, 50), 39321, np.uint16),
    }.items():
        random_crop(tmp_path, raw, {"mito": labels}, name)
        rows.append(
            Row(
                "train",
                tmp_path / f"{name}.zarr" / "raw",
                tmp_path / f"{name}.zarr" / "crop1",
                ("mito",),
            )
        )
    both = open_at_8_nm(rows, ["mito"], tmp_path)
    raw, _, where = joined(list(batches(both, augmentation=Augmentation(ROTATE)).between(0, 8)))
    assert {name[0] for name in where} == {"a", "b"}
    for patch, name in zip(raw, where, strict=True):
        torch.testing.assert_close(patch, torch.full_like(patch, {"a": 0.2, "b": 0.6}[name[0]]))


@pytest.mark.parametrize("transforms", [{}, IN_PLANE, IN_PLANE | ROTATE_IN_PLANE])
def test_patches_of_one_slice_come_from_one_slice(tmp_path, transforms):
    """Each slice has a grey value and a class of its own: 2 * z, and positive in odd slices."""
    raw = np.broadcast_to(np.arange(1, 51, dtype=np.uint8)[:, None, None] * 2, (50, 50, 50)).copy()
    labels = np.broadcast_to(np.arange(18)[:, None, None] % 2, (18, 30, 30))
    found = random_crop(tmp_path, raw, {"mito": labels}, label_translation=(128, 80, 80))
    patch = Patch((1, 20, 22), (8, 8, 8))
    target = Patch((1, 12, 10), (8, 8, 8))
    sampler = Sampler([found], patch, target, 3, augmentation=Augmentation(transforms))
    shown = 0
    for k, batch in enumerate(
        Batches(Blocks([found], sampler, patch, target), 1, 0, CPU).between(0, 12)
    ):
        assert batch.raw.shape == (1, 1, 1, 20, 22) and dense(batch.target).shape == (
            1,
            1,
            1,
            12,
            10,
        )
        assert batch.raw.max() - batch.raw.min() < 1e-5  # slices are not mixed
        height = (sampler.draw(k).centre[0] - 128) / 8
        np.testing.assert_allclose(batch.raw.flatten()[0] * 255 / 2 - 1 - 16, height, atol=1e-3)
        known = dense(batch.target)[dense(batch.target) >= 0]
        if abs(height - np.floor(height) - 0.5) > 0.01:
            assert (known == np.rint(height) % 2).all()
            shown += len(known)
    assert shown > 500


@pytest.mark.parametrize(
    "beside", [0, 3, 4], ids=["on the raw voxels", "3 nm beside", "half a voxel beside"]
)
@pytest.mark.parametrize("patch", [TARGET, Patch((7, 5, 9), (8, 8, 8))])
def test_validation_sees_every_voxel_once(tmp_path, beside, patch):
    raw = RANDOM.integers(1, 256, (50, 50, 50), np.uint8)
    mito = RANDOM.random((18, 19, 20)) < 0.3
    found = random_crop(tmp_path, raw, {"mito": mito}, label_translation=np.full(3, 128.0 + beside))
    samples = validation_samples([found], INPUT, patch)
    _, target, _ = joined(
        list(Batches(Blocks([found], samples, INPUT, patch), 3, 0, CPU).between(0, len(samples)))
    )
    assert (target >= 0).sum() == 18 * 19 * 20
    for value in (0, 1):
        expected = found.counts @ (found.palette == value)
        np.testing.assert_array_equal((target == value).sum((0, 2, 3, 4)), expected)


# Data of a run


def test_voxels_are_counted_in_target_voxels_over_crops_of_any_grid(tmp_path):
    """10 voxels of 8 nm, 5 of 16 nm that are 40; a class known in one crop counts there only."""
    raw = np.full((50, 50, 50), 100, np.uint8)
    fine = np.zeros((18, 18, 18), np.uint8)
    fine.flat[:10] = 1
    coarse = np.zeros((9, 9, 9), np.uint8)
    coarse.flat[:5] = 1
    crops = [
        random_crop(tmp_path, raw, {"mito": fine}, "a", classes=("mito", "er")),
        random_crop(
            tmp_path,
            raw,
            {"mito": coarse, "er": coarse * 0},
            "b",
            classes=("mito", "er"),
            label_scale=(16, 16, 16),
        ),
    ]
    np.testing.assert_allclose(count_voxels(crops, 1, (8, 8, 8)), [50, 0])
    np.testing.assert_allclose(
        count_voxels(crops, 0, (8, 8, 8)), [18**3 - 10 + 9**3 * 8 - 40, 10 + 9**3 * 8]
    )
    np.testing.assert_allclose(count_voxels(crops, 1, (4, 8, 8)), [100, 0])


PLACES = {1: (128, 128, 128), 2: (128, 128, 272), 3: (128, 128, 128)}
"""Of the crops, nm."""


@pytest.fixture
def root(tmp_path) -> Path:
    """A data root with three crops (the third annotates `mito` only), a datasplit of two.

    The second lies beside the others, which are in one place."""
    store = tmp_path / "data" / "set.zarr"
    write_multiscale(store / "em", RANDOM.integers(1, 256, (50, 50, 56), np.uint8), (8, 8, 8))
    for number, names in enumerate((("mito", "nuc"), ("mito", "nuc"), ("mito",)), 1):
        kind = RANDOM.integers(0, 3, (18, 18, 18))
        for index, name in enumerate(names, 1):
            write_multiscale(
                store / f"crop{number}" / name,
                (kind == index).astype(np.uint8),
                (8, 8, 8),
                PLACES[number],
            )
    split(tmp_path, ("train", 1, "mito,nuc"), ("validate", 2, "mito,nuc"))
    return tmp_path


def split(root: Path, *rows: tuple[str, int, str]) -> None:
    text = "".join(
        f'"{usage}","set.zarr","em","set.zarr","crop{n}/[{names}]"\n' for usage, n, names in rows
    )
    (root / "datasplit.csv").write_text(text)


def config(root: Path, **settings) -> TrainConfig:
    """Settings of a run on `root`, where a path of the CSV is relative to root/data."""
    values = {
        "build_model": lambda classes: None,
        "classes": ("mito", "nuc"),
        "base_experiment_path": str(root),
        "data_path": str(root / "data"),
        "cache_path": str(root / "cache"),
        "input_array_info": {"shape": INPUT.shape, "scale": INPUT.scale},
        "target_array_info": {"shape": TARGET.shape, "scale": TARGET.scale},
    }
    return TrainConfig(**values | settings)


def test_the_crops_of_a_run_are_those_of_its_datasplit(root):
    data = open_data(config(root))
    assert [crop.name for crop in data.train] == ["set/crop1"]
    assert [crop.name for crop in data.validation] == ["set/crop2"]
    assert notices(data, ("mito", "nuc")) == []
    np.testing.assert_array_equal(data.foreground + data.background, [18**3, 18**3])


def test_crops_that_annotate_no_class_of_the_run_are_left_out(root):
    split(root, ("train", 1, "mito,nuc"), ("train", 3, "mito"))
    assert [crop.name for crop in open_data(config(root, classes=("nuc",))).train] == ["set/crop1"]


def test_crops_of_counter_examples_train_and_do_not_validate(root):
    split(root, ("train", 1, "mito,nuc"), ("train", 3, "mito"), ("validate", 2, "mito"))
    data = open_data(config(root, classes=("nuc",), counter_classes=("mito",)))
    assert [crop.name for crop in data.train] == ["set/crop1", "set/crop3"]
    assert data.validation == []
    crop = data.train[1]
    positive = np.count_nonzero(zarr_of(root, 3, "mito"))
    # what is mito is no nucleus, and nothing is known of the rest
    assert crop.counts @ (crop.palette == 0) == positive
    assert not (crop.palette == 1).any()
    selective = open_data(config(root, classes=("nuc",), counter_classes=("mito",), selective=True))
    assert [crop.name for crop in selective.train] == ["set/crop1"]
    assert selective.split_hash == data.split_hash


def zarr_of(root: Path, number: int, name: str) -> np.ndarray:
    return zarr.open(str(root / "data" / "set.zarr" / f"crop{number}" / name / "s0"), mode="r")[:]


def test_a_split_without_a_crop_of_the_classes_is_refused(root):
    with pytest.raises(
        ValueError,
        match=r"datasplit.csv: .* golgi",
    ):
        open_data(config(root, classes=("golgi",)))


def test_a_split_without_positive_voxels_is_refused(root):
    write_multiscale(
        root / "data" / "set.zarr" / "crop1" / "nuc",
        np.zeros((18, 18, 18), np.uint8),
        (8, 8, 8),
        (128, 128, 128),
    )
    with pytest.raises(ValueError, match="positive voxel of nuc"):
        open_data(config(root, classes=("nuc",)))


def test_a_missing_class_folder_is_named(root):
    split(root, ("train", 3, "mito,nuc"))
    with pytest.raises(FileNotFoundError, match=r"line 1: no nuc in .*/crop3"):
        open_data(config(root))


def test_a_patch_larger_than_the_raw_is_refused(root):
    with pytest.raises(ValueError, match=r"em: 400 x 400 x 448 nm .* 480 x 96 x 96 nm"):
        open_data(config(root, input_array_info={"shape": (60, 12, 12), "scale": (8, 8, 8)}))


def test_training_and_validation_crops_share_the_budget_of_the_cache(root):
    """Each fits by itself and both do not: the first must not be thrown out for the second."""
    data = open_data(config(root))
    sizes = [crop.raw().nbytes + crop.labels().nbytes for crop in (*data.train, *data.validation)]
    enough = sum(sizes) * 1.3e-9
    too_little = max(sizes) * 1.3e-9
    open_data(config(root, cache_gb=enough, cache_path=str(root / "other")))
    with pytest.raises(ValueError, match="set cache_gb"):
        open_data(config(root, cache_gb=too_little, cache_path=str(root / "third")))


def test_a_class_without_positive_voxel_is_said_once(root):
    write_multiscale(
        root / "data" / "set.zarr" / "crop1" / "nuc",
        np.zeros((18, 18, 18), np.uint8),
        (8, 8, 8),
        (128, 128, 128),
    )
    said = notices(open_data(config(root)), ("mito", "nuc"))
    assert said == ["no positive voxel in the training crops, so not learnt: nuc"]


@pytest.mark.parametrize("store", ["set.zarr", "other.zarr"])
def test_validation_crops_that_were_trained_on_are_said(root, store):
    """Also where a store has two names."""
    (root / "data" / "other.zarr").symlink_to(root / "data" / "set.zarr")
    split(root, ("train", 3, "mito"), ("train", 2, "mito"), ("validate", 1, "mito"))
    rows = (root / "datasplit.csv").read_text().splitlines()
    rows[-1] = rows[-1].replace("set.zarr", store)
    (root / "datasplit.csv").write_text("\n".join(rows))
    (said,) = notices(open_data(config(root, classes=("mito",))), ("mito",))
    pair = f"{store.removesuffix('.zarr')}/crop1 and set/crop3; put both on one side"
    assert said.startswith("validation crops overlap training crops") and said.endswith(pair)


def test_validation_crops_that_are_copies_of_training_crops_are_said(root):
    shutil.copytree(root / "data" / "set.zarr", root / "data" / "copy.zarr")
    split(root, ("train", 1, "mito"), ("train", 2, "mito"), ("validate", 1, "mito"))
    rows = (root / "datasplit.csv").read_text().splitlines()
    rows[-1] = rows[-1].replace("set.zarr", "copy.zarr")
    (root / "datasplit.csv").write_text("\n".join(rows))
    (said,) = notices(open_data(config(root, classes=("mito",))), ("mito",))
    assert said.startswith("validation crops have the raw of training crops, voxel by voxel")
    assert said.endswith("do: copy/crop1 and set/crop1; put both on one side")


def test_every_seed_validates_on_the_same_blocks_in_the_same_order(root):
    first, second = (open_data(config(root, random_seed=seed)) for seed in (1, 2))
    assert [block.centre.tolist() for block in first.blocks] == [
        block.centre.tolist() for block in second.blocks
    ]
    assert len(first.blocks) > 1


def test_a_training_crop_more_does_not_change_the_order_of_validation_blocks(root):
    before = open_data(config(root)).blocks
    split(root, ("train", 3, "mito"), ("train", 1, "mito,nuc"), ("validate", 2, "mito,nuc"))
    after = open_data(config(root)).blocks
    assert [block.centre.tolist() for block in before] == [block.centre.tolist() for block in after]


def with_a_namesake(root: Path) -> None:
    """Add the first crop of another store of the same name to the datasplit."""
    shutil.copytree(root / "data" / "set.zarr", root / "data" / "fly" / "set.zarr")
    text = (root / "datasplit.csv").read_text()
    other = text.splitlines()[0].replace("set.zarr", "fly/set.zarr")
    (root / "datasplit.csv").write_text(f"{text}{other}\n")


def test_crops_of_one_name_are_each_known_by_their_own_labels_and_raw(root):
    """An edit of the first of them went unnoticed."""
    with_a_namesake(root)
    before = open_data(config(root))
    assert len(labels_of(before)) == len(raws_of(before)) == 3
    level = root / "data" / "set.zarr" / "crop1" / "mito" / "s0"
    zarr.open_array(str(level), mode="r+")[...] = 1
    after = open_data(config(root))
    changed = [name for name, key in labels_of(after).items() if labels_of(before)[name] != key]
    assert changed == ["set/crop1 (2 of this name)"]


def test_crops_of_one_name_are_refused_where_input_channels_are_found_by_it(root):
    with_a_namesake(root)
    channels = {"mito_before": {"path": "p/{dataset}/{crop}/mito"}}
    with pytest.raises(UserError, match="different crops of one name, set/crop1, by which input"):
        open_data(config(root, input_channels=channels))


def test_a_class_that_no_training_crop_annotates_is_told(root):
    """`er` follows from others as negative alone; `cell` as positive alone."""
    classes = ("mito", "nuc", "er", "cell", "ld")
    said = notices(open_data(config(root, classes=classes)), classes)
    assert "annotated in no training crop, so not learnt: er, ld" in said
    assert any("only learnt to be everywhere: cell (annotated in no" in line for line in said)
    assert said[-1] == (
        "means of the validation are over 2 of 5 classes; its crops do not measure "
        "er, ld (no positive voxel), cell (no negative voxel)"
    )


def test_a_class_that_is_positive_everywhere_is_told(root):
    for number in (1, 2):
        write_multiscale(
            root / "data" / "set.zarr" / f"crop{number}" / "nuc",
            np.ones((18, 18, 18), np.uint8),
            (8, 8, 8),
            PLACES[number],
        )
    said = notices(open_data(config(root)), ("mito", "nuc"))
    assert any(line.endswith("so only learnt to be everywhere: nuc") for line in said)
    assert any(line.endswith("measure nuc (no negative voxel)") for line in said)


def test_annotated_classes_that_the_run_does_not_list_are_told(root):
    said = notices(open_data(config(root, classes=("mito",))), ("mito",))
    assert said == [
        "annotated in training crops (so many of them) and not in classes, so not learnt: nuc (1)"
    ]


def test_a_split_without_validation_is_said(root):
    split(root, ("train", 1, "mito,nuc"))
    said = notices(open_data(config(root)), ("mito", "nuc"))
    assert said == [
        "the datasplit has no validation crop: no metric, and the best checkpoint is the last"
    ]


def test_raw_that_is_not_there_under_labels_is_told(root):
    raw = root / "data" / "set.zarr" / "em"
    volume = ngff.open_levels(raw)[0].array[...]
    write_multiscale(raw, volume, (8, 8, 8), chunk=20)
    assert notices(open_data(config(root)), ("mito", "nuc")) == []
    ngff.open_levels(raw)[0].chunk_file((1, 1, 1)).unlink()
    (said,) = notices(open_data(config(root)), ("mito", "nuc"))
    assert "2 of 16 chunks of raw are not there under the labels of set/crop1" in said


def test_contradictions_in_the_annotation_are_counted_and_said_once(root):
    """100 voxels of the training crop are both `mito` and `nuc`, and 50 of the validation crop."""
    for number, n in ((1, 100), (2, 50)):
        both = np.zeros((18, 18, 18), np.uint8)
        both.flat[:n] = 1
        for name in ("mito", "nuc"):
            write_multiscale(
                root / "data" / "set.zarr" / f"crop{number}" / name,
                both,
                (8, 8, 8),
                PLACES[number],
            )
    (said,) = notices(open_data(config(root)), ("mito", "nuc"))
    assert "contradicts" in said and "150 voxels of 2 crops" in said
    assert "set/crop1 (1.7%)" in said


def test_data_opened_from_another_folder_are_the_same(root, monkeypatch, tmp_path_factory):
    first = open_data(config(root))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    second = open_data(config(root))
    assert first.split_hash == second.split_hash
    assert [crop.folder for crop in first.train] == [crop.folder for crop in second.train]


# A user's own augmentation


def brighten(raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Adds one random number of [0, 0.5) to a patch."""
    assert raw.shape == (1, *INPUT.shape) and raw.dtype == torch.float32
    return raw + 0.5 * torch.rand((), generator=generator, device=raw.device)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_own_augmentation_of_a_sample_depends_on_the_sample_alone(crop, workers, batch_size):
    sampler = Sampler([crop], INPUT, TARGET, 3, augmentation=EVERYTHING)
    blocks = Blocks([crop], sampler, INPUT, TARGET)
    plain = joined(list(Batches(blocks, 1, 0, CPU).between(0, 6)))
    reference = joined(list(Batches(blocks, 1, 0, CPU, own_augmentation=brighten).between(0, 6)))
    batches = Batches(blocks, batch_size, workers, CPU, own_augmentation=brighten)
    found = joined(list(batches.between(0, 6)))
    assert torch.equal(found[0], reference[0]) and torch.equal(found[1], plain[1])
    added = (found[0] - plain[0]).flatten(1)
    assert (added.max(1).values - added.min(1).values < 1e-5).all()
    assert len(set(added.mean(1).round(decimals=4).tolist())) == 6


def test_own_augmentation_comes_after_the_built_in_changes(crop):
    change = Augmentation(intensity_probability=1.0, gamma_range=(2.0, 2.0))
    sampler = Sampler([crop], INPUT, TARGET, 3, augmentation=change)
    blocks = Blocks([crop], sampler, INPUT, TARGET)
    (changed,) = Batches(blocks, 4, 0, CPU).between(0, 4)
    seen = []

    def keep(raw: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        seen.append(raw.clone())
        return torch.zeros_like(raw)

    (batch,) = Batches(blocks, 4, 0, CPU, own_augmentation=keep).between(0, 4)
    assert torch.equal(torch.stack(seen), changed.raw)
    assert (batch.raw == 0).all()


def test_validation_is_not_augmented(root):
    def forbidden(raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        raise AssertionError

    settings = config(root, augment=forbidden)
    data = open_data(settings)
    assert len(list(validation_batches(settings, data, CPU).between(0, len(data.blocks)))) > 0
    with pytest.raises(AssertionError):
        next(training_batches(settings, data, CPU).between(0, 1))


# A user's own weights of samples


def test_crops_are_weighted_by_the_last_pattern_that_fits(root):
    split(root, ("train", 1, "mito,nuc"), ("train", 2, "mito,nuc"), ("train", 3, "mito"))
    weights = {"set/*": 2.0, "*/crop3": 0.5}
    sampler = open_data(config(root, crop_sampling_weights=weights)).sampler
    assert sampler.crop_weights.tolist() == [2.0, 2.0, 0.5]


def test_a_pattern_that_fits_no_training_crop_is_refused(root):
    with pytest.raises(UserError, match=r"crop_sampling_weights\['set/crop2'\].*'set/crop1'"):
        open_data(config(root, crop_sampling_weights={"set/crop2": 2.0}))


def test_classes_are_weighted_by_their_names(root):
    sampler = open_data(config(root, class_sampling_weights={"nuc": 3.0})).sampler
    assert sampler.class_weights.tolist() == [1.0, 3.0]


def test_weights_that_leave_no_class_are_refused(root):
    with pytest.raises(UserError, match=r"class_sampling_weights.*above 0"):
        open_data(config(root, class_sampling_weights={"mito": 0.0, "nuc": 0.0}))


def test_without_weights_of_its_own_a_run_has_none(root):
    sampler = open_data(config(root)).sampler
    assert sampler.class_weights is None and sampler.crop_weights is None
