"""Stop a run and go on as if it had never stopped: the resumed weights equal the uninterrupted ones bit for bit.

python examples/resume.py --episodes 256
"""

import argparse
import tempfile
from pathlib import Path

import torch

from aligngym import GRPO, GRPOConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=256, help="of each half")
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster than several for a model this small
    config = GRPOConfig(episodes_per_iteration=32, learning_rate=5e-4)

    whole = GRPO("LLMAlign-v0", "stories", config, seed=0).learn(2 * args.episodes)

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "half"
        GRPO("LLMAlign-v0", "stories", config, seed=0).learn(args.episodes).save(checkpoint)
        print("checkpoint:", sorted(p.name for p in checkpoint.iterdir()))
        halves = GRPO.load(checkpoint).learn(args.episodes)

    pairs = zip(whole.policy.parameters(), halves.policy.parameters(), strict=True)
    print("bit for bit equal:", all(torch.equal(a, b) for a, b in pairs))


if __name__ == "__main__":
    main()
