"""Excerpts of volumes: a box of a volume, or one class of it, with the place that it is given.

An import writes the excerpt, or leaves a link: link.json in the folder where the volume belongs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes.box import Vector, ranges
from common.data.volumes.level import Attributes, Level, Voxels
from common.data.volumes.metadata import read_object
from common.errors import UserError
from common.files import write_json

LINK = "link.json"
"""The file of a folder that stands for a volume elsewhere."""

RAW = "raw"
SEMANTIC = "semantic"
INSTANCE = "instance"
KINDS = (RAW, SEMANTIC, INSTANCE)

UNKNOWN_OF_MASK = 255
"""Of unknown in a class that is cut out of a volume of several."""

OF_FLOATS = np.uint32
"""Type of labels that were floating-point numbers, of which float32 counts to 2^24 alone."""

INSTANCE_TYPE = "instance_segmentation"
SEMANTIC_TYPE = "semantic_segmentation"
"""The challenge's words for labels."""


def annotation(encoding: Mapping[str, int], *, is_instance: bool) -> dict[str, Any]:
    """Return the metadata of a class in the challenge's form: ids or mask, and its encoding."""
    about: dict[str, Any] = {"type": INSTANCE_TYPE if is_instance else SEMANTIC_TYPE}
    if encoding:
        about["encoding"] = dict(encoding)
    return {"cellmap": {"annotation": {"annotation_type": about}}}


@dataclass(frozen=True)
class Excerpt:
    """What is taken of a volume."""

    source: str
    """Name of the volume: an absolute path, or an address, without what stands behind #."""
    first: tuple[int, ...]
    """Its first voxel in the finest level of the volume, z, y, x."""
    shape: tuple[int, ...]
    """Voxels, z, y, x."""
    voxel_size: tuple[float, ...]
    """nm, z, y, x."""
    translation: tuple[float, ...]
    """Position of the centre of its first voxel in nm, z, y, x."""
    kind: str
    """One of KINDS."""
    values: tuple[int, ...] = ()
    """The values of the class in a volume of several; none where all but 0 and unknown is it."""
    unknown: tuple[int, ...] = ()
    """The values of voxels of which nobody knows what they are."""

    @property
    def record(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "from": self.source,
            "first": list(self.first),
            "shape": list(self.shape),
            "voxel_size_nm": list(self.voxel_size),
            "translation_nm": list(self.translation),
            "kind": self.kind,
            "values": list(self.values),
            "unknown": list(self.unknown),
        }

    @property
    def name(self) -> str:
        """The name of the volume, with its voxel size and place behind #."""
        size = ",".join(map(repr, self.voxel_size))
        start = np.subtract(self.translation, np.multiply(self.first, self.voxel_size))
        place = ",".join(map(repr, start.tolist()))
        return f"{self.source}#voxel_size={size}&translation={place}"

    @property
    def encoding(self) -> dict[str, int]:
        """What the values of a class mean; {} where that need not be said."""
        if not self.values:
            return {"absent": 0, "unknown": self.unknown[0]} if self.unknown else {}
        of_mask = {"absent": 0, "present": 1}
        return of_mask | {"unknown": UNKNOWN_OF_MASK} if self.unknown else of_mask

    @property
    def annotation(self) -> dict[str, Any]:
        """What the metadata say of the values of a class; nothing of raw."""
        if self.kind == RAW:
            return {}
        return annotation(self.encoding, is_instance=self.kind == INSTANCE)

    def taken(self, block: np.ndarray) -> np.ndarray:
        """Return voxels of the volume as the excerpt has them. Raises UserError for fractions."""
        if block.dtype.kind == "b":
            return block.astype(np.uint8)
        if self.kind != RAW and block.dtype.kind == "f":
            block = self._as_whole(block)
        if not self.values:
            # metadata name one value of unknown
            for other in self.unknown[1:]:
                block = np.where(block == other, block.dtype.type(self.unknown[0]), block)
            return block
        mask = np.isin(block, self.values).astype(np.uint8)
        if self.unknown:
            mask[np.isin(block, self.unknown)] = UNKNOWN_OF_MASK
        return mask

    def _as_whole(self, block: np.ndarray) -> np.ndarray:
        """Return labels that a program wrote as floating-point numbers."""
        whole = block.astype(OF_FLOATS) if _are_ids(block) else None
        if whole is None or (whole != block).any():
            odd = block[~((block >= 0) & (block == np.rint(block)))]
            value = odd[0] if len(odd) else block.max()
            raise UserError(
                f"{self.source}: labels of {block.dtype} with the value {value:g}; write labels as "
                "whole numbers from 0 on"
            )
        exact = 2 ** (np.finfo(block.dtype).nmant + 1)
        if block.max(initial=0) > exact:
            # of two objects one may have been made already
            raise UserError(
                f"{self.source}: id {block.max():.0f} in {block.dtype}, which skips numbers beyond "
                f"{exact}; write labels as integers"
            )
        return whole

    def of(self, level: Level, folder: Path) -> Level:
        """Return the excerpt of a volume's finest level, as a level of an image in `folder`."""
        stamp = json.dumps([self.record, level.stamp])
        return replace(
            level,
            array=Excerpted(self, level),
            translation=np.array(self.translation),
            has_translation=True,
            dropped=(),
            image=folder,
            stamp=stamp,
        )


class Excerpted(Voxels):
    """The voxels of an excerpt, read from its volume."""

    def __init__(self, excerpt: Excerpt, level: Level):
        self.shape = excerpt.shape
        stored = np.dtype(level.array.dtype).newbyteorder("=")
        if excerpt.values or stored.kind == "b":
            stored = np.dtype(np.uint8)
        elif excerpt.kind != RAW and stored.kind == "f":
            stored = np.dtype(OF_FLOATS)
        self.dtype = stored
        self.chunks = level.array.chunks
        self.in_rows = isinstance(level.array, Voxels) and level.array.in_rows
        self.attrs = Attributes(excerpt.annotation)
        self._excerpt = excerpt
        self._level = level

    def files(self, start: Vector, stop: Vector) -> list[Path]:
        """Return the files of its volume that hold voxels start..stop-1."""
        first = np.array(self._excerpt.first)
        return list(self._level.files(first + start, first + stop))

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return voxels of a box."""
        voxels = ranges(index, self.shape)
        first = np.array(self._excerpt.first)
        start = first + [along.start for along in voxels]
        stop = first + [along.stop for along in voxels]
        block = self._level.read(start, stop)
        native = block.astype(block.dtype.newbyteorder("="), copy=False)
        return self._excerpt.taken(native)


def _are_ids(block: np.ndarray) -> bool:
    """Return whether numbers fit into OF_FLOATS; NaN does not."""
    return bool((block >= 0).all() and (block <= np.iinfo(OF_FLOATS).max).all())


# Links


def write_link(folder: Path, excerpt: Excerpt) -> None:
    """Leave a link in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / LINK, excerpt.record)


def is_link(folder: Path) -> bool:
    """Return whether a folder stands for a volume elsewhere."""
    return (folder / LINK).is_file()


def read_link(folder: Path) -> Excerpt:
    """Return the excerpt that a link stands for. Raises UserError for a link that is damaged."""
    record = read_object(folder / LINK)
    try:
        return Excerpt(
            source=_text(record["from"]),
            first=_three(record["first"], int),
            shape=_three(record["shape"], int),
            voxel_size=_three(record["voxel_size_nm"], float),
            translation=_three(record["translation_nm"], float),
            kind=KINDS[KINDS.index(record["kind"])],
            values=tuple(map(int, record["values"])),
            unknown=tuple(map(int, record["unknown"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / LINK}: not what import-data --link writes ({error}); import it again"
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _three(values: Sequence[Any], number: type) -> tuple[Any, ...]:
    if len(values) != 3:
        raise ValueError(f"{values} are not three numbers")
    return tuple(number(value) for value in values)
