"""The score of the CellMap Segmentation Challenge, as its public code computed it in June 2026; nothing else here knows its definition.

Source: the challenge's public toolbox, main branch of 2026-06-30, and values computed with it, which the tests hold. Arrays are
(z, y, x). A class is either semantic (voxels are counted, class score IoU) or instance (objects are counted, class score
sqrt(F1 x normalised Hausdorff distance)); the public code's weak spots (no IoU threshold, an empty prediction keeps the Hausdorff
term of far objects, a prediction with too many objects is left out) are part of the definition.

One difference: the public code gives matched predictions the number of their truth object and leaves the others theirs, so that an
unmatched prediction whose number happens to be that of a truth object is measured as part of that object's match. Here the distance
is between an object and its match alone. It also keeps distances in float32; here they are float64.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cc3d
import fastremap
import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from common.errors import UserError

VERSION = "2026-06"
"""Which definition of the score this is; it belongs beside every figure made with it."""

COST_SCALE = 1_000_000
"""Cost of matching a pair with IoU 0; of an unmatched truth object one more."""
MAX_OVERLAPS = 5_000_000
"""Overlapping pairs of objects above which an evaluation is skipped."""
SLAB_VOXELS = 2**22
"""Voxels whose overlaps are counted at a time: bounds memory."""
SKIPPED = "skipped_too_many_instances"


@dataclass(frozen=True)
class Counts:
    """What one evaluation (a class in a crop) adds to its class; voxels if semantic, objects if instance."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    status: str = "scored"
    """scored, missing, or skipped_too_many_instances."""


@dataclass(frozen=True)
class InstanceCounts(Counts):
    hausdorff_norm_sum: float = 0.0
    """Sum over truth objects and unmatched predictions of the normalised distance, each in (0, 1], 1 best."""
    n_hausdorff: int = 0
    """How many that sum is over."""


def semantic(truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None = None) -> Counts:
    """Count voxels above zero, so threshold a prediction before; where mask is 0 both sides are background."""
    truth, prediction = (array > 0 for array in _masked(truth, prediction, mask))
    tp = np.count_nonzero(truth & prediction)
    return Counts(tp, np.count_nonzero(prediction) - tp, np.count_nonzero(truth) - tp)


def instance(
    truth: np.ndarray,
    prediction: np.ndarray,
    voxel_size: Sequence[float],
    mask: np.ndarray | None = None,
) -> InstanceCounts:
    """Match objects and sum their Hausdorff distances. Ids are integers from 1, 0 is background; voxel_size in nm.

    A truth object is all voxels of its id; a predicted object is a 26-connected component of one id. A distance is capped at half
    the shortest side of the volume; every truth object without a match and every prediction without one count with that cap.
    Where neither side has an object everything is 0; where one side has none the other's are all unmatched, and as the public code
    does, a prediction is not skipped for its number of objects where truth has none.
    Raises ValueError where shapes differ, an id is negative or not an integer, or voxel_size is not three sizes.
    """
    truth, prediction = _ids(truth, prediction, mask)
    voxel_size = _sizes(voxel_size)
    truth, n_truth = _renumbered(truth)
    prediction, n_prediction = cc3d.connected_components(prediction, connectivity=26, return_N=True)
    if n_truth and n_prediction / n_truth > 10 + 50 * math.exp(-n_truth / 5):
        return InstanceCounts(status=SKIPPED)
    table = _overlaps(truth, prediction, n_truth, n_prediction)
    if table[1:, 1:].nnz > MAX_OVERLAPS:
        return InstanceCounts(status=SKIPPED)
    pairs = match(table)
    distances = np.array(_distances(truth, prediction, pairs, voxel_size))
    cap = min(voxel_size * truth.shape) / 2
    tp = len(pairs)
    unmatched = n_truth - tp + n_prediction - tp
    total = _normalised(distances.clip(max=cap), voxel_size).sum() + unmatched * _normalised(
        cap, voxel_size
    )
    return InstanceCounts(
        tp,
        n_prediction - tp,
        n_truth - tp,
        hausdorff_norm_sum=float(total),
        n_hausdorff=tp + unmatched,
    )


def missing(truth: np.ndarray, is_instance: bool) -> Counts:
    """The counts of a class that was not submitted: every truth object is missed at distance infinity, or *every voxel* is missed."""
    if not is_instance:
        return Counts(fn=truth.size, status="missing")
    n = np.count_nonzero(fastremap.unique(truth))
    return InstanceCounts(fn=n, status="missing", n_hausdorff=n)


def combine(evaluations: Iterable[tuple[str, Counts]]) -> dict:
    """Scores from (class, counts) of every crop: counts are pooled per class, the classes' scores averaged.

    Gives label_scores {class: {tp, fp, fn, iou} or {tp, fp, fn, f1, normalized_hausdorff_distance, combined_score}}, the means
    overall_instance_score and overall_semantic_score over classes, overall_score (their geometric mean), total_evals,
    num_evals_done (those not missing) and version. A class without an object or voxel on either side scores 1. The mean over no
    class is NaN, and so is then overall_score; the public code, which always has both kinds, gives 0.
    """
    pooled: dict[str, list[Counts]] = defaultdict(list)
    for label, counts in evaluations:
        pooled[label].append(counts)
    labels = {label: _label_score(counts) for label, counts in pooled.items()}
    overall_instance = _mean(
        [found["combined_score"] for found in labels.values() if "combined_score" in found]
    )
    overall_semantic = _mean([found["iou"] for found in labels.values() if "iou" in found])
    return {
        "label_scores": labels,
        "overall_instance_score": overall_instance,
        "overall_semantic_score": overall_semantic,
        "overall_score": math.sqrt(overall_instance * overall_semantic),
        "total_evals": sum(map(len, pooled.values())),
        "num_evals_done": sum(
            one.status != "missing" for counts in pooled.values() for one in counts
        ),
        "version": VERSION,
    }


def contingency(
    truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None = None
) -> sparse.csr_array:
    """Voxels that each truth id shares with each predicted id, (truth ids + 1, predicted ids + 1) int64; row and column 0 are background.

    Ids are taken as they are, in no particular order. Raises ValueError as `instance` does.
    """
    truth, prediction = _ids(truth, prediction, mask)
    (truth, n_truth), (prediction, n_prediction) = _renumbered(truth), _renumbered(prediction)
    return _overlaps(truth, prediction, n_truth, n_prediction)


def match(table: sparse.csr_array) -> np.ndarray:
    """(pairs, 2) rows and columns of a contingency table, matched one to one at least cost over all overlapping pairs.

    A pair costs int((1 - IoU) * 1e6), IoU in float32 as in the public code, a truth object without a pair 1e6 + 1; so a single
    shared voxel can match. Among matchings of equal cost any may be chosen.
    """
    overlap = table[1:, 1:].tocoo()
    n_truth, n_prediction = overlap.shape
    union = table.sum(1)[1 + overlap.row] + table.sum(0)[1 + overlap.col] - overlap.data
    iou = (overlap.data / union).astype(np.float32).astype(float)
    cost = ((1 - iou) * COST_SCALE).astype(np.int64)
    # each truth object can also take a column of its own; the one added to all costs keeps them from being an absent 0
    each = np.arange(n_truth)
    costs = np.append(cost, np.full(n_truth, COST_SCALE + 1)) + 1.0
    where = np.append(overlap.row, each), np.append(overlap.col, n_prediction + each)
    graph = sparse.csr_array((costs, where), shape=(n_truth, n_prediction + n_truth))
    pairs = np.stack(min_weight_full_bipartite_matching(graph), 1)
    return 1 + pairs[pairs[:, 1] < n_prediction]


def hausdorff(a: np.ndarray, b: np.ndarray, voxel_size: Sequence[float]) -> float:
    """Hausdorff distance in nm between the voxel centres of two objects, bool (z, y, x) with a voxel each; not capped."""
    return max(_farthest(a & ~b, b, _sizes(voxel_size)), _farthest(b & ~a, a, _sizes(voxel_size)))


def _farthest(outside: np.ndarray, b: np.ndarray, voxel_size: np.ndarray) -> float:
    """The largest distance from a voxel of `outside`, all of them outside b, to the nearest voxel of b; 0 if there is none.

    Branch and bound: a cell of 2^k voxels' side whose centre has distance d to b holds distances in d -+ its half diagonal. Cells
    that cannot hold the largest are dropped, the others split, so that few voxels of a thick difference are ever looked at. The
    largest may lie inside (b a shell around it), so the surface of `outside` would not do; the nearest voxel of b is on b's surface.
    """
    if not outside.any():
        return 0.0
    tree = cKDTree(
        np.argwhere(_surface(b)) * voxel_size, leafsize=64, compact_nodes=False, balanced_tree=False
    )
    levels = [outside]
    while max(levels[-1].shape) > 4:
        levels.append(_halved(levels[-1]))
    cells = np.argwhere(levels[-1])
    for level in reversed(range(len(levels))):
        centres = ((cells + 0.5) * 2**level - 0.5) * voxel_size
        distances, _ = tree.query(centres)
        if level:
            half_diagonal = (2**level - 1) / 2 * np.linalg.norm(voxel_size)
            cells = cells[distances + half_diagonal >= (distances - half_diagonal).max()]
            cells = (2 * cells[:, None] + np.indices((2, 2, 2)).reshape(3, -1).T).reshape(-1, 3)
            cells = cells[(cells < levels[level - 1].shape).all(1)]
            cells = cells[levels[level - 1][tuple(cells.T)]]
    return float(distances.max())


def _surface(b: np.ndarray) -> np.ndarray:
    """Voxels of b with a face neighbour outside b or outside the array."""
    core = (slice(1, -1),) * 3
    inner = b[core].copy()
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            inner &= b[*core[:axis], side, *core[axis + 1 :]]
    surface = b.copy()
    surface[core] ^= inner
    return surface


def _halved(mask: np.ndarray) -> np.ndarray:
    """Whether a block of 2^3 voxels holds any."""
    for _ in range(3):
        half = mask[::2].copy()
        half[: len(mask) // 2] |= mask[1::2]
        mask = np.moveaxis(half, 0, -1)
    return mask


def _distances(
    truth: np.ndarray, prediction: np.ndarray, pairs: np.ndarray, voxel_size: np.ndarray
) -> list[float]:
    """Hausdorff distance of each pair of ids, each in the box around both."""
    truth_boxes, prediction_boxes = ndimage.find_objects(truth), ndimage.find_objects(prediction)
    found = []
    for t, p in pairs.tolist():
        both = zip(truth_boxes[t - 1], prediction_boxes[p - 1], strict=True)
        box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in both)
        found.append(hausdorff(truth[box] == t, prediction[box] == p, voxel_size))
    return found


def _normalised(distance: np.ndarray | float, voxel_size: np.ndarray) -> np.ndarray:
    return 1.01 ** (-np.asarray(distance, float) / np.linalg.norm(voxel_size))


def _overlaps(
    truth: np.ndarray, prediction: np.ndarray, n_truth: int, n_prediction: int
) -> sparse.csr_array:
    """Contingency table of ids 1..n, slab by slab, from runs of voxels with the same pair of ids."""
    table = sparse.csr_array((n_truth + 1, n_prediction + 1), dtype=np.int64)
    step = max(1, SLAB_VOXELS // max(1, truth[0].size))
    for z in range(0, len(truth), step):
        t, p = truth[z : z + step].ravel(), prediction[z : z + step].ravel()
        start = np.flatnonzero(np.append(True, (t[1:] != t[:-1]) | (p[1:] != p[:-1])))
        length = np.diff(start, append=t.size)
        table += sparse.csr_array(
            (length, (t[start].astype(np.int64), p[start].astype(np.int64))), shape=table.shape
        )
    return table


def _label_score(counts: list[Counts]) -> dict[str, float]:
    tp, fp, fn = (sum(getattr(one, name) for one in counts) for name in ("tp", "fp", "fn"))
    found = {"tp": tp, "fp": fp, "fn": fn}
    if not isinstance(counts[0], InstanceCounts):
        return {**found, "iou": tp / (tp + fp + fn) if tp + fp + fn else 1.0}
    number = sum(one.n_hausdorff for one in counts)
    f1 = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0
    distance = sum(one.hausdorff_norm_sum for one in counts) / number if number else 1.0
    return {
        **found,
        "f1": f1,
        "normalized_hausdorff_distance": distance,
        "combined_score": math.sqrt(f1 * distance),
    }


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _renumbered(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """The same objects with ids 1..n, and n."""
    ids, _ = fastremap.renumber(ids)
    return ids, int(ids.max(initial=0))


def _masked(
    truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays, 0 where mask is. Raises ValueError if they are not of one shape with three axes."""
    shapes = [array.shape for array in (truth, prediction, mask) if array is not None]
    if len(set(shapes)) > 1 or truth.ndim != 3:
        names = ", ".join(
            f"{name} {shape}"
            for name, shape in zip(("truth", "prediction", "mask"), shapes, strict=False)
        )
        raise UserError(
            f"shapes differ or are not three-dimensional: {names}; bring them to the same grid (z, y, x)"
        )
    return (truth, prediction) if mask is None else (truth * (mask > 0), prediction * (mask > 0))


def _ids(
    truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays, masked, in the machine's byte order. Raises ValueError if they are not ids."""
    for name, array in (("truth", truth), ("prediction", prediction)):
        if array.dtype.kind not in "uib":
            raise UserError(
                f"{name} is {array.dtype}; object ids must be integers, 0 for background"
            )
        if array.dtype.kind == "i" and array.size and array.min() < 0:
            raise UserError(
                f"{name} has the id {array.min()}; object ids must be positive, 0 for background"
            )
    return tuple(
        array.astype(array.dtype.newbyteorder("="), copy=False)
        for array in _masked(truth, prediction, mask)
    )


def _sizes(voxel_size: Sequence[float]) -> np.ndarray:
    """Raises ValueError if these are not three positive sizes."""
    sizes = np.asarray(voxel_size, float)
    if sizes.shape != (3,) or not (sizes > 0).all() or not np.isfinite(sizes).all():
        raise UserError(
            f"voxel_size is {voxel_size}; three sizes in nm (z, y, x) above zero are needed"
        )
    return sizes
