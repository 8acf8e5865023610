"""Find the volumes that a user names: one of any kind, or all classes under a results folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.volumes import ngff, records
from common.data.volumes.level import Level
from common.data.volumes.metadata import UNFINISHED
from common.data.volumes.sources import excerpt, opening, place
from common.data.volumes.sources.excerpt import INSTANCE_TYPE
from common.errors import UserError
from common.talk import some


@dataclass(frozen=True)
class Result:
    """A volume: of a class, or a raw."""

    path: Path
    names: tuple[str, ...]
    """Where it is below the folder that was asked for, without .zarr; the last is the class."""
    levels: Sequence[Level]
    sort: str
    """"image", "mask" or "objects"."""

    @property
    def name(self) -> str:
        """Of the class."""
        return self.names[-1]

    @property
    def box(self) -> str:
        """Of the box: its folders below the one that was asked for, else the folder it lies in."""
        return "/".join(self.names[:-1]) or self.path.parent.name

    @property
    def finest(self) -> Level:
        """The level of the smallest voxels."""
        return self.levels[0]

    @property
    def made(self) -> dict[str, Any]:
        """By what it was made: the record of predict or process, or the file and its time."""
        attributes = records.read_attributes(self.finest.group)
        about: dict[str, Any] = {"from": str(self.path)}
        for kind in (records.PREDICTION, records.PROCESSED):
            if attributes.get(kind):
                return about | {kind: attributes[kind]}
        on_disk = place.on_disk(self.path)
        if not place.is_address(str(on_disk)):
            status = on_disk.stat()
            about |= {"modified": status.st_mtime_ns, "bytes": status.st_size}
        return about


def find(source: str, classes: Sequence[str] = ()) -> list[Result]:
    """Return the volumes that a text names: one, or those of predict and process in a folder.

    Args:
        source: a volume as of `common.data.volumes.sources.place`, or a folder: of a run, a dataset
            or a box.
        classes: only these of a folder.

    Raises:
        FileNotFoundError: if nothing is there.
        UserError: for a volume that cannot be read or is not finished, for classes that are not
            there, and for classes of a volume that is none of them.
    """
    folder = place.bare(source)
    below = [] if place.is_address(source) or not folder.is_dir() else list(_classes_in(folder))
    if not below or below == [folder]:
        # FileNotFoundError, or what is wrong with it
        volume = _of_volume(source)
        if classes and volume.name not in classes:
            raise UserError(f"{source}: a volume, and no folder of classes; leave --classes out")
        return [volume]
    present = {path.name for path in below}
    absent = [name for name in classes if name not in present]
    if absent:
        raise UserError(f"{folder}: no class {some(absent)}; write some of {some(sorted(present))}")
    wanted = [path for path in below if not classes or path.name in classes]
    return [_open(path, folder) for path in wanted]


def are_in(folder: Path) -> bool:
    """Return whether a folder is a volume, or has some below it that `find` finds."""
    is_volume = any((folder / marker).is_file() for marker in opening.FOLDERS)
    return is_volume or next(_classes_in(folder), None) is not None


def _classes_in(folder: Path) -> Iterator[Path]:
    """Iterate over the volumes that we wrote or link to in a folder, half-written ones too."""
    attributes = records.read_attributes(folder)
    if "multiscales" in attributes or UNFINISHED in attributes or excerpt.is_link(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from _classes_in(path)


def _of_volume(source: str) -> Result:
    levels = ngff.open_levels(source)
    path = place.path_of(source)
    inside = place.in_hdf5(place.bare(source))
    name = place.bare(source).stem
    if inside and inside[1]:
        name = inside[1].rpartition("/")[2]
    return Result(path, (name,), levels, sort_of(levels[0], name))


def _open(path: Path, folder: Path) -> Result:
    levels = ngff.open_levels(path)
    is_predicted = records.read_prediction(path) is not None
    records.refuse_lost_chunks(path, "predict" if is_predicted else "process")
    names = tuple(part.removesuffix(".zarr") for part in path.relative_to(folder).parts)
    return Result(path, names, levels, sort_of(levels[0], path.name))


def sort_of(level: Level, name: str) -> str:
    """Return "image", "mask" or "objects", as the metadata of a volume say, else by its type."""
    attributes = {**level.array.attrs.asdict(), **records.read_attributes(level.group)}
    if attributes.get(records.PREDICTION):
        return "image"
    processed = attributes.get(records.PROCESSED)
    if processed:
        return "objects" if processed.get("instances") else "mask"
    annotation = (attributes.get("cellmap") or {}).get("annotation") or {}
    kind = (annotation.get("annotation_type") or {}).get("type")
    if kind:
        return "objects" if kind == INSTANCE_TYPE else "mask"
    ome = attributes.get("ome") or {}
    if "image-label" in {**attributes, **ome} or attributes.get("type") == "segmentation":
        return "objects"
    dtype = level.array.dtype
    if dtype.kind == "b":
        return "mask"
    return "objects" if dtype.kind in "iu" and dtype.itemsize >= 4 else "image"
