"""VGG16 in three dimensions: counts, inflation against two dimensions, the file of weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F

from common.errors import FileError, UserError
from common.model import published, vgg16
from common.model.vgg16 import DEVIATION, MEAN, STAGES, VGG16UNet, build_vgg16

CLASSES = ("background", "axon", "border")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CELLMAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "torchvision" / vgg16.FILE


def random_weights(stages=STAGES) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weights, given = [], 3
    for stage in stages:
        for width in stage:
            kernel = torch.randn(width, given, 3, 3, generator=generator) / (3 * given**0.5)
            weights.append((kernel, torch.randn(width, generator=generator) * 0.1))
            given = width
    return weights


def as_torchvision(weights) -> dict[str, torch.Tensor]:
    state = {"classifier.0.weight": torch.zeros(2, 2)}
    numbers = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    for number, (kernel, bias) in zip(numbers, weights, strict=True):
        state |= {f"features.{number}.weight": kernel, f"features.{number}.bias": bias}
    return state


def test_the_published_number_of_parameters():
    with torch.device("meta"):
        model = VGG16UNet(len(CLASSES))
    trained = sum(p.numel() for p in model.parameters())
    statistics = sum(b.numel() for name, b in model.named_buffers() if "num_batches" not in name)
    assert (trained, statistics) == (71_229_075, 4_032)
    assert trained + statistics == 71_233_107


def test_raw_that_is_constant_along_z_has_the_features_of_two_dimensions():
    weights = random_weights(STAGES[:3])
    model = VGG16UNet(3, stages=3)
    model.load_encoder(weights)
    section = torch.rand(2, 1, 16, 24)
    raw = section.unsqueeze(2).expand(-1, -1, 8, -1, -1)
    with torch.no_grad():
        found = model.features(raw)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    values = (section.expand(-1, 3, -1, -1) - mean) / deviation
    expected = iter(weights)
    for number, stage in enumerate(STAGES[:3]):
        if number:
            values = F.max_pool2d(values, 2)
        for _ in stage:
            values = F.conv2d(values, *next(expected), padding=1).relu()
        assert found[number].shape[2] == 8 // 2**number
        for z in range(found[number].shape[2]):
            assert (found[number][:, :, z] - values).abs().max() < 1e-5


def test_weights_of_torchvision_are_read_by_their_names(cache, monkeypatch):
    weights = random_weights()
    cache.parent.mkdir(parents=True)
    torch.save(as_torchvision(weights), cache)
    with pytest.raises(UserError, match=r"SHA-256 is .* should begin with 397923af; delete it"):
        vgg16.weights_path()
    digest = hashlib.sha256(cache.read_bytes()).hexdigest()
    renamed = cache.rename(cache.with_name(f"vgg16-{digest[:8]}.pth"))
    monkeypatch.setattr(vgg16, "FILE", renamed.name)
    model = build_vgg16(CLASSES, stages=2)
    kernel, bias = weights[3]
    assert torch.equal(model.encoder[1][1].weight[:, :, 0], kernel / 3)
    assert torch.equal(model.encoder[1][1].bias, bias)


def test_what_a_checkpoint_replaces_is_not_fetched(cache, monkeypatch):
    monkeypatch.setattr(published, "urlopen", None)
    with published.replaced():
        build_vgg16(["mito"], stages=1)
    assert published.are_wanted()


def test_without_network_the_sentence_says_which_file_to_put_where(cache, monkeypatch):
    def offline(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(published, "urlopen", offline)
    with pytest.raises(FileError, match=rf"^{cache}: .*; fetch {vgg16.URL} elsewhere and save it"):
        build_vgg16(CLASSES, stages=1)


def test_random_weights_are_said_aloud(capsys):
    model = build_vgg16(CLASSES, weights="random", stages=1, freeze_encoder=True)
    assert "the encoder of VGG16 is NOT pretrained, and freeze_encoder" in capsys.readouterr().err
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.up.parameters())


def test_what_goes_in_comes_out_in_the_same_shape_and_every_weight_learns():
    model = VGG16UNet(3, stages=2)
    logits = model(torch.rand(2, 1, 8, 12, 8))
    assert logits.shape == (2, 3, 8, 12, 8)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": "cosem"}, "weights = 'cosem'; write imagenet or random"),
        ({"weights": "random", "stages": 6}, "stages = 6; write 1 to 5"),
    ],
)
def test_what_cannot_be_built_is_told(options, sentence):
    with pytest.raises(UserError, match=sentence):
        build_vgg16(CLASSES, **options)


def test_raw_that_is_not_taken_is_told():
    model = VGG16UNet(3, stages=2)
    with pytest.raises(UserError, match="VGG16 takes multiples of 4 voxels, not 10 on an axis"):
        model(torch.rand(1, 1, 8, 10, 8))
    with pytest.raises(
        UserError, match=r"takes 3 channels, .* it is given 2; give raw of 1 or of 3"
    ):
        model(torch.rand(1, 2, 8, 8, 8))
