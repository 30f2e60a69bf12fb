"""What every reward is: one score a completion, its named terms, and a reason wherever there is no score.

A reward is called with TRL's signature, ``reward(completions, prompts, **columns) -> list[float | None]``, or through
:meth:`Reward.score`, which keeps what that list cannot hold. Three outcomes are kept apart for each sample:

* a finite number: the score;
* NaN without a reason: the reward *does not apply* (``None`` in the list), for instance no reference was given;
* NaN with a reason: the reward *failed* (NaN in the list). It is never replaced by 0, which would be a real reward.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from .algebra import Clip, LogSigmoid, Schedule
    from .isolate import Isolated
    from .normalize import Normalize

Text: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A string, or a list of chat messages ``{"role": ..., "content": ...}``."""

Completion: TypeAlias = "Text | NDArray[Any] | Image"
"""A text, or an image: an array ``[H, W, 3]`` or a PIL image. Which of them a reward takes, it checks itself."""


def text_of(text: Text) -> str:
    """Returns the text that is judged: a string itself; of chat messages, the contents of those by the assistant.

    Args:
        text: A string or a list of messages. A content may be a string or a list of ``{"type": "text", "text": ...}``.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(text, str):
        return text
    messages: Any = text
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
        raise TypeError(f"a text must be a str or a list of chat messages, got {type(text).__name__}")
    parts = []
    for message in messages:
        if message.get("role", "assistant") == "assistant":
            content = message.get("content") or ""
            parts.append(content if isinstance(content, str) else "".join(part.get("text", "") for part in content))
    return "\n".join(parts)


def is_column(value: Any) -> bool:
    """Whether a keyword argument holds one entry a sample; anything else is passed to every sample as it is."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def row_of(columns: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Returns the columns of one sample."""
    return {key: value[index] if is_column(value) else value for key, value in columns.items()}


def reason_of(error: BaseException) -> str:
    """Returns ``"TypeError: what went wrong"``."""
    return f"{type(error).__name__}: {error}"


@dataclass(eq=False)
class RewardScores:
    """Scores of ``n`` samples.

    Attributes:
        values: ``[n]`` float64, finite or NaN.
        terms: The values of every named part of the reward, each ``[n]`` float64, NaN where it has none.
        reasons: Why the reward of a sample failed; None where it did not fail. NaN and None: it does not apply.
    """

    values: NDArray[np.float64]
    terms: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    reasons: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = np.array(self.values, dtype=np.float64)
        self.reasons = list(self.reasons) or [None] * len(self.values)
        if self.values.shape != (len(self.reasons),):
            raise ValueError(f"values has shape {self.values.shape}, but there are {len(self.reasons)} reasons")
        for i, reason in enumerate(self.reasons):
            if reason is not None:
                self.values[i] = np.nan
            elif np.isinf(self.values[i]):
                self.values[i], self.reasons[i] = np.nan, "the reward is infinite"

    @property
    def failed(self) -> NDArray[np.bool_]:
        """``[n]``, True where the reward failed."""
        return np.array([reason is not None for reason in self.reasons], dtype=bool)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """``[n]``, True where there is a number: the reward applies and did not fail."""
        return ~np.isnan(self.values)

    def to_list(self) -> list[float | None]:
        """Returns TRL's form: a float, None where the reward does not apply, NaN where it failed."""
        absent = ~self.scored & ~self.failed
        return [None if absent[i] else float(value) for i, value in enumerate(self.values)]


@dataclass
class Reward(ABC):
    """Base of all rewards. A subclass is a dataclass whose fields are its JSON form, and defines :meth:`_score`.

    Attributes:
        name: The name under which its values are logged; None: they are not a term of their own.
    """

    name: str | None = field(default=None, kw_only=True)

    parts: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that hold rewards, or sequences of them."""
    main_argument: ClassVar[str | None] = None
    """Name of the field that ``as_reward("name:value")`` sets; None: there is none."""
    transient: ClassVar[tuple[str, ...]] = ()
    """Names of attributes (models, processes) that are loaded on demand and are not copied or pickled."""
    __array_ufunc__: ClassVar[None] = None  # so that np.float64(0.5) * reward reaches Reward.__rmul__

    @abstractmethod
    def _score(self, completions: list[Any], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        """Scores samples whose lengths have been checked."""

    def score(
        self, completions: Sequence[Completion], prompts: Sequence[Text] | None = None, **columns: Any
    ) -> RewardScores:
        """Scores completions.

        Args:
            completions: ``n`` strings or lists of chat messages; for rewards on images, ``n`` images.
            prompts: As many prompts, or None.
            **columns: Dataset columns; a list, tuple or array holds one entry a sample.

        Raises:
            ValueError: if prompts or a column has another length, or a column that the reward reads is missing.
        """
        count = len(completions)
        for key, value in {"prompts": prompts, **columns}.items():
            if (is_column(value) or key == "prompts") and value is not None and len(value) != count:
                raise ValueError(f"{key} has {len(value)} entries, but there are {count} completions")
        scores = self._score(list(completions), None if prompts is None else list(prompts), columns)
        if self.name is not None:
            scores.terms[self.name] = scores.values
        return scores

    def __call__(
        self, completions: Sequence[Completion], prompts: Sequence[Text] | None = None, **columns: Any
    ) -> list[float | None]:
        """Scores with TRL's signature: a float, None where the reward does not apply, NaN where it failed."""
        return self.score(completions, prompts, **columns).to_list()

    # -- the tree ------------------------------------------------------------------------------------------------------
    def children(self) -> list[Reward]:
        """Returns the rewards that this one is made of."""
        found: list[Reward] = []
        for key in self.parts:
            value = getattr(self, key)
            found.extend([value] if isinstance(value, Reward) else value)
        return found

    def walk(self) -> Iterator[Reward]:
        """Yields this reward and all that it is made of, depth first."""
        yield self
        for child in self.children():
            yield from child.walk()

    def load(self) -> None:
        """Loads now what would be loaded on first use (models, lexicons)."""
        for child in self.children():
            child.load()

    def set_progress(self, step: int) -> None:
        """Tells schedules how many episodes have been trained on so far."""
        for child in self.children():
            child.set_progress(step)

    # -- state and JSON ------------------------------------------------------------------------------------------------
    def _get_state(self) -> dict[str, Any]:
        return {}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        del state  # a reward without state of its own has nothing to restore

    def get_state(self) -> dict[str, Any]:
        """Returns running statistics and progress, JSON-able; ``{}`` for a reward that has none."""
        own, nested = self._get_state(), [child.get_state() for child in self.children()]
        return {**({"own": own} if own else {}), **({"parts": nested} if any(nested) else {})}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`get_state` of an equal reward returned.

        Raises:
            ValueError: if the state belongs to a reward of another shape.
        """
        children = self.children()
        nested = state.get("parts", [{}] * len(children))
        own = state.get("own", {})
        if len(nested) != len(children) or set(own) != set(self._get_state()):
            raise ValueError(
                f"the state does not fit this {type(self).__name__}: it holds {sorted(own)} and {len(nested)} parts, "
                f"expected {sorted(self._get_state())} and {len(children)} parts"
            )
        if own:
            self._set_state(own)
        for child, entry in zip(children, nested, strict=True):
            child.set_state(entry)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: ``{"type": registered name, field: value, ...}``.

        Raises:
            ValueError: if the class is not registered or a field holds something that JSON cannot.
        """
        from .registry import name_of

        entries = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {"type": name_of(type(self)), **{key: self._encode(key, value) for key, value in entries.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reward:
        """Builds a reward from its JSON form; see :func:`aligngym.rewards.from_dict`."""
        from .registry import from_dict

        return from_dict(data)

    def _encode(self, key: str, value: Any) -> Any:
        if isinstance(value, Reward):
            return value.to_dict()
        if isinstance(value, list | tuple):
            return [self._encode(key, entry) for entry in value]
        if isinstance(value, Mapping):
            return {str(inner): self._encode(key, entry) for inner, entry in value.items()}
        if isinstance(value, PurePath):
            return str(value)
        if value is None or isinstance(value, str | bool | int | float):
            return value
        raise ValueError(f"{type(self).__name__}.{key} holds a {type(value).__name__}, which has no JSON form")

    def __getstate__(self) -> dict[str, Any]:
        return {key: None if key in self.transient else value for key, value in self.__dict__.items()}

    # -- the algebra ---------------------------------------------------------------------------------------------------
    def named(self, name: str | None) -> Self:
        """Returns a copy that is logged under ``name`` (None: not logged)."""
        twin = copy.copy(self)
        twin.name = name
        return twin

    def __add__(self, other: Reward | float) -> Reward:
        from .algebra import linear

        return linear((self, 1.0), (other, 1.0)) if isinstance(other, _OPERAND) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Reward | float) -> Reward:
        from .algebra import linear

        return linear((self, 1.0), (other, -1.0)) if isinstance(other, _OPERAND) else NotImplemented

    def __rsub__(self, other: float) -> Reward:
        return -self + other

    def __neg__(self) -> Reward:
        return self * -1.0

    def __mul__(self, other: Reward | float) -> Reward:
        from .algebra import linear, product

        if isinstance(other, Reward):
            return product(self, other)
        return linear((self, float(other))) if isinstance(other, _OPERAND) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, other: float) -> Reward:
        return self * (1.0 / float(other))

    def clip(self, low: float, high: float) -> Clip:
        """Limits the values to ``[low, high]``."""
        from .algebra import Clip

        return Clip(self, low, high)

    def log_sigmoid(self, reference: float | str = 0.0) -> LogSigmoid:
        """Returns ``log sigmoid(r - reference)``; a string names the column of per-prompt references."""
        from .algebra import LogSigmoid

        return LogSigmoid(self, reference)

    def schedule(self, points: Sequence[Sequence[float]]) -> Schedule:
        """Multiplies by a weight that is piecewise linear in the number of episodes, ``[[episodes, weight], ...]``."""
        from .algebra import Schedule

        return Schedule(self, tuple((float(x), float(y)) for x, y in points))

    def normalize(self, mode: str = "running", *, epsilon: float = 1e-4, update: bool = True) -> Normalize:
        """Subtracts the mean and divides by the standard deviation, ``running`` or of each ``group``."""
        from .normalize import Normalize

        return Normalize(self, mode, epsilon=epsilon, update=update)

    def isolated(self, timeout: float) -> Isolated:
        """Runs this reward in a child process that is killed when a sample takes longer than ``timeout`` seconds."""
        from .isolate import Isolated

        return Isolated(self, timeout)


_OPERAND = (Reward, int, float, np.number)  # what + - * take; anything else is left to the other operand


@dataclass
class SampleReward(Reward):
    """Base of rewards that look at one sample at a time; a subclass defines :meth:`sample`."""

    max_characters: ClassVar[int | None] = None
    """How much of the text is read, which bounds the time that a runaway completion costs; None: all of it."""

    def required_columns(self) -> tuple[str, ...]:
        """Returns the columns without which the reward cannot be computed."""
        return ()

    @abstractmethod
    def sample(self, text: str, row: Mapping[str, Any]) -> float | None:
        """Scores one text; None: does not apply. An exception marks the sample as failed."""

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        for column in self.required_columns():
            if column not in columns:
                given = ", ".join(sorted(columns)) or "none"
                raise ValueError(f"{type(self).__name__} reads column {column!r}; columns given: {given}")
        self.load()  # a missing library is an error of the set-up, not of the samples
        texts = [text_of(completion)[: self.max_characters] for completion in completions]
        values = np.full(len(texts), np.nan)
        reasons: list[str | None] = [None] * len(texts)
        for i, text in enumerate(texts):
            try:
                value = self.sample(text, row_of(columns, i))
                if value is not None:
                    values[i] = value
                    reasons[i] = None if np.isfinite(values[i]) else f"returned {value}"
            except Exception as error:  # whatever a reward raises must cost one sample, not the run
                reasons[i] = reason_of(error)
        return RewardScores(values, {}, reasons)
