"""Networks by the public toolbox's names: its tensors, its logits, its checkpoints."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter

from cellmap_segmentation_challenge import models
from cellmap_segmentation_challenge.models import _unet
from common.errors import UserError

Tensors = dict[str, torch.Tensor]
CONV = {2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
POOL = {2: functional.max_pool2d, 3: functional.max_pool3d}
SMOOTH = {2: "bilinear", 3: "trilinear"}


@pytest.fixture
def narrow(monkeypatch) -> None:
    """U-Nets of few channels: 31 and 90 million weights take seconds to draw."""
    monkeypatch.setattr(_unet, "WIDTHS", (4, 8, 16, 32, 64))


def drawn(model: nn.Module) -> nn.Module:
    """The model in eval mode with every tensor of its state drawn anew, positive where it must."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) * 0.5 + 0.5 if "running_var" in name else 0)
            if "running_var" not in name:
                tensor.normal_(std=0.2)
    return model.eval()


# Each reference computes by the names of tensors that the public toolbox's checkpoints have


def unet_logits(tensors: Tensors, raw: torch.Tensor, interpolated: bool) -> torch.Tensor:
    ndims = raw.ndim - 2

    def twice(values: torch.Tensor, place: str) -> torch.Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            at = f"{place}.double_conv"
            values = CONV[ndims](values, tensors[f"{at}.{conv}.weight"], padding=1)
            values = functional.batch_norm(
                values,
                tensors[f"{at}.{norm}.running_mean"],
                tensors[f"{at}.{norm}.running_var"],
                tensors[f"{at}.{norm}.weight"],
                tensors[f"{at}.{norm}.bias"],
            ).relu()
        return values

    levels = [twice(raw, "inc")]
    for level in range(1, 5):
        pooled = POOL[ndims](levels[-1], 2)
        levels.append(twice(pooled, f"down{level}.maxpool_conv.1"))
    values = levels.pop()
    for level in range(1, 5):
        if interpolated:
            values = functional.interpolate(
                values, scale_factor=2, mode=SMOOTH[ndims], align_corners=True
            )
        else:
            weight, bias = tensors[f"up{level}.up.weight"], tensors[f"up{level}.up.bias"]
            values = TRANSPOSED[ndims](values, weight, bias, stride=2)
        values = twice(torch.cat([levels.pop(), values], 1), f"up{level}.conv")
    return CONV[ndims](values, tensors["outc.conv.weight"], tensors["outc.conv.bias"])


@pytest.mark.parametrize("interpolated", [False, True])
@pytest.mark.parametrize(("name", "ndims"), [("UNet_2D", 2), ("UNet_3D", 3)])
def test_a_unet_gives_the_toolboxs_logits(narrow, name, ndims, interpolated):
    model = drawn(getattr(models, name)(1, 3, trilinear=interpolated))
    raw = torch.rand(2, 1, *[16, 32, 16][-ndims:])
    with torch.no_grad():
        torch.testing.assert_close(
            model(raw), unet_logits(model.state_dict(), raw, interpolated), rtol=1e-4, atol=1e-4
        )


def test_the_unets_have_the_toolboxs_channels():
    with torch.device("meta"):
        two = models.UNet_2D(1, 48).state_dict()
        three = models.UNet_3D(1, 48).state_dict()
        smooth = models.UNet_2D(1, 48, True).state_dict()
    assert two["inc.double_conv.0.weight"].shape == (64, 1, 3, 3)
    assert two["down4.maxpool_conv.1.double_conv.3.weight"].shape == (1024, 1024, 3, 3)
    assert two["up1.up.weight"].shape == (1024, 512, 2, 2)
    assert two["up4.conv.double_conv.0.weight"].shape == (64, 128, 3, 3)
    assert two["outc.conv.weight"].shape == (48, 64, 1, 1)
    assert len(two) == len(three) == 18 * 6 + 4 * 2 + 2
    assert three["up1.conv.double_conv.0.weight"].shape == (512, 1024, 3, 3, 3)
    assert smooth["up1.conv.double_conv.0.weight"].shape == (512, 1024, 3, 3)
    assert smooth["up1.conv.double_conv.3.weight"].shape == (256, 512, 3, 3)


@pytest.mark.parametrize("shape", [(17, 30), (31, 49)])
def test_a_unet_gives_as_many_voxels_as_it_takes(narrow, shape):
    with torch.no_grad():
        assert models.UNet_2D(1, 3).eval()(torch.rand(1, 1, *shape)).shape == (1, 3, *shape)
        shape = (19, *shape)
        assert models.UNet_3D(1, 3).eval()(torch.rand(1, 1, *shape)).shape == (1, 3, *shape)


def resnet_logits(tensors: Tensors, raw: torch.Tensor) -> torch.Tensor:
    """With reflection and instance norm, two levels and two blocks."""
    ndims = raw.ndim - 2

    def padded(values: torch.Tensor, at: str, margin: int) -> torch.Tensor:
        values = functional.pad(values, [margin] * 2 * ndims, mode="reflect")
        return CONV[ndims](values, tensors[f"{at}.weight"], tensors[f"{at}.bias"])

    values = functional.instance_norm(padded(raw, "model.1", 3)).relu()
    for layer in (4, 7):
        weight, bias = tensors[f"model.{layer}.weight"], tensors[f"model.{layer}.bias"]
        values = functional.instance_norm(CONV[ndims](values, weight, bias, 2, 1)).relu()
    for block in (10, 11):
        change = padded(values, f"model.{block}.conv_block.1", 1)
        change = padded(functional.instance_norm(change).relu(), f"model.{block}.conv_block.5", 1)
        values = values + functional.instance_norm(change)
    for layer in (12, 15):
        weight, bias = tensors[f"model.{layer}.weight"], tensors[f"model.{layer}.bias"]
        values = TRANSPOSED[ndims](values, weight, bias, 2, 1, 1)
        values = functional.instance_norm(values).relu()
    return padded(values, "model.19", 3)


@pytest.mark.parametrize("ndims", [2, 3])
def test_a_resnet_gives_the_toolboxs_logits(ndims):
    model = drawn(models.ResNet(ndims=ndims, output_nc=3, ngf=4, n_blocks=2))
    raw = torch.rand(2, 1, *[16, 24, 16][-ndims:])
    with torch.no_grad():
        torch.testing.assert_close(
            model(raw), resnet_logits(model.state_dict(), raw), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("padding", ["same", "replicate", "zeros", "valid"])
def test_a_resnet_of_each_padding(padding):
    settings = {"ngf": 4, "n_blocks": 2, "use_dropout": True, "norm_layer": nn.BatchNorm3d}
    model = models.ResNet(3, output_nc=3, padding_type=padding, **settings)
    given = model(torch.rand(1, 1, 60, 60, 60)).shape
    assert given == (1, 3, *[13 if padding == "valid" else 60] * 3)
    names = model.state_dict()
    first = 0 if padding in ("zeros", "valid") else 1
    assert f"model.{first}.weight" in names and f"model.{first}.bias" not in names


def test_a_resnet_of_another_kind_is_a_sentence():
    with pytest.raises(UserError, match=r"ndims = 4, padding_type = 'none'; write 2 or 3, and one"):
        models.ResNet(4, padding_type="none")


SMALL_VIT = {
    "patches": {"size": (2, 2, 2)},
    "hidden_size": 12,
    "transformer": {
        "mlp_dim": 20,
        "num_heads": 3,
        "num_layers": 2,
        "attention_dropout_rate": 0.0,
        "dropout_rate": 0.1,
    },
    "conv_first_channel": 8,
    "encoder_channels": (2, 3, 4),
    "down_factor": 2,
    "down_num": 0,
    "decoder_channels": (6, 5, 4),
    "skip_channels": (4, 3, 2),
    "n_skip": 3,
    "input_channels": 1,
}


def vit_logits(tensors: Tensors, raw: torch.Tensor) -> torch.Tensor:
    """Of a SMALL_VIT."""

    def conv(values: torch.Tensor, at: str, **options) -> torch.Tensor:
        weight = tensors[f"{at}.weight"]
        padding = options.pop("padding", 1)
        return functional.conv3d(
            values, weight, tensors.get(f"{at}.bias"), padding=padding, **options
        )

    def linear(values: torch.Tensor, at: str) -> torch.Tensor:
        return functional.linear(values, tensors[f"{at}.weight"], tensors[f"{at}.bias"])

    def layer_norm(values: torch.Tensor, at: str) -> torch.Tensor:
        weight, bias = tensors[f"{at}.weight"], tensors[f"{at}.bias"]
        return functional.layer_norm(values, values.shape[-1:], weight, bias, 1e-6)

    def conv_norm(values: torch.Tensor, at: str) -> torch.Tensor:
        mean, variance = tensors[f"{at}.1.running_mean"], tensors[f"{at}.1.running_var"]
        weight, bias = tensors[f"{at}.1.weight"], tensors[f"{at}.1.bias"]
        return functional.batch_norm(conv(values, f"{at}.0"), mean, variance, weight, bias).relu()

    at = "transformer.embeddings.hybrid_model"
    levels = []
    values = raw
    for name in ("inc", "down1.maxpool_conv.1", "down2.maxpool_conv.1"):
        if levels:
            values = functional.max_pool3d(values, 2)
        for number in (0, 2):
            values = conv(values, f"{at}.{name}.double_conv.{number}").relu()
        levels.append(values)
    at = "transformer.embeddings"
    tokens = conv(values, f"{at}.patch_embeddings", stride=2, padding=0).flatten(2).mT
    tokens = tokens + tensors[f"{at}.position_embeddings"]
    for number in range(2):
        at = f"transformer.encoder.layer.{number}"
        normed = layer_norm(tokens, f"{at}.attention_norm")
        parts = [linear(normed, f"{at}.attn.{name}") for name in ("query", "key", "value")]
        heads = [part.view(*part.shape[:2], 3, 4).transpose(1, 2) for part in parts]
        attention = (heads[0] @ heads[1].mT / 2).softmax(-1) @ heads[2]
        tokens = tokens + linear(attention.transpose(1, 2).flatten(2), f"{at}.attn.out")
        between = functional.gelu(linear(layer_norm(tokens, f"{at}.ffn_norm"), f"{at}.ffn.fc1"))
        tokens = tokens + linear(between, f"{at}.ffn.fc2")
    tokens = layer_norm(tokens, "transformer.encoder.encoder_norm")
    values = conv_norm(tokens.mT.unflatten(2, (2, 4, 2)), "decoder.conv_more")
    for number in range(3):
        values = functional.interpolate(values, scale_factor=2, mode="trilinear")
        values = torch.cat([values, levels[2 - number]], 1)
        for name in ("conv1", "conv2"):
            values = conv_norm(values, f"decoder.blocks.{number}.{name}")
    return conv(values, "reg_head.0")


def test_a_vit_v_net_gives_the_toolboxs_logits():
    shape = (16, 32, 16)
    model = drawn(models.ViTVNet(3, SMALL_VIT, img_size=shape))
    raw = torch.rand(2, 1, *shape)
    with torch.no_grad():
        torch.testing.assert_close(
            model(raw), vit_logits(model.state_dict(), raw), rtol=1e-3, atol=1e-4
        )


def test_the_vit_v_net_has_the_toolboxs_sizes():
    with torch.device("meta"):
        model = models.ViTVNet(48)
        assert model(torch.empty(1, 1, 128, 128, 128)).shape == (1, 48, 128, 128, 128)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["transformer.embeddings.position_embeddings"] == (1, 64, 252)
    assert shapes["transformer.embeddings.patch_embeddings.weight"] == (252, 32, 8, 8, 8)
    assert shapes["transformer.encoder.layer.11.ffn.fc1.weight"] == (3072, 252)
    assert shapes["decoder.blocks.0.conv1.0.weight"] == (96, 544, 3, 3, 3)
    assert shapes["decoder.blocks.4.conv1.0.weight"] == (16, 48, 3, 3, 3)


def test_a_vit_v_net_of_another_shape_is_a_sentence():
    with pytest.raises(UserError, match=r"img_size = \(1, 128, 128\); write multiples of 32 x 32"):
        models.ViTVNet(3, img_size=(1, 128, 128))
    model = models.ViTVNet(3, SMALL_VIT, img_size=(8, 8, 8))
    with pytest.raises(RuntimeError, match=r"shape \(16, 8, 8\); this ViTVNet takes img_size"):
        model(torch.rand(1, 1, 16, 8, 8))


@pytest.mark.filterwarnings("ignore:Call to deprecated")
def test_a_swin_transformer_takes_the_arguments_of_public_configurations(capsys):
    model = models.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=12,
        depths=[2, 2, 2, 2],
        num_heads=[3, 6, 12, 24],
        window_size=[7, 7],
        num_classes=3,
        dropout=0.1,
        attention_dropout=0.1,
        stochastic_depth_prob=0.2,
    )
    assert model(torch.rand(1, 1, 64, 32)).shape == (1, 3, 64, 32)
    assert "patch_size = [4, 4] is not used" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="four stages"):
        models.SwinTransformer([2, 2], 12, [2, 2], [3, 6], [7, 7], num_classes=3)


# Checkpoints


def saved_epochs(folder, epochs) -> dict[int, Tensors]:
    """Checkpoints as the toolbox writes them, m_1.pth and so on."""
    states = {}
    for epoch in epochs:
        states[epoch] = {"weight": torch.full((1, 2), float(epoch)), "bias": torch.zeros(1)}
        torch.save(states[epoch], folder / f"m_{epoch}.pth")
    return states


def test_the_last_epoch_is_loaded_whatever_was_touched(tmp_path):
    states = saved_epochs(tmp_path, (1, 9, 10))
    torch.save(states[1], tmp_path / "m_x_11.pth")
    os.utime(tmp_path / "m_1.pth", (2e9, 2e9))
    model = nn.Linear(2, 1)
    assert models.load_latest(f"{tmp_path}/m_{{epoch}}.pth", model) == 10
    assert model.weight.tolist() == [[10, 10]]
    assert models.get_latest_checkpoint_epoch(f"{tmp_path}/m_{{epoch}}.pth") == 10
    # of a pattern nothing but the time is known
    assert models.load_latest(f"{tmp_path}/m_*.pth", model) == 0
    assert model.weight.tolist() == [[1, 1]]


def test_without_a_checkpoint_the_model_stays_and_it_is_said(tmp_path, capsys):
    model = nn.Linear(2, 1)
    before = model.weight.tolist()
    assert models.load_latest(f"{tmp_path}/m_{{epoch}}.pth", model) is None
    assert model.weight.tolist() == before
    assert "no such checkpoint, so that the model keeps its" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_no_print(tmp_path):
    saved_epochs(tmp_path, (1,))
    with pytest.raises(UserError, match=r"m_1.pth: its weights are of another network"):
        models.load_latest(f"{tmp_path}/m_{{epoch}}.pth", nn.Linear(3, 1))


@pytest.fixture
def logs(tmp_path):
    """TensorBoard logs of four epochs of which the third is the best."""
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for epoch, loss in enumerate((0.9, 0.5, 0.1, 0.4), 1):
            writer.add_scalar("validation", loss, 125 * epoch)
    return tmp_path / "logs"


def test_the_best_epoch_is_loaded_and_not_the_one_before_it(tmp_path, logs):
    saved_epochs(tmp_path, (1, 2, 3, 4))
    model = nn.Linear(2, 1)
    assert models.load_best_val(logs, f"{tmp_path}/m_{{epoch}}.pth", model) == 3
    assert model.weight.tolist() == [[3, 3]]
    assert models.get_best_val_epoch(logs, low_is_best=False) == 1
    # means over two epochs: 0.7, 0.3, 0.25
    assert models.get_best_val_epoch(logs, smoothing_window=2) == 4
    with pytest.raises(UserError, match="smoothing_window = 5; write 1 to 4"):
        models.get_best_val_epoch(logs, smoothing_window=5)


def test_without_logs_there_is_no_best(tmp_path, capsys):
    model = nn.Linear(2, 1)
    assert models.load_best_val(tmp_path / "no", f"{tmp_path}/m_{{epoch}}.pth", model) is None
    assert "no scalar 'validation'" in capsys.readouterr().err
