"""The table of test crops: read, refused with a sentence, and fetched once."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import DEADLINE

from common.data.splits.manifest import URL, Entry, fetch, read
from common.errors import UserError

HEADER = "crop_name,dataset,class_label,voxel_size,translation,shape"
MITO = "557,jrc_ctl-id8-1,mito,[1.74;2.0;2.0],[23837.0;7599.0;35999.0],[600;600;600]"
NUC = "982,jrc_mus-nacc-1,nuc,[16.0;16.0;16.0],[6.0;6.0;6.0],[140;400;400]"
TABLE = "\n".join([HEADER, MITO, NUC, ""])


@pytest.fixture(autouse=True)
def no_address_from_the_shell(monkeypatch):
    monkeypatch.delenv("CSC_TEST_CROP_MANIFEST_URL", raising=False)


@pytest.fixture
def table(tmp_path: Path):
    def write(*rows: str, header: str = HEADER) -> Path:
        (tmp_path / "manifest.csv").write_text("\n".join([header, *rows]))
        return tmp_path / "manifest.csv"

    return write


@pytest.fixture
def server():
    """A local server: `body` and `status` are what it answers, `asked` what it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(self.server.body) + self.server.missing))
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        running.body = TABLE.encode()
        running.status = 200
        running.missing = 0
        running.asked = []
        running.url = f"http://127.0.0.1:{running.server_port}/test_crop_manifest.csv"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join(DEADLINE)


# reading


def test_rows_are_read_in_their_order(table):
    mito, nuc = read(table(MITO, NUC))
    assert mito == Entry(
        "crop557", "jrc_ctl-id8-1", "mito", (1.74, 2, 2), (23837, 7599, 35999), (600, 600, 600)
    )
    assert (nuc.path, nuc.dataset, nuc.shape) == ("crop982/nuc", "jrc_mus-nacc-1", (140, 400, 400))


def test_the_translation_is_the_centre_of_the_first_voxel(table):
    """Crop 982 covers whole voxels of 4 nm from the corner of the raw at -2 nm: its own too."""
    (nuc,) = read(table(NUC))
    lower, upper = nuc.grid().box()
    np.testing.assert_array_equal(lower, (-2, -2, -2))
    np.testing.assert_array_equal(upper - lower, np.multiply((140, 400, 400), 16))


def test_columns_may_stand_in_another_order(table):
    header = "shape,translation,voxel_size,class_label,dataset,crop_name"
    (nuc,) = read(table(",".join(reversed(NUC.split(","))), header=header))
    assert (nuc.crop, nuc.name, nuc.translation) == ("crop982", "nuc", (6, 6, 6))


def test_a_table_written_on_windows_is_read(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode())
    assert [entry.name for entry in read(tmp_path / "manifest.csv")] == ["mito", "nuc"]


def test_a_crop_may_be_named_with_its_prefix(table):
    assert read(table(NUC.replace("982", "crop982", 1)))[0].crop == "crop982"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            NUC.replace("[16.0;16.0;16.0]", "[16.0;16.0]"),
            "voxel_size '[16.0;16.0]'; write three numbers above zero",
        ),
        (NUC.replace("[16.0;16.0;16.0]", "[16.0;0;16.0]"), "voxel_size '[16.0;0;16.0]'"),
        (
            NUC.replace("[6.0;6.0;6.0]", "[6.0;six;6.0]"),
            "translation '[6.0;six;6.0]'; write three numbers as [4.0;4.0;4.0]",
        ),
        (NUC.replace("[6.0;6.0;6.0]", "[6.0;nan;6.0]"), "translation '[6.0;nan;6.0]'"),
        (NUC.replace("[6.0;6.0;6.0]", "[6.0;inf;6.0]"), "translation '[6.0;inf;6.0]'"),
        (
            NUC.replace("[140;400;400]", "[140;400.5;400]"),
            "shape '[140;400.5;400]'; write three numbers above zero as [600",
        ),
        (NUC.replace("[140;400;400]", "[140;-4;400]"), "shape '[140;-4;400]'"),
        (NUC.replace(";", ","), "12 columns; write 6"),
        (NUC.replace(",nuc,", ",,"), "class_label ''; write the name of a folder"),
        (NUC.replace(",nuc,", ",../nuc,"), "class_label '../nuc'"),
        (NUC.replace("jrc_mus-nacc-1", "/data"), "dataset '/data'"),
        (MITO, "crop557/mito stands there already"),
    ],
)
def test_a_bad_row_is_named_with_its_line(table, row, words):
    path = table(MITO, row)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: line 3: ") and words in str(error.value)


def test_all_problems_come_in_one_message(table):
    path = table(NUC.replace("140", "many").replace("nuc", "n/c"), MITO, "", MITO)
    with pytest.raises(UserError) as error:
        read(path)
    assert [line.split(": ")[1] for line in str(error.value).split("\n")] == [
        "line 2",
        "line 2",
        "line 5",
    ]


@pytest.mark.parametrize(
    "header", ["", "crop,dataset", f"{HEADER},colour", HEADER.replace("shape", "size")]
)
def test_unknown_columns_are_refused_with_those_to_write(table, header):
    with pytest.raises(UserError, match=f"line 1: columns '{header}'; write {HEADER}"):
        read(table(NUC, header=header))


def test_a_table_without_rows_is_refused(table):
    with pytest.raises(UserError, match="no crops in it"):
        read(table())


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such manifest"):
        read(tmp_path / "nowhere.csv")


# fetching


def test_a_manifest_is_downloaded_once_and_said(server, tmp_path):
    said = []
    path = fetch(tmp_path, server.url, said.append)
    assert path.parent == tmp_path / "manifests" and path.read_text() == TABLE
    assert len(said) == 1 and server.url in said[0] and str(path) in said[0]
    assert fetch(tmp_path, server.url, said.append) == path
    assert len(said) == len(server.asked) == 1


def test_the_checksum_beside_it_is_what_sha256sum_checks(server, tmp_path):
    path = fetch(tmp_path, server.url, print)
    digest = hashlib.sha256(TABLE.encode()).hexdigest()
    assert path.with_name(path.name + ".sha256").read_text() == f"{digest}  {path.name}\n"
    assert len(list(path.parent.iterdir())) == 2


def test_a_cached_manifest_that_changed_is_refused(server, tmp_path):
    path = fetch(tmp_path, server.url, print)
    path.write_text(TABLE.replace("140", "141"))
    with pytest.raises(UserError, match="delete both to download it again"):
        fetch(tmp_path, server.url, print)


def test_a_manifest_without_its_checksum_is_downloaded_again(server, tmp_path):
    path = fetch(tmp_path, server.url, print)
    path.with_name(path.name + ".sha256").unlink()
    fetch(tmp_path, server.url, print)
    assert len(server.asked) == 2


def test_the_environment_names_another_address(server, tmp_path, monkeypatch):
    (tmp_path / "mine.csv").write_text("\n".join([HEADER, NUC]))
    first = fetch(tmp_path, server.url, print)
    monkeypatch.setenv("CSC_TEST_CROP_MANIFEST_URL", (tmp_path / "mine.csv").as_uri())
    second = fetch(tmp_path, server.url, print)
    assert [entry.name for entry in read(second)] == ["nuc"]
    assert [entry.name for entry in read(first)] == ["mito", "nuc"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": 404}, "404"),
        ({"body": b"<html>log in first</html>"}, "columns '<html>"),
        ({"body": TABLE.replace("140", "x").encode()}, r"shape '\[x;400;400\]'"),
        ({"missing": 5}, "IncompleteRead"),
    ],
)
def test_what_is_no_manifest_is_not_kept(server, tmp_path, change, words):
    vars(server).update(change)
    with pytest.raises(OSError, match=f"{words}.*; give --manifest FILE") as error:
        fetch(tmp_path, server.url, print)
    assert str(error.value).count("\n") == 0
    assert not list(tmp_path.rglob("*.*"))


def test_offline_the_message_says_what_to_give(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match=f"{server.url}: cannot fetch .*; give --manifest FILE"):
        fetch(tmp_path, server.url, print)


def test_a_file_that_is_not_there_is_an_error_of_the_address(tmp_path):
    with pytest.raises(OSError, match="give --manifest FILE"):
        fetch(tmp_path, (tmp_path / "nowhere.csv").as_uri(), print)


@pytest.mark.parametrize(
    "url", ["ftp://host/manifest.csv", "data:text/csv,crop_name", "manifest.csv"]
)
def test_other_kinds_of_address_are_refused(tmp_path, url):
    with pytest.raises(UserError, match="not an address with http, https or file"):
        fetch(tmp_path, url, print)


def test_the_default_address_is_of_a_branch_over_https():
    assert URL.startswith("https://raw.githubusercontent.com/janelia-cellmap/") and URL.endswith(
        "/test_crop_manifest.csv"
    )
