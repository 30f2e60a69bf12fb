"""Rewards against patterns, answers and references."""

import threading

import numpy as np
import pytest

from aligngym.rewards import Bleu, ExactMatch, Format, MathAnswer, Regex, Rouge

CAT = "the cat sat on the mat"


def test_regex():
    assert Regex(r"\d+")(["a 12", "a"]) == [1.0, 0.0]
    assert Regex(r"(?i)YES", full=True)(["yes", "yes!"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"pattern must be a regular expression, got '\('"):
        Regex("(")


def test_format():
    right = "<think>\nso\n</think>\n <answer>4</answer> "
    wrong = [
        "",
        right + "more",
        "so " + right,
        right.replace("so", " "),
        right * 2,
        "<answer>4</answer><think>so</think>",
        "<think>so<answer>4</answer>",
        "<think>so<think></think><answer>4</answer>",
        "<think>so</think><answer>4",
    ]
    assert Format()([right, *wrong]) == [1.0] + [0.0] * len(wrong)
    assert Format(["a"])(["<a>x</a>"]) == [1.0]
    for tags in ((), ("a", "a"), ("",)):
        with pytest.raises(ValueError, match="tags must be one or more different non-empty names"):
            Format(tags)


def test_exact_match():
    assert ExactMatch()(["4 ", "5", "x"], answer=[4, "4", None]) == [1.0, 0.0, None]
    assert ExactMatch()(["b"], answer=[["a", "b"]]) == [1.0]
    assert ExactMatch(ignore_case=True)(["YES"], answer=["yes"]) == [1.0]
    last = ExactMatch(pattern=r"= (\d+)")
    assert last(["= 3 then = 4", "4", "= 4 then = 3"], answer=["4"] * 3) == [1.0, 0.0, 0.0]
    assert ExactMatch(pattern=r"\d+")(["is 42."], answer=["42"]) == [1.0]
    with pytest.raises(ValueError, match="ExactMatch reads column 'answer'"):
        ExactMatch()(["a"])
    with pytest.raises(ValueError, match="must be a regular expression"):
        ExactMatch(pattern="[")


ANSWERS = ["it is $\\frac{1}{2}$", "0.5", "no idea", "$2x + x$", "7", "7"]
RIGHT = ["$0.5$", "1/2", "3", "$3x$", None, ""]


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_math_answers(timeout):
    scores = MathAnswer(timeout=timeout).score(ANSWERS, answer=RIGHT)
    np.testing.assert_array_equal(scores.values, [1, 1, 0, 1, np.nan, np.nan])
    assert scores.reasons[:5] == [None] * 5
    assert scores.reasons[5] == "ValueError: the right answer '' cannot be parsed"
    with pytest.raises(ValueError, match="MathAnswer reads column 'answer'"):
        MathAnswer(timeout=timeout)(["1"])


def test_math_in_a_thread_and_a_power_that_never_ends():
    reward, found = MathAnswer(timeout=1.0), []
    towers = ["$9^{9^{9^{9^9}}}$", "$4$"]

    def work():
        found.append(reward.score(towers, answer=["$9^{9^{9^{9^8}}}$", "4"]))

    thread = threading.Thread(target=work)  # where a signal could not be set
    thread.start()
    thread.join(60)
    assert found[0].reasons == ["TimeoutError: took longer than 1 s", None] and found[0].values[1] == 1.0
    reward.load()


def test_bleu_known_answers():
    texts = [CAT, "the cat", "the " * 6, "a b c d e f", "dog", CAT + " and saw a dog"]
    values = Bleu()(texts, references=[CAT] * len(texts))
    np.testing.assert_allclose(values, [1.0, 0.1353, 0.2445, 0.1858, 0.0057, 0.5707], atol=5e-5)
    # The shortest reference sets the length: one short reference removes the brevity penalty.
    assert Bleu()(["the cat"], references=[[CAT, "the cat"]]) == [1.0]
    assert Bleu()(["", "x"], references=[CAT, None]) == [0.0, None]


def test_sacrebleu_variants():
    import sacrebleu

    for smoothing in ("exp", "floor", "add-k", "none"):
        value = Bleu(smoothing=smoothing)(["the cat sat on a mat"], references=[[CAT, "a cat sat"]])[0]
        expected = sacrebleu.sentence_bleu("the cat sat on a mat", [CAT, "a cat sat"], smooth_method=smoothing).score
        assert value == pytest.approx(expected / 100)
    with pytest.raises(ValueError, match="smoothing must be one of add-one"):
        Bleu(smoothing="most")


def test_rouge():
    # 5 of 6 words in order on both sides
    assert Rouge()(["the cat sat on a mat"], references=[CAT]) == [pytest.approx(5 / 6)]
    assert Rouge("rouge1", "recall")(["the cat"], references=[CAT]) == [pytest.approx(2 / 6)]
    assert Rouge("rouge1", "precision")(["the cat"], references=[["x", CAT]]) == [1.0]
    assert Rouge("rouge1", stem=True)(["cats sitting"], references=["cat sit"]) == [1.0]
    assert Rouge()(["", "a"], references=[CAT, None]) == [0.0, None]
    with pytest.raises(ValueError, match="measure must be"):
        Rouge(measure="f2")
    with pytest.raises(ValueError, match="variant must be"):
        Rouge("rouge0")


@pytest.mark.parametrize("reward", [Bleu(), Rouge()])
def test_bad_references_fail_with_a_reason(reward):
    scores = reward.score(["a", "b", "c"], references=[[], 3, [4]])
    assert scores.failed.all()
    assert scores.reasons[0] == "ValueError: the list of references is empty"
    assert scores.reasons[1].startswith("TypeError: references must be a str or a list of str, got 3")
    with pytest.raises(ValueError, match="reads column 'references'"):
        reward(["a"])
    assert reward(["one for all"] * 2, references="one for all") == [1.0, 1.0]
