"""Stale processed volumes are not packed."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import CLASSES

from common.score import submission
from tests.infer.test_process import ABOVE, configured, run, tuned, write_prediction
from tests.volumes import changing

HEAD = "crop_name,dataset,class_label,voxel_size,translation,shape\n"
SOME = np.where(np.indices((24, 24, 24)).sum(0) % 5 > 2, 200, 50).astype(np.uint8)


@pytest.fixture
def tiny(experiment):
    """The three classes of a test crop, processed."""
    made = experiment()
    configured(made, ABOVE)
    rows = [f"crop3,tiny,{name},[8;8;8],[16;240;240],[24;24;24]\n" for name in CLASSES]
    (made.folder / "manifest.csv").write_text(HEAD + "".join(rows))
    for name in CLASSES:
        write_prediction(made, name, SOME, sha256="a", made="2026-01-01T00:00:00+00:00")
    processed(made)
    return made


def processed(tiny) -> None:
    run(tiny, crops="test", manifest_path=str(tiny.folder / "manifest.csv"))


@pytest.fixture
def packed(tiny, run, tmp_path):
    """Packs by the command; gives exit code and what it said."""

    def call(*words: str) -> tuple[int, str]:
        manifest = ("--manifest", tiny.folder / "manifest.csv")
        zip_path = ("--output", tmp_path / "s.zip")
        code, said, error = run("pack-results", tiny.folder, *manifest, *zip_path, *words)
        return code, said + error

    return call


CHANGES = {
    "prediction": lambda tiny: write_prediction(tiny, "er", SOME, key="b"),
    "prediction made again": lambda tiny: write_prediction(
        tiny, "er", SOME, made="2026-01-02T00:00:00+00:00"
    ),
    "threshold": lambda tiny: tuned(tiny, er=0.9),
    "process_config.py": lambda tiny: configured(tiny, ABOVE + "batch_size = 1"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_process_would_make_anew_is_not_packed(tiny, packed, tmp_path, what):
    assert packed()[0] == 0
    CHANGES[what](tiny)
    code, said = packed()
    assert code == 2 and "crop3/er: " in said and "run process again" in said
    assert ("crop3/mito: " in said) is (what == "process_config.py")
    processed(tiny)
    code, said = packed()
    assert code == 0 and "same checkpoint" not in said


def test_partial_leaves_it_out(tiny, packed, tmp_path):
    tuned(tiny, er=0.9)
    code, said = packed("--partial")
    assert code == 0 and "would be made otherwise now" in said
    with submission.opened(tmp_path / "s.zip") as group:
        assert sorted(group["crop3"].array_keys()) == ["mito", "nuc"]


def test_volumes_of_other_programs_are_packed(tiny, packed):
    crop = tiny.config().path("processed_path") / "tiny.zarr/crop3"
    for name in CLASSES:
        with changing(crop / name) as attributes:
            del attributes["processed"]
    (tiny.folder / "process_config.py").unlink()
    assert packed()[0] == 0


def test_predictions_in_the_place_of_masks_are_not_scored(tiny, run):
    predictions = tiny.config().path("predictions_path")
    words = ("--data", tiny.data, "--set", f"processed_path={predictions}")
    code, said, error = run("evaluate", tiny.folder, *words)
    assert code == 2 and "written by predict, and no mask or ids yet" in said + error
