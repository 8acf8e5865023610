"""Predictions to masks and objects: blocks as whole volumes, what is redone, what is refused."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import cc3d
import numpy as np
import pytest
import torch
import zarr
from scipy import ndimage
from scipy.special import expit

from common.config.load import load_process_config
from common.config.module import own_frames
from common.config.settings import ProcessConfig
from common.data.volumes import ngff, records, series
from common.errors import UserError
from common.infer import process
from common.infer.predicting import encode
from common.infer.processing import masks, one_class
from common.infer.processing import recipe as recipe_module
from common.infer.processing import record as record_module
from common.infer.processing.prediction import Probability
from common.infer.processing.recipe import THRESHOLDS, Recipe, load_recipe, read_recipe
from tests.volumes import begin_anew, changing

RNG = np.random.default_rng(5)
ABOVE = "def process_func(logits):\n    return (logits > 0) * 1\n"
RUN = "tiny_experiment/seed42"


def write_prediction(
    tiny, name, values, crop="crop3", scale=(8, 8, 8), content="probability", chunk=16, **about
) -> Path:
    """A prediction as predict leaves it: `values` (z, y, x) from the corner of the crop on."""
    path = tiny.config().path("predictions_path") / "tiny.zarr" / crop / name
    corner = ngff.open_levels(tiny.crop(crop) / "mito")[0].box()[0]
    about = {"content": content, "key": "a", **about}
    ngff.write_multiscale(
        path,
        np.asarray(values),
        scale,
        corner + np.array(scale) / 2,
        chunk=chunk,
        attributes={"prediction": about},
    )
    return path


def run(tiny, **settings) -> list[Path]:
    return process.process(tiny.folder, data=tiny.data, **settings)


def processed(tiny, name, crop="crop3") -> zarr.Array:
    return ngff.open_levels(tiny.config().path("processed_path") / "tiny.zarr" / crop / name)[
        0
    ].array


def configured(tiny, text: str) -> None:
    """Write process_config.py with the classes of data.py."""
    tiny.write("process_config.py", "import math\nfrom .data import classes\n" + text)


def recipe(function, halo=(0, 0, 0), shape=None, threshold=0.5, **settings) -> Recipe:
    info = {"input_array_info": {"shape": shape, "scale": (8.0, 8.0, 8.0)}} if shape else {}
    made = ProcessConfig(function, ("mito", "er"), halo=halo, **info, **settings)
    return Recipe(
        Path("process_config.py"), made, made.classes, "", {"mito": threshold, "er": threshold}
    )


def opened(tmp_path, values, content="logits", chunk=64) -> process.Prediction:
    ngff.write_multiscale(
        tmp_path / "p",
        values,
        (8, 8, 8),
        chunk=chunk,
        attributes={"prediction": {"content": content, "key": "a"}},
    )
    return process.open_prediction(tmp_path / "p")


def mask_of(recipe, prediction) -> np.ndarray:
    return one_class.mask(one_class.Making(recipe, "mito", prediction)).array


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to renaming, the background being the background."""
    pairs = np.unique([a.ravel(), b.ravel()], axis=1)
    return len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1] and bool(
        ((pairs[0] == 0) == (pairs[1] == 0)).all()
    )


def mean_of_27(logits):
    """Whether the mean over 3^3 voxels, those that are there, is above 0; exact for integers."""
    return torch.nn.functional.avg_pool3d(logits, 3, 1, padding=1, count_include_pad=False) > 0


def test_logits_of_any_size_are_read_as_their_probabilities(tmp_path):
    logits = np.array([-200, -90, -3, 0, 3, 200], np.float32).reshape(1, 2, 3)
    probability = Probability(opened(tmp_path, logits))[...]
    np.testing.assert_allclose(probability, expit(logits), rtol=1e-6, atol=1e-30)


# Blocks


@pytest.mark.parametrize("seed", range(12))
def test_blocks_with_a_halo_give_the_mask_of_the_whole_volume(tmp_path, seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 30, 3)
    block = tuple(rng.integers(2, 17, 3).tolist())
    halo = tuple(rng.integers(1, 4, 3).tolist())
    logits = rng.integers(-3, 4, shape).astype(np.float32)
    whole = ndimage.uniform_filter(logits.astype(float), 3, mode="nearest") > 1e-6
    prediction = opened(tmp_path, logits, chunk=int(rng.integers(4, 20)))
    found = mask_of(recipe(mean_of_27, halo, block, batch_size=int(rng.integers(1, 9))), prediction)
    np.testing.assert_array_equal(found, whole)


def test_without_its_halo_a_filter_shows_the_blocks(tmp_path):
    logits = RNG.integers(-3, 4, (20, 20, 20)).astype(np.float32)
    whole = ndimage.uniform_filter(logits.astype(float), 3, mode="nearest") > 1e-6
    assert (
        mask_of(recipe(mean_of_27, (0, 0, 0), (8, 8, 8)), opened(tmp_path, logits)) != whole
    ).any()


def test_chunks_are_put_together_to_blocks_unless_a_shape_is_set(tmp_path):
    given = []

    def process_func(logits):
        given.append(tuple(logits.shape))
        return logits > 0

    prediction = opened(tmp_path, np.zeros((40, 40, 300), np.uint8), "probability", chunk=48)
    mask_of(recipe(process_func, batch_size=2), prediction)
    assert given == [(2, 1, 40, 40, 96), (2, 1, 40, 40, 96)]
    given.clear()
    mask_of(recipe(process_func, shape=(40, 40, 200)), prediction)
    assert given == [(2, 1, 40, 40, 200)]


# Thresholds


def uint8_steps() -> np.ndarray:
    return np.arange(256, dtype=np.uint8).reshape(4, 8, 8)


@pytest.mark.parametrize("step", range(1, 255, 11))
def test_a_threshold_on_a_step_of_uint8_leaves_that_step_out(tmp_path, step):
    found = mask_of(
        recipe(lambda x: x > 0, threshold=step / 255),
        opened(tmp_path, uint8_steps(), "probability"),
    )
    np.testing.assert_array_equal(found, uint8_steps() > step)


@pytest.mark.parametrize(
    "threshold", [1e-6, 0.0004, 0.05, 0.2, 0.35, 0.5, 0.6, 0.8, 0.95, 0.997, 0.9999]
)
def test_logits_floats_and_uint8_give_the_mask_of_p_above_the_threshold(tmp_path, threshold):
    steps = uint8_steps()
    wanted = steps > math.floor(round(threshold * 255, 6))
    probability = (steps / 255).astype(np.float32)
    for name, values, content in (
        ("uint8", steps, "probability"),
        ("float32", probability, "probability"),
        ("float16", probability.astype(np.float16), "probability"),
    ):
        found = mask_of(
            recipe(lambda x: x > 0, threshold=threshold), opened(tmp_path, values, content)
        )
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    logits = encode.decode(steps, "probability")
    found = mask_of(recipe(lambda x: x > 0, threshold=threshold), opened(tmp_path, logits))
    inner = (steps > 0) & (steps < 255)  # logits of uint8 0 and 1 are half a step away from them
    np.testing.assert_array_equal(found[inner], wanted[inner])


def test_each_class_has_its_threshold(experiment):
    tiny = experiment()
    configured(tiny, ABOVE + 'thresholds = {"er": 0.8}')
    ramp = np.broadcast_to(np.linspace(0, 255, 24).astype(np.uint8), (24, 24, 24))
    for name in ("er", "nuc"):
        write_prediction(tiny, name, ramp)
    run(tiny, classes=("er", "nuc"))
    np.testing.assert_array_equal(processed(tiny, "er")[...], ramp > 204)
    np.testing.assert_array_equal(processed(tiny, "nuc")[...] > 0, ramp > 127)


# Objects


@pytest.mark.parametrize("seed", range(3))
def test_objects_across_blocks_are_those_of_the_whole_volume(experiment, seed):
    tiny = experiment()
    rng = np.random.default_rng(seed)
    block = tuple(rng.integers(3, 15, 3).tolist())
    configured(tiny, ABOVE + f'input_array_info = {{"shape": {block}, "scale": (8, 8, 8)}}')
    values = rng.choice(np.array([40, 220], np.uint8), (24, 24, 24), p=[0.88, 0.12])
    write_prediction(tiny, "mito", values, chunk=int(rng.integers(5, 20)))
    run(tiny, classes=("mito",))
    whole = cc3d.connected_components(values > 127, connectivity=26)
    assert whole.max() > 20
    assert same_partition(processed(tiny, "mito")[...], whole)


@pytest.mark.parametrize(("spacing", "dtype"), [(2, np.uint16), (4, np.uint8)])
def test_ids_take_the_smallest_integers_that_hold_them(experiment, spacing, dtype):
    tiny = experiment()
    values = np.zeros((24, 24, 24), np.uint8)
    values[::spacing, ::spacing, ::spacing] = 255
    write_prediction(tiny, "mito", values)
    run(tiny, classes=("mito",))
    ids = processed(tiny, "mito")
    assert ids.dtype == dtype and ids[...].max() == (24 // spacing) ** 3
    assert len(np.unique(ids[...])) == (24 // spacing) ** 3 + 1


def test_instance_func_gets_the_mask_the_probabilities_and_the_name(experiment):
    tiny = experiment()
    configured(
        tiny,
        ABOVE
        + """
import numpy as np
from dataclasses import replace
from pathlib import Path
def instance_func(mask, probability, name):
    np.savez(
        Path(__file__).parent / "seen.npz",
        mask=mask.array[...],
        whole=probability.array[...],
        part=probability.array[2:5, :, 3:],
        read=probability.read((slice(1, 4),) * 3),
        name=name,
        voxel_size=mask.voxel_size,
    )
    return replace(mask, array=mask.array * np.int64(7))
""",
    )
    values = RNG.integers(1, 255, (24, 24, 24)).astype(np.uint8)
    write_prediction(tiny, "mito", values)
    run(tiny, classes=("mito",))
    seen = np.load(tiny.folder / "seen.npz")
    np.testing.assert_array_equal(seen["mask"], values > 127)
    np.testing.assert_allclose(seen["whole"], values / 255, atol=1e-6)
    np.testing.assert_allclose(seen["part"], values[2:5, :, 3:] / 255, atol=1e-6)
    np.testing.assert_allclose(seen["read"], values[1:4, 1:4, 1:4] / 255, atol=1e-6)
    assert seen["name"] == "mito" and seen["voxel_size"].tolist() == [8, 8, 8]
    ids = processed(tiny, "mito")
    assert ids.dtype == np.uint8 and set(np.unique(ids[...])) == {
        0,
        7,
    }  # an id stays one object, in however many pieces


def test_a_mask_that_instance_func_gives_is_taken_apart(experiment):
    tiny = experiment()
    configured(tiny, ABOVE + "def instance_func(mask, probability, name):\n    return mask")
    values = np.zeros((24, 24, 24), np.uint8)
    values[2:5, 2:5, 2:5] = values[9:12, 9:12, 9:12] = 200
    write_prediction(tiny, "mito", values)
    run(tiny, classes=("mito",))
    assert same_partition(processed(tiny, "mito")[...], cc3d.connected_components(values))


def test_instance_classes_says_which_classes_become_objects(experiment):
    tiny = experiment()
    configured(tiny, ABOVE + 'instance_classes = ["er"]')
    values = np.zeros((24, 24, 24), np.uint8)
    values[2:5, 2:5, 2:5] = values[9:12, 9:12, 9:12] = 200
    for name in ("mito", "er"):
        write_prediction(tiny, name, values)
    run(tiny, classes=("mito", "er"))
    assert (processed(tiny, "mito")[...].max(), processed(tiny, "er")[...].max()) == (1, 2)


def test_viewers_take_objects_for_labels_and_find_all_images_from_the_root(experiment):
    tiny = experiment()
    for name in ("mito", "er"):
        write_prediction(tiny, name, np.full((24, 24, 24), 200, np.uint8))
    run(tiny, classes=("mito", "er"))
    store = tiny.config().path("processed_path") / "tiny.zarr"
    root = zarr.open_group(str(store), mode="r")
    assert root["crop3/mito"].attrs["image-label"] == {"version": "0.4"}
    assert "image-label" not in root["crop3/er"].attrs  # a mask
    assert series.listed(store) == ["crop3/er", "crop3/mito"]


def test_what_instance_functions_log_is_said(experiment, capsys):
    tiny = experiment()
    configured(
        tiny,
        ABOVE
        + "from common.infer.instances import watershed\n"
        + "def instance_func(mask, p, name):\n    return watershed(mask, max_voxels=8)",
    )
    write_prediction(tiny, "mito", np.full((24, 24, 24), 255, np.uint8))
    run(tiny, classes=("mito",))
    assert (
        "note: watershed: an object in a box of 24 x 24 x 24 voxels stays whole"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("classes", [("mito",), ("er",)])
def test_a_class_that_is_positive_everywhere_is_told(experiment, capsys, classes):
    """Objects and masks."""
    tiny = experiment()
    values = np.full((24, 24, 24), 200, np.uint8)
    write_prediction(tiny, *classes, values)
    run(tiny, classes=classes)
    said = capsys.readouterr().err
    assert f"crop3: positive in nearly all voxels: {classes[0]} (threshold 0.5)" in said
    values[:4] = 0
    write_prediction(tiny, *classes, values, key="b")
    run(tiny, classes=classes)
    assert "nearly all" not in capsys.readouterr().err


# What is redone and what is left

CHANGES = {
    "process_config.py": lambda tiny: tiny.write(
        "process_config.py", (tiny.folder / "process_config.py").read_text() + "\nbatch_size = 3"
    ),
    "a module that it imports": lambda tiny: tiny.write(
        "data.py", (tiny.folder / "data.py").read_text() + "\nmore = 1"
    ),
    "a module that that imports": lambda tiny: tiny.write("deep.py", "value = 2"),
    "a threshold": lambda tiny: tuned(tiny, mito=0.6),
    "the prediction": lambda tiny: write_prediction(
        tiny, "mito", np.full((24, 24, 24), 200, np.uint8), key="b"
    ),
    "the same prediction made again": lambda tiny: write_prediction(
        tiny, "mito", np.full((24, 24, 24), 200, np.uint8), made="2026-01-02T00:00:00+00:00"
    ),
}


def tuned(tiny, run: str = RUN, **thresholds: float) -> None:
    content = {
        run: {
            name: {"threshold": value, "checkpoint": "c" * 64} for name, value in thresholds.items()
        }
    }
    (tiny.folder / THRESHOLDS).write_text(json.dumps(content))


@pytest.fixture
def done(experiment):
    """mito is processed, and its first voxel marked, which shows if it is processed again."""
    tiny = experiment(files={"deep.py": "value = 1"})
    tiny.write("data.py", (tiny.folder / "data.py").read_text() + "\nfrom .deep import value")
    made = "2026-01-01T00:00:00+00:00"
    write_prediction(tiny, "mito", np.full((24, 24, 24), 200, np.uint8), made=made)
    run(tiny, classes=("mito",))
    path = tiny.config().path("processed_path") / "tiny.zarr/crop3/mito/s0"
    zarr.open_array(str(path), mode="r+")[0, 0, 0] = 9
    return tiny


def is_redone(tiny) -> bool:
    run(tiny, classes=("mito",))
    return processed(tiny, "mito")[0, 0, 0] != 9


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_made_otherwise_is_made_anew(done, what):
    assert not is_redone(done)
    CHANGES[what](done)
    assert is_redone(done)


def test_a_worker_reads_the_file_that_its_caller_read(experiment, tmp_path):
    tiny = experiment()
    path = tiny.folder / "process_other.py"
    path.write_text((tiny.folder / "process_config.py").read_text() + "batch_size = 3\n")
    prediction = opened(tmp_path, np.zeros((4, 4, 4), np.float32))
    source = masks.source_of(read_recipe(path), "mito", prediction)
    assert masks.recipe_of(source).settings.batch_size == 3


def test_what_process_config_does_not_import_changes_nothing(done):
    done.add("learning_rate = 1e-5")
    done.write("model.py", (done.folder / "model.py").read_text() + "\nmore = 1")
    tuned(done, er=0.7)
    assert not is_redone(done)


def test_a_copy_of_the_experiment_has_the_same_hash(experiment):
    one = experiment("one")
    other = experiment("other")
    assert read_recipe(one.folder).code == read_recipe(other.folder).code
    other.write("data.py", (other.folder / "data.py").read_text() + "\n")
    assert read_recipe(one.folder).code != read_recipe(other.folder).code


def test_the_engine_is_found_where_it_is_imported_from():
    """Also where it is installed, and the command is given in another folder."""
    file = recipe_module.IMPORT_ROOT / "common/infer/processing/recipe.py"
    assert file.samefile(recipe_module.__file__)


def test_functions_of_this_repository_are_part_of_the_hash(experiment, monkeypatch, tmp_path):
    tiny = experiment()
    monkeypatch.setattr(recipe_module, "IMPORT_ROOT", tmp_path)
    for room in ("infer", "data/volumes", "score"):
        (tmp_path / "common" / room).mkdir(parents=True)
    configured(
        tiny,
        "from common.infer.instances import watershed\n"
        "from common.data.volumes import ngff\n"
        "import common.score.challenge\n" + ABOVE,
    )
    found = []
    for name in ("infer/instances", "data/volumes/ngff", "score/challenge", "infer/instances"):
        found.append(read_recipe(tiny.folder).code)
        (tmp_path / "common" / f"{name}.py").write_text(f"version = {len(found)}")
    assert len({*found, read_recipe(tiny.folder).code}) == 5


def test_what_process_did_not_write_is_not_replaced(experiment):
    tiny = experiment()
    values = np.full((24, 24, 24), 200, np.uint8)
    path = write_prediction(tiny, "mito", values)
    predictions = tiny.config().path("predictions_path")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="crop3/mito: not written by process; set another"):
            run(tiny, overrides=[f"processed_path={predictions}"], overwrite=overwrite)
    np.testing.assert_array_equal(zarr.open_array(str(path / "s0"))[...], values)


def test_what_lost_a_chunk_since_it_was_written_is_made_anew(done):
    written = Path(done.config().path("processed_path") / "tiny.zarr/crop3/mito")
    ngff.open_levels(written)[0].chunk_file((1, 1, 1)).unlink()
    with pytest.raises(UserError, match=r"1 of its stored chunks are gone.*run process again"):
        check(done)
    assert is_redone(done)
    check(done)


def check(tiny, name: str = "mito") -> None:
    """Ask, as evaluate does, whether what was processed is whole."""
    folders = [tiny.config().path(kind) for kind in ("processed_path", "predictions_path")]
    processed, predicted = (folder / "tiny.zarr/crop3" / name for folder in folders)
    record_module.check_processed(load_recipe(tiny.config()), name, processed, predicted)


def test_a_prediction_that_lost_a_chunk_is_refused(experiment):
    tiny = experiment()
    path = write_prediction(tiny, "mito", np.full((24, 24, 24), 200, np.uint8))
    ngff.open_levels(path)[0].chunk_file((0, 1, 1)).unlink()
    with pytest.raises(UserError, match=r"1 of its stored chunks are gone.*run predict again"):
        run(tiny, classes=("mito",))


def test_chunks_that_may_not_be_read_are_not_taken_for_lost(experiment, monkeypatch):
    """The advice would be to predict again, or to forget how many there were."""
    tiny = experiment()
    path = write_prediction(tiny, "mito", np.full((24, 24, 24), 200, np.uint8))
    closed = ngff.open_levels(path)[0].chunk_file((0, 1, 1)).parent
    scan = os.scandir

    def scandir(folder):
        if Path(folder) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match=str(closed)):
        run(tiny, classes=("mito",))


def test_chunks_of_zeros_need_not_be_there(experiment):
    tiny = experiment()
    values = np.zeros((24, 24, 24), np.uint8)
    values[0, 0, 0] = 200
    path = write_prediction(tiny, "mito", values)
    assert ngff.count_chunks(path) == 1
    run(tiny, classes=("mito",))
    assert processed(tiny, "mito")[0, 0, 0] == 1
    check(tiny)


def test_overwrite_makes_anew(done):
    run(done, classes=("mito",), overwrite=True)
    assert processed(done, "mito")[0, 0, 0] == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("mito", "made with another threshold or process_config.py"), ("er", "half-written")],
)
def test_what_is_interrupted_is_not_taken_for_whole_and_is_done_by_the_next_call(
    experiment, name, words
):
    """Objects are written when all are found; until then the older volume stays, and is refused."""
    tiny = experiment()
    values = RNG.integers(0, 256, (24, 24, 24)).astype(np.uint8)
    write_prediction(tiny, name, values)
    run(tiny, classes=(name,))
    failing = """
CALLS = []
def process_func(logits):
    CALLS.append(1)
    assert len(CALLS) < 3, "pulled the plug"
    return logits > 0
"""
    configured(
        tiny,
        failing + "batch_size = 1\ninput_array_info = {'shape': (8, 24, 24), 'scale': (8, 8, 8)}",
    )
    with pytest.raises(AssertionError, match="pulled the plug"):
        run(tiny, classes=(name,))
    recipe = load_recipe(tiny.config())
    folders = [
        tiny.config().path(f"{kind}_path") / "tiny.zarr/crop3" / name
        for kind in ("processed", "predictions")
    ]
    with pytest.raises(UserError, match=words):
        record_module.check_processed(recipe, name, *folders)
    configured(tiny, ABOVE)
    run(tiny, classes=(name,))
    np.testing.assert_array_equal(processed(tiny, name)[...] > 0, values > 127)


@pytest.mark.parametrize("name", ["mito", "er"])
def test_the_same_call_finishes_what_was_interrupted(experiment, name):
    tiny = experiment()
    configured(
        tiny,
        """
from pathlib import Path
batch_size = 1
halo = 1  # with one, nothing is tried beforehand
input_array_info = {"shape": (8, 24, 24), "scale": (8, 8, 8)}
def process_func(logits):
    plug = Path(__file__).parent / "plug"
    plug.write_text(plug.read_text()[1:])
    assert plug.read_text(), "pulled"
    return logits > 0
""",
    )
    values = RNG.integers(0, 256, (24, 24, 24)).astype(np.uint8)
    write_prediction(tiny, name, values)
    (tiny.folder / "plug").write_text("xxx")
    with pytest.raises(AssertionError, match="pulled"):
        run(tiny, classes=(name,))
    (tiny.folder / "plug").write_text("xxxxxx")
    run(tiny, classes=(name,))
    np.testing.assert_array_equal(processed(tiny, name)[...] > 0, values > 127)


def test_a_processed_volume_says_what_made_it(experiment):
    tiny = experiment()
    tuned(tiny, mito=0.7)
    write_prediction(tiny, "mito", np.zeros((24, 24, 24), np.uint8), epoch=3)
    (folder,) = run(tiny, classes=("mito",))
    about = records.read_attributes(folder / "mito")["processed"]
    assert (about["threshold"], about["instances"], about["prediction"]["epoch"]) == (0.7, True, 3)


# Which predictions


def test_a_volume_of_ones_own_is_processed(experiment):
    tiny = experiment()
    folder = tiny.config().path("predictions_path") / "tiny.zarr/whole/er"
    values = RNG.integers(0, 256, (56, 56, 56)).astype(np.uint8)
    ngff.write_multiscale(
        folder, values, (8, 8, 8), attributes={"prediction": {"content": "probability", "key": "a"}}
    )
    (made,) = run(tiny, volume=tiny.raw)
    np.testing.assert_array_equal(ngff.open_levels(made / "er")[0].array[...], values > 127)


def test_a_volume_that_only_shares_its_name_with_the_predicted_one_is_noted(experiment, capsys):
    tiny = experiment()
    folder = tiny.config().path("predictions_path") / "tiny.zarr/whole/er"
    for raw, is_noted in ((tiny.raw / "s0", False), ("/other/tiny.zarr/recon-1/em/s0", True)):
        about = {"content": "probability", "key": "a", "raw": str(raw)}
        values = np.full((56, 56, 56), 200, np.uint8)
        ngff.write_multiscale(folder, values, (8, 8, 8), attributes={"prediction": about})
        run(tiny, volume=tiny.raw, overwrite=True)
        said = capsys.readouterr().err
        assert (f"predicted from {raw}, and the volume here is {tiny.raw}" in said) is is_noted


def test_of_a_test_crop_the_classes_that_are_scored_are_processed(experiment, tmp_path, capsys):
    tiny = experiment()
    (tmp_path / "manifest.csv").write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "3,tiny,er,[8;8;8],[16;240;240],[24;24;24]\n"
    )
    write_prediction(tiny, "er", np.zeros((24, 24, 24), np.uint8))
    (made,) = run(tiny, crops="test", manifest_path=str(tmp_path / "manifest.csv"))
    assert [path.name for path in made.glob("[!.]*")] == ["er"]
    assert "not predicted" not in capsys.readouterr().err


def test_test_crops_where_no_class_is_scored_are_left_out(experiment, tmp_path, capsys):
    """They were said to be there already, in folders that were made for nothing."""
    tiny = experiment()
    path = tmp_path / "manifest.csv"
    path.write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "3,tiny,er,[8;8;8],[16;240;240],[24;24;24]\n"
        "8,tiny,nuc,[8;8;8],[16;240;240],[24;24;24]\n"
    )
    write_prediction(tiny, "er", np.zeros((24, 24, 24), np.uint8))
    made = run(tiny, crops="test", manifest_path=str(path), classes=("er",))
    assert [folder.name for folder in made] == ["crop3"]
    assert "note: tiny/crop8 is left out, none of er is scored there" in capsys.readouterr().err
    assert not made[0].with_name("crop8").exists()
    with pytest.raises(UserError, match="nothing to process: none of mito is scored in these"):
        run(tiny, crops="test", manifest_path=str(path), classes=("mito",))


def test_classes_that_are_not_predicted_are_said_and_left_out(experiment, capsys):
    tiny = experiment()
    write_prediction(tiny, "er", np.zeros((24, 24, 24), np.uint8))
    run(tiny)
    assert "note: tiny/crop3: mito, nuc not predicted, left out" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [("mito", "er"), ()])
def test_a_class_without_the_prediction_that_was_asked_for_is_refused(experiment, asked):
    tiny = experiment()
    if asked:
        write_prediction(tiny, "er", np.zeros((24, 24, 24), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"crop3: no prediction of mito"):
        run(tiny, classes=asked)


def test_everything_that_is_wrong_with_predictions_is_said_before_anything_is_written(experiment):
    tiny = experiment()
    volume = np.zeros((24, 24, 24), np.uint8)
    write_prediction(tiny, "nuc", volume, crop="crop1")
    write_prediction(tiny, "mito", volume[:12], crop="crop1")
    path = write_prediction(tiny, "er", volume, crop="crop1")
    begin_anew(path)
    with pytest.raises(UserError) as error:
        run(tiny, crops="crop1,crop3")
    said = str(error.value).split("\n")
    assert len(said) == 3
    assert "mito: covers z, y, x 12 to 108, 12 to 204, 12 to 204 nm of z, y, x 12 to 204" in said[
        0
    ] and said[0].endswith("run predict with --overwrite")
    assert "crop1/er: half-written; run the command that writes it again" in said[1]
    assert "crop3: no prediction of mito, er, nuc" in said[2]
    assert not (tiny.folder / "processed").exists()


def test_an_image_that_predict_did_not_write_is_refused(experiment):
    tiny = experiment()
    path = write_prediction(tiny, "mito", np.zeros((24, 24, 24), np.uint8))
    with changing(path) as attributes:
        del attributes["prediction"]
    with pytest.raises(UserError, match="mito: not written by predict"):
        run(tiny, classes=("mito",))


def test_a_prediction_of_other_voxels_than_process_config_has_is_refused(experiment):
    tiny = experiment()
    write_prediction(tiny, "mito", np.zeros((12, 12, 12), np.uint8), scale=(16, 16, 16))
    with pytest.raises(
        UserError,
        match=r"mito/s0: voxels of 16 nm, .*says 8 nm",
    ):
        run(tiny, classes=("mito",))
    assert not (tiny.folder / "processed").exists()


# Functions that give something else


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (
            "logits[0]",
            r"the shape \(1, 20, 20, 20\) for logits of shape \(8, 1, 20, 20, 20\)",
        ),
        ("None", r"nothing \(None: is a return missing\?\); give one array"),
        ("[logits > 0]", "a list; give one array or tensor"),
        ("(logits > 0, logits)", "a tuple; give one array"),
        ("{'mask': logits > 0}", "a dict; give one array"),
        ("float(logits.mean())", "a float; give one array"),
        ("'mask'", "a str; give one array"),
        ("logits.mean()", r"the shape \(\) for logits"),
        ("(logits > 0).to('meta')", "a Tensor of torch.bool of shape .*; give one array"),
        ("logits.numpy().astype(complex)", "an array of complex128"),
        ("logits.numpy().astype(object)", "an array of object"),
        ("(logits > 0) * 3", "values like 3"),
        ("(logits > 0) * -1", "values like -1"),
        ("(logits > 0) * 255", "values like 255; give 1 where"),
        ("logits.sigmoid()", r"values like 0\.\d+"),
        ("logits * float('nan')", "values like nan"),
    ],
)
def test_what_is_no_mask_is_refused(experiment, result, words):
    tiny = experiment()
    tiny.write(
        "process_config.py",
        "from .data import classes, input_array_info\n"
        f"def process_func(logits):\n    return {result}",
    )
    write_prediction(tiny, "er", np.full((24, 24, 24), 200, np.uint8))
    with pytest.raises(UserError, match=f"process_config.py: process_func gives 'er' {words}"):
        run(tiny, classes=("er",))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("None", r"gives nothing \(None: is a return missing\?\) for 'mito'"),
        ("[mask]", "gives a list for 'mito'"),
        ("(mask, probability)", "gives a tuple for 'mito'"),
        ("1.0", "gives a float for 'mito'"),
        ("mask.array * 1", r"gives a ndarray of int64 of shape \(24, 24, 24\) for 'mito'"),
        (
            "torch.zeros(24, 24, 24)",
            r"gives a Tensor of torch.float32 of shape \(24, 24, 24\) for 'mito'",
        ),
        ("replace(mask, array=mask.array[:9])", r"gives a Volume of bool of shape \(9, 24, 24\)"),
        ("replace(mask, array=mask.array * 1j)", "gives a Volume of complex128 of shape"),
        ("probability", "gives a Volume of float32 of shape"),
        ("replace(mask, array=[[1]])", r"instance_func: a volume of a list; write a NumPy"),
        ("replace(mask, array=torch.zeros(24, 24, 24))", "instance_func: a volume of a Tensor"),
        ("replace(mask, array=mask.array[0])", "instance_func: a volume of shape"),
        ("remove_small(mask, -5)", "instance_func: min_nm3 -5; write a volume of at least 0"),
        ("replace(mask, array=mask.array * -1)", "gives the id -1 for 'mito'"),
    ],
)
def test_what_are_no_objects_is_refused(experiment, result, words):
    tiny = experiment()
    configured(
        tiny,
        ABOVE
        + "import torch\n"
        + "from dataclasses import replace\n"
        + "from common.infer.instances import remove_small\n"
        + f"def instance_func(mask, probability, name):\n    return {result}",
    )
    write_prediction(tiny, "mito", np.full((24, 24, 24), 200, np.uint8))
    with pytest.raises(UserError, match=f"process_config.py: (instance_func )?{words}"):
        run(tiny, classes=("mito",))


@pytest.mark.parametrize(
    "result",
    [
        "logits > 0",
        "(logits > 0).numpy()",
        "(logits > 0).to(torch.bfloat16)",
        "(logits > 0).to(torch.float16)",
        "(logits > 0).float().requires_grad_()",
        "(logits > 0).long()",
        "(logits > 0).to_sparse()",
        "(logits > 0).numpy().astype('>i2')",
    ],
)
def test_a_mask_is_taken_in_any_type_that_holds_0_and_1(experiment, result):
    tiny = experiment()
    tiny.write(
        "process_config.py",
        f"import torch\nfrom .data import classes\ndef process_func(logits):\n    return {result}",
    )
    values = RNG.integers(0, 256, (24, 24, 24)).astype(np.uint8)
    write_prediction(tiny, "er", values)
    run(tiny, classes=("er",))
    np.testing.assert_array_equal(processed(tiny, "er")[...], values > 127)


@pytest.mark.parametrize("function", ["process_func(logits)", "instance_func(mask, p, name)"])
def test_errors_of_the_users_functions_keep_the_users_lines(experiment, function):
    tiny = experiment()
    own = ABOVE if function.startswith("instance") else ""
    configured(tiny, f"{own}def {function}:\n    return [1][7]\n")
    write_prediction(tiny, "mito", np.full((24, 24, 24), 200, np.uint8))
    with pytest.raises(IndexError) as failure:
        run(tiny, classes=("mito",))
    (line,) = own_frames(failure.value)
    assert line.line == "return [1][7]"


def test_a_full_disk_is_a_sentence(experiment, monkeypatch):
    tiny = experiment()
    write_prediction(tiny, "er", np.full((24, 24, 24), 200, np.uint8))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zarr.storage.DirectoryStore, "_tofile", full)
    with pytest.raises(
        OSError,
        match=r"crop3: could not be written .*No space left on device",
    ):
        run(tiny, classes=("er",))


# Settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'instance_classes = ["mitoo"]',
            "instance_classes names mitoo",
        ),
        (
            'thresholds = {"mitoo": 0.4, "x": 0.5}',
            "thresholds names mitoo, x, which are",
        ),
        (
            'thresholds = {"mito": 1.0}',
            r"thresholds\['mito'\] = 1.0",
        ),
        ('thresholds = {"mito": 0}', r"thresholds\['mito'\] = 0;"),
        ('thresholds = {"mito": "high"}', r"thresholds\['mito'\] = 'high'"),
        ("halo = (1, -1, 1)", r"halo = \(1, -1, 1\)"),
        ("batch_size = 0", "batch_size = 0"),
        ("instance_func = lambda mask: mask", "instance_func = .*: too many positional arguments"),
        ('input_array_info = {"shape": (8, 8, 8)}', "input_array_info = .*write"),
        ('input_array_info = {"raw": {"shape": 8, "scale": 8}}', r"\(z, y, x\) in nm}$"),
        ("treshold = 0.4", "'treshold'.*'thresholds'"),
    ],
)
def test_a_setting_that_cannot_take_effect_stops_the_run(experiment, text, words):
    tiny = experiment()
    configured(tiny, ABOVE + text)
    with pytest.raises(UserError, match=words):
        run(tiny)


def test_a_function_of_objects_where_no_class_has_objects_is_told(experiment, capsys):
    tiny = experiment()
    function = "def instance_func(mask, probability, name):\n    return mask\n"
    configured(tiny, f"{ABOVE}instance_classes = ('mito',)\n{function}")
    read_recipe(tiny.folder)
    assert "instance_func" not in capsys.readouterr().err
    configured(tiny, f"{ABOVE}instance_classes = ()\n{function}")
    read_recipe(tiny.folder)
    assert "instance_func has no effect, as none of classes" in capsys.readouterr().err


@pytest.mark.parametrize(("scale", "is_made"), [(16.0, True), (1000.0, False)])
def test_other_voxels_are_predicted_at_a_scale_only_where_predict_makes_it(
    tmp_path, scale, is_made
):
    info = {"shape": (8, 8, 8), "scale": (scale,) * 3}
    made = ProcessConfig(lambda logits: logits, ("mito",), input_array_info=info)
    recipe = Recipe(Path("process_config.py"), made, made.classes, "")
    with pytest.raises(UserError, match=f"voxels of 8 nm, .* says {scale:g} nm; write") as refused:
        masks.block_shape(recipe, opened(tmp_path, np.zeros((4, 4, 4), np.float32)))
    assert (f"predict with --scale {scale:g} --overwrite" in str(refused.value)) is is_made


def test_settings_that_are_left_out(experiment):
    tiny = experiment()
    configured(tiny, ABOVE)
    settings = load_process_config(tiny.folder)
    assert (
        settings.halo,
        settings.input_array_info,
        settings.thresholds,
        settings.instance_func,
    ) == ((0, 0, 0), {}, {}, None)
    assert "mito" in settings.instance_classes and "er" not in settings.instance_classes


def test_a_class_that_process_config_does_not_have_is_refused(experiment):
    with pytest.raises(
        UserError,
        match=r"process_config.py: no class mitoo",
    ):
        run(experiment(), classes=("mitoo",))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"run": "a/b", "thresholds": {"mito": 0.5}}',
        json.dumps({RUN: {"mito": {"threshold": 2, "checkpoint": ""}}}),
        json.dumps({RUN: {"mito": {"threshold": "x", "checkpoint": ""}}}),
        json.dumps({RUN: {"mito": {"threshold": 0.5}}}),
    ],
)
def test_damaged_thresholds_are_refused(experiment, text):
    tiny = experiment()
    (tiny.folder / THRESHOLDS).write_text(text)
    with pytest.raises(
        UserError,
        match=r"thresholds.json: not the thresholds that tune writes",
    ):
        run(tiny)


def test_thresholds_of_another_run_are_refused(experiment):
    tiny = experiment()
    tuned(tiny, run="tiny_experiment/seed7", mito=0.7)
    with pytest.raises(
        UserError,
        match="tiny_experiment/seed7 and none of tiny_experiment/seed42",
    ):
        run(tiny)


def test_thresholds_of_process_config_go_before_tuned_ones(experiment, capsys):
    tiny = experiment()
    tuned(tiny, mito=0.7, er=0.8)
    assert load_recipe(tiny.config()).threshold("mito") == 0.7
    configured(tiny, ABOVE + 'thresholds = {"mito": 0.3}')
    recipe = load_recipe(tiny.config())
    # those of the other classes stay
    thresholds = [recipe.threshold(name) for name in ("mito", "er", "nuc")]
    assert thresholds == [0.3, 0.8, 0.5]
    assert list(recipe.checkpoints) == ["er"]
    tuned(tiny, run="another/run", er=0.8)
    assert load_recipe(tiny.config()).threshold("er") == 0.5
    told = f"has thresholds of er for another/run and none for {RUN}, which has 0.5 there"
    assert told in capsys.readouterr().err


def test_what_nothing_reads_in_thresholds_is_said(experiment, capsys):
    tiny = experiment()
    tuned(tiny, mitoo=0.7, er=0.8)
    path = tiny.folder / THRESHOLDS
    runs = json.loads(path.read_text())
    runs[RUN]["er"]["option"] = {"size": 3}
    path.write_text(json.dumps(runs))
    assert load_recipe(tiny.config()).threshold("mito") == 0.5
    told = capsys.readouterr().err
    assert f"the threshold of 'mitoo' for {RUN} has no effect" in told
    assert "has no such class; did you mean 'mito'?" in told
    assert "nothing reads 'option' of er; did you mean 'options'?" in told


def test_a_class_that_other_runs_alone_have_tuned_is_said(experiment, capsys):
    tiny = experiment()
    entry = {"threshold": 0.7, "checkpoint": "c"}
    runs = {"another/run": {"er": entry}, RUN: {"mito": entry}}
    (tiny.folder / THRESHOLDS).write_text(json.dumps(runs))
    assert load_recipe(tiny.config()).threshold("er") == 0.5
    told = f"has thresholds of er for another/run and none for {RUN}, which has 0.5 there"
    assert told in capsys.readouterr().err


def test_thresholds_of_another_checkpoint_are_said(experiment, capsys):
    tiny = experiment()
    tuned(tiny, mito=0.7)
    write_prediction(tiny, "mito", np.zeros((24, 24, 24), np.uint8), sha256="c" * 64)
    run(tiny, classes=("mito",))
    assert "another checkpoint" not in capsys.readouterr().err
    write_prediction(tiny, "mito", np.zeros((24, 24, 24), np.uint8), sha256="d" * 64, key="b")
    run(tiny, classes=("mito",))
    assert (
        "note: the thresholds of mito were tuned with another checkpoint" in capsys.readouterr().err
    )
