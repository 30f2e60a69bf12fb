"""Environments of reward design: Gymnasium's contract, tables that are what is stepped, and numbers known exactly."""

import copy
import json
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from aligngym.envs import ENVIRONMENTS
from aligngym.envs.design.chain import chain_mdp, corridor_mdp
from aligngym.envs.design.line_key import line_key_mdp
from aligngym.envs.design.rooms import END, GOAL, four_rooms_table, rooms_nav_table
from aligngym.tabular import greedy, optimal_actions, optimal_values, start_value

IDS = [name for name in ENVIRONMENTS if name.startswith("RewardDesign/")]
TABLES = [name for name in IDS if "Continuous" not in name]
every_env = pytest.mark.parametrize("env_id", IDS)


@every_env
def test_check_env_finds_nothing(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, render_mode="rgb_array").unwrapped)


def play(env, seed, steps=100):
    """Everything that random actions lead to, over several episodes."""
    found, rng = [env.reset(seed=seed)], np.random.default_rng(seed)
    for _ in range(steps):
        found.append(env.step(rng.integers(env.action_space.n)))
        if found[-1][2] or found[-1][3]:
            found.append(env.reset())
    return found


def same(a, b):
    np.testing.assert_equal(a, b)


@every_env
def test_seeds_decide_everything(env_id):
    one, two = gym.make(env_id), gym.make(env_id)
    same(play(one, 3), play(two, 3))
    assert str(play(one, 3)) != str(play(two, 4))


@every_env
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_states_and_copies_go_on_alike(env_id, copier):
    env = gym.make(env_id).unwrapped
    env.reset(seed=1)
    for action in (1, 0, 1, 1, 0):
        env.step(action)
    twin, other = copier(env), gym.make(env_id).unwrapped
    other.reset(seed=9)
    other.set_state(json.loads(json.dumps(env.get_state())))
    for action in (1, 0, 0, 1, 1, 1):
        outcome = env.step(action)
        same(outcome, twin.step(action))
        same(outcome, other.step(action))


@every_env
def test_true_rewards_are_reported(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    rewards, ended, rng = [], False, np.random.default_rng(0)
    while not ended:
        _, reward, terminated, truncated, info = env.step(rng.integers(env.action_space.n))
        rewards.append(reward)
        ended = terminated or truncated
        assert info["true_reward"] == reward and ("reward/true_return" in info) is ended
        assert not (terminated and truncated)
    assert info["reward/true_return"] == sum(rewards)
    discounts = env.unwrapped.gamma ** np.arange(len(rewards))
    assert info["reward/discounted_return"] == pytest.approx(discounts @ rewards)
    with pytest.raises(gym.error.ResetNeeded):
        env.unwrapped.step(0)


@pytest.mark.parametrize("env_id", TABLES)
def test_steps_follow_the_table(env_id):
    env = gym.make(env_id).unwrapped
    mdp, rng = env.mdp, np.random.default_rng(0)
    env.reset(seed=0)
    for state in rng.choice(np.flatnonzero(~mdp.terminal), 4, replace=False).tolist():
        action = int(rng.integers(mdp.shape[1]))
        counts = np.zeros(mdp.shape[0])
        for _ in range(2000):
            env.state, env.over, env.steps = state, False, 0
            found, reward, terminated, _, _ = env.step(action)
            counts[found] += 1
            assert reward == mdp.R[state, action] and terminated == mdp.terminal[found]
        expected = 2000 * mdp.P[state, action]
        assert counts[expected == 0].sum() == 0
        assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1e-9).all()


def test_the_line_in_cells_is_that_of_the_known_answers():
    """Three numbers measured on an independent program: see the page on teachers."""
    mdp = line_key_mdp()
    values, q = optimal_values(mdp)
    assert mdp.shape == (21, 3) and mdp.start[3:8].tolist() == [0.2] * 5
    assert start_value(mdp, greedy(q)) == pytest.approx(4.906, abs=5e-4)
    assert optimal_actions(q)[1].tolist() == [False, False, True]  # pick
    assert values[1] == pytest.approx(0.95 * values[11])


def test_the_chain_pays_at_every_step_unless_its_goal_is_the_end():
    # 20 steps off: about 0.99^20 / (1 - 0.99) = 81.8 without an end, with it about 0.99^20 = 0.818; a slip is paid.
    for terminal, low, high in ((False, 75, 81.8), (True, 0.8, 0.84)):
        mdp = chain_mdp(terminal_goal=terminal)
        assert mdp.shape == (62, 2) and mdp.start[40] == 1 and mdp.R[60, 1] == 1 and mdp.R.sum() == 1
        assert low < start_value(mdp, greedy(optimal_values(mdp)[1])) < high
    assert chain_mdp().P[60, 1, 60] == pytest.approx(0.975) and chain_mdp().P[0, 0, 61] == pytest.approx(0.975)
    assert chain_mdp(distractor=0.01).R[25, 0] == 0.01
    env = gym.make("RewardDesign/Chain-v0", noise=0.0)
    env.reset(seed=0)
    *_, (_, _, terminated, truncated, info) = (env.step(1) for _ in range(40))
    assert truncated and not terminated and info["reward/true_return"] == 20
    assert info["reward/discounted_return"] == pytest.approx(sum(0.99**t for t in range(20, 40)))


def test_the_corridor_has_a_wall_and_an_end():
    mdp = corridor_mdp(3)
    np.testing.assert_allclose(mdp.P[0, 0], [0.9, 0.1, 0, 0])
    np.testing.assert_allclose(mdp.P[2, 1], [0, 0.1, 0, 0.9])


def test_the_rooms_have_doors_and_ways_out():
    nav, four = rooms_nav_table(0.1), four_rooms_table(0.05)
    # Into the wall between the rooms below: nobody passes but at the doors.
    assert nav[2, 3, 3] == four[2, 3, 3] == 0 and nav[9, 3, 10] == 0.9
    assert nav[2, 3, 2] == 0.9 and nav[2, 3, [1, 9]].tolist() == pytest.approx([0.05, 0.05])
    assert four[9, 3, 10] == pytest.approx(0.95 + 0.05 / 4)
    # The corners: EXPRD's are noisy, the later ones exact; `up` at the goal leads out of EXPRD's only.
    assert nav[GOAL, [0, 3], END].tolist() == [0.9, 0.9] and nav[0, [1, 2], END].tolist() == [0.9, 0.9]
    assert four[GOAL, 3, END] == four[GOAL, 0, GOAL] == four[0, 1, END] == four[0, 2, END] == 1
    assert nav[0, 0, END] == pytest.approx(0.05) and four[0, 0, END] == 0


def test_the_rooms_of_explors_pay_at_every_step_and_are_noisy_everywhere():
    inside, loop = four_rooms_table(0.05), four_rooms_table(0.05, terminal_goal=False)
    assert loop[GOAL, 3, GOAL] == pytest.approx(0.95 + 0.05 / 2) and loop[GOAL, :, END].sum() == 0
    assert loop[0, 1, END] == pytest.approx(0.95 + 0.05 / 2) and loop[0, 0, END] == pytest.approx(0.05 / 2)
    corners = np.isin(np.arange(END + 1), [0, GOAL])
    np.testing.assert_array_equal(loop[~corners], inside[~corners])
    env = gym.make("RewardDesign/FourRooms-v0", terminal_goal=False, noise=0.0, reward=1.0)
    env.reset(seed=0)
    way = [0, 0, 0, 0, 3, 3, 0, 3, 3, 3]  # from (1, 1) through two doors
    moves = [env.step(action) for action in way + [3] * 20]
    assert moves[9][0] == GOAL and moves[-1][0] == GOAL
    *_, terminated, truncated, info = moves[-1]
    assert truncated and not terminated and info["reward/true_return"] == 20


def test_both_rooms_are_solved_by_walking_to_the_corner():
    for env_id in ("RewardDesign/RoomsNav-v0", "RewardDesign/FourRooms-v0"):
        env = gym.make(env_id).unwrapped
        values, q = env.optimal_values
        assert values.argmax() == GOAL and 10 <= values[GOAL] < 11
        # 10 moves from (1, 1) to (6, 6), then one that is paid.
        assert values[GOAL] * 0.95**12 < values[8] < values[GOAL] * 0.95**10
        assert optimal_actions(q)[GOAL].tolist() == [False, False, False, True]


def test_the_line_of_real_numbers_needs_the_right_key():
    env = gym.make("RewardDesign/LineKeyContinuous-v0", noise=0.0, step_noise=0.0, start=(0.35, 0.35)).unwrapped
    for pick, paid in ((2, 1.0), (3, 0.0)):
        env.reset(seed=0)
        moves = [env.step(0) for _ in range(4)]
        assert moves[-1][0][:4].tolist() == pytest.approx([0.05, 0, 1, 0])
        taken = env.step(pick)[0]
        assert taken[1] == 1 and taken[4] == (pick == 2) and taken[4:].sum() == 1
        assert env.step(5 - pick)[0].tolist() == taken.tolist()  # what was taken stays
        rewards = [env.step(1)[1] for _ in range(15)]
        assert rewards == [0.0] * 12 + [paid] * 3  # at the door after 12 steps, and paid again and again
    small = gym.make("RewardDesign/LineKeyContinuous-v0", keys=1)
    assert small.action_space.n == 3 and small.observation_space.shape == (5,)


def test_pictures_show_where_the_agent_is():
    for env_id in IDS:
        env = gym.make(env_id, render_mode="rgb_array")
        env.reset(seed=0)
        before = env.render()
        for _ in range(3):
            env.step(0)
        assert before.dtype == np.uint8 and before.shape == env.render().shape and (before != env.render()).any()
    assert gym.make(IDS[0]).unwrapped.render() is None


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("RewardDesign/LineKey-v0", {"cells": 5}, "cells=5"),
        ("RewardDesign/Chain-v0", {"left": 10, "distractor": 0.1}, "left=10"),
        ("RewardDesign/Chain-v0", {"right": 0}, "right is 0, expected an integer of at least 1"),
        ("RewardDesign/RoomsNav-v0", {"noise": 2}, "noise is 2, expected a probability"),
        ("RewardDesign/FourRooms-v0", {"noise": -0.1}, "noise is -0.1"),
        ("RewardDesign/LineKey-v0", {"noise": 1.5}, "noise is 1.5"),
        ("RewardDesign/LineKeyContinuous-v0", {"noise": 5}, "noise is 5"),
        ("RewardDesign/LineKeyContinuous-v0", {"gamma": 2}, "gamma=2"),
        ("RewardDesign/Chain-v0", {"max_steps": 0}, "max_steps is 0"),
        ("RewardDesign/Chain-v0", {"render_mode": "ansi"}, "render_mode is 'ansi'"),
        ("RewardDesign/LineKeyContinuous-v0", {"keys": 0}, "keys is 0"),
    ],
)
def test_arguments_are_checked(env_id, options, message):
    with pytest.raises(ValueError, match=message):
        gym.make(env_id, **options)
    with pytest.raises(gym.error.InvalidAction):
        env = gym.make(env_id).unwrapped
        env.reset(seed=0)
        env.step(9)
