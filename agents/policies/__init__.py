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
    "VLMPolicy": ".vlm",
    "ClickerPolicy": ".clicker",
    "JigsawPolicy": ".jigsaw",
    "DenoiserPolicy": ".denoiser_policy",
    "ControlPolicy": ".control",
    "TabularPolicy": ".control",
    "QTable": ".q_table",
    "PopulationPolicy": ".population",
    "SB3Policy": ".sb3_policy",
    "WorldModelPolicy": ".world_model",
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
            denoiser, screens with an instruction a clicker, pieces of a puzzle (``tiles``) what puts them in order,
            others a perceptron.
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
    if is_grounding(env):
        from .clicker import ClickerPolicy

        return ClickerPolicy.from_pretrained(
            model or "gui-clicker", num_points=answer_points(env), value_head=value
        )
    if is_jigsaw(env):
        from .jigsaw import JigsawPolicy

        return JigsawPolicy.from_pretrained(
            model or "gui-clicker", puzzle_pieces(env), seed=generator.initial_seed(), value_head=value
        )
    if model is not None:
        raise ValueError(f"policy={model!r} names a model, but the observations of {env} are {space}")
    from .control import ControlPolicy

    return ControlPolicy(space, env.single_action_space, value=value, generator=generator)


def is_grounding(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether the environment shows screenshots with an instruction and takes points."""
    space, action = env.single_observation_space, env.single_action_space
    shown = isinstance(space, spaces.Dict) and {"screenshot", "instruction"} <= set(space.spaces)
    return shown and isinstance(action, spaces.Box) and (action.shape or (0,))[-1] == 2


def answer_points(env: VectorEnv[Any, Any, Any]) -> int:
    """Points that an answer may have in such an environment."""
    shape = env.single_action_space.shape or ()
    return shape[0] if len(shape) == 2 else 1


def is_jigsaw(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether the environment shows pieces that are to be put in order."""
    space, action = env.single_observation_space, env.single_action_space
    return isinstance(space, spaces.Dict) and "tiles" in space.spaces and isinstance(action, spaces.MultiDiscrete)


def puzzle_pieces(env: VectorEnv[Any, Any, Any]) -> int:
    """Pieces of a puzzle in such an environment."""
    return int((env.single_action_space.shape or (0,))[0])


def is_denoising(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether the environment's states are samples that are denoised."""
    space = env.single_observation_space
    return isinstance(space, spaces.Dict) and {"sample", "timestep", "prompt"} <= set(space.spaces)
