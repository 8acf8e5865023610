"""Scores in a README: what stands there is what was measured, and nothing else of it changes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from common.data.volumes import ngff
from common.errors import UserError
from common.score import evaluate, readme
from common.score.result import Scores
from tests.infer.test_process import ABOVE, configured, run, write_prediction


@pytest.fixture
def tiny(experiment):
    """Two crops, er right but for a voxel's shift, mito all right."""
    made = experiment()
    configured(made, ABOVE + 'thresholds = {"er": 0.4}')
    for crop in ("crop1", "crop3"):
        for name, shift in (("mito", 0), ("er", 1)):
            found = np.roll(ngff.open_levels(made.crop(crop) / name)[0].array[...], shift, 2)
            write_prediction(
                made,
                name,
                found * 255,
                crop=crop,
                sha256="d" * 64,
                epoch=4,
                metric="dice 0.5 at epoch 4",
                model_name="m",
                run_name="r",
            )
    run(made, crops="crop1,crop3", classes=("mito", "er"))
    return made


def written(tiny, **settings) -> tuple[str, Scores]:
    """The README and the result."""
    settings = {"classes": ("mito", "er"), **settings}
    scores = evaluate.evaluate(
        tiny.folder,
        "crop1,crop3",
        data=tiny.data,
        write_readme=True,
        say=lambda line: None,
        **settings,
    )
    return (tiny.folder / "README.md").read_bytes().decode(), scores


def rows_of(text: str) -> dict[str, dict[str, str]]:
    """By class the cells of its row, by the heads of its table."""
    rows = {}
    heads: list[str] = []
    for line in text.splitlines():
        if not line.startswith("| "):
            heads = []
            continue
        cells = line.strip("| ").split(" | ")
        if cells[0] == "class":
            heads = cells
        elif heads and cells[0] != "---":
            rows[cells[0]] = dict(zip(heads, cells, strict=True))
    return rows


# In the README


def test_numbers_in_the_readme_are_those_of_the_result(tiny):
    text, scores = written(tiny)
    rows = rows_of(text)
    heads = {
        "mito": {"F1": "f1", "Hausd": "hausdorff", "PQ": "pq", "VOI s": "voi_split", "IoU": "iou"},
        "er": {"Dice": "dice", "prec": "precision", "recall": "recall"},
    }
    for name, figures in heads.items():
        shown = rows[name]
        wanted = scores.classes[name]
        assert shown["crops"] == "2"
        assert shown["score"] == f"{wanted.figures.score:.3f}"
        for head, figure in figures.items():
            assert shown[head] == f"{getattr(wanted.figures, figure):.3f}"
        low, high = shown["95 % interval"].split("-")
        assert (float(low), float(high)) == pytest.approx(wanted.interval_95, abs=5e-4)
    assert f"| {scores.overall_score:.4f} (" in text


def test_the_readme_says_what_was_scored(tiny):
    text, scores = written(tiny, overrides=(f"cache_path={tiny.data}/cache", "batch_size=3"))
    said = text[text.index(readme.BEGIN) : text.index(readme.END)]
    command = (
        "evaluate tiny_experiment --crops crop1,crop3 --classes mito,er --set batch_size=3 "
        "--write-readme"
    )
    assert f"`python -m cellmap_segmentation_challenge {command}`" in said
    for words in (
        "checkpoint of epoch 4 (dice 0.5 at epoch 4), SHA-256 dddddddddddd;",
        "run seed42",
        "Crops: tiny/crop1, tiny/crop3.",
        "Thresholds: er 0.4, 0.5 for the others.",
        scores.metric,
        scores.provenance.date[:10],
        scores.provenance.versions["commit"][:10],
    ):
        assert words in said
    assert str(tiny.data) not in text and str(tiny.folder.parent) not in text


def test_the_picture_is_beside_it(tiny):
    text, _ = written(tiny)
    assert f"]({readme.PICTURE})" in text
    with Image.open(tiny.folder / readme.PICTURE) as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_nothing_else_of_the_readme_changes(tiny, end):
    before, after = f"# Mine{end}{end}text  {end}", f"{end}## After{end}more{end}{end}"
    (tiny.folder / "README.md").write_bytes(
        f"{before}{readme.BEGIN}{end}stale words{end}{readme.END}{after}".encode()
    )
    for _ in range(2):
        text, _ = written(tiny)
        assert (
            text.startswith(before + readme.BEGIN)
            and text.endswith(readme.END + after)
            and "stale" not in text
        )


def test_a_readme_without_markers_gets_them_at_its_end(tiny):
    (tiny.folder / "README.md").write_text("# Mine\n\ntext — é\n")
    text, _ = written(tiny)
    assert text.startswith(
        f"# Mine\n\ntext — é\n\n## Scores\n\n{readme.BEGIN}\n"
    ) and text.endswith(f"{readme.END}\n")


def test_an_experiment_without_readme_gets_one(tiny):
    text, _ = written(tiny)
    assert text.startswith(f"# tiny_experiment\n\n## Scores\n\n{readme.BEGIN}\n") and text.endswith(
        f"{readme.END}\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        f"a\n{readme.BEGIN}\nb",
        f"a\n{readme.END}\nb",
        f"{readme.END}{readme.BEGIN}",
        f"{readme.BEGIN * 2}{readme.END}",
    ],
)
def test_a_marker_without_the_other_is_refused_before_anything_is_scored(tiny, text):
    (tiny.folder / "README.md").write_text(text)
    with pytest.raises(UserError, match=r"README.md: .* must stand there once"):
        written(tiny)
    assert (tiny.folder / "README.md").read_text() == text
    assert not (tiny.folder / "results").exists()


def test_a_readme_in_other_letters_is_refused_before_anything_is_scored(tiny):
    (tiny.folder / "README.md").write_bytes(b"# caf\xe9")
    with pytest.raises(UserError, match=r"README.md: no text in UTF-8 .* at byte 5\); save it"):
        written(tiny)
    assert not (tiny.folder / "results").exists()


def test_volumes_of_another_program_have_no_checkpoint_on_record(tiny):
    folder = tiny.config().path("processed_path") / "tiny.zarr"
    for path in folder.glob("*/*/s0"):
        level = ngff.open_levels(path.parent)[0]
        ngff.write_multiscale(path.parent, level.array[...], level.scale, level.translation)
    text, _ = written(tiny)
    assert "checkpoint not on record" in text and "Thresholds: not on record." in text
