"""Which pairs of segments to ask about: at random, where the members of an ensemble disagree, or where it is unsure.

The informed ways choose from candidates, of which B-Pref and PEBBLE draw ten times as many as they ask::

    candidates = uniform_queries(len(segments), 10 * count, rng)
    pairs = disagreement_queries(logits, candidates, count)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uniform_queries(segments: int, count: int, rng: np.random.Generator) -> Tensor:
    """Different pairs of different segments, every such set equally likely, and either one first.

    Args:
        segments: how many there are to choose from.
        count: pairs, at most ``segments * (segments - 1) / 2``.
        rng: draws.

    Returns:
        ``[count, 2]`` int64, rows of the segments.

    Raises:
        ValueError: if there are no ``count`` pairs.
    """
    possible = segments * (segments - 1) // 2
    if not 1 <= count <= possible:
        raise ValueError(f"count={count}: must be in [1, {possible}], the pairs that {segments} segments make")
    numbers = rng.choice(possible, count, replace=False)
    # On a circle every pair is a place and a distance to walk from there, at most half way round.
    one, distance = numbers % segments, numbers // segments + 1
    pairs = np.stack([one, (one + distance) % segments], 1)
    swap = rng.random(count) < 0.5
    pairs[swap] = pairs[swap, ::-1]
    return torch.from_numpy(pairs)


def disagreement_queries(logits: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The candidates over which the members of an ensemble disagree most, in the standard deviation of P(first).

    Args:
        logits: ``[M, N]`` of ``M`` members for ``N`` segments; the probability that one prefers segment i to j is
            ``sigmoid(logits[i] - logits[j])``.
        candidates: ``[C, 2]`` rows of segments.
        count: pairs, at most ``C``.

    Returns:
        ``[count, 2]``, most disputed first; of equals the earlier candidate.

    Raises:
        ValueError: for shapes that do not match, a count outside [1, C], or a single member.
    """
    if len(logits) < 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}: one member cannot disagree, expected at least two")
    return _most(_probabilities(logits, candidates).std(0, correction=0), candidates, count)


def entropy_queries(logits: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The candidates whose answer an ensemble knows least, in the entropy of the members' mean P(first).

    Deviation: B-Pref's code takes the mean of the members' entropies, which are small where members that are each
    sure contradict one another. For one member both are the same.

    Args:
        logits: as in :func:`disagreement_queries`; one member suffices.
        candidates: ``[C, 2]`` rows of segments.
        count: pairs, at most ``C``.

    Returns:
        ``[count, 2]``, least known first; of equals the earlier candidate.

    Raises:
        ValueError: as :func:`disagreement_queries`.
    """
    mean = _probabilities(logits, candidates).mean(0)
    return _most(torch.special.entr(mean) + torch.special.entr(1 - mean), candidates, count)


def _probabilities(logits: Tensor, candidates: Tensor) -> Tensor:
    """``[M, C]`` float64: P(first is preferred) by each member."""
    if logits.ndim != 2 or candidates.ndim != 2 or candidates.shape[1] != 2:
        shapes = tuple(logits.shape), tuple(candidates.shape)
        raise ValueError(f"logits and candidates have shapes {shapes}, expected [M, N] and [C, 2]")
    first, second = logits.detach().double()[:, candidates.to(logits.device)].unbind(2)
    return torch.sigmoid(first - second)


def _most(values: Tensor, candidates: Tensor, count: int) -> Tensor:
    if not 1 <= count <= len(candidates):
        raise ValueError(f"count={count}: must be in [1, {len(candidates)}], the number of candidates")
    order = values.argsort(descending=True, stable=True)[:count]
    return candidates[order.to(candidates.device)]
