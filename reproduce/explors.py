"""ExploRS on the chain against its parts and the true reward: REINFORCE meets the only reward, and returns to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ..agents.callbacks import Callback
from ..agents.reinforce import Reinforce, ReinforceConfig
from .harness import Claim, Curve, Effect, Numbers, Settings, kept

ARMS = {"orig": "none", "explob": "explob", "selfrs": "selfrs", "explors": "explors"}
CHAINS: dict[str, dict[str, Any]] = {
    "once": {"terminal_goal": True},
    "distractor": {"terminal_goal": True, "distractor": 0.01},
    "loop": {},
}


class _Returns(Callback):
    """True discounted returns, a mean an iteration."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def on_iteration(self, agent: Any, episodes: Any, metrics: dict[str, float]) -> bool:
        self.means.append(metrics["rollout/term/discounted_return"])
        return True


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Every arm on every chain; each is kept as it is done."""
    numbers: Numbers = {}
    for chain, options in CHAINS.items():
        for arm, teacher in ARMS.items():
            config = {name: settings[name] for name in ("learning_rate", "teacher_every", "teacher_rate")}
            config["teacher"] = teacher
            episodes = settings["episodes"]
            depends = {"seed": seed, "episodes": episodes, "options": options, "config": config}
            found = kept(
                networks / "explors", f"{chain}-{arm}", depends,
                lambda options=options, config=config, episodes=episodes: _learn(seed, options, config, episodes),  # type: ignore[misc]
            )  # fmt: skip
            numbers |= {f"{chain}/{arm}/{k}" if "@" not in k else f"{chain}/{arm}{k}": v for k, v in found.items()}
    return numbers


def _learn(seed: int, options: dict[str, Any], config: dict[str, Any], episodes: int) -> Numbers:
    """Mean true return of the last tenth and of all episodes, and of each tenth."""
    env = gym.make_vec("RewardDesign/Chain-v0", num_envs=1, vectorization_mode="sync", **options)
    returns, every = _Returns(), max(1, min(100, episodes // 10))
    agent = Reinforce(env, config=ReinforceConfig(**config, episodes_per_iteration=every), seed=seed)
    agent.learn(episodes, returns)
    tenths = [float(np.mean(part)) for part in np.array_split(returns.means, 10)]
    curve = {f"@{round(episodes * (i + 1) / 10)}": value for i, value in enumerate(tenths)}
    return {"last": tenths[-1], "mean": float(np.mean(returns.means)), **curve}


CLAIM = Claim(
    key="explors",
    statement="A bonus for exploration together with a reward learned from the learner's own successes lets REINFORCE "
    "solve a chain that neither part solves as fast alone, and that the true reward does not teach at all.",
    paper="Devidze et al., NeurIPS 2022",
    run=run,
    settings={"episodes": 10_000, "learning_rate": 0.1, "teacher_every": 5, "teacher_rate": 0.01},
    fast={"episodes": 3000},
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
            ("0.5", 0.5),
        )
    ),
    curves=tuple(
        Curve(f"true return, {chain}", "episodes", {arm: f"{chain}/{arm}" for arm in ARMS}) for chain in CHAINS
    ),
    notes="Discounted returns. *once* ends at the goal, *distractor* too and pays 0.01 on the other side, *loop* pays "
    "at every step, as the authors' program does. 10,000 episodes, where the paper has 50,000.",
    agents=("reinforce",),
)  # fmt: skip
