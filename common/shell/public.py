"""The options of the public toolbox's command line, and what each of them means here.

`OPTIONS` is the table. An option that means the same as one of ours is another name of that; the
others are translated, said to have no effect, or refused with what to type instead. The command
`csc` also takes the public defaults, `DEFAULTS`: what is left out there is what the toolbox takes.

Names of commands and options: the toolbox of 2026-06.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from common.data.volumes import layout
from common.errors import UserError
from common.talk import note

Taken = dict[str, Any]
"""Values of the parameters of one of our commands, by name."""

VOLUMES = "{dataset}.zarr/{crop}"
"""Place of a crop in a folder of predictions or processed volumes, as in the toolbox."""


PREFIX = "public_"
"""Beginning of the names of parameters that are translated."""


@dataclass(frozen=True)
class Same:
    """A public option that means the same as one of ours."""

    flags: str
    """As typed, separated by spaces."""
    ours: str
    """Name of our parameter."""

    @property
    def about(self) -> str:
        """What it means here, for the documents."""
        return f"`--{self.ours.replace('_', '-')}`"


@dataclass(frozen=True)
class Other:
    """A public option that is translated, has no effect, or is refused."""

    flags: str
    take: Callable[[Any], Taken]
    """Returns our parameters for a value; raises UserError with what to type instead."""
    about: str
    """What it means here, in a sentence."""
    is_flag: bool = False


def constant(**parameters: Any) -> Callable[[Any], Taken]:
    """Make the `take` of a flag that stands for values of our parameters."""
    return lambda _: parameters


def volumes(flags: str, setting: str) -> Other:
    """Make an option whose value is a template of volumes, and whose folder is a setting."""

    def take(template: str) -> Taken:
        # a setting's relative path begins in the experiment's folder, an option's where it is typed
        return {"overrides": (f"{setting}={volumes_folder(template)}",)}

    about = f"the folder of `FOLDER/{VOLUMES}`, as `--set {setting}=FOLDER`"
    return Other(flags, take, about)


def volumes_folder(template: str) -> Path:
    """Return the absolute folder of a template such as data/processed/{dataset}.zarr/{crop}.

    Raises UserError for a template of another form.
    """
    folder = template.rstrip("/").removesuffix(VOLUMES)
    if "{" in folder:
        raise UserError(
            f"'{template}': volumes lie at FOLDER/{VOLUMES}/CLASS here; write FOLDER, or "
            f"FOLDER/{VOLUMES}"
        )
    return Path(folder or ".").absolute()


def only(expected: str, what: str) -> Callable[[str], Taken]:
    """Make the `take` of an option that can have only one value."""

    def take(value: str) -> Taken:
        if value.strip("/") != expected:
            raise UserError(
                f"'{value}': {what} is {expected} in the challenge's layout; data that lie "
                "otherwise are named in datasplit.csv, which holds the path of each raw and crop"
            )
        return {}

    return take


def no_effect(flags: str, reason: str, is_flag: bool = False) -> Other:
    """Make an option without effect on the result, which says why."""

    def take(_: Any) -> Taken:
        note(f"{flags.rsplit(maxsplit=1)[-1]} has no effect: {reason.replace('`', '')}")
        return {}

    return Other(flags, take, f"no effect: {reason}", is_flag)


def force_classes(flags: str, sides: str, more: str = "") -> Other:
    """Make a flag that stands for a value of --force-classes."""
    about = f"`--force-classes {sides}`{more}"
    return Other(flags, constant(force_classes=sides), about, is_flag=True)


def refused(instead: str) -> Callable[[Any], Taken]:
    """Make the `take` of an option that is refused."""

    def take(_: Any) -> Taken:
        raise UserError(instead)

    return take


def access_mode(mode: str) -> Taken:
    """Translate --access-mode of fetch-data: how files that exist already are treated."""
    if mode == "append":
        return {}
    if mode != "overwrite":
        raise UserError(f"--access-mode {mode}; write append or overwrite")
    note("--access-mode overwrite is --verify: what differs from the server's is fetched again")
    return {"verify": True}


KINDS = {"gt": ("raw", "truth"), "predictions": ("predictions",), "processed": ("processed",)}
"""Our kinds of volumes for those of the toolbox's visualize."""


def kinds(value: str) -> Taken:
    """Translate kinds of volumes; our own names are taken as well."""
    names: list[str] = []
    for kind in filter(None, (word.strip() for word in value.split(","))):
        names += KINDS.get(kind, (kind,))
    return {"kinds": tuple(dict.fromkeys(names))}


SEARCH = Other(
    "-s --search-path",
    lambda template: {"data": layout.root_of_template(template)},
    "the data root of `ROOT/{dataset}/{dataset}.zarr/recon-1/{name}`, as `--data ROOT`; "
    "no other layout",
)
RAW = Other(
    "-r --raw-name",
    only(layout.RAW.removeprefix(layout.RECONSTRUCTION), "the raw"),
    "`em/fibsem-uint8`; other places of raw stand in datasplit.csv",
)
CROP = Other(
    "-n --crop-name",
    only(f"{layout.LABELS.removeprefix(layout.RECONSTRUCTION)}/{{crop}}/{{label}}", "a label"),
    "`labels/groundtruth/{crop}/{label}`; other places of labels stand in datasplit.csv",
)


OPTIONS: Mapping[str, tuple[Same | Other, ...]] = {
    "fetch-data": (
        Same("-d --dest", "data"),
        Same("-p --raw-padding", "padding_voxels"),
        Same("-all-res --fetch-all-em-resolutions", "all_resolutions"),
        Same("--num-workers", "workers"),
        Other("-m --access-mode", access_mode, "append: as always here; overwrite: `--verify`"),
        no_effect("-b --batch-size", "files go to `--workers` one by one"),
        Other(
            "--zip",
            refused(
                "--zip: the files themselves are fetched here, and a call that was stopped goes "
                "on; leave --zip out (with --dry-run first, for the sizes)"
            ),
            "refused: files are fetched one by one, which goes on where it stopped",
            is_flag=True,
        ),
    ),
    "make-datasplit": (
        Same("-c", "classes"),
        Same("-s", "scale"),
        Same("-vr --validate-ratio", "validation_fraction"),
        Same("-ds", "datasets"),
        Same("-cr", "crops"),
        Other("-cp --csv-path", lambda path: {"csv_path": path}, "the argument CSV_PATH"),
        force_classes("-fa --force-all-classes", "all"),
        force_classes(
            "-ft --force-all-classes-train",
            "train",
            "; other crops are left out of that side, not moved to the other",
        ),
        force_classes("-fv --force-all-classes-validate", "validate", "; likewise"),
        replace(SEARCH, flags="-sp --search-path"),
        replace(RAW, flags="-rn --raw-name"),
        replace(CROP, flags="-cn --crop-name"),
        Other(
            "-s3 --use-s3",
            refused(
                "--use-s3: a split of the public crops needs no access to the bucket; type "
                "make-datasplit with --manifest challenge instead, and fetch-data for the data"
            ),
            "refused: `--manifest challenge` splits the public crops, `fetch-data` fetches them",
            is_flag=True,
        ),
    ),
    "get-counts": (
        Same("-c", "classes"),
        replace(SEARCH, flags="-sp --search-path"),
        replace(RAW, flags="-rn --raw-name"),
        replace(CROP, flags="-cn --crop-name"),
    ),
    "predict": (
        volumes("-o --output-path", "predictions_path"),
        Other(
            "-so --skip-orthoplanes",
            constant(planes="own"),
            "`--planes own`; a network of three dimensions has no others",
            is_flag=True,
        ),
        SEARCH,
        RAW,
        CROP,
    ),
    "process": (
        volumes("-i --input-path", "predictions_path"),
        volumes("-o --output-path", "processed_path"),
        no_effect("-d --device", "process works on the CPU"),
        no_effect("-w --max-workers", "start the command several times, they share the crops"),
    ),
    "pack-results": (
        Same("--output-path", "output"),
        Other(
            "-i --input-search-path",
            lambda template: {"volumes": volumes_folder(template)},
            f"the folder of `FOLDER/{VOLUMES}`, in place of CONFIG_PATH",
        ),
        no_effect(
            "-O --overwrite",
            "an older submission is always replaced, when the new one is whole",
            is_flag=True,
        ),
        no_effect("-w --max-workers", "volumes are packed one after the other"),
    ),
    "evaluate": (
        Same("-s --submission-path", "submission"),
        Same("-t --truth-path", "truth"),
        Same("-r --result-file", "result_path"),
        Same("-ic", "instance_classes"),
    ),
    "visualize": (
        Same("-d", "datasets"),
        Same("-C", "classes"),
        Other("-k", kinds, "`--kinds`; gt is `raw,truth`"),
    ),
    "batch-eval": (
        Same("-c", "csv_path"),
        Same("-C", "cluster"),
        Same("-n --num-cpus", "workers"),
    ),
}
"""Options of each command of the toolbox, without those that are ours under the same name."""

DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "predict": {"crops": "test", "planes": "auto"},
    "process": {"crops": "test"},
    "visualize": {"crops": "*"},
    "make-datasplit": {"classes": "nuc,er", "scale": "any"},
    "get-counts": {"classes": "nuc,er"},
}
"""Defaults of the toolbox that are not ours; `csc` takes them if an option is left out."""

SAID_LATER = ("planes",)
"""Public defaults that matter to some networks only; the command names them then."""

ANSWERS: Mapping[str, str] = {
    "speedtest": (
        "speedtest: it would run a program from the internet; type fetch-data --dry-run, which "
        "says how much there is to fetch, or fetch-data --crops 28, which shows how fast it comes"
    ),
}
"""Commands of the toolbox that are no commands here, and what to type instead."""


def add_options(command: click.Command) -> None:
    """Add the public options of a command to it."""
    by_name = {param.name: param for param in command.params}
    for option in OPTIONS.get(command.name or "", ()):
        flags = option.flags.split()
        if isinstance(option, Same):
            # after our own name, by which messages call the option
            by_name[option.ours].opts.extend(flags)
            continue
        added = click.Option(
            [*flags, _place(option)], is_flag=option.is_flag, hidden=True, help=f"{option.about}."
        )
        command.params.append(added)


def translate(context: click.Context) -> None:
    """Turn given public options into our parameters, and note public defaults."""
    name = context.command.name or ""
    given_by: dict[str, str] = {}
    for option in OPTIONS.get(name, ()):
        if isinstance(option, Same):
            continue
        value = context.params.pop(_place(option), None)
        if value is None or value is False:
            continue
        taken = option.take(value)
        _refuse_twice(context, option, taken, given_by)
        merge(context.params, taken)
    for parameter, value in DEFAULTS.get(name, {}).items():
        is_of_volume = parameter == "crops" and context.params.get("volume")
        if parameter in SAID_LATER or is_of_volume:
            continue
        if context.get_parameter_source(parameter) is click.core.ParameterSource.DEFAULT_MAP:
            note(_default_text(context, parameter, value))


def rows() -> list[tuple[str, str, str]]:
    """Return (command, flags, meaning here) of every public option, for the documents."""
    listed = []
    for command, options in OPTIONS.items():
        for option in options:
            flags = ", ".join(f"`{flag}`" for flag in option.flags.split())
            listed.append((command, flags, option.about))
    return listed


def _place(option: Other) -> str:
    """Return the name of the parameter that holds what was typed for an option."""
    return PREFIX + option.flags.split()[-1].strip("-").replace("-", "_").lower()


def take(command: str, name: str, value: Any) -> Taken:
    """Return our parameters for the value of a public option.

    name: of the option's long form, with _. Raises UserError with what to type instead.
    """
    options = {_place(option): option for option in OPTIONS[command] if isinstance(option, Other)}
    return options[PREFIX + name].take(value)


def _refuse_twice(
    context: click.Context, option: Other, taken: Taken, given_by: dict[str, str]
) -> None:
    """Raise UserError if two options set the same parameter.

    given_by: the option that set each parameter so far; those of this option are added.
    """
    flag = option.flags.split()[-1]
    for name in taken.keys() - {"overrides"}:  # of which there may be several
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            ours = next(param for param in context.command.params if param.name == name)
            is_option = isinstance(ours, click.Option)
            given_by.setdefault(name, ours.opts[0] if is_option else name.upper())
        if name in given_by:
            raise UserError(f"{given_by[name]} and {flag}; write one of them")
        given_by[name] = flag


def merge(params: dict[str, Any], taken: Taken) -> None:
    """Add the parameters that an option became to those of a command."""
    for name, value in taken.items():
        if name == "overrides":
            params[name] = (*params[name], *value)
        else:
            params[name] = value


def _default_text(context: click.Context, parameter: str, value: str) -> str:
    param = next(param for param in context.command.params if param.name == parameter)
    option = param.opts[0]
    text = f"{context.command.name} without {option} takes {value}, as in the public toolbox"
    ours = param.default
    if isinstance(ours, str):
        text += f"; write {shlex.join([option, ours])} for our own default"
    return text
