"""Language models that answer texts: the same tokens as token by token, probabilities of choices, forms of prompts."""

import pytest
import torch

from aligngym.agents.policies.lm import LMPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.policies.text_player import TextPlayer
from aligngym.envs.text.llm_align import load_tokenizer

PROMPTS = ["Once upon a time", "One day, a little girl named Lily found a"]


@pytest.fixture(scope="module")
def player():
    return TextPlayer(LMPolicy.from_pretrained("stories"), load_tokenizer("stories"), max_new_tokens=6)


def test_answers_are_those_of_hugging_face(player):
    """The likeliest tokens, one prompt at a time, by transformers' own loop."""
    expected = []
    for prompt in PROMPTS:
        ids = player.tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = player.policy.model.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
        expected.append(player.tokenizer.decode(written, skip_special_tokens=True))
    assert player(PROMPTS, RowNoise([0, 1]), deterministic=True) == expected


def test_answers_end_with_the_tokenizers_last_token(player):
    """Which is not said: here the third of the likeliest ones."""
    tokens = player.tokens(PROMPTS[:1], RowNoise([0]), deterministic=True)[0]
    tokenizer = load_tokenizer("stories")
    tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(tokens[2])})
    ended = TextPlayer(player.policy, tokenizer, max_new_tokens=6)
    assert ended.tokens(PROMPTS[:1], RowNoise([0]), deterministic=True) == [tokens[:3]]
    assert ended(PROMPTS[:1], RowNoise([0]), deterministic=True) == [player.tokenizer.decode(tokens[:2])]


def test_answers_depend_on_their_own_stream(player):
    both = player(PROMPTS, RowNoise([5, 6]))
    assert both == player(PROMPTS, RowNoise([5, 6])) and both[1:] == player(PROMPTS[1:], RowNoise([6]))


def test_prefix_begins_every_answer(player):
    named = TextPlayer(player.policy, player.tokenizer, max_new_tokens=4, prefix=" there was")
    answers = named(PROMPTS, RowNoise([0, 1]), deterministic=True)
    assert all(answer.startswith(" there was") for answer in answers)
    plain = TextPlayer(player.policy, player.tokenizer, max_new_tokens=4)
    given = plain([prompt + " there was" for prompt in PROMPTS], RowNoise([0, 1]), deterministic=True)
    assert answers == [" there was" + answer for answer in given]


def test_choice_probabilities_are_mean_log_probabilities(player):
    names = [" there was a girl", " zebra"]
    found = player.choice_probabilities(PROMPTS[:1], [names])
    scores = []
    for name in names:
        start, rest = (
            player.tokenizer(t, add_special_tokens=s)["input_ids"] for t, s in ((PROMPTS[0], True), (name, False))
        )
        with torch.no_grad():
            log_p = player.policy.model(input_ids=torch.tensor([start + rest])).logits[0].log_softmax(-1)
        scores.append(sum(log_p[len(start) - 1 + i, token] for i, token in enumerate(rest)) / len(rest))
    assert found[0] == pytest.approx(torch.stack(scores).softmax(0).tolist(), abs=1e-5)
    assert found[0, 0] > 0.9


def test_chat_template_is_used_where_there_is_one(player):
    tokenizer = load_tokenizer("stories")
    tokenizer.chat_template = "{% for m in messages %}User: {{ m.content }}\n{% endfor %}Answer:"
    chat = TextPlayer(player.policy, tokenizer, prefix=" I")
    ids, mask = chat.encoded(["Hello", "Hello there"])
    assert mask.sum(1).tolist() == [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (
        "User: Hello\nAnswer: I", "User: Hello there\nAnswer: I",
    )] and ids.shape == mask.shape  # fmt: skip

    chatless = TextPlayer(player.policy, tokenizer, chat=False)
    assert chatless.encoded(["Hello"])[0].tolist() == [tokenizer("Hello")["input_ids"]]


def test_nothing_that_is_asked_begins_with_the_first_token(player):
    tokenizer = load_tokenizer("stories")
    tokenizer.chat_template = "{{ '' }}"
    ids, mask = TextPlayer(player.policy, tokenizer).encoded(["Hello"])
    assert ids.tolist() == [[tokenizer.bos_token_id]] and mask.tolist() == [[1]]


def test_wrong_arguments_are_named(player):
    with pytest.raises(ValueError, match="chat template"):
        TextPlayer(player.policy, player.tokenizer, chat=True)
    with pytest.raises(ValueError, match="max_new_tokens"):
        TextPlayer(player.policy, player.tokenizer, max_new_tokens=0)
