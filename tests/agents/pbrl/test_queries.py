"""Queries: random pairs, and the most disputed and least known ones, by hand-computed examples."""

import math

import numpy as np
import pytest
import torch

from aligngym.agents.pbrl.queries import disagreement_queries, entropy_queries, uniform_queries


@pytest.mark.parametrize("segments", [2, 3, 4, 7, 10])
def test_all_pairs_are_there_once(segments):
    pairs = uniform_queries(segments, segments * (segments - 1) // 2, np.random.default_rng(0))
    found = {tuple(sorted(pair)) for pair in pairs.tolist()}
    assert found == {(i, j) for i in range(segments) for j in range(i + 1, segments)}
    assert pairs.dtype == torch.int64 and len(pairs) == len(found)


def test_pairs_are_equally_likely_and_either_comes_first():
    rng = np.random.default_rng(0)
    pairs = torch.cat([uniform_queries(4, 2, rng) for _ in range(6000)])
    counts = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16).reshape(4, 4).double()
    assert counts.diagonal().sum() == 0
    observed = counts[~torch.eye(4, dtype=torch.bool)]
    assert ((observed - 1000) ** 2 / 1000).sum() < 31.3  # chi-square with 11 degrees of freedom, 0.001
    again = uniform_queries(1000, 50, np.random.default_rng(3))
    assert torch.equal(again, uniform_queries(1000, 50, np.random.default_rng(3)))
    assert len({frozenset(p) for p in again.tolist()}) == 50


def logit(probability):
    return math.log(probability / (1 - probability))


def ensemble(*pairs):
    """Members' logits of segments 0, 1, 2, ... with the given P(2k is preferred to 2k + 1) of each member."""
    return torch.tensor([[x for p in member for x in (logit(p), 0.0)] for member in zip(*pairs, strict=True)])


CANDIDATES = torch.tensor([[0, 1], [2, 3], [4, 5]])


def test_disputed_pairs():
    """Standard deviations 0.05, 0.3 and 0.2; the logits of the last lie the furthest apart."""
    logits = ensemble((0.5, 0.6), (0.2, 0.8), (0.5995, 0.9995))
    assert disagreement_queries(logits, CANDIDATES, 1).tolist() == [[2, 3]]
    assert disagreement_queries(logits, CANDIDATES, 3).tolist() == [[2, 3], [4, 5], [0, 1]]
    # Three members: 0, 0.5, 1 deviate by sqrt(1/6) = 0.408, and 0.1, 0.9, 0.9 by 0.377.
    three = ensemble((0.5, 0.5, 0.5), (1e-6, 0.5, 1 - 1e-6), (0.1, 0.9, 0.9))
    assert disagreement_queries(three, CANDIDATES, 2).tolist() == [[2, 3], [4, 5]]


def test_unknown_pairs():
    """Means 0.9, 0.5, 0.7; by the mean of the members' entropies the last would be first: 0.61 nats against 0.05."""
    logits = ensemble((0.9, 0.9), (0.01, 0.99), (0.7, 0.7))
    assert entropy_queries(logits, CANDIDATES, 3).tolist() == [[2, 3], [4, 5], [0, 1]]
    # Sure that the second is better is as sure as sure that the first is.
    assert entropy_queries(ensemble((0.02,), (0.3,), (0.97,)), CANDIDATES, 3).tolist() == [[2, 3], [4, 5], [0, 1]]
    assert entropy_queries(ensemble((1 - 1e-7,), (0.9999,), (0.999,)), CANDIDATES, 1).tolist() == [[4, 5]]


@pytest.mark.parametrize("choose", [disagreement_queries, entropy_queries])
def test_what_counts_is_the_difference_of_the_logits_of_a_pair(choose):
    logits = torch.tensor([[0.5, 1.0, -2.0, 1.2], [0.1, 1.4, 0.7, 3.0]], requires_grad=True)
    moved = (logits + torch.tensor([[7.0], [-3.0]])).detach()
    candidates = uniform_queries(4, 6, np.random.default_rng(0))
    chosen = choose(logits, candidates, 4)
    assert torch.equal(chosen, choose(moved, candidates, 4)) and chosen.dtype == torch.int64
    assert torch.equal(choose(logits, candidates.flip(1), 4), chosen.flip(1))  # either may come first


@pytest.mark.parametrize("choose", [disagreement_queries, entropy_queries])
def test_of_equals_the_earlier_candidate(choose):
    candidates = torch.tensor([[3, 1], [0, 2], [1, 2]])
    assert choose(torch.zeros(2, 4), candidates, 2).tolist() == [[3, 1], [0, 2]]


def test_what_cannot_be_asked():
    rng = np.random.default_rng(0)
    for segments, count in ((3, 4), (3, 0), (1, 1)):
        with pytest.raises(ValueError, match=f"count={count}: must be in"):
            uniform_queries(segments, count, rng)
    for choose in (disagreement_queries, entropy_queries):
        with pytest.raises(ValueError, match=r"count=4: must be in \[1, 3\]"):
            choose(torch.zeros(2, 6), CANDIDATES, 4)
        with pytest.raises(ValueError, match=r"expected \[M, N\] and \[C, 2\]"):
            choose(torch.zeros(2, 6), CANDIDATES[0], 1)
    with pytest.raises(ValueError, match="one member cannot disagree"):
        disagreement_queries(torch.zeros(1, 6), CANDIDATES, 1)
