"""EXPRD's rewards on few states against the true reward, shaping and rewards by hand: Q-learning learns faster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ..agents.callbacks import Callback
from ..agents.q_learning import QLearning, QLearningConfig
from ..agents.teachers.baselines import hand_crafted, pbrs
from ..agents.teachers.exprd import Design, exprd, informativeness, rewarded_states
from ..agents.teachers.teacher import TableTeacher
from ..envs.design.chain import corridor_mdp
from ..envs.design.env import TabularEnv
from ..envs.design.line_key import line_key_mdp
from ..envs.design.rooms import rooms_mdp, rooms_nav_table
from ..tabular import Array, TabularMDP, greedy, optimal_values, start_value
from .harness import Claim, Curve, Effect, Numbers, Settings, kept

LOOKS = (20, 60, 100, 200, 400)
ROOMS_LOOKS = (20, 60, 100, 200, 400, 700, 1000)
DOORS = (10, 15, 26, 33, 36)  # of the four rooms: cells in front of doors


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Designs, which no seed moves; and what Q-learning makes of them."""
    known = {name: settings[name] for name in ("budget", "corridor_budgets", "rooms_budget")}
    numbers = kept(networks / "exprd", "designs", known, lambda: _designs(**known))
    line, corridor, rooms = line_key_mdp(), corridor_mdp(12), _rooms()
    arms: dict[str, Array | None] = {
        "orig": None, "pbrs": pbrs(line), "exprd": _table(numbers, "line/exprd", line),
    }  # fmt: skip
    for arm, table in arms.items():
        numbers |= _curve(f"line/{arm}", line, table, seed, settings, settings["episodes"], LOOKS)
    arms = {
        "orig": None, "pbrs": pbrs(rooms), "by_hand": hand_crafted(rooms, DOORS),
        "doors": _table(numbers, "rooms/doors", rooms), "exprd": _table(numbers, "rooms/exprd", rooms),
    }  # fmt: skip
    for arm, table in arms.items():
        numbers |= _curve(f"rooms/{arm}", rooms, table, seed, settings, settings["rooms_episodes"], ROOMS_LOOKS)
    tables = {f"b{b}": _table(numbers, f"corridor/b{b}", corridor) for b in settings["corridor_budgets"]}
    tables["dense"] = _table(numbers, "corridor/dense", corridor)
    for arm, table in {"orig": None, **tables, "pbrs": pbrs(corridor)}.items():
        looks = [
            _learn(corridor, table, [seed, i], settings, settings["episodes"]) for i in range(settings["learners"])
        ]
        numbers[f"corridor/{arm}/first"] = float(np.mean([look.returns[:5] for look in looks]))
        numbers[f"corridor/{arm}/all"] = float(np.mean([look.returns for look in looks]))
    return {name: value for name, value in numbers.items() if "#" not in name}


def _rooms() -> TabularMDP:
    return rooms_mdp(rooms_nav_table(0.1), reward=10, gamma=0.95)


def _designs(budget: int, corridor_budgets: list[int], rooms_budget: int) -> Numbers:
    """Objectives, the entries of the tables (``name#state,action``), and what hand-made rewards lead to."""
    line, corridor, rooms = line_key_mdp(), corridor_mdp(12), _rooms()
    numbers: Numbers = {"line/true/objective": informativeness(line, line.R)}
    on_line, on_corridor = exprd(line, budget), exprd(corridor, max(corridor_budgets))
    on_rooms = exprd(rooms, rooms_budget)
    for name, designs in (("line", on_line), ("corridor", on_corridor), ("rooms", on_rooms)):
        numbers |= {f"{name}/b{b}/objective": design.value for b, design in enumerate(designs)}
        numbers |= {f"{name}/b{b}/state": float(design.states[-1]) for b, design in enumerate(designs)}
    tables: dict[str, Design] = {"line/exprd": on_line[-1], "corridor/dense": exprd(corridor)[0]}
    tables |= {"rooms/exprd": on_rooms[-1], "rooms/doors": exprd(rooms, states=(*rewarded_states(rooms), *DOORS))[0]}
    tables |= {f"corridor/b{b}": on_corridor[b] for b in corridor_budgets}
    for name, design in tables.items():
        entries = np.ndenumerate(design.reward)
        numbers |= {f"{name}#{s},{a}": float(value) for (s, a), value in entries if value}
    best = _worth(rooms, rooms.R)
    by_hand = _worth(rooms, hand_crafted(rooms, DOORS))
    repaired = _worth(rooms, tables["rooms/doors"].reward)
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


def _curve(
    name: str, mdp: TabularMDP, table: Array | None, seed: int, settings: Settings, episodes: int, at: Sequence[int]
) -> Numbers:
    """Means over learners: values of the greedy policy after some episodes, over all looks, over their last quarter."""
    looks = [_learn(mdp, table, [seed, i], settings, episodes) for i in range(settings["learners"])]
    values = np.mean([look.values for look in looks], 0)
    curve = {f"{name}@{n}": float(values[min(n // 20, len(values)) - 1]) for n in at}
    return curve | {f"{name}/area": float(values.mean()), f"{name}/last": float(values[-len(values) // 4 :].mean())}


def _learn(mdp: TabularMDP, table: Array | None, seed: list[int], settings: Settings, episodes: int) -> _Look:
    """What was seen of one learner."""

    def make() -> gym.Env[Any, Any]:
        return TabularEnv(mdp, max_steps=50, render_mode=None)

    look, config = _Look(mdp), {name: settings[name] for name in ("learning_rate", "epsilon")}
    agent = QLearning(
        gym.vector.SyncVectorEnv([make]), config=QLearningConfig(**config, episodes_per_iteration=10),
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
        teacher=None if table is None else TableTeacher(table),
    )  # fmt: skip
    agent.learn(episodes, look)
    return look


CLAIM = Claim(
    key="exprd",
    statement="A reward on the goal and five more states, designed by EXPRD, teaches Q-learning faster than the true "
    "one, and the faster the more states; it keeps the optimal policy where rewards by hand lose it.",
    paper="Devidze et al., NeurIPS 2021",
    run=run,
    settings={
        "budget": 5, "corridor_budgets": [1, 2, 4], "rooms_budget": 5, "learners": 4, "episodes": 400,
        "rooms_episodes": 1000, "learning_rate": 0.5, "epsilon": 0.1,
    },
    fast={"learners": 1, "episodes": 200, "rooms_episodes": 400},
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
        Effect("rooms: last quarter, EXPRD at doors above by hand", "rooms/doors/last", "rooms/by_hand/last"),
        Effect("rooms: area, EXPRD at doors above the true reward", "rooms/doors/area", "rooms/orig/area"),
        Effect("rooms: area, EXPRD, 5 states, above the true reward", "rooms/exprd/area", "rooms/orig/area"),
    ),
    curves=(
        Curve("value of the greedy policy on the line", "episodes", {
            "true reward": "line/orig", "PBRS": "line/pbrs", "EXPRD, 5 states": "line/exprd",
        }),
        Curve("value of the greedy policy in the rooms", "episodes", {
            "true reward": "rooms/orig", "PBRS": "rooms/pbrs", "by hand at doors": "rooms/by_hand",
            "EXPRD at doors": "rooms/doors", "EXPRD, 5 states": "rooms/exprd",
        }),
    ),
    notes="Four learners a seed. The line has ten cells, where the paper's is a continuum; the corridor has twelve and "
    "a largest reward of 1. Designs do not depend on the seed. Nothing was calibrated.",
    agents=("q-learning",),
)  # fmt: skip
