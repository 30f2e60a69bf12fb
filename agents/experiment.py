"""One training run from names alone: environment, policy, agent, evaluation, alarms, checkpoints, figure, report."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .agent import AgentConfig
from .alarms import Alarms
from .build import make_env, make_policy
from .callbacks import CheckpointCallback, EvaluationCallback, ProgressBar, newest_checkpoint
from .images import PAIRS, grid_path, save_before_after
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
        agent: one of those that `aligngym list agents` shows.
        model: language model: stories (embedded), smollm2-135m (after `aligngym assets smollm2`), a folder or a hub
            name; it also gives the environment its tokenizer. Image model: emoji-diffusion or emoji-flow (embedded), or
            a folder of that format; diffusers' pipelines are trained from Python. None: the environment's own, a small
            network where it has none.
        reward: a reward's name, its JSON form, or a .json file with that. None: the environment's own.
        prompts: training prompts: a JSONL, JSON, CSV or Parquet file. None: the embedded ones.
        eval_prompts: held-out prompts. None: the embedded ones, or, where prompts is given, those themselves.
        max_new_tokens: tokens of a completion at most. None: the environment's default.
        env_options: further arguments of the environment, as JSON: '{"max_prompt_tokens": 128}'.
        policy_options: arguments of an image policy, as JSON: '{"guidance": 3, "sampler": "dance_sde"}'.
        episodes: how many episodes, gradient updates or environment steps, as the agent counts; a resumed run goes on
            up to this number. So for eval_every and checkpoint_every.
        seed: of initial weights, prompts and actions: the same seed gives the same run.
        out: folder of the run. None: a new one in runs/.
        eval_episodes: held-out episodes in an evaluation.
        eval_every: training episodes between evaluations. 0: an eighth of all.
        checkpoint_every: training episodes between checkpoints. 0: an eighth of all.
        kl_limit: nats an episode from the reference policy at which an alarm is raised. None: 50, and no limit for
            denoising, whose thousands of dimensions go further.
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
    kl_limit: float | None = None
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
        rows = cls.config_class.from_dict(read_run(folder)[1]).rows
        agent = cls.load(checkpoint, make_env(experiment, rows), config=config, device=device, run_folder=folder)
        if agent.episodes >= experiment.episodes:
            raise ValueError(
                f"{checkpoint} has seen {agent.episodes} {agent.unit} already: give a larger episodes to go on"
            )
    else:
        env = make_env(experiment, (config or cls.config_class()).rows)
        policy = make_policy(experiment, env, value=cls.needs_values)
        folder = new_folder(experiment)
        agent = cls(env, policy, config, seed=experiment.seed, device=device, folder=folder)
        values = {"experiment": dataclasses.asdict(experiment), "config": agent.config.to_dict()}
        (folder / RUN_FILE).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    set_threads(agent.policy, experiment.threads)
    eighth = max(1, experiment.episodes // 8)
    kl_limit = experiment.kl_limit or (math.inf if is_denoising(agent.env) else 50.0)
    evaluation = make_env(experiment, min(experiment.eval_episodes, 128), split="eval")
    with closing(ProgressBar()) as bar:
        watch = EvaluationCallback(evaluation, experiment.eval_episodes, experiment.eval_every or eighth)
        callbacks = [
            bar,
            watch,
            Alarms(kl_limit=kl_limit),
            CheckpointCallback(experiment.checkpoint_every or eighth, keep=1),
        ]
        agent.learn(experiment.episodes - agent.episodes, callbacks)
    before, after = (grid_path(folder, row["episodes"]) for row in (watch.history[0], watch.history[-1]))
    if before.exists() and after.exists():
        save_before_after(before, after, folder / PAIRS)
    return Report.of(
        folder, plot_learning([folder], folder / "learning.png", f"{experiment.agent.upper()} on {experiment.env}")
    )


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


def new_folder(experiment: Experiment) -> Path:
    """Make the run's folder, ``out`` or the first free name in ``runs/``.

    Raises:
        ValueError: if ``out`` already holds a run that began, or something else.
    """
    if experiment.out is not None:
        folder = Path(experiment.out)
        # A run that was stopped before its first checkpoint leaves nothing but its description.
        if folder.exists() and (not folder.is_dir() or any(p.name != RUN_FILE for p in folder.iterdir())):
            raise ValueError(
                f"{folder} is not empty: give another folder, or resume the run in it with --resume {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name = f"{file_name(experiment.env)}-{experiment.agent}-seed{experiment.seed}"
    for number in range(1, 10_000):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ValueError(f"runs/ has no free name for {name}: give out")


def file_name(env: str) -> str:
    """An environment's id as part of a file's name."""
    return env.replace("/", "-").replace(":", "-")


def find_checkpoint(path: str | Path) -> tuple[Path, Path]:
    """The checkpoint that ``path`` is, or the newest of the run that it is, and the folder of the run.

    Raises:
        ValueError: if it is neither.
    """
    path = Path(path)
    if (path / RUN_FILE).is_file():
        newest = newest_checkpoint(path)
        if newest is None:
            raise ValueError(f"{path} has no checkpoint yet, so there is nothing to resume or evaluate: start it again")
        return newest, path
    run = next((p for p in path.resolve().parents if (p / RUN_FILE).is_file()), None)
    if run is None or not path.is_dir():
        raise ValueError(f"{path} is no folder of a run (it has no {RUN_FILE}) and no checkpoint in one")
    return path, run


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
