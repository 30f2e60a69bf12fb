"""A language model that answers prompts in words: the player of environments whose observations are texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .lm import LMPolicy
from .policy import RowNoise


class TextPlayer:
    """Answers texts with texts, many at once.

    Args:
        policy: the language model.
        tokenizer: its own.
        max_new_tokens: of an answer, at least 1.
        prefix: that every answer begins with, ``'{"choice": "'`` say, so that small models keep to the form.
        chat: whether prompts are a user's message in the tokenizer's chat template; None: where it has one.

    Raises:
        ValueError: for a template that is asked for and not there, or fewer than one new token.
    """

    def __init__(
        self,
        policy: LMPolicy,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 64,
        prefix: str = "",
        chat: bool | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        if chat and not tokenizer.chat_template:
            raise ValueError("chat=True, but the tokenizer has no chat template")
        self.policy, self.tokenizer, self.max_new_tokens, self.prefix = policy, tokenizer, max_new_tokens, prefix
        self.chat = bool(tokenizer.chat_template) if chat is None else chat

    def __call__(self, prompts: Sequence[str], noise: RowNoise, *, deterministic: bool = False) -> list[str]:
        """Answer.

        Args:
            prompts: ``B`` texts.
            noise: ``B`` streams.
            deterministic: take the likeliest tokens.

        Returns:
            ``B`` answers, with the prefix and without special tokens.
        """
        written = self.tokens(prompts, noise, deterministic=deterministic)
        return [self.prefix + text for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def tokens(self, prompts: Sequence[str], noise: RowNoise, *, deterministic: bool = False) -> list[list[int]]:
        """The same answers as token ids, without the prefix."""
        ids, mask = self.encoded(prompts)
        eos = self.tokenizer.eos_token_id
        stop = () if eos is None else (eos,)
        with torch.no_grad():
            played = self.policy.generate(
                {"input_ids": ids, "attention_mask": mask}, noise, max_steps=self.max_new_tokens,
                terminal_actions=stop, deterministic=deterministic,
            )  # fmt: skip
        return [row[keep].tolist() for row, keep in zip(played.actions.cpu(), played.mask.cpu(), strict=True)]

    def choice_probabilities(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
        """How likely each of some answers is against the others, by the mean log-probability of its tokens, ``[B, K]``.

        The mean, as the sum would prefer the shorter name.

        Args:
            prompts: ``B`` texts.
            answers: ``K`` of each, what would follow the prefix.
        """
        scores = []
        for prompt, names in zip(prompts, answers, strict=True):
            start = self.encoded([prompt])[0][0].tolist()
            rows = [self.tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
            with torch.no_grad():
                scores.append([self._mean_log_probability(start, row) for row in rows])
        return np.asarray(torch.tensor(scores, dtype=torch.float64).softmax(-1))

    def _mean_log_probability(self, start: list[int], answer: list[int]) -> float:
        ids = torch.tensor([start + answer], device=self.policy.device)
        logits = self.policy.model(input_ids=ids).logits[0, len(start) - 1 : -1].float()
        chosen = torch.tensor(answer, device=ids.device)[:, None]
        return float(logits.log_softmax(-1).gather(-1, chosen).mean())

    def encoded(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and their mask, ``[B, L]``, padded on the right."""
        texts = list(prompts)
        if self.chat:
            messages = [[{"role": "user", "content": text}] for text in texts]
            texts = [
                str(self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
                for message in messages
            ]
        rows = self.tokenizer([text + self.prefix for text in texts], add_special_tokens=not self.chat)["input_ids"]
        rows = [row or [self.tokenizer.bos_token_id or 0] for row in rows]  # nothing was asked
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return ids, mask
