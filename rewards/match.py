"""Rewards that check the text against a pattern or an answer: regular expression, format, exact and math answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

from .reward import RewardScores, SampleReward, Text


@dataclass
class Regex(SampleReward):
    """1 where the pattern matches, else 0.

    A pattern that backtracks without end holds the interpreter lock, so that no thread can time it out; use
    ``Regex(...).isolated(seconds)`` for patterns that may.

    Attributes:
        pattern: A regular expression; flags are written inline, as in ``"(?is)..."``.
        full: The whole text must match; else a part of it.
    """

    pattern: str
    full: bool = False
    name: str | None = field(default="regex", kw_only=True)

    def __post_init__(self) -> None:
        _compile("pattern", self.pattern)

    def sample(self, text: str, row: Mapping[str, Any]) -> float:
        """Scores one text."""
        return float(bool((re.fullmatch if self.full else re.search)(self.pattern, text)))


@dataclass
class Format(SampleReward):
    """1 where the text is exactly the given tags, once each, in order, each with something in it; else 0.

    ``Format(("think", "answer"))`` asks for ``<think>...</think> <answer>...</answer>`` with only white space between.

    Attributes:
        tags: Names of the tags.
    """

    tags: tuple[str, ...] = ("think", "answer")
    name: str | None = field(default="format", kw_only=True)

    def __post_init__(self) -> None:
        self.tags = tuple(self.tags)
        if not self.tags or len(set(self.tags)) != len(self.tags) or not all(self.tags):
            raise ValueError(f"tags must be one or more different non-empty names, got {self.tags}")

    def sample(self, text: str, row: Mapping[str, Any]) -> float:
        """Scores one text."""
        rest = text.strip()
        for tag in self.tags:
            start, end = f"<{tag}>", f"</{tag}>"
            inside, found, after = rest.removeprefix(start).partition(end)
            if not rest.startswith(start) or not found or not inside.strip() or start in inside + after or end in after:
                return 0.0
            rest = after.lstrip()
        return float(not rest)


@dataclass
class ExactMatch(SampleReward):
    """1 where the answer equals the one in the column (or one of them, if it holds a list), else 0.

    White space at both ends never counts. Does not apply where the column holds None.

    Attributes:
        column: The column of right answers.
        pattern: The first group of the last match of this regular expression is the answer (its whole match without
            groups); no match scores 0. None: the whole text is.
        ignore_case: Compare without case.
    """

    column: str = "answer"
    pattern: str | None = None
    ignore_case: bool = False
    name: str | None = field(default="exact_match", kw_only=True)

    def __post_init__(self) -> None:
        if self.pattern is not None:
            _compile("pattern", self.pattern)

    def required_columns(self) -> tuple[str, ...]:
        """Returns the column of right answers."""
        return (self.column,)

    def sample(self, text: str, row: Mapping[str, Any]) -> float | None:
        """Scores one text."""
        expected = row[self.column]
        if expected is None:
            return None
        answer: str | None = text
        if self.pattern is not None:
            found = [match[match.re.groups > 0] for match in re.finditer(self.pattern, text)]
            answer = found[-1] if found else None
        if answer is None:
            return 0.0
        options = expected if isinstance(expected, list | tuple) else [expected]
        return float(self._plain(answer) in {self._plain(str(option)) for option in options})

    def _plain(self, answer: str) -> str:
        return answer.strip().casefold() if self.ignore_case else answer.strip()


@dataclass
class MathAnswer(SampleReward):
    """1 where the mathematical answer equals the one in the column (math-verify: LaTeX, numbers, sets ...), else 0.

    Does not apply where the column holds None. A text without a parsable answer scores 0; a right answer that cannot be
    parsed, or a comparison that raises or takes too long, is a failure. math-verify's own time limit is a signal, which
    only the main thread may set and which cannot interrupt a huge integer power; so the work is done in a child process
    that is killed when a sample takes longer than ``timeout``.

    Attributes:
        column: The column of right answers, LaTeX or plain.
        timeout: Seconds a sample; None computes in this process, without a limit.
        memory_gb: Memory of the child process.
    """

    column: str = "answer"
    timeout: float | None = 5.0
    memory_gb: float = 4.0
    name: str | None = field(default="math", kw_only=True)
    _isolated: Any = field(default=None, init=False, repr=False, compare=False)

    transient: ClassVar[tuple[str, ...]] = ("_isolated",)
    max_characters: ClassVar[int | None] = None

    def required_columns(self) -> tuple[str, ...]:
        """Returns the column of right answers."""
        return (self.column,)

    def load(self) -> None:
        """Imports math-verify and compiles its grammar, in this process."""
        if self.timeout is None:
            _math_verify()

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        if self.timeout is None or self.column not in columns:
            return super()._score(completions, prompts, columns)
        if self._isolated is None:
            from .isolate import Isolated

            self._isolated = Isolated(replace(self, timeout=None), self.timeout, memory_gb=self.memory_gb)
        scores: RewardScores = self._isolated.score(completions, None, **{self.column: columns[self.column]})
        return scores

    def sample(self, text: str, row: Mapping[str, Any]) -> float | None:
        """Scores one text, in this process and without a limit."""
        expected, math_verify = row[self.column], _math_verify()
        if expected is None:
            return None
        right = math_verify.parse(str(expected), parsing_timeout=None)
        if not right:
            raise ValueError(f"the right answer {str(expected)[:80]!r} cannot be parsed")
        # The answer stands at the end; far more text than this is no proof but a runaway.
        given = math_verify.parse(text[-20_000:], parsing_timeout=None)
        return float(bool(given) and math_verify.verify(right, given, timeout_seconds=None, raise_on_error=True))


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise ImportError("MathAnswer needs math-verify: pip install math-verify") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it was given no time limit
    math_verify.verify(*[math_verify.parse("$\\frac{1}{2}$", parsing_timeout=None)] * 2, timeout_seconds=None)
    return math_verify


def _compile(argument: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument} must be a regular expression, got {pattern!r}: {error}") from error
