"""The reward of puzzles: the inverse permutation, exact and partial credit, and answers that only look like orders."""

import numpy as np
import pytest

from aligngym.rewards import Jigsaw, as_reward
from aligngym.rewards.jigsaw import inverse_permutation, parse_order

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
    with pytest.raises(ValueError, match="expected a permutation"):
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
    "answer", [[*range(1, 9), 99], [*NINE, 9], [*range(2, 10), 10], [1] * 9, [0, *range(1, 9)], NINE[:8]]
)
def test_what_is_no_permutation_gets_no_partial_credit(answer) -> None:
    """Nine different numbers, or nine among more, are not yet an order of nine pieces."""
    for form in (np.array(answer), ", ".join(map(str, answer))):
        assert score(form, NINE).values[0] == pytest.approx(0.2)


def test_texts() -> None:
    assert parse_order("<think>1, 2</think> <answer> 3, 1,2 </answer>") == [3, 1, 2]
    assert parse_order("[3, 1, 2]") == [3, 1, 2]
    for text in ("", "first 3, then 1", "3 1 2", "3, 1, -2", "3, 1.5, 2", "<answer>none</answer>", "3,1,"):
        assert parse_order(text) is None
        assert score(text, [3, 1, 2]).values[0] == 0 and score(text, [3, 1, 2]).terms["format"][0] == 0
    assert score("3, 1, 2", [3, 1, 2]).values[0] == pytest.approx(1.2)


def test_repeated_long_lines_cost() -> None:
    line = "the dark tile must be the corner\n"
    text = "<think>\n{}</think><answer>3, 1, 2</answer>".format
    assert score(text(line), [3, 1, 2]).values[0] == pytest.approx(1.2)
    assert score(text(line + line), [3, 1, 2]).values[0] == pytest.approx(0.7)
    assert score(text("so\nso\n"), [3, 1, 2]).values[0] == pytest.approx(1.2)


def test_failures_and_names() -> None:
    bad = Jigsaw().score([np.array([1.0, 2.0]), np.array([1, 2]), np.array([1, 2])], order=[[1, 2], [1, 3], [1, 2]])
    assert "int array" in bad.reasons[0] and "permutation of 1 ... 2" in bad.reasons[1] and bad.reasons[2] is None
    assert np.isnan(bad.values[:2]).all() and bad.values[2] == pytest.approx(1.2)
    with pytest.raises(ValueError, match="reads column 'order'"):
        Jigsaw().score([np.array([1])])
    again = as_reward(Jigsaw(partial=False).to_dict())
    assert isinstance(again, Jigsaw) and not again.partial and isinstance(as_reward("jigsaw"), Jigsaw)
