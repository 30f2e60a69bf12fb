"""Stable-Baselines3's own PPO on LLMAlign-v0, unchanged: the environment is an ordinary Gymnasium environment.

Its network reads token numbers as plain numbers, so it learns little here; the point is that nothing had to be adapted.

    python examples/sb3_ppo.py --steps 2048
"""

import argparse

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import aligngym

gym.register_envs(aligngym)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2048)
    args = parser.parse_args()
    env = Monitor(gym.make("LLMAlign-v0", max_new_tokens=16))
    model = PPO("MultiInputPolicy", env, n_steps=min(512, args.steps), batch_size=64, seed=0, verbose=1)
    model.learn(args.steps)
    mean, std = evaluate_policy(model, env, n_eval_episodes=10)
    print(f"mean reward {mean:.3f}, standard deviation {std:.3f}, over 10 episodes")


if __name__ == "__main__":
    main()
