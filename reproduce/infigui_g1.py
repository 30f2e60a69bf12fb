"""AEPO against naive RLVR for GUI grounding, at equal rollouts and at equal answers (InfiGUI-G1, arXiv 2508.05731)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ..agents.aepo import AEPO, AEPOConfig
from ..agents.policies.clicker import ClickerPolicy
from ..agents.policies.policy import Policy, RowNoise
from ..trajectories import Trajectories
from .harness import Claim, Effect, Numbers, Settings

KINDS = ("direct", "functional")
ROWS = 64  # instructions evaluated side by side


class CountingAEPO(AEPO):
    """AEPO that counts the points of its rollouts: each is an answer that was looked at."""

    answers = 0

    def collect(self) -> Trajectories:
        episodes = super().collect()
        self.answers += int((episodes.actions[:, 0] >= 0).all(-1).sum())
        return episodes


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Accuracies on unseen templates: of the start, of AEPO, and of naive RLVR after equal rollouts and answers."""
    s = settings
    aepo, naive = (_agent(points, seed, s) for points in (s["points"], 1))
    numbers = accuracies(naive.policy, s["evaluation"], "start")
    aepo.learn(s["episodes"])
    numbers |= accuracies(aepo.policy, s["evaluation"], "aepo")
    naive.learn(s["episodes"])
    numbers |= accuracies(naive.policy, s["evaluation"], "naive")
    if aepo.answers > naive.answers:
        naive.learn(aepo.answers - naive.answers)
    numbers |= accuracies(naive.policy, s["evaluation"], "naive_answers")
    return numbers | {"aepo/answers": aepo.answers, "naive/answers": naive.answers}


def _agent(points: int, seed: int, s: Settings) -> CountingAEPO:
    """AEPO; with one point, where its reward only adds a constant to that of a hit, naive RLVR in the same loop."""
    config = AEPOConfig(**s["config"])
    reward = "adaptive_exploration" if points > 1 else "point_in_box"
    env = gym.make_vec(
        "GUIGrounding-v0", num_envs=config.episodes_per_iteration, max_points=points, reward=reward, split=s["split"]
    )
    policy = ClickerPolicy.from_pretrained(num_points=points, **s["policy"])
    return CountingAEPO(env, policy, config, seed=seed)


def accuracies(policy: Policy, count: int, name: str) -> Numbers:
    """Greedy accuracy of the first point over the test instructions, and over the two halves of them.

    Args:
        policy: of the clicker.
        count: instructions, spread evenly over the test split; 0 takes all.
        name: of the numbers, ``<name>``, ``<name>/direct`` and ``<name>/functional``.
    """
    env = gym.make_vec("GUIGrounding-v0", num_envs=ROWS, split="test", max_points=policy.sampling["num_points"])
    total = env.unwrapped.num_prompts  # type: ignore[attr-defined]
    chosen = np.arange(total) if not count else np.unique(np.linspace(0, total - 1, count).astype(np.int64))
    found: dict[str, list[float]] = {name: [], **{f"{name}/{kind}": [] for kind in KINDS}}
    for first in range(0, len(chosen), ROWS):
        some = chosen[first : first + ROWS]
        rows = np.resize(some, ROWS)
        played = env.rollout(  # type: ignore[attr-defined]
            policy, noise=RowNoise(range(ROWS)), options={"prompt_index": rows}, deterministic=True
        )
        right = played.terms["accuracy"][: len(some)].tolist()
        found[name] += right
        for value, columns in zip(right, played.info["columns"], strict=False):
            found[f"{name}/{columns['kind']}"].append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


SETTINGS: dict[str, Any] = {
    "episodes": 6400, "points": 4, "split": "train", "evaluation": 0,
    "policy": {"freeze_page": False},
    "config": {"episodes_per_iteration": 64, "learning_rate": 1e-4},
}  # fmt: skip


def _effects() -> tuple[Effect, ...]:
    effects = []
    for half, words in (("", "all instructions"), ("/direct", "direct ones"), ("/functional", "functional ones")):
        effects += [
            Effect(f"accuracy on {words} after equal rollouts, AEPO above naive", f"aepo{half}", f"naive{half}"),
            Effect(f"accuracy on {words} after equal answers, AEPO above naive", f"aepo{half}", f"naive_answers{half}"),
        ]
    return tuple(effects)


CLAIM = Claim(
    key="infigui-g1",
    statement="AEPO's clicks are more often right on unseen pages than those of naive RLVR, on functional instructions "
    "above all.",
    paper="Liu et al. 2025, arXiv 2508.05731",
    run=run,
    settings=SETTINGS,
    fast={"episodes": 512, "evaluation": 400},
    premises=(
        Effect("naive RLVR learns: above the start after equal answers", "naive_answers", "start"),
        Effect("it leaves room: 0.95 above its accuracy", 0.95, "naive_answers"),
    ),
    effects=_effects(),
    notes="The embedded clicker instead of a language model, on the embedded screens. Both arms have the same loop, "
    "advantages, clip and learning rate; naive RLVR answers with one point. An answer is a point that was looked at: "
    "at equal rollouts AEPO has more of them, at equal answers naive RLVR has had more rollouts. Accuracy is that of "
    "the first point, greedily, over all instructions of the test split.",
    agents=("aepo",),
)
