"""LineKey: fetch a key at one end of a corridor, bring it to the other. 21 states, of which everything can be solved.

Ten cells, with and without the key, and the end. ``left`` and ``right`` go the other way with probability 0.1; ``pick``
in cell 1 takes the key. ``right`` in cell 9 with the key is paid 10 and, unless it slips, ends the episode. Episodes
begin in cells 3 to 7; the discount is 0.95.
"""

import numpy as np

CELLS, END, GAMMA, STARTS = 10, 20, 0.95, slice(3, 8)
LEFT, RIGHT, PICK = range(3)


def moved(state, action):
    cell, key = state % CELLS, state // CELLS
    if action == PICK:
        return state + CELLS if cell == 1 and not key else state
    if action == RIGHT and cell == CELLS - 1:
        return END if key else state
    return key * CELLS + max(0, cell + (1 if action == RIGHT else -1))


def line_key():
    """Transition probabilities ``[21, 3, 21]`` and rewards ``[21, 3]``."""
    chances, rewards = np.zeros((END + 1, 3, END + 1)), np.zeros((END + 1, 3))
    chances[END, :, END] = 1
    for state in range(END):
        for action in (LEFT, RIGHT):
            chances[state, action, moved(state, action)] += 0.9
            chances[state, action, moved(state, LEFT + RIGHT - action)] += 0.1
        chances[state, PICK, moved(state, PICK)] = 1
    rewards[END - 1, RIGHT] = 10
    return chances, rewards


def value(policy):
    """Exact value of ``policy [21, 3]``, averaged over the states that episodes begin in."""
    chances, rewards = line_key()
    steps = np.einsum("sa,sat->st", policy, chances)
    return np.linalg.solve(np.eye(END + 1) - GAMMA * steps, (policy * rewards).sum(1))[STARTS].mean()


def best_policy():
    chances, rewards = line_key()
    values = np.zeros(END + 1)
    for _ in range(2000):
        values = (rewards + GAMMA * chances @ values).max(1)
    return np.eye(3)[(rewards + GAMMA * chances @ values).argmax(1)]


def transitions(seed, count=5000):
    """Uniformly random states and actions, their rewards and the states that followed, each ``[count]``."""
    chances, rewards = line_key()
    rng = np.random.default_rng(seed)
    states, actions = rng.integers(END, size=count), rng.integers(3, size=count)
    followed = np.array([rng.choice(END + 1, p=chances[s, a]) for s, a in zip(states, actions, strict=True)])
    return states, actions, rewards[states, actions], followed
