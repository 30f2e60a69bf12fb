"""What happens around training: progress, evaluation on held-out states, checkpoints, samples, alarms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..trajectories import Trajectories

if TYPE_CHECKING:
    from .agent import Agent


class Callback:
    """Base: every hook does nothing. State that must survive a resume goes through get_state and set_state."""

    def on_start(self, agent: Agent, target: int) -> None:
        """Training begins; it ends at ``target`` episodes."""

    def on_iteration(self, agent: Agent, episodes: Trajectories, metrics: dict[str, float]) -> bool:
        """An iteration ended. May add to ``metrics``; returning False stops training."""
        return True

    def on_end(self, agent: Agent) -> None:
        """Training ended, or was interrupted between two iterations."""

    def get_state(self) -> dict[str, Any]:
        """JSON-able state."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`get_state`."""


class CallbackList(Callback):
    """Several callbacks as one, in order; all are called even if one asks to stop."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def on_start(self, agent: Agent, target: int) -> None:
        for callback in self.callbacks:
            callback.on_start(agent, target)

    def on_iteration(self, agent: Agent, episodes: Trajectories, metrics: dict[str, float]) -> bool:
        return all([callback.on_iteration(agent, episodes, metrics) for callback in self.callbacks])

    def on_end(self, agent: Agent) -> None:
        for callback in self.callbacks:
            callback.on_end(agent)

    def get_state(self) -> dict[str, Any]:
        return {type(c).__name__: state for c in self.callbacks if (state := c.get_state())}

    def set_state(self, state: dict[str, Any]) -> None:
        for callback in self.callbacks:
            if type(callback).__name__ in state:
                callback.set_state(state[type(callback).__name__])
