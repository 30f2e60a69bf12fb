"""The environment and the policy that an experiment names."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from ..assets import model_path
from .environment import environment_class, make_from_spec
from .policies import answer_points, is_denoising, is_grounding, is_jigsaw, puzzle_pieces
from .policies.policy import Policy
from .registry import agent_class

if TYPE_CHECKING:
    from .experiment import Experiment


def make_env(experiment: Experiment, rows: int, split: str = "train") -> VectorEnv[Any, Any, Any]:
    """The experiment's environment.

    Args:
        experiment: names it, and those of its arguments that are not the default.
        rows: episodes side by side; simulators run at most 16, a divisor of it.
        split: ``"train"`` or ``"eval"``, for environments with held-out states.

    Raises:
        ValueError: if the id is unknown, or the environment does not take an option that the experiment sets.
        FileNotFoundError: if the model was not fetched yet.
    """
    spec, options = _named_environment(experiment, split)
    return make_from_spec(spec, rows, options)


def make_filmed_env(experiment: Experiment) -> gym.Env[Any, Any] | None:
    """One copy of the experiment's environment that renders arrays, for held-out states; None where it cannot."""
    spec, options = _named_environment(experiment, "eval")
    cls = environment_class(spec)
    if hasattr(cls, "rollout") or "rgb_array" not in cls.metadata["render_modes"]:
        return None
    return gym.make(spec, render_mode="rgb_array", **options)


def _named_environment(experiment: Experiment, split: str) -> tuple[EnvSpec, dict[str, Any]]:
    """The environment's entry in the registry, and the arguments to make it with."""
    try:
        spec = gym.spec(experiment.env)
    except gym.error.Error as error:
        raise ValueError(f"{error} `aligngym list envs` shows this package's; others are Gymnasium's") from error
    if experiment.model is not None:
        model_path(experiment.model)  # says what to do where the model was not fetched yet
    accepted = environment_parameters(spec)
    options: dict[str, Any] = {
        "reward": parse_reward(experiment.reward),
        "prompts": experiment.prompts if split == "train" else experiment.eval_prompts or experiment.prompts,
        "max_new_tokens": experiment.max_new_tokens,
        "tokenizer": experiment.model if "tokenizer" in accepted else None,
    }
    given = parse_options(experiment.env_options, "env_options")
    suited = agent_class(experiment.agent).environment_options(split)
    options = suited | {k: v for k, v in options.items() if v is not None} | given
    if unknown := [name for name in options if name not in accepted]:
        raise ValueError(
            f"{experiment.env} takes no {', '.join(unknown)}; it takes: {', '.join(accepted) or 'no options'}"
        )
    if split != "train" and "split" in accepted:
        options.setdefault("split", split)
    return spec, options


def environment_parameters(spec: EnvSpec) -> list[str]:
    """Names of the arguments that an environment is made with, its number of rows left out."""
    parameters = inspect.signature(environment_class(spec)).parameters.values()
    named = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return [name for name in named if name not in ("num_envs", "render_mode")]


def parse_reward(text: str | None) -> Any:
    """A reward's name, or its JSON form from the text or a file."""
    if text is None or not (text.lstrip().startswith("{") or text.endswith(".json")):
        return text
    if text.endswith(".json"):
        text = Path(text).read_text("utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"reward is no JSON: {error}") from error


def parse_options(text: str, name: str) -> dict[str, Any]:
    """The options in the field ``name`` of an experiment, from JSON."""
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is {text!r}, which is no JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{name} is {text!r}, expected a JSON object such as '{{\"guidance\": 3}}'")
    return options


def make_policy(experiment: Experiment, env: VectorEnv[Any, Any, Any], *, value: bool = False) -> Policy | None:
    """The model that the experiment names; None where there are neither tokens nor samples: the agent builds its own.

    Raises:
        ValueError: if there is no such model, an option does not fit it, or the environment needs none.
    """
    space, options = env.single_observation_space, parse_options(experiment.policy_options, "policy_options")
    if is_denoising(env):
        return _denoiser(experiment, env, options, value)
    if is_grounding(env):
        return _clicker(experiment, env, options, value)
    if is_jigsaw(env):
        return _jigsaw(experiment, env, options, value)
    if options:
        raise ValueError(f"policy_options are for image policies, but {experiment.env} has no samples: leave it out")
    if not (isinstance(space, gym.spaces.Dict) and "input_ids" in space.spaces):
        if experiment.model is not None:
            raise ValueError(
                f"model={experiment.model!r} names a model, but {experiment.env} has no tokens or samples: leave it out"
            )
        return None
    return _language_model(experiment, env, value)


def _denoiser(experiment: Experiment, env: VectorEnv[Any, Any, Any], options: dict[str, Any], value: bool) -> Policy:
    from .policies.denoiser_policy import DenoiserPolicy

    unwrapped: Any = env.unwrapped
    options = {"num_steps": unwrapped.max_steps, "value_head": value, "critic_seed": experiment.seed, **options}
    try:
        policy = DenoiserPolicy.from_pretrained(experiment.model or unwrapped.model, **options)
    except TypeError as error:
        raise ValueError(f"policy_options={experiment.policy_options}: {error}") from error
    if policy.denoiser.shape != unwrapped.shape:
        raise ValueError(
            f"the model denoises samples of shape {policy.denoiser.shape}, the environment's have {unwrapped.shape}: "
            'give the environment "shape" in env_options'
        )
    return policy


def _clicker(experiment: Experiment, env: VectorEnv[Any, Any, Any], options: dict[str, Any], value: bool) -> Policy:
    from .policies.clicker import ClickerPolicy

    points = answer_points(env)
    options = {"num_points": points, "value_head": value, **options}
    if options["num_points"] != points:
        raise ValueError(f"num_points={options['num_points']} in policy_options, but {experiment.env} takes {points}")
    try:
        return ClickerPolicy.from_pretrained(experiment.model or "gui-clicker", **options)
    except TypeError as error:
        raise ValueError(f"policy_options={experiment.policy_options}: {error}") from error


def _jigsaw(experiment: Experiment, env: VectorEnv[Any, Any, Any], options: dict[str, Any], value: bool) -> Policy:
    from .policies.jigsaw import JigsawPolicy

    options = {"seed": experiment.seed, "value_head": value, **options}
    if "num_pieces" in options:
        raise ValueError(f"policy_options has num_pieces, but {experiment.env} says how many there are: leave it out")
    try:
        return JigsawPolicy.from_pretrained(experiment.model or "gui-clicker", puzzle_pieces(env), **options)
    except TypeError as error:
        raise ValueError(f"policy_options={experiment.policy_options}: {error}") from error


def _language_model(experiment: Experiment, env: VectorEnv[Any, Any, Any], value: bool) -> Policy:
    from transformers.utils import logging

    from .policies.decoding import Sampling
    from .policies.lm import LMPolicy, LoRA

    name = experiment.model or "stories"
    logging.disable_progress_bar()  # one more bar, for what takes a moment
    try:
        policy = LMPolicy.from_pretrained(
            name,
            value_head=value,
            sampling=Sampling(temperature=experiment.temperature),
            lora=LoRA(rank=experiment.lora_rank) if experiment.lora_rank else None,
            gradient_checkpointing=experiment.gradient_checkpointing,
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"model={name!r} cannot be loaded from a folder or the hub: {error}") from error
    space: Any = env.single_observation_space
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    longest = (space["input_ids"].shape or (0,))[0]
    if context is not None and longest > context:
        raise ValueError(
            f"prompt and completion take up to {longest} tokens, but the context of {name!r} has {context}: lower "
            "max_new_tokens, or max_prompt_tokens in env_options"
        )
    return policy
