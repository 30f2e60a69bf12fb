"""PEBBLE with networks of 16 units on short episodes of the pendulum, whose true reward may not be the paid one."""

import gymnasium as gym

from aligngym.agents.pebble import PEBBLE, PEBBLEConfig

from .small_sb3 import MODES, make_env

SMALL = {
    "learning_starts": 20, "unsupervised_steps": 40, "segment_length": 5, "queries_per_round": 6, "max_queries": 20,
    "steps_between_queries": 30, "ensemble_size": 2, "reward_hidden": (8, 8), "reward_epochs": 2, "net_arch": (16, 16),
    "batch_size": 16, "reset_updates": 3, "steps_per_iteration": 20,
}  # fmt: skip
LIMIT = 15


def small(env=None, seed=3, folder=None, **options):
    env = env or make_env("Pendulum-v1", max_episode_steps=LIMIT)
    return PEBBLE(env, config=PEBBLEConfig(**SMALL | options), seed=seed, folder=folder)


class Paid(gym.Wrapper):
    """Pays ``pay(reward)`` a step, and keeps ``truth(reward)`` in the info."""

    def __init__(self, env, pay, truth):
        super().__init__(env)
        self.pay, self.truth = pay, truth

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, self.pay(reward), terminated, truncated, info | {"true_reward": self.truth(reward)}


def paying(pay, truth=lambda r: r, mode=MODES[0], rows=2):
    wrappers = [lambda env: Paid(env, pay, truth)]
    return make_env("Pendulum-v1", rows, mode, max_episode_steps=LIMIT, wrappers=wrappers)
