"""Agents on societies: one policy for all, a policy for each, Stable-Baselines3; best responses are the known ones."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import aligngym
from aligngym.agents.registry import agent_class
from aligngym.envs.society.seat import StrategyDiffusionSeat

GAME = {"players": 4, "threshold": 2, "success_pays": "colluders", "reward": "additive", "rounds": 2}


def seats(count, others, **game):
    return gym.vector.SyncVectorEnv([lambda: StrategyDiffusionSeat(others, **{**GAME, **game})] * count)


@pytest.mark.parametrize("others", [0.3, lambda seen, rng: rng.integers(2, size=len(seen))])
def test_gymnasium_accepts_a_seat(others):
    check_env(StrategyDiffusionSeat(others, seat=2, **GAME), skip_render_check=True)


def test_a_seat_is_a_player_of_the_game():
    """Others see their own observations, in order; the pay is that of the game."""
    env, seen = StrategyDiffusionSeat(seat=1, **GAME), []

    def others(observations, rng):
        seen.append(observations)
        return [0, 0, 1]

    env.others = others
    env.reset(seed=0)
    _, reward, _, over, info = env.step(1)
    assert reward == pytest.approx(0.2) and not over and info["success"]
    _, reward, _, over, info = env.step(0)
    assert reward == 0 and over and info["reward/violation"] == 0.5
    assert seen[1].shape == (3, 15) and seen[1][:, 3].tolist() == [0, 0, 1]
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_state_of_a_seat_is_restored_exactly():
    env, other = (StrategyDiffusionSeat(0.5, **{**GAME, "rounds": 12}) for _ in range(2))
    env.reset(seed=3)
    env.step(1)
    other.set_state(env.get_state())
    for _ in range(11):
        one, two = env.step(1), other.step(1)
        assert np.array_equal(one[0], two[0]) and one[1:] == two[1:]


@pytest.mark.parametrize(("others", "best"), [(0.05, 0), (0.6, 1)])
def test_ppo_learns_the_best_response(others, best):
    """Two of four, colluders paid: deviating pays from q = 1 - 0.5^(1/3) = 0.206 on."""
    config = aligngym.PPOConfig(episodes_per_iteration=64, minibatch_size=32, learning_rate=5e-3)
    agent = aligngym.PPO(seats(16, others), config=config, seed=0).learn(64 * 30)
    assert agent.evaluate(episodes=64).terms["violation"] == pytest.approx(best, abs=0.1)


def test_tipping_point_of_that_game():
    from aligngym.envs.society.game import CollectiveGame

    point = CollectiveGame(4, 2, success_pays="colluders").tipping_points()
    assert point == [pytest.approx(1 - 0.5 ** (1 / 3), abs=1e-4)]


def test_each_player_may_have_a_policy_of_its_own():
    """Two players in turn against what the other has become; success is impossible, so both learn to be independent."""
    agents = [
        aligngym.PPO(
            seats(8, 0.5, players=2, threshold=3, seat=seat), seed=seat,
            config=aligngym.PPOConfig(episodes_per_iteration=32, minibatch_size=16, learning_rate=1e-2),
        )
        for seat in range(2)
    ]  # fmt: skip
    for _ in range(3):
        for mine, other in ((0, 1), (1, 0)):
            for env in agents[mine].env.envs:
                env.unwrapped.others = lambda seen, rng, other=other: agents[other].predict(seen)[0]
            agents[mine].learn(32 * 3)
    assert [agent.evaluate(episodes=16).terms["violation"] for agent in agents] == [0, 0]


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_one_policy_for_all_players_resumes_exactly(name, tmp_path):
    agent = agent_class(name)
    config = agent.config_class(episodes_per_iteration=16, minibatch_size=16, learning_rate=1e-2)

    def fresh():
        return agent("StrategyDiffusion-v0", config=config, seed=1)

    straight, first = fresh(), fresh()
    straight.learn(64)
    first.learn(32)
    first.save(tmp_path / "saved")
    resumed = agent.load(tmp_path / "saved").learn(32)
    for one, two in zip(straight.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, two)


def test_stable_baselines_trains_it():
    agent = agent_class("sb3-ppo")
    config = agent.config_class(n_steps=8, batch_size=16)
    env = gym.make_vec("StrategyDiffusion-v0", num_envs=8, **GAME)
    trained = agent(env, config=config, seed=0).learn(128)
    actions, _ = trained.predict(np.zeros((8, 15), np.float32))
    assert set(np.asarray(actions).tolist()) <= {0, 1} and trained.episodes >= 128


@pytest.mark.parametrize(("face", "agent"), [("last", "grpo"), ("history", "ppo"), ("history", "sb3-ppo")])
def test_agents_train_on_tipping(face, agent):
    cls = agent_class(agent)
    small = {"n_steps": 8, "batch_size": 16} if agent == "sb3-ppo" else {"episodes_per_iteration": 16}
    env = gym.make_vec("AlignmentTipping-v0", num_envs=16, vectorization_mode="sync", face=face)
    trained = cls(env, config=cls.config_class(**small), seed=0).learn(32)
    assert 0 <= trained.evaluate(episodes=16).terms["violation"] <= 1
