"""What every wrapper here is made of: one rule for finished episodes, used by ``step`` and by ``rollout`` alike.

An author writes a rule, a subclass of :class:`EpisodeRule` with a :meth:`~EpisodeRule.transform`, and derives its two
forms: ``class Mine(MyRule, EpisodeWrapper)`` for one environment and ``class VectorMine(MyRule, VectorEpisodeWrapper)``
for a batch. Both faces hand the rule the same finished episodes, so that they cannot differ:

* numbers are rounded to float32 first, the precision in which trajectories hold them;
* what a rule learns from episodes changes only *between* batches: when every row has finished an episode since the last
  change, :meth:`~EpisodeRule.update` sees the first one of each row, in the order of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorWrapper
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from numpy.typing import NDArray

from .episodes import TERM_PREFIX, Episodes, Flags, Numbers, info_of, is_term

if TYPE_CHECKING:  # the step face needs no torch
    from ..trajectories import Trajectories


class EpisodeRule:
    """What a wrapper does to finished episodes.

    A subclass overrides what it needs of:

    * :meth:`transform`: new rewards, terms or facts for episodes that just finished. Rows finish at different times in
      ``step`` and together in ``rollout``, hence an episode's result must not depend on the others in the call.
    * :meth:`update`: learn from a batch, one episode of every row.
    * ``_get_state`` and ``_set_state``: what it has learned, of JSON's types.

    A constructor passes its arguments on, ``super().__init__(env, scale=scale)``, so that ``env.spec`` can rebuild it.

    Attributes:
        update_statistics: False freezes what the wrapper has learned, as for an evaluation.
        episodes: how many episodes it has learned from.
    """

    env: Any

    def __init__(self, env: Any, **arguments: Any) -> None:
        RecordConstructorArgs.__init__(self, **arguments)  # type: ignore[arg-type]
        super().__init__(env)  # type: ignore[call-arg]
        self.update_statistics = True
        self.episodes = 0
        self._rows: int = self.num_envs if isinstance(self, VectorWrapper) else 1
        self._earlier = np.zeros(self._rows)  # rewards of the running episode before its last step
        self._actions: list[list[Any]] = [[] for _ in range(self._rows)]
        self._over = np.zeros(self._rows, np.bool_)
        self._batch: dict[int, dict[str, Any]] = {}  # first episode of each row since the last update

    def transform(self, episodes: Episodes) -> Episodes:
        """Returns finished episodes as the agent shall see them; see :meth:`Episodes.with_rewards`."""
        return episodes

    def update(self, episodes: Episodes) -> None:
        """Learns from one episode of every row, as :meth:`transform` returned them."""

    def _get_state(self) -> dict[str, Any]:
        return {}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what ``_get_state`` returned."""

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types, with that of the environment inside."""
        inner = _with_state(self.env)
        own = {
            "episodes": self.episodes,
            "earlier": self._earlier.tolist(),
            "actions": [[np.asarray(action).tolist() for action in actions] for actions in self._actions],
            "over": self._over.tolist(),
            "batch": {str(row): record for row, record in self._batch.items()},
            "rule": self._get_state(),
        }
        return {"wrapper": {type(self).__name__: own}, "env": None if inner is None else inner.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues exactly where ``get_state`` was called, in an equal stack of wrappers.

        Raises:
            ValueError: if the state is of another wrapper or number of rows.
        """
        name = type(self).__name__
        if name not in state["wrapper"] or len(state["wrapper"][name]["over"]) != self._rows:
            rows = [len(own["over"]) for own in state["wrapper"].values()]
            raise ValueError(
                f"the state is of {', '.join(state['wrapper'])} with {rows} rows, expected {name} with {self._rows}: "
                "restore it into the same wrappers in the same order"
            )
        own = state["wrapper"][name]
        if (inner := _with_state(self.env)) is not None:
            inner.set_state(state["env"])
        self.episodes = int(own["episodes"])
        self._earlier = np.array(own["earlier"], np.float64)
        self._actions = [[np.asarray(action) for action in actions] for actions in own["actions"]]
        self._over = np.array(own["over"], np.bool_)
        self._batch = {int(row): record for row, record in own["batch"].items()}
        self._set_state(own["rule"])

    def _restart(self, rows: Any) -> None:
        """Forget the running episodes of some rows (a mask): new ones begin."""
        self._earlier[rows] = 0.0
        self._over[rows] = False
        for row in np.arange(self._rows)[rows]:
            self._actions[row] = []

    def _advance(
        self, actions: Any, rewards: Numbers, ends: tuple[Flags, Flags], infos: Sequence[Mapping[str, Any]]
    ) -> tuple[Numbers, dict[int, dict[str, Any]]]:
        """One decision in every row.

        Args:
            actions: one a row.
            rewards: ``[B]``, as the environment gave them.
            ends: terminated and truncated, ``[B]`` each.
            infos: facts of the rows that ended, in order.

        Returns:
            The rewards as the agent shall see them, and for each row that ended the entries of its info to set; None
            takes one out.
        """
        active = ~self._over
        for row in np.flatnonzero(active):
            self._actions[row].append(actions[row])
        ended = np.flatnonzero(active & (ends[0] | ends[1]))
        changes: dict[int, dict[str, Any]] = {}
        given = rewards.copy()
        if len(ended):
            records = [
                {
                    "reward": np.float32(self._earlier[row] + rewards[row]),
                    "terminated": ends[0][row],
                    "actions": self._actions[row],
                    "terms": {k.removeprefix(TERM_PREFIX): np.float32(v) for k, v in info.items() if is_term(k)},
                    "info": {key: value for key, value in info.items() if not is_term(key)},
                }
                for row, info in zip(ended, infos, strict=True)
            ]
            before = Episodes.from_records(records)
            after = self._finish(ended, before)
            given[ended] = after.rewards - self._earlier[ended]
            changes = dict(zip(ended.tolist(), _differences(before, after), strict=True))
        self._earlier += np.where(active, rewards, 0.0)
        self._over[ended] = True
        return given, changes

    def _finish(self, rows: Sequence[int] | NDArray[np.int64], episodes: Episodes) -> Episodes:
        """Transform episodes that ended in ``rows``, and learn once every row has one."""
        episodes = _checked(self.transform(episodes))
        for row, record in zip(rows, episodes.records(), strict=True):
            self._batch.setdefault(int(row), record)
        if len(self._batch) == self._rows:
            if self.update_statistics:
                self.episodes += self._rows
                self.update(Episodes.from_records([self._batch[row] for row in range(self._rows)]))
            self._batch = {}
        return episodes

    def _played(self, trajectories: Trajectories) -> Trajectories:
        """Apply the rule to whole episodes, one of every row."""
        import torch

        mask = trajectories.mask.cpu().numpy()
        rows, last = np.arange(len(mask)), mask.shape[1] - 1 - mask[:, ::-1].argmax(1)
        rewards = trajectories.rewards.detach().cpu().numpy().astype(np.float64)
        final = rewards[rows, last]
        rewards[rows, last] = 0.0
        earlier = rewards.sum(1)
        actions = trajectories.actions.cpu().numpy()
        after = self._finish(
            rows,
            Episodes(
                rewards=(earlier + final).astype(np.float32).astype(np.float64),
                terminated=trajectories.terminated.cpu().numpy(),
                actions=[actions[row][mask[row]] for row in rows],
                terms={k: v.float().cpu().numpy().astype(np.float64) for k, v in trajectories.terms.items()},
                info=trajectories.info,
            ),
        )
        rewards[rows, last] = after.rewards - earlier

        def tensor(values: NDArray[Any], like: Any) -> Any:
            return torch.as_tensor(values, dtype=like.dtype, device=like.device)

        return replace(
            trajectories,
            rewards=tensor(rewards, trajectories.rewards),
            valid=tensor(np.isfinite(rewards.sum(1)), trajectories.valid),
            terms={name: tensor(values, trajectories.rewards) for name, values in after.terms.items()},
            info=dict(after.info),
        )


class EpisodeWrapper(EpisodeRule, gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Base of wrappers of one environment; see :class:`EpisodeRule`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        result = self.env.reset(seed=seed, options=options)
        self._restart([True])
        return result  # type: ignore[no-any-return]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        ends = np.array([terminated]), np.array([truncated])
        finished = [info] if terminated or truncated else []
        rewards, changes = self._advance([action], np.array([reward], np.float64), ends, finished)
        info = {**info, **changes.get(0, {})}
        for key in [key for key, value in changes.get(0, {}).items() if value is None]:
            del info[key]
        return observation, float(rewards[0]), terminated, truncated, info

    def rollout(
        self,
        policy: Any,
        *,
        noise: Any,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
        deterministic: bool = False,
    ) -> Trajectories:
        """Play one whole episode, as the environment inside does, with its rewards as ``step`` would give them."""
        env = self.env
        while isinstance(env, OrderEnforcing | PassiveEnvChecker):  # which gymnasium.make adds; they change nothing
            env = env.env
        return self._played(env.rollout(policy, noise=noise, seed=seed, options=options, deterministic=deterministic))


class VectorEpisodeWrapper(EpisodeRule, VectorWrapper[Any, Any, Any, Any, Any], RecordConstructorArgs):
    """Base of wrappers of a batch of environments, in any autoreset mode; see :class:`EpisodeRule`."""

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes; ``options["reset_mask"]`` names the rows where not all do."""
        mask = (options or {}).get("reset_mask")  # SyncVectorEnv takes it out of the options
        result = self.env.reset(seed=seed, options=options)
        self._restart(np.ones(self._rows, np.bool_) if mask is None else mask)
        return result  # type: ignore[no-any-return]

    def step(self, actions: Any) -> tuple[Any, Numbers, Flags, Flags, dict[str, Any]]:
        """Take one action in every row."""
        mode = AutoresetMode(self.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        restarting = self._over.copy()
        observation, rewards, terminated, truncated, infos = self.env.step(actions)
        taken = actions.detach().cpu().numpy() if hasattr(actions, "detach") else actions
        same_step = mode is AutoresetMode.SAME_STEP
        facts = infos.get("final_info", {}) if same_step else infos
        ended = np.flatnonzero(~restarting & (terminated | truncated))
        given, changes = self._advance(
            taken, np.asarray(rewards, np.float64), (terminated, truncated), [info_of(facts, int(row)) for row in ended]
        )
        for row, change in changes.items():
            infos = self._rewritten(infos, change, row, same_step)
        if mode is not AutoresetMode.DISABLED:
            self._restart(self._over if same_step else restarting)
        return observation, given, terminated, truncated, infos

    def _rewritten(self, infos: dict[str, Any], change: dict[str, Any], row: int, same_step: bool) -> dict[str, Any]:
        """Change the info of one row, packed as Gymnasium packs it."""
        kept = {key: value for key, value in change.items() if value is not None}
        infos = self._add_info(infos, {"final_info": kept} if same_step else kept, row)
        facts = infos["final_info"] if same_step else infos
        if change.get("invalid", "") is None and "_invalid" in facts:
            facts["invalid"][row], facts["_invalid"][row] = None, False
            if not facts["_invalid"].any():
                del facts["invalid"], facts["_invalid"]
        return infos

    def rollout(
        self,
        policy: Any,
        *,
        noise: Any,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        deterministic: bool = False,
    ) -> Trajectories:
        """Play one whole episode in every row, as the environment inside does, with rewards as ``step`` gives them."""
        return self._played(
            self.env.rollout(policy, noise=noise, seed=seed, options=options, deterministic=deterministic)
        )


def generation_env(env: Any) -> Any:
    """The batched environment at the bottom of a stack: that of a single generation environment is its batch of one."""
    return getattr(env.unwrapped, "batch", env.unwrapped)


def _checked(episodes: Episodes) -> Episodes:
    """Make every reward that is not finite NaN, with a reason; drop the reasons of the others."""
    reasons = [
        None if fine else reason or f"the reward is {reward}"
        for fine, reason, reward in zip(episodes.valid, episodes.invalid, episodes.rewards, strict=True)
    ]
    rewards = np.where(episodes.valid, episodes.rewards, np.nan)
    return episodes.with_rewards(rewards, invalid=None if reasons == episodes.invalid else reasons)


def _differences(before: Episodes, after: Episodes) -> list[dict[str, Any]]:
    """For each episode the entries of its info that were set anew."""
    terms = {TERM_PREFIX + k: v for k, v in after.terms.items() if v is not before.terms.get(k)}
    facts = {k: v for k, v in after.info.items() if v is not before.info.get(k)}
    return [
        {key: float(values[i]) for key, values in terms.items()} | {key: values[i] for key, values in facts.items()}
        for i in range(len(after))
    ]


def _with_state(env: Any) -> Any:
    """The outermost layer that keeps a state; None where nothing does."""
    while not hasattr(type(env), "get_state"):
        if not isinstance(env, gymnasium.Wrapper | VectorWrapper):
            return None
        env = env.env
    return env
