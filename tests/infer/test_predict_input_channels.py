"""Prediction with further input channels: the same voxels as in training, or a sentence."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import zarr

from common.data.volumes import ngff
from common.data.volumes.ngff import write_multiscale
from common.data.volumes.records import PredictionRecord, group_attributes, read_prediction
from common.errors import UserError
from common.infer.predict import predict
from common.model import exported
from common.runs import bioimage
from common.runs.export_model import export_model

MODEL = """
    import torch
    from torch import nn


    class Last(nn.Module):
        \"\"\"Gives the last channel of its input, whatever raw is.\"\"\"

        def __init__(self, classes, in_channels):
            super().__init__()
            self.conv = nn.Conv3d(in_channels, len(classes), 5, bias=False)
            with torch.no_grad():
                self.conv.weight.zero_()
                self.conv.weight[:, -1, 2, 2, 2] = 1

        def forward(self, raw):
            return self.conv(raw)


    def build_model(classes, in_channels=1):
        return Last(classes, in_channels)
    """


@pytest.fixture
def member(experiment):
    """An experiment whose predictions of all crops are there: a ramp along x, 255 at its end."""
    member = experiment("member")
    ramp = np.broadcast_to(np.arange(56) * 4, (56, 56, 56)).astype(np.uint8)
    for crop in ("crop1", "crop2", "crop3"):
        folder = member.config().path("predictions_path") / "tiny.zarr" / crop
        zarr.open_group(str(folder), mode="a")
        write_multiscale(folder / "mito", ramp, (8, 8, 8))
    return member


@pytest.fixture
def tiny(experiment, member):
    """An experiment that gives back its second channel, the predictions of `member`."""
    path = "../member/predictions/member/seed42/{dataset}.zarr/{crop}/mito"
    return experiment(
        files={"model.py": MODEL},
        input_channels={"mito": path},
        init_output_to_prior=False,
        epochs=1,
        iterations_per_epoch=2,
        learning_rate=1e-12,
        weight_decay=0.0,
    )


def test_a_run_with_a_channel_predicts_it_at_its_own_places_or_says_what_is_wrong(
    tiny, member, monkeypatch
):
    result = tiny.train()
    saved = torch.load(result.checkpoint, weights_only=True)
    assert set(saved["input_channels"]["mito"]) == {"tiny/crop1", "tiny/crop2", "tiny/crop3"}
    stored = member.config().path("predictions_path") / "tiny.zarr" / "crop3" / "mito"

    # one that ends too early, or is not there, is said before anything is written
    write_multiscale(stored, np.zeros((24, 24, 24), np.uint8), (8, 8, 8), (16, 240, 240))
    with pytest.raises(UserError, match=r"tiny/crop3 needs .* nm of it.* --margin 16 --overwrite"):
        predict(tiny.folder, "crop3", data=tiny.data)
    shutil.rmtree(stored)
    with pytest.raises(UserError, match="channel 'mito' of tiny/crop3 is missing"):
        predict(tiny.folder, "validate", data=tiny.data)
    assert not tiny.config().path("predictions_path").exists()

    # it may lie elsewhere, and its values are what they were
    elsewhere = "../member/predictions/member/seed42/tiny.zarr/crop1/mito"
    other = {"mito": {"path": elsewhere, "range": (0, 1)}}
    with pytest.raises(UserError, match=r"trained with other settings \(input_channels was"):
        predict(tiny.folder, "crop3", data=tiny.data, overrides=[f"input_channels={other}"])
    moved = ['input_channels={"mito": "' + elsewhere + '"}']
    stored_as = {"content": "logits", "dtype": "float32", "orientations": 16, "block": 16}
    (folder,) = predict(tiny.folder, "crop3", data=tiny.data, overrides=moved, **stored_as)
    level = ngff.open_levels(folder / "mito")[0]
    # crop3 begins at voxel 30 along x
    expected = np.broadcast_to((np.arange(30, 54) * 4 / 255).astype(np.float32), (24, 24, 24))
    assert np.allclose(level.array[...], expected, atol=1e-6)
    record = read_prediction(folder / "mito")
    assert record.input_channels["mito"]["range"] == [0.0, 255.0]

    # other programs get all channels, and a package, which has raw alone, is refused
    file = tiny.folder / "network.pt"
    export_model(tiny.folder, "torchscript", output=file, data=tiny.data)
    raw = torch.rand(1, 2, 20, 20, 20)
    given = exported.FORMS["torchscript"].open(file.read_bytes())(raw)
    assert torch.allclose(given, raw[:, 1:, 2:-2, 2:-2, 2:-2].expand(-1, 3, -1, -1, -1), atol=1e-6)
    monkeypatch.setattr(bioimage, "refuse_missing", lambda: None)
    with pytest.raises(UserError, match="of raw alone, and this one takes mito beside it"):
        export_model(tiny.folder, data=tiny.data)


def test_a_margin_is_predicted_around_a_box_as_far_as_its_raw_goes(experiment):
    member = experiment()
    member.train("epochs=1", "iterations_per_epoch=1")
    arguments = {"data": member.data, "overrides": ["predictions_path=wide"]}
    (wide,) = predict(member.folder, "crop3", margin=20, **arguments)
    (alone,) = predict(member.folder, "crop3", data=member.data)
    levels = [ngff.open_levels(folder / "mito")[0] for folder in (wide, alone)]
    # raw is 56 voxels of 8 nm, and crop3 2 to 26 of them along z, 30 to 54 along y and x
    lower, upper = levels[0].box()
    assert lower.tolist() == [-4, 212, 212]
    assert upper.tolist() == [228, 444, 444]
    inside = levels[0].array[2:26, 3:27, 3:27]
    assert np.abs(inside.astype(int) - levels[1].array[...]).max() <= 1
    assert read_prediction(wide / "mito").key != read_prediction(alone / "mito").key


def test_a_run_goes_on_where_its_channel_moved_and_not_where_it_was_predicted_anew(tiny, member):
    tiny.train()
    (tiny.folder.parent / "member").rename(tiny.folder.parent / "moved")
    path = tiny.config().input_channels["mito"].replace("member/", "moved/", 1)
    tiny.train("epochs=2", input_channels={"mito": path})
    (tiny.folder.parent / "moved").rename(tiny.folder.parent / "member")
    stored = member.config().path("predictions_path") / "tiny.zarr" / "crop2" / "mito"
    values = ngff.open_levels(stored)[0].array[...]
    record = PredictionRecord(sha256="of another network").with_key()
    attributes = group_attributes("mito", record)
    write_multiscale(stored, values, (8, 8, 8), attributes=attributes)
    with pytest.raises(UserError, match="other predictions of channel 'mito' in tiny/crop2"):
        tiny.train("epochs=3")
    with pytest.raises(UserError, match=r"started with other settings \(input_channels was"):
        tiny.train("epochs=3", input_channels={})
