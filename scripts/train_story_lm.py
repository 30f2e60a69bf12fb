"""Train the embedded language model and its tokenizer on the corpus of ``make_story_corpus.py``.

Writes a Hugging Face folder (config, fp16 safetensors, byte-level BPE tokenizer), the prompt sets, and ``report.json``
with held-out perplexities. The stories are split once, by line number: the first ``--held-out`` ones are never trained
on; the prompts are openings of those, and the perplexity is measured on them. The hidden matrices are trained with Muon
(``torch.optim.Muon``), embeddings and norms with AdamW; the learning rate warms up and then falls linearly to zero.

    python scripts/train_story_lm.py --corpus stories-*.jsonl --out assets --tokens 30000000
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def train_tokenizer(stories: list[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ``vocab_size`` entries, special ones included; every encoding begins with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        clean_up_tokenization_spaces=False, padding_side="left", model_max_length=512,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return fast


def opening(story: str, words: int = 12) -> str:
    """The shortest run of whole sentences at the start of ``story`` that has at least ``words`` words."""
    for end in re.finditer(r'[.!?]"?(?=\s)', story):
        if len(story[: end.end()].split()) >= words:
            return story[: end.end()]
    return story


def write_prompts(stories: list[str], train: int, evaluation: int, folder: Path, longest: int = 40) -> None:
    """Distinct openings of at most ``longest`` words; the evaluation set comes first, so the two are disjoint."""
    openings = list(dict.fromkeys(o for o in map(opening, stories) if len(o.split()) <= longest))
    if len(openings) < train + evaluation:
        raise ValueError(
            f"only {len(openings)} distinct openings in {len(stories)} stories, {train + evaluation} wanted"
        )
    folder.mkdir(parents=True, exist_ok=True)
    sets = {"eval": openings[:evaluation], "train": openings[evaluation : evaluation + train]}
    for name, prompts in sets.items():
        lines = [json.dumps({"prompt": p}, ensure_ascii=False) for p in prompts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def token_stream(tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> torch.Tensor:
    """All stories end to end as int32, each between BOS and EOS."""
    ids = tokenizer(stories)["input_ids"]
    return torch.tensor([t for row in ids for t in (*row, tokenizer.eos_token_id)], dtype=torch.int32)


def windows(stream: torch.Tensor, length: int, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless batches ``[batch, length + 1]``: each epoch cuts the stream at a new offset and shuffles the pieces."""
    while True:
        offset = int(torch.randint(length, (1,), generator=generator))
        pieces = stream[offset:].unfold(0, length + 1, length)
        order = torch.randperm(len(pieces), generator=generator)
        for i in range(0, len(order) - batch + 1, batch):
            yield pieces[order[i : i + batch]].long()


def train(model: LlamaForCausalLM, stream: torch.Tensor, args: argparse.Namespace, generator: torch.Generator) -> None:
    """Minimise next-token cross-entropy over ``args.tokens`` tokens."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    steps = args.tokens // (args.batch * args.length)
    warmup = min(100, steps // 10 + 1)
    began = time.time()
    for step, batch in zip(range(steps), windows(stream, args.length, args.batch, generator), strict=False):
        rate = args.lr * min((step + 1) / warmup, (steps - step) / (steps - warmup))
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = rate
        with torch.autocast("cpu" if not args.device.startswith("cuda") else "cuda", torch.bfloat16, enabled=args.bf16):
            logits = model(batch[:, :-1].to(args.device), use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten().to(args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            speed = (step + 1) * args.batch * args.length / (time.time() - began)
            print(f"step {step}/{steps} loss {loss.item():.4f} lr {rate:.2e} {speed:.0f} tokens/s", flush=True)
        if step % 500 == 499:
            save_model(model, args.out / "stories")


@torch.no_grad()
def held_out_nats(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> float:
    """Total negative log-likelihood in nats of ``stories``, end-of-story tokens included, one story a context."""
    model.eval()
    total = 0.0
    for story in stories:
        ids = torch.tensor([[*tokenizer(story)["input_ids"], tokenizer.eos_token_id]], device=model.device)[:, :512]
        total += F.cross_entropy(model(ids[:, :-1]).logits[0].float(), ids[0, 1:], reduction="sum").item()
    return total


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Config and fp16 weights, the tied head left out."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tensors = {k: v.detach().half().cpu().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives stories/ and prompts/")
    parser.add_argument("--tokens", type=int, default=30_000_000, help="training tokens, repeats counted")
    parser.add_argument("--held-out", type=int, default=4_500, help="stories kept from training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--init", type=Path, help="go on from this model with a fresh optimiser and schedule")
    parser.add_argument(
        "--keep-tokenizer", action="store_true", help="reuse the tokenizer and prompts already in --out"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [line for path in args.corpus for line in path.read_text(encoding="utf-8").splitlines()]
    stories = list(dict.fromkeys(json.loads(line)["text"] for line in lines))
    held_out, training = stories[: args.held_out], stories[args.held_out :]
    if args.keep_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(args.out / "stories")
    else:
        tokenizer = train_tokenizer(training, args.vocab, args.out / "stories")
        write_prompts(held_out, 2500, 500, args.out / "prompts")
    stream = token_stream(tokenizer, training)
    ids = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=224, intermediate_size=576, num_hidden_layers=4, num_attention_heads=7,
        max_position_embeddings=512, tie_word_embeddings=True, rms_norm_eps=1e-5, **ids,
    )  # fmt: skip
    torch.manual_seed(args.seed)  # Llama's initialisation takes no generator
    model = LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32) if args.init else LlamaForCausalLM(config)
    model = model.to(args.device).train()
    model.generation_config = GenerationConfig(do_sample=True, max_new_tokens=256, **ids)
    print(f"{len(training)} stories, {len(stream)} tokens, {model.num_parameters()} parameters", flush=True)
    train(model, stream, args, torch.Generator().manual_seed(args.seed))
    save_model(model, args.out / "stories")
    sample = held_out[:1000]
    nats = held_out_nats(LlamaForCausalLM.from_pretrained(args.out / "stories", dtype=torch.float32), tokenizer, sample)
    words, size = sum(len(s.split()) for s in sample), sum(len(s.encode()) for s in sample)
    report = {
        "stories": len(training), "corpus_tokens": len(stream), "trained_tokens": args.tokens,
        "parameters": model.num_parameters(), "perplexity_per_word": math.exp(nats / words),
        "bits_per_byte": nats / size / math.log(2),
    }  # fmt: skip
    (args.out / "stories" / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report)


if __name__ == "__main__":
    main()
