r"""Queries: which pairs of segments a teacher is asked about.

Of many candidates, those are chosen about which an ensemble of reward models disagrees, or is uncertain. A member
whose segment scores are :math:`\ell_k` holds :math:`p_k = \sigma(\ell_k(x) - \ell_k(x'))` for the probability that the
first is preferred.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def random_pairs(segments: int, count: int, rng: np.random.Generator) -> Tensor:
    """Candidates: pairs ``[count, 2]`` int64 of two different ones of ``segments``, uniformly, with replacement.

    Raises:
        ValueError: for fewer than two segments, or no pair.
    """
    if segments < 2 or count < 1:
        raise ValueError(f"segments={segments}, count={count}: must be at least 2, and 1")
    first = rng.integers(segments, size=count)
    second = (first + rng.integers(1, segments, size=count)) % segments
    return torch.from_numpy(np.stack([first, second], 1))


def uniform_queries(candidates: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """``count`` of the candidates ``[C, 2]``, uniformly, without replacement.

    Returns:
        ``[count, 2]``, in random order.

    Raises:
        ValueError: if there are fewer candidates.
    """
    _check(candidates, count)
    chosen = torch.from_numpy(rng.choice(len(candidates), count, replace=False))
    return candidates[chosen.to(candidates.device)]


def disagreement_queries(candidates: Tensor, scores: Tensor, count: int) -> Tensor:
    """Candidates for which the members' probabilities :math:`p_k` differ most, in standard deviation.

    As in PEBBLE and B-Pref.

    Args:
        candidates: ``[C, 2]`` int64, rows of segments.
        scores: ``[K, N]`` of ``N`` segments by at least two members, as
            :meth:`.RewardModel.member_scores` gives them.
        count: how many.

    Returns:
        ``[count, 2]``, most disputed first; of equal ones, which come first in the candidates.

    Raises:
        ValueError: if there are fewer candidates, or a single member.
    """
    if scores.ndim == 2 and len(scores) < 2:
        raise ValueError(f"scores have {len(scores)} member: disagreement takes at least 2")
    return _top(candidates, _probabilities(candidates, scores, count).std(0, correction=0), count)


def entropy_queries(candidates: Tensor, scores: Tensor, count: int) -> Tensor:
    r"""Candidates whose mean probability :math:`p = \frac1K \sum_k p_k` has the greatest entropy.

    Arguments, order and errors as :func:`disagreement_queries`; one member is enough. B-Pref's code takes the mean of
    the members' entropies instead, which is blind to members that are sure of opposite answers.
    """
    p = _probabilities(candidates, scores, count).mean(0)
    return _top(candidates, torch.special.entr(p) + torch.special.entr(1 - p), count)


def _probabilities(candidates: Tensor, scores: Tensor, count: int) -> Tensor:
    """``[K, C]`` float64, by each member, that the first is preferred."""
    _check(candidates, count)
    if scores.ndim != 2 or not len(scores):
        raise ValueError(f"scores have shape {tuple(scores.shape)}, expected [members, segments]")
    first, second = scores.double()[:, candidates.to(scores.device)].unbind(2)
    return torch.sigmoid(first - second)


def _top(candidates: Tensor, values: Tensor, count: int) -> Tensor:
    return candidates[values.argsort(descending=True, stable=True)[:count].to(candidates.device)]


def _check(candidates: Tensor, count: int) -> None:
    if candidates.ndim != 2 or candidates.shape[1] != 2:
        raise ValueError(f"candidates have shape {tuple(candidates.shape)}, expected [C, 2]")
    if not 1 <= count <= len(candidates):
        raise ValueError(f"count={count}: must be in [1, {len(candidates)}], the number of candidates")
