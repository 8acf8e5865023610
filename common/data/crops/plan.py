"""Plan the decoding of a crop: what a run needs of it, and what is read and written for that.

`common.data.crops.decode` does what a `Decoding` says, `common.data.crops.opened` opens the result.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common.config.input_channels import InputChannel
from common.data.crops import pseudo
from common.data.crops.cache import label_stamp, raw_stamp, stamp_of_labels
from common.data.crops.input_channels import ChannelVolume, open_channel
from common.data.crops.palette import Rules
from common.data.splits.split import Row
from common.data.volumes import ngff
from common.data.volumes.annotation import encoding_of
from common.data.volumes.box import Box, Corners
from common.data.volumes.level import Grid, Level, MissingChunks
from common.data.volumes.placement import check_crop, check_detail, slack_nm
from common.data.volumes.raw import Raw, averaged_grid, open_raw, reduction
from common.data.volumes.sources.excerpt import INSTANCE_TYPE
from common.errors import UserError
from common.files import key_of
from common.talk import nm

EXTRA_VOXELS = (1, 2)
"""Whole voxels of raw kept beyond the margin, below and above.

The centre of a patch moves by up to half a voxel onto the grid of the raw, and interpolation reads
the next voxel.
"""

FORMAT = 4
"""Version of the decoded files. It is part of the key of a crop: a new version decodes anew."""


@dataclass(frozen=True)
class CropRequest:
    """What a run needs of its crops."""

    classes: tuple[str, ...]
    input_scale: Sequence[float]
    """Voxel size (nm) of the raw patch: raw is read from the level nearest to it."""
    target_scale: Sequence[float]
    """Voxel size (nm) of the target patch: finer labels are reduced towards it."""
    patch_nm: np.ndarray
    """(3,) size of the raw patch in nm; a smaller raw volume is refused."""
    margins_nm: Mapping[str, np.ndarray]
    """How far around its labels the raw of a crop is kept, (3,) nm by usage ("train", "validate"),
    see `sampling.margins_nm`."""
    raw_range: tuple[float, ...] = ()
    """Raw values that become 0 and 1; the range of the unsigned integer type if empty."""
    raw_sections: int = 0
    """Sections on each side with which every section of raw is averaged."""
    raw_is_stretched: bool = False
    """Whether `raw_normalization` measures the contrast of each volume."""
    rules: Rules = field(default_factory=Rules)
    """What labels imply for the classes that a crop does not annotate."""
    with_ids: tuple[str, ...] = ()
    """Classes whose objects are to be told apart."""
    counter_classes: tuple[str, ...] = ()
    input_channels: tuple[InputChannel, ...] = ()
    """Volumes that the network gets beside raw."""
    folder: Path = Path()
    """The experiment's, from which their relative paths start."""


class GivenUp(Exception):
    """Ends a thread whose result nobody waits for."""


@dataclass(frozen=True)
class ChannelBlock:
    """The voxels of a further input channel around a crop."""

    volume: ChannelVolume
    start: np.ndarray
    """(3,) first voxel of the block in the volume; may lie outside of it."""
    grid: Grid
    """The block to be written."""

    @property
    def file(self) -> str:
        """Its name in the folder of the crop."""
        return f"channel_{self.volume.name}.npy"

    @property
    def bytes(self) -> int:
        """Bytes that will be written."""
        return int(np.prod(self.grid.shape)) * self.volume.raw.dtype.itemsize

    @property
    def identity(self) -> list:
        """Everything that its voxels depend on."""
        raw = self.volume.raw
        stop = self.start + self.grid.shape
        return [
            "channel",
            self.volume.record(),
            raw.factor.tolist(),
            self.start.tolist(),
            self.grid.shape,
            raw_stamp(raw.level, self.start * raw.factor, stop * raw.factor),
        ]


@dataclass(frozen=True)
class Decoding:
    """What decoding one crop will read and write."""

    row: Row
    names: tuple[str, ...]
    """Annotated classes whose labels are read."""
    raw: Raw
    raw_start: np.ndarray
    """(3,) first voxel of the block in the voxels of `raw`; may lie outside of the volume."""
    raw_grid: Grid
    """The raw to be written."""
    label_factor: np.ndarray
    """(3,) number of annotated voxels along each axis that are reduced to one."""
    label_whole: Grid
    """All of the labels, reduced."""
    label_grid: Grid
    """The labels to be written: those that lie in the raw."""
    missing_raw: MissingChunks
    """Chunks of raw where the labels are, and how many of them are not there."""
    with_ids: tuple[str, ...]
    """Those of `names` whose objects are told apart."""
    channels: tuple[ChannelBlock, ...]
    """Further input channels to be written."""
    key: str
    """Folder name in the cache: a hash of everything that the result depends on."""
    given_up: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when nobody waits for the result any more."""

    @property
    def label_start(self) -> np.ndarray:
        """(3,) int: the first voxel to be written of all of the reduced labels."""
        steps = (self.label_grid.origin - self.label_whole.origin) / self.label_grid.scale
        return np.rint(steps).astype(int)

    def check_wanted(self) -> None:
        """Raise GivenUp if nobody waits for the result any more; asked before each long step."""
        if self.given_up.is_set():
            raise GivenUp

    @property
    def bytes(self) -> int:
        """Bytes that will be written, if labels take one byte per voxel, and ids one per class."""
        raw = int(np.prod(self.raw_grid.shape)) * self.raw.dtype.itemsize
        of_channels = sum(block.bytes for block in self.channels)
        return raw + int(np.prod(self.label_grid.shape)) * (1 + len(self.with_ids)) + of_channels


# Planning


def plan_decoding(row: Row, request: CropRequest) -> Decoding:
    """Plan what is read of a crop. Raises UserError or FileNotFoundError where it does not fit."""
    raw = open_raw(
        row.raw,
        request.input_scale,
        request.raw_range,
        request.raw_sections,
        is_stretched=request.raw_is_stretched,
    )
    label = ngff.open_levels(row.class_volume(row.annotated[0]))[0]
    check_crop(row.crop, label, raw.level, raw.finest_nm)
    check_detail(label, request.target_scale, "the target patch")
    _check_size(row, raw, request.patch_nm)

    names = _classes_to_read(row, request)
    with_ids = told_apart(row, [name for name in request.with_ids if name in names])
    factor = reduction(request.target_scale, label.scale, label.shape)
    whole = averaged_grid(label, factor)
    kept = _within_raw(whole, label, raw.level)
    lower, upper = label.box() if kept.shape == whole.shape else kept.box()
    margin = request.margins_nm[row.usage]
    kept_raw = raw_voxels(lower - margin, upper + margin, raw.grid)
    job = Decoding(
        row=row,
        names=names,
        raw=raw,
        raw_start=kept_raw.start,
        raw_grid=raw.grid.part(kept_raw),
        label_factor=factor,
        label_whole=whole,
        label_grid=kept,
        # around it EM may end, and be stored without chunks
        missing_raw=raw.level.missing_in(lower, upper),
        with_ids=with_ids,
        channels=_plan_channels(row, request, raw, (lower, upper)),
        key="",
    )
    return replace(job, key=_key_of(job))


def _within_raw(whole: Grid, label: Level, raw: Level) -> Grid:
    """Return the grid of the labels that lie in the raw.

    Those beyond have nothing to be learnt from: there raw is mirrored, and labels are not.

    whole: of all labels, reduced. label: as they are annotated.
    """
    raw_lower, raw_upper = raw.box()
    slack = slack_nm(label, raw)
    shape = np.array(whole.shape)
    first = np.ceil(whole.in_voxels(raw_lower - slack) - 1e-6).astype(int)
    last = np.floor(whole.in_voxels(raw_upper + slack) + 1e-6).astype(int)
    first = np.clip(first, 0, shape - 1)
    last = np.clip(last, first + 1, shape)
    return whole.part(Box(first, last))


def _key_of(job: Decoding) -> str:
    """Return the key of what will be decoded."""
    raw = job.raw
    start = job.raw_start
    stop = start + job.raw_grid.shape
    along_z = np.array([raw.sections, 0, 0])
    identity = [
        FORMAT,
        str(job.row.raw),
        str(job.row.crop),
        job.names,
        raw.level.path.name,
        raw.factor.tolist(),
        start.tolist(),
        job.raw_grid.shape,
        job.label_factor.tolist(),
        raw.raw_range,
        raw_stamp(raw.level, (start - along_z) * raw.factor, (stop + along_z) * raw.factor),
    ]
    # crops that were decoded without either are found as before
    if raw.sections:
        identity.append(["sections", raw.sections])
    if job.label_grid.shape != job.label_whole.shape:
        identity.append(["within raw", job.label_start.tolist(), job.label_grid.shape])
    for name in job.names:
        volume = job.row.class_volume(name)
        identity.append(stamp_of_labels(volume))
        if (volume / pseudo.ARRAY).is_dir():
            identity.append(label_stamp(volume, pseudo.ARRAY))
    if job.with_ids:
        identity.append(["ids", *job.with_ids])
    identity += [block.identity for block in job.channels]
    return key_of(identity)


def _plan_channels(
    row: Row, request: CropRequest, raw: Raw, box: Corners
) -> tuple[ChannelBlock, ...]:
    """Return the blocks of the further input channels that are kept. box: of the crop's labels."""
    lower, upper = box
    margin = request.margins_nm[row.usage]
    around = lower - margin, upper + margin
    # of all usages, so that it is predicted again once
    most = max(float(of_usage.max()) for of_usage in request.margins_nm.values())
    blocks = []
    for channel in request.input_channels:
        volume = open_channel(channel, request.folder, row.key, request.input_scale)
        volume.check_covers(around, raw.grid, where=f"crop {row.name}", margin=most)
        kept = raw_voxels(*around, volume.raw.grid)
        blocks.append(ChannelBlock(volume, kept.start, volume.raw.grid.part(kept)))
    return tuple(blocks)


def told_apart(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes among `names` whose volumes in a crop tell objects apart.

    A class that only networks labelled in the crop is left out. Raises UserError for a class that
    people annotated as a mask.
    """
    numbered = []
    for name in names:
        level = ngff.open_levels(row.class_volume(name))[0]
        if not encoding_of(level, name).is_said_to_be_mask:
            numbered.append(name)
        elif pseudo.of_networks(level) is None:
            raise UserError(
                f"{level.group}: class '{name}' is a mask by its annotation_type, without ids that "
                "tell objects apart, which derived channels are made of; leave them out, or number "
                f'its objects and write annotation_type.type = "{INSTANCE_TYPE}" into its .zattrs'
            )
    return tuple(numbered)


def _classes_to_read(row: Row, request: CropRequest) -> tuple[str, ...]:
    """Return the classes to read: those that the run learns, or all if any must be inferred."""
    infers = request.rules.use_mutual_exclusion or request.rules.infer_groups
    if infers and not set(request.classes) <= set(row.annotated):
        return row.annotated
    # those of the others that the learnt ones are told apart from where they are unknown
    wanted = {*request.classes, *request.counter_classes}
    return tuple(name for name in row.annotated if name in wanted)


def is_smaller(raw_extent: np.ndarray, patch_nm: np.ndarray) -> bool:
    """Return whether raw is too small for a patch; both (3,) nm."""
    # a patch may be 2 % larger: mirroring fills that in
    return bool((raw_extent < 0.98 * patch_nm).any())


def _check_size(row: Row, raw: Raw, patch_nm: np.ndarray) -> None:
    """Raise UserError if raw is smaller than the input patch, (3,) nm."""
    lower, upper = raw.level.box()
    extent = upper - lower
    if is_smaller(extent, patch_nm):
        raise UserError(
            f"{row.raw}: {nm(extent)} nm of raw, smaller than the input patch of "
            f"{nm(patch_nm)} nm; use a smaller input shape (the command fingerprint suggests one), "
            "or remove the crop from the datasplit"
        )


def raw_voxels(lower: np.ndarray, upper: np.ndarray, grid: Grid) -> Box:
    """Return the voxels of `grid` that are kept for a box (nm).

    They may lie outside of the volume, where raw is mirrored.
    """
    below, above = EXTRA_VOXELS
    start = np.floor((lower - grid.origin) / grid.scale).astype(int) - below
    stop = np.ceil((upper - grid.origin) / grid.scale).astype(int) + above
    return Box(start, stop)
