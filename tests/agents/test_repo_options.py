"""RePo: what is refused, in one sentence."""

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
        ({"reconstruction": True, "probe": True}, "leave probe out"),
        ({"precision": "float16"}, "precision='float16'"),
    ],
)
def test_bad_configs_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        RePoConfig(**options)
