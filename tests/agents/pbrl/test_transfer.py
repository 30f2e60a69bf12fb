"""Cross-task preference alignment: known answers of Gromov-Wasserstein transport, its traps, and labels end to end."""

import warnings

import numpy as np
import ot
import pytest
import torch

from aligngym.agents.pbrl.dataset import PreferenceDataset
from aligngym.agents.pbrl.segments import Segments
from aligngym.agents.pbrl.transfer import (
    AlignmentConfig,
    align_preferences,
    contradict,
    distance_labels,
    distance_matrix,
    gromov_wasserstein,
    gromov_wasserstein_starts,
    kmeans,
    segment_features,
    similarity_labels,
    transfer_accuracy,
    transfer_labels,
    transport_loss,
)

STEPS, NUMBERS = 5, 3  # a segment of these tests: two numbers of state and one of action a step


def table(quality):
    """Labels of all pairs: 1 where the row is better, 0.5 where equal."""
    return (np.sign(np.subtract.outer(quality, quality)) + 1) / 2


def distances(points):
    found = np.linalg.norm(points[:, None] - points, axis=-1)
    return found / found.max()


def rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def segments(points):
    """Segments of which the steps, one after the other, are the rows of ``points`` ``[N, STEPS * NUMBERS]``."""
    values = torch.tensor(points, dtype=torch.float32).reshape(len(points), STEPS, NUMBERS)
    mask = torch.ones(len(points), STEPS, dtype=torch.bool)
    return Segments(values[..., :2], values[..., 2:], mask, *torch.arange(2 * len(points)).reshape(2, -1))


def off_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


@pytest.mark.parametrize("count", [4, 8, 16, 32, 64])
def test_an_isometric_permutation_is_recovered(count):
    """Random points, moved into a higher dimension and permuted: 20 of 20, from the product plan alone."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        points, order, quality = rng.normal(size=(count, 3)), rng.permutation(count), rng.normal(size=count)
        moved = (points @ rotation(rng, 5)[:3] + rng.normal(size=5))[order]
        plan, value = gromov_wasserstein(distances(points), distances(moved), starts=1, rng=rng)
        assert np.array_equal(plan.argmax(0), order)
        np.testing.assert_allclose(plan, (order == np.arange(count)[:, None]) / count, atol=1e-9)
        assert value < 1e-14
        labels = transfer_labels(plan, table(quality))
        assert np.array_equal(off_diagonal(labels), off_diagonal(table(quality[order])))


def test_the_identity_gives_the_source_table():
    source = np.array([[9, 0, 0], [1, 9, 1], [1, 0, 9]], float)
    labels = transfer_labels(np.eye(3) / 3, source)
    np.testing.assert_array_equal(off_diagonal(labels), off_diagonal(source))
    assert np.isnan(labels.diagonal()).all()


def test_segments_that_are_mixed_up_are_equally_good():
    plan = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 2]]) / 6
    labels = transfer_labels(plan, np.array([[0, 0, 0], [1, 0, 1], [1, 0, 0]], float))
    np.testing.assert_allclose([labels[0, 1], labels[1, 0]], 0.5, atol=1e-12)
    # Each is half the worst and half the best; the third is between them.
    np.testing.assert_allclose(labels[2, :2], [0.5, 0.5], atol=1e-12)


def test_complementary_labels_stay_so_under_any_plan():
    rng = np.random.default_rng(0)
    plan = rng.random((6, 4))
    source = rng.random((6, 6))
    source = (source + 1 - source.T) / 2
    labels = transfer_labels(plan, source)
    np.testing.assert_allclose(off_diagonal(labels + labels.T), 1.0, atol=1e-12)
    assert np.abs(off_diagonal(labels) - 0.5).max() > 0.01


def test_unknown_pairs_have_no_weight():
    rng = np.random.default_rng(0)
    plan, source = rng.random((5, 4)), rng.random((5, 5))
    source[0, 1] = source[3, 2] = np.nan
    known = [(i, k) for i in range(5) for k in range(5) if i != k and not np.isnan(source[i, k])]
    weights = np.array([plan[i, 1] * plan[k, 3] for i, k in known])
    expected = weights @ [source[pair] for pair in known] / weights.sum()
    np.testing.assert_allclose(transfer_labels(plan, source)[1, 3], expected)
    source[:] = np.nan
    source[0, 1] = 1
    labels = transfer_labels(np.eye(5)[:, :3] / 5, source)
    assert np.argwhere(~np.isnan(labels)).tolist() == [[0, 1]]


def test_labels_are_not_all_second_preferred():
    """The bare sum gives 1/9 where the truth is 1 (trap 4); with no information at all, a label is 0.5."""
    source = np.array([[0, 0, 0], [1, 0, 1], [1, 0, 0]], float)
    plan = np.eye(3) / 3
    assert (plan.T @ source @ plan).max() == pytest.approx(1 / 9)
    assert np.nanmax(transfer_labels(plan, source)) == pytest.approx(1)
    np.testing.assert_allclose(off_diagonal(transfer_labels(np.full((3, 3), 1 / 9), source)), 0.5)


def line(positions, seed=0):
    """Points on a line, the better the further right, and the same in another order."""
    points = np.asarray(positions, float)
    order = np.random.default_rng(seed).permutation(len(points))
    return distances(points[:, None]), distances(points[order][:, None]), table(points), table(points[order])


def test_a_symmetric_task_can_be_matched_the_wrong_way_round():
    """Trap 1: nine evenly spaced points. Nearly all random starts reach 0; labels are wholly right or wholly wrong."""
    source, target, labels, truth = line(range(9))
    product, *runs = gromov_wasserstein_starts(source, target, starts=41, rng=np.random.default_rng(0))
    solved = [plan for plan, value in runs if value < 1e-12]
    assert len(solved) >= 32
    accuracies = [transfer_accuracy(transfer_labels(plan, labels), truth) for plan in solved]
    assert set(accuracies) == {0.0, 1.0}
    assert min(accuracies.count(0.0), accuracies.count(1.0)) >= 5
    assert contradict([product, *runs], labels, 1e-6)


def test_the_diagnostic_is_silent_on_an_asymmetric_task():
    source, target, labels, truth = line([0, 1, 3, 7, 8, 12, 20, 21, 30])
    runs = gromov_wasserstein_starts(source, target, starts=41, rng=np.random.default_rng(0))
    near = 0.05 * transport_loss(source, target, np.full((9, 9), 1 / 81))
    assert not contradict(runs, labels, near)
    plan, value = min(runs, key=lambda run: run[1])
    assert value < 1e-12
    assert transfer_accuracy(transfer_labels(plan, labels), truth) == 1
    # There are other local optima, some of them opposite; without the values it would fire.
    assert contradict(runs, labels, 1.0)


def test_integer_distances_are_not_rounded_to_an_empty_plan():
    """Trap 2: given integers, POT rounds the plan to integers, too."""
    points = np.array([0, 1, 3, 7])
    source = np.abs(np.subtract.outer(points, points))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not ot.gromov.gromov_wasserstein(source, source).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan, value = gromov_wasserstein(source, source, rng=np.random.default_rng(0))
    assert plan.dtype == np.float64
    np.testing.assert_allclose(plan, np.eye(4) / 4, atol=1e-9)
    assert value < 1e-12


def test_the_value_is_the_loss_of_the_plan():
    """All four sums written out, and POT's own; sets of different sizes; every plan has the right marginals."""
    rng = np.random.default_rng(0)
    source, target = distances(rng.normal(size=(5, 2))), distances(rng.normal(size=(7, 3)))
    runs = gromov_wasserstein_starts(source, target, starts=8, rng=rng)
    assert len(runs) == 8
    assert len({round(value, 9) for _, value in runs}) > 1  # the starts matter
    for plan, value in runs:
        np.testing.assert_allclose(plan.sum(1), 1 / 5)
        np.testing.assert_allclose(plan.sum(0), 1 / 7)
        gaps = (source[:, :, None, None] - target) ** 2
        assert value == pytest.approx(np.einsum("ikjl,ij,kl", gaps, plan, plan))
    assert runs[0][1] == pytest.approx(ot.gromov.gromov_wasserstein2(source, target))
    assert gromov_wasserstein(source, target, starts=8, rng=rng)[1] <= runs[0][1] + 1e-12
    # A point against a pair at distance 1: the loss is 1/2, Mémoli's distance the square root of it, halved.
    assert gromov_wasserstein(np.zeros((1, 1)), 1 - np.eye(2), rng=rng)[1] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def noise_table():
    """Mean accuracy of transferred labels by number of segments, noise and starts."""
    found = {}
    cases = [(0, 1), (0.05, 1), (0.2, 1), (0.2, 6), (0.4, 1), (0.4, 6), (0.8, 1), (0.8, 6)]
    for count, noise, starts in [*((32, *case) for case in cases), (8, 0.2, 6)]:
        accuracies = []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            quality, points, order = rng.normal(size=count), rng.normal(size=(count, 4)) / 2, rng.permutation(count)
            points[:, :2] += np.stack([2 * quality, quality**2], 1)
            moved = (points @ rotation(rng, 8)[:4])[order] + noise * rng.normal(size=(count, 8))
            plan, _ = gromov_wasserstein(distances(points), distances(moved), starts=starts, rng=rng)
            accuracies.append(transfer_accuracy(transfer_labels(plan, table(quality)), table(quality[order])))
        found[count, noise, starts] = np.mean(accuracies)
    return found


def test_accuracy_falls_with_noise_and_rises_with_starts_and_size(noise_table):
    assert noise_table[32, 0, 1] == 1
    assert noise_table[32, 0.05, 1] > 0.95
    for (noise, starts), expected in {(0.2, 1): 0.89, (0.2, 6): 0.93, (0.4, 1): 0.77, (0.4, 6): 0.87}.items():
        assert noise_table[32, noise, starts] == pytest.approx(expected, abs=0.06)
    assert noise_table[32, 0.8, 1] == pytest.approx(0.6, abs=0.1)
    assert noise_table[32, 0.4, 6] > noise_table[32, 0.4, 1] + 0.05
    assert noise_table[32, 0.4, 6] > noise_table[32, 0.8, 6] > noise_table[32, 0.8, 1]
    assert noise_table[32, 0.2, 6] > noise_table[8, 0.2, 6] + 0.03


def test_distances_are_of_standardised_segments():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, STEPS * NUMBERS))
    made = segments(points)
    values = points.reshape(6 * STEPS, NUMBERS)
    standard = ((values - values.mean(0)) / values.std(0)).reshape(6, -1)
    np.testing.assert_allclose(distance_matrix(made), distances(standard), atol=1e-6)
    state = standard.reshape(6, STEPS, NUMBERS)[..., :2].reshape(6, -1)
    np.testing.assert_allclose(distance_matrix(made, features="state"), distances(state), atol=1e-6)
    unit = standard / np.linalg.norm(standard, axis=1, keepdims=True)
    angles = 1 - unit @ unit.T
    np.testing.assert_allclose(distance_matrix(made, metric="cosine"), angles / angles.max(), atol=1e-6)
    # Units of a dimension and a constant one change nothing; a longer segment of the same steps does not, either.
    scaled = points * np.tile([100.0, 0.01, 1], STEPS) + 7
    np.testing.assert_allclose(distance_matrix(segments(scaled)), distance_matrix(made), atol=1e-5)
    constant = points.copy()
    constant[:, 2::3] = 0.1
    np.testing.assert_allclose(distance_matrix(segments(constant)), distances(state), atol=1e-6)
    assert not distance_matrix(segments(np.ones((3, STEPS * NUMBERS)))).any()


def test_left_padding_is_not_read_and_lengths_must_be_equal():
    points = np.random.default_rng(0).normal(size=(6, STEPS * NUMBERS))
    made = segments(points)
    padding = torch.full((6, 2, 2), 1e3)
    mask = torch.cat([torch.zeros(6, 2, dtype=torch.bool), made.mask], 1)
    steps = torch.cat([padding, made.observations], 1), torch.cat([padding[..., :1], made.actions], 1)
    padded = Segments(*steps, mask, made.episode, made.start)
    np.testing.assert_array_equal(segment_features(padded), segment_features(made))
    mask[0, 0] = True
    with pytest.raises(ValueError, match=r"segments have \[5, 6\] steps, expected all of one length"):
        segment_features(padded)


def test_kmeans_finds_clusters_and_never_collapses():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(size=(10, 3)), rng.normal(size=(15, 3)) + 20])
    found = kmeans(two, 2, 2, rng)
    assert sorted(map(len, (found[:10], found[10:]))) == [10, 15]
    assert len(set(found[:10])) == len(set(found[10:])) == 1
    assert found[0] != found[-1]
    # Trap 3: one outlier is a cluster of its own, of which no two segments can be drawn.
    outlier = np.concatenate([rng.normal(size=(11, 3)), [[1e4, 0, 0]]])
    assert np.bincount(kmeans(outlier, 2, 1, rng)).min() == 1
    assert np.bincount(kmeans(outlier, 2, 2, rng)).tolist() == [6, 6]
    # Fewer different segments than clusters.
    same = np.repeat([[0.0], [1.0]], 6, 0)
    assert np.bincount(kmeans(same, 3, 2, rng)).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="all segments are the same"):
        kmeans(np.ones((8, 2)), 2, 2, rng)
    with pytest.raises(ValueError, match="3 segments: too few for 2 clusters of at least 2"):
        kmeans(np.eye(3), 2, 2, rng)


def test_accuracy_counts_sides():
    truth = np.array([1, 1, 0, 0, 0.5, np.nan, 1])
    labels = np.array([0.9, 0.4, 0.1, 0.5, 0.9, 1, np.nan])
    assert transfer_accuracy(labels, truth) == (1 + 0 + 1 + 0.5) / 4
    assert transfer_accuracy(torch.tensor([0.2]), np.array([0.0])) == 1
    with pytest.raises(ValueError, match="no pair has both"):
        transfer_accuracy(np.array([1.0]), np.array([0.5]))
    with pytest.raises(ValueError, match="expected the same"):
        transfer_accuracy(np.ones(2), np.ones(3))


def two_groups(rng, spread, count=20):
    """Good segments close together, bad ones elsewhere and ``spread`` as far apart; and which are good."""
    size = STEPS * NUMBERS
    good = rng.random(count) < 0.5
    direction = rng.normal(size=size)
    points = np.where(good[:, None], 6 * direction / np.linalg.norm(direction), 0.0)
    return points + 0.3 * np.where(good[:, None], 1, spread) * rng.normal(size=(count, size)), good.astype(float)


def aligned(spread, seed, **options):
    rng = np.random.default_rng(seed)
    (source, quality), (target, truth) = two_groups(rng, spread), two_groups(rng, spread)
    config = AlignmentConfig(num_labels=200, **options)
    pairs, labels, report = align_preferences(segments(source), table(quality), segments(target), config, rng)
    return pairs, labels, report, table(truth)[tuple(pairs.T)]


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_labels_of_a_task_of_another_geometry_are_right(seed):
    """Where bad segments differ more among themselves than good ones, distances tell which are which."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs, labels, report, truth = aligned(3, seed)
    assert transfer_accuracy(labels, truth) > 0.85
    assert report.ambiguity < 0.15
    assert report.problems == len(report.values) == 50  # four pairs across clusters each
    assert report.value == pytest.approx(np.mean(report.values))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    PreferenceDataset(segments=segments(np.zeros((20, STEPS * NUMBERS))), pairs=pairs, labels=labels)  # takes them
    assert len(pairs) == 200


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_task_that_is_its_own_mirror_image_is_warned_of(seed):
    with pytest.warns(UserWarning, match="give opposite labels"):
        _, labels, report, truth = aligned(1, seed)
    assert 0.3 < transfer_accuracy(labels, truth) < 0.7
    assert report.ambiguity > 0.35


def test_the_same_seed_aligns_alike():
    (pairs, labels, report, _), again = aligned(3, 0), aligned(3, 0)
    assert torch.equal(pairs, again[0]) and torch.equal(labels, again[1]) and report == again[2]


def test_few_labels_of_the_source_suffice_and_none_between_clusters_do_not():
    rng = np.random.default_rng(1)
    (source, quality), (target, truth) = two_groups(rng, 3), two_groups(rng, 3)
    labels = table(quality)
    few = np.full_like(labels, np.nan)
    across = np.argwhere(labels == 1)
    for i, k in across[rng.permutation(len(across))[:10]]:
        few[i, k], few[k, i] = 1, 0
    config = AlignmentConfig(num_labels=100)
    pairs, given, report = align_preferences(segments(source), few, segments(target), config, rng)
    assert len(given) == 100
    assert not given.isnan().any()
    assert report.problems > 25
    assert transfer_accuracy(given, table(truth)[tuple(pairs.T)]) > 0.8
    within = np.where(labels == 0.5, labels, np.nan)
    with pytest.raises(ValueError, match="no labelled pair has its segments in two clusters"):
        align_preferences(segments(source), within, segments(target), config, rng)
    with pytest.raises(ValueError, match=r"source_labels have shape \(3, 3\), but there are 20"):
        align_preferences(segments(source), np.ones((3, 3)), segments(target), config, rng)


@pytest.mark.parametrize("baseline", [similarity_labels, distance_labels])
def test_baselines_compare_the_two_tasks_directly(baseline):
    """Right where the target is the source with noise; anything, chance on average, where its states are turned."""
    straight, turned = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        points, quality = two_groups(rng, 3)
        order = rng.permutation(20)
        near = segments((points + 0.1 * rng.normal(size=points.shape))[order])
        far = segments((points @ rotation(rng, STEPS * NUMBERS))[order])
        labels, truth = table(quality), table(quality[order])
        straight.append(transfer_accuracy(baseline(segments(points), labels, near), truth))
        turned.append(transfer_accuracy(baseline(segments(points), labels, far), truth))
    assert np.mean(straight) > 0.95
    assert abs(np.mean(turned) - 0.5) < 0.3
    source = segments(points)
    twice = (torch.cat([x, x], 1) for x in (source.observations, source.actions, source.mask))
    longer = Segments(*twice, source.episode, source.start)
    with pytest.raises(ValueError, match="segments have 15 and 30 numbers"):
        baseline(source, labels, longer)


def test_baselines_match_a_segment_with_itself():
    source = segments(np.repeat([[-1.0], [1.0]], STEPS * NUMBERS, 1))
    labels = np.array([[0, 0.2], [0.8, 0]])
    np.testing.assert_allclose(off_diagonal(distance_labels(source, labels, source)), [0.2, 0.8], atol=1e-6)
    sharp, flat = (similarity_labels(source, labels, source, temperature=t) for t in (0.01, 1e6))
    np.testing.assert_allclose(off_diagonal(sharp), [0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose(off_diagonal(flat), 0.5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, "clusters=1: must be at least 2"),
        ({"per_cluster": 0}, "per_cluster=0: must be at least 1"),
        ({"max_ambiguity": 1.5}, r"max_ambiguity=1.5: must be in \[0, 1\]"),
        ({"metric": "l1"}, "metric='l1': must be one of euclidean, cosine"),
        ({"features": "pixels"}, "features='pixels': must be one of state_action, state, action"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AlignmentConfig(**options)


def test_what_cannot_be_transported_is_named():
    rng = np.random.default_rng(0)
    good = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"target has shape \(2, 3\), expected a square"):
        gromov_wasserstein(good, np.zeros((2, 3)), rng=rng)
    with pytest.raises(ValueError, match="source has NaN or infinite entries"):
        gromov_wasserstein(np.full((2, 2), np.nan), good, rng=rng)
    with pytest.raises(ValueError, match=r"plan has shape \(3, 3\), expected \(2, target segments\)"):
        transfer_labels(np.eye(3), good)
    with pytest.raises(ValueError, match="temperature=0: must be above 0"):
        similarity_labels(segments(np.eye(15)), np.eye(15), segments(np.eye(15)), temperature=0)
