"""Scores as text: what stands in the README is what was measured and nothing else of it changes; tables fit a terminal."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from test_process import ABOVE, configured, run, write_prediction

from common.classes import INSTANCES, TESTED
from common.data import ngff
from common.score import evaluate, readme
from common.score.challenge import SKIPPED, Counts, InstanceCounts
from common.score.evaluate import Evaluation


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(evaluate, "RESAMPLES", 50)


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


def written(tiny, **settings) -> tuple[str, dict]:
    """The README and the result."""
    settings = {"classes": ("mito", "er"), **settings}
    result = evaluate.evaluate(
        tiny.folder,
        "crop1,crop3",
        data=tiny.data,
        write_readme=True,
        say=lambda line: None,
        **settings,
    )
    return (tiny.folder / "README.md").read_bytes().decode(), result


def result_of(*names: str, crops: int = 3, **over) -> dict:
    rng, found = np.random.default_rng(0), []
    for crop in range(crops):
        for name in names:
            tp, fp, fn = rng.integers(100, 10**6, 3).tolist()
            counts = (
                InstanceCounts(tp, fp, fn, "scored", 0.4 * tp, tp)
                if name in INSTANCES
                else Counts(tp, fp, fn)
            )
            found.append(
                Evaluation(
                    f"crop{crop}",
                    name,
                    counts,
                    (tp, fp, fn),
                    (tp, fp, fn, 0.7 * tp),
                    (12.5, 10.25),
                    0.375,
                )
            )
    return evaluate.summary(found) | over


# In the README


def test_numbers_in_the_readme_are_those_of_the_result(tiny):
    text, result = written(tiny)
    for name, columns in (
        ("mito", readme.KINDS["instance"][1]),
        ("er", readme.KINDS["semantic"][1]),
    ):
        head, row = (
            next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
            for start in ("class", name)
        )
        if name == "er":
            head = [line for line in text.splitlines() if line.startswith("| class |")][1]
        shown = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
        assert shown.pop("crops") == "2" and shown.pop("class") == name
        low, high = map(float, shown.pop("95 % interval").split("-"))
        assert [low, high] == pytest.approx(result["classes"][name]["interval_95"], abs=5e-4)
        wanted = {
            head: f"{result['classes'][name][figure]:.3f}" for figure, head in columns.items()
        }
        assert shown == wanted
    assert f"| {result['overall_score']:.4f} (" in text


def test_the_readme_says_what_was_scored(tiny):
    text, result = written(tiny, overrides=(f"cache_path={tiny.data}/cache", "batch_size=3"))
    said = text[text.index(readme.BEGIN) : text.index(readme.END)]
    assert (
        "`python -m cellmap_segmentation_challenge evaluate tiny_experiment --crops crop1,crop3 --classes mito,er --set batch_size=3 --write-readme`"
        in said
    )
    for words in (
        "checkpoint of epoch 4 (dice 0.5 at epoch 4), SHA-256 dddddddddddd;",
        "run seed42",
        "Crops: tiny/crop1, tiny/crop3.",
        "Thresholds: er 0.4, 0.5 for the others.",
        result["metric"],
        result["provenance"]["date"][:10],
        result["provenance"]["commit"][:10],
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
    with pytest.raises(
        ValueError,
        match="README.md: .* must stand there once, in this order; put them back, or remove both",
    ):
        written(tiny)
    assert (tiny.folder / "README.md").read_text() == text and not (
        tiny.folder / "results"
    ).exists()


def test_volumes_of_another_program_have_no_checkpoint_on_record(tiny):
    folder = tiny.config().path("processed_path") / "tiny.zarr"
    for path in folder.glob("*/*/s0"):
        level = ngff.open_levels(path.parent)[0]
        ngff.write_multiscale(path.parent, level.array[...], level.scale, level.translation)
    text, _ = written(tiny)
    assert "checkpoint not on record" in text and "Thresholds: not on record." in text


# In the terminal


@pytest.mark.parametrize(
    "names",
    [("er",), ("mito",), ("mito", "er"), TESTED, ("chloroplast_lum", "perox", "plasmodesmata")],
)
@pytest.mark.parametrize("crops", [1, 3, 41])
def test_tables_fit_120_columns(names, crops):
    over = {"not_annotated": TESTED}
    lines = readme.terminal(result_of(*names, crops=crops, **over)).splitlines()
    assert max(map(len, lines)) <= readme.WIDTH
    rows = [
        line.split()[0]
        for line in lines
        if line.split()[:1] and line.split()[0] in names and line.split()[1] == str(crops)
    ]
    assert rows == [name for name in names if name in INSTANCES] + [
        name for name in names if name not in INSTANCES
    ]


def test_columns_stand_below_their_heads():
    lines = readme.terminal(result_of("mito", "nuc")).splitlines()
    head, *rows = lines[1:4]
    for word in ("score", "F1", "PQ", "recall"):
        end = head.index(word) + len(word)
        assert all(row[end - 1].isdigit() and (len(row) == end or row[end] == " ") for row in rows)


def test_columns_without_a_figure_are_left_out():
    result = result_of("mito", "er", crops=1)
    assert "95 % interval" not in readme.terminal(result)
    result["classes"]["mito"]["rand_error"] = None
    result["classes"]["er"] |= {"dice": None, "recall": None}
    instance, semantic = readme.tables(result)
    assert "Rand" not in instance.head and semantic.head == ["class", "crops", "score", "prec"]


def test_a_figure_that_does_not_exist_is_a_dash():
    result = result_of("mito", "nuc", crops=1)
    result["classes"]["nuc"]["pq"] = None
    (table,) = readme.tables(result)
    assert [row[table.head.index("PQ")] for row in table.rows] == [
        f"{result['classes']['mito']['pq']:.3f}",
        "-",
    ]


def test_heads_are_explained_where_they_stand():
    assert "panoptic quality" in readme.terminal(
        result_of("mito")
    ) and "panoptic quality" not in readme.terminal(result_of("er"))


def test_what_the_metric_left_out_is_said():
    found = [
        Evaluation(
            f"crop{k}",
            "mito",
            InstanceCounts(status=SKIPPED if k else "scored"),
            (1, 1, 1),
            (0, 0, 1, 0.0),
            (1, 1),
            0.1,
        )
        for k in range(3)
    ]
    assert (
        "Left out by the metric" in (said := " ".join(readme.remarks(evaluate.summary(found))))
        and "mito in 2 of 3 crops" in said
    )
    assert "Left out" not in " ".join(readme.remarks(result_of("mito")))
