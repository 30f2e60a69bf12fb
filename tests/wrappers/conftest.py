"""A small ``LLMAlign-v0`` whose episodes end early, late and invalid, the language model that plays it, and a table of
every wrapper.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from transformers import AutoTokenizer

import aligngym.wrappers as single
from aligngym.agents.policies.lm import LMPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.rollouts import collect, step_through
from aligngym.assets import model_path
from aligngym.rewards import Repetition, Sentiment, register_reward
from aligngym.trajectories import Trajectories
from aligngym.wrappers import vector

torch.set_num_threads(1)

PROMPTS = [
    {"prompt": "Once upon a time", "level": 3, "reference": "there was a girl"},
    {"prompt": "The cat sat", "level": 1, "reference": "on a mat"},
    {"prompt": "A dog ran home. He", "level": 2, "reference": "was happy"},
    {"prompt": "She said", "level": 5, "reference": "hello"},
    {"prompt": "It was a very happy day", "level": 4, "reference": "and they played"},
]


@register_reward("test_wrappers_picky")
def picky(completions: list[str], prompts: list[str], **columns: Any) -> list[float | None]:
    """A reward that fails for some completions and does not apply to others."""
    odd = [len(text) % 7 for text in completions]
    return [np.nan if k == 0 else None if k == 1 else len(text) / 10 for k, text in zip(odd, completions, strict=True)]


MIXED = (Sentiment() + 0.5 * Repetition()).to_dict()
SWAP = {"type": "in_breadth", "families": [["cat", "dog"], ["Once", "Twice"], ["She", "He"], ["day", "week"]]}
EVOLUTION = {"creator": SWAP, "informativeness": "uniform", "every": 4, "share": 0.4, "variants": 1, "seed": 0}
STACK = ("curriculum", "length", "transform_add", "normalize", "monitor")


def cases(folder: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every wrapper: the name of its class and its arguments."""
    return {
        "transform": ("TransformReward", {"reward": MIXED}),
        "transform_add": ("TransformReward", {"reward": "test_wrappers_picky", "add": True, "weight": -0.3}),
        "transform_map": ("TransformReward", {"reward": np.tanh}),
        "normalize": ("NormalizeReward", {"clip": 2.0}),
        "length": ("LengthPenalty", {"per_token": 0.013, "target": 2, "overlong_buffer": 3, "max_length": 8}),
        "curriculum": ("PromptCurriculum", {"strategy": "hardest", "order_by": "level", "order_episodes": 40}),
        "evolution": ("PromptEvolution", EVOLUTION),
        "record": ("RecordTrajectories", {"folder": str(folder)}),
        "monitor": ("RewardMonitor", {"gold": "repetition", "episodes_per_point": 4, "window": 4}),
    }


NAMES = [*cases("")]


@pytest.fixture(params=[*NAMES, "stack"])
def wrapper_name(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def wrap(tmp_path: Any) -> Any:
    """``wrap(env, name)``: the environment or batch in the wrapper of that name, or in the stack of many."""

    def wrapped(env: Any, name: str) -> Any:
        if name == "stack":
            for part in STACK:
                env = wrapped(env, part)
            return env
        cls, arguments = cases(tmp_path / "records")[name]
        module = vector if isinstance(env, gym.vector.VectorEnv) else single
        return getattr(module, cls)(env, **arguments)

    return wrapped


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The embedded tokenizer, with the full stop as its end-of-sequence token, so that episodes end at all lengths."""
    tokenizer = AutoTokenizer.from_pretrained(model_path("stories"))
    tokenizer.eos_token = "."
    return tokenizer


@pytest.fixture(scope="session")
def policy() -> LMPolicy:
    return LMPolicy.from_pretrained("stories")


@pytest.fixture
def arguments(tokenizer: Any) -> dict[str, Any]:
    reward = {"type": "sum", "terms": ["test_wrappers_picky", "sentiment"], "weights": [1.0, 0.37]}
    return {
        "prompts": PROMPTS,
        "reward": reward,
        "tokenizer": tokenizer,
        "max_prompt_tokens": 16,
        "max_new_tokens": 8,
    }


@pytest.fixture
def make(arguments: dict[str, Any]) -> Any:
    """``make(num_envs, **changes)``: a batch."""
    return lambda num_envs=4, **changes: gym.make_vec("LLMAlign-v0", num_envs=num_envs, **{**arguments, **changes})


@pytest.fixture
def make_one(arguments: dict[str, Any]) -> Any:
    """``make_one(**changes)``: a single environment."""
    return lambda **changes: gym.make("LLMAlign-v0", **{**arguments, **changes})


@pytest.fixture
def make_sync(make_one: Any) -> Any:
    """``make_sync(mode, wrap)``: a batch that Gymnasium makes of single environments, in an autoreset mode."""
    return lambda mode, wrap, num_envs=4: SyncVectorEnv([lambda: wrap(make_one())] * num_envs, autoreset_mode=mode)


@pytest.fixture
def play(policy: LMPolicy) -> Any:
    """``play(env, seeds, face)``: one episode a seed, by steps or whole."""

    def played(env: Any, seeds: list[int], face: str = "rollout") -> Trajectories:
        noise = RowNoise([seed * 100 + i for i, seed in enumerate(seeds)])
        if face == "rollout":
            return collect(env, policy, seeds=seeds, noise=noise, group=torch.arange(len(seeds)))
        episodes = step_through(env, policy, seeds=seeds, noise=noise)
        return replace(episodes, group=torch.arange(len(seeds)))

    return played


@pytest.fixture
def assert_same() -> Any:
    """``assert_same(one, two)``: equal episodes; log-probabilities to rounding, everything else exactly."""

    def check(one: Trajectories, two: Trajectories) -> None:
        for name in ("actions", "mask", "terminated", "truncated", "valid"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name
        torch.testing.assert_close(one.rewards, two.rewards, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(one.log_probs, two.log_probs, rtol=0, atol=1e-5)
        assert set(one.terms) == set(two.terms)
        for name, values in one.terms.items():
            torch.testing.assert_close(values, two.terms[name], rtol=0, atol=0, equal_nan=True, msg=name)
        assert set(one.info) == set(two.info)
        for key, values in one.info.items():
            np.testing.assert_equal(values, two.info[key], err_msg=key)

    return check
