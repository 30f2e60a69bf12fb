"""RecordTrajectories: what is in the files, who can read them, and what survives a crash."""

import json
import multiprocessing
import sys

import datasets
import gymnasium as gym
import numpy as np
import pytest

from aligngym.wrappers import RecordTrajectories, TransformReward, vector
from aligngym.wrappers.record_trajectories import append_lines, mend, preference_lines


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def record(prompt, completion, reward, **columns):
    info = {"prompt": prompt, "completion": completion, "columns": columns}
    return {"reward": reward, "terminated": True, "actions": [1], "terms": {}, "info": info}


def test_both_faces_write_every_episode(make, play, tmp_path):
    files = []
    for face in ("step", "rollout"):
        env = vector.RecordTrajectories(make(), tmp_path / face)
        episodes = play(env, [1, 1, 2, 3], face)
        written = lines(env.path)
        firsts = {line["completion"]: line for line in written}
        for i, text in enumerate(episodes.info["completion"]):
            line, reward = firsts[text], float(episodes.returns[i])
            assert (
                line["prompt"] == episodes.info["prompt"][i] and line["level"] == episodes.info["columns"][i]["level"]
            )
            assert line["reward"] == (reward if np.isfinite(reward) else None) or np.float32(line["reward"]) == reward
            assert line["invalid"] == (episodes.info["invalid"][i] or "")
            assert line["episode_tokens"] == episodes.lengths[i] and line["terminated"] == episodes.terminated[i]
        files.append(written)
    assert len(files[1]) == 4 and len(files[0]) >= 4


def test_read_back_by_datasets_and_by_the_environment(make, play, tmp_path):
    env = vector.RecordTrajectories(make(), tmp_path)
    for seed in range(5):
        play(env, [seed] * 4)
    table = datasets.load_dataset("json", data_files=str(env.path), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(table) == 20 and {"prompt", "completion", "reward", "reward/sentiment", "level"} <= set(
        table.column_names
    )
    again = make(2, prompts=env.path, reward="sentiment")
    assert again.reset(seed=0)[0]["input_ids"].shape[0] == 2


def test_preference_pairs_of_groups(make, play, tmp_path):
    by_length = vector.TransformReward(make(6), lambda completions, **_: [float(len(text)) for text in completions])
    env = vector.RecordTrajectories(by_length, tmp_path, "preferences")
    episodes = play(env, [1, 1, 1, 2, 2, 2])
    written = lines(env.path)
    for line in written:
        rows = [i for i in range(6) if episodes.info["prompt"][i] == line["prompt"]]
        rewards = {episodes.info["completion"][i]: float(episodes.returns[i]) for i in rows}
        assert line["score_chosen"] == max(rewards.values()) == rewards[line["chosen"]]
        assert line["score_rejected"] == min(rewards.values()) == rewards[line["rejected"]]
        assert line["chosen"] != line["rejected"]
    assert 1 <= len(written) <= 2
    table = datasets.load_dataset("json", data_files=str(env.path), cache_dir=str(tmp_path / "cache"))["train"]
    assert {"prompt", "chosen", "rejected"} <= set(table.column_names)


def test_pairs_need_a_margin_and_two_valid_texts():
    group = [record("p", "a", 1.0), record("p", "b", 2.0), record("p", "c", np.nan), record("q", "a", 0.0)]
    assert preference_lines(group, 0.5) == [
        {"prompt": "p", "chosen": "b", "rejected": "a", "score_chosen": 2.0, "score_rejected": 1.0}
    ]
    assert preference_lines(group, 1.0) == []
    assert preference_lines([record("p", "same", 1.0), record("p", "same", 3.0)], 0.0) == []
    chat = [{"role": "user", "content": "hi"}]
    line = preference_lines([record(chat, "a", 1.0, k=1), record(chat, "b", 2.0, k=1)], 0.0)[0]
    assert line["chosen"] == [{"role": "assistant", "content": "b"}] and line["k"] == 1 and line["prompt"] == chat


def test_hostile_text_is_written(tmp_path):
    path = tmp_path / "x.jsonl"
    texts = ["\ud800 lone", "\x00", "a\u2028b\nc", "שלום", ""]
    append_lines(path, [{"prompt": text, "reward": np.inf, "deep": {"x": [np.nan, text]}} for text in texts])
    assert [line["prompt"] for line in lines(path)] == ["\ufffd lone", *texts[1:]]
    assert lines(path)[0]["reward"] is None and lines(path)[0]["deep"]["x"][0] is None
    table = datasets.load_dataset("json", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert table["prompt"][2] == "a\u2028b\nc"


@pytest.mark.parametrize(
    ("tail", "kept"), [('{"a": 2', [1, 3]), ('{"a": 2}', [1, 2, 3]), ("", [1, 3]), ("x" * 200_000, [1, 3])]
)
def test_file_is_mended_and_appended_to(tmp_path, tail, kept):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' + tail)
    if tail and 2 not in kept:
        with pytest.warns(UserWarning, match="half a line"):
            mend(path)
    else:
        mend(path)
    append_lines(path, [{"a": 3}])
    assert [line["a"] for line in lines(path)] == kept


def test_resuming_appends_and_close_writes_the_rest(make, play, tmp_path):
    env = vector.RecordTrajectories(make(), tmp_path)
    play(env, [1, 2, 3, 4])
    twin = vector.RecordTrajectories(make(), tmp_path)
    twin.reset(seed=0)
    eos = twin.unwrapped.terminal_actions[0]
    twin.step(np.array([eos, 5, 5, eos]))
    state = json.loads(json.dumps(twin.get_state()))
    assert len(lines(twin.path)) == 4  # the batch is not complete
    twin.close()
    assert len(lines(twin.path)) == 6
    resumed = vector.RecordTrajectories(make(), tmp_path / "other")
    resumed.reset(seed=0)
    resumed.set_state(state)
    resumed.flush()
    assert lines(resumed.path) == lines(twin.path)[4:]


def _write(path, name):
    for i in range(50):
        append_lines(path, [{"name": name, "i": i, "text": "x" * 5000}] * 3)


def test_processes_share_a_file(tmp_path):
    path, context = tmp_path / "x.jsonl", multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(path, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(lines(path)) == 300


def test_refuses(make, make_one, tmp_path):
    with pytest.raises(ValueError, match="format is 'csv', expected one of"):
        RecordTrajectories(make_one(), tmp_path, "csv")
    with pytest.raises(ValueError, match="margin is -1"):
        RecordTrajectories(make_one(), tmp_path, margin=-1)
    with pytest.raises(ValueError, match="wrap a batch of 2 rows or more"):
        RecordTrajectories(make_one(), tmp_path, "preferences")
    with pytest.raises(ValueError, match="wrap each before batching"):
        vector.RecordTrajectories(make(), tmp_path, "minari")
    env = RecordTrajectories(gym.make("TabularBandit-v0"), tmp_path)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="no 'completion', only"):
        env.step(0)


def test_rewards_are_those_at_its_place_in_the_stack(make_one, tmp_path):
    env = TransformReward(RecordTrajectories(make_one(reward="sentiment"), tmp_path), lambda r: r + 100)
    env.reset(seed=0)
    *_, reward, terminated, _, _ = env.step(env.unwrapped.batch.terminal_actions[0])
    assert terminated and reward > 99 and lines(tmp_path / "completions.jsonl")[0]["reward"] < 2


def test_minari_is_optional(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"aligngym\[robot\]"):
        RecordTrajectories(gym.make("CartPole-v1"), tmp_path, "minari")


def test_control_episodes_become_a_minari_dataset(tmp_path):
    minari = pytest.importorskip("minari")
    for part in range(2):
        env = RecordTrajectories(gym.make("CartPole-v1"), tmp_path, "minari")
        seen = []
        for seed in range(2):
            observation, _ = env.reset(seed=seed)
            seen.append([observation])
            done = False
            while not done:
                observation, _, terminated, truncated, _ = env.step(len(seen[-1]) % 2)
                seen[-1].append(observation)
                done = terminated or truncated
        env.close()
        dataset = minari.MinariDataset(tmp_path / "data")
        assert dataset.total_episodes == 2 * (part + 1)
    for episode, observations in zip(list(dataset.iterate_episodes())[2:], seen, strict=True):
        np.testing.assert_array_equal(episode.observations, np.stack(observations))
        assert episode.rewards.sum() == len(observations) - 1 and episode.terminations[-1]
    assert dataset.recover_environment().spec.id == "CartPole-v1"
    with pytest.raises(ValueError, match="choose another folder"):
        RecordTrajectories(gym.make("TabularBandit-v0"), tmp_path, "minari")
    nested = RecordTrajectories(gym.make("Blackjack-v1"), tmp_path / "nested", "minari")
    nested.reset(seed=0)
    nested.step(0)
    assert minari.MinariDataset(tmp_path / "nested" / "data").total_episodes == 1


def test_a_minari_dataset_in_a_relative_folder(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        env = RecordTrajectories(gym.make("Blackjack-v1"), "here", "minari")
        env.reset(seed=0)
        monkeypatch.chdir(tmp_path.parent)  # the folder is the one that it was when recording began
        assert env.step(0)[2]
        monkeypatch.chdir(tmp_path)
        env.close()
    assert minari.MinariDataset(tmp_path / "here" / "data").total_episodes == 2
