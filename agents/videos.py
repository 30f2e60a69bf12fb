"""Videos of episodes in simulators: what the camera sees, and the rewards so far drawn below it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .evaluation import EvaluationResult
from .images import figure_font
from .policies.policy import Policy, RowNoise
from .rollouts import environment_actions

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Predict = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]

STRIP, LEAST_WIDTH = 22, 256  # pixels: height of a curve with its text, width of a frame
PAPER, INK, CURVES = (250, 250, 250), (40, 40, 40), ((31, 119, 180), (214, 96, 39), (44, 140, 70), (130, 80, 160))


@dataclass(frozen=True)
class Film:
    """One episode as it was seen.

    Attributes:
        frames: ``[T + 1, H, W, 3]`` uint8; the first one before the first action.
        rewards: name to ``[T]``: ``reward`` as given, ``true`` where the environment tells it apart, ``predicted`` if a
            reward model was asked.
        info: of the last step.
        terminated: whether the episode ended by itself.
    """

    frames: NDArray[np.uint8]
    rewards: dict[str, NDArray[np.float64]]
    info: dict[str, Any]
    terminated: bool = False


def film_episode(
    env: gym.Env[Any, Any],
    policy: Policy,
    *,
    seed: int,
    deterministic: bool = False,
    predict: Predict | None = None,
    max_steps: int | None = None,
) -> Film:
    """Play the episode that ``Agent.evaluate`` plays with this seed, and keep the pictures.

    Args:
        env: with ``render_mode="rgb_array"``.
        policy: acts.
        seed: of the initial state; the policy's random numbers follow from it, as in evaluation.
        deterministic: let the policy take its likeliest actions.
        predict: a learned reward: from observations ``[T, ...]`` and actions ``[T, ...]`` to ``[T]``.
        max_steps: cut the episode; needed where it never ends.

    Raises:
        ValueError: if the environment does not render arrays.
    """
    if env.render_mode != "rgb_array":
        raise ValueError(f"render_mode of {env} is {env.render_mode!r}, expected 'rgb_array'")
    noise = RowNoise([seed + 2**62])
    observation, info = env.reset(seed=seed)
    frames, observations, actions = [_frame(env)], [], []
    given: list[float] = []
    true: list[float] = []
    terminated = over = False
    while not over and (max_steps is None or len(given) < max_steps):
        batch = {k: v[None] for k, v in observation.items()} if isinstance(observation, dict) else observation[None]
        drawn = policy.act(batch, noise, deterministic).actions
        action = environment_actions(drawn, env.action_space)[0].cpu().numpy()
        observations.append(observation)
        actions.append(action)
        observation, reward, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        frames.append(_frame(env))
        given.append(float(reward))
        true.append(float(info.get("true_reward", math.nan)))
    rewards = {"reward": np.array(given)}
    if np.isfinite(true).any():
        rewards["true"] = np.array(true)
    if predict is not None:
        rewards["predicted"] = np.asarray(predict(np.stack(observations), np.stack(actions)), np.float64)
    return Film(np.stack(frames), rewards, info, bool(terminated))


def summarize_films(films: Sequence[Film]) -> EvaluationResult:
    """What evaluation says of the same episodes, but for reward terms and divergences."""
    return EvaluationResult(
        returns=np.array([film.rewards["reward"].sum() for film in films]),
        lengths=np.array([len(film.rewards["reward"]) for film in films]),
        terminated=np.array([film.terminated for film in films]),
        divergences=np.empty(0),
        info={key: [film.info.get(key) for film in films] for key in ("invalid", *films[-1].info)},
    )


def save_film(film: Film, path: str | Path, *, most_frames: int = 120, seconds: float = 6.0) -> Path:
    """Write a film as an endless GIF: the scene, the step, and a curve a reward that grows with the episode.

    Args:
        film: of :func:`film_episode`.
        path: of the GIF.
        most_frames: longer episodes leave steps out evenly; the first and the last are kept.
        seconds: that it takes, but for the last frame, which stays for two.

    Returns:
        ``path``.

    Raises:
        ValueError: for fewer than two frames or no time.
        ImportError: without Pillow.
    """
    if most_frames < 2 or not seconds > 0:
        raise ValueError(f"most_frames={most_frames}, seconds={seconds}: expected at least 2, and above 0")
    last = len(film.frames) - 1
    shown = np.unique(np.linspace(0, last, min(most_frames, last + 1)).round().astype(int)).tolist()
    pictures = [draw_frame(film, step) for step in shown]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [max(20, round(1000 * seconds / len(shown)))] * (len(shown) - 1) + [2000]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return path


def draw_frame(film: Film, step: int) -> Picture:
    """The scene after ``step`` actions, above the rewards of the steps until then."""
    from PIL import Image, ImageDraw

    scene = Image.fromarray(film.frames[step])
    if scene.width < LEAST_WIDTH:
        factor = math.ceil(LEAST_WIDTH / scene.width)
        scene = scene.resize((scene.width * factor, scene.height * factor), Image.Resampling.NEAREST)
    picture = Image.new("RGB", (scene.width, scene.height + STRIP * (len(film.rewards) + 1)), PAPER)
    picture.paste(scene, (0, 0))
    draw, font = ImageDraw.Draw(picture), figure_font()
    draw.text((6, scene.height + 4), f"step {step} of {len(film.frames) - 1}", INK, font)
    for number, (name, values) in enumerate(film.rewards.items(), 1):
        top, color = scene.height + STRIP * number, CURVES[(number - 1) % len(CURVES)]
        now = f"{values[step - 1]:z.2f}" if step else ""
        draw.text((6, top + 4), f"{name} {now}", color, font)
        points = _curve(values, step, left=124, right=scene.width - 6, top=top + 3, bottom=top + STRIP - 4)
        if len(points) > 1:
            draw.line(points, color, 2)
    return picture


def _curve(
    values: NDArray[np.float64], step: int, *, left: int, right: int, top: int, bottom: int
) -> list[tuple[float, float]]:
    """Where the first ``step`` values are, on a scale that the whole episode fills; those not finite are left out."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return []
    low, span = finite.min(), (finite.max() - finite.min()) or 1.0
    across = (right - left) / max(1, len(values) - 1)
    heights = bottom - (values[:step] - low) / span * (bottom - top)
    return [(left + across * i, float(y)) for i, y in enumerate(heights) if math.isfinite(y)]


def _frame(env: gym.Env[Any, Any]) -> NDArray[np.uint8]:
    frame: Any = env.render()
    return np.array(frame, np.uint8)
