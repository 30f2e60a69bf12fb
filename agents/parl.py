r"""PARL: PEBBLE whose reward models also know that the policy, and with it the data, will answer to them.

PEBBLE fits rewards to answers about segments as if these had come from nowhere. They come from a policy that maximises
those rewards: PARL (arXiv 2308.02585) states this as a bilevel problem, whose gradient has a second, implicit part (see
:mod:`.pbrl.bilevel` for the exact one on tables). Here every update of the reward models in a round descends

.. math:: CE(\text{all answers}) - \lambda \cdot \text{implicit}(\text{fresh answers}).

The implicit part needs segments of the policy as it is. So a round begins with steps of the present actor, without
updates of any network, until ``fresh_queries`` pairs of segments are there. The teacher is asked about them out of the
round's questions; they are answers like the others, too. These are steps of training as all others: they are counted,
they go to replay, and the updates that were due meanwhile follow the round. With ``implicit=0`` nothing of this
happens: it is PEBBLE, bit for bit.

The authors' own procedure for soft actor-critic is not public. Two ways to unroll the learner are offered:
``unrolled_actor`` is the paper's formula with one step of policy gradient in place of the best policy;
``unrolled_critic`` is that of Meta-Reward-Net, a critic's step. Deviations from the formula: the learner's steps are
those, not soft actor-critic's own; returns end with the segment; the entropy bonus is left out of them, as it does not
depend on the reward; the reward is the ensemble's mean; there is no regulariser of the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import TanhBijector
from torch import Tensor, nn
from torch.func import functional_call

from ..trajectories import Episode, stack
from .pbrl.dataset import PreferenceDataset
from .pbrl.replay import EpisodeRecord
from .pbrl.reward_training import preference_loss
from .pbrl.segments import Segments, cut_segments
from .pbrl.unrolled import Parameters, gaps, unrolled_actor, unrolled_critic
from .pebble import PEBBLE, PEBBLEConfig

PATIENCE = 10  # times the steps that fresh segments take at least
FEWEST = 4  # fresh pairs with an implicit part: two halves, each with a baseline of the others


@dataclass(frozen=True, kw_only=True)
class PARLConfig(PEBBLEConfig):
    """Options of PARL, beside PEBBLE's.

    Attributes:
        implicit: weight of the implicit part, lambda. 0 is PEBBLE, 1 the formula's. Watch ``preferences/implicit``:
            where the term outgrows the answers, rewards no longer fit them (docs/parl.md).
        variant: the learner's steps that are unrolled: of a policy gradient, or one of the critics.
        fresh_queries: questions of a round that are about fresh segments of the present policy, at least 4 and fewer
            than ``queries_per_round``. They take ``2 * fresh_queries * segment_length`` steps or a few more.
        inner_steps: of the policy gradient that are unrolled, each of size ``learning_rate``. 1 to 10.
    """

    implicit: float = 1.0
    variant: Literal["unrolled_actor", "unrolled_critic"] = "unrolled_actor"
    fresh_queries: int = 10
    inner_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(["implicit"], lambda v: 0 <= v < float("inf"), "at least 0")
        self.require(["inner_steps"], lambda v: v >= 1, "at least 1")
        if self.implicit:
            fits = FEWEST, self.queries_per_round - 1
            self.require(["fresh_queries"], lambda v: fits[0] <= v <= fits[1], f"in [{fits[0]}, {fits[1]}]")


class PARL(PEBBLE):
    """Soft actor-critic on rewards from preferences, which are fitted as the upper level of a bilevel problem.

    Arguments (a ``teacher`` of your own among them), attributes and errors are those of :class:`.pebble.PEBBLE`.
    """

    config_class = PARLConfig
    config: PARLConfig
    _fresh: PreferenceDataset | None = None  # of the round under way

    def ask(self) -> None:
        before = self.model.num_timesteps
        super().ask()
        if steps := self.model.num_timesteps - before:
            rounds = steps // (self.env.num_envs * self.config.train_freq)
            each = self.config.gradient_steps
            with self.at_work():
                self.model.train(steps if each < 0 else rounds * each, self.config.batch_size)

    def _collect_answers(self, first: bool) -> None:
        c = self.config
        if c.implicit:
            count = min(c.fresh_queries, c.max_queries - self.queries)
            self._fresh = self._answer(*self._play(2 * count))
        if self.queries < c.max_queries:
            super()._collect_answers(first)

    def _play(self, count: int) -> tuple[Segments, Tensor]:
        """Fresh segments of the present policy and their true rewards; the networks stay as they are.

        Raises:
            ValueError: if hardly any episode is as long as a segment.
        """
        model, length = self.model, self.config.segment_length
        most = PATIENCE * (count + self.env.num_envs) * length
        pieces = _Pieces(self.env.num_envs, most, length)

        def note(found: dict[str, Any], _: Any) -> bool:
            step = [found[k] for k in ("new_obs", "actions", "rewards", "dones", "infos")]
            pieces.add(model._last_obs, *step)
            return True

        start, updates = model.num_timesteps, model.gradient_steps
        model.gradient_steps = 0
        try:
            with self.at_work():
                while len(pieces.whole()) < count:
                    if model.num_timesteps - start > most:
                        longest = max((len(e.actions) for e in self.record.episodes), default=0)
                        raise ValueError(
                            f"segment_length={length}: {most} steps gave {len(pieces.whole())} segments; the longest "
                            f"episode has {longest} steps"
                        )
                    model.learn(self.env.num_envs, note, reset_num_timesteps=False, log_interval=None)
        finally:
            model.gradient_steps = updates
        return cut_segments(stack(pieces.whole()[:count]), length, length)

    def _fit_reward(
        self, preferences: PreferenceDataset, further: Callable[[], Tensor] | None = None
    ) -> dict[str, float]:
        fresh, self._fresh = self._fresh, None
        if fresh is None or len(fresh) < FEWEST:
            return super()._fit_reward(preferences, further)
        fresh = PreferenceDataset(
            segments=fresh.segments.to(self._device), pairs=fresh.pairs, labels=fresh.labels.to(self._device)
        )
        actor = self.config.variant == "unrolled_actor"
        objective = self._through_actor(fresh) if actor else self._through_critic(fresh)
        weight = -self.config.implicit * self.reward_model.size  # the loss is a sum over the members
        found = self._sizes(objective, fresh)
        return super()._fit_reward(preferences, lambda: weight * objective()) | found

    def _rewards(self, segments: Segments) -> Tensor:
        """``[N, L]``, differentiable."""
        return self.reward_model.rewards(segments.observations, segments.actions, segments.mask).mean

    def _sizes(self, objective: Callable[[], Tensor], fresh: PreferenceDataset) -> dict[str, float]:
        """How large the implicit gradient is next to the explicit one of the same pairs, and how saturated rewards."""
        rewards, parameters = self._rewards(fresh.segments), list(self.reward_model.parameters())
        explicit = -preference_loss(gaps(rewards.sum(1)), fresh.labels).mean()
        norms = [
            torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]).norm()
            for value in (self.config.implicit * objective(), explicit)
        ]
        ratio = float(norms[0] / norms[1].clamp(min=1e-12))
        return {"preferences/implicit": ratio, "preferences/reward_size": float(rewards.detach().abs().mean())}

    def _through_actor(self, fresh: PreferenceDataset) -> Callable[[], Tensor]:
        c, segments = self.config, fresh.segments
        actor = _LogProbs(self.model.actor)
        taken = self._scaled(segments.actions)

        def log_probs(parameters: Parameters) -> Tensor:
            found: Tensor = functional_call(actor, parameters, (segments.observations, taken))
            return found

        def objective() -> Tensor:
            return unrolled_actor(
                log_probs, dict(actor.named_parameters()), self._rewards(segments), fresh.labels,
                gamma=c.gamma, step_size=c.learning_rate, steps=c.inner_steps,
            )  # fmt: skip

        return objective

    def _through_critic(self, fresh: PreferenceDataset) -> Callable[[], Tensor]:
        c, model = self.config, self.model
        with self.at_work(), torch.no_grad():
            replay = self.buffer.sample(c.batch_size)
            chosen, log_probs = model.actor.action_log_prob(replay.next_observations)
            values = torch.cat(model.critic_target(replay.next_observations, chosen), 1).amin(1)
            weight = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.exp()
            later = c.gamma * (1 - replay.dones[:, 0]) * (values - weight * log_probs)
        taken = torch.as_tensor(self.buffer.unscaled(replay.actions.cpu().numpy()), device=self._device)
        steps = replay.observations.flatten(1)[:, None], taken[:, None]
        mask = torch.ones(len(taken), 1, dtype=torch.bool, device=self._device)
        firsts = fresh.segments.observations[:, 0], self._scaled(fresh.segments.actions[:, 0])
        group, state = model.critic.optimizer.param_groups[0], model.critic.optimizer.state
        moments = {
            name: (state[p]["exp_avg"], state[p]["exp_avg_sq"], int(state[p]["step"]))
            if p in state
            else (torch.zeros_like(p), torch.zeros_like(p), 0)
            for name, p in model.critic.named_parameters()
        }

        def of(observations: Tensor, actions: Tensor) -> Callable[[Parameters], Sequence[Tensor]]:
            return lambda parameters: [
                q[:, 0] for q in functional_call(model.critic, parameters, (observations, actions))
            ]

        def objective() -> Tensor:
            return unrolled_critic(
                of(replay.observations, replay.actions), of(*firsts), dict(model.critic.named_parameters()),
                self.reward_model.rewards(*steps, mask).mean[:, 0] + later, fresh.labels,
                step_size=c.learning_rate, moments=moments, betas=group["betas"], epsilon=group["eps"],
            )  # fmt: skip

        return objective

    def _scaled(self, actions: Tensor) -> Tensor:
        """Actions ``[..., A]`` in [-1, 1], as the networks know them."""
        space = self.model.action_space
        low, high = (torch.as_tensor(x.reshape(-1), device=actions.device) for x in (space.low, space.high))
        return 2 * (actions - low) / (high - low) - 1


class _Pieces(EpisodeRecord):
    """Episodes cut into pieces of ``length`` steps, from wherever recording begins."""

    def __init__(self, rows: int, keep: int, length: int) -> None:
        super().__init__(rows, keep)
        self.length = length

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        actions: NDArray[Any],
        rewards: NDArray[Any],
        done: NDArray[Any],
        infos: Sequence[dict[str, Any]],
    ) -> None:
        full = np.array([len(steps) + 1 == self.length for steps in self._open])
        super().add(obs, next_obs, actions, rewards, done | full, infos)

    def whole(self) -> list[Episode]:
        """Those that are as long."""
        return [e for e in self.episodes if len(e.actions) == self.length]


class _LogProbs(nn.Module):
    """Log-probabilities ``[N, L]`` of actions by an actor, before squashing: what that adds depends on no parameter."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        mean, log_std, _ = self.actor.get_action_dist_params(observations.flatten(0, 1))
        drawn = TanhBijector.inverse(actions.flatten(0, 1))
        found: Tensor = torch.distributions.Normal(mean, log_std.exp()).log_prob(drawn).sum(1)
        return found.reshape(actions.shape[:2])
