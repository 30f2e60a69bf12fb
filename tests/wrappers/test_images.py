"""Wrappers around denoising: both faces alike, single as batched, exact resume, pickling, on images."""

import copy
import json
import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import aligngym.wrappers as single
from aligngym.agents.policies.caption_unet import CaptionUNet
from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.rollouts import collect, step_through
from aligngym.wrappers import vector

PROMPTS = [{"prompt": "sun", "level": 2}, {"prompt": "moon", "level": 1}, {"prompt": "moon sun", "level": 3}]
CASES = {
    "transform": ("TransformReward", {"reward": np.tanh, "add": True}),
    "normalize": ("NormalizeReward", {"clip": 2.0}),
    "length": ("LengthPenalty", {"per_token": 0.013, "target": 2}),
    "curriculum": ("PromptCurriculum", {"strategy": "hardest", "order_by": "level", "order_episodes": 12}),
    "monitor": ("RewardMonitor", {"episodes_per_point": 4, "window": 4}),
}
ROUNDS = [[7, 7, 8, 9], [3, 3, 3, 4], [11, 12, 13, 13]]
STACK = [*CASES]
every_wrapper = pytest.mark.parametrize("name", [*CASES, "stack"])


def picky(completions, prompts, **_):
    """Mean brightness; it fails for some images, and does not apply to some."""
    odd = [int(image.sum()) % 5 for image in completions]
    values = [float(image.mean()) / 255 for image in completions]
    return [float("nan") if k == 0 else None if k == 1 else v for k, v in zip(odd, values, strict=True)]


@pytest.fixture(scope="module")
def policy():
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return DenoiserPolicy(CaptionUNet("flow", ["sun", "moon"], size=8, channels=(32,)), num_steps=3)


def make(num_envs=4, name=None):
    options = {"shape": (3, 8, 8), "num_steps": 3, "prompts": PROMPTS, "reward": picky}
    if num_envs == 0:
        return wrapped(gym.make("FlowAlign-v0", **options), name, single)
    return wrapped(gym.make_vec("FlowAlign-v0", num_envs=num_envs, **options), name, vector)


def wrapped(env, name, module):
    for part in STACK if name == "stack" else [name] if name else []:
        cls, arguments = CASES[part]
        env = getattr(module, cls)(env, **arguments)
    return env


def play(env, policy, seeds, face="rollout"):
    noise, group = RowNoise([100 * seed + i for i, seed in enumerate(seeds)]), torch.arange(len(seeds))
    if face == "rollout":
        return collect(env, policy, seeds=seeds, noise=noise, group=group)
    return replace(step_through(env, policy, seeds=seeds, noise=noise), group=group)


@every_wrapper
def test_both_faces_give_the_same_over_several_batches(name, policy, assert_same):
    stepped, whole, plain, valid = make(name=name), make(name=name), make(), []
    for seeds in ROUNDS:
        one, two = play(stepped, policy, seeds, "step"), play(whole, policy, seeds)
        assert_same(one, two)
        for key in one.extras:
            assert torch.equal(one.extras[key], two.extras[key])
        valid += two.valid.tolist()
        if name not in ("curriculum", "monitor", "stack"):
            before = play(plain, policy, seeds)
            assert torch.equal(before.actions, two.actions) and not torch.equal(before.rewards, two.rewards)
    assert set(valid) == {True, False}
    assert two.info["image"][0].shape == (8, 8, 3) and two.info["image"][0].dtype == np.uint8


@every_wrapper
def test_single_is_a_batch_of_one(name, policy, assert_same):
    batch, one = make(1, name), make(0, name)
    for seed in (1, 2, 3, 5):
        expected = play(batch, policy, [seed])
        found = one.rollout(policy, noise=RowNoise([100 * seed]), seed=seed)
        assert_same(replace(found, version=expected.version), expected)


@every_wrapper
def test_state_in_the_middle_of_episodes_and_copies(name):
    def run(env, actions):
        return [copy.deepcopy(env.step(step)) for step in actions]

    env = make(name=name)
    env.reset(seed=[1, 1, 2, 3])
    actions = np.random.default_rng(0).normal(size=(16, 4, 3, 8, 8)).astype(np.float32)
    run(env, actions[:8])
    twin, fresh, state = pickle.loads(pickle.dumps(env)), make(name=name), json.loads(json.dumps(env.get_state()))
    after = run(env, actions[8:])
    fresh.reset(seed=0)
    fresh.set_state(state)
    for other in (fresh, twin):
        for one, two in zip(after, run(other, actions[8:]), strict=True):
            np.testing.assert_equal(plain(one), plain(two))
        np.testing.assert_equal(json.loads(json.dumps(env.get_state())), json.loads(json.dumps(other.get_state())))


def plain(value):
    """Nested arrays, of objects too, as lists."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple | np.ndarray) else value


def test_a_curriculum_learns_from_images(policy):
    env = make(4, "curriculum")
    for i in range(6):
        play(env, policy, [4 * i + k for k in range(4)])
    assert env.statistics.visits.sum() > 5 and (env.statistics.mean[env.statistics.visits > 0] > 0).all()
