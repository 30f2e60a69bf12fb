"""A language model that rewrites prompts: the creator of eva, for the wrapper ``PromptEvolution``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .policies.lm import LMPolicy
from .policies.policy import RowNoise
from .policies.text_player import TextPlayer

IN_DEPTH = (
    "adding one more constraint or requirement to it",
    "asking for more depth on what it asks about",
    "replacing a general notion in it by a more specific one",
    "making it need several steps of reasoning",
    "widening what has to be considered",
)
EVOLUTIONS = (
    *(
        f"Rewrite the following instruction into a more demanding one by {how}. Reply with the new instruction only."
        "\n\n{prompt}"
        for how in IN_DEPTH
    ),
    "Write a new instruction of the same domain and difficulty as the following one, but about something rarer. Reply "
    "with the new instruction only.\n\n{prompt}",
)
"""Five ways in depth and one in breadth, after Evol-Instruct (arXiv 2304.12244), in our own words."""


class PolicyCreator:
    """Makes a new prompt of an old one by asking a policy, such as the one that is being trained.

    A template is drawn, filled and answered; the answer is the new prompt. The same generator gives the same prompt, by
    itself as among others. Copies share the policy. A checkpoint of the agent holds its weights; to resume, give the
    wrapper a creator around the policy that is handed to ``load``.

    Args:
        policy: a language model over ``input_ids`` and ``attention_mask``.
        tokenizer: its Hugging Face tokenizer; with a chat template, the filled template is a user's message.
        templates: texts with ``{prompt}`` in them, drawn uniformly.
        max_new_tokens: of a new prompt; longer ones are cut.
        continued: the answer is put behind the old prompt instead of in its place, which suits models that only
            continue texts, with the template "{prompt}".

    Raises:
        ValueError: for no templates, one without ``{prompt}``, or a number below 1.
    """

    def __init__(
        self,
        policy: LMPolicy,
        tokenizer: Any,
        templates: Sequence[str] = EVOLUTIONS,
        *,
        max_new_tokens: int = 128,
        continued: bool = False,
    ) -> None:
        if isinstance(templates, str) or not templates or any("{prompt}" not in t for t in templates):
            raise ValueError(f"templates is {templates!r}, expected texts in a list, each with {{prompt}} in it")
        self.player = TextPlayer(policy, tokenizer, max_new_tokens=max_new_tokens)
        self.tokenizer, self.templates, self.continued = tokenizer, tuple(templates), continued

    def __deepcopy__(self, memo: Any) -> PolicyCreator:
        return self

    def __call__(self, prompt: Any, columns: Mapping[str, Any], rng: np.random.Generator) -> Any:
        """A new prompt, with the columns of the old one; None where the policy says nothing."""
        return self.many([(prompt, columns)], [rng])[0]

    def many(self, rows: Sequence[tuple[Any, Mapping[str, Any]]], rngs: Sequence[np.random.Generator]) -> list[Any]:
        """The same of many prompts at once, each with its own generator."""
        texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt, _ in rows]
        asked = [
            self.templates[rng.integers(len(self.templates))].replace("{prompt}", text)
            for text, rng in zip(texts, rngs, strict=True)
        ]
        answers = self.player.tokens(asked, RowNoise([int(rng.integers(2**62)) for rng in rngs]))
        return [
            self._prompt(prompt, text, answer) for (prompt, _), text, answer in zip(rows, texts, answers, strict=True)
        ]

    def _prompt(self, prompt: Any, text: str, answer: list[int]) -> Any:
        """The old prompt, of that text, with an answer in it; None where that is empty."""
        new = str(self.tokenizer.decode(answer, skip_special_tokens=True)).strip()
        if not new:
            return None
        if self.continued:  # decoded together, for the space between them
            before = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            new = str(self.tokenizer.decode([*before, *answer], skip_special_tokens=True)).rstrip()
        return new if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": new}]
