"""Let the prompts evolve with the policy (eva): the story model is asked for ever more words that it must use.

Which openings are changed, and how, is decided by the gap between the best and the worst story of each.

    python examples/evolving_prompts.py --episodes 4096
"""

import argparse

import gymnasium as gym
import torch

import aligngym
from aligngym.wrappers import vector
from aligngym.wrappers.prompt_creators import ChangeNumber

gym.register_envs(aligngym)
WORDS = ["cat", "dog", "park", "ball", "mom", "tree", "cake", "friend", "red", "happy", "sun", "play"]


def opening(columns, rng):
    """A new opening of as many words as the knob says."""
    words = rng.permutation(WORDS)[: columns["count"]].tolist()
    return f"A story of the {', the '.join(words)}. Once", {"count": len(words), "words": " ".join(words)}


def all_used(completions, words, **columns):
    """1 where all of the words are in the story."""
    return [float(all(w in text for w in asked.split())) for text, asked in zip(completions, words, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=4096)
    parser.add_argument("--every", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster than several for a model this small
    rows = [{"prompt": f"A story of the {w}. Once", "count": 1, "words": w} for w in WORDS]
    env = gym.make_vec("LLMAlign-v0", num_envs=64, prompts=rows, reward=all_used, max_new_tokens=32)
    knob = ChangeNumber("count", opening)
    env = evolution = vector.PromptEvolution(env, knob, every=args.every, allowed={"count": (1, 6)})

    agent = aligngym.GRPO(env, "stories").learn(args.episodes)
    print(evolution.report())
    for count, prompt in sorted(zip(env.unwrapped.table.columns["count"], env.unwrapped.table.prompts, strict=True)):
        print(f"{count}  {prompt}")
    print(f"after {agent.episodes} episodes")
    env.close()


if __name__ == "__main__":
    main()
