"""Write the volumes in tests/data/recorded/ with programs that need zarr 3.

The public toolbox's data package needs zarr 2, so that these programs cannot be installed beside
it; what they write is kept. In an environment of its own:

    pip install zarr==3.1.6 ome-zarr==0.18.0 ngff-zarr==0.50.0
    python tests/data/record_foreign.py tests/data/recorded
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import ngff_zarr
import numpy as np
import zarr
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_image, write_multiscale

# as tests/data/foreign_writers.py has them
SHAPE = (12, 20, 30)
VOXEL = (8.0, 6.0, 4.0)
PLACE = (800.0, 600.0, 40.0)
VOLUME = np.random.default_rng(5).integers(0, 256, SHAPE, np.uint8)
HALF = np.ascontiguousarray(VOLUME[::2, ::2, ::2])

UNITS = dict.fromkeys("zyx", "nanometer")


def zarr3_array(path: str) -> None:
    """A sharded array by zarr-python 3, with attributes of this field."""
    array = zarr.create_array(
        path,
        data=VOLUME,
        chunks=(4, 4, 8),
        shards=(8, 8, 16),
        zarr_format=3,
        compressors=zarr.codecs.BloscCodec(cname="zstd"),
    )
    array.attrs.update({"voxel_size": VOXEL, "offset": PLACE})


def zarr3_of_format_2(path: str) -> None:
    """An array of zarr v2 by zarr-python 3."""
    array = zarr.create_array(path, data=VOLUME, chunks=(4, 8, 16), zarr_format=2)
    array.attrs.update({"voxel_size": VOXEL, "offset": PLACE})


def transformations() -> list[list[dict]]:
    """Scale and translation of both levels."""
    levels = []
    for number in range(2):
        scale = np.multiply(VOXEL, 2**number)
        place = PLACE + (scale - VOXEL) / 2
        levels.append(
            [
                {"type": "scale", "scale": scale.tolist()},
                {"type": "translation", "translation": place.tolist()},
            ]
        )
    return levels


def ome_zarr(path: str, zarr_format: int, fmt: FormatV04 | FormatV05) -> None:
    """By ome-zarr, of a pyramid that is given."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    write_multiscale(
        [VOLUME, HALF],
        group,
        fmt=fmt,
        axes=axes,
        coordinate_transformations=transformations(),
    )


def ome_zarr_04(path: str) -> None:
    ome_zarr(path, 2, FormatV04())


def ome_zarr_05(path: str) -> None:
    ome_zarr(path, 3, FormatV05())


def ome_zarr_tczyx(path: str) -> None:
    """Five axes, without a place: its own pyramid."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    scale = dict(zip("zyx", VOXEL, strict=True))
    write_image(
        VOLUME[None, None],
        group,
        fmt=FormatV05(),
        axes="tczyx",
        scale={"t": 1, "c": 1, **scale},
        axes_units=UNITS,
        scale_factors=[2],
    )


def ngff(path: str, version: str, **more) -> None:
    """By ngff-zarr, whose own pyramid has other voxels than HALF."""
    image = ngff_zarr.to_ngff_image(
        VOLUME,
        dims=("z", "y", "x"),
        scale=dict(zip("zyx", VOXEL, strict=True)),
        translation=dict(zip("zyx", PLACE, strict=True)),
        axes_units=UNITS,
    )
    multiscales = ngff_zarr.to_multiscales(image, scale_factors=[2], chunks=8)
    ngff_zarr.to_ngff_zarr(path, multiscales, version=version, **more)


def ngff_zarr_04(path: str) -> None:
    ngff(path, "0.4")


def ngff_zarr_05_sharded(path: str) -> None:
    ngff(path, "0.5", chunks_per_shard=2)


WRITERS = (
    *(zarr3_array, zarr3_of_format_2, ome_zarr_04, ome_zarr_05, ome_zarr_tczyx),
    *(ngff_zarr_04, ngff_zarr_05_sharded),
)


def record(folder: Path) -> None:
    """Write an archive of each volume."""
    for writer in WRITERS:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / f"{writer.__name__}.zarr"
            writer(str(root))
            with zipfile.ZipFile(folder / f"{writer.__name__}.zip", "w") as archive:
                for file in sorted(root.rglob("*")):
                    if file.is_file():
                        archive.write(file, file.relative_to(scratch), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
