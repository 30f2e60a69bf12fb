"""Small policies for classic control: multi-layer perceptrons over vectors, and a table over states."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn
from torch.nn import functional as F

from ...trajectories import Observations, Trajectories
from .policy import Decision, Evaluation, Policy, RowNoise, sample_categorical

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
LOG_STD_RANGE = (-5.0, 2.0)  # of a policy whose means are squashed


class ControlPolicy(Policy):
    """Actor-critic of two separate perceptrons, initialised as in CleanRL and Stable-Baselines3.

    Discrete actions follow a categorical distribution drawn by inverting its cumulative distribution, Box actions a
    diagonal Gaussian whose standard deviation does not depend on the state. Gaussian actions are recorded as drawn,
    outside the box too, since their log-probability is that of the unclipped Gaussian; they are clipped on the way
    to the environment only (``rollouts.environment_actions``).

    Args:
        observation_space: of one environment: Box (flattened) or Discrete (one-hot).
        action_space: of one environment: Discrete or Box.
        hidden: widths of the hidden layers.
        activation: ``tanh`` or ``relu``.
        value: whether there is a critic.
        generator: source of the initial weights; the same ones every time if None.
        squash: the mean of a Box action is ``tanh`` of the network's output, stretched over the box, and the logarithm
            of the standard deviation is limited to [-5, 2]: the policy of IQL. The density is still the Gaussian's.
        observation_mean: ``[F]``, taken off the flattened observations, before they are divided by
        observation_std: ``[F]``, above 0; None, both: they are taken as they are.

    Raises:
        TypeError: if a space is of another kind.
        ValueError: if ``activation`` is unknown, or actions are to be squashed that have no bounds.
    """

    scores_apart = True
    observation_mean: Tensor | None
    observation_std: Tensor | None
    centre: Tensor
    reach: Tensor

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        hidden: Sequence[int] = (64, 64),
        activation: Literal["tanh", "relu"] = "tanh",
        value: bool = True,
        generator: torch.Generator | None = None,
        squash: bool = False,
        observation_mean: Sequence[float] | None = None,
        observation_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            if not isinstance(space, spaces.Box | spaces.Discrete):
                raise TypeError(f"{name} is {space}, but ControlPolicy handles Box and Discrete only")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        self.observation_space, self.action_space = observation_space, action_space
        self.hidden, self.activation = tuple(hidden), activation
        generator = generator or torch.Generator().manual_seed(0)
        widths = [spaces.flatdim(observation_space), *hidden]
        outputs = spaces.flatdim(action_space)
        self.actor = _perceptron([*widths, outputs], ACTIVATIONS[activation], 0.01, generator)
        self.critic = _perceptron([*widths, 1], ACTIVATIONS[activation], 1.0, generator) if value else None
        self.log_std = nn.Parameter(torch.zeros(outputs)) if isinstance(action_space, spaces.Box) else None
        self.squash = squash
        if squash:
            if not isinstance(action_space, spaces.Box) or not action_space.is_bounded():
                raise ValueError(f"squash=True needs a Box with bounds, but the actions are {action_space}")
            low, high = (torch.from_numpy(b).flatten().float() for b in (action_space.low, action_space.high))
            self.register_buffer("centre", (high + low) / 2, persistent=False)
            self.register_buffer("reach", (high - low) / 2, persistent=False)
        self.standardize(observation_mean, observation_std)

    def standardize(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Take ``(observation - mean) / std`` for the observations from now on; None, both: take them as they are."""
        for name, values in (("observation_mean", mean), ("observation_std", std)):
            tensor = None if values is None else torch.tensor(values, dtype=torch.float32, device=self.device)
            self.register_buffer(name, tensor, persistent=False)

    def check_spaces(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Raise a ValueError where the environment's spaces have another kind or size."""
        check_space("observations", observation_space, self.observation_space)
        check_space("actions", action_space, self.action_space)

    @torch.no_grad()
    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        """Choose one action a row; consumes one number a row and action dimension, none if ``deterministic``.

        Args:
            observation: ``[B, *shape]`` (Box) or ``[B]`` (Discrete), numpy or torch.
            noise: one stream a row.
            deterministic: take the mode.

        Returns:
            actions ``[B]`` int64 or ``[B, *shape]`` float32, and log_probs ``[B]``.
        """
        outputs = self.outputs(self.features(observation))
        if isinstance(self.action_space, spaces.Discrete):
            decision = _draw(outputs, noise, deterministic)
            return Decision(decision.actions + int(self.action_space.start), decision.log_probs)
        assert self.action_space.shape is not None
        actions, log_std = outputs, self._log_std()
        if not deterministic:
            actions = outputs + log_std.exp() * noise.normal(outputs.shape[1:]).to(outputs)
        log_probs = _gaussian_log_prob(outputs, log_std, actions)
        return Decision(actions.reshape(-1, *self.action_space.shape), log_probs)

    def evaluate_actions(self, trajectories: Trajectories, *, entropy: bool = True) -> Evaluation:
        """Score recorded episodes; the observations are ``[B, T + 1, ...]``, columns past the mask's are not read.

        The entropy costs nothing here and is returned whether asked for or not.
        """
        mask = trajectories.mask
        features = self.features(_cut(trajectories.observations, mask))
        outputs, actions = self.outputs(features[:, :-1][mask]), trajectories.actions[mask]
        if isinstance(self.action_space, spaces.Discrete):
            log_probs, entropies = _score(outputs, actions - int(self.action_space.start))
        else:
            log_std = self._log_std()
            log_probs = _gaussian_log_prob(outputs, log_std, actions.flatten(1))
            entropies = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand_as(log_probs)
        values = None if self.critic is None else self.critic(features)[..., 0]
        return Evaluation(_scatter(log_probs, mask), _scatter(entropies, mask), values)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Log-probability ``[N]`` of ``actions [N, ...]`` under the distributions that :meth:`outputs` gave."""
        if isinstance(self.action_space, spaces.Discrete):
            return _score(outputs, actions - int(self.action_space.start))[0]
        return _gaussian_log_prob(outputs, self._log_std(), actions.flatten(1))

    @property
    def has_critic(self) -> bool:
        """Whether ``evaluate_actions`` returns values."""
        return self.critic is not None

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which ``from_spec`` rebuilds the policy around saved tensors."""
        return {
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "hidden": list(self.hidden), "activation": self.activation, "value": self.has_critic,
            "squash": self.squash,
            "observation_mean": None if self.observation_mean is None else self.observation_mean.tolist(),
            "observation_std": None if self.observation_std is None else self.observation_std.tolist(),
        }  # fmt: skip

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Inverse of :meth:`spec`, but for the values of the parameters."""
        found = {k: space_from_json(spec[k]) for k in ("observation_space", "action_space")}
        return cls(**{**spec, **found})

    def features(self, observation: Any) -> Tensor:
        """What the networks read: ``[..., F]`` float32 from observations with any number of leading axes."""
        tensor = torch.as_tensor(observation, device=self.device)
        if isinstance(self.observation_space, spaces.Discrete):
            # Padding is 0, which may lie below the first state; it is masked wherever it could matter.
            index = (tensor.long() - int(self.observation_space.start)).clamp(min=0)
            return F.one_hot(index, int(self.observation_space.n)).float()
        assert self.observation_space.shape is not None
        leading = tensor.shape[: tensor.ndim - len(self.observation_space.shape)]
        features = tensor.float().reshape(*leading, -1)
        if self.observation_mean is None or self.observation_std is None:
            return features
        return (features - self.observation_mean) / self.observation_std

    def outputs(self, features: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Logits ``[N, K]`` of the actions, or their means ``[N, D]``.

        Args:
            features: ``[N, F]``.
            dropout: probability with which each hidden unit is left out, in training.
            generator: source of what is left out.
        """
        for layer in self.actor:
            features = layer(features)
            if dropout and not isinstance(layer, nn.Linear):
                drawn = torch.rand(features.shape, generator=generator, device=features.device)
                features = features * (drawn >= dropout) / (1 - dropout)
        return self.centre + self.reach * features.tanh() if self.squash else features

    def _log_std(self) -> Tensor:
        assert self.log_std is not None
        return self.log_std.clamp(*LOG_STD_RANGE) if self.squash else self.log_std


class TabularPolicy(Policy):
    """Logits and values in a table, one row a state: the policy of which closed forms speak.

    Starts at the uniform distribution and at values of 0. Observations are state numbers in ``[0, num_states)``.

    Args:
        num_states: rows of the table, >= 1.
        num_actions: columns of the table, >= 1.
        value: whether there is a critic.
    """

    scores_apart = True

    def __init__(self, num_states: int, num_actions: int, value: bool = True) -> None:
        super().__init__()
        if num_states < 1 or num_actions < 1:
            raise ValueError(f"num_states and num_actions must be at least 1, got {num_states} and {num_actions}")
        self.logits = nn.Parameter(torch.zeros(num_states, num_actions))
        self.values = nn.Parameter(torch.zeros(num_states)) if value else None

    def check_spaces(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Raise a ValueError where the environment has another number of states or actions than the table."""
        states, actions = self.logits.shape
        check_space("observations", observation_space, spaces.Discrete(states))
        check_space("actions", action_space, spaces.Discrete(actions))

    @torch.no_grad()
    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        """Choose one action a row for states ``[B]``; consumes one uniform number a row, none if ``deterministic``."""
        return _draw(self.logits[self._states(observation)], noise, deterministic)

    @torch.no_grad()
    def generate(
        self,
        observation: Any,
        noise: RowNoise,
        *,
        max_steps: int,
        terminal_actions: Collection[int] = (),
        deterministic: bool = False,
    ) -> Trajectories:
        """Play one-turn episodes. The state after the action is unknown here: the first one is repeated in its place.

        Raises:
            ValueError: if ``max_steps`` is not 1.
        """
        if max_steps != 1:
            raise ValueError(f"max_steps is {max_steps}, but TabularPolicy generates episodes of one decision only")
        states = self._states(observation)
        decision = self.act(states, noise, deterministic)
        terminated = torch.isin(decision.actions, decision.actions.new_tensor(sorted(terminal_actions)))
        mask = torch.ones_like(states, dtype=torch.bool)[:, None]
        return Trajectories(
            observations=torch.stack([states, states], 1),
            actions=decision.actions[:, None],
            log_probs=decision.log_probs[:, None],
            mask=mask,
            rewards=torch.zeros_like(decision.log_probs)[:, None],
            terminated=terminated,
            truncated=~terminated,
            valid=mask[:, 0].clone(),
            group=torch.arange(len(states), device=states.device),
            sampling=self.sampling,
            version=self.version,
        )

    def evaluate_actions(self, trajectories: Trajectories, *, entropy: bool = True) -> Evaluation:
        """Score recorded episodes; the observations are states ``[B, T + 1]``. See ``ControlPolicy``."""
        mask = trajectories.mask
        states = self._states(_cut(trajectories.observations, mask))
        log_probs, entropies = _score(self.logits[states[:, :-1][mask]], trajectories.actions[mask])
        values = None if self.values is None else self.values[states]
        return Evaluation(_scatter(log_probs, mask), _scatter(entropies, mask), values)

    @property
    def has_critic(self) -> bool:
        """Whether ``evaluate_actions`` returns values."""
        return self.values is not None

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which ``from_spec`` rebuilds the policy around saved tensors."""
        return dict(zip(("num_states", "num_actions"), self.logits.shape, strict=True)) | {"value": self.has_critic}

    def _states(self, observation: Any) -> Tensor:
        return torch.as_tensor(observation, device=self.device).long()


def check_space(name: str, found: Space[Any], expected: Space[Any]) -> None:
    """Compare kind and size of an environment's space with those that a policy was made for.

    Raises:
        ValueError: where they differ.
    """
    if not isinstance(found, type(expected)) or spaces.flatdim(found) != spaces.flatdim(expected):
        raise ValueError(f"the policy does not fit the environment: it was made for {name} {expected}, not {found}")


def space_to_json(space: Space[Any]) -> dict[str, Any]:
    """A Box, a Discrete, or a dictionary of them as JSON; bounds that are all equal as one number."""
    if isinstance(space, spaces.Dict):
        return {"spaces": {k: space_to_json(v) for k, v in space.spaces.items()}}
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    assert isinstance(space, spaces.Box)
    values: dict[str, Any] = {"dtype": str(space.dtype), "shape": list(space.shape)}
    for name, bound in (("low", space.low), ("high", space.high)):
        bound = bound.flat[0] if bound.size and (bound == bound.flat[0]).all() else bound
        values |= {name: np.where(np.isfinite(bound), bound, 0).tolist(), f"finite_{name}": np.isfinite(bound).tolist()}
    return values


def space_from_json(values: dict[str, Any]) -> Space[Any]:
    """Inverse of :func:`space_to_json`."""
    if "spaces" in values:
        return spaces.Dict({k: space_from_json(v) for k, v in values["spaces"].items()})
    if "n" in values:
        return spaces.Discrete(values["n"], start=values["start"])
    dtype = np.dtype(values["dtype"])
    shape = tuple(values.get("shape", np.shape(values["low"])))  # of older checkpoints, which list all bounds
    low, high = (
        np.where(np.broadcast_to(values[f"finite_{k}"], shape), np.asarray(values[k], dtype), infinity)
        for k, infinity in (("low", -np.inf), ("high", np.inf))
    )
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)


def _perceptron(
    widths: Sequence[int], activation: type[nn.Module], last_gain: float, generator: torch.Generator
) -> nn.Sequential:
    """Linear layers with orthogonal weights (gain sqrt 2, the last one ``last_gain``) and biases of 0."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        # skip_init: the layer's own initialisation would draw from the global generator.
        linear = torch.nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        nn.init.orthogonal_(linear.weight, last_gain if last else math.sqrt(2), generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, activation()]
    return nn.Sequential(*layers)


def _draw(logits: Tensor, noise: RowNoise, deterministic: bool) -> Decision:
    """Draw from ``softmax(logits [B, K])`` or take its mode."""
    actions = logits.argmax(-1) if deterministic else sample_categorical(logits.detach(), noise.uniform(1)[:, 0])
    return Decision(actions, _score(logits, actions)[0])


def _score(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of ``actions [N]`` under ``softmax(logits [N, K])`` and its entropy, each ``[N]``."""
    log_probs = logits.log_softmax(-1)
    return log_probs.gather(-1, actions[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)


def _gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density of ``actions [N, D]`` under independent Gaussians, ``[N]``."""
    standardised = (actions - mean) * (-log_std).exp()
    return (-0.5 * standardised.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def _cut(observations: Observations, mask: Tensor) -> Tensor:
    """The observations of the mask's columns and the one after: a minibatch may be cut to its longest episode."""
    if isinstance(observations, dict):
        raise TypeError(f"observations are a dict with {sorted(observations)}, but this policy takes one tensor")
    if observations.shape[1] <= mask.shape[1]:
        raise ValueError(f"observations have {observations.shape[1]} columns, expected at least {mask.shape[1] + 1}")
    return observations[:, : mask.shape[1] + 1]


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """``values [N]`` at the positions of ``mask [B, T]``, 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
