"""The reward of puzzles: the inverse permutation, exact and partial credit, and answers that only look like orders."""

import numpy as np
import pytest

from aligngym.rewards import Jigsaw, as_reward
from aligngym.rewards.jigsaw import inverse_permutation

NINE = list(range(1, 10))


def score(answer, order, **options):
    return Jigsaw(**options).score([answer], order=[order])


def test_the_answer_is_the_inverse_and_not_the_permutation() -> None:
    """Original 1 is in slot 3, original 2 in slot 1, original 3 in slot 2; an involution could not tell."""
    shown = [2, 3, 1]
    assert inverse_permutation(shown).tolist() == [3, 1, 2] != shown
    rng = np.random.default_rng(0)
    for _ in range(20):
        shown = rng.permutation(9) + 1
        assert (shown[inverse_permutation(shown) - 1] == NINE).all()
        assert (inverse_permutation(inverse_permutation(shown)) == shown).all()


@pytest.mark.parametrize("shown", [[0, 1, 2], [1, 1, 3], [[1, 2]], [1, 2, 4]])
def test_no_permutation_is_refused(shown) -> None:
    with pytest.raises(ValueError, match="must be a permutation of 1 to K"):
        inverse_permutation(shown)


def test_values_of_the_sheet() -> None:
    swapped = np.array([2, 1, *range(3, 10)])
    assert score(np.array(NINE), NINE).values[0] == pytest.approx(1.2)
    assert score(swapped, NINE).values[0] == pytest.approx(0.2 + 0.2 * 7 / 9)
    assert score(swapped, NINE, partial=False).values[0] == pytest.approx(0.2)
    assert score(np.array([2, 1, 3, 4]), [1, 2, 3, 4]).values[0] == pytest.approx(0.2), "four pieces: no partial credit"
    terms = score(swapped, NINE).terms
    assert [terms[k][0] for k in ("exact", "fraction", "format")] == [0, pytest.approx(7 / 9), 1]


def test_chance() -> None:
    """A random permutation has one place in K right on average."""
    rng = np.random.default_rng(0)
    answers = [rng.permutation(9) + 1 for _ in range(4000)]
    scores = Jigsaw().score(answers, order=[NINE] * 4000)
    assert scores.terms["fraction"].mean() == pytest.approx(1 / 9, abs=0.006)
    assert scores.values.mean() == pytest.approx(0.2 + 0.2 / 9, abs=0.002)


@pytest.mark.parametrize(
    "answer", [[*range(1, 9), 99], [*NINE, 9], [*range(2, 10), 10], [0, *range(1, 9)], NINE[:8], [*NINE, 10]]
)
def test_nine_different_numbers_are_not_yet_an_order_of_nine_pieces(answer) -> None:
    for form in (np.array(answer), ", ".join(map(str, answer))):
        scores = score(form, NINE)
        assert scores.values[0] == 0 and scores.terms["format"][0] == 0 and scores.terms["fraction"][0] == 0


def test_a_number_given_twice_is_well_formed_but_has_no_credit() -> None:
    for form in (np.array([1] * 9), "1, 2, 3, 4, 5, 6, 7, 8, 8"):
        assert score(form, NINE).values[0] == pytest.approx(0.2)


def test_texts() -> None:
    for text in ("3, 1, 2", "<think>1, 2, 3</think> <answer> 3, 1,2 </answer>"):
        assert score(text, [3, 1, 2]).values[0] == pytest.approx(1.2)
    for text in ("", "first 3, then 1", "3, 1, -2", "3, 1.5, 2", "<answer>none</answer>"):
        assert score(text, [3, 1, 2]).values[0] == 0 and score(text, [3, 1, 2]).terms["format"][0] == 0


def test_long_lines_that_are_repeated_cost() -> None:
    line, text = "the dark tile must be in the corner\n", "<think>\n{}</think><answer>3, 1, 2</answer>".format
    for body, value in ((line * 3, 1.2), (line * 4, 0.7), ("so it is\n" * 9, 1.2), ((line + "so\n") * 4, 1.2)):
        assert score(text(body), [3, 1, 2]).values[0] == pytest.approx(value)


def test_failures_and_names() -> None:
    bad = Jigsaw().score([np.array([1.0, 2.0]), np.array([1, 2]), np.array([1, 2])], order=[[1, 2], [1, 3], [1, 2]])
    assert "must be integers" in bad.reasons[0] and "permutation of 1 to K" in bad.reasons[1] and bad.reasons[2] is None
    assert np.isnan(bad.values[:2]).all() and bad.values[2] == pytest.approx(1.2)
    with pytest.raises(ValueError, match="reads column 'order'"):
        Jigsaw().score([np.array([1])])
    again = as_reward(Jigsaw(partial=False).to_dict())
    assert isinstance(again, Jigsaw) and not again.partial and isinstance(as_reward("jigsaw"), Jigsaw)
