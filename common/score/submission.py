"""What is uploaded to the challenge: one zarr v2 array for each row of the manifest, zipped; pack it, check it, open it.

    .zgroup  crop557/.zgroup  crop557/mito/{.zarray, .zattrs, 0/0/0, ...}

Arrays are unsigned integers: 0 and 1, or ids of objects for the classes that are scored as instances. Their attributes
are the manifest's voxel_size, translation and shape. The zip holds these at its root, without an enclosing folder.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import zarr
from numcodecs import Blosc

from common.classes import INSTANCES
from common.data import regrid
from common.data.manifest import Entry
from common.data.ngff import Level, open_levels
from common.errors import UserError

CHUNK = 128
MAX_BYTES = 50 * 10**9
"""Unpacked; the organisers refuse more."""

MAX_RATIO = 500
"""Unpacked over packed size; deflate reaches 1000 on nothing but zeros."""

MAX_METADATA_BYTES = 2**20
TOLERANCE_NM = 1e-3


def pack(
    entries: Sequence[Entry],
    source_of: Callable[[Entry], Path],
    output_zip: str | Path,
    say: Callable[[str], None] = print,
) -> Path:
    """Bring the volume of each entry onto its grid and write them as one zip; an older one is replaced when it is whole.

    `source_of` gives the multiscale group of an entry, whose finest level is taken: by `regrid.ids` for the classes scored
    as instances, else by `regrid.mask`. Ids get the smallest unsigned dtype that holds them (the public toolbox writes
    uint8 and wraps ids beyond 255). Raises ValueError with everything that is wrong, and then leaves no file.
    """
    output = Path(output_zip)
    levels, problems = {}, []
    for entry in entries:
        try:
            levels[entry] = _level_of(entry, Path(source_of(entry)))
        except (FileNotFoundError, ValueError) as error:
            problems.append(f"{entry.path}: {error}")
    _refuse(output, problems)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    try:
        with zarr.ZipStore(str(part), mode="w") as store:  # not compressed again, the chunks are
            group = zarr.group(store=store)
            for entry, level in levels.items():
                try:
                    volume = _on_grid(entry, level)
                except ValueError as error:
                    problems.append(f"{entry.path}: {error}")
                    continue
                _write(group, entry, volume)
                say(f"{entry.path}: {' x '.join(map(str, volume.shape))} {volume.dtype}")
        _refuse(output, problems or check(part, entries))
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)
    say(f"{output}: {len(entries)} volumes, {output.stat().st_size / 1e6:.1f} MB")
    return output


def check(path: str | Path, entries: Sequence[Entry]) -> list[str]:
    """What is wrong with a submission, one sentence each: any (crop, class) missing or too many, dtype, shape and place.

    path: as for `opened`. Reads metadata, and of a zip the checksums of all files. Raises FileNotFoundError if there is none.
    """
    path = Path(path)
    wanted = {entry.path: entry for entry in entries}
    try:
        if (source := _locate(path)).is_file():
            _refuse(source, _zip_problems(source, contents=True))
        with opened(source) as group:
            found = _arrays(group, source)
            problems = [
                f"{name}: missing; process this crop and class, and pack again"
                for name in wanted.keys() - found
            ]
            problems += [
                f"{name}: not in the manifest; take it out" for name in found - wanted.keys()
            ]
            for name in found & wanted.keys():
                problems += [
                    f"{name}: {problem}" for problem in _array_problems(wanted[name], group)
                ]
    except ValueError as error:
        return str(error).split("\n")
    return [f"{path}: {problem}" for problem in sorted(problems)]


@contextmanager
def opened(path: str | Path) -> Iterator[zarr.Group]:
    """The read-only group of a submission, its arrays at crop557/mito and so on.

    path: a zip, which is read where it is and never unpacked; a folder with one zip; or a zarr folder. As the organisers
    do, a single .zarr folder inside is taken for the whole, folder 557 is read as crop557, and .zgroup may be missing.
    Raises FileNotFoundError, and ValueError for what is no submission and for a zip that is cut short or not safe; reading
    from the group raises ValueError where a file of a zip is damaged.
    """
    source = _locate(Path(path))
    if source.is_file():
        _refuse(source, _zip_problems(source))
    files = (
        zarr.ZipStore(str(source), mode="r")
        if source.is_file()
        else zarr.DirectoryStore(str(source))
    )
    with files:
        store = _AsOrganisersRead(files)
        if not store.crops:
            raise UserError(
                f"{source}: no crops in it; the folders crop557 and so on must lie at its root"
            )
        try:
            group = zarr.open_group(store, mode="r")
        except (zarr.errors.MetadataError, ValueError) as error:
            raise UserError(f"{source}: not a zarr v2 group ({error}); pack it again") from error
        yield group


class _AsOrganisersRead(zarr.storage.Store):
    """A read-only view of a store: out of a single .zarr folder, 557 as crop557, with the .zgroup that is missing."""

    def __init__(self, files: zarr.storage.Store):
        inside = [name for name in files.listdir("") if name.endswith(".zarr")]
        self.files, self.root = files, f"{inside[0]}/" if len(inside) == 1 else ""
        self.folders = {
            f"crop{name}" if name.isdecimal() else name: name for name in files.listdir(self.root)
        }
        self.crops = {name for name in self.folders if name.startswith("crop")}

    def _place(self, key: str) -> str:
        first, slash, rest = key.partition("/")
        return self.root + self.folders.get(first, first) + slash + rest

    def _implied(self, key: str) -> bool:
        folder = key.removesuffix(".zgroup").rstrip("/")
        return key.endswith(".zgroup") and (not folder or folder in self.crops)

    def __contains__(self, key: str) -> bool:
        return self._place(key) in self.files or self._implied(key)

    def __getitem__(self, key: str) -> bytes:
        if self._implied(key) and self._place(key) not in self.files:
            return b'{"zarr_format": 2}'
        try:
            return self.files[self._place(key)]
        except (BadZipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{self.files.path}: '{key}' is damaged ({error}); copy or pack the zip again"
            ) from error

    def listdir(self, path: str = "") -> list[str]:
        return (
            [name for name in self.files.listdir(self._place(path)) if name]
            if path
            else list(self.folders)
        )

    def __iter__(self) -> Iterator[str]:
        names = {name: folder for folder, name in self.folders.items()}
        for key in self.files:
            if key.startswith(self.root):
                first, slash, rest = key.removeprefix(self.root).partition("/")
                yield names.get(first, first) + slash + rest

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __setitem__(self, key: str, value: bytes) -> None:
        raise zarr.errors.ReadOnlyError

    def __delitem__(self, key: str) -> None:
        raise zarr.errors.ReadOnlyError


def _level_of(entry: Entry, path: Path) -> Level:
    """The finest level of a processed volume. Raises FileNotFoundError, and ValueError if it is not whole or too small."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such volume; run predict and process for it")
    try:
        levels = open_levels(path)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{error} (if it is half-written, run process again)") from error
    if not levels:
        raise UserError(f"{path}: no level in its multiscales; run process again")
    if not regrid.covers(levels[0], entry.grid()):
        raise UserError(
            f"{path}: {regrid.shortfall(levels[0], entry.grid())}; run predict and process for the whole crop"
        )
    return levels[0]


def _on_grid(entry: Entry, level: Level) -> np.ndarray:
    """(z, y, x) unsigned integers. Raises ValueError for values that are neither ids nor a mask nor probabilities."""
    if entry.name not in INSTANCES:
        return regrid.mask(level, entry.grid()).view(np.uint8)
    ids = regrid.ids(level, entry.grid())
    if ids.min() < 0:
        raise UserError(
            f"{level.path}: id {ids.min()}; write ids above zero, and 0 where there is no object"
        )
    return ids.astype(np.min_scalar_type(int(ids.max())), copy=False)


def _write(group: zarr.Group, entry: Entry, volume: np.ndarray) -> None:
    array = group.create_dataset(
        entry.path,
        data=volume,
        chunks=tuple(min(CHUNK, n) for n in volume.shape),
        dimension_separator="/",
        compressor=Blosc(cname="zstd", clevel=5, shuffle=Blosc.SHUFFLE),
    )
    array.attrs.update(
        voxel_size=entry.voxel_size, translation=entry.translation, shape=entry.shape
    )


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))


def _locate(path: Path) -> Path:
    """The zip or the zarr folder that a path stands for."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such submission; write it with pack-results")
    zips = sorted(path.glob("*.zip")) if path.is_dir() else [path]
    if len(zips) > 1:
        raise UserError(f"{path}: {len(zips)} zips in it; name the one that is meant")
    return zips[0] if zips else path


def _zip_problems(path: Path, contents: bool = False) -> list[str]:
    """Why a zip is damaged or not safe to unpack; with `contents` all its files are read and their checksums compared."""
    try:
        with ZipFile(path) as file:
            problems = [
                f"'{info.filename[:100]}' {problem}"
                for info in file.infolist()
                for problem in _file_problems(info)
            ]
            unpacked, packed = sum(info.file_size for info in file.infolist()), path.stat().st_size
            if unpacked > min(MAX_BYTES, MAX_RATIO * packed):
                problems.append(
                    f"{packed:,} bytes unpack to {unpacked:,}; at most {MAX_BYTES:,} and {MAX_RATIO} times the size are taken"
                )
            if contents and not problems and (damaged := file.testzip()):
                problems.append(f"'{damaged}' is damaged; copy or pack the zip again")
    except (BadZipFile, EOFError, zlib.error) as error:
        return [f"not a whole zip ({error}); copy or pack it again"]
    return problems


def _file_problems(info: ZipInfo) -> list[str]:
    name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
    problems = []
    if re.match(r"/|[A-Za-z]:", name) or ".." in name.split("/") or set(name) & {"\\", "\0"}:
        problems.append(
            "points outside of the zip, or is no path of zarr; zip the contents of the zarr folder"
        )
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problems.append("is a link or a device; zip the file itself")
    if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        problems.append(
            "is encrypted or packed in an unusual way; zip with deflate or without compression"
        )
    if name.rpartition("/")[2].startswith(".z") and info.file_size > MAX_METADATA_BYTES:
        problems.append(f"has {info.file_size:,} bytes, too many for metadata; pack it again")
    return problems


def _arrays(group: zarr.Group, path: Path) -> set[str]:
    try:
        return {
            f"{crop}/{name}" for crop in group.group_keys() for name in group[crop].array_keys()
        }
    except (zarr.errors.MetadataError, ValueError) as error:
        raise UserError(f"{path}: a .zgroup cannot be read ({error}); pack it again") from error


def _array_problems(entry: Entry, group: zarr.Group) -> list[str]:
    try:
        array = group[entry.path]
        attributes = array.attrs.asdict()
    except (zarr.errors.MetadataError, ValueError) as error:
        return [f"metadata cannot be read ({error}); pack it again"]
    problems = []
    if array.dtype.kind not in "ui":
        problems.append(f"{array.dtype}; write unsigned integers")
    if array.shape != entry.shape:
        problems.append(f"shape {array.shape}; write {entry.shape}")
    for key, value in (("voxel_size", entry.voxel_size), ("translation", entry.translation)):
        if not _same(attributes.get(key), value):
            problems.append(f"{key} {attributes.get(key)}; write {list(value)}")
    return problems


def _same(given: object, wanted: Sequence[float]) -> bool:
    """Whether an attribute is these nm."""
    if not (
        isinstance(given, list)
        and len(given) == 3
        and all(isinstance(number, int | float) for number in given)
    ):
        return False
    return all(abs(a - b) <= TOLERANCE_NM for a, b in zip(given, wanted, strict=True))
