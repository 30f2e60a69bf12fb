"""Creators: what makes a new prompt of an old one, for :class:`~aligngym.wrappers.PromptEvolution`.

A creator is any function ``creator(prompt, columns, rng)`` that returns a prompt; a prompt and what shall stand beside
it, ``(prompt, columns)``; or None, if nothing came of it. It draws from ``rng`` only, a generator of its own each time.
One that is faster on many prompts at once has a method ``many(rows, rngs)``, rows being ``(prompt, columns)``, that
returns a list of the same. A language model is made one by ``PolicyCreator`` in :mod:`aligngym.agents.prompt_creator`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Prompt: TypeAlias = str | list[dict[str, str]]
Columns: TypeAlias = Mapping[str, Any]
Made: TypeAlias = Prompt | tuple[Prompt, Columns] | None
Creator: TypeAlias = Callable[[Prompt, Columns, np.random.Generator], Made]

REQUIREMENTS = (
    "Use at most three sentences.",  # constraints
    "Go into the reasons.",  # deepening
    "Give a concrete example.",  # concretising
    "Explain every step.",  # reasoning
    "Also say what could go wrong.",  # expansion
)


class ChangeNumber:
    """Makes a number of a task larger or smaller by a step, either as often: a knob such as a length.

    Args:
        column: that holds the number.
        prompt: the new prompt, a template of the columns ("Count to {n}."), or a function ``prompt(columns, rng)`` that
            returns a prompt, or a prompt and other columns.
        step: above 0.
    """

    def __init__(
        self, column: str, prompt: str | Callable[[dict[str, Any], np.random.Generator], Made], *, step: float = 1
    ) -> None:
        if not step > 0:
            raise ValueError(f"step is {step}, expected a number above 0")
        self.column, self.prompt, self.step = column, prompt, step

    def __call__(self, prompt: Prompt, columns: Columns, rng: np.random.Generator) -> Made:
        """One variant."""
        if self.column not in columns:
            raise ValueError(f"column is {self.column!r}, but the prompts' columns are {sorted(columns)}")
        sign = 1 if rng.random() < 0.5 else -1
        changed = {**columns, self.column: columns[self.column] + sign * self.step}
        if isinstance(self.prompt, str):
            return self.prompt.format(**changed), changed
        made = self.prompt(changed, rng)
        return made if made is None or isinstance(made, tuple) else (made, changed)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; a function as ``prompt`` has none."""
        return {"type": "number", "column": self.column, "prompt": self.prompt, "step": self.step}


class AddRequirement:
    """In depth: asks for one thing more, that is not asked for yet (the five ways of Evol-Instruct, arXiv 2304.12244).

    Args:
        requirements: sentences, one of which is put at the end.
    """

    def __init__(self, requirements: Sequence[str] = REQUIREMENTS) -> None:
        if isinstance(requirements, str) or not requirements:
            raise ValueError(f"requirements is {requirements!r}, expected at least one sentence in a list")
        self.requirements = tuple(requirements)

    def __call__(self, prompt: Prompt, columns: Columns, rng: np.random.Generator) -> Made:
        """One variant; None where all of them are asked for."""
        left = [sentence for sentence in self.requirements if sentence not in text_of(prompt)]
        return edited(prompt, f"{text_of(prompt)} {left[rng.integers(len(left))]}") if left else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"type": "in_depth", "requirements": list(self.requirements)}


class SwapWord:
    """In breadth: asks the same of something else, one word put in the place of another of its family.

    Args:
        families: lists of words that may stand for each other, such as ``[["cat", "dog"], ["park", "garden"]]``.
    """

    def __init__(self, families: Sequence[Sequence[str]]) -> None:
        if not families or any(isinstance(family, str) or len(set(family)) < 2 for family in families):
            raise ValueError(f"families is {families!r}, expected lists of at least two words each")
        self.families = [list(family) for family in families]

    def __call__(self, prompt: Prompt, columns: Columns, rng: np.random.Generator) -> Made:
        """One variant; None where no word has a family."""
        text, others = text_of(prompt), {word: family for family in self.families for word in family}
        found = [m for m in re.finditer(r"\w+", text) if m[0] in others or m[0].lower() in others]
        if not found:
            return None
        old = found[rng.integers(len(found))]
        word = old[0] if old[0] in others else old[0].lower()
        family = [other for other in others[word] if other != word]
        new = family[rng.integers(len(family))]
        new = new if old[0] == word else new.capitalize()
        return edited(prompt, text[: old.start()] + new + text[old.end() :])

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"type": "in_breadth", "families": self.families}


class AnyOf:
    """One of several creators, each as often.

    Args:
        creators: functions, or JSON forms of the creators here.
    """

    def __init__(self, creators: Sequence[Creator | str | Mapping[str, Any]]) -> None:
        if isinstance(creators, str | Mapping) or not creators:
            raise ValueError(f"creators is {creators!r}, expected at least one creator in a list")
        self.creators = [as_creator(creator) for creator in creators]

    def __call__(self, prompt: Prompt, columns: Columns, rng: np.random.Generator) -> Made:
        """One variant."""
        return self.creators[rng.integers(len(self.creators))](prompt, columns, rng)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, of those that have one."""
        return {"type": "any", "creators": [json_form(creator) for creator in self.creators]}


CREATORS: dict[str, Callable[..., Creator]] = {
    "number": ChangeNumber,
    "in_depth": AddRequirement,
    "in_breadth": SwapWord,
    "any": AnyOf,
}


def as_creator(creator: Creator | str | Mapping[str, Any]) -> Creator:
    """A creator from its name, its JSON form, or as it is.

    Raises:
        ValueError: for an unknown name or unknown arguments.
        TypeError: for anything else.
    """
    if isinstance(creator, str | Mapping):
        form = {"type": creator} if isinstance(creator, str) else dict(creator)
        if (name := form.pop("type", None)) not in CREATORS:
            raise ValueError(f"creator is {name!r}, expected a function or one of {', '.join(CREATORS)}")
        try:
            return CREATORS[name](**form)
        except TypeError as error:
            raise ValueError(f"creator {name!r} does not take {sorted(form)}: {error}") from error
    if not callable(creator):
        raise TypeError(f"creator is a {type(creator).__name__}, expected a function, a name or a JSON form")
    return creator


def json_form(creator: Creator | None) -> Any:
    """The JSON form of a creator where it has one, else itself."""
    form = getattr(creator, "to_dict", None)
    return creator if form is None else form()


def text_of(prompt: Prompt) -> str:
    """The text of a prompt: itself, or the content of the last of its messages that is a user's."""
    return prompt if isinstance(prompt, str) else prompt[_user(prompt)]["content"]


def edited(prompt: Prompt, text: str) -> Prompt:
    """A prompt with another text; see :func:`text_of`."""
    if isinstance(prompt, str):
        return text
    chosen = _user(prompt)
    return [{**message, "content": text} if i == chosen else dict(message) for i, message in enumerate(prompt)]


def _user(messages: Sequence[Mapping[str, str]]) -> int:
    """Position of the last message of a user; without any, of the last one."""
    return max((i for i, m in enumerate(messages) if m["role"] == "user"), default=len(messages) - 1)
