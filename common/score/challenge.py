"""The score of the CellMap Segmentation Challenge, as its public code computed it in June 2026.

Nothing else here knows the definition. Source: the challenge's public toolbox, main branch of
2026-06-30, and values computed with it, which the tests hold. Arrays are (z, y, x). A class is
either semantic (voxels are counted, class score IoU) or instance (objects are counted, class score
sqrt(F1 x normalised Hausdorff distance)). The public code's weak spots are part of the definition:
a match needs no least IoU, an empty prediction keeps the Hausdorff term of far objects, and a
prediction with too many objects is left out.

Versions of the score, `common.score.versions`, differ in a few switches; the default is the number
that the public code gives.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import cc3d
import fastremap
import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from common.errors import UserError
from common.score.distances import capped_distances
from common.score.versions import CSC, Version

Sizes = Sequence[float] | np.ndarray
"""Voxel size z, y, x in nm."""

# The next five are the public code's defaults, which the organisers can replace by environment
# variables of the names in brackets.
COST_SCALE = 1_000_000
"""Cost of a pair with IoU 0; an unmatched truth object costs one more (MCMF_COST_SCALE)."""
FINAL_RATIO = 10
"""Predicted by truth objects above which an evaluation is skipped, for many truth objects; for few
it is up to INITIAL_RATIO more (FINAL_ and INITIAL_INSTANCE_RATIO_CUTOFF)."""
INITIAL_RATIO = 50
RATIO_DECAY = 5
"""Truth objects over which INITIAL_RATIO falls to 1/e of itself (INSTANCE_RATIO_FACTOR)."""
MAX_OVERLAPS = 5_000_000
"""Overlapping pairs of objects above which an evaluation is skipped (MAX_OVERLAP_EDGES)."""

DECAY = 1.01
"""The normalised distance is DECAY ** -(distance in diagonals of a voxel): 0.5 at about 70."""
SLAB_VOXELS = 2**22
"""Voxels whose overlaps are counted at once: it bounds memory."""

SCORED = "scored"
MISSING = "missing"
SKIPPED = "skipped_too_many_instances"


@dataclass(frozen=True)
class Counts:
    """Voxels, or objects, that one class in one crop adds to the counts of the class."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    status: str = SCORED
    """SCORED, MISSING or SKIPPED."""


@dataclass(frozen=True)
class InstanceCounts(Counts):
    """Objects of an instance class in one crop, with their Hausdorff distances."""

    hausdorff_norm_sum: float = 0.0
    """Sum of normalised distances of truth objects and unmatched predictions, each in (0, 1]."""
    n_hausdorff: int = 0
    """Number of distances in that sum."""


@dataclass(frozen=True)
class SemanticScore:
    """Counts of a semantic class over all crops, and its IoU."""

    tp: int
    fp: int
    fn: int
    iou: float

    @property
    def score(self) -> float:
        """The figure that counts for the class."""
        return self.iou


@dataclass(frozen=True)
class InstanceScore:
    """Counts of an instance class over all crops, its two figures and their geometric mean."""

    tp: int
    fp: int
    fn: int
    f1: float
    normalized_hausdorff_distance: float
    combined_score: float

    @property
    def score(self) -> float:
        """The figure that counts for the class."""
        return self.combined_score


@dataclass(frozen=True)
class ChallengeScore:
    """Scores over all crops, named as in the public code."""

    label_scores: dict[str, SemanticScore | InstanceScore]
    overall_score: float
    """Geometric mean of the next two."""
    overall_instance_score: float
    """Mean over the instance classes; NaN without one, and overall_score too."""
    overall_semantic_score: float
    """Mean over the semantic classes; NaN without one."""
    total_evals: int
    num_evals_done: int
    """All evaluations, or those not missing, see `Version.missing_is_done`."""


def semantic(truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None = None) -> Counts:
    """Count the voxels above zero of a semantic class.

    mask: voxels where it is 0 count as background on both sides. Raises UserError if shapes differ.
    """
    truth, prediction = _masked(truth, prediction, mask)
    is_true = truth > 0
    is_found = prediction > 0
    tp = int(np.count_nonzero(is_true & is_found))
    fp = int(np.count_nonzero(is_found)) - tp
    fn = int(np.count_nonzero(is_true)) - tp
    return Counts(tp, fp, fn)


def instance(
    truth: np.ndarray,
    prediction: np.ndarray,
    voxel_size: Sizes,
    mask: np.ndarray | None = None,
    *,
    version: Version = CSC,
) -> InstanceCounts:
    """Match objects and sum their Hausdorff distances.

    A truth object is all voxels of its id, a predicted one a 26-connected component of one id.

    Args:
        truth: ids, integers from 1; 0 is background.
        prediction: ids on the same voxels.
        voxel_size: nm, z, y, x.
        mask: where it is 0 both sides are background.
        version: of the score.

    Raises:
        UserError: for other shapes, ids below 0 or not integer, or not three voxel sizes.
    """
    truth, prediction = _ids(truth, prediction, mask)
    sizes = _sizes(voxel_size)
    truth, ids = _renumbered(truth)
    prediction, n_prediction = components(prediction)
    objects = _Objects(truth, ids, prediction, int(n_prediction))
    counted = max(ids, default=0) if version.largest_id_is_number else len(ids)
    if _too_many(counted, n_prediction):
        return InstanceCounts(status=SKIPPED)
    table = _overlaps(truth, prediction, len(ids), n_prediction)
    if table[1:, 1:].nnz > MAX_OVERLAPS:
        return InstanceCounts(status=SKIPPED)
    return _counts(objects, match(table), sizes, version)


@dataclass(frozen=True)
class _Objects:
    """The objects of both sides, each numbered from 1."""

    truth: np.ndarray
    ids: Sequence[int]
    """Ids of the truth objects as they were given."""
    prediction: np.ndarray
    n_prediction: int


def _counts(
    objects: _Objects, pairs: np.ndarray, sizes: np.ndarray, version: Version
) -> InstanceCounts:
    """Return the counts of matched objects. pairs: as `match` returns them."""
    n_truth = len(objects.ids)
    tp = len(pairs)
    fp = objects.n_prediction - tp
    cap = min(sizes * objects.truth.shape) / 2
    parts = _parts(pairs, objects.ids, objects.n_prediction, version)
    measured = capped_distances(objects.truth, objects.prediction, parts, sizes=sizes, cap=cap)
    # with the cap for truth objects of which nothing was found
    distances = np.array(measured + [cap] * (n_truth - len(parts)))
    if version.rounds_distances:
        distances = distances.astype(np.float32).astype(float)
    # every predicted object without a match counts with the cap
    total = _normalised(distances, sizes).sum() + fp * _normalised(cap, sizes)
    return InstanceCounts(
        tp=tp,
        fp=fp,
        fn=n_truth - tp,
        hausdorff_norm_sum=float(total),
        n_hausdorff=n_truth + fp,
    )


def missing(truth: np.ndarray, is_instance: bool) -> Counts:
    """Return the counts of a class that was not submitted, as the public code has them.

    Every truth object is missed, at distance infinity; of a semantic class *every voxel* is missed,
    background included.
    """
    if not is_instance:
        return Counts(fn=truth.size, status=MISSING)
    n_truth = int(np.count_nonzero(fastremap.unique(_native(truth))))
    return InstanceCounts(fn=n_truth, status=MISSING, n_hausdorff=n_truth)


def combine(evaluations: Iterable[tuple[str, Counts]], version: Version = CSC) -> ChallengeScore:
    """Return the scores: counts are pooled over crops for each class, classes are averaged.

    A class without an object or voxel on either side scores 1. Without a class of a kind the mean
    over that kind, and the overall score, are NaN; the public code, which always has both kinds,
    gives 0.

    evaluations: (class, counts) of every class in every crop.
    """
    pooled: dict[str, list[Counts]] = defaultdict(list)
    for name, counts in evaluations:
        pooled[name].append(counts)
    classes = {name: _class_score(counts) for name, counts in pooled.items()}
    instance_scores: list[float] = []
    semantic_scores: list[float] = []
    for score in classes.values():
        kind = instance_scores if isinstance(score, InstanceScore) else semantic_scores
        kind.append(score.score)
    overall_instance = _mean(instance_scores)
    overall_semantic = _mean(semantic_scores)
    all_counts = list(chain.from_iterable(pooled.values()))
    n_missing = sum(counts.status == MISSING for counts in all_counts)
    n_not_done = 0 if version.missing_is_done else n_missing
    return ChallengeScore(
        label_scores=classes,
        overall_score=math.sqrt(overall_instance * overall_semantic),
        overall_instance_score=overall_instance,
        overall_semantic_score=overall_semantic,
        total_evals=len(all_counts),
        num_evals_done=len(all_counts) - n_not_done,
    )


def contingency(
    truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None = None
) -> sparse.csr_array:
    """Return (truth ids + 1, predicted ids + 1) int64: number of voxels that two ids share.

    Row and column 0 are background. Ids are taken as they are, in no particular order. Raises
    UserError as `instance` does.
    """
    truth, prediction = _ids(truth, prediction, mask)
    truth, truth_ids = _renumbered(truth)
    prediction, predicted_ids = _renumbered(prediction)
    return _overlaps(truth, prediction, len(truth_ids), len(predicted_ids))


def match(table: sparse.csr_array) -> np.ndarray:
    """Match rows and columns of a contingency table one to one at least total cost.

    Returns (pairs, 2) of row and column.

    A pair costs int((1 - IoU) * 1e6), a truth object without a pair 1e6 + 1; so a single shared
    voxel can match. Among matchings of equal cost any may be chosen.
    """
    overlap = table[1:, 1:].tocoo()
    n_truth, n_prediction = overlap.shape
    union = table.sum(1)[1 + overlap.row] + table.sum(0)[1 + overlap.col] - overlap.data
    # IoU in float32 as in the public code: in float64 another matching can be the cheapest
    iou = (overlap.data / union).astype(np.float32).astype(float)
    pair_cost = ((1 - iou) * COST_SCALE).astype(np.int64)
    # to stay unmatched, each truth object can take a column of its own behind the predictions'
    truth_objects = np.arange(n_truth)
    cost = np.append(pair_cost, np.full(n_truth, COST_SCALE + 1))
    row = np.append(overlap.row, truth_objects)
    column = np.append(overlap.col, n_prediction + truth_objects)
    # one more for all: a cost of 0, of a perfect pair, would be an absent entry of a sparse matrix
    graph = sparse.csr_array((cost + 1.0, (row, column)), (n_truth, n_prediction + n_truth))
    # SciPy's sparse Jonker-Volgenant solver in place of the public code's min-cost flow: the cost
    # of the optimum is the same, see the tests
    pairs = np.stack(min_weight_full_bipartite_matching(graph), 1)
    return 1 + pairs[pairs[:, 1] < n_prediction]


def components(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the 26-connected pieces of each id from 1, in the order of their first voxel.

    Returns the numbers (z, y, x), and how many pieces there are.
    """
    # C order: components are numbered as their voxels lie in memory
    return cc3d.connected_components(np.ascontiguousarray(ids), connectivity=26, return_N=True)


def _too_many(n_truth: int, n_prediction: int) -> bool:
    """Whether the public code skips an evaluation for its predicted objects.

    It never does where truth has none. The limit of predicted objects for a truth object falls from
    51 (one truth object) to 28 (five) and 10 (fifty and more): the guard is against predictions of
    specks, whose overlaps and matching take too long.
    """
    if not n_truth:
        return False
    limit = FINAL_RATIO + INITIAL_RATIO * math.exp(-n_truth / RATIO_DECAY)
    return n_prediction / n_truth > limit


def _parts(
    pairs: np.ndarray, ids: Sequence[int], n_prediction: int, version: Version
) -> dict[int, list[int]]:
    """Return for each truth object, by number, the predicted objects that count as found of it.

    Truth objects of which nothing was found are left out. ids: of the truth objects as they were
    given.
    """
    parts = {truth: [predicted] for truth, predicted in pairs.tolist()}
    if not version.unmatched_keep_their_number:
        return parts
    matched = set(pairs[:, 1].tolist())
    for number, truth_id in enumerate(ids, 1):
        if truth_id <= n_prediction and truth_id not in matched:
            parts.setdefault(number, []).append(truth_id)
    return parts


def _normalised(distance: np.ndarray | float, sizes: np.ndarray) -> np.ndarray:
    return DECAY ** (-np.asarray(distance, float) / np.linalg.norm(sizes))


def _overlaps(
    truth: np.ndarray, prediction: np.ndarray, n_truth: int, n_prediction: int
) -> sparse.csr_array:
    """Return the contingency table of two volumes with ids 1..n_truth and 1..n_prediction."""
    table = sparse.csr_array((n_truth + 1, n_prediction + 1), dtype=np.int64)
    step = max(1, SLAB_VOXELS // max(1, truth[0].size))
    for z in range(0, len(truth), step):
        t = truth[z : z + step].ravel()
        p = prediction[z : z + step].ravel()
        # by runs of voxels with the same pair of ids: far fewer entries to sum than voxels
        changes = (t[1:] != t[:-1]) | (p[1:] != p[:-1])
        start = np.flatnonzero(np.append(True, changes))
        length = np.diff(start, append=t.size)
        ids = (t[start].astype(np.int64), p[start].astype(np.int64))
        table += sparse.csr_array((length, ids), shape=table.shape)
    return table


def _class_score(counts: Sequence[Counts]) -> SemanticScore | InstanceScore:
    """The score of one class from its counts in every crop."""
    tp = sum(crop.tp for crop in counts)
    fp = sum(crop.fp for crop in counts)
    fn = sum(crop.fn for crop in counts)
    in_all = tp + fp + fn
    of_objects = [crop for crop in counts if isinstance(crop, InstanceCounts)]
    if not of_objects:
        return SemanticScore(tp, fp, fn, iou=tp / in_all if in_all else 1.0)
    f1 = 2 * tp / (2 * tp + fp + fn) if in_all else 1.0
    number = sum(crop.n_hausdorff for crop in of_objects)
    total = sum(crop.hausdorff_norm_sum for crop in of_objects)
    distance = total / number if number else 1.0
    return InstanceScore(
        tp=tp,
        fp=fp,
        fn=fn,
        f1=f1,
        normalized_hausdorff_distance=distance,
        combined_score=math.sqrt(f1 * distance),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _renumbered(ids: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return the objects with ids 1..n, and the n ids that they had before."""
    renumbered, new_id_of = fastremap.renumber(ids)
    old = sorted((new, int(given)) for given, new in new_id_of.items() if new)
    return renumbered, [given for _, given in old]


def _masked(
    truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays, 0 where the mask is 0. Raises UserError for other than one 3-D shape."""
    shapes = {"truth": truth.shape, "prediction": prediction.shape}
    if mask is not None:
        shapes["mask"] = mask.shape
    if len(set(shapes.values())) > 1 or truth.ndim != 3:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(
            f"shapes differ or are not three-dimensional: {listed}; "
            "bring them to the same grid (z, y, x)"
        )
    if mask is None:
        return truth, prediction
    shown = mask > 0
    return truth * shown, prediction * shown


def _ids(
    truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays, masked, in native byte order. Raises UserError if they are not ids."""
    _check_ids("truth", truth)
    _check_ids("prediction", prediction)
    truth, prediction = _masked(truth, prediction, mask)
    return _native(truth), _native(prediction)


def _check_ids(name: str, ids: np.ndarray) -> None:
    if ids.dtype.kind not in "uib":
        raise UserError(f"{name} is {ids.dtype}; object ids must be integers, 0 for background")
    if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
        raise UserError(
            f"{name} has the id {ids.min()}; object ids must be positive, 0 for background"
        )


def _native(ids: np.ndarray) -> np.ndarray:
    """Return ids in native byte order; bool as uint8: fastremap takes bool for 0 and 1 always."""
    if ids.dtype.kind == "b":
        return ids.view(np.uint8)
    return ids.astype(ids.dtype.newbyteorder("="), copy=False)


def _sizes(voxel_size: Sizes) -> np.ndarray:
    """Return (3,) sizes. Raises UserError if they are not three positive numbers."""
    sizes = np.asarray(voxel_size, float)
    if sizes.shape != (3,) or not (sizes > 0).all() or not np.isfinite(sizes).all():
        raise UserError(
            f"voxel_size is {voxel_size}; three sizes in nm (z, y, x) above zero are needed"
        )
    return sizes
