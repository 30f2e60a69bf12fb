r"""RePo's alignment with new pictures at test time: without rewards, only the encoder learns.

Dynamics, reward head, actor and critic stay what they were, and so does a copy :math:`e_s` of the encoder; the
environment now looks different. A new encoder :math:`e_t` begins as the old one and learns

.. math::

   \min_{e_t} \min_{\tau \ge 0,\, E_s[\tau] = 1} \max_D \;
   E_s[\tau(e) D(e)] - E_t[D(e) + D(e)^2 / 4] \;+\; E_{pairs}\big[-\log N(e_s(o) ; e_t(o'), I)\big] .

The first part is the chi-square divergence of a reweighted source from the target, smallest over weights: new codes
must lie within the support of old ones, not be as frequent. The second calibrates by pairs of pictures of the same
state. No reward is read. Paper: RePo, arXiv 2309.00082.

Where the paper and its code are silent, or this deviates from them:

- pairs come from the source environment and the new one side by side, with equal seeds and equal actions;
- one picture of a batch is drawn as likely as any other, codes of the source from a sample that the checkpoint keeps;
- there is no consistency of dynamics, which the code has for pairs alone.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from .agent import AgentConfig
from .callbacks import newest_checkpoint
from .checkpoint import STATE, load_json
from .descent import descend
from .environment import environment_state, restore_environment
from .policies.policy import Policy
from .policies.world_model import WorldModelPolicy
from .randomness import seeded
from .repo import RePo
from .rollouts import as_array
from .world_model.agent import WorldModelAgent, WorldModelConfig, adam
from .world_model.networks import normalized
from .world_model.objectives import unit_gaussian_loss
from .world_model.support import BOTTLENECK, SupportConstraint


@dataclass(frozen=True, kw_only=True)
class RePoAlignmentConfig(WorldModelConfig):
    """Options of the alignment; the defaults are those of RePo's code.

    Attributes:
        learning_starts: steps before the first round; the policy acts from the first one on.
        source: folder of the RePo checkpoint to begin with, or of a run, whose newest counts. None: the agent is
            given, or was loaded.
        source_codes: encoded pictures of the source's replay buffer that are kept, at most.
        num_pairs: pictures of the same state in both environments; 0 does without calibration.
        pair_reset_every: steps after which both environments begin anew while pairs are collected.
        encoder_learning_rate: of the encoder.
        support_learning_rate: of the critic.
        weight_learning_rate: of the weights.
        support_hidden: width of the four hidden layers of critic and weights.
        support_coef: weight of the support constraint in the encoder's loss.
        calibration_coef: weight of the calibration.
        penalty_coef: weight of the penalty on the critic's gradient.
        nats_target: that the critic's bottleneck lets through.
        initial_nats_multiplier: of that limit.
        initial_mean_multiplier: of the weights' mean being 1.
        multiplier_step: by which both go up their gradient.
    """

    learning_starts: int = 500
    source: str | None = None
    source_codes: int = 5000
    num_pairs: int = 5000
    pair_reset_every: int = 500
    encoder_learning_rate: float = 3e-4
    support_learning_rate: float = 3e-4
    weight_learning_rate: float = 5e-5
    support_hidden: int = 256
    support_coef: float = 1.0
    calibration_coef: float = 1.0
    penalty_coef: float = 1.0
    nats_target: float = 0.1
    initial_nats_multiplier: float = 0.1
    initial_mean_multiplier: float = 1e-4
    multiplier_step: float = 5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(["source_codes", "pair_reset_every", "support_hidden"], lambda v: v >= 1, "at least 1")
        rates = ("encoder_learning_rate", "support_learning_rate", "weight_learning_rate")
        self.require(rates, lambda v: 0 < v < math.inf, "above 0")
        weights = ("num_pairs", "support_coef", "calibration_coef", "penalty_coef", "nats_target", "multiplier_step")
        self.require([*weights, "initial_nats_multiplier"], lambda v: 0 <= v < math.inf, "at least 0")


class RePoAlignment(WorldModelAgent):
    """The agent of RePo where pictures have changed.

    Args:
        env: as the pictures are now. Its rewards are not read, apart from what ``evaluate`` and logs report.
        policy: not for you: what a checkpoint holds.
        config: the options; None takes the defaults.
        source: the trained agent; None: ``config.source`` is loaded.
        source_env: as pictures were, with as many rows as ``env``, another one than that; None: the source's own.
        seed: fixes pairs, episodes and actions.
        device: where the networks live.
        folder: run folder for logs and checkpoints; None writes nothing.

    Attributes:
        codes: ``[N, E]`` of the source's pictures.
        pairs: pictures of now, ``observations [P, ...]``, and ``codes [P, E]`` of the source's of the same states.

    Raises:
        TypeError: if the source is no RePo, such as a folder.
        ValueError: without a source, or if the two environments are one, or do not go the same way.
    """

    config_class = RePoAlignmentConfig
    config: RePoAlignmentConfig
    learns_rewards = False

    def __init__(
        self,
        env: str | VectorEnv[Any, Any, Any],
        policy: str | Policy | None = None,
        config: AgentConfig | None = None,
        *,
        source: RePo | None = None,
        source_env: VectorEnv[Any, Any, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
    ) -> None:
        if source is not None and not isinstance(source, RePo):
            raise TypeError(
                f"source is a {type(source).__name__}, expected a RePo: folders go into RePoAlignmentConfig(source=...)"
            )
        self._source, self._source_env = source, source_env
        super().__init__(env, policy, config, seed=seed, device=device, folder=folder)

    def default_policy(self, model: str | None, generator: torch.Generator) -> Policy:
        """A copy of the source's policy.

        Raises:
            ValueError: if there is no source, or a model is named.
        """
        if model is not None:
            raise ValueError(f"policy={model!r} names a model, but {type(self).__name__} takes that of its source")
        if self._source is None:
            if self.config.source is None:
                raise ValueError("there is no source: give source=agent, or its checkpoint as source in the config")
            self._source = self._load_source(Path(self.config.source))
        policy = WorldModelPolicy.from_spec(self._source.policy.spec())
        policy.load_state_dict(self._source.policy.state_dict())
        return policy

    def _load_source(self, given: Path) -> RePo:
        """The source in its own environment; in ``source_env`` where that cannot be built again."""
        folder = newest_checkpoint(given) or given
        state = folder / STATE
        rebuilt = not state.is_file() or load_json(state.read_text("utf-8"))["env"]["spec"] is not None
        if not rebuilt and self._source_env is None:
            raise ValueError(
                f"source={str(given)!r}: its environment cannot be rebuilt from JSON; give it, wrapped as it was, as "
                f"{type(self).__name__}(..., source_env=...)"
            )
        return RePo.load(folder, None if rebuilt else self._source_env)

    def _setup(self) -> None:
        super()._setup()
        c, policy = self.config, self.policy
        policy.requires_grad_(True)  # what is saved of a policy are parameters that may learn
        self.source_encoder = copy.deepcopy(policy.encoder).requires_grad_(False)
        size = policy.spec()["embedding"]
        with seeded(self.seed):
            self.support = SupportConstraint(size, c.support_hidden, c).to(policy.device)
        self.optimizers = {
            "encoder_optimizer": adam([policy.encoder], c.encoder_learning_rate),
            "support_optimizer": adam([self.support.critic], c.support_learning_rate),
            "weight_optimizer": adam([self.support.log_weights], c.weight_learning_rate),
        }
        self.codes = torch.zeros(0, size, device=policy.device)
        self.pairs: dict[str, Tensor] = {}
        if self._source is not None:
            replay = self._source.replay
            count = min(c.source_codes, int(replay.sizes.sum()))
            self.codes = self._source_code(replay.sample(count, 1, self.rng, policy.device).observations[:, 0])
            if c.num_pairs:
                env = self._source_env or self._source.env
                state = environment_state(env)
                self.pairs = self._collect_pairs(env)
                restore_environment(env, state)
                if env is self._source.env:
                    self._source.vec_env.moved = True  # its episodes go on where it left them
        self._source = self._source_env = None

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.optimizers

    @torch.no_grad()
    def _source_code(self, observations: Tensor) -> Tensor:
        """What the source made of pictures, ``[B, E]``; a few at a time."""
        return torch.cat([self.source_encoder(normalized(part)).float() for part in observations.split(256)])

    @torch.no_grad()
    def _collect_pairs(self, source: VectorEnv[Any, Any, Any]) -> dict[str, Tensor]:
        """Pictures of now and codes of then: the source's policy acts on what it knows, in both environments alike."""
        c, policy, rows = self.config, self.policy, self.env.num_envs
        if source is self.env:
            raise ValueError("the source's environment is env itself, expected another one: they play side by side")
        if source.num_envs != rows:
            raise ValueError(f"the source's environment has {source.num_envs} rows, the new one {rows}: must be equal")
        codes: list[Tensor] = []
        pictures: list[Tensor] = []
        while len(codes) * rows < c.num_pairs:
            seeds = self.rng.integers(2**31, size=rows).tolist()
            (then, _), (now, _) = source.reset(seed=seeds), self.env.reset(seed=seeds)
            belief = policy.initial(rows)
            for _ in range(min(c.pair_reset_every, math.ceil(c.num_pairs / rows) - len(codes))):
                seen = torch.as_tensor(as_array(then), device=policy.device)
                codes.append(self._source_code(seen))
                pictures.append(torch.as_tensor(as_array(now), device=policy.device).clone())
                drawn = self.random_normal(rows, policy.rssm.sizes[1]), self.random_normal(rows, len(policy.centre))
                belief, _ = policy.decide(belief, seen, *drawn)
                action = policy.scaled(belief.action).cpu().numpy()
                (then, _, *ends, _), (now, _, *others, _) = source.step(action), self.env.step(action)
                if not np.array_equal(ends, others):
                    raise ValueError("the same seeds and actions end episodes at different times in both environments")
                belief = belief.forget(torch.from_numpy(np.logical_or(*map(as_array, ends))).to(policy.device))
        return {"observations": torch.cat(pictures)[: c.num_pairs], "codes": torch.cat(codes)[: c.num_pairs]}

    def first_actions(self, rows: int, count: int) -> Tensor | None:
        """The policy's own from the first step on."""
        return None

    def update(self) -> dict[str, Tensor]:
        """One update of critic, weights, multipliers and encoder."""
        c, policy = self.config, self.policy
        pictures = self.replay.sample(c.batch_size, 1, self.rng, policy.device).observations[:, 0]
        source = self.codes[self._some(len(self.codes))]
        target = policy.encoder(normalized(pictures))
        loss, logged = self.support.critic_loss(source, target, self.random_normal(2 * c.batch_size, BOTTLENECK))
        descend(self.optimizers["support_optimizer"], loss)
        loss, excess = self.support.weights_loss(source)
        descend(self.optimizers["weight_optimizer"], loss)
        self.support.ascend(logged["nats"], excess)
        loss = c.support_coef * self.support.target_loss(target)
        if self.pairs:
            some = self._some(len(self.pairs["codes"]))
            found = policy.encoder(normalized(self.pairs["observations"][some]))
            calibration = unit_gaussian_loss(found, self.pairs["codes"][some]).sum(-1).mean()
            loss = loss + c.calibration_coef * calibration
            logged["calibration"] = calibration.detach()
        descend(self.optimizers["encoder_optimizer"], loss)
        return logged | {"weights_mean": excess + 1}

    def _some(self, count: int) -> Tensor:
        return torch.from_numpy(self.rng.integers(count, size=self.config.batch_size)).to(self.policy.device)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return super()._tensors() | {
            "source_encoder": dict(self.source_encoder.state_dict()), "support": dict(self.support.state_dict()),
            "codes": {"codes": self.codes}, "pairs": self.pairs,
        }  # fmt: skip

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        self.source_encoder.load_state_dict(tensors["source_encoder"])
        self.support.load_state_dict(tensors["support"])
        self.codes = tensors["codes"]["codes"].to(self.policy.device)
        self.pairs = {k: v.to(self.policy.device) for k, v in tensors.get("pairs", {}).items()}
