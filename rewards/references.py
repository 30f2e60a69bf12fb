"""Rewards against reference texts: sentence BLEU and ROUGE."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar

from .reward import SampleReward
from .text import MAX_CHARACTERS

_ORDER = 4


def references_of(value: Any) -> list[str]:
    """Returns the references of one sample: a string is one, a list is several; cut to ``MAX_CHARACTERS`` each.

    Raises:
        TypeError: if the column holds anything else.
        ValueError: if the list is empty.
    """
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(text, str) for text in found):
        raise TypeError(f"references must be a str or a list of str, got {value!r:.80}")
    if not found:
        raise ValueError("the list of references is empty")
    return [text[:MAX_CHARACTERS] for text in found]


def bleu_add_one(tokens: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns the smoothed sentence BLEU that BLEUBERI rewards, in ``[0, 1]``.

    ``BLEU = BP * exp(1/4 sum_n ln p_n)``, ``p_n = (matches_n + 1) / (n-grams_n + 1)`` for n = 1..4, matches clipped by
    the largest count in any reference; ``BP = min(1, exp(1 - r / c))`` with ``c`` tokens and ``r`` those of the
    *shortest* reference. 0 for an empty text. Adding one has a price: a text without any overlap earns more than 0
    (0.19 with six tokens), and one short reference removes the brevity penalty.
    """
    if not tokens:
        return 0.0
    log_precision = 0.0
    for order in range(1, _ORDER + 1):
        counts = _ngrams(tokens, order)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _ngrams(reference, order)
        log_precision += math.log((sum((counts & most).values()) + 1) / (sum(counts.values()) + 1)) / _ORDER
    shortest = min(len(reference) for reference in references)
    return math.exp(log_precision + min(0.0, 1.0 - shortest / len(tokens)))


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


@lru_cache(maxsize=1)
def _tokenize() -> Any:
    try:
        tokenizer = import_module("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()
    except ImportError as error:
        raise ImportError("Bleu needs sacrebleu: pip install sacrebleu") from error
    return tokenizer


@dataclass
class Bleu(SampleReward):
    """Sentence BLEU against one or several references, in ``[0, 1]``; does not apply where the column holds None.

    Attributes:
        column: The column of references, a string or a list of strings a sample.
        smoothing: ``"add-one"``, the reward of BLEUBERI (arXiv 2505.11080, see :func:`bleu_add_one`), or one of
            sacrebleu's sentence BLEU, which adds smoothing only where it must and takes the closest reference length:
            ``"exp"``, ``"floor"``, ``"add-k"``, ``"none"``. Their values differ; compare only like with like.
    """

    column: str = "references"
    smoothing: str = "add-one"
    name: str | None = field(default="bleu", kw_only=True)

    max_characters: ClassVar[int | None] = MAX_CHARACTERS

    def __post_init__(self) -> None:
        allowed = ("add-one", "exp", "floor", "add-k", "none")
        if self.smoothing not in allowed:
            raise ValueError(f"smoothing must be one of {', '.join(allowed)}, got {self.smoothing!r}")

    def required_columns(self) -> tuple[str, ...]:
        """Returns the column of references."""
        return (self.column,)

    def load(self) -> None:
        """Imports sacrebleu."""
        _tokenize()

    def sample(self, text: str, row: Mapping[str, Any]) -> float | None:
        """Scores one text."""
        if row[self.column] is None:
            return None
        references = references_of(row[self.column])
        if self.smoothing == "add-one":
            tokenize = _tokenize()
            return bleu_add_one(tokenize(text).split(), [tokenize(reference).split() for reference in references])
        return float(_sacrebleu(self.smoothing).sentence_score(text, references).score) / 100.0


@lru_cache(maxsize=4)
def _sacrebleu(smoothing: str) -> Any:
    return import_module("sacrebleu.metrics").BLEU(smooth_method=smoothing, effective_order=True)


@dataclass
class Rouge(SampleReward):
    """ROUGE (Lin 2004) against one or several references, the best of them, in ``[0, 1]``.

    Does not apply where the column holds None.

    Attributes:
        variant: ``"rouge1"``, ``"rouge2"``, ..., ``"rougeL"`` or ``"rougeLsum"``.
        measure: ``"fmeasure"``, ``"precision"`` or ``"recall"``. Recall alone pays for length without end.
        stem: Compare word stems (Porter).
        column: The column of references, a string or a list of strings a sample.
    """

    variant: str = "rougeL"
    measure: str = "fmeasure"
    stem: bool = False
    column: str = "references"
    name: str | None = field(default="rouge", kw_only=True)

    max_characters: ClassVar[int | None] = MAX_CHARACTERS

    def __post_init__(self) -> None:
        if self.measure not in ("fmeasure", "precision", "recall"):
            raise ValueError(f"measure must be 'fmeasure', 'precision' or 'recall', got {self.measure!r}")
        if self.variant not in ("rougeL", "rougeLsum", *(f"rouge{order}" for order in range(1, 10))):
            raise ValueError(f"variant must be rouge1 ... rouge9, rougeL or rougeLsum, got {self.variant!r}")

    def required_columns(self) -> tuple[str, ...]:
        """Returns the column of references."""
        return (self.column,)

    def load(self) -> None:
        """Imports rouge-score."""
        _rouge(self.variant, self.stem)

    def sample(self, text: str, row: Mapping[str, Any]) -> float | None:
        """Scores one text."""
        if row[self.column] is None:
            return None
        scorer = _rouge(self.variant, self.stem)
        found = [scorer.score(reference, text)[self.variant] for reference in references_of(row[self.column])]
        return float(max(getattr(score, self.measure) for score in found))


@lru_cache(maxsize=8)
def _rouge(variant: str, stem: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("Rouge needs rouge-score: pip install rouge-score") from error
    return RougeScorer([variant], use_stemmer=stem)
