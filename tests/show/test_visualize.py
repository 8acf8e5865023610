"""Pictures of crops by their pixels, and what neuroglancer is served, by HTTP."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import world
from PIL import Image

from common.classes import TESTED
from common.data.splits import regions
from common.data.splits.regions import Region
from common.data.volumes import ngff
from common.data.volumes.ngff import open_levels, write_multiscale
from common.errors import FileError, UserError
from common.infer import predict
from common.show import figures, painted, viewer, visualize
from common.show import served as served_module
from common.show.layers import Layers, find_layers
from common.show.montage import montage
from common.show.painted import Objects, Painted, Part
from common.show.served import Served

CORNER = np.array((2, 30, 30))
"""Of crop3, the validation crop of the tiny experiment, in voxels."""

INSIDE = tuple(slice(a, a + 24) for a in CORNER)
SLICES = (6, 12, 18)
"""Of its 24, those at a quarter, half and three quarters."""


ABOUT = {"model_name": "m", "run_name": "r", "epoch": 1, "metric": "dice 1"}
"""What a prediction says of its checkpoint."""


def write(
    tiny,
    kind: str,
    name: str,
    volume: np.ndarray,
    scale=(8, 8, 8),
    translation=8 * CORNER,
    **attributes,
) -> Path:
    """A predicted or processed class of crop3."""
    path = tiny.config().path(f"{kind}_path") / "tiny.zarr/crop3" / name
    write_multiscale(path, volume, scale, translation, attributes=attributes)
    return path


def shown(tiny, **options) -> tuple[list[Path], list[str]]:
    """The pictures of the validation crop, and what was said."""
    said: list[str] = []
    pictures = visualize.visualize(
        tiny.folder, png=tiny.folder / "pictures", data=tiny.data, say=said.append, **options
    )
    return pictures, said


def panels(
    image: np.ndarray, columns: int, rows: int = 3, shape=(24, 24), times: int = 15
) -> np.ndarray:
    """(rows, columns, y, x, 3): the panels of a picture, one pixel for each of their own."""
    height = shape[0] * times
    width = shape[1] * times
    first = image.shape[0] - rows * height - (rows - 1) * 6
    centre = slice(times // 2, None, times)
    found = np.zeros((rows, columns, *shape, 3), image.dtype)
    for row in range(rows):
        top = first + row * (height + 6)
        for column in range(columns):
            left = column * (width + 6)
            panel = image[top : top + height, left : left + width]
            found[row, column] = panel[centre, centre]
    return found


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def of_arrays(
    tmp_path: Path, raw: np.ndarray, scale, **truth: tuple[np.ndarray, tuple]
) -> tuple[Region, Layers]:
    """A region of volumes that all begin at 0."""
    levels = {}
    for name, (volume, size) in {"": (raw, scale), **truth}.items():
        write_multiscale(tmp_path / f"volume_{name}", volume, size, np.array(size) / 2)
        levels[name] = open_levels(tmp_path / f"volume_{name}")
    lower, upper = next(iter(reversed(levels.values())))[0].box()
    region = Region("data", "crop1", tmp_path / "volume_", lower, upper, None, ())
    return region, {"raw": {"": levels.pop("")}, "truth": levels}


def test_raw_and_truth_are_the_slices_of_the_crop(experiment):
    tiny = experiment()
    [path], said = shown(tiny)
    assert path == tiny.folder / "pictures/tiny_crop3.png"
    assert said == ["note: tiny/crop3: no predictions, no processed"]
    raw, truth = panels(read(path), 2).swapaxes(0, 1)
    stored = open_levels(tiny.raw)[0].array[:][INSIDE][list(SLICES)]
    low, high = np.percentile(stored, (0.5, 99.5))
    expected = ((stored - low) / (high - low)).clip(0, 1) * 255
    np.testing.assert_allclose(raw[1:, ..., 0], expected[1:], atol=1)
    np.testing.assert_allclose(raw[0, :18, :, 0], expected[0, :18], atol=1)  # above the scale bar
    expected = np.zeros((3, 24, 24, 3), np.uint8)
    sizes = []
    for name in ("nuc", "er", "mito"):  # nuc and er overlap: the smaller is painted over the larger
        where = world()[name][INSIDE][list(SLICES)]
        expected[where] = figures.class_colours([name])[0]
        sizes.append(where.sum())
    assert sizes == sorted(sizes, reverse=True)
    np.testing.assert_array_equal(truth, expected)


def test_what_was_predicted_and_processed_stands_beside_the_truth(experiment):
    """With a network that was trained and its true predictions."""
    tiny = experiment()
    tiny.train()
    predict.predict(tiny.folder, data=tiny.data)
    mito = np.zeros((24, 24, 24), np.uint8)
    mito[:, 2:8, 2:8] = 1
    mito[:, 12:20, 12:20] = 2
    write(tiny, "processed", "mito", mito)
    [path], said = shown(tiny, classes=("mito",))
    assert said == []
    columns = panels(read(path), 4).swapaxes(0, 1)
    stored = open_levels(tiny.config().path("predictions_path") / "tiny.zarr/crop3/mito")[0]
    start = np.rint((8 * CORNER - stored.translation) / 8).astype(int)
    inside = tuple(slice(a, a + 24) for a in start)
    probability = np.array(stored.array[:][inside][list(SLICES)]) / 255
    colour = figures.class_colours(["mito"])[0]
    np.testing.assert_allclose(columns[2], probability[..., None] * colour, atol=1)
    first = columns[3][:, 5, 5]
    second = columns[3][:, 15, 15]
    assert (first == figures.object_colours(np.array([[1]]), colour)[0, 0]).all()
    assert (second == figures.object_colours(np.array([[2]]), colour)[0, 0]).all()
    assert (first != second).any()
    assert (columns[3][:, 10, 10] == 0).all()


def test_a_mask_has_the_colour_of_its_class(experiment):
    tiny = experiment()
    write(tiny, "processed", "mito", np.ones((24, 24, 24), np.uint8))
    [path], _ = shown(tiny, kinds=("processed",), classes=("mito",))
    assert (panels(read(path), 1)[1:] == figures.class_colours(["mito"])[0]).all()


def test_probabilities_look_the_same_however_they_are_stored(experiment):
    probability = np.random.default_rng(0).uniform(0.02, 0.98, (24, 24, 24))
    stored = {
        "uint8": np.rint(probability * 255).astype(np.uint8),
        "probability": probability.astype(np.float16),
        "logits": np.log(probability / (1 - probability)).astype(np.float32),
    }
    found = []
    for content, volume in stored.items():
        tiny = experiment(content)
        about = ABOUT | {"content": content.replace("uint8", "probability")}
        write(tiny, "predictions", "er", volume, prediction=about)
        [path], _ = shown(tiny, kinds=("predictions",), classes=("er",))
        found.append(panels(read(path), 1)[1:, 0].astype(int))
    expected = probability[list(SLICES[1:])][..., None] * figures.class_colours(["er"])[0]
    for image in found:
        np.testing.assert_allclose(image, expected, atol=2)


def test_logits_end_where_they_end(experiment):
    """Outside of a predicted volume nothing is probable, though a logit of 0 were one half."""
    tiny = experiment()
    volume = np.full((24, 24, 12), 9, np.float32)
    write(tiny, "predictions", "er", volume, prediction=ABOUT | {"content": "logits"})
    [path], _ = shown(tiny, kinds=("truth", "predictions"), classes=("er",))
    image = panels(read(path), 2)[1:, 1]
    assert (image[:, :, 13:] == 0).all()
    assert (image[:, :, :11] > 0).any(-1).all()


def test_volumes_of_other_voxel_sizes_meet_on_the_coarser_of_raw_and_truth(tmp_path):
    """Truth at 4 nm on raw at 8 nm: a pixel is 8 nm, and shows the truth in its middle."""
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[:, 4:9, :] = 1  # 2 raw voxels and a half
    raw = np.zeros((10, 10, 10), np.uint8)
    region, layers = of_arrays(tmp_path, raw, (8, 8, 8), er=(truth, (4, 4, 4)))
    image = panels(montage(region, layers), 2, shape=(10, 10), times=36)[:, 1]
    assert (image.any(-1) == np.isin(np.arange(10), (2, 3, 4))[:, None]).all()
    raw = np.zeros((20, 20, 20), np.uint8)
    coarse = truth[::2, ::2, ::2]
    region, layers = of_arrays(tmp_path, raw, (4, 4, 4), er=(coarse, (8, 8, 8)))
    assert panels(montage(region, layers), 2, shape=(10, 10), times=36)[:, 1].any()


def test_anisotropic_voxels_are_shown_at_their_true_proportions(tmp_path):
    """Pixels are squares of the longer of y and x; across the shorter they are means.

    Here of lines drawn 400 times as dense.
    """
    raw = np.random.default_rng(0).integers(0, 256, (8, 45, 20), np.uint8)
    region, layers = of_arrays(tmp_path, raw, (50, 4, 9))
    picture = montage(region, {"raw": layers["raw"]})
    image = panels(picture, 1, shape=(20, 20), times=18)[:, 0, ..., 0].astype(float)
    dense = np.repeat(raw[[2, 4, 6]].astype(float), 400, axis=1)  # 0.01 nm
    expected = dense.reshape(3, 20, 900, 20).mean(2)
    low, high = np.percentile(expected, (0.5, 99.5))
    stretched = ((expected - low) / (high - low)).clip(0, 1) * 255
    np.testing.assert_allclose(image[1:], stretched[1:], atol=1.01)


def annotated(path: Path, **encoding: int) -> None:
    """Write what the values of labels mean into their metadata."""
    group = zarr.open_group(str(path), mode="r+")
    kind = {"type": "semantic_segmentation", "encoding": encoding}
    group.attrs["cellmap"] = {"annotation": {"annotation_type": kind}}


@pytest.mark.parametrize(
    ("value", "dtype"), [(255, np.uint8), (-1, np.int8), (-3, np.int64), (np.nan, np.float32)]
)
def test_what_is_unknown_in_the_truth_is_shown_as_unknown(experiment, value, dtype):
    """Unless another class is known to be there; the legend says what the colour means."""
    tiny = experiment()
    labels = np.zeros((24, 24, 24), dtype)
    labels[:, :12] = value
    labels[:, 12:16] = 1
    nuc = np.zeros((24, 24, 24), np.uint8)
    nuc[:, :3] = 1
    for name, volume in {"er": labels, "nuc": nuc}.items():
        path = tiny.crop("crop3") / name
        write_multiscale(path, volume, (8, 8, 8), 8 * CORNER)
        annotated(path, absent=0, unknown=255)
    [path], _ = shown(tiny, kinds=("truth",), classes=("er", "nuc"))
    rows = panels(read(path), 1)[1, 0][:, 5]
    er, nuc_colour = figures.class_colours(["er", "nuc"])
    expected = [nuc_colour] * 3 + [figures.UNKNOWN_RGB] * 9 + [er] * 4 + [np.zeros(3)] * 8
    np.testing.assert_array_equal(rows, expected)
    image = read(path)
    wanted = figures.legend(
        ["er", "nuc", "unknown"], [er, nuc_colour, figures.UNKNOWN_RGB], image.shape[1]
    )
    np.testing.assert_array_equal(image[27 + 22 :][: len(wanted)], wanted)


def test_255_is_an_id_where_no_metadata_say_otherwise(experiment):
    tiny = experiment()
    path = tiny.crop("crop3") / "mito"
    write_multiscale(path, np.full((24, 24, 24), 255, np.uint8), (8, 8, 8), 8 * CORNER)
    [picture], _ = shown(tiny, kinds=("truth",), classes=("mito",))
    colour = figures.colours_of_objects([255], figures.class_colours(["mito"])[0])[0]
    assert (panels(read(picture), 1)[1, 0] == colour).all()


def test_a_prediction_that_is_not_a_number_is_no_background(experiment):
    tiny = experiment()
    values = np.zeros((24, 24, 24), np.float32)
    values[:, :12] = np.nan
    write(tiny, "predictions", "er", values, prediction={"content": "logits"})
    [path], _ = shown(tiny, kinds=("predictions",), classes=("er",))
    assert (panels(read(path), 1)[1, 0][:12] == figures.UNKNOWN_RGB).all()


def test_a_column_without_anything_says_so(experiment):
    tiny = experiment()
    write(tiny, "predictions", "er", np.full((24, 24, 24), 100, np.uint8))
    write(tiny, "processed", "er", np.zeros((24, 24, 24), np.uint8))
    [path], _ = shown(tiny, kinds=("predictions", "processed"), classes=("er",))
    heads = ["predictions: nothing above 0.5 in these slices", "processed: nothing in these slices"]
    image = read(path)
    wanted = figures.text_line(heads, 2 * 360 + 6)
    legend_height = len(figures.legend([], [], image.shape[1]))
    found = image[27 + 22 + legend_height :][: len(wanted), : wanted.shape[1]]
    np.testing.assert_array_equal(found, wanted)
    write(tiny, "processed", "er", np.ones((24, 24, 24), np.uint8))
    [path], _ = shown(tiny, kinds=("processed",), classes=("er",))
    image = read(path)
    wanted = figures.text_line(["processed"], 360)
    legend_height = len(figures.legend(["er"], figures.class_colours(["er"]), image.shape[1]))
    found = image[27 + 22 + legend_height :][: len(wanted), :360]
    np.testing.assert_array_equal(found, wanted)


def test_the_legend_has_the_colours_of_the_objects_that_are_seen(experiment):
    tiny = experiment()
    ids = np.zeros((24, 24, 24), np.uint8)
    ids[:, :8] = 2
    ids[:, 8:16] = 9
    write(tiny, "processed", "mito", ids)
    [path], _ = shown(tiny, kinds=("processed",), classes=("mito",))
    objects = figures.colours_of_objects([2, 9], figures.class_colours(["mito"])[0])
    np.testing.assert_array_equal(*legend_of(path, ["mito"], ["mito"], colours=[objects]))


def test_a_large_crop_fits_and_no_more_than_its_slices_is_read(tmp_path, monkeypatch):
    raw = np.zeros((40, 700, 1100), np.uint8)
    raw[10, :, :550] = 200
    raw[20] = 100
    raw[30, :350] = 200
    er = (raw == 200).astype(np.uint8)
    region, layers = of_arrays(tmp_path, raw, (8, 8, 8), er=(er, (8, 8, 8)))
    depths = []
    plain = ngff.Level.read

    def noted(level, start, stop):
        depths.append(int(stop[0] - start[0]))
        return plain(level, start, stop)

    monkeypatch.setattr(ngff.Level, "read", noted)
    image = panels(montage(region, layers), 2, shape=(233, 367), times=1)
    assert max(depths) <= 3
    first, second, third = image[:, 1]
    assert first[:, :183].any(-1).all()
    assert not first[:, 184:].any()
    assert not second.any()
    assert third[:116].any(-1).all()
    assert not third[117:].any()


def legend_of(
    path: Path, names: list[str], labels: list[str], colours=None
) -> tuple[np.ndarray, np.ndarray]:
    """The legend of a picture, and what one with these labels looks like."""
    image = read(path)
    colours = figures.class_colours(names) if colours is None else colours
    wanted = figures.legend(labels, colours, image.shape[1])
    return image[27 + 22 :][: len(wanted)], wanted


def test_the_legend_is_of_the_classes_that_are_seen(experiment):
    """One class is predicted, one never with more than a half, one is not there."""
    tiny = experiment()
    for name, value in {"er": 255, "nuc": 100}.items():
        write(tiny, "predictions", name, np.full((24, 24, 24), value, np.uint8))
    [path], _ = shown(tiny, kinds=("predictions",))
    np.testing.assert_array_equal(*legend_of(path, ["er"], ["er"]))
    # of the truth's classes one is not annotated, though it is predicted
    shutil.rmtree(tiny.crop("crop3") / "er")
    [path], _ = shown(tiny)
    labels = ["mito", "nuc", "er (no truth)"]
    np.testing.assert_array_equal(*legend_of(path, ["mito", "nuc", "er"], labels))


def test_the_title_says_which_checkpoint_predicted(experiment):
    tiny = experiment()
    about = {"model_name": "unet", "run_name": "seed7", "epoch": 12, "metric": "iou 0.5 at epoch 9"}
    write(tiny, "predictions", "er", np.zeros((24, 24, 24), np.uint8), prediction=about)
    [path], _ = shown(tiny)
    image = read(path)
    text = "tiny/crop3   unet/seed7, epoch 12 (iou 0.5 at epoch 9)"
    title = figures.text_line([text], image.shape[1], 18)
    np.testing.assert_array_equal(image[: len(title)], title)


def test_what_is_not_there_or_half_written_is_left_out_and_said(experiment):
    tiny = experiment()
    write(tiny, "predictions", "er", np.zeros((24, 24, 24), np.uint8))
    grid = ngff.Grid(np.zeros(3), np.full(3, 8.0), (24, 24, 24))
    ngff.start_multiscale(
        tiny.config().path("predictions_path") / "tiny.zarr/crop3/nuc", grid, np.uint8, (24, 24, 24)
    )
    assert shown(tiny)[1] == ["note: tiny/crop3: no predictions of mito, nuc, no processed"]


def test_a_volume_of_ones_own_is_shown_by_its_raw(experiment):
    tiny = experiment()
    [path], said = shown(tiny, volume=tiny.raw, roi="0:160,0:160,0:80")
    name = path.stem.removeprefix("tiny_")
    assert said == [f"note: tiny/{name}: no truth, no predictions, no processed"]
    assert panels(read(path), 1, shape=(20, 10), times=18).any()


def test_one_picture_goes_into_one_file(experiment):
    tiny = experiment()
    path = tiny.folder / "a.png"
    assert visualize.visualize(tiny.folder, png=path, data=tiny.data) == [path]
    with pytest.raises(UserError, match=r"a\.png: one file for 3 crops"):
        visualize.visualize(tiny.folder, "*", png=path, data=tiny.data)
    assert len(visualize.visualize(tiny.folder, "*", png=tiny.folder / "all", data=tiny.data)) == 3
    # as a script names them
    given = {"classes": "mito, er", "kinds": "raw,truth", "png": path, "data": tiny.data}
    assert visualize.visualize(tiny.folder, ["crop3"], **given) == [path]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kinds": ("raw", "thruth")}, "--kinds thruth; .* predictions"),
        ({"classes": ("mitoo",)}, "--classes: .*mitoo.*'mito'"),
        ({"crops": "crop9"}, "crop9"),
        ({"kinds": ("processed",)}, "--crops validate: nothing of processed"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(experiment, options, words):
    with pytest.raises(UserError, match=words):
        shown(experiment(), **options)


def test_without_neuroglancer_a_sentence_says_what_to_do(experiment, monkeypatch):
    tiny = experiment()
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    with pytest.raises(UserError, match="pip install neuroglancer"):
        visualize.visualize(tiny.folder, data=tiny.data)


def levels_of(tmp_path: Path, volume: np.ndarray, labels: bool) -> list[ngff.Level]:
    """Of 8 x 4 x 4 and 8 x 8 x 8 nm, as a pyramid grows towards cubes, and of 16 nm."""
    grid = ngff.Grid(np.array([4.0, 102, 202]), np.array([8.0, 4, 4]), volume.shape)
    ngff.start_multiscale(tmp_path / "pyramid", grid, volume.dtype, (16, 16, 16))[...] = volume
    reduce = ngff.pick if labels else ngff.block_mean
    ngff.finish_multiscale(tmp_path / "pyramid", grid, [(1, 2, 2), (2, 2, 2)], reduce)
    return open_levels(tmp_path / "pyramid")


def overwrite(level: ngff.Level, value: int) -> None:
    zarr.open_array(str(level.path), mode="r+")[...] = value


@pytest.mark.parametrize(
    "factor", [(1, 1, 1), (1, 2, 2), (2, 4, 4), (1, 4, 4), (2, 1, 1), (4, 8, 8)]
)
def test_coarse_views_are_means_of_the_finest_voxels(tmp_path, factor):
    volume = np.random.default_rng(0).integers(0, 256, (16, 32, 48), np.uint8)
    served = Served(levels_of(tmp_path, volume, False), False)
    found = served.reduced(np.array([1, 0, 2]), np.array(volume.shape) // factor, np.array(factor))
    expected = ngff.block_mean(volume, factor)[1:, :, 2:]
    np.testing.assert_allclose(found.astype(float), expected, atol=1)  # rounded at each level


def test_the_mean_of_the_last_voxels_is_of_those_that_there_are(tmp_path):
    write_multiscale(tmp_path / "raw", np.full((5, 5, 5), 80, np.uint8), (8, 8, 8))
    served = Served(open_levels(tmp_path / "raw"), False)
    assert (served.reduced(np.zeros(3, int), np.full(3, 3), np.full(3, 2)) == 80).all()


def test_a_view_is_read_from_the_coarsest_level_that_serves(tmp_path):
    levels = levels_of(tmp_path, np.full((16, 32, 48), 7, np.uint8), False)
    overwrite(levels[1], 50)  # told apart
    overwrite(levels[2], 90)
    served = Served(levels, False)
    values = {
        (1, 1, 1): 7,
        (2, 2, 1): 7,
        (1, 2, 2): 50,
        (1, 4, 4): 50,
        (2, 4, 4): 90,
        (4, 8, 8): 90,
    }
    for factor, value in values.items():
        found = served.reduced(np.zeros(3, int), np.array([16, 32, 48]) // factor, np.array(factor))
        assert (found == value).all(), factor


def test_a_view_keeps_ids_and_the_voxels_at_the_end(tmp_path):
    """13 voxels by twos are 7, the last of a single one; no id between two others appears."""
    volume = np.random.default_rng(0).choice(np.array([0, 3, 900], np.uint16), (13, 13, 13))
    write_multiscale(tmp_path / "ids", volume, (8, 8, 8))
    served = Served(open_levels(tmp_path / "ids"), True)
    found = served.reduced(np.array([2, 0, 0]), np.array([7, 7, 7]), np.array([2, 2, 2]))
    np.testing.assert_array_equal(found, volume[4::2, ::2, ::2])


def test_a_level_that_does_not_begin_where_the_finest_does_is_not_used(tmp_path):
    levels = levels_of(tmp_path, np.full((16, 32, 48), 7, np.uint8), False)
    moved = ngff.Level(levels[1].path, levels[1].array, levels[1].scale, levels[1].translation + 3)
    overwrite(levels[1], 50)
    served = Served([levels[0], moved], False)
    found = served.reduced(np.zeros(3, int), np.array([16, 16, 24]), np.array([1, 2, 2]))
    assert (found == 7).all()


@pytest.fixture
def neuroglancer():
    """The package, its server stopped at the end."""
    package = pytest.importorskip("neuroglancer")
    yield package
    package.stop()


def viewed(tiny, **options):
    """A viewer of crop3, its state as JSON, and what a path of its server sends."""
    config = tiny.config()
    boxes = regions.find(config)
    layers = find_layers(config, boxes[0], say=lambda text: None, **options)
    [opened] = viewer.open_viewers(boxes, [layers])
    server = opened.get_viewer_url().partition("/v/")[0]

    def get(path: str) -> bytes:
        with urllib.request.urlopen(f"{server}/{path}", timeout=600) as answer:
            return answer.read()

    return opened, opened.state.to_json(), get


def token(layer: dict) -> str:
    return layer["source"][0]["url"].removeprefix("python://volume/")


def chunk(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(zlib.decompress(content)))


def test_the_viewer_has_a_layer_for_each_class_in_its_place(experiment, neuroglancer):
    tiny = experiment()
    write(
        tiny,
        "predictions",
        "er",
        np.zeros((20, 20, 20), np.float16),
        (10, 8, 4),
        8 * CORNER + (1, 0, -2),
        prediction={"content": "logits"},
    )
    write(tiny, "processed", "mito", np.zeros((24, 24, 24), np.uint8))
    opened, state, get = viewed(tiny)
    layers = {layer["name"]: layer for layer in state["layers"]}
    tabs = {name: layer for name, layer in layers.items() if not layer.get("archived")}
    assert {name: layer.get("visible", True) for name, layer in tabs.items()} == {
        "raw": True,
        "truth objects": False,
        "truth/er": False,
        "predictions/er": True,
        "processed/mito": True,
    }
    assert [name for name in layers if name not in tabs] == ["truth/mito", "truth/nuc"]
    types = [layer["type"] for layer in layers.values()]
    assert types == ["image", *["segmentation"] * 2, "image", *["segmentation"] * 3]
    assert "exp(-value)" in layers["predictions/er"]["shader"]
    assert layers["truth/er"]["segmentDefaultColor"] == "#f59e32"
    begins = {
        "truth/er": ((8, 8, 8), 8 * CORNER - 4),
        "predictions/er": ((10, 8, 4), 8 * CORNER + (1 - 5, -4, -2 - 2)),
    }
    for name, (scale, begin) in begins.items():
        place = layers[name]["source"][0]["transform"]
        assert list(place["outputDimensions"]) == ["z", "y", "x"]
        sizes = [size for size, _ in place["outputDimensions"].values()]
        np.testing.assert_allclose(sizes, np.array(scale) * 1e-9)
        assert {unit for _, unit in place["outputDimensions"].values()} == {"m"}
        matrix = np.array(place["matrix"])
        np.testing.assert_allclose(matrix[:, :3], np.eye(3))
        np.testing.assert_allclose(matrix[:, 3] * scale, begin)  # where the first voxel begins, nm
    assert list(state["dimensions"]) == ["x", "y", "z"]
    middle = 8 * CORNER + 92
    np.testing.assert_allclose(np.array(state["position"]) * 8, middle[::-1])
    assert b"neuroglancer" in get(f"v/{opened.token}/")


def ids_at(tmp_path: Path, name: str, *places: tuple[int, int]) -> Part:
    """A class of 4^3 voxels; in its layer z the id."""
    volume = np.zeros((4, 4, 4), np.uint8)
    for z, number in places:
        volume[z] = number
    write_multiscale(tmp_path / name, volume, (8, 8, 8), (4, 4, 4))
    return Part(name, open_levels(tmp_path / name))


def all_of(volume: Painted) -> list[int]:
    """The values of the layers, each of one value."""
    values = volume.reduced(np.zeros(3, int), np.full(3, 4), np.ones(3, int))
    assert (values == values[:, :1, :1]).all()
    return values[:, 0, 0].tolist()


def test_objects_of_several_classes_are_one_volume_of_ids(tmp_path):
    parts = [
        ids_at(tmp_path, "mito", (0, 7), (1, 250)),
        ids_at(tmp_path, "cell", (0, 1), (1, 1), (2, 2)),
    ]
    below = painted.bottom_up(parts)
    assert [part.name for part in below] == ["cell", "mito"]
    assert all_of(Objects(below)) == [1007, 1250, 2, 0]


def test_masks_and_predictions_of_several_classes_are_one_volume_of_their_numbers(tmp_path):
    er = ids_at(tmp_path, "er", (0, 255), (1, 100))
    membrane = ids_at(tmp_path, "er_mem", (0, 200), (2, 127))
    below = painted.bottom_up([membrane, er])
    assert [part.name for part in below] == ["er", "er_mem"]
    assert all_of(Painted(below, are_labels=True)) == [2, 1, 2, 0]
    assert all_of(Painted(below, are_labels=False)) == [2, 0, 0, 0]  # probabilities above 0.5


def test_classes_on_other_voxels_are_not_painted_together(tmp_path):
    same = [ids_at(tmp_path, name) for name in ("er", "er_mem")]
    write_multiscale(tmp_path / "pm", np.zeros((4, 4, 4), np.uint8), (4, 4, 4))
    other = Part("pm", open_levels(tmp_path / "pm"))
    assert painted.on_same_voxels([other, *same]) == [same, [other]]


def test_48_classes_open_as_few_tabs_in_the_colours_of_the_classes(experiment, neuroglancer):
    tiny = experiment()
    zeros = np.zeros((24, 24, 24), np.uint8)
    for kind in ("predictions", "processed"):
        for name in TESTED:
            write(tiny, kind, name, zeros)
    _, state, get = viewed(tiny, classes=TESTED)
    tabs = [layer for layer in state["layers"] if not layer.get("archived")]
    assert [layer["name"] for layer in tabs] == [
        "raw",
        "truth objects",
        "truth/er",
        "predictions masks",
        "processed objects",
        "processed masks",
    ]
    seen = [layer["name"] for layer in tabs if layer.get("visible", True)]
    assert seen == ["raw", "processed objects", "processed masks"]
    red, green, blue = figures.class_colours(["golgi"])[0] / 255
    color = f"color = vec3({red:.3f}, {green:.3f}, {blue:.3f});  // golgi"
    assert color in tabs[5]["shader"]
    sent = chunk(get(f"neuroglancer/npz/{token(tabs[5])}/2,2,2/0,0,0/12,12,12"))
    assert sent.shape == (12, 12, 12)


def test_the_viewer_is_sent_voxels(experiment, neuroglancer):
    tiny = experiment()
    logits = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float16)
    write(tiny, "predictions", "er", logits, prediction={"content": "logits"})
    _, state, get = viewed(tiny)
    layers = {layer["name"]: token(layer) for layer in state["layers"]}
    sent = chunk(get(f"neuroglancer/npz/{layers['raw']}/1,1,1/3,4,5/19,20,37"))
    np.testing.assert_array_equal(sent, open_levels(tiny.raw)[0].array[3:19, 4:20, 5:37])
    sent = chunk(get(f"neuroglancer/npz/{layers['raw']}/2,2,2/0,0,0/28,28,28"))
    coarse = ngff.block_mean(open_levels(tiny.raw)[0].array[:], (2, 2, 2))
    np.testing.assert_array_equal(sent, coarse)
    sent = chunk(get(f"neuroglancer/npz/{layers['truth/mito']}/1,1,1/0,0,0/24,24,24"))
    np.testing.assert_array_equal(sent, world()["mito"][INSIDE])
    sent = chunk(get(f"neuroglancer/npz/{layers['predictions/er']}/1,1,1/0,0,0/24,24,24"))
    assert sent.dtype == np.float32  # the viewer has no float16
    np.testing.assert_array_equal(sent, logits)
    information = json.loads(get(f"neuroglancer/info/{layers['predictions/er']}"))
    assert information["dataType"] == "float32"
    assert information["volumeType"] == "image"
    assert list(map(int, information["voxelOffset"])) == [0, 0, 0]


def test_objects_have_meshes_in_volumes_that_fit_into_memory(experiment, neuroglancer, monkeypatch):
    tiny = experiment()
    _, state, get = viewed(tiny, kinds=("truth",), classes=("mito",))
    mesh = get(f"neuroglancer/mesh/{token(state['layers'][0])}/1")
    corners = np.frombuffer(mesh, "<f4", 3 * int.from_bytes(mesh[:4], "little"), 4).reshape(-1, 3)
    where = np.argwhere(world()["mito"][INSIDE])
    np.testing.assert_allclose(np.ptp(corners, 0) / 8e-9, np.ptp(where, 0)[::-1] + 1, atol=1.01)
    monkeypatch.setattr(served_module, "MESHED", 1000)
    _, state, get = viewed(tiny, kinds=("truth",), classes=("mito",))
    with pytest.raises(urllib.error.HTTPError) as answer:
        get(f"neuroglancer/mesh/{token(state['layers'][0])}/1")
    answer.value.close()
    assert answer.value.code == 400


def test_the_links_are_said_and_served_until_enter(experiment, neuroglancer, monkeypatch):
    tiny = experiment()
    answers = []
    said = []

    def enter() -> str:
        with urllib.request.urlopen(said[0].split(": ", 1)[1], timeout=600) as answer:
            answers.append(answer.status)
        return ""

    monkeypatch.setattr("builtins.input", enter)
    assert visualize.visualize(tiny.folder, kinds=("raw",), data=tiny.data, say=said.append) == []
    assert answers == [200]
    assert not neuroglancer.is_server_running()
    assert said[0].startswith("tiny/crop3: http://127.0.0.1:")
    port = said[0].rpartition(":")[2].partition("/")[0]
    assert f"ssh -L {port}:localhost:{port} {socket.gethostname()}" in said[1]


def test_where_there_is_no_terminal_ctrl_c_ends_the_viewer(experiment, neuroglancer, monkeypatch):
    """As in a job of a cluster, whose standard input is empty: it does not end at once."""

    def say(text: str) -> None:
        if text.startswith("Enter"):
            signal.setitimer(signal.ITIMER_REAL, 0.2)  # an alarm that is taken for Ctrl-C

    tiny = experiment()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        visualize.visualize(tiny.folder, kinds=("raw",), data=tiny.data, say=say)
    finally:
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert left == 0
    assert not neuroglancer.is_server_running()


def test_all_crops_are_served_on_the_port_asked_for_which_may_be_taken(experiment, neuroglancer):
    config = experiment().config()
    boxes = regions.find(config, "*")
    layers = [find_layers(config, box, kinds=("raw",)) for box in boxes]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FileError, match=f"--port {port} .* in use"):
            viewer.open_viewers(boxes, layers, port)
    links = [opened.get_viewer_url() for opened in viewer.open_viewers(boxes, layers, port)]
    assert len(set(links)) == 3
    for link in links:
        assert link.startswith(f"http://127.0.0.1:{port}/v/")


# without an experiment


def test_crops_of_a_data_root_are_shown_without_an_experiment(data_root, tmp_path):
    said = []
    paths = visualize.visualize(
        None, "*", kinds=("raw", "truth"), png=tmp_path / "png", data=data_root, say=said.append
    )
    assert {path.name for path in paths} == {f"tiny_crop{k}.png" for k in (1, 2, 3)}
    assert all(path.stat().st_size > 1000 for path in paths) and not said


def test_volumes_of_the_toolbox_beside_the_data_are_found(data_root, tmp_path):
    root = tmp_path / "mine"
    shutil.copytree(data_root, root)
    truth = root / "tiny/tiny.zarr/recon-1/labels/groundtruth/crop1/mito"
    shutil.copytree(truth, root / "processed/tiny.zarr/crop1/mito")
    [path] = visualize.visualize(
        None, "tiny/crop1", kinds=("processed",), png=tmp_path / "x.png", data=root, say=str
    )
    assert path == tmp_path / "x.png"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"overrides": ["epochs=3"]}, "for an experiment"),
        ({"crops": "validate"}, "of which experiment"),
        ({"crops": "99"}, "no crop 'crop99'"),
        ({"classes": ["mitto"]}, "'mitto'"),
    ],
)
def test_what_only_an_experiment_knows_is_refused_without_one(data_root, tmp_path, given, reason):
    given = {"crops": "*", "png": tmp_path / "png"} | given
    with pytest.raises(UserError, match=reason):
        visualize.visualize(None, data=data_root, **given)
