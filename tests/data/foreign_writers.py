"""The same volume, written by other programs: each writes one folder or file and returns its name.

Every volume is `VOLUME` (uint8) or a type that is asked for, voxels of VOXEL nm.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHAPE = (12, 20, 30)
VOXEL = (8.0, 6.0, 4.0)
"""nm, z, y, x: all different, so that a mistaken axis is seen."""
PLACE = (800.0, 600.0, 40.0)
"""nm of the centre of the first voxel, in what has a place."""

VOLUME = np.random.default_rng(5).integers(0, 256, SHAPE, np.uint8)


def create(driver: str, folder: Path, metadata: dict, volume: np.ndarray, **more):
    """Write an array with tensorstore."""
    import tensorstore

    spec = {
        "driver": driver,
        "kvstore": {"driver": "file", "path": str(folder)},
        "metadata": metadata,
        **more,
    }
    array = tensorstore.open(spec, create=True).result()
    array[...] = volume
    return array


def attributes(file: Path, **more) -> None:
    """Add attributes to the JSON in a file."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**content, **more}))


def half(volume: np.ndarray) -> np.ndarray:
    """Every second voxel."""
    return np.ascontiguousarray(volume[::2, ::2, ::2])


def n5_array(folder: Path, volume: np.ndarray, compression: str = "gzip", **more) -> None:
    about = {
        "dataType": str(volume.dtype),
        "dimensions": list(volume.shape[::-1]),
        "blockSize": [16, 8, 4],
        "compression": {"type": compression, **more},
    }
    create("n5", folder, about, volume.T)


def n5_cellmap(root: Path, volume: np.ndarray) -> str:
    """Two levels with pixelResolution and downsamplingFactors, x, y, z."""
    name = "cell.n5/em/raw"
    for number, level in enumerate((volume, half(volume))):
        n5_array(root / name / f"s{number}", level)
        attributes(
            root / name / f"s{number}/attributes.json",
            pixelResolution={"dimensions": VOXEL[::-1], "unit": "nm"},
            downsamplingFactors=[2**number] * 3,
        )
    return name


def n5_of_own_sizes(root: Path, volume: np.ndarray) -> str:
    """The same, where each level has its own size."""
    name = "own.n5/em/raw"
    for number, level in enumerate((volume, half(volume))):
        n5_array(root / name / f"s{number}", level, "bzip2")
        size = [length * 2**number / 1000 for length in VOXEL[::-1]]
        attributes(
            root / name / f"s{number}/attributes.json",
            pixelResolution={"dimensions": size, "unit": "um"},
        )
    return name


def n5_of_a_viewer(root: Path, volume: np.ndarray) -> str:
    """The same, where the group has sizes and scales."""
    name = "viewer.n5/raw"
    for number, level in enumerate((volume, half(volume))):
        n5_array(root / name / f"s{number}", level, "raw")
    attributes(
        root / name / "attributes.json",
        pixelResolution={"dimensions": VOXEL[::-1], "unit": "nm"},
        scales=[[1, 1, 1], [2, 2, 2]],
    )
    return name


def n5_cosem(root: Path, volume: np.ndarray) -> str:
    """multiscales with transform, which names its axes."""
    name = "cosem.n5/em/raw"
    datasets = []
    for number, level in enumerate((volume, half(volume))):
        n5_array(root / name / f"s{number}", level, "blosc", cname="zstd", clevel=1, shuffle=1)
        scale = np.multiply(VOXEL, 2**number)
        transform = {
            "axes": ["z", "y", "x"],
            "scale": scale.tolist(),
            "translate": (PLACE + (scale - VOXEL) / 2).tolist(),
            "units": ["nm"] * 3,
        }
        datasets.append({"path": f"s{number}", "transform": transform})
    attributes(root / name / "attributes.json", multiscales=[{"datasets": datasets}])
    return name


def n5_by_zarr(root: Path, volume: np.ndarray) -> str:
    """One array by zarr 2's N5Store."""
    import warnings

    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will go to another package
        store = zarr.N5Store(str(root / "zarr.n5"))
        group = zarr.open_group(store, mode="w")
        group.create_dataset("raw", data=volume, chunks=(4, 8, 16))
    attributes(
        root / "zarr.n5/raw/attributes.json",
        pixelResolution={"dimensions": VOXEL[::-1], "unit": "nm"},
    )
    return "zarr.n5/raw"


def precomputed(root: Path, volume: np.ndarray, **more) -> str:
    """Two scales, placed by voxel_offset."""
    import tensorstore

    for number, level in enumerate((volume, half(volume))):
        scale = {
            "size": list(level.shape[::-1]),
            "voxel_offset": [int(p / v / 2**number) for p, v in zip(PLACE, VOXEL, strict=True)][
                ::-1
            ],
            "chunk_size": [16, 8, 4],
            "resolution": [length * 2**number for length in VOXEL[::-1]],
            "encoding": "raw",
            **more,
        }
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": str(root / "ng")},
            "multiscale_metadata": {
                "data_type": str(volume.dtype),
                "num_channels": 1,
                "type": "image",
            },
            "scale_metadata": scale,
        }
        array = tensorstore.open(spec, create=True, open=True).result()
        array[..., 0] = level.T
    return "ng"


def precomputed_sharded(root: Path, volume: np.ndarray) -> str:
    sharding = {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": 1,
        "hash": "identity",
        "minishard_bits": 2,
        "shard_bits": 1,
        "minishard_index_encoding": "gzip",
        "data_encoding": "gzip",
    }
    return precomputed(root, volume, sharding=sharding)


def ngff_attributes(version: str) -> dict:
    datasets = []
    for number in range(2):
        scale = np.multiply(VOXEL, 2**number)
        datasets.append(
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1, *scale.tolist()]},
                    {
                        "type": "translation",
                        "translation": [0, *(PLACE + (scale - VOXEL) / 2).tolist()],
                    },
                ],
            }
        )
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    about = {"axes": axes, "datasets": datasets}
    if version == "0.4":
        return {"multiscales": [{"version": version, **about}]}
    return {"ome": {"version": version, "multiscales": [about]}}


def zarr2(root: Path, volume: np.ndarray) -> str:
    """OME-NGFF 0.4 with an axis c, levels 0 and 1, by tensorstore."""
    name = "cell2.zarr/raw"
    for number, level in enumerate((volume, half(volume))):
        about = {
            "shape": [1, *level.shape],
            "chunks": [1, 4, 8, 16],
            "dtype": level.dtype.str,
            "compressor": {"id": "zstd", "level": 1},
            "dimension_separator": "/",
            "fill_value": 0,
        }
        create("zarr", root / name / str(number), about, level[None])
    attributes(root / name / ".zgroup", zarr_format=2)
    attributes(root / name / ".zattrs", **ngff_attributes("0.4"))
    return name


def zarr3(root: Path, volume: np.ndarray) -> str:
    """OME-NGFF 0.5 with an axis c, levels 0 and 1, sharded, by tensorstore."""
    name = "cell3.zarr/raw"
    inner = {
        "chunk_shape": [1, 4, 4, 8],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}],
    }
    for number, level in enumerate((volume, half(volume))):
        about = {
            "shape": [1, *level.shape],
            "data_type": str(level.dtype),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [1, 8, 8, 16]},
            },
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        }
        create("zarr3", root / name / str(number), about, level[None])
    group = {"zarr_format": 3, "node_type": "group", "attributes": ngff_attributes("0.5")}
    attributes(root / name / "zarr.json", **group)
    return name


def hdf5(root: Path, volume: np.ndarray) -> str:
    """As CREMI and funlib write it: the offset is the corner of the first voxel."""
    import h5py

    with h5py.File(root / "cell.h5", "w") as file:
        array = file.create_dataset(
            "volumes/raw", data=volume, chunks=(4, 8, 16), compression="gzip"
        )
        array.attrs["resolution"] = VOXEL
        array.attrs["offset"] = np.subtract(PLACE, np.divide(VOXEL, 2))
        file["volumes/tables"] = np.zeros(5)
    return "cell.h5:/volumes/raw"


def hdf5_of_ilastik(root: Path, volume: np.ndarray) -> str:
    """One volume in the file."""
    import h5py

    with h5py.File(root / "ilastik.h5", "w") as file:
        file["data"] = volume
        file["data"].attrs["element_size_um"] = np.array(VOXEL, np.float64) / 1000
    return "ilastik.h5"


def mrc(root: Path, volume: np.ndarray) -> str:
    import mrcfile

    # bytes of MRC are signed
    stored = volume.astype(np.uint16) if volume.dtype == np.uint8 else volume
    with mrcfile.new(root / "cell.mrc") as file:
        file.set_data(stored)
        file.voxel_size = tuple(10 * length for length in VOXEL[::-1])
    return "cell.mrc"


def nifti(root: Path, volume: np.ndarray) -> str:
    """Micrometres, x and y pointing back, as programs of ITK write it; packed."""
    import nibabel

    way = np.diag([*(-length / 1000 for length in VOXEL[:0:-1]), VOXEL[0] / 1000, 1])
    way[:3, 3] = np.multiply(PLACE[::-1], (-1, -1, 1)) / 1000
    return _nifti(root / "cell.nii.gz", nibabel.Nifti1Image(volume.T, way, dtype=volume.dtype))


def nifti2(root: Path, volume: np.ndarray) -> str:
    """Version 2, big-endian, without a place."""
    import nibabel

    header = nibabel.Nifti2Header(endianness=">")
    header.set_data_dtype(volume.dtype)
    image = nibabel.Nifti2Image(volume.T, None, header)
    image.header.set_zooms([length / 1000 for length in VOXEL[::-1]])
    return _nifti(root / "cell.nii", image)


def _nifti(path: Path, image) -> str:
    image.header.set_xyzt_units("micron")
    image.to_filename(path)
    return path.name


def nrrd(root: Path, volume: np.ndarray) -> str:
    """As 3D Slicer writes it, packed, in nm."""
    header = {
        "space dimension": 3,
        "space directions": np.diag(np.multiply(VOXEL[::-1], (-1, -1, 1))),
        "space origin": np.multiply(PLACE[::-1], (-1, -1, 1)),
        "space units": ["nm", "nm", "nm"],
    }
    return _nrrd(root / "cell.nrrd", volume, header)


def nrrd_detached(root: Path, volume: np.ndarray) -> str:
    """Header and voxels apart, not packed, spacings in um."""
    spacings = [length / 1000 for length in VOXEL[::-1]]
    header = {"spacings": spacings, "units": ["um"] * 3, "encoding": "raw"}
    return _nrrd(root / "cell.nhdr", volume, header)


def _nrrd(path: Path, volume: np.ndarray, header: dict) -> str:
    import nrrd

    nrrd.write(str(path), volume.T, header, detached_header=path.suffix == ".nhdr")
    return path.name


def tiff_imagej(root: Path, volume: np.ndarray) -> str:
    import tifffile

    tifffile.imwrite(
        root / "cell.tif",
        volume,
        imagej=True,
        resolution=(1000 / VOXEL[2], 1000 / VOXEL[1]),
        metadata={"spacing": VOXEL[0] / 1000, "unit": "um", "axes": "ZYX"},
    )
    return "cell.tif"


def tiff_ome(root: Path, volume: np.ndarray) -> str:
    """Tiles, compressed, BigTIFF."""
    import tifffile

    sizes = dict(zip(("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX"), VOXEL, strict=True))
    units = {f"{name}Unit": "nm" for name in sizes}
    tifffile.imwrite(
        root / "cell.ome.tif",
        volume,
        bigtiff=True,
        tile=(16, 16),
        compression="zlib",
        predictor=volume.dtype.kind == "u",
        metadata={"axes": "ZYX", **sizes, **units},
    )
    return "cell.ome.tif"


def by_name(writer: Callable) -> str:
    """For the names of tests."""
    return writer.__name__


Writer = Callable[[Path, np.ndarray], str]

MEASURED: tuple[Writer, ...] = (
    *(n5_cellmap, n5_of_own_sizes, n5_of_a_viewer, n5_cosem, n5_by_zarr),
    *(precomputed, precomputed_sharded, zarr2, zarr3),
    *(hdf5, hdf5_of_ilastik, mrc, tiff_imagej, tiff_ome),
    *(nifti, nifti2, nrrd, nrrd_detached),
)
"""Those that say how large a voxel is."""

PLACED = (n5_cosem, precomputed, precomputed_sharded, zarr2, zarr3, hdf5, nifti, nrrd)
"""Those that say where the volume is."""


# Those that do not


def tiff_pages(root: Path, volume: np.ndarray) -> str:
    """Big-endian strips of an odd number of rows."""
    import tifffile

    with tifffile.TiffWriter(root / "plain.tif", byteorder=">") as file:
        for layer in volume:
            file.write(layer, rowsperstrip=7, compression="zlib", contiguous=False, metadata=None)
    return "plain.tif"


def tiff_slices(root: Path, volume: np.ndarray) -> str:
    import tifffile

    (root / "slices").mkdir()
    for number, layer in enumerate(volume):
        tifffile.imwrite(root / f"slices/s{number}.tif", layer)  # s10 follows s9
    return "slices"


def png_slices(root: Path, volume: np.ndarray) -> str:
    from PIL import Image

    (root / "png").mkdir()
    for number, layer in enumerate(volume):
        Image.fromarray(layer).save(root / f"png/s{number:03}.png")
    return "png"


def plain_zarr2(root: Path, volume: np.ndarray) -> str:
    import zarr

    zarr.save_array(str(root / "plain.zarr"), volume, chunks=(4, 8, 16))
    return "plain.zarr"


def plain_zarr3(root: Path, volume: np.ndarray) -> str:
    about = {"shape": list(volume.shape), "data_type": str(volume.dtype)}
    create("zarr3", root / "plain3.zarr", about, volume)
    return "plain3.zarr"


def plain_n5(root: Path, volume: np.ndarray) -> str:
    n5_array(root / "plain.n5", volume)
    return "plain.n5"


def plain_hdf5(root: Path, volume: np.ndarray) -> str:
    import h5py

    with h5py.File(root / "plain.hdf5", "w") as file:
        file["data"] = volume
    return "plain.hdf5"


def plain_nifti(root: Path, volume: np.ndarray) -> str:
    import nibabel

    # what it writes where nothing is said
    image = nibabel.Nifti1Image(volume.T, np.eye(4), dtype=volume.dtype)
    image.to_filename(root / "plain.nii")
    return "plain.nii"


def plain_nrrd(root: Path, volume: np.ndarray) -> str:
    """As SimpleITK writes it where nothing is said."""
    header = {"space": "left-posterior-superior", "space directions": np.eye(3)}
    return _nrrd(root / "plain.nrrd", volume, header | {"space origin": np.zeros(3)})


UNMEASURED: tuple[Writer, ...] = (
    *(tiff_pages, tiff_slices, png_slices, plain_zarr2, plain_zarr3, plain_n5, plain_hdf5),
    *(plain_nifti, plain_nrrd),
)
