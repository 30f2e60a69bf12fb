r"""A small vision-language policy that clicks: a map of scores over the screenshot, and points drawn from it.

The screenshot becomes features every 8 pixels, the instruction one vector, and both together a score :math:`s_c` for
each cell of the map. A point is the centre of a cell. An answer of several points is drawn one after the other, and the
probability of a whole answer :math:`p_1, \dots, p_n` is exact:

.. math::
    \log \pi = \sum_{k=1}^{n} \log \mathrm{softmax}(s \text{ without what lies near } p_1 \dots p_{k-1})_{p_k}
        + \sum_{k=1}^{n-1} \log \sigma(u_k) + [n < N] \log (1 - \sigma(u_n))

where :math:`u_k`, whether to give another point after :math:`k`, is computed from the instruction and from how sure the
map is, and :math:`N` is the most points that the environment takes. With :math:`N = 1` it is a softmax over cells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...assets import model_path
from ...trajectories import Trajectories
from ..checkpoint import load_json
from .page_encoder import STRIDE, PageEncoder, TextEncoder
from .policy import Decision, Evaluation, Policy, RowNoise, one_turn, sample_categorical

NEAR = 2  # cells around an earlier point, in each direction, that later points leave out
PIECE = 8  # screenshots encoded at once
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Clicker(nn.Module):
    """The network: screenshots and instructions to maps of scores.

    Args:
        width: of all features.
        stem: see :class:`.page_encoder.PageEncoder`.
        blocks: the same.
        layers: the same.
        text_layers: attention layers over the instruction's bytes.
        length: the longest instruction in bytes.
    """

    def __init__(
        self,
        width: int = 128,
        stem: int = 48,
        blocks: int = 4,
        layers: int = 2,
        text_layers: int = 3,
        length: int = 96,
    ) -> None:
        super().__init__()
        self.config = {
            "width": width, "stem": stem, "blocks": blocks, "layers": layers, "text_layers": text_layers,
            "length": length,
        }  # fmt: skip
        self.page, self.text = PageEncoder(width, stem, blocks, layers), TextEncoder(width, text_layers, length)
        self.place = nn.Linear(8, width)
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.gate, self.shift, self.mix = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)  # which a softmax would not see

    def features(self, screenshots: Tensor) -> Tensor:
        """``[B, H, W, 3]`` uint8 to ``[B, H / 8, W / 8, width]``, each knowing its place."""
        return self.placed(self.page(screenshots))

    def placed(self, x: Tensor) -> Tensor:
        """``[B, h, w, width]`` of the page encoder, with each cell's place added."""
        rows, columns = x.shape[1:3]
        down, right = (torch.arange(n, device=x.device) / n for n in (rows, columns))
        grid = torch.stack(torch.meshgrid(down, right, indexing="ij"), -1)
        waves = torch.cat([grid, (torch.pi * grid).sin(), (torch.pi * grid).cos(), (4 * torch.pi * grid).cos()], -1)
        return x + self.place(waves.to(x.dtype))  # type: ignore[no-any-return]

    def scores(self, features: Tensor, texts: Tensor, which: Tensor) -> Tensor:
        """Scores ``[P, h * w]`` of instructions' vectors ``[P, width]``, each on one of the maps ``[B, h, w, width]``.

        ``which [P]`` says on which; what depends on a map alone is computed once.
        """
        x, width = features.flatten(1, 2), features.shape[-1]
        matched = (self.key(x)[which] @ self.query(texts)[:, :, None])[..., 0] * width**-0.5
        hidden = F.gelu(self.mix(x)[which] * (1 + self.gate(texts))[:, None] + self.shift(texts)[:, None])
        return matched + self.score(hidden)[..., 0]  # type: ignore[no-any-return]

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        import json

        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config, indent=2) + "\n", "utf-8")
        save_file({k: v.detach().contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """The embedded network ``gui-clicker``, or one from a folder that :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the files are of another network.
        """
        from safetensors.torch import load_file

        folder = Path(model_path(name))
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"{folder} holds no {CONFIG} of a clicker")
        try:
            model: Self = empty(cls, load_json((folder / CONFIG).read_text("utf-8")))
            model.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS).items()})
        except (TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{folder} is no network of a clicker: {error}") from error
        return model


def empty(cls: type[Any], config: Mapping[str, Any]) -> Any:
    """A network whose weights are to be filled in: making it leaves the global random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        return cls(**config)


class ClickerPolicy(Policy):
    """Points on screenshots, for ``GUIGrounding-v0`` and click-only ``GUIBrowser-v0``.

    Rows with the same screenshot, as those of a group, share its encoding; so do rows with the same instruction.
    Evaluation is greedy unless told otherwise: the cell of the highest score, further points where they are likelier
    than not.

    Deviation from InfiGUI-G1, whose model writes coordinates as text and may repeat a point: cells near earlier points
    are left out, so that a further point is a different place.

    Args:
        network: scores the cells.
        num_points: that an answer may have; the environment's ``max_points``.
        value_head: with a critic, which reads the instruction and the mean of the features.
        temperature: of the map, in sampling and scoring.
        autocast: compute in bfloat16.
        freeze_page: train all but the page encoder, as is often done with vision towers: several times faster.

    Raises:
        ValueError: for a number of points below 1 or a temperature that is not above 0.
    """

    first_observation_only = True
    deterministic_evaluation = True

    def __init__(
        self,
        network: Clicker,
        num_points: int = 1,
        value_head: bool = False,
        temperature: float = 1.0,
        autocast: bool = False,
        freeze_page: bool = False,
    ) -> None:
        super().__init__()
        if num_points < 1 or not temperature > 0:
            raise ValueError(f"num_points={num_points}, temperature={temperature}: must be at least 1, and above 0")
        self.network, self.num_points, self.temperature, self.autocast = network, num_points, temperature, autocast
        self.freeze_page, self.name = freeze_page, ""  # of the network's files, where it came from any
        self._kept: dict[bytes, Tensor] = {}
        network.page.requires_grad_(not freeze_page)
        width = network.config["width"]
        # Zeros: an untrained answer has another point with probability 1/2, and every state the value 0.
        self.more = _zeros(width + 2, num_points - 1) if num_points > 1 else None
        self.critic = _zeros(2 * width, 1) if value_head else None

    @classmethod
    def from_pretrained(cls, name: str | Path = "gui-clicker", **options: Any) -> Self:
        """The policy of an embedded or saved network; options as in the constructor."""
        policy = cls(Clicker.load(name), **options)
        policy.name = str(name)
        return policy

    @property
    def sampling(self) -> dict[str, Any]:
        return {"num_points": self.num_points, "temperature": self.temperature, "near": NEAR}

    @property
    def has_critic(self) -> bool:
        """Whether ``evaluate_actions`` returns values."""
        return self.critic is not None

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which ``from_spec`` rebuilds the policy around saved tensors."""
        names = ("name", "num_points", "temperature", "autocast", "freeze_page")
        return {**{n: getattr(self, n) for n in names}, "network": self.network.config, "value_head": self.has_critic}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Inverse of :meth:`spec`, but for the values of the trained parameters.

        Raises:
            ValueError: if a page encoder that is not trained came from no files, so that it cannot be had again.
        """
        options = {k: v for k, v in spec.items() if k not in ("name", "network")}
        if not spec["freeze_page"]:
            return cls(empty(Clicker, spec["network"]), **options)
        if not spec["name"]:
            raise ValueError("the frozen page encoder came from no files: pass the policy as load(folder, policy=...)")
        return cls.from_pretrained(spec["name"], **options)

    @torch.no_grad()
    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        """Answer every row; consumes ``2 num_points - 1`` numbers a row.

        Args:
            observation: ``screenshot [B, H, W, 3]`` and ``instruction [B, L]``, uint8, numpy or torch.
            noise: one stream a row.
            deterministic: take the best cell, and another point only where that is likelier than not.

        Returns:
            actions ``[B, num_points, 2]`` float32, rows of -1 after the last point, and log_probs ``[B]``.
        """
        scores, texts, _, size = self._encode(observation)
        uniform = noise.uniform(2 * self.num_points - 1).to(scores.device)
        cells = torch.full((len(scores), self.num_points), -1, device=scores.device)
        going = torch.ones_like(cells[:, 0], dtype=torch.bool)
        left, more = scores, self._more(scores, texts)
        for k in range(self.num_points):
            chosen = left.argmax(1) if deterministic else sample_categorical(left, uniform[:, k])
            cells[:, k] = chosen.where(going, -1)
            if k + 1 < self.num_points:
                again = more[:, k] > 0 if deterministic else uniform[:, self.num_points + k] < more[:, k].sigmoid()
                going = going & again
                left = left.masked_fill(near(chosen, size), -torch.inf)
        return Decision(points_of(cells, size), self._log_prob(cells, scores, more, size))

    def generate(
        self,
        observation: Any,
        noise: RowNoise,
        *,
        max_steps: int,
        terminal_actions: Collection[int] = (),
        deterministic: bool = False,
    ) -> Trajectories:
        """Play one-turn episodes.

        Raises:
            ValueError: if ``max_steps`` is not 1.
        """
        return one_turn(self, observation, self.act(observation, noise, deterministic), max_steps)

    def evaluate_actions(self, trajectories: Trajectories, *, entropy: bool = False) -> Evaluation:
        """Score recorded answers.

        The entropy, which costs nothing here, is that of the first point: that of whole answers has no closed form.

        Raises:
            ValueError: if the answers were drawn with other settings, or are no one-turn episodes.
        """
        if trajectories.sampling and trajectories.sampling != self.sampling:
            raise ValueError(f"answers were drawn with {trajectories.sampling}, but the policy has {self.sampling}")
        if trajectories.mask.shape[1] != 1:
            raise ValueError(f"episodes have {trajectories.mask.shape[1]} decisions, but ClickerPolicy scores one")
        scores, texts, features, size = self._encode(trajectories.observations)
        cells = cells_of(trajectories.actions[:, 0].to(scores.device), size)
        log_probs = self._log_prob(cells, scores, self._more(scores, texts), size)
        plain = scores.log_softmax(1)
        values = None
        if self.critic is not None:
            state = self.critic(torch.cat([features, texts], 1))
            values = torch.cat([state, torch.zeros_like(state)], 1)
        return Evaluation(log_probs[:, None], -(plain.exp() * plain).sum(1)[:, None], values)

    def maps(self, observation: Any) -> tuple[Tensor, tuple[int, int]]:
        """Scores of the cells ``[B, h * w]`` before the temperature, differentiable, and ``(h, w)``."""
        scores, _, _, size = self._encode(observation)
        return scores * self.temperature, size

    def _encode(self, observation: Any) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Scores ``[B, h * w]``, texts ``[B, width]``, mean features ``[B, width]``, and ``(h, w)``."""
        images, texts = (torch.as_tensor(observation[k], device=self.device) for k in ("screenshot", "instruction"))
        shown, which = distinct(images)
        pairs, pair = distinct(torch.cat([which[:, None].to(torch.int64), texts.to(torch.int64)], 1))
        with torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext():
            features = self._features(shown)
            vectors = self.network.text(pairs[:, 1:])
            scores = self.network.scores(features, vectors, pairs[:, 0])
        size = (features.shape[1], features.shape[2])
        if (self.num_points - 1) * (2 * NEAR + 1) ** 2 >= size[0] * size[1]:
            raise ValueError(f"num_points={self.num_points} are too many for a map of {size[0]} x {size[1]} cells")
        means = features.mean((1, 2))[pairs[:, 0]]
        return (scores.float() / self.temperature)[pair], vectors.float()[pair], means.float()[pair], size

    def _features(self, images: Tensor) -> Tensor:
        """Features of different screenshots. Those of a frozen encoder are kept for the update that follows."""
        if not self.freeze_page:
            # In pieces that fit a processor's cache: several times faster than a large batch at once.
            return torch.cat([self.network.features(part) for part in images.split(PIECE)])
        keys = [image.tobytes() for image in images.cpu().numpy()]
        if any(key not in self._kept for key in keys):
            with torch.no_grad():
                pages = torch.cat([self.network.page(part) for part in images.split(PIECE)])
            self._kept = dict(zip(keys, pages, strict=True))
        return self.network.placed(torch.stack([self._kept[key] for key in keys]))

    def _more(self, scores: Tensor, texts: Tensor) -> Tensor:
        """Log-odds ``[B, num_points - 1]`` of another point after the first, the second, ..."""
        if self.more is None:
            return scores.new_zeros(len(scores), 0)
        plain = scores.log_softmax(1)
        sure = torch.stack([plain.amax(1), -(plain.exp() * plain).sum(1)], 1)
        return self.more(torch.cat([texts, sure.detach()], 1))  # type: ignore[no-any-return]

    def _log_prob(self, cells: Tensor, scores: Tensor, more: Tensor, size: tuple[int, int]) -> Tensor:
        """Log-probability ``[B]`` of answers ``cells [B, num_points]``, -1 after the last point."""
        there = cells >= 0
        if not there[:, 0].all():
            raise ValueError("an answer without points cannot have been drawn by this policy")
        index, left, total = cells.clamp(min=0), scores, scores.new_zeros(len(scores))
        for k in range(self.num_points):
            drawn = left.log_softmax(1).gather(1, index[:, k : k + 1])[:, 0]
            total = total + drawn.where(there[:, k], 0.0)
            if k + 1 < self.num_points:
                went_on = F.logsigmoid(more[:, k].where(there[:, k + 1], -more[:, k]))
                total = total + went_on.where(there[:, k], 0.0)
                left = left.masked_fill(near(index[:, k], size) & there[:, k : k + 1], -torch.inf)
        return total


def near(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, h * w]`` bool, the cells at most ``NEAR`` rows and columns from ``cells [B]`` of an ``(h, w)`` map."""
    height, width = size
    every = torch.arange(height * width, device=cells.device)
    down = (every // width - cells[:, None] // width).abs()
    return (down <= NEAR) & ((every % width - cells[:, None] % width).abs() <= NEAR)


def points_of(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Centres ``[..., 2]`` float32 of cells ``[...]``, as shares of width and height; -1 for cells of -1."""
    height, width = size
    centres = torch.stack([(cells % width + 0.5) / width, (cells // width + 0.5) / height], -1).float()
    return centres.where((cells >= 0)[..., None], -1.0)


def cells_of(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells ``[...]`` that points ``[..., 2]`` lie in; -1 for points with a negative coordinate."""
    height, width = size
    column = (points[..., 0] * width).floor().long().clamp(max=width - 1)
    row = (points[..., 1] * height).floor().long().clamp(max=height - 1)
    return (row * width + column).where((points >= 0).all(-1), -1)


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different ones among ``rows [B, ...]``, by first appearance, and which of them each row is, ``[B]``."""
    numbers: dict[bytes, int] = {}
    keys = [row.tobytes() for row in rows.cpu().numpy()]
    which = [numbers.setdefault(key, len(numbers)) for key in keys]
    first = [which.index(number) for number in range(len(numbers))]
    return rows[first], torch.tensor(which, device=rows.device)


def _zeros(inputs: int, outputs: int) -> nn.Linear:
    linear = torch.nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear  # type: ignore[no-any-return]


__all__ = ["STRIDE", "Clicker", "ClickerPolicy", "cells_of", "distinct", "near", "points_of"]
