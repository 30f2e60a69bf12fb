r"""Denoising diffusion policy optimisation: each episode is judged against what its prompt has paid so far.

Denoising is a Markov decision process: state :math:`(x_t, t, c)`, action
:math:`x_{t-1} \sim N(\mu_\theta(x_t, t, c), S_t^2 I)`, and a reward for the final sample alone. Every decision of
episode :math:`i` has the advantage

.. math:: A_i = \mathrm{clip}\left(\frac{r_i - m_p}{s_p + \epsilon}, -5, 5\right)

with mean and standard deviation of the last 16 returns of its prompt :math:`p`, this iteration's included, or of the
whole iteration while there are fewer. The loss is the clipped surrogate, averaged over episodes and denoising steps.
Paper: Black et al. 2023, arXiv 2305.13301 (the variant with importance sampling).

Nothing here knows of images: with ``step_weights="uniform", decisions_per_update=0`` any environment will do, and one
whose info has no ``prompt`` counts as a single prompt.

Deviations: steps are weighted by their noise (``step_weights="uniform"`` is the paper's loss); an optimiser step reads
some denoising steps of each episode at once, where the paper's code goes through all of them one by one; equal returns
give exactly 0. Its clip range of 1e-4 belongs to log-probabilities that are means over
dimensions (``log_prob="mean"`` of the policy), the default here to their sums; see ``docs/agents.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..trajectories import Trajectories
from .advantages import prompt_scores
from .on_policy import OnPolicyAgent, OnPolicyConfig


@dataclass(frozen=True, kw_only=True)
class DDPOConfig(OnPolicyConfig):
    """Options of DDPO; those of every on-policy agent included.

    Attributes:
        prompt_buffer: returns kept of each prompt, the latest ones; at least 2.
        prompt_min_count: while fewer returns of a prompt are known, the iteration's mean and deviation are taken. More
            than prompt_buffer: always.
        epsilon: added to the standard deviation.
        advantage_clip: advantages are limited to plus and minus this.
        step_weights: each step's share of the sampler's noise, which on the embedded model learned several times faster
            than the paper's uniform weights: without it the almost noiseless last steps make up the gradient.
        decisions_per_update: denoising steps of each episode that an update reads.
        learning_rate: the default suits the embedded diffusion model.
        reference: none, as there is no divergence in the loss; another is paid for, and reported.
    """

    prompt_buffer: int = 16
    prompt_min_count: int = 16
    epsilon: float = 1e-6
    advantage_clip: float = 5.0
    step_weights: Literal["uniform", "noise", "inverse_step"] = "noise"
    decisions_per_update: int = 5
    learning_rate: float = 3e-5
    reference: Literal["initial", "moving", "soup", "none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("prompt_buffer", "prompt_min_count"), lambda v: v >= 2, "at least 2")
        self.require(("epsilon",), lambda v: v >= 0, "at least 0")


class DDPO(OnPolicyAgent):
    """DDPO on any environment; see the module."""

    config_class = DDPOConfig
    config: DDPOConfig

    def _setup(self) -> None:
        super()._setup()
        self.seen: dict[str, list[float]] = {}

    def targets(self, episodes: Trajectories, values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        c, prompts = self.config, prompts_of(episodes)
        for prompt, value in zip(prompts, episodes.returns.tolist(), strict=True):
            self.seen[prompt] = [*self.seen.get(prompt, []), value][-c.prompt_buffer :]
        advantage = prompt_scores(episodes.returns, prompts, self.seen, c.prompt_min_count, eps=c.epsilon)
        return self.clipped(advantage)[:, None] * episodes.mask, None

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "seen": self.seen}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        self.seen = {prompt: list(returns) for prompt, returns in state["seen"].items()}


def prompts_of(episodes: Trajectories) -> list[str]:
    """What each episode began from, as a key; all the same where the environment names no prompts."""
    return [str(prompt) for prompt in episodes.info.get("prompt", [""] * len(episodes))]
