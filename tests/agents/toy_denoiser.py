"""A denoiser of points in the plane whose pretrained state is exact, and agents around it that train in seconds."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from aligngym.agents.policies.denoiser import Denoiser
from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.samplers import NoiseGrid
from aligngym.agents.registry import agent_class

IDS = {"diffusion": "DiffusionAlign-v0", "flow": "FlowAlign-v0"}
MODES = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])
SPREAD = 0.3  # standard deviation of each mode
PROMPTS = ["red", "blue"]


class MixtureDenoiser(Denoiser):
    """The optimal denoiser of four Gaussians around the origin, and a perceptron, 0 at first, that is added to it."""

    shape = (2,)
    min_rows = 16

    def __init__(self, kind: str = "diffusion", weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.kind, self.prediction = kind, "velocity" if kind == "flow" else "epsilon"
        self.register_buffer("log_weights", torch.tensor(weights).log(), persistent=False)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 32), nn.SiLU(), nn.Linear(32, 2))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def encode(self, prompts: Any) -> dict[str, Tensor]:
        return {"colour": torch.tensor([[float(p == "red"), float(p == "blue")] for p in prompts])}

    def forward(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """At times that are the grid's levels."""
        t = t[:, None]
        a, s = (1 - t, t) if self.kind == "flow" else (t.sqrt(), (1 - t).sqrt())
        variance = (a * SPREAD) ** 2 + s**2
        apart = x[:, None] - a[:, None] * MODES
        share = (self.log_weights - apart.square().sum(2) / (2 * variance)).softmax(1)
        clean = (share[..., None] * (MODES + (a * SPREAD**2 / variance)[:, None] * apart)).sum(1)
        noise = (x - a * clean) / s
        learned = self.net(torch.cat([x, t, condition["colour"]], 1))
        return (noise - clean if self.kind == "flow" else noise) + learned

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "weights": self.log_weights.exp().tolist()}

    def grid(self, num_steps: int) -> NoiseGrid:
        levels = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        if self.kind == "diffusion":
            levels = torch.cos((0.98 * levels + 0.01) * math.pi / 2).square()
        return NoiseGrid(self.kind, levels[:-1].float(), levels)


def rightwards(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between all points: the first coordinate."""
    return [float(x[0]) for x in completions]


def in_first_mode(completions: list[Any], **_: Any) -> list[float]:
    """A sparse reward: 1 near the first mode."""
    return [float(torch.dist(torch.as_tensor(x), MODES[0]) < 1) for x in completions]


def constant(completions: list[Any], **_: Any) -> list[float]:
    """A reward that says nothing."""
    return [0.3] * len(completions)


def toy_env(kind: str = "diffusion", rows: int = 16, *, reward: Any = rightwards, **options: Any) -> Any:
    settings = {"shape": (2,), "decoder": None, "prompts": PROMPTS, "max_prompt_bytes": 8, "num_steps": 10} | options
    return gym.make_vec(IDS[kind], num_envs=rows, reward=reward, **settings)


def toy_policy(kind: str = "diffusion", steps: int = 10, weights: Any = (1.0,) * 4, **options: Any) -> DenoiserPolicy:
    return DenoiserPolicy(MixtureDenoiser(kind, weights), num_steps=steps, **options)


def toy_agent(
    name: str, *, rows: int = 16, reward: Any = rightwards, kind: str = "", seed: int = 0, policy: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """The agent of that name on 10 steps; those of the flow papers get a flow unless ``kind`` says otherwise."""
    cls = agent_class(name)
    kind = kind or ("diffusion" if name in ("ddpo", "dpok", "b2-diffurl") else "flow")
    group = {"group_size": 4} if cls.config_class().group_size > 1 else {}
    config = {"episodes_per_iteration": rows, "minibatch_size": 0, "learning_rate": 1e-2, **group, **options}
    model = toy_policy(kind, **{"value_head": cls.needs_values, **(policy or {})})
    return cls(toy_env(kind, rows, reward=reward), model, cls.config_class(**config), seed=seed)
