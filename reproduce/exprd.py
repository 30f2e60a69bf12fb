"""EXPRD's rewards on few states against the true reward, shaping and rewards by hand: Q-learning learns faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ..agents.callbacks import Callback
from ..agents.q_learning import QLearning, QLearningConfig
from ..agents.teachers.baselines import hand_crafted, pbrs
from ..agents.teachers.exprd import Design, exprd, informativeness
from ..agents.teachers.teacher import TableTeacher
from ..envs.design.chain import corridor_mdp
from ..envs.design.env import TabularEnv
from ..envs.design.line_key import line_key_mdp
from ..envs.design.rooms import rooms_mdp, rooms_nav_table
from ..tabular import Array, TabularMDP, greedy, optimal_values, start_value
from .harness import Claim, Curve, Effect, Numbers, Settings, kept

LOOKS = (20, 60, 100, 200, 400)
DOORS = (10, 15, 26, 33, 36)  # of the four rooms: cells in front of doors


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Designs, which no seed moves; and what Q-learning makes of them."""
    known = {name: settings[name] for name in ("budget", "corridor_budgets")}
    numbers = kept(networks / "exprd", "designs", known, lambda: _designs(**known))
    line, corridor = line_key_mdp(), corridor_mdp(12)
    arms: dict[str, Array | None] = {
        "orig": None, "pbrs": pbrs(line), "exprd": _table(numbers, "line/exprd", line),
    }  # fmt: skip
    for arm, table in arms.items():
        curves = [_learn(line, table, [seed, i], settings) for i in range(settings["learners"])]
        means = np.mean([[curve[look] for look in LOOKS] for curve in curves], 0)
        numbers |= {f"line/{arm}@{look}": float(value) for look, value in zip(LOOKS, means, strict=True)}
        numbers[f"line/{arm}/area"] = float(np.mean([curve["area"] for curve in curves]))
    tables = {f"b{b}": _table(numbers, f"corridor/b{b}", corridor) for b in settings["corridor_budgets"]}
    tables["dense"] = _table(numbers, "corridor/dense", corridor)
    for arm, table in {"orig": None, **tables, "pbrs": pbrs(corridor)}.items():
        curves = [_learn(corridor, table, [seed, i], settings) for i in range(settings["learners"])]
        for name in ("first", "all"):
            numbers[f"corridor/{arm}/{name}"] = float(np.mean([curve[name] for curve in curves]))
    return {name: value for name, value in numbers.items() if "#" not in name}


def _designs(budget: int, corridor_budgets: list[int]) -> Numbers:
    """Objectives, the entries of the tables (``name#state,action``), and what hand-made rewards lead to."""
    line, corridor, rooms = line_key_mdp(), corridor_mdp(12), rooms_mdp(rooms_nav_table(0.1), reward=10, gamma=0.95)
    numbers: Numbers = {"line/true/objective": informativeness(line, line.R)}
    on_line, on_corridor = exprd(line, budget), exprd(corridor, max(corridor_budgets))
    for name, designs in (("line", on_line), ("corridor", on_corridor)):
        numbers |= {f"{name}/b{b}/objective": design.value for b, design in enumerate(designs)}
        numbers |= {f"{name}/b{b}/state": float(design.states[-1]) for b, design in enumerate(designs)}
    tables: dict[str, Design] = {"line/exprd": on_line[-1], "corridor/dense": exprd(corridor)[0]}
    tables |= {f"corridor/b{b}": on_corridor[b] for b in corridor_budgets}
    for name, design in tables.items():
        entries = np.ndenumerate(design.reward)
        numbers |= {f"{name}#{s},{a}": float(value) for (s, a), value in entries if value}
    best = _worth(rooms, rooms.R)
    by_hand = _worth(rooms, hand_crafted(rooms, DOORS))
    repaired = _worth(rooms, exprd(rooms, states=(*np.flatnonzero(rooms.R.any(1)), *DOORS))[0].reward)
    return numbers | {"rooms/best": best, "rooms/by_hand": by_hand, "rooms/repaired": repaired}


def _worth(mdp: TabularMDP, reward: Array) -> float:
    """True value of the policy that is optimal for a design."""
    return start_value(mdp, greedy(optimal_values(mdp, reward)[1]))


def _table(numbers: Numbers, name: str, mdp: TabularMDP) -> Array:
    """The table whose entries are among the numbers."""
    table = np.zeros(mdp.shape)
    for key, value in numbers.items():
        if key.startswith(f"{name}#"):
            state, action = key.rpartition("#")[2].split(",")
            table[int(state), int(action)] = value
    return table


class _Look(Callback):
    """True values of the greedy policy every 20 episodes, and returns of the episodes as a share of the best."""

    def __init__(self, mdp: TabularMDP) -> None:
        self.mdp, self.best = mdp, start_value(mdp, greedy(optimal_values(mdp)[1]))
        self.values: list[float] = []
        self.returns: list[float] = []

    def on_iteration(self, agent: Any, episodes: Any, metrics: dict[str, float]) -> bool:
        self.returns.append(metrics["rollout/term/discounted_return"] / self.best)
        if agent.episodes % 20 == 0:
            self.values.append(start_value(self.mdp, greedy(agent.q.astype(np.float64))))
        return True


def _learn(mdp: TabularMDP, table: Array | None, seed: list[int], settings: Settings) -> dict[Any, float]:
    """One learner's curve."""

    def make() -> gym.Env[Any, Any]:
        return TabularEnv(mdp, max_steps=50, render_mode=None)

    look, config = _Look(mdp), {name: settings[name] for name in ("learning_rate", "epsilon")}
    agent = QLearning(
        gym.vector.SyncVectorEnv([make]), config=QLearningConfig(**config, episodes_per_iteration=10),
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
        teacher=None if table is None else TableTeacher(table),
    )  # fmt: skip
    agent.learn(settings["episodes"], look)
    curve: dict[Any, float] = {at: look.values[min(at // 20, len(look.values)) - 1] for at in LOOKS}
    return curve | {
        "area": float(np.mean(look.values)), "first": float(np.mean(look.returns[:5])),
        "all": float(np.mean(look.returns)),
    }  # fmt: skip


CLAIM = Claim(
    key="exprd",
    statement="A reward on the goal and five more states, designed by EXPRD, teaches Q-learning faster than the true "
    "one, and the faster the more states; it keeps the optimal policy where rewards by hand lose it.",
    paper="Devidze et al., NeurIPS 2021",
    run=run,
    settings={
        "budget": 5, "corridor_budgets": [1, 2, 4], "learners": 4, "episodes": 400,
        "learning_rate": 0.5, "epsilon": 0.1,
    },
    fast={"learners": 1, "episodes": 200},
    premises=(
        Effect("the true reward teaches little at first: 1 above its value after 60 episodes", 1.0, "line/orig@60"),
        Effect("rewards by hand lose the optimal policy of the rooms", "rooms/best", "rooms/by_hand"),
    ),
    effects=(
        Effect("line: area under the curve, EXPRD above the true reward", "line/exprd/area", "line/orig/area"),
        Effect("line: area under the curve, PBRS above the true reward", "line/pbrs/area", "line/orig/area"),
        Effect("line: value after 100 episodes, EXPRD above the true reward", "line/exprd@100", "line/orig@100"),
        Effect("corridor: first 50 episodes, 1 state above none", "corridor/b1/first", "corridor/orig/first"),
        Effect("corridor: first 50 episodes, 2 states above 1", "corridor/b2/first", "corridor/b1/first"),
        Effect("corridor: first 50 episodes, 4 states above 2", "corridor/b4/first", "corridor/b2/first"),
        Effect("rooms: EXPRD on the states rewarded by hand loses nothing", "rooms/repaired", "rooms/best", 1e-6),
    ),
    curves=(
        Curve("value of the greedy policy on the line", "episodes", {
            "true reward": "line/orig", "PBRS": "line/pbrs", "EXPRD, 5 states": "line/exprd",
        }),
    ),
    notes="Four learners a seed. The line has ten cells, where the paper's is a continuum; the corridor has twelve and "
    "a largest reward of 1. Designs do not depend on the seed. Nothing was calibrated.",
    agents=("q-learning",),
)  # fmt: skip
