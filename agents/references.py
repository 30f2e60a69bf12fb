"""The policy that a divergence is measured from: the initial one, a moving copy, or a soup of checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from .checkpoint import load_checkpoint
from .policies.policy import Policy

Kind = Literal["initial", "moving", "soup", "none"]


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Parameter-wise mean of models of one architecture, a *model soup* (SALSA: arXiv 2411.01798).

    Raises:
        ValueError: if the models do not have the same parameters.
    """
    names = set(states[0])
    if differ := set().union(*(names ^ set(s) for s in states)):
        raise ValueError(f"the models of a soup must have the same parameters; they differ in {sorted(differ)[:4]}")
    return {name: torch.stack([s[name].float() for s in states]).mean(0).to(states[0][name].dtype) for name in names}


class Reference:
    """A frozen policy beside the trained one.

    With LoRA adapters the initial reference is the trained policy with its adapters off, which needs no second copy.

    Args:
        policy: the initial policy.
        kind: ``initial`` and ``none`` never change, ``moving`` follows, ``soup`` averages.
        soup: checkpoint folders whose policies are averaged with the initial one.
    """

    def __init__(self, policy: Policy, kind: Kind, soup: Sequence[str] = ()) -> None:
        self.kind = kind
        self._frozen: Policy | None = None
        if kind == "none" or (kind == "initial" and policy.has_adapters):
            return
        self._frozen = copy.deepcopy(policy).requires_grad_(False).eval()
        if kind == "soup":
            own = {k: p.detach().cpu() for k, p in policy.named_parameters() if p.requires_grad}
            others = [load_checkpoint(folder)[0]["policy"] for folder in soup]
            self.load({k: v.to(policy.device) for k, v in average([own, *others]).items()})

    @contextmanager
    def policy(self, trained: Policy) -> Iterator[Policy]:
        """The reference policy, for scoring."""
        if self._frozen is not None:
            yield self._frozen
        else:
            with trained.adapters_off() as policy:
                yield policy

    def step(self, trained: Policy, iteration: int, every: int, mix: float) -> None:
        """After ``iteration`` iterations: every ``every``, a moving reference becomes (1 - mix) old + mix trained."""
        if self.kind != "moving" or iteration % every or self._frozen is None:
            return
        with torch.no_grad():
            for old, new in zip(self._frozen.parameters(), trained.parameters(), strict=True):
                old.lerp_(new, mix)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: nothing where the reference can be rebuilt from the initial policy."""
        return {} if self._frozen is None else {k: v.detach() for k, v in self._frozen.named_parameters()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors`."""
        if self._frozen is None or not tensors:
            return
        parameters = dict(self._frozen.named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                parameters[name].copy_(value)
