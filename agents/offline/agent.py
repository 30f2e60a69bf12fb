"""The base of agents that learn from recorded episodes alone: their dataset, minibatches, schedule and state."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.nn import functional as F

from ...trajectories import Trajectories
from ..agent import Agent, AgentConfig
from ..callbacks import Callback
from ..checkpoint import flatten_optimizer, restore_optimizer
from ..policies.control import ControlPolicy
from ..policies.policy import Policy
from .transitions import Transitions, return_spread


@dataclass(frozen=True, kw_only=True)
class OfflineConfig(AgentConfig):
    """What agents that learn from a dataset have in common.

    Attributes:
        dataset: robomimic's HDF5 file, or a folder of Minari's format. None: the agent is given the episodes.
        observation_keys: the observations of a robomimic file, joined in this order; () takes all, by name.
        standardize: observations get mean 0 and standard deviation 1 over the dataset, dimensions that do not vary
            excepted. Off in the papers.
        return_range: rewards are scaled so that the dataset's best and worst return differ by this; 0 leaves them. A
            reward that was learned has no scale of its own, and IQL's beta wants one: 1000 is usual for
            locomotion, the length of an episode for manipulation.
        updates_per_iteration: gradient updates between two callbacks.
        batch_size: transitions an update.
        hidden: widths of the hidden layers of every network that the agent makes.
        learning_rate: of Adam, for all networks.
        total_updates: the policy's learning rate falls to 0 over so many updates, along half a cosine; 0 leaves it.
        actor_dropout: probability with which the policy's hidden units are left out in training. 0.1 for few
            demonstrations of high dimension (Adroit, robosuite).
    """

    dataset: str | None = None
    observation_keys: tuple[str, ...] = ()
    standardize: bool = False
    return_range: float = 0.0
    updates_per_iteration: int = 1000
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    total_updates: int = 1_000_000
    actor_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("updates_per_iteration", "batch_size", "learning_rate"), lambda v: v > 0, "above 0")
        self.require(("hidden",), lambda v: v and min(v) > 0, "one width or more, each above 0")
        self.require(("total_updates", "return_range"), lambda v: v >= 0, "at least 0")
        self.require(("actor_dropout",), lambda v: 0 <= v < 1, "in [0, 1)")


class OfflineAgent(Agent):
    """An agent that counts gradient updates; a subclass gives :meth:`update`, and critics if it needs some.

    Its environment is only evaluated on, with the likeliest actions.

    Args:
        env: as every agent's.
        policy: a ``ControlPolicy``; None makes one of ``config.hidden``, its means squashed into a Box with bounds.
        config: the options.
        dataset: episodes to learn from, of the environment's observations and actions; None takes the file in the
            config. With neither the agent evaluates, but does not learn.
        seed: as every agent's.
        device: as every agent's.
        folder: as every agent's.

    Raises:
        TypeError: for another policy.
        ValueError: if there are two datasets, or one of other spaces than the environment's.
    """

    unit: ClassVar[Literal["episodes", "updates", "steps"]] = "updates"
    config: OfflineConfig
    policy: ControlPolicy
    optimizer: torch.optim.Adam
    data: Transitions | None = None
    fingerprint: str | None = None

    def __init__(
        self,
        env: str | VectorEnv[Any, Any, Any],
        policy: str | Policy | None = None,
        config: AgentConfig | None = None,
        *,
        dataset: Trajectories | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(env, policy, config, seed=seed, device=device, folder=folder)
        path = self.config.dataset
        if dataset is not None and path is not None:
            raise ValueError(f"the dataset is given twice: as an argument and as the file {path} of the config")
        if path is not None:
            dataset = read_dataset(path, self.config.observation_keys)
        if dataset is not None:
            self._learn_from(dataset)

    def default_policy(self, model: str | None, generator: torch.Generator) -> Policy:
        if model is not None:
            raise ValueError(f"policy={model!r} names a model, but {type(self).__name__} trains a ControlPolicy")
        observations, actions = self.env.single_observation_space, self.env.single_action_space
        squash = isinstance(actions, spaces.Box) and actions.is_bounded()
        return ControlPolicy(
            observations, actions, self.config.hidden, "relu", value=False, generator=generator, squash=squash
        )

    def _setup(self) -> None:
        if not isinstance(self.policy, ControlPolicy):
            raise TypeError(f"policy is a {type(self.policy).__name__}, but {type(self).__name__} trains ControlPolicy")
        self.policy.deterministic_evaluation = True
        groups = [{"params": [p for p in self.policy.parameters() if p.requires_grad]}]
        # Fused: with a kernel an operation and a parameter, Adam would take a tenth of the time.
        self.optimizer = torch.optim.Adam(groups, lr=self.config.learning_rate, fused=True)

    def _learn_from(self, episodes: Trajectories) -> None:
        """Take the episodes for the dataset, observations as what the networks read."""
        steps = Transitions.of(episodes)
        for name, values in (("observation", steps.observations), ("action", steps.actions)):
            space = getattr(self.env, f"single_{name}_space")
            size = math.prod(values.shape[1:])
            if size != math.prod(space.shape):
                raise ValueError(f"an {name} of the dataset has {size} numbers, but one of the environment is {space}")
        self.fingerprint = steps.fingerprint()
        steps = steps.to(self.policy.device)
        if self.config.standardize:
            if not isinstance(self.env.single_observation_space, spaces.Box):
                raise ValueError(f"standardize=True is for vectors, but one has {self.env.single_observation_space}")
            flat = steps.observations.flatten(1).double()
            std = flat.std(0, correction=0)
            self.policy.standardize(flat.mean(0).tolist(), torch.where(std > 1e-6, std, 1.0).tolist())
        shape = self.env.single_observation_space.shape or ()
        changed = {
            name: self.policy.features(getattr(steps, name).reshape(-1, *shape))
            for name in ("observations", "next_observations")
        }
        if self.config.return_range:
            spread = return_spread(episodes)
            if not spread:
                raise ValueError(f"return_range={self.config.return_range}, but all returns of the dataset are equal")
            changed["rewards"] = steps.rewards * (self.config.return_range / spread)
        self.data = replace(steps, **changed)

    def learn(self, total_episodes: int, callback: Callback | Sequence[Callback] | None = None) -> Self:
        """Train for at least ``total_episodes`` further updates; see :meth:`Agent.learn`.

        Raises:
            ValueError: if there is no dataset.
            FloatingPointError: if a loss is not finite any more.
        """
        if self.data is None:
            raise ValueError(
                f"there is nothing to learn from: give {type(self).__name__}(..., dataset=episodes) or the config's "
                "dataset; a checkpoint of an agent that was given episodes is loaded with load(..., dataset=episodes)"
            )
        return super().learn(total_episodes, callback)

    def advance(self, episodes: Trajectories | None) -> int:
        return self.config.updates_per_iteration

    def iterate(self) -> tuple[None, dict[str, float]]:
        """``updates_per_iteration`` updates, each on a minibatch of its own; metrics are means over them."""
        c, data = self.config, self.data
        assert data is not None
        dropout = torch.Generator(self.policy.device).manual_seed(int(self.rng.integers(2**62)))
        rows = []
        for number in range(self.episodes, self.episodes + c.updates_per_iteration):
            self.optimizer.param_groups[0]["lr"] = rate = cosine(c.learning_rate, number, c.total_updates)
            metrics = self.update(data.sample(c.batch_size, self.rng), dropout)
            rows.append(torch.stack(list(metrics.values())))
            self.policy.version += 1
        means = dict(zip(metrics, torch.stack(rows).mean(0).tolist(), strict=True))
        if wrong := [name for name, value in means.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"{', '.join(wrong)} became {means[wrong[0]]} between updates {self.episodes} and {number + 1}: lower "
                "learning_rate, or look for extreme rewards and observations in the dataset"
            )
        return None, means | {"train/learning_rate": rate}

    @abstractmethod
    def update(self, batch: Transitions, dropout: torch.Generator) -> dict[str, Tensor]:
        """One gradient update on a minibatch whose observations are features; scalars to log, detached.

        Args:
            batch: transitions.
            dropout: source of what the policy's dropout leaves out.
        """

    def outputs(self, batch: Transitions, dropout: torch.Generator) -> Tensor:
        """What the policy says of the states, ``[N, ...]``, in training."""
        return self.policy.outputs(batch.observations, self.config.actor_dropout, dropout)

    def action_features(self, actions: Tensor) -> Tensor:
        """``[N, A]`` float32: Box actions flattened, Discrete ones one-hot."""
        space = self.env.single_action_space
        if isinstance(space, spaces.Discrete):
            return F.one_hot(actions - int(space.start), int(space.n)).float()
        return actions.flatten(1)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"optimizer": flatten_optimizer(self.optimizer)[0]}

    def _state(self) -> dict[str, Any]:
        return {"optimizer": flatten_optimizer(self.optimizer)[1], "dataset": self.fingerprint}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        restore_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
        self._saved_fingerprint = state["dataset"]

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
        dataset: Trajectories | None = None,
    ) -> Self:
        """Restore an agent, as :meth:`Agent.load <aligngym.agents.agent.Agent.load>`.

        Args:
            folder: as there.
            env: as there.
            policy: as there.
            config: as there.
            device: as there.
            run_folder: as there.
            dataset: needed to learn on where the agent was given one: a checkpoint does not hold it, only a hash.

        Raises:
            ValueError: if the dataset is not the one that the saved agent learned from.
        """
        agent = super().load(folder, env, policy=policy, config=config, device=device, run_folder=run_folder)
        if dataset is not None:
            if agent.config.dataset is not None:
                raise ValueError(f"the dataset is the file {agent.config.dataset} of the saved config: give no other")
            agent._learn_from(dataset)
        found, saved = agent.fingerprint, agent._saved_fingerprint
        if found != saved and None not in (found, saved):
            raise ValueError(
                f"{folder} was saved with another dataset: give the one that the agent was made with, or start a new "
                "run from its policy"
            )
        agent.fingerprint = found or saved
        return agent


def cosine(rate: float, update: int, total: int) -> float:
    """``rate`` at update 0, falling along half a cosine to 0 at ``total`` and staying there; constant if that is 0."""
    return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, update / total))) if total else rate


def read_dataset(path: str | Path, observation_keys: Sequence[str] = ()) -> Trajectories:
    """Recorded episodes: robomimic's file or Minari's folder.

    Args:
        path: of either.
        observation_keys: of a robomimic file, joined in this order; () takes all, by name.

    Raises:
        FileNotFoundError: if there is neither.
    """
    from .minari_data import read_minari
    from .robomimic import read_robomimic

    if Path(path).is_dir():
        return read_minari(path)
    return read_robomimic(path, observation_keys or None)
