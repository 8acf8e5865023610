"""Surfaces of objects: closed, where the objects are, in nm."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from common.data.export_volumes import export
from common.data.volumes.ngff import write_multiscale
from common.data.volumes.sources.excerpt import INSTANCE_TYPE
from common.data.volumes.writers import meshes
from common.errors import UserError

zmesh = pytest.importorskip("zmesh")

SCALE = np.array([8.0, 6.0, 4.0])
PLACE = np.array([80.0, 66.0, 44.0])
LOWER = {5: (10, 12, 14), 9: (0, 0, 0)}
UPPER = {5: (20, 24, 30), 9: (8, 8, 9)}
"""The first voxel of each object, and the last + 1; of 9 in the corner of the volume."""


@pytest.fixture
def source(tmp_path) -> str:
    ids = np.zeros((30, 40, 50), np.uint16)
    for number, lower in LOWER.items():
        ids[tuple(map(slice, lower, UPPER[number]))] = number
    about = {"cellmap": {"annotation": {"annotation_type": {"type": INSTANCE_TYPE}}}}
    write_multiscale(tmp_path / "mito.zarr", ids, SCALE, PLACE, chunk=16, attributes=about)
    return str(tmp_path / "mito.zarr")


def volume_of(mesh) -> float:
    """What a closed surface encloses, by tetrahedra; above 0 where it faces outwards."""
    a, b, c = mesh.vertices[mesh.faces].astype(float).transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def corners(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of an object, x, y, z in nm: a voxel reaches half its size around its centre."""
    lower = PLACE + (np.array(LOWER[number]) - 0.5) * SCALE
    upper = PLACE + (np.array(UPPER[number]) - 0.5) * SCALE
    return lower[::-1], upper[::-1]


@pytest.mark.parametrize("kind", ["ply", "obj"])
def test_surfaces_enclose_the_objects_where_they_are(source, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(meshes, "BLOCK", 16)
    [folder] = export(source, tmp_path / "out", format=kind, say=lambda _: None)
    assert {path.name for path in folder.iterdir()} == {f"5.{kind}", f"9.{kind}", "info.json"}
    for number in LOWER:
        content = (folder / f"{number}.{kind}").read_bytes()
        mesh = zmesh.Mesh.from_ply(content) if kind == "ply" else zmesh.Mesh.from_obj(content)
        lower, upper = corners(number)
        np.testing.assert_allclose(mesh.vertices.min(0), lower, atol=1)
        np.testing.assert_allclose(mesh.vertices.max(0), upper, atol=1)
        box = float(np.prod(upper - lower))
        assert 0.85 * box < volume_of(mesh) <= box


@pytest.mark.parametrize("kind", ["semantic_segmentation", INSTANCE_TYPE])
def test_what_is_unknown_has_no_surface(tmp_path, kind):
    labels = np.zeros((30, 40, 50), np.uint8)
    labels[10:20, 12:24, 14:30] = 1
    labels[:8] = 255
    about = {"annotation_type": {"type": kind, "encoding": {"absent": 0, "unknown": 255}}}
    more = {"cellmap": {"annotation": about}}
    write_multiscale(tmp_path / "mito.zarr", labels, SCALE, attributes=more)
    source = str(tmp_path / "mito.zarr")
    [folder] = export(source, tmp_path / "out", format="ply", say=lambda _: None)
    assert {path.name for path in folder.iterdir()} == {"1.ply", "info.json"}
    mesh = zmesh.Mesh.from_ply((folder / "1.ply").read_bytes())
    assert mesh.vertices[:, 2].min() > 9 * SCALE[0]


def test_surfaces_of_precomputed_volumes_lie_on_their_voxels(source, tmp_path):
    """Voxel i of such a volume lies from i to i + 1 times its size."""
    out = tmp_path / "mito.precomputed"
    export(source, out, with_meshes=True, say=lambda _: None)
    info = json.loads((out / "info").read_text())
    assert info["mesh"] == "mesh"
    first = info["scales"][0]["voxel_offset"]
    for number in LOWER:
        [fragment] = json.loads((out / f"mesh/{number}:0").read_text())["fragments"]
        mesh = zmesh.Mesh.from_precomputed((out / "mesh" / fragment).read_bytes())
        lower = (np.array(first) + LOWER[number][::-1]) * SCALE[::-1]
        upper = (np.array(first) + UPPER[number][::-1]) * SCALE[::-1]
        np.testing.assert_allclose(mesh.vertices.min(0), lower, atol=1)
        np.testing.assert_allclose(mesh.vertices.max(0), upper, atol=1)


def test_a_large_object_is_meshed_of_coarser_voxels(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(meshes, "MOST_VOXELS", 400)
    [folder] = export(source, tmp_path / "out", format="ply", say=lambda _: None)
    assert "mito 5: large, so that 2^3 of its voxels are taken for one" in capsys.readouterr().err
    mesh = zmesh.Mesh.from_ply((folder / "5.ply").read_bytes())
    lower, upper = corners(5)
    np.testing.assert_allclose(mesh.vertices.min(0), lower, atol=3 * 8)
    np.testing.assert_allclose(mesh.vertices.max(0), upper, atol=3 * 8)


def test_surfaces_that_are_there_are_not_made_again(source, tmp_path, monkeypatch):
    made = []
    mesh_of = meshes.mesh_of

    def noted(volume, number, found):
        made.append(number)
        if len(made) == 2:
            raise KeyboardInterrupt
        return mesh_of(volume, number, found)

    monkeypatch.setattr(meshes, "mesh_of", noted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(source, out, format="ply", say=lambda _: None)
    assert not out.exists()
    export(source, out, format="ply", say=lambda _: None)
    assert made == [5, 9, 9]


def test_without_zmesh_it_is_a_sentence(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zmesh", None)
    with pytest.raises(UserError, match=r"surfaces need zmesh, .* 'csc-baselines\[meshes\]'"):
        export(source, tmp_path / "out", format="ply", say=lambda _: None)
