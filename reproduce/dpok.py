"""DPOK: what its divergence keeps, and what its value function saves (Fan et al. 2023, arXiv 2305.16381)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .ddpo import PAPER, TARGET, hit
from .harness import Claim, Curve, Effect, Numbers, Settings
from .mixture import FOUR, Points, Pretraining
from .points import collected, covariance_gap, draw, gradient_variances, learning, make_agent
from .statistics import at_level

LEVELS = (0.4, 0.5, 0.6, 0.7, 0.8)  # rewards at which the runs are compared


def gap(points: Points) -> float:
    """How far the covariance of the chosen mode is from the data's."""
    return covariance_gap(points[FOUR.mode(points) == TARGET], FOUR.std)


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Reward and covariance along the way, with and without the divergence; then variances of the gradient."""
    s = settings
    network = Pretraining("diffusion", FOUR, steps=s["pretraining_steps"], seed=seed).cached(networks)
    numbers: Numbers = {}
    for name, kl_coef in (("kl", s["kl_coef"]), ("free", 0.0)):
        config = {**s["dpok"], "kl_coef": kl_coef, "reference": "initial" if kl_coef else "none"}
        agent = make_agent(
            "dpok", network, hit, seed=seed, num_steps=s["num_steps"], config=config,
            policy={"value_head": True, "critic_seed": seed},
        )  # fmt: skip
        path = []
        for episodes in learning(agent, s["episodes"], s["looks"]):
            points = draw(agent.policy, s["evaluation"], seed)
            path.append((float(hit(points).mean()), gap(points)))
            numbers |= {f"{name}/reward@{episodes}": path[-1][0], f"{name}/gap@{episodes}": path[-1][1]}
            if name == "kl" and episodes == s["episodes"] * s["measured_after"] // s["looks"]:
                numbers |= variances(agent)
        numbers[f"{name}/gap_at_equal_reward"] = float(np.mean([at_level(path, level) for level in LEVELS]))
        numbers |= {f"{name}/reward": path[-1][0], f"{name}/gap": path[-1][1]}
    return numbers


def variances(agent: Any) -> Numbers:
    """Of each step's gradient, relative to the raw reward's, with V(x_t) and with the mean reward as baseline."""
    batch = collected(agent)
    assert batch.old_values is not None
    returns = batch.episodes.returns[:, None].expand(batch.episodes.mask.shape)
    advantages = {"raw": returns, "value": returns - batch.old_values[:, :-1], "mean": returns - returns.mean()}
    found = {name: np.array(v) for name, v in gradient_variances(agent.policy, batch, advantages).items()}
    numbers = {"variance/mean_reward": float(returns.mean())}
    for name in ("value", "mean"):
        ratio = found[name] / found["raw"]
        numbers |= {f"variance/{name}@{k + 1}": r for k, r in enumerate(ratio.tolist())}
        numbers |= {f"variance/{name}": float(ratio.mean()), f"variance/{name}_worst": float(ratio.max())}
    return numbers


SETTINGS: dict[str, Any] = {
    "pretraining_steps": 2500, "num_steps": 20, "episodes": 5120, "looks": 20, "measured_after": 5, "evaluation": 2000,
    "kl_coef": 0.1,
    "dpok": {"episodes_per_iteration": 256, "minibatch_size": 64, "learning_rate": 1e-3, **PAPER},
}  # fmt: skip

CLAIM = Claim(
    key="dpok",
    statement="At equal reward, the divergence keeps the covariance of the rewarded mode nearer to the data's; a value "
    "function lowers the variance of the gradient.",
    paper="Fan et al. 2023, arXiv 2305.16381",
    run=run,
    settings=SETTINGS,
    fast={"pretraining_steps": 1000, "episodes": 2560, "looks": 10, "evaluation": 1000},
    premises=(Effect("without the divergence the reward passes all levels compared", "free/reward", LEVELS[-1]),),
    effects=(
        Effect(
            "distance from the data's covariance at equal reward, without the divergence above with it",
            "free/gap_at_equal_reward",
            "kl/gap_at_equal_reward",
        ),
        Effect("variance of the gradient, raw reward above reward less V, mean over steps", 1.0, "variance/value"),
        Effect("the same at the step where V helps least", 1.0, "variance/value_worst"),
    ),
    curves=(
        Curve("mass on the rewarded mode", "samples", {"with divergence": "kl/reward", "without": "free/reward"}),
        Curve("distance from the data's covariance", "samples", {"with divergence": "kl/gap", "without": "free/gap"}),
        Curve(
            "variance of the gradient over the raw reward's",
            "denoising step",
            {"less V(x_t)": "variance/value", "less the mean reward": "variance/mean"},
        ),
    ),
    notes="The divergence is the exact one between transitions, weight 0.1, chosen beforehand. On seed 1000, "
    "learning rates 1e-3 and 3e-3 were tried; at the latter the run without divergence throws points far "
    "away, so that the former, at which the effect is smaller, is used. Variances are those of single "
    "decisions' exact gradients, after a quarter of the run with divergence.",
    agents=("dpok",),
)
