"""Teachers by name, for the options of agents."""

from __future__ import annotations

from typing import Any, Literal

from gymnasium import spaces

from ...tabular import TabularMDP
from .baselines import invariance, pbrs
from .teacher import TableTeacher, Teacher

PARTS: dict[str, dict[str, Any]] = {"explob": {"rate": 0.0}, "selfrs": {"bonus": 0.0}, "explors": {}}  # of ExploRS

TABLES = ("pbrs", "exprd", "invariance", "expadard", "lirpg")  # teachers that read the environment's table

TeacherName = Literal["none", "pbrs", "exprd", "invariance", "expadard", "explob", "selfrs", "explors", "sors", "lirpg"]


def build_teacher(
    name: TeacherName,
    env: Any,
    gamma: float,
    *,
    budget: int | None = None,
    rate: float = 0.01,
    clip: float | None = None,
    seed: int = 0,
) -> Teacher | None:
    """A teacher for an environment, with the defaults of its paper; None for ``"none"``.

    Args:
        name: which.
        env: a single environment. ``pbrs``, ``exprd``, ``invariance``, ``expadard`` and ``lirpg`` read its table,
            ``env.mdp``; the others need no more than its spaces.
        gamma: discount of returns.
        budget: states beside the rewarded ones in which ``exprd`` and ``expadard`` may reward; None: all.
        rate: of the learned part of a reward; networks have a tenth of it.
        clip: largest size of that part; None: as in the paper.
        seed: of initial weights and draws.

    Raises:
        ValueError: if the environment has no table, or a teacher of tables is asked for one without numbered states.
    """
    if name == "none":
        return None
    mdp = getattr(env.unwrapped, "mdp", None)
    if name in TABLES:
        if not isinstance(mdp, TabularMDP):
            raise ValueError(f"teacher={name!r} designs from a table, but {env} has no `mdp`: use explors, or your own")
        if name == "expadard":
            from .expadard import ExpAdaRD

            return ExpAdaRD(mdp, budget=budget)
        if name == "lirpg":
            from .lirpg import LIRPG

            return LIRPG(mdp, gamma, rate=rate, clip=clip)
        if name == "exprd":
            from .exprd import exprd

            return TableTeacher(exprd(mdp, budget)[-1].reward)
        return TableTeacher(pbrs(mdp) if name == "pbrs" else invariance(mdp))
    observation, actions = env.observation_space, env.action_space
    if not isinstance(actions, spaces.Discrete):
        raise ValueError(f"teacher={name!r} designs for numbered actions, but those of {env} are {actions}")
    if isinstance(observation, spaces.Discrete):
        from .explors import SORS, ExploRS

        shape = int(observation.n), int(actions.n)
        if name == "sors":
            return SORS(shape, gamma, rate=rate, seed=seed)
        return ExploRS(shape, gamma, **{"rate": rate, "clip": clip, **PARTS[name]})
    if name == "sors":
        raise ValueError(f"teacher='sors' is for numbered states, but those of {env} are {observation}")
    from .deep_explors import DeepExploRS

    options: dict[str, Any] = {"rate": rate / 10, "scale": 0.1 if clip is None else clip, **PARTS[name]}
    return DeepExploRS(observation, int(actions.n), gamma, seed=seed, **options)
