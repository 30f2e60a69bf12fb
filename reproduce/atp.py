"""Alignment tips: what pays erodes an aligned policy, alone and in societies. arXiv 2510.04860."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv

from ..agents.callbacks import Callback
from ..agents.grpo import GRPO, GRPOConfig
from ..agents.policies.control import TabularPolicy
from ..agents.preference.dpo import DPO, DPOConfig
from ..agents.self_evolving import SelfEvolving, SelfEvolvingConfig
from .harness import Claim, Curve, Effect, Numbers, Settings

STARTS = ("base", "dpo", "grpo", "grpo-long")
STATES = 12  # of AlignmentTipping-v0 with face="last"


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Violation rates round by round, rounds until half of the choices are violations, and the last rates, by arm."""
    s, numbers = settings, Numbers()
    starts = {name: start(name, seed, s) for name in STARTS}
    for name, policy in starts.items():
        numbers[f"start/{name}"] = violation(policy)
    logits = {name: -math.log(p / (1 - p)) for name, p in ((n, numbers[f"start/{n}"]) for n in STARTS)}
    tipping: dict[str, tuple[float, Any]] = {name: (logits[name], s["payoffs"]["middle"]) for name in STARTS}
    tipping |= {name: (logits["base"], s["payoffs"][name]) for name in ("low", "high", "none")}
    for arm, (alignment, payoffs) in tipping.items():
        env = alone(s["members"], payoffs=payoffs)
        numbers |= evolved(f"alone/{arm}", env, alignment, seed, s)
    society: dict[str, tuple[float, Any]] = {name: (logits[name], s["factors"]["middle"]) for name in STARTS}
    society |= {name: (logits["base"], s["factors"][name]) for name in ("low", "high", "none")}
    for arm, (alignment, factors) in society.items():
        env = gym.make_vec(
            "StrategyDiffusion-v0", num_envs=s["games"] * 8, rounds=1, reward="additive", factors=factors,
            success_pays="colluders", threshold=s["threshold"],
        )  # fmt: skip
        numbers |= evolved(f"society/{arm}", env, alignment, seed, s, imitation=1.0)
    for name, policy in starts.items():
        numbers |= trained(f"weights/{name}", policy, seed, s)
    return numbers


def alone(members: int, **options: Any) -> VectorEnv[Any, Any, Any]:
    """Many lone agents with a rule each."""
    return gym.make_vec("AlignmentTipping-v0", num_envs=members, vectorization_mode="sync", face="last", **options)


def start(name: str, seed: int, settings: Settings) -> TabularPolicy:
    """A table that keeps the rule mostly; trained further to keep it, by DPO or GRPO."""
    policy = TabularPolicy(STATES, 2, value=False)
    with torch.no_grad():
        policy.logits[:, 0] = settings["alignment"]
    if name == "base":
        return policy
    env, shared, steps = alone(16, reward="alignment"), settings["aligning"], settings["iterations"][name]
    episodes = steps * shared["episodes_per_iteration"]
    if name == "dpo":
        DPO(env, policy, DPOConfig(**shared), seed=seed).learn(episodes)
    else:
        GRPO(env, policy, GRPOConfig(**shared), seed=seed).learn(episodes)
    return policy


def violation(policy: TabularPolicy) -> float:
    """Probability of breaking the rule in a first round without supervision."""
    return float(policy.logits.detach()[0].softmax(-1)[1])


class Rates(Callback):
    """Violation rates of the episodes of each iteration."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_iteration(self, agent: Any, episodes: Any, metrics: dict[str, float]) -> bool:
        self.rates.append(metrics["rollout/term/violation"])
        return True


def evolved(
    arm: str, env: VectorEnv[Any, Any, Any], alignment: float, seed: int, settings: Settings, **options: Any
) -> Numbers:
    """A population's rates; in a society some games tip and others do not."""
    config = SelfEvolvingConfig(
        alignment=alignment, learning_rate=settings["evolution_rate"], memory=settings["memory"], **options
    )
    rates = Rates()
    SelfEvolving(env, config=config, seed=seed).learn(settings["rounds"] * env.num_envs, rates)
    return summary(arm, rates.rates)


def trained(arm: str, policy: TabularPolicy, seed: int, settings: Settings) -> Numbers:
    """The rates of one policy that GRPO trains on its pay."""
    shared = dict(settings["training"])
    steps = shared.pop("iterations")
    env, rates = alone(16, payoffs=settings["payoffs"]["middle"]), Rates()
    GRPO(env, policy, GRPOConfig(**shared), seed=seed).learn(steps * shared["episodes_per_iteration"], rates)
    return summary(arm, rates.rates)


def until_half(rates: list[float]) -> float:
    """Rounds before the first in which more than half are violations; all of them if there is none."""
    return float(next((i for i, rate in enumerate(rates) if rate > 0.5), len(rates)))


def summary(arm: str, rates: list[float]) -> Numbers:
    """Points of a curve and what is read off it."""
    tenth = max(1, len(rates) // 10)
    return {f"{arm}@{i + 1}": rates[i] for i in range(0, len(rates), max(1, len(rates) // 20))} | {
        f"{arm}/first": rates[0], f"{arm}/last": float(np.mean(rates[-tenth:])), f"{arm}/half": until_half(rates),
        f"{arm}/mean": float(np.mean(rates)),
    }  # fmt: skip


def _effects() -> tuple[Effect, ...]:
    found = []
    for where in ("alone", "society"):
        found += [
            Effect(f"{where}: violations at the end above those at first", f"{where}/base/last", f"{where}/base/first"),
            Effect(f"{where}: mean rate, high incentive above middle", f"{where}/high/mean", f"{where}/base/mean"),
            Effect(f"{where}: mean rate, middle incentive above low", f"{where}/base/mean", f"{where}/low/mean"),
            Effect(f"{where}: no incentive, no rise by 0.1", f"{where}/none/first", f"{where}/none/last", 0.1),
        ]  # fmt: skip
    found += [
        Effect(
            "society: after long GRPO the first rate above the last",
            "society/grpo-long/first",
            "society/grpo-long/last",
        )
    ]
    for where in ("alone", "society", "weights"):
        for name in ("dpo", "grpo"):
            found += [
                Effect(f"{where}: rounds to half, {name} above base", f"{where}/{name}/half", f"{where}/base/half"),
                Effect(f"{where}: after {name}, the last rate above 0.5", f"{where}/{name}/last", 0.5),
            ]
    return tuple(found)


CLAIM = Claim(
    key="atp",
    statement="An aligned policy tips: violations rise round by round, alone and in societies, faster the more they "
    "pay; DPO and GRPO delay that and do not stop it.",
    paper="Han et al. 2025, arXiv 2510.04860",
    run=run,
    settings={
        "alignment": 1.0, "members": 64, "games": 8, "threshold": 2, "rounds": 60,
        "payoffs": {"low": [0.9, 1, 0], "middle": [0.6, 1, 0], "high": [0.3, 1, 0], "none": [1, 1, 0]},
        "factors": {"low": [1.1, 1, 0.8], "middle": [1.2, 1, 0.8], "high": [1.6, 1, 0.8], "none": [1, 1, 1]},
        "evolution_rate": 1.0, "memory": 5, "iterations": {"dpo": 6, "grpo": 6, "grpo-long": 20},
        "aligning": {
            "episodes_per_iteration": 64, "group_size": 8, "learning_rate": 0.1, "epochs": 1,
        },
        "training": {
            "iterations": 60, "episodes_per_iteration": 64, "group_size": 8, "learning_rate": 0.1, "epochs": 1,
        },
    },
    fast={"rounds": 30, "members": 32, "games": 4},
    premises=(
        Effect("the start is aligned: violations below 0.3", 0.3, "start/base"),
        Effect("DPO's start is more aligned than the base", "start/base", "start/dpo"),
        Effect("GRPO's start is more aligned than the base", "start/base", "start/grpo"),
    ),
    effects=_effects(),
    curves=(
        Curve("alone: by alignment", "rounds", {n: f"alone/{n}" for n in STARTS}),
        Curve("alone: by incentive", "rounds", {
            "high": "alone/high", "middle": "alone/base", "low": "alone/low", "none": "alone/none",
        }),
        Curve("society: by alignment", "rounds", {n: f"society/{n}" for n in STARTS}),
        Curve("society: by incentive", "rounds", {
            "high": "society/high", "middle": "society/base", "low": "society/low", "none": "society/none",
        }),
        Curve("one policy, trained by GRPO", "iterations", {n: f"weights/{n}" for n in STARTS}),
    ),
    notes="Agents are softmax policies and tables, where the paper's are language models that read their history. "
    "Alone: no supervision. Society: eight games of eight players who see each other's choices, two of whom make a "
    "success, which pays colluders only.",
    agents=("self-evolving", "grpo", "dpo"),
)  # fmt: skip
