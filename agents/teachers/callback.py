"""Teachers that design anew while any agent trains, on an environment wrapped in ``DesignedReward``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...tabular import Array
from ...trajectories import Trajectories
from ..callbacks import Callback
from ..policies.control import ControlPolicy, TabularPolicy
from ..policies.policy import Policy
from ..policies.q_table import QTable
from ..policies.sb3_policy import SB3Policy
from .teacher import Teacher

if TYPE_CHECKING:
    from ..agent import Agent


class TeacherUpdates(Callback):
    """Updates a teacher every few iterations. Its state is that of the wrapper that pays its rewards.

    Args:
        teacher: the one that the wrapper was given.
        every: iterations between updates, at least 1.

    Raises:
        ValueError: for another ``every``; when training begins, if no wrapper of the environment pays by the teacher.
    """

    def __init__(self, teacher: Teacher, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.teacher, self.every = teacher, every

    def on_start(self, agent: Agent, target: int) -> None:
        if not any(design is self.teacher for design in _designs(agent.env)):
            raise ValueError(
                "TeacherUpdates: the agent's environment is not wrapped in a DesignedReward with this teacher"
            )

    def on_iteration(self, agent: Agent, episodes: Trajectories | None, metrics: dict[str, float]) -> bool:
        if agent.iteration % self.every == 0:
            own = getattr(agent, "probabilities", None)  # of the policy that acts in training
            self.teacher.update(own or (lambda states: action_probabilities(agent.policy, states)))
        return True


def _designs(env: Any) -> Iterator[Any]:
    """What designed rewards around and inside a batch of environments pay by."""
    while env is not None:
        if (rule := getattr(env, "rule", None)) is not None:
            yield getattr(rule, "design", None)
        for single in getattr(env, "envs", ()):
            yield from _designs(single)
        env = getattr(env, "env", None)


@torch.no_grad()
def action_probabilities(policy: Policy, states: NDArray[Any]) -> Array:
    """Probabilities ``[n, A]`` with which a policy draws numbered actions.

    Args:
        policy: a table, a perceptron, or Stable-Baselines3's actor.
        states: ``[n, ...]``.

    Raises:
        TypeError: for another kind of policy.
    """
    network: Any = getattr(policy, "network", None)
    if isinstance(policy, QTable):
        return policy.chances(states).cpu().double().numpy()
    if isinstance(policy, SB3Policy) and hasattr(network, "get_distribution"):
        observations, _ = network.obs_to_tensor(np.asarray(states))
        logits = network.get_distribution(observations).distribution.logits
    elif isinstance(policy, ControlPolicy):
        logits = policy.outputs(policy.features(states))
    elif isinstance(policy, TabularPolicy):
        logits = policy.logits[torch.as_tensor(states, device=policy.device)]
    else:
        raise TypeError(f"{type(policy).__name__} has no probabilities of numbered actions that are known here")
    return np.asarray(logits.double().softmax(-1).cpu().numpy())
