"""What a prediction says of the weights that made it."""

from __future__ import annotations

from common.data.volumes.records import PredictionRecord
from common.files import sha256_of_file
from common.infer.processing.prediction import note_older_weights


def test_a_checkpoint_that_was_written_anew_since_is_told(tmp_path, capsys):
    kept = tmp_path / "kept.pt"
    best = tmp_path / "best.pt"
    members = []
    for path in (kept, best):
        path.write_text("epoch 1")
        members.append({"checkpoint": str(path), "sha256": sha256_of_file(path)})
    alone = PredictionRecord(**members[1])
    together = PredictionRecord(checkpoint=f"{kept} + {best}", sha256="of both", members=members)
    gone = PredictionRecord(checkpoint=str(tmp_path / "gone.pt"), sha256="a")
    note_older_weights([alone, together, gone, PredictionRecord()])
    assert capsys.readouterr().err == ""
    best.write_text("epoch 9")
    for record in (alone, together):
        note_older_weights([record, gone])
    said = capsys.readouterr().err
    assert said.startswith(f"note: {best}: written anew since it predicted these; predict with")
    # once for all commands of a process
    assert said.count("\n") == 1
