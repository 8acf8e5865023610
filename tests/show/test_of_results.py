"""Results by themselves: what a viewer is given, and links that another viewer takes."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from common.data.export_volumes import export
from common.data.volumes.ngff import write_multiscale
from common.data.volumes.sources.excerpt import INSTANCE_TYPE
from common.errors import UserError
from common.show import figures, of_results, visualize
from tests.data.s3_server import serving


@pytest.fixture
def folder(tmp_path) -> Path:
    """cell.zarr/whole with raw, a prediction of er, and objects of mito in half of it."""
    box = tmp_path / "in/cell.zarr/whole"
    volume = np.zeros((16, 16, 16), np.uint8)
    volume[:, 8:] = 5
    write_multiscale(box / "raw", volume * 20, (8, 8, 8), (80, 0, 0))
    kind = {"cellmap": {"annotation": {"annotation_type": {"type": INSTANCE_TYPE}}}}
    write_multiscale(box / "mito", volume, (8, 8, 8), (80, 0, 0), attributes=kind)
    about = {"prediction": {"content": "probability", "dtype": "uint8"}}
    write_multiscale(box / "er", volume * 51, (8, 8, 8), (80, 0, 0), attributes=about)
    return tmp_path / "in"


def test_a_folder_of_results_is_one_box_with_a_layer_for_each_class(folder):
    [(box, layers)] = of_results.boxes_of(str(folder))
    assert str(box) == "cell/whole"
    assert {kind: list(classes) for kind, classes in layers.items()} == {
        "raw": [""],
        "predictions": ["er"],
        "processed": ["mito"],
    }
    assert box.lower.tolist() == [76, -4, -4]
    assert box.upper.tolist() == [76 + 128, 124, 124]


def test_exported_volumes_are_shown_as_what_they_are(folder, tmp_path, run):
    export(str(folder / "cell.zarr/whole/mito"), tmp_path / "mito.zarr", say=lambda _: None)
    code, out, err = run("visualize", tmp_path / "mito.zarr", "--png", tmp_path / "mito.png")
    assert (code, out) == (0, f"{tmp_path / 'mito.png'}\n"), err
    picture = np.asarray(Image.open(tmp_path / "mito.png"))
    [colour] = figures.colours_of_objects([5], figures.class_colours(["mito"])[0])
    assert (picture == colour).all(axis=-1).sum() > 1000


def test_options_of_experiments_are_refused(folder):
    with pytest.raises(UserError, match=r"--roi, --set: for an experiment, and these are results"):
        visualize.visualize(folder, roi="0:8,:,:", overrides=["epochs=1"], png="a.png")


@pytest.mark.parametrize("ending", ["zarr", "precomputed"])
def test_a_link_names_what_a_server_has(folder, tmp_path, ending):
    root = tmp_path / "served"
    export(str(folder / "cell.zarr/whole/mito"), root / f"mito.{ending}", say=lambda _: None)
    with serving(root) as server:
        address = f"{server.url}/mito.{ending}"
        link = of_results.link([address])
    page, _, state = link.partition("#!")
    assert page == of_results.PAGE
    [layer] = json.loads(unquote(state))["layers"]
    assert layer == {"type": "segmentation", "source": f"{ending}://{address}", "name": "mito"}


def test_a_link_to_this_disk_is_refused(folder, run):
    code, _, err = run("visualize", folder, "--link")
    assert code == 2
    assert "on this disk, which a page of the web does not see; leave --link out" in err
