"""Meta-World's scripted experts, and episodes of good, misled and aimless behaviour made with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..batching import check_positive
from .manipulation import ManipulationAlignEnv, full_task_name, task_names

if TYPE_CHECKING:
    from ...trajectories import Episode, Trajectories

BEHAVIOURS = ("expert", "wrong_goal", "other_task", "random")

Expert = Callable[[NDArray[Any]], NDArray[np.float32]]


def scripted_policy(task: str) -> Expert:
    """Meta-World's own controller of a task, from the state ``[39]``, with the goal shown, to an action ``[4]``.

    It is deterministic and keeps nothing between two steps. Actions are clipped to [-1, 1].

    Raises:
        ImportError: if Meta-World is not installed.
        ValueError: if there is no such task.
    """
    name = full_task_name(task)
    from metaworld.policies import ENV_POLICY_MAP

    controller: Any = ENV_POLICY_MAP[name]  # declared as the abstract base class
    policy = controller()

    def act(state: NDArray[Any]) -> NDArray[np.float32]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constant")  # that the answer may need to be clipped
            action = policy.get_action(np.array(state, np.float64))  # a copy: the controllers write into it
        clipped: NDArray[np.float32] = np.clip(action, -1, 1, dtype=np.float32)
        return clipped

    return act


def collect_behaviour(
    task: str,
    behaviour: str,
    episodes: int,
    *,
    seed: int = 0,
    max_steps: int = 500,
    noise: float = 1.0,
    progress: Callable[[], None] = lambda: None,
) -> Trajectories:
    """Play whole episodes of one behaviour, each with places of objects and goal of its own.

    The behaviours are those of Inverse Preference Learning (arXiv 2305.15363):

    - ``expert``: the task's scripted expert.
    - ``wrong_goal``: the same expert, who acts in another episode, with other places of objects and goal.
    - ``other_task``: the expert of another task, drawn anew for each episode, who acts in that task.
    - ``random``: uniformly random actions.

    An expert who acts elsewhere sees that other simulation, and both simulations take his actions. Deviation: episodes
    here have ``max_steps`` steps, where the paper's code ends them after 25 successful ones.

    Episode ``i`` depends on ``task``, ``behaviour``, ``seed`` and ``i``, not on how many there are. No two tasks or
    behaviours share random numbers.

    Args:
        task: name of a Meta-World task.
        behaviour: one of :data:`BEHAVIOURS`.
        episodes: how many, at least 1.
        seed: of everything that is drawn, at least 0.
        max_steps: steps of every episode, at least 1.
        noise: standard deviation, at least 0, of the noise on an expert's actions, which are clipped afterwards.
        progress: called after every episode.

    Returns:
        Observations ``[B, T + 1, 39]``, actions ``[B, T, 4]`` and true dense rewards ``[B, T]``, all float32;
        log-probabilities are NaN. ``terms`` holds ``true_return``, ``success_any`` and ``success_last``; ``info`` holds
        ``task``, ``behaviour``, ``seed`` (of the environment's reset), ``true_return`` and ``success_any``.

    Raises:
        ImportError: if Meta-World is not installed.
        ValueError: for an argument outside what is allowed.
    """
    from ...trajectories import stack

    check_positive(episodes=episodes, max_steps=max_steps)
    if behaviour not in BEHAVIOURS:
        raise ValueError(f"behaviour is {behaviour!r}, expected one of {list(BEHAVIOURS)}")
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise is {noise}, expected a finite number of at least 0")
    name = full_task_name(task)
    env = ManipulationAlignEnv(task=name, max_steps=max_steps)
    key = [seed, task_names().index(name), BEHAVIOURS.index(behaviour)]
    played = []
    for i in range(episodes):
        played.append(_play(env, behaviour, np.random.default_rng([*key, i]), noise))
        progress()
    env.close()
    return stack(played)


def _play(env: ManipulationAlignEnv, behaviour: str, rng: np.random.Generator, noise: float) -> Episode:
    from ...trajectories import Episode

    seed, other_seed = (int(number) for number in rng.integers(2**31, size=2))
    shown, elsewhere = env.task, None  # the task that the expert is in, and its simulation if that is another
    if behaviour == "other_task":
        shown = str(rng.choice([name for name in task_names() if name != env.task]))
    if behaviour in ("wrong_goal", "other_task"):
        elsewhere = ManipulationAlignEnv(task=shown, max_steps=env.max_steps)
    expert = scripted_policy(shown)
    state, _ = env.reset(seed=seed)
    seen = state if elsewhere is None else elsewhere.reset(seed=other_seed)[0]
    states, actions, rewards = [state], [], []
    over = False
    while not over:
        if behaviour == "random":
            action = rng.uniform(-1, 1, 4).astype(np.float32)
        else:
            action = np.clip(expert(seen) + noise * rng.standard_normal(4), -1, 1, dtype=np.float32)
        state, reward, _, over, info = env.step(action)
        seen = state if elsewhere is None else elsewhere.step(action)[0]
        states.append(state)
        actions.append(action)
        rewards.append(reward)
    facts = {name: info.get(f"reward/{name}", np.nan) for name in ("true_return", "success_any", "success_last")}
    told = {name: facts[name] for name in ("true_return", "success_any")}
    return Episode(
        observations=np.stack(states),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminated=False,
        terms=facts,
        info={"task": env.task, "behaviour": behaviour, "seed": seed, **told},
    )
