"""What is said of a network that does not fit, and what is left to its own traceback."""

from __future__ import annotations

import pytest
import torch

from cellmap_segmentation_challenge.models import _unet
from common.errors import UserError
from common.model.build import build_model
from common.model.forward import is_2d
from common.model.resenc import build_resenc
from common.model.unet import build_unet

CPU = torch.device("cpu")


def model_file(body: str) -> dict[str, str]:
    """model.py with a network whose forward pass is `body`, of a Conv3d."""
    lines = "\n".join(" " * 16 + line for line in body.splitlines())
    return {
        "model.py": f"""
        import numpy as np
        import torch
        from torch import nn


        class Net(nn.Conv3d):
            def forward(self, raw):
{lines}


        def build_model(classes, width=3):
            return Net(1, len(classes), 5)
        """
    }


def build(tiny):
    return build_model(tiny.config(), CPU)


def test_a_network_that_fits_is_built(experiment):
    model = build(experiment())
    assert model(torch.zeros(1, 1, 20, 20, 20)).shape == (1, 3, 16, 16, 16)


def test_build_model_gets_the_number_of_input_channels_or_says_what_it_takes(experiment):
    tiny = experiment(input_channels={"mito": "mito.zarr", "er": "er.zarr"})
    with pytest.raises(UserError, match="unexpected keyword argument 'in_channels'"):
        tiny.config()
    takes = "def build_model(classes, in_channels=1):\n    return nn.Conv3d({}, len(classes), 5)\n"
    tiny.write("model.py", "from torch import nn\n" + takes.format(1))
    with pytest.raises(UserError, match="does not take 3 channels, raw and mito, er of input_chan"):
        build(tiny)
    tiny.write("model.py", "from torch import nn\n" + takes.format("in_channels"))
    assert build(tiny)(torch.zeros(1, 3, 20, 20, 20)).shape == (1, 3, 16, 16, 16)


def test_a_keyword_that_build_model_hands_on_in_vain_is_a_sentence(experiment):
    text = """
    from common.model.vgg16 import build_vgg16

    def build_model(classes, **options):
        return build_vgg16(classes, weights="random", stages=1, **options)
    """
    tiny = experiment(files={"model.py": text}, model_kwargs={"encoder": "vgg"})
    with pytest.raises(UserError, match=r"model_kwargs = .*'encoder'.*; leave it out, or write"):
        build(tiny)
    channels = {"a": "a.zarr"}
    tiny = experiment("beside", files={"model.py": text}, input_channels=channels)
    with pytest.raises(UserError, match="2 channels, raw and 1 of input_channels, for VGG16"):
        build(tiny)


@pytest.mark.parametrize("stem", [1, 2])
def test_a_residual_encoder_adds_channels_to_its_first_convolution_alone(stem):
    alone, several = (
        build_resenc(["a"], 8, (32, 32, 32), width=8, stem_stride=stem, in_channels=channels).eval()
        for channels in (1, 3)
    )
    weights = alone.state_dict()
    for name, tensor in several.state_dict().items():
        if tensor.shape != weights[name].shape:
            beside = torch.zeros(tensor.shape[0], 2, *tensor.shape[2:])
            weights[name] = torch.cat([weights[name], beside], dim=1)
    several.load_state_dict(weights)
    raw = torch.rand(1, 3, 32, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(several(raw), alone(raw[:, :1]), atol=1e-5)


def test_a_unet_sees_all_its_input_channels():
    raw = torch.rand(1, 3, 44, 44, 44, requires_grad=True)
    logits = build_unet(["a"], 8, 3)(raw)
    assert logits.shape == (1, 1, 4, 4, 4)
    (gradient,) = torch.autograd.grad(logits.sum(), raw)
    assert (gradient.abs().amax((0, 2, 3, 4)) > 0).all()


def test_a_network_that_needs_values_is_tried_with_a_real_pass(experiment):
    needs_values = "assert raw.sum().item() == 0\nreturn super().forward(raw)"
    build(experiment(files=model_file(needs_values)))


def test_a_patch_that_is_too_small_is_told_with_torchs_reason(experiment):
    tiny = experiment(input_array_info={"shape": (3, 3, 3), "scale": (8, 8, 8)})
    with pytest.raises(UserError, match=r"\(3, 3, 3\) voxels .*input_array_info") as told:
        build(tiny)
    assert isinstance(told.value.__cause__, RuntimeError)


def test_another_output_shape_is_told_with_the_one_to_write(experiment):
    tiny = experiment(input_array_info={"shape": (22, 20, 20), "scale": (8, 8, 8)})
    with pytest.raises(UserError, match=r"write target_array_info\['shape'\] = \(18, 16, 16\)"):
        build(tiny)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return raw + None", TypeError),
        ("raise RuntimeError('no such mode')", RuntimeError),
        ("return np.zeros(3) + np.zeros(4)", ValueError),
    ],
)
def test_a_bug_in_the_forward_pass_keeps_its_error(experiment, body, error):
    tiny = experiment(files=model_file(body))
    with pytest.raises(error) as raised:
        build(tiny)
    assert type(raised.value) is error
    assert raised.traceback[-1].path.name in ("model.py", "_tensor.py")


def test_a_bug_in_build_model_keeps_its_error(experiment):
    model = """
        def build_model(classes):
            return len(None)
        """
    with pytest.raises(TypeError, match="NoneType") as raised:
        build(experiment(files={"model.py": model}))
    assert raised.traceback[-1].path.name == "model.py"


def test_something_else_than_a_network_is_told(experiment):
    tiny = experiment(files={"model.py": "def build_model(classes):\n    return None\n"})
    with pytest.raises(UserError, match="NoneType; return a"):
        build(tiny)


def test_checking_a_network_leaves_its_running_statistics(experiment):
    model = """
        from torch import nn


        def build_model(classes):
            return nn.Sequential(nn.Conv3d(1, len(classes), 5), nn.BatchNorm3d(len(classes)))
        """
    net = build(experiment(files={"model.py": model}))
    assert net[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return nn.Conv3d", "build_model gives the class Conv3d itself; call it"),
        ("return nn.Conv3d(1, 3, 5), 1", "build_model gives a tuple; return a torch.nn.Module"),
        ("return nn.Conv3d(1, 3, 5).double()", "build_model gives torch.float64 weights, 'weight'"),
        ("return nn.Conv3d(1, 3, 5).half()", "build_model gives torch.float16 weights"),
        ("return nn.Conv3d(1, 3, 5, device='meta')", "on the device 'meta', which hold nothing"),
    ],
)
def test_what_build_model_must_not_give_is_told(experiment, body, sentence):
    text = f"from torch import nn\n\n\ndef build_model(classes):\n    {body}\n"
    tiny = experiment(files={"model.py": text})
    with pytest.raises(UserError, match=sentence) as raised:
        tiny.train()
    assert str(raised.value).startswith(str(tiny.folder))


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ("None", "forward gives a NoneType"),
        ("logits.detach().numpy()", "forward gives a ndarray"),
        ("[]", "forward gives a list"),
        ("logits + 1j", "forward gives complex numbers; return logits"),
        ("logits.detach()", "logits without a gradient; leave detach"),
    ],
)
def test_what_forward_must_not_give_is_told(experiment, result, sentence):
    text = f"""
        from torch import nn


        class Network(nn.Conv3d):
            def forward(self, raw):
                logits = super().forward(raw)
                return {result}


        def build_model(classes):
            return Network(1, 3, 5)
        """
    tiny = experiment(files={"model.py": text}, init_output_to_prior=False)
    with pytest.raises(UserError, match=sentence):
        tiny.train()


LAZY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.LazyConv3d(4, 3)
        self.norm = nn.LazyBatchNorm3d()
        self.last = nn.LazyConv3d(classes, 3)
        {more}

    def forward(self, raw):
        return self.last(self.norm(self.first(raw)))


def build_model(classes, width=3):
    return Net(len(classes))
"""


def test_lazy_modules_get_their_shapes(experiment):
    model = build(experiment(files={"model.py": LAZY.format(more="")}))
    assert model.training and (model.norm.running_var == 1).all()
    assert model(torch.zeros(1, 1, 20, 20, 20)).shape == (1, 3, 16, 16, 16)
    assert model.first.weight.shape == (4, 1, 3, 3, 3)


def test_a_lazy_module_without_use_is_told(experiment):
    files = {"model.py": LAZY.format(more="self.idle = nn.LazyConv3d(2, 3)")}
    with pytest.raises(UserError, match=r"'idle.weight' of a lazy module"):
        build(experiment(files=files))


@pytest.mark.parametrize("further", ["logits[:, :2]", "logits.mean((2, 3, 4))", "logits[0]"])
def test_a_further_output_of_another_kind_is_told(experiment, further):
    body = f"logits = super().forward(raw)\nreturn [logits, {further}]"
    with pytest.raises(UserError, match=r"tiny_experiment: output 2 of the model has the shape"):
        build(experiment(files=model_file(body)))


def test_a_coarser_output_is_taken(experiment):
    body = "logits = super().forward(raw)\nreturn [logits, logits[..., ::2, ::2, ::2]]"
    build(experiment(files=model_file(body)))


def test_what_a_network_of_monai_does_not_take_is_a_sentence(experiment):
    model = """
        from torch import nn


        class Net(nn.Conv3d):
            def forward(self, raw):
                if raw.shape[2] % 32:
                    raise ValueError("dimensions [2] of input image must be divisible by 32")
                return super().forward(raw)


        def build_model(classes):
            return Net(1, len(classes), 1)
        """
    tiny = experiment(files={"model.py": model})
    with pytest.raises(UserError, match=r"divisible by 32\); change input_array_info: it takes"):
        build(tiny)


def test_batch_normalisation_over_one_voxel_is_no_reason_to_refuse_a_patch(experiment):
    """A training step has several patches."""
    model = """
        from torch import nn


        def build_model(classes):
            return nn.Sequential(
                nn.MaxPool2d(16),
                nn.Conv2d(1, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, len(classes), 1),
                nn.Upsample(scale_factor=16),
            )
        """
    info = {"shape": (1, 16, 16), "scale": (8, 8, 8)}
    tiny = experiment(files={"model.py": model}, input_array_info=info, target_array_info=info)
    build(tiny)


MIXED = """
    from cellmap_segmentation_challenge.models import UNet_2D, UNet_3D


    def build_model(classes):
        return {name}(1, len(classes))
    """


@pytest.mark.parametrize(
    ("name", "shape", "advice"),
    [
        ("UNet_2D", (32, 32, 16), r"all 2-D: write a patch of one .*\['shape'\] = \(1, 32, 16\)"),
        ("UNet_3D", (1, 32, 32), "are 3-D: write a patch of more voxels along each axis"),
    ],
)
def test_a_patch_of_other_dimensions_than_the_network(experiment, monkeypatch, name, shape, advice):
    monkeypatch.setattr(_unet, "WIDTHS", (2, 4, 8, 16, 32))
    info = {"shape": shape, "scale": (8, 8, 8)}
    model = MIXED.replace("{name}", name)
    tiny = experiment(files={"model.py": model}, input_array_info=info, target_array_info=info)
    with pytest.raises(UserError, match=advice):
        build(tiny)


def test_a_network_for_rgb_is_told_what_to_do_with_one_channel(experiment):
    model = (
        "from torch import nn\ndef build_model(classes):\n    return nn.Conv3d(3, len(classes), 5)"
    )
    with pytest.raises(
        UserError, match=r"takes 3 channels, and raw is one; build it for one .*in_c"
    ):
        build(experiment(files={"model.py": model}))


def test_layers_that_do_not_fit_each_other_are_no_matter_of_the_patch(experiment):
    layers = "nn.Conv3d(1, 4, 3), nn.Conv3d(5, len(classes), 3)"
    model = f"from torch import nn\ndef build_model(classes):\n    return nn.Sequential({layers})"
    with pytest.raises(RuntimeError, match="to have 5 channels, but got 4"):
        build(experiment(files={"model.py": model}))


def test_convolutions_of_other_packages_count_as_2d(experiment):
    model = """
        from torch import nn


        class Own(nn.Conv2d):
            pass


        def build_model(classes):
            return Own(1, len(classes), 1)
        """
    info = {"shape": (20, 1, 20), "scale": (8, 8, 8)}
    tiny = experiment(files={"model.py": model}, input_array_info=info, target_array_info=info)
    assert is_2d(build(tiny))
