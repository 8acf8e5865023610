"""Ids of objects: kept in decoded crops, cut and turned with the labels, made into a batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import zarr

from common.config.derived import affinities, boundary
from common.data.crops.ids import IdWriter, reduced
from common.data.samples import derive, loaders, sampling
from common.data.samples.batches import training_batches, validation_batches
from common.data.samples.loaders import open_data
from common.errors import UserError
from tests.volumes import changing

CPU = torch.device("cpu")

DERIVED = """
    from common.config.derived import affinities, boundary, distance

    derived = {
        "near": boundary("mito", inside=8, outside=16),
        "pairs": affinities("mito", offsets=[(8, 0, 0), (0, 0, -8)]),
        "far": distance("mito", clip=24),
    }
    """

TURNED = {
    "spatial_transforms": {
        "mirror": {"axes": {"x": 0.5, "y": 0.5}},
        "transpose": {"axes": ["x", "y", "z"]},
    }
}


def with_ids(tiny, upper: int = 40_000) -> None:
    """Give the mitochondria of all crops two ids, and make a slab of the first unknown."""
    for crop in ("crop1", "crop2", "crop3"):
        path = tiny.crop(crop) / "mito"
        mask = zarr.open_array(str(path / "s0"), mode="r")[:]
        ids = mask.astype(np.uint16) * 7
        ids[12:][mask[12:] > 0] = upper
        if crop == "crop1":
            ids[:, :3] = 9
        zarr.save_array(str(path / "s0"), ids, path=None)
        kind = {"type": "instance_segmentation", "encoding": {"absent": 0, "unknown": 9}}
        with changing(path) as attributes:
            attributes["cellmap"] = {"annotation": {"annotation_type": kind}}


def test_ids_are_numbered_beside_the_labels(experiment):
    tiny = experiment(text=DERIVED)
    with_ids(tiny)
    # what other classes say of a voxel is not asked here
    data = open_data(tiny.config(use_mutual_exclusion=False, infer_groups=False))
    crop = data.train[0]
    assert crop.with_ids == ("mito",)
    stored = zarr.open_array(str(tiny.crop() / "mito" / "s0"), mode="r")[:]
    ids = crop.ids("mito")
    assert ids.dtype == np.uint8
    # 0 unknown, 1 background, objects as they are met
    expected = {9: 0, 0: 1, 7: 2, 40_000: 3}
    for value, number in expected.items():
        assert (ids[stored == value] == number).all()
    mito = crop.palette[crop.labels(), 0]
    np.testing.assert_array_equal(mito == 1, ids > 1)
    np.testing.assert_array_equal(mito == -1, ids == 0)


def test_without_derived_channels_a_decoded_crop_is_that_of_before(experiment):
    tiny = experiment()
    with_ids(tiny)
    before = open_data(tiny.config()).train
    tiny.add(DERIVED.replace("\n    ", "\n"))
    after = open_data(tiny.config()).train
    assert not list(before[0].folder.glob("ids_*"))
    for old, new in zip(before, after, strict=True):
        assert old.folder != new.folder
        np.testing.assert_array_equal(old.labels(), new.labels())
        np.testing.assert_array_equal(old.palette, new.palette)


def test_targets_are_made_after_the_turn(experiment):
    tiny = experiment(text=DERIVED, batch_size=8, **TURNED)
    with_ids(tiny)
    config = tiny.config()
    data = open_data(config)
    batch = next(training_batches(config, data, CPU).between(0, 8))
    labels = batch.target.dense()
    assert labels.shape == (8, 7, 16, 16, 16) and labels.dtype == torch.float32
    for number, sample in enumerate(batch.samples):
        ids = ids_by_hand(data.train[sample.crop], sample, config)
        shown = [slice(3, 19)] * 3
        mito = labels[number, 0]
        np.testing.assert_array_equal(mito == 1, ids[*shown] > 0)
        patch = derive.IdPatch(torch.from_numpy(ids), (3, 3, 3), (8.0, 8.0, 8.0))
        parts = [derive.derive(channel, patch) for channel in config.derived.values()]
        expected = torch.cat(parts)
        torch.testing.assert_close(labels[number, 3:], expected, equal_nan=True)
    assert (labels[:, 3:].nan_to_num(0) != 0).any((0, 2, 3, 4)).all()


def ids_by_hand(crop, sample, config) -> np.ndarray:
    """The ids of a patch of 22^3 voxels about the centre of a sample, voxel by voxel."""
    stored = crop.ids("mito").astype(int) - 1
    offsets = (np.indices((22, 22, 22)).reshape(3, -1).T - 10.5) * 8.0
    places = sample.centre + offsets @ sample.orientation.T
    index = np.floor((places - crop.label_grid.origin) / 8 + 0.5 + 1e-6).astype(int)
    inside = ((index >= 0) & (index < stored.shape)).all(1)
    ids = np.full(len(index), -1)
    ids[inside] = stored[tuple(index[inside].T)]
    return ids.reshape(22, 22, 22).astype(np.int32)


def test_batches_are_the_same_for_any_number_of_workers(experiment):
    tiny = experiment(text=DERIVED, **TURNED)
    with_ids(tiny)
    batches = []
    for workers in (0, 2):
        config = tiny.config(num_workers=workers)
        stream = training_batches(config, open_data(config), CPU).between(0, 4)
        batches.append([batch.target.dense() for batch in stream])
    for one, other in zip(*batches, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_a_crop_that_does_not_annotate_the_class_is_unknown(experiment):
    tiny = experiment(text=DERIVED.replace("mito", "nuc"))
    config = tiny.config(positive_centre_fraction=0, weighted_sampler=False)
    data = open_data(config)
    for batch in training_batches(config, data, CPU).between(0, 8):
        for number, sample in enumerate(batch.samples):
            is_unknown = batch.target.derived[number].isnan()
            # crop2 annotates mito alone
            assert is_unknown.all() == (data.train[sample.crop].name == "tiny/crop2")


def test_validation_has_derived_channels_too(experiment):
    tiny = experiment(text=DERIVED)
    config = tiny.config()
    batch = next(validation_batches(config, open_data(config), CPU).between(0, 1))
    assert batch.target.dense().shape[1] == len(config.channels)


def test_a_mask_is_refused_where_ids_are_needed(experiment):
    tiny = experiment(
        text=DERIVED.replace("mito", "blob") + "\n    extra_classes = ['blob']",
        classes=("mito", "blob"),
    )
    for crop in ("crop1", "crop3"):
        (tiny.crop(crop) / "er").rename(tiny.crop(crop) / "blob")
    text = (tiny.folder / "datasplit.csv").read_text().replace("er", "blob")
    (tiny.folder / "datasplit.csv").write_text(text)
    with pytest.raises(UserError, match=r"class 'blob' is 0 and 1 in .*a mask, without ids"):
        open_data(tiny.config())
    kind = {"annotation_type": {"type": "semantic_segmentation"}}
    with changing(tiny.crop() / "blob") as attributes:
        attributes["cellmap"] = {"annotation": kind}
    with pytest.raises(UserError, match="class 'blob' is a mask by its annotation_type"):
        open_data(tiny.config())


def test_ids_are_reduced_to_the_most_frequent_object():
    ids = np.zeros((2, 2, 4), np.int64)
    ids[..., :2] = [[[5, 5], [8, 8]], [[8, 0], [0, 0]]]
    ids[0, 0, 2] = 4
    factor = np.array([2, 2, 2])
    assert reduced(ids, ids > 0, factor).tolist() == [[[8, 4]]]
    # where nothing is of an object, what ids say means nothing
    assert reduced(ids, ids > 5, factor).tolist() == [[[8, 0]]]


def test_the_smallest_type_that_holds_the_objects_is_written(tmp_path):
    ids = np.arange(1000).reshape(10, 10, 10) * 10**15
    writer = IdWriter(ids.shape, "mito")
    writer.write(np.zeros(3, int), ids, ids > 0, None)
    writer.finish(tmp_path, "crop")
    stored = np.load(tmp_path / "ids_mito.npy")
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored.ravel(), np.arange(1, 1001))


def test_objects_read_as_far_as_the_widest_channel_reaches(experiment):
    config = experiment(text=DERIVED).config()
    assert loaders.objects_patch(config) == sampling.Patch((22, 22, 22), (8, 8, 8))
    channels = {
        "a": boundary("mito", inside=8, outside=0),
        "b": affinities("mito", offsets=[(0, -40, 0)]),
    }
    wider = dataclasses.replace(config, derived=channels)
    assert loaders.objects_patch(wider) == sampling.Patch((18, 26, 18), (8, 8, 8))


def test_an_instance_class_with_one_object_in_each_crop_is_told(experiment, capsys):
    open_data(experiment(text=DERIVED).config())
    assert "class 'mito' is 0 and 1 in tiny/crop1" in capsys.readouterr().err
