"""Rewards on text alone: closed forms, and hostile text through every reward that reads text."""

import sys
import time

import numpy as np
import pytest

from aligngym.rewards import (
    Bleu,
    ExactMatch,
    Format,
    Length,
    MathAnswer,
    Regex,
    Repetition,
    Rouge,
    Sentiment,
    SentimentDensity,
    match,
    story_sentiment,
)
from aligngym.rewards import references as reference_rewards
from aligngym.rewards import text as text_rewards

HOSTILE = {
    "empty": "",
    "space": " \n\t\u2003",
    "nul": "a\x00b \x00",
    "one word of 1 MB": "a" * 1_000_000,
    "words, 1 MB": "but happy sad " * 70_000,
    "punctuation, 1 MB": "!'\"“.)" * 170_000,
    "sentences, 1 MB": "So. " * 250_000,
    "tags, 1 MB": "<think>" * 140_000,
    "braces, 1 MB": "\\frac{" * 160_000,
    "right to left": "\u202eשלום עולם مرحبا\u202c",
    "lone surrogate": "he was \ud83d happy \udc00",
    "combining": "e" + "\u0301" * 5_000,
    "emoji": "👩‍👩‍👧‍👦😊" * 2_000,
    "emoji after a word": "a" + "😊" * 100_000,
}
REWARDS = {
    "sentiment": Sentiment(),
    "sentiment by pieces": Sentiment(window=12),
    "density": SentimentDensity(),
    "repetition": Repetition((1, 2, 3, 4)),
    "length in words": Length(5, 9, 3.0),
    "length in characters": Length(5, unit="characters"),
    "regex": Regex("happy"),
    "format": Format(),
    "exact match": ExactMatch("references", r"(\w+)"),
    "bleu": Bleu(),
    "sacrebleu": Bleu(smoothing="exp"),
    "rouge": Rouge(),
    "story": story_sentiment(),
}


@pytest.mark.parametrize("name", REWARDS)
def test_hostile_text(name):
    reward = REWARDS[name]
    for kind, text in HOSTILE.items():
        begun = time.process_time()
        scores = reward.score([text], ["prompt"], references=["he was happy with his new red ball"])
        assert time.process_time() - begun < 5, kind
        assert scores.reasons == [None] and np.isfinite(scores.values).all() and abs(scores.values[0]) <= 1, kind


def test_hostile_text_through_math():
    reward = MathAnswer(timeout=3.0)
    begun = time.monotonic()
    scores = reward.score(list(HOSTILE.values()), answer=["3"] * len(HOSTILE))
    assert time.monotonic() - begun < 60
    for value, reason in zip(scores.values, scores.reasons, strict=True):
        assert value == 0.0 if reason is None else np.isnan(value)


def test_sentiment():
    good, bad = Sentiment()(["She was very happy.", "It was a terrible day."])
    assert good > 0.5 and bad < -0.4
    assert Sentiment()(["", "the of and"]) == [0.0, 0.0]
    both = "She was very happy. It was a terrible day."
    assert Sentiment(window=5)([both]) == [pytest.approx((4 * good + 5 * bad) / 9)]
    assert Sentiment(window=5)([both.replace(". ", " ")])[0] != pytest.approx(Sentiment()([both])[0])
    assert Sentiment(window=12)(['"', ""]) == [0.0, 0.0]
    with pytest.raises(ValueError, match="window must be a positive number of words or None, got 0"):
        Sentiment(window=0)


def test_sentiment_density():
    assert SentimentDensity()(["happy love", "the happy dog ran", "the dog", ""]) == [1.0, 0.25, 0.0, 0.0]


def test_repetition_closed_form():
    assert Repetition((1,))(["a b a b", "a b c d", ""]) == [0.5, 0.0, 0.0]
    assert Repetition((2,))(["a b a b"]) == [pytest.approx(1 / 3)]
    assert Repetition((1, 2))(["a A a. "]) == [pytest.approx((1 - 2 / 4 + 1 - 2 / 3) / 2)]
    assert Repetition((2, 3))(["one"]) == [0.0]
    assert Repetition((2,))(["happy " * 101]) == [pytest.approx(0.99)]
    with pytest.raises(ValueError, match="orders must be one or more positive integers"):
        Repetition((0,))


def test_length():
    reward = Length(3, 5, margin=4.0)
    texts = ["a " * count for count in (0, 1, 3, 5, 7, 9, 20)]
    assert reward(texts) == [0.25, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert Length(2)(["a", "a b", "a " * 900]) == [0.0, 1.0, 1.0]
    assert Length(3, 3, unit="characters")(["abc", "ab", "abcd"]) == [1.0, 0.0, 0.0]
    assert Length(2, 2, 2, unit="tokens")(["x", "y"], completion_ids=[[1, 2], [1, 2, 3]]) == [1.0, 0.5]
    with pytest.raises(ValueError, match="Length reads column 'completion_ids'"):
        Length(2, unit="tokens")(["x"])
    with pytest.raises(ValueError, match="unit must be"):
        Length(2, unit="pages")
    for wrong in ({"low": -1}, {"low": 3, "high": 2}, {"low": 1, "margin": -1.0}):
        with pytest.raises(ValueError, match="needs 0 <= low <= high and margin >= 0"):
            Length(**wrong)


def test_length_in_tokens_of_a_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    assert Length(2, 2, 2, "tokens", str(tmp_path))(["a a", "a b \ud83d", "a a a a"]) == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("reward", "module", "package"),
    [
        (Sentiment(), "vaderSentiment.vaderSentiment", "vaderSentiment"),
        (Bleu(), "sacrebleu.tokenizers.tokenizer_13a", "sacrebleu"),
        (Rouge("rouge9"), "rouge_score.rouge_scorer", "rouge-score"),
        (MathAnswer("references", timeout=None), "math_verify", "math-verify"),
    ],
)
def test_a_missing_library_is_named(reward, module, package, monkeypatch):
    for loader in (text_rewards._analyzer, reference_rewards._tokenize, reference_rewards._rouge, match._math_verify):
        loader.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        reward(["a"], references=["a"])
