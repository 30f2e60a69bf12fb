"""The claim of :mod:`.explors` where the goal is the end of an episode, and pays once."""

from __future__ import annotations

from .explors import BOUNDED, STATEMENT, about, run
from .harness import Claim

CLAIM = Claim(
    key="explors-once",
    statement=STATEMENT,
    paper="Devidze et al., NeurIPS 2022",
    run=run,
    **about(["once", "once-distractor", "rooms-once"]),
    notes=f"As of explors, but that the goal ends the episode. The rooms are those of ExpAdaRD. {BOUNDED}",
    agents=("reinforce",),
)
