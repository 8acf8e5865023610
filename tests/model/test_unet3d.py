"""The 3-D U-Net: the published counts, what it takes and gives, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import UserError
from common.model.forward import ForwardPass
from common.model.shapes import Shapes
from common.model.unet3d import SameConv3d, build_unet3d
from common.runtime import Precision

CLASSES = ("background", "axon", "border")
TINY = {"widths": (4, 8), "kernel": 3, "in_channels": 1}


def counts(model: nn.Module) -> tuple[int, int]:
    """Trained parameters, and running statistics as Keras counts them."""
    statistics = [b.numel() for name, b in model.named_buffers() if "num_batches" not in name]
    return sum(p.numel() for p in model.parameters()), sum(statistics)


def test_the_published_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = build_unet3d(CLASSES, "published")
    assert counts(model) == (133_942_835, 9_920)
    assert sum(counts(model)) == 133_952_755


def test_rates_of_dropout_go_from_a_tenth_to_a_half():
    with torch.device("meta"):
        model = build_unet3d(CLASSES, "published")
    rates = [level[3].p for level in (*model.down, model.bottom, *model.up)]
    half = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert rates == pytest.approx([*half, 0.5, *reversed(half)])


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_a_convolution_keeps_the_voxels_and_looks_one_further_after_than_before(kernel):
    layer = SameConv3d(1, 1, kernel)
    with torch.no_grad():
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
        raw = torch.zeros(1, 1, 9, 9, 9)
        raw[..., 4, 4, 4] = 1
        reached = torch.nonzero(layer(raw)[0, 0])
    # the output at p sees p - before to p + after: what is in the middle is seen from there
    before, after = (kernel - 1) // 2, kernel // 2
    assert reached.amin(0).tolist() == [4 - after] * 3
    assert reached.amax(0).tolist() == [4 + before] * 3


def test_raw_in_three_channels_is_raw_once_with_the_sum_of_their_kernels():
    torch.manual_seed(0)
    three = build_unet3d(CLASSES, **{**TINY, "in_channels": 3}).eval()
    one = build_unet3d(CLASSES, **TINY).eval()
    weights = three.state_dict()
    weights["down.0.0.weight"] = weights["down.0.0.weight"].sum(1, keepdim=True)
    one.load_state_dict(weights)
    raw = torch.rand(1, 1, 8, 8, 12)
    assert torch.allclose(three(raw), one(raw), atol=1e-6)
    assert torch.equal(three(raw.expand(-1, 3, -1, -1, -1)), three(raw))


def test_patches_grow_by_the_halvings_and_every_weight_learns():
    model = build_unet3d(CLASSES, dropout=(0, 0))
    shapes = Shapes(model, ForwardPass(Precision("fp32", "cpu"), channels_last=False))
    assert shapes.output((16, 24, 32)) == (16, 24, 32)
    assert shapes.step((16, 16, 16)) == 8
    tiny = build_unet3d(CLASSES, **TINY, dropout=(0, 0))
    truth = torch.zeros(2, 8, 8, 8, dtype=torch.long)
    F.cross_entropy(tiny(torch.rand(2, 1, 8, 8, 8)), truth).backward()
    assert all(p.grad is not None for p in tiny.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layout": "large"}, "layout = 'large'; write one of small, published"),
        ({"width": 3}, r"build_unet3d\(width\): the options are widths, kernel, in_channels"),
        ({"widths": (4, 6)}, r"halves the channels of the last level 2 times; write"),
        ({"kernel": 0}, "kernel = 0"),
        ({"dropout": (0.1, 1.0)}, r"dropout = \(0.1, 1.0\); write the parts"),
    ],
)
def test_what_cannot_be_built_is_told(options, sentence):
    with pytest.raises(UserError, match=sentence):
        build_unet3d(CLASSES, **options)


def test_raw_that_is_not_taken_is_told():
    model = build_unet3d(CLASSES, **{**TINY, "in_channels": 3})
    with pytest.raises(UserError, match=r"takes multiples of 4 voxels, not 10 .*write 8 or 12"):
        model(torch.rand(1, 1, 8, 10, 8))
    with pytest.raises(
        UserError, match=r"takes 3 channels, .* it is given 2; give raw of 1 or of 3"
    ):
        model(torch.rand(1, 2, 8, 8, 8))
