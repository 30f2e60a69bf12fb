"""``TabularBandit-v0``: one decision from a table of rewards, with an optimum known in closed form.

It holds no token and no text: what trains here trains on any generation environment, and what it should converge to is
:func:`kl_optimum`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from .batching import Flags, Rows, check_positive, row_indices
from .generation import EpisodeScores, GenerationEnv, GenerationVectorEnv


def kl_optimum(reference_probs: ArrayLike, rewards: ArrayLike, beta: float) -> NDArray[np.float64]:
    r"""The policy that maximises ``E[r] - beta KL(pi || reference)``.

    .. math:: \pi^*(a | x) = \pi_{ref}(a | x) \exp(r(x, a) / \beta) / Z(x)

    Args:
        reference_probs: ``[..., K]`` probabilities of the reference policy.
        rewards: ``[..., K]`` expected rewards.
        beta: weight of the divergence, above 0.

    Returns:
        ``[..., K]`` probabilities.

    Raises:
        ValueError: if ``beta`` is not above 0.
    """
    logits, log_z = _tilted(reference_probs, rewards, beta)
    return np.asarray(np.exp(logits - log_z[..., None]))


def kl_optimal_value(reference_probs: ArrayLike, rewards: ArrayLike, beta: float) -> NDArray[np.float64]:
    r"""The value ``[...]`` of that maximum, :math:`\beta \log Z(x)`; arguments as in :func:`kl_optimum`."""
    return beta * _tilted(reference_probs, rewards, beta)[1]


def _tilted(
    reference_probs: ArrayLike, rewards: ArrayLike, beta: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``log ref + r / beta`` and the logarithm of its sum over arms, by the log-sum-exp trick."""
    if not beta > 0:
        raise ValueError(f"beta is {beta}, expected a number above 0")
    with np.errstate(divide="ignore"):  # an arm the reference never takes has logarithm -inf and stays untaken
        logits = np.log(np.asarray(reference_probs, np.float64)) + np.asarray(rewards, np.float64) / beta
    top = logits.max(-1)
    return logits, top + np.log(np.exp(logits - top[..., None]).sum(-1))


class TabularBanditVectorEnv(GenerationVectorEnv):
    """A contextual bandit: a prompt (an integer) is shown, an arm is chosen, the episode terminates.

    The reward is ``table[prompt, arm]`` plus Gaussian noise. The row's generator draws the prompt (uniformly, or by
    ``prompt_weights`` where a curriculum set them) and the noise: rows with equal seeds see the same of both. The info
    of a finished episode holds ``prompt`` (also as ``prompt_index``), ``arm`` and ``reward/table``, the reward without
    its noise. Option of ``reset``: ``prompt_index``, one integer or ``num_envs``.

    Args:
        num_envs: episodes side by side.
        rewards: ``[num_prompts, num_arms]`` table; None draws a standard normal one.
        num_prompts: rows of a drawn table.
        num_arms: columns of a drawn table.
        seed: that draws the table.
        noise_std: standard deviation of the rewards' noise, at least 0.
        render_mode: None or "ansi".
        device: None for numpy observations, a torch device for tensors there.

    Raises:
        ValueError: for a table that is not a finite matrix, a number below 1, or a negative ``noise_std``.
    """

    option_names = ("prompt_index",)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        rewards: ArrayLike | None = None,
        num_prompts: int = 4,
        num_arms: int = 8,
        seed: int = 0,
        noise_std: float = 0.0,
        render_mode: str | None = None,
        device: str | None = None,
    ) -> None:
        check_positive(num_prompts=num_prompts, num_arms=num_arms)
        drawn = np.random.default_rng(seed).standard_normal((num_prompts, num_arms))
        self.table = drawn if rewards is None else np.array(rewards, np.float64)
        if self.table.ndim != 2 or not self.table.size or not np.isfinite(self.table).all():
            raise ValueError(f"rewards has shape {self.table.shape}, expected a finite [num_prompts, num_arms] table")
        if not noise_std >= 0:
            raise ValueError(f"noise_std is {noise_std}, expected a number of at least 0")
        self.noise_std, self.num_prompts = noise_std, len(self.table)
        super().__init__(
            num_envs,
            spaces.Discrete(self.table.shape[0]),
            spaces.Discrete(self.table.shape[1]),
            max_steps=1,
            terminal_actions=range(self.table.shape[1]),
            render_mode=render_mode,
            device=device,
        )
        self._prompts = np.zeros(num_envs, np.int64)
        self._arms = np.full(num_envs, -1)  # -1: not chosen yet

    def _start(self, rows: Rows, options: Mapping[str, Any]) -> None:
        if "prompt_index" in options:
            self._prompts[rows] = row_indices(options["prompt_index"], self.num_envs, len(self.table))[rows]
        else:
            self._prompts[rows] = [self._draw_prompt(row) for row in rows]
        self._arms[rows] = -1

    def _observe(self) -> NDArray[np.int64]:
        return self._prompts.copy()

    def _apply(self, actions: NDArray[Any], active: Flags) -> tuple[Flags, Flags]:
        self._arms[active] = actions[active]
        return active.copy(), np.zeros_like(active)

    def _score(self, rows: Rows) -> EpisodeScores:
        exact = self.table[self._prompts[rows], self._arms[rows]]
        noise = [self.generators[row].normal(scale=self.noise_std) if self.noise_std else 0.0 for row in rows]
        prompts = self._prompts[rows].tolist()
        info = {"prompt": prompts, "prompt_index": prompts, "arm": self._arms[rows].tolist()}
        return EpisodeScores(exact + noise, {"table": exact}, info=info)

    def _render_row(self, row: int) -> str:
        arm = self._arms[row]
        chosen = f"arm {arm}, reward {self.table[self._prompts[row], arm]:.3f}" if arm >= 0 else "no arm yet"
        return f"prompt {self._prompts[row]}: {chosen}"

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types."""
        return {**super().get_state(), "prompts": self._prompts.tolist(), "arms": self._arms.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in an environment made with the same arguments."""
        super().set_state(state)
        self._prompts[:], self._arms[:] = state["prompts"], state["arms"]


class TabularBanditEnv(GenerationEnv):
    """One episode of :class:`TabularBanditVectorEnv` at a time; it takes the same arguments, but ``num_envs``."""

    batch: TabularBanditVectorEnv

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(TabularBanditVectorEnv(1, **kwargs))
