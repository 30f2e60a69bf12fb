"""Compare clips of a robot's arm in the browser, and learn from the answers how well it opens a drawer.

With --scripted the true reward answers. After Ctrl-C the same command goes on where it stopped.

    python examples/human_preferences.py --queries 20
"""

import argparse

import gymnasium as gym
import numpy as np

from aligngym.agents.offline.robomimic import read_robomimic
from aligngym.agents.pbrl.dataset import PreferenceDataset
from aligngym.agents.pbrl.human import HumanTeacher
from aligngym.agents.pbrl.queries import random_pairs
from aligngym.agents.pbrl.reward_model import EnsembleRewardModel
from aligngym.agents.pbrl.reward_training import RewardTrainingConfig, fit_reward_model, preference_accuracy
from aligngym.agents.pbrl.segments import sample_segments
from aligngym.agents.pbrl.teachers import ScriptedTeacher
from aligngym.assets import robot_data_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scripted", action="store_true")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--updates", type=int, default=300)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    episodes = read_robomimic(robot_data_path("drawer-open"))
    segments, rewards = sample_segments(episodes, 40, 200, rng)
    env = gym.make("aligngym:ManipulationAlign-v0", task="drawer-open", render_mode="rgb_array")

    def frames(row: int) -> np.ndarray:  # an episode's seed and its actions give it again
        episode, start = int(segments.episode[row]), int(segments.start[row])
        env.reset(seed=episodes.info["seed"][episode])
        pictures = []
        for action in episodes.actions[episode, : start + 40].numpy():
            env.step(action)
            pictures.append(env.render() if len(pictures) >= start else None)
        return np.stack(pictures[start:])

    pairs, unseen = random_pairs(100, args.queries, rng), 100 + random_pairs(100, 500, rng)
    truth, judge = (ScriptedTeacher().label(*rewards[asked].unbind(1), rng) for asked in (pairs, unseen))
    person = HumanTeacher(frames, "answers.jsonl", segments, question="Which arm opens the drawer better?")
    labels = truth if args.scripted else person.collect(pairs)
    answered = ~labels.isnan()
    preferences = PreferenceDataset(segments=segments, pairs=pairs[answered], labels=labels[answered])
    preferences.save("preferences.safetensors")
    print(f"{len(preferences)} answers; the true reward gives {int((labels == truth).sum())} of them, too")
    model = EnsembleRewardModel(39, 4)
    fit_reward_model(model, preferences, RewardTrainingConfig(updates=args.updates), rng=rng)
    right = preference_accuracy(model, PreferenceDataset(segments=segments, pairs=unseen, labels=judge))
    print(f"pairs of other segments that the learned reward tells right: {right:.0%}")


if __name__ == "__main__":
    main()
