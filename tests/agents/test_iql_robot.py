"""IQL on recorded episodes of Meta-World: better than their imitation, from a few minutes of behaviour good and bad."""

import gymnasium as gym
import pytest

import aligngym  # noqa: F401
from aligngym.agents.bc import BC, BCConfig
from aligngym.agents.iql import IQL, IQLConfig
from aligngym.assets import robot_data_path

pytest.importorskip("metaworld")
pytest.importorskip("h5py")


def manipulation(count):
    options = {"task": "faucet-close", "max_steps": 200}
    return gym.make_vec("ManipulationAlign-v0", num_envs=count, vectorization_mode="sync", **options)


@pytest.mark.slow
def test_iql_closes_the_faucet_more_often_than_behaviour_cloning():
    """Of 24 episodes of 200 steps, a quarter is an expert's, with noise. Untrained policies close none."""
    env = manipulation(5)
    options = {
        "dataset": str(robot_data_path("faucet-close")), "standardize": True, "hidden": (128, 128),
        "total_updates": 3000,
    }  # fmt: skip
    cloned = BC(env, config=BCConfig(**options))
    results = {"untrained": cloned.evaluate(episodes=20), "bc": cloned.learn(3000).evaluate(episodes=20)}
    agent = IQL(env, config=IQLConfig(**options, return_range=200, expectile=0.9, beta=10)).learn(3000)
    results["iql"] = agent.evaluate(episodes=20)
    successes = {name: result.terms["success_any"] for name, result in results.items()}
    assert successes["untrained"] == 0 and successes["bc"] >= 0.1 and successes["iql"] >= successes["bc"] + 0.1, (
        successes
    )
    assert results["iql"].mean > results["bc"].mean + 100 > results["untrained"].mean + 200


def test_evaluation_in_the_simulator_is_deterministic():
    agent = IQL(manipulation(2), config=IQLConfig(hidden=(16,)))
    one, two = (agent.evaluate(episodes=2) for _ in range(2))
    assert one.returns.tolist() == two.returns.tolist() and one.terms == two.terms
    assert one.returns.tolist() != agent.evaluate(episodes=2, deterministic=False).returns.tolist()
