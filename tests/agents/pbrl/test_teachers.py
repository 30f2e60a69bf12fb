"""Scripted teachers: each of B-Pref's numbers against answers worked out by hand, and their order."""

import math

import numpy as np
import pytest
import torch

from aligngym.agents.pbrl.teachers import ScriptedTeacher

FIRST = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.5, 0.5, 0.5]])
SECOND = torch.tensor([[0.0, 0.0, 0.9], [0.0, 0.1, 0.0], [2.0, 0.0, 1.0], [1.0, 1.0, 1.0]])


def label(first=FIRST, second=SECOND, segment_return=None, seed=0, **numbers):
    found = ScriptedTeacher(**numbers).label(first, second, np.random.default_rng(seed), segment_return)
    assert found.dtype == torch.float32 and found.shape == (len(first),)
    return ["skip" if math.isnan(x) else x for x in found.tolist()]


def repeated(first, second, count):
    return torch.tensor([first]).repeat(count, 1), torch.tensor([second]).repeat(count, 1)


@pytest.mark.parametrize("beta", [-1.0, -1e-9, math.inf])
def test_the_oracle_prefers_the_better_one_and_the_first_of_the_same(beta):
    """Returns are 1 and 0.9, 0 and 0.1, 3 and 3, 1.5 and 3."""
    assert label(beta=beta) == [1, 0, 1, 0]


def test_a_myopic_teacher_looks_at_the_end():
    """With 0.9 the first pair's are 0.81 and 0.9: the other way round than undiscounted."""
    assert label(gamma=0.9) == [0, 0, 1, 0]
    assert label(gamma=math.sqrt(0.9) + 1e-6)[0] == 1 and label(gamma=math.sqrt(0.9) - 1e-6)[0] == 0
    assert label(torch.tensor([[9.0, 9.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.1]]), gamma=0.0) == [0]


@pytest.mark.parametrize(("beta", "gamma", "logit"), [(2.0, 1.0, 1.0), (0.5, 1.0, 0.25), (2.0, 0.5, 2 * (0.25 - 0.5))])
def test_bradley_terry_prefers_as_often_as_it_says(beta, gamma, logit):
    """Rewards 1, 0, 0 and 0, 0, 0.5: the logit is beta (gamma^2 - 0.5)."""
    count = 40_000
    found = label(*repeated([1.0, 0.0, 0.0], [0.0, 0.0, 0.5], count), beta=beta, gamma=gamma)
    p = 1 / (1 + math.exp(-logit))
    assert set(found) == {0, 1}
    assert abs(np.mean(found) - p) < 4 * math.sqrt(p * (1 - p) / count)


def test_a_teacher_without_reason_guesses():
    count = 40_000
    found = label(*repeated([99.0, 0.0], [0.0, 0.0], count), beta=0.0)
    assert set(found) == {0, 1} and abs(np.mean(found) - 0.5) < 4 * math.sqrt(0.25 / count)


def test_mistakes_are_as_frequent_as_told_and_independent_of_the_noise():
    count = 40_000
    pairs = repeated([1.0, 0.0], [0.0, 0.0], count)
    assert abs(np.mean(label(*pairs, eps_mistake=0.1)) - 0.9) < 4 * math.sqrt(0.09 / count)
    assert label(eps_mistake=1.0) == [0, 1, 0, 1]
    p = 1 / (1 + math.exp(-1.0))
    both = 0.7 * p + 0.3 * (1 - p)
    assert abs(np.mean(label(*pairs, beta=1.0, eps_mistake=0.3)) - both) < 4 * math.sqrt(0.25 / count)


def test_a_pair_is_skipped_unless_one_return_is_above_the_threshold():
    """The better returns are 1, 0.1, 3 and 3; a threshold of 1 is not exceeded by 1."""
    assert label(eps_skip=0.1, segment_return=10.0) == ["skip", "skip", 1, 0]
    assert label(eps_skip=0.099, segment_return=10.0) == [1, "skip", 1, 0]
    assert label(eps_skip=0.1, segment_return=31.0) == ["skip"] * 4
    assert label(eps_skip=0.1, segment_return=0.0) == label(eps_skip=0.1, segment_return=-10.0) == [1, 0, 1, 0]


def test_a_pair_is_equal_if_returns_differ_by_less_than_the_margin():
    """They differ by 0.1, 0.1, 0 and 1.5."""
    assert label(eps_equal=0.1, segment_return=2.0) == [0.5, 0.5, 0.5, 0]
    assert label(eps_equal=0.1, segment_return=0.5) == [1, 0, 0.5, 0]
    assert label(eps_equal=0.1, segment_return=15.0)[3] == 0, "a difference of the margin itself is not less"
    assert label(eps_equal=0.1, segment_return=15.1)[3] == 0.5
    assert label(eps_equal=0.1, segment_return=-2.0) == [1, 0, 1, 0]


def test_skipping_comes_before_equality_and_equality_before_mistakes():
    every = {"eps_skip": 0.2, "eps_equal": 0.5, "eps_mistake": 1.0, "segment_return": 1.0}
    assert label(**every) == [0.5, "skip", 0.5, 1], "returns differ by 0.1 in the first two"
    assert label(eps_equal=0.1, segment_return=2.0, gamma=0.5, beta=1e9) == [0.5, 0.5, 0.5, 0], "not discounted"
    assert label(eps_skip=0.1, segment_return=9.0, gamma=0.5) == [0, "skip", 1, 0], "not discounted"


def test_a_seed_gives_the_same_answers_and_teachers_share_their_luck():
    pairs = repeated([1.0], [0.0], 1000)
    assert label(*pairs, beta=1.0) == label(*pairs, beta=1.0) != label(*pairs, beta=1.0, seed=1)
    few, many = (np.array(label(*pairs, eps_mistake=e)) for e in (0.1, 0.3))
    assert (many[few == 0] == 0).all(), "who errs more often errs where the other one does"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"gamma": 1.1}, "gamma=1.1"), ({"eps_mistake": -0.1}, "eps_mistake=-0.1"), ({"beta": math.nan}, "beta=nan"),
        ({"eps_skip": math.nan}, "eps_skip=nan"), ({"eps_equal": -1.0}, "eps_equal=-1.0"),
        ({"eps_equal": 0.1}, "segment_return is missing"), ({"eps_skip": 0.1}, "segment_return is missing"),
        ({"eps_skip": 0.1, "segment_return": math.nan}, "segment_return=nan"),
        ({"second": SECOND[:, :2]}, "shapes"), ({"first": FIRST[0], "second": SECOND[0]}, "shapes"),
        ({"second": SECOND / 0}, "not all finite"),
    ],
)  # fmt: skip
def test_what_is_no_teacher_or_no_pair(numbers, message):
    with pytest.raises(ValueError, match=message):
        label(**numbers)
