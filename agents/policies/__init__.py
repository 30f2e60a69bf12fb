"""Policies: what acts and is trained. The heavy ones are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from .policy import Decision, Evaluation, Policy, RowNoise

__all__ = ["Decision", "Evaluation", "Policy", "RowNoise", "build_policy", "policy_class"]

CLASSES = {
    "LMPolicy": ".lm",
    "DenoiserPolicy": ".denoiser_policy",
    "ControlPolicy": ".control",
    "TabularPolicy": ".control",
}


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
        env: token environments (``input_ids`` in the observation) get a language model, denoising ones (``sample``) a
            denoiser, others a perceptron.
        model: name of the model; None takes the environment's own: ``"stories"``, or its ``model``.
        value: with a critic.
        generator: source of initial weights that are drawn.

    Raises:
        ValueError: if a model name is given for an environment that has neither tokens nor samples.
    """
    space = env.single_observation_space
    if isinstance(space, spaces.Dict) and "input_ids" in space.spaces:
        from .lm import LMPolicy

        return LMPolicy.from_pretrained(model or "stories", value_head=value)
    if is_denoising(env):
        from .denoiser_policy import DenoiserPolicy

        unwrapped: Any = env.unwrapped
        return DenoiserPolicy.from_pretrained(
            model or unwrapped.model,
            num_steps=unwrapped.max_steps,
            value_head=value,
            critic_seed=generator.initial_seed(),
        )
    if model is not None:
        raise ValueError(f"policy={model!r} names a model, but the observations of {env} are {space}")
    from .control import ControlPolicy

    return ControlPolicy(space, env.single_action_space, value=value, generator=generator)


def is_denoising(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether the environment's states are samples that are denoised."""
    space = env.single_observation_space
    return isinstance(space, spaces.Dict) and {"sample", "timestep", "prompt"} <= set(space.spaces)
