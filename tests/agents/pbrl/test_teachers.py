"""Scripted teachers: each of B-Pref's five numbers by itself, and what they do to one another."""

import math

import numpy as np
import pytest
import torch

from aligngym.agents.offline.robomimic import read_robomimic
from aligngym.agents.pbrl.segments import sample_segments
from aligngym.agents.pbrl.teachers import TEACHERS, ScriptedTeacher, average_segment_return
from aligngym.assets import robot_data_path


def labels(teacher, first, second, *, seed=0, **options):
    pair = (torch.tensor(rewards, dtype=torch.float32) for rewards in (first, second))
    return teacher.label(*pair, np.random.default_rng(seed), **options)


def many(teacher, first, second, count=20_000):
    """Mean label of one question asked many times."""
    return float(labels(teacher, [first] * count, [second] * count).mean())


def near(share, expected, count=20_000):
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_the_oracle_takes_the_greater_return_and_of_equals_the_first():
    found = labels(ScriptedTeacher(), [[1, 0], [0, 1], [1, 1]], [[0, 2], [-1, 1], [2, 0]])
    assert found.tolist() == [0, 1, 1] and found.dtype == torch.float32


def test_the_oracle_on_recorded_episodes():
    _, rewards = sample_segments(read_robomimic(robot_data_path("drawer-open")), 50, 60, np.random.default_rng(0))
    first, second = rewards[:30], rewards[30:]
    found = ScriptedTeacher().label(first, second, np.random.default_rng(0))
    assert torch.equal(found, (first.double().sum(1) >= second.double().sum(1)).float())
    assert 0 < found.mean() < 1


def test_a_myopic_teacher_forgets_what_came_first():
    """Weights 1/4, 1/2, 1: the loser in plain return wins."""
    early, late = [[4, 0, 0]], [[0, 0, 2]]
    assert labels(ScriptedTeacher(gamma=0.5), early, late).tolist() == [0]
    assert labels(ScriptedTeacher(gamma=0.75), early, late).tolist() == [1]  # 4 * 9/16 > 2
    assert labels(ScriptedTeacher(gamma=1.0), early, late).tolist() == [1]
    # The last step keeps its weight: 1 + 2 * 0.5 against 1.9.
    assert labels(ScriptedTeacher(gamma=0.5), [[2, 1]], [[0, 1.9]]).tolist() == [1]


def test_rationality():
    assert near(many(ScriptedTeacher(beta=1.0), [0, 0], [1, 0]), 1 / (1 + math.e))
    assert near(many(ScriptedTeacher(beta=2.0), [1, 0.5], [0, 1]), 1 / (1 + math.exp(-1)))
    assert near(many(ScriptedTeacher(beta=0.0), [0, 0], [99, 0]), 0.5)
    assert many(ScriptedTeacher(beta=1e6), [0, 0], [1, 0]) == many(ScriptedTeacher(), [0, 0], [1, 0]) == 0
    # Sums, not means, of weighted rewards: 0.5 * 2 - 0 = 1.
    assert near(many(ScriptedTeacher(beta=1.0, gamma=0.5), [2, 0], [0, 0]), 1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("eps", [0.1, 0.7])
def test_mistakes(eps):
    assert near(many(ScriptedTeacher(eps_mistake=eps), [1], [0]), 1 - eps)
    assert near(many(ScriptedTeacher(eps_mistake=eps), [0], [1]), eps)
    assert many(ScriptedTeacher(eps_mistake=1.0), [1], [0]) == 0
    noisy = many(ScriptedTeacher(eps_mistake=eps, beta=1.0), [1], [0])
    right = 1 / (1 + math.exp(-1))
    assert near(noisy, right * (1 - eps) + (1 - right) * eps)


def test_equal_is_a_strict_margin_of_plain_returns():
    teacher = ScriptedTeacher(eps_equal=0.5)
    first, second = [[3.0], [3.0], [3.0], [3.0]], [[3.0], [3.75], [4.0], [4.25]]
    assert labels(teacher, first, second, average=2.0).tolist() == [0.5, 0.5, 0, 0]
    assert labels(teacher, second, first, average=2.0).tolist() == [0.5, 0.5, 1, 1]
    assert labels(teacher, first, second, average=0.0).tolist() == [1, 0, 0, 0]  # no margin, not even for a tie
    assert labels(teacher, first, second, average=-2.0).tolist() == [1, 0, 0, 0]
    # Weighted returns 1 and 4, plain ones equal; and the other way round.
    myopic = ScriptedTeacher(eps_equal=0.5, gamma=0.25)
    assert labels(myopic, [[4, 0]], [[0, 4]], average=2.0).tolist() == [0.5]
    assert labels(myopic, [[4, 0]], [[0, 1]], average=2.0).tolist() == [1]


def test_skipped_is_what_nobody_would_call_good():
    teacher = ScriptedTeacher(eps_skip=0.5)
    first, second = [[0.5], [1.0], [1.25], [0.0]], [[0.25], [1.0], [0.0], [9.0]]
    found = labels(teacher, first, second, average=2.0)
    assert found.isnan().tolist() == [True, True, False, False] and found[2:].tolist() == [1, 0]
    for average in (0.0, -2.0):  # where returns are negative, nothing is skipped
        assert labels(teacher, [[-9]], [[-8]], average=average).tolist() == [0]
    # Plain returns here too: weighted they are below the threshold.
    myopic = ScriptedTeacher(eps_skip=0.5, gamma=0.25)
    assert labels(myopic, [[2, 0]], [[0, 0]], average=2.0).tolist() == [1]


def test_skipping_goes_before_equality_and_equality_before_mistakes():
    teacher = ScriptedTeacher(eps_skip=0.5, eps_equal=0.5, eps_mistake=1.0)
    found = labels(teacher, [[0.5], [3.0], [3.0]], [[0.5], [3.5], [9.0]], average=2.0)
    assert found[0].isnan() and found[1:].tolist() == [0.5, 1]


def test_one_answer_does_not_hang_on_the_others():
    """A skipped or equal pair draws its numbers all the same, so that what follows stays as it is."""
    noisy = {"beta": 1.0, "eps_mistake": 0.2}
    first, second = np.random.default_rng(5).normal(size=(2, 200, 3)).tolist()
    plain = labels(ScriptedTeacher(**noisy), first, second)
    picky = labels(ScriptedTeacher(**noisy, eps_skip=1.0, eps_equal=1.0), first, second, average=1.0)
    asked = picky.isfinite() & (picky != 0.5)
    assert torch.equal(picky[asked], plain[asked]) and 20 < asked.sum() < 180
    assert torch.equal(plain, labels(ScriptedTeacher(**noisy), first, second))
    assert not torch.equal(plain, labels(ScriptedTeacher(**noisy), first, second, seed=1))


def test_the_average_is_that_of_a_segment():
    assert average_segment_return(torch.tensor([100.0, 300.0]), 50, 500) == pytest.approx(20.0)
    with pytest.raises(ValueError, match="returns has 0 entries"):
        average_segment_return(torch.tensor([]), 50, 500)
    with pytest.raises(ValueError, match="segment_length=0"):
        average_segment_return(torch.tensor([1.0]), 0, 500)


def test_teachers_by_name_each_differ_in_one_number_from_the_oracle():
    assert TEACHERS["oracle"] == ScriptedTeacher()
    differences = {
        name: {k: v for k, v in vars(t).items() if v != vars(TEACHERS["oracle"])[k]} for name, t in TEACHERS.items()
    }
    assert differences == {
        "oracle": {}, "noisy": {"beta": 1.0}, "mistake": {"eps_mistake": 0.1}, "skip": {"eps_skip": 0.1},
        "equal": {"eps_equal": 0.1}, "myopic": {"gamma": 0.9},
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"beta": -1.0}, {"beta": math.nan}, {"gamma": 0.0}, {"gamma": 1.1}, {"eps_mistake": -0.1}, {"eps_mistake": 1.1},
        {"eps_skip": -1.0}, {"eps_equal": math.inf}, {"eps_skip": math.nan},
    ],
)  # fmt: skip
def test_numbers_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        ScriptedTeacher(**options)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match=r"shapes \(1, 2\) and \(1, 1\)"):
        labels(ScriptedTeacher(), [[1, 2]], [[1]])
    with pytest.raises(ValueError, match="not finite"):
        labels(ScriptedTeacher(), [[math.nan]], [[1]])
    for options in ({"eps_skip": 0.1}, {"eps_equal": 0.1}):
        with pytest.raises(ValueError, match="average is None"):
            labels(ScriptedTeacher(**options), [[1]], [[1]])
