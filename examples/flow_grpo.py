"""Train the embedded flow model with Flow-GRPO to draw dogs, then go further than training did, with RL guidance.

The reward is a classifier's: how sure it is that it sees a dog. Training draws noise at every step (an SDE), evaluation
takes the deterministic sampler. Writes grids, and a GIF of the denoising.

    python examples/flow_grpo.py --episodes 2048
"""

import argparse
import copy
from pathlib import Path

import gymnasium as gym
import torch

import aligngym
from aligngym.agents.flow_grpo import FlowGRPO, FlowGRPOConfig
from aligngym.agents.images import denoising_frames, save_gif, save_grid
from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.rl_guidance import rl_guided

gym.register_envs(aligngym)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--prompt", default="dog face")
    parser.add_argument("--num-steps", type=int, default=10, help="denoising steps of an episode")
    parser.add_argument("--rows", type=int, default=32, help="episodes side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/flow-grpo"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster than several for a model this small
    settings = {"prompts": [args.prompt], "reward": "image_classifier:dog", "num_steps": args.num_steps}
    env = gym.make_vec("FlowAlign-v0", num_envs=args.rows, **settings)
    config = FlowGRPOConfig(episodes_per_iteration=args.rows, group_size=8, kl_coef=0.0, reference="none")
    base = DenoiserPolicy.from_pretrained("emoji-flow", num_steps=args.num_steps, guidance=2.0)
    agent = FlowGRPO(env, copy.deepcopy(base), config)

    def show(name: str) -> None:
        played = agent.play(env, args.rows)  # the same noises every time
        save_grid(played.info["image"], args.out / f"{name}.png", played.info["prompt"], played.returns.tolist())
        save_gif(denoising_frames(played.select(torch.arange(4)), env), args.out / f"{name}.gif")
        print(f"{name:8} {played.returns.mean():.3f}   {args.out / name}.png")

    show("before")
    agent.learn(args.episodes)
    show("after")
    agent = FlowGRPO(env, rl_guided(base, agent.policy, 2.0), config)  # twice as far from the base, without training
    show("guided")


if __name__ == "__main__":
    main()
