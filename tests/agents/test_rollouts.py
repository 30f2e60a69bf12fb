"""Collecting episodes: one seed is one episode, in every autoreset mode, vectoriser, batch and order."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from aligngym.agents.policies.control import ControlPolicy, TabularPolicy
from aligngym.agents.policies.policy import Decision, Policy, RowNoise
from aligngym.agents.rollouts import collect, environment_actions, step_through
from aligngym.trajectories import Trajectories

SEEDS = [3, 11, 5, 8]
MODES = list(AutoresetMode)


def cartpole(num_envs=4, mode=AutoresetMode.NEXT_STEP, vectoriser=SyncVectorEnv, **kwargs):
    return vectoriser([lambda: gym.make("CartPole-v1")] * num_envs, autoreset_mode=mode, **kwargs)


def cartpole_policy():
    env = gym.make("CartPole-v1")
    return ControlPolicy(env.observation_space, env.action_space, (8,))


def play(env, policy=None, seeds=SEEDS, noise_seeds=None, **kwargs):
    noise = RowNoise(seeds if noise_seeds is None else noise_seeds)
    episodes = collect(env, policy or cartpole_policy(), seeds=seeds, noise=noise, group=torch.tensor(seeds), **kwargs)
    env.close()
    return episodes


def assert_same(one, two):
    """Equal episodes: what is discrete exactly, what went through a matrix product to rounding."""
    for name in ("observations", "actions", "mask", "rewards", "terminated", "truncated", "valid", "group"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-6, rtol=0)


def by_hand(policy, seed):
    """One episode of CartPole without any vectoriser: observations, actions, return and end."""
    env, noise = gym.make("CartPole-v1"), RowNoise([seed])
    seen, actions, total, terminated, truncated = [env.reset(seed=seed)[0]], [], 0.0, False, False
    while not (terminated or truncated):
        actions.append(policy.act(seen[-1][None], noise).actions.item())
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        seen.append(observation)
        total += reward
    return np.stack(seen), actions, total, terminated


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_the_episodes_of_single_environments(mode):
    policy = cartpole_policy()
    episodes = play(cartpole(mode=mode), policy)
    for i, seed in enumerate(SEEDS):
        seen, actions, total, terminated = by_hand(policy, seed)
        n = len(actions)
        assert episodes.lengths[i] == n and episodes.mask[i, :n].all()
        assert episodes.actions[i, :n].tolist() == actions and (episodes.actions[i, n:] == 0).all()
        assert torch.equal(episodes.observations[i, : n + 1], torch.from_numpy(seen))
        assert (episodes.observations[i, n + 1 :] == 0).all()
        assert episodes.returns[i] == total and episodes.terminated[i] == terminated
    assert len(set(episodes.lengths.tolist())) > 1
    assert (episodes.terminated ^ episodes.truncated).all() and episodes.valid.all()
    assert episodes.observations.shape == (4, episodes.mask.shape[1] + 1, 4)
    assert episodes.group.tolist() == SEEDS


@pytest.mark.parametrize("mode", MODES)
def test_processes_play_the_same_episodes(mode):
    assert_same(play(cartpole(mode=mode, vectoriser=AsyncVectorEnv, shared_memory=False)), play(cartpole()))


def test_environments_that_reuse_their_arrays_are_copied():
    assert_same(play(cartpole(copy=False)), play(cartpole()))


def test_a_row_does_not_depend_on_its_batch():
    whole, order = play(cartpole()), [2, 0, 3, 1]
    assert_same(play(cartpole(), seeds=[SEEDS[i] for i in order]), whole.select(torch.tensor(order)))
    alone = play(cartpole(1), seeds=SEEDS[2:3])
    assert_same(alone, whole.select(torch.tensor([2])) if len(alone.mask[0]) == len(whole.mask[0]) else trim(whole, 2))
    assert_same(play(cartpole(2)), whole)
    assert_same(play(cartpole(1)), whole)


def trim(episodes, row):
    """One row, cut to its own length."""
    one, n = episodes.select(torch.tensor([row])), int(episodes.lengths[row])
    changes = {name: getattr(one, name)[:, :n] for name in ("actions", "log_probs", "mask", "rewards")}
    return Trajectories(**{**vars(one), **changes, "observations": one.observations[:, : n + 1]})


def test_equal_seeds_begin_alike_and_differ_by_their_noise():
    episodes = play(cartpole(), seeds=[7, 7, 7, 7], noise_seeds=[1, 1, 2, 3])
    assert (episodes.observations[:, 0] == episodes.observations[:1, 0]).all()
    assert torch.equal(episodes.actions[0], episodes.actions[1])
    assert not torch.equal(episodes.actions[0], episodes.actions[2])
    greedy = play(cartpole(), seeds=[7, 7, 7, 7], noise_seeds=[1, 1, 2, 3], deterministic=True)
    assert (greedy.actions == greedy.actions[:1]).all()


def test_the_same_environment_can_be_collected_from_again():
    env, policy = cartpole(), cartpole_policy()
    first, second = (
        collect(env, policy, seeds=SEEDS, noise=RowNoise(SEEDS), group=torch.tensor(SEEDS)) for _ in range(2)
    )
    assert_same(first, second)


def test_rounds_continue_the_streams_of_noise():
    noise, policy = RowNoise(SEEDS), cartpole_policy()
    collect(cartpole(2), policy, seeds=SEEDS, noise=noise, group=torch.zeros(4, dtype=torch.int64), max_steps=3)
    again = collect(cartpole(2), policy, seeds=SEEDS, noise=noise, group=torch.zeros(4, dtype=torch.int64), max_steps=3)
    fresh = RowNoise(SEEDS)
    fresh.uniform(3)
    whole = collect(cartpole(), policy, seeds=SEEDS, noise=fresh, group=torch.zeros(4, dtype=torch.int64), max_steps=3)
    assert_same(again, whole)


def test_recorded_log_probs_are_those_of_evaluation():
    policy = cartpole_policy()
    episodes = play(cartpole(mode=AutoresetMode.SAME_STEP), policy)
    now = policy.evaluate_actions(episodes)
    torch.testing.assert_close(now.log_probs, episodes.log_probs, atol=1e-6, rtol=0)
    assert not episodes.log_probs.requires_grad


def test_max_steps_truncates_what_is_left():
    episodes = play(cartpole(), max_steps=5)
    assert episodes.mask.shape == (4, 5) and episodes.truncated.all() and not episodes.terminated.any()


def test_continuous_actions_are_clipped_for_the_environment_only():
    made = gym.make_vec("Pendulum-v1", num_envs=2, vectorization_mode="sync")
    policy = ControlPolicy(made.single_observation_space, made.single_action_space, (8,))
    policy.log_std.data.fill_(3.0)
    episodes = play(made, policy, seeds=[1, 2], max_steps=8)
    assert episodes.actions.abs().max() > 2
    torch.testing.assert_close(policy.evaluate_actions(episodes).log_probs, episodes.log_probs, atol=1e-4, rtol=1e-5)
    box = spaces.Box(np.array([-1, 0]), np.array([1, np.inf]), dtype=np.float64)
    taken = environment_actions(torch.tensor([[-3.0, -3.0], [0.5, 70.0]]), box)
    assert taken.dtype == torch.float64 and taken.tolist() == [[-1.0, 0.0], [0.5, 70.0]]


# Endings, rewards and infos, in an environment whose every step is known


class Countdown(gym.Env):
    """Ends after as many steps as its seed says; the info of its last step holds every kind of entry."""

    def __init__(self, both=False, dictionary=False, tensors=False):
        self.both, self.dictionary = both, dictionary
        box = spaces.Box(0, 99, (1,), np.float32)
        self.observation_space = spaces.Dict({"left": box, "start": spaces.Discrete(100)}) if dictionary else box
        self.action_space = spaces.Discrete(3)

    def _see(self):
        left = np.array([self.left], np.float32)
        return {"left": left, "start": np.int64(self.start)} if self.dictionary else left

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start = self.left = 50 if seed is None else seed
        return self._see(), {"prompt": "a new episode"}

    def step(self, action):
        self.left -= 1
        if self.left:
            return self._see(), 0.25, False, False, {"reward/late": 99.0, "prompt": "not yet"}
        info = {"prompt": f"from {self.start}", "reward/even": float(self.start % 2 == 0), "tokens": self.start}
        info["columns"] = {"answer": str(self.start)}
        if self.start == 3:
            info |= {"invalid": "no threes", "reward/style": None}
            return self._see(), float("nan"), True, self.both, info
        return self._see(), 1.0, self.start < 5, self.start >= 5 or self.both, info | {"reward/style": 0.5}


class Fixed(Policy):
    """Takes action 1 always."""

    def __init__(self, first_observation_only=False):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.first_observation_only = first_observation_only

    @property
    def sampling(self):
        return {"temperature": 1.0}

    def act(self, observation, noise, deterministic=False):
        rows = len(noise)
        return Decision(torch.ones(rows, dtype=torch.int64), torch.full((rows,), -0.5))


def countdown(mode, **kwargs):
    return SyncVectorEnv([lambda: Countdown(**kwargs)] * 4, autoreset_mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_ends_rewards_terms_and_info_are_those_of_each_rows_first_episode(mode):
    policy = Fixed()
    policy.version = 7
    episodes = play(countdown(mode), policy, seeds=[3, 1, 6, 4])
    assert episodes.lengths.tolist() == [3, 1, 6, 4] and episodes.mask.shape == (4, 6)
    assert episodes.rewards[1:].tolist() == [[1.0] + [0.0] * 5, [0.25] * 5 + [1.0], [0.25] * 3 + [1.0, 0.0, 0.0]]
    assert episodes.rewards[0, :2].tolist() == [0.25, 0.25] and episodes.rewards[0, 2].isnan()
    assert episodes.valid.tolist() == [False, True, True, True]
    assert episodes.terminated.tolist() == [True, True, False, True]
    assert episodes.truncated.tolist() == [False, False, True, False]
    assert episodes.observations[2, :, 0].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert episodes.observations[1, :, 0].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert set(episodes.terms) == {"even", "style"}
    assert episodes.terms["even"].tolist() == [0, 0, 1, 1]
    assert episodes.terms["style"].isnan().tolist() == [True, False, False, False]
    assert episodes.info["prompt"] == ["from 3", "from 1", "from 6", "from 4"]
    assert episodes.info["invalid"] == ["no threes", None, None, None]
    assert episodes.info["tokens"] == [3, 1, 6, 4] and type(episodes.info["tokens"][0]) is int
    assert episodes.info["columns"] == [{"answer": str(n)} for n in (3, 1, 6, 4)]
    assert episodes.version == 7 and episodes.sampling == {"temperature": 1.0}


@pytest.mark.parametrize("mode", MODES)
def test_dictionaries_are_recorded_key_by_key(mode):
    episodes = play(countdown(mode, dictionary=True), Fixed(), seeds=[3, 1, 2, 2])
    assert episodes.observations["left"][..., 0].tolist() == [[3, 2, 1, 0], [1, 0, 0, 0], [2, 1, 0, 0], [2, 1, 0, 0]]
    assert episodes.observations["start"].tolist() == [[3, 3, 3, 3], [1, 1, 0, 0], [2, 2, 2, 0], [2, 2, 2, 0]]
    first = play(countdown(mode, dictionary=True), Fixed(first_observation_only=True), seeds=[3, 1, 2, 2])
    assert first.observations["start"].tolist() == [3, 1, 2, 2] and first.observations["left"].shape == (4, 1)


def test_an_end_that_is_both_is_a_termination():
    episodes = play(countdown(AutoresetMode.SAME_STEP, both=True), Fixed(), seeds=[1, 2, 3, 4])
    assert episodes.terminated.all() and not episodes.truncated.any()


def test_bad_arguments_are_named():
    env, policy, group = cartpole(), cartpole_policy(), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="have 4, 3 and 4 rows"):
        collect(env, policy, seeds=SEEDS, noise=RowNoise([1, 2, 3]), group=group)
    with pytest.raises(ValueError, match="seeds has 3 entries, expected a positive multiple of num_envs = 4"):
        collect(env, policy, seeds=SEEDS[:3], noise=RowNoise([1, 2, 3]), group=group[:3])
    with pytest.raises(ValueError, match="seeds has 0 entries"):
        collect(env, policy, seeds=[], noise=RowNoise([]), group=group[:0])
    with pytest.raises(ValueError, match="max_steps is 0"):
        collect(env, policy, seeds=SEEDS, noise=RowNoise(SEEDS), group=group, max_steps=0)


# Whole episodes at once


class Arms(VectorEnv):
    """A one-turn environment with both faces; observations are tensors, as those of an environment on a GPU."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs=4):
        self.num_envs, self.rollouts = num_envs, 0
        self.single_observation_space, self.single_action_space = spaces.Discrete(3), spaces.Discrete(5)
        self.observation_space = spaces.MultiDiscrete([3] * num_envs)
        self.action_space = spaces.MultiDiscrete([5] * num_envs)

    def reset(self, *, seed=None, options=None):
        self.states = torch.tensor(seed) % 3
        return self.states, {}

    def step(self, actions):
        assert isinstance(actions, torch.Tensor)
        final = np.full(self.num_envs, None, object)
        final[:] = list(self.states)
        ended = torch.ones(self.num_envs, dtype=torch.bool)
        return self.states, actions.float() / 5, ended, ~ended, {"final_obs": final, "final_info": {}}

    def rollout(self, policy, *, noise, seed=None, options=None, deterministic=False):
        self.rollouts += 1
        observation, _ = self.reset(seed=seed)
        episodes = policy.generate(
            observation, noise, max_steps=1, terminal_actions=range(5), deterministic=deterministic
        )
        episodes.rewards = episodes.actions.float() / 5
        episodes.info = {"invalid": [None] * self.num_envs}
        return episodes


class Passes(VectorWrapper):
    """A wrapper that knows of both faces."""

    def rollout(self, policy, **kwargs):
        return self.env.rollout(policy, **kwargs)


class AlsoPasses(Passes):
    """Inherits its rollout."""


class Ignores(VectorWrapper):
    """A wrapper that knows of ``step`` only."""


def table():
    policy = TabularPolicy(3, 5)
    policy.logits.data = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    return policy


@pytest.mark.parametrize("wrap", [lambda e: e, Passes, AlsoPasses, lambda e: Passes(AlsoPasses(e))])
def test_whole_episodes_are_those_of_single_steps_and_rounds_are_joined(wrap):
    base = Arms()
    seeds = [0, 0, 1, 1, 2, 2, 3, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = play(wrap(base), table(), seeds, noise_seeds=range(8))
    assert base.rollouts == 2 and whole.group.tolist() == seeds
    first = step_through(Arms(), table(), seeds=seeds[:4], noise=RowNoise(range(4)))
    second = step_through(Arms(), table(), seeds=seeds[4:], noise=RowNoise(range(4, 8)))
    for part, rows in ((first, slice(0, 4)), (second, slice(4, 8))):
        part.group = torch.tensor(seeds)[rows]
        assert_same(whole.select(torch.arange(8)[rows]), part)
    greedy = play(Arms(), table(), SEEDS, deterministic=True)
    assert torch.equal(greedy.actions[:, 0], table().logits.argmax(1)[torch.tensor(SEEDS) % 3])


def test_the_tabular_bandit_plays_alike_on_both_faces():
    env, policy = gym.make_vec("aligngym:TabularBandit-v0", num_envs=4), TabularPolicy(4, 8)
    policy.logits.data = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    seeds, noise = [5, 5, 6, 6], range(4)
    whole = collect(env, policy, seeds=seeds, noise=RowNoise(noise), group=torch.tensor(seeds))
    stepped = collect(env, policy, seeds=seeds, noise=RowNoise(noise), group=torch.tensor(seeds), max_steps=1)
    assert_same(whole, stepped)
    assert whole.info == stepped.info
    assert whole.terms.keys() == stepped.terms.keys()
    assert all(torch.equal(whole.terms[k], stepped.terms[k]) for k in whole.terms)
    assert whole.terminated.all() and torch.equal(whole.observations[0], whole.observations[1])
    torch.testing.assert_close(policy.evaluate_actions(whole).log_probs, whole.log_probs)


@pytest.mark.parametrize("wrap", [Ignores, lambda e: Passes(Ignores(e)), lambda e: Ignores(Passes(e))])
def test_a_wrapper_without_rollout_is_named_and_the_episodes_are_the_same(wrap):
    base = Arms()
    with pytest.warns(UserWarning, match="Ignores defines no rollout, so Arms is played one decision at a time"):
        stepped = play(wrap(base), table())
    assert base.rollouts == 0
    assert_same(stepped, play(Arms(), table()))


def test_policies_that_cannot_generate_and_budgets_step_without_a_warning():
    base = Arms()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(Ignores(base), ControlPolicy(spaces.Discrete(3), spaces.Discrete(5)))
        play(base, table(), max_steps=1)
        play(Ignores(cartpole()), max_steps=1)
    assert base.rollouts == 0


class Lines(VectorEnv):
    """Observations are a string."""

    num_envs = 1

    def reset(self, *, seed=None, options=None):
        return "words", {}


def test_observations_that_cannot_be_recorded_are_refused():
    with pytest.raises(TypeError, match="cannot record an observation of type str"):
        step_through(Lines(), Fixed(), seeds=[1], noise=RowNoise([1]))
