"""What agents with a world model share: they act on beliefs, remember sequences, and go on exactly after loading."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from ...trajectories import Trajectories
from ..agent import AgentConfig
from ..checkpoint import read_generator, write_generator
from ..environment import is_single
from ..policies.policy import Policy
from ..policies.world_model import Belief, WorldModelPolicy
from ..stepping import SteppingAgent
from .replay import SequenceReplayBuffer
from .rssm import State


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig(AgentConfig):
    """Options that all of them have.

    Attributes:
        num_envs: environments side by side where they are made from an id: 1, 2, 4, 8 or 16.
        steps_per_iteration: environment steps, of all rows together, between two rounds of updates.
        updates_per_iteration: updates of a round.
        learning_starts: steps before the first round.
        buffer_size: steps kept for replay.
        batch_size: sequences, or pictures, of an update.
    """

    num_envs: int = 1
    steps_per_iteration: int = 500
    updates_per_iteration: int = 100
    learning_starts: int = 5000
    buffer_size: int = 500_000
    batch_size: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(["num_envs"], (1, 2, 4, 8, 16).__contains__, "1, 2, 4, 8 or 16")
        counts = ("steps_per_iteration", "updates_per_iteration", "buffer_size", "batch_size")
        self.require(counts, lambda v: v >= 1, "at least 1")
        self.require(["learning_starts"], lambda v: v >= 0, "at least 0")

    @property
    def rows(self) -> int:
        """Environments side by side in training."""
        return self.num_envs


class WorldModelAgent(SteppingAgent):
    """An agent whose policy is a :class:`..policies.world_model.WorldModelPolicy`.

    Attributes:
        replay: the newest steps.
        belief: the policy's about them.
        steps: taken so far.

    Raises:
        ValueError: if observations are neither pictures nor vectors, or actions no vector within finite bounds.
    """

    config: WorldModelConfig
    policy: WorldModelPolicy
    learns_rewards: ClassVar[bool] = True

    def default_policy(self, model: str | None, generator: torch.Generator) -> Policy:
        if model is not None:
            raise ValueError(f"policy={model!r} names a model, but {type(self).__name__} makes its own networks")
        return WorldModelPolicy(**self._spaces(), **self._sizes(), seed=generator.initial_seed())

    def _spaces(self) -> dict[str, Any]:
        """Arguments of the policy that the environment decides."""
        seen, taken = self.env.single_observation_space, self.env.single_action_space
        vector = isinstance(seen, spaces.Box) and len(seen.shape) == 1
        picture = isinstance(seen, spaces.Box) and len(seen.shape) == 3 and seen.dtype == np.uint8
        if not (vector or picture):
            raise ValueError(f"the observations have the space {seen}: {type(self).__name__} takes pictures or vectors")
        if not isinstance(taken, spaces.Box) or len(taken.shape) != 1 or not taken.is_bounded():
            raise ValueError(f"the actions have the space {taken}: {type(self).__name__} takes a vector within bounds")
        return {"shape": seen.shape, "low": taken.low.tolist(), "high": taken.high.tolist()}

    def _sizes(self) -> dict[str, Any]:
        """Arguments of the policy that the config decides."""
        return {}

    def _setup(self) -> None:
        given, expected = self.policy, self._spaces()
        if not isinstance(given, WorldModelPolicy):
            raise ValueError(f"policy is a {type(given).__name__}, expected a WorldModelPolicy")
        if differ := [k for k, v in expected.items() if given.spec()[k] != list(v)]:
            raise ValueError(f"the policy does not fit the environment: {', '.join(differ)}")
        space = self.env.single_observation_space
        self.vec_env = self._make_vec_env()
        self.replay = SequenceReplayBuffer(
            self.config.buffer_size, self.env.num_envs, space.shape or (), space.dtype, len(expected["low"])
        )
        self.noise = torch.Generator(self.policy.device).manual_seed(self.seed)
        self.belief = self.policy.initial(self.env.num_envs)
        self.steps = 0

    def first_lesson(self) -> int:
        return self.config.learning_starts

    @abstractmethod
    def update(self) -> dict[str, Tensor]:
        """One update from the replay buffer: numbers to log."""

    def iterate(self) -> tuple[None, dict[str, float]]:
        """Some steps, and a round of updates once there are enough of them."""
        c = self.config
        self.collect(c.steps_per_iteration)
        metrics = self.vec_env.metrics()
        if self.steps >= c.learning_starts:
            logged = [self.update() for _ in range(c.updates_per_iteration)]
            self.policy.version += len(logged)
            metrics |= {f"train/{k}": torch.stack([m[k] for m in logged]).mean().item() for k in logged[0]}
        return None, metrics

    def advance(self, episodes: Trajectories | None) -> int:
        """Steps of the last iteration."""
        return self.steps - self.episodes

    def random_normal(self, *shape: int) -> Tensor:
        """Standard normal numbers from the agent's own generator."""
        return torch.randn(shape, generator=self.noise, device=self.policy.device)

    @torch.no_grad()
    def collect(self, steps: int) -> None:
        """Take at least ``steps`` steps, and remember them."""
        env, policy, rows = self.vec_env, self.policy, self.env.num_envs
        env.go_on()
        if env.observation is None:
            self._remember(env.reset(), range(rows))
        target, count = self.steps + steps, len(policy.centre)
        while self.steps < target:
            seen = torch.as_tensor(env.observation, device=policy.device)
            drawn = self.random_normal(rows, policy.rssm.sizes[1]), self.random_normal(rows, count)
            belief, _ = policy.decide(self.belief, seen, *drawn)
            action = self.first_actions(rows, count) if self.steps < self.config.learning_starts else None
            belief = belief if action is None else Belief(belief.state, action)
            observation, rewards, ended, infos = env.step(policy.scaled(belief.action).cpu().numpy())
            assert isinstance(observation, np.ndarray)
            for row, taken in enumerate(belief.action.cpu().numpy()):
                there = infos[row]["terminal_observation"] if ended[row] else observation[row]
                self.replay.add(row, there, taken, float(rewards[row]) if self.learns_rewards else 0.0)
            over = np.flatnonzero(ended)
            self._remember(observation, over.tolist())
            self.belief = belief.forget(torch.from_numpy(ended).to(policy.device))
            self.steps += rows

    def first_actions(self, rows: int, count: int) -> Tensor | None:
        """Actions ``[rows, count]`` before learning starts: uniform ones; None leaves them to the policy."""
        drawn = self.rng.uniform(-1, 1, (rows, count)).astype(np.float32)
        return torch.from_numpy(drawn).to(self.policy.device)

    def _remember(self, observation: NDArray[Any], rows: Iterable[int]) -> None:
        """The first observations of episodes."""
        for row in rows:
            self.replay.add(row, observation[row], first=True)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, tuple[NDArray[np.float32], ...]]:
        """Choose actions for one observation or a batch, as recurrent agents of Stable-Baselines3 do.

        Args:
            observation: of the environment's space, or a batch of such.
            state: what the call before returned; None begins episodes.
            episode_start: for each row, whether an episode begins; None: where ``state`` is None.
            deterministic: take the likeliest actions instead of drawing them.

        Returns:
            the action or actions, and the state that the next call wants.

        Raises:
            ValueError: if observations have another shape, or are pictures of another dtype.
        """
        device, space, given = self.policy.device, self.env.single_observation_space, np.asarray(observation)
        shape, picture = space.shape or (), space.dtype == np.uint8
        if given.shape[-len(shape) :] != shape or given.ndim > len(shape) + 1 or (picture and given.dtype != np.uint8):
            found, expected = (f"{a.dtype}{list(a.shape or ())}" for a in (given, space))
            raise ValueError(f"observation is {found}, expected {expected}, or a batch of such")
        single = is_single(given, space)
        seen = torch.as_tensor(given[None] if single else given, device=device)
        belief = self.policy.initial(len(seen))
        if state is not None:
            h, z, action = (torch.as_tensor(part, device=device) for part in state)
            belief = Belief(State(h, z), action)
        if episode_start is not None:
            belief = belief.forget(torch.as_tensor(np.atleast_1d(episode_start), device=device))
        sizes = self.policy.rssm.sizes[1], len(self.policy.centre)
        shapes = [(len(seen), n) for n in sizes]
        drawn = [np.zeros(s) if deterministic else self._prediction_rng.standard_normal(s) for s in shapes]
        with torch.no_grad():
            belief, _ = self.policy.decide(belief, seen, *(torch.from_numpy(d).float().to(device) for d in drawn))
        actions = self.policy.scaled(belief.action).cpu().numpy()
        parts = belief.state.deterministic, belief.state.stochastic, belief.action
        return (actions[0] if single else actions), tuple(p.cpu().numpy() for p in parts)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        belief = {"h": self.belief.state.deterministic, "z": self.belief.state.stochastic, "action": self.belief.action}
        return super()._tensors() | {"replay": self.replay.get_state()[0], "belief": belief}

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "replay": self.replay.get_state()[1],
            "noise": write_generator(self.noise),
            "steps": self.steps,
        }

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        self.replay.set_state(tensors["replay"], state["replay"])
        h, z, action = (tensors["belief"][name].to(self.policy.device) for name in ("h", "z", "action"))
        self.belief, self.steps = Belief(State(h, z), action), state["steps"]
        self.noise = read_generator(state["noise"])


def adam(modules: Iterable[nn.Module], learning_rate: float) -> torch.optim.Optimizer:
    """Adam for all parameters of some modules."""
    return torch.optim.Adam([p for m in modules for p in m.parameters()], lr=learning_rate, fused=True)
