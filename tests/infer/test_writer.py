"""Classes on disk while they are written: what describes them may be damaged."""

from __future__ import annotations

import shutil

import pytest

from tests.infer.test_predict import Stop, files, predict_tiny, save_weights


@pytest.fixture
def tiny(experiment):
    made = experiment()
    save_weights(made)
    return made


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"shape": [1, 2, 3]}', None])
def test_a_class_whose_array_is_damaged_is_begun_anew_and_the_others_gone_on_with(
    tiny, damage, capfd
):
    place = predict_tiny(tiny, block=8)
    whole = files(place)
    shutil.rmtree(place)
    with pytest.raises(KeyboardInterrupt):
        predict_tiny(tiny, block=8, stopped=Stop(10))
    array = place / "mito" / "s0" / ".zarray"
    if damage is None:
        array.unlink()
    else:
        array.write_text(damage)
    capfd.readouterr()
    assert files(predict_tiny(tiny, block=8)) == whole
    said = capfd.readouterr().err
    assert said.count("begun anew") == 1
    assert "mito: cannot be gone on with" in said
