"""Further input channels: where raw is, turned with it, with values of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.data.samples.batches import training_batches, validation_batches
from common.data.samples.loaders import open_data
from common.data.volumes.ngff import write_multiscale
from common.errors import UserError

CPU = torch.device("cpu")
TURNED = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["z", "y", "x"]},
    "rotate": {"axes": {"z": [-180, 180]}},
}
DISTORTED = {
    "elastic": {"probability": 0.5, "amplitude_nm": 16, "spacing_nm": 80},
    "section_slip": {"probability": 0.5, "max_nm": 16},
}
SPOILT = {
    "blur": {"probability": 1.0, "sigma_nm": (8, 16)},
    "missing_sections": {"probability": 1.0, "number": (2, 4), "fill": "black"},
}
OWN = "lambda raw, generator: 1 - raw"
RAW = "../data/tiny/tiny.zarr/recon-1/em/fibsem-uint8"
MODEL = """
    from torch import nn


    def build_model(classes, in_channels=1):
        return nn.Conv3d(in_channels, len(classes), 5)
    """


@pytest.fixture
def tiny_with(experiment):
    """A tiny experiment whose network takes several channels."""
    return lambda **changes: experiment(files={"model.py": MODEL}, **changes)


def training(config, samples: int = 8) -> list[torch.Tensor]:
    """Raw (B, channels, z, y, x) of the first training batches."""
    batches = training_batches(config, open_data(config), CPU)
    return [batch.raw for batch in batches.between(0, samples)]


def validating(config) -> torch.Tensor:
    batches = validation_batches(config, open_data(config), CPU)
    return torch.cat([batch.raw for batch in batches.between(0, len(batches.blocks))])


def write_channel(tiny, values: np.ndarray, scale=(8, 8, 8), origin=(0, 0, 0)) -> str:
    """A volume in the experiment's folder; its path as data.py has it."""
    write_multiscale(tiny.folder / "mito.zarr", values, scale, origin)
    return "mito.zarr"


@pytest.mark.parametrize("raw", ["uint8", "averaged", "uint16"])
def test_a_channel_made_of_raw_itself_has_exactly_its_patches(tiny_with, raw):
    tiny = tiny_with(
        spatial_transforms=TURNED,
        augmentations=DISTORTED,
        input_channels={"again": RAW},
        num_workers=1 if raw == "uint8" else 0,
    )
    if raw == "averaged":
        tiny.add(
            "input_array_info = {'shape': (10, 10, 10), 'scale': (16, 16, 16)}\n"
            "target_array_info = {'shape': (8, 8, 8), 'scale': (16, 16, 16)}"
        )
    if raw == "uint16":
        values = np.random.default_rng(1).integers(0, 2**16, (56, 56, 56), np.uint16)
        write_multiscale(tiny.raw, values, (8, 8, 8))
    config = tiny.config()
    batches = training(config)
    assert all(torch.equal(batch[:, 0], batch[:, 1]) for batch in batches)
    blocks = validating(config)
    assert torch.equal(blocks[:, 0], blocks[:, 1])
    # and raw is what it is without the channel, read by no worker
    alone = training(tiny.config("input_channels={}", "num_workers=0"))
    assert all(torch.equal(a[:, :1], b) for a, b in zip(batches, alone, strict=True))


def test_changes_of_intensity_leave_channels_as_they_are(tiny_with):
    tiny = tiny_with(
        text=f"augment = {OWN}",
        augmentations=SPOILT,
        gamma_range=(0.5, 2.0),
        contrast_range=(0.5, 1.5),
        noise_std=0.2,
        raw_normalization="zscore",
        spatial_transforms=TURNED,
        input_channels={"again": RAW},
    )
    changed = training(tiny.config())
    plain = training(
        tiny.config(
            augment=None,
            augmentations={},
            gamma_range=(1, 1),
            contrast_range=(1, 1),
            noise_std=0.0,
            raw_normalization="range",
        )
    )
    for a, b in zip(changed, plain, strict=True):
        assert torch.equal(a[:, 1], b[:, 0])
        assert not torch.allclose(a[:, 0], b[:, 0], atol=0.1)


def test_coarser_voxels_beside_those_of_raw_are_read_at_their_places(tiny_with):
    # a ramp along z, 2 nm a grey value, of voxels of 16 nm that begin 4 nm beside those of raw
    z = -36 + 16 * np.arange(34)
    ramp = np.broadcast_to((z[:, None, None] + 40) / 2, (34, 34, 34)).astype(np.uint8)
    tiny = tiny_with()
    path = write_channel(tiny, ramp, (16, 16, 16), (-36, -36, -36))
    config = tiny.config(input_channels={"mito": path})
    data = open_data(config)
    batches = validation_batches(config, data, CPU)
    for batch in batches.between(0, len(batches.blocks)):
        for patch, sample in zip(batch.raw[:, 1], batch.samples, strict=True):
            places = sample.centre[0] + 8 * (np.arange(20) - 9.5)
            expected = torch.from_numpy(((places + 40) / 2 / 255).astype(np.float32))
            expected = expected[:, None, None].expand(20, 20, 20)
            assert torch.allclose(patch, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [
        (np.uint8([0, 255]), {}, (0, 1)),
        (np.uint8([0, 51]), {"range": (0, 102)}, (0, 0.5)),
        (np.uint16([0, 2**16 - 1]), {}, (0, 1)),
        (np.float32([0, 0.25]), {}, (0, 0.25)),
        (np.float16([-4, 4]), {"range": (-4, 12)}, (0, 0.5)),
        (np.bool_([False, True]), {}, (0, 1)),
    ],
)
def test_stored_values_become_0_to_1_as_their_kind_says(tiny_with, values, given, expected):
    tiny = tiny_with()
    low, high = values
    volume = np.full((56, 56, 56), low)
    volume[:, :, 40:] = high
    path = write_channel(tiny, volume)
    patches = validating(tiny.config(input_channels={"mito": {"path": path, **given}}))[:, 1]
    found = patches.unique().numpy()
    assert np.allclose(found, expected, atol=1e-6)


def test_a_channel_ends_with_a_sentence_or_with_the_value_that_is_said(tiny_with):
    tiny = tiny_with()
    # it begins with crop1 and the crops need their surroundings
    path = write_channel(tiny, np.full((54, 54, 54), 255, np.uint8), origin=(16, 16, 16))
    with pytest.raises(UserError, match=r"channel 'mito' is there at .* predict it again with"):
        open_data(tiny.config(input_channels={"mito": path}))
    config = tiny.config(input_channels={"mito": {"path": path, "outside": 0.2}})
    inside = training(config, 16)
    found = torch.cat([batch[:, 1].flatten() for batch in inside]).unique()
    assert np.allclose(found.numpy(), [0.2, 1.0])


def test_a_channel_that_is_missing_is_named_with_its_crop(tiny_with):
    tiny = tiny_with()
    channels = {"mito": "../other/predictions/{dataset}.zarr/{crop}/mito"}
    with pytest.raises(UserError) as error:
        open_data(tiny.config(input_channels=channels))
    lines = str(error.value).splitlines()
    assert "channel 'mito' of tiny/crop1 is missing" in lines[0]
    assert "other/predictions/tiny.zarr/crop2/mito" in lines[1]


@pytest.mark.parametrize(
    ("volume", "sentence"),
    [
        (np.zeros((56, 56, 56), np.uint32), "ids of objects"),
        (np.zeros((56, 56, 56), np.int16), r"of type int16; write 'range' of input_channels"),
        (np.zeros((4, 4, 4), np.uint8), "16 times finer"),
    ],
)
def test_a_volume_that_is_no_channel_is_a_sentence(tiny_with, volume, sentence):
    tiny = tiny_with()
    path = write_channel(tiny, volume, (8, 8, 8) if len(volume) == 56 else (128, 128, 128))
    with pytest.raises(UserError, match=f"channel 'mito' of tiny/crop1: .*{sentence}"):
        open_data(tiny.config(input_channels={"mito": path}))


def test_a_changed_prediction_is_decoded_anew(tiny_with):
    tiny = tiny_with()
    path = write_channel(tiny, np.zeros((56, 56, 56), np.uint8))
    config = tiny.config(input_channels={"mito": path})
    assert not validating(config)[:, 1].any()
    write_channel(tiny, np.full((56, 56, 56), 255, np.uint8))
    assert (validating(config)[:, 1] == 1).all()


@pytest.mark.parametrize(
    ("channels", "sentence"),
    [
        ({"raw": "x.zarr"}, "raw is the first channel"),
        ({"a b": "x.zarr"}, "letters, digits and _"),
        ({"mito": 3}, 'write {"mito": "PATH"}'),
        ({"mito": {"path": "x", "shape": (8, 8, 8)}}, "leave them out"),
        ({"mito": {"path": "x", "range": (1, 1)}}, "low first"),
        ({"mito": {"path": "x", "outside": 2}}, "between 0 and 1"),
        ({"mito": "{crop.name}"}, "only {dataset}, {crop}"),
    ],
)
def test_a_channel_that_is_declared_wrongly_is_a_sentence(tiny_with, channels, sentence):
    with pytest.raises(UserError) as error:
        tiny_with(input_channels=channels).config()
    assert sentence in str(error.value)
    assert "input_channels" in str(error.value)


def test_channels_that_are_named_beside_the_configuration_alone_are_a_sentence(tiny_with):
    tiny = tiny_with()
    data = (tiny.folder / "data.py").read_text()
    tiny.write("data.py", data + f"input_channels = {{'again': {RAW!r}}}\n")
    with pytest.raises(UserError, match=r"data.py has input_channels, .* write `from .data import"):
        tiny.config()
    tiny.add("input_channels = {}")
    assert tiny.config().in_channels == 1


def test_raw_at_a_second_voxel_size_is_refused_by_the_name_it_was_written_under(tiny_with):
    raw = {"shape": (20, 20, 20), "scale": (8, 8, 8)}
    coarse = {"shape": (20, 20, 20), "scale": (32, 32, 32)}
    wanted = r"input_array_info\['coarse'\] = .*: leave out its other ones"
    with pytest.raises(UserError, match=wanted):
        tiny_with(input_array_info={"raw": raw, "coarse": coarse}).config()


def test_raw_and_others_may_be_named_in_input_array_info(tiny_with):
    tiny = tiny_with()
    info = {
        "raw": {"shape": (20, 20, 20), "scale": (8, 8, 8)},
        "mito": {"path": "mito.zarr", "outside": 0.0},
    }
    config = tiny.config(input_array_info=info)
    assert config.input_array_info == {"shape": (20, 20, 20), "scale": (8.0, 8.0, 8.0)}
    assert config.input_channels == {"mito": {"path": "mito.zarr", "outside": 0.0}}
    with pytest.raises(UserError, match="write one"):
        tiny.config(input_array_info=info, input_channels={"er": "er.zarr"})
