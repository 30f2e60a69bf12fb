"""Design a reward for a grid of your own: Q-learning by the true reward, by shaping, and by EXPRD on a few cells.

All are judged by the true reward; what they were paid is drawn in designs.png.

    python examples/designed_rewards.py --episodes 40
"""

import argparse

import gymnasium as gym
import numpy as np

from aligngym.agents.q_learning import QLearning
from aligngym.agents.teachers.baselines import pbrs
from aligngym.agents.teachers.exprd import exprd
from aligngym.agents.teachers.plots import plot_designs
from aligngym.agents.teachers.teacher import TableTeacher
from aligngym.envs.design.env import TabularEnv
from aligngym.tabular import Layout, TabularMDP, greedy, optimal_values, start_value

WIDE, HIGH = 8, 4
GOAL, END = WIDE * HIGH - 1, WIDE * HIGH
MOVES = {"up": (0, 1), "left": (-1, 0), "down": (0, -1), "right": (1, 0)}


def grid(noise=0.1):
    """An empty room with a reward for ``right`` in its last cell, which leads out; moves go astray now and then."""
    exact = np.zeros((END + 1, 4, END + 1))
    exact[END, :, END] = 1
    for s in range(END):
        for a, (dx, dy) in enumerate(MOVES.values()):
            x, y = np.clip([s % WIDE + dx, s // WIDE + dy], 0, [WIDE - 1, HIGH - 1])
            exact[s, a, END if (s, a) == (GOAL, 3) else x + WIDE * y] = 1
    P, R = (1 - noise) * exact + noise * exact.mean(1, keepdims=True), np.zeros((END + 1, 4))
    R[GOAL, 3] = 1
    cells = np.array([[s % WIDE, s // WIDE] for s in range(END)] + [[np.nan, np.nan]])
    layout = Layout(cells, marks={"start": (0,), "goal": (GOAL,)})
    return TabularMDP(P, R, np.eye(END + 1)[0], 0.95, np.arange(END + 1) == END, tuple(MOVES), layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--budget", type=int, default=3, help="cells beside the goal that EXPRD may reward")
    args = parser.parse_args()
    mdp = grid()
    designs = {"true reward": mdp.R, "PBRS": pbrs(mdp), "EXPRD": exprd(mdp, args.budget)[-1].reward}
    print(f"optimum: {start_value(mdp, greedy(optimal_values(mdp)[1])):.3f}")
    for name, table in designs.items():
        env = gym.vector.SyncVectorEnv([lambda: TabularEnv(mdp, max_steps=40, render_mode=None)])
        agent = QLearning(env, teacher=TableTeacher(table)).learn(args.episodes)
        print(f"{name}: {start_value(mdp, greedy(agent.q)):.3f} after {agent.episodes} episodes")
    print(plot_designs(mdp, designs, "designs.png"))


if __name__ == "__main__":
    main()
