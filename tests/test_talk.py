"""How commands speak."""

from __future__ import annotations

import sys

import pytest

from common import talk


def test_a_command_line_is_quoted_and_leaves_out_what_is_not_given():
    line = talk.command_line(
        "train",
        "my folder/unet",
        set=["epochs=3", "run_name='a'"],
        check=True,
        data=None,
        seeds=False,
    )
    start, _, words = line.partition(" train ")
    assert start == "python -m cellmap_segmentation_challenge"
    assert words == """'my folder/unet' --set epochs=3 --set 'run_name='"'"'a'"'"'' --check"""


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["/x/cellmap_segmentation_challenge/__main__.py", "train", "a b"], "train 'a b'"),
        (["/usr/bin/csc", "train", "x"], "csc train x"),
        (["/usr/bin/pytest"], "otherwise"),
    ],
)
def test_the_command_that_started_this_process(monkeypatch, argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    assert talk.this_command("otherwise").endswith(expected)


@pytest.mark.parametrize(
    ("started", "program"),
    [
        (
            "/x/cellmap_segmentation_challenge/__main__.py",
            "python -m cellmap_segmentation_challenge",
        ),
        ("/usr/bin/csc", "csc"),
        ("C:/Scripts/csc.exe", "csc"),
    ],
)
def test_the_program_is_what_was_typed(monkeypatch, started, program):
    monkeypatch.setattr(sys, "argv", [started, "train"])
    assert talk.program() == program


def test_a_path_is_said_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert talk.short_path(tmp_path / "a" / "b.py") == "a/b.py"
    assert talk.short_path(tmp_path.parent / "b.py") == str(tmp_path.parent / "b.py")


def test_numbers_in_words():
    durations = [talk.duration(s) for s in (42, 180, 9000, 260_000)]
    assert durations == ["42 s", "3 min", "2.5 h", "3 days"]
    assert [talk.size(n) for n in (12e3, 3.4e6, 1.25e9)] == ["12 kB", "3.4 MB", "1.2 GB"]
    assert (talk.nm((8, 8, 8)), talk.nm((5.24, 4, 4))) == ("8", "5.24 x 4 x 4")
    assert (talk.lengths((8, 8, 8)), talk.lengths((40, 4.6, 4.6))) == ("8", "40,4.6,4.6")
    assert talk.voxels((1, 2, 3)) == "1 x 2 x 3"
    assert talk.some(["a", "b", "c"], most=2) == "a, b and 1 more"


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    with talk.progress(3, "decoding", unit="crop", done=1) as bar:
        bar.update()
        talk.say("a line")
        talk.note("unusual")
    assert capsys.readouterr().err == "a line\nnote: unusual\n"


def test_a_table_has_its_first_columns_to_the_left():
    rows = [("name", "value"), ("a", "1")]
    assert talk.aligned(rows) == ["name  value", "a     1"]
    assert talk.aligned(rows, left=1) == ["name  value", "a         1"]
