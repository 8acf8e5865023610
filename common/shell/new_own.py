"""Write a new experiment for the user's own data, from templates."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.config.load import data_root, load_config
from common.data.own.crops import (
    Division,
    OwnCrop,
    divide,
    labels_by_class,
    positives,
    read_crops,
    single_planes,
    unlabelled_rest,
)
from common.data.splits import make_split
from common.data.summary import fingerprint
from common.data.summary.measured import measure_crops
from common.data.volumes import layout
from common.data.volumes.sources.place import is_file_name, store_name
from common.errors import UserError
from common.files import REPOSITORY, from_repository
from common.shell.new import refuse_target, whole
from common.shell.own_plan import OwnPlan, make_plan
from common.talk import Say, command_line, count, nm, note, short_path, some, voxels

TEMPLATES = Path(__file__).parent / "own"

FOLDERS = ("checkpoints", "logs")


def new_own(
    name: str | Path,
    datasets: Sequence[str],
    *,
    data: str | Path | None = None,
    classes: Collection[str] = (),
    voxel_size: tuple[float, float, float] | None = None,
    device: str = "auto",
    say: Say = print,
) -> Path:
    """Write an experiment for imported data, ready to train; return its folder, absolute.

    Args:
        name: the folder to be.
        datasets: names in the data root, or patterns.
        data: the data root.
        classes: those to learn; all that are annotated and occur unless given.
        voxel_size: nm, z, y, x; that of the labels unless given.
        device: "auto", "cpu" or "cuda": what the experiment is sized for.
        say: takes lines about the data and the chosen settings.

    Raises FileExistsError; FileNotFoundError without data; UserError if nothing can be learnt.
    """
    target = Path(name).expanduser().resolve()
    refuse_target(target)
    root = _root(data, datasets)
    crops = read_crops(root, datasets, classes)
    plan = make_plan(crops, root, device, voxel_size)
    division = divide(crops, plan.scale)
    for line in _about(crops, plan, division):
        say(line)
    for crop in crops:
        for sentence in filter(None, (unlabelled_rest(crop), single_planes(crop))):
            note(sentence)
    with whole(target) as partial:
        _write(partial, target, plan, division=division, crops=crops, root=root)
        for finding in _findings(partial, root, division):
            note(finding)
    return target


def next_command(target: Path) -> str:
    """Return the command to type afterwards; the experiment knows its data root."""
    return command_line("train", short_path(target))


def _root(data: str | Path | None, datasets: Sequence[str]) -> Path:
    """Return the data root. Raises UserError if files are named instead of datasets."""
    root = data_root(data)
    for dataset in datasets:
        file = Path(dataset)
        is_file = is_file_name(dataset) or os.sep in dataset
        if is_file and not (root / dataset).is_dir():
            command = command_line(
                "import-data", dataset, dataset=store_name(file) or "my_cell", labels="CLASS=FILE"
            )
            raise UserError(
                f"--own {dataset}: no name of a dataset in {root}; import the file first, and name "
                f"the dataset:\n  {command}"
            )
    labelled = {dataset for dataset, _ in layout.crop_folders(root)}
    for dataset in datasets:
        has_raw = (root / layout.raw(dataset)).is_dir()
        if root.is_dir() and (dataset in labelled or not has_raw):
            continue
        problem = f"{dataset} has no labels in it" if has_raw else "no such data root"
        command = command_line(
            "import-data", "RAW", dataset=dataset, labels="CLASS=FILE", data=data
        )
        raise FileNotFoundError(f"{root}: {problem}; import the files:\n  {command}")
    return root


# What is said


def _about(crops: Sequence[OwnCrop], plan: OwnPlan, division: Division) -> list[str]:
    datasets = sorted({crop.info.dataset for crop in crops})
    lines = [f"{some(datasets)}: {count(len(crops), 'crop')}, learnt at {nm(plan.scale)} nm"]
    for name, labels in labels_by_class(crops).items():
        known = sum(facts.knowns for facts in labels)
        share = positives(labels) / known
        lines.append(f"- {name}: {share:.2%} of the voxels{_as_objects(plan, name)}")
    patch = voxels(plan.patch)
    steps = plan.machine.epochs * plan.machine.iterations_per_epoch
    device = "a GPU" if plan.machine.device == "cuda" else "a CPU"
    if plan.inverted:
        names = some(plan.inverted)
        lines.append(
            f"- {names}: dark in one volume and bright in another; half of the patches are inverted"
        )
    lines.append(f"- {division.why}")
    lines.append(
        f"- {count(steps, 'step')} of {plan.batch_size} patches of {patch} voxels: for {device}"
    )
    return lines


def _as_objects(plan: OwnPlan, name: str) -> str:
    if name not in plan.specks:
        return ", a mask"
    how = "split where they hang together by a neck" if name in plan.crowded else "one for a piece"
    return f", objects: {how}, of {plan.specks[name]} voxels or more"


def _findings(folder: Path, root: Path, division: Division) -> list[str]:
    """Return remarkable facts about the crops, which are decoded as training reads them."""
    config = load_config(folder, data=root)
    measured, unreadable = measure_crops(config)
    findings = fingerprint.describe(config, measured, unreadable).findings
    # of one specimen nothing can be kept apart
    specimens = {crop.specimen for _, crop in division.sides}
    known = make_split.shared_specimens(division.sides) if len(specimens) == 1 else []
    return [finding for finding in findings if finding not in known]


# Its files


def _write(
    folder: Path,
    target: Path,
    plan: OwnPlan,
    *,
    division: Division,
    crops: Sequence[OwnCrop],
    root: Path,
) -> None:
    """Write the files of the experiment `target` into a folder."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        (folder / name / ".gitkeep").touch()
    (folder / "__init__.py").touch()
    rows = make_split.rows(division.sides, plan.classes)
    comment = f"# {division.why}"
    make_split.write_datasplit(folder / "datasplit.csv", [comment, *rows])

    def command(verb: str, **options: Any) -> str:
        return command_line(verb, from_repository(target), **options)

    names = {
        "name": target.name,
        "plan": plan,
        "classes": plan.classes,
        "datasets": sorted({crop.info.dataset for crop in crops}),
        "division": division.why,
        "data_path": "" if root == REPOSITORY / "data" else str(root),
        "command": command,
        "multiples": _multiples(plan.multiples),
    }
    environment = _environment()
    for template in sorted(TEMPLATES.glob("*.j2")):
        text = environment.get_template(template.name).render(names)
        (folder / template.stem).write_text(text, "utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # Python and Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    helpers = {
        "names": lambda names: json.dumps(list(names)),  # as a list of Python
        "numbers": _numbers,
        "settings": _settings,
        "quoted": json.dumps,
        "nm": nm,
    }
    environment.globals.update(helpers)
    return environment


def _settings(values: Mapping[str, Any]) -> str:
    """Return keyword arguments as a dict of Python, in the quotes of the formatter."""
    texts = []
    for name, value in values.items():
        text = json.dumps(value) if isinstance(value, str) else repr(value)
        texts.append(f"{json.dumps(name)}: {text}")
    return f"{{{', '.join(texts)}}}"


def _numbers(numbers: Sequence[float]) -> str:
    return f"({', '.join(f'{number:.6g}' for number in numbers)})"


def _multiples(step: Sequence[int]) -> str:
    """Return 'multiples of 8 voxels on an axis', or the same for each axis."""
    if len(set(step)) == 1:
        return f"multiples of {step[0]} voxels on an axis"
    texts = []
    for axis, number in zip("zyx", step, strict=True):
        texts.append(f"any number along {axis}" if number == 1 else f"of {number} along {axis}")
    return f"multiples of voxels: {', '.join(texts)}"
