r"""The Preference Transformer, and its robust form with Gaussian rewards.

A causal transformer of GPT-2's kind reads a segment's states and actions in turn, :math:`s_1, a_1, s_2, a_2, \dots`;
the reward of a step is read off its action, and so depends on what came before in the segment. Papers: Preference
Transformer (ICLR 2023, arXiv 2303.00957); PEARL's robust reward learning (arXiv 2306.03615), where
:math:`r_t \sim N(\mu_t, \sigma_t^2)`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .reward_model import CHUNK, RewardModel, RewardOutput, evaluating, initial

Reduction = Literal["mean", "sum"]
LOG_STD = (-5.0, 2.0)


class PreferenceTransformer(RewardModel):
    """Rewards that depend on the segment up to their step.

    Whole episodes get the reward of each step from the window that ends there, padded on the left at an episode's
    start: see :meth:`step_rewards`.

    Deviations: a step's state comes before its action, and what is read has seen both; the standard deviations' head,
    clamped to ``exp([-5, 2])``, is our choice, as PEARL's text says only that the outputs are Gaussian.

    Args:
        observation_dim: numbers in an observation.
        action_dim: numbers in an action.
        length: steps of the longest segment; windows of episodes have as many.
        width: of the transformer.
        layers: their number.
        heads: of attention; divides ``width``.
        dropout: in [0, 1), of embeddings, attention and residuals.
        gaussian: with standard deviations, for robust reward learning.
        constant_std: an ablation: the standard deviation of every reward, not learned. None learns it.
        attention: with the preference attention: a bidirectional softmax over the segment weighs the steps' rewards in
            its logit. The rewards themselves stay what they are.
        reduction: mean, as in the authors' code, or sum of the rewards is the logit. It sets the scale on which
            standard deviations matter: the logit's variance is the mean of theirs over the length, or times the length.
        generator: source of the initial weights; the same ones every time if None.

    Raises:
        ValueError: if an argument is outside its range.
    """

    kind = "preference_transformer"

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        length: int,
        width: int = 256,
        layers: int = 1,
        heads: int = 4,
        dropout: float = 0.1,
        gaussian: bool = False,
        constant_std: float | None = None,
        attention: bool = False,
        reduction: Reduction = "mean",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(observation_dim, action_dim)
        if min(length, width, layers, heads) < 1 or width % heads:
            raise ValueError(
                f"length={length}, width={width}, layers={layers}, heads={heads}: must be at least 1, and heads divide "
                "width"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be in [0, 1)")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction={reduction!r}: must be one of {', '.join(get_args(Reduction))}")
        if constant_std is not None and not (gaussian and constant_std > 0):
            raise ValueError(f"constant_std={constant_std}: must be above 0, and takes gaussian=True")
        self.config = {
            "length": length, "width": width, "layers": layers, "heads": heads, "dropout": dropout,
            "gaussian": gaussian, "constant_std": constant_std, "attention": attention, "reduction": reduction,
        }  # fmt: skip
        self.length, self.gaussian, self.constant_std = length, gaussian, constant_std
        self.reduction, self.dropout = reduction, dropout
        with initial(generator):
            self.observation = nn.Linear(observation_dim, width)
            self.action = nn.Linear(action_dim, width)
            self.time = nn.Embedding(length + 1, width)  # 0 is padding
            self.embedded = nn.LayerNorm(width)
            self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
            self.final = nn.LayerNorm(width)
            self.mean = nn.Linear(width, 1)
            self.log_std = nn.Linear(width, 1) if gaussian and constant_std is None else None
            self.query_key = nn.Linear(width, 2 * width) if attention else None
            self.apply(_initialise)

    def member(self, number: int, observations: Tensor, actions: Tensor, mask: Tensor) -> RewardOutput:
        hidden = self._hidden(observations, actions, mask)
        return RewardOutput(self.mean(hidden)[..., 0], self._std(hidden), self._weights(hidden, mask))

    @torch.no_grad()
    def step_rewards(self, observations: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Rewards ``[B, T]`` of whole episodes: at each step the last one of the window of ``length`` that ends there.

        Exact, window by window; the cost is that of ``B T`` segments, but that the last layer looks at one step of
        each. See :class:`.RewardModel`.
        """
        past = (0, 0, self.length - 1, 0)
        states, acts, real = F.pad(observations, past), F.pad(actions, past), F.pad(mask, past[2:])
        found = observations.new_zeros(mask.shape)
        reach = torch.arange(self.length, device=mask.device)
        with evaluating(self):
            for rows, ends in zip(*(i.split(CHUNK) for i in mask.nonzero(as_tuple=True)), strict=True):
                window = rows[:, None], ends[:, None] + reach
                hidden = self._hidden(states[window], acts[window], real[window], last=True)
                found[rows, ends] = self.mean(hidden)[:, 0, 0]
        return found

    def spec(self) -> dict[str, Any]:
        return {"observation_dim": self.observation_dim, "action_dim": self.action_dim, **self.config}

    def _hidden(self, observations: Tensor, actions: Tensor, mask: Tensor, last: bool = False) -> Tensor:
        """Features ``[B, L, W]`` of the steps; of the last one only, ``[B, 1, W]``, if ``last``."""
        if mask.shape[1] > self.length:
            raise ValueError(f"segments have {mask.shape[1]} steps, but the model was made for {self.length} at most")
        inputs = self.inputs(observations, actions, mask)
        states, acts = inputs.split([self.observation_dim, self.action_dim], -1)
        time = self.time(mask.cumsum(1) * mask)
        tokens = torch.stack([self.observation(states) + time, self.action(acts) + time], 2).flatten(1, 2)
        x: Tensor = F.dropout(self.embedded(tokens), self.dropout, self.training)
        allowed = _allowed(mask)
        for number, block in enumerate(self.blocks):
            x = block(x, allowed, last and number == len(self.blocks) - 1)
        return self.final(x[:, -1:] if last else x[:, 1::2])  # type: ignore[no-any-return]

    def _std(self, hidden: Tensor) -> Tensor | None:
        if not self.gaussian:
            return None
        if self.log_std is None:
            assert self.constant_std is not None
            return torch.full_like(hidden[..., 0], self.constant_std)
        return self.log_std(hidden)[..., 0].clamp(*LOG_STD).exp()  # type: ignore[no-any-return]

    def _weights(self, hidden: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1, keepdim=True).clamp(min=1)
        weights = mask / lengths
        if self.query_key is not None:
            query, key = self.query_key(hidden).chunk(2, -1)
            scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
            seen = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min).softmax(-1)
            weights = (seen * weights[..., None]).sum(1) * mask
        return weights * lengths if self.reduction == "sum" else weights


class Block(nn.Module):
    """One layer of GPT-2: attention and a perceptron, each on normalised inputs and added to them."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, allowed: Tensor | None, last: bool) -> Tensor:
        """``[B, T, W]`` to the same, or to ``[B, 1, W]``, the last token only. ``allowed``: see :func:`_allowed`."""
        dropout = self.dropout if self.training else 0.0
        y = self.before_attention(x)
        if last:
            x, allowed = x[:, -1:], None if allowed is None else allowed[:, :, -1:]
        query = self._split(self.query(y[:, -1:] if last else y))
        key, value = (self._split(part) for part in self.key_value(y).chunk(2, -1))
        causal = allowed is None and not last
        mixed = F.scaled_dot_product_attention(query, key, value, allowed, dropout, causal)
        x = x + F.dropout(self.project(mixed.transpose(1, 2).flatten(2)), dropout)
        return x + F.dropout(self.mlp(self.before_mlp(x)), dropout)

    def _split(self, x: Tensor) -> Tensor:
        """``[B, T, W]`` to ``[B, heads, T, W / heads]``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-any-return]


def _allowed(mask: Tensor) -> Tensor | None:
    """Which tokens ``[B, 1, 2 L, 2 L]`` each token may look at: real ones up to itself, padding at itself only.

    None where no step is padding, and the causal order is all.
    """
    if mask.all():
        return None
    real = mask.repeat_interleave(2, 1)
    steps = real.shape[1]
    causal = torch.ones(steps, steps, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(steps, dtype=torch.bool, device=mask.device)
    return (causal & real[:, None, None]) | itself


def _initialise(module: nn.Module) -> None:
    """GPT-2's: normal weights of deviation 0.02, biases of 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
