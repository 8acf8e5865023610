"""Open and check a submission to the challenge: a zarr v2 array for each row of the manifest.

    .zgroup  crop557/.zgroup  crop557/mito/{.zarray, .zattrs, 0/0/0, ...}

Arrays are unsigned integers: 0 and 1, or ids of objects for the classes that are scored as
instances. Their attributes are the manifest's voxel_size, translation and shape. The zip holds
these at its root, without an enclosing folder. `packing` writes it.
"""

from __future__ import annotations

import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import zarr

from common.classes import INSTANCES, unknown_names
from common.data.splits.manifest import Entry
from common.data.volumes.layout import crop_name
from common.errors import UserError, refuse
from common.score import gaps
from common.score.arrays import MAX_BYTES, SOFT, is_place, is_soft, open_array, samples_of_array
from common.score.gaps import Gap
from common.talk import nearest

MAX_RATIO = 500
"""Unpacked over packed size; deflate reaches 1000 on nothing but zeros."""

MAX_METADATA_BYTES = 2**20
"""Largest .zarray, .zattrs or .zgroup: each is read whole; usual are a few hundred bytes."""

GROUP_ERRORS = (
    zarr.errors.MetadataError,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
)
"""Errors of zarr for a .zgroup that is no JSON object."""

TOLERANCE_NM = 1e-3
"""Largest difference (nm) between an attribute and the manifest."""


def check(path: str | Path, entries: Sequence[Entry], *, partial: bool = False) -> list[str]:
    """Return what is wrong with a submission, a sentence each; many missing volumes are a table.

    Looked at are missing and surplus volumes, dtypes, shapes and places in space. Metadata are
    read, of a zip the checksums of all files, and voxels at eight places of a volume.

    Args:
        path: of the submission, as `opened` takes it.
        entries: rows of the manifest.
        partial: volumes may be missing, though not all.

    Raises:
        FileNotFoundError: if there is no submission.
    """
    path = Path(path)
    try:
        source = _locate(path)
        if source.is_file():
            # checksums are read last: those of a zip bomb would take hours
            refuse(_zip_problems(source) or _damaged(source), source)
        with opened(source) as group:
            given = _arrays(group, source)
            absent = _missing(group, given, entries)
            problems = _group_problems(group, given, entries)
            if not partial or len(absent) == len(entries):
                problems += _missing_problems(absent, entries)
    except UserError as error:
        return str(error).split("\n")
    return [f"{path}: {problem}" for problem in sorted(problems)]


def lacking(path: str | Path, entries: Sequence[Entry]) -> list[Gap]:
    """Return the volumes of the manifest that a submission lacks. Raises as `opened` does."""
    source = _locate(Path(path))
    with opened(source) as group:
        return _missing(group, _arrays(group, source), entries)


@contextmanager
def opened(path: str | Path) -> Iterator[zarr.Group]:
    """Open the read-only group of a submission, with its arrays at crop557/mito and so on.

    It is read as the organisers read it: a single .zarr folder inside stands for the whole, folder
    557 is crop557, and .zgroup may be missing.

    path: a zip, which is never unpacked; a folder with one zip; or a zarr folder.

    Raises:
        FileNotFoundError: if there is no submission.
        UserError: for what is no submission, and for a zip that is cut short or not safe; also when
            a damaged file of a zip is read from the group.
    """
    source = _locate(Path(path))
    if source.is_file():
        refuse(_zip_problems(source), source)
        files: zarr.storage.Store = zarr.ZipStore(str(source), mode="r")
    else:
        files = zarr.DirectoryStore(str(source))
    with files:
        store = _AsOrganisersRead(files)
        if not store.crops:
            raise UserError(
                f"{source}: no crops in it; the folders crop557 and so on must lie at its root"
            )
        try:
            group = zarr.open_group(store, mode="r")
        except GROUP_ERRORS as error:
            raise UserError(f"{source}: not a zarr v2 group ({error}); pack it again") from error
        yield group


class _AsOrganisersRead(zarr.storage.Store):
    """A read-only view of a store: 557 as crop557, missing .zgroup implied, one .zarr left out."""

    def __init__(self, files: zarr.storage.Store) -> None:
        self.files = files
        # whoever zips my.zarr and not what is in it gets one folder more
        inside = [name for name in files.listdir("") if name.endswith(".zarr")]
        self.root = f"{inside[0]}/" if len(inside) == 1 else ""
        folders = files.listdir(self.root)
        _refuse_two_of_one(files.path, folders)
        if self.root:
            _refuse_beside(files.path, inside[0], files.listdir(""))
        self.folders = {crop_name(folder): folder for folder in folders}
        """The folder in the store behind each name at the root."""
        self.crops = {name for name in self.folders if name.startswith("crop")}

    def __contains__(self, key: object) -> bool:
        key = str(key)
        return self._stored(key) in self.files or self._is_implied(key)

    def __getitem__(self, key: str) -> bytes:
        stored = self._stored(key)
        if self._is_implied(key) and stored not in self.files:
            return b'{"zarr_format": 2}'
        try:
            return self.files[stored]
        except (BadZipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{self.files.path}: '{key}' is damaged ({error}); copy or pack the zip again"
            ) from error

    def listdir(self, path: str = "") -> list[str]:
        """Return the names in a folder of the view."""
        if not path:
            return list(self.folders)
        return [name for name in self.files.listdir(self._stored(path)) if name]

    def __iter__(self) -> Iterator[str]:
        names = {folder: name for name, folder in self.folders.items()}
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

    def _stored(self, key: str) -> str:
        """Return the key in the store for a key of the view."""
        first, slash, rest = key.partition("/")
        return self.root + self.folders.get(first, first) + slash + rest

    def _is_implied(self, key: str) -> bool:
        """Whether a key is the .zgroup of the root or of a crop, which the organisers add."""
        folder = key.removesuffix(".zgroup").rstrip("/")
        return key.endswith(".zgroup") and (not folder or folder in self.crops)


def _refuse_two_of_one(path: str, folders: Sequence[str]) -> None:
    """Raise UserError if two folders are of one crop: one of them would be left out."""
    for name, times in Counter(map(crop_name, folders)).items():
        if times > 1:
            both = [folder for folder in folders if crop_name(folder) == name]
            raise UserError(f"{path}: {' and '.join(both)} are both {name}; take one out")


def _refuse_beside(path: str, enclosing: str, folders: Sequence[str]) -> None:
    """Raise UserError if crops lie beside the .zarr folder that is taken for the whole."""
    crops = [folder for folder in folders if crop_name(folder).startswith("crop")]
    if crops:
        raise UserError(
            f"{path}: {crops[0]} beside {enclosing}, in which there are crops, too; take out what "
            "is not to be scored"
        )


def _locate(path: Path) -> Path:
    """Return the zip or zarr folder that a path stands for. Raises as `opened` does."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such submission; write it with pack-results")
    zips = sorted(path.glob("*.zip")) if path.is_dir() else [path]
    if len(zips) > 1:
        raise UserError(f"{path}: {len(zips)} zips in it; name the one that is meant")
    return zips[0] if zips else path


def _zip_problems(path: Path) -> list[str]:
    """Return why a zip is incomplete, or not safe to unpack; the files in it are not read."""
    try:
        with ZipFile(path) as file:
            files = file.infolist()
    except (BadZipFile, EOFError, zlib.error) as error:
        return [_not_whole(error)]
    problems = _name_problems(info.filename for info in files)
    for info in files:
        problems += [f"'{info.filename[:100]}' {problem}" for problem in _file_problems(info)]
    unpacked = sum(info.file_size for info in files)
    if unpacked > min(MAX_BYTES, MAX_RATIO * path.stat().st_size):
        # sizes as the zip states them: nothing is unpacked to find out
        problems.append(
            f"{path.stat().st_size:,} bytes unpack to {unpacked:,}; "
            f"at most {MAX_BYTES:,} and {MAX_RATIO} times the size are taken"
        )
    return problems


def _damaged(path: Path) -> list[str]:
    """Return a sentence about the first file of a zip whose checksum is wrong; reads all files."""
    try:
        with ZipFile(path) as file:
            damaged = file.testzip()
    except (BadZipFile, EOFError, zlib.error) as error:
        return [_not_whole(error)]
    return [f"'{damaged}' is damaged; copy or pack the zip again"] if damaged else []


def _not_whole(error: Exception) -> str:
    return f"not a whole zip ({error}); copy or pack it again"


def _name_problems(names: Iterable[str]) -> list[str]:
    """Return a sentence for each name of two files: readers differ in which of them they take."""
    times = Counter(_as_unpacked(name) for name in names)
    problems = []
    for name, number in times.items():
        if number > 1:
            problems.append(f"'{name[:100]}' is in it {number} times; zip the zarr folder again")
    return problems


def _as_unpacked(name: str) -> str:
    """Return a name in a zip as `opened` reads it: 557/mito/0 becomes crop557/mito/0."""
    parts = name.rstrip("/").split("/")
    enclosing = parts[:1] if parts[0].endswith(".zarr") else []
    inside = parts[len(enclosing) :]
    return "/".join([*enclosing, *map(crop_name, inside[:1]), *inside[1:]])


def _file_problems(info: ZipInfo) -> list[str]:
    """Return why a file in a zip is not safe to unpack, a sentence each."""
    name = info.orig_filename  # ZipInfo.filename is mended already: cut at \0, \ turned to /
    problems = []
    is_absolute = re.match(r"/|[A-Za-z]:", name)
    # also a//b and ./a: another name for a file that may be there already
    has_steps = {"", ".", ".."} & set(name.removesuffix("/").split("/"))
    if is_absolute or has_steps or set(name) & {"\\", "\0"}:
        problems.append(
            "points outside of the zip, or is no path of zarr; zip the contents of the zarr folder"
        )
    kind = stat.S_IFMT(info.external_attr >> 16)  # Unix' mode, 0 in zips of other systems
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problems.append("is a link or a device; zip the file itself")
    is_encrypted = info.flag_bits & 1
    if is_encrypted or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        problems.append(
            "is encrypted or packed in an unusual way; zip with deflate or without compression"
        )
    is_metadata = name.rpartition("/")[2].startswith(".z")
    if is_metadata and info.file_size > MAX_METADATA_BYTES:
        problems.append(f"has {info.file_size:,} bytes, too many for metadata; pack it again")
    return problems


def _missing(group: zarr.Group, given: set[str], entries: Sequence[Entry]) -> list[Gap]:
    """Return a gap for each volume of the manifest that is not among the arrays given."""
    missing = []
    for entry in entries:
        if entry.path in given:
            continue
        sentence = "missing; process this crop and class, and pack again"
        if f"{entry.path}/.zgroup" in group.store:
            sentence = "a group, and the organisers read an array; write its finest level there"
        if any(f"{place}zarr.json" in group.store for place in ("", f"{entry.path}/")):
            sentence = "of zarr v3, and the organisers read v2; pack it again"
        missing.append(Gap(entry, gaps.MISSING, sentence))
    return missing


def _missing_problems(absent: Sequence[Gap], entries: Sequence[Entry]) -> list[str]:
    """Return a sentence for each missing volume, or for many of them one table."""
    lines = gaps.sentences(absent, entries)
    if len(absent) <= gaps.LISTED:
        return lines
    table = "\n".join(["missing are " + lines[0], *lines[1:]])
    return [f"{table}\n(what is submitted is scored all the same: check it with --partial)"]


def _group_problems(group: zarr.Group, given: set[str], entries: Sequence[Entry]) -> list[str]:
    """Return how the arrays of a submission differ from the manifest, a sentence each."""
    wanted = {entry.path: entry for entry in entries}
    problems = []
    for name in given - wanted.keys():
        meant = _meant(name, wanted.keys() - given)
        hint = f"did you mean {meant}, which is missing?" if meant else "take it out"
        problems.append(f"{name}: not in the manifest; {hint}")
    for name in given & wanted.keys():
        problems += [f"{name}: {problem}" for problem in _array_problems(wanted[name], group)]
    return problems


def _meant(name: str, missing: Iterable[str]) -> str:
    """Return the missing volume that a surplus one was meant for, by its name; "" if none was."""
    crop, _, of_class = name.partition("/")
    is_in_table = not unknown_names([of_class])
    beside = []
    for path in missing:
        other_crop, _, other_class = path.partition("/")
        if other_crop == crop and not is_in_table:
            beside.append(path)
        # crops are numbered: crop_557 is crop557, and crop558 is not
        is_same_crop = re.sub(r"\D", "", crop) == re.sub(r"\D", "", other_crop)
        if other_class == of_class and is_same_crop:
            return path
    return nearest(name, beside)


def _arrays(group: zarr.Group, path: Path) -> set[str]:
    """Return the names {crop}/{class} of the arrays of a submission."""
    try:
        names = set(group.array_keys())  # beside the crops
        for crop in group.group_keys():
            names |= {f"{crop}/{name}" for name in group[crop].array_keys()}
    except GROUP_ERRORS as error:
        raise UserError(f"{path}: a .zgroup cannot be read ({error}); pack it again") from error
    return names


def _array_problems(entry: Entry, group: zarr.Group) -> list[str]:
    """Return how an array differs from its row of the manifest, a sentence each."""
    try:
        array = open_array(group, entry.path, entry.path)
    except UserError as error:
        return [str(error).removeprefix(f"{entry.path}: ")]
    attributes = array.attrs.asdict()
    problems = []
    if array.dtype.kind not in "ui":
        problems.append(f"{array.dtype}; write unsigned integers")
    if array.shape != entry.shape:
        problems.append(f"shape {array.shape}; write {entry.shape}")
    for key, value in (("voxel_size", entry.voxel_size), ("translation", entry.translation)):
        if not _is_near(attributes.get(key), value):
            problems.append(f"{key} {attributes.get(key)}; write {list(value)}")
    if not problems and entry.name not in INSTANCES and is_soft(samples_of_array(array)):
        problems.append(SOFT)
    return problems


def _is_near(given: object, wanted: Sequence[float]) -> bool:
    """Whether an attribute is these three nm, up to TOLERANCE_NM."""
    if not is_place(given):
        return False
    assert isinstance(given, list)
    return all(abs(a - b) <= TOLERANCE_NM for a, b in zip(given, wanted, strict=True))
