"""What TensorBoard shows of the united runs, and the page of charts that is laid out for it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import DEADLINE, started
from event_files import append, value, write
from run_folders import make_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from common.classes import TESTED
from common.files import REPOSITORY
from common.runs import layout, serve, unite
from common.runs.find import find

# the Custom Scalars page


def charts_of(tag: str, page: layout_pb2.Layout) -> list[tuple[str, str]]:
    """Part and title of each chart that shows a tag."""
    found = []
    for part in page.category:
        for chart in part.chart:
            if re.match(chart.multiline.tag[0], tag):
                found.append((part.title, chart.title))
    return found


def test_the_layout_shows_each_class_and_mean_once_beside_its_relatives(tmp_path):
    path = tmp_path / layout.FILE
    layout.write(path)
    log = EventAccumulator(str(path.parent)).Reload()
    content = log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    page = layout_pb2.Layout.FromString(content)
    for metric in ("dice", "iou", "precision", "recall"):
        assert charts_of(f"mean/{metric}", page) == [("losses and means", f"mean {metric}")]
        for name in TESTED:
            assert len(charts_of(f"{metric}/{name}", page)) == 1
    for name in ("mito", "mito_mem", "mito_ribo"):
        assert charts_of(f"dice/{name}", page) == [("dice: mito", name)]
    for name in ("nucpl", "nuc"):
        assert charts_of(f"iou/{name}", page) == [("iou: nucleus", name)]
    for name in ("ecs", "pm"):
        assert charts_of(f"dice/{name}", page) == [("dice: cell", name)]
    for name in ("mine", "mito_new"):
        assert charts_of(f"dice/{name}", page) == [("dice: other classes", "other classes")]
    for tag in ("loss/train", "loss/validation"):
        assert charts_of(tag, page) == [("losses and means", "loss")]


def test_a_layout_that_is_there_already_is_not_written_again(tmp_path):
    path = tmp_path / layout.FILE
    layout.write(path)
    written = path.stat().st_mtime_ns
    layout.write(path)
    assert path.stat().st_mtime_ns == written


def test_the_hparams_page_has_the_settings_that_differ_between_runs(tmp_path):
    for name, rate, loss in (("one", "0.001", "'bce'"), ("two", "0.01", "'dice'")):
        make_run(
            tmp_path,
            f"x/m/{name}",
            {"mito": 0.5},
            {"learning_rate": rate, "loss": loss, "run_name": name},
        )
    runs = [replace(run, events=(run.folder / "events",)) for run in find(tmp_path)]
    unite.unite(runs, tmp_path / "out")
    log = EventAccumulator(str((tmp_path / "out" / layout.FILE).parent)).Reload()
    content = log.SummaryMetadata("_hparams_/experiment").plugin_data.content
    page = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    columns = {info.name: info.type for info in page.hparam_infos}
    number, text = api_pb2.DATA_TYPE_FLOAT64, api_pb2.DATA_TYPE_STRING
    assert columns == {"learning_rate": number, "loss": text}
    assert all(info.differs for info in page.hparam_infos)


def test_losses_and_means_are_pinned_above_all_other_charts():
    query = parse_qs(urlsplit(serve.first_page("http://127.0.0.1:6006/")).query)
    cards = json.loads(query["pinnedCards"][0])
    assert [card["tag"] for card in cards][:3] == ["mean/dice", "mean/iou", "loss/validation"]


# serving


def test_a_busy_port_is_refused_in_one_sentence_by_the_script_that_users_type(tmp_path):
    write(tmp_path / "exp/logs/m/s", [])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = subprocess.run(
            [sys.executable, REPOSITORY / "unite_tensorboards.py", tmp_path, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: port {port}: address already in use;")


@contextmanager
def serving(root: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, serving on a free port and looking at the runs each second."""
    code = (
        "import sys; from common.runs import serve; from common.shell.cli import cli; "
        "serve.INTERVAL = 1; cli(['unite', *sys.argv[1:]])"
    )
    command = [sys.executable, "-u", "-c", code, str(root), "--port", "0", "--watch"]
    with started(
        command,
        env=os.environ | {"no_proxy": "127.0.0.1,localhost"},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def address(process: subprocess.Popen[str]) -> str:
    """Where it serves, once it says so."""
    for line in process.stdout:
        match = re.search(r"http://127\.0\.0\.1:\d+/", line)
        if match:
            return match[0]
    raise AssertionError("ended without serving")


def wait_for(
    process: subprocess.Popen[str], url: str, wanted: object, change: Callable[[object], object]
) -> None:
    """Ask until the answer is what is wanted; fail with the last answer if the process ends."""
    answer = None
    while process.poll() is None and answer != wanted:
        time.sleep(0.1)
        answer = change(ask(url))
    assert answer == wanted


def ask(url: str) -> object:
    """The JSON at `url`, or None if the server is not up yet."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return json.load(answer)
    except (urllib.error.URLError, TimeoutError):
        return None


def names(answer: list[str] | None) -> set[str]:
    return set(answer or ())


def points(answer: list[tuple[float, int, float]] | None) -> list[tuple[int, float]]:
    return [(step, number) for _, step, number in answer or ()]


@pytest.mark.slow
def test_tensorboard_shows_the_runs_keeps_up_with_them_and_stops_quietly(tmp_path):
    ours = write(tmp_path / "unet8_all/logs/unet8/seed1", [value("loss", 0.5, 1)])
    # resumed without a word about from which step: the data server drops what comes again
    folder = tmp_path / "exp/logs/m/s"
    write(folder, [value("loss", 0.5, step, 1.0 + step) for step in range(10)])
    second = write(folder, [value("loss", 0.25, step, 100.0 + step) for step in (6, 7)], 1)
    known = {"layout", "exp/m/s", "unet8_all/unet8/seed1"}
    with serving(tmp_path) as process:
        url = address(process)
        of_ours = f"{url}data/plugin/scalars/scalars?run=unet8_all/unet8/seed1&tag=loss"
        of_others = f"{url}data/plugin/scalars/scalars?run=exp/m/s&tag=loss"
        curve = [(step, 0.5) for step in range(6)] + [(6, 0.25), (7, 0.25)]
        wait_for(process, f"{url}data/runs", known, names)
        wait_for(process, of_ours, [(1, 0.5)], points)
        wait_for(process, of_others, curve, points)
        page = ask(f"{url}data/plugin/custom_scalars/layout")
        (mito,) = [part for part in page["category"] if part["title"] == "dice: mito"]
        assert {"mito", "mito_mem"} <= {chart["title"] for chart in mito["chart"]}

        append(ours, [value("loss", 0.25, 3)])
        append(second, [value("loss", 0.25, 8, 108.0)])
        write(tmp_path / "unet8_all/logs/unet8/seed2", [value("loss", 0.5, 1)])
        wait_for(process, f"{url}data/runs", known | {"unet8_all/unet8/seed2"}, names)
        wait_for(process, of_ours, [(1, 0.5), (3, 0.25)], points)
        wait_for(process, of_others, [*curve, (8, 0.25)], points)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert "new run: unet8_all/unet8/seed2\n" in output
    assert "Traceback" not in output + errors
