"""The base of environments whose transition appends what the policy emitted: text, images, clicks, one-shot choices.

A subclass of :class:`GenerationVectorEnv` says how an episode starts, what an action does to it, when it ends and how a
finished one is scored. The base makes two faces of that: ``step``, one decision at a time for any Gymnasium agent, and
``rollout``, whole episodes in the policy's own fast loop. Both run the same transition and the same scoring code: the
same seeds and noise give the same actions, rewards and ends. :class:`GenerationEnv` is a batch of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .batching import (
    EpisodeScores,
    Flags,
    Rows,
    check_ends,
    check_positive,
    copy_rows,
    masked_rows,
    row_groups,
    row_seeds,
    seed_rows,
    to_device,
    to_numpy,
    valid_actions,
)

__all__ = ["EpisodeScores", "GenerationEnv", "GenerationVectorEnv"]

if TYPE_CHECKING:  # the step face needs no torch, and a worker process starts ten times sooner without it
    from ..trajectories import Trajectories


class GenerationVectorEnv(VectorEnv[Any, Any, Any], ABC):
    """A batch of generation episodes, played a decision at a time (``step``) or whole (``rollout``).

    A subclass calls this constructor and implements ``_start``, ``_observe``, ``_apply``, ``_score`` and
    ``_render_row``; it draws random numbers from ``self.generators[row]`` only, extends ``get_state`` and ``set_state``
    by what it keeps, and names the options that its ``reset`` accepts in ``option_names``.

    A finished row starts its next episode within the same step (``AutoresetMode.SAME_STEP``); ``infos["final_obs"]``
    and ``infos["final_info"]`` then hold the finished one's observation and facts, as in Gymnasium's vectorisers.

    Args:
        num_envs: episodes side by side, at least 1.
        observation_space: the space of one row; batched by Gymnasium's ``batch_space``.
        action_space: the same for actions.
        max_steps: decisions an episode has at most, at least 1.
        terminal_actions: actions that end an episode, told to the policy so that it stops where the environment does.
        render_mode: None, or one of ``metadata["render_modes"]``: "ansi" for text, "rgb_array" for images.
        device: None for numpy observations; a torch device for tensors there (observations only).

    Raises:
        ValueError: for a number below 1 or an unknown render mode.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4, "autoreset_mode": AutoresetMode.SAME_STEP}
    option_names: tuple[str, ...] = ()
    num_prompts = 0  # that an episode may start from, where they are drawn from a table

    def __init__(
        self,
        num_envs: int,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        max_steps: int,
        terminal_actions: Collection[int] = (),
        render_mode: str | None = None,
        device: str | None = None,
    ) -> None:
        check_positive(num_envs=num_envs, max_steps=max_steps)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}, expected None or one of {self.metadata['render_modes']}")
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.max_steps, self.terminal_actions = max_steps, tuple(terminal_actions)
        self.render_mode, self.device = render_mode, device
        self.generators: list[np.random.Generator] = [seeding.np_random()[0] for _ in range(num_envs)]
        self.episodes = 0  # finished so far; reward schedules read it
        self.prompt_weights: NDArray[np.float64] | None = None  # how often each prompt is drawn; None: uniformly
        self.steps = np.zeros(num_envs, np.int64)  # decisions taken in each running episode
        self._over = np.ones(num_envs, np.bool_)  # nothing is running before the first reset

    @property  # type: ignore[misc]  # a tuple without a setter, as in SyncVectorEnv
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The rows' generators."""
        return tuple(self.generators)

    @abstractmethod
    def _start(self, rows: Rows, options: Mapping[str, Any]) -> None:
        """Begin an episode in each of ``rows``."""

    @abstractmethod
    def _observe(self) -> Any:
        """The batched observation, in arrays that nothing else holds."""

    @abstractmethod
    def _apply(self, actions: NDArray[Any], active: Flags) -> tuple[Flags, Flags]:
        """Take ``actions [B, ...]`` in the ``active`` rows, and say which ended: ``(terminated, truncated)``, ``[B]``.

        ``self.steps`` already counts this decision. A row never does both.
        """

    @abstractmethod
    def _score(self, rows: Rows) -> EpisodeScores:
        """Score the finished episodes of ``rows``."""

    @abstractmethod
    def _render_row(self, row: int) -> Any:
        """One episode so far: text for "ansi", an image for "rgb_array"."""

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: ``s`` seeds row ``i`` with ``s + i``; a list gives each row its own, None in it lets a row's generator
                run on, as None for all does. Rows with equal seeds start from the same state: this makes groups.
            options: the environment's own (``option_names``), and ``reset_mask``, a ``[num_envs]`` bool array: reset
                only these rows.

        Raises:
            ValueError: for a list of another length, an unknown option or an unusable mask.
            gymnasium.error.Error: for a seed that is no non-negative integer.
        """
        options = dict(options or {})
        if unknown := sorted(set(options) - {"reset_mask", *self.option_names}):
            raise ValueError(
                f"options has unknown keys {unknown}, expected some of {['reset_mask', *self.option_names]}"
            )
        rows = masked_rows(options.pop("reset_mask", None), self.num_envs)
        seed_rows(self.generators, rows, seed)
        self._begin(rows, options)
        return self._observation(), {}

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Take one action in every row; a row that ends starts again at once.

        Args:
            actions: ``[num_envs, ...]`` in ``action_space``, an array or a tensor.

        Raises:
            gymnasium.error.InvalidAction: for an action outside the space.
            gymnasium.error.ResetNeeded: before the first reset, and after a rollout.
        """
        rewards, terminated, truncated, finished = self._advance(actions)
        observation, infos = self._observation(), dict[str, Any]()
        if finished:
            rows = list(finished)
            for row, final in zip(rows, copy_rows(self.observation_space, observation, rows), strict=True):
                infos = self._add_info(infos, {"final_obs": final, "final_info": finished[row]}, row)
            self._begin(np.array(rows), {})
            observation = self._observation()
        return observation, rewards, terminated, truncated, infos

    def rollout(
        self,
        policy: Any,
        *,
        noise: Any,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
        deterministic: bool = False,
    ) -> Trajectories:
        """Play one whole episode in every row, in the policy's own loop.

        The recorded actions are then taken again through the same transition and scoring code as ``step``'s. Finished
        episodes are scored in one call, so a reward that keeps running statistics sees them in row order rather than in
        the order in which they ended. Afterwards every row is over: ``reset`` before the next ``step``.

        Args:
            policy: has ``generate(observation, noise, *, max_steps, terminal_actions, deterministic) -> Trajectories``.
            noise: handed to the policy; one stream of random numbers a row.
            seed: as in ``reset``; rows with equal seeds in a list form a group.
            options: as in ``reset``, but without ``reset_mask``.
            deterministic: let the policy take its likeliest actions.

        Raises:
            ValueError: if ``options`` has a ``reset_mask``, or the episodes do not end where the environment ends them.
        """
        if options and "reset_mask" in options:
            raise ValueError("options has a reset_mask, but a rollout plays every row from its start; leave it out")
        observation, _ = self.reset(seed=seed, options=options)
        episodes = policy.generate(
            observation,
            noise,
            max_steps=self.max_steps,
            terminal_actions=self.terminal_actions,
            deterministic=deterministic,
        )
        return self._replay(episodes, row_groups(row_seeds(seed, self.num_envs)))

    def render(self) -> tuple[Any, ...] | None:
        """Each running episode, as ``render_mode`` asks for it; None without one."""
        return None if self.render_mode is None else tuple(self._render_row(i) for i in range(self.num_envs))

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types."""
        return {
            "generators": [generator.bit_generator.state for generator in self.generators],
            "episodes": self.episodes,
            "steps": self.steps.tolist(),
            "over": self._over.tolist(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in an environment made with the same arguments.

        Raises:
            ValueError: if the state is of another number of rows.
        """
        if len(state["generators"]) != self.num_envs:
            raise ValueError(f"state has {len(state['generators'])} rows, but num_envs is {self.num_envs}")
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        self.episodes = int(state["episodes"])
        self.steps = np.array(state["steps"], np.int64)
        self._over = np.array(state["over"], np.bool_)

    def _draw_prompt(self, row: int) -> int:
        """One of ``num_prompts`` by its index, from the row's generator; ``prompt_weights`` says how often each."""
        if self.prompt_weights is None:
            return int(self.generators[row].integers(self.num_prompts))
        bounds = np.cumsum(self.prompt_weights)
        drawn = np.searchsorted(bounds, self.generators[row].random() * bounds[-1], side="right")
        return min(int(drawn), self.num_prompts - 1)

    def _begin(self, rows: Rows, options: Mapping[str, Any]) -> None:
        self._start(rows, options)
        self.steps[rows] = 0
        self._over[rows] = False

    def _advance(self, actions: Any) -> tuple[NDArray[np.float64], Flags, Flags, dict[int, dict[str, Any]]]:
        """One decision in every row, without the restart: rewards, ends, and the info of each row that ended."""
        if self._over.any():
            idle = np.flatnonzero(self._over).tolist()
            raise ResetNeeded(f"no episode is running in rows {idle[:8]}: call reset() before step()")
        actions = valid_actions(to_numpy(actions), self.single_action_space, self.num_envs)
        terminated, truncated = self._transition(actions, ~self._over)
        rewards, infos = np.zeros(self.num_envs), dict[int, dict[str, Any]]()
        if len(rows := np.flatnonzero(self._over)):
            scores = self._scored(rows)
            rewards[rows] = scores.rewards
            infos = dict(zip(rows.tolist(), scores.rows(), strict=True))
        return rewards, terminated, truncated, infos

    def _transition(self, actions: NDArray[Any], active: Flags) -> tuple[Flags, Flags]:
        self.steps += active
        terminated, truncated = self._apply(actions, active)
        if (both := terminated & truncated).any():
            raise RuntimeError(f"{type(self).__name__} terminated and truncated rows {np.flatnonzero(both).tolist()}")
        self._over |= terminated | truncated
        return terminated, truncated

    def _scored(self, rows: Rows) -> EpisodeScores:
        """Score finished episodes, with every reward that is not finite made NaN and given a reason."""
        scores = self._score(rows)
        self.episodes += len(rows)
        given = scores.reasons or [None] * len(rows)
        finite = np.isfinite(scores.rewards)
        reasons = [
            None if fine else reason or f"the reward is {reward}"
            for fine, reason, reward in zip(finite, given, scores.rewards, strict=True)
        ]
        return replace(scores, rewards=np.where(finite, scores.rewards, np.nan), reasons=reasons)

    def _replay(self, episodes: Trajectories, groups: Rows) -> Trajectories:
        """Take recorded actions again, check that the ends agree, and score the episodes."""
        import torch

        actions, mask = to_numpy(episodes.actions).copy(), to_numpy(episodes.mask)
        actions[mask] = valid_actions(actions[mask], self.single_action_space, int(mask.sum()))
        lengths = mask.sum(1)
        terminated, truncated = np.zeros((2, self.num_envs), np.bool_)
        for t in range(mask.shape[1]):
            ends = self._transition(actions[:, t], mask[:, t] & ~self._over)
            terminated |= ends[0]
            truncated |= ends[1]
        check_ends(
            {"length": lengths, "terminated": episodes.terminated, "truncated": episodes.truncated, "over": True},
            {"length": self.steps, "terminated": terminated, "truncated": truncated, "over": terminated | truncated},
        )
        scores = self._scored(np.arange(self.num_envs))
        infos = scores.rows()

        def tensor(values: NDArray[Any], like: Any) -> Any:
            return torch.as_tensor(values, dtype=like.dtype, device=like.device)

        rewards = np.zeros(mask.shape)
        rewards[np.arange(self.num_envs), lengths - 1] = scores.rewards
        keys = [*scores.info, "invalid"]
        return replace(
            episodes,
            rewards=tensor(rewards, episodes.rewards),
            valid=tensor(np.isfinite(scores.rewards), episodes.valid),
            group=tensor(groups, episodes.group),
            terms={name: tensor(values, episodes.rewards) for name, values in scores.terms.items()},
            info=episodes.info | {key: [info.get(key) for info in infos] for key in keys},
        )

    def _observation(self) -> Any:
        return to_device(self._observe(), self.device)


class GenerationEnv(gymnasium.Env[Any, Any]):
    """One generation episode at a time: ``self.batch``, which does not restart by itself and draws from ``np_random``.

    Args:
        batch: the batched environment, with ``num_envs=1``.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(self, batch: GenerationVectorEnv) -> None:
        if batch.num_envs != 1:
            raise ValueError(f"batch has num_envs={batch.num_envs}, expected 1")
        self.batch = batch
        self.render_mode = batch.render_mode
        self.observation_space = batch.single_observation_space
        self.action_space = batch.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; the options are those of the batched environment."""
        self._seed_row(seed)
        observation, info = self.batch.reset(options=options)
        return self._first(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action; after an episode's end, ``reset`` is needed (gymnasium.error.ResetNeeded)."""
        rewards, terminated, truncated, finished = self.batch._advance(to_numpy(action)[None])
        observation = self._first(self.batch._observation())
        return observation, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), finished.get(0, {})

    def rollout(
        self,
        policy: Any,
        *,
        noise: Any,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
        deterministic: bool = False,
    ) -> Trajectories:
        """Play one whole episode; see :meth:`GenerationVectorEnv.rollout`."""
        self._seed_row(seed)
        return self.batch.rollout(policy, noise=noise, options=options, deterministic=deterministic)

    def render(self) -> Any:
        """The running episode, as ``render_mode`` asks for it; None without one."""
        return None if self.render_mode is None else self.batch._render_row(0)

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types."""
        return self.batch.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called."""
        self.batch.set_state(state)
        self.np_random = self.batch.generators[0]

    def _seed_row(self, seed: int | None) -> None:
        super().reset(seed=seed)
        self.batch.generators[0] = self.np_random

    def _first(self, observation: Any) -> Any:
        return copy_rows(self.batch.observation_space, observation, [0])[0]
