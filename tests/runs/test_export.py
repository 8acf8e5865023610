"""Tables of runs and scalars, as the command writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from event_files import start, value, write

from common.shell.cli import cli


def unite(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["unite", str(root), "--no-serve", *arguments])


def write_record(folder: Path, settings: dict[str, str], result: dict | None = None) -> None:
    content = {
        "settings": settings,
        "provenance": {"commit": "abc", "split_hash": "f00"},
        "result": result or {},
    }
    (folder / "run.json").write_text(json.dumps(content))


@pytest.fixture
def resumed(tmp_path: Path) -> Path:
    """The folder of a run whose second event file begins at step 6 of the first one's ten."""
    folder = tmp_path / "exp/logs/m/s"
    write(folder, [value("loss", 0.5, step, 2.0 + step) for step in range(10)])
    second = [value("loss", 0.25, step, 102.0 + step) for step in range(6, 14)]
    write(folder, [start(6, 101.0), *second], 1)
    return folder


def test_runs_are_exported_one_a_row(tmp_path):
    for seed, best in ((1, 0.5), (2, 0.625)):
        folder = tmp_path / f"exp/logs/m/seed{seed}"
        write(folder, [value("mean/dice", 0.1, 1)])
        result = {
            "epoch": 9,
            "best_metric": "dice",
            "best": best,
            "best_epoch": 8,
            "hours": 1.5,
            "samples_per_s": 7.0,
        }
        write_record(folder, {"random_seed": str(seed), "epochs": "9"}, result)
    write(
        tmp_path / "old/logs/m/s", [value("mean/dice", x / 4, step) for step, x in ((4, 1), (8, 2))]
    )
    assert unite(tmp_path, "--export", str(tmp_path / "runs.csv")).exit_code == 0
    table = pd.read_csv(tmp_path / "runs.csv", keep_default_na=False, dtype=str).set_index("run")
    assert table.loc["exp/m/seed2"].to_dict() == {
        "best_metric": "dice",
        "best": "0.625",
        "best_epoch": "8",
        "epoch": "9",
        "iteration": "",
        "finished": "",
        "hours": "1.5",
        "samples_per_s": "7.0",
        "commit": "abc",
        "uncommitted_changes": "",
        "split_hash": "f00",
        "device": "",
        "precision": "",
        "settings/random_seed": "2",
    }
    assert table.loc["old/m/s", ["best", "best_epoch", "commit"]].tolist() == ["0.5", "2", ""]


def test_scalars_are_exported_in_long_form(tmp_path, resumed):
    write(tmp_path / "exp/logs/m/t", [value("dice/mito", 0.75, 1, 300.0)])
    unite(tmp_path, "--export-scalars", str(tmp_path / "scalars.csv"))
    table = pd.read_csv(tmp_path / "scalars.csv")
    assert list(table.columns) == ["run", "tag", "step", "wall_time", "value"]
    wanted = [("exp/m/s", "loss", step, 2.0 + step, 0.5) for step in range(6)]
    wanted += [("exp/m/s", "loss", step, 102.0 + step, 0.25) for step in range(6, 14)]
    wanted += [("exp/m/t", "dice/mito", 1, 300.0, 0.75)]
    assert list(table.itertuples(index=False, name=None)) == wanted
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_both_tables_can_be_parquet(tmp_path, resumed):
    pytest.importorskip("pyarrow")
    write_record(resumed, {"a": "1"}, {"epoch": 9, "finished": True})
    write(tmp_path / "exp/logs/m/t", [value("dice/mito", 0.75, 1)])
    write(tmp_path / "exp/logs/m/u", [])
    for kind in ("csv", "parquet"):
        runs = ["--export", str(tmp_path / f"runs.{kind}")]
        scalars = ["--export-scalars", str(tmp_path / f"scalars.{kind}")]
        result = unite(tmp_path, *runs, *scalars)
        assert result.exit_code == 0, result.output
    for name in ("runs", "scalars"):
        wanted = pd.read_csv(tmp_path / f"{name}.csv").astype(object).fillna("")
        table = pd.read_parquet(tmp_path / f"{name}.parquet").astype(object).fillna("")
        pd.testing.assert_frame_equal(table, wanted, check_dtype=False)


def test_no_runs_are_an_empty_table(tmp_path):
    runs = ["--export", str(tmp_path / "runs.csv")]
    scalars = ["--export-scalars", str(tmp_path / "scalars.csv")]
    assert unite(tmp_path, *runs, *scalars).exit_code == 0
    assert (tmp_path / "scalars.csv").read_text() == "run,tag,step,wall_time,value\n"
    assert (tmp_path / "runs.csv").read_text().startswith("run,best_metric,best,")


@pytest.mark.parametrize("option", ["--export", "--export-scalars"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("runs.xlsx", "ends in '.xlsx'"),
        ("missing/runs.csv", "does not exist"),
        ("runs.parquet", "needs pyarrow"),
    ],
)
def test_a_table_that_cannot_be_written_is_refused_at_once(
    tmp_path, monkeypatch, option, name, problem
):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write(tmp_path / "exp/logs/m/s", [])
    result = unite(tmp_path, option, str(tmp_path / name))
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {tmp_path / name}: ")
    assert problem in result.output
    assert not (tmp_path / "tensorboards").exists()


def test_a_broken_record_is_refused_in_one_sentence(tmp_path):
    write(tmp_path / "exp/logs/m/s", [])
    (tmp_path / "exp/logs/m/s/run.json").write_text("{")
    result = unite(tmp_path, "--export", str(tmp_path / "runs.csv"))
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "runs.csv").exists()


def test_an_event_file_that_may_not_be_read_is_named_and_left_out(tmp_path, monkeypatch):
    file = write(tmp_path / "exp/logs/m/closed", [value("a", 1, 1)])
    write(tmp_path / "exp/logs/m/open", [value("a", 1, 2)])
    opened = Path.open

    def refuse(path: Path, *arguments, **options):
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    result = unite(tmp_path, "--export-scalars", str(tmp_path / "scalars.csv"))
    assert result.exit_code == 0
    assert f"{file}: cannot be read (Permission denied); left out" in result.output
    exported = (tmp_path / "scalars.csv").read_text()
    assert "open" in exported and "closed" not in exported
