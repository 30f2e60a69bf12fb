r"""Rewards to be learned from preferences between segments: what all models share, and the ensemble of PEBBLE.

A model gives each step of a segment a reward :math:`r_t` and a weight :math:`w_t`. The preference follows
Bradley-Terry, :math:`P(x \succ x') = \sigma(\ell(x) - \ell(x'))` with the logit :math:`\ell(x) = \sum_t w_t r_t`: the
sum of the rewards (:math:`w_t = 1`) or their mean (:math:`w_t = 1/L`), whichever the model takes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoint import read_safetensors
from ..randomness import seeded
from .segments import Segments

SCHEMA = 1
CHUNK = 256  # segments or windows scored at once


@dataclass(frozen=True)
class RewardOutput:
    """Rewards of segments, differentiable.

    Attributes:
        mean: ``[B, L]``.
        std: ``[B, L]``, above 0, of models that know how uncertain they are; else None.
        weights: ``[B, L]`` of the steps in the segment's logit, 0 at padding.
    """

    mean: Tensor
    std: Tensor | None
    weights: Tensor

    @property
    def logit(self) -> Tensor:
        """``[B]``, the weighted sum of the mean rewards."""
        return (self.weights * self.mean).sum(1)

    @property
    def variance(self) -> Tensor:
        """``[B]`` variance of the logit if the rewards of the steps are independent; 0 without ``std``."""
        if self.std is None:
            return torch.zeros_like(self.mean[:, 0])
        return (self.weights * self.std).square().sum(1)


class RewardModel(nn.Module, ABC):
    """What fitting, relabelling and queries need of a reward model.

    Args:
        observation_dim: numbers in an observation.
        action_dim: numbers in an action.
    """

    kind: ClassVar[str]
    shift: Tensor
    scale: Tensor

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        for name, value in (("observation_dim", observation_dim), ("action_dim", action_dim)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.register_buffer("shift", torch.zeros(observation_dim + action_dim))
        self.register_buffer("scale", torch.ones(observation_dim + action_dim))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.shift.device

    @property
    def size(self) -> int:
        """Number of members, 1 but for an ensemble."""
        return 1

    @abstractmethod
    def member(self, number: int, observations: Tensor, actions: Tensor, mask: Tensor) -> RewardOutput:
        """Rewards by one member, differentiable. See :meth:`rewards`."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-able arguments of the constructor."""

    def rewards(self, observations: Tensor, actions: Tensor, mask: Tensor) -> RewardOutput:
        """Rewards of segments, the mean over members.

        Args:
            observations: ``[B, L, D]``.
            actions: ``[B, L, A]``.
            mask: ``[B, L]`` bool, True at real steps.
        """
        found = [self.member(number, observations, actions, mask) for number in range(self.size)]
        if len(found) == 1:
            return found[0]
        mean, weights = (torch.stack([getattr(m, name) for m in found]).mean(0) for name in ("mean", "weights"))
        return RewardOutput(mean, None, weights)

    @torch.no_grad()
    def member_scores(self, segments: Segments) -> Tensor:
        """Logits ``[K, N]`` of segments, one row a member: what queries by disagreement compare."""
        parts = []
        with evaluating(self):
            for rows in torch.arange(len(segments)).split(CHUNK):
                part = segments.select(rows).to(self.device)
                steps = part.observations, part.actions, part.mask
                parts.append(torch.stack([self.member(number, *steps).logit for number in range(self.size)]))
        return torch.cat(parts, 1)

    def segment_scores(self, segments: Segments) -> Tensor:
        """Logits ``[N]`` of segments, the mean over members; no gradient, no dropout."""
        return self.member_scores(segments).mean(0)

    @torch.no_grad()
    def step_rewards(self, observations: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Rewards ``[B, T]`` of the steps of whole episodes, 0 at padding; no gradient, no dropout."""
        with evaluating(self):
            return self.rewards(observations, actions, mask).mean.masked_fill(~mask, 0.0)

    def predict(self, observations: NDArray[Any], actions: NDArray[Any]) -> NDArray[np.float64]:
        """Rewards ``[T]`` of the steps of one episode.

        Args:
            observations: ``[T, ...]`` states that the actions were chosen in.
            actions: ``[T, ...]``.
        """
        states, taken = (
            torch.as_tensor(np.reshape(x, (1, len(actions), -1)), dtype=torch.float32, device=self.device)
            for x in (observations, actions)
        )
        mask = torch.ones(1, len(actions), dtype=torch.bool, device=self.device)
        found: NDArray[np.float64] = self.step_rewards(states, taken, mask)[0].double().cpu().numpy()
        return found

    def standardize(self, segments: Segments) -> None:
        """From now on subtract the mean of these segments' steps from the inputs, and divide by their deviation."""
        steps = torch.cat([segments.observations, segments.actions], -1)[segments.mask]
        std, mean = torch.std_mean(steps, 0, correction=0)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-6, std, 1.0))  # what never changes is only shifted

    def inputs(self, observations: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """``[B, L, D + A]``, standardised, 0 at padding.

        Raises:
            ValueError: if the segments are not of the model's dimensions.
        """
        expected = (*mask.shape, self.observation_dim), (*mask.shape, self.action_dim)
        for name, values, shape in zip(("observations", "actions"), (observations, actions), expected, strict=True):
            if values.shape != shape:
                raise ValueError(f"{name} have shape {tuple(values.shape)}, expected {shape}")
        return ((torch.cat([observations, actions], -1) - self.shift) / self.scale) * mask[..., None]

    def save(self, path: str | Path) -> None:
        """Write one ``.safetensors`` file, which :func:`load_reward_model` reads."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        header = {"aligngym": "reward model", "schema": str(SCHEMA), "kind": self.kind, "spec": json.dumps(self.spec())}
        save_file(tensors, path, header)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """A model of this description, its parameters initialised."""
        return cls(**spec)


class EnsembleRewardModel(RewardModel):
    """Perceptrons from state and action to a reward in (-1, 1), whose sum over a segment is its logit.

    Three of 3 x 256 with LeakyReLU and a tanh, as in B-Pref (arXiv 2111.03026) and PEBBLE (arXiv 2106.05091), started
    at different weights and fitted to differently shuffled pairs.

    Args:
        observation_dim: numbers in an observation.
        action_dim: numbers in an action.
        size: number of perceptrons.
        hidden: widths of their hidden layers.
        generator: source of the initial weights; the same ones every time if None.
    """

    kind = "ensemble"

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        size: int = 3,
        hidden: Sequence[int] = (256, 256, 256),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(observation_dim, action_dim)
        if size < 1:
            raise ValueError(f"size={size}: must be at least 1")
        self.hidden = tuple(hidden)
        widths = [observation_dim + action_dim, *hidden]
        with initial(generator):
            self.nets = nn.ModuleList(_perceptron(widths) for _ in range(size))

    @property
    def size(self) -> int:
        return len(self.nets)

    def member(self, number: int, observations: Tensor, actions: Tensor, mask: Tensor) -> RewardOutput:
        rewards = self.nets[number](self.inputs(observations, actions, mask))[..., 0]
        return RewardOutput(rewards, None, mask.float())

    def spec(self) -> dict[str, Any]:
        return {
            "observation_dim": self.observation_dim, "action_dim": self.action_dim, "size": self.size,
            "hidden": list(self.hidden),
        }  # fmt: skip


def load_reward_model(path: str | Path) -> RewardModel:
    """Read a model that :meth:`RewardModel.save` wrote, onto the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not one of a reward model, or of a newer schema.
    """
    from .preference_transformer import PreferenceTransformer

    kinds: dict[str, type[RewardModel]] = {c.kind: c for c in (EnsembleRewardModel, PreferenceTransformer)}
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no reward model {path}")
    try:
        tensors, header = read_safetensors(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if header.get("aligngym") != "reward model" or header.get("kind") not in kinds:
        raise ValueError(f"{path} is no reward model: its header has {sorted(header)}, of kind {header.get('kind')!r}")
    if int(header["schema"]) > SCHEMA:
        raise ValueError(f"{path} has schema {header['schema']}, this version reads up to {SCHEMA}: update aligngym")
    try:
        model = kinds[header["kind"]].from_spec(json.loads(header["spec"]))
        model.load_state_dict(tensors)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} holds no {header['kind']} of this version: {error}") from error
    return model.eval()


@contextmanager
def initial(generator: torch.Generator | None) -> Iterator[None]:
    """Layers made within draw their weights from ``generator``, and leave the global random numbers as they were."""
    generator = generator or torch.Generator().manual_seed(0)
    with seeded(int(torch.randint(2**62, (), generator=generator))):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within: no dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1), nn.Tanh())
