r"""TempFlow-GRPO: episodes of a group branch at one denoising step, which alone is credited with how they end.

An iteration draws a step :math:`k`. All its episodes follow the ODE but for that step, which draws noise: a group
shares its prompt, its initial noise and hence :math:`x_k`, and parts there. So the advantage within the group belongs
to the decision at :math:`k`, and to no other. The surrogate of step :math:`t` weighs

.. math:: w_t = S_t / \mathrm{mean}_t S_t

since the gradient of its log-probability scales with :math:`\|\partial\mu / \partial v\| / S_t`, which is small at
early steps although they decide the most. Paper: arXiv 2508.04324; the rest is that of ``flow_grpo.py``.

Deviations: one step an iteration, for all groups, where the paper branches off every step of one trajectory in turn;
deviations are of the whole iteration, as few branches give a noisy one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from ..trajectories import Trajectories
from .flow_grpo import FlowGRPO, FlowGRPOConfig
from .on_policy import Metrics
from .policies.denoiser_policy import DenoiserPolicy


@dataclass(frozen=True, kw_only=True)
class TempFlowGRPOConfig(FlowGRPOConfig):
    """Options of TempFlow-GRPO: those of Flow-GRPO, with other defaults.

    Attributes:
        branching: noise at one step an iteration; without, at all of them: Flow-GRPO with weighted steps.
        step_weights: each step's share of the sampler's noise.
    """

    branching: bool = True
    step_weights: Literal["uniform", "noise", "inverse_step"] = "noise"


class TempFlowGRPO(FlowGRPO):
    """TempFlow-GRPO with a denoising policy."""

    config_class = TempFlowGRPOConfig
    config: TempFlowGRPOConfig
    policy: DenoiserPolicy

    def _setup(self) -> None:
        super()._setup()
        if not isinstance(self.policy, DenoiserPolicy):
            raise ValueError(f"TempFlowGRPO branches denoising, but the policy is a {type(self.policy).__name__}")

    def iterate(self) -> tuple[Trajectories, Metrics]:
        """One round, with noise at one of the sampler's noisy steps."""
        if not self.config.branching:
            return super().iterate()
        noisy = (self.policy.table.std > 0).nonzero()[:, 0].tolist()
        if not noisy:
            raise ValueError(
                f"no step of sampler {self.policy.sampler!r} with noise_level={self.policy.noise_level} draws noise"
            )
        step = int(self.rng.choice(noisy))
        with self._noise_at(step):
            episodes, metrics = super().iterate()
        return episodes, metrics | {"train/branch_step": float(step)}

    @contextmanager
    def _noise_at(self, step: int) -> Iterator[None]:
        """Policy and reference draw noise at ``step`` only; afterwards as before."""
        policies, before = [self.policy], self.policy.stochastic_steps
        if self.reference.kind != "none":
            with self.reference.policy(self.policy) as reference:
                policies.append(reference)  # type: ignore[arg-type]
        try:
            for policy in policies:
                policy.set_sampler(policy.sampler, policy.noise_level, (step,))
            yield
        finally:
            for policy in policies:
                policy.set_sampler(policy.sampler, policy.noise_level, before)
