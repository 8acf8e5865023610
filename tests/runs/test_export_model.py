"""Networks as files for other programs, and back."""

from __future__ import annotations

import io
import logging
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from common.data.samples import augment
from common.data.samples.sampling import Patch
from common.data.volumes import ngff
from common.data.volumes.raw import open_raw
from common.errors import UserError
from common.infer.networks import package, packaged
from common.model import exported
from common.model.forward import ForwardPass
from common.runs import bioimage
from common.runs import export_model as export_model_module
from common.runs.export_model import export_model
from common.runs.model_card import CITED, Said, citations
from common.runtime import Precision

RAW = "tiny/tiny.zarr/recon-1/em/fibsem-uint8"


FORWARD = ForwardPass(Precision("fp32", "cpu"), channels_last=False)


def own(model: nn.Module) -> exported.FirstOutput:
    return exported.FirstOutput(model, FORWARD).eval()


def network(classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, classes, 1)).eval()


@pytest.mark.parametrize("form", exported.FORMS)
def test_a_file_gives_the_logits_of_the_network(tmp_path, form):
    for name in exported.FORMS[form].packages:
        pytest.importorskip(name)
    model = network()
    path = tmp_path / f"network{exported.FORMS[form].ending}"
    run = exported.write(own(model), torch.rand(1, 1, 8, 8, 8), path, form)
    raw = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(run(raw), model(raw), rtol=1e-5, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_of_several_outputs_the_finest_is_written(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine = network()

        def forward(self, raw):
            logits = self.fine(raw)
            return {"fine": logits, "coarse": logits[..., ::2]}

    model = Two().eval()
    raw = torch.rand(1, 1, 8, 8, 8)
    run = exported.write(own(model), raw, tmp_path / "x.pt", "torchscript")
    with torch.no_grad():
        assert torch.equal(run(raw), model(raw)["fine"])


def test_exclusive_classes_have_the_probabilities_of_their_softmax(tmp_path):
    model = network(3)
    forward = replace(FORWARD, exclusive=(0, 2))
    raw = torch.rand(1, 1, 8, 8, 8)
    whole = exported.FirstOutput(model, forward).eval()
    run = exported.write(whole, raw, tmp_path / "x.pt", "torchscript")
    with torch.no_grad():
        logits = model(raw)
        expected = logits[:, [0, 2]].softmax(1)
        torch.testing.assert_close(torch.sigmoid(run(raw))[:, [0, 2]], expected)
        assert torch.equal(run(raw)[:, 1], logits[:, 1])


def test_a_recording_that_differs_is_not_written(tmp_path):
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, raw):
            self.calls += 1
            return raw * self.calls

    with pytest.raises(UserError, match=r"other logits than its own, by .*take another form"):
        exported.write(own(Changing()), torch.rand(1, 1, 4, 4, 4), tmp_path / "x.pt", "torchscript")
    assert list(tmp_path.iterdir()) == []


def test_a_recording_that_gives_nan_is_not_written(tmp_path):
    class FirstNan(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = float("nan")

        def forward(self, raw):
            factor = self.factor
            self.factor = 1.0
            return raw * factor

    with pytest.raises(UserError, match="other logits than its own, by inf"):
        exported.write(own(FirstNan()), torch.rand(1, 1, 4, 4, 4), tmp_path / "x.pt", "torchscript")
    assert list(tmp_path.iterdir()) == []


def test_the_difference_is_a_part_of_the_largest_value_or_of_one():
    expected = torch.tensor([0.5, -4.0])
    assert exported.difference(expected, torch.tensor([1.5, -4.0])) == 0.25
    assert exported.difference(expected / 8, torch.tensor([0.0625, 0.5])) == 1
    assert exported.difference(expected, torch.tensor([0.5])) == float("inf")
    assert exported.difference(expected, torch.tensor([0.5, float("nan")])) == float("inf")


def test_what_cannot_be_recorded_is_one_sentence(tmp_path):
    class Odd(nn.Module):
        def forward(self, raw):
            return raw * np.float32(raw.detach().numpy().max())

    with pytest.raises(UserError, match=r"x\.pt2: not written, the network cannot be recorded"):
        exported.write(own(Odd()), torch.rand(1, 1, 4, 4, 4), tmp_path / "x.pt2", "pt2")


def test_a_missing_package_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(exported.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx takes onnx, .*pip install"):
        exported.write(own(network()), torch.rand(1, 1, 4, 4, 4), tmp_path / "x.onnx", "onnx")


def test_works_to_cite_are_read_as_they_are_typed():
    first, second = citations(["Doe 2026, doi:10.1000/182", "A thesis"])
    assert (first.text, first.doi) == ("Doe 2026", "10.1000/182")
    assert (second.text, second.doi) == ("A thesis", "")


def test_the_same_works_are_cited_as_in_the_repository():
    from common.files import REPOSITORY

    text = (REPOSITORY / "CITATION.cff").read_text()
    assert all(work.doi in text for work in CITED)


# A package, there and back


@pytest.fixture
def quiet_bioimageio(monkeypatch, tmp_path):
    pytest.importorskip("bioimageio.core")
    # it keeps what it reads in the user's cache, and asks the network for nothing here
    monkeypatch.setenv("BIOIMAGEIO_CACHE_PATH", str(tmp_path / "bioimageio"))
    logging.getLogger("bioimageio").setLevel(logging.ERROR)


@pytest.mark.filterwarnings("ignore")  # of bioimageio's own libraries
def test_a_package_is_valid_and_predicts_what_its_experiment_predicts(
    experiment, tmp_path, run, quiet_bioimageio
):
    import bioimageio.core

    tiny = experiment(epochs=1)
    tiny.train()
    with pytest.raises(UserError, match="write --author NAME"):
        export_model(tiny.folder, data=tiny.data)
    with pytest.raises(UserError, match=r"--license NONE: no name of SPDX; write one such as"):
        export_model(tiny.folder, said=Said(authors=("J",), licence="NONE"), data=tiny.data)
    said = Said(authors=("Jane Doe",), cite=citations(["Doe 2026, doi:10.1000/182"]))
    path = export_model(tiny.folder, said=said, output=tmp_path / "tiny.zip", data=tiny.data)

    archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    summary = bioimageio.core.test_model(archive)
    assert summary.status == "passed", summary.display()
    description = bioimageio.core.load_model_description(archive)
    assert [str(name) for name in description.outputs[0].axes[1].channel_names] == [
        *tiny.config().classes
    ]
    assert [axis.scale for axis in description.inputs[0].axes[2:]] == [8, 8, 8]
    card = description.documentation.get_reader().read().decode()
    for text in ("8 nm", "mito", "tiny (", "Doe 2026", "CC-BY-4.0", "## Validation", "10.1038"):
        assert text in card
    assert str(tmp_path) not in card

    options = ("--volume", tiny.data / RAW, "--data", tiny.data, "--dtype", "float32", "--logits")
    assert run("predict", tiny.folder, *options)[0] == 0
    code, out, err = run("predict", "--model", path, *options)
    assert code == 0, err
    of_experiment = Path(tiny.config().path("predictions_path"))
    (other,) = map(Path, out.split())
    for name in tiny.config().classes:
        first, second = (
            ngff.open_levels(folder / name)[0].array[...]
            for folder in (next(of_experiment.glob("*/whole")), other)
        )
        np.testing.assert_allclose(second, first, atol=1e-4)
    code, _, err = run("predict", "--model", path)
    assert code == 2 and "write --volume PATH" in err
    code, _, err = run("predict", "--model", tiny.folder / "train_config.py", "--volume", "x")
    assert code == 2 and "write it without --model" in err


@pytest.fixture
def of_ours(monkeypatch, tmp_path) -> Path:
    """The path of a package of ours, which need not be read: what it says of its network is."""
    info = {"shape": (20, 20, 20), "scale": (8, 8, 8)}
    settings = {
        "classes": ("mito",),
        "input_array_info": info,
        "target_array_info": info,
        "raw_range": (),
        "raw_normalization": "range",
        "raw_sections": 0,
    }
    description = SimpleNamespace(inputs=[SimpleNamespace(axes=[])])
    said = package.Package(tmp_path / "tiny.zip", description, settings, is_ours=True)
    monkeypatch.setattr(package, "read", lambda path: said)
    return said.path


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("raw_range=0,100", r"raw_range was \(\) and is \(0, 100\)\); leave them out"),
        ("raw_sections=1", "raw_sections was 0 and is 1"),
        ("input_array_info.scale=9", r"input_array_info was \(8, 8, 8\) and is \(9"),
        ("precision=bf16", "--set precision: a package computes as it was recorded; leave it out"),
        ("softmax=mito,er", "--set softmax: a package computes as"),
    ],
)
def test_a_package_is_not_given_what_it_was_not_trained_on(of_ours, setting, told):
    with pytest.raises(UserError, match=told):
        package.load_config(of_ours, [setting])


def test_a_package_keeps_to_the_cache_of_the_environment(of_ours, tmp_path):
    config = package.load_config(of_ours, ["predictions_codec=lz4"])
    assert config.path("cache_path") == tmp_path / "cache"
    assert config.predictions_codec == "lz4"


def test_raw_of_16_bits_is_noted_where_the_package_is_of_8(experiment, capfd):
    tiny = experiment()
    values = np.random.default_rng(0).integers(0, 2**16, (56, 56, 56)).astype(np.uint16)
    ngff.write_multiscale(tiny.raw, values, (8, 8, 8))
    config = tiny.config()
    window = SimpleNamespace(input=Patch((20, 20, 20), (8, 8, 8)))
    network = SimpleNamespace(
        config=config,
        window=window,
        flat=None,
        raw_of=lambda region: open_raw(region.raw, (8, 8, 8)),
    )
    stored = export_model_module.example_raw(network)
    assert stored.dtype == np.uint8
    assert "uint16, and the package is of raw of 8 bits: in other" in capfd.readouterr().err


@pytest.mark.parametrize("mode", ["range", "values"])
@pytest.mark.parametrize("raw_range", [(), (60.0, 180.0)])
def test_what_a_package_does_to_raw_is_what_the_engine_does(
    experiment, mode, raw_range, quiet_bioimageio
):
    """Values beyond raw_range too."""
    config = experiment(raw_normalization=mode, raw_range=raw_range).config()
    stored = np.random.default_rng(0).integers(0, 256, (1, 1, 6, 6, 6)).astype(np.uint8)
    block = torch.from_numpy(stored[0, 0])
    expected = augment.raw_patches([block], [np.eye(3, 4)], block.shape, raw_range)
    if mode == "values":
        low, high = raw_range or (0, 255)
        expected = low + expected * (high - low)
    given = torch.from_numpy(stored).float()
    for step in packaged._steps(Path(), bioimage._preprocessing(config)):
        given = step(given)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    of_example = torch.from_numpy(bioimage.normalised(stored, config))
    torch.testing.assert_close(of_example, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_package_of_others_is_run_as_it_says(tmp_path, quiet_bioimageio):
    """Without our settings in it, by its preprocessing, its sigmoid and its voxel size alone."""
    from bioimageio.spec import save_bioimageio_package
    from bioimageio.spec.model import v0_5

    path = foreign_package(tmp_path, v0_5, save_bioimageio_package)
    config = package.load_config(path)
    assert config.classes == ("a", "b") and config.raw_normalization == "values"
    assert config.input_array_info == {"shape": (8, 8, 8), "scale": (5, 4, 4)}
    model = package.load_network(config, path).model
    stored = torch.randint(0, 255, (2, 1, 8, 8, 8)).float()
    with torch.no_grad():
        torch.testing.assert_close(model(stored), network()((stored / 255 - 0.5) / 0.25))
    with pytest.raises(UserError, match=r"no package of bioimage\.io"):
        broken = tmp_path / "broken.zip"
        broken.write_bytes(path.read_bytes()[:-40])
        package.read(broken)


def foreign_package(folder: Path, v0_5, save) -> Path:
    (folder / "README.md").write_text("# A network\n")
    raw = np.random.default_rng(0).integers(0, 255, (1, 1, 8, 8, 8)).astype(np.uint8)
    model = network()
    with torch.no_grad():
        given = torch.sigmoid(model((torch.from_numpy(raw) / 255 - 0.5) / 0.25)).numpy()
    np.save(folder / "in.npy", raw)
    np.save(folder / "out.npy", given)
    with exported.quiet():
        torch.jit.trace(model, torch.rand(1, 1, 8, 8, 8)).save(str(folder / "weights.pt"))

    def axes(kind, size, names):
        space = []
        for name, scale in (("z", 0.005), ("y", 0.004), ("x", 0.004)):
            place = v0_5.AxisId(name)
            space.append(kind(id=place, size=size, scale=scale, unit="micrometer"))
        channels = v0_5.ChannelAxis(channel_names=[v0_5.Identifier(name) for name in names])
        return [v0_5.BatchAxis(), channels, *space]

    fixed = v0_5.FixedZeroMeanUnitVarianceKwargs(mean=0.5, std=0.25)
    linear = v0_5.ScaleLinearKwargs(gain=1 / 255, offset=0.0)
    to_float = v0_5.EnsureDtypeDescr(kwargs=v0_5.EnsureDtypeKwargs(dtype="float32"))
    source = v0_5.InputTensorDescr(
        id=v0_5.TensorId("raw"),
        axes=axes(v0_5.SpaceInputAxis, 8, ["raw"]),
        test_tensor=v0_5.FileDescr(source=folder / "in.npy"),
        data=v0_5.IntervalOrRatioDataDescr(type="uint8"),
        preprocessing=[
            to_float,
            v0_5.ScaleLinearDescr(kwargs=linear),
            v0_5.FixedZeroMeanUnitVarianceDescr(kwargs=fixed),
            to_float,
        ],
    )
    output = v0_5.OutputTensorDescr(
        id=v0_5.TensorId("out"),
        axes=axes(v0_5.SpaceOutputAxis, 6, ["a", "b"]),
        test_tensor=v0_5.FileDescr(source=folder / "out.npy"),
        postprocessing=[v0_5.SigmoidDescr()],
    )
    weights = v0_5.TorchscriptWeightsDescr(
        source=folder / "weights.pt", pytorch_version=v0_5.Version("2.10.0")
    )
    description = v0_5.ModelDescr(
        name="A network",
        description="of others",
        authors=[v0_5.Author(name="Somebody")],
        license="MIT",
        cite=[v0_5.CiteEntry(text="nothing", doi=v0_5.Doi("10.1000/182"))],
        documentation=v0_5.FileDescr(source=folder / "README.md"),
        inputs=[source],
        outputs=[output],
        weights=v0_5.WeightsDescr(torchscript=weights),
    )
    path = folder / "foreign.zip"
    save(description, output_path=path)
    return path
