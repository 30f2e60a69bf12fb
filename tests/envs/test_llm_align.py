"""LLMAlign-v0: the token process, text that is not friendly, rewards that fail, and another library's agent on it."""

from __future__ import annotations

import json
import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.policies.policy import RowNoise
from aligngym.envs.text.llm_align import load_tokenizer, uniform
from aligngym.envs.text.prompts import well_formed

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HOSTILE = {
    "empty": "",
    "nul": "a\0b",
    "megabyte": "once upon a time " * 60_000,
    "one long word": "a" * 1_000_000,
    "right to left": "\u202eשלום עולם مرحبا",
    "lone surrogate": "a\ud800b\udfff",
    "combining": "e" + "\u0301" * 50,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈",
    "special tokens in words": "<eos><bos><pad>",
    "spaces": " \t\r\n ",
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("stories")


def finish(env, token: int, steps: int = 100):
    for _ in range(steps):
        *_, terminated, truncated, _ = outcome = env.step(token)
        if terminated or truncated:
            return outcome
    raise AssertionError("the episode does not end")


def test_the_token_process(make_llm, tokenizer) -> None:
    env = make_llm(2, prompts=["Once upon a time"], max_prompt_tokens=10, max_new_tokens=3)
    prompt = tokenizer("Once upon a time")["input_ids"]
    word, eos = tokenizer.encode(" cat", add_special_tokens=False)[0], tokenizer.eos_token_id
    observation, _ = env.reset(seed=0)
    assert observation["input_ids"].shape == (2, 13)
    assert observation["input_ids"].dtype == np.int64 and observation["attention_mask"].dtype == np.int8
    assert observation["input_ids"][0].tolist() == prompt + [tokenizer.pad_token_id] * (13 - len(prompt))
    assert observation["attention_mask"].sum(1).tolist() == [len(prompt)] * 2

    observation, rewards, terminated, truncated, _ = env.step([word, word])
    assert observation["input_ids"][1, : len(prompt) + 1].tolist() == [*prompt, word]
    assert not rewards.any() and not terminated.any() and not truncated.any()

    _, _, terminated, truncated, infos = env.step([eos, word])
    assert terminated.tolist() == [True, False] and not truncated.any()
    assert (
        infos["final_info"]["completion"][0] == tokenizer.decode([word])
        and infos["final_info"]["completion"][1] is None
    )
    assert infos["final_info"]["prompt"][0] == "Once upon a time"
    assert infos["final_info"]["episode_tokens"].tolist() == [2, 0]
    assert infos["final_obs"][0]["input_ids"][len(prompt) : len(prompt) + 2].tolist() == [word, eos]

    _, _, terminated, truncated, infos = env.step([word, word])
    assert not terminated.any() and truncated.tolist() == [False, True]
    assert infos["final_info"]["completion"][1] == tokenizer.decode([word] * 3)


def test_end_of_sequence_at_the_last_token_terminates(make_llm, tokenizer) -> None:
    env = make_llm(1, max_new_tokens=1)
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step([tokenizer.eos_token_id])
    assert terminated.all() and not truncated.any()


def test_reward_sees_prompts_columns_and_token_ids(make_llm) -> None:
    calls = []

    def spy(prompts, completions, completion_ids, answer, **columns):
        calls.append((prompts, completions, completion_ids, answer))
        return [float(len(ids)) for ids in completion_ids]

    rows = [{"prompt": "A cat", "answer": "x", "n": 1}, {"prompt": "A dog", "answer": None, "n": 2.5}]
    env = make_llm(2, prompts=rows, reward=spy, max_new_tokens=2)
    env.reset(options={"prompt_index": np.array([0, 1])})
    env.step([5, 6])
    _, rewards, *_, infos = env.step([7, 8])
    assert rewards.tolist() == [2.0, 2.0] and len(calls) == 1
    assert calls[0][0] == ["A cat", "A dog"] and calls[0][2] == [[5, 7], [6, 8]] and calls[0][3] == ["x", None]
    assert infos["final_info"]["columns"]["n"].tolist() == [1.0, 2.5]
    assert infos["final_info"]["columns"]["answer"].tolist() == ["x", None]
    env.reset(options={"prompt": "Given"})
    env.step([5, 6])
    env.step([7, 8])
    assert calls[1][0] == ["Given"] * 2 and calls[1][3] == [None, None]


@pytest.mark.parametrize("name", HOSTILE)
def test_any_text_is_a_prompt(name: str, make_llm, tokenizer) -> None:
    text = HOSTILE[name]
    env = make_llm(2, prompts=["fine", text], overlong_prompts="truncate", reward=lambda completions, **_: [1.0, 1.0])
    for options in ({"prompt_index": 1}, {"prompt": text}):
        observation, _ = env.reset(seed=0, options=options)
        assert observation in env.observation_space and (observation["attention_mask"].sum(1) >= 1).all()
        for _ in range(4):
            *_, infos = env.step([3, 3])
        prompt = infos["final_info"]["prompt"][0]
        assert prompt == well_formed(text) and json.loads(json.dumps(prompt).encode()) == prompt
        json.dumps(env.get_state()).encode()
    if name == "empty":
        assert observation["input_ids"][0, 0] == tokenizer.bos_token_id and observation["attention_mask"][0].sum() == 1


def test_surrogate_pairs_are_kept_and_lone_ones_replaced() -> None:
    assert well_formed("\ud83d\ude00") == "😀" and well_formed("a\ud800b") == "a\ufffdb" and well_formed("é\0") == "é\0"


def test_any_token_decodes(make_llm) -> None:
    env = make_llm(1, prompts=["x"], max_new_tokens=1, reward=lambda completions, **_: [0.0])
    env.reset(seed=0)
    for token in range(0, int(env.single_action_space.n), 17):
        *_, infos = env.step([token])
        infos["final_info"]["completion"][0].encode()


def test_overlong_prompts(make_llm, tokenizer) -> None:
    long = "Once upon a time there was a little girl who liked to play outside"
    ids = tokenizer(long)["input_ids"]
    rows = [{"prompt": "A cat", "k": 0}, {"prompt": long, "k": 1}]
    with pytest.raises(
        ValueError, match=rf"row 1 .* {len(ids)} tokens, more than max_prompt_tokens=6: .*drop.*truncate"
    ):
        make_llm(1, prompts=rows, max_prompt_tokens=6)
    dropped = make_llm(1, prompts=rows, max_prompt_tokens=6, overlong_prompts="drop").unwrapped.table
    assert dropped.prompts == ["A cat"] and dropped.columns == {"k": [0]}
    with pytest.raises(ValueError, match="every prompt of prompts is longer"):
        make_llm(1, prompts=[long], max_prompt_tokens=6, overlong_prompts="drop")
    env = make_llm(1, prompts=rows, max_prompt_tokens=6, overlong_prompts="truncate")
    observation, _ = env.reset(options={"prompt_index": 1})
    assert observation["input_ids"][0, :6].tolist() == ids[-6:]
    env = make_llm(1, max_prompt_tokens=6, prompts=["A cat"], overlong_prompts="drop")
    with pytest.raises(ValueError, match=r"options\['prompt'\], entry 0"):
        env.reset(options={"prompt": long})


def test_chat_prompts(make_llm, tokenizer) -> None:
    chat = [{"role": "system", "content": "Be \ud800kind."}, {"role": "user", "content": "Tell"}]
    seen = []

    def spy(prompts, completions, **_):
        seen.append((prompts, completions))
        return [1.0] * len(prompts)

    env = make_llm(2, prompts=[chat, "plain"], chat_template=CHATML, max_prompt_tokens=40, reward=spy)
    observation, _ = env.reset(options={"prompt_index": np.array([0, 1])})
    states = [
        ids[: m.sum()].tolist() for ids, m in zip(observation["input_ids"], observation["attention_mask"], strict=True)
    ]
    texts = ["<system>Be \ufffdkind.<user>Tell<assistant>", "<user>plain<assistant>"]
    assert states == tokenizer(texts, add_special_tokens=False)["input_ids"]
    for _ in range(4):
        env.step([5, 5])
    assert seen[0][0][0][0]["content"] == "Be \ufffdkind." and seen[0][0][1] == "plain"
    assert seen[0][1][0] == [{"role": "assistant", "content": tokenizer.decode([5] * 4)}]
    assert seen[0][1][1] == tokenizer.decode([5] * 4)

    owner = pickle.loads(pickle.dumps(tokenizer))
    owner.chat_template = CHATML
    auto = make_llm(1, prompts=[chat], tokenizer=owner, max_prompt_tokens=40)
    assert (auto.reset(seed=0)[0]["input_ids"][0, :5] == observation["input_ids"][0, :5]).all()
    for template, message in ((None, "has no chat template"), (True, "has no chat template"), (False, "is False")):
        with pytest.raises(ValueError, match=message):
            make_llm(1, prompts=[chat], chat_template=template, max_prompt_tokens=40)
    env.reset(options={"prompt": chat})
    env.reset(options={"prompt": [chat, "x"]})


def nan_reward(completions, **_):
    return [math.nan] * len(completions)


def infinite_reward(completions, **_):
    return [math.inf] * len(completions)


def absent_reward(completions, **_):
    return [None] * len(completions)


def broken_reward(completions, **_):
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("reward", "reason"),
    [(nan_reward, "nan"), (infinite_reward, "inf"), (absent_reward, "does not apply"), (broken_reward, "out of order")],
)
def test_a_failing_reward_is_nan_with_a_reason(reward, reason: str, make_llm, random_policy, small, tokenizer) -> None:
    single = gym.make("LLMAlign-v0", **small("LLMAlign-v0", reward=reward)).unwrapped
    single.reset(seed=0)
    _, value, _, truncated, info = finish(single, 5)
    assert truncated and math.isnan(value) and reason in info["invalid"].lower()
    env = make_llm(2, reward=reward)
    policy = random_policy(env)
    episodes = env.rollout(policy, noise=RowNoise([0, 1]), seed=0)
    assert not episodes.valid.any() and torch.isnan(episodes.returns).all()
    assert all(reason in text.lower() for text in episodes.info["invalid"])


def test_one_failure_spoils_its_row_alone(make_llm, random_policy) -> None:
    env = make_llm(2, reward=lambda completions, **_: [1.0, math.nan])
    episodes = env.rollout(random_policy(env), noise=RowNoise([0, 1]), seed=0)
    assert episodes.valid.tolist() == [True, False] and episodes.info["invalid"][0] is None
    assert episodes.returns[0] == 1 and int(torch.isnan(episodes.rewards).sum()) == 1


def test_rewards_learn_how_many_episodes_have_ended(make_llm) -> None:
    from aligngym.rewards import as_reward

    reward = as_reward(lambda completions, **_: [1.0] * len(completions)).schedule([[0, 0.0], [4, 1.0]])
    env = make_llm(2, reward=reward, max_new_tokens=1)
    env.reset(seed=0)
    assert [env.step([5, 5])[1][0] for _ in range(3)] == [0.0, 0.5, 1.0]
    assert env.unwrapped.episodes == 6


def test_wrong_lengths_of_a_reward_are_told(make_llm, random_policy) -> None:
    env = make_llm(2, reward=lambda completions, **_: [1.0])
    env.reset(seed=0)
    try:
        for _ in range(4):
            *_, infos = env.step([5, 5])
    except ValueError as e:
        assert "1" in str(e)
    else:
        assert "1" in infos["final_info"]["invalid"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "hapiness"}, "hapiness"),
        ({"tokenizer": "/no/such/folder"}, "tokenizer is '/no/such/folder'"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
        ({"overlong_prompts": "cut"}, "overlong_prompts is 'cut', expected one of"),
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": None, "split": "test"}, "test"),
        ({"prompts": [{"prompt": "x", "completion_ids": [1]}]}, "completion_ids.*rename"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str, make_llm) -> None:
    with pytest.raises(ValueError, match=message):
        make_llm(1, **arguments)


def test_bad_reset_options_are_named(make_llm) -> None:
    env = make_llm(2)
    for value, message in (
        (["a"], "1 prompts, expected one prompt or a list of num_envs=2"),
        (5, "is int"),
        ([], "0 prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options={"prompt": value})
    with pytest.raises(TypeError, match="entry 1"):
        env.reset(options={"prompt": ["a", 5]})
    with pytest.raises(ValueError, match="at most one"):
        env.reset(options={"prompt": "a", "prompt_index": 0})
    with pytest.raises(ValueError, match=r"0 \.\.\. 3"):
        env.reset(options={"prompt_index": [0, 4]})


def test_prompts_given_for_some_rows(make_llm) -> None:
    env = make_llm(3)
    before, _ = env.reset(seed=0)
    mask = np.array([False, True, False])
    after, _ = env.reset(options={"prompt": ["a", "b", "c"], "reset_mask": mask})
    changed = (before["input_ids"] != after["input_ids"]).any(1)
    assert changed.tolist() == mask.tolist() and env.unwrapped._prompts[1] == "b"


def test_a_tokenizer_without_special_tokens(make_llm, tokenizer) -> None:
    from tokenizers import processors

    bare = pickle.loads(pickle.dumps(tokenizer))
    bare.eos_token = bare.bos_token = bare.pad_token = None
    bare.backend_tokenizer.post_processor = processors.Sequence([])
    env = make_llm(1, tokenizer=bare, max_new_tokens=2)
    assert env.unwrapped.terminal_actions == () and env.unwrapped.pad == 0
    env.reset(seed=0)
    env.step([tokenizer.eos_token_id])
    _, _, terminated, truncated, _ = env.step([tokenizer.eos_token_id])
    assert truncated.all() and not terminated.any()
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        make_llm(1, tokenizer=bare, prompts=["a", ""])


def test_tokenizer_from_a_folder(make_llm, tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    ours, theirs = make_llm(1), make_llm(1, tokenizer=tmp_path)
    assert (ours.reset(seed=0)[0]["input_ids"] == theirs.reset(seed=0)[0]["input_ids"]).all()


def test_a_spec_with_a_composed_reward_survives_json(small) -> None:
    from aligngym.rewards import as_reward

    reward = (0.5 * as_reward({"type": "length", "low": 3, "margin": 3}) + 1.0).clip(0.0, 1.2).to_dict()
    env = gym.make("LLMAlign-v0", **small("LLMAlign-v0", reward=reward))
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    for e in (env, again):
        e.reset(seed=0)
    assert 1.0 < finish(env, 300)[1] == finish(again, 300)[1] <= 1.2


def test_columns_that_gymnasium_cannot_pack_are_made_uniform(make_llm) -> None:
    assert uniform([1, 2]) == [1, 2] and uniform(["a", None]) == ["a", None] and uniform([[1], [2, 3]]) == [[1], [2, 3]]
    assert uniform([True, 2, 0.5]) == [1.0, 2.0, 0.5] and uniform(["a", 1]) == ["a", "1"]
    assert np.isnan(uniform([1, None])[1]) and uniform([{"a": 1}, {"a": "x"}]) == ["{'a': 1}", "{'a': 'x'}"]
    rows = [{"prompt": "a", "x": 1, "y": {"k": 1}}, {"prompt": "b", "x": None, "y": None}, {"prompt": "c", "x": "s"}]
    env = make_llm(3, prompts=rows, max_new_tokens=1)
    env.reset(options={"prompt_index": np.arange(3)})
    *_, infos = env.step([5, 5, 5])
    assert infos["final_info"]["columns"]["x"].tolist() == ["1", "None", "s"]


def test_the_language_model_steps_as_it_rolls_out(make_llm) -> None:
    """The real model, the default reward, groups of two: either face tells the same stories."""
    from aligngym.agents.policies.lm import LMPolicy

    env = make_llm(6, prompts=None, max_prompt_tokens=48, max_new_tokens=24)
    policy = LMPolicy.from_pretrained("stories")
    seeds, streams = [1, 1, 2, 2, 3, 3], [10, 11, 12, 13, 14, 15]
    whole = env.rollout(policy, noise=RowNoise(streams), seed=seeds)
    noise = RowNoise(streams)
    observation, _ = env.reset(seed=seeds)
    returns, running = np.zeros(6), np.ones(6, bool)
    for t in range(whole.mask.shape[1]):
        with torch.no_grad():
            decision = policy.act(observation, noise)
        observation, rewards, terminated, truncated, _ = env.step(decision.actions)
        assert whole.mask[:, t].tolist() == running.tolist()
        assert whole.actions[running, t].tolist() == decision.actions[running].tolist()
        torch.testing.assert_close(whole.log_probs[running, t], decision.log_probs[running], rtol=0, atol=1e-4)
        returns += rewards * running
        running &= ~(terminated | truncated)
    np.testing.assert_allclose(whole.returns, returns, atol=1e-6)
    assert len(set(whole.info["prompt"])) == 3 and len(set(whole.info["completion"])) == 6
    assert set(whole.terms) and all(text.strip() for text in whole.info["completion"])


def test_long_prompts_raise_no_warning(make_llm, capfd, caplog) -> None:
    make_llm(1, prompts=["once upon a time " * 1000], overlong_prompts="truncate")
    assert "longer than" not in capfd.readouterr().err + caplog.text


def test_stable_baselines3_trains_on_it_unchanged() -> None:
    from stable_baselines3 import PPO

    env = gym.make("LLMAlign-v0", max_prompt_tokens=32, max_new_tokens=4, overlong_prompts="truncate")
    agent = PPO("MultiInputPolicy", env, n_steps=16, batch_size=8, n_epochs=1, seed=0, device="cpu")
    before = [p.clone() for p in agent.policy.parameters()]
    agent.learn(32)
    assert agent.num_timesteps == 32 and agent._n_updates == 2
    assert any((a != b).any() for a, b in zip(before, agent.policy.parameters(), strict=True))
    assert len(agent.ep_info_buffer) >= 4


def test_gymnasiums_vector_statistics_see_the_rewards(make_llm) -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(
        make_llm(2, reward=lambda completions, **_: [3.0] * len(completions))
    )
    env.reset(seed=0)
    for _ in range(9):
        env.step([5, 5])
    assert env.return_queue[0] == 3.0
