"""Evaluation, checkpoints, progress and their state through a resume, on a language model of sixteen words."""

import io
import json
import math

import numpy as np
import pytest
import torch

from aligngym.agents.callbacks import (
    Callback,
    CallbackList,
    CheckpointCallback,
    EvaluationCallback,
    ProgressBar,
    checkpoints,
    read_jsonl,
    read_table,
    write_table,
)
from aligngym.agents.checkpoint import load_checkpoint
from aligngym.agents.grpo import GRPO, GRPOConfig

CONFIG = GRPOConfig(episodes_per_iteration=8, group_size=4, learning_rate=0.02)


@pytest.fixture
def make_agent(tiny_env, tiny_policy):
    def make(folder=None, seed=0):
        return GRPO(tiny_env(8), tiny_policy(), CONFIG, seed=seed, folder=folder)

    return make


class Recorder(Callback):
    """Keeps the metrics of every iteration."""

    def __init__(self):
        self.metrics = []

    def on_iteration(self, agent, episodes, metrics):
        self.metrics.append((agent.episodes, dict(metrics)))
        return True


class Stop(Callback):
    def on_iteration(self, agent, episodes, metrics):
        return False


def test_evaluates_at_the_start_in_between_and_at_the_target(make_agent, tiny_env, tmp_path):
    evaluation, recorder = EvaluationCallback(tiny_env(4), episodes=10, every=16), Recorder()
    make_agent(tmp_path).learn(40, [evaluation, recorder])
    assert [row["episodes"] for row in evaluation.history] == [0, 16, 32, 40]
    assert [at for at, metrics in recorder.metrics if "eval/reward_mean" in metrics] == [16, 32, 40]
    assert evaluation.last is not None and len(evaluation.last.returns) == 10
    rows = read_table(tmp_path / "eval.csv")
    assert rows == [{k: v for k, v in row.items() if math.isfinite(v)} for row in evaluation.history]
    assert {"reward_mean", "reward_se", "kl", "length_mean"} <= set(rows[0])
    logged = [row for path in tmp_path.glob("progress*.csv") for row in read_table(path)]
    assert [r["time/episodes"] for r in logged if "eval/reward_mean" in r] == [0, 16, 32, 40]


def test_every_0_evaluates_at_both_ends_only(make_agent, tiny_env):
    evaluation = EvaluationCallback(tiny_env(4), episodes=4)
    make_agent().learn(24, evaluation)
    assert [row["episodes"] for row in evaluation.history] == [0, 24]


def test_evaluation_does_not_change_training(make_agent, tiny_env):
    watched = make_agent().learn(24, EvaluationCallback(tiny_env(4), episodes=8, every=8))
    alone = make_agent().learn(24)
    for a, b in zip(watched.policy.parameters(), alone.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_best_is_the_checkpoint_with_the_highest_reward(make_agent, tiny_env, tmp_path):
    evaluation = EvaluationCallback(tiny_env(8), episodes=32, every=8)
    make_agent(tmp_path).learn(64, evaluation)
    means = {row["episodes"]: row["reward_mean"] for row in evaluation.history}
    state = load_checkpoint(tmp_path / "best")[1]
    assert state["episodes"] == max(means, key=means.get)
    best = GRPO.load(tmp_path / "best", tiny_env(8))
    assert best.evaluate(tiny_env(8), 32).mean == pytest.approx(max(means.values()), abs=1e-6)


def test_samples_show_the_same_prompts_at_every_evaluation(make_agent, tiny_env, tmp_path):
    evaluation = EvaluationCallback(tiny_env(4), episodes=4, every=16, samples=2)
    make_agent(tmp_path).learn(16, evaluation)
    samples = read_jsonl(tmp_path / "samples.jsonl")
    assert samples == json.loads(json.dumps(evaluation.samples))
    assert [(s["episodes"], s["sample"]) for s in samples] == [(0, 0), (0, 1), (16, 0), (16, 1)]
    assert [s["prompt"] for s in samples[:2]] == [s["prompt"] for s in samples[2:]]
    assert all(isinstance(s["completion"], str) and np.isfinite(s["reward"]) for s in samples)


def test_an_invalid_reward_is_never_best(make_agent, tiny_env, tmp_path):
    def failing(completions, **_):
        return [math.nan] * len(completions)

    evaluation = EvaluationCallback(tiny_env(4, reward=failing), episodes=4)
    make_agent(tmp_path).learn(8, evaluation)
    assert not (tmp_path / "best").exists()
    assert [s["reward"] for s in evaluation.samples] == [None] * 6
    assert "reward_mean" not in read_table(tmp_path / "eval.csv")[0]


def test_a_resumed_run_writes_what_an_uninterrupted_one_writes(make_agent, tiny_env, tmp_path):
    def callbacks():
        return [EvaluationCallback(tiny_env(4), episodes=8, every=16), CheckpointCallback(24)]

    make_agent(tmp_path / "whole").learn(48, callbacks())
    make_agent(tmp_path / "parts").learn(48, callbacks())
    # The run goes on from its first checkpoint as if it had been killed after it: later rows are played again.
    checkpoint = tmp_path / "parts/checkpoints/episodes-000000024"
    agent = GRPO.load(checkpoint, tiny_env(8), run_folder=tmp_path / "parts")
    assert agent.episodes == 24
    agent.learn(24, callbacks())
    for name in ("eval.csv", "samples.jsonl"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    for folder in ("last", "best"):
        tensors = [load_checkpoint(tmp_path / run / folder)[0]["policy"] for run in ("whole", "parts")]
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_learning_again_continues_the_history(make_agent, tiny_env):
    agent, evaluation = make_agent(), EvaluationCallback(tiny_env(4), episodes=4)
    agent.learn(8, evaluation).learn(8, evaluation)
    assert [row["episodes"] for row in evaluation.history] == [0, 8, 16]


def test_other_callbacks_do_not_receive_the_state_of_the_last_run(make_agent, tiny_env):
    agent = make_agent()
    agent.learn(8, EvaluationCallback(tiny_env(4), episodes=4))
    agent.learn(8, Recorder())


def test_checkpoints_are_written_and_old_ones_deleted(make_agent, tmp_path):
    make_agent().learn(64, CheckpointCallback(16, tmp_path, keep=2))
    assert [p.name for p in checkpoints(tmp_path)] == ["episodes-000000048", "episodes-000000064"]
    assert load_checkpoint(tmp_path / "episodes-000000048")[1]["episodes"] == 48


def test_keep_0_keeps_all_and_touches_no_other_folder(make_agent, tmp_path):
    (tmp_path / "episodes-of-mine").mkdir()
    make_agent().learn(32, CheckpointCallback(8, tmp_path, keep=0))
    assert len(checkpoints(tmp_path)) == 4
    assert (tmp_path / "episodes-of-mine").is_dir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CheckpointCallback(0), "every=0"),
        (lambda: CheckpointCallback(8, keep=-1), "keep=-1"),
        (lambda: EvaluationCallback(None, episodes=1), "episodes=1"),
        (lambda: EvaluationCallback(None, every=-1), "every=-1"),
    ],
)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_checkpoints_need_a_folder(make_agent):
    with pytest.raises(ValueError, match="no folder"):
        make_agent().learn(8, CheckpointCallback(8))


def test_progress_in_a_pipe_is_a_line_every_tenth(make_agent):
    stream = io.StringIO()
    make_agent().learn(160, ProgressBar(stream))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("160/160 episodes  reward ") and "KL" in lines[-1] and "episodes/s" in lines[-1]


def test_progress_in_a_terminal_is_a_bar_that_gives_the_cursor_back(make_agent):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    make_agent().learn(16, ProgressBar(stream))
    text = stream.getvalue()
    assert "16/16" in text and "reward" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # shown again after it was hidden


def test_one_callback_stops_training_and_all_are_called(make_agent):
    recorder = Recorder()
    agent = make_agent().learn(80, [Stop(), recorder])
    assert agent.episodes == 8
    assert len(recorder.metrics) == 1


def test_callbacks_of_one_class_keep_their_states_apart():
    pair = [EvaluationCallback(None), EvaluationCallback(None)]
    CallbackList(pair).set_state(
        {"EvaluationCallback": {"at": 1, "best": 0.5}, "EvaluationCallback-2": {"at": 2, "best": 0.7}}
    )
    assert CallbackList(pair).get_state() == {
        "EvaluationCallback": {"at": 1, "best": 0.5},
        "EvaluationCallback-2": {"at": 2, "best": 0.7},
    }


def test_the_base_callback_does_nothing(make_agent):
    agent = make_agent().learn(8, Callback())
    assert agent.callback.get_state() == {}


def test_tables_survive_a_round_trip(tmp_path):
    rows = [{"a": 1.0}, {"a": 0.1 + 0.2, "b": 2.5}]
    write_table(tmp_path / "t.csv", rows)
    assert read_table(tmp_path / "t.csv") == rows
    assert read_table(tmp_path / "none.csv") == []
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_a_table_read_and_written_again_is_the_same_file(tmp_path):
    rows = [{"a": math.nan, "b": 1.0, "c": math.nan}, {"a": 2.0, "b": math.nan, "c": math.nan}]
    write_table(tmp_path / "t.csv", rows)
    text = (tmp_path / "t.csv").read_text()
    assert text == "b,a\n1,\n,2\n"
    write_table(tmp_path / "t.csv", read_table(tmp_path / "t.csv"))
    assert (tmp_path / "t.csv").read_text() == text
