"""ExploRS on chains and in rooms against its parts, LIRPG and the true reward: who meets the only reward returns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ..agents.callbacks import Callback
from ..agents.reinforce import Reinforce, ReinforceConfig
from .harness import Claim, Curve, Effect, Numbers, Settings, kept

ARMS = {  # the last is not of the claim: what is learned is kept within settings["clip"]
    "orig": "none", "explob": "explob", "selfrs": "selfrs", "sors": "sors", "lirpg": "lirpg", "explors": "explors",
    "bounded": "explors",
}  # fmt: skip
TITLES = {
    "orig": "true reward", "explob": "ExploB", "selfrs": "SelfRS", "sors": "SORS", "lirpg": "LIRPG",
    "explors": "ExploRS", "bounded": "ExploRS, bounded",
}  # fmt: skip
OTHERS = {"explob": "the bonus alone", "selfrs": "the learned part alone", "sors": "SORS", "lirpg": "LIRPG"}
CHAIN, ROOMS = "RewardDesign/Chain-v0", "RewardDesign/FourRooms-v0"
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "loop": (CHAIN, {}),
    "loop-distractor": (CHAIN, {"distractor": 0.01}),
    "rooms": (ROOMS, {"terminal_goal": False, "reward": 1.0, "gamma": 0.99}),
    "once": (CHAIN, {"terminal_goal": True}),
    "once-distractor": (CHAIN, {"terminal_goal": True, "distractor": 0.01}),
    "rooms-once": (ROOMS, {"reward": 1.0, "gamma": 0.99}),
}


class _Returns(Callback):
    """True discounted returns, a mean an iteration."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def on_iteration(self, agent: Any, episodes: Any, metrics: dict[str, float]) -> bool:
        self.means.append(metrics["rollout/term/discounted_return"])
        return True


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Every arm in every world of the settings; each is kept as it is done."""
    numbers: Numbers = {}
    for world in settings["worlds"]:
        env_id, options = WORLDS[world]
        for arm, teacher in ARMS.items():
            config = {name: settings[name] for name in ("learning_rate", "teacher_every", "teacher_rate")}
            config["teacher"] = teacher
            if arm == "bounded":
                config["teacher_clip"] = settings["clip"]
            episodes = settings["rooms_episodes" if env_id == ROOMS else "episodes"]
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


def about(worlds: Sequence[str]) -> dict[str, Any]:
    """Premises, effects, curves and settings of the claim in some worlds."""
    chains, rooms = ([w for w in worlds if WORLDS[w][0] == kind] for kind in (CHAIN, ROOMS))
    return {
        "premises": tuple(
            Effect(f"{chain}: the true reward teaches nothing: 0.1 above its last tenth", 0.1, f"{chain}/orig/last")
            for chain in chains
        ),
        "effects": tuple(
            Effect(f"{chain}: last tenth, ExploRS above {text}", f"{chain}/explors/last", f"{chain}/{arm}/last")
            for chain in chains
            for arm, text in OTHERS.items()
        )
        + tuple(Effect(f"{chain}: last tenth, ExploRS above 0.5", f"{chain}/explors/last", 0.5) for chain in chains)
        + tuple(
            Effect(f"{room}: all episodes, ExploRS above {text}", f"{room}/explors/mean", f"{room}/{arm}/mean")
            for room in rooms
            for arm, text in {"orig": "the true reward", **OTHERS}.items()
        ),
        "curves": tuple(
            Curve(f"true return, {world}", "episodes", {TITLES[arm]: f"{world}/{arm}" for arm in ARMS})
            for world in worlds
        ),
        "settings": {
            "worlds": list(worlds), "episodes": 10_000, "rooms_episodes": 50_000, "learning_rate": 0.1,
            "teacher_every": 5, "teacher_rate": 0.01, "clip": 0.1,
        },
        "fast": {"episodes": 3000, "rooms_episodes": 3000},
    }  # fmt: skip


STATEMENT = (
    "A bonus for exploration together with a reward learned from the learner's own successes lets REINFORCE solve a "
    "chain that neither part solves as fast alone, nor SORS, nor LIRPG, and that the true reward does not teach at "
    "all; in four rooms it learns faster than with any of them."
)
BOUNDED = "*Bounded* is no part of the claim: ExploRS whose learned reward is kept within 0.1."
CLAIM = Claim(
    key="explors",
    statement=STATEMENT,
    paper="Devidze et al., NeurIPS 2022",
    run=run,
    **about(["loop", "loop-distractor", "rooms"]),
    notes="Chain and rooms of the authors' program, where the goal pays at every step. The distractor pays 0.01 on the "
    f"other side. Discounted returns. {BOUNDED}",
    agents=("reinforce",),
)
