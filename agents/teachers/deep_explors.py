r"""ExploRS for observations that are vectors: phi and V are networks, states are counted in cells of a grid.

.. math::
    \hat r = \bar R + c \, \tanh f(s)_a + B(\lfloor s' / w \rfloor), \qquad
    L_\phi = -\overline{\pi(a | s) (\bar G - V(s)) \Big(f(s)_a - \sum_b \pi(b | s) f(s)_b\Big)}

with the tanh inside :math:`f` in the loss. See :mod:`.explors` for what is meant. At an update each of the last
episodes moves phi and then V, which regresses on its true returns (Huber loss), by one step of Adam.

A network is wrong before it has learned, so phi enters the reward only after ``warm_up`` updates with an episode of
non-zero return among them. Deviation: the authors' script switches it on after 5000 episodes. Cells are of all
dimensions of the observation; theirs are of x and the key, which for their environment is the same partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ...tabular import Array
from ..descent import descend
from .explors import exploration_bonus
from .teacher import Episodes, Probabilities, States, Teacher


class DeepExploRS(Teacher):
    """The self-supervised teacher for vectors.

    Args:
        space: of the observations, a Box; they are flattened.
        num_actions: how many.
        gamma: discount of the true return.
        bonus: lambda; 0 leaves the bonus out (SelfRS).
        largest_bonus: of a cell that was never left.
        rate: Adam's, of phi; 0 leaves it out (ExploB).
        value_rate: Adam's, of V.
        scale: ``c``, largest size of phi.
        cell: ``w``, width of the grid's cells in every dimension.
        hidden: width of the networks' one layer.
        warm_up: updates before phi enters the reward.
        buffer: episodes that an update reads.
        seed: of the initial weights.

    Raises:
        ValueError: for another space, or cells without a width.
    """

    mode = "add"

    def __init__(
        self,
        space: spaces.Box,
        num_actions: int,
        gamma: float,
        *,
        bonus: float = 1.0,
        largest_bonus: float = 1.0,
        rate: float = 1e-3,
        value_rate: float = 5e-3,
        scale: float = 0.1,
        cell: float = 0.1,
        hidden: int = 256,
        warm_up: int = 100,
        buffer: int = 10,
        seed: int = 0,
    ) -> None:
        if not isinstance(space, spaces.Box):
            raise ValueError(f"space is {space}, expected a Box")
        if not cell > 0:
            raise ValueError(f"cell={cell}: must be above 0")
        self.bonus, self.largest, self.rate, self.scale, self.cell = bonus, largest_bonus, rate, scale, cell
        self.warm_up, self.successes, self.visits = warm_up, 0, dict[tuple[int, ...], int]()
        self.episodes = Episodes(buffer, gamma)
        size, generator = spaces.flatdim(space), torch.Generator().manual_seed(seed)
        self.phi = _network(size, hidden, num_actions, generator)
        self.value = _network(size, hidden, 1, generator)
        self.phi_optimizer = torch.optim.Adam(self.phi.parameters(), lr=rate or 1e-3)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=value_rate)

    def potential(self, states: States) -> Tensor:
        """``tanh f``, ``[n, A]``."""
        tensor: Tensor = self.phi(torch.as_tensor(states, dtype=torch.float32).flatten(1)).tanh()
        return tensor

    def cell_of(self, state: Any) -> tuple[int, ...]:
        """The cell of the grid that a state lies in; one on a border, give or take rounding, in the upper one."""
        return tuple(np.floor(np.ravel(state).astype(np.float64) / self.cell + 1e-6).astype(int).tolist())

    @property
    def shapes(self) -> bool:
        """Whether phi enters the reward by now."""
        return bool(self.rate) and self.successes >= self.warm_up

    @torch.no_grad()
    def __call__(self, state: Any, action: int, next_state: Any, terminated: bool) -> float:
        designed = self.scale * float(self.potential(np.asarray(state)[None])[0, action]) if self.shapes else 0.0
        if self.bonus:
            if not terminated:
                designed += exploration_bonus(self.visits.get(self.cell_of(next_state), 0), self.bonus, self.largest)
            left = self.cell_of(state)
            self.visits[left] = self.visits.get(left, 0) + 1
        return float(designed)

    def record(self, states: States, actions: NDArray[np.int64], rewards: Array) -> None:
        self.episodes.add(states, actions, rewards)

    def update(self, policy: Probabilities) -> None:
        """Move phi and V by each of the last episodes."""
        if not self.rate:
            return
        self.successes += any(returns[0] != 0 for _, _, returns in self.episodes.kept)
        for states, actions, returns in self.episodes.kept:
            probabilities = torch.as_tensor(policy(states), dtype=torch.float32)
            target, chosen = torch.as_tensor(returns, dtype=torch.float32), torch.as_tensor(actions)
            with torch.no_grad():
                advantages = target - self._values(states)
            loss = meta_loss(self.potential(states), chosen, advantages, probabilities)
            descend(self.phi_optimizer, loss)
            descend(self.value_optimizer, F.smooth_l1_loss(self._values(states), target))

    def _values(self, states: States) -> Tensor:
        values: Tensor = self.value(torch.as_tensor(states, dtype=torch.float32).flatten(1))[:, 0]
        return values

    def get_state(self) -> dict[str, Any]:
        modules = {name: getattr(self, name).state_dict() for name in ("phi", "value")}
        optimizers = {name: getattr(self, name).state_dict()["state"] for name in ("phi_optimizer", "value_optimizer")}
        return {
            **{name: {k: v.tolist() for k, v in state.items()} for name, state in modules.items()},
            **{
                name: {str(i): {k: v.tolist() for k, v in entry.items()} for i, entry in state.items()}
                for name, state in optimizers.items()
            },
            "visits": [[list(cell), count] for cell, count in self.visits.items()],
            "successes": self.successes,
            "episodes": self.episodes.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        for name in ("phi", "value"):
            getattr(self, name).load_state_dict({k: torch.tensor(v) for k, v in state[name].items()})
            optimizer = getattr(self, f"{name}_optimizer")
            entries = state[f"{name}_optimizer"].items()
            moments = {int(i): {k: torch.tensor(v) for k, v in entry.items()} for i, entry in entries}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        self.visits = {tuple(cell): count for cell, count in state["visits"]}
        self.successes = state["successes"]
        self.episodes.set_state(state["episodes"], np.float32)


def meta_loss(potential: Tensor, actions: Tensor, advantages: Tensor, probabilities: Tensor) -> Tensor:
    """The loss in the module's equation, a mean over the steps of an episode.

    Args:
        potential: ``f [T, A]``, differentiable.
        actions: ``[T]`` int64.
        advantages: ``[T]`` true returns less V.
        probabilities: ``[T, A]`` of the learner's policy.
    """
    rows = torch.arange(len(actions))
    centred = potential[rows, actions] - (probabilities * potential).sum(1)
    return -(probabilities[rows, actions] * advantages * centred).mean()


def _network(inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """One layer of ReLUs, its weights drawn as PyTorch draws them, but from the generator."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((inputs, hidden), (hidden, outputs)):
        linear = torch.nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        for parameter in (linear.weight, linear.bias):
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
