"""Tables of prompts that are replaced while episodes run."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

ROWS = [{"prompt": "One two", "level": 1}, {"prompt": "A dog", "level": 2}, {"prompt": "She said", "level": 3}]
NEW = (["One two", "The cat sat"], {"level": [1, 7]})


def levels(completions: list[Any], level: list[int | None], **_: Any) -> list[float]:
    return [-1.0 if value is None else float(value) for value in level]


@pytest.fixture
def make() -> Any:
    """``make(**changes)``: three rows of ``LLMAlign-v0`` whose reward is the prompt's level."""
    settings = {"prompts": ROWS, "reward": levels, "max_prompt_tokens": 6, "max_new_tokens": 2}
    return lambda **changes: gym.make_vec("LLMAlign-v0", num_envs=3, **{**settings, **changes})


def finish(env: Any) -> tuple[list[float], Any]:
    for _ in range(2):
        _, rewards, _, _, infos = env.step(np.array([5, 5, 5]))
    return rewards.tolist(), infos["final_info"]


def test_running_episodes_end_as_they_began_and_later_ones_are_of_the_new_table(make: Any) -> None:
    env = make()
    env.reset(options={"prompt_index": np.arange(3)})
    env.step(np.array([5, 5, 5]))
    env.unwrapped.replace_prompts(*NEW)
    env.unwrapped.steps[:] = 0
    rewards, facts = finish(env)
    assert rewards == [1.0, 2.0, 3.0]
    assert facts["prompt_index"].tolist() == [0, -1, -1] and facts["columns"]["level"].tolist() == [1, 2, 3]
    assert env.unwrapped.num_prompts == 2
    seen = set()
    for seed in range(8):
        env.reset(seed=seed)
        seen |= set(zip(finish(env)[0], env.unwrapped._prompts, strict=True))
    assert {reward for reward, _ in seen} == {1.0, 7.0}


def test_the_same_table_again_changes_nothing(make: Any) -> None:
    one, two = make(), make()
    for env in (one, two):
        env.reset(seed=4)
    two.unwrapped.replace_prompts([row["prompt"] for row in ROWS], {"level": [1, 2, 3]})
    for _ in range(5):
        (rewards, facts), (others, other_facts) = finish(one), finish(two)
        assert rewards == others and facts["prompt_index"].tolist() == other_facts["prompt_index"].tolist()


def test_state_holds_the_table_and_what_is_left_of_the_old_one(make: Any) -> None:
    env = make()
    env.reset(options={"prompt_index": np.arange(3)})
    before = json.loads(json.dumps(env.unwrapped.get_state()))
    assert before["table"] is None and before["left"] == {}
    env.unwrapped.replace_prompts(*NEW)
    state = json.loads(json.dumps(env.unwrapped.get_state()))
    fresh = make()
    fresh.reset(seed=9)
    fresh.unwrapped.set_state(state)
    for _ in range(3):
        (rewards, facts), (others, other_facts) = finish(env), finish(fresh)
        assert rewards == others
        np.testing.assert_equal(facts["prompt"].tolist(), other_facts["prompt"].tolist())
    fresh.unwrapped.set_state(before)  # back to the table it was made with
    assert fresh.unwrapped.table.prompts == [row["prompt"] for row in ROWS]
    assert finish(fresh)[0] == [1.0, 2.0, 3.0]
    older = {key: value for key, value in before.items() if key not in ("table", "left")}
    fresh.unwrapped.set_state(older)  # of an earlier version
    assert finish(fresh)[0] == [1.0, 2.0, 3.0]


def test_which_prompts_are_taken(make: Any) -> None:
    env = make().unwrapped
    assert env.accepts_prompt("A bird") and not env.accepts_prompt("word " * 20) and not env.accepts_prompt(3)
    assert make(overlong_prompts="truncate").unwrapped.accepts_prompt("word " * 20)
    image = gym.make_vec("DiffusionAlign-v0", num_envs=1, max_prompt_bytes=8, prompts=["sun"]).unwrapped
    assert image.accepts_prompt("moon") and not image.accepts_prompt("a long caption")
    image.replace_prompts(["moon", "star"])
    image.reset(seed=0)
    assert image._prompts[0] in ("moon", "star")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], {"level": []}), "expected at least one prompt"),
        ((["a"],), "columns \\['level'\\]"),
        ((["a"], {"level": [1, 2]}), "of as many values"),
        ((["word " * 20], {"level": [1]}), "more than max_prompt_tokens=6"),
    ],
)
def test_refuses(make: Any, arguments: Any, message: str) -> None:
    env = make().unwrapped
    with pytest.raises(ValueError, match=message):
        env.replace_prompts(*arguments)
    assert env.num_prompts == 3
    env.prompt_weights = np.ones(3)
    with pytest.raises(ValueError, match="prompt_weights are set"):
        env.replace_prompts(*NEW)
    with pytest.raises(TypeError, match="prompts, entry 0"):
        make().unwrapped.replace_prompts([1], {"level": [1]})
