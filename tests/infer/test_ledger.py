"""What stored volumes say of how they were made, and which of their blocks are on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from common.data.volumes import ngff, records
from common.data.volumes.ngff import write_multiscale
from common.data.volumes.records import PredictionRecord, ProcessedRecord
from common.errors import UserError
from common.infer import ledger
from common.infer.journal import Journal
from common.infer.predict import predict
from common.infer.process import process
from common.infer.processing.record import refuse_foreign
from common.score.evaluate import evaluate

PREDICTED = PredictionRecord(
    experiment="unet8",
    checkpoint="/runs/best.pt",
    sha256="ab" * 32,
    epoch=7,
    precision="fp32",
    dtype="uint8",
    orientations=1,
    raw="/data/raw/s0",
    raw_range=[],
    voxel_size=[8.0, 8.0, 8.0],
    translation=[0.0, 4.0, 0.0],
    shape=[64, 64, 64],
    largest_block=128,
    made="2026-01-01T00:00:00+00:00",
    environment={"torch": "2.10", "commit": "none"},
).with_key()
PROCESSED = ProcessedRecord(
    threshold=0.35, process_config="cd" * 32, instances=True, prediction=PREDICTED
).with_key("mito")


def write(group, name, record, finished=True) -> None:
    """A class that says it was made as in the record."""
    group.mkdir(parents=True)
    attributes = records.group_attributes(name, record)
    if finished:
        attributes["multiscales"] = []
    (group / ".zattrs").write_text(json.dumps(attributes))


def test_keys_do_not_change_from_version_to_version():
    """Finished volumes would be made again. Computed once from the JSON of the fields."""
    assert PREDICTED.key == "bbc5e6aaaa454dec2f915cad"
    assert PROCESSED.key == "e4f02482a4454f7184fc8ac6"


@pytest.mark.parametrize("name", records.DETERMINING)
def test_whatever_determines_voxels_changes_the_key(name):
    other = replace(PREDICTED, **{name: "other"}).with_key()
    assert other.key != PREDICTED.key
    assert ledger.differences(PREDICTED, other).startswith(f"{name} was ")


def test_what_was_assumed_of_weights_counts_where_it_is_on_record():
    """Predictions of before it was recorded are not made again."""
    first = replace(PREDICTED, assumed={"classes": "('a', 'b')", "softmax": "()"}).with_key()
    other = replace(PREDICTED, assumed={"classes": "('b', 'a')", "softmax": "()"}).with_key()
    assert PREDICTED.is_like(first) and PREDICTED.is_like(PREDICTED)
    assert not first.is_like(other) and not first.is_like(PREDICTED)
    assert ledger.differences(first, other) == "classes was ('a', 'b') and is ('b', 'a')"


def test_what_does_not_determine_voxels_does_not_change_the_key():
    other = replace(PREDICTED, checkpoint="/moved.pt", largest_block=64, environment={})
    assert other.with_key().key == PREDICTED.key


def test_the_prediction_the_class_and_the_recipe_change_the_key_of_what_is_processed():
    others = [
        PROCESSED.with_key("er"),
        replace(PROCESSED, threshold=0.5).with_key("mito"),
        replace(PROCESSED, prediction=replace(PREDICTED, key="x")).with_key("mito"),
    ]
    assert len({PROCESSED.key, *(other.key for other in others)}) == 4


def test_a_record_is_read_as_it_was_written(tmp_path):
    write(tmp_path / "predicted", "mito", PREDICTED)
    write(tmp_path / "processed", "mito", PROCESSED)
    assert records.read_prediction(tmp_path / "predicted") == PREDICTED
    assert records.read_processed(tmp_path / "processed") == PROCESSED
    assert records.read_processed(tmp_path / "predicted") is None


def test_what_an_older_record_does_not_say_is_not_made_up(tmp_path):
    stored = {"content": "logits", "key": "a", "something": "else"}
    assert PredictionRecord.of(stored).attributes() == stored


def test_what_is_finished_is_left_and_what_is_begun_is_gone_on_with(tmp_path):
    write(tmp_path / "mito", "mito", PREDICTED)
    write(tmp_path / "er", "er", replace(PREDICTED, largest_block=64), finished=False)
    left = ledger.unfinished(tmp_path, ["mito", "er", "nuc"], PREDICTED, overwrite=False)
    assert (left.classes, left.largest_block) == (["er", "nuc"], 64)


def test_another_prediction_is_replaced_only_when_asked(tmp_path):
    write(tmp_path / "mito", "mito", PREDICTED)
    other = replace(PREDICTED, dtype="float32").with_key()
    with pytest.raises(UserError, match=r"best.pt .*dtype was uint8 and is float32"):
        ledger.unfinished(tmp_path, ["mito"], other, overwrite=False)
    assert ledger.unfinished(tmp_path, ["mito"], other, overwrite=True).classes == ["mito"]


def test_a_prediction_whose_record_names_no_checkpoint_is_refused_in_a_sentence(tmp_path):
    write(tmp_path / "mito", "mito", PredictionRecord(key="a"))
    with pytest.raises(UserError, match="of a checkpoint that its record does not name, made oth"):
        ledger.unfinished(tmp_path, ["mito"], PREDICTED, overwrite=False)


def test_what_predict_did_not_write_is_not_replaced_even_when_asked(tmp_path):
    write_multiscale(tmp_path / "mito", np.ones((4, 4, 4), np.uint8), (8, 8, 8))
    with pytest.raises(UserError, match="not written by predict"):
        ledger.unfinished(tmp_path, ["mito"], PREDICTED, overwrite=True)


def begin(group) -> None:
    """The first files of a class of two blocks."""
    grid = ngff.Grid(np.zeros(3), np.full(3, 8.0), (8, 8, 8))
    about = records.group_attributes("mito", PREDICTED)
    ngff.begin_multiscale(group, grid, np.uint8, (8, 8, 4), attributes=about)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_class_whose_beginning_was_killed_in_any_write_is_begun_again(
    tmp_path, monkeypatch, number
):
    group = tmp_path / "mito"
    replace_file = Path.replace
    calls = []

    def killed(self, target):
        calls.append(target)
        if len(calls) == number:
            raise KeyboardInterrupt
        return replace_file(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(group)
    assert ledger.unfinished(tmp_path, ["mito"], PREDICTED, overwrite=False).classes == ["mito"]
    if number < 3:  # after that it says whose it is
        refuse_foreign(group)
    begin(group)
    assert (group / "s0/.zarray").is_file()


def test_a_class_whose_removal_was_killed_counts_no_block_and_says_whose_it_is(
    tmp_path, monkeypatch
):
    group = tmp_path / "mito"
    begin(group)
    Journal(group).add(0)

    def killed(path, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ngff.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(group)
    assert not Journal(group).exists()
    assert records.read_prediction(group) == PREDICTED
    assert ledger.unfinished(tmp_path, ["mito"], PREDICTED, overwrite=False).classes == ["mito"]


def cut_off(group) -> None:
    """Take the end off the .zattrs of a class."""
    path = group / ".zattrs"
    path.write_bytes(path.read_bytes()[:-3])


def test_a_class_of_predict_whose_zattrs_is_cut_off_is_predicted_again(tmp_path, capfd):
    write(tmp_path / "mito", "mito", PREDICTED)
    (tmp_path / "mito/s0").mkdir()
    cut_off(tmp_path / "mito")
    left = ledger.unfinished(tmp_path, ["mito"], PREDICTED, overwrite=False)
    assert (left.classes, left.largest_block) == (["mito"], None)
    assert f"{tmp_path}/mito: its .zattrs cannot be read; pred" in capfd.readouterr().err
    # an empty one says nothing, but a journal does
    (tmp_path / "mito/.zattrs").write_text("")
    with pytest.raises(UserError, match="nothing says that predict wrote it"):
        ledger.unfinished(tmp_path, ["mito"], PREDICTED, overwrite=False)
    assert ledger.unfinished(tmp_path, ["mito"], PREDICTED, overwrite=True).classes == ["mito"]
    Journal(tmp_path / "mito").begin()
    assert ledger.unfinished(tmp_path, ["mito"], PREDICTED, overwrite=False).classes == ["mito"]


def test_the_commands_make_a_volume_again_whose_zattrs_is_cut_off(experiment):
    tiny = experiment(epochs=1)
    tiny.train()
    (predicted,) = predict(tiny.folder, data=tiny.data)
    (processed,) = process(tiny.folder, data=tiny.data)
    whole = [zarr.open_array(f / "mito/s0", mode="r")[...] for f in (predicted, processed)]
    for folder in (predicted, processed):
        cut_off(folder / "mito")
    with pytest.raises(UserError, match=r"mito/\.zattrs: .*copy it again, or run predict again"):
        process(tiny.folder, data=tiny.data)
    predict(tiny.folder, data=tiny.data)
    with pytest.raises(UserError, match=r"mito/\.zattrs: .*copy it again, or run process again"):
        evaluate(tiny.folder, data=tiny.data)
    process(tiny.folder, data=tiny.data)
    for folder, values in zip((predicted, processed), whole, strict=True):
        np.testing.assert_array_equal(zarr.open_array(folder / "mito/s0", mode="r")[...], values)
        assert records.is_finished(folder / "mito")


def test_a_line_that_was_cut_off_does_not_count_and_does_not_spoil_the_next(tmp_path):
    journal = Journal(tmp_path)
    journal.begin()
    for number in (3, 12, 7):
        journal.add(number)
    journal.path.write_bytes(journal.path.read_bytes() + b"14")
    assert journal.read() == {3, 12, 7}
    journal.add(5)
    assert journal.read() == {3, 5, 7, 12}


def test_a_journal_of_an_earlier_version_has_no_checksums(tmp_path):
    journal = Journal(tmp_path)
    journal.path.write_bytes(b"3\n\xff\x00damaged\n7\n")
    assert journal.read() == {3, 7}
    journal.add(12)
    assert journal.read() == {3, 7, 12}


def test_no_flipped_bit_of_a_journal_makes_a_block_that_is_not_on_disk_count(tmp_path):
    journal = Journal(tmp_path)
    numbers = {0, 8, 13, 201}
    for number in numbers:
        journal.add(number)
    content = journal.path.read_bytes()
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        journal.path.write_bytes(damaged)
        assert len(numbers - journal.look()) in {1, 2}
        assert journal.look() < numbers


def test_another_version_that_goes_on_with_a_prediction_is_told(tmp_path, capsys):
    write(tmp_path / "a/mito", "mito", PREDICTED, finished=False)
    now = replace(PREDICTED, environment={"torch": "2.11", "commit": "none"})
    left = ledger.unfinished(tmp_path / "a", ["mito"], now, False)
    assert left.largest_block == 128
    assert "mito: was begun with torch 2.10, now 2.11; the blocks" in capsys.readouterr().err
    ledger.unfinished(tmp_path / "a", ["mito"], PREDICTED, False)
    assert capsys.readouterr().err == ""


def test_raw_that_was_replaced_is_refused_unless_all_is_made_anew(tmp_path):
    before = replace(PREDICTED, raw_sample="before")
    now = replace(PREDICTED, raw_sample="now")
    for name, finished in (("mito", True), ("er", False)):
        write(tmp_path / name, name, before, finished=finished)
        with pytest.raises(UserError, match=r"the voxels of /data/raw/s0 are others now: repl"):
            ledger.unfinished(tmp_path, [name], now, overwrite=False)
    left = ledger.unfinished(tmp_path, ["mito", "er"], now, overwrite=True)
    # what was begun is not gone on with
    assert (left.classes, left.largest_block) == (["mito", "er"], None)
    assert before.is_like(before) and before.is_like(PREDICTED) and PREDICTED.is_like(now)
    # of another box there are other voxels anyway
    elsewhere = replace(now, shape=[1, 2, 3])
    assert "others now" not in ledger.differences(before, elsewhere)
    assert before.key == now.key


def test_a_class_that_was_made_of_other_channels_is_made_again(tmp_path):
    edge = replace(PREDICTED, made="2026-01-02T00:00:00+00:00")
    made_of = replace(PROCESSED, channels={"edge": ledger.state_of(edge)})
    write(tmp_path / "processed/mito", "mito", made_of)
    group = tmp_path / "processed/mito"
    # predictions may be removed when they are processed
    assert ledger.is_processed(group, PROCESSED, tmp_path)
    write(tmp_path / "edge", "edge", edge)
    assert ledger.is_processed(group, PROCESSED, tmp_path)
    ledger.refuse_stale(group, made_of, PROCESSED, PREDICTED, predictions=tmp_path)
    later = records.group_attributes("edge", replace(edge, made="2026-01-03T00:00:00+00:00"))
    (tmp_path / "edge/.zattrs").write_text(json.dumps(later))
    assert not ledger.is_processed(group, PROCESSED, tmp_path)
    with pytest.raises(UserError, match="mito: made of other predictions of edge than there are"):
        ledger.refuse_stale(group, made_of, PROCESSED, PREDICTED, predictions=tmp_path)
