"""PEBBLE's rounds: when the teacher is asked about what, how its answers are fitted, what the first one changes."""

import copy
import json
import threading
import urllib.request

import numpy as np
import pytest
import torch

from aligngym.agents.pbrl.human import HumanTeacher
from aligngym.agents.pbrl.reward_training import fit_reward_model
from aligngym.agents.pbrl.segments import sample_segments
from aligngym.agents.pebble import PEBBLE, PEBBLEConfig
from aligngym.trajectories import stack

from .small_pebble import LIMIT, SMALL, paying, small
from .small_sb3 import Metrics, equal, make_env


def test_the_teacher_is_asked_at_its_times_and_never_too_often():
    metrics, asked = Metrics(), []
    agent = small(make_env("Pendulum-v1", 1, max_episode_steps=LIMIT))
    ask = agent.ask

    def noted():
        asked.append(agent.model.num_timesteps)
        ask()

    agent.ask = noted
    agent.learn(240, metrics)
    assert asked == [60, 90, 120, 150]  # six, six, six, and two are left
    assert agent.queries == 20 and len(agent.preferences) == 20
    counts = [row["preferences/queries"] for row in metrics.rows]
    assert counts == [0, 0, 0, 6, 12, 12, 18, 20, 20, 20, 20, 20]
    assert "preferences/accuracy" not in metrics.rows[2] and 0 <= metrics.rows[3]["preferences/accuracy"] <= 1
    assert [row["preferences/answers"] for row in metrics.rows[3:]] == counts[3:]


def test_skipped_questions_count():
    """Of a teacher who skips whatever does not pay more than the usual return: every segment pays just that."""
    agent = small(paying(float, lambda r: 1.0 + 0 * r), teacher_skip=1.0).learn(200)
    assert agent.queries == 20 and agent.preferences is None
    assert not agent.buffer.exploring and np.isfinite(agent.buffer.rewards).all()
    kept = small(paying(float, lambda r: 1.0 + 0 * r), teacher_skip=0.99).learn(100)
    assert len(kept.preferences) == kept.queries
    equal_pairs = small(paying(float, lambda r: 1.0 + 0 * r), teacher_equal=0.1).learn(100)
    assert (equal_pairs.preferences.labels == 0.5).all()


def test_a_round_fits_with_the_options_given(monkeypatch):
    """Those of B-Pref, without weight decay, schedule or standardised inputs, and so many epochs over all answers."""
    seen = []

    def noted(model, preferences, options, **further):
        seen.append((options, fit_reward_model(model, preferences, options, **further)))
        return seen[-1][1]

    monkeypatch.setattr("aligngym.agents.pebble.fit_reward_model", noted)
    options = {"reward_epochs": 3, "reward_batch_size": 4, "reward_learning_rate": 0.02, "stop_accuracy": 0.9}
    metrics = Metrics()
    agent = small(**options).learn(100, metrics)
    (first, _), (second, history) = seen
    assert (first.updates, second.updates) == (3 * 2, 3 * 3), "six and twelve answers in batches of four"
    assert (second.batch_size, second.learning_rate, second.stop_accuracy) == (4, 0.02, 0.9)
    assert (second.schedule, second.weight_decay, second.standardize) == ("constant", 0.0, False)
    assert agent.reward_model.shift.eq(0).all() and agent.reward_model.scale.eq(1).all()
    last = metrics.rows[-1]
    assert last["preferences/epochs"] == len(history) <= 3 and last["preferences/answers"] == 12
    assert [last[f"preferences/{k}"] for k in ("loss", "accuracy")] == [history[-1][k] for k in ("loss", "accuracy")]


def test_a_round_stops_once_enough_answers_are_told_right():
    agent = small(reward_epochs=200, reward_learning_rate=0.02, steps_per_iteration=70)
    metrics = Metrics()
    agent.learn(70, metrics)
    assert metrics.rows[-1]["preferences/accuracy"] >= 0.97 and 1 < metrics.rows[-1]["preferences/epochs"] < 200


def test_another_seed_has_other_reward_models_and_asks_other_questions():
    one, other = small(seed=3), small(seed=4)
    assert not torch.equal(one.reward_model.nets[0][0].weight, other.reward_model.nets[0][0].weight)
    assert one._teacher_rng.random() != other._teacher_rng.random()


def test_questions_are_about_the_newest_episodes():
    agent = small(query_episodes=3).learn(100)
    assert len(agent.record.episodes) == 3
    assert agent.preferences.segments.episode.max() <= 2


@pytest.mark.parametrize("scheme", ["uniform", "disagreement", "entropy"])
def test_the_scheme_chooses_among_new_candidates(scheme):
    agent = small(query_scheme=scheme, query_candidates=8).learn(64)
    agent.ask()
    rng = copy.deepcopy(agent._teacher_rng)
    before = len(agent.preferences)
    agent._collect_answers(first=False)
    chosen = agent.preferences.segments.select(torch.arange(2 * before, 2 * before + 12))
    count = 6 if scheme == "uniform" else 48
    drawn, _ = sample_segments(stack(list(agent.record.episodes)), 5, 2 * count, rng)
    scores = agent.reward_model.member_scores(drawn).double()
    p = torch.sigmoid(scores[:, 0::2] - scores[:, 1::2])
    value = {"uniform": torch.arange(6.0), "disagreement": (p[0] - p[1]).abs(), "entropy": -(p.mean(0) - 0.5).abs()}
    best = set(value[scheme].argsort(descending=True)[:6].tolist())
    places = {tuple(x) for x in torch.stack([drawn.episode, drawn.start], 1).reshape(-1, 4)[list(best)].tolist()}
    assert {tuple(x) for x in torch.stack([chosen.episode, chosen.start], 1).reshape(-1, 4).tolist()} == places


def test_the_first_questions_are_uniform_whatever_the_scheme():
    one, two = (small(query_scheme=s).learn(60) for s in ("uniform", "entropy"))
    one.ask(), two.ask()
    assert torch.equal(one.preferences.segments.start, two.preferences.segments.start)


def test_the_first_round_makes_new_critics_and_keeps_the_actor(monkeypatch):
    agent = small(reset_updates=0).learn(60)
    before = copy.deepcopy(agent.model.policy.state_dict())
    assert agent.buffer.exploring and agent.model._n_updates > 0
    agent.ask()
    after = agent.model.policy.state_dict()
    for key, value in after.items():
        assert torch.equal(value, before[key]) == key.startswith("actor"), key
        if key.startswith("critic."):
            assert torch.equal(value, after[key.replace("critic.", "critic_target.")])
    assert not agent.model.critic.optimizer.state and agent.model.actor.optimizer.state
    kept = copy.deepcopy(agent.model.policy.state_dict())
    agent.ask()  # the second round relabels only
    assert all(torch.equal(v, kept[k]) for k, v in agent.model.policy.state_dict().items())
    updated = small(reset_updates=7).learn(60)
    done, sizes = updated.model._n_updates, []
    sample = updated.buffer.sample
    monkeypatch.setattr(updated.buffer, "sample", lambda size, **k: sizes.append(size) or sample(size, **k))
    updated.ask()
    assert sizes == [16] * 7
    assert updated.model._n_updates == done + 7
    assert {int(s["step"]) for s in updated.model.critic.optimizer.state.values()} == {7}


def test_exploration_takes_the_states_entropy_for_its_reward():
    """Until the first round the reward models do not matter."""
    one, other = small(), small()
    with torch.no_grad():
        for parameter in other.reward_model.parameters():
            parameter.mul_(-3)
    one.learn(60), other.learn(60)
    assert all(torch.equal(a, b) for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True))
    assert one.buffer.deviation.count > 16
    without = small(neighbors=1).learn(60)
    assert not torch.equal(one.policy.network.critic.qf0[0].weight, without.policy.network.critic.qf0[0].weight)


def test_no_finished_episode_is_reported():
    agent = small(make_env("Pendulum-v1", max_episode_steps=200))
    with pytest.raises(ValueError, match="no episode ended within the first 60 steps"):
        agent.learn(100)
    with pytest.raises(ValueError, match="length=16: the longest episode has 15 steps"):
        small(segment_length=16).learn(100)


class Person:
    """Someone who always prefers the left clip, in a page for each round."""

    def __init__(self, folder, announce):
        self.folder, self.announce = folder, announce

    def answer(self, segments, rewards, rng, segment_return=None):
        path, black = self.folder / f"{segments.digest()}.jsonl", np.zeros((2, 4, 4, 3), np.uint8)
        person = HumanTeacher(lambda row: black, path, segments, announce=self.announce)
        return person.collect(torch.arange(len(segments)).reshape(-1, 2))


def press_left(url):
    def ask(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url + path, data), timeout=20) as reply:
            return json.loads(reply.read())

    def press():
        state = ask("state")
        while state["pair"]:
            state = ask("answer", {"pair": state["pair"], "answer": "left"})
        ask("finish", {})

    threading.Thread(target=press, daemon=True).start()


def test_a_person_answers_and_is_not_asked_again_after_a_resume(tmp_path):
    agent = PEBBLE(pendulum(), config=PEBBLEConfig(**SMALL), teacher=Person(tmp_path, press_left)).learn(60)
    agent.save(tmp_path / "saved")
    agent.learn(20)
    assert agent.queries == 6 and (agent.preferences.labels == 1).all()
    again = PEBBLE.load(tmp_path / "saved", pendulum(), teacher=Person(tmp_path, pytest.fail)).learn(20)
    assert equal(again, agent) and len([*tmp_path.glob("*.jsonl")]) == 1


def pendulum():
    return make_env("Pendulum-v1", max_episode_steps=LIMIT)
