"""Rewards on points: the first point, edges, distances, form, and the known answers of adaptive exploration."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngym.rewards import AdaptiveExploration, PointDistance, PointFormat, PointInBox, as_reward
from aligngym.rewards.points import adaptive_exploration_reward, collinear

BOX = [0.2, 0.4, 0.6, 0.5]
HIT, MISS = (0.3, 0.45), (0.9, 0.1)
NONE = np.empty((0, 2))
# On a parabola no three points are on one line; none of these is in the box.
MISSES = [(0.7 + x, x**2) for x in (0.0, 0.1, 0.17, 0.23, 0.28)]
COORDINATE = st.floats(0, 1)


def score(reward, *points, box=BOX):
    return reward.score([np.array(points).reshape(-1, 2)], box=[box])


def value(reward, *points, box=BOX):
    scores = score(reward, *points, box=box)
    assert scores.reasons == [None]
    return scores.values[0]


# -- one point -----------------------------------------------------------------------------------------------------
def test_the_first_point_counts():
    assert value(PointInBox(), HIT) == 1 and value(PointInBox(), MISS) == 0
    assert value(PointInBox(), HIT, MISS) == 1 and value(PointInBox(), MISS, HIT) == 0
    assert value(PointInBox()) == 0, "no point is a wrong answer, not a failed reward"


@pytest.mark.parametrize("x", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("y", [0.4, 0.45, 0.5])
def test_edges_and_corners_are_inside(x, y):
    assert value(PointInBox(), (x, y)) == 1 and value(PointDistance(), (x, y)) == 0
    assert value(PointInBox(), (x, y), box=[x, y, x, y]) == 1, "a box may be a point"


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("side", [0, 1])
def test_just_outside_is_outside(axis, side):
    point = [0.4, 0.45]
    point[axis] = np.nextafter(BOX[axis + 2 * side], side * 2 - 0.5)
    assert value(PointInBox(), point) == 0 and -1e-15 < value(PointDistance(), point) < 0


def test_distances():
    distance = PointDistance()
    assert value(distance, (0.1, 0.45)) == pytest.approx(-0.1) and value(distance, (0.4, 0.8)) == pytest.approx(-0.3)
    assert value(distance, (0.9, 0.9)) == pytest.approx(-0.5), "3, 4, 5 from the lower right corner"
    assert value(distance, (0.9, 0.9), HIT) == pytest.approx(-0.5)
    assert value(distance) == pytest.approx(-math.sqrt(2))
    assert value(distance, (50, 50)) == pytest.approx(-math.sqrt(2)), "no point is worse than none"


@given(COORDINATE, COORDINATE)
def test_the_distance_is_0_just_where_the_box_is_hit(x, y):
    assert (value(PointDistance(), (x, y)) == 0) == (value(PointInBox(), (x, y)) == 1)


def test_form():
    assert value(PointFormat(), HIT) == value(PointFormat(), (0, 0), (1, 1), (0, 1), (1, 0)) == 1
    assert value(PointFormat()) == value(PointFormat(), HIT, (1.001, 0.5)) == value(PointFormat(), (-0.001, 0.5)) == 0
    assert value(PointFormat(2), HIT, MISS) == 1 and value(PointFormat(2), HIT, MISS, HIT) == 0
    assert PointFormat()([np.array([HIT])]) == [1.0], "needs no box"
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"most must be at least 1 or None, got {wrong}"):
            PointFormat(wrong)


# -- adaptive exploration --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "rank", "expected"),
    [(1, 1, 1), (4, 1, 0.5), (4, 4, 0.25), (2, None, -0.5), (1, None, -1), (9, 4, 1 / 6), (5, None, -0.2)],
)
def test_known_answers(count, rank, expected):
    assert adaptive_exploration_reward(count, rank) == pytest.approx(expected)
    points = list(MISSES[:count])
    if count <= len(MISSES):
        if rank is not None:
            points[rank - 1] = HIT
        assert value(AdaptiveExploration(), *points) == pytest.approx(1 + expected)
        assert value(AdaptiveExploration(format_bonus=0.25), *points) == pytest.approx(0.25 + expected)


def test_one_right_answer_is_best_and_many_wrong_beat_one_wrong():
    hits = [adaptive_exploration_reward(n, k) for n in range(1, 9) for k in range(1, n + 1)]
    misses = [adaptive_exploration_reward(n, None) for n in range(1, 9)]
    assert max(hits) == hits[0] == 1 and hits.count(1) == 1
    assert misses == sorted(misses) and misses[0] == -1 and max(misses) < 0 < min(hits)


@pytest.mark.parametrize(("count", "rank"), [(0, None), (-1, None), (2, 3), (2, 0)])
def test_counts_and_ranks_are_checked(count, rank):
    with pytest.raises(ValueError, match="num_points must be at least 1" if count < 1 else "rank must be from 1 to"):
        adaptive_exploration_reward(count, rank)


def test_totals():
    reward = AdaptiveExploration()
    assert value(reward, HIT) == 2 and value(reward, MISS) == 0
    for count in range(1, 6):
        assert value(reward, *MISSES[:count]) == pytest.approx(1 - 1 / count)
    assert value(reward) == -1, "none is worse than a wrong one"


def test_three_points_on_a_line_cost_everything():
    line = [(0.25, 0.42), (0.35, 0.46), (0.45, 0.5)]
    assert value(AdaptiveExploration(), *line) == -1, "though all of them hit: it overrides, and is not added"
    assert value(AdaptiveExploration(), MISSES[0], line[0], MISSES[1], line[1], line[2]) == -1
    assert value(AdaptiveExploration(collinear_penalty=False), *line) == pytest.approx(1 + 1 / math.sqrt(3))
    assert value(AdaptiveExploration(format_bonus=5.0), *line) == -1
    assert value(AdaptiveExploration(), *line[:2]) == pytest.approx(1 + 1 / math.sqrt(2))
    assert value(AdaptiveExploration(), HIT, HIT, MISS) == -1 and value(AdaptiveExploration(), HIT, HIT) > 1
    assert score(AdaptiveExploration(collinear_penalty=False), *line).terms["collinear"] == [1]


def test_what_is_malformed_costs_everything():
    reward, many = AdaptiveExploration(), np.random.default_rng(0).random((100_000, 2))
    assert value(reward, HIT, (1.01, 0.3)) == value(reward, HIT, (0.5, -0.01)) == -1
    few = AdaptiveExploration(most=2)
    assert value(few, *MISSES[:2]) == 0.5 and value(few, *MISSES[:3]) == -1
    start = time.process_time()
    assert value(reward, *many) == -1
    assert time.process_time() - start < 2
    any_line = AdaptiveExploration(collinear_penalty=False)
    assert value(any_line, *many[:101]) == -1 and value(any_line, *many[:100]) > 0


def test_options_are_checked():
    with pytest.raises(ValueError, match="format_bonus must be finite, got nan"):
        AdaptiveExploration(np.nan)
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        AdaptiveExploration(most=0)


def test_terms():
    answers = [[HIT], [MISS, HIT], [MISS], [HIT, HIT, MISS], [], [HIT, (2, 2)]]
    scores = AdaptiveExploration().score([np.array(a).reshape(-1, 2) for a in answers], box=[BOX] * 6)
    expected = {
        "accuracy": [1, 0, 0, 1, 0, 1],
        "any_hit": [1, 1, 0, 1, 0, 1],
        "num_points": [1, 2, 1, 3, 0, 2],
        "collinear": [0, 0, 0, 1, 0, 0],
        "well_formed": [1, 1, 1, 1, 0, 0],
        "adaptive_exploration": [2, 1.5, 0, -1, -1, -1],
    }
    assert {name: values.tolist() for name, values in scores.terms.items()} == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=2, max_size=6), st.randoms())
def test_only_the_rank_of_the_first_hit_counts(points, random):
    """What is behind it may change places."""
    reward, tail = AdaptiveExploration(), points[1:]
    random.shuffle(tail)
    assert value(reward, HIT, *points[1:]) == value(reward, HIT, *tail)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=6))
def test_values_are_those_of_the_formula(points):
    hits = [BOX[0] <= x <= BOX[2] and BOX[1] <= y <= BOX[3] for x, y in points]
    expected = 1 + (1 / math.sqrt(len(points) * (hits.index(True) + 1)) if any(hits) else -1 / len(points))
    assert value(AdaptiveExploration(collinear_penalty=False), *points) == pytest.approx(expected)
    assert value(AdaptiveExploration(), *points) == pytest.approx(-1 if collinear(np.array(points)) else expected)


# -- lines -----------------------------------------------------------------------------------------------------------
def test_two_points_are_never_collinear_and_duplicates_are():
    for points in (NONE, [HIT], [HIT, MISS], [HIT, HIT], [(0, 0), (1, 0), (0, 1)], MISSES):
        assert not collinear(np.array(points)), points
    for points in ([HIT, HIT, MISS], [HIT, MISS, HIT], [HIT, HIT, HIT], [(0.1, 0), (0.1, 1), (0.1, 0.3)]):
        assert collinear(np.array(points)), points


def test_rounding_does_not_hide_a_line():
    for kind in (np.float64, np.float32):
        line = np.array([(0.1, 0.2), (0.2, 0.3), (0.7, 0.8)], kind)
        assert collinear(line) and collinear(line[::-1]) and collinear(np.array([line[0], MISS, *line[1:]], kind))
    a, b, c = line.astype(np.float64)
    assert (b - a)[0] * (c - a)[1] != (b - a)[1] * (c - a)[0], "exactly, they are not on one"
    assert not collinear([(0.0, 0.0), (0.5, 0.5), (1.0, 0.999)])
    assert collinear([(0.0, 0.0), (0.5, 0.5), (1.0, 0.999)], tolerance=1e-3)


def test_pixels_of_a_large_screen_are_told_apart():
    assert not collinear([(0, 0), (3000, 1), (2999, 1)]) and collinear([(0, 0), (1500, 1), (3000, 2)])


def test_every_triple_is_looked_at():
    line = [(0.5, 0.2), (0.5, 0.4), (0.5, 0.9)]
    others = [(0.1, 0.1), (0.3, 0.75), (0.95, 0.35)]
    assert not collinear([*others, *line[:2]])
    for places in itertools.combinations(range(6), 3):
        rest, on_line = iter(others), iter(line)
        assert collinear([next(on_line) if i in places else next(rest) for i in range(6)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=7))
def test_collinear_on_a_grid(points):
    """Against exact arithmetic."""
    exact = any(
        (b[0] - a[0]) * (c[1] - a[1]) == (b[1] - a[1]) * (c[0] - a[0]) for a, b, c in itertools.combinations(points, 3)
    )
    assert collinear(np.array(points, float).reshape(-1, 2) / 9) == exact


# -- texts, columns and failures --------------------------------------------------------------------------------------
TEXT = '<think>[it]</think>```json\n[{"point_2d": [60, 90], "label": "a"}, {"point_2d": [190, 10], "label": "b"}]\n```'


def test_texts_are_read_in_pixels():
    sizes, chat = [[200, 200]] * 3, [{"role": "assistant", "content": TEXT}]
    completions = [TEXT, chat, "no idea"]
    columns = {"box": [BOX] * 3, "image_size": sizes}
    assert PointInBox()(completions, **columns) == [1, 1, 0]
    assert AdaptiveExploration()(completions, **columns) == [pytest.approx(1 + 1 / math.sqrt(2))] * 2 + [-1]
    assert PointFormat()(completions, **columns) == [1, 1, 0]
    assert PointDistance()(completions, **columns) == [0, 0, pytest.approx(-math.sqrt(2))]
    assert PointFormat()([TEXT]) == [0.0], "without the size, pixels are far outside"
    assert PointInBox()(["[[0.3, 0.45]]"], box=[BOX]) == [1.0]
    sizes = np.array([[400, 200], [200, 400]])
    assert PointInBox()([TEXT] * 2, box=[[0.1, 0.4, 0.2, 0.5]] * 2, image_size=sizes) == [1, 0], "width divides x"


@pytest.mark.parametrize("name", ["point_in_box", "point_distance", "point_format", "adaptive_exploration"])
def test_failures_are_no_wrong_answers(name):
    reward = as_reward(name)
    good = np.array([HIT])
    completions = [good, good[0], np.array([["a", "b"]]), np.array([[np.nan, 0.5]]), 3, [HIT], good.astype(np.float32)]
    scores = reward.score(completions, box=[BOX] * 7)
    assert scores.failed.tolist() == [False, True, True, True, True, False, False]
    assert "points must be numbers [n, 2], got float64 [2]" in scores.reasons[1]
    assert "points must be finite, got nan" in scores.reasons[3] and "TypeError" in scores.reasons[4]
    assert scores.values[0] == scores.values[5] and np.isnan(scores.values[1:5]).all()
    assert scores.terms[name][0] == scores.values[0]


@pytest.mark.parametrize("name", ["point_in_box", "point_distance", "adaptive_exploration"])
def test_boxes_are_checked(name):
    reward, boxes = as_reward(name), [BOX, None, [0.6, 0.4, 0.2, 0.5], [0.2, 0.4, 0.6], [0, 0, 1, np.inf]]
    for answer in (np.array([HIT]), "no idea"):  # a wrong answer does not hide a box that makes no sense
        scores = reward.score([answer] * 5, box=boxes)
        assert scores.scored.tolist() == [True, False, False, False, False]
        assert scores.failed.tolist() == [False, False, True, True, True]
        assert "box must be x0, y0, x1, y1 with x0 <= x1" in scores.reasons[2]
    with pytest.raises(ValueError, match="reads column 'box'; columns given: boxes"):
        reward.score([NONE], boxes=[BOX])


def test_they_compose():
    total = 0.5 * PointInBox() + 0.5 * PointFormat(1)
    assert total([np.array([HIT]), np.array([HIT, MISS]), NONE], box=[BOX] * 3) == [1.0, 0.5, 0.0]
