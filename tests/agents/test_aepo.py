"""AEPO: the environment that it makes, what it is trained on and what it is judged by; and that exploration pays."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.advantages import group_advantages
from aligngym.agents.aepo import AEPO, AEPOConfig
from aligngym.agents.build import make_env
from aligngym.agents.experiment import Experiment
from aligngym.agents.grpo import GRPO
from aligngym.agents.policies.clicker import Clicker, ClickerPolicy, points_of
from aligngym.envs.gui.screens import Screens, Target
from aligngym.rewards import AdaptiveExploration, PointInBox

torch.set_num_threads(1)


def test_its_environment_takes_four_points_and_pays_for_exploration() -> None:
    agent = AEPO("GUIGrounding-v0", config=AEPOConfig(episodes_per_iteration=8))
    env = agent.env.unwrapped
    assert env.max_points == 4 and isinstance(env.reward, AdaptiveExploration)
    assert agent.policy.num_points == 4
    assert GRPO("GUIGrounding-v0").env.unwrapped.max_points == 1


def test_experiments_train_on_it_and_evaluate_what_is_sought() -> None:
    experiment = Experiment(env="GUIGrounding-v0", agent="aepo")
    train, held_out = (make_env(experiment, 2, split=split).unwrapped for split in ("train", "eval"))
    assert isinstance(train.reward, AdaptiveExploration) and isinstance(held_out.reward, PointInBox)
    assert train.max_points == held_out.max_points == 4
    chosen = Experiment(
        env="GUIGrounding-v0", agent="aepo", reward="point_distance", env_options='{"max_points": 2}'
    )
    for split in ("train", "eval"):
        env = make_env(chosen, 2, split=split).unwrapped
        assert type(env.reward).__name__ == "PointDistance" and env.max_points == 2
    with pytest.raises(ValueError, match="takes no max_points"):
        make_env(Experiment(env="TabularBandit-v0", agent="aepo"), 2)


def test_options_are_those_of_the_paper() -> None:
    config = AEPOConfig()
    assert (config.advantage, config.clip_low, config.clip_high, config.kl_coef) == ("leave_one_out", 0.2, 0.4, 0.0)
    rewards = torch.tensor([2.0, 0.5, 0.0, -1.0])
    group, valid = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool)
    advantages = group_advantages(rewards, group, valid, "leave_one_out")
    assert advantages.sum().item() == pytest.approx(0, abs=1e-6)
    assert advantages[0].item() == pytest.approx(2 - (0.5 - 1) / 3)


class Wrong(Clicker):
    """A network that is sure of the wrong corner, whatever it sees, but for what it learns."""

    def scores(self, features, texts, which):
        scores = super().scores(features, texts, which)
        bias = torch.zeros(scores.shape[1])
        bias[:3] = 7.0
        return scores + bias


def solved(points: int, reward: str, seed: int) -> float:
    """Probability of clicking the target first, after equally many rollouts."""
    import io

    from PIL import Image

    file = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, size=(64, 96, 3), dtype=np.uint8)).save(file, format="PNG")
    target = Target(0, "the right one", (0.7, 0.6, 0.85, 0.75), "direct", {})
    options = {"screens": Screens([file.getvalue()], [target], "one"), "width": 96, "height": 64, "max_points": points}
    env = gym.make_vec("GUIGrounding-v0", num_envs=32, reward=reward, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Wrong(width=16, stem=8, blocks=1, layers=1, text_layers=1)
    agent = AEPO(env, ClickerPolicy(network, num_points=points), AEPOConfig(
        episodes_per_iteration=32, learning_rate=3e-3), seed=seed)  # fmt: skip
    agent.learn(32 * 30)
    observation, _ = env.reset(seed=0)
    maps, size = agent.policy.maps({k: v[:1] for k, v in observation.items()})
    centres = points_of(torch.arange(size[0] * size[1]), size)
    inside = (centres[:, 0] >= 0.7) & (centres[:, 0] <= 0.85) & (centres[:, 1] >= 0.6) & (centres[:, 1] <= 0.75)
    return maps.softmax(1)[0, inside].sum().item()


@pytest.mark.slow
def test_a_sure_mistake_is_unlearnt_sooner_with_several_answers() -> None:
    """The sheet's problem: the wrong element is far likelier than the right one."""
    several = [solved(4, "adaptive_exploration", seed) for seed in range(5)]
    single = [solved(1, "point_in_box", seed) for seed in range(5)]
    assert min(several) > 0.9 and np.mean(single) < 0.7, (several, single)
