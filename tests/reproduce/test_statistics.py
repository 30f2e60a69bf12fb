"""Statistics of claims: intervals that cover what they promise with five seeds, and their pure helpers."""

import math

import numpy as np
import pytest

from aligngym.reproduce.statistics import at_level, bootstrap_interval, energy_distance, outcome, student_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (30, 2.04227)]
)
def test_student_quantile_is_the_tables(degrees, expected):
    assert student_quantile(0.975, degrees) == pytest.approx(expected, abs=1e-4)


def test_intervals_of_five_values_cover_the_mean_as_often_as_promised():
    rng, trials = np.random.default_rng(0), 400
    covered = plain = 0
    for values in rng.standard_normal((trials, 5)):
        low, high = bootstrap_interval(values, resamples=2000)
        covered += low <= 0 <= high
        means = values[rng.integers(5, size=(2000, 5))].mean(1)
        plain += np.quantile(means, 0.025) <= 0 <= np.quantile(means, 0.975)
    assert covered / trials > 0.9 > plain / trials  # the plain percentiles are those that would not do


def test_interval_depends_on_its_arguments_alone_and_moves_with_the_values():
    values = [0.1, 0.4, 0.2, 0.3, 0.5]
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert min(values) <= low < np.mean(values) < high <= max(values)
    shifted = bootstrap_interval([v + 1 for v in values])
    assert shifted == pytest.approx((low + 1, high + 1))
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_interval([2.0] * 5) == (2.0, 2.0)


def test_one_value_says_nothing_of_spread_and_bad_ones_raise():
    assert bootstrap_interval([3.0]) == (-math.inf, math.inf)
    for bad in ([], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="finite"):
            bootstrap_interval(bad)


def test_outcome():
    assert outcome((0.1, 0.3)) == "holds"
    assert outcome((-0.1, 0.3)) == "not shown"
    assert outcome((-0.3, -0.1)) == "reversed"
    assert outcome((0.0, 0.3)) == "not shown"
    assert outcome((-0.1, 0.3), margin=0.2) == "holds"
    assert outcome((-0.3, -0.1), margin=0.2) == "not shown"
    assert outcome((-0.3, -0.25), margin=0.2) == "reversed"


def test_at_level_interpolates_where_the_level_is_first_reached():
    path = [(0.0, 10.0), (0.5, 20.0), (0.4, 30.0), (1.0, 60.0)]
    assert at_level(path, 0.25) == 15.0
    assert at_level(path, 0.5) == 20.0
    assert at_level(path, 0.7) == pytest.approx(45.0)
    assert math.isnan(at_level(path, 1.1)) and math.isnan(at_level(path, 0.0))


def test_energy_distance():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 600, 2))
    zeros = np.zeros((7, 2))
    assert energy_distance(zeros, zeros + np.array([3.0, 4.0])) == pytest.approx(
        10.0
    )  # two points: twice how far apart
    assert abs(energy_distance(x, y)) < 0.02
    assert 0.02 < energy_distance(x, y + 0.35) < energy_distance(x, y + 0.7)
    assert energy_distance(x, y) == pytest.approx(energy_distance(y, x))
