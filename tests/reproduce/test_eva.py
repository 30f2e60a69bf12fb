"""The worlds of eva's claim: the solver of one number, and questions that never leak into the test."""

import numpy as np
import pytest

from aligngym.reproduce import eva

SCALAR = eva.CLAIM.settings["scalar"]


def test_one_number_ends_as_in_the_sheet():
    found = {arm: [eva._scalar(arm, [1000 + i], SCALAR) for i in range(4)] for arm in eva.SCALAR_ARMS}
    mean = {arm: {k: np.mean([one[k] for one in runs]) for k in runs[0]} for arm, runs in found.items()}
    assert mean["static"]["success"] == pytest.approx(0.75, abs=0.02)
    assert mean["uniform"]["success"] == pytest.approx(0.98, abs=0.02)
    assert mean["gap"]["success"] == pytest.approx(0.998, abs=0.005)
    assert mean["hardest"]["success"] < mean["uniform"]["success"]
    assert mean["hardest"]["ahead"] > 4 > 1 > abs(mean["gap"]["ahead"])  # one runs away, the other is tracked


def test_questions_are_trained_on_or_tested_on_never_both():
    rng = np.random.default_rng(0)
    trained = {row["prompt"][:-1] for row in eva.questions((1, 2, 3, 4, 5, 6), 400, rng, tested=False)}
    tested = {row["prompt"][:-1] for row in eva.questions(eva.TESTED, 400, rng, tested=True)}
    assert not trained & tested and all(map(eva.held_out, tested)) and not any(map(eva.held_out, trained))
    assert {len(digits) for digits in tested} == set(eva.TESTED)


def test_a_question_and_its_answer():
    words = eva.tokenizer()
    row = eva.question("3012")
    assert row == {"prompt": "3012=", "length": 4, "answer": "0123"}
    assert words.decode(words("3012=")["input_ids"]) == "3012="
    assert eva.right(["0123999", "013", ""], ["0123", "0123", "0"]) == [1.0, 0.0, 0.0]
    prompt, columns = eva.new_digits({"length": 5, "answer": "x"}, np.random.default_rng(1))
    assert prompt == f"{prompt[:-1]}=" and len(prompt) == 6 and columns["answer"] == "".join(sorted(prompt[:-1]))
