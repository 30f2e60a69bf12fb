"""Rewards that need nothing but the text: sentiment, length, repetition, and the default reward of ``LLMAlign-v0``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from .reward import Reward, SampleReward

MAX_CHARACTERS = 20_000
"""How much of a completion rewards with more than linear cost read; about 4,000 words."""

MAX_VADER_WORDS = 2_000
"""How many words VADER is given, whose time grows with their square; an emoji counts as its description's words."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'’”)\]]*\s+|\n+")


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ImportError("the sentiment rewards need vaderSentiment: pip install vaderSentiment") from error
    return SentimentIntensityAnalyzer()


def _readable(text: str) -> str:
    """Cuts a text to what VADER reads in bounded time, ``MAX_VADER_WORDS``."""
    emojis, cost = _analyzer().emojis, 0
    for i, character in enumerate(text):
        cost += len(emojis[character].split()) if character in emojis else character.isspace()
        if cost > MAX_VADER_WORDS:
            return text[:i]
    return text


def words(text: str) -> list[str]:
    """Returns the words in lower case; punctuation and symbols are no words."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Splits a text after ``.``, ``!`` and ``?`` and at line breaks; pieces without a word are dropped."""
    return [piece for piece in _SENTENCE_END.split(text) if _WORD.search(piece)]


@dataclass
class Sentiment(SampleReward):
    """VADER's compound sentiment (Hutto & Gilbert 2014), in ``[-1, 1]``; 0 for an empty text.

    Attributes:
        window: None: of the whole text, which saturates: a few happy sentences score 0.98 and leave nothing to learn
            from. A number: the mean over pieces, each a sentence or at most so many words of it, weighted by their
            words. Then neither a row of one-word exclamations nor a sentence that never ends gains much.
    """

    window: int | None = None
    name: str | None = field(default="sentiment", kw_only=True)

    max_characters: ClassVar[int | None] = MAX_CHARACTERS

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be a positive number of words or None, got {self.window}")

    def sample(self, text: str, row: Mapping[str, Any]) -> float:
        """Scores one text."""
        text, compound = _readable(text), _analyzer().polarity_scores
        if self.window is None:
            return float(compound(text)["compound"])
        pieces = [
            tokens[start : start + self.window]
            for tokens in map(str.split, sentences(text))
            for start in range(0, len(tokens), self.window)
        ]
        total = sum(len(piece) * compound(" ".join(piece))["compound"] for piece in pieces)
        return float(total / max(sum(map(len, pieces)), 1))

    def load(self) -> None:
        """Reads the lexicon."""
        _analyzer()


@dataclass
class SentimentDensity(SampleReward):
    """Share of the words that VADER's lexicon lists as carrying sentiment, in ``[0, 1]``; 0 without words.

    Ordinary English stories lie near 0.10, 99 of 100 below 0.22; a list of happy adjectives has 1.
    """

    name: str | None = field(default="sentiment_density", kw_only=True)

    max_characters: ClassVar[int | None] = MAX_CHARACTERS

    def sample(self, text: str, row: Mapping[str, Any]) -> float:
        """Scores one text."""
        found = words(text)
        return sum(word in _analyzer().lexicon for word in found) / max(len(found), 1)

    def load(self) -> None:
        """Reads the lexicon."""
        _analyzer()


@dataclass
class Repetition(SampleReward):
    """Share of n-grams that occurred before, averaged over the orders, in ``[0, 1)``; ``1 - distinct-n``.

    Distinct-n is Li et al. 2016 (arXiv 1510.03055): distinct n-grams over n-grams. Tokens are words in lower case and
    single punctuation marks or symbols. A text shorter than an order has no such n-gram and does not repeat. It grows
    slowly with the length of ordinary text.

    Attributes:
        orders: The n-gram orders.
    """

    orders: tuple[int, ...] = (2, 3)
    name: str | None = field(default="repetition", kw_only=True)

    max_characters: ClassVar[int | None] = MAX_CHARACTERS

    def __post_init__(self) -> None:
        self.orders = tuple(self.orders)
        if not self.orders or min(self.orders) < 1:
            raise ValueError(f"orders must be one or more positive integers, got {self.orders}")

    def sample(self, text: str, row: Mapping[str, Any]) -> float:
        """Scores one text."""
        tokens = _TOKEN.findall(text.lower())
        shares = []
        for order in self.orders:
            ngrams = list(zip(*(tokens[start:] for start in range(order)), strict=False))
            shares.append(1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
        return sum(shares) / len(shares)


@dataclass
class Length(SampleReward):
    """1 where the length lies in ``[low, high]``, falling linearly to 0 at a distance of ``margin``; in ``[0, 1]``.

    For a target length give ``low = high``.

    Attributes:
        low: Shortest length that is paid in full.
        high: Longest length that is paid in full; None: no limit.
        margin: Distance from there at which nothing is paid; 0: at once.
        unit: ``"words"``, ``"characters"`` or ``"tokens"``.
        tokenizer: For tokens, a Hugging Face tokenizer's name or folder; None reads the column ``completion_ids``.
    """

    low: float
    high: float | None = None
    margin: float = 0.0
    unit: str = "words"
    tokenizer: str | None = None
    name: str | None = field(default="length", kw_only=True)

    def __post_init__(self) -> None:
        if self.unit not in ("words", "characters", "tokens"):
            raise ValueError(f"unit must be 'words', 'characters' or 'tokens', got {self.unit!r}")
        if self.low < 0 or (self.high is not None and self.high < self.low) or self.margin < 0:
            raise ValueError(f"needs 0 <= low <= high and margin >= 0, got {self.low}, {self.high}, {self.margin}")

    def required_columns(self) -> tuple[str, ...]:
        """Returns ``completion_ids`` where tokens are counted without a tokenizer."""
        return ("completion_ids",) if self.unit == "tokens" and self.tokenizer is None else ()

    def sample(self, text: str, row: Mapping[str, Any]) -> float:
        """Scores one text."""
        length = self._measure(text, row)
        off = max(self.low - length, length - self.high if self.high is not None else 0, 0)
        if off == 0:
            return 1.0
        return max(0.0, 1.0 - off / self.margin) if self.margin else 0.0

    def _measure(self, text: str, row: Mapping[str, Any]) -> int:
        if self.unit == "characters":
            return len(text)
        if self.unit == "words":
            return len(words(text))
        if self.tokenizer is None:
            return len(row["completion_ids"])
        # A lone surrogate has no UTF-8 form and would make the tokenizer refuse the text.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return len(_tokenizer(self.tokenizer)(clean, add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def story_sentiment(minimum_words: int = 20) -> Reward:
    """The default reward of ``LLMAlign-v0``: how happy a story is, as long as it reads like one; in ``[-1, 1]``.

    ``(1 + sentiment) * fluency * length - 1``, where sentiment is averaged over pieces of at most 12 words. Fluency is
    1 for ordinary prose and falls to 0 with repeated n-grams (from 0.12 to 0.40) and with the share of sentiment words
    (from 0.22 to 0.42); length is 1 from ``minimum_words`` on. The ramps begin where 5 and 1 of 100 ordinary stories
    of 50 words lie, so that they are silent until the policy leaves prose. Since fluency multiplies, no amount of happy
    words buys back its loss, and at zero fluency every text earns -1, less than any story.
    """
    varied = ((0.40 - Repetition()) / 0.28).clip(0.0, 1.0)
    plain = ((0.42 - SentimentDensity()) / 0.20).clip(0.0, 1.0)
    length = Length(low=minimum_words, margin=minimum_words)
    return (1.0 + Sentiment(window=12)) * varied * plain * length - 1.0
