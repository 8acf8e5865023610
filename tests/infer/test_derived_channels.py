"""Derived channels from training to objects, through the whole engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr

from common.data.volumes.records import read_prediction
from common.errors import UserError
from common.infer.predict import predict
from common.infer.process import process
from tests.volumes import voxels_of

DERIVED = """
    from common.config.derived import affinities, boundary, distance

    derived = {
        "mito_boundary": boundary("mito", inside=8, outside=8),
        "mito_affinity": affinities("mito", offsets=[(8, 0, 0), (0, 16, 0)]),
        "mito_distance": distance("mito", clip=32),
    }
    """

PROCESS = """
    import dataclasses

    import numpy as np

    from .data import classes


    def process_func(logits):
        return (logits > 0) * 1


    def instance_func(mask, probability, name, channels):
        near = channels["mito_affinity_1"].array[:]
        far = channels["mito_distance"].array[:]
        assert near.shape == mask.shape and near.dtype == np.float32
        assert near.min() >= 0 and near.max() <= 1
        assert far.min() >= -32 and far.max() <= 32
        return dataclasses.replace(mask, array=(far > -99).astype(np.uint8))
    """


def split_in_two(tiny) -> None:
    """Give the mitochondria of all crops two ids each."""
    for crop in ("crop1", "crop2", "crop3"):
        array = zarr.open_array(str(tiny.crop(crop) / "mito" / "s0"), mode="r+")
        mask = array[:]
        mask[12:] *= 2
        array[:] = mask


def test_derived_channels_are_trained_predicted_and_made_into_objects(experiment):
    tiny = experiment(text=DERIVED, files={"process_config.py": PROCESS})
    split_in_two(tiny)
    result = tiny.train()
    assert set(result.scores.per_class) == {"dice", "iou", "precision", "recall"}
    assert len(result.scores.per_class["dice"]) == 7
    [folder] = predict(tiny.folder, data=tiny.data)
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    assert sorted(names) == sorted(tiny.config().channels)
    assert read_prediction(folder / "mito_distance").range_nm == [-32, 32]
    assert read_prediction(folder / "mito_boundary").range_nm is None
    assert read_prediction(folder / "mito_affinity_1").offset_nm == [0, 16, 0]
    assert read_prediction(folder / "mito_distance").offset_nm is None
    [processed] = process(tiny.folder, data=tiny.data, classes=["mito"])
    assert (voxels_of(processed / "mito") == 1).all()
    with pytest.raises(UserError, match="no channel 'mito_affinity_1' in"):
        predict(tiny.folder, data=tiny.data, overwrite=True, classes=["mito"])
        for name in ("mito_affinity_0", "mito_affinity_1"):
            (folder / name).rename(folder.parent / name)
        process(tiny.folder, data=tiny.data, classes=["mito"], overwrite=True)
    assert np.isfinite(result.scores.loss)


def test_a_continued_run_ends_as_an_undisturbed_one(experiment):
    tiny = experiment(text=DERIVED, softmax=["nuc", "mito_boundary"])
    split_in_two(tiny)
    weights = []
    for run_name, ends in (("whole", (2,)), ("stopped", (1, 2))):
        for epochs in ends:
            tiny.train(run_name=run_name, epochs=epochs)
        path = tiny.folder / f"checkpoints/tiny_experiment/{run_name}/latest.pt"
        weights.append(torch.load(path, weights_only=False)["model"])
    for one, other in zip(weights[0].values(), weights[1].values(), strict=True):
        assert torch.equal(one, other)


def test_other_planes_are_refused_with_affinities(experiment):
    tiny = experiment(text=DERIVED)
    with pytest.raises(UserError, match="affinities are of pairs along a direction"):
        predict(tiny.folder, data=tiny.data, planes="all")


def test_mirrored_copies_are_refused_with_affinities_where_windows_do_not_overlap(experiment):
    tiny = experiment(text=DERIVED, epochs=1, iterations_per_epoch=1)
    tiny.train()
    with pytest.raises(UserError, match="affinities of a mirrored copy lie their offset away"):
        predict(tiny.folder, data=tiny.data, orientations=8)


def test_channels_of_one_name_that_mean_something_else_are_not_averaged(experiment):
    """40 nm of one network are no 80 nm of another, though both channels have one name."""
    tiny = experiment(text=DERIVED, epochs=1, iterations_per_epoch=1)
    other = experiment("other", text=DERIVED.replace("clip=32", "clip=64"), epochs=1)
    tiny.train()
    there = other.train(iterations_per_epoch=1).checkpoint
    for weights in ([str(there)], ["best", str(there)]):
        with pytest.raises(UserError, match=r"its channels were derived as .*clip=64"):
            predict(tiny.folder, data=tiny.data, weights=weights)


def test_other_declarations_than_in_training_are_refused(experiment):
    tiny = experiment(text=DERIVED, epochs=1, iterations_per_epoch=1)
    tiny.train()
    tiny.add(DERIVED.replace("\n    ", "\n").replace("clip=32", "clip=40"))
    with pytest.raises(UserError, match=r"trained with other settings \(derived was"):
        predict(tiny.folder, data=tiny.data)
    with pytest.raises(UserError, match="derived"):
        tiny.train(epochs=2)
