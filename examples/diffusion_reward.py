"""A reward on images of your own, a plain function, composed with another: warm colours in few bytes.

python examples/diffusion_reward.py --episodes 2048
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import aligngym
from aligngym.agents.images import save_before_after, save_result
from aligngym.rewards import FunctionReward, as_reward

gym.register_envs(aligngym)


def warmth(prompts: list[str], completions: list[np.ndarray], **columns: object) -> list[float]:
    """How much more red than blue there is, in [-1, 1]. A completion is an image, uint8 ``[H, W, 3]``."""
    return [float(np.mean(image[..., 0] / 255.0 - image[..., 2] / 255.0)) for image in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--eval-episodes", type=int, default=32)
    parser.add_argument("--num-steps", type=int, default=10, help="denoising steps of an episode")
    parser.add_argument("--out", type=Path, default=Path("runs/warm"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster than several for a model this small
    # Each term is logged on its own. Noise would be warm, too; few kilobytes of JPEG keep the images plain.
    reward = FunctionReward(warmth) + 0.2 * as_reward("compressibility")
    settings = {"reward": reward, "num_steps": args.num_steps}
    env = gym.make_vec("DiffusionAlign-v0", num_envs=32, **settings)
    held_out = gym.make_vec("DiffusionAlign-v0", num_envs=args.eval_episodes, split="eval", **settings)
    config = aligngym.GRPOConfig(
        episodes_per_iteration=32, learning_rate=3e-4, decisions_per_update=5, kl_coef=0.0, reference="none"
    )
    agent = aligngym.GRPO(env, config=config)  # without a policy: the environment's own model
    paths = []
    for name in ("before", "after"):
        if name == "after":
            agent.learn(args.episodes)
        result = agent.evaluate(held_out, args.eval_episodes)
        paths.append(save_result(result, args.out / f"{name}.png"))
        print(f"{name:7}{result.mean:.3f} ± {result.standard_error:.3f}, terms {result.terms}")
    print("pairs:", save_before_after(*paths, args.out / "before-after.png"))


if __name__ == "__main__":
    main()
