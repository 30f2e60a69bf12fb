"""``LLMAlign-v0``: continue a prompt token by token; the finished text is rewarded once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ...assets import model_path
from ...rewards import as_reward
from ..batching import Flags, Rows, check_positive, row_indices
from ..generation import EpisodeScores, GenerationEnv
from .prompts import Prompt, PromptSource, PromptTable, checked_prompt, load_prompts
from .tables import PromptTableVectorEnv

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...rewards import Reward

OVERLONG = ("error", "drop", "truncate")
RESERVED = ("completions", "prompts", "completion_ids")  # names that a reward is called with


class LLMAlignVectorEnv(PromptTableVectorEnv):
    """A batch of token-level Markov decision processes over text.

    State: the prompt's tokens and those chosen since. Action: the next token, appended deterministically. The episode
    *terminates* at the tokenizer's end-of-sequence token and is *truncated* once ``max_new_tokens`` were chosen; either
    way the completion is scored there, and every other reward is 0.

    Observation: ``input_ids [L]`` int64 and ``attention_mask [L]`` int8, ``L = max_prompt_tokens + max_new_tokens``,
    padded on the right with the tokenizer's padding token: the state is ``input_ids[: attention_mask.sum()]``.

    The info of a finished episode holds ``prompt`` and ``completion`` (the prompt's text or messages, and the decoded
    text), ``prompt_index`` (its row in the table; -1: it was given to ``reset``, or the table was replaced meanwhile),
    ``episode_tokens``, ``columns`` (the prompt's other columns), ``reward/<term>`` for each named term of the reward,
    and ``invalid``, why the reward failed, where it did; the reward is then NaN, never 0.

    Any text is a prompt. Lone surrogates, which UTF-8 cannot hold, become U+FFFD before tokenising; an empty prompt
    is the tokenizer's beginning-of-sequence token.

    Options of ``reset``: ``prompt`` (one prompt for all rows, or a list of ``num_envs``), or ``prompt_index`` (one
    position in the table, or ``num_envs``). Without them each row's generator draws a row of the table, uniformly or
    by ``prompt_weights`` where a curriculum set them. ``replace_prompts`` puts another table in place of the first.
    ``get_state`` holds the reward's state too, and such a table.

    Args:
        num_envs: episodes side by side.
        prompts: see :func:`~aligngym.envs.text.prompts.load_prompts`; None takes the embedded story openings.
        split: of the embedded prompts, "train" or "eval".
        reward: a name, a JSON form, a function with TRL's signature, or a ``Reward``. It is called with the prompts'
            columns and ``completion_ids``; where a prompt is a message list, so is the completion.
        tokenizer: the embedded one's name, "stories"; a folder or hub name; or a Hugging Face tokenizer.
        max_prompt_tokens: at least 1.
        max_new_tokens: at least 1.
        overlong_prompts: what to do with a longer prompt: "error", "drop" it from the table, or "truncate" it to its
            last ``max_prompt_tokens`` tokens.
        chat_template: None renders message lists with the tokenizer's template and leaves strings alone; True makes
            strings a user's message first; a string is a Jinja template to use as with True; False renders nothing.
        prompt_column: where prompts have columns, the one that holds the prompt.
        render_mode: None or "ansi".
        device: None for numpy observations, a torch device for tensors there.

    Raises:
        ValueError: for an argument outside what is allowed, an unknown reward or tokenizer, an overlong prompt with
            ``overlong_prompts="error"``, or an empty one with a tokenizer that has no beginning-of-sequence token.
    """

    option_names = ("prompt", "prompt_index")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        prompts: PromptSource = None,
        split: str = "train",
        reward: str | Mapping[str, Any] | Callable[..., Any] | Reward = "story_sentiment",
        tokenizer: str | Path | PreTrainedTokenizerBase = "stories",
        max_prompt_tokens: int = 64,
        max_new_tokens: int = 64,
        overlong_prompts: str = "error",
        chat_template: bool | str | None = None,
        prompt_column: str = "prompt",
        render_mode: str | None = None,
        device: str | None = None,
    ) -> None:
        check_positive(max_prompt_tokens=max_prompt_tokens, max_new_tokens=max_new_tokens)
        if overlong_prompts not in OVERLONG:
            raise ValueError(f"overlong_prompts is {overlong_prompts!r}, expected one of {OVERLONG}")
        self.tokenizer = load_tokenizer(tokenizer)
        self.reward = as_reward(reward)
        self.max_prompt_tokens, self.overlong_prompts = max_prompt_tokens, overlong_prompts
        self.chat_template = chat_template
        eos, vocabulary, length = self.tokenizer.eos_token_id, len(self.tokenizer), max_prompt_tokens + max_new_tokens
        self.pad = next((i for i in (self.tokenizer.pad_token_id, eos) if i is not None), 0)
        super().__init__(
            num_envs,
            spaces.Dict(
                input_ids=spaces.Box(0, vocabulary - 1, (length,), np.int64),
                attention_mask=spaces.Box(0, 1, (length,), np.int8),
            ),
            spaces.Discrete(vocabulary),
            max_steps=max_new_tokens,
            terminal_actions=() if eos is None else (eos,),
            render_mode=render_mode,
            device=device,
        )
        self._open_table(load_prompts(prompts, split=split, column=prompt_column))
        self._ids = np.full((num_envs, length), self.pad, np.int64)
        self._lengths = np.zeros(num_envs, np.int64)  # of the states
        self._prompt_lengths = np.zeros(num_envs, np.int64)
        self._prompts: list[Prompt] = [""] * num_envs

    def _load_table(self, table: PromptTable) -> None:
        """Tokenise the prompts once, and set aside what their rows carry beside them."""
        if clash := [name for name in RESERVED if name in table.columns]:
            raise ValueError(f"{table.source} has columns {clash}, which rewards are called with already; rename them")
        encoded = self._encode(table.prompts)
        fits = [i for i, ids in enumerate(encoded) if len(ids) <= self.max_prompt_tokens]
        if self.overlong_prompts == "drop" and len(fits) < len(table):
            if not fits:
                raise ValueError(
                    f"every prompt of {table.source} is longer than max_prompt_tokens={self.max_prompt_tokens}"
                )
            table, encoded = table.select(fits), [encoded[i] for i in fits]
        self._encoded = [self._fitted(ids, f"row {i} of {table.source}") for i, ids in enumerate(encoded)]
        self.table, self.num_prompts = table, len(table)
        self._shown = {name: packed(values) for name, values in table.columns.items()}

    def _check_prompt(self, prompt: Prompt) -> None:
        self._fitted(self._encode([prompt])[0], "the prompt")

    def _encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of each prompt; the tokenizer adds its own special tokens unless a chat template wrote them."""
        rendered = [self._rendered(prompt) for prompt in prompts]
        encoded: list[list[int]] = [[] for _ in prompts]
        for special in (True, False):
            rows = [i for i, (_, templated) in enumerate(rendered) if templated is not special]
            texts = [rendered[i][0] for i in rows]
            # verbose=False: whether a prompt is too long is decided here, not by the tokenizer's own limit.
            found = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"] if texts else []
            for i, ids in zip(rows, found, strict=True):
                encoded[i] = ids
        bos = self.tokenizer.bos_token_id
        for i, ids in enumerate(encoded):
            if not ids and bos is None:
                raise ValueError(
                    f"prompt {i} is empty, and the tokenizer has no beginning-of-sequence token to start from"
                )
        return [ids or [bos] for ids in encoded]

    def _rendered(self, prompt: Prompt) -> tuple[str, bool]:
        """A prompt as text, and whether a chat template wrote it."""
        if not self.chat_template and isinstance(prompt, str):
            return prompt, False
        if self.chat_template is False:
            raise ValueError(
                "a prompt is a list of chat messages, but chat_template is False; expected None, True or a template"
            )
        template = self.chat_template if isinstance(self.chat_template, str) else None
        if template is None and not self.tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template: give chat_template a Jinja template, or prompts of strings"
            )
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return str(text), True

    def _fitted(self, ids: list[int], where: str) -> NDArray[np.int64]:
        if len(ids) > self.max_prompt_tokens and self.overlong_prompts != "truncate":
            raise ValueError(
                f"the prompt of {where} has {len(ids)} tokens, more than max_prompt_tokens={self.max_prompt_tokens}: "
                f"raise that, or set overlong_prompts, now {self.overlong_prompts!r}, to another of {OVERLONG}"
            )
        return np.array(ids[-self.max_prompt_tokens :], np.int64)

    def _start(self, rows: Rows, options: Mapping[str, Any]) -> None:
        if len(options) > 1:
            raise ValueError("options has both 'prompt' and 'prompt_index', expected at most one of them")
        if "prompt" in options:
            given = self._given_prompts(options["prompt"])
            for row, ids in zip(rows, self._encode([given[row] for row in rows]), strict=True):
                self._place(row, given[row], self._fitted(ids, f"options['prompt'], entry {row}"))
                self._take(row, -1)
            return
        if "prompt_index" in options:
            index = row_indices(options["prompt_index"], self.num_envs, len(self.table))
        else:
            index = np.full(self.num_envs, -1)
            index[rows] = [self._draw_prompt(row) for row in rows]
        for row in rows:
            self._place(row, self.table.prompts[index[row]], self._encoded[index[row]])
            self._take(row, index[row])

    def _given_prompts(self, value: Any) -> list[Prompt]:
        messages = isinstance(value, list) and all(isinstance(part, Mapping) for part in value)
        if isinstance(value, str) or (value and messages):
            return [checked_prompt(value, "options['prompt']")] * self.num_envs
        if not isinstance(value, list | tuple) or len(value) != self.num_envs:
            given = f"{len(value)} prompts" if isinstance(value, list | tuple) else type(value).__name__
            raise ValueError(f"options['prompt'] is {given}, expected one prompt or a list of num_envs={self.num_envs}")
        return [checked_prompt(prompt, f"options['prompt'], entry {i}") for i, prompt in enumerate(value)]

    def _place(self, row: int, prompt: Prompt, ids: NDArray[np.int64]) -> None:
        self._ids[row] = self.pad
        self._ids[row, : len(ids)] = ids
        self._lengths[row] = self._prompt_lengths[row] = len(ids)
        self._prompts[row] = prompt

    def _observe(self) -> dict[str, NDArray[Any]]:
        mask = np.arange(self._ids.shape[1]) < self._lengths[:, None]
        return {"attention_mask": mask.astype(np.int8), "input_ids": self._ids.copy()}

    def _apply(self, actions: NDArray[Any], active: Flags) -> tuple[Flags, Flags]:
        rows = np.flatnonzero(active)
        self._ids[rows, self._lengths[rows]] = actions[rows]
        self._lengths += active
        terminated = active & np.isin(actions, self.terminal_actions)
        return terminated, active & ~terminated & (self.steps >= self.max_steps)

    def _score(self, rows: Rows) -> EpisodeScores:
        ids = [self._ids[row, self._prompt_lengths[row] : self._lengths[row]].tolist() for row in rows]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        prompts = [copy.deepcopy(self._prompts[row]) for row in rows]  # what is handed out may be changed
        self.reward.set_progress(self.episodes)
        scores = self.reward.score(
            [
                t if isinstance(p, str) else [{"role": "assistant", "content": t}]
                for t, p in zip(texts, prompts, strict=True)
            ],
            prompts,
            **self._columns_of(rows),
            completion_ids=ids,
        )
        absent = np.isnan(scores.values)
        reasons = [
            r or ("the reward does not apply" if a else None) for r, a in zip(scores.reasons, absent, strict=True)
        ]
        info: dict[str, list[Any]] = {
            "prompt": prompts,
            "prompt_index": self._index[rows].tolist(),
            "completion": texts,
            "episode_tokens": [len(i) for i in ids],
            "columns": [{name: self._shown[name](v) for name, v in self._columns[row].items()} for row in rows],
        }
        return EpisodeScores(scores.values, scores.terms, reasons, info)

    def _render_row(self, row: int) -> str:
        start, end = self._prompt_lengths[row], self._lengths[row]
        shown = self.tokenizer.batch_decode([self._ids[row, :start].tolist(), self._ids[row, start:end].tolist()])
        return f"{shown[0]}|{shown[1]}"

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types."""
        episodes = {
            "ids": [ids[:n].tolist() for ids, n in zip(self._ids, self._lengths, strict=True)],
            "prompt_lengths": self._prompt_lengths.tolist(),
            "prompts": copy.deepcopy(self._prompts),
            "index": self._index.tolist(),
        }
        return {**super().get_state(), **episodes, **self._table_state(), "reward": self.reward.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in an environment made with the same arguments."""
        super().set_state(state)
        self._restore_table(state)
        for row, (ids, prompt) in enumerate(zip(state["ids"], state["prompts"], strict=True)):
            self._place(row, prompt, np.array(ids, np.int64))
        self._prompt_lengths[:] = state["prompt_lengths"]
        self.reward.set_state(state["reward"])


class LLMAlignEnv(GenerationEnv):
    """One episode of :class:`LLMAlignVectorEnv` at a time; it takes the same arguments, but ``num_envs``."""

    batch: LLMAlignVectorEnv

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(LLMAlignVectorEnv(1, **kwargs))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose ids the actions are."""
        return self.batch.tokenizer


def load_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer by the name of an embedded or cached model, from a folder or hub name, or as it is.

    Raises:
        ValueError: if nothing of that name can be loaded.
    """
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model_path(str(tokenizer))))
    except (OSError, ValueError) as e:
        raise ValueError(
            f"tokenizer is {str(tokenizer)!r}, expected 'stories', a folder or hub name of a Hugging Face tokenizer, "
            f"or a tokenizer: {e}"
        ) from e


def uniform(values: list[Any]) -> list[Any]:
    """A column in a form that Gymnasium can pack into one array of infos, which takes its type from the first value.

    Numbers mixed with other numbers or with gaps become floats (a gap is NaN); any other mix with a number or a
    dictionary in it becomes strings. The reward sees the values as they are.
    """
    return [*map(packed(values), values)]


def packed(values: list[Any]) -> Callable[[Any], Any]:
    """What :func:`uniform` does to each value of a column."""
    kinds = {type(value) for value in values}
    numbers = {bool, int, float}
    if kinds <= {str, list, type(None)} or (len(kinds) == 1 and kinds <= numbers):
        return _as_it_is
    return _number if kinds <= {*numbers, type(None)} else str


def _as_it_is(value: Any) -> Any:
    return value


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)
