r"""RePo: a world model whose latent state is trained by rewards and predictability alone, and behaviour imagined in it.

The model maximises the information between latent states and rewards subject to a limit on that between states and
pictures: a state keeps what decides rewards, and forgets the rest of the picture, such as a video in the background.
No pixel enters its loss (:mod:`.world_model.objectives` has the equations). ``reconstruction=True`` makes the same
code a Dreamer, whose states must also show the picture. Behaviour is Dreamer's in both: an actor that climbs
:math:`\lambda`-returns through the imagined dynamics, and a critic that predicts them. Papers: RePo, arXiv 2309.00082;
Dreamer, arXiv 1912.01603.

Where the paper and its code are silent or ambiguous, or this deviates from them:

- at the first step of an episode the whole state counts as zero, and the action before it; the code keeps ``h``;
- the probe decoder has an optimiser and a gradient norm of its own; in the code it shares the model's, so that its
  large gradient shortens theirs;
- :math:`\lambda`-returns are of states and the rewards after them; the code's are shifted by a step;
- the entropy of the actor is estimated by its log-density at the actions it drew;
- the decoder mirrors the encoder; pictures of other sizes than 64 x 64 get as many convolutions as fit;
- Dreamer's free nats are of the mean divergence of a batch, and nothing is balanced;
- evaluation believes in the mean of the posterior and takes the mean action;
- nothing predicts ends: imagination goes on for ever, as the tasks of dm_control's suite do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .descent import descend
from .policies.world_model import WorldModelPolicy
from .world_model.agent import WorldModelAgent, WorldModelConfig, adam
from .world_model.networks import normalized
from .world_model.objectives import (
    balanced_kl,
    dual_loss,
    gaussian_kl,
    lambda_returns,
    tanh_log_prob,
    unit_gaussian_loss,
)
from .world_model.replay import Sequences
from .world_model.rssm import State


@dataclass(frozen=True, kw_only=True)
class RePoConfig(WorldModelConfig):
    """Options of RePo; the defaults are those of its code.

    Attributes:
        sequence_length: steps of a sequence of an update.
        deterministic_size: numbers of the deterministic part of a state.
        stochastic_size: of the stochastic part.
        hidden_size: width of all hidden layers.
        embedding_size: numbers of an encoded observation.
        conv_depth: channels of the encoder's first convolution.
        reconstruction: also reconstruct observations from states, as Dreamer does, instead of the limit on information.
        probe: train a decoder of observations beside the model, on states that it does not move, for people to look at.
        kl_target: nats by which an observation may move a belief, on average.
        kl_balance: share of the divergence's gradient that goes to the prior.
        initial_beta: of the multiplier of the limit. Small runs need a greater one, or a greater rate.
        beta_learning_rate: of Adam on the multiplier's logarithm, so about the relative change of an update at most.
        free_nats: of Dreamer; less divergence than that costs nothing.
        model_learning_rate: of encoder, dynamics, reward head, and decoders.
        actor_learning_rate: of the actor.
        critic_learning_rate: of the critic.
        max_grad_norm: each of the three is clipped to it.
        horizon: states of an imagined trajectory, the first one included.
        gamma: discount.
        return_lambda: of the returns, in [0, 1].
        entropy_coef: weight of the actor's entropy.
        initial_std: of the actor's Gaussian, before its tanh. 5 takes the extremes only; short runs begin with about 1.
        precision: "bfloat16" computes networks in it (weights and losses stay float32), for GPUs.
        compile: compile the losses with torch.compile, for GPUs; it takes minutes to begin with.
    """

    sequence_length: int = 50
    deterministic_size: int = 200
    stochastic_size: int = 30
    hidden_size: int = 200
    embedding_size: int = 1024
    conv_depth: int = 32
    reconstruction: bool = False
    probe: bool = False
    kl_target: float = 3.0
    kl_balance: float = 5 / 6
    initial_beta: float = 1e-5
    beta_learning_rate: float = 1e-4
    free_nats: float = 3.0
    model_learning_rate: float = 3e-4
    actor_learning_rate: float = 8e-5
    critic_learning_rate: float = 8e-5
    max_grad_norm: float = 100.0
    horizon: int = 15
    gamma: float = 0.99
    return_lambda: float = 0.95
    entropy_coef: float = 3e-4
    initial_std: float = 5.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("deterministic_size", "stochastic_size", "hidden_size", "embedding_size", "conv_depth")
        self.require(sizes, lambda v: v >= 1, "at least 1")
        self.require(["sequence_length", "horizon"], lambda v: v >= 2, "at least 2")
        rates = ("model_learning_rate", "actor_learning_rate", "critic_learning_rate", "initial_beta")
        self.require([*rates, "max_grad_norm", "initial_std"], lambda v: 0 < v < math.inf, "above 0")
        not_negative = ("beta_learning_rate", "kl_target", "free_nats", "entropy_coef")
        self.require(not_negative, lambda v: 0 <= v < math.inf, "at least 0")
        self.require(["kl_balance", "gamma", "return_lambda"], lambda v: 0 <= v <= 1, "in [0, 1]")
        least = self.sequence_length * self.num_envs
        words = f"at least sequence_length times num_envs = {least}"
        self.require(["learning_starts", "buffer_size"], lambda v: v >= least, words)
        if self.reconstruction and self.probe:
            raise ValueError("probe=True: with reconstruction=True the model has a decoder of its own; leave probe out")


def model_loss(
    policy: WorldModelPolicy, batch: Sequences, noise: Tensor, beta: Tensor, config: RePoConfig
) -> tuple[Tensor, State, dict[str, Tensor]]:
    """What the model minimises, the states that it believes in, and numbers to log, the divergence ``kl`` among them.

    Args:
        policy: its networks.
        batch: recorded steps.
        noise: ``[B, L, Z]`` standard normal.
        beta: the multiplier, which gets no gradient here.
        config: the options.
    """
    observations = normalized(batch.observations)
    embeddings = policy.encoder(observations)
    states, posterior, prior = policy.rssm.observe(embeddings, batch.actions, batch.first, noise)
    known = (~batch.first).float()  # nothing was earned by starting
    errors = unit_gaussian_loss(policy.reward(states.features).float(), batch.rewards)
    reward_loss = (errors * known).sum() / known.sum().clamp(min=1)
    if config.reconstruction:
        assert policy.decoder is not None
        pixels = unit_gaussian_loss(policy.decoder(states.features).float(), observations)
        picture_loss = pixels.flatten(2).sum(2).mean()
        kl = gaussian_kl(posterior, prior).mean()
        loss = reward_loss + picture_loss + kl.clamp(min=config.free_nats)
        logged = {"picture_loss": picture_loss}
    else:
        kl = balanced_kl(posterior, prior, config.kl_balance).mean()
        loss, logged = reward_loss + beta.detach() * kl, {}
    logged |= {"model_loss": loss, "reward_loss": reward_loss, "kl": kl}
    return loss, states, {k: v.detach() for k, v in logged.items()}


def actor_loss(
    policy: WorldModelPolicy, start: State, noise: Tensor, action_noise: Tensor, config: RePoConfig
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """What the actor minimises in imagined trajectories, what the critic learns from there, and numbers to log.

    Args:
        policy: its networks.
        start: ``[N, ...]`` states to begin with.
        noise: ``[N, T, Z]`` standard normal.
        action_noise: ``[N, T, A]`` standard normal.
        config: the options.

    Returns:
        the loss; ``[N, T, F]`` features of states and ``[N, T]`` returns from there, without gradients; the numbers.
    """
    log_probs: list[Tensor] = []

    def act(features: Tensor, drawn: Tensor) -> Tensor:
        gaussian = policy.actions(features)
        raw = gaussian.sample(drawn)
        log_probs.append(tanh_log_prob(gaussian.mean, gaussian.std, raw))
        return raw.tanh()

    states, _ = policy.rssm.imagine(start, act, noise, action_noise)
    features = states.features
    rewards, values = policy.reward(features[:, 1:]).float(), policy.critic(features).float()
    returns = lambda_returns(rewards, values, config.gamma, config.return_lambda)
    entropy = -torch.stack(log_probs, 1)
    loss = -(returns + config.entropy_coef * entropy).mean()
    logged = {"actor_loss": loss, "entropy": entropy.mean(), "imagined_return": returns.mean()}
    return loss, features[:, :-1].detach(), returns.detach(), {k: v.detach() for k, v in logged.items()}


def critic_loss(policy: WorldModelPolicy, features: Tensor, returns: Tensor) -> Tensor:
    """What the critic minimises: that of regression on imagined returns. See :func:`actor_loss`."""
    return unit_gaussian_loss(policy.critic(features).float(), returns).mean()


class RePo(WorldModelAgent):
    """RePo, or Dreamer with ``reconstruction=True``, on pictures or vectors, with vectors of actions within bounds.

    Arguments are those of :class:`.agent.Agent`. A picture environment is asked for as such:
    ``gym.make_vec("ControlAlign-v0", observation="pixels", ...)``.

    Attributes:
        log_beta: logarithm of the multiplier of the limit on information.
    """

    config_class = RePoConfig
    config: RePoConfig

    def _sizes(self) -> dict[str, Any]:
        c = self.config
        return {
            "deterministic": c.deterministic_size, "stochastic": c.stochastic_size, "hidden": c.hidden_size,
            "embedding": c.embedding_size, "depth": c.conv_depth, "decoder": c.reconstruction or c.probe,
            "initial_std": c.initial_std,
        }  # fmt: skip

    def _setup(self) -> None:
        super()._setup()
        c, policy = self.config, self.policy
        if (policy.decoder is not None) != (c.reconstruction or c.probe):
            raise ValueError("a policy has a decoder where reconstruction or probe ask for one, and only there")
        self.log_beta = torch.tensor(math.log(c.initial_beta), device=policy.device, requires_grad=True)
        model = [policy.encoder, policy.rssm, policy.reward]
        if c.reconstruction:
            assert policy.decoder is not None
            model.append(policy.decoder)
        self.optimizers = {
            "model_optimizer": adam(model, c.model_learning_rate),
            "actor_optimizer": adam([policy.actor], c.actor_learning_rate),
            "critic_optimizer": adam([policy.critic], c.critic_learning_rate),
        }
        if c.probe:
            assert policy.decoder is not None
            self.optimizers["probe_optimizer"] = adam([policy.decoder], c.model_learning_rate)
        if not c.reconstruction:
            self.optimizers["beta_optimizer"] = torch.optim.Adam([self.log_beta], lr=c.beta_learning_rate)
        wrap = torch.compile if c.compile else lambda function: function
        # A compiled function has one backward pass: each of the three losses is descended by itself.
        self._model_loss, self._actor_loss, self._critic_loss = wrap(model_loss), wrap(actor_loss), wrap(critic_loss)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.optimizers

    def update(self) -> dict[str, Tensor]:
        """One update of the model, of the limit's multiplier, and of the behaviour in what the model imagines."""
        c, policy, device = self.config, self.policy, self.policy.device
        batch = self.replay.sample(c.batch_size, c.sequence_length, self.rng, device)
        noise = self.random_normal(c.batch_size, c.sequence_length, c.stochastic_size)
        half = torch.autocast(device.type, torch.bfloat16, enabled=c.precision == "bfloat16")
        with half:
            loss, states, logged = self._model_loss(policy, batch, noise, self.log_beta.exp(), c)
        descend(self.optimizers["model_optimizer"], loss, max_grad_norm=c.max_grad_norm)
        if not c.reconstruction:
            descend(self.optimizers["beta_optimizer"], dual_loss(self.log_beta, logged["kl"], c.kl_target))
            logged["beta"] = self.log_beta.detach().exp()
        if c.probe:
            logged["picture_loss"] = self._probe(batch, states.detach())
        start = states.detach().flatten()
        rows, steps = len(start.deterministic), c.horizon - 1
        drawn = self.random_normal(rows, steps, c.stochastic_size), self.random_normal(rows, steps, len(policy.centre))
        with half:
            of_actor, features, returns, more = self._actor_loss(policy, start, *drawn, c)
            of_critic = self._critic_loss(policy, features, returns)
        descend(self.optimizers["actor_optimizer"], of_actor, max_grad_norm=c.max_grad_norm)
        descend(self.optimizers["critic_optimizer"], of_critic, max_grad_norm=c.max_grad_norm)
        return logged | more | {"critic_loss": of_critic.detach()}

    def _probe(self, batch: Sequences, states: State) -> Tensor:
        """One update of the decoder that only looks."""
        assert self.policy.decoder is not None
        observations = normalized(batch.observations)
        loss = unit_gaussian_loss(self.policy.decoder(states.features).float(), observations).flatten(2).sum(2).mean()
        descend(self.optimizers["probe_optimizer"], loss, max_grad_norm=self.config.max_grad_norm)
        return loss.detach()

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return super()._tensors() | {"beta": {"log_beta": self.log_beta.detach()}}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        with torch.no_grad():
            self.log_beta.copy_(tensors["beta"]["log_beta"])
