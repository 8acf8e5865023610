"""Gather the runs of all experiments in one TensorBoard.

    python unite_tensorboards.py                         all experiments of this repository
    python unite_tensorboards.py --watch                 the same, and whatever appears while it runs
    python unite_tensorboards.py --filter "unet8*" --port 0
    python unite_tensorboards.py /scratch/me/repo . --no-serve --export runs.csv --export-scalars scalars.parquet
    python unite_tensorboards.py /scratch/toolbox --map loss=loss/train --map validation=loss/validation

Runs are found by common/runs.py. Each becomes a link `tensorboards/<experiment>/<model>/<run>`; nothing is copied, so that
TensorBoard follows a run that is being written, or resumed in a further event file. Only what a link would show wrongly is
rewritten: event files of a run that was resumed by others, who did not say from which step, become one without the superseded
steps; and tags that --map names get their new names.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click
import pandas as pd
from fasteners import InterProcessLock
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars

from common.classes import GROUP_ATOMS, TESTED, atoms_of
from common.runs import events as events_module
from common.runs import find, history
from common.runs.find import Run

OUTPUT = find.UNITED
LOOPBACK = "127.0.0.1"
NAME_DEPTH = 3
"""A link stands at experiment/model/run in the output folder."""
MARK = f"{os.sep}.{os.sep}"
"""Stands after the logs folder in what each link of ours says, and in no link made by hand: so we know them again."""
SOURCES = ".united.json"
"""Stands beside an event file that we wrote, and says which bytes of which files are in it."""
TEMPORARY = ".united.tmp"
WRITTEN = "events.out.tfevents.united."
"""Beginning of the names of event files that we write."""
LAYOUT = "layout/events.out.tfevents.layout"
"""TensorBoard takes the layout of its Custom Scalars page from any run; ours is a run of nothing else."""
METRICS = ("dice", "iou", "precision", "recall")
INTERVAL = 5
"""Seconds between two looks at the runs, of ours and of TensorBoard."""


class Refusal(click.ClickException):
    """What the user must change, in one sentence; exit code 2."""

    exit_code = 2


@dataclass
class Plan:
    """What the output folder has to hold. Paths are in it, and resolved."""

    links: dict[Path, str] = field(default_factory=dict)
    """What each link has to say: the way to a run's folder, or to an event file."""
    rewritten: dict[Path, tuple[Run, list[Path]]] = field(default_factory=dict)
    """The event files that become one, in each folder that gets such a file."""


def make_plan(runs: Iterable[Run], output: Path, searched: dict[Path, int]) -> Plan:
    """Link the folder of a run, but only its event files if it encloses another run (lest TensorBoard shows that twice) or if
    something in it is rewritten.
    """
    plan = Plan()
    for run in runs:
        folders = events_module.events_by_folder(run)
        changed = {
            folder: files
            for folder, files in folders.items()
            if must_rewrite(files, run.renames, searched)
        }
        plan.rewritten |= {
            place(output, run, folder): (run, files) for folder, files in changed.items()
        }
        if changed or run.encloses:
            targets = [
                file for folder, files in folders.items() if folder not in changed for file in files
            ]
        else:
            targets = [run.folder] if folders else []
        for target in targets:
            link = place(output, run, target)
            plan.links[link] = marked_way(link.parent, run.logs, target)
    return plan


def place(output: Path, run: Run, path: Path) -> Path:
    """Where a file or folder of a run stands in the output folder."""
    return output / run.name / path.relative_to(run.folder)


def must_rewrite(
    files: Sequence[Path], renames: Mapping[str, str], searched: dict[Path, int]
) -> bool:
    """Whether the event files of a folder are several sessions that do not say what they supersede, or hold a tag to be renamed.

    TensorBoard shows the last of several hparams as it is. searched: how much of a file is known to hold no such tag.
    """
    several = len(files) > 1 and files[0].parent.name != find.HPARAMS
    if several and not all(
        events_module.restarts(file) for file in events_module.in_order(files)[1:]
    ):
        return True
    for file in files if renames else ():
        size = file.stat().st_size
        if events_module.mentions(file, renames, searched.get(file, 0)):
            return True
        searched[file] = size
    return False


def marked_way(start: Path, logs: Path, target: Path) -> str:
    """The way from `start` to `target`, which is in `logs`: relative, or absolute if on another drive (Windows)."""
    try:
        way = os.path.relpath(logs, start)
    except ValueError:
        way = str(logs)
    return f"{way}{MARK}{target.relative_to(logs)}"


def ours(output: Path) -> tuple[dict[Path, str], list[Path]]:
    """What earlier calls made in `output`: the links and what they say, and the folders of event files that they wrote."""
    links, rewritten = {}, []
    for folder, folders, files in os.walk(output):
        for path in (Path(folder, name) for name in folders + files):
            if len(path.relative_to(output).parts) >= NAME_DEPTH and (way := our_link(path)):
                links[path] = way
        if SOURCES in files:
            rewritten.append(Path(folder))
    return links, rewritten


def our_link(path: Path) -> str | None:
    """What the link at `path` says if it is of our making; None for anything else."""
    try:
        way = os.readlink(path)
    except OSError:
        return None
    return way if MARK in way else None


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Let no other process of ours change `output` meanwhile."""
    output.mkdir(parents=True, exist_ok=True)
    with InterProcessLock(output / ".lock"):
        yield


def rebuild(plan: Plan, output: Path) -> None:
    """Make `output` hold what is planned beside what others put there, which is never touched.

    Links that are right already stay, and event files that we wrote go on, for a TensorBoard that is looking at them. Raises
    Refusal where something else is in the way.
    """
    links, rewritten = ours(output)
    for folder in rewritten:
        if folder not in plan.rewritten:
            forget(folder)
            remove_empty(folder, output)
    for link, way in links.items():
        if plan.links.get(link) != way:
            link.unlink()
            remove_empty(link.parent, output)
    for path in plan.links:
        refuse_obstacle(path, output, folder_wanted=False)
    for path in plan.rewritten:
        refuse_obstacle(path, output, folder_wanted=True)
    for link, way in plan.links.items():
        if our_link(link) is None:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(way)
    for folder, (run, files) in plan.rewritten.items():
        folder.mkdir(parents=True, exist_ok=True)
        follow(folder, files, run.renames)
    keep_layout(output, bool(plan.links or plan.rewritten))


def remove_empty(folder: Path, output: Path) -> None:
    """Remove `folder`, and those around it, if nothing is left in them."""
    while folder != output and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def refuse_obstacle(path: Path, output: Path, folder_wanted: bool) -> None:
    """Raise Refusal if something not of our making keeps `path` from being made."""
    folders = [folder for folder in path.parents if folder.is_relative_to(output)]
    for part in (*reversed(folders), path):
        if is_obstacle(part, folder_wanted or part != path):
            raise Refusal(
                f"{part}: in the way and not of our making; move it, or choose another folder by --output"
            )


def is_obstacle(path: Path, folder_wanted: bool) -> bool:
    """True if `path` is something else than the folder that is wanted or, where a link is wanted, than a link of ours."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(mode):
        return folder_wanted or our_link(path) is None
    return not (folder_wanted and stat.S_ISDIR(mode))


# Rewriting


def follow(folder: Path, files: Sequence[Path], renames: Mapping[str, str]) -> None:
    """Bring the event file that we wrote into `folder` up to date with `files`.

    What was added to them is added to it; if they are others than before, or read otherwise, it is written anew.
    """
    state = read_state(folder)
    if is_continued(state, folder, files, renames):
        append(state, folder, renames)
    else:
        rewrite(folder, files, renames)


def read_state(folder: Path) -> dict[str, Any]:
    """What SOURCES says: file (name), bytes, renames, and sources (path to bytes of it that were read); empty if there is none."""
    try:
        return json.loads((folder / SOURCES).read_text())
    except FileNotFoundError:
        return {}


def is_continued(
    state: Mapping[str, Any], folder: Path, files: Sequence[Path], renames: Mapping[str, str]
) -> bool:
    """Whether the event file in `folder` is whole, and holds the beginnings of just these files under these names."""
    if (
        not state
        or state["renames"] != dict(renames)
        or set(state["sources"]) != set(map(str, files))
    ):
        return False
    written = folder / state["file"]
    if not written.is_file() or written.stat().st_size != state["bytes"]:
        return False
    for source, size in state["sources"].items():
        grown = Path(source).stat().st_size - size
        if grown < 0 or (grown > 0 and is_silent(Path(source), size)):
            return False
    return True


def is_silent(source: Path, size: int) -> bool:
    """Whether no value stands in the first bytes of a file: the first one that comes may supersede what others hold."""
    return not any(
        event.HasField("summary") for _, event in events_module.read_events(source, 0, size)
    )


def append(state: dict[str, Any], folder: Path, renames: Mapping[str, str]) -> None:
    """Add to our event file what was added to its sources."""
    path = folder / state["file"]
    with open(path, "ab") as file:
        for source, start in state["sources"].items():
            if Path(source).stat().st_size == start:
                continue
            try:
                for end, event in events_module.read_events(Path(source), start):
                    events_module.rename(event, renames)
                    file.write(events_module.frame(event))
                    state["sources"][source] = end
            except events_module.CutOff:
                continue  # being written; the rest is for the next time
            except events_module.Damaged as damage:
                find.say(str(damage))
    if path.stat().st_size > state["bytes"]:
        write_state(folder, state | {"bytes": path.stat().st_size})


def rewrite(folder: Path, files: Sequence[Path], renames: Mapping[str, str]) -> None:
    """Write the event files as one, without superseded steps.

    For a TensorBoard that has read what we wrote before, it has a new name, and begins with a START at step 0. The one before is
    emptied and stays until the next time: TensorBoard's reader in Python does not get beyond a file that it was reading and that
    is gone.
    """
    survey = events_module.survey(files, renames)
    events = events_module.surviving(survey, renames)
    first = list(itertools.islice(events, 1))
    began = first[0].wall_time if first else 0.0
    start = [
        Event(wall_time=began, file_version="brain.Event:2"),
        Event(wall_time=began, session_log=SessionLog(status=SessionLog.START)),
    ]
    before = written_files(folder)
    number = int(before[-1].suffix[1:]) + 1 if before else 0
    path, temporary = folder / f"{WRITTEN}{number:06}", folder / TEMPORARY
    with open(temporary, "wb") as file:
        for event in itertools.chain(start, first, events):
            file.write(events_module.frame(event))
    for old in before:
        if old.stat().st_size:
            os.truncate(old, 0)
        else:
            old.unlink()
    os.replace(temporary, path)
    sources = {str(file): end for file, end in survey.ends.items()}
    write_state(
        folder,
        {
            "file": path.name,
            "bytes": path.stat().st_size,
            "renames": dict(renames),
            "sources": sources,
        },
    )


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    (folder / TEMPORARY).write_text(json.dumps(state, indent=1))
    os.replace(folder / TEMPORARY, folder / SOURCES)


def forget(folder: Path) -> None:
    """Remove what we wrote into `folder`."""
    for path in (*written_files(folder), folder / TEMPORARY, folder / SOURCES):
        path.unlink(missing_ok=True)


def written_files(folder: Path) -> list[Path]:
    """The event files that we wrote into `folder`, the current one last."""
    return sorted(folder.glob(f"{WRITTEN}*"))


# The Custom Scalars page


def keep_layout(output: Path, wanted: bool) -> None:
    """Write the layout, unless it is there already, or remove it."""
    path = output / LAYOUT
    content = events_module.frame(
        Event(wall_time=1.0, file_version="brain.Event:2")
    ) + events_module.frame(layout_event())
    if wanted and not (path.is_file() and path.read_bytes() == content):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    elif not wanted and path.is_file():
        path.unlink()
        remove_empty(path.parent, output)


def layout_event() -> Event:
    """A page with charts for losses, means, and for each metric one for each group of classes."""
    layout = layout_pb2.Layout()
    add_category(
        layout,
        "losses and means",
        {
            "loss": "loss/(train|validation)$",
            **{f"mean {name}": f"mean/{name}$" for name in METRICS},
        },
    )
    for metric in METRICS:
        groups = class_groups()
        charts = {title: f"{metric}/({'|'.join(names)})$" for title, names in groups.items()}
        charts["other classes"] = f"{metric}/(?!({'|'.join(TESTED)})$)"
        add_category(layout, metric, charts, closed=metric != METRICS[0])
    tensor = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])
    value = Summary.Value(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        metadata=custom_scalars.create_summary_metadata(),
        tensor=tensor,
    )
    return Event(wall_time=1.0, summary=Summary(value=[value]))


def add_category(
    layout: layout_pb2.Layout, title: str, charts: Mapping[str, str], closed: bool = False
) -> None:
    """Add a part of the page; charts: title to a regular expression for the tags that it shows."""
    category = layout.category.add(title=title, closed=closed)
    for name, expression in charts.items():
        category.chart.add(title=name, multiline=layout_pb2.MultilineChartContent(tag=[expression]))


def class_groups() -> dict[str, list[str]]:
    """The tested classes by their first name, as mito, mito_mem and mito_lum; those without relatives by where they are."""
    families = defaultdict(list)
    for name in TESTED:
        families[name.split("_")[0]].append(name)
    groups = defaultdict(list)
    for family, names in families.items():
        lone = "nucleus" if atoms_of(names[0]) <= GROUP_ATOMS["nuc"] else "cell"
        groups[family if len(names) > 1 else lone] += names
    return dict(groups)


# Tables


def format_table(runs: Iterable[Run], now: float) -> str:
    """One line a run: name, number of event files, their size, and how long ago the last one was written."""
    rows = [("experiment/model/run", "files", "size", "written")]
    for run in runs:
        age = format_age(now - run.written)
        rows.append(
            (printable(run.name), str(len(run.events)), format_size(run.size), f"{age} ago")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{name:<{widths[0]}}  {files:>{widths[1]}}  {size:>{widths[2]}}  {written:>{widths[3]}}"
        for name, files, size, written in rows
    )


def printable(name: str) -> str:
    """`name` with a question mark for each character that has no picture or no encoding."""
    return "".join(character if character.isprintable() else "?" for character in name)


def format_size(size: int) -> str:
    """Bytes as people read them."""
    for unit, bytes_per_unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_per_unit:
            return f"{size / bytes_per_unit:.1f} {unit}"
    return f"{size} B"


def format_age(seconds: float) -> str:
    """A time span as people say it; a clock that is ahead of ours counts as now."""
    for unit, seconds_per_unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= seconds_per_unit:
            return f"{int(seconds // seconds_per_unit)} {unit}"
    return f"{max(int(seconds), 0)} s"


def check_export(path: Path | None) -> None:
    """Raise Refusal for a file that could not be written in the end."""
    if path is None:
        return
    if path.suffix not in (".csv", ".parquet"):
        raise Refusal(
            f"{path}: ends in '{path.suffix}'; write a name that ends in .csv or .parquet"
        )
    if not path.absolute().parent.is_dir():
        raise Refusal(
            f"{path}: the folder {path.absolute().parent} does not exist; make it, or write another name"
        )
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise Refusal(
                f"{path}: parquet needs pyarrow, which is not installed; pip install pyarrow, or write a name in .csv"
            ) from error


def export(frames: Iterable[pd.DataFrame], path: Path) -> None:
    """Write frames of the same columns below each other, one in memory at a time; the file appears when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        (write_parquet if path.suffix == ".parquet" else write_csv)(frames, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(frames: Iterable[pd.DataFrame], path: Path) -> None:
    with open(path, "w", newline="") as file:
        for number, frame in enumerate(frames):
            frame.to_csv(file, header=number == 0, index=False, lineterminator="\n")


def write_parquet(frames: Iterable[pd.DataFrame], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    writer = None
    for frame in frames:
        text = [name for name in frame if frame[name].dtype in ("category", "object")]
        content = pyarrow.Table.from_pandas(
            frame.astype(dict.fromkeys(text, "str")), preserve_index=False
        )
        writer = writer or pyarrow.parquet.ParquetWriter(path, content.schema)
        writer.write_table(content)
    if writer:
        writer.close()


def long_form(runs: Iterable[Run]) -> Iterator[pd.DataFrame]:
    """All scalars: run, tag, step, wall_time (s), value."""
    kinds = {
        "run": "str",
        "tag": "str",
        "step": "int64",
        "wall_time": "float64",
        "value": "float64",
    }
    yield pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
    for run in runs:
        for chunk in events_module.scalars(run):
            chunk.insert(0, "run", run.name)
            yield chunk


# Serving


def stay(
    output: Path,
    port: int | None,
    refresh: Callable[[], tuple[list[Run], Plan]] | None,
    runs: Sequence[Run],
) -> None:
    """Serve at `port`, and keep up with the runs by `refresh`, as far as they are given, until Ctrl-C."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # SIGINT is ignored in a background job of a shell unless we ask
        signal.signal(number, signal.default_int_handler)
    known = {run.name for run in runs}
    try:
        if port is not None:
            click.echo(f"TensorBoard at {start_tensorboard(output, port)} (Ctrl-C ends it)")
        while True:
            time.sleep(INTERVAL)
            if refresh:
                known |= greet(refresh, known)
    except KeyboardInterrupt:
        click.echo()


def greet(refresh: Callable[[], tuple[list[Run], Plan]], known: set[str]) -> set[str]:
    """Look again at the runs; the names of new ones, which are said, as is what went wrong: it may not the next time."""
    try:
        new = {run.name for run in refresh()[0]} - known
    except (Refusal, OSError) as error:
        find.say(f"{error}; trying again")
        return set()
    for name in sorted(new):
        click.echo(f"new run: {printable(name)}")
    return new


def start_tensorboard(output: Path, port: int) -> str:
    """Start TensorBoard in a thread of this process and give its address.

    Its Rust data server (the default) and its Python reader, which it falls back to, both follow links.
    """
    from tensorboard import program  # takes longer than all else here

    refuse_port(port)
    tensorboard = program.TensorBoard()
    tensorboard.configure(logdir=str(output), host=LOOPBACK, port=port, reload_interval=INTERVAL)
    try:
        return tensorboard.launch()
    except program.TensorBoardServerException as error:
        raise Refusal(
            f"{error.msg}; choose another by --port, or --port 0 for any free one"
        ) from error


def refuse_port(port: int) -> None:
    """Raise Refusal if `port` cannot be had; TensorBoard itself finds out only once its data server runs."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as TensorBoard: a port closed just now is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            reason = os.strerror(error.errno).lower()
            raise Refusal(
                f"port {port}: {reason}; choose another by --port, or --port 0 for any free one"
            ) from error


# The command


def check_folders(roots: Sequence[Path], output: Path) -> None:
    """Raise Refusal for a root or an output folder that cannot be meant. All paths are resolved."""
    for root in roots:
        if (
            root.is_relative_to(output)
            or any(output.glob("train_config.py"))
            or any(output.glob("*/train_config.py"))
        ):
            raise Refusal(
                f"{output}: holds experiments; choose another folder for the links by --output"
            )
        if output.is_relative_to(root) and set(find.LOGS) & set(output.relative_to(root).parts):
            raise Refusal(
                f"{output}: is in a logs folder; choose another folder for the links by --output"
            )


def read_renames(words: Sequence[str]) -> dict[str, str]:
    """Old tag to new tag from "OLD=NEW"."""
    for word in words:
        if not all(word.partition("=")):
            raise Refusal(
                f"--map {word}: not of the form OLD=NEW; write the tag that was logged, and the one to show, as loss=loss/train"
            )
    return dict(word.split("=", 1) for word in words)


def choose_runs(
    roots: Sequence[Path], output: Path, pattern: str, renames: Mapping[str, str]
) -> list[Run]:
    """The runs below `roots` that `pattern` matches. Raises Refusal if a root is no folder."""
    try:
        return [run for run in find.find(roots, output, renames) if fnmatchcase(run.name, pattern)]
    except FileNotFoundError as error:
        raise Refusal(str(error)) from error


def unite(runs: Sequence[Run], output: Path, searched: dict[Path, int]) -> Plan:
    """Make `output` hold these runs. Raises Refusal if that cannot be done."""
    if not runs and not output.exists():
        return Plan()
    refuse_obstacle(output, output, folder_wanted=True)
    try:
        with alone(output):
            plan = make_plan(runs, output, searched)
            rebuild(plan, output)
            return plan
    except OSError as error:
        raise Refusal(
            f"{error.filename or output}: {error.strerror}; choose another folder by --output, or try again"
        ) from error


@click.command(context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.argument("roots", nargs=-1, metavar="[ROOT]...", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the links [default: tensorboards in ROOT].",
)
@click.option(
    "--filter",
    "pattern",
    default="*",
    metavar="GLOB",
    help="Only runs whose experiment/model/run matches.",
)
@click.option(
    "--map",
    "words",
    multiple=True,
    metavar="OLD=NEW",
    help="Show what was logged under tag OLD under NEW; may be repeated.",
)
@click.option(
    "--export",
    "runs_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a row a run, to .csv or .parquet.",
)
@click.option(
    "--export-scalars",
    "scalars_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write all scalars in long form.",
)
@click.option(
    "--watch",
    is_flag=True,
    help="Keep up with new runs, and with those that are rewritten, until Ctrl-C.",
)
@click.option(
    "--port",
    default=6006,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 takes any free port.",
)
@click.option(
    "--no-serve", is_flag=True, help="Make and print the links, but start no TensorBoard."
)
def main(
    roots: tuple[Path, ...],
    output: Path | None,
    pattern: str,
    words: tuple[str, ...],
    runs_file: Path | None,
    scalars_file: Path | None,
    watch: bool,
    port: int,
    no_serve: bool,
) -> None:
    """Gather the runs of all experiments below ROOT (default: this repository) in one TensorBoard, on loopback only."""
    roots = [root.resolve() for root in roots or (Path(__file__).parent,)]
    output = (output or find.experiment_folder(roots[0]) / OUTPUT).resolve()
    renames, searched = read_renames(words), {}
    check_folders(roots, output)
    check_export(runs_file)
    check_export(scalars_file)

    def refresh() -> tuple[list[Run], Plan]:
        runs = choose_runs(roots, output, pattern, renames)
        return runs, unite(runs, output, searched)

    runs, plan = refresh()
    click.echo(describe(runs, plan, output) if runs else explain_nothing(roots, pattern))
    if runs:
        report_unused(renames, runs)
    try:
        if runs_file:
            export([history.table(runs)], runs_file)
        if scalars_file:
            export(long_form(runs), scalars_file)
    except (ValueError, OSError) as error:
        raise Refusal(str(error)) from error
    if watch or (runs and not no_serve):
        stay(output, None if no_serve else port, refresh if watch else None, runs)


def describe(runs: Sequence[Run], plan: Plan, output: Path) -> str:
    """What was made, in lines."""
    rewritten = len({run.name for run, _ in plan.rewritten.values()})
    return f"{format_table(runs, time.time())}\nruns in {output}: {len(runs)}" + (
        f", {rewritten} of them rewritten" if rewritten else ""
    )


def explain_nothing(roots: Sequence[Path], pattern: str) -> str:
    where = ", ".join(map(str, roots))
    if pattern == "*":
        return f"no runs found under {where}; train an experiment first"
    return f"no run under {where} matches '{pattern}'; try --filter '*'"


def report_unused(renames: Mapping[str, str], runs: Sequence[Run]) -> None:
    """Name the tags to be renamed that no run logs."""
    for tag in renames:
        if not any(events_module.mentions(file, [tag]) for run in runs for file in run.events):
            find.say(
                f"--map {tag}={renames[tag]}: none of these runs logs '{tag}'; write a tag that TensorBoard shows without --map"
            )


if __name__ == "__main__":
    main()
