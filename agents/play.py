"""Evaluating and playing what a name stands for: a run, a checkpoint in one, or a model that was not trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from ..trajectories import Trajectories
from .agent import Agent
from .build import make_env, make_filmed_env, make_policy, parse_options
from .checkpoint import STATE
from .evaluation import EvaluationResult, join, summarize
from .experiment import RUN_FILE, Experiment, file_name, find_checkpoint, pick_device, read_run, set_threads
from .grpo import GRPO, GRPOConfig
from .images import PAIRS, denoising_frames, has_images, save_before_after, save_gif, save_result
from .policies import is_denoising, is_grounding
from .policies.policy import Policy
from .registry import agent_class
from .report import describe, show_episodes
from .screens import answer_pictures, save_pictures, save_sheet
from .videos import Film, film_episode, save_film, summarize_films

HOMES = {
    "emoji-diffusion": "DiffusionAlign-v0",
    "emoji-flow": "FlowAlign-v0",
    "gui-clicker": "GUIGrounding-v0",
}
"""Environments of the embedded models that are no language models."""
ROWS = 128  # episodes side by side, at most
IN_GIF = 8  # episodes, at most


def open_agent(
    target: str | Path | None, changes: Mapping[str, Any], *, rl_guidance: float | None = None, device: str = "auto"
) -> tuple[Agent, Experiment]:
    """An agent to evaluate, and the experiment that names its environment.

    Args:
        target: a run (its newest checkpoint counts), a checkpoint in one, or the name of a model; None: the
            environment's own model.
        changes: fields of the experiment to replace, those that are None left out; ``env_options`` and
            ``policy_options`` are put over the run's.
        rl_guidance: mix the run's network with the untrained one, see :mod:`.policies.rl_guidance`; 1 is the run.
        device: cpu, cuda, or auto.

    Raises:
        ValueError: if ``rl_guidance`` is given for anything but a run of an image policy.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if not is_run(target):
        if rl_guidance is not None:
            raise ValueError(f"rl_guidance={rl_guidance}: {target} is no run, so there is no tuned network to mix")
        name = None if target is None else str(target)
        given.setdefault("env", HOMES.get(name or "", Experiment.env))
        experiment = dataclasses.replace(Experiment(model=name), **given)
        return _untrained(experiment, device=device), experiment
    assert target is not None
    checkpoint, folder = find_checkpoint(target)
    saved, values = read_run(folder)
    for name in {"env_options", "policy_options"} & given.keys():
        given[name] = json.dumps(parse_options(getattr(saved, name), name) | parse_options(given[name], name))
    experiment, cls = dataclasses.replace(saved, **given), agent_class(saved.agent)
    env, policy = make_env(saved, cls.config_class.from_dict(values).rows), None
    if is_denoising(env):
        here: Any = make_env(experiment, 2, split="eval")
        if here.unwrapped.max_steps != env.unwrapped.max_steps or experiment.policy_options != saved.policy_options:  # type: ignore[attr-defined]
            policy = make_policy(experiment, here, value=cls.needs_values)
    agent = cls.load(checkpoint, env, policy=policy, device=pick_device(device))
    if rl_guidance is None:
        return agent, experiment
    if not is_denoising(env):
        raise ValueError(
            f"rl_guidance={rl_guidance}: {saved.env} has no denoising policy, whose outputs could be mixed"
        )
    return _guided(agent, experiment, rl_guidance, device), experiment


def is_run(target: str | Path | None) -> bool:
    """Whether this is the folder of a run, or of a checkpoint."""
    return target is not None and any((Path(target) / name).is_file() for name in (RUN_FILE, STATE))


def _untrained(experiment: Experiment, like: Policy | None = None, device: str = "auto") -> Agent:
    """The experiment's model before any training; one that denoises samples as ``like`` does."""
    env = make_env(experiment, 2, split="eval")
    policy = make_policy(experiment, env)
    if like is not None:
        from .policies.denoiser_policy import DenoiserPolicy

        assert isinstance(policy, DenoiserPolicy)
        policy = DenoiserPolicy(policy.denoiser, **like.sampling)
    return _evaluator(env, policy, experiment, device)


def _guided(agent: Agent, experiment: Experiment, scale: float, device: str) -> Agent:
    """The run's policy with RL guidance."""
    from .policies.rl_guidance import rl_guided

    base: Any = _untrained(experiment, agent.policy, device)
    tuned: Any = agent.policy
    return _evaluator(base.env, rl_guided(base.policy, tuned, scale), experiment, device)


def _evaluator(env: VectorEnv[Any, Any, Any], policy: Policy | None, experiment: Experiment, device: str) -> Agent:
    """An agent that only evaluates: it has no reference."""
    config = GRPOConfig(episodes_per_iteration=2, group_size=2, reference="none", kl_coef=0.0)
    return GRPO(env, policy, config, seed=experiment.seed, device=pick_device(device))


def evaluate(
    target: str | Path,
    changes: Mapping[str, Any],
    *,
    episodes: int = 256,
    samples: int = 3,
    seed: int = 1_000_000,
    deterministic: bool | None = None,
    rl_guidance: float | None = None,
    device: str = "auto",
    threads: int = 0,
) -> str:
    """Evaluate on held-out states, and say what came out; see :func:`open_agent` and :meth:`Agent.evaluate`."""
    agent, experiment = open_agent(target, changes, rl_guidance=rl_guidance, device=device)
    set_threads(agent.policy, threads)
    result = agent.evaluate(_held_out(experiment, episodes), episodes, seed=seed, deterministic=deterministic)
    return "\n\n".join(text for text in (describe(result), show_episodes(result, samples)) if text)


def play(
    target: str | Path | None,
    changes: Mapping[str, Any],
    *,
    episodes: int | None = None,
    seed: int = 0,
    deterministic: bool | None = None,
    rl_guidance: float | None = None,
    out: str | Path | None = None,
) -> str:
    """Play a few episodes on held-out states, and say or draw what came out.

    Images become ``images.png`` and ``denoising.gif``; for a run also ``untrained.png``, of the same prompts and random
    numbers, and both in pairs, ``before-after.png``. Screenshots become ``answers.png`` and a file each, with the
    target's box and the points that were clicked; for a run also ``untrained.png``. What a simulator's camera sees
    becomes a GIF an episode, with the rewards drawn below it.

    Args:
        target: see :func:`open_agent`; ``changes`` and ``rl_guidance`` too.
        changes: fields of the experiment to replace.
        episodes: how many; None: 3, 16 images, or 9 screenshots.
        seed: of the first episode.
        deterministic: see :meth:`Agent.evaluate`.
        rl_guidance: for a run of an image policy.
        out: folder of the pictures; None: ``play`` in that of the run, or one in ``runs/``.

    Raises:
        ValueError: if ``out`` is given where there is nothing to draw.
    """
    agent, experiment = open_agent(target, changes, rl_guidance=rl_guidance)
    set_threads(agent.policy, 0)
    denoising, grounding = is_denoising(agent.env), is_grounding(agent.env) and hasattr(agent.env.unwrapped, "draw")
    count = episodes if episodes is not None else 16 if denoising else 9 if grounding else 3
    options: dict[str, Any] = {"episodes": count, "seed": seed, "deterministic": deterministic}
    folder = _folder(target, experiment) if out is None else Path(out)
    films = [] if denoising or grounding else _films(agent, experiment, options, needed=out is not None)
    if films:
        paths = [save_film(film, folder / f"{number:02}.gif") for number, film in enumerate(films, 1)]
        return "\n".join([show_episodes(summarize_films(films), count), *(f"Video: {path}" for path in paths)])
    env = _held_out(experiment, count)
    if grounding:
        return _draw_screens(agent, _untrained(experiment) if is_run(target) else None, env, options, folder)
    played = agent.play(env, **options)
    if denoising and has_images(played.info):
        before = _untrained(experiment, agent.policy).evaluate(env, **options) if is_run(target) else None
        return _draw(played, before, env, folder)
    if out is not None:
        raise ValueError(f"out={str(out)!r}: {experiment.env} makes no images, so nothing is written: leave it out")
    return show_episodes(join([summarize(played, None)], count), count)


def _films(agent: Agent, experiment: Experiment, options: Mapping[str, Any], *, needed: bool) -> list[Film]:
    """Films of the episodes; none where the environment draws no pictures, or, unless ``needed``, cannot here."""
    mode = agent.policy.deterministic_evaluation if options["deterministic"] is None else options["deterministic"]
    predict = getattr(agent, "predict_rewards", None)  # of agents that learn one
    seeds = range(options["seed"], options["seed"] + options["episodes"])
    try:
        env = make_filmed_env(experiment)
        if env is None:
            return []
        with closing(env):
            return [film_episode(env, agent.policy, seed=s, deterministic=mode, predict=predict) for s in seeds]
    except gym.error.DependencyNotInstalled:
        if needed:
            raise
        return []


def _held_out(experiment: Experiment, episodes: int) -> VectorEnv[Any, Any, Any]:
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: must be at least 1")
    return make_env(experiment, min(episodes, ROWS), split="eval")


def _folder(target: str | Path | None, experiment: Experiment) -> Path:
    """Where pictures go unless a folder is given."""
    if target is not None and is_run(target):
        return find_checkpoint(target)[1] / "play"
    return Path("runs") / f"play-{file_name(experiment.env)}"


def _draw_screens(
    agent: Agent, untrained: Agent | None, env: VectorEnv[Any, Any, Any], options: dict[str, Any], folder: Path
) -> str:
    """Write what was clicked on which screens, and say where that is."""
    texts, lines = [], []
    for label, one in {"answers": agent, "untrained": untrained}.items():
        if one is not None:
            played = one.play(env, **options)
            pictures = answer_pictures(played, env)
            texts.append(f"{label}\n{describe(join([summarize(played, None)], len(played)))}")
            lines.append(f"{label}: {save_sheet(pictures, folder / f'{label}.png')}")
            lines.append(f"  each by itself: {save_pictures(pictures, folder / label)[0].parent}")
    return "\n\n".join([*texts, "\n".join(lines)])


def _draw(played: Trajectories, before: EvaluationResult | None, env: VectorEnv[Any, Any, Any], folder: Path) -> str:
    """Write the pictures, and say where they are."""
    result = join([summarize(played, None)], len(played))
    text, paths = describe(result), {"Images": save_result(result, folder / "images.png")}
    if before is not None:
        text += f"\nuntrained   {before.mean:.3f} ± {before.standard_error:.3f}, the same prompts and random numbers"
        paths["Untrained"] = save_result(before, folder / "untrained.png")
        paths["In pairs"] = save_before_after(paths["Untrained"], paths["Images"], folder / PAIRS)
    some = played.select(torch.arange(min(len(played), IN_GIF)))
    paths["Denoising"] = save_gif(denoising_frames(some, env), folder / "denoising.gif", some.info["prompt"])
    return "\n".join([text, "", *(f"{label + ':':12}{path}" for label, path in paths.items())])
