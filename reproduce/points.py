"""What the claims on points share: the environment, training an agent in it, and looking at what its policy draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import InvalidAction
from torch import Tensor

from ..agents.on_policy import Batch, OnPolicyAgent
from ..agents.policies.denoiser_policy import DenoiserPolicy
from ..agents.policies.policy import RowNoise
from ..agents.registry import agent_class
from .mixture import PointDenoiser, Points

Scorer = Callable[[Points], Points]
"""Rewards ``[n]`` of points ``[n, 2]``."""

ENVIRONMENTS = {"diffusion": "aligngym:DiffusionAlign-v0", "flow": "aligngym:FlowAlign-v0"}
PROMPT = "a point"
EVALUATION = 10_000_000  # seeds of evaluations are far from those of training


def make_agent(
    name: str,
    network: PointDenoiser,
    score: Scorer,
    *,
    seed: int,
    num_steps: int,
    config: Mapping[str, Any],
    policy: Mapping[str, Any] | None = None,
) -> Any:
    """An agent around a copy of the network, in the environment of its kind.

    Args:
        name: in the registry.
        network: trained before.
        score: the reward.
        seed: of the agent.
        num_steps: of an episode.
        config: options of the agent.
        policy: further options of the policy.
    """

    def reward(completions: list[Points], **columns: Any) -> list[float]:
        values: list[float] = score(np.stack(completions)).tolist()
        return values

    cls = agent_class(name)
    options = cls.config_class(**config)
    env = gym.make_vec(
        ENVIRONMENTS[network.kind],
        num_envs=options.episodes_per_iteration,  # type: ignore[attr-defined]
        vectorization_mode="vector_entry_point",
        reward=reward, shape=(2,), decoder=None, prompts=[PROMPT], max_prompt_bytes=len(PROMPT), num_steps=num_steps,
    )  # fmt: skip
    made = DenoiserPolicy(copy.deepcopy(network), num_steps=num_steps, **(policy or {}))
    return cls(env, made, options, seed=seed)


def learning(agent: Any, episodes: int, points: int) -> Iterator[int]:
    """Train, pausing at ``points`` equal distances to be looked at; yields the episodes so far, 0 first.

    An agent that throws samples out of the environment's space is not trained further: what it is by then is what the
    later pauses see.
    """
    yield 0
    stopped = False
    for done in range(1, points + 1):
        target = episodes * done // points
        if target > agent.episodes and not stopped:
            try:
                agent.learn(target - agent.episodes)
            except InvalidAction:
                stopped = True
        yield target


def draw(policy: DenoiserPolicy, count: int, seed: int, *, deterministic: bool | None = None) -> Points:
    """Points ``[count, 2]`` that a policy ends at; equal seeds begin and go on with equal noise.

    Args:
        policy: whose.
        count: how many.
        seed: of the initial noise and of the steps'.
        deterministic: by the ODE; None: where the policy is evaluated so.
    """
    start = np.random.default_rng([EVALUATION, seed]).standard_normal((count, 2), np.float32)
    observation = {
        "sample": start,
        "timestep": np.full((count, 1), policy.num_steps),
        "prompt": np.tile(np.frombuffer(PROMPT.encode(), np.uint8), (count, 1)),
    }
    noise = RowNoise([EVALUATION * (seed + 1) + i for i in range(count)])
    ode = policy.deterministic_evaluation if deterministic is None else deterministic
    episodes = policy.generate(observation, noise, max_steps=policy.num_steps, deterministic=ode)
    return episodes.actions[:, -1].double().cpu().numpy()


def collected(agent: OnPolicyAgent) -> Batch:
    """Episodes of the agent's policy, ready for an update."""
    return agent.prepare(agent.keep(agent.collect())[0])[0]


def covariance_gap(points: Points, std: float) -> float:
    r"""How far the covariance of points is from that of one mode, :math:`\|C / \sigma^2 - I\|_F`; NaN for under 20."""
    if len(points) < 20:
        return float("nan")
    return float(np.linalg.norm(np.cov(points.T) / std**2 - np.eye(2)))


def entropy(counts: np.ndarray) -> float:
    """In nats, of the shares that ``counts`` are; NaN if they are all 0."""
    if not counts.sum():
        return float("nan")
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def gradient_variances(
    policy: DenoiserPolicy, batch: Batch, advantages: Mapping[str, Tensor]
) -> dict[str, list[float]]:
    r"""Variance of each denoising step's policy gradient over episodes, a list of ``T`` for each advantage.

    The total variance (trace of the covariance) of :math:`A_i \nabla \log \pi(a_{ti} | s_{ti})` over the network's
    parameters, from exact gradients of single decisions.

    Args:
        policy: with unchanged parameters since the episodes.
        batch: episodes, as :func:`collected` gives them.
        advantages: ``[B, T]`` each, by name.
    """
    episodes = batch.episodes
    parameters = {k: p.detach() for k, p in policy.denoiser.named_parameters()}
    assert isinstance(episodes.observations, dict)
    states = torch.cat([episodes.observations["sample"][:, None], episodes.actions], 1)

    found: dict[str, list[float]] = {name: [] for name in advantages}
    for k in range(policy.num_steps):
        gradient = torch.func.vmap(
            torch.func.grad(partial(_log_prob, policy, k)), in_dims=(None, 0, 0)
        )(parameters, states[:, k], episodes.actions[:, k])  # fmt: skip
        flat = torch.cat([g.flatten(1) for g in gradient.values()], 1)
        for name, values in advantages.items():
            found[name].append((values[:, k, None] * flat).var(0).sum().item())
    return found


def _log_prob(policy: DenoiserPolicy, k: int, parameters: dict[str, Tensor], x: Tensor, action: Tensor) -> Tensor:
    """Of one action at step ``k``, up to a constant."""
    table = policy.table
    out: Tensor = torch.func.functional_call(policy.denoiser, parameters, (x[None], policy.grid.times[k : k + 1], {}))
    mean = table.scale[k] * x + table.gain[k] * out[0]
    return -(action - mean).square().sum() / (2 * table.std[k] ** 2)
