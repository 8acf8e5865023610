from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import zarr
from conftest import CROP_SHAPE, CROPS, datasplit_text, world, write_data

from common.data.samples.loaders import open_data
from common.data.summary import fingerprint, measured
from common.data.summary.findings import far, unlike_datasets
from common.data.summary.fingerprint import Facts
from common.errors import FileError, UserError


def describe(tiny) -> Facts:
    """Facts about the crops of an experiment."""
    config = tiny.config()
    crops, unreadable = measured.measure_crops(config)
    return fingerprint.describe(config, crops, unreadable)


def findings(tiny, text: str) -> list[str]:
    """The findings with `text` in them."""
    return [finding for finding in describe(tiny).findings if text in finding]


def inside(name):
    return tuple(slice(a, a + n) for a, n in zip(CROPS[name][1], CROP_SHAPE, strict=True))


def zarr_of(folder):
    """The finest level of an image, to write."""
    return zarr.open(str(folder / "s0"), mode="r+")


@pytest.fixture
def many(data_root, experiment):
    """Six datasets, each a copy of the tiny one; the crops of the last validate."""
    tiny = experiment()
    for n in range(5):
        write_data(data_root, dataset=f"copy-{n}")
    text = datasplit_text() + "".join(datasplit_text(dataset=f"copy-{n}") for n in range(5))
    tiny.write("datasplit.csv", text)
    return tiny


# What the data hold


def test_crops_and_fractions_of_each_class_are_those_of_the_volumes(experiment):
    facts = describe(experiment())
    assert facts.crops == {"train": 2, "validate": 1}
    mito = world()["mito"]
    nuc = world()["nuc"]
    where = {name: inside(name) for name in CROPS}
    train = np.concatenate([mito[where["crop1"]].ravel(), mito[where["crop2"]].ravel()])
    found = facts.classes["mito"]["train"]
    assert (found.annotated, found.present) == (2, 2)
    assert found.fraction == pytest.approx(train.mean())
    assert found.positive_um3 == pytest.approx(train.sum() * 512e-9, abs=1e-6)
    assert found.known_um3 == pytest.approx(train.size * 512e-9, abs=1e-6)
    # crop2 annotates mito alone, and a mitochondrion is no nucleus: known there by exclusion
    nowhere = facts.classes["nuc"]["train"]
    assert (nowhere.annotated, nowhere.present) == (1, 1)
    known = CROP_SHAPE[0] ** 3 + mito[where["crop2"]].sum()
    assert nowhere.fraction == pytest.approx(nuc[where["crop1"]].sum() / known)
    cells = [line.split()[:4] for line in fingerprint.report(facts)]
    assert ["nuc", "1", "1", f"{nowhere.fraction:.1%}"] in cells


def test_the_counts_are_those_that_training_takes(experiment):
    tiny = experiment()
    data = open_data(tiny.config())
    facts = describe(tiny)
    ours = [facts.classes[name]["train"].positive_um3 for name in tiny.config().classes]
    np.testing.assert_allclose(ours, data.foreground * 512e-9, atol=1e-6)


def test_crops_of_counter_examples_count_as_in_training(experiment):
    """crop2 annotates mito alone, which is no er."""
    tiny = experiment(classes=("er",), counter_classes=["mito"])
    data = open_data(tiny.config())
    facts = describe(tiny)
    assert facts.crops == {"train": 2, "validate": 1}
    known = facts.classes["er"]["train"].known_um3
    np.testing.assert_allclose(known, (data.foreground + data.background) * 512e-9, atol=1e-6)


def test_crops_that_training_decoded_are_not_decoded_again(experiment, monkeypatch):
    tiny = experiment(spatial_transforms={"rotate": {"axes": {"z": [-180, 180]}}})
    open_data(tiny.config())

    def again(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("common.data.crops.opened.decode", again)
    assert describe(tiny).crops == {"train": 2, "validate": 1}


def test_intensities_are_those_of_the_annotated_voxels(experiment):
    """A crop of 24^3 has 6^3 cells, all of which are read."""
    tiny = experiment()
    (found,) = describe(tiny).intensities.values()
    raw = zarr_of(tiny.raw)[:]
    values = np.concatenate([raw[inside(name)].ravel() for name in CROPS]) / 255
    assert found.crops == 3
    expected = [values.mean(), values.std(), *np.percentile(values, [1, 25, 50, 75, 99])]
    ours = [found.mean, found.std, found.p1, found.p25, found.p50, found.p75, found.p99]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_voxel_sizes_are_counted_by_crop(experiment):
    assert describe(experiment()).resolutions == {
        "raw": {"8": 3},
        "labels": {"8": 3},
        "raw as read": {"8": 3},
    }


def test_unequal_voxel_sizes_have_the_key_that_they_always_had():
    assert measured.short_nm((5.24, 4, 4)) == "5.24x4x4"


@pytest.mark.parametrize("shape", [(24, 24, 24), (3, 40, 41), (400, 47, 1), (43, 80, 121)])
def test_cells_are_blocks_of_the_volume_that_do_not_repeat(shape):
    volume = np.arange(np.prod(shape)).reshape(shape)
    found = measured.cells(volume)
    edge = np.minimum(4, shape)
    assert len(np.unique(found)) == found.size <= 64 * 1000
    assert len(found) == np.prod(np.minimum(np.array(shape) // edge, 10))
    for cell in found[:: max(1, len(found) // 7)]:
        z, y, x = np.unravel_index(cell[0], shape)
        block = volume[z : z + edge[0], y : y + edge[1], x : x + edge[2]]
        np.testing.assert_array_equal(cell, block.ravel())
    first, last = np.array(np.unravel_index([found.min(), found.max()], shape))[:, [0, 1]].T
    assert (first == 0).all()
    assert (last >= np.array(shape) - 2 * edge).all()


# What stands out


def test_data_without_faults_have_the_shared_specimen_as_their_one_finding(experiment):
    (finding,) = describe(experiment()).findings
    assert finding.startswith("1 specimen trains and validates")


def test_a_missing_part_of_the_raw_is_found_with_its_share(experiment):
    """Half of crop1 along z is 0, a quarter of crop3 is white: without noise, not imaged."""
    tiny = experiment()
    raw = zarr_of(tiny.raw)
    raw[2:14, 2:26, 2:26] = 0
    raw[2:8, 30:54, 30:54] = 255
    what_to_do = "fetch its EM chunks, or remove the crop from the datasplit"
    block = "of its annotated block is constant"
    assert findings(tiny, "constant") == [
        f"tiny/crop1: 50% {block}, 50% is 0; {what_to_do}",
        f"tiny/crop3: 17% {block}, 0% is 0; {what_to_do}",
    ]


def test_black_voxels_in_themselves_are_no_gap(experiment):
    tiny = experiment()
    zarr_of(tiny.raw)[::2] = 0
    assert not findings(tiny, "constant")


def test_a_class_without_a_voxel_and_a_crop_without_any_are_named(experiment):
    tiny = experiment()
    for name in ("crop1", "crop2"):
        for label in CROPS[name][2]:
            if (name, label) != ("crop1", "er"):
                zarr_of(tiny.crop(name) / label)[:] = 0
    facts = describe(tiny)
    mito = facts.classes["mito"]["train"]
    assert (mito.annotated, mito.present) == (2, 0)
    assert (mito.positive_um3, mito.fraction) == (0, 0)
    assert "annotated, but without a voxel in any train crop: mito, nuc" in facts.findings
    (finding,) = findings(tiny, "no voxel of any class")
    assert finding.startswith("tiny/crop2:")


def test_a_class_that_one_side_does_not_annotate_is_named(experiment):
    tiny = experiment()
    split = {}
    for name, (usage, start, classes) in CROPS.items():
        split[name] = (usage, start, classes if usage == "train" else ("mito",))
    tiny.write("datasplit.csv", datasplit_text(split))
    facts = describe(tiny)
    assert "annotated in no validate crop: er, nuc" in facts.findings
    assert "- annotated in no validate crop: er, nuc" in fingerprint.report(facts)


def test_a_data_root_that_is_off_by_a_folder_is_told_the_right_one(experiment):
    tiny = experiment()
    config = replace(tiny.config(), data_path=str(tiny.data / "tiny"))
    with pytest.raises(UserError, match=f"write --data {tiny.data}\n") as caught:
        measured.measure_crops(config)
    assert str(caught.value).count("no zarr store") == 1


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_crops(experiment, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileError, match=r"could not be written .* CELLMAP_CACHE=FOLDER") as caught:
        measured.measure_crops(experiment().config(cache_path=str(file / "cache")))
    assert "can be read" not in str(caught.value)


def test_a_crop_that_cannot_be_read_is_a_finding_and_the_others_are_described(experiment):
    tiny = experiment()
    shutil.rmtree(tiny.crop("crop2"))
    (tiny.crop("crop3") / "er" / ".zattrs").unlink()
    facts = describe(tiny)
    assert facts.crops == {"train": 1, "validate": 0}
    assert facts.classes["mito"]["train"].annotated == 1
    first, second = facts.findings[:2]
    assert "crop2" in first
    assert "crop3" not in first
    assert "crop3" in second
    shutil.rmtree(tiny.raw)
    with pytest.raises(UserError, match="none of its 3 crops"):
        describe(tiny)


def test_raw_coarser_than_what_the_network_is_given_is_named(experiment):
    tiny = experiment(
        input_array_info={"shape": (20,) * 3, "scale": (4,) * 3},
        target_array_info={"shape": (16,) * 3, "scale": (4,) * 3},
    )
    assert findings(tiny, "3 crops have no raw near 4 nm")


def test_a_bright_dataset_is_far_from_the_others(many):
    raw = zarr_of(many.data / "copy-3/copy-3.zarr/recon-1/em/fibsem-uint8")
    raw[:] = np.minimum(raw[:].astype(int) + 60, 255)
    far = findings(many, "of its raw is")
    assert far[0].startswith("copy-3: the mean of its raw is")
    assert {text.split(":")[0] for text in far} == {"copy-3"}


def test_a_dataset_of_little_contrast_is_far_from_the_others(many):
    raw = zarr_of(many.data / "copy-3/copy-3.zarr/recon-1/em/fibsem-uint8")
    raw[:] = (raw[:] - 100.0) * 0.2 + 100
    (finding,) = findings(many, "of its raw is")
    assert finding.startswith("copy-3: the std")


def test_a_crop_almost_empty_of_a_class_is_far_from_the_others(many):
    """A sixth of the other crops is er, four voxels of this one: far by its order of magnitude."""
    labels = zarr_of(many.data / "copy-2/copy-2.zarr/recon-1/labels/groundtruth/crop3/er")
    labels[:] = 0
    labels[0, 0, :4] = 1
    (finding,) = findings(many, "see that the label is right")
    assert finding.startswith("copy-2/crop3: 0.029% of it is er,")


def test_a_crop_painted_full_of_a_class_is_far_from_the_others(many):
    labels = many.data / "copy-1/copy-1.zarr/recon-1/labels/groundtruth/crop1/er"
    zarr_of(labels)[:, :, :20] = 1
    (finding,) = findings(many, "see that the label is right")
    assert finding.startswith("copy-1/crop1: ")
    assert "er, of the median crop that has it" in finding


def test_the_modified_z_score_is_that_of_the_median_absolute_deviation():
    """Median 5, absolute deviations 3 2 1 0 1 2 15 with median 2: 0.6745 * 15 / 2 = 5.06."""
    scores = far(np.array([2.0, 3, 4, 5, 6, 7, 20]), 0.01)
    assert scores[-1] == pytest.approx(5.05875)
    assert (scores[:-1] < 3.5).all()
    alike = np.array([1.0, 1, 1, 1, 1, 1.02])
    assert far(alike, 0.01)[-1] == pytest.approx(0.6745 * 2)
    assert not far(np.array([1.0, 1, 1, 100]), 0.01).any()


def test_a_split_without_these_classes_is_refused(experiment):
    with pytest.raises(UserError, match="no crop annotates any of pm"):
        describe(experiment(classes=("pm",)))


def test_how_raw_is_normalised_is_said(experiment):
    tiny = experiment(raw_normalization="zscore")
    facts = describe(tiny)
    ((name, scaling),) = facts.scalings.items()
    assert name == "tiny/tiny.zarr/recon-1/em/fibsem-uint8"
    line = f"{name}: {scaling['low']:.3f} to {scaling['high']:.3f} become 0 to 1, less"
    assert any(text.startswith(line) for text in fingerprint.report(facts))


def test_raw_that_is_not_normalised_is_not_measured(experiment):
    assert describe(experiment()).scalings == {}


def test_datasets_of_another_contrast_are_reported():
    def intensities(low: float, high: float) -> measured.Intensities:
        middle = (low + high) / 2
        return measured.Intensities(1, middle, 0.1, low, middle, middle, middle, high)

    alike = {"a": intensities(0.2, 0.7), "b": intensities(0.3, 0.7)}
    assert unlike_datasets(alike) == []
    assert unlike_datasets({"a": intensities(0.4, 0.5)}) == []
    flat = {"a": intensities(0.2, 0.7), "b": intensities(0.4, 0.5)}
    (said,) = unlike_datasets(flat)
    assert "from p1 to p99 are 0.10 in b and 0.50 in a" in said and "median" not in said
    bright = {"a": intensities(0.1, 0.5), "b": intensities(0.5, 0.9)}
    (said,) = unlike_datasets(bright)
    assert "the median of a is 0.30, of b 0.70" in said and "p99" not in said
    assert "raw_normalization = 'percentile'" in said
