"""The networks of Stable-Baselines3's agents as a policy of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor

from ..randomness import seeded
from .control import space_from_json, space_to_json
from .policy import Decision, Policy, RowNoise, sample_categorical

Algorithm = Literal["sac", "ppo"]
LEAST = 36  # height and width of pictures, below which Stable-Baselines3's convolutions leave nothing
ALGORITHMS: dict[str, type[SAC] | type[PPO]] = {"sac": SAC, "ppo": PPO}


class SB3Policy(Policy):
    """A policy of Stable-Baselines3, critics and target networks included.

    ``act`` draws from the same distribution as Stable-Baselines3's ``predict``, but with the rows' own noise. SAC's
    actions are ``tanh`` of a Gaussian, scaled from [-1, 1] to the bounds of the action space; their log-probability is
    that before scaling, as in Stable-Baselines3. PPO's Gaussian actions are clipped on the way to the environment only.

    Args:
        network: ``SACPolicy`` or ``ActorCriticPolicy``.
    """

    deterministic_evaluation = True

    def __init__(self, network: BasePolicy) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def build(
        cls,
        algorithm: Algorithm,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        net_arch: Sequence[int] | None = None,
    ) -> Self:
        """Networks with initial weights, the same ones every time.

        Args:
            algorithm: whose.
            observation_space: of one environment; images with the channels first, as the networks see them.
            action_space: of one environment.
            net_arch: widths of the hidden layers of actor and critic; None: Stable-Baselines3's.
        """
        known = ALGORITHMS[algorithm].policy_aliases[policy_name(observation_space)]
        options: dict[str, Any] = {} if net_arch is None else {"net_arch": list(net_arch)}
        with seeded(0):
            return cls(known(observation_space, action_space, lambda _: 0.0, **options))

    @property
    def algorithm(self) -> Algorithm:
        """Whose networks these are."""
        return "sac" if isinstance(self.network, SACPolicy) else "ppo"

    @torch.no_grad()
    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        """Choose one action a row; consumes one number a row and action dimension, none if ``deterministic``.

        Args:
            observation: ``[B, ...]``, or a dictionary of such, numpy or torch.
            noise: one stream a row.
            deterministic: take the mode.

        Returns:
            actions ``[B]`` int64 or ``[B, *shape]`` float32, and log_probs ``[B]``.
        """
        seen, _ = self.network.obs_to_tensor(_arrays(observation))
        if isinstance(self.network, SACPolicy):
            return self._squashed(seen, noise, deterministic)
        assert isinstance(self.network, ActorCriticPolicy)
        distribution: Any = self.network.get_distribution(seen).distribution
        if isinstance(self.network.action_space, spaces.Discrete):
            logits = distribution.logits
            actions = logits.argmax(-1) if deterministic else sample_categorical(logits, noise.uniform(1)[:, 0])
            return Decision(actions, distribution.log_prob(actions))
        actions = distribution.mean
        if not deterministic:
            actions = actions + distribution.stddev * noise.normal(actions.shape[1:]).to(actions)
        log_probs = distribution.log_prob(actions).sum(-1)
        return Decision(actions.reshape(-1, *(self.network.action_space.shape or ())), log_probs)

    def _squashed(self, seen: Any, noise: RowNoise, deterministic: bool) -> Decision:
        assert isinstance(self.network, SACPolicy)
        mean, log_std, _ = self.network.actor.get_action_dist_params(seen)
        drawn = mean if deterministic else mean + log_std.exp() * noise.normal(mean.shape[1:]).to(mean)
        distribution: Any = self.network.actor.action_dist
        log_probs = distribution.proba_distribution(mean, log_std).log_prob(drawn.tanh(), drawn)
        shape = self.network.action_space.shape or ()
        scaled = self.network.unscale_action(drawn.tanh().cpu().numpy().reshape(-1, *shape))
        return Decision(torch.from_numpy(scaled).to(mean), log_probs)

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which ``from_spec`` rebuilds the policy around saved tensors."""
        arch: Any = self.network.net_arch
        return {
            "algorithm": self.algorithm,
            "observation_space": space_to_json(self.network.observation_space),
            "action_space": space_to_json(self.network.action_space),
            "net_arch": list(arch["pi"] if isinstance(arch, dict) else arch),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Inverse of :meth:`spec`, but for the values of the parameters."""
        found = {k: space_from_json(spec[k]) for k in ("observation_space", "action_space")}
        return cls.build(spec["algorithm"], net_arch=spec["net_arch"], **found)


def policy_name(observation_space: gym.Space[Any]) -> str:
    """Which of Stable-Baselines3's policies suits the observations."""
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"


def check_spaces(
    algorithm: Algorithm, observation_space: gym.Space[Any], action_space: gym.Space[Any], name: str
) -> None:
    """Raise a ValueError, which says what the agent ``name`` takes, for spaces that the algorithm does not handle."""
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    if wrong := [s for s in parts if not isinstance(s, spaces.Box | spaces.Discrete)]:
        raise ValueError(f"the observations have the space {wrong[0]}: take Box, Discrete, or one dictionary of them")
    if small := [s.shape for s in parts if is_image_space(s) and sorted(s.shape or ())[1] < LEAST]:
        raise ValueError(f"the pictures have the shape {small[0]}: the networks take at least {LEAST} by {LEAST}")
    continuous = isinstance(action_space, spaces.Box) and action_space.is_bounded("both")
    if algorithm == "sac" and not continuous:
        raise ValueError(f"the actions have the space {action_space}: {name} takes a Box with finite bounds")
    if not (continuous or (isinstance(action_space, spaces.Discrete) and action_space.start == 0)):
        raise ValueError(
            f"the actions have the space {action_space}: {name} takes a Box with finite bounds, or Discrete from 0"
        )


def _arrays(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {k: _arrays(v) for k, v in observation.items()}
    return observation.cpu().numpy() if isinstance(observation, Tensor) else observation
