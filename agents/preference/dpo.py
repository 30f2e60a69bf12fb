r"""Direct Preference Optimization on any policy and environment: texts, images, control.

.. math::
    L = -\log \sigma\big(\beta [(\log \pi(y_w) - \log \pi_{ref}(y_w)) - (\log \pi(y_l) - \log \pi_{ref}(y_l))]\big)

for an episode :math:`y_w` that is preferred over :math:`y_l` from the same state. If preferences follow the
Bradley-Terry model of a reward :math:`r`, the optimum is :math:`\pi_{ref} \exp(r/\beta) / Z`, that of reinforcement
learning with a divergence penalty of weight :math:`\beta`. Paper: arXiv 2305.18290.

The likelihood is ``policy.log_likelihood``: exact for tokens and control; for a denoiser the surrogate of Diffusion-DPO
(arXiv 2311.12908), minus the squared error of its prediction at a random step and noise, which chosen and rejected,
policy and reference share. Its losses are means over dimensions, hence a beta in the thousands.

Deviations: without given pairs, episodes are sampled in groups, and the best and the worst of each by the environment's
reward are a pair (online DPO, arXiv 2402.04792, with a reward in place of the annotator).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from ...trajectories import Trajectories
from ..agent import AgentConfig
from ..gradient import GradientAgent, GradientConfig, Metrics, without_padding
from ..policies.policy import Policy, RowNoise
from .losses import check_preference_loss, log_ratio_difference, preference_loss
from .pairs import Preferences, best_and_worst, text_preferences


@dataclass(frozen=True, kw_only=True)
class DPOConfig(GradientConfig):
    """Options of DPO; a row of a minibatch is a pair.

    Attributes:
        pairs: a JSON Lines file of {"prompt", "chosen", "rejected"} for text environments; None samples episodes and
            pairs the best with the worst of each group.
        episodes_per_iteration: episodes of an iteration, in groups; of given pairs half as many, each pair once a pass
            over the data.
        group_size: sampled episodes that begin from the same state, of which two become a pair. 2 to 64.
        sample_from: who plays the episodes: the trained policy (online), or the reference.
        beta: 0.01 to 0.5 for texts; in the thousands for denoisers, whose likelihoods are means over dimensions.
        loss: sigmoid (DPO), robust (unbiased where labels are flipped with probability label_smoothing), or ipo.
        label_smoothing: share of labels taken to be wrong, below 0.5.
        learning_rate: the default suits the embedded language model.
        reference: what the likelihoods are compared with; none takes 0 in its place.
    """

    pairs: str | None = None
    episodes_per_iteration: int = 64
    group_size: int = 4
    sample_from: Literal["policy", "reference"] = "policy"
    beta: float = 0.1
    loss: Literal["sigmoid", "robust", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0
    learning_rate: float = 1e-4
    reference: Literal["initial", "moving", "soup", "none"] = "initial"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_preference_loss(self.loss, self.beta, self.label_smoothing)
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: a pair is two episodes of a group, give 2 or more")
        if self.sample_from == "reference" and self.reference == "none":
            raise ValueError("sample_from='reference' needs a reference policy, but reference='none'")


class DPO(GradientAgent):
    """Direct Preference Optimization.

    Args:
        env: as every agent's.
        policy: as every agent's; it must have likelihoods.
        config: the options.
        pairs: preferences to learn from, of any kind of episode; None takes the file in the config, or, without one,
            samples them.
        seed: as every agent's.
        device: as every agent's.
        folder: as every agent's.
    """

    config_class = DPOConfig
    config: DPOConfig
    _saved_pairs: str | None = None

    def __init__(
        self,
        env: str | VectorEnv[Any, Any, Any],
        policy: str | Policy | None = None,
        config: AgentConfig | None = None,
        *,
        pairs: Preferences | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(env, policy, config, seed=seed, device=device, folder=folder)
        if pairs is not None and self.config.pairs is not None:
            raise ValueError(f"pairs are given twice: as an argument and as the file {self.config.pairs} of the config")
        if self.config.pairs is not None:
            pairs = text_preferences(self.env, self.config.pairs)
        self.pairs = self._checked(pairs)

    @staticmethod
    def _checked(pairs: Preferences | None) -> Preferences | None:
        if pairs is not None and not len(pairs):
            raise ValueError("pairs is empty, expected at least one pair; None samples them")
        return pairs

    def iterate(self) -> tuple[Trajectories, Metrics]:
        """Sample episodes and pair them, or take the next given pairs; then update."""
        if self.pairs is None:
            episodes = self._play()
            pairs = best_and_worst(episodes)
        else:
            pairs = self.pairs.select(self._next_rows(len(self.pairs))).to(self.policy.device)
            episodes = pairs.stacked()
        metrics: Metrics = {"train/pairs": float(len(pairs))}
        if len(pairs):
            metrics |= self.update(pairs.lengths.cpu(), partial(self._losses, pairs))
        self.reference.step(self.policy, self.iteration + 1, self.config.reference_every, self.config.reference_mix)
        return episodes, metrics

    def _play(self) -> Trajectories:
        if self.config.sample_from == "policy":
            return self.collect()
        with self.reference.policy(self.policy) as policy:
            return self.collect(policy)

    def _next_rows(self, count: int) -> Tensor:
        """Which of ``count`` pairs this iteration takes: every pair once a pass, in another order each pass.

        A function of the iteration alone, so that a resumed run goes on where it stood.
        """
        size = max(1, self.config.episodes_per_iteration // 2)
        positions = [divmod(p, count) for p in range(self.iteration * size, (self.iteration + 1) * size)]
        orders = {n: np.random.default_rng([self.seed, 2, n]).permutation(count) for n, _ in positions}
        return torch.tensor([int(orders[n][p]) for n, p in positions])

    def _losses(self, pairs: Preferences, rows: Tensor, seeds: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of some pairs; a pair's seed gives all four of its likelihoods the same noise."""
        c = self.config
        episodes = without_padding(pairs.select(rows).stacked()).to(self.policy.device)
        now = self.policy.log_likelihood(episodes, RowNoise(seeds + seeds))
        before = torch.zeros_like(now)
        if c.reference != "none":
            with torch.no_grad(), self.reference.policy(self.policy) as policy:
                before = policy.log_likelihood(episodes, RowNoise(seeds + seeds))
        (chosen, rejected), (reference_chosen, reference_rejected) = now.chunk(2), before.chunk(2)
        difference = log_ratio_difference(chosen, rejected, reference_chosen, reference_rejected)
        losses = preference_loss(difference, c.beta, c.loss, c.label_smoothing)
        return losses, {
            "train/loss": losses,
            "train/margin": c.beta * difference,
            "train/accuracy": (difference > 0).float(),
            # Both may fall, or for a denoiser both errors grow, while the loss falls: only these show it.
            "train/chosen_log_likelihood": chosen - reference_chosen,
            "train/rejected_log_likelihood": rejected - reference_rejected,
        }

    @torch.no_grad()
    def compare(self, pairs: Preferences, *, seed: int = 1_000_000) -> Metrics:
        """The training metrics on other pairs, held-out ones, say. Nothing is trained, and the noise is fixed.

        Args:
            pairs: at least one.
            seed: of the noise of the first pair; pair ``i`` has ``seed + i``.
        """
        totals: dict[str, list[Tensor]] = {}
        for rows in torch.arange(len(pairs)).split(self.config.micro_batch_size or len(pairs)):
            for name, values in self._losses(pairs, rows, [seed + i for i in rows.tolist()])[1].items():
                totals.setdefault(name.removeprefix("train/"), []).append(values)
        return {name: torch.cat(values).mean().item() for name, values in totals.items()}

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"pairs": None if self.pairs is None else self.pairs.fingerprint()}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        self._saved_pairs = state["pairs"]

    @classmethod
    def load(
        cls,
        folder: str | Path,
        env: str | VectorEnv[Any, Any, Any] | None = None,
        *,
        policy: Policy | None = None,
        config: AgentConfig | None = None,
        device: str | torch.device = "cpu",
        run_folder: str | Path | None = None,
        pairs: Preferences | None = None,
    ) -> Self:
        """Restore an agent, as :meth:`Agent.load <aligngym.agents.agent.Agent.load>`.

        Args:
            folder: as there.
            env: as there.
            policy: as there.
            config: as there.
            device: as there.
            run_folder: as there.
            pairs: needed where the agent was given them: a checkpoint does not hold them, only a hash.

        Raises:
            ValueError: if the pairs are not those that the saved agent learned from.
        """
        agent = super().load(folder, env, policy=policy, config=config, device=device, run_folder=run_folder)
        if pairs is not None:
            agent.pairs = cls._checked(pairs)
        found = None if agent.pairs is None else agent.pairs.fingerprint()
        if found != agent._saved_pairs:
            raise ValueError(
                f"{folder} was saved with {'no' if agent._saved_pairs is None else 'other'} pairs: "
                "pass those that the agent was made with, and only those, as load(folder, pairs=...)"
            )
        return agent
