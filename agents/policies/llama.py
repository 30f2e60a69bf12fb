"""Decoding with Llama-type models: the keys and values of a prompt are kept once for all rows that share it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

MODEL_TYPES = ("llama", "mistral", "qwen2")  # pre-norm blocks of rotary attention and an MLP, nothing else


class SharedPromptDecoder:
    """What ``model(token, past_key_values=cache)`` computes, cheaper where several rows continue one prompt.

    Attention over the prompt is one product a prompt instead of one a row, and the prompt's cache is neither copied to
    the rows nor read once for each: for short completions that is most of what attention reads. The weights are used
    through the model's own modules, hence adapters, biases and quantised layers work.

    Args:
        model: of one of ``MODEL_TYPES``, without sliding window.
        cache: keys and values of ``G`` prompts, padded on the left.
        seen: ``[G, P]`` bool, True at prompt tokens.
        prompt: ``[B]`` int64, the prompt of every row.
        steps: the most tokens a row can have.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, seen: Tensor, prompt: Tensor, steps: int) -> None:
        self.body: Any = model.base_model
        self.head: Any = model.get_output_embeddings()
        width = seen.shape[1]
        layers: Any = cache.layers
        self.prompts = [(c.keys[:, :, :width].contiguous(), c.values[:, :, :width].contiguous()) for c in layers]
        self.bias = (
            None if bool(seen.all()) else torch.zeros(seen.shape).to(self.prompts[0][0]).masked_fill(~seen, -torch.inf)
        )
        self.keys, self.values = (
            [x.new_empty(len(prompt), x.shape[1], steps, x.shape[3]) for x in kind]
            for kind in zip(*self.prompts, strict=True)
        )
        self.filled = 0
        self._group(prompt)

    def _group(self, prompt: Tensor) -> None:
        """Arrange rows by prompt: ``slots [G * N]`` lists the rows of each, ``place [B]`` is where a row is listed."""
        self.prompt = prompt
        count = torch.bincount(prompt, minlength=len(self.prompts[0][0]))
        order = prompt.argsort(stable=True)
        rank = torch.arange(len(prompt), device=prompt.device) - (count.cumsum(0) - count)[prompt[order]]
        self.place = torch.empty_like(prompt)
        self.place[order] = prompt[order] * int(count.max()) + rank
        self.slots = torch.zeros(len(count) * int(count.max()), dtype=torch.long, device=prompt.device)
        self.slots[self.place] = torch.arange(len(prompt), device=prompt.device)
        self.in_order = len(self.slots) == len(prompt) and bool((self.slots[1:] > self.slots[:-1]).all())

    def keep(self, rows: Tensor) -> None:
        """Go on with ``rows`` only."""
        for buffers in (self.keys, self.values):
            for i, old in enumerate(buffers):
                buffers[i] = old.new_empty(len(rows), *old.shape[1:])
                buffers[i][:, :, : self.filled] = old[rows, :, : self.filled]
        self._group(self.prompt[rows])

    def step(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits ``[B, V]`` after ``token [B]`` at ``position [B]``."""
        x = self.body.embed_tokens(token)
        cos, sin = self.body.rotary_emb(x, position[:, None])
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        for i, layer in enumerate(self.body.layers):
            x = x + self._attend(i, layer.self_attn, layer.input_layernorm(x), cos, sin)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        self.filled += 1
        logits: Tensor = self.head(self.body.norm(x))
        return logits

    def _attend(self, i: int, attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        (pk, pv), end, batch = self.prompts[i], self.filled + 1, len(x)
        groups, heads, length, dim = pk.shape

        def rotate(y: Tensor) -> Tensor:
            return torch.addcmul(y * cos, y.roll(dim // 2, -1), sin)

        q = rotate(attention.q_proj(x).view(batch, -1, dim)).mul_(attention.scaling).view(batch, heads, -1, dim)
        self.keys[i][:, :, self.filled] = rotate(attention.k_proj(x).view(batch, heads, dim))
        self.values[i][:, :, self.filled] = attention.v_proj(x).view(batch, heads, dim)
        shared = heads, -1, q.shape[2]

        def by_prompt(y: Tensor) -> Tensor:  # [B, H, R, C] -> [G, H, N * R, C]
            listed = y if self.in_order else y[self.slots]
            return listed.reshape(groups, -1, *y.shape[1:]).transpose(1, 2).reshape(groups, heads, -1, y.shape[3])

        def by_row(y: Tensor) -> Tensor:  # the inverse
            listed = y.view(groups, *shared, y.shape[3]).transpose(1, 2).reshape(-1, heads, shared[2], y.shape[3])
            return listed if self.in_order else listed[self.place]

        to_prompt = by_prompt(q) @ pk.transpose(2, 3)
        if self.bias is not None:
            to_prompt += self.bias[:, None, None]
        to_own = q @ self.keys[i][:, :, :end].transpose(2, 3)
        weight = torch.cat([by_row(to_prompt), to_own], -1).softmax(-1, dtype=torch.float32).to(q.dtype)
        out = weight[..., length:] @ self.values[i][:, :, :end] + by_row(by_prompt(weight[..., :length]) @ pv)
        attended: Tensor = attention.o_proj(out.reshape(batch, -1))
        return attended
