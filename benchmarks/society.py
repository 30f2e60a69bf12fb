"""``StrategyDiffusion-v0``: one game of many players, by PettingZoo's parallel API, as a vector environment, in turns.

    python benchmarks/society.py [--quick] [--pairs 5] [--players 1000] [--rounds 100]

Choices are random, so policies cost nothing, and drawn before the clock starts; everybody sees everybody. The peer is
PettingZoo's turn-based form of the same game (``parallel_to_aec``).
"""

from __future__ import annotations

import argparse
import json
import sys

from pairs import Stopwatch, alternate, report, table

ARMS = ("parallel_env", "make_vec", "turns")


def arm(name: str, players: int, rounds: int, seed: int) -> dict[str, float]:
    """Play one game of ``rounds``; the last one is checked to be the end."""
    import gymnasium as gym
    import numpy as np

    from aligngym.envs.society import strategy_diffusion

    choices = np.random.default_rng(seed).integers(2, size=(rounds, players))
    options = {"players": players, "rounds": rounds, "threshold": players // 2}
    watch = Stopwatch()
    if name == "make_vec":
        batch = gym.make_vec("StrategyDiffusion-v0", num_envs=players, **options)
        batch.reset(seed=seed)
        with watch:
            for chosen in choices:
                _, _, terminated, truncated, _ = batch.step(chosen)
        assert (terminated | truncated).all()
    elif name == "parallel_env":
        game = strategy_diffusion.parallel_env(**options)
        game.reset(seed=seed)
        actions = [dict(zip(game.agents, chosen, strict=True)) for chosen in choices]
        with watch:
            for chosen in actions:
                game.step(chosen)
        assert not game.agents
    else:
        turns = strategy_diffusion.env(**options)
        turns.reset(seed=seed)
        with watch:
            for action in choices.flat:
                turns.last()
                turns.step(action)
        assert all(turns.terminations[a] or turns.truncations[a] for a in turns.agents)
    return {"wall": watch.wall, "cpu": watch.cpu, "choices_per_second": rounds * players / watch.wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair of few players: does it run?")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--players", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(arm(args.arm, args.players, args.rounds, args.seed)))
        return
    if args.quick:
        args.pairs, args.players, args.rounds = 1, 20, 10
    same = ["--players", str(args.players), "--rounds", str(args.rounds)]
    commands = {a: [sys.executable, __file__, *same, "--arm", a] for a in ARMS}
    runs = alternate(commands, args.pairs, vary="--seed")
    columns = {"wall": "s", "choices_per_second": "choices/s", "peak_mb": "peak MB"}
    text = table(runs, "parallel_env", columns, {"wall": "wall", "cpu": "CPU"})
    report("society", f"## Society: one game, {args.players} players, {args.rounds} rounds\n\n{text}")


if __name__ == "__main__":
    main()
