"""Rewards in a child process: limits that hold whatever the reward does."""

import io
import json
import logging
import os
import pickle
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from aligngym.rewards import Bleu, Isolated, Regex, Repetition, Sentiment, as_reward, register_reward

# Backtracks for longer than anyone waits, and holds the interpreter lock all the while.
SLOW = Regex("(a+)+b")
TRAP = "a" * 40


def test_scores_are_those_of_the_reward_itself():
    reward = 2 * Sentiment() + Repetition() - Regex("x")
    texts = ["I love it, love it", "", "x \ud83d", "bad"]
    inside, outside = reward.isolated(30.0).score(texts), reward.score(texts)
    np.testing.assert_array_equal(inside.values, outside.values)
    assert inside.reasons == outside.reasons and sorted(inside.terms) == sorted(outside.terms)
    for key, values in outside.terms.items():
        np.testing.assert_array_equal(inside.terms[key], values)


def test_a_reward_that_holds_the_lock_is_killed_and_replaced():
    reward = SLOW.isolated(0.5)
    reward.load()
    begun = time.monotonic()
    scores = reward.score(["aab", TRAP, "c"])
    assert time.monotonic() - begun < 30
    np.testing.assert_array_equal(scores.values, [1, np.nan, 0])
    assert scores.reasons == [None, "TimeoutError: took longer than 0.5 s", None]
    reward.close()
    reward.close()
    assert pickle.loads(pickle.dumps(reward))(["ab"]) == [1.0]


def test_chat_prompts_and_columns_travel_as_json():
    register_reward("test_isolate_lazy", "aligngym.rewards.match:ExactMatch")
    reward = Isolated(Regex("never") + as_reward("test_isolate_lazy"), 30.0)
    chat = [{"role": "assistant", "content": "4"}]
    columns = {"answer": np.array([4, 5]), "state": object(), "numbers": np.arange(6).reshape(2, 3)}
    assert reward([chat, "4"], [chat, "p"], **columns) == [1.0, 0.0]
    scores = reward.score(["4", "4"], answer=["4", {4}])
    assert scores.values[0] == 1.0 and scores.reasons[1].startswith("TypeError: Object of type set")
    with pytest.raises(ValueError, match=r"^ExactMatch reads column 'answer'"):
        reward(["4"])


def test_outcomes_survive_the_journey():
    scores = Bleu().isolated(30.0).score(["a", "b"], references=[None, []])
    assert np.isnan(scores.values).all() and scores.reasons == [None, "ValueError: the list of references is empty"]


def test_what_cannot_be_isolated():
    @register_reward("test_isolate_local")
    class Local(Regex):
        """A child process cannot import a local class."""

    with pytest.raises(ValueError, match="timeout must be positive, got 0"):
        SLOW.isolated(0)
    with pytest.raises(ValueError, match="a reward with running state"):
        Sentiment().normalize().isolated(1.0)
    with pytest.raises(RuntimeError, match="did not start: "):
        Local("a").isolated(5.0).load()


GREEDY = """
import os

def hungry(completions):
    print("this line must not mix with the replies")
    return [float(len(bytearray(2**31)) > 0) if "eat" in text else 1.0 for text in completions]

def dies(completions):
    os._exit(3)
"""


def test_memory_is_limited_and_the_death_of_the_child_is_told(tmp_path, monkeypatch):
    (tmp_path / "greedy_rewards.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(tmp_path)
    register_reward("test_isolate_hungry", "greedy_rewards:hungry")
    register_reward("test_isolate_dies", "greedy_rewards:dies")
    scores = Isolated(as_reward("test_isolate_hungry"), 30.0, memory_gb=1.0).score(["a", "eat", "a"])
    assert scores.reasons == [None, "MemoryError: ", None]
    np.testing.assert_array_equal(scores.values, [1.0, np.nan, 1.0])
    scores = as_reward("test_isolate_dies").isolated(30.0).score(["a"])
    assert scores.reasons == ["ChildProcessError: the process of the reward ended with code 3"]


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_a_forked_process_starts_a_child_of_its_own_and_leaves_ours_alone():
    reward = Regex("a").isolated(10.0)
    assert reward(["a"]) == [1.0]
    ours = reward._child.process.pid
    process = os.fork()
    if process == 0:
        os._exit(0 if reward(["a", "b"]) == [1.0, 0.0] and reward._child.process.pid != ours else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert reward(["b"]) == [0.0] and reward._child.process.pid == ours


def test_threads_get_their_own_replies():
    reward = Repetition((1,)).isolated(10.0)
    texts = ["a " * count for count in range(1, 41)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: reward([text])[0], texts)) == Repetition((1,))(texts)


def test_a_child_that_does_not_start_in_time():
    with pytest.raises(RuntimeError, match=r"did not start: took longer than 1e-06 s"):
        Isolated(Regex("a"), 1.0, startup_timeout=1e-6).load()


def test_the_child_side_in_this_process(monkeypatch):
    from aligngym.rewards import isolate

    requests = [
        {"reward": Bleu().to_dict(), "register": {}, "memory_gb": None, "alarm": 60},
        {"completion": "a", "prompt": "p", "row": {"references": "a"}},
        {"completion": "a", "prompt": None, "row": {}},
    ]
    handler, stdout = signal.getsignal(signal.SIGALRM), os.dup(1)
    read, write = os.pipe()
    try:
        os.dup2(write, 1)
        for lines in (requests, [{**requests[0], "reward": {"type": "nothing"}}]):
            monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, lines)) + "\n"))
            os.dup2(write, 1)
            isolate.serve()
    finally:
        os.dup2(stdout, 1)
        os.close(write)
        signal.signal(signal.SIGALRM, handler)
        logging.disable(logging.NOTSET)
    with os.fdopen(read) as replies:
        ready, scored, missing, unknown = map(json.loads, replies.read().splitlines())
    assert ready == {} and scored == {"value": 1.0, "reason": None, "terms": {"bleu": 1.0}}
    assert missing["error"].startswith("Bleu reads column 'references'")
    assert unknown["error"].startswith("ValueError: unknown reward 'nothing'")
