"""A network over a volume in blocks: as over the whole volume, every voxel once, at any size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import expit
from torch import nn
from torch.nn import functional

from common.data.samples.sampling import Patch
from common.data.volumes.ngff import write_multiscale
from common.data.volumes.raw import Raw, open_raw
from common.errors import UserError
from common.infer.networks import window as window_module
from common.infer.networks.window import Window
from common.infer.predicting import blocks, conveyor, encode, tiling
from common.infer.predicting import plan as plan_module
from common.infer.predicting.conveyor import BlockValues
from common.infer.predicting.plan import BlockPlan
from common.model import cosem, shapes, unet
from common.model.shapes import Shapes

CPU = torch.device("cpu")
NM = (8.0, 8.0, 8.0)


def patch(shape: int | Sequence[int], scale: Sequence[float] = NM) -> Patch:
    return Patch((shape,) * 3 if isinstance(shape, int) else tuple(shape), tuple(scale))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def opened(tmp_path) -> Callable[..., Raw]:
    """Writes a volume and opens it at `wanted` nm (its own voxel size unless given)."""
    numbers = itertools.count()

    def write(
        volume: np.ndarray,
        scale: Sequence[float] = NM,
        origin: Sequence[float] = (0, 0, 0),
        wanted: Sequence[float] | None = None,
    ) -> Raw:
        path = tmp_path / f"raw{next(numbers)}"
        write_multiscale(path, volume, scale, origin, chunk=8)
        return open_raw(path, wanted or scale)

    return write


class Valid(nn.Module):
    """Unpadded, with one pooling by 2: n to n - 8, for even n; fixed random weights."""

    def __init__(self, classes: int = 2):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv3d(1, 3, 3)
        self.low = nn.Conv3d(3, 3, 3)
        self.last = nn.Conv3d(6, classes, 3)
        self.head = nn.Conv3d(classes, classes, 1)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        if any(n % 2 for n in raw.shape[2:]):
            raise ValueError("only even sizes")
        fine = self.first(raw).tanh()
        low = self.low(functional.max_pool3d(fine, 2))
        coarse = functional.interpolate(low, scale_factor=2)
        cropped = fine[:, :, 2:-2, 2:-2, 2:-2]
        return self.head(self.last(torch.cat([coarse, cropped], 1)).tanh())


class Padded(nn.Module):
    """Zero-padded: as many voxels out as in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, 2, 5, padding=2)
        )

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return self.layers(raw)


class Cropping(nn.Module):
    """The raw without `before` voxels at the beginning of each axis and `after` at its end."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        inside = [slice(self.before, n - self.after) for n in raw.shape[2:]]
        return raw[:, :, *inside]


def shapes_of(model: nn.Module) -> Shapes:
    return Shapes(model, lambda net, raw: net(raw))


@torch.inference_mode()
def window_of(model: nn.Module, input: Patch, output: Patch) -> Window:
    return window_module.with_agreement(
        window_module.find_window(shapes_of(model), input, output), model, CPU
    )


def computed(
    plan: BlockPlan,
    numbers: Sequence[int],
    forward: Callable,
    to_stored: Callable = lambda logits: (logits, blocks.fine),
) -> list[BlockValues]:
    predictor = blocks.Predictor([blocks.Pass(plan, forward)])
    return list(conveyor.compute_blocks([predictor], numbers, to_stored=to_stored, device=CPU))


def everything(
    plan: BlockPlan,
    forward: Callable,
    to_stored: Callable = lambda logits: (logits, blocks.fine),
) -> np.ndarray:
    """(classes, z, y, x) of all blocks. Fails unless every voxel is given exactly once."""
    written = None
    times = np.zeros(plan.grid.shape, int)
    for block in computed(plan, plan.blocks, forward, to_stored):
        values = block.values
        start, stop = plan.output_box(block.number)
        where = tuple(map(slice, start, stop))
        written = (
            np.zeros((len(values), *plan.grid.shape), values.dtype) if written is None else written
        )
        written[(slice(None), *where)] = values
        times[where] += 1
    assert (times == 1).all()
    return written


def in_blocks(
    raw: Raw,
    window: Window,
    model: Callable,
    lower=None,
    upper=None,
    largest: int = 128,
    scale=(),
) -> np.ndarray:
    low, high = raw.grid.box()
    return everything(
        plan_module.plan_blocks(
            raw,
            window,
            low if lower is None else np.array(lower),
            high if upper is None else np.array(upper),
            scale=scale,
            largest=largest,
        ),
        model,
    )


@torch.inference_mode()
def whole(model: nn.Module, volume: np.ndarray, before: int, after: int) -> np.ndarray:
    """Logits of a volume in one forward pass, with so many mirrored voxels around it.

    One more behind it where that makes a size even.
    """
    raw = (
        np.pad(
            volume,
            [(before, after + (n + before + after) % 2) for n in volume.shape],
            mode="reflect",
        ).astype(np.float32)
        / 255
    )
    return model(torch.from_numpy(raw)[None, None])[0].numpy()


# What sizes a network takes


def test_the_unet_grows_in_steps_of_4():
    with torch.device("meta"):
        model = unet.build_unet(("mito", "er"), 8)
    assert window_module.find_window(shapes_of(model), patch(68), patch(28)).steps == ((4, 4),) * 3


def test_the_cosem_network_grows_in_steps_of_18():
    with torch.device("meta"):
        model = cosem.build_finetune(("mito",), cosem.load_backbone(pretrained=False))
    window = window_module.find_window(shapes_of(model), patch(216), patch(30))
    assert window.steps == ((18, 18),) * 3
    assert (
        window.holding((31, 48, 49)).input.shape,
        window.holding((31, 48, 49)).output.shape,
    ) == ((234, 234, 252), (48, 48, 66))


STRIDED = nn.Sequential(
    nn.Conv3d(1, 2, 2, stride=2),
    nn.Conv3d(2, 2, 3),
    nn.Upsample(scale_factor=2),
    nn.Conv3d(2, 1, 1),
)


@pytest.mark.parametrize(
    ("model", "input", "output", "steps"),
    [
        (STRIDED, patch(20), patch(16), (2, 2)),
        (
            nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 2, stride=2)),
            patch(10),
            patch(4, (16, 16, 16)),
            (2, 1),
        ),
        (
            nn.Sequential(nn.Conv3d(1, 2, 3), nn.Upsample(scale_factor=2)),
            patch(10),
            patch(16, (4, 4, 4)),
            (1, 2),
        ),
        (Padded(), patch(12), patch(12), (1, 1)),
        (Valid(), patch(20), patch(12), (2, 2)),
        (
            Cropping(1, 2),
            patch((9, 10, 11), (5.24, 4.6, 4.6)),
            patch((6, 7, 8), (5.24, 4.6, 4.6)),
            (1, 1),
        ),
    ],
    ids=[
        "strided and upsampled",
        "coarser output",
        "finer output",
        "padded",
        "pooled",
        "voxel sizes that floats do not hold",
    ],
)
def test_a_network_grows_in_whole_steps_of_its_strides(model, input, output, steps):
    assert window_module.find_window(shapes_of(model), input, output).steps == (steps,) * 3


class OneSize(nn.Module):
    """Takes 12^3 voxels only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(1, 2, 3)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        assert raw.shape[2:] == (12, 12, 12)
        return self.layer(raw)


class LooksAtValues(OneSize):
    """Cannot run without values."""

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return self.layer(raw) * (2 if raw.mean().item() > 0 else 1)


@pytest.mark.parametrize("model", [OneSize(), LooksAtValues()])
def test_a_network_of_one_size_or_that_needs_values_does_not_grow(model):
    window = window_of(model, patch(12), patch(10))
    assert window.steps == ((0, 0),) * 3 and window.agree


def test_probing_leaves_the_network_as_it_is():
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    window_module.find_window(shapes_of(model), patch(6), patch(4))
    assert all(
        torch.equal(before[name], value) and value.device == CPU
        for name, value in model.state_dict().items()
    )


def test_an_axis_of_one_voxel_does_not_grow():
    model = nn.Conv3d(1, 1, (1, 3, 3))
    assert window_module.find_window(
        shapes_of(model), patch((1, 8, 8)), patch((1, 6, 6))
    ).steps == (
        (0, 0),
        (1, 1),
        (1, 1),
    )


def test_memory_is_counted_from_the_tensors_that_are_alive():
    """The second layer holds what it takes and what it gives; the caller holds the raw."""
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 16, 3), nn.Conv3d(16, 1, 3))
    voxels = 12**3 + 4 * 10**3 + 16 * 8**3
    assert shapes_of(model).forward_bytes((12, 12, 12)) == shapes.WORKSPACE * 4 * voxels


# Whether windows agree where they overlap


@pytest.mark.parametrize(
    ("model", "input", "output", "agree"),
    [
        (Valid(), patch(20), patch(12), True),
        (nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)).eval(), patch(12), patch(10), True),
        (STRIDED, patch(20), patch(16), True),
        (Padded(), patch(12), patch(12), False),
        (nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2)), patch(12), patch(10), False),
        (nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2)), patch(66), patch(64), False),
        (nn.Conv3d(1, 1, (1, 3, 3)), patch((1, 8, 8)), patch((1, 6, 6)), True),
        (nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1)), patch((1, 8, 8)), patch((1, 8, 8)), False),
    ],
    ids=[
        "valid",
        "batch norm",
        "strided",
        "padded",
        "instance norm",
        "instance norm over a large window",
        "slices",
        "padded slices",
    ],
)
def test_windows_agree_where_neither_padding_nor_normalisation_reaches(model, input, output, agree):
    window = window_of(model, input, output)
    assert window.agree == agree
    assert (window.input.shape, window.output.shape) == (input.shape, output.shape)


def test_normalisation_over_a_window_shows_however_large_it_is():
    """The means of noise alone are too much alike."""
    window = Window(patch(128), patch(128), ((1, 1),) * 3)
    assert not window_module.with_agreement(window, lambda raw: raw - raw.mean(), CPU).agree
    assert window_module.with_agreement(window, lambda raw: raw - 0.5, CPU).agree


def test_a_small_signal_on_a_large_constant_is_judged_like_any_other():
    """An output layer starts at the classes' frequencies, with weights near 0."""
    model = Padded()
    with torch.no_grad():
        model.layers[2].weight.mul_(1e-4)
        model.layers[2].bias.fill_(-5)
    assert not window_of(model, patch(12), patch(12)).agree


# Blocks


SIZES = [(40, 33, 27), (7, 19, 30), (1, 24, 13), (5, 5, 5)]


@pytest.mark.parametrize("largest", [8, 15, 128])
@pytest.mark.parametrize("shape", SIZES)
def test_blocks_of_an_unpadded_network_equal_the_whole_volume(opened, shape, largest):
    """Also of volumes that blocks do not divide; and nothing is moved by a voxel."""
    model = Valid()
    volume = noise(*shape)
    reference = whole(model, volume, 4, 4)[(slice(None), *map(slice, shape))]
    found = in_blocks(
        opened(volume), window_of(model, patch(20), patch(12)), model, largest=largest
    )
    assert found.shape == (2, *shape) and reference.std() > 0.03
    np.testing.assert_allclose(found, reference, atol=1e-5)


@pytest.mark.parametrize("largest", [5, 16, 128])
@pytest.mark.parametrize("context", [(0, 0), (3, 3), (7, 7)])
def test_the_identity_gives_the_raw_bit_for_bit(opened, context, largest):
    """Every voxel is written, where it was read."""
    volume = noise(23, 40, 9)
    model = Cropping(*context)
    window = window_of(model, patch(12 + sum(context)), patch(12))
    plan = plan_module.plan_blocks(
        opened(volume), window, np.full(3, -4.0), np.array([23, 40, 9]) * 8 - 4.0, largest=largest
    )

    def to_stored(logits: torch.Tensor) -> tuple[torch.Tensor, blocks.Verdict]:
        return logits.mul(255).round().to(torch.uint8), blocks.fine

    found = everything(plan, model, to_stored)
    np.testing.assert_array_equal(found[0], volume)


def test_every_voxel_of_every_box_is_written_once_and_from_windows_that_hold_it(opened):
    """Over many sizes, steps, blocks and voxel sizes."""
    raw = opened(noise(16, 16, 16))
    random = np.random.default_rng(0)
    for _ in range(100):
        steps = tuple((s, s) for s in random.choice([0, 1, 2, 3, 4, 18], 3).tolist())
        size = tuple(
            int(n * max(s, 1)) for n, (s, _) in zip(random.integers(1, 6, 3), steps, strict=True)
        )
        window = Window(patch([n + 10 for n in size]), patch(size), steps, bool(random.integers(2)))
        scale = (
            ()
            if random.random() < 0.5
            else tuple(random.choice([3.0, 5.0, 8.0, 12.0, 16.0, 40.0], 3))
        )
        upper = random.integers(1, 90, 3) * 4.0
        plan = plan_module.plan_blocks(
            raw, window, np.full(3, -4.0), upper, scale=scale, largest=int(random.integers(3, 60))
        )
        times = np.zeros(plan.grid.shape, int)
        assert (plan.grid.box()[0] <= -4 + 1e-6).all() and (
            plan.grid.box()[1] >= upper - 1e-6
        ).all()
        assert all(b % c == 0 for b, c in zip(plan.block_shape, plan.chunk_shape, strict=True))
        for number in plan.blocks:
            start, stop = plan.output_box(number)
            times[tuple(map(slice, start, stop))] += 1
            first, last = plan.network_box(number)
            ratio = plan.grid.scale / window.output.scale
            assert (first <= start * ratio + 1e-6).all() and (last >= stop * ratio - 1e-6).all()
            for axis, starts in enumerate(plan.window_starts(number)):
                given = {v for s in starts for v in range(s, s + plan.window.output.shape[axis])}
                assert set(range(first[axis], last[axis])) <= given
        assert (times == 1).all()


def test_blocks_are_one_window_from_a_whole_step_on_and_chunks_can_be_halved(opened):
    raw = opened(noise(8, 8, 8))
    for step, largest, n in itertools.product(
        (1, 3, 4, 18), (20, 100, 256), (19, 77, 129, 300, 513)
    ):
        window = Window(patch(2 * step + 8), patch(2 * step), ((step, step),) * 3)
        for scale in ((), (5.0, 5.0, 5.0)):
            plan = plan_module.plan_blocks(
                raw, window, np.full(3, -4.0), np.full(3, n * 8 - 4.0), scale=scale, largest=largest
            )
            assert all(
                len(starts) == 1
                for number in plan.blocks[:30]
                for starts in plan.window_starts(number)
            )
        plan = plan_module.plan_blocks(
            raw, window, np.full(3, -4.0), np.full(3, n * 8 - 4.0), largest=largest
        )
        assert all((plan.network_box(number)[0] % step == 0).all() for number in plan.blocks[:30])
        assert plan.chunk_shape[0] % 2 == 0 or plan.chunk_shape[0] >= n
        assert plan.block_shape[0] <= max(largest, 2 * step) + 4 * step


@pytest.mark.parametrize("steps", [(0, 0), (1, 1)])
def test_a_network_of_one_size_is_tiled(opened, steps):
    """Its windows stand side by side, several to a block; those at the end stick out."""
    volume = noise(25, 11, 30)
    model = nn.Conv3d(1, 2, 3)
    window = Window(patch(12), patch(10), (steps,) * 3)
    reference = whole(model, volume, 1, 1)[:, :25, :11, :30]
    np.testing.assert_allclose(
        in_blocks(opened(volume), window, model, largest=22), reference, atol=1e-6
    )


# Where windows do not agree


def blended(model: nn.Module, volume: np.ndarray, n: int) -> np.ndarray:
    """Over the whole volume at once, weights written out.

    Windows of n stand on a lattice of n / 2, from before voxel 0 on.
    """
    pad = 2 * n
    distance = (np.arange(n) - (n - 1) / 2) / (n / 8)
    raw = np.pad(volume, pad, mode="reflect").astype(np.float32) / 255
    g = np.exp(-(distance**2) / 2)
    weight = np.maximum(g[:, None, None] * g[:, None] * g, 1e-3)
    total = np.zeros((2, *raw.shape))
    weights = np.zeros(raw.shape)
    for corner in itertools.product(
        *(range(pad - n // 2, pad + size, n // 2) for size in volume.shape)
    ):
        where = tuple(slice(a, a + n) for a in corner)
        with torch.inference_mode():
            total[(slice(None), *where)] += (
                model(torch.from_numpy(raw[where])[None, None])[0].numpy() * weight
            )
        weights[where] += weight
    inside = tuple(slice(pad, pad + size) for size in volume.shape)
    return total[(slice(None), *inside)] / weights[inside]


@pytest.mark.parametrize("shape", [(20, 30, 17), (3, 12, 12), (1, 5, 26)])
def test_a_padded_network_is_the_weighted_mean_over_overlapping_windows(opened, shape):
    volume = noise(*shape)
    model = Padded()
    window = window_of(model, patch(12), patch(12))
    np.testing.assert_allclose(
        in_blocks(opened(volume), window, model), blended(model, volume, 12), atol=1e-5
    )


@pytest.mark.parametrize(("alone", "largest_batch"), [(False, 3), (True, 1)])
def test_windows_that_go_through_together_give_the_same(opened, monkeypatch, alone, largest_batch):
    volume = noise(20, 30, 17)
    model = Padded()
    window = replace(window_of(model, patch(12), patch(12)), alone=alone)
    raw = opened(volume)
    one_by_one = in_blocks(raw, window, model)
    monkeypatch.setitem(tiling.TOGETHER, "cpu", 3 * 12**3)
    batches = []

    def counted(raw: torch.Tensor) -> torch.Tensor:
        batches.append(len(raw))
        return model(raw)

    np.testing.assert_allclose(in_blocks(raw, window, counted), one_by_one, atol=1e-5)
    assert max(batches) == largest_batch


def test_blended_blocks_meet_without_seams(opened):
    """The windows stand where they stand, whatever the blocks."""
    volume = noise(20, 37, 30)
    model = Padded()
    window = window_of(model, patch(12), patch(12))
    raw = opened(volume)
    np.testing.assert_array_equal(
        in_blocks(raw, window, model, largest=12), in_blocks(raw, window, model, largest=128)
    )


# Places


PADDED_AND_POOLED = nn.Sequential(
    nn.Conv3d(1, 2, 3, padding=1), nn.MaxPool3d(4), nn.Upsample(scale_factor=4)
)


@pytest.mark.parametrize("scale", [NM, (4.0, 8.0, 16.0)])
@pytest.mark.parametrize("largest", [8, 128])
@pytest.mark.parametrize(
    ("model", "input", "output"),
    [(Valid(), patch(20), patch(12)), (PADDED_AND_POOLED, patch(16), patch(16))],
    ids=["pooled", "padded and pooled"],
)
def test_a_box_has_the_values_of_the_whole_volume_wherever_it_begins(
    opened, model, input, output, largest, scale
):
    """A pooling takes the voxels together that it takes together in the whole volume."""
    raw = opened(noise(30, 34, 32), origin=(-12, 400, 7))
    window = window_of(model, input, output)
    assert window.agree == isinstance(model, Valid)
    # in voxels of the network; along x whole voxels of 16 nm, too
    first = np.array([3, 5, 10])
    last = np.array([17, 22, 26])
    corner = raw.grid.box()[0]
    box = corner + first * NM, corner + last * NM
    part = in_blocks(raw, window, model, *box, largest=largest, scale=scale)
    everywhere = in_blocks(raw, window, model, scale=scale)
    ratio = np.divide(NM, scale)
    where = [slice(*ends) for ends in zip(first * ratio, last * ratio, strict=True)]
    where = [slice(int(along.start), int(along.stop)) for along in where]
    # at the end of the box linear interpolation repeats nothing that is not at that of the volume
    np.testing.assert_allclose(part, everywhere[:, *where], atol=1e-5)


def test_windows_lie_on_voxels_of_the_raw_wherever_the_box_begins(opened):
    """The box is moved down by less than a voxel, so that raw is not interpolated."""
    volume = noise(20, 20, 20)
    model = Cropping(2, 2)
    raw = opened(volume, origin=(3, 100, 0))
    window = window_of(model, patch(12), patch(8))
    lower = np.array([3 - 4 + 8 + 5, 100 - 4 + 16.0, -4 + 7.9])
    plan = plan_module.plan_blocks(raw, window, lower, np.add(lower, [40, 64, 16]), largest=8)
    np.testing.assert_allclose(plan.grid.box()[0], [3 - 4 + 8, 100 - 4 + 16, -4])
    assert plan.grid.shape == (6, 8, 3)
    np.testing.assert_array_equal(np.rint(everything(plan, model)[0] * 255), volume[1:7, 2:10, 0:3])


def test_noise_of_nm_adds_no_voxel(opened):
    """Voxels of 5.24 nm, and a box whose corners are rounded to hundredths of a nm."""
    raw = opened(noise(24, 24, 24), scale=(5.24,) * 3, origin=(2.62, 2.62, 2.62))
    window = window_of(Cropping(2, 2), patch(12, (5.24,) * 3), patch(8, (5.24,) * 3))
    for first in (1, 3, 7):
        lower = first * np.full(3, 5.24) + 0.003
        plan = plan_module.plan_blocks(raw, window, lower, lower + 13 * 5.24, largest=8)
        np.testing.assert_allclose(plan.grid.box()[0], lower, atol=0.004)
        assert plan.grid.shape == (13, 13, 13)


def test_an_odd_context_sees_the_raw_as_in_training(opened):
    """16 of 21 voxels have their centre between voxels, of which training takes the lower."""
    volume = noise(30, 30, 30)
    model = Cropping(3, 2)
    window = window_of(model, patch(21), patch(16))
    np.testing.assert_array_equal(
        np.rint(in_blocks(opened(volume), window, model, largest=8)[0] * 255), volume
    )


def linear(volume: np.ndarray, grid, scale: Sequence[float], origin: Sequence[float]) -> np.ndarray:
    """A volume interpolated at the voxel centres of a grid; its first centre is at `origin`."""
    axes = [
        (o + np.arange(n) * s - a) / b
        for o, n, s, a, b in zip(grid.origin, grid.shape, grid.scale, origin, scale, strict=True)
    ]
    return ndimage.map_coordinates(
        volume.astype(float), np.meshgrid(*axes, indexing="ij"), order=1, mode="mirror"
    )


@pytest.mark.parametrize(
    ("model", "input", "output", "margin"),
    [(Valid(), 20, 12, 4), (Padded(), 12, 12, None)],
    ids=["valid", "padded"],
)
@pytest.mark.parametrize("largest", [16, 128])
def test_twice_coarser_voxels_are_block_means_of_the_logits(
    opened, model, input, output, margin, largest
):
    volume = noise(24, 22, 20)
    fine = whole(model, volume, margin, margin) if margin else blended(model, volume, 12)
    found = in_blocks(
        opened(volume),
        window_of(model, patch(input), patch(output)),
        model,
        largest=largest,
        scale=(16, 16, 16),
    )
    reference = fine.reshape(2, 12, 2, 11, 2, 10, 2).mean((2, 4, 6))
    np.testing.assert_allclose(found, reference, atol=1e-5)


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("largest", [9, 128])
def test_finer_voxels_are_interpolated_logits(opened, largest, grows):
    volume = noise(24, 22, 20)
    model = Valid() if grows else nn.Conv3d(1, 2, 3)
    lost = 4 if grows else 1
    around = whole(model, volume, lost + 2, lost + 2)  # two voxels more on every side
    raw = opened(volume, origin=(40, 0, 8))
    window = (
        window_of(model, patch(20), patch(12))
        if grows
        else Window(patch(12), patch(10), ((0, 0),) * 3)
    )
    plan = plan_module.plan_blocks(raw, window, *raw.grid.box(), scale=(5, 5, 5), largest=largest)
    assert plan.grid.shape == (39, 36, 32) and np.allclose(
        plan.grid.origin, raw.grid.origin - 4 + 2.5
    )
    reference = [linear(logits, plan.grid, NM, raw.grid.origin - 16) for logits in around]
    np.testing.assert_allclose(everything(plan, model), reference, atol=1e-4)


def test_voxels_that_are_not_cubes(opened):
    volume = noise(9, 20, 22)
    scale = (30.0, 8.0, 6.0)
    model = nn.Conv3d(1, 1, (1, 3, 5))
    window = window_of(model, patch((5, 12, 12), scale), patch((5, 10, 8), scale))
    raw = np.pad(volume, ((0, 0), (1, 1), (2, 2)), mode="reflect").astype(np.float32) / 255
    with torch.inference_mode():
        reference = model(torch.from_numpy(raw)[None, None])[0].numpy()
    np.testing.assert_allclose(
        in_blocks(opened(volume, scale), window, model, largest=7), reference, atol=1e-6
    )


def test_raw_of_another_voxel_size_is_interpolated_as_in_training(opened):
    """10 nm raw for a network of 8 nm."""
    volume = noise(20, 20, 20)
    model = Cropping(0, 0)
    raw = opened(volume, (10, 10, 10), wanted=NM)
    plan = plan_module.plan_blocks(
        raw, window_of(model, patch(8), patch(8)), np.full(3, 15.0), np.full(3, 160.0), largest=8
    )
    np.testing.assert_allclose(plan.grid.box()[0], 15)
    reference = linear(volume, plan.grid, (10, 10, 10), (0, 0, 0)) / 255
    np.testing.assert_allclose(everything(plan, model)[0], reference, atol=1e-4)


def test_a_target_coarser_than_the_raw(opened):
    """8 nm in, 16 nm out: a voxel of the output is the mean of the 2^3 voxels that it covers."""
    volume = noise(20, 16, 12)
    model = nn.Sequential(Cropping(2, 2), nn.AvgPool3d(2))
    window = window_of(model, patch(12), patch(4, (16, 16, 16)))
    found = in_blocks(opened(volume), window, model, largest=3)
    np.testing.assert_allclose(
        found[0] * 255, volume.reshape(10, 2, 8, 2, 6, 2).mean((1, 3, 5)), atol=1e-3
    )


def halves(volume: np.ndarray) -> np.ndarray:
    return volume.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def test_a_target_finer_than_the_raw(opened):
    volume = noise(20, 16, 12)
    model = nn.Sequential(Cropping(2, 2), nn.Upsample(scale_factor=2))
    found = in_blocks(
        opened(volume), window_of(model, patch(12), patch(16, (4, 4, 4))), model, largest=9
    )
    np.testing.assert_array_equal(np.rint(found[0] * 255), halves(volume))


def test_windows_of_one_size_keep_to_whole_voxels_of_the_raw(opened):
    """13 voxels to 17 halves: windows begin at every 16th, and lack the same half in all."""
    volume = noise(20, 16, 12)
    model = nn.Sequential(Cropping(2, 2), nn.Upsample(scale_factor=2), Cropping(1, 0))
    window = Window(patch(13), patch(17, (4, 4, 4)), ((0, 0),) * 3)
    found = in_blocks(opened(volume), window, model, largest=9)
    moved = halves(np.pad(volume, (0, 1), mode="reflect"))[1:41, 1:33, 1:25]
    np.testing.assert_array_equal(np.rint(found[0] * 255), moved)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_put_together_and_many_are_made_in_a_block(opened, axis):
    """A 2-D network along any axis: one slice a window, a block has many."""
    volume = noise(17, 20, 23)
    model = nn.Conv2d(1, 2, 3)
    shape = np.insert([10, 10], axis, 1)
    window = window_module.find_window(
        lambda s: tuple(n - 2 if i != axis else n for i, n in enumerate(s)),
        patch(shape),
        patch([n - 2 if n > 1 else 1 for n in shape]),
    )
    plan = plan_module.plan_blocks(
        opened(volume), window, np.full(3, -4.0), np.array(volume.shape) * 8 - 4.0, largest=10
    )
    assert plan.block_shape[axis] > 4
    found = everything(plan, lambda raw: model(raw.squeeze(2 + axis)).unsqueeze(2 + axis))
    padded = (
        np.pad(volume, [(0, 0) if i == axis else (1, 1) for i in range(3)], mode="reflect").astype(
            np.float32
        )
        / 255
    )
    with torch.inference_mode():
        slices = [
            model(torch.from_numpy(padded.take(k, axis))[None, None])[0].numpy()
            for k in range(volume.shape[axis])
        ]
    np.testing.assert_allclose(found, np.stack(slices, axis + 1), atol=1e-6)


# Raw


def test_blocks_whose_raw_is_black_are_told(opened):
    volume = noise(30, 10, 10) | 1
    volume[8:] = 0
    raw = opened(volume)
    plan = plan_module.plan_blocks(
        raw, Window(patch(10), patch(10), ((1, 1),) * 3), *raw.grid.box(), largest=10
    )
    assert [block.blank for block in computed(plan, [0, 1, 2], Cropping(0, 0))] == [
        False,
        True,
        True,
    ]


def test_blocks_are_given_in_the_order_asked_for(opened):
    plan = plan_module.plan_blocks(
        opened(noise(20, 10, 10)),
        Window(patch(4), patch(4), ((1, 1),) * 3),
        np.full(3, -4.0),
        np.array([156.0, 76, 76]),
        largest=4,
    )
    assert [block.number for block in computed(plan, [7, 2, 11], Cropping(0, 0))] == [7, 2, 11]


def test_a_damaged_chunk_ends_the_run_with_its_name(opened):
    raw = opened(noise(20, 10, 10))
    (raw.level.path / "1/0/0").write_bytes(b"damaged")
    window = Window(patch(4), patch(4), ((1, 1),) * 3)
    plan = plan_module.plan_blocks(raw, window, *raw.grid.box(), largest=4)
    with pytest.raises(UserError, match=f"{raw.level.path}: .* cannot be decoded"):
        computed(plan, range(20), Cropping(0, 0))


# What is stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_probabilities_are_stored_as_255ths(dtype, layout):
    logits = (5 * torch.randn(1, 3, 9, 40, 30)).to(dtype).contiguous(memory_format=layout)[0]
    before = logits.clone()
    stored = encode.encode(logits, "probability", torch.uint8).values
    np.testing.assert_array_equal(stored, np.rint(255 * expit(logits.float().numpy())))
    assert stored.dtype == torch.uint8 and stored.is_contiguous() and torch.equal(logits, before)


def test_probabilities_and_logits_are_stored_as_floats():
    logits = 5 * torch.randn(2, 4, 5, 6)
    np.testing.assert_allclose(
        encode.encode(logits, "probability", torch.float32).values,
        expit(logits.numpy()),
        rtol=1e-5,
    )
    for dtype in (torch.float32, torch.float16):
        stored = encode.encode(logits, "logits", dtype).values
        np.testing.assert_array_equal(stored, logits.to(dtype))


def test_stored_probabilities_become_logits_again():
    for value in range(1, 255):
        stored = np.full((1, 1, 1), value, np.uint8)
        assert expit(encode.decode(stored, "probability"))[0, 0, 0] * 255 == pytest.approx(
            value, abs=1e-3
        )
    ends = encode.decode(np.array([0, 255], np.uint8), "probability")
    np.testing.assert_allclose(ends, [np.log(0.5 / 255), -np.log(0.5 / 255)], rtol=1e-5)
    assert (np.diff(encode.decode(np.arange(256, dtype=np.uint8), "probability")) > 0).all()


def test_stored_floats_become_logits_again():
    logits = np.linspace(-6, 6, 50, dtype=np.float32)
    np.testing.assert_allclose(encode.decode(expit(logits), "probability"), logits, atol=1e-3)
    np.testing.assert_array_equal(
        encode.decode(logits.astype(np.float16), "logits"),
        logits.astype(np.float16).astype(np.float32),
    )
    assert np.isfinite(encode.decode(np.array([0, 1], np.float32), "probability")).all()
