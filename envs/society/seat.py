"""One player's seat in a game of collective choice: a single-agent environment, for policies that differ by player."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from numpy.typing import NDArray

from ..batching import check_no_options
from .diffusion import COLLECTIVE, Games

Others = float | Callable[[NDArray[np.float32], np.random.Generator], Any]


class StrategyDiffusionSeat(gymnasium.Env[Any, np.int64]):
    """Player ``seat`` of :class:`~.diffusion.Games`, while the others play as they are told.

    Training each seat in turn, against what the others have become, gives every player a policy of its own; against
    fixed others it finds a best response, which the tipping points of :mod:`.game` tell beforehand.

    Args:
        others: the probability that each other agent deviates; or a function of their observations ``[agents - 1, D]``
            (in the order of seats) and a generator that gives their actions ``[agents - 1]``, such as
            ``lambda seen, rng: agent.predict(seen)[0]``. It may be set anew at any time.
        seat: which agent.
        **game: arguments of :class:`~.diffusion.Games`, but ``games``.

    Raises:
        ValueError: for a seat that is not there or a probability outside [0, 1], or as :class:`~.diffusion.Games`.
    """

    metadata = {"render_modes": []}

    def __init__(self, others: Others = 0.0, seat: int = 0, **game: Any) -> None:
        self.core = Games(1, **game)
        if seat not in range(self.core.agents):
            raise ValueError(f"seat is {seat!r}, expected 0 to {self.core.agents - 1}")
        if not callable(others) and not 0 <= others <= 1:
            raise ValueError(f"others is {others!r}, expected a probability or a function")
        self.others, self.seat = others, seat
        self.observation_space, self.action_space = self.core.observation_space, spaces.Discrete(2)
        self.running = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a game.

        Args:
            seed: of what the others draw.
            options: none are known.

        Raises:
            ValueError: for an option.
        """
        super().reset(seed=seed)
        check_no_options(options)
        self.core.start(np.arange(1))
        self.running = True
        return self.core.observe()[0, self.seat], {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play a round.

        Raises:
            gymnasium.error.InvalidAction: for an action that is not 0 or 1.
            gymnasium.error.ResetNeeded: when no game is running.
        """
        if not self.running:
            raise ResetNeeded("no game is running: call reset() before step()")
        if not self.action_space.contains(action):
            raise InvalidAction(f"action {action!r} is not in {self.action_space}")
        theirs = np.delete(self.core.observe()[0], self.seat, 0)
        if callable(self.others):
            chosen = np.asarray(self.others(theirs, self.np_random)).reshape(-1) == COLLECTIVE
        else:
            chosen = self.np_random.random(len(theirs)) < self.others
        reward = self.core.play(np.insert(chosen, self.seat, action == COLLECTIVE)[None])[0, self.seat]
        over = bool(self.core.over[0])
        self.running = not over
        return self.core.observe()[0, self.seat], float(reward), False, over, self.core.facts(0, self.seat)

    def get_state(self) -> dict[str, Any]:
        """Everything that the next rounds depend on but the others, of JSON's types."""
        return {
            "game": self.core.get_state(), "running": self.running, "generator": self.np_random.bit_generator.state,
        }  # fmt: skip

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in an environment made with the same arguments."""
        self.core.set_state(state["game"])
        self.running = state["running"]
        self.np_random.bit_generator.state = state["generator"]
