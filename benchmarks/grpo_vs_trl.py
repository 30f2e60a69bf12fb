"""GRPO end to end: ours against TRL 1.16, same model, prompts in the same order, reward, sampler, loss and optimiser.

    python benchmarks/grpo_vs_trl.py [--quick] [--pairs 5] [--updates 40] [--kl-coef 0.0]

TRL lives in an environment of its own, made on first use in ``.bench/trl`` (or where ``$BENCH_TRL_VENV`` says). Round
``i`` runs both arms with seed ``i``. Both run in float32 without gradient checkpointing, one optimiser step a batch on
policy, AdamW, a constant learning rate. Timing starts when everything is loaded. Rewards of every update go to
``.bench/grpo_vs_trl.csv`` and the learning curves, which must overlap, to ``.bench/grpo_vs_trl.png``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pairs import RESULTS, ROOT, Run, Stopwatch, alternate, report, table

ARMS = ("ours", "trl", "trl-static")  # the last: TRL with Hugging Face's static cache


def trl_python() -> str:
    """The interpreter of TRL's environment, which is made if it is not there."""
    folder = Path(os.environ.get("BENCH_TRL_VENV", RESULTS / "trl"))
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing TRL into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
    have = [python, "-c", "import trl, torch, gymnasium, vaderSentiment, aligngym"]
    if subprocess.run(have, capture_output=True, check=False).returncode:
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        # torch first: resolved with the rest, it may come as the build for GPUs, which is gigabytes larger.
        for wanted in (["torch==2.13.0"], ["trl==1.16.*", "gymnasium", "vaderSentiment"], ["--no-deps", "-e", ROOT]):
            subprocess.run([*install, *wanted], check=True)
    return str(python)


def task(args: argparse.Namespace) -> tuple[list[str], list[int], Any]:
    """All prompts, which of them each update uses (the same for both arms), and the reward."""
    import numpy as np

    from aligngym.assets import prompts_path
    from aligngym.rewards import as_reward

    prompts = [json.loads(line)["prompt"] for line in prompts_path("train").read_text().splitlines()]
    order = np.random.default_rng(args.seed).permutation(len(prompts))
    groups = args.batch // args.group
    return prompts, np.resize(order, args.updates * groups).tolist(), as_reward("story_sentiment")


def timed(owner: Any, method: str, watch: Stopwatch) -> None:
    """Add the time spent in ``owner.method`` to ``watch``."""
    call: Callable[..., Any] = getattr(owner, method)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with watch:
            return call(*args, **kwargs)

    setattr(owner, method, wrapper)


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Train with this package."""
    import dataclasses

    import gymnasium as gym
    import torch

    from aligngym.agents.callbacks import Callback
    from aligngym.agents.grpo import GRPO, GRPOConfig
    from aligngym.agents.policies.lm import LMPolicy

    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    prompts, schedule, reward = task(args)
    groups = args.batch // args.group
    curve: list[float] = []

    class SamePrompts(GRPO):
        """Takes its prompts from the schedule."""

        def collect(self) -> Any:
            chosen = schedule[self.iteration * groups : (self.iteration + 1) * groups]
            index = [i for i in chosen for _ in range(args.group)]
            noise = self.row_noise(args.batch)
            episodes = self.env.rollout(self.policy, noise=noise, options={"prompt_index": index})  # type: ignore[attr-defined]
            return dataclasses.replace(episodes, group=torch.arange(groups).repeat_interleave(args.group))

    class Curve(Callback):
        """Keeps the mean reward of every update."""

        def on_iteration(self, agent: Any, episodes: Any, metrics: Any) -> bool:
            curve.append(episodes.returns.mean().item())
            return True

    config = GRPOConfig(
        episodes_per_iteration=args.batch,
        group_size=args.group,
        learning_rate=args.learning_rate,
        kl_coef=args.kl_coef,
        reference="initial" if args.kl_coef else "none",
        micro_batch_size=args.micro,
    )
    env = gym.make_vec("LLMAlign-v0", num_envs=args.batch, prompts=prompts, reward=reward, max_new_tokens=args.tokens)
    agent = SamePrompts(env, LMPolicy.from_pretrained("stories"), config, seed=args.seed)
    sampling, updating, total = Stopwatch(), Stopwatch(), Stopwatch()
    timed(agent, "collect", sampling)
    timed(agent, "update", updating)
    with total:
        agent.learn(args.updates * args.batch, Curve())
    return result(args, total, curve, sampling, updating)


def trl(args: argparse.Namespace, cache: str | None = None) -> dict[str, Any]:
    """Train with TRL."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from aligngym.assets import model_path
    from aligngym.rewards import to_trl

    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    prompts, schedule, reward = task(args)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            seed=args.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=args.micro or args.batch,
            gradient_accumulation_steps=args.batch // (args.micro or args.batch),
            num_generations=args.group,
            max_completion_length=args.tokens,
            max_steps=args.updates,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant",
            beta=args.kl_coef,
            loss_type="grpo",
            scale_rewards="group",
            epsilon=0.2,
            num_iterations=1,
            temperature=1.0,
            max_grad_norm=1.0,
            weight_decay=0.0,
            shuffle_dataset=False,
            cache_implementation=cache,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_path("stories"), dtype=torch.float32),
            reward_funcs=[to_trl(reward)],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [prompts[i] for i in schedule]}),
            processing_class=AutoTokenizer.from_pretrained(model_path("stories"), padding_side="left"),
        )
        sampling, updating, total = Stopwatch(), Stopwatch(), Stopwatch()
        timed(trainer, "_generate_and_score_completions", sampling)
        timed(trainer, "training_step", updating)
        with total:
            trainer.train()
        updating.wall, updating.cpu = updating.wall - sampling.wall, updating.cpu - sampling.cpu  # the first is in it
        curve = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    return result(args, total, curve, sampling, updating)


def result(
    args: argparse.Namespace, total: Stopwatch, curve: list[float], sampling: Stopwatch, updating: Stopwatch
) -> dict[str, Any]:
    """The numbers of one run."""
    assert len(curve) == args.updates, f"{len(curve)} rewards for {args.updates} updates"
    last = curve[-max(1, len(curve) // 4) :]
    return {
        "wall": total.wall, "cpu": total.cpu, "samples_per_second": args.updates * args.batch / total.wall,
        "sampling": sampling.cpu / args.updates, "updating": updating.cpu / args.updates,
        "first": curve[0], "last": sum(last) / len(last), "curve": curve,
    }  # fmt: skip


def curves(runs: dict[str, list[Run]], name: str) -> str:
    """Write CSV and PNG; say how far the arms' rewards are apart over the last quarter, with its standard error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    good = {arm: [r.numbers["curve"] for r in done if r.error is None] for arm, done in runs.items()}
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", "update", "reward"])
        for arm, done in runs.items():
            for seed, run in enumerate(done):
                writer.writerows([arm, seed, i, x] for i, x in enumerate(run.numbers.get("curve", ())))  # type: ignore[arg-type]
    figure, axes = plt.subplots(figsize=(6, 4))
    for arm, found in good.items():
        if found:
            values = np.array(found)
            mean, error = values.mean(0), values.std(0, ddof=min(1, len(values) - 1)) / len(values) ** 0.5
            (line,) = axes.plot(mean, label=f"{arm} ({len(values)} seeds)")
            axes.fill_between(range(len(mean)), mean - error, mean + error, color=line.get_color(), alpha=0.25)
    axes.set(xlabel="update", ylabel="mean reward of the batch")
    axes.legend()
    figure.savefig(RESULTS / f"{name}.png", dpi=120, bbox_inches="tight")
    both = [(a.numbers["last"], b.numbers["last"]) for a, b in zip(runs["ours"], runs["trl"], strict=True)
            if a.error is None and b.error is None]  # fmt: skip
    if len(both) < 2:
        return "Too few rounds to compare learning curves."
    gap = np.array([a - b for a, b in both])
    error = gap.std(ddof=1) / len(gap) ** 0.5
    what = "Reward over the last quarter of the updates, ours - trl"
    return f"{what}: {gap.mean():+.4f} +- {error:.4f} (standard error, {len(gap)} seeds)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair of two small updates: does it run?")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64, help="episodes an update")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--micro", type=int, default=0, help="episodes a backward pass, 0: all")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--kl-coef", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        run = ours(args) if args.arm == "ours" else trl(args, "static" if args.arm == "trl-static" else None)
        print(json.dumps(run))
        return
    if args.quick:
        args.pairs, args.updates, args.batch, args.group, args.tokens = 1, 2, 8, 4, 8
    other = trl_python()
    names = ("updates", "batch", "group", "tokens", "micro", "learning-rate", "kl-coef")
    same = [x for n in names for x in (f"--{n}", str(getattr(args, n.replace("-", "_"))))]
    commands = {a: [sys.executable if a == "ours" else other, __file__, *same, "--arm", a] for a in args.arms}
    runs = alternate(commands, args.pairs, threads=args.threads, vary="--seed")
    name = "grpo_vs_trl" + (f"_kl{args.kl_coef:g}" if args.kl_coef else "")
    columns = {
        "samples_per_second": "samples/s", "sampling": "sampling, CPU s", "updating": "updating, CPU s",
        "first": "first reward", "last": "last reward", "peak_mb": "peak MB",
    }  # fmt: skip
    text = table(runs, "ours", columns, {"wall": "wall", "cpu": "CPU", "peak_mb": "memory"})
    what = f"{args.updates} updates of {args.batch // args.group} x {args.group} episodes of {args.tokens} tokens"
    overlap = curves(runs, name) if {"ours", "trl"} <= set(runs) else ""
    report(name, f"## GRPO: {what}, kl_coef {args.kl_coef:g}, {args.threads} thread(s)\n\n{text}\n\n{overlap}")


if __name__ == "__main__":
    main()
