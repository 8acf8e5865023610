"""The residual-encoder U-Net: its planning against drawn cases and MONAI's, its shapes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.networks.nets.segresnet_ds import scales_for_resolution

from common.classes import TESTED
from common.data.samples.sampling import Patch
from common.errors import UserError
from common.infer.networks.window import find_window
from common.model.forward import ForwardPass
from common.model.output_layers import start_output_at
from common.model.resenc import build_resenc, plan_resenc
from common.model.shapes import OnMeta, Shapes, meta_patches, parameters_of_outputs
from common.runtime import Precision

FORWARD = ForwardPass(Precision("fp32", "cpu"), channels_last=False)

ALL = (2, 2, 2)
PLANE = (1, 2, 2)


@pytest.mark.parametrize(
    ("scale", "patch", "stride", "stem", "pools"),
    [
        # of 64 voxels 32, 16, 8, 4 are left
        (8, (64, 64, 64), 1, (1, 1, 1), [ALL] * 4),
        (8, (64, 64, 64), 2, ALL, [ALL] * 3),
        # 48: 24, 12, 6; another halving would leave 3
        (8, (48, 48, 48), 1, (1, 1, 1), [ALL] * 3),
        # 52: 26, 13, which is odd
        (8, (52, 52, 52), 1, (1, 1, 1), [ALL] * 2),
        # 50 x 4.6: 9.2, 18.4, 36.8, more than half of 50
        ((50, 4.6, 4.6), (16, 128, 128), 1, (1, 1, 1), [PLANE] * 3 + [ALL]),
        ((50, 4.6, 4.6), (16, 128, 128), 2, PLANE, [PLANE] * 2 + [ALL]),
        # the plane can be halved on, the sections not
        ((50, 4.6, 4.6), (6, 64, 64), 1, (1, 1, 1), [PLANE] * 3),
        # long voxels along y
        ((8, 16, 8), (32, 16, 32), 1, (1, 1, 1), [(2, 1, 2), ALL, ALL]),
    ],
)
def test_a_network_is_planned_from_voxels_and_patch(scale, patch, stride, stem, pools):
    plan = plan_resenc(scale, patch, stem_stride=stride)
    assert plan.stem == stem
    assert list(plan.pools) == pools


def test_the_axes_of_short_voxels_are_halved_first_as_in_monai():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scale = tuple(np.exp(rng.uniform(0, 4, 3)).tolist())
        plan = plan_resenc(scale, (512, 512, 512))
        expected = scales_for_resolution(scale, plan.levels)[:-1]
        assert [tuple(pool) for pool in expected] == list(plan.pools)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("scale", "patch"), [(8, (16, 16, 16)), ((50, 4.6, 4.6), (4, 32, 32)), ((8, 4, 8), (8, 16, 8))]
)
def test_what_goes_in_comes_out_in_the_same_shape(scale, patch, stride):
    torch.manual_seed(0)
    model = build_resenc(["mito", "er"], scale, patch, stem_stride=stride, width=8)
    assert model(torch.rand(2, 1, *patch)).shape == (2, 2, *patch)


def test_all_tested_classes_have_a_channel():
    model = build_resenc(TESTED, 8, (64, 64, 64))
    raw = meta_patches((64, 64, 64), in_channels=1)
    assert FORWARD(OnMeta(model), raw).shape == (1, 48, 64, 64, 64)


@pytest.mark.parametrize(("stride", "shapes"), [(1, [32, 16, 8]), (2, [32, 8])])
def test_with_deep_supervision_outputs_get_coarser(stride, shapes):
    model = build_resenc(
        ["mito"], 8, (32, 32, 32), stem_stride=stride, width=8, deep_supervision=True
    )
    outputs = FORWARD.outputs(model, torch.rand(1, 1, 32, 32, 32))
    assert [tuple(output.shape) for output in outputs] == [(1, 1, n, n, n) for n in shapes]
    alone = FORWARD.outputs(model.eval(), torch.rand(1, 1, 32, 32, 32))
    assert [tuple(output.shape) for output in alone] == [(1, 1, 32, 32, 32)]


@pytest.mark.parametrize("stride", [1, 2])
def test_channels_double_where_voxels_are_halved(stride):
    model = build_resenc(["mito"], 8, (32, 32, 32), stem_stride=stride, width=8)
    widths = [level["blocks"][0].conv1.weight.shape[0] for level in model.layers.encoder.layers]
    assert widths == [8 * stride * 2**k for k in range(model.plan.levels)]


@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
def test_every_weight_gets_a_gradient(norm):
    torch.manual_seed(0)
    model = build_resenc(
        ["mito"], 8, (16, 16, 16), stem_stride=2, norm=norm, width=8, deep_supervision=True
    )
    outputs = FORWARD.outputs(model, torch.rand(2, 1, 16, 16, 16))
    sum(output.square().mean() for output in outputs).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"patch": (45, 64, 64)},
            r"patch \(45, 64, 64\): cannot be halved 1 times .*multiples of 16",
        ),
        ({"patch": (45, 64, 64), "stem_stride": 2}, "cannot be halved 2 times"),
        ({"stem_stride": 3}, "stem_stride = 3: write 1, 2 or 4"),
        ({"width": 5}, "width = 5: not a number of channels"),
        ({"norm": "layer"}, "norm = 'layer': no such layer; write one of group, instance, batch"),
        ({"scale": (8, 0, 8)}, "not a size in nm"),
    ],
)
def test_what_cannot_be_built_is_told(change, sentence):
    settings = {"scale": 8, "patch": (64, 64, 64), **change}
    with pytest.raises(UserError, match=sentence):
        build_resenc(["mito"], **settings)


def test_a_size_that_is_not_taken_is_told_with_the_nearest():
    model = build_resenc(["mito"], 8, (32, 32, 32))
    with pytest.raises(UserError, match=r"multiples of \(8, 8, 8\) .*write 32 or 40"):
        model(torch.rand(1, 1, 32, 36, 32))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("deep", [False, True])
def test_every_output_can_start_at_the_frequency_of_its_classes(stride, deep):
    torch.manual_seed(0)
    model = build_resenc(
        ["mito", "er"], 8, (16, 16, 16), stem_stride=stride, width=8, deep_supervision=deep
    )
    prior = np.array([-3.0, 1.0], np.float32)
    outputs = parameters_of_outputs(model, FORWARD.outputs, (16, 16, 16))
    start_output_at(model, prior, outputs)
    for output in FORWARD.outputs(model, torch.rand(1, 1, 16, 16, 16)):
        assert output.mean((0, 2, 3, 4)).tolist() == pytest.approx(prior.tolist(), abs=0.05)


@pytest.mark.parametrize(
    ("scale", "shape", "step"),
    [(8, (8, 16, 16), (2, 2, 2)), ((50, 4.6, 4.6), (4, 16, 16), (1, 4, 4))],
)
def test_windows_grow_by_the_step_of_the_plan(scale, shape, step):
    model = build_resenc(["mito"], scale, shape, width=8)
    assert model.plan.step == step
    patch = Patch(shape, (8, 8, 8))
    window = find_window(Shapes(model, FORWARD), patch, patch)
    assert window.steps == tuple((voxels, voxels) for voxels in step)


@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
def test_far_from_its_border_a_larger_window_agrees_only_with_batch_norm(norm):
    """The others normalise by the mean and deviation of the window."""
    torch.manual_seed(0)
    model = build_resenc(["mito"], 8, (16, 16, 16), width=8, norm=norm)
    FORWARD(model.train(), torch.rand(2, 1, 16, 16, 16))
    model.eval()
    assert model.plan.step == (4, 4, 4)
    # what a voxel sees: 1 + 2 convolutions, then 4, 4 at half and a quarter, then 2 a level back
    margin = 48
    raw = torch.rand(1, 1, 16, 16, 2 * margin + 8) * torch.linspace(0.2, 1, 2 * margin + 8)
    with torch.no_grad():
        whole = FORWARD(model, raw)[..., margin : margin + 8]
        larger = FORWARD(model, torch.nn.functional.pad(raw, (0, 16), value=0.5))
    agrees = torch.allclose(whole, larger[..., margin : margin + 8], atol=1e-5)
    assert agrees == (norm == "batch")


def test_a_checkpoint_is_read_by_a_network_that_is_built_again():
    torch.manual_seed(0)
    options = {"stem_stride": 2, "width": 8, "deep_supervision": True}
    first = build_resenc(["mito"], 8, (16, 16, 16), **options)
    second = build_resenc(["mito"], 8, (16, 16, 16), **options)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    raw = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(first.eval()(raw), second.eval()(raw))
