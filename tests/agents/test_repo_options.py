"""RePo: what is refused, in one sentence."""

import gymnasium as gym
import numpy as np
import pytest

from aligngym.agents.repo import RePo, RePoConfig

from .test_repo import SMALL


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1"])
def test_spaces_that_do_not_fit(env):
    with pytest.raises(ValueError, match="RePo takes"):
        RePo(env, config=RePoConfig(**SMALL))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 3}, "num_envs=3"),
        ({"sequence_length": 1}, "sequence_length=1"),
        ({"horizon": 1}, "horizon=1"),
        ({"initial_beta": 0.0}, "initial_beta=0.0"),
        ({"beta_learning_rate": -1.0}, "beta_learning_rate=-1.0"),
        ({"kl_balance": 1.5}, "kl_balance=1.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_starts": 49}, "learning_starts=49: must be at least"),
        ({"buffer_size": 99, "num_envs": 2}, "buffer_size=99: must be at least sequence_length times num_envs = 100"),
        ({"buffer_size": 1e5}, r"buffer_size=100000\.0: must be a whole number"),
        ({"reconstruction": True, "probe": True}, "leave probe out"),
        ({"precision": "float16"}, "precision='float16'"),
    ],
)
def test_bad_configs_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        RePoConfig(**options)


def test_pictures_of_another_size_or_dtype_are_refused():
    env = gym.vector.SyncVectorEnv([Pictures])
    agent = RePo(env, config=RePoConfig(**SMALL))
    assert agent.predict(np.zeros((16, 16, 3), np.uint8))[0].shape == (1,)
    assert agent.predict(np.zeros((2, 16, 16, 3), np.uint8))[0].shape == (2, 1)
    for wrong, name in (
        (np.zeros((32, 32, 3), np.uint8), r"uint8\[32, 32, 3\]"),
        (np.zeros((2, 16, 16, 4), np.uint8), r"uint8\[2, 16, 16, 4\]"),
        (np.zeros((16, 16, 3)), r"float64\[16, 16, 3\]"),
    ):
        with pytest.raises(ValueError, match=rf"observation is {name}, expected uint8\[16, 16, 3\]"):
            agent.predict(wrong)


class Pictures(gym.Env):
    """Black."""

    observation_space, action_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8), gym.spaces.Box(-1, 1, (1,))
