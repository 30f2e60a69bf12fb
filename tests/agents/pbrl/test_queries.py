"""Queries: which pairs are chosen, against probabilities worked out by hand."""

import math

import numpy as np
import pytest
import torch

from aligngym.agents.pbrl.queries import disagreement_queries, entropy_queries, random_pairs, uniform_queries
from aligngym.agents.pbrl.reward_model import EnsembleRewardModel
from aligngym.agents.pbrl.segments import Segments

# Segment 0 has score 0, the others the logits of the probabilities 0.5, 0.9, 0.1 and 0.6, 0.5, 0.9: of the pairs
# (1, 0), (2, 0), (3, 0) the means are 0.55, 0.7, 0.5, the standard deviations 0.05, 0.2, 0.4.
P = torch.tensor([[0.5, 0.5, 0.9, 0.1], [0.5, 0.6, 0.5, 0.9]], dtype=torch.float64)
SCORES = P.logit()
CANDIDATES = torch.tensor([[1, 0], [2, 0], [3, 0]])


def test_disagreement_takes_the_greatest_deviation_first():
    assert disagreement_queries(CANDIDATES, SCORES, 3).tolist() == [[3, 0], [2, 0], [1, 0]]
    assert disagreement_queries(CANDIDATES, SCORES, 1).tolist() == [[3, 0]]


def test_disagreement_is_that_of_probabilities_not_of_scores():
    """Scores 4 and 10 are further apart than 0 and 2, but sigmoid makes 0.018 of the one and 0.38 of the other."""
    scores = torch.tensor([[0.0, 4.0, 0.0], [0.0, 10.0, 2.0]])
    assert disagreement_queries(torch.tensor([[1, 0], [2, 0]]), scores, 1).tolist() == [[2, 0]]


def test_entropy_takes_the_mean_probability_nearest_to_a_half():
    assert entropy_queries(CANDIDATES, SCORES, 3).tolist() == [[3, 0], [1, 0], [2, 0]]
    assert entropy_queries(CANDIDATES.flip(1), SCORES, 3).tolist() == [[0, 3], [0, 1], [0, 2]]


def test_entropy_and_disagreement_differ():
    """Probabilities 0.45 and 0.5 are the more uncertain, 0.95 and 0.65 the more disputed."""
    scores = torch.tensor([[0.5, 0.45, 0.95], [0.5, 0.5, 0.65]]).logit()
    pairs = torch.tensor([[1, 0], [2, 0]])
    assert entropy_queries(pairs, scores, 1).tolist() == [[1, 0]]
    assert disagreement_queries(pairs, scores, 1).tolist() == [[2, 0]]


def test_of_equal_candidates_the_first_come_first_and_certainty_is_no_nan():
    scores = torch.tensor([[0.0, 1e4, -1e4], [0.0, 1e4, -1e4]])
    pairs = torch.tensor([[1, 0], [2, 0], [1, 2], [0, 0]])
    assert disagreement_queries(pairs, scores, 4).tolist() == pairs.tolist()
    assert entropy_queries(pairs, scores, 4).tolist() == [[0, 0], [1, 0], [2, 0], [1, 2]]
    assert entropy_queries(pairs, scores[:1], 1).tolist() == [[0, 0]], "one member will do"


def test_near_certainties_are_told_apart():
    """In float32 the probabilities of the logits 20 and 30 are both 1."""
    scores, pairs = torch.tensor([[0.0, 30.0, 20.0]]), torch.tensor([[1, 0], [2, 0]])
    assert entropy_queries(pairs, scores, 2).tolist() == [[2, 0], [1, 0]]


def test_scores_are_those_of_an_ensemble():
    drawn = torch.Generator().manual_seed(0)
    steps = torch.randn(6, 4, 3, generator=drawn), torch.randn(6, 4, 2, generator=drawn)
    zero = torch.zeros(6, dtype=torch.int64)
    segments = Segments(*steps, torch.ones(6, 4, dtype=torch.bool), zero, zero)
    scores = EnsembleRewardModel(3, 2, generator=drawn).member_scores(segments)
    pairs = random_pairs(6, 40, np.random.default_rng(0))
    (chosen,) = disagreement_queries(pairs, scores, 1)
    spread = [np.std([1 / (1 + math.exp(float(m[j] - m[i]))) for m in scores]) for i, j in pairs.tolist()]
    assert chosen.tolist() == pairs[int(np.argmax(spread))].tolist()


def test_uniform_choice_has_no_repetition_and_no_favourites():
    candidates = random_pairs(50, 10, np.random.default_rng(3))
    rng = np.random.default_rng(0)
    drawn = [uniform_queries(torch.arange(20).reshape(10, 2), 3, rng)[:, 0] // 2 for _ in range(4000)]
    assert all(len(set(d.tolist())) == 3 for d in drawn)
    counts = torch.bincount(torch.cat(drawn), minlength=10).double()
    assert ((counts - 1200) ** 2 / 1200).sum() < 27.9  # chi-square with 9 degrees of freedom, 0.001
    one, two = (uniform_queries(candidates, 5, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(one, two)


def test_random_pairs_are_of_two_segments_and_all_equally_likely():
    pairs = random_pairs(4, 12_000, np.random.default_rng(0))
    assert pairs.shape == (12_000, 2) and pairs.dtype == torch.int64
    counts = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16).reshape(4, 4).double()
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(4, dtype=torch.bool)]
    assert ((others - 1000) ** 2 / 1000).sum() < 31.3  # chi-square with 11 degrees of freedom, 0.001


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform_queries(CANDIDATES, 4, np.random.default_rng(0)), r"count=4.*\[1, 3\]"),
        (lambda: disagreement_queries(CANDIDATES, SCORES, 0), "count=0"),
        (lambda: disagreement_queries(CANDIDATES, SCORES[:1], 1), "1 member"),
        (lambda: disagreement_queries(CANDIDATES, SCORES[0], 1), "scores have shape"),
        (lambda: entropy_queries(CANDIDATES[0], SCORES, 1), "candidates have shape"),
        (lambda: random_pairs(1, 3, np.random.default_rng(0)), "segments=1"),
    ],
)
def test_what_cannot_be_chosen(call, message):
    with pytest.raises(ValueError, match=message):
        call()
