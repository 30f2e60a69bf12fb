"""Our ``LMPolicy.generate`` against Hugging Face ``generate``: same model, prompts, lengths, batch and sampler.

    python benchmarks/rollout.py [--quick] [--pairs 5] [--model stories]

Cases: every row draws exactly 64 tokens; rows end at their end-of-story token within 256; each in float32, the first in
bfloat16 too. Hugging Face runs eagerly with its growing cache and with its static one. That all arms sample the same
distribution shows in ``log p``, the mean log-probability of their tokens under one plain forward pass of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from pairs import Stopwatch, alternate, report, table

CASES = {
    "fixed-float32": {"tokens": 64, "end": False, "dtype": "float32"},
    "ending-float32": {"tokens": 256, "end": True, "dtype": "float32"},
    "fixed-bfloat16": {"tokens": 64, "end": False, "dtype": "bfloat16"},
}
ARMS = ("ours", "generate", "generate-static")


def arm(args: argparse.Namespace) -> dict[str, Any]:
    """Sample ``repeats`` batches of ``prompts * group`` rows, after one that is not timed."""
    name, case, model, prompts, group = args.arm, args.cases[0], args.model, args.prompts, args.group
    repeats, seed, device = args.repeats, args.seed, args.device
    import gymnasium as gym
    import torch

    import aligngym  # noqa: F401
    from aligngym.agents.policies.lm import LMPolicy, left_padded

    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    tokens, end, dtype = (CASES[case][k] for k in ("tokens", "end", "dtype"))
    policy = LMPolicy.from_pretrained(model, dtype=getattr(torch, str(dtype)), device=device)
    rows = prompts * group
    tokenizer = "stories" if model == "stories" else str(Path(policy.model.name_or_path))
    env = gym.make_vec("LLMAlign-v0", num_envs=rows, tokenizer=tokenizer, reward=zero, max_new_tokens=tokens)
    stop = list(env.unwrapped.terminal_actions) if end else []  # type: ignore[attr-defined]
    index = [i for i in range(prompts) for _ in range(group)]
    observation, _ = env.reset(seed=0, options={"prompt_index": index})
    width = int(observation["attention_mask"].sum(1).max())
    ids, mask = (torch.as_tensor(observation[k][:, :width]).to(device) for k in ("input_ids", "attention_mask"))
    ids, mask = left_padded(ids.long(), mask.bool())
    watch, lengths, scores = Stopwatch(), [], []
    for i in range(repeats + 1):
        batch = 1000 * seed + i
        with Stopwatch() if i == 0 else watch:
            if name == "ours":
                drawn, alive = ours(policy, observation, tokens, stop, batch)
            else:
                cache = "static" if name == "generate-static" else None
                drawn, alive = theirs(policy.model, ids, mask, tokens, stop, batch, cache)
            if device == "cuda":
                torch.cuda.synchronize()
        if i:
            lengths.append(alive.sum(1).float().mean().item())
            scores.append(mean_log_prob(policy.model, ids, mask, drawn, alive))
    count = sum(lengths) * rows
    return {
        "wall": watch.wall, "cpu": watch.cpu, "tokens_per_second": count / watch.wall,
        "length": count / rows / repeats, "log_p": sum(scores) / repeats,
    }  # fmt: skip


def zero(completions: list[str], **_: Any) -> list[float]:
    """Score nothing."""
    return [0.0] * len(completions)


def ours(policy: Any, observation: Any, tokens: int, stop: list[int], seed: int) -> tuple[Any, Any]:
    from aligngym.agents.policies.policy import RowNoise

    rows = len(observation["input_ids"])
    noise = RowNoise(range(seed * rows, (seed + 1) * rows))
    out = policy.generate(observation, noise, max_steps=tokens, terminal_actions=stop)
    return out.actions, out.mask


def theirs(
    model: Any, ids: Any, mask: Any, tokens: int, stop: list[int], seed: int, cache: str | None
) -> tuple[Any, Any]:
    import torch

    torch.manual_seed(seed)
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=mask.long(), max_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            eos_token_id=stop or None, pad_token_id=0, cache_implementation=cache,
            **({"disable_compile": True} if cache else {}),
        )  # fmt: skip
    drawn = out[:, ids.shape[1] :].clone()
    ends = torch.isin(drawn, torch.tensor(stop, device=drawn.device, dtype=drawn.dtype))
    return drawn, ends.cumsum(1) - ends.long() == 0


def mean_log_prob(model: Any, ids: Any, mask: Any, drawn: Any, alive: Any) -> float:
    """Of the drawn tokens, in the model's own plain forward pass."""
    import torch

    seen = torch.cat([mask, alive], 1).long()
    with torch.no_grad():
        logits = model(
            input_ids=torch.cat([ids, drawn * alive], 1),
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).logits
        log_p = logits[:, ids.shape[1] - 1 : -1].float().log_softmax(-1).gather(2, (drawn * alive)[..., None])[..., 0]
    return log_p[alive].mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair of small batches: does it run?")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--model", default="stories")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="batches timed in a process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(arm(args)))
        return
    if args.quick:
        args.pairs, args.prompts, args.group, args.repeats = 1, 2, 2, 1
    sections = [f"## Rollout: {args.prompts} prompts x {args.group}, {args.threads} thread(s), {args.model}\n"]
    for case in args.cases:
        same = ["--model", args.model, "--prompts", args.prompts, "--group", args.group, "--repeats", args.repeats]
        command = [sys.executable, __file__, "--cases", case, "--device", args.device, *map(str, same)]
        runs = alternate({a: [*command, "--arm", a] for a in ARMS}, args.pairs, threads=args.threads, vary="--seed")
        columns = {"tokens_per_second": "tokens/s", "length": "tokens a row", "log_p": "log p", "peak_mb": "peak MB"}
        sections.append(f"### {case}\n\n{table(runs, 'ours', columns, {'wall': 'wall', 'cpu': 'CPU'})}\n")
    report("rollout", "\n".join(sections))


if __name__ == "__main__":
    main()
