"""Denoising: sampling against diffusers' own loop of network and ``scheduler.step``, the update against a DDPO loop.

    python benchmarks/denoising.py [--quick] [--pairs 5] [--rows 32]

All arms have the embedded networks, the prompts, the number of steps and rows. Sampling: 20 DDIM steps with noise at
guidance 1 and 3, and 10 Euler steps; the peer is what a diffusers pipeline does between its text encoder and its
decoder, without gradient, both halves of the guidance in one batch, random numbers in one call a step. It neither
computes nor keeps log-probabilities, means and states, which an update needs. ``std`` is that of the final samples.

Updates: one optimiser step on the same episodes. ``ours`` reads all 20 denoising steps of each, ``ours-10`` and
``ours-5`` as many as that; ``ddpo-loop`` goes through the steps one by one and adds up gradients, as published.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from pairs import Stopwatch, alternate, report, table

SAMPLING = {
    "ddim": {"model": "emoji-diffusion", "steps": 20, "guidance": 1.0},
    "ddim-guided": {"model": "emoji-diffusion", "steps": 20, "guidance": 3.0},
    "euler": {"model": "emoji-flow", "steps": 10, "guidance": 1.0},
}
UPDATES = {"ours": 0, "ours-10": 10, "ours-5": 5, "ddpo-loop": 0}
IDS = {"emoji-diffusion": "DiffusionAlign-v0", "emoji-flow": "FlowAlign-v0"}
PROMPTS = ["dog face", "red apple", "cat", "blue car"]


def setting(model: str, steps: int, rows: int, guidance: float = 1.0) -> tuple[Any, Any]:
    """A policy and its environment."""
    import gymnasium as gym
    import torch

    import aligngym  # noqa: F401
    from aligngym.agents.policies.denoiser_policy import DenoiserPolicy

    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    policy = DenoiserPolicy.from_pretrained(model, num_steps=steps, guidance=guidance)
    env = gym.make_vec(IDS[model], num_envs=rows, num_steps=steps, prompts=PROMPTS, reward="colourfulness")
    return policy, env


def sampling_arm(args: argparse.Namespace) -> dict[str, float]:
    """Sample ``repeats`` batches, after one that is not timed."""
    import torch

    from aligngym.agents.policies.policy import RowNoise

    case = SAMPLING[args.case]
    policy, env = setting(case["model"], case["steps"], args.rows, case["guidance"])  # type: ignore[arg-type]
    watch, found = Stopwatch(), []
    for i in range(args.repeats + 1):
        seed = 1000 * args.seed + i
        observation, _ = env.reset(seed=seed)
        with Stopwatch() if i == 0 else watch:
            if args.arm == "ours":
                noise = RowNoise(range(seed * args.rows, (seed + 1) * args.rows))
                played = policy.generate(
                    observation, noise, max_steps=policy.num_steps, deterministic=args.case == "euler"
                )
                x = played.actions[:, -1]
            else:
                x = diffusers_loop(policy, observation, args.case, seed)
        found.append(x.std().item())
    return {
        "wall": watch.wall, "cpu": watch.cpu, "ms": 1000 * watch.cpu / (args.repeats * args.rows * policy.num_steps),
        "std": float(torch.tensor(found[1:]).mean()),
    }  # fmt: skip


def diffusers_loop(policy: Any, observation: Any, case: str, seed: int) -> Any:
    import numpy as np
    import torch
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    network, w = policy.denoiser, policy.guidance
    if case == "euler":
        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / policy.num_steps, policy.num_steps))
    else:
        scheduler = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False,
            set_alpha_to_one=False, timestep_spacing="trailing",
        )  # fmt: skip
        scheduler.set_timesteps(policy.num_steps)
    generator = torch.Generator().manual_seed(seed)
    extra = {} if case == "euler" else {"eta": 1.0, "generator": generator}
    prompts = [bytes(row).rstrip(b"\0").decode() for row in observation["prompt"]]
    with torch.no_grad():
        x, told = torch.as_tensor(observation["sample"]), network.encode(prompts)
        if w != 1:
            told = {k: torch.cat([v, told[k]]) for k, v in network.encode([""] * len(x)).items()}
        for t in scheduler.timesteps:
            both = torch.cat([x, x]) if w != 1 else x
            out = network(both, t.expand(len(both)), told)
            if w != 1:
                without, with_prompt = out.chunk(2)
                out = without + w * (with_prompt - without)
            x = scheduler.step(out, t, x, **extra).prev_sample
    return x


def update_arm(args: argparse.Namespace) -> dict[str, float]:
    """Take ``repeats`` optimiser steps on one batch of episodes, after one that is not timed."""
    import torch

    from aligngym.agents.ddpo import DDPO, DDPOConfig

    policy, env = setting("emoji-diffusion", 20, args.rows)
    count = UPDATES[args.arm]
    config = DDPOConfig(
        episodes_per_iteration=args.rows, minibatch_size=0, epochs=1, decisions_per_update=count, step_weights="uniform"
    )
    agent, watch = DDPO(env, policy, config), Stopwatch()
    episodes = agent.collect()
    advantages = torch.nn.functional.normalize(episodes.returns - episodes.returns.mean(), dim=0)
    for i in range(args.repeats + 1):
        with Stopwatch() if i == 0 else watch:
            if args.arm == "ddpo-loop":
                ddpo_loop(policy, agent.optimizer, episodes, advantages)
            else:
                batch, _ = agent.prepare(episodes)
                agent.update(batch)
    return {"wall": watch.wall, "cpu": watch.cpu, "ms": 1000 * watch.cpu / (args.repeats * args.rows)}


def ddpo_loop(policy: Any, optimizer: Any, episodes: Any, advantages: Any) -> None:
    """Denoising steps one after the other: score, clip, backward; one optimiser step on the sum."""
    import torch

    steps, network = episodes.mask.shape[1], policy.denoiser
    told = network.encode(episodes.info["prompt"])
    states = torch.cat([episodes.observations["sample"][:, None], episodes.actions], 1)
    optimizer.zero_grad()
    for k in range(steps):
        t, table = policy.grid.times[k].expand(len(states)), policy.table
        mean = table.scale[k] * states[:, k] + table.gain[k] * network(states[:, k], t, told)
        squares = ((states[:, k + 1] - mean) / table.std[k]).square().flatten(1).sum(1)
        constant = mean[0].numel() * (table.std[k].log() + 0.9189385)
        ratio = (-squares / 2 - constant - episodes.log_probs[:, k]).clamp(max=20).exp()
        loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean() / steps
        loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair of small batches: does it run?")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2, help="batches timed in a process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=[*SAMPLING, "update"], choices=[*SAMPLING, "update"])
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=["ours", "diffusers", *UPDATES], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps((update_arm if args.case == "update" else sampling_arm)(args)))
        return
    if args.quick:
        args.pairs, args.rows, args.repeats = 1, 4, 1
    sections = [f"## Denoising: {args.rows} images of 32x32, {args.threads} thread(s)\n"]
    for case in args.cases:
        arms = list(UPDATES) if case == "update" else ["ours", "diffusers"]
        command = [sys.executable, __file__, "--case", case, "--rows", str(args.rows), "--repeats", str(args.repeats)]
        runs = alternate({a: [*command, "--arm", a] for a in arms}, args.pairs, threads=args.threads, vary="--seed")
        unit = "CPU ms an episode" if case == "update" else "CPU ms an image and step"
        columns = {"ms": unit, "peak_mb": "peak MB"} | ({} if case == "update" else {"std": "std"})
        sections.append(f"### {case}\n\n{table(runs, 'ours', columns, {'wall': 'wall', 'cpu': 'CPU'})}\n")
    report("denoising", "\n".join(sections))


if __name__ == "__main__":
    main()
