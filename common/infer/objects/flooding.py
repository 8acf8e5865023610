"""Objects that touch, told apart by a predicted boundary or distance: seeds, floods, joins.

A landscape is high in the middle of objects and low between them. Its basins are far more than the
objects, since every predicted volume is noisy; then those are joined that no neck and no boundary
divides. All of it gives the same for any block shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import edt
import numpy as np
from scipy import ndimage

from common.errors import UserError
from common.infer.objects.basins import find_basins
from common.infer.objects.graph import (
    PARTS,
    Contacts,
    Graph,
    combined,
    joined,
    over_means,
    over_passes,
)
from common.infer.objects.pairs import find_pairs, linked
from common.infer.objects.volume import (
    Block,
    BlockWork,
    Volume,
    fill,
    probabilities,
    with_margin,
    within,
)

SMOOTHING = 1.0
"""Standard deviation in voxels of the Gaussian that a landscape is smoothed by."""

REACH = 4
"""Voxels that the Gaussian reaches: SciPy's 4 standard deviations."""

EDGE = 0.5
"""Boundary above which a voxel is no inside, where affinities have a part in what divides."""

WHOLE = 100
"""Weights of offsets are counted in hundredths: sums of integers do not depend on the blocks."""


def watershed_of_boundary(  # noqa: PLR0917  # so it is called in process_config.py files
    mask: Volume,
    boundary: Volume,
    threshold: float = 0.5,
    neck: float = 0.9,
    depth_nm: float = 100.0,
) -> Volume:
    """Ids as of connected_components(), with objects divided along a predicted boundary.

    The landscape is 1 - boundary, smoothed, plus the depth within what is no boundary, from 0 to 1.
    Basins are joined over passes that are no necks. Then, pair by pair, those are joined whose
    contact has the least mean boundary, up to `threshold`.

    Args:
        mask: a mask, or ids, each of which is divided alone.
        boundary: probability that a voxel lies at the edge of an object, see threshold().
        threshold: mean boundary above which a contact divides (0..1).
        neck: a pass of this fraction of the lower of two summits, or of more, is no neck (0..1).
        depth_nm: beyond this depth all is equally deep.
    """
    _check_joins(mask, boundary, threshold, neck)
    landscape = _away_from_boundary(mask, boundary, threshold, depth_nm)
    basins, graph = find_basins(landscape, mask, boundary)
    part = over_passes(graph, basins.summits, neck)
    part = over_means(graph.contracted(part), threshold)[part]
    return basins.ids(part)


def watershed_of_affinities(  # noqa: PLR0913, PLR0917  # so it is called in process_config.py files
    mask: Volume,
    boundary: Volume,
    channels: Mapping[str, Volume],
    name: str,
    offsets: Sequence[Sequence[float]],
    threshold: float = 0.8,
    neck: float = 0.9,
    depth_nm: float = 100.0,
    weights: Sequence[float] = (),
    small_nm3: float = 0.0,
    small_threshold: float = 0.8,
) -> Volume:
    """Ids as of watershed_of_boundary(), with a say of affinities in what is joined.

    What divides two basins is the mean, over the faces that they share, of the boundary, and over
    all pairs of their voxels at an offset, of 1 - affinity. Far pairs see past a faint membrane,
    and past a false one within an object. Small parts that are left then join the neighbour that
    least speaks against it, up to `small_threshold`: what few pairs say is less sure, and two large
    objects that are joined by mistake are the greater loss.

    Args:
        mask: a mask, or ids, each of which is divided alone.
        boundary: probability that a voxel lies at the edge of an object, see threshold().
        channels: has the affinities as NAME_0, NAME_1, ..., of the types that threshold() takes.
        name: of the affinities.
        offsets: (z, y, x) nm from a voxel to the one that an affinity is about, for each of them.
        threshold: mean above which two basins stay apart (0..1).
        neck: a pass of this fraction of the lower of two summits, or of more, is no neck (0..1).
        depth_nm: beyond this depth all is equally deep.
        weights: of a pair at each offset beside a face, in hundredths; all 1 unless given. The
            affinities of weight 0 are not looked at.
        small_nm3: below it a part is small; 0 is none.
        small_threshold: mean above which a small part stays apart (0..1).
    """
    _check_joins(mask, boundary, threshold, neck)
    if not small_nm3 >= 0:
        raise UserError(f"small_nm3 {small_nm3}; write a volume of at least 0 in nm^3")
    if not 0 < small_threshold < 1:
        raise UserError(f"small_threshold {small_threshold}; write a mean between 0 and 1")
    pairs = find_pairs(mask, channels, name, offsets, weights=weights)
    counted = _hundredths(pairs.weights)
    landscape = _away_from_boundary(mask, boundary, EDGE, depth_nm)
    basins, graph = find_basins(landscape, mask, boundary)
    _, links = linked(basins.labels, mask, pairs)
    against = [_against(link, weight) for link, weight in zip(links, counted, strict=True)]
    of_pairs = basins.graph(joined(against)).contacts
    part = over_passes(graph, basins.summits, neck)
    both = Graph(graph.n, combined(joined([graph.contacts.times(WHOLE), of_pairs])))
    part = over_means(both.contracted(part), threshold)[part]
    if small_nm3:
        voxels = np.bincount(part, basins.voxels())
        small = small_nm3 / math.prod(mask.voxel_size)
        part = over_means(both.contracted(part), small_threshold, voxels, small)[part]
    return basins.ids(part)


def watershed_of_distance(mask: Volume, distance: Volume, neck: float = 0.5) -> Volume:
    """Ids as of connected_components(), with objects divided at the necks of a predicted distance.

    Args:
        mask: a mask, or ids, each of which is divided alone.
        distance: to the edge of the object in nm, positive inside; clipped or not.
        neck: two basins stay apart where the smoothed distance between them falls below this
            fraction of the lower of their summits (0..1).
    """
    _check(mask, distance, "distance", neck)
    basins, graph = find_basins(_smoothed(mask, distance), mask)
    return basins.ids(over_passes(graph, basins.summits, neck))


def _hundredths(weights: Sequence[float]) -> list[int]:
    """Raises UserError for a weight that is less than one."""
    counted = [round(WHOLE * weight) for weight in weights]
    if min(counted) < 1:
        raise UserError(f"weights {tuple(weights)}; write numbers of at least {1 / WHOLE:g}")
    return counted


def _against(link: Contacts, weight: int) -> Contacts:
    """What affinities say against one object, counted `weight` times."""
    evidence = link.faces * PARTS - link.evidence
    return link._replace(evidence=evidence).times(weight)


def _away_from_boundary(
    mask: Volume, boundary: Volume, threshold: float, depth_nm: float
) -> Volume:
    """1 - boundary, smoothed, plus the depth within what is no boundary, from 0 to 1."""
    if not 0 < depth_nm < np.inf:
        raise UserError(f"depth_nm {depth_nm}; write a length above 0 in nm")
    voxel_size = np.array(mask.voxel_size)
    # beyond it no boundary is nearer than depth_nm
    margin = np.maximum(np.ceil(depth_nm / voxel_size).astype(int) + 1, REACH)

    def away_from_boundary(block: Block) -> np.ndarray | None:
        if not mask.read(block.core).any():
            return None
        box = with_margin(block.core, margin, mask.shape)
        # unknown is an edge
        edge = np.nan_to_num(probabilities(boundary, box), nan=1)
        inside = (edge <= threshold) & (mask.read(box) != 0)
        depth = edt.edt(inside, anisotropy=tuple(voxel_size))
        height = ndimage.gaussian_filter(1 - edge, SMOOTHING)
        height += np.minimum(depth, depth_nm) / depth_nm
        return height[within(block.core, box)].astype(np.float32)

    return fill(mask, BlockWork(away_from_boundary, (mask, boundary)), np.float32)


def _smoothed(mask: Volume, distance: Volume) -> Volume:
    """The distance within the mask under a Gaussian, at least 0."""

    def smoothed(block: Block) -> np.ndarray | None:
        if not mask.read(block.core).any():
            return None
        box = with_margin(block.core, REACH, mask.shape)
        values = np.nan_to_num(distance.read(box).astype(np.float32))
        # fractions of summits need a floor: outside is as low as the edge
        height = np.maximum(ndimage.gaussian_filter(values, SMOOTHING), 0)
        return height[within(block.core, box)]

    return fill(mask, BlockWork(smoothed, (mask, distance)), np.float32)


def _check_joins(mask: Volume, boundary: Volume, threshold: float, neck: float) -> None:
    _check(mask, boundary, "boundary", neck)
    if not 0 < threshold < 1:
        raise UserError(f"threshold {threshold}; write a probability between 0 and 1")


def _check(mask: Volume, other: Volume, what: str, neck: float) -> None:
    if mask.dtype.kind not in "bui":
        raise UserError(f"a mask of {mask.dtype}; threshold() it first, or hand over ids")
    if other.shape != mask.shape:
        raise UserError(
            f"a {what} of shape {other.shape} for a mask of shape {mask.shape}; make them equal"
        )
    if not 0 <= neck <= 1:
        raise UserError(f"neck {neck}; write a fraction from 0 (never divide) to 1")
