"""Gather the runs of all experiments in one TensorBoard.

    python unite_tensorboards.py                        all experiments of this repository
    python unite_tensorboards.py --filter "unet8*" --port 0
    python unite_tensorboards.py /scratch/me/repo . --no-serve

An experiment is a folder with a `logs` folder; its runs are the folders in there that hold event files of TensorBoard,
usually `logs/<model>/<run>`. Each becomes a link `tensorboards/<experiment>/<model>/<run>`; nothing is copied, so that
TensorBoard follows a run that is being written, or resumed in a further event file.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import click

LOGS = "logs"
OUTPUT = "tensorboards"
LOOPBACK = "127.0.0.1"
HPARAMS = "hparams"
"""TensorBoard wants hyper-parameters in an event file of their own; ours stands in this subfolder of the run."""
NAME_DEPTH = 3
"""A link stands at experiment/model/run in the output folder."""
STANDARD_DEPTH = 2
"""A run stands at model/run in the logs folder."""
EXPERIMENT_DEPTH = 4
"""Experiments are looked for this many levels below a root."""
LOGS_DEPTH = 8
"""Event files are looked for this many levels below a logs folder."""
NOT_SEARCHED = {LOGS, OUTPUT, "data", "cache", "checkpoints", "venv", "__pycache__"}
"""Folders, beside hidden ones and zarr containers, that hold no experiments but may hold very many files."""
MARK = f"{os.sep}.{os.sep}"
"""Stands after the logs folder in what each link of ours says, and in no link made by hand: so we know them again."""
ATTEMPTS = 10
"""Times to make a link while another process removes the folder that it is made in."""


class Refusal(click.ClickException):
    """What the user must change, in one sentence; exit code 2."""

    exit_code = 2


@dataclass(frozen=True)
class Run:
    """The event files that belong together."""

    experiment: Path
    folder: Path
    """Absolute, but as found: a logs folder that is a link is not resolved."""
    events: tuple[Path, ...]
    size: int
    """Bytes in the event files."""
    written: float
    """When an event file was last written, in seconds since the epoch."""
    encloses: bool
    """True if another run lies below its folder, which can then not be linked as a whole."""


def walk_folders(top: Path, depth: int, skip: Callable[[Path], bool]) -> Iterator[tuple[Path, list[Path]]]:
    """`top` and the folders down to `depth` levels below it, each with what it holds.

    Each is met once, by its own name if it has one here: links are followed after all real folders, and loops end."""
    seen = set()
    folders, links = deque([(top, 0)]), deque()
    while folders or links:
        folder, level = (folders or links).popleft()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        entries = list_folder(folder)
        yield folder, entries
        if level < depth:
            for entry in entries:
                if os.path.isdir(entry) and not skip(entry):
                    (links if entry.is_symlink() else folders).append((entry, level + 1))


def list_folder(folder: Path) -> list[Path]:
    """What `folder` holds, sorted; a folder that cannot be read is named on stderr and counts as empty."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        click.echo(f"{folder}: cannot be read ({error.strerror}); left out", err=True)
        return []


def find_experiments(root: Path, output: Path) -> list[Path]:
    """Folders at or below `root` that hold a logs folder; `output` is not searched."""

    def skip(folder: Path) -> bool:
        return folder == output or folder.name in NOT_SEARCHED or is_hidden(folder) or folder.suffix == ".zarr"

    return [
        folder
        for folder, entries in walk_folders(root, EXPERIMENT_DEPTH, skip)
        if any(entry.name == LOGS and os.path.isdir(entry) for entry in entries)
    ]


def is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def find_runs(roots: Sequence[Path], output: Path) -> list[Run]:
    """The runs of all experiments below `roots` (resolved), each once: by its own name rather than that of a link."""
    experiments = {folder for root in roots for folder in find_experiments(root, output)}
    runs = {}
    for experiment in sorted(experiments, key=lambda folder: (is_linked(folder / LOGS), folder)):
        for run in find_experiment_runs(experiment):
            runs.setdefault(os.path.realpath(run.folder), run)
    return list(runs.values())


def is_linked(path: Path) -> bool:
    """True if a part of the absolute `path` is a symbolic link."""
    return os.path.realpath(path) != str(path)


def find_experiment_runs(experiment: Path) -> list[Run]:
    """The runs in the logs folder of `experiment`."""
    logs = experiment / LOGS
    events = {}
    for folder, entries in walk_folders(logs, LOGS_DEPTH, is_hidden):
        if files := [entry for entry in entries if is_event_file(entry)]:
            events[folder] = files
    runs = defaultdict(list)
    for folder, files in events.items():
        runs[run_folder(folder, logs, events)] += files
    above = {parent for folder in runs for parent in folder.parents}
    found = (describe_run(experiment, folder, files, folder in above) for folder, files in runs.items())
    return [run for run in found if run.events]


def is_event_file(path: Path) -> bool:
    """What TensorBoard itself takes for an event file."""
    return "tfevents" in path.name and not path.name.endswith(".profile-empty") and os.path.isfile(path)


def run_folder(folder: Path, logs: Path, logged: Mapping[Path, list[Path]]) -> Path:
    """The folder of the run that event files in `folder` belong to.

    A run at model/run owns everything below it (`add_hparams` and `add_scalars` of torch write into subfolders)."""
    parts = folder.relative_to(logs).parts
    prefixes = (logs.joinpath(*parts[:depth]) for depth in range(STANDARD_DEPTH, len(parts)))
    folder = next((prefix for prefix in prefixes if prefix in logged), folder)
    return folder.parent if folder.name == HPARAMS else folder


def describe_run(experiment: Path, folder: Path, files: Sequence[Path], encloses: bool) -> Run:
    """The run in `folder`, without those of its event `files` that were deleted since they were listed."""
    states = {}
    for file in files:
        try:
            states[file] = file.stat()
        except FileNotFoundError:
            continue
    size = sum(state.st_size for state in states.values())
    written = max((state.st_mtime for state in states.values()), default=0.0)
    return Run(experiment, folder, tuple(states), size, written, encloses)


def name_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by their name experiment/model/run, sorted by it; no two share a name."""
    experiments = sorted({run.experiment for run in runs})
    labels = dict(zip(experiments, distinct_names(experiments), strict=True))
    siblings = defaultdict(list)
    for run in runs:
        siblings[f"{labels[run.experiment]}/{model_name(run)}"].append(run)
    named = {}
    for prefix, members in siblings.items():
        names = distinct_names([run.folder for run in members])
        named |= {f"{prefix}/{name}": run for name, run in zip(names, members, strict=True)}
    return dict(sorted(named.items()))


def model_name(run: Run) -> str:
    """The folders between logs and the run, which is the model's name; without any, the experiment's name."""
    parts = run.folder.relative_to(run.experiment / LOGS).parts
    return "-".join(parts[:-1]) or run.experiment.name or "root"


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """A name for each of these different, absolute `folders`: its own, after as many parents as tell it apart."""
    parts = [folder.parts[1:] or ("root",) for folder in folders]
    counts = [1] * len(folders)
    for _ in range(max(map(len, parts), default=0)):
        names = ["-".join(part[-count:]) for part, count in zip(parts, counts, strict=True)]
        uses = Counter(names)
        if len(uses) == len(names):
            return names
        counts = [count + (uses[name] > 1) for count, name in zip(counts, names, strict=True)]
    return [f"{number}-{'-'.join(part)}" for number, part in enumerate(parts)]


def plan_links(runs: Mapping[str, Run], output: Path) -> dict[Path, str]:
    """What each link, a path in `output` (resolved), has to say: the way to a run's folder.

    A run that encloses others is a folder of links to its own event files, lest TensorBoard shows the others twice."""
    links = {}
    for name, run in runs.items():
        for target in run.events if run.encloses else [run.folder]:
            link = output / name / target.relative_to(run.folder)
            links[link] = marked_way(link.parent, run.experiment / LOGS, target)
    return links


def marked_way(start: Path, logs: Path, target: Path) -> str:
    """The way from `start` to `target`, which is in `logs`: relative, or absolute if on another drive (Windows)."""
    try:
        way = os.path.relpath(logs, start)
    except ValueError:
        way = str(logs)
    return f"{way}{MARK}{target.relative_to(logs)}"


def our_links(output: Path) -> dict[Path, str]:
    """The links in `output` that an earlier call made, and what they say."""
    links = {}
    for folder, folders, files in os.walk(output):
        for path in (Path(folder, name) for name in folders + files):
            if len(path.relative_to(output).parts) >= NAME_DEPTH and (way := our_link(path)):
                links[path] = way
    return links


def our_link(path: Path) -> str | None:
    """What the link at `path` says if it is of our making; None for anything else."""
    try:
        way = os.readlink(path)
    except OSError:
        return None
    return way if MARK in way else None


def rebuild_links(links: Mapping[Path, str], output: Path) -> None:
    """Make `output` hold exactly `links` beside what others put there, which is never touched.

    Links that are right already stay, for a TensorBoard that is looking at them; another process may rebuild at the
    same time. Raises Refusal where something else is in the way."""
    for link, way in our_links(output).items():
        if links.get(link) != way:
            remove_link(link, output)
    for link in links:
        refuse_obstacle(link, output)
    for link, way in links.items():
        make_link(link, way)


def remove_link(link: Path, output: Path) -> None:
    """Remove `link` and the folders that it leaves empty in `output`."""
    link.unlink(missing_ok=True)
    for folder in link.parents:
        if folder == output:
            return
        try:
            folder.rmdir()
        except OSError:  # not empty, or another process was faster
            return


def refuse_obstacle(link: Path, output: Path) -> None:
    """Raise Refusal if something not of our making keeps `link` from being made."""
    folders = [folder for folder in link.parents if folder.is_relative_to(output)]
    for path in (*reversed(folders), link):
        if is_obstacle(path, folder_wanted=path != link):
            raise Refusal(f"{path}: in the way and not of our making; move it, or choose another folder by --output")


def is_obstacle(path: Path, folder_wanted: bool) -> bool:
    """True if `path` is something else than the folder that is wanted or, where a link is wanted, than a link of ours.

    What another process removes while we look is none."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return folder_wanted or MARK not in os.readlink(path)
        return not (folder_wanted and stat.S_ISDIR(mode))
    except (FileNotFoundError, NotADirectoryError):
        return False


def make_link(link: Path, way: str) -> None:
    """Make one link; if another process was faster, its link stays."""
    for _ in range(ATTEMPTS):
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(way)
            return
        except FileNotFoundError:  # another process removed the folder, empty until now
            continue
        except FileExistsError:
            if our_link(link):
                return
    raise Refusal(f"{link}: something else keeps changing it; try again when nothing does")


def format_table(runs: Mapping[str, Run], now: float) -> str:
    """One line a run: name, number of event files, their size, and how long ago the last one was written."""
    rows = [("experiment/model/run", "files", "size", "written")]
    for name, run in runs.items():
        age = format_age(now - run.written)
        rows.append((printable(name), str(len(run.events)), format_size(run.size), f"{age} ago"))
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


def serve(output: Path, port: int) -> None:
    """Run TensorBoard over `output`, on loopback only, until Ctrl-C. Raises Refusal if it cannot start."""
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored in a background job of a shell unless we ask
        signal.signal(number, signal.default_int_handler)
    try:
        click.echo(f"TensorBoard at {start_tensorboard(output, port)} (Ctrl-C ends it)")
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo()


def start_tensorboard(output: Path, port: int) -> str:
    """Start TensorBoard in a thread of this process and give its address.

    Its Rust data server (the default) and its Python reader, which it falls back to, both follow links."""
    try:
        from tensorboard import program
    except ImportError as error:
        raise Refusal(f"TensorBoard cannot be imported ({error}); pip install 'tensorboard>=2.21'") from error
    refuse_port(port)
    tensorboard = program.TensorBoard()
    tensorboard.configure(logdir=str(output), host=LOOPBACK, port=port)
    try:
        return tensorboard.launch()
    except program.TensorBoardServerException as error:
        raise Refusal(f"{error.msg}; choose another by --port, or --port 0 for any free one") from error


def refuse_port(port: int) -> None:
    """Raise Refusal if `port` cannot be had; TensorBoard itself finds out only once its data server runs."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as TensorBoard: a port closed just now is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            reason = os.strerror(error.errno).lower()
            raise Refusal(f"port {port}: {reason}; choose another by --port, or --port 0 for any free one") from error


def experiment_folder(root: Path) -> Path:
    """`root`, or the experiment of which `root` is the logs folder."""
    return root.parent if root.name == LOGS else root


def check_folders(roots: Sequence[Path], output: Path) -> None:
    """Raise Refusal for a root or an output folder that cannot be meant. All paths are resolved."""
    for root in roots:
        if not root.is_dir():
            raise Refusal(f"{root}: no such folder; give folders that hold experiments")
        if root.is_relative_to(output) or any(output.glob("train_config.py")) or any(output.glob("*/train_config.py")):
            raise Refusal(f"{output}: holds experiments; choose another folder for the links by --output")
        if output.is_relative_to(root) and LOGS in output.relative_to(root).parts:
            raise Refusal(f"{output}: is in a logs folder; choose another folder for the links by --output")


def link_runs(runs: Mapping[str, Run], output: Path) -> None:
    """Rebuild `output` from `runs`. Raises Refusal if that cannot be done."""
    try:
        rebuild_links(plan_links(runs, output), output)
    except OSError as error:
        raise Refusal(f"{output}: cannot make links ({error.strerror}); choose another folder by --output") from error


def choose_runs(roots: Sequence[Path], output: Path, pattern: str) -> dict[str, Run]:
    """The named runs below `roots` that `pattern` matches; says so if there are none."""
    named = name_runs(find_runs(roots, output))
    chosen = {name: run for name, run in named.items() if fnmatchcase(name, pattern)}
    where = ", ".join(map(str, roots))
    if not named:
        click.echo(f"no runs found under {where}; train an experiment first")
    elif not chosen:
        click.echo(f"none of the {len(named)} runs under {where} matches '{pattern}'; try --filter '*'")
    return chosen


@click.command(context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.argument("roots", nargs=-1, metavar="[ROOT]...", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the links [default: tensorboards in ROOT].")
@click.option("--filter", "pattern", default="*", metavar="GLOB", help="Only runs whose experiment/model/run matches.")
@click.option("--port", default=6006, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free port.")
@click.option("--no-serve", is_flag=True, help="Make and print the links, but start no TensorBoard.")
def main(roots: tuple[Path, ...], output: Path | None, pattern: str, port: int, no_serve: bool) -> None:
    """Gather the runs of all experiments below ROOT (default: this repository) in one TensorBoard, on loopback only."""
    searched = [experiment_folder(root.resolve()) for root in roots or (Path(__file__).parent,)]
    output = (output or searched[0] / OUTPUT).resolve()
    check_folders(searched, output)
    runs = choose_runs(searched, output, pattern)
    link_runs(runs, output)
    if not runs:
        return
    click.echo(f"{format_table(runs, time.time())}\nruns linked in {output}: {len(runs)}")
    if not no_serve:
        serve(output, port)


if __name__ == "__main__":
    main()
