"""Options that several commands take, each defined once, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from common.data.volumes.sources.place import with_voxel_size
from common.errors import UserError
from common.infer.machines.engine import MOST_PROCESSES, Engine
from common.score.versions import CSC, VERSIONS
from common.stopping import seconds_of
from common.typed import is_number

Decorator = Callable[[Callable], Callable]

WORKERS = click.IntRange(1, MOST_PROCESSES)
"""Number of processes on one machine."""


class Names(click.ParamType):
    """Names separated by commas, as a tuple."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names in a text. A tuple is returned unchanged: click converts defaults too.

        Raises UserError without a name: an unset variable of a shell script would mean all.
        """
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        names = tuple(part for part in parts if part)
        if not names:
            option = param.opts[0] if param else self.name
            raise UserError(f"{option} '{value}': no name in it; write some, or leave it out")
        return names


LONGEST = 1e9
"""Largest length in nm, a metre, so that numbers of voxels stay countable."""


class PerAxis(click.ParamType):
    """Values along z, y, x, as the text that was typed; they may be several words."""

    name = "text"


class Lengths(PerAxis):
    """A length in nm, or three along z, y, x, as a tuple of three."""

    name = "nm"

    def __init__(self, least: float = 1e-9) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return three numbers. Raises UserError for another count, or one below `least`."""
        if isinstance(value, tuple):
            return value
        try:
            # as others write it, too: "8 8 8", [8, 8, 8]
            numbers = tuple(float(part) for part in re.split(r"\s*,\s*|\s+", value.strip("()[] ")))
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 3) or not all(
            self.least <= number <= LONGEST for number in numbers
        ):
            option = param.opts[0] if param else self.name
            raise UserError(f"{option} {value}; write one length in nm or three, z,y,x: 8 or 8,8,8")
        return numbers * 3 if len(numbers) == 1 else numbers


class ScaleOrAny(Lengths):
    """A voxel size, or 'any' for no particular size, which becomes an empty tuple."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return three numbers, or none for 'any'. Raises UserError as `Lengths` does."""
        return () if value == "any" else super().convert(value, param, ctx)


def joined_axes(params: Sequence[click.Parameter], words: Sequence[str]) -> list[str]:
    """Return the words of a command line, with values along axes joined: `--scale 8 6 4` to 8,6,4.

    Two or four values are joined as well; the option itself then says what is wrong with them.
    """
    flags: set[str] = set()
    for param in params:
        if isinstance(param.type, PerAxis):
            flags.update(param.opts)
    joined: list[str] = []
    is_open = False
    for word in words:
        if is_open and _is_of_axis(word):
            joined[-1] = f"{joined[-1].rstrip(',')},{word}"
            continue
        flag, _, value = word.partition("=")
        if joined and joined[-1].replace("_", "-") in flags:
            flag = joined[-1]
            value = word
        # what has commas in it is whole: the next number is something else
        is_open = flag.replace("_", "-") in flags and _is_of_axis(value) and "," not in value[:-1]
        joined.append(word)
    return joined


def _is_of_axis(word: str) -> bool:
    """Whether a word is numbers, or bounds such as 0:100, separated by commas."""
    parts = re.split("[,:]", word.rstrip(","))
    return any(parts) and all(not part or is_number(part) for part in parts)


def refuse_empty(context: click.Context) -> None:
    """Raise UserError if an argument, or a value of an option, is "".

    A shell makes "" of a variable that is not set. It would mean this folder, another data root, or
    all crops.
    """
    for param in context.command.params:
        value = context.params.get(param.name or "")
        source = context.get_parameter_source(param.name or "")
        texts = value if isinstance(value, tuple) else (value,)
        # what is handed on to another command is looked at there
        is_handed_on = param.type is click.UNPROCESSED
        if source is ParameterSource.COMMANDLINE and "" in texts and not is_handed_on:
            is_option = isinstance(param, click.Option)
            name = param.opts[0] if is_option else param.human_readable_name.strip("[].")
            raise UserError(
                f"{name} '': nothing is in it; write a value, or leave it out (is a variable of "
                "the shell not set?)"
            )


def refuse_repeated(context: click.Context, words: Sequence[str]) -> None:
    """Raises UserError for an option that is written twice and takes one value.

    The last alone would count: of `--crops 28 --crops 31` the first would be left out unseen.

    words: of the command line.
    """
    command = context.command
    _, _, occurrences = command.make_parser(context).parse_args(list(words))
    for param in command.params:
        takes_one = isinstance(param, click.Option) and not (param.multiple or param.is_flag)
        times = occurrences.count(param)
        if takes_one and times > 1:
            is_list = isinstance(param.type, Names) or param.metavar == "LIST"
            how = "once, with commas between" if is_list else "once"
            raise UserError(
                f"{param.opts[0]} is written {times} times, and the last alone would count; write "
                f"it {how}"
            )


class Duration(click.ParamType):
    """A duration such as 11h, in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds. Raises UserError for what is no duration."""
        if isinstance(value, float):
            return value
        try:
            return seconds_of(value)
        except ValueError:
            option = param.opts[0] if param else self.name
            raise UserError(
                f"{option} {value}; write a duration above 0, such as 90s, 30m, 11h, 1d2h or "
                "11:30:00"
            ) from None


config_path = click.argument("config_path")
optional_config_path = click.argument("config_path", required=False)

overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a setting of train_config.py; NAME.KEY=VALUE inside a dict. Repeatable.",
)

time_limit = click.option(
    "--time-limit",
    type=Duration(),
    default=0.0,
    metavar="DURATION",
    help="Save and end, with exit code 75, before this call has taken so long: 90s, 30m, 11h, 1d2h "
    "or HH:MM:SS.",
)

manifest = click.option(
    "--manifest",
    "manifest_path",
    metavar="FILE",
    help="Table of test crops; downloaded unless given.",
)

metric_version = click.option(
    "--metric-version",
    type=click.Choice(list(VERSIONS)),
    default=CSC.name,
    show_default=True,
    help="The organisers' number, or their definition as it is written.",
)

root = click.option(
    "--root", metavar="FOLDER", help="Where the experiments are; this repository unless given."
)


def data(text: str = "Data root that the datasplit's paths start from.") -> Decorator:
    """Return the option `--data FOLDER`."""
    return click.option("--data", metavar="FOLDER", help=text)


def crops(text: str, default: str = "validate") -> Decorator:
    """Return the option `--crops LIST`; its value is the text."""
    return click.option(
        "--crops", "-c", default=default, show_default=True, metavar="LIST", help=text
    )


def classes(
    text: str = "Comma-separated; all of the experiment unless given.", **more: Any
) -> Decorator:
    """Return the option `--classes LIST`; its value is a tuple of names, None unless given."""
    return click.option("--classes", type=Names(), help=text, **more)


def workers(text: str = "Processes that score.", default: int = 1) -> Decorator:
    """Return the option `--workers NUMBER`."""
    return click.option(
        "--workers", "-w", type=WORKERS, default=default, show_default=True, help=text
    )


def together(*options: Decorator) -> Decorator:
    """Return one decorator that adds several options, which are listed in this order."""

    def add(command: Callable) -> Callable:
        for option in reversed(options):  # a decorator adds before what is there
            command = option(command)
        return command

    return add


elsewhere = together(
    click.option(
        "--scheduler",
        metavar="ADDRESS|FILE",
        help="Share the work out to the workers of a Dask scheduler that runs.",
    ),
    click.option(
        "--cluster", type=click.Choice(["lsf", "slurm"]), help="Workers are jobs of this system."
    ),
    click.option(
        "--cluster-options",
        metavar="FILE",
        help="YAML or JSON: what a job gets (cores, memory, walltime, queue ...), as dask-jobqueue "
        "takes it.",
    ),
    click.option("--dry-run", is_flag=True, help="Print the job script of --cluster, do nothing."),
)
"""Options for workers on other machines; `take_engine` reads them."""

engine = together(
    click.option(
        "--workers",
        type=click.IntRange(1),
        metavar="NUMBER",
        help="Processes that share the blocks, a GPU each; of --cluster, jobs. The same command on "
        "another machine joins them.",
    ),
    elsewhere,
)
"""Options for where blocks are computed; `take_engine` reads them."""

boxes_of_experiment = together(
    crops(
        "Comma-separated: validate, train, held-out, test, * or crops such as 28, crop28, "
        "jrc_hela-2/crop28. Test crops of the datasplit are held-out, those of the challenge test."
    ),
    click.option(
        "--volume",
        metavar="VOLUME",
        help="A volume instead of crops: zarr, N5, precomputed, TIFF, HDF5, MRC, NIfTI, NRRD, a "
        "folder of slices; also s3://, gs:// or https://.",
    ),
    click.option(
        "--voxel-size",
        type=Lengths(),
        help="Size of its voxels in nm, z, y, x, where --volume does not say it: 8 or 40,4,4.",
    ),
    click.option(
        "--roi",
        type=PerAxis(),
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="A box of --volume, in nm; a bound left out is the volume's.",
    ),
    classes(),
    manifest,
    overrides,
    data(),
)
"""Options that choose boxes of an experiment's volumes."""

boxes = together(config_path, boxes_of_experiment)
"""Argument and options of commands that work on boxes of volumes."""


def take_engine(options: dict[str, Any]) -> Engine:
    """Take the options of `engine`, or of `elsewhere`, out of all options.

    With --dry-run it prints the job script and ends the command.
    """
    taken = {option.name: options.pop(option.name, None) for option in fields(Engine)}
    engine = Engine(**{name: value for name, value in taken.items() if value is not None})
    engine.check()
    if engine.dry_run:
        from common.infer.machines import batch_system

        click.echo(batch_system.job_script(engine))
        click.get_current_context().exit()
    return engine


def pairs(option: str, text: str) -> dict[str, str]:
    """Parse 'mito=m.tif' to {"mito": "m.tif"}; a part without = belongs to the value before it."""
    values: dict[str, str] = {}
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        # as in mito=m.tif#translation=0,0,80
        if values and (not equals or "#" in name or "&" in name):
            values[next(reversed(values))] += f",{part}"
        elif not equals or not name or not value or name in values:
            raise UserError(f"{option} {text}; write each class once: mito=mito.tif,er=er.tif")
        else:
            values[name] = value
    return values


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are not None: the functions that take them know the defaults.

    A voxel size becomes part of the name of its volume. Raises UserError for one without a volume,
    and for crops beside a volume.
    """
    if options.get("volume"):
        _refuse_crops()
    size = options.pop("voxel_size", None)
    if size:
        if not options.get("volume"):
            raise UserError("--voxel-size: of what? write --volume too")
        options["volume"] = with_voxel_size(options["volume"], size)
    return {name: value for name, value in options.items() if value is not None}


def _refuse_crops() -> None:
    """Raise UserError if --crops or --manifest is typed beside --volume, which replaces both."""
    for flag in typed(["crops", "manifest_path"]):
        raise UserError(f"{flag} and --volume: a volume is one box of its own; write one of them")


def refuse_missing(config_path: str, overrides: Sequence[str] = ()) -> None:
    """Raise what is wrong with an experiment's path and `--set` before torch is imported.

    FileNotFoundError for an experiment that is nowhere, UserError for unknown settings.
    """
    from common.config.load import config_file
    from common.config.overrides import refuse_unknown

    refuse_unknown(config_file(config_path, "train_config.py"), overrides)


def typed(names: Iterable[str]) -> list[str]:
    """Return the options, of these parameters of the current command, that were typed."""
    context = click.get_current_context()
    flags = {param.name: param.opts[0] for param in context.command.params}
    of_line = ParameterSource.COMMANDLINE
    return [flags[name] for name in names if context.get_parameter_source(name) is of_line]


def of_data_root(name: str, advice: str, data: str | None = None) -> Path:
    """Return a file of the data root. Raises UserError, with the advice, if it is not there."""
    from common.config import load

    path = load.data_root(data) / name
    if not path.exists():
        raise UserError(f"{advice} (left out, it would be {path}, which is not there)")
    return path
