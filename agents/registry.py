"""The agents by name. Importing this loads none of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import Agent


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        target: ``module:class``, the module relative to this package.
        summary: what the agent is, in one line.
    """

    target: str
    summary: str


AGENTS = {
    "grpo": Entry(
        ".grpo:GRPO", "group-relative policy optimisation: several episodes of a prompt, judged against each other"
    ),
    "ppo": Entry(".ppo:PPO", "proximal policy optimisation with a critic"),
    "dpo": Entry(
        ".preference.dpo:DPO", "direct preference optimisation: pairs from a file, or the best and worst of a group"
    ),
    "rwr": Entry(".rwr:RWR", "reward-weighted regression: imitate one's own episodes, the better ones more"),
}


def agent_class(name: str) -> type[Agent]:
    """The agent class of that name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in AGENTS:
        raise ValueError(f"unknown agent {name!r}; there are: {', '.join(AGENTS)}")
    module, _, attribute = AGENTS[name].target.partition(":")
    return getattr(import_module(module, __package__), attribute)  # type: ignore[no-any-return]
