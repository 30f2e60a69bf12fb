"""Align the embedded diffusion model with DDPO: emoji that JPEG stores in fewer bytes.

Prints the mean reward (minus kilobytes) on held-out prompts before and after, and where the images of both are.

    python examples/diffusion_ddpo.py --episodes 1024
"""

import argparse

from aligngym.agents.ddpo import DDPOConfig
from aligngym.agents.experiment import Experiment, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--eval-episodes", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=10, help="denoising steps of an episode")
    parser.add_argument("--out", default=None, help="folder of the run; a new one in runs/ by default")
    args = parser.parse_args()
    experiment = Experiment(
        env="DiffusionAlign-v0",
        agent="ddpo",
        reward="compressibility",
        env_options=f'{{"num_steps": {args.num_steps}}}',
        episodes=args.episodes,
        eval_episodes=args.eval_episodes,
        eval_every=args.episodes,
        out=args.out,
    )
    # An update reads 5 of an episode's 10 steps: most of the time goes into updates, and steps of an episode are alike.
    config = DDPOConfig(episodes_per_iteration=32, minibatch_size=16, decisions_per_update=5, learning_rate=2e-4)
    print(train(experiment, config))


if __name__ == "__main__":
    main()
