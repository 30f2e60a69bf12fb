"""Games of collective choice side by side, in arrays; and as a Gymnasium vector environment, a row a player."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ...rewards.choice import ALIGNMENT
from ..batching import check_positive, masked_rows, row_seeds, to_numpy, valid_actions
from .game import FACTORS, CollectiveGame, SuccessPays
from .visibility import Visibility, visible_peers

INDEPENDENT, COLLECTIVE = 0, 1
Reward = Literal["delta", "log", "additive", "alignment"]
REWARDS = ("delta", "log", "additive", "alignment")


class Games:
    """``games`` games of ``players`` each, over rounds, with what players see of them.

    The last ``colluders`` players always deviate and are nobody's agents. Arrays are ``[games, players]``.

    Args:
        games: side by side, at least 1.
        players: of a game, with the colluders.
        threshold: deviators that success needs: an integer; or a share of the players in (0, 1], rounded up.
        factors: ``h, m, l``, or a name in :data:`~.game.FACTORS`.
        success_pays: everybody, or the deviators only.
        reward: what a round pays. ``"delta"``: the change of a capital that the factor multiplies, as in the paper's
            code, so that it depends on the rounds before; ``"log"``: the logarithm of the factor, of which the sum is
            that of the capital; ``"additive"``: the factor less 1, of the first capital; ``"alignment"``: 1 for the
            independent action, 0.1 for the other.
        rounds: of a game.
        window: past rounds that players see.
        visibility: whose choices a player sees; see :func:`~.visibility.visible_peers`.
        colluders: how many, fewer than the players.

    Raises:
        ValueError: for an argument outside what is allowed.
    """

    def __init__(
        self,
        games: int = 1,
        *,
        players: int = 8,
        threshold: int | float = 4,
        factors: Sequence[float] | str = "code",
        success_pays: SuccessPays = "all",
        reward: Reward = "delta",
        rounds: int = 3,
        window: int = 3,
        visibility: Visibility = "complete",
        colluders: int = 0,
    ) -> None:
        check_positive(games=games, players=players, rounds=rounds, window=window)
        if not 0 <= colluders < players:
            raise ValueError(f"colluders is {colluders}, expected 0 to {players - 1}, fewer than the players")
        if reward not in REWARDS:
            raise ValueError(f"reward is {reward!r}, expected one of {', '.join(REWARDS)}")
        if isinstance(factors, str) and factors not in FACTORS:
            raise ValueError(f"factors is {factors!r}, expected three numbers or one of {', '.join(FACTORS)}")
        numbers: Any = FACTORS[factors] if isinstance(factors, str) else tuple(factors)
        self.game = CollectiveGame(players, needed(threshold, players), numbers, success_pays)
        if reward == "log" and not min(numbers) > 0:
            raise ValueError(f"reward is 'log', but factors {numbers} are not all above 0")
        self.games, self.players, self.agents = games, players, players - colluders
        self.reward, self.rounds, self.window = reward, rounds, window
        self.visible = visible_peers(visibility, players)  # None: everybody
        self.played = np.zeros(games, np.int64)  # rounds of each game
        self.choices = np.zeros((games, rounds, players), np.bool_)
        self.success = np.zeros((games, rounds), np.bool_)
        self.factor = np.ones((games, rounds, players))
        self.capital = np.ones((games, players))

    @property
    def observation_space(self) -> spaces.Box:
        """Of one player; see :meth:`observe`."""
        top = max(1.0, *self.game.factors)
        return spaces.Box(min(0.0, *self.game.factors), top, (3 + 4 * self.window,), np.float32)

    def start(self, games: NDArray[np.int64]) -> None:
        """Begin anew in some games; what was played in them before is overwritten round by round, and not read."""
        self.played[games], self.capital[games] = 0, 1.0

    def play(self, collective: NDArray[np.bool_]) -> NDArray[np.float64]:
        """One round of every game; the rewards of the agents.

        Args:
            collective: ``[games, agents]``, who deviates.
        """
        fixed = np.ones((self.games, self.players - self.agents), np.bool_)
        choices = np.concatenate([collective, fixed], 1)
        factor, rows = self.game.pays(choices), np.arange(self.games)
        self.choices[rows, self.played], self.factor[rows, self.played] = choices, factor
        self.success[rows, self.played] = self.game.succeeds(choices)
        self.played += 1
        before = self.capital
        self.capital = before + (factor - 1) if self.reward == "additive" else before * factor
        if self.reward == "log":
            return np.log(factor)[:, : self.agents]
        if self.reward == "alignment":
            return np.where(collective, ALIGNMENT[1], ALIGNMENT[0])
        return (self.capital - before)[:, : self.agents]

    def peers(self, choices: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The share of deviators that each player sees among its peers, not counting itself; 0 if it sees nobody."""
        if self.visible is None:
            total = choices.sum(-1, keepdims=True) - choices
            return np.asarray(total / max(1, self.players - 1))
        return np.asarray(choices @ self.visible.T / np.maximum(1, self.visible.sum(1)))

    def observe(self) -> NDArray[np.float32]:
        """``[games, agents, 3 + 4 * window]``, float32.

        The threshold as a share of the players (at most 1), the share of rounds that are over, and what the player
        would get for being independent in a failure; and of the last rounds, the latest first and 0 where there are
        none: its own choice, the share of deviators among the peers that it sees, whether there was success, and its
        own factor.
        """
        seen = np.zeros((self.games, self.players, 3 + 4 * self.window), np.float32)
        seen[..., 0] = min(1.0, self.game.threshold / self.players)
        seen[..., 1] = (self.played / self.rounds)[:, None]
        seen[..., 2] = self.game.factors[1]
        rows = np.arange(self.games)
        for back in range(1, self.window + 1):
            at = self.played - back
            there, round_ = rows[at >= 0], at[at >= 0]
            if not len(there):
                break
            choices, first = self.choices[there, round_], 3 + 4 * (back - 1)
            seen[there, :, first] = choices
            seen[there, :, first + 1] = self.peers(choices)
            seen[there, :, first + 2] = self.success[there, round_][:, None]
            seen[there, :, first + 3] = self.factor[there, round_]
        return seen[:, : self.agents]

    @property
    def over(self) -> NDArray[np.bool_]:
        """Which games have been played to their end, ``[games]``."""
        return self.played >= self.rounds

    def facts(self, game: int, player: int) -> dict[str, Any]:
        """What ``info`` says to a player of its last round, and at the end of the game."""
        at = self.played[game] - 1
        found: dict[str, Any] = {
            "violated": bool(self.choices[game, at, player]), "success": bool(self.success[game, at]),
            "factor": float(self.factor[game, at, player]),
        }  # fmt: skip
        if self.over[game]:
            found["reward/violation"] = float(self.choices[game, :, player].mean())
            found["reward/success"] = float(self.success[game].mean())
            found["reward/capital"] = float(self.capital[game, player])
        return found

    def get_state(self) -> dict[str, Any]:
        """Everything that the next rounds depend on, of JSON's types."""
        return {
            name: getattr(self, name).tolist() for name in ("played", "choices", "success", "factor", "capital")
        }  # fmt: skip

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`get_state`, for games made with the same arguments."""
        for name, value in state.items():
            getattr(self, name)[:] = value


def needed(threshold: int | float, players: int) -> int:
    """How many deviators a threshold means: itself, or for a share of the players that many, rounded up.

    Raises:
        ValueError: for an integer below 1 or a share outside (0, 1].
    """
    if isinstance(threshold, int | np.integer) and not isinstance(threshold, bool) and threshold >= 1:
        return int(threshold)
    if isinstance(threshold, float) and 0 < threshold <= 1:
        return int(np.ceil(threshold * players - 1e-9))  # 0.07 * 100 is above 7
    raise ValueError(f"threshold is {threshold!r}, expected an integer of at least 1 or a share in (0, 1]")


class StrategyDiffusionVectorEnv(VectorEnv[Any, Any, Any]):
    """:class:`Games` as a vector environment: row ``g * agents + i`` is player ``i`` of game ``g``.

    Rows of a game are in step: they end together, at once start the next game (``AutoresetMode.SAME_STEP``), and are
    reset together. Nothing is drawn, so that seeds change nothing. ``info`` is that of :meth:`Games.facts`.

    Args:
        num_envs: rows, a multiple of the agents of a game.
        render_mode: None or ``"ansi"``.
        **game: arguments of :class:`Games`.

    Raises:
        ValueError: for a number of rows that is no multiple, or as :class:`Games`.
    """

    metadata = {"render_modes": ["ansi"], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int = 8, *, render_mode: str | None = None, **game: Any) -> None:
        check_positive(num_envs=num_envs)
        agents = Games(**game).agents
        if num_envs % agents:
            raise ValueError(f"num_envs is {num_envs}, expected a multiple of the {agents} agents of a game")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode is {render_mode!r}, expected None or 'ansi'")
        self.core, self.num_envs, self.render_mode = Games(num_envs // agents, **game), num_envs, render_mode
        self.single_observation_space, self.single_action_space = self.core.observation_space, spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._running = np.zeros(self.core.games, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start games anew.

        Args:
            seed: read by nothing; its length is checked.
            options: ``reset_mask``, bool ``[num_envs]``: only these rows, whole games.

        Raises:
            ValueError: for another option, or a mask that parts a game.
        """
        options = dict(options or {})
        row_seeds(seed, self.num_envs)
        rows = masked_rows(options.pop("reset_mask", None), self.num_envs)
        games, counts = np.unique(rows // self.core.agents, return_counts=True)
        if options or (counts != self.core.agents).any():
            raise ValueError(f"options: unknown {sorted(options)}, or a reset_mask that parts the players of a game")
        self.core.start(games)
        self._running[games] = True
        return self._rows(), {}

    def step(self, actions: Any) -> tuple[NDArray[np.float32], NDArray[np.float64], Any, Any, dict[str, Any]]:
        """Play a round of every game.

        Args:
            actions: ``[num_envs]``, 0 or 1.

        Raises:
            gymnasium.error.InvalidAction: for an action outside the space.
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if not self._running.all():
            raise ResetNeeded(f"no game is running in {np.flatnonzero(~self._running).tolist()}: call reset()")
        chosen = valid_actions(to_numpy(actions), self.single_action_space, self.num_envs)
        core = self.core
        rewards = core.play(chosen.reshape(core.games, core.agents) == COLLECTIVE).reshape(-1)
        truncated = np.repeat(core.over, core.agents)
        seen, infos = self._rows(), dict[str, Any]()
        for row in range(self.num_envs):
            facts = core.facts(*divmod(row, core.agents))
            if truncated[row]:
                facts = {"final_obs": seen[row].copy(), "final_info": facts}
            infos = self._add_info(infos, facts, row)
        if truncated.any():
            core.start(np.flatnonzero(core.over))
            seen = self._rows()
        return seen, rewards, np.zeros(self.num_envs, np.bool_), truncated, infos

    def _rows(self) -> NDArray[np.float32]:
        return self.core.observe().reshape(self.num_envs, -1)

    def render(self) -> tuple[str, ...] | None:
        """Each row's game, a line a round: ``#`` for players that deviated, ``.`` for others."""
        if self.render_mode is None:
            return None
        games = pictures(self.core)
        return tuple(games[row // self.core.agents] for row in range(self.num_envs))

    def get_state(self) -> dict[str, Any]:
        """Everything that the next rounds depend on, of JSON's types."""
        return {"games": self.core.get_state(), "running": self._running.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in an environment made with the same arguments."""
        self.core.set_state(state["games"])
        self._running[:] = state["running"]


def pictures(core: Games) -> list[str]:
    """Every game in letters, a line a round that was played, and whether it was a success."""
    marks = np.array([".", "#"])

    def line(game: int, at: int) -> str:
        return "".join(marks[core.choices[game, at].astype(int)]) + (
            " success" if core.success[game, at] else " failure"
        )

    return ["\n".join(line(game, at) for at in range(core.played[game])) for game in range(core.games)]
