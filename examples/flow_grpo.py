"""Train the embedded flow model with Flow-GRPO to draw dogs, as a classifier sees them.

Training draws noise at every step (an SDE), evaluation takes the deterministic sampler. Writes a grid and a GIF of the
denoising, before and after.

    python examples/flow_grpo.py --episodes 512
"""

import argparse
from pathlib import Path

import gymnasium as gym
import torch

import aligngym
from aligngym.agents.flow_grpo import FlowGRPO, FlowGRPOConfig
from aligngym.agents.images import denoising_frames, save_gif, save_grid
from aligngym.agents.policies.denoiser_policy import DenoiserPolicy

gym.register_envs(aligngym)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--prompt", default="dog face")
    parser.add_argument("--num-steps", type=int, default=10, help="denoising steps of an episode")
    parser.add_argument("--rows", type=int, default=32, help="episodes side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/flow-grpo"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster than several for a model this small
    settings = {"prompts": [args.prompt], "reward": "image_classifier:dog", "num_steps": args.num_steps}
    env = gym.make_vec("FlowAlign-v0", num_envs=args.rows, **settings)
    config = FlowGRPOConfig(episodes_per_iteration=args.rows, group_size=8, kl_coef=0.0, reference="none")
    policy = DenoiserPolicy.from_pretrained("emoji-flow", num_steps=args.num_steps, guidance=2.0)
    agent = FlowGRPO(env, policy, config)

    def show(name: str) -> None:
        played = agent.play(env, args.rows)  # the same noises every time
        save_grid(played.info["image"], args.out / f"{name}.png", played.info["prompt"], played.returns.tolist())
        save_gif(denoising_frames(played.select(torch.arange(4)), env), args.out / f"{name}.gif")
        print(f"{name:7} {played.returns.mean():.3f}   {args.out / name}.png")

    show("before")
    agent.learn(args.episodes)
    show("after")


if __name__ == "__main__":
    main()
