"""The phantom cell: anatomy, labels that obey the class table, and the layout on disk."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy import ndimage

from common.classes import ATOM_IDS, GROUP_ATOMS, INSTANCES, TESTED, exclusions
from common.data.volumes import layout
from common.data.volumes.ngff import open_levels
from testing.phantom import (
    PARTIAL_SETS,
    Phantom,
    class_volume,
    make_phantom,
    write_phantom,
)

SHAPE = (112, 152, 152)
COARSER_SHAPE, COARSER = (94, 126, 126), 9.6
SEED = 2
CROP = 48
NUCLEUS = GROUP_ATOMS["nuc"]
INSIDE_NUCLEUS = NUCLEUS - GROUP_ATOMS["ne"]
IN_CYTOSOL = ("golgi", "ves", "endo", "lyso", "ld", "perox", "mito", "mt", "er")
BORDERED_BY = {
    "ecs": {"pm"},
    **{f"{name}_lum": {f"{name}_mem"} for name in ("golgi", "ves", "endo", "lyso", "ld", "perox")},
    "mito_lum": {"mito_mem", "mito_ribo"},
    "mito_ribo": {"mito_mem", "mito_lum"},
    "er_lum": {"er_mem", "eres_mem", "eres_lum"},
    "eres_lum": {"er_mem", "eres_mem", "er_lum"},
    "ne_lum": {"ne_mem", "np_out"},
    "mt_in": {"mt_out"},
}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(SHAPE, seed=SEED)


@pytest.fixture(scope="module")
def coarser() -> Phantom:
    """The same cell in larger voxels (nm)."""
    return make_phantom(COARSER_SHAPE, COARSER, seed=SEED)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Phantom]:
    """A data root as `write_phantom` leaves it, and the phantom that it made for that."""
    root = tmp_path_factory.mktemp("data")
    made = []

    def make_and_keep(*arguments) -> Phantom:
        made.append(make_phantom(*arguments))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("testing.phantom.make_phantom", make_and_keep)
        write_phantom(root, SEED, SHAPE, validate_crops=2, crop_size=CROP)
    return root, made[0]


@pytest.fixture(scope="module")
def root(written: tuple[Path, Phantom]) -> Path:
    return written[0]


@pytest.fixture(scope="module")
def fine_root(tmp_path_factory: pytest.TempPathFactory, phantom: Phantom) -> Path:
    """Two crops with labels of 4 nm; the first annotates three classes, the second two."""
    root = tmp_path_factory.mktemp("fine")
    chosen = {1: ["mito", "er_mem", "cyto"], 2: ["nuc", "ecs"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("testing.phantom.make_phantom", lambda shape, voxel_size, seed: phantom)
        write_phantom(
            root,
            SEED,
            SHAPE,
            train_crops=1,
            validate_crops=1,
            crop_size=CROP,
            annotated=chosen.__getitem__,
            label_voxel_size=4.0,
        )
    return root


@pytest.fixture(scope="module")
def neighbours(phantom: Phantom) -> dict[str, set[str]]:
    """For each atom the other atoms that share a voxel face with it."""
    names = {value: name for name, value in ATOM_IDS.items()}
    touching: dict[str, set[str]] = {name: set() for name in ATOM_IDS}
    for axis in range(3):
        atoms = np.moveaxis(phantom.atoms, axis, 0).astype(np.uint16)
        for pair in np.unique(atoms[1:] * 256 + atoms[:-1]):
            before = names[int(pair) % 256]
            after = names[int(pair) // 256]
            if before != after:
                touching[before].add(after)
                touching[after].add(before)
    return touching


def rows(root: Path) -> list[tuple[str, Path, list[str]]]:
    """(usage, crop folder, annotated classes) of each line of the datasplit."""
    with (root / "phantom" / "datasplit.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    crops = [(usage, root / store, *path.split("/[")) for usage, _, _, store, path in lines]
    return [
        (usage, store / crop, bracket.removesuffix("]").split(","))
        for usage, store, crop, bracket in crops
    ]


def label(folder: Path, name: str) -> np.ndarray:
    return open_levels(folder / name)[0].array[:]


def start_voxel(folder: Path, name: str) -> np.ndarray:
    """First voxel of the image that the label covers, from the corners of both in nm."""
    em = open_levels(folder.parents[3] / layout.RAW)[0]
    return (open_levels(folder / name)[0].box()[0] - em.box()[0]) / em.scale


def test_the_same_seed_gives_the_same_arrays(
    phantom: Phantom, written: tuple[Path, Phantom]
) -> None:
    again = written[1]
    assert again is not phantom
    np.testing.assert_array_equal(again.raw, phantom.raw)
    np.testing.assert_array_equal(again.atoms, phantom.atoms)
    for name in INSTANCES:
        np.testing.assert_array_equal(again.instances[name], phantom.instances[name])


def test_another_seed_gives_another_cell(coarser: Phantom) -> None:
    other = make_phantom(COARSER_SHAPE, COARSER, seed=SEED + 1)
    assert (other.atoms != coarser.atoms).mean() > 0.1
    assert (other.raw != coarser.raw).mean() > 0.9


def test_every_voxel_holds_an_atom_and_every_tested_atom_occurs(phantom: Phantom) -> None:
    present = set(np.unique(phantom.atoms).tolist())
    assert present <= set(ATOM_IDS.values())
    assert present >= {ATOM_IDS[name] for name in TESTED if name in ATOM_IDS}


def test_volumes_have_the_types_that_the_docstrings_promise(phantom: Phantom) -> None:
    assert phantom.raw.shape == phantom.atoms.shape == SHAPE
    assert phantom.raw.dtype == phantom.atoms.dtype == np.uint8
    assert set(phantom.instances) == set(INSTANCES)
    assert class_volume(phantom, "mito").dtype == class_volume(phantom, "er").dtype == np.uint8


@pytest.mark.parametrize("group", [name for name in TESTED if name in GROUP_ATOMS])
def test_a_group_is_the_union_of_its_atoms(phantom: Phantom, group: str) -> None:
    union = np.isin(phantom.atoms, [ATOM_IDS[atom] for atom in GROUP_ATOMS[group]])
    np.testing.assert_array_equal(class_volume(phantom, group) > 0, union)


@pytest.mark.parametrize("name", INSTANCES)
def test_each_object_is_one_piece_and_touches_no_other_of_its_class(
    phantom: Phantom, name: str
) -> None:
    ids = phantom.instances[name]
    pieces, count = ndimage.label(ids > 0, np.ones((3, 3, 3)))
    assert count == ids.max() == len(np.unique(ids)) - 1
    assert len(np.unique(pieces.astype(np.int64) * 65536 + ids)) == count + 1


@pytest.mark.parametrize("atom", BORDERED_BY)
def test_a_lumen_touches_only_what_encloses_it(neighbours: dict[str, set[str]], atom: str) -> None:
    assert neighbours[atom] <= BORDERED_BY[atom]
    assert neighbours[atom]


@pytest.mark.parametrize("group", IN_CYTOSOL)
def test_organelles_of_the_cytosol_touch_nothing_but_cytosol(
    neighbours: dict[str, set[str]], group: str
) -> None:
    own = GROUP_ATOMS[group] - GROUP_ATOMS["ne"]
    assert set.union(*(neighbours[atom] for atom in own)) - own == {"cyto"}


def test_the_plasma_membrane_separates_the_cytosol_from_the_outside(
    neighbours: dict[str, set[str]],
) -> None:
    assert "ecs" not in neighbours["cyto"]
    assert neighbours["pm"] == {"ecs", "cyto"}


def test_the_nucleus_opens_to_the_cytosol_only_through_pores(
    neighbours: dict[str, set[str]],
) -> None:
    assert all("cyto" not in neighbours[atom] for atom in INSIDE_NUCLEUS)
    assert {atom for atom in NUCLEUS if "cyto" in neighbours[atom]} == {"ne_mem", "np_out", "np_in"}
    assert neighbours["np_in"] & INSIDE_NUCLEUS


def test_the_nucleus_lies_inside_one_cell(phantom: Phantom) -> None:
    assert set(np.unique(phantom.instances["cell"][phantom.instances["nuc"] > 0])) == {1}


def test_membranes_are_darker_than_what_they_enclose(phantom: Phantom) -> None:
    grey = {
        name: phantom.raw[phantom.atoms == ATOM_IDS[name]].mean()
        for name in TESTED
        if name in ATOM_IDS
    }
    for name in ("mito", "golgi", "ves", "endo", "er", "ne", "perox"):
        assert grey[f"{name}_mem"] < grey[f"{name}_lum"] - 10
    assert grey["hchrom"] < grey["echrom"] - 10 < grey["nucpl"] - 20
    assert grey["pm"] < grey["mito_lum"] < grey["cyto"] < grey["ecs"]


def test_sizes_hold_in_nm_at_another_voxel_size(phantom: Phantom, coarser: Phantom) -> None:
    def volume_of_a_pore_nm3(volume: Phantom) -> float:
        ids = volume.instances["np"]
        return float(np.median(np.bincount(ids[ids > 0])[1:]) * volume.voxel_size**3)

    assert volume_of_a_pore_nm3(coarser) == pytest.approx(volume_of_a_pore_nm3(phantom), rel=0.15)


def test_training_crops_have_every_tested_class_and_validation_crops_lack_at_most_one_organelle(
    root: Path,
) -> None:
    positive: dict[str, set[str]] = {"train": set(), "validate": set()}
    for usage, crop, names in rows(root):
        positive[usage] |= {name for name in names if label(crop, name).any()}
    assert positive["train"] == set(TESTED)
    assert len(positive["validate"]) >= len(TESTED) - 3


def test_partly_annotated_crops_have_only_their_folders(root: Path) -> None:
    annotated = [set(names) for _, _, names in rows(root)]
    assert (
        annotated == [set(TESTED)] * 3 + [set(names) for names in PARTIAL_SETS] + [set(TESTED)] * 2
    )
    for _, crop, names in rows(root):
        assert {path.name for path in crop.iterdir() if path.is_dir()} == set(names)
        assert (
            zarr.open_group(str(crop), mode="r").attrs["cellmap"]["annotation"]["class_names"]
            == names
        )


def test_labels_that_exclude_each_other_never_share_a_voxel(root: Path) -> None:
    excluded = exclusions(TESTED)
    for _, crop, names in rows(root):
        masks = {name: label(crop, name).ravel() > 0 for name in names}
        stack = np.stack(list(masks.values())).astype(np.float32)
        shared = stack @ stack.T
        for i, one in enumerate(masks):
            assert not [two for j, two in enumerate(masks) if two in excluded[one] and shared[i, j]]


def test_image_and_crops_coincide_with_the_arrays_of_the_phantom(
    root: Path, phantom: Phantom
) -> None:
    np.testing.assert_array_equal(
        open_levels(root / "phantom/phantom.zarr" / layout.RAW)[0].array[:], phantom.raw
    )
    for _, crop, names in rows(root):
        for name in names[::7]:
            start = start_voxel(crop, name)
            box = tuple(slice(int(a), int(a) + CROP) for a in start)
            assert (start == np.rint(start)).all()
            np.testing.assert_array_equal(label(crop, name), class_volume(phantom, name)[box])


def test_the_image_has_three_levels_of_8_16_and_32_nm(root: Path) -> None:
    levels = open_levels(root / "phantom/phantom.zarr" / layout.RAW)
    assert [level.scale.tolist() for level in levels] == [[8.0] * 3, [16.0] * 3, [32.0] * 3]
    assert [level.translation.tolist() for level in levels] == [[0.0] * 3, [4.0] * 3, [12.0] * 3]


def test_crops_do_not_overlap(root: Path) -> None:
    starts = np.array([start_voxel(crop, names[0]) for _, crop, names in rows(root)])
    apart = np.abs(starts[:, None] - starts).max(-1)
    assert apart[~np.eye(len(starts), dtype=bool)].min() >= CROP


def test_labels_of_4_nm_coincide_in_world_coordinates(fine_root: Path, phantom: Phantom) -> None:
    for _, crop, names in rows(fine_root):
        for name in names:
            level = open_levels(crop / name)[0]
            assert level.scale.tolist() == [4.0] * 3 and level.array.shape == (2 * CROP,) * 3
            centres = [t + 4.0 * np.arange(2 * CROP) for t in level.translation]
            nearest = np.ix_(*(np.rint(c / 8.0).astype(int) for c in centres))
            assert all((np.abs(c - 8 * np.rint(c / 8)) == 2).all() for c in centres)
            np.testing.assert_array_equal(level.array[:], class_volume(phantom, name)[nearest])


def test_the_datasplit_is_written_as_the_challenge_writes_it(fine_root: Path) -> None:
    def line(usage: str, crop: str) -> str:
        store = "phantom/phantom.zarr"
        return f'"{usage}","{store}","{layout.RAW}","{store}","{layout.LABELS}/{crop}"\n'

    expected = line("train", "crop1/[mito,er_mem,cyto]") + line("validate", "crop2/[nuc,ecs]")
    assert (fine_root / "phantom/datasplit.csv").read_bytes().decode() == expected


def test_label_attributes_say_which_kind_of_segmentation_it_is(fine_root: Path) -> None:
    crop = rows(fine_root)[0][1]
    groups = [zarr.open_group(str(crop / name), mode="r") for name in ("mito", "cyto")]
    mito, cyto = (group.attrs["cellmap"]["annotation"] for group in groups)
    assert mito["class_name"] == "mito"
    assert mito["annotation_type"]["type"] == "instance_segmentation"
    assert cyto["annotation_type"] == {
        "type": "semantic_segmentation",
        "encoding": {"absent": 0, "present": 1},
    }


def test_where_crops_lie_does_not_depend_on_what_they_annotate(root: Path, fine_root: Path) -> None:
    np.testing.assert_array_equal(
        start_voxel(rows(root)[0][1], "cyto"), start_voxel(rows(fine_root)[0][1], "cyto")
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotated": lambda number: ["mito", "nucleus"]}, "unknown class 'nucleus'"),
        ({"annotated": lambda number: ["mito"] if number > 1 else []}, "crop 1 annotates no class"),
        ({"label_voxel_size": 3.0}, "label_voxel_size 3.0 nm; write a whole fraction"),
        ({"label_voxel_size": 16.0}, "label_voxel_size 16.0 nm; write a whole fraction"),
    ],
)
def test_what_cannot_be_annotated_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_crops_that_do_not_fit_are_refused(
    tmp_path: Path, phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testing.phantom.make_phantom", lambda shape, voxel_size, seed: phantom)
    with pytest.raises(ValueError, match="no room for 2 crops of 96 voxels"):
        write_phantom(tmp_path, SEED, SHAPE, train_crops=1, validate_crops=1, crop_size=96)


def test_a_volume_too_small_or_too_coarse_is_refused() -> None:
    with pytest.raises(ValueError, match="room for only"):
        make_phantom((40, 48, 48))
    with pytest.raises(ValueError, match=r"voxel_size 16\.0 nm"):
        make_phantom(SHAPE, 16.0)
