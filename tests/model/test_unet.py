from __future__ import annotations

import ast
import copy
import importlib
import pickle
import shutil
from pathlib import Path

import leibnetz
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from common.model.unet import build_unet, unet_output_shape

ROOT = Path(__file__).parents[2]
UNETS = ["unet8_all", "unet32_all", "unet128_all"]


def as_published(classes: int = 3) -> nn.Module:
    """The network as the original baselines build it."""
    return leibnetz.build_unet(
        top_resolution=(8, 8, 8),
        base_nc=12,
        nc_increase_factor=3,
        residual=True,
        final_activation="Identity",
        output_nc=classes,
    )


def seeded(build) -> nn.Module:
    torch.manual_seed(0)
    return build()


def names(count: int) -> list[str]:
    return [f"class_{i}" for i in range(count)]


def run(model: nn.Module, raw: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of a loss that treats every voxel differently."""
    logits = model(raw)
    functional.softplus(logits).square().mean().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def saved_bytes(model: nn.Module, raw: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    kept = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _alive = model(raw)
    return sum(storage.nbytes() for storage in kept.values())


def test_width_is_the_channels_of_the_finest_level_and_a_third_of_the_next():
    def sizes(width):
        kernels = [p for p in build_unet(names(2), 8, width=width).parameters() if p.ndim == 5]
        return {kernel.shape[0] for kernel in kernels}

    assert sizes(4) == {2, 4, 12, 36}


@pytest.mark.parametrize(
    ("classes", "parameters"), [(14, 666_278), (40, 666_928), (47, 667_103), (48, 666_600)]
)
def test_the_number_of_parameters_depends_on_the_classes(classes, parameters):
    with torch.device("meta"):
        model = build_unet(names(classes), 8)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("size", [44, 48, 68])
def test_outputs_and_gradients_equal_the_published_network_bit_for_bit(size):
    raw = torch.rand(1, 1, size, size, size)
    logits, gradients = run(seeded(lambda: build_unet(names(3), 8)), raw)
    expected_logits, expected_gradients = run(seeded(as_published), raw)
    assert torch.equal(logits, expected_logits)
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in gradients)


def test_axes_of_different_size_equal_the_published_network_too():
    raw = torch.rand(2, 1, 44, 48, 56)
    logits, _ = run(seeded(lambda: build_unet(names(3), (50, 4.6, 4.6))), raw)
    expected, _ = run(seeded(as_published), raw)
    assert torch.equal(logits, expected)
    assert logits.shape == (2, 3, 4, 8, 16)


def test_tensors_have_the_names_of_leibnetz_so_that_its_checkpoints_load():
    published = seeded(as_published)
    model = build_unet(names(3), 8)
    model.load_state_dict(published.state_dict(), strict=True)
    raw = torch.rand(1, 1, 44, 44, 44)
    assert torch.equal(model(raw), published(raw))


def test_nothing_is_padded():
    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(str(function))
            return function(*args, **(kwargs or {}))

    seen = set()
    with Operations():
        run(build_unet(names(2), 8), torch.rand(1, 1, 44, 44, 44))
    assert any("convolution" in operation for operation in seen)
    assert not [operation for operation in seen if "pad" in operation]


def test_half_as_many_activations_are_saved_as_by_the_published_network():
    raw = torch.rand(1, 1, 68, 68, 68)
    ours, published = saved_bytes(build_unet(names(14), 8), raw), saved_bytes(as_published(14), raw)
    assert 0.4 < ours / published < 0.56


@pytest.mark.parametrize("size", [44, 48, 68])
def test_the_announced_shape_is_the_shape_that_comes_out(size):
    with torch.device("meta"):
        logits = build_unet(names(2), 8)(torch.empty(1, 1, size, size, size + 4))
    assert (
        logits.shape[2:]
        == unet_output_shape((size, size, size + 4))
        == (size - 40, size - 40, size - 36)
    )


@pytest.mark.parametrize(
    ("size", "advice"), [(43, "44 or 48"), (45, "44 or 48"), (69, "68 or 72"), (1, "44 or 48")]
)
def test_other_sizes_are_refused_with_the_nearest_ones(size, advice):
    sentence = rf"{size} voxels.*; write {advice}$"
    with pytest.raises(ValueError, match=sentence):
        unet_output_shape((68, 68, size))
    with torch.device("meta"), pytest.raises(ValueError, match=sentence):
        build_unet(names(2), 8)(torch.empty(1, 1, 68, 68, size))


def test_the_network_is_equivariant_to_shifts_by_four_voxels_and_not_by_two():
    model = build_unet(names(2), 8).double()
    raw = torch.rand(1, 1, 52, 52, 52, dtype=torch.float64)
    with torch.no_grad():
        whole, by_four, by_two = (
            model(raw),
            model(raw[..., 4:48, 8:52, :44]),
            model(raw[..., 2:46, 8:52, :44]),
        )
    assert torch.allclose(whole[..., 4:8, 8:12, :4], by_four, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(whole[..., 2:6, 8:12, :4], by_two, rtol=1e-2, atol=1e-2)


def test_channels_last_gives_the_same_up_to_rounding():
    model = build_unet(names(3), 8)
    raw = torch.rand(2, 1, 52, 52, 52)
    with torch.no_grad():
        expected = model(raw)
        logits = model.to(memory_format=torch.channels_last_3d)(
            raw.to(memory_format=torch.channels_last_3d)
        )
    assert (logits - expected).norm() / expected.norm() < 1e-5


def test_a_copy_and_a_pickle_give_the_same():
    model = build_unet(names(2), 8)
    raw = torch.rand(1, 1, 44, 44, 44)
    with torch.no_grad():
        expected = model(raw)
        assert torch.equal(copy.deepcopy(model)(raw), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(raw), expected)


def test_a_compiler_sees_one_graph():
    model = build_unet(names(2), 8)
    raw = torch.rand(1, 1, 44, 44, 44)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(raw), model(raw))


@pytest.mark.parametrize("voxel_size", [0, -8, (8, 8), (8, 8, 0), float("nan")])
def test_a_voxel_size_that_is_none_is_refused(voxel_size):
    with pytest.raises(ValueError, match="not a size in nm"):
        build_unet(names(2), voxel_size)


def test_voxels_below_one_nanometre_build_the_same_network():
    fine, coarse = (
        seeded(lambda: build_unet(names(2), 0.4)),
        seeded(lambda: build_unet(names(2), 128)),
    )
    assert fine.voxel_size_nm == (0.4, 0.4, 0.4)
    assert all(
        torch.equal(a, b) for a, b in zip(fine.parameters(), coarse.parameters(), strict=True)
    )


@pytest.mark.parametrize("experiment", UNETS)
def test_a_copied_experiment_builds_the_network_of_its_own_data(experiment, tmp_path, monkeypatch):
    copied = tmp_path / f"copy_of_{experiment}"
    copied.mkdir()
    for name in ("__init__.py", "model.py"):
        shutil.copy(ROOT / experiment / name, copied)
    (copied / "data.py").write_text(
        'input_array_info = {"shape": (68, 68, 68), "scale": (30, 7, 7)}\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    with torch.device("meta"):
        model = importlib.import_module(f"{copied.name}.model").build_model(names(48))
    assert model.voxel_size_nm == (30, 7, 7)
    assert sum(parameter.numel() for parameter in model.parameters()) == 666_600


def test_the_unets_are_one_text():
    trees = [ast.parse((ROOT / experiment / "model.py").read_text()) for experiment in UNETS]
    assert len({ast.dump(ast.Module(tree.body[1:], [])) for tree in trees}) == 1
