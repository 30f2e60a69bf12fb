"""The command ``aligngym``. Heavy imports wait inside the commands, so that help and lists come at once."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from .catalogue import assets, data, list_, rows
from .reproduce.command import reproduce

if TYPE_CHECKING:
    from .agents.experiment import Experiment

TRAIN_HELP = """Train an agent on an environment; print evaluation reward before and after, samples, and a plot's path.

Examples:
  aligngym train LLMAlign-v0 --agent grpo --episodes 4096 --out runs/first
  aligngym train LLMAlign-v0 --agent ppo --reward sentiment --learning-rate 1e-4
  aligngym train DiffusionAlign-v0 --agent ddpo --reward compressibility
  aligngym train FlowAlign-v0 --agent grpo --reward image_classifier:dog --policy-options '{"guidance": 2}'
  aligngym train --resume runs/first --episodes 8192

The config options are the chosen agent's: `aligngym train --agent ppo --help` shows PPO's. Ctrl-C finishes the
iteration, saves, and says where; --resume then goes on as if nothing had happened, with the options of the run."""


def train(args: Sequence[str]) -> None:
    """Parse the options of ``aligngym train``, which depend on the agent and the run that they name, and train."""
    from .agents.experiment import Experiment
    from .agents.experiment import train as run
    from .agents.registry import agent_class

    saved, values, resume = _early_options(args)
    agent = agent_class(saved.agent)
    config_class = agent.config_class
    config = config_class.from_dict(values) if values else config_class()
    options = dataclasses.make_dataclass(
        "Options",
        [
            ("env", Annotated[str, Positional, arg(metavar="ENV")]),
            ("resume", str | None),
            ("config", OmitArgPrefixes[config_class]),  # type: ignore[misc,valid-type]
        ],
        bases=(Experiment,),
        namespace={"__doc__": (Experiment.__doc__ or "").replace(UNITS, agent.unit) + RESUME_HELP},
        frozen=True,
        kw_only=True,
    )
    default = options(**_fields(saved), resume=resume, config=config)
    given: Any = tyro.cli(options, args=args, default=default, prog="aligngym train", description=TRAIN_HELP)
    print(run(Experiment(**_fields(given)), given.config, resume=given.resume))


UNITS = "episodes, gradient updates or environment steps, as the agent counts"  # in Experiment's help
RESUME_HELP = "    resume: folder of a run to go on with from its newest checkpoint, or one of its checkpoints.\n    "


def _fields(experiment: Experiment) -> dict[str, Any]:
    from .agents.experiment import Experiment

    return {f.name: getattr(experiment, f.name) for f in dataclasses.fields(Experiment)}


def _early_options(args: Sequence[str]) -> tuple[Experiment, dict[str, Any], str | None]:
    """The defaults of all other options: those of the run to resume, if any, and its config."""
    from .agents.experiment import Experiment, find_checkpoint, read_run

    parser = argparse.ArgumentParser(prog="aligngym train", add_help=False, allow_abbrev=False)
    parser.add_argument("--agent")
    parser.add_argument("--resume")
    early, _ = parser.parse_known_args(args)
    if early.resume is None:
        return Experiment(agent=early.agent or Experiment.agent), {}, None
    saved, values = read_run(find_checkpoint(early.resume)[1])
    if early.agent not in (None, saved.agent):
        raise ValueError(f"{early.resume} is a run of {saved.agent}, not of {early.agent}: leave --agent out")
    return saved, values, early.resume


def evaluate(
    target: Annotated[str, Positional, arg(metavar="RUN|MODEL")],
    *,
    env: str | None = None,
    reward: str | None = None,
    prompts: str | None = None,
    max_new_tokens: int | None = None,
    env_options: str | None = None,
    policy_options: str | None = None,
    rl_guidance: float | None = None,
    episodes: int = 256,
    samples: int = 3,
    seed: int = 1_000_000,
    deterministic: bool = False,
    stochastic: bool = False,
    device: str = "auto",
    threads: int = 0,
) -> None:
    """Evaluate a run, one of its checkpoints, or a model that was not trained, on held-out prompts.

    Example: aligngym evaluate runs/first/best --episodes 512

    Example: aligngym evaluate stories --reward sentiment

    Example: aligngym evaluate runs/dogs --rl-guidance 2

    Args:
        target: folder of a run (its newest checkpoint counts) or of a checkpoint in it, or name of a model.
        env: environment id. None: the run's, or the model's.
        reward: a reward's name, its JSON form, or a .json file with that. None: the run's, or the environment's own.
        prompts: a JSONL, JSON, CSV or Parquet file. None: the run's held-out prompts, or the embedded ones.
        max_new_tokens: tokens of a completion at most. None: the run's, or the environment's default.
        env_options: further arguments of the environment, as JSON, put over the run's.
        policy_options: arguments of an image policy, as JSON, put over the run's: '{"guidance": 3}'.
        rl_guidance: of an image run: go this many times as far from the untrained network as training did.
        episodes: how many.
        samples: episodes to print.
        seed: of the first episode; equal seeds play equal states with equal random numbers.
        deterministic: take the likeliest actions.
        stochastic: draw actions also where evaluation is deterministic by default, as that of flow models is.
        device: cpu, cuda, or auto.
        threads: of torch. 0: one for small models, else torch's choice.
    """
    from .agents.play import evaluate as run

    changes = {
        "env": env, "reward": reward, "eval_prompts": prompts, "max_new_tokens": max_new_tokens,
        "env_options": env_options, "policy_options": policy_options,
    }  # fmt: skip
    mode = _mode(deterministic, stochastic)
    options: dict[str, Any] = {"device": device, "threads": threads, "rl_guidance": rl_guidance}
    print(run(target, changes, episodes=episodes, samples=samples, seed=seed, deterministic=mode, **options))


def play(
    env: Annotated[str | None, Positional, arg(metavar="[ENV]")] = None,
    *,
    model: str | None = None,
    prompt: str | None = None,
    reward: str | None = None,
    max_new_tokens: int | None = None,
    env_options: str | None = None,
    policy_options: str | None = None,
    rl_guidance: float | None = None,
    episodes: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
    stochastic: bool = False,
    out: str | None = None,
) -> None:
    """Print a few episodes and their rewards; of images, write a grid and a GIF of their denoising.

    Of screenshots, write PNGs with the instruction, the target's box and the points that were clicked. Of simulators,
    write a GIF an episode, with the rewards below the scene.

    Example: aligngym play GUIGrounding-v0 --out clicks

    Example: aligngym play ManipulationAlign-v0 --env-options '{"task": "drawer-open"}' --out films

    Example: aligngym play LLMAlign-v0 --model runs/first --prompt "Once upon a time, there was a cat."

    Example: aligngym play DiffusionAlign-v0 --prompt "dog face" --policy-options '{"guidance": 3}' --out dogs

    Example: aligngym play --model runs/dogs --rl-guidance 2

    Args:
        env: environment id. None: the run's, or the model's.
        model: name of a model, or folder of a run or of a checkpoint in one. None: the environment's own model.
        prompt: your own. None: held-out prompts.
        reward: a reward's name, its JSON form, or a .json file with that. None: the run's, or the environment's own.
        max_new_tokens: tokens of a completion at most. None: the run's, or the environment's default.
        env_options: further arguments of the environment, as JSON, put over the run's.
        policy_options: arguments of an image policy, as JSON, put over the run's: '{"guidance": 3}'.
        rl_guidance: of an image run: go this many times as far from the untrained network as training did.
        episodes: how many. None: 3, 16 images, or 9 screenshots.
        seed: of the first episode.
        deterministic: take the likeliest actions.
        stochastic: draw actions also where evaluation is deterministic by default, as that of flow models is.
        out: folder for pictures. None: play in the run's folder, or a folder in runs.
    """
    from .agents.build import parse_options
    from .agents.play import play as run

    if prompt is not None:
        env_options = json.dumps(parse_options(env_options or "{}", "env_options") | {"prompts": [prompt]})
    changes = {
        "env": env, "reward": reward, "max_new_tokens": max_new_tokens, "env_options": env_options,
        "policy_options": policy_options,
    }  # fmt: skip
    mode = _mode(deterministic, stochastic)
    print(run(model, changes, episodes=episodes, seed=seed, deterministic=mode, rl_guidance=rl_guidance, out=out))


def _mode(deterministic: bool, stochastic: bool) -> bool | None:
    """What evaluation is told; None leaves it to the policy."""
    if deterministic and stochastic:
        raise ValueError("--deterministic and --stochastic exclude each other: give one of them, or none")
    return True if deterministic else False if stochastic else None


def plot(
    runs: Annotated[tuple[str, ...], Positional, arg(metavar="RUN [RUN ...]")],
    *,
    out: str | None = None,
    best_of: int = 0,
    prompts: int = 64,
) -> None:
    """Draw the learning curves of runs, and their evaluations on the plane of reward against divergence.

    Example: aligngym plot runs/grpo runs/ppo --best-of 64 --out figures

    Args:
        runs: folders of runs.
        out: folder for learning.png and frontier.png. None: that of the first run.
        best_of: also draw best-of-N of the first run's untrained model, for N up to this; kept in best_of_n.csv of that
            run, where later plots find it. 0: only draw it if it is there.
        prompts: held-out prompts for best-of-N.
    """
    from .agents.plots import best_of_n, plot_frontier, plot_learning, read_best_of_n, read_evaluations, write_best_of_n

    if not runs:
        raise ValueError("give the folder of at least one run")
    folder, kept = Path(out or runs[0]), Path(runs[0]) / "best_of_n.csv"
    print(plot_learning(runs, folder / "learning.png"))
    if best_of:
        from .agents.experiment import best_of_n_returns, read_run

        write_best_of_n(kept, best_of_n(best_of_n_returns(read_run(Path(runs[0]))[0], prompts, best_of)))
    points = read_best_of_n(kept)
    if points or any("kl" in read_evaluations(run) for run in runs):
        print(plot_frontier(runs, folder / "frontier.png", points))


COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "list": (list_, "show environments, agents, models and rewards"),
    "train": (train, "train an agent; report evaluation reward before and after"),
    "evaluate": (evaluate, "evaluate a run, a checkpoint or a model on held-out prompts"),
    "play": (play, "print or draw a few episodes and their rewards"),
    "plot": (plot, "learning curves, and reward against divergence, as PNG"),
    "reproduce": (reproduce, "put a published claim to the test, against its baseline"),
    "assets": (assets, "fetch models"),
    "data": (data, "check a file of prompts"),
}
USAGE = "\n".join(
    [
        "usage: aligngym COMMAND ... [--debug]\n",
        *rows({name: text for name, (_, text) in COMMANDS.items()}),
        "\n`aligngym COMMAND --help` explains a command. A first run:\n",
        "  aligngym train LLMAlign-v0 --agent grpo --episodes 1024\n",
        "--debug shows the traceback of an error.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        exit code: 0, 1 if `data check` found something, 2 for bad input (one sentence on stderr), 130 after Ctrl-C, 141
        where nobody reads the output to its end, as after `| head`.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes what is left when it ends
        return 141


def _run(argv: Sequence[str] | None) -> int:
    """The command; whatever it raises is on stderr, but for output that nobody reads."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if args[0] not in COMMANDS:
        print(f"error: unknown command {args[0]!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            if args[0] == "train":
                train(args[1:])
            else:
                code = tyro.cli(COMMANDS[args[0]][0], args=args[1:], prog=f"aligngym {args[0]}")
                return int(code or 0)
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            print(flush=True)  # raises it again if the pipe is the output, and not that to a process which died
        if debug:
            traceback.print_exc()
        else:
            print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2
    return 0


def _sentence(error: Exception) -> str:
    """An error on one line; one of a kind that bad input does not raise is named, with what to do about it."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError | FloatingPointError | RuntimeError | gym.error.Error):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
