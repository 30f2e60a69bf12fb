"""Policies: what acts and is trained. The heavy ones are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from .policy import Decision, Evaluation, Policy, RowNoise

__all__ = ["Decision", "Evaluation", "Policy", "RowNoise", "build_policy", "policy_class"]

CLASSES = {"LMPolicy": ".lm", "ControlPolicy": ".control", "TabularPolicy": ".control"}


def policy_class(name: str) -> type[Any]:
    """The policy class of that name.

    Raises:
        ValueError: if it is none of ours; a checkpoint with a policy of your own is loaded with ``load(policy=...)``.
    """
    if name not in CLASSES:
        raise ValueError(
            f"policy class {name!r} is not one of {sorted(CLASSES)}: pass the policy as load(folder, policy=...)"
        )
    return getattr(import_module(CLASSES[name], __name__), name)  # type: ignore[no-any-return]


def build_policy(
    env: VectorEnv[Any, Any, Any], model: str | None, *, value: bool, generator: torch.Generator
) -> Policy:
    """The default policy for an environment's spaces.

    Args:
        env: token environments (``input_ids`` in the observation) get a language model, others a perceptron.
        model: name of the language model; None takes the environment's own tokenizer's model, ``"stories"``.
        value: with a critic.
        generator: source of initial weights that are drawn.

    Raises:
        ValueError: if a model name is given for an environment without tokens.
    """
    space = env.single_observation_space
    if isinstance(space, spaces.Dict) and "input_ids" in space.spaces:
        from .lm import LMPolicy

        return LMPolicy.from_pretrained(model or "stories", value_head=value)
    if model is not None:
        raise ValueError(f"policy={model!r} names a language model, but the observations of {env} are {space}")
    from .control import ControlPolicy

    return ControlPolicy(space, env.single_action_space, value=value, generator=generator)
