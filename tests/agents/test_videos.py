"""Videos: the episode that evaluation plays, its frames in order, rewards where they belong."""

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from PIL import Image

from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.report import show_episodes
from aligngym.agents.videos import CURVES, STRIP, Film, draw_frame, film_episode, save_film, summarize_films

OPTIONS = {"task": "drawer-open", "max_steps": 12, "reward": "none"}


@pytest.fixture(scope="module")
def agent():
    env = gym.make_vec("ManipulationAlign-v0", num_envs=2, vectorization_mode="sync", **OPTIONS)
    config = GRPOConfig(episodes_per_iteration=2, group_size=2, reference="none", kl_coef=0.0)
    yield GRPO(env, config=config)
    env.close()


@pytest.fixture(scope="module")
def film(agent):
    env = gym.make("ManipulationAlign-v0", render_mode="rgb_array", render_size=96, **OPTIONS)
    yield film_episode(env, agent.policy, seed=1_000_001, predict=lambda o, a: o[:, 0] + a[:, 0])
    env.close()


def test_the_episode_is_evaluations(agent, film) -> None:
    played = agent.play(episodes=2)
    assert film.rewards["true"].sum() == pytest.approx(played.terms["true_return"][1].item(), abs=1e-4)
    assert film.rewards["true"].sum() != pytest.approx(played.terms["true_return"][0].item(), abs=1e-4)
    assert film.info["reward/true_return"] == pytest.approx(film.rewards["true"].sum())
    states, actions = played.observations[1, :-1, 0].numpy(), played.actions[1, :, 0].clamp(-1, 1).numpy()
    np.testing.assert_allclose(film.rewards["predicted"], states + actions, atol=1e-6)


class Sum(gym.Env):
    """Pays the action; ends by itself once the seed's number of steps is over, and fails at seed 3."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.left = self.seed = seed or 1  # Gymnasium resets ended rows without one
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        failed, over = self.seed == 3, self.left == 0
        reward, info = (math.nan, {"invalid": "it diverged"}) if failed and over else (float(action[0]), {})
        return np.full(1, 0.1, np.float32), reward, over and not failed, over and failed, info

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)


def test_films_say_what_evaluation_says(agent) -> None:
    sums = GRPO(SyncVectorEnv([Sum, Sum], autoreset_mode="Disabled"), config=agent.config)
    films = [film_episode(Sum(), sums.policy, seed=s) for s in (2, 3)]
    found, expected = summarize_films(films), sums.evaluate(episodes=2, seed=2)
    np.testing.assert_allclose(found.returns, expected.returns, rtol=1e-6)
    text = show_episodes(found, 2)
    assert text == show_episodes(expected, 2) and "2 decisions, ended by itself" in text
    assert text.endswith("reward invalid, 3 decisions, cut by its budget\n  reward failed: it diverged")
    assert not film_episode(Sum(), sums.policy, seed=4, max_steps=2).terminated


def test_frames_are_the_scene_before_and_after_each_action(film) -> None:
    assert film.frames.shape == (13, 96, 96, 3) and film.frames.dtype == np.uint8
    assert not film.rewards["reward"].any()  # reward="none"
    assert all((a != b).any() for a, b in zip(film.frames, film.frames[1:], strict=False))  # the arm moves


def test_a_frame_shows_the_scene_and_the_rewards_so_far(film) -> None:
    first, last = (np.asarray(draw_frame(film, step)) for step in (0, 12))
    scale = 3  # 96 pixels are less than 256 across
    assert last.shape == (96 * scale + STRIP * 4, 96 * scale, 3)
    np.testing.assert_array_equal(last[: 96 * scale : scale, ::scale], film.frames[12])
    strip = slice(96 * scale + STRIP * 2, 96 * scale + STRIP * 3)  # of the second reward
    drawn = [(picture[strip, 130:] == CURVES[1]).all(-1).any(0).sum() for picture in (first, last)]
    assert drawn[0] == 0 and drawn[1] > 100


def test_a_reward_that_is_not_finite_leaves_a_gap() -> None:
    rewards = {"reward": np.array([0.0, np.nan, 1.0])}
    assert draw_frame(Film(np.zeros((4, 300, 300, 3), np.uint8), rewards, {}), 3).size == (300, 300 + 2 * STRIP)
    nothing = {"reward": np.full(3, np.nan)}
    assert draw_frame(Film(np.zeros((4, 300, 300, 3), np.uint8), nothing, {}), 3).size == (300, 300 + 2 * STRIP)


def test_the_gif_keeps_first_and_last(film, tmp_path) -> None:
    path = save_film(film, tmp_path / "deep" / "film.gif", most_frames=5)
    with Image.open(path) as gif:
        assert gif.n_frames == 5 and gif.info["loop"] == 0
        gif.seek(4)
        found = np.asarray(gif.convert("RGB"), int)
    assert abs(found - np.asarray(draw_frame(film, 12), int)).mean() < 4  # a palette of 256 colours
    with pytest.raises(ValueError, match="most_frames=1"):
        save_film(film, path, most_frames=1)


def test_an_environment_that_renders_nothing_is_refused(agent) -> None:
    with pytest.raises(ValueError, match=r"render_mode of .* is None"):
        film_episode(gym.make("ManipulationAlign-v0", **OPTIONS), agent.policy, seed=0)
