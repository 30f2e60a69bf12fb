"""One training run from names alone: environment, policy, agent, evaluation, alarms, checkpoints, figure, report."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from ..assets import model_path
from .agent import Agent, AgentConfig
from .alarms import Alarms
from .callbacks import CheckpointCallback, EvaluationCallback, ProgressBar, checkpoints
from .checkpoint import STATE, load_json
from .grpo import GRPO, GRPOConfig
from .plots import plot_learning
from .policies import is_denoising
from .policies.policy import Policy, RowNoise
from .registry import agent_class
from .report import Report
from .rollouts import collect

SMALL = 20_000_000  # parameters below which one thread is faster than several
RUN_FILE = "run.json"
# What may change when a run is resumed; everything else would make it another run.
FREE = {"episodes", "out", "eval_episodes", "eval_every", "checkpoint_every", "kl_limit", "device", "threads"}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained on what, and how it is watched.

    Attributes:
        env: environment id.
        agent: grpo or ppo.
        model: language model: stories (embedded), smollm2-135m (after `aligngym assets smollm2`), a folder or a hub
            name; it also gives the environment its tokenizer. Image model: emoji-diffusion, emoji-flow (embedded), or
            a diffusers pipeline's folder or hub name. None: the environment's own, a small network where it has none.
        reward: a reward's name, its JSON form, or a .json file with that. None: the environment's own.
        prompts: training prompts: a JSONL, JSON, CSV or Parquet file. None: the embedded story openings.
        eval_prompts: held-out prompts. None: the embedded ones, or, where prompts is given, those themselves.
        max_new_tokens: tokens of a completion at most. None: the environment's default.
        env_options: further arguments of the environment, as JSON: '{"max_prompt_tokens": 128}'.
        policy_options: arguments of an image policy, as JSON: '{"guidance": 3, "sampler": "dance_sde"}'.
        episodes: episodes in all; a resumed run goes on up to this number.
        seed: of initial weights, prompts and actions: the same seed gives the same run.
        out: folder of the run. None: a new one in runs/.
        eval_episodes: held-out episodes in an evaluation.
        eval_every: training episodes between evaluations. 0: an eighth of all.
        checkpoint_every: training episodes between checkpoints. 0: an eighth of all.
        kl_limit: nats an episode from the reference policy at which an alarm is raised.
        temperature: of sampling, in training and evaluation.
        lora_rank: train low-rank adapters of this rank instead of all weights. 0: all weights.
        gradient_checkpointing: less memory for about a third more time.
        device: cpu, cuda, or auto.
        threads: of torch. 0: one for small models, where more are slower, else torch's choice.
    """

    env: str = "LLMAlign-v0"
    agent: str = "grpo"
    model: str | None = None
    reward: str | None = None
    prompts: str | None = None
    eval_prompts: str | None = None
    max_new_tokens: int | None = None
    env_options: str = "{}"
    policy_options: str = "{}"
    episodes: int = 2048
    seed: int = 0
    out: str | None = None
    eval_episodes: int = 256
    eval_every: int = 0
    checkpoint_every: int = 0
    kl_limit: float = 50.0
    temperature: float = 1.0
    lora_rank: int = 0
    gradient_checkpointing: bool = False
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        for name, least in {
            "episodes": 1,
            "eval_episodes": 2,
            "eval_every": 0,
            "checkpoint_every": 0,
            "lora_rank": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")


def train(experiment: Experiment, config: AgentConfig | None = None, *, resume: str | Path | None = None) -> Report:
    """Train, evaluate before, during and after, draw the curve, and report.

    Sets torch's number of threads, see ``Experiment.threads``.

    Args:
        experiment: what.
        config: the agent's options; None takes its defaults, or, on resuming, the saved ones.
        resume: the folder of a run, which goes on from its newest checkpoint; or one of its checkpoints.

    Raises:
        ValueError: for an unknown name, a folder that already holds a run, or on resuming another experiment or config.
        KeyboardInterrupt: after Ctrl-C, once the iteration is finished and saved.
    """
    cls = agent_class(experiment.agent)
    if config is None and resume is None:
        config = cls.config_class()
    device = pick_device(experiment.device)
    if resume is not None:
        checkpoint, folder = find_checkpoint(resume)
        check_resumable(experiment, read_run(folder)[0], folder)
        rows = read_run(folder)[1].get("episodes_per_iteration", 16)
        agent = cls.load(checkpoint, make_env(experiment, rows), config=config, device=device, run_folder=folder)
        if agent.episodes >= experiment.episodes:
            raise ValueError(
                f"{checkpoint} has seen {agent.episodes} episodes already: give a larger episodes to go on"
            )
    else:
        env = make_env(experiment, getattr(config, "episodes_per_iteration", 16))
        policy = make_policy(experiment, env, value=cls.needs_values)
        folder = new_folder(experiment)
        agent = cls(env, policy, config, seed=experiment.seed, device=device, folder=folder)
        values = {"experiment": dataclasses.asdict(experiment), "config": agent.config.to_dict()}
        (folder / RUN_FILE).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    set_threads(agent.policy, experiment.threads)
    eighth = max(1, experiment.episodes // 8)
    evaluation = make_env(experiment, min(experiment.eval_episodes, 128), split="eval")
    with closing(ProgressBar()) as bar:
        callbacks = [
            bar,
            EvaluationCallback(evaluation, experiment.eval_episodes, experiment.eval_every or eighth),
            Alarms(kl_limit=experiment.kl_limit),
            CheckpointCallback(experiment.checkpoint_every or eighth, keep=1),
        ]
        agent.learn(experiment.episodes - agent.episodes, callbacks)
    return Report.of(
        folder, plot_learning([folder], folder / "learning.png", f"{experiment.agent.upper()} on {experiment.env}")
    )


def open_agent(target: str | Path, changes: Mapping[str, Any], *, device: str = "auto") -> tuple[Agent, Experiment]:
    """An agent to evaluate, and the experiment that names its environment.

    Args:
        target: a run (its newest checkpoint counts), a checkpoint in one, or the name of a model.
        changes: fields of the experiment to replace.
        device: cpu, cuda, or auto.
    """
    if (Path(target) / RUN_FILE).is_file() or (Path(target) / STATE).is_file():
        checkpoint, folder = find_checkpoint(target)
        saved, values = read_run(folder)
        rows = values.get("episodes_per_iteration", 16)
        agent = agent_class(saved.agent).load(checkpoint, make_env(saved, rows), device=pick_device(device))
        return agent, dataclasses.replace(saved, **changes)
    experiment = dataclasses.replace(Experiment(model=str(target)), **changes)
    env = make_env(experiment, 2, split="eval")
    config = GRPOConfig(episodes_per_iteration=2, group_size=2, reference="none", kl_coef=0.0)
    return GRPO(env, make_policy(experiment, env), config, device=pick_device(device)), experiment


def best_of_n_returns(experiment: Experiment, prompts: int, n: int, *, seed: int = 1_000_000) -> NDArray[np.float64]:
    """Returns ``[prompts, n]`` of the untrained policy, ``n`` episodes from each held-out state; NaN where invalid.

    The states are the first ``prompts`` of those that :meth:`Agent.evaluate` plays.
    """
    if prompts < 1 or n < 1:
        raise ValueError(f"prompts={prompts}, n={n}: must be at least 1")
    env = make_env(experiment, n * math.gcd(prompts, 8), split="eval")
    policy = make_policy(experiment, env)
    if policy is None:
        raise ValueError(f"{experiment.env} has no tokens: best-of-N needs a language model to draw from")
    policy.to(pick_device(experiment.device))
    set_threads(policy, experiment.threads)
    seeds = np.repeat(np.arange(prompts) + seed, n)
    noise = RowNoise((np.arange(prompts * n) + seed + 2**62).tolist())  # not the seeds of states, nor of evaluation's
    episodes = collect(env, policy, seeds=seeds.tolist(), noise=noise, group=torch.from_numpy(seeds))
    return episodes.returns.double().cpu().numpy().reshape(prompts, n)


def pick_device(name: str) -> str:
    """``auto`` is the GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def set_threads(policy: Policy, threads: int) -> None:
    """Give torch ``threads``; 0 is one thread for a small policy, else torch's choice."""
    if threads or sum(p.numel() for p in policy.parameters()) < SMALL:
        torch.set_num_threads(threads or 1)


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
    options = {k: v for k, v in options.items() if v is not None} | given
    if unknown := [name for name in options if name not in accepted]:
        raise ValueError(
            f"{experiment.env} takes no {', '.join(unknown)}; it takes: {', '.join(accepted) or 'no options'}"
        )
    if split != "train" and "split" in accepted:
        options.setdefault("split", split)
    if hasattr(environment_class(spec), "rollout"):
        return gym.make_vec(spec, num_envs=rows, vectorization_mode="vector_entry_point", **options)
    # Others' batched environments take one seed for all rows; groups need one a row.
    return gym.make_vec(spec, num_envs=math.gcd(rows, 16), vectorization_mode="sync", **options)


def environment_class(spec: EnvSpec) -> Any:
    """What makes the environment: its batched class where that plays whole episodes, else the single one."""
    entries = [load_env_creator(e) if isinstance(e, str) else e for e in (spec.vector_entry_point, spec.entry_point)]
    return entries[0] if hasattr(entries[0], "rollout") else entries[1]


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
    """The model that the experiment names; None for environments of neither text nor samples, whose agent builds its own.

    Raises:
        ValueError: if there is no such model, an option does not fit it, or the environment needs none.
    """
    space, options = env.single_observation_space, parse_options(experiment.policy_options, "policy_options")
    if is_denoising(env):
        return _denoiser(experiment, env, options, value)
    if options:
        raise ValueError(f"policy_options are for image policies, but {experiment.env} has no samples: leave it out")
    if not (isinstance(space, gym.spaces.Dict) and "input_ids" in space.spaces):
        if experiment.model is not None:
            raise ValueError(
                f"model={experiment.model!r} names a model, but {experiment.env} has neither tokens nor samples: leave it out"
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


def new_folder(experiment: Experiment) -> Path:
    """Make the run's folder, ``out`` or the first free name in ``runs/``.

    Raises:
        ValueError: if ``out`` already holds a run.
    """
    if experiment.out is not None:
        folder = Path(experiment.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"{folder} is not empty: give another folder, or resume the run in it with --resume {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name = f"{experiment.env.replace('/', '-').replace(':', '-')}-{experiment.agent}-seed{experiment.seed}"
    for number in range(1, 10_000):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ValueError(f"runs/ has no free name for {name}: give out")


def find_checkpoint(path: str | Path) -> tuple[Path, Path]:
    """The checkpoint that ``path`` is, or the newest of the run that it is, and the folder of the run.

    Raises:
        ValueError: if it is neither.
    """
    path = Path(path)
    if (path / RUN_FILE).is_file():
        saved = [p for p in (path / "last", *checkpoints(path / "checkpoints")) if (p / STATE).is_file()]
        if not saved:
            raise ValueError(f"{path} has no checkpoint yet, so there is nothing to resume or evaluate: start it again")
        return max(saved, key=episodes_seen), path
    run = next((p for p in path.resolve().parents if (p / RUN_FILE).is_file()), None)
    if run is None or not path.is_dir():
        raise ValueError(f"{path} is no folder of a run (it has no {RUN_FILE}) and no checkpoint in one")
    return path, run


def episodes_seen(checkpoint: Path) -> int:
    """Training episodes before a checkpoint; -1 where its state cannot be read, which loading it would report."""
    try:
        return int(load_json((checkpoint / STATE).read_text("utf-8"))["episodes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{checkpoint} cannot be read ({error})", stacklevel=2)
        return -1


def read_run(folder: Path) -> tuple[Experiment, dict[str, Any]]:
    """The experiment and the config (as a dictionary) of a run.

    Raises:
        ValueError: if its file is damaged or of another version.
    """
    try:
        values = json.loads((folder / RUN_FILE).read_text("utf-8"))
        return Experiment(**values["experiment"]), dict(values["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RUN_FILE} cannot be read: {error}") from error


def check_resumable(given: Experiment, saved: Experiment, folder: Path) -> None:
    """Raise a ValueError if a resumed run would be another one."""
    pairs = ((f.name, getattr(saved, f.name), getattr(given, f.name)) for f in dataclasses.fields(Experiment))
    differ = [f"{n} (saved {a!r}, given {b!r})" for n, a, b in pairs if n not in FREE and a != b]
    if differ:
        raise ValueError(
            f"{folder} was run with other settings: {', '.join(differ)}. Resume with the saved ones, or start a new run"
        )
