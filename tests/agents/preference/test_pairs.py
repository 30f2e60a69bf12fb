"""Preference pairs: the best and the worst of a group, and texts as the episodes that would have made them."""

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.preference.pairs import Preferences, best_and_worst, text_preferences
from aligngym.agents.rollouts import collect
from aligngym.trajectories import Trajectories
from aligngym.wrappers import vector

NAN = float("nan")


def episodes_of(returns, groups):
    """One decision an episode: its own number."""
    count, rewards = len(returns), torch.tensor(returns)[:, None]
    flags = torch.ones(count, dtype=torch.bool)
    return Trajectories(
        observations=torch.zeros(count, 2), actions=torch.arange(count)[:, None], log_probs=torch.zeros(count, 1),
        mask=flags[:, None], rewards=rewards, terminated=flags, truncated=~flags, valid=~rewards[:, 0].isnan(),
        group=torch.tensor(groups),
    )  # fmt: skip


def picked(pairs):
    return list(zip(pairs.chosen.actions[:, 0].tolist(), pairs.rejected.actions[:, 0].tolist(), strict=True))


def test_the_best_and_the_worst_of_every_group():
    found = best_and_worst(episodes_of([0.1, 0.9, 0.5, -2.0, 3.0, -4.0], [7, 7, 7, 2, 2, 2]))
    assert picked(found) == [(4, 5), (1, 0)] and found.chosen.group.tolist() == [2, 7]
    assert (found.chosen.returns > found.rejected.returns).all()


def test_groups_may_be_interleaved():
    assert picked(best_and_worst(episodes_of([1.0, 5.0, 2.0, 4.0, 3.0, 6.0], [0, 1, 0, 1, 0, 1]))) == [(4, 0), (5, 3)]


def test_ties_and_invalid_rewards_give_no_pair():
    # equal returns; equal up to rounding; one valid episode only; none; of three one is invalid
    returns = [1.0, 1.0, 0.3, 0.3 + 1e-8, NAN, 2.0, NAN, NAN, NAN, 1.0, 2.0]
    found = best_and_worst(episodes_of(returns, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4]))
    assert picked(found) == [(10, 9)]
    assert len(best_and_worst(episodes_of([1.0, 1.0], [0, 0]))) == 0


def test_rows_must_belong_together():
    episodes = episodes_of([1.0, 2.0, 3.0], [0, 1, 2])
    with pytest.raises(ValueError, match="3 chosen and 2 rejected"):
        Preferences(episodes, episodes.select(torch.arange(2)))
    with pytest.raises(ValueError, match="differ in group"):
        Preferences(episodes, episodes.select(torch.tensor([1, 0, 2])))


def test_pairs_stack_select_and_have_a_fingerprint():
    pairs = best_and_worst(episodes_of([1.0, 2.0, 3.0, 1.0], [0, 0, 1, 1]))
    assert pairs.stacked().actions[:, 0].tolist() == [1, 2, 0, 3] and pairs.lengths.tolist() == [1, 1]
    swapped = pairs.select(torch.tensor([1, 0]))
    assert picked(swapped) == [(2, 3), (1, 0)]
    prints = {p.fingerprint() for p in (pairs, swapped, Preferences(pairs.rejected, pairs.chosen))}
    assert len(prints) == 3 and pairs.fingerprint() == pairs.to("cpu").fingerprint()


@pytest.fixture
def stories():
    def make(num_envs=6, **kwargs):
        return gym.make_vec("LLMAlign-v0", num_envs=num_envs, max_new_tokens=12, **kwargs)

    return make


def rows_of(episodes):
    texts, prompts = episodes.info["completion"], episodes.info["prompt"]
    return [{"prompt": p, "chosen": t, "rejected": "Sad."} for p, t in zip(prompts, texts, strict=True)]


def test_texts_become_the_episodes_that_a_policy_would_have_played(stories, tmp_path):
    """Sampled texts, written to a file and read again, are the same tokens after the same prompts."""
    from aligngym import LMPolicy

    env, policy = stories(), LMPolicy.from_pretrained("stories")
    seeds = list(range(10, 16))
    played = collect(env, policy, seeds=seeds, noise=RowNoise(seeds), group=torch.arange(6))
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows_of(played)) + "\n\n")
    pairs = text_preferences(stories(4), file)  # two rounds of the environment
    chosen = pairs.chosen
    assert torch.equal(chosen.actions, played.actions) and torch.equal(chosen.mask, played.mask)
    assert torch.equal(chosen.truncated, played.truncated) and torch.equal(chosen.terminated, played.terminated)
    assert played.truncated.all() and pairs.rejected.terminated.all()
    for name, values in played.observations.items():
        assert torch.equal(chosen.observations[name][:, : values.shape[1]].to(values.dtype), values)
        assert torch.equal(chosen.observations[name], pairs.rejected.observations[name])
    scored = policy.log_likelihood(chosen)
    torch.testing.assert_close(scored, played.log_probs.sum(1), atol=1e-3, rtol=0)
    tokenizer = env.unwrapped.tokenizer
    rejected = pairs.rejected.actions[0][pairs.rejected.mask[0]].tolist()
    assert rejected == [*tokenizer("Sad.", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert chosen.returns.tolist() == [1.0] * 6 and pairs.rejected.returns.tolist() == [0.0] * 6
    assert chosen.log_probs[chosen.mask].isnan().all() and (chosen.log_probs[~chosen.mask] == 0).all()


def test_reading_texts_leaves_the_environment_as_it_was(stories):
    env, other = (vector.PromptCurriculum(stories(2)) for _ in range(2))
    for e in (env, other):
        e.reset(seed=3)
    before = env.get_state()
    text_preferences(env, [{"prompt": "Tom", "chosen": "a", "rejected": "b"}] * 3)
    assert json.dumps(env.get_state(), default=str) == json.dumps(before, default=str)
    action = np.array([5, 6])
    assert np.array_equal(env.step(action)[0]["input_ids"], other.step(action)[0]["input_ids"])


def test_chats_and_further_fields(stories):
    env = stories(2, chat_template="{{ messages[0]['content'] }}:")
    rows = [{"prompt": [{"role": "user", "content": "Tom"}], "score": 3, "rejected": "No.",
             "chosen": [{"role": "assistant", "content": "Yes."}]}]  # fmt: skip
    pairs = text_preferences(env, rows)
    mask = pairs.chosen.observations["attention_mask"][0].bool()
    assert env.unwrapped.tokenizer.decode(pairs.chosen.observations["input_ids"][0][mask]) == "Tom:"
    assert pairs.chosen.info["completion"] == ["Yes."] and pairs.rejected.info["completion"] == ["No."]


def test_text_after_an_end_of_sequence_token_is_cut(stories):
    env = stories(2)
    pairs = text_preferences(env, [{"prompt": "Tom", "chosen": "a<eos>b", "rejected": ""}])
    assert pairs.chosen.lengths.tolist() == [2] and pairs.rejected.lengths.tolist() == [1]


PAIR = {"prompt": "Tom", "chosen": "a", "rejected": "b"}
BAD = {
    "no pairs": ([], "there are no pairs"),
    "missing field": ([PAIR, {"prompt": "Tom", "chosen": "a"}], "row 1: has no rejected"),
    "number": ([PAIR | {"chosen": 3}], "row 0: chosen is '3', expected a text"),
    "two messages": ([PAIR | {"rejected": [{"content": "a"}] * 2}], "row 0: rejected is"),
    "overlong prompt": ([PAIR, PAIR, PAIR | {"prompt": "a b c d " * 99}], r"rows from 2 on: .*max_prompt_tokens"),
    "no text as prompt": ([PAIR | {"prompt": 3}], "rows from 0 on: .*expected a string"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pairs_are_named(case, stories):
    env = stories(2)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ValueError, match=BAD[case][1]):
        text_preferences(env, BAD[case][0])
    assert env.get_state() == before


def test_bad_files_are_named(stories, tmp_path):
    env = stories(2)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist"):
        text_preferences(env, tmp_path / "none.jsonl")
    for text, message in (("{}\n{", "line 2: is no JSON"), ("[1]", "line 1: is a list"), ("\n", "no pairs")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            text_preferences(env, str(tmp_path / "bad.jsonl"))
    with pytest.raises(ValueError, match="has no tokenizer"):
        text_preferences(gym.make_vec("TabularBandit-v0", num_envs=2), [PAIR])


def test_a_tokenizer_without_an_end_needs_words(tiny_env):
    env = tiny_env(2)
    env.unwrapped.terminal_actions = ()
    pairs = text_preferences(env, [{"prompt": "w1", "chosen": "w2 w3", "rejected": "w4"}])
    assert pairs.chosen.lengths.tolist() == [2] and pairs.chosen.truncated.all()
    with pytest.raises(ValueError, match="a completion is empty"):
        text_preferences(env, [{"prompt": "w1", "chosen": "", "rejected": "w4"}])


def test_pairs_on_trajectories_with_extras_keep_them():
    episodes = episodes_of([1.0, 2.0], [0, 0])
    episodes = dataclasses.replace(episodes, extras={"std": torch.tensor([[0.1], [0.2]])})
    pairs = best_and_worst(episodes)
    assert pairs.stacked().extras["std"].flatten().tolist() == pytest.approx([0.2, 0.1])
