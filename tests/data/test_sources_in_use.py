"""Volumes of other programs through the commands: trained on, predicted and scored as the zarr."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from conftest import CROPS, VOXEL_SIZE, datasplit_text

from common.data.volumes import layout
from common.data.volumes.ngff import open_levels
from common.data.volumes.sources import remote
from common.errors import UserError
from tests.data import foreign_writers as writers
from tests.data.own_import import import_data
from tests.data.s3_server import serving
from tests.volumes import voxels_of

RAW = layout.raw("tiny")


@pytest.fixture
def tiny_raw(data_root) -> np.ndarray:
    return voxels_of(data_root / RAW)


def weights(result) -> list[torch.Tensor]:
    state = torch.load(result.checkpoint, weights_only=False)
    return [value for value in state["model"].values() if torch.is_tensor(value)]


def scores_of(tiny, run) -> dict:
    for command in ("predict", "process", "evaluate"):
        code, _, error = run(command, tiny.folder, "--data", tiny.data)
        assert code == 0, error
    (file,) = tiny.folder.rglob("scores.json")
    return json.loads(file.read_text())["classes"]


def as_tiff(tiny) -> None:
    """Replace the data split by one of TIFF files alone, which say nothing of themselves."""
    raw = tiny.data / "stacks/raw.tif"
    raw.parent.mkdir()
    tifffile.imwrite(raw, voxels_of(tiny.raw), compression="zlib")
    rows = []
    for name, (usage, start, annotated) in CROPS.items():
        folder = tiny.data / "stacks" / name
        folder.mkdir()
        for label in annotated:
            tifffile.imwrite(folder / f"{label}.tif", voxels_of(tiny.crop(name) / label))
        place = ",".join(f"{length:g}" for length in np.multiply(start, VOXEL_SIZE))
        labels = f"stacks/{name}/[{','.join(annotated)}]#voxel_size=8&translation={place}"
        rows.append(f'"{usage}","stacks/raw.tif#voxel_size=8","{labels}"\n')
    tiny.write("datasplit.csv", "".join(rows))


def test_training_and_scores_from_tiff_files_are_those_from_zarr(experiment, run):
    zarr = experiment("of_zarr")
    tiff = experiment("of_tiff")
    as_tiff(tiff)
    for one, other in zip(weights(zarr.train()), weights(tiff.train()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert scores_of(zarr, run) == scores_of(tiff, run)
    _, text, _ = run("doctor", tiff.folder, "--data", tiff.data)
    assert "3 crops of" in text
    picture = tiff.folder / "picture.png"
    code, _, error = run("visualize", tiff.folder, "--data", tiff.data, "--png", picture)
    assert code == 0, error
    code, _, error = run("fingerprint", tiff.folder, "--data", tiff.data)
    assert code == 0, error


def test_labels_that_are_raw_are_refused(experiment):
    tiny = experiment()
    as_tiff(tiny)
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 24), np.uint8)
    tifffile.imwrite(tiny.data / "stacks/crop1/mito.tif", noise)
    with pytest.raises(UserError, match=r"mito.tif: \d+ values among .*: this looks like raw"):
        tiny.train()


def test_labels_of_another_shape_than_the_other_classes_are_refused(experiment):
    tiny = experiment()
    as_tiff(tiny)
    tifffile.imwrite(tiny.data / "stacks/crop1/er.tif", np.zeros((24, 24, 20), np.uint8))
    with pytest.raises(UserError, match=r"er.tif.*: shape .* the classes of a crop share one grid"):
        tiny.train()


@pytest.fixture
def server(data_root, monkeypatch):
    """The data root on a web server, which is an S3 server too."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "FIRST_PAUSE", "1ms")
    clear()
    with serving(data_root) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server
    clear()


def clear() -> None:
    """Forget servers, which are others in each test."""
    remote.context.cache_clear()
    remote.server.cache_clear()


def addresses(server, tiny, kind: str) -> str:
    """The text of a data split whose stores are on a server."""
    store = f"{server.url}/tiny" if kind == "http" else "s3://tiny"
    return datasplit_text().replace('"tiny/tiny.zarr"', f'"{store}/tiny.zarr"')


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_training_and_scores_from_a_server_are_those_from_the_disk(experiment, run, server, kind):
    here = experiment("here")
    there = experiment("there", num_workers=2)
    there.write("datasplit.csv", addresses(server, there, kind))
    for one, other in zip(weights(here.train()), weights(there.train()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert scores_of(here, run) == scores_of(there, run)


@pytest.mark.slow
def test_a_bucket_of_another_s3_server_is_read(data_root, tiny_raw, monkeypatch):
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    clear()
    s3 = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    s3.start()
    try:
        url = "http://{}:{}".format(*s3.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        account = {
            "aws_access_key_id": "a",
            "aws_secret_access_key": "b",
            "region_name": "us-east-1",
        }
        client = boto3.client("s3", endpoint_url=url, **account)
        client.create_bucket(Bucket="cells", ACL="public-read")
        name = writers.tiff_ome(data_root, writers.VOLUME)
        files = [*(data_root / RAW).rglob("*"), data_root / name]
        for file in files:
            if file.is_file():
                key = file.relative_to(data_root).as_posix()
                client.put_object(
                    Bucket="cells", Key=key, Body=file.read_bytes(), ACL="public-read"
                )
        np.testing.assert_array_equal(voxels_of(f"s3://cells/{RAW}"), tiny_raw)
        np.testing.assert_array_equal(voxels_of(f"s3://cells/{name}"), writers.VOLUME)
        with pytest.raises(FileNotFoundError, match="s3://cells/nothing: no volume there"):
            open_levels("s3://cells/nothing")
    finally:
        s3.stop()
        clear()


def test_an_interrupted_connection_is_asked_again(tiny_raw, server):
    chunk = f"{RAW}/s0/0/0/0"
    server.faults[chunk] = [503, "drop", "drop"]
    np.testing.assert_array_equal(voxels_of(f"{server.url}/{RAW}"), tiny_raw)
    assert server.asked.count(chunk) == 4


def test_a_server_that_stays_out_of_order_is_said_in_a_sentence(tiny_raw, server):
    server.faults[f"{RAW}/s0/0/0/0"] = [503] * 100
    level = open_levels(f"{server.url}/{RAW}")[0]
    with pytest.raises(
        UserError, match=r"fibsem-uint8/s0/0/0/0: cannot be read \(.*Unavail"
    ) as failed:
        level.read((0, 0, 0), level.shape)
    assert "\n" not in str(failed.value)


def test_a_chunk_that_is_cut_off_on_the_server_is_said(tiny_raw, server, data_root):
    file = data_root / RAW / "s0/0/0/0"
    file.write_bytes(file.read_bytes()[:-10])
    level = open_levels(f"{server.url}/{RAW}")[0]
    with pytest.raises(UserError, match=r"s0: a chunk in voxels .* has .* of .* bytes"):
        level.read((0, 0, 0), level.shape)


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_an_address_where_nothing_is_is_named(server, scheme):
    address = f"{server.url}/no.zarr" if scheme == "http" else "s3://tiny/no.zarr"
    with pytest.raises(FileNotFoundError, match=f"{address}: no volume there, or not a public one"):
        open_levels(address)


def test_an_array_that_is_missing_on_a_server_is_named(server, data_root):
    (data_root / RAW / "s0/.zarray").unlink()
    with pytest.raises(FileNotFoundError, match=r"fibsem-uint8/s0: array named in .zattrs is miss"):
        open_levels(f"{server.url}/{RAW}")


@pytest.mark.parametrize("writer", [*writers.MEASURED, writers.plain_hdf5], ids=writers.by_name)
def test_a_volume_of_another_program_is_read_from_a_server(server, data_root, writer):
    name = writer(data_root, writers.VOLUME)
    level = open_levels(f"{server.url}/{name}#voxel_size=8,6,4")[0]
    np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), writers.VOLUME)
    np.testing.assert_allclose(level.scale, writers.VOXEL)


@pytest.mark.parametrize("link", [False, True])
def test_a_volume_on_a_server_is_imported_or_linked_to(server, tiny_raw, tmp_path, link):
    address = f"{server.url}/{RAW}"
    store = import_data(address, "mine", link=link, data=tmp_path, say=lambda _: None)
    np.testing.assert_array_equal(voxels_of(store / layout.RAW), tiny_raw)


def test_a_server_that_sends_whole_files_only_is_said(server, data_root):
    name = writers.tiff_ome(data_root, writers.VOLUME)
    server.ranges = False
    with pytest.raises(UserError, match=f"{name}: the server sends whole files only"):
        open_levels(f"{server.url}/{name}")
