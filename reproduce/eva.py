"""eva: prompts that evolve where the policy has the most to learn, against fixed prompts and blind evolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..agents.grpo import GRPO, GRPOConfig
from ..agents.policies.lm import LMPolicy
from ..agents.policies.policy import RowNoise
from ..agents.randomness import seeded
from ..wrappers.prompt_creators import ChangeNumber
from ..wrappers.prompt_evolution import VectorPromptEvolution
from ..wrappers.prompt_informativeness import (
    MEASURES,
    draw_without_replacement,
    informativeness,
    sampling_weights,
)
from .harness import Claim, Curve, Effect, Numbers, Settings

SCALAR_ARMS = ("static", "uniform", "hardest", "gap")
ARMS = ("static", "uniform", "gap")
EASY = (1, 2, 3)  # lengths of the first questions
DIGITS = "0123456789"
TESTED = (4, 5, 6)  # lengths
HELD_OUT = 5  # of the strings of at least four digits, those whose digits' sum it divides are tested on only


def run(seed: int, settings: Settings, networks: Path) -> Numbers:
    """Both worlds under each rule of evolution."""
    numbers: Numbers = {}
    for arm in SCALAR_ARMS:
        found = [_scalar(arm, [seed, i], settings["scalar"]) for i in range(settings["populations"])]
        numbers |= {f"scalar/{arm}/{k}": float(np.mean([one[k] for one in found])) for k in found[0]}
    for arm in ARMS:
        numbers |= {f"digits/{arm}{k}": v for k, v in _digits(arm, seed, settings).items()}
    return numbers


def _scalar(arm: str, seed: list[int], s: Settings) -> Numbers:
    """A solver of one number, theta, that learns by REINFORCE; its chance at difficulty b is sigma(theta - b)."""
    rng = np.random.default_rng(seed)
    count, answers = int(s["prompts"]), int(s["answers"])
    b: NDArray[np.float64] = rng.uniform(-4, 0, size=count)
    theta, tested = float(s["start"]), np.linspace(-4, 4, 161)
    for _ in range(s["rounds"]):
        p = 1 / (1 + np.exp(b - theta))
        rewards = (rng.random((answers, count)) < p).T.astype(float)  # [P, answers]
        advantages = rewards - rewards.mean(1, keepdims=True)
        theta += s["learning_rate"] * float((advantages * (rewards - p[:, None])).mean())
        if arm == "static":
            continue
        measure = MEASURES[arm]
        weights = sampling_weights(informativeness(rewards.tolist(), measure), zero=measure.zero)
        chosen = draw_without_replacement(weights, round(s["share"] * count), rng)
        parents = rng.permutation(np.repeat(chosen, s["variants"]))[: count - round(s["replay"] * count)]
        places = rng.choice(count, len(parents), replace=False)
        b[places] = b[parents] + rng.normal(0.3, 0.3, len(parents))
    return {
        "success": float((1 / (1 + np.exp(tested - theta))).mean()), "ability": theta, "difficulty": float(b.mean()),
        "ahead": float(b.mean()) - theta,
    }  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a digit, and "=" where the question ends; nothing ends an answer but its length."""
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["<pad>", *DIGITS, "="])}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")


def held_out(digits: str) -> bool:
    """Whether a string is for testing only."""
    return len(digits) >= min(TESTED) and sum(map(int, digits)) % HELD_OUT == 0


def question(digits: str) -> dict[str, Any]:
    """A row of the table: the digits, to be sorted."""
    return {"prompt": f"{digits}=", "length": len(digits), "answer": "".join(sorted(digits))}


def new_digits(columns: dict[str, Any], rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """A new question of the length in ``columns``."""
    row = question("".join(rng.choice(list(DIGITS), max(0, int(columns["length"])))))
    return row.pop("prompt"), row


def right(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """1 where a completion begins with the answer."""
    return [float(text.startswith(a)) for text, a in zip(completions, answer, strict=True)]


def questions(lengths: tuple[int, ...], count: int, rng: np.random.Generator, *, tested: bool) -> list[dict[str, Any]]:
    """``count`` questions of lengths drawn from ``lengths``, of the strings that are held out or of the others."""
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        digits = "".join(rng.choice(list(DIGITS), rng.choice(lengths)))
        if held_out(digits) is tested:
            rows.append(question(digits))
    return rows


def _environment(rows: list[dict[str, Any]], num_envs: int, longest: int) -> Any:
    return gym.make_vec(
        "aligngym:LLMAlign-v0", num_envs=num_envs, vectorization_mode="vector_entry_point",
        prompts=rows, reward=right, tokenizer=tokenizer(), max_prompt_tokens=longest + 1, max_new_tokens=longest,
    )  # fmt: skip


def network(seed: int, longest: int, size: int, steps: int) -> LMPolicy:
    """A small Llama-type transformer that was shown answers to questions of one to three digits, ``steps`` batches."""
    config = LlamaConfig(
        vocab_size=len(DIGITS) + 2, hidden_size=size, intermediate_size=2 * size, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=2 * longest + 2, pad_token_id=0, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    with seeded(seed):
        model = LlamaForCausalLM(config)
    rng, words, policy = np.random.default_rng([seed, 2]), tokenizer(), LMPolicy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = questions(EASY, 64, rng, tested=False)
        shown = words([row["prompt"] + row["answer"] for row in rows], padding=True, return_tensors="pt")
        ids, places = shown["input_ids"], torch.arange(shown["input_ids"].shape[1])
        asked = torch.tensor([[row["length"] + 1] for row in rows])
        labels = ids.masked_fill((places < asked) | (shown["attention_mask"] == 0), -100)
        loss = model(input_ids=ids, attention_mask=shown["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


def _digits(arm: str, seed: int, s: Settings) -> Numbers:
    """GRPO of a small transformer that sorts digits, from questions of one to three."""
    longest, config = s["longest"], GRPOConfig(**s["grpo"])
    rng = np.random.default_rng([seed, 1])
    rows = questions(EASY, s["prompts"], rng, tested=False)
    tests = questions(TESTED, s["evaluation"], rng, tested=True)
    env = _environment(rows, config.episodes_per_iteration, longest)
    creator = None if arm == "static" else ChangeNumber("length", new_digits)
    env = VectorPromptEvolution(
        env, creator, "gap" if arm == "static" else arm, answers=config.group_size, every=s["every"],
        allowed=lambda prompt, columns: 1 <= columns["length"] <= longest and not held_out(str(prompt)[:-1]),
        seed=seed,
    )  # fmt: skip
    agent = GRPO(env, network(seed, longest, s["size"], s["warm_steps"]), config, seed=seed)
    judge = _environment(tests, min(256, len(tests)), longest)
    numbers: Numbers = {"@0": float(_judged(agent, judge, len(tests)).mean())}
    for _ in range(s["looks"]):
        agent.learn(s["episodes"] // s["looks"])
        scores = _judged(agent, judge, len(tests))
        numbers |= {f"@{agent.episodes}": float(scores.mean())}
    table: Any = env.unwrapped.table  # type: ignore[attr-defined]
    looks, drawn = list(numbers.values()), np.array(table.columns["length"])
    lengths = np.array([row["length"] for row in tests])
    numbers |= {f"/length_{n}": float(scores[lengths == n].mean()) for n in TESTED}
    easy = _judged(agent, _environment(rows, len(rows), longest), len(rows))
    return numbers | {
        "/success": looks[-1], "/mean": float(np.mean(looks[1:])), "/easy": float(easy.mean()),
        "/prompt_length": float(drawn.mean()), "/longest_prompt": float(drawn.max()),
    }  # fmt: skip


def _judged(agent: GRPO, judge: Any, count: int) -> NDArray[np.float64]:
    """1 for each question that is answered rightly, by the likeliest tokens."""
    found = []
    for start in range(0, count, judge.num_envs):
        index = np.arange(start, start + judge.num_envs) % count
        episodes = judge.rollout(
            agent.policy, noise=RowNoise(index.tolist()), options={"prompt_index": index}, deterministic=True
        )
        found.append(episodes.returns.double().numpy())
    return np.concatenate(found)[:count]


CLAIM = Claim(
    key="eva",
    statement="Prompts that evolve from those at which the best answer is furthest above the worst lead a policy "
    "further, in as many episodes, than fixed prompts and than prompts that evolve blindly; the hardest run away from "
    "it.",
    paper="eva: Ye et al. 2024, arXiv 2411.00062",
    run=run,
    settings={
        "populations": 10,
        "scalar": {
            "prompts": 200, "answers": 6, "rounds": 30, "learning_rate": 2.0, "start": -2.0, "share": 0.25,
            "variants": 4, "replay": 0.2,
        },
        "prompts": 64, "evaluation": 480, "longest": 7, "size": 64, "warm_steps": 100, "every": 512, "looks": 6,
        "episodes": 15_360,
        "grpo": {
            "episodes_per_iteration": 128, "group_size": 8, "minibatch_size": 128, "learning_rate": 1e-3,
            "kl_coef": 0.0,
        },
    },
    fast={"populations": 4, "evaluation": 120, "warm_steps": 60, "episodes": 1280, "looks": 2},
    premises=(
        Effect("one number: fixed prompts leave room: 0.9 above their success", 0.9, "scalar/static/success"),
        Effect("digits: fixed prompts fail on longer ones: 0.5 above their success", 0.5, "digits/static/success"),
    ),
    effects=(
        Effect("one number: success, gap above fixed prompts", "scalar/gap/success", "scalar/static/success"),
        Effect("one number: success, gap above uniform evolution", "scalar/gap/success", "scalar/uniform/success"),
        Effect("one number: success, gap above the hardest", "scalar/gap/success", "scalar/hardest/success"),
        Effect(
            "one number: difficulty less ability, the hardest above gap", "scalar/hardest/ahead", "scalar/gap/ahead"
        ),
        Effect("digits: success on 4 to 6, gap above fixed prompts", "digits/gap/success", "digits/static/success"),
        Effect("digits: success on 4 to 6, gap above uniform", "digits/gap/success", "digits/uniform/success"),
    ),
    curves=(
        Curve("success on 4 to 6 digits", "episodes", {
            "fixed": "digits/static", "uniform evolution": "digits/uniform", "gap": "digits/gap",
        }),
    ),
    notes="One number: a solver whose chance at difficulty b is sigma(theta - b), ten populations of 200 prompts a "
    "seed; its start and learning rate were set on seeds 1000 to 1009 so that fixed prompts reach 0.75 and uniform "
    "evolution 0.98, the numbers of an earlier simulation. Digits: a transformer of two layers, shown answers of up to "
    "three digits in 100 batches, then GRPO; the reward is 1 for the right order. Questions change by one digit, drawn "
    "anew, between one and seven digits; tested strings of four to six are none that may be trained on. All arms play "
    "as many episodes. Task, warm start, learning rate and length of the run were chosen on seed 1000.",
    agents=("grpo",),
)  # fmt: skip
