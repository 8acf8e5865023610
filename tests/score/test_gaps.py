"""Submissions that are not whole: one table of what is lacking, and what the score makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from common.data.splits.manifest import Entry
from common.data.volumes.ngff import write_multiscale
from common.errors import UserError
from common.score import gaps, submission
from common.score.packing import pack
from common.shell.cli import cli

PLACE = ((8.0, 8.0, 8.0), (4.0, 4.0, 4.0), (6, 6, 6))
CLASSES = ("ecs", "er", "mito", "nuc", "pm")
ENTRIES = [
    Entry(f"crop{crop}", "cell", name, *PLACE) for crop in range(557, 563) for name in CLASSES
]


@pytest.fixture
def source_of(tmp_path):
    """er of all crops and mito of crop557 are processed; mito of crop558 is cut short."""

    def path(entry):
        return tmp_path / "processed" / entry.path

    for entry in ENTRIES:
        if entry.name == "er" or entry.path == "crop557/mito":
            write_multiscale(path(entry), np.ones((6, 6, 6), np.uint8), *PLACE[:2])
    short = next(entry for entry in ENTRIES if entry.path == "crop558/mito")
    write_multiscale(path(short), np.ones((3, 6, 6), np.uint8), *PLACE[:2])
    return path


def test_without_partial_the_refusal_is_one_table(source_of, tmp_path):
    with pytest.raises(UserError) as error:
        pack(ENTRIES, source_of, tmp_path / "s.zip", print)
    text = str(error.value)
    lines = text.split("\n")
    assert lines[0] == f"{tmp_path / 's.zip'}: cannot be packed: 23 of 30 volumes:"
    assert lines[1].split() == ["crop", "volumes", "why", "classes"]
    rows = [" ".join(line.split()) for line in lines]
    assert "crop557 3 of 5 not processed ecs, nuc, pm" in rows
    assert "crop558 1 of 5 does not cover the crop mito" in rows
    assert "crop560 4 of 5 not processed ecs, mito, nuc, pm" in rows
    assert len(lines) < 13 and "write --partial" in lines[-1]
    assert not (tmp_path / "s.zip").exists()


def test_partial_packs_what_is_there_and_lists_the_rest(source_of, tmp_path):
    said = []
    path = pack(ENTRIES, source_of, tmp_path / "s.zip", said.append, partial=True)
    with submission.opened(path) as group:
        held = {f"{crop}/{name}" for crop in group for name in group[crop]}
    assert held == {f"crop{crop}/er" for crop in range(557, 563)} | {"crop557/mito"}
    assert "not in it are 23 of 30 volumes:" in said
    rows = [" ".join(line.split()) for line in said]
    assert "crop558 3 of 5 not processed ecs, nuc, pm" in rows
    (missing,) = [line for line in said if "counts each of them as missing" in line]
    assert "all objects of the crop are missed" in missing and "every voxel" in missing
    assert "in no crop, so with class score 0: ecs, nuc, pm" in said
    assert said[-1].startswith(f"{path}: 7 volumes")


def test_where_nothing_is_there_nothing_is_packed(tmp_path):
    with pytest.raises(UserError, match="30 of 30 volumes") as error:
        pack(ENTRIES, lambda entry: tmp_path / entry.path, tmp_path / "s.zip", print, partial=True)
    assert "--partial" not in str(error.value)
    assert "  crop557  5 of 5   not processed  all" in str(error.value)


def test_a_whole_submission_is_packed_as_ever_with_partial(source_of, tmp_path):
    said = []
    entries = [entry for entry in ENTRIES if entry.name == "er"]
    pack(entries, source_of, tmp_path / "s.zip", said.append, partial=True)
    assert len(said) == 7 and not any("not in it" in line for line in said)


def test_check_submission_lists_many_missing_volumes_as_one_table(source_of, tmp_path):
    path = pack(ENTRIES, source_of, tmp_path / "s.zip", lambda text: None, partial=True)
    (problem,) = submission.check(path, ENTRIES)
    assert "missing are 23 of 30 volumes:" in problem and "--partial" in problem
    assert submission.check(path, ENTRIES, partial=True) == []
    (others,) = submission.check(path, [Entry("crop1", "cell", "pm", *PLACE)], partial=True)[:1]
    assert "crop1/pm: missing" in others


def manifest_in(folder):
    """A table of ENTRIES as a file."""
    rows = ["crop_name,dataset,class_label,voxel_size,translation,shape"]
    for entry in ENTRIES:
        rows.append(f"{entry.crop},cell,{entry.name},[8;8;8],[4;4;4],[6;6;6]")
    path = folder / "manifest.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_the_command_says_what_a_partial_submission_lacks(source_of, tmp_path):
    path = pack(ENTRIES, source_of, tmp_path / "s.zip", lambda text: None, partial=True)
    manifest = manifest_in(tmp_path)
    asked = ["check-submission", str(path), "--manifest", str(manifest)]
    done = CliRunner().invoke(cli, [*asked, "--partial"])
    assert done.exit_code == 0 and "valid; missing are 23 of 30 volumes:" in done.output
    assert "class score 0: ecs, nuc, pm" in done.output
    assert CliRunner().invoke(cli, asked).exit_code != 0


def test_without_a_manifest_the_command_checks_against_the_challenges(
    source_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("CSC_TEST_CROP_MANIFEST_URL", manifest_in(tmp_path).as_uri())
    path = pack(ENTRIES, source_of, tmp_path / "s.zip", lambda text: None, partial=True)
    done = CliRunner().invoke(cli, ["check-submission", str(path), "--partial"])
    assert done.exit_code == 0 and "valid; missing are 23 of 30 volumes:" in done.output


def test_a_few_gaps_have_a_sentence_each():
    few = [gaps.Gap(entry, gaps.MISSING, "missing") for entry in ENTRIES[: gaps.LISTED]]
    assert gaps.sentences(few, ENTRIES)[0] == "crop557/ecs: missing"
    assert len(gaps.sentences(few, ENTRIES)) == gaps.LISTED
