"""ExploRS on chains and in rooms against its parts, LIRPG and the true reward: who meets the only reward returns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ..agents.callbacks import Callback
from ..agents.reinforce import Reinforce, ReinforceConfig
from .harness import Claim, Curve, Effect, Numbers, Settings, kept

ARMS = {  # the last is not of the claim: what is learned is kept within settings["clip"]
    "orig": "none", "explob": "explob", "selfrs": "selfrs", "lirpg": "lirpg", "explors": "explors",
    "bounded": "explors",
}  # fmt: skip
TITLES = {
    "orig": "true reward", "explob": "ExploB", "selfrs": "SelfRS", "lirpg": "LIRPG", "explors": "ExploRS",
    "bounded": "ExploRS, bounded",
}  # fmt: skip
CHAINS: dict[str, dict[str, Any]] = {
    "once": {"terminal_goal": True},
    "distractor": {"terminal_goal": True, "distractor": 0.01},
    "loop": {},
}
WORLDS = {name: ("RewardDesign/Chain-v0", options) for name, options in CHAINS.items()}
WORLDS["rooms"] = ("RewardDesign/FourRooms-v0", {"reward": 1.0, "gamma": 0.99})


class _Returns(Callback):
    """True discounted returns, a mean an iteration."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def on_iteration(self, agent: Any, episodes: Any, metrics: dict[str, float]) -> bool:
        self.means.append(metrics["rollout/term/discounted_return"])
        return True


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Every arm in every world; each is kept as it is done."""
    numbers: Numbers = {}
    for world, (env_id, options) in WORLDS.items():
        for arm, teacher in ARMS.items():
            config = {name: settings[name] for name in ("learning_rate", "teacher_every", "teacher_rate")}
            config["teacher"] = teacher
            if arm == "bounded":
                config["teacher_clip"] = settings["clip"]
            episodes = settings["rooms_episodes" if world == "rooms" else "episodes"]
            depends = {"seed": seed, "episodes": episodes, "env": env_id, "options": options, "config": config}
            found = kept(
                networks / "explors", f"{world}-{arm}", depends,
                partial(_learn, env_id, options, config, seed, episodes),
            )  # fmt: skip
            numbers |= {f"{world}/{arm}/{k}" if "@" not in k else f"{world}/{arm}{k}": v for k, v in found.items()}
    return numbers


def _learn(env_id: str, options: dict[str, Any], config: dict[str, Any], seed: int, episodes: int) -> Numbers:
    """Mean true return of the last tenth and of all episodes, and of each tenth."""
    env = gym.make_vec(env_id, num_envs=1, vectorization_mode="sync", **options)
    returns, every = _Returns(), max(1, min(100, episodes // 10))
    agent = Reinforce(env, config=ReinforceConfig(**config, episodes_per_iteration=every), seed=seed)
    agent.learn(episodes, returns)
    tenths = [float(np.mean(part)) for part in np.array_split(returns.means, 10)]
    curve = {f"@{round(episodes * (i + 1) / 10)}": value for i, value in enumerate(tenths)}
    return {"last": tenths[-1], "mean": float(np.mean(returns.means)), **curve}


CLAIM = Claim(
    key="explors",
    statement="A bonus for exploration together with a reward learned from the learner's own successes lets REINFORCE "
    "solve a chain that neither part solves as fast alone, nor LIRPG, and that the true reward does not teach at all; "
    "in four rooms it learns faster than with any of them.",
    paper="Devidze et al., NeurIPS 2022",
    run=run,
    settings={
        "episodes": 10_000, "rooms_episodes": 50_000, "learning_rate": 0.1, "teacher_every": 5, "teacher_rate": 0.01,
        "clip": 0.1,
    },
    fast={"episodes": 3000, "rooms_episodes": 3000},
    premises=tuple(
        Effect(f"{chain}: the true reward teaches nothing: 0.1 above its last tenth", 0.1, f"{chain}/orig/last")
        for chain in CHAINS
    ),
    effects=tuple(
        Effect(f"{chain}: last tenth, ExploRS above {text}", f"{chain}/explors/last", low)
        for chain in CHAINS
        for text, low in (
            ("the bonus alone", f"{chain}/explob/last"),
            ("the learned part alone", f"{chain}/selfrs/last"),
            ("LIRPG", f"{chain}/lirpg/last"),
            ("0.5", 0.5),
        )
    )
    + tuple(
        Effect(f"rooms: all episodes, ExploRS above {text}", "rooms/explors/mean", f"rooms/{arm}/mean")
        for text, arm in (
            ("the true reward", "orig"),
            ("the bonus alone", "explob"),
            ("the learned part alone", "selfrs"),
            ("LIRPG", "lirpg"),
        )
    ),
    curves=tuple(
        Curve(f"true return, {world}", "episodes", {TITLES[arm]: f"{world}/{arm}" for arm in ARMS}) for world in WORLDS
    ),
    notes="Discounted returns. *once* ends at the goal, *distractor* too and pays 0.01 on the other side, *loop* pays "
    "at every step, as the authors' program does. The rooms pay 1, discount 0.99, 30 steps. *Bounded* is no part of "
    "the claim: ExploRS whose learned reward is kept within 0.1.",
    agents=("reinforce",),
)  # fmt: skip
