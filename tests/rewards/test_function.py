"""Functions as rewards: TRL's signature, failures, time limits, and the adapters."""

import asyncio
import pickle
import time
from types import SimpleNamespace

import numpy as np
import pytest

from aligngym.rewards import FunctionReward, Regex, as_reward, call_with_timeout, to_trl


def count_vowels(prompts, completions, weight, **kwargs):
    return [len(p) + w * sum(map(text.count, "aeiou")) for p, text, w in zip(prompts, completions, weight, strict=True)]


async def doubled(completions, value, **kwargs):
    await asyncio.sleep(0)
    return [2 * v for v in value]


def hang(completions, **kwargs):
    if "hang" in completions[0]:
        time.sleep(60)
    return [float(len(text)) for text in completions]


def test_a_trl_function_is_called_with_keywords():
    reward = as_reward(count_vowels)
    assert reward(["aeb", "z"], ["p", "pp"], weight=[10, 1], trainer_state=object()) == [21.0, 2.0]
    assert reward.name == "count_vowels"
    assert list(reward.score(["a"], ["p"], weight=[1]).terms) == ["count_vowels"]
    assert pickle.loads(pickle.dumps(reward)) == reward


def test_async_functions_with_and_without_a_running_loop():
    reward = as_reward(doubled)
    assert reward(["a", "b"], value=[1, 2]) == [2.0, 4.0]

    async def inside():
        return reward(["a", "b"], value=[1, 2])

    assert asyncio.run(inside()) == [2.0, 4.0]
    assert FunctionReward(doubled, timeout=5.0)(["a", "b"], value=[1, 2]) == [2.0, 4.0]


def test_outcomes_of_a_function():
    import torch

    returned = [1, True, None, float("nan"), float("inf"), "word", torch.tensor(2.5)]
    scores = FunctionReward(lambda completions: returned).score(["x"] * 7)
    np.testing.assert_array_equal(scores.values, [1, 1] + [np.nan] * 4 + [2.5])
    assert scores.reasons[2] is None
    assert scores.reasons[3:5] == ["returned nan", "returned inf"]
    assert scores.reasons[5].startswith("ValueError: could not convert")
    assert as_reward(lambda completions: torch.ones(2))(["a", "b"]) == [1.0, 1.0]


def test_an_exception_fails_every_sample_of_the_call():
    def broken(completions, **kwargs):
        raise TypeError("no such thing")

    scores = as_reward(broken).score(["a", "b"])
    assert np.isnan(scores.values).all() and scores.reasons == ["TypeError: no such thing"] * 2


def test_wrong_shapes_are_programming_errors():
    with pytest.raises(ValueError, match="reward 'short' must return 3 values, one a completion, got 1"):
        FunctionReward(lambda completions: [1.0], name="short")(["a", "b", "c"])
    with pytest.raises(TypeError, match="must return a list with one entry a completion, got float"):
        FunctionReward(lambda completions: 1.0)(["a"])
    with pytest.raises(TypeError, match="function must be callable, got int"):
        FunctionReward(3)
    with pytest.raises(ValueError, match="timeout must be positive or None, got 0"):
        FunctionReward(hang, timeout=0)
    with pytest.raises(ValueError, match="hang has no JSON form because it is not registered"):
        as_reward(hang).to_dict()


def test_a_function_gets_only_the_columns_it_takes():
    assert as_reward(lambda completions: [1.0])(["a"], ["p"], unused=[1]) == [1.0]
    assert as_reward(lambda prompts, completions: [float(prompts == [None])])(["a"]) == [1.0]


def test_a_hanging_sample_costs_only_itself():
    begun = time.monotonic()
    scores = FunctionReward(hang, timeout=0.2).score(["abc", "hang", "de"], column=[1, 2, 3])
    assert time.monotonic() - begun < 5
    np.testing.assert_array_equal(scores.values, [3, np.nan, 2])
    assert scores.reasons == [None, "TimeoutError: took longer than 0.2 s", None]


def test_call_with_timeout_passes_errors_on():
    assert call_with_timeout(lambda: 3, 1.0) == 3
    with pytest.raises(KeyError):
        call_with_timeout(lambda: {}["k"], 1.0)

    def leave():
        raise SystemExit(2)

    with pytest.raises(RuntimeError, match=r"ended its thread: SystemExit\(2\)"):
        call_with_timeout(leave, 1.0)


def test_callables_without_a_signature_get_everything():
    scores = FunctionReward(dict, name="dict").score(["a", "b"])  # returns the names of its two arguments
    assert scores.reasons[0] == "ValueError: could not convert string to float: 'prompts'"


def test_to_trl():
    logged = {}
    reward = 2 * Regex("a") + FunctionReward(lambda value: value, name="value").schedule([[0, 0.0], [100, 1.0]])
    function = to_trl(reward, "mine", episodes_per_step=10)
    assert function.__name__ == "mine" and to_trl(Regex("a")).__name__ == "regex" and as_reward(function) is reward
    result = function(
        prompts=["p"] * 3,
        completions=["a", "b", "a"],
        completion_ids=[[1], [2], [3]],
        value=[4.0, None, "x"],
        trainer_state=SimpleNamespace(global_step=5),
        log_metric=logged.__setitem__,
        log_extra=lambda *_: None,
    )
    assert result == [4.0, 0.0, None]  # the schedule stands at 50 of 100 episodes
    assert logged == {"mine/regex": 2 / 3, "mine/value": 4.0, "mine/failed": 1 / 3}


def test_trl_adapter_pickles_and_works_both_ways():
    function = pickle.loads(pickle.dumps(to_trl(Regex("a"))))
    assert function(prompts=["p"], completions=["a"]) == [1.0] and function.__name__ == "regex"
    assert as_reward(to_trl(as_reward(count_vowels)).__call__)(["a"], ["p"], weight=[1]) == [2.0]
    assert Regex("a")(prompts=["p"], completions=["a"]) == [1.0]  # a reward is itself a TRL function but for its name
