"""Seed, device, precision; on CUDA where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common import runtime

CPU = torch.device("cpu")


def has_bf16(monkeypatch, native: bool = True) -> None:
    """Let this be a CPU with instructions for bf16, or without, that nothing holds back."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    for variable in runtime.ISA_LIMITS:
        monkeypatch.delenv(variable, raising=False)


def test_equal_seeds_draw_equal_weights():
    drawn = []
    for seed in (3, 3, 4):
        runtime.seed_everything(seed)
        weights = torch.rand(3).tolist()
        global_generator = np.random.rand(3).tolist()  # noqa: NPY002  # a user's model may use it
        drawn.append((weights, global_generator))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"'cuda:99' .*'auto'"):
        runtime.pick_device("cuda:99")


def test_a_device_that_holds_no_numbers_is_refused():
    with pytest.raises(ValueError, match="device = 'meta' cannot be used here"):
        runtime.pick_device("meta")


def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="'bf16'"):
        runtime.pick_precision("fp16", CPU)


@pytest.mark.parametrize(("native", "name"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_cpu_is_bf16_where_the_cpu_has_it(monkeypatch, native, name):
    has_bf16(monkeypatch, native)
    assert runtime.pick_precision("auto", CPU).name == name


@pytest.mark.parametrize(
    ("variable", "limit", "name"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX2", "fp32"),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core_vnni", "fp32"),
        ("DNNL_MAX_CPU_ISA", "AVX512_CORE", "fp32"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", "bf16"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", "bf16"),
        ("ONEDNN_MAX_CPU_ISA", "DEFAULT", "bf16"),
        ("ONEDNN_MAX_CPU_ISA", "", "bf16"),
    ],
)
def test_auto_is_fp32_where_the_environment_keeps_bf16_from_convolutions(
    monkeypatch, variable, limit, name
):
    has_bf16(monkeypatch)
    monkeypatch.setenv(variable, limit)
    assert runtime.pick_precision("auto", CPU).name == name


@pytest.mark.parametrize(("name", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_pass_runs_in_its_precision(name, kind):
    with runtime.Precision(name, "cpu").autocast():
        assert torch.nn.Conv3d(1, 1, 1)(torch.rand(1, 1, 2, 2, 2)).dtype == kind


def test_only_fp16_scales_its_loss():
    for name, scales in (("fp32", False), ("bf16", False), ("fp16", True)):
        assert runtime.Precision(name, "cpu").scaler().is_enabled() == scales


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_cuda_trains_and_its_checkpoint_goes_on_on_a_cpu(experiment, precision):
    tiny = experiment(epochs=2)
    tiny.train(device="cuda", precision=precision, epochs=1)
    assert tiny.train(device="cpu", precision="fp32").epochs == 2


DERIVED = """
    from common.config.derived import affinities, boundary, distance

    derived = {
        "mito_boundary": boundary("mito", inside=8, outside=8),
        "mito_affinity": affinities("mito", offsets=[(8, 0, 0), (0, 16, 0)]),
        "mito_distance": distance("mito", clip=32),
    }
    augmentations = {
        "elastic": {"probability": 1, "amplitude_nm": 8, "spacing_nm": 60},
        "blur": {"probability": 1, "sigma_nm": 8},
    }
    """


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_learns_derived_channels_and_predicts_what_a_cpu_does(experiment):
    from common.data.volumes.ngff import open_levels
    from common.infer.predict import predict

    tiny = experiment(text=DERIVED, ema_decay=0.5, noise_std=0.01, gamma_range=(0.8, 1.2))
    tiny.train(device="cuda")
    found = {}
    for device in ("cpu", "cuda"):
        settings = [f"device={device}", f"predictions_path={tiny.folder / device}"]
        (folder,) = predict(tiny.folder, data=tiny.data, overrides=settings, dtype="float32")
        found[device] = {
            path.name: open_levels(path)[0].array[:] for path in folder.iterdir() if path.is_dir()
        }
    assert len(found["cpu"]) == 7
    for name, values in found["cpu"].items():
        # a GPU multiplies with ten bits (TF32)
        np.testing.assert_allclose(found["cuda"][name], values, atol=5e-3 * abs(values).max())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_sees_the_batches_of_the_cpu(experiment):
    from common.data.samples import batches, loaders

    rotate = {
        "rotate": {"axes": {"z": [-180, 180], "x": [-90, 90]}},
        "mirror": {"axes": {"y": 0.5}},
    }
    config = experiment(spatial_transforms=rotate).config()
    data = loaders.open_data(config)
    cpu = next(batches.training_batches(config, data, torch.device("cpu")).between(0, 4))
    cuda = next(batches.training_batches(config, data, torch.device("cuda")).between(0, 4))
    torch.testing.assert_close(cuda.raw.cpu(), cpu.raw, atol=2e-3, rtol=0)
    assert (cuda.target.rows.cpu() != cpu.target.rows).float().mean() < 1e-3
