"""Published claims, each run against its baseline over several seeds. Importing this loads none of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .harness import Claim

CLAIMS = {
    "ddpo": ".ddpo",
    "dpok": ".dpok",
    "flow-grpo": ".flow_grpo",
    "grpo-guard": ".grpo_guard",
    "tempflow-grpo": ".tempflow_grpo",
    "b2-diffurl": ".b2_diffurl",
    "rlg": ".rlg",
    "infigui-g1": ".infigui_g1",
    "visual-jigsaw": ".visual_jigsaw",
    "pearl": ".pearl",
    "parl": ".parl",
    "parl-walker": ".parl_walker",
    "repo": ".repo",
    "repo-pixels": ".repo_pixels",
    "exprd": ".exprd",
    "expadard": ".expadard",
    "explors": ".explors",
    "explors-once": ".explors_once",
    "eva": ".eva",
    "atp": ".atp",
    "atp-lm": ".atp_lm",
}


def claim(key: str) -> Claim:
    """The claim of that name.

    Raises:
        ValueError: for an unknown name.
    """
    if key not in CLAIMS:
        raise ValueError(f"unknown claim {key!r}; there are: {', '.join(CLAIMS)} (or all, or list)")
    return import_module(CLAIMS[key], __package__).CLAIM  # type: ignore[no-any-return]
