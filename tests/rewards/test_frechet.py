"""The Frechet distance against closed forms, on samples with exactly the moments that are asked for."""

import numpy as np
import pytest
import torch

from aligngym.rewards import frechet_distance


def sample(mean, covariance, count=200, seed=0):
    """Rows whose mean and unbiased covariance are these, to rounding."""
    rows = np.random.default_rng(seed).standard_normal((count, len(mean)))
    rows -= rows.mean(0)
    whitened = rows @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(rows, rowvar=False)))).T
    return mean + whitened @ np.linalg.cholesky(np.atleast_2d(covariance)).T


def test_one_dimension():
    a, b = sample([1.0], [[4.0]]), sample([-2.0], [[0.25]], seed=1)
    assert frechet_distance(a, b) == pytest.approx((1 + 2) ** 2 + (2 - 0.5) ** 2)


def test_only_the_means_differ():
    covariance = [[2.0, 0.5], [0.5, 1.0]]
    a, b = sample([0.0, 0.0], covariance), sample([3.0, -4.0], covariance, seed=1)
    assert frechet_distance(a, b) == pytest.approx(25.0)


def test_covariances_that_commute():
    turned = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
    first, second = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    a, b = (sample(np.zeros(3), turned @ np.diag(v) @ turned.T, seed=i) for i, v in enumerate((first, second)))
    assert frechet_distance(a, b) == pytest.approx(((np.sqrt(first) - np.sqrt(second)) ** 2).sum())


def test_covariances_that_do_not_commute():
    first, second = np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([[1.0, -0.7], [-0.7, 4.0]])
    product = first @ second  # of a 2x2 matrix with positive eigenvalues, tr(root)^2 = tr + 2 root(det)
    overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    a, b = sample([1.0, 0.0], first), sample([0.0, 0.0], second, seed=1)
    assert frechet_distance(a, b) == pytest.approx(1 + np.trace(first) + np.trace(second) - 2 * overlap)


def test_equal_sets_are_at_distance_zero_and_order_does_not_matter():
    rows = np.random.default_rng(0).standard_normal((50, 4))
    assert frechet_distance(rows, rows[::-1]) == pytest.approx(0, abs=1e-9)
    other = rows * 2 + 1
    assert frechet_distance(rows, other) == pytest.approx(frechet_distance(other, rows))
    assert frechet_distance(rows, other) > 1


def test_fewer_rows_than_features():
    """The covariance is singular; the distance of shifted copies is still that of their means."""
    rows = np.random.default_rng(0).standard_normal((3, 8))
    assert frechet_distance(rows, rows + 1) == pytest.approx(8.0)


def test_tensors_and_single_precision():
    rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    assert frechet_distance(torch.from_numpy(rows), rows + 1) == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(4), r"features_b must be \[N, D\].*got shape \[4\]"),
        (np.zeros((1, 4)), r"N at least 2.*got shape \[1, 4\]"),
        (np.zeros((5, 0)), r"D at least 1.*got shape \[5, 0\]"),
        (np.full((5, 4), np.nan), "features_b holds numbers that are not finite"),
        (np.zeros((5, 3)), "features_a has 4 features, features_b has 3"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(np.zeros((5, 4)), wrong)
