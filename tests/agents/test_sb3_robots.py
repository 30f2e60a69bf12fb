"""Stable-Baselines3's agents and PEBBLE on the simulators: they train, and go on exactly after loading."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.torch_layers import NatureCNN

from aligngym.agents.callbacks import Callback
from aligngym.agents.registry import agent_class
from aligngym.envs import list_envs
from aligngym.envs.robot.recovering import RecoveringAsyncVectorEnv

from .small_sb3 import equal

for package in ("metaworld", "dm_control", "robosuite"):
    pytest.importorskip(package)

OPTIONS = {
    "sac": {"steps_per_iteration": 16, "learning_starts": 8, "batch_size": 8, "net_arch": (16,), "buffer_size": 1000},
    "sb3-ppo": {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "net_arch": (16,)},
}
OPTIONS["pebble"] = OPTIONS["sac"] | {
    "unsupervised_steps": 16, "segment_length": 4, "queries_per_round": 4, "steps_between_queries": 16,
    "reward_hidden": (8,),
}  # fmt: skip
REACHER = {"domain": "reacher", "task": "easy", "max_steps": 9}
ROBOTS = {
    "manipulation": ("ManipulationAlign-v0", {"task": "reach", "max_steps": 9}),
    "control": ("ControlAlign-v0", REACHER),
    "robosuite": ("RobosuiteAlign-v0", {"task": "Can", "max_steps": 9}),
    "robosuite keys": ("RobosuiteAlign-v0", {"task": "Can", "max_steps": 9, "flatten": False}),
    "control pixels": ("ControlAlign-v0", REACHER | {"observation": "pixels"}),
}


def made(robot, agent, **options):
    cls, (env_id, given) = agent_class(agent), ROBOTS[robot]
    env = gym.make_vec(env_id, num_envs=2, vectorization_mode="sync", **given | options)
    return cls(env, config=cls.config_class(**OPTIONS[agent]), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("agent", OPTIONS)
@pytest.mark.parametrize("robot", ROBOTS)
def test_training_goes_on_exactly_where_it_was_saved(robot, agent, tmp_path):
    if agent == "pebble" and robot in ("robosuite keys", "control pixels"):
        with pytest.raises(ValueError, match="PEBBLE takes a Box of numbers"):
            made(robot, agent)
        return
    straight, first = made(robot, agent).learn(96), made(robot, agent).learn(48)
    assert first.vec_env.actions[0]  # in the middle of an episode
    first.evaluate(episodes=2)
    first.save(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an environment that did not repeat its episode would be reported
        first.learn(48)
        resumed = type(first).load(tmp_path / "saved", made(robot, agent).env).learn(48)
    assert equal(first, straight) and equal(resumed, straight)
    assert "rollout/term/true_return" in Watch.of(straight)
    for used in (straight, first, resumed):
        used.env.close()


@pytest.mark.parametrize("observation", ["state", "pixels"])
@pytest.mark.parametrize("agent", ["sac", "sb3-ppo"])
@pytest.mark.parametrize("robot", [env_id for env_id, entry in list_envs().items() if entry.extra == "robot"])
def test_every_robot_trains_every_agent(robot, agent, observation):
    """From pictures with the channels last, as environments make them, in buffers with the channels first."""
    cls, options = agent_class(agent), {"task": "Can"} if robot == "RobosuiteAlign-v0" else {}
    options |= {"observation": observation, "max_steps": 5} | ({"size": 36} if observation == "pixels" else {})
    env = gym.make_vec(robot, num_envs=2, vectorization_mode="sync", **options)
    trained = cls(env, config=cls.config_class(**OPTIONS[agent]), seed=1)
    before = [p.clone() for p in trained.policy.parameters()]
    trained.learn(16)
    after = list(trained.policy.parameters())
    assert all(p.isfinite().all() for p in after) and not any(map(torch.equal, before, after))
    seen = trained.vec_env.observation
    buffer = trained.model.replay_buffer if agent == "sac" else trained.model.rollout_buffer
    kept = buffer.next_observations[7] if agent == "sac" else trained.model._last_obs
    assert np.array_equal(kept, np.moveaxis(seen, -1, 1) if observation == "pixels" else seen)
    network = trained.model.policy.actor if agent == "sac" else trained.model.policy
    if observation == "pixels":
        assert isinstance(network.features_extractor, NatureCNN) and (buffer.observations > 100).any()
        assert buffer.observations.shape[-3:] == kept.shape[1:] == (3, 36, 36) and kept.dtype == np.uint8
    chosen = trained.policy.act(seen, None, deterministic=True).actions.numpy()
    expected, _ = trained.model.predict(kept, deterministic=True)
    np.testing.assert_allclose(chosen.clip(-1, 1), expected, atol=1e-5)
    assert np.isfinite(trained.evaluate(episodes=2).mean)
    env.close()


class Watch(Callback):
    """The last iteration's metrics."""

    metrics: dict

    @classmethod
    def of(cls, agent):
        watch = cls()
        agent.learn(16, watch)
        return watch.metrics

    def on_iteration(self, agent, episodes, metrics):
        self.metrics = dict(metrics)
        return True


@pytest.mark.parametrize("agent", OPTIONS)
def test_a_simulation_that_diverges_stops_nothing(agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log
    trained = made("manipulation", agent)
    trained.learn(16)
    for single in trained.env.envs[:1]:
        single.unwrapped.simulator.data.qvel[:] = np.nan
    metrics = Watch.of(trained)
    assert 0 < metrics["rollout/invalid_fraction"] < 1
    trained.learn(48)
    assert all(p.isfinite().all() for p in trained.policy.parameters())


def test_a_process_that_dies_stops_nothing():
    env_id, options = ROBOTS["control"]
    fns = [lambda: gym.make(f"aligngym:{env_id}", **options)] * 2
    env = RecoveringAsyncVectorEnv(fns, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        trained = agent_class("sac")(env, config=agent_class("sac").config_class(**OPTIONS["sac"]))
        trained.learn(16)
        env.processes[1].kill()
        env.processes[1].join()
        with pytest.warns(UserWarning):
            metrics = Watch.of(trained)
        assert metrics["rollout/invalid_fraction"] > 0
        trained.learn(32)
    finally:
        env.close()
