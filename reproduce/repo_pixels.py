"""The claim of :mod:`.repo` on pixels: a pole that is balanced before moving videos."""

from __future__ import annotations

from typing import Any

from .harness import Claim, Effect
from .repo import EFFECTS, PREMISES, SETTINGS, STATEMENT, run

OPTIONS: dict[str, Any] = {
    "task": {"domain": "cartpole", "task": "balance", "size": 32, "action_repeat": 8},
    "rows": 1, "env_steps": 10_000, "evaluated": 10, "alignment_steps": 4000,
    "repo": SETTINGS["repo"] | {
        "learning_starts": 1000, "steps_per_iteration": 250, "batch_size": 16, "sequence_length": 12,
        "deterministic_size": 64, "stochastic_size": 16, "hidden_size": 64, "embedding_size": 128, "conv_depth": 8,
        "horizon": 10, "gamma": 0.99, "model_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "entropy_coef": 1e-3,
    },
    "repo_alignment": SETTINGS["repo_alignment"] | {
        "learning_starts": 500, "steps_per_iteration": 250, "encoder_learning_rate": 1e-3,
    },
}  # fmt: skip

CLAIM = Claim(
    key="repo-pixels",
    statement=STATEMENT,
    paper="Zhu et al. 2023, arXiv 2309.00082",
    run=run,
    settings=OPTIONS,
    fast={"env_steps": 3000, "evaluated": 4, "alignment_steps": 1000},
    premises=PREMISES,
    effects=(
        *EFFECTS,
        Effect("return without distractors, RePo not 50 below", "repo/clean/return", "dreamer/clean/return", 50.0),
        Effect(
            "the same with videos that were not trained on", "repo/distracted/held_out", "dreamer/distracted/held_out"
        ),
    ),
    agents=("repo", "repo-alignment"),
    notes="As of repo. Videos are procedural (paper: Kinetics-400); the body alone is kept (paper: all that is not "
    "bluish).",
)
