"""Points in the plane from a mixture of Gaussians, whose density is known, and networks trained to draw them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..agents.policies.denoiser import Condition, Denoiser
from ..agents.policies.samplers import NoiseGrid, noised
from ..agents.randomness import seeded

Points = NDArray[np.float64]
EDGE = 0.01  # share of the quarter turn that the noise schedule leaves out at either end


@dataclass(frozen=True)
class Mixture:
    """Equal round Gaussians in the plane.

    Attributes:
        means: ``K`` pairs.
        weights: ``K`` of them, which sum to 1.
        std: of every component.
    """

    means: tuple[tuple[float, float], ...]
    weights: tuple[float, ...]
    std: float

    def sample(self, count: int, rng: np.random.Generator) -> Points:
        """``[count, 2]``."""
        chosen = rng.choice(len(self.weights), size=count, p=self.weights)
        return np.asarray(self.means)[chosen] + self.std * rng.standard_normal((count, 2))

    def _log_joint(self, x: Points) -> Points:
        """``[n, K]`` log-density of each point with each component."""
        squares = np.square(np.asarray(x, np.float64)[:, None] - np.asarray(self.means)).sum(-1)
        joint: Points = np.log(self.weights) - squares / (2 * self.std**2) - math.log(2 * math.pi * self.std**2)
        return joint

    def log_density(self, x: Points) -> Points:
        """``[n]``, exact."""
        total: Points = np.logaddexp.reduce(self._log_joint(x), axis=1)
        return total

    def posterior(self, x: Points) -> Points:
        """``[n, K]`` probability of each component given a point, exact."""
        return np.exp(self._log_joint(x) - self.log_density(x)[:, None])

    def mode(self, x: Points) -> NDArray[np.int64]:
        """``[n]`` the likeliest component."""
        chosen: NDArray[np.int64] = self._log_joint(x).argmax(1)
        return chosen


FOUR = Mixture(((1.2, 1.2), (-1.2, 1.2), (-1.2, -1.2), (1.2, -1.2)), (0.25,) * 4, 0.25)
"""One mode a quadrant, of equal mass."""

RARE = Mixture(
    tuple((x, y) for x in (-0.6, 1.2) for y in (-1.8, -0.6, 0.6, 1.8)), (0.97 / 4,) * 4 + (0.03 / 4,) * 4, 0.2
)
"""Two columns of four modes: the right one has 3 % of the mass, of which a trained network draws about 2. Column and
row are independent attributes."""


class PointDenoiser(Denoiser):
    """A perceptron for points ``[2]``; it is told nothing of the prompt.

    Args:
        kind: ``diffusion`` (v-prediction, cosine schedule) or ``flow``.
        width: of its three hidden layers.
        seed: of its initial weights.
    """

    FREQUENCIES = (0.5, 1.0, 2.0, 4.0)

    def __init__(self, kind: Literal["diffusion", "flow"], width: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.kind, self.prediction, self.shape = kind, "velocity" if kind == "flow" else "v_prediction", (2,)
        sizes = [2 + 2 * len(self.FREQUENCIES), width, width, width]
        with seeded(seed):
            layers: list[nn.Module] = []
            for i, o in pairwise(sizes):
                layers += [nn.Linear(i, o), nn.SiLU()]
            self.body = nn.Sequential(*layers, nn.Linear(width, 2))

    def encode(self, prompts: Sequence[str]) -> Condition:
        return {"nothing": torch.zeros(len(prompts), 0)}

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        angles = math.pi * t[:, None] * torch.tensor(self.FREQUENCIES, device=t.device)
        out: Tensor = self.body(torch.cat([x, angles.sin(), angles.cos()], 1))
        return out

    def level(self, t: Tensor) -> Tensor:
        r"""Of noise at time ``t`` in [0, 1]: ``t`` itself, or :math:`\bar\alpha` of the cosine schedule.

        The schedule stops short of both ends: a last step into :math:`\bar\alpha = 1` would have no noise, and so no
        probability.
        """
        return t if self.kind == "flow" else (math.pi / 2 * (EDGE + (1 - 2 * EDGE) * t)).cos().square()

    def grid(self, num_steps: int) -> NoiseGrid:
        times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        return NoiseGrid(self.kind, times[:-1].float(), self.level(times))


@dataclass(frozen=True)
class Pretraining:
    """How a :class:`PointDenoiser` is trained; about three seconds on one core.

    Attributes:
        kind: of the network.
        mixture: of the data, of which every batch is a new sample.
        steps: of Adam.
        batch_size: points a step.
        learning_rate: at first; it falls to 0 along a cosine.
        width: of the layers.
        seed: of weights, data and noise.
    """

    kind: Literal["diffusion", "flow"]
    mixture: Mixture
    steps: int = 2500
    batch_size: int = 512
    learning_rate: float = 3e-3
    width: int = 64
    seed: int = 0

    def run(self) -> PointDenoiser:
        """A freshly trained network: mean squared error of the prediction at uniform times."""
        network = PointDenoiser(self.kind, self.width, self.seed)
        rng, generator = np.random.default_rng(self.seed), torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(network.parameters(), self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        condition = network.encode([""] * self.batch_size)
        for _ in range(self.steps):
            x_0 = torch.from_numpy(self.mixture.sample(self.batch_size, rng)).float()
            t = torch.rand(self.batch_size, generator=generator)
            e = torch.randn(self.batch_size, 2, generator=generator)
            x_t, target = noised(x_0, e, network.level(t)[:, None], network.prediction)
            loss = (network(x_t, t, condition) - target).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        return network.eval()

    def cached(self, folder: Path) -> PointDenoiser:
        """The network, from ``folder`` where it was trained before; it is trained once for each set of options."""
        options: dict[str, Any] = asdict(self)
        path = folder / f"{self.kind}-{sha256(json.dumps(options).encode()).hexdigest()[:12]}.safetensors"
        network = PointDenoiser(self.kind, self.width, self.seed).eval()
        if path.exists():
            network.load_state_dict(load_file(path))
            return network
        network = self.run()
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file(network.state_dict(), part)
        part.replace(path)
        return network
