"""Perplexity of the embedded language model and of its teacher stories15M on the same held-out stories.

The two have different tokenizers, so the figures are per word and per byte of the same text. Stories are taken whole,
with the end of the story counted; those that exceed a context of 256 teacher tokens are left out for both.

    python scripts/compare_story_lm.py --data package/dist/llama2.data --corpus stories-*.jsonl --model assets/stories
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from make_story_corpus import Teacher
from train_story_lm import held_out_nats
from transformers import AutoTokenizer, LlamaForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--stories", type=int, default=500, help="taken from the start, which is never trained on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = Teacher(args.data)
    lines = [line for path in args.corpus for line in path.read_text(encoding="utf-8").splitlines()]
    stories = list(dict.fromkeys(json.loads(line)["text"] for line in lines))[: args.stories]
    stories = [s for s in stories if len(teacher.encode(s)) < teacher.context]
    words, size = sum(len(s.split()) for s in stories), sum(len(s.encode()) for s in stories)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    nats = {"embedded": held_out_nats(model, tokenizer, stories), "stories15M": sum(map(teacher.nats, stories))}
    for name, total in nats.items():
        print(f"{name}: {math.exp(total / words):.2f} per word, {total / size / math.log(2):.4f} bits per byte, "
              f"{len(stories)} stories")  # fmt: skip


if __name__ == "__main__":
    main()
