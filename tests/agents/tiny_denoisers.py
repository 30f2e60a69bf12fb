"""Policies around the embedded denoisers and around a perceptron of points in the plane, and episodes of both."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from aligngym.agents.policies.denoiser import Denoiser, load_denoiser
from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.policies.samplers import NoiseGrid
from aligngym.trajectories import Trajectories

IDS = {"emoji-diffusion": "DiffusionAlign-v0", "emoji-flow": "FlowAlign-v0"}
KINDS = {"diffusion": "DiffusionAlign-v0", "flow": "FlowAlign-v0"}
PROMPTS = ["dog face", "red apple", "cat", "blue car"]


class Perceptron(Denoiser):
    """A network of points in the plane; it knows a prompt by its bytes and its length."""

    shape = (2,)

    def __init__(self, kind: Any = "flow", prediction: Any = None) -> None:
        super().__init__()
        self.kind, self.prediction = kind, prediction or {"flow": "velocity", "diffusion": "v_prediction"}[kind]
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"told": torch.tensor([[sum(p.encode()) / 1000, len(p) / 10] for p in prompts])}

    def forward(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.net(torch.cat([x, t[:, None].to(x), condition["told"].to(x)], 1))

    def grid(self, num_steps: int) -> NoiseGrid:
        levels = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64) ** 1.3
        if self.kind == "diffusion":
            levels = torch.cos((0.96 * levels + 0.02) * math.pi / 2).square()
        return NoiseGrid(self.kind, 7 * levels[:-1].float(), levels)


def points(kind: str = "flow", steps: int = 4, prediction: str | None = None, **options: Any) -> DenoiserPolicy:
    return DenoiserPolicy(Perceptron(kind, prediction), num_steps=steps, **options)


network = functools.cache(load_denoiser)  # tests train copies


def embed(name: str, **options: Any) -> DenoiserPolicy:
    """A policy of three steps around an embedded model."""
    return DenoiserPolicy(network(name), **{"num_steps": 3, **options})


def nothing(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def play(policy: DenoiserPolicy, rows: int, seed: int = 0, **options: Any) -> Trajectories:
    """Whole episodes in the environment; every row draws its own prompt."""
    settings = {"shape": policy.denoiser.shape, "decoder": None, "prompts": PROMPTS, "num_steps": policy.num_steps}
    env = gym.make_vec(KINDS[policy.denoiser.kind], num_envs=rows, reward=nothing, **settings)
    return env.rollout(policy, noise=RowNoise(range(seed, seed + rows)), seed=seed, **options)
