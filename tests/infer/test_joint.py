"""Networks of single classes complete labels, and a joint network trains on them."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from common.data.crops import decode
from common.data.crops.ids import IdWriter
from common.data.crops.palette import Rules
from common.data.crops.plan import told_apart
from common.data.crops.pseudo import ARRAY, WITHOUT_ID
from common.data.samples.loaders import open_data
from common.data.splits.split import Row, read_datasplit
from common.data.volumes import ngff
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Level
from common.errors import UserError
from common.infer.completing import class_networks, joint
from common.infer.completing.crop import CropToComplete, write
from common.score.judge import annotated
from common.train.several import each_class
from tests.volumes import changing

CLASSES = ("mito", "er")

DERIVED = """
    from common.config.derived import inner

    derived = {"edge": inner("mito", from_edge=8)}
    """


@pytest.fixture
def tiny(experiment):
    """An experiment whose crop1 annotates both classes, crop2 mito alone, and its networks."""
    made = experiment(
        text=DERIVED,
        epochs=1,
        iterations_per_epoch=1,
        classes=CLASSES,
        figure_samples=0,
        class_relations={"vesicle": {"excludes": ["er"]}},
        init_output_to_prior=False,  # with it a new network says the same everywhere
    )
    each_class.train_each_class(made.folder, data=made.data)
    return made


def completed(tiny, **options) -> Path:
    # a network that has hardly been trained is not sure of anything
    options = {"threshold": 0.2, "data": tiny.data, **options}
    return joint.init(tiny.folder, **options)


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def stored(folder: Path, name: str, array: str = "s0") -> np.ndarray:
    return zarr.open(str(folder / name / array), mode="r")[:]


def test_networks_complete_the_labels_and_nothing_that_is_annotated_changes(tiny, run):
    path = completed(tiny)
    assert path == tiny.folder / "joint" / "datasplit.csv"
    predicted = stored(tiny.folder / "predictions/tiny_experiment/seed42-er/tiny.zarr/crop2", "er")
    least = int(np.median(predicted))
    threshold = least / 255
    completed(tiny, threshold=threshold, overwrite=True)
    crop = path.parent / "tiny.zarr" / "crop2"
    mito = stored(tiny.crop("crop2"), "mito")
    np.testing.assert_array_equal(stored(crop, "mito"), mito)
    assert not stored(crop, "mito", "pseudo").any()
    er = stored(crop, "er")
    # what follows from mito is no network's word
    np.testing.assert_array_equal(er[mito == 1], 0)
    by_networks = stored(crop, "er", "pseudo") == 1
    assert not by_networks[mito == 1].any()
    source = stored(crop, "source")
    confidence = stored(crop, "confidence")
    expected = np.where(mito == 1, 0, np.where(predicted > least, 1, 255))
    assert set(np.unique(er)) == {0, 1, 255}
    np.testing.assert_array_equal(er, expected)
    np.testing.assert_array_equal(by_networks, er == 1)
    np.testing.assert_array_equal(source, np.where(er == 1, 2, 0))
    np.testing.assert_array_equal(confidence, np.where(er == 1, predicted, 0))
    for name in CLASSES:
        of_crop1 = stored(path.parent / "tiny.zarr" / "crop1", name)
        np.testing.assert_array_equal(of_crop1, stored(tiny.crop("crop1"), name))

    # the same bytes when a crop is made again, and when nothing is left to do
    before = content(path.parent)
    shutil.rmtree(crop)
    completed(tiny, threshold=threshold)
    assert content(path.parent) == before
    completed(tiny, threshold=threshold)
    assert content(path.parent) == before

    # a joint network trains on them, on objects too, and validates on the annotation
    joined = ("datasplit_path=joint/datasplit.csv", "run_name=joint", "pseudo_weight=0.5")
    assert tiny.train(*joined).finished
    assert [of_crop.with_ids for of_crop in open_data(tiny.config(*joined)).train] == [
        ("mito",)
    ] * 2
    _, crop1, crop2, validation = path.read_text().splitlines()
    assert validation.startswith('"validate"') and str(tiny.crop("crop3")) in validation
    crop2 = crop2.replace('"train"', '"validate"')
    (tiny.folder / "swapped.csv").write_text(f"{crop1}\n{crop2}\n")
    with pytest.raises(UserError, match="labels of networks in validation crops, tiny/crop2"):
        tiny.train("datasplit_path=swapped.csv", "run_name=other")
    with pytest.raises(UserError, match="no training crop with labels of networks"):
        tiny.train("run_name=third", "pseudo_weight=0.5")

    # networks that changed are not mixed with those from before
    with pytest.raises(UserError, match=r"crop1: --threshold was .* and is 0.9 since"):
        completed(tiny, threshold=0.9)
    of_er = each_class.members(tiny.folder, ["er"], data=tiny.data)["er"].path("model_save_path")
    tiny.train(*each_class.settings_of(tiny.config(), "er"), "epochs=2")
    shutil.copy(of_er / "latest.pt", of_er / "best.pt")
    with pytest.raises(UserError, match=r"crop1: the network of er changed since .*--overwrite"):
        completed(tiny, threshold=threshold)
    words = ("--data", tiny.data, "--overwrite", "--threshold", 0.2)
    code, out, _ = run("joint", "init", tiny.folder, *words)
    assert (code, out.strip()) == (0, str(path))
    assert content(path.parent) != before

    # nor those of which nothing tells what they saw
    split = tiny.folder / "datasplit.csv"
    split.write_text(split.read_text().replace('"validate"', '"test"'))
    with pytest.raises(UserError, match="nothing tells on which crops it was trained"):
        completed(tiny)


def test_a_network_that_saw_a_crop_that_judges_teaches_nobody(experiment):
    tiny = experiment(epochs=1, iterations_per_epoch=1, classes=CLASSES, figure_samples=0)
    tiny.train(*each_class.settings_of(tiny.config(), "mito"))
    found = class_networks.find(["mito"], tiny.folder, data=tiny.data)
    rows = read_datasplit(tiny.folder / "datasplit.csv", tiny.data)
    class_networks.refuse_judges(found, rows)
    for usage in ("validate", "test"):
        judging = [replace(row, usage=usage) for row in rows]
        with pytest.raises(UserError, match=f"of mito was trained on tiny/crop1.* to {usage}"):
            class_networks.refuse_judges(found, judging)


def test_training_on_the_labels_is_told_with_the_settings_that_were_given(tiny, capsys):
    completed(tiny, overrides=["epochs=1", "infer_groups=True"])
    said = capsys.readouterr().err
    assert (
        f"train {tiny.folder} --set epochs=1 --set infer_groups=True --set datasplit_path=" in said
    )


def test_a_missing_network_is_said_with_the_command_that_trains_it(experiment):
    tiny = experiment()
    with pytest.raises(UserError, match=r"no network of mito, er, nuc; .*\n.*train .*--each-class"):
        completed(tiny)


def test_crops_of_one_name_are_refused_which_would_become_one_folder(experiment):
    """The labels of the second stood with the raw of the first, too."""
    tiny = experiment()
    shutil.copytree(tiny.data / "tiny", tiny.data / "other" / "tiny")
    text = (tiny.folder / "datasplit.csv").read_text()
    twice = text + text.splitlines()[0].replace('"tiny/', '"other/tiny/') + "\n"
    tiny.write("datasplit.csv", twice)
    with pytest.raises(UserError, match="crops of one name, tiny/crop1, by which completed crops"):
        completed(tiny)


def test_a_class_that_the_members_never_had_is_told_apart(experiment):
    others = experiment()
    with pytest.raises(UserError, match="ld is not among its classes, so that it has no network"):
        class_networks.find(["mito", "ld"], others.folder, data=others.data)


def test_members_on_coarser_voxels_are_told(experiment, capsys):
    config = experiment().config()
    coarse = replace(config, target_array_info={"shape": (8, 8, 8), "scale": (16, 16, 16)})
    network = class_networks.ClassNetwork("er", coarse, Path("best.pt"), "")
    class_networks.note_other_voxels(
        [network, replace(network, name="mito", config=config)], config
    )
    said = capsys.readouterr().err
    assert "networks of er predict on voxels of 16 nm" in said and "learns on 8 nm" in said


def test_classes_that_share_voxels_are_not_exclusive(experiment, run):
    tiny = experiment(exclusive_classes=("cell", "mito"))
    code, _, said = run("joint", "init", tiny.folder, "--data", tiny.data)
    assert code == 2
    assert "'cell' and 'mito' share voxels by the class table" in said


NO_ID = WITHOUT_ID
NOBODY = 2**64 - 1

DRAWN = {
    # in a row along x: two objects, background, and what nobody annotated of mito
    "mito": [7, 7, 300, 0, 9, 9, 9, 9],
    # 255 is unknown; where er is, mito is not; where a part of mito is, mito is
    "er": [0, 0, 0, 0, 1, 0, 255, 255],
    "mito_mem": [0, 0, 0, 0, 0, 1, 255, 255],
}
PREDICTED = {"mito": [0, 0, 0, 0, 255, 255, 255, 0], "er": [0, 0, 0, 0, 0, 0, 0, 255]}
KEPT = [7, 7, 300, 0, 0, NO_ID, NO_ID, 0]


def write_row(folder: Path, values: list[int], about: dict | None = None) -> Level:
    """Labels that are the same along z and y."""
    labels = np.broadcast_to(np.array(values, np.uint16), (4, 4, len(values)))
    attributes = {"cellmap": {"annotation": {"annotation_type": about}}} if about else None
    ngff.write_multiscale(folder, labels, (8, 8, 8), (4, 4, 4), attributes=attributes)
    return ngff.open_levels(folder)[0]


def drawn_crop(tmp_path: Path) -> CropToComplete:
    of_mask = {"type": "semantic_segmentation", "encoding": {"absent": 0, "unknown": 255}}
    of_ids = {"type": "instance_segmentation", "encoding": {"absent": 0, "unknown": 9}}
    for name, values in DRAWN.items():
        write_row(tmp_path / name, values, of_ids if name == "mito" else of_mask)
    predicted = []
    for name, values in PREDICTED.items():
        predicted.append(write_row(tmp_path / "predicted" / name, values))
    row = Row("train", tmp_path / "raw", tmp_path, tuple(DRAWN))
    return CropToComplete(row, CLASSES, predicted, 0.5, rules=Rules())


def test_ids_of_people_stay_and_networks_give_none(tmp_path):
    write(drawn_crop(tmp_path), tmp_path / "out")
    mito = stored(tmp_path / "out", "mito")
    assert mito.dtype == np.uint64
    np.testing.assert_array_equal(mito, np.broadcast_to(np.array(KEPT, np.uint64), mito.shape))
    by_networks = stored(tmp_path / "out", "mito", "pseudo")[0, 0]
    np.testing.assert_array_equal(by_networks, [0, 0, 0, 0, 0, 0, 1, 1])

    # a run reads the labels of all, and the objects of people; background that follows is known
    reader = LabelReader(ngff.open_levels(tmp_path / "out" / "mito")[0], "mito")
    writer = IdWriter(mito.shape, "mito")
    whole = np.zeros(3, int), np.array(mito.shape)
    job = SimpleNamespace(label_factor=np.ones(3, int), label_start=np.zeros(3, int))
    labels = decode._read_labels(job, reader, *whole, writer=writer)
    np.testing.assert_array_equal(labels.positive[0, 0], [1, 1, 1, 0, 0, 1, 1, 0])
    assert labels.unknown is None
    np.testing.assert_array_equal(writer.stored[0, 0], [2, 2, 3, 1, 1, 0, 0, 0])
    # and halved along x: 300 beside background is no majority, and of a network's voxel nothing
    job.label_factor = np.array((1, 1, 2))
    halved = decode._read_labels(job, reader, whole[0], whole[1] // (1, 1, 2), writer=writer)
    np.testing.assert_array_equal(halved.positive[0, 0], [1, 0, 0, 0])


def test_classes_without_ids_are_told_before_networks_are_loaded(experiment):
    tiny = experiment(text=DERIVED, classes=CLASSES)
    kind = {"annotation_type": {"type": "semantic_segmentation"}}
    with changing(tiny.crop("crop1") / "mito") as attributes:
        attributes["cellmap"] = {"annotation": kind}
    with pytest.raises(UserError, match="class 'mito' is a mask by its annotation_type"):
        completed(tiny)


def test_masks_of_networks_have_no_objects_and_judge_nobody(tmp_path):
    """As in a datasplit of joint init that is given to an experiment with derived channels."""
    write_row(tmp_path / "mito", [1, 1, 0, 0], {"type": "semantic_segmentation"})
    row = Row("train", tmp_path / "raw", tmp_path, ("mito",))
    with pytest.raises(UserError, match="class 'mito' is a mask by its annotation_type"):
        told_apart(row, ["mito"])
    ngff.add_array(tmp_path / "mito", ARRAY)
    assert told_apart(row, ["mito"]) == ()
    level = ngff.open_levels(tmp_path / "mito")[0]
    with pytest.raises(UserError, match=r"mito: labels that networks completed .* judged by what"):
        annotated(level, "mito", True)


def test_classes_that_do_not_share_one_grid_are_refused(tmp_path):
    """The same shape and the same first voxel do not make voxels of 16 nm those of 8 nm."""
    labels = np.ones((4, 4, 4), np.uint8)
    ngff.write_multiscale(tmp_path / "mito", labels, (8, 8, 8), (4, 4, 4))
    ngff.write_multiscale(tmp_path / "er", labels, (16, 16, 16), (4, 4, 4))
    row = Row("train", tmp_path / "raw", tmp_path, CLASSES)
    crop = CropToComplete(row, CLASSES, [], 0.5, rules=Rules(False, False))
    with pytest.raises(UserError, match="er: not on the grid of 'mito'; the classes of a crop"):
        write(crop, tmp_path / "out")
