"""Informativeness of prompts, by known answers; chances and draws; creators."""

import itertools

import numpy as np
import pytest

from aligngym.wrappers.prompt_creators import AddRequirement, AnyOf, ChangeNumber, SwapWord, as_creator, json_form
from aligngym.wrappers.prompt_informativeness import (
    MEASURES,
    draw_without_replacement,
    informativeness,
    sampling_weights,
)

SPREADS = [name for name, measure in MEASURES.items() if measure.zero]


def info(rewards, name, noise=0.0):
    return informativeness(rewards, MEASURES[name], noise)


def test_values():
    rewards = [[0.0, 0.5, 1.0, 0.1]]
    expected = {"gap": 1.0, "advantage": 0.6, "variance": 0.155, "second": 0.5, "hardest": -0.4, "uniform": 1.0}
    assert expected.keys() == MEASURES.keys()
    for name, value in expected.items():
        assert info(rewards, name)[0] == pytest.approx(value)


@pytest.mark.parametrize("name", SPREADS)
def test_equal_rewards_say_nothing_and_are_never_drawn(name):
    rewards = [[0.1] * 3, [0.0] * 8, [1.0] * 8, [0.1, 0.7, 0.9]]  # 0.1 three times has a variance, by rounding
    found = info(rewards, name)
    assert found[:3].tolist() == [0.0] * 3 and found[3] > 0
    weights = sampling_weights(found)
    assert weights.tolist() == [0, 0, 0, 1]
    rng = np.random.default_rng(0)
    assert all(draw_without_replacement(weights, 3, rng).tolist() == [3] for _ in range(50))


@pytest.mark.parametrize("name", SPREADS)
def test_a_constant_changes_nothing_and_the_scale_does(name):
    rewards = np.random.default_rng(1).standard_normal((20, 8))
    shift = np.random.default_rng(2).standard_normal((20, 1))
    found = info(rewards, name)
    np.testing.assert_allclose(info(rewards + 10 * shift, name), found, atol=1e-9)
    np.testing.assert_allclose(info(3 * rewards, name), found * (9 if name == "variance" else 3))


def test_chance_of_a_gap_is_that_of_mixed_answers():
    """``P(gap = 1) = 1 - p^n - (1 - p)^n``: symmetric, largest at 1/2."""
    rng, n = np.random.default_rng(3), 6
    found = {}
    for p in (0.1, 0.3, 0.5, 0.7, 0.9):
        found[p] = info((rng.random((20_000, n)) < p).astype(float), "gap").mean()
        assert found[p] == pytest.approx(1 - p**n - (1 - p) ** n, abs=0.01)
    assert max(found, key=found.get) == 0.5


def test_unknown_prompts_have_no_informativeness_and_no_chance():
    found = info([[], [1.0], [0.0, 1.0]], "gap")
    assert np.isnan(found[:2]).all() and found[2] == 1
    assert sampling_weights(found).tolist() == [0, 0, 1]
    assert info([[], [0.3]], "hardest")[1] == -0.3 and np.isnan(info([[]], "hardest")[0])
    assert info([[], []], "uniform").tolist() == [1, 1]
    assert sampling_weights(np.full(3, np.nan)).tolist() == [0, 0, 0]


def test_min_max_is_guarded():
    np.testing.assert_allclose(sampling_weights(np.full(4, 0.7)), 0.25)  # all equal: no 0 / 0
    weights = sampling_weights(np.array([0.2, 0.6, 1.0]), epsilon=0.01)
    np.testing.assert_allclose(weights, np.array([0.01, 0.51, 1.01]) / 1.53)  # the least has a chance
    assert sampling_weights(np.zeros(3)).tolist() == [0, 0, 0]
    np.testing.assert_allclose(sampling_weights(np.array([-1.0, 0.0]), zero=False, epsilon=0.5), [0.25, 0.75])
    everything = np.array([0.0, np.nan, 1e-300, 1e300, 5.0])
    assert np.isfinite(sampling_weights(everything)).all()


def test_draws_are_without_replacement_and_by_the_weights():
    weights = np.array([0.5, 0.3, 0.2])
    rng, counts = np.random.default_rng(4), dict.fromkeys(itertools.permutations(range(3), 2), 0)
    for _ in range(20_000):
        counts[tuple(draw_without_replacement(weights, 2, rng).tolist())] += 1
    for (i, j), count in counts.items():
        assert count / 20_000 == pytest.approx(weights[i] * weights[j] / (1 - weights[i]), abs=0.012)
    assert sorted(draw_without_replacement(weights, 9, rng).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("name", SPREADS)
@pytest.mark.parametrize("n", [2, 6])
def test_what_noise_alone_gives_is_known(name, n):
    draws = 0.5 * np.random.default_rng(5).standard_normal((20_000, n))
    assert MEASURES[name].noise(n, 0.5) == pytest.approx(info(draws, name).mean(), rel=0.03)


def test_the_trap_of_noise():
    """Half of the prompts have a real gap of 1, the other half only noise; chosen are a quarter."""
    rng, n, noisy = np.random.default_rng(6), 6, np.arange(400) >= 200
    std = np.where(noisy, 0.6, 0.05)
    quality = np.where(noisy[:, None], 0.0, (np.arange(n) % 2)[None])
    rewards = quality + std[:, None] * rng.standard_normal((400, n))
    share = {}
    for label, given in {"ignored": 0.0, "subtracted": std}.items():
        weights = sampling_weights(info(rewards, "gap", given))
        share[label] = noisy[draw_without_replacement(weights, 100, rng)].mean()
    assert share["ignored"] > 0.5 and share["subtracted"] < 0.35
    # With more answers the gap of noise grows on, where a real one stays: the correction is not of the prompt alone.
    assert MEASURES["gap"].noise(16, 0.6) > MEASURES["gap"].noise(6, 0.6)


def test_change_number():
    rng = np.random.default_rng(0)
    creator = ChangeNumber("n", "Count to {n}.", step=2)
    made = {creator("Count to 5.", {"n": 5}, rng) [1]["n"] for _ in range(20)}  # fmt: skip
    assert made == {3, 7} and creator("", {"n": 5}, rng)[0] in ("Count to 3.", "Count to 7.")
    by_function = ChangeNumber("n", lambda columns, rng: ("x" * columns["n"], {**columns, "more": 1}))
    prompt, columns = by_function("xx", {"n": 2}, rng)
    assert len(prompt) == columns["n"] != 2 and columns["more"] == 1
    assert ChangeNumber("n", lambda columns, rng: "z")("a", {"n": 1}, rng)[0] == "z"
    with pytest.raises(ValueError, match="column is 'n', but the prompts' columns are \\['m'\\]"):
        creator("a", {"m": 1}, rng)


def test_in_depth_and_in_breadth():
    rng = np.random.default_rng(0)
    deep = AddRequirement(["Be brief.", "Be kind."])
    once = deep("Tell a story.", {}, rng)
    assert once in ("Tell a story. Be brief.", "Tell a story. Be kind.")
    assert deep(deep(once, {}, rng), {}, rng) is None  # both are asked for
    broad = SwapWord([["cat", "dog"], ["Tom", "Ann"]])
    assert {broad("The Cat and Tom.", {}, rng) for _ in range(20)} == {"The Dog and Tom.", "The Cat and Ann."}
    assert broad("concatenate", {}, rng) is None
    chat = [{"role": "user", "content": "A cat"}, {"role": "assistant", "content": "?"}]
    assert broad(chat, {}, rng) == [{"role": "user", "content": "A dog"}, chat[1]] and chat[0]["content"] == "A cat"


def test_json_forms():
    either = AnyOf(["in_depth", {"type": "in_breadth", "families": [["a", "b"]]}, ChangeNumber("n", "{n}")])
    again = as_creator(json_form(either))
    for seed in range(6):
        one, two = (c("a word", {"n": 1}, np.random.default_rng(seed)) for c in (either, again))
        assert one == two
    assert json_form(np.sin) is np.sin and as_creator(np.sin) is np.sin


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("deeper", "creator is 'deeper', expected a function or one of number"),
        ({"type": "in_depth", "size": 1}, "creator 'in_depth' does not take \\['size'\\]"),
        ({"type": "number", "column": "n", "prompt": "{n}", "step": 0}, "step is 0"),
        ({"type": "in_breadth", "families": [["a"]]}, "at least two words"),
        ({"type": "in_depth", "requirements": "Be brief."}, "expected at least one sentence"),
        ({"type": "any", "creators": []}, "expected at least one creator"),
    ],
)
def test_unusable_forms(form, message):
    with pytest.raises(ValueError, match=message):
        as_creator(form)
    with pytest.raises(TypeError, match="creator is a int"):
        as_creator(3)
