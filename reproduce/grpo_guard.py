"""GRPO-Guard against Flow-GRPO: a proxy's price in the true density, and the ratio over steps (arXiv 2510.22319)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..agents.objectives import guard_log_ratio
from ..agents.on_policy import Batch
from .harness import Claim, Curve, Effect, Numbers, Settings
from .mixture import FOUR, PointDenoiser, Points, Pretraining
from .points import collected, draw, learning, make_agent
from .statistics import at_level

LEVELS = (1.0, 1.4, 1.7, 2.0, 2.3)  # proxy rewards at which gold is compared; the mode nearest the direction has 1.7
ARMS = ("flow-grpo", "grpo-guard")
OFF = 1e6  # a clip range that never binds


def proxy(points: Points) -> Points:
    """How far a point lies along the diagonal: right about which mode is better, wrong beyond it."""
    along: Points = points.sum(1) / math.sqrt(2)
    return along


def gold(points: Points) -> float:
    """Mean log-density of the data at the points, exact."""
    return float(FOUR.log_density(points).mean())


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Ratios after some updates on one batch, then gold along the way, of both."""
    s = settings
    network = Pretraining("flow", FOUR, steps=s["pretraining_steps"], seed=seed).cached(networks)
    numbers: Numbers = {}
    for arm in ARMS:
        clip = s["clip_over_std"] * ratios(arm, network, seed, s, 1)[0].std().item()
        numbers |= {f"{arm}/{k}": v for k, v in ratio_numbers(arm, network, seed, s, clip).items()}
        agent = _agent(arm, network, seed, s, clip)
        path = []
        for episodes in learning(agent, s["episodes"], s["looks"]):
            points = draw(agent.policy, s["evaluation"], seed)
            path.append((float(proxy(points).mean()), gold(points)))
            numbers |= {f"{arm}/proxy@{episodes}": path[-1][0], f"{arm}/gold@{episodes}": path[-1][1]}
            numbers["base/gold"] = path[0][1]
        at = {level: at_level(path, level) for level in LEVELS}
        numbers |= {f"{arm}/gold_at_proxy@{level}": value for level, value in at.items()}
        numbers |= {f"{arm}/gold_at_equal_proxy": float(np.mean(list(at.values())))}
        numbers |= {f"{arm}/proxy": path[-1][0], f"{arm}/gold": path[-1][1]}
    return numbers


def _agent(arm: str, network: PointDenoiser, seed: int, s: Settings, clip: float, **changes: Any) -> Any:
    config = {**s["config"], "clip_low": clip, "clip_high": clip, **changes}
    policy = {"log_prob": "mean"}  # as in the papers: it is the mean over dimensions that biases their ratio
    return make_agent(arm, network, proxy, seed=seed, num_steps=s["num_steps"], config=config, policy=policy)


def ratios(
    arm: str, network: PointDenoiser, seed: int, s: Settings, updates: int, clip: float = OFF
) -> tuple[Tensor, Batch]:
    """Ratios ``[B, T]`` after some updates on one batch of episodes, and the batch; equal seeds give equal batches."""
    agent = _agent(arm, network, seed, s, clip, epochs=updates, minibatch_size=0)
    batch = collected(agent)
    agent.update(batch)
    with torch.no_grad():
        now = agent.policy.evaluate_actions(batch.episodes)
    logs = now.log_probs - batch.old_log_probs
    if arm == "grpo-guard":
        assert batch.old_means is not None
        logs = guard_log_ratio(logs, now.gaussian.mean, batch.old_means, now.gaussian.std, now.gaussian.divisor)
    return logs.exp(), batch


def ratio_numbers(arm: str, network: PointDenoiser, seed: int, s: Settings, clip: float) -> Numbers:
    """Spread of ratio and gradient over the denoising steps, and which side of the clip binds."""
    std = ratios(arm, network, seed, s, s["inner_updates"])[0].std(0)
    norms = gradient_norms(_agent(arm, network, seed, s, clip))
    numbers: Numbers = {f"ratio_std@{k + 1}": v for k, v in enumerate(std.tolist())}
    numbers |= {f"gradient@{k + 1}": v for k, v in enumerate(norms)}
    ratio, batch = ratios(arm, network, seed, s, s["inner_updates"], clip)
    up = (ratio > 1 + clip)[batch.advantages > 0].float().mean().item()
    down = (ratio < 1 - clip)[batch.advantages < 0].float().mean().item()
    return numbers | {
        "clip": clip, "ratio_spread": (std.max() / std.min()).item(), "gradient_spread": max(norms) / min(norms),
        "clipped_up": up, "clipped_down": down,
        "clip_imbalance": abs(down - up) / (down + up) if down + up else math.nan,
    }  # fmt: skip


def gradient_norms(agent: Any) -> list[float]:
    """Norm of the gradient of each denoising step's part of the loss, on a fresh batch, where nothing is clipped."""
    batch = collected(agent)
    mask, norms = batch.episodes.mask, []
    for k in range(mask.shape[1]):
        share = torch.zeros(mask.shape)
        share[:, k] = 1 / len(mask)
        loss, _ = agent.loss(batch, agent.policy.evaluate_actions(batch.episodes), share, share)
        gradient = torch.autograd.grad(loss, agent.parameters)
        norms.append(torch.cat([g.flatten() for g in gradient]).norm().item())
    return norms


SETTINGS: dict[str, Any] = {
    "pretraining_steps": 2500, "num_steps": 10, "episodes": 10240, "looks": 40, "evaluation": 1000,
    "inner_updates": 8, "clip_over_std": 1.5,
    "config": {
        "episodes_per_iteration": 256, "group_size": 16, "epochs": 4, "minibatch_size": 128, "learning_rate": 1e-3,
        "kl_coef": 0.0, "reference": "none",
    },
}  # fmt: skip

CLAIM = Claim(
    key="grpo-guard",
    statement="At equal proxy reward, GRPO-Guard's samples have more of the true reward than Flow-GRPO's; its ratio "
    "and gradient vary less over the denoising steps, and the two sides of its clip bind more alike.",
    paper="Wang et al. 2025, arXiv 2510.22319",
    run=run,
    settings=SETTINGS,
    fast={"pretraining_steps": 1000, "episodes": 4096, "looks": 16, "evaluation": 500},
    premises=(
        Effect("Flow-GRPO over-optimises: the base's gold above its own at the end", "base/gold", "flow-grpo/gold"),
    ),
    effects=(
        Effect(
            "gold at equal proxy, Guard above Flow-GRPO",
            "grpo-guard/gold_at_equal_proxy",
            "flow-grpo/gold_at_equal_proxy",
        ),
        Effect(
            "largest over smallest std of the ratio by step, Flow-GRPO above Guard",
            "flow-grpo/ratio_spread",
            "grpo-guard/ratio_spread",
        ),
        Effect(
            "largest over smallest gradient by step, Flow-GRPO above Guard",
            "flow-grpo/gradient_spread",
            "grpo-guard/gradient_spread",
        ),
        Effect(
            "imbalance of the clip's two sides, Flow-GRPO above Guard",
            "flow-grpo/clip_imbalance",
            "grpo-guard/clip_imbalance",
        ),
    ),
    curves=(
        Curve(
            "true log-density (gold) at equal proxy reward",
            "proxy reward",
            {"Flow-GRPO": "flow-grpo/gold_at_proxy", "GRPO-Guard": "grpo-guard/gold_at_proxy"},
        ),
        Curve(
            "std of the ratio after 8 updates on one batch",
            "denoising step",
            {"Flow-GRPO": "flow-grpo/ratio_std", "GRPO-Guard": "grpo-guard/ratio_std"},
        ),
    ),
    notes="The proxy is linear along the diagonal, where one mode lies; gold is the exact log-density of the data. "
    "Each clip range is 1.5 times the standard deviation of the agent's own ratio after one update, since the "
    "two ratios differ in scale; four passes an iteration, so that ratios leave 1; log-probabilities are "
    "means over dimensions, as in the papers. Spreads are measured after 8 updates on one batch, gradients on "
    "a fresh one. On seed 1000, Guard did not reach the highest proxy compared at a learning rate of 3e-4, so "
    "that 1e-3 is used for both.",
    agents=ARMS,
)
