"""ExpAdaRD's rewards, designed anew as the learner learns, against EXPRD's, which are designed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..agents.reinforce import softmax
from ..agents.teachers.baselines import pbrs
from ..agents.teachers.expadard import expadard, informativeness_weights
from ..agents.teachers.exprd import Target, exprd
from ..envs.design.chain import corridor_mdp
from ..envs.design.line_key import line_key_mdp
from ..tabular import Array, TabularMDP, greedy, occupancy, optimal_values, policy_values, start_value
from .harness import Claim, Effect, Numbers, Settings, kept

STARTS = {"uniform": 0.0, "bad": -2.0}  # logit of going right


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Steps of an exact policy-gradient learner to 90 % of the best value; its first policy is drawn by the seed."""
    s, mdp = settings, corridor_mdp(12)
    numbers = kept(networks / "expadard", "informativeness", {}, _informativeness)
    rng = np.random.default_rng(seed)
    noise = s["spread"] * rng.standard_normal(mdp.shape) * (seed > 0)  # seed 0: the plain starts
    designs = exprd(mdp, max(s["budgets"]))
    static = {f"exprd{b}": designs[b].reward for b in s["budgets"]} | {"exprd_all": exprd(mdp)[0].reward}
    static |= {"true": mdp.R, "pbrs": pbrs(mdp)}
    for start, right in STARTS.items():
        logits = noise + np.array([0.0, right])
        for name, table in static.items():
            numbers[f"{start}/{name}"] = learn(mdp, logits, lambda _, table=table: table, s)  # type: ignore[misc]
        for budget in (*s["budgets"], None):
            target = Target.of(mdp)

            def adaptive(policy: Array, budget: int | None = budget, target: Target = target) -> Array:
                return expadard(mdp, policy, budget=budget, target=target).reward

            numbers[f"{start}/adaptive{'_all' if budget is None else budget}"] = learn(mdp, logits, adaptive, s)
    return numbers


def learn(mdp: TabularMDP, logits: Array, design: Callable[[Array], Array], settings: Settings) -> float:
    """Steps until a softmax policy, learning by the exact gradient of a designed reward, is worth 90 % of the best.

    The design is asked every ``every`` steps. Who never arrives gets ``ascent_steps``.
    """
    goal = 0.9 * start_value(mdp, greedy(optimal_values(mdp)[1]))
    logits, reward = logits.copy(), mdp.R
    for step in range(settings["ascent_steps"]):
        policy = softmax(logits)
        if start_value(mdp, policy) >= goal:
            return float(step)
        if step % settings["every"] == 0:
            reward = design(policy)
        values, q = policy_values(mdp, policy, reward)
        visits = np.linalg.solve(
            np.eye(len(values)) - mdp.gamma * np.einsum("sa,sat->st", policy, mdp.P).T, (1 - mdp.gamma) * mdp.start
        )
        logits += settings["learning_rate"] * visits[:, None] * policy * (q - values[:, None])
    return float(settings["ascent_steps"])


def _informativeness() -> Numbers:
    """How much rewards tell a uniform learner on the line, and the most that their bound allows."""
    mdp = line_key_mdp()
    uniform = np.full(mdp.shape, 1 / 3)
    weights, shaped = informativeness_weights(mdp, uniform), pbrs(mdp)
    return {
        "line/adaptive": expadard(mdp, uniform).value, "line/bound": float(10 * np.abs(weights).sum()),
        "line/pbrs": float((weights * shaped).sum() * 10 / np.abs(shaped).max()),
        "line/true": float((weights * mdp.R).sum()), "line/exprd": float((weights * exprd(mdp)[0].reward).sum()),
        "line/visited": float((occupancy(mdp, uniform) > 0).sum()),
    }  # fmt: skip


CLAIM = Claim(
    key="expadard",
    statement="With rewards on few states, a teacher that designs them anew for the learner as it is leads it to the "
    "optimum in fewer steps than one that designs them once.",
    paper="Devidze et al., AAMAS 2024; thesis arXiv 2503.21949",
    run=run,
    settings={"budgets": [1, 2, 4], "every": 100, "ascent_steps": 6000, "learning_rate": 0.5, "spread": 0.1},
    fast={"ascent_steps": 2000},
    premises=(
        Effect("the true reward is slow: its steps above EXPRD's with 4 states", "uniform/true", "uniform/exprd4"),
        Effect("shaping does not help an exact gradient: as many steps", "uniform/pbrs", "uniform/true", 1.0),
    ),
    effects=(
        *(
            Effect(f"steps, {s} start, {b} states: EXPRD above adaptive", f"{s}/exprd{b}", f"{s}/adaptive{b}")
            for s in STARTS for b in (1, 2, 4)
        ),
        Effect("a uniform learner on the line is told more than by EXPRD's design", "line/adaptive", "line/exprd"),
    ),
    notes="An exact gradient on the corridor of 12 cells, so there is no noise of samples; the paper has REINFORCE "
    "in rooms, with rewards that are sums of 40 features. Who does not arrive counts with the limit. Seed 0 starts "
    "from the plain policies, the others near them.",
    agents=("reinforce",),
)  # fmt: skip
