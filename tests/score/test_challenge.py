"""The challenge's score against values of its public code, brute force and exhaustive search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage, sparse
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.measure import label
from sklearn.metrics import confusion_matrix, jaccard_score

from common.score import challenge
from common.score.challenge import Counts, InstanceCounts
from common.score.versions import CSC, DEFINITION, Version

VOXEL = (8.0, 8.0, 8.0)
EIGHTY_NM = 1.01 ** (-80 / math.sqrt(3 * 8**2))
"""The normalised cap in a volume of 20^3."""


def cube(*corners: tuple[int, int], side: int = 20) -> np.ndarray:
    """A volume with ids 1, 2, ... on cubes from a to b along all axes."""
    volume = np.zeros((side,) * 3, np.uint16)
    for number, (a, b) in enumerate(corners, 1):
        volume[a:b, a:b, a:b] = number
    return volume


@pytest.fixture
def truth() -> np.ndarray:
    return cube((2, 8), (12, 18))


@pytest.fixture
def shifted() -> np.ndarray:
    """The first object one voxel further along z, the second one missing."""
    volume = cube()
    volume[3:9, 2:8, 2:8] = 1
    return volume


def blobs(
    seed: int, noise: float = 0.0, shape: tuple[int, int, int] = (15, 17, 16), ids: int = 9
) -> np.ndarray:
    """Random touching objects, some in several places; with noise the same, a little changed."""

    def fields(seed: int, sigma: float) -> np.ndarray:
        smooth = ndimage.gaussian_filter(
            np.random.default_rng(seed).standard_normal((ids + 1, *shape)), (0, sigma, sigma, sigma)
        )
        return smooth / smooth.std()

    return np.argmax(fields(seed, 2.0) + noise * fields(seed + 1, 1.0), 0).astype(np.uint16)


def by_brute_force(
    truth: np.ndarray,
    prediction: np.ndarray,
    voxel_size: tuple[float, ...],
    version: Version = DEFINITION,
) -> InstanceCounts:
    """A version word for word: dense IoU, dense assignment, all pairs of voxels."""
    prediction = label(prediction, connectivity=3, background=0)
    truth_ids, prediction_ids = np.unique(truth[truth > 0]), np.unique(prediction[prediction > 0])
    iou = np.array(
        [
            [(a & b).sum() / (a | b).sum() for b in (prediction == j for j in prediction_ids)]
            for a in (truth == i for i in truth_ids)
        ]
    )
    cost = np.where(iou > 0, np.trunc((1 - iou) * 1e6), 1_000_001)
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(cost), strict=True) if iou[i, j] > 0]
    # who is matched gets the id of its match; who is not keeps its number, or gets one of its own
    renamed = prediction.astype(np.int64)
    if not version.unmatched_keep_their_number:
        renamed[prediction > 0] += 10**9
    for i, j in pairs:
        renamed[prediction == prediction_ids[j]] = truth_ids[i]
    cap = min(np.multiply(voxel_size, truth.shape)) / 2
    distances = []
    for number in truth_ids:
        sides = [np.argwhere(volume == number) * voxel_size for volume in (truth, renamed)]
        distance = cap
        if len(sides[1]):
            between = cdist(*sides)
            distance = min(cap, max(between.min(0).max(), between.min(1).max()))
        distances.append(float(np.float32(distance)) if version.rounds_distances else distance)
    fp, fn = len(prediction_ids) - len(pairs), len(truth_ids) - len(pairs)
    normalised = [1.01 ** (-d / math.hypot(*voxel_size)) for d in distances + [cap] * fp]
    return InstanceCounts(
        len(pairs), fp, fn, hausdorff_norm_sum=sum(normalised), n_hausdorff=len(normalised)
    )


def test_the_public_codes_values_for_an_object_moved_by_a_voxel(truth, shifted):
    found = challenge.instance(truth, shifted, VOXEL)
    assert (found.tp, found.fp, found.fn, found.n_hausdorff) == (1, 0, 1, 2)
    assert found.hausdorff_norm_sum == pytest.approx(1.9384423824, abs=1e-9)


def test_the_public_codes_values_with_a_speck_far_away(truth, shifted):
    shifted[18:, :2, :2] = 7
    found = challenge.instance(truth, shifted, VOXEL)
    assert (found.tp, found.fp, found.fn, found.n_hausdorff) == (1, 1, 1, 3)
    assert found.hausdorff_norm_sum == pytest.approx(2.8826131211, abs=1e-9)


def test_the_public_codes_values_for_an_empty_prediction(truth):
    found = challenge.instance(truth, np.zeros_like(truth), VOXEL)
    assert (found.tp, found.fp, found.fn, found.n_hausdorff, found.status) == (0, 0, 2, 2, "scored")
    assert found.hausdorff_norm_sum == pytest.approx(1.8883414773, abs=1e-9)
    assert pytest.approx(0.9441707387, abs=1e-9) == EIGHTY_NM


def test_the_public_codes_values_for_two_classes():
    mito = (
        InstanceCounts(1, 0, 1, hausdorff_norm_sum=1.5, n_hausdorff=2),
        InstanceCounts(3, 1, 0, hausdorff_norm_sum=2.0, n_hausdorff=4),
    )
    found = challenge.combine([("mito", mito[0]), ("er", Counts(10, 5, 5)), ("mito", mito[1])])
    one = found.label_scores["mito"]
    assert one.f1 == pytest.approx(0.8, abs=1e-9)
    assert one.normalized_hausdorff_distance == pytest.approx(3.5 / 6, abs=1e-9)
    assert (
        one.combined_score
        == found.overall_instance_score
        == pytest.approx(math.sqrt(0.8 * 3.5 / 6), abs=1e-9)
    )
    assert (
        found.label_scores["er"].iou == found.overall_semantic_score == pytest.approx(0.5, abs=1e-9)
    )
    assert found.overall_score == pytest.approx(0.584436, abs=1e-6)
    assert found.overall_score == pytest.approx(math.sqrt(math.sqrt(0.8 * 3.5 / 6) * 0.5), abs=1e-9)
    assert (found.total_evals, found.num_evals_done) == (3, 3)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("voxel_size", [(8.0, 8.0, 8.0), (5.24, 4.0, 3.3)])
@pytest.mark.parametrize("version", [CSC, DEFINITION], ids=lambda version: version.name)
def test_an_evaluation_is_its_version_by_brute_force(seed, voxel_size, version):
    truth, prediction = blobs(seed), blobs(seed, noise=0.5)
    found = challenge.instance(truth, prediction, voxel_size, version=version)
    reference = by_brute_force(truth, prediction, voxel_size, version)
    assert (found.tp, found.fp, found.fn, found.n_hausdorff) == (
        reference.tp,
        reference.fp,
        reference.fn,
        reference.n_hausdorff,
    )
    assert found.hausdorff_norm_sum == pytest.approx(reference.hausdorff_norm_sum, abs=1e-9)


@pytest.mark.parametrize("larger", [(3, 9), (6, 12), (3, 12)])
def test_what_reaches_out_of_the_others_box_on_any_side_counts(larger):
    small, large = cube((6, 9)), cube(larger)
    for pair in ((small, large), (large, small)):
        found = challenge.instance(*pair, VOXEL, version=DEFINITION)
        # 3 voxels along all axes
        assert found.hausdorff_norm_sum == pytest.approx(1.01**-3, abs=1e-12)


def test_a_distance_is_capped_at_half_the_shortest_side():
    truth, prediction = np.zeros((2, 10, 4, 60), np.uint8)
    truth[5, 2, :] = 1
    prediction[5, 2, 59] = 1
    found = challenge.instance(truth, prediction, (8, 30, 8))
    assert (found.tp, found.n_hausdorff) == (1, 1)
    assert found.hausdorff_norm_sum == pytest.approx(
        1.01 ** (-40 / math.hypot(8, 30, 8)), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(10))
def test_the_matching_costs_no_more_than_any_other(seed):
    """Exhaustive: each truth object takes any prediction or none."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(1, 50, (5, 6)) * (rng.random((5, 6)) < 0.5)
    table = sparse.csr_array(np.pad(shared, ((1, 0), (1, 0)), constant_values=3))
    sizes = table.sum(1)[1:, None] + table.sum(0)[None, 1:] - shared
    iou = (shared / sizes).astype(np.float32).astype(float)
    cost = np.where(shared > 0, np.trunc((1 - iou) * 1e6), np.inf)
    padded = np.hstack([cost, np.full((5, 5), 1_000_001.0)])
    best = min(padded[range(5), columns].sum() for columns in itertools.permutations(range(11), 5))
    pairs = challenge.match(table) - 1
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert cost[pairs[:, 0], pairs[:, 1]].sum() + 1_000_001 * (5 - len(pairs)) == best


def test_the_best_pair_goes_without_its_partner_if_two_pairs_cost_less():
    table = sparse.csr_array(np.array([[0, 0, 0], [0, 60, 50], [0, 40, 0]]))  # IoU .4, .45; .4, 0
    assert sorted(map(tuple, challenge.match(table))) == [(1, 2), (2, 1)]


def test_costs_are_made_of_float32_as_in_the_public_code():
    """In float64 it would be the other two pairs, by a cost of 1 in 1.5 million."""
    table = sparse.csr_array(np.array([[0, 3, 9], [0, 6, 4], [0, 7, 5]]))
    assert sorted(map(tuple, challenge.match(table))) == [(1, 1), (2, 2)]


def test_a_single_shared_voxel_is_a_match():
    truth, prediction = cube((1, 10)), np.zeros((20, 20, 20), np.uint16)
    prediction[9:12, 9, 9] = 1
    found = challenge.instance(truth, prediction, VOXEL)
    assert (truth > 0).sum() == 729 and ((truth > 0) & (prediction > 0)).sum() == 1
    assert (found.tp, found.fp, found.fn) == (1, 0, 0)


@pytest.mark.parametrize(("objects", "most"), [(1, 50), (5, 141), (10, 167), (50, 500)])
def test_more_predictions_than_the_cutoff_skip_the_evaluation(objects, most):
    """10 + 50 exp(-n / 5) predictions for each of n objects: 50.94, 28.39, 16.77, 10.002."""
    truth, prediction = np.zeros((2, 20, 20, 20), np.uint16)
    lone = np.zeros_like(truth, bool)
    lone[::2, ::2, ::2] = True
    places = np.argwhere(lone)
    truth[tuple(places[:objects].T)] = np.arange(objects) + 1
    prediction[tuple(places[:most].T)] = 1
    assert challenge.instance(truth, prediction, VOXEL).fp == most - objects
    prediction[tuple(places[most])] = 1
    found = challenge.instance(truth, prediction, VOXEL)
    assert found == InstanceCounts(0, 0, 0, "skipped_too_many_instances", 0.0, 0)


def test_more_overlapping_pairs_than_the_limit_skip_the_evaluation(truth, shifted, monkeypatch):
    monkeypatch.setattr(challenge, "MAX_OVERLAPS", 2)
    assert challenge.instance(truth, truth, VOXEL).status == "scored"
    shifted[2] = shifted[3] * 2
    shifted[12:18, 12:18, 12:18] = 3
    assert challenge.instance(truth, shifted, VOXEL).status == "skipped_too_many_instances"


def test_a_skipped_evaluation_neither_helps_nor_hurts(truth, shifted):
    scored = [("mito", challenge.instance(truth, shifted, VOXEL))]
    skipped = ("mito", InstanceCounts(status="skipped_too_many_instances"))
    assert (
        challenge.combine([*scored, skipped]).overall_instance_score
        == challenge.combine(scored).overall_instance_score
    )


def test_touching_predicted_ids_stay_apart():
    truth, prediction = cube((2, 8)), cube((2, 8))
    prediction[2:8, 2:8, 5:8] = 2
    found = challenge.instance(truth, prediction, VOXEL)
    assert (found.tp, found.fp, found.fn, found.n_hausdorff) == (1, 1, 0, 2)


def test_a_predicted_id_in_two_places_is_two_objects_and_a_true_one_is_one():
    twice = cube((2, 8), (12, 18)).clip(max=1)
    found = challenge.instance(twice, twice, VOXEL)
    assert (found.tp, found.fp, found.fn) == (1, 1, 0)


def test_voxels_that_touch_at_a_corner_are_one_predicted_object():
    corner = cube((2, 8), (8, 12)).clip(max=1)
    assert challenge.instance(corner, corner, VOXEL) == InstanceCounts(
        1, 0, 0, hausdorff_norm_sum=1.0, n_hausdorff=1
    )


def test_a_perfect_prediction_scores_one_whatever_its_ids(truth):
    renamed = np.array([0, 900, 5], np.int32)[truth]
    counts = challenge.instance(truth, renamed, VOXEL)
    assert counts == InstanceCounts(2, 0, 0, hausdorff_norm_sum=2.0, n_hausdorff=2)
    assert (
        challenge.combine(
            [("mito", counts), ("er", challenge.semantic(truth, renamed))]
        ).overall_score
        == 1
    )


def test_an_unmatched_prediction_is_measured_as_a_part_of_the_object_whose_number_it_has():
    """By the organisers' code: component 2 is a speck, and truth object 2 is found exactly."""
    truth, prediction = cube((2, 8), (12, 18)), cube()
    prediction[12:18, 12:18, 12:18] = 1
    prediction[19, 0, 0] = 2
    as_written = challenge.instance(truth, prediction, VOXEL, version=DEFINITION)
    assert (as_written.tp, as_written.fp, as_written.fn) == (1, 1, 1)
    assert as_written.hausdorff_norm_sum == pytest.approx(1 + 2 * EIGHTY_NM, abs=1e-12)
    by_the_code = challenge.instance(truth, prediction, VOXEL)
    assert by_the_code.hausdorff_norm_sum == pytest.approx(3 * EIGHTY_NM, abs=1e-12)


def test_the_guard_takes_the_largest_id_for_the_number_of_objects():
    """One object with id 1000, its match and 60 specks: the organisers' code scores it."""
    truth = np.zeros((40, 40, 40), np.uint32)
    truth[10:30, 10:30, 10:30] = 1000
    prediction = truth.copy()
    places = [(z, y, x) for z in range(0, 8, 2) for y in range(0, 8, 2) for x in range(0, 40, 2)]
    for number, place in enumerate(places[:60], 2):
        prediction[place] = number
    found = challenge.instance(truth, prediction, VOXEL)
    assert (found.tp, found.fp, found.status) == (1, 60, "scored")
    # returned by that code
    assert found.hausdorff_norm_sum == pytest.approx(54.48750302456399, abs=1e-9)
    renumbered = challenge.instance(truth // 1000, prediction, VOXEL)
    as_written = challenge.instance(truth, prediction, VOXEL, version=DEFINITION)
    assert renumbered.status == as_written.status == "skipped_too_many_instances"


def test_what_the_organisers_code_returned_for_drawn_objects():
    truth = np.zeros((40, 40, 40), np.uint32)
    truth[4:12, 4:12, 4:12], truth[26:34, 26:34, 26:34] = 1, 2
    first_a_speck = np.zeros_like(truth)
    first_a_speck[2:4, 30:32, 30:32] = 9
    first_a_speck[5:13, 4:12, 4:12] = 5
    first_a_speck[26:34, 26:34, 27:35] = 7
    found = challenge.instance(truth, first_a_speck, VOXEL)
    assert (found.tp, found.fp, found.fn, found.n_hausdorff) == (2, 1, 0, 3)
    assert found.hausdorff_norm_sum == pytest.approx(2.7771884112487664, abs=1e-9)
    close_by = np.zeros_like(truth)
    close_by[14:20, 4:12, 4:12] = 1
    found = challenge.instance(truth, close_by, VOXEL)
    assert (found.tp, found.fp, found.fn, found.n_hausdorff) == (0, 1, 2, 3)
    assert found.hausdorff_norm_sum == pytest.approx(2.7270875061459767, abs=1e-9)


@pytest.mark.parametrize("kind", ["bool", ">u2", ">i8"])
def test_volumes_of_any_kind_that_hold_nothing_add_nothing(kind):
    empty = np.zeros((20, 20, 20), kind)
    assert challenge.instance(empty, empty, VOXEL) == InstanceCounts()
    assert challenge.missing(empty, is_instance=True).fn == 0


@pytest.mark.parametrize("kind", ["bool", ">u2", "<i8"])
def test_a_missing_class_misses_the_objects_of_any_kind_of_truth(kind):
    assert challenge.missing(cube((2, 8)).astype(kind), is_instance=True).fn == 1


def test_predictions_without_truth_are_all_false_and_never_skipped():
    prediction = np.zeros((20, 20, 20), np.uint16)
    prediction[::2, ::2, ::2] = 1
    found = challenge.instance(np.zeros_like(prediction), prediction, VOXEL)
    assert (found.tp, found.fp, found.fn, found.n_hausdorff, found.status) == (
        0,
        1000,
        0,
        1000,
        "scored",
    )
    assert found.hausdorff_norm_sum == pytest.approx(1000 * EIGHTY_NM, abs=1e-9)


def test_an_evaluation_without_any_object_adds_nothing():
    empty = np.zeros((20, 20, 20), np.uint16)
    assert challenge.instance(empty, empty, VOXEL) == InstanceCounts()


def test_a_missing_class_misses_every_object_or_every_voxel(truth):
    found = challenge.missing(truth, is_instance=True)
    assert found == InstanceCounts(0, 0, 2, "missing", hausdorff_norm_sum=0.0, n_hausdorff=2)
    assert challenge.missing(truth, is_instance=False) == Counts(0, 0, 8000, "missing")


@pytest.mark.parametrize(("version", "done"), [(CSC, 3), (DEFINITION, 1)])
def test_missing_evaluations_count_and_the_code_calls_them_done(truth, version, done):
    found = challenge.combine(
        [
            ("mito", challenge.missing(truth, True)),
            ("er", Counts(3, 0, 1)),
            ("er", challenge.missing(truth, False)),
        ],
        version,
    )
    assert (found.total_evals, found.num_evals_done) == (3, done)
    assert found.label_scores["mito"].combined_score == found.overall_score == 0
    assert found.label_scores["er"].iou == 3 / 8004


def test_a_class_that_is_nowhere_scores_one():
    found = challenge.combine([("mito", InstanceCounts()), ("er", Counts())])
    assert found.label_scores["mito"].combined_score == found.label_scores["er"].iou == 1


def test_counts_are_pooled_over_crops_and_scores_averaged_over_classes():
    found = challenge.combine(
        [("er", Counts(90, 10, 0)), ("er", Counts(0, 0, 100)), ("pm", Counts(1, 0, 0))]
    )
    assert found.overall_semantic_score == pytest.approx((90 / 200 + 1) / 2)


def test_the_mean_over_no_class_is_unknown():
    found = challenge.combine([("er", Counts(1, 1, 0))])
    assert found.overall_semantic_score == 0.5
    assert math.isnan(found.overall_instance_score) and math.isnan(found.overall_score)


def test_semantic_counts_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (7, 8, 9)), rng.normal(0, 1, (7, 8, 9))
    found = challenge.semantic(truth, prediction)
    flat = truth.ravel() > 0, prediction.ravel() > 0
    (_, fp), (fn, tp) = confusion_matrix(*flat)
    assert found == Counts(tp, fp, fn)
    iou = challenge.combine([("er", found)]).label_scores["er"].iou
    assert iou == pytest.approx(jaccard_score(*flat), abs=1e-12)


def test_what_the_mask_hides_is_background_on_both_sides(truth, shifted):
    mask = np.ones(truth.shape, np.uint8)
    mask[12:] = 0
    shifted[14:16, 2:8, 2:8] = 2
    hidden = [np.where(mask, volume, 0) for volume in (truth, shifted)]
    assert challenge.instance(truth, shifted, VOXEL, mask) == challenge.instance(*hidden, VOXEL)
    assert (
        challenge.instance(truth, shifted, VOXEL, mask).fn
        == challenge.instance(truth, shifted, VOXEL, mask).fp
        == 0
    )
    assert (
        challenge.semantic(truth, shifted, mask)
        == challenge.semantic(*hidden)
        == Counts(180, 36, 36)
    )
    assert (challenge.contingency(truth, shifted, mask) != challenge.contingency(*hidden)).nnz == 0


def test_a_mask_of_any_number_hides_or_shows_and_leaves_ids_alone(truth):
    small = truth.astype(np.uint8) * 100
    assert challenge.instance(small, small, VOXEL, np.full(small.shape, 255, np.uint8)).tp == 2


@pytest.mark.parametrize("kind", ["uint8", "int16", ">u2", "uint64", "int64"])
def test_ids_of_any_integer_kind_score_the_same(kind):
    truth, prediction = blobs(1), blobs(1, noise=0.5)
    again = challenge.instance(truth.astype(kind), prediction.astype(kind)[::-1, :, :][::-1], VOXEL)
    assert again == challenge.instance(truth, prediction, VOXEL)


def test_ids_as_large_as_they_come_cost_no_more_than_small_ones():
    truth, prediction = blobs(1), blobs(1, noise=0.5)
    large = truth.astype(np.uint64) * np.uint64(2**60)
    assert challenge.instance(large, prediction, VOXEL) == challenge.instance(
        truth, prediction, VOXEL
    )


def test_a_contingency_table_counts_shared_voxels_over_slabs(monkeypatch):
    monkeypatch.setattr(challenge, "SLAB_VOXELS", 300)
    truth, prediction = blobs(3), blobs(3, noise=0.5)
    found = challenge.contingency(truth, prediction).toarray()
    assert found[0, 0] == ((truth == 0) & (prediction == 0)).sum()
    assert sorted(found.ravel()) == sorted(
        confusion_matrix(truth.ravel(), prediction.ravel()).ravel()
    )
    assert sorted(found.sum(1)) == sorted(np.bincount(truth.ravel())) and sorted(
        found.sum(0)
    ) == sorted(np.bincount(prediction.ravel()))


@pytest.mark.parametrize(
    "measure",
    [challenge.semantic, lambda t, p: challenge.instance(t, p, VOXEL), challenge.contingency],
)
def test_shapes_that_differ_are_refused(truth, measure):
    with pytest.raises(ValueError, match=r"truth \(20, 20, 20\), prediction \(19, 20, 20\)"):
        measure(truth, truth[1:])


def test_a_plane_is_refused(truth):
    with pytest.raises(ValueError, match="not three-dimensional"):
        challenge.instance(truth[0], truth[0], VOXEL)


def test_negative_and_fractional_ids_are_refused(truth):
    with pytest.raises(ValueError, match="prediction has the id -3"):
        challenge.instance(truth, np.where(truth > 0, -3, 0), VOXEL)
    with pytest.raises(ValueError, match="truth is float32"):
        challenge.instance(truth.astype(np.float32), truth, VOXEL)


@pytest.mark.parametrize("voxel_size", [(8, 8), 8, (8, 8, 0), (8, 8, math.nan)])
def test_a_voxel_size_that_is_none_is_refused(truth, voxel_size):
    with pytest.raises(ValueError, match="three sizes in nm"):
        challenge.instance(truth, truth, voxel_size)
