from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import zarr
from conftest import CROP_SHAPE, CROPS, datasplit_text, world, write_data

from common.data import crops
from common.data.loaders import open_data
from common.data.ngff import write_multiscale
from common.train import fingerprint as fp

UNET = {
    "model.py": """
        from common.model.unet import build_unet


        def build_model(classes):
            return build_unet(classes, 8)
        """
}
SMALL = {"shape": (20, 20, 20), "scale": (8, 8, 8)}, {"shape": (16, 16, 16), "scale": (8, 8, 8)}


def run(tiny, *overrides, **more):
    said: list[str] = []
    facts = fp.fingerprint(
        tiny.folder, data=tiny.data, overrides=overrides, say=said.append, **more
    )
    return facts, said


def suggested(facts):
    return {one["setting"]: one for one in facts["suggestions"]}


def inside(name):
    return tuple(slice(a, a + n) for a, n in zip(CROPS[name][1], CROP_SHAPE, strict=True))


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
    facts, said = run(experiment())
    assert facts["crops"] == {"train": 2, "validate": 1}
    mito, nuc = (world()[name] for name in ("mito", "nuc"))
    where = {name: inside(name) for name in CROPS}
    train = np.concatenate([mito[where["crop1"]].ravel(), mito[where["crop2"]].ravel()])
    found = facts["classes"]["mito"]["train"]
    assert (found["annotated"], found["present"]) == (2, 2)
    assert found["fraction"] == pytest.approx(train.mean())
    assert found["positive_um3"] == pytest.approx(train.sum() * 512e-9, abs=1e-6)
    assert found["known_um3"] == pytest.approx(train.size * 512e-9, abs=1e-6)
    # crop2 annotates mito alone, and a mitochondrion is no nucleus: known there by exclusion
    nowhere = facts["classes"]["nuc"]["train"]
    assert (nowhere["annotated"], nowhere["present"]) == (1, 1)
    known = CROP_SHAPE[0] ** 3 + mito[where["crop2"]].sum()
    assert nowhere["fraction"] == pytest.approx(nuc[where["crop1"]].sum() / known)
    assert ["nuc", "1", "1", f"{nowhere['fraction']:.1%}"] in [line.split()[:4] for line in said]


def test_the_counts_are_those_that_training_takes(experiment):
    tiny = experiment()
    data, (facts, _) = open_data(tiny.config()), run(tiny)
    ours = [facts["classes"][name]["train"]["positive_um3"] for name in tiny.config().classes]
    np.testing.assert_allclose(ours, data.foreground * 512e-9, atol=1e-6)


def test_crops_that_training_decoded_are_not_decoded_again(experiment, monkeypatch):
    tiny = experiment(spatial_transforms={"rotate": {"axes": {"z": [-180, 180]}}})
    open_data(tiny.config())

    def again(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(crops, "_decode", again)
    assert run(tiny)[0]["crops"] == {"train": 2, "validate": 1}


def test_intensities_are_those_of_the_annotated_voxels(experiment):
    """A crop of 24^3 has 6^3 cells, all of which are read."""
    tiny = experiment()
    (found,) = run(tiny)[0]["intensities"].values()
    raw = zarr.open(str(tiny.raw / "s0"))[:]
    values = np.concatenate([raw[inside(name)].ravel() for name in CROPS]) / 255
    expected = [values.mean(), values.std(), *np.percentile(values, [1, 25, 50, 75, 99])]
    assert found["crops"] == 3
    np.testing.assert_allclose(
        [found[name] for name in ("mean", "std", "p1", "p25", "p50", "p75", "p99")],
        expected,
        atol=1e-4,
    )


def test_voxel_sizes_are_counted_by_crop(experiment):
    assert run(experiment())[0]["resolutions"] == {
        "raw": {"8": 3},
        "labels": {"8": 3},
        "raw as read": {"8": 3},
    }


@pytest.mark.parametrize("shape", [(24, 24, 24), (3, 40, 41), (400, 47, 1), (43, 80, 121)])
def test_cells_are_blocks_of_the_volume_that_do_not_repeat(shape):
    volume = np.arange(np.prod(shape)).reshape(shape)
    found = fp.cells(volume)
    edge = np.minimum(4, shape)
    assert len(np.unique(found)) == found.size <= 64 * 1000
    assert len(found) == np.prod(np.minimum(np.array(shape) // edge, 10))
    for cell in found[:: max(1, len(found) // 7)]:
        z, y, x = np.unravel_index(cell[0], shape)
        np.testing.assert_array_equal(
            cell, volume[z : z + edge[0], y : y + edge[1], x : x + edge[2]].ravel()
        )
    first, last = np.array(np.unravel_index([found.min(), found.max()], shape))[:, [0, 1]].T
    assert (first == 0).all() and (last >= np.array(shape) - 2 * edge).all()


# What stands out


def test_data_without_faults_have_the_shared_specimen_as_their_one_finding(experiment):
    (finding,) = run(experiment())[0]["findings"]
    assert finding.startswith("1 specimens train and validate")


def test_a_missing_part_of_the_raw_is_found_with_its_share(experiment):
    """Half of crop1 along z is 0, a quarter of crop3 is white: without noise, not imaged."""
    tiny = experiment()
    raw = zarr.open(str(tiny.raw / "s0"), mode="r+")
    raw[2:14, 2:26, 2:26] = 0
    raw[2:8, 30:54, 30:54] = 255
    findings = run(tiny)[0]["findings"]
    assert [text for text in findings if "constant" in text] == [
        "tiny/crop1: 50% of its annotated block is constant, 50% is 0; fetch its EM chunks, or remove the crop from the datasplit",
        "tiny/crop3: 17% of its annotated block is constant, 0% is 0; fetch its EM chunks, or remove the crop from the datasplit",
    ]


def test_black_voxels_in_themselves_are_no_gap(experiment):
    tiny = experiment()
    raw = zarr.open(str(tiny.raw / "s0"), mode="r+")
    raw[::2] = 0
    assert not [text for text in run(tiny)[0]["findings"] if "constant" in text]


def test_a_class_without_a_voxel_and_a_crop_without_any_are_named(experiment):
    tiny = experiment()
    for name in ("crop1", "crop2"):
        for label in CROPS[name][2]:
            if (name, label) != ("crop1", "er"):
                zarr.open(str(tiny.crop(name) / label / "s0"), mode="r+")[:] = 0
    facts, _ = run(tiny)
    assert facts["classes"]["mito"]["train"] | {"known_um3": 0} == {
        "annotated": 2,
        "present": 0,
        "known_um3": 0,
        "positive_um3": 0,
        "fraction": 0,
    }
    assert "annotated, but without a voxel in any train crop: mito, nuc" in facts["findings"]
    assert [
        text.split(":")[0] for text in facts["findings"] if "no voxel of any class" in text
    ] == ["tiny/crop2"]


def test_a_class_that_one_side_does_not_annotate_is_named(experiment):
    tiny = experiment()
    tiny.write(
        "datasplit.csv",
        datasplit_text(
            {name: (u, s, c if u == "train" else ("mito",)) for name, (u, s, c) in CROPS.items()}
        ),
    )
    facts, said = run(tiny)
    assert "annotated in no validate crop: er, nuc" in facts["findings"]
    assert "- annotated in no validate crop: er, nuc" in said


def test_a_crop_that_cannot_be_read_is_a_finding_and_the_others_are_described(experiment):
    tiny = experiment()
    shutil.rmtree(tiny.crop("crop2"))
    (tiny.crop("crop3") / "er" / ".zattrs").unlink()
    facts, _ = run(tiny)
    assert facts["crops"] == {"train": 1, "validate": 0}
    assert [("crop2" in text, "crop3" in text) for text in facts["findings"][:2]] == [
        (True, False),
        (False, True),
    ]
    assert facts["classes"]["mito"]["train"]["annotated"] == 1
    shutil.rmtree(tiny.raw)
    with pytest.raises(ValueError, match="none of its 3 crops can be read"):
        run(tiny)


def test_raw_coarser_than_what_the_network_is_given_is_named(experiment):
    tiny = experiment(input_array_info={"shape": (20,) * 3, "scale": (4,) * 3})
    assert any(
        text.startswith("3 crops have no raw near 4 nm") for text in run(tiny)[0]["findings"]
    )


def test_a_bright_dataset_is_far_from_the_others(many):
    raw = zarr.open(str(many.data / "copy-3/copy-3.zarr/recon-1/em/fibsem-uint8/s0"), mode="r+")
    raw[:] = np.minimum(raw[:].astype(int) + 60, 255)
    facts, _ = run(many)
    far = [text for text in facts["findings"] if "of its raw is" in text]
    assert far[0].startswith("copy-3: the mean of its raw is")
    assert {text.split(":")[0] for text in far} == {"copy-3"}


def test_a_dataset_of_little_contrast_is_far_from_the_others(many):
    raw = zarr.open(str(many.data / "copy-3/copy-3.zarr/recon-1/em/fibsem-uint8/s0"), mode="r+")
    raw[:] = (raw[:] - 100.0) * 0.2 + 100
    far = [text for text in run(many)[0]["findings"] if "of its raw is" in text]
    assert [text.split(" of its raw")[0] for text in far] == ["copy-3: the std"]


def test_a_crop_almost_empty_of_a_class_is_far_from_the_others(many):
    """A sixth of the other crops is er, four voxels of this one: far by its order of magnitude."""
    store = zarr.open(
        str(many.data / "copy-2/copy-2.zarr/recon-1/labels/groundtruth/crop3/er/s0"), mode="r+"
    )
    store[:] = 0
    store[0, 0, :4] = 1
    far = [text for text in run(many)[0]["findings"] if "see that the label is right" in text]
    assert [text.split(", of")[0] for text in far] == ["copy-2/crop3: 0.029% of it is er"]


def test_a_crop_painted_full_of_a_class_is_far_from_the_others(many):
    store = many.data / "copy-1/copy-1.zarr/recon-1/labels/groundtruth/crop1/er/s0"
    zarr.open(str(store), mode="r+")[:, :, :20] = 1
    far = [text for text in run(many)[0]["findings"] if "see that the label is right" in text]
    assert [text.split(" of it is ")[0].split(":")[0] for text in far] == ["copy-1/crop1"]
    assert "er, of the median crop that has it" in far[0]


def test_the_modified_z_score_is_that_of_the_median_absolute_deviation():
    """Median 5, absolute deviations 3 2 1 0 1 2 15 with median 2: 0.6745 * 15 / 2 = 5.06."""
    scores = fp.far(np.array([2.0, 3, 4, 5, 6, 7, 20]), 0.01)
    assert scores[-1] == pytest.approx(5.05875)
    assert (scores[:-1] < 3.5).all()
    assert fp.far(np.array([1.0, 1, 1, 1, 1, 1.02]), 0.01)[-1] == pytest.approx(0.6745 * 2)
    assert not fp.far(np.array([1.0, 1, 1, 100]), 0.01).any()


# What is suggested


def test_the_patch_is_the_largest_that_the_crops_can_fill(experiment):
    """Crops of 24^3 fill a target of 24^3, which the tiny network makes of 28^3; a raw volume of 56^3 holds that."""
    found = suggested(run(experiment())[0])
    assert (found["input_array_info.shape"]["value"], found["input_array_info.shape"]["now"]) == (
        [28] * 3,
        [20, 20, 20],
    )
    assert found["target_array_info.shape"]["value"] == [24] * 3
    assert (
        "have 192 nm or more, and the target covers 192 nm; 63% as many voxels are learnt from as are read, 51% now"
        in (found["input_array_info.shape"]["why"])
    )


def test_the_patch_follows_the_networks_steps_and_shrinks_to_the_crops(experiment):
    """At 4 nm the crops are 48 voxels wide, which the U-Net, in steps of 4, makes of 88; the experiment asks for 52 of 92."""
    sizes = {
        "input_array_info": {"shape": (92,) * 3, "scale": (4,) * 3},
        "target_array_info": {"shape": (52,) * 3, "scale": (4,) * 3},
    }
    found = suggested(run(experiment(files=UNET, **sizes))[0])
    assert found["input_array_info.shape"]["value"] == [88] * 3
    assert found["target_array_info.shape"]["value"] == [48] * 3


def test_the_patch_stays_within_the_raw(experiment):
    """A crop as wide as its raw of 56^3 could fill a target of 56^3, which takes raw of 60^3."""
    tiny = experiment()
    shutil.rmtree(tiny.crop("crop1"))
    write_multiscale(tiny.crop("crop1") / "mito", world()["mito"].astype(np.uint8), (8, 8, 8))
    tiny.write("datasplit.csv", datasplit_text({"crop1": ("train", (0, 0, 0), ("mito",))}))
    assert suggested(run(tiny)[0])["input_array_info.shape"]["value"] == [56] * 3


def test_the_patch_stops_where_the_network_does(experiment):
    model = """
        from torch import nn


        class Limited(nn.Conv3d):
            def forward(self, raw):
                if raw.shape[2] > 24:
                    raise ValueError("too large")
                return super().forward(raw)


        def build_model(classes):
            return Limited(1, len(classes), 5)
        """
    assert (
        suggested(run(experiment(files={"model.py": model}))[0])["input_array_info.shape"]["value"]
        == [24] * 3
    )


def test_patch_and_batch_fit_the_memory_that_is_free(experiment, monkeypatch):
    tiny = experiment()
    model = tiny.config().build_model(tiny.config().classes)
    probe = fp.Shapes(model, lambda network, raw: network(raw))

    def with_memory(size):
        monkeypatch.setattr(fp.runtime, "free_memory_gb", lambda _: size / fp.MEMORY_FRACTION / 1e9)
        found = suggested(run(tiny)[0])
        return (
            found["input_array_info.shape"]["value"],
            found["batch_size"]["value"],
            found["batch_size"]["why"],
        )

    assert with_memory(1e9)[:2] == ([28] * 3, 4)
    assert with_memory(probe.training_bytes((28,) * 3, 3))[:2] == ([28] * 3, 2)
    assert with_memory(probe.training_bytes((24,) * 3, 2) + 1)[:2] == ([24] * 3, 2)
    shape, batch, why = with_memory(100)
    assert batch == 1 and why.endswith("it does not fit, use a smaller patch")


def test_workers_leave_a_core_to_the_training(experiment, monkeypatch):
    tiny = experiment()
    for cores, expected in ((1, 0), (2, 1), (16, 1)):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False
        )
        found = suggested(run(tiny)[0])["num_workers"]
        assert (found["value"], found["now"]) == (expected, 0)


@pytest.mark.parametrize(
    "body, said",
    [
        ("raise FileNotFoundError('weights.pt: fetch the weights')", "fetch the weights"),
        ("return nn.Conv3d(2, len(classes), 3)", "channel"),
    ],
)
def test_a_network_that_cannot_be_tried_is_a_finding(experiment, body, said):
    model = f"from torch import nn\n\n\ndef build_model(classes):\n    {body}\n"
    facts, _ = run(experiment(files={"model.py": model}))
    assert list(suggested(facts)) == ["num_workers"]
    (finding,) = [text for text in facts["findings"] if "the network cannot be tried" in text]
    assert said in finding


# What is said and written


def test_the_report_says_each_suggestion_with_its_reason_and_changes_nothing(experiment):
    tiny = experiment()
    before = {path: path.read_bytes() for path in tiny.folder.iterdir() if path.is_file()}
    facts, said = run(tiny)
    assert said[0] == "tiny_experiment: 2 training crops, 1 validation crops"
    for one in facts["suggestions"]:
        (line,) = [line for line in said if line.startswith(f"- {one['setting']} = ")]
        assert line.endswith(one["why"]) and len(one["why"]) > 20
    assert {path: path.read_bytes() for path in tiny.folder.iterdir() if path.is_file()} == before


def test_the_json_holds_what_is_returned(experiment, tmp_path):
    tiny = experiment()
    facts, _ = run(tiny, json_path=tmp_path / "facts.json")
    assert json.loads((tmp_path / "facts.json").read_text()) == facts
    assert str(tmp_path) not in (tmp_path / "facts.json").read_text()
    with pytest.raises(FileNotFoundError, match="nowhere/facts.json: its folder does not exist"):
        run(tiny, json_path=tmp_path / "nowhere" / "facts.json")


def test_a_split_without_these_classes_is_refused(experiment):
    with pytest.raises(
        ValueError, match="no crop annotates any of pm; change classes or the split"
    ):
        run(experiment(classes=("pm",)))
