"""PARL's implicit gradient on tables, where it is exact. arXiv 2308.02585."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..agents.pbrl.bilevel import DiscountedEntropy, EpisodicL2, RewardlessMDP, align, preference_objective
from .harness import Claim, Curve, Effect, Numbers, Settings

STATES, ACTIONS = 3, 2


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """What a designer gains from no rewards on, with and without the implicit part.

    ``utility`` is the true discounted return of the agent's policy, which the designer maximises, and ``share`` how
    much of what the best policy gains over the start; ``likelihood`` is that of a teacher's answers about the agent's
    own episodes, maximised in another problem, and ``return`` the true return that this brings.
    """
    mdp, truth = problem(seed)
    nothing, options = torch.zeros_like(truth), {"steps": settings["ascent_steps"]}

    def utility(logits: Tensor, _: Tensor) -> Tensor:
        return mdp.discounted_return(logits, truth)

    soft = DiscountedEntropy(mdp=mdp, temperature=0.1)
    short = EpisodicL2(mdp=mdp, horizon=4, l2=0.05)
    answers = preference_objective(short, truth)
    best = max(
        float(utility(1e3 * F.one_hot(torch.tensor(actions), ACTIONS).double(), nothing))
        for actions in product(range(ACTIONS), repeat=STATES)
    )
    numbers: Numbers = {"best": best}
    for arm, implicit in (("implicit", True), ("explicit", False)):
        path = align(utility, soft, nothing, learning_rate=settings["utility_rate"], implicit=implicit, **options)
        for step, point in enumerate(path):
            numbers[f"{arm}/utility@{step}"] = float(utility(*point))
        start, numbers[f"{arm}/utility"] = (float(utility(*path[k])) for k in (0, -1))
        numbers[f"{arm}/share"] = (numbers[f"{arm}/utility"] - start) / (best - start)
        path = align(answers, short, nothing, learning_rate=settings["answers_rate"], implicit=implicit, **options)
        logits, rewards = path[-1]
        numbers[f"{arm}/likelihood"] = float(answers(logits, rewards))
        numbers[f"{arm}/return"] = float(short.probabilities(logits) @ short.returns(truth))
    return numbers


def problem(seed: int) -> tuple[RewardlessMDP, Tensor]:
    """A decision process with uniformly drawn distributions, and true rewards in [0, 1]."""
    rng = np.random.default_rng(seed)
    transitions = torch.from_numpy(rng.dirichlet(np.ones(STATES), (STATES, ACTIONS)))
    start = torch.from_numpy(rng.dirichlet(np.ones(STATES)))
    mdp = RewardlessMDP(transitions=transitions, start=start, gamma=0.9)
    return mdp, torch.from_numpy(rng.random((STATES, ACTIONS)))


CLAIM = Claim(
    key="parl",
    statement="A designer who counts in how the agent's policy answers to the rewards can raise what that policy is "
    "worth to him; without the implicit part of the gradient he cannot move at all.",
    paper="Chakraborty et al. 2024, arXiv 2308.02585",
    run=run,
    settings={"ascent_steps": 60, "utility_rate": 0.1, "answers_rate": 0.3},
    fast={"ascent_steps": 20},
    premises=(
        Effect("explicit alone leaves room: 0.95 above its share of what can be gained", 0.95, "explicit/share"),
    ),
    effects=(
        Effect("utility, implicit gradient above explicit alone", "implicit/utility", "explicit/utility"),
        Effect("share of what can be gained, implicit gradient above 0.95", "implicit/share", 0.95),
    ),
    curves=(Curve("utility", "step", {"implicit": "implicit/utility", "explicit": "explicit/utility"}),),
    notes="Random problems of 3 states and 2 actions, solved exactly; the designer begins with rewards of 0, the agent "
    "is entropy-regularised (temperature 0.1), the discount 0.9. On six other problems all rates tried, 0.01 to 0.1, "
    "came as close.",
)
