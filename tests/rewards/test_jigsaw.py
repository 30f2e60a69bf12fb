"""The reward of puzzles: the inverse permutation, exact and partial credit, and answers that only look like orders."""

import math
from itertools import permutations

import numpy as np
import pytest

from aligngym.rewards import Jigsaw
from aligngym.rewards.jigsaw import inverse_permutation

NINE = list(range(1, 10))
NOTHING = {"exact": 0, "fraction": 0, "format": 0}


def score(answer, order, **options):
    scores = Jigsaw(**options).score([answer], order=[order])
    assert scores.reasons == [None]
    return scores.values[0], {name: scores.terms[name][0] for name in NOTHING}


def texts(numbers):
    return ", ".join(map(str, numbers))


def test_the_answer_is_the_inverse_and_not_the_permutation():
    """Piece 1 is in slot 3, piece 2 in slot 1, piece 3 in slot 2; where pieces only change places both agree."""
    shown = [2, 3, 1]
    assert inverse_permutation(shown).tolist() == [3, 1, 2]
    assert score([3, 1, 2], inverse_permutation(shown))[0] == pytest.approx(1.2)
    assert score(shown, inverse_permutation(shown))[0] == pytest.approx(0.2)
    assert inverse_permutation([2, 1, 3]).tolist() == [2, 1, 3]


def test_putting_pieces_in_that_order_solves_the_puzzle():
    rng = np.random.default_rng(0)
    for _ in range(20):
        shown = rng.permutation(9) + 1
        assert shown[inverse_permutation(shown) - 1].tolist() == NINE
        assert (inverse_permutation(inverse_permutation(shown)) == shown).all()


@pytest.mark.parametrize("shown", [[], [0, 1, 2], [1, 1, 3], [[1, 2]], [1, 2, 4], [1.5, 1]])
def test_what_is_no_permutation_has_no_inverse(shown):
    with pytest.raises(ValueError, match="shown must be a permutation of 1 to K, got"):
        inverse_permutation(shown)


def test_known_answers():
    swapped = [2, 1, *NINE[2:]]
    for form in (list, tuple, np.array, texts):
        assert score(form(NINE), NINE) == (pytest.approx(1.2), {"exact": 1, "fraction": 1, "format": 1})
        value, terms = score(form(swapped), NINE)
        assert value == pytest.approx(0.2 + 0.2 * 7 / 9)
        assert terms == {"exact": 0, "fraction": pytest.approx(7 / 9), "format": 1}
    assert score([*NINE[1:], 1], NINE)[0] == pytest.approx(0.2)
    assert score([3, 1, 2, 5, 4], [3, 1, 2, 5, 4])[0] == pytest.approx(1.2)


def test_four_pieces_have_no_partial_credit_and_five_have():
    assert score([2, 1, 3, 4], [1, 2, 3, 4]) == (pytest.approx(0.2), {"exact": 0, "fraction": 0.5, "format": 1})
    assert score([1, 2, 3, 4], [1, 2, 3, 4])[0] == pytest.approx(1.2)
    assert score([2, 1, 3, 4, 5], [1, 2, 3, 4, 5])[0] == pytest.approx(0.2 + 0.2 * 3 / 5)


def test_options():
    swapped = [2, 1, *NINE[2:]]
    assert score(swapped, NINE, partial=False)[0] == pytest.approx(0.2)
    assert score(swapped, NINE, format_bonus=0.0, credit=0.9)[0] == pytest.approx(0.7)
    assert score(NINE, NINE, format_bonus=0.5, credit=0.9)[0] == pytest.approx(1.5)
    for name in ("format_bonus", "credit", "repetition_penalty"):
        with pytest.raises(ValueError, match=f"{name} must be finite, got inf"):
            Jigsaw(**{name: math.inf})


def test_chance():
    """Of all orders of five, on average one place is right; one in 5! is exact."""
    orders = [list(order) for order in permutations(range(1, 6))]
    scores = Jigsaw().score(orders, order=[[2, 5, 1, 4, 3]] * len(orders))
    assert scores.terms["fraction"].mean() == pytest.approx(1 / 5) and scores.terms["exact"].sum() == 1
    assert scores.values.mean() == pytest.approx(0.2 + 0.2 / 5 + (1 - 0.2) / 120)


@pytest.mark.parametrize(
    "answer", [[*NINE[:8], 99], [*NINE, 9], [*NINE[1:], 10], [0, *NINE[:8]], NINE[:8], [-1, *NINE[1:]]]
)
def test_a_wrong_length_or_range_is_malformed(answer):
    """Nine different numbers, or nine among more, are not yet an order of nine pieces."""
    for form in (list, np.array, texts):
        assert score(form(answer), NINE) == (0, NOTHING)


def test_numbers_that_repeat_have_no_partial_credit():
    answer = [*NINE[:8], 8]
    for form in (list, texts):
        value, terms = score(form(answer), NINE)
        assert value == pytest.approx(0.2) and terms == {"exact": 0, "fraction": pytest.approx(8 / 9), "format": 1}


def test_texts():
    chat = [{"role": "assistant", "content": "3,1,2"}]
    for text in ("3, 1, 2", "<think>1, 2, 3</think>\n<answer>3, 1, 2</answer>", chat):
        assert score(text, [3, 1, 2])[0] == pytest.approx(1.2)
    for text in ("", "first 3, then 1", "3 1 2", "3, 1.5, 2", "<answer>none</answer> 3, 1, 2", "3,1,", []):
        assert score(text, [3, 1, 2]) == (0, NOTHING)


def test_repeated_long_lines_cost():
    line = "The dark tile must be the corner\n"
    think = "<think>\n{}</think><answer>3, 1, 2</answer>".format
    assert score(think(line * 4), [3, 1, 2])[0] == pytest.approx(1.2 - 0.5)
    assert score(think(line * 4), [3, 1, 2], repetition_penalty=0.1)[0] == pytest.approx(1.1)
    assert score(think(line + "\n" + line.upper() + "  " + line * 2), [3, 1, 2])[0] == pytest.approx(0.7)
    for harmless in (line * 3, "must be the corner\n" * 50, (line + "so\n") * 50):
        assert score(think(harmless), [3, 1, 2])[0] == pytest.approx(1.2)
    assert score(line * 4, [3, 1, 2])[0] == 0, "nothing is taken from an answer that is none"


def test_failures_are_no_wrong_answers():
    answers = [np.array([1.0, 2.0]), [1, 2], [1, 2], [1, 2], np.array([[1, 2]]), 3]
    scores = Jigsaw().score(answers, order=[[1, 2], [1, 3], [1, 2], None, [1, 2], [1, 2]])
    assert scores.failed.tolist() == [True, True, False, False, True, True]
    assert scores.scored.tolist() == [False, False, True, False, False, False]
    assert scores.reasons[0] == "TypeError: an order must be integers [K], got float64 [2]"
    assert scores.reasons[1] == "ValueError: order must be a permutation of 1 to K, got [1, 3]"
    with pytest.raises(ValueError, match="Jigsaw reads column 'order'; columns given: none"):
        Jigsaw().score([[1]])
