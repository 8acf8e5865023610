"""Tables and pictures of the classes under a folder of results, or of one volume of labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.data.volumes import results
from common.data.volumes.annotation import check_counts, encoding_of
from common.data.volumes.placement import group_by_voxels
from common.data.volumes.results import Result
from common.errors import UserError
from common.files import key_of, refuse_unwritable, replacing
from common.infer.machines import cluster
from common.infer.machines.engine import IN_THIS_PROCESS, Engine
from common.infer.objects.block_measures import MeasuredClass
from common.infer.objects.measure import Measures, measure
from common.show import figures
from common.show.projection import projection as project
from common.talk import Say, count, note, progress, some

CLASSES = "classes.csv"
OBJECTS = "objects.csv"
CONTACTS = "contacts.csv"
TABLES = (CLASSES, OBJECTS, CONTACTS)

QUANTILES = {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}

NONE = "none"

AXES = ("z", "y", "x")


@dataclass(frozen=True)
class Wanted:
    """What is measured and drawn."""

    classes: Sequence[str] = ()
    """Only these."""
    contacts: Sequence[str] | None = None
    """Classes whose contacts are looked for; those of objects unless given, none if NONE."""
    projection: str = "max"
    """How pictures are projected: "max", "sum" or NONE."""
    axis: str = "z"
    """"z", "y" or "x", along which they are projected."""


def summarize(
    source: str,
    out: str | Path,
    wanted: Wanted = Wanted(),
    *,
    engine: Engine = IN_THIS_PROCESS,
    overwrite: bool = False,
    say: Say = print,
) -> list[Path]:
    """Measure classes block by block; return the tables and pictures that are written.

    Raise FileNotFoundError for a volume that is missing; UserError for one that is not finished or
    has no labels, and for classes that are missing.

    Args:
        source: what `process` wrote, or labels, see `common.data.volumes.results.find`.
        out: folder that is written to.
        wanted: what is measured and drawn.
        engine: where blocks are measured.
        overwrite: replace files that exist.
        say: takes each line of the totals.
    """
    volumes = results.find(source, wanted.classes)
    touching = _touching(volumes, wanted.contacts)
    folder = Path(out)
    pictures = _picture_paths(folder, volumes, wanted)
    paths = [*(folder / name for name in TABLES), *pictures.values()]
    _refuse_to_write(paths, overwrite)
    tables = _measured(volumes, touching, folder, engine)
    for name, table in tables.items():
        with replacing(folder / name) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.10g")
    _draw(pictures, volumes, wanted)
    _say_totals(tables, folder, say)
    return paths


def _refuse_to_write(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError for files that exist, unless they are replaced, or cannot be written."""
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{some(existing, 3)}: there already; write another folder, or --overwrite to replace "
            "them"
        )
    for path in paths:
        refuse_unwritable(path)


# What is measured


def _touching(volumes: Sequence[Result], names: Sequence[str] | None) -> set[str]:
    """Return the classes whose contacts are looked for. names: as of `Wanted.contacts`.

    Raise UserError for volumes that are no labels, and names that are missing.
    """
    images = [str(result.path) for result in volumes if result.sort == "image"]
    if images:
        raise UserError(
            f"{some(images, 3)}: no masks or objects; run process, or import-data where these are "
            "labels of your own, and give the folder that it writes"
        )
    present = {result.name for result in volumes}
    if names is None:
        return {result.name for result in volumes if result.sort == "objects"}
    if tuple(names) == (NONE,):
        return set()
    absent = [name for name in names if name not in present]
    if absent:
        raise UserError(
            f"--contacts {some(absent)}: not there; write some of {some(sorted(present))}"
        )
    return set(names)


def _measured(
    volumes: Sequence[Result], touching: Collection[str], folder: Path, engine: Engine
) -> dict[str, pd.DataFrame]:
    """Return the tables by the names of their files.

    Args:
        volumes: to be measured.
        touching: names of the classes whose contacts are looked for.
        folder: where the workers of one call find each other.
        engine: where blocks are measured.
    """
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    voxels = sum(result.finest.array.size for result in volumes)
    call = key_of([[str(result.path) for result in volumes], sorted(touching)])
    with (
        cluster.opened(engine, folder, call) as crew,
        progress(voxels, "measuring", unit="voxel", unit_scale=True) as bar,
    ):
        for box, results_of_box in _on_same_voxels(volumes):
            classes = []
            for result in results_of_box:
                volume = str(result.path.absolute())
                is_mask = result.sort == "mask"
                touches = result.name in touching
                classes.append(MeasuredClass(result.name, result.finest, is_mask, touches, volume))
            measures = measure(classes, bar.update, crew)
            _check_whole(results_of_box, measures)
            # a mask has no objects
            names = [result.name for result in results_of_box if result.sort == "objects"]
            objects = measures.objects[measures.objects["class"].isin(names)]
            tables[CLASSES].append(_class_table(results_of_box, measures).assign(volume=box))
            tables[OBJECTS].append(objects.assign(volume=box))
            tables[CONTACTS].append(measures.contacts.assign(volume=box))
    joined = {}
    for name, parts in tables.items():
        table = pd.concat(parts, ignore_index=True)
        joined[name] = table[["volume", *table.columns.drop("volume")]]
    return joined


def _check_whole(volumes: Sequence[Result], measures: Measures) -> None:
    """Note where labels differ from what their metadata count. Raise UserError for lost chunks.

    measures: of the volumes.
    """
    for result in volumes:
        level = result.finest
        encoding = encoding_of(level, result.name)
        if encoding.counted is not None:
            absent = measures.known[result.name] - measures.voxels[result.name]
            remark = check_counts(level, encoding, level.array.size, absent)
            if remark:
                note(f"{result.path}: {remark}")


def _on_same_voxels(volumes: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """Return the classes of each box, with its name; those on other voxels apart."""
    results_of_boxes: dict[str, list[Result]] = {}
    for result in volumes:
        results_of_boxes.setdefault(result.box, []).append(result)
    boxes = []
    for box, results_of_box in results_of_boxes.items():
        groups = group_by_voxels(results_of_box, lambda result: result.finest.grid)
        if len(groups) > 1:
            note(f"{box}: classes on different voxels; contacts between these are not looked for")
        boxes += [(box, group) for group in groups]
    return boxes


# The tables


def _class_table(volumes: Sequence[Result], measures: Measures) -> pd.DataFrame:
    """Return a row for each class: its voxels, and the distribution of its objects."""
    rows = []
    for result in volumes:
        voxels = measures.voxels[result.name]
        known = measures.known[result.name]
        row: dict[str, Any] = {"class": result.name, "sort": result.sort}
        row |= {"voxels": voxels, "nm3": voxels * float(np.prod(result.finest.scale))}
        row |= {"known_voxels": known, "percent": 100 * voxels / known if known else np.nan}
        objects = measures.objects[measures.objects["class"] == result.name]
        row |= _distribution(objects if result.sort == "objects" else objects[:0])
        rows.append(row)
    return pd.DataFrame(rows)


def _distribution(objects: pd.DataFrame) -> dict[str, Any]:
    """Return number and sizes of objects; NaN for none."""
    sizes = objects["nm3"].to_numpy(float)
    if not len(sizes):
        return {"objects": np.nan}
    row = {"objects": len(sizes), "at_border": int(objects["at_border"].sum())}
    row |= {"smallest_nm3": sizes.min(), "largest_nm3": sizes.max(), "mean_nm3": sizes.mean()}
    return row | {f"{name}_nm3": np.quantile(sizes, part) for name, part in QUANTILES.items()}


def _say_totals(tables: Mapping[str, pd.DataFrame], folder: Path, say: Say) -> None:
    """Say a line for each class, and where the tables are."""
    for row in tables[CLASSES].to_dict("records"):
        number = row["objects"]
        objects = "" if np.isnan(number) else f", {count(int(number), 'object')}"
        share = f"{row['percent']:.3g} %"
        say(f"{row['volume']} {row['class']}: {row['nm3']:.4g} nm^3, {share}{objects}")
    contacts = count(len(tables[CONTACTS]), "pair")
    say(f"{folder}: {CLASSES}, {OBJECTS}, {CONTACTS} ({contacts})")


# Pictures


def _picture_paths(folder: Path, volumes: Sequence[Result], wanted: Wanted) -> dict[Path, Path]:
    """Return the picture of each volume by its path; {} where none is wanted."""
    paths = {}
    for result in volumes if wanted.projection != NONE else []:
        name = "_".join([*result.names, wanted.projection, wanted.axis])
        paths[result.path] = folder / f"{name}.png"
    return paths


def _draw(pictures: Mapping[Path, Path], volumes: Sequence[Result], wanted: Wanted) -> None:
    """Write the pictures. pictures: as of `_picture_paths`."""
    for result in volumes if pictures else []:
        image = project(
            result.levels,
            result.name,
            is_mask=result.sort == "mask",
            kind=wanted.projection,
            axis=AXES.index(wanted.axis),
        )
        figures.write_png(pictures[result.path], image)
