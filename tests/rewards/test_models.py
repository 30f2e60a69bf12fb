"""A sequence classifier as reward, on small random models made on the spot."""

import pickle

import numpy as np
import pytest
import torch

from aligngym.rewards import SequenceClassifierReward

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "good", "bad", "user", "assistant"]


def make(folder, labels, *, pad=True, template=None):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "[EOS]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]", **({"pad_token": "[PAD]"} if pad else {})
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, num_labels=len(labels), id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)}, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return make(tmp_path_factory.mktemp("classifier"), ["bad", "good"])


@pytest.fixture(scope="module")
def scalar(tmp_path_factory):
    chat = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    return make(tmp_path_factory.mktemp("scalar"), ["reward"], pad=False, template=chat)


TEXTS = ["the cat sat", "a dog", "good good good bad", "the cat ran the dog sat", "bad"]


def test_batches_and_padding_do_not_matter(classifier):
    one_by_one = SequenceClassifierReward(classifier, label="good", batch_size=1)(TEXTS)
    together = SequenceClassifierReward(classifier, label="good", batch_size=4)(TEXTS)
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)
    assert len(set(one_by_one)) == len(TEXTS)


def test_outputs_agree_with_one_another(classifier):
    def scores(**options):
        return SequenceClassifierReward(classifier, **options).score(TEXTS).values

    good, bad = scores(label="good"), scores(label=0)
    np.testing.assert_allclose(scores(label=1, output="probability"), 1 / (1 + np.exp(bad - good)), rtol=1e-5)
    log = scores(label="bad", output="log_probability")
    np.testing.assert_allclose(log, np.log(1 / (1 + np.exp(good - bad))), rtol=1e-5)


def test_a_reward_model_with_one_output(scalar):
    logit = SequenceClassifierReward(scalar).score(TEXTS).values
    probability = SequenceClassifierReward(scalar, output="probability").score(TEXTS).values
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logit)), rtol=1e-5)


def test_what_is_read(scalar):
    both, pair = (SequenceClassifierReward(scalar, read=read) for read in ("both", "pair"))
    joined = SequenceClassifierReward(scalar)(["the cat sat"])
    np.testing.assert_allclose(both([" sat"], ["the cat"]), joined, atol=1e-6)
    np.testing.assert_allclose(pair(["sat"], ["the cat"]), joined, atol=1e-6)
    prompt, reply = [{"role": "user", "content": "the cat"}], [{"role": "assistant", "content": "sat"}]
    expected = SequenceClassifierReward(scalar)(["user the cat assistant sat"])
    np.testing.assert_allclose(both([reply], [prompt]), expected, atol=1e-6)
    np.testing.assert_allclose(pair([reply], [prompt]), joined, atol=1e-6)
    with pytest.raises(ValueError, match="read='both' needs prompts, got None"):
        both(["a"])


def test_long_inputs_lose_their_beginning(scalar):
    reward = SequenceClassifierReward(scalar, max_length=3)
    np.testing.assert_allclose(reward(["dog dog dog the cat sat"]), reward(["the cat sat"]), atol=1e-6)
    assert np.isfinite(SequenceClassifierReward(scalar)(["cat " * 5000])).all()


def test_hostile_text(scalar):
    reward = SequenceClassifierReward(scalar, batch_size=1)
    scores = reward.score(["he \ud83d cat", "\x00", "\u202eשלום", "cat " * 200_000, ""])
    assert scores.scored[:4].all()
    assert scores.reasons[4] == "ValueError: the tokenizer gives no token for an empty text"


def test_labels_and_arguments_are_checked(classifier):
    for label in (None, "great", 2):
        with pytest.raises(ValueError, match=r"classes 'bad' \(0\), 'good' \(1\); got"):
            SequenceClassifierReward(classifier, label=label).load()
    with pytest.raises(ValueError, match="output must be"):
        SequenceClassifierReward(classifier, output="rank")
    with pytest.raises(ValueError, match="read must be"):
        SequenceClassifierReward(classifier, read="prompt")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        SequenceClassifierReward(classifier, batch_size=0)


def test_the_model_is_not_pickled(scalar):
    reward = SequenceClassifierReward(scalar)
    expected = reward(TEXTS)
    data = pickle.dumps(reward)
    assert len(data) < 2000 and pickle.loads(data)(TEXTS) == expected


def test_a_model_that_returns_nan_fails(scalar):
    reward = SequenceClassifierReward(scalar)
    reward.load()
    torch.nn.init.constant_(reward._loaded[1].score.weight, float("nan"))
    assert reward.score(["cat"]).reasons == ["the model returned nan"]
