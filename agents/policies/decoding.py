"""Batched sampling from a causal language model: shared prefill, preallocated cache, inverse-CDF draws, compaction."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from .llama import MODEL_TYPES, SharedPromptDecoder
from .policy import RowNoise, sample_categorical


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. The same transformation is applied when sampling and when scoring again.

    Attributes:
        temperature: divides the logits; above 0.
        top_k: keep the ``k`` likeliest tokens; 0 keeps all. Training with it is refused: see ``trainable``.
        top_p: keep the smallest set of likeliest tokens whose probability reaches ``p``; in (0, 1], 1 keeps all.
        suppress: token ids that are never drawn.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    suppress: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature={self.temperature}: must be a finite number above 0; pass deterministic=True for greedy"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be 0 (off) or a positive integer")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must lie in (0, 1]; 1 is off")

    @property
    def trainable(self) -> bool:
        """Whether importance ratios are defined: a nucleus moves with the parameters and would exclude drawn tokens."""
        return self.top_k == 0 and self.top_p == 1.0

    def logits(self, logits: Tensor) -> Tensor:
        """Unnormalised log-probabilities ``[..., V]`` of the distribution that is sampled; excluded tokens are -inf."""
        if self.suppress:
            logits = logits.index_fill(-1, torch.tensor(self.suppress, device=logits.device), -math.inf)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        if self.top_p < 1.0:
            ordered, order = logits.sort(dim=-1, descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            excluded = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= self.top_p)
            logits = logits.masked_fill(excluded, -math.inf)
        return logits


class PreallocatedLayer(DynamicLayer):
    """A cache layer that writes into one buffer of ``length`` positions and attends only to the filled part."""

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length, self.filled = length, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            shape = (*key_states.shape[:2], self.length, key_states.shape[3])
            self.keys, self.values = (
                key_states.new_empty(shape),
                value_states.new_empty(*shape[:3], value_states.shape[3]),
            )
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        end = self.filled + key_states.shape[2]
        assert self.keys is not None and self.values is not None
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.filled

    def batch_select_indices(self, indices: Tensor) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty((len(indices), *old.shape[1:]))
            new[:, :, : self.filled] = old[indices, :, : self.filled]
            setattr(self, name, new)


def attends_to_all(model: PreTrainedModel) -> bool:
    """Whether every layer is causal attention over all earlier tokens: no sliding window, no recurrent state."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)


def make_cache(model: PreTrainedModel, length: int) -> Cache:
    """A cache for ``length`` positions; models with sliding or recurrent layers keep transformers' own."""
    config = model.config.get_text_config()
    if not attends_to_all(model):
        return DynamicCache(config=config)
    return Cache(layers=[PreallocatedLayer(length) for _ in range(config.num_hidden_layers)])


@dataclass
class Decoded:
    """Sampled continuations: ``actions``, ``log_probs``, ``mask`` ``[B, T]``; ``terminated [B]`` bool."""

    actions: Tensor
    log_probs: Tensor
    mask: Tensor
    terminated: Tensor


class CachedDecoder:
    """One token a row at a time, for any causal language model, through transformers' own forward pass.

    Args:
        model: the language model.
        cache: keys and values of ``G`` prompts.
        seen: ``[G, P]`` bool, True at prompt tokens; padded on the left.
        prompt: ``[B]`` int64, the prompt of every row.
        steps: the most tokens a row can have.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, seen: Tensor, prompt: Tensor, steps: int) -> None:
        self.model, self.cache, self.end = model, cache, seen.shape[1]
        self.mask = torch.cat([seen[prompt], seen.new_ones(len(prompt), steps)], 1)
        self.padded = bool((~seen).any())
        self.takes_mask = not isinstance(cache, DynamicCache) and model.config._attn_implementation == "sdpa"
        cache.batch_select_indices(prompt)

    def keep(self, rows: Tensor) -> None:
        """Go on with ``rows`` only."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)

    def step(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits ``[B, V]`` after ``token [B]`` at ``position [B]``."""
        self.end += 1
        seen: Tensor | None = self.mask[:, : self.end]
        if self.takes_mask:  # as it is, in 4 dimensions: constructing masks in general costs as much as a small layer
            seen = seen[:, None, None] if self.padded and seen is not None else None
        logits: Tensor = self.model(
            input_ids=token[:, None],
            attention_mask=seen,
            position_ids=position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        return logits[:, -1]


# Logits [B, V] after each prompt, what decodes on from there, and the position [B] of the first token drawn.
Start: TypeAlias = tuple[Tensor, CachedDecoder | SharedPromptDecoder, Tensor]


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of ``[B, L]`` in order of first appearance, and which of them each row is, ``[B]``."""
    found, index = torch.unique(rows, dim=0, return_inverse=True)
    positions = torch.arange(len(rows), device=rows.device)
    first = positions.new_full((len(found),), len(rows)).scatter_reduce_(0, index, positions, "amin")
    order = first.argsort()
    return found[order], order.argsort()[index]


def prefill(
    model: PreTrainedModel, prompts: Tensor, prompt_mask: Tensor, steps: int
) -> tuple[Tensor, CachedDecoder | SharedPromptDecoder]:
    """Logits ``[B, V]`` after each prompt and what decodes on from there; equal prompts are computed once."""
    width = prompts.shape[1]
    cache = make_cache(model, width + steps)
    keyed, prompt = distinct(torch.cat([prompt_mask.long(), prompts], 1))
    seen = keyed[:, :width].bool()
    logits: Tensor = model(
        input_ids=keyed[:, width:],
        attention_mask=seen.long(),
        position_ids=(seen.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    shares = attends_to_all(model) and model.config.model_type in MODEL_TYPES
    decoder = (SharedPromptDecoder if shares else CachedDecoder)(model, cache, seen, prompt, steps)
    return logits[prompt, -1], decoder


def decode(
    model: PreTrainedModel,
    prompts: Tensor,
    prompt_mask: Tensor,
    noise: RowNoise,
    sampling: Sampling,
    *,
    max_steps: int,
    stop: Collection[int],
    deterministic: bool = False,
) -> Decoded:
    """Continue every row of ``prompts`` until it draws a token of ``stop`` or has drawn ``max_steps``.

    Rows that have ended leave the batch once they are a quarter of it. Row ``i`` uses the uniforms of ``noise`` row
    ``i`` in order, whatever the batch.

    Args:
        model: a causal language model in eval mode.
        prompts: ``[B, P]`` int64, padded on the LEFT.
        prompt_mask: ``[B, P]`` bool, True at prompt tokens.
        noise: ``B`` streams; one uniform a token.
        sampling: how tokens are drawn.
        max_steps: tokens after which a row is cut.
        stop: token ids that end a row; the token itself is part of it.
        deterministic: take the likeliest token; draws nothing from ``noise``.
    """

    def start() -> Start:
        return *prefill(model, prompts, prompt_mask, max_steps), prompt_mask.sum(1)

    return decode_from(start, noise, sampling, max_steps=max_steps, stop=stop, deterministic=deterministic)


def decode_from(
    start: Callable[[], Start],
    noise: RowNoise,
    sampling: Sampling,
    *,
    max_steps: int,
    stop: Collection[int],
    deterministic: bool = False,
) -> Decoded:
    """:func:`decode` after prompts of any kind: ``start`` reads them, and is called in inference mode."""
    uniform = None if deterministic else noise.uniform(max_steps)
    with torch.inference_mode():
        drawn = _decode(*start(), uniform, sampling, max_steps, stop)
    # What was made in inference mode may not enter a loss; a copy may.
    return Decoded(drawn.actions.clone(), drawn.log_probs.clone(), drawn.mask.clone(), drawn.terminated.clone())


def _decode(
    logits: Tensor,
    decoder: CachedDecoder | SharedPromptDecoder,
    positions: Tensor,
    uniform: Tensor | None,
    sampling: Sampling,
    max_steps: int,
    stop: Collection[int],
) -> Decoded:
    batch, device = len(logits), logits.device
    uniform = None if uniform is None else uniform.to(device)
    stop_ids = torch.tensor(sorted(stop), dtype=torch.long, device=device)
    actions = torch.zeros(batch, max_steps, dtype=torch.long, device=device)
    log_probs = torch.zeros(batch, max_steps, device=device)
    terminated = torch.zeros(batch, dtype=torch.bool, device=device)
    lengths = torch.full((batch,), max_steps, device=device)
    rows = torch.arange(batch, device=device)  # rows still in the batch; some of them may have ended
    for t in range(max_steps):
        log_p = sampling.logits(logits.float()).log_softmax(-1)
        token = log_p.argmax(-1) if uniform is None else sample_categorical(log_p, uniform[rows, t])
        actions[rows, t], log_probs[rows, t] = token, log_p.gather(1, token[:, None])[:, 0]
        ended = torch.isin(token, stop_ids) & ~terminated[rows]
        terminated[rows], lengths[rows] = terminated[rows] | ended, torch.where(ended, t + 1, lengths[rows])
        alive = ~terminated[rows]
        count = int(alive.sum())
        if count == 0 or t == max_steps - 1:
            break
        if count <= 0.75 * len(rows):
            kept = alive.nonzero()[:, 0]
            rows, token, positions = rows[kept], token[kept], positions[kept]
            decoder.keep(kept)
        logits = decoder.step(token, positions)
        positions = positions + 1
    steps = int(lengths.max())
    written = torch.arange(steps, device=device) < lengths[:, None]
    return Decoded(actions[:, :steps] * written, log_probs[:, :steps] * written, written, terminated)
