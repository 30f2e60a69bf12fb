"""What an agent does with its vector environment beside playing: build it, keep its state, build it again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import VectorEnv


def make_environment(
    env: str | VectorEnv[Any, Any, Any], episodes: int, options: Mapping[str, Any]
) -> VectorEnv[Any, Any, Any]:
    """A vector environment as it is, or one made from an id with a number of rows that divides ``episodes``.

    Args:
        env: either.
        episodes: in an iteration.
        options: arguments of an environment that is made.

    Raises:
        TypeError: if ``env`` is neither.
    """
    if isinstance(env, VectorEnv):
        return env
    if not isinstance(env, str):
        raise TypeError(f"env is a {type(env).__name__}, expected an id or a vector environment (gymnasium.make_vec)")
    return make_from_spec(gym.spec(env), episodes, options)


def make_from_spec(spec: EnvSpec, episodes: int, options: Mapping[str, Any]) -> VectorEnv[Any, Any, Any]:
    """The same from an entry of the registry."""
    if spec.entry_point is None or hasattr(environment_class(spec), "rollout"):
        return gym.make_vec(spec, num_envs=episodes, vectorization_mode="vector_entry_point", **options)
    # Others' batched environments take one seed for all rows; groups need one a row.
    return gym.make_vec(spec, num_envs=math.gcd(episodes, 16), vectorization_mode="sync", **options)


def environment_class(spec: EnvSpec) -> Any:
    """What makes the environment: its batched class where that plays whole episodes or is all, else the single one."""
    entries = [load_env_creator(e) if isinstance(e, str) else e for e in (spec.vector_entry_point, spec.entry_point)]
    return entries[0] if entries[1] is None or hasattr(entries[0], "rollout") else entries[1]


def environment_spec(env: VectorEnv[Any, Any, Any]) -> str | None:
    """JSON from which the environment can be built again; None where it is wrapped or was given objects."""
    if env.spec is None or isinstance(env, gym.vector.VectorWrapper):
        return None
    try:
        return env.spec.to_json()
    except (TypeError, ValueError):
        return None


def environment_state(env: VectorEnv[Any, Any, Any]) -> Any:
    """State of the outermost layer that keeps one (it nests those below), else of wrappers of single rows, or None."""
    while not hasattr(type(env), "get_state"):
        if not isinstance(env, gym.vector.VectorWrapper):
            rows = [row.get_state() for row in _rows(env)]
            return {"rows": rows} if rows else None
        env = env.env
    return env.get_state()  # type: ignore[attr-defined]


def _rows(env: Any) -> list[Any]:
    """Of each row of a ``SyncVectorEnv`` the outermost wrapper that keeps a state, if any does."""
    found = []
    for row in getattr(env, "envs", ()):
        while isinstance(row, gym.Wrapper) and not hasattr(type(row), "get_state"):
            row = row.env
        found += [row] if isinstance(row, gym.Wrapper) else []
    return found


def restore_environment(env: VectorEnv[Any, Any, Any], state: Any) -> None:
    """Inverse of :func:`environment_state`.

    Raises:
        ValueError: if the state is that of another environment.
    """
    layer: Any = env
    while not hasattr(type(layer), "set_state") and isinstance(layer, gym.vector.VectorWrapper):
        layer = layer.env
    whole, rows = hasattr(type(layer), "set_state"), _rows(layer)
    keeps = whole or bool(rows)
    try:
        if keeps != (state is not None):
            raise ValueError(f"there is {'no' if keeps else 'a'} state, and {'a' if keeps else 'no'} layer to keep it")
        if whole:
            layer.set_state(state)
        else:
            for row, saved in zip(rows, state["rows"] if rows else (), strict=True):
                row.set_state(saved)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the environment's saved state does not fit {env}: {error!r}; give the environment, wrapped as it was"
        ) from error


def registered_spec(text: str) -> EnvSpec:
    """The environment that a checkpoint names. Its entry points must be those known here: they are code that runs.

    Raises:
        ValueError: if it is not registered, or registered otherwise.
    """
    spec = EnvSpec.from_json(text)
    known = gym.registry.get(spec.id)
    if (
        known is None
        or spec.additional_wrappers
        or any(getattr(spec, n) != getattr(known, n) for n in ("entry_point", "vector_entry_point"))
    ):
        raise ValueError(
            f"the environment {spec.id!r} of the checkpoint is not registered here as it was: import the package that "
            "registers it, or pass the environment as load(folder, env=...)"
        )
    return spec


def is_single(observation: Any, space: gym.Space[Any]) -> bool:
    """Whether this is one observation of the space rather than a batch, judged by its axes alone."""
    if isinstance(space, gym.spaces.Dict):
        key = next(iter(space.spaces))
        return is_single(observation[key], space[key])
    return np.ndim(observation) == len(space.shape or ())
