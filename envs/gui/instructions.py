"""Instructions for an element of a page: direct ones, which quote its name, and functional ones, which say its purpose.

"Click the Save button" can be followed by reading; "store what you typed" needs to know what saving is. The functional
ones are hand-written per concept, a concept being a set of names (and sometimes of roles); ``{name}`` never appears in
them. Names that belong to no concept have direct instructions only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ...assets import gui_concepts_path

DIRECT = {
    "button": ("click the {name} button", "press {name}", "hit the {name} button", "click on {name}"),
    "link": ("open the {name} link", "click {name}", "follow the link {name}", "go to {name}"),
    "text field": ("click into the {name} field", "select the {name} text box", "put the cursor in {name}"),
    "password field": ("click into the {name} field", "put the cursor in {name}"),
    "search box": ("click into {name}", "select the {name} search box"),
    "number field": ("click into the {name} field", "select the number field {name}"),
    "date field": ("click into the {name} field", "select the date field {name}"),
    "checkbox": ("tick the {name} checkbox", "toggle {name}", "check {name}"),
    "switch": ("toggle the {name} switch", "switch {name}"),
    "radio button": ("choose the option {name}", "select {name}", "pick the radio button {name}"),
    "drop-down": ("open the {name} drop-down", "click the {name} selection list"),
    "tab": ("open the {name} tab", "switch to the tab {name}"),
    "slider": ("click the {name} slider", "grab the slider {name}"),
    "menu item": ("choose {name} from the menu", "click the menu item {name}"),
    "element": ("click {name}", "click on {name}", "select {name}"),
}
"""Templates by role; those of ``element`` serve every other role."""

FIELDS = {"text field", "password field", "search box", "number field", "date field", "drop-down"}
"""Roles where something is entered or chosen."""


@dataclass(frozen=True)
class Concept:
    """What several names mean, and how people ask for it without saying any of them.

    Attributes:
        names: matched as a whole.
        phrases: at least one.
        field: whether it is about fields only.
    """

    names: re.Pattern[str]
    phrases: tuple[str, ...]
    field: bool


@cache
def concepts() -> tuple[Concept, ...]:
    """The hand-written table, ``assets/gui/concepts.txt``."""
    found = []
    for line in gui_concepts_path().read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            kind, rest = line.split(None, 1)
            names, _, phrases = rest.rpartition(": ")
            spoken = tuple(p.strip() for p in phrases.split("|"))
            found.append(Concept(re.compile(names, re.IGNORECASE), spoken, kind == "field"))
    return tuple(found)


def direct(role: str, name: str) -> tuple[str, ...]:
    """Instructions that quote the name."""
    return tuple(template.format(name=name) for template in DIRECT.get(role, DIRECT["element"]))


def functional(role: str, name: str) -> tuple[str, ...]:
    """Instructions for the purpose of what is so called; empty where no concept is known."""
    stripped = name.strip().strip(":*").strip()
    matching = [c for c in concepts() if c.names.fullmatch(stripped) and not (c.field and role not in FIELDS)]
    matching.sort(key=lambda c: c.field != (role in FIELDS))  # an e-mail field is no inbox
    return matching[0].phrases if matching else ()


def unambiguous(named: Sequence[tuple[str, str]]) -> list[tuple[bool, bool]]:
    """Which elements ``(role, name)`` of one screen can be asked for directly, and which by their purpose.

    A name is no direct target where another element of the screen has it, in whatever case and role; a purpose is none
    where it belongs to two elements.
    """
    names = [name.casefold() for _, name in named]
    purposes = [functional(role, name) for role, name in named]
    return [
        (bool(name) and names.count(name) == 1, bool(purpose) and purposes.count(purpose) == 1)
        for name, purpose in zip(names, purposes, strict=True)
    ]
