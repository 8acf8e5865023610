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
from common.infer.objects.measure import Labels, Measures, measure
from common.show import figures
from common.show.projection import projection as project
from common.talk import Say, note, progress, some

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
    """The classes whose contacts are looked for; those of objects unless given, none for NONE."""
    projection: str = "max"
    """Of pictures: "max", "sum" or NONE."""
    axis: str = "z"
    """"z", "y" or "x", along which they look."""


def summarize(
    source: str,
    out: str | Path,
    wanted: Wanted = Wanted(),
    *,
    engine: Engine = IN_THIS_PROCESS,
    overwrite: bool = False,
    say: Say = print,
) -> list[Path]:
    """Measure classes, block by block; gives the tables and pictures written into a folder.

    Args:
        source: see `common.data.volumes.results.find`: what `process` wrote, or labels.
        out: the folder.
        wanted: what of it.
        engine: where blocks are measured.
        overwrite: replace what is there.
        say: takes each line.

    Raises FileNotFoundError for a volume that is not there; UserError for one that is not finished
    or no labels, and for classes that are not there.
    """
    volumes = results.find(source, wanted.classes)
    touching = _touching(volumes, wanted.contacts)
    folder = Path(out)
    pictures = _picture_paths(folder, volumes, wanted)
    paths = [*(folder / name for name in TABLES), *pictures.values()]
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{some(existing, 3)}: there already; write another folder, or --overwrite to replace "
            "them"
        )
    for path in paths:
        refuse_unwritable(path)
    tables = _measured(volumes, touching, folder, engine)
    for name, table in tables.items():
        with replacing(folder / name) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.10g")
    _draw(pictures, volumes, wanted)
    _say_totals(tables, folder, say)
    return paths


# What is measured


def _touching(volumes: Sequence[Result], names: Sequence[str] | None) -> set[str]:
    """The classes whose contacts are looked for. Raises UserError for what is no labels."""
    images = [str(result.path) for result in volumes if result.sort == "image"]
    if images:
        raise UserError(
            f"{some(images, 3)}: no masks or objects; run process, and give the folder that it "
            "writes"
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
    """The tables by the names of their files. folder: where workers of one call find each other."""
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    voxels = sum(result.finest.array.size for result in volumes)
    call = key_of([[str(result.path) for result in volumes], sorted(touching)])
    with (
        cluster.opened(engine, folder, call) as crew,
        progress(voxels, "measuring", unit="voxel", unit_scale=True) as bar,
    ):
        for box, of_box in _on_same_voxels(volumes):
            classes = []
            for result in of_box:
                volume = str(result.path.absolute())
                is_mask = result.sort == "mask"
                touches = result.name in touching
                classes.append(Labels(result.name, result.finest, is_mask, touches, volume))
            measures = measure(classes, bar.update, crew)
            _check_whole(of_box, measures)
            # a mask has no objects
            names = [result.name for result in of_box if result.sort == "objects"]
            objects = measures.objects[measures.objects["class"].isin(names)]
            tables[CLASSES].append(_of_classes(of_box, measures).assign(volume=box))
            tables[OBJECTS].append(objects.assign(volume=box))
            tables[CONTACTS].append(measures.contacts.assign(volume=box))
    joined = {}
    for name, parts in tables.items():
        table = pd.concat(parts, ignore_index=True)
        joined[name] = table[["volume", *table.columns.drop("volume")]]
    return joined


def _check_whole(volumes: Sequence[Result], measures: Measures) -> None:
    """Compare what was read of labels with what their metadata count, which is said.

    Raises UserError for chunks that were lost.
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
    """The classes of each box; those on other voxels apart."""
    of_box: dict[str, list[Result]] = {}
    for result in volumes:
        of_box.setdefault(result.box, []).append(result)
    boxes = []
    for box, of_classes in of_box.items():
        groups = group_by_voxels(of_classes, lambda result: result.finest.grid)
        if len(groups) > 1:
            note(f"{box}: classes on different voxels; contacts between these are not looked for")
        boxes += [(box, group) for group in groups]
    return boxes


# The tables


def _of_classes(volumes: Sequence[Result], measures: Measures) -> pd.DataFrame:
    """A row a class."""
    rows = []
    for result in volumes:
        count = measures.voxels[result.name]
        known = measures.known[result.name]
        row: dict[str, Any] = {"class": result.name, "sort": result.sort}
        row |= {"voxels": count, "nm3": count * float(np.prod(result.finest.scale))}
        row |= {"known_voxels": known, "percent": 100 * count / known if known else np.nan}
        objects = measures.objects[measures.objects["class"] == result.name]
        row |= _distribution(objects if result.sort == "objects" else objects[:0])
        rows.append(row)
    return pd.DataFrame(rows)


def _distribution(objects: pd.DataFrame) -> dict[str, Any]:
    """Number and sizes of objects; empty for none."""
    sizes = objects["nm3"].to_numpy(float)
    if not len(sizes):
        return {"objects": np.nan}
    row = {"objects": len(sizes), "at_border": int(objects["at_border"].sum())}
    row |= {"smallest_nm3": sizes.min(), "largest_nm3": sizes.max(), "mean_nm3": sizes.mean()}
    return row | {f"{name}_nm3": np.quantile(sizes, part) for name, part in QUANTILES.items()}


def _say_totals(tables: Mapping[str, pd.DataFrame], folder: Path, say: Say) -> None:
    """A line a class, and where the tables are."""
    for row in tables[CLASSES].to_dict("records"):
        number = row["objects"]
        objects = "" if np.isnan(number) else f", {number:.0f} objects"
        share = f"{row['percent']:.3g} %"
        say(f"{row['volume']} {row['class']}: {row['nm3']:.4g} nm^3, {share}{objects}")
    contacts = len(tables[CONTACTS])
    say(f"{folder}: {CLASSES}, {OBJECTS}, {CONTACTS} ({contacts} pairs)")


# Pictures


def _picture_paths(folder: Path, volumes: Sequence[Result], wanted: Wanted) -> dict[Path, Path]:
    """For each volume its picture; empty where none is wanted."""
    paths = {}
    for result in volumes if wanted.projection != NONE else []:
        name = "_".join([*result.names, wanted.projection, wanted.axis])
        paths[result.path] = folder / f"{name}.png"
    return paths


def _draw(pictures: Mapping[Path, Path], volumes: Sequence[Result], wanted: Wanted) -> None:
    for result in volumes if pictures else []:
        image = project(
            result.levels,
            result.name,
            is_mask=result.sort == "mask",
            kind=wanted.projection,
            axis=AXES.index(wanted.axis),
        )
        figures.write_png(pictures[result.path], image)
